//! Pictures of the data plane for the console and the metrics page: each worker draws its own
//! sessions, and [`snapshot`] puts them together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::clusters::ClusterHandle;
use super::console::Entry;
use super::control::on_all_workers;
use super::databases::DatabaseEntry;
use super::peers::{self, PeerAddress};
use super::plane::{LocalStats, Plane, Shared};
use super::{Phase, Session, since};
use crate::admin::exporter::Names;
use crate::admin::scrape::{Scrape, Work};
use crate::admin::{
    BufferView, CONSOLE_DATABASE, ClientState, ClientView, ClusterView, ConnectionView, DatabaseView,
    DnsHostView, DnsZoneView, ListsView, MemView, PeerView, PinView, PoolView, ServerState, ServerView,
    SettingView, Snapshot, StateView, Stats, StatsView, UserView, View,
};
use crate::config::{Config, Host, LoadBalanceHosts, Role, Settings};
use crate::log::Peer;
use crate::metrics::{Histogram, WorkerMetrics, micros};
use crate::net::Socket;
use crate::net::dns::{HostStatus, ZoneStatus};
use crate::pool::Target;
use crate::protocol::parameters::ParameterSet;
use crate::server::ServerConnection;
use crate::wire::startup::Replication;

/// What one worker knows.
#[derive(Default)]
struct Part {
    clients: Vec<ClientView>,
    servers: Vec<ServerView>,
    consoles: u32,
    console_queries: u64,
    logins: u32,
    groups: Vec<GroupPart>,
    pins: Vec<PinView>,
    pinned: BTreeMap<&'static str, u32>,
    metrics: WorkerMetrics,
}

struct GroupPart {
    database: Arc<str>,
    server_user: Arc<str>,
    totals: Stats,
    wait: Histogram,
    transaction: Histogram,
    commit: Histogram,
    hits: u64,
    active: u32,
    idle: u32,
}

impl GroupPart {
    fn new(database: Arc<str>, server_user: Arc<str>, stats: &LocalStats) -> Self {
        GroupPart {
            database,
            server_user,
            totals: stats.all_totals(),
            wait: stats.wait.clone(),
            transaction: stats.transaction.clone(),
            commit: stats.commit.clone(),
            hits: stats.statements.hits,
            active: 0,
            idle: 0,
        }
    }
}

fn draw(plane: &Plane, connections: bool, pins: bool) -> Part {
    let mut part =
        Part { logins: plane.logins.get(), metrics: plane.metrics.borrow().clone(), ..Part::default() };
    let mut counts: BTreeMap<*const super::plane::Group, (u32, u32)> = BTreeMap::new();
    for (_, session) in plane.sessions.borrow().iter() {
        let session = session.borrow();
        let (active, idle) = counts.entry(std::rc::Rc::as_ptr(&session.group)).or_default();
        match session.phase {
            Phase::Leased(_) | Phase::Asking(_) => *active += 1,
            Phase::Idle => *idle += 1,
            Phase::Waiting(_) => {}
            Phase::Parting(_) => continue,
        }
        for reason in session.pins().reasons() {
            *part.pinned.entry(reason).or_default() += 1;
        }
        if pins {
            part.pins.extend(session.pin_view());
        }
        if connections {
            part.clients.push(session.view());
            part.servers.extend(session.server_view());
        }
    }
    for group in plane.groups() {
        let (active, idle) = counts.get(&std::rc::Rc::as_ptr(&group)).copied().unwrap_or_default();
        let server_user = Arc::clone(&group.pool.target.user);
        let drawn = GroupPart::new(Arc::clone(&group.database), server_user, &group.stats.borrow());
        part.groups.push(GroupPart { active, idle, ..drawn });
    }
    for (database, stats) in plane.left.borrow().iter() {
        part.groups.push(GroupPart::new(Arc::clone(database), "".into(), stats));
    }
    let consoles = plane.consoles.clients();
    part.consoles = u32::try_from(consoles.len()).unwrap_or(u32::MAX);
    part.console_queries = plane.consoles.queries();
    if connections {
        part.clients.extend(consoles.into_iter().map(console_view));
    }
    part
}

