//! What the console and the metrics show of clusters, which PgBouncer does not have: SHOW CLUSTERS and
//! SHOW MEMBERS.

use std::sync::Arc;
use std::time::Duration;

use super::status::EventStatus;
use super::table::{Columns, Table, Value, int4, number, text};
use crate::metrics::{self, Metric, Page};
use crate::topology::health::HealthState;
use crate::topology::signals::{Signals, is_synchronous};
use crate::topology::volume::Volume;
use crate::wire::originate::ColumnType::{Int4, Int8, Text};

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    /// Its name in `[clusters]`.
    pub name: String,
    /// open, draining, hold or verify.
    pub state: &'static str,
    /// How long it has been open, or clients have waited.
    pub since_ms: u64,
    /// Why clients wait, as a word.
    pub why: Option<&'static str>,
    /// The same as a sentence.
    pub detail: Option<String>,
    /// The server that is written to, or is about to be.
    pub primary: Option<String>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// How often another server became the primary.
    pub moves: u64,
    /// Connections that were cut because their server was no longer the primary.
    pub severed: u64,
    /// Clients that write and have to wait for a primary.
    pub held_clients: usize,
    /// Whether several servers claim to be the primary.
    pub split: bool,
    /// How long ago the source said something; `None` when it never has.
    pub source_age_ms: Option<u64>,
    /// Whether the source can be reached.
    pub source_ok: bool,
    /// Who says which server is the primary, as a word.
    pub named_by: Option<&'static str>,
    /// How it is; `None` while nothing is known of it.
    pub health: Option<HealthView>,
    /// Its servers.
    pub members: Vec<MemberView>,
    /// What has happened last, the newest first.
    pub events: Vec<EventStatus>,
}

/// How a cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthView {
    /// The word.
    pub state: HealthState,
    /// For how long.
    pub since_ms: u64,
    /// What shows it.
    pub evidence: String,
}

/// What the primary says of a standby.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandbyView {
    /// Whether it streams; `None` when that is hidden.
    pub streams: Option<bool>,
    /// sync, potential, quorum or async; `None` when that is hidden.
    pub sync_state: Option<String>,
}

/// One server of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its zone.
    pub zone: Option<String>,
    /// primary, standby or unknown, as it last said; stranger if it is of another system.
    pub says: &'static str,
    /// Whether it gets queries of role ro.
    pub serves_reads: bool,
    /// WAL that it has not replayed.
    pub lag_bytes: Option<u64>,
    /// How old what it has replayed is.
    pub lag_ms: Option<u64>,
    /// Connections to it that are lent to clients that read.
    pub leased: u32,
    /// Connections of our pools to it.
    pub connections: u32,
    /// What the primary says of it.
    pub standby: Option<StandbyView>,
    /// What it says of itself.
    pub signals: Option<Arc<Signals>>,
    /// The volume that its WAL is on, if that is known.
    pub volume: Option<Volume>,
    /// By how many bytes in a second its WAL grows, if that is known.
    pub wal_growth: Option<f64>,
}

const STATES: [&str; 4] = ["open", "draining", "hold", "verify"];

const CLUSTERS: Columns = &[
    ("name", Text),
    ("state", Text),
    ("since_ms", Int8),
    ("primary", Text),
    ("timeline", Int4),
    ("why", Text),
    ("detail", Text),
    ("moves", Int8),
    ("severed", Int8),
    ("source", Text),
    ("source_age_ms", Int8),
    ("health", Text),
    ("health_since_ms", Int8),
    ("evidence", Text),
    ("advice", Text),
];

const MEMBERS: Columns = &[
    ("cluster", Text),
    ("name", Text),
    ("address", Text),
    ("zone", Text),
    ("says", Text),
    ("serves_reads", Text),
    ("lag_bytes", Int8),
    ("lag_ms", Int8),
    ("leased", Int4),
    ("sync_state", Text),
];

/// SHOW CLUSTERS
pub(super) fn clusters(views: &[ClusterView]) -> Table {
    Table::new(CLUSTERS, views.iter().map(cluster))
}

fn cluster(view: &ClusterView) -> Vec<Value> {
    let source = match (view.source_age_ms, view.source_ok) {
        (None, _) => "silent",
        (Some(_), true) => "ok",
        (Some(_), false) => "unreachable",
    };
    vec![
        text(&view.name),
        text(view.state),
        number(view.since_ms),
        view.primary.clone(),
        view.timeline.and_then(int4),
        view.why.map(str::to_owned),
        view.detail.clone(),
        number(view.moves),
        number(view.severed),
        text(source),
        view.source_age_ms.and_then(number),
        view.health.as_ref().map(|health| health.state.name().to_owned()),
        view.health.as_ref().and_then(|health| number(health.since_ms)),
        view.health.as_ref().and_then(|health| some(&health.evidence)),
        view.health.as_ref().and_then(|health| some(health.state.advice())),
    ]
}

