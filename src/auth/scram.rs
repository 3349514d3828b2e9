//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it, in both roles, and its PLUS variant, which
//! binds the proof to the TLS channel: [`ServerExchange`] checks a client's proof, [`ClientExchange`]
//! proves our own key.
//!
//! Messages of the other side are bounded and read attribute by attribute; nothing here can panic
//! on them. Keys are compared in constant time.

use std::borrow::Cow;
use std::fmt;
use std::str;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use rand::{CryptoRng, Rng};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secret::ScramSecret;

/// The mechanism that needs nothing but a password.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";

/// The one whose proof is good for one TLS channel only: offered and chosen before the other where there
/// is a [`ChannelBinding`].
pub(super) const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Longest SCRAM message that is read. Bytes; a usual one has about 100.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Longest nonce of the other side, because our own messages repeat it. Bytes; PostgreSQL's has 24.
const NONCE_BYTES_MAX: usize = 1024;

/// Most iterations that a server may ask of us: a thread that serves others computes them.
/// PostgreSQL's default is 4,096; a million takes about half a second.
pub(super) const ITERATIONS_MAX: u32 = 1_000_000;

/// The gs2 header of the PLUS variant. The one type of binding that PostgreSQL knows too.
const GS2_HEADER_BOUND: &str = "p=tls-server-end-point,,";

/// Attribute names with a meaning in the RFC, so never names of extensions that can be skipped.
const RESERVED: &[u8] = b"anmrcsipve";

/// Why a SCRAM exchange failed. The texts are PgBouncer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The message does not follow the RFC's grammar, or is too long.
    #[error("malformed SCRAM message ({0})")]
    Malformed(&'static str),
    /// The gs2 header is `p=…`, without the PLUS variant.
    #[error("client requires SCRAM channel binding, but it is not supported")]
    ChannelBindingRequired,
    /// The gs2 header is `n` or `y`, with the PLUS variant.
    #[error("client selected SCRAM-SHA-256-PLUS, but its message has no channel binding data")]
    ChannelBindingMissing,
    /// The gs2 header names another type than `tls-server-end-point`.
    #[error("unsupported SCRAM channel-binding type")]
    ChannelBindingType,
    /// The gs2 header is `y`, though we offered the PLUS variant: someone in between has hidden it.
    #[error("client thinks that the server does not support SCRAM channel binding, but it does")]
    ChannelBindingHidden,
    /// The client is bound to another channel than ours: someone is in between.
    #[error("SCRAM channel binding check failed")]
    OtherChannel,
    /// The `c` attribute does not repeat the gs2 header.
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    ChannelBindingMismatch,
    /// The gs2 header names another user.
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The message has an `m` attribute.
    #[error("client requires an unsupported SCRAM extension")]
    MandatoryExtension,
    /// The nonce is not the one of this exchange.
    #[error("invalid SCRAM response (nonce mismatch)")]
    NonceMismatch,
    /// The client does not know the password.
    #[error("SCRAM proof does not match")]
    WrongProof,
    /// The server does not know the password: it is not the one that we meant to reach.
    #[error("SCRAM server signature does not match")]
    WrongServerSignature,
    /// The server's final message reports an error.
    #[error("error received from server in SCRAM exchange")]
    ServerReportedError,
    /// The server asks for more work than we are willing to do for it.
    #[error("server asks for {iterations} SCRAM iterations, more than {limit}")]
    TooManyIterations {
        /// What the server asks for.
        iterations: u32,
        /// The most that we do.
        limit: u32,
    },
}

/// A SCRAM key or signature: 32 bytes that no Debug output shows.
#[derive(Clone, Copy)]
pub struct ScramKey(pub [u8; 32]);

impl PartialEq for ScramKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ScramKey {}

impl fmt::Debug for ScramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKey(..)")
    }
}

/// What a TLS channel is known by at both its ends: the hash of the server's certificate
/// (`tls-server-end-point`, RFC 5929). It is no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelBinding(pub Arc<[u8]>);

/// What a server and its client have said of binding to their channel before the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// Cannot be had: the PLUS variant is not offered, or the client's side does not know the channel.
    Unavailable,
    /// One side could, and the other does not: the PLUS variant was offered and not chosen, or we would
    /// have chosen it.
    Unused,
    /// The PLUS variant was chosen, on this channel.
    Used(ChannelBinding),
}

