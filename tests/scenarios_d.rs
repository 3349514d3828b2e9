//! Scenario group D: clients and servers that vanish, and bytes that are no protocol.
//!
//! D4, the wrong-answer detector, has a file of its own.

use crate::support;

use support::message::{
    bind, execute, extended, flush, parse, query, run_of, ssl_request, startup, sync, untagged,
};
use support::{Gate, Login, PATIENCE, PROMPTLY, Pooler, Raw, eventually, eventually_within};
use tokio::time::timeout;

async fn with_items() -> Pooler {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    pooler
}

async fn no_items(pooler: &Pooler) {
    pooler.is_clean().await;
    let rows = pooler.number("SELECT count(*) FROM items").await;
    assert_eq!(rows, 0, "a request that was never finished has run");
}

#[tokio::test]
async fn d1_a_request_cut_at_any_byte_leaves_no_effect() {
    let pooler = with_items().await;
    let insert =
        run_of([parse("", "INSERT INTO items VALUES ($1::int)"), bind("", "", &["7"]), execute("", 0)]);
    let simple = query("INSERT INTO items VALUES (7)");
    for (bytes, whole) in [(insert, true), (simple, false)] {
        // Without its Sync even the whole extended request must not commit.
        let longest = if whole { bytes.len() } else { bytes.len() - 1 };
        for cut in (1..=longest).step_by(7).chain([5, longest]) {
            let mut a = pooler.client().await;
            a.send(&bytes[..cut]).await;
            a.reset();
        }
    }
    no_items(&pooler).await;
}

#[tokio::test]
async fn d1_a_request_that_has_begun_to_run_is_rolled_back_when_its_client_resets() {
    let pooler = with_items().await;
    let insert = "INSERT INTO items VALUES ($1::int)";
    let mut a = pooler.client().await;
    a.send(run_of([extended(insert, &["7"]), flush()])).await;
    a.until(b'C').await.is("1 2 n C(INSERT 0 1)");
    a.reset();
    no_items(&pooler).await;

    let mut a = pooler.client().await;
    let begun = a.query("BEGIN; INSERT INTO items VALUES (7)").await;
    begun.is("C(BEGIN) C(INSERT 0 1) Z(T)");
    a.send(&query("COMMIT")[..8]).await;
    a.reset();
    no_items(&pooler).await;

    let mut a = pooler.client().await;
    a.query("BEGIN; INSERT INTO items VALUES (7)").await;
    a.writer.finish().await;
    a.rest().await;
    no_items(&pooler).await;
}

