//! The databases that clients ask for: their pools, their limits, and whether they are paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;

use super::plane::Shared;
use crate::auth::{Password, Proof, ServerSecret};
use crate::config::{CheckQuery, Cluster, Config, Database, Host, LoadBalanceHosts, PoolMode, Role};
use crate::net::dns::Dns;
use crate::net::endpoint::{Dialing, Endpoint, TcpOptions};
use crate::net::tls::Tls;
use crate::pool::access::Routes;
use crate::pool::listening::Listening;
use crate::pool::quota::Quota;
use crate::pool::{OpenRequest, Pool, PoolSettings, Target};
use crate::server;

/// No database and no pool is dropped sooner after its last use: a login may still be on its way there.
const IDLE_MIN: Duration = Duration::from_millis(500);

/// How often it is looked for what nobody uses, and at host names.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One database, for as long as anybody has used it.
#[derive(Debug)]
pub struct DatabaseEntry {
    /// Its name, as clients know it.
    pub name: Arc<str>,
    /// `max_db_connections`
    pub servers: Arc<Quota>,
    /// `max_db_client_connections`
    pub clients: Arc<Quota>,
    /// After PAUSE or KILL.
    pub paused: AtomicBool,
    /// After DISABLE.
    pub disabled: AtomicBool,
    /// Whether a server of it was ever logged in to, by a pool that is gone.
    served: AtomicBool,
    /// When it was last seen to be used.
    used_at: Mutex<Instant>,
    /// Who listens to what, and the connection that does so for all of them.
    pub listening: Arc<Listening>,
    pools: Mutex<BTreeMap<Arc<str>, Arc<Pool>>>,
}

impl DatabaseEntry {
    /// Its pools, one for each user.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.lock().values().cloned().collect()
    }

    /// Whether it has neither clients nor servers.
    fn is_unused(&self) -> bool {
        let idle = |pool: &Arc<Pool>| pool.is_empty() && !pool.has_waiters();
        self.clients.used() == 0 && self.servers.used() == 0 && self.pools.lock().values().all(idle)
    }

    /// How long it has had neither clients nor servers. One that PAUSE or DISABLE was said of is in use: the
    /// administrator's word must not be lost.
    fn unused_for(&self, now: Instant) -> Duration {
        let is_held = self.paused.load(Ordering::Acquire) || self.disabled.load(Ordering::Acquire);
        let mut used_at = self.used_at.lock();
        if is_held || !self.is_unused() {
            *used_at = now;
        }
        now.saturating_duration_since(*used_at)
    }

    /// Whether none of its pools has ever reached a server, and none is waiting for the next try.
    fn is_hopeless(&self, now: Instant) -> bool {
        !self.served.load(Ordering::Relaxed) && !self.pools.lock().values().any(|pool| pool.is_promising(now))
    }

    /// Frees the pools that have had neither clients nor servers for so long.
    fn free_pools(&self, timeout: Duration, now: Instant) {
        self.pools.lock().retain(|_, pool| {
            if pool.unused_for(now) <= timeout.max(IDLE_MIN) {
                return true;
            }
            self.served.fetch_or(pool.welcome().is_some(), Ordering::Relaxed);
            pool.retire();
            false
        });
    }

    /// PAUSE, KILL and RESUME.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        for pool in self.pools() {
            pool.set_paused(paused);
        }
    }
}

/// One user's limits.
#[derive(Debug, Default)]
pub struct UserEntry {
    /// `max_user_connections`
    pub servers: Arc<Quota>,
    /// `max_user_client_connections`
    pub clients: Arc<Quota>,
}

/// All databases and users that anybody has used.
pub struct Databases {
    databases: RwLock<BTreeMap<Arc<str>, Arc<DatabaseEntry>>>,
    users: RwLock<BTreeMap<Arc<str>, Arc<UserEntry>>>,
    routes: RwLock<BTreeMap<Arc<str>, Arc<Routes>>>,
    server: Arc<server::Session>,
    openers: Arc<[UnboundedSender<OpenRequest>]>,
    tls: ArcSwap<Tls>,
    dns: Arc<Dns>,
    /// When [`Databases::tick`] last did something.
    looked_at: Mutex<Option<Instant>>,
}