fn console_view((id, entry): (u64, Entry)) -> ClientView {
    let Entry { user, peer, since, tls } = entry;
    ConnectionView {
        user: Some(user),
        database: Some(CONSOLE_DATABASE.to_owned()),
        replication: Replication::None,
        state: ClientState::Active,
        local: peer.clone(),
        remote_pid: process_id(&peer),
        peer,
        connect_time_us: unix_us(since),
        request_time_us: unix_us(Instant::now()),
        wait_us: 0,
        close_needed: false,
        pointer: id,
        link: None,
        tls,
        application_name: String::new(),
        prepared_statements: 0,
        id,
        buffers: BufferView::default(),
    }
}

fn process_id(peer: &Peer) -> i32 {
    match peer {
        Peer::Unix { pid: Some(pid), .. } => i32::try_from(*pid).unwrap_or(0),
        Peer::Unix { pid: None, .. } | Peer::Tcp(_) => 0,
    }
}

/// The time on the wall of a moment in the past.
pub(super) fn unix_us(moment: Instant) -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = since.saturating_sub(moment.elapsed());
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn local_peer(socket: &Socket, port: u16) -> Peer {
    match socket.local_address() {
        Some(address) => Peer::Tcp(address),
        None => Peer::Unix { pid: None, port },
    }
}

impl Session {
    /// The database, as the client knows it.
    pub fn database(&self) -> &str {
        &self.group.database
    }

    fn view(&self) -> ClientView {
        let (state, wait, link) = match &self.phase {
            Phase::Idle | Phase::Parting(_) => (ClientState::Idle, Duration::ZERO, None),
            Phase::Waiting(wait) => (ClientState::Waiting, since(wait.since, Instant::now()), None),
            Phase::Leased(lease) => (ClientState::Active, Duration::ZERO, Some(lease.id)),
            Phase::Asking(_) => (ClientState::Active, Duration::ZERO, None),
        };
        let application = application_name(&self.plane.shared, &self.parameters);
        let statements = self.statements.as_ref().map_or(0, |statements| statements.len());
        ConnectionView {
            user: Some(self.group.user.to_string()),
            database: Some(self.group.database.to_string()),
            replication: self.group.replication,
            state,
            local: local_peer(&self.socket, self.peer.port()),
            remote_pid: process_id(&self.peer),
            peer: self.peer.clone(),
            connect_time_us: unix_us(self.connected),
            request_time_us: unix_us(self.last_request),
            wait_us: micros(wait),
            close_needed: false,
            pointer: self.id,
            link,
            tls: self.socket.encryption(),
            application_name: application,
            prepared_statements: u32::try_from(statements).unwrap_or(u32::MAX),
            id: self.id,
            buffers: BufferView::new(
                self.carry.as_ref().map_or(0, |carry| carry.len()),
                self.backlog.as_ref().map_or(0, |backlog| backlog.len()),
            ),
        }
    }

    fn server_view(&self) -> Option<ServerView> {
        let Phase::Leased(lease) = &self.phase else { return None };
        let pool = lease.pool();
        let old = lease.epoch != pool.epoch() || lease.is_elsewhere();
        let state = match &self.cancels {
            Some(cancels) if cancels.any() => ServerState::BeingCanceled,
            _ => ServerState::Active,
        };
        let application = application_name(&self.plane.shared, &lease.parameters);
        let link = Some(self.id);
        Some(ServerView {
            application_name: application,
            ..server_view(lease, &pool.target, state, link, old)
        })
    }
}

fn application_name(shared: &Shared, parameters: &ParameterSet) -> String {
    let index = shared.server.tracked.index("application_name");
    index.and_then(|index| parameters.get(index)).unwrap_or_default().to_owned()
}

fn server_view(
    server: &ServerConnection,
    target: &Target,
    state: ServerState,
    link: Option<u64>,
    close_needed: bool,
) -> ServerView {
    let peer = match server.socket.peer_address() {
        Some(address) => Peer::Tcp(address),
        None => Peer::Unix { pid: None, port: server.endpoint.port },
    };
    ConnectionView {
        user: Some(target.user.to_string()),
        database: Some(target.database.to_string()),
        replication: server.replication,
        state,
        local: local_peer(&server.socket, server.endpoint.port),
        peer,
        connect_time_us: unix_us(server.opened_at),
        request_time_us: unix_us(server.used_at),
        wait_us: 0,
        close_needed,
        pointer: server.id,
        link,
        remote_pid: server.cancel_key.process_id(),
        tls: server.socket.encryption(),
        application_name: String::new(),
        prepared_statements: u32::try_from(server.statements.len()).unwrap_or(u32::MAX),
        id: server.id,
        buffers: BufferView::new(server.carry.len(), server.backlog.len()),
    }
}

