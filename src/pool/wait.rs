//! A client's place in the queue: what it looks at until it is served or leaves.

use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use parking_lot::Mutex;

use super::state::Ticket;
use super::{Berth, Lease, Pool, Pooled};
use crate::error::SqlError;

/// Where a waiter is served. The pool's queue and the waiter share it, since they may be on two
/// threads.
#[derive(Debug)]
pub(super) struct Slot {
    worker: usize,
    wants_berth: bool,
    state: Mutex<SlotState>,
}

/// What a waiter gets.
#[derive(Debug)]
pub(super) enum Grant {
    Server(Box<Pooled>),
    /// Only for one that wants no more.
    Berth(Berth),
}

#[derive(Debug)]
enum SlotState {
    Waiting(Option<Waker>),
    Granted(Grant),
    Failed(Box<SqlError>),
    /// The waiter has left, or has taken what it got.
    Gone,
}

impl Slot {
    pub(super) fn new(worker: usize) -> Arc<Self> {
        Arc::new(Slot { worker, wants_berth: false, state: Mutex::new(SlotState::Waiting(None)) })
    }

    /// For someone who opens the server itself.
    pub(super) fn for_berth(worker: usize) -> Arc<Self> {
        Arc::new(Slot { worker, wants_berth: true, state: Mutex::new(SlotState::Waiting(None)) })
    }

    pub(super) fn wants_berth(&self) -> bool {
        self.wants_berth
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// Hands over a server. `Err` gives it back: the waiter has left meanwhile.
    pub(super) fn grant(&self, server: Box<Pooled>) -> Result<(), Box<Pooled>> {
        self.settle(Grant::Server(server)).map_err(|grant| match grant {
            Grant::Server(server) => server,
            Grant::Berth(_) => unreachable!("settle() gives back what it got"),
        })
    }

    /// Hands something over. `Err` gives it back: the waiter has left meanwhile.
    pub(super) fn settle(&self, grant: Grant) -> Result<(), Grant> {
        self.end(SlotState::Granted(grant)).map_err(|state| match state {
            SlotState::Granted(grant) => grant,
            _ => unreachable!("end() gives back what it got"),
        })
    }

    /// Tells the waiter that it will not be served.
    pub(super) fn fail(&self, error: SqlError) {
        // A waiter that has left does not need to know.
        let _ = self.end(SlotState::Failed(Box::new(error)));
    }

    fn end(&self, outcome: SlotState) -> Result<(), SlotState> {
        let mut state = self.state.lock();
        let SlotState::Waiting(waker) = &mut *state else {
            return Err(outcome);
        };
        let waker = waker.take();
        *state = outcome;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

/// A client that waits for a server. Dropping it leaves the queue; a server that was already granted
/// goes to the next in line.
#[derive(Debug)]
pub struct Waiting {
    pool: Arc<Pool>,
    slot: Arc<Slot>,
    ticket: Ticket,
}

impl Waiting {
    pub(super) fn new(pool: Arc<Pool>, slot: Arc<Slot>, ticket: Ticket) -> Self {
        Waiting { pool, slot, ticket }
    }

    /// The server, when it is this client's turn; the error, when there will be none.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Lease, SqlError>> {
        match ready!(self.poll_grant(context)) {
            Ok(Grant::Server(server)) => self.settle_in(server, context),
            Ok(Grant::Berth(_)) => unreachable!("only one that wants a berth is granted one"),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The same for one that wants a berth: a server that it is granted makes room.
    pub(super) fn poll_berth(&mut self, context: &mut Context<'_>) -> Poll<Result<Berth, SqlError>> {
        Poll::Ready(match ready!(self.poll_grant(context)) {
            Ok(Grant::Server(server)) => Ok(Berth::instead_of(server, self.slot.worker)),
            Ok(Grant::Berth(berth)) => Ok(berth),
            Err(error) => Err(error),
        })
    }

    fn poll_grant(&mut self, context: &mut Context<'_>) -> Poll<Result<Grant, SqlError>> {
        let mut state = self.slot.state.lock();
        match &mut *state {
            SlotState::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                return Poll::Pending;
            }
            SlotState::Gone | SlotState::Granted(_) | SlotState::Failed(_) => {}
        }
        match std::mem::replace(&mut *state, SlotState::Gone) {
            SlotState::Granted(grant) => Poll::Ready(Ok(grant)),
            SlotState::Failed(error) => Poll::Ready(Err(*error)),
            SlotState::Waiting(_) | SlotState::Gone => unreachable!("a waiter is served once"),
        }
    }

    /// A server from another worker moves over; if it died on the way, the wait begins anew.
    fn settle_in(&mut self, server: Box<Pooled>, context: &mut Context<'_>) -> Poll<Result<Lease, SqlError>> {
        let worker = self.slot.worker;
        match self.pool.adopt(server, worker) {
            Some(lease) => Poll::Ready(Ok(lease)),
            None => {
                (self.slot, self.ticket) = self.pool.queue_again(worker);
                self.poll(context)
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // From here on a server that is handed to it goes back to who hands it over, and on to the next.
        let state = std::mem::replace(&mut *self.slot.state.lock(), SlotState::Gone);
        match state {
            SlotState::Waiting(_) => self.pool.leave_queue(self.ticket),
            SlotState::Granted(Grant::Server(server)) => self.pool.put_back(server, Instant::now()),
            SlotState::Granted(Grant::Berth(_)) | SlotState::Failed(_) | SlotState::Gone => {}
        }
    }
}
