//! Scenario group C: a cancel over TLS, and in the moments in which the server is busy with something else than
//! the client's query.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::certificates::Authority;
use support::message::{copy_data, copy_done, query, run_of};
use support::relay::Relay;
use support::{Gate, Pooler, Postgres, Raw, eventually};
use tokio::sync::watch;
use tokio::time::sleep;

/// The code of a CancelRequest, as it stands in one that is not encrypted.
const CANCEL_CODE: [u8; 4] = 80_877_102_u32.to_be_bytes();

const CANCELLING: &str = "import psycopg, sys, threading, time
connection = psycopg.connect(sys.argv[1], autocommit=True)
def cancel():
    time.sleep(0.5)
    connection.cancel_safe(timeout=10)
for query in ['SELECT pg_sleep(60)', 'BEGIN; SELECT pg_sleep(60)']:
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        connection.execute(query)
    except psycopg.errors.QueryCanceled:
        print('cancelled', connection.info.transaction_status.name)
    thread.join()
    connection.execute('ROLLBACK')
";

fn before(port: u16) -> (Relay, watch::Sender<SocketAddr>) {
    let (leads, to) = watch::channel(SocketAddr::from(([127, 0, 0, 1], port)));
    (Relay::start(SocketAddr::from(([127, 0, 0, 1], 0)), to, None), leads)
}

#[tokio::test]
async fn c9_a_cancel_comes_over_tls_and_goes_on_over_tls() {
    let authority = Authority::new();
    let began = Instant::now();
    let postgres = Postgres::with_tls(&authority.issue("db", "IP:127.0.0.1")).await;
    let (of_server, _leads) = before(postgres.port);
    let pooler = Pooler::config()
        .postgres(postgres)
        .server(of_server.address)
        .shows("require", &authority.issue("pooler", "IP:127.0.0.1"))
        .setting("server_tls_sslmode", "require")
        .start()
        .await;
    let (of_pooler, _leads) = before(pooler.port);
    for negotiation in ["postgres", "direct"] {
        let target = format!(
            "host=127.0.0.1 port={} user=app dbname=app sslmode=require sslnegotiation={negotiation}",
            of_pooler.address.port()
        );
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
        let mut command = Command::new(python);
        command.args(["-c", CANCELLING, &target]);
        let said = tokio::task::spawn_blocking(|| support::process::run(command)).await.unwrap();
        assert_eq!(said, "cancelled IDLE\ncancelled INERROR\n", "{negotiation}");
    }
    for (relay, where_to) in [(&of_server, "the server"), (&of_pooler, "the pooler")] {
        let arrivals = relay.since(began);
        assert!(!arrivals.is_empty(), "nothing went to {where_to}");
        let clear = arrivals.iter().any(|one| one.bytes.windows(4).any(|bytes| bytes == CANCEL_CODE));
        assert!(!clear, "a CancelRequest went to {where_to} in clear");
    }
}

#[tokio::test]
async fn c11_a_cancel_ends_a_copy_in_either_direction() {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (t text); GRANT ALL ON items TO app").await;
    let mut a = pooler.client().await;
    for begin in ["", "BEGIN"] {
        let (end, status) = if begin.is_empty() { ("SELECT 1", "I") } else { ("ROLLBACK", "E") };
        // The server waits for data, and looks at the cancel only when some come.
        if !begin.is_empty() {
            a.query(begin).await.is("C(BEGIN) Z(T)");
        }
        a.send(query("COPY items FROM STDIN")).await;
        a.until(b'G').await.is("G");
        a.send(copy_data("1\n2\n")).await;
        Raw::cancel(&pooler.tcp(), &a.key).await;
        while !a.hears_within(Duration::from_millis(20)).await {
            a.send(copy_data("3\n")).await;
        }
        a.ready(1).await.is(&format!("E(57014) Z({status})"));
        // What the client still sends is not the next client's.
        a.send(run_of([copy_data("4\n"), copy_done()])).await;
        a.query(end).await.is("T* D* C Z(I)");

        // The server sends data.
        if !begin.is_empty() {
            a.query(begin).await.is("C(BEGIN) Z(T)");
        }
        a.send(query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT")).await;
        a.until(b'd').await.is("H d");
        Raw::cancel(&pooler.tcp(), &a.key).await;
        a.ready(1).await.is(&format!("d* E(57014) Z({status})"));
        a.query(end).await.is("T* D* C Z(I)");
        pooler.is_clean().await;
    }
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 0);
}

async fn pid(client: &mut Raw) -> String {
    client.query("SELECT pg_backend_pid()").await.value()
}

/// The server is not A's any more, although it is not yet anybody else's.
#[tokio::test]
async fn c11_a_cancel_does_not_hit_the_reset_query() {
    let pooler = Pooler::config()
        .setting("server_reset_query", "SELECT pg_advisory_xact_lock(4711)")
        .setting("server_reset_query_always", "1")
        .start()
        .await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let first = pid(&mut a).await;
    eventually("the first reset is over", async || pooler.pool("sv_idle").await == 1).await;
    let mut gate = Gate::close(&pooler).await;
    a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
    gate.is_reached_by(1).await;
    b.send(query("SELECT pg_backend_pid()")).await;
    pooler.clients_wait(1).await;
    for _ in 0..5 {
        Raw::cancel(&pooler.tcp(), &a.key).await;
    }
    assert!(!b.hears_within(Duration::from_millis(200)).await, "the reset is still on");
    gate.open().await;
    assert_eq!(b.ready(1).await.value(), first, "the server is as good as before");
    a.query("SELECT 'again'").await.is("T D(again) C(SELECT 1) Z(I)");
    assert!(!pooler.log().contains("reset_query failed"), "{}", pooler.log());
}

/// A client whose role is on its way to the next server must not be there without it.
#[tokio::test]
async fn c11_a_cancel_during_our_own_set_costs_the_client_its_query_and_nothing_else() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    let pooler = Pooler::config().postgres(Arc::clone(&postgres)).pool_size(2).start().await;
    pooler.sql("GRANT plain_user TO app").await;
    let mut control = postgres.control(&pooler.database).await;
    let (mut a, mut b, mut c) = (pooler.client().await, pooler.client().await, pooler.client().await);
    // Two servers, of which one has heard of the role.
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    c.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let (of_b, of_c) = (pid(&mut b).await, pid(&mut c).await);
    c.query("COMMIT").await.is("C(COMMIT) Z(I)");
    a.query("SET ROLE plain_user").await.is("C(SET) Z(I)");
    c.query("BEGIN").await.is("C(BEGIN) Z(T)");
    assert_eq!(pid(&mut c).await, of_c);
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    // On the other the SET has to look it up, and waits.
    control.query("BEGIN; LOCK pg_authid, pg_auth_members IN ACCESS EXCLUSIVE MODE").await.is("C C Z(T)");
    a.send(query("SELECT current_user")).await;
    let waiting = format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = {of_b}");
    eventually("the SET waits", async || control.query(&waiting).await.value() == "1").await;
    Raw::cancel(&pooler.tcp(), &a.key).await;
    sleep(Duration::from_millis(100)).await;
    control.query("COMMIT").await.is("C(COMMIT) Z(I)");
    let told = a.ready(1).await;
    match told.count(b'E') {
        0 => assert_eq!(told.value(), "plain_user"),
        _ => _ = told.is("T* E(57014) Z(I)"),
    }
    for _ in 0..3 {
        assert_eq!(a.query("SELECT current_user").await.value(), "plain_user");
        assert_eq!(b.query("SELECT current_user").await.value(), "app");
    }
    c.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert_eq!(c.query("SELECT current_user").await.value(), "app");
}
