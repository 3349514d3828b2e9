//! [`Ledger`]: clients that write numbered rows through the pooler, and write down what they are told.
//!
//! At the end the table must agree with the books: what was acknowledged is there once, what was refused is
//! not there, and what nobody knows is there at most once.

use super::message::{
    Reply, bind, close_statement, execute, extended, parse, query, run_of, sync, terminate,
};
use super::raw::{Address, Login, Raw};
use super::replicas::Replicas;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Rows of one client are numbered from its own multiple of this on.
const ROWS_MAX: i64 = 1_000_000;

/// How long one answer may take, a failover in between.
const PATIENCE: Duration = Duration::from_secs(40);

/// Before the next attempt of a client whose login was refused.
const LOGIN_PAUSE: Duration = Duration::from_millis(100);

/// What a client knows of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged.
    Acknowledged,
    /// An error with this SQLSTATE says that nothing was committed.
    Refused(String),
    /// 08007, or the connection ended without a word (then the SQLSTATE is empty).
    Unknown(String),
    /// The login was refused with these words.
    NoLogin(String),
}

/// One attempt to write.
#[derive(Clone, Debug)]
pub struct Entry {
    pub client: usize,
    pub rows: Range<i64>,
    pub deed: Deed,
    pub began: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// How the rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// One simple Query.
    Simple,
    /// Parse, Bind, Describe, Execute, Sync.
    Extended,
    /// The same with a statement that is parsed once.
    Prepared,
    /// With a statement of its own name, which is closed afterwards.
    Named,
    /// BEGIN, two rows and COMMIT, each a Query of its own.
    Transaction,
    /// The same in one Query.
    Batch,
}

const DEEDS: [Deed; 6] =
    [Deed::Simple, Deed::Extended, Deed::Prepared, Deed::Named, Deed::Transaction, Deed::Batch];

/// Writing clients.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    entries: mpsc::UnboundedReceiver<Entry>,
    acknowledged: watch::Receiver<u64>,
    /// How many clients have written at all.
    writers: watch::Receiver<usize>,
    count: usize,
}

/// What all clients have written down.
pub struct Books(pub Vec<Entry>);

impl Ledger {
    /// Makes the table.
    pub async fn prepare(replicas: &Replicas) {
        let sql = "CREATE TABLE ledger (n bigint, server inet DEFAULT inet_server_addr()); \
             GRANT ALL ON ledger TO app";
        replicas.sql(0, sql).await;
    }

    /// So many clients begin, and pause up to 5 ms between their deeds.
    pub fn start(address: &Address, count: usize, seed: u64) -> Ledger {
        Ledger::of(address, 0..count, seed)
    }

    /// Clients with these numbers begin: several ledgers of one table need numbers of their own.
    pub fn of(address: &Address, numbers: Range<usize>, seed: u64) -> Ledger {
        let stop = Arc::new(AtomicBool::new(false));
        let (book, entries) = mpsc::unbounded_channel();
        let (counter, acknowledged) = watch::channel(0);
        let (first, writers) = watch::channel(0);
        let count = numbers.len();
        let mut clients = JoinSet::new();
        for number in numbers {
            let writer = Writer {
                number,
                address: address.clone(),
                connection: None,
                next_row: i64::try_from(number).expect("few clients") * ROWS_MAX,
                chance: StdRng::seed_from_u64(seed.wrapping_add(number as u64)),
            };
            clients.spawn(writer.run(stop.clone(), book.clone(), counter.clone(), first.clone()));
        }
        Ledger { stop, clients, entries, acknowledged, writers, count }
    }

    /// Waits until every client has logged in and written: a login that is lost is no transaction.
    pub async fn all_write(&mut self) {
        let count = self.count;
        let all = tokio::time::timeout(PATIENCE, self.writers.wait_for(|writers| *writers == count));
        all.await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: all write")).expect("clients run");
    }

    /// Waits until so many further writes are acknowledged.
    pub async fn writes(&mut self, count: u64) {
        let wanted = *self.acknowledged.borrow() + count;
        let written = self.acknowledged.wait_for(|written| *written >= wanted);
        let result = tokio::time::timeout(PATIENCE, written).await;
        result.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {count} writes")).expect("clients run");
    }

    /// Whether a write was acknowledged after this call, within this time.
    pub async fn writes_within(&mut self, patience: Duration) -> bool {
        let before = *self.acknowledged.borrow();
        let written = self.acknowledged.wait_for(|written| *written > before);
        tokio::time::timeout(patience, written).await.is_ok()
    }

    /// Ends every client at once, whatever it waits for. The books have what was known by then.
    pub async fn abandon(mut self) -> Books {
        self.clients.shutdown().await;
        self.books()
    }

    /// Lets every client finish what it does.
    pub async fn stop(mut self) -> Books {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client of the ledger does not panic");
        }
        self.books()
    }

    fn books(mut self) -> Books {
        let mut entries = Vec::new();
        while let Ok(entry) = self.entries.try_recv() {
            entries.push(entry);
        }
        Books(entries)
    }
}

