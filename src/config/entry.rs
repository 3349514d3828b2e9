//! What `[databases]`, `[clusters]`, `[users]` and `[peers]` hold: [`Database`], [`Cluster`], [`User`] and
//! [`Peer`], each with a table of its keys. A key that is not given is `None`, and the global setting counts.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use super::Config;
use super::error::Problem;
use super::settings::{RESERVED_DATABASE, bad_value};
use super::value::{Host, LoadBalanceHosts, PoolMode, Role, Secret, SourceKind, Value};

/// One key of an entry.
struct Key<T> {
    name: &'static str,
    meaning: &'static str,
    list: bool,
    allowed: fn() -> Cow<'static, str>,
    set: fn(&mut T, &str) -> bool,
}

/// `field: type = default as key [what range it has];` in a table of keys.
macro_rules! entry {
    ($(#[doc = $entry_doc:literal])+ $entry:ident { $(#[doc = $name_doc:literal])+ $name:ident: $name_type:ty; $(
        $(#[doc = $doc:literal])+ $field:ident: $type:ty $(= $default:expr)? $(=> $key:literal)?;
    )+ }) => {
        $(#[doc = $entry_doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $entry {
            $(#[doc = $name_doc])+
            pub $name: $name_type,
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl $entry {
            /// The entry with nothing given.
            pub fn new($name: $name_type) -> Self {
                $entry { $name, $( $field: first!($($default,)? <$type>::default()), )+ }
            }

            /// What its line may say.
            #[cfg(test)]
            pub(super) fn key_names() -> Vec<&'static str> {
                Self::KEYS.iter().map(|key| key.name).collect()
            }

            const KEYS: &[Key<$entry>] = &[ $( Key {
                name: first!($($key,)? stringify!($field)),
                meaning: first!($($doc),+),
                list: <$type as Value>::LIST,
                allowed: <$type as Value>::allowed,
                set: |entry, text| match <$type as Value>::parse(text) {
                    Some(value) => { entry.$field = value; true }
                    None => false,
                },
            }, )+ ];
        }
    };
}

entry! {
    /// One line of `[databases]`: where a database's servers are, and what differs there from the
    /// global settings.
    Database {
        /// The name that clients ask for.
        name: String;
        /// Name of the database on the server; unset is the name that clients ask for.
        dbname: Option<String>;
        /// Where its servers are; empty is unix_socket_dir.
        hosts: Vec<Host> => "host";
        /// Port of its servers.
        port: u16 = 5432;
        /// Name of the cluster in \[clusters\] that its servers belong to; unset is host.
        cluster: Option<String>;
        /// What its clients want of the cluster; unset is rw.
        role: Option<Role>;
        /// User at the server for all clients; unset is the client's own.
        user: Option<String>;
        /// Password of user.
        password: Option<Secret>;
        /// Overrides auth_user.
        auth_user: Option<String>;
        /// Overrides auth_query.
        auth_query: Option<String>;
        /// Overrides auth_dbname.
        auth_dbname: Option<String>;
        /// Overrides default_pool_size; 0 is no limit.
        pool_size: Option<u32>;
        /// Overrides min_pool_size.
        min_pool_size: Option<u32>;
        /// Overrides reserve_pool_size.
        reserve_pool_size: Option<u32>;
        /// Overrides pool_mode.
        pool_mode: Option<PoolMode>;
        /// Query that a new server connection runs once.
        connect_query: Option<String>;
        /// How a server is chosen from the list of hosts.
        load_balance_hosts: Option<LoadBalanceHosts>;
        /// Overrides max_db_connections; 0 is no limit.
        max_db_connections: Option<u32>;
        /// Overrides max_db_client_connections; 0 is no limit.
        max_db_client_connections: Option<u32>;
        /// Overrides server_lifetime; 0 uses each server connection once.
        server_lifetime: Option<Duration>;
        /// Overrides query_wait_timeout; 0 waits for ever.
        query_wait_timeout: Option<Duration>;
        /// Sent to the server at its start.
        client_encoding: Option<String>;
        /// Sent to the server at its start.
        datestyle: Option<String>;
        /// Sent to the server at its start.
        timezone: Option<String>;
        /// Sent to the server at its start.
        application_name: Option<String>;
    }
}

entry! {
    /// One line of `[clusters]`: a primary and its standbys, and who says which server is which.
    Cluster {
        /// The name that \[databases\] uses.
        name: String;
        /// Who says which server is the primary; every cluster has it.
        source: Option<SourceKind>;
        /// Kubernetes namespace; unset is our own.
        namespace: Option<String>;
        /// Name of the Cluster object or Patroni's scope; unset is the cluster's own name.
        object: Option<String> => "name";
        /// Its servers, for the sources static (the first is the primary) and probe.
        hosts: Vec<Host>;
        /// Port of its servers.
        port: u16 = 5432;
        /// Label selector of the servers' pods, for the source label; for patroni it replaces the usual one.
        selector: Option<String>;
        /// Label and value of the primary's pod, for the sources label and patroni.
        primary_label: Option<String>;
    }
}

entry! {
    /// One line of `[users]`: what differs for a user; it goes before the database's word.
    User {
        /// The user's name.
        name: String;
        /// Overrides pool_mode.
        pool_mode: Option<PoolMode>;
        /// Overrides default_pool_size; 0 is no limit.
        pool_size: Option<u32>;
        /// Overrides reserve_pool_size.
        reserve_pool_size: Option<u32>;
        /// Overrides max_user_connections; 0 is no limit.
        max_user_connections: Option<u32>;
        /// Overrides max_user_client_connections; 0 is no limit.
        max_user_client_connections: Option<u32>;
        /// Overrides query_timeout; 0 is for ever.
        query_timeout: Option<Duration>;
        /// Overrides query_wait_timeout; 0 waits for ever.
        query_wait_timeout: Option<Duration>;
        /// Overrides idle_transaction_timeout; 0 is never.
        idle_transaction_timeout: Option<Duration>;
        /// Overrides transaction_timeout; 0 is for ever.
        transaction_timeout: Option<Duration>;
        /// Overrides client_idle_timeout; 0 is never.
        client_idle_timeout: Option<Duration>;
    }
}

entry! {
    /// One line of `[peers]`: another pooler of the group, to which cancel requests are passed on.
    Peer {
        /// Its peer_id, 1 to 65535.
        id: u32;
        /// Where it is reached; every peer has it.
        host: Host = Host::Unix(PathBuf::new());
        /// Its port.
        port: u16 = 6432;
        /// Most connections to it; unset is default_pool_size.
        pool_size: Option<u32>;
    }
}

impl Database {
    /// The database's name on the server.
    pub fn server_dbname(&self) -> &str {
        self.dbname.as_deref().unwrap_or(&self.name)
    }

    /// The database that is made for `name` when this is the one called `*`.
    pub(super) fn for_name(&self, name: &str) -> Database {
        Database { name: name.to_owned(), ..self.clone() }
    }
}

impl Cluster {
    /// The name of its object in Kubernetes.
    pub fn object_name(&self) -> &str {
        self.object.as_deref().unwrap_or(&self.name)
    }

    fn check(&self) -> Result<(), Problem> {
        let missing = match self.source {
            None => "source",
            Some(SourceKind::Static | SourceKind::Probe) if self.hosts.is_empty() => "hosts",
            Some(SourceKind::Label) if self.selector.is_none() => "selector",
            Some(SourceKind::Label) if self.primary_label.is_none() => "primary_label",
            Some(_) => return Ok(()),
        };
        Err(Problem::NotAllowed(format!("cluster \"{}\" has no {missing}", self.name)))
    }
}

/// The sections of a settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// `[pgbouncer]`, in TOML also `[pgweir]`.
    Settings,
    /// `[databases]`
    Databases,
    /// `[clusters]`
    Clusters,
    /// `[users]`
    Users,
    /// `[peers]`
    Peers,
}

