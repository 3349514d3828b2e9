//! A real cluster in the hands of an operator that does what CloudNativePG does, in its order, to objects of
//! a real Kubernetes API: what becomes of clients while the primary moves, or while there is nobody to write to. The
//! moves whose time is asserted are in `operator_times.rs`.
//!
//! The seed of each run's timing is printed.

use crate::support;

use rand::Rng;
use serde_json::json;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use support::kube::{Kube, Space};
use support::ledger::{Ledger, Outcome, rows};
use support::operator::{CLUSTER, Operator, POD, Patroni};
use support::process::free_port;
use support::replicas::Stop;
use support::runs::{chance, runs};
use support::scene::{CLIENTS, Call, LOST, ONE_AT_A_TIME, Scene, config_for, following};
use support::{Address, Login, Raw, eventually};
use tokio::sync::watch;
use tokio::time::Instant;

/// Reads until told to end. Returns how many answers there were, and the errors.
async fn read(address: Address, mut end: watch::Receiver<bool>) -> (u64, Vec<String>) {
    let mut client = Raw::login(&address, &Login::new("app", "ro")).await;
    let (mut answers, mut errors) = (0, Vec::new());
    while !*end.borrow_and_update() {
        let reply = client.query("SELECT pg_is_in_recovery(), pg_sleep(0.002)").await;
        if reply.count(b'E') > 0 || reply.closed {
            errors.push(reply.to_string());
            client = Raw::login(&address, &Login::new("app", "ro")).await;
        } else {
            answers += 1;
        }
    }
    (answers, errors)
}

#[tokio::test]
async fn a_planned_switchover_costs_no_reader_an_error() {
    let (seed, mut chance) = chance("readers");
    let ro = "ro = cluster=pg role=ro dbname=app";
    let mut scene = Scene::with(seed, |config| config.database_line(ro)).await;
    scene.knows_all().await;
    let (stop, end) = watch::channel(false);
    let readers: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(read(scene.pooler.tcp(), end.clone()))).collect();
    for _ in 0..runs() {
        scene.operator.pause(chance.random_range(100..400)).await;
        let to = scene.operator.any_standby();
        scene.operator.switch_over(to).await;
        scene.knows_all().await;
    }
    stop.send(true).expect("the readers listen");
    let mut all = 0;
    for reader in readers {
        let (answers, errors) = reader.await.expect("a reader does not panic");
        assert_eq!(errors, [] as [String; 0]);
        all += answers;
    }
    println!("  {all} answers");
}

#[tokio::test]
async fn a_session_on_the_old_primary_is_ended_when_the_primary_has_moved() {
    let (seed, _) = chance("session mode");
    let mut scene = Scene::with(seed, |config| config.mode("session")).await;
    let mut session = scene.pooler.client().await;
    session.query("SELECT 1").await.is("T D C Z(I)");
    scene.knows_all().await;
    let moved = scene.operator.switch_over(1).await;
    let told = session.rest().await;
    assert!(told.farewell().starts_with("FATAL 57P01"), "{told}");
    println!("  {:?} ago the other one was named", moved.named.elapsed());
    scene.serves().await;
}

// ---- pgweir switchover ----

#[tokio::test]
async fn a_switchover_is_carried_out_although_nobody_reads_what_it_says() {
    let (seed, _) = chance("unread switchover");
    let mut scene = Scene::start(seed).await;
    scene.knows_all().await;
    let to = scene.operator.any_standby();
    let call = Call::new(&scene.kube, &scene.operator.space, &scene.operator.pod(to));
    let (_, done) = tokio::join!(scene.operator.obey(), call.pooler(scene.pooler.port).run_unread());
    assert!(done && scene.operator.primary == to);
}

/// What a Service's controller writes of one pooler.
async fn endpoint(space: &Space, number: usize, port: u16) {
    space
        .create(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("pgweir-rw-{number}"),
                "labels": { "kubernetes.io/service-name": "pgweir-rw" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "postgres", "port": port }],
            "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": true } }],
        }))
        .await;
}

#[tokio::test]
async fn a_switchover_holds_all_poolers_of_a_service() {
    let (seed, _) = chance("two poolers");
    let mut scene = Scene::start(seed).await;
    let second = following(&scene.kube, &scene.operator, "follower").start().await;
    for (number, pooler) in [&scene.pooler, &second].into_iter().enumerate() {
        endpoint(&scene.operator.space, number, pooler.port).await;
    }
    let mut ledgers = [
        Ledger::of(&scene.pooler.tcp(), 0..CLIENTS / 2, seed),
        Ledger::of(&second.tcp(), CLIENTS / 2..CLIENTS, seed),
    ];
    for _ in 0..2 {
        scene.knows_all().await;
        for ledger in &mut ledgers {
            ledger.writes(50).await;
        }
        let to = scene.operator.any_standby();
        let call = Call::new(&scene.kube, &scene.operator.space, &scene.operator.pod(to));
        let (_, (done, said)) = tokio::join!(scene.operator.obey(), call.run());
        assert!(done && said.contains("poolers=2"), "{said}");
    }
    for mut ledger in ledgers {
        ledger.writes(50).await;
        let books = ledger.stop().await;
        books.agree_with(&scene.operator.replicas, scene.operator.primary, &[]).await;
    }
}

