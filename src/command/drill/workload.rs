//! The drill's workload: clients that write numbered rows through the pooler, one after another, and remember what
//! they were told. Read [`Workload`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;

use crate::command::login;
use crate::net::endpoint::Endpoint;
use crate::server::login::Recipe;
use crate::server::{QueryError, ServerConnection, Session};

use super::Target;

/// The table of the drill, in the first schema of the search path.
pub(super) const TABLE: &str = "pgweir_drill";

/// Between two rows of a client.
const PAUSE: Duration = Duration::from_millis(20);

/// Before a client comes back whose login failed.
const LOGIN_PAUSE: Duration = Duration::from_millis(50);

/// How long a login may take, of which an application would say the same.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// A number of a client's: who wrote which row.
pub(super) type Row = (u32, u64);

/// What all clients have met.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// Rows whose COMMIT was acknowledged.
    pub(super) acknowledged: BTreeSet<Row>,
    /// Rows of which nobody knows: the connection ended before the answer.
    pub(super) unknown: BTreeSet<Row>,
    /// What clients were told, and how often.
    pub(super) errors: BTreeMap<String, u64>,
    /// The first of them, and when it came.
    pub(super) first_error: Option<(Instant, String)>,
    /// When a row was last acknowledged.
    pub(super) last: Option<Instant>,
    /// Since the harm: the longest time in which no row was acknowledged, with its end.
    pub(super) outage: Option<(Duration, Instant)>,
    /// Since the harm: the longest time that one row took that was acknowledged.
    pub(super) longest_wait: Duration,
    /// Since the harm: clients that have had a row acknowledged that they began after it.
    pub(super) back: BTreeSet<u32>,
    harm: Option<Instant>,
}

impl Met {
    fn acknowledge(&mut self, row: Row, began: Instant, now: Instant) {
        self.acknowledged.insert(row);
        if let Some(harm) = self.harm {
            let since = self.last.unwrap_or(harm);
            let gap = now.saturating_duration_since(since);
            if self.outage.is_none_or(|(longest, _)| gap > longest) {
                self.outage = Some((gap, now));
            }
            self.longest_wait = self.longest_wait.max(now.saturating_duration_since(began));
            if began >= harm {
                self.back.insert(row.0);
            }
        }
        self.last = Some(now);
    }

    fn fail(&mut self, error: String, now: Instant) {
        self.first_error.get_or_insert_with(|| (now, error.clone()));
        *self.errors.entry(error).or_default() += 1;
    }
}

/// The running clients. Dropping it ends them.
pub(super) struct Workload {
    pub(super) met: Arc<Mutex<Met>>,
    /// A client reads it while one of its rows is under way.
    under_way: Arc<RwLock<()>>,
    clients: JoinSet<()>,
    count: u32,
}

impl Workload {
    /// So many clients; the table must be there.
    pub(super) fn start(target: &Target, count: u32) -> Workload {
        let met = Arc::new(Mutex::new(Met::default()));
        let under_way = Arc::new(RwLock::new(()));
        let mut clients = JoinSet::new();
        for number in 0..count {
            clients.spawn(client(number, target.clone(), Arc::clone(&met), Arc::clone(&under_way)));
        }
        Workload { met, under_way, clients, count }
    }

    /// Waits until no row is under way; none begins while the guard is there.
    pub(super) async fn quiet(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.under_way).write_owned().await
    }

    /// From now on counts what the harm does.
    pub(super) fn begin_harm(&self, now: Instant) {
        self.met.lock().harm = Some(now);
    }

    /// Whether each client has written since the harm.
    pub(super) fn is_back(&self) -> bool {
        self.met.lock().back.len() == self.count as usize
    }

    /// Ends it.
    pub(super) async fn stop(mut self) -> Arc<Mutex<Met>> {
        self.clients.shutdown().await;
        self.met
    }
}

async fn client(number: u32, target: Target, met: Arc<Mutex<Met>>, under_way: Arc<RwLock<()>>) {
    let session = Session::untracked();
    let mut row = 0;
    loop {
        let mut connection = match target.open(&session).await {
            Ok(connection) => connection,
            Err(error) => {
                met.lock().fail(format!("login: {error}"), Instant::now());
                tokio::time::sleep(LOGIN_PAUSE).await;
                continue;
            }
        };
        loop {
            let row_under_way = under_way.read().await;
            row += 1;
            let began = Instant::now();
            let sql = format!("INSERT INTO {TABLE} (client, number) VALUES ({number}, {row})");
            let outcome = connection.run(&sql, &session).await;
            drop(row_under_way);
            let now = Instant::now();
            match outcome {
                Ok(()) => met.lock().acknowledge((number, row), began, now),
                Err(error) => {
                    let mut met = met.lock();
                    if matches!(error, QueryError::Io(_) | QueryError::OutOfStep(_)) {
                        met.unknown.insert((number, row));
                    }
                    met.fail(error.to_string(), now);
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Target {
    /// A connection through the pooler.
    pub(super) async fn open(&self, session: &Session) -> Result<ServerConnection, String> {
        let endpoint = Endpoint { host: self.host.clone(), port: self.port };
        let own = Recipe::own(endpoint, &self.user, &self.database, Arc::clone(&self.secret));
        let recipe = Recipe { timeout: Some(LOGIN_MAX), dialing: login::dialing(), ..own };
        recipe.open(session, 0, 0).await.map(|(connection, _)| connection).map_err(|error| error.to_string())
    }
}

/// The rows that are in the table. Rows of one client come as one text.
pub(super) async fn rows(target: &Target, clients: u32) -> Result<BTreeSet<Row>, String> {
    let session = Session::untracked();
    let mut connection = target.open(&session).await?;
    let mut rows = BTreeSet::new();
    for client in 0..clients {
        let sql = format!(
            "SELECT coalesce(string_agg(number::text, ','), '') FROM {TABLE} WHERE client = {client}"
        );
        let text = connection.first_value(&sql, &session).await.map_err(|error| error.to_string())?;
        let text = text.unwrap_or_default();
        let numbers = text.split(',').filter(|number| !number.is_empty());
        for number in numbers {
            let number = number.parse().map_err(|_| format!("{TABLE} has the number {number:?}"))?;
            rows.insert((client, number));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outage_is_the_longest_time_without_an_acknowledged_row_since_the_harm() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut met = Met::default();
        met.acknowledge((0, 1), at(0), at(1));
        met.acknowledge((1, 1), at(0), at(900));
        assert_eq!(met.outage, None, "before the harm nothing is counted");
        met.harm = Some(at(1000));
        met.acknowledge((0, 2), at(950), at(1200));
        assert_eq!((met.outage, met.back.len()), (Some((Duration::from_millis(300), at(1200))), 0));
        met.fail("lost".to_owned(), at(1300));
        met.fail("and refused".to_owned(), at(1350));
        met.acknowledge((1, 3), at(1400), at(5200));
        met.acknowledge((0, 4), at(5000), at(5300));
        assert_eq!(met.outage, Some((Duration::from_millis(4000), at(5200))));
        assert_eq!(met.longest_wait, Duration::from_millis(3800));
        assert_eq!((met.back.len(), met.errors["lost"]), (2, 1));
        assert_eq!(met.first_error, Some((at(1300), "lost".to_owned())), "not the first in the alphabet");
    }
}
