//! Every way in which a primary is lost, under load from 50 clients that keep books, with PgBouncer beside:
//! the same cluster, the same load and the same event, at the same time.
//!
//! The old primary has a network of its own, whose cable can be pulled, and a relay there notes each byte
//! that arrives. PgBouncer stands behind what a Service does: new connections lead to whom the API names, old
//! ones stay where they are. `PGWEIR_FAILOVER_RUNS=20` runs each event so often, and PgBouncer is given
//! `PGWEIR_PGBOUNCER_SECONDS` to write again, after pgweir has.

use crate::support;

use futures_util::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use rand::Rng;
use serde_json::json;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::kube::{Kube, resource};
use support::ledger::{Books, Entry, Ledger, Outcome};
use support::message::terminate;
use support::network::Network;
use support::operator::{Operator, POD};
use support::pgbouncer::PgBouncer;
use support::process::{free_port, is_root};
use support::relay::Relay;
use support::replicas::{Replicas, Stop};
use support::runs::{Figures, chance, number, runs};
use support::scene::ONE_AT_A_TIME;
use support::{Address, Pooler, eventually, eventually_within};
use tokio::sync::{MutexGuard, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Writing clients of each pooler; six times as many as it has server connections.
const CLIENTS: usize = 50;

/// What a client may hear of a primary that is gone: the transaction is rolled back, or nobody knows.
const LOST: &[&str] = &["57P01", "08007"];

/// The time that the watch's event needs to arrive, on a machine that is busy.
const WORD_ARRIVES: Duration = Duration::from_millis(100);

/// How long a primary waits for its clients when its pod is deleted; CloudNativePG's default is 180 s. Only
/// PgBouncer's hold it back.
const SMART_SHUTDOWN: Duration = Duration::from_millis(400);

/// The kernel's attempts to reach a host that is away are seconds apart.
const RETURN: Duration = Duration::from_secs(20);

/// A cluster with its operator, and two poolers before it.
struct Scene {
    operator: Operator,
    pooler: Pooler,
    pgbouncer: PgBouncer,
    /// Before each server, for pgweir.
    relays: Vec<Relay>,
    _service: Relay,
    _named: JoinSet<()>,
    _kube: Arc<Kube>,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    async fn start(network: Option<Network>, seed: u64) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let kube = Kube::shared().await;
        let space = kube.space().await;
        let replicas = Replicas::with(network).await;
        let operator = Operator::of(replicas, space.clone(), "pg", seed).await;
        space.grant("follower", operator.rules()).await;
        let (relays, port) = relays(&operator.replicas);
        let user = kube.kubeconfig_file("follower", &space.name).display().to_string();
        let cluster = format!("\n[clusters]\npg = source=cnpg namespace={} port={port}\n", space.name);
        let pooler = Pooler::config()
            .environment("KUBECONFIG", &user)
            .database_line("app = cluster=pg role=rw dbname=app")
            .setting("monitor_user", "app")
            .pool_size(8)
            .sections(&cluster)
            .start()
            .await;
        let mut named = JoinSet::new();
        let service = service(&operator, &mut named);
        let line = PgBouncer::database("app", service.address);
        let pgbouncer = PgBouncer::start(Pooler::config().database_line(&line).pool_size(8)).await;
        Scene {
            operator,
            pooler,
            pgbouncer,
            relays,
            _service: service,
            _named: named,
            _kube: kube,
            _turn: turn,
        }
    }

    /// Waits until pgweir has seen that both standbys are there.
    async fn knows_all(&self) {
        eventually("SHOW MEMBERS has a primary and two standbys", async || {
            let members = self.pooler.admin("SHOW MEMBERS").await;
            members.iter().filter(|member| member["says"] == "standby").count() == 2
        })
        .await;
    }

    /// The primary's pod is deleted. Whoever is connected is given a while, as CloudNativePG does.
    async fn delete_primary(&mut self) {
        let operator = &mut self.operator;
        let from = operator.primary;
        operator.space.delete(POD, &operator.pod(from), 1800).await;
        operator.pause(20).await;
        operator.status(json!({ "phase": "Failing over", "targetPrimary": "pending" })).await;
        operator.replicas.sql(from, "CHECKPOINT").await;
        operator.replicas.ask_to_stop(from, Stop::Smart);
        let asked = Instant::now();
        let mut is_told = false;
        eventually("the shutdown completes", async || {
            if !is_told && asked.elapsed() > SMART_SHUTDOWN {
                is_told = true;
                operator.replicas.ask_to_stop(from, Stop::Fast);
            }
            !operator.replicas.runs(from)
        })
        .await;
        operator.replicas.ended(from);
        operator.space.delete(POD, &operator.pod(from), 0).await;
    }

    /// The primary goes on, and nobody can talk to it.
    async fn cut_primary(&mut self) {
        let from = self.operator.primary;
        self.operator.replicas.network(from).expect("it has a host of its own").cut();
        self.operator.pause(200).await;
        self.operator.ready(from, false).await;
    }
}

