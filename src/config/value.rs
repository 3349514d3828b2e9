//! How the text of one setting becomes a value that cannot be wrong. [`Value`] is what a type must
//! know to be a setting's type; the enums of the settings are here too.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A type that a setting may have.
pub(super) trait Value: Sized {
    /// Whether several values, separated by commas, are meant.
    const LIST: bool = false;

    /// What a right value is: "0 to 65535", "session, transaction or statement".
    fn allowed() -> Cow<'static, str>;

    /// The value, if the text is one.
    fn parse(text: &str) -> Option<Self>;

    /// The value as `SHOW CONFIG` prints it.
    fn print(&self) -> String;
}

/// A whole number as C's `strtol` with base 0 reads it: `0777` is octal, `0x1f` hexadecimal.
pub(super) fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(rest) => (16, rest),
        None if digits.starts_with('0') && digits.len() > 1 => (8, &digits[1..]),
        None => (10, digits),
    };
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    let value = i64::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

impl Value for u16 {
    fn allowed() -> Cow<'static, str> {
        "0 to 65535".into()
    }

    fn parse(text: &str) -> Option<Self> {
        integer(text)?.try_into().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn allowed() -> Cow<'static, str> {
        "0 to 2147483647".into()
    }

    fn parse(text: &str) -> Option<Self> {
        i32::try_from(integer(text)?).ok()?.try_into().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// A flag is a whole number; everything but 0 is yes, as in PgBouncer.
impl Value for bool {
    fn allowed() -> Cow<'static, str> {
        "0 or 1, on or off".into()
    }

    fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "on" | "yes" | "true" => Some(true),
            "off" | "no" | "false" => Some(false),
            number => integer(number).map(|number| number != 0),
        }
    }

    fn print(&self) -> String {
        u8::from(*self).to_string()
    }
}

/// The longest time that a setting may have, in seconds: 68 years.
const SECONDS_MAX: f64 = i32::MAX as f64;

impl Value for Duration {
    fn allowed() -> Cow<'static, str> {
        "seconds without a unit, 0 to 2147483647".into()
    }

    fn parse(text: &str) -> Option<Self> {
        let seconds: f64 = text.trim().parse().ok()?;
        // A range does not contain NaN.
        if !(0.0..=SECONDS_MAX).contains(&seconds) {
            return None;
        }
        // PgBouncer counts in microseconds.
        Some(Duration::from_micros((seconds * 1e6) as u64))
    }

    fn print(&self) -> String {
        general(self.as_secs_f64())
    }
}

/// A number as C prints it with `%g`: six digits, no trailing zeros, an exponent when it is long.
fn general(number: f64) -> String {
    let scientific = format!("{number:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} prints an e");
    let exponent: i32 = exponent.parse().expect("{:e} prints a whole exponent");
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).expect("the exponent is below 6");
        return without_trailing_zeros(&format!("{number:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_trailing_zeros(mantissa), exponent.abs())
}

fn without_trailing_zeros(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

impl Value for String {
    fn allowed() -> Cow<'static, str> {
        "text".into()
    }

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn print(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn allowed() -> Cow<'static, str> {
        "a path".into()
    }

    fn parse(text: &str) -> Option<Self> {
        Some(PathBuf::from(text))
    }

    fn print(&self) -> String {
        self.display().to_string()
    }
}

/// Empty text means "not set".
impl<T: Value> Value for Option<T> {
    const LIST: bool = T::LIST;

    fn allowed() -> Cow<'static, str> {
        T::allowed()
    }

    fn parse(text: &str) -> Option<Self> {
        match text.is_empty() {
            true => Some(None),
            false => T::parse(text).map(Some),
        }
    }

    fn print(&self) -> String {
        self.as_ref().map(T::print).unwrap_or_default()
    }
}

/// Values separated by commas; space around them and empty ones do not count.
impl<T: Value> Value for Vec<T> {
    const LIST: bool = true;

    fn allowed() -> Cow<'static, str> {
        format!("a list of {}, separated by commas", T::allowed()).into()
    }

    fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(T::parse).collect()
    }

    fn print(&self) -> String {
        self.iter().map(T::print).collect::<Vec<_>>().join(", ")
    }
}

