use super::*;
use crate::config::Host;

const SECOND: Duration = Duration::from_secs(1);
const SYSTEM: u64 = 7001;

fn place(name: &str) -> Place {
    Place { uid: Some(format!("uid-{name}").into()), host: Host::Tcp(format!("10.0.0.{name}")), port: 5432 }
}

fn member(name: &str) -> Member {
    Member {
        name: name.into(),
        place: place(name),
        zone: None,
        ready: true,
        terminating: false,
        fenced: None,
    }
}

fn observation(primary: Named) -> Observation {
    Observation {
        incarnation: Some("cluster-1".into()),
        members: vec![member("a"), member("b")],
        primary,
        system_id: Some(SYSTEM),
        timeline: None,
        phase: None,
    }
}

fn named(name: &str) -> Observation {
    observation(Named::Member(name.into()))
}

fn moving(to: Option<&str>) -> Observation {
    observation(Named::Moving {
        from: Some("a".into()),
        to: to.map(Arc::from),
        reason: "Switchover in progress".into(),
    })
}

fn primary(timeline: u32) -> Identity {
    Identity { in_recovery: false, system_id: SYSTEM, timeline }
}

fn standby(timeline: u32) -> Identity {
    Identity { in_recovery: true, ..primary(timeline) }
}

/// A gate and the clock that a test moves.
struct Case {
    gate: Gate,
    now: Instant,
}

impl Case {
    fn new() -> Case {
        let now = Instant::now();
        Case { gate: Gate::new(now), now }
    }

    /// Open for `a` on timeline 1.
    fn open() -> Case {
        let mut case = Case::new();
        case.observe(named("a"));
        case.identity("a", primary(1));
        case.is("open", "a", &[Act::Open(place("a"))]);
        case
    }

    fn observe(&mut self, observation: Observation) {
        self.gate.handle_observation(observation, self.now);
    }

    fn identity(&mut self, name: &str, identity: Identity) {
        self.gate.handle_identity(&place(name), identity, self.now);
    }

    fn is(&mut self, state: &str, name: &str, acts: &[Act]) {
        assert_eq!(self.gate.state().name(), state, "{:?}", self.gate.state());
        let member = self.gate.state().member().map_or("", |member| &*member.name);
        assert_eq!(member, name, "{:?}", self.gate.state());
        assert_eq!(self.gate.take_acts(), acts);
    }

    fn why(&self) -> &'static str {
        self.gate.state().why().map_or("", Why::label)
    }
}

#[test]
fn it_opens_when_the_source_and_the_server_agree() {
    let mut case = Case::new();
    case.is("hold", "", &[]);
    case.observe(named("a"));
    case.is("verify", "a", &[]);
    assert_eq!(case.gate.poll_verify(case.now), Some(member("a")), "it is asked at once");
    assert_eq!(case.gate.poll_verify(case.now), None, "and once");
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Open(place("a"))]);
    case.observe(named("a"));
    case.is("open", "a", &[]);
}

#[test]
fn a_planned_move_drains_and_then_cuts_and_opens() {
    let mut case = Case::open();
    case.observe(moving(Some("b")));
    case.is("draining", "a", &[Act::Drain(place("a"))]);
    case.observe(moving(None));
    case.is("draining", "a", &[]);
    case.observe(named("b"));
    case.is("verify", "b", &[Act::Sever(place("a"))]);
    case.identity("b", standby(1));
    assert_eq!(case.why(), "in_recovery");
    case.is("verify", "b", &[]);
    case.identity("b", primary(2));
    case.is("open", "b", &[Act::Open(place("b"))]);
}

#[test]
fn a_new_primary_opens_when_its_old_sessions_have_ended_or_do_not_end() {
    let verified = || {
        let mut case = Case::open();
        case.observe(moving(Some("b")));
        case.observe(named("b"));
        case.gate.take_acts();
        assert!(case.gate.handle_old_session(&place("b"), case.now));
        assert_eq!(case.why(), "old_sessions");
        case
    };
    let mut case = verified();
    assert!(!case.gate.handle_old_session(&place("a"), case.now), "another's");
    case.identity("b", primary(2));
    case.is("open", "b", &[Act::Open(place("b"))]);
    assert!(!case.gate.handle_old_session(&place("b"), case.now), "it is open");
    let mut case = verified();
    case.now += OLD_SESSIONS_MAX;
    assert!(!case.gate.handle_old_session(&place("b"), case.now));
}