/// One before each server, all on one port.
fn relays(replicas: &Replicas) -> (Vec<Relay>, u16) {
    let port = free_port();
    let relays = (0..3).map(|number| {
        let Address::Tcp(server) = replicas.tcp(number) else { unreachable!("they listen on TCP") };
        let network = replicas.network(number);
        let inside = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let (_, to) = watch::channel(if network.is_some() { inside } else { server });
        Relay::start(SocketAddr::new(server.ip(), port), to, network)
    });
    (relays.collect(), port)
}

/// Leads to the primary that the Cluster names.
fn service(operator: &Operator, tasks: &mut JoinSet<()>) -> Relay {
    let server = |number| match operator.replicas.tcp(number) {
        Address::Tcp(server) => (operator.pod(number), server),
        Address::Unix(_) | Address::Tls(..) => unreachable!("they listen on TCP"),
    };
    let servers = [server(0), server(1), server(2)];
    let kind = resource("postgresql.cnpg.io/v1", "Cluster");
    let space = &operator.space;
    let api: Api<DynamicObject> = Api::namespaced_with(space.client.clone(), &space.name, &kind);
    let (named, to) = watch::channel(servers[0].1);
    tasks.spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).applied_objects().boxed();
        while let Some(event) = events.next().await {
            // A watch that breaks is begun anew.
            let Ok(cluster) = event else { continue };
            let primary = &cluster.data["status"]["currentPrimary"];
            let found = servers.iter().find(|(pod, _)| primary == pod.as_str());
            if let Some((_, server)) = found {
                named.send_replace(*server);
            }
        }
    });
    Relay::start(SocketAddr::from(([127, 0, 0, 1], 0)), to, None)
}

/// When what happened.
struct Moments {
    /// The old primary was well.
    before: Instant,
    /// The new one takes writes, and the API server has its word for that.
    named: Instant,
    /// Until here both were watched.
    end: Instant,
}

/// Load on both, a fault at a random moment, and the operator names another primary. `fault` returns when it
/// may begin; `heal` undoes the fault when all have gone on.
async fn event(what: &str, fault: impl AsyncFn(&mut Scene), heal: impl AsyncFn(&mut Scene)) {
    let mut figures = Figures::default();
    // One server for all runs: each start takes longer than a run.
    let _kube = Kube::shared().await;
    for _ in 0..runs() {
        let (seed, mut chance) = chance(what);
        let network = is_root().then(Network::start);
        let mut scene = Scene::start(network, seed).await;
        let mut ours = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
        let mut theirs = Ledger::of(&scene.pgbouncer.tcp(), CLIENTS..2 * CLIENTS, seed);
        scene.knows_all().await;
        ours.all_write().await;
        theirs.all_write().await;
        ours.writes(chance.random_range(50..200)).await;
        let before = Instant::now();
        fault(&mut scene).await;
        let named = scene.operator.fail_over().await;
        ours.writes(200).await;
        let patience = Duration::from_secs(number("PGWEIR_PGBOUNCER_SECONDS").unwrap_or(1));
        theirs.writes_within(patience).await;
        let moments = Moments { before, named, end: Instant::now() };
        let theirs = theirs.abandon().await;
        heal(&mut scene).await;
        ours.writes(100).await;
        let ours = ours.stop().await;
        ours.agree_with(&scene.operator.replicas, scene.operator.primary, LOST).await;
        nothing_came(&scene, named);
        compare(&mut figures, &moments, &ours, &theirs);
    }
    figures.print(what);
    figures.are_prompt(Duration::from_millis(100), Duration::from_millis(500));
}

