//! TLS toward clients and servers: who gets it, whose certificates are believed, and that nothing of
//! the relay changes under it. Certificates are openssl's, clients psql and psycopg.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::certificates::{Authority, Identity, text};
use support::clients::{program, psql as psql_command};
use support::message::startup;
use support::pooler::{Config, Restless};
use support::{Login, Pooler, Postgres, Raw, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What psql says to `SELECT 'in'` and `\conninfo`: `TLSv1.3` or `plain`, or its error.
fn psql(pooler: &Pooler, options: &str) -> String {
    psql_as(pooler, "app", options)
}

fn psql_as(pooler: &Pooler, user: &str, options: &str) -> String {
    let target = format!("host=127.0.0.1 port={} user={user} dbname=app {options}", pooler.port);
    let mut command = psql_command();
    command.args(["-XAt", "-c", "SELECT 'in'", "-c", r"\conninfo", &target]);
    let output = command.output().expect("psql is installed");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.success() {
        true if out.contains("protocol: ") => {
            let (_, rest) = out.split_once("protocol: ").unwrap();
            rest.split(',').next().unwrap().to_owned()
        }
        true => "plain".to_owned(),
        false => err.trim().rsplit("failed: ").next().unwrap().to_owned(),
    }
}

#[tokio::test]
async fn client_tls_sslmode_says_who_gets_tls_and_who_must_have_it() {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost,IP:127.0.0.1");
    let refused = "server does not support SSL, but SSL was required";
    let required =
        "FATAL:  SSL required\nHINT:  Connect with sslmode=require, or set client_tls_sslmode to prefer.";
    for (mode, plain, wish, demand) in [
        ("disable", "plain", "plain", refused),
        ("allow", "plain", "TLSv1.3", "TLSv1.3"),
        ("prefer", "plain", "TLSv1.3", "TLSv1.3"),
        ("require", required, "TLSv1.3", "TLSv1.3"),
    ] {
        let pooler = Pooler::config().shows(mode, &shown).start().await;
        assert_eq!(psql(&pooler, "sslmode=disable"), plain, "{mode}");
        assert_eq!(psql(&pooler, "sslmode=prefer"), wish, "{mode}");
        assert_eq!(psql(&pooler, "sslmode=require"), demand, "{mode}");
        let checked = format!("sslmode=verify-full sslrootcert={}", text(&authority.certificate()));
        assert_eq!(psql(&pooler, &checked), demand, "{mode}");
    }
}

#[tokio::test]
async fn a_client_must_show_a_certificate_of_our_ca_where_that_is_asked() {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost");
    // A client sends no certificate of a CA that we did not name; this one has the name and not the key.
    let namesake = Authority::named(&authority.name());
    let impostor = namesake.issue("app", "DNS:app");
    let own = authority.issue("app", "DNS:app");
    let with = |identity: &Identity| {
        format!("sslmode=require sslcert={} sslkey={}", text(&identity.certificate), text(&identity.key))
    };
    for mode in ["verify-ca", "verify-full"] {
        let config = Pooler::config()
            .shows(mode, &shown)
            .setting("client_tls_ca_file", text(&authority.certificate()));
        let pooler = config.start().await;
        assert_eq!(psql(&pooler, &with(&own)), "TLSv1.3", "{mode}");
        let error = psql(&pooler, "sslmode=require");
        assert!(error.contains("certificate required"), "{mode}: {error}");
        let error = psql(&pooler, &with(&impostor));
        assert!(
            error.contains("alert decrypt error") || error.contains("bad certificate"),
            "{mode}: {error}"
        );
        pooler.logs("closing because: TLS handshake failed").await;
    }
}

#[tokio::test]
async fn a_certificate_names_the_user_with_auth_type_cert() {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost");
    let own = authority.issue("app", "DNS:app");
    let config = Pooler::config().shows("verify-full", &shown).setting("auth_type", "cert");
    let pooler = config.setting("client_tls_ca_file", text(&authority.certificate())).start().await;
    let with = format!("sslmode=require sslcert={} sslkey={}", text(&own.certificate), text(&own.key));
    assert_eq!(psql_as(&pooler, "app", &with), "TLSv1.3");
    let error = psql_as(&pooler, "plain_user", &with);
    assert!(error.starts_with("FATAL:  certificate authentication failed"), "{error}");
}

#[tokio::test]
async fn a2_bytes_that_come_before_tls_are_not_taken_for_what_comes_under_it() {
    let authority = Authority::new();
    let pooler = Pooler::config().shows("prefer", &authority.issue("pooler", "DNS:localhost")).start().await;
    let mut stream = TcpStream::connect(("127.0.0.1", pooler.port)).await.unwrap();
    let smuggled = [&SSL_REQUEST[..], &startup(&[("user", "app"), ("database", "app")])].concat();
    stream.write_all(&smuggled).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with('E') && answer.contains("received unencrypted data after SSL request"),
        "{answer}"
    );
}

