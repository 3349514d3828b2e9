//! Messages that come in pieces, and huge ones.

use super::{Pair, message, words};
use crate::protocol::upstream::{PARSE_MAX, StatementCounts, Stop, UNNAMED_MAX, whole_length};
use crate::wire::Malformed;
use crate::wire::frontend::NAMES_MAX;
use proptest::prelude::*;

const KIB: usize = 1024;

/// Brings a message in pieces, and returns the size of the largest rest that had to be kept.
fn say_in_pieces(pair: &mut Pair, bytes: &[u8], piece: usize) -> Result<usize, Malformed> {
    let mut kept = 0;
    for piece in bytes.chunks(piece) {
        pair.say(piece)?;
        kept = kept.max(pair.carry.len());
    }
    Ok(kept)
}

#[test]
fn a_message_that_is_not_looked_into_streams() {
    for word in ["Q", "d"] {
        let bytes = message(&format!("{word}:{}", "x".repeat(1000 * KIB)));
        let mut pair = Pair::new(9);
        assert!(say_in_pieces(&mut pair, &bytes, 1000).unwrap() < 5, "{word}");
        assert!(pair.sent == bytes, "{word}");
    }
}

#[test]
fn r16_a_huge_bind_streams_behind_its_names() {
    let mut pair = Pair::new(9);
    pair.say(&message("P:s:q")).unwrap();
    pair.sent.clear();
    let mut bytes = message("B:portal:s");
    bytes.extend(vec![7; 1000 * KIB]);
    let length = bytes.len() as u32 - 1;
    bytes[1..5].copy_from_slice(&length.to_be_bytes());
    assert!(say_in_pieces(&mut pair, &bytes, 7).unwrap() < 20);
    assert_eq!(pair.sent[1..5], (length + 7).to_be_bytes());
    assert!(pair.sent[5..].starts_with(b"portal\0PGWEIR_1\0\0\0"));
    assert_eq!(pair.sent.len(), bytes.len() + 7);
    assert!(pair.body.is_over());
}

#[test]
fn r16_a_huge_unnamed_parse_streams_however_it_is_cut() {
    let bytes = message(&format!("P::{}", "x".repeat(PARSE_MAX + KIB)));
    for first in [5, 6, 100, bytes.len()] {
        let mut pair = Pair::new(9);
        pair.say(&bytes[..first]).unwrap();
        for piece in bytes[first..].chunks(4000 * KIB) {
            pair.say(piece).unwrap();
        }
        assert!(pair.sent == bytes, "first piece of {first} bytes");
        assert!(pair.unnamed_present);
    }
}

#[test]
fn an_unnamed_statement_too_large_to_remember_is_gone_with_its_server() {
    let mut pair = Pair::new(9);
    pair.say(&message("P::small")).unwrap();
    pair.say(&message(&format!("P::{}", "x".repeat(UNNAMED_MAX)))).unwrap();
    pair.sent.clear();
    pair.unnamed_present = false;
    pair.say(&message("B::")).unwrap();
    assert_eq!(words(&pair.sent), "CS: B::");
}

#[test]
fn r16_a_named_parse_is_held_whole_up_to_its_limit() {
    let bytes = message(&format!("P:s:{}", "x".repeat(PARSE_MAX - 10)));
    assert_eq!(bytes.len(), PARSE_MAX);
    let mut pair = Pair::new(9);
    pair.say(&bytes[..1000]).unwrap();
    assert_eq!(pair.sent, b"");
    pair.say(&bytes[1000..]).unwrap();
    assert_eq!(pair.sent.len(), PARSE_MAX + 7);
}

/// The same bytes are taken or refused, whatever pieces they come in.
#[track_caller]
fn check_too_large(bytes: &[u8], tag: char, limit: usize) {
    for first in [6, 100, bytes.len()] {
        let mut pair = Pair::new(9);
        let refused = pair.say(&bytes[..first]).and_then(|_| pair.say(&bytes[first..]));
        let is_too_large =
            matches!(refused, Err(Malformed::TooLarge { tag: t, limit: l, .. }) if (t, l) == (tag, limit));
        assert!(is_too_large, "first piece of {first} bytes: {refused:?}");
    }
}

#[test]
fn what_must_be_whole_and_is_larger_than_its_limit_is_refused() {
    let name = "n".repeat(NAMES_MAX);
    check_too_large(&message(&format!("P:s:{}", "x".repeat(PARSE_MAX))), 'P', PARSE_MAX);
    check_too_large(&message(&format!("B::{name}")), 'B', NAMES_MAX);
    check_too_large(&message(&format!("DS:{name}")), 'D', NAMES_MAX);
    check_too_large(&message(&format!("CP:{name}")), 'C', NAMES_MAX);
    // PostgreSQL's own limit, the header included, for what would get there as it is.
    let name = "n".repeat(10_000);
    for (word, tag) in [("DP", 'D'), ("DS", 'D'), ("CP", 'C'), ("CS", 'C')] {
        check_too_large(&message(&format!("{word}:{name}")), tag, 10_005);
    }
}

