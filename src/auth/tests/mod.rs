//! Both ends of a login talk to each other, with every method and kind of secret.

mod malformed;

use std::sync::Arc;

use bytes::BytesMut;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::scram::ScramKeys;
use super::*;
use crate::error::SqlError;

const ITERATIONS: u32 = 3;

fn settings() -> ScramSettings {
    let mock_key = MockKey::new(&mut StdRng::seed_from_u64(7));
    ScramSettings { iterations: ITERATIONS, mock_key, strangers: Likeness::Password }
}

fn credentials(secret: Secret) -> Option<Arc<Credentials>> {
    Some(Arc::new(Credentials::new(secret)))
}

fn plain(password: &str) -> Option<Arc<Credentials>> {
    credentials(Secret::Plain(Password::new(password)))
}

fn md5(password: &str) -> Option<Arc<Credentials>> {
    let digest = super::md5::stored_digest(password.as_bytes(), "app");
    credentials(Secret::parse([b"md5", &digest[..]].concat()))
}

fn scram(password: &str) -> Option<Arc<Credentials>> {
    credentials(Secret::Scram(scram_secret(password)))
}

fn scram_secret(password: &str) -> ScramSecret {
    ScramSecret::derive(&Password::new(password), b"stored salt".to_vec(), 5)
}

/// Takes the one whole message that `out` holds.
fn take(out: &mut BytesMut) -> (u8, Vec<u8>) {
    let message = out.split().to_vec();
    let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
    assert_eq!(length as usize + 1, message.len(), "one whole message");
    (message[0], message[5..].to_vec())
}

