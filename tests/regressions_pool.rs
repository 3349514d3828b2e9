//! Which servers are open, for whom, and what is left behind: pausing, limits, failed logins, cancels.

use crate::support;

use std::time::Duration;
use support::message::{cancel_request, query};
use support::proxy::CancelHolder;
use support::{Gate, Login, Pooler, Postgres, Raw, eventually};
use tokio::time::Instant;

const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename <> 'postgres'";

async fn has_servers(pooler: &Pooler, count: i64) {
    eventually(&format!("{count} server connections"), async || pooler.number(SERVERS).await == count).await;
}

/// No server is there, and none comes within the time of several rounds of upkeep.
async fn stays_without_servers(pooler: &Pooler) {
    has_servers(pooler, 0).await;
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert_eq!(pooler.number(SERVERS).await, 0);
    }
}

#[tokio::test]
async fn pause_returns_at_the_end_of_the_open_transaction_and_opens_nothing_while_it_lasts() {
    for mode in ["transaction", "session"] {
        let pooler = Pooler::config().mode(mode).pool_size(3).setting("min_pool_size", "2").start().await;
        let (mut a, mut b) = (pooler.client().await, pooler.client().await);
        a.query("BEGIN").await.is("C(BEGIN) Z(T)");
        has_servers(&pooler, 2).await;
        let mut console = pooler.console().await;
        console.send(query("PAUSE")).await;
        assert!(!console.hears_within(Duration::from_millis(300)).await, "a transaction is open");
        a.query("SELECT 1").await.is("T D(1) C Z(T)");
        a.query("COMMIT").await.is("C(COMMIT) Z(I)");
        if mode == "session" {
            drop(a);
        }
        console.ready(1).await.is("C(PAUSE) Z(I)");
        b.send(query("SELECT 'b'")).await;
        pooler.clients_wait(1).await;
        stays_without_servers(&pooler).await;
        console.query("RESUME").await.is("C(RESUME) Z(I)");
        b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
        has_servers(&pooler, 2).await;
    }
}

#[tokio::test]
async fn sigint_ends_the_pooler_after_the_open_transaction() {
    let mut pooler = Pooler::config().pool_size(2).start().await;
    let (mut a, _idle) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    pooler.signal("INT");
    pooler.logs("SIGINT").await;
    assert!(!a.hears_within(Duration::from_millis(300)).await);
    a.query("SELECT 1").await.is("T D(1) C Z(T)");
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    let began = Instant::now();
    pooler.wait();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn kill_leaves_no_idle_servers() {
    let pooler = Pooler::config().pool_size(3).setting("min_pool_size", "2").start().await;
    let (mut a, mut b, mut c) = (pooler.client().await, pooler.client().await, pooler.client().await);
    for client in [&mut a, &mut b, &mut c] {
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    }
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    has_servers(&pooler, 3).await;
    pooler.admin("KILL app").await;
    stays_without_servers(&pooler).await;
    pooler.admin("RESUME app").await;
    pooler.is_clean().await;
}

#[tokio::test]
async fn idle_servers_at_one_database_make_room_for_waiters_at_another() {
    let pooler = Pooler::config()
        .pool_size(2)
        .database_line("other = {server} dbname={database}")
        .setting("max_user_connections", "2")
        .start()
        .await;
    let login = Login::new("app", "other");
    let mut c = Raw::login(&pooler.tcp(), &login).await;
    let mut d = Raw::login(&pooler.tcp(), &login).await;
    c.query("SELECT 'c'").await.is("T D(c) C(SELECT 1) Z(I)");
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    // The idle server that is in the way goes.
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    // Two wait before there is anything to evict, and get their turn as it comes.
    c.send(query("BEGIN; SELECT 'c'")).await;
    d.send(query("BEGIN; SELECT 'd'")).await;
    eventually("both wait", async || {
        pooler.admin("SHOW POOLS").await.iter().any(|pool| pool["cl_waiting"] == "2")
    })
    .await;
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    c.ready(1).await.is("C(BEGIN) T D(c) C Z(T)");
    d.ready(1).await.is("C(BEGIN) T D(d) C Z(T)");
    // PostgreSQL may still be seeing off the ones that made room.
    eventually("two servers", async || pooler.number(SERVERS).await == 2).await;
    c.query("COMMIT").await.is("C(COMMIT) Z(I)");
    // And the other way, with an idle server there from the start.
    a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
    d.query("COMMIT").await.is("C(COMMIT) Z(I)");
}

#[tokio::test]
async fn failed_logins_leave_nothing_behind() {
    for method in ["trust", "md5", "scram-sha-256"] {
        let pooler =
            Pooler::config().database_line("* = {server}").setting("auth_type", method).start().await;
        let console = Login::new("admin", "pgbouncer").password("admin-secret");
        let mut console = Raw::login(&pooler.tcp(), &console).await;
        let mut rows = async |command: &str| console.query(command).await.rows();
        let (users, databases) = (rows("SHOW USERS").await, rows("SHOW DATABASES").await);
        let (pools, clients) = (rows("SHOW POOLS").await, rows("SHOW CLIENTS").await.len());
        for number in 0..50 {
            for database in ["app", &format!("nowhere_{number}")] {
                let login = Login::new(&format!("ghost_{number}"), database).password("wrong");
                let refusal = pooler.refuses(&login).await;
                assert!(refusal.contains("FATAL"), "{refusal}");
            }
        }
        assert_eq!(rows("SHOW USERS").await, users, "{method}");
        assert_eq!(rows("SHOW DATABASES").await, databases, "{method}");
        assert_eq!(rows("SHOW POOLS").await, pools, "{method}");
        assert_eq!(rows("SHOW CLIENTS").await.len(), clients, "{method}");
    }
}

#[tokio::test]
async fn a_server_is_closed_when_cancel_wait_timeout_passes_with_a_cancel_on_its_way() {
    let postgres = Postgres::shared().await;
    let mut proxy = CancelHolder::start(&postgres).await;
    let pooler = Pooler::config().server(proxy.address).setting("cancel_wait_timeout", "0.7").start().await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(query(&gate.sql("a"))).await;
    gate.is_reached_by(1).await;
    let first = gate.pid().await;
    let mut canceller = Raw::connect(&pooler.tcp()).await.unwrap();
    canceller.send(cancel_request(&a.key)).await;
    proxy.holds_one().await;
    gate.open().await;
    a.ready(1).await.is("T D(a) C(SELECT 1) Z(I)");

    let mut gate = Gate::close(&pooler).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(1).await;
    assert_ne!(gate.pid().await, first, "the cancel is still on its way to that server");
    proxy.release();
    canceller.rest().await.is("EOF");
    gate.open().await;
    b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {first}");
    eventually("the old server is closed", async || pooler.number(&left).await == 0).await;
}

#[tokio::test]
async fn a_forced_user_without_a_password_logs_in_with_that_users_secret() {
    for user in ["plain_user", "md5_user", "scram_user"] {
        for method in ["trust", "scram-sha-256"] {
            let pooler = Pooler::config()
                .database_option(&format!("user={user}"))
                .setting("auth_type", method)
                .start()
                .await;
            let login = Login::new("app", "app").password("app-secret");
            let mut client = Raw::login(&pooler.tcp(), &login).await;
            assert_eq!(client.query("SELECT current_user").await.value(), user, "{method}");
        }
    }
}
