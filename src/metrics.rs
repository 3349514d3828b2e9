//! Every metric's name, labels and unit, in one table ([`ALL`]), and the page that Prometheus reads.
//!
//! Whoever works counts in plain integers: [`Histogram`], [`WorkerMetrics`]. Nothing is published
//! before somebody asks; then a [`Page`] is built from the values of that moment, so a pool that is
//! gone leaves no series behind.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::formatting::sanitize_label_value;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A [`Histogram`].
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Full name, with the unit and `_total` as Prometheus has them.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it measures.
    pub unit: Unit,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident, $unit:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// The table of all.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

pub(crate) use metrics;

metrics! {
    UP: Gauge, Count, "pgweir_up", [],
        "1 while the data plane answers.";
    BUILD_INFO: Gauge, Count, "pgweir_build_info", ["version", "pgbouncer_version"],
        "Always 1; the labels say which version this is, and which PgBouncer it stands in for.";
    STATE: Gauge, Count, "pgweir_state", ["state"],
        "1 for the state that holds: active, paused or suspended.";
    CLIENT_CONNECTIONS: Gauge, Count, "pgweir_client_connections", ["database", "user", "state"],
        "Clients by state: active (holds a server), idle, waiting (for a server).";
    SERVER_CONNECTIONS: Gauge, Count, "pgweir_server_connections", ["database", "user", "state"],
        "Server connections by state: active, idle, used, tested, new, active_cancel, being_canceled.";
    POOL_SIZE: Gauge, Count, "pgweir_pool_size", ["database", "user"],
        "Server connections that the pool may have (pool_size); 0 is unlimited.";
    POOL_IN_USE: Gauge, Count, "pgweir_pool_in_use", ["database", "user"],
        "Server connections of the pool that are not free to be lent.";
    POOL_MAXWAIT: Gauge, Seconds, "pgweir_pool_maxwait_seconds", ["database", "user"],
        "How long the oldest waiting client has been waiting.";
    DATABASE_CONNECTIONS: Gauge, Count, "pgweir_database_server_connections", ["database"],
        "Server connections of the database, all pools together.";
    DATABASE_CONNECTIONS_MAX: Gauge, Count, "pgweir_database_server_connections_max", ["database"],
        "max_db_connections; 0 is unlimited.";
    DATABASE_CLIENTS: Gauge, Count, "pgweir_database_client_connections", ["database"],
        "Clients of the database.";
    DATABASE_CLIENTS_MAX: Gauge, Count, "pgweir_database_client_connections_max", ["database"],
        "max_db_client_connections; 0 is unlimited.";
    DATABASE_LISTENING: Gauge, Count, "pgweir_database_listening_clients", ["database"],
        "Clients that LISTEN without a server connection of their own.";
    DATABASE_PAUSED: Gauge, Count, "pgweir_database_paused", ["database"],
        "1 after PAUSE or KILL of the database.";
    DATABASE_DISABLED: Gauge, Count, "pgweir_database_disabled", ["database"],
        "1 after DISABLE of the database.";
    TRANSACTIONS: Counter, Count, "pgweir_transactions_total", ["database"],
        "Transactions.";
    QUERIES: Counter, Count, "pgweir_queries_total", ["database"],
        "Queries.";
    SERVER_ASSIGNMENTS: Counter, Count, "pgweir_server_assignments_total", ["database"],
        "Server connections lent to clients.";
    BYTES_RECEIVED: Counter, Bytes, "pgweir_received_bytes_total", ["database"],
        "Bytes received from clients.";
    BYTES_SENT: Counter, Bytes, "pgweir_sent_bytes_total", ["database"],
        "Bytes sent to clients.";
    CLIENT_PARSES: Counter, Count, "pgweir_prepared_client_parses_total", ["database"],
        "Named statements that clients prepared.";
    SERVER_PARSES: Counter, Count, "pgweir_prepared_server_parses_total", ["database"],
        "Named statements that had to be prepared on a server.";
    PARSE_HITS: Counter, Count, "pgweir_prepared_hits_total", ["database"],
        "Named statements that clients prepared, and that their server had already.";
    BINDS: Counter, Count, "pgweir_prepared_binds_total", ["database"],
        "Binds of named statements.";
    QUEUE_WAIT: Histogram, Seconds, "pgweir_queue_wait_seconds", ["database"],
        "Time from a client's first message of a transaction to its server connection.";
    TRANSACTION: Histogram, Seconds, "pgweir_transaction_seconds", ["database"],
        "Time for which a client held a server connection.";
    COMMIT: Histogram, Seconds, "pgweir_commit_seconds", ["database"],
        "Time from a client's COMMIT to its answer, which waits for synchronous standbys.";
    LOGIN: Histogram, Seconds, "pgweir_login_seconds", [],
        "Time from accepting a client to its first ReadyForQuery.";
    ERRORS: Counter, Count, "pgweir_errors_total", ["sqlstate"],
        "Errors of our own that clients were sent, by SQLSTATE.";
    TLS_FAILURES: Counter, Count, "pgweir_client_tls_failures_total", [],
        "Clients whose TLS handshake failed.";
    CANCEL_REQUESTS: Counter, Count, "pgweir_cancel_requests_total", ["result"],
        "Cancel requests: forwarded, idle (the client had no server), peer (passed on to the peers that may \
         have its key), not_here (a peer asked, and we have no such key), unknown (no such key), failed.";
    SERVER_CONNECTS: Counter, Count, "pgweir_server_connects_total", ["result"],
        "Attempts to connect and log in to a server: ok, connect_failed, login_failed.";
    CLUSTER_STATE: Gauge, Count, "pgweir_cluster_state", ["cluster", "state"],
        "1 for the state that holds: open (the primary may be written to), draining, hold or verify.";
    CLUSTER_HELD: Gauge, Seconds, "pgweir_cluster_held_seconds", ["cluster"],
        "How long clients that write have had to wait for a primary; 0 while there is one.";
    CLUSTER_HELD_CLIENTS: Gauge, Count, "pgweir_cluster_held_clients", ["cluster"],
        "Clients that write and have to wait for a primary.";
    CLUSTER_TIMELINE: Gauge, Count, "pgweir_cluster_timeline", ["cluster"],
        "Timeline of the primary, as it last said; 0 while it is unknown.";
    CLUSTER_SPLIT: Gauge, Count, "pgweir_cluster_several_primaries", ["cluster"],
        "1 while several servers claim to be the primary, so that none is written to.";
    CLUSTER_SOURCE_UP: Gauge, Count, "pgweir_cluster_source_up", ["cluster"],
        "1 while whoever says which server is the primary can be reached.";
    PRIMARY_MOVES: Counter, Count, "pgweir_primary_changes_total", ["cluster"],
        "How often another server became the primary.";
    STALE_PRIMARY_SEVERED: Counter, Count, "pgweir_stale_primary_severed_total", ["cluster"],
        "Connections that were cut because their server was no longer the primary.";
    CLUSTER_HEALTH: Gauge, Count, "pgweir_cluster_health", ["cluster", "state"],
        "1 for the state that holds: healthy, switching, no_primary, fenced, commits_blocked_on_sync_quorum, \
         archiving_broken, read_only, disk_full, saturated or isolated.";
    MEMBER_SERVES_READS: Gauge, Count, "pgweir_member_serves_reads", ["cluster", "member"],
        "1 while the server gets queries of clients that only read.";
    MEMBER_LEASED: Gauge, Count, "pgweir_member_leased", ["cluster", "member"],
        "Connections to the server that are lent to clients that only read.";
    MEMBER_LAG_BYTES: Gauge, Bytes, "pgweir_member_replay_lag_bytes", ["cluster", "member"],
        "WAL that the standby has not replayed.";
    MEMBER_LAG: Gauge, Seconds, "pgweir_member_replay_lag_seconds", ["cluster", "member"],
        "Age of the newest state of the primary that the standby has replayed.";
    MEMBER_STREAMS: Gauge, Count, "pgweir_member_streaming", ["cluster", "member"],
        "1 while the standby streams from the primary, as the primary says.";
    MEMBER_SYNCHRONOUS: Gauge, Count, "pgweir_member_synchronous", ["cluster", "member"],
        "1 while commits may be acknowledged by the standby: its sync_state is sync or quorum.";
    MEMBER_SYNC_REQUIRED: Gauge, Count, "pgweir_member_sync_standbys_required", ["cluster", "member"],
        "Synchronous standbys that a commit on this primary waits for (synchronous_standby_names); 0 is none.";
    MEMBER_SYNC_STREAMING: Gauge, Count, "pgweir_member_sync_standbys_streaming", ["cluster", "member"],
        "Standbys of this primary that stream and may acknowledge a commit. Below the required, commits wait.";
    MEMBER_SYNC_WAITERS: Gauge, Count, "pgweir_member_sync_waiters", ["cluster", "member"],
        "Sessions whose commit waits for a standby.";
    MEMBER_SYNC_WAIT: Gauge, Seconds, "pgweir_member_sync_oldest_wait_seconds", ["cluster", "member"],
        "Age of the oldest statement whose commit waits for a standby; 0 while none does.";
    MEMBER_ARCHIVED: Counter, Count, "pgweir_member_archived_total", ["cluster", "member"],
        "Files of WAL that the primary has archived, since its statistics were reset.";
    MEMBER_ARCHIVE_FAILURES: Counter, Count, "pgweir_member_archive_failures_total", ["cluster", "member"],
        "Attempts of the primary to archive a file of WAL that failed, since its statistics were reset.";
    MEMBER_ARCHIVE_AGE: Gauge, Seconds, "pgweir_member_archive_age_seconds", ["cluster", "member"],
        "How long ago the primary last archived a file of WAL.";
    MEMBER_WAL_POSITION: Gauge, Bytes, "pgweir_member_wal_position_bytes", ["cluster", "member"],
        "Where the server's WAL ends, or what a standby has received of it: it stands still while nobody writes.";
    MEMBER_WAL: Gauge, Bytes, "pgweir_member_wal_bytes", ["cluster", "member"],
        "Size of the files in the server's pg_wal.";
    MEMBER_WAL_GROWTH: Gauge, Bytes, "pgweir_member_wal_growth_bytes", ["cluster", "member"],
        "By how much the server's pg_wal has grown for each second of the last ten minutes; negative when it shrinks.";
    MEMBER_VOLUME: Gauge, Bytes, "pgweir_member_volume_bytes", ["cluster", "member"],
        "Size of the volume that the server's pg_wal is on, by its claim, where the API may be asked.";
    MEMBER_WAL_FULL_IN: Gauge, Seconds, "pgweir_member_wal_full_in_seconds", ["cluster", "member"],
        "Time until a volume that has nothing but WAL is full, if that goes on growing so.";
    MEMBER_SLOTS_WAL: Gauge, Bytes, "pgweir_member_slot_wal_bytes", ["cluster", "member"],
        "WAL that the server keeps for the replication slot that is furthest behind.";
    MEMBER_POOL_CONNECTIONS: Gauge, Count, "pgweir_member_pool_connections", ["cluster", "member"],
        "Connections of clients that the server has from the pools of this pooler.";
    MEMBER_OTHER_CONNECTIONS: Gauge, Count, "pgweir_member_other_connections", ["cluster", "member"],
        "Connections of clients that the server has from elsewhere: other poolers, monitors, people.";
    MEMBER_CONNECTIONS_MAX: Gauge, Count, "pgweir_member_connections_max", ["cluster", "member"],
        "max_connections of the server.";
    MEMBER_CONNECTIONS_RESERVED: Gauge, Count, "pgweir_member_connections_reserved", ["cluster", "member"],
        "How many of these only superusers and pg_use_reserved_connections may have.";
    PINNED: Gauge, Count, "pgweir_pinned_clients", ["reason"],
        "Clients that keep their server connections, by what they have made of their sessions.";
    PINS: Counter, Count, "pgweir_pins_total", ["reason"],
        "How often a client began to keep its server connection, by reason.";
    WORKER_STALL: Histogram, Seconds, "pgweir_worker_stall_seconds", [],
        "How late a worker came to its tick, ten times a second: so long none of its clients was served.";
    WORKERS_IN_USE: Gauge, Count, "pgweir_workers_in_use", [],
        "Workers that clients are given to: as many as the load wants, see worker_load_max.";
    WORKER_CONNECTIONS: Gauge, Count, "pgweir_worker_connections", ["worker"],
        "Connections of clients that live on the worker, logged in or not, those of the console among them.";
    CLIENTS_MOVED: Counter, Count, "pgweir_clients_moved_total", [],
        "Clients that moved to another worker.";
    SENT_AGAIN: Counter, Count, "pgweir_statements_sent_again_total", [],
        "First statements of a transaction that a server refused because it goes away, and that another got.";
    STATEMENTS_EVICTED: Counter, Count, "pgweir_prepared_evictions_total", [],
        "Prepared statements closed on a server to keep max_prepared_statements.";
}

