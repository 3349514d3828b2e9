//! The settings: [`Config`], parsed once into values that cannot be wrong.
//!
//! `pgbouncer.ini` and `pgweir.toml` give the same `Config`. The global settings are one table in
//! `settings.rs`; what databases, users and peers have of their own is in `entry.rs`. Files are
//! read here, nothing else is touched: no socket, no clock.

/// The first of several expressions: how the tables say "this one if given, else that".
macro_rules! first {
    ($first:expr $(, $rest:expr)*) => {
        $first
    };
}

mod cores;
mod entry;
mod error;
mod ini;
mod loader;
mod policy;
mod settings;
#[cfg(test)]
mod tests;
mod toml;
mod value;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use loader::Loader;
use settings::{Change, Origin, SETTINGS};
use value::Value;

pub use entry::{Cluster, Database, Peer, User};
pub use error::{ConfigError, Problem};
pub use policy::PoolPolicy;
pub use settings::{RESERVED_DATABASE, Settings};
pub use value::{
    AuthType, CheckQuery, DheParameters, Host, HostPort, LoadBalanceHosts, LogFormat, PoolMode, Role, Secret,
    SessionStateMode, SourceKind, SslMode, SyslogFacility, TlsProtocol,
};

/// How the environment is asked for a variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// All that is configured. Its `Debug` shows no password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The global settings.
    pub settings: Settings,
    /// `[databases]` by name, without `*`.
    pub databases: BTreeMap<String, Database>,
    /// The database `*`, from which one is made for every other name.
    pub any_database: Option<Database>,
    /// `[clusters]` by name, and those that a database's host means.
    pub clusters: BTreeMap<String, Cluster>,
    /// `[users]` by name.
    pub users: BTreeMap<String, User>,
    /// `[peers]` by their peer_id.
    pub peers: BTreeMap<u32, Peer>,
    /// What tells us from our peers: the environment's `PGWEIR_POD_UID`, else `POD_UID`, else `HOSTNAME`;
    /// empty without them.
    pub pod_uid: String,
    /// Whether CloudNativePG's instance manager has started us for a Pooler, which it says in the
    /// environment (`POOLER_NAME`).
    pub serves_pooler: bool,
    /// `auth_file`: the secret of each user as its file has it: plain, `md5...` or
    /// `SCRAM-SHA-256$...`.
    pub auth_users: BTreeMap<String, String>,
    /// What is wrong with `auth_file`, for the log. As in PgBouncer, it does not stop the load: the
    /// users before the broken line count, and those of an unreadable file stay as they were.
    pub warnings: Vec<ConfigError>,
}

/// One row of `SHOW CONFIG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRow {
    /// The setting's name.
    pub key: &'static str,
    /// Its value; `None` (NULL) when it has no default and is not set.
    pub value: Option<String>,
    /// Its default; `None` (NULL) when it has none.
    pub default: Option<Cow<'static, str>>,
    /// Whether RELOAD and SET can change it.
    pub changeable: bool,
}

impl Role {
    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::parse(name)
    }
}

impl Config {
    /// Reads the file, those it includes, and its `auth_file`. A name that ends in `.toml` is read
    /// as TOML, any other as PgBouncer's ini.
    ///
    /// Fails at the first thing that is wrong.
    pub fn load(path: &Path, environment: Environment<'_>) -> Result<Config, ConfigError> {
        read(Loader::new(), path, &ini::read_file(path)?, environment)
    }

    /// As [`Config::load`], with the file's text given; `path` tells the format and names it in errors.
    pub fn from_text(path: &Path, text: &str, environment: Environment<'_>) -> Result<Config, ConfigError> {
        read(Loader::new(), path, text, environment)
    }

    /// What is configured after RELOAD: the file of the setting `conffile` is read again.
    ///
    /// Settings that a running process cannot change keep their value, and so does what was SET
    /// for a setting without a default. When it fails, nothing has changed.
    pub fn reload(&self, environment: Environment<'_>) -> Result<Config, ConfigError> {
        let Some(path) = &self.settings.conffile else {
            return Err(Problem::NotAllowed("no file to read: conffile is not set".into()).without_file());
        };
        read(Loader::again(self), path, &ini::read_file(path)?, environment)
    }

