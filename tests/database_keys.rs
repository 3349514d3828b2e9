//! Every key of `[databases]` and `[users]` has its effect, and of several words the right one counts: the
//! user's before the database's, and that before the global one. A row of a table is a case.
//!
//! `auth_user`, `auth_query` and `auth_dbname` are in `auth_query.rs`, `[peers]` in `peers.rs`, lists of hosts in
//! `hosts.rs`.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::message::query;
use support::pooler::{Config, is_ours};
use support::{Login, Pooler, Raw, eventually};

/// A pooler with these settings, keys of the database `app`, and keys of the user `app`.
fn config(settings: &str, database: &str, user: &str) -> Config {
    let mut config = Pooler::config().database_option(database);
    for setting in settings.split_whitespace() {
        let (name, value) = setting.split_once('=').unwrap();
        config = config.setting(name, value);
    }
    config.sections(&format!("[users]\napp = {user}\n"))
}

/// Ten clients begin a transaction: so many get a server.
async fn serve(cases: &[(&str, &str, &str, u32)]) {
    for (settings, database, user, servers) in cases {
        let pooler = config(settings, database, user).start().await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(pooler.client().await);
        }
        for client in &mut clients {
            client.send(query("BEGIN")).await;
        }
        eventually(&format!("{servers} servers with {settings} {database} {user}"), async || {
            pooler.pool("sv_active").await == *servers && pooler.pool("cl_waiting").await == 10 - servers
        })
        .await;
    }
}

#[tokio::test]
async fn pool_size_of_the_user_goes_before_the_databases_and_this_before_the_global_one() {
    serve(&[
        ("default_pool_size=2", "", "", 2),
        ("default_pool_size=2", "pool_size=3", "", 3),
        ("default_pool_size=2", "pool_size=3", "pool_size=4", 4),
        ("default_pool_size=2", "pool_size=0", "", 10),
    ])
    .await;
}

#[tokio::test]
async fn max_db_connections_of_the_database_and_max_user_connections_of_the_user_go_before_the_global_ones() {
    let settings = "default_pool_size=10 max_db_connections=3";
    serve(&[
        (settings, "", "", 3),
        (settings, "max_db_connections=4", "", 4),
        (settings, "max_db_connections=0", "", 10),
    ])
    .await;
    let settings = "default_pool_size=10 max_user_connections=3";
    serve(&[(settings, "", "", 3), (settings, "", "max_user_connections=5", 5)]).await;
}

#[tokio::test]
async fn reserve_pool_size_of_the_user_goes_before_the_databases_and_this_before_the_global_one() {
    let settings = "default_pool_size=1 reserve_pool_size=1 reserve_pool_timeout=0.1";
    serve(&[
        (settings, "", "", 2),
        (settings, "reserve_pool_size=2", "", 3),
        (settings, "reserve_pool=2", "", 3),
        (settings, "reserve_pool_size=2", "reserve_pool_size=3", 4),
    ])
    .await;
}

#[tokio::test]
async fn min_pool_size_of_the_database_goes_before_the_global_one() {
    for (settings, database, servers) in [
        ("default_pool_size=5 min_pool_size=2", "", 2),
        ("default_pool_size=5 min_pool_size=2", "min_pool_size=3", 3),
    ] {
        let pooler = config(settings, database, "").start().await;
        let _client = pooler.client().await;
        eventually(&format!("{servers} servers with {settings} {database}"), async || {
            pooler.pool("sv_idle").await == servers
        })
        .await;
    }
}

/// What a client does until a limit of time ends it.
enum Doing {
    Waiting,
    Querying,
    Idle,
    IdleInTransaction,
}

