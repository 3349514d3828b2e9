//! A client's [`Admission`] under the limits of how many clients there may be.

use std::sync::Arc;

use super::login::{Newcomer, fatal};
use crate::admin::Rights;
use crate::config::{Config, Database};
use crate::error::SqlError;
use crate::pool::quota::{Permit, Quota};

const EXCEEDED_BY_DATABASE: &str = "client connections exceeded (max_db_client_connections)";
const EXCEEDED_BY_USER: &str = "client connections exceeded (max_user_client_connections)";

/// A client's place among the connection limits, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    _permits: [Permit; 3],
}

impl Newcomer {
    /// Before the password.
    pub(super) fn admit(&self, config: &Config) -> Result<Permit, SqlError> {
        let limit = config.settings.max_client_conn;
        permit(&self.plane.shared.clients, limit, "no more connections allowed (max_client_conn)")
    }

    /// After the password, so that strangers leave no trace.
    pub(super) fn admit_user(
        &self,
        config: &Config,
        database: &Database,
        user: &str,
        place: Permit,
    ) -> Result<Admission, SqlError> {
        let databases = &self.plane.shared.databases;
        let policy = config.pool_policy(database, user);
        let of_database = databases.with_database(&database.name, |entry| {
            permit(&entry.clients, policy.max_db_client_connections, EXCEEDED_BY_DATABASE)
        })?;
        let of_user =
            permit(&databases.user(user).clients, policy.max_user_client_connections, EXCEEDED_BY_USER)?;
        Ok(Admission { _permits: [place, of_database, of_user] })
    }

    /// Clients of the console count in the limits of databases and users; an administrator is let in
    /// beyond them.
    pub(super) fn admit_to_console(
        &self,
        config: &Config,
        user: &str,
        rights: Rights,
    ) -> Result<[Permit; 2], SqlError> {
        let own = config.users.get(user).and_then(|user| user.max_user_client_connections);
        let of_user = own.unwrap_or(config.settings.max_user_client_connections);
        let [of_database, of_user] = match rights {
            Rights::Admin => [0, 0],
            Rights::Stats => [config.settings.max_db_client_connections, of_user],
        };
        let shared = &self.plane.shared;
        Ok([
            permit(&shared.console_clients, of_database, EXCEEDED_BY_DATABASE)?,
            permit(&shared.databases.user(user).clients, of_user, EXCEEDED_BY_USER)?,
        ])
    }
}

/// One more connection under a limit; the message names the setting in parentheses.
fn permit(quota: &Arc<Quota>, limit: u32, message: &'static str) -> Result<Permit, SqlError> {
    quota.set_limit(limit);
    quota.take().ok_or_else(|| {
        let setting = message.split(['(', ')']).nth(1).unwrap_or(message);
        fatal(message)
            .detail(format!("{} of {limit} client connections are in use.", quota.used()))
            .hint(format!("Raise {setting}, or close connections."))
    })
}
