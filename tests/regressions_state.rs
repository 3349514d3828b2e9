//! Ways in which what a client had made of its session once got lost, or reached somebody else.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use support::message::{self, bind, execute, parse, query, run_of, sync};
use support::stage::{Stage, outcome};
use support::{Login, Pooler, Raw, eventually};

#[tokio::test]
async fn however_it_is_written_a_setting_is_seen() {
    let mut stage = Stage::start().await;
    for sql in [
        "CREATE FUNCTION set_a() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'A', false) $$",
        "CREATE FUNCTION \"set\"\"b\"(a text, b int) RETURNS text LANGUAGE sql AS $$ SELECT set_a() $$",
        "CREATE AGGREGATE aggregate_a(int) (SFUNC = \"set\"\"b\", STYPE = text)",
    ] {
        stage.pooler.sql(sql).await;
    }
    for sets in [
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'A', false); END $$",
        "SET session.tenant = 'A'",
        "SET local.tenant = 'A'",
        "SET transaction.tenant = 'A'",
        "PREPARE p AS SELECT set_config('app.tenant', 'A', false)\nA: EXPLAIN ANALYZE EXECUTE p",
        "DISCARD ALL",
        "CREATE FUNCTION mig() RETURNS void LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'A', false) $$; \
         SELECT mig(); DROP FUNCTION mig()",
        "SELECT set_a/* so */()",
        "SELECT set_a -- so\r ()",
        "SELECT \"set\"\"b\"('', 1)",
        "SELECT aggregate_a(1)",
        "SELECT set_config('standard_conforming_strings', 'off', false)
         A: SELECT '\\'', set_config('app.tenant', 'A', false), 'c'",
    ] {
        let name = sets.split([' ', '.']).nth(1).filter(|_| sets.starts_with("SET")).unwrap_or("app");
        let show = format!("SELECT coalesce(nullif(current_setting('{name}.tenant', true), ''), 'none')");
        stage.play(&format!("A: {sets}")).await;
        stage.play(&format!("B: {show} => none")).await;
        let expected = if sets == "DISCARD ALL" { "none" } else { "A" };
        stage.play(&format!("A: {show} => {expected}")).await;
        stage.play("A: DEALLOCATE ALL").await;
        let (mut fresh, pooler) = (stage.pooler.client().await, &stage.pooler);
        std::mem::swap(&mut stage.a, &mut fresh);
        drop(fresh);
        eventually("nobody is pinned", async || pooler.admin("SHOW PINS").await.is_empty()).await;
    }
}

#[tokio::test]
async fn a_set_that_comes_in_two_pieces_is_seen() {
    let mut stage = Stage::start().await;
    stage.play("A: BEGIN").await;
    let set = query("SET app.tenant = 'A'");
    stage.a.send(&set[..9]).await;
    // The pooler has read it when it has answered another one.
    stage.pooler.admin("SHOW VERSION").await;
    stage.a.send(&set[9..]).await;
    stage.a.until(b'Z').await.is("C(SET) Z(T)");
    stage
        .play(
            "A: COMMIT
             B: SELECT coalesce(current_setting('app.tenant', true), 'none') =>
             A: SHOW app.tenant => A",
        )
        .await;
}

#[tokio::test]
async fn a_temporary_table_without_the_word_keeps_its_server() {
    let mut stage = Stage::start().await;
    for creates in [
        "CREATE TABLE \"pg_temp\".t (a int)",
        "SET search_path = pg_temp, public; CREATE TABLE t (a int)",
        "CREATE FUNCTION mk() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE t (a int); END $$",
    ] {
        stage.play(&format!("A: {creates}")).await;
        if creates.contains("FUNCTION") {
            stage.play("A: PREPARE p AS SELECT mk()\nA: EXECUTE p =>").await;
        }
        let pooler = &stage.pooler;
        eventually("A is pinned", async || pooler.admin("SHOW PINS").await.len() == 1).await;
        stage.play("A: DISCARD ALL\nB: SELECT count(*) FROM pg_class WHERE relname = 't' => 0").await;
    }
}

#[tokio::test]
async fn nothing_runs_on_a_session_that_could_not_be_set_up() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "B: CREATE TABLE log (who text)
             B: CREATE TABLE gone (a int)
             A: PREPARE p AS SELECT * FROM gone
             B: DROP TABLE gone",
        )
        .await;
    stage.a.send(query("INSERT INTO log SELECT current_user")).await;
    assert_eq!(stage.a.rest().await.farewell(), "FATAL 08P01 invalid server parameter");
    stage.play("B: SELECT count(*) FROM log => 0").await;
}

