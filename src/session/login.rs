//! From a new socket to a [`Session`]: the first packets, who it is, whether it may, and what it is
//! told. An asynchronous function like any other; nothing of it is left when the session begins.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::admission::Admission;
use super::cancel;
use super::console;
use super::options::{Wanted, add_host, client_parameters, follows, role_option};
use super::plane::{Group, Plane};
use super::{Client, NewSession, Session, replication, task};
use crate::admin::{CONSOLE_DATABASE, Rights};
use crate::auth::{ChannelBinding, Credentials, Proof, ServerSecret};
use crate::config::{AuthType, Config, Database, Role};
use crate::error::{SqlError, sqlstate};
use crate::log::{ClientTag, Peer};
use crate::net::tls::Acceptor;
use crate::net::{DetachedSocket, Socket, event_loop};
use crate::pool::quota::Permit;
use crate::pool::state::NOBODY;
use crate::pool::{Acquired, Lease, Pool};
use crate::protocol::parameters::ParameterSet;
use crate::protocol::state::SessionState;
use crate::route;
use crate::server::login::Welcome;
use crate::wire::originate;
use crate::wire::startup::{self, CancelRequest, FirstPacket, Replication, Startup, TLS_HANDSHAKE};

/// The newest minor version of protocol 3 that we speak: PostgreSQL 18's.
const MINOR_MAX: u16 = 2;

/// From this one on a cancel key may be longer than eight bytes.
const LONG_KEYS_SINCE: u16 = 2;

const LOGGED_IN: &str = "who is logged in has a socket";

/// How a login ends without a session.
pub(super) enum Refusal {
    /// The client is told.
    Error(SqlError),
    /// It was none: the connection brought a CancelRequest.
    Cancel(CancelRequest),
    /// There is nobody to tell, or nothing to say.
    Quiet(&'static str),
    /// The connection broke.
    Io(io::Error),
    /// TLS cannot begin; the client has been told in TLS's own way.
    Tls(io::Error),
}

impl From<SqlError> for Refusal {
    fn from(error: SqlError) -> Self {
        Refusal::Error(error)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error)
    }
}

/// A connection that is not logged in yet.
pub(super) struct Newcomer {
    pub(super) plane: Rc<Plane>,
    /// `None` while TLS begins, when nothing can be said on it.
    pub(super) socket: Option<Socket>,
    pub(super) peer: Peer,
    pub(super) id: u64,
    pub(super) connected: Instant,
    /// What SCRAM can be bound to, on a connection with TLS.
    pub(super) channel: Option<ChannelBinding>,
    user: Option<String>,
    database: Option<String>,
    pub(super) waits_for_server: bool,
    /// `auth_query` has found no such user.
    pub(super) asked_in_vain: bool,
    pub(super) replication: Replication,
    /// The minor version of protocol 3 that is spoken.
    minor: u16,
}

/// Begins with a new connection, on the plane's thread.
pub fn welcome(plane: &Rc<Plane>, socket: DetachedSocket, peer: Peer) {
    match socket.attach() {
        Ok(socket) => event_loop::spawn(serve(Rc::clone(plane), socket, peer)),
        Err(error) => {
            tracing::error!("cannot watch a new client connection: {error}");
            plane.disconnected();
        }
    }
}

