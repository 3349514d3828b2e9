//! Scenario group C: a cancel reaches the query it was meant for, or nothing.

use crate::support;

use std::time::Duration;
use support::message::{bind, cancel_request, execute, parse, query, run_of, sync};
use support::proxy::CancelHolder;
use support::{Gate, PATIENCE, PROMPTLY, Pooler, Postgres, Raw};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// A query that lasts until it is cancelled.
const FOR_EVER: &str = "SELECT pg_sleep(600)";

async fn runs_for_ever(pooler: &Pooler, count: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND state = 'active' AND wait_event = 'PgSleep'";
    support::eventually("the query runs", async || pooler.number(sql).await == count).await;
}

#[tokio::test]
async fn c1_a_running_query_is_cancelled() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.send(query(FOR_EVER)).await;
    runs_for_ever(&pooler, 1).await;
    Raw::cancel(&pooler.tcp(), &a.key).await;
    a.ready(1).await.is("T* E(57014) Z(I)");

    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let extended = run_of([parse("", FOR_EVER), bind("", "", &[]), execute("", 0), sync()]);
    a.send(extended).await;
    runs_for_ever(&pooler, 1).await;
    Raw::cancel(&pooler.unix(), &a.key).await;
    a.ready(1).await.is("1 2 E(57014) Z(E)");
    a.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn c2_a_cancel_for_an_idle_client_has_no_effect_on_anyone() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    for number in 0..30 {
        let sql = format!("SELECT {number}");
        assert_eq!(a.query(&sql).await.value(), number.to_string());
        Raw::cancel(&pooler.tcp(), &a.key).await;
    }
    // Now A's last server is B's.
    let mut gate = Gate::close(&pooler).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(1).await;
    Raw::cancel(&pooler.tcp(), &a.key).await;
    gate.open().await;
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
    a.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn c2_a_cancel_of_a_client_idle_in_a_transaction_has_no_effect() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    for _ in 0..10 {
        Raw::cancel(&pooler.tcp(), &a.key).await;
    }
    let answer = timeout(PATIENCE, settled(&mut a)).await.unwrap();
    assert!(answer, "one late cancel may hit the next query, none may linger");
    pooler.is_clean().await;
}

/// PostgreSQL itself may deliver a signal to the query that follows. After that all must be quiet.
async fn settled(client: &mut Raw) -> bool {
    for _ in 0..3 {
        let reply = client.query("SELECT 1").await;
        reply.is(if reply.count(b'E') == 1 { "T* E Z(E)" } else { "T D(1) C Z(T)" });
        if reply.count(b'E') == 1 {
            client.query("ROLLBACK; BEGIN").await.is("C C Z(T)");
        }
    }
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    true
}

