//! What else can happen to a cluster in an operator's hands, and what clients, the console and the metrics say
//! then: an address that another cluster's server gets, a rolling update, a demotion and a promotion.
//!
//! The moves of the primary are in `operator.rs` and `operator_times.rs`.

use crate::support;

use rand::Rng;
use serde_json::json;
use support::ledger::{Books, Entry, Ledger, Outcome};
use support::operator::{POD, RESTARTS_POD};
use support::pooler::Config;
use support::runs::{chance, runs};
use support::scene::{CLIENTS, Call, LOST, Scene, only_what_was_open_failed};
use support::stranger::{As, Stranger};
use support::{Address, Login, Raw, eventually};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Clients that read at the same time.
const READERS: usize = 16;

// ---- the address of a server that is gone is another cluster's now ----

/// Asks whom it reads from, each time over whatever server there is, until told to end. Returns all that
/// answered, and what else it was told.
async fn ask_who(address: Address, mut end: watch::Receiver<bool>) -> (Vec<String>, Vec<String>) {
    let login = Login::new("app", "ro");
    let mut client = Raw::login(&address, &login).await;
    let (mut systems, mut errors) = (Vec::new(), Vec::new());
    while !*end.borrow_and_update() {
        let sql = "SELECT system_identifier /* clients_mark */ FROM pg_control_system(), pg_sleep(0.002)";
        let reply = client.query(sql).await;
        if reply.count(b'E') > 0 || reply.closed {
            errors.push(reply.to_string());
            client = Raw::login(&address, &login).await;
        } else {
            systems.push(reply.rows()[0][0].clone());
        }
    }
    (systems, errors)
}

/// The readers at work.
struct Readers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<(Vec<String>, Vec<String>)>>,
}

impl Readers {
    fn start(address: &Address) -> Readers {
        let (stop, end) = watch::channel(false);
        let tasks = (0..READERS).map(|_| tokio::spawn(ask_who(address.clone(), end.clone()))).collect();
        Readers { stop, tasks }
    }

    /// All answers were of this system, and there was nothing but answers.
    async fn heard_no_error(self, own: &str) {
        self.stop.send(true).expect("the readers listen");
        for task in self.tasks {
            let (systems, errors) = task.await.expect("a reader does not panic");
            assert_eq!(errors, [""; 0]);
            assert!(!systems.is_empty() && systems.iter().all(|system| system == own));
        }
    }

    /// All answers were of this system; what was lost was on a server that is gone.
    async fn heard_only(self, own: &str) {
        self.stop.send(true).expect("the readers listen");
        let mut answers = 0;
        for task in self.tasks {
            let (systems, errors) = task.await.expect("a reader does not panic");
            let strange: Vec<_> = systems.iter().filter(|system| **system != own).collect();
            assert_eq!(strange, [""; 0], "answers of the other cluster");
            let other = |error: &&String| !error.contains("57P01") && !error.contains("08");
            assert_eq!(errors.iter().find(other), None, "errors");
            answers += systems.len();
        }
        println!("  {answers} answers");
    }
}

const RO: &str = "ro = cluster=pg role=ro dbname=app";
const SERVES: &str = "pgweir_member_serves_reads{cluster=\"pg\",member=\"pg-3\"}";

