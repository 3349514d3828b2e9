//! A directory is asked whether a password is a user's: [`bind`]. Messages are those of `ldap3_proto`, the
//! sockets and TLS our own, so that a directory's bytes are held to the same limits as everybody's.
//!
//! Which certificates are believed is libldap's setting, as with PgBouncer: see [`trust`].

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapDerefAliases, LdapExtendedRequest, LdapMsg, LdapOp, LdapResult,
    LdapResultCode, LdapSearchRequest, LdapSearchScope,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::{Decoder, Encoder};

use super::Socket;
use super::endpoint::{TcpOptions, connect_by_name};
use super::tls::{Connector, TlsError};
use crate::auth::Password;
use crate::auth::ldap::{LdapEntry, LdapOptions, LdapScope, LdapSearch, LdapTransport, escaped_for_name};

/// What begins TLS (RFC 4511, 4.14.1).
const START_TLS: &str = "1.3.6.1.4.1.1466.20037";

/// Longest time for a connection, TLS included: then the next server is tried.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Longest time for all that is asked on one connection.
const ASK_TIME_MAX: Duration = Duration::from_secs(30);

/// Why a user was not let in by a directory. The texts are PostgreSQL's, for the log.
#[derive(Debug, Error)]
pub enum LdapError {
    /// No server could be reached, or none spoke LDAP to the end.
    #[error("could not reach LDAP server \"{server}\": {error}")]
    Unreachable {
        /// The last that was tried.
        server: String,
        /// Why not.
        error: io::Error,
    },
    /// The one who searches is refused, or the search is.
    #[error("could not {what} on server \"{server}\": {result}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Where.
        server: String,
        /// The server's word.
        result: String,
    },
    /// Nobody of this name, or several.
    #[error("LDAP user \"{user}\" {found}")]
    NotOne {
        /// Who was looked for.
        user: String,
        /// `does not exist` or `is not unique`.
        found: &'static str,
    },
    /// The name has characters that PostgreSQL does not allow in one.
    #[error("invalid character in user name for LDAP authentication")]
    InvalidName,
    /// The password is not the entry's.
    #[error("LDAP login failed for user \"{name}\" on server \"{server}\": {result}")]
    WrongPassword {
        /// The entry.
        name: String,
        /// Where.
        server: String,
        /// The server's word.
        result: String,
    },
}

impl LdapError {
    /// Whether it was the user's fault, and not the directory's or the settings'.
    pub fn is_users_fault(&self) -> bool {
        match self {
            LdapError::NotOne { .. } | LdapError::InvalidName | LdapError::WrongPassword { .. } => true,
            LdapError::Unreachable { .. } | LdapError::Refused { .. } => false,
        }
    }
}

/// Asks whether the password is the user's. The servers are tried one after the other until one can be
/// reached. `tls` is how their certificates are checked; there must be one where the options want TLS.
///
/// Takes at most 5 s for each server that cannot be reached, and 30 s with the one that can.
pub async fn bind(
    options: &LdapOptions,
    tls: Option<&Connector>,
    user: &str,
    password: &Password,
) -> Result<(), LdapError> {
    if !options.entry.allows(user) {
        return Err(LdapError::InvalidName);
    }
    let mut unreachable = io::Error::other("there is no server");
    let mut last = "";
    for server in &options.servers {
        last = server;
        match tokio::time::timeout(CONNECT_TIME_MAX, Directory::reach(server, options, tls)).await {
            Ok(Ok(directory)) => return directory.ask_in_time(options, user, password).await,
            Ok(Err(error)) => unreachable = error,
            Err(_) => unreachable = io::ErrorKind::TimedOut.into(),
        }
        tracing::warn!("LDAP server \"{server}\": {unreachable}");
    }
    Err(unreachable_at(last)(unreachable))
}

fn unreachable_at(server: &str) -> impl Fn(io::Error) -> LdapError {
    |error| LdapError::Unreachable { server: server.to_owned(), error }
}

/// A connection to one server.
struct Directory<'a> {
    server: &'a str,
    socket: Socket,
    received: BytesMut,
    codec: LdapCodec,
    last_message: i32,
}

