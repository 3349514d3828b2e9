//! What the console and the metrics show of clusters, which PgBouncer does not have: SHOW CLUSTERS and
//! SHOW MEMBERS.

use super::table::{Columns, Table, Value, int4, number, text};
use crate::metrics::{self, Page};
use crate::wire::originate::ColumnType::{Int4, Int8, Text};

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Whether several servers claim to be the primary.
    pub split: bool,
    /// How long ago the source said something; `None` when it never has.
    pub source_age_ms: Option<u64>,
    /// Whether the source can be reached.
    pub source_ok: bool,
    /// Its servers.
    pub members: Vec<MemberView>,
}

/// One server of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    ]
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
    ]
}

/// The metrics of one cluster.
pub(super) fn publish(view: &ClusterView, page: &mut Page) {
    let name = view.name.as_str();
    for state in STATES {
        page.gauge(&metrics::CLUSTER_STATE, &[name, state], view.state == state);
    }
    let waiting = if view.state == "open" { 0.0 } else { seconds(view.since_ms) };
    page.gauge(&metrics::CLUSTER_HELD, &[name], waiting);
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
            members: vec![MemberView {
                name: "pg-2".into(),
                says: "standby",
                serves_reads: true,
                lag_bytes: Some(4096),
                lag_ms: Some(250),
                ..MemberView::default()
            }],
            ..ClusterView::default()
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
        );
    }

    #[test]
    fn show_members_says_who_serves_reads_and_how_far_it_is() {
        let table = members(&[view()]);
        let row: Vec<_> = table.rows[0].iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
        assert_eq!(row, ["c1", "pg-2", "", "NULL", "standby", "yes", "4096", "250", "0"]);
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
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
