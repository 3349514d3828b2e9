//! WHO ASKS. One client, from accept to goodbye.
//!
//! [`Session`] is a state machine that one task polls: it is idle, waits for a server, or holds one.
//! An idle session owns no buffer and no server. Everything happens inside one poll, with the
//! thread's own buffers: read, look at the headers, write to the other side.

mod admission;
mod answers;
mod auth_query;
mod authenticate;
pub mod cancel;
pub mod clusters;
pub mod console;
pub mod control;
pub mod databases;
mod hearing;
mod idle;
mod keeping;
pub mod login;
pub mod moving;
mod options;
mod outside;
mod pam;
mod parting;
pub mod peers;
pub mod plane;
mod relay;
mod replication;
mod resend;
pub mod rules;
mod set_up;
pub mod spread;
mod task;
mod time;
pub mod views;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::config::{PoolMode, Role};
use crate::error::{SqlError, sqlstate};
use crate::log::{ClientTag, Peer};
use crate::net::{Socket, event_loop};
use crate::pool::{Lease, Waiting};
use crate::protocol::OutOfStep;
use crate::protocol::body::Body;
use crate::protocol::parameters::ParameterSet;
use crate::protocol::state::SessionState;
use crate::protocol::statements::ClientStatements;
use crate::server::login::Welcome;
use crate::topology::Place;
use crate::wire::startup::{CancelKey, Replication};
use crate::wire::{Malformed, originate};
use cancel::CancelsInFlight;
use hearing::Hearing;
use keeping::{Asking, Pinned};
use parting::Parting;
use plane::{Group, Plane, Scratch};

/// Bytes of a client that waits for a server which are read ahead, so that its leaving is noticed.
const READ_AHEAD_MAX: usize = 64 * 1024;

/// How often one request is sent to another server, because the one before went away. A statement that
/// ends each server it runs on must not go round for ever.
const SENT_AGAIN_MAX: u8 = 3;

/// Reads of one socket in one poll, after which others get their turn. A client may send for ever what costs us work and
/// gives no answer.
const READS_MAX: usize = 4;

/// Why a session ends, and what the client is told.
#[derive(Debug)]
pub enum Farewell {
    /// The client said Terminate.
    Terminate,
    /// The client is gone without a word.
    Gone(io::Error),
    /// The end of the client's stream.
    EndOfStream,
    /// An error of ours.
    Error(Box<SqlError>),
    /// The server's bytes make no sense.
    ServerBroken,
    /// The server is no longer one that may be used: the primary is another one.
    Severed,
    /// The server is gone; `told` when its last word went to the client already.
    ServerGone {
        /// Whether the client got a FATAL error from the server itself.
        told: bool,
    },
}

impl From<Malformed> for Farewell {
    fn from(malformed: Malformed) -> Self {
        let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "bad packet header");
        Farewell::Error(Box::new(error.detail(malformed.to_string())))
    }
}

impl From<OutOfStep> for Farewell {
    fn from(error: OutOfStep) -> Self {
        tracing::error!("server connection is out of step: {error}");
        Farewell::ServerBroken
    }
}

impl From<SqlError> for Farewell {
    fn from(error: SqlError) -> Self {
        Farewell::Error(Box::new(error))
    }
}

/// What a session does now.
#[derive(Debug)]
enum Phase {
    /// No server, and nothing asked.
    Idle,
    /// The client asked something, and all servers are taken.
    Waiting(Box<Wait>),
    /// A server is this client's own.
    Leased(Lease),
    /// The transaction has ended, and the server says what it has changed of the session.
    Asking(Box<Asking>),
    /// The session is over, and its client has not taken everything yet.
    Parting(Box<Parting>),
}

#[derive(Debug)]
struct Wait {
    place: Waiting,
    since: Instant,
    /// Of `query_wait_notify`.
    is_told: bool,
}

