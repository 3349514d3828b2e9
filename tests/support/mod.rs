//! What the integration tests stand on: a real PostgreSQL, the pooler, and a client that says what it
//! is told. See [`Pooler`] first; a test starts one, logs clients in, and asserts on their traces.
//!
//! `PGWEIR_TEST_POOLER=/usr/sbin/pgbouncer cargo nextest run` asks PgBouncer the same questions.

// Each test program uses a part of this module, and none of it is anyone's interface.
#![allow(dead_code, unreachable_pub, unused_imports, missing_docs)]

pub mod archive;
pub mod certificates;
pub mod clients;
pub mod descriptors;
pub mod directory;
pub mod http;
pub mod kube;
pub mod kustomize;
pub mod ledger;
pub mod load;
pub mod message;
pub mod modules;
pub mod nameserver;
pub mod network;
pub mod operator;
pub mod pages;
pub mod pgbouncer;
pub mod pod;
pub mod pooler;
pub mod postgres;
pub mod probed;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod relay;
pub mod replicas;
pub mod restore;
pub mod rules;
pub mod runs;
pub mod scene;
pub mod stage;
pub mod stranger;

pub use self::kube::{Kube, Space};
pub use message::{Message, Reply};
pub use pooler::Pooler;
pub use postgres::Postgres;
pub use raw::{Address, Login, PATIENCE, Raw};

use message::{query, terminate};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What a clean client is promised at once. Generous, as test machines are busy.
pub const PROMPTLY: Duration = Duration::from_secs(3);

/// Waits until the condition holds; panics with the text when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, condition).await;
}

/// Waits until the condition holds; panics with the text when it does not within the time.
///
/// A look is often a login. So the longer it has waited, the longer it waits for the next look.
pub async fn eventually_within(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < patience, "not within {patience:?}: {what}");
        sleep((began.elapsed() / 8).clamp(Duration::from_millis(5), Duration::from_millis(50))).await;
    }
}

impl Pooler {
    /// Another client is served at once and correctly, and no server hangs in a transaction.
    pub async fn is_clean(&self) {
        let mut other = self.client().await;
        other.send(query("SELECT 'clean'")).await;
        assert!(
            other.hears_within(PROMPTLY).await,
            "another client waits: {:?}",
            self.admin("SHOW POOLS").await
        );
        other.ready(1).await.is("T D(clean) C(SELECT 1) Z(I)");
        let hanging = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND state LIKE 'idle in transaction%'";
        // One whose connection was closed just now may not have seen it yet.
        eventually("no server is idle in a transaction", async || self.number(hanging).await == 0).await;
    }

    /// Waits until PostgreSQL cannot send any more: the client does not read, so nobody does.
    pub async fn server_waits_for_its_client(&self) {
        let sql = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event = 'ClientWrite'";
        eventually("the server waits for its client", async || self.number(sql).await == 1).await;
    }

    /// Sends the same bytes to PostgreSQL itself and through the pooler, on fresh connections, and
    /// requires the same answers; then the connection must be in step. Returns PostgreSQL's answer.
    pub async fn same_as_direct(&self, bytes: impl AsRef<[u8]>) -> Reply {
        let bytes = bytes.as_ref();
        let mut direct = self.direct().await;
        direct.send([bytes, &terminate()].concat()).await;
        let mut expected = direct.rest().await;
        expected.closed = false;
        let mut client = self.client().await;
        client.send(bytes).await;
        self.compare(&expected, &mut client).await;
        expected
    }

    async fn compare(&self, expected: &Reply, client: &mut Raw) {
        let expected = told(expected);
        let mut got = Vec::new();
        while got.len() < expected.len() {
            match client.reader.message_before(Instant::now() + PATIENCE).await {
                Some(Some(message)) if message.tag == b'S' => {}
                Some(Some(message)) => got.push(message.masked()),
                Some(None) => got.push("EOF".to_owned()),
                None => got.push("nothing more".to_owned()),
            }
            let last = got.len() - 1;
            assert!(
                got[last] == expected[last],
                "answers differ from PostgreSQL's\nexpected {}\n     got {}\n",
                expected.join("\n         "),
                got.join("\n         ")
            );
        }
        if expected.last().is_some_and(|last| last.starts_with('Z')) {
            // A stray message would show up here. ROLLBACK is valid in every state.
            let end = client.query("ROLLBACK").await;
            end.is("N* C(ROLLBACK) Z(I)");
        }
    }
}

fn told(reply: &Reply) -> Vec<String> {
    let shown = reply.messages.iter().filter(|message| message.tag != b'S');
    shown.map(Message::masked).collect()
}

/// An advisory lock that a test holds, so that a server is busy exactly as long as the test wants.
pub struct Gate {
    holder: Raw,
    number: i64,
}

impl Gate {
    /// Takes the lock in the pooler's database, around the pooler.
    pub async fn close(pooler: &Pooler) -> Gate {
        let mut holder = pooler.postgres.control(&pooler.database).await;
        let number = 4711;
        holder.query(&format!("SELECT pg_advisory_lock({number})")).await.is("T D C Z(I)");
        Gate { holder, number }
    }

    /// A query that lasts until the gate opens; it returns one row with the text.
    pub fn sql(&self, text: &str) -> String {
        format!("SELECT '{text}' FROM (SELECT pg_advisory_xact_lock({})) AS gate", self.number)
    }

    /// Waits until this many servers stand before the gate.
    pub async fn is_reached_by(&mut self, count: u32) {
        let reached = self.is_reached_within(PATIENCE, count).await;
        assert!(reached, "not within {PATIENCE:?}: {count} servers at the gate");
    }

    /// Whether this many servers come to stand before the gate within the time.
    pub async fn is_reached_within(&mut self, patience: Duration, count: u32) -> bool {
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
        let deadline = Instant::now() + patience;
        loop {
            if self.holder.query(waiting).await.value() == count.to_string() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The process id of the server that stands before the gate.
    pub async fn pid(&mut self) -> String {
        let sql = "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
        self.holder.query(sql).await.value()
    }

    /// Lets all through.
    pub async fn open(mut self) {
        let sql = format!("SELECT pg_advisory_unlock({})", self.number);
        self.holder.query(&sql).await.is("T D(t) C Z(I)");
    }
}
