//! A client's cancel key -> the server connection that it drives now.
//!
//! PostgreSQL's CancelRequest comes on a connection of its own and is never answered. It goes to the
//! server only while that server works for the client, and the server is not lent to anyone else
//! before the request has arrived there. A key that is not ours may be a peer's: see `peers`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::peers::Asked;
use super::plane::{Address, Message, Plane, Shared};
use super::{Phase, Session};
use crate::log::Peer;
use crate::net::event_loop;
use crate::pool::Target;
use crate::server;
use crate::wire::startup::{CancelKey, CancelRequest};

/// Cancel requests of one worker that may be on their way to servers at once. What comes beyond them
/// is dropped, as a lost packet would be: a client that is in earnest asks again.
const CANCELS_MAX: u32 = 100;

/// Cancel requests that are on their way to one server connection.
#[derive(Debug, Default)]
pub struct CancelsInFlight {
    count: Cell<u32>,
    /// One was sent, and nobody knows whether the server has dealt with it or will yet.
    lost: Cell<bool>,
    arrived: Notify,
}

impl CancelsInFlight {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.count.get() > 0
    }

    /// Returns when there are none: whether the server can be trusted not to be canceled any more.
    pub async fn arrived(&self) -> bool {
        while self.any() {
            self.arrived.notified().await;
        }
        !self.lost.get()
    }

    /// Whether the server must not go to another client now.
    pub fn are_pending(&self) -> bool {
        self.any() || self.lost.get()
    }
}