#[tokio::test]
async fn readers_never_hear_from_another_clusters_server_at_a_standbys_address() {
    let (seed, mut chance) = chance("standby's address");
    let mut scene = Scene::with(seed, |config| config.database_line(RO)).await;
    scene.knows_all().await;
    let own = scene.operator.replicas.system().await;
    for role in [As::Standby, As::Primary] {
        let mut stranger = Stranger::new();
        let readers = Readers::start(&scene.pooler.tcp());
        scene.operator.pause(chance.random_range(100..300)).await;
        let replicas = &mut scene.operator.replicas;
        replicas.kill(2);
        stranger.listen(&replicas.host(2), replicas.port, role).await;
        let other = stranger.system().await;
        eventually("SHOW MEMBERS says stranger", async || {
            let members = scene.pooler.admin("SHOW MEMBERS").await;
            members[2]["says"] == "stranger" && members[2]["serves_reads"] == "no"
        })
        .await;
        let expected =
            format!("cluster pg: server pg-3 has system identifier {other}, the cluster's is {own}");
        scene.pooler.logs(&expected).await;
        assert_eq!(scene.metric(SERVES).await, 0.0);
        scene.shows("open", "NULL").await;
        // The one that belongs there comes back, and is read from again.
        stranger.leave();
        scene.operator.replicas.restart(2).await;
        eventually("pg-3 serves reads again", async || scene.metric(SERVES).await == 1.0).await;
        readers.heard_only(&own).await;
        assert_eq!(stranger.statements_of_clients(), [""; 0], "{role:?}");
    }
}

#[tokio::test]
async fn writers_wait_while_another_clusters_primary_has_the_primarys_address() {
    let (seed, mut chance) = chance("primary's address");
    let config = |config: Config| config.database_line(RO).setting("query_wait_timeout", "20");
    let mut scene = Scene::with(seed, config).await;
    scene.knows_all().await;
    let own = scene.operator.replicas.system().await;
    let mut stranger = Stranger::new();
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    let readers = Readers::start(&scene.pooler.tcp());
    ledger.all_write().await;
    ledger.writes(chance.random_range(50..200)).await;
    // The node is lost; its pod's address goes to another cluster's primary before anybody says so.
    let replicas = &mut scene.operator.replicas;
    replicas.kill(0);
    stranger.listen(&replicas.host(0), replicas.port, As::Primary).await;
    let other = stranger.system().await;
    scene.shows("verify", "other_system").await;
    let detail = scene.shown().await["detail"].clone();
    assert_eq!(detail, format!("pg-1 has system identifier {other}, the cluster's is {own}"));
    let expected = format!("cluster pg: clients wait: {detail} state=verify reason=other_system");
    scene.pooler.logs(&expected).await;
    eventually("clients wait", async || scene.pooler.pool("cl_waiting").await > 0).await;
    // Now the watch says so.
    scene.operator.ready(0, false).await;
    let named = scene.operator.fail_over().await;
    scene.shows("open", "NULL").await;
    ledger.writes(100).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, scene.operator.primary, LOST).await;
    let (first, _) = books.served_after(named, CLIENTS);
    println!("  first write after {first:?}");
    readers.heard_only(&own).await;
    assert_eq!(stranger.statements_of_clients(), [""; 0]);
}

#[tokio::test]
async fn without_a_monitor_each_connection_finds_out_whose_server_it_is() {
    let (seed, _) = chance("no monitor");
    let config = |config: Config| {
        let config = config.database_line(RO).setting("monitor_user", "");
        config.setting("query_wait_timeout", "1")
    };
    let mut scene = Scene::with(seed, config).await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
    let own = scene.operator.replicas.system().await;
    let readers = Readers::start(&scene.pooler.tcp());
    let mut strangers = [Stranger::new(), Stranger::new()];
    for (number, role, stranger) in [(2, As::Standby, 0), (0, As::Primary, 1)] {
        let stranger = &mut strangers[stranger];
        let replicas = &mut scene.operator.replicas;
        replicas.kill(number);
        stranger.listen(&replicas.host(number), replicas.port, role).await;
        let other = stranger.system().await;
        if role == As::Primary {
            let mut client = scene.pooler.client().await;
            let told = client.query("INSERT INTO ledger VALUES (-2)").await;
            assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
        }
        let expected =
            format!("closing because: the server has system identifier {other}, the cluster's is {own}");
        scene.pooler.logs(&expected).await;
    }
    readers.heard_only(&own).await;
    for stranger in &strangers {
        assert_eq!(stranger.statements_of_clients(), [""; 0]);
    }
}

// ---- near by ----

