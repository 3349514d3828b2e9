//! Scenario group S: what a client makes of its session stays its own, and stays.
//!
//! Standard set-up: transaction mode, one server connection, clients A and B.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use support::message::{extended, query, run_of, sync};
use support::stage::{Stage, outcome};
use support::{Login, Pooler, Raw, eventually};

/// The pids of the servers that PostgreSQL knows of the pooler's.
const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
     AND usename = 'app'";

#[tokio::test]
async fn s1_a_setting_is_its_clients_own_on_every_server() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: SET statement_timeout = '5s' => SET
             B: SHOW statement_timeout => 0
             A: SHOW statement_timeout => 5s
             B: SHOW statement_timeout => 0
             B: SET statement_timeout = '7s'
             A: SHOW statement_timeout => 5s
             A: RESET statement_timeout => RESET
             A: SHOW statement_timeout => 0
             B: SHOW statement_timeout => 7s",
        )
        .await;
    // The same in the extended protocol.
    let set = run_of([extended("SET statement_timeout = '6s'", &[]), sync()]);
    stage.a.ask(set).await.is("1 2 n C(SET) Z(I)");
    stage
        .play(
            "B: SHOW statement_timeout => 7s
             A: SHOW statement_timeout => 6s",
        )
        .await;
    stage.pooler.is_clean().await;
}

#[tokio::test]
async fn s2_a_setting_of_a_transaction_is_kept_by_commit_and_lost_by_rollback() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: BEGIN
             A: SELECT 1
             A: SET statement_timeout = '5s'
             A: COMMIT
             B: SHOW statement_timeout => 0
             A: SHOW statement_timeout => 5s
             A: BEGIN
             A: SET statement_timeout = '9s'
             A: SHOW statement_timeout => 9s
             A: ROLLBACK
             B: SHOW statement_timeout => 0
             A: SHOW statement_timeout => 5s
             A: BEGIN
             A: SET statement_timeout = '6s'
             A: SAVEPOINT s
             A: SET statement_timeout = '7s'
             A: ROLLBACK TO s
             A: SAVEPOINT t
             A: SET lock_timeout = '1s'
             A: RELEASE t
             A: COMMIT
             B: SHOW statement_timeout => 0
             B: SHOW lock_timeout => 0
             A: SHOW statement_timeout => 6s
             A: SHOW lock_timeout => 1s",
        )
        .await;
}

