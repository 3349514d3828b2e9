//! The console: what an administrator asks on the virtual database `pgbouncer`, and the answer's
//! bytes. [`Console`] is the one type to read first; it never touches a socket, and all that it knows
//! and does goes through a [`Pooler`], which the data plane implements.
//!
//! # Waiting, and giving up
//!
//! PAUSE, SUSPEND and WAIT_CLOSE answer when the pooler has come so far. The caller races
//! [`Console::handle`] against the client's goodbye, a CancelRequest and its own end. When it drops
//! the future, it then calls [`Console::cancel`] (the client cancelled: the pause is undone) or
//! [`Console::disconnected`] (the client is gone: only SUSPEND is undone).

mod clusters;
mod command;
mod connections;
pub mod exporter;
pub mod http;
mod pins;
pub mod scrape;
mod show;
mod stats;
pub mod status;
mod table;
mod view;

use bytes::BytesMut;
use jiff::tz::TimeZone;

pub use self::clusters::{ClusterView, HealthView, MemberView, StandbyView};
pub use self::command::{Command, CommandError, FakeParameter, Show, Shutdown};
pub use self::pins::PinView;
pub use self::show::{PGBOUNCER_VERSION, table, version};
pub use self::table::Table;
pub use self::view::*;
use crate::error::{SqlError, sqlstate};
use crate::wire::originate;

/// The virtual database that is the console.
pub const CONSOLE_DATABASE: &str = "pgbouncer";

/// What a user of the console may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything: `admin_users`.
    Admin,
    /// SHOW, except FDS: `stats_users`, and everybody with `auth_type=any`.
    Stats,
}

/// Why the pooler did not do what it was told. [`ConsoleError::sql_error`] has PgBouncer's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleError {
    /// PAUSE or SUSPEND while all is paused or suspended.
    AlreadyPaused,
    /// RESUME while nothing is paused.
    NotPaused,
    /// RESUME of a database that is not paused.
    DatabaseNotPaused(String),
    /// No such database, and no `*` to make it from.
    NoSuchDatabase(String),
    /// HOLD, RELEASE or REROUTE of a cluster that is not in the settings.
    NoSuchCluster(String),
    /// A HOLD that lapsed before the last transaction ended.
    HoldLapsed(String),
    /// REROUTE of a database that belongs to no cluster.
    NoCluster(String),
    /// REROUTE: transactions did not end in time; the database stays where it was.
    StillBusy(String),
    /// SUSPEND while a database is paused.
    PausedDatabases,
    /// RESUME while the process ends.
    ShuttingDown,
    /// KILL_CLIENT of a number that no client has.
    ClientNotFound,
    /// SET of an unknown setting, or to a value that it does not take.
    SetFailed,
    /// RELOAD: the log has the reason.
    ReloadFailed,
}

impl ConsoleError {
    /// What the client is told.
    pub fn sql_error(&self) -> SqlError {
        let message = match self {
            ConsoleError::AlreadyPaused => "already suspended/paused".to_owned(),
            ConsoleError::NotPaused => "pooler is not paused/suspended".to_owned(),
            ConsoleError::DatabaseNotPaused(name) => format!("database {name} is not paused"),
            ConsoleError::NoSuchDatabase(name) => format!("no such database: {name}"),
            ConsoleError::NoSuchCluster(name) => format!("no such cluster: {name}"),
            ConsoleError::NoCluster(name) => format!("database {name} belongs to no cluster"),
            ConsoleError::HoldLapsed(name) => {
                format!("cluster {name} was not drained before HOLD lapsed")
            }
            ConsoleError::StillBusy(name) => {
                format!("transactions of database {name} did not end in time; it stays where it was")
            }
            ConsoleError::PausedDatabases => "cannot suspend with paused databases".to_owned(),
            ConsoleError::ShuttingDown => "pooler is shutting down".to_owned(),
            ConsoleError::ClientNotFound => "client not found".to_owned(),
            ConsoleError::SetFailed => "SET failed".to_owned(),
            ConsoleError::ReloadFailed => {
                let message = "RELOAD failed, see logs for additional details";
                return SqlError::error(sqlstate::CONFIG_FILE_ERROR, message);
            }
        };
        SqlError::error(sqlstate::PROTOCOL_VIOLATION, message)
    }
}