impl Binding {
    /// The gs2 header that says so, in the client's role.
    fn gs2_header(&self) -> &'static str {
        match self {
            Binding::Unavailable => "n,,",
            Binding::Unused => "y,,",
            Binding::Used(_) => GS2_HEADER_BOUND,
        }
    }

    /// The `c` attribute: the gs2 header, and what the channel is known by where that was chosen.
    fn attribute(&self, gs2_header: &str) -> String {
        match self {
            Binding::Unavailable | Binding::Unused => BASE64.encode(gs2_header),
            Binding::Used(channel) => BASE64.encode([gs2_header.as_bytes(), &channel.0].concat()),
        }
    }
}

/// What a password becomes with a salt and an iteration count, and all that a login needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScramKeys {
    pub(super) client_key: ScramKey,
    pub(super) server_key: ScramKey,
}

impl ScramKeys {
    /// Costs milliseconds: `iterations` times two SHA-256 blocks.
    pub(super) fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted: [u8; 32] =
            pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(&normalize(password), salt, iterations);
        ScramKeys { client_key: hmac(&salted, &[b"Client Key"]), server_key: hmac(&salted, &[b"Server Key"]) }
    }

    pub(super) fn stored_key(&self) -> ScramKey {
        hash(&self.client_key)
    }
}

pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> ScramKey {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    ScramKey(mac.finalize().into_bytes().into())
}

fn hash(key: &ScramKey) -> ScramKey {
    ScramKey(Sha256::digest(key.0).into())
}

fn xor(left: &ScramKey, right: &ScramKey) -> ScramKey {
    ScramKey(std::array::from_fn(|i| left.0[i] ^ right.0[i]))
}

/// SASLprep, or the bytes as they are where it does not apply: so does PostgreSQL.
fn normalize(password: &[u8]) -> Cow<'_, [u8]> {
    match str::from_utf8(password).map(stringprep::saslprep) {
        Ok(Ok(prepared)) if !prepared.is_empty() => match prepared {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        _ => Cow::Borrowed(password),
    }
}

/// 18 random bytes as 24 printable characters, like PostgreSQL's.
pub(super) fn new_nonce(rng: &mut impl CryptoRng) -> String {
    BASE64.encode(rng.random::<[u8; 18]>())
}

/// The server's role, between its first message and the client's final one.
#[derive(Debug)]
pub(super) struct ServerExchange {
    secret: ScramSecret,
    binding: Binding,
    /// What the client's `c` attribute must be.
    channel: String,
    /// Both halves.
    nonce: String,
    /// The client's first message (bare) and our answer, as they are signed.
    signed: String,
}

impl ServerExchange {
    /// Reads the client-first-message. Returns the server-first-message beside the new state.
    pub(super) fn begin(
        client_first: &[u8],
        secret: ScramSecret,
        server_nonce: &str,
        binding: Binding,
    ) -> Result<(Self, String), ScramError> {
        let (gs2_header, bare) = split_gs2_header(message_text(client_first)?, &binding)?;
        if bare.starts_with('m') {
            return Err(ScramError::MandatoryExtension);
        }
        let mut attributes = Attributes(Some(bare));
        // The user is the one of the startup packet; libpq leaves this one empty.
        attributes.take(b'n')?;
        let client_nonce = checked_nonce(attributes.take(b'r')?)?;
        attributes.skip_extensions()?;
        attributes.end()?;

        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = BASE64.encode(&secret.salt);
        let server_first = format!("r={nonce},s={salt},i={}", secret.iterations);
        let channel = binding.attribute(gs2_header);
        let signed = format!("{bare},{server_first}");
        let exchange = ServerExchange { secret, binding, channel, signed, nonce };
        Ok((exchange, server_first))
    }

    /// Reads the client-final-message. Returns the client's key, which its proof reveals to whoever
    /// has the stored key, and the server-final-message.
    pub(super) fn finish(self, client_final: &[u8]) -> Result<(ScramKey, String), ScramError> {
        let text = message_text(client_final)?;
        let mut attributes = Attributes(Some(text));
        if attributes.take(b'c')? != self.channel {
            return Err(match self.binding {
                Binding::Used(_) => ScramError::OtherChannel,
                Binding::Unavailable | Binding::Unused => ScramError::ChannelBindingMismatch,
            });
        }
        if attributes.take(b'r')? != self.nonce {
            return Err(ScramError::NonceMismatch);
        }
        attributes.skip_extensions()?;
        let proof_at = attributes.offset_in(text);
        let proof = decode_key(attributes.take(b'p')?, "malformed proof")?;
        attributes.end()?;

        let without_proof = &text[..proof_at.saturating_sub(1)];
        let signed: [&[u8]; 3] = [self.signed.as_bytes(), b",", without_proof.as_bytes()];
        let client_key = xor(&proof, &hmac(&self.secret.stored_key.0, &signed));
        if hash(&client_key) != self.secret.stored_key {
            return Err(ScramError::WrongProof);
        }
        let signature = hmac(&self.secret.server_key.0, &signed);
        Ok((client_key, format!("v={}", BASE64.encode(signature.0))))
    }
}