#[tokio::test]
async fn currval_is_never_anothers_however_often_the_server_changed_hands() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: CREATE SEQUENCE s
             A: SELECT nextval('s') => 1
             B: SELECT 1 => 1
             B: SELECT currval('s') => E(55000)",
        )
        .await;
    let mut stage = Stage::start().await;
    stage.play("A: CREATE SEQUENCE s\nA: SELECT nextval('s') => 1").await;
    let prepared = run_of([parse("c", "SELECT currval('s')"), sync()]);
    stage.b.ask(prepared).await.is("1 Z(I)");
    stage.play("A: SELECT nextval('s') => 2").await;
    stage.b.ask(run_of([bind("", "c", &[]), execute("", 0), sync()])).await.is("2 E(55000) Z(I)");
}

#[tokio::test]
async fn currval_of_a_statement_that_sql_executes_is_not_anothers_either() {
    let mut stage = Stage::start().await;
    stage.b.ask(run_of([parse("c", "SELECT currval('s')"), sync()])).await.is("E(42P01) Z(I)");
    stage.play("A: CREATE SEQUENCE s\nA: SELECT nextval('s') => 1").await;
    stage.b.ask(run_of([parse("c", "SELECT currval('s')"), sync()])).await.is("1 Z(I)");
    stage.play("A: SELECT nextval('s') => 2\nB: EXECUTE c => E(55000)\nB: SELECT nextval('s') => 3\nB: EXECUTE c => 3").await;
}

#[tokio::test]
async fn currval_behind_another_transaction_in_one_write_is_an_error_and_no_end() {
    let mut stage = Stage::start().await;
    stage.play("A: CREATE SEQUENCE s\nA: SELECT nextval('s') => 1").await;
    let batch = |sql| run_of([parse("", sql), bind("", "", &[]), execute("", 0), sync()]);
    stage
        .b
        .ask(run_of([batch("SELECT nextval('s')"), batch("SELECT currval('s')")]))
        .await
        .is("1 2 D(2) C(SELECT 1) Z(I)");
    stage.b.until(b'Z').await.is("1 2 E(55000) Z(I)");
    stage.play("B: SELECT nextval('s') => 3\nB: SELECT currval('s') => 3").await;
    let mut stage = Stage::start().await;
    stage.play("A: CREATE SEQUENCE s\nA: SELECT nextval('s') => 1").await;
    stage
        .b
        .ask(run_of([query("SELECT nextval('s')"), query("SELECT lastval()")]))
        .await
        .is("T D(2) C(SELECT 1) Z(I)");
    stage.b.until(b'Z').await.is("T E(55000) Z(I)");
}

#[tokio::test]
async fn a_tiny_time_limit_of_the_clients_does_not_end_its_session() {
    let mut stage = Stage::start().await;
    // The server takes longer than that to tell of so many.
    let many = run_of((0..3000).map(|number| query(&format!("PREPARE p{number} AS SELECT 1"))));
    stage.a.send(many).await;
    assert_eq!(stage.a.ready(3000).await.count(b'E'), 0);
    stage.play("A: SET statement_timeout = '1ms'").await;
    for sql in ["PREPARE q AS SELECT 1", "DEALLOCATE q"].repeat(3) {
        // They may be too slow for it themselves.
        let said = outcome(&stage.a.query(sql).await);
        assert!(["PREPARE", "DEALLOCATE", "E(57014)", "E(42P05)", "E(26000)"].contains(&&*said), "{said}");
    }
    while outcome(&stage.a.query("SET statement_timeout = '30001ms'").await) != "SET" {}
    stage
        .play(
            "A: DEALLOCATE ALL
             B: SHOW statement_timeout => 0
             A: SHOW statement_timeout => 30001ms
             A: SELECT source, setting FROM pg_settings WHERE name = 'statement_timeout' => session,30001
             A: RESET statement_timeout
             B: SHOW statement_timeout => 0
             A: SHOW statement_timeout => 0",
        )
        .await;
}

