//! What settings do that no scenario of its own is about. `tests/settings.rs` names for each setting the test
//! that shows its effect.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;
use support::descriptors::connected_sockets;
use support::message::{bind, execute, parse, query, run_of, sync};
use support::{Login, Pooler, Raw, eventually};

async fn pid(client: &mut Raw) -> String {
    client.query("SELECT pg_backend_pid()").await.value()
}

#[tokio::test]
async fn login_notify_message_is_a_notice_at_the_end_of_the_login() {
    let pooler = Pooler::config().setting("login_notify_message", "Maintenance at 20:00").start().await;
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(support::message::startup(&[("user", "app"), ("database", "app")])).await;
    let login = client.ready(1).await;
    let notice = login.of(b'N').next().expect("a notice");
    assert_eq!(
        (notice.field(b'S'), notice.field(b'M')),
        ("NOTICE".to_owned(), "Maintenance at 20:00".to_owned())
    );
    assert_eq!(login.messages.last().unwrap().tag, b'Z');
}

#[tokio::test]
async fn query_wait_notify_tells_a_client_once_that_it_waits() {
    let pooler = Pooler::config().setting("query_wait_notify", "0.2").start().await;
    let mut holder = pooler.client().await;
    holder.query("BEGIN").await.is("C Z(T)");
    let mut waiter = pooler.client().await;
    waiter.send(query("SELECT 'served'")).await;
    let notice = waiter.until(b'N').await;
    let message = "No server connection available in postgres backend, client being queued";
    assert_eq!(notice.messages[0].field(b'M'), message);
    assert_eq!(notice.messages[0].field(b'D'), "1 clients wait for a server connection.");
    assert!(!waiter.hears_within(Duration::from_millis(500)).await, "it is told once");
    holder.query("COMMIT").await.is("C Z(I)");
    waiter.ready(1).await.is("T D(served) C Z(I)");
    // The next wait is another one.
    holder.query("BEGIN").await.is("C Z(T)");
    waiter.send(query("SELECT 'again'")).await;
    assert_eq!(waiter.until(b'N').await.messages[0].field(b'M'), message);
}

#[tokio::test]
async fn server_fast_close_ends_a_session_between_its_transactions_after_reconnect() {
    let pooler =
        Pooler::config().mode("session").pool_size(2).setting("server_fast_close", "1").start().await;
    let (mut idle, mut busy) = (pooler.client().await, pooler.client().await);
    idle.query("SELECT 1").await.is("T D(1) C Z(I)");
    busy.query("BEGIN").await.is("C Z(T)");
    pooler.admin("RECONNECT").await;
    assert_eq!(idle.rest().await.farewell(), "FATAL 08P01 database configuration changed");
    busy.query("SELECT 2").await.is("T D(2) C Z(T)");
    busy.query("COMMIT").await.is("C Z(I)");
    assert_eq!(busy.rest().await.farewell(), "FATAL 08P01 database configuration changed");
}

#[tokio::test]
async fn without_server_fast_close_a_session_keeps_its_server_after_reconnect() {
    let pooler = Pooler::config().mode("session").start().await;
    let mut client = pooler.client().await;
    let before = pid(&mut client).await;
    pooler.admin("RECONNECT").await;
    assert!(!client.hears_within(Duration::from_millis(500)).await, "nothing is said");
    assert_eq!(pid(&mut client).await, before);
}

/// Has each client run a transaction while the others have theirs open. The servers of these.
async fn transactions_side_by_side(clients: &mut [Raw]) -> Vec<String> {
    // After the first call of a function its server is asked what that is, and is not idle until it has answered:
    // that is over when the same client has another answer.
    pid(&mut clients[0]).await;
    pid(&mut clients[0]).await;
    let mut servers = Vec::new();
    for client in &mut *clients {
        client.query("BEGIN").await.is("C Z(T)");
        servers.push(pid(client).await);
    }
    for client in clients {
        client.query("COMMIT").await.is("C Z(I)");
    }
    servers
}

#[tokio::test]
async fn a_client_that_comes_back_at_once_gets_the_server_that_it_had() {
    let pooler = Pooler::config().pool_size(3).setting("workers", "1").start().await;
    let mut clients = [pooler.client().await, pooler.client().await, pooler.client().await];
    // A machine that is busy with other tests may not come back at once.
    eventually("the servers that they had", async || {
        let had = transactions_side_by_side(&mut clients).await;
        let mut got = Vec::new();
        for client in &mut clients {
            got.push(pid(client).await);
        }
        got == had
    })
    .await;
}