#[tokio::test]
async fn a_switchover_that_cannot_hold_all_poolers_moves_nothing() {
    let (seed, _) = chance("a pooler that is away");
    let scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(50).await;
    let away = free_port();
    let call = Call::new(&scene.kube, &scene.operator.space, "pg-2").pooler(scene.pooler.port).pooler(away);
    let (done, said) = call.run().await;
    assert!(!done, "{said}");
    let expected = format!("pooler 127.0.0.1:{away} did not obey, so nothing was moved");
    assert!(said.contains(&expected), "{said}");
    assert_eq!(scene.operator.target().await, "pg-1");
    ledger.writes(200).await;
    scene.shows("open", "NULL").await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, 0, &[]).await;
}

#[tokio::test]
async fn a_transaction_that_does_not_end_keeps_the_primary_where_it_is() {
    let (seed, _) = chance("long transaction");
    let scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(50).await;
    let mut open = scene.pooler.client().await;
    open.query("BEGIN; INSERT INTO ledger VALUES (-1)").await.is("C C Z(T)");
    let call = Call::new(&scene.kube, &scene.operator.space, "pg-2").pooler(scene.pooler.port);
    let (done, said) = call.holding("2").run().await;
    assert!(!done && said.contains("so nothing was moved"), "{said}");
    assert_eq!(scene.operator.target().await, "pg-1");
    open.query("COMMIT").await.is("C(COMMIT) Z(I)");
    ledger.writes(200).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, 0, &[]).await;
}

#[tokio::test]
async fn patronis_switchover_costs_no_client_an_error_either() {
    for kind in ["ConfigMap", "Endpoints"] {
        let (seed, _) = chance(kind);
        let kube = Kube::shared().await;
        let _turn = ONE_AT_A_TIME.lock().await;
        let space = kube.space().await;
        let mut patroni = Patroni::start(space.clone(), "pg", kind, seed).await;
        space.grant("follower", patroni.rules()).await;
        let cluster = format!("source=patroni namespace={}", space.name);
        let pooler = config_for(&kube, &space, "follower", &cluster, patroni.replicas.port).start().await;
        let mut ledger = Ledger::start(&pooler.tcp(), CLIENTS, seed);
        ledger.writes(100).await;
        let call =
            |to: &str| Call::new(&kube, &space, to).pooler(pooler.port).argument("--operator", "patroni");
        let (done, said) = call("pg-2").holding("1").run().await;
        assert!(!done && said.contains("To take it back: pgweir switchover pg --to pg-1"), "{said}");
        let (done, said) = call("pg-1").run().await;
        assert!(done && said.contains("taken back: primary=pg-1 was_asked_for=pg-2"), "{said}");
        ledger.writes(50).await;
        let ((), (done, said)) = tokio::join!(patroni.obey(), call("pg-2").run());
        assert!(done, "{said}");
        ledger.writes(100).await;
        let books = ledger.stop().await;
        books.agree_with(&patroni.replicas, 1, &[]).await;
    }
}

// ---- when there is nobody to write to ----

/// A scene in which clients wait for 1 s, and have been served.
async fn impatient(what: &str) -> Scene {
    let (seed, _) = chance(what);
    let scene = Scene::with(seed, |config| config.setting("query_wait_timeout", "1")).await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
    scene
}

#[tokio::test]
async fn a_fenced_primary_is_said_to_be_fenced_and_comes_back() {
    let mut scene = impatient("fencing").await;
    scene.operator.fence_primary().await;
    scene.shows("draining", "fenced").await;
    scene.is_refused("the primary pg-1 is fenced by cnpg.io/fencedInstances").await;
    scene.operator.unfence_primary().await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
}

#[tokio::test]
async fn a_cluster_that_hibernates_is_said_to_and_wakes_up() {
    let mut scene = impatient("hibernation").await;
    let operator = &mut scene.operator;
    operator.annotate("cnpg.io/hibernation", json!("on")).await;
    for number in 0..3 {
        operator.space.delete(POD, &operator.pod(number), 1800).await;
        operator.replicas.stop(number, Stop::Fast);
        operator.space.delete(POD, &operator.pod(number), 0).await;
    }
    scene.shows("draining", "no_primary").await;
    scene.is_refused("no primary: the cluster hibernates (cnpg.io/hibernation=on)").await;
    let operator = &mut scene.operator;
    for number in 0..3 {
        operator.replicas.restart(number).await;
        operator.create_pod(number).await;
    }
    operator.replicas.are_streaming(2).await;
    operator.annotate("cnpg.io/hibernation", json!(null)).await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
}

