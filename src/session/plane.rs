//! What sessions stand on: [`Shared`] is one for the process, [`Plane`] one for each worker thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::mpsc::UnboundedSender;

use super::cancel::Canceller;
use super::clusters::Clusters;
use super::console::Consoles;
use super::control::ProcessCommand;
use super::databases::Databases;
use super::keeping::Keeping;
use super::moving::Moving;
use super::options::Wanted;
use super::pam::Pam;
use super::peers::Peers;
use super::replication::without_time_limits;
use super::rules::LoginRules;
use super::spread::{Moves, Spread};
use super::views::StatsPeriod;
use super::{Session, since};
use crate::admin::Stats;
use crate::auth::{Credentials, KeyTails, Likeness, MockKey, ScramSettings, Secret};
use crate::config::{Config, PoolMode, PoolPolicy};
use crate::log::Peer;
use crate::metrics::{Histogram, WorkerMetrics};
use crate::net::{DetachedSocket, READ_MAX};
use crate::pool::quota::Quota;
use crate::pool::{Pool, PoolSettings};
use crate::protocol::intern::Interner;
use crate::protocol::statements;
use crate::protocol::upstream::{Rules, StatementCounts};
use crate::server;
use crate::wire::startup::{CancelKey, Replication};

/// Where a client lives: its worker and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The worker.
    pub worker: u32,
    /// The place in [`Plane::sessions`].
    pub slot: u32,
}

impl Address {
    /// Of a client that is on its way to a worker: no place there.
    pub(super) fn on_the_way_to(worker: usize) -> Address {
        Address { worker: u32::try_from(worker).expect("there are few workers"), slot: u32::MAX }
    }
}

/// What a worker is asked to do by other threads.
#[derive(Debug)]
pub enum Message {
    /// A new connection.
    Client(DetachedSocket, Peer),
    /// A client that comes from another worker.
    Moving(Box<Moving>),
    /// A client's CancelRequest, for a session of this worker.
    Cancel(CancelKey, Address, Canceller),
    /// Do something with the worker's state, and tell the asker when it is done.
    Run(Task),
    /// It is time for [`Plane::tick`], since that moment: how long ago that was says how the worker keeps up.
    Tick(Instant),
}

type Work = dyn FnOnce(&Rc<Plane>) + Send;

/// Work for a worker's thread.
pub struct Task(pub Box<Work>);

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

/// How the process goes on.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// The process will end: it is no longer ready, but still accepts clients.
    pub leaving: AtomicBool,
    /// No new client may log in.
    pub closing: AtomicBool,
    /// Each client is told to go at its next transaction boundary.
    pub draining: AtomicBool,
    /// PAUSE without a database, or SUSPEND.
    pub paused: AtomicBool,
    /// It was SUSPEND that has paused.
    pub suspended: AtomicBool,
}

impl Lifecycle {
    /// Whether a Service should send clients here.
    pub fn is_ready(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && !self.closing.load(Ordering::Acquire)
    }

