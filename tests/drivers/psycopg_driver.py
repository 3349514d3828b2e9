"""psycopg 3 through the pooler: statements that it prepares by itself, pipelines, cursors, COPY, cancel."""

import datetime
import decimal
import logging
import threading
import uuid
from contextlib import contextmanager

import psycopg
from checks import DSN, PART, check, check_raises, done
from psycopg import errors
from psycopg.types.json import Jsonb

CONNECTIONS = 6


def connect(**options):
    return psycopg.connect(DSN, autocommit=True, **{"prepare_threshold": 2, **options})


@contextmanager
def busy(other):
    """Another client is in a transaction, with the server that was used last: all others get the next one."""
    with other.transaction():
        other.execute("SELECT 1")
        yield


def prepared_statements(connections):
    """Every connection prepares the same names for other statements; they share few servers."""
    for repeat in range(12):
        for number, connection in enumerate(connections):
            sql = f"SELECT %s::int + {number}, %s::text"
            row = connection.execute(sql, (repeat, "é")).fetchone()
            check(row, (repeat + number, "é"), "a statement prepared after two uses")
            row = connection.execute("SELECT %s::bytea", (b"\x00\xff",), prepare=True).fetchone()
            check(row, (b"\x00\xff",), "a statement prepared at once")


def evicted_statements(connection):
    """More statements than psycopg keeps: it closes the oldest."""
    connection.prepare_threshold = 0
    connection.prepared_max = 5
    for repeat in range(3):
        for number in range(20):
            row = connection.execute(f"SELECT {number} + %s::int", (repeat,)).fetchone()
            check(row, (number + repeat,), "a statement that comes back after its eviction")


def pipelines(connections):
    for connection in connections:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(50)]
            pipeline.sync()
            check([c.fetchone()[0] for c in cursors], list(range(50)), "a pipeline of 50")
            with connection.transaction():
                cursor = connection.execute("SELECT txid_current() = txid_current()")
                check(cursor.fetchone(), (True,), "a transaction in a pipeline")
    connection = connections[0]

    def fails():
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1 / 0")
            connection.execute("SELECT 2")

    check_raises(errors.DivisionByZero, fails, "an error inside a pipeline")
    check(connection.execute("SELECT 3").fetchone(), (3,), "after a pipeline's error")


def transactions(connections):
    first, second = connections[:2]
    first.execute("CREATE TABLE driver_psycopg (n int PRIMARY KEY)")
    with first.transaction():
        first.execute("INSERT INTO driver_psycopg VALUES (1)")
        seen = second.execute("SELECT count(*) FROM driver_psycopg").fetchone()
        check(seen, (0,), "what another client sees of an open transaction")

        def duplicate():
            with first.transaction():
                first.execute("INSERT INTO driver_psycopg VALUES (1)")

        check_raises(errors.UniqueViolation, duplicate, "an error in a savepoint")
        first.execute("INSERT INTO driver_psycopg VALUES (2)")
    seen = second.execute("SELECT count(*) FROM driver_psycopg").fetchone()
    check(seen, (2,), "what another client sees after commit")


def server_cursors(connection):
    with connection.transaction(), connection.cursor("portal") as cursor:
        cursor.itersize = 7
        cursor.execute("SELECT n FROM generate_series(1, 100) AS n")
        check([row[0] for row in cursor], list(range(1, 101)), "a server-side cursor")


def copy(connection):
    connection.execute("TRUNCATE driver_psycopg")
    with connection.cursor().copy("COPY driver_psycopg FROM STDIN") as stream:
        for n in range(20000):
            stream.write_row((n,))
    with connection.cursor().copy("COPY driver_psycopg TO STDOUT (FORMAT BINARY)") as stream:
        stream.set_types(["int4"])
        check(sum(row[0] for row in stream.rows()), sum(range(20000)), "COPY there and back")

    def aborted():
        with connection.cursor().copy("COPY driver_psycopg FROM STDIN") as stream:
            stream.write_row((30000,))
            raise KeyError("the application gives up")

    check_raises(KeyError, aborted, "a COPY that the client gives up")
    count = connection.execute("SELECT count(*) FROM driver_psycopg").fetchone()
    check(count, (20000,), "after a COPY that was given up")


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    check_raises(
        errors.QueryCanceled, lambda: connection.execute("SELECT pg_sleep(60)"), "a cancelled query"
    )
    timer.join()
    check(connection.execute("SELECT 4").fetchone(), (4,), "after a cancel")