#[tokio::test]
async fn a_replica_cluster_is_not_written_to_until_it_is_promoted() {
    let scene = impatient("replica cluster").await;
    let replica = |replica| json!({ "spec": { "replica": replica } });
    let operator = &scene.operator;
    let becomes = replica(json!({ "enabled": true, "source": "other" }));
    operator.space.change(CLUSTER, "pg", becomes).await;
    scene.shows("draining", "no_primary").await;
    scene.is_refused("no primary: it is a replica cluster: its primary is in another one").await;
    operator.space.change(CLUSTER, "pg", replica(json!(null))).await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
}

#[tokio::test]
async fn a_restart_in_place_costs_a_wait_and_no_error() {
    let (seed, mut chance) = chance("restart in place");
    let mut scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    for _ in 0..runs() {
        ledger.writes(chance.random_range(50..200)).await;
        let began = Instant::now();
        scene.operator.restart_primary().await;
        println!("  the restart took {:?}", began.elapsed());
        ledger.writes(100).await;
    }
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, 0, &[]).await;
}

#[tokio::test]
async fn of_two_pods_with_the_primarys_label_neither_is_written_to() {
    let (seed, _) = chance("two labels");
    let kube = Kube::shared().await;
    let _turn = ONE_AT_A_TIME.lock().await;
    let space = kube.space().await;
    let operator = Operator::start(space.clone(), "pg", seed).await;
    space.grant("follower", operator.rules()).await;
    let label = "cnpg.io/instanceRole";
    let cluster = format!(
        "source=label namespace={} selector=cnpg.io/cluster=pg primary_label={label}=primary",
        space.name
    );
    let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let pooler = config_for(&kube, &space, "follower", &cluster, operator.replicas.port)
        .setting("metrics_listen_addr", &metrics.to_string())
        .setting("query_wait_timeout", "1")
        .start()
        .await;
    let scene = Scene { operator, pooler, kube, metrics, _turn };
    scene.shows("open", "NULL").await;
    scene.serves().await;
    let mut open = scene.pooler.client().await;
    open.query("BEGIN; INSERT INTO ledger VALUES (1)").await.is("C C Z(T)");
    let role = |role: &str| json!({ "metadata": { "labels": { label: role } } });
    space.change(POD, "pg-2", role("primary")).await;
    open.rest().await.is("E(57P01) EOF");
    scene.shows("hold", "several_primaries").await;
    scene.is_refused("several servers claim to be the primary: pg-1, pg-2").await;
    assert_eq!(scene.metric("pgweir_cluster_several_primaries{cluster=\"pg\"}").await, 1.0);
    assert_eq!(scene.metric("pgweir_stale_primary_severed_total{cluster=\"pg\"}").await, 1.0);
    space.change(POD, "pg-2", role("replica")).await;
    scene.shows("open", "NULL").await;
    assert_eq!(scene.metric("pgweir_cluster_several_primaries{cluster=\"pg\"}").await, 0.0);
    scene.serves().await;
}

#[tokio::test]
async fn an_address_with_another_clusters_server_behind_it_is_not_written_to() {
    let scene = impatient("another system").await;
    let mut open = scene.pooler.client().await;
    open.query("BEGIN; INSERT INTO ledger VALUES (1)").await.is("C C Z(T)");
    let system = scene.operator.replicas.sql(0, "SELECT system_identifier FROM pg_control_system()").await;
    let system = system[0][0].clone();
    // All servers here are copies of one; so it is the cluster that is another one.
    scene.operator.status(json!({ "systemID": "4711" })).await;
    open.rest().await.is("E(57P01) EOF");
    scene.shows("verify", "other_system").await;
    scene.is_refused(&format!("pg-1 has system identifier {system}, the cluster's is 4711")).await;
    assert_eq!(scene.metric("pgweir_stale_primary_severed_total{cluster=\"pg\"}").await, 1.0);
    scene.operator.status(json!({ "systemID": system })).await;
    scene.shows("open", "NULL").await;
    scene.serves().await;
}