/// The data plane at this moment, as far as `view` needs it.
pub async fn snapshot(shared: &Arc<Shared>, view: View) -> Snapshot {
    let connections = matches!(view, View::Clients | View::Servers | View::Sockets);
    let parts = on_all_workers(shared, move |plane| draw(plane, connections, view == View::Pins)).await;
    let config = shared.config.load_full();
    let now = Instant::now();
    let mut snapshot = Snapshot { state: state(shared), ..Snapshot::default() };
    if connections {
        for part in &parts {
            snapshot.clients.extend(part.clients.iter().cloned());
            snapshot.servers.extend(part.servers.iter().cloned());
        }
        snapshot.servers.extend(idle_servers(shared, now));
        snapshot.clients.sort_by_key(|client| client.id);
        snapshot.servers.sort_by_key(|server| server.id);
    }
    snapshot.pins = parts.iter().flat_map(|part| part.pins.iter().cloned()).collect();
    snapshot.pins.sort_by_key(|pin| pin.client_id);
    let consoles = parts.iter().map(|part| part.consoles).sum();
    snapshot.pools = pools(shared, &parts, now);
    snapshot.pools.push(PoolView::console(consoles));
    snapshot.databases = databases(shared, &config);
    let lifetime = config.settings.server_lifetime.as_secs();
    let clients_max = config.settings.max_db_client_connections;
    let port = config.settings.listen_port;
    snapshot.databases.push(DatabaseView::console(port, lifetime, consoles, clients_max));
    snapshot.users = users(shared, &config);
    let (stats, elapsed) = stats(shared, &parts, now);
    snapshot.stats = stats;
    snapshot.stats_elapsed = elapsed;
    snapshot.peers = peers(&config, &shared.peers.watched.load());
    snapshot.peer_pools = shared.peers.views(&config);
    snapshot.dns_hosts = shared.databases.dns().hosts(now).into_iter().map(dns_host).collect();
    snapshot.dns_zones = shared.databases.dns().zones().into_iter().map(dns_zone).collect();
    snapshot.lists = lists(shared, &config, &parts, &snapshot);
    snapshot.settings = settings(&config);
    snapshot.memory = memory(&snapshot);
    snapshot.clusters = clusters(shared, now);
    snapshot
}

/// PgBouncer shows each address as it keeps it, with the port 0.
fn dns_host(host: HostStatus) -> DnsHostView {
    let address = |ip: &IpAddr| SocketAddr::new(*ip, 0).to_string();
    DnsHostView {
        hostname: host.name,
        ttl_s: host.left.as_secs(),
        addresses: host.addresses.iter().map(address).collect::<Vec<_>>().join(","),
    }
}

fn dns_zone(zone: ZoneStatus) -> DnsZoneView {
    DnsZoneView { zonename: zone.name, serial: zone.serial, count: zone.count }
}

fn clusters(shared: &Shared, now: Instant) -> Vec<ClusterView> {
    let waiting = |name: &str| {
        let pools = shared.databases.pools_of(name, Role::ReadWrite);
        pools.iter().filter(|pool| pool.held().is_some()).map(|pool| pool.counts(now).waiting).sum()
    };
    let view =
        |(name, handle): &(Arc<str>, Arc<ClusterHandle>)| handle.status.load().view(name, waiting(name), now);
    shared.clusters.all().iter().map(view).collect()
}

