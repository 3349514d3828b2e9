//! The tables of SHOW: columns and types as PgBouncer 1.25 sends them, rows from a [`Snapshot`].

use jiff::tz::TimeZone;

use super::clusters;
use super::command::{FakeParameter, Show};
use super::connections::{clients, servers, sockets};
use super::pins;
use super::stats::{averages, stats, totals, totals_by_name};
use super::table::{Columns, Table, Value, int4, number, text};
use super::view::*;
use crate::wire::originate::ColumnType::{Bytea, Int4, Int8, Text};

/// The release whose console this is.
pub const PGBOUNCER_VERSION: &str = "1.25.2";

/// What SHOW HELP answers with, as the NOTICE's DETAIL.
pub(crate) const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW CLUSTERS|MEMBERS|PINS
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]
\tHOLD <cluster> <seconds>
\tRELEASE <cluster>
\tREROUTE <db> <cluster>";

/// What must be known of the data plane before `show` can be answered; `None` is nothing.
pub(crate) fn view_of(show: Show) -> Option<View> {
    Some(match show {
        Show::Help | Show::Version | Show::Fds => return None,
        Show::ActiveSockets | Show::Sockets => View::Sockets,
        Show::Clients => View::Clients,
        Show::Clusters | Show::Members => View::Clusters,
        Show::Config => View::Settings,
        Show::Databases => View::Databases,
        Show::DnsHosts => View::DnsHosts,
        Show::DnsZones => View::DnsZones,
        Show::Lists => View::Lists,
        Show::Mem => View::Memory,
        Show::PeerPools => View::PeerPools,
        Show::Peers => View::Peers,
        Show::Pins => View::Pins,
        Show::Pools => View::Pools,
        Show::Servers => View::Servers,
        Show::State => View::State,
        Show::Stats | Show::StatsAverages | Show::StatsTotals | Show::Totals => View::Stats,
        Show::Users => View::Users,
    })
}

/// The table of one SHOW; times are printed in `zone`. HELP and FDS have columns but never rows.
pub fn table(show: Show, snapshot: &Snapshot, zone: &TimeZone) -> Table {
    match show {
        Show::Help => Table::new(&[], []),
        Show::Fds => Table::new(FDS, []),
        Show::Version => Table::new(VERSION, [vec![text(version())]]),
        Show::Clients => clients(snapshot, zone),
        Show::Clusters => clusters::clusters(&snapshot.clusters),
        Show::Pins => pins::pins(&snapshot.pins, zone),
        Show::Members => clusters::members(&snapshot.clusters),
        Show::Servers => servers(snapshot, zone),
        Show::Sockets => sockets(snapshot, zone, |_| true),
        Show::ActiveSockets => sockets(snapshot, zone, |b| b.pkt_avail > 0 || b.send_avail > 0),
        Show::Config => Table::new(CONFIG, snapshot.settings.iter().map(setting)),
        Show::Databases => databases(snapshot),
        Show::Pools => Table::new(POOLS, snapshot.pools.iter().map(pool)),
        Show::Users => users(snapshot),
        Show::Lists => lists(&snapshot.lists),
        Show::Mem => Table::new(MEM, snapshot.memory.iter().map(memory)),
        Show::State => state(snapshot.state),
        Show::Peers => Table::new(PEERS, snapshot.peers.iter().map(peer)),
        Show::PeerPools => Table::new(PEER_POOLS, snapshot.peer_pools.iter().map(peer_pool)),
        Show::DnsHosts => Table::new(DNS_HOSTS, snapshot.dns_hosts.iter().map(dns_host)),
        Show::DnsZones => Table::new(DNS_ZONES, snapshot.dns_zones.iter().map(dns_zone)),
        Show::Stats => stats(snapshot),
        Show::StatsTotals => totals(snapshot),
        Show::StatsAverages => averages(snapshot),
        Show::Totals => totals_by_name(snapshot),
    }
}

/// The answer to SHOW of a session parameter.
pub(crate) fn parameter(parameter: FakeParameter) -> Table {
    let (columns, value): (Columns, _) = match parameter {
        FakeParameter::ClientEncoding => (&[("client_encoding", Text)], "UTF-8"),
        FakeParameter::DefaultTransactionIsolation => {
            (&[("default_transaction_isolation", Text)], "read committed")
        }
        FakeParameter::StandardConformingStrings => (&[("standard_conforming_strings", Text)], "on"),
        FakeParameter::DateStyle => (&[("datestyle", Text)], "ISO"),
        FakeParameter::TimeZone => (&[("timezone", Text)], "GMT"),
    };
    Table::new(columns, [vec![text(value)]])
}

/// `PgBouncer 1.25.2 (pgweir 0.1.0)`: tools read the first two words.
pub fn version() -> String {
    format!("PgBouncer {PGBOUNCER_VERSION} (pgweir {})", env!("CARGO_PKG_VERSION"))
}

const VERSION: Columns = &[("version", Text)];

// Pools, databases, users

const POOLS: Columns = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

fn pool(view: &PoolView) -> Vec<Value> {
    vec![
        text(&view.database),
        text(&view.user),
        int4(view.clients_active),
        int4(view.clients_waiting),
        int4(view.clients_active_cancel_request),
        int4(view.clients_waiting_cancel_request),
        int4(view.servers_active),
        int4(view.servers_active_cancel),
        int4(view.servers_being_canceled),
        int4(view.servers_idle),
        int4(view.servers_used),
        int4(view.servers_tested),
        int4(view.servers_login),
        int4(view.maxwait_us / 1_000_000),
        int4(view.maxwait_us % 1_000_000),
        text(view.pool_mode),
        view.load_balance_hosts.map(str::to_owned),
    ]
}