/// What became of a SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// The value is kept, or the setting is one that cannot change and silently stays.
    Done,
    /// The value is kept, but TLS still runs with the settings before it.
    TlsNotApplied,
}

/// The data plane, as the console needs it. A database is given by its name in `[databases]`;
/// it is never the console's own, and `None` is all of them.
#[allow(async_fn_in_trait, reason = "a console lives on one thread: its futures need not be Send")]
pub trait Pooler {
    /// Copies what `view` needs; the rest of the snapshot may stay empty.
    async fn snapshot(&self, view: View) -> Snapshot;
    /// Changes a setting until the next RELOAD. `SetFailed` is the only error.
    async fn set(&self, key: &str, value: &str) -> Result<SetOutcome, ConsoleError>;
    /// Reads the settings and their files anew. `ReloadFailed` is the only error.
    async fn reload(&self) -> Result<(), ConsoleError>;
    /// Lends no more servers and returns when every server of the database is closed.
    async fn pause(&self, database: Option<&str>) -> Result<(), ConsoleError>;
    /// Undoes PAUSE, SUSPEND and KILL.
    async fn resume(&self, database: Option<&str>) -> Result<(), ConsoleError>;
    /// Pauses, and returns when nothing is under way, at most after `suspend_timeout`.
    async fn suspend(&self) -> Result<(), ConsoleError>;
    /// Drops clients and servers of the database and leaves it paused.
    async fn kill(&self, database: Option<&str>) -> Result<(), ConsoleError>;
    /// Disconnects the client with this [`ConnectionView::id`].
    async fn kill_client(&self, id: u64) -> Result<(), ConsoleError>;
    /// Closes each server of the database when it is next released.
    async fn reconnect(&self, database: Option<&str>) -> Result<(), ConsoleError>;
    /// Returns when no server of the database is left that RECONNECT or RELOAD wants closed.
    async fn wait_close(&self, database: Option<&str>) -> Result<(), ConsoleError>;
    /// Refuses new clients of the database.
    async fn disable(&self, database: &str) -> Result<(), ConsoleError>;
    /// Undoes `disable`.
    async fn enable(&self, database: &str) -> Result<(), ConsoleError>;
    /// Lets nothing new begin on the cluster's primary for so long; returns when it is drained.
    async fn hold(&self, cluster: &str, seconds: u32) -> Result<(), ConsoleError>;
    /// Ends a `hold`.
    async fn release(&self, cluster: &str) -> Result<(), ConsoleError>;
    /// Moves a database to another cluster, when its running transactions have ended.
    async fn reroute(&self, database: &str, cluster: &str) -> Result<(), ConsoleError>;
    /// Begins to end the process; it returns at once.
    async fn shutdown(&self, mode: Shutdown) -> Result<(), ConsoleError>;
}

/// What the caller does after one message, beside sending the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The error that was written, for the line "pooler error: …".
    pub error: Option<SqlError>,
    /// Close the connection after the bytes, and log this reason.
    pub close: Option<&'static str>,
}

/// A message that went out well, or the error to send instead.
type Answer = Result<(), SqlError>;

/// One client of the console, after its login.
#[derive(Debug)]
pub struct Console<P> {
    pooler: P,
    rights: Rights,
    zone: TimeZone,
    waiting: Option<Waiting>,
    suspended: bool,
}

/// What is being waited for, to be undone by a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Waiting {
    /// PAUSE of a database or of all, or SUSPEND.
    Paused(Option<String>),
    /// WAIT_CLOSE: there is nothing to undo.
    Close,
}

