//! Scenario group S: how a session ends, and what of it must not be there afterwards.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::sync::Arc;
use support::message::{bind, copy_data, execute, extended, flush, parse, query, run_of, terminate};
use support::{Pooler, Postgres, Raw, eventually};

/// How a client can go.
#[derive(Clone, Copy, Debug)]
enum End {
    Fin,
    Rst,
    Terminate,
}

async fn leave(mut client: Raw, how: End) {
    match how {
        End::Fin => {
            client.writer.finish().await;
            client.rest().await;
        }
        End::Rst => client.reset(),
        End::Terminate => {
            client.send(terminate()).await;
            client.rest().await;
        }
    }
}

const EFFECTS: &str = "INSERT INTO items VALUES (7); SET LOCAL work_mem = '1MB'; SET lock_timeout = '7s'; \
     CREATE TEMP TABLE left_over (n int); SELECT pg_advisory_lock(7)";

/// Transactions in every state in which a client may leave them, and the last message that is heard of each.
fn open_transactions() -> Vec<(&'static str, Vec<u8>, u8)> {
    let begun = || query(&format!("BEGIN; {EFFECTS}"));
    vec![
        ("idle in it", begun(), b'Z'),
        ("failed", run_of([begun(), query("SELECT 1/0")]), b'E'),
        ("a batch without Sync", run_of([extended("INSERT INTO items VALUES (8)", &[]), flush()]), b'C'),
        (
            "a suspended portal",
            run_of([parse("", "SELECT generate_series(1, 9)"), bind("", "", &[]), execute("", 2), flush()]),
            b's',
        ),
        ("a failed batch without Sync", run_of([parse("", "SELEC"), flush()]), b'E'),
        ("COPY FROM", run_of([begun(), query("COPY items FROM STDIN"), copy_data("1\n2\n")]), b'G'),
        ("COPY FROM outside of BEGIN", run_of([query("COPY items FROM STDIN"), copy_data("1\n2\n")]), b'G'),
        ("COPY TO", query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"), b'd'),
    ]
}

async fn nothing_is_left(pooler: &Pooler, what: &str) {
    // A server that was closed needs a moment to see it.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in%'";
    eventually("no transaction is open", async || pooler.number(open).await == 0).await;
    let locks = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
         WHERE locktype = 'advisory' AND datname = current_database()";
    eventually("no lock is held", async || pooler.number(locks).await == 0).await;
    pooler.is_clean().await;
    let mut b = pooler.client().await;
    for (sql, expected) in [
        ("SELECT count(*) FROM items", "0"),
        ("SELECT count(*) FROM pg_class WHERE relname = 'left_over'", "0"),
        ("SELECT pg_try_advisory_lock(7)", "t"),
        ("SELECT pg_advisory_unlock(7)", "t"),
        ("SHOW work_mem", "4MB"),
        ("SHOW lock_timeout", "0"),
    ] {
        assert_eq!(b.query(sql).await.value(), expected, "{what}: {sql}");
    }
    drop(b);
    eventually("no client and no server is in use", async || {
        pooler.pool("cl_active").await == 0 && pooler.pool("sv_active").await == 0
    })
    .await;
    let servers = pooler.admin("SHOW SERVERS").await;
    assert!(servers.len() <= 1, "{what}: {servers:?}");
}

#[tokio::test]
async fn s16_a_transaction_whose_client_goes_is_rolled_back_and_its_server_clean() {
    for mode in ["transaction", "session"] {
        let postgres = Arc::new(Postgres::start(&[]).await);
        let pooler = Pooler::config()
            .postgres(Arc::clone(&postgres))
            .mode(mode)
            .setting("server_reset_query", "DISCARD ALL")
            .start()
            .await;
        pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
        for (what, bytes, last) in open_transactions() {
            for how in [End::Fin, End::Rst, End::Terminate] {
                let mut a = pooler.client().await;
                a.send(&bytes).await;
                a.until(last).await;
                leave(a, how).await;
                nothing_is_left(&pooler, &format!("{mode}, {what}, {how:?}")).await;
            }
        }
        // ROLLBACK and DISCARD ALL in one message would be a transaction, in which DISCARD ALL must not be.
        let log = postgres.log();
        assert!(!log.contains("cannot run inside a transaction block"), "{log}");
    }
}

/// A server in the middle of an answer is not asked for a reset behind it.
#[tokio::test]
async fn s17_no_reset_is_sent_while_answers_are_owed() {
    let postgres = Arc::new(Postgres::start(&["log_statement=all"]).await);
    let pooler = Pooler::config()
        .postgres(Arc::clone(&postgres))
        .mode("session")
        .setting("server_reset_query", "DISCARD ALL")
        .start()
        .await;
    for how in [End::Fin, End::Rst, End::Terminate] {
        let mut a = pooler.client().await;
        let pid = a.query("SELECT pg_backend_pid()").await.value();
        a.send(run_of([extended("SELECT 'A-secret' FROM pg_sleep(0.2)", &[]), flush()])).await;
        leave(a, how).await;
        let mut b = pooler.client().await;
        b.query("SELECT 'b'").await.is("T D(b) C(SELECT 1) Z(I)");
        let next = b.query("SELECT pg_backend_pid()").await.value();
        let was_reset = postgres.log().contains("DISCARD ALL");
        assert!(next != pid || was_reset, "{how:?}: B is on A's server, which was not reset");
        let log = postgres.log();
        assert!(!log.contains("ERROR"), "{log}");
        drop(b);
    }
}