#[derive(Debug, PartialEq)]
enum Outcome {
    In(Proof),
    Refused(&'static str, String),
    ServerDistrusted(AuthError),
    ClientCannot(AuthError),
}

fn refused(error: SqlError) -> Outcome {
    let code = ["28P01", "28000", "08P01"];
    let code = code.into_iter().find(|code| *code == error.code);
    Outcome::Refused(code.expect("a code of ours"), error.message.to_string())
}

/// A client with this secret logs in as `app`, through all messages.
fn log_in(method: Method, stored: Option<Arc<Credentials>>, secret: Arc<ServerSecret>, seed: u64) -> Outcome {
    log_in_over([None, None], method, stored, secret, seed)
}

/// The same over a channel, as our side and the client's know it.
fn log_in_over(
    [ours, clients]: [Option<ChannelBinding>; 2],
    method: Method,
    stored: Option<Arc<Credentials>>,
    secret: Arc<ServerSecret>,
    seed: u64,
) -> Outcome {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut us = ClientLogin::new(method, "app", stored, ours, &settings(), rng);
    let mut client = ServerLogin::new("app", secret, clients, rng);
    let (mut to_client, mut to_us) = (BytesMut::new(), BytesMut::new());
    let mut progress = match us.start(&mut to_client) {
        Ok(progress) => progress,
        Err(error) => return refused(error),
    };
    loop {
        if !to_client.is_empty() {
            let (tag, body) = take(&mut to_client);
            assert_eq!(tag, b'R');
            match client.handle_authentication(&body, &mut to_us) {
                Ok(step) => assert_eq!(step, Progress::Continue),
                Err(error) if matches!(progress, Progress::Done(_)) => {
                    return Outcome::ServerDistrusted(error);
                }
                Err(error) => return Outcome::ClientCannot(error),
            }
        }
        if let Progress::Done(proof) = progress {
            let ok = client.handle_authentication(&[0; 4], &mut to_us);
            assert_eq!(ok, Ok(Progress::Done(())));
            return Outcome::In(proof);
        }
        let (tag, body) = take(&mut to_us);
        assert_eq!(tag, b'p');
        progress = match us.handle_password(&body, &mut to_client) {
            Ok(progress) => progress,
            Err(error) => return refused(error),
        };
    }
}

fn with_password(method: Method, stored: Option<Arc<Credentials>>, password: &str) -> Outcome {
    let secret = Arc::new(ServerSecret::plain(Password::new(password)));
    log_in(method, stored, secret, 1)
}

fn nothing() -> Outcome {
    Outcome::In(Proof::default())
}

fn sent(password: &str) -> Outcome {
    Outcome::In(Proof { plain: Some(Password::new(password)), client_key: None })
}

fn wrong_password() -> Outcome {
    Outcome::Refused("28P01", "password authentication failed".into())
}

fn wrong_proof() -> Outcome {
    Outcome::Refused("28P01", "SASL authentication failed".into())
}

fn proved(password: &str) -> Outcome {
    let keys = ScramKeys::derive(password.as_bytes(), b"stored salt", 5);
    Outcome::In(Proof { client_key: Some(keys.client_key), plain: None })
}

#[test]
fn each_method_accepts_the_right_password_for_each_kind_of_secret() {
    let check = |method, stored, outcome| {
        assert_eq!(with_password(method, stored, "pencil"), outcome, "{method:?}");
    };
    check(Method::Trust, plain("pencil"), nothing());
    check(Method::Trust, plain(""), nothing());
    check(Method::Plain, plain("pencil"), sent("pencil"));
    check(Method::Plain, md5("pencil"), sent("pencil"));
    check(Method::Plain, scram("pencil"), sent("pencil"));
    check(Method::Md5, plain("pencil"), nothing());
    check(Method::Md5, md5("pencil"), nothing());
    check(Method::Md5, scram("pencil"), proved("pencil"));
    check(Method::ScramSha256, plain("pencil"), nothing());
    check(Method::ScramSha256, scram("pencil"), proved("pencil"));
    // An md5 secret cannot check a SCRAM proof.
    check(Method::ScramSha256, md5("pencil"), wrong_proof());
}

#[test]
fn each_method_refuses_a_wrong_password_an_empty_secret_and_an_unknown_user() {
    let check = |method, stored, outcome| {
        assert_eq!(with_password(method, stored, "pencil"), outcome, "{method:?}");
    };
    for stored in [plain("Pencil"), md5("pen"), scram("pencils"), plain(""), None] {
        let by_md5 = match stored.as_deref().map(Credentials::secret) {
            Some(Secret::Scram(_)) => wrong_proof(),
            _ => wrong_password(),
        };
        check(Method::Plain, stored.clone(), wrong_password());
        check(Method::Md5, stored.clone(), by_md5);
        check(Method::ScramSha256, stored, wrong_proof());
    }
    let unknown = Outcome::Refused("28000", "\"trust\" authentication failed".into());
    check(Method::Trust, None, unknown);
}

#[test]
fn the_secret_itself_is_not_the_password() {
    let digest = super::md5::stored_digest(b"pencil", "app");
    let text = String::from_utf8([b"md5", &digest[..]].concat()).unwrap();
    for method in [Method::Plain, Method::Md5] {
        assert_eq!(with_password(method, md5("pencil"), &text), wrong_password());
    }
}

#[test]
fn passwords_that_saslprep_changes_or_refuses_still_log_in() {
    let unprepared = "I\u{ad}X \u{a0}pä\u{2168}";
    let prepared = "IX  päIX";
    let (wrong, right) = (wrong_proof(), proved(prepared));
    assert_eq!(with_password(Method::Md5, scram(prepared), unprepared), right);
    assert_eq!(with_password(Method::Md5, scram("IX päIX"), unprepared), wrong);
    for bytes in [&b"\x07bell"[..], b"caf\xe9", b"\xc2\xad"] {
        let stored = credentials(Secret::Plain(Password::new(bytes)));
        let secret = Arc::new(ServerSecret::plain(Password::new(bytes)));
        assert_eq!(log_in(Method::ScramSha256, stored, secret, 2), nothing());
    }
}

#[test]
fn a_server_is_given_what_is_stored_or_what_the_client_proved() {
    let check = |stored: Option<Arc<Credentials>>, method, to_server, outcome| {
        let stored = stored.expect("a known user");
        let Outcome::In(proof) = with_password(method, Some(stored.clone()), "pencil") else {
            panic!("the client's own login failed");
        };
        let secret = stored.server_secret(&proof);
        let server = match to_server {
            Method::Md5 => md5("pencil"),
            Method::Trust | Method::Plain | Method::ScramSha256 => scram("pencil"),
        };
        assert_eq!(log_in(to_server, server, secret, 3), outcome, "{to_server:?}");
    };
    let cannot = |error| Outcome::ClientCannot(error);
    let mismatch = |name| cannot(AuthError::WrongPasswordType(name));

    check(plain("pencil"), Method::ScramSha256, Method::ScramSha256, proved("pencil"));
    check(plain("pencil"), Method::Trust, Method::Md5, nothing());
    check(plain("pencil"), Method::Trust, Method::Plain, sent("pencil"));
    check(md5("pencil"), Method::Md5, Method::Md5, nothing());
    check(md5("pencil"), Method::Md5, Method::Plain, mismatch("cleartext"));
    check(md5("pencil"), Method::Md5, Method::ScramSha256, mismatch("SCRAM"));
    check(md5("pencil"), Method::Plain, Method::ScramSha256, proved("pencil"));
    check(scram("pencil"), Method::Md5, Method::ScramSha256, proved("pencil"));
    check(scram("pencil"), Method::Md5, Method::Md5, mismatch("MD5"));
    check(scram("pencil"), Method::Md5, Method::Trust, nothing());
    check(scram("pencil"), Method::Plain, Method::Md5, nothing());
    check(scram("pencil"), Method::Trust, Method::ScramSha256, cannot(AuthError::ScramKeysMissing));
    check(plain(""), Method::Trust, Method::Trust, nothing());
    check(plain(""), Method::Trust, Method::Plain, cannot(AuthError::NoPassword("cleartext")));
    check(plain(""), Method::Trust, Method::ScramSha256, cannot(AuthError::NoPassword("SCRAM")));
}

#[test]
fn scram_is_bound_to_the_channel_where_both_sides_know_it() {
    let check = |ours: Option<&[u8]>, clients: Option<&[u8]>, outcome: Outcome| {
        let channels = [ours, clients].map(|hash| hash.map(|hash| ChannelBinding(hash.into())));
        let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
        let got = log_in_over(channels, Method::ScramSha256, scram("pencil"), secret, 1);
        assert_eq!(got, outcome, "{ours:?} {clients:?}");
    };
    check(Some(b"hash"), Some(b"hash"), proved("pencil"));
    check(Some(b"hash"), None, proved("pencil"));
    check(None, Some(b"hash"), proved("pencil"));
    let other = Outcome::Refused("28000", "SCRAM channel binding check failed".into());
    check(Some(b"hash"), Some(b"another"), other);
}

#[test]
fn a_proof_for_a_channel_proves_the_same_key() {
    let channel = || Some(ChannelBinding(b"hash".as_slice().into()));
    let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
    let stored = scram("pencil");
    let first = log_in_over([channel(), channel()], Method::Md5, stored.clone(), secret, 1);
    let Outcome::In(proof) = first else { panic!("{first:?}") };
    let ours = stored.as_ref().unwrap().server_secret(&proof);
    assert_eq!(log_in_over([channel(), channel()], Method::Md5, stored, ours, 2), proved("pencil"));
}

#[test]
fn a_server_that_only_stores_the_client_side_of_the_keys_is_not_believed() {
    let stolen = ScramSecret { server_key: ScramKey([1; 32]), ..scram_secret("pencil") };
    let outcome = with_password(Method::ScramSha256, credentials(Secret::Scram(stolen)), "pencil");
    let error = AuthError::Scram(ScramError::WrongServerSignature);
    assert_eq!(outcome, Outcome::ServerDistrusted(error));
}

#[test]
fn derived_keys_are_made_once_per_salt_and_count() {
    let stored = plain("pencil").unwrap();
    let secret = stored.server_secret(&Proof::default());
    let ServerSecret::Plain(keys) = &*secret else {
        panic!("a plain secret stays plain");
    };
    let first = keys.scram_keys(b"salt", 2);
    assert_eq!(keys.scram_keys(b"salt", 2), first);
    assert_ne!(keys.scram_keys(b"salt", 3), first);
    assert_ne!(keys.scram_keys(b"tlas", 2), first);
    let limit = 1_000_000;
    let error = ScramError::TooManyIterations { iterations: u32::MAX, limit };
    assert_eq!(keys.scram_keys(b"salt", u32::MAX), Err(error));

    let password = Password::new("pencil");
    let once = stored.verifier("app", &password, &settings());
    assert_eq!(stored.verifier("app", &password, &settings()), once);
    let more = ScramSettings { iterations: ITERATIONS + 1, ..settings() };
    assert_eq!(stored.verifier("app", &password, &more).iterations, ITERATIONS + 1);
}

/// The server-first-message that a user is shown.
fn server_first(stored: Option<Arc<Credentials>>, user: &str, seed: u64) -> String {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut login = ClientLogin::new(Method::ScramSha256, user, stored, None, &settings(), rng);
    let mut out = BytesMut::new();
    let first = b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abcd";
    login.handle_password(first, &mut out).unwrap();
    let (_, body) = take(&mut out);
    String::from_utf8(body[4..].to_vec()).unwrap()
}

#[test]
fn an_unknown_user_looks_like_one_with_a_plain_password() {
    let salt = |message: &str| message.split_once(',').unwrap().1.to_owned();
    let unknown = salt(&server_first(None, "app", 1));
    assert_eq!(salt(&server_first(None, "app", 2)), unknown);
    assert_eq!(salt(&server_first(plain("pencil"), "app", 3)), unknown);
    assert_ne!(salt(&server_first(None, "bob", 4)), unknown);
    assert_ne!(server_first(None, "app", 1), server_first(None, "app", 2));
}

#[test]
fn a_stranger_is_asked_what_known_users_are_asked() {
    let asked = |method, stored: Option<Arc<Credentials>>, strangers| {
        let rng = &mut StdRng::seed_from_u64(9);
        let settings = ScramSettings { strangers, ..settings() };
        let mut login = ClientLogin::new(method, "app", stored, None, &settings, rng);
        let mut out = BytesMut::new();
        login.start(&mut out).unwrap();
        let request = take(&mut out).1[..4].to_vec();
        let first = b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abcd";
        let answer = login.handle_password(first, &mut out).map(|_| take(&mut out).1);
        let iterations = answer.ok().map(|body| String::from_utf8(body).unwrap());
        let iterations =
            iterations.and_then(|text| text.rsplit_once("i=").map(|(_, count)| count.to_owned()));
        (request, iterations)
    };
    for method in [Method::Plain, Method::Md5, Method::ScramSha256] {
        let like_scram = Likeness::Scram { iterations: 5 };
        let known = asked(method, scram("pencil"), like_scram);
        assert_eq!(asked(method, None, like_scram), known, "{method:?}");
        assert_eq!(asked(method, plain(""), like_scram), known, "{method:?}: without a password");
        let known = asked(method, plain("pencil"), Likeness::Password);
        assert_eq!(asked(method, None, Likeness::Password), known, "{method:?}");
        assert_eq!(asked(method, plain(""), Likeness::Password), known, "{method:?}");
    }
}

#[test]
fn strangers_look_like_the_known_users() {
    let scram = |iterations: u32| {
        let key = format!("{}=", "A".repeat(43));
        format!("SCRAM-SHA-256${iterations}:AAAA${key}:{key}")
    };
    let check = |secrets: &[&str], expected| assert_eq!(Likeness::of(secrets), expected, "{secrets:?}");
    check(&[], Likeness::Password);
    check(&["", "secret"], Likeness::Password);
    check(&[&scram(7)], Likeness::Scram { iterations: 7 });
    check(&["", &scram(7), &scram(8)], Likeness::Scram { iterations: 8 });
    check(&[&scram(7), "secret"], Likeness::Password);
    check(&["secret", &scram(7)], Likeness::Password);
}

#[test]
fn nothing_secret_is_printed() {
    for stored in [plain("pencil"), md5("pencil"), scram("pencil")] {
        let rng = &mut StdRng::seed_from_u64(8);
        let login = ClientLogin::new(Method::Plain, "app", stored.clone(), None, &settings(), rng);
        let server_secret = stored.as_ref().unwrap().server_secret(&Proof::default());
        let text = format!("{stored:?} {login:?} {server_secret:?}");
        let digest = super::md5::stored_digest(b"pencil", "app");
        assert!(!text.contains("pencil"), "{text}");
        assert!(!text.contains(std::str::from_utf8(&digest).unwrap()), "{text}");
        assert!(text.contains("(..)"), "{text}");
    }
}
