//! A real cluster in the hands of an operator that does what CloudNativePG does, in its order, to objects of
//! a real Kubernetes API: every way in which the primary moves, under load from clients that keep books.
//!
//! `PGWEIR_FAILOVER_RUNS=20` runs each move so often; the seed of each run's timing is printed.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::kube::{Kube, Space};
use support::ledger::{Books, Ledger, Outcome};
use support::message::query;
use support::operator::{Moved, Operator};
use support::pooler::Config;
use support::process::free_port;
use support::{Pooler, Raw, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Writing clients of a planned move; three times as many as there are server connections.
const CLIENTS: usize = 24;

/// What a client may hear of a primary that is gone: the transaction is rolled back, or nobody knows.
const LOST: &[&str] = &["57P01", "08007"];

/// What is measured must not be disturbed by a neighbour.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A cluster with its operator, and a pooler that follows it with the least rights.
struct Scene {
    operator: Operator,
    pooler: Pooler,
    kube: Arc<Kube>,
    metrics: SocketAddr,
    _turn: MutexGuard<'static, ()>,
}

fn runs() -> u64 {
    std::env::var("PGWEIR_FAILOVER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

fn chance(what: &str) -> (u64, StdRng) {
    let seed = RandomState::new().hash_one(what);
    println!("{what}: seed {seed}");
    (seed, StdRng::seed_from_u64(seed))
}

/// A pooler that follows this cluster as `user`.
fn following(kube: &Kube, operator: &Operator, user: &str) -> Config {
    let (cluster, space) = (&operator.cluster, &operator.space.name);
    let clusters =
        format!("\n[clusters]\n{cluster} = source=cnpg namespace={space} port={}\n", operator.replicas.port);
    Pooler::config()
        .environment("KUBECONFIG", &kube.kubeconfig_file(user, space).display().to_string())
        .database_line(&format!("app = cluster={cluster} role=rw dbname=app"))
        .setting("monitor_user", "app")
        .pool_size(8)
        .sections(&clusters)
}

impl Scene {
    async fn start(seed: u64) -> Scene {
        Scene::with(seed, |config| config).await
    }

    async fn with(seed: u64, change: impl FnOnce(Config) -> Config) -> Scene {
        Scene::at(Kube::shared().await, seed, change).await
    }

    async fn at(kube: Arc<Kube>, seed: u64, change: impl FnOnce(Config) -> Config) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let space = kube.space().await;
        let operator = Operator::start(space.clone(), "pg", seed).await;
        space.grant("follower", operator.rules()).await;
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = following(&kube, &operator, "follower");
        let config = config.setting("metrics_listen_addr", &metrics.to_string());
        let pooler = change(config).start().await;
        Scene { operator, pooler, kube, metrics, _turn: turn }
    }

    /// The cluster's row of SHOW CLUSTERS.
    async fn shown(&self) -> HashMap<String, String> {
        self.pooler.admin("SHOW CLUSTERS").await.remove(0)
    }

    /// Waits until SHOW CLUSTERS has this state and reason; the metric must agree.
    async fn shows(&self, state: &str, why: &str) {
        let mut last = HashMap::new();
        let what = format!("SHOW CLUSTERS has {state}, {why}");
        eventually(&what, async || {
            let shown = self.shown().await;
            let is_it = shown["state"] == state && shown["why"] == why;
            if !is_it && shown["state"] != last.get("state").cloned().unwrap_or_default() {
                println!("  SHOW CLUSTERS: {} {} {}", shown["state"], shown["why"], shown["detail"]);
            }
            last = shown;
            is_it
        })
        .await;
        let metric = format!("pgweir_cluster_state{{cluster=\"pg\",state=\"{state}\"}}");
        assert_eq!(self.metric(&metric).await, 1.0, "{metric}");
    }

    /// Waits until the pooler has seen that both standbys are there.
    async fn knows_all(&self) {
        eventually("SHOW MEMBERS has a primary and two standbys", async || {
            let members = self.pooler.admin("SHOW MEMBERS").await;
            members.iter().filter(|member| member["says"] == "standby").count() == 2
        })
        .await;
    }

    /// A sample of the metrics page, by name and labels.
    async fn metric(&self, sample: &str) -> f64 {
        let mut stream = TcpStream::connect(self.metrics).await.expect("the page is served");
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("the page is served");
        let mut page = String::new();
        stream.read_to_string(&mut page).await.expect("the page is text");
        let found = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        let found = found.unwrap_or_else(|| panic!("no {sample} in\n{page}"));
        found.parse().expect("a number")
    }

    /// A client's statement fails after query_wait_timeout, and says why.
    async fn is_refused(&self, detail: &str) {
        let mut client = self.pooler.client().await;
        let told = client.query("INSERT INTO ledger VALUES (-2)").await;
        assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
        let said = told.messages.last().expect("it is told").field(b'D');
        assert_eq!(said, format!("No server could be used within 1 s: {detail}."));
    }

    /// A client's statement is done.
    async fn serves(&self) {
        self.pooler.client().await.query("INSERT INTO ledger VALUES (-3)").await.is("C Z(I)");
    }
}

/// Nothing failed but what was open when the old primary was told to stop.
fn only_what_was_open_failed(books: &Books, moves: &[Moved]) {
    let open = |entry: &support::ledger::Entry| {
        moves.iter().any(|moved| entry.began <= moved.stopping && entry.ended >= moved.stopping)
    };
    let failed = books.0.iter().filter(|entry| entry.outcome != Outcome::Acknowledged);
    let wrong: Vec<_> = failed.filter(|entry| !open(entry)).collect();
    assert!(wrong.is_empty(), "they were not open at the fast shutdown: {wrong:#?}\nmoves: {moves:#?}");
}

fn print_and_judge(what: &str, mut firsts: Vec<Duration>) {
    firsts.sort();
    let median = firsts[firsts.len() / 2];
    println!("{what}: first writes after {firsts:?}, median {median:?}");
    assert!(median < Duration::from_millis(100), "median of {firsts:?}");
    assert!(firsts[firsts.len() - 1] < Duration::from_millis(500), "worst of {firsts:?}");
}

#[tokio::test]
async fn a_planned_switchover_costs_what_is_open_at_the_fast_shutdown_and_nothing_else() {
    let (seed, mut chance) = chance("switchover");
    let mut scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    let mut moves = Vec::new();
    for run in 0..runs() {
        scene.knows_all().await;
        ledger.writes(chance.random_range(50..200)).await;
        let mut open = scene.pooler.client().await;
        open.query(&format!("BEGIN; INSERT INTO ledger VALUES (-{})", 100 + run)).await.is("C C Z(T)");
        let to = scene.operator.any_standby();
        let moved = scene.operator.switch_over(to).await;
        open.rest().await.is("E(57P01) EOF");
        moves.push(moved);
    }
    ledger.writes(200).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, scene.operator.primary, LOST).await;
    only_what_was_open_failed(&books, &moves);
    let firsts = moves.iter().map(|moved| books.served_after(moved.named, CLIENTS).0).collect();
    print_and_judge("switchover", firsts);
}
