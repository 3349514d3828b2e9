//! The metrics page: the data plane at one moment, as Prometheus reads it. [`Scrape`] is what the
//! data plane gathers, [`Scrape::page`] the text.

use std::collections::BTreeMap;

use super::clusters::{self, ClusterView};
use super::exporter::Names;
use super::show::PGBOUNCER_VERSION;
use super::view::{DatabaseView, PoolView, StateView, Stats};
use crate::metrics::{self, Histogram, Page, WorkerMetrics};
use crate::protocol::state::Pins;

/// Everything on the page, all workers together.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Whether the pooler works.
    pub state: StateView,
    /// The databases, without the console's.
    pub databases: Vec<DatabaseView>,
    /// The pools, without the console's.
    pub pools: Vec<PoolView>,
    /// The work done for each database, without the console's.
    pub work: Vec<Work>,
    /// The clusters.
    pub clusters: Vec<ClusterView>,
    /// Clients that keep their servers, by reason.
    pub pins: BTreeMap<&'static str, u32>,
    /// The workers' own counts, merged.
    pub workers: WorkerMetrics,
    /// How many of them clients are given to.
    pub workers_in_use: u32,
    /// The connections of each.
    pub worker_connections: Vec<u32>,
    /// Filled when the names of an exporter for PgBouncer are wanted, too.
    pub exporter: Option<Names>,
}

/// The work done for one database since the start.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Database, by its name in `[databases]`.
    pub database: String,
    /// The same totals as in SHOW STATS.
    pub totals: Stats,
    /// Waits for a server connection.
    pub queue_wait: Histogram,
    /// Transactions.
    pub transaction: Histogram,
    /// COMMITs.
    pub commit: Histogram,
    /// Named statements that clients prepared, and that their server had already.
    pub parse_hits: u64,
}

impl Scrape {
    /// The page in Prometheus' text format, version 0.0.4.
    pub fn page(&self) -> String {
        let mut page = Page::new();
        self.process(&mut page);
        self.databases.iter().for_each(|view| database(view, &mut page));
        self.pools.iter().for_each(|view| pool(view, &mut page));
        self.work.iter().for_each(|work| work.publish(&mut page));
        self.clusters.iter().for_each(|view| clusters::publish(view, &mut page));
        for reason in Pins::all().reasons() {
            page.gauge(&metrics::PINNED, &[reason], self.pins.get(reason).copied().unwrap_or_default());
            let pins = self.workers.pins.get(reason).copied().unwrap_or_default();
            page.counter(&metrics::PINS, &[reason], pins);
        }
        page.gauge(&metrics::WORKERS_IN_USE, &[], self.workers_in_use);
        for (worker, connections) in self.worker_connections.iter().enumerate() {
            page.gauge(&metrics::WORKER_CONNECTIONS, &[&worker.to_string()], *connections);
        }
        self.workers.publish(&mut page);
        if let Some(names) = &self.exporter {
            names.publish(self, &mut page);
        }
        page.render()
    }

    fn process(&self, page: &mut Page) {
        page.gauge(&metrics::UP, &[], 1);
        let versions = [env!("CARGO_PKG_VERSION"), PGBOUNCER_VERSION];
        page.gauge(&metrics::BUILD_INFO, &versions, 1);
        for (name, state) in [
            ("active", StateView::Active),
            ("paused", StateView::Paused),
            ("suspended", StateView::Suspended),
        ] {
            page.gauge(&metrics::STATE, &[name], state == self.state);
        }
    }
}

fn database(view: &DatabaseView, page: &mut Page) {
    let labels = [view.name.as_str()];
    page.gauge(&metrics::DATABASE_CONNECTIONS, &labels, view.current_connections);
    page.gauge(&metrics::DATABASE_CONNECTIONS_MAX, &labels, view.max_connections);
    page.gauge(&metrics::DATABASE_CLIENTS, &labels, view.current_client_connections);
    page.gauge(&metrics::DATABASE_CLIENTS_MAX, &labels, view.max_client_connections);
    page.gauge(&metrics::DATABASE_LISTENING, &labels, view.listening_clients);
    page.gauge(&metrics::DATABASE_PAUSED, &labels, view.paused);
    page.gauge(&metrics::DATABASE_DISABLED, &labels, view.disabled);
}

fn pool(view: &PoolView, page: &mut Page) {
    let labels = [view.database.as_str(), view.user.as_str()];
    let with_state = |state| [labels[0], labels[1], state];
    for (state, count) in [
        ("active", view.clients_active.saturating_sub(view.clients_idle)),
        ("idle", view.clients_idle),
        ("waiting", view.clients_waiting),
    ] {
        page.gauge(&metrics::CLIENT_CONNECTIONS, &with_state(state), count);
    }
    for (state, count) in [
        ("active", view.servers_active),
        ("tested", view.servers_tested),
        ("new", view.servers_login),
        ("active_cancel", view.servers_active_cancel),
        ("being_canceled", view.servers_being_canceled),
        ("idle", view.servers_idle),
        ("used", view.servers_used),
    ] {
        page.gauge(&metrics::SERVER_CONNECTIONS, &with_state(state), count);
    }
    page.gauge(&metrics::POOL_IN_USE, &labels, view.servers_in_use());
    page.gauge(&metrics::POOL_SIZE, &labels, view.pool_size);
    let maxwait = std::time::Duration::from_micros(view.maxwait_us);
    page.gauge(&metrics::POOL_MAXWAIT, &labels, maxwait.as_secs_f64());
}

