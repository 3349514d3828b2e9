//! The rules as a table: requests and answers in; what the client sees and who has the server out.
//!
//! `C` are requests written to the server, `S` is what the server sends: the letters are the type
//! bytes of the manual's "Message Formats", `ZI ZT ZE` are ReadyForQuery with its status. A request
//! with `own:` is ours (its answer is discarded), one with `made:` is answered here, `new:Parse`
//! makes the client's statement `s` and `dup:Parse` uses its name again.

mod conversation;

use super::answers::INSPECT_MAX;
use super::*;
use crate::wire::{HEADER_LENGTH, Header};
use End::{Broken, Idle, InDoubt, Leased};

/// Who has the server when the script ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It may go to another client.
    Idle,
    /// It is the client's, and this many answers are owed.
    Leased(usize),
    /// It is the client's, and nobody knows how many ReadyForQuery will come.
    InDoubt,
    /// It is out of step, and closed.
    Broken,
}

/// One message of a server, by its letter.
pub(super) fn message(word: &str) -> Vec<u8> {
    let (tag, rest) = word.split_at(1);
    let body = match (tag, rest) {
        ("Z", status) => status.as_bytes(),
        ("C", "") => b"SELECT 1\0",
        ("C", "discard") => b"DISCARD ALL\0",
        ("C", "deallocate") => b"DEALLOCATE ALL\0",
        ("E", "") => b"SERROR\0C22012\0Mdivision by zero\0\0",
        ("E", "duplicate") => b"SERROR\0C42P05\0Mprepared statement \"PGWEIR_1\" already exists\0\0",
        ("S", "") => b"TimeZone\0UTC\0",
        ("D", "") => b"\0\x01\0\0\0\x011",
        _ => b"",
    };
    let mut bytes = tag.as_bytes().to_vec();
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Bytes as the letters of a script.
fn letters(bytes: &[u8]) -> String {
    let mut words = Vec::new();
    let mut rest = bytes;
    while let Some(header) = Header::read(rest).unwrap() {
        let (whole, after) = rest.split_at(header.length);
        let status = if header.tag == b'Z' { &whole[HEADER_LENGTH..] } else { b"" };
        words.push(format!("{}{}", char::from(header.tag), String::from_utf8_lossy(status)));
        rest = after;
    }
    assert!(rest.is_empty(), "the client got half a message");
    words.join(" ")
}

/// A pipeline, and what its client and its owner were told.
#[derive(Default)]
pub(super) struct Talk {
    pub(super) pipeline: Pipeline,
    pub(super) seen: Vec<u8>,
    carry: Vec<u8>,
    notes: Vec<&'static str>,
}

impl Talk {
    fn ask(&mut self, word: &str) {
        let (prefix, name) = word.split_once(':').unwrap_or(("", word));
        let kind = match name {
            "Query" => RequestKind::Query,
            "Parse" => RequestKind::Parse,
            "Bind" => RequestKind::Bind,
            "Describe" => RequestKind::Describe,
            "Execute" => RequestKind::Execute,
            "Close" => RequestKind::Close,
            "Sync" => RequestKind::Sync,
            "FunctionCall" => RequestKind::FunctionCall,
            "CopyDone" => RequestKind::CopyEnd,
            "Flush" => return,
            "doubt" => return assert!(self.pipeline.ask_in_doubt().is_some(), "it is quiet and in doubt"),
            other => panic!("no request {other:?}"),
        };
        let name = Box::from(*b"s");
        match prefix {
            "" => self.pipeline.push(kind, Answer::Forward),
            "own" => self.pipeline.push(kind, Answer::Discard),
            "made" => self.pipeline.push(kind, Answer::Synthesize),
            "new" => {
                let change = Change::ClientParse { name, statement: statement(1), sent: true };
                self.pipeline.push_with_change(kind, Answer::Forward, change);
            }
            "dup" => self.pipeline.push_with_change(kind, Answer::Forward, Change::Duplicate { name }),
            other => panic!("no prefix {other:?}"),
        }
    }

    /// Brings bytes as a session does: what was left over stands in front of them.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Result<(), OutOfStep> {
        let mut input = std::mem::take(&mut self.carry);
        input.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let received = self.pipeline.receive(&input[at..])?;
            self.seen.extend_from_slice(&input[at..][received.forward.clone()]);
            assert!(received.forward.end <= received.consumed);
            match received.stop {
                Stop::NeedMore => {
                    self.carry = input[at + received.consumed..].to_vec();
                    return Ok(());
                }
                Stop::Synthesized(bytes) => self.seen.extend_from_slice(bytes),
                Stop::Duplicate(_) => self.seen.extend(message("E")),
                Stop::Error(range) => {
                    assert_eq!(range.end, received.consumed);
                    self.notes.push("error");
                }
                Stop::Parameter(_) => self.notes.push("parameter"),
                Stop::StatementsDropped => self.notes.push("dropped"),
                Stop::Notification(_) => self.notes.push("notification"),
                Stop::OwnQueryDone { failed: true } => self.notes.push("own query failed"),
                Stop::OwnQueryDone { failed: false } => self.notes.push("own query done"),
                Stop::Ready | Stop::Discarded => {}
            }
            at += received.consumed;
        }
    }

    fn end(&self) -> End {
        match self.pipeline.is_idle() {
            true => Idle,
            false if self.pipeline.is_in_doubt() => InDoubt,
            false => Leased(self.pipeline.owed()),
        }
    }
}

