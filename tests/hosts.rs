//! A list of hosts: which of them gets the next server connection, and what clients notice of a dead one.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::sync::Arc;
use support::pooler::{Config, is_ours};
use support::{Login, Pooler, Postgres, Raw, eventually};

const SERVERS_ADDRESS: &str = "SELECT host(inet_server_addr())";

/// The database `listed` with this list of hosts, all at the server's port.
fn listed(server: &Arc<Postgres>, hosts: &str) -> Config {
    let line = format!("listed = host={hosts} port={} dbname=app user=app", server.port);
    Pooler::config().postgres(Arc::clone(server)).database_line(&line).pool_size(4)
}

async fn client(pooler: &Pooler) -> Raw {
    Raw::login(&pooler.tcp(), &Login::new("app", "listed")).await
}

/// The hosts that this many clients are served by at the same time.
async fn hosts_of(pooler: &Pooler, count: usize) -> Vec<String> {
    let mut clients = Vec::new();
    let mut hosts = Vec::new();
    for _ in 0..count {
        let mut client = client(pooler).await;
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        hosts.push(client.query(SERVERS_ADDRESS).await.value());
        clients.push(client);
    }
    hosts.sort_unstable();
    hosts
}

async fn shown(pooler: &Pooler, show: &str, column: &str, database: &str) -> String {
    let rows = pooler.admin(show).await;
    rows.iter().find(|row| row[column] == database).unwrap()["load_balance_hosts"].clone()
}

#[tokio::test]
async fn each_new_server_connection_takes_the_next_host_of_the_list() {
    let one = Arc::new(Postgres::start(&[]).await);
    let _other = Postgres::start_beside(&one, "127.0.0.2").await;
    let pooler = listed(&one, "127.0.0.1,127.0.0.2").start().await;
    assert_eq!(hosts_of(&pooler, 4).await, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    pooler.client().await;
    for (show, column) in [("SHOW DATABASES", "name"), ("SHOW POOLS", "database")] {
        assert_eq!(shown(&pooler, show, column, "listed").await, "round-robin", "{show}");
        // One host is no list.
        assert_eq!(shown(&pooler, show, column, "app").await, "NULL", "{show}");
    }
}

#[tokio::test]
async fn a_dead_host_costs_no_client_an_error_nor_a_wait_for_server_login_retry() {
    if !is_ours() {
        return; // PgBouncer waits for server_login_retry before it tries the next host.
    }
    let one = Arc::new(Postgres::start(&[]).await);
    let _third = Postgres::start_beside(&one, "127.0.0.3").await;
    let config = listed(&one, "127.0.0.2,127.0.0.1,127.0.0.3").setting("server_login_retry", "60");
    let pooler = config.setting("query_wait_timeout", "20").start().await;
    assert_eq!(hosts_of(&pooler, 4).await, ["127.0.0.1", "127.0.0.1", "127.0.0.3", "127.0.0.3"]);
    // It was tried once, and is left alone for server_login_retry.
    assert_eq!(pooler.log().matches("127.0.0.2:").count(), 1, "{}", pooler.log());
}

#[tokio::test]
async fn with_load_balance_hosts_disabled_one_host_serves_until_it_fails_and_then_the_next_one() {
    let one = Arc::new(Postgres::start(&[]).await);
    let other = Postgres::start_beside(&one, "127.0.0.2").await;
    let config = listed(&one, "127.0.0.2,127.0.0.1 load_balance_hosts=disable");
    let pooler = config.setting("server_login_retry", "1").start().await;
    assert_eq!(hosts_of(&pooler, 3).await, ["127.0.0.2"; 3]);
    assert_eq!(shown(&pooler, "SHOW DATABASES", "name", "listed").await, "disable");
    let mut client = client(&pooler).await;
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2");
    drop(other);
    eventually("the idle servers are gone", async || {
        let servers = pooler.admin("SHOW SERVERS").await;
        !servers.iter().any(|server| server["addr"] == "127.0.0.2")
    })
    .await;
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.1");
    assert_eq!(hosts_of(&pooler, 3).await, ["127.0.0.1"; 3]);
    // The first one comes back, and is not preferred.
    let _again = Postgres::start_beside(&one, "127.0.0.2").await;
    pooler.admin("RECONNECT listed").await;
    assert_eq!(hosts_of(&pooler, 3).await, ["127.0.0.1"; 3]);
}

#[tokio::test]
async fn when_no_host_of_the_list_answers_the_client_waits_and_is_served_when_one_comes_up() {
    let one = Arc::new(Postgres::start(&[]).await);
    let config = listed(&one, "127.0.0.2,127.0.0.3").setting("server_login_retry", "0.3");
    let pooler = config.start().await;
    let waiting = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "listed")));
    pooler.logs("127.0.0.3:").await;
    let _third = Postgres::start_beside(&one, "127.0.0.3").await;
    let mut client = waiting.await.unwrap();
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.3");
}
