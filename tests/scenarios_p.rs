//! Scenario group P: pipelines, the count of Syncs, and recovery from errors.
//!
//! Standard set-up: transaction mode, one server connection, clients A and B.

use crate::support;

use support::message::{
    bind, close_portal, close_statement, describe_portal, describe_statement, execute, extended, flush,
    parse, query, run_of, sync, terminate,
};
use support::{Gate, PATIENCE, Pooler, Postgres, Reply, eventually, proxy};

#[tokio::test]
async fn p1_fifty_queries_in_one_write_get_fifty_answers_in_order() {
    let pooler = Pooler::config().start().await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let first = query(&gate.sql("0"));
    let others = (1..50).map(|number| query(&format!("SELECT '{number}', clock_timestamp()::text")));
    a.send(run_of([first].into_iter().chain(others))).await;
    gate.is_reached_by(1).await;
    b.send(query("SELECT clock_timestamp()::text")).await;
    pooler.clients_wait(1).await;
    gate.open().await;

    let answers = a.ready(50).await;
    let rows = answers.rows();
    let numbers: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let expected: Vec<String> = (0..50).map(|number: u32| number.to_string()).collect();
    assert_eq!(numbers, expected);
    assert_eq!(answers.count(b'Z'), 50);
    let at_b = b.ready(1).await.value();
    assert!(at_b > rows[49][1], "B was served inside A's pipeline");
}

#[tokio::test]
async fn p2_eleven_prepared_requests_before_the_first_answer_are_all_answered() {
    let pooler = Pooler::config().start().await;
    let request = |number: u32| {
        let name = format!("statement_{number}");
        run_of([
            parse(&name, &format!("SELECT {number} + $1::int")),
            describe_statement(&name),
            bind("", &name, &["7"]),
            execute("", 0),
            sync(),
        ])
    };
    let reply = pooler.same_as_direct(run_of((0..11).map(request))).await;
    assert_eq!((reply.count(b'1'), reply.count(b't'), reply.count(b'Z')), (11, 11, 11));
    let unnamed = |number: u32| {
        run_of([
            parse("", &format!("SELECT {number} + $1::int")),
            describe_statement(""),
            bind("", "", &["7"]),
            execute("", 0),
            sync(),
        ])
    };
    pooler.same_as_direct(run_of((0..11).map(unnamed))).await;
}

