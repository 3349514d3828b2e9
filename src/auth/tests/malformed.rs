//! Every message that a login must refuse, from a client and from a server.

use std::sync::Arc;

use bytes::BytesMut;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{plain, scram, settings, take};
use crate::auth::*;

fn initial(data: &[u8]) -> Vec<u8> {
    let length = i32::try_from(data.len()).unwrap().to_be_bytes();
    [b"SCRAM-SHA-256\0", &length[..], data].concat()
}

#[test]
fn malformed_first_messages_are_protocol_violations() {
    let check = |body: &[u8], message: &str| {
        let rng = &mut StdRng::seed_from_u64(5);
        let stored = scram("pencil");
        let mut login = ClientLogin::new(Method::ScramSha256, "app", stored, None, &settings(), rng);
        let mut out = BytesMut::new();
        let error = login.handle_password(body, &mut out).unwrap_err();
        let text = error.detail.as_deref().unwrap_or(&error.message);
        assert!(text.contains(message), "{text:?} for {:?}", String::from_utf8_lossy(body));
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
    check(b"SCRAM-SHA-256\0\xff\xff\xff\xff", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=a", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256\0\0\0\0\x01n,", "malformed SASLInitialResponse");
    check(b"SCRAM-SHA-256-PLUS\0\0\0\0\x00", "invalid SASL authentication mechanism");
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
fn a_first_message_must_say_what_was_agreed_on_about_the_channel() {
    let check = |mechanism: &str, header: &str, code: &str, message: &str| {
        let rng = &mut StdRng::seed_from_u64(5);
        let channel = Some(ChannelBinding(b"hash".as_slice().into()));
        let mut login = ClientLogin::new(Method::ScramSha256, "app", scram("p"), channel, &settings(), rng);
        let first = format!("{header}n=,r=a");
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        let body = [mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat();
        let error = login.handle_password(&body, &mut BytesMut::new()).map(|_| ()).unwrap_err();
        assert_eq!(error.code, code, "{mechanism} {header}");
        let text = format!("{} {}", error.message, error.detail.as_deref().unwrap_or_default());
        assert!(text.contains(message), "{text:?} for {mechanism} {header}");
    };
    let (plain, plus) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS");
    check(plain, "y,,", "28000", "SCRAM channel binding negotiation error");
    check(plain, "p=tls-server-end-point,,", "08P01", "requires SCRAM channel binding");
    check(plus, "n,,", "08P01", "no channel binding data");
    check(plus, "y,,", "08P01", "no channel binding data");
    check(plus, "p=tls-unique,,", "08P01", "unsupported SCRAM channel-binding type");
    check(plus, "p=,,", "08P01", "unsupported SCRAM channel-binding type");
    check(plus, "p,,", "08P01", "unexpected channel-binding flag");
    check(plus, "p=tls-server-end-point,a=bob,", "08P01", "authorization identity");
    check(plus, "p=tls-server-end-point,", "08P01", "comma expected");
    check("SCRAM-SHA-1-PLUS", "n,,", "08P01", "invalid SASL authentication mechanism");
}

#[test]
fn both_gs2_headers_and_unknown_extensions_are_accepted() {
    for first in ["n,,n=,r=a", "y,,n=,r=a", "n,,n=bob,r=a,x=1,y=", "n,,n=*,r=a"] {
        let rng = &mut StdRng::seed_from_u64(5);
        let mut login = ClientLogin::new(Method::Md5, "app", scram("p"), None, &settings(), rng);
        let step = login.handle_password(&initial(first.as_bytes()), &mut BytesMut::new());
        assert_eq!(step, Ok(Progress::Continue), "{first}");
    }
}

#[test]
fn malformed_final_messages_are_protocol_violations() {
    let check = |last: &str, code: &str, message: &str| {
        let rng = &mut StdRng::seed_from_u64(5);
        let stored = scram("pencil");
        let mut login = ClientLogin::new(Method::ScramSha256, "app", stored, None, &settings(), rng);
        let mut out = BytesMut::new();
        login.handle_password(&initial(b"n,,n=,r=a"), &mut out).unwrap();
        let (_, body) = take(&mut out);
        let first = std::str::from_utf8(&body[4..]).unwrap();
        let nonce = &first[2..first.find(',').unwrap()];
        let last = last.replace("NONCE", nonce).replace("PROOF", &"A".repeat(43));
        let error = login.handle_password(last.as_bytes(), &mut out).unwrap_err();
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
    check("c=biws,c=biws,r=NONCE,p=PROOF=", "another attribute expected");
    check("c=biws,r=NONCE,r=NONCE,p=PROOF=", "another attribute expected");
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
            let mut login = ClientLogin::new(method, "app", plain("pencil"), None, &settings(), rng);
            let error = login.handle_password(body, &mut BytesMut::new()).unwrap_err();
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
    let mut login = ServerLogin::new("app", secret, None, &mut StdRng::seed_from_u64(6));
    let mut out = BytesMut::new();
    let mut last = None;
    for (code, data) in messages {
        assert!(!matches!(last, Some(Err(_))), "an error before the last message");
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
    check_server(&[(10, b"SCRAM-SHA-256-PLUS\0\0")], Err(none)); // without TLS
    let endless = AuthError::Malformed("list of mechanisms does not end");
    check_server(&[(10, b"")], Err(endless));
    check_server(&[(10, b"SCRAM-SHA-256\0")], Err(endless));
    check_server(&[(10, b"SCRAM-SHA-256")], Err(endless));
    check_server(&[(5, b"abc")], Err(AuthError::Malformed("md5 salt is not 4 bytes")));
    check_server(&[(5, b"abcde")], Err(AuthError::Malformed("md5 salt is not 4 bytes")));
    check_server(&[(3, b"x")], Err(AuthError::Malformed("garbage at the end")));
    check_server(&[(0, b"x")], Err(AuthError::Malformed("garbage at the end")));
}

#[test]
fn a_server_is_told_which_binding_we_chose_and_why() {
    let check = |channel: bool, list: &[u8], expected: &str| {
        let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
        let channel = channel.then(|| ChannelBinding(b"hash".as_slice().into()));
        let mut login = ServerLogin::new("app", secret, channel, &mut StdRng::seed_from_u64(6));
        let mut out = BytesMut::new();
        login.handle_authentication(&[b"\0\0\0\x0a", list].concat(), &mut out).unwrap();
        let (_, body) = take(&mut out);
        let end = body.iter().position(|&byte| byte == 0).unwrap();
        let (mechanism, first) = (&body[..end], &body[end + 5..]);
        let header = first.windows(2).position(|pair| pair == b",,").unwrap();
        let said = [mechanism, b" ", &first[..header]].concat();
        assert_eq!(String::from_utf8(said).unwrap(), expected);
    };
    let (both, plain) = (b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0", b"SCRAM-SHA-256\0\0");
    check(true, both, "SCRAM-SHA-256-PLUS p=tls-server-end-point");
    check(true, b"SCRAM-SHA-256-PLUS\0\0", "SCRAM-SHA-256-PLUS p=tls-server-end-point");
    check(true, plain, "SCRAM-SHA-256 y");
    check(false, both, "SCRAM-SHA-256 n");
    check(false, plain, "SCRAM-SHA-256 n");
}

#[test]
fn malformed_server_messages_are_refused() {
    let check = |text: &str, expected: ScramError| {
        let secret = Arc::new(ServerSecret::plain(Password::new("pencil")));
        let mut login = ServerLogin::new("app", secret, None, &mut StdRng::seed_from_u64(6));
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
            let mut login = ClientLogin::new(method, "app", stored, None, &settings(), rng);
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
        let mut login = ServerLogin::new("app", secret, None, &mut StdRng::seed_from_u64(10));
        let mut out = BytesMut::new();
        login.handle_authentication(b"\0\0\0\x0aSCRAM-SHA-256\0\0", &mut out).unwrap();
        for body in &bodies {
            prop_assert!(login.handle_authentication(body, &mut out) != Ok(Progress::Done(())));
            let body = [&code.to_be_bytes(), &body[..]].concat();
            prop_assert!(login.handle_authentication(&body, &mut out) != Ok(Progress::Done(())));
        }
    }
}
