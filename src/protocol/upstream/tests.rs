//! What becomes of each client message.
//!
//! A script is the client's messages, `S` what the server answers (to nobody but the pipeline). A
//! message is its type byte and its fields, separated by colons: `P:s:q` is a Parse of statement `s`
//! with query `q`, `B:portal:s` a Bind, `DS:s` a Describe of a statement, `CP:p` a Close of a portal.
//! What the server gets is written the same way.

mod streams;

use super::*;
use crate::protocol::statements::undo;
use crate::wire::Header;
use crate::wire::frontend::{bind_names, object, parse};

/// One client message.
pub(super) fn message(word: &str) -> Vec<u8> {
    let fields: Vec<&[u8]> = word.split(':').map(str::as_bytes).collect();
    let (tag, body) = match fields[..] {
        [b"P", name, query] => (b'P', [name, b"\0", query, b"\0\0\0"].concat()),
        [b"P", name, query, types] => {
            (b'P', [name, b"\0", query, b"\0", &[0, types.len() as u8], &types.repeat(4)].concat())
        }
        [b"B", portal, name] => (b'B', [portal, b"\0", name, b"\0\0\0\0\0\0\0"].concat()),
        [b"DS" | b"DP" | b"CS" | b"CP", name] => (fields[0][0], [&fields[0][1..], name, b"\0"].concat()),
        [b"Q", query] => (b'Q', [query, b"\0"].concat()),
        [b"E"] => (b'E', b"\0\0\0\0\0".to_vec()),
        [tag] => (tag[0], Vec::new()),
        [tag, body] => (tag[0], body.to_vec()),
        _ => panic!("no message {word:?}"),
    };
    let mut bytes = Vec::new();
    write_header(tag, HEADER_LENGTH + body.len(), &mut bytes);
    bytes.extend(body);
    bytes
}

/// Whole messages as the words of a script.
fn words(bytes: &[u8]) -> String {
    let mut words = Vec::new();
    let mut rest = bytes;
    while let Some(header) = Header::read(rest).unwrap() {
        let (whole, after) = rest.split_at(header.length);
        let body = &whole[HEADER_LENGTH..];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        words.push(match header.tag {
            b'P' => {
                let view = parse(body).unwrap();
                let query = view.definition.split(|byte| *byte == 0).next().unwrap();
                format!("P:{}:{}", text(view.name), text(query))
            }
            b'B' => {
                let names = bind_names(body).unwrap();
                assert!(body.ends_with(b"\0\0\0\0\0\0\0"), "the rest of a Bind is untouched");
                format!("B:{}:{}", text(names.portal), text(names.statement))
            }
            b'D' | b'C' => {
                let (kind, name) = match object('?', body).unwrap() {
                    Object::Statement(name) => ("S", name),
                    Object::Portal(name) => ("P", name),
                };
                format!("{}{kind}:{}", char::from(header.tag), text(name))
            }
            b'Q' => format!("Q:{}", text(body.strip_suffix(b"\0").unwrap())),
            b'd' => format!("d:{}", text(body)),
            tag => char::from(tag).to_string(),
        });
        rest = after;
    }
    assert!(rest.is_empty(), "the server got half a message");
    words.join(" ")
}

/// A client, and the server that it has now.
pub(super) struct Pair {
    pub(super) pipeline: Pipeline,
    pub(super) server: ServerStatements,
    pub(super) client: Option<Box<ClientStatements>>,
    pub(super) unnamed_present: bool,
    pub(super) interner: Interner,
    pub(super) tracking: bool,
    pub(super) parameters: ParameterSet,
    pub(super) counts: StatementCounts,
    pub(super) body: Body,
    pub(super) carry: Vec<u8>,
    pub(super) sent: Vec<u8>,
}

