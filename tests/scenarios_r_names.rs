//! Scenario group R: what the names and texts of prepared statements mean, and to whom.
//!
//! Standard set-up: transaction mode, one server connection, clients A and B. Whatever A's server knows is
//! there when B comes, and must not show.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use support::message::{
    bind, close_portal, close_statement, describe_portal, describe_statement, execute, extended, flush,
    message, parse, parse_typed, query, run_of, sync,
};
use support::stage::Stage;
use support::{Pooler, Raw};

/// Bind and Execute of a statement without parameters, without Sync.
fn run(statement: &str) -> Vec<u8> {
    run_of([bind("", statement, &[]), execute("", 0)])
}

fn prepare(statement: &str, sql: &str) -> Vec<u8> {
    run_of([parse(statement, sql), sync()])
}

/// Executes a statement that returns one value.
async fn value(client: &mut Raw, statement: &str) -> String {
    client.ask(run_of([run(statement), sync()])).await.value()
}

#[tokio::test]
async fn r1_one_name_means_to_each_client_what_it_has_prepared() {
    for servers in [1, 2] {
        let Stage { pooler, mut a, mut b } =
            Stage::on(Pooler::config().pool_size(servers).start().await).await;
        for name in ["s", "S_1", "lrupsc_1_0", "PGWEIR_1"] {
            a.ask(prepare(name, "SELECT 'of A', $1::int")).await.is("1 Z(I)");
            b.ask(prepare(name, "SELECT 'of B'")).await.is("1 Z(I)");
            let of_a = run_of([
                describe_statement(name),
                bind("", name, &["7"]),
                describe_portal(""),
                execute("", 0),
                sync(),
            ]);
            let of_b = run_of([describe_statement(name), run(name), sync()]);
            for _ in 0..3 {
                a.ask(&of_a).await.is("t T 2 T D(of A|7) C(SELECT 1) Z(I)");
                b.ask(&of_b).await.is("t T 2 D(of B) C(SELECT 1) Z(I)");
                // Both at once.
                let (told_a, told_b) = tokio::join!(a.ask(&of_a), b.ask(&of_b));
                told_a.is("t T 2 T D(of A|7) C(SELECT 1) Z(I)");
                told_b.is("t T 2 D(of B) C(SELECT 1) Z(I)");
            }
            a.ask(run_of([close_statement(name), sync()])).await.is("3 Z(I)");
            b.ask(&of_b).await.is("t T 2 D(of B) C(SELECT 1) Z(I)");
            a.ask(run_of([run(name), sync()])).await.is("E(26000) Z(I)");
        }
        pooler.is_clean().await;
    }
}

/// What the pooler answers itself, because the server has the statement already or may keep it, stays in its
/// place among what the server answers.
#[tokio::test]
async fn r5_answers_of_the_poolers_own_stay_in_their_place() {
    let pooler = Pooler::config().start().await;
    let warm = || async {
        let mut b = pooler.client().await;
        b.ask(prepare("warm", "SELECT 'known'")).await.is("1 Z(I)");
        b.ask(prepare("warm_too", "SELECT 'known, too'")).await.is("1 Z(I)");
    };
    let known = |name: &str| parse(name, "SELECT 'known'");
    let batches: [Vec<Vec<u8>>; 9] = [
        vec![known("s"), close_statement("other")],
        vec![known("s"), close_statement("s")],
        vec![close_statement("s"), known("s")],
        vec![known("s"), close_statement("s"), known("s"), run("s")],
        vec![known("s"), run("s"), close_statement("s"), parse("s", "SELECT 'known, too'"), run("s")],
        vec![parse("new", "SELECT 'new'"), close_statement("none"), known("s"), run("new"), run("s")],
        vec![close_statement("none"), parse("new", "SELECT 'new'"), close_portal("none"), known("s")],
        vec![known("s"), describe_statement("s"), close_statement("s"), extended("SELECT 1", &[])],
        vec![known("s"), close_statement("none"), bind("", "nobodys", &[]), known("skipped"), run("s")],
    ];
    for batch in batches {
        warm().await;
        pooler.same_as_direct(run_of([run_of(batch.clone()), sync(), run("s"), sync()])).await;
        // The same without a Sync, each message in a write of its own and with Flush behind it.
        let (mut direct, mut a) = (pooler.direct().await, pooler.client().await);
        warm().await;
        for part in batch.into_iter().chain([sync(), query("SELECT 'in step'")]) {
            let bytes = run_of([part.clone(), flush()]);
            for client in [&mut direct, &mut a] {
                client.send(&bytes).await;
            }
        }
        let (expected, got) = (direct.ready(2).await, a.ready(2).await);
        assert_eq!(got.words(), expected.words());
    }
    // "Without Sync": nothing else has to come before the answers.
    warm().await;
    let mut a = pooler.client().await;
    a.ask_until(run_of([known("s"), close_statement("none"), flush()]), b'3').await.is("1 3");
    a.ask_until(run_of([run("s"), close_statement("s"), flush()]), b'3').await.is("2 D(known) C(SELECT 1) 3");
    a.ask(sync()).await.is("Z(I)");
    pooler.is_clean().await;
}