def types(connection):
    for value, sql_type in [
        (decimal.Decimal("12345678901234567890.0987654321"), "numeric"),
        (uuid.UUID(int=2**127 + 1), "uuid"),
        (datetime.datetime(2024, 2, 29, 23, 59, 59, 999999, datetime.timezone.utc), "timestamptz"),
        (datetime.timedelta(days=-3, microseconds=1), "interval"),
        ([[1, 2], [3, None]], "int[]"),
        (["", "a,b", '"', "\\", None], "text[]"),
        (b"\x00\xff" * 10000, "bytea"),
        (1e-300, "float8"),
        ({"key": [1, None, "\u00e9\u20ac"]}, "jsonb"),
    ]:
        parameter = Jsonb(value) if sql_type == "jsonb" else value
        for binary in (False, True):
            for _ in range(3):
                cursor = connection.cursor(binary=binary)
                row = cursor.execute(f"SELECT %s::{sql_type}", (parameter,)).fetchone()
                check(row, (value,), f"{sql_type}, binary {binary}")


def moved_statements(first, second):
    """A statement that was prepared on one server, used on the other and again on the first."""
    connection = connect(prepare_threshold=0)
    for _ in range(3):
        check(connection.execute("SELECT %s::int + 1", (1,)).fetchone(), (2,), "on the one server")
        with busy(first):
            check(connection.execute("SELECT %s::int + 1", (2,)).fetchone(), (3,), "on the other server")
    connection.close()


def schema_change():
    first, second = connect(prepare_threshold=0), connect()
    first.execute("CREATE TABLE driver_psycopg_plan AS SELECT 1 AS n")
    read = "SELECT * FROM driver_psycopg_plan"
    for _ in range(2):
        check(first.execute(read).fetchone(), (1,), "a plan on the one server")
        with busy(second):
            check(first.execute(read).fetchone(), (1,), "a plan on the other server")
    second.execute("ALTER TABLE driver_psycopg_plan ADD COLUMN word text DEFAULT 'new'")
    check_raises(errors.FeatureNotSupported, lambda: first.execute(read), "a plan whose result has changed")
    first.execute("DEALLOCATE ALL")
    for _ in range(2):
        check(first.execute(read).fetchone(), (1, "new"), "after DEALLOCATE ALL")
        with busy(second):
            check(first.execute(read).fetchone(), (1, "new"), "after it on the other server")


def local_settings(first, second):
    with first.transaction():
        first.execute("SET LOCAL statement_timeout = '1234ms'")
        first.execute("SELECT set_config('search_path', 'pg_catalog', true)")
        check(first.execute("SHOW statement_timeout").fetchone(), ("1234ms",), "SET LOCAL")
        check(second.execute("SHOW statement_timeout").fetchone(), ("0",), "another client's")
    for connection in (first, second):
        check(connection.execute("SHOW statement_timeout").fetchone(), ("0",), "after SET LOCAL")
        path = connection.execute("SHOW search_path").fetchone()
        check(path, ('"$user", public',), "after a local set_config")

    def times_out():
        with first.transaction():
            first.execute("SET LOCAL statement_timeout = 50")
            first.execute("SELECT pg_sleep(60)")

    check_raises(errors.QueryCanceled, times_out, "a statement_timeout")
    check(first.execute("SELECT 5").fetchone(), (5,), "after a statement_timeout")


def reported_settings(first, second):
    """These PostgreSQL reports to the client whenever they change."""
    for connection, zone, word in [(first, "Asia/Tokyo", "a"), (second, "America/New_York", "b")]:
        connection.execute(f"SET TimeZone = '{zone}'")
        connection.execute(f"SET application_name = 'driver {word}'")
    for _ in range(3):
        for connection, other, zone, word in [
            (first, second, "Asia/Tokyo", "a"),
            (second, first, "America/New_York", "b"),
        ]:
            check(connection.execute("SHOW TimeZone").fetchone(), (zone,), "TimeZone")
            check(connection.info.parameter_status("TimeZone"), zone, "the TimeZone that is reported")
            with busy(other):
                name = connection.execute("SHOW application_name").fetchone()
                check(name, (f"driver {word}",), "application_name on the other server")
    for connection in (first, second):
        connection.execute("SET TimeZone = 'UTC'")


