//! What happens to a pool apart from lending: servers grow old or die idle, the console pauses it,
//! a RELOAD changes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::access::{Access, Routes, Site};
use super::wait::Slot;
use super::{Counts, NOT_WANTED, Pool, PoolSettings, Pooled, close};
use crate::error::SqlError;
use crate::server::ServerConnection;
use crate::wire::startup::Replication;

/// Between two servers that a pool moves to another standby, so that all have the same share.
const MOVE_PAUSE: Duration = Duration::from_millis(100);

impl Pool {
    /// Why a server that comes back is closed instead of kept.
    pub(super) fn retirement(&self, pooled: &Pooled, now: Instant) -> Option<&'static str> {
        let server = &pooled.server;
        if server.replication != Replication::None {
            return Some("replication client was closed");
        }
        if self.is_outdated(server) {
            return Some("obsolete connection");
        }
        if pooled.seat.0.is_closed() {
            return Some(NOT_WANTED);
        }
        if self.is_uneven(pooled, now) {
            return Some("servers are spread anew");
        }
        let lifetime = Duration::from_micros(self.quick.lifetime_us.load(Ordering::Relaxed));
        if lifetime.is_zero() {
            return pooled.loan.used.then_some("server_lifetime is 0");
        }
        (server.age(now) > lifetime && self.may_retire(lifetime, now)).then_some("server lifetime over")
    }

    /// Whether it is of before the last RECONNECT, or its host's name has moved.
    pub(super) fn is_outdated(&self, server: &ServerConnection) -> bool {
        server.epoch != self.epoch() || server.is_elsewhere()
    }

    /// Whether another standby has room for it. One at a time: one that does not answer has the fewest.
    fn is_uneven(&self, pooled: &Pooled, now: Instant) -> bool {
        if pooled.seat.0.place.is_none() {
            return false;
        }
        let access = self.access.load();
        if access.sites.len() < 2 || !pooled.seat.is_one_too_many(&access.sites) {
            return false;
        }
        let mut last = self.last_moved.lock();
        let may = last.is_none_or(|last| now.saturating_duration_since(last) >= MOVE_PAUSE);
        if may {
            *last = Some(now);
        }
        may
    }

    /// Servers that were opened together do not all close together.
    fn may_retire(&self, lifetime: Duration, now: Instant) -> bool {
        let gap = lifetime / self.state.lock().total().max(1);
        let mut last = self.last_retired.lock();
        let may = last.is_none_or(|last| now.saturating_duration_since(last) >= gap);
        if may {
            *last = Some(now);
        }
        may
    }

    /// A look at everything that no event tells of. Each worker does this several times a second for
    /// the servers that it watches.
    pub fn tick(self: &Arc<Self>, worker: usize, now: Instant) {
        self.close_unwanted(worker, now);
        self.open_more(worker, now);
        self.fill_up(worker, now);
        self.functions.tick(now);
    }

    fn close_unwanted(&self, worker: usize, now: Instant) {
        let mut context = Context::from_waker(Waker::noop());
        let settings = self.settings.load();
        let mut reasons = Vec::new();
        let mut buffer = [0; 512];
        let taken = self.state.lock().take_idle(worker, |pooled: &mut Box<Pooled>, since| {
            let server = &mut pooled.server;
            let idle_for = now.saturating_duration_since(since);
            let reason = if let Err(reason) = server.poll_idle(&mut context, &mut buffer, &self.session) {
                pooled.seat.0.report(reason);
                Some(reason)
            } else if self.is_outdated(server) || pooled.seat.0.is_closed() {
                Some(NOT_WANTED)
            } else if settings.idle_timeout.is_some_and(|limit| idle_for > limit) {
                Some("server idle timeout")
            } else {
                None
            };
            reasons.extend(reason);
            reason.is_some()
        });
        for (pooled, reason) in taken.into_iter().zip(reasons) {
            close(pooled, reason);
        }
        self.retire_one_idle(worker, now);
    }

    fn retire_one_idle(&self, worker: usize, now: Instant) {
        let lifetime = self.settings.load().policy.server_lifetime;
        let is_old = |pooled: &Pooled| pooled.server.age(now) > lifetime;
        // Only for a server of our own: the turn of another worker's must not be spent here.
        let any_old = self.state.lock().idle_of(worker).any(|pooled| is_old(pooled));
        if !any_old || !self.may_retire(lifetime, now) {
            return;
        }
        let mut found = false;
        let taken = self.state.lock().take_idle(worker, |pooled, _| {
            let take = !found && is_old(pooled);
            found |= take;
            take
        });
        for pooled in taken {
            close(pooled, "server lifetime over");
        }
    }

    /// `min_pool_size`, for as long as the pool is there.
    fn fill_up(self: &Arc<Self>, worker: usize, now: Instant) {
        let minimum = self.settings.load().policy.min_pool_size;
        let is_claimed = self.quotas.iter().any(|quota| quota.is_claimed());
        if minimum == 0 || self.is_retired() || self.is_failing(now) || is_claimed {
            return;
        }
        let lacks = self.state.lock().begin_filling(minimum, now);
        if lacks {
            self.request_open(worker);
        }
    }

    /// Closes the server that has been idle longest, to make room for another pool under a common
    /// limit. Returns whether there was one.
    pub fn evict_idle(&self) -> bool {
        self.close_longest_idle("evicted")
    }

    fn close_longest_idle(&self, reason: &str) -> bool {
        let taken = self.state.lock().take_longest_idle();
        let found = taken.is_some();
        if let Some(pooled) = taken {
            close(pooled, reason);
        }
        found
    }

    /// Everyone who waits gets this error instead of a server. Returns whether anyone did.
    pub fn turn_away(&self, error: &SqlError) -> bool {
        let waiters = self.state.lock().take_waiters();
        waiters.iter().for_each(|slot| slot.fail(error.clone()));
        !waiters.is_empty()
    }

    /// PAUSE and RESUME. A paused pool lends nothing; its idle servers close.
    pub fn set_paused(self: &Arc<Self>, paused: bool) {
        let mut state = self.state.lock();
        state.set_paused(paused);
        let served = state.serve_waiters();
        drop(state);
        self.grant_all(served);
        if paused {
            while self.close_longest_idle("pause mode") {}
        }
    }

    /// The follower's word where servers may be opened, or that clients wait. Idle servers elsewhere close
    /// at once, lent ones when they come back.
    pub fn route(self: &Arc<Self>, routes: &Routes, worker: usize) {
        let Some((_, role)) = self.settings.load().cluster.clone() else { return };
        // Two who tell it at once must not put the older word last.
        let _turn = self.routing.lock();
        let access = routes.access(role);
        let old = self.access.swap(Arc::new(access));
        let access = self.access.load_full();
        let is_new = |site: &Arc<Site>| !old.sites.iter().any(|known| Arc::ptr_eq(known, site));
        if !old.sites.is_empty() && access.sites.len() > 1 && access.sites.iter().any(is_new) {
            // A standby came: the servers are spread anew.
            self.reconnect();
        }
        let mut state = self.state.lock();
        state.set_held(access.held.is_some());
        state.set_spread(access.sites.len() > 1);
        let served = state.serve_waiters();
        drop(state);
        self.grant_all(served);
        self.close_elsewhere(&access);
        *self.failure.lock() = None;
        self.open_more(worker, Instant::now());
    }

    fn close_elsewhere(&self, access: &Access) {
        let is_here = |site: &Arc<Site>| access.sites.iter().any(|known| Arc::ptr_eq(known, site));
        let mut state = self.state.lock();
        let workers = state.workers();
        let taken: Vec<_> = (0..workers)
            .flat_map(|worker| {
                state.take_idle(worker, |pooled: &mut Box<Pooled>, _| !is_here(&pooled.seat.0))
            })
            .collect();
        drop(state);
        for pooled in taken {
            close(pooled, NOT_WANTED);
        }
    }

    /// Why clients of a cluster must wait now.
    pub fn held(&self) -> Option<Arc<str>> {
        self.access.load().held.clone()
    }

    /// The sites that servers are opened at.
    pub fn sites(&self) -> Vec<Arc<Site>> {
        self.access.load().sites.clone()
    }

    fn grant_all(self: &Arc<Self>, served: Vec<(Arc<Slot>, Box<Pooled>)>) {
        for (slot, pooled) in served {
            if let Err(pooled) = slot.grant(pooled) {
                self.put_back(pooled, Instant::now());
            }
        }
    }

    /// RECONNECT: every server of now is closed as soon as nobody uses it.
    pub fn reconnect(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        while self.close_longest_idle("database configuration changed") {}
    }

    /// New settings after a RELOAD. Servers that lead elsewhere now are closed as after RECONNECT.
    pub fn configure(&self, settings: PoolSettings) {
        let old = self.settings.load_full();
        let elsewhere = settings.leads_elsewhere(&old);
        if settings.cluster.is_none() && (elsewhere || old.cluster.is_some()) {
            self.access.store(Arc::new(settings.fixed_access()));
            self.state.lock().set_held(false);
        }
        if settings.cluster.is_none() {
            self.state.lock().set_spread(settings.is_spread());
        }
        self.state.lock().set_limits(settings.limits());
        self.quick.store(&settings);
        self.settings.store(Arc::new(settings));
        if elsewhere {
            // What failed there says nothing about here.
            *self.failure.lock() = None;
            self.reconnect();
        }
    }

    /// Turns away everyone who waits, as when the database is removed.
    pub fn fail_waiters(&self, error: &SqlError) {
        let slots = self.state.lock().take_waiters();
        for slot in slots {
            slot.fail(error.clone());
        }
    }

    /// How many servers there are, by what they do.
    pub fn counts(&self, now: Instant) -> Counts {
        let check_delay = self.settings.load().check_delay;
        let state = self.state.lock();
        let is_used = |since: Instant| now.saturating_duration_since(since) > check_delay;
        let used = state.idle().filter(|(_, since)| is_used(*since)).count();
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        let tested = self.tested.load(Ordering::Relaxed).min(state.leased());
        Counts {
            active: state.leased() - tested,
            idle: state.idle_count() - used,
            used,
            tested,
            login: state.opening(),
            waiting: state.waiting(),
            longest_wait: state.longest_wait(now),
        }
    }

    /// Whether servers are left that RECONNECT or a RELOAD wants closed.
    pub fn has_old_servers(&self) -> bool {
        let epoch = self.epoch();
        self.members.lock().keys().any(|of| *of != epoch)
    }

    /// The database is gone: what is idle closes, nothing is opened any more.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.reconnect();
    }

    /// Whether the database is gone.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether a client waits.
    pub fn has_waiters(&self) -> bool {
        self.state.lock().waiting() > 0
    }

    /// Whether a client waits for a server that the pool's own size allows.
    pub fn wants_server(&self, now: Instant) -> bool {
        self.state.lock().openings_wanted(now) > 0
    }

    /// It has clients now, or is about to have some.
    pub fn note_used(&self, now: Instant) {
        *self.used_at.lock() = now;
    }

    /// How long it has had neither clients nor servers.
    pub fn unused_for(&self, now: Instant) -> Duration {
        if !self.is_empty() || self.has_waiters() {
            self.note_used(now);
        }
        now.saturating_duration_since(*self.used_at.lock())
    }

    /// Whether a server of it was ever logged in to, or may be at the next attempt.
    pub fn is_promising(&self, now: Instant) -> bool {
        self.welcome.load().is_some() || self.is_failing(now)
    }

    /// Whether no server is left.
    pub fn is_empty(&self) -> bool {
        self.state.lock().total() == 0
    }

    /// Looks at each idle server, with whether it is to be checked before its next use.
    pub fn for_each_idle(&self, now: Instant, mut look: impl FnMut(&ServerConnection, bool)) {
        let check_delay = self.settings.load().check_delay;
        for (pooled, since) in self.state.lock().idle() {
            look(&pooled.server, now.saturating_duration_since(since) > check_delay);
        }
    }

    /// The epoch that new servers belong to.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}
