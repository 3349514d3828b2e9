//! Each word, how it begins and ends, and which of several is said.

use std::sync::Arc;

use super::*;
use crate::config::Host;
use crate::topology::signals::{AGE_MAX, Archiver, Standby, SyncRule};
use crate::topology::{Member, Place};

const SECOND: Duration = Duration::from_secs(1);

fn member(name: &str) -> Member {
    let place = Place { uid: None, host: Host::Tcp(name.into()), port: 5432 };
    Member { name: name.into(), place, zone: None, ready: true, terminating: false, fenced: None }
}

/// A primary that nothing is wrong with.
fn well() -> Signals {
    let standby = Standby {
        name: Some("b".into()),
        state: Some("streaming".into()),
        sync_state: Some("quorum".into()),
        ..Standby::default()
    };
    Signals {
        reads_stats: true,
        reads_wal: true,
        standbys: vec![standby],
        sync_rule: SyncRule::from("ANY 1 (*)".to_owned()),
        archive_mode: "on".into(),
        connections: 10,
        connections_max: 100,
        connections_reserved: 3,
        ..Signals::default()
    }
}

fn blocked_quorum() -> Signals {
    let sync_oldest_wait = Some(Duration::from_millis(4200));
    Signals { standbys: Vec::new(), sync_waiters: 3, sync_oldest_wait, ..well() }
}

fn failing_archiver() -> Signals {
    let archiver = Archiver {
        failures: 3,
        last_failed_wal: Some("0000000100000000000000A1".into()),
        last_failed_age: Some(SECOND),
        last_archived_age: Some(SECOND * 90),
        ..Archiver::default()
    };
    Signals { archiver, ..well() }
}

/// A cluster of `a`, the primary, and `b`.
struct Case {
    judge: Judge,
    gate: State,
    waited: Duration,
    api: Option<bool>,
    samples: Samples,
    /// Whether the two answer, if anybody asks them.
    answers: Option<[bool; 2]>,
    pool: Option<PoolFacts>,
    phase: Option<&'static str>,
    disk_full: Option<Duration>,
    now: Instant,
    changes: Vec<&'static str>,
}

impl Case {
    fn new() -> Case {
        Case {
            judge: Judge::default(),
            gate: State::Open(member("a")),
            waited: Duration::ZERO,
            api: Some(true),
            samples: Samples::default(),
            answers: Some([true, true]),
            pool: None,
            phase: None,
            disk_full: None,
            now: Instant::now(),
            changes: Vec::new(),
        }
    }

    /// The primary says this of itself.
    fn hear(&mut self, signals: Signals) -> &mut Case {
        self.samples.hear(signals, self.now);
        self.look()
    }

    fn gate(&mut self, gate: State) -> &mut Case {
        self.gate = gate;
        self.look()
    }

    /// Time passes, second by second.
    fn wait(&mut self, seconds: u32) -> &mut Case {
        for _ in 0..seconds {
            self.now += SECOND;
            self.waited += SECOND;
            self.look();
        }
        self
    }

    fn look(&mut self) -> &mut Case {
        let facts = |(name, number): (&'static str, usize)| {
            let answers = self.answers.map(|answers| answers[number]);
            let trouble = (answers == Some(false)).then_some("connection refused");
            MemberFacts { name, answers, trouble, fenced: false }
        };
        let members = [("a", 0), ("b", 1)].map(facts);
        let facts = Facts {
            gate: &self.gate,
            waited: self.waited,
            api: self.api,
            members: &members,
            primary: Some(&self.samples),
            ours: 4,
            pool: self.pool.as_ref(),
            phase: self.phase,
            disk_full: self.disk_full,
        };
        if self.judge.update(&facts, self.now).is_some() {
            let state = self.judge.health().expect("it has just been judged").state;
            self.changes.push(state.name());
        }
        self
    }

    fn is(&mut self, state: &str, evidence: &[&str]) -> &mut Case {
        let health = self.judge.health().expect("something is known");
        assert_eq!(health.state.name(), state, "{health}");
        assert_eq!(health.evidence, evidence);
        self
    }

    fn went(&self, changes: &[&str]) {
        assert_eq!(self.changes, changes);
    }
}

fn why(why: Why) -> State {
    State::Hold(why)
}

#[test]
fn a_primary_that_is_open_and_well_is_healthy() {
    let mut case = Case::new();
    case.hear(well()).wait(1).hear(well()).is("healthy", &[]).wait(60).went(&["healthy"]);
}

#[test]
fn nothing_is_said_while_nothing_is_known() {
    let mut case = Case::new();
    case.gate(why(Why::Starting)).wait(1).gate(why(Why::Nobody("nobody has answered".into()))).wait(1);
    assert_eq!(case.judge.health(), None);
    case.gate(State::Open(member("a"))).went(&["healthy"]);
    let mut case = Case::new();
    case.gate(why(Why::Starting)).wait(3).is("no_primary", &["nothing is known of the cluster yet"]);
}

