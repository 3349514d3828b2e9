//! Session parameters: what of a session follows its client from server to server.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::message::{extended, query, run_of, sync};
use support::{Login, Pooler, Raw, Reply};

/// Name, a value that differs from the server's own, and another such.
const TRACKED: [(&str, &str, &str); 7] = [
    ("client_encoding", "LATIN1", "SQL_ASCII"),
    ("DateStyle", "German, DMY", "SQL, MDY"),
    ("TimeZone", "Asia/Tokyo", "America/New_York"),
    ("IntervalStyle", "iso_8601", "sql_standard"),
    ("standard_conforming_strings", "off", "off"),
    ("application_name", "it's a \\ test", "other"),
    ("default_transaction_read_only", "on", "on"),
];

#[tokio::test]
async fn s12_tracked_parameters_follow_each_client_from_server_to_server() {
    let config = Pooler::config().pool_size(2);
    let pooler = config
        .setting("track_extra_parameters", "IntervalStyle, default_transaction_read_only")
        .start()
        .await;
    for (name, first, second) in TRACKED {
        let mut a = Raw::login(&pooler.tcp(), &Login::new("app", "app").option(name, first)).await;
        let (mut b, mut c) = (pooler.client().await, pooler.client().await);
        b.query(&format!("SET {name} = '{second}'")).await.is("C(SET) Z(I)");
        let own = c.query(&format!("SHOW {name}")).await.value();
        let show = query(&format!("SHOW {name}"));
        let extended = run_of([extended(&format!("SHOW {name}"), &[]), sync()]);
        for round in 0..4 {
            // B or C holds a server, so that A moves from one to the other.
            let holder = if round % 2 == 0 { &mut b } else { &mut c };
            holder.query("BEGIN").await.is("C(BEGIN) Z(T)");
            for request in [&show, &extended] {
                assert_eq!(a.ask(request).await.value(), first, "A: {name}");
            }
            holder.query("COMMIT").await.is("C(COMMIT) Z(I)");
            assert_eq!(b.ask(&extended).await.value(), second, "B: {name}");
            assert_eq!(c.ask(&show).await.value(), own, "C: {name}");
        }
    }
}

#[tokio::test]
async fn what_a_transaction_rolls_back_is_not_carried_on() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("SET DateStyle = 'German'").await.is("C(SET) Z(I)");
    a.query("BEGIN; SET DateStyle = 'SQL'").await.is("C(BEGIN) C(SET) Z(T)");
    a.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
    b.query("SELECT '2026-11-22'::date").await.is("T D(2026-11-22) C Z(I)");
    a.query("SELECT '2026-11-22'::date").await.is("T D(22.11.2026) C Z(I)");
    a.query("BEGIN; SET LOCAL DateStyle = 'SQL'; COMMIT").await.is("C Cx2 Z(I)");
    b.query("SELECT '2026-11-22'::date").await.is("T D(2026-11-22) C Z(I)");
    a.query("SELECT '2026-11-22'::date").await.is("T D(22.11.2026) C Z(I)");
    a.query("RESET DateStyle").await.is("C(RESET) Z(I)");
    b.query("SELECT 1").await.is("T D(1) C Z(I)");
    a.query("SELECT '2026-11-22'::date").await.is("T D(2026-11-22) C Z(I)");
}

#[tokio::test]
async fn a_client_is_told_of_its_own_parameter_changes_only() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let told = |reply: &Reply| reply.of(b'S').map(|message| format!("{message:?}")).collect::<Vec<_>>();
    let reply = a.query("SET application_name = 'a'").await;
    assert_eq!(told(&reply), ["S(application_name=a)"]);
    assert!(told(&b.query("SELECT 1").await).is_empty());
    assert!(told(&a.query("SELECT 1").await).is_empty());
}

#[tokio::test]
async fn an_invalid_client_encoding_is_refused_and_no_query_runs_with_a_wrong_one() {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE ran (n int); GRANT ALL ON ran TO app").await;
    let insert = "INSERT INTO ran VALUES (1)";
    for request in [query(insert), run_of([extended(insert, &[]), sync()])] {
        let login = Login::new("app", "app").option("client_encoding", "no-such-encoding");
        let refusal = match Raw::try_login(&pooler.tcp(), &login).await {
            Err(refusal) => refusal,
            Ok(mut client) => {
                client.send(&request).await;
                client.rest().await.farewell()
            }
        };
        assert!(refusal.contains("FATAL"), "{refusal}");
        assert_eq!(pooler.number("SELECT count(*) FROM ran").await, 0);
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn parameters_of_the_database_line_are_the_servers_from_its_start() {
    let pooler = Pooler::config()
        .database_option("timezone=Asia/Tokyo datestyle=German client_encoding=LATIN1")
        .start()
        .await;
    let mut client = pooler.client().await;
    assert_eq!(client.parameters["TimeZone"], "Asia/Tokyo");
    client.query("SHOW TimeZone").await.is("T D(Asia/Tokyo) C Z(I)");
    client.query("SHOW client_encoding").await.is("T D(LATIN1) C Z(I)");
}

#[tokio::test]
async fn application_name_add_host_shows_the_server_where_its_client_is() {
    let pooler = Pooler::config().setting("application_name_add_host", "1").start().await;
    let login = Login::new("app", "app");
    let port_of = async |client: &mut Raw, expected: &str| {
        let shown = client.query("SHOW application_name").await.value();
        assert_eq!(client.parameters["application_name"], shown);
        let port = shown.strip_prefix(expected).unwrap_or_else(|| panic!("{shown}: {expected}"));
        port.parse::<u16>().unwrap_or_else(|_| panic!("{shown} ends with a port"))
    };
    let mut named = Raw::login(&pooler.tcp(), &login.clone().option("application_name", "web")).await;
    let mut nameless = Raw::login(&pooler.tcp(), &login).await;
    let ports =
        (port_of(&mut named, "web - 127.0.0.1:").await, port_of(&mut nameless, "app - 127.0.0.1:").await);
    assert_ne!(ports.0, ports.1);
    let clients = pooler.admin("SHOW CLIENTS").await;
    let shown = clients.iter().find(|row| row["application_name"].starts_with("web - "));
    assert_eq!(shown.expect("SHOW CLIENTS has it")["port"], ports.0.to_string());
    let mut local = Raw::login(&pooler.unix(), &login).await;
    let shown = local.query("SHOW application_name").await.value();
    assert!(shown.starts_with("app - unix(") && shown.ends_with(&format!(":{}", pooler.port)), "{shown}");
    // What the application sets itself is its own.
    named.query("SET application_name = 'mine'").await.is("C(SET) Z(I)");
    named.query("SHOW application_name").await.is("T D(mine) C Z(I)");
}

#[tokio::test]
async fn with_verbose_the_log_says_which_parameters_were_carried_and_what_they_are_called() {
    let config = Pooler::config().setting("verbose", "1");
    let pooler = config.start().await;
    let login = Login::new("app", "app").option("DateStyle", "German");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    for _ in 0..2 {
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
    }
    let log = pooler.log();
    for line in [
        "varcache_apply: SET DateStyle='German';",
        "varcache_set_canonical: setting DateStyle to its canonical version German -> German, DMY",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line}\n{log}");
    }
}
