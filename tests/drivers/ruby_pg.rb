# ruby-pg through the pooler: named statements, pipelines, single-row mode, COPY, cancel, threads.

require "pg"

DSN = ENV.fetch("PGWEIR_DSN")
$checks = 0

def check(got, expected, what)
  $checks += 1
  raise "#{what}: got #{got.inspect}, expected #{expected.inspect}" unless got == expected
end

def check_raises(error, what)
  $checks += 1
  yield
  raise "#{what}: no #{error}"
rescue error
  nil
end

def connect(**options)
  connection = PG.connect(DSN, **options)
  connection.type_map_for_results = PG::BasicTypeMapForResults.new(connection)
  connection
end

# Another client is in a transaction, with the server that was used last: all others get the next one.
def busy(other)
  other.transaction do
    other.exec("SELECT 1")
    yield
  end
end

def value(connection, sql, parameters = [])
  connection.exec_params(sql, parameters).getvalue(0, 0)
end

def named_statements(connections)
  connections.each_with_index { |connection, n| connection.prepare("add", "SELECT $1::int + #{n}") }
  10.times do |repeat|
    connections.each_with_index do |connection, n|
      check(connection.exec_prepared("add", [repeat]).getvalue(0, 0), repeat + n, "a named statement")
    end
  end
  first, second = connections
  busy(second) { check(first.exec_prepared("add", [7]).getvalue(0, 0), 7, "a named statement on the other server") }
  check(first.describe_prepared("add").nfields, 1, "a description")
  check_raises(PG::DuplicatePstatement, "a name that is taken") { first.prepare("add", "SELECT 2") }
  check_raises(PG::InvalidSqlStatementName, "a name that is not there") { first.exec_prepared("no_such") }
  first.exec("DEALLOCATE ALL")
  first.prepare("add", "SELECT 100 + $1::int")
  check(first.exec_prepared("add", [1]).getvalue(0, 0), 101, "the name after DEALLOCATE ALL")
  check(second.exec_prepared("add", [1]).getvalue(0, 0), 2, "another client's statement of that name")
end

def transactions(first, second)
  first.exec("CREATE TABLE driver_ruby (n int PRIMARY KEY, word text)")
  first.transaction do
    first.exec_params("INSERT INTO driver_ruby VALUES ($1, $2)", [1, "é"])
    check(value(second, "SELECT count(*) FROM driver_ruby"), 0, "what another client sees of it")
    first.exec("SAVEPOINT before")
    check_raises(PG::UniqueViolation, "an error") { first.exec("INSERT INTO driver_ruby VALUES (1)") }
    check(first.transaction_status, PG::PQTRANS_INERROR, "the state behind an error")
    first.exec("ROLLBACK TO before")
    first.exec("DECLARE portal CURSOR FOR SELECT generate_series(1, 100)")
    check(first.exec("FETCH 30 FROM portal").ntuples, 30, "a cursor")
    first.exec("SET LOCAL statement_timeout = 100")
    first.exec("SAVEPOINT before")
    check_raises(PG::QueryCanceled, "a statement_timeout") { first.exec("SELECT pg_sleep(60)") }
    first.exec("ROLLBACK TO before")
  end
  check(value(second, "SELECT word FROM driver_ruby"), "é", "after commit")
  check(value(first, "SHOW statement_timeout"), "0", "after SET LOCAL")
end

def pipelines(connection)
  connection.enter_pipeline_mode
  3.times do
    10.times { |n| connection.send_query_params("SELECT $1::int", [n]) }
    connection.send_query_params("SELECT 1 / $1::int", [0])
    connection.send_query_params("SELECT 'skipped'", [])
    connection.pipeline_sync
    connection.send_query_params("SELECT 'next'", [])
    connection.pipeline_sync
    10.times do |n|
      check(connection.get_result.getvalue(0, 0), n, "a pipeline")
      check(connection.get_result, nil, "its end")
    end
    check(connection.get_result.result_status, PG::PGRES_FATAL_ERROR, "an error in a pipeline")
    connection.get_result
    check(connection.get_result.result_status, PG::PGRES_PIPELINE_ABORTED, "behind the error")
    connection.get_result
    check(connection.get_result.result_status, PG::PGRES_PIPELINE_SYNC, "the end of the pipeline")
    check(connection.get_result.getvalue(0, 0), "next", "the next pipeline")
    connection.get_result
    check(connection.get_result.result_status, PG::PGRES_PIPELINE_SYNC, "its end")
  end
  connection.exit_pipeline_mode
end

def streams(connection)
  connection.send_query("SELECT n FROM generate_series(1, 5000) AS n; SELECT 'second'")
  connection.set_single_row_mode
  rows = 0
  connection.get_result.stream_each { rows += 1 }
  check(rows, 5000, "single-row mode")
  connection.get_result.stream_each { |row| check(row.values, ["second"], "a second statement") }
  check(connection.get_result, nil, "the end of both")
  encoder = PG::TextEncoder::CopyRow.new
  connection.copy_data("COPY driver_ruby FROM STDIN", encoder) do
    20_000.times { |n| connection.put_copy_data([n + 10, "word #{n}"]) }
  end
  total = 0
  connection.copy_data("COPY (SELECT n FROM driver_ruby WHERE n >= 10) TO STDOUT", PG::TextDecoder::CopyRow.new) do
    total += 1 while connection.get_copy_data
  end
  check(total, 20_000, "COPY there and back")
  check_raises(RuntimeError, "a COPY that the application gives up") do
    connection.copy_data("COPY driver_ruby FROM STDIN", encoder) { raise "no more" }
  end
  check(value(connection, "SELECT count(*) FROM driver_ruby"), 20_001, "after it")
