//! A real cluster whose primary goes away in every way there is, under load from clients that keep books.
//!
//! `PGWEIR_FAILOVER_RUNS=20` runs each failover so often; the seed of a run's timing is printed.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use support::ledger::{Books, Entry, Ledger, Outcome};
use support::message::{extended, query, run_of, sync};
use support::pooler::Config;
use support::replicas::{Replicas, Stop};
use support::{Address, Login, PATIENCE, PROMPTLY, Pooler, Raw, eventually, eventually_within};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Writing clients of a failover; twice as many as there are server connections.
const CLIENTS: usize = 8;

/// How often the pooler asks the servers while there is no primary.
const PROBE_TICK: Duration = Duration::from_millis(50);

/// What is measured must not be disturbed by a neighbour.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A cluster, and a pooler that follows it.
struct Scene {
    replicas: Replicas,
    pooler: Pooler,
    _turn: MutexGuard<'static, ()>,
}

/// `rw`, `ro` and `r` are databases of the roles; `app` is rw.
fn following(replicas: &Replicas, source: &str) -> Config {
    let cluster =
        format!("\n[clusters]\nc1 = source={source} hosts={} port={}\n", replicas.hosts(), replicas.port);
    Pooler::config()
        .database_line("app = cluster=c1 role=rw dbname=app")
        .database_line("ro = cluster=c1 role=ro dbname=app")
        .setting("monitor_user", "app")
        .pool_size(4)
        .sections(&cluster)
}

impl Scene {
    async fn start() -> Scene {
        Scene::with(|config| config).await
    }

    async fn with(change: impl FnOnce(Config) -> Config) -> Scene {
        Scene::of("probe", change).await
    }

    async fn of(source: &str, change: impl FnOnce(Config) -> Config) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let replicas = Replicas::start().await;
        Ledger::prepare(&replicas).await;
        let pooler = change(following(&replicas, source)).start().await;
        Scene { replicas, pooler, _turn: turn }
    }

    /// The best standby becomes the primary. Returns it, and the moment at which it has taken a write.
    async fn take_over(&mut self) -> (usize, Instant) {
        let best = self.replicas.best_standby().await;
        let accepted = first_write(self.replicas.tcp(best));
        self.replicas.promote(best).await;
        (best, accepted.await.expect("it is tried until it works"))
    }

    async fn server_of(&self, client: &mut Raw) -> String {
        client.query("SELECT host(inet_server_addr())").await.value()
    }

    async fn client_of(&self, database: &str) -> Raw {
        Raw::login(&self.pooler.tcp(), &Login::new("app", database)).await
    }
}

/// Writes around the pooler as soon as the server lets it.
fn first_write(server: Address) -> JoinHandle<Instant> {
    tokio::spawn(async move {
        let mut client = Raw::login(&server, &Login::new("postgres", "app")).await;
        while client.query("INSERT INTO ledger VALUES (-1)").await.count(b'E') > 0 {
            sleep(Duration::from_millis(2)).await;
        }
        Instant::now()
    })
}

fn runs() -> u64 {
    std::env::var("PGWEIR_FAILOVER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

fn chance(what: &str) -> (u64, StdRng) {
    let seed = RandomState::new().hash_one(what);
    println!("{what}: seed {seed}");
    (seed, StdRng::seed_from_u64(seed))
}

/// Load, a fault at a random moment, a new primary, load again; the books must agree. `fault` makes the old
/// primary go away, and returns when another one may be promoted.
async fn fail_over(what: &str, allowed: &[&str], fault: impl AsyncFn(&mut Scene)) {
    let mut firsts = Vec::new();
    for _ in 0..runs() {
        let (seed, mut chance) = chance(what);
        let mut scene = Scene::start().await;
        let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
        ledger.writes(chance.random_range(50..200)).await;
        sleep(Duration::from_micros(chance.random_range(0..20_000))).await;
        let began = Instant::now();
        fault(&mut scene).await;
        let (primary, accepted) = scene.take_over().await;
        ledger.writes(200).await;
        let books = ledger.stop().await;
        books.agree_with(&scene.replicas, primary, allowed).await;
        let (first, last) = books.served_after(accepted, CLIENTS);
        println!(
            "  down for {:?}, then first write after {first:?}, all served after {last:?}",
            accepted - began
        );
        firsts.push(first);
    }
    firsts.sort();
    let median = firsts[firsts.len() / 2];
    assert!(median < Duration::from_millis(100) + PROBE_TICK, "median of {firsts:?}");
    assert!(firsts[firsts.len() - 1] < Duration::from_millis(500), "worst of {firsts:?}");
}

/// What a client may hear of a primary that is gone: the transaction is rolled back, or nobody knows.
const LOST: &[&str] = &["57P01", "08007"];

#[tokio::test]
async fn a_killed_primary_costs_open_transactions_and_nothing_else() {
    fail_over("kill", LOST, async |scene| scene.replicas.kill(0)).await;
}

#[tokio::test]
async fn a_fast_shutdown_costs_open_transactions_and_nothing_else() {
    fail_over("fast shutdown", LOST, async |scene| scene.replicas.stop(0, Stop::Fast)).await;
}

#[tokio::test]
async fn an_immediate_shutdown_costs_open_transactions_and_nothing_else() {
    fail_over("immediate shutdown", &["57P01", "57P02", "08007"], async |scene| {
        scene.replicas.stop(0, Stop::Immediate);
    })
    .await;
}

#[tokio::test]
async fn a_smart_shutdown_is_not_held_back_and_costs_nothing() {
    fail_over("smart shutdown", &[], async |scene| {
        let asked = Instant::now();
        scene.replicas.ask_to_stop(0, Stop::Smart);
        let stopped = async || !scene.replicas.runs(0);
        eventually("the smart shutdown completes", stopped).await;
        println!("  smart shutdown took {:?}", asked.elapsed());
        scene.replicas.ended(0);
    })
    .await;
}
