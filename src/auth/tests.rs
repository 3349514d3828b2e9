//! Both ends of a login talk to each other; then every message that they must refuse.

use std::sync::Arc;

use bytes::BytesMut;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::scram::ScramKeys;
use super::*;
use crate::error::SqlError;

const ITERATIONS: u32 = 3;

fn settings() -> ScramSettings {
    ScramSettings {
        iterations: ITERATIONS,
        mock_key: MockKey::new(&mut StdRng::seed_from_u64(7)),
    }
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
fn log_in(
    method: Method,
    stored: Option<Arc<Credentials>>,
    secret: Arc<ServerSecret>,
    seed: u64,
) -> Outcome {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut us = ClientLogin::new(method, "app", stored, &settings(), rng);
    let mut client = ServerLogin::new("app", secret, rng);
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
    Outcome::In(Proof {
        plain: Some(Password::new(password)),
        client_key: None,
    })
}

fn wrong_password() -> Outcome {
    Outcome::Refused("28P01", "password authentication failed".into())
}

fn wrong_proof() -> Outcome {
    Outcome::Refused("28P01", "SASL authentication failed".into())
}

fn proved(password: &str) -> Outcome {
    let keys = ScramKeys::derive(password.as_bytes(), b"stored salt", 5);
    Outcome::In(Proof {
        client_key: Some(keys.client_key),
        plain: None,
    })
}

#[test]
fn each_method_accepts_the_right_password_for_each_kind_of_secret() {
    let check = |method, stored, outcome| {
        assert_eq!(
            with_password(method, stored, "pencil"),
            outcome,
            "{method:?}"
        );
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
        assert_eq!(
            with_password(method, stored, "pencil"),
            outcome,
            "{method:?}"
        );
    };
    for stored in [
        plain("Pencil"),
        md5("pen"),
        scram("pencils"),
        plain(""),
        None,
    ] {
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
        assert_eq!(
            with_password(method, md5("pencil"), &text),
            wrong_password()
        );
    }
}

#[test]
fn passwords_that_saslprep_changes_or_refuses_still_log_in() {
    let unprepared = "I\u{ad}X \u{a0}pä\u{2168}";
    let prepared = "IX  päIX";
    let (wrong, right) = (wrong_proof(), proved(prepared));
    assert_eq!(
        with_password(Method::Md5, scram(prepared), unprepared),
        right
    );
    assert_eq!(
        with_password(Method::Md5, scram("IX päIX"), unprepared),
        wrong
    );
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
        assert_eq!(
            log_in(to_server, server, secret, 3),
            outcome,
            "{to_server:?}"
        );
    };
    let cannot = |error| Outcome::ClientCannot(error);
    let mismatch = |name| cannot(AuthError::WrongPasswordType(name));

    check(
        plain("pencil"),
        Method::ScramSha256,
        Method::ScramSha256,
        proved("pencil"),
    );
    check(plain("pencil"), Method::Trust, Method::Md5, nothing());
    check(
        plain("pencil"),
        Method::Trust,
        Method::Plain,
        sent("pencil"),
    );
    check(md5("pencil"), Method::Md5, Method::Md5, nothing());
    check(
        md5("pencil"),
        Method::Md5,
        Method::Plain,
        mismatch("cleartext"),
    );
    check(
        md5("pencil"),
        Method::Md5,
        Method::ScramSha256,
        mismatch("SCRAM"),
    );
    check(
        md5("pencil"),
        Method::Plain,
        Method::ScramSha256,
        proved("pencil"),
    );
    check(
        scram("pencil"),
        Method::Md5,
        Method::ScramSha256,
        proved("pencil"),
    );
    check(scram("pencil"), Method::Md5, Method::Md5, mismatch("MD5"));
    check(scram("pencil"), Method::Md5, Method::Trust, nothing());
    check(scram("pencil"), Method::Plain, Method::Md5, nothing());
    check(
        scram("pencil"),
        Method::Trust,
        Method::ScramSha256,
        cannot(AuthError::ScramKeysMissing),
    );
    check(plain(""), Method::Trust, Method::Trust, nothing());
    check(
        plain(""),
        Method::Trust,
        Method::Plain,
        cannot(AuthError::NoPassword("cleartext")),
    );
    check(
        plain(""),
        Method::Trust,
        Method::ScramSha256,
        cannot(AuthError::NoPassword("SCRAM")),
    );
}

