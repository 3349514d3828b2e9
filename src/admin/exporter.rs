//! The names that `pgbouncer_exporter` of Prometheus' community has, for dashboards that are there already: on the
//! metrics page when `metrics_pgbouncer_names` is on. The units are its own: seconds, bytes, counts.

use metrics::Unit;

use super::scrape::{Scrape, Work};
use super::show::PGBOUNCER_VERSION;
use super::view::{DatabaseView, ListsView, PoolView};
use crate::metrics::{Kind, Metric, Page, metrics};

metrics! {
    UP: Gauge, Count, "pgbouncer_up", [],
        "Always 1: who answers is up.";
    VERSION: Gauge, Count, "pgbouncer_version_info", ["version"],
        "Always 1; the label says which PgBouncer this stands in for.";
    MAX_CLIENTS: Gauge, Count, "pgbouncer_config_max_client_connections", [],
        "max_client_conn.";
    MAX_USER_CONNECTIONS: Gauge, Count, "pgbouncer_config_max_user_connections", [],
        "max_user_connections; 0 is unlimited.";
    DATABASES: Gauge, Count, "pgbouncer_databases", [],
        "Databases.";
    USERS: Gauge, Count, "pgbouncer_users", [],
        "Users.";
    POOLS: Gauge, Count, "pgbouncer_pools", [],
        "Pools.";
    FREE_CLIENTS: Gauge, Count, "pgbouncer_free_clients", [],
        "Always 0: no client is kept ready.";
    USED_CLIENTS: Gauge, Count, "pgbouncer_used_clients", [],
        "Clients.";
    LOGIN_CLIENTS: Gauge, Count, "pgbouncer_login_clients", [],
        "Clients that log in.";
    FREE_SERVERS: Gauge, Count, "pgbouncer_free_servers", [],
        "Server connections that are free.";
    USED_SERVERS: Gauge, Count, "pgbouncer_used_servers", [],
        "Server connections that are in use.";
    DNS_NAMES: Gauge, Count, "pgbouncer_cached_dns_names", [],
        "Host names in the cache.";
    DNS_ZONES: Gauge, Count, "pgbouncer_cached_dns_zones", [],
        "Zones of host names in the cache.";
    DNS_QUERIES: Gauge, Count, "pgbouncer_in_flight_dns_queries", [],
        "Questions for host names under way.";
    DATABASE_SIZE: Gauge, Count, "pgbouncer_databases_pool_size",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "pool_size.";
    DATABASE_RESERVE: Gauge, Count, "pgbouncer_databases_reserve_pool",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "reserve_pool_size.";
    DATABASE_MAX: Gauge, Count, "pgbouncer_databases_max_connections",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "max_db_connections; 0 is unlimited.";
    DATABASE_CURRENT: Gauge, Count, "pgbouncer_databases_current_connections",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "Server connections.";
    DATABASE_PAUSED: Gauge, Count, "pgbouncer_databases_paused",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "1 after PAUSE.";
    DATABASE_DISABLED: Gauge, Count, "pgbouncer_databases_disabled",
        ["name", "host", "port", "database", "force_user", "pool_mode"],
        "1 after DISABLE.";
    CLIENTS_ACTIVE: Gauge, Count, "pgbouncer_pools_client_active_connections", ["database", "user"],
        "Clients that hold a server connection or are idle.";
    CLIENTS_WAITING: Gauge, Count, "pgbouncer_pools_client_waiting_connections", ["database", "user"],
        "Clients that wait for a server connection.";
    MAXWAIT: Gauge, Seconds, "pgbouncer_pools_client_maxwait_seconds", ["database", "user"],
        "How long the oldest of them has waited.";
    SERVERS_ACTIVE: Gauge, Count, "pgbouncer_pools_server_active_connections", ["database", "user"],
        "Server connections that are lent.";
    SERVERS_IDLE: Gauge, Count, "pgbouncer_pools_server_idle_connections", ["database", "user"],
        "Server connections that are free.";
    SERVERS_USED: Gauge, Count, "pgbouncer_pools_server_used_connections", ["database", "user"],
        "Server connections that are checked before they are lent.";
    SERVERS_TESTED: Gauge, Count, "pgbouncer_pools_server_testing_connections", ["database", "user"],
        "Server connections in their reset or check query.";
    SERVERS_LOGIN: Gauge, Count, "pgbouncer_pools_server_login_connections", ["database", "user"],
        "Server connections that log in.";
    TRANSACTIONS: Counter, Count, "pgbouncer_stats_sql_transactions_pooled_total", ["database"],
        "Transactions.";
    QUERIES: Counter, Count, "pgbouncer_stats_queries_pooled_total", ["database"],
        "Queries.";
    RECEIVED: Counter, Bytes, "pgbouncer_stats_received_bytes_total", ["database"],
        "Bytes from clients.";
    SENT: Counter, Bytes, "pgbouncer_stats_sent_bytes_total", ["database"],
        "Bytes to clients.";
    TRANSACTION_TIME: Gauge, Seconds, "pgbouncer_stats_server_in_transaction_seconds_total", ["database"],
        "Time in transactions.";
    QUERY_TIME: Gauge, Seconds, "pgbouncer_stats_queries_duration_seconds_total", ["database"],
        "Time in queries.";
    WAIT_TIME: Gauge, Seconds, "pgbouncer_stats_client_wait_seconds_total", ["database"],
        "Time that clients waited for a server connection.";
}