    /// The console's `SET key = value`. What a running process cannot change is silently ignored.
    ///
    /// Fails when there is no such setting, or the value is wrong for it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let set = settings::find(key).and_then(|setting| match setting.change {
            Change::Live => setting.set(&mut self.settings, value, key),
            Change::Fixed => Ok(()),
        });
        set.map_err(Problem::without_file)
    }

    /// `SHOW CONFIG`: PgBouncer's settings in its order, then ours.
    pub fn show(&self) -> Vec<ConfigRow> {
        let shown = SETTINGS.iter().filter(|setting| setting.origin != Origin::NotShown);
        let row = |setting: &settings::Setting| ConfigRow {
            key: setting.name,
            value: setting.print(&self.settings),
            default: (setting.default)(),
            changeable: setting.change == Change::Live,
        };
        shown.map(row).collect()
    }

    /// The database of this name: its own entry, else one made from `*`. The console's is none.
    ///
    /// `x@ro` is the database `x`, for clients that want another role of its cluster.
    pub fn database(&self, name: &str) -> Option<Cow<'_, Database>> {
        let Some((base, role)) = self.base_and_role(name) else { return self.entry(name) };
        let database = self.entry(base)?;
        let dbname = Some(database.server_dbname().to_owned());
        Some(Cow::Owned(Database {
            name: name.to_owned(),
            role: Some(role),
            dbname,
            ..database.into_owned()
        }))
    }

    /// Whether `auth_file` or `[users]` has this user.
    pub fn names_user(&self, name: &str) -> bool {
        self.auth_users.contains_key(name) || self.users.contains_key(name)
    }

    /// Whether the database of this name is one that `*` makes.
    pub fn is_automatic(&self, name: &str) -> bool {
        !self.databases.contains_key(self.base_name(name))
    }

    /// The name without the role in it: what rules and DISABLE are for, whatever role a client wants.
    pub fn base_name<'a>(&self, name: &'a str) -> &'a str {
        self.base_and_role(name).map_or(name, |(base, _)| base)
    }

    /// `x` and the role, of `x@ro`, if `x` belongs to a cluster and nothing is named `x@ro`.
    fn base_and_role<'a>(&self, name: &'a str) -> Option<(&'a str, Role)> {
        let (base, suffix) = name.rsplit_once('@').filter(|_| !self.databases.contains_key(name))?;
        let role = Role::from_name(suffix)?;
        self.entry(base)?.cluster.is_some().then_some((base, role))
    }

    /// The entry of this very name, else one made from `*`.
    fn entry(&self, name: &str) -> Option<Cow<'_, Database>> {
        if let Some(database) = self.databases.get(name) {
            return Some(Cow::Borrowed(database));
        }
        let any = self.any_database.as_ref().filter(|_| name != RESERVED_DATABASE)?;
        Some(Cow::Owned(any.for_name(name)))
    }

    /// Our own number among our peers, which is in each cancel key that we give; `None` without peers.
    ///
    /// It is `peer_id`, else with `peers_dns` or `peers_service` a hash of [`Config::pod_uid`]. Two pods of
    /// one number do no harm there: both are asked about its keys.
    pub fn peer_id(&self) -> Option<u16> {
        match u16::try_from(self.settings.peer_id) {
            Ok(0) if !self.finds_peers() => None,
            Ok(0) => Some(peer_id_of_pod(&self.pod_uid)),
            id => id.ok(),
        }
    }

    /// Whether our peers are found by name, and find us in the same way, at our TCP port.
    pub fn finds_peers(&self) -> bool {
        !self.settings.peers_dns.is_empty() || self.settings.peers_service.is_some()
    }

    /// The cluster that a database's servers belong to, and what its clients want of it.
    pub fn cluster(&self, database: &Database) -> Option<(&Cluster, Role)> {
        let cluster = self.clusters.get(database.cluster.as_deref()?)?;
        Some((cluster, database.role.unwrap_or_default()))
    }

    /// Where the database's servers are: its hosts, else `unix_socket_dir`; empty without either.
    pub fn hosts(&self, database: &Database) -> Vec<Host> {
        match database.hosts.is_empty() {
            true => self.settings.default_host().into_iter().collect(),
            false => database.hosts.clone(),
        }
    }

    /// Reads `auth_file`.
    fn read_auth_users(&mut self) {
        let Some(path) = &self.settings.auth_file else {
            self.auth_users.clear();
            return;
        };
        match ini::read_file(path) {
            Err(error) => self.warnings.push(error),
            Ok(text) => {
                let (users, warning) = ini::read_users(path, &text);
                self.auth_users = users;
                self.warnings.extend(warning);
            }
        }
    }

    /// Once `topology` is set, a host NAME-rw, NAME-ro or NAME-r means the cluster NAME.
    fn find_clusters(&mut self) {
        let Some(source) = self.settings.topology else { return };
        for database in self.databases.values_mut().chain(&mut self.any_database) {
            let [Host::Tcp(host)] = database.hosts.as_slice() else { continue };
            let Some((name, namespace, role)) = meant_by_host(host).filter(|_| database.cluster.is_none())
            else {
                continue;
            };
            let new = || Cluster {
                source: Some(source),
                namespace: namespace.map(str::to_owned),
                port: database.port,
                ..Cluster::new(name.to_owned())
            };
            self.clusters.entry(name.to_owned()).or_insert_with(new);
            database.cluster = Some(name.to_owned());
            database.role.get_or_insert(role);
        }
    }

    /// What no single setting can be blamed for.
    fn check(&self) -> Result<(), Problem> {
        let settings = &self.settings;
        if settings.auth_type == AuthType::Cert && settings.client_tls_sslmode != SslMode::VerifyFull {
            return Err(Problem::NotAllowed(
                "auth_type is cert: client_tls_sslmode must be verify-full then".into(),
            ));
        }
        for database in self.databases.values().chain(&self.any_database) {
            if let Some(name) = database.cluster.as_ref().filter(|name| !self.clusters.contains_key(*name)) {
                let known: Vec<_> = self.clusters.keys().map(String::as_str).collect();
                return Err(Problem::NotAllowed(format!(
                    "database \"{}\": there is no cluster \"{name}\" in [clusters], which has: {}",
                    database.name,
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                )));
            }
        }
        Ok(())
    }
}