/// Writes what follows AuthenticationOk: the parameters, BackendKeyData and ReadyForQuery.
pub fn greeting(process_id: i32, secret: i32, out: &mut BytesMut) {
    let server_version = format!("{PGBOUNCER_VERSION}/bouncer");
    for (name, value) in [
        ("server_version", server_version.as_str()),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
    ] {
        originate::parameter_status(name, value, out);
    }
    originate::backend_key_data(process_id, secret, out);
    originate::ready_for_query_idle(out);
}

impl<P: Pooler> Console<P> {
    /// A console for a client with these rights; times are printed in `zone`.
    pub fn new(pooler: P, rights: Rights, zone: TimeZone) -> Self {
        Console { pooler, rights, zone, waiting: None, suspended: false }
    }

    /// Answers one whole message, given its tag byte and its body (what follows the length), and
    /// appends the answer to `out`. It may wait: see the module's text for what a drop means.
    pub async fn handle(&mut self, tag: u8, body: &[u8], out: &mut BytesMut) -> Outcome {
        match tag {
            b'Q' => match body.iter().position(|byte| *byte == 0) {
                Some(end) => self.query(&String::from_utf8_lossy(&body[..end]), out).await,
                None => close_with("incomplete query", out),
            },
            b'X' => Outcome { error: None, close: Some("client close request") },
            b'P' | b'B' | b'E' => {
                let message = "extended query protocol not supported by admin console";
                refuse(SqlError::error(sqlstate::PROTOCOL_VIOLATION, message), out);
                close_with("bad packet", out)
            }
            b'S' | b'D' | b'C' | b'H' | b'F' | b'd' | b'c' | b'f' => {
                let message = format!("unsupported packet type for admin console: {tag}");
                refuse(SqlError::error(sqlstate::PROTOCOL_VIOLATION, message), out);
                close_with("bad packet", out)
            }
            _ => close_with("unknown pkt", out),
        }
    }

