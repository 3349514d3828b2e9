//! Whether a client is who it says: the method that `auth_type` or a rule asks for, carried out.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::login::{Newcomer, Refusal, fatal};
use crate::auth::hba::{Asking, Hba, HbaMethod, Rule};
use crate::auth::{ClientLogin, Credentials, Method, Progress, Proof};
use crate::config::{AuthType, Config, Settings};
use crate::error::{SqlError, sqlstate};
use crate::log::Peer;
use crate::net::Socket;
use crate::wire::{HEADER_LENGTH, Header};

/// Largest password message: PgBouncer's longest password and room for SCRAM.
const PASSWORD_MESSAGE_MAX: usize = 66_000;

/// What a login has shown: the user's secret, if there is one, and what the client proved of it.
pub(super) type Shown = (Option<Arc<Credentials>>, Proof);

/// Reads `auth_hba_file` and `auth_ident_file`. The second value has a warning for each line that is no
/// good: nobody is let in by it.
///
/// Fails when a file cannot be read.
pub fn read_rules(settings: &Settings) -> io::Result<(Hba, Vec<String>)> {
    if settings.auth_type != AuthType::Hba {
        return Ok((Hba::default(), Vec::new()));
    }
    let read = |path: Option<&Path>| {
        let Some(path) = path else { return Ok(String::new()) };
        fs::read_to_string(path).map_err(|error| {
            let text = format!("could not open hba config file {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    };
    let rules = read(settings.auth_hba_file.as_deref())?;
    let maps = read(settings.auth_ident_file.as_deref())?;
    let folder = settings.auth_hba_file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let read_list = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    Ok(Hba::parse(&rules, &maps, &read_list))
}

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
            AuthType::Hba => {
                let hba = self.plane.shared.hba.load_full();
                let rule = self.rule(&hba, database, user)?;
                let map = rule.map.clone();
                match rule.method {
                    HbaMethod::Reject => return Err(fatal("login rejected")),
                    HbaMethod::Trust => Method::Trust,
                    HbaMethod::Password => Method::Plain,
                    HbaMethod::Md5 => Method::Md5,
                    HbaMethod::ScramSha256 => Method::ScramSha256,
                    HbaMethod::Unsupported => {
                        let message =
                            format!("the method of auth_hba_file line {} is not supported", rule.line);
                        return Err(SqlError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message));
                    }
                    HbaMethod::Cert => return Ok(Way::Certificate(hba, map)),
                    HbaMethod::Peer => return Ok(Way::Peer(hba, map)),
                }
            }
            AuthType::Ldap | AuthType::Pam => {
                let message =
                    format!("auth_type {} is not supported yet", config.settings.auth_type.as_str());
                return Err(SqlError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message));
            }
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
        let encrypted = self.socket.as_ref().is_some_and(Socket::is_encrypted);
        hba.find(&Asking { address, encrypted, database, user }).ok_or_else(|| {
            let detail = format!(
                "No rule of auth_hba_file is for user \"{user}\", database \"{database}\", {}.",
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
        let mut progress = login.start(&mut out)?;
        loop {
            if !out.is_empty() {
                self.socket().write_all(&out).await?;
                out.clear();
            }
            match progress {
                Progress::Done(proof) => return Ok((credentials, proof)),
                Progress::Continue => {
                    let body = self.read_password().await?;
                    progress = login.handle_password(&body, &mut out)?;
                }
            }
        }
    }

    async fn read_password(&mut self) -> Result<Vec<u8>, Refusal> {
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
            return Err(fatal("TLS connection required"));
        };
        let tls = self.plane.shared.databases.tls();
        let name = tls.acceptor.as_ref().and_then(|acceptor| acceptor.proven_name(stream.connection()));
        let Some(name) = name else {
            return Err(fatal("TLS client certificate required"));
        };
        match hba.maps(map, &name, user) {
            true => Ok(()),
            false => {
                let detail = format!("The certificate is for \"{name}\", the login for \"{user}\".");
                Err(fatal("TLS certificate name mismatch").detail(detail))
            }
        }
    }

    /// The other process's user must be the client's or be mapped to it.
    fn check_peer(&self, hba: &Hba, map: Option<&str>, user: &str) -> Result<(), SqlError> {
        let Some(Socket::Unix(stream)) = &self.socket else {
            return Err(fatal("unix socket login rejected"));
        };
        let uid = stream.peer_cred().ok().map(|peer| nix::unistd::Uid::from_raw(peer.uid()));
        let name = uid.and_then(|uid| nix::unistd::User::from_uid(uid).ok().flatten()).map(|user| user.name);
        match name {
            Some(name) if hba.maps(map, &name, user) => Ok(()),
            name => {
                let name = name.map_or("a user without a name".to_owned(), |name| format!("user \"{name}\""));
                let detail =
                    format!("The process at the other end runs as {name}, the login is for \"{user}\".");
                Err(fatal("unix socket login rejected").detail(detail))
            }
        }
    }
}