/// What the exporter asks for beside what [`Scrape`] has.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Counts of everything.
    pub lists: ListsView,
    /// `max_client_conn`
    pub max_client_conn: u32,
    /// `max_user_connections`
    pub max_user_connections: u32,
}

impl Names {
    /// Puts all of them on a page.
    pub(super) fn publish(&self, scrape: &Scrape, page: &mut Page) {
        page.describe(ALL);
        page.gauge(&UP, &[], 1);
        page.gauge(&VERSION, &[PGBOUNCER_VERSION], 1);
        page.gauge(&MAX_CLIENTS, &[], self.max_client_conn);
        page.gauge(&MAX_USER_CONNECTIONS, &[], self.max_user_connections);
        let lists = &self.lists;
        for (metric, count) in [
            (&DATABASES, lists.databases),
            (&USERS, lists.users),
            (&POOLS, lists.pools),
            (&FREE_CLIENTS, lists.free_clients),
            (&USED_CLIENTS, lists.used_clients),
            (&LOGIN_CLIENTS, lists.login_clients),
            (&FREE_SERVERS, lists.free_servers),
            (&USED_SERVERS, lists.used_servers),
            (&DNS_NAMES, lists.dns_names),
            (&DNS_ZONES, lists.dns_zones),
            (&DNS_QUERIES, lists.dns_queries),
        ] {
            page.gauge(metric, &[], count as f64);
        }
        scrape.databases.iter().for_each(|view| database(view, page));
        scrape.pools.iter().for_each(|view| pool(view, page));
        scrape.work.iter().for_each(|one| work(one, page));
    }
}

fn database(view: &DatabaseView, page: &mut Page) {
    let port = view.port.to_string();
    let host = view.host.as_deref().unwrap_or_default();
    let user = view.force_user.as_deref().unwrap_or_default();
    let labels = [&view.name, host, &port, &view.database, user, view.pool_mode.unwrap_or_default()];
    page.gauge(&DATABASE_SIZE, &labels, view.pool_size);
    page.gauge(&DATABASE_RESERVE, &labels, view.reserve_pool_size);
    page.gauge(&DATABASE_MAX, &labels, view.max_connections);
    page.gauge(&DATABASE_CURRENT, &labels, view.current_connections);
    page.gauge(&DATABASE_PAUSED, &labels, view.paused);
    page.gauge(&DATABASE_DISABLED, &labels, view.disabled);
}

fn pool(view: &PoolView, page: &mut Page) {
    let labels = [view.database.as_str(), view.user.as_str()];
    for (metric, count) in [
        (&CLIENTS_ACTIVE, view.clients_active),
        (&CLIENTS_WAITING, view.clients_waiting),
        (&SERVERS_ACTIVE, view.servers_active),
        (&SERVERS_IDLE, view.servers_idle),
        (&SERVERS_USED, view.servers_used),
        (&SERVERS_TESTED, view.servers_tested),
        (&SERVERS_LOGIN, view.servers_login),
    ] {
        page.gauge(metric, &labels, count);
    }
    page.gauge(&MAXWAIT, &labels, seconds(view.maxwait_us));
}

/// Its seconds have fractions, which our counters have not: these are gauges that only grow.
fn work(work: &Work, page: &mut Page) {
    let labels = [work.database.as_str()];
    let totals = &work.totals;
    page.counter(&TRANSACTIONS, &labels, totals.xact_count);
    page.counter(&QUERIES, &labels, totals.query_count);
    page.counter(&RECEIVED, &labels, totals.bytes_received);
    page.counter(&SENT, &labels, totals.bytes_sent);
    page.gauge(&TRANSACTION_TIME, &labels, seconds(totals.xact_time_us));
    page.gauge(&QUERY_TIME, &labels, seconds(totals.query_time_us));
    page.gauge(&WAIT_TIME, &labels, seconds(totals.wait_time_us));
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
