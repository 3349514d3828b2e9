//! Each word for how a cluster is, brought about for real: it is said within 3 s of the moment at which SQL
//! shows it, with its evidence, and ends when it is over.
//!
//! `PGWEIR_HEALTH_SECONDS=600` looks so long at a cluster under plain load; the default is half a minute.

use crate::support;

use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use support::kube::Kube;
use support::ledger::Ledger;
use support::message::query;
use support::pooler::Config;
use support::process::{self, private_directory};
use support::replicas::Replicas;
use support::runs::chance;
use support::scene::{self, ONE_AT_A_TIME};
use support::{Address, Login, Pooler, Postgres, Raw, eventually, eventually_within};
use tempfile::TempDir;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep};

/// How late the word may be.
const PROMISED: Duration = Duration::from_secs(3);

/// The size of a pool.
const SERVERS: u32 = 4;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(20);

/// A cluster whose monitor may see everything, and a pooler that follows it.
struct Scene {
    replicas: Replicas,
    pooler: Pooler,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    async fn start() -> Scene {
        Scene::with(&[], &["GRANT pg_monitor TO app"], |config| config).await
    }

    /// With these settings of the servers, after these statements.
    async fn with(settings: &[&str], prepare: &[&str], change: impl FnOnce(Config) -> Config) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let replicas = Replicas::of(None, settings).await;
        Ledger::prepare(&replicas).await;
        for sql in prepare {
            replicas.sql(0, sql).await;
        }
        replicas.has_caught_up(1).await;
        replicas.has_caught_up(2).await;
        let cluster =
            format!("\n[clusters]\nc1 = source=probe hosts={} port={}\n", replicas.hosts(), replicas.port);
        let config = Pooler::config()
            .database_line("app = cluster=c1 role=rw dbname=app")
            .setting("monitor_user", "app")
            .pool_size(SERVERS)
            .sections(&cluster);
        let pooler = change(config).start().await;
        let scene = Scene { replicas, pooler, _turn: turn };
        scene.becomes("healthy").await;
        scene
    }

    async fn shown(&self) -> HashMap<String, String> {
        self.pooler.admin("SHOW CLUSTERS").await.remove(0)
    }

    /// Waits for the word. Returns the row of SHOW CLUSTERS.
    async fn becomes(&self, state: &str) -> HashMap<String, String> {
        becomes(&self.pooler, state).await
    }

    /// SQL shows it at some moment from now on, and then it is said in time.
    async fn is_named(&self, shows: &str, state: &str) -> HashMap<String, String> {
        let mut primary = Raw::login(&self.replicas.tcp(0), &Login::new("postgres", "app")).await;
        eventually(shows, async || primary.query(shows).await.value() == "t").await;
        let shown = Instant::now();
        let row = self.becomes(state).await;
        is_in_time(state, shown);
        row
    }

    async fn client(&self) -> Raw {
        self.pooler.client().await
    }

    /// A write that nobody waits for yet.
    async fn writes(&self) -> Raw {
        let mut client = self.client().await;
        client.send(query("INSERT INTO ledger VALUES (1)")).await;
        client
    }
}

async fn becomes(pooler: &Pooler, state: &str) -> HashMap<String, String> {
    let mut last = HashMap::new();
    eventually_within(Duration::from_secs(15), &format!("the cluster is {state}"), async || {
        let row = pooler.admin("SHOW CLUSTERS").await.remove(0);
        let is_it = row["health"] == state;
        if last.get("health") != row.get("health") {
            println!("  {}: {}", row["health"], row["evidence"]);
        }
        last = row;
        sleep(if is_it { Duration::ZERO } else { LOOK }).await;
        is_it
    })
    .await;
    last
}

fn is_in_time(state: &str, shown: Instant) {
    let took = shown.elapsed();
    println!("  {state} was said {took:?} after it was there");
    assert!(took <= PROMISED, "{state} was said {took:?} after it was there");
}

/// What waits for a standby, and that there is none.
const BLOCKED: &str = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep') > 0 \
     AND (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming') = 0";