#[tokio::test]
async fn what_a_client_of_another_encoding_has_set_survives_letter_by_letter() {
    for (encoding, letter, code) in
        [("LATIN1", &b"\xe9"[..], 0xe9), ("SJIS", b"\x95\x5c", 0x8868), ("UTF8", b"\xc3\xa9", 0xe9)]
    {
        let pooler = Pooler::config().start().await;
        let login = Login::new("app", "app").option("client_encoding", encoding);
        let (a, b) = (Raw::login(&pooler.tcp(), &login).await, pooler.client().await);
        let mut stage = Stage { pooler, a, b };
        let ask = |sql: &str| {
            message::message(b'Q', &sql.split('@').map(str::as_bytes).collect::<Vec<_>>().join(letter))
        };
        let other = || "B: SELECT ascii('é') => 233";
        for (set, get) in [
            ("SET app.name = '@'\0", "ascii(current_setting('app.name'))"),
            ("SET search_path = '@', public\0", r#"ascii(ltrim(current_setting('search_path'), '"'))"#),
            (
                "SELECT set_config('app.name', 'x@x', false)\0",
                "ascii(substr(current_setting('app.name'), 2))",
            ),
        ] {
            assert!(stage.a.ask(ask(set)).await.count(b'E') == 0, "{encoding}: {set}");
            stage.play(other()).await;
            stage.play(&format!("A: SELECT {get} => {code}")).await;
        }
        stage.play("A: RESET search_path").await;
        assert_eq!(stage.a.ask(ask("PREPARE \"@\" AS SELECT ascii('@'), 'it''s @'\0")).await.count(b'E'), 0);
        for _ in 0..2 {
            stage.play(other()).await;
            let reply = stage.a.ask(ask("EXECUTE \"@\"\0")).await;
            assert_eq!(reply.rows()[0][0], code.to_string(), "{encoding}");
            stage
                .play(&format!(
                    "A: SHOW client_encoding => {encoding}\nA: SET client_encoding = '{encoding}'"
                ))
                .await;
        }
        assert!(stage.pooler.admin("SHOW PINS").await.is_empty());
    }
}

#[tokio::test]
async fn a_session_that_is_too_large_to_be_carried_is_told_so() {
    let mut stage = Stage::start().await;
    let many =
        "DO $$ BEGIN FOR n IN 1..10001 LOOP EXECUTE 'PREPARE p' || n || ' AS SELECT 1'; END LOOP; END $$";
    let long = "SELECT set_config('app.name', repeat('x', 1048576), false)";
    for (sql, said) in [(many, "The session has 10001 settings"), (long, " with 1048584 bytes of text")] {
        let mut client = stage.pooler.client().await;
        client.send(query(sql)).await;
        let rest = client.rest().await;
        assert_eq!(rest.farewell(), "FATAL 54000 session state is too large");
        let detail = rest.messages.last().unwrap().field(b'D');
        assert!(detail.contains(said), "{detail}");
        stage.play("B: SELECT count(*) FROM pg_prepared_statements WHERE from_sql => 0").await;
    }
}

#[tokio::test]
async fn a_reload_that_begins_to_watch_gives_nothing_away() {
    for (from, to) in [
        ("pool_mode = session", "pool_mode = transaction"),
        ("session_state = pgbouncer", "session_state = replay_and_pin"),
    ] {
        let (name, value) = from.split_once(" = ").unwrap();
        let pooler = Pooler::config().setting(name, value).start().await;
        let mut stage = Stage::on(pooler).await;
        stage.play("A: SET work_mem = '1MB'").await;
        stage.pooler.edit(from, to);
        stage.pooler.admin("RELOAD").await;
        let Stage { pooler, a, .. } = &mut stage;
        eventually("A has let go of its server", async || {
            assert_eq!(outcome(&a.query("SELECT 1").await), "1");
            pooler.pool("sv_idle").await == 1
        })
        .await;
        stage.play("B: SHOW work_mem => 4MB").await;
    }
}

#[tokio::test]
async fn a_role_of_the_startup_message_can_be_given_up() {
    let pooler = Pooler::config().start().await;
    pooler.sql("GRANT plain_user TO app").await;
    let login = Login::new("app", "app").option("options", "-c role=plain_user");
    let a = Raw::login(&pooler.tcp(), &login).await;
    let b = pooler.client().await;
    let mut stage = Stage { pooler, a, b };
    stage
        .play(
            "A: SELECT current_user => plain_user
             B: SELECT current_user => app
             A: SET ROLE NONE
             B: SELECT current_user => app
             A: SELECT current_user => app",
        )
        .await;
}

#[tokio::test]
async fn a_client_that_keeps_its_server_hears_why_it_ends() {
    let mut stage = Stage::start().await;
    stage.play("A: SELECT pg_advisory_lock(7)").await;
    let pooler = &stage.pooler;
    eventually("A is pinned", async || pooler.admin("SHOW PINS").await.len() == 1).await;
    stage.pooler.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()").await;
    let rest = stage.a.rest().await;
    assert!(rest.farewell().starts_with("FATAL 57P01 "), "{rest}");
    stage.play("B: SELECT pg_try_advisory_lock(7) => t").await;
}
