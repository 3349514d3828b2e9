//! Scenario group R: prepared statements, whose names are each client's own on whichever server it gets.
//!
//! Standard set-up: transaction mode, one server connection, clients A and B.

use crate::support;

use std::time::Duration;
use support::message::{
    bind, close_statement, describe_portal, describe_statement, execute, extended, flush, parse, query,
    run_of, sync,
};
use support::{Pooler, Raw, eventually};

const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename = 'app'";

/// Bind and Execute of a statement without parameters, without Sync.
fn run(statement: &str) -> Vec<u8> {
    run_of([bind("", statement, &[]), execute("", 0)])
}

/// Leaves an unnamed statement on the only server.
async fn leave_secret(pooler: &Pooler) {
    let mut b = pooler.client().await;
    let secret = run_of([parse("", "SELECT 'B-secret'"), run(""), sync()]);
    b.ask(secret).await.is("1 2 D(B-secret) C(SELECT 1) Z(I)");
}

#[tokio::test]
async fn r11_a_skipped_parse_or_query_does_not_open_anothers_unnamed_statement() {
    let pooler = Pooler::config().start().await;
    let unnamed = || run_of([bind("", "", &[]), describe_portal(""), execute("", 0), sync()]);
    for skipped in [parse("", "SELECT 1"), query("SELECT 1"), close_statement(""), describe_statement("")] {
        leave_secret(&pooler).await;
        let bytes = run_of([bind("", "nope", &[]), skipped.clone(), sync(), unnamed()]);
        pooler.same_as_direct(bytes).await.is("E(26000) Z(I) E(26000) Z(I)");
        // The same in two writes, so that the second batch may find another server.
        let mut a = pooler.client().await;
        a.ask(run_of([bind("", "nope", &[]), skipped, sync()])).await.is("E(26000) Z(I)");
        leave_secret(&pooler).await;
        a.ask(unnamed()).await.is("E(26000) Z(I)");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn r1_a_client_that_uses_the_poolers_own_names_reaches_nobodys_statement() {
    let pooler = Pooler::config().start().await;
    let mut b = pooler.client().await;
    let prepare = run_of([parse("s", "SELECT 'B-secret'"), run("s"), sync()]);
    b.ask(prepare).await.is("1 2 D(B-secret) C Z(I)");
    for number in 0..4 {
        let name = format!("PGWEIR_{number}");
        for (bytes, expected) in [
            (run_of([run(&name), sync()]), "E(26000) Z(I)"),
            (run_of([describe_statement(&name), sync()]), "E(26000) Z(I)"),
            (run_of([close_statement(&name), sync()]), "3 Z(I)"),
            // Now with a server.
            (run_of([parse("own", "SELECT 5"), close_statement(&name), sync()]), "1 3 Z(I)"),
            (run_of([parse("own", "SELECT 5"), run(&name), sync()]), "1 E(26000) Z(I)"),
            // A client may use such a name as any other.
            (run_of([parse(&name, "SELECT 'own'"), run(&name), sync()]), "1 2 D(own) C Z(I)"),
        ] {
            pooler.client().await.ask(bytes).await.is(expected);
            b.ask(run_of([run("s"), sync()])).await.is("2 D(B-secret) C Z(I)");
        }
    }
}

#[tokio::test]
async fn r15_what_is_prepared_behind_a_discard_all_is_there_and_what_was_before_is_gone() {
    let pooler = Pooler::config().start().await;
    let mut b = pooler.client().await;
    b.ask(run_of([parse("b1", "SELECT 77"), run("b1"), sync()])).await.is("1 2 D(77) C Z(I)");
    let ways =
        [query("DISCARD ALL"), run_of([extended("DISCARD ALL", &[]), sync()]), query("DEALLOCATE ALL")];
    for (number, discard) in ways.into_iter().enumerate() {
        let before = run_of([parse("d0", "SELECT 77"), run("d0"), sync()]);
        let behind = run_of([parse("d1", "SELECT 77"), run("d1"), sync()]);
        let gone = run_of([run("d0"), sync()]);
        let again = run_of([run("d1"), sync()]);
        let bytes = run_of([before, discard.clone(), behind.clone(), gone, again.clone()]);
        pooler.same_as_direct(bytes).await;
        pooler.same_as_direct(run_of([discard, behind, again.clone()])).await;

        b.ask(run_of([run("b1"), sync()])).await.is("2 D(77) C Z(I)");
        let mut c = pooler.client().await;
        for name in ["x", "y", "z"] {
            let use_it = run_of([parse(name, "SELECT 77"), run(name), sync()]);
            c.ask(use_it).await.is("1 2 D(77) C Z(I)");
        }
        b.ask(run_of([run("b1"), sync()])).await.is("2 D(77) C Z(I)");
        assert!(pooler.log().matches("new connection to server").count() <= 1, "way {number}");
    }
}

#[tokio::test]
async fn r15_statements_survive_a_reset_query_that_drops_them_after_each_transaction() {
    for reset in ["DEALLOCATE ALL", "DISCARD ALL"] {
        let pooler = Pooler::config()
            .setting("server_reset_query", reset)
            .setting("server_reset_query_always", "1")
            .start()
            .await;
        let (mut a, mut b) = (pooler.client().await, pooler.client().await);
        a.ask(run_of([parse("p", "SELECT 4711"), sync()])).await.is("1 Z(I)");
        b.ask(run_of([parse("q", "SELECT 4711"), sync()])).await.is("1 Z(I)");
        for _ in 0..4 {
            a.ask(run_of([run("p"), sync()])).await.is("2 D(4711) C Z(I)");
            a.ask(run_of([describe_statement("p"), sync()])).await.is("t T Z(I)");
            b.ask(run_of([run("q"), sync()])).await.is("2 D(4711) C Z(I)");
        }
    }
}

/// What was prepared on the new server by us behind the failing Bind never was.
#[tokio::test]
async fn r4_a_statement_that_a_failed_batch_should_have_prepared_again_is_prepared_by_the_next() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.ask(run_of([parse("k", "SELECT 99"), sync()])).await.is("1 Z(I)");
    for failing in [bind("", "nope", &[]), parse("", "SELEC"), extended("SELECT 1/0", &[])] {
        pooler.sql(KILL).await;
        let server = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'app'";
        eventually("the server is gone", async || pooler.number(server).await == 0).await;
        a.send(run_of([failing, run("k"), sync(), run("k"), sync()])).await;
        a.ready(2).await.is("1* 2* T* E Z(I) 2 D(99) C(SELECT 1) Z(I)");
    }
    pooler.is_clean().await;
}

async fn pid(client: &mut Raw) -> String {
    client.query("SELECT pg_backend_pid()").await.value()
}

#[tokio::test]
async fn r16_a_huge_parse_in_small_pieces_costs_little_and_works_on_two_servers() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let first = pid(&mut b).await;
    let sql = format!("SELECT pg_backend_pid() --{}", "x".repeat(8 << 20));
    let before = pooler.processor_time();
    for piece in run_of([parse("huge", &sql), sync()]).chunks(1024) {
        a.send(piece).await;
    }
    a.ready(1).await.is("1 Z(I)");
    let spent = pooler.processor_time() - before;
    assert!(spent < Duration::from_secs(5), "{spent:?} of CPU time");
    let there = a.ask(run_of([run("huge"), sync()])).await.value();
    assert_ne!(there, first);
    let mut c = pooler.client().await;
    c.query("BEGIN").await.is("C(BEGIN) Z(T)");
    assert_eq!(pid(&mut c).await, there);
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert_eq!(a.ask(run_of([run("huge"), sync()])).await.value(), first);
}