    /// Whether clients are told to go at their next transaction boundary.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// One for the process.
pub struct Shared {
    /// The settings in force.
    pub config: ArcSwap<Config>,
    /// Databases, their pools and limits.
    pub databases: Databases,
    /// The clusters that are followed.
    pub clusters: Clusters,
    /// Every prepared statement.
    pub statements: statements::Interner,
    /// Tracked parameters, and what servers are opened with.
    pub server: Arc<server::Session>,
    /// What clients ask for in their StartupMessages.
    pub(super) wanted: Interner<Wanted>,
    /// Who may be canceled.
    pub cancel_keys: DashMap<CancelKey, Address>,
    /// The other poolers of our group.
    pub peers: Peers,
    /// The workers' mailboxes.
    pub workers: Vec<UnboundedSender<Message>>,
    /// Which of them the clients live on.
    pub spread: Arc<Spread>,
    /// What only the process as a whole can do.
    pub process: UnboundedSender<ProcessCommand>,
    /// How the process goes on.
    pub lifecycle: Lifecycle,
    /// Clients that are logged in or log in, the console's left out, against `max_client_conn`.
    pub clients: Arc<Quota>,
    /// Clients of the console, against `max_db_client_connections`.
    pub console_clients: Arc<Quota>,
    /// Where the console's averages are counted from.
    pub stats_period: Mutex<StatsPeriod>,
    /// The process's own salt.
    pub mock_key: MockKey,
    /// How clients are to prove who they are.
    pub rules: ArcSwap<LoginRules>,
    /// Long cancel keys of protocol 3.2.
    pub key_tails: KeyTails,
    /// Started when the first client needs it.
    pam: OnceLock<Pam>,
    credentials: Mutex<HashMap<String, Arc<Credentials>>>,
    /// As the users of `auth_file`, or as the last one that `auth_query` found.
    strangers: Mutex<Likeness>,
}

impl Shared {
    /// Everything that the workers share.
    pub fn new(
        config: Config,
        server: Arc<server::Session>,
        databases: Databases,
        workers: Vec<UnboundedSender<Message>>,
        process: UnboundedSender<ProcessCommand>,
        rules: LoginRules,
    ) -> Arc<Self> {
        Arc::new(Shared {
            strangers: Mutex::new(Likeness::of(config.auth_users.values())),
            spread: Arc::new(Spread::new(workers.len(), config.settings.worker_load_max)),
            config: ArcSwap::from_pointee(config),
            databases,
            clusters: Clusters::default(),
            statements: statements::Interner::default(),
            server,
            wanted: Interner::default(),
            cancel_keys: DashMap::new(),
            peers: Peers::default(),
            workers,
            process,
            lifecycle: Lifecycle::default(),
            clients: Arc::default(),
            console_clients: Arc::default(),
            stats_period: Mutex::new(StatsPeriod::new(Instant::now())),
            mock_key: MockKey::new(&mut rand::rng()),
            rules: ArcSwap::from_pointee(rules),
            key_tails: KeyTails::new(&mut rand::rng()),
            pam: OnceLock::new(),
            credentials: Mutex::new(HashMap::new()),
        })
    }

    /// The way to the thread of PAM. Fails when there can be none.
    pub(super) fn pam(&self) -> io::Result<&Pam> {
        match self.pam.get() {
            Some(pam) => Ok(pam),
            None => {
                // Another worker may be quicker: then this thread ends at once, as nobody asks it.
                let started = Pam::start()?;
                Ok(self.pam.get_or_init(|| started))
            }
        }
    }

    /// A user's credentials from `auth_file`; `None` for an unknown user.
    pub fn credentials(&self, user: &str) -> Option<Arc<Credentials>> {
        let config = self.config.load();
        let secret = config.auth_users.get(user)?;
        let mut known = self.credentials.lock();
        let entry =
            known.entry(user.to_owned()).or_insert_with(|| Arc::new(Credentials::new(Secret::parse(secret))));
        Some(Arc::clone(entry))
    }

    /// New settings: what was derived from old secrets is forgotten where they changed.
    pub fn configure(&self, config: Config) {
        let old = self.config.load_full();
        self.credentials.lock().retain(|user, _| old.auth_users.get(user) == config.auth_users.get(user));
        if old.auth_users != config.auth_users {
            *self.strangers.lock() = Likeness::of(config.auth_users.values());
        }
        self.config.store(Arc::new(config));
    }

    /// PostgreSQL has shown a user's secret: what those look like whom it does not know either.
    pub(super) fn has_seen(&self, secret: &Secret) {
        if let Some(likeness) = Likeness::of_one(secret) {
            *self.strangers.lock() = likeness;
        }
    }

