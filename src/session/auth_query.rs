//! `auth_query`: the secrets of users that `auth_file` does not have, asked of PostgreSQL itself.
//!
//! The query runs on a server of `auth_dbname`'s pool (else of the client's own database), as
//! `auth_user`. It is asked at each login, so that a new password counts at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::login::{Newcomer, Refusal, fatal, has_servers};
use crate::admin::CONSOLE_DATABASE;
use crate::auth::{Credentials, Proof, Secret, ServerSecret};
use crate::config::{Config, Database};

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
        let entry = (database != CONSOLE_DATABASE).then(|| config.database(database)).flatten();
        let of_entry =
            |choose: fn(&Database) -> &Option<String>| entry.as_ref().and_then(|entry| choose(entry).clone());
        let settings = &config.settings;
        let asker = of_entry(|entry| &entry.auth_user).or_else(|| settings.auth_user.clone());
        let Some(asker) = asker.filter(|asker| !asker.is_empty() && asker != user) else { return Ok(None) };
        let query = of_entry(|entry| &entry.auth_query).unwrap_or_else(|| settings.auth_query.clone());
        let place = of_entry(|entry| &entry.auth_dbname).or_else(|| settings.auth_dbname.clone());
        let place = match &place {
            Some(name) => config.database(name).ok_or_else(|| {
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
        let shared = Arc::clone(&self.plane.shared);
        let known = shared.credentials(&asker);
        let secret =
            known.map_or(Arc::new(ServerSecret::None), |known| known.server_secret(&Proof::default()));
        let paused = shared.lifecycle.paused.load(Ordering::Acquire);
        let pool = shared.databases.pool(config, &place, &asker, secret, paused);
        let failed = || fatal("bouncer config error").detail("auth_query failed; the log says why.");
        if let Some(error) = pool.cached_refusal(Instant::now()) {
            tracing::error!("auth_query failed in database {} as {asker}: {}", place.name, error.message);
            return Err(failed().into());
        }
        let mut lease = match self.server_of(&pool).await {
            Ok(lease) => lease,
            Err(refusal) => {
                // The name may be a stranger's invention.
                if !config.databases.contains_key(&place.name) {
                    shared.databases.forget_unused(&place.name);
                }
                return Err(match refusal {
                    Refusal::Error(error) => {
                        tracing::error!(
                            "auth_query failed in database {} as {asker}: {}",
                            place.name,
                            error.message
                        );
                        failed().into()
                    }
                    other => other,
                });
            }
        };
        match lease.row_for(&query, user, &shared.server).await {
            Ok(row) => {
                lease.release(Instant::now());
                match row.map(secret_of) {
                    None => Ok(None),
                    Some(Some(credentials)) => Ok(Some(credentials)),
                    Some(None) => {
                        tracing::error!("auth_query failed: it must return two columns, user and secret");
                        Err(failed().into())
                    }
                }
            }
            Err(error) => {
                // In whatever state it is now.
                lease.close("auth_query failed");
                tracing::error!("auth_query failed in database {} as {asker}: {error}", place.name);
                Err(failed().into())
            }
        }
    }
}

/// The query's second column. NULL is a user without a password, who can log in only where none is asked.
fn secret_of(row: Vec<Option<String>>) -> Option<Arc<Credentials>> {
    let secret = row.into_iter().nth(1)?;
    Some(Arc::new(Credentials::new(Secret::parse(secret.unwrap_or_default()))))
}