#[tokio::test]
async fn times_of_the_user_go_before_the_databases_and_these_before_the_global_ones() {
    for (settings, database, user, doing, farewell) in [
        ("query_wait_timeout=60", "query_wait_timeout=0.3", "", Doing::Waiting, "query_wait_timeout"),
        (
            "query_wait_timeout=60",
            "query_wait_timeout=60",
            "query_wait_timeout=0.3",
            Doing::Waiting,
            "query_wait_timeout",
        ),
        ("query_timeout=60", "", "query_timeout=0.3", Doing::Querying, "query timeout"),
        ("transaction_timeout=60", "", "transaction_timeout=0.3", Doing::Querying, "transaction timeout"),
        (
            "idle_transaction_timeout=60",
            "",
            "idle_transaction_timeout=0.3",
            Doing::IdleInTransaction,
            "idle transaction timeout",
        ),
        ("client_idle_timeout=60", "", "client_idle_timeout=0.3", Doing::Idle, "client_idle_timeout"),
    ] {
        if !is_ours() && (settings.starts_with("query_wait") || settings.starts_with("transaction")) {
            continue; // New in 1.25, or after it.
        }
        let pooler = config(settings, database, user).start().await;
        let mut client = pooler.client().await;
        let mut other = Raw::login(&pooler.tcp(), &Login::new("app", "app")).await;
        match doing {
            Doing::Waiting => {
                // Of one user there is one server, and another client has it.
                other.query("BEGIN").await.is("C(BEGIN) Z(T)");
                client.send(query("SELECT 1")).await;
            }
            Doing::Querying => client.send(query("BEGIN; SELECT pg_sleep(60)")).await,
            Doing::Idle => client.query("SELECT 1").await.succeeds("SELECT 1"),
            Doing::IdleInTransaction => client.query("BEGIN").await.succeeds("BEGIN"),
        }
        let said = client.rest().await.farewell();
        assert_eq!(said, format!("FATAL 08P01 {farewell}"), "{settings} {database} {user}");
    }
}

#[tokio::test]
async fn a_time_of_zero_for_a_user_lifts_the_global_limit() {
    let pooler = config("query_timeout=0.3", "", "query_timeout=0").start().await;
    let mut client = pooler.client().await;
    client.query("SELECT pg_sleep(0.8)").await.is("T D() C Z(I)");
    let mut other = Raw::login(&pooler.tcp(), &Login::new("scram_user", "app").password("x")).await;
    other.send(query("SELECT pg_sleep(60)")).await;
    assert_eq!(other.rest().await.farewell(), "FATAL 08P01 query timeout");
}

#[tokio::test]
async fn server_lifetime_of_the_database_goes_before_the_global_one() {
    let pooler = config("server_lifetime=3600", "server_lifetime=0", "").start().await;
    let mut client = pooler.client().await;
    let first = client.query("SELECT pg_backend_pid()").await.value();
    assert_ne!(client.query("SELECT pg_backend_pid()").await.value(), first);
}

#[tokio::test]
async fn client_limits_of_the_user_and_the_database_go_before_the_global_ones() {
    for (settings, database, user, clients, refused_by) in [
        ("max_user_client_connections=1", "", "", 1, "max_user_client_connections"),
        (
            "max_user_client_connections=1",
            "",
            "max_user_client_connections=2",
            2,
            "max_user_client_connections",
        ),
        ("max_db_client_connections=1", "", "", 1, "max_db_client_connections"),
        ("max_db_client_connections=1", "max_db_client_connections=2", "", 2, "max_db_client_connections"),
    ] {
        let pooler = config(settings, database, user).start().await;
        let mut held = Vec::new();
        for _ in 0..clients {
            held.push(pooler.client().await);
        }
        let refusal = pooler.refuses(&Login::new("app", "app")).await;
        assert!(refusal.ends_with(&format!("client connections exceeded ({refused_by})")), "{refusal}");
    }
}