#[tokio::test]
async fn server_tls_sslmode_says_what_a_server_must_show() {
    let (authority, other) = (Authority::new(), Authority::new());
    let right = authority.issue("db", "DNS:localhost,IP:127.0.0.1");
    let with_tls = Postgres::with_tls(&right).await;
    let without = Postgres::shared().await;
    let unknown = "certificate verify failed: UnknownIssuer";
    for (mode, ca, tls, plain) in [
        ("disable", None, "off", "off"),
        ("allow", None, "on", "off"),
        ("prefer", None, "on", "off"),
        ("require", None, "on", "server refused SSL"),
        ("verify-ca", Some(&authority), "on", "server refused SSL"),
        ("verify-ca", Some(&other), unknown, "server refused SSL"),
        ("verify-full", Some(&authority), "on", "server refused SSL"),
    ] {
        for (server, wanted) in [(&with_tls, tls), (&without, plain)] {
            let mut config =
                Pooler::config().postgres(Arc::clone(server)).setting("server_tls_sslmode", mode);
            if let Some(ca) = ca {
                config = config.setting("server_tls_ca_file", text(&ca.certificate()));
            }
            let pooler = config.setting("client_login_timeout", "2").start().await;
            expect_server(&pooler, wanted, &format!("{mode} {}", ca.is_some())).await;
        }
    }
}

/// `on` or `off`: whether the server says so of its connection. Else why there is none.
async fn expect_server(pooler: &Pooler, wanted: &str, what: &str) {
    match wanted {
        "on" | "off" => {
            let sql =
                "SELECT CASE WHEN ssl THEN 'on' ELSE 'off' END FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            assert_eq!(pooler.client().await.query(sql).await.value(), wanted, "{what}");
        }
        error => {
            let refused = support::Login::new("app", "app");
            let _ = pooler.refuses(&refused).await;
            assert!(pooler.log().contains(error), "{what}: {error}\n{}", pooler.log());
        }
    }
}

#[tokio::test]
async fn certificates_that_openssl_accepts_are_accepted() {
    let authority = Authority::new();
    let own_ca =
        authority.self_signed("self", "127.0.0.1", &["-addext", "basicConstraints=critical,CA:TRUE"]);
    let no_ca = Authority::that_is_none();
    let no_cas_own = Identity { certificate: no_ca.certificate(), key: no_ca.certificate() };
    let self_named = authority.self_signed("named", "db", &["-addext", "subjectAltName=IP:127.0.0.1"]);
    for (what, shown, ca, mode, wanted) in [
        ("version 1", authority.issue_version_1("127.0.0.1"), None, "verify-full", "on"),
        (
            "version 1 of another name",
            authority.issue_version_1("db"),
            None,
            "verify-full",
            "NotValidForName",
        ),
        (
            "version 1 of another CA",
            Authority::new().issue_version_1("127.0.0.1"),
            None,
            "verify-ca",
            "UnsupportedCertVersion",
        ),
        (
            "the name in the CN alone",
            authority.issue_without_alternatives("127.0.0.1"),
            None,
            "verify-full",
            "on",
        ),
        (
            "another name among alternatives",
            authority.issue("127.0.0.1", "DNS:db"),
            None,
            "verify-full",
            "NotValidForName",
        ),
        ("its own CA", own_ca.clone(), Some(&own_ca), "verify-full", "on"),
        (
            "signed by one that is no CA",
            no_ca.issue("db", "IP:127.0.0.1"),
            Some(&no_cas_own),
            "verify-ca",
            "UnknownIssuer",
        ),
        ("a CA that is not ours", own_ca.clone(), None, "verify-ca", "CaUsedAsEndEntity"),
        ("self-signed, and known", self_named.clone(), Some(&self_named), "verify-full", "on"),
        ("self-signed, and unknown", self_named.clone(), None, "verify-ca", "certificate verify failed"),
    ] {
        let server = Postgres::with_tls(&shown).await;
        let ca = ca.map_or(authority.certificate(), |ca| ca.certificate.clone());
        let config = Pooler::config().postgres(server).setting("server_tls_sslmode", mode);
        let config = config.setting("server_tls_ca_file", text(&ca)).setting("client_login_timeout", "2");
        expect_server(&config.start().await, wanted, what).await;
    }
}