/// An entry on its way into the [`Config`].
pub(super) enum Entry {
    Database(Box<Database>),
    Cluster(Box<Cluster>),
    User(User),
    Peer(Peer),
}

impl Entry {
    /// An empty entry of a section other than that of the settings.
    pub(super) fn new(section: Section, name: &str) -> Result<Entry, Problem> {
        if name.contains('\0') {
            return Err(Problem::NotAllowed("a name with a zero byte".into()));
        }
        match section {
            Section::Databases if name == RESERVED_DATABASE => {
                Err(Problem::NotAllowed(format!("database name \"{name}\" is reserved")))
            }
            Section::Clusters => Ok(Entry::Cluster(Box::new(Cluster::new(name.to_owned())))),
            Section::Users => Ok(Entry::User(User::new(name.to_owned()))),
            Section::Peers => match u32::parse(name) {
                Some(id @ 1..=65535) => Ok(Entry::Peer(Peer::new(id))),
                _ => Err(bad_value("peer", name, "1 to 65535".into(), "its peer_id")),
            },
            Section::Databases | Section::Settings => {
                Ok(Entry::Database(Box::new(Database::new(name.to_owned()))))
            }
        }
    }

    /// Sets one key.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match self {
            Entry::Database(database) => {
                let key = if key == "reserve_pool" { "reserve_pool_size" } else { key };
                let of = format!("database \"{}\"", database.name);
                set_key(Database::KEYS, database.as_mut(), key, value, &of)
            }
            Entry::Cluster(cluster) => {
                let of = format!("cluster \"{}\"", cluster.name);
                set_key(Cluster::KEYS, cluster.as_mut(), key, value, &of)
            }
            Entry::User(user) => {
                let of = format!("user \"{}\"", user.name);
                set_key(User::KEYS, user, key, value, &of)
            }
            Entry::Peer(peer) => {
                let of = format!("peer {}", peer.id);
                set_key(Peer::KEYS, peer, key, value, &of)
            }
        }
    }

    /// Whether the key's value is a list.
    pub(super) fn is_list(&self, key: &str) -> bool {
        let is_list = |name: &str, list| name == key && list;
        match self {
            Entry::Database(_) => Database::KEYS.iter().any(|known| is_list(known.name, known.list)),
            Entry::Cluster(_) => Cluster::KEYS.iter().any(|known| is_list(known.name, known.list)),
            Entry::User(_) | Entry::Peer(_) => false,
        }
    }

    /// Puts the entry where it belongs; a later one of the same name replaces it.
    pub(super) fn insert(self, config: &mut Config) -> Result<(), Problem> {
        match self {
            Entry::Database(database) if database.name == "*" => {
                config.any_database = Some(*database);
            }
            Entry::Database(database) => {
                config.databases.insert(database.name.clone(), *database);
            }
            Entry::Cluster(cluster) => {
                cluster.check()?;
                config.clusters.insert(cluster.name.clone(), *cluster);
            }
            Entry::User(user) => {
                config.users.insert(user.name.clone(), user);
            }
            Entry::Peer(peer) if peer.host == Peer::new(peer.id).host => {
                return Err(Problem::NotAllowed(format!("peer {} has no host", peer.id)));
            }
            Entry::Peer(peer) => {
                config.peers.insert(peer.id, peer);
            }
        }
        Ok(())
    }
}

fn set_key<T>(
    keys: &'static [Key<T>],
    entry: &mut T,
    name: &str,
    value: &str,
    of: &str,
) -> Result<(), Problem> {
    let Some(key) = keys.iter().find(|key| key.name == name) else {
        let setting = format!("{name} of {of}");
        return Err(Problem::unknown(setting, name, keys.iter().map(|key| key.name)));
    };
    if value.contains('\0') || !(key.set)(entry, value) {
        return Err(bad_value(&format!("{name} of {of}"), value, (key.allowed)(), key.meaning));
    }
    Ok(())
}