#[test]
fn a_primary_that_stays_is_not_waited_for_because_of_an_old_session() {
    let mut case = Case::open();
    case.gate.handle_trouble(&place("a"), "lost", case.now);
    assert!(!case.gate.handle_old_session(&place("a"), case.now));
}

#[test]
fn a_move_that_is_called_off_opens_the_old_primary_again() {
    let mut case = Case::open();
    case.observe(moving(Some("b")));
    case.is("draining", "a", &[Act::Drain(place("a"))]);
    case.observe(named("a"));
    case.is("verify", "a", &[]);
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn trouble_at_the_primary_has_it_asked_before_anything_new_begins() {
    let mut case = Case::open();
    case.gate.handle_trouble(&place("b"), "lost", case.now);
    case.is("open", "a", &[]);
    case.gate.handle_trouble(&place("a"), "lost", case.now);
    case.is("verify", "a", &[]);
    assert_eq!(case.why(), "unreachable");
    assert!(case.gate.poll_verify(case.now).is_some());
    case.gate.handle_silence(&place("a"), "connection refused", case.now);
    case.is("verify", "a", &[Act::Drain(place("a"))]);
    assert_eq!(case.gate.poll_verify(case.now), None, "there is a pause");
    let mut pause = RETRY_FIRST;
    for _ in 0..10 {
        case.now += pause;
        assert!(case.gate.poll_verify(case.now).is_some(), "after {pause:?}");
        case.gate.handle_silence(&place("a"), "connection refused", case.now);
        case.is("verify", "a", &[]);
        pause = (pause * 2).min(RETRY_MAX);
    }
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn a_failover_after_trouble_cuts_the_lost_primary() {
    let mut case = Case::open();
    case.gate.handle_trouble(&place("a"), "lost", case.now);
    case.observe(moving(None));
    case.is("draining", "a", &[Act::Drain(place("a"))]);
    case.observe(named("b"));
    case.is("verify", "b", &[Act::Sever(place("a"))]);
}

#[test]
fn what_the_source_says_against_the_primary_holds() {
    let fenced = |by: &str| {
        let mut observation = named("a");
        observation.members[0].fenced = Some(by.into());
        observation
    };
    let mut terminating = named("a");
    terminating.members[0].terminating = true;
    let mut absent = named("a");
    absent.members.remove(0);
    let several = observation(Named::Several(vec!["a".into(), "b".into()]));
    for (observation, state, name, why) in [
        (fenced("cnpg.io/fencedInstances"), "draining", "a", "fenced"),
        (terminating, "draining", "a", "terminating"),
        (absent, "draining", "a", "absent"),
        (observation(Named::Nobody("hibernated".into())), "draining", "a", "no_primary"),
        (several, "hold", "", "several_primaries"),
    ] {
        let mut case = Case::open();
        case.observe(observation);
        assert_eq!((case.gate.state().name(), case.why()), (state, why));
        assert_eq!(case.gate.state().member().map_or("", |member| &*member.name), name);
    }
}

#[test]
fn a_pod_made_anew_under_the_same_name_is_another_place() {
    let mut case = Case::open();
    let mut anew = named("a");
    anew.members[0].place.uid = Some("uid-2".into());
    let new_place = anew.members[0].place.clone();
    case.observe(anew);
    case.is("verify", "a", &[Act::Sever(place("a"))]);
    // The old pod's late answer opens nothing.
    case.identity("a", primary(1));
    case.is("verify", "a", &[]);
    case.gate.handle_identity(&new_place, primary(1), case.now);
    case.is("open", "a", &[Act::Open(new_place)]);
}

#[test]
fn another_system_or_an_older_timeline_is_never_written_to() {
    let mut case = Case::new();
    case.observe(named("a"));
    case.identity("a", Identity { system_id: 1, ..primary(1) });
    assert_eq!(case.why(), "other_system");
    case.observe(Observation { timeline: Some(3), ..named("a") });
    case.identity("a", primary(2));
    assert_eq!(case.why(), "old_timeline");
    case.identity("a", primary(3));
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn a_higher_timeline_elsewhere_makes_the_open_primary_stale() {
    let mut case = Case::open();
    case.identity("b", standby(2));
    case.is("open", "a", &[]);
    case.identity("b", primary(2));
    case.is("verify", "a", &[Act::Sever(place("a"))]);
    assert_eq!(case.why(), "old_timeline");
    case.identity("a", primary(1));
    case.is("verify", "a", &[]);
}

#[test]
fn the_open_primary_that_goes_into_recovery_is_cut() {
    let mut case = Case::open();
    case.identity("a", standby(1));
    case.is("verify", "a", &[Act::Sever(place("a"))]);
    assert_eq!(case.why(), "in_recovery");
}

#[test]
fn a_restored_cluster_has_timelines_of_its_own_and_going_back_works() {
    let mut case = Case::open();
    let mut restored = named("a");
    restored.incarnation = Some("cluster-2".into());
    restored.members[0].place.uid = Some("restored".into());
    let there = restored.members[0].place.clone();
    case.observe(restored);
    case.gate.handle_identity(&there, primary(5), case.now);
    case.is("open", "a", &[Act::Sever(place("a")), Act::Open(there.clone())]);
    case.observe(named("a"));
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Sever(there), Act::Open(place("a"))]);
}

#[test]
fn a_new_timeline_behind_the_same_address_cuts_what_runs_on_the_old_one() {
    let mut case = Case::open();
    case.gate.handle_trouble(&place("a"), "lost", case.now);
    case.identity("a", primary(2));
    case.is("open", "a", &[Act::Sever(place("a")), Act::Open(place("a"))]);
}

#[test]
fn hold_waits_for_the_drain_and_lapses_by_itself() {
    let mut case = Case::open();
    case.gate.hold(case.now + SECOND, case.now);
    case.is("draining", "a", &[Act::Drain(place("a"))]);
    assert_eq!((case.why(), case.gate.next_deadline()), ("held", Some(case.now + SECOND)));
    case.now += SECOND;
    case.gate.tick(case.now);
    case.is("verify", "a", &[]);
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn hold_is_kept_while_the_primary_moves_and_released_by_hand() {
    let mut case = Case::open();
    case.gate.hold(case.now + SECOND, case.now);
    case.observe(named("b"));
    case.is("hold", "", &[Act::Drain(place("a")), Act::Sever(place("a"))]);
    case.gate.release(case.now);
    case.is("verify", "b", &[]);
}

#[test]
fn on_the_side_that_has_lost_everybody_nothing_is_written() {
    let mut case = Case::open();
    case.gate.set_isolated(true, case.now);
    case.is("draining", "a", &[Act::Drain(place("a"))]);
    assert_eq!(case.why(), "isolated");
    case.gate.set_isolated(false, case.now);
    case.identity("a", primary(1));
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn without_a_user_to_ask_as_the_source_is_trusted() {
    let mut case = Case::new();
    case.observe(named("a"));
    case.gate.trust(&place("b"), case.now);
    case.is("verify", "a", &[]);
    case.gate.trust(&place("a"), case.now);
    case.is("open", "a", &[Act::Open(place("a"))]);
}

#[test]
fn each_reason_is_a_sentence() {
    let name = || Arc::from("a");
    for (why, text) in [
        (Why::Nobody("hibernated".into()), "no primary: hibernated"),
        (
            Why::Fenced(name(), "cnpg.io/fencedInstances".into()),
            "the primary a is fenced by cnpg.io/fencedInstances",
        ),
        (Why::InRecovery(name()), "standby a is not promoted yet"),
        (
            Why::OldTimeline { name: name(), found: 1, highest: 2 },
            "a is on timeline 1, but the cluster has been on 2",
        ),
    ] {
        assert_eq!(why.to_string(), text);
    }
}