#[tokio::test]
async fn d2_a_client_gone_from_the_queue_does_not_keep_the_server_from_the_next() {
    let pooler = with_items().await;
    let mut b = pooler.client().await;
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    for round in 0..5 {
        let (mut gone, mut next) = (pooler.client().await, pooler.client().await);
        gone.send(query("INSERT INTO items VALUES (7)")).await;
        pooler.clients_wait(1).await;
        next.send(query("SELECT 'next'")).await;
        pooler.clients_wait(2).await;
        if round % 2 == 0 {
            gone.reset();
            pooler.clients_wait(1).await;
        } else {
            // The client leaves in the same moment in which its turn comes.
            let leave = async { gone.reset() };
            let (commit, ()) = tokio::join!(b.query("COMMIT"), leave);
            commit.is("C(COMMIT) Z(I)");
            b.query("BEGIN").await.is("C(BEGIN) Z(T)");
            next.ready(1).await.is("T D(next) C(SELECT 1) Z(I)");
            // Whether its request still ran is a matter of microseconds.
            pooler.sql("TRUNCATE items").await;
            continue;
        }
        b.query("COMMIT").await.is("C(COMMIT) Z(I)");
        next.ready(1).await.is("T D(next) C(SELECT 1) Z(I)");
        let inserted = pooler.number("SELECT count(*) FROM items").await;
        assert_eq!(inserted, 0, "the request of a client long gone has run");
        b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    }
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn d3_the_answer_to_a_client_that_is_gone_reaches_nobody() {
    let pooler = Pooler::config().start().await;
    for variant in 0..4 {
        let mut gate = Gate::close(&pooler).await;
        let (mut a, mut b) = (pooler.client().await, pooler.client().await);
        let secret = gate.sql("secret");
        let bytes = match variant {
            0 => query(&secret),
            1 => run_of([query(&secret), query("SELECT 'secret 2'")]),
            2 => run_of([extended(&secret, &[]), sync()]),
            _ => run_of([query("BEGIN"), extended(&secret, &[]), flush()]),
        };
        a.send(bytes).await;
        gate.is_reached_by(1).await;
        b.send(query("SELECT 'b'")).await;
        pooler.clients_wait(1).await;
        a.reset();
        gate.open().await;
        b.ready(1).await.is("T D(b) C(SELECT 1) Z(I)");
        for number in 0..5 {
            let sql = format!("SELECT {number}");
            assert_eq!(b.query(&sql).await.value(), number.to_string());
        }
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn d5_a_client_that_never_reads_is_closed_and_hinders_nobody_for_long() {
    let pooler = Pooler::config().setting("query_timeout", "1").start().await;
    let mut zombie = pooler.client().await;
    zombie.shrink_receive_buffer();
    zombie.send(query("SELECT repeat('x', 100000) FROM generate_series(1, 1000)")).await;
    pooler.server_waits_for_its_client().await;
    let mut b = retried_login(&pooler).await;
    b.query("SELECT 'b'").await.is("T D(b) C(SELECT 1) Z(I)");
    pooler.is_clean().await;
}

/// While the zombie has the only server, a login may have to wait, and query_timeout may end it.
async fn retried_login(pooler: &Pooler) -> Raw {
    let login = Login::new("app", "app");
    let address = pooler.tcp();
    let mut client = None;
    eventually("a login behind the zombie", async || {
        let Ok(mut new) = Raw::try_login(&address, &login).await else {
            return false;
        };
        let answered = new.query("SELECT 1").await.count(b'D') == 1;
        client = answered.then_some(new);
        answered
    })
    .await;
    client.expect("eventually has waited for it")
}

#[tokio::test]
async fn d6_a_server_that_died_in_the_pool_costs_no_client_an_error() {
    let pooler = Pooler::config().pool_size(3).start().await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND usename = 'app'";
    let left = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND usename = 'app'";
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(pooler.client().await);
    }
    for round in 0..5 {
        for client in &mut clients {
            client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        }
        for client in &mut clients {
            client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        }
        assert_eq!(pooler.number(kill).await, 3);
        eventually("the servers are gone", async || pooler.number(left).await == 0).await;
        for client in &mut clients {
            let sql = format!("SELECT {round}");
            assert_eq!(client.query(&sql).await.value(), round.to_string());
        }
    }
}

#[tokio::test]
async fn d7_a_client_in_a_transaction_hears_at_once_of_its_servers_death() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    let pid = a.query("BEGIN; SELECT pg_backend_pid()").await.value();
    pooler.sql(&format!("SELECT pg_terminate_backend({pid})")).await;
    let told = timeout(PROMPTLY, a.rest()).await.expect("A is told at once");
    told.is("E(57P01) EOF");
    pooler.is_clean().await;
}

/// Bytes that no client may send before it is logged in.
fn bad_starts() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("length 0", vec![0, 0, 0, 0, 0, 3, 0, 0]),
        ("length 3", vec![0, 0, 0, 3, 0, 3, 0, 0]),
        ("length 7", vec![0, 0, 0, 7, 0, 3, 0]),
        ("length 2 GB", [&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0][..], &[b'x'; 64]].concat()),
        ("negative length", [&[0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0][..], &[b'x'; 64]].concat()),
        ("protocol 2", untagged(2 << 16, &[0; 288])),
        ("protocol 9", untagged(9 << 16, b"user\0app\0\0")),
        ("no user", startup(&[("database", "app")])),
        ("no end", untagged(3 << 16, b"user\0app")),
        ("Query first", query("SELECT 1")),
        ("zeros", vec![0; 1000]),
        ("ones", vec![0xff; 1000]),
    ]
}

