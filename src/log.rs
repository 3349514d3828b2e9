//! The log: one line per event, as PgBouncer writes it, or JSON. [`init`] starts it; [`ClientTag`]
//! and [`ServerTag`] begin a line that is about one connection.
//!
//! ```text
//! 2026-11-22 07:04:41.823 UTC [29380] LOG C-0x1f: p0/app@127.0.0.1:60700 closing because: client close request (age=3s)
//! ```
//! PgBouncer's events keep its words; fields of ours follow as `key=value`. The clock is an argument.

use std::ffi::CString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Zoned;
use syslog_tracing::{Facility, Syslog, SyslogWriter};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::writer::OptionalWriter;
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::SyslogFacility;

/// Where a connection comes from or leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// The process at the other end, if it is a client.
        pid: Option<u32>,
        /// The port in the socket's name.
        port: u16,
    },
}

impl Peer {
    /// The port, also of a Unix socket.
    pub fn port(&self) -> u16 {
        match self {
            Peer::Tcp(address) => address.port(),
            Peer::Unix { port, .. } => *port,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => write!(f, "{ip}:{}", address.port()),
                IpAddr::V6(ip) => write!(f, "[{ip}]:{}", address.port()),
            },
            Peer::Unix { pid: Some(pid), port } => write!(f, "unix({pid}):{port}"),
            Peer::Unix { pid: None, port } => write!(f, "unix:{port}"),
        }
    }
}

/// The beginning of a line about one client: `C-0x1f: p0/app@127.0.0.1:60700`.
#[derive(Clone, Copy, Debug)]
pub struct ClientTag<'a> {
    /// The connection's number; the `ptr` column of SHOW CLIENTS.
    pub id: u64,
    /// Database, once it is known.
    pub database: Option<&'a str>,
    /// User, once it is known.
    pub user: Option<&'a str>,
    /// The client's address.
    pub peer: &'a Peer,
}

/// The beginning of a line about one server connection: `S-0x2a: p0/app@10.0.0.5:5432`.
#[derive(Clone, Copy, Debug)]
pub struct ServerTag<'a> {
    /// The connection's number; the `ptr` column of SHOW SERVERS.
    pub id: u64,
    /// Database of its pool.
    pub database: &'a str,
    /// User of its pool.
    pub user: &'a str,
    /// The server's address.
    pub peer: &'a Peer,
}

impl fmt::Display for ClientTag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.database.unwrap_or("(nodb)");
        let user = self.user.unwrap_or("(nouser)");
        write!(f, "C-{:#x}: {database}/{user}@{}", self.id, self.peer)
    }
}

impl fmt::Display for ServerTag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S-{:#x}: {}/{}@{}", self.id, self.database, self.user, self.peer)
    }
}

/// How the log is written.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// `logfile`: appended to; `None` is stderr alone.
    pub file: Option<PathBuf>,
    /// `-q`: nothing to stderr.
    pub quiet: bool,
    /// `verbose`: 0 logs up to LOG, 1 up to DEBUG, 2 and more up to NOISE.
    pub verbosity: u8,
    /// Where lines go in syslog too; `None` is nowhere.
    pub syslog: Option<SyslogTarget>,
    /// One JSON object per line instead of PgBouncer's format.
    pub json: bool,
    /// The clock and time zone of the lines, normally [`Zoned::now`].
    pub clock: fn() -> Zoned,
}

/// Whose lines ours are for syslog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogTarget {
    /// `syslog_ident`: the name that they begin with.
    pub ident: String,
    /// `syslog_facility`
    pub facility: SyslogFacility,
}

/// The running log.
#[derive(Clone, Debug)]
pub struct Log {
    sink: Sink,
    syslog: SyslogSink,
    filter: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Opens the file anew, after it was moved away, or another one. On an error the old one stays.
    pub fn reopen(&self, file: Option<&Path>) -> io::Result<()> {
        let opened = file.map(open).transpose()?;
        *self.sink.file.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(())
    }

    /// Changes [`LogOptions::syslog`].
    pub fn set_syslog(&self, target: Option<SyslogTarget>) {
        self.syslog.set(target);
    }

    /// Changes [`LogOptions::verbosity`].
    pub fn set_verbosity(&self, verbosity: u8) {
        // It fails only when the subscriber is gone, and then nothing is logged anyway.
        let _ = self.filter.reload(filter(verbosity));
    }
}