#[tokio::test]
async fn r9_one_text_under_two_search_paths_or_roles_is_two_statements() {
    let mut stage = Stage::start().await;
    stage
        .pooler
        .sql(
            "CREATE SCHEMA one; CREATE SCHEMA two; CREATE SCHEMA plain_user;
             CREATE TABLE one.items AS SELECT 1 AS n; CREATE TABLE two.items AS SELECT 'two' AS n;
             CREATE TABLE plain_user.items AS SELECT 3.5 AS n, 'three' AS more;
             CREATE TABLE public.items AS SELECT true AS n;
             GRANT USAGE ON SCHEMA one, two, plain_user TO PUBLIC;
             GRANT SELECT ON one.items, two.items, plain_user.items, public.items TO PUBLIC;
             GRANT plain_user TO app",
        )
        .await;
    let (mut c, d) = (stage.pooler.client().await, stage.pooler.client().await);
    let mut nowhere = stage.pooler.client().await;
    nowhere.query("SELECT set_config('search_path', '', false)").await.is("T D() C(SELECT 1) Z(I)");
    stage.play("A: SET search_path = one\nB: SELECT set_config('search_path', 'two', false)").await;
    c.query("SET ROLE plain_user").await.is("C(SET) Z(I)");
    let mut clients = [stage.a, stage.b, c, d];
    for client in &mut clients {
        client.ask(prepare("s", "SELECT * FROM items")).await.is("1 Z(I)");
    }
    let use_it = run_of([describe_statement("s"), run("s"), sync()]);
    let unnamed = run_of([extended("SELECT * FROM items", &[]), sync()]);
    for _ in 0..3 {
        for (client, row) in clients.iter_mut().zip(["1", "two", "3.5|three", "t"]) {
            client.ask(&use_it).await.is(&format!("t T 2 D({row}) C(SELECT 1) Z(I)"));
            client.ask(&unnamed).await.is(&format!("1 2 T D({row}) C(SELECT 1) Z(I)"));
        }
        nowhere.ask(prepare("s", "SELECT * FROM items")).await.is("E(42P01) Z(I)");
    }
}

#[tokio::test]
async fn r10_one_text_with_other_types_of_parameters_is_another_statement() {
    let pooler = Pooler::config().start().await;
    let (int4, int8, text, date) = (23, 20, 25, 1082);
    let types: [&[u32]; 6] = [&[int4, int4], &[int8, int4], &[text], &[date, int4], &[], &[0, 0]];
    let sql = "SELECT pg_typeof($1), pg_typeof($2), $1";
    for types in types.into_iter().chain(types) {
        let bytes = run_of([
            parse_typed("s", sql, types),
            describe_statement("s"),
            bind("", "s", &["1", "2"]),
            execute("", 0),
            sync(),
            parse_typed("t", "SELECT $1::text, $2::text", types),
            describe_statement("t"),
            sync(),
        ]);
        pooler.same_as_direct(bytes).await;
    }
    // Each on the one server at the same time.
    let mut clients = Vec::new();
    for oid in [int4, int8, text] {
        let mut client = pooler.client().await;
        client
            .ask(run_of([parse_typed("s", "SELECT pg_typeof($1)::text", &[oid]), sync()]))
            .await
            .is("1 Z(I)");
        clients.push(client);
    }
    for _ in 0..3 {
        for (client, name) in clients.iter_mut().zip(["integer", "bigint", "text"]) {
            let told = client.ask(run_of([bind("", "s", &["1"]), execute("", 0), sync()])).await;
            assert_eq!(told.value(), name);
        }
    }
}