#[test]
fn only_what_must_be_whole_is_waited_for() {
    let waited_for = |parse: &str, size, have| {
        let bytes = message(&format!("{parse}:{}", "x".repeat(size)));
        (whole_length(&bytes[..have], true), bytes.len())
    };
    for (parse, size, have, expected) in [
        ("P:", 100, 5, None),
        ("P:s", PARSE_MAX - 10, 5, Some(6)),
        ("P:s", PARSE_MAX - 10, 6, None),
        ("P:s", PARSE_MAX, 6, Some(0)),
        ("P:", PARSE_MAX, 5, Some(6)),
        ("P:", PARSE_MAX, 6, Some(0)),
    ] {
        let (found, whole) = waited_for(parse, size, have);
        assert_eq!(found, expected.unwrap_or(whole), "{have} bytes of {parse} with {size} bytes of text");
    }
}

#[test]
fn the_name_of_a_statement_may_be_longer_than_postgresql_would_take_it() {
    let name = "n".repeat(16 * KIB);
    for piece in [7, 100 * KIB] {
        let mut pair = Pair::new(9);
        for word in ["P:n:q", "DS:n", "B::n", "CS:n"] {
            let bytes = message(&word.replace('n', &name));
            say_in_pieces(&mut pair, &bytes, piece).unwrap();
        }
        assert_eq!(words(&pair.sent), "P:PGWEIR_1:q DS:PGWEIR_1 B::PGWEIR_1");
    }
}

#[test]
fn a_message_that_the_server_would_skip_is_dropped_in_pieces_too() {
    let mut pair = Pair::new(9);
    pair.say(&message("B::unknown")).unwrap();
    pair.hear(&crate::protocol::tests::message("E"));
    pair.sent.clear();
    let bytes = [message("Q:dropped"), message("d:dropped"), message("S"), message("Q:kept")].concat();
    say_in_pieces(&mut pair, &bytes, 3).unwrap();
    assert_eq!(words(&pair.sent), "S Q:kept");
}

/// Messages that a client may send, with few names, so that they meet.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let name = || prop::sample::select(vec!["", "a", "b", "c"]);
    prop_oneof![
        (name(), 0..4u8).prop_map(|(name, query)| message(&format!("P:{name}:query {query}"))),
        (name(), name()).prop_map(|(portal, name)| message(&format!("B:{portal}:{name}"))),
        name().prop_map(|name| message(&format!("DS:{name}"))),
        name().prop_map(|name| message(&format!("CS:{name}"))),
        name().prop_map(|name| message(&format!("DP:{name}"))),
        Just(message("E")),
        Just(message("H")),
        Just(message("S")),
        "[a-z]{0,40}".prop_map(|text| message(&format!("Q:{text}"))),
        "[a-z]{0,40}".prop_map(|text| message(&format!("d:{text}"))),
        Just(message("c")),
    ]
}

fn say_at_cuts(bytes: &[u8], cuts: &[prop::sample::Index]) -> (Vec<u8>, usize, StatementCounts) {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut pair = Pair::new(2);
    let mut at = 0;
    for cut in cuts {
        pair.say(&bytes[at..cut]).unwrap();
        at = cut;
    }
    (pair.sent, pair.pipeline.owed(), pair.counts)
}

proptest! {
    #[test]
    fn any_cut_of_the_clients_bytes_gives_the_same(
        messages in prop::collection::vec(any_message(), 0..30),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let bytes = messages.concat();
        prop_assert_eq!(say_at_cuts(&bytes, &cuts), say_at_cuts(&bytes, &[]));
    }

    #[test]
    fn any_bytes_from_a_client_are_taken_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        tracking: bool,
    ) {
        let mut pair = Pair::new(2);
        pair.tracking = tracking;
        let _ = pair.say(&bytes);
    }

    #[test]
    fn bytes_with_good_headers_are_taken_or_refused(
        messages in prop::collection::vec(
            (prop::sample::select(b"BCdcfDEFHPQSX".to_vec()), prop::collection::vec(0..4u8, 0..20)), 0..20),
        tracking: bool,
    ) {
        let mut pair = Pair::new(2);
        pair.tracking = tracking;
        for (tag, body) in messages {
            let mut bytes = vec![tag, 0, 0, 0, body.len() as u8 + 4];
            bytes.extend(body);
            match pair.say(&bytes) {
                Ok(Stop::NeedMore | Stop::Full) => {}
                Ok(Stop::Terminate | Stop::Disallowed | Stop::OthersSequences) | Err(_) => break,
            }
        }
    }
}
