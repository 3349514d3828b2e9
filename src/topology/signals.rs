//! What a server says of its own health: [`Signals`], asked by SQL ([`QUESTION`]) about once a second.
//!
//! Everything is one answer, so that its numbers belong together. What the monitor's user may not see is
//! left out there, and [`Signals::unseen`] says it in words. Nothing here asks or reads a clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};

use super::Member;

/// One row with one JSON text. Nothing in it waits for a lock or reads a disk, and what it returns is bounded.
///
/// Without `pg_read_all_stats` PostgreSQL hides states and waits of other users' sessions, not the sessions.
pub const QUESTION: &str = "\
WITH here AS (SELECT CASE WHEN pg_is_in_recovery() \
        THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
        ELSE pg_current_wal_lsn() END AS lsn), \
    waiting AS (SELECT count(*) AS count, \
        max(greatest(extract(epoch FROM clock_timestamp() - query_start), 0)) AS oldest_s \
        FROM pg_stat_activity WHERE wait_event = 'SyncRep'), \
    standbys AS (SELECT json_build_object('name', application_name, 'address', host(client_addr), \
        'state', state, 'sync_state', sync_state, \
        'lag_bytes', CASE WHEN replay_lsn IS NOT NULL \
            THEN greatest((SELECT lsn FROM here) - replay_lsn, 0)::bigint END, \
        'lag_s', extract(epoch FROM replay_lag)) AS standby \
        FROM pg_stat_replication ORDER BY application_name, pid LIMIT 64) \
SELECT json_build_object( \
    'reads_stats', pg_has_role('pg_read_all_stats', 'USAGE'), \
    'reads_wal', has_function_privilege('pg_ls_waldir()', 'EXECUTE'), \
    'in_recovery', pg_is_in_recovery(), \
    'wal_position', (SELECT lsn - '0/0' FROM here)::bigint, \
    'standbys', (SELECT coalesce(json_agg(standby), '[]') FROM standbys), \
    'sync_rule', current_setting('synchronous_standby_names'), \
    'sync_waiters', (SELECT count FROM waiting), \
    'sync_oldest_wait_s', (SELECT oldest_s FROM waiting), \
    'archive_mode', current_setting('archive_mode'), \
    'archiver', (SELECT json_build_object('archived', archived_count, 'failures', failed_count, \
        'last_failed_wal', last_failed_wal, \
        'last_failed_age_s', extract(epoch FROM clock_timestamp() - last_failed_time), \
        'last_archived_age_s', extract(epoch FROM clock_timestamp() - last_archived_time)) \
        FROM pg_stat_archiver), \
    'slots_bytes', (SELECT max(greatest((SELECT lsn FROM here) - restart_lsn, 0))::bigint \
        FROM pg_replication_slots), \
    'connections', (SELECT count(*) FROM pg_stat_activity \
        WHERE backend_type = 'client backend' OR backend_type IS NULL AND datid IS NOT NULL), \
    'connections_max', current_setting('max_connections')::int, \
    'connections_reserved', current_setting('superuser_reserved_connections')::int \
        + coalesce(current_setting('reserved_connections', true)::int, 0), \
    'read_only', current_setting('default_transaction_read_only')::bool)";

/// How much WAL there is. It looks at each file, so it is asked less often, and only with the right to.
pub const WAL_QUESTION: &str = "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()";