#[tokio::test]
async fn r11_the_unnamed_statement_is_its_clients_own_across_transactions() {
    let pooler = Pooler::config().setting("max_prepared_statements", "1").start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    // In one transaction of A's, and after it.
    a.ask(prepare("", "SELECT 'unnamed of A', $1::int")).await.is("1 Z(I)");
    b.ask(prepare("", "SELECT 'unnamed of B'")).await.is("1 Z(I)");
    let use_it = run_of([bind("", "", &["7"]), describe_portal(""), execute("", 0), sync()]);
    for _ in 0..3 {
        a.ask(&use_it).await.is("2 T D(unnamed of A|7) C(SELECT 1) Z(I)");
        assert_eq!(value(&mut b, "").await, "unnamed of B");
    }
    a.ask(run_of([extended("BEGIN", &[]), sync()])).await.is("1 2 n C(BEGIN) Z(T)");
    a.ask(prepare("", "SELECT 'inside'")).await.is("1 Z(T)");
    assert_eq!(value(&mut a, "").await, "inside");
    // A named one that takes the only place does not take it from the unnamed one.
    a.ask(prepare("named", "SELECT 'named'")).await.is("1 Z(T)");
    assert_eq!(value(&mut a, "").await, "inside");
    assert_eq!(value(&mut a, "named").await, "named");
    assert_eq!(value(&mut a, "").await, "inside");
    a.ask(run_of([bind("", "", &[]), execute("", 0), parse("", "COMMIT"), run(""), sync()]))
        .await
        .is("2 D(inside) C 1 2 C(COMMIT) Z(I)");
    assert_eq!(value(&mut b, "").await, "unnamed of B");

    // Whoever has none is told so, whatever the server has.
    let mut c = pooler.client().await;
    c.ask(run_of([run(""), sync()])).await.is("E(26000) Z(I)");
    c.ask(run_of([describe_statement(""), sync()])).await.is("E(26000) Z(I)");
    for bytes in [
        run_of([run(""), sync()]),
        run_of([prepare("", "SELECT 1"), query("SELECT 2"), run(""), sync()]),
        run_of([prepare("", "SELECT 1"), close_statement(""), sync(), run(""), sync()]),
        run_of([prepare("", "SELECT 1"), parse("", "SELEC"), sync(), run(""), sync()]),
    ] {
        pooler.same_as_direct(bytes).await;
    }
}

#[tokio::test]
async fn r12_closing_a_portal_leaves_the_statement_of_its_name() {
    let pooler = Pooler::config().start().await;
    let bytes = run_of([
        parse("x", "SELECT generate_series(1, 3)"),
        bind("x", "x", &[]),
        execute("x", 1),
        close_portal("x"),
        run("x"),
        sync(),
        run("x"),
        close_portal("x"),
        sync(),
        describe_statement("x"),
        sync(),
    ]);
    let told = pooler.same_as_direct(bytes).await;
    told.is("1 2 D(1) s 3 2 D(1) D(2) D(3) C Z(I) 2 D(1) D(2) D(3) C 3 Z(I) t T Z(I)");
    // And the statement's Close leaves the portal.
    let bytes = run_of([
        query("BEGIN"),
        parse("x", "SELECT generate_series(1, 3)"),
        bind("x", "x", &[]),
        close_statement("x"),
        execute("x", 1),
        sync(),
        run("x"),
        sync(),
    ]);
    pooler.same_as_direct(bytes).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.ask(prepare("x", "SELECT 'x'")).await.is("1 Z(I)");
    a.ask(run_of([close_portal("x"), sync()])).await.is("3 Z(I)");
    b.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert_eq!(value(&mut a, "x").await, "x");
}