    /// `scram_iterations`, the process's salt, and what strangers look like.
    pub fn scram_settings(&self) -> ScramSettings {
        ScramSettings {
            iterations: self.config.load().settings.scram_iterations,
            mock_key: self.mock_key.clone(),
            strangers: *self.strangers.lock(),
        }
    }

    /// A number for a new client; servers have numbers of the same row, as PgBouncer's sockets have.
    pub fn next_client(&self) -> u64 {
        server::next_id()
    }

    /// A key for a new client, entered under its address. The sign bit is clear, as in PgBouncer's, and
    /// our number among our peers is in it, if we have any. A `long` one has a tail, which
    /// [`KeyTails`] makes from it.
    pub fn new_cancel_key(&self, address: Address, long: bool) -> CancelKey {
        let peer_id = self.config.load().peer_id();
        loop {
            let mut bytes: [u8; 8] = rand::random();
            bytes[0] &= 0x7f;
            let key = CancelKey(bytes).with_length(long);
            let key = peer_id.map_or(key, |id| key.with_peer(id));
            if let dashmap::Entry::Vacant(vacant) = self.cancel_keys.entry(key) {
                vacant.insert(address);
                return key;
            }
        }
    }
}

/// What one worker counted for one kind of client: plain numbers, since only its thread writes them.
#[derive(Debug, Default)]
pub struct LocalStats {
    /// PgBouncer's counters.
    pub totals: Stats,
    /// Prepared statements.
    pub statements: StatementCounts,
    /// Time from a query that needs a server to the server.
    pub wait: Histogram,
    /// Time from a server's being lent to its release.
    pub transaction: Histogram,
    /// Time from a COMMIT to its answer.
    pub commit: Histogram,
}

impl LocalStats {
    fn merge(&mut self, other: &LocalStats) {
        self.totals = self.totals.plus(&other.all_totals());
        self.wait.merge(&other.wait);
        self.transaction.merge(&other.transaction);
        self.commit.merge(&other.commit);
        self.statements.hits += other.statements.hits;
    }

    /// The counters, those of prepared statements among them.
    pub fn all_totals(&self) -> Stats {
        let statements = self.statements;
        let counted = Stats {
            client_parse_count: statements.client_parses,
            server_parse_count: statements.server_parses,
            bind_count: statements.binds,
            ..Stats::default()
        };
        self.totals.plus(&counted)
    }
}

/// What one worker's clients of one database and login user have in common.
pub struct Group {
    /// Login user.
    pub user: Arc<str>,
    /// Database as clients know it.
    pub database: Arc<str>,
    /// Where their servers come from.
    pub pool: Arc<Pool>,
    /// When they may be given to another client.
    pub mode: Cell<PoolMode>,
    /// Whether prepared statements are tracked.
    pub tracking: Cell<bool>,
    /// Whether the reset query runs at each release.
    pub reset_always: Cell<bool>,
    /// What becomes of what they make of their sessions.
    pub keeping: Cell<Keeping>,
    /// What they may send: `max_packet_size` and `disable_pqexec`.
    pub rules: Cell<Rules>,
    /// The pool's settings.
    pub settings: RefCell<Arc<PoolSettings>>,
    /// The rules for this login user, and the configuration that they are from.
    policy: RefCell<(PoolPolicy, Arc<Config>)>,
    /// Whether they are replication connections, which keep their servers whatever the pool's mode is.
    pub replication: Replication,
    /// What they did.
    pub stats: RefCell<LocalStats>,
}

impl Group {
    fn new(
        user: &str,
        database: &str,
        pool: Arc<Pool>,
        replication: Replication,
        config: &Arc<Config>,
    ) -> Rc<Self> {
        let settings = arc_swap::Guard::into_inner(pool.settings());
        let group = Group {
            policy: RefCell::new((settings.policy.clone(), Arc::new(Config::default()))),
            user: user.into(),
            database: database.into(),
            pool,
            mode: Cell::new(PoolMode::Session),
            tracking: Cell::new(false),
            reset_always: Cell::new(false),
            keeping: Cell::default(),
            rules: Cell::default(),
            settings: RefCell::new(Arc::clone(&settings)),
            replication,
            stats: RefCell::default(),
        };
        group.configure(settings);
        group.refresh(config);
        Rc::new(group)
    }