fn play(script: &str) -> (Talk, Result<(), OutOfStep>) {
    let mut talk = Talk::default();
    for step in script.split(';').map(str::trim).filter(|step| !step.is_empty()) {
        let (side, words) = step.split_once(' ').unwrap();
        match side {
            "C" => words.split_whitespace().for_each(|word| talk.ask(word)),
            "S" => {
                let bytes: Vec<u8> = words.split_whitespace().flat_map(message).collect();
                if let Err(error) = talk.hear(&bytes) {
                    return (talk, Err(error));
                }
            }
            other => panic!("{other:?} is neither C nor S"),
        }
    }
    (talk, Ok(()))
}

#[track_caller]
fn check(script: &str, seen: &str, end: End) {
    let (talk, result) = play(script);
    let got = if result.is_err() { Broken } else { talk.end() };
    assert_eq!((letters(&talk.seen).as_str(), got), (seen, end), "{script}");
}

#[test]
fn a_simple_query_ends_with_ready_for_query_outside_of_a_transaction() {
    check("C Query", "", Leased(1));
    check("C Query; S T D C", "T D C", Leased(1));
    check("C Query; S T D C ZI", "T D C ZI", Idle);
    check("C Query; S C; S ZT", "C ZT", Leased(0));
    check("C Query; S C ZT; C Query; S E ZE", "C ZT E ZE", Leased(0));
    check("C Query; S C ZT; C Query; S E ZE; C Query; S C ZI", "C ZT E ZE C ZI", Idle);
    check("C Query; S E ZI", "E ZI", Idle);
    check("C Query; S I ZI", "I ZI", Idle);
}

#[test]
fn a_query_of_several_statements_has_several_results_and_one_ready_for_query() {
    check("C Query; S T D C C T C ZI", "T D C C T C ZI", Idle);
    check("C Query; S C E ZI", "C E ZI", Idle);
}

#[test]
fn p1_fifty_queries_at_once_return_the_server_after_the_last() {
    let queries = "Query ".repeat(50);
    let some = format!("C {queries}; S {}", "C ZI ".repeat(49));
    check(&some, ("C ZI ".repeat(49)).trim(), Leased(1));
    check(&format!("{some}; S C ZI"), ("C ZI ".repeat(50)).trim(), Idle);
}

#[test]
fn an_extended_batch_ends_with_its_sync() {
    let batch = "C Parse Bind Describe Execute Sync";
    check(&format!("{batch}; S 1 2 T D C"), "1 2 T D C", Leased(1));
    check(&format!("{batch}; S 1 2 T D C ZI"), "1 2 T D C ZI", Idle);
    check("C Parse Describe Sync; S 1 t n ZI", "1 t n ZI", Idle);
    check("C Parse Describe Sync; S 1 t T ZI", "1 t T ZI", Idle);
    check("C Bind Execute Sync; S 2 I ZI", "2 I ZI", Idle);
    check("C Close Sync; S 3 ZI", "3 ZI", Idle);
    check("C Sync; S ZI", "ZI", Idle);
}