/// Upper bounds of the buckets, microseconds: 10 µs to 100 s in steps of 1, 2.5, 5.
const BOUNDS_US: [u64; 22] = [
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// How often something took how long. Recording costs a few nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Events per bucket, not cumulated; the last is for all that took longer.
    buckets: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
}

/// A duration in whole microseconds, the unit of PgBouncer's totals.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Histogram {
    /// Counts one event.
    #[inline]
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds another worker's events.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Errors by SQLSTATE. The page names at most [`SQLSTATES_MAX`] of them; the rest, and what is no
/// SQLSTATE, is `other`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts {
    counts: BTreeMap<[u8; 5], u64>,
    other: u64,
}

/// Most SQLSTATEs that get a series of their own; we send about a dozen.
pub const SQLSTATES_MAX: usize = 64;

impl ErrorCounts {
    /// Counts one error.
    pub fn record(&mut self, sqlstate: &str) {
        match <[u8; 5]>::try_from(sqlstate.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_alphanumeric) => self.add(code, 1),
            _ => self.other += 1,
        }
    }

    /// Adds another worker's errors.
    pub fn merge(&mut self, other: &ErrorCounts) {
        for (code, count) in &other.counts {
            self.add(*code, *count);
        }
        self.other += other.other;
    }

    /// The counts by label value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        let codes = self.counts.iter().map(|(code, count)| {
            let code = str::from_utf8(code).expect("record() takes only ASCII letters and digits");
            (code, *count)
        });
        codes.chain([("other", self.other)])
    }

    fn add(&mut self, code: [u8; 5], count: u64) {
        if self.counts.len() < SQLSTATES_MAX || self.counts.contains_key(&code) {
            *self.counts.entry(code).or_default() += count;
        } else {
            self.other += count;
        }
    }
}