    /// Takes over new settings after a RELOAD.
    pub fn refresh(&self, config: &Arc<Config>) {
        let settings = arc_swap::Guard::into_inner(self.pool.settings());
        if !Arc::ptr_eq(&settings, &self.settings.borrow()) {
            self.configure(settings);
        }
        if Arc::ptr_eq(config, &self.policy.borrow().1) {
            return;
        }
        self.keeping.set(Keeping::new(config));
        self.rules.set(Rules {
            message_max: config.settings.max_packet_size as usize,
            simple_queries: !config.settings.disable_pqexec,
        });
        if let Some(database) = config.database(&self.database) {
            let policy = config.pool_policy(&database, &self.user);
            let policy = match self.replication {
                Replication::None => policy,
                Replication::Logical | Replication::Physical => without_time_limits(policy),
            };
            *self.policy.borrow_mut() = (policy, Arc::clone(config));
        }
    }

    /// The rules for this login user.
    pub fn policy(&self) -> Ref<'_, PoolPolicy> {
        Ref::map(self.policy.borrow(), |(policy, _)| policy)
    }

    fn configure(&self, settings: Arc<PoolSettings>) {
        let is_ordinary = self.replication == Replication::None;
        self.mode.set(if is_ordinary { settings.policy.pool_mode } else { PoolMode::Session });
        self.tracking.set(is_ordinary && settings.statements_max > 0);
        self.reset_always.set(settings.reset_always && !settings.reset_query.is_empty());
        *self.settings.borrow_mut() = settings;
    }
}

/// Buffers of a thread, used inside one poll and never across an await.
pub struct Scratch {
    /// What a read brings.
    pub read: Box<[u8]>,
    /// Edited bytes on their way out.
    pub out: Vec<u8>,
    /// What an idle server may have said.
    pub aside: [u8; 512],
}

/// Login user, database, what they connect for, and the pool: after a RELOAD clients of before may have another one than
/// those that log in from then on.
type GroupKey = (Arc<str>, Arc<str>, Replication, *const Pool);

/// One for each worker thread.
pub struct Plane {
    /// The worker's number.
    pub worker: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The thread's sessions, by slot.
    pub sessions: RefCell<Slab<Rc<RefCell<Session>>>>,
    /// The thread's buffers.
    pub scratch: RefCell<Scratch>,
    /// Logins, cancels and errors.
    pub metrics: RefCell<WorkerMetrics>,
    /// Connections that are not logged in yet, for SHOW LISTS.
    pub logins: Cell<u32>,
    /// The console's clients.
    pub consoles: Consoles,
    /// Cancel requests on their way to a server.
    pub cancels: Cell<u32>,
    groups: RefCell<HashMap<GroupKey, Rc<Group>>>,
    /// The processor time of its thread, and when it was so much.
    busy_at: Cell<(Duration, Instant)>,
    /// The place in `sessions` where the next choice of who moves begins.
    bind_first: Cell<usize>,
    /// By database, what the clients of pools did that are gone.
    pub left: RefCell<HashMap<Arc<str>, LocalStats>>,
}

