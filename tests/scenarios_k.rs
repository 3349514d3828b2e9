//! Scenario group K: COPY, large messages and FunctionCall.

use crate::support;

use support::message::{
    bind, copy_data, copy_done, copy_fail, describe_portal, execute, flush, function_call, parse, query,
    run_of, sync,
};
use support::{Gate, Pooler, eventually};

const COPY: &str = "COPY items FROM STDIN";
const MEGABYTE: u64 = 1_000_000;

async fn with_items() -> Pooler {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    pooler
}

/// The three ways to start a COPY: simple, extended, and with a named statement.
fn starts() -> [(&'static str, Vec<u8>, Vec<u8>); 3] {
    let named =
        |name: &str| run_of([parse(name, COPY), bind("", name, &[]), describe_portal(""), execute("", 0)]);
    [
        ("simple", query(COPY), Vec::new()),
        ("extended", named(""), sync()),
        ("prepared", named("copy_items"), sync()),
    ]
}

#[tokio::test]
async fn k1_copy_in_succeeds_and_fails_as_in_postgresql() {
    let pooler = with_items().await;
    let ends = [
        ("done", run_of([copy_data("1\n"), copy_data("2\n"), copy_done()])),
        ("fail", run_of([copy_data("1\n"), copy_fail("enough")])),
        ("bad row", run_of([copy_data("1\n"), copy_data("x\n"), copy_done()])),
        ("bad at the end", run_of([copy_data("1\nx"), copy_done()])),
        ("empty", copy_done()),
    ];
    for (how, start, finish) in &starts() {
        for (what, end) in &ends {
            println!("{how}, {what}");
            let copy = run_of([start.clone(), end.clone(), finish.clone()]);
            pooler.same_as_direct(&copy).await;
            let transaction = run_of([query("BEGIN"), copy, query("SELECT 1"), query("COMMIT")]);
            pooler.same_as_direct(&transaction).await;
        }
    }
    // Each "done" commits two rows: alone and in BEGIN, directly and through the pooler, 3 ways.
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 2 * 4 * 3);
    pooler.is_clean().await;
}

#[tokio::test]
async fn k2_late_copy_data_after_an_error_is_swallowed() {
    let pooler = with_items().await;
    for late in [copy_done(), copy_fail("too late")] {
        let mut a = pooler.client().await;
        let mut b = pooler.client().await;
        a.send(run_of([query(COPY), copy_data("x\n")])).await;
        a.ready(1).await.is("G E(22P02) Z(I)");
        // The server is B's now; what A still streams must not ask for one.
        b.query("BEGIN").await.is("C(BEGIN) Z(T)");
        a.send(run_of([copy_data("2\n"), copy_data("3\n"), late])).await;
        b.query("COMMIT").await.is("C(COMMIT) Z(I)");
        a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
        b.query("SELECT 'b'").await.is("T D(b) C(SELECT 1) Z(I)");
        pooler.is_clean().await;
    }
    // The same in the extended protocol: all is skipped up to Sync.
    let mut a = pooler.client().await;
    a.send(run_of([parse("", COPY), bind("", "", &[]), execute("", 0), copy_data("x\n")])).await;
    a.until(b'E').await.is("1 2 G E(22P02)");
    a.send(run_of([copy_data("2\n"), copy_done(), sync()])).await;
    a.ready(1).await.is("Z(I)");
    a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 0);
    pooler.is_clean().await;
}

#[tokio::test]
async fn k3_a_server_in_copy_in_is_not_given_to_the_next_client() {
    let pooler = with_items().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(query(COPY)).await;
    a.until(b'G').await.is("G");
    b.send(query("SELECT count(*) FROM items")).await;
    pooler.clients_wait(1).await;
    a.send(copy_data("1\n2\n")).await;
    assert_eq!(pooler.pool("cl_waiting").await, 1, "B waits for the COPY");
    a.send(copy_done()).await;
    a.ready(1).await.is("C(COPY 2) Z(I)");
    b.ready(1).await.is("T D(2) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn k4_sync_and_flush_inside_copy_data_are_ignored() {
    let pooler = with_items().await;
    let start = || run_of([parse("", COPY), bind("", "", &[]), execute("", 0)]);
    let all_at_once = run_of([start(), copy_data("1\n"), copy_done(), sync()]);
    let reply = pooler.same_as_direct(all_at_once).await;
    reply.is("1 2 G C(COPY 1) Z(I)");

    let inside =
        run_of([start(), sync(), copy_data("1\n"), flush(), sync(), copy_data("2\n"), copy_done(), sync()]);
    let reply = pooler.same_as_direct(inside).await;
    reply.is("1 2 G C(COPY 2) Z(I)");

    let failed = run_of([start(), sync(), copy_data("x\n"), copy_done(), sync(), query("SELECT 1")]);
    let reply = pooler.same_as_direct(failed).await;
    reply.is("1 2 G E(22P02) Z(I) T D(1) C Z(I)");
    pooler.is_clean().await;
}

const LARGE_COPY: &str = "COPY (SELECT repeat('x', 100000) FROM generate_series(1, 2000)) TO STDOUT";

#[tokio::test]
async fn k5_a_slow_reader_of_a_large_copy_takes_bounded_memory() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("SELECT 1").await;
    let before = pooler.memory_bytes();
    a.send(query(LARGE_COPY)).await;
    a.until(b'd').await.is("H d");
    pooler.server_waits_for_its_client().await;
    let rest = a.ready(1).await;
    assert!(rest.count(b'd') > 1900, "the COPY goes on to its end");
    rest.is("d* c C(COPY 2000) Z(I)");

    let mut killed = pooler.client().await;
    killed.send(query(LARGE_COPY)).await;
    killed.reader.discard(1_000_000).await;
    pooler.server_waits_for_its_client().await;
    killed.reset();
    pooler.is_clean().await;
    let grown = pooler.memory_peak_bytes().saturating_sub(before);
    assert!(grown < 8 * MEGABYTE, "grew by {grown} bytes for a slow reader");
}