#[tokio::test]
async fn our_own_zone_is_found_when_the_slice_of_our_service_comes_and_readers_go_there() {
    let (seed, _) = chance("zone");
    // A pod is in no slice yet when it starts; this variable tells every pod where the API is.
    let config =
        |config: Config| config.database_line(RO).environment("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    let scene = Scene::with(seed, config).await;
    let space = &scene.operator.space;
    let in_zone = |zone: &str| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
    for (pod, zone) in [("pg-1", "a"), ("pg-2", "a"), ("pg-3", "b")] {
        space.change(POD, pod, in_zone(zone)).await;
    }
    let serves = async || {
        let members = scene.pooler.admin("SHOW MEMBERS").await;
        let serving = members.into_iter().filter(|member| member["serves_reads"] == "yes");
        serving.map(|member| format!("{}/{}", member["name"], member["zone"])).collect::<Vec<_>>()
    };
    eventually("both standbys serve", async || serves().await == ["pg-2/a", "pg-3/b"]).await;
    space
        .create(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "pgweir-rw-1", "labels": { "kubernetes.io/service-name": "pgweir-rw" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["127.0.0.1"], "zone": "b", "conditions": { "ready": true } }],
        }))
        .await;
    eventually("the one of our zone serves", async || serves().await == ["pg-3/b"]).await;
    scene.pooler.logs("cluster pg: our own zone is b").await;
}

// ---- a switchover that nobody carries out ----

#[tokio::test]
async fn a_switchover_that_the_operator_never_begins_says_what_it_leaves_and_can_be_taken_back() {
    let (seed, _) = chance("no operator");
    let scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(50).await;
    let call = |to: &str| Call::new(&scene.kube, &scene.operator.space, to).pooler(scene.pooler.port);
    let (done, said) = call("pg-2").holding("2").run().await;
    assert!(!done, "{said}");
    let expected = "the primary has not moved to pg-2 within 2 s. The request stands: the operator may still \
        carry it out, and clients wait until it has. To take it back: pgweir switchover pg --to pg-1";
    assert!(said.contains(expected), "{said}");
    assert_eq!(scene.operator.target().await, "pg-2");
    scene.shows("draining", "moving").await;
    let (done, said) = call("pg-1").run().await;
    assert!(done && said.contains("taken back: primary=pg-1 was_asked_for=pg-2"), "{said}");
    assert_eq!(scene.operator.target().await, "pg-1");
    scene.shows("open", "NULL").await;
    ledger.writes(100).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, 0, &[]).await;
    let (done, said) = call("pg-1").run().await;
    assert!(!done && said.contains("pg-1 is the primary already"), "{said}");
}

// ---- rolling update, demotion and promotion ----

/// Load of writers and readers, while the operator does something that takes its time.
struct Load {
    ledger: Ledger,
    readers: Readers,
    own: String,
}

impl Load {
    async fn start(scene: &Scene, seed: u64, run: usize) -> Load {
        scene.knows_all().await;
        let mut ledger = Ledger::of(&scene.pooler.tcp(), run * CLIENTS..(run + 1) * CLIENTS, seed);
        let readers = Readers::start(&scene.pooler.tcp());
        ledger.all_write().await;
        let own = scene.operator.replicas.system().await;
        Load { ledger, readers, own }
    }

    /// Everybody is served again. Writers were told no more than this, readers nothing at all.
    async fn ends(mut self, scene: &Scene, allowed: &[&str]) -> Books {
        self.ledger.writes(100).await;
        let books = self.ledger.stop().await;
        books.agree_with(&scene.operator.replicas, scene.operator.primary, allowed).await;
        self.readers.heard_no_error(&self.own).await;
        books
    }
}

const MOVES: &str = "pgweir_primary_changes_total{cluster=\"pg\"}";
const SEVERED: &str = "pgweir_stale_primary_severed_total{cluster=\"pg\"}";