#[tokio::test]
async fn commits_that_wait_for_both_lost_standbys_are_said_to_by_design() {
    let change = |config: Config| config.setting("query_wait_timeout", "2");
    let mut scene = Scene::with(&[], &["GRANT pg_monitor TO app"], change).await;
    let mut reader = scene.client().await;
    scene.replicas.kill(1);
    scene.replicas.kill(2);
    let mut writer = scene.writes().await;
    let row = scene.is_named(BLOCKED, "commits_blocked_on_sync_quorum").await;
    let evidence = &row["evidence"];
    assert!(evidence.starts_with("127.0.0.2: 0 of 1 required synchronous standbys stream"), "{evidence}");
    assert!(evidence.contains("1 commits wait, the oldest for "), "{evidence}");
    assert!(evidence.contains("127.0.0.3 does not answer"), "{evidence}");
    assert!(row["advice"].contains("Do not switch to asynchronous"), "{}", row["advice"]);
    assert_eq!(row["state"], "open");
    // Reads and logins work.
    reader.query("SELECT count(*) FROM ledger").await.is("T D(0) C(SELECT 1) Z(I)");
    scene.client().await.query("SELECT 1").await.is("T D C(SELECT 1) Z(I)");
    scene
        .pooler
        .logs("WARNING cluster c1: commits_blocked_on_sync_quorum (by design): 127.0.0.2: 0 of 1 required")
        .await;
    scene.pooler.logs("health=commits_blocked_on_sync_quorum was=healthy").await;
    // Who waits behind them is told why.
    let mut others = Vec::new();
    for _ in 1..SERVERS {
        others.push(scene.writes().await);
    }
    let waiting = format!("SELECT count(*) = {SERVERS} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    scene.is_named(&waiting, "commits_blocked_on_sync_quorum").await;
    let told = reader.query("SELECT 1").await;
    assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
    let last = told.messages.last().expect("it is told");
    let detail = last.field(b'D');
    assert!(
        detail.contains("Cluster \"c1\" is commits_blocked_on_sync_quorum (by design): 127.0.0.2: 0 of 1"),
        "{detail}"
    );
    assert!(last.field(b'H').contains("Do not switch to asynchronous"), "{}", last.field(b'H'));
    // One standby is enough: all commits go on, and nothing is lost.
    assert!(!writer.hears_within(Duration::ZERO).await, "the commit waits");
    scene.replicas.restart(1).await;
    writer.ready(1).await.is("C Z(I)");
    let over = Instant::now();
    for mut other in others {
        other.ready(1).await.is("C Z(I)");
    }
    scene.becomes("healthy").await;
    is_in_time("healthy", over);
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, i64::from(SERVERS));
}

#[tokio::test]
async fn without_pg_monitor_it_is_said_once_what_is_not_seen() {
    let mut scene = Scene::with(&[], &[], |config| config).await;
    let unseen = "without pg_monitor it is not seen whether commits wait for a standby, and what standbys do";
    eventually("the evidence says so", async || scene.shown().await["evidence"] == unseen).await;
    let lines = (2..5).map(|last| format!("cluster c1: of server 127.0.0.{last}, {unseen}"));
    let lines: Vec<String> = lines.collect();
    for line in &lines {
        scene.pooler.logs(line).await;
    }
    // That no standby is there is seen all the same.
    scene.replicas.kill(1);
    scene.replicas.kill(2);
    let nobody = "SELECT count(*) = 0 FROM pg_stat_replication";
    let row = scene.is_named(nobody, "commits_blocked_on_sync_quorum").await;
    assert!(row["evidence"].contains("; commits wait, how many is not seen;"), "{}", row["evidence"]);
    let log = scene.pooler.log();
    for line in &lines {
        assert_eq!(log.matches(line).count(), 1, "{line} in\n{log}");
    }
}

