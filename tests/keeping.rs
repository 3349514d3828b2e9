//! The settings about what clients make of their sessions: `session_state`, `pin_timeout`, `max_pinned_per_pool`.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use support::message::query;
use support::pooler::Config;
use support::stage::{Stage, outcome};
use support::{Login, Pooler, Raw, eventually};

async fn stage(config: Config) -> Stage {
    Stage::on(config.start().await).await
}

/// The farewell to a client that asks this, and its detail.
async fn farewell(client: &mut Raw, sql: &str) -> (String, String) {
    client.send(query(sql)).await;
    let rest = client.rest().await;
    (rest.farewell(), rest.messages.last().unwrap().field(b'D'))
}

#[tokio::test]
async fn with_session_state_pgbouncer_everything_stays_where_it_was_made() {
    let mut stage = stage(Pooler::config().setting("session_state", "pgbouncer")).await;
    stage
        .play(
            "A: SET work_mem = '1MB'
             A: CREATE TEMP TABLE t (a int)
             B: SHOW work_mem => 1MB
             B: SELECT count(*) FROM t => 0",
        )
        .await;
    assert!(stage.pooler.admin("SHOW PINS").await.is_empty());
}

#[tokio::test]
async fn with_session_state_error_a_client_that_leaves_something_is_told_and_closed() {
    let mut stage = stage(Pooler::config().setting("session_state", "error")).await;
    for (sql, left) in [
        ("SET work_mem = '1MB'", "work_mem"),
        ("BEGIN; SET app.name = 'x'; COMMIT", "app.name"),
        ("PREPARE p AS SELECT 1", "prepared statement p"),
        ("CREATE TEMP TABLE t (a int)", "temporary_object"),
        ("LISTEN x", "listen"),
        ("LOAD 'plpgsql'", "library"),
    ] {
        let mut client = stage.pooler.client().await;
        let (told, detail) = farewell(&mut client, sql).await;
        assert_eq!(told, "FATAL 0A000 session state is not allowed", "{sql}");
        assert_eq!(detail, format!("The last transaction has left something in the session: {left}."));
        stage
            .play(
                "B: SHOW work_mem => 4MB
                 B: SELECT count(*) FROM pg_prepared_statements WHERE from_sql => 0
                 B: SELECT count(*) FROM pg_listening_channels() => 0
                 B: SELECT coalesce(to_regclass('pg_temp.t')::text, 'none') => none",
            )
            .await;
    }
    // What it has asked for from the beginning is its own.
    let login = Login::new("app", "app").option("options", "-c work_mem=1MB");
    let mut client = Raw::login(&stage.pooler.tcp(), &login).await;
    for _ in 0..2 {
        assert_eq!(outcome(&client.query("RESET lock_timeout").await), "RESET");
        assert_eq!(outcome(&client.query("SHOW work_mem").await), "1MB");
    }
    stage
        .play(
            "A: BEGIN; SET LOCAL work_mem = '1MB'; CREATE TEMP TABLE t (a int) ON COMMIT DROP; COMMIT
             A: SET TimeZone = 'Asia/Tokyo'
             B: SHOW TimeZone => UTC
             A: SHOW TimeZone => Asia/Tokyo",
        )
        .await;
}

#[tokio::test]
async fn pin_timeout_ends_a_client_that_keeps_a_server_and_does_not_use_it() {
    let mut stage = stage(Pooler::config().setting("pin_timeout", "0.5")).await;
    stage.play("A: CREATE TEMP TABLE t (a int)").await;
    let rest = stage.a.rest().await;
    assert_eq!(rest.farewell(), "FATAL 57P05 pin_timeout");
    let detail = rest.messages.last().unwrap().field(b'D');
    assert!(detail.contains("0.5 s") && detail.contains("temporary_object"), "{detail}");
    stage.play("B: CREATE TEMP TABLE t (a int); DROP TABLE t").await;
}

#[tokio::test]
async fn max_pinned_per_pool_leaves_servers_for_the_others() {
    let config = Pooler::config().pool_size(2).setting("max_pinned_per_pool", "1");
    let mut stage = stage(config).await;
    stage.play("A: SELECT pg_advisory_lock(1)").await;
    eventually("A is pinned", async || stage.pooler.admin("SHOW PINS").await.len() == 1).await;
    let mut c = stage.pooler.client().await;
    let (told, detail) = farewell(&mut c, "SELECT pg_advisory_lock(2)").await;
    assert_eq!(told, "FATAL 53300 too many pinned server connections");
    assert!(detail.ends_with("this one would for: advisory_lock."), "{detail}");
    stage
        .play(
            "B: SELECT pg_try_advisory_xact_lock(2) => t
             A: SELECT pg_advisory_unlock(1) => t",
        )
        .await;
    eventually("A is free", async || stage.pooler.admin("SHOW PINS").await.is_empty()).await;
    stage.play("B: SELECT pg_try_advisory_lock(2) => t").await;
}

#[tokio::test]
async fn the_log_says_once_who_keeps_a_server_and_why() {
    let pooler = Pooler::config().pool_size(3).start().await;
    let mut clients = Vec::new();
    for table in ["t", "u"] {
        let mut client = pooler.client().await;
        let created = client.query(&format!("CREATE TEMP TABLE {table} (a int)")).await;
        assert_eq!(outcome(&created), "CREATE TABLE");
        clients.push(client);
    }
    eventually("both are pinned", async || pooler.admin("SHOW PINS").await.len() == 2).await;
    // Each worker says each reason once.
    let said = pooler.log().matches("keeps its server connection, reason=temporary_object").count();
    assert!((1..=2).contains(&said), "{}", pooler.log());
    clients.clear();
    eventually("nobody is", async || pooler.admin("SHOW PINS").await.is_empty()).await;
}
