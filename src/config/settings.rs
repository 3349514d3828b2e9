//! [`Settings`]: every global setting with its type, default and meaning, in one table. The table
//! drives parsing, defaults, `SET` and `SHOW CONFIG`; a new setting is one line of it, with its doc.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::cores;
use super::error::Problem;
use super::value::{
    AuthType, CheckQuery, DheParameters, Host, HostPort, LogFormat, PoolMode, Secret, SessionStateMode,
    SourceKind, SslMode, SyslogFacility, TlsProtocol, Value,
};

/// The database name of the console; no database may have it.
pub const RESERVED_DATABASE: &str = "pgbouncer";

/// The most threads; more than any machine of today has cores.
const WORKERS_MAX: u32 = 1024;

/// When a setting may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// At any time, by RELOAD and SET.
    Live,
    /// Only by a restart; RELOAD and SET leave it silently as it is.
    Fixed,
}

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// PgBouncer 1.25.2.
    PgBouncer,
    /// PgBouncer, but `SHOW CONFIG` of 1.25.2 does not have it.
    NotShown,
    /// pgweir.
    Ours,
}

/// One line of the table.
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// The first line of its doc, without the full stop.
    pub(super) meaning: &'static str,
    /// Its default's text. A setting without one keeps, at a RELOAD, the value that was SET.
    pub(super) default: fn() -> Option<Cow<'static, str>>,
    pub(super) change: Change,
    pub(super) origin: Origin,
    /// Whether it is a list, separated by commas.
    pub(super) list: bool,
    allowed: fn() -> Cow<'static, str>,
    set: fn(&mut Settings, &str) -> bool,
    print: fn(&Settings) -> String,
}

/// Marks a setting without a default.
struct Unset;

/// A default as text; `None` for a setting without one.
struct DefaultText(Option<Cow<'static, str>>);

impl From<Unset> for DefaultText {
    fn from(_: Unset) -> Self {
        DefaultText(None)
    }
}

impl From<&'static str> for DefaultText {
    fn from(text: &'static str) -> Self {
        DefaultText(Some(text.into()))
    }
}

impl From<u32> for DefaultText {
    fn from(number: u32) -> Self {
        DefaultText(Some(number.to_string().into()))
    }
}

impl Setting {
    /// Sets it, or says what is wrong; `shown_as` is how the error calls it.
    pub(super) fn set(&self, settings: &mut Settings, value: &str, shown_as: &str) -> Result<(), Problem> {
        if self.name == "auth_dbname" && value == RESERVED_DATABASE {
            let message = format!("cannot use the reserved \"{value}\" database as an auth_dbname");
            return Err(Problem::NotAllowed(message));
        }
        if value.contains('\0') || !(self.set)(settings, value) {
            return Err(bad_value(shown_as, value, (self.allowed)(), self.meaning));
        }
        Ok(())
    }

    /// Its value as `SHOW CONFIG` prints it; `None` for one without default that is not set.
    pub(super) fn print(&self, settings: &Settings) -> Option<String> {
        let text = (self.print)(settings);
        (!text.is_empty() || (self.default)().is_some()).then_some(text)
    }
}

/// The setting of this name.
pub(super) fn find(name: &str) -> Result<&'static Setting, Problem> {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .ok_or_else(|| Problem::unknown(name.to_owned(), name, SETTINGS.iter().map(|setting| setting.name)))
}

/// The error for a wrong value, of which only the first word is shown: a quote that was forgotten
/// may have put a password behind it.
pub(super) fn bad_value(
    setting: &str,
    value: &str,
    allowed: Cow<'static, str>,
    meaning: &'static str,
) -> Problem {
    let first_word = value.split_whitespace().next().unwrap_or_default();
    let value = match first_word.len() == value.len() {
        true => value.to_owned(),
        false => format!("{first_word} ..."),
    };
    let meaning = meaning.trim().trim_end_matches('.');
    Problem::BadValue { setting: setting.to_owned(), value, allowed: allowed.into(), meaning }
}

impl Settings {
    /// Gives every setting that has a default this default; while running, not the fixed ones.
    pub(super) fn reset(&mut self, running: bool) {
        for setting in SETTINGS {
            if running && setting.change == Change::Fixed {
                continue;
            }
            if let Some(default) = (setting.default)() {
                let right = (setting.set)(self, &default);
                debug_assert!(right, "the default of {} is a right value", setting.name);
            }
        }
    }

