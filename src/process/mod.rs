//! The process: start, signals, reload, drain, exit. [`run`] is all of it.

mod identity;
mod pages;
mod systemd;
mod takeover;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::MissedTickBehavior;

use crate::admin::Shutdown;
use crate::config::{Config, ConfigError, LogFormat};
use crate::error::{SqlError, sqlstate};
use crate::follow::{self, Followers};
use crate::limits;
use crate::listener::{Accepting, Inherited, Listeners};
use crate::log::{self, Log, LogOptions, SyslogTarget};
use crate::net::dns::Dns;
use crate::net::tls::{Tls, TlsError};
use crate::pool::OpenRequest;
use crate::protocol::parameters::Tracked;
use crate::server;
use crate::session::control::{self, ProcessCommand};
use crate::session::databases::Databases;
use crate::session::plane::{Message, Plane, Shared};
use crate::session::rules::LoginRules;
use crate::session::views;
use crate::worker;
use identity::PidFile;
use pages::Pages;
use takeover::Predecessor;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings file.
    pub config: PathBuf,
    /// `-q`: nothing to stderr.
    pub quiet: bool,
    /// `-v`, as often as it was given.
    pub verbosity: u8,
    /// `-d`: go on in the background.
    pub daemon: bool,
    /// `-R`: take the place of the process that runs now.
    pub reboot: bool,
    /// `-u`: the user to become; it goes before the setting `user`.
    pub user: Option<String>,
}

