//! What a client was answered and told last arrives, however slowly it reads and whatever it sends meanwhile.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::collections::HashMap;
use std::time::{Duration, Instant};
use support::certificates::Authority;
use support::message::{close_statement, query, run_of, sync, terminate};
use support::pooler::is_ours;
use support::{Address, Login, Pooler, Raw, eventually};

/// A client that does not read, and whose server is free already: a part of its answer is still with the pooler. With
/// the bytes of the one value in it.
async fn client_with_an_untaken_answer(pooler: &Pooler, address: &Address) -> (Raw, usize) {
    // The kernel takes some 200 kB of a Unix socket and some MB of TCP, and the pooler reads up to 60 kB more than it can
    // pass on.
    let mut length = 200 * 1024;
    for _ in 0..300 {
        let mut client = Raw::login(address, &Login::new("app", "app")).await;
        let before = pooler.received_bytes().await;
        client.send(query(&format!("SELECT repeat('x', {length})"))).await;
        eventually("the query is read", async || pooler.received_bytes().await > before).await;
        pooler.clients_wait(0).await;
        let asked = Instant::now();
        while pooler.pool("sv_active").await > 0 && asked.elapsed() < Duration::from_millis(200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sockets = pooler.admin("SHOW SOCKETS").await;
        let untaken = sockets.iter().any(|socket| socket["send_avail"] != "0");
        match (pooler.pool("sv_active").await, untaken) {
            (0, true) => return (client, length),
            (0, false) => length += 40 * 1024,
            (_, _) => length -= 30 * 1024,
        }
    }
    panic!("each answer is taken whole, or keeps its server: {length}")
}

/// It looks every 50 ms whether it can go.
async fn does_not_go(pooler: &mut Pooler) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        assert!(pooler.runs(), "{}", pooler.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The whole of its answer, and behind that why it must go.
async fn is_answered_and_told_to_go(client: &mut Raw, length: usize) {
    let told = client.rest().await;
    assert_eq!(told.value().len(), length);
    assert_eq!(told.farewell(), "FATAL 57P01 terminating connection due to administrator command");
}

/// Requests that the pooler answers itself, as nobody has these names.
fn closes() -> Vec<u8> {
    run_of((0..5000).map(|_| close_statement("")).chain([sync()]))
}

#[tokio::test]
async fn sigint_waits_until_clients_have_taken_their_answers() {
    let mut pooler = Pooler::config().start().await;
    let (mut client, length) = client_with_an_untaken_answer(&pooler, &pooler.unix()).await;
    pooler.signal("INT");
    pooler.logs("SIGINT").await;
    does_not_go(&mut pooler).await;
    assert_eq!(client.ready(1).await.value().len(), length);
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn a_drain_tells_a_client_to_go_when_it_has_taken_its_answer() {
    if !is_ours() {
        return;
    }
    let config = |mode| Pooler::config().mode(mode).setting("shutdown_drain_timeout", "10");
    let mut sharing = config("transaction").start().await;
    let (first, length) = client_with_an_untaken_answer(&sharing, &sharing.unix()).await;
    let mut keeping = config("session").start().await;
    let mut second = Raw::login(&keeping.unix(), &Login::new("app", "app")).await;
    second.send(query(&format!("SELECT repeat('x', {length})"))).await;
    assert!(second.hears_within(Duration::from_secs(5)).await);
    for (pooler, mut client) in [(&mut sharing, first), (&mut keeping, second)] {
        pooler.signal("TERM");
        pooler.logs("SIGTERM").await;
        does_not_go(pooler).await;
        is_answered_and_told_to_go(&mut client, length).await;
        assert!(pooler.wait().success());
    }
}

#[tokio::test]
async fn a_client_that_has_said_terminate_gets_the_answers_of_before() {
    let pooler = Pooler::config().start().await;
    // The kernel takes some 200 kB of an answer that nobody reads: the rest of some of these waits in the pooler when
    // their server is free.
    for length in (150..350).step_by(6).map(|kilobytes| kilobytes * 1024) {
        let mut client = Raw::login(&pooler.unix(), &Login::new("app", "app")).await;
        client.send(run_of([query(&format!("SELECT repeat('x', {length})")), terminate()])).await;
        let asked = Instant::now();
        while pooler.pool("sv_idle").await == 0 && asked.elapsed() < Duration::from_millis(100) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told = client.rest().await;
        assert_eq!(told.value().len(), length);
        assert_eq!((told.count(b'Z'), told.closed), (1, true));
    }
}

#[tokio::test]
async fn a_drained_client_gets_its_answer_although_it_has_asked_more() {
    if !is_ours() {
        return;
    }
    let mut pooler = Pooler::config().setting("shutdown_drain_timeout", "10").start().await;
    let (mut client, length) = client_with_an_untaken_answer(&pooler, &pooler.tcp()).await;
    // It stays unread, as long as the answer is not taken. Who closes a TCP connection with something unread resets it.
    client.send(query("SELECT 1")).await;
    pooler.signal("TERM");
    pooler.logs("SIGTERM").await;
    is_answered_and_told_to_go(&mut client, length).await;
    drop(client);
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn a_client_that_waits_for_a_server_gets_the_answers_of_before() {
    let pooler = Pooler::config().pool_size(1).setting("query_wait_notify", "0").start().await;
    let mut busy = pooler.client().await;
    busy.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let closes = closes();
    for rounds in 1..100 {
        let mut client = Raw::login(&pooler.unix(), &Login::new("app", "app")).await;
        for _ in 1..rounds {
            let before = pooler.received_bytes().await;
            client.send(&closes).await;
            eventually("they are read", async || pooler.received_bytes().await > before).await;
        }
        // What needs a server comes with the last of them.
        client.send([&closes[..], &query("SELECT 1")].concat()).await;
        pooler.clients_wait(1).await;
        let sockets = pooler.admin("SHOW SOCKETS").await;
        if sockets.iter().all(|socket| socket["send_avail"] == "0") {
            // The kernel has taken them all.
            continue;
        }
        assert_eq!(client.ready(rounds).await.count(b'3'), rounds * 5000);
        busy.query("COMMIT").await.is("C(COMMIT) Z(I)");
        client.ready(1).await.is("T D(1) C Z(I)");
        return;
    }
    panic!("the kernel takes all that is sent");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_left_some_seconds_after_its_end() {
    if !is_ours() {
        return;
    }
    let pooler = Pooler::config().start().await;
    let (_client, _) = client_with_an_untaken_answer(&pooler, &pooler.unix()).await;
    let killed = Instant::now();
    kill(&pooler).await;
    assert_eq!(clients(&pooler).await, []);
    eventually("it is left", async || connections(&pooler).await == 0).await;
    assert!(killed.elapsed() >= Duration::from_secs(5), "{:?}", killed.elapsed());
}

/// A client that has asked much of the pooler itself and reads nothing, so that it is not asked for more.
async fn client_that_is_full(pooler: &Pooler, address: &Address) -> Raw {
    let mut client = Raw::login(address, &Login::new("app", "app")).await;
    let closes = closes();
    for _ in 0..2000 {
        let before = pooler.received_bytes().await;
        client.send(&closes).await;
        let asked = Instant::now();
        while pooler.received_bytes().await == before {
            if asked.elapsed() > Duration::from_millis(300) {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    panic!("all is read");
}

async fn clients(pooler: &Pooler) -> Vec<HashMap<String, String>> {
    let clients = pooler.admin("SHOW CLIENTS").await.into_iter();
    clients.filter(|client| client["database"] == "app").collect()
}

/// Also of those that are on their way out.
async fn connections(pooler: &Pooler) -> u32 {
    let databases = pooler.admin("SHOW DATABASES").await;
    let app = databases.iter().find(|database| database["name"] == "app").unwrap();
    app["current_client_connections"].parse().unwrap()
}

async fn kill(pooler: &Pooler) {
    pooler.admin(&format!("KILL_CLIENT {}", clients(pooler).await[0]["id"])).await;
}

async fn with_tls() -> Pooler {
    let authority = Authority::new();
    let shown = authority.issue("pooler", "DNS:localhost");
    Pooler::config().shows("prefer", &shown).start().await
}

#[tokio::test]
async fn a_client_that_is_killed_is_told_behind_all_that_it_was_answered() {
    if !is_ours() {
        return;
    }
    let pooler = with_tls().await;
    for address in [pooler.tcp(), pooler.tls()] {
        let mut client = client_that_is_full(&pooler, &address).await;
        kill(&pooler).await;
        // It is on its way out, and nobody hurries it.
        pooler.admin("KILL app").await;
        pooler.admin("RESUME app").await;
        assert_eq!(client.rest().await.farewell(), "FATAL 08P01 admin forced disconnect", "{address:?}");
        drop(client);
        eventually("it is left", async || connections(&pooler).await == 0).await;
    }
}

#[tokio::test]
async fn a_drained_client_that_asks_more_a_moment_later_gets_its_answer() {
    if !is_ours() {
        return;
    }
    let mut pooler = Pooler::config().setting("shutdown_drain_timeout", "10").start().await;
    let (_, length) = client_with_an_untaken_answer(&pooler, &pooler.tcp()).await;
    let mut client = pooler.client().await;
    // The kernel takes the half of it in any case.
    let length = length / 2;
    client.send(query(&format!("SELECT repeat('x', {length})"))).await;
    assert!(client.hears_within(Duration::from_secs(5)).await);
    eventually("all is with the kernel", async || pooler.pool("sv_active").await == 0).await;
    pooler.signal("TERM");
    pooler.logs("terminating connection").await;
    client.send(query("SELECT 1")).await;
    is_answered_and_told_to_go(&mut client, length).await;
    drop(client);
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn a_client_that_says_the_end_of_tls_behind_terminate_gets_its_answer() {
    if !is_ours() {
        return;
    }
    let pooler = with_tls().await;
    let mut client = Raw::login(&pooler.tls(), &Login::new("app", "app")).await;
    let length = 2 << 20;
    let slow = format!("SELECT repeat('x', {length}) FROM pg_sleep(0.3)");
    client.send(run_of([query(&slow), terminate()])).await;
    eventually("both are read", async || pooler.pool("sv_active").await == 1).await;
    client.writer.finish().await;
    pooler.logs("client close request").await;
    let told = client.rest().await;
    assert_eq!((told.value().len(), told.count(b'Z')), (length, 1));
}

#[tokio::test]
async fn a_client_whose_tls_is_broken_is_left_at_once() {
    if !is_ours() {
        return;
    }
    let pooler = with_tls().await;
    for _ in 0..50 {
        let mut client = Raw::login(&pooler.tls(), &Login::new("app", "app")).await;
        client.send(query("SELECT repeat('x', 30000000)")).await;
        assert!(client.hears_within(Duration::from_secs(5)).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.send_below_tls(&[&[23, 3, 3, 0, 32][..], &[7; 32]].concat());
        tokio::time::sleep(Duration::from_millis(200)).await;
        if pooler.log().contains("cannot decrypt peer's message") {
            return eventually("it is left", async || connections(&pooler).await == 0).await;
        }
        // It is not read, as a part of its answer is not even encrypted.
    }
    panic!("no broken record is read");
}
