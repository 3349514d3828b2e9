//! WHO WAITS. Server connections shared among clients.
//!
//! [`state`] is the ledger; [`Pool`] is its asynchronous face: it opens servers, lends them as a
//! [`Lease`], and lets clients wait in a queue that is first come, first served across all workers.
//! Dropping a lease closes the server; only [`Lease::release`] returns it.

pub mod access;
mod berth;
mod lease;
pub mod listening;
mod opening;
pub mod quota;
pub mod state;
mod upkeep;
mod wait;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use crate::auth::ServerSecret;
use crate::config::{LoadBalanceHosts, PoolPolicy, Role};
use crate::error::SqlError;
use crate::metrics::micros;
use crate::net::endpoint::{Dialing, Endpoint};
use crate::protocol::functions::Functions;
use crate::server::login::Welcome;
use crate::server::{ServerConnection, Session};
use access::{Access, Seat, Site};
pub use berth::Berth;
pub use lease::Lease;
use lease::close_lent;
use quota::{Permit, Quota};
use state::{Lent, Limits, PoolState, Ticket};
use wait::Slot;
pub use wait::Waiting;

/// What a client asks for: the pool's key, never an address, so that waiters stay where they are
/// when the server moves.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The database's name as clients know it.
    pub database: Arc<str>,
    /// The user at the server.
    pub user: Arc<str>,
}

/// All that a RELOAD may change about a pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Mode, sizes and time limits.
    pub policy: PoolPolicy,
    /// Where the servers are, for a database without a cluster.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// `load_balance_hosts`: which of them is next.
    pub load_balance: LoadBalanceHosts,
    /// The cluster that they belong to, and what the clients want of it.
    pub cluster: Option<(Arc<str>, Role)>,
    /// Name of the database at the server.
    pub database: String,
    /// Startup parameters toward the server.
    pub parameters: Vec<(String, String)>,
    /// `connect_query`
    pub connect_query: Option<String>,
    /// The `tcp_*` and `server_tls_*` settings.
    pub dialing: Dialing,
    /// `server_connect_timeout`
    pub connect_timeout: Option<Duration>,
    /// `server_login_retry`
    pub login_retry: Duration,
    /// `server_idle_timeout`
    pub idle_timeout: Option<Duration>,
    /// `server_check_query`; `None` is off.
    pub check_query: Option<String>,
    /// `server_check_delay`
    pub check_delay: Duration,
    /// `server_reset_query`, empty for none.
    pub reset_query: String,
    /// `server_reset_query_always`
    pub reset_always: bool,
    /// `reserve_pool_timeout`
    pub reserve_after: Option<Duration>,
    /// `server_round_robin`
    pub round_robin: bool,
    /// `max_prepared_statements`, 0 in session mode.
    pub statements_max: usize,
}

impl PoolSettings {
    fn limits(&self) -> Limits {
        Limits {
            size: match self.policy.pool_size {
                0 => u32::MAX,
                size => size,
            },
            reserve: self.policy.reserve_pool_size,
            reserve_after: self.reserve_after,
            round_robin: self.round_robin,
        }
    }

    fn empty_ledger<S, W>(&self, workers: usize) -> PoolState<S, W> {
        let mut state = PoolState::new(self.limits(), workers);
        state.set_held(self.cluster.is_some());
        state.set_spread(self.is_spread());
        state
    }

    /// Whether servers of several hosts share the work.
    fn is_spread(&self) -> bool {
        self.endpoints.len() > 1 && self.load_balance == LoadBalanceHosts::RoundRobin
    }

    /// Where the servers are of a database without a cluster. One of a cluster is told by the follower.
    fn fixed_access(&self) -> Access {
        if self.cluster.is_some() {
            return Access { sites: Vec::new(), held: Some("nothing is known of the cluster yet".into()) };
        }
        let sites = self.endpoints.iter().map(|endpoint| Site::fixed(Arc::clone(endpoint))).collect();
        Access { sites, held: None }
    }

    /// Whether servers opened with the other settings are of no more use.
    fn leads_elsewhere(&self, other: &PoolSettings) -> bool {
        self.endpoints != other.endpoints
            || self.cluster != other.cluster
            || self.database != other.database
            || self.parameters != other.parameters
            || self.connect_query != other.connect_query
            || !self.dialing.has_tls_of(&other.dialing)
    }
}

/// A server, and what it holds for as long as it is open.
#[derive(Debug)]
struct Pooled {
    server: ServerConnection,
    loan: Loan,
    membership: Membership,
    seat: Seat,
    _permits: [Permit; 2],
}

