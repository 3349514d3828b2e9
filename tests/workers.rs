//! On how many workers the clients live, and what they take along from one to another.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use support::message::{bind, execute, parse, query, run_of, sync};
use support::pages::{samples, with_pages};
use support::pooler::{Config, Restless};
use support::{Gate, Login, PATIENCE, Pooler, Raw, eventually};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

fn config(workers: u32, load_max: &str) -> Config {
    Pooler::config().setting("workers", &workers.to_string()).setting("worker_load_max", load_max)
}

/// The connections of each worker.
async fn connections(pages: SocketAddr) -> Vec<u32> {
    let samples = samples(pages).await;
    let of = |(key, count): (&String, &f64)| {
        key.starts_with("pgweir_worker_connections{").then_some(*count as u32)
    };
    samples.iter().filter_map(of).collect()
}

async fn are_on(pages: SocketAddr, expected: &[u32]) {
    eventually(&format!("the clients are on {expected:?}"), async || connections(pages).await == expected)
        .await;
}

async fn one_is_in_use(pages: SocketAddr) {
    eventually("one worker is in use", async || samples(pages).await["pgweir_workers_in_use"] == 1.0).await;
}

async fn set(pooler: &Pooler, load_max: &str) {
    pooler.admin(&format!("SET worker_load_max = {load_max}")).await;
}

/// The clients of the database, as the console has them.
async fn ids(pooler: &Pooler) -> BTreeSet<String> {
    let rows = pooler.admin("SHOW CLIENTS").await.into_iter().filter(|row| row["database"] == "app");
    let ids: Vec<_> = rows.map(|row| row["ptr"].clone()).collect();
    let each: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(each.len(), ids.len(), "a client is there twice");
    each
}

async fn clients(pooler: &Pooler, count: usize) -> Vec<Raw> {
    join_all((0..count).map(|_| pooler.client())).await
}

#[tokio::test]
async fn clients_live_on_one_worker_while_that_is_enough() {
    let (pooler, pages) = with_pages(config(4, "70")).await;
    let mut clients = clients(&pooler, 12).await;
    for client in &mut clients {
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    }
    are_on(pages, &[12, 0, 0, 0]).await;
    assert_eq!(samples(pages).await["pgweir_workers_in_use"], 1.0);
}

#[tokio::test]
async fn a_setting_has_the_clients_on_all_workers_or_on_one() {
    let (pooler, pages) = with_pages(config(4, "0")).await;
    let clients = clients(&pooler, 12).await;
    are_on(pages, &[3, 3, 3, 3]).await;
    set(&pooler, "100").await;
    are_on(pages, &[12, 0, 0, 0]).await;
    assert_eq!(samples(pages).await["pgweir_workers_in_use"], 1.0);
    set(&pooler, "0").await;
    are_on(pages, &[3, 3, 3, 3]).await;
    let samples = samples(pages).await;
    assert_eq!(samples["pgweir_workers_in_use"], 4.0);
    assert!(samples["pgweir_clients_moved_total"] >= 18.0);
    drop(clients);
    are_on(pages, &[0, 0, 0, 0]).await;
    pooler.is_clean().await;
}

