//! A real cluster in the hands of an operator that does what CloudNativePG does, in its order, to objects of
//! a real Kubernetes API: how long clients that keep books wait when the primary moves.
//!
//! `PGWEIR_FAILOVER_RUNS=20` runs each move so often; the seed of each run's timing is printed.

use crate::support;

use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use support::eventually;
use support::kube::Kube;
use support::ledger::{Ledger, rows};
use support::runs::{Figures, chance, runs};
use support::scene::{CLIENTS, Call, LOST, Scene, only_what_was_open_failed};
use tokio::time::Instant;

fn print_and_judge(what: &str, firsts: Vec<Duration>) {
    println!("{what}: first writes after {firsts:?}");
    let figures = Figures::of(firsts);
    figures.print(what);
    figures.are_prompt(Duration::from_millis(100), Duration::from_millis(500));
}

#[tokio::test]
async fn a_planned_switchover_costs_what_is_open_at_the_fast_shutdown_and_nothing_else() {
    let (seed, mut chance) = chance("switchover");
    let mut scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    let mut moves = Vec::new();
    for run in 0..runs() {
        scene.knows_all().await;
        ledger.all_write().await;
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

#[tokio::test]
async fn pgweirs_own_switchover_costs_no_client_an_error() {
    let (seed, mut chance) = chance("pgweir switchover");
    let mut scene = Scene::start(seed).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    let mut firsts = Vec::new();
    let mut moves = Vec::new();
    for _ in 0..runs() {
        scene.knows_all().await;
        ledger.writes(chance.random_range(50..200)).await;
        let to = scene.operator.any_standby();
        let call = Call::new(&scene.kube, &scene.operator.space, &scene.operator.pod(to));
        let call = call.pooler(scene.pooler.port);
        let (moved, (done, said)) = tokio::join!(scene.operator.obey(), call.run());
        assert!(done, "{said}");
        assert_eq!(scene.operator.primary, to);
        moves.push(moved);
    }
    ledger.writes(200).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, scene.operator.primary, &[]).await;
    for moved in moves {
        firsts.push(books.served_after(moved.named, CLIENTS).0);
    }
    print_and_judge("pgweir switchover", firsts);
}

/// Load, a fault at a random moment, and the operator makes another one the primary. `fault` returns when
/// the operator may begin.
async fn fail_over(what: &str, allowed: &[&str], fault: impl AsyncFn(&mut Scene)) {
    let mut firsts = Vec::new();
    // One server for all runs: each start takes longer than a run.
    let _kube = Kube::shared().await;
    for _ in 0..runs() {
        let (seed, mut chance) = chance(what);
        let mut scene = Scene::start(seed).await;
        let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
        scene.knows_all().await;
        ledger.all_write().await;
        ledger.writes(chance.random_range(50..200)).await;
        fault(&mut scene).await;
        let named = scene.operator.fail_over().await;
        ledger.writes(200).await;
        let books = ledger.stop().await;
        books.agree_with(&scene.operator.replicas, scene.operator.primary, allowed).await;
        let (first, last) = books.served_after(named, CLIENTS);
        println!("  first write after {first:?}, all served after {last:?}");
        firsts.push(first);
    }
    print_and_judge(what, firsts);
}

#[tokio::test]
async fn a_lost_primary_costs_what_is_open_and_nothing_else() {
    fail_over("lost primary", LOST, async |scene| scene.operator.lose_primary().await).await;
}

#[tokio::test]
async fn a_deleted_pod_is_not_held_back_and_costs_nothing() {
    fail_over("deleted pod", &[], async |scene| {
        let took = scene.operator.delete_primary().await;
        println!("  smart shutdown took {took:?}");
        assert!(took < Duration::from_secs(1), "idle connections hold it back: {took:?}");
    })
    .await;
}

#[tokio::test]
async fn a_frozen_node_gets_nothing_after_another_primary_is_named() {
    let mut firsts = Vec::new();
    // One server for all runs: each start takes longer than a run.
    let _kube = Kube::shared().await;
    for _ in 0..runs() {
        let (seed, mut chance) = chance("frozen node");
        let mut scene = Scene::start(seed).await;
        let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
        scene.knows_all().await;
        ledger.all_write().await;
        ledger.writes(chance.random_range(50..200)).await;
        scene.operator.freeze_primary().await;
        let named = scene.operator.fail_over().await;
        ledger.writes(100).await;
        let severed = scene.metric("pgweir_stale_primary_severed_total{cluster=\"pg\"}").await;
        assert!(severed >= 1.0, "clients had servers there");
        let replicas = &scene.operator.replicas;
        replicas.thaw(0);
        ledger.writes(100).await;
        eventually("its connections end", async || replicas.connections(0).await == 0).await;
        let books = ledger.stop().await;
        books.agree_with(replicas, scene.operator.primary, LOST).await;
        let there = rows(replicas, 0).await;
        let late = books.count(|entry| entry.began > named && entry.rows.clone().any(|n| there.contains(&n)));
        assert_eq!(late, 0, "rows that the old primary was sent after {named:?}");
        let (first, last) = books.served_after(named, CLIENTS);
        println!("  first write after {first:?}, all served after {last:?}, severed {severed}");
        firsts.push(first);
    }
    print_and_judge("frozen node", firsts);
}

#[tokio::test]
async fn clients_go_on_while_the_api_is_away_and_a_switchover_afterwards_is_followed() {
    let away_s = std::env::var("PGWEIR_API_AWAY_SECONDS").ok().and_then(|text| text.parse().ok());
    let away = Duration::from_secs(away_s.unwrap_or(4));
    let (seed, _) = chance("API away");
    let mut scene = Scene::at(Arc::new(Kube::start().await), seed, |config| config).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    scene.knows_all().await;
    ledger.writes(50).await;
    let kube = Arc::get_mut(&mut scene.kube).expect("nobody shares it");
    kube.stop_api();
    let gone = Instant::now();
    let source = "pgweir_cluster_source_up{cluster=\"pg\"}";
    eventually("the source is away", async || scene.metric(source).await == 0.0).await;
    scene.pooler.logs("cluster pg: the Kubernetes API cannot be reached: ").await;
    while gone.elapsed() < away {
        ledger.writes(50).await;
    }
    scene.shows("open", "NULL").await;
    assert_eq!(scene.shown().await["source"], "unreachable");
    let kube = Arc::get_mut(&mut scene.kube).expect("nobody shares it");
    assert!(kube.start_api().await, "the server starts again at its port");
    eventually("the source is back", async || scene.metric(source).await == 1.0).await;
    let to = scene.operator.any_standby();
    let moved = scene.operator.switch_over(to).await;
    ledger.writes(100).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.operator.replicas, to, LOST).await;
    only_what_was_open_failed(&books, &[moved]);
    print_and_judge("after the API was away", vec![books.served_after(moved.named, CLIENTS).0]);
}