#[test]
fn a_server_that_only_stores_the_client_side_of_the_keys_is_not_believed() {
    let stolen = ScramSecret {
        server_key: ScramKey([1; 32]),
        ..scram_secret("pencil")
    };
    let outcome = with_password(
        Method::ScramSha256,
        credentials(Secret::Scram(stolen)),
        "pencil",
    );
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
    let error = ScramError::TooManyIterations {
        iterations: u32::MAX,
        limit,
    };
    assert_eq!(keys.scram_keys(b"salt", u32::MAX), Err(error));

    let password = Password::new("pencil");
    let once = stored.verifier("app", &password, &settings());
    assert_eq!(stored.verifier("app", &password, &settings()), once);
    let more = ScramSettings {
        iterations: ITERATIONS + 1,
        ..settings()
    };
    assert_eq!(
        stored.verifier("app", &password, &more).iterations,
        ITERATIONS + 1
    );
}

/// The server-first-message that a user is shown.
fn server_first(stored: Option<Arc<Credentials>>, user: &str, seed: u64) -> String {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut login = ClientLogin::new(Method::ScramSha256, user, stored, &settings(), rng);
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

fn initial(data: &[u8]) -> Vec<u8> {
    let length = i32::try_from(data.len()).unwrap().to_be_bytes();
    [b"SCRAM-SHA-256\0", &length[..], data].concat()
}

#[test]
fn malformed_first_messages_are_protocol_violations() {
    let check = |body: &[u8], message: &str| {
        let rng = &mut StdRng::seed_from_u64(5);
        let stored = scram("pencil");
        let mut login = ClientLogin::new(Method::ScramSha256, "app", stored, &settings(), rng);
        let mut out = BytesMut::new();
        let error = login.handle_password(body, &mut out).unwrap_err();
        let text = error.detail.as_deref().unwrap_or(&error.message);
        assert!(
            text.contains(message),
            "{text:?} for {:?}",
            String::from_utf8_lossy(body)
        );
        assert_eq!(error.code, "08P01");
        assert!(out.is_empty());
        // The login stays over.
        let again = login.handle_password(&initial(b"n,,n=,r=x"), &mut out);
        assert_eq!(again.unwrap_err().message, "unexpected password message");
    };
    let scram = |data: &str, message: &str| check(&initial(data.as_bytes()), message);
    check(b"", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256\0", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256\0\0\0\0", "malformed SASLInitialResponse");
    check(
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        "malformed SASLInitialResponse",
    );
    check(
        b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=",
        "malformed SASLInitialResponse",
    );
    check(
        b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=a",
        "malformed SASLInitialResponse",
    );
    check(
        b"SCRAM-SHA-256\0\0\0\0\x01n,",
        "malformed SASLInitialResponse",
    );
    check(
        b"SCRAM-SHA-256-PLUS\0\0\0\0\x00",
        "invalid SASL authentication mechanism",
    );
    check(&initial(b"n,,n=,r=a\0b"), "zero byte");
    check(&initial(b"n,,n=\xff,r=a"), "not UTF-8");
    scram("", "unexpected channel-binding flag");
    scram("x,,n=,r=a", "unexpected channel-binding flag");
    scram("ä,,n=,r=a", "unexpected channel-binding flag");
    scram("n", "comma expected");
    scram("n,", "comma expected");
    scram("nn,n=,r=a", "comma expected");
    scram("p=tls-unique,,n=,r=a", "requires SCRAM channel binding");
    scram("n,a=bob,n=,r=a", "authorization identity");
    scram("n,,m=x,n=,r=a", "unsupported SCRAM extension");
    scram("n,,", "another attribute expected");
    scram("n,,n", "\"=\" expected");
    scram("n,,n=", "another attribute expected");
    scram("n,,r=a,n=", "another attribute expected");
    scram("n,,n=,n=,r=a", "another attribute expected");
    scram("n,,n=,r=a,r=b", "garbage at the end");
    scram("n,,n=,r=a,n=", "garbage at the end");
    scram("n,,n=,r=a,", "garbage at the end");
    scram("n,,n=,r=a,ä=1", "invalid attribute name");
    scram("n,,n=,r=a,x", "\"=\" expected");
    scram("n,,n=,r=", "nonce is empty");
    scram("n,,n=,r=a b", "non-printable");
    scram("n,,n=,r=aä", "non-printable");
    scram(&format!("n,,n=,r={}", "a".repeat(1025)), "too long");
    scram(&format!("n,,n={},r=a", "u".repeat(4096)), "too long");
}

#[test]
fn both_gs2_headers_and_unknown_extensions_are_accepted() {
    for first in [
        "n,,n=,r=a",
        "y,,n=,r=a",
        "n,,n=bob,r=a,x=1,y=",
        "n,,n=*,r=a",
    ] {
        let rng = &mut StdRng::seed_from_u64(5);
        let mut login = ClientLogin::new(Method::Md5, "app", scram("p"), &settings(), rng);
        let step = login.handle_password(&initial(first.as_bytes()), &mut BytesMut::new());
        assert_eq!(step, Ok(Progress::Continue), "{first}");
    }
}

#[test]
fn malformed_final_messages_are_protocol_violations() {
    let check = |last: &str, code: &str, message: &str| {
        let rng = &mut StdRng::seed_from_u64(5);
        let stored = scram("pencil");
        let mut login = ClientLogin::new(Method::ScramSha256, "app", stored, &settings(), rng);
        let mut out = BytesMut::new();
        login
            .handle_password(&initial(b"n,,n=,r=a"), &mut out)
            .unwrap();
        let (_, body) = take(&mut out);
        let first = std::str::from_utf8(&body[4..]).unwrap();
        let nonce = &first[2..first.find(',').unwrap()];
        let last = last
            .replace("NONCE", nonce)
            .replace("PROOF", &"A".repeat(43));
        let error = login
            .handle_password(last.as_bytes(), &mut out)
            .unwrap_err();
        let text = error.detail.as_deref().unwrap_or("");
        assert_eq!(error.message, "SASL authentication failed");
        assert!(text.contains(message), "{text:?} for {last:?}");
        assert_eq!(error.code, code, "{last:?}");
        assert!(out.is_empty());
    };
    check("c=biws,r=NONCE,p=PROOF=", "28P01", "");
    check("c=biws,r=NONCE,x=1,p=PROOF=", "28P01", "");
    let check = |last: &str, message: &str| check(last, "08P01", message);
    check("", "another attribute expected");
    check("p=PROOF=", "another attribute expected");
    check("c=eSws,r=NONCE,p=PROOF=", "channel-binding attribute");
    check("c=,r=NONCE,p=PROOF=", "channel-binding attribute");
    check("r=NONCE,c=biws,p=PROOF=", "another attribute expected");
    check(
        "c=biws,c=biws,r=NONCE,p=PROOF=",
        "another attribute expected",
    );
    check(
        "c=biws,r=NONCE,r=NONCE,p=PROOF=",
        "another attribute expected",
    );
    check("c=biws,r=a,p=PROOF=", "nonce mismatch");
    check("c=biws,r=NONCEx,p=PROOF=", "nonce mismatch");
    check("c=biws,r=NONCE", "another attribute expected");
    check("c=biws,r=NONCE,", "another attribute expected");
    check("c=biws,r=NONCE,p=", "malformed proof");
    check("c=biws,r=NONCE,p=PROOF", "malformed proof");
    check("c=biws,r=NONCE,p=AAAA", "malformed proof");
    check("c=biws,r=NONCE,p=%", "malformed proof");
    check("c=biws,r=NONCE,p=PROOF=,p=PROOF=", "garbage at the end");
    check(&"x".repeat(5000), "too long");
}

#[test]
fn malformed_passwords_are_refused() {
    let check = |body: &[u8], code: &str| {
        for method in [Method::Plain, Method::Md5] {
            let rng = &mut StdRng::seed_from_u64(5);
            let mut login = ClientLogin::new(method, "app", plain("pencil"), &settings(), rng);
            let error = login
                .handle_password(body, &mut BytesMut::new())
                .unwrap_err();
            assert_eq!(error.code, code, "{body:?}");
        }
    };
    check(b"", "08P01");
    check(b"pencil", "08P01");
    check(b"pencil\0x", "08P01");
    check(b"pencil\0\0", "08P01");
    check(b"\0", "28P01");
    check(b"penci\0", "28P01");
    check(&[b"x".repeat(65_530), vec![0]].concat(), "28P01");
    check(&[b"x".repeat(65_531), vec![0]].concat(), "08P01");
}

/// What a server may say, as codes and data, and how the last message of it is taken.
fn check_server(messages: &[(u32, &[u8])], expected: Result<Progress<()>, AuthError>) {
    let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
    let mut login = ServerLogin::new("app", secret, &mut StdRng::seed_from_u64(6));
    let mut out = BytesMut::new();
    let mut last = None;
    for (code, data) in messages {
        assert!(
            !matches!(last, Some(Err(_))),
            "an error before the last message"
        );
        let body = [&code.to_be_bytes(), *data].concat();
        last = Some(login.handle_authentication(&body, &mut out));
    }
    assert_eq!(last, Some(expected), "{messages:?}");
}

#[test]
fn servers_that_break_the_order_are_left() {
    let list = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    let proceed = Ok(Progress::Continue);
    check_server(&[(0, b"")], Ok(Progress::Done(())));
    check_server(&[(3, b""), (0, b"")], Ok(Progress::Done(())));
    check_server(&[(10, list)], proceed);
    check_server(&[(10, b"SCRAM-SHA-256\0\0")], proceed);
    check_server(&[(10, list), (0, b"")], Err(AuthError::ServerNotProved));
    check_server(&[(10, list), (10, list)], Err(AuthError::Unexpected(10)));
    check_server(&[(10, list), (3, b"")], Err(AuthError::Unexpected(3)));
    check_server(&[(10, list), (12, b"v=")], Err(AuthError::Unexpected(12)));
    check_server(&[(11, b"r=a")], Err(AuthError::Unexpected(11)));
    check_server(&[(3, b""), (3, b"")], Err(AuthError::Unexpected(3)));
    check_server(&[(0, b""), (0, b"")], Err(AuthError::Unexpected(0)));
    check_server(&[(7, b"")], Err(AuthError::UnsupportedMethod(7)));
    let none = AuthError::UnsupportedMechanisms;
    check_server(&[(10, b"\0")], Err(none));
    check_server(&[(10, b"SCRAM-SHA-256-PLUS\0\0")], Err(none));
    let endless = AuthError::Malformed("list of mechanisms does not end");
    check_server(&[(10, b"")], Err(endless));
    check_server(&[(10, b"SCRAM-SHA-256\0")], Err(endless));
    check_server(&[(10, b"SCRAM-SHA-256")], Err(endless));
    check_server(
        &[(5, b"abc")],
        Err(AuthError::Malformed("md5 salt is not 4 bytes")),
    );
    check_server(
        &[(5, b"abcde")],
        Err(AuthError::Malformed("md5 salt is not 4 bytes")),
    );
    check_server(
        &[(3, b"x")],
        Err(AuthError::Malformed("garbage at the end")),
    );
    check_server(
        &[(0, b"x")],
        Err(AuthError::Malformed("garbage at the end")),
    );
}

#[test]
fn malformed_server_messages_are_refused() {
    let check = |text: &str, expected: ScramError| {
        let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
        let mut login = ServerLogin::new("app", secret, &mut StdRng::seed_from_u64(6));
        let mut out = BytesMut::new();
        let list = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
        login.handle_authentication(list, &mut out).unwrap();
        let (_, body) = take(&mut out);
        let nonce = std::str::from_utf8(body.rsplit(|&byte| byte == b'=').next().unwrap());
        let text = text.replace("NONCE", nonce.unwrap());
        let body = [b"\0\0\0\x0b", text.as_bytes()].concat();
        let error = login.handle_authentication(&body, &mut out).unwrap_err();
        assert_eq!(error, AuthError::Scram(expected), "{text}");
    };
    let malformed = ScramError::Malformed;
    let another = malformed("another attribute expected");
    let count = malformed("invalid iteration count");
    check("", another);
    check("r=NONCE", ScramError::NonceMismatch);
    check("r=xNONCE,s=AAAA,i=1", ScramError::NonceMismatch);
    check("r=NONCEx", another);
    check("r=NONCEx,i=1,s=AAAA", another);
    check("r=NONCEx,s=,i=1", malformed("invalid salt"));
    check("r=NONCEx,s=A,i=1", malformed("invalid salt"));
    check("r=NONCEx,s=AAAA", another);
    for wrong in ["", "0", "-1", "+1", "1x", "4294967296"] {
        check(&format!("r=NONCEx,s=AAAA,i={wrong}"), count);
    }
    check("r=NONCEx,s=AAAA,i=1,", malformed("garbage at the end"));
    check("r=NONCEx,s=AAAA,i=1,i=1", malformed("garbage at the end"));
    check("m=1,r=NONCEx,s=AAAA,i=1", ScramError::MandatoryExtension);
    let (iterations, limit) = (2_000_000_000, 1_000_000);
    let too_many = ScramError::TooManyIterations { iterations, limit };
    check("r=NONCEx,s=AAAA,i=2000000000", too_many);
    let huge = format!("r=NONCE{},s=AAAA,i=1", "x".repeat(1024));
    check(&huge, malformed("nonce is empty or too long"));
    check(&"x".repeat(4097), malformed("too long"));
}

#[test]
fn nothing_secret_is_printed() {
    for stored in [plain("pencil"), md5("pencil"), scram("pencil")] {
        let rng = &mut StdRng::seed_from_u64(8);
        let login = ClientLogin::new(Method::Plain, "app", stored.clone(), &settings(), rng);
        let server_secret = stored.as_ref().unwrap().server_secret(&Proof::default());
        let text = format!("{stored:?} {login:?} {server_secret:?}");
        let digest = super::md5::stored_digest(b"pencil", "app");
        assert!(!text.contains("pencil"), "{text}");
        assert!(
            !text.contains(std::str::from_utf8(&digest).unwrap()),
            "{text}"
        );
        assert!(text.contains("(..)"), "{text}");
    }
}

fn scram_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[a-z]=",
        "n,,|y,,|p=",
        ",",
        "biws|AAAA|=|1|ä",
        "SCRAM-SHA-256\0\0\0\0\x10",
        "[ -~]{0,9}",
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic_or_a_login(
        bodies in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..80), scram_like()], 1..4),
        first in any::<bool>(),
    ) {
        for method in [Method::Plain, Method::Md5, Method::ScramSha256] {
            let rng = &mut StdRng::seed_from_u64(9);
            let stored = scram("a password that no random bytes hit");
            let mut login = ClientLogin::new(method, "app", stored, &settings(), rng);
            let mut out = BytesMut::new();
            if first {
                let _ = login.handle_password(&initial(b"n,,n=,r=a"), &mut out);
            }
            for body in &bodies {
                let step = login.handle_password(body, &mut out);
                prop_assert!(!matches!(step, Ok(Progress::Done(_))));
                let step = login.handle_password(&initial(body), &mut out);
                prop_assert!(!matches!(step, Ok(Progress::Done(_))));
            }
        }
    }

    #[test]
    fn no_server_bytes_cause_a_panic_or_end_a_begun_scram(
        bodies in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..80), scram_like()], 1..4),
        code in 0u32..14,
    ) {
        let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
        let mut login = ServerLogin::new("app", secret, &mut StdRng::seed_from_u64(10));
        let mut out = BytesMut::new();
        login.handle_authentication(b"\0\0\0\x0aSCRAM-SHA-256\0\0", &mut out).unwrap();
        for body in &bodies {
            prop_assert!(login.handle_authentication(body, &mut out) != Ok(Progress::Done(())));
            let body = [&code.to_be_bytes(), &body[..]].concat();
            prop_assert!(login.handle_authentication(&body, &mut out) != Ok(Progress::Done(())));
        }
    }
}
