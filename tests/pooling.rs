//! Pooling: who shares a server connection with whom, how many there are, and how long each lasts.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::message::{extended, query, run_of, sync};
use support::pooler::is_ours;
use support::{Gate, Login, Pooler, Raw, eventually};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename <> 'postgres'";
const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename <> 'postgres'";

async fn pid(client: &mut Raw) -> String {
    client.query("SELECT pg_backend_pid()").await.value()
}

async fn login(pooler: &Pooler, user: &str, database: &str) -> Raw {
    Raw::login(&pooler.tcp(), &Login::new(user, database)).await
}

async fn has_servers(pooler: &Pooler, count: i64) {
    eventually(&format!("{count} server connections"), async || pooler.number(SERVERS).await == count).await;
}

// ---- modes ----

#[tokio::test]
async fn in_transaction_mode_a_server_changes_hands_at_the_end_of_each_transaction() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let server = pid(&mut a).await;
    assert_eq!(pid(&mut b).await, server);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    b.send(query("SELECT pg_backend_pid()")).await;
    pooler.clients_wait(1).await;
    a.query("SELECT broken").await.is("E(42703) Z(E)");
    assert_eq!(pooler.pool("cl_waiting").await, 1);
    a.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
    assert_eq!(b.ready(1).await.value(), server);
}

#[tokio::test]
async fn in_session_mode_a_server_is_its_clients_own_until_it_leaves_and_is_then_reset() {
    let pooler = Pooler::config().mode("session").start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let server = pid(&mut a).await;
    a.query("SET search_path = nowhere").await.is("C(SET) Z(I)");
    b.send(query("SELECT pg_backend_pid()")).await;
    pooler.clients_wait(1).await;
    a.query("SHOW search_path").await.is("T D(nowhere) C Z(I)");
    drop(a);
    assert_eq!(b.ready(1).await.value(), server);
    b.query("SHOW search_path").await.is("T D(\"$user\", public) C Z(I)");
}

#[tokio::test]
async fn in_statement_mode_a_transaction_block_ends_the_client_and_its_server() {
    let pooler = Pooler::config().mode("statement").start().await;
    let mut a = pooler.client().await;
    let server = pid(&mut a).await;
    a.send(query("BEGIN")).await;
    let reply = a.rest().await;
    let expected = "FATAL 08P01 transaction blocks not allowed in statement pooling mode";
    assert_eq!(reply.farewell(), expected);
    let mut b = pooler.client().await;
    assert_ne!(pid(&mut b).await, server);
    b.query("SELECT 1; SELECT 2").await.is("T D(1) C T D(2) C Z(I)");
}

#[tokio::test]
async fn mode_and_size_of_a_user_go_before_the_databases_and_these_before_the_global_ones() {
    let pooler = Pooler::config()
        .mode("statement")
        .database_option("pool_mode=transaction pool_size=3")
        .sections("[users]\nscram_user = pool_mode=session pool_size=2\n")
        .start()
        .await;
    let _clients = (pooler.client().await, login(&pooler, "scram_user", "app").await);
    let pools = pooler.admin("SHOW POOLS").await;
    let mode = |user: &str| {
        let pool = pools.iter().find(|pool| pool["user"] == user && pool["database"] == "app").unwrap();
        pool["pool_mode"].clone()
    };
    assert_eq!((mode("app"), mode("scram_user")), ("transaction".to_owned(), "session".to_owned()));
    let mut busy = Vec::new();
    let mut gate = Gate::close(&pooler).await;
    for (user, size) in [("app", 3), ("scram_user", 2)] {
        for _ in 0..size + 1 {
            let mut client = login(&pooler, user, "app").await;
            client.send(query(&gate.sql("done"))).await;
            busy.push(client);
        }
    }
    gate.is_reached_by(5).await;
    eventually("one of each user waits", async || {
        let pools = pooler.admin("SHOW POOLS").await;
        pools.iter().filter(|pool| pool["cl_waiting"] == "1").count() == 2
    })
    .await;
    gate.open().await;
}

// ---- sizes ----

#[tokio::test]
async fn the_pool_never_grows_beyond_its_size_and_shares_its_servers() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut gate = Gate::close(&pooler).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = pooler.client().await;
        client.send(query(&gate.sql("done"))).await;
        clients.push(client);
    }
    gate.is_reached_by(2).await;
    pooler.clients_wait(3).await;
    assert_eq!((pooler.pool("sv_active").await, pooler.number(SERVERS).await), (2, 2));
    gate.open().await;
    for client in &mut clients {
        client.ready(1).await.is("T D(done) C Z(I)");
    }
    assert_eq!(pooler.number(SERVERS).await, 2);
}