impl Pair {
    pub(super) fn new(limit: usize) -> Self {
        Pair {
            pipeline: Pipeline::default(),
            server: ServerStatements::new(limit),
            client: None,
            unnamed_present: false,
            interner: Interner::default(),
            tracking: limit > 0,
            parameters: ParameterSet::default(),
            counts: StatementCounts::default(),
            body: Body::default(),
            carry: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// The client's next transaction runs on a server that has served another client.
    fn next_server(&mut self) {
        self.pipeline = Pipeline::default();
        self.server = ServerStatements::new(9);
        self.unnamed_present = false;
    }

    /// Brings bytes as a session does: what was left over stands in front of them.
    pub(super) fn say(&mut self, bytes: &[u8]) -> Result<Stop, Malformed> {
        let mut input = std::mem::take(&mut self.carry);
        input.extend_from_slice(bytes);
        let mut upstream = Upstream {
            pipeline: &mut self.pipeline,
            server: &mut self.server,
            client: &mut self.client,
            unnamed_present: &mut self.unnamed_present,
            interner: &self.interner,
            tracking: self.tracking,
            counts: &mut self.counts,
            rules: Rules::default(),
            state: &SessionState::default(),
            parameters: &self.parameters,
            listens: None,
            functions: &Functions::default(),
            definitions: 0,
        };
        let taken = upstream.take(&input, &mut self.body, &mut self.sent)?;
        assert!(taken.forward.end == taken.consumed || taken.forward.is_empty());
        self.sent.extend_from_slice(&input[taken.forward]);
        self.carry = input[taken.consumed..].to_vec();
        Ok(taken.stop)
    }

    /// The server answers, and what did not happen is undone.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> String {
        let mut seen = String::new();
        let mut at = 0;
        loop {
            let received = self.pipeline.receive(&bytes[at..]).unwrap();
            let mut forwarded = &bytes[at..][received.forward.clone()];
            while let Some(header) = Header::read(forwarded).unwrap() {
                seen.push(char::from(header.tag));
                forwarded = &forwarded[header.length..];
            }
            match received.stop {
                crate::protocol::Stop::NeedMore => break,
                crate::protocol::Stop::Synthesized(bytes) => seen.push(char::from(bytes[0])),
                crate::protocol::Stop::Duplicate(name) => seen += &String::from_utf8_lossy(&name),
                _ => {}
            }
            at += received.consumed;
            let undone = self.pipeline.take_undone();
            undo(undone, self.client.as_deref_mut(), &mut self.server);
        }
        seen
    }
}

/// Plays a script for a server that holds at most `limit` statements (0 is no tracking).
fn play(limit: usize, script: &str) -> Pair {
    let mut pair = Pair::new(limit);
    go_on(&mut pair, script);
    pair
}

fn go_on(pair: &mut Pair, script: &str) -> String {
    let mut seen = String::new();
    for step in script.split(';').map(str::trim).filter(|step| !step.is_empty()) {
        if step == "next server" {
            pair.next_server();
        } else if let Some(answers) = step.strip_prefix("S ") {
            let bytes: Vec<u8> =
                answers.split_whitespace().flat_map(crate::protocol::tests::message).collect();
            seen += &pair.hear(&bytes);
        } else {
            let bytes: Vec<u8> = step.split_whitespace().flat_map(message).collect();
            pair.say(&bytes).unwrap();
        }
    }
    seen
}

#[track_caller]
fn check_limit(limit: usize, script: &str, sent: &str) {
    assert_eq!(words(&play(limit, script).sent), sent, "{script}");
}

#[track_caller]
fn check(script: &str, sent: &str) {
    check_limit(9, script, sent);
}

#[test]
fn what_names_no_statement_goes_as_it_is() {
    for script in ["Q:select", "E S", "DP:p S", "CP:p S", "H", "d:1 d:2 c", "F", "S", "Q:a Q:b Q:c"] {
        check(script, script);
    }
}

#[test]
fn a_named_statement_gets_the_name_that_the_server_knows_it_by() {
    check("P:s:q DS:s B::s DP: E S", "P:PGWEIR_1:q DS:PGWEIR_1 B::PGWEIR_1 DP: E S");
    check("P:s:q B:portal:s E S", "P:PGWEIR_1:q B:portal:PGWEIR_1 E S");
    check("P:a_name_longer_than_ours:q B::a_name_longer_than_ours", "P:PGWEIR_1:q B::PGWEIR_1");
    check("Q:x; S C ZI; P:s:q S", "Q:x P:PGWEIR_1:q S");
}

#[test]
fn r10_the_same_query_is_another_statement_with_other_types() {
    let pair = play(9, "P:a:q P:b:q:1 P:c:q");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:q P:PGWEIR_2:q");
    assert_eq!(pair.counts, StatementCounts { client_parses: 3, hits: 1, server_parses: 2, binds: 0 });
}

#[test]
fn r13_a_name_that_is_in_use_waits_for_a_batch_that_may_not_bring_its_statement() {
    check(
        "P:s:q S; S 1 ZI; next server; B::unknown B::s S P:s:x; S E ZI; S",
        "P:PGWEIR_1:q S B::unknown P:PGWEIR_1:q B::PGWEIR_1 S P:PGWEIR_2: P:PGWEIR_2:x S",
    );
}

#[test]
fn r9_the_same_text_is_another_statement_where_its_literals_mean_something_else() {
    for (text, statements) in [("'1/2/2026'", 2), ("$$x$$", 2), ("$1", 1)] {
        let mut pair = play(9, &format!("P:a:{text} S; S 1 ZI"));
        pair.parameters = pair.parameters.with(1, "German");
        let parsed = if statements == 2 { "1 " } else { "" };
        go_on(&mut pair, &format!("B::a E S; S 2 C ZI; P:b:{text} B::b S; S {parsed}2 ZI"));
        assert_eq!(pair.counts.server_parses, statements, "{text}: what is there means what it meant");
        let sent = pair.sent.len();
        go_on(&mut pair, "next server; B::a B::b S");
        let number = statements;
        assert_eq!(
            words(&pair.sent[sent..]),
            format!("P:PGWEIR_{number}:{text} B::PGWEIR_{number} B::PGWEIR_{number} S")
        );
    }
}

#[test]
fn r2_a_server_that_lacks_a_statement_is_given_it_first() {
    check("P:s:q S; next server; B::s E S", "P:PGWEIR_1:q S P:PGWEIR_1:q B::PGWEIR_1 E S");
    let answered = "P:s:q S; next server; DS:s S; S 1 t n ZI; B::s S";
    check(answered, "P:PGWEIR_1:q S P:PGWEIR_1:q DS:PGWEIR_1 S B::PGWEIR_1 S");
    let mut pair = play(9, "P:s:q S; S 1 ZI; next server; B::s E S");
    assert_eq!(pair.counts, StatementCounts { client_parses: 1, hits: 0, server_parses: 2, binds: 1 });
    assert_eq!(go_on(&mut pair, "S 1 2 C ZI"), "2CZ", "its ParseComplete is not for the client");
}

#[test]
fn a_statement_that_the_server_has_is_not_prepared_again() {
    let mut pair = play(9, "P:a:q S; S 1 ZI");
    assert_eq!(go_on(&mut pair, "P:b:q B::b E S; S 2 C ZI"), "12CZ");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:q S B::PGWEIR_1 E S");
}

#[test]
fn a_parse_on_its_way_in_an_earlier_batch_is_waited_for() {
    let mut pair = play(9, "P:a:bad S");
    assert_eq!(pair.say(&message("P:b:bad")), Ok(Stop::Full));
    pair.hear(&crate::protocol::tests::message("E"));
    assert_eq!(pair.say(b""), Ok(Stop::NeedMore));
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:bad S P:PGWEIR_1:bad");
}

#[test]
fn r3_the_least_recently_used_statement_makes_room() {
    check_limit(
        2,
        "P:a:1 P:b:2 B::a P:c:3 B::c B::b S",
        "P:PGWEIR_1:1 P:PGWEIR_2:2 B::PGWEIR_1 CS:PGWEIR_2 P:PGWEIR_3:3 B::PGWEIR_3 \
         CS:PGWEIR_1 P:PGWEIR_2:2 B::PGWEIR_2 S",
    );
    let mut pair = play(2, "P:a:1 P:b:2 P:c:3 S");
    assert_eq!(go_on(&mut pair, "S 1 1 3 1 ZI"), "111Z", "our Close is not answered to the client");
}

#[test]
fn r4_an_eviction_that_was_skipped_did_not_happen() {
    let mut pair = play(2, "P:a:1 P:b:2 S; S 1 1 ZI; B::unknown P:c:3 S; S E ZI");
    pair.sent.clear();
    go_on(&mut pair, "B::b B::a S");
    assert_eq!(words(&pair.sent), "B::PGWEIR_2 B::PGWEIR_1 S");
}

#[test]
fn r4_a_statement_whose_eviction_may_yet_be_skipped_is_waited_for() {
    for needs_it in ["B::b", "DS:b", "P:again:2"] {
        let mut pair = play(2, "P:a:1 P:b:2 S; S 1 1 ZI; B::a B::unknown P:c:3 S");
        pair.sent.clear();
        assert_eq!(pair.say(&message(needs_it)), Ok(Stop::Full), "{needs_it}");
        go_on(&mut pair, "S 2 E ZI; ; S");
        let expected = needs_it.replace(":b", ":PGWEIR_2").replace("P:again:2", "");
        assert_eq!(words(&pair.sent), format!("{expected} S").trim_start(), "the server has it still");
    }
}

#[test]
fn r5_a_close_is_answered_here_behind_the_answers_before_it() {
    check("P:s:q CS:s S", "P:PGWEIR_1:q S");
    let mut pair = play(9, "P:s:q CS:s S");
    assert_eq!(go_on(&mut pair, "S 1 ZI"), "13Z");
    assert_eq!(go_on(&mut pair, "P:s:q CS:s P:s:q CS:s S; S ZI"), "1313Z");
}

#[test]
fn p12_a_close_of_an_unknown_name_goes_to_the_server() {
    check("CS:s S", "CS:s S");
    check("P:t:q CS:s S", "P:PGWEIR_1:q CS:s S");
}

#[test]
fn p13_an_unknown_name_goes_to_the_server_which_refuses_it() {
    check("DS:s B::s S", "DS:s B::s S");
    check("P:s:q CS:s B::s S", "P:PGWEIR_1:q B::s S");
}

#[test]
fn r6_a_parse_that_failed_is_forgotten() {
    let mut pair = play(9, "P:s:bad S; S E ZI");
    go_on(&mut pair, "P:s:good B::s S");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:bad S P:PGWEIR_2:good B::PGWEIR_2 S");
    let mut again = play(9, "P:s:bad S; S E ZI");
    go_on(&mut again, "P:s:bad B::s S");
    assert_eq!(words(&again.sent), "P:PGWEIR_1:bad S P:PGWEIR_1:bad B::PGWEIR_1 S");
}

#[test]
fn r6_a_second_parse_of_a_name_waits_until_the_first_has_not_failed() {
    let mut pair = play(9, "P:s:bad S P:s:good B::s S");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:bad S");
    assert_eq!(go_on(&mut pair, "S E ZI; ; P:t:other"), "EZ");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:bad S P:PGWEIR_2:good B::PGWEIR_2 S P:PGWEIR_3:other");
}

#[test]
fn r12_a_portal_and_a_statement_of_the_same_name_are_two() {
    check("P:s:q B:s:s CP:s DP:s B::s S", "P:PGWEIR_1:q B:s:PGWEIR_1 CP:s DP:s B::PGWEIR_1 S");
}

#[test]
fn r13_a_closed_name_is_free_and_one_in_use_is_refused() {
    check("P:s:1 CS:s P:s:2 B::s S", "P:PGWEIR_1:1 P:PGWEIR_2:2 B::PGWEIR_2 S");
    let mut pair = play(9, "P:s:1 S; S 1 ZI; P:s:2 B::s E S");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:1 S P:PGWEIR_1:2 B::PGWEIR_1 E S");
    assert_eq!(go_on(&mut pair, "S Eduplicate ZI"), "sZ");
    pair.sent.clear();
    go_on(&mut pair, "B::s S; next server; P:s:2 S");
    assert_eq!(words(&pair.sent), "B::PGWEIR_1 S P:PGWEIR_2: P:PGWEIR_2:2 S");
}

#[test]
fn a_close_that_was_skipped_leaves_the_name() {
    let mut pair = play(9, "P:s:q S; S 1 ZI; B::unknown CS:s S; S E ZI");
    pair.sent.clear();
    go_on(&mut pair, "B::s S");
    assert_eq!(words(&pair.sent), "B::PGWEIR_1 S");
}

#[test]
fn what_an_earlier_batch_does_to_a_name_is_waited_for() {
    for behind in ["CS:s P:s:r", "B::s E", "DS:s"] {
        // The Close may yet be skipped, and is.
        let mut pair = play(9, "P:s:q S; S 1 ZI; B::unknown CS:s S");
        pair.sent.clear();
        go_on(&mut pair, behind);
        assert_eq!(words(&pair.sent), "", "{behind}");
        go_on(&mut pair, "S E ZI; S");
        let sent = words(&pair.sent);
        let expected = behind.replace("CS:s P:s:r", "P:PGWEIR_2:r").replace(":s", ":PGWEIR_1");
        assert_eq!(sent, format!("{expected} S"), "{behind}");
    }
    // The same with a name that would be another's then, whose statement the server has.
    let mut pair = play(9, "P:s:q P:t:r S; S 1 1 ZI; B::unknown CS:s P:s:r S B::s S");
    pair.sent.clear();
    go_on(&mut pair, "S E ZI; S");
    assert_eq!(words(&pair.sent), "B::PGWEIR_1 S S");
}

#[test]
fn a_parse_in_a_failed_transaction_is_answered_by_the_server() {
    let mut pair = play(9, "P:s:q S; S 1 ZI; B::unknown S; S E ZE");
    pair.sent.clear();
    assert_eq!(go_on(&mut pair, "P:t:q S; S 3 E ZE"), "EZ");
    assert_eq!(words(&pair.sent), "CS:PGWEIR_1 P:PGWEIR_1:q S");
    pair.sent.clear();
    assert_eq!(go_on(&mut pair, "P:t:q S; S 1 ZE"), "1Z", "as of ROLLBACK");
    assert_eq!(words(&pair.sent), "P:PGWEIR_1:q S");
    // In a transaction, whether it has failed is not known before the answers are there.
    let mut pair = play(9, "P:s:q S; S 1 ZT; E S");
    pair.sent.clear();
    go_on(&mut pair, "P:t:q S");
    assert_eq!(words(&pair.sent), "");
    assert_eq!(go_on(&mut pair, "S C ZT; H; S ZT"), "CZ1Z");
    let mut pair = play(9, "P:s:q P:b:Begin S; S 1 1 ZI; B::b E S");
    pair.sent.clear();
    go_on(&mut pair, "P:t:q S");
    assert_eq!(words(&pair.sent), "");
    go_on(&mut pair, "S 2 C ZE; H");
    assert_eq!(words(&pair.sent), "CS:PGWEIR_1 P:PGWEIR_1:q S H");
}

#[test]
fn r14_a_deallocate_that_comes_in_pieces_gets_the_servers_name_too() {
    let bytes = message("Q:DEALLOCATE s");
    for cut in 5..bytes.len() {
        let mut pair = play(9, "P:s:q S; S 1 ZI");
        pair.sent.clear();
        assert_eq!(pair.say(&bytes[..cut]), Ok(Stop::NeedMore));
        pair.say(&bytes[cut..]).unwrap();
        assert_eq!(words(&pair.sent), "Q:DEALLOCATE \"PGWEIR_1\"");
    }
}

#[test]
fn r15_after_discard_all_the_names_are_gone() {
    let mut pair = play(9, "P:s:q S; S 1 ZI");
    // What a session does when it is told that the statements were dropped.
    pair.server.clear();
    pair.client.as_mut().unwrap().drop_all();
    pair.sent.clear();
    go_on(&mut pair, "B::s S P:s:q S");
    assert_eq!(words(&pair.sent), "B::s S P:PGWEIR_1:q S");
}

#[test]
fn r11_the_unnamed_statement_is_the_clients_own_on_every_server() {
    check("P::q B:: E S", "P::q B:: E S");
    check("P::q DS: S; S 1 t n ZI; B:: E S", "P::q DS: S B:: E S");
    check("P::q S; next server; B:: E S", "P::q S P::q B:: E S");
    check("P::q S; next server; DS: B:: S", "P::q S P::q DS: B:: S");
    check("P::1 S P::2 S; next server; B:: S", "P::1 S P::2 S P::2 B:: S");
}

#[test]
fn r11_a_bind_of_no_unnamed_statement_does_not_find_another_clients() {
    check("B:: E S", "CS: B:: E S");
    check("P::q S Q:drops; next server; B:: S", "P::q S Q:drops CS: B:: S");
    check("P::q CS: S; next server; B:: S", "P::q CS: S CS: B:: S");
    check("P::bad S; S E ZI; next server; B:: S", "P::bad S CS: B:: S");
}

#[test]
fn r11_what_was_skipped_leaves_another_clients_unnamed_statement_at_the_server() {
    check("B::unknown P::q S; S E ZI; B:: S", "B::unknown P::q S CS: B:: S");
    check("B::unknown Q:q S; S E ZI; B:: S", "B::unknown Q:q S CS: B:: S");
    check("B::unknown B:: S; S E ZI; B:: S", "B::unknown CS: B:: S CS: B:: S");
    check("P::q S; next server; B::no B:: S; S E ZI; B:: S", "P::q S B::no P::q B:: S P::q B:: S");
    check("B::no P::1 S P::2 S; S E ZI 1 ZI; B:: S", "B::no P::1 S P::2 S P::2 B:: S");
}

#[test]
fn while_the_server_skips_only_sync_is_sent() {
    check("B::unknown; S E; P:s:q B::s Q:x d:1 c F H S", "B::unknown S");
    check("B::unknown; S E; P:s:q S P:s:q B::s S", "B::unknown S P:PGWEIR_1:q B::PGWEIR_1 S");
    check("B::unknown; S E; Q:1 S Q:2", "B::unknown S Q:2");
}

#[test]
fn without_tracking_everything_goes_as_it_is() {
    let script = "P:s:q DS:s B::s E CS:s S P::q B:: P:s:q S";
    check_limit(0, script, script);
    assert_eq!(play(0, script).counts, StatementCounts::default());
}

#[test]
fn terminate_ends_it_and_a_password_is_no_message_now() {
    let mut pair = Pair::new(9);
    assert_eq!(pair.say(&[message("Q:1"), message("X"), message("Q:2")].concat()), Ok(Stop::Terminate));
    assert_eq!(words(&pair.sent), "Q:1");
    assert_eq!(Pair::new(9).say(&message("p")), Err(Malformed::Tag { tag: 'p' }));
    assert_eq!(Pair::new(9).say(&message("Z")), Err(Malformed::Tag { tag: 'Z' }));
    assert_eq!(Pair::new(9).say(b"Q\0\0\0\x03"), Err(Malformed::Length { tag: 'Q', length: 3 }));
}

#[test]
fn with_too_many_answers_owed_no_more_is_taken() {
    let mut pair = Pair::new(9);
    let one = message("E");
    assert_eq!(pair.say(&one.repeat(super::super::REQUESTS_MAX + 1)), Ok(Stop::Full));
    assert_eq!(pair.carry, one);
    assert_eq!(pair.sent.len(), one.len() * super::super::REQUESTS_MAX);
}

#[test]
fn fields_that_do_not_fit_are_refused() {
    for (tag, body) in [
        ('P', &b"s\0q"[..]),
        ('P', b"s\0q\0\0\x01"),
        ('B', b"portal"),
        ('B', b"portal\0s"),
        ('D', b"Xs\0"),
        ('C', b"Ss"),
        ('D', b""),
        ('P', b""),
        ('B', b""),
    ] {
        let mut bytes = Vec::new();
        write_header(tag as u8, HEADER_LENGTH + body.len(), &mut bytes);
        bytes.extend_from_slice(body);
        let refused = Pair::new(9).say(&bytes);
        assert!(
            matches!(refused, Err(Malformed::Field { tag: t, .. }) if t == tag),
            "{tag} {body:?}: {refused:?}"
        );
    }
}