impl Books {
    /// Holds the books against the table of this server. `allowed` are SQLSTATEs.
    pub async fn agree_with(&self, replicas: &Replicas, number: usize, allowed: &[&str]) {
        let rows = replicas.sql(number, "SELECT n, count(*) FROM ledger GROUP BY n").await;
        let number = |text: &String| text.parse::<i64>().expect("a number");
        let found: HashMap<i64, i64> = rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
        let mut wrong = Vec::new();
        for entry in &self.0 {
            let counts: Vec<i64> =
                entry.rows.clone().map(|row| found.get(&row).copied().unwrap_or(0)).collect();
            let same = counts.iter().all(|count| *count == counts[0]);
            let right = match &entry.outcome {
                Outcome::Acknowledged => counts[0] == 1,
                Outcome::Refused(code) => counts[0] == 0 && allowed.contains(&code.as_str()),
                Outcome::Unknown(code) => counts[0] <= 1 && allowed.contains(&code.as_str()),
                Outcome::NoLogin(_) => false,
            };
            if !same || !right {
                wrong.push(format!("{entry:?} is in the table {counts:?} times"));
            }
        }
        assert!(wrong.is_empty(), "{} of {} entries:\n{}", wrong.len(), self.0.len(), wrong.join("\n"));
        println!("  {} attempts: {}; the slowest took {:?}", self.0.len(), self.summary(), self.slowest());
    }

    /// How often each outcome was had.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for entry in &self.0 {
            *counts.entry(format!("{:?}", entry.outcome)).or_default() += 1;
        }
        format!("{counts:?}")
    }

    /// The longest that a client waited for one write.
    pub fn slowest(&self) -> Duration {
        self.0.iter().map(|entry| entry.ended - entry.began).max().unwrap_or_default()
    }

    /// Every client has been served after this moment. Returns how long the first acknowledgement
    /// took, and the longest that a client waited for its own first.
    pub fn served_after(&self, moment: Instant, clients: usize) -> (Duration, Duration) {
        let first_of = |client: usize| {
            let later = self.0.iter().filter(|entry| entry.client == client && entry.ended >= moment);
            let first =
                later.filter(|entry| entry.outcome == Outcome::Acknowledged).map(|entry| entry.ended).min();
            first.unwrap_or_else(|| panic!("client {client} was never served again: {}", self.summary()))
        };
        let firsts: Vec<Duration> = (0..clients).map(|client| first_of(client) - moment).collect();
        let first = firsts.iter().min().expect("there are clients");
        let last = firsts.iter().max().expect("there are clients");
        (*first, *last)
    }

    /// How often one client has been served after this moment before the last one was served at all. Those who
    /// fail must log in first; else all are served in turn.
    pub fn turns_before_the_last(&self, moment: Instant, clients: usize) -> usize {
        let (_, last) = self.served_after(moment, clients);
        let is_before = |entry: &&Entry| entry.ended >= moment && entry.ended < moment + last;
        let mut turns = vec![0; clients];
        for entry in self.0.iter().filter(|entry| entry.outcome == Outcome::Acknowledged).filter(is_before) {
            turns[entry.client] += 1;
        }
        turns.into_iter().max().unwrap_or(0)
    }

    /// The longest time without an acknowledgement between these moments.
    pub fn outage(&self, from: Instant, until: Instant) -> Duration {
        let acknowledged = self.0.iter().filter(|entry| entry.outcome == Outcome::Acknowledged);
        let inside = acknowledged.map(|entry| entry.ended).filter(|ended| (from..until).contains(ended));
        let mut moments: Vec<Instant> = inside.chain([from, until]).collect();
        moments.sort();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().expect("two moments are there")
    }

    /// What was refused.
    pub fn refused(&self) -> Vec<&Entry> {
        self.0.iter().filter(|entry| matches!(entry.outcome, Outcome::Refused(_))).collect()
    }

    /// How often this outcome was had.
    pub fn count(&self, wanted: impl Fn(&Entry) -> bool) -> usize {
        self.0.iter().filter(|entry| wanted(entry)).count()
    }
}

/// The rows of the ledger that a server has.
pub async fn rows(replicas: &Replicas, number: usize) -> HashSet<i64> {
    let rows = replicas.sql(number, "SELECT n FROM ledger").await;
    rows.iter().map(|row| row[0].parse().expect("a number")).collect()
}

struct Writer {
    number: usize,
    address: Address,
    connection: Option<Raw>,
    next_row: i64,
    chance: StdRng,
}

/// What one answer means.
enum Told {
    Fine,
    Error(String),
    Nothing,
}

