//! Several poolers behind one address (scenario C8): a cancel finds its query wherever it arrives.
//!
//! [`Group`] is real pooler processes over one PostgreSQL, and one address that hands each new connection
//! to the next of them, as a Kubernetes Service does. `PGWEIR_TEST_SEED` chooses who is cancelled.

use crate::support;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::message::{cancel_request, query};
use support::pooler::{Config, is_ours};
use support::process::free_port;
use support::{Address, Kube, Login, PROMPTLY, Pooler, Raw, Space, eventually, http};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const CLIENTS: usize = 24;
const ROUNDS: usize = 4;

/// Placeholders in the ini file for what is known only when all poolers listen.
const NO_PEERS: &str = "\n[peers]\n";
const SLICE: &str = "discovery.k8s.io/v1/EndpointSlice";
const NO_NAMES: &str = "peers_dns = 127.0.0.1:1\n";

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

// ---- the group ----

/// Pooler processes that know each other.
struct Group {
    poolers: Vec<Pooler>,
    pages: Vec<SocketAddr>,
    service: Service,
}

/// An address that hands each new connection to the next pooler.
struct Service {
    address: Address,
    _tasks: JoinSet<()>,
}

impl Service {
    async fn start(poolers: &[Pooler]) -> Service {
        let ports: Vec<u16> = poolers.iter().map(|pooler| pooler.port).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port exists");
        let address = Address::Tcp(listener.local_addr().expect("it is bound"));
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let port = ports[next.fetch_add(1, Ordering::Relaxed) % ports.len()];
                connections.spawn(async move {
                    let pooler = TcpStream::connect(("127.0.0.1", port)).await;
                    let mut pooler = pooler.expect("the pooler accepts");
                    // Either side may end the connection at any time.
                    let _ = copy_bidirectional(&mut client, &mut pooler).await;
                });
            }
        });
        Service { address, _tasks: tasks }
    }
}

impl Group {
    /// Poolers with these numbers that know each other by `[peers]`.
    async fn by_id(ids: &[u16]) -> Group {
        let (poolers, pages) = launch(ids.iter().map(|id| Group::numbered(*id))).await;
        Group::introduced(ids, poolers, pages).await
    }

    /// Tells each of them about all by `[peers]`.
    async fn introduced(ids: &[u16], poolers: Vec<Pooler>, pages: Vec<SocketAddr>) -> Group {
        let lines = ids.iter().zip(&poolers);
        let lines = lines.map(|(id, pooler)| format!("{id} = host=127.0.0.1 port={}", pooler.port));
        let lines = lines.collect::<Vec<_>>().join("\n");
        for pooler in &poolers {
            pooler.edit(NO_PEERS, &format!("{NO_PEERS}{lines}\n"));
            pooler.admin("RELOAD").await;
        }
        Group { service: Service::start(&poolers).await, poolers, pages }
    }

    /// Poolers in pods of these uids that find each other by `peers_dns`.
    async fn by_name(uids: &[&str]) -> Group {
        let config = |uid: &&str| {
            let member = Group::member().setting("peers_dns", "127.0.0.1:1");
            member.environment("PGWEIR_POD_UID", uid)
        };
        let (poolers, pages) = launch(uids.iter().map(config)).await;
        // A headless Service names all of them, ourselves too, and one that has just gone.
        let mut names: Vec<_> = poolers.iter().map(|pooler| format!("localhost:{}", pooler.port)).collect();
        names.push("127.0.0.1:1".to_owned());
        for pooler in &poolers {
            pooler.edit(NO_NAMES, &format!("peers_dns = {}\n", names.join(", ")));
            pooler.admin("RELOAD").await;
        }
        Group { service: Service::start(&poolers).await, poolers, pages }
    }