/// What one worker counts beside the totals of each database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerMetrics {
    /// Logins of clients, see [`LOGIN`].
    pub login: Histogram,
    /// How late the ticks were, see [`WORKER_STALL`].
    pub stall: Histogram,
    /// Errors that we sent, see [`ERRORS`].
    pub errors: ErrorCounts,
    /// Clients whose TLS handshake failed.
    pub tls_failures: u64,
    /// Cancel requests passed to a server.
    pub cancels_forwarded: u64,
    /// Cancel requests of clients without a server.
    pub cancels_idle: u64,
    /// Cancel requests with a key that nobody has.
    pub cancels_unknown: u64,
    /// Cancel requests passed on to at least one peer.
    pub cancels_to_peers: u64,
    /// Cancel requests that a peer passed on, with a key that is not ours.
    pub cancels_not_here: u64,
    /// Cancel requests that did not reach the server or the peer.
    pub cancels_failed: u64,
    /// Server connections that logged in.
    pub server_connects_ok: u64,
    /// Server connections that were not established.
    pub server_connects_failed: u64,
    /// Server connections whose login failed.
    pub server_logins_failed: u64,
    /// Prepared statements closed to keep `max_prepared_statements`.
    pub statements_evicted: u64,
    /// Statements that went to another server, because the first refused to begin.
    pub sent_again: u64,
    /// Clients that have come from another worker.
    pub clients_moved: u64,
    /// How often a client began to keep its server, by reason.
    pub pins: BTreeMap<&'static str, u64>,
}

