//! A client moves to another worker: it is sent off here, and [`arrive`]s there. See [`Spread`](super::spread::Spread) for
//! when and where to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::plane::{Address, Message, Plane};
use super::{Client, NewSession, Phase, Session, task};
use crate::config::PoolMode;
use crate::log::ClientTag;
use crate::net::Socket;
use crate::pool::Pool;
use crate::wire::startup::{CancelKey, Replication};

/// A client on its way from one worker to another.
pub struct Moving {
    /// The old worker's event loop still knows it.
    socket: Socket,
    user: Arc<str>,
    database: Arc<str>,
    pool: Arc<Pool>,
    cancel_key: CancelKey,
    client: Client,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Moving(C-{:#x})", self.client.id)
    }
}

impl Session {
    /// It is bound for no other worker any more.
    pub(super) fn stay(&mut self) {
        self.bound_for = None;
    }

    /// Has it move to that worker as soon as it can, if it can `at_once` or cannot, as the caller wants. Returns whether it
    /// will.
    ///
    /// Who keeps a server, or listens, stays.
    pub(super) fn bind_for(&mut self, worker: usize, at_once: bool) -> bool {
        let stays = self.keeps_server() || self.pinned.is_some() || self.hearing.is_some();
        if stays || self.bound_for.is_some() || self.is_self_contained() != at_once {
            return false;
        }
        self.bound_for = u16::try_from(worker).ok();
        if at_once {
            self.wake();
        }
        self.bound_for.is_some()
    }

    /// Whether it will have the same server to its end.
    fn keeps_server(&self) -> bool {
        self.group.mode.get() == PoolMode::Session
    }

    /// Where it lives from the beginning, if that is not here: a client that will keep its server cannot move later, so it
    /// goes where the fewest are.
    pub(super) fn settles(&self) -> Option<usize> {
        if !self.keeps_server() {
            return None;
        }
        let worker = self.plane.shared.spread.least_beside(self.plane.worker);
        (worker != self.plane.worker && self.may_set_out(worker)).then_some(worker)
    }

    /// Where it moves to now, if it does.
    pub(super) fn sets_out(&mut self) -> Option<usize> {
        let to = self.bound_for?;
        self.may_set_out(usize::from(to)).then_some(usize::from(to))
    }

    fn may_set_out(&self, to: usize) -> bool {
        self.is_self_contained()
            && !self.group.pool.is_retired()
            && self.plane.shared.spread.set_out(self.plane.worker, to)
    }

    /// Whether nothing of it is elsewhere: no server, no place in a queue, no bytes of a message, nothing that it hears.
    fn is_self_contained(&self) -> bool {
        matches!(self.phase, Phase::Idle)
            && self.pinned.is_none()
            && self.hearing.is_none()
            && self.doubted.is_none()
            && self.cancels.is_none()
            && self.carry.is_none()
            && self.backlog.is_none()
            && self.doom.is_none()
            && self.body.is_over()
            && !(self.withheld || self.skip_to_sync || self.canceled)
    }
}

/// Sends a session that [set out](Session::sets_out) on its way. It is no longer in its plane.
pub(super) fn send_off(session: Rc<RefCell<Session>>, to: usize) {
    let session = Rc::into_inner(session).expect("its task and its plane were all who had it").into_inner();
    let shared = Arc::clone(&session.plane.shared);
    let moving = Moving {
        socket: session.socket,
        user: Arc::clone(&session.group.user),
        database: Arc::clone(&session.group.database),
        pool: Arc::clone(&session.group.pool),
        cancel_key: session.cancel_key,
        client: Client {
            peer: session.peer,
            id: session.id,
            connected: session.connected,
            last_request: session.last_request,
            parameters: session.parameters,
            state: session.state,
            wanted: session.wanted,
            proven: session.proven,
            statements: session.statements,
            admission: session.admission,
        },
    };
    if let Some(mut address) = shared.cancel_keys.get_mut(&moving.cancel_key) {
        // Who looks for it there comes behind it, and looks again.
        *address = Address::on_the_way_to(to);
    }
    if shared.workers[to].send(Message::Moving(Box::new(moving))).is_err() {
        // The process is about to end.
        tracing::error!("worker {to} has stopped");
    }
    shared.spread.note_sent();
}

/// Goes on with a client that has come from another worker.
pub fn arrive(plane: &Rc<Plane>, moving: Box<Moving>) {
    let Moving { socket, user, database, pool, cancel_key, client } = *moving;
    plane.metrics.borrow_mut().clients_moved += 1;
    let socket = match socket.detach().attach() {
        Ok(socket) => socket,
        Err(error) => {
            let tag =
                ClientTag { id: client.id, database: Some(&database), user: Some(&user), peer: &client.peer };
            tracing::error!("{tag} closing because: cannot watch its connection: {error}");
            plane.shared.cancel_keys.remove(&cancel_key);
            return plane.disconnected();
        }
    };
    let group = plane.group(&user, &database, &pool, Replication::None);
    let new = NewSession { socket, group, client, own_server: None };
    let session = Session::enter(plane, new, |address| {
        plane.shared.cancel_keys.insert(cancel_key, address);
        cancel_key
    });
    task::run(session);
}