impl Plane {
    /// The state of a new worker.
    pub fn new(worker: usize, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Plane {
            worker,
            shared,
            sessions: RefCell::new(Slab::new()),
            scratch: RefCell::new(Scratch {
                read: vec![0; READ_MAX].into(),
                out: Vec::with_capacity(READ_MAX / 4),
                aside: [0; 512],
            }),
            metrics: RefCell::default(),
            logins: Cell::new(0),
            consoles: Consoles::default(),
            cancels: Cell::new(0),
            groups: RefCell::default(),
            busy_at: Cell::new((Duration::ZERO, Instant::now())),
            bind_first: Cell::new(0),
            left: RefCell::default(),
        })
    }

    /// What clients of this user and database share on this worker.
    pub fn group(&self, user: &str, database: &str, pool: &Arc<Pool>, replication: Replication) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        let key = (Arc::from(user), Arc::from(database), replication, Arc::as_ptr(pool));
        let config = self.shared.config.load_full();
        let new = || Group::new(user, database, Arc::clone(pool), replication, &config);
        let group = groups.entry(key).or_insert_with(new);
        group.refresh(&config);
        Rc::clone(group)
    }

    /// A connection of this worker has ended.
    pub fn disconnected(&self) {
        self.shared.spread.left(self.worker);
    }

    /// Every group of this worker.
    pub fn groups(&self) -> Vec<Rc<Group>> {
        self.groups.borrow().values().cloned().collect()
    }

    /// Takes over new settings after a RELOAD, for all clients of this worker.
    pub fn refresh(&self) {
        let config = self.shared.config.load_full();
        self.groups().iter().for_each(|group| group.refresh(&config));
    }

    /// Several times a second: pools' upkeep, and clients whose time is over.
    pub fn tick(&self, now: Instant) {
        self.note_busy(now);
        let mut seen = BTreeSet::new();
        let config = self.shared.config.load_full();
        self.let_groups_go();
        let groups = self.groups();
        // Pools without a session too: a login may wait for them, and their servers grow old.
        let pools = groups.iter().map(|group| Arc::clone(&group.pool)).chain(self.shared.databases.pools());
        for group in &groups {
            group.refresh(&config);
            // One reference is ours, one the table's; a session has one too.
            if Rc::strong_count(group) > 2 {
                group.pool.note_used(now);
            }
        }
        for pool in pools {
            if seen.insert(Arc::as_ptr(&pool)) {
                pool.tick(self.worker, now);
            }
        }
        for (_, session) in self.sessions.borrow().iter() {
            let mut session = session.borrow_mut();
            session.check_time(now);
            session.stay();
        }
        if let Some(moves) = self.shared.spread.surplus(self.worker) {
            self.bind(moves);
        }
    }

    /// Chooses who moves: first those who can at once, then others, each time other ones of these, as they may be in
    /// their transactions for long.
    fn bind(&self, moves: Moves) {
        let sessions = self.sessions.borrow();
        let first = self.bind_first.get() % sessions.len().max(1);
        self.bind_first.set(first + 1);
        let in_turn = || sessions.iter().skip(first).chain(sessions.iter().take(first));
        let mut left = moves.count as usize;
        for at_once in [true, false] {
            let bound = in_turn().filter(|(_, session)| session.borrow_mut().bind_for(moves.to, at_once));
            left -= bound.take(left).count();
        }
    }

    /// What this worker's thread had of its core since the last time.
    fn note_busy(&self, now: Instant) {
        let Ok(had) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from) else { return };
        let (had_before, then) = self.busy_at.get();
        let took = since(then, now);
        if took > Self::TICK / 2 {
            self.busy_at.set((had, now));
            self.shared.spread.note_busy(self.worker, had.saturating_sub(had_before), took);
        }
    }

    /// A group goes with its last client, be there another one soon. What was counted stays, for as long as its database
    /// does.
    fn let_groups_go(&self) {
        let databases = &self.shared.databases;
        let mut left = self.left.borrow_mut();
        left.retain(|database, _| databases.is_known(database));
        self.groups.borrow_mut().retain(|(_, database, ..), group| {
            let stays = Rc::strong_count(group) > 1;
            if !stays && databases.is_known(database) {
                left.entry(Arc::clone(database)).or_default().merge(&group.stats.borrow());
            }
            stays
        });
    }

    /// How often [`Plane::tick`] is due.
    pub const TICK: Duration = Duration::from_millis(100);
}
