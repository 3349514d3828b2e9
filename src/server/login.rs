//! Dial a server and log in to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use super::{HEARD_MAX, QueryError, ServerConnection, Session, Versions, next_id, read_message};
use crate::auth::{AuthError, Progress, ServerLogin, ServerSecret};
use crate::error::{Severity, SqlError, sqlstate};
use crate::net::Socket;
use crate::net::dns::{Address, NoAddress};
use crate::net::endpoint::{Dialing, Endpoint};
use crate::protocol::Pipeline;
use crate::protocol::flight::Flight;
use crate::protocol::parameters::ParameterSet;
use crate::protocol::state::SessionState;
use crate::protocol::statements::ServerStatements;
use crate::wire::BackendTag;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::startup::{Replication, ServerKey};

/// What a server said of itself when the first of a pool's connections logged in: the client is told
/// the same. Names and values in the server's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome(pub Vec<(String, String)>);

/// Who logs in, where, and with what.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The server's address.
    pub endpoint: Arc<Endpoint>,
    /// How it is dialled.
    pub dialing: Dialing,
    /// User at the server.
    pub user: String,
    /// Database at the server.
    pub database: String,
    /// Further startup parameters.
    pub parameters: Vec<(String, String)>,
    /// What proves that we are the user.
    pub secret: Arc<ServerSecret>,
    /// `server_connect_timeout`; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// `connect_query`: run once before the connection is used.
    pub connect_query: Option<String>,
    /// `max_prepared_statements`.
    pub statements_max: usize,
    /// The system identifier that the server must have, where that is known: see [`OpenError::OtherSystem`].
    pub system_id: Option<u64>,
    /// What the connection is for.
    pub replication: Replication,
}

/// Most parameters that a server may report at a login; PostgreSQL itself reports fewer than 20.
const REPORTED_MAX: usize = 1_000;

/// PUBLIC may execute it.
const SYSTEM: &str = "SELECT system_identifier FROM pg_control_system()";

/// The same of a connection for replication, which need not know SQL.
const IDENTIFY_SYSTEM: &str = "IDENTIFY_SYSTEM";

/// The SQLSTATEs by which a protocol is refused: PostgreSQL's own, and PgBouncer's.
const NO_SUCH_PROTOCOL: [&str; 2] = [sqlstate::FEATURE_NOT_SUPPORTED, sqlstate::PROTOCOL_VIOLATION];

/// How far a login came.
#[derive(Default)]
struct Heard {
    /// The minor version of protocol 3 that is asked for, or spoken when the server has said so.
    minor: u16,
    /// Whether the server has begun to ask who we are: then the protocol suits it.
    authentication: bool,
}

/// Why no connection came about.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nobody is there, or the connection broke.
    #[error("connect failed: {0}")]
    Io(io::Error),
    /// No address of its name is known: the log says so beforehand, with the reason.
    #[error("server DNS lookup failed")]
    NoAddress,
    /// `server_connect_timeout` passed while it was reached already.
    #[error("connect timeout")]
    Timeout,
    /// The server said no, in these words.
    #[error("{0}")]
    Refused(SqlError),
    /// We have not what the server asks for, or it is not the server that it claims to be.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A standby where a primary was expected, or a primary where a standby was.
    #[error("the server is {} in recovery", if *.in_recovery { "" } else { "not" })]
    WrongRole {
        /// Whether it is in recovery.
        in_recovery: bool,
    },
    /// The address is another cluster's now: a pod's may go to any other pod as soon as it has ended.
    #[error("the server has system identifier {found}, the cluster's is {expected}")]
    OtherSystem {
        /// What it has.
        found: u64,
        /// What its cluster's servers have.
        expected: u64,
    },
    /// The topology moved on meanwhile.
    #[error("server connection is no longer wanted")]
    Unwanted,
    /// Bytes that are no login.
    #[error("bad packet during server login: {0}")]
    Protocol(String),
}

impl OpenError {
    /// Whether it says something of the server as a whole, and not just of this login.
    pub fn tells_of_the_server(&self) -> bool {
        match self {
            OpenError::Io(_)
            | OpenError::NoAddress
            | OpenError::Timeout
            | OpenError::WrongRole { .. }
            | OpenError::OtherSystem { .. } => true,
            OpenError::Refused(error) => sqlstate::IS_GOING_AWAY.contains(&error.code.as_ref()),
            OpenError::Auth(_) | OpenError::Protocol(_) | OpenError::Unwanted => false,
        }
    }
}

impl Welcome {
    /// The value of a parameter that it reported.
    pub fn get(&self, wanted: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    /// Whether the server is in recovery, as it reports since PostgreSQL 14.
    pub fn in_recovery(&self) -> Option<bool> {
        Some(self.get("in_hot_standby")? == "on")
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().is_some_and(|cause| cause.is::<NoAddress>()) {
            true => OpenError::NoAddress,
            false => OpenError::Io(error),
        }
    }
}

impl From<QueryError> for OpenError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Io(error) => error.into(),
            other => OpenError::Protocol(other.to_string()),
        }
    }
}

