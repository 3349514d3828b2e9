//! Whether a client is who it says: the method that `auth_type` or a rule asks for, carried out.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::login::{Newcomer, Refusal, fatal};
use crate::auth::hba::{Asking, Hba, HbaMethod, Rule};
use crate::auth::ldap::LdapOptions;
use crate::auth::{ClientLogin, Credentials, Method, Progress, Proof};
use crate::config::{AuthType, Config};
use crate::error::{SqlError, sqlstate};
use crate::log::Peer;
use crate::net::Socket;
use crate::net::tls::Connector;
use crate::wire::startup::Replication;
use crate::wire::{HEADER_LENGTH, Header};

/// Largest password message: PgBouncer's longest password and room for SCRAM.
const PASSWORD_MESSAGE_MAX: usize = 66_000;

/// What a login has shown: the user's secret, if there is one, and what the client proved of it.
pub(super) type Shown = (Option<Arc<Credentials>>, Proof);

/// What a client must show.
enum Way {
    /// Nothing, and the user need not be known.
    Open,
    /// A password, or nothing if the method is trust.
    Password(Method),
    /// A certificate for a name that is the user's, or mapped to it.
    Certificate(Arc<Hba>, Option<String>),
    /// That its process runs as the user, or as one that is mapped to it.
    Peer(Arc<Hba>, Option<String>),
    /// A password that the system's PAM modules accept.
    Pam,
    /// A password that a directory knows.
    Directory(Arc<LdapOptions>, Option<Arc<Connector>>),
}

impl Newcomer {
    pub(super) async fn authenticate(
        &mut self,
        config: &Config,
        database: &str,
        user: &str,
    ) -> Result<Shown, Refusal> {
        match self.way(config, database, user)? {
            Way::Open => Ok((self.plane.shared.credentials(user), Proof::default())),
            Way::Password(method) => {
                let credentials = self.credentials(config, database, user).await?;
                self.by_password(method, user, credentials).await
            }
            Way::Certificate(hba, map) => {
                self.check_certificate(&hba, map.as_deref(), user)?;
                self.known(config, database, user).await
            }
            Way::Peer(hba, map) => {
                self.check_peer(&hba, map.as_deref(), user)?;
                self.known(config, database, user).await
            }
            Way::Pam => self.by_pam(user).await,
            Way::Directory(options, tls) => self.by_directory(&options, tls, user).await,
        }
    }