#[tokio::test]
async fn r16_a_client_that_stalls_within_a_parse_holds_no_server() {
    let pooler = Pooler::config().start().await;
    let whole = run_of([parse("large", &format!("SELECT 'large' --{}", "x".repeat(40_000))), sync()]);
    for in_front in [vec![], query("SELECT 'front'"), run_of([extended("SELECT 'front'", &[]), sync()])] {
        for cut in [1, 5, 20_000, 39_000] {
            let mut a = pooler.client().await;
            let received = pooler.received_bytes().await;
            let bytes = run_of([in_front.clone(), whole[..cut].to_vec()]);
            a.send(&bytes).await;
            if !in_front.is_empty() {
                a.ready(1).await.is("1* 2* T D(front) C Z(I)");
            }
            let expected = received + bytes.len() as u64;
            eventually("the pooler has it", async || pooler.received_bytes().await == expected).await;
            pooler.is_clean().await;
            a.send(&whole[cut..]).await;
            a.ready(1).await.is("1 Z(I)");
            a.ask(run_of([run("large"), flush(), sync()])).await.is("2 D(large) C Z(I)");
        }
    }
}

#[tokio::test]
async fn r8_a_plan_that_its_table_has_outgrown_is_refused_once_and_made_anew_on_every_server() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.query("CREATE TABLE t AS SELECT 1 AS a").await.is("C(SELECT 1) Z(I)");
    let use_it = || run_of([run("s"), sync()]);
    for client in [&mut a, &mut b] {
        client.ask(run_of([parse("s", "SELECT * FROM t"), run("s"), sync()])).await.is("1 2 D(1) C Z(I)");
    }
    // Both servers have it.
    a.query("BEGIN").await.is("C Z(T)");
    b.ask(use_it()).await.is("2 D(1) C Z(I)");
    a.ask(use_it()).await.is("2 D(1) C Z(T)");
    a.query("COMMIT").await.is("C Z(I)");
    pooler.sql("ALTER TABLE t ADD COLUMN b int DEFAULT 2").await;
    a.ask(use_it()).await.is("E(0A000) Z(I)");
    a.query("BEGIN").await.is("C Z(T)");
    for client in [&mut b, &mut a] {
        let answer = client.ask(use_it()).await;
        assert_eq!(answer.rows(), [["1", "2"]], "{answer}");
    }
    a.query("COMMIT").await.is("C Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn r14_statements_of_sql_and_of_the_protocol_have_one_space_of_names() {
    let pooler = Pooler::config().start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    for client in [&mut a, &mut b] {
        client.ask(run_of([parse("pdo_1", "SELECT 1"), run("pdo_1"), sync()])).await.is("1 2 D(1) C Z(I)");
    }
    b.query("PREPARE s AS SELECT 'b'").await.is("C(PREPARE) Z(I)");
    a.query("PREPARE s AS SELECT 'a'").await.is("C(PREPARE) Z(I)");
    // Prepared by the protocol, used by SQL.
    a.query("EXECUTE pdo_1").await.is("T D(1) C(SELECT 1) Z(I)");
    b.query("execute \"pdo_1\";").await.is("T D(1) C(SELECT 1) Z(I)");
    // Prepared by SQL, used by the protocol.
    a.ask(run_of([run("s"), sync()])).await.is("2 D(a) C Z(I)");
    b.ask(run_of([run("s"), sync()])).await.is("2 D(b) C Z(I)");
    // Gone for who has let go of it.
    a.query("DEALLOCATE PDO_1").await.is("C(DEALLOCATE) Z(I)");
    a.ask(run_of([run("pdo_1"), sync()])).await.is("E(26000) Z(I)");
    a.query("DEALLOCATE pdo_1").await.is("E(26000) Z(I)");
    b.ask(run_of([run("pdo_1"), sync()])).await.is("2 D(1) C Z(I)");
    b.query("BEGIN").await.is("C Z(T)");
    b.query("SELECT 1/0").await.is("E(22012) Z(E)");
    b.query("DEALLOCATE pdo_1").await.is("E(25P02) Z(E)");
    b.query("ROLLBACK").await.is("C Z(I)");
    b.query("DEALLOCATE pdo_1; SELECT 1").await.is("E(26000) Z(I)");
    b.ask(run_of([run("pdo_1"), sync()])).await.is("2 D(1) C Z(I)");
    // In one write, and again under the same name.
    let again = run_of([query("DEALLOCATE pdo_1"), parse("pdo_1", "SELECT 2"), run("pdo_1"), sync()]);
    b.send(again).await;
    b.ready(2).await.is("C(DEALLOCATE) Z(I) 1 2 D(2) C Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn r14_an_execute_of_what_cannot_be_prepared_again_is_one_error() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    pooler.sql("CREATE TABLE gone (a int); GRANT ALL ON gone TO app").await;
    a.ask(run_of([parse("s", "SELECT * FROM gone"), sync()])).await.is("1 Z(I)");
    pooler.sql("DROP TABLE gone").await;
    // B takes the server that has it.
    b.query("BEGIN").await.is("C Z(T)");
    a.query("EXECUTE s").await.is("E(42P01) Z(I)");
    a.query("SELECT 1").await.is("T D(1) C Z(I)");
    a.query("BEGIN").await.is("C Z(T)");
    a.query("EXECUTE s").await.is("E(42P01) Z(E)");
    a.query("ROLLBACK").await.is("C Z(I)");
    b.query("COMMIT").await.is("C Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn r14_an_execute_behind_a_batch_without_sync_is_not_held_up() {
    let pooler = Pooler::config().start().await;
    pooler.same_as_direct(run_of([parse("s", "SELECT 1"), query("EXECUTE s"), sync()])).await;
    pooler.same_as_direct(run_of([parse("s", "SELECT 1"), query("DEALLOCATE s"), sync()])).await;
}
