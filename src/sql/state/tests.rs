use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn check(sql: &str, parts: Parts) {
    assert_eq!(touched(sql.as_bytes()).parts, parts, "{sql}");
}

#[test]
fn what_leaves_nothing_behind_is_plain() {
    for sql in [
        "",
        "select 1;",
        "select 1; select 2",
        "SELECT * FROM templates WHERE temperature > 1",
        "select 'SET x; pg_advisory_lock(1)'",
        "insert into t values ($$set_config('a', 'b', false)$$)",
        "set local session.x = 1",
        "update t set a = 1",
        "begin; update t set role = 1; commit",
        "set local statement_timeout = 1",
        "SET TRANSACTION READ ONLY",
        "set constraints all deferred",
        "select set_config('a.b', $1, true)",
        "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
        "declare c cursor for select 1",
        "prepare transaction 'x'",
        "create table t (a int)",
        "-- set x = 1\nselect 1",
    ] {
        check(sql, Parts::empty());
    }
}

#[test]
fn each_statement_names_the_parts_that_it_may_change() {
    for (sql, parts) in [
        ("SET statement_timeout = '5s'", Parts::SETTINGS | Parts::LIMITS),
        ("SET work_mem = '5MB'", Parts::SETTINGS),
        ("select 1; /* x */ Set Session a = 1", Parts::SETTINGS),
        ("reset all", Parts::SETTINGS),
        ("set session authorization bob", Parts::SETTINGS),
        ("SELECT pg_catalog.set_config('search_path', '', false)", Parts::SETTINGS),
        ("select set_config($1, $2, false)", Parts::SETTINGS | Parts::ANY_SETTING),
        ("select set_config('a', f(1, true), $1)", Parts::SETTINGS),
        ("set seed = 0.5", Parts::OTHERS),
        ("select setseed(0.5)", Parts::OTHERS),
        ("select Pg_Try_Advisory_Lock(1)", Parts::LOCKS),
        ("select \"pg_advisory_unlock_all\"()", Parts::LOCKS),
        ("create temp table t (a int)", Parts::TEMPORARY),
        ("select * into temporary t from u", Parts::TEMPORARY),
        ("create table pg_temp.t ()", Parts::TEMPORARY),
        ("declare c cursor with hold for select 1", Parts::CURSORS),
        ("close c", Parts::ENDS),
        ("drop table t", Parts::ENDS),
        ("listen a; unlisten *", Parts::CHANNELS),
        ("prepare p as select 1", Parts::PREPARED),
        ("deallocate p", Parts::PREPARED),
        ("load 'x'", Parts::LIBRARIES),
        ("select currval('s'), lastval ( )", Parts::SEQUENCES),
        ("do $$ begin end $$", Parts::TOLD),
        ("do $$ begin perform setseed(0.5); end $$", Parts::TOLD | Parts::OTHERS),
        ("do $$ begin execute 'set a.b = 1'; end $$", Parts::TOLD | Parts::ANY_SETTING),
        ("do E'begin end'", Parts::TOLD | Parts::ANY_SETTING),
        ("do language plperl $$ $$", Parts::TOLD | Parts::ANY_SETTING),
        ("create table \"pg_temp\".t ()", Parts::TEMPORARY),
        ("explain analyze execute p (1)", Parts::EXECUTES | Parts::SETTINGS),
        ("create table t as execute p", Parts::EXECUTES | Parts::SETTINGS),
        (
            "create function f() returns void language sql as $$ select currval('s'), set_config('a', '', false) $$",
            Parts::FUNCTIONS | Parts::ENDS | Parts::SETTINGS,
        ),
        ("call p()", Parts::TOLD),
        ("discard all", Parts::TOLD),
        ("select pg_advisory_lock /* x */ -- (\n (1)", Parts::LOCKS),
        ("select U&\"pg_advisory_loc\\006b\"(1)", Parts::TOLD | Parts::ANY_SETTING),
    ] {
        check(sql, parts);
    }
}