/// A server's place among those of its epoch. The pool holds its idle servers, and each server its
/// pool: closing a server ends the circle.
#[derive(Debug)]
struct Membership {
    pool: Arc<Pool>,
    epoch: u64,
}

impl Membership {
    fn new(pool: &Arc<Pool>, epoch: u64) -> Self {
        *pool.members.lock().entry(epoch).or_default() += 1;
        Membership { pool: Arc::clone(pool), epoch }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.pool.members.lock();
        if let Some(count) = members.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                members.remove(&self.epoch);
            }
        }
    }
}

/// What is known of the present loan of a server.
#[derive(Clone, Copy, Debug)]
pub struct Loan {
    /// When the transaction began.
    pub began: Instant,
    /// When the oldest unanswered query was sent; `None` while none is.
    pub query_began: Option<Instant>,
    /// When the last answer was complete.
    pub quiet_since: Instant,
    /// The server was found to have said nothing, and its waker is registered, in the poll that began the loan.
    pub silent: bool,
    /// Parameters were sent ahead that no server has accepted yet: the client's bytes wait.
    pub proving: bool,
    /// The client said Terminate; what it asked before is still answered.
    pub closing: bool,
    /// The server sent a FATAL error.
    pub fatal_seen: bool,
    /// How many transactions of this loan have ended.
    pub transactions: u32,
    /// A client has got the server, and not only a login that looked whether there is one.
    pub used: bool,
}

impl Loan {
    fn new(now: Instant) -> Self {
        Loan {
            began: now,
            query_began: Some(now),
            quiet_since: now,
            silent: false,
            proving: false,
            closing: false,
            fatal_seen: false,
            transactions: 0,
            used: false,
        }
    }
}

/// The last attempt to open a server failed.
#[derive(Clone, Debug)]
struct Failure {
    at: Instant,
    /// The server's own refusal; `None` when there was none, but no connection either.
    refusal: Option<SqlError>,
}

/// After so much idleness the kernel is asked whether a server is still there: the event loop may not have
/// heard yet of one that has just died. A busy pool's servers are never idle for so long.
const LOOK_AFTER: Duration = Duration::from_millis(5);

const DIED_IDLE: &str = "server conn crashed?";

/// Why a server is closed that came back to a pool which is paused, or has become too small.
const NOT_WANTED: &str = "server connection is no longer wanted";

/// A request to a worker: open a server for this pool.
pub type OpenRequest = Arc<Pool>;

/// The settings that each loan looks at, in microseconds.
#[derive(Debug)]
struct QuickSettings {
    /// Idle servers are checked when they were idle for longer; `u64::MAX` is never.
    check_after_us: AtomicU64,
    lifetime_us: AtomicU64,
    statements_max: AtomicUsize,
}

impl QuickSettings {
    fn new(settings: &PoolSettings) -> Self {
        let quick = QuickSettings {
            check_after_us: AtomicU64::new(0),
            lifetime_us: AtomicU64::new(0),
            statements_max: AtomicUsize::new(0),
        };
        quick.store(settings);
        quick
    }

    fn store(&self, settings: &PoolSettings) {
        let check_after = settings.check_query.as_ref().map_or(u64::MAX, |_| micros(settings.check_delay));
        self.check_after_us.store(check_after, Ordering::Relaxed);
        self.lifetime_us.store(micros(settings.policy.server_lifetime), Ordering::Relaxed);
        self.statements_max.store(settings.statements_max, Ordering::Relaxed);
    }
}

/// Counters of rare events.
#[derive(Debug, Default)]
pub struct Counters {
    /// Logins to servers that worked.
    pub connects: AtomicU64,
    /// Attempts that did not reach a server.
    pub connect_failures: AtomicU64,
    /// Logins that the server refused.
    pub login_failures: AtomicU64,
}