/// What the metrics page shows.
pub async fn scrape(shared: &Arc<Shared>) -> Scrape {
    let parts = on_all_workers(shared, |plane| draw(plane, false, false)).await;
    let config = shared.config.load_full();
    let mut work: BTreeMap<Arc<str>, Work> = BTreeMap::new();
    let mut workers = WorkerMetrics::default();
    let mut pins = BTreeMap::new();
    for part in &parts {
        workers.merge(&part.metrics);
        for (reason, count) in &part.pinned {
            *pins.entry(*reason).or_default() += count;
        }
        for group in &part.groups {
            let entry = work.entry(Arc::clone(&group.database)).or_default();
            entry.database = group.database.to_string();
            entry.totals = entry.totals.plus(&group.totals);
            entry.queue_wait.merge(&group.wait);
            entry.transaction.merge(&group.transaction);
            entry.commit.merge(&group.commit);
            entry.parse_hits += group.hits;
        }
    }
    for pool in shared.databases.pools() {
        let counters = &pool.counters;
        workers.server_connects_ok += counters.connects.load(std::sync::atomic::Ordering::Relaxed);
        workers.server_connects_failed +=
            counters.connect_failures.load(std::sync::atomic::Ordering::Relaxed);
        workers.server_logins_failed += counters.login_failures.load(std::sync::atomic::Ordering::Relaxed);
    }
    Scrape {
        state: state(shared),
        databases: databases(shared, &config),
        pools: pools(shared, &parts, Instant::now()),
        work: work.into_values().collect(),
        clusters: clusters(shared, Instant::now()),
        pins,
        workers,
        workers_in_use: u32::try_from(shared.spread.in_use()).expect("there are few workers"),
        worker_connections: shared.spread.connections(),
        exporter: names(shared, &config.settings).await,
    }
}

async fn names(shared: &Arc<Shared>, settings: &Settings) -> Option<Names> {
    if !settings.metrics_pgbouncer_names {
        return None;
    }
    Some(Names {
        lists: snapshot(shared, View::Lists).await.lists,
        max_client_conn: settings.max_client_conn,
        max_user_connections: settings.max_user_connections,
    })
}

fn state(shared: &Shared) -> StateView {
    let is = |flag: &std::sync::atomic::AtomicBool| flag.load(std::sync::atomic::Ordering::Acquire);
    match (is(&shared.lifecycle.paused), is(&shared.lifecycle.suspended)) {
        (true, true) => StateView::Suspended,
        (true, false) => StateView::Paused,
        (false, _) => StateView::Active,
    }
}

fn idle_servers(shared: &Shared, now: Instant) -> Vec<ServerView> {
    let mut views = Vec::new();
    for pool in shared.databases.pools() {
        let epoch = pool.epoch();
        pool.for_each_idle(now, |server, used| {
            let state = if used { ServerState::Used } else { ServerState::Idle };
            let old = server.epoch != epoch || server.is_elsewhere();
            let application_name = application_name(shared, &server.parameters);
            let view = server_view(server, &pool.target, state, None, old);
            views.push(ServerView { application_name, ..view });
        });
    }
    views
}

fn pools(shared: &Shared, parts: &[Part], now: Instant) -> Vec<PoolView> {
    let mut clients: BTreeMap<(&str, &str), (u32, u32)> = BTreeMap::new();
    for group in parts.iter().flat_map(|part| &part.groups) {
        let entry = clients.entry((&group.database, &group.server_user)).or_default();
        entry.0 += group.active;
        entry.1 += group.idle;
    }
    let view = |pool: Arc<crate::pool::Pool>| {
        let counts = pool.counts(now);
        let settings = pool.settings();
        let target = &pool.target;
        let (active, idle) = clients.get(&(&*target.database, &*target.user)).copied().unwrap_or_default();
        PoolView {
            database: target.database.to_string(),
            user: target.user.to_string(),
            clients_active: active + idle,
            clients_idle: idle,
            clients_waiting: u32::try_from(counts.waiting).unwrap_or(u32::MAX),
            servers_active: counts.active,
            servers_idle: counts.idle,
            servers_used: counts.used,
            servers_tested: counts.tested,
            servers_login: counts.login,
            maxwait_us: micros(counts.longest_wait),
            pool_mode: settings.policy.pool_mode.as_str(),
            load_balance_hosts: (settings.endpoints.len() > 1).then(|| settings.load_balance.as_str()),
            pool_size: settings.policy.pool_size,
            ..PoolView::default()
        }
    };
    shared.databases.pools().into_iter().map(view).collect()
}

fn databases(shared: &Shared, config: &Config) -> Vec<DatabaseView> {
    let known: BTreeMap<Arc<str>, Arc<DatabaseEntry>> =
        shared.databases.known().into_iter().map(|entry| (Arc::clone(&entry.name), entry)).collect();
    let mut names: BTreeSet<&str> = config.databases.keys().map(String::as_str).collect();
    names.extend(known.keys().map(|name| &**name));
    names.into_iter().filter_map(|name| database_view(name, known.get(name), config)).collect()
}

