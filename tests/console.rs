//! The console's commands: who may give them, and that they do what they say while clients work.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::time::Duration;
use support::load::{Load, goes_on};
use support::message::{cancel_request, parse, query, run_of, sync};
use support::pooler::is_ours;
use support::{Gate, Login, Pooler, Raw, eventually};

/// The error of a command that leaves the console as it was.
async fn error(console: &mut Raw, command: &str) -> String {
    let reply = console.query(command).await;
    reply.is("E Z(I)");
    let error = &reply.messages[0];
    format!("{} {}", error.field(b'C'), error.field(b'M'))
}

async fn done(console: &mut Raw, command: &str) {
    let tag = command.split(' ').next().unwrap();
    console.query(command).await.is(&format!("C({tag}) Z(I)"));
}

#[tokio::test]
async fn what_is_no_command_is_named_and_leaves_the_console_open() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    for command in ["", ";", "SHOW POOLS; SHOW POOLS", "SELECT 1 + 1", "DROP TABLE x", "PAUSE a b"] {
        let expected = format!("08P01 invalid command '{command}', use SHOW HELP;");
        assert_eq!(error(&mut console, command).await, expected);
    }
    console.query("  show\tversion ; ").await.is("T D C(SHOW) Z(I)");
    console.send(run_of([parse("", "SHOW POOLS"), sync()])).await;
    let reply = console.rest().await;
    assert!(reply.closed, "{reply}");
    let message = reply.messages[0].field(b'M');
    assert_eq!(message, "extended query protocol not supported by admin console");
}

#[tokio::test]
async fn the_greeting_of_the_console_and_its_session_parameters_are_fixed() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    let version = &console.parameters["server_version"];
    assert!(version.ends_with("/bouncer"), "{version}");
    assert_eq!(console.parameters["client_encoding"], "UTF8");
    console.query("SHOW client_encoding").await.is("T D(UTF-8) C(SHOW) Z(I)");
    console.query("SHOW timezone").await.is("T D(GMT) C(SHOW) Z(I)");
    let reply = console.query("SET client_encoding = 'UTF8'").await;
    reply.is("N C(SET) Z(I)");
    assert_eq!(reply.messages[0].field(b'M'), "SET ignored");
}

#[tokio::test]
async fn a11_admin_users_command_stats_users_look_and_others_stay_outside() {
    let pooler = Pooler::config().setting("stats_users", "scram_user").start().await;
    let login = |user: &str| Login::new(user, "pgbouncer");
    let mut stats = Raw::login(&pooler.tcp(), &login("scram_user")).await;
    stats.query("SHOW POOLS").await.is("T D* C(SHOW) Z(I)");
    for command in
        ["PAUSE", "RESUME", "RELOAD", "RECONNECT", "KILL app", "DISABLE app", "SET verbose = 1", "SHUTDOWN"]
    {
        assert_eq!(error(&mut stats, command).await, "08P01 admin access needed", "{command}");
    }
    assert_eq!(pooler.refuses(&login("app")).await, "E(08P01) FATAL not allowed");

    let pooler = Pooler::config().setting("auth_type", "any").start().await;
    let mut anybody = Raw::login(&pooler.tcp(), &login("anybody")).await;
    anybody.query("SHOW POOLS").await.is("T D* C(SHOW) Z(I)");
    assert_eq!(error(&mut anybody, "PAUSE").await, "08P01 admin access needed");

    let pooler = Pooler::config().setting("auth_type", "scram-sha-256").start().await;
    let wrong = login("admin").password("wrong");
    let refusal = pooler.refuses(&wrong).await;
    assert!(refusal.ends_with("FATAL SASL authentication failed"), "{refusal}");
    Raw::login(&pooler.tcp(), &login("admin").password("admin-secret")).await;
}