#[tokio::test]
async fn k6_a_client_reset_inside_a_huge_row_leaves_a_clean_pool() {
    let pooler = Pooler::config().start().await;
    let huge = query("SELECT repeat('x', 50000000)");
    let mut a = pooler.client().await;
    a.query("SELECT 1").await;
    let before = pooler.memory_bytes();
    a.send(&huge).await;
    assert!(a.reader.discard(1_000_000).await >= 1_000_000);
    pooler.server_waits_for_its_client().await;
    a.reset();
    pooler.is_clean().await;

    let mut b = pooler.client().await;
    let whole = b.ask(&huge).await;
    assert_eq!(whole.value().len(), 50_000_000);
    let grown = pooler.memory_peak_bytes().saturating_sub(before);
    assert!(grown < 8 * MEGABYTE, "grew by {grown} bytes for one row");
}

#[tokio::test]
async fn k7_a_function_call_is_answered_and_its_transaction_followed() {
    let (add, divide) = (177, 154);
    let pooler = Pooler::config().start().await;
    for (bytes, expected) in [
        (function_call(add, &[3, 4]), "V Z(I)"),
        (function_call(divide, &[3, 0]), "E(22012) Z(I)"),
        (
            run_of([query("BEGIN"), function_call(add, &[3, 4]), query("COMMIT")]),
            "C(BEGIN) Z(T) V Z(T) C(COMMIT) Z(I)",
        ),
        (run_of([query("BEGIN"), function_call(divide, &[3, 0])]), "C(BEGIN) Z(T) E(22012) Z(E)"),
        (run_of([parse("", "wrong"), function_call(add, &[3, 4]), sync()]), "E(42601) Z(I)"),
    ] {
        pooler.same_as_direct(bytes).await.is(expected);
    }
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    a.ask(function_call(add, &[3, 4])).await.is("V Z(T)");
    b.send(query("SELECT 'b'")).await;
    pooler.clients_wait(1).await;
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn k8_memory_returns_after_a_large_message() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("SELECT 1").await;
    let before = pooler.memory_bytes();
    let large = "x".repeat(32_000_000);
    let simple = query(&format!("SELECT length('{large}')"));
    a.ask(simple).await.is("T D(32000000) C(SELECT 1) Z(I)");
    let prepared =
        run_of([parse("s", "SELECT length($1)"), bind("", "s", &[&large]), execute("", 0), sync()]);
    a.ask(prepared).await.is("1 2 D(32000000) C(SELECT 1) Z(I)");
    let in_parse =
        run_of([parse("", &format!("SELECT length('{large}')")), bind("", "", &[]), execute("", 0), sync()]);
    a.ask(in_parse).await.is("1 2 D(32000000) C(SELECT 1) Z(I)");
    eventually("memory is back near its start", async || pooler.memory_bytes() < before + 8 * MEGABYTE).await;
}

#[tokio::test]
async fn k3_a_copy_out_is_not_ended_by_a_waiting_client() {
    let pooler = Pooler::config().start().await;
    let gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let copy = format!("COPY ({}) TO STDOUT", gate.sql("row"));
    a.send(query(&copy)).await;
    let mut gate = gate;
    gate.is_reached_by(1).await;
    b.send(query("SELECT 'b'")).await;
    pooler.clients_wait(1).await;
    gate.open().await;
    a.ready(1).await.is("H d(row) c C(COPY 1) Z(I)");
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
}
