//! How a pool gets its servers: who asks for one, where it is opened, and what is said when that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::access::{Seat, Site};
use super::quota::Permit;
use super::{Failure, Loan, Membership, NOT_WANTED, Pool, Pooled, Target, close};
use crate::auth::AuthError;
use crate::config::LoadBalanceHosts;
use crate::error::{SqlError, sqlstate};
use crate::server::ServerConnection;
use crate::server::login::{OpenError, Recipe, Welcome};
use crate::wire::startup::Replication;

/// Pause after a failed attempt to open a server of a cluster, instead of `server_login_retry`: the
/// follower knows better when it is worth trying, and closes the access meanwhile.
const CLUSTER_RETRY: Duration = Duration::from_millis(50);

type Opened = Result<(ServerConnection, Welcome), OpenError>;

impl Pool {
    /// Asks for as many new servers as the queue and the limits call for.
    pub fn open_more(self: &Arc<Self>, worker: usize, now: Instant) {
        // Most who ask find no room for more.
        if !self.wants_server(now) || self.is_failing(now) || self.is_retired() {
            return;
        }
        let mut state = self.state.lock();
        let reserve = state.reserve_used();
        let wanted = state.begin_openings(now);
        let from_reserve = state.reserve_used() - reserve;
        drop(state);
        for _ in 0..from_reserve {
            let Target { database, user } = &self.target;
            tracing::warn!("{database}/{user}: taking connection from reserve_pool");
        }
        for _ in 0..wanted {
            self.request_open(worker);
        }
    }

    /// The attempt was begun in the ledger.
    pub(super) fn request_open(self: &Arc<Self>, worker: usize) {
        if self.openers[worker].send(Arc::clone(self)).is_err() {
            // The worker has stopped: the process is on its way out.
            self.state.lock().end_opening();
        }
    }

    /// Whether the last attempt failed less than `server_login_retry` ago.
    pub(super) fn is_failing(&self, now: Instant) -> bool {
        let failure = self.failure.lock();
        failure.as_ref().is_some_and(|failure| now.saturating_duration_since(failure.at) < self.retry_after())
    }

    /// Pause after a failed attempt to open a server.
    pub fn retry_after(&self) -> Duration {
        let settings = self.settings.load();
        if settings.cluster.is_some() { CLUSTER_RETRY } else { settings.login_retry }
    }

    /// Opens one server; the ledger knows of it. Runs on the thread of `worker`.
    pub async fn open(self: Arc<Self>, worker: usize) {
        let is_shut = self.state.lock().is_shut();
        let (false, Some(permits), Some(seat)) = (is_shut, self.permits(), self.seat(Instant::now())) else {
            self.state.lock().end_opening();
            return;
        };
        let (seat, permits) = match self.grant_opening(seat, permits) {
            Ok(()) => return self.open_more(worker, Instant::now()),
            Err(room) => room,
        };
        let epoch = self.epoch();
        let Some((seat, opened)) = self.attempt_in_turn(seat, worker, epoch).await else {
            self.state.lock().end_opening();
            return;
        };
        let now = Instant::now();
        match opened {
            Ok((server, welcome)) => {
                self.note_opened(&server);
                *self.failure.lock() = None;
                self.welcome.store(Some(Arc::new(welcome)));
                let membership = Membership::new(&self, epoch);
                let pooled = Pooled { server, loan: Loan::new(now), membership, seat, _permits: permits };
                self.place_opened(Box::new(pooled), worker, now);
            }
            Err(OpenError::Unwanted) => self.state.lock().end_opening(),
            Err(error) => self.note_failure(&error, &seat.0, now),
        }
        self.open_more(worker, now);
    }

