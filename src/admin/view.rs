//! What the console and the metrics page see of the data plane: plain values, copied at one moment.
//! The data plane fills them, [`Snapshot`] carries them, and nothing here knows how they are shown.

use super::clusters::ClusterView;
use super::pins::PinView;
use std::time::Duration;

use crate::log::Peer;
use crate::wire::startup::Replication;

/// What a [`Snapshot`] must hold; the rest of it may stay empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// `clients`
    Clients,
    /// `servers`
    Servers,
    /// `clients` and `servers`, with their buffers.
    Sockets,
    /// `pools`
    Pools,
    /// `databases`
    Databases,
    /// `users`
    Users,
    /// `stats` and `stats_elapsed`
    Stats,
    /// `lists`
    Lists,
    /// `settings`
    Settings,
    /// `state`
    State,
    /// `memory`
    Memory,
    /// `peers`
    Peers,
    /// `peer_pools`
    PeerPools,
    /// `dns_hosts`
    DnsHosts,
    /// `dns_zones`
    DnsZones,
    /// `clusters`
    Clusters,
    /// `pins`
    Pins,
}

/// The data plane at one moment: only what the [`View`] asked for is filled.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every client, those of the console included.
    pub clients: Vec<ClientView>,
    /// Every server connection, those still logging in included.
    pub servers: Vec<ServerView>,
    /// Every pool, [`PoolView::console`] included.
    pub pools: Vec<PoolView>,
    /// Every database, [`DatabaseView::console`] included; shown sorted by name.
    pub databases: Vec<DatabaseView>,
    /// Every known user; shown sorted by name.
    pub users: Vec<UserView>,
    /// Totals of each database that has a pool; shown sorted by name.
    pub stats: Vec<StatsView>,
    /// The time from [`StatsView::older`] to [`StatsView::totals`].
    pub stats_elapsed: Duration,
    /// Counts of everything.
    pub lists: ListsView,
    /// Every setting, in the reference's order.
    pub settings: Vec<SettingView>,
    /// Whether the pooler works.
    pub state: StateView,
    /// Memory by what holds it.
    pub memory: Vec<MemView>,
    /// The configured peers.
    pub peers: Vec<PeerView>,
    /// The connections to peers.
    pub peer_pools: Vec<PeerPoolView>,
    /// Resolved host names.
    pub dns_hosts: Vec<DnsHostView>,
    /// DNS zones whose serial is watched.
    pub dns_zones: Vec<DnsZoneView>,
    /// The clients that keep their servers, by their numbers.
    pub pins: Vec<PinView>,
    /// The clusters, by name.
    pub clusters: Vec<ClusterView>,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientState {
    /// Not yet logged in.
    Login,
    /// Holds a server.
    Active,
    /// Logged in, holds no server, waits for none.
    #[default]
    Idle,
    /// Waits for a server.
    Waiting,
    /// A cancel request on its way to the server.
    ActiveCancelRequest,
    /// A cancel request that waits for its connection to the server.
    WaitingCancelRequest,
}

/// What a server connection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServerState {
    /// Being opened: dial, TLS, login.
    New,
    /// Lent to a client.
    Active,
    /// Free.
    #[default]
    Idle,
    /// Free, but must be checked before it is lent.
    Used,
    /// Runs its reset or check query.
    Tested,
    /// Carries a cancel request.
    ActiveCancel,
    /// Done, but held back until cancel requests for it have arrived.
    BeingCanceled,
}

/// A client connection.
pub type ClientView = ConnectionView<ClientState>;
/// A server connection.
pub type ServerView = ConnectionView<ServerState>;

/// One connection, as SHOW CLIENTS, SERVERS and SOCKETS print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionView<State> {
    /// User; `None` before it is known.
    pub user: Option<String>,
    /// Database; `None` before it is known.
    pub database: Option<String>,
    /// Replication protocol.
    pub replication: Replication,
    /// What it is doing.
    pub state: State,
    /// The other end.
    pub peer: Peer,
    /// Our end.
    pub local: Peer,
    /// When it was opened, Unix time in microseconds.
    pub connect_time_us: i64,
    /// When the last request was received (client) or forwarded (server), Unix time in microseconds.
    pub request_time_us: i64,
    /// How long the client has been waiting, microseconds; 0 when it does not wait.
    pub wait_us: u64,
    /// The server closes as soon as it is released.
    pub close_needed: bool,
    /// A number that is this connection's alone while it lives, printed as PgBouncer's pointer.
    pub pointer: u64,
    /// The `pointer` of the connection that it is paired with.
    pub link: Option<u64>,
    /// Process id of the other end: the backend's, or a Unix-socket client's; 0 is unknown.
    pub remote_pid: i32,
    /// TLS version and cipher; empty without TLS.
    pub tls: String,
    /// `application_name`, if it was set.
    pub application_name: String,
    /// Prepared statements that it holds.
    pub prepared_statements: u32,
    /// Number of the connection since the start; what KILL_CLIENT takes.
    pub id: u64,
    /// What waits in its buffers; all 0 for one that has nothing waiting.
    pub buffers: BufferView,
}