/// `host:port`, where the host is an address, `localhost`, or empty or `*` for all addresses.
impl Value for SocketAddr {
    fn allowed() -> Cow<'static, str> {
        "address:port, as in 0.0.0.0:9127 or [::]:9127".into()
    }

    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok()?;
        match host {
            "" | "*" => Some((Ipv6Addr::UNSPECIFIED, port).into()),
            "localhost" => Some((Ipv4Addr::LOCALHOST, port).into()),
            _ => None,
        }
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// A password or another secret. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Value for Secret {
    fn allowed() -> Cow<'static, str> {
        "text".into()
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Secret(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

/// Where a PostgreSQL server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A host name or an IP address.
    Tcp(String),
    /// The directory of a Unix socket.
    Unix(PathBuf),
    /// The name (without `@`) of a Unix socket's directory in Linux's abstract namespace.
    Abstract(String),
}

impl Host {
    /// The name or address of a host that is reached by TCP.
    pub fn tcp_name(&self) -> Option<&str> {
        match self {
            Host::Tcp(name) => Some(name),
            Host::Unix(_) | Host::Abstract(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp(name) => f.write_str(name),
            Host::Unix(directory) => directory.display().fmt(f),
            Host::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl Value for Host {
    fn allowed() -> Cow<'static, str> {
        "a name, an address, /directory or @name".into()
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        Some(match text.strip_prefix('@') {
            Some(name) => Host::Abstract(name.to_owned()),
            None if text.starts_with('/') => Host::Unix(PathBuf::from(text)),
            None => Host::Tcp(text.to_owned()),
        })
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// A host name or an IP address, and a port where one is given: `pooler-peers`, `10.0.0.7:6432`, `[::1]:6432`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The name or the address, without brackets.
    pub host: String,
    /// The port; unset is for the setting to say.
    pub port: Option<u16>,
}

impl Value for HostPort {
    fn allowed() -> Cow<'static, str> {
        "host or host:port, as in pooler-peers:6432 or [::1]:6432".into()
    }

    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                match port.is_empty() {
                    true => (host, None),
                    false => (host, Some(port.strip_prefix(':')?)),
                }
            }
            None if text.parse::<Ipv6Addr>().is_ok() => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
            None => None,
        };
        let is_named = !host.is_empty() && !host.contains(['/', '@']) && !host.contains(char::is_whitespace);
        is_named.then(|| HostPort { host: host.to_owned(), port })
    }

    fn print(&self) -> String {
        match self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

/// What is sent to find out whether a server connection still works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckQuery {
    /// No check (the setting is empty).
    Off,
    /// This query; the setting's `<empty>` is the empty query.
    Query(String),
}

const EMPTY_QUERY: &str = "<empty>";

impl Value for CheckQuery {
    fn allowed() -> Cow<'static, str> {
        "a query, <empty>, or nothing".into()
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => CheckQuery::Off,
            EMPTY_QUERY => CheckQuery::Query(String::new()),
            query => CheckQuery::Query(query.to_owned()),
        })
    }

    fn print(&self) -> String {
        match self {
            CheckQuery::Off => String::new(),
            CheckQuery::Query(query) if query.is_empty() => EMPTY_QUERY.to_owned(),
            CheckQuery::Query(query) => query.clone(),
        }
    }
}

/// An enum whose names are a setting's allowed values, in any case of letters.
macro_rules! choices {
    ($(
        $(#[$meta:meta])*
        $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $text:literal, )+ }
    )+) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$variant_meta])* $variant, )+ }

        impl $name {
            /// The value's name in the settings.
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Value for $name {
            fn allowed() -> Cow<'static, str> {
                one_of(&[$($text),+]).into()
            }

            fn parse(text: &str) -> Option<Self> {
                $( if text.eq_ignore_ascii_case($text) { return Some($name::$variant); } )+
                None
            }

            fn print(&self) -> String {
                self.as_str().to_owned()
            }
        }
    )+ };
}