/// One client, after its login.
pub struct Session {
    plane: Rc<Plane>,
    group: Rc<Group>,
    socket: Socket,
    phase: Phase,
    /// Unlike all others of this process.
    pub id: u64,
    /// What a CancelRequest for it must say.
    pub cancel_key: CancelKey,
    peer: Peer,
    slot: u32,
    connected: Instant,
    last_request: Instant,
    parameters: Arc<ParameterSet>,
    /// What it has made of its session, beyond the parameters.
    state: Arc<SessionState>,
    /// What its StartupMessage says of both, which RESET goes back to.
    wanted: Option<Arc<options::Wanted>>,
    /// Why it keeps its server, if it does.
    pinned: Option<Box<Pinned>>,
    /// What it listens to without a server of its own.
    hearing: Option<Box<Hearing>>,
    /// A ReadyForQuery is kept back for what the client has notified itself of.
    withheld: bool,
    /// Functions that it has called on a server that was lost before it told what they are.
    #[expect(clippy::box_collection, reason = "hardly any client has some")]
    doubted: Option<Box<Vec<Box<str>>>>,
    /// Whether some server has accepted the parameters and the state.
    proven: bool,
    /// Whether its servers are a cluster's, which moves.
    follows: bool,
    /// How often the request that runs was sent to another server.
    sent_again: u8,
    /// After an error of ours in a batch of the extended protocol.
    skip_to_sync: bool,
    /// Cancel requests on their way to its server.
    cancels: Option<Rc<CancelsInFlight>>,
    /// A CancelRequest came while the session waited for a server.
    canceled: bool,
    statements: Option<Box<ClientStatements>>,
    /// Client bytes that were read but not dealt with.
    #[expect(clippy::box_collection, reason = "an idle client has none, and a pointer is a third of a Vec")]
    carry: Option<Box<Vec<u8>>>,
    body: Body,
    /// The carry must have so many bytes before it is worth a look.
    needed: usize,
    /// Bytes for the client that its socket did not take.
    #[expect(clippy::box_collection, reason = "as above")]
    backlog: Option<Box<Vec<u8>>>,
    /// Set from outside: the session ends with this.
    doom: Option<Box<Farewell>>,
    waker: Option<Waker>,
    /// The worker that it moves to as soon as it can.
    bound_for: Option<u16>,
    admission: admission::Admission,
}

/// What a finished login hands over.
pub struct NewSession {
    /// The client's socket.
    pub socket: Socket,
    /// What it shares with others.
    pub group: Rc<Group>,
    /// Who it is.
    pub client: Client,
    /// Its own server, of a replication connection.
    pub own_server: Option<Lease>,
}

/// A client, wherever it lives: what it takes along to another worker.
pub struct Client {
    /// From where it came.
    pub peer: Peer,
    /// Its number.
    pub id: u64,
    /// When it connected.
    pub connected: Instant,
    /// When it last asked for anything.
    pub last_request: Instant,
    /// Its parameters.
    pub parameters: Arc<ParameterSet>,
    /// What it has made of its session beyond these.
    pub state: Arc<SessionState>,
    /// What its StartupMessage says of both.
    pub wanted: Option<Arc<options::Wanted>>,
    /// Whether a server has accepted both.
    pub proven: bool,
    /// What it has prepared.
    pub statements: Option<Box<ClientStatements>>,
    /// Its place among the connection limits.
    pub admission: admission::Admission,
}

impl Session {
    /// Enters a session into its plane, with a cancel key of its own, which may be longer than eight bytes if it is to be
    /// `long_key`. The caller tells the client the key and runs the session.
    pub fn begin(plane: &Rc<Plane>, new: NewSession, long_key: bool) -> Rc<RefCell<Session>> {
        Session::enter(plane, new, |address| plane.shared.new_cancel_key(address, long_key))
    }

    fn enter(
        plane: &Rc<Plane>,
        new: NewSession,
        cancel_key: impl FnOnce(plane::Address) -> CancelKey,
    ) -> Rc<RefCell<Session>> {
        let mut sessions = plane.sessions.borrow_mut();
        let vacant = sessions.vacant_entry();
        let slot = u32::try_from(vacant.key()).expect("fewer clients than file descriptors");
        let worker = u32::try_from(plane.worker).expect("there are few workers");
        let phase = match new.own_server {
            Some(mut lease) => {
                lease.pipeline.message_max = new.group.rules.get().message_max;
                Phase::Leased(lease)
            }
            None => Phase::Idle,
        };
        let follows = new.group.settings.borrow().cluster.is_some();
        let client = new.client;
        let session = Rc::new(RefCell::new(Session {
            plane: Rc::clone(plane),
            group: new.group,
            socket: new.socket,
            phase,
            id: client.id,
            cancel_key: cancel_key(plane::Address { worker, slot }),
            peer: client.peer,
            slot,
            connected: client.connected,
            last_request: client.last_request,
            parameters: client.parameters,
            state: client.state,
            wanted: client.wanted,
            pinned: None,
            hearing: None,
            withheld: false,
            doubted: None,
            proven: client.proven,
            follows,
            sent_again: 0,
            skip_to_sync: false,
            cancels: None,
            canceled: false,
            statements: client.statements,
            carry: None,
            body: Body::default(),
            needed: 0,
            backlog: None,
            doom: None,
            waker: None,
            bound_for: None,
            admission: client.admission,
        }));
        vacant.insert(Rc::clone(&session));
        session
    }