fn some(words: &str) -> Value {
    (!words.is_empty()).then(|| words.to_owned())
}

/// SHOW MEMBERS
pub(super) fn members(views: &[ClusterView]) -> Table {
    let rows = views.iter().flat_map(|view| view.members.iter().map(|one| member(&view.name, one)));
    Table::new(MEMBERS, rows)
}

fn member(cluster: &str, view: &MemberView) -> Vec<Value> {
    vec![
        text(cluster),
        text(&view.name),
        text(&view.address),
        view.zone.clone(),
        text(view.says),
        text(if view.serves_reads { "yes" } else { "no" }),
        view.lag_bytes.and_then(number),
        view.lag_ms.and_then(number),
        int4(view.leased),
        view.standby.as_ref().and_then(|standby| standby.sync_state.clone()),
    ]
}

/// The metrics of one cluster.
pub(super) fn publish(view: &ClusterView, page: &mut Page) {
    let name = view.name.as_str();
    for state in HealthState::ALL {
        let is_it = view.health.as_ref().is_some_and(|health| health.state == state);
        page.gauge(&metrics::CLUSTER_HEALTH, &[name, state.name()], is_it);
    }
    for state in STATES {
        page.gauge(&metrics::CLUSTER_STATE, &[name, state], view.state == state);
    }
    let waiting = if view.state == "open" { 0.0 } else { seconds(view.since_ms) };
    page.gauge(&metrics::CLUSTER_HELD, &[name], waiting);
    page.gauge(&metrics::CLUSTER_HELD_CLIENTS, &[name], view.held_clients as f64);
    page.gauge(&metrics::CLUSTER_TIMELINE, &[name], view.timeline.unwrap_or_default());
    page.gauge(&metrics::CLUSTER_SPLIT, &[name], view.split);
    page.gauge(&metrics::CLUSTER_SOURCE_UP, &[name], view.source_ok);
    page.counter(&metrics::PRIMARY_MOVES, &[name], view.moves);
    page.counter(&metrics::STALE_PRIMARY_SEVERED, &[name], view.severed);
    for member in &view.members {
        let labels = [name, member.name.as_str()];
        page.gauge(&metrics::MEMBER_SERVES_READS, &labels, member.serves_reads);
        page.gauge(&metrics::MEMBER_LEASED, &labels, member.leased);
        if let Some(bytes) = member.lag_bytes {
            page.gauge(&metrics::MEMBER_LAG_BYTES, &labels, bytes as f64);
        }
        if let Some(age) = member.lag_ms {
            page.gauge(&metrics::MEMBER_LAG, &labels, seconds(age));
        }
        if let Some(standby) = &member.standby {
            let synchronous = standby.sync_state.as_deref().map(is_synchronous);
            gauge(page, &metrics::MEMBER_STREAMS, &labels, standby.streams.map(f64::from));
            gauge(page, &metrics::MEMBER_SYNCHRONOUS, &labels, synchronous.map(f64::from));
        }
        if let Some(signals) = &member.signals {
            publish_signals(signals, member.connections, &labels, page);
            gauge(page, &metrics::MEMBER_WAL_GROWTH, &labels, member.wal_growth);
            gauge(page, &metrics::MEMBER_WAL_FULL_IN, &labels, wal_full_in(member, signals));
        }
        gauge(page, &metrics::MEMBER_VOLUME, &labels, member.volume.map(|volume| volume.bytes as f64));
    }
}

fn wal_full_in(member: &MemberView, signals: &Signals) -> Option<f64> {
    let time = member.volume?.full_in(signals.wal_bytes?, member.wal_growth?);
    time.map(|time| time.as_secs_f64())
}

/// Whatever the server may not or cannot say has no series.
fn publish_signals(signals: &Signals, ours: u32, labels: &[&str], page: &mut Page) {
    let bytes = |count: Option<u64>| count.map(|count| count as f64);
    let age = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
    let ours = ours.min(signals.connections);
    page.gauge(&metrics::MEMBER_POOL_CONNECTIONS, labels, ours);
    page.gauge(&metrics::MEMBER_OTHER_CONNECTIONS, labels, signals.connections - ours);
    page.gauge(&metrics::MEMBER_CONNECTIONS_MAX, labels, signals.connections_max);
    page.gauge(&metrics::MEMBER_CONNECTIONS_RESERVED, labels, signals.connections_reserved);
    gauge(page, &metrics::MEMBER_WAL_POSITION, labels, bytes(signals.wal_position));
    gauge(page, &metrics::MEMBER_WAL, labels, bytes(signals.wal_bytes));
    gauge(page, &metrics::MEMBER_SLOTS_WAL, labels, bytes(signals.slots_bytes));
    if signals.in_recovery {
        return;
    }
    page.counter(&metrics::MEMBER_ARCHIVED, labels, signals.archiver.archived);
    page.counter(&metrics::MEMBER_ARCHIVE_FAILURES, labels, signals.archiver.failures);
    gauge(page, &metrics::MEMBER_ARCHIVE_AGE, labels, age(signals.archiver.last_archived_age));
    page.gauge(&metrics::MEMBER_SYNC_REQUIRED, labels, signals.sync_rule.required);
    if signals.reads_stats {
        page.gauge(&metrics::MEMBER_SYNC_STREAMING, labels, signals.sync_streaming());
        page.gauge(&metrics::MEMBER_SYNC_WAITERS, labels, signals.sync_waiters);
        let oldest = signals.sync_oldest_wait.unwrap_or_default();
        page.gauge(&metrics::MEMBER_SYNC_WAIT, labels, oldest.as_secs_f64());
    }
}

