//! Scenario group A: logins, what may come before them, and what servers may say to ours.
//!
//! Most of A1 to A7 is in login.rs, tls.rs, channel_binding.rs and auth_query.rs, under these numbers.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::certificates::Authority;
use support::message::{query, run_of, startup, untagged};
use support::pooler::Config;
use support::postgres::USER_SEARCH;
use support::{Login, Pooler, Postgres, Raw, eventually};
use tokio::time::sleep;

const DENIED: &str = "E(28P01) FATAL SASL authentication failed";

/// PostgreSQL is asked, by its superuser, for users that `auth_file` does not have.
fn asking(postgres: &Arc<Postgres>) -> Config {
    Pooler::config()
        .postgres(Arc::clone(postgres))
        .users("\"postgres\" \"\"\n\"app\" \"app-secret\"\n\"admin\" \"admin-secret\"\n")
        .setting("auth_type", "scram-sha-256")
        .setting("auth_user", "postgres")
}

fn scram_user() -> Login {
    Login::new("scram_user", "app").password("scram-secret")
}

async fn console(pooler: &Pooler, command: &str) {
    let login = Login::new("admin", "pgbouncer").password("admin-secret");
    Raw::login(&pooler.tcp(), &login).await.query(command).await.succeeds(command);
}

#[tokio::test]
async fn a1_a_newer_protocol_is_answered_once_and_then_the_password_is_asked() {
    let postgres = Postgres::shared().await;
    let pooler = asking(&postgres).start().await;
    // One that auth_file has, one that only PostgreSQL knows, and one that nobody does.
    for (user, password) in [("app", "app-secret"), ("scram_user", "scram-secret"), ("nobody", "x")] {
        let login = Login::new(user, "app").password(password).protocol(9999);
        let login = login.option("_pq_.wish", "1").option("_pq_.more", "2");
        let mut client = Raw::begin_login(&pooler.tcp(), &login).await;
        let told = client.until(b'R').await;
        told.is("v R");
        assert!(told.messages[0].body.ends_with(b"\0\0\0\x02_pq_.wish\0_pq_.more\0"), "{told:?}");
        assert_eq!(told.messages[1].body[..4], [0, 0, 0, 10], "SASL");
        if user != "nobody" {
            let mut client = Raw::login(&pooler.tcp(), &login).await;
            client.query("SELECT current_user").await.is(&format!("T D({user}) C Z(I)"));
        }
    }
}