def row_locks(first, second):
    first.execute("INSERT INTO driver_psycopg VALUES (-1)")
    with first.transaction():
        first.execute("UPDATE driver_psycopg SET n = -2 WHERE n = -1")

        def no_wait():
            second.execute("SELECT n FROM driver_psycopg WHERE n = -1 FOR UPDATE NOWAIT")

        check_raises(errors.LockNotAvailable, no_wait, "a row that another client holds")
    got = second.execute("SELECT n FROM driver_psycopg WHERE n < 0 FOR UPDATE").fetchone()
    check(got, (-2,), "the row after that")


def carried_settings(first, second):
    """SET belongs to the client, wherever its next transaction runs."""
    first.execute("SET statement_timeout = '4321ms'")
    first.execute("CREATE SCHEMA driver_psycopg_side")
    first.execute("CREATE TABLE driver_psycopg_side.hidden AS SELECT 7 AS n")
    first.execute("SET search_path = driver_psycopg_side, public")
    for _ in range(3):
        check(second.execute("SHOW statement_timeout").fetchone(), ("0",), "another client's timeout")
        with busy(second):
            check(first.execute("SHOW statement_timeout").fetchone(), ("4321ms",), "on the other server")
            check(first.execute("SELECT n FROM hidden").fetchone(), (7,), "search_path on the other server")
        check(first.execute("SHOW statement_timeout").fetchone(), ("4321ms",), "on the one server")
    with busy(first):
        check_raises(errors.UndefinedTable, lambda: second.execute("TABLE hidden"), "another's search_path")

    def fails():
        with first.transaction():
            first.execute("SET statement_timeout = '1s'")
            first.execute("SELECT 1 / 0")

    check_raises(errors.DivisionByZero, fails, "an error behind SET")
    check(first.execute("SHOW statement_timeout").fetchone(), ("4321ms",), "SET that was rolled back")
    with first.transaction():
        first.execute("SET statement_timeout = '2s'")
        with first.transaction() as savepoint:
            first.execute("SET statement_timeout = '3s'")
            raise psycopg.Rollback(savepoint)
    with busy(second):
        check(first.execute("SHOW statement_timeout").fetchone(), ("2s",), "behind a savepoint")
    first.execute("RESET statement_timeout")
    first.execute("SELECT set_config('search_path', 'public', false)")
    with busy(second):
        check(first.execute("SHOW statement_timeout").fetchone(), ("0",), "after RESET")
        check(first.execute("SHOW search_path").fetchone(), ("public",), "after set_config")
    first.execute("RESET ALL")
    with busy(second):
        check(first.execute("SHOW search_path").fetchone(), ('"$user", public',), "after RESET ALL")
    first.execute("DROP SCHEMA driver_psycopg_side CASCADE")


def advisory_locks(second):
    first = connect()
    take, give = "SELECT pg_try_advisory_lock(11)", "SELECT pg_advisory_unlock(11)"
    check(first.execute(take).fetchone(), (True,), "an advisory lock")
    for _ in range(3):
        check(second.execute(take).fetchone(), (False,), "the lock of another client")
        with busy(second):
            check(first.execute("SELECT 1").fetchone(), (1,), "with a lock")
    check(first.execute(give).fetchone(), (True,), "the lock is given back")
    check(second.execute(take).fetchone(), (True,), "the lock after that")
    check(second.execute(give).fetchone(), (True,), "and back")
    first.execute("SELECT pg_advisory_lock(11)")
    first.close()
    second.execute("SET lock_timeout = '5s'")
    second.execute("SELECT pg_advisory_lock(11)")
    check(second.execute(give).fetchone(), (True,), "the lock of a client that has gone")
    second.execute("RESET lock_timeout")


def temporary_tables(second):
    first = connect()
    first.execute("CREATE TEMP TABLE driver_psycopg_temp (n int)")
    for n in range(3):
        with busy(second):
            first.execute("INSERT INTO driver_psycopg_temp VALUES (%s)", (n,))
        check_raises(
            errors.UndefinedTable,
            lambda: second.execute("TABLE driver_psycopg_temp"),
            "the temporary table of another client",
        )
    check(first.execute("SELECT count(*) FROM driver_psycopg_temp").fetchone(), (3,), "a temporary table")
    with first.cursor().copy("COPY driver_psycopg_temp FROM STDIN") as stream:
        stream.write_row((9,))
    check(first.execute("SELECT max(n) FROM driver_psycopg_temp").fetchone(), (9,), "COPY into it")
    first.close()
    second.execute("CREATE TEMP TABLE driver_psycopg_temp (word text)")
    second.execute("DROP TABLE driver_psycopg_temp")