/// The buffer columns of SHOW SOCKETS, in bytes: of the connection's own, `pkt_avail` was read and waits, and `send_avail`
/// waits for its socket, without what TLS has encrypted already. The others are of PgBouncer's packet buffer, which we have
/// not: always 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name is its column's")]
pub struct BufferView {
    pub recv_pos: u32,
    pub pkt_pos: u32,
    pub pkt_remain: u32,
    pub send_pos: u32,
    pub send_remain: u32,
    pub pkt_avail: u32,
    pub send_avail: u32,
}

impl BufferView {
    /// Of a connection with so many bytes that were read and wait, and so many that its socket did not take.
    pub fn new(carried: usize, unsent: usize) -> Self {
        let in_column = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        BufferView { pkt_avail: in_column(carried), send_avail: in_column(unsent), ..BufferView::default() }
    }
}

/// One pool: the connections of one user to one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolView {
    /// Database, by its name in `[databases]`.
    pub database: String,
    /// The user toward the server.
    pub user: String,
    /// Clients that hold a server or are idle.
    pub clients_active: u32,
    /// Of those, the idle ones. Not a column of SHOW POOLS.
    pub clients_idle: u32,
    /// Clients that wait for a server.
    pub clients_waiting: u32,
    /// Cancel requests on their way.
    pub clients_active_cancel_request: u32,
    /// Cancel requests that wait.
    pub clients_waiting_cancel_request: u32,
    /// Servers by state, as [`ServerState`] has them.
    pub servers_active: u32,
    /// Servers that carry a cancel request.
    pub servers_active_cancel: u32,
    /// Servers held back by a cancel request.
    pub servers_being_canceled: u32,
    /// Free servers.
    pub servers_idle: u32,
    /// Free servers to be checked first.
    pub servers_used: u32,
    /// Servers in their reset or check query.
    pub servers_tested: u32,
    /// Servers being opened.
    pub servers_login: u32,
    /// How long the oldest waiting client has waited, microseconds.
    pub maxwait_us: u64,
    /// The mode's word: `session`, `transaction` or `statement`.
    pub pool_mode: &'static str,
    /// The word of `load_balance_hosts`; `None` without a host list.
    pub load_balance_hosts: Option<&'static str>,
    /// `pool_size` in effect; 0 is unlimited. Not a column of SHOW POOLS.
    pub pool_size: u32,
}

/// One database, as configured and as used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseView {
    /// Its name in `[databases]`.
    pub name: String,
    /// The host list; `None` for Unix sockets by default.
    pub host: Option<String>,
    /// Server port.
    pub port: u16,
    /// Its name on the server.
    pub database: String,
    /// The user of its entry, if forced.
    pub force_user: Option<String>,
    /// Server connections per pool; 0 is unlimited.
    pub pool_size: u32,
    /// Server connections kept open.
    pub min_pool_size: u32,
    /// Server connections beyond `pool_size`.
    pub reserve_pool_size: u32,
    /// `server_lifetime`, seconds.
    pub server_lifetime_s: u64,
    /// Its own mode, if it has one.
    pub pool_mode: Option<&'static str>,
    /// The word of `load_balance_hosts`; `None` without a host list.
    pub load_balance_hosts: Option<&'static str>,
    /// `max_db_connections`; 0 is unlimited.
    pub max_connections: u32,
    /// Server connections.
    pub current_connections: u32,
    /// `max_db_client_connections`; 0 is unlimited.
    pub max_client_connections: u32,
    /// Clients.
    pub current_client_connections: u32,
    /// Those that LISTEN without a server of their own.
    pub listening_clients: u32,
    /// After PAUSE or KILL.
    pub paused: bool,
    /// After DISABLE.
    pub disabled: bool,
}

