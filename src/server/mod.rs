//! [`ServerConnection`]: one logged-in connection to PostgreSQL, and what is known about its session.

pub mod login;
mod versions;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use versions::Versions;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::sqlstate;
use crate::net::Socket;
use crate::net::dns::Address;
use crate::net::endpoint::{Dialing, Endpoint};
use crate::protocol::flight::Flight;
use crate::protocol::intern::Interner;
use crate::protocol::parameters::{ParameterSet, SEARCH_PATH, Tracked};
use crate::protocol::state::SessionState;
use crate::protocol::statements::ServerStatements;
use crate::protocol::{OutOfStep, Pipeline, Stop};
use crate::wire::backend::{self, TransactionStatus};
use crate::wire::startup::{Replication, ServerKey};
use crate::wire::{BackendTag, HEADER_LENGTH, Header, Malformed, originate};

/// Largest message that is read whole outside of the relay: more than a session may carry.
const MESSAGE_MAX: usize = 2 * 1024 * 1024;

/// Most bytes of notifications that may come while a query of our own is answered, which takes milliseconds.
pub const HEARD_MAX: usize = 1024 * 1024;

/// Most rows of a query of our own, and most bytes: more than a session may carry (`ENTRIES_MAX`, `TEXT_MAX`), so that
/// its client hears of that limit.
const ROWS_MAX: usize = 16 * 1024;
/// See [`ROWS_MAX`].
const BYTES_MAX: usize = 8 * 1024 * 1024;

static LAST_ID: AtomicU64 = AtomicU64::new(0);

/// What is the same for all servers of a process: the tracked parameters and their interned values.
pub struct Session {
    /// Which parameters follow a client.
    pub tracked: Tracked,
    /// Their values.
    pub parameters: Interner<ParameterSet>,
    /// What clients have made of their sessions.
    pub states: Interner<SessionState>,
    /// Which protocol each server is asked for.
    pub versions: Versions,
}

impl Session {
    /// One that knows nothing yet.
    pub fn new(tracked: Tracked) -> Self {
        Session {
            tracked,
            parameters: Interner::default(),
            states: Interner::default(),
            versions: Versions::default(),
        }
    }

    /// One for connections whose parameters follow nobody.
    pub fn untracked() -> Self {
        Session::new(Tracked::new(std::iter::empty()))
    }
}

/// A connection that is logged in. It belongs to one client at a time, or to the pool.
#[derive(Debug)]
pub struct ServerConnection {
    /// Unlike all others of this process.
    pub id: u64,
    /// Where it leads.
    pub endpoint: Arc<Endpoint>,
    /// Which address of its host's name that was.
    pub address: Option<Arc<Address>>,
    /// The socket.
    pub socket: Socket,
    /// Requests sent and answers owed.
    pub pipeline: Pipeline,
    /// Of a server of a cluster, what was sent and is not settled.
    pub flight: Flight,
    /// Statements that it has prepared.
    pub statements: ServerStatements,
    /// `in_hot_standby`, as it last reported it; false before PostgreSQL 14.
    pub in_recovery: bool,
    /// The values of the tracked parameters.
    pub parameters: Arc<ParameterSet>,
    /// What has been made of its session, beyond these.
    pub state: Arc<SessionState>,
    /// The client that it was last lent to, 0 for none since its sequences are as new. The pool lends it to that one
    /// again.
    pub served: u64,
    /// Some client had it without anybody's watching what it made of the session.
    pub unwatched: bool,
    /// Why it refused the last query of ours in front of a client's request.
    pub refusal: Option<String>,
    /// Whether its unnamed statement is the present client's.
    pub unnamed_present: bool,
    /// The beginning of a message whose end has not come yet.
    pub carry: Vec<u8>,
    /// Notifications that came with the answers to queries of ours and that nobody has taken yet, as whole messages.
    pub heard: Vec<u8>,
    /// Most bytes of them.
    pub heard_max: usize,
    /// Bytes that the kernel did not take yet.
    pub backlog: Vec<u8>,
    /// What a CancelRequest for it must say.
    pub cancel_key: ServerKey,
    /// When the login was complete.
    pub opened_at: Instant,
    /// When it was last lent.
    pub used_at: Instant,
    /// The pool's epoch at its opening: RECONNECT and a changed database make it an old one.
    pub epoch: u64,
    /// The worker whose event loop watches the socket.
    pub worker: usize,
    /// What it was opened for. One for replication is never lent to a second client.
    pub replication: Replication,
}

