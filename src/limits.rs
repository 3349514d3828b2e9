//! What the operating system lets this process have: file descriptors, one for each connection.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Listeners, logs, event queues, and what libraries open.
const BESIDE_CONNECTIONS: u64 = 64;

/// Raises the limit of open files as far as we may, and says in the log whether that is enough for all
/// clients and servers that are configured. It is not an error: the limit may never be reached.
pub fn allow_connections(config: &Config) {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, maximum: found.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => found.maximum,
        Err(_) => found.current,
    };
    let clients = config.settings.max_client_conn;
    let expected = descriptors(config);
    let shown = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    tracing::info!(
        "kernel file descriptor limit: {shown}; max_client_conn: {clients}, max expected fd use: {expected}"
    );
    if limit.is_some_and(|limit| limit < expected) {
        tracing::warn!(
            "max_client_conn={clients} and the pools may need {expected} file descriptors, the limit is {shown}: \
             clients beyond it wait until others leave; raise it (ulimit -n, LimitNOFILE) or lower max_client_conn"
        );
    }
}

/// Descriptors when every client and every pool is there. Automatic databases and users without a number
/// are counted once each: how many there will be is not known.
fn descriptors(config: &Config) -> u64 {
    let settings = &config.settings;
    let databases = config.databases.values().chain(&config.any_database);
    let users = 1 + config.users.len() as u64;
    let servers = databases.map(|database| {
        let size = database.pool_size.unwrap_or(settings.default_pool_size);
        let reserve = database.reserve_pool_size.unwrap_or(settings.reserve_pool_size);
        let users = if database.user.is_some() { 1 } else { users };
        users * (u64::from(size) + u64::from(reserve))
    });
    u64::from(settings.max_client_conn) + servers.sum::<u64>() + BESIDE_CONNECTIONS
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn each_client_and_each_server_of_each_pool_has_a_descriptor() {
        let count =
            |text: &str| descriptors(&Config::from_text(Path::new("a.ini"), text, &|_| None).unwrap());
        assert_eq!(count("[pgbouncer]\nmax_client_conn = 100\n"), 164);
        assert_eq!(count("[databases]\na =\n[pgbouncer]\nmax_client_conn = 100\n"), 184);
        assert_eq!(count("[databases]\n* = pool_size=5 reserve_pool_size=2\n[pgbouncer]\n"), 171);
        let users = "[databases]\na = user=b\nc =\n[users]\nd =\n[pgbouncer]\ndefault_pool_size = 10\n";
        assert_eq!(count(users), 100 + 10 + 20 + 64);
    }
}