#[tokio::test]
async fn a_rolling_update_that_restarts_the_primary_costs_a_wait_and_no_error() {
    let (seed, mut chance) = chance("rolling update, restart");
    let mut scene = Scene::with(seed, |config| config.database_line(RO)).await;
    for run in (0..).take(runs() as usize) {
        let mut load = Load::start(&scene, seed, run).await;
        load.ledger.writes(chance.random_range(50..200)).await;
        scene.operator.update_standbys().await;
        scene.operator.remove_primarys_pod().await;
        scene.shows("draining", "moving").await;
        let detail = scene.shown().await["detail"].clone();
        assert_eq!(detail, format!("the primary moves: {RESTARTS_POD}"));
        eventually("clients wait", async || scene.pooler.pool("cl_waiting").await > 0).await;
        scene.operator.primarys_pod_comes_back().await;
        scene.shows("open", "NULL").await;
        load.ends(&scene, &[]).await;
        assert_eq!((scene.metric(MOVES).await, scene.metric(SEVERED).await), (0.0, 0.0));
        assert_eq!(scene.metric("pgweir_cluster_held_seconds{cluster=\"pg\"}").await, 0.0);
    }
}

#[tokio::test]
async fn a_rolling_update_with_a_switchover_costs_writers_what_is_open_and_readers_nothing() {
    let (seed, mut chance) = chance("rolling update, switchover");
    let mut scene = Scene::with(seed, |config| config.database_line(RO)).await;
    for run in (0..).take(runs() as usize) {
        let mut load = Load::start(&scene, seed, run).await;
        load.ledger.writes(chance.random_range(50..200)).await;
        scene.operator.update_standbys().await;
        scene.shows("open", "NULL").await;
        let moved = scene.operator.update_primary_by_switchover().await;
        scene.shows("open", "NULL").await;
        scene
            .pooler
            .logs("clients wait: the primary moves: Upgrading cluster state=draining reason=moving")
            .await;
        let books = load.ends(&scene, LOST).await;
        only_what_was_open_failed(&books, &[moved]);
        assert_eq!(scene.metric(MOVES).await, run as f64 + 1.0);
    }
}

#[tokio::test]
async fn a_demoted_cluster_is_read_from_and_written_to_again_once_its_promotion_is_complete() {
    let (seed, mut chance) = chance("demotion");
    let mut scene = Scene::with(seed, |config| config.database_line(RO)).await;
    for run in (0..).take(runs() as usize) {
        scene.knows_all().await;
        let mut ledger = Ledger::of(&scene.pooler.tcp(), run * CLIENTS..(run + 1) * CLIENTS, seed);
        ledger.all_write().await;
        ledger.writes(chance.random_range(50..200)).await;
        scene.operator.begin_demotion().await;
        scene.shows("draining", "no_primary").await;
        let detail = scene.shown().await["detail"].clone();
        assert_eq!(detail, "no primary: it is a replica cluster: its primary is in another one");
        scene.operator.end_demotion().await;
        scene.shows("draining", "no_primary").await;
        eventually("clients wait", async || scene.pooler.pool("cl_waiting").await > 0).await;
        let mut reader = Raw::login(&scene.pooler.tcp(), &Login::new("app", "ro")).await;
        reader.query("SELECT pg_is_in_recovery()").await.is("T D(t) C(SELECT 1) Z(I)");
        let promoting = Instant::now();
        scene.operator.promote_cluster().await;
        scene.shows("open", "NULL").await;
        ledger.writes(100).await;
        let books = ledger.stop().await;
        books.agree_with(&scene.operator.replicas, scene.operator.primary, LOST).await;
        // What was open at the fast shutdown is lost, and nothing to the end of the old sessions.
        let failed = |entry: &Entry| entry.outcome != Outcome::Acknowledged && entry.ended >= promoting;
        assert_eq!(books.count(failed), 0, "{}", books.summary());
        let said =
            "clients wait: the primary moves: Promoting to primary cluster state=draining reason=moving";
        scene.pooler.logs(said).await;
        assert_eq!((scene.metric(MOVES).await, scene.metric(SEVERED).await), (0.0, 0.0));
        assert_eq!(scene.metric("pgweir_cluster_timeline{cluster=\"pg\"}").await, run as f64 + 2.0);
    }
}