fn database_view(name: &str, entry: Option<&Arc<DatabaseEntry>>, config: &Config) -> Option<DatabaseView> {
    let database = config.database(name)?;
    let policy = config.pool_policy(&database, database.user.as_deref().unwrap_or_default());
    let hosts: Vec<String> = database.hosts.iter().map(Host::to_string).collect();
    let flag = |flag: fn(&DatabaseEntry) -> bool| entry.is_some_and(|entry| flag(entry));
    Some(DatabaseView {
        name: name.to_owned(),
        host: (!hosts.is_empty()).then(|| hosts.join(",")),
        port: database.port,
        database: database.server_dbname().to_owned(),
        force_user: database.user.clone(),
        pool_size: policy.pool_size,
        min_pool_size: policy.min_pool_size,
        reserve_pool_size: policy.reserve_pool_size,
        server_lifetime_s: policy.server_lifetime.as_secs(),
        pool_mode: database.pool_mode.map(|mode| mode.as_str()),
        load_balance_hosts: (hosts.len() > 1)
            .then(|| database.load_balance_hosts.unwrap_or(LoadBalanceHosts::RoundRobin).as_str()),
        max_connections: policy.max_db_connections,
        current_connections: entry.map_or(0, |entry| entry.servers.used()),
        max_client_connections: policy.max_db_client_connections,
        current_client_connections: entry.map_or(0, |entry| entry.clients.used()),
        listening_clients: entry.map_or(0, |entry| entry.listening.clients()),
        paused: flag(|entry| entry.paused.load(std::sync::atomic::Ordering::Acquire)),
        disabled: flag(|entry| entry.disabled.load(std::sync::atomic::Ordering::Acquire)),
    })
}

fn users(shared: &Shared, config: &Config) -> Vec<UserView> {
    let known: BTreeMap<_, _> = shared.databases.known_users().into_iter().collect();
    let mut names: BTreeSet<&str> = config.auth_users.keys().map(String::as_str).collect();
    names.extend(config.users.keys().map(String::as_str));
    names.extend(known.keys().map(|name| &**name));
    let view = |name: &str| {
        let own = config.users.get(name);
        let settings = &config.settings;
        let entry = known.get(name);
        UserView {
            name: name.to_owned(),
            pool_size: own.and_then(|user| user.pool_size),
            reserve_pool_size: own.and_then(|user| user.reserve_pool_size),
            pool_mode: own.and_then(|user| user.pool_mode).map(|mode| mode.as_str()),
            max_user_connections: own
                .and_then(|user| user.max_user_connections)
                .unwrap_or(settings.max_user_connections),
            current_connections: entry.map_or(0, |entry| entry.servers.used()),
            max_user_client_connections: own
                .and_then(|user| user.max_user_client_connections)
                .unwrap_or(settings.max_user_client_connections),
            current_client_connections: entry.map_or(0, |entry| entry.clients.used()),
        }
    };
    names.into_iter().map(view).collect()
}

/// Totals by database, as they are and as they were at the beginning of the averages' period. As in
/// PgBouncer every database that has pools is there, the console too.
fn stats(shared: &Shared, parts: &[Part], now: Instant) -> (Vec<StatsView>, Duration) {
    let mut totals = totals(parts);
    for pool in shared.databases.pools() {
        totals.entry(Arc::clone(&pool.target.database)).or_default();
    }
    let period = shared.stats_period.lock();
    let view = |(name, totals): (Arc<str>, Stats)| StatsView {
        older: period.older.get(&name).copied().unwrap_or_default(),
        database: name.to_string(),
        totals,
    };
    let elapsed = since(period.older_at, now);
    (totals.into_iter().map(view).collect(), elapsed)
}

fn totals(parts: &[Part]) -> BTreeMap<Arc<str>, Stats> {
    let mut totals: BTreeMap<Arc<str>, Stats> = BTreeMap::new();
    for group in parts.iter().flat_map(|part| &part.groups) {
        let sum = totals.entry(Arc::clone(&group.database)).or_default();
        *sum = sum.plus(&group.totals);
    }
    let queries = parts.iter().map(|part| part.console_queries).sum();
    let console = Stats { query_count: queries, xact_count: queries, ..Stats::default() };
    totals.insert(CONSOLE_DATABASE.into(), console);
    totals
}

/// Where the averages are counted from.
pub struct StatsPeriod {
    older: BTreeMap<Arc<str>, Stats>,
    older_at: Instant,
    newer: BTreeMap<Arc<str>, Stats>,
    newer_at: Instant,
}