#[tokio::test]
async fn c3_a_delayed_cancel_does_not_reach_the_servers_next_owner() {
    let postgres = Postgres::shared().await;
    let mut proxy = CancelHolder::start(&postgres).await;
    let pooler = Pooler::config().server(proxy.address).start().await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(query(&gate.sql("a"))).await;
    gate.is_reached_by(1).await;
    let address = pooler.tcp();
    let key = a.key.clone();
    let cancel = tokio::spawn(async move { Raw::cancel(&address, &key).await });
    proxy.holds_one().await;
    // A's query ends by itself before the cancel arrives.
    gate.open().await;
    a.ready(1).await.is("T D(a) C(SELECT 1) Z(I)");
    let mut gate = Gate::close(&pooler).await;
    b.send(query(&gate.sql("b"))).await;
    // Either B waits until the cancel is done, or B runs on a server that the cancel cannot hit.
    let served = gate.is_reached_within(Duration::from_millis(300), 1).await;
    proxy.release();
    timeout(PATIENCE, cancel).await.unwrap().unwrap();
    if !served {
        gate.is_reached_by(1).await;
    }
    gate.open().await;
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn c4_a_cancel_with_a_wrong_key_is_ignored() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut gate = Gate::close(&pooler).await;
    let mut a = pooler.client().await;
    let gone = pooler.client().await;
    let stale = gone.key.clone();
    drop(gone);
    a.send(query(&gate.sql("a"))).await;
    gate.is_reached_by(1).await;
    let mut keys = vec![stale, vec![0; 8], vec![0xff; 8]];
    for byte in 0..a.key.len() {
        let mut wrong = a.key.clone();
        wrong[byte] ^= 1;
        keys.push(wrong);
    }
    for key in keys {
        let mut canceller = Raw::connect(&pooler.tcp()).await.unwrap();
        canceller.send(cancel_request(&key)).await;
        canceller.rest().await.is("EOF");
    }
    gate.open().await;
    a.ready(1).await.is("T D(a) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn c5_a_queued_client_is_cancelled_at_once_and_leaves_the_queue() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    a.send(query("SELECT 'a'")).await;
    pooler.clients_wait(1).await;
    let address = pooler.tcp();
    let key = a.key.clone();
    let cancel = tokio::spawn(async move { Raw::cancel(&address, &key).await });
    assert!(a.hears_within(PROMPTLY).await, "A is told while B has the server");
    a.ready(1).await.is("E(57014) Z(I)");
    pooler.clients_wait(0).await;
    timeout(PATIENCE, cancel).await.unwrap().unwrap();
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    a.query("SELECT 'again'").await.is("T D(again) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn c6_a_cancel_is_delivered_though_the_pool_is_full_and_others_wait() {
    let pooler = Pooler::config().pool_size(2).setting("max_db_connections", "2").start().await;
    let (mut a, mut b, mut c) = (pooler.client().await, pooler.client().await, pooler.client().await);
    a.send(query(FOR_EVER)).await;
    b.send(query(FOR_EVER)).await;
    runs_for_ever(&pooler, 2).await;
    c.send(query("SELECT 'c'")).await;
    pooler.clients_wait(1).await;
    Raw::cancel(&pooler.tcp(), &a.key).await;
    a.ready(1).await.is("T* E(57014) Z(I)");
    c.ready(1).await.is("T D(c) C(SELECT 1) Z(I)");
    Raw::cancel(&pooler.tcp(), &b.key).await;
    b.ready(1).await.is("T* E(57014) Z(I)");
}

#[tokio::test]
async fn c7_a_storm_of_cancels_does_not_hinder_logins() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut gate = Gate::close(&pooler).await;
    let mut a = pooler.client().await;
    let mut idle = pooler.client().await;
    a.send(query(&gate.sql("a"))).await;
    gate.is_reached_by(1).await;
    let mut wrong = a.key.clone();
    wrong[7] ^= 1;
    let mut storm = JoinSet::new();
    for number in 0..8 {
        let address = pooler.tcp();
        // Half of them are for a client that exists but runs nothing.
        let key = if number % 2 == 0 { wrong.clone() } else { idle.key.clone() };
        storm.spawn(async move {
            for _ in 0..100 {
                Raw::cancel(&address, &key).await;
            }
        });
    }
    while !storm.is_empty() {
        let started = Instant::now();
        let mut new = pooler.client().await;
        new.query("SELECT 'new'").await.is("T D(new) C(SELECT 1) Z(I)");
        assert!(started.elapsed() < PROMPTLY, "a login in the storm is slow");
        while storm.try_join_next().is_some() {}
    }
    gate.open().await;
    a.ready(1).await.is("T D(a) C(SELECT 1) Z(I)");
    idle.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn c7_a_cancel_that_the_server_never_ends_costs_no_slot() {
    let postgres = Postgres::shared().await;
    let mut proxy = CancelHolder::start(&postgres).await;
    let pooler = Pooler::config()
        .server(proxy.address)
        .setting("server_connect_timeout", "1")
        .setting("cancel_wait_timeout", "1")
        .start()
        .await;
    let mut gate = Gate::close(&pooler).await;
    let mut a = pooler.client().await;
    a.send(query(&gate.sql("a"))).await;
    gate.is_reached_by(1).await;
    let mut canceller = Raw::connect(&pooler.tcp()).await.unwrap();
    canceller.send(cancel_request(&a.key)).await;
    proxy.holds_one().await;
    // Whoever sees the end may ask again: the cancel hits nothing later.
    assert!(
        !canceller.hears_within(Duration::from_millis(300)).await,
        "not before the server has dealt with it"
    );
    gate.open().await;
    a.ready(1).await.is("T D(a) C(SELECT 1) Z(I)");
    let mut b = timeout(PATIENCE, pooler.client()).await.unwrap();
    b.query("SELECT 'b'").await.is("T D(b) C(SELECT 1) Z(I)");
    canceller.rest().await.is("EOF");
    pooler.logs("closing because: cancel_wait_timeout (age=1s)").await;
}