#[tokio::test]
async fn pause_waits_for_the_running_and_resume_lets_the_waiting_go_on() {
    for database in ["", " app"] {
        let pooler = Pooler::config().pool_size(3).start().await;
        let load = Load::start(&pooler, 6).await;
        let mut console = pooler.console().await;
        let mut inside = pooler.client().await;
        inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
        console.send(query(&format!("PAUSE{database}"))).await;
        pooler.clients_wait(6).await;
        assert!(!console.hears_within(Duration::from_millis(200)).await, "a transaction is open");
        inside.query("SELECT 1").await.is("T D(1) C Z(T)");
        inside.query("COMMIT").await.is("C(COMMIT) Z(I)");
        console.ready(1).await.is("C(PAUSE) Z(I)");
        let servers = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'app'";
        eventually("no server is left", async || pooler.number(servers).await == 0).await;
        let state = pooler.admin("SHOW STATE").await;
        let paused = state.iter().find(|row| row["key"] == "paused").unwrap();
        assert_eq!(paused["value"], if database.is_empty() { "yes" } else { "no" });
        if database.is_empty() {
            assert_eq!(error(&mut console, "PAUSE").await, "08P01 already suspended/paused");
        }
        done(&mut console, &format!("RESUME{database}")).await;
        goes_on(&pooler).await;
        assert!(load.end().await > 20);
    }
}

#[tokio::test]
async fn pause_and_resume_of_what_is_not_there_say_so() {
    let pooler = Pooler::config().start().await;
    let _client = pooler.client().await;
    let mut console = pooler.console().await;
    for (command, message) in [
        ("PAUSE nowhere", "no such database: nowhere"),
        ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
        ("RESUME", "pooler is not paused/suspended"),
        ("RESUME app", "database app is not paused"),
        ("KILL_CLIENT 999999", "client not found"),
        ("KILL_CLIENT x", "invalid client pointer supplied"),
        ("DISABLE", "a database is required"),
        ("ENABLE", "a database is required"),
        ("SET no_such_setting = 1", "SET failed"),
        ("SET pool_mode = sometimes", "SET failed"),
    ] {
        assert_eq!(error(&mut console, command).await, format!("08P01 {message}"), "{command}");
    }
}