#[tokio::test]
async fn an_archive_command_that_fails_is_archiving_broken_until_it_works() {
    let archives = "ALTER SYSTEM SET archive_command = 'cp %p ../archived-%f'";
    let prepare = ["GRANT pg_monitor TO app", archives, "SELECT pg_reload_conf()"];
    let scene = Scene::with(&["archive_mode=on"], &prepare, |config| config).await;
    let switch = async || {
        scene.replicas.sql(0, "INSERT INTO ledger VALUES (1)").await;
        scene.replicas.sql(0, "SELECT pg_switch_wal()").await;
    };
    switch().await;
    let archived = "SELECT archived_count > 0 AND failed_count = 0 FROM pg_stat_archiver";
    let row = scene.is_named(archived, "healthy").await;
    assert_eq!(row["evidence"], "NULL");
    scene.replicas.sql(0, "ALTER SYSTEM SET archive_command = 'false'").await;
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    switch().await;
    let fails = "SELECT last_failed_time > last_archived_time FROM pg_stat_archiver";
    let row = scene.is_named(fails, "archiving_broken").await;
    assert!(row["evidence"].contains(" could not be archived "), "{}", row["evidence"]);
    assert!(row["evidence"].contains("the last success was "), "{}", row["evidence"]);
    assert!(row["advice"].contains("Delete nothing from pg_wal"), "{}", row["advice"]);
    scene.client().await.query("INSERT INTO ledger VALUES (2)").await.is("C Z(I)");
    scene.replicas.sql(0, archives).await;
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    switch().await;
    scene.is_named("SELECT last_archived_time > last_failed_time FROM pg_stat_archiver", "healthy").await;
}

#[tokio::test]
async fn connections_that_are_all_taken_are_saturated() {
    let scene = Scene::start().await;
    scene.client().await.query("SELECT 1").await.is("T D C Z(I)");
    let mut taken = Vec::new();
    let mut shown = Instant::now();
    let row = loop {
        // The monitor has two for a moment when it changes its connection.
        if let Ok(client) = Raw::try_login(&scene.replicas.tcp(0), &Login::new("scram_user", "app")).await {
            taken.push(client);
            shown = Instant::now();
        }
        let row = scene.shown().await;
        if row["health"] == "saturated" {
            break row;
        }
        assert!(shown.elapsed() <= PROMISED, "it is not said to be saturated: {row:?}");
    };
    println!("  saturated was said {:?} after the last connection", shown.elapsed());
    let evidence = &row["evidence"];
    assert!(evidence.starts_with("127.0.0.2: 97 of 97 connections are in use (1 by our pools"), "{evidence}");
    assert_eq!(row["state"], "open", "the monitor keeps its connection");
    drop(taken);
    scene.becomes("healthy").await;
}

#[tokio::test]
async fn a_full_pool_whose_clients_wait_for_long_is_saturated() {
    let scene =
        Scene::with(&[], &["GRANT pg_monitor TO app"], |config| config.setting("default_pool_size", "1"))
            .await;
    let mut holder = scene.client().await;
    holder.query("BEGIN").await.is("C Z(T)");
    let mut waiter = scene.client().await;
    waiter.send(query("SELECT 1")).await;
    scene.pooler.clients_wait(1).await;
    let began = Instant::now();
    let row = scene.becomes("saturated").await;
    let took = began.elapsed();
    assert!(took < PROMISED * 2, "3 s of waiting are its rule: {took:?}");
    let evidence = &row["evidence"];
    assert!(
        evidence.starts_with("pool \"app\" of user \"app\" has all 1 connections in use; 1 clients wait"),
        "{evidence}"
    );
    holder.query("COMMIT").await.is("C Z(I)");
    waiter.ready(1).await.is("T D C Z(I)");
    scene.becomes("healthy").await;
}

#[tokio::test]
async fn a_primary_that_lets_nobody_write_is_read_only() {
    let scene = Scene::start().await;
    scene.replicas.sql(0, "ALTER SYSTEM SET default_transaction_read_only = on").await;
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    let row =
        scene.is_named("SELECT current_setting('default_transaction_read_only')::bool", "read_only").await;
    assert_eq!(row["evidence"], "127.0.0.2 has default_transaction_read_only = on");
    scene.replicas.sql(0, "ALTER SYSTEM RESET default_transaction_read_only").await;
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    scene.is_named("SELECT NOT current_setting('default_transaction_read_only')::bool", "healthy").await;
}