impl Writer {
    async fn run(
        mut self,
        stop: Arc<AtomicBool>,
        book: mpsc::UnboundedSender<Entry>,
        counter: watch::Sender<u64>,
        first: watch::Sender<usize>,
    ) {
        let mut has_written = false;
        while !stop.load(Ordering::Relaxed) {
            let deed = DEEDS[self.chance.random_range(0..DEEDS.len())];
            let length = if matches!(deed, Deed::Transaction | Deed::Batch) { 2 } else { 1 };
            let rows = self.next_row..self.next_row + length;
            self.next_row = rows.end;
            let began = Instant::now();
            let outcome = self.write(deed, rows.clone()).await;
            if outcome == Outcome::Acknowledged {
                counter.send_modify(|count| *count += 1);
                if !std::mem::replace(&mut has_written, true) {
                    first.send_modify(|writers| *writers += 1);
                }
            } else {
                self.connection = None;
            }
            let pause = if matches!(outcome, Outcome::NoLogin(_)) { LOGIN_PAUSE } else { Duration::ZERO };
            let entry = Entry { client: self.number, rows, deed, began, ended: Instant::now(), outcome };
            // The test has ended: nobody reads the books.
            let _ = book.send(entry);
            sleep(pause + Duration::from_micros(self.chance.random_range(0..5000))).await;
        }
        if let Some(mut connection) = self.connection.take() {
            connection.send(terminate()).await;
        }
    }

    async fn write(&mut self, deed: Deed, rows: Range<i64>) -> Outcome {
        if self.connection.is_none() {
            match self.connect().await {
                Ok(connection) => self.connection = Some(connection),
                Err(words) => return Outcome::NoLogin(words),
            }
        }
        let steps = steps(deed, rows);
        let last = steps.len() - 1;
        for (place, step) in steps.into_iter().enumerate() {
            let decides = place == last;
            match self.ask(step).await {
                Told::Fine => {}
                Told::Error(code) if code == "08007" => return Outcome::Unknown(code),
                Told::Error(code) => return Outcome::Refused(code),
                Told::Nothing if decides => return Outcome::Unknown(String::new()),
                Told::Nothing => return Outcome::Refused(String::new()),
            }
        }
        Outcome::Acknowledged
    }

    async fn connect(&mut self) -> Result<Raw, String> {
        // Of two kinds, so that servers that change hands are sent SETs first.
        let name = format!("ledger {}", self.number % 2);
        let login = Login::new("app", "app").option("application_name", &name);
        let mut connection = Raw::try_login(&self.address, &login).await?;
        let prepare = run_of([parse("ledger", "INSERT INTO ledger VALUES ($1::bigint)"), sync()]);
        connection.send(prepare).await;
        match answer(&mut connection).await {
            Told::Fine => Ok(connection),
            Told::Error(code) => Err(format!("Parse: {code}")),
            Told::Nothing => Err("Parse: the end".to_owned()),
        }
    }

    async fn ask(&mut self, bytes: Vec<u8>) -> Told {
        let connection = self.connection.as_mut().expect("write() has connected");
        connection.send(bytes).await;
        answer(connection).await
    }
}

fn steps(deed: Deed, rows: Range<i64>) -> Vec<Vec<u8>> {
    let insert = |row: i64| format!("INSERT INTO ledger VALUES ({row})");
    let value = rows.start.to_string();
    match deed {
        Deed::Simple => vec![query(&insert(rows.start))],
        Deed::Extended => {
            vec![run_of([extended("INSERT INTO ledger VALUES ($1::bigint)", &[&value]), sync()])]
        }
        Deed::Prepared => vec![run_of([bind("", "ledger", &[&value]), execute("", 0), sync()])],
        Deed::Named => {
            let parse = parse("own", "INSERT INTO ledger VALUES ($1::bigint)");
            vec![
                run_of([parse, bind("", "own", &[&value]), execute("", 0), sync()]),
                run_of([close_statement("own"), sync()]),
            ]
        }
        Deed::Transaction => {
            let inserts = rows.map(|row| query(&insert(row)));
            [query("BEGIN")].into_iter().chain(inserts).chain([query("COMMIT")]).collect()
        }
        Deed::Batch => {
            let inserts: Vec<String> = rows.map(insert).collect();
            vec![query(&format!("BEGIN; {}; COMMIT", inserts.join("; ")))]
        }
    }
}

/// Everything up to ReadyForQuery or the end.
async fn answer(connection: &mut Raw) -> Told {
    let mut reply = Reply::default();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connection.reader.message_before(deadline).await {
            None => panic!("no answer within {PATIENCE:?}, after: {reply}"),
            Some(None) => reply.closed = true,
            Some(Some(message)) if message.tag == b'Z' => {}
            Some(Some(message)) => {
                reply.messages.push(message);
                continue;
            }
        }
        return match reply.of(b'E').next() {
            Some(error) => Told::Error(error.field(b'C')),
            None if reply.closed => Told::Nothing,
            None => Told::Fine,
        };
    }
}