    /// Ends the login: what the server says of itself, with the client's own values in place.
    fn greet(&mut self, welcome: &Welcome) {
        let tracked = &self.plane.shared.server.tracked;
        let mut out = BytesMut::new();
        originate::authentication_ok(&mut out);
        let role = self.group.settings.borrow().cluster.as_ref().map(|(_, role)| *role);
        for (name, value) in &welcome.0 {
            let own = match (name.as_str(), role) {
                // What libpq's target_session_attrs and pgjdbc's targetServerType ask: the role, not the
                // server that happened to answer first.
                ("in_hot_standby", Some(Role::ReadWrite)) => Some("off"),
                ("in_hot_standby", Some(_)) => Some("on"),
                _ => tracked.index(name).and_then(|index| self.parameters.get(index)),
            };
            originate::parameter_status(name, own.unwrap_or(value), &mut out);
        }
        let (process_id, secret) = self.cancel_key.process_id_and_secret();
        match self.cancel_key.is_long() {
            false => originate::backend_key_data(process_id, secret, &mut out),
            true => {
                let tail = self.plane.shared.key_tails.tail(&self.cancel_key.0);
                originate::long_backend_key_data(process_id, secret, &tail, &mut out);
            }
        }
        if let Some(message) = &self.plane.shared.config.load().settings.login_notify_message {
            originate::error(&SqlError::notice(message.clone()), &mut out);
        }
        originate::ready_for_query_idle(&mut out);
        // A client that is gone is found at its first read.
        let _ = self.send(&out);
    }

