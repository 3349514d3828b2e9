//! Scenario group S: parameters that servers report, which follow each client from server to server.

use crate::support;

use std::sync::Arc;
use support::message::query;
use support::{Login, Pooler, Postgres, Raw};

async fn value(client: &mut Raw, sql: &str) -> String {
    client.query(sql).await.value()
}

/// What a value looks like is decided by the session's parameters; each client sees its own.
#[tokio::test]
async fn s12_each_client_sees_dates_numbers_and_letters_as_it_has_asked_for_them() {
    let pooler = Pooler::config().start().await;
    let of_a = Login::new("app", "app")
        .option("client_encoding", "LATIN1")
        .option("DateStyle", "German, DMY")
        .option("TimeZone", "Asia/Tokyo")
        .option("IntervalStyle", "iso_8601")
        .option("extra_float_digits", "-3");
    let mut a = Raw::login(&pooler.tcp(), &of_a).await;
    let mut b = pooler.client().await;
    let sql = "SELECT '2026-11-22 15:00Z'::timestamptz, '26 hours'::interval, 0.1::float8 + 0.2, chr(228)";
    for _ in 0..3 {
        let told = a.query(sql).await;
        let row = told.of(b'D').next().expect("one row");
        let letter = row.body.last();
        assert_eq!(row.values()[..3], ["23.11.2026 00:00:00 JST", "PT26H", "0.3"]);
        assert_eq!(letter, Some(&0xe4), "in LATIN1");
        let row = b.query(sql).await.rows().remove(0);
        assert_eq!(row, ["2026-11-22 15:00:00+00", "26:00:00", "0.30000000000000004", "\u{e4}"]);
    }
    // What each was told at login is what it has.
    for client in [&mut a, &mut b] {
        for name in ["client_encoding", "DateStyle", "TimeZone", "IntervalStyle"] {
            let told = client.parameters[name].clone();
            assert_eq!(value(client, &format!("SHOW {name}")).await, told, "{name}");
        }
    }
}

/// The server says `ISO, MDY` to both.
#[tokio::test]
async fn s12_two_spellings_of_a_value_cost_no_set_in_each_transaction() {
    let postgres = Arc::new(Postgres::start(&["log_statement=all"]).await);
    let pooler = Pooler::config().postgres(Arc::clone(&postgres)).start().await;
    for (name, one, two) in [
        ("DateStyle", "ISO", "ISO, MDY"),
        ("DateStyle", "iso,us", "ISO, MDY"),
        ("client_encoding", "utf8", "UTF8"),
        ("client_encoding", "'UTF-8'", "unicode"),
        ("TimeZone", "utc", "UTC"),
        ("standard_conforming_strings", "true", "on"),
        ("IntervalStyle", "POSTGRES", "postgres"),
    ] {
        let mut clients = Vec::new();
        for value in [one, two] {
            let login = Login::new("app", "app").option(name, value);
            clients.push(Raw::login(&pooler.tcp(), &login).await);
        }
        let sets = || {
            let log = postgres.log().to_lowercase();
            log.lines().filter(|line| line.contains(&name.to_lowercase()) && line.contains("set")).count()
        };
        let before = sets();
        for _ in 0..10 {
            for client in &mut clients {
                client.query("SELECT 1").await.is("T D(1) C Z(I)");
            }
        }
        let more = sets() - before;
        assert!(more <= 2, "{name}: {more} SETs in 20 transactions for {one} beside {two}");
    }
}

/// PostgreSQL 15 does not report search_path, and 18 does.
#[tokio::test]
async fn s12_a_tracked_parameter_is_its_clients_own_whether_the_server_reports_it_or_not() {
    let pooler = Pooler::config().setting("track_extra_parameters", "search_path, work_mem").start().await;
    for (name, own, other, default) in
        [("search_path", "pg_temp", "pg_catalog", "\"$user\", public"), ("work_mem", "1MB", "2MB", "4MB")]
    {
        let mut a = Raw::login(&pooler.tcp(), &Login::new("app", "app").option(name, own)).await;
        let (mut b, mut c) = (pooler.client().await, pooler.client().await);
        let show = format!("SHOW {name}");
        for _ in 0..2 {
            assert_eq!(value(&mut a, &show).await, own);
            assert_eq!(value(&mut b, &show).await, default);
        }
        b.query(&format!("SET {name} = '{other}'")).await.is("C(SET) Z(I)");
        for _ in 0..2 {
            assert_eq!(value(&mut c, &show).await, default);
            assert_eq!(value(&mut a, &show).await, own);
            assert_eq!(value(&mut b, &show).await, other);
        }
    }
}

/// RESET goes back to what the session began with: the client's own StartupMessage, not the server's.
#[tokio::test]
async fn s12_reset_goes_back_to_what_the_client_has_asked_for_at_login() {
    let pooler = Pooler::config().start().await;
    for (name, own, other) in [
        ("TimeZone", "Asia/Tokyo", "America/New_York"),
        ("DateStyle", "German, DMY", "SQL, MDY"),
        ("application_name", "mine", "other"),
        ("client_encoding", "LATIN1", "SQL_ASCII"),
        ("statement_timeout", "7s", "9s"),
    ] {
        let mut a = Raw::login(&pooler.tcp(), &Login::new("app", "app").option(name, own)).await;
        let mut b = pooler.client().await;
        let show = format!("SHOW {name}");
        let of_b = value(&mut b, &show).await;
        for reset in [format!("RESET {name}"), "RESET ALL".to_owned(), "DISCARD ALL".to_owned()] {
            a.query(&format!("SET {name} = '{other}'")).await.is("C(SET) Z(I)");
            assert_eq!(value(&mut b, &show).await, of_b, "{reset}");
            assert_eq!(value(&mut a, &show).await, other, "{reset}");
            a.send(query(&reset)).await;
            a.ready(1).await.succeeds(&reset);
            assert_eq!(value(&mut a, &show).await, own, "{reset}");
            assert_eq!(value(&mut b, &show).await, of_b, "{reset}");
            assert_eq!(value(&mut a, &show).await, own, "{reset}");
        }
    }
}