impl WorkerMetrics {
    /// Counts that a client begins to keep its server. Returns whether it is the first one for this reason.
    pub fn note_pin(&mut self, reason: &'static str) -> bool {
        let count = self.pins.entry(reason).or_default();
        *count += 1;
        *count == 1
    }

    /// Adds another worker's counts.
    pub fn merge(&mut self, other: &WorkerMetrics) {
        self.login.merge(&other.login);
        self.stall.merge(&other.stall);
        self.errors.merge(&other.errors);
        self.tls_failures += other.tls_failures;
        self.cancels_forwarded += other.cancels_forwarded;
        self.cancels_idle += other.cancels_idle;
        self.cancels_unknown += other.cancels_unknown;
        self.cancels_to_peers += other.cancels_to_peers;
        self.cancels_not_here += other.cancels_not_here;
        self.cancels_failed += other.cancels_failed;
        self.server_connects_ok += other.server_connects_ok;
        self.server_connects_failed += other.server_connects_failed;
        self.server_logins_failed += other.server_logins_failed;
        self.statements_evicted += other.statements_evicted;
        self.sent_again += other.sent_again;
        self.clients_moved += other.clients_moved;
        for (reason, count) in &other.pins {
            *self.pins.entry(reason).or_default() += count;
        }
    }