end

def cancel(connection)
  connection.send_query("SELECT pg_sleep(60)")
  sleep 0.2
  check(connection.cancel, nil, "a cancel")
  check_raises(PG::QueryCanceled, "a cancelled query") { connection.get_last_result }
  check(value(connection, "SELECT 2"), 2, "after a cancel")
end

def threads
  clients = 8.times.map do |number|
    Thread.new do
      connection = connect
      connection.prepare("mine", "SELECT $1::int * #{number}, pg_sleep(0.001)")
      got = 20.times.map { |n| connection.exec_prepared("mine", [n]).getvalue(0, 0) }
      connection.finish
      got == 20.times.map { |n| n * number }
    end
  end
  check(clients.map(&:value), [true] * 8, "threads")
end

def reported_settings(first, second)
  first.set_client_encoding("LATIN1")
  first.exec("SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'iso_8601'")
  3.times do
    busy(second) do
      check(value(first, "SHOW TimeZone"), "Asia/Tokyo", "TimeZone on the other server")
      check(first.exec("SELECT (interval '1 day')::text").getvalue(0, 0), "P1D", "IntervalStyle on the other server")
      check(value(first, "SHOW client_encoding"), "LATIN1", "the encoding on the other server")
    end
    check(value(second, "SHOW TimeZone"), "UTC", "another client's TimeZone")
    check(value(second, "SHOW client_encoding"), "UTF8", "another client's encoding")
  end
end

def ordinary
  connections = 6.times.map { connect }
  named_statements(connections)
  transactions(*connections.first(2))
  pipelines(connections[2])
  streams(connections[3])
  cancel(connections[4])
  threads
  reported_settings(*connections.last(2))
  connections[0].exec("DROP TABLE driver_ruby")
  connections.each(&:finish)
end

def session_state
  second = connect
  first = connect(options: "-c statement_timeout=5s -c geqo=off")
  3.times do
    busy(second) do
      check(value(first, "SHOW statement_timeout"), "5s", "an option of the start")
      check(value(first, "SHOW geqo"), "off", "an option of the start")
    end
    check(value(second, "SHOW geqo"), "on", "another client's")
  end
  # What ActiveRecord sets behind each login.
  first.exec("SET standard_conforming_strings = on; SET SESSION statement_timeout TO '6s'")
  first.exec("SET SESSION lock_timeout TO 4000; SET client_min_messages TO 'error'")
  3.times do
    busy(second) do
      settings = %w[statement_timeout lock_timeout client_min_messages].map { |name| value(first, "SHOW #{name}") }
      check(settings, %w[6s 4s error], "SET on the other server")
    end
    check(value(second, "SHOW client_min_messages"), "notice", "another client's")
  end
  first.reset
  check(value(first, "SHOW statement_timeout"), "5s", "a new login")
  first.finish

  first = connect
  # The lock of ActiveRecord's migrations.
  check(value(first, "SELECT pg_try_advisory_lock(2718281828)"), true, "an advisory lock")
  check(value(second, "SELECT pg_try_advisory_lock(2718281828)"), false, "the lock of another client")
  busy(second) { first.exec("CREATE TEMP TABLE driver_ruby_temp AS SELECT 3 AS n") }
  busy(second) { check(value(first, "SELECT n FROM driver_ruby_temp"), 3, "a temporary table") }
  check(value(first, "SELECT pg_advisory_unlock(2718281828)"), true, "the lock is given back")
  first.exec("LISTEN driver_ruby")
  second.exec("NOTIFY driver_ruby, 'word'")
  heard = nil
  first.wait_for_notify(5) { |_channel, _pid, payload| heard = payload }
  check(heard, "word", "a notification")
  first.finish
  second.finish
end

# What ActiveRecord sends when it has too many statements. It is said in SQL, and meant are those of the protocol.
def deallocate
  first, second = connect, connect
  [first, second].each { |connection| connection.prepare("a1", "SELECT $1::int + 1") }
  3.times do |n|
    busy(second) { check(first.exec_prepared("a1", [n]).getvalue(0, 0), n + 1, "a named statement") }
    first.transaction do
      first.exec("DEALLOCATE a1")
      first.exec("SAVEPOINT before")
      check_raises(PG::InvalidSqlStatementName, "a name that was dropped") { first.exec_prepared("a1", [n]) }
      first.exec("ROLLBACK TO before")
      check_raises(PG::InvalidSqlStatementName, "a name that is not there") { first.exec('DEALLOCATE "A1"') }
      first.exec("ROLLBACK TO before")
      first.prepare("a1", "SELECT $1::int + 1")
    end
    check(second.exec_prepared("a1", [n]).getvalue(0, 0), n + 1, "another client's statement of that name")
  end
  first.exec("DEALLOCATE PREPARE a1")
  check_raises(PG::InvalidSqlStatementName, "a name that was dropped") { first.describe_prepared("a1") }
  [first, second].each(&:finish)
end

parts = {
  [] => method(:ordinary),
  ["deallocate"] => method(:deallocate),
  ["session-state"] => method(:session_state),
}
parts.fetch(ARGV).call
puts "ok #{$checks} checks"