#[tokio::test]
async fn min_pool_size_servers_are_kept_and_made_up_for() {
    let config = Pooler::config().pool_size(5).setting("min_pool_size", "3");
    let pooler = config.start().await;
    let _client = pooler.client().await;
    has_servers(&pooler, 3).await;
    pooler.sql(KILL).await;
    has_servers(&pooler, 3).await;
}

#[tokio::test]
async fn a_paused_pool_is_not_filled_up() {
    let pooler = Pooler::config().pool_size(3).setting("min_pool_size", "2").start().await;
    let _client = pooler.client().await;
    has_servers(&pooler, 2).await;
    pooler.admin("PAUSE").await;
    has_servers(&pooler, 0).await;
    let connects = || pooler.log().matches("new connection to server").count();
    let (before, began) = (connects(), Instant::now());
    eventually("some ticks", async || began.elapsed() > Duration::from_millis(400)).await;
    assert_eq!(connects(), before);
    pooler.admin("RESUME").await;
    has_servers(&pooler, 2).await;
}

#[tokio::test]
async fn the_reserve_pool_opens_only_for_those_who_have_waited_long_enough() {
    let config = Pooler::config().setting("reserve_pool_size", "1").setting("reserve_pool_timeout", "0.5");
    let pooler = config.start().await;
    let mut gate = Gate::close(&pooler).await;
    let began = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = pooler.client().await;
        client.send(query(&gate.sql("done"))).await;
        clients.push(client);
    }
    gate.is_reached_by(2).await;
    assert!(began.elapsed() >= Duration::from_millis(500), "too early: {:?}", began.elapsed());
    assert_eq!((pooler.pool("cl_waiting").await, pooler.number(SERVERS).await), (1, 2));
    gate.open().await;
}

#[tokio::test]
async fn max_db_connections_holds_across_users_and_an_idle_server_makes_room_for_a_waiter() {
    let pooler = Pooler::config().pool_size(5).setting("max_db_connections", "2").start().await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(query(&gate.sql("a"))).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(2).await;
    let other = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("scram_user", "app")));
    eventually("the other user's login waits", async || {
        let pools = pooler.admin("SHOW POOLS").await;
        pools.iter().any(|pool| pool["user"] == "scram_user")
    })
    .await;
    assert_eq!(pooler.number(SERVERS).await, 2);
    gate.open().await;
    // Both servers of `app` are idle now: one is closed for the other user.
    let mut other = other.await.unwrap();
    assert_eq!(other.query("SELECT user").await.value(), "scram_user");
    assert!(pooler.number(SERVERS).await <= 2);
}

#[tokio::test]
async fn min_pool_size_takes_no_room_from_a_client_that_waits_for_it() {
    let config = Pooler::config().pool_size(5).setting("min_pool_size", "5");
    let pooler = config.setting("max_db_connections", "2").setting("query_wait_timeout", "5").start().await;
    let _first = pooler.client().await;
    has_servers(&pooler, 2).await;
    let mut other = login(&pooler, "scram_user", "app").await;
    assert_eq!(other.query("SELECT user").await.value(), "scram_user");
}

#[tokio::test]
async fn max_user_connections_holds_across_databases_and_an_idle_server_makes_room_for_a_waiter() {
    let pooler = Pooler::config()
        .pool_size(5)
        .setting("max_user_connections", "2")
        .database_line("other = {server} dbname={database}")
        .start()
        .await;
    let mut gate = Gate::close(&pooler).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.send(query(&gate.sql("a"))).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(2).await;
    let other = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "other")));
    eventually("the other database's login waits", async || {
        let pools = pooler.admin("SHOW POOLS").await;
        pools.iter().any(|pool| pool["database"] == "other")
    })
    .await;
    assert_eq!(pooler.number(SERVERS).await, 2);
    gate.open().await;
    let mut other = other.await.unwrap();
    other.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(pooler.number(SERVERS).await <= 2);
}