    /// Writes to the client, after everything that was written before.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Farewell> {
        self.group.stats.borrow_mut().totals.bytes_sent += bytes.len() as u64;
        if let Some(backlog) = &mut self.backlog {
            backlog.extend_from_slice(bytes);
            return Ok(());
        }
        let written = self.socket.write_now(bytes).map_err(Farewell::Gone)?;
        if written < bytes.len() {
            self.backlog = Some(Box::new(bytes[written..].to_vec()));
        }
        Ok(())
    }

    /// Brings out what the client's socket did not take. Pending while it takes no more.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Farewell>> {
        while let Some(backlog) = &mut self.backlog {
            let written = ready!(self.socket.poll_write(context, backlog)).map_err(Farewell::Gone)?;
            if written == backlog.len() {
                self.backlog = None;
            } else {
                backlog.drain(..written);
            }
        }
        self.socket.poll_flush(context).map_err(Farewell::Gone)
    }

    fn poll_advance(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Farewell> {
        for _ in 0..READS_MAX {
            if let Some(doom) = self.doom.take() {
                if matches!(*doom, Farewell::Severed) && self.moves_on() {
                    continue;
                }
                return Poll::Ready(*doom);
            }
            let step = match &self.phase {
                Phase::Idle => self.poll_idle(context, scratch),
                Phase::Waiting(_) => self.poll_waiting(context, scratch),
                Phase::Leased(_) => self.poll_leased(context, scratch),
                Phase::Asking(_) => self.poll_asking(context),
                Phase::Parting(_) => unreachable!("a session that is over is not advanced"),
            };
            if let Err(farewell) = ready!(step) {
                return Poll::Ready(farewell);
            }
        }
        // Others on this thread want their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends the session from outside its task.
    pub fn end(&mut self, farewell: Farewell) {
        if self.doom.is_none() {
            self.doom = Some(Box::new(farewell));
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Ends the session if it drives a server at this place.
    pub fn sever(&mut self, place: &Place) -> bool {
        let there = matches!(&self.phase, Phase::Leased(lease) if lease.site().place.as_ref() == Some(place));
        if there {
            self.end(Farewell::Severed);
        }
        there
    }

    /// Whether nobody can know whether what the client last sent is committed.
    fn is_fate_unknown(&self) -> bool {
        match &self.phase {
            // A standby commits nothing.
            Phase::Leased(lease) if lease.site().in_recovery == Some(true) => false,
            // A stream of changes changes nothing.
            Phase::Leased(lease)
                if self.group.replication == Replication::Physical || lease.pipeline.is_streaming() =>
            {
                false
            }
            Phase::Leased(lease) if self.follows => lease.flight.is_unknown(self.statements.as_deref()),
            _ => false,
        }
    }

    /// The first words of its log lines.
    pub fn tag(&self) -> ClientTag<'_> {
        ClientTag {
            id: self.id,
            database: Some(&self.group.database),
            user: Some(&self.group.user),
            peer: &self.peer,
        }
    }

    /// The session's last deed but for the [parting](Parting): tells the client, frees the server, writes the log.
    fn say_goodbye(&mut self, farewell: &Farewell) {
        let (reason, error) = match farewell {
            Farewell::Terminate => ("client close request".to_owned(), None),
            Farewell::EndOfStream => ("client unexpected eof".to_owned(), None),
            Farewell::Gone(error) => (format!("client unexpected eof ({error})"), None),
            Farewell::Error(error) => (error.message.to_string(), Some((**error).clone())),
            Farewell::ServerBroken => {
                let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "bad packet from server")
                    .detail("The server's answer does not fit what was asked.");
                ("bad packet from server".to_owned(), Some(error))
            }
            Farewell::Severed | Farewell::ServerGone { told: false } if self.is_fate_unknown() => {
                let message = "transaction resolution unknown";
                let error = SqlError::fatal(sqlstate::TRANSACTION_RESOLUTION_UNKNOWN, message)
                    .detail("The connection to the server was lost before it answered. What was sent last may be committed or not.")
                    .hint("Look whether it is there before you send it again.");
                (message.to_owned(), Some(error))
            }
            Farewell::Severed => {
                let message = "terminating connection due to administrator command";
                let error = SqlError::fatal(sqlstate::ADMIN_SHUTDOWN, message)
                    .detail("The server is no longer the primary of its cluster. The open transaction is rolled back.")
                    .hint("Reconnect and begin the transaction again.");
                ("server is no longer the primary".to_owned(), Some(error))
            }
            Farewell::ServerGone { told } => {
                let error = self.server_gone();
                ("server conn crashed?".to_owned(), (!told).then_some(error))
            }
        };
        let may_speak = self.may_speak();
        let broken =
            matches!(farewell, Farewell::ServerGone { .. } | Farewell::ServerBroken | Farewell::Severed);
        self.leave_server(broken);
        let settings = &self.plane.shared.config.load().settings;
        if let Some(error) = error {
            self.plane.metrics.borrow_mut().errors.record(&error.code);
            if settings.log_pooler_errors {
                tracing::warn!("{} pooler error: {}", self.tag(), error.line());
            }
            let mut bytes = BytesMut::new();
            originate::error(&error, &mut bytes);
            if may_speak {
                // The client may be gone already; then there is nobody to tell.
                let _ = self.send(&bytes);
            }
        }
        if settings.log_disconnections {
            let age = self.connected.elapsed().as_secs();
            tracing::info!("{} closing because: {reason} (age={age}s)", self.tag());
        }
        self.begin_parting(farewell);
    }

    fn server_gone(&self) -> SqlError {
        let message = "server conn crashed?";
        let detail =
            "The connection to the server was lost while a request was running or a transaction was open.";
        match self.follows {
            // By this code drivers know that another attempt may go well; what may be committed has 08007.
            true => SqlError::fatal(sqlstate::ADMIN_SHUTDOWN, message)
                .detail(detail)
                .hint("Reconnect and begin the transaction again."),
            false => SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message).detail(detail),
        }
    }

    /// Whether the client is between two messages of its server, where one of ours can stand.
    fn may_speak(&self) -> bool {
        !matches!(&self.phase, Phase::Leased(lease) if lease.pipeline.is_mid_message())
    }

    /// Frees the server, or closes it when it is not ready or `broken`; leaves the queue.
    fn leave_server(&mut self, broken: bool) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            // Its server is closed, as nobody knows what is left on it.
            Phase::Asking(_) => {}
            Phase::Idle | Phase::Waiting(_) | Phase::Parting(_) => {}
            Phase::Leased(lease) => {
                let ready = lease.pipeline.is_idle() && lease.carry.is_empty() && lease.backlog.is_empty();
                if broken || lease.loan().fatal_seen {
                    lease.close("server conn crashed?");
                } else if ready && !self.body.is_half_sent() {
                    self.leave(lease, Instant::now());
                } else {
                    lease.close("client disconnect while server was not ready");
                }
            }
        }
    }

    /// Returns a server that is idle: after the reset query where one is due, and not before the
    /// cancel requests on their way to it have arrived.
    fn give_back(&mut self, lease: Lease, now: Instant) {
        if self.group.replication != Replication::None {
            return lease.close("replication client was closed");
        }
        let resets = self.group.mode.get() == PoolMode::Session || self.group.reset_always.get();
        let reset = if resets { self.group.settings.borrow().reset_query.clone() } else { String::new() };
        self.give_back_after(lease, reset, now);
    }

    /// As [`Session::give_back`], after this query of ours, if it is any.
    fn give_back_after(&mut self, lease: Lease, reset: String, now: Instant) {
        match self.cancels.take().filter(|cancels| cancels.are_pending()) {
            None => finish_loan(lease, reset, now),
            Some(cancels) => {
                event_loop::spawn(async move {
                    match cancels.arrived().await {
                        true => finish_loan(lease, reset, Instant::now()),
                        false => lease.close("a cancel request may still reach it"),
                    }
                });
            }
        }
    }
}

fn finish_loan(lease: Lease, reset: String, now: Instant) {
    match reset.is_empty() {
        true => lease.release(now),
        false => lease.reset_and_release(reset, "server_reset_query"),
    }
}

/// How long ago that was, zero if the clock went back.
fn since(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}