/// Starts the log for the whole process. Fails when the file cannot be opened, or when a log runs
/// already.
pub fn init(options: &LogOptions) -> io::Result<Log> {
    let (log, subscriber) = build(options, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(log)
}

fn build(
    options: &LogOptions,
    stderr: fn() -> io::Stderr,
) -> io::Result<(Log, impl Subscriber + Send + Sync + use<>)> {
    let file = options.file.as_deref().map(open).transpose()?;
    let stderr = (!options.quiet).then_some(stderr);
    let sink = Sink { file: Arc::new(Mutex::new(file)), stderr };
    let (filter, handle) = reload::Layer::new(filter(options.verbosity));
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(sink.clone());
    let layer = if options.json {
        layer.json().flatten_event(true).boxed()
    } else {
        layer.event_format(LineFormat { clock: options.clock, pid: std::process::id() }).boxed()
    };
    let syslog = SyslogSink::default();
    syslog.set(options.syslog.clone());
    let bare = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(syslog.clone());
    let bare = bare.event_format(BareFormat(syslog.clone()));
    let subscriber = Registry::default().with(filter).with(layer).with(bare);
    Ok((Log { sink, syslog, filter: handle }, subscriber))
}

/// Ours up to the verbosity; of the libraries only what is worth a warning. kube says each failed request
/// as an error, many times a second while the API is away; we say it once, with the cluster and the cause.
fn filter(verbosity: u8) -> Targets {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("pgweir", level);
    match verbosity {
        0 => targets.with_target("kube_client", LevelFilter::OFF),
        _ => targets,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// stderr and the file; each line goes to both in one write.
#[derive(Clone, Debug)]
struct Sink {
    file: Arc<Mutex<Option<File>>>,
    stderr: Option<fn() -> io::Stderr>,
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full disk or a closed stderr must not stop the pooler, and there is nobody to tell.
        if let Some(stderr) = self.stderr {
            let _ = stderr().write_all(line);
        }
        if let Some(file) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = file.write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        self.clone()
    }
}

/// The system's log, of which a process has one.
#[derive(Clone, Default)]
struct SyslogSink(Arc<Mutex<Option<(SyslogTarget, Syslog)>>>);

impl fmt::Debug for SyslogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SyslogSink")
    }
}

impl SyslogSink {
    fn set(&self, target: Option<SyslogTarget>) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().map(|(target, _)| target) == target.as_ref() {
            return;
        }
        // The old one closes before the new one opens.
        *current = None;
        let Some(target) = target else { return };
        let ident = CString::new(target.ident.clone()).unwrap_or_default();
        let opened = Syslog::new(ident, syslog_tracing::Options::LOG_PID, facility(target.facility));
        *current = opened.map(|syslog| (target, syslog));
    }

    fn is_on(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl<'a> MakeWriter<'a> for SyslogSink {
    type Writer = OptionalWriter<SyslogWriter>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::none()
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((_, syslog)) => OptionalWriter::some(syslog.make_writer_for(metadata)),
            None => OptionalWriter::none(),
        }
    }
}

fn facility(name: SyslogFacility) -> Facility {
    match name {
        SyslogFacility::Auth => Facility::Auth,
        SyslogFacility::Authpriv => Facility::AuthPriv,
        SyslogFacility::Daemon => Facility::Daemon,
        SyslogFacility::User => Facility::User,
        SyslogFacility::Local0 => Facility::Local0,
        SyslogFacility::Local1 => Facility::Local1,
        SyslogFacility::Local2 => Facility::Local2,
        SyslogFacility::Local3 => Facility::Local3,
        SyslogFacility::Local4 => Facility::Local4,
        SyslogFacility::Local5 => Facility::Local5,
        SyslogFacility::Local6 => Facility::Local6,
        SyslogFacility::Local7 => Facility::Local7,
    }
}

/// The line without what syslog adds itself: time, process and level.
struct BareFormat(SyslogSink);

impl<S, N> FormatEvent<S, N> for BareFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.0.is_on() {
            return Ok(());
        }
        let mut line = Line::default();
        event.record(&mut line);
        write!(writer, "{}{}", line.message, line.fields)
    }
}

/// PgBouncer's line.
struct LineFormat {
    clock: fn() -> Zoned,
    pid: u32,
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let time = (self.clock)().strftime("%Y-%m-%d %H:%M:%S.%3f %Z").to_string();
        let level = if line.fatal { "FATAL" } else { level_word(*event.metadata().level()) };
        writeln!(writer, "{time} [{}] {level} {}{}", self.pid, line.message, line.fields)
    }
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "LOG",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "NOISE",
    }
}

/// The message and the fields of one event, already safe to print.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
    fatal: bool,
}