#[tokio::test]
async fn the_name_that_a_server_must_have_can_be_set() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.issue("db", "DNS:c1-rw")).await;
    let config = || {
        let config = Pooler::config().postgres(Arc::clone(&server)).setting("client_login_timeout", "2");
        let config = config.setting("server_tls_sslmode", "verify-full");
        config.setting("server_tls_ca_file", text(&authority.certificate()))
    };
    expect_server(&config().start().await, "NotValidForName", "the address").await;
    let pooler = config().environment("PGWEIR_SERVER_TLS_NAME", "c1-rw").start().await;
    expect_server(&pooler, "on", "the name").await;
}

/// A pooler with TLS on both sides, and what clients need for it.
async fn encrypted(config: impl Fn(Config) -> Config) -> (Authority, Identity, Pooler) {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost,IP:127.0.0.1");
    let server = Postgres::with_tls(&authority.issue("db", "IP:127.0.0.1")).await;
    let both = Pooler::config()
        .shows("require", &shown)
        .postgres(server)
        .setting("server_tls_sslmode", "verify-full")
        .setting("server_tls_ca_file", text(&authority.certificate()))
        .setting("admin_users", "app");
    let pooler = config(both).start().await;
    (authority, shown, pooler)
}

fn pgbench(pooler: &Pooler, arguments: &[&str]) -> Command {
    let mut command = program("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "app", "-n"]);
    command.args(arguments).arg("app").env("PGSSLMODE", "require").stdin(Stdio::null());
    command
}

#[tokio::test]
async fn everything_is_relayed_under_tls_as_it_is_without() {
    let config = |config: Config| config.pool_size(4).setting("workers", "2");
    let (authority, _, pooler) = encrypted(config).await;
    let _moving = Restless::start(Raw::login(&pooler.tls(), &Login::new("app", "pgbouncer")).await);
    pooler
        .sql("CREATE TABLE big AS SELECT repeat(md5(n::text), 30) AS line FROM generate_series(1, 20000) n")
        .await;
    pooler.sql("GRANT ALL ON big TO app").await;
    let script = authority.certificate().with_file_name("script.sql");
    // Clients and servers go from thread to thread, and servers from client to client; results are larger than any
    // buffer.
    std::fs::write(&script, "SELECT pg_backend_pid(), repeat('x', 100000);\nBEGIN;\nSELECT 1;\nCOMMIT;\n")
        .unwrap();
    for mode in ["simple", "extended", "prepared"] {
        let output = pgbench(&pooler, &["-c", "16", "-j", "16", "-t", "50", "-M", mode, "-f", text(&script)])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("error"), "{mode}: {errors}");
    }
    let copy = |sql: &str, input: &str| {
        let target = format!("host=127.0.0.1 port={} user=app dbname=app sslmode=require", pooler.port);
        let command = format!("psql -XAtq -v ON_ERROR_STOP=1 -c \"{sql}\" '{target}' {input}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]);
        support::process::run(shell)
    };
    let out = copy("COPY big TO STDOUT", "");
    assert_eq!(out.lines().count(), 20_000);
    let file = authority.certificate().with_file_name("rows");
    std::fs::write(&file, &out).unwrap();
    copy("TRUNCATE big", "");
    copy("COPY big FROM STDIN", &format!("< {}", text(&file)));
    assert_eq!(copy("SELECT count(*), sum(length(line)) FROM big", "").trim(), "20000|19200000");
}

#[tokio::test]
async fn the_console_and_the_log_say_who_uses_tls() {
    let (_authority, _, pooler) = encrypted(|config| config).await;
    let target = format!("host=127.0.0.1 port={} user=app dbname=pgbouncer sslmode=require", pooler.port);
    let console = |command: &str| {
        let mut psql = psql_command();
        psql.args(["-XAt", "-c", command, &target]);
        support::process::run(psql)
    };
    let mut client = pgbench(&pooler, &["-c", "1", "-T", "20", "-f", "/dev/stdin"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut client.stdin.take().unwrap(), b"SELECT 1;\n").unwrap();
    // PostgreSQL 15 knows one curve, its ssl_ecdh_curve.
    let (tls, of_server) =
        ("TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519", "TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=prime256v1");
    let has = |table: &str, tls: &str, count| console(table).matches(&format!("|{tls}|")).count() == count;
    eventually("pgbench, the console and a server with TLS", async || {
        has("SHOW CLIENTS", tls, 2) && has("SHOW SERVERS", of_server, 1)
    })
    .await;
    pooler.logs("login attempt: db=app user=app tls=TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519 ").await;
    client.kill().unwrap();
    client.wait().unwrap();
}

#[tokio::test]
async fn c9_a_cancel_request_reaches_a_server_over_tls() {
    let (_authority, _, pooler) = encrypted(|config| config).await;
    let target = format!("host=127.0.0.1 port={} user=app dbname=app sslmode=require", pooler.port);
    let mut psql = psql_command();
    psql.args(["-XAt", "-c", "SELECT pg_sleep(60)", &target]).stderr(Stdio::piped());
    let child = psql.spawn().unwrap();
    eventually("the query runs", async || {
        pooler.number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active' AND pid <> pg_backend_pid()").await == 1
    })
    .await;
    support::process::signal(child.id(), "INT");
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("canceling statement due to user request"), "{errors}");
}

#[tokio::test]
async fn a3_psycopg_begins_with_tls_at_once_if_told_so() {
    let (authority, _, pooler) = encrypted(|config| config).await;
    let target = format!(
        "host=127.0.0.1 port={} user=app dbname=app sslmode=verify-full sslnegotiation=direct sslrootcert={}",
        pooler.port,
        text(&authority.certificate())
    );
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
    let mut command = Command::new(python);
    command.args(["-c", "import psycopg, sys; c = psycopg.connect(sys.argv[1]); print(c.execute('SELECT 42').fetchone()[0], c.pgconn.ssl_in_use)"]);
    command.arg(&target);
    assert_eq!(support::process::run(command).trim(), "42 True");
}

#[tokio::test]
async fn a_reload_shows_the_new_certificate_and_leaves_clients_alone() {
    let (authority, shown, pooler) = encrypted(|config| config.pool_size(2)).await;
    let checked = format!("sslmode=verify-full sslrootcert={}", text(&authority.certificate()));
    let reload = || psql_console(&pooler, "RELOAD");
    let load = pgbench(&pooler, &["-c", "2", "-T", "4", "-S"]);
    pooler.sql("CREATE TABLE pgbench_accounts (aid int, abalance int)").await;
    pooler.sql("CREATE TABLE pgbench_branches (bid int)").await;
    pooler.sql("INSERT INTO pgbench_branches VALUES (1)").await;
    pooler.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app").await;
    let mut load = load;
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(psql(&pooler, &checked), "TLSv1.3");
    assert_eq!(reload(), "RELOAD");
    let servers =
        || async { pooler.number("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'").await };
    assert!(servers().await > 0, "nothing has changed: the servers stay");

    let other = Authority::new();
    other.issue("pooler", "IP:127.0.0.1").replace(&shown);
    assert_eq!(reload(), "RELOAD");
    let error = psql(&pooler, &checked);
    assert!(error.contains("certificate verify failed"), "the certificate is another CA's now: {error}");
    let by_other = format!("sslmode=verify-full sslrootcert={}", text(&other.certificate()));
    assert_eq!(psql(&pooler, &by_other), "TLSv1.3");

    std::fs::write(&shown.certificate, "no certificate").unwrap();
    assert!(reload().contains("RELOAD failed, see logs for additional details"));
    assert!(pooler.log().contains("client_tls_cert_file: "), "{}", pooler.log());
    assert_eq!(psql(&pooler, &by_other), "TLSv1.3", "the old certificate stays");
    let output = load.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("error"), "{errors}");
}

