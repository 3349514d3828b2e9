//! A real cluster whose primary goes away in every way there is, under load from clients that keep books: how long
//! they wait for another one.
//!
//! `PGWEIR_FAILOVER_RUNS=20` runs each failover so often; the seed of a run's timing is printed.

use crate::support;

use rand::Rng;
use std::time::Duration;
use support::eventually;
use support::ledger::Ledger;
use support::message::query;
use support::probed::{CLIENTS, Scene};
use support::replicas::Stop;
use support::runs::{Figures, chance, runs};
use support::scene::LOST;
use tokio::time::{Instant, sleep};

/// How often the pooler asks the servers while there is no primary.
const PROBE_TICK: Duration = Duration::from_millis(50);

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
    is_prompt(what, firsts);
}

/// How long the first write took after another one could be written to around the pooler.
fn is_prompt(what: &str, firsts: Vec<Duration>) {
    let figures = Figures::of(firsts);
    figures.print(&format!("{what} (probe)"));
    figures.are_prompt(Duration::from_millis(100) + PROBE_TICK, Duration::from_millis(500));
}

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
        eventually("the smart shutdown completes", async || !scene.replicas.runs(0)).await;
        println!("  smart shutdown took {:?}", asked.elapsed());
        scene.replicas.ended(0);
    })
    .await;
}

#[tokio::test]
async fn a_frozen_primary_gets_no_byte_after_another_one_is_promoted() {
    let mut firsts = Vec::new();
    for _ in 0..runs() {
        let (seed, mut chance) = chance("freeze");
        let mut scene = Scene::start().await;
        let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
        ledger.writes(chance.random_range(50..200)).await;
        scene.replicas.freeze(0);
        // Whoever promotes another one has waited for longer. The pooler asks each second, and is
        // suspicious when an answer takes 200 ms.
        sleep(Duration::from_millis(1300)).await;
        let (primary, accepted) = scene.take_over().await;
        ledger.writes(100).await;
        scene.replicas.thaw(0);
        ledger.writes(100).await;
        eventually("its connections end", async || scene.replicas.connections(0).await == 0).await;
        let books = ledger.stop().await;
        books.agree_with(&scene.replicas, primary, LOST).await;
        let of_old = scene.replicas.number(0, "SELECT count(*) FROM ledger").await;
        let known = books.count(|entry| entry.began < accepted) as i64 * 2;
        assert!(of_old <= known, "{of_old} rows on the old primary, of {known} that it can have");
        let (first, last) = books.served_after(accepted, CLIENTS);
        println!("  first write after {first:?}, all served after {last:?}");
        firsts.push(first);
    }
    is_prompt("freeze", firsts);
}

#[tokio::test]
async fn a_client_logs_in_at_once_while_there_is_no_primary() {
    let mut scene = Scene::start().await;
    scene.pooler.client().await.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.kill(0);
    scene.pooler.logs("draining 127.0.0.2").await;
    let began = Instant::now();
    let mut a = scene.pooler.client().await;
    assert!(began.elapsed() < Duration::from_millis(100), "the login took {:?}", began.elapsed());
    assert_eq!(a.parameters["in_hot_standby"], "off");
    a.send(query("SELECT host(inet_server_addr())")).await;
    scene.pooler.clients_wait(1).await;
    let (primary, _) = scene.take_over().await;
    assert_eq!(a.ready(1).await.value(), scene.replicas.host(primary));
}

#[tokio::test]
async fn two_hundred_waiting_clients_are_all_served_soon() {
    let (seed, _) = chance("two hundred");
    let mut scene = Scene::with(|config| config.pool_size(20)).await;
    let clients = 200;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), clients, seed);
    ledger.writes(1000).await;
    scene.replicas.kill(0);
    let (primary, accepted) = scene.take_over().await;
    ledger.writes(1000).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.replicas, primary, LOST).await;
    let (first, last) = books.served_after(accepted, clients);
    println!("  first write after {first:?}, all served after {last:?}");
    assert!(last < Duration::from_secs(2), "{last:?}");
}