/// The client's role, before the server's first message.
#[derive(Debug)]
pub(super) struct ClientExchange {
    nonce: String,
    binding: Binding,
}

/// The client's role, waiting for the server's final message.
#[derive(Debug)]
pub(super) struct ClientExpectation {
    server_signature: ScramKey,
}

impl ClientExchange {
    /// `nonce` is printable, without a comma, and new.
    pub(super) fn new(nonce: String, binding: Binding) -> Self {
        ClientExchange { nonce, binding }
    }

    /// The mechanism that is named with the first message.
    pub(super) fn mechanism(&self) -> &'static str {
        match self.binding {
            Binding::Unavailable | Binding::Unused => MECHANISM,
            Binding::Used(_) => MECHANISM_PLUS,
        }
    }

    /// PostgreSQL takes the user from the startup packet, so `n` is empty as in libpq.
    pub(super) fn client_first(&self) -> String {
        format!("{}{}", self.binding.gs2_header(), self.client_first_bare())
    }

    fn client_first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Reads the server-first-message and signs. `keys` is asked for the keys with this salt and
    /// iteration count. Returns the client-final-message.
    pub(super) fn answer(
        self,
        server_first: &[u8],
        keys: impl FnOnce(&[u8], u32) -> Result<ScramKeys, ScramError>,
    ) -> Result<(ClientExpectation, String), ScramError> {
        let text = message_text(server_first)?;
        if text.starts_with('m') {
            return Err(ScramError::MandatoryExtension);
        }
        let mut attributes = Attributes(Some(text));
        let nonce = checked_nonce(attributes.take(b'r')?)?;
        // The server adds its own half: an exchange with ours alone could be a replay.
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::NonceMismatch);
        }
        let salt = decode_base64(attributes.take(b's')?, "invalid salt")?;
        let iterations = attributes.take(b'i')?;
        let iterations =
            parse_iterations(iterations).ok_or(ScramError::Malformed("invalid iteration count"))?;
        attributes.skip_extensions()?;
        attributes.end()?;

        let keys = keys(&salt, iterations)?;
        let channel = self.binding.attribute(self.binding.gs2_header());
        let without_proof = format!("c={channel},r={nonce}");
        let signed = format!("{},{text},{without_proof}", self.client_first_bare());
        let client_signature = hmac(&keys.stored_key().0, &[signed.as_bytes()]);
        let proof = BASE64.encode(xor(&keys.client_key, &client_signature).0);
        let expectation =
            ClientExpectation { server_signature: hmac(&keys.server_key.0, &[signed.as_bytes()]) };
        Ok((expectation, format!("{without_proof},p={proof}")))
    }
}

impl ClientExpectation {
    /// Reads the server-final-message: only one who knows the password's keys can have signed it.
    pub(super) fn verify(&self, server_final: &[u8]) -> Result<(), ScramError> {
        let text = message_text(server_final)?;
        if text.starts_with("e=") {
            return Err(ScramError::ServerReportedError);
        }
        let mut attributes = Attributes(Some(text));
        let signature = decode_key(attributes.take(b'v')?, "malformed server signature")?;
        attributes.skip_extensions()?;
        attributes.end()?;
        if signature == self.server_signature { Ok(()) } else { Err(ScramError::WrongServerSignature) }
    }
}

fn message_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::Malformed("too long"));
    }
    if message.contains(&0) {
        return Err(ScramError::Malformed("zero byte"));
    }
    str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

/// Splits the gs2 header off a client-first-message: `n,,`, `y,,` or `p=type,,`. It must fit what was
/// agreed on. `y` says that the client could bind to a channel and thinks that we cannot: true only where we
/// have not offered the PLUS variant.
fn split_gs2_header<'a>(text: &'a str, binding: &Binding) -> Result<(&'a str, &'a str), ScramError> {
    let (flag, rest) = text.split_once(',').unwrap_or((text, ""));
    match (flag.as_bytes(), binding) {
        ([b'n'] | [b'y'], Binding::Used(_)) => return Err(ScramError::ChannelBindingMissing),
        ([b'y'], Binding::Unused) => return Err(ScramError::ChannelBindingHidden),
        ([b'n'], _) | ([b'y'], Binding::Unavailable) => {}
        (b"p=tls-server-end-point", Binding::Used(_)) => {}
        ([b'p', b'=', ..], Binding::Used(_)) => return Err(ScramError::ChannelBindingType),
        ([b'p', ..], Binding::Unavailable | Binding::Unused) => {
            return Err(ScramError::ChannelBindingRequired);
        }
        ([b'n' | b'y', ..], _) => return Err(ScramError::Malformed("comma expected")),
        _ => return Err(ScramError::Malformed("unexpected channel-binding flag")),
    }
    if rest.starts_with('a') {
        return Err(ScramError::AuthorizationIdentity);
    }
    let bare = rest.strip_prefix(',').ok_or(ScramError::Malformed("comma expected"))?;
    Ok((&text[..text.len() - bare.len()], bare))
}