/// What one server said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Signals {
    /// Whether states and waits of all sessions are seen.
    pub reads_stats: bool,
    /// Whether the folder of the WAL may be looked at.
    pub reads_wal: bool,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Where its WAL ends, in bytes; that of a standby, where what it has received does.
    pub wal_position: Option<u64>,
    /// Who receives its WAL.
    pub standbys: Vec<Standby>,
    /// `synchronous_standby_names`
    pub sync_rule: SyncRule,
    /// Sessions whose commit waits for a standby.
    pub sync_waiters: u32,
    /// Since when the statement of the first of them runs; `None` if none waits.
    #[serde(rename = "sync_oldest_wait_s", deserialize_with = "seconds")]
    pub sync_oldest_wait: Option<Duration>,
    /// Whether it archives: off, on or always.
    pub archive_mode: String,
    /// `pg_stat_archiver`
    pub archiver: Archiver,
    /// WAL that the replication slot that is furthest behind keeps, in bytes; `None` without a slot.
    pub slots_bytes: Option<u64>,
    /// Connections of clients.
    pub connections: u32,
    /// `max_connections`
    pub connections_max: u32,
    /// How many of these are for superusers and `pg_use_reserved_connections` alone.
    pub connections_reserved: u32,
    /// `default_transaction_read_only`
    pub read_only: bool,
    /// Size of all files of WAL, in bytes, as of some seconds ago. Not part of the same answer.
    #[serde(skip)]
    pub wal_bytes: Option<u64>,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Standby {
    /// `application_name`
    pub name: Option<String>,
    /// Where it connects from; `None` for a Unix socket, or when it is hidden.
    pub address: Option<String>,
    /// streaming, catchup, backup, ...; `None` when it is hidden.
    pub state: Option<String>,
    /// sync, potential, quorum or async; `None` when it is hidden.
    pub sync_state: Option<String>,
    /// WAL that it has not replayed.
    pub lag_bytes: Option<u64>,
    /// How long the last WAL took to be replayed there; `None` when nothing was written lately.
    #[serde(rename = "lag_s", deserialize_with = "seconds")]
    pub lag: Option<Duration>,
}

/// `pg_stat_archiver`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Archiver {
    /// Files that were archived.
    pub archived: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// What could not be archived last.
    pub last_failed_wal: Option<String>,
    /// How long ago that was.
    #[serde(rename = "last_failed_age_s", deserialize_with = "seconds")]
    pub last_failed_age: Option<Duration>,
    /// How long ago something was archived.
    #[serde(rename = "last_archived_age_s", deserialize_with = "seconds")]
    pub last_archived_age: Option<Duration>,
}

/// How many standbys must have a commit before it is acknowledged: `synchronous_standby_names`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct SyncRule {
    /// As it is set.
    pub text: String,
    /// How many; 0 when commits wait for none.
    pub required: u32,
    /// Who counts; `*` is anybody.
    pub names: Vec<String>,
}

/// The last two answers of one server. One that is missing changes nothing: the last one counts on.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    last: Option<(Instant, Arc<Signals>)>,
    before: Option<Arc<Signals>>,
    trouble: Option<Arc<str>>,
}

/// What a server said longer ago than this is no longer how it is.
pub const AGE_MAX: Duration = Duration::from_secs(5);

impl Samples {
    /// It has answered.
    pub fn hear(&mut self, signals: Signals, now: Instant) {
        let before = self.last.replace((now, Arc::new(signals)));
        self.before = before.map(|(_, signals)| signals);
        self.trouble = None;
    }

    /// It has not, and why. Returns whether that is another reason than before.
    pub fn miss(&mut self, reason: &Arc<str>) -> bool {
        self.trouble.replace(Arc::clone(reason)).as_ref() != Some(reason)
    }

    /// The last answer.
    pub fn last(&self) -> Option<&Arc<Signals>> {
        self.last.as_ref().map(|(_, signals)| signals)
    }

    /// The one before it.
    pub fn before(&self) -> Option<&Arc<Signals>> {
        self.before.as_ref()
    }

    /// The last answer, unless it is too old.
    pub fn fresh(&self, now: Instant) -> Option<&Arc<Signals>> {
        let (heard, signals) = self.last.as_ref()?;
        (now.saturating_duration_since(*heard) <= AGE_MAX).then_some(signals)
    }

    /// What is not known of the server, in words.
    pub fn unknown(&self, now: Instant) -> Option<String> {
        match (self.fresh(now), &self.trouble) {
            (Some(signals), _) => signals.unseen().map(str::to_owned),
            (None, Some(reason)) => Some(format!("it is not seen how it is: {reason}")),
            (None, None) => None,
        }
    }
}

impl Signals {
    /// Reads the answer to [`QUESTION`].
    pub fn read(text: &str) -> Result<Signals, String> {
        serde_json::from_str(text).map_err(|error| format!("an answer that cannot be read: {error}"))
    }