#[tokio::test]
async fn clients_inside_of_transactions_keep_no_others_from_moving() {
    let (pooler, pages) = with_pages(config(2, "100").pool_size(10)).await;
    let mut clients = clients(&pooler, 40).await;
    for client in &mut clients[..10] {
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    }
    set(&pooler, "0").await;
    are_on(pages, &[20, 20]).await;
    for client in &mut clients[..10] {
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn what_a_worker_has_too_much_goes_to_others_and_comes_back_in_quiet_times() {
    let (pooler, pages) = with_pages(config(2, "10")).await;
    let mut work = JoinSet::new();
    for mut client in clients(&pooler, 8).await {
        work.spawn(async move {
            loop {
                client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
            }
        });
    }
    are_on(pages, &[4, 4]).await;
    work.shutdown().await;
    let idle = clients(&pooler, 8).await;
    let deadline = Instant::now() + 2 * PATIENCE;
    while connections(pages).await != [8, 0] {
        assert!(Instant::now() < deadline, "still on {:?}", connections(pages).await);
        // Each look is work for both.
        sleep(Duration::from_millis(500)).await;
    }
    drop(idle);
}

#[tokio::test]
async fn a_client_takes_along_what_it_made_of_its_session() {
    let (pooler, pages) = with_pages(config(4, "0").pool_size(2)).await;
    let login = Login::new("app", "app").option("application_name", "mover");
    let mut moving = Vec::new();
    for number in 0..8 {
        let mut client = Raw::login(&pooler.tcp(), &login).await;
        client.query(&format!("SET work_mem = '{}MB'", 10 + number)).await.is("C(SET) Z(I)");
        client.query(&format!("SET TimeZone = 'Etc/GMT+{number}'")).await.is("C(SET) Z(I)");
        client.query(&format!("PREPARE mine AS SELECT 'sql {number}'")).await.is("C(PREPARE) Z(I)");
        let named = parse("mine too", &format!("SELECT 'protocol {number}'"));
        client.ask(run_of([named, sync()])).await.is("1 Z(I)");
        moving.push(client);
    }
    for load_max in ["100", "0", "100"] {
        set(&pooler, load_max).await;
        are_on(pages, if load_max == "0" { &[2, 2, 2, 2] } else { &[8, 0, 0, 0] }).await;
        for (number, client) in moving.iter_mut().enumerate() {
            let shown = ["work_mem", "TimeZone", "application_name"]
                .map(|name| format!("current_setting('{name}')"))
                .join(" || ' ' || ");
            let expected = format!("{}MB Etc/GMT+{number} mover", 10 + number);
            assert_eq!(client.query(&format!("SELECT {shown}")).await.value(), expected);
            assert_eq!(client.query("EXECUTE mine").await.value(), format!("sql {number}"));
            let run = run_of([bind("", "mine too", &[]), execute("", 0), sync()]);
            client.ask(run).await.is(&format!("2 D(protocol {number}) C(SELECT 1) Z(I)"));
        }
    }
}

#[tokio::test]
async fn a_client_moves_between_two_transactions_and_not_inside_one() {
    let (pooler, pages) = with_pages(config(4, "0").pool_size(4)).await;
    let mut clients = clients(&pooler, 4).await;
    // A connection of before may have been counted when they came.
    are_on(pages, &[1, 1, 1, 1]).await;
    for client in &mut clients {
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        client.query("CREATE TEMP TABLE t (n int) ON COMMIT DROP").await.is("C(CREATE TABLE) Z(T)");
    }
    set(&pooler, "100").await;
    one_is_in_use(pages).await;
    for client in &mut clients {
        client.query("INSERT INTO t VALUES (1)").await.is("C(INSERT 0 1) Z(T)");
    }
    assert_eq!(connections(pages).await, [1, 1, 1, 1]);
    for client in &mut clients {
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    }
    are_on(pages, &[4, 0, 0, 0]).await;
}

#[tokio::test]
async fn a_cancel_finds_a_client_that_has_moved() {
    let (pooler, pages) = with_pages(config(4, "0").pool_size(4)).await;
    let mut clients = clients(&pooler, 4).await;
    set(&pooler, "100").await;
    are_on(pages, &[4, 0, 0, 0]).await;
    let mut gate = Gate::close(&pooler).await;
    for client in &mut clients {
        client.send(query(&gate.sql("x"))).await;
    }
    gate.is_reached_by(4).await;
    for client in &clients {
        Raw::cancel(&pooler.tcp(), &client.key).await;
    }
    for client in &mut clients {
        client.ready(1).await.is("T* E(57014) Z(I)");
    }
    gate.open().await;
}

#[tokio::test]
async fn clients_in_session_mode_are_on_all_workers_from_the_beginning_and_stay_there() {
    let (pooler, pages) = with_pages(config(4, "70").mode("session").pool_size(8)).await;
    let mut clients = clients(&pooler, 8).await;
    for client in &mut clients {
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    }
    are_on(pages, &[2, 2, 2, 2]).await;
    set(&pooler, "100").await;
    one_is_in_use(pages).await;
    for client in &mut clients {
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    }
    assert_eq!(connections(pages).await, [2, 2, 2, 2]);
}

#[tokio::test]
async fn a_client_that_listens_hears_wherever_the_others_go() {
    let (pooler, pages) = with_pages(config(4, "0")).await;
    let mut clients = clients(&pooler, 4).await;
    for client in &mut clients {
        client.query("LISTEN news").await.is("C(LISTEN) Z(I)");
    }
    set(&pooler, "100").await;
    one_is_in_use(pages).await;
    pooler.sql("NOTIFY news, 'one'").await;
    for client in &mut clients {
        client.until(b'A').await.is("A(news one)");
    }
}

#[tokio::test]
async fn the_console_sees_each_client_once_while_they_move() {
    let (pooler, pages) = with_pages(config(4, "0")).await;
    let clients = clients(&pooler, 40).await;
    let moving = Restless::start(pooler.console().await);
    while samples(pages).await["pgweir_clients_moved_total"] < 200.0 {
        assert_eq!(ids(&pooler).await.len(), clients.len());
    }
    pooler.admin("KILL app").await;
    drop(moving);
    eventually("none has got away", async || ids(&pooler).await.is_empty()).await;
}

#[tokio::test]
async fn a_client_that_asks_without_end_for_what_has_no_answer_lets_others_have_their_turn() {
    let pooler = config(1, "70").start().await;
    let mut flooding = pooler.client().await;
    let mut other = pooler.client().await;
    // CopyData outside of a COPY is ignored: five bytes each, and nothing that would have to be read.
    let ignored = b"d\0\0\0\x04".repeat(12_000);
    let flood = tokio::spawn(async move {
        loop {
            flooding.send(&ignored).await;
        }
    });
    for _ in 0..5 {
        other.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    }
    flood.abort();
}
