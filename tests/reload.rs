//! RELOAD while pgbench works over TLS: certificates, users, pool sizes and databases change, and nobody who
//! is there notices.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::certificates::{Authority, text};
use support::clients;
use support::process::run;
use support::{Pooler, Postgres, eventually};

fn psql(pooler: &Pooler, options: &str, sql: &str) -> Command {
    let target = format!("host=127.0.0.1 port={} {options}", pooler.port);
    let mut command = clients::psql();
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, &target]);
    command.env("PGPASSWORD", "app-secret");
    command
}

/// pgbench over TLS until it is ended: half of it reconnects for each transaction.
fn load(pooler: &Pooler, options: &[&str]) -> Child {
    let mut command = clients::program("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "app", "-n", "-T", "12"]);
    command.args(options).arg("app").env("PGSSLMODE", "require").env("PGPASSWORD", "app-secret");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn certificates_users_pool_sizes_and_databases_change_under_load_over_tls_without_an_error() {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "IP:127.0.0.1");
    let of_server = authority.issue("db", "IP:127.0.0.1");
    let certificate = format!("ssl_cert_file={}", text(&of_server.certificate));
    let key = format!("ssl_key_file={}", text(&of_server.key));
    let postgres = Arc::new(Postgres::start(&["ssl=on", &certificate, &key]).await);
    let config = Pooler::config().postgres(postgres).pool_size(2).setting("auth_type", "scram-sha-256");
    let pooler = config
        .setting("client_tls_sslmode", "require")
        .setting("client_tls_cert_file", text(&shown.certificate))
        .setting("client_tls_key_file", text(&shown.key))
        .setting("server_tls_sslmode", "verify-full")
        .setting("server_tls_ca_file", text(&authority.certificate()))
        .start()
        .await;
    let script = pooler.directory().join("load.sql");
    std::fs::write(&script, "SELECT 1;\nBEGIN;\nSELECT pg_sleep(0.002);\nCOMMIT;\n").unwrap();
    let script = text(&script);
    // A thread for each: pgbench prepares while it waits for nothing else, though another client of its thread
    // may have the server that it waits for.
    let stays = load(&pooler, &["-c", "6", "-j", "6", "-M", "prepared", "-f", script]);
    let comes_and_goes = load(&pooler, &["-c", "2", "-j", "2", "-C", "-f", script]);
    let console = |sql: &str| {
        let mut command = psql(&pooler, "user=admin dbname=pgbouncer sslmode=require", sql);
        run(std::mem::replace(command.env("PGPASSWORD", "admin-secret"), Command::new("true")))
    };
    let as_app = |dbname: &str, ca: &Authority| {
        let checked =
            format!("user=app dbname={dbname} sslmode=verify-full sslrootcert={}", text(&ca.certificate()));
        run(psql(&pooler, &checked, "SELECT 'in'"))
    };
    let line = format!("app = host=127.0.0.1 port={} dbname={}", pooler.postgres.port, pooler.database);
    assert_eq!(as_app("app", &authority), "in\n");

    // Another certificate, of another CA.
    let other = Authority::new();
    other.issue("pooler", "IP:127.0.0.1").replace(&shown);
    console("RELOAD");
    assert_eq!(as_app("app", &other), "in\n");

    // A bigger pool, then a smaller one.
    for (from, to) in [("2", "5"), ("5", "1"), ("1", "3")] {
        pooler.edit(&format!("default_pool_size = {from}"), &format!("default_pool_size = {to}"));
        console("RELOAD");
        let to: usize = to.parse().unwrap();
        eventually(&format!("{to} servers work"), async || {
            let servers = console("SHOW SERVERS");
            servers.lines().filter(|row| row.contains("|app|app|")).count() == to
        })
        .await;
    }

    // A new database and a new user, and both leave again.
    pooler.edit(
        &line,
        &format!("more = host=127.0.0.1 port={} dbname={}\n{line}", pooler.postgres.port, pooler.database),
    );
    let users = pooler.directory().join("users.txt");
    let old_users = std::fs::read_to_string(&users).unwrap();
    std::fs::write(&users, format!("{old_users}\"postgres\" \"new-secret\"\n")).unwrap();
    console("RELOAD");
    assert_eq!(as_app("more", &other), "in\n");
    let mut as_new = psql(&pooler, "user=postgres dbname=more sslmode=require", "SELECT session_user");
    as_new.env("PGPASSWORD", "new-secret");
    assert_eq!(run(as_new), "postgres\n");
    pooler.edit("more = ", "; more = ");
    std::fs::write(&users, old_users).unwrap();
    console("RELOAD");
    let mut gone = psql(&pooler, "user=app dbname=more sslmode=require", "SELECT 1");
    let gone = String::from_utf8_lossy(&gone.output().unwrap().stderr).into_owned();
    assert!(gone.contains("no such database: more"), "{gone}");

    for child in [stays, comes_and_goes] {
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !errors.contains("error") && !errors.contains("abort"),
            "{errors}"
        );
        assert!(
            report.contains("number of failed transactions: 0 ") || !report.contains("failed"),
            "{report}"
        );
    }
}