    /// Poolers in pods of their own that find each other by the EndpointSlices of a Service.
    async fn by_service(kube: &Kube, space: &Space, config: impl Fn(Config) -> Config) -> Group {
        let names = ["pooler-a", "pooler-b", "pooler-c"];
        let rules = json!([{
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        }]);
        space.grant("follower", rules).await;
        let kubeconfig = kube.kubeconfig_file("follower", &space.name).display().to_string();
        let mut uids = Vec::new();
        for name in names {
            space.pod(name, "127.0.0.1", json!({})).await;
            uids.push(space.uid(name).await);
        }
        let member = |uid: &String| {
            let member =
                Group::member().setting("peers_service", "pooler").environment("PGWEIR_POD_UID", uid);
            config(member.environment("KUBECONFIG", &kubeconfig))
        };
        let (poolers, pages) = launch(uids.iter().map(member)).await;
        for (name, (uid, pooler)) in names.iter().zip(uids.iter().zip(&poolers)) {
            let ready = json!({ "ready": true, "serving": true, "terminating": false });
            space.create(slice(name, uid, pooler.port, ready)).await;
        }
        for pooler in &poolers {
            eventually("all peers are known", async || pooler.admin("SHOW PEERS").await.len() == 3).await;
        }
        Group { service: Service::start(&poolers).await, poolers, pages }
    }

    fn numbered(id: u16) -> Config {
        Group::member().setting("peer_id", &id.to_string()).sections(NO_PEERS)
    }

    fn member() -> Config {
        Pooler::config().pool_size(u32::try_from(CLIENTS).expect("a few"))
    }

    /// Cancel requests of the pooler by their result.
    async fn cancels(&self, pooler: usize) -> BTreeMap<String, u64> {
        let (_, page) = http::get(self.pages[pooler], "/metrics").await;
        let samples = page.lines().filter_map(|line| {
            let (result, count) =
                line.strip_prefix("pgweir_cancel_requests_total{result=\"")?.split_once("\"} ")?;
            Some((result.to_owned(), count.parse().expect("a count")))
        });
        samples.filter(|(_, count)| *count > 0).collect()
    }

    /// What each pooler has counted, in one line.
    async fn counts(&self) -> String {
        let mut lines = Vec::new();
        for pooler in 0..self.poolers.len() {
            let counts = self.cancels(pooler).await;
            let words: Vec<_> = counts.iter().map(|(result, count)| format!("{result}={count}")).collect();
            lines.push(words.join(" "));
        }
        lines.join(" | ")
    }

    /// How many queries of the group's clients sleep in PostgreSQL.
    async fn sleepers(&self) -> i64 {
        let names: Vec<_> = self.poolers.iter().map(|pooler| format!("'{}'", pooler.database)).collect();
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname IN ({}) \
             AND state = 'active' AND wait_event = 'PgSleep'",
            names.join(", ")
        );
        self.poolers[0].number(&sql).await
    }

    async fn sleep(&self, count: i64) {
        eventually(&format!("{count} queries sleep"), async || self.sleepers().await == count).await;
    }
}

/// What the controller writes of a pod behind the Service.
fn slice(pod: &str, uid: &str, port: u16, conditions: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": pod, "labels": { "kubernetes.io/service-name": "pooler" } },
        "addressType": "IPv4",
        "ports": [{ "name": "postgres", "port": port }],
        "endpoints": [{
            "addresses": ["127.0.0.1"],
            "conditions": conditions,
            "targetRef": { "kind": "Pod", "name": pod, "uid": uid },
        }],
    })
}

async fn launch(configs: impl Iterator<Item = Config>) -> (Vec<Pooler>, Vec<SocketAddr>) {
    let (mut poolers, mut pages) = (Vec::new(), Vec::new());
    for config in configs {
        let page = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let ours = |config: Config| config.setting("metrics_listen_addr", &page.to_string());
        poolers.push(if is_ours() { ours(config) } else { config }.start().await);
        pages.push(page);
    }
    (poolers, pages)
}

async fn sleeping_client(address: &Address) -> Raw {
    sleeping_client_of(address, 0).await
}

/// One that speaks this minor version of protocol 3.
async fn sleeping_client_of(address: &Address, minor: u16) -> Raw {
    let mut client = Raw::login(address, &Login::new("app", "app").protocol(minor)).await;
    client.send(query("SELECT pg_sleep(30)")).await;
    client
}

