//! A client logs in to us: [`ClientLogin`]. It asks, it checks, and it says what the login proved.
//! AuthenticationOk is not its business: that waits for the pool's first server connection.

use std::mem;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pgwire::messages::startup::Authentication;
use rand::{CryptoRng, Rng};
use subtle::ConstantTimeEq;

use super::Progress;
use super::md5;
use super::scram::{
    self, Binding, ChannelBinding, MECHANISM, MECHANISM_PLUS, ScramError, ScramKey, ServerExchange,
};
use super::secret::{Credentials, Likeness, Md5Digest, Password, ScramSecret, ScramSettings, Secret};
use crate::error::{SqlError, sqlstate};
use crate::wire::originate;

/// Longest password that a client may send. Bytes; PgBouncer's limit.
const PASSWORD_BYTES_MAX: usize = 65_530;

/// How a client proves who it is: `auth_type` or the method of an HBA rule. (`any` and `cert` need
/// no [`ClientLogin`].)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing is asked, but the user must be known.
    Trust,
    /// The password in plain. Checking it against a SCRAM secret costs milliseconds each time.
    Plain,
    /// md5; SCRAM for a user whose secret is a SCRAM secret.
    Md5,
    /// SCRAM-SHA-256; nobody with an md5 secret gets in.
    ScramSha256,
}

/// What a client's login proved, for use toward the server
/// (see [`Credentials::server_secret`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// After SCRAM against a stored SCRAM secret: the key that its proof revealed.
    pub client_key: Option<ScramKey>,
    /// After the plain method: the password.
    pub plain: Option<Password>,
}

/// One client's login, after the startup message and before AuthenticationOk.
///
/// An unknown user, one without a password, and one whose secret does not fit the method go through
/// the same steps as any other, and fail at the end.
#[derive(Debug)]
pub struct ClientLogin {
    state: State,
}

#[derive(Debug)]
enum State {
    Trust {
        known: bool,
    },
    Plain {
        user: String,
        credentials: Option<Arc<Credentials>>,
        /// What a stranger's password is held against.
        mock: Option<ScramSecret>,
    },
    Md5 {
        digest: Md5Digest,
        salt: [u8; 4],
    },
    ScramFirst {
        secret: ScramSecret,
        key: KeyUse,
        server_nonce: String,
        channel: Option<ChannelBinding>,
    },
    ScramFinal {
        exchange: ServerExchange,
        key: KeyUse,
    },
    /// Succeeded or failed: nothing more is expected.
    Over,
}

/// What the client's key, revealed by its proof, is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyUse {
    /// Made with the stored salt, which the server should have, too.
    TowardServer,
    /// Made with a salt of ours.
    Nothing,
}

impl ClientLogin {
    /// `credentials` is `None` for an unknown user; with a `channel`, SCRAM can be bound to it. The first
    /// SCRAM login of a user with a plain secret costs milliseconds.
    pub fn new(
        method: Method,
        user: &str,
        credentials: Option<Arc<Credentials>>,
        channel: Option<ChannelBinding>,
        settings: &ScramSettings,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let secret =
            credentials.as_deref().map(Credentials::secret).filter(|secret| !is_missing(method, secret));
        let state = match (method, secret) {
            (Method::Trust, _) => State::Trust { known: secret.is_some() },
            (Method::Plain, _) => {
                let looks_like_scram = secret.is_none() && settings.strangers != Likeness::Password;
                let mock = looks_like_scram.then(|| mock(user, settings));
                State::Plain { user: user.to_owned(), credentials, mock }
            }
            _ if is_scram(method, secret, settings) => State::ScramFirst {
                key: key_use(secret),
                secret: verifier(user, credentials.as_deref(), settings),
                server_nonce: scram::new_nonce(rng),
                channel,
            },
            (Method::Md5 | Method::ScramSha256, _) => {
                State::Md5 { digest: md5_digest(user, secret, settings), salt: rng.random() }
            }
        };
        ClientLogin { state }
    }