#[tokio::test]
async fn waiting_is_first_come_first_served_across_workers() {
    let pooler = Pooler::config().environment("PGWEIR_WORKERS", "2").start().await;
    pooler
        .sql("CREATE TABLE turns (turn serial, client int); GRANT ALL ON turns, turns_turn_seq TO app")
        .await;
    let mut gate = Gate::close(&pooler).await;
    let mut first = pooler.client().await;
    first.send(query(&gate.sql("first"))).await;
    gate.is_reached_by(1).await;
    let mut clients = Vec::new();
    for number in 0..12_u32 {
        let mut client = pooler.client().await;
        let sql = format!("INSERT INTO turns (client) VALUES ({number})");
        // Simple and extended requests stand in the same queue.
        let request = if number % 2 == 0 { query(&sql) } else { run_of([extended(&sql, &[]), sync()]) };
        client.send(request).await;
        pooler.clients_wait(number + 1).await;
        clients.push(client);
        // Who comes within a millisecond of another comes at the same time.
        let now = Instant::now();
        eventually("the next moment", async || now.elapsed() > Duration::from_millis(3)).await;
    }
    gate.open().await;
    for client in &mut clients {
        client.ready(1).await.succeeds("INSERT");
    }
    let turns = pooler.sql("SELECT client FROM turns ORDER BY turn").await;
    let expected: Vec<_> = (0..12).map(|number| vec![number.to_string()]).collect();
    assert_eq!(turns, expected);
}

// ---- the life of a server connection ----

#[tokio::test]
async fn a_server_older_than_server_lifetime_is_replaced_when_nobody_uses_it() {
    let pooler = Pooler::config().setting("server_lifetime", "0.5").start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let began = Instant::now();
    let server = pid(&mut client).await;
    eventually("the lifetime is over", async || began.elapsed() > Duration::from_millis(700)).await;
    assert_eq!(pid(&mut client).await, server, "not inside a transaction");
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert_ne!(pid(&mut client).await, server);
    assert!(pooler.log().contains("closing because: server lifetime over"));
}

#[tokio::test]
async fn a_server_lifetime_of_zero_uses_each_server_once() {
    let pooler = Pooler::config().setting("server_lifetime", "0").start().await;
    let mut client = pooler.client().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(pid(&mut client).await);
    }
    servers.dedup();
    assert_eq!(servers.len(), 3);
}

#[tokio::test]
async fn a_server_idle_for_server_idle_timeout_is_closed() {
    let pooler = Pooler::config().setting("server_idle_timeout", "0.3").start().await;
    let mut client = pooler.client().await;
    let server = pid(&mut client).await;
    has_servers(&pooler, 0).await;
    pooler.logs("closing because: server idle timeout").await;
    assert_ne!(pid(&mut client).await, server);
}

#[tokio::test]
async fn an_idle_server_that_died_is_found_before_a_query_is_spent_on_it() {
    let pooler = Pooler::config().pool_size(3).start().await;
    let mut client = pooler.client().await;
    for _ in 0..5 {
        let server = pid(&mut client).await;
        pooler.sql(KILL).await;
        has_servers(&pooler, 0).await;
        assert_ne!(pid(&mut client).await, server);
    }
}

#[tokio::test]
async fn server_check_query_runs_before_a_server_is_used_that_was_idle_for_server_check_delay() {
    let config = Pooler::config().setting("server_check_query", "INSERT INTO checks VALUES (1)");
    let pooler = config.setting("server_check_delay", "0").start().await;
    pooler.sql("CREATE TABLE checks (n int); GRANT ALL ON checks TO app").await;
    let mut client = pooler.client().await;
    let count = "SELECT count(*) FROM checks";
    let before: u32 = client.query(count).await.value().parse().unwrap();
    let after: u32 = client.query(count).await.value().parse().unwrap();
    assert_eq!(after, before + 1);
    if !is_ours() {
        return; // For PgBouncer an error is as good an answer as any.
    }
    // A server that fails its check is replaced, and the client does not see it.
    let server = pid(&mut client).await;
    pooler.sql("DROP TABLE checks").await;
    client.send(query("SELECT pg_backend_pid()")).await;
    pooler.logs("failed").await;
    pooler.sql("CREATE TABLE checks (n int); GRANT ALL ON checks TO app").await;
    assert_ne!(client.ready(1).await.value(), server);
}

#[tokio::test]
async fn no_check_runs_within_server_check_delay() {
    let pooler = Pooler::config().setting("server_check_query", "SELECT no_such_function()").start().await;
    let mut client = pooler.client().await;
    let server = pid(&mut client).await;
    assert_eq!(pid(&mut client).await, server);
}

