//! Protocol 3.2 beside 3.0: who gets which, toward clients and servers, and that a cancel finds its query with
//! keys of every length. The server is PostgreSQL 18, the client libpq 18 where it can be.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use support::message::{cancel_request, query, untagged};
use support::pgbouncer::PgBouncer;
use support::pooler::is_ours;
use support::{Address, Gate, Login, Pooler, Postgres, Raw, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const V3_0: (u32, u32) = (0, 3 << 16);
const V3_2: (u32, u32) = (0, (3 << 16) + 2);
const CANCEL: u32 = 80_877_102;

fn app(minor: u16) -> Login {
    Login::new("app", "app").protocol(minor)
}

/// A cancel of the client's query through the pooler works, and the client goes on.
async fn cancels(pooler: &Pooler, client: &mut Raw) {
    let mut gate = Gate::close(pooler).await;
    client.send(query(&gate.sql("never"))).await;
    gate.is_reached_by(1).await;
    Raw::cancel(&pooler.tcp(), &client.key).await;
    client.ready(1).await.is("T* E(57014) Z(I)");
    gate.open().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
}

/// Stands before a server and notes each connection's first packet: its length, 0 for a StartupMessage, and
/// its code.
struct Doorman {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<(u32, u32)>>>,
    _tasks: JoinSet<()>,
}

impl Doorman {
    /// `refuses` 3.2 by closing the connection, as a pooler that does not know it may do.
    async fn before(port: u16, refuses: bool) -> Doorman {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let notes = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                connections.spawn(async move {
                    let mut first = [0; 8];
                    if client.read_exact(&mut first).await.is_err() {
                        return;
                    }
                    let [length, code] =
                        [0, 4].map(|at| u32::from_be_bytes(first[at..at + 4].try_into().unwrap()));
                    notes.lock().unwrap().push((if code == CANCEL { length } else { 0 }, code));
                    if refuses && code == V3_2.1 {
                        return;
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    server.write_all(&first).await.unwrap();
                    // Either side may end the connection at any time.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Doorman { address, seen, _tasks: tasks }
    }

    fn seen(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// Closes the servers, so that the next query opens one.
async fn reconnect(pooler: &Pooler) {
    pooler.admin("RECONNECT").await;
    eventually("no server is left", async || pooler.pool("sv_idle").await == 0).await;
}

#[tokio::test]
async fn c10_each_client_gets_the_protocol_that_it_asks_for_and_a_key_that_belongs_to_it() {
    if !is_ours() {
        return;
    }
    let pooler = Pooler::config().start().await;
    let down_to_3_2 = [0, 3, 0, 2, 0, 0, 0, 0];
    for (minor, negotiated, key_bytes) in
        [(0, &[][..], 8), (1, &[], 8), (2, &[], 36), (3, &down_to_3_2, 36), (9999, &down_to_3_2, 36)]
    {
        let mut client = Raw::login(&pooler.tcp(), &app(minor)).await;
        assert_eq!((&client.negotiated[..], client.key.len()), (negotiated, key_bytes), "3.{minor}");
        cancels(&pooler, &mut client).await;
    }
    let keys = [Raw::login(&pooler.tcp(), &app(2)).await.key, Raw::login(&pooler.tcp(), &app(2)).await.key];
    assert_ne!(keys[0][8..], keys[1][8..]);
}

#[tokio::test]
async fn where_a_pgbouncer_may_pass_it_on_a_key_has_pgbouncers_eight_bytes() {
    if !is_ours() {
        return;
    }
    let config =
        Pooler::config().setting("peer_id", "258").sections("\n[peers]\n1 = host=127.0.0.1 port=1\n");
    let pooler = config.start().await;
    let mut client = Raw::login(&pooler.tcp(), &app(2)).await;
    assert!(client.negotiated.is_empty());
    assert_eq!((client.key.len(), &client.key[1..3], client.key[7] & 3), (8, &[2, 1][..], 3));
    cancels(&pooler, &mut client).await;
}

#[tokio::test]
async fn c10_a_long_key_cancels_only_when_all_of_it_is_right() {
    if !is_ours() {
        return;
    }
    let pooler = Pooler::config().start().await;
    let mut client = Raw::login(&pooler.tcp(), &app(2)).await;
    let mut gate = Gate::close(&pooler).await;
    client.send(query(&gate.sql("done"))).await;
    gate.is_reached_by(1).await;
    let right = client.key.clone();
    let mut wrong = vec![right[..8].to_vec(), right[..35].to_vec(), [&right[..], b"\0"].concat()];
    wrong.extend([8, 20, 35].map(|at| {
        let mut key = right.clone();
        key[at] ^= 0x80;
        key
    }));
    for key in &wrong {
        Raw::cancel(&pooler.tcp(), key).await;
    }
    // Not even a short key gets a tail.
    let short = Raw::login(&pooler.tcp(), &app(0)).await;
    Raw::cancel(&pooler.tcp(), &[&short.key[..], &right[8..]].concat()).await;
    assert!(
        !client.hears_within(std::time::Duration::from_millis(100)).await,
        "a wrong key has cancelled it"
    );
    gate.open().await;
    client.ready(1).await.is("T D(done) C Z(I)");
    cancels(&pooler, &mut client).await;
}

#[tokio::test]
async fn a_cancel_request_of_any_length_is_read_and_does_no_harm() {
    let pooler = Pooler::config().start().await;
    for length in (0..=300).chain([1000, 9_900, 20_000]) {
        let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
        client.send(cancel_request(&vec![0x55; length])).await;
        let told = client.rest().await;
        assert!(told.messages.iter().all(|message| message.tag == b'E'), "{length}: {told}");
    }
    // One whose end does not come.
    let mut half = Raw::connect(&pooler.tcp()).await.unwrap();
    half.send(&untagged(CANCEL, &[1; 256])[..40]).await;
    drop(half);
    pooler.is_clean().await;
}

#[tokio::test]
async fn c10_servers_are_asked_for_3_2_once_they_are_known_to_have_it_and_cancels_bring_their_long_keys() {
    if !is_ours() {
        return;
    }
    for postgres in [Arc::new(Postgres::start_18(&[]).await), Postgres::shared().await] {
        let is_new = postgres.version().await >= 18;
        let (later, key) = if is_new { (V3_2, 8 + 36) } else { (V3_0, 8 + 8) };
        let doorman = Doorman::before(postgres.port, false).await;
        let pooler = Pooler::config().postgres(postgres).server(doorman.address).start().await;
        for minor in [0, 2] {
            let mut client = Raw::login(&pooler.tcp(), &app(minor)).await;
            if minor == 0 {
                assert_eq!(doorman.seen(), [V3_0], "nothing is known of the server");
                reconnect(&pooler).await;
                client.query("SELECT 1").await.is("T D(1) C Z(I)");
                assert_eq!(doorman.seen(), [later]);
            }
            cancels(&pooler, &mut client).await;
            assert_eq!(doorman.seen(), [(key, CANCEL)], "3.{minor}");
        }
    }
}

#[tokio::test]
async fn whoever_will_not_have_3_2_is_asked_again_at_once_and_then_for_3_0_alone() {
    if !is_ours() {
        return;
    }
    let postgres = Arc::new(Postgres::start_18(&[]).await);
    let doorman = Doorman::before(postgres.port, true).await;
    let pooler = Pooler::config().postgres(postgres).server(doorman.address).start().await;
    let mut client = pooler.client().await;
    for expected in [&[V3_2, V3_0][..], &[V3_0], &[V3_0]] {
        doorman.seen();
        reconnect(&pooler).await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        assert_eq!(doorman.seen(), expected);
    }
    cancels(&pooler, &mut client).await;
}

#[tokio::test]
async fn a_pgbouncer_before_a_new_server_says_what_it_speaks() {
    if !is_ours() {
        return;
    }
    let postgres = Arc::new(Postgres::start_18(&[]).await);
    let config = Pooler::config().postgres(Arc::clone(&postgres)).database_line("* = {server}");
    let behind = PgBouncer::start(config).await;
    let Address::Tcp(address) = behind.tcp() else { unreachable!("it is TCP") };
    let doorman = Doorman::before(address.port(), false).await;
    let pooler = Pooler::config().postgres(postgres).server(doorman.address).start().await;
    let mut client = Raw::login(&pooler.tcp(), &app(2)).await;
    for expected in [[V3_2], [V3_0]] {
        doorman.seen();
        reconnect(&pooler).await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        assert_eq!(doorman.seen(), expected);
    }
    cancels(&pooler, &mut client).await;
}

/// libpq 18 insists on the protocol, and cancels in its own way.
const PSYCOPG: &str = "
import psycopg, sys, threading, time
port, minor = sys.argv[1:]
conn = psycopg.connect(f'host=127.0.0.1 port={port} user=app dbname=app', autocommit=True,
                       min_protocol_version=f'3.{minor}', max_protocol_version=f'3.{minor}')
assert psycopg.pq.version() >= 180000, psycopg.pq.version()
assert conn.info.full_protocol_version == 30000 + int(minor), conn.info.full_protocol_version
def cancel():
    time.sleep(0.2)
    conn.cancel_safe()
thread = threading.Thread(target=cancel)
thread.start()
try:
    conn.execute('SELECT pg_sleep(60)')
except psycopg.errors.QueryCanceled:
    print('cancelled', conn.execute('SELECT 1').fetchone()[0])
thread.join()
";

#[tokio::test]
async fn libpq_18_speaks_3_2_and_3_0_and_cancels_with_both() {
    if !is_ours() {
        return;
    }
    let postgres = Arc::new(Postgres::start_18(&[]).await);
    let pooler = Pooler::config().postgres(postgres).start().await;
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
    for minor in ["2", "0", "2"] {
        reconnect(&pooler).await;
        let mut command = Command::new(&python);
        command.args(["-c", PSYCOPG, &pooler.port.to_string(), minor]);
        let output = command.output().expect("scripts/setup drivers has made it");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "cancelled 1\n", "3.{minor}: {error}");
    }
}