    /// Of a list of hosts the next one is tried at once when one cannot be had. `None` when the pool is held
    /// meanwhile.
    async fn attempt_in_turn(&self, mut seat: Seat, worker: usize, epoch: u64) -> Option<(Seat, Opened)> {
        let mut attempts = self.settings.load().endpoints.len();
        loop {
            let recipe = self.recipe(&seat.0);
            let began = Instant::now();
            let opened = self.open_at(&seat.0, &recipe, worker, epoch).await;
            attempts = attempts.saturating_sub(1);
            let another_failed = seat.0.note_attempt(opened.is_ok(), began, Instant::now());
            match &opened {
                Ok(_) | Err(OpenError::Unwanted) => {}
                // Both waited for one answer.
                Err(OpenError::NoAddress) if another_failed => {}
                Err(error) => self.log_failure(error, &seat.0, None),
            }
            match opened {
                Err(error) if attempts > 0 && error.tells_of_the_server() => self.pass_turn_on(&seat.0),
                opened => return Some((seat, opened)),
            }
            seat = self.seat(Instant::now())?;
        }
    }

    /// One connection to a site, if that does not close before, and is what it is taken for.
    async fn open_at(&self, site: &Site, recipe: &Recipe, worker: usize, epoch: u64) -> Opened {
        let (server, welcome) = tokio::select! {
            opened = recipe.open(&self.session, worker, epoch) => opened?,
            // A frozen server takes its time, and meanwhile its successor has room for those who wait.
            () = site.closed() => return Err(OpenError::Unwanted),
        };
        match (site.in_recovery, welcome.in_recovery()) {
            (Some(expected), Some(found)) if found != expected => {
                Err(OpenError::WrongRole { in_recovery: found })
            }
            _ => Ok((server, welcome)),
        }
    }

    /// As [`Pool::open_at`], for a server that is never lent. The log has what became of it, with `refused` as in
    /// [`Pool::log_failure`].
    pub(super) async fn open_apart(
        &self,
        site: &Site,
        recipe: &Recipe,
        worker: usize,
        epoch: u64,
        refused: Option<&str>,
    ) -> Opened {
        let opened = self.open_at(site, recipe, worker, epoch).await;
        match &opened {
            Ok((server, _)) => self.note_opened(server),
            Err(error) => self.note_failed_attempt(error, site, refused),
        }
        opened
    }

    pub(super) fn place_opened(self: &Arc<Self>, pooled: Box<Pooled>, worker: usize, now: Instant) {
        if pooled.seat.0.is_closed() {
            // The topology moved on while it logged in.
            self.state.lock().end_opening();
            return close(pooled, NOT_WANTED);
        }
        let placed = self.state.lock().opened(pooled, worker, now);
        match placed {
            Ok(None) => {}
            Ok(Some((slot, server))) => {
                if let Err(server) = slot.grant(server) {
                    self.put_back(server, now);
                }
            }
            Err(surplus) => close(surplus, NOT_WANTED),
        }
    }

    pub(super) fn permits(&self) -> Option<[Permit; 2]> {
        let [database, user] = &self.quotas;
        Some([database.take()?, user.take()?])
    }

    /// A place at one of the servers; `None` while the pool is held. In a cluster it is the one that has the
    /// fewest connections, of a list of hosts the one whose turn it is.
    pub(super) fn seat(&self, now: Instant) -> Option<Seat> {
        let settings = self.settings.load();
        let access = self.access.load();
        if settings.cluster.is_some() {
            return Seat::least_used(&access.sites, self.next_endpoint.fetch_add(1, Ordering::Relaxed));
        }
        let then = now.checked_sub(settings.login_retry);
        match settings.load_balance {
            LoadBalanceHosts::RoundRobin => {
                Seat::shared(&access.sites, self.next_endpoint.fetch_add(1, Ordering::Relaxed), then)
            }
            LoadBalanceHosts::Disable => {
                Seat::sticky(&access.sites, self.next_endpoint.load(Ordering::Relaxed), then)
            }
        }
    }

