//! [`Berth`]: room in a pool for one server that is a client's own from its login to its end, as the server of
//! a replication connection is. It counts against the pool's limits, but is never lent to anybody else.
//!
//! Who wants one waits in the pool's queue like all others. An opening that the queue asked for becomes
//! the berth, or else a server that comes back goes to make room.

use std::sync::Arc;
use std::time::Instant;

use super::access::Seat;
use super::quota::Permit;
use super::state::NOBODY;
use super::wait::{Grant, Slot};
use super::{Lease, Loan, Membership, Pool, Pooled, Waiting, part};
use crate::error::SqlError;
use crate::server::login::{OpenError, Welcome};
use crate::wire::startup::Replication;

/// PgBouncer's word.
const MADE_ROOM: &str = "evicted";

/// Room for one server. Dropping it gives the room back.
#[derive(Debug)]
pub struct Berth {
    pool: Arc<Pool>,
    /// Whose thread the server will be on.
    worker: usize,
    /// `None` only while it is being given away.
    held: Option<(Seat, [Permit; 2])>,
}

impl Berth {
    /// The ledger counts it as lent already.
    pub(super) fn new(pool: &Arc<Pool>, worker: usize, seat: Seat, permits: [Permit; 2]) -> Self {
        Berth { pool: Arc::clone(pool), worker, held: Some((seat, permits)) }
    }

    /// A lent server closes to make room.
    pub(super) fn instead_of(pooled: Box<Pooled>, worker: usize) -> Self {
        let Pooled { mut server, membership, seat, _permits, .. } = *pooled;
        part(&mut server, &seat.0, &membership.pool.target, MADE_ROOM);
        Berth { pool: Arc::clone(&membership.pool), worker, held: Some((seat, _permits)) }
    }

    /// Opens the server, with these startup parameters besides the pool's own. Runs on the thread of the
    /// worker that asked for the berth.
    ///
    /// Fails as [`Recipe::open`](crate::server::login::Recipe::open) does; the log has the reason then.
    pub async fn open(
        mut self,
        replication: Replication,
        parameters: &[(String, String)],
    ) -> Result<(Lease, Welcome), OpenError> {
        let pool = Arc::clone(&self.pool);
        let (seat, _) = self.held.as_ref().expect("a berth has its room until it is given away");
        let site = Arc::clone(&seat.0);
        let recipe = pool.recipe(&site).for_replication(replication, parameters);
        let epoch = pool.epoch();
        // PgBouncer's words: a client of replication hears no more than that either.
        let refused = Some("login failed");
        let (server, welcome) = pool.open_apart(&site, &recipe, self.worker, epoch, refused).await?;
        let (seat, permits) = self.held.take().expect("a berth has its room until it is given away");
        let membership = Membership::new(&pool, epoch);
        let loan = Loan { query_began: None, ..Loan::new(Instant::now()) };
        let pooled = Pooled { server, loan, membership, seat, _permits: permits };
        Ok((Lease::new(Box::new(pooled)), welcome))
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        if self.held.take().is_some() {
            self.pool.state.lock().forget_leased();
            self.pool.open_more(self.worker, Instant::now());
        }
    }
}

impl Pool {
    /// Room for a server that is one client's own, when it is the client's turn. Waits without a limit of its
    /// own. Must run on the thread of `worker`.
    ///
    /// Fails when the pool turns away those who wait.
    pub async fn berth(self: &Arc<Self>, worker: usize) -> Result<Berth, SqlError> {
        match self.berth_now(worker, Instant::now()) {
            Ok(berth) => Ok(berth),
            Err(mut place) => std::future::poll_fn(|context| place.poll_berth(context)).await,
        }
    }

    fn berth_now(self: &Arc<Self>, worker: usize, now: Instant) -> Result<Berth, Waiting> {
        let mut state = self.state.lock();
        if !state.must_wait() {
            if state.room(now) > 0
                && let (Some(permits), Some(seat)) = (self.permits(), self.seat(now))
            {
                state.lend_new();
                return Ok(Berth::new(self, worker, seat, permits));
            }
            if let Some(lent) = state.acquire(NOBODY, worker, now, |pooled| pooled.seat.0.load()) {
                drop(state);
                return Ok(Berth::instead_of(lent.server, worker));
            }
        }
        let slot = Slot::for_berth(worker);
        let ticket = state.enqueue(Arc::clone(&slot), worker, now);
        drop(state);
        self.open_more(worker, now);
        Err(Waiting::new(Arc::clone(self), slot, ticket))
    }

    /// Gives the room of an opening that was begun to someone in the queue who wants no more than that, if there
    /// is one. `Err` gives it back.
    pub(super) fn grant_opening(
        self: &Arc<Self>,
        seat: Seat,
        permits: [Permit; 2],
    ) -> Result<(), (Seat, [Permit; 2])> {
        let Some(slot) = self.state.lock().lend_opening(|slot| slot.wants_berth()) else {
            return Err((seat, permits));
        };
        let berth = Berth::new(self, slot.worker(), seat, permits);
        // Who has left meanwhile does not need it, and it goes back.
        drop(slot.settle(Grant::Berth(berth)));
        Ok(())
    }
}