#[tokio::test]
async fn p3_after_an_error_all_is_skipped_up_to_sync() {
    let pooler = Pooler::config().start().await;
    let bytes = run_of([
        extended("SELECT 1/$1::int", &["0"]),
        extended("SELECT 'skipped'", &[]),
        close_statement("nothing"),
        sync(),
        extended("SELECT 'next'", &[]),
        sync(),
    ]);
    let reply = pooler.same_as_direct(bytes).await;
    // The planner already divides, so Bind fails; in the second pipeline it is Execute.
    reply.is("1 E(22012) Z(I) 1 2 T D(next) C(SELECT 1) Z(I)");
    let bytes = run_of([
        extended("SELECT 1/n FROM generate_series($1::int, 1) AS n", &["-1"]),
        extended("SELECT 'skipped'", &[]),
        sync(),
        extended("SELECT 'next'", &[]),
        sync(),
    ]);
    let reply = pooler.same_as_direct(bytes).await;
    reply.is("1 2 T D(-1) E(22012) Z(I) 1 2 T D(next) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn p4_a_simple_query_before_the_sync_of_a_failed_pipeline_is_discarded() {
    let pooler = Pooler::config().start().await;
    let bytes = run_of([
        extended("SELECT 1/$1::int", &["0"]),
        query("SELECT 'discarded'"),
        sync(),
        query("SELECT 'next'"),
    ]);
    let reply = pooler.same_as_direct(bytes).await;
    reply.is("1 E(22012) Z(I) T D(next) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn p5_a_failed_segment_does_not_touch_the_next_one() {
    let pooler = Pooler::config().start().await;
    let bytes =
        run_of([extended("SELECT 1/$1::int", &["0"]), sync(), extended("SELECT 'second'", &[]), sync()]);
    let reply = pooler.same_as_direct(bytes).await;
    reply.is("1 E(22012) Z(I) 1 2 T D(second) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn p6_flush_keeps_the_server_until_the_answer_to_sync() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let sql = "INSERT INTO items VALUES ($1::int) RETURNING n";
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    a.send(run_of([parse("s", sql), describe_statement("s"), flush()])).await;
    a.until(b'T').await.is("1 t T");
    b.send(query("SELECT count(*) FROM items")).await;
    pooler.clients_wait(1).await;
    a.send(run_of([bind("", "s", &["7"]), execute("", 0), flush()])).await;
    a.until(b'C').await.is("2 D(7) C(INSERT 0 1)");
    assert_eq!(pooler.pool("cl_waiting").await, 1, "B waits for A's Sync");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 0);
    a.send(sync()).await;
    a.ready(1).await.is("Z(I)");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 1);
    b.ready(1).await.is("T D(1) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn p7_a_suspended_portal_keeps_its_server() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let series = "SELECT generate_series(1, 5)";
    let next = || run_of([execute("", 2), flush()]);
    a.send(run_of([parse("", series), bind("", "", &[]), next()])).await;
    a.until(b's').await.is("1 2 D(1) D(2) s");
    b.send(query("SELECT 'b'")).await;
    pooler.clients_wait(1).await;
    a.send(next()).await;
    a.until(b's').await.is("D(3) D(4) s");
    assert_eq!(pooler.pool("cl_waiting").await, 1, "the portal is still open");
    a.send(next()).await;
    a.until(b'C').await.is("D(5) C(SELECT 1)");
    a.ask(sync()).await.is("Z(I)");
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn p8_an_error_after_flush_is_told_at_once_and_ready_only_after_sync() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.send(run_of([parse("", "SELEC 1"), flush()])).await;
    a.until(b'E').await.is("E(42601)");
    // A ReadyForQuery of its own would stand before the one that answers Sync.
    a.send(run_of([sync(), query("SELECT 'usable'")])).await;
    a.ready(2).await.is("Z(I) T D(usable) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

/// The Query behind the Sync is owed an answer, too: the server must not go to B before it.
#[tokio::test]
async fn p8_a_query_behind_the_sync_of_a_failed_flush_is_not_answered_to_another() {
    let pooler = Pooler::config().start().await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(run_of([parse("", "SELEC 1"), flush()])).await;
    a.until(b'E').await.is("E(42601)");
    b.send(query("SELECT 'b'")).await;
    pooler.clients_wait(1).await;
    a.send(run_of([sync(), query(&gate.sql("secret"))])).await;
    gate.is_reached_by(1).await;
    gate.open().await;
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
    a.ready(2).await.is("Z(I) T D(secret) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn p9_a_query_and_terminate_in_one_write_is_answered_before_the_end() {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    let mut a = pooler.client().await;
    a.send(run_of([query("INSERT INTO items VALUES (1)"), terminate()])).await;
    a.rest().await.is("C(INSERT 0 1) Z(I) EOF");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 1);
    pooler.is_clean().await;
}

#[tokio::test]
async fn p10_an_error_in_a_multi_statement_query_ends_it_as_in_postgresql() {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    let implicit = "INSERT INTO items VALUES (1); SELECT 1/0; INSERT INTO items VALUES (2)";
    let reply = pooler.same_as_direct(query(implicit)).await;
    reply.is("C(INSERT 0 1) E(22012) Z(I)");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 0);

    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let failed = a.query("BEGIN; SELECT 1; SELECT 1/0").await;
    failed.is("C(BEGIN) T D(1) C(SELECT 1) E(22012) Z(E)");
    b.send(query("SELECT 'b'")).await;
    pooler.clients_wait(1).await;
    a.query("SELECT 1").await.is("E(25P02) Z(E)");
    a.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
}

/// PgBouncer disconnects a client whose wait is over, and so do we: one FATAL error, never a
/// ReadyForQuery that no Sync has asked for.
#[tokio::test]
async fn p11_a_pipeline_without_sync_that_gets_no_server_is_told_once() {
    let pooler = Pooler::config().setting("query_wait_timeout", "1").start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    a.send(extended("SELECT 1", &[])).await;
    let reply = a.rest().await;
    reply.is("E(08P01) EOF");
    let error = reply.of(b'E').next().unwrap();
    assert_eq!(error.field(b'M'), "query_wait_timeout");
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn p12_empty_queries_and_needless_closes_are_no_errors() {
    let pooler = Pooler::config().start().await;
    for (bytes, expected) in [
        (query(""), "I Z(I)"),
        (query(";"), "I Z(I)"),
        (run_of([extended("", &[]), sync()]), "1 2 n I Z(I)"),
        (run_of([close_statement("none"), close_portal("none"), sync()]), "3 3 Z(I)"),
        (sync(), "Z(I)"),
        (run_of([flush(), sync(), sync()]), "Z(I) Z(I)"),
    ] {
        pooler.same_as_direct(bytes).await.is(expected);
    }
}

#[tokio::test]
async fn p13_describe_of_an_unknown_statement_is_an_error_and_not_the_end() {
    let pooler = Pooler::config().start().await;
    for (bytes, expected) in [
        (run_of([describe_statement("unknown"), parse("", "SELECT 1"), sync()]), "E(26000) Z(I)"),
        (run_of([bind("", "unknown", &[]), execute("", 0), sync()]), "E(26000) Z(I)"),
        (run_of([describe_portal("unknown"), sync()]), "E(34000) Z(I)"),
        (run_of([execute("unknown", 0), sync()]), "E(34000) Z(I)"),
    ] {
        pooler.same_as_direct(bytes).await.is(expected);
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn p14_begin_in_a_pipeline_is_answered_as_in_postgresql() {
    let pooler = Pooler::config().start().await;
    let prepared = |sql: &str| {
        run_of([parse("", sql), describe_statement(""), bind("", "", &[]), execute("", 0), sync()])
    };
    for (bytes, expected) in [
        (run_of([prepared("BEGIN"), query("COMMIT")]), "1 t n 2 C(BEGIN) Z(T) C(COMMIT) Z(I)"),
        (run_of([query("BEGIN"), query("COMMIT")]), "C(BEGIN) Z(T) C(COMMIT) Z(I)"),
        (query("BEGIN; COMMIT"), "C(BEGIN) C(COMMIT) Z(I)"),
        (run_of([prepared("BEGIN"), prepared("ROLLBACK")]), "1 t n 2 C(BEGIN) Z(T) 1 t n 2 C(ROLLBACK) Z(I)"),
        (
            run_of([extended("BEGIN", &[]), extended("ROLLBACK", &[]), sync()]),
            "1 2 n C(BEGIN) 1 2 n C(ROLLBACK) Z(I)",
        ),
    ] {
        pooler.same_as_direct(bytes).await.is(expected);
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn p15_long_pipelines_do_not_deadlock_and_take_bounded_memory() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    let one = run_of([bind("", "s", &["7"]), execute("", 0)]);
    let many = run_of(std::iter::repeat_n(one, 500));
    a.send(run_of([parse("s", "SELECT $1::text"), many, sync()])).await;
    let reply = a.ready(1).await;
    assert_eq!((reply.count(b'D'), reply.count(b'C')), (500, 500));

    // 80 MB of requests, each answered with as much: more than all kernel buffers on the way can hold
    // (tcp_rmem and tcp_wmem allow some 40 MB together). The client reads when its writing is stuck.
    let before = pooler.memory_bytes();
    let large = "x".repeat(100_000);
    let one = run_of([bind("", "s", &[&large]), execute("", 0), flush()]);
    let mut writing = a.writer;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = written.clone();
    let writer = tokio::spawn(async move {
        for _ in 0..800 {
            writing.send(&one).await;
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        writing.send(sync()).await;
    });
    // A client that does not read is not read either: its writing comes to a stop before its end.
    let (mut last, mut looks) = (0, 0);
    eventually("the writing is stuck", async || {
        let now = written.load(std::sync::atomic::Ordering::Relaxed);
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        now > 0 && looks >= 100
    })
    .await;
    assert!(last < 800, "all was written although nothing was read");
    let mut rows = 0;
    loop {
        let message = a.reader.message().await.expect("the connection stays");
        rows += usize::from(message.tag == b'D' && message.values()[0] == large);
        if message.tag == b'Z' {
            break;
        }
    }
    writer.await.unwrap();
    assert_eq!(rows, 800);
    let grown = pooler.memory_peak_bytes().saturating_sub(before);
    assert!(grown < 8_000_000, "grew by {grown} bytes for one client");
}

#[tokio::test]
async fn p16_a_server_killed_in_a_pipeline_is_told_exactly_once() {
    let pooler = Pooler::config().start().await;
    let mut gate = Gate::close(&pooler).await;
    let mut a = pooler.client().await;
    a.send(run_of([
        query("SELECT 'first'"),
        query(&gate.sql("killed")),
        query("SELECT 'last'"),
        extended("SELECT 'last'", &[]),
        sync(),
    ]))
    .await;
    gate.is_reached_by(1).await;
    let pid = gate.pid().await;
    pooler.sql(&format!("SELECT pg_terminate_backend({pid})")).await;
    a.rest().await.is("T D(first) C(SELECT 1) Z(I) T* E(57P01) EOF");
    pooler.is_clean().await;
}

#[tokio::test]
async fn p17_messages_between_answers_are_forwarded_and_not_counted() {
    let postgres = std::sync::Arc::new(Postgres::start(&[]).await);
    let pooler = Pooler::config().postgres(postgres).pool_size(2).start().await;
    let notice = "DO $$ BEGIN RAISE NOTICE 'hello'; END $$";
    let bytes = run_of([query(notice), extended(notice, &[]), sync(), query("SELECT 1")]);
    let reply = pooler.same_as_direct(bytes).await;
    reply.is("N C(DO) Z(I) 1 2 n N C(DO) Z(I) T D(1) C Z(I)");

    let mut a = pooler.client().await;
    let reply = a.query("BEGIN; SET LOCAL application_name = 'own'").await;
    assert_eq!(reply.of(b'S').count(), 1, "ParameterStatus is forwarded");
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");

    // The notification arrives before ReadyForQuery: the owner gets it.
    let reply = a.query("LISTEN channel; NOTIFY channel, 'own'").await;
    reply.is("C(LISTEN) C(NOTIFY) A(channel own) Z(I)");
    // Now nobody asks: whoever is next on that server must not count it as an answer.
    pooler.sql("NOTIFY channel, 'other'").await;
    // A reload makes each server report the changed parameter, in front of its next answer.
    pooler.sql("ALTER SYSTEM SET IntervalStyle = 'iso_8601'").await;
    pooler.sql("SELECT pg_reload_conf()").await;
    let (mut b, mut c) = (pooler.client().await, pooler.client().await);
    for _ in 0..3 {
        b.query("SELECT 'b'").await.is("T D(b) C(SELECT 1) Z(I)");
        c.query("SELECT 'c'").await.is("T D(c) C(SELECT 1) Z(I)");
    }
}

#[tokio::test]
async fn p18_a_notice_during_the_servers_login_does_not_hinder_it() {
    let before = proxy::notice("before");
    let server = proxy::Impostor::start(before, proxy::notice("after")).await;
    let pooler = Pooler::config().server(server.address).start().await;
    let mut a = pooler.client().await;
    let reply: Reply = a.query("SELECT 1").await;
    reply.is("N* T D(impostor) C(SELECT 1) Z(I)");

    // With this setting a real server sends notices from its login on, and in front of each answer.
    let pooler = Pooler::config().start().await;
    let database = &pooler.database;
    pooler.sql(&format!("ALTER DATABASE {database} SET client_min_messages = 'debug5'")).await;
    let mut a = tokio::time::timeout(PATIENCE, pooler.client()).await.unwrap();
    let reply = a.query("SELECT 1").await;
    assert_eq!(reply.rows(), [["1"]]);
}

#[tokio::test]
async fn a_name_that_is_prepared_twice_is_in_the_log() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.ask(run_of([parse("twice", "SELECT 1"), sync()])).await.is("1 Z(I)");
    client.send(run_of([parse("twice", "SELECT 1"), sync()])).await;
    pooler.logs("prepared statement 'twice' was already prepared").await;
}