#[tokio::test]
async fn server_round_robin_takes_the_server_that_has_been_idle_longest() {
    for (round_robin, expected) in [("1", 3), ("0", 1)] {
        let config = Pooler::config().pool_size(3).setting("workers", "1");
        let pooler = config.setting("server_round_robin", round_robin).start().await;
        let mut clients = [pooler.client().await, pooler.client().await, pooler.client().await];
        transactions_side_by_side(&mut clients).await;
        let mut pids = std::collections::BTreeSet::new();
        for _ in 0..6 {
            pids.insert(pid(&mut clients[0]).await);
        }
        assert_eq!(pids.len(), expected, "server_round_robin={round_robin}");
    }
}

#[tokio::test]
async fn scram_iterations_is_what_a_client_with_a_plain_secret_must_compute() {
    let config = Pooler::config().setting("auth_type", "scram-sha-256").setting("scram_iterations", "10000");
    let pooler = config.start().await;
    let login = Login::new("app", "app").password("app-secret");
    Raw::login(&pooler.tcp(), &login).await.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(support::message::startup(&[("user", "app"), ("database", "app")])).await;
    client.until(b'R').await;
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    let body = [b"SCRAM-SHA-256\0", &length[..], first].concat();
    let answer = client.ask_until(support::message::message(b'p', &body), b'R').await;
    let text = String::from_utf8_lossy(&answer.messages[0].body[4..]).into_owned();
    assert!(text.ends_with(",i=10000"), "{text}");
}

/// Prepared statements that the server of the pool has now.
async fn statements(client: &mut Raw) -> String {
    client.query("SELECT count(*) FROM pg_prepared_statements").await.value()
}

#[tokio::test]
async fn max_prepared_statements_limits_what_a_server_keeps_and_zero_keeps_out_of_it() {
    let pooler = Pooler::config().setting("max_prepared_statements", "2").start().await;
    let mut client = pooler.client().await;
    for name in ["a", "b", "c", "d"] {
        client.ask(run_of([parse(name, &format!("SELECT '{name}'")), sync()])).await.is("1 Z(I)");
    }
    for name in ["a", "b", "c", "d"] {
        let run = run_of([bind("", name, &[]), execute("", 0), sync()]);
        client.ask(run).await.is(&format!("2 D({name}) C Z(I)"));
    }
    assert_eq!(statements(&mut client).await, "2");
    drop(client);

    let pooler = Pooler::config().setting("max_prepared_statements", "0").start().await;
    let (mut client, mut other) = (pooler.client().await, pooler.client().await);
    client.ask(run_of([parse("a", "SELECT 1"), sync()])).await.is("1 Z(I)");
    // The name is the client's own, and another client of the server meets it.
    other.ask(run_of([parse("a", "SELECT 2"), sync()])).await.is("E(42P05) Z(I)");
}

#[tokio::test]
async fn suspend_waits_for_open_transactions_and_at_most_suspend_timeout() {
    let pooler = Pooler::config().pool_size(2).setting("suspend_timeout", "0.3").start().await;
    let (mut client, mut other) = (pooler.client().await, pooler.client().await);
    client.query("BEGIN").await.is("C Z(T)");
    let mut console = pooler.console().await;
    console.query("SUSPEND").await.is("C(SUSPEND) Z(I)");
    assert!(pooler.log().contains("suspend_timeout=0.3: transactions are still open"), "{}", pooler.log());
    let state = |rows: Vec<Vec<String>>| rows.iter().find(|row| row[1] == "yes").unwrap()[0].clone();
    assert_eq!(state(console.query("SHOW STATE").await.rows()), "suspended");
    other.send(query("SELECT 'served'")).await;
    client.query("COMMIT").await.is("C Z(I)");
    assert!(!other.hears_within(Duration::from_millis(100)).await, "it waits");
    // An administrator who leaves takes the SUSPEND along.
    drop(console);
    other.ready(1).await.is("T D(served) C Z(I)");
    let mut console = pooler.console().await;
    console.query("SUSPEND").await.is("C(SUSPEND) Z(I)");
    console.query("RESUME").await.is("C(RESUME) Z(I)");
    assert_eq!(state(console.query("SHOW STATE").await.rows()), "active");
}