    /// What the client sends in a `p` message: a password, or one of the two SCRAM messages.
    ///
    /// FATAL 28P01 when it is wrong, 08P01 when it cannot be read; either ends the login.
    pub fn handle_password(&mut self, body: &[u8], out: &mut BytesMut) -> Result<Progress<Proof>, SqlError> {
        match mem::replace(&mut self.state, State::Over) {
            State::Plain { user, credentials, mock } => {
                let password = Password::new(password_of(body)?);
                let secret = credentials.as_deref().map(Credentials::secret);
                // Nothing matches the mock, but that takes as long as with a known user's secret.
                accept(match &mock {
                    Some(mock) => mock.matches(&password),
                    None => plain_matches(&user, secret, &password),
                })?;
                Ok(Progress::Done(Proof { plain: Some(password), client_key: None }))
            }
            State::Md5 { digest, salt } => {
                let expected = md5::response(&digest.0, salt);
                accept(password_of(body)?.ct_eq(&expected).into())?;
                Ok(Progress::Done(Proof::default()))
            }
            State::ScramFirst { secret, key, server_nonce, channel } => {
                let (binding, first) = initial_response(body, channel)?;
                let (exchange, reply) =
                    ServerExchange::begin(first, secret, &server_nonce, binding).map_err(sasl_failed)?;
                originate::authentication(Authentication::SASLContinue(Bytes::from(reply)), out);
                self.state = State::ScramFinal { exchange, key };
                Ok(Progress::Continue)
            }
            State::ScramFinal { exchange, key } => {
                let (client_key, reply) = exchange.finish(body).map_err(sasl_failed)?;
                originate::authentication(Authentication::SASLFinal(Bytes::from(reply)), out);
                Ok(Progress::Done(Proof {
                    client_key: (key == KeyUse::TowardServer).then_some(client_key),
                    plain: None,
                }))
            }
            State::Trust { .. } | State::Over => Err(malformed("unexpected password message")),
        }
    }

    /// Asks the client for what the method wants. By trust the login is over at once: an unknown
    /// user fails with FATAL 28000, and no other method fails here.
    ///
    /// # Panics
    ///
    /// When it is called after a message of the client.
    pub fn start(&mut self, out: &mut BytesMut) -> Result<Progress<Proof>, SqlError> {
        let request = match &self.state {
            State::Plain { .. } => Authentication::CleartextPassword,
            State::Md5 { salt, .. } => Authentication::MD5Password(salt.to_vec()),
            State::ScramFirst { channel: None, .. } => Authentication::SASL(vec![MECHANISM.to_owned()]),
            State::ScramFirst { channel: Some(_), .. } => {
                Authentication::SASL(vec![MECHANISM_PLUS.to_owned(), MECHANISM.to_owned()])
            }
            State::Trust { known } => {
                let known = *known;
                self.state = State::Over;
                return trusted(known);
            }
            State::ScramFinal { .. } | State::Over => {
                unreachable!("start() comes once, before the client's first message")
            }
        };
        originate::authentication(request, out);
        Ok(Progress::Continue)
    }
}

fn trusted(known: bool) -> Result<Progress<Proof>, SqlError> {
    if known {
        return Ok(Progress::Done(Proof::default()));
    }
    let message = "\"trust\" authentication failed";
    Err(SqlError::fatal(sqlstate::INVALID_AUTHORIZATION, message))
}

/// Who has no secret is a stranger, but by trust.
fn is_missing(method: Method, secret: &Secret) -> bool {
    method != Method::Trust && secret.is_empty()
}

/// md5 means SCRAM for whoever has such a secret, or seems to.
fn is_scram(method: Method, secret: Option<&Secret>, settings: &ScramSettings) -> bool {
    match (method, secret) {
        (Method::ScramSha256, _) | (Method::Md5, Some(Secret::Scram(_))) => true,
        (Method::Md5, None) => settings.strangers != Likeness::Password,
        _ => false,
    }
}

/// A verifier that no password matches.
fn mock(user: &str, settings: &ScramSettings) -> ScramSecret {
    let iterations = match settings.strangers {
        Likeness::Scram { iterations } => iterations,
        Likeness::Password => settings.iterations,
    };
    settings.mock_key.scram_secret(user, iterations)
}

fn key_use(secret: Option<&Secret>) -> KeyUse {
    match secret {
        Some(Secret::Scram(_)) => KeyUse::TowardServer,
        Some(Secret::Plain(_) | Secret::Md5(_)) | None => KeyUse::Nothing,
    }
}

