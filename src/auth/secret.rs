//! What is known of a user: [`Secret`], as `auth_file` or `pg_authid` holds it; [`Credentials`],
//! the secret of one user with what is derived from it once; [`ServerSecret`], what of it can be
//! used toward PostgreSQL. No Debug output shows any of it.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use rand::{CryptoRng, Rng};
use subtle::ConstantTimeEq;

use super::client_login::Proof;
use super::md5;
use super::scram::{self, ITERATIONS_MAX, ScramError, ScramKey, ScramKeys};

/// A plain password: any bytes but NUL. Empty is no password: nobody can log in with it.
#[derive(Clone)]
pub struct Password(Arc<[u8]>);

impl Password {
    /// Keeps a copy of the bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Password(bytes.as_ref().into())
    }

    /// The password itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is no password.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The 32 hex digits of an md5 secret.
#[derive(Clone, Copy)]
pub struct Md5Digest(pub(super) [u8; 32]);

impl PartialEq for Md5Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Md5Digest {}

impl fmt::Debug for Md5Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Digest(..)")
    }
}

/// A SCRAM verifier: enough to check a login, not enough to log in elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramSecret {
    /// Iterations of PBKDF2; PostgreSQL's default is 4,096.
    pub iterations: u32,
    /// PostgreSQL makes 16 bytes.
    pub salt: Vec<u8>,
    /// The hash of the client's key.
    pub stored_key: ScramKey,
    /// What the server signs with.
    pub server_key: ScramKey,
}

impl ScramSecret {
    /// Makes the verifier of a password. Costs milliseconds.
    pub fn derive(password: &Password, salt: Vec<u8>, iterations: u32) -> Self {
        let keys = ScramKeys::derive(password.as_bytes(), &salt, iterations);
        ScramSecret { iterations, salt, stored_key: keys.stored_key(), server_key: keys.server_key }
    }

    /// Whether this is the password. Costs milliseconds; with more iterations than a million, which would take the worker
    /// away from all its clients, no password is the one.
    pub(super) fn matches(&self, password: &Password) -> bool {
        if self.iterations > ITERATIONS_MAX {
            let (have, limit) = (self.iterations, ITERATIONS_MAX);
            tracing::warn!(
                "a SCRAM secret of {have} iterations cannot be compared with a password: at most {limit}"
            );
            return false;
        }
        ScramSecret::derive(password, self.salt.clone(), self.iterations) == *self
    }

    /// Reads what follows `SCRAM-SHA-256$`: `iterations:salt$stored:server`.
    fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text| Some(ScramKey(BASE64.decode(text).ok()?.try_into().ok()?));
        Some(ScramSecret {
            iterations: scram::parse_iterations(iterations)?,
            salt: BASE64.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

/// What `auth_file` or `pg_authid.rolpassword` knows of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// The password itself. Empty: the user has none and can only log in by trust.
    Plain(Password),
    /// `md5` and 32 hex digits.
    Md5(Md5Digest),
    /// `SCRAM-SHA-256$iterations:salt$stored:server`.
    Scram(ScramSecret),
}

impl Secret {
    /// Recognises the three forms as PostgreSQL and PgBouncer do. A text that begins as a SCRAM
    /// secret and is none becomes the empty password, so that nobody logs in with a damaged line.
    pub fn parse(text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        if let Some(digest) = parse_md5(text) {
            return Secret::Md5(Md5Digest(digest));
        }
        let Some(rest) = text.strip_prefix(b"SCRAM-SHA-256$") else {
            return Secret::Plain(Password::new(text));
        };
        match std::str::from_utf8(rest).ok().and_then(ScramSecret::parse) {
            Some(secret) => Secret::Scram(secret),
            None => Secret::Plain(Password::new([])),
        }
    }

    /// Whether the user has no password at all.
    pub fn is_empty(&self) -> bool {
        matches!(self, Secret::Plain(password) if password.is_empty())
    }
}

fn parse_md5(text: &[u8]) -> Option<[u8; 32]> {
    let digest: [u8; 32] = text.strip_prefix(b"md5")?.try_into().ok()?;
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digest.iter().all(hex).then_some(digest)
}

/// The process's own secret, made once at start: salts that users without a stored one are shown
/// come from it, so that a user has the same salt at each login whether or not it exists.
#[derive(Clone)]
pub struct MockKey([u8; 32]);

impl MockKey {
    /// A new key.
    pub fn new(rng: &mut impl CryptoRng) -> Self {
        MockKey(rng.random())
    }

    fn bytes(&self, purpose: &[u8], user: &str) -> [u8; 32] {
        scram::hmac(&self.0, &[purpose, b"\0", user.as_bytes()]).0
    }

    fn salt(&self, user: &str) -> Vec<u8> {
        self.bytes(b"salt", user)[..16].to_vec()
    }

    /// A verifier that no password matches.
    pub(super) fn scram_secret(&self, user: &str, iterations: u32) -> ScramSecret {
        ScramSecret {
            iterations,
            salt: self.salt(user),
            stored_key: ScramKey(self.bytes(b"stored key", user)),
            server_key: ScramKey(self.bytes(b"server key", user)),
        }
    }

    /// A digest that no password matches.
    pub(super) fn md5_digest(&self, user: &str) -> Md5Digest {
        Md5Digest(self.bytes(b"md5", user))
    }
}

impl fmt::Debug for MockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MockKey(..)")
    }
}