    /// Where databases without a host are looked for: `unix_socket_dir`, if there is one.
    pub fn default_host(&self) -> Option<Host> {
        let directory = self.unix_socket_dir.as_ref()?;
        Some(match directory.to_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => Host::Abstract(name.to_owned()),
            None => Host::Unix(directory.clone()),
        })
    }
}

/// `name: type = default, when it may change [what range it has];`
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty = $default:expr, $change:ident $($origin:ident)? $([$range:expr])?;
    )+) => {
        /// Every global setting. Zero times mean "off" or "for ever", zero sizes "no limit", where
        /// the setting's own text says so.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Settings { $( $(#[doc = $doc])+ pub $name: $type, )+ }

        impl Default for Settings {
            fn default() -> Self {
                Settings { $( $name: initial($default.into(), stringify!($name)), )+ }
            }
        }

        /// The table, in the order of `SHOW CONFIG`.
        pub(super) static SETTINGS: &[Setting] = &[ $( Setting {
            name: stringify!($name),
            meaning: first!($($doc),+),
            default: || DefaultText::from($default).0,
            change: Change::$change,
            origin: first!($(Origin::$origin,)? Origin::PgBouncer),
            list: <$type as Value>::LIST,
            allowed: || first!(
                $(format!("{} to {}", $range.start(), $range.end()).into(),)?
                <$type as Value>::allowed()
            ),
            set: |settings, text| {
                let Some(value) = <$type as Value>::parse(text) else { return false };
                $( if !$range.contains(&value) { return false; } )?
                settings.$name = value;
                true
            },
            print: |settings| settings.$name.print(),
        }, )+ ];
    };
}

fn initial<T: Value>(default: DefaultText, name: &str) -> T {
    let value = match default.0 {
        Some(text) => T::parse(&text),
        None => T::parse("").or_else(|| T::parse("0")),
    };
    let Some(value) = value else { unreachable!("the default of {name} is a right value") };
    value
}

const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL \
    ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