    /// With `load_balance_hosts=disable` the host after one that failed is it from now on.
    fn pass_turn_on(&self, failed: &Arc<Site>) {
        let settings = self.settings.load();
        let access = self.access.load();
        let place = access.sites.iter().position(|site| Arc::ptr_eq(site, failed));
        if let (Some(place), LoadBalanceHosts::Disable, None) =
            (place, settings.load_balance, &settings.cluster)
        {
            self.next_endpoint.store(place + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn recipe(&self, site: &Site) -> Recipe {
        let settings = self.settings.load();
        Recipe {
            endpoint: Arc::clone(&site.endpoint),
            dialing: settings.dialing.clone(),
            user: self.target.user.to_string(),
            database: settings.database.clone(),
            parameters: settings.parameters.clone(),
            secret: Arc::clone(&self.secret.lock()),
            timeout: settings.connect_timeout,
            connect_query: settings.connect_query.clone(),
            statements_max: settings.statements_max,
            system_id: site.system_id(),
            replication: Replication::None,
        }
    }

    /// A server has logged in.
    fn note_opened(&self, server: &ServerConnection) {
        let Target { database, user } = &self.target;
        let endpoint = &server.endpoint;
        let from = server.socket.local_address().map(|address| format!(" (from {address})"));
        tracing::info!(
            "S-{:#x}: {database}/{user}@{endpoint} new connection to server{}",
            server.id,
            from.unwrap_or_default()
        );
        self.counters.connects.fetch_add(1, Ordering::Relaxed);
    }

    /// Says why there is no server. `refused` stands in the last line for what a server said that refused; `None`
    /// leaves its own words.
    fn log_failure(&self, error: &OpenError, site: &Site, refused: Option<&str>) {
        let Target { database, user } = &self.target;
        let tag = format!("S: {database}/{user}@{}", site.endpoint);
        match error {
            OpenError::Refused(said) => {
                tracing::warn!("{tag} server login failed: {} {}", said.severity.as_str(), said.message);
                tracing::warn!("{tag} closing because: {} (age=0s)", refused.unwrap_or(&said.message));
            }
            error => tracing::warn!("{tag} closing because: {error} (age=0s)"),
        }
    }

    /// An attempt has failed, for the log, the follower and the counters.
    fn note_failed_attempt(&self, error: &OpenError, site: &Site, refused: Option<&str>) {
        self.log_failure(error, site, refused);
        self.count_failed_attempt(error, site);
    }

    fn count_failed_attempt(&self, error: &OpenError, site: &Site) {
        if error.tells_of_the_server() {
            site.report(&error.to_string());
        }
        self.counters.connect_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends an attempt that failed, which the log has heard of.
    fn note_failure(&self, error: &OpenError, site: &Arc<Site>, now: Instant) {
        self.count_failed_attempt(error, site);
        self.pass_turn_on(site);
        let refusal = match error {
            // Not an answer to the login, but to the moment: the next attempt may well succeed.
            OpenError::Refused(error) if error.code == sqlstate::CANNOT_CONNECT_NOW => None,
            OpenError::Refused(error) => Some(error.clone()),
            OpenError::Auth(error) => Some(
                SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, login_failed(error)).detail(error.to_string()),
            ),
            OpenError::Io(_)
            | OpenError::NoAddress
            | OpenError::Timeout
            | OpenError::Protocol(_)
            | OpenError::WrongRole { .. }
            | OpenError::OtherSystem { .. }
            | OpenError::Unwanted => None,
        };
        let mut state = self.state.lock();
        state.end_opening();
        let turned_away = match &refusal {
            Some(_) if !self.has_usable_servers() => state.take_waiters(),
            _ => Vec::new(),
        };
        drop(state);
        *self.failure.lock() = Some(Failure { at: now, refusal: refusal.clone() });
        if let Some(refusal) = refusal {
            for slot in turned_away {
                slot.fail(refusal.clone());
            }
        }
    }

    /// Whether there is a server, lent or idle, that is not to be closed as soon as nobody uses it.
    fn has_usable_servers(&self) -> bool {
        self.members.lock().contains_key(&self.epoch())
    }

    /// Why a login need not wait: the server refused the last one, and it is too early to try again.
    pub fn cached_refusal(&self, now: Instant) -> Option<SqlError> {
        if !self.is_failing(now) {
            return None;
        }
        let failure = self.failure.lock();
        let refusal = failure.as_ref()?.refusal.as_ref()?;
        if self.has_usable_servers() {
            return None;
        }
        let message =
            format!("server login has been failing, cached error: {} (server_login_retry)", refusal.message);
        Some(SqlError { message: message.into(), ..refusal.clone() })
    }
}

fn login_failed(error: &AuthError) -> &'static str {
    match error {
        AuthError::WrongPasswordType(_) | AuthError::ScramKeysMissing => {
            "server login failed: wrong password type"
        }
        _ => "server login failed",
    }
}