/// The servers of one [`Target`], and the clients that wait for them.
pub struct Pool {
    /// Its key.
    pub target: Target,
    /// Rare events.
    pub counters: Counters,
    settings: ArcSwap<PoolSettings>,
    /// Of the settings, what each loan looks at.
    quick: QuickSettings,
    session: Arc<Session>,
    state: Mutex<PoolState<Box<Pooled>, Arc<Slot>>>,
    /// What the first server said of itself.
    welcome: ArcSwapOption<Welcome>,
    secret: Mutex<Arc<ServerSecret>>,
    failure: Mutex<Option<Failure>>,
    /// Servers of an earlier epoch are closed as soon as nobody uses them.
    epoch: AtomicU64,
    next_endpoint: AtomicUsize,
    access: ArcSwap<Access>,
    /// Held while `access` changes.
    routing: Mutex<()>,
    /// Leased servers that run a check or a reset of ours.
    tested: AtomicU32,
    last_retired: Mutex<Option<Instant>>,
    /// When a server last had to make room for one at another standby.
    last_moved: Mutex<Option<Instant>>,
    /// Open servers, lent or not, by epoch.
    members: Mutex<BTreeMap<u64, u32>>,
    /// Clients that keep their servers, because of what they have made of their sessions.
    pub pinned: AtomicU32,
    /// What is known of the functions of its database.
    pub functions: Functions,
    /// Generation of the plans of prepared statements: a new one begins when PostgreSQL says that a plan no longer
    /// fits its tables.
    pub plans: AtomicU64,
    /// Generation of its database's tables and types: a new one begins with each ALTER and DROP of its clients. What is
    /// prepared from then on is another statement than what was before.
    pub definitions: AtomicU64,
    /// Whether some client has used `currval` or `lastval`: from then on no client sees another's.
    pub sequences: AtomicBool,
    /// The database is gone: nothing is opened any more.
    retired: AtomicBool,
    /// When it was last seen to have clients or servers.
    used_at: Mutex<Instant>,
    quotas: [Arc<Quota>; 2],
    /// One for each worker.
    openers: Arc<[UnboundedSender<OpenRequest>]>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({}/{})", self.target.database, self.target.user)
    }
}

/// What [`Pool::acquire`] gives.
#[derive(Debug)]
pub enum Acquired {
    /// A server, now.
    Lease(Lease),
    /// A place in the queue.
    Wait(Waiting),
}

/// How many servers there are, by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lent to clients.
    pub active: u32,
    /// Ready to be lent.
    pub idle: u32,
    /// Idle for so long that they are checked before they are lent.
    pub used: u32,
    /// Running our check or reset.
    pub tested: u32,
    /// Logging in.
    pub login: u32,
    /// Clients in the queue.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

impl Pool {
    /// A pool without servers; the first client opens the first one.
    pub fn new(
        target: Target,
        settings: PoolSettings,
        session: Arc<Session>,
        secret: Arc<ServerSecret>,
        quotas: [Arc<Quota>; 2],
        openers: Arc<[UnboundedSender<OpenRequest>]>,
        now: Instant,
    ) -> Arc<Self> {
        Arc::new(Pool {
            target,
            counters: Counters::default(),
            state: Mutex::new(settings.empty_ledger(openers.len())),
            access: ArcSwap::from_pointee(settings.fixed_access()),
            routing: Mutex::new(()),
            quick: QuickSettings::new(&settings),
            settings: ArcSwap::from_pointee(settings),
            session,
            welcome: ArcSwapOption::empty(),
            secret: Mutex::new(secret),
            failure: Mutex::new(None),
            epoch: AtomicU64::new(0),
            next_endpoint: AtomicUsize::new(0),
            tested: AtomicU32::new(0),
            last_retired: Mutex::new(None),
            last_moved: Mutex::new(None),
            members: Mutex::default(),
            pinned: AtomicU32::new(0),
            functions: Functions::default(),
            plans: AtomicU64::new(0),
            definitions: AtomicU64::new(0),
            sequences: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            used_at: Mutex::new(now),
            quotas,
            openers,
        })
    }

    /// A server for this client of `worker`, [`NOBODY`](state::NOBODY) for something of our own, or a place in the
    /// queue: at its front if the client `had_its_turn`. Must run on that worker's thread.
    pub fn acquire(
        self: &Arc<Self>,
        client: u64,
        worker: usize,
        now: Instant,
        had_its_turn: bool,
    ) -> Acquired {
        loop {
            let mut state = self.state.lock();
            let Some(lent) = state.acquire(client, worker, now, |pooled| pooled.seat.0.load()) else {
                let slot = Slot::new(worker);
                let ticket = match had_its_turn {
                    true => state.enqueue_first(Arc::clone(&slot), worker, now),
                    false => state.enqueue(Arc::clone(&slot), worker, now),
                };
                drop(state);
                self.open_more(worker, now);
                return Acquired::Wait(Waiting::new(Arc::clone(self), slot, ticket));
            };
            drop(state);
            if let Some(lease) = self.make_ready(lent, worker) {
                return Acquired::Lease(lease);
            }
        }
    }