/// Whoever sent a request; when it is dropped, the connection that the request came on is closed.
#[derive(Debug)]
pub struct Canceller(#[expect(dead_code, reason = "its end is what counts")] oneshot::Sender<()>);

/// One request on its way; when it is dropped it has arrived, or never will.
struct InFlight {
    at_server: Rc<CancelsInFlight>,
    plane: Rc<Plane>,
    _canceller: Option<Canceller>,
}

impl InFlight {
    fn new(at_server: &Rc<CancelsInFlight>, plane: &Rc<Plane>, canceller: Option<Canceller>) -> Self {
        at_server.count.set(at_server.count.get() + 1);
        plane.cancels.set(plane.cancels.get() + 1);
        InFlight { at_server: Rc::clone(at_server), plane: Rc::clone(plane), _canceller: canceller }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.at_server.count.set(self.at_server.count.get() - 1);
        self.plane.cancels.set(self.plane.cancels.get() - 1);
        self.at_server.arrived.notify_one();
    }
}

/// Deals with a request that came on a connection of its own, and returns when that may be closed: when the
/// server or the peers have dealt with it. A client that has seen this may send its next query, and the cancel
/// will not hit that one.
pub async fn serve(plane: &Plane, from: &Peer, request: CancelRequest) {
    if let Some(delivered) = forward(&plane.shared, &request) {
        let _ = delivered.await;
        return;
    }
    let shared = &plane.shared;
    let config = shared.config.load_full();
    let asked = shared.peers.ask(&config, shared.databases.dns(), &request).await;
    let mut metrics = plane.metrics.borrow_mut();
    let reason = match asked {
        Asked::NotHere => return metrics.cancels_not_here += 1,
        Asked::Peers => return metrics.cancels_to_peers += 1,
        Asked::Nobody => {
            metrics.cancels_unknown += 1;
            "no client has its key, and no peer is known that could"
        }
        Asked::Failed => {
            metrics.cancels_failed += 1;
            "no peer that may own its key took it"
        }
    };
    if shared.peers.may_log(Instant::now()) {
        tracing::info!("cancel request from {from} ignored: {reason}");
    }
}

/// Sends a client's request on to the worker that the key's owner lives on. Returns what ends when it is
/// dealt with, if there is such an owner.
fn forward(shared: &Shared, request: &CancelRequest) -> Option<oneshot::Receiver<()>> {
    let CancelRequest { key, tail } = request;
    let entry = |key| shared.cancel_keys.get(&key).map(|entry| (key, *entry));
    let passed_on = || shared.config.load().peer_id().and_then(|_| entry(key.with_all_hops()));
    let (key, address) = entry(*key).or_else(passed_on)?;
    let is_whole = if key.is_long() { shared.key_tails.fits(&key.0, tail) } else { tail.is_empty() };
    if !is_whole {
        return None;
    }
    let (canceller, delivered) = oneshot::channel();
    send(shared, key, address, Canceller(canceller));
    Some(delivered)
}

/// Carries a request out, on the thread of the key's owner.
pub fn deliver(plane: &Rc<Plane>, key: CancelKey, address: Address, canceller: Canceller) {
    if plane.consoles.cancel(key) {
        return;
    }
    let session = plane.sessions.borrow().get(address.slot as usize).cloned();
    // The place may have a new owner since.
    let session = session.filter(|session| session.borrow().cancel_key.matches(key));
    if let Some(session) = session {
        return session.borrow_mut().cancel_for(plane, Some(canceller));
    }
    let found = plane.shared.cancel_keys.get(&key).map(|entry| *entry);
    match found.filter(|now| *now != address) {
        // It has moved to another worker meanwhile.
        Some(now) => send(&plane.shared, key, now, canceller),
        None => plane.metrics.borrow_mut().cancels_unknown += 1,
    }
}

fn send(shared: &Shared, key: CancelKey, address: Address, canceller: Canceller) {
    // A worker that has stopped has no sessions left to cancel.
    let _ = shared.workers[address.worker as usize].send(Message::Cancel(key, address, canceller));
}

impl Session {
    /// Cancels what the client waits for: its turn, or its server's answer. Otherwise nothing.
    pub(super) fn cancel(&mut self, plane: &Rc<Plane>) {
        self.cancel_for(plane, None);
    }

    fn cancel_for(&mut self, plane: &Rc<Plane>, canceller: Option<Canceller>) {
        let limit = self.plane.shared.config.load().settings.cancel_wait_timeout;
        let lease = match &mut self.phase {
            // What we ask the server is none of the client's business.
            Phase::Idle | Phase::Asking(_) | Phase::Parting(_) => {
                plane.metrics.borrow_mut().cancels_idle += 1;
                return;
            }
            Phase::Waiting(_) => {
                self.canceled = true;
                return self.wake();
            }
            Phase::Leased(lease) => lease,
        };
        if lease.pipeline.runs_own_query() {
            // The client means what comes after our SETs.
            self.canceled = true;
            return;
        }
        if !lease.pipeline.runs_client_request() {
            plane.metrics.borrow_mut().cancels_idle += 1;
            return;
        }
        if plane.cancels.get() >= CANCELS_MAX {
            plane.metrics.borrow_mut().cancels_failed += 1;
            return;
        }
        let in_flight = InFlight::new(self.cancels.get_or_insert_default(), plane, canceller);
        let endpoint = lease.endpoint.clone();
        let at = lease.socket.peer_address().map(|address| address.ip());
        let key = lease.cancel_key.clone();
        let how = self.group.settings.borrow().dialing.clone();
        let Target { database, user } = &self.group.pool.target;
        let tag = format!("S: {database}/{user}@{endpoint}");
        event_loop::spawn(async move {
            let began = Instant::now();
            let request = server::cancel(&endpoint, at, &how, &key);
            let sent = tokio::time::timeout(no_limit_if_zero(limit), request).await;
            let mut metrics = in_flight.plane.metrics.borrow_mut();
            if matches!(sent, Ok(Ok(()))) {
                metrics.cancels_forwarded += 1;
                return;
            }
            in_flight.at_server.lost.set(true);
            metrics.cancels_failed += 1;
            match sent {
                Ok(_) => tracing::warn!("cancel request to {endpoint} failed"),
                Err(_) => {
                    let age = began.elapsed().as_secs();
                    tracing::warn!("{tag} closing because: cancel_wait_timeout (age={age}s)");
                }
            }
        });
    }
}

/// `cancel_wait_timeout`: 0 waits for ever, which a day comes close to.
pub(super) fn no_limit_if_zero(limit: Duration) -> Duration {
    if limit.is_zero() { Duration::from_secs(86_400) } else { limit }
}