#[tokio::test]
async fn startup_keys_of_the_database_reach_its_servers() {
    let keys = "client_encoding=LATIN1 datestyle='SQL, DMY' timezone=Europe/Riga application_name=orders";
    let pooler = Pooler::config().database_option(keys).start().await;
    let mut client = pooler.client().await;
    let found = "SELECT concat_ws('|', current_setting('client_encoding'), current_setting('datestyle'), \
         current_setting('timezone'), current_setting('application_name'))";
    assert_eq!(client.query(found).await.value(), "LATIN1|SQL, DMY|Europe/Riga|orders");
    // The client is told of them too, and its own word goes before the database's.
    assert_eq!(client.parameters["TimeZone"], "Europe/Riga");
    let login = Login::new("app", "app").option("timezone", "UTC");
    let mut other = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(other.query("SHOW timezone").await.value(), "UTC");
}

#[tokio::test]
async fn a_forced_user_serves_all_clients_from_one_pool_under_its_own_keys() {
    let line = "forced = {server} dbname={database} user=scram_user password=scram-secret";
    let users =
        "[users]\nscram_user = pool_size=3 pool_mode=session\napp = pool_size=7 pool_mode=statement\n";
    let config = Pooler::config().database_line(line).sections(users);
    let pooler = config.start().await;
    for user in ["app", "md5_user"] {
        let mut client = Raw::login(&pooler.tcp(), &Login::new(user, "forced")).await;
        let names = client.query("SELECT session_user || ' ' || current_database()").await.value();
        assert_eq!(names, format!("scram_user {}", pooler.database));
        let pools = pooler.admin("SHOW POOLS").await;
        let ours: Vec<_> = pools.iter().filter(|pool| pool["database"] == "forced").collect();
        assert_eq!(ours.len(), 1);
        assert_eq!((&*ours[0]["user"], &*ours[0]["pool_mode"]), ("scram_user", "session"));
    }
    let databases = pooler.admin("SHOW DATABASES").await;
    let forced = databases.iter().find(|row| row["name"] == "forced").unwrap();
    assert_eq!((&*forced["force_user"], &*forced["database"]), ("scram_user", &*pooler.database));
}

#[tokio::test]
async fn clients_of_before_a_reload_with_another_forced_user_count_beside_those_of_after_it() {
    let line = "forced = {server} dbname={database} user=scram_user password=scram-secret";
    let pooler = Pooler::config().database_line(line).start().await;
    let mut before = Raw::login(&pooler.tcp(), &Login::new("app", "forced")).await;
    before.query("SELECT session_user").await.is("T D(scram_user) C Z(I)");
    pooler.edit("user=scram_user password=scram-secret", "user=md5_user password=md5-secret");
    pooler.admin("RELOAD").await;
    let mut after = Raw::login(&pooler.tcp(), &Login::new("app", "forced")).await;
    after.query("SELECT session_user").await.is("T D(md5_user) C Z(I)");
    let pools = pooler.admin("SHOW POOLS").await;
    let of = |user: &str| pools.iter().find(|pool| pool["database"] == "forced" && pool["user"] == user);
    for user in ["scram_user", "md5_user"] {
        let clients = of(user).map(|pool| &*pool["cl_active"]);
        assert_eq!(clients, Some("1"), "of {user}, in {pools:?}");
    }
    let queries = async || {
        let stats = pooler.admin("SHOW STATS").await;
        stats.iter().find(|row| row["database"] == "forced").unwrap()["total_query_count"].clone()
    };
    assert_eq!(queries().await, "2");
    // What is set from now on holds for both.
    pooler.admin("SET pool_mode = statement").await;
    for client in [&mut before, &mut after] {
        client.send(query("BEGIN")).await;
        client.rest().await.is("E(08P01) EOF");
    }
    assert_eq!(queries().await, "4");
}

#[tokio::test]
async fn a_wrong_forced_password_is_the_servers_to_refuse() {
    let line = "forced = {server} dbname={database} user=scram_user password=wrong";
    let pooler = Pooler::config().database_line(line).start().await;
    let refusal = pooler.refuses(&Login::new("app", "forced")).await;
    assert!(refusal.contains("28P01"), "{refusal}");
}