#[test]
fn p2_several_syncs_are_answered_one_by_one() {
    let batch = "Parse Bind Execute Sync ";
    check(&format!("C {batch}{batch}; S 1 2 C ZI"), "1 2 C ZI", Leased(4));
    check(&format!("C {batch}{batch}; S 1 2 C ZI 1 2 C ZI"), "1 2 C ZI 1 2 C ZI", Idle);
}

#[test]
fn p6_without_sync_the_server_is_kept_although_nothing_is_owed() {
    check("C Parse Describe Flush; S 1 t n", "1 t n", Leased(0));
    check("C Parse Describe Flush; S 1 t n; C Bind Execute Flush; S 2 C", "1 t n 2 C", Leased(0));
    check("C Parse Flush; S 1; C Sync", "1", Leased(1));
    check("C Parse Flush; S 1; C Sync; S ZI", "1 ZI", Idle);
}

#[test]
fn p7_a_suspended_portal_goes_on_at_the_same_server() {
    check("C Bind Execute Flush; S 2 D s", "2 D s", Leased(0));
    check("C Bind Execute Flush; S 2 D s; C Execute Sync; S D C ZI", "2 D s D C ZI", Idle);
}

#[test]
fn p3_after_an_error_the_server_skips_to_sync() {
    for (batch, answers) in [
        ("Parse Bind Execute", "E"),
        ("Bind Parse Describe Close Execute", "2 E"),
        ("Describe Bind Execute", "t E"),
        ("Execute Bind Execute", "D D E"),
        ("Close Execute", "E"),
    ] {
        check(&format!("C {batch} Sync; S {answers}"), answers, Leased(1));
        check(&format!("C {batch} Sync; S {answers} ZI"), &format!("{answers} ZI"), Idle);
    }
}

#[test]
fn p4_a_simple_query_behind_an_error_without_sync_is_never_answered() {
    check("C Bind Query; S E", "E", Leased(0));
    check("C Bind Query Sync; S E", "E", Leased(1));
    check("C Bind Query Sync; S E ZI", "E ZI", Idle);
    check("C Bind FunctionCall Sync Query; S E ZI", "E ZI", Leased(1));
    check("C Bind FunctionCall Sync Query; S E ZI C ZI", "E ZI C ZI", Idle);
    check("C Bind; S E; C Query; C Sync; S ZI", "E ZI", Idle);
}

#[test]
fn p5_the_batch_behind_a_failed_one_runs() {
    check("C Bind Execute Sync Bind Execute Sync; S E ZI", "E ZI", Leased(3));
    check("C Bind Execute Sync Bind Execute Sync; S E ZI 2 C ZI", "E ZI 2 C ZI", Idle);
    check("C Bind; S E; C Sync Bind Execute Sync", "E", Leased(4));
    check("C Bind; S E; C Sync Bind Execute Sync; S ZI 2 C ZI", "E ZI 2 C ZI", Idle);
    check("C Bind; S E; C Sync Query; S ZI", "E ZI", Leased(1));
}

#[test]
fn p8_an_error_without_sync_keeps_the_server_until_the_sync() {
    check("C Parse Flush; S E", "E", Leased(0));
    check("C Parse Flush; S E; C Sync; S ZI", "E ZI", Idle);
    assert!(play("C Parse; S E").0.pipeline.is_skipping());
    assert!(!play("C Parse; S E; C Sync").0.pipeline.is_skipping());
}

#[test]
fn an_error_at_sync_or_in_a_query_skips_nothing() {
    check("C Execute Sync Query; S C E ZI", "C E ZI", Leased(1));
    check("C Execute Sync Query; S C E ZI C ZI", "C E ZI C ZI", Idle);
    check("C Query Parse Sync; S E ZI", "E ZI", Leased(2));
    check("C Query Parse Sync; S E ZI 1 ZI", "E ZI 1 ZI", Idle);
}

#[test]
fn a_query_ends_the_batch_in_front_of_it() {
    check("C Parse Bind Execute Query; S 1 2 C C ZI", "1 2 C C ZI", Idle);
}

#[test]
fn a_function_call_is_answered_like_a_query() {
    check("C FunctionCall; S V", "V", Leased(1));
    check("C FunctionCall; S V ZI", "V ZI", Idle);
    check("C FunctionCall; S E ZE", "E ZE", Leased(0));
}

