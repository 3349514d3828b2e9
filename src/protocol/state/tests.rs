use super::*;
use crate::sql::state::touched;

fn state(sql: &str, rows: &[(&str, &str, &str)]) -> Told {
    let question = Question::new(&touched(sql.as_bytes()), &SessionState::default());
    let rows = rows
        .iter()
        .map(|(kind, name, value)| [kind, name, value].map(|column| Some((*column).to_owned())).to_vec());
    question.read(
        rows,
        (&SessionState::default(), Pins::empty()),
        Some("app"),
        (&Tracked::new([]), &reported()),
    )
}

fn check(from: &SessionState, to: &SessionState, undo: &str, redo: &str) {
    assert_eq!(from.toward(to), (undo.to_owned(), redo.to_owned()));
}

#[test]
fn a_state_is_set_up_and_undone_by_statements() {
    let clean = SessionState::default();
    let rows = [
        ("setting", "statement_timeout", "5000"),
        ("custom", "app.user", "o'neil"),
        ("role", "", "bob"),
        ("authorization", "", "app"),
    ];
    let one = state("set statement_timeout = 5; set app.user = 1; set role bob", &rows).state;
    let set_up = "SELECT pg_catalog.set_config('app.user','o''neil',false);\
        SELECT pg_catalog.set_config('statement_timeout','5000',false);SET ROLE \"bob\";";
    let undone = "RESET ROLE;SELECT pg_catalog.set_config('app.user',NULL,false);\
        SELECT pg_catalog.set_config('statement_timeout',NULL,false);";
    check(&clean, &one, "", set_up);
    check(&one, &clean, undone, "");
    check(&one, &one, "RESET ROLE;", "SET ROLE \"bob\";");
    assert!(one.has_time_limit() && !one.is_clean());
    let other = SessionState::of_settings([("app.user".to_owned(), "x".to_owned())]);
    check(
        &one,
        &other,
        "RESET ROLE;SELECT pg_catalog.set_config('statement_timeout',NULL,false);",
        "SELECT pg_catalog.set_config('app.user','x',false);",
    );
}

#[test]
fn prepared_statements_are_prepared_again_unless_they_came_with_others() {
    let clean = SessionState::default();
    let told = state("prepare p as select 1", &[("prepared", "p", "prepare p as select 1; -- x")]);
    assert_eq!(told.pins, Pins::empty());
    check(&clean, &told.state, "", "");
    assert_eq!(clean.lacks_prepared(&told.state).collect::<Vec<_>>(), ["prepare p as select 1; -- x"]);
    assert_eq!(told.state.lacks_prepared(&told.state).count(), 0);
    check(&told.state, &clean, "DEALLOCATE \"p\";", "");
    let told = state("prepare p as select 1", &[("prepared", "p", "select 2; prepare p as select 1")]);
    assert_eq!((told.state.words().as_str(), told.pins), ("prepared statement p", Pins::PREPARED_STATEMENT));
    let rows = [("prepared", "p", "prepare p as select 1"), ("setting", "search_path", "a")];
    let told = state("prepare p as select 1; set search_path = a", &rows);
    assert_eq!(told.pins, Pins::PREPARED_STATEMENT);
}

#[test]
fn what_is_not_asked_stays_as_it_was() {
    let before = SessionState::of_settings([("work_mem".to_owned(), "64".to_owned())]);
    let question = Question::new(&touched(b"select pg_advisory_lock(1)"), &before);
    let lock = ["lock", "", ""].map(|column| Some(column.to_owned())).to_vec();
    let told = question.read([lock], (&before, Pins::LISTEN), None, (&Tracked::new([]), &reported()));
    assert_eq!((told.state, told.pins), (before, Pins::LISTEN | Pins::ADVISORY_LOCK));
}