    fn way(&self, config: &Config, database: &str, user: &str) -> Result<Way, SqlError> {
        let method = match config.settings.auth_type {
            AuthType::Any => return Ok(Way::Open),
            AuthType::Trust => Method::Trust,
            AuthType::Plain => Method::Plain,
            AuthType::Md5 => Method::Md5,
            AuthType::ScramSha256 => Method::ScramSha256,
            AuthType::Cert => return Ok(Way::Certificate(Arc::default(), None)),
            AuthType::Hba | AuthType::Ldap => {
                let rules = self.plane.shared.rules.load_full();
                let hba = Arc::clone(&rules.hba);
                let rule = self.rule(&hba, database, user)?;
                let map = rule.map.clone();
                match rule.method {
                    HbaMethod::Reject => return Err(fatal("login rejected")),
                    HbaMethod::Trust => Method::Trust,
                    HbaMethod::Password => Method::Plain,
                    HbaMethod::Md5 => Method::Md5,
                    HbaMethod::ScramSha256 => Method::ScramSha256,
                    HbaMethod::Ldap => {
                        let options = rule.ldap.clone().expect("a rule of ldap has its options");
                        return Ok(Way::Directory(options, rules.directory_tls.clone()));
                    }
                    HbaMethod::Pam => return Ok(Way::Pam),
                    HbaMethod::Unsupported => {
                        let message =
                            format!("the method of auth_hba_file line {} is not supported", rule.line);
                        return Err(SqlError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message));
                    }
                    HbaMethod::Cert => return Ok(Way::Certificate(hba, map)),
                    HbaMethod::Peer => return Ok(Way::Peer(hba, map)),
                }
            }
            AuthType::Pam => return Ok(Way::Pam),
        };
        Ok(Way::Password(method))
    }

    /// The user's secret, from `auth_file` or else by `auth_query`; `None` for an unknown user.
    async fn credentials(
        &mut self,
        config: &Config,
        database: &str,
        user: &str,
    ) -> Result<Option<Arc<Credentials>>, Refusal> {
        match self.plane.shared.credentials(user) {
            Some(known) => Ok(Some(known)),
            None => self.ask_for_credentials(config, database, user).await,
        }
    }

    /// Whoever has proven a name must also be one of our users.
    async fn known(&mut self, config: &Config, database: &str, user: &str) -> Result<Shown, Refusal> {
        match self.credentials(config, database, user).await? {
            Some(credentials) => Ok((Some(credentials), Proof::default())),
            None => Err(fatal("no such user").into()),
        }
    }

    /// The rule of `auth_hba_file` for this client.
    fn rule<'a>(&self, hba: &'a Hba, database: &str, user: &str) -> Result<&'a Rule, SqlError> {
        let address = match &self.peer {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix { .. } => None,
        };
        let physical = self.replication == Replication::Physical;
        let encrypted = self.socket.as_ref().is_some_and(Socket::is_encrypted);
        hba.find(&Asking { address, encrypted, database, user, physical }).ok_or_else(|| {
            let detail = format!(
                "No rule of auth_hba_file is for user \"{user}\", {}, {}.",
                match physical {
                    true => "physical replication".to_owned(),
                    false => format!("database \"{database}\""),
                },
                match (address, encrypted) {
                    (None, _) => "a Unix socket".to_owned(),
                    (Some(address), true) => format!("address {address} with TLS"),
                    (Some(address), false) => format!("address {address} without TLS"),
                }
            );
            fatal("no authentication method is found").detail(detail)
        })
    }

    async fn by_password(
        &mut self,
        method: Method,
        user: &str,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Shown, Refusal> {
        let settings = self.plane.shared.scram_settings();
        let (known, channel) = (credentials.clone(), self.channel.take());
        let mut login = ClientLogin::new(method, user, known, channel, &settings, &mut rand::rng());
        let mut out = BytesMut::new();
        let in_vain = self.asked_in_vain;
        // PgBouncer's words; a query that makes up a row for strangers hides who is one.
        let refusals = [sqlstate::INVALID_PASSWORD, sqlstate::INVALID_AUTHORIZATION];
        let refused = |error: SqlError| match in_vain && refusals.contains(&&*error.code) {
            true => SqlError::fatal(sqlstate::INVALID_PASSWORD, "no such user"),
            false => error,
        };
        let mut progress = login.start(&mut out).map_err(refused)?;
        loop {
            if !out.is_empty() {
                self.socket().write_all(&out).await?;
                out.clear();
            }
            match progress {
                Progress::Done(proof) => return Ok((credentials, proof)),
                Progress::Continue => {
                    let body = self.read_password().await?;
                    progress = login.handle_password(&body, &mut out).map_err(refused)?;
                }
            }
        }
    }

    pub(super) async fn read_password(&mut self) -> Result<Vec<u8>, Refusal> {
        let mut header = [0; HEADER_LENGTH];
        self.socket().read_exact(&mut header).await?;
        let header = Header::read(&header).ok().flatten();
        match header {
            Some(Header { tag: b'p', length }) if length <= PASSWORD_MESSAGE_MAX => {
                let mut body = vec![0; length - HEADER_LENGTH];
                self.socket().read_exact(&mut body).await?;
                Ok(body)
            }
            Some(Header { tag: b'X', .. }) => Err(Refusal::Quiet("client close request")),
            _ => Err(fatal("bad packet header").detail("A password message was expected.").into()),
        }
    }

    /// The name in the certificate, which a CA of ours has signed, must be the user's or be mapped to it.
    fn check_certificate(&self, hba: &Hba, map: Option<&str>, user: &str) -> Result<(), SqlError> {
        let Some(Socket::Tls(stream)) = &self.socket else {
            return Err(self.no_certificate("TLS connection required"));
        };
        let tls = self.plane.shared.databases.tls();
        let name = tls.acceptor.as_ref().and_then(|acceptor| acceptor.proven_name(stream.connection()));
        let Some(name) = name else {
            return Err(self.no_certificate("TLS client certificate required"));
        };
        match (hba.maps(map, &name, user), map) {
            (true, _) => Ok(()),
            (false, Some(map)) => {
                Err(self.no_certificate(&format!("ident map: {map} does not have a match")))
            }
            (false, None) => {
                let detail = format!("The certificate is for \"{name}\", the login for \"{user}\".");
                Err(self.no_certificate("TLS certificate name mismatch").detail(detail))
            }
        }
    }

    /// The log says why, and DETAIL.
    fn no_certificate(&self, why: &str) -> SqlError {
        tracing::error!("{} {why}", self.tag());
        fatal("certificate authentication failed").detail(format!("{why}."))
    }

    /// The other process's user must be the client's or be mapped to it.
    fn check_peer(&self, hba: &Hba, map: Option<&str>, user: &str) -> Result<(), SqlError> {
        let Some(socket @ Socket::Unix(_)) = &self.socket else {
            return Err(fatal("unix socket login rejected"));
        };
        let uid = socket.peer_process().map(|peer| nix::unistd::Uid::from_raw(peer.uid()));
        let name = uid.and_then(|uid| nix::unistd::User::from_uid(uid).ok().flatten()).map(|user| user.name);
        match name {
            Some(name) if hba.maps(map, &name, user) => Ok(()),
            name => {
                if let Some(map) = map {
                    tracing::error!("{} ident map {map} cannot be matched", self.tag());
                }
                let name = name.map_or("a user without a name".to_owned(), |name| format!("user \"{name}\""));
                let detail =
                    format!("The process at the other end runs as {name}, the login is for \"{user}\".");
                Err(fatal("unix socket login rejected").detail(detail))
            }
        }
    }
}
