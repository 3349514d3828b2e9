//! What servers say, as PostgreSQL writes it.

use super::*;
use crate::config::Host;
use crate::topology::Place;

/// A primary with two standbys, as it answers a member of `pg_monitor`.
const PRIMARY: &str = r#"{"reads_stats": true, "reads_wal": true, "in_recovery": false,
    "standbys": [
        {"name": "pg-2", "address": "10.0.0.2", "state": "streaming", "sync_state": "quorum",
         "lag_bytes": 0, "lag_s": null},
        {"name": "pg-3", "address": "10.0.0.3", "state": "catchup", "sync_state": "quorum",
         "lag_bytes": 4096, "lag_s": 0.25},
        {"name": "reports", "address": null, "state": "streaming", "sync_state": "async",
         "lag_bytes": null, "lag_s": null}],
    "sync_rule": "ANY 1 (\"pg-2\",\"pg-3\")", "sync_waiters": 2, "sync_oldest_wait_s": 1.5,
    "archive_mode": "on",
    "archiver": {"archived": 7, "failures": 3, "last_failed_wal": "000000010000000000000008",
        "last_failed_age_s": 4.0, "last_archived_age_s": 60.5},
    "wal_position": 50331648, "slots_bytes": 16777216, "connections": 12, "connections_max": 100, "connections_reserved": 3,
    "read_only": false}"#;

fn primary() -> Signals {
    Signals::read(PRIMARY).expect("a right answer")
}

#[test]
fn an_answer_is_read_as_it_stands() {
    let signals = primary();
    assert_eq!(signals.standbys.len(), 3);
    assert_eq!(signals.standbys[1].lag, Some(Duration::from_millis(250)));
    assert_eq!((signals.sync_rule.required, signals.sync_waiters), (1, 2));
    assert_eq!(signals.sync_oldest_wait, Some(Duration::from_millis(1500)));
    assert_eq!(signals.archiver.last_archived_age, Some(Duration::from_millis(60_500)));
    assert_eq!((signals.slots_bytes, signals.wal_bytes), (Some(16 << 20), None));
    assert_eq!(signals.wal_position, Some(48 << 20));
    assert_eq!(signals.connections_usable(), 97);
    assert_eq!(signals.unseen(), None);
}

#[test]
fn what_is_no_answer_is_an_error_in_words() {
    for text in ["", "{}", "[1]", "{\"reads_stats\": 1}"] {
        let error = Signals::read(text).expect_err(text);
        assert!(error.starts_with("an answer that cannot be read: "), "{error}");
    }
}

#[test]
fn what_may_not_be_seen_is_said() {
    let hidden = Standby { name: Some("pg-2".into()), ..Standby::default() };
    let signals = Signals { reads_stats: false, reads_wal: false, standbys: vec![hidden], ..primary() };
    let unseen = signals.unseen().expect("something is hidden");
    assert!(unseen.starts_with("without pg_monitor it is not seen whether commits wait"), "{unseen}");
    assert_eq!((signals.standbys[0].streams(), signals.standbys[0].is_synchronous()), (None, None));
    assert_eq!(signals.sync_streaming(), 1, "it may be one");
    let signals = Signals { reads_wal: false, ..primary() };
    assert_eq!(signals.unseen(), Some("without pg_monitor it is not seen how much WAL there is"));
}

#[test]
fn only_what_streams_and_is_not_asynchronous_lets_commits_go_on() {
    let check = |state: &str, sync_state: &str, expected: u32| {
        let (state, sync_state) = (Some(state.to_owned()), Some(sync_state.to_owned()));
        let standbys = vec![Standby { state, sync_state, ..Standby::default() }];
        let signals = Signals { standbys, ..primary() };
        assert_eq!(signals.sync_streaming(), expected, "{:?}", signals.standbys);
    };
    check("streaming", "sync", 1);
    check("streaming", "potential", 1);
    check("streaming", "quorum", 1);
    check("streaming", "async", 0);
    check("catchup", "quorum", 0);
    check("backup", "async", 0);
    assert_eq!(primary().sync_streaming(), 1);
}

#[test]
fn a_member_is_known_by_its_name_or_else_by_its_address() {
    let check = |name: &str, host: &str, expected: Option<&str>| {
        let place = Place { uid: None, host: Host::Tcp(host.into()), port: 5432 };
        let name = name.into();
        let member = Member { name, place, zone: None, ready: true, terminating: false, fenced: None };
        let signals = primary();
        let found = signals.standby(&member).and_then(|standby| standby.name.as_deref());
        assert_eq!(found, expected, "{}", member.name);
    };
    check("pg-2", "10.9.9.9", Some("pg-2"));
    check("pg-2", "10.0.0.3", Some("pg-2"));
    check("pod", "10.0.0.3", Some("pg-3"));
    check("pod", "reports", Some("reports"));
    check("pg-1", "10.0.0.1", None);
}

#[test]
fn archiving_fails_while_the_last_failure_is_newer_than_the_last_success() {
    let check = |mode: &str, failed: Option<u64>, worked: Option<u64>, expected: bool| {
        let age = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        let (last_failed_age, last_archived_age) = (age(failed), age(worked));
        let archiver = Archiver { last_failed_age, last_archived_age, ..Archiver::default() };
        let signals = Signals { archive_mode: mode.into(), archiver, ..primary() };
        assert_eq!(signals.archiving_fails(), expected, "{mode} {failed:?} {worked:?}");
    };
    check("on", None, None, false);
    check("on", None, Some(3), false);
    check("on", Some(9), Some(3), false);
    check("on", Some(3), Some(3), false);
    check("on", Some(3), Some(9), true);
    check("on", Some(3), None, true);
    check("always", Some(3), None, true);
    check("off", Some(3), None, false);
}

#[test]
fn synchronous_standby_names_say_how_many_and_who() {
    let check = |text: &str, required: u32, names: &[&str]| {
        let rule = SyncRule::from(text.to_owned());
        assert_eq!((rule.required, rule.names), (required, names.iter().map(|n| n.to_string()).collect()));
        assert_eq!(rule.text, text);
    };
    check("", 0, &[]);
    check("  ", 0, &[]);
    check("*", 1, &["*"]);
    check("a", 1, &["a"]);
    check("a, b ,c", 1, &["a", "b", "c"]);
    check("ANY 1 (*)", 1, &["*"]);
    check("ANY 2 (\"pg-2\",\"pg-3\",\"pg-4\")", 2, &["pg-2", "pg-3", "pg-4"]);
    check("any 2(a,b)", 2, &["a", "b"]);
    check("FIRST 2 (a, b, *)", 2, &["a", "b", "*"]);
    check("first 1 (\"a\"\"b\", \"c, (d)\")", 1, &["a\"b", "c, (d)"]);
    check("2 (a, b)", 2, &["a", "b"]);
    check("\"any\"", 1, &["any"]);
}