    /// What the monitor's user may not see, and what would let it.
    pub fn unseen(&self) -> Option<&'static str> {
        match (self.reads_stats, self.reads_wal) {
            (true, true) => None,
            (false, _) => Some(
                "without pg_monitor it is not seen whether commits wait for a standby, and what standbys do",
            ),
            (true, false) => Some("without pg_monitor it is not seen how much WAL there is"),
        }
    }

    /// Standbys that stream, and that a commit may wait for. When their states are hidden, at most so many.
    pub fn sync_streaming(&self) -> u32 {
        let counts = self.standbys.iter().filter(|standby| standby.may_acknowledge()).count();
        u32::try_from(counts).expect("the question returns at most 64")
    }

    /// What the server says of a member that receives its WAL.
    pub fn standby(&self, member: &Member) -> Option<&Standby> {
        let host = member.place.host.to_string();
        let is_it = |standby: &&Standby| {
            let name = standby.name.as_deref();
            name == Some(&*member.name) || name == Some(&*host)
        };
        let comes_from = |standby: &&Standby| standby.address.as_deref() == Some(&*host);
        self.standbys.iter().find(is_it).or_else(|| self.standbys.iter().find(comes_from))
    }

    /// Whether the last attempt to archive has failed. Nothing was archived since.
    pub fn archiving_fails(&self) -> bool {
        let Archiver { last_failed_age, last_archived_age, .. } = self.archiver;
        self.archive_mode != "off"
            && last_failed_age.is_some_and(|failed| last_archived_age.is_none_or(|worked| failed < worked))
    }

    /// Connections that clients without special rights may have.
    pub fn connections_usable(&self) -> u32 {
        self.connections_max.saturating_sub(self.connections_reserved)
    }
}

impl Standby {
    /// Whether it streams; `None` when that is hidden.
    pub fn streams(&self) -> Option<bool> {
        self.state.as_deref().map(|state| state == "streaming")
    }

    /// Whether commits wait for it now; `None` when that is hidden.
    pub fn is_synchronous(&self) -> Option<bool> {
        self.sync_state.as_deref().map(is_synchronous)
    }

    fn may_acknowledge(&self) -> bool {
        self.streams() != Some(false) && self.sync_state.as_deref() != Some("async")
    }
}

/// Whether commits wait for a standby of this `sync_state`.
pub fn is_synchronous(sync_state: &str) -> bool {
    matches!(sync_state, "sync" | "quorum")
}

impl From<String> for SyncRule {
    fn from(text: String) -> Self {
        let words = words(&text);
        let (required, names) = match words.as_slice() {
            [Word::Name(method), Word::Name(number), Word::Open, names @ ..]
                if ["any", "first"].iter().any(|known| method.eq_ignore_ascii_case(known)) =>
            {
                (number.parse().unwrap_or(1), names)
            }
            [Word::Name(number), Word::Open, names @ ..] => (number.parse().unwrap_or(1), names),
            [] => (0, &[] as &[Word]),
            names => (1, names),
        };
        let name = |word: &Word| match word {
            Word::Name(name) => Some(name.clone()),
            Word::Open | Word::Close => None,
        };
        SyncRule { required, names: names.iter().filter_map(name).collect(), text }
    }
}

/// What `synchronous_standby_names` is made of; commas only separate.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Name(String),
    Open,
    Close,
}

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '(' => words.push(Word::Open),
            ')' => words.push(Word::Close),
            '"' => {
                let mut name = String::new();
                while let Some(next) = rest.next() {
                    // Two of them are one that belongs to the name.
                    if next == '"' && rest.next_if_eq(&'"').is_none() {
                        break;
                    }
                    name.push(next);
                }
                words.push(Word::Name(name));
            }
            ',' => {}
            first if first.is_whitespace() => {}
            first => {
                let mut name = String::from(first);
                let belongs = |next: &char| !next.is_whitespace() && !matches!(next, '(' | ')' | ',' | '"');
                while let Some(next) = rest.next_if(belongs) {
                    name.push(next);
                }
                words.push(Word::Name(name));
            }
        }
    }
    words
}

/// A negative time is a clock that was set back.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(from)?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests;