    /// Puts the counts on a page.
    pub fn publish(&self, page: &mut Page) {
        page.counter(&SENT_AGAIN, &[], self.sent_again);
        page.counter(&CLIENTS_MOVED, &[], self.clients_moved);
        page.histogram(&LOGIN, &[], &self.login);
        page.histogram(&WORKER_STALL, &[], &self.stall);
        for (sqlstate, count) in self.errors.iter() {
            page.counter(&ERRORS, &[sqlstate], count);
        }
        page.counter(&TLS_FAILURES, &[], self.tls_failures);
        page.counter(&CANCEL_REQUESTS, &["forwarded"], self.cancels_forwarded);
        page.counter(&CANCEL_REQUESTS, &["idle"], self.cancels_idle);
        page.counter(&CANCEL_REQUESTS, &["unknown"], self.cancels_unknown);
        page.counter(&CANCEL_REQUESTS, &["peer"], self.cancels_to_peers);
        page.counter(&CANCEL_REQUESTS, &["not_here"], self.cancels_not_here);
        page.counter(&CANCEL_REQUESTS, &["failed"], self.cancels_failed);
        page.counter(&SERVER_CONNECTS, &["ok"], self.server_connects_ok);
        page.counter(&SERVER_CONNECTS, &["connect_failed"], self.server_connects_failed);
        page.counter(&SERVER_CONNECTS, &["login_failed"], self.server_logins_failed);
        page.counter(&STATEMENTS_EVICTED, &[], self.statements_evicted);
    }
}

/// One page in Prometheus' text format. Label values are given in the order of [`Metric::labels`].
pub struct Page {
    recorder: PrometheusRecorder,
    histograms: BTreeMap<&'static str, String>,
}

const METADATA: Metadata<'static> = Metadata::new("pgweir", Level::INFO, None);

impl Page {
    /// A page with no value on it.
    #[allow(clippy::new_without_default, reason = "an empty page is nobody's default")]
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = Page { recorder, histograms: BTreeMap::new() };
        page.describe(ALL);
        page
    }

    /// Says what further metrics mean.
    pub fn describe(&self, table: &[Metric]) {
        let recorder = &self.recorder;
        for metric in table {
            let (name, help) = (KeyName::from_const_str(metric.name), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, Some(metric.unit), help),
                Kind::Gauge => recorder.describe_gauge(name, Some(metric.unit), help),
                // The exporter keeps every sample of a histogram; ours has its buckets already.
                Kind::Histogram => (),
            }
        }
    }

    /// Sets a counter.
    pub fn counter(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA).absolute(value);
    }

    /// Sets a gauge.
    pub fn gauge(&mut self, metric: &Metric, labels: &[&str], value: impl Into<f64>) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&key(metric, labels), &METADATA).set(value.into());
    }

    /// Sets a histogram of seconds.
    pub fn histogram(&mut self, metric: &Metric, labels: &[&str], histogram: &Histogram) {
        debug_assert_eq!((metric.kind, metric.unit), (Kind::Histogram, Unit::Seconds));
        let text = self
            .histograms
            .entry(metric.name)
            .or_insert_with(|| format!("# HELP {0} {1}\n# TYPE {0} histogram\n", metric.name, metric.help));
        write_histogram(text, metric.name, &label_text(metric, labels), histogram);
    }

    /// The text.
    pub fn render(self) -> String {
        let mut text = self.recorder.handle().render();
        for histogram in self.histograms.values() {
            text.push_str(histogram);
            text.push('\n');
        }
        text
    }
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    let labels = metric.labels.iter().zip(values);
    let labels: Vec<Label> = labels.map(|(k, v)| Label::new(*k, prepared(v))).collect();
    debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
    Key::from_parts(metric.name, labels)
}

/// `database="a",`, ready to be followed by another label.
fn label_text(metric: &Metric, values: &[&str]) -> String {
    let labels = metric.labels.iter().zip(values);
    let label =
        |(name, value): (&&str, &&str)| format!("{name}=\"{}\",", sanitize_label_value(&prepared(value)));
    labels.map(label).collect()
}

/// The exporter takes a backslash before `\` or `"` for an escape that was made already, and would
/// show two users, `a"` and `a\"`, as one. Doubled backslashes it leaves alone.
fn prepared(label: &str) -> String {
    label.replace('\\', "\\\\")
}

fn write_histogram(text: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let mut cumulated = 0;
    let bounds = BOUNDS_US.iter().map(|us| seconds(*us).to_string());
    for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(histogram.buckets) {
        cumulated += count;
        push_line(text, &format!("{name}_bucket{{{labels}le=\"{bound}\"}} {cumulated}"));
    }
    let labels = match labels.strip_suffix(',') {
        Some(labels) => format!("{{{labels}}}"),
        None => String::new(),
    };
    push_line(text, &format!("{name}_sum{labels} {}", seconds(histogram.sum_us)));
    push_line(text, &format!("{name}_count{labels} {cumulated}"));
}

fn push_line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a String takes any text");
}

#[allow(clippy::cast_precision_loss, reason = "exact up to 285 years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests;