#[test]
fn the_gate_tells_of_primaries_that_are_not_there() {
    let check = |reason: Why, expected: &str| {
        let mut case = Case::new();
        case.look().gate(why(reason.clone()));
        let found = case.judge.health().expect("something is known");
        assert_eq!((found.state.name(), &*found.evidence[0]), (expected, &*reason.to_string()));
    };
    check(Why::Moving("Switchover in progress".into()), "switching");
    check(Why::Terminating("a".into()), "switching");
    check(Why::InRecovery("b".into()), "switching");
    check(Why::OldSessions("b".into()), "switching");
    check(Why::Held, "switching");
    check(Why::Nobody("nobody says so".into()), "no_primary");
    check(Why::Absent("a".into()), "no_primary");
    check(Why::Several(vec!["a".into(), "b".into()]), "no_primary");
    check(Why::OtherSystem { name: "a".into(), found: 1, expected: 2 }, "no_primary");
    check(Why::OldTimeline { name: "a".into(), found: 1, highest: 2 }, "no_primary");
    check(Why::Fenced("a".into(), "cnpg.io/fencedInstances".into()), "fenced");
    check(Why::Isolated("a".into()), "isolated");
}

#[test]
fn a_lost_connection_alone_is_no_lost_primary() {
    let reason = Why::Unreachable("a".into(), "reset".into());
    let verified = |again| State::Verify { member: member("a"), why: reason.clone(), again };
    let mut case = Case::new();
    case.hear(well()).gate(verified(true)).gate(State::Open(member("a"))).went(&["healthy"]);
    case.waited = Duration::ZERO;
    case.gate(verified(true)).wait(1).is("no_primary", &["the primary a does not answer: reset"]);
    case.gate(State::Open(member("a"))).is("healthy", &[]);
    case.waited = Duration::ZERO;
    case.gate(verified(false)).is("switching", &["the primary a does not answer: reset"]);
}

#[test]
fn commits_that_wait_for_a_lost_quorum_are_no_outage() {
    let mut case = Case::new();
    case.hear(well()).wait(1).hear(blocked_quorum()).is("healthy", &[]);
    case.wait(1).hear(blocked_quorum()).is(
        "commits_blocked_on_sync_quorum",
        &["a: 0 of 1 required synchronous standbys stream (synchronous_standby_names = ANY 1 (*)); 3 commits wait, the oldest for 4.2 s; reads and logins work"],
    );
    let advice = HealthState::CommitsBlocked.advice();
    assert!(advice.contains("By design") && advice.contains("Do not switch to asynchronous"), "{advice}");
    case.wait(1).hear(well()).wait(1).hear(well()).is("healthy", &[]);
    case.went(&["healthy", "commits_blocked_on_sync_quorum", "healthy"]);
}

#[test]
fn a_lost_quorum_is_said_before_the_first_commit_waits_and_where_that_is_not_seen() {
    let says = |signals: Signals, expected: &str| {
        let mut case = Case::new();
        case.hear(signals.clone()).wait(1).hear(signals);
        let health = case.judge.health().expect("something is known");
        assert_eq!(health.state, HealthState::CommitsBlocked);
        assert!(health.evidence[0].contains(expected), "{health}");
    };
    let nobody = Signals { sync_waiters: 0, sync_oldest_wait: None, ..blocked_quorum() };
    says(nobody.clone(), "; the next commit will wait;");
    says(Signals { reads_stats: false, ..nobody }, "; commits wait, how many is not seen;");
}

#[test]
fn each_state_of_the_server_has_its_word() {
    let check = |signals: Signals, state: &str, evidence: &str| {
        Case::new().hear(signals.clone()).wait(1).hear(signals).is(state, &[evidence]);
    };
    let read_only = Signals { read_only: true, ..well() };
    check(read_only, "read_only", "a has default_transaction_read_only = on");
    check(
        Signals { connections: 97, ..well() },
        "saturated",
        "a: 97 of 97 connections are in use (4 by our pools, 93 by others; max_connections = 100, 3 of them reserved)",
    );
    check(
        failing_archiver(),
        "archiving_broken",
        "a: 0000000100000000000000A1 could not be archived 1.0 s ago, 3 failures; the last success was 90.0 s ago",
    );
}

#[test]
fn one_answer_that_is_missing_or_odd_changes_nothing() {
    let mut case = Case::new();
    case.hear(well()).wait(1).hear(blocked_quorum()).wait(1).hear(well()).wait(1).hear(well());
    case.went(&["healthy"]);
    case.wait(1).hear(blocked_quorum()).wait(1).hear(blocked_quorum());
    case.wait(3).look();
    case.wait(1).hear(well()).wait(1).hear(blocked_quorum());
    case.went(&["healthy", "commits_blocked_on_sync_quorum"]);
}