/// Why a statement of our own did not work.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The connection is gone.
    #[error("server connection lost: {0}")]
    Io(#[from] io::Error),
    /// The server's bytes make no sense.
    #[error(transparent)]
    OutOfStep(#[from] OutOfStep),
    /// The server refused the statement.
    #[error("{0}")]
    Refused(String),
    /// The server began it and gave it up: for a time limit of the session, or a CancelRequest.
    #[error("{0}")]
    Canceled(String),
}

impl From<Malformed> for QueryError {
    fn from(malformed: Malformed) -> Self {
        QueryError::OutOfStep(malformed.into())
    }
}

impl ServerConnection {
    /// Whether its host's name has moved away from the address that it leads to.
    pub fn is_elsewhere(&self) -> bool {
        self.address.as_ref().is_some_and(|address| address.is_gone())
    }

    /// How long ago it logged in.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened_at)
    }

    /// Has the current thread watch the socket.
    ///
    /// Fails when the connection died meanwhile, which its event loop may not have noticed yet.
    pub fn move_to(self, worker: usize) -> io::Result<Self> {
        let mut socket = self.socket.detach().attach()?;
        if !socket.is_silent_and_open() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(ServerConnection { socket, worker, ..self })
    }

    /// Deals with what came while nobody used it. ParameterStatus and notices may come at any time
    /// (PostgreSQL manual, "Asynchronous Operations"); `Err` says why it cannot be used any more.
    /// Costs no system call when nothing came, and registers the waker for what comes later.
    pub fn poll_idle(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
        session: &Session,
    ) -> Result<(), &'static str> {
        loop {
            match self.socket.poll_read(context, buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(_) | Ok(0)) => return Err("server conn crashed?"),
                Poll::Ready(Ok(count)) => self.carry.extend_from_slice(&buffer[..count]),
            }
            let input = std::mem::take(&mut self.carry);
            let left = self.receive_idle(&input, session).map_err(|_| "bad packet from server")?;
            if !left {
                return Err("idle server got dirty");
            }
        }
    }

    /// Returns whether the connection may stay.
    fn receive_idle(&mut self, input: &[u8], session: &Session) -> Result<bool, OutOfStep> {
        let mut at = 0;
        loop {
            let received = self.pipeline.receive(&input[at..])?;
            match received.stop {
                Stop::NeedMore => {
                    self.carry.extend_from_slice(&input[at + received.consumed..]);
                    return Ok(self.pipeline.is_idle());
                }
                Stop::Parameter(range) => {
                    self.note_parameter(&input[at + range.start..at + range.end], session);
                }
                Stop::Discarded | Stop::Notification(_) => {}
                _ => return Ok(false),
            }
            at += received.consumed;
        }
    }

    /// Notes a reported parameter's new value. Returns whether it is a tracked one.
    pub fn note_parameter(&mut self, body: &[u8], session: &Session) -> bool {
        let Some((name, value)) = backend::parameter_status(body) else {
            return false;
        };
        if name == "in_hot_standby" {
            self.in_recovery = value == "on";
        }
        let Some(index) = session.tracked.index(name) else {
            return false;
        };
        if self.parameters.get(index) != Some(value) {
            self.parameters = session.parameters.intern(self.parameters.with(index, value));
        }
        true
    }

    /// Runs a statement of our own to its end and throws the results away.
    ///
    /// Fails on any error, and when the server is left inside a transaction.
    pub async fn run(&mut self, sql: &str, session: &Session) -> Result<(), QueryError> {
        self.run_with(sql, session, |_| {}).await
    }

    /// As [`ServerConnection::run`], with a look at each DataRow.
    async fn run_with(
        &mut self,
        sql: &str,
        session: &Session,
        mut note_row: impl FnMut(&[u8]),
    ) -> Result<(), QueryError> {
        let mut out = BytesMut::new();
        originate::query(sql, &mut out);
        self.exchange(&out, session, &mut note_row).await
    }

    /// Sends a request of our own and reads its answer to the end.
    async fn exchange(
        &mut self,
        request: &[u8],
        session: &Session,
        note_row: &mut impl FnMut(&[u8]),
    ) -> Result<(), QueryError> {
        // Its client may keep the server, whose unnamed statement is ours now, or none: Query drops it.
        self.unnamed_present = false;
        self.socket.write_all(request).await?;
        let mut failure = None;
        loop {
            let (tag, body) = match read_message(&mut self.socket).await {
                Ok(message) => message,
                // Its last words say more than that it is gone.
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            match tag {
                BackendTag::NotificationResponse => self.note_notification(&body)?,
                BackendTag::ErrorResponse => {
                    let fields = backend::error_fields(&body);
                    let message = String::from_utf8_lossy(fields.message).into_owned();
                    failure = Some(match fields.code == sqlstate::QUERY_CANCELED.as_bytes() {
                        true => QueryError::Canceled(message),
                        false => QueryError::Refused(message),
                    });
                }
                BackendTag::ParameterStatus => {
                    self.note_parameter(&body, session);
                }
                BackendTag::CommandComplete
                    if matches!(&body[..], b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") =>
                {
                    self.statements.clear();
                    if body.starts_with(b"DISCARD") {
                        self.state = session.states.intern(SessionState::default());
                        self.served = 0;
                        self.pipeline.others_sequences = false;
                        self.unwatched = false;
                    }
                }
                BackendTag::DataRow => note_row(&body),
                BackendTag::ReadyForQuery => break self.own_query_done(&body, failure),
                BackendTag::CopyInResponse => {
                    return Err(QueryError::Refused("it wants COPY data".into()));
                }
                _ => {}
            }
        }
    }

    /// Takes the notifications of [`ServerConnection::carry`], as whole messages, from a server that nothing was
    /// asked of.
    ///
    /// Fails with what the server says when it ends, and when it says what has no place there.
    pub fn take_heard(&mut self, session: &Session) -> Result<Vec<u8>, QueryError> {
        let input = std::mem::take(&mut self.carry);
        let (mut at, mut heard) = (0, Vec::new());
        while let Some((tag, length)) = message_header(&input[at..])? {
            let Some(message) = input.get(at..at + length) else { break };
            let body = &message[HEADER_LENGTH..];
            match tag {
                BackendTag::NotificationResponse => heard.extend_from_slice(message),
                BackendTag::ParameterStatus => drop(self.note_parameter(body, session)),
                BackendTag::NoticeResponse => {}
                BackendTag::ErrorResponse => {
                    let message = backend::error_fields(body).message;
                    return Err(QueryError::Refused(String::from_utf8_lossy(message).into_owned()));
                }
                tag => return Err(OutOfStep::Unexpected { tag, expected: None }.into()),
            }
            at += length;
        }
        self.carry.extend_from_slice(&input[at..]);
        Ok(heard)
    }

    /// Keeps what the client listens to, and what came while the server answered us.
    fn note_notification(&mut self, body: &[u8]) -> Result<(), QueryError> {
        if self.heard.len() + body.len() > self.heard_max {
            return Err(QueryError::Refused("it sends too many notifications".into()));
        }
        let length = u32::try_from(body.len() + 4).expect("read_message() limits it");
        self.heard.push(BackendTag::NotificationResponse as u8);
        self.heard.extend_from_slice(&length.to_be_bytes());
        self.heard.extend_from_slice(body);
        Ok(())
    }

    /// Runs a query of our own and returns the first value of its first row; NULL is `None`.
    ///
    /// Fails as [`ServerConnection::first_row`] does.
    pub async fn first_value(&mut self, sql: &str, session: &Session) -> Result<Option<String>, QueryError> {
        Ok(self.first_row(sql, session).await?.into_iter().next().flatten())
    }

    /// Runs a query of our own and returns its first row; NULL is `None`.
    ///
    /// Fails as [`ServerConnection::run`] does, and when there is no row.
    pub async fn first_row(
        &mut self,
        sql: &str,
        session: &Session,
    ) -> Result<Vec<Option<String>>, QueryError> {
        let mut row = None;
        self.run_with(sql, session, |body| {
            row.get_or_insert_with(|| backend::data_row(body));
        })
        .await?;
        match row {
            Some(Some(row)) => Ok(row),
            Some(None) => Err(QueryError::Refused("its row is malformed".into())),
            None => Err(QueryError::Refused("it returned no row".into())),
        }
    }

    /// Undoes what a client has made of its session, where we ask something of our own.
    ///
    /// Fails as [`ServerConnection::run`] does.
    pub async fn clean(&mut self, session: &Session) -> Result<(), QueryError> {
        let clean = SessionState::default();
        let (mut undo, _) = self.state.toward(&clean);
        // Where it is tracked it is no part of that state, and decides what the names in a query mean.
        if session.tracked.reported(SEARCH_PATH, &self.parameters).is_some() {
            undo.push_str("RESET search_path;");
        }
        if undo.is_empty() {
            return Ok(());
        }
        self.run(&undo, session).await?;
        self.state = session.states.intern(clean);
        Ok(())
    }

    /// Runs a query of our own and returns its rows; more than 16,384 or 8 MB are an error.
    ///
    /// Fails as [`ServerConnection::run`] does.
    pub async fn rows(
        &mut self,
        sql: &str,
        session: &Session,
    ) -> Result<Vec<Vec<Option<String>>>, QueryError> {
        let mut rows = Vec::new();
        let (mut malformed, mut bytes) = (false, 0);
        self.run_with(sql, session, |body| {
            bytes += body.len();
            match backend::data_row(body) {
                Some(row) if rows.len() < ROWS_MAX && bytes <= BYTES_MAX => rows.push(row),
                Some(_) | None => malformed = true,
            }
        })
        .await?;
        match malformed {
            true => Err(QueryError::Refused("there are too many rows, or one is malformed".into())),
            false => Ok(rows),
        }
    }

    /// Runs a query of our own with one parameter. Returns its first row, if there is one.
    ///
    /// Fails as [`ServerConnection::run`] does.
    pub async fn row_for(
        &mut self,
        sql: &str,
        parameter: &str,
        session: &Session,
    ) -> Result<Option<Vec<Option<String>>>, QueryError> {
        let (mut out, mut row) = (BytesMut::new(), None);
        originate::query_with(sql, parameter, &mut out);
        let mut note_row = |body: &[u8]| {
            row.get_or_insert_with(|| backend::data_row(body));
        };
        self.exchange(&out, session, &mut note_row).await?;
        match row {
            Some(None) => Err(QueryError::Refused("its row is malformed".into())),
            Some(row) => Ok(row),
            None => Ok(None),
        }
    }

    fn own_query_done(&self, body: &[u8], failure: Option<QueryError>) -> Result<(), QueryError> {
        let status = body.first().copied().and_then(TransactionStatus::from_byte);
        match (failure, status) {
            (Some(error), _) => Err(error),
            (None, Some(TransactionStatus::Idle)) => Ok(()),
            (None, _) => Err(QueryError::Refused("it left a transaction open".into())),
        }
    }
}

/// Reads one whole message. Not for the relay: it costs two reads and a buffer.
pub(crate) async fn read_message(socket: &mut Socket) -> Result<(BackendTag, Vec<u8>), QueryError> {
    let mut header = [0; HEADER_LENGTH];
    socket.read_exact(&mut header).await?;
    let (tag, length) = message_header(&header)?.expect("five bytes were read");
    let mut body = vec![0; length - HEADER_LENGTH];
    socket.read_exact(&mut body).await?;
    Ok((tag, body))
}

/// Type and length of the message at the start of `input`, which is read whole; `None` when its header is not there yet.
fn message_header(input: &[u8]) -> Result<Option<(BackendTag, usize)>, QueryError> {
    let Some(header) = Header::read(input)? else { return Ok(None) };
    let tag = BackendTag::from_byte(header.tag)?;
    if header.length > MESSAGE_MAX {
        let tag = char::from(header.tag);
        return Err(Malformed::TooLarge { tag, need: header.length, limit: MESSAGE_MAX }.into());
    }
    Ok(Some((tag, header.length)))
}

/// Asks a server to cancel what the connection with this key runs, and waits until the server has
/// dealt with it, which it shows by closing the connection. `at` is the address that the connection has: of
/// several servers with one name no other knows the key.
///
/// Fails when the server cannot be reached, and when it gave no key.
pub async fn cancel(
    endpoint: &Endpoint,
    at: Option<IpAddr>,
    how: &Dialing,
    key: &ServerKey,
) -> io::Result<()> {
    let request = key.request().ok_or(io::ErrorKind::Unsupported)?;
    let mut socket = endpoint.dial_at(how, at).await?;
    socket.write_all(&request).await?;
    let mut rest = [0; 64];
    match socket.read(&mut rest).await {
        // A postmaster that closes with our bytes unread resets the connection.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => other.map(|_| ()),
    }
}

/// A number that no other connection of this process has, client or server.
pub fn next_id() -> u64 {
    LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
}