impl StatsPeriod {
    /// Everything begins now.
    pub fn new(now: Instant) -> Self {
        StatsPeriod { older: BTreeMap::new(), older_at: now, newer: BTreeMap::new(), newer_at: now }
    }
}

/// Every `stats_period`: the averages begin one period later. Returns those of the period that ended.
pub async fn end_stats_period(shared: &Arc<Shared>) -> Stats {
    let parts = on_all_workers(shared, |plane| draw(plane, false, false)).await;
    let current = totals(&parts);
    let now = Instant::now();
    let mut period = shared.stats_period.lock();
    let sum = |totals: &BTreeMap<Arc<str>, Stats>| {
        totals.values().fold(Stats::default(), |sum, stats| sum.plus(stats))
    };
    let averages = sum(&current).averages_since(&sum(&period.newer), since(period.newer_at, now));
    period.older = std::mem::replace(&mut period.newer, current);
    period.older_at = std::mem::replace(&mut period.newer_at, now);
    averages
}

fn lists(shared: &Shared, config: &Config, parts: &[Part], snapshot: &Snapshot) -> ListsView {
    let logins: u32 = parts.iter().map(|part| part.logins).sum();
    let pools = &snapshot.pools;
    let free = |pool: &PoolView| pool.servers_idle + pool.servers_used;
    let free_servers: u32 = pools.iter().map(free).sum();
    let used_servers: u32 = pools.iter().map(|pool| pool.servers_active + pool.servers_tested).sum();
    let used_clients: u32 = pools.iter().map(|pool| pool.clients_active + pool.clients_waiting).sum();
    ListsView {
        databases: snapshot.databases.len() as u64,
        users: snapshot.users.len() as u64,
        peers: (!config.serves_pooler).then_some(config.peers.len() as u64),
        pools: pools.len() as u64,
        used_clients: used_clients.into(),
        login_clients: logins.into(),
        free_servers: free_servers.into(),
        used_servers: used_servers.into(),
        peer_pools: (!config.serves_pooler).then_some(snapshot.peer_pools.len() as u64),
        dns_names: snapshot.dns_hosts.len() as u64,
        dns_zones: snapshot.dns_zones.len() as u64,
        dns_queries: shared.databases.dns().queries().into(),
        ..ListsView::default()
    }
}

fn settings(config: &Config) -> Vec<SettingView> {
    let view = |row: crate::config::ConfigRow| SettingView {
        key: row.key.to_owned(),
        value: row.value,
        default: row.default.map(|text| text.into_owned()),
        changeable: row.changeable,
    };
    config.show().into_iter().map(view).collect()
}

/// Our objects under PgBouncer's names; free ones are not kept.
fn memory(snapshot: &Snapshot) -> Vec<MemView> {
    let row = |name, size: usize, used: usize| MemView {
        name,
        size: size as u64,
        used: used as u64,
        free: 0,
        memory_total: (size * used) as u64,
    };
    let servers: u32 = snapshot.pools.iter().map(|pool| pool.servers_active + pool.servers_idle).sum();
    let clients: u32 = snapshot.pools.iter().map(|pool| pool.clients_active + pool.clients_waiting).sum();
    vec![
        row("user_cache", size_of::<super::databases::UserEntry>(), snapshot.users.len()),
        row("db_cache", size_of::<DatabaseEntry>(), snapshot.databases.len()),
        row("pool_cache", size_of::<crate::pool::Pool>(), snapshot.pools.len()),
        row("server_cache", size_of::<ServerConnection>(), servers as usize),
        row("client_cache", size_of::<Session>(), clients as usize),
    ]
}

/// Those of `[peers]`, then those that are watched.
fn peers(config: &Config, watched: &[PeerAddress]) -> Vec<PeerView> {
    let view = |(id, peer): (&u32, &crate::config::Peer)| PeerView {
        peer_id: *id,
        host: Some(peer.host.to_string()),
        port: peer.port,
        pool_size: peer.pool_size.unwrap_or(config.settings.default_pool_size),
    };
    let found = |peer: &PeerAddress| PeerView {
        peer_id: peer.id.map_or(0, u32::from),
        host: Some(peer.address.ip().to_string()),
        port: peer.address.port(),
        pool_size: peers::CONNECTIONS_MAX,
    };
    config.peers.iter().map(view).chain(watched.iter().map(found)).collect()
}
