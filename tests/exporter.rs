//! An exporter that people run beside PgBouncer reads our console and finds all that it looks for.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::process::{free_port, private_directory, signal, spawn};
use support::{Login, Pooler, Raw, eventually, http};
use tokio::net::TcpStream;

/// All that `prometheus-pgbouncer-exporter` makes of a PgBouncer, by the table that it reads.
const METRICS: &[&str] = &[
    // SHOW STATS
    "pgbouncer_stats_transactions_total",
    "pgbouncer_stats_queries_total",
    "pgbouncer_stats_transactions_duration_microseconds_total",
    "pgbouncer_stats_waiting_duration_microseconds_total",
    "pgbouncer_stats_queries_duration_microseconds_total",
    "pgbouncer_stats_received_bytes_total",
    "pgbouncer_stats_sent_bytes_total",
    // SHOW POOLS
    "pgbouncer_pools_client_active_connections",
    "pgbouncer_pools_client_waiting_connections",
    "pgbouncer_pools_server_active_connections",
    "pgbouncer_pools_server_idle_connections",
    "pgbouncer_pools_server_used_connections",
    "pgbouncer_pools_server_testing_connections",
    "pgbouncer_pools_server_login_connections",
    "pgbouncer_pools_client_maxwait_seconds",
    // SHOW DATABASES; it looks for the reserve under the name that PgBouncer had before 1.24.
    "pgbouncer_databases_database_pool_size",
    "pgbouncer_databases_database_current_connections",
    "pgbouncer_databases_database_max_connections",
    // SHOW CONFIG
    "pgbouncer_config_max_client_conn",
    "pgbouncer_config_max_user_connections",
];

/// A running exporter. It ends with its value.
struct Exporter {
    port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Exporter {
    async fn start(pooler: &Pooler) -> Exporter {
        let directory = private_directory("weir-exporter-");
        let port = free_port();
        let file = directory.path().join("config.yml");
        let dsn = format!("postgresql://watcher:watcher-secret@127.0.0.1:{}/pgbouncer", pooler.port);
        let text = format!("exporter_port: {port}\npgbouncers:\n  - dsn: {dsn}\n");
        std::fs::write(&file, text).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/pgbouncer-exporter");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).arg("--config").arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command);
        eventually("the exporter listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok())
            .await;
        Exporter { port, child, _directory: directory }
    }

    /// Each series with its value.
    async fn scrape(&self) -> HashMap<String, f64> {
        let (_, text) = http::get(("127.0.0.1", self.port), "/metrics").await;
        let series = text.lines().filter(|line| line.starts_with("pgbouncer_"));
        series
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, n)| (name.to_owned(), n.parse().unwrap()))
            .collect()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        signal(self.child.id(), "KILL");
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_exporter_for_prometheus_finds_every_column_and_its_numbers() {
    let config = Pooler::config().setting("auth_type", "scram-sha-256").setting("stats_users", "watcher");
    let users = "\"app\" \"app-secret\"\n\"admin\" \"admin-secret\"\n\"watcher\" \"watcher-secret\"\n";
    let pooler = config.users(users).pool_size(3).start().await;
    let login = Login::new("app", "app").password("app-secret");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    for _ in 0..5 {
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
    }
    client.query("BEGIN").await.is("C Z(T)");
    let exporter = Exporter::start(&pooler).await;
    let found = exporter.scrape().await;
    assert_eq!(found["pgbouncer_up"], 1.0);
    for metric in METRICS {
        let is_there = |name: &String| name.split('{').next() == Some(metric);
        assert!(found.keys().any(is_there), "{metric} is missing in {:#?}", found.keys());
    }
    for (series, value) in [
        ("pgbouncer_stats_queries_total{database=\"app\"}", 6.0),
        ("pgbouncer_pools_client_active_connections{database=\"app\",user=\"app\"}", 1.0),
        ("pgbouncer_pools_server_active_connections{database=\"app\",user=\"app\"}", 1.0),
        ("pgbouncer_config_max_client_conn", 1000.0),
    ] {
        assert_eq!(found.get(series), Some(&value), "{series} in {found:#?}");
    }
    let size = format!(
        "pgbouncer_databases_database_pool_size{{backend_database=\"{}\",database=\"app\"}}",
        pooler.database
    );
    assert_eq!(found.get(&size), Some(&3.0), "{size} in {found:#?}");
}