/// Serves one connection from its first byte to its last.
async fn serve(plane: Rc<Plane>, socket: Socket, peer: Peer) {
    let id = plane.shared.next_client();
    let mut newcomer = Box::new(Newcomer {
        plane: Rc::clone(&plane),
        socket: Some(socket),
        peer,
        id,
        connected: Instant::now(),
        channel: None,
        user: None,
        database: None,
        waits_for_server: false,
        asked_in_vain: false,
        replication: Replication::None,
        minor: 0,
    });
    plane.logins.set(plane.logins.get() + 1);
    let began = Instant::now();
    let outcome = newcomer.log_in_in_time().await;
    plane.logins.set(plane.logins.get() - 1);
    match outcome {
        Ok(Entry::Session(start)) => {
            plane.metrics.borrow_mut().login.record(began.elapsed());
            // In a function of its own, so that this future keeps nothing of the login.
            start_session(*newcomer, *start);
        }
        Ok(Entry::Console(rights, _permits)) => {
            let Newcomer { plane, socket, peer, id, user, connected, .. } = *newcomer;
            let socket = socket.expect(LOGGED_IN);
            let client = console::Client { socket, peer, id, user: user.unwrap_or_default(), connected };
            console::serve(Rc::clone(&plane), client, rights).await;
            plane.disconnected();
        }
        Err(refusal) => {
            newcomer.refuse(refusal).await;
            plane.disconnected();
        }
    }
}

fn start_session(newcomer: Newcomer, start: Start) {
    let Start { group, welcome, parameters, state, wanted, proven, admission, own_server } = start;
    let Newcomer { plane, socket, peer, id, connected, minor, .. } = newcomer;
    let socket = socket.expect(LOGGED_IN);
    let config = plane.shared.config.load_full();
    // Among the peers of [peers] there may be a PgBouncer, which passes on keys of eight bytes alone.
    let long_key = minor >= LONG_KEYS_SINCE && config.peers.is_empty();
    if config.settings.log_connections {
        let tag = ClientTag { id, database: Some(&group.database), user: Some(&group.user), peer: &peer };
        tracing::info!(
            "{tag} login attempt: db={} user={} tls={} replication={}",
            group.database,
            group.user,
            console::tls_word(&socket),
            group.replication.as_str()
        );
    }
    let client = Client {
        peer,
        id,
        connected,
        last_request: connected,
        parameters,
        state,
        wanted,
        proven,
        statements: None,
        admission,
    };
    let session = Session::begin(&plane, NewSession { socket, group, client, own_server }, long_key);
    let settles = {
        let mut session = session.borrow_mut();
        session.greet(&welcome);
        session.settles()
    };
    match settles {
        None => task::run(session),
        elsewhere => task::leave(session, elsewhere),
    }
}

/// What a login leads to.
enum Entry {
    Session(Box<Start>),
    Console(Rights, [Permit; 2]),
}

/// What a session begins with.
struct Start {
    group: Rc<Group>,
    /// What its server says of itself.
    welcome: Arc<Welcome>,
    parameters: Arc<ParameterSet>,
    /// What it has asked for beyond these.
    state: Arc<SessionState>,
    /// What its StartupMessage says of both.
    wanted: Option<Arc<Wanted>>,
    /// Whether a server has accepted both.
    proven: bool,
    admission: Admission,
    /// Of a replication connection.
    own_server: Option<Lease>,
}