#[tokio::test]
async fn rights_that_are_denied_are_said_and_used_once_granted() {
    let (seed, _) = chance("denied");
    let kube = Kube::shared().await;
    let _turn = ONE_AT_A_TIME.lock().await;
    let space = kube.space().await;
    let operator = Operator::start(space.clone(), "pg", seed).await;
    let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = following(&kube, &operator, "stranger");
    let config = config.setting("metrics_listen_addr", &metrics.to_string());
    let pooler = config.setting("query_wait_timeout", "1").start().await;
    let scene = Scene { operator, pooler, kube, metrics, _turn };
    // Without a right, there are only the operator's Services, and no DNS here that knows them.
    scene.shows("verify", "unreachable").await;
    let shown = scene.shown().await;
    assert_eq!((shown["primary"].as_str(), shown["source"].as_str()), ("pg-rw", "unreachable"));
    assert!(shown["detail"].starts_with("the primary pg-rw does not answer: "), "{shown:?}");
    assert_eq!(scene.metric("pgweir_cluster_source_up{cluster=\"pg\"}").await, 0.0);
    scene.pooler.logs("is forbidden: User \"stranger\"").await;
    let refusal = scene.pooler.refuses(&Login::new("app", "app")).await;
    assert!(refusal.contains("query_wait_timeout"), "{refusal}");
    scene.operator.space.grant("stranger", scene.operator.rules()).await;
    scene.shows("open", "NULL").await;
    assert_eq!(scene.metric("pgweir_cluster_source_up{cluster=\"pg\"}").await, 1.0);
    scene.serves().await;
}

#[tokio::test]
async fn without_the_api_nobody_else_is_taken_for_the_primary() {
    let (seed, _) = chance("API away in a failover");
    let mut scene = Scene::at(Arc::new(Kube::start().await), seed, |config| config).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    scene.knows_all().await;
    ledger.writes(50).await;
    Arc::get_mut(&mut scene.kube).expect("nobody shares it").stop_api();
    let source = "pgweir_cluster_source_up{cluster=\"pg\"}";
    eventually("the source is away", async || scene.metric(source).await == 0.0).await;
    scene.operator.replicas.kill(0);
    let to = scene.operator.replicas.best_standby().await;
    scene.operator.replicas.promote(to).await;
    let before = rows(&scene.operator.replicas, to).await;
    eventually("clients wait", async || scene.pooler.pool("cl_waiting").await > 0).await;
    let kube = Arc::get_mut(&mut scene.kube).expect("nobody shares it");
    assert!(kube.start_api().await, "the server starts again at its port");
    eventually("the source is back", async || scene.metric(source).await == 1.0).await;
    assert_eq!(rows(&scene.operator.replicas, to).await, before, "nobody has named it");
    let pod = scene.operator.pod(to);
    scene.operator.status(json!({ "targetPrimary": pod, "currentPrimary": pod })).await;
    ledger.writes(100).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, to, LOST).await;
}

// ---- another cluster ----

#[tokio::test]
async fn a_database_is_rerouted_and_back_and_each_row_is_in_one_cluster() {
    let (seed, _) = chance("reroute");
    let kube = Kube::shared().await;
    let turn = ONE_AT_A_TIME.lock().await;
    let space = kube.space().await;
    let first = Operator::start(space.clone(), "pg", seed).await;
    let second = Operator::start(space.clone(), "other", seed).await;
    let mut rules = first.rules();
    rules.as_array_mut().expect("a list").extend(second.rules().as_array().expect("a list").clone());
    space.grant("follower", rules).await;
    let other = format!("other = source=cnpg namespace={} port={}\n", space.name, second.replicas.port);
    let pooler = following(&kube, &first, "follower").sections(&other).start().await;
    let mut ledger = Ledger::start(&pooler.tcp(), CLIENTS, seed);
    // When the database was at which cluster: what ended or began in between may be at either.
    let mut turns = Vec::new();
    let mut began = Instant::now();
    for to in ["other", "pg", "other", "pg"] {
        ledger.writes(100).await;
        let asked = Instant::now();
        pooler.admin(&format!("REROUTE app {to}")).await;
        println!("  REROUTE app {to} took {:?}", asked.elapsed());
        turns.push((began, asked));
        began = Instant::now();
    }
    ledger.writes(100).await;
    turns.push((began, Instant::now()));
    let books = ledger.stop().await;
    let clusters = [rows(&first.replicas, 0).await, rows(&second.replicas, 0).await];
    for entry in &books.0 {
        assert_eq!(entry.outcome, Outcome::Acknowledged, "{entry:?}");
        let at = |cluster: &HashSet<i64>| entry.rows.clone().filter(|n| cluster.contains(n)).count();
        let all = entry.rows.clone().count();
        let found = clusters.each_ref().map(at);
        assert!(found == [all, 0] || found == [0, all], "{entry:?} is in the clusters {found:?} times");
        let its = turns.iter().position(|(from, to)| entry.began > *from && entry.ended < *to);
        if let Some(number) = its {
            assert_eq!(found[number % 2], all, "{entry:?} in turn {number} of {turns:?}");
        }
    }
    println!("  {} attempts: {}", books.0.len(), books.summary());
    drop(turn);
}