#[test]
fn a_pin_ends_when_the_server_says_nothing_of_its_reason() {
    let question = Question::new(&touched(b"select pg_advisory_unlock(1)"), &SessionState::default());
    let told = question.read(
        [],
        (&SessionState::default(), Pins::ADVISORY_LOCK),
        None,
        (&Tracked::new([]), &reported()),
    );
    assert_eq!(told.pins, Pins::empty());
    let question = Question::new(&touched(b"load 'x'"), &SessionState::default());
    assert!(!question.is_asked());
    let told =
        question.read([], (&SessionState::default(), Pins::empty()), None, (&Tracked::new([]), &reported()));
    assert_eq!(told.pins, Pins::LIBRARY);
    let mut dropped = touched(b"drop table t");
    ended_by(&mut dropped, Pins::empty());
    assert_eq!(dropped.parts, Parts::empty());
    let mut dropped = touched(b"drop table t");
    ended_by(&mut dropped, Pins::TEMPORARY_OBJECT);
    assert_eq!(dropped.parts, Parts::TEMPORARY);
}

#[test]
fn settings_with_a_dot_that_were_set_before_are_asked_for_again() {
    let before = SessionState::of_settings([("a.b".to_owned(), "1".to_owned())]);
    let question = Question::new(&touched(b"reset all"), &before);
    assert!(question.sql(false).contains("current_setting('a.b', true)"));
    let told = question.read(
        [vec![Some("custom".into()), Some("a.b".into()), None]],
        (&before, Pins::empty()),
        None,
        (&Tracked::new([]), &reported()),
    );
    assert!(told.state.is_clean());
}

#[test]
fn what_is_reset_has_the_value_of_the_startup_message_again() {
    let asked = [("work_mem".to_owned(), "64".to_owned()), ("a.b".to_owned(), "1".to_owned())];
    let told = state("reset work_mem", &[("setting", "geqo", "on"), ("setting", "a.b", "2")]);
    let mut now = told.state;
    now.add_missing(&asked);
    let expected = [("a.b", "2"), ("geqo", "on"), ("work_mem", "64")];
    let expected =
        SessionState::of_settings(expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(now, expected);
    let question = Question::new(&touched(b"reset all"), &SessionState::default());
    let row = ["setting", "timezone", "UTC"].map(|column| Some(column.to_owned())).to_vec();
    let told = question.read(
        [row],
        (&SessionState::default(), Pins::empty()),
        None,
        (&Tracked::new([]), &reported()),
    );
    assert_eq!((told.state.is_clean(), told.tracked.len()), (true, 1));
}

#[test]
fn a_time_limit_that_our_question_lifts_is_told_as_it_was() {
    let settings = |rows: &[(&str, &str, &str)]| state("set statement_timeout = 5", rows).state;
    let expected =
        |value: &str| SessionState::of_settings([("statement_timeout".to_owned(), value.to_owned())]);
    let lifted = ("limit", "statement_timeout", "5");
    let ours = ("setting", "statement_timeout", "0");
    assert_eq!(settings(&[lifted, ours, ("default", "statement_timeout", "0")]), expected("5"));
    assert_eq!(settings(&[lifted, ("default", "statement_timeout", "7"), ours]), expected("5"));
    assert!(
        settings(&[lifted, ours, ("default", "statement_timeout", "5")]).is_clean(),
        "ALTER ROLE has set it"
    );
    assert_eq!(settings(&[ours, ("default", "statement_timeout", "5")]), expected("0"));
    assert!(expected("5").has_time_limit() && !expected("0").has_time_limit());
}

#[test]
fn what_is_no_utf8_keeps_its_server() {
    assert_eq!(state("set app.x = 1", &[("custom", "app.x", "a\u{fffd}")]).pins, Pins::SETTING);
    let told = state("prepare p as select 1", &[("prepared", "p", "prepare p as select '\u{fffd}'")]);
    assert_eq!(told.pins, Pins::PREPARED_STATEMENT);
}

#[test]
fn names_mean_something_else_under_another_search_path_or_role() {
    let environment = |name: &str, value: &str| {
        SessionState::of_settings([(name.to_owned(), value.to_owned())]).environment()
    };
    assert_eq!(environment("work_mem", "1"), b"");
    assert_ne!(environment("search_path", "a"), environment("search_path", "b"));
    assert_ne!(environment("search_path", ""), b"", "it is not that of the login");
    assert_eq!(SessionState::default().environment(), b"");
}

/// What a server reports that tracks nothing besides.
fn reported() -> ParameterSet {
    (0..5).fold(ParameterSet::default(), |set, index| set.with(index, ""))
}