impl Newcomer {
    async fn log_in_in_time(&mut self) -> Result<Entry, Refusal> {
        let limit = self.plane.shared.config.load().settings.client_login_timeout;
        if limit.is_zero() {
            return self.log_in().await;
        }
        match tokio::time::timeout(limit, self.log_in()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.login_timeout(limit)),
        }
    }

    fn login_timeout(&self, limit: Duration) -> Refusal {
        let message = match self.waits_for_server {
            true => "client_login_timeout (server down)",
            false => "client_login_timeout",
        };
        let detail = format!("The login was not complete after {} s.", limit.as_secs_f64());
        SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message).detail(detail).into()
    }

    async fn log_in(&mut self) -> Result<Entry, Refusal> {
        let mut startup = self.read_startup().await?;
        for (name, value) in &startup.parameters {
            tracing::debug!("C-{:#x}: got var: {name}={value}", self.id);
        }
        let mut out = BytesMut::new();
        self.minor = startup.minor.min(MINOR_MAX);
        if startup.minor > MINOR_MAX || !startup.protocol_options.is_empty() {
            originate::negotiate_protocol_version(self.minor, &startup.protocol_options, &mut out);
            self.socket().write_all(&out).await?;
        }
        let config = self.plane.shared.config.load_full();
        let user = startup.get("user").filter(|user| !user.is_empty());
        let Some(user) = user.map(str::to_owned) else {
            return Err(fatal("no username supplied").into());
        };
        let name = self.database_name(&startup, &config, &user)?;
        self.user = Some(user.clone());
        self.database = Some(name.clone());
        if name == CONSOLE_DATABASE {
            return self.log_in_to_console(&config, &user).await;
        }
        if self.plane.shared.lifecycle.closing.load(Ordering::Relaxed) {
            return Err(fatal("pooler is shutting down").into());
        }
        self.replication = replication::asked_for(&startup)?;
        let is_ordinary = self.replication == Replication::None;
        if config.settings.application_name_add_host {
            add_host(&mut startup, &self.peer);
        }
        let mut wanted = client_parameters(&startup, &config, &self.plane, !is_ordinary)?;
        let place = self.admit(&config)?;
        let base = config.base_name(&name);
        let (credentials, proof) = self.authenticate(&config, base, &user).await?;
        let Some(database) = config.database(&name) else {
            return Err(fatal(format!("no such database: {name}")).into());
        };
        if !config.databases.contains_key(&name) && !self.plane.shared.databases.is_known(&name) {
            tracing::info!("registered new auto-database: {name}");
        }
        let admission = self.admit_user(&config, &database, &user, place)?;
        if config.settings.auth_type == AuthType::Any && database.user.is_none() {
            return Err(fatal("bouncer config error").detail("auth_type=any requires forced user").into());
        }
        self.check_enabled(&name)?;
        self.check_enabled(base)?;
        let secret = self.server_secret(&database, credentials.as_deref(), &proof);
        let start = if is_ordinary {
            let (group, welcome) = self.join_pool(&config, &database, &user, secret).await?;
            let (parameters, proven) = self.own_parameters(&config, &welcome, &mut wanted);
            let state = SessionState::of_settings(wanted.others.iter().cloned());
            let proven = proven && state.is_clean();
            let state = self.plane.shared.server.states.intern(state);
            let wanted = wanted.kept(&self.plane);
            Start { group, welcome, parameters, state, wanted, proven, admission, own_server: None }
        } else {
            let asked = replication::parameters(&startup, &config);
            let (pool, lease, welcome) = self.own_server(&config, &database, &user, secret, &asked).await?;
            let group = self.plane.group(&user, &database.name, &pool, self.replication);
            let (welcome, parameters) = (Arc::new(welcome), Arc::clone(&lease.parameters));
            let state = Arc::clone(&lease.state);
            let own_server = Some(lease);
            Start { group, welcome, parameters, state, wanted: None, proven: true, admission, own_server }
        };
        Ok(Entry::Session(Box::new(start)))
    }

    /// The name of the client's database, with the role that it asks for.
    fn database_name(&self, startup: &Startup, config: &Config, user: &str) -> Result<String, SqlError> {
        let name = startup.get("database").filter(|name| !name.is_empty()).unwrap_or(user);
        if name == CONSOLE_DATABASE {
            return Ok(name.to_owned());
        }
        let by_option = match startup.get("options").and_then(role_option) {
            Some(value) => Some(route::role(&value).map_err(|error| fatal(error.to_string()))?),
            None => None,
        };
        let port = config.settings.listen_port_ro;
        let came_to = self.socket.as_ref().and_then(Socket::local_address).map(|address| address.port());
        let by_port = (port != 0 && came_to == Some(port)).then_some(Role::ReadOnly);
        route::database_name(config, name, by_option, by_port).map_err(|error| fatal(error.to_string()))
    }

    /// The first words of its log lines.
    pub(super) fn tag(&self) -> ClientTag<'_> {
        ClientTag {
            id: self.id,
            database: self.database.as_deref(),
            user: self.user.as_deref(),
            peer: &self.peer,
        }
    }

    // ---- the first packets ----

    pub(super) fn socket(&mut self) -> &mut Socket {
        self.socket.as_mut().expect("whoever takes it while TLS begins puts one back, or the login ends")
    }

    async fn read_startup(&mut self) -> Result<Startup, Refusal> {
        let (mut ssl_asked, mut gss_asked) = (false, false);
        loop {
            match self.read_first_packet().await? {
                FirstPacket::SslRequest if !ssl_asked => {
                    ssl_asked = true;
                    if let Some(acceptor) = self.acceptor() {
                        self.begin_tls(&acceptor).await?;
                        continue;
                    }
                }
                FirstPacket::GssEncRequest if !gss_asked => gss_asked = true,
                FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
                    return Err(Refusal::Quiet("encryption was asked for twice"));
                }
                FirstPacket::Cancel(request) => return Err(Refusal::Cancel(request)),
                FirstPacket::Startup(startup) => {
                    self.check_encrypted()?;
                    return Ok(startup);
                }
            }
            self.socket().write_all(b"N").await?;
        }
    }

    /// How the client may be given TLS; a Unix socket has none, as in PgBouncer and PostgreSQL.
    fn acceptor(&self) -> Option<Arc<Acceptor>> {
        match &self.socket {
            Some(Socket::Tcp(_)) => self.plane.shared.databases.tls().acceptor.clone(),
            Some(Socket::Tls(_) | Socket::Unix(_)) | None => None,
        }
    }

    /// Answers an SSLRequest with `S` and makes the handshake.
    ///
    /// What a client sends behind its request without waiting is not its own: someone put it there to
    /// have it taken for what comes encrypted (CVE-2021-23214).
    async fn begin_tls(&mut self, acceptor: &Acceptor) -> Result<(), Refusal> {
        if !self.socket().is_silent_and_open() {
            let detail = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.";
            return Err(fatal("received unencrypted data after SSL request").detail(detail).into());
        }
        self.socket().write_all(b"S").await?;
        self.encrypt(acceptor, &[]).await
    }

    /// Makes the handshake, of which `begun` was read already.
    async fn encrypt(&mut self, acceptor: &Acceptor, begun: &[u8]) -> Result<(), Refusal> {
        let Some(Socket::Tcp(stream)) = self.socket.take() else {
            unreachable!("acceptor() looked");
        };
        let stream = acceptor.accept(stream, begun).await.map_err(Refusal::Tls)?;
        self.socket = Some(Socket::Tls(Box::new(stream)));
        self.channel = acceptor.channel.clone();
        Ok(())
    }

    /// A client that begins with TLS itself must say what it will speak (PostgreSQL 17,
    /// `sslnegotiation=direct`).
    async fn begin_direct_tls(&mut self, begun: &[u8]) -> Result<(), Refusal> {
        let acceptor = self.acceptor().ok_or(Refusal::Quiet("direct TLS is not allowed"))?;
        self.encrypt(&acceptor, begun).await?;
        match &self.socket {
            Some(Socket::Tls(stream)) if stream.connection().alpn_protocol().is_some() => Ok(()),
            _ => Err(Refusal::Quiet(
                "received direct SSL connection request without ALPN protocol negotiation extension",
            )),
        }
    }

    fn check_encrypted(&self) -> Result<(), SqlError> {
        match self.acceptor() {
            Some(acceptor) if acceptor.is_required() => {
                let hint = "Connect with sslmode=require, or set client_tls_sslmode to prefer.";
                Err(fatal("SSL required").hint(hint))
            }
            _ => Ok(()),
        }
    }

    async fn read_first_packet(&mut self) -> Result<FirstPacket, Refusal> {
        let mut length = [0; 4];
        let mut have = 0;
        while have < length.len() {
            match self.socket().read(&mut length[have..]).await? {
                // A probe that connects and closes is no news.
                0 if have == 0 => return Err(Refusal::Quiet("")),
                0 => return Err(Refusal::Quiet("client unexpected eof")),
                count => have += count,
            }
            if length[0] == TLS_HANDSHAKE && matches!(self.socket, Some(Socket::Tcp(_))) {
                self.begin_direct_tls(&length[..have]).await?;
                have = 0;
            }
        }
        let bad = |error: startup::BadStartup| fatal(error.to_string());
        let length = startup::packet_length(length).map_err(bad)?;
        let mut body = vec![0; length - 4];
        self.socket().read_exact(&mut body).await?;
        Ok(startup::parse(&body).map_err(bad)?)
    }

    // ---- whether it may ----

    /// What proves to the server that we are the user.
    fn server_secret(
        &self,
        database: &Database,
        credentials: Option<&Credentials>,
        proof: &Proof,
    ) -> Arc<ServerSecret> {
        if let Some(password) = &database.password {
            return Arc::new(ServerSecret::plain(crate::auth::Password::new(password.expose())));
        }
        let forced = database.user.as_deref().map(|user| self.plane.shared.credentials(user));
        match (forced, credentials) {
            // The login proved nothing of the user that the database forces.
            (Some(Some(credentials)), _) => credentials.server_secret(&Proof::default()),
            (None, Some(credentials)) => credentials.server_secret(proof),
            (Some(None), _) | (None, None) => Arc::new(ServerSecret::None),
        }
    }

    fn check_enabled(&self, name: &str) -> Result<(), SqlError> {
        match self.plane.shared.databases.is_disabled(name) {
            true => Err(fatal(format!("database \"{name}\" is disabled"))),
            false => Ok(()),
        }
    }

    // ---- its pool ----

    async fn join_pool(
        &mut self,
        config: &Config,
        database: &Database,
        user: &str,
        secret: Arc<ServerSecret>,
    ) -> Result<(Rc<Group>, Arc<Welcome>), Refusal> {
        let shared = &self.plane.shared;
        has_servers(config, database)?;
        let paused = shared.lifecycle.paused.load(Ordering::Acquire);
        let pool = shared.databases.pool(config, database, user, secret, paused);
        let group = self.plane.group(user, &database.name, &pool, Replication::None);
        if let Some(welcome) = pool.welcome() {
            return Ok((group, welcome));
        }
        if let Some(error) = pool.cached_refusal(Instant::now()) {
            return Err(error.into());
        }
        self.first_server(&pool).await?;
        let welcome = pool.welcome().ok_or(Refusal::Quiet("server conn crashed?"))?;
        Ok((group, welcome))
    }

    /// The client is to be told what its server says of itself, so there must be one.
    async fn first_server(&mut self, pool: &Arc<Pool>) -> Result<(), Refusal> {
        self.server_of(pool).await?.release(Instant::now());
        Ok(())
    }

    /// A server of the pool, for something of our own. Waits its turn like a client's query.
    pub(super) async fn server_of(&mut self, pool: &Arc<Pool>) -> Result<Lease, Refusal> {
        self.waits_for_server = true;
        let lease = match pool.acquire(NOBODY, self.plane.worker, Instant::now(), false) {
            Acquired::Lease(lease) => lease,
            Acquired::Wait(mut place) => {
                let settings = pool.settings().clone();
                let policy = &settings.policy;
                let limit = [policy.query_wait_timeout, policy.query_timeout].into_iter().flatten().min();
                let wait = std::future::poll_fn(|context: &mut Context<'_>| place.poll(context));
                match limit {
                    None => wait.await?,
                    Some(limit) => match tokio::time::timeout(limit, wait).await {
                        Ok(outcome) => outcome?,
                        Err(_) if policy.query_timeout == Some(limit) => {
                            return Err(super::time::query_timeout_of_waiting(limit).into());
                        }
                        Err(_) => {
                            let user = self.user.as_deref().unwrap_or_default();
                            return Err(super::time::query_wait_timeout(
                                &self.plane.shared,
                                pool,
                                user,
                                limit,
                            )
                            .into());
                        }
                    },
                }
            }
        };
        self.waits_for_server = false;
        Ok(lease)
    }

    /// The tracked parameters: the server's, with the client's own in place. Of these only the ones that differ are
    /// left; one that the server does not report follows as all others do. The second value says whether there are
    /// none, so that all are surely valid.
    fn own_parameters(
        &self,
        config: &Config,
        welcome: &Welcome,
        wanted: &mut Wanted,
    ) -> (Arc<ParameterSet>, bool) {
        let session = &self.plane.shared.server;
        let mut parameters = ParameterSet::default();
        for (name, value) in &welcome.0 {
            if let Some(index) = session.tracked.index(name) {
                parameters = parameters.with(index, value);
            }
        }
        for (index, value) in std::mem::take(&mut wanted.tracked) {
            match parameters.get(index) {
                Some(known) if known.eq_ignore_ascii_case(&value) => {}
                Some(_) => wanted.tracked.push((index, value)),
                None if follows(config) => {
                    wanted.others.push((session.tracked.name(index).to_owned(), value))
                }
                None => {}
            }
        }
        for (index, value) in &wanted.tracked {
            parameters = parameters.with(*index, value);
        }
        (session.parameters.intern(parameters), wanted.tracked.is_empty())
    }

    async fn log_in_to_console(&mut self, config: &Config, user: &str) -> Result<Entry, Refusal> {
        let own_socket = matches!(self.peer, Peer::Unix { .. })
            && user == CONSOLE_DATABASE
            && self.socket.as_ref().is_some_and(console::is_own_user);
        if own_socket {
            return Ok(Entry::Console(Rights::Admin, self.admit_to_console(config, user, Rights::Admin)?));
        }
        let rights = console::rights(config, user);
        self.authenticate(config, CONSOLE_DATABASE, user).await?;
        let Some(rights) = rights else { return Err(fatal("not allowed").into()) };
        Ok(Entry::Console(rights, self.admit_to_console(config, user, rights)?))
    }

    async fn refuse(mut self: Box<Self>, refusal: Refusal) {
        let tag = self.tag().to_string();
        let settings = &self.plane.shared.config.load().settings;
        let age = self.connected.elapsed().as_secs();
        let closing = |reason: &str| {
            if settings.log_disconnections {
                tracing::info!("{tag} closing because: {reason} (age={age}s)");
            }
        };
        match refusal {
            // Not under client_login_timeout: the peers have a time of their own. Boxed, so that no login
            // needs room for it.
            Refusal::Cancel(request) => Box::pin(cancel::serve(&self.plane, &self.peer, request)).await,
            Refusal::Quiet("") => {}
            Refusal::Quiet(reason) => closing(reason),
            Refusal::Io(error) => closing(&format!("client unexpected eof ({error})")),
            Refusal::Tls(error) => {
                self.plane.metrics.borrow_mut().tls_failures += 1;
                closing(&format!("TLS handshake failed: {error}"));
            }
            Refusal::Error(error) => {
                self.plane.metrics.borrow_mut().errors.record(&error.code);
                closing(&error.message);
                if settings.log_pooler_errors {
                    tracing::warn!("{tag} pooler error: {}", error.line());
                }
                let mut out = BytesMut::new();
                originate::error(&error, &mut out);
                let Some(mut socket) = self.socket.take() else { return };
                let told = async {
                    socket.write_all(&out).await?;
                    socket.shutdown().await
                };
                // A client that does not read its error is not waited for.
                let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
            }
        }
    }
}

/// Whether it is known where the servers of a database are.
pub(super) fn has_servers(config: &Config, database: &Database) -> Result<(), SqlError> {
    match config.cluster(database).is_none() && config.hosts(database).is_empty() {
        false => Ok(()),
        true => {
            Err(fatal("bouncer config error")
                .detail("The database has no host, and unix_socket_dir is empty."))
        }
    }
}

pub(super) fn fatal(message: impl Into<std::borrow::Cow<'static, str>>) -> SqlError {
    SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message)
}