#[test]
fn k1_copy_in_by_a_simple_query() {
    check("C Query; S G", "G", Leased(1));
    // Replication: both sides end a COPY in both directions, and the server may tell of the next timeline.
    check("C Query; S W d d; C CopyDone; S c T D C C ZI", "W d d c T D C C ZI", Idle);
    check("C Query; S W d c; C CopyDone Query; S C ZI C ZI", "W d c C ZI C ZI", Idle);
    check("C Query; S W d; C CopyDone; S E ZI", "W d E ZI", Idle);
    check("C Query; S G; C CopyDone; S C", "G C", Leased(1));
    check("C Query; S G; C CopyDone; S C ZI", "G C ZI", Idle);
    check("C Query CopyDone; S G C ZI", "G C ZI", Idle);
    check("C Query CopyDone; S G E ZI", "G E ZI", Idle);
    check("C Query CopyDone CopyDone; S G C G C ZI", "G C G C ZI", Idle);
}

#[test]
fn k1_copy_in_by_the_extended_protocol() {
    check("C Bind Execute; S 2 G; C CopyDone Sync; S C ZI", "2 G C ZI", Idle);
    check("C Bind Execute CopyDone Sync; S 2 G E ZI", "2 G E ZI", Idle);
    check("C Bind Execute; S 2 G E; C CopyDone Sync; S ZI", "2 G E ZI", Idle);
}

#[test]
fn k2_what_a_failed_copy_in_leaves_behind_is_not_answered() {
    check("C Query; S G E ZI; C CopyDone", "G E ZI", Idle);
    check("C Query; S G E; C CopyDone; S ZI", "G E ZI", Idle);
    check("C Query CopyDone Query; S E ZI", "E ZI", Leased(1));
    check("C Query CopyDone Query; S E ZI C ZI", "E ZI C ZI", Idle);
}

#[test]
fn k3_copy_in_keeps_the_server_between_its_response_and_its_end() {
    check("C Query; S G; C CopyDone", "G", Leased(2));
    check("C Bind Execute Sync; S 2 G; C CopyDone; S C", "2 G C", Leased(0));
    check("C Bind Execute Sync; S 2 G; C CopyDone; S C; C Sync; S ZI", "2 G C ZI", Idle);
}

#[test]
fn k4_syncs_before_the_end_of_the_data_are_swallowed() {
    check("C Bind Execute Sync CopyDone Sync; S 2 G C", "2 G C", Leased(1));
    check("C Bind Execute Sync CopyDone Sync; S 2 G C ZI", "2 G C ZI", Idle);
    check("C Bind Execute; S 2 G; C Sync CopyDone Sync; S C ZI", "2 G C ZI", Idle);
    check("C Query; S G; C Sync Sync CopyDone; S C ZI", "G C ZI", Idle);
    check("C Query Sync CopyDone; S G C ZI", "G C ZI", Idle);
}

#[test]
fn a_sync_behind_no_copy_after_all_is_answered() {
    check("C Bind Execute Sync CopyDone Sync; S 2 C ZI", "2 C ZI", Leased(1));
    check("C Bind Execute Sync CopyDone Sync; S E ZI ZI", "E ZI ZI", Idle);
}

/// A trigger may fail before the server reads the Sync, or a row after it: nobody can tell which, so
/// nobody knows whether the Sync was swallowed. Another client would get its ReadyForQuery.
#[test]
fn a_copy_in_that_fails_with_syncs_in_its_data_leaves_the_server_in_doubt() {
    check("C Bind Execute Sync CopyDone Sync; S 2 G E ZI", "2 G E ZI", InDoubt);
    check("C Bind Execute; S 2 G; C Sync CopyDone Sync; S E ZI", "2 G E ZI", InDoubt);
    check("C Query; S G; C Sync; S E ZI", "G E ZI", InDoubt);
    check("C Query; S G; C Sync; S E ZI ZI", "G E ZI ZI", InDoubt);
}