/// One user that the pooler knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserView {
    /// Name.
    pub name: String,
    /// `pool_size` of its `[users]` entry.
    pub pool_size: Option<u32>,
    /// `reserve_pool_size` of its `[users]` entry.
    pub reserve_pool_size: Option<u32>,
    /// Mode of its `[users]` entry.
    pub pool_mode: Option<&'static str>,
    /// `max_user_connections`; 0 is unlimited.
    pub max_user_connections: u32,
    /// Server connections.
    pub current_connections: u32,
    /// `max_user_client_connections`; 0 is unlimited.
    pub max_user_client_connections: u32,
    /// Clients.
    pub current_client_connections: u32,
}

/// The work done for one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsView {
    /// Database, by its name in `[databases]`.
    pub database: String,
    /// Since the start.
    pub totals: Stats,
    /// The totals as they were one `stats_period` (or up to two) ago; the averages are taken from there.
    pub older: Stats,
}

/// Counters of work; also their averages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Servers lent.
    pub server_assignment_count: u64,
    /// Transactions.
    pub xact_count: u64,
    /// Queries.
    pub query_count: u64,
    /// Bytes from clients.
    pub bytes_received: u64,
    /// Bytes to clients.
    pub bytes_sent: u64,
    /// Time in transactions, microseconds.
    pub xact_time_us: u64,
    /// Time in queries, microseconds.
    pub query_time_us: u64,
    /// Time that clients waited for a server, microseconds.
    pub wait_time_us: u64,
    /// Named statements that clients prepared.
    pub client_parse_count: u64,
    /// Of those, the ones that had to be prepared on a server.
    pub server_parse_count: u64,
    /// Binds of named statements.
    pub bind_count: u64,
}

impl Stats {
    /// Counter by counter.
    pub fn zip(&self, other: &Stats, f: impl Fn(u64, u64) -> u64) -> Stats {
        Stats {
            server_assignment_count: f(self.server_assignment_count, other.server_assignment_count),
            xact_count: f(self.xact_count, other.xact_count),
            query_count: f(self.query_count, other.query_count),
            bytes_received: f(self.bytes_received, other.bytes_received),
            bytes_sent: f(self.bytes_sent, other.bytes_sent),
            xact_time_us: f(self.xact_time_us, other.xact_time_us),
            query_time_us: f(self.query_time_us, other.query_time_us),
            wait_time_us: f(self.wait_time_us, other.wait_time_us),
            client_parse_count: f(self.client_parse_count, other.client_parse_count),
            server_parse_count: f(self.server_parse_count, other.server_parse_count),
            bind_count: f(self.bind_count, other.bind_count),
        }
    }

    /// The sum of both.
    pub fn plus(&self, other: &Stats) -> Stats {
        self.zip(other, u64::saturating_add)
    }

    /// The averages since `older`, as PgBouncer takes them: counts and bytes a second; the time of a
    /// transaction, of a query, and of the wait for one assignment in microseconds each.
    pub fn averages_since(&self, older: &Stats, elapsed: Duration) -> Stats {
        let delta = self.zip(older, u64::saturating_sub);
        let per_second = |count: u64, _: u64| {
            let scaled = u128::from(count) * 1_000_000;
            let average = scaled.checked_div(elapsed.as_micros()).unwrap_or(0);
            u64::try_from(average).unwrap_or(u64::MAX)
        };
        let each = |time_us: u64, count: u64| time_us.checked_div(count).unwrap_or(0);
        Stats {
            xact_time_us: each(delta.xact_time_us, delta.xact_count),
            query_time_us: each(delta.query_time_us, delta.query_count),
            wait_time_us: each(delta.wait_time_us, delta.server_assignment_count),
            ..delta.zip(&delta, per_second)
        }
    }

    /// Of averages: the line that `log_stats` writes every `stats_period`.
    pub fn log_line(&self) -> String {
        format!(
            "stats: {} xacts/s, {} queries/s, {} client parses/s, {} server parses/s, {} binds/s, \
             in {} B/s, out {} B/s, xact {} us, query {} us, wait {} us",
            self.xact_count,
            self.query_count,
            self.client_parse_count,
            self.server_parse_count,
            self.bind_count,
            self.bytes_received,
            self.bytes_sent,
            self.xact_time_us,
            self.query_time_us,
            self.wait_time_us,
        )
    }
}

/// The rows of SHOW LISTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name is its row's")]
pub struct ListsView {
    pub databases: u64,
    pub users: u64,
    /// `None` leaves its row out, and so do the peers' pools: CloudNativePG's Pooler logs a line at each
    /// scrape for a row that it does not know.
    pub peers: Option<u64>,
    pub pools: u64,
    pub peer_pools: Option<u64>,
    pub free_clients: u64,
    pub used_clients: u64,
    pub login_clients: u64,
    pub free_servers: u64,
    pub used_servers: u64,
    pub dns_names: u64,
    pub dns_zones: u64,
    pub dns_queries: u64,
    pub dns_pending: u64,
}

