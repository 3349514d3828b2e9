//! What the page at `/` and `pgweir status` show: [`Status`], the data plane at one moment as JSON.

use serde::{Deserialize, Serialize};

use super::clusters::{ClusterView, MemberView};
use super::scrape::{Scrape, Work};
use super::view::{PoolView, StateView};

/// One pooler, and the clusters that it follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Our version.
    pub version: String,
    /// active, paused or suspended.
    pub state: String,
    /// The clusters, by name.
    pub clusters: Vec<ClusterStatus>,
    /// The pools, without the console's.
    pub pools: Vec<PoolStatus>,
    /// The databases that have pools, without the console's.
    pub databases: Vec<DatabaseStatus>,
}

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name in `[clusters]`.
    pub name: String,
    /// open, draining, hold or verify.
    pub state: String,
    /// How long it has been open, or clients have waited, milliseconds.
    pub since_ms: u64,
    /// Why clients wait.
    pub detail: Option<String>,
    /// The server that is written to, or is about to be.
    pub primary: Option<String>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Who says which server is the primary: cnpg, patroni, label, static or probe.
    pub named_by: Option<String>,
    /// How long ago it last said so, milliseconds.
    pub source_age_ms: Option<u64>,
    /// Whether it can be reached.
    pub source_ok: bool,
    /// How often another server became the primary.
    pub moves: u64,
    /// How it is; `None` while nothing is known of it.
    pub health: Option<HealthStatus>,
    /// Its servers.
    pub members: Vec<MemberStatus>,
    /// What has happened last, the newest first.
    pub events: Vec<EventStatus>,
}

/// How a cluster is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// The word.
    pub state: String,
    /// For how long, milliseconds.
    pub since_ms: u64,
    /// What shows it.
    pub evidence: String,
    /// What to do, and what not to do.
    pub advice: String,
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its zone.
    pub zone: Option<String>,
    /// primary, standby, stranger or unknown, as it last said.
    pub says: String,
    /// Whether it gets queries of clients that only read.
    pub serves_reads: bool,
    /// WAL that it has not replayed, bytes.
    pub lag_bytes: Option<u64>,
    /// How old what it has replayed is, milliseconds.
    pub lag_ms: Option<u64>,
    /// Whether it streams, as the primary says.
    pub streaming: Option<bool>,
    /// sync, potential, quorum or async, as the primary says.
    pub sync_state: Option<String>,
    /// Connections of our pools to it.
    pub connections: u32,
    /// Connections of clients that it has, ours included.
    pub all_connections: Option<u32>,
    /// How many clients without special rights may have.
    pub connections_usable: Option<u32>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its database.
    pub database: String,
    /// Its user.
    pub user: String,
    /// How many server connections it may have; 0 is unlimited.
    pub size: u32,
    /// Server connections that are not free to be lent.
    pub in_use: u32,
    /// Server connections that are.
    pub free: u32,
    /// Clients that hold a server or are idle.
    pub clients: u32,
    /// Clients that wait for a server.
    pub waiting: u32,
    /// How long the first of them has waited, microseconds.
    pub longest_wait_us: u64,
}

/// The work done for one database since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Its name in `[databases]`.
    pub name: String,
    /// Transactions.
    pub transactions: u64,
    /// Queries.
    pub queries: u64,
    /// Waits for a server connection.
    pub waits: u64,
    /// The sum of them, microseconds.
    pub wait_us: u64,
}

/// Something that has happened to a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStatus {
    /// How long ago, milliseconds.
    pub ago_ms: u64,
    /// health, primary, wait, hold, severed or source.
    pub kind: String,
    /// In words.
    pub text: String,
}

impl Status {
    /// As the page reads it.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("it has no map with other keys than strings")
    }
}

impl From<&Scrape> for Status {
    fn from(scrape: &Scrape) -> Self {
        let state = match scrape.state {
            StateView::Active => "active",
            StateView::Paused => "paused",
            StateView::Suspended => "suspended",
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.to_owned(),
            clusters: scrape.clusters.iter().map(ClusterStatus::from).collect(),
            pools: scrape.pools.iter().map(PoolStatus::from).collect(),
            databases: scrape.work.iter().map(DatabaseStatus::from).collect(),
        }
    }
}

impl From<&ClusterView> for ClusterStatus {
    fn from(view: &ClusterView) -> Self {
        let health = view.health.as_ref().map(|health| HealthStatus {
            state: health.state.name().to_owned(),
            since_ms: health.since_ms,
            evidence: health.evidence.clone(),
            advice: health.state.advice().to_owned(),
        });
        ClusterStatus {
            name: view.name.clone(),
            state: view.state.to_owned(),
            since_ms: view.since_ms,
            detail: view.detail.clone(),
            primary: view.primary.clone(),
            timeline: view.timeline,
            named_by: view.named_by.map(str::to_owned),
            source_age_ms: view.source_age_ms,
            source_ok: view.source_ok,
            moves: view.moves,
            health,
            members: view.members.iter().map(MemberStatus::from).collect(),
            events: view.events.clone(),
        }
    }
}

impl From<&MemberView> for MemberStatus {
    fn from(view: &MemberView) -> Self {
        MemberStatus {
            name: view.name.clone(),
            address: view.address.clone(),
            zone: view.zone.clone(),
            says: view.says.to_owned(),
            serves_reads: view.serves_reads,
            lag_bytes: view.lag_bytes,
            lag_ms: view.lag_ms,
            streaming: view.standby.as_ref().and_then(|standby| standby.streams),
            sync_state: view.standby.as_ref().and_then(|standby| standby.sync_state.clone()),
            connections: view.connections,
            all_connections: view.signals.as_ref().map(|signals| signals.connections),
            connections_usable: view.signals.as_ref().map(|signals| signals.connections_usable()),
        }
    }
}

impl From<&PoolView> for PoolStatus {
    fn from(view: &PoolView) -> Self {
        PoolStatus {
            database: view.database.clone(),
            user: view.user.clone(),
            size: view.pool_size,
            in_use: view.servers_in_use(),
            free: view.servers_idle + view.servers_used,
            clients: view.clients_active,
            waiting: view.clients_waiting,
            longest_wait_us: view.maxwait_us,
        }
    }
}

impl From<&Work> for DatabaseStatus {
    fn from(work: &Work) -> Self {
        DatabaseStatus {
            name: work.database.clone(),
            transactions: work.totals.xact_count,
            queries: work.totals.query_count,
            waits: work.queue_wait.count(),
            wait_us: work.totals.wait_time_us,
        }
    }
}