fn gauge(page: &mut Page, metric: &Metric, labels: &[&str], value: Option<f64>) {
    if let Some(value) = value {
        page.gauge(metric, labels, value);
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> ClusterView {
        ClusterView {
            name: "c1".into(),
            state: "draining",
            since_ms: 1500,
            why: Some("fenced"),
            detail: Some("the primary pg-1 is fenced by cnpg.io/fencedInstances".into()),
            primary: Some("pg-1".into()),
            timeline: Some(7),
            source_age_ms: Some(10),
            health: Some(HealthView {
                state: HealthState::Fenced,
                since_ms: 1400,
                evidence: "the primary pg-1 is fenced".into(),
            }),
            members: vec![MemberView {
                name: "pg-2".into(),
                says: "standby",
                serves_reads: true,
                lag_bytes: Some(4096),
                lag_ms: Some(250),
                connections: 4,
                standby: Some(StandbyView { streams: Some(true), sync_state: Some("quorum".into()) }),
                signals: Some(Arc::new(signals())),
                ..MemberView::default()
            }],
            ..ClusterView::default()
        }
    }

    fn signals() -> Signals {
        Signals {
            reads_stats: true,
            connections: 12,
            connections_max: 100,
            slots_bytes: Some(1 << 24),
            sync_waiters: 2,
            sync_oldest_wait: Some(Duration::from_millis(2500)),
            ..Signals::default()
        }
    }

    #[test]
    fn show_clusters_says_why_clients_wait() {
        let table = clusters(&[view()]);
        let row: Vec<_> = table.rows[0].iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
        let detail = "the primary pg-1 is fenced by cnpg.io/fencedInstances";
        assert_eq!(
            row,
            ["c1", "draining", "1500", "pg-1", "7", "fenced", detail, "0", "0", "unreachable", "10"]
                .into_iter()
                .chain(["fenced", "1400", "the primary pg-1 is fenced", HealthState::Fenced.advice()])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn show_members_says_who_serves_reads_and_how_far_it_is() {
        let table = members(&[view()]);
        let row: Vec<_> = table.rows[0].iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
        assert_eq!(row, ["c1", "pg-2", "", "NULL", "standby", "yes", "4096", "250", "0", "quorum"]);
    }

    #[test]
    fn the_metrics_have_the_state_the_hold_and_the_lag() {
        let mut page = Page::new();
        publish(&view(), &mut page);
        let page = page.render();
        for line in [
            "pgweir_cluster_state{cluster=\"c1\",state=\"draining\"} 1",
            "pgweir_cluster_state{cluster=\"c1\",state=\"open\"} 0",
            "pgweir_cluster_held_seconds{cluster=\"c1\"} 1.5",
            "pgweir_stale_primary_severed_total{cluster=\"c1\"} 0",
            "pgweir_member_replay_lag_seconds{cluster=\"c1\",member=\"pg-2\"} 0.25",
            "pgweir_cluster_health{cluster=\"c1\",state=\"fenced\"} 1",
            "pgweir_cluster_health{cluster=\"c1\",state=\"healthy\"} 0",
            "pgweir_member_streaming{cluster=\"c1\",member=\"pg-2\"} 1",
            "pgweir_member_synchronous{cluster=\"c1\",member=\"pg-2\"} 1",
            "pgweir_member_pool_connections{cluster=\"c1\",member=\"pg-2\"} 4",
            "pgweir_member_other_connections{cluster=\"c1\",member=\"pg-2\"} 8",
            "pgweir_member_slot_wal_bytes{cluster=\"c1\",member=\"pg-2\"} 16777216",
            "pgweir_member_sync_waiters{cluster=\"c1\",member=\"pg-2\"} 2",
            "pgweir_member_sync_oldest_wait_seconds{cluster=\"c1\",member=\"pg-2\"} 2.5",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