#[tokio::test]
async fn tcp_settings_are_set_on_the_sockets_of_clients_and_servers() {
    if !support::process::is_root() {
        println!("skipped: only root may look at another process's sockets");
        return;
    }
    let settings = [
        ("tcp_keepalive", "1"),
        ("tcp_keepidle", "77"),
        ("tcp_keepintvl", "13"),
        ("tcp_keepcnt", "4"),
        ("tcp_user_timeout", "31000"),
    ];
    let config = settings.iter().fold(Pooler::config(), |config, (name, value)| config.setting(name, value));
    let pooler = config.start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let sockets = connected_sockets(pooler.pid());
    assert_eq!(sockets.len(), 2, "a client and a server");
    for socket in &sockets {
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(13));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(31)));
    }
    let pooler = Pooler::config().setting("tcp_keepalive", "0").start().await;
    let _client = pooler.client().await;
    let sockets = connected_sockets(pooler.pid());
    assert!(sockets.iter().all(|socket| !socket.keepalive().unwrap()));
}

#[tokio::test]
async fn the_unix_socket_has_its_mode_and_group() {
    let config = Pooler::config().setting("unix_socket_mode", "0750");
    let config = if support::process::is_root() { config } else { config.setting("unix_socket_group", "") };
    let pooler = config.start().await;
    let socket = pooler.directory().join(format!(".s.PGSQL.{}", pooler.port));
    let found = std::fs::metadata(&socket).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o750);
    // A group that the user of the tests is in: its own.
    let own = found.gid();
    let pooler = Pooler::config().setting("unix_socket_group", &own.to_string()).start().await;
    let socket = pooler.directory().join(format!(".s.PGSQL.{}", pooler.port));
    assert_eq!(std::fs::metadata(&socket).unwrap().gid(), own);
    let (code, log) = Pooler::config().setting("unix_socket_group", "no-such-group").refused().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("unix_socket_group: there is no group no-such-group"), "{log}");
}

#[tokio::test]
async fn conffile_is_the_file_that_the_next_reload_reads() {
    let pooler = Pooler::config().start().await;
    let other = pooler.directory().join("other.ini");
    let text = std::fs::read_to_string(pooler.directory().join("pooler.ini")).unwrap();
    std::fs::write(&other, text.replace("default_pool_size = 1", "default_pool_size = 9")).unwrap();
    pooler.admin(&format!("SET conffile = '{}'", other.display())).await;
    pooler.admin("RELOAD").await;
    let _client = pooler.client().await;
    let databases = pooler.admin("SHOW DATABASES").await;
    let size = |row: &&std::collections::HashMap<String, String>| row["name"] == "app";
    assert_eq!(databases.iter().find(size).unwrap()["pool_size"], "9");
}

#[tokio::test]
async fn verbose_logs_more() {
    for (verbose, expected) in [("0", false), ("2", true)] {
        let pooler = Pooler::config().setting("verbose", verbose).start().await;
        let mut client = pooler.client().await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        drop(client);
        pooler.logs("closing because: client unexpected eof").await;
        let log = pooler.log();
        let more = log.lines().any(|line| line.contains("] DEBUG ") || line.contains("] NOISE "));
        assert_eq!(more, expected, "verbose={verbose}:\n{log}");
    }
}

#[tokio::test]
async fn set_verbose_counts_at_once() {
    let pooler = Pooler::config().start().await;
    let logs_more = || pooler.log().lines().any(|line| line.contains("] DEBUG "));
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(!logs_more(), "{}", pooler.log());
    pooler.admin("SET verbose = 1").await;
    pooler.client().await;
    assert!(logs_more(), "{}", pooler.log());
}

#[tokio::test]
async fn query_wait_notify_zero_says_nothing() {
    let pooler = Pooler::config().setting("query_wait_notify", "0").start().await;
    let (mut holder, mut waiter) = (pooler.client().await, pooler.client().await);
    holder.query("BEGIN").await.is("C Z(T)");
    waiter.send(query("SELECT 'served'")).await;
    pooler.clients_wait(1).await;
    assert!(!waiter.hears_within(Duration::from_millis(300)).await, "0 is never");
    holder.query("COMMIT").await.is("C Z(I)");
    waiter.ready(1).await.is("T D(served) C Z(I)");
}