    /// The lease of a server that was idle; `None` when it is checked first, or is gone.
    fn make_ready(self: &Arc<Self>, lent: Lent<Box<Pooled>>, worker: usize) -> Option<Lease> {
        let mut lease = self.adopt(lent.server, worker)?;
        if lent.idle_for > LOOK_AFTER && !lease.socket.is_silent_and_open() {
            lease.site().report(DIED_IDLE);
            lease.close(DIED_IDLE);
            return None;
        }
        if micros(lent.idle_for) <= self.quick.check_after_us.load(Ordering::Relaxed) {
            return Some(lease);
        }
        let query = self.settings.load().check_query.clone().unwrap_or_default();
        lease.run_and_release(query, "server_check_query");
        None
    }

    /// Makes a leased server one of this worker's. `None` when it turned out to be dead.
    fn adopt(self: &Arc<Self>, pooled: Box<Pooled>, worker: usize) -> Option<Lease> {
        if pooled.server.worker == worker {
            return Some(Lease::new(pooled));
        }
        let Pooled { server, loan, membership, seat, _permits } = *pooled;
        match server.move_to(worker) {
            Ok(server) => Some(Lease::new(Box::new(Pooled { server, loan, membership, seat, _permits }))),
            Err(_) => {
                self.state.lock().forget_leased();
                self.open_more(worker, Instant::now());
                None
            }
        }
    }

    fn queue_again(self: &Arc<Self>, worker: usize) -> (Arc<Slot>, Ticket) {
        let slot = Slot::new(worker);
        let now = Instant::now();
        let ticket = self.state.lock().enqueue_first(Arc::clone(&slot), worker, now);
        self.open_more(worker, now);
        (slot, ticket)
    }

    fn leave_queue(&self, ticket: Ticket) {
        self.state.lock().abandon(ticket);
    }

    /// A leased server comes back, to the next waiter or to the idle ones; one that is too old is closed.
    fn put_back(self: &Arc<Self>, mut pooled: Box<Pooled>, now: Instant) {
        if let Some(reason) = self.retirement(&pooled, now) {
            return close_lent(pooled, reason);
        }
        let worker = pooled.server.worker;
        loop {
            let client = pooled.server.served;
            let placed = self.state.lock().release(pooled, client, worker, now);
            match placed {
                Ok(None) => return,
                Ok(Some((slot, server))) => match slot.grant(server) {
                    Ok(()) => return,
                    // That waiter left between our looking and our giving: the next one, then.
                    Err(server) => pooled = server,
                },
                Err(surplus) => return close(surplus, NOT_WANTED),
            }
        }
    }

    /// What the first server said of itself, once there was one.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.welcome.load_full()
    }

    /// The rules in force.
    pub fn settings(&self) -> arc_swap::Guard<Arc<PoolSettings>> {
        self.settings.load()
    }

    /// What the latest client's login proved, for servers opened from now on.
    pub fn set_secret(&self, secret: Arc<ServerSecret>) {
        let mut current = self.secret.lock();
        // A login by another method may have proved less than an earlier one.
        let proves_nothing = matches!(*secret, ServerSecret::None | ServerSecret::ScramKeysMissing);
        if !proves_nothing || matches!(**current, ServerSecret::None) {
            *current = secret;
        }
    }
}

/// Tells the server goodbye, if it is at a place where it listens, and closes the connection.
fn close(mut pooled: Box<Pooled>, reason: &str) {
    let Pooled { server, seat, membership, .. } = &mut *pooled;
    part(server, &seat.0, &membership.pool.target, reason);
}

/// The last word to a server; its owner then drops it.
fn part(server: &mut ServerConnection, site: &Site, target: &Target, reason: &str) {
    let age = server.age(Instant::now()).as_secs();
    let (Target { database, user }, endpoint) = (target, &server.endpoint);
    tracing::info!("S-{:#x}: {database}/{user}@{endpoint} closing because: {reason} (age={age}s)", server.id);
    if server.pipeline.is_idle() && server.backlog.is_empty() {
        // Best effort: without it PostgreSQL merely notices the end of the stream.
        let _ = server.socket.write_now(b"X\0\0\0\x04");
        server.socket.say_goodbye();
    } else if site.is_closed() && !server.pipeline.is_quiet() {
        // Its client is told what became of this. A network that comes back must not bring it to a server that
        // is not the primary any more: the kernel would go on trying for minutes.
        server.socket.drop_unsent();
    }
}