#[tokio::test]
async fn a_cancel_request_of_a_waiting_pause_resumes() {
    if !is_ours() {
        return; // PgBouncer resumes, but does not answer the PAUSE.
    }
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    console.send(query("PAUSE")).await;
    eventually("the pooler is paused", async || {
        pooler.admin("SHOW STATE").await.iter().any(|row| row["key"] == "paused" && row["value"] == "yes")
    })
    .await;
    let mut canceller = Raw::connect(&pooler.tcp()).await.unwrap();
    canceller.send(cancel_request(&console.key)).await;
    console.ready(1).await.is("E Z(I)");
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn reconnect_replaces_every_server_and_no_client_notices() {
    let pooler = Pooler::config().pool_size(3).start().await;
    let mut held = pooler.client().await;
    held.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let load = Load::start(&pooler, 5).await;
    goes_on(&pooler).await;
    let pids = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
    let before = pooler.sql(pids).await;
    let mut console = pooler.console().await;
    done(&mut console, "RECONNECT").await;
    // The server inside a transaction is still there, and WAIT_CLOSE waits for it.
    console.send(query("WAIT_CLOSE")).await;
    assert!(!console.hears_within(Duration::from_millis(200)).await, "a transaction is open");
    held.query("COMMIT").await.is("C(COMMIT) Z(I)");
    console.ready(1).await.is("C(WAIT_CLOSE) Z(I)");
    eventually("all servers are new", async || {
        let now = pooler.sql(pids).await;
        !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
    })
    .await;
    goes_on(&pooler).await;
    load.end().await;
    done(&mut console, "RECONNECT app").await;
    done(&mut console, "WAIT_CLOSE app").await;
}

#[tokio::test]
async fn kill_ends_clients_and_servers_and_the_database_needs_a_resume() {
    let pooler =
        Pooler::config().pool_size(2).database_line("other = {server} dbname={database}").start().await;
    let mut other = Raw::login(&pooler.tcp(), &Login::new("app", "other")).await;
    let (mut idle, mut inside, mut busy) =
        (pooler.client().await, pooler.client().await, pooler.client().await);
    inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
    busy.send(query("SELECT pg_sleep(60)")).await;
    eventually("both are in use", async || pooler.pool("sv_active").await == 2).await;
    let mut console = pooler.console().await;
    done(&mut console, "KILL app").await;
    for client in [&mut idle, &mut inside, &mut busy] {
        let reply = client.rest().await;
        reply.is("E(08P01) EOF");
        assert_eq!(reply.messages[0].field(b'M'), "database removed");
    }
    other.query("SELECT 1").await.is("T D(1) C Z(I)");
    done(&mut console, "RESUME app").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    if !is_ours() {
        return; // KILL without a database is new in 1.25.
    }
    done(&mut console, "KILL").await;
    other.rest().await.is("E(08P01) EOF");
    done(&mut console, "RESUME").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn kill_client_ends_the_one_that_show_clients_names() {
    let pooler = Pooler::config().start().await;
    let login = |name: &str| Login::new("app", "app").option("application_name", name);
    let mut victim = Raw::login(&pooler.tcp(), &login("victim")).await;
    let mut bystander = Raw::login(&pooler.tcp(), &login("bystander")).await;
    let clients = pooler.admin("SHOW CLIENTS").await;
    let row = clients.iter().find(|client| client["application_name"] == "victim").unwrap();
    pooler.admin(&format!("KILL_CLIENT {}", row["id"])).await;
    let reply = victim.rest().await;
    reply.is("E(08P01) EOF");
    assert_eq!(reply.messages[0].field(b'M'), "admin forced disconnect");
    bystander.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn a_disabled_database_refuses_new_clients_and_keeps_the_old() {
    let pooler = Pooler::config().start().await;
    let mut old = pooler.client().await;
    let mut console = pooler.console().await;
    done(&mut console, "DISABLE app").await;
    let refusal = pooler.refuses(&Login::new("app", "app")).await;
    assert!(refusal.ends_with("database \"app\" is disabled"), "{refusal}");
    old.query("SELECT 1").await.is("T D(1) C Z(I)");
    done(&mut console, "ENABLE app").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn set_changes_a_setting_at_once_and_reload_brings_the_file_back() {
    let pooler = Pooler::config().pool_size(1).start().await;
    let mut console = pooler.console().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let mut gate = Gate::close(&pooler).await;
    a.send(query(&gate.sql("a"))).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(1).await;
    pooler.clients_wait(1).await;
    console.query("SET default_pool_size = 2").await.is("C(SET default_pool_size=2) Z(I)");
    // The waiting client gets its server without asking again.
    gate.is_reached_by(2).await;
    gate.open().await;
    a.ready(1).await.is("T D(a) C Z(I)");
    b.ready(1).await.is("T D(b) C Z(I)");
    let value = async || {
        let config = pooler.admin("SHOW CONFIG").await;
        config.iter().find(|row| row["key"] == "default_pool_size").unwrap()["value"].clone()
    };
    assert_eq!(value().await, "2");
    done(&mut console, "RELOAD").await;
    assert_eq!(value().await, "1");
}

#[tokio::test]
async fn reload_changes_pools_and_databases_under_load() {
    let pooler = Pooler::config().pool_size(1).start().await;
    let load = Load::start(&pooler, 4).await;
    pooler.edit("default_pool_size = 1", "default_pool_size = 3");
    let line = format!("app = host=127.0.0.1 port={} dbname={}", pooler.postgres.port, pooler.database);
    let more = line.replace("app = ", "more = ");
    pooler.edit(&line, &format!("{line}\n{more}"));
    let mut console = pooler.console().await;
    done(&mut console, "RELOAD").await;
    let mut more = Raw::login(&pooler.tcp(), &Login::new("app", "more")).await;
    more.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut gate = Gate::close(&pooler).await;
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut client = pooler.client().await;
        client.send(query(&gate.sql("done"))).await;
        busy.push(client);
    }
    gate.is_reached_by(3).await;
    gate.open().await;
    load.end().await;
    // A database that leaves the file takes its clients with it.
    pooler.edit("more = ", "; more = ");
    done(&mut console, "RELOAD").await;
    let reply = more.rest().await;
    reply.is("E(08P01) EOF");
    assert_eq!(reply.messages[0].field(b'M'), "database removed");
    let refusal = pooler.refuses(&Login::new("app", "more")).await;
    assert!(refusal.ends_with("no such database: more"), "{refusal}");
}

#[tokio::test]
async fn reload_moves_the_servers_of_a_database_that_points_elsewhere_and_no_client_notices() {
    if !is_ours() {
        return; // PgBouncer ends the clients that have asked for a server.
    }
    let pooler = Pooler::config().pool_size(2).start().await;
    let target = pooler.postgres.new_database().await;
    let load = Load::start(&pooler, 4).await;
    let mut client = pooler.client().await;
    assert_eq!(client.query("SELECT current_database()").await.value(), pooler.database);
    pooler.edit(&format!("dbname={}\n", pooler.database), &format!("dbname={target}\n"));
    pooler.admin("RELOAD").await;
    eventually("the client is in the new database", async || {
        client.query("SELECT current_database()").await.value() == target
    })
    .await;
    load.end().await;
}

#[tokio::test]
async fn a_reload_of_a_bad_file_says_so_names_the_line_in_the_log_and_changes_nothing() {
    let pooler = Pooler::config().start().await;
    let load = Load::start(&pooler, 2).await;
    pooler.edit("max_client_conn = 1000", "max_client_conn = many");
    let mut console = pooler.console().await;
    if is_ours() {
        // New in 1.25.
        let expected = "F0000 RELOAD failed, see logs for additional details";
        assert_eq!(error(&mut console, "RELOAD").await, expected);
        pooler.logs("pooler.ini:").await;
        assert!(pooler.log().contains("max_client_conn is many: it must be"), "{}", pooler.log());
    }
    goes_on(&pooler).await;
    pooler.edit("max_client_conn = many", "max_client_conn = 1000");
    done(&mut console, "RELOAD").await;
    goes_on(&pooler).await;
    load.end().await;
}

#[tokio::test]
async fn reload_reads_the_auth_file_again() {
    let pooler = Pooler::config().setting("auth_type", "scram-sha-256").start().await;
    let login = Login::new("app", "app");
    Raw::login(&pooler.tcp(), &login.clone().password("app-secret")).await;
    let users = pooler.directory().join("users.txt");
    std::fs::write(users, "\"app\" \"changed\"\n\"admin\" \"admin-secret\"\n").unwrap();
    let console = Login::new("admin", "pgbouncer").password("admin-secret");
    let mut console = Raw::login(&pooler.tcp(), &console).await;
    done(&mut console, "RELOAD").await;
    let refusal = pooler.refuses(&login.clone().password("app-secret")).await;
    assert!(refusal.ends_with("FATAL SASL authentication failed"), "{refusal}");
    Raw::login(&pooler.tcp(), &login.password("changed")).await;
}

#[tokio::test]
async fn shutdown_ends_at_once() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    console.send(query("SHUTDOWN")).await;
    assert!(console.rest().await.closed);
    assert!(pooler.wait().success());
    assert!(client.rest().await.closed);
}

#[tokio::test]
async fn shutdown_wait_for_clients_serves_who_is_there_and_ends_when_the_last_has_left() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    let mut console = pooler.console().await;
    done(&mut console, "SHUTDOWN WAIT_FOR_CLIENTS").await;
    eventually("new clients are refused", async || {
        Raw::try_login(&pooler.tcp(), &Login::new("app", "app")).await.is_err()
    })
    .await;
    if !is_ours() {
        return; // Before 1.25 the Unix socket closes too.
    }
    let on_unix = Raw::try_login(&pooler.unix(), &Login::new("app", "app")).await.err().unwrap();
    assert!(on_unix.ends_with("pooler is shutting down"), "{on_unix}");
    let mut second = Raw::login(&pooler.unix(), &Login::new("admin", "pgbouncer")).await;
    second.query("SHOW POOLS").await.is("T D* C Z(I)");
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(pooler.runs());
    drop((client, console, second));
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn shutdown_wait_for_servers_ends_when_the_last_transaction_has_ended() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    let mut idle = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    done(&mut console, "SHUTDOWN WAIT_FOR_SERVERS").await;
    client.query("SELECT 1").await.is("T D(1) C Z(T)");
    assert!(pooler.runs());
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert!(pooler.wait().success());
    assert!(idle.rest().await.closed);
}

#[tokio::test]
async fn a_killed_database_refuses_to_serve_until_resume() {
    let pooler = Pooler::config().start().await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut console = pooler.console().await;
    done(&mut console, "KILL app").await;
    let databases = pooler.admin("SHOW DATABASES").await;
    assert_eq!(databases.iter().find(|row| row["name"] == "app").unwrap()["paused"], "1");
    let late = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "app")));
    assert!(!late.is_finished());
    done(&mut console, "RESUME app").await;
    late.await.unwrap().query("SELECT 1").await.is("T D(1) C Z(I)");
}
