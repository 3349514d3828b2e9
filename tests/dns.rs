//! Host names of servers: their addresses from a real DNS server, how long they count, and what becomes of
//! connections to an address that a name no longer has.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::collections::BTreeSet;
use std::sync::Arc;
use support::load::{Load, goes_on};
use support::nameserver::NameServer;
use support::pooler::{Config, is_ours};
use support::{Login, Pooler, Postgres, Raw, eventually};
use tokio::task::JoinSet;

const SERVERS_ADDRESS: &str = "SELECT host(inet_server_addr())";

/// A PostgreSQL with two addresses.
async fn two_addresses() -> Arc<Postgres> {
    Arc::new(Postgres::start(&["listen_addresses=127.0.0.1,127.0.0.2"]).await)
}

/// The database `named` at this host, whose name the server knows.
fn front_door(names: &NameServer, postgres: &Arc<Postgres>, host: &str, more: &str) -> Config {
    let line = format!("named = host={host} port={} dbname=app user=app", postgres.port);
    let config = Pooler::config().postgres(Arc::clone(postgres)).database_line(&line);
    config.setting("resolv_conf", &names.resolv_conf(more))
}

async fn named(pooler: &Pooler) -> Raw {
    Raw::login(&pooler.tcp(), &Login::new("app", "named")).await
}

/// The addresses that the servers of this pooler are connected to.
async fn addresses(pooler: &Pooler) -> BTreeSet<String> {
    let servers = pooler.admin("SHOW SERVERS").await;
    servers.iter().filter(|row| row["database"] == "named").map(|row| row["addr"].clone()).collect()
}

#[tokio::test]
async fn several_addresses_of_a_name_are_used_in_turn_and_a_dead_one_does_no_harm() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db 127.0.0.1 127.0.0.2 127.0.0.3");
    let config = front_door(&names, &postgres, "db.weir.test", "").pool_size(6);
    let pooler = config.setting("server_login_retry", "0").start().await;
    let mut clients = Vec::new();
    let mut found = BTreeSet::new();
    for _ in 0..6 {
        let mut client = named(&pooler).await;
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        found.insert(client.query(SERVERS_ADDRESS).await.value());
        clients.push(client);
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["127.0.0.1", "127.0.0.2"]);
    let hosts = pooler.admin("SHOW DNS_HOSTS").await;
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0]["hostname"], "db.weir.test");
    let mut shown: Vec<_> = hosts[0]["addrs"].split(',').collect();
    shown.sort_unstable();
    assert_eq!(shown, ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"]);
    assert!(hosts[0]["ttl"].parse::<u32>().unwrap() <= 15);
    assert_eq!((pooler.list("dns_names").await, pooler.list("dns_queries").await), (1, 0));
}

#[tokio::test]
async fn when_a_name_moves_its_servers_are_replaced_and_no_client_notices() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db 127.0.0.1");
    let line = format!("host=db.weir.test port={}", postgres.port);
    let config = Pooler::config().postgres(Arc::clone(&postgres)).pool_size(2).setting("dns_max_ttl", "1");
    let pooler = config.setting("resolv_conf", &names.resolv_conf("")).start().await;
    pooler.edit(&format!("host=127.0.0.1 port={}", postgres.port), &line);
    pooler.admin("RELOAD").await;
    let load = Load::start(&pooler, 5).await;
    goes_on(&pooler).await;
    names.set("db 127.0.0.2");
    let at = async || {
        let servers = pooler.admin("SHOW SERVERS").await;
        servers.iter().map(|row| row["addr"].clone()).collect::<BTreeSet<_>>()
    };
    eventually("all servers are at the new address", async || {
        at().await.into_iter().collect::<Vec<_>>() == ["127.0.0.2"]
    })
    .await;
    goes_on(&pooler).await;
    load.end().await;
    if is_ours() {
        pooler.logs("DNS: db.weir.test no longer has address=127.0.0.1").await;
    }
}

#[tokio::test]
async fn with_server_fast_close_a_session_ends_between_its_transactions_when_the_name_has_moved() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db 127.0.0.1");
    let config = front_door(&names, &postgres, "db.weir.test", "").pool_size(3).setting("dns_max_ttl", "1");
    let pooler = config.mode("session").setting("server_fast_close", "1").start().await;
    let (mut idle, mut busy) = (named(&pooler).await, named(&pooler).await);
    assert_eq!(idle.query(SERVERS_ADDRESS).await.value(), "127.0.0.1");
    busy.query("BEGIN").await.is("C Z(T)");
    names.set("db 127.0.0.2");
    eventually("a new session is at the new address", async || {
        let mut client = named(&pooler).await;
        client.query(SERVERS_ADDRESS).await.value() == "127.0.0.2"
    })
    .await;
    assert_eq!(idle.rest().await.farewell(), "FATAL 08P01 database configuration changed");
    busy.query("SELECT 2").await.is("T D(2) C Z(T)");
    busy.query("COMMIT").await.is("C Z(I)");
    assert_eq!(busy.rest().await.farewell(), "FATAL 08P01 database configuration changed");
}

