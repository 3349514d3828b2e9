//! The wrong-answer detector (scenario D4).
//!
//! Many clients ask for unique tokens, in every mode of the protocol, over a small pool, while clients are
//! killed at random bytes of what they send and servers are terminated and cancelled, and clients move from
//! worker to worker. Errors and lost connections are fine. A token that was not asked for, or asked for by
//! another client, never is.
//!
//! `PGWEIR_DETECTOR_SECONDS` (default 10) is how long, `PGWEIR_TEST_SEED` which choices.
//! `PGWEIR_DETECTOR_ALLOW` names further SQLSTATEs to let pass: PgBouncer needs `26000`, as it keeps a
//! statement whose Parse was cancelled for a good one.
//! Read [`judge`] first: it decides what a wrong answer is.

#[path = "detector/mod.rs"]
mod detector;

use crate::support;

use detector::{Author, Request, judge};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::message::{cancel_request, message, query, run_of, sync, terminate};
use support::pooler::Restless;
use support::{Address, Login, PATIENCE, Pooler, Raw, Reply, eventually, proxy};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const CLIENTS: u64 = 32;
const POOL_SIZE: u32 = 8;

/// What has happened, over all clients.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    values: AtomicU64,
    clients_killed: AtomicU64,
    connections_lost: AtomicU64,
    errors: AtomicU64,
    servers_hit: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn note(&self, reply: &Reply) {
        let add = |counter: &AtomicU64, number: usize| {
            counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        add(&self.requests, 1);
        add(&self.values, reply.count(b'D') + reply.count(b'd'));
        add(&self.errors, reply.count(b'E'));
        add(&self.connections_lost, usize::from(reply.closed));
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn print(&self) {
        let counters = BTreeMap::from([
            ("requests", &self.requests),
            ("values", &self.values),
            ("clients killed", &self.clients_killed),
            ("connections lost", &self.connections_lost),
            ("errors", &self.errors),
            ("servers hit", &self.servers_hit),
        ]);
        println!("{counters:?}");
    }
}

/// One client's life: many connections, one after the other.
struct Client {
    address: Address,
    author: Author,
    tally: Arc<Tally>,
}

/// Why a connection ended.
enum End {
    /// By chance, by the server, or by our own will: connect again.
    Over,
    Fault(String),
}

impl Client {
    async fn live(mut self) -> Result<(), String> {
        while !self.tally.stopped() {
            let login = Login::new("app", "app");
            // A login may fail while its server is being terminated.
            let Ok(connection) = Raw::try_login(&self.address, &login).await else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            if let End::Fault(fault) = self.use_up(connection).await {
                self.tally.stop.store(true, Ordering::Relaxed);
                return Err(format!("client {}: {fault}", self.author.client));
            }
        }
        Ok(())
    }

    async fn use_up(&mut self, mut connection: Raw) -> End {
        match self.converse(&mut connection).await {
            Ok(()) => {
                connection.send(terminate()).await;
                End::Over
            }
            // It is closed by the caller's last word, with RST or FIN.
            Err(End::Over) if self.author.chance.random() => {
                connection.reset();
                End::Over
            }
            Err(end) => end,
        }
    }

    async fn converse(&mut self, connection: &mut Raw) -> Result<(), End> {
        let prepare = Request::new(run_of([self.author.statement(), sync()]), Vec::new(), 1);
        self.exchange(connection, prepare).await?;
        while !self.tally.stopped() {
            match self.author.chance.random_range(0..15) {
                0..3 => self.transaction(connection).await?,
                3 => {
                    let request = self.author.refused();
                    self.exchange(connection, request).await?;
                }
                _ => {
                    let request = self.author.any();
                    self.exchange(connection, request).await?;
                }
            }
            if self.author.chance.random_range(0..300) == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn transaction(&mut self, connection: &mut Raw) -> Result<(), End> {
        let begin = Request::new(query("BEGIN"), Vec::new(), 1);
        self.exchange(connection, begin).await?;
        for _ in 0..self.author.chance.random_range(1..4) {
            let request = self.author.any();
            self.exchange(connection, request).await?;
        }
        if self.author.chance.random_range(0..10) == 0 {
            let request = self.author.copy_in();
            self.exchange(connection, request).await?;
        }
        let commit = Request::new(query("COMMIT"), Vec::new(), 1);
        self.exchange(connection, commit).await
    }

    /// Sends a request and judges the answer, or dies somewhere in it. An error ends the conversation: it
    /// may stand for a lost statement or a failed transaction.
    async fn exchange(&mut self, connection: &mut Raw, request: Request) -> Result<(), End> {
        match self.author.chance.random_range(0..100) {
            0..3 => return Err(self.die(connection, &request).await),
            3 => self.cancel(connection),
            _ => {}
        }
        let mut reply = Reply::default();
        for (bytes, last) in &request.parts {
            let readies = if *last == b'Z' { request.ready } else { 0 };
            connection.send(bytes).await;
            self.hear(connection, &mut reply, *last, readies).await?;
        }
        self.tally.note(&reply);
        judge(&request, &reply).map_err(End::Fault)?;
        if reply.closed || reply.count(b'E') > request.refusals {
            return Err(End::Over);
        }
        Ok(())
    }

    /// Reads up to the last of the expected messages. Without a count, an error also ends the part.
    async fn hear(
        &self,
        connection: &mut Raw,
        reply: &mut Reply,
        last: u8,
        readies: usize,
    ) -> Result<(), End> {
        let deadline = Instant::now() + PATIENCE;
        while !reply.closed {
            match connection.reader.message_before(deadline).await {
                None => return Err(End::Fault(format!("no end of the answer: {reply}"))),
                Some(None) => reply.closed = true,
                Some(Some(message)) => {
                    let tag = message.tag;
                    reply.messages.push(message);
                    let part = readies == 0 && (tag == last || tag == b'E');
                    if part || (tag == b'Z' && reply.count(b'Z') == readies) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends the request up to a random byte, and sometimes reads a part of the answer.
    async fn die(&mut self, connection: &mut Raw, request: &Request) -> End {
        let bytes = request.bytes();
        let whole: bool = self.author.chance.random();
        let cut = if whole { bytes.len() } else { self.author.chance.random_range(0..=bytes.len()) };
        connection.send(&bytes[..cut]).await;
        if self.author.chance.random() {
            let patience = Duration::from_millis(self.author.chance.random_range(0..5));
            connection.hears_within(patience).await;
        }
        self.tally.clients_killed.fetch_add(1, Ordering::Relaxed);
        End::Over
    }

    /// Sends a CancelRequest of its own from aside: it must never hit the server's next owner.
    fn cancel(&self, connection: &Raw) {
        let (address, key) = (self.address.clone(), connection.key.clone());
        tokio::spawn(async move {
            if let Ok(mut canceller) = Raw::connect(&address).await {
                canceller.send(cancel_request(&key)).await;
                canceller.reader.discard(1).await;
            }
        });
    }
}

/// Terminates and cancels servers at random until told to stop.
async fn hit_servers(pooler: &Pooler, mut chance: StdRng, tally: &Tally) {
    let mut control = pooler.postgres.control(&pooler.database).await;
    while !tally.stopped() {
        let act = if chance.random_range(0..3) == 0 { "pg_terminate_backend" } else { "pg_cancel_backend" };
        let sql = format!(
            "SELECT {act}(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND usename = 'app' ORDER BY random() LIMIT 1"
        );
        let hit = control.query(&sql).await.count(b'D');
        tally.servers_hit.fetch_add(u64::from(hit > 0), Ordering::Relaxed);
        sleep(Duration::from_millis(chance.random_range(5..80))).await;
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_no_client_ever_sees_the_answer_of_another() {
    let seed = number_from("PGWEIR_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let seconds = number_from("PGWEIR_DETECTOR_SECONDS").unwrap_or(10);
    println!("PGWEIR_TEST_SEED={seed} PGWEIR_DETECTOR_SECONDS={seconds}");
    let pooler = Pooler::config().pool_size(POOL_SIZE).environment("PGWEIR_WORKERS", "3").start().await;
    let moving = Restless::start(pooler.console().await);
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client =
            Client { address: pooler.tcp(), author: Author::new(seed, number), tally: tally.clone() };
        clients.spawn(client.live());
    }
    let time_over = async {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < deadline && !tally.stopped() {
            sleep(Duration::from_millis(50)).await;
        }
        tally.stop.store(true, Ordering::Relaxed);
    };
    let chance = StdRng::seed_from_u64(seed ^ 0x5eed);
    tokio::join!(time_over, hit_servers(&pooler, chance, &tally));
    let faults: Vec<String> = clients.join_all().await.into_iter().filter_map(Result::err).collect();
    tally.print();
    assert!(faults.is_empty(), "seed {seed}:\n{}", faults.join("\n"));
    let values = tally.values.load(Ordering::Relaxed);
    assert!(values > 200 * seconds, "only {values} values were compared");
    assert!(tally.clients_killed.load(Ordering::Relaxed) > seconds);
    assert!(tally.servers_hit.load(Ordering::Relaxed) > seconds);
    drop(moving);
    pool_is_full_again(&pooler).await;
}

/// All servers of the pool can be used at once, and none is left in a transaction.
async fn pool_is_full_again(pooler: &Pooler) {
    let mut owners = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..POOL_SIZE {
        let mut owner = pooler.client().await;
        owner.query("BEGIN").await.is("C(BEGIN) Z(T)");
        servers.push(owner.query("SELECT pg_backend_pid()").await.value());
        owners.push(owner);
    }
    servers.sort();
    servers.dedup();
    assert_eq!(servers.len(), owners.len(), "a server was lent twice");
    for owner in &mut owners {
        owner.query("COMMIT").await.is("C(COMMIT) Z(I)");
    }
    drop(owners);
    eventually("nobody holds a server", async || {
        pooler.pool("sv_active").await == 0 && pooler.pool("cl_waiting").await == 0
    })
    .await;
    pooler.is_clean().await;
}

#[test]
fn the_detector_finds_each_kind_of_wrong_answer() {
    let row = |value: &str| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        message(b'D', &[b"\0\x01", &length[..], value.as_bytes()].concat())
    };
    let ready = || message(b'Z', b"I");
    let error = |code: &str, text: &str| message(b'E', format!("SERROR\0C{code}\0M{text}\0\0").as_bytes());
    let check = |bytes: &[Vec<u8>], closed: bool, right: bool| {
        let asked = vec!["mine-1".to_owned(), "mine-2".to_owned()];
        let request = Request::new(Vec::new(), asked, 1);
        let messages =
            bytes.iter().map(|bytes| support::Message { tag: bytes[0], body: bytes[5..].to_vec() });
        let reply = Reply { messages: messages.collect(), closed };
        let judged = judge(&request, &reply);
        assert_eq!(judged.is_ok(), right, "{reply}: {judged:?}");
    };
    let (one, two) = (|| row("mine-1"), || row("mine-2"));
    check(&[one(), two(), ready()], false, true);
    check(&[one(), error("57014", "cancelled"), ready()], false, true);
    check(&[one()], true, true);
    // Planted: another's answer, in place of ours, before, behind, and after an error.
    check(&[one(), row("other-2"), ready()], false, false);
    check(&[row("other-1"), one(), two(), ready()], false, false);
    check(&[one(), two(), row("other-1"), ready()], false, false);
    check(&[error("57014", ""), row("other-1"), ready()], false, false);
    check(&[row("other-1")], true, false);
    // Planted: our answers doubled, in the wrong order, or lost without a word.
    check(&[one(), one(), ready()], false, false);
    check(&[two(), one(), ready()], false, false);
    check(&[one(), ready()], false, false);
    // Planted: a stray or a missing ReadyForQuery, a strange error, a mixed-up stream.
    check(&[one(), two(), ready(), ready()], false, false);
    check(&[one(), two()], false, false);
    check(&[error("42P05", "statement exists"), ready()], false, false);
    check(&[error("08P01", "invalid message format"), ready()], false, false);
}

#[tokio::test]
async fn the_detector_finds_a_server_that_answers_wrongly() {
    let impostor = proxy::Impostor::start(Vec::new(), Vec::new()).await;
    let address = Address::Tcp(impostor.address);
    let mut connection = Raw::login(&address, &Login::new("app", "app")).await;
    let request = Author::new(1, 1).simple();
    connection.send(request.bytes()).await;
    let reply = connection.ready(1).await;
    let fault = judge(&request, &reply).unwrap_err();
    assert!(fault.starts_with("told impostor"), "{fault}");
}