const DATABASES: Columns = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("server_lifetime", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("max_client_connections", Int4),
    ("current_client_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];

fn databases(snapshot: &Snapshot) -> Table {
    let sorted = sorted_by(&snapshot.databases, |view| &view.name);
    Table::new(DATABASES, sorted.into_iter().map(database))
}

fn database(view: &DatabaseView) -> Vec<Value> {
    vec![
        text(&view.name),
        view.host.clone(),
        int4(view.port),
        text(&view.database),
        view.force_user.clone(),
        int4(view.pool_size),
        int4(view.min_pool_size),
        int4(view.reserve_pool_size),
        int4(view.server_lifetime_s),
        view.pool_mode.map(str::to_owned),
        view.load_balance_hosts.map(str::to_owned),
        int4(view.max_connections),
        int4(view.current_connections),
        int4(view.max_client_connections),
        int4(view.current_client_connections),
        int4(view.paused),
        int4(view.disabled),
    ]
}

const USERS: Columns = &[
    ("name", Text),
    ("pool_size", Text),
    ("reserve_pool_size", Text),
    ("pool_mode", Text),
    ("max_user_connections", Int4),
    ("current_connections", Int4),
    ("max_user_client_connections", Int4),
    ("current_client_connections", Int4),
];

fn users(snapshot: &Snapshot) -> Table {
    Table::new(USERS, sorted_by(&snapshot.users, |view| &view.name).into_iter().map(user))
}

fn user(view: &UserView) -> Vec<Value> {
    let size = |size: Option<u32>| text(size.map(|n| format!("{n:9}")).unwrap_or_default());
    vec![
        text(&view.name),
        size(view.pool_size),
        size(view.reserve_pool_size),
        view.pool_mode.map(str::to_owned),
        int4(view.max_user_connections),
        int4(view.current_connections),
        int4(view.max_user_client_connections),
        int4(view.current_client_connections),
    ]
}

/// PgBouncer keeps databases and users in order of their names.
pub(crate) fn sorted_by<T>(views: &[T], key: impl Fn(&T) -> &str) -> Vec<&T> {
    let mut sorted: Vec<&T> = views.iter().collect();
    sorted.sort_by(|a, b| key(a).cmp(key(b)));
    sorted
}

// The rest

const FDS: Columns = &[
    ("fd", Int4),
    ("task", Text),
    ("user", Text),
    ("database", Text),
    ("addr", Text),
    ("port", Int4),
    ("cancel", Int8),
    ("link", Int4),
    ("client_encoding", Text),
    ("std_strings", Text),
    ("datestyle", Text),
    ("timezone", Text),
    ("password", Text),
    ("scram_client_key", Bytea),
    ("scram_server_key", Bytea),
];

const CONFIG: Columns = &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];

fn setting(view: &SettingView) -> Vec<Value> {
    vec![text(&view.key), view.value.clone(), view.default.clone(), yes_or_no(view.changeable)]
}

fn yes_or_no(yes: bool) -> Value {
    text(if yes { "yes" } else { "no" })
}

const STATE: Columns = &[("key", Text), ("value", Text)];

fn state(state: StateView) -> Table {
    let rows =
        [("active", StateView::Active), ("paused", StateView::Paused), ("suspended", StateView::Suspended)];
    Table::new(STATE, rows.map(|(name, it)| vec![text(name), yes_or_no(it == state)]))
}

const LISTS: Columns = &[("list", Text), ("items", Int4)];

fn lists(view: &ListsView) -> Table {
    let rows = [
        ("databases", Some(view.databases)),
        ("users", Some(view.users)),
        ("peers", view.peers),
        ("pools", Some(view.pools)),
        ("peer_pools", view.peer_pools),
        ("free_clients", Some(view.free_clients)),
        ("used_clients", Some(view.used_clients)),
        ("login_clients", Some(view.login_clients)),
        ("free_servers", Some(view.free_servers)),
        ("used_servers", Some(view.used_servers)),
        ("dns_names", Some(view.dns_names)),
        ("dns_zones", Some(view.dns_zones)),
        ("dns_queries", Some(view.dns_queries)),
        ("dns_pending", Some(view.dns_pending)),
    ];
    let row = |(name, items): (&'static str, Option<u64>)| Some(vec![text(name), int4(items?)]);
    Table::new(LISTS, rows.into_iter().filter_map(row))
}

const MEM: Columns = &[("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int4)];

fn memory(view: &MemView) -> Vec<Value> {
    vec![text(view.name), int4(view.size), int4(view.used), int4(view.free), int4(view.memory_total)]
}

const PEERS: Columns = &[("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4)];

fn peer(view: &PeerView) -> Vec<Value> {
    vec![int4(view.peer_id), view.host.clone(), int4(view.port), int4(view.pool_size)]
}

const PEER_POOLS: Columns = &[
    ("peer_id", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active_cancel", Int4),
    ("sv_login", Int4),
];

fn peer_pool(view: &PeerPoolView) -> Vec<Value> {
    vec![
        int4(view.peer_id),
        int4(view.clients_active_cancel_request),
        int4(view.clients_waiting_cancel_request),
        int4(view.servers_active_cancel),
        int4(view.servers_login),
    ]
}

const DNS_HOSTS: Columns = &[("hostname", Text), ("ttl", Int8), ("addrs", Text)];

fn dns_host(view: &DnsHostView) -> Vec<Value> {
    vec![text(&view.hostname), number(view.ttl_s), text(&view.addresses)]
}

const DNS_ZONES: Columns = &[("zonename", Text), ("serial", Int8), ("count", Int4)];

fn dns_zone(view: &DnsZoneView) -> Vec<Value> {
    vec![text(&view.zonename), number(view.serial), int4(view.count)]
}