def notifications(second):
    first = connect()
    first.execute("LISTEN driver_psycopg")
    for number in range(3):
        with busy(second):
            first.execute("SELECT 1")
        second.execute("SELECT pg_notify('driver_psycopg', %s)", (str(number),))
        heard = [notify.payload for notify in first.notifies(timeout=5, stop_after=1)]
        check(heard, [str(number)], "a notification")
    second.execute("NOTIFY driver_psycopg_other")
    check(list(second.notifies(timeout=0.1)), [], "what a client hears that does not listen")
    first.execute("UNLISTEN *")
    second.execute("NOTIFY driver_psycopg")
    check(list(first.notifies(timeout=0.1)), [], "after UNLISTEN")
    first.close()


def held_cursors(second):
    first = connect()
    with first.cursor("held", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 30)")
        with busy(second):
            check(len(cursor.fetchmany(10)), 10, "a cursor WITH HOLD")
        check(len(cursor.fetchall()), 20, "the rest of it")
    first.close()


def sql_prepare(second):
    first = connect()
    for connection, sign in [(first, "+"), (second, "*")]:
        connection.execute(f"PREPARE driver_psycopg_sql (int) AS SELECT $1 {sign} 10")
        with busy(first if connection is second else second):
            got = connection.execute("EXECUTE driver_psycopg_sql (3)").fetchone()
            check(got, (13 if sign == "+" else 30,), "a statement of PREPARE")
        connection.execute("DEALLOCATE driver_psycopg_sql")
    first.close()


def startup_options(second):
    first = connect(options="-c statement_timeout=7s -c search_path=pg_catalog -c geqo=off")
    for _ in range(3):
        with busy(second):
            check(first.execute("SHOW statement_timeout").fetchone(), ("7s",), "options at the start")
            check(first.execute("SHOW geqo").fetchone(), ("off",), "options at the start")
        check(second.execute("SHOW geqo").fetchone(), ("on",), "options of another client")
    first.execute("SET geqo = on")
    first.execute("RESET geqo")
    check(first.execute("SHOW geqo").fetchone(), ("off",), "RESET to what the start said")
    first.close()


def discard_all(second):
    first = connect(prepare_threshold=0)
    first.execute("SET statement_timeout = '5s'")
    first.execute("CREATE TEMP TABLE driver_psycopg_temp (n int)")
    first.execute("LISTEN driver_psycopg")
    check(first.execute("SELECT %s::int", (1,)).fetchone(), (1,), "before DISCARD ALL")
    first.execute("DISCARD ALL")
    first._prepared.clear()
    with busy(second):
        check(first.execute("SHOW statement_timeout").fetchone(), ("0",), "after DISCARD ALL")
        check(first.execute("SELECT %s::int", (1,)).fetchone(), (1,), "a statement after DISCARD ALL")
        check_raises(errors.UndefinedTable, lambda: first.execute("TABLE driver_psycopg_temp"), "DISCARD ALL")
    first.close()


def session_state():
    first, second = connect(), connect()
    carried_settings(first, second)
    first.close()
    for keeps in (
        advisory_locks,
        temporary_tables,
        notifications,
        held_cursors,
        sql_prepare,
        startup_options,
        discard_all,
    ):
        keeps(second)
    second.close()


def ordinary():
    connections = [connect() for _ in range(CONNECTIONS)]
    prepared_statements(connections)
    evicted_statements(connections[0])
    pipelines(connections)
    transactions(connections)
    server_cursors(connections[2])
    row_locks(*connections[:2])
    copy(connections[3])
    cancel(connections[4])
    types(connections[5])
    moved_statements(*connections[1:3])
    local_settings(*connections[2:4])
    reported_settings(*connections[4:6])
    connections[0].execute("DROP TABLE driver_psycopg")
    for connection in connections:
        connection.close()


# It warns when a pipeline was already aborted at its end: that depends on the timing.
logging.getLogger("psycopg").setLevel(logging.ERROR)
{"": ordinary, "session-state": session_state, "schema-change": schema_change}[PART]()
done()