fn psql_console(pooler: &Pooler, command: &str) -> String {
    let target = format!("host=127.0.0.1 port={} user=app dbname=pgbouncer sslmode=require", pooler.port);
    let mut psql = psql_command();
    psql.args(["-XAt", "-c", command, &target]);
    let output = psql.output().expect("psql is installed");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        .trim()
        .to_owned()
}

#[tokio::test]
async fn ciphers_and_versions_are_those_that_are_set_on_both_sides() {
    let both = |name: &str, value: &str| {
        [(format!("client_tls{name}"), value.to_owned()), (format!("server_tls{name}"), value.to_owned())]
    };
    let client = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    // What SHOW CLIENTS says of a client, and what PostgreSQL says of its connection with us.
    for (settings, of_client, of_server) in [
        (
            both("13_ciphers", "TLS_AES_128_GCM_SHA256").to_vec(),
            "TLSv1.3/TLS_AES_128_GCM_SHA256/ECDH=X25519",
            ["TLSv1.3", "TLS_AES_128_GCM_SHA256"],
        ),
        (
            [both("_protocols", "tlsv1.2"), both("_ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256")].concat(),
            "TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256/ECDH=X25519",
            ["TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        ),
        (
            client("client_tls_ecdhcurve", "prime256v1").to_vec(),
            "TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=prime256v1",
            ["TLSv1.3", "TLS_AES_256_GCM_SHA384"],
        ),
    ] {
        let with = |config: Config| {
            settings.iter().fold(config, |config, (name, value)| config.setting(name, value))
        };
        let (_authority, _shown, pooler) = encrypted(with).await;
        let target = format!("host=127.0.0.1 port={} user=app dbname=app sslmode=require", pooler.port);
        let mut psql = psql_command();
        let sql = "SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        psql.args(["-XAt", "-c", sql, &target]);
        assert_eq!(support::process::run(psql).trim(), of_server.join("|"), "{settings:?}");
        pooler.logs(&format!("login attempt: db=app user=app tls={of_client} ")).await;
    }
}

#[tokio::test]
async fn wishes_that_cannot_be_met_are_named() {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost");
    let config = Pooler::config().shows("prefer", &shown).setting("client_tls_protocols", "tlsv1.1,tlsv1.2");
    let config = config.setting("client_tls_ciphers", "AES256-SHA:ECDHE-ECDSA-AES128-GCM-SHA256");
    let pooler = config.setting("client_tls_ecdhcurve", "prime256v1").start().await;
    assert_eq!(psql(&pooler, "sslmode=require"), "TLSv1.2");
    pooler.logs("client_tls_protocols: tlsv1.0 and tlsv1.1 are not supported, and left out").await;
    pooler.logs("client_tls_ciphers: cipher AES256-SHA is not supported, and left out").await;

    let missing = shown.certificate.with_file_name("missing.pem");
    for (setting, value, wanted) in [
        ("client_tls_protocols", "tlsv1.0", "allow tlsv1.2 or tlsv1.3"),
        ("client_tls_cert_file", text(&missing), "client_tls_cert_file: cannot read"),
        ("client_tls_cert_file", text(&shown.key), "has no certificate in PEM format"),
        ("client_tls_key_file", text(&shown.certificate), "has no private key"),
        ("client_tls_sslmode", "verify-ca", "client_tls_ca_file must be set"),
        ("client_tls_cert_file", "", "client_tls_cert_file must be too"),
    ] {
        let (code, log) = Pooler::config().shows("require", &shown).setting(setting, value).refused().await;
        assert_eq!(code, Some(1), "{setting}={value}");
        assert!(log.contains(wanted), "{setting}={value}: {log}");
    }
    let stranger = authority.issue("other", "DNS:other");
    let (_, log) = Pooler::config()
        .shows("require", &shown)
        .setting("client_tls_key_file", text(&stranger.key))
        .refused()
        .await;
    assert!(log.contains("client_tls_key_file: "), "{log}");
}

/// A client of the console that leaves in the middle of a command, as libpq does it: Terminate, then TLS's own
/// goodbye.
const LEAVES: &str = "
import sys, select
from psycopg import pq
port, mode, command = sys.argv[1:]
conn = pq.PGconn.connect(f'host=127.0.0.1 port={port} user=admin dbname=pgbouncer sslmode={mode}'.encode())
assert conn.status == pq.ConnStatus.OK, conn.error_message
conn.send_query(command.encode())
conn.flush()
assert not select.select([conn.socket], [], [], 0.5)[0], 'the command waits'
conn.finish()
";

#[tokio::test]
async fn a_console_client_that_leaves_while_its_command_waits_is_noticed_with_and_without_tls() {
    let authority = Authority::new();
    let pooler = Pooler::config()
        .shows("allow", &authority.issue("pooler", "DNS:localhost"))
        .mode("session")
        .start()
        .await;
    let mut busy = pooler.client().await;
    busy.query("BEGIN").await.is("C Z(T)");
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
    pooler.admin("RECONNECT").await;
    for command in ["WAIT_CLOSE", "PAUSE app"] {
        for mode in ["require", "disable"] {
            let mut client = Command::new(&python);
            let output = client.args(["-c", LEAVES, &pooler.port.to_string(), mode, command]).output();
            let output = output.expect("scripts/setup drivers has made it");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let consoles = async || {
                let clients = pooler.admin("SHOW CLIENTS").await;
                clients.iter().filter(|client| client["database"] == "pgbouncer").count()
            };
            // The one that asks is the other one.
            eventually(&format!("{command} {mode}: it is gone"), async || consoles().await == 1).await;
        }
    }
    busy.query("COMMIT").await.is("C Z(I)");
}
