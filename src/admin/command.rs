//! The console's grammar: one command per query, as PgBouncer's two regular expressions read it.
//! [`Command::parse`] is pure; what a command does is decided elsewhere.
//!
//! ```text
//! ^ ws WORD (ws+ WORD)? ws (; ws)? $                    a command and its argument
//! ^ ws set ws+ WORD ws (=|to) ws (STRING|WORD) ws (; ws)? $
//! ^ ws WORD ws+ NAME (ws+ NAME)? ws (; ws)? $           ours: HOLD, RELEASE and REROUTE
//! ```
//! `ws` is space, tab, CR or LF; WORD is `[0-9a-z_]+` in either case or `"quoted"`, STRING is
//! `'quoted'`; a doubled quote inside stands for one. NAME is WORD with `-` and `.`, as Kubernetes' names have them.

use std::fmt;

/// Longest command name and argument as written, quotes included. PgBouncer's buffer, less its NUL.
const ARGUMENT_BYTES_MAX: usize = 63;
/// Longest name in a command of ours, quotes included: that of a Kubernetes object.
const NAME_BYTES_MAX: usize = 255;
/// Longest value of SET as written, quotes included.
const VALUE_BYTES_MAX: usize = 255;

/// One command of the console, understood but not yet carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SHOW x`, or its alias `SELECT x`.
    Show(Show),
    /// `SHOW client_encoding` and its like: a fixed answer that keeps drivers content.
    ShowParameter(FakeParameter),
    /// `SET key = value`.
    Set {
        /// The setting's name, as written.
        key: String,
        /// The new value, without its quotes.
        value: String,
    },
    /// SET of a session parameter that the console does not have: it is answered, not obeyed.
    SetIgnored,
    /// `RELOAD`
    Reload,
    /// `PAUSE [db]`; without a database, everything.
    Pause(Option<String>),
    /// `RESUME [db]`
    Resume(Option<String>),
    /// `SUSPEND`
    Suspend,
    /// `KILL [db]`
    Kill(Option<String>),
    /// `KILL_CLIENT id`; `None` when there is no number to be read.
    KillClient(Option<u64>),
    /// `RECONNECT [db]`
    Reconnect(Option<String>),
    /// `WAIT_CLOSE [db]`
    WaitClose(Option<String>),
    /// `DISABLE db`; `None` is an error that only an administrator is told about.
    Disable(Option<String>),
    /// `ENABLE db`
    Enable(Option<String>),
    /// `HOLD cluster seconds`
    Hold {
        /// The cluster's name.
        cluster: String,
        /// It lapses after so many seconds.
        seconds: u32,
    },
    /// `RELEASE cluster`: ends a HOLD.
    Release(String),
    /// `REROUTE db cluster`
    Reroute {
        /// The database's name.
        database: String,
        /// The cluster that it belongs to from then on.
        cluster: String,
    },
    /// `SHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]`
    Shutdown(Shutdown),
}

/// What SHOW can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each name is the word after SHOW")]
pub enum Show {
    ActiveSockets,
    Clients,
    Clusters,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    Fds,
    Help,
    Lists,
    Mem,
    Members,
    PeerPools,
    Peers,
    Pins,
    Pools,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Totals,
    Users,
    Version,
}

const SHOWS: &[(&str, Show)] = &[
    ("active_sockets", Show::ActiveSockets),
    ("clients", Show::Clients),
    ("clusters", Show::Clusters),
    ("config", Show::Config),
    ("databases", Show::Databases),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
    ("fds", Show::Fds),
    ("help", Show::Help),
    ("lists", Show::Lists),
    ("mem", Show::Mem),
    ("members", Show::Members),
    ("peer_pools", Show::PeerPools),
    ("peers", Show::Peers),
    ("pins", Show::Pins),
    ("pools", Show::Pools),
    ("servers", Show::Servers),
    ("sockets", Show::Sockets),
    ("state", Show::State),
    ("stats", Show::Stats),
    ("stats_averages", Show::StatsAverages),
    ("stats_totals", Show::StatsTotals),
    ("totals", Show::Totals),
    ("users", Show::Users),
    ("version", Show::Version),
];

/// The session parameters that drivers ask any server for, with the console's fixed answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name is the parameter's")]
pub enum FakeParameter {
    ClientEncoding,
    DefaultTransactionIsolation,
    StandardConformingStrings,
    DateStyle,
    TimeZone,
}

const FAKE_PARAMETERS: &[(&str, FakeParameter)] = &[
    ("client_encoding", FakeParameter::ClientEncoding),
    ("default_transaction_isolation", FakeParameter::DefaultTransactionIsolation),
    ("standard_conforming_strings", FakeParameter::StandardConformingStrings),
    ("datestyle", FakeParameter::DateStyle),
    ("timezone", FakeParameter::TimeZone),
];