#[tokio::test]
async fn s3_a_reset_that_is_rolled_back_did_not_happen() {
    let mut stage = Stage::start().await;
    stage
        .play(
            r#"A: SET search_path TO ''
             A: BEGIN
             A: RESET search_path
             A: ROLLBACK
             B: SHOW search_path => "$user", public
             A: SHOW search_path => """#,
        )
        .await;
}

#[tokio::test]
async fn s4_set_config_is_a_set_like_any_other() {
    let mut stage = Stage::start().await;
    stage
        .play(
            r#"A: SELECT pg_catalog.set_config('search_path', '', false) =>
             B: SHOW search_path => "$user", public
             A: SHOW search_path =>
             A: SELECT set_config('search_path', 'pg_temp, public', false) => pg_temp, public
             B: SHOW search_path => "$user", public
             A: SHOW search_path => pg_temp, public
             A: SELECT set_config('work_mem', '1MB', true) => 1MB
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 4MB"#,
        )
        .await;
}

#[tokio::test]
async fn s5_nobody_inherits_a_role() {
    let mut stage = Stage::start().await;
    stage.pooler.sql("GRANT plain_user TO app").await;
    stage
        .play(
            "A: SET ROLE plain_user
             B: SELECT current_user => app
             A: SELECT current_user => plain_user
             B: SELECT current_user => app
             A: BEGIN
             A: SET ROLE app
             A: ROLLBACK
             B: SELECT current_user => app
             A: SELECT current_user, session_user => plain_user,app",
        )
        .await;
    // As a client that is gone cannot undo it.
    stage.a.writer.finish().await;
    stage.play("B: SELECT current_user => app").await;
    let mut c = stage.pooler.client().await;
    assert_eq!(outcome(&c.query("SET ROLE plain_user").await), "SET");
    drop(c);
    stage.play("B: SELECT current_user => app").await;
}

#[tokio::test]
async fn s5_nobody_inherits_a_session_authorization() {
    let pooler = Pooler::config().database_option("user=postgres").start().await;
    let mut stage = Stage::on(pooler).await;
    stage
        .play(
            "A: SET SESSION AUTHORIZATION plain_user
             B: SELECT session_user, current_user => postgres,postgres
             A: SELECT session_user, current_user => plain_user,plain_user
             A: SET ROLE NONE
             B: SET ROLE app
             A: SELECT session_user, current_user => plain_user,plain_user
             B: SELECT session_user, current_user => postgres,app
             A: RESET SESSION AUTHORIZATION
             B: SELECT session_user, current_user => postgres,app
             A: SELECT session_user, current_user => postgres,postgres",
        )
        .await;
}

#[tokio::test]
async fn s6_a_client_that_may_only_read_hinders_nobody_else_to_write() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "B: CREATE TABLE t (a int)
             A: SET default_transaction_read_only = on
             B: INSERT INTO t VALUES (1) => INSERT 0 1
             A: INSERT INTO t VALUES (2) => E(25006)
             A: SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE
             B: SELECT count(*) FROM t => 1
             A: INSERT INTO t VALUES (2) => INSERT 0 1
             A: BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY
             A: COMMIT
             B: SHOW transaction_isolation => read committed
             A: INSERT INTO t VALUES (3) => INSERT 0 1",
        )
        .await;
}

#[tokio::test]
async fn s7_however_a_value_is_written_it_comes_back_exactly() {
    let mut stage = Stage::start().await;
    stage
        .play(
            r#"A: SET work_mem = '1MB'; /* and */ set Lock_Timeout TO 5
             B: SELECT current_setting('work_mem'), current_setting('lock_timeout') => 4MB,0
             A: SELECT current_setting('work_mem'), current_setting('lock_timeout') => 1MB,5ms
             A: -- why; not
             A: SET app.name = 'it''s; "x" \'
             B: SELECT coalesce(current_setting('app.name', true), 'none') =>
             A: SHOW app.name => it's; "x" \
             A: SET app.name = ''
             B: SELECT 1
             A: SELECT '<' || current_setting('app.name') || '>' => <>
             A: SET search_path = "My Schema", public
             B: SHOW search_path => "$user", public
             A: SHOW search_path => "My Schema", public
             A: SET "work_mem" = 128
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 128kB"#
                .replace("A: -- why; not\n", "")
                .as_str(),
        )
        .await;
}

#[tokio::test]
async fn s8_what_ends_with_the_transaction_is_no_state_of_the_session() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: BEGIN
             A: SET LOCAL work_mem = '1MB'
             A: SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
             A: SET CONSTRAINTS ALL DEFERRED
             A: COMMIT
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 4MB
             A: SHOW transaction_isolation => read committed",
        )
        .await;
    // None of it cost a question: each would have been a query of the pooler's own.
    let asked = stage
        .pooler
        .number(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '/* pgweir%' AND pid <> pg_backend_pid()",
        )
        .await;
    assert_eq!(asked, 0);
}

#[tokio::test]
async fn s9_options_of_the_startup_message_hold_on_every_server() {
    let pooler = Pooler::config().start().await;
    let options = r"-c search_path=a,public -c app.text=x\ \\\ y -c statement_timeout=3s --lock-timeout=2s -ctimezone=Asia/Tokyo";
    let login = Login::new("app", "app").option("options", options).option("app.who", "o'neil");
    let a = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(a.parameters["TimeZone"], "Asia/Tokyo");
    let b = pooler.client().await;
    let mut stage = Stage { pooler, a, b };
    stage
        .play(
            r#"A: SHOW search_path => a,public
             A: SHOW app.text => x \ y
             B: SHOW search_path => "$user", public
             A: SHOW statement_timeout => 3s
             B: SHOW statement_timeout => 0
             A: SHOW lock_timeout => 2s
             A: SHOW TimeZone => Asia/Tokyo
             B: SHOW TimeZone => UTC
             A: SHOW app.who => o'neil
             B: SHOW lock_timeout => 0"#,
        )
        .await;
}

#[tokio::test]
async fn s10_a_startup_parameter_that_no_server_reports_is_its_clients_own() {
    let pooler = Pooler::config().start().await;
    let a = Raw::login(&pooler.tcp(), &Login::new("app", "app").option("enable_seqscan", "off")).await;
    let b = pooler.client().await;
    let mut stage = Stage { pooler, a, b };
    stage
        .play(
            "A: SHOW enable_seqscan => off
             B: SHOW enable_seqscan => on
             A: SHOW enable_seqscan => off",
        )
        .await;
    // A wrong one is told, with the server's own words.
    let mut c = Raw::login(&stage.pooler.tcp(), &Login::new("app", "app").option("no_such", "1")).await;
    c.send(query("SELECT 1")).await;
    let rest = c.rest().await;
    assert_eq!(rest.farewell(), "FATAL 08P01 invalid server parameter");
    let detail = rest.messages.last().unwrap().field(b'D');
    assert!(detail.contains("unrecognized configuration parameter \"no_such\""), "{detail}");
    stage.play("B: SELECT 1 => 1").await;
}

#[tokio::test]
async fn s11_a_set_that_fails_in_a_batch_costs_nobody_anything() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: SET work_mem = '1MB'; SET lock_timeout TO sdf; SELECT 1 => E(22023)
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 4MB
             A: BEGIN; SET work_mem = '1MB'; COMMIT; SET lock_timeout TO sdf => E(22023)
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 1MB",
        )
        .await;
    let batch = run_of([extended("SET lock_timeout TO sdf", &[]), extended("SELECT 1", &[]), sync()]);
    stage.a.ask(batch).await.is("1 2 n E(22023) Z(I)");
    stage.pooler.is_clean().await;
}

#[tokio::test]
async fn s13_a_notification_reaches_its_listener_and_nobody_else() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut stage = Stage::on(pooler).await;
    stage
        .play(
            "A: BEGIN
             A: LISTEN rolled_back
             A: ROLLBACK
             A: LISTEN news",
        )
        .await;
    stage.pooler.sql("NOTIFY news, 'direct'").await;
    stage.play("B: NOTIFY rolled_back, 'nobody'").await;
    stage.b.ask(query("NOTIFY news, 'pooled'")).await.is("C(NOTIFY) Z(I)");
    for expected in ["direct", "pooled"] {
        let heard = stage.a.until(b'A').await;
        let notification = heard.of(b'A').next().unwrap();
        assert!(notification.masked().contains(expected), "{heard}");
    }
    stage.play("B: SELECT 1 => 1").await;
    stage.play("A: UNLISTEN * => UNLISTEN").await;
    eventually("nothing is left", async || stage.pooler.admin("SHOW PINS").await.is_empty()).await;
}

#[tokio::test]
async fn s13_no_notification_is_lost_while_the_server_is_asked_what_the_session_is() {
    const COUNT: usize = 500;
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("LISTEN news").await.is("C(LISTEN) Z(I)");
    let mut other = pooler.direct().await;
    let notifying = tokio::spawn(async move {
        for number in 0..COUNT {
            other.query(&format!("NOTIFY news, '{number}'")).await.succeeds("NOTIFY");
        }
    });
    let mut heard = 0;
    while !notifying.is_finished() {
        // The server is asked after each of these.
        heard += a.query("SET geqo = off").await.of(b'A').count();
    }
    notifying.await.unwrap();
    while heard < COUNT {
        heard += a.until(b'A').await.of(b'A').count();
    }
    assert_eq!(a.query("SELECT 1").await.of(b'A').count(), 0);
}

#[tokio::test]
async fn s14_what_cannot_be_carried_keeps_its_server_until_it_is_gone() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut stage = Stage::on(pooler).await;
    for (reason, begin, uses, end) in [
        ("temporary_object", "CREATE TEMP TABLE t AS SELECT 1 AS a", "SELECT a FROM t => 1", "DROP TABLE t"),
        ("cursor", "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", "FETCH ABSOLUTE 1 c => 1", "CLOSE c"),
        ("advisory_lock", "SELECT pg_advisory_lock(7)", "SELECT 1 => 1", "SELECT pg_advisory_unlock(7)"),
        ("temporary_object", "CREATE TEMP SEQUENCE s", "SELECT nextval('s') > 0 => t", "DISCARD ALL"),
        ("temporary_object", "SELECT 1 AS a INTO TEMP t", "SELECT a FROM t => 1", "DROP TABLE t"),
    ] {
        stage.play(&format!("A: {begin}")).await;
        eventually("SHOW PINS has it", async || stage.pooler.admin("SHOW PINS").await.len() == 1).await;
        let pins = stage.pooler.admin("SHOW PINS").await;
        assert_eq!(pins[0]["reason"], reason, "{begin}");
        let servers = stage.pooler.admin("SHOW SERVERS").await;
        assert!(servers.iter().any(|server| server["id"] == pins[0]["server_id"]), "{pins:?} {servers:?}");
        stage
            .play(&format!(
                "A: {uses}
                 B: CREATE TEMP TABLE t (a int); DROP TABLE t
                 B: SELECT pg_try_advisory_lock(7) => {}
                 B: SELECT pg_advisory_unlock_all() =>
                 A: {uses}
                 A: {end}",
                if reason == "advisory_lock" { "f" } else { "t" }
            ))
            .await;
        eventually("nothing is left", async || stage.pooler.admin("SHOW PINS").await.is_empty()).await;
    }
    stage.pooler.is_clean().await;
}

#[tokio::test]
async fn s14_a_transaction_that_leaves_nothing_keeps_nothing() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: BEGIN
             A: CREATE TEMP TABLE t (a int) ON COMMIT DROP
             A: SELECT pg_advisory_xact_lock(7)
             A: DECLARE c CURSOR WITH HOLD FOR SELECT 1
             A: CLOSE c
             A: COMMIT
             B: SELECT pg_try_advisory_lock(7) => t
             B: SELECT pg_advisory_unlock(7) => t
             A: BEGIN; CREATE TEMP TABLE t (a int); DECLARE c CURSOR WITH HOLD FOR SELECT 1; ROLLBACK
             B: CREATE TEMP TABLE t (a int); DROP TABLE t",
        )
        .await;
}

#[tokio::test]
async fn s14_what_a_client_leaves_when_it_goes_is_gone_with_it() {
    let mut stage = Stage::start().await;
    for leaves in [
        "CREATE TEMP TABLE t (a int)",
        "SELECT pg_advisory_lock(7)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "LISTEN x",
        "PREPARE p AS SELECT 1",
        "SET work_mem = '1MB'",
    ] {
        let mut c = stage.pooler.client().await;
        assert!(!outcome(&c.query(leaves).await).starts_with("E("), "{leaves}");
        drop(c);
        stage
            .play(
                "B: CREATE TEMP TABLE t (a int); DROP TABLE t
                 B: SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() => 0
                 B: SELECT count(*) FROM pg_cursors => 0
                 B: SELECT count(*) FROM pg_listening_channels() => 0
                 B: SELECT count(*) FROM pg_prepared_statements WHERE from_sql => 0
                 B: SHOW work_mem => 4MB",
            )
            .await;
    }
    eventually("one server is enough", async || stage.pooler.number(SERVERS).await == 1).await;
}

#[tokio::test]
async fn s14_prepare_is_carried_from_server_to_server() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: PREPARE p (int) AS SELECT $1 + 1
             B: EXECUTE p (1) => E(26000)
             B: PREPARE p AS SELECT 'b'
             A: EXECUTE p (1) => 2
             B: EXECUTE p => b
             A: DEALLOCATE p
             A: EXECUTE p (1) => E(26000)
             B: EXECUTE p => b
             B: SELECT 1; PREPARE q AS SELECT 'q'
             B: EXECUTE q => q
             B: DEALLOCATE q
             A: SELECT 1 => 1",
        )
        .await;
}

#[tokio::test]
async fn s14_currval_answers_from_the_clients_own_session_or_not_at_all() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut stage = Stage::on(pooler).await;
    stage
        .play(
            "A: CREATE SEQUENCE s
             A: SELECT nextval('s') => 1
             A: SELECT nextval('s') => 2
             B: SELECT currval('s') => E(55000)
             B: SELECT lastval() => E(55000)
             B: SELECT nextval('s') => 3
             A: SELECT nextval('s') => 4
             B: SELECT currval('s') => 3
             B: SELECT lastval() => 3
             A: BEGIN; SELECT nextval('s'); SELECT currval('s'); COMMIT
             B: SELECT currval('s') => 3",
        )
        .await;
}

#[tokio::test]
async fn s15_a_clients_own_reset_is_its_own() {
    let pooler = Pooler::config().pool_size(1).start().await;
    let mut stage = Stage::on(pooler).await;
    for reset in ["RESET ALL", "DISCARD ALL"] {
        stage
            .play(&format!(
                "A: SET work_mem = '1MB'
                 A: SET app.name = 'a'
                 B: SET work_mem = '2MB'
                 B: PREPARE p AS SELECT 'b'
                 A: SHOW work_mem => 1MB
                 A: {reset}
                 B: SHOW work_mem => 2MB
                 B: EXECUTE p => b
                 A: SHOW work_mem => 4MB
                 A: SELECT current_setting('app.name', true) =>
                 B: DEALLOCATE ALL"
            ))
            .await;
    }
}

#[tokio::test]
async fn s17_a_reset_query_that_fails_costs_its_server() {
    let pooler = Pooler::config()
        .setting("server_reset_query", "SELECT 1/0")
        .setting("server_reset_query_always", "1")
        .start()
        .await;
    let mut stage = Stage::on(pooler).await;
    stage.play("A: SET work_mem = '1MB'\nB: SHOW work_mem => 4MB\nA: SHOW work_mem => 1MB").await;
    stage.pooler.logs("server_reset_query failed").await;
    let pooler = Pooler::config()
        .setting("server_reset_query", "RESET ALL")
        .setting("server_reset_query_always", "1")
        .start()
        .await;
    let mut stage = Stage::on(pooler).await;
    stage.play("A: SET work_mem = '1MB'\nB: SHOW work_mem => 4MB\nA: SHOW work_mem => 1MB\nA: SHOW work_mem => 1MB").await;
}

#[tokio::test]
async fn s12_what_is_reset_has_the_value_of_the_startup_message_again() {
    // But for a setting with a dot: it is empty then, which whoever means to take a right away may have set too.
    let pooler = Pooler::config().pool_size(2).start().await;
    let options = "-c work_mem=1MB -c app.name=mine -c timezone=UTC";
    let login = Login::new("app", "app").option("options", options).option("DateStyle", "German");
    let (a, b) = (Raw::login(&pooler.tcp(), &login).await, pooler.client().await);
    let mut stage = Stage { pooler, a, b };
    for (before, reset) in [("", "RESET ALL"), ("", "DISCARD ALL"), ("CREATE TEMP TABLE t ();", "RESET ALL")]
    {
        stage
            .play(&format!(
                "A: {before} SET work_mem = '2MB'; SET DateStyle = 'SQL'; SET app.name = 'other'
                 B: SHOW work_mem => 4MB
                 A: SELECT current_setting('work_mem'), '2026-11-26'::date => 2MB,26/11/2026
                 A: RESET work_mem
                 A: SELECT current_setting('work_mem'), current_setting('app.name') => 1MB,other
                 B: SELECT current_setting('work_mem'), '2026-11-26'::date => 4MB,2026-11-26
                 A: {reset}
                 A: SELECT current_setting('work_mem'), '2026-11-26'::date => 1MB,26.11.2026
                 B: SELECT current_setting('work_mem'), '2026-11-26'::date => 4MB,2026-11-26
                 A: SELECT current_setting('work_mem'), current_setting('app.name') => 1MB,"
            ))
            .await;
    }
}

#[tokio::test]
async fn s4_a_function_that_sets_something_is_a_set_like_any_other() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "B: CREATE FUNCTION set_tenant(t text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.tenant', t, false); END $$
             B: CREATE FUNCTION enter(t text) RETURNS void LANGUAGE sql AS $$ SELECT set_tenant(t) $$
             B: CREATE FUNCTION plain(int) RETURNS int LANGUAGE sql AS $$ SELECT $1 + 1 $$
             B: CREATE FUNCTION locks() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(1) $$
             A: SELECT enter('a') =>
             B: SELECT enter('b') =>
             A: SHOW app.tenant => a
             B: SHOW app.tenant => b
             A: SELECT plain(1) => 2
             B: SELECT plain(1) => 2
             B: CREATE OR REPLACE FUNCTION plain(int) RETURNS int LANGUAGE sql AS $$ SELECT set_config('work_mem', '2MB', false); SELECT $1 + 2 $$
             A: SELECT plain(1) => 3
             B: SHOW work_mem => 4MB
             A: SHOW work_mem => 2MB",
        )
        .await;
    // In the extended protocol, prepared once and run twice.
    let prepare = run_of([support::message::parse("f", "SELECT enter($1)"), sync()]);
    stage.a.ask(prepare).await.is("1 Z(I)");
    for tenant in ["x", "y"] {
        let bytes = [support::message::bind("", "f", &[tenant]), support::message::execute("", 0), sync()];
        stage.a.ask(run_of(bytes)).await.is("2 D() C Z(I)");
        stage.play(&format!("B: SHOW app.tenant => b\nA: SHOW app.tenant => {tenant}")).await;
    }
    // Nobody has called it before, and its caller does not wait for what may come of it.
    let mut c = stage.pooler.client().await;
    let hasty = [query("SELECT set_tenant('hasty')"), support::message::terminate()].concat();
    c.send(hasty).await;
    c.rest().await.is("T D() C Z(I) EOF");
    stage.play("B: RESET app.tenant\nB: SELECT current_setting('app.tenant', true) =>").await;
    // SQL that nobody has written down may set what no table tells of.
    stage
        .play(
            "B: CREATE FUNCTION dynamic() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SET work_mem = ''1MB'''; END $$
             A: SELECT dynamic() =>
             A: SHOW work_mem => 1MB",
        )
        .await;
    assert_eq!(stage.pooler.admin("SHOW PINS").await[0]["reason"], "setting");
    stage.play("A: SELECT locks() =>").await;
    let reason = async || stage.pooler.admin("SHOW PINS").await[0]["reason"].clone();
    eventually("SHOW PINS has it", async || reason().await == "advisory_lock, setting").await;
}

#[tokio::test]
async fn s14_a_session_that_cannot_be_set_up_again_leaves_nothing_of_it() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: CREATE TABLE gone (a int)
             A: SET work_mem = '1MB'
             A: PREPARE p AS SELECT * FROM gone
             B: DROP TABLE gone",
        )
        .await;
    stage.a.send(query("SELECT 1")).await;
    let rest = stage.a.rest().await;
    assert_eq!(rest.farewell(), "FATAL 08P01 invalid server parameter");
    assert!(rest.messages.last().unwrap().field(b'D').contains("relation \"gone\" does not exist"), "{rest}");
    stage.play("B: SHOW work_mem => 4MB\nB: EXECUTE p => E(26000)").await;
}