#[tokio::test]
async fn server_reset_query_runs_when_a_session_ends_and_with_always_after_each_transaction() {
    for (mode, always, clients, transactions, expected) in
        [("session", "0", 3, 2, 3), ("transaction", "0", 3, 2, 0), ("transaction", "1", 3, 2, 6)]
    {
        let pooler = Pooler::config()
            .mode(mode)
            .setting("server_reset_query", "INSERT INTO resets VALUES (1)")
            .setting("server_reset_query_always", always)
            .start()
            .await;
        pooler.sql("CREATE TABLE resets (n int); GRANT ALL ON resets TO app").await;
        for _ in 0..clients {
            let mut client = pooler.client().await;
            for _ in 0..transactions {
                client.query("SELECT 1").await.is("T D(1) C Z(I)");
            }
        }
        eventually(&format!("{mode} {always}: {expected} resets"), async || {
            pooler.number("SELECT count(*) FROM resets").await == expected
        })
        .await;
        eventually("the server is idle", async || pooler.pool("sv_idle").await == 1).await;
        assert_eq!(pooler.number("SELECT count(*) FROM resets").await, expected, "{mode} {always}");
    }
}

#[tokio::test]
async fn a_server_whose_reset_fails_is_not_used_again() {
    if !is_ours() {
        return; // PgBouncer goes on with it.
    }
    let config = Pooler::config().mode("session").setting("server_reset_query", "SELECT broken");
    let pooler = config.start().await;
    let server = pid(&mut pooler.client().await).await;
    assert_ne!(pid(&mut pooler.client().await).await, server);
}

#[tokio::test]
async fn connect_query_runs_once_on_each_new_server() {
    let pooler = Pooler::config()
        .database_line("other = {server} dbname={database} connect_query='SET search_path = elsewhere'")
        .start()
        .await;
    for _ in 0..2 {
        let mut client = login(&pooler, "app", "other").await;
        client.query("SHOW search_path").await.is("T D(elsewhere) C Z(I)");
        pooler.sql(KILL).await;
        has_servers(&pooler, 0).await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_after_server_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let config = Pooler::config().server(address).setting("server_connect_timeout", "0.3");
    let pooler = config.setting("server_login_retry", "0.1").start().await;
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(support::message::startup(&[("user", "app"), ("database", "app")])).await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(listener.accept().await.unwrap());
    }
    assert!(pooler.log().contains("closing because: connect timeout"), "{}", pooler.log());
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_given_up_after_server_connect_timeout() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // Its queue holds one connection that nobody accepts: packets of the others are lost.
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _queued = TcpStream::connect(address).await.unwrap();
    let config = Pooler::config().server(address).setting("server_connect_timeout", "0.3");
    let pooler = config.setting("server_login_retry", "0.1").start().await;
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(support::message::startup(&[("user", "app"), ("database", "app")])).await;
    pooler.logs("closing because: connect failed").await;
}

/// A pool whose only server has gone and whose next login PostgreSQL refuses, and two clients of it.
async fn refused_by_the_server() -> (Pooler, [Raw; 2], String) {
    let config = Pooler::config().database_option("user=scram_user password=scram-secret");
    let pooler = config.setting("server_login_retry", "60").start().await;
    let (mut a, b) = (pooler.client().await, pooler.client().await);
    a.query("SELECT 1").await.is("T D(1) C Z(I)");
    let database = pooler.database.clone();
    let of_database = format!("FROM pg_stat_activity WHERE datname = '{database}'");
    for sql in [
        format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false"),
        format!("SELECT pg_terminate_backend(pid) {of_database}"),
    ] {
        pooler.postgres.sql("postgres", &sql).await;
    }
    let left = format!("SELECT count(*) {of_database}");
    eventually("its servers are gone", async || pooler.postgres.number("postgres", &left).await == 0).await;
    let error = format!("database \"{database}\" is not currently accepting connections");
    (pooler, [a, b], error)
}

#[tokio::test]
async fn a_query_is_told_why_no_server_can_be_opened_for_it() {
    let (_pooler, [mut a, _b], error) = refused_by_the_server().await;
    a.send(query("SELECT 1")).await;
    let told = a.rest().await.farewell();
    assert!(told.ends_with(&error), "{told}");
}

#[tokio::test]
async fn a_query_while_logins_to_the_server_fail_is_refused_with_the_cached_error() {
    let (_pooler, [mut a, mut b], error) = refused_by_the_server().await;
    for client in [&mut a, &mut b] {
        client.send(query("SELECT 1")).await;
        let told = client.rest().await.farewell();
        assert!(told.contains(&error), "{told}");
    }
}