/// Why the process does not run.
#[derive(Debug, Error)]
pub enum StartError {
    /// The settings are wrong.
    #[error("cannot load config file: {0}")]
    Config(#[from] ConfigError),
    /// A certificate or key is no good.
    #[error("TLS setup failed: {0}")]
    Tls(#[from] TlsError),
    /// An address, a file or a thread cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The system does not know the user to become.
    #[error("could not find user '{0}' to switch to")]
    NoSuchUser(String),
    /// We may not become this user.
    #[error("cannot become user '{0}': {1}")]
    User(String, io::Error),
    /// We are root, and are not told whom to become.
    #[error("pgweir should not run as root: set user, or start it with -u")]
    Root,
    /// Another process listens on our Unix socket.
    #[error("unix socket is in use, cannot continue")]
    SocketInUse,
    /// The process of the pidfile runs.
    #[error("pidfile exists, another instance running?")]
    PidFile,
    /// `-d` without `pidfile`.
    #[error("daemon needs pidfile configured")]
    DaemonWithoutPidFile,
    /// `-d` without `logfile` or `syslog`.
    #[error("daemon needs logging configured: set logfile or syslog")]
    DaemonWithoutLog,
    /// Any of these, after the log has told it.
    #[error("{0}")]
    Logged(Box<StartError>),
}

/// Without `so_reuseport` the old process of `-R` must have let go of its port; longest wait for that.
const PORT_MAX: Duration = Duration::from_secs(5);

/// How often it is looked whether the last client or server has gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs the pooler until it is told to end.
///
/// Fails when it cannot start. A shutdown, also an immediate one, is no failure.
pub fn run(options: &Options) -> Result<(), StartError> {
    let mut config = Config::load(&options.config, &environment)?;
    if let Some(user) = &options.user {
        config.settings.user = Some(user.clone());
    }
    if let Some(user) = config.settings.user.as_deref().filter(|user| !user.is_empty()) {
        identity::become_user(user)?;
    }
    identity::refuse_root()?;
    let inherited = systemd::inherited()?;
    // What -R finds there is another matter.
    let is_alone = !options.reboot;
    if is_alone && inherited.is_empty() {
        identity::check_socket(&config.settings)?;
    }
    let stale = match &config.settings.pidfile {
        Some(path) if is_alone => PidFile::check(path)?,
        Some(_) | None => false,
    };
    if options.daemon {
        identity::go_to_background(&config.settings)?;
    }
    let log = log::init(&LogOptions {
        file: config.settings.logfile.clone(),
        quiet: options.quiet || options.daemon,
        verbosity: verbosity(&config, options),
        syslog: syslog(&config),
        json: config.settings.log_format == LogFormat::Json,
        clock: jiff::Zoned::now,
    })?;
    if stale {
        tracing::info!("stale pidfile, removing");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // The workers have their timers from it as long as the process is there: it is never shut down.
    let runtime = Box::leak(Box::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
    runtime.block_on(Process::start(config, options.clone(), log, inherited)).map_err(|error| {
        tracing::error!(fatal = true, "{error}");
        StartError::Logged(Box::new(error))
    })
}

/// Opens what we listen on. With `-R` the second value is the process that leaves once we accept.
async fn listen(
    config: &Config,
    options: &Options,
    inherited: Inherited,
) -> Result<(Listeners, Option<Predecessor>), StartError> {
    let settings = &config.settings;
    if !inherited.is_empty() {
        return Ok((Listeners::inherited(inherited)?, None));
    }
    if !options.reboot {
        return Ok((Listeners::open(settings, false).await?, None));
    }
    tracing::warn!("Online restart is deprecated, use so_reuseport instead");
    let Some(old) = Predecessor::find(settings).await else {
        tracing::info!("old process not found, try to continue normally");
        identity::check_socket(settings)?;
        if let Some(path) = &settings.pidfile {
            PidFile::check(path)?;
        }
        return Ok((Listeners::open(settings, false).await?, None));
    };
    if settings.so_reuseport || settings.listen_addr.is_empty() {
        return Ok((Listeners::open(settings, true).await?, Some(old)));
    }
    // Both cannot have the port at once: for a moment nobody has it.
    old.retire().await?;
    let deadline = Instant::now() + PORT_MAX;
    loop {
        match Listeners::open(settings, true).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return Ok((outcome?, None)),
        }
    }
}

fn syslog(config: &Config) -> Option<SyslogTarget> {
    let settings = &config.settings;
    let target = || SyslogTarget { ident: settings.syslog_ident.clone(), facility: settings.syslog_facility };
    settings.syslog.then(target)
}

fn verbosity(config: &Config, options: &Options) -> u8 {
    let configured = u8::try_from(config.settings.verbose).unwrap_or(u8::MAX);
    configured.max(options.verbosity)
}

/// Ends of the channels that the workers read.
struct Ends {
    mailboxes: Vec<UnboundedReceiver<Message>>,
    openings: Vec<UnboundedReceiver<OpenRequest>>,
}

fn share(
    config: Config,
    tls: Tls,
    rules: LoginRules,
) -> (Arc<Shared>, Ends, UnboundedReceiver<ProcessCommand>) {
    let workers = config.settings.workers as usize;
    let (senders, mailboxes) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let (openers, openings): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let (process, commands) = mpsc::unbounded_channel();
    let extra = config.settings.track_extra_parameters.iter().map(String::as_str);
    let session = Arc::new(server::Session::new(Tracked::new(extra)));
    let dns = Dns::new(&config.settings);
    let databases = Databases::new(Arc::clone(&session), openers.into(), tls, dns);
    let shared = Shared::new(config, session, databases, senders, process, rules);
    (shared, Ends { mailboxes, openings }, commands)
}

struct Process {
    shared: Arc<Shared>,
    accepting: Accepting,
    options: Options,
    log: Log,
    followers: Followers,
    /// How it ends, once that is known.
    ending: Option<Ending>,
    /// After SIGTERM, when no more clients are accepted.
    leave_at: Option<Instant>,
}

/// What is waited for at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// All clients have gone; cut what is left at this time.
    Clients(Option<Instant>),
    /// All servers are released.
    Servers,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

impl Process {
    async fn start(
        config: Config,
        options: Options,
        log: Log,
        inherited: Inherited,
    ) -> Result<(), StartError> {
        let mut signals = Signals::new()?;
        let (tls, warnings) = Tls::load(&config.settings, &Tls::default())?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let (rules, warnings) = LoginRules::read(&config.settings)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        limits::allow_connections(&config);
        let metrics = match config.settings.metrics_listen_addr {
            Some(address) => Some(pages::listen(address).await?),
            None => None,
        };
        // Last of what can fail: who can connect is served.
        let (listeners, predecessor) = listen(&config, &options, inherited).await?;
        let pidfile = config.settings.pidfile.clone();
        let (shared, ends, commands) = share(config, tls, rules);
        for (number, (mailbox, openings)) in ends.mailboxes.into_iter().zip(ends.openings).enumerate() {
            worker::start(number, Arc::clone(&shared), mailbox, openings)?;
        }
        if let Some(listener) = metrics {
            tokio::spawn(pages::serve(listener, Pages(Arc::clone(&shared))));
        }
        let _pidfile = pidfile.map(PidFile::write).transpose()?;
        shared.peers.listen_on(listeners.tcp_addresses());
        if let Some(id) = shared.config.load().peer_id() {
            tracing::info!("cancel keys have peer_id={id}");
        }
        let accepting = listeners.accept(&shared);
        if let Some(old) = predecessor {
            old.retire().await?;
            tracing::info!("old process is told to leave when its clients have gone");
        }
        tokio::spawn(follow::peers::watch(Arc::clone(&shared)));
        let version = env!("CARGO_PKG_VERSION");
        let workers = shared.workers.len();
        tracing::info!("process up: pgweir {version}, {workers} workers, PgBouncer 1.25.2 compatible");
        let mut followers = Followers::default();
        followers.configure(&shared);
        systemd::ready();
        let mut process =
            Process { shared, accepting, options, log, followers, ending: None, leave_at: None };
        process.live(&mut signals, commands).await;
        systemd::stopping();
        Ok(())
    }

    async fn live(&mut self, signals: &mut Signals, mut commands: UnboundedReceiver<ProcessCommand>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut tick = tokio::time::interval(Plane::TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut stats_began = Instant::now();
        loop {
            tokio::select! {
                _ = signals.hangup.recv() => {
                    tracing::info!("got SIGHUP, re-reading config");
                    self.reload().await;
                }
                _ = signals.terminate.recv() => {
                    if self.ending.is_some() || self.leave_at.is_some() {
                        return tracing::info!("got SIGTERM while shutting down, fast exit");
                    }
                    tracing::info!("got SIGTERM, shutting down, waiting for all clients disconnect");
                    self.leave();
                }
                _ = signals.interrupt.recv() => {
                    if self.ending.is_some() {
                        return tracing::info!("got SIGINT while shutting down, fast exit");
                    }
                    tracing::info!("got SIGINT, shutting down, waiting for all servers connections to be released");
                    self.end_with_servers();
                }
                _ = signals.quit.recv() => return tracing::info!("got SIGQUIT, fast exit"),
                _ = signals.user1.recv() => self.pause_all(),
                _ = signals.user2.recv() => self.resume_all(),
                Some(command) = commands.recv() => match command {
                    ProcessCommand::Reload(answer) => {
                        // The console's client may have gone meanwhile.
                        let _ = answer.send(self.reload().await);
                    }
                    ProcessCommand::Log(answer) => {
                        self.configure_log(&self.shared.config.load_full());
                        let _ = answer.send(());
                    }
                    ProcessCommand::Shutdown(Shutdown::Immediate, _) => return,
                    ProcessCommand::Shutdown(Shutdown::WaitForClients, answer) => {
                        self.end_with_clients();
                        let _ = answer.send(());
                    }
                    ProcessCommand::Shutdown(Shutdown::WaitForServers, answer) => {
                        self.end_with_servers();
                        let _ = answer.send(());
                    }
                },
                _ = tick.tick() => {
                    let now = Instant::now();
                    for worker in &self.shared.workers {
                        // One that has stopped has nothing to look after.
                        let _ = worker.send(Message::Tick(now));
                    }
                }
                _ = look.tick() => {
                    if self.leave_at.take_if(|at| *at <= Instant::now()).is_some() {
                        self.end_with_clients();
                    }
                    if self.ending == Some(Ending::Servers) && self.turn_away() {
                        // They are being told.
                        continue;
                    }
                    if self.is_over().await {
                        return tracing::info!("shutdown complete");
                    }
                    self.log_stats(&mut stats_began).await;
                }
            }
        }
    }

    async fn log_stats(&self, began: &mut Instant) {
        let config = self.shared.config.load_full();
        if began.elapsed() < config.settings.stats_period {
            return;
        }
        *began = Instant::now();
        let line = views::end_stats_period(&self.shared).await.log_line();
        systemd::status(&line);
        if config.settings.log_stats {
            tracing::info!("{line}");
        }
    }

    /// Reads the settings anew; the old ones stay when the new ones are wrong.
    async fn reload(&mut self) -> bool {
        systemd::reloading();
        let outcome = self.reload_settings().await;
        systemd::ready();
        outcome
    }

    async fn reload_settings(&mut self) -> bool {
        let config = match self.shared.config.load().reload(&environment) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("cannot load config file: {error}");
                return false;
            }
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if let Err(error) = self.log.reopen(config.settings.logfile.as_deref()) {
            tracing::error!("cannot open logfile: {error}");
        }
        self.configure_log(&config);
        let files = control::read_files(&self.shared, &config.settings);
        control::apply(&self.shared, config).await;
        self.followers.configure(&self.shared);
        files
    }

    fn configure_log(&self, config: &Config) {
        self.log.set_syslog(syslog(config));
        self.log.set_verbosity(verbosity(config, &self.options));
    }

    /// No more clients. Peers still bring the cancel requests of those that are here, to the port where they
    /// have found us; with `so_reuseport` our successor must have it.
    fn close(&mut self) {
        systemd::stopping();
        self.shared.lifecycle.closing.store(true, Ordering::Release);
        let config = self.shared.config.load();
        if !config.finds_peers() || config.settings.so_reuseport {
            self.accepting.close_tcp();
        }
    }

    /// SIGTERM: readiness goes first, the listeners after `shutdown_listen_delay`.
    fn leave(&mut self) {
        let config = self.shared.config.load();
        let delay = config.settings.shutdown_listen_delay;
        if delay.is_zero() || config.settings.shutdown_drain_timeout.is_zero() {
            return self.end_with_clients();
        }
        self.shared.lifecycle.leaving.store(true, Ordering::Release);
        self.leave_at = Some(Instant::now() + delay);
    }

    /// SHUTDOWN WAIT_FOR_CLIENTS. With `shutdown_drain_timeout` the clients are told to go.
    fn end_with_clients(&mut self) {
        self.close();
        let drain = self.shared.config.load().settings.shutdown_drain_timeout;
        let until = (!drain.is_zero()).then(|| Instant::now() + drain);
        if until.is_some() {
            self.shared.lifecycle.draining.store(true, Ordering::Release);
        }
        self.ending = Some(Ending::Clients(until));
    }

    /// SHUTDOWN WAIT_FOR_SERVERS: as PAUSE, and the end when it is complete.
    fn end_with_servers(&mut self) {
        self.close();
        self.set_paused(true);
        self.ending = Some(Ending::Servers);
    }

    /// Whoever waits for a server will not get one any more. Returns whether there was anyone.
    fn turn_away(&self) -> bool {
        let refusal = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "server shutting down")
            .detail("The pooler waits only for transactions that have begun.")
            .hint("Connect again: another pooler may be there already.");
        let pools = self.shared.databases.pools();
        pools.iter().filter(|pool| pool.turn_away(&refusal)).count() > 0
    }

    async fn is_over(&self) -> bool {
        match self.ending {
            None => false,
            // A server is free a moment before its last answer is passed on.
            Some(Ending::Servers) => {
                self.shared.databases.pools().iter().all(|pool| pool.is_empty())
                    && control::have_passed_on_all(&self.shared).await
            }
            Some(Ending::Clients(until)) => {
                let left = self.shared.clients.used();
                let late = until.is_some_and(|until| Instant::now() >= until);
                if late && left > 0 {
                    tracing::warn!("shutdown_drain_timeout is over: cutting clients={left}");
                }
                left == 0 || late
            }
        }
    }

    fn pause_all(&self) {
        tracing::info!("got SIGUSR1, pausing all activity");
        self.set_paused(true);
    }

    fn resume_all(&self) {
        if self.ending.is_some() {
            return tracing::info!("got SIGUSR2 while shutting down, ignoring");
        }
        tracing::info!("got SIGUSR2, continuing from PAUSE/SUSPEND");
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        self.shared.lifecycle.paused.store(paused, Ordering::Release);
        for entry in self.shared.databases.known() {
            entry.set_paused(paused);
        }
    }
}