impl Work {
    fn publish(&self, page: &mut Page) {
        let labels = [self.database.as_str()];
        let totals = &self.totals;
        for (metric, value) in [
            (&metrics::TRANSACTIONS, totals.xact_count),
            (&metrics::QUERIES, totals.query_count),
            (&metrics::SERVER_ASSIGNMENTS, totals.server_assignment_count),
            (&metrics::BYTES_RECEIVED, totals.bytes_received),
            (&metrics::BYTES_SENT, totals.bytes_sent),
            (&metrics::CLIENT_PARSES, totals.client_parse_count),
            (&metrics::SERVER_PARSES, totals.server_parse_count),
            (&metrics::BINDS, totals.bind_count),
            (&metrics::PARSE_HITS, self.parse_hits),
        ] {
            page.counter(metric, &labels, value);
        }
        page.histogram(&metrics::QUEUE_WAIT, &labels, &self.queue_wait);
        page.histogram(&metrics::TRANSACTION, &labels, &self.transaction);
        page.histogram(&metrics::COMMIT, &labels, &self.commit);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::clusters::{MemberView, StandbyView};
    use super::*;
    use crate::topology::signals::{Archiver, Signals};
    use crate::topology::volume::Volume;

    /// Of a primary that may be asked everything.
    fn signals() -> Signals {
        let archiver = Archiver { last_archived_age: Some(Duration::ZERO), ..Archiver::default() };
        let (wal_position, wal_bytes, slots_bytes) = (Some(0), Some(0), Some(0));
        Signals { reads_stats: true, archiver, wal_position, wal_bytes, slots_bytes, ..Signals::default() }
    }

    #[test]
    fn the_page_has_every_metric_and_the_values_given() {
        let scrape = Scrape {
            pins: [("listen", 1)].into(),
            worker_connections: vec![3],
            state: StateView::Paused,
            databases: vec![DatabaseView {
                name: "p0".into(),
                max_connections: 9,
                current_connections: 4,
                paused: true,
                ..DatabaseView::default()
            }],
            pools: vec![PoolView {
                database: "p0".into(),
                user: "a\"b".into(),
                clients_active: 5,
                clients_idle: 3,
                clients_waiting: 2,
                servers_active: 2,
                servers_idle: 1,
                servers_login: 1,
                maxwait_us: 1_500_000,
                pool_size: 20,
                ..PoolView::default()
            }],
            work: vec![Work {
                database: "p0".into(),
                totals: Stats { xact_count: 11, bytes_sent: 1 << 40, ..Stats::default() },
                ..Work::default()
            }],
            clusters: vec![ClusterView {
                members: vec![MemberView {
                    lag_bytes: Some(0),
                    volume: Some(Volume { bytes: 1 << 30, wal_only: true }),
                    wal_growth: Some(1.0),
                    lag_ms: Some(0),
                    standby: Some(StandbyView { streams: Some(true), sync_state: Some("sync".into()) }),
                    signals: Some(Arc::new(signals())),
                    ..MemberView::default()
                }],
                ..ClusterView::default()
            }],
            ..Scrape::default()
        };
        let page = scrape.page();
        for metric in metrics::ALL {
            let once = format!("# TYPE {} ", metric.name);
            assert_eq!(page.matches(&once).count(), 1, "{}", metric.name);
        }
        for line in [
            "pgweir_up 1",
            "pgweir_state{state=\"paused\"} 1",
            "pgweir_state{state=\"active\"} 0",
            "pgweir_database_paused{database=\"p0\"} 1",
            "pgweir_database_server_connections_max{database=\"p0\"} 9",
            "pgweir_client_connections{database=\"p0\",user=\"a\\\"b\",state=\"active\"} 2",
            "pgweir_client_connections{database=\"p0\",user=\"a\\\"b\",state=\"idle\"} 3",
            "pgweir_server_connections{database=\"p0\",user=\"a\\\"b\",state=\"new\"} 1",
            "pgweir_pool_in_use{database=\"p0\",user=\"a\\\"b\"} 3",
            "pgweir_pool_maxwait_seconds{database=\"p0\",user=\"a\\\"b\"} 1.5",
            "pgweir_transactions_total{database=\"p0\"} 11",
            "pgweir_sent_bytes_total{database=\"p0\"} 1099511627776",
            "pgweir_queue_wait_seconds_count{database=\"p0\"} 0",
            "pgweir_errors_total{sqlstate=\"other\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