/// Cancels them all at once through the address; each must be told promptly.
async fn cancel_all(service: &Address, clients: &mut [Raw]) {
    let mut cancels = JoinSet::new();
    for client in clients.iter() {
        let (address, key) = (service.clone(), client.key.clone());
        cancels.spawn(async move { Raw::cancel(&address, &key).await });
    }
    let started = Instant::now();
    for client in clients {
        client.ready(1).await.is("T* E(57014) Z(I)");
    }
    assert!(started.elapsed() < PROMPTLY, "the cancels took {:?}", started.elapsed());
    cancels.join_all().await;
}

// ---- every cancel hits its query, and nobody else's ----

async fn every_cancel_hits_its_query_and_nobody_elses(group: &Group) {
    let seed = number_from("PGWEIR_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("PGWEIR_TEST_SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let service = &group.service.address;
    for round in 0..ROUNDS {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let minor = if number % 2 == 0 { 0 } else { 2 };
            clients.push(sleeping_client_of(service, minor).await);
        }
        group.sleep(CLIENTS as i64).await;
        clients.shuffle(&mut chance);
        let (canceled, others) = clients.split_at_mut(CLIENTS / 2);
        cancel_all(service, canceled).await;
        let sleepers = group.sleepers().await;
        assert_eq!(sleepers, others.len() as i64, "seed {seed}, round {round}: others were cancelled");
        for client in others.iter_mut() {
            let heard = client.hears_within(Duration::ZERO).await;
            assert!(!heard, "seed {seed}, round {round}: another client was told something");
        }
        // Each of the others has lost nothing: it is cancelled now, once, and can go on.
        cancel_all(service, others).await;
        for (number, client) in clients.iter_mut().enumerate() {
            let reply = client.query(&format!("SELECT {number}")).await;
            reply.is(&format!("T D({number}) C(SELECT 1) Z(I)"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_cancel_through_three_poolers_of_peers_hits_its_query_every_time_and_nobody_elses() {
    let group = Group::by_id(&[1, 2, 16_383]).await;
    every_cancel_hits_its_query_and_nobody_elses(&group).await;
    if is_ours() {
        let counts = group.counts().await;
        assert!(counts.contains("peer="), "some were passed on: {counts}");
        assert!(!counts.contains("unknown=") && !counts.contains("failed="), "none was lost: {counts}");
        assert!(!counts.contains("not_here="), "each went straight to its owner: {counts}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_cancel_through_three_poolers_of_a_dns_name_hits_its_query_every_time_and_nobody_elses() {
    if !is_ours() {
        return;
    }
    let group = Group::by_name(&["pod-a", "pod-b", "pod-c"]).await;
    every_cancel_hits_its_query_and_nobody_elses(&group).await;
    let counts = group.counts().await;
    assert!(counts.contains("peer="), "some were passed on: {counts}");
    assert!(!counts.contains("unknown=") && !counts.contains("failed="), "none was lost: {counts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_cancel_through_three_poolers_of_a_service_hits_its_query_every_time_and_nobody_elses() {
    if !is_ours() {
        return;
    }
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let group = Group::by_service(&kube, &space, |config| config).await;
    every_cancel_hits_its_query_and_nobody_elses(&group).await;
    let counts = group.counts().await;
    assert!(counts.contains("peer="), "some were passed on: {counts}");
    assert!(!counts.contains("unknown=") && !counts.contains("failed="), "none was lost: {counts}");
    assert!(!counts.contains("not_here="), "each went straight to its owner: {counts}");
}

#[tokio::test]
async fn a_pod_that_is_about_to_end_is_still_asked_about_its_clients_and_takes_no_new_ones() {
    if !is_ours() {
        return;
    }
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let draining = |config: Config| config.setting("shutdown_drain_timeout", "60");
    let mut group = Group::by_service(&kube, &space, draining).await;
    let mut client = sleeping_client(&group.poolers[0].tcp()).await;
    group.sleep(1).await;
    // As its pod is deleted: the endpoint is neither ready nor serving, and the process gets SIGTERM.
    let leaving = json!({ "ready": false, "serving": false, "terminating": true });
    let uid = space.uid("pooler-a").await;
    let endpoints = slice("pooler-a", &uid, group.poolers[0].port, leaving)["endpoints"].take();
    space.change(SLICE, "pooler-a", json!({ "endpoints": endpoints })).await;
    group.poolers[0].signal("TERM");
    group.poolers[0].logs("got SIGTERM, shutting down").await;
    eventually("no new client may log in", async || {
        Raw::try_login(&group.poolers[0].tcp(), &Login::new("app", "app")).await.is_err()
    })
    .await;
    let refusal = group.poolers[0].refuses(&Login::new("app", "app")).await;
    assert!(refusal.contains("pooler is shutting down"), "{refusal}");
    Raw::cancel(&group.poolers[1].tcp(), &client.key).await;
    client.ready(1).await.is("T* E(57014) Z(I)");
    // It was the last one.
    assert!(group.poolers[0].wait().success());
    assert_eq!(group.cancels(1).await, BTreeMap::from([("peer".to_owned(), 1)]));
    // A pod that is gone is no peer any more.
    space.delete(SLICE, "pooler-a", 0).await;
    eventually("two are left", async || group.poolers[1].admin("SHOW PEERS").await.len() == 2).await;
}

#[tokio::test]
async fn without_the_right_to_watch_a_service_the_log_says_so_and_cancels_go_by_the_dns_name() {
    if !is_ours() {
        return;
    }
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let kubeconfig = kube.kubeconfig_file("stranger", &space.name).display().to_string();
    let config = |uid: &&str| {
        let member =
            Group::member().setting("peers_service", "pooler").environment("KUBECONFIG", &kubeconfig);
        member.setting("peers_dns", "127.0.0.1:1").environment("PGWEIR_POD_UID", uid)
    };
    let (poolers, pages) = launch(["a", "b"].iter().map(config)).await;
    for pooler in &poolers {
        pooler
            .logs("peers of service pooler cannot be watched: endpointslices.discovery.k8s.io is forbidden")
            .await;
        let names: Vec<_> = poolers.iter().map(|pooler| format!("127.0.0.1:{}", pooler.port)).collect();
        pooler.edit(NO_NAMES, &format!("peers_dns = {}\n", names.join(", ")));
        pooler.admin("RELOAD").await;
    }
    let group = Group { service: Service::start(&poolers).await, poolers, pages };
    let mut client = sleeping_client(&group.poolers[0].tcp()).await;
    group.sleep(1).await;
    Raw::cancel(&group.poolers[1].tcp(), &client.key).await;
    client.ready(1).await.is("T* E(57014) Z(I)");
}

#[tokio::test]
async fn of_two_poolers_with_one_number_both_are_asked_and_the_right_one_cancels() {
    if !is_ours() {
        return;
    }
    let group = Group::by_name(&["pod-a", "pod-a", "pod-c"]).await;
    let mut first = sleeping_client(&group.poolers[0].tcp()).await;
    let mut second = sleeping_client(&group.poolers[1].tcp()).await;
    assert_eq!(first.key[1..3], second.key[1..3], "both keys have the same number");
    group.sleep(2).await;
    // Through the third, which has another number.
    Raw::cancel(&group.poolers[2].tcp(), &second.key).await;
    second.ready(1).await.is("T* E(57014) Z(I)");
    assert_eq!(group.sleepers().await, 1, "the first one still runs");
    // Through the other one of the same number, which does not know the key.
    Raw::cancel(&group.poolers[1].tcp(), &first.key).await;
    first.ready(1).await.is("T* E(57014) Z(I)");
    group.sleep(0).await;
}

/// `PGWEIR_TEST_PGBOUNCER` names a PgBouncer of 1.21 or later; without it there is nobody to agree with.
#[tokio::test]
async fn a_pgbouncer_among_the_peers_agrees_about_the_key() {
    let Some(pgbouncer) = std::env::var_os("PGWEIR_TEST_PGBOUNCER").filter(|_| is_ours()) else {
        return;
    };
    let ours = Group::numbered(258).start().await;
    let theirs = Group::numbered(16_383).program(pgbouncer.into()).start().await;
    let group = Group::introduced(&[258, 16_383], vec![ours, theirs], Vec::new()).await;
    for (owner, other) in [(0, 1), (1, 0)] {
        let mut client = sleeping_client(&group.poolers[owner].tcp()).await;
        group.sleep(1).await;
        Raw::cancel(&group.poolers[other].tcp(), &client.key).await;
        client.ready(1).await.is("T* E(57014) Z(I)");
    }
}

// ---- nobody has the key ----

/// A key as a client of the pooler with this number has it.
fn key_of(id: u16, hops: u8) -> [u8; 8] {
    let [low, high] = id.to_le_bytes();
    [0x11, low, high, 0x44, 0x55, 0x66, 0x77, 0x88 | hops]
}

#[tokio::test]
async fn a_cancel_request_is_passed_on_once_even_if_peers_point_at_each_other() {
    if !is_ours() {
        return;
    }
    let group = Group::by_id(&[1, 2]).await;
    // Each takes the other for the owner of 9.
    for (pooler, other) in [(0, 1), (1, 0)] {
        let peer = format!("{NO_PEERS}9 = host=127.0.0.1 port={}\n", group.poolers[other].port);
        group.poolers[pooler].edit(NO_PEERS, &peer);
        group.poolers[pooler].admin("RELOAD").await;
    }
    Raw::cancel(&group.poolers[0].tcp(), &key_of(9, 3)).await;
    assert_eq!(group.counts().await, "peer=1 | not_here=1");
    // A peer, ours or PgBouncer, has passed these on already.
    for hops in 0..3 {
        Raw::cancel(&group.poolers[0].tcp(), &key_of(9, hops)).await;
    }
    assert_eq!(group.counts().await, "not_here=3 peer=1 | not_here=1");
}

#[tokio::test]
async fn a_key_that_no_pooler_has_is_asked_about_once_everywhere_but_not_at_ourselves() {
    if !is_ours() {
        return;
    }
    let group = Group::by_name(&["pod-a", "pod-b", "pod-c"]).await;
    Raw::cancel(&group.poolers[0].tcp(), &key_of(12_345, 3)).await;
    assert_eq!(group.counts().await, "peer=1 | not_here=1 | not_here=1");
    let own_number = group.poolers[1].client().await.key;
    let own_number = u16::from_le_bytes([own_number[1], own_number[2]]);
    Raw::cancel(&group.poolers[1].tcp(), &key_of(own_number, 3)).await;
    assert_eq!(group.counts().await, "not_here=1 peer=1 | not_here=1 peer=1 | not_here=2");
}

#[tokio::test]
async fn without_any_peer_a_foreign_key_is_logged_and_counted() {
    if !is_ours() {
        return;
    }
    let group = Group::by_id(&[1]).await;
    Raw::cancel(&group.poolers[0].tcp(), &key_of(7, 3)).await;
    group.poolers[0].logs("ignored: no client has its key, and no peer is known that could").await;
    assert_eq!(group.counts().await, "unknown=1");
    // Its own entry in [peers] is no peer.
    Raw::cancel(&group.poolers[0].tcp(), &key_of(1, 3)).await;
    assert_eq!(group.counts().await, "unknown=2");
}

#[tokio::test]
async fn the_key_of_a_pooler_that_is_gone_is_ignored_and_costs_nothing() {
    let mut group = Group::by_id(&[1, 2]).await;
    let key = group.poolers[1].client().await.key;
    group.poolers[1].signal("QUIT");
    group.poolers[1].wait();
    for _ in 0..50 {
        Raw::cancel(&group.poolers[0].tcp(), &key).await;
    }
    nothing_is_left(&group.poolers[0]).await;
    if is_ours() {
        assert_eq!(group.cancels(0).await, BTreeMap::from([("failed".to_owned(), 50)]));
    }
}

#[tokio::test]
async fn a_peer_that_never_answers_takes_its_pools_connections_and_the_cancels_time_and_no_more() {
    if !is_ours() {
        return;
    }
    // It accepts in the kernel, and nobody ever reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port exists");
    let port = silent.local_addr().expect("it is bound").port();
    let peers = format!("\n[peers]\n2 = host=127.0.0.1 port={port} pool_size=2\n");
    let config = Pooler::config().setting("peer_id", "1").sections(&peers);
    // A canceller is not logging in, so it may take longer than a login.
    let config = config.setting("cancel_wait_timeout", "3").setting("client_login_timeout", "2");
    let pooler = config.start().await;
    nothing_is_left(&pooler).await;
    let files = open_files(&pooler);
    let started = Instant::now();
    let mut cancels = JoinSet::new();
    for _ in 0..150 {
        let address = pooler.tcp();
        cancels.spawn(async move {
            let mut canceller = Raw::connect(&address).await.expect("the pooler accepts");
            canceller.send(cancel_request(&key_of(2, 3))).await;
            canceller.rest().await.is("EOF");
        });
    }
    let two_of_them = async || {
        let pools = pooler.admin("SHOW PEER_POOLS").await;
        pools.first().is_some_and(|pool| pool["peer_id"] == "2" && pool["sv_active_cancel"] == "2")
    };
    eventually("two requests are on their way", two_of_them).await;
    // Logins and our own cancels go on meanwhile.
    let mut client = timeout(PROMPTLY, pooler.client()).await.expect("a login is not hindered");
    client.send(query("SELECT pg_sleep(30)")).await;
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it sleeps", async || pooler.number(sql).await == 1).await;
    Raw::cancel(&pooler.tcp(), &client.key).await;
    client.ready(1).await.is("T* E(57014) Z(I)");
    cancels.join_all().await;
    assert!(started.elapsed() < 2 * PROMPTLY, "the cancels took {:?}", started.elapsed());
    drop(client);
    nothing_is_left(&pooler).await;
    eventually("all sockets are closed", async || open_files(&pooler) <= files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_foreign_keys_hinders_no_login_and_no_cancel_of_our_own() {
    if !is_ours() {
        return;
    }
    let group = Group::by_name(&["pod-a", "pod-b", "pod-c"]).await;
    nothing_is_left(&group.poolers[0]).await;
    let files = open_files(&group.poolers[0]);
    let mut storm = JoinSet::new();
    for number in 0..8 {
        let address = group.poolers[0].tcp();
        storm.spawn(async move {
            for _ in 0..50 {
                Raw::cancel(&address, &key_of(number, 3)).await;
            }
        });
    }
    while !storm.is_empty() {
        let started = Instant::now();
        let mut client = sleeping_client(&group.poolers[0].tcp()).await;
        group.sleep(1).await;
        Raw::cancel(&group.poolers[0].tcp(), &client.key).await;
        client.ready(1).await.is("T* E(57014) Z(I)");
        assert!(started.elapsed() < PROMPTLY, "login and cancel took {:?}", started.elapsed());
        while storm.try_join_next().is_some() {}
    }
    let counts = group.cancels(0).await;
    assert_eq!(counts["peer"] + counts.get("failed").copied().unwrap_or(0), 400, "{counts:?}");
    nothing_is_left(&group.poolers[0]).await;
    // The pool may have opened some servers meanwhile, for clients that came while one was being canceled.
    eventually("all sockets are closed", async || open_files(&group.poolers[0]) <= files + 4).await;
}

/// Sockets and files that the pooler has open.
fn open_files(pooler: &Pooler) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", pooler.pid())).expect("the pooler runs").count()
}

/// No request waits or is under way, and a client is served.
async fn nothing_is_left(pooler: &Pooler) {
    eventually("no request is left", async || {
        let pools = pooler.admin("SHOW PEER_POOLS").await;
        let columns = ["cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active_cancel", "sv_login"];
        pools.iter().all(|pool| columns.iter().all(|column| pool[*column] == "0"))
    })
    .await;
    pooler.is_clean().await;
}