#[test]
fn a_server_in_doubt_is_asked_and_what_it_says_in_front_of_the_answer_is_for_the_client() {
    for (begin, seen) in
        [("C Query; S G; C Sync Sync; S E ZI", "G E ZI"), ("C Query; S G; C Sync; S E ZE", "G E ZE")]
    {
        let status = &seen[seen.len() - 2..];
        for more in ["", status, &format!("{status} {status}")] {
            let forwarded = format!("{seen} {more}");
            let forwarded = forwarded.trim();
            check(&format!("{begin}; C doubt; S {more} 3"), forwarded, Leased(1));
            let end = if status == "ZI" { Idle } else { Leased(0) };
            check(&format!("{begin}; C doubt; S {more} 3 {status}"), forwarded, end);
            let next = format!("{begin}; C doubt Query; S {more} 3 {status} C ZI");
            check(&next, &format!("{forwarded} C ZI"), Idle);
        }
    }
    check("C Query; S G; C Sync; S E ZI; C doubt Query; S 3 ZI ZI", "G E ZI ZI", Idle);
    check("C Query; S G; C Sync; S E ZI; C doubt; S 3 ZI ZI", "G E ZI", Broken);
    let (mut talk, _) = play("C Bind Execute; S 2 G; C Sync CopyDone; S E");
    assert_eq!(talk.pipeline.ask_in_doubt(), None, "it skips to the Sync that ends the batch");
}

#[test]
fn copy_out_streams_in_either_protocol() {
    check("C Query; S H d d", "H d d", Leased(1));
    check("C Query; S H d d c C ZI", "H d d c C ZI", Idle);
    check("C Bind Execute Sync; S 2 H d c C ZI", "2 H d c C ZI", Idle);
    check("C Query; S H d E ZI", "H d E ZI", Idle);
}

#[test]
fn p17_messages_that_answer_nothing_come_anywhere_and_count_for_nothing() {
    for word in ["N", "A", "S"] {
        let w = word;
        check(&format!("S {w}"), w, Idle);
        check(&format!("C Query; S {w} T D {w} C {w} ZI {w}"), &format!("{w} T D {w} C {w} ZI {w}"), Idle);
        check(&format!("C Parse Bind Sync; S {w} 1 {w} 2"), &format!("{w} 1 {w} 2"), Leased(1));
    }
    assert_eq!(play("S S; C Query; S S C ZI").0.notes, ["parameter", "parameter"]);
}

#[test]
fn an_error_that_nobody_asked_for_is_told() {
    check("S E", "E", Idle);
    assert_eq!(play("S E").0.notes, ["error"]);
}

#[test]
fn nobody_hears_of_a_query_of_our_own() {
    check("C own:Query", "", Leased(1));
    check("C own:Query; S C N A S ZI", "", Idle);
    check("C own:Query Query; S C C ZI T D C ZI", "T D C ZI", Idle);
    check("C own:Query Query; S E ZI T D C ZI", "T D C ZI", Idle);
    assert_eq!(play("C own:Query; S S C ZI").0.notes, ["parameter", "own query done"]);
    assert_eq!(play("C own:Query; S E ZI").0.notes, ["error", "own query failed"]);
    assert_eq!(play("C own:Query own:Query; S E ZI C ZI").0.notes.last(), Some(&"own query done"));
}

#[test]
fn a_statement_of_ours_in_front_is_not_seen_unless_it_fails() {
    check("C own:Close own:Parse Bind Execute Sync; S 3 1 2 C ZI", "2 C ZI", Idle);
    check("C own:Parse Bind Execute Sync; S E ZI", "E ZI", Idle);
}

#[test]
fn r5_answers_made_here_keep_their_place() {
    check("C made:Parse Bind Execute Sync; S 2 C ZI", "1 2 C ZI", Idle);
    check("C made:Parse made:Close Sync; S ZI", "1 3 ZI", Idle);
    check("C Bind made:Parse Execute made:Close Sync", "", Leased(5));
    check("C Bind made:Parse Execute made:Close Sync; S 2", "2 1", Leased(3));
    check("C Bind made:Parse Execute made:Close Sync; S 2 C ZI", "2 1 C 3 ZI", Idle);
    check("C Bind made:Parse made:Close Sync; S E ZI", "E ZI", Idle);
    check("C Query made:Parse Sync; S C ZI ZI", "C ZI 1 ZI", Idle);
}

#[test]
fn r13_a_name_in_use_is_refused_in_the_clients_own_words() {
    check("C dup:Parse Bind Sync; S Eduplicate ZI", "E ZI", Idle);
    check("C dup:Parse Bind Sync; S E ZI", "E ZI", Idle);
    assert_eq!(play("C dup:Parse Sync; S Eduplicate").0.notes, [""; 0]);
    assert_eq!(play("C dup:Parse Sync; S E").0.notes, ["error"]);
    // The server took the name, and what it stands for now is not what we noted.
    check("C dup:Parse Sync; S 1", "", Broken);
}