#[tokio::test]
async fn search_domains_ndots_and_the_hosts_file_count_as_in_the_c_library() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db.sub 127.0.0.2");
    for (host, more) in [
        ("db", "search nowhere.test sub.weir.test"),
        ("db.sub", "search nowhere.test weir.test\noptions ndots:5"),
        ("db.sub.weir.test", "search nowhere.test\noptions ndots:5"),
        ("db.sub.weir.test.", ""),
    ] {
        let pooler = front_door(&names, &postgres, host, more).start().await;
        let mut client = named(&pooler).await;
        assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2", "{host} with {more}");
    }
    let pooler = front_door(&names, &postgres, "localhost", "").start().await;
    assert_eq!(named(&pooler).await.query(SERVERS_ADDRESS).await.value(), "127.0.0.1");
    assert_eq!(names.times_asked("localhost"), 0);
}

#[tokio::test]
async fn one_query_serves_all_who_wait_and_its_answer_counts_for_dns_max_ttl() {
    if !NameServer::is_possible() || !is_ours() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db 127.0.0.1");
    let config = front_door(&names, &postgres, "db.weir.test", "").pool_size(10);
    let pooler = config.setting("server_lifetime", "0").start().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = named(&pooler).await;
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        clients.push(client);
    }
    assert_eq!(names.times_asked("db"), 1);
}

#[tokio::test]
async fn a_name_that_comes_up_later_is_found_after_dns_nxdomain_ttl_and_the_client_has_waited() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("other 127.0.0.1");
    let config = front_door(&names, &postgres, "db.weir.test", "").setting("dns_nxdomain_ttl", "1");
    let pooler = config.start().await;
    let waiting = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "named")));
    pooler.logs("DNS lookup failed: db.weir.test: ").await;
    names.set("db 127.0.0.2");
    let mut client = waiting.await.unwrap();
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2");
}

#[tokio::test]
async fn while_no_name_server_answers_the_last_addresses_count() {
    if !NameServer::is_possible() || !is_ours() {
        return;
    }
    let postgres = two_addresses().await;
    let mut names = NameServer::start("db 127.0.0.2");
    let config = front_door(&names, &postgres, "db.weir.test", "").setting("dns_max_ttl", "0");
    let pooler = config.setting("server_lifetime", "0").start().await;
    let mut client = named(&pooler).await;
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2");
    names.stop();
    // Each query opens a server, and each opening asks.
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2");
    pooler.logs("DNS lookup failed: db.weir.test: ").await;
}

#[tokio::test]
async fn a_zone_with_a_new_serial_number_has_its_names_looked_up_before_their_time() {
    if !NameServer::is_possible() || !is_ours() {
        return;
    }
    let postgres = two_addresses().await;
    let mut names = NameServer::start("db 127.0.0.1");
    let config = front_door(&names, &postgres, "db.weir.test", "").setting("dns_max_ttl", "3600");
    let pooler = config.setting("dns_zone_check_period", "0.5").start().await;
    let mut client = named(&pooler).await;
    let serial = async || {
        let zones = pooler.admin("SHOW DNS_ZONES").await;
        zones.iter().find(|zone| zone["zonename"] == "weir.test").map(|zone| zone["serial"].clone())
    };
    eventually("the serial number is known", async || serial().await.as_deref() == Some("1")).await;
    assert_eq!(pooler.list("dns_zones").await, 1);
    names.set_with_serial("db 127.0.0.2", 2);
    eventually("the serial number is the new one", async || serial().await.as_deref() == Some("2")).await;
    eventually("no server is at the old address", async || !addresses(&pooler).await.contains("127.0.0.1"))
        .await;
    assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.2");
}

#[tokio::test]
async fn one_answer_that_there_is_no_such_name_is_said_once_and_the_next_host_serves() {
    if !NameServer::is_possible() {
        return;
    }
    let postgres = two_addresses().await;
    let names = NameServer::start("db 127.0.0.1");
    let hosts = "gone.weir.test,127.0.0.1 load_balance_hosts=disable";
    let config = front_door(&names, &postgres, hosts, "").pool_size(4).setting("server_login_retry", "60");
    let pooler = if is_ours() { config } else { config.setting("server_login_retry", "1") }.start().await;
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "named")));
    }
    for mut client in clients.join_all().await {
        assert_eq!(client.query(SERVERS_ADDRESS).await.value(), "127.0.0.1");
    }
    let log = pooler.log();
    assert_eq!(log.matches("closing because: server DNS lookup failed (age=").count(), 1, "{log}");
}