#[tokio::test]
async fn min_pool_size_of_a_database_with_a_forced_user_needs_no_client() {
    let config = Pooler::config().pool_size(5).database_option("user=app min_pool_size=2");
    let pooler = config.start().await;
    has_servers(&pooler, 2).await;
}

// ---- limits of time ----

#[tokio::test]
async fn query_wait_timeout_tells_who_waited_for_what_and_what_helps() {
    let pooler = Pooler::config().setting("query_wait_timeout", "0.4").start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    b.send(query("SELECT 1")).await;
    let reply = b.rest().await;
    assert_eq!(reply.farewell(), "FATAL 08P01 query_wait_timeout");
    if is_ours() {
        let error = &reply.messages[0];
        assert_eq!(
            error.field(b'D'),
            "No server connection became free within 0.4 s. Pool \"app\" for user \"app\" has 1 of 1 in use; \
             1 clients are waiting."
        );
        let hint = "Raise default_pool_size, shorten transactions, or raise query_wait_timeout.";
        assert_eq!(error.field(b'H'), hint);
    }
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn limits_of_time_end_the_client_with_pgbouncers_words_and_free_the_server() {
    let sleep = "SELECT pg_sleep(60)";
    for (setting, first, then, message) in [
        ("query_timeout", None, Some(sleep), "query timeout"),
        ("transaction_timeout", Some("BEGIN"), Some(sleep), "transaction timeout"),
        ("transaction_timeout", Some("BEGIN"), None, "transaction timeout"),
        ("idle_transaction_timeout", Some("BEGIN"), None, "idle transaction timeout"),
        ("client_idle_timeout", Some("SELECT 1"), None, "client_idle_timeout"),
    ] {
        if setting == "transaction_timeout" && !is_ours() {
            continue; // New in 1.25.
        }
        let pooler = Pooler::config().setting(setting, "0.3").start().await;
        let mut client = pooler.client().await;
        if let Some(sql) = first {
            client.query(sql).await.succeeds(sql);
        }
        if let Some(sql) = then {
            client.send(query(sql)).await;
        }
        let reply = client.rest().await;
        assert_eq!(reply.farewell(), format!("FATAL 08P01 {message}"), "{setting}");
        // PostgreSQL notices in its own time that the pooler has hung up.
        let hanging = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
        eventually("the server is closed", async || pooler.number(hanging).await == 0).await;
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn query_timeout_counts_the_wait_for_a_server_too() {
    let pooler = Pooler::config().setting("query_timeout", "0.4").start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    b.send(query("SELECT 1")).await;
    assert_eq!(b.rest().await.farewell(), "FATAL 08P01 query_timeout");
}

#[tokio::test]
async fn limits_of_time_leave_alone_what_is_within_them() {
    let pooler = Pooler::config()
        .setting("query_timeout", "0.5")
        .setting("idle_transaction_timeout", "0.5")
        .setting("client_idle_timeout", "0.5")
        .start()
        .await;
    let mut client = pooler.client().await;
    let began = Instant::now();
    // Each query is short; the transaction and the session are longer than each limit.
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    while began.elapsed() < Duration::from_millis(1200) {
        client.query("SELECT pg_sleep(0.05)").await.is("T D() C Z(T)");
    }
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    while began.elapsed() < Duration::from_millis(2400) {
        client.query("SELECT pg_sleep(0.05)").await.is("T D() C Z(I)");
    }
}

#[tokio::test]
async fn in_session_mode_a_client_that_idles_between_transactions_is_not_idle_in_one() {
    let mut config = Pooler::config().mode("session").setting("idle_transaction_timeout", "0.2");
    if is_ours() {
        // New in 1.25.
        config = config.setting("transaction_timeout", "0.2");
    }
    let pooler = config.start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(!client.hears_within(Duration::from_millis(700)).await, "nothing is said to it");
    client.query("SELECT 2").await.is("T D(2) C Z(I)");
}

#[tokio::test]
async fn time_limits_of_the_users_section_go_before_the_global_ones() {
    let pooler = Pooler::config()
        .setting("query_timeout", "60")
        .sections("[users]\napp = query_timeout=1\n")
        .start()
        .await;
    let mut client = pooler.client().await;
    client.send(query("SELECT pg_sleep(60)")).await;
    assert_eq!(client.rest().await.farewell(), "FATAL 08P01 query timeout");
}