    /// The client cancelled a command that waits, and its future is dropped: undoes the pause and
    /// writes the error that answers the command. Writes nothing when no command was waiting.
    pub async fn cancel(&mut self, out: &mut BytesMut) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        if let Waiting::Paused(database) = waiting {
            // Somebody else may have resumed it meanwhile, which is what was wanted.
            let _ = self.pooler.resume(database.as_deref()).await;
            self.suspended = false;
        }
        let message = "canceling statement due to user request";
        refuse(SqlError::error(sqlstate::QUERY_CANCELED, message), out);
    }

    /// The client has gone: undoes its SUSPEND, so that the pooler does not stand still for nobody.
    pub async fn disconnected(&mut self) {
        if !std::mem::take(&mut self.suspended) {
            return;
        }
        // Another administrator may have resumed it, and paused it again since.
        if self.pooler.snapshot(View::State).await.state == StateView::Suspended {
            let _ = self.pooler.resume(None).await;
        }
    }

    async fn query(&mut self, query: &str, out: &mut BytesMut) -> Outcome {
        let command = match Command::parse(query) {
            Ok(command) => command,
            Err(error) => return refuse(command_error(error, query), out),
        };
        if self.rights != Rights::Admin && needs_admin(&command) {
            return refuse(protocol_error("admin access needed"), out);
        }
        let immediate = command == Command::Shutdown(Shutdown::Immediate);
        match self.execute(command, out).await {
            Err(error) => refuse(error, out),
            // PgBouncer is gone before it could answer, so no answer is what clients expect.
            Ok(()) if immediate => Outcome { error: None, close: Some("shutdown") },
            Ok(()) => {
                originate::ready_for_query_idle(out);
                Outcome::default()
            }
        }
    }

    /// Carries a command out and writes its answer up to CommandComplete.
    async fn execute(&mut self, command: Command, out: &mut BytesMut) -> Answer {
        let tag = match command {
            Command::Show(show) => return self.show(show, out).await,
            Command::ShowParameter(parameter) => {
                show::parameter(parameter).encode(out);
                "SHOW"
            }
            Command::SetIgnored => {
                originate::error(&SqlError::notice("SET ignored"), out);
                "SET"
            }
            Command::Set { key, value } => return self.set(&key, &value, out).await,
            other => {
                log_issued(&other);
                return self.act(other, out).await;
            }
        };
        originate::command_complete(tag, out);
        Ok(())
    }

    async fn show(&self, show: Show, out: &mut BytesMut) -> Answer {
        match show {
            Show::Fds => {
                let message = "SHOW FDS is not supported: pgweir hands no sockets to a new process";
                return Err(SqlError::error(sqlstate::FEATURE_NOT_SUPPORTED, message));
            }
            Show::Help => {
                originate::error(&SqlError::notice("Console usage").detail(show::HELP), out);
            }
            _ => {
                let snapshot = match show::view_of(show) {
                    Some(view) => self.pooler.snapshot(view).await,
                    None => Snapshot::default(),
                };
                table(show, &snapshot, &self.zone).encode(out);
            }
        }
        originate::command_complete("SHOW", out);
        Ok(())
    }

    async fn set(&self, key: &str, value: &str, out: &mut BytesMut) -> Answer {
        let outcome = self.pooler.set(key, value).await.map_err(|error| error.sql_error())?;
        if outcome == SetOutcome::TlsNotApplied {
            let message = "TLS settings could not be applied, still using old configuration";
            originate::error(&SqlError::notice(message), out);
        }
        originate::command_complete(&format!("SET {key}={value}"), out);
        Ok(())
    }

    async fn act(&mut self, command: Command, out: &mut BytesMut) -> Answer {
        let tag = verb(&command);
        check_database(&command)?;
        self.waiting = match &command {
            Command::Pause(database) => Some(Waiting::Paused(database.clone())),
            Command::Suspend => Some(Waiting::Paused(None)),
            Command::WaitClose(_) => Some(Waiting::Close),
            _ => None,
        };
        let suspends = command == Command::Suspend;
        let resumes = command == Command::Resume(None);
        let immediate = command == Command::Shutdown(Shutdown::Immediate);
        self.suspended |= suspends;
        let result = self.obey(command).await;
        self.waiting = None;
        if (suspends && result.is_err()) || (resumes && result.is_ok()) {
            self.suspended = false;
        }
        result.map_err(|error| error.sql_error())?;
        if !immediate {
            originate::command_complete(tag, out);
        }
        Ok(())
    }

    async fn obey(&self, command: Command) -> Result<(), ConsoleError> {
        let pooler = &self.pooler;
        match command {
            Command::Reload => pooler.reload().await,
            Command::Pause(database) => pooler.pause(database.as_deref()).await,
            Command::Resume(database) => pooler.resume(database.as_deref()).await,
            Command::Suspend => pooler.suspend().await,
            Command::Kill(database) => pooler.kill(database.as_deref()).await,
            Command::KillClient(id) => pooler.kill_client(id.ok_or(ConsoleError::ClientNotFound)?).await,
            Command::Reconnect(database) => pooler.reconnect(database.as_deref()).await,
            Command::WaitClose(database) => pooler.wait_close(database.as_deref()).await,
            Command::Disable(database) => pooler.disable(&database.unwrap_or_default()).await,
            Command::Enable(database) => pooler.enable(&database.unwrap_or_default()).await,
            Command::Hold { cluster, seconds } => pooler.hold(&cluster, seconds).await,
            Command::Release(cluster) => pooler.release(&cluster).await,
            Command::Reroute { database, cluster } => pooler.reroute(&database, &cluster).await,
            Command::Shutdown(mode) => pooler.shutdown(mode).await,
            Command::Show(_) | Command::ShowParameter(_) | Command::Set { .. } | Command::SetIgnored => {
                Ok(())
            }
        }
    }
}