settings! {
    /// Users with full console access; unused with auth_type any.
    admin_users: Vec<String> = "", Live;
    /// Whether the client's host and port are added to application_name when it connects.
    application_name_add_host: bool = "0", Live;
    /// Database in which auth_query runs; unset is the one that the client asks for.
    auth_dbname: Option<String> = Unset, Live;
    /// File with lines "user" "secret".
    auth_file: Option<PathBuf> = Unset, Live;
    /// File with HBA rules, for auth_type hba.
    auth_hba_file: Option<PathBuf> = "", Live;
    /// File that maps system users to PostgreSQL users, for cert and peer.
    auth_ident_file: Option<PathBuf> = Unset, Live;
    /// Options of auth_type ldap.
    auth_ldap_options: Option<Secret> = Unset, Live;
    /// Query that returns (user, secret) for the user $1.
    auth_query: String = AUTH_QUERY, Live;
    /// How clients prove who they are.
    auth_type: AuthType = "md5", Live;
    /// User that runs auth_query for users that are not in auth_file; unset is off.
    auth_user: Option<String> = Unset, Live;
    /// Time after which an unused database that * made is dropped; 0 is never.
    autodb_idle_timeout: Duration = "3600", Live;
    /// Longest time a cancel request waits for a server connection; 0 is for ever.
    cancel_wait_timeout: Duration = "10", Live;
    /// Idle clients are closed after this; 0 is never.
    client_idle_timeout: Duration = "0", Live;
    /// A client must have logged in by then; 0 is for ever.
    client_login_timeout: Duration = "60", Live;
    /// TLS 1.3 ciphers for clients; unset is the library's default.
    client_tls13_ciphers: Option<String> = Unset, Live;
    /// Certificates of the CAs whose client certificates are accepted.
    client_tls_ca_file: Option<PathBuf> = "", Live;
    /// Certificate that clients are shown.
    client_tls_cert_file: Option<PathBuf> = "", Live;
    /// Ciphers for clients up to TLS 1.2, in OpenSSL's syntax.
    client_tls_ciphers: String = "default", Live;
    /// Diffie-Hellman parameters for clients.
    client_tls_dheparams: DheParameters = "auto", Live;
    /// Elliptic curve for clients; none, auto or its name.
    client_tls_ecdhcurve: String = "auto", Live;
    /// Private key of client_tls_cert_file.
    client_tls_key_file: Option<PathBuf> = "", Live;
    /// TLS versions for clients.
    client_tls_protocols: Vec<TlsProtocol> = "secure", Live;
    /// How much TLS clients are asked for.
    client_tls_sslmode: SslMode = "disable", Live;
    /// The file that RELOAD reads.
    conffile: Option<PathBuf> = Unset, Live;
    /// Server connections of a pool, that is of one user and database; 0 is no limit.
    default_pool_size: u32 = "20", Live;
    /// Whether the simple query protocol is refused.
    disable_pqexec: bool = "0", Fixed;
    /// Time for which a DNS answer is kept.
    dns_max_ttl: Duration = "15", Live;
    /// Time for which a failed DNS lookup is kept.
    dns_nxdomain_ttl: Duration = "15", Live;
    /// Time between looks at the serial numbers of DNS zones; 0 is off.
    dns_zone_check_period: Duration = "0", Live;
    /// Clients that are idle inside a transaction for this long are closed; 0 is never.
    idle_transaction_timeout: Duration = "0", Live;
    /// Startup parameters that are ignored, "options" among them.
    ignore_startup_parameters: Vec<String> = "", Live;
    /// Name of the Windows service; read and kept.
    job_name: String = "pgbouncer", Fixed;
    /// Addresses for clients, or * for all; empty is no TCP.
    listen_addr: Vec<String> = "", Fixed;
    /// Connections that the kernel may hold before they are accepted.
    listen_backlog: u32 = "128", Fixed;
    /// TCP port for clients; 0 is off.
    ///
    /// It is also the suffix of the Unix socket's name.
    listen_port: u16 = "6432", Fixed;
    /// Whether logins are logged.
    log_connections: bool = "1", Live;
    /// Whether disconnections are logged, with their reason.
    log_disconnections: bool = "1", Live;
    /// Whether errors that clients are sent are logged.
    log_pooler_errors: bool = "1", Live;
    /// Whether a line of statistics is logged every stats_period.
    log_stats: bool = "1", Live;
    /// Log file; empty is standard error only.
    logfile: Option<PathBuf> = "", Live;
    /// Notice that clients are sent after their login.
    login_notify_message: Option<String> = "", Live NotShown;
    /// Most client connections, those of the console not counted.
    max_client_conn: u32 = "100", Live;
    /// Most clients of a database; 0 is no limit.
    max_db_client_connections: u32 = "0", Live;
    /// Most server connections of a database; 0 is no limit.
    max_db_connections: u32 = "0", Live;
    /// Longest message that is accepted, in bytes.
    max_packet_size: u32 = "2147483647", Live [1..=i32::MAX as u32];
    /// Prepared statements that each server connection keeps; 0 switches their tracking off.
    max_prepared_statements: u32 = "200", Live;
    /// Most clients of a user; 0 is no limit.
    max_user_client_connections: u32 = "0", Live;
    /// Most server connections of a user; 0 is no limit.
    max_user_connections: u32 = "0", Live;
    /// Server connections of a pool that are kept open.
    min_pool_size: u32 = "0", Live;
    /// Our own number in a group of peers; 0 is none.
    ///
    /// With peers_dns or peers_service, 0 takes a number from the pod's uid: see `Config::peer_id`.
    peer_id: u32 = "0", Live [0..=65535];
    /// File for the process number; empty is none.
    pidfile: Option<PathBuf> = "", Fixed;
    /// Size of a read buffer in bytes.
    pkt_buf: u32 = "4096", Fixed;
    /// When a server connection may go to another client.
    pool_mode: PoolMode = "session", Live;
    /// Time after which an empty pool is freed; 0 is never.
    pool_idle_timeout: Duration = "0", Live NotShown;
    /// Longest time a query may take, waiting included; 0 is for ever.
    query_timeout: Duration = "0", Live;
    /// A client that has waited this long for a server connection is sent a notice; 0 is never.
    query_wait_notify: Duration = "5", Live;
    /// Longest time a query may wait for a server connection; 0 waits for ever.
    ///
    /// When it passes, the client is disconnected with FATAL 08P01 "query_wait_timeout".
    query_wait_timeout: Duration = "120", Live;
    /// Server connections beyond the pool's size, for clients that waited reserve_pool_timeout.
    reserve_pool_size: u32 = "0", Live;
    /// Time that a client waits before the reserve may be used; 0 switches the reserve off.
    reserve_pool_timeout: Duration = "5", Live;
    /// DNS resolver's own configuration file; empty is the system's.
    resolv_conf: Option<PathBuf> = "", Fixed;
    /// Most reads from one socket before the next one's turn; 0 is no limit.
    sbuf_loopcnt: u32 = "5", Live;
    /// Iterations of SCRAM verifiers that are made from plain passwords.
    scram_iterations: u32 = "4096", Live [1..=i32::MAX as u32];
    /// Server connections idle for less than this are reused unchecked; 0 checks always.
    server_check_delay: Duration = "30", Live;
    /// Query that shows whether an idle server connection works; `<empty>` is the empty query.
    server_check_query: CheckQuery = "<empty>", Live;
    /// Longest time for connecting and logging in to a server; 0 is for ever.
    server_connect_timeout: Duration = "15", Live;
    /// Whether servers to be closed are closed in session mode after the current transaction.
    server_fast_close: bool = "0", Live;
    /// Idle server connections are closed after this; 0 is never.
    server_idle_timeout: Duration = "600", Live;
    /// Unused server connections older than this are closed; 0 uses each once.
    server_lifetime: Duration = "3600", Live;
    /// Time from a failed login at a server to the next try.
    server_login_retry: Duration = "15", Live;
    /// Query that a server connection is sent when a client of session mode leaves it.
    server_reset_query: Option<String> = "DISCARD ALL", Live;
    /// Whether server_reset_query is sent in every pool mode.
    server_reset_query_always: bool = "0", Live;
    /// Whether the server connection that has been idle longest is used first.
    server_round_robin: bool = "0", Live;
    /// TLS 1.3 ciphers for servers; unset is the library's default.
    server_tls13_ciphers: Option<String> = Unset, Live;
    /// Certificates of the CAs whose server certificates are accepted.
    server_tls_ca_file: Option<PathBuf> = "", Live;
    /// Certificate that servers are shown.
    server_tls_cert_file: Option<PathBuf> = "", Live;
    /// Ciphers for servers up to TLS 1.2, in OpenSSL's syntax.
    server_tls_ciphers: String = "default", Live;
    /// Private key of server_tls_cert_file.
    server_tls_key_file: Option<PathBuf> = "", Live;
    /// TLS versions for servers.
    server_tls_protocols: Vec<TlsProtocol> = "secure", Live;
    /// How much TLS servers are asked for.
    server_tls_sslmode: SslMode = "prefer", Live;
    /// Other name of job_name; read and kept.
    service_name: Option<String> = Unset, Fixed NotShown;
    /// Whether several processes may listen on the same port.
    so_reuseport: bool = "0", Fixed;
    /// Time between two averages of the statistics, and between their log lines.
    stats_period: Duration = "60", Live;
    /// Users with console access that may only read.
    stats_users: Vec<String> = "", Live;
    /// Longest time that SUSPEND may take to flush.
    suspend_timeout: Duration = "10", Live;
    /// Whether to log to syslog.
    syslog: bool = "0", Live;
    /// Facility in syslog.
    syslog_facility: SyslogFacility = "daemon", Live;
    /// Name in syslog.
    syslog_ident: String = "pgbouncer", Live;
    /// Whether the kernel holds new connections until the client's first bytes.
    tcp_defer_accept: bool = "1", Live;
    /// Whether TCP keepalives are sent.
    tcp_keepalive: bool = "1", Live;
    /// Lost keepalives that end a connection; 0 is the system's default.
    tcp_keepcnt: u32 = "0", Live;
    /// Idle seconds before the first keepalive; 0 is the system's default.
    tcp_keepidle: u32 = "0", Live;
    /// Seconds between keepalives; 0 is the system's default.
    tcp_keepintvl: u32 = "0", Live;
    /// Send and receive buffers of sockets in bytes; 0 is the system's default.
    tcp_socket_buffer: u32 = "0", Live;
    /// Milliseconds that sent data may stay unacknowledged; 0 is the system's default.
    tcp_user_timeout: u32 = "0", Live;
    /// Parameters that follow the client besides the standard ones.
    track_extra_parameters: Vec<String> = "IntervalStyle", Fixed;
    /// Longest time a transaction may last; 0 is for ever.
    transaction_timeout: Duration = "0", Live;
    /// Directory of the Unix socket, @name for an abstract one; empty is none.
    ///
    /// Databases without a host are looked for there too.
    unix_socket_dir: Option<PathBuf> = "/tmp", Fixed;
    /// Group of the Unix socket; empty leaves it.
    unix_socket_group: Option<String> = "", Fixed;
    /// Permissions of the Unix socket, octal with a leading 0.
    unix_socket_mode: u32 = "0777", Fixed [0..=0o7777];
    /// User to become at the start; unset stays.
    user: Option<String> = Unset, Fixed;
    /// How much more is logged.
    verbose: u32 = Unset, Live;

    /// Threads of the data plane; the default is the number of cores that the cgroup grants.
    workers: u32 = cores::granted().min(WORKERS_MAX), Fixed Ours [1..=WORKERS_MAX];
    /// Percent of a core that a worker may use before clients move to more workers; 0 has all workers in use.
    ///
    /// Few clients on many workers cost more than on one. Fewer are in use again when they had half of it to do
    /// for 5 s. 100 has one in use.
    worker_load_max: u32 = "70", Live Ours [0..=100];
    /// Address and port of the Prometheus metrics; empty is off.
    metrics_listen_addr: Option<SocketAddr> = "", Fixed Ours;
    /// Whether `/metrics` has the names of Prometheus' pgbouncer_exporter, too.
    metrics_pgbouncer_names: bool = "0", Live Ours;
    /// Time that SIGTERM leaves running transactions; 0 waits for the clients, as PgBouncer does.
    shutdown_drain_timeout: Duration = "0", Live Ours;
    /// Time from SIGTERM to the end of accepting clients, with readiness gone meanwhile; 0 is none.
    ///
    /// A Service needs a moment to notice that a pod is not ready. Only with shutdown_drain_timeout.
    shutdown_listen_delay: Duration = "0", Live Ours;
    /// What becomes of settings, temporary tables and the like, in transaction and statement mode.
    ///
    /// replay_and_pin carries settings, roles and SQL's PREPARE to the client's next server, and lets the
    /// client keep its server while there is what cannot be carried. pgbouncer leaves all of it where it was
    /// made. error disconnects a client that leaves anything behind.
    session_state: SessionStateMode = "replay_and_pin", Live Ours;
    /// Time for which a client may keep a server and not use it; 0 is for ever.
    pin_timeout: Duration = "0", Live Ours;
    /// Clients of one pool that may keep their servers; 0 is no limit.
    max_pinned_per_pool: u32 = "0", Live Ours;
    /// Bytes of notifications that may wait for one client that listens; beyond it is disconnected.
    max_notification_queue: u32 = "1048576", Live Ours;
    /// Form of the log's lines.
    log_format: LogFormat = "pgbouncer", Live Ours;
    /// Source of the clusters that a host NAME-rw, NAME-ro or NAME-r means; empty is off.
    topology: Option<SourceKind> = "", Fixed Ours;
    /// Kubernetes namespace of clusters that name none; unset is our own.
    namespace: Option<String> = Unset, Fixed Ours;
    /// Our own availability zone, for standbys near by; unset is found by our address.
    zone: Option<String> = Unset, Fixed Ours;
    /// TCP port on which clients get role ro of their database's cluster; 0 is off.
    listen_port_ro: u16 = "0", Fixed Ours;
    /// User of our own connections to each server of a cluster; unset is auth_user.
    monitor_user: Option<String> = Unset, Fixed Ours;
    /// Database of our own connections to each server of a cluster.
    monitor_dbname: String = "postgres", Fixed Ours;
    /// Replay lag from which a standby gets no queries; 0 is no limit.
    max_standby_lag: Duration = "10", Live Ours;
    /// Bytes of WAL not replayed from which a standby gets no queries; 0 is no limit.
    max_standby_lag_bytes: u32 = "0", Live Ours;
    /// Whether clients of role ro get the primary while no standby is fresh enough.
    standby_fallback: bool = "0", Live Ours;
    /// The name that the certificate of a server must have under server_tls_sslmode=verify-full; unset
    /// is the host's, and NAME-rw for the servers of cluster NAME, which are dialled by their addresses.
    server_tls_name: Option<String> = Unset, Live Ours;
    /// Names under which all peers of our group are found, such as that of a headless Service; empty is none.
    ///
    /// Each is a host or host:port, the port by default listen_port; addresses of our own do not count.
    /// A cancel request whose key is not ours is passed on to them, to at most 64 of them, if \[peers\]
    /// does not know its owner.
    peers_dns: Vec<HostPort> = "", Live Ours;
    /// Kubernetes Service in our own namespace whose pods are the peers of our group; unset is none.
    ///
    /// Its EndpointSlices are watched, which needs list and watch of endpointslices. Each pod's number is made
    /// from its uid, so that a cancel request goes to the one pod that it is for.
    peers_service: Option<String> = Unset, Fixed Ours;
}