/// The verifier to check against; one that nobody can satisfy for whoever has none.
fn verifier(user: &str, credentials: Option<&Credentials>, settings: &ScramSettings) -> ScramSecret {
    let mock = || mock(user, settings);
    let Some(credentials) = credentials else {
        return mock();
    };
    match credentials.secret() {
        Secret::Scram(secret) => secret.clone(),
        secret if secret.is_empty() => mock(),
        Secret::Plain(password) => credentials.verifier(user, password, settings),
        Secret::Md5(_) => mock(),
    }
}

/// The digest to check against; one that nobody can know for whoever has none.
fn md5_digest(user: &str, secret: Option<&Secret>, settings: &ScramSettings) -> Md5Digest {
    match secret {
        Some(Secret::Md5(digest)) => *digest,
        Some(Secret::Plain(password)) if !password.is_empty() => {
            Md5Digest(md5::stored_digest(password.as_bytes(), user))
        }
        Some(Secret::Plain(_) | Secret::Scram(_)) | None => settings.mock_key.md5_digest(user),
    }
}

fn plain_matches(user: &str, secret: Option<&Secret>, password: &Password) -> bool {
    match secret {
        None => false,
        // The password that was sent is never empty, so an empty secret matches nothing.
        Some(Secret::Plain(stored)) => stored == password,
        Some(Secret::Md5(stored)) => Md5Digest(md5::stored_digest(password.as_bytes(), user)) == *stored,
        Some(Secret::Scram(stored)) => stored.matches(password),
    }
}

/// Asks for a password in plain text, for somebody else to check.
pub fn ask_for_password(out: &mut BytesMut) {
    originate::authentication(Authentication::CleartextPassword, out);
}

/// The body of a PasswordMessage: one string, and nothing after it.
///
/// FATAL 28P01 when it is empty, 08P01 when it is malformed.
pub fn password_of(body: &[u8]) -> Result<&[u8], SqlError> {
    let password = match body.split_last() {
        Some((0, password)) if password.len() <= PASSWORD_BYTES_MAX => password,
        _ => return Err(malformed("invalid password packet size")),
    };
    if password.contains(&0) {
        return Err(malformed("invalid password packet size"));
    }
    if password.is_empty() {
        let message = "empty password returned by client";
        return Err(SqlError::fatal(sqlstate::INVALID_PASSWORD, message));
    }
    Ok(password)
}

/// The body of a SASLInitialResponse: the mechanism, a length, and that many bytes of SCRAM.
fn initial_response(body: &[u8], channel: Option<ChannelBinding>) -> Result<(Binding, &[u8]), SqlError> {
    let invalid = || malformed("malformed SASLInitialResponse message");
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(invalid)?;
    let mechanism = &body[..end];
    let binding = match channel {
        None if mechanism == MECHANISM.as_bytes() => Binding::Unavailable,
        Some(_) if mechanism == MECHANISM.as_bytes() => Binding::Unused,
        Some(channel) if mechanism == MECHANISM_PLUS.as_bytes() => Binding::Used(channel),
        _ => {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(malformed(message));
        }
    };
    let (length, data) = body[end + 1..].split_first_chunk().ok_or_else(invalid)?;
    // A length of -1 would be a client that wants to be asked first: no driver does.
    if usize::try_from(i32::from_be_bytes(*length)) != Ok(data.len()) {
        return Err(invalid());
    }
    Ok((binding, data))
}

fn accept(matches: bool) -> Result<(), SqlError> {
    if matches {
        return Ok(());
    }
    let message = "password authentication failed";
    Err(SqlError::fatal(sqlstate::INVALID_PASSWORD, message))
}

/// A wrong proof says no more than that; what someone in between may have done is told in PostgreSQL's words;
/// everything else is a driver's bug, and is explained.
fn sasl_failed(error: ScramError) -> SqlError {
    let message = "SASL authentication failed";
    match error {
        ScramError::WrongProof => SqlError::fatal(sqlstate::INVALID_PASSWORD, message),
        ScramError::ChannelBindingHidden => {
            let message = "SCRAM channel binding negotiation error";
            let detail = "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.";
            SqlError::fatal(sqlstate::INVALID_AUTHORIZATION, message).detail(detail)
        }
        ScramError::OtherChannel => {
            let message = "SCRAM channel binding check failed";
            let detail = "The certificate that the client was shown is not the one of this connection.";
            SqlError::fatal(sqlstate::INVALID_AUTHORIZATION, message).detail(detail)
        }
        other => malformed(message).detail(other.to_string()),
    }
}

fn malformed(message: &'static str) -> SqlError {
    SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message)
}