fn needs_admin(command: &Command) -> bool {
    match command {
        Command::Show(show) => *show == Show::Fds,
        Command::ShowParameter(_) | Command::SetIgnored => false,
        _ => true,
    }
}

/// What can be said about the argument without asking the pooler.
fn check_database(command: &Command) -> Answer {
    let (database, what) = match command {
        Command::Disable(None) | Command::Enable(None) => {
            return Err(protocol_error("a database is required"));
        }
        Command::KillClient(None) => {
            return Err(protocol_error("invalid client pointer supplied"));
        }
        Command::Pause(Some(database)) => (database, "pause"),
        Command::Reroute { database, .. } => (database, "reroute"),
        Command::Kill(Some(database)) => (database, "kill"),
        Command::Reconnect(Some(database)) => (database, "reconnect"),
        Command::WaitClose(Some(database)) => (database, "wait in"),
        // PgBouncer says "disable" for ENABLE too.
        Command::Disable(Some(database)) | Command::Enable(Some(database)) => (database, "disable"),
        Command::Resume(Some(database)) if database == CONSOLE_DATABASE => {
            return Err(ConsoleError::DatabaseNotPaused(database.clone()).sql_error());
        }
        _ => return Ok(()),
    };
    if database == CONSOLE_DATABASE {
        return Err(protocol_error(format!("cannot {what} admin db: {database}")));
    }
    Ok(())
}

/// The command's word, which is also its tag.
fn verb(command: &Command) -> &'static str {
    match command {
        Command::Show(_) | Command::ShowParameter(_) => "SHOW",
        Command::Set { .. } | Command::SetIgnored => "SET",
        Command::Reload => "RELOAD",
        Command::Pause(_) => "PAUSE",
        Command::Resume(_) => "RESUME",
        Command::Suspend => "SUSPEND",
        Command::Kill(_) => "KILL",
        Command::KillClient(_) => "KILL_CLIENT",
        Command::Reconnect(_) => "RECONNECT",
        Command::WaitClose(_) => "WAIT_CLOSE",
        Command::Disable(_) => "DISABLE",
        Command::Enable(_) => "ENABLE",
        Command::Hold { .. } => "HOLD",
        Command::Release(_) => "RELEASE",
        Command::Reroute { .. } => "REROUTE",
        Command::Shutdown(_) => "SHUTDOWN",
    }
}

fn log_issued(command: &Command) {
    match command {
        Command::Pause(Some(database))
        | Command::Resume(Some(database))
        | Command::Kill(Some(database))
        | Command::Reconnect(Some(database))
        | Command::WaitClose(Some(database))
        | Command::Disable(Some(database))
        | Command::Enable(Some(database)) => {
            tracing::info!("{} '{database}' command issued", verb(command));
        }
        Command::Shutdown(mode) => tracing::info!("{mode} command issued"),
        _ => tracing::info!("{} command issued", verb(command)),
    }
}

fn command_error(error: CommandError, query: &str) -> SqlError {
    match error {
        CommandError::BadArguments => protocol_error("bad arguments"),
        CommandError::Invalid => protocol_error(format!("invalid command '{query}', use SHOW HELP;")),
    }
}

fn protocol_error(message: impl Into<std::borrow::Cow<'static, str>>) -> SqlError {
    SqlError::error(sqlstate::PROTOCOL_VIOLATION, message)
}

/// Answers a command with an error; the connection stays.
fn refuse(error: SqlError, out: &mut BytesMut) -> Outcome {
    originate::error(&error, out);
    originate::ready_for_query_idle(out);
    Outcome { error: Some(error), close: None }
}

/// The last message of the connection.
fn close_with(reason: &'static str, out: &mut BytesMut) -> Outcome {
    let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, reason);
    originate::error(&error, out);
    Outcome { error: Some(error), close: Some(reason) }
}

#[cfg(test)]
mod tests;