/// How the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Immediate,
    /// When every server connection has been released.
    WaitForServers,
    /// When every client has gone.
    WaitForClients,
}

/// Why a query is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// Nothing that the grammar knows.
    Invalid,
    /// A word or value longer than PgBouncer takes.
    BadArguments,
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shutdown::Immediate => "SHUTDOWN",
            Shutdown::WaitForServers => "SHUTDOWN WAIT_FOR_SERVERS",
            Shutdown::WaitForClients => "SHUTDOWN WAIT_FOR_CLIENTS",
        })
    }
}

impl Command {
    /// Reads one query of the console.
    pub fn parse(query: &str) -> Result<Command, CommandError> {
        if let Some((name, argument)) = split_command(query) {
            let name = unquote(name, ARGUMENT_BYTES_MAX)?;
            let argument = unquote(argument.unwrap_or_default(), ARGUMENT_BYTES_MAX)?;
            return command(&name.to_ascii_lowercase(), argument);
        }
        if let Some((name, first, second)) = split_ours(query) {
            let second = second.map(|second| unquote(second, NAME_BYTES_MAX)).transpose()?;
            if let Some(command) = ours(name, unquote(first, NAME_BYTES_MAX)?, second) {
                return Ok(command);
            }
        }
        let (key, value) = split_set(query).ok_or(CommandError::Invalid)?;
        let key = unquote(key, ARGUMENT_BYTES_MAX)?;
        let value = unquote(value, VALUE_BYTES_MAX)?;
        if lookup(FAKE_PARAMETERS, &key).is_some() {
            return Ok(Command::SetIgnored);
        }
        Ok(Command::Set { key, value })
    }
}

/// Our own commands, which have two arguments, or one that names a cluster.
fn ours(name: &str, first: String, second: Option<String>) -> Option<Command> {
    match (name.to_ascii_lowercase().as_str(), second) {
        ("hold", Some(seconds)) => Some(Command::Hold { cluster: first, seconds: seconds.parse().ok()? }),
        ("reroute", Some(cluster)) => Some(Command::Reroute { database: first, cluster }),
        ("release", None) => Some(Command::Release(first)),
        _ => None,
    }
}

fn command(name: &str, argument: String) -> Result<Command, CommandError> {
    let database = || Some(argument.clone()).filter(|name| !name.is_empty());
    match name {
        "show" | "select" => show(&argument),
        "reload" => no_argument(&argument, Command::Reload),
        "suspend" => no_argument(&argument, Command::Suspend),
        "pause" => Ok(Command::Pause(database())),
        "resume" => Ok(Command::Resume(database())),
        "kill" => Ok(Command::Kill(database())),
        "reconnect" => Ok(Command::Reconnect(database())),
        "wait_close" => Ok(Command::WaitClose(database())),
        "disable" => Ok(Command::Disable(database())),
        "enable" => Ok(Command::Enable(database())),
        "kill_client" => Ok(Command::KillClient(client_id(&argument))),
        "release" if !argument.is_empty() => Ok(Command::Release(argument)),
        "shutdown" => shutdown(&argument).map(Command::Shutdown),
        _ => Err(CommandError::Invalid),
    }
}

fn show(argument: &str) -> Result<Command, CommandError> {
    if let Some(show) = lookup(SHOWS, argument) {
        return Ok(Command::Show(show));
    }
    let parameter = lookup(FAKE_PARAMETERS, argument).ok_or(CommandError::Invalid)?;
    Ok(Command::ShowParameter(parameter))
}

fn shutdown(argument: &str) -> Result<Shutdown, CommandError> {
    match argument.to_ascii_lowercase().as_str() {
        "" => Ok(Shutdown::Immediate),
        "wait_for_servers" => Ok(Shutdown::WaitForServers),
        "wait_for_clients" => Ok(Shutdown::WaitForClients),
        _ => Err(CommandError::Invalid),
    }
}

fn no_argument(argument: &str, command: Command) -> Result<Command, CommandError> {
    match argument {
        "" => Ok(command),
        _ => Err(CommandError::Invalid),
    }
}

/// The number at the start of the argument, as C's `strtoull` finds it: too large is the largest.
fn client_id(argument: &str) -> Option<u64> {
    let digits: &str = argument.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    Some(digits[..end].parse().unwrap_or(u64::MAX))
}

fn lookup<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    let found = table.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value)
}

fn split_command(query: &str) -> Option<(&str, Option<&str>)> {
    let (name, rest) = word(skip_space(query))?;
    let after = skip_space(rest);
    if is_end(after) {
        return Some((name, None));
    }
    let (argument, after) = word(after).filter(|_| rest.len() > after.len())?;
    is_end(skip_space(after)).then_some((name, Some(argument)))
}