/// One user's secret, and the costly things derived from it, which are made once. Shared by all
/// sessions and pools of the user; a changed secret is a new `Credentials`.
#[derive(Debug)]
pub struct Credentials {
    secret: Secret,
    /// The verifier of a plain secret. Its salt comes from the one [`MockKey`] of the process.
    verifier: Mutex<Option<ScramSecret>>,
    /// What servers are shown without the help of a client's proof.
    server_secret: Arc<ServerSecret>,
}

impl Credentials {
    /// The credentials of a user with this secret.
    pub fn new(secret: Secret) -> Self {
        let server_secret = match &secret {
            Secret::Plain(_) if secret.is_empty() => ServerSecret::None,
            Secret::Plain(password) => ServerSecret::plain(password.clone()),
            Secret::Md5(digest) => ServerSecret::Md5(*digest),
            Secret::Scram(_) => ServerSecret::ScramKeysMissing,
        };
        Credentials { secret, verifier: Mutex::new(None), server_secret: Arc::new(server_secret) }
    }

    /// The stored secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What is used toward the server after a client's login: the stored password or md5 digest;
    /// with a SCRAM secret the key that the client proved (the server must hold the same secret).
    /// A password that the client sent in plain is better than a digest or a key.
    pub fn server_secret(&self, proof: &Proof) -> Arc<ServerSecret> {
        match (&self.secret, &proof.plain, proof.client_key) {
            (Secret::Plain(_), _, _) => self.server_secret.clone(),
            (_, Some(password), _) => Arc::new(ServerSecret::plain(password.clone())),
            (Secret::Scram(secret), None, Some(client_key)) => {
                Arc::new(ServerSecret::ScramKeys { client_key, server_key: secret.server_key })
            }
            (Secret::Md5(_) | Secret::Scram(_), None, _) => self.server_secret.clone(),
        }
    }

    /// The verifier of a plain password: PBKDF2 costs milliseconds, so it is kept. Whoever comes
    /// while it is being made waits for it instead of making another.
    pub(super) fn verifier(&self, user: &str, password: &Password, settings: &ScramSettings) -> ScramSecret {
        let mut kept = self.verifier.lock();
        match &*kept {
            Some(secret) if secret.iterations == settings.iterations => secret.clone(),
            _ => {
                let salt = settings.mock_key.salt(user);
                let secret = ScramSecret::derive(password, salt, settings.iterations);
                kept.insert(secret).clone()
            }
        }
    }
}

/// What SCRAM with a plain or an unknown secret needs. One per process.
#[derive(Clone, Debug)]
pub struct ScramSettings {
    /// `scram_iterations`: iterations for verifiers that we make. At least 1, default 4096.
    pub iterations: u32,
    /// Where their salts come from.
    pub mock_key: MockKey,
    /// What unknown users are taken for.
    pub strangers: Likeness,
}

/// The kind of secret that a user whom nobody knows seems to have: that of the users who are known, so that
/// what is asked of a stranger, and how long the answer takes, tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// A password or its md5 digest: so does PgBouncer.
    Password,
    /// A SCRAM secret of that many iterations.
    Scram {
        /// As known users have them.
        iterations: u32,
    },
}

impl Likeness {
    /// Of users with these secrets: SCRAM where all have one. Who has no secret does not count.
    pub fn of(secrets: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let known = secrets.into_iter().filter_map(|secret| Likeness::of_one(&Secret::parse(secret)));
        let differ = |one, other| if one == Likeness::Password { one } else { other };
        known.reduce(differ).unwrap_or(Likeness::Password)
    }

    /// Of one user; `None` without a secret.
    pub fn of_one(secret: &Secret) -> Option<Self> {
        match secret {
            secret if secret.is_empty() => None,
            Secret::Plain(_) | Secret::Md5(_) => Some(Likeness::Password),
            Secret::Scram(secret) => Some(Likeness::Scram { iterations: secret.iterations }),
        }
    }
}

/// What can be used to log in to PostgreSQL.
#[derive(Debug)]
pub enum ServerSecret {
    /// The password: answers every method.
    Plain(PlainServerSecret),
    /// The md5 digest: answers the md5 method only.
    Md5(Md5Digest),
    /// SCRAM pass-through: answers SCRAM, if the server stores the same secret as we do.
    ScramKeys {
        /// Recovered from a client's proof.
        client_key: ScramKey,
        /// From the stored secret; the server proves with it that it is the right one.
        server_key: ScramKey,
    },
    /// There is a SCRAM secret, but no client has proved its key.
    ScramKeysMissing,
    /// Nothing is known: only trust and the like get us in.
    None,
}

