//! [`PoolPolicy`]: which of several settings counts for one user at one database. The user's goes
//! before the database's, and that before the global one.

use std::time::Duration;

use super::value::PoolMode;
use super::{Config, Database, User};

/// The rules of one pool and its clients. `None` is off: no limit of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPolicy {
    /// When a server connection may go to another client.
    pub pool_mode: PoolMode,
    /// Most server connections; 0 is no limit.
    pub pool_size: u32,
    /// Server connections that are kept open.
    pub min_pool_size: u32,
    /// Server connections beyond `pool_size` for clients that have waited too long.
    pub reserve_pool_size: u32,
    /// Unused server connections older than this are closed; zero uses each once.
    pub server_lifetime: Duration,
    /// Longest time a query may take.
    pub query_timeout: Option<Duration>,
    /// Longest time a query may wait for a server connection.
    pub query_wait_timeout: Option<Duration>,
    /// Longest idle time inside a transaction.
    pub idle_transaction_timeout: Option<Duration>,
    /// Longest time a transaction may last.
    pub transaction_timeout: Option<Duration>,
    /// Longest idle time of a client.
    pub client_idle_timeout: Option<Duration>,
    /// Most server connections of the database; 0 is no limit.
    pub max_db_connections: u32,
    /// Most clients of the database; 0 is no limit.
    pub max_db_client_connections: u32,
    /// Most server connections of the user at the server; 0 is no limit.
    pub max_user_connections: u32,
    /// Most clients of the user who logged in; 0 is no limit.
    pub max_user_client_connections: u32,
}

impl Config {
    /// The rules for the user who logged in as `user` at this database.
    ///
    /// What concerns servers follows the user at the server, which a database may force; what
    /// concerns clients follows the one who logged in.
    pub fn pool_policy(&self, database: &Database, user: &str) -> PoolPolicy {
        let global = &self.settings;
        let client = self.users.get(user);
        let server = self.users.get(database.user.as_deref().unwrap_or(user));
        PoolPolicy {
            pool_mode: choose(server, |u| u.pool_mode, database.pool_mode, global.pool_mode),
            pool_size: choose(server, |u| u.pool_size, database.pool_size, global.default_pool_size),
            min_pool_size: database.min_pool_size.unwrap_or(global.min_pool_size),
            reserve_pool_size: choose(
                server,
                |u| u.reserve_pool_size,
                database.reserve_pool_size,
                global.reserve_pool_size,
            ),
            server_lifetime: database.server_lifetime.unwrap_or(global.server_lifetime),
            query_timeout: limit(server, |u| u.query_timeout, None, global.query_timeout),
            query_wait_timeout: limit(
                client,
                |u| u.query_wait_timeout,
                database.query_wait_timeout,
                global.query_wait_timeout,
            ),
            idle_transaction_timeout: limit(
                server,
                |u| u.idle_transaction_timeout,
                None,
                global.idle_transaction_timeout,
            ),
            transaction_timeout: limit(server, |u| u.transaction_timeout, None, global.transaction_timeout),
            client_idle_timeout: limit(client, |u| u.client_idle_timeout, None, global.client_idle_timeout),
            max_db_connections: database.max_db_connections.unwrap_or(global.max_db_connections),
            max_db_client_connections: database
                .max_db_client_connections
                .unwrap_or(global.max_db_client_connections),
            max_user_connections: choose(
                server,
                |u| u.max_user_connections,
                None,
                global.max_user_connections,
            ),
            max_user_client_connections: choose(
                client,
                |u| u.max_user_client_connections,
                None,
                global.max_user_client_connections,
            ),
        }
    }
}

fn choose<T>(
    user: Option<&User>,
    of_user: impl Fn(&User) -> Option<T>,
    of_database: Option<T>,
    global: T,
) -> T {
    user.and_then(of_user).or(of_database).unwrap_or(global)
}

fn limit(
    user: Option<&User>,
    of_user: impl Fn(&User) -> Option<Duration>,
    of_database: Option<Duration>,
    global: Duration,
) -> Option<Duration> {
    let time = choose(user, of_user, of_database, global);
    (!time.is_zero()).then_some(time)
}