impl<'a> Directory<'a> {
    async fn reach(server: &'a str, options: &LdapOptions, tls: Option<&Connector>) -> io::Result<Self> {
        let defaults = TcpOptions::default();
        let tcp = connect_by_name(server, options.port, defaults).await?;
        defaults.apply(&tcp)?;
        let connector = || tls.ok_or_else(|| io::Error::other("there is no CA to check its certificate by"));
        let socket = match options.transport {
            LdapTransport::Plain | LdapTransport::StartTls => Socket::Tcp(tcp),
            LdapTransport::Tls => Socket::Tls(Box::new(connector()?.connect(tcp, server).await?)),
        };
        let (codec, received) = (LdapCodec::default(), BytesMut::new());
        let mut directory = Directory { server, socket, received, codec, last_message: 0 };
        if options.transport == LdapTransport::StartTls {
            directory = directory.start_tls(connector()?).await?;
        }
        Ok(directory)
    }

    async fn start_tls(mut self, connector: &Connector) -> io::Result<Self> {
        let request = LdapExtendedRequest { name: START_TLS.to_owned(), value: None };
        let result = match self.ask(LdapOp::ExtendedRequest(request)).await? {
            LdapOp::ExtendedResponse(response) => response.res,
            other => return Err(unexpected(&other)),
        };
        if result.code != LdapResultCode::Success {
            return Err(io::Error::other(format!("could not start LDAP TLS session: {}", shown(&result))));
        }
        // Bytes that someone put behind the answer would be taken for what comes encrypted.
        let Socket::Tcp(tcp) = self.socket else { unreachable!("reach() made it one") };
        if !self.received.is_empty() {
            return Err(io::Error::other("received unencrypted data after the answer to StartTLS"));
        }
        self.socket = Socket::Tls(Box::new(connector.connect(tcp, self.server).await?));
        Ok(self)
    }

    async fn ask_in_time(
        mut self,
        options: &LdapOptions,
        user: &str,
        password: &Password,
    ) -> Result<(), LdapError> {
        let server = self.server;
        let asking = self.ask_about(options, user, password);
        let outcome = tokio::time::timeout(ASK_TIME_MAX, asking).await;
        outcome.unwrap_or_else(|_| Err(unreachable_at(server)(io::ErrorKind::TimedOut.into())))
    }

    async fn ask_about(
        &mut self,
        options: &LdapOptions,
        user: &str,
        password: &Password,
    ) -> Result<(), LdapError> {
        let name = match &options.entry {
            LdapEntry::Named { prefix, suffix } => format!("{prefix}{}{suffix}", escaped_for_name(user)),
            LdapEntry::Sought(search) => self.find(search, user).await?,
        };
        let result = self.bind_as(&name, password).await.map_err(unreachable_at(self.server))?;
        // Nobody waits for the answer to a goodbye: it has none.
        let _ = self.send(LdapOp::UnbindRequest).await;
        match result.code {
            LdapResultCode::Success => Ok(()),
            _ => {
                let (server, result) = (self.server.to_owned(), shown(&result));
                Err(LdapError::WrongPassword { name, server, result })
            }
        }
    }

    /// The name of the user's entry.
    async fn find(&mut self, search: &LdapSearch, user: &str) -> Result<String, LdapError> {
        let server = self.server;
        let refused = |what, result: &LdapResult| LdapError::Refused {
            what,
            server: server.to_owned(),
            result: shown(result),
        };
        let result = self.bind_as(&search.bind_name, &search.bind_password).await;
        let result = result.map_err(unreachable_at(server))?;
        if result.code != LdapResultCode::Success {
            return Err(refused("perform initial LDAP bind for ldapbinddn", &result));
        }
        let (mut names, result) = self.search(search, user).await.map_err(unreachable_at(server))?;
        let found = match (names.pop(), names.is_empty(), &result.code) {
            (Some(name), true, LdapResultCode::Success) => return Ok(name),
            (Some(_), false, LdapResultCode::Success | LdapResultCode::SizeLimitExceeded) => "is not unique",
            (None, _, LdapResultCode::Success) => "does not exist",
            _ => return Err(refused("search LDAP", &result)),
        };
        Err(LdapError::NotOne { user: user.to_owned(), found })
    }

