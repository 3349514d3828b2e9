//! Passwords that somebody else checks: a directory, or the system's PAM modules.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::authenticate::Shown;
use super::login::{Newcomer, Refusal};
use crate::auth::ldap::LdapOptions;
use crate::auth::{Credentials, Password, Proof, Secret, ask_for_password, password_of};
use crate::error::{SqlError, sqlstate};
use crate::log::Peer;
use crate::net::ldap;
use crate::net::tls::Connector;

impl Newcomer {
    /// Asks the client for its password and a directory whether it is right. `auth_file` has no say.
    pub(super) async fn by_directory(
        &mut self,
        options: &LdapOptions,
        tls: Option<Arc<Connector>>,
        user: &str,
    ) -> Result<Shown, Refusal> {
        let password = self.plain_password().await?;
        match ldap::bind(options, tls.as_deref(), user, &password).await {
            Ok(()) => Ok(shown(password)),
            Err(error) => {
                tracing::warn!("{error}");
                let message = "LDAP authentication failed";
                Err(match error.is_users_fault() {
                    true => SqlError::fatal(sqlstate::INVALID_PASSWORD, message),
                    false => SqlError::fatal(sqlstate::INVALID_AUTHORIZATION, message)
                        .detail("The directory did not answer the question; the log says why."),
                }
                .into())
            }
        }
    }

    /// Asks the client for its password and PAM whether it is right. `auth_file` has no say.
    pub(super) async fn by_pam(&mut self, user: &str) -> Result<Shown, Refusal> {
        let password = self.plain_password().await?;
        let remote_host = match &self.peer {
            Peer::Tcp(address) => Some(address.ip().to_canonical().to_string()),
            Peer::Unix { .. } => None,
        };
        let shared = Arc::clone(&self.plane.shared);
        match shared.pam()?.check(user, password.clone(), remote_host).await {
            Ok(()) => Ok(shown(password)),
            Err(error) => {
                tracing::warn!("PAM authentication failed for user \"{user}\": {error}");
                Err(SqlError::fatal(sqlstate::INVALID_PASSWORD, "PAM authentication failed").into())
            }
        }
    }

    async fn plain_password(&mut self) -> Result<Password, Refusal> {
        let mut out = BytesMut::new();
        ask_for_password(&mut out);
        self.socket().write_all(&out).await?;
        let body = self.read_password().await?;
        // An empty one would be no password to a directory, but a bind as nobody (RFC 4513, 5.1.2).
        Ok(Password::new(password_of(&body)?))
    }
}

/// What was sent is what the servers are given.
fn shown(password: Password) -> Shown {
    (Some(Arc::new(Credentials::new(Secret::Plain(password)))), Proof::default())
}