impl Line {
    fn push(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            push_on_one_line(&mut self.message, value);
            return;
        }
        self.fields.push(' ');
        self.fields.push_str(field.name());
        self.fields.push('=');
        if value.is_empty() || value.contains([' ', '"', '=']) {
            self.fields.push_str(&format!("{value:?}"));
        } else {
            push_on_one_line(&mut self.fields, value);
        }
    }
}

impl Visit for Line {
    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            "fatal" => self.fatal = value,
            _ => self.push(field, if value { "true" } else { "false" }),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}

/// Names come from clients: a line break in one must not begin a line of its own.
fn push_on_one_line(line: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::{debug, error, info, trace, warn};

    fn clock() -> Zoned {
        "2026-11-22T07:04:41.823456+00:00[UTC]".parse().unwrap()
    }

    fn options(path: &Path) -> LogOptions {
        LogOptions {
            file: Some(path.to_owned()),
            quiet: true,
            verbosity: 0,
            syslog: None,
            json: false,
            clock,
        }
    }

    fn check(verbosity: u8, log: impl FnOnce(), expected: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = LogOptions { verbosity, ..options(&path) };
        let (_log, subscriber) = build(&options, io::stderr).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        let pid = std::process::id();
        let expected: String =
            expected.iter().map(|line| format!("2026-11-22 07:04:41.823 UTC [{pid}] {line}\n")).collect();
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn levels_have_pgbouncers_words() {
        let all = || {
            error!(fatal = true, "cannot start");
            error!("a");
            warn!("b");
            info!("c");
            debug!("d");
            trace!("e");
            info!(target: "hyper", "f");
            warn!(target: "hyper", "g");
            error!(target: "kube_client::client::builder", "h");
        };
        let quiet = ["FATAL cannot start", "ERROR a", "WARNING b", "LOG c", "WARNING g"];
        check(0, all, &quiet);
        let noisy = [&quiet[..4], &["DEBUG d", "NOISE e"], &quiet[4..], &["ERROR h"]].concat();
        check(2, all, &noisy);
    }

    #[test]
    fn fields_follow_as_key_and_value() {
        check(
            0,
            || info!(waiting = 3, pool = "a b", mode = "session", empty = "", up = true, "held"),
            &["LOG held waiting=3 pool=\"a b\" mode=session empty=\"\" up=true"],
        );
    }

    #[test]
    fn a_name_cannot_begin_a_line_of_its_own() {
        check(
            0,
            || warn!(user = "a\nb", "no such user: {}", "x\n2026 LOG y\u{1b}[2J"),
            &["WARNING no such user: x\\n2026 LOG y\\u{1b}[2J user=a\\nb"],
        );
    }

    #[test]
    fn tags_name_the_connection_as_pgbouncer_does() {
        let tcp = |address: &str| Peer::Tcp(address.parse().unwrap());
        let check = |peer: Peer, expected: &str| {
            let client = ClientTag { id: 31, database: Some("p0"), user: None, peer: &peer };
            assert_eq!(client.to_string(), format!("C-0x1f: p0/(nouser)@{expected}"));
            let server = ServerTag { id: 31, database: "p0", user: "app", peer: &peer };
            assert_eq!(server.to_string(), format!("S-0x1f: p0/app@{expected}"));
        };
        check(tcp("127.0.0.1:60700"), "127.0.0.1:60700");
        check(tcp("[::1]:5432"), "[::1]:5432");
        check(Peer::Unix { pid: Some(12), port: 6432 }, "unix(12):6432");
        check(Peer::Unix { pid: None, port: 5432 }, "unix:5432");
    }

    #[test]
    fn a_moved_file_is_opened_anew_and_verbosity_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let moved = folder.path().join("log.1");
        let (log, subscriber) = build(&options(&path), io::stderr).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            info!("first");
            std::fs::rename(&path, &moved).unwrap();
            log.reopen(Some(&path)).unwrap();
            debug!("hidden");
            log.set_verbosity(1);
            debug!("second");
            assert!(log.reopen(Some(Path::new("/nonexistent/log"))).is_err());
            info!("third");
        });
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert!(read(&moved).ends_with("LOG first\n"));
        let lines: Vec<String> = read(&path).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("DEBUG second") && lines[1].ends_with("LOG third"));
    }

    #[test]
    fn json_is_one_object_per_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = LogOptions { json: true, ..options(&path) };
        let (_log, subscriber) = build(&options, io::stderr).unwrap();
        tracing::subscriber::with_default(subscriber, || info!(waiting = 3, "held\nback"));
        let line = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "held\nback");
        assert_eq!(value["waiting"], 3);
        assert_eq!(value["level"], "INFO");
    }
}