/// The number, 1 to 65535, that the pod of this uid has among its peers: FNV-1a, which any process
/// of any version computes alike.
pub fn peer_id_of_pod(uid: &str) -> u16 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // 65535 numbers, none of them 0.
    u16::try_from(hash % 65_535 + 1).expect("the remainder is below 65535")
}

/// `pg-rw.db.svc` is the service of CloudNativePG's cluster `pg` in the namespace `db`.
fn meant_by_host(host: &str) -> Option<(&str, Option<&str>, Role)> {
    let mut labels = host.split('.');
    let service = labels.next()?;
    let roles = [("-rw", Role::ReadWrite), ("-ro", Role::ReadOnly), ("-r", Role::Read)];
    let (suffix, role) = roles.into_iter().find(|(suffix, _)| service.ends_with(suffix))?;
    Some((service.strip_suffix(suffix)?, labels.next(), role))
}

fn read(
    mut loader: Loader,
    path: &Path,
    text: &str,
    environment: Environment<'_>,
) -> Result<Config, ConfigError> {
    match path.extension().is_some_and(|extension| extension == "toml") {
        true => toml::read(&mut loader, path, text)?,
        false => ini::read(&mut loader, path, text)?,
    }
    let mut config = loader.finish(path, environment)?;
    let known = ["PGWEIR_POD_UID", "POD_UID", "HOSTNAME"].into_iter().filter_map(environment);
    config.pod_uid = known.into_iter().find(|uid| !uid.is_empty()).unwrap_or_default();
    config.serves_pooler = environment("POOLER_NAME").is_some_and(|name| !name.is_empty());
    config.find_clusters();
    config.check().map_err(|problem| problem.in_file(path))?;
    config.settings.conffile.get_or_insert_with(|| path.to_owned());
    config.read_auth_users();
    Ok(config)
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("settings", &self.settings)
            .field("databases", &self.databases)
            .field("any_database", &self.any_database)
            .field("clusters", &self.clusters)
            .field("users", &self.users)
            .field("peers", &self.peers)
            .field("pod_uid", &self.pod_uid)
            .field("serves_pooler", &self.serves_pooler)
            .field("auth_users", &self.auth_users.keys())
            .field("warnings", &self.warnings)
            .finish()
    }
}
