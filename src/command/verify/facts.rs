//! What is judged: [`Facts`], plain values of one moment. All times are how long ago something was, or how long it
//! will last.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::topology::kube::inspect::{Inspection, Instance, Seen};
use crate::topology::signals::Signals;

/// One look at a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the API says.
    pub api: Inspection,
    /// What each instance says of itself by SQL.
    pub servers: Seen<Vec<Server>>,
    /// What each pooler says.
    pub poolers: Seen<Vec<Pooler>>,
    /// What one pooler may open at the primary.
    pub pools: Seen<Pools>,
    /// How many poolers there may be.
    pub replicas: Seen<u32>,
    /// The certificates in secrets, and those that servers have shown.
    pub certificates: Seen<Vec<Certificate>>,
    /// How old a base backup may be.
    pub backup_age_max: Duration,
}

/// An instance, asked by SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// What it said.
    pub said: Seen<Said>,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What the pooler's monitor asks too.
    pub signals: Signals,
    /// What it does not.
    pub more: More,
    /// Files of WAL that wait for the archive; only the primary is asked, and not without `pg_monitor`.
    pub unarchived: Option<Unarchived>,
    /// How long the certificate that it has shown is still good, in seconds; `None` without TLS.
    pub certificate_left_s: Option<i64>,
}

/// The answer to [`QUESTION`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct More {
    /// Its system identifier.
    pub system_id: String,
    /// `max_slot_wal_keep_size` in MB; -1 is no limit, `None` before PostgreSQL 13.
    pub slot_wal_max_mb: Option<i64>,
    /// `archive_timeout` in seconds; 0 is off.
    pub archive_timeout_s: u32,
    /// Databases, at most 1000, without `postgres` and templates.
    pub databases: Vec<String>,
    /// Roles that may log in, at most 1000, without those that are superusers or replicate.
    pub roles: Vec<String>,
}

/// The answer to [`UNARCHIVED_QUESTION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Unarchived {
    /// How many there are.
    pub count: u64,
    /// How long the first of them has waited, in seconds.
    pub oldest_s: Option<u64>,
}

/// One row with one JSON text; PUBLIC may ask for all of it.
pub const QUESTION: &str = "SELECT json_build_object( \
    'system_id', (SELECT system_identifier::text FROM pg_control_system()), \
    'slot_wal_max_mb', (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
    'archive_timeout_s', (SELECT setting::int FROM pg_settings WHERE name = 'archive_timeout'), \
    'databases', (SELECT coalesce(json_agg(datname), '[]') FROM (SELECT datname FROM pg_database \
        WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' ORDER BY datname LIMIT 1000) AS d), \
    'roles', (SELECT coalesce(json_agg(rolname), '[]') FROM (SELECT rolname FROM pg_roles \
        WHERE rolcanlogin AND NOT rolsuper AND NOT rolreplication ORDER BY rolname LIMIT 1000) AS r))";

/// Needs `pg_monitor`.
pub const UNARCHIVED_QUESTION: &str = "SELECT json_build_object('count', count(*), \
    'oldest_s', max(greatest(extract(epoch FROM clock_timestamp() - modification), 0))::bigint) \
    FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

/// Whether that may be asked.
pub const MAY_ASK_UNARCHIVED: &str = "SELECT has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE')";

/// A pooler, asked on its console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// Where it is.
    pub address: String,
    /// What it said.
    pub said: Seen<PoolerSaid>,
}

/// What a pooler says of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolerSaid {
    /// `state` of SHOW CLUSTERS, and `why` there.
    pub state: String,
    /// Name and `says` of each member, of SHOW MEMBERS.
    pub members: Vec<(String, String)>,
    /// Its connections to the primary, of SHOW SERVERS.
    pub at_primary: u32,
}

/// What the pools of one pooler may open at the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// How many pools that is.
    pub count: usize,
    /// Their connections together, and the monitor's.
    pub connections: u32,
    /// The first pool without a limit: database and user.
    pub unlimited: Option<(String, String)>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Secret and key, or the server that has shown it.
    pub name: String,
    /// How long it is still good, in seconds.
    pub left_s: Seen<i64>,
}

impl Facts {
    /// The instance that the operator names as the primary, and what it said by SQL.
    pub fn primary(&self) -> Seen<(&str, &Said)> {
        let name = self.api.primary.as_deref().ok_or("no primary is named")?;
        let servers = self.servers.as_ref().map_err(Clone::clone)?;
        let server = servers.iter().find(|server| server.name == name);
        let server = server.ok_or_else(|| format!("the primary {name} has no pod with an address"))?;
        match &server.said {
            Ok(said) => Ok((name, said)),
            Err(reason) => Err(format!("the primary {name} was not asked: {reason}")),
        }
    }

    /// How many instances there shall be; where nobody says so, those that there are.
    pub fn instances_wanted(&self) -> usize {
        match self.api.instances_wanted {
            Ok(wanted) => wanted as usize,
            Err(_) => self.api.instances.len(),
        }
    }
}

/// Names of these instances, for people.
pub(super) fn names<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> String {
    list(instances.into_iter().map(|instance| instance.name.as_str()))
}

/// With commas.
pub(super) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}

/// A time in the unit that says it best.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