#[tokio::test]
async fn a_killed_primary_is_no_primary_until_another_one_is_there() {
    let mut scene = Scene::start().await;
    scene.replicas.kill(0);
    let gone = Instant::now();
    let row = scene.becomes("no_primary").await;
    is_in_time("no_primary", gone);
    assert!(
        row["evidence"].starts_with("no primary: no server says that it is the primary"),
        "{}",
        row["evidence"]
    );
    scene.replicas.promote(1).await;
    scene.becomes("healthy").await;
    // Now also the one that is left is gone: as far as can be told from here, everything is.
    for number in 0..3 {
        scene.replicas.kill(number);
    }
    let gone = Instant::now();
    let row = scene.becomes("isolated").await;
    assert!(gone.elapsed() < PROMISED * 2, "3 s are its rule: {:?}", gone.elapsed());
    assert!(row["evidence"].starts_with("none of 3 servers can be reached for "), "{}", row["evidence"]);
}

/// A file system of eight megabytes. It goes with its value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> SmallDisk {
        let directory = private_directory("weir-disk-");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(directory.path());
        process::run(mount);
        process::give(directory.path());
        SmallDisk(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that is not down yet may have files open there.
        let mut unmount = Command::new("umount");
        unmount.arg("--lazy").arg(self.0.path());
        process::run(unmount);
    }
}