impl ServerSecret {
    /// A password, with room for the keys derived from it.
    pub fn plain(password: Password) -> Self {
        ServerSecret::Plain(PlainServerSecret { password, keys: Mutex::new(None) })
    }
}

/// A password toward a server, and the SCRAM keys last derived from it.
#[derive(Debug)]
pub struct PlainServerSecret {
    password: Password,
    keys: Mutex<Option<DerivedKeys>>,
}

#[derive(Debug)]
struct DerivedKeys {
    salt: Vec<u8>,
    iterations: u32,
    keys: ScramKeys,
}

impl PlainServerSecret {
    pub(super) fn password(&self) -> &Password {
        &self.password
    }

    pub(super) fn md5_digest(&self, user: &str) -> [u8; 32] {
        md5::stored_digest(self.password.as_bytes(), user)
    }

    /// The keys for the salt and count that a server named: the same at each login until the
    /// password changes there, so the last ones are kept.
    pub(super) fn scram_keys(&self, salt: &[u8], iterations: u32) -> Result<ScramKeys, ScramError> {
        if iterations > ITERATIONS_MAX {
            return Err(ScramError::TooManyIterations { iterations, limit: ITERATIONS_MAX });
        }
        let mut kept = self.keys.lock();
        match &*kept {
            Some(last) if last.iterations == iterations && last.salt == salt => Ok(last.keys),
            _ => {
                let keys = ScramKeys::derive(self.password.as_bytes(), salt, iterations);
                *kept = Some(DerivedKeys { salt: salt.to_vec(), iterations, keys });
                Ok(keys)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_postgresql_15_match_their_passwords() {
        // From pg_authid; both passwords as given to CREATE ROLE.
        let check = |password: &str, text: &str| match Secret::parse(text) {
            Secret::Scram(secret) => {
                assert!(secret.matches(&Password::new(password)));
                assert!(!secret.matches(&Password::new("wrong")));
            }
            other => panic!("{other:?} is no SCRAM secret"),
        };
        check(
            "pencil",
            "SCRAM-SHA-256$4096:+3qCsAWNb2tQlkiLYdhz4g==\
             $EdedNAXK6BSNc476ZU1kGyv/blgKAPABJ2ZMTjMEWxM=\
             :ikyAl+6W1BQBvQuzusndulixKCYSrK3Kec6z0NWPayA=",
        );
        check(
            "I\u{ad}X \u{a0}päss\u{2168}",
            "SCRAM-SHA-256$4096:JIRQAuyh8eTtVAocYV9nHw==\
             $jWioQIutuqMwfiaoKW485qoPdqOYgf3bEkrp5Zioc6M=\
             :yovz9PKnnf9s/H07aJzQ0CQrCCkAYtUnf3DHjmkYFPs=",
        );
        let digest = Md5Digest(md5::stored_digest(b"pencil", "md5_u"));
        let text = "md538f591e5ee08fc954ca8f09e3078a243";
        assert_eq!(Secret::parse(text), Secret::Md5(digest));
    }

    #[test]
    fn what_is_not_exactly_md5_is_a_plain_password() {
        let digits = "0123456789abcdef0123456789abcdef";
        for text in [
            "",
            "pencil",
            "md5",
            "md5pencil",
            &format!("md5{digits}0"),
            &format!("md5{}", digits.to_uppercase()),
            &format!("MD5{digits}"),
            "SCRAM-SHA-256",
        ] {
            assert_eq!(Secret::parse(text), Secret::Plain(Password::new(text)));
        }
        assert!(Secret::parse("").is_empty());
        let bytes = b"caf\xe9";
        assert_eq!(Secret::parse(bytes), Secret::Plain(Password::new(bytes)));
    }

    #[test]
    fn a_scram_secret_that_costs_minutes_matches_no_password() {
        let cheap = ScramSecret::derive(&Password::new("pencil"), vec![1; 16], 1);
        assert!(cheap.matches(&Password::new("pencil")));
        let dear = ScramSecret { iterations: u32::MAX, ..cheap };
        assert!(!dear.matches(&Password::new("pencil")));
    }

    #[test]
    fn a_damaged_scram_secret_lets_nobody_in() {
        let key = format!("{}=", "A".repeat(43));
        assert!(!Secret::parse(format!("SCRAM-SHA-256$1:AAAA${key}:{key}")).is_empty());
        for rest in [
            String::new(),
            format!("1:AAAA${key}"),
            format!("1:AAAA${key}:"),
            format!("1:AAAA${key}:{key}:"),
            format!("1:AAAA${key}:{key} "),
            format!("0:AAAA${key}:{key}"),
            format!("+1:AAAA${key}:{key}"),
            format!("x:AAAA${key}:{key}"),
            format!("1:${key}:{key}"),
            format!("1:A${key}:{key}"),
            format!("1:AAAA$AAAA:{key}"),
        ] {
            assert!(Secret::parse(format!("SCRAM-SHA-256${rest}")).is_empty(), "{rest}");
        }
    }
}