/// Bytes that no client may send after it is logged in.
fn bad_messages() -> Vec<(&'static str, Vec<u8>)> {
    let mut bad = vec![
        ("Query of length 0", vec![b'Q', 0, 0, 0, 0]),
        ("Query of length 3", vec![b'Q', 0, 0, 0, 3]),
        ("Query of length -1", vec![b'Q', 0xff, 0xff, 0xff, 0xff, b'x']),
        ("Sync of length 1 GB", vec![b'S', 0x40, 0, 0, 0, b'x']),
        ("garbage", vec![0xfe; 100]),
        ("a zero byte", vec![0; 20]),
        ("Bind without a body", vec![b'B', 0, 0, 0, 4]),
        ("Parse without a zero", vec![b'P', 0, 0, 0, 6, b'x', b'y']),
        ("Close of nothing known", vec![b'C', 0, 0, 0, 6, b'Z', 0]),
        ("Describe without a name", vec![b'D', 0, 0, 0, 5, b'S']),
    ];
    for (name, tag) in [
        ("ReadyForQuery", b'Z'),
        ("RowDescription", b'T'),
        ("Authentication", b'R'),
        ("an unknown type", b'w'),
    ] {
        bad.push((name, vec![tag, 0, 0, 0, 5, b'I']));
    }
    bad
}

#[tokio::test]
async fn d8_bytes_that_are_no_protocol_end_only_their_client() {
    let pooler = Pooler::config().setting("client_login_timeout", "2").start().await;
    let mut bystander = pooler.client().await;
    bystander.query("SELECT 1").await;
    let before = pooler.memory_bytes();
    for (name, bytes) in bad_starts() {
        let mut bad = Raw::connect(&pooler.tcp()).await.unwrap();
        bad.send(bytes).await;
        let ended = timeout(PATIENCE, bad.reader.discard(1_000_000)).await;
        assert!(ended.is_ok(), "not closed: {name}");
    }
    let mut taken = Vec::new();
    for (name, bytes) in bad_messages() {
        let mut bad = pooler.client().await;
        // What stands behind Sync is executed only if the bad message was taken for a good one.
        bad.send(run_of([bytes, sync()])).await;
        if timeout(PROMPTLY, is_refused(&mut bad)).await != Ok(true) {
            taken.push(name);
        }
        assert_eq!(bystander.query("SELECT 2").await.value(), "2", "{name}");
    }
    assert!(taken.is_empty(), "neither closed nor told: {taken:?}");
    let after = pooler.memory_bytes();
    assert!(after < before + 10_000_000, "{before} grew to {after}");
    pooler.is_clean().await;
}

/// Framing errors end the connection. A message that is only malformed inside is an ordinary error in
/// PostgreSQL (08P01): the connection stays.
async fn is_refused(client: &mut Raw) -> bool {
    while let Some(message) = client.reader.message().await {
        match message.tag {
            b'E' => return true,
            b'Z' => return false,
            _ => {}
        }
    }
    true
}

#[tokio::test]
async fn d9_probes_of_the_port_leave_no_noise_and_no_leak() {
    let pooler = Pooler::config().start().await;
    let mut bystander = pooler.client().await;
    bystander.query("SELECT 1").await;
    let lines = pooler.log().lines().count();
    for number in 0..100 {
        let mut probe = Raw::connect(&pooler.tcp()).await.unwrap();
        if number % 2 == 0 {
            probe.send(ssl_request()).await;
            assert!(probe.hears_within(PROMPTLY).await, "SSLRequest is answered");
        }
        if number % 3 == 0 {
            probe.reset();
        }
    }
    eventually_within(PATIENCE, "the probes are forgotten", async || {
        pooler.list("login_clients").await == 0 && pooler.list("used_clients").await <= 2
    })
    .await;
    let log = pooler.log();
    let noise = log.lines().skip(lines);
    // The console logs its own logins; the probes leave at most a line each, and no warning.
    let noise: Vec<&str> = noise.filter(|line| !line.contains("admin")).collect();
    assert!(noise.len() <= 110, "{}", noise.join("\n"));
    let warnings = noise.iter().filter(|line| line.contains("WARNING") || line.contains("ERROR"));
    assert_eq!(warnings.count(), 0, "{}", noise.join("\n"));
    pooler.is_clean().await;
}