#[tokio::test]
async fn r13_a_name_can_be_given_again_only_after_close() {
    let pooler = Pooler::config().start().await;
    let (one, two) = (parse("s", "SELECT 'one'"), parse("s", "SELECT 'two'"));
    for bytes in [
        run_of([
            one.clone(),
            run("s"),
            close_statement("s"),
            two.clone(),
            run("s"),
            sync(),
            run("s"),
            sync(),
        ]),
        run_of([one.clone(), sync(), close_statement("s"), two.clone(), sync(), run("s"), sync()]),
        // Without Close it is an error, whether in one batch or not, and whether with the same text or not.
        run_of([one.clone(), two.clone(), run("s"), sync(), run("s"), sync()]),
        run_of([one.clone(), sync(), two.clone(), run("s"), sync(), run("s"), sync()]),
        run_of([one.clone(), sync(), one.clone(), sync(), run("s"), sync()]),
        // Neither a Close that was skipped nor one behind an error frees it.
        run_of([
            one.clone(),
            sync(),
            bind("", "nobodys", &[]),
            close_statement("s"),
            sync(),
            two.clone(),
            sync(),
            run("s"),
            sync(),
        ]),
        run_of([
            query("BEGIN"),
            one.clone(),
            sync(),
            two.clone(),
            sync(),
            query("ROLLBACK"),
            run("s"),
            sync(),
        ]),
        // The unnamed one may be replaced at any time.
        run_of([parse("", "SELECT 1"), parse("", "SELECT 2"), run(""), sync()]),
    ] {
        // On a server that knows neither text, and on one that knows both.
        pooler.same_as_direct(&bytes).await;
        pooler.same_as_direct(&bytes).await;
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn r14_prepare_and_parse_live_beside_each_other() {
    let mut stage = Stage::start().await;
    stage.play("A: PREPARE p AS SELECT 'SQL of A'\nB: PREPARE p AS SELECT 'SQL of B'").await;
    stage.a.ask(prepare("q", "SELECT 'Parse of A'")).await.is("1 Z(I)");
    stage.b.ask(prepare("q", "SELECT 'Parse of B'")).await.is("1 Z(I)");
    for _ in 0..3 {
        stage.play("A: EXECUTE p => SQL of A").await;
        assert_eq!(value(&mut stage.b, "q").await, "Parse of B");
        assert_eq!(value(&mut stage.a, "q").await, "Parse of A");
        stage.play("B: EXECUTE p => SQL of B").await;
    }
    stage.play("A: DEALLOCATE p => DEALLOCATE\nA: EXECUTE p => E(26000)\nB: EXECUTE p => SQL of B").await;
    assert_eq!(value(&mut stage.a, "q").await, "Parse of A");
    stage.a.ask(run_of([close_statement("q"), sync()])).await.is("3 Z(I)");
    assert_eq!(value(&mut stage.b, "q").await, "Parse of B");
}

/// The driver of PHP does this at the end of each statement.
#[tokio::test]
async fn r14_deallocate_of_what_was_prepared_by_the_protocol_works() {
    let pooler = Pooler::config().start().await;
    let parsed = || prepare("pdo_stmt_1", "SELECT 'prepared'");
    let use_it = || run_of([run("pdo_stmt_1"), sync()]);
    for bytes in [
        run_of([parsed(), use_it(), query("DEALLOCATE pdo_stmt_1"), use_it()]),
        run_of([parsed(), query("DEALLOCATE PREPARE \"pdo_stmt_1\""), parsed(), use_it()]),
        run_of([query("DEALLOCATE pdo_stmt_1")]),
    ] {
        pooler.same_as_direct(bytes).await;
    }
    let mut stage = Stage::on(pooler).await;
    stage.a.ask(parsed()).await.is("1 Z(I)");
    stage.b.ask(parsed()).await.is("1 Z(I)");
    stage.play("A: DEALLOCATE pdo_stmt_1 => DEALLOCATE").await;
    assert_eq!(value(&mut stage.b, "pdo_stmt_1").await, "prepared");
    stage.a.ask(use_it()).await.is("E(26000) Z(I)");
    assert_eq!(value(&mut stage.b, "pdo_stmt_1").await, "prepared");
}

#[tokio::test]
async fn r14_execute_and_bind_reach_what_the_other_way_has_prepared() {
    let pooler = Pooler::config().start().await;
    for bytes in [
        run_of([prepare("s", "SELECT 'Parse', $1::int"), query("EXECUTE s (7)")]),
        run_of([query("PREPARE p AS SELECT 'PREPARE'"), run("p"), sync()]),
        run_of([
            query("PREPARE p AS SELECT 'PREPARE'"),
            describe_statement("p"),
            close_statement("p"),
            sync(),
        ]),
    ] {
        pooler.same_as_direct(bytes).await;
    }
}

#[tokio::test]
async fn r15_discarding_inside_a_transaction_is_as_in_postgresql_and_its_clients_own() {
    let pooler = Pooler::config().start().await;
    let mut b = pooler.client().await;
    b.ask(prepare("s", "SELECT 'of A'")).await.is("1 Z(I)");
    let begun = || run_of([prepare("s", "SELECT 'of A'"), query("BEGIN"), run("s"), sync()]);
    let use_it = || run_of([run("s"), sync()]);
    for bytes in [
        // It does not come back with ROLLBACK.
        run_of([begun(), query("DEALLOCATE ALL"), query("ROLLBACK"), use_it()]),
        run_of([begun(), query("DEALLOCATE ALL"), use_it(), query("ROLLBACK"), use_it()]),
        run_of([begun(), query("DEALLOCATE ALL"), query("COMMIT"), prepare("s", "SELECT 'again'"), use_it()]),
        run_of([begun(), query("DISCARD ALL"), query("ROLLBACK"), use_it()]),
        run_of([begun(), query("DISCARD PLANS"), use_it(), query("COMMIT"), use_it()]),
    ] {
        pooler.same_as_direct(bytes).await;
        assert_eq!(value(&mut b, "s").await, "of A");
    }
}

/// Bind of one text parameter that is sent and answered in binary.
fn bind_binary(statement: &str, parameter: &[u8]) -> Vec<u8> {
    let mut body = [b"\0", statement.as_bytes(), b"\0\0\x01\0\x01\0\x01"].concat();
    body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
    body.extend(parameter);
    body.extend(b"\0\x01\0\x01");
    message(b'B', &body)
}

#[tokio::test]
async fn r18_what_a_statement_says_of_itself_is_the_same_on_every_server() {
    let pooler = Pooler::config().pool_size(2).start().await;
    pooler.sql("CREATE TABLE wide (a int, b numeric(9,2), c timestamptz, d text[], e varchar(7))").await;
    pooler.sql("GRANT ALL ON wide TO app").await;
    let (mut a, mut b, mut c) = (pooler.client().await, pooler.client().await, pooler.client().await);
    let mut direct = pooler.direct().await;
    let texts = [
        ("plain", "SELECT $1::int8 AS n, 'text' AS t", &[][..]),
        ("typed", "SELECT $1 AS n", &[20]),
        ("table", "SELECT *, $1::int8 FROM wide", &[]),
        ("none", "DELETE FROM wide WHERE a = $1::int8", &[]),
    ];
    let servers = [&mut a, &mut direct];
    for client in servers {
        for (name, sql, types) in texts {
            client.ask(run_of([parse_typed(name, sql, types), sync()])).await.is("1 Z(I)");
        }
    }
    let mut pids = Vec::new();
    for round in 0..4 {
        for (name, ..) in texts {
            let bytes = run_of([
                describe_statement(name),
                bind_binary(name, &7_i64.to_be_bytes()[..]),
                describe_portal(""),
                execute("", 0),
                sync(),
            ]);
            let (got, expected) = (a.ask(&bytes).await, direct.ask(&bytes).await);
            let masked = |reply: &support::Reply| {
                reply.messages.iter().map(support::Message::masked).collect::<Vec<_>>()
            };
            assert_eq!(masked(&got), masked(&expected), "{name} in round {round}");
        }
        let server = a.query("SELECT pg_backend_pid()").await.value();
        // B and C take both servers, and the one that A was on stays taken: A moves to the other one.
        for client in [&mut b, &mut c] {
            client.query("ROLLBACK").await.is("N* C(ROLLBACK) Z(I)");
        }
        for client in [&mut b, &mut c] {
            client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        }
        for client in [&mut b, &mut c] {
            if client.query("SELECT pg_backend_pid()").await.value() != server {
                client.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
            }
        }
        pids.push(server);
    }
    assert!(pids.windows(2).all(|two| two[0] != two[1]), "A was on one server: {pids:?}");
}