/// Not a byte, apart from the monitor's: it asks each member how it is. A Terminate that was on its way says
/// no more than the end of the stream that follows it.
fn nothing_came(scene: &Scene, named: Instant) {
    let late = scene.relays[0].since(named.into_std() + WORD_ARRIVES);
    let shown: Vec<String> = late
        .iter()
        .filter(|arrival| arrival.bytes != terminate())
        .map(|arrival| {
            let after = arrival.at - named.into_std();
            format!("after {after:?}: {}", arrival.bytes.escape_ascii())
        })
        .collect();
    assert!(shown.is_empty(), "the old primary was sent:\n{}", shown.join("\n"));
}

fn compare(figures: &mut Figures, moments: &Moments, ours: &Books, theirs: &Books) {
    let (first, last) = ours.served_after(moments.named, CLIENTS);
    let failed = |books: &Books| {
        let inside = |entry: &Entry| entry.ended < moments.end && entry.outcome != Outcome::Acknowledged;
        books.count(inside)
    };
    let outage = |books: &Books| books.outage(moments.before, moments.end);
    let (we, they) = ((outage(ours), failed(ours)), (outage(theirs), failed(theirs)));
    let turns = ours.turns_before_the_last(moments.named, CLIENTS);
    println!("  first write after {first:?}, all served after {last:?}, when one had had {turns} turns");
    println!("  without a write, and failed: pgweir {we:?}, PgBouncer {they:?}");
    assert!(we.0 <= they.0, "the same event costs pgweir's clients more time: {we:?}, PgBouncer's {they:?}");
    figures.firsts.push(first);
    figures.outages.push(we);
    figures.beside.push(they);
}

async fn nothing(_: &mut Scene) {}

#[tokio::test]
async fn a_killed_primary_is_left_alone_and_costs_less_than_with_pgbouncer() {
    event("killed", async |scene| scene.operator.lose_primary().await, nothing).await;
}

#[tokio::test]
async fn a_deleted_pod_is_left_alone_and_costs_less_than_with_pgbouncer() {
    event("pod deleted", async |scene| scene.delete_primary().await, nothing).await;
}

#[tokio::test]
async fn a_frozen_node_is_left_alone_and_costs_less_than_with_pgbouncer() {
    event(
        "frozen",
        async |scene| scene.operator.freeze_primary().await,
        async |scene| {
            scene.operator.replicas.thaw(0);
            has_nobody(scene).await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_left_alone_and_costs_less_than_with_pgbouncer() {
    if Network::is_possible() {
        event(
            "network cut",
            async |scene| scene.cut_primary().await,
            async |scene| {
                let healed = std::time::Instant::now();
                scene.operator.replicas.network(0).expect("it has a host of its own").heal();
                let asked = async || scene.relays[0].is_asked_since(healed);
                eventually_within(RETURN, "pgweir's monitor reaches it again", asked).await;
                has_nobody(scene).await;
            },
        )
        .await;
    }
}

/// Waits until the kernel has nothing left to send to the old primary for a socket that pgweir has closed.
async fn has_nobody(scene: &Scene) {
    let relay = scene.relays[0].address;
    eventually("no closed socket has something to send", async || unsent(relay) == 0).await;
}

/// Sockets to this address, closed on our side, whose last bytes are not confirmed.
fn unsent(address: SocketAddr) -> usize {
    let std::net::IpAddr::V4(host) = address.ip() else { unreachable!("the servers have IPv4") };
    let peer = format!("{:08X}:{:04X}", u32::from_ne_bytes(host.octets()), address.port());
    let sockets = fs::read_to_string("/proc/net/tcp").expect("Linux has it");
    let closing = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|fields| {
        // FIN_WAIT1, LAST_ACK and CLOSING.
        fields.len() > 3 && fields[2] == peer && ["04", "09", "0B"].contains(&fields[3])
    });
    closing.count()
}