/// What openssl says of a TLS connection without an SSLRequest before it.
fn direct_tls(pooler: &Pooler, alpn: &[&str]) -> String {
    let mut openssl = Command::new("openssl");
    let target = format!("127.0.0.1:{}", pooler.port);
    openssl.args(["s_client", "-connect", &target, "-ign_eof"]).args(alpn);
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = openssl.spawn().unwrap();
    let login = startup(&[("user", "app"), ("database", "app")]);
    // It may be gone already.
    let _ = std::io::Write::write_all(
        child.stdin.as_mut().unwrap(),
        &run_of([login, query("SELECT 'let ' || 'in'"), support::message::terminate()]),
    );
    let output = child.wait_with_output().unwrap();
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

#[tokio::test]
async fn a3_tls_at_once_needs_the_protocols_name() {
    let authority = Authority::new();
    let pooler = Pooler::config().shows("prefer", &authority.issue("pooler", "DNS:localhost")).start().await;
    let said = direct_tls(&pooler, &["-alpn", "postgresql"]);
    assert!(said.contains("ALPN protocol: postgresql") && said.contains("let in"), "{said}");
    let said = direct_tls(&pooler, &["-alpn", "h2,postgresql"]);
    assert!(said.contains("let in"), "{said}");
    for wrong in [&["-alpn", "http/1.1"][..], &["-alpn", "postgres"], &[]] {
        let said = direct_tls(&pooler, wrong);
        assert!(!said.contains("let in"), "{wrong:?}: {said}");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn a5_a_role_whose_password_is_no_longer_valid_is_refused() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    let pooler = asking(&postgres).start().await;
    let mut early = Raw::login(&pooler.tcp(), &scram_user()).await;
    early.query("SELECT current_user").await.is("T D(scram_user) C Z(I)");
    let valid_until = async |time: &str| {
        postgres.sql("postgres", &format!("ALTER ROLE scram_user VALID UNTIL '{time}'")).await;
    };
    valid_until("yesterday").await;
    // Though a server is there on which it is logged in.
    for _ in 0..2 {
        let refusal = pooler.refuses(&scram_user()).await;
        assert!(refusal.starts_with("E(28P01) FATAL "), "{refusal}");
        console(&pooler, "RECONNECT").await;
    }
    // Who was in before keeps what PostgreSQL lets it keep: no new server.
    early.send(query("SELECT 1")).await;
    let told = early.rest().await.farewell();
    assert!(told.contains("password authentication failed"), "{told}");
    valid_until("infinity").await;
    eventually("it is let in again", async || Raw::try_login(&pooler.tcp(), &scram_user()).await.is_ok())
        .await;
}

/// A schema of an attacker's in which everything that an `auth_query` could mean says what he likes.
const EVIL: &str = "CREATE SCHEMA evil;
     CREATE VIEW evil.pg_shadow AS SELECT 'scram_user'::name AS usename, 'evil-secret'::text AS passwd;
     CREATE VIEW evil.pg_authid AS SELECT 'scram_user'::name AS rolname, 'evil-secret'::text AS rolpassword,
         NULL::timestamptz AS rolvaliduntil, true AS rolcanlogin;
     CREATE FUNCTION evil.user_search(uname text) RETURNS TABLE (usename name, passwd text)
         LANGUAGE sql AS $$ SELECT 'scram_user'::name, 'evil-secret'::text $$;
     GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA evil TO PUBLIC";

#[tokio::test]
async fn a6_no_clients_search_path_decides_what_the_auth_query_means() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    postgres.sql("postgres", "ALTER ROLE app SUPERUSER").await;
    for asked in [
        None,
        Some("SELECT usename, passwd FROM pg_shadow WHERE usename = $1"),
        Some("SELECT usename, passwd FROM user_search($1)"),
    ] {
        // One server of app's, which asks, and serves app.
        let mut config = asking(&postgres).setting("auth_user", "app").setting("auth_type", "plain");
        config = config.setting("track_extra_parameters", "search_path");
        if let Some(asked) = asked {
            config = config.setting("auth_query", asked);
        }
        let pooler = config.start().await;
        pooler.sql(EVIL).await;
        pooler.sql(USER_SEARCH).await;
        let path = "evil, pg_catalog, public";
        let tries: [Login; 3] = [
            Login::new("scram_user", "app").option("search_path", path),
            Login::new("scram_user", "app").option("options", "-c search_path=evil,pg_catalog,public"),
            Login::new("scram_user", "app"),
        ];
        // Somebody who may be on the very server that will ask.
        let app = Login::new("app", "app").password("app-secret").option("search_path", path);
        let mut other = Raw::login(&pooler.tcp(), &app).await;
        for login in tries {
            other.query(&format!("SET search_path = {path}")).await.is("C(SET) Z(I)");
            let refusal = pooler.refuses(&login.clone().password("evil-secret")).await;
            assert!(refusal.starts_with("E(28P01) FATAL "), "{asked:?}: {refusal}");
            let mut client = Raw::login(&pooler.tcp(), &login.clone().password("scram-secret")).await;
            client.query("SELECT current_user").await.is("T D(scram_user) C Z(I)");
            // And it is the client's own afterwards.
            let shown = client.query("SHOW search_path").await.value();
            assert_eq!(shown.contains("evil"), !login.options.is_empty(), "{shown}");
        }
    }
}

/// What both say to bytes that may be a login, and to a query behind it.
async fn same_login(pooler: &Pooler, bytes: impl Fn(&str) -> Vec<u8>) -> String {
    let mut told = Vec::new();
    for (address, database) in [(pooler.postgres.tcp(), pooler.database.as_str()), (pooler.tcp(), "app")] {
        let mut client = Raw::connect(&address).await.unwrap();
        client.send(bytes(database)).await;
        client.send(run_of([query("SELECT 1"), support::message::terminate()])).await;
        told.push(client.rest().await.words().join(" "));
    }
    assert_eq!(told[1], told[0], "the pooler and PostgreSQL");
    told.remove(0)
}

#[tokio::test]
async fn a7_a_startup_packet_of_any_size_is_taken_or_refused_as_by_postgresql() {
    let pooler = Pooler::config().setting("ignore_startup_parameters", "x.filler").start().await;
    let sized = |database: &str, filler: usize| {
        startup(&[("user", "app"), ("database", database), ("x.filler", &"f".repeat(filler))])
    };
    let welcome = "R K Z(I) T D(1) C(SELECT 1) Z(I) EOF";
    for filler in [10, 4_000, 9_900] {
        assert_eq!(same_login(&pooler, |database| sized(database, filler)).await, welcome, "{filler}");
    }
    // PostgreSQL closes without a word; we say why.
    for filler in [10_100, 65_000, 1_000_000] {
        for (address, expected) in [(pooler.postgres.tcp(), "EOF"), (pooler.tcp(), "E(08P01) EOF")] {
            let mut client = Raw::connect(&address).await.unwrap();
            client.send(&sized("app", filler)[..9_000]).await;
            client.rest().await.is(expected);
        }
    }
    // Neither a word without its value nor one behind the end is overlooked.
    let odd = |database: &str, end: &[u8]| {
        let words = [&b"user\0app\0database\0"[..], database.as_bytes(), b"\0", end].concat();
        untagged(3 << 16, &words)
    };
    assert_eq!(same_login(&pooler, |database| odd(database, b"\0")).await, welcome);
    for end in [&b"\0garbage"[..], b"\0\0", b"application_name\0", b"", b"\0\0\0\0\0"] {
        let said = same_login(&pooler, |database| odd(database, end)).await;
        assert_eq!(said, "E(08P01) EOF", "{}", end.escape_ascii());
    }
    // In single bytes.
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    for byte in run_of([startup(&[("user", "app"), ("database", "app")]), query("SELECT 1")]) {
        client.send([byte]).await;
        sleep(Duration::from_millis(1)).await;
    }
    client.ready(2).await.is("R K Z(I) T D(1) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

/// Lines of the server's log that are about passwords.
fn failures(postgres: &Postgres) -> usize {
    postgres.log().matches("password authentication failed").count()
}

#[tokio::test]
async fn a10_a_storm_of_wrong_passwords_is_no_storm_at_the_server() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    let config = Pooler::config().postgres(Arc::clone(&postgres)).setting("auth_type", "scram-sha-256");
    let pooler = config.start().await;
    let mut good = Raw::login(&pooler.tcp(), &scram_user()).await;
    good.query("SELECT 1").await.is("T D(1) C Z(I)");
    for _ in 0..50 {
        let wrong = Login::new("scram_user", "app").password("wrong");
        assert_eq!(pooler.refuses(&wrong).await, DENIED);
    }
    good.query("SELECT 2").await.is("T D(2) C Z(I)");
    Raw::login(&pooler.tcp(), &scram_user()).await.query("SELECT 3").await.is("T D(3) C Z(I)");
    assert_eq!(failures(&postgres), 0, "the server was asked");
}

#[tokio::test]
async fn a10_a_password_that_the_server_refuses_is_not_tried_again_for_each_client() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    let pooler = Pooler::config()
        .postgres(Arc::clone(&postgres))
        .database_option("user=scram_user password=not-yet-right")
        .database_line("other = {server} dbname={database}")
        .setting("server_login_retry", "1")
        .start()
        .await;
    for _ in 0..2 {
        let (before, began) = (failures(&postgres), std::time::Instant::now());
        for _ in 0..30 {
            let refusal = pooler.refuses(&Login::new("app", "app")).await;
            assert!(refusal.contains("password authentication failed"), "{refusal}");
        }
        // One a second, and one to begin with.
        let most = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
        let tried = failures(&postgres) - before;
        assert!(tried <= most, "{tried} tries for 30 clients");
        // It is nobody else's fault.
        let mut other = Raw::login(&pooler.tcp(), &Login::new("app", "other")).await;
        other.query("SELECT 1").await.is("T D(1) C Z(I)");
    }
    // Once it is right, the pool serves again.
    let set = "SET password_encryption = 'scram-sha-256'; ALTER ROLE scram_user PASSWORD 'not-yet-right'";
    postgres.sql("postgres", set).await;
    let login = Login::new("app", "app");
    eventually("it is let in", async || Raw::try_login(&pooler.tcp(), &login).await.is_ok()).await;
    pooler.is_clean().await;
}