#[test]
fn what_was_skipped_is_undone() {
    let change = || Change::ClientParse { name: Box::from(*b"s"), statement: statement(1), sent: true };
    let undone = |script| play(script).0.pipeline.take_undone();
    assert_eq!(undone("C new:Parse Sync; S 1 ZI"), []);
    assert_eq!(undone("C new:Parse Sync; S E"), [change()]);
    assert_eq!(undone("C Bind new:Parse new:Parse Sync new:Parse; S E"), [change(), change()]);
    assert_eq!(undone("C Bind; S E; C new:Parse"), [change()]);
    assert_eq!(undone("C Parse Sync; S E"), [Change::UnnamedParse]);
    assert_eq!(undone("C Bind own:Parse Sync; S E"), [], "the client still has its unnamed statement");
    assert_eq!(undone("C Parse Sync Parse Sync; S E"), [], "the next batch makes another unnamed one");
}

#[test]
fn r15_dropping_all_statements_is_noticed() {
    for word in ["Cdiscard", "Cdeallocate"] {
        let script = format!("C Query; S {word} ZI");
        check(&script, "C ZI", Idle);
        assert_eq!(play(&script).0.notes, ["dropped"]);
        assert_eq!(play(&format!("C own:Query; S {word} ZI")).0.notes, ["dropped", "own query done"]);
    }
}

#[test]
fn a_server_out_of_step_is_an_error() {
    for script in [
        "S ZI",
        "S D",
        "S C",
        "S T",
        "S V",
        "S 1",
        "S R",
        "S K",
        "C Query; S 1",
        "C Query; S Z",
        "C Query; S ZX",
        "C Query; S ZII",
        "C Query; S V",
        "C Query; S t",
        "C Parse Sync; S 2",
        "C Parse Sync; S ZI",
        "C Bind Sync; S D",
        "C Describe Sync; S C",
        "C Sync; S C",
        "C FunctionCall; S D",
        "S v",
        "S ?",
    ] {
        check(script, "", Broken);
    }
    check("C Query; S C ZI; S ZI", "C ZI", Broken);
    check("C Execute Sync; S C; S C", "C", Broken);
}

#[test]
fn a_message_that_is_half_read_keeps_the_server() {
    let mut talk = Talk::default();
    let mut notice = message("N");
    notice.extend([0; 100]);
    notice[4] = 104;
    talk.hear(&notice[..50]).unwrap();
    assert_eq!((talk.end(), talk.seen.len()), (Leased(0), 50));
    talk.hear(&notice[50..]).unwrap();
    assert_eq!((talk.end(), talk.seen.len()), (Idle, 105));
}

#[test]
fn an_error_larger_than_we_hold_still_undoes_what_failed() {
    let mut talk = Talk::default();
    ["new:Parse", "Sync"].iter().for_each(|word| talk.ask(word));
    let text = vec![b'x'; 2 * INSPECT_MAX];
    let mut error = b"E\0\0\0\0SERROR\0C22012\0M".to_vec();
    error.extend(text);
    error.extend([0, 0]);
    let length = error.len() as u32 - 1;
    error[1..5].copy_from_slice(&length.to_be_bytes());
    for piece in error.chunks(1000) {
        talk.hear(piece).unwrap();
    }
    assert_eq!(talk.seen, error);
    assert_eq!(talk.notes, ["error"]);
    assert_eq!(talk.pipeline.take_undone().len(), 1);
}

#[test]
fn a_ready_for_query_larger_than_it_can_be_is_out_of_step_however_it_is_cut() {
    for first in [5, 6, 7] {
        let mut talk = Talk::default();
        talk.ask("Query");
        assert!(talk.hear(&b"Z\0\x01\0\0II"[..first]).is_err(), "first piece of {first} bytes");
    }
}

#[test]
fn more_requests_than_the_limit_are_refused() {
    let mut talk = Talk::default();
    for _ in 0..REQUESTS_MAX {
        assert!(!talk.pipeline.is_full());
        talk.ask("Query");
    }
    assert!(talk.pipeline.is_full());
    talk.hear(&[message("C"), message("ZI")].concat()).unwrap();
    assert!(!talk.pipeline.is_full());
}

fn statement(id: u64) -> std::sync::Arc<statements::Statement> {
    std::sync::Arc::new(statements::Statement::numbered(id))
}