fn split_ours(query: &str) -> Option<(&str, &str, Option<&str>)> {
    let (name, rest) = word(skip_space(query))?;
    let (first, rest) = object_name(skip_space(rest))?;
    let rest = skip_space(rest);
    if is_end(rest) {
        return Some((name, first, None));
    }
    let (second, rest) = object_name(rest)?;
    is_end(skip_space(rest)).then_some((name, first, Some(second)))
}

/// Splits off a word that may be a Kubernetes object's name: PgBouncer would want quotes around it.
fn object_name(text: &str) -> Option<(&str, &str)> {
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn split_set(query: &str) -> Option<(&str, &str)> {
    let query = skip_space(query);
    let (set, rest) = query.split_at_checked(3)?;
    let key = skip_space(rest);
    if !set.eq_ignore_ascii_case("set") || key.len() == rest.len() {
        return None;
    }
    let (longest, _) = word(key)?;
    if longest.starts_with('"') {
        return set_value(&key[longest.len()..]).map(|value| (longest, value));
    }
    // PgBouncer's expression lets `to` follow the key without a space, so shorter keys are tried.
    (1..=longest.len()).rev().find_map(|length| {
        let (name, rest) = key.split_at(length);
        set_value(rest).map(|value| (name, value))
    })
}

fn set_value(text: &str) -> Option<&str> {
    let text = skip_space(text);
    let text = text.strip_prefix('=').or_else(|| {
        let (to, rest) = text.split_at_checked(2)?;
        to.eq_ignore_ascii_case("to").then_some(rest)
    })?;
    let text = skip_space(text);
    let (value, rest) = quoted(text, '\'').or_else(|| word(text))?;
    is_end(skip_space(rest)).then_some(value)
}

/// Splits off a leading word, with its quotes.
fn word(text: &str) -> Option<(&str, &str)> {
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Splits off a leading quoted text, with its quotes. A doubled quote is part of it.
fn quoted(text: &str, quote: char) -> Option<(&str, &str)> {
    let mut rest = text.strip_prefix(quote)?;
    loop {
        let end = rest.find(quote)?;
        rest = &rest[end + 1..];
        match rest.strip_prefix(quote) {
            Some(after) => rest = after,
            None => return Some(text.split_at(text.len() - rest.len())),
        }
    }
}

fn unquote(text: &str, bytes_max: usize) -> Result<String, CommandError> {
    if text.len() > bytes_max {
        return Err(CommandError::BadArguments);
    }
    for (quote, doubled) in [('"', "\"\""), ('\'', "''")] {
        let inner = text.strip_prefix(quote).and_then(|inner| inner.strip_suffix(quote));
        if let Some(inner) = inner {
            return Ok(inner.replace(doubled, &quote.to_string()));
        }
    }
    Ok(text.to_owned())
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r', '\n'])
}

/// Whether only an optional semicolon and space remain; leading space is already gone.
fn is_end(text: &str) -> bool {
    skip_space(text.strip_prefix(';').unwrap_or(text)).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: Result<Command, CommandError>) {
        assert_eq!(Command::parse(query), expected, "{query:?}");
    }

    fn check_ok(rows: &[(&str, Command)]) {
        for (query, expected) in rows {
            check(query, Ok(expected.clone()));
        }
    }

    fn set(key: &str, value: &str) -> Command {
        Command::Set { key: key.into(), value: value.into() }
    }

    #[test]
    fn our_own_commands_have_two_arguments() {
        check("HOLD c1 10;", Ok(Command::Hold { cluster: "c1".into(), seconds: 10 }));
        check("hold pg-main 5", Ok(Command::Hold { cluster: "pg-main".into(), seconds: 5 }));
        check("RELEASE acid-pg.db;", Ok(Command::Release("acid-pg.db".into())));
        check("hold \"pg-main\" 5", Ok(Command::Hold { cluster: "pg-main".into(), seconds: 5 }));
        check("RELEASE \"pg-main\"", Ok(Command::Release("pg-main".into())));
        let reroute = Command::Reroute { database: "app".into(), cluster: "c2".into() };
        check("REROUTE app c2", Ok(reroute));
        for wrong in ["HOLD", "HOLD c1", "HOLD c1 x", "HOLD c1 1 2", "RELEASE", "REROUTE app"] {
            check(wrong, Err(CommandError::Invalid));
        }
    }

    #[test]
    fn show_is_read_in_any_case_with_space_and_one_semicolon() {
        for query in [
            "SHOW version;",
            "show version ; ",
            "\"show\" \"version\"",
            "show \"VERSION\"",
            "select version",
            "sHoW\tversion\n",
            " \r\n show version",
        ] {
            check(query, Ok(Command::Show(Show::Version)));
        }
        for (name, show) in SHOWS {
            check(&format!("SHOW {name}"), Ok(Command::Show(*show)));
        }
        let zone = Command::ShowParameter(FakeParameter::TimeZone);
        check_ok(&[("show TimeZone", zone.clone()), ("select timezone;", zone)]);
    }

    #[test]
    fn commands_take_their_arguments() {
        let db = |name: &str| Some(name.to_owned());
        check_ok(&[
            ("pause", Command::Pause(None)),
            ("pause \"\"", Command::Pause(None)),
            ("PAUSE p0", Command::Pause(db("p0"))),
            ("PAUSE P0;", Command::Pause(db("P0"))),
            ("\"pause\" \"p-1\"", Command::Pause(db("p-1"))),
            ("pause \"a\"\"b\"", Command::Pause(db("a\"b"))),
            ("resume p0", Command::Resume(db("p0"))),
            ("reload", Command::Reload),
            ("reload \"\";", Command::Reload),
            ("suspend", Command::Suspend),
            ("kill", Command::Kill(None)),
            ("kill p0", Command::Kill(db("p0"))),
            ("reconnect", Command::Reconnect(None)),
            ("wait_close p0", Command::WaitClose(db("p0"))),
            ("disable \"\"", Command::Disable(None)),
            ("enable p0", Command::Enable(db("p0"))),
            ("kill_client", Command::KillClient(None)),
            ("kill_client abc", Command::KillClient(None)),
            ("kill_client 12abc", Command::KillClient(Some(12))),
            ("kill_client \" 5\"", Command::KillClient(Some(5))),
            ("kill_client 0x1", Command::KillClient(Some(0))),
            ("kill_client 99999999999999999999", Command::KillClient(Some(u64::MAX))),
            ("shutdown", Command::Shutdown(Shutdown::Immediate)),
            ("SHUTDOWN Wait_For_Clients", Command::Shutdown(Shutdown::WaitForClients)),
            ("shutdown wait_for_servers", Command::Shutdown(Shutdown::WaitForServers)),
        ]);
    }

    #[test]
    fn set_takes_equals_or_to_and_quoted_values() {
        check_ok(&[
            ("set stats_period=61", set("stats_period", "61")),
            ("set stats_period = 61 ;", set("stats_period", "61")),
            ("SET stats_period TO 61; ", set("stats_period", "61")),
            ("set stats_periodto 61", set("stats_period", "61")),
            ("set log_stats tox", set("log_stats", "x")),
            ("set tox=1", set("tox", "1")),
            ("set \"stats_period\"=\"61\"", set("stats_period", "61")),
            ("set \"a\"\"b\"=1", set("a\"b", "1")),
            ("set admin_users='adm, foo'", set("admin_users", "adm, foo")),
            ("set admin_users='it''s'", set("admin_users", "it's")),
            ("set admin_users='a\"b'", set("admin_users", "a\"b")),
            ("set admin_users=\"a'b\"", set("admin_users", "a'b")),
            ("set admin_users=''", set("admin_users", "")),
            ("set admin_users='é'", set("admin_users", "é")),
            ("set admin_users=to", set("admin_users", "to")),
            ("set Client_Encoding='utf8'", Command::SetIgnored),
            ("SET TimeZone TO x", Command::SetIgnored),
        ]);
    }

    #[test]
    fn anything_else_is_invalid() {
        for query in [
            "",
            "; ",
            " ;",
            "show",
            "show ;",
            "show version;;",
            "show version; show version",
            "show version x",
            "SELECT 1",
            "show 1",
            "show version -- x",
            "show foo",
            "show a.b",
            "show \"\"",
            "show \"ver",
            "show\"version\"",
            "\"show\"version",
            "show 'version'",
            "show $1",
            "set",
            "set x",
            "set a=-1",
            "set a=b c",
            "set a='b',c",
            "set a'x'",
            "set a=",
            "set a b",
            "set atob",
            "set a \"60\"",
            "set a=60 ; ;",
            "\"set\" a=60",
            "reload x",
            "suspend x",
            "pause x y",
            "pause p-1",
            "shutdown foo",
            "kill_client -1",
            "begin",
            "shöw",
            "sé",
            "\u{b}show version",
            "\u{a0}show version",
        ] {
            check(query, Err(CommandError::Invalid));
        }
    }

    #[test]
    fn a_word_holds_63_bytes_and_a_value_255_quotes_included() {
        let pause = |length: usize| format!("pause \"{}\"", "a".repeat(length));
        let set = |length: usize| format!("set admin_users='{}'", "a".repeat(length));
        check(&pause(61), Ok(Command::Pause(Some("a".repeat(61)))));
        check(&pause(62), Err(CommandError::BadArguments));
        assert!(Command::parse(&set(253)).is_ok());
        check(&set(254), Err(CommandError::BadArguments));
        check(&format!("show {}", "a".repeat(63)), Err(CommandError::Invalid));
        check(&format!("show {}", "a".repeat(64)), Err(CommandError::BadArguments));
    }
}
