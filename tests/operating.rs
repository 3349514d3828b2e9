//! Operating it: metrics and health pages, the log, signals, draining, and what is said when it cannot
//! start.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use futures_util::future::join_all;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::http::get;
use support::message::{parse, query, run_of, sync, terminate};
use support::pages::{samples, with_pages};
use support::pooler::is_ours;
use support::process::unprivileged;
use support::{Gate, Login, Pooler, Raw, eventually};

// ---- pages ----

#[tokio::test]
async fn metrics_count_what_clients_do() {
    if !is_ours() {
        return;
    }
    let (pooler, address) = with_pages(Pooler::config().pool_size(2)).await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let before = samples(address).await;
    for _ in 0..5 {
        client.query("BEGIN; SELECT 1; COMMIT").await.is("C T D(1) C C Z(I)");
    }
    client.query("SELECT broken").await.is("E(42703) Z(I)");
    pooler.refuses(&Login::new("app", "nowhere")).await;
    let after = samples(address).await;
    let app = r#"{database="app"}"#;
    let moved = |key: &str| after[key] - before.get(key).copied().unwrap_or_default();
    for name in ["pgweir_transactions_total", "pgweir_queries_total", "pgweir_server_assignments_total"] {
        assert_eq!(moved(&format!("{name}{app}")), 6.0, "{name}");
    }
    for name in ["pgweir_transaction_seconds_count", "pgweir_queue_wait_seconds_count"] {
        assert_eq!(moved(&format!("{name}{app}")), 6.0, "{name}");
    }
    assert!(moved(&format!("pgweir_received_bytes_total{app}")) > 100.0);
    assert!(moved(&format!("pgweir_sent_bytes_total{app}")) > 100.0);
    assert_eq!(moved(r#"pgweir_errors_total{sqlstate="08P01"}"#), 1.0);
    let pool =
        |name: &str, state: &str| after[&format!(r#"{name}{{database="app",user="app",state="{state}"}}"#)];
    assert_eq!(pool("pgweir_client_connections", "idle"), 1.0);
    assert_eq!(pool("pgweir_server_connections", "idle"), 1.0);
    assert_eq!(after[r#"pgweir_pool_size{database="app",user="app"}"#], 2.0);
    assert_eq!((after["pgweir_up"], after["pgweir_login_seconds_count"]), (1.0, 1.0));
    // Buckets are cumulative and end in all.
    let bucket = r#"pgweir_transaction_seconds_bucket{database="app",le=""#;
    assert_eq!(after[&format!("{bucket}+Inf\"}}")], after[&format!("pgweir_transaction_seconds_count{app}")]);
}

#[tokio::test]
async fn metrics_tell_of_commits_prepared_statements_and_stalls() {
    if !is_ours() {
        return;
    }
    let (pooler, address) = with_pages(Pooler::config().pool_size(2)).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    for end in ["COMMIT", "ROLLBACK", "COMMIT"] {
        a.query(&format!("BEGIN; SELECT 1; {end}")).await;
        a.query("BEGIN").await.is("C(BEGIN) Z(T)");
        a.query("SELECT pg_sleep(0.2)").await.is("T D() C(SELECT 1) Z(T)");
        a.query(end).await.is(&format!("C({end}) Z(I)"));
    }
    for client in [&mut a, &mut b] {
        client.ask(run_of([parse("s", "SELECT 7"), sync()])).await.is("1 Z(I)");
    }
    eventually("a tick has come", async || samples(address).await["pgweir_worker_stall_seconds_count"] > 0.0)
        .await;
    let after = samples(address).await;
    let app = r#"{database="app"}"#;
    assert_eq!(after[&format!("pgweir_commit_seconds_count{app}")], 4.0, "a ROLLBACK is none");
    let sum = after[&format!("pgweir_commit_seconds_sum{app}")];
    assert!(sum > 0.0 && sum < 0.4, "the time of the COMMITs alone: {sum} s");
    assert_eq!(after[&format!("pgweir_prepared_client_parses_total{app}")], 2.0);
    assert_eq!(after[&format!("pgweir_prepared_hits_total{app}")], 1.0);
}

/// How many queries one client gets answered in this time.
async fn queries_in(client: &mut Raw, time: Duration) -> u32 {
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end {
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
        count += 1;
    }
    count
}

/// A scrape takes as long with as without them, and who is served meanwhile hardly notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_make_no_scrape_dear() {
    if !is_ours() {
        return;
    }
    // Each has a socket here and one in the pooler.
    let descriptors = support::descriptors::raise_limit();
    assert!(descriptors >= 11_000, "ulimit -n is {descriptors} at most: this test needs 11000");
    let config = Pooler::config().setting("max_client_conn", "10100").setting("auth_type", "trust");
    let (pooler, address) = with_pages(config).await;
    let mut busy = pooler.client().await;
    let (_, alone) = get(address, "/metrics").await;
    let mut idle = Vec::new();
    while idle.len() < 10_000 {
        let logins = (0..100).map(|_| Raw::login_owned(pooler.unix(), Login::new("app", "app")));
        idle.extend(join_all(logins).await);
    }
    let (_, crowded) = get(address, "/metrics").await;
    let more = crowded.len() as f64 / alone.len() as f64;
    assert!(more < 1.1, "the page has grown from {} to {} bytes", alone.len(), crowded.len());
    // The best of some turns: other programs may take the machine in any of them.
    let (mut calm, mut scraped) = (0, 0);
    for _ in 0..4 {
        calm = calm.max(queries_in(&mut busy, Duration::from_millis(500)).await);
        let scraping = tokio::spawn(async move {
            // Ten times as often as anybody does.
            let mut pause = tokio::time::interval(Duration::from_millis(100));
            loop {
                pause.tick().await;
                get(address, "/metrics").await;
            }
        });
        scraped = scraped.max(queries_in(&mut busy, Duration::from_millis(500)).await);
        scraping.abort();
    }
    let kept = f64::from(scraped) / f64::from(calm);
    println!("  queries answered: {calm} without scrapes, {scraped} with ten a second: {kept:.2}");
    assert!(kept > 0.5, "{calm} queries without scrapes, {scraped} with ten a second");
}

/// As `pgbouncer_exporter` of Prometheus' community has them, with its labels and units.
#[tokio::test]
async fn the_names_of_an_exporter_for_pgbouncer_can_be_had_too() {
    if !is_ours() {
        return;
    }
    let (pooler, address) = with_pages(Pooler::config().setting("max_client_conn", "77")).await;
    assert!(!samples(address).await.contains_key("pgbouncer_up"), "only where it is wanted");
    pooler.admin("SET metrics_pgbouncer_names = 1").await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    b.send(query("SELECT 1")).await;
    pooler.clients_wait(1).await;
    eventually("somebody has waited for a while", async || {
        samples(address).await[r#"pgbouncer_pools_client_maxwait_seconds{database="app",user="app"}"#] > 0.1
    })
    .await;
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    b.ready(1).await.is("T D(1) C(SELECT 1) Z(I)");
    let after = samples(address).await;
    let count = |name: &str| after.get(name).copied().unwrap_or_else(|| panic!("{name} in {after:#?}"));
    assert_eq!(count("pgbouncer_up"), 1.0);
    assert_eq!(count(r#"pgbouncer_version_info{version="1.25.2"}"#), 1.0);
    assert_eq!(count("pgbouncer_config_max_client_connections"), 77.0);
    assert_eq!(count("pgbouncer_used_clients"), 2.0 + count("pgbouncer_login_clients"));
    let pool = r#"{database="app",user="app"}"#;
    for (name, value) in [
        ("client_active", 2.0),
        ("client_waiting", 0.0),
        ("server_active", 0.0),
        ("server_idle", 1.0),
        ("server_used", 0.0),
        ("server_testing", 0.0),
        ("server_login", 0.0),
    ] {
        assert_eq!(count(&format!("pgbouncer_pools_{name}_connections{pool}")), value, "{name}");
    }
    let app = r#"{database="app"}"#;
    assert_eq!(count(&format!("pgbouncer_stats_queries_pooled_total{app}")), 3.0);
    assert_eq!(count(&format!("pgbouncer_stats_sql_transactions_pooled_total{app}")), 2.0);
    let waited = count(&format!("pgbouncer_stats_client_wait_seconds_total{app}"));
    let within = count(&format!("pgbouncer_stats_server_in_transaction_seconds_total{app}"));
    assert!((0.1..30.0).contains(&waited) && (0.1..30.0).contains(&within), "seconds: {waited} {within}");
    let databases: Vec<_> =
        after.keys().filter(|key| key.starts_with("pgbouncer_databases_current")).collect();
    let [database] = &databases[..] else { panic!("{databases:?}") };
    for label in ["name=\"app\"", "host=", "port=", "database=", "force_user=", "pool_mode="] {
        assert!(database.contains(label), "{label} in {database}");
    }
    assert_eq!(after[*database], 1.0);
}

#[tokio::test]
async fn waiting_clients_show_in_the_metrics() {
    if !is_ours() {
        return;
    }
    let (pooler, address) = with_pages(Pooler::config()).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    b.send(query("SELECT 1")).await;
    pooler.clients_wait(1).await;
    let samples = samples(address).await;
    let labels = r#"{database="app",user="app""#;
    assert_eq!(samples[&format!(r#"pgweir_client_connections{labels},state="waiting"}}"#)], 1.0);
    assert_eq!(samples[&format!(r#"pgweir_client_connections{labels},state="active"}}"#)], 1.0);
    assert_eq!(samples[&format!("pgweir_pool_in_use{labels}}}")], 1.0);
    assert!(samples[&format!("pgweir_pool_maxwait_seconds{labels}}}")] > 0.0);
}

#[tokio::test]
async fn readyz_answers_503_from_sigterm_on_and_livez_200_to_the_end() {
    if !is_ours() {
        return;
    }
    let (mut pooler, address) = with_pages(Pooler::config()).await;
    let client = pooler.client().await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(address, path).await, (200, "ok\n".to_owned()), "{path}");
    }
    assert_eq!(get(address, "/nothing").await.0, 404);
    pooler.signal("TERM");
    eventually("not ready", async || get(address, "/readyz").await.0 == 503).await;
    assert_eq!(get(address, "/livez").await.0, 200);
    assert_eq!(samples(address).await["pgweir_up"], 1.0);
    drop(client);
    assert!(pooler.wait().success());
}

// ---- the log ----

#[tokio::test]
async fn log_lines_have_pgbouncers_form_and_words() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    client.send(terminate()).await;
    pooler.logs("closing because: client close request (age=").await;
    pooler.refuses(&Login::new("app", "nowhere")).await;
    pooler.logs("no such database: nowhere").await;
    let log = pooler.log();
    let pid = format!(" UTC [{}] ", pooler.pid());
    for line in log.lines() {
        let (time, rest) = line.split_once(&pid).unwrap_or_else(|| panic!("{pid} in {line}"));
        let shape: String =
            time.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
        assert_eq!(shape, "0000-00-00 00:00:00.000", "{line}");
        let (level, _) = rest.split_once(' ').unwrap();
        assert!(["LOG", "WARNING", "ERROR", "FATAL"].contains(&level), "{line}");
    }
    let has = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    for words in [
        &["LOG process up: "][..],
        &["LOG listening on 127.0.0.1:"],
        &["LOG C-0x", ": app/app@127.0.0.1:", " login attempt: db=app user=app tls=no replication=no"],
        &["LOG S-0x", ": app/app@127.0.0.1:", " new connection to server"],
        &["WARNING C-0x", "/app@127.0.0.1:", " pooler error: no such database: nowhere"],
    ] {
        assert!(has(words), "{words:?} in\n{log}");
    }
}

#[tokio::test]
async fn log_settings_leave_out_what_they_say() {
    let pooler = Pooler::config()
        .setting("log_connections", "0")
        .setting("log_disconnections", "0")
        .setting("log_pooler_errors", "0")
        .start()
        .await;
    let mut client = pooler.client().await;
    client.send(terminate()).await;
    assert!(client.rest().await.closed);
    pooler.refuses(&Login::new("app", "nowhere")).await;
    let log = pooler.log();
    let absent = ["app/app@127.0.0.1:", "login attempt", "pooler error", "client close request"];
    let clients: Vec<_> = log.lines().filter(|line| line.contains(" C-0x")).collect();
    assert!(!clients.iter().any(|line| absent[1..].iter().any(|text| line.contains(text))), "{log}");
}

#[tokio::test]
async fn stats_are_logged_each_period() {
    let pooler = Pooler::config().setting("stats_period", "1").start().await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    pooler.logs("LOG stats: ").await;
    let log = pooler.log();
    let line = log.lines().find(|line| line.contains("LOG stats: ")).unwrap();
    for word in [" xacts/s", " queries/s", " in ", " out ", " xact ", " query ", " wait "] {
        assert!(line.contains(word), "{word} in {line}");
    }
}

#[tokio::test]
async fn the_log_is_json_on_request_with_the_same_words() {
    if !is_ours() {
        return;
    }
    let pooler = Pooler::config().environment("PGWEIR_LOG_FORMAT", "json").start().await;
    let mut client = pooler.client().await;
    client.send(terminate()).await;
    pooler.logs("closing because: client close request").await;
    let log = pooler.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let message = |line: &serde_json::Value| line["message"].as_str().unwrap_or_default().to_owned();
    assert!(lines.iter().any(|line| message(line).contains("login attempt: db=app user=app")), "{log}");
    assert!(lines.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()), "{log}");
}

#[tokio::test]
async fn the_logfile_is_opened_again_on_sighup() {
    let pooler = Pooler::config().setting("logfile", "{folder}/pooler.log").start().await;
    let (file, moved) = (pooler.directory().join("pooler.log"), pooler.directory().join("moved.log"));
    let started = async || fs::read_to_string(&file).is_ok_and(|log| log.contains("process up"));
    eventually("the log begins", started).await;
    fs::rename(&file, &moved).unwrap();
    pooler.signal("HUP");
    // PgBouncer opens it with the next line that it has to log.
    eventually("a new log file", async || {
        drop(pooler.client().await);
        file.exists()
    })
    .await;
    let told =
        async || fs::read_to_string(&moved).is_ok_and(|log| log.contains("got SIGHUP, re-reading config"));
    eventually("the old one says why", told).await;
    drop(pooler.client().await);
    eventually("it is used", async || fs::read_to_string(&file).unwrap().contains("login attempt")).await;
}

// ---- signals ----

async fn closes_its_listeners(pooler: &Pooler) {
    eventually("new connections are refused", async || Raw::connect(&pooler.tcp()).await.is_err()).await;
}

#[tokio::test]
async fn sighup_reads_the_settings_again_and_a_bad_file_changes_nothing() {
    let pooler = Pooler::config().start().await;
    let value = async || {
        let config = pooler.admin("SHOW CONFIG").await;
        config.iter().find(|row| row["key"] == "default_pool_size").unwrap()["value"].clone()
    };
    pooler.edit("default_pool_size = 1", "default_pool_size = 7");
    pooler.signal("HUP");
    eventually("the new size", async || value().await == "7").await;
    pooler.edit("default_pool_size = 7", "default_pool_size = seven");
    pooler.signal("HUP");
    eventually("it is read", async || pooler.log().matches("got SIGHUP, re-reading config").count() == 2)
        .await;
    if is_ours() {
        // PgBouncer has set everything before the bad line to its default by then.
        pooler.logs("default_pool_size is seven: it must be").await;
        assert_eq!(value().await, "7");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn sigusr1_pauses_and_sigusr2_goes_on() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    pooler.signal("USR1");
    pooler.logs("got SIGUSR1, pausing all activity").await;
    // The log says it first, and then it is done.
    eventually("it is paused", async || {
        let state = pooler.admin("SHOW STATE").await;
        state.iter().any(|row| row["key"] == "paused" && row["value"] == "yes")
    })
    .await;
    client.send(query("SELECT 1")).await;
    pooler.clients_wait(1).await;
    eventually("no server is left", async || {
        pooler.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'").await == 0
    })
    .await;
    pooler.signal("USR2");
    client.ready(1).await.is("T D(1) C Z(I)");
    pooler.logs("got SIGUSR2, continuing from ").await;
}

#[tokio::test]
async fn sigterm_refuses_new_logins_serves_the_clients_and_ends_with_the_last() {
    let mut pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("BEGIN").await.is("C(BEGIN) Z(T)");
    pooler.signal("TERM");
    pooler.logs("got SIGTERM, shutting down, waiting for all clients disconnect").await;
    closes_its_listeners(&pooler).await;
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    for client in [&mut a, &mut b] {
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        client.query("SELECT 2").await.is("T D(2) C Z(I)");
    }
    drop(a);
    b.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(pooler.runs());
    drop(b);
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    pooler.signal("TERM");
    pooler.logs("got SIGTERM").await;
    pooler.signal("TERM");
    pooler.wait();
    assert!(client.rest().await.closed);
}

#[tokio::test]
async fn sigint_lets_transactions_end_and_then_goes() {
    let mut pooler = Pooler::config().pool_size(2).start().await;
    let (mut inside, mut idle) = (pooler.client().await, pooler.client().await);
    inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
    pooler.signal("INT");
    pooler.logs("got SIGINT, shutting down, waiting for all servers connections to be released").await;
    closes_its_listeners(&pooler).await;
    inside.query("SELECT 1").await.is("T D(1) C Z(T)");
    assert!(pooler.runs());
    inside.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert!(pooler.wait().success());
    assert!(idle.rest().await.closed);
}

#[tokio::test]
async fn sigquit_ends_at_once_and_removes_pidfile_and_socket() {
    let mut pooler = Pooler::config().setting("pidfile", "{folder}/pooler.pid").start().await;
    let pidfile = pooler.directory().join("pooler.pid");
    eventually("the pidfile is there", async || {
        fs::read_to_string(&pidfile).is_ok_and(|text| text.trim() == pooler.pid().to_string())
    })
    .await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    pooler.signal("QUIT");
    pooler.wait();
    assert!(client.rest().await.closed);
    if is_ours() {
        assert!(!pidfile.exists());
        let support::Address::Unix(socket) = pooler.unix() else { panic!("a Unix socket has a path") };
        assert!(!socket.exists());
    }
}

// ---- draining ----

/// pgbench in the background, through the pooler. Each transaction is one row of `done`.
fn pgbench(pooler: &Pooler, mode: &str) -> std::process::Child {
    let script = pooler.directory().join("script.sql");
    let text = "BEGIN;\nINSERT INTO done DEFAULT VALUES;\nSELECT pg_sleep(0.005);\nCOMMIT;\n";
    fs::write(&script, text).unwrap();
    let mut command = unprivileged(std::path::Path::new("pgbench"), "KILL");
    command.args(["-n", "-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "app"]);
    command.args(["-c", "12", "-j", "12", "-T", "60", "-M", mode, "-f"]).arg(script).arg("app");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    support::process::spawn(command)
}

/// Drains a loaded pooler, and compares what pgbench counts with what PostgreSQL has.
async fn drains(pool_mode: &str, size: u32, mode: &str) {
    let mut pooler = Pooler::config()
        .mode(pool_mode)
        .pool_size(size)
        .environment("PGWEIR_SHUTDOWN_DRAIN_TIMEOUT", "10")
        .start()
        .await;
    pooler.sql("CREATE TABLE done (n serial); GRANT ALL ON done, done_n_seq TO app").await;
    let load = pgbench(&pooler, mode);
    eventually("the load runs", async || pooler.number("SELECT count(*) FROM done").await > 100).await;
    pooler.signal("TERM");
    let began = Instant::now();
    assert!(pooler.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5), "drained in {:?}", began.elapsed());
    let output = load.wait_with_output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let processed =
        out.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let processed: i64 = processed.expect("pgbench counts").split('/').next().unwrap().parse().unwrap();
    assert_eq!(pooler.number("SELECT count(*) FROM done").await, processed, "{out}{errors}");
    // Each client was told between its transactions: at command 0, which is BEGIN.
    let aborts = errors.lines().filter(|line| line.contains("aborted in command"));
    let (at_begin, inside): (Vec<_>, Vec<_>) =
        aborts.partition(|line| line.contains("aborted in command 0 "));
    assert!(at_begin.len() >= 12 && inside.is_empty(), "{errors}");
    assert!(errors.contains("terminating connection due to administrator command"), "{errors}");
}

#[tokio::test]
async fn with_a_drain_timeout_sigterm_lets_every_begun_transaction_commit_and_cuts_none() {
    if is_ours() {
        drains("transaction", 4, "simple").await;
        drains("transaction", 4, "prepared").await;
    }
}

#[tokio::test]
async fn in_session_mode_a_drain_finds_the_boundary_between_two_transactions_without_a_pause() {
    if is_ours() {
        drains("session", 12, "simple").await;
    }
}

#[tokio::test]
async fn a_draining_pooler_tells_idle_clients_at_once_and_serves_who_waits() {
    if !is_ours() {
        return;
    }
    let mut pooler = Pooler::config().setting("shutdown_drain_timeout", "10").start().await;
    let (mut idle, mut busy, mut waiting) =
        (pooler.client().await, pooler.client().await, pooler.client().await);
    let mut gate = Gate::close(&pooler).await;
    busy.send(query(&gate.sql("busy"))).await;
    gate.is_reached_by(1).await;
    waiting.send(query("SELECT 'waited'")).await;
    pooler.clients_wait(1).await;
    pooler.signal("TERM");
    let told = idle.rest().await;
    told.is("E(57P01) EOF");
    assert_eq!(told.messages[0].field(b'M'), "terminating connection due to administrator command");
    closes_its_listeners(&pooler).await;
    gate.open().await;
    busy.rest().await.is("T D(busy) C Z(I) E(57P01) EOF");
    waiting.rest().await.is("T D(waited) C Z(I) E(57P01) EOF");
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn readiness_goes_before_the_listener() {
    if !is_ours() {
        return;
    }
    let config = Pooler::config().setting("shutdown_drain_timeout", "10");
    let (mut pooler, address) = with_pages(config.setting("shutdown_listen_delay", "1")).await;
    let began = Instant::now();
    pooler.signal("TERM");
    eventually("not ready", async || get(address, "/readyz").await.0 == 503).await;
    // A client that the Service still sends here is served, and told to go when the drain begins.
    let mut late = pooler.client().await;
    late.query("SELECT 1").await.is("T D(1) C Z(I)");
    late.rest().await.is("E(57P01) EOF");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn what_is_left_at_the_drain_timeout_is_cut() {
    if !is_ours() {
        return;
    }
    let mut pooler = Pooler::config().setting("shutdown_drain_timeout", "1").start().await;
    let mut inside = pooler.client().await;
    inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let began = Instant::now();
    pooler.signal("TERM");
    pooler.logs("got SIGTERM").await;
    inside.query("SELECT 1").await.is("T D(1) C Z(T)");
    assert!(pooler.wait().success());
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    assert!(inside.rest().await.closed);
    assert!(pooler.log().contains("shutdown_drain_timeout is over: cutting clients=1"), "{}", pooler.log());
}

#[tokio::test]
async fn in_session_mode_a_drain_ends_a_client_between_its_transactions() {
    if !is_ours() {
        return;
    }
    let config = Pooler::config().mode("session").pool_size(2);
    let mut pooler = config.setting("shutdown_drain_timeout", "10").start().await;
    let (mut idle, mut inside) = (pooler.client().await, pooler.client().await);
    idle.query("SELECT 1").await.is("T D(1) C Z(I)");
    inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
    pooler.signal("TERM");
    idle.rest().await.is("E(57P01) EOF");
    inside.query("SELECT 1").await.is("T D(1) C Z(T)");
    inside.send(query("COMMIT")).await;
    inside.rest().await.is("C(COMMIT) Z(I) E(57P01) EOF");
    assert!(pooler.wait().success());
}

// ---- start ----

#[tokio::test]
async fn a_bad_setting_ends_the_start_with_1_and_names_file_line_setting_value_and_what_is_allowed() {
    let (code, said) = Pooler::config().setting("pool_mode", "sometimes").refused().await;
    assert_eq!(code, Some(1), "{said}");
    if is_ours() {
        let line = said.lines().find(|line| line.contains("pooler.ini:")).expect("the file is named");
        let (_, rest) = line.split_once("pooler.ini:").unwrap();
        let (number, problem) = rest.split_once(": ").unwrap();
        assert!(number.parse::<u32>().is_ok(), "{line}");
        assert!(
            problem.starts_with("pool_mode is sometimes: it must be session, transaction or statement"),
            "{line}"
        );
    }
    let (code, said) = Pooler::config().setting("no_such_setting", "1").refused().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no_such_setting"), "{said}");
}

#[tokio::test]
async fn an_auth_file_that_cannot_be_read_is_named_in_a_warning() {
    if !is_ours() {
        return;
    }
    let pooler =
        Pooler::config().setting("auth_type", "any").setting("auth_file", "/nonexistent/users").start().await;
    assert!(pooler.log().contains("/nonexistent/users"), "{}", pooler.log());
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_with_1_and_names_the_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = Pooler::config().setting("listen_port", &port).refused().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
}

#[test]
fn the_command_line_is_pgbouncers() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pgweir")).args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for flag in ["-V", "--version"] {
        let (code, out, _) = run(&[flag]);
        assert_eq!(code, Some(0));
        assert!(out.contains("pgweir"), "{out}");
    }
    for flag in ["-h", "--help"] {
        let (code, out, _) = run(&[flag]);
        assert_eq!(code, Some(0));
        assert!(out.contains("CONFIG_FILE"), "{out}");
    }
    for arguments in [&[][..], &["--no-such-option"], &["/nonexistent/pgbouncer.ini"]] {
        let (code, _, errors) = run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {errors}");
    }
    let (_, _, errors) = run(&["/nonexistent/pgbouncer.ini"]);
    assert!(errors.contains("/nonexistent/pgbouncer.ini"), "{errors}");
    for arguments in [&[][..], &["--no-such-option"], &["-Z"]] {
        let (_, _, errors) = run(arguments);
        assert!(errors.contains("Try \"pgweir --help\" for more information."), "{errors}");
    }
}
