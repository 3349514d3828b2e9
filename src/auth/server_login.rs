//! We log in to PostgreSQL: [`ServerLogin`] answers its authentication requests with what the
//! [`ServerSecret`] allows, and believes in a SCRAM server only after that has proved itself.

use std::mem;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use rand::CryptoRng;

use super::Progress;
use super::md5;
use super::scram::{
    self, Binding, ChannelBinding, ClientExchange, ClientExpectation, MECHANISM, MECHANISM_PLUS, ScramError,
    ScramKeys,
};
use super::secret::ServerSecret;

/// Why a login to PostgreSQL failed on our side. (PostgreSQL's own refusal is an ErrorResponse.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// An authentication message whose length or content does not fit its code.
    #[error("malformed authentication message ({0})")]
    Malformed(&'static str),
    /// A message out of its order, for instance a second request.
    #[error("protocol error: unexpected authentication message {0} from server")]
    Unexpected(u32),
    /// The server wants Kerberos, GSSAPI, SSPI or something newer.
    #[error("unknown/unsupported auth method: {0}")]
    UnsupportedMethod(u32),
    /// The server offers SASL without SCRAM-SHA-256.
    #[error("none of the server's SASL authentication mechanisms are supported")]
    UnsupportedMechanisms,
    /// The secret that we have does not answer this method.
    #[error("cannot do {0} authentication: wrong password type")]
    WrongPasswordType(&'static str),
    /// There is a SCRAM secret, but the client logged in without SCRAM.
    #[error(
        "cannot do SCRAM authentication: password is SCRAM secret but client authentication did not provide SCRAM keys"
    )]
    ScramKeysMissing,
    /// The server asks for a password, and there is none.
    #[error("cannot do {0} authentication: no password is known for the user")]
    NoPassword(&'static str),
    /// AuthenticationOk came in the middle of SCRAM: this is not the server that we look for.
    #[error("server did not prove that it knows the password")]
    ServerNotProved,
    /// The SCRAM exchange itself failed.
    #[error(transparent)]
    Scram(#[from] ScramError),
}

/// Our login to one server, from the startup message to AuthenticationOk.
#[derive(Debug)]
pub struct ServerLogin {
    user: String,
    secret: Arc<ServerSecret>,
    channel: Option<ChannelBinding>,
    nonce: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing was asked yet.
    Start,
    PasswordSent,
    ScramFirstSent(ClientExchange),
    ScramFinalSent(ClientExpectation),
    ServerProved,
    /// Succeeded or failed: nothing more is expected.
    Over,
}

impl ServerLogin {
    /// `user` is the one of the startup message. With a `channel`, SCRAM is bound to it if the server can.
    pub fn new(
        user: &str,
        secret: Arc<ServerSecret>,
        channel: Option<ChannelBinding>,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let nonce = scram::new_nonce(rng);
        ServerLogin { user: user.to_owned(), secret, channel, nonce, state: State::Start }
    }

    /// The body of an `R` message. `Done` is AuthenticationOk. After an error the connection is to
    /// be closed. The first SCRAM answer with a plain password costs milliseconds.
    pub fn handle_authentication(
        &mut self,
        body: &[u8],
        out: &mut BytesMut,
    ) -> Result<Progress<()>, AuthError> {
        let (code, data) = body.split_first_chunk().ok_or(AuthError::Malformed("no code"))?;
        let code = u32::from_be_bytes(*code);
        match (code, mem::replace(&mut self.state, State::Over)) {
            (0, state) => {
                ok(data, &state)?;
                return Ok(Progress::Done(()));
            }
            (3, State::Start) => self.state = self.cleartext(data, out)?,
            (5, State::Start) => self.state = self.md5(data, out)?,
            (10, State::Start) => self.state = self.sasl(data, out)?,
            (11, State::ScramFirstSent(exchange)) => {
                self.state = self.sasl_continue(data, exchange, out)?;
            }
            (12, State::ScramFinalSent(expectation)) => {
                expectation.verify(data)?;
                self.state = State::ServerProved;
            }
            (3 | 5 | 10 | 11 | 12, _) => return Err(AuthError::Unexpected(code)),
            _ => return Err(AuthError::UnsupportedMethod(code)),
        }
        Ok(Progress::Continue)
    }

    fn cleartext(&self, data: &[u8], out: &mut BytesMut) -> Result<State, AuthError> {
        const METHOD: &str = "cleartext";
        if !data.is_empty() {
            return Err(AuthError::Malformed("garbage at the end"));
        }
        match &*self.secret {
            ServerSecret::Plain(secret) => write_password(secret.password().as_bytes(), out),
            ServerSecret::Md5(_) | ServerSecret::ScramKeys { .. } | ServerSecret::ScramKeysMissing => {
                return Err(AuthError::WrongPasswordType(METHOD));
            }
            ServerSecret::None => return Err(AuthError::NoPassword(METHOD)),
        }
        Ok(State::PasswordSent)
    }

    fn md5(&self, data: &[u8], out: &mut BytesMut) -> Result<State, AuthError> {
        const METHOD: &str = "MD5";
        let salt: [u8; 4] = data.try_into().map_err(|_| AuthError::Malformed("md5 salt is not 4 bytes"))?;
        let digest = match &*self.secret {
            ServerSecret::Plain(secret) => secret.md5_digest(&self.user),
            ServerSecret::Md5(digest) => digest.0,
            ServerSecret::ScramKeys { .. } | ServerSecret::ScramKeysMissing => {
                return Err(AuthError::WrongPasswordType(METHOD));
            }
            ServerSecret::None => return Err(AuthError::NoPassword(METHOD)),
        };
        write_password(&md5::response(&digest, salt), out);
        Ok(State::PasswordSent)
    }

    fn sasl(&self, data: &[u8], out: &mut BytesMut) -> Result<State, AuthError> {
        let binding = self.binding(Offer::read(data)?)?;
        match &*self.secret {
            ServerSecret::Plain(_) | ServerSecret::ScramKeys { .. } => {}
            ServerSecret::Md5(_) => return Err(AuthError::WrongPasswordType("SCRAM")),
            ServerSecret::ScramKeysMissing => return Err(AuthError::ScramKeysMissing),
            ServerSecret::None => return Err(AuthError::NoPassword("SCRAM")),
        }
        let exchange = ClientExchange::new(self.nonce.clone(), binding);
        write_initial_response(exchange.mechanism(), &exchange.client_first(), out);
        Ok(State::ScramFirstSent(exchange))
    }

    /// How we bind to the channel, as libpq does: where we can and the server does not, it is told that we
    /// could, so that it finds out if someone in between has hidden its offer.
    fn binding(&self, offer: Offer) -> Result<Binding, AuthError> {
        match (&self.channel, offer) {
            (Some(channel), Offer { bound: true, .. }) => Ok(Binding::Used(channel.clone())),
            (Some(_), Offer { unbound: true, .. }) => Ok(Binding::Unused),
            (None, Offer { unbound: true, .. }) => Ok(Binding::Unavailable),
            _ => Err(AuthError::UnsupportedMechanisms),
        }
    }

    fn sasl_continue(
        &self,
        data: &[u8],
        exchange: ClientExchange,
        out: &mut BytesMut,
    ) -> Result<State, AuthError> {
        let (expectation, reply) = exchange.answer(data, |salt, iterations| match &*self.secret {
            ServerSecret::Plain(secret) => secret.scram_keys(salt, iterations),
            ServerSecret::ScramKeys { client_key, server_key } => {
                Ok(ScramKeys { client_key: *client_key, server_key: *server_key })
            }
            ServerSecret::Md5(_) | ServerSecret::ScramKeysMissing | ServerSecret::None => {
                unreachable!("sasl() begins an exchange only with a password or keys")
            }
        })?;
        write_message(&[reply.as_bytes()], out);
        Ok(State::ScramFinalSent(expectation))
    }
}

fn ok(data: &[u8], state: &State) -> Result<(), AuthError> {
    match state {
        _ if !data.is_empty() => Err(AuthError::Malformed("garbage at the end")),
        State::Start | State::PasswordSent | State::ServerProved => Ok(()),
        State::ScramFirstSent(_) | State::ScramFinalSent(_) => Err(AuthError::ServerNotProved),
        State::Over => Err(AuthError::Unexpected(0)),
    }
}

/// Which of our mechanisms the server offers.
#[derive(Clone, Copy)]
struct Offer {
    unbound: bool,
    bound: bool,
}

impl Offer {
    /// Reads the list: strings, then an empty one.
    fn read(list: &[u8]) -> Result<Offer, AuthError> {
        match list.strip_suffix(b"\0") {
            Some(names) if names.is_empty() || names.ends_with(b"\0") => {
                let has = |wanted: &str| names.split(|&byte| byte == 0).any(|name| name == wanted.as_bytes());
                Ok(Offer { unbound: has(MECHANISM), bound: has(MECHANISM_PLUS) })
            }
            _ => Err(AuthError::Malformed("list of mechanisms does not end")),
        }
    }
}

fn write_password(password: &[u8], out: &mut BytesMut) {
    write_message(&[password, b"\0"], out);
}

fn write_initial_response(mechanism: &str, client_first: &str, out: &mut BytesMut) {
    let length = u32::try_from(client_first.len()).expect("a first message of ours is short");
    write_message(&[mechanism.as_bytes(), b"\0", &length.to_be_bytes(), client_first.as_bytes()], out);
}

/// A `p` message. By hand, because a password is bytes and pgwire wants a UTF-8 string.
fn write_message(parts: &[&[u8]], out: &mut BytesMut) {
    let length: usize = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.put_u8(b'p');
    out.put_u32(u32::try_from(length).expect("a password is no gigabyte"));
    for part in parts {
        out.put_slice(part);
    }
}