impl Databases {
    /// None yet. `openers` has one sender for each worker.
    pub fn new(
        server: Arc<server::Session>,
        openers: Arc<[UnboundedSender<OpenRequest>]>,
        tls: Tls,
        dns: Arc<Dns>,
    ) -> Self {
        Databases {
            databases: RwLock::default(),
            users: RwLock::default(),
            routes: RwLock::default(),
            server,
            openers,
            tls: ArcSwap::from_pointee(tls),
            dns,
            looked_at: Mutex::new(None),
        }
    }

    /// Who knows the addresses of names.
    pub fn dns(&self) -> &Arc<Dns> {
        &self.dns
    }

    /// About once a second, lets go of what nobody uses and has names looked up again.
    pub fn tick(&self, config: &Config, now: Instant) {
        let mut last = self.looked_at.lock();
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOOK_EVERY) {
            return;
        }
        *last = Some(now);
        drop(last);
        self.drop_idle(config, now);
        self.known().iter().for_each(|entry| entry.listening.tick());
        self.forget_users(config);
        self.tick_dns(config, now);
    }

    /// Names whose servers are in use are looked up again when their time is over.
    fn tick_dns(&self, config: &Config, now: Instant) {
        let mut configured = BTreeSet::new();
        let mut used = BTreeSet::new();
        for pool in self.pools() {
            let sites = pool.sites();
            let names = sites.iter().filter_map(|site| site.endpoint.host.tcp_name());
            let names: BTreeSet<String> = names.map(str::to_owned).collect();
            if !pool.is_empty() {
                used.extend(names.iter().cloned());
            }
            configured.extend(names);
        }
        configured.extend(config.peers.values().filter_map(|peer| peer.host.tcp_name()).map(str::to_owned));
        configured.extend(config.settings.peers_dns.iter().map(|name| name.host.clone()));
        self.dns.tick(&configured, &used, now);
    }

    /// How connections are encrypted.
    pub fn tls(&self) -> arc_swap::Guard<Arc<Tls>> {
        self.tls.load()
    }

    /// New certificates and wishes, for the logins and servers to come; [`Databases::configure`] then
    /// sees to the pools.
    pub fn set_tls(&self, tls: Tls) {
        self.tls.store(Arc::new(tls));
    }

    /// How the servers of a cluster, or of none, are dialled.
    pub fn dialing(&self, config: &Config, cluster: Option<&Cluster>) -> Dialing {
        let settings = &config.settings;
        let of_cluster = || cluster.map(|cluster| format!("{}-rw", cluster.object_name()));
        Dialing {
            tcp: TcpOptions::new(settings),
            tls: self.tls.load().connector.clone(),
            tls_name: settings.server_tls_name.clone().or_else(of_cluster),
            dns: Some(Arc::clone(&self.dns)),
        }
    }

    /// The database of this name, entered if need be.
    pub fn database(&self, name: &str) -> Arc<DatabaseEntry> {
        if let Some(known) = self.databases.read().get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        let entry = || {
            Arc::new(DatabaseEntry {
                name: Arc::clone(&name),
                servers: Arc::default(),
                clients: Arc::default(),
                paused: AtomicBool::new(false),
                disabled: AtomicBool::new(false),
                served: AtomicBool::new(false),
                used_at: Mutex::new(Instant::now()),
                listening: Arc::default(),
                pools: Mutex::default(),
            })
        };
        Arc::clone(self.databases.write().entry(Arc::clone(&name)).or_insert_with(entry))
    }

    /// The user of this name, entered if need be.
    pub fn user(&self, name: &str) -> Arc<UserEntry> {
        if let Some(known) = self.users.read().get(name) {
            return Arc::clone(known);
        }
        Arc::clone(self.users.write().entry(name.into()).or_default())
    }

    /// Lets go of users that no settings name, and that have neither clients nor pools.
    fn forget_users(&self, config: &Config) {
        // Clients and pools hold a quota each, and who is about to hold one holds the entry.
        let is_free = |entry: &Arc<UserEntry>| {
            let held = [&entry.clients, &entry.servers].map(Arc::strong_count);
            Arc::strong_count(entry) == 1 && held == [1, 1]
        };
        self.users.write().retain(|name, entry| config.names_user(name) || !is_free(entry));
    }

    /// The databases that anybody has used.
    pub fn known(&self) -> Vec<Arc<DatabaseEntry>> {
        self.databases.read().values().cloned().collect()
    }

    /// The users that anybody has used.
    pub fn known_users(&self) -> Vec<(Arc<str>, Arc<UserEntry>)> {
        let users = self.users.read();
        users.iter().map(|(name, entry)| (Arc::clone(name), Arc::clone(entry))).collect()
    }

    /// Every pool.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.known().iter().flat_map(|database| database.pools()).collect()
    }

    /// Lets go of a database that nobody uses, and that no settings name. Returns whether it did.
    pub fn forget_unused(&self, name: &str) -> bool {
        let mut databases = self.databases.write();
        if !databases.get(name).is_some_and(|entry| entry.is_unused()) {
            return false;
        }
        let Some(entry) = databases.remove(name) else { return false };
        entry.pools().iter().for_each(|pool| pool.retire());
        true
    }

    /// Tables or types of a database are other ones now.
    pub fn redefine(&self, database: &str) {
        for pool in self.database(database).pools() {
            pool.definitions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there is a database of this name.
    pub fn is_known(&self, name: &str) -> bool {
        self.databases.read().contains_key(name)
    }

    /// Whether DISABLE was said of it.
    pub fn is_disabled(&self, name: &str) -> bool {
        self.databases.read().get(name).is_some_and(|entry| entry.disabled.load(Ordering::Acquire))
    }

    /// Works on a database, entered if need be, while nobody can drop it.
    pub fn with_database<T>(&self, name: &str, work: impl FnOnce(&Arc<DatabaseEntry>) -> T) -> T {
        loop {
            let entry = self.database(name);
            let databases = self.databases.read();
            if databases.get(name).is_some_and(|known| Arc::ptr_eq(known, &entry)) {
                return work(&entry);
            }
        }
    }

    /// `autodb_idle_timeout` and `pool_idle_timeout`. A database of `*` that no server knows is kept no longer
    /// than `server_login_retry`: anyone may think of a name.
    fn drop_idle(&self, config: &Config, now: Instant) {
        let settings = &config.settings;
        for entry in self.known() {
            let unused_for = entry.unused_for(now);
            let is_over = limit(settings.autodb_idle_timeout).is_some_and(|timeout| unused_for > timeout);
            let is_idle = unused_for > IDLE_MIN && (is_over || entry.is_hopeless(now));
            if is_idle && config.is_automatic(&entry.name) && self.forget_unused(&entry.name) {
                log_dropping(&entry.name);
            } else if let Some(timeout) = limit(settings.pool_idle_timeout) {
                entry.free_pools(timeout, now);
            }
        }
    }

    /// The pool of a user at the server, if there is one already.
    fn existing(&self, database: &str, user: &str) -> Option<Arc<Pool>> {
        self.databases.read().get(database)?.pools.lock().get(user).map(Arc::clone)
    }

    /// The pool of one login user at one database.
    pub fn pool(
        &self,
        config: &Config,
        database: &Database,
        user: &str,
        secret: Arc<ServerSecret>,
        paused: bool,
    ) -> Arc<Pool> {
        let enter = |entry: &Arc<DatabaseEntry>| self.pool_of(entry, config, database, user, secret, paused);
        let (pool, is_new) = self.with_database(&database.name, enter);
        if is_new {
            // After it is in the table: a change that comes now is told to it by the follower.
            self.route(&pool, 0);
        }
        pool
    }

    /// See [`Databases::pool`]; the second value says whether it was made now.
    fn pool_of(
        &self,
        entry: &Arc<DatabaseEntry>,
        config: &Config,
        database: &Database,
        user: &str,
        secret: Arc<ServerSecret>,
        paused: bool,
    ) -> (Arc<Pool>, bool) {
        let now = Instant::now();
        let server_user: Arc<str> = database.user.as_deref().unwrap_or(user).into();
        let mut pools = entry.pools.lock();
        if let Some(pool) = pools.get(&server_user) {
            pool.set_secret(secret);
            pool.note_used(now);
            return (Arc::clone(pool), false);
        }
        let settings = self.pool_settings(config, database, &server_user);
        let user_entry = self.user(&server_user);
        entry.servers.set_limit(settings.policy.max_db_connections);
        user_entry.servers.set_limit(settings.policy.max_user_connections);
        let pool = Pool::new(
            Target { database: Arc::clone(&entry.name), user: Arc::clone(&server_user) },
            settings,
            Arc::clone(&self.server),
            secret,
            [Arc::clone(&entry.servers), Arc::clone(&user_entry.servers)],
            Arc::clone(&self.openers),
            now,
        );
        if paused || entry.paused.load(Ordering::Acquire) {
            pool.set_paused(true);
        }
        pools.insert(server_user, Arc::clone(&pool));
        (pool, true)
    }

    /// The routes of a cluster, made when they are first asked for.
    pub fn routes(&self, cluster: &str) -> Arc<Routes> {
        if let Some(known) = self.routes.read().get(cluster) {
            return Arc::clone(known);
        }
        Arc::clone(self.routes.write().entry(cluster.into()).or_default())
    }

    /// The pools of one role of a cluster.
    pub fn pools_of(&self, cluster: &str, role: Role) -> Vec<Arc<Pool>> {
        let is_meant = |pool: &Arc<Pool>| {
            pool.settings().cluster.as_ref().is_some_and(|(name, of)| **name == *cluster && *of == role)
        };
        self.pools().into_iter().filter(is_meant).collect()
    }

    /// Tells a pool of a cluster where it may open servers now.
    fn route(&self, pool: &Arc<Pool>, worker: usize) {
        if let Some((cluster, _)) = &pool.settings().cluster {
            pool.route(&self.routes(cluster), worker);
        }
    }

    /// Tells every pool of the cluster where it may open servers now.
    pub fn route_all(&self, cluster: &str) {
        for (turn, pool) in self.pools().iter().enumerate() {
            if pool.settings().cluster.as_ref().is_some_and(|(name, _)| **name == *cluster) {
                self.route(pool, turn % self.openers.len());
            }
        }
    }

    /// After a RELOAD: new settings for every pool. Returns the databases that are gone.
    pub fn configure(&self, config: &Config) -> Vec<Arc<DatabaseEntry>> {
        self.dns.configure(&config.settings);
        let mut gone = Vec::new();
        for entry in self.known() {
            let Some(database) = config.database(&entry.name) else {
                self.databases.write().remove(&entry.name);
                for pool in entry.pools() {
                    pool.retire();
                }
                gone.push(entry);
                continue;
            };
            for pool in entry.pools() {
                let settings = self.pool_settings(config, &database, &pool.target.user);
                entry.servers.set_limit(settings.policy.max_db_connections);
                self.user(&pool.target.user).servers.set_limit(settings.policy.max_user_connections);
                let moved = settings.cluster != pool.settings().cluster;
                pool.configure(settings);
                if moved {
                    self.route(&pool, 0);
                }
            }
        }
        gone
    }

    fn pool_settings(&self, config: &Config, database: &Database, user: &str) -> PoolSettings {
        let settings = &config.settings;
        let policy = config.pool_policy(database, user);
        let endpoint = |host: &Host| Arc::new(Endpoint { host: host.clone(), port: database.port });
        let parameters = [
            ("client_encoding", &database.client_encoding),
            ("datestyle", &database.datestyle),
            ("timezone", &database.timezone),
            ("application_name", &database.application_name),
        ];
        let cluster =
            config.cluster(database).map(|(cluster, role)| (Arc::from(cluster.name.as_str()), role));
        let given =
            parameters.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        // Who reads may be sent to the primary too, and must not write there either.
        let reads = cluster.as_ref().is_some_and(|(_, role)| *role != Role::ReadWrite);
        let read_only = reads.then(|| ("default_transaction_read_only".to_owned(), "on".to_owned()));
        PoolSettings {
            endpoints: config.hosts(database).iter().map(endpoint).collect(),
            load_balance: database.load_balance_hosts.unwrap_or(LoadBalanceHosts::RoundRobin),
            database: database.server_dbname().to_owned(),
            parameters: given.chain(read_only).collect(),
            cluster,
            connect_query: database.connect_query.clone(),
            dialing: self.dialing(config, config.cluster(database).map(|(cluster, _)| cluster)),
            connect_timeout: limit(settings.server_connect_timeout),
            login_retry: settings.server_login_retry,
            idle_timeout: limit(settings.server_idle_timeout),
            check_query: match &settings.server_check_query {
                CheckQuery::Off => None,
                CheckQuery::Query(query) => Some(query.clone()),
            },
            check_delay: settings.server_check_delay,
            reset_query: settings.server_reset_query.clone().unwrap_or_default(),
            reset_always: settings.server_reset_query_always,
            reserve_after: limit(settings.reserve_pool_timeout),
            round_robin: settings.server_round_robin,
            statements_max: match policy.pool_mode {
                // The server is the client's own: names mean what the client says.
                PoolMode::Session => 0,
                PoolMode::Transaction | PoolMode::Statement => settings.max_prepared_statements as usize,
            },
            policy,
        }
    }

    /// Under a limit that pools share, one pool's idle servers go for another pool's waiters.
    pub fn share_limits(&self, now: Instant) {
        for entry in self.known() {
            let is_wanted = entry.servers.is_full() && make_room(&entry.pools(), now);
            entry.servers.set_claimed(is_wanted);
        }
        let users = self.users.read();
        let mut full = Vec::new();
        for (name, user) in users.iter() {
            match user.servers.is_full() {
                true => full.push((Arc::clone(name), Arc::clone(&user.servers))),
                false => user.servers.set_claimed(false),
            }
        }
        drop(users);
        for (name, servers) in full {
            let mut pools = self.pools();
            pools.retain(|pool| pool.target.user == name);
            servers.set_claimed(make_room(&pools, now));
        }
    }
}

/// `min_pool_size` of the databases that force a user: their servers are there before any client is.
pub fn keep_ready(shared: &Shared) {
    let config = shared.config.load_full();
    for database in config.databases.values() {
        let Some(user) = database.user.as_deref() else { continue };
        let wanted = config.pool_policy(database, user).min_pool_size > 0;
        if !wanted || config.hosts(database).is_empty() {
            continue;
        }
        if shared.databases.existing(&database.name, user).is_none() {
            let paused = shared.lifecycle.paused.load(Ordering::Acquire);
            shared.databases.pool(&config, database, user, forced_secret(shared, database, user), paused);
        }
    }
}

fn forced_secret(shared: &Shared, database: &Database, user: &str) -> Arc<ServerSecret> {
    match (&database.password, shared.credentials(user)) {
        (Some(password), _) => Arc::new(ServerSecret::plain(Password::new(password.expose()))),
        (None, Some(credentials)) => credentials.server_secret(&Proof::default()),
        (None, None) => Arc::new(ServerSecret::None),
    }
}

/// PgBouncer's line about a database that is no more.
pub fn log_dropping(name: &str) {
    tracing::warn!("dropping database '{name}' as it does not exist anymore or inactive auto-database");
}

/// Closes an idle server of one of the pools if another one waits for a server. Returns whether one does.
fn make_room(pools: &[Arc<Pool>], now: Instant) -> bool {
    let is_wanted = pools.iter().any(|pool| pool.wants_server(now));
    if is_wanted {
        // One at a time: the next look, a moment later, takes another one.
        let _ = pools.iter().any(|pool| !pool.has_waiters() && pool.evict_idle());
    }
    is_wanted
}

fn limit(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}