/// A server that has let us in.
struct Entered {
    socket: Socket,
    /// If its name was looked up.
    address: Option<Arc<Address>>,
    welcome: Welcome,
    cancel_key: ServerKey,
}

impl Recipe {
    /// For a connection that no client of ours will use: nothing is run or prepared on it in a client's name.
    pub fn own(endpoint: Endpoint, user: &str, database: &str, secret: Arc<ServerSecret>) -> Self {
        Recipe {
            endpoint: Arc::new(endpoint),
            dialing: Dialing::default(),
            user: user.to_owned(),
            database: database.to_owned(),
            parameters: Vec::new(),
            secret,
            timeout: None,
            connect_query: None,
            statements_max: 0,
            system_id: None,
            replication: Replication::None,
        }
    }

    /// The same for replication, with a client's own startup parameters, its `options` as they stand.
    pub fn for_replication(mut self, replication: Replication, parameters: &[(String, String)]) -> Self {
        self.replication = replication;
        self.connect_query = None;
        self.statements_max = 0;
        // What makes readers readers is the last word.
        let is_last = |(name, _): &(String, String)| name == "default_transaction_read_only";
        let (last, first): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parameters).into_iter().partition(is_last);
        self.parameters = first.into_iter().chain(parameters.iter().cloned()).chain(last).collect();
        self
    }

    /// Connects and logs in. The connection belongs to `worker`, on whose thread this runs.
    pub async fn open(
        &self,
        session: &Session,
        worker: usize,
        epoch: u64,
    ) -> Result<(ServerConnection, Welcome), OpenError> {
        let reached = AtomicBool::new(false);
        let opening = self.open_without_limit(session, worker, epoch, &reached);
        let Some(limit) = self.timeout else { return opening.await };
        match tokio::time::timeout(limit, opening).await {
            Ok(opened) => opened,
            Err(_) if reached.load(Ordering::Relaxed) => Err(OpenError::Timeout),
            // As the kernel would say it, had it less patience than we.
            Err(_) => Err(OpenError::Io(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn open_without_limit(
        &self,
        session: &Session,
        worker: usize,
        epoch: u64,
        reached: &AtomicBool,
    ) -> Result<(ServerConnection, Welcome), OpenError> {
        let Entered { socket, address, welcome, cancel_key } =
            self.dial_and_log_in(&session.versions, reached).await?;
        let mut parameters = ParameterSet::default();
        for (name, value) in &welcome.0 {
            if let Some(index) = session.tracked.index(name) {
                parameters = parameters.with(index, value);
            }
        }
        let mut server = ServerConnection {
            id: next_id(),
            endpoint: Arc::clone(&self.endpoint),
            address,
            socket,
            pipeline: Pipeline::default(),
            flight: Flight::default(),
            in_recovery: welcome.in_recovery() == Some(true),
            statements: ServerStatements::new(self.statements_max),
            parameters: session.parameters.intern(parameters),
            state: session.states.intern(SessionState::default()),
            served: 0,
            unwatched: false,
            refusal: None,
            unnamed_present: false,
            carry: Vec::new(),
            heard: Vec::new(),
            heard_max: HEARD_MAX,
            backlog: Vec::new(),
            cancel_key,
            opened_at: Instant::now(),
            used_at: Instant::now(),
            epoch,
            worker,
            replication: self.replication,
        };
        if let Some(expected) = self.system_id {
            check_system(&mut server, session, expected).await?;
        }
        if let Some(query) = &self.connect_query
            && let Err(error) = server.run(query, session).await
        {
            // PgBouncer logs it and goes on; a lost connection is found at its first use.
            tracing::warn!("connect_query failed at {}: {error}", self.endpoint);
        }
        Ok((server, welcome))
    }

    /// Asks for the newest protocol that the server may know. PostgreSQL says in the same exchange what it speaks
    /// instead; whoever just refuses, as a pooler of before 2024 does, is asked once more for 3.0.
    async fn dial_and_log_in(&self, versions: &Versions, reached: &AtomicBool) -> Result<Entered, OpenError> {
        let minor = versions.of(&self.endpoint);
        let mut heard = Heard { minor, ..Heard::default() };
        let first = self.dial_and_ask(&mut heard, reached).await;
        let is_refusal = match &first {
            Err(OpenError::Io(error)) => {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
            }
            Err(OpenError::Refused(error)) => NO_SUCH_PROTOCOL.contains(&error.code.as_ref()),
            Err(OpenError::Protocol(_)) => true,
            _ => false,
        };
        let opened = match minor > 0 && !heard.authentication && is_refusal {
            false => first?,
            true => {
                heard = Heard::default();
                self.dial_and_ask(&mut heard, reached).await?
            }
        };
        if heard.minor < minor {
            versions.note_refused(&self.endpoint);
        }
        if let Some((_, version)) = opened.welcome.0.iter().find(|(name, _)| name == "server_version") {
            versions.note_server(&self.endpoint, version);
        }
        Ok(opened)
    }

    async fn dial_and_ask(&self, heard: &mut Heard, reached: &AtomicBool) -> Result<Entered, OpenError> {
        let (socket, address) = self.endpoint.reach(&self.dialing).await?;
        reached.store(true, Ordering::Relaxed);
        let mut socket = self.endpoint.begin(socket, &self.dialing).await?;
        socket.write_all(&self.startup_packet(heard.minor)).await?;
        let (welcome, cancel_key) = self.log_in(&mut socket, heard).await?;
        Ok(Entered { socket, address, welcome, cancel_key })
    }

    fn startup_packet(&self, minor: u16) -> Vec<u8> {
        let version = (3 << 16) | u32::from(minor);
        let mut packet = vec![0; 4];
        packet.extend_from_slice(&version.to_be_bytes());
        let fixed = [("user", self.user.as_str()), ("database", self.database.as_str())];
        let replication =
            (self.replication != Replication::None).then(|| ("replication", self.replication.as_str()));
        let others = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fixed.into_iter().chain(replication).chain(others) {
            for text in [name, value] {
                packet.extend(text.bytes().filter(|byte| *byte != 0));
                packet.push(0);
            }
        }
        packet.push(0);
        let length = u32::try_from(packet.len()).expect("names and settings are far below 4 GB");
        packet[..4].copy_from_slice(&length.to_be_bytes());
        packet
    }

    async fn log_in(
        &self,
        socket: &mut Socket,
        heard: &mut Heard,
    ) -> Result<(Welcome, ServerKey), OpenError> {
        let (secret, channel) = (Arc::clone(&self.secret), socket.channel_of_server());
        let mut login = ServerLogin::new(&self.user, secret, channel, &mut rand::rng());
        let mut welcome = Welcome::default();
        let mut cancel_key = ServerKey::default();
        let mut authenticated = false;
        loop {
            let (tag, body) = read_message(socket).await?;
            match tag {
                BackendTag::Authentication => {
                    heard.authentication = true;
                    let mut answer = BytesMut::new();
                    let progress = login.handle_authentication(&body, &mut answer)?;
                    authenticated = progress == Progress::Done(());
                    socket.write_all(&answer).await?;
                }
                BackendTag::ErrorResponse => {
                    return Err(OpenError::Refused(refusal(&backend::error_fields(&body))));
                }
                // A notice may come at any time, before the login's end too.
                BackendTag::NoticeResponse => {}
                BackendTag::NegotiateProtocolVersion => {
                    let minor = backend::negotiated_minor(&body).filter(|minor| *minor <= heard.minor);
                    let wrong =
                        || OpenError::Protocol("it speaks a protocol that it was not asked for".into());
                    heard.minor = minor.ok_or_else(wrong)?;
                }
                BackendTag::ParameterStatus if welcome.0.len() >= REPORTED_MAX => {
                    return Err(OpenError::Protocol(format!(
                        "it reports more than {REPORTED_MAX} parameters"
                    )));
                }
                BackendTag::ParameterStatus => {
                    if let Some((name, value)) = backend::parameter_status(&body) {
                        welcome.0.push((name.to_owned(), value.to_owned()));
                    }
                }
                BackendTag::BackendKeyData => {
                    cancel_key = ServerKey::read(&body).unwrap_or_default();
                }
                BackendTag::ReadyForQuery if authenticated => return Ok((welcome, cancel_key)),
                other => return Err(OpenError::Protocol(format!("unexpected {other:?}"))),
            }
        }
    }
}

/// A user who may not ask is let in: that right is everybody's, unless somebody has taken it away.
async fn check_system(
    server: &mut ServerConnection,
    session: &Session,
    expected: u64,
) -> Result<(), OpenError> {
    let question = if server.replication == Replication::None { SYSTEM } else { IDENTIFY_SYSTEM };
    let row = match server.first_row(question, session).await {
        Ok(row) => row,
        Err(QueryError::Refused(reason) | QueryError::Canceled(reason)) => {
            tracing::debug!("S-{:#x}: cannot ask for the system identifier: {reason}", server.id);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match row.first().and_then(Option::as_deref).and_then(read_system_id) {
        Some(found) if found != expected => Err(OpenError::OtherSystem { found, expected }),
        Some(_) => Ok(()),
        None => Err(OpenError::Protocol("its system identifier is no number".into())),
    }
}

/// A system identifier as SQL shows it: bigint has a sign, the identifier has none.
pub fn read_system_id(text: &str) -> Option<u64> {
    text.parse::<i64>().map(i64::cast_unsigned).or_else(|_| text.parse()).ok()
}

/// The server's own words, to be passed on.
fn refusal(fields: &ErrorFields<'_>) -> SqlError {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let optional = |bytes: &[u8]| (!bytes.is_empty()).then(|| text(bytes));
    let code = match fields.code.len() {
        5 => text(fields.code).into(),
        _ => crate::error::sqlstate::CONNECTION_FAILURE.into(),
    };
    SqlError {
        severity: Severity::Fatal,
        code,
        message: text(fields.message).into(),
        detail: optional(fields.detail),
        hint: optional(fields.hint),
    }
}
