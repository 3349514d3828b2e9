//! What a client may send whatever it means: `max_packet_size` and `disable_pqexec`.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::message::{copy_data, copy_done, extended, query, run_of, sync};
use support::pooler::is_ours;
use support::{Login, Pooler, Raw, Reply, eventually};

fn select() -> Vec<u8> {
    run_of([extended("SELECT 1", &[]), sync()])
}

/// PgBouncer puts the header's bytes behind these words.
fn is_bad_header(told: &Reply, what: &str) {
    let farewell = told.farewell();
    assert!(farewell.starts_with("FATAL 08P01 bad packet header"), "{what}: {told}: {farewell}");
}

#[tokio::test]
async fn disable_pqexec_refuses_simple_queries_with_and_without_a_server_and_nothing_else() {
    for mode in ["session", "transaction"] {
        let pooler = Pooler::config().mode(mode).setting("disable_pqexec", "1").start().await;
        let mut fresh = pooler.client().await;
        fresh.send(query("SELECT 1")).await;
        let told = fresh.rest().await;
        assert_eq!(told.farewell(), "FATAL 08P01 PQexec disallowed", "{mode}: {told}");
        let mut inside = pooler.client().await;
        // What the client has set is carried to its server by a simple query of ours.
        let begin = run_of([extended("SET DateStyle = 'German'", &[]), extended("BEGIN", &[]), sync()]);
        inside.ask(begin).await.is("1 2 n C 1 2 n C Z(T)");
        inside.ask(select()).await.is("1 2 T D(1) C Z(T)");
        inside.send(run_of([extended("SELECT 2", &[]), sync(), query("SELECT 3")])).await;
        let told = inside.rest().await;
        assert!(told.farewell() == "FATAL 08P01 PQexec disallowed", "{mode}: {told}");
        // PgBouncer's own console does not work with it.
        if is_ours() {
            eventually("the server is gone or free", async || pooler.pool("sv_active").await == 0).await;
        }
        let mut other = pooler.client().await;
        other.ask(select()).await.is("1 2 T D(1) C Z(I)");
    }
}

#[tokio::test]
async fn a_message_above_max_packet_size_ends_the_connection_in_either_direction() {
    let pooler = Pooler::config().setting("max_packet_size", "2000").pool_size(2).start().await;
    pooler.sql("CREATE TABLE t (n text); GRANT ALL ON t TO app").await;
    let fits = |bytes: usize| format!("SELECT length('{}')", "x".repeat(bytes));
    let mut client = pooler.client().await;
    // 5 bytes of header, 17 of the query, and its NUL.
    client.query(&fits(1977)).await.is("T D(1977) C Z(I)");
    client.query("BEGIN").await.is("C Z(T)");
    client.query(&fits(1977)).await.is("T D(1977) C Z(T)");
    client.send(query(&fits(1978))).await;
    is_bad_header(&client.rest().await, "inside a transaction");
    let mut idle = pooler.client().await;
    idle.send(query(&fits(1978))).await;
    is_bad_header(&idle.rest().await, "idle");
    let mut copier = pooler.client().await;
    copier.ask_until(query("COPY t FROM STDIN"), b'G').await.is("G");
    copier.send(run_of([copy_data(&"x\n".repeat(1500)), copy_done()])).await;
    is_bad_header(&copier.rest().await, "COPY");
    assert_eq!(pooler.number("SELECT count(*) FROM t").await, 0);
    // The whole of a result may be larger; one row may not.
    let mut reader = pooler.client().await;
    let rows = reader.query("SELECT repeat('x', 1000) FROM generate_series(1, 10)").await;
    assert_eq!(rows.count(b'D'), 10, "{rows}");
    reader.send(query("SELECT repeat('x', 3000)")).await;
    let told = reader.rest().await;
    assert_eq!(told.count(b'D'), 0, "{told}");
    if is_ours() {
        assert_eq!(told.farewell(), "FATAL 08P01 bad packet from server", "{told}");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn max_packet_size_is_another_one_after_a_reload() {
    let pooler = Pooler::config().setting("max_packet_size", "2000").start().await;
    let large = format!("SELECT length('{}')", "x".repeat(3000));
    pooler.edit("max_packet_size = 2000", "max_packet_size = 4000");
    pooler.admin("RELOAD").await;
    eventually("the larger one fits", async || {
        let mut client = Raw::login(&pooler.tcp(), &Login::new("app", "app")).await;
        client.query(&large).await.count(b'D') == 1
    })
    .await;
}