    /// The entries that there are, two at the most, and what the server says at their end.
    async fn search(&mut self, search: &LdapSearch, user: &str) -> io::Result<(Vec<String>, LdapResult)> {
        let request = LdapSearchRequest {
            base: search.base.clone(),
            scope: match search.scope {
                LdapScope::Base => LdapSearchScope::Base,
                LdapScope::One => LdapSearchScope::OneLevel,
                LdapScope::Subtree => LdapSearchScope::Subtree,
            },
            aliases: LdapDerefAliases::Never,
            sizelimit: 2,
            timelimit: i32::try_from(ASK_TIME_MAX.as_secs()).expect("it is half a minute"),
            typesonly: true,
            filter: search.filter.for_user(user),
            // No attributes (RFC 4511, 4.5.1.8): the name is all that we want.
            attrs: vec!["1.1".to_owned()],
        };
        let mut names = Vec::new();
        let mut answer = self.ask(LdapOp::SearchRequest(request)).await?;
        loop {
            match answer {
                LdapOp::SearchResultEntry(entry) if names.len() < 2 => names.push(entry.dn),
                LdapOp::SearchResultEntry(_) | LdapOp::SearchResultReference(_) => {}
                LdapOp::SearchResultDone(result) => return Ok((names, result)),
                other => return Err(unexpected(&other)),
            }
            answer = self.receive().await?;
        }
    }

    async fn bind_as(&mut self, name: &str, password: &Password) -> io::Result<LdapResult> {
        let password = str::from_utf8(password.as_bytes())
            .map_err(|_| io::Error::other("a password that is not UTF-8 cannot be sent"))?;
        let cred = LdapBindCred::Simple(password.to_owned());
        let request = LdapBindRequest { version: 3, dn: name.to_owned(), cred };
        match self.ask(LdapOp::BindRequest(request)).await? {
            LdapOp::BindResponse(response) => Ok(response.res),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&mut self, op: LdapOp) -> io::Result<LdapOp> {
        self.send(op).await?;
        self.receive().await
    }

    async fn send(&mut self, op: LdapOp) -> io::Result<()> {
        self.last_message += 1;
        let mut bytes = BytesMut::new();
        self.codec.encode(LdapMsg::new(self.last_message, op), &mut bytes)?;
        self.socket.write_all(&bytes).await?;
        self.socket.flush().await
    }

    /// The next answer to what was asked last. The codec limits a message to 32 kB.
    async fn receive(&mut self) -> io::Result<LdapOp> {
        loop {
            match self.codec.decode(&mut self.received)? {
                Some(message) if message.msgid == self.last_message => return Ok(message.op),
                // The server speaks of itself, usually that it goes (RFC 4511, 4.4).
                Some(message) => return Err(unexpected(&message.op)),
                None if self.socket.read_buf(&mut self.received).await? == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                None => {}
            }
        }
    }
}

/// What is in it may be anything.
fn unexpected(_: &LdapOp) -> io::Error {
    io::Error::other("an LDAP message came that nobody asked for")
}

fn shown(result: &LdapResult) -> String {
    match result.message.is_empty() {
        true => format!("{:?}", result.code),
        false => format!("{:?}: {}", result.code, result.message),
    }
}

/// How the certificates of directories are checked: by the file that `TLS_CACERT` names in libldap's settings
/// (`LDAPTLS_CACERT` in the environment, else the file that `LDAPCONF` names, else `/etc/ldap/ldap.conf`),
/// else by the system's; not at all where `TLS_REQCERT` (`LDAPTLS_REQCERT`) is never or allow.
///
/// Fails when that file is no good.
pub fn trust() -> Result<Arc<Connector>, TlsError> {
    let file = env::var_os("LDAPCONF").map_or_else(|| PathBuf::from("/etc/ldap/ldap.conf"), PathBuf::from);
    // Like libldap: a file that is not there says nothing.
    let text = fs::read_to_string(file).unwrap_or_default();
    let setting = |name: &str| env::var(format!("LDAP{name}")).ok().or_else(|| setting_of(&text, name));
    let is_checked = !setting("TLS_REQCERT")
        .is_some_and(|value| ["never", "allow"].iter().any(|milder| value.eq_ignore_ascii_case(milder)));
    let authorities = setting("TLS_CACERT").map(PathBuf::from);
    let authorities = authorities.unwrap_or_else(|| PathBuf::from("/etc/ssl/certs/ca-certificates.crt"));
    Connector::for_directories(is_checked.then_some(Path::new(&authorities)))
}

/// The last value of this name in an ldap.conf(5).
fn setting_of(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    let values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    values.map(|(_, value)| value.trim().to_owned()).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_libldap_are_read() {
        let text = "# TLS_CACERT /a\nBASE dc=x\nTLS_CACERT\t/first\n tls_cacert  /second \nTLS_REQCERT\n";
        assert_eq!(setting_of(text, "TLS_CACERT").as_deref(), Some("/second"));
        assert_eq!(setting_of(text, "TLS_REQCERT"), None);
    }
}