/// The `x=value` parts of a message that are still to be read; `None` after the last.
struct Attributes<'a>(Option<&'a str>);

impl<'a> Attributes<'a> {
    fn name(&self) -> Option<u8> {
        self.0.and_then(|rest| rest.as_bytes().first().copied())
    }

    /// The value of the next attribute, which must have this name.
    fn take(&mut self, name: u8) -> Result<&'a str, ScramError> {
        let Some(rest) = self.0.filter(|_| self.name() == Some(name)) else {
            return Err(ScramError::Malformed("another attribute expected"));
        };
        // The name is one ASCII character, so the value begins at a character.
        let Some(rest) = rest[1..].strip_prefix('=') else {
            return Err(ScramError::Malformed("\"=\" expected after the attribute"));
        };
        let (value, rest) = match rest.split_once(',') {
            Some((value, rest)) => (value, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        Ok(value)
    }

    /// Unknown attributes are to be ignored, says the RFC; a known one out of its place is not.
    fn skip_extensions(&mut self) -> Result<(), ScramError> {
        while let Some(name) = self.name() {
            if RESERVED.contains(&name) {
                break;
            }
            if !name.is_ascii_alphabetic() {
                return Err(ScramError::Malformed("invalid attribute name"));
            }
            self.take(name)?;
        }
        Ok(())
    }

    fn end(&self) -> Result<(), ScramError> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(ScramError::Malformed("garbage at the end")),
        }
    }

    /// Where in `text`, whose tail this is, the next attribute begins.
    fn offset_in(&self, text: &str) -> usize {
        text.len() - self.0.map_or(0, str::len)
    }
}

fn checked_nonce(nonce: &str) -> Result<&str, ScramError> {
    if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX {
        return Err(ScramError::Malformed("nonce is empty or too long"));
    }
    if !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ScramError::Malformed("non-printable characters in nonce"));
    }
    Ok(nonce)
}

/// A positive count, in digits only.
pub(super) fn parse_iterations(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&count| digits && count > 0)
}

fn decode_base64(text: &str, what: &'static str) -> Result<Vec<u8>, ScramError> {
    match BASE64.decode(text) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(ScramError::Malformed(what)),
    }
}

fn decode_key(text: &str, what: &'static str) -> Result<ScramKey, ScramError> {
    let bytes = decode_base64(text, what)?;
    let key = bytes.try_into().map_err(|_| ScramError::Malformed(what))?;
    Ok(ScramKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Password;

    #[test]
    fn the_server_role_follows_the_example_of_rfc_7677() {
        let password = Password::new("pencil");
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let secret = ScramSecret::derive(&password, salt, 4096);
        let (exchange, server_first) = ServerExchange::begin(
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            secret,
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            Binding::Unavailable,
        )
        .unwrap();
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let client_final = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (_, server_final) = exchange.finish(client_final.as_bytes()).unwrap();
        assert_eq!(server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn the_servers_final_message_must_be_its_signature() {
        let check = |text: &str, expected: Result<(), ScramError>| {
            let server_signature = ScramKey([0; 32]);
            let expectation = ClientExpectation { server_signature };
            assert_eq!(expectation.verify(text.as_bytes()), expected, "{text}");
        };
        let zeros = "A".repeat(43);
        check(&format!("v={zeros}="), Ok(()));
        check(&format!("v={zeros}=,x=1"), Ok(()));
        check(&format!("v=B{}=", &zeros[1..]), Err(ScramError::WrongServerSignature));
        check("e=other-error", Err(ScramError::ServerReportedError));
        let malformed = ScramError::Malformed("malformed server signature");
        check("v=", Err(malformed));
        check("v=AAAA", Err(malformed));
        check("", Err(ScramError::Malformed("another attribute expected")));
        check(&format!("v={zeros}=,v="), Err(ScramError::Malformed("garbage at the end")));
    }
}