/// One setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingView {
    /// Its name.
    pub key: String,
    /// Its value now; `None` is unset.
    pub value: Option<String>,
    /// Its default; `None` is unset.
    pub default: Option<String>,
    /// Whether SET and RELOAD can change it.
    pub changeable: bool,
}

/// Whether the pooler works: the rows of SHOW STATE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "three names of which one holds")]
pub enum StateView {
    #[default]
    Active,
    Paused,
    Suspended,
}

/// Memory of one kind of object. `free` and `memory_total` are 0 where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemView {
    /// What it is, such as `client_cache`.
    pub name: &'static str,
    /// Bytes of one object.
    pub size: u64,
    /// Objects in use.
    pub used: u64,
    /// Objects kept for reuse.
    pub free: u64,
    /// Bytes of all.
    pub memory_total: u64,
}

/// One entry of `[peers]`, or a peer that is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name is its setting's")]
pub struct PeerView {
    pub peer_id: u32,
    pub host: Option<String>,
    pub port: u16,
    pub pool_size: u32,
}

/// The connections to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in PoolView")]
pub struct PeerPoolView {
    pub peer_id: u32,
    pub clients_active_cancel_request: u32,
    pub clients_waiting_cancel_request: u32,
    pub servers_active_cancel: u32,
    pub servers_login: u32,
}

/// One resolved host name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsHostView {
    /// Host name.
    pub hostname: String,
    /// Time until it is looked up again, seconds.
    pub ttl_s: u64,
    /// Its addresses, separated by commas.
    pub addresses: String,
}

/// One DNS zone whose serial is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsZoneView {
    /// Zone name.
    pub zonename: String,
    /// Its SOA serial.
    pub serial: u32,
    /// Host names in it.
    pub count: u32,
}

impl PoolView {
    /// Server connections that are not free to be lent.
    pub fn servers_in_use(&self) -> u32 {
        let canceling = self.servers_active_cancel + self.servers_being_canceled;
        self.servers_active + self.servers_tested + self.servers_login + canceling
    }

    /// The console's own pool, with the clients that are logged in to it.
    pub fn console(clients: u32) -> PoolView {
        PoolView {
            database: "pgbouncer".to_owned(),
            user: "pgbouncer".to_owned(),
            clients_active: clients,
            pool_mode: "statement",
            pool_size: 2,
            ..PoolView::default()
        }
    }
}

impl DatabaseView {
    /// The console's own database, with the clients that are logged in to it.
    pub fn console(listen_port: u16, server_lifetime_s: u64, clients: u32, clients_max: u32) -> DatabaseView {
        DatabaseView {
            name: "pgbouncer".to_owned(),
            port: listen_port,
            database: "pgbouncer".to_owned(),
            force_user: Some("pgbouncer".to_owned()),
            pool_size: 2,
            server_lifetime_s,
            pool_mode: Some("statement"),
            max_client_connections: clients_max,
            current_client_connections: clients,
            ..DatabaseView::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_times_are_per_event() {
        // Totals of a PgBouncer after two transactions of which one waited three seconds.
        let totals = Stats {
            server_assignment_count: 2,
            xact_count: 2,
            query_count: 3,
            bytes_received: 37,
            bytes_sent: 167,
            xact_time_us: 6_016_075,
            query_time_us: 3_008_384,
            wait_time_us: 3_016_285,
            ..Stats::default()
        };
        let averages = totals.averages_since(&Stats::default(), Duration::from_secs(10));
        let expected = Stats {
            bytes_received: 3,
            bytes_sent: 16,
            xact_time_us: 3_008_037,
            query_time_us: 1_002_794,
            wait_time_us: 1_508_142,
            ..Stats::default()
        };
        assert_eq!(averages, expected);
        let line = "stats: 0 xacts/s, 0 queries/s, 0 client parses/s, 0 server parses/s, 0 binds/s, \
            in 3 B/s, out 16 B/s, xact 3008037 us, query 1002794 us, wait 1508142 us";
        assert_eq!(averages.log_line(), line);
        assert_eq!(totals.averages_since(&totals, Duration::from_secs(10)), Stats::default());
        let at_once = totals.averages_since(&Stats::default(), Duration::ZERO);
        assert_eq!(at_once.bytes_sent, 0, "no time has passed");
    }
}