#[test]
fn what_a_server_said_as_a_standby_does_not_count() {
    let mut case = Case::new();
    let standby = Signals { in_recovery: true, ..blocked_quorum() };
    case.hear(standby.clone()).wait(1).hear(standby).wait(1).hear(blocked_quorum()).is("healthy", &[]);
}

#[test]
fn a_full_pool_is_saturated_while_its_clients_wait_for_long() {
    let mut case = Case::new();
    let full = |longest_wait| {
        let (database, user) = ("app".to_owned(), "web".to_owned());
        Some(PoolFacts { database, user, size: 20, waiting: 143, longest_wait })
    };
    case.pool = full(SECOND * 2);
    case.look().is("healthy", &[]);
    case.pool = full(POOL_WAIT);
    let evidence =
        "pool \"app\" of user \"web\" has all 20 connections in use; 143 clients wait, the first for 3.0 s";
    case.look().is("saturated", &[evidence]);
    case.pool = full(SECOND * 2);
    case.look();
    case.pool = full(Duration::from_millis(500));
    case.look().went(&["healthy", "saturated", "healthy"]);
}

#[test]
fn a_full_disk_is_said_by_the_operator_or_by_what_the_server_refuses() {
    let mut case = Case::new();
    case.look();
    case.disk_full = Some(SECOND * 2);
    let evidence = "a refused a statement 2.0 s ago, as its disk is full (53100)";
    case.look().is("disk_full", &[evidence]);
    case.disk_full = Some(DISK_FULL_FOR + SECOND);
    case.look().is("healthy", &[]);
    // It is why there is no primary.
    case.phase = Some(cnpg::DISK_FULL);
    case.gate(why(Why::Absent("a".into()))).is(
        "disk_full",
        &[
            "the operator says \"Not enough disk space\"",
            "also no_primary: the primary a is not among the cluster's servers",
        ],
    );
}

#[test]
fn who_reaches_nobody_for_3_s_is_isolated() {
    let mut case = Case::new();
    case.hear(well());
    (case.api, case.answers) = (Some(false), Some([false, true]));
    case.wait(60).went(&["healthy"]);
    case.answers = Some([false, false]);
    case.look().wait(2).went(&["healthy"]);
    let evidence = "neither the Kubernetes API nor any of 2 servers can be reached for 3.0 s";
    case.wait(1).is("isolated", &[evidence, "b does not answer: connection refused"]);
    case.answers = Some([true, false]);
    case.look().went(&["healthy", "isolated", "healthy"]);
    // Without an API the servers alone tell.
    (case.api, case.answers) = (None, Some([false, false]));
    case.look().wait(3);
    case.went(&["healthy", "isolated", "healthy", "isolated"]);
}

#[test]
fn of_several_the_most_serious_is_said_and_the_others_are_evidence() {
    let mut case = Case::new();
    let archiver = failing_archiver().archiver;
    let all = Signals { read_only: true, connections: 99, archiver, ..blocked_quorum() };
    let words = |case: &Case| -> Vec<String> {
        let health = case.judge.health().expect("something is known");
        let first = |text: &String| text.split(':').next().unwrap_or_default().to_owned();
        health.evidence.iter().map(first).collect()
    };
    case.hear(all.clone()).wait(1).hear(all);
    assert_eq!(
        words(&case),
        [
            "a has default_transaction_read_only = on",
            "also commits_blocked_on_sync_quorum",
            "also saturated",
            "also archiving_broken"
        ]
    );
    case.gate(why(Why::Moving("targetPrimary is b".into())))
        .is("switching", &["the primary moves: targetPrimary is b"]);
    let mut sorted = HealthState::ALL;
    sorted.sort();
    assert_eq!(sorted, HealthState::ALL);
}

#[test]
fn since_counts_from_the_change_of_the_word() {
    let mut case = Case::new();
    let start = case.now;
    case.hear(well()).wait(5);
    assert_eq!(case.judge.health().map(|health| health.since), Some(start));
    case.gate(why(Why::Held)).wait(5);
    assert_eq!(case.judge.health().map(|health| health.since), Some(start + SECOND * 5));
}

#[test]
fn what_is_not_seen_is_said() {
    let mut case = Case::new();
    case.answers = None;
    case.look().is("healthy", &["without monitor_user it is not seen how the servers are"]);
    let mut case = Case::new();
    case.hear(Signals { reads_stats: false, ..well() });
    let unseen = "without pg_monitor it is not seen whether commits wait for a standby, and what standbys do";
    case.is("healthy", &[unseen]);
    case.samples = Samples::default();
    let reason: Arc<str> = "canceling statement due to statement timeout".into();
    assert!(case.samples.miss(&reason) && !case.samples.miss(&reason));
    let evidence = "it is not seen how it is: canceling statement due to statement timeout";
    case.look().is("healthy", &[evidence]);
    case.hear(well()).is("healthy", &[]);
    assert!(case.samples.miss(&reason));
    case.wait(u32::try_from(AGE_MAX.as_secs()).expect("short") + 1).is("healthy", &[evidence]);
}
