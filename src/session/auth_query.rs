//! `auth_query`: the secrets of users that `auth_file` does not have, asked of PostgreSQL itself.
//!
//! The query runs on a server of `auth_dbname`'s pool (else of the client's own database), as
//! `auth_user`. It is asked at each login, so that a new password counts at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::login::{Newcomer, Refusal, fatal, has_servers};
use crate::admin::CONSOLE_DATABASE;
use crate::auth::{Credentials, Proof, Secret, ServerSecret};
use crate::config::{Config, Database};
use crate::error::SqlError;
use crate::pool::Lease;

/// Who asks what, and where.
struct Inquiry {
    asker: String,
    query: String,
    place: Database,
}

impl Inquiry {
    /// What the settings say of a client's database; `None` when nobody may ask about this user.
    fn new(config: &Config, database: &str) -> Result<Option<Inquiry>, SqlError> {
        let entry = (database != CONSOLE_DATABASE).then(|| config.database(database)).flatten();
        let of_entry =
            |choose: fn(&Database) -> &Option<String>| entry.as_ref().and_then(|entry| choose(entry).clone());
        let settings = &config.settings;
        let asker = of_entry(|entry| &entry.auth_user).or_else(|| settings.auth_user.clone());
        let Some(asker) = asker.filter(|asker| !asker.is_empty()) else { return Ok(None) };
        let query = of_entry(|entry| &entry.auth_query).unwrap_or_else(|| settings.auth_query.clone());
        let place = of_entry(|entry| &entry.auth_dbname).or_else(|| settings.auth_dbname.clone());
        let place = match &place {
            Some(name) if name == CONSOLE_DATABASE => return Err(reserved()),
            None if database == CONSOLE_DATABASE => return Err(reserved()),
            Some(name) => config.database(name).ok_or_else(|| {
                tracing::error!("authentication database \"{name}\" is not configured.");
                let detail = format!("auth_dbname is \"{name}\", which is no database of [databases].");
                fatal("bouncer config error").detail(detail)
            })?,
            // A database that nobody knows is told after the password, as to every stranger.
            None => match entry {
                Some(entry) => entry,
                None => return Ok(None),
            },
        };
        // As the one who asks, and not as the user that the entry forces: its pool is the clients'.
        let place = Database { user: None, password: None, ..place.into_owned() };
        has_servers(config, &place)?;
        Ok(Some(Inquiry { asker, query, place }))
    }

    fn log_failure(&self, reason: impl fmt::Display) {
        tracing::error!("auth_query failed in database {} as {}: {reason}", self.place.name, self.asker);
    }
}

/// The console has no users of PostgreSQL's.
fn reserved() -> SqlError {
    tracing::error!("cannot use the reserved \"{CONSOLE_DATABASE}\" database as an auth_dbname");
    fatal("bouncer config error")
        .detail("auth_query cannot run in the console; auth_dbname names a database.")
}

/// What a client is told; the reason is the log's.
fn failed() -> SqlError {
    fatal("bouncer config error").detail("auth_query failed; the log says why.")
}

impl Newcomer {
    /// The user's secret as the server has it; `None` when it knows no such user, or nobody may ask.
    ///
    /// Fails when the query does, or no server can be had for it.
    pub(super) async fn ask_for_credentials(
        &mut self,
        config: &Config,
        database: &str,
        user: &str,
    ) -> Result<Option<Arc<Credentials>>, Refusal> {
        let Some(inquiry) = Inquiry::new(config, database)? else { return Ok(None) };
        let mut lease = self.server_for(config, &inquiry).await?;
        let session = &self.plane.shared.server;
        let row = match lease.clean(session).await {
            Ok(()) => lease.row_for(&inquiry.query, user, session).await,
            Err(error) => Err(error),
        };
        match row {
            Ok(row) => {
                lease.release(Instant::now());
                let found = row.map(secret_of).transpose()?;
                match &found {
                    Some(found) => self.plane.shared.has_seen(found.secret()),
                    None => self.asked_in_vain = true,
                }
                Ok(found)
            }
            Err(error) => {
                // In whatever state it is now.
                lease.close("auth_query failed");
                inquiry.log_failure(error);
                Err(failed().into())
            }
        }
    }

    /// A server on which the one who asks is logged in.
    async fn server_for(&mut self, config: &Config, inquiry: &Inquiry) -> Result<Lease, Refusal> {
        let Inquiry { asker, place, .. } = inquiry;
        let shared = Arc::clone(&self.plane.shared);
        if shared.databases.is_disabled(&place.name) {
            return Err(fatal(format!("authentication database \"{}\" is disabled", place.name)).into());
        }
        let known = shared.credentials(asker);
        let secret =
            known.map_or(Arc::new(ServerSecret::None), |known| known.server_secret(&Proof::default()));
        let paused = shared.lifecycle.paused.load(Ordering::Acquire);
        let pool = shared.databases.pool(config, place, asker, secret, paused);
        if let Some(error) = pool.cached_refusal(Instant::now()) {
            return Err(error.into());
        }
        let refusal = match self.server_of(&pool).await {
            Ok(lease) => return Ok(lease),
            Err(refusal) => refusal,
        };
        // The name may be a stranger's invention.
        if !config.databases.contains_key(&place.name) {
            shared.databases.forget_unused(&place.name);
        }
        // What the server says of the login is passed on, as to any client of the pool.
        if let Refusal::Error(error) = &refusal {
            inquiry.log_failure(&error.message);
        }
        Err(refusal)
    }
}

/// The query's second column. NULL is a user without a password, who can log in only where none is asked.
fn secret_of(row: Vec<Option<String>>) -> Result<Arc<Credentials>, SqlError> {
    let Some(secret) = row.into_iter().nth(1) else {
        tracing::error!("auth_query failed: it must return two columns, user and secret");
        return Err(failed());
    };
    // As in PgBouncer, who has no password is asked for an MD5 one, and none is right.
    let impossible = || format!("md5{:032x}", rand::random::<u128>());
    Ok(Arc::new(Credentials::new(Secret::parse(secret.unwrap_or_else(impossible)))))
}