/// No standby: on one machine it cannot have a tablespace of the same path.
#[tokio::test]
async fn a_disk_that_is_really_full_is_said_to_be_full() {
    if !process::is_root() {
        return println!("skipped: only root may mount a file system");
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    let disk = SmallDisk::mount();
    let postgres = Arc::new(Postgres::start(&[]).await);
    let port = postgres.port;
    let pooler = Pooler::config()
        .postgres(postgres)
        .database_line("filled = cluster=c1 dbname={database}")
        .setting("monitor_user", "app")
        .sections(&format!("\n[clusters]\nc1 = source=static hosts=127.0.0.1 port={port}\n"))
        .start()
        .await;
    pooler.sql("GRANT pg_monitor TO app").await;
    becomes(&pooler, "healthy").await;
    let folder = disk.0.path().display();
    pooler.postgres.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{folder}'")).await;
    pooler.sql("CREATE TABLE filled (word text) TABLESPACE small; GRANT ALL ON filled TO app").await;
    let mut client = Raw::login(&pooler.tcp(), &Login::new("app", "filled")).await;
    let fill = "INSERT INTO filled SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
    client.query(fill).await.is("E(53100) Z(I)");
    let shown = Instant::now();
    let row = becomes(&pooler, "disk_full").await;
    is_in_time("disk_full", shown);
    let evidence = &row["evidence"];
    assert!(
        evidence.starts_with("127.0.0.1 refused a statement ") && evidence.contains("(53100)"),
        "{evidence}"
    );
    assert!(row["advice"].starts_with("Enlarge the volume. Delete nothing from pg_wal"), "{}", row["advice"]);
    // Nobody is refused any more.
    pooler.sql("DROP TABLE filled; CREATE TABLE filled (word text); GRANT ALL ON filled TO app").await;
    client.query("INSERT INTO filled VALUES ('fits')").await.is("C(INSERT 0 1) Z(I)");
    becomes(&pooler, "healthy").await;
    pooler.postgres.sql("postgres", "DROP TABLESPACE small").await;
}

#[tokio::test]
async fn what_the_operator_says_has_its_word_and_its_metric() {
    let (seed, _) = chance("health");
    let mut scene = scene::Scene::at(Arc::new(Kube::start().await), seed, |config| config).await;
    scene.operator.replicas.sql(0, "GRANT pg_monitor TO app").await;
    becomes(&scene.pooler, "healthy").await;
    eventually("both standbys are known", async || {
        let members = scene.pooler.admin("SHOW MEMBERS").await;
        members.iter().filter(|member| member["sync_state"] == "quorum").count() == 2
    })
    .await;
    let of = |name: &str, member: &str| format!("pgweir_member_{name}{{cluster=\"pg\",member=\"{member}\"}}");
    for (name, member, expected) in [
        ("streaming", "pg-2", 1.0),
        ("synchronous", "pg-3", 1.0),
        ("sync_standbys_required", "pg-1", 1.0),
        ("sync_standbys_streaming", "pg-1", 2.0),
        ("sync_waiters", "pg-1", 0.0),
        ("archive_failures_total", "pg-1", 0.0),
        ("connections_max", "pg-3", 100.0),
        ("connections_reserved", "pg-1", 3.0),
    ] {
        scene.metric_becomes(&of(name, member), |value| value == expected).await;
    }
    scene.metric_becomes(&of("wal_bytes", "pg-1"), |value| value >= 1_048_576.0).await;
    let position = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
    let written = scene.operator.replicas.number(0, position).await as f64;
    for member in ["pg-1", "pg-2"] {
        scene.metric_becomes(&of("wal_position_bytes", member), |value| value >= written).await;
    }
    scene.metric_becomes(&of("volume_bytes", "pg-2"), |value| value == f64::from(10 << 20) * 1024.0).await;
    let health = |state: &str| format!("pgweir_cluster_health{{cluster=\"pg\",state=\"{state}\"}}");
    assert_eq!(scene.metric(&health("healthy")).await, 1.0);
    scene.operator.fence_primary().await;
    let fenced = Instant::now();
    let row = becomes(&scene.pooler, "fenced").await;
    is_in_time("fenced", fenced);
    let evidence = &row["evidence"];
    assert!(evidence.starts_with("the primary pg-1 is fenced by cnpg.io/fencedInstances"), "{evidence}");
    assert_eq!(scene.metric(&health("fenced")).await, 1.0);
    assert_eq!(scene.metric(&health("healthy")).await, 0.0);
    scene.operator.unfence_primary().await;
    becomes(&scene.pooler, "healthy").await;
    scene.operator.status(json!({ "phase": "Switchover in progress", "targetPrimary": "pg-2" })).await;
    becomes(&scene.pooler, "switching").await;
    scene.operator.status(json!({ "phase": "Cluster in healthy state", "targetPrimary": "pg-1" })).await;
    becomes(&scene.pooler, "healthy").await;
    scene.operator.status(json!({ "phase": "Not enough disk space" })).await;
    let row = becomes(&scene.pooler, "disk_full").await;
    assert_eq!(row["evidence"].split(';').next(), Some("the operator says \"Not enough disk space\""));
    scene.operator.status(json!({ "phase": "Cluster in healthy state" })).await;
    becomes(&scene.pooler, "healthy").await;
    // The API away alone is nothing; with all servers away we are.
    Arc::get_mut(&mut scene.kube).expect("nobody shares it").stop_api();
    eventually("the source cannot be reached", async || scene.shown().await["source"] == "unreachable").await;
    becomes(&scene.pooler, "healthy").await;
    for number in 0..3 {
        scene.operator.replicas.freeze(number);
    }
    eventually("nobody answers", async || {
        let members = scene.pooler.admin("SHOW MEMBERS").await;
        members.iter().all(|member| member["says"] == "unknown")
    })
    .await;
    let silent = Instant::now();
    let row = becomes(&scene.pooler, "isolated").await;
    println!("  isolated was said {:?} after nobody answered any more", silent.elapsed());
    assert!(silent.elapsed() < PROMISED * 2, "3 s are its rule: {:?}", silent.elapsed());
    assert!(
        row["evidence"].starts_with("neither the Kubernetes API nor any of 3 servers"),
        "{}",
        row["evidence"]
    );
    for number in 0..3 {
        scene.operator.replicas.thaw(number);
    }
    becomes(&scene.pooler, "healthy").await;
}

#[tokio::test]
async fn a_cluster_under_plain_load_is_healthy_and_nothing_else() {
    let seconds = std::env::var("PGWEIR_HEALTH_SECONDS").ok().and_then(|text| text.parse().ok());
    let (seed, _) = chance("plain load");
    let scene = Scene::start().await;
    let address: Address = scene.pooler.tcp();
    let mut ledger = Ledger::start(&address, 2 * SERVERS as usize, seed);
    ledger.all_write().await;
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(30));
    let (mut looks, mut states) = (0, BTreeSet::new());
    while Instant::now() < end {
        let row = scene.shown().await;
        states.insert(row["health"].clone());
        looks += 1;
        sleep(10 * LOOK).await;
    }
    let books = ledger.stop().await;
    println!("  {looks} looks, {}", books.summary());
    books.agree_with(&scene.replicas, 0, &[]).await;
    assert_eq!(states.into_iter().collect::<Vec<_>>(), ["healthy"]);
    let log = scene.pooler.log();
    let changes: Vec<&str> = log.lines().filter(|line| line.contains(" health=")).collect();
    assert!(matches!(changes[..], [only] if only.ends_with("health=healthy was=unknown")), "{changes:#?}");
}