fn one_of(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

choices! {
    /// What a client wants of a cluster.
    #[derive(Default, PartialOrd, Ord)]
    Role {
        /// The primary.
        #[default]
        ReadWrite = "rw",
        /// The standbys.
        ReadOnly = "ro",
        /// Any server, for reading.
        Read = "r",
        /// The standbys; without one that is fresh enough, the primary.
        PreferStandby = "prefer-standby",
    }

    /// Who says which server of a cluster is the primary.
    SourceKind {
        /// CloudNativePG's Cluster object and its pods.
        Cnpg = "cnpg",
        /// Patroni's leader object in Kubernetes, as Zalando's and Crunchy's operators have it.
        Patroni = "patroni",
        /// Labels of the pods.
        Label = "label",
        /// The servers themselves, asked by SQL.
        Probe = "probe",
        /// The settings: the first host is the primary.
        Static = "static",
    }

    /// How long a client keeps its server connection.
    PoolMode {
        /// Until the client disconnects.
        Session = "session",
        /// Until the end of the transaction.
        Transaction = "transaction",
        /// Until the end of the statement; transaction blocks are refused.
        Statement = "statement",
    }

    /// How clients prove who they are.
    AuthType {
        /// They need not, and the user name is ignored.
        Any = "any",
        /// They need not, but the user must exist.
        Trust = "trust",
        /// Password in clear text.
        Plain = "plain",
        /// MD5 challenge; SCRAM for users whose secret is a SCRAM one.
        Md5 = "md5",
        /// TLS client certificate.
        Cert = "cert",
        /// As the rules of `auth_hba_file` say.
        Hba = "hba",
        /// The LDAP server of `auth_ldap_options` checks the password.
        Ldap = "ldap",
        /// PAM checks the password.
        Pam = "pam",
        /// SCRAM-SHA-256.
        ScramSha256 = "scram-sha-256",
    }

    /// How much TLS is asked for, in libpq's words.
    SslMode {
        /// None.
        Disable = "disable",
        /// Only if the other side insists.
        Allow = "allow",
        /// If the other side can.
        Prefer = "prefer",
        /// Always, certificates unchecked.
        Require = "require",
        /// Always, with a certificate of a known CA.
        VerifyCa = "verify-ca",
        /// Always, with a certificate of a known CA for this very name.
        VerifyFull = "verify-full",
    }

    /// How a server is chosen from a database's host list.
    LoadBalanceHosts {
        /// Each in turn.
        RoundRobin = "round-robin",
        /// The same one until it fails, then the next.
        Disable = "disable",
    }

    /// The form of the log's lines.
    LogFormat {
        /// PgBouncer's lines.
        Pgbouncer = "pgbouncer",
        /// One JSON object per line.
        Json = "json",
    }

    /// What becomes of what a client makes of its session, where servers change clients.
    SessionStateMode {
        /// It is set up again on the next server, or the client keeps its server.
        ReplayAndPin = "replay_and_pin",
        /// As in PgBouncer: it stays where it was made.
        Pgbouncer = "pgbouncer",
        /// A client that leaves anything behind is disconnected.
        Error = "error",
    }

    /// Diffie-Hellman parameters for TLS.
    DheParameters {
        /// No DHE.
        None = "none",
        /// 2048 bits.
        Auto = "auto",
        /// 1024 bits.
        Legacy = "legacy",
    }

    /// Whose messages these are for syslog.
    SyslogFacility {
        /// LOG_AUTH
        Auth = "auth",
        /// LOG_AUTHPRIV
        Authpriv = "authpriv",
        /// LOG_DAEMON
        Daemon = "daemon",
        /// LOG_USER
        User = "user",
        /// LOG_LOCAL0
        Local0 = "local0",
        /// LOG_LOCAL1
        Local1 = "local1",
        /// LOG_LOCAL2
        Local2 = "local2",
        /// LOG_LOCAL3
        Local3 = "local3",
        /// LOG_LOCAL4
        Local4 = "local4",
        /// LOG_LOCAL5
        Local5 = "local5",
        /// LOG_LOCAL6
        Local6 = "local6",
        /// LOG_LOCAL7
        Local7 = "local7",
    }

    /// A word of `client_tls_protocols` and `server_tls_protocols`.
    TlsProtocol {
        /// TLS 1.0
        Tls10 = "tlsv1.0",
        /// TLS 1.1
        Tls11 = "tlsv1.1",
        /// TLS 1.2
        Tls12 = "tlsv1.2",
        /// TLS 1.3
        Tls13 = "tlsv1.3",
        /// Every version of TLS 1.
        Tls1 = "tlsv1",
        /// Every version.
        All = "all",
        /// TLS 1.2 and 1.3.
        Secure = "secure",
        /// As `secure`.
        Default = "default",
        /// Every version.
        Legacy = "legacy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_as_c_reads_them() {
        let check = |text, wanted| assert_eq!(integer(text), wanted, "{text:?}");
        check("0", Some(0));
        check("10", Some(10));
        check(" 10", Some(10));
        check("+10", Some(10));
        check("-10", Some(-10));
        check("0777", Some(511));
        check("0x1F", Some(31));
        check("0X1f", Some(31));
        check("-0x10", Some(-16));
        for wrong in ["", " ", "-", "+", "0x", "08", "0x-5", "0-5", "--5", "+-5", "1.5", "10s", "on", "é"] {
            check(wrong, None);
        }
        check("99999999999999999999", None);
    }

    #[test]
    fn seconds_may_have_a_fraction_but_no_unit() {
        let check = |text, wanted: Option<u64>| {
            assert_eq!(Duration::parse(text), wanted.map(Duration::from_millis), "{text:?}");
        };
        check("0", Some(0));
        check("0.25", Some(250));
        check(".5", Some(500));
        check("120", Some(120_000));
        check("1e3", Some(1_000_000));
        check("2147483647", Some(2_147_483_647_000));
        for wrong in ["", "-1", "-0.5", "10s", "10 s", "nan", "inf", "1e99", "2147483648", "on"] {
            check(wrong, None);
        }
    }

    #[test]
    fn seconds_are_printed_as_pgbouncer_prints_them() {
        let check = |seconds, wanted: &str| assert_eq!(general(seconds), wanted);
        check(0.0, "0");
        check(15.0, "15");
        check(3600.0, "3600");
        check(999_999.0, "999999");
        check(1_000_000.0, "1e+06");
        check(86_400_000.0, "8.64e+07");
        check(0.25, "0.25");
        check(0.000_01, "1e-05");
        check(1.234_567_89, "1.23457");
    }

    #[test]
    fn a_list_forgets_space_and_empty_items() {
        let check = |text, wanted: &[&str]| {
            assert_eq!(<Vec<String>>::parse(text).unwrap(), wanted, "{text:?}");
        };
        check("", &[]);
        check("a", &["a"]);
        check(" a , b,,c ", &["a", "b", "c"]);
    }

    #[test]
    fn a_metrics_address_is_host_and_port() {
        let check = |text, wanted: Option<&str>| {
            let printed = SocketAddr::parse(text).map(|address| address.print());
            assert_eq!(printed.as_deref(), wanted, "{text:?}");
        };
        check("127.0.0.1:9127", Some("127.0.0.1:9127"));
        check("[::1]:9127", Some("[::1]:9127"));
        check(":9127", Some("[::]:9127"));
        check("*:9127", Some("[::]:9127"));
        check("localhost:9127", Some("127.0.0.1:9127"));
        for wrong in ["9127", "a.b:9127", "127.0.0.1", "127.0.0.1:x", ":70000", "::1:"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_host_is_a_name_a_directory_or_an_abstract_name() {
        let check = |text, wanted| assert_eq!(Host::parse(text), wanted);
        check("db.example", Some(Host::Tcp("db.example".into())));
        check("::1", Some(Host::Tcp("::1".into())));
        check("/run/postgresql", Some(Host::Unix("/run/postgresql".into())));
        check("@pg", Some(Host::Abstract("pg".into())));
        check("", None);
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "***");
    }

    #[test]
    fn names_of_choices_may_be_in_any_case() {
        assert_eq!(PoolMode::parse("TRANSACTION"), Some(PoolMode::Transaction));
        assert_eq!(AuthType::parse("Scram-SHA-256"), Some(AuthType::ScramSha256));
        assert_eq!(PoolMode::parse("transactions"), None);
        assert_eq!(PoolMode::allowed(), "session, transaction or statement");
    }
}