proptest! {
    /// Most texts are not read by the lexer.
    #[test]
    fn a_text_that_is_only_glanced_at_is_one_that_the_lexer_finds_nothing_in(
        pieces in vec(select(PIECES), 1..12),
    ) {
        let sql = pieces.concat();
        let mut read = Touched::by_calls(sql.as_bytes());
        note_readings(sql.as_bytes(), &mut read, note_texts);
        prop_assert_eq!(touched(sql.as_bytes()), read, "{}", sql);
    }
}

const PIECES: &[&str] = &[
    "select ",
    "SELECT ",
    "explain ",
    "with ",
    "set a = 1",
    "eXecute",
    " execute p",
    "x",
    "m",
    "Temp",
    " into temp t",
    "pg_temp.t",
    "tempo ",
    ";",
    "; ",
    "u&\"a\"",
    "U&\"",
    "&",
    "\"",
    "'",
    "\\'",
    "$$",
    "(",
    " (",
    ")",
    "set_config",
    "Pg_Advisory_Lock",
    "\"pg_notify\"",
    "currval",
    "f",
    "/*",
    "*/",
    "--",
    "\n",
    " ",
    ".",
    ",",
];

#[test]
fn a_call_of_a_function_is_noted_by_name() {
    assert_eq!(touched(b"select set_tenant(5) where a in (1)").calls, ["set_tenant".into()]);
    assert!(touched(b"select a from t where a in (1)").is_empty());
}

#[test]
fn hostile_texts_cost_no_more_than_their_length() {
    for piece in ["set_config(", "set x ,", "((((", "do $$ $$;", "$a$", "\"", "f("] {
        let text = piece.repeat(LOOK_MAX / piece.len());
        touched(text.as_bytes());
        touched_by_body(text.as_bytes());
    }
    // Texts in texts, none of which ends; with a backslash each may be read in two ways.
    for end in ["", "\\'"] {
        let mut nested: String = (0..LOOK_MAX / 12).map(|level| format!("do $a{level}$")).collect();
        nested.push_str(end);
        assert!(touched(nested.as_bytes()).parts.contains(Parts::ANY_SETTING), "nobody knows what it does");
        touched_by_body(nested.as_bytes());
    }
    let mut huge = b"insert into t values (".to_vec();
    huge.resize(16 * 1024 * 1024, b',');
    assert_eq!(touched(&huge).parts, Parts::TOLD);
    huge[..6].copy_from_slice(b"set x ");
    assert_eq!(touched(&huge).parts, Parts::TOLD | Parts::ANY_SETTING);
}

#[test]
fn settings_with_a_dot_are_known_by_name() {
    let touched =
        touched(b"set app.user = 1; set session.x = 2; reset \"my\".x; select set_config('c.d', '', false)");
    let expected = ["app.user", "session.x", "my.x", "c.d"].map(Box::from);
    assert_eq!(touched.custom, expected);
}

#[test]
fn a_setting_whose_name_may_be_in_any_encoding_is_not_asked_for() {
    for sql in [&b"set app.\xe9 = 1"[..], b"set app.\"\xe9\" = 1", "set app.é = 1".as_bytes()] {
        let touched = touched(sql);
        assert_eq!((touched.parts, touched.custom.len()), (Parts::SETTINGS | Parts::ANY_SETTING, 0));
    }
}

#[test]
fn a_string_that_ends_with_a_backslash_may_not_end_there() {
    check(r"select 'a\', b", Parts::empty());
    check(r"select '\'', set_config('a', 'b', false), 'c'", Parts::SETTINGS);
    check(r"select '\', set_config('a', 'b', false), 'c'", Parts::SETTINGS);
    check(r"do $$ begin raise notice '\''; perform setseed(1); --'; end $$", Parts::TOLD | Parts::OTHERS);
    let mut local = touched(br"set a = '\'; set local b = 1; --'");
    local.add_tag(b"SET");
    assert_eq!(local.parts, Parts::SETTINGS);
}

#[test]
fn a_set_that_the_lexer_overlooked_is_known_by_its_tag() {
    let mut local = touched(b"set local a = 1");
    local.add_tag(b"SET\0");
    assert_eq!(local.parts, Parts::empty());
    local.add_tag(b"SET\0");
    assert_eq!(local.parts, Parts::SETTINGS);
}
