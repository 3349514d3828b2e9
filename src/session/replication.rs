//! Replication connections: each has a server of its own, which was opened for it with its startup parameters
//! and ends with it. What is said on it is passed on as in session mode.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::login::{Newcomer, Refusal, fatal, has_servers};
use super::options::ignored;
use crate::auth::ServerSecret;
use crate::config::{Config, Database, PoolPolicy};
use crate::error::{SqlError, sqlstate};
use crate::pool::{Lease, Pool};
use crate::server::login::{OpenError, Welcome};
use crate::wire::startup::{Replication, Startup};

/// What a client's startup parameter `replication` asks for.
pub(super) fn asked_for(startup: &Startup) -> Result<Replication, SqlError> {
    let Some(value) = startup.get("replication") else { return Ok(Replication::None) };
    Replication::parse(value).ok_or_else(|| {
        let message = format!("invalid value for parameter \"replication\": \"{value}\"");
        SqlError::fatal(sqlstate::INVALID_PARAMETER_VALUE, message)
            .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
    })
}

/// The startup parameters that the client's server gets: all that would have followed the client, and `options`
/// as they stand, since no SET can be sent to it; a subscription of PostgreSQL needs its own. Those that are
/// ignored are left out.
pub(super) fn parameters(startup: &Startup, config: &Config) -> Vec<(String, String)> {
    let is_own = |name: &str| matches!(name, "user" | "database" | "replication");
    let is_kept = |name: &str| name == "options" || !is_own(name) && !ignored(config, name);
    let kept = startup.parameters.iter().filter(|(name, _)| is_kept(name));
    kept.cloned().collect()
}

/// A stream has no end, so no limit of a query's or transaction's time is one of it.
pub(super) fn without_time_limits(policy: PoolPolicy) -> PoolPolicy {
    PoolPolicy { query_timeout: None, transaction_timeout: None, idle_transaction_timeout: None, ..policy }
}

impl Newcomer {
    /// A server for this client alone. A server that cannot be reached is tried again for as long as a query
    /// would wait for it.
    ///
    /// Fails with PgBouncer's "login failed" when the server refuses.
    pub(super) async fn own_server(
        &mut self,
        config: &Config,
        database: &Database,
        user: &str,
        secret: Arc<ServerSecret>,
        parameters: &[(String, String)],
    ) -> Result<(Arc<Pool>, Lease, Welcome), Refusal> {
        has_servers(config, database)?;
        let shared = &self.plane.shared;
        let paused = shared.lifecycle.paused.load(Ordering::Acquire);
        let pool = shared.databases.pool(config, database, user, secret, paused);
        self.waits_for_server = true;
        let wait = config.pool_policy(database, user).query_wait_timeout;
        let opening = self.open_for_itself(&pool, parameters);
        let (lease, welcome) = match wait {
            None => opening.await?,
            Some(limit) => match tokio::time::timeout(limit, opening).await {
                Ok(opened) => opened?,
                Err(_) => return Err(super::time::query_wait_timeout(shared, &pool, user, limit).into()),
            },
        };
        self.waits_for_server = false;
        Ok((pool, lease, welcome))
    }

    async fn open_for_itself(
        &self,
        pool: &Arc<Pool>,
        parameters: &[(String, String)],
    ) -> Result<(Lease, Welcome), SqlError> {
        loop {
            let berth = pool.berth(self.plane.worker).await?;
            match berth.open(self.replication, parameters).await {
                Ok(opened) => return Ok(opened),
                Err(OpenError::Refused(error)) if error.code != sqlstate::CANNOT_CONNECT_NOW => {
                    return Err(login_failed(&format!("The server said {}: {}", error.code, error.message)));
                }
                Err(OpenError::Auth(error)) => return Err(login_failed(&error.to_string())),
                Err(_) => tokio::time::sleep(pool.retry_after()).await,
            }
        }
    }
}

fn login_failed(detail: &str) -> SqlError {
    fatal("login failed").detail(detail.to_owned())
}
