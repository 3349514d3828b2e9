//! Scenario group R: which server has which statement. A server forgets statements, goes away, or refuses one; a
//! client sees nothing of it but its own answers.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;
use support::message::{
    bind, close_statement, describe_statement, execute, extended, flush, parse, query, run_of, sync,
};
use support::{Login, Pooler, Raw, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Servers that the pooler has.
const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
     AND usename = 'app'";

/// Bind and Execute of a statement without parameters, without Sync.
fn run(statement: &str) -> Vec<u8> {
    run_of([bind("", statement, &[]), execute("", 0)])
}

fn prepare(statement: &str, sql: &str) -> Vec<u8> {
    run_of([parse(statement, sql), sync()])
}

fn use_of(statement: &str) -> Vec<u8> {
    run_of([run(statement), sync()])
}

#[tokio::test]
async fn r2_a_statement_is_prepared_again_on_another_server_and_nobody_sees_it() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    a.ask(prepare("s", "SELECT pg_backend_pid(), 's'")).await.is("1 Z(I)");
    let first = a.ask(use_of("s")).await.rows()[0][0].clone();
    // Meanwhile the server tells what that function is.
    a.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    b.query("BEGIN").await.is("C(BEGIN) Z(T)");
    assert_eq!(b.query("SELECT pg_backend_pid()").await.value(), first);
    // Each time another way to need it first; each on a server that does not have it.
    for (bytes, expected) in [
        (use_of("s"), "2 D C(SELECT 1) Z(I)"),
        (run_of([describe_statement("s"), sync()]), "t T Z(I)"),
        (run_of([describe_statement("s"), run("s"), run("s"), sync()]), "t T 2 D C 2 D C Z(I)"),
        (
            run_of([extended("BEGIN", &[]), run("s"), extended("COMMIT", &[]), sync()]),
            "1 2 n C 2 D C 1 2 n C Z(I)",
        ),
        (
            run_of([query("BEGIN"), run("s"), flush(), run("s"), sync(), query("COMMIT")]),
            "C Z(T) 2 D C 2 D C Z(T) C Z(I)",
        ),
        (run_of([bind("", "nobodys", &[]), run("s"), sync(), use_of("s")]), "E(26000) Z(I) 2 D C Z(I)"),
        (run_of([extended("SELECT 1/0", &[]), sync(), use_of("s")]), "1* 2* T* E(22012) Z(I) 2 D C Z(I)"),
    ] {
        let gone = pooler
            .number(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'app' AND state = 'idle'",
            )
            .await;
        assert!(gone <= 1);
        eventually("A's server is gone", async || pooler.number(SERVERS).await == 1).await;
        let ready = expected.matches('Z').count();
        a.send(bytes).await;
        let told = a.ready(ready).await;
        told.is(expected);
        assert!(told.rows().iter().all(|row| row[0] != first && row[1] == "s"), "{told}");
    }
    b.query("COMMIT").await.is("C(COMMIT) Z(I)");
}

#[tokio::test]
async fn r3_a_statement_that_makes_room_goes_after_what_was_sent_before() {
    let pooler = Pooler::config().setting("max_prepared_statements", "2").start().await;
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| parse(name, &format!("SELECT '{name}'")));
    for batch in [
        run_of([run("a"), c.clone(), run("c")]),
        run_of([run("a"), c.clone(), d.clone(), run("d"), run("c")]),
        run_of([bind("", "a", &[]), c.clone(), d.clone(), execute("", 0), run("c"), run("b"), run("a")]),
        run_of([
            bind("p", "a", &[]),
            c.clone(),
            bind("q", "b", &[]),
            d.clone(),
            execute("q", 0),
            execute("p", 0),
        ]),
        run_of([c.clone(), d.clone(), run("a"), run("b"), run("c"), run("d"), run("a")]),
        run_of([
            describe_statement("a"),
            c.clone(),
            d.clone(),
            describe_statement("a"),
            describe_statement("b"),
        ]),
        run_of([c.clone(), bind("", "nobodys", &[]), d.clone(), run("a")]),
        run_of([c.clone(), extended("SELECT 1/0", &[]), d.clone()]),
        run_of([close_statement("a"), c.clone(), d.clone(), run("b"), a.clone(), run("a")]),
    ] {
        let before = run_of([a.clone(), b.clone(), sync(), use_of("a"), use_of("b")]);
        // What a skipped batch has not prepared is an error in PostgreSQL, too.
        let after = run_of(["a", "b", "c", "d"].map(use_of));
        pooler.same_as_direct(run_of([before, batch, sync(), after])).await;
        let servers = pooler.admin("SHOW SERVERS").await;
        assert_eq!(servers.len(), 1);
    }
    pooler.is_clean().await;
}

/// Names that are as many as this test's clients have, of fewer texts.
const TEXTS: u32 = 60;

/// Asks for one value and one count, in one of the ways there are; every seventh request fails.
async fn ask_in_turn(client: &mut Raw, seed: u32) -> Option<(String, u32)> {
    let (name, number) = (format!("s{}", seed % TEXTS), seed % TEXTS);
    let (fails, text) = (seed.is_multiple_of(7), number.to_string());
    let front = if fails { extended("SELECT 1/0", &[]) } else { Vec::new() };
    let told = client.ask(run_of([front, bind("", &name, &[]), execute("", 0), sync()])).await;
    if fails {
        told.is("1* 2* T* E(22012) Z(I)");
        return None;
    }
    told.is("2 D C(SELECT 1) Z(I)");
    let row = told.rows().remove(0);
    assert_eq!(row[0], text, "the answer of another statement");
    Some((row[1].clone(), row[2].parse().unwrap()))
}

#[tokio::test]
async fn r4_more_statements_than_a_server_may_keep_are_all_answered_and_the_bound_holds() {
    let config = Pooler::config().pool_size(3).setting("workers", "2");
    let pooler = config.setting("max_prepared_statements", "20").start().await;
    let mut clients = JoinSet::new();
    for number in 0..16 {
        let mut client = pooler.client().await;
        clients.spawn(async move {
            for text in 0..TEXTS {
                let sql = format!(
                    "SELECT '{text}', pg_backend_pid(), (SELECT count(*) FROM pg_prepared_statements)"
                );
                client.ask(prepare(&format!("s{text}"), &sql)).await.is("1 Z(I)");
            }
            let (mut seed, mut most) = (number, 0);
            for _ in 0..200 {
                seed = seed * 31 % 10_007 + 1;
                if let Some((_, count)) = ask_in_turn(&mut client, seed).await {
                    most = most.max(count);
                }
            }
            most
        });
    }
    let most = clients.join_all().await.into_iter().max();
    assert!(most.is_some_and(|most| most > 10 && most <= 20), "{most:?} statements on a server");
    for server in pooler.admin("SHOW SERVERS").await {
        let count: u32 = server["prepared_statements"].parse().unwrap();
        assert!(count <= 20, "{server:?}");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn r6_a_parse_that_failed_is_in_nobodys_cache() {
    let pooler = Pooler::config().start().await;
    let good = parse("s", "SELECT 6");
    for bad in
        [parse("s", "SELEC 6"), parse("s", "SELECT * FROM not_there"), parse("s", "SELECT $1 + 'x' || 1/")]
    {
        for bytes in [
            run_of([bad.clone(), sync(), good.clone(), run("s"), sync(), use_of("s")]),
            run_of([
                bad.clone(),
                sync(),
                use_of("s"),
                bad.clone(),
                sync(),
                good.clone(),
                sync(),
                use_of("s"),
            ]),
            run_of([bad.clone(), run("s"), good.clone(), sync(), use_of("s"), good.clone(), sync()]),
            run_of([bad.clone(), flush(), sync(), good.clone(), sync(), use_of("s")]),
            run_of([good.clone(), sync(), bad.clone(), sync(), use_of("s")]),
            run_of([good.clone(), bad.clone(), sync(), use_of("s")]),
            run_of([
                query("BEGIN"),
                bad.clone(),
                sync(),
                query("ROLLBACK"),
                good.clone(),
                sync(),
                use_of("s"),
            ]),
        ] {
            pooler.same_as_direct(bytes).await;
        }
    }
    // What fails today may be right tomorrow, for whoever asks.
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    for client in [&mut a, &mut b] {
        client.ask(prepare("later", "SELECT n FROM later")).await.is("E(42P01) Z(I)");
    }
    pooler.sql("CREATE TABLE later AS SELECT 7 AS n; GRANT ALL ON later TO app").await;
    for client in [&mut b, &mut a] {
        client
            .ask(run_of([parse("later", "SELECT n FROM later"), run("later"), sync()]))
            .await
            .is("1 2 D(7) C Z(I)");
        client.ask(use_of("later")).await.is("2 D(7) C Z(I)");
    }
}

#[tokio::test]
async fn r7_a_client_that_dies_behind_its_parse_leaves_nothing_that_is_not_there() {
    let pooler = Pooler::config().start().await;
    for (number, (behind, resets)) in [
        (Vec::new(), true),
        (Vec::new(), false),
        (flush(), true),
        (describe_statement("s")[..4].to_vec(), true),
        (bind("", "s", &[])[..9].to_vec(), false),
        (run_of([run("s"), flush()]), true),
        (run_of([bind("", "nobodys", &[]), parse("t", "SELECT 't'")]), true),
        (run_of([parse("t", "SELEC")]), false),
    ]
    .into_iter()
    .enumerate()
    {
        let sql = format!("SELECT 'statement {number}'");
        let mut a = pooler.client().await;
        a.send(run_of([parse("s", &sql), behind])).await;
        if resets {
            a.reset();
        } else {
            a.writer.finish().await;
            a.rest().await;
        }
        for name in ["s", "of_b"] {
            let mut b = pooler.client().await;
            let told = b.ask(run_of([parse(name, &sql), describe_statement(name), run(name), sync()])).await;
            told.is(&format!("1 t T 2 D(statement {number}) C(SELECT 1) Z(I)"));
            b.ask(use_of(name)).await.is("2 D C(SELECT 1) Z(I)");
            b.ask(prepare("t", "SELECT 't'")).await.is("1 Z(I)");
        }
    }
    pooler.is_clean().await;
}

/// Until it succeeds, at most this often. Returns how many times it did not.
async fn failures(client: &mut Raw, most: usize, row: &str) -> usize {
    for count in 0..=most {
        let told = client.ask(run_of([describe_statement("s"), run("s"), sync()])).await;
        if told.count(b'E') == 0 {
            told.is(&format!("t T 2 D({row}) C(SELECT 1) Z(I)"));
            return count;
        }
        let error = told.of(b'E').next().unwrap();
        assert_eq!(error.field(b'M'), "cached plan must not change result type");
    }
    panic!("still an error after {most}");
}

#[tokio::test]
async fn r8_a_statement_whose_result_changes_fails_once_on_each_server_at_most() {
    for servers in [1_u32, 2] {
        let pooler = Pooler::config().pool_size(servers).start().await;
        pooler.sql("CREATE TABLE items AS SELECT 1 AS a; GRANT ALL ON items TO app").await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(pooler.client().await);
        }
        for client in &mut clients {
            client.ask(prepare("s", "SELECT * FROM items")).await.is("1 Z(I)");
        }
        // On every server there is.
        for client in clients.iter_mut().take(servers as usize) {
            client.send(run_of([query("BEGIN"), run("s"), sync()])).await;
            client.ready(2).await.is("C(BEGIN) Z(T) 2 D(1) C(SELECT 1) Z(T)");
        }
        for client in clients.iter_mut().take(servers as usize) {
            client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        }
        for (change, row) in [
            ("ALTER TABLE items ADD b text DEFAULT 'new'", "1|new"),
            ("ALTER TABLE items ALTER a TYPE text", "1|new"),
            ("ALTER TABLE items DROP b", "1"),
        ] {
            pooler.sql(change).await;
            let mut sum = 0;
            for _ in 0..3 {
                for client in &mut clients {
                    sum += failures(client, servers as usize, row).await;
                }
            }
            assert!(sum <= servers as usize, "{change}: {sum} errors with {servers} servers");
            let mut new = pooler.client().await;
            new.ask(prepare("s", "SELECT * FROM items")).await.is("1 Z(I)");
            assert_eq!(failures(&mut new, 0, row).await, 0);
        }
        // In a transaction the error is PostgreSQL's own; it is over with that.
        pooler.sql("ALTER TABLE items ADD c int DEFAULT 3").await;
        for client in &mut clients {
            client.query("BEGIN").await.is("C(BEGIN) Z(T)");
            let told = client.ask(use_of("s")).await;
            if told.count(b'E') > 0 {
                told.is("E(0A000) Z(E)");
                client.query("ROLLBACK; BEGIN").await.is("C C Z(T)");
                if servers == 1 {
                    client.ask(use_of("s")).await.is("2 D(1|3) C(SELECT 1) Z(T)");
                }
            }
            client.query("ROLLBACK").await.is("C(ROLLBACK) Z(I)");
        }
        for client in &mut clients {
            failures(client, servers as usize, "1|3").await;
        }
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn r8_what_is_prepared_after_a_change_of_its_tables_is_described_as_they_are_now() {
    let config = Pooler::config().pool_size(2).users("\"app\" \"\"\n\"postgres\" \"\"\n");
    let pooler = config.start().await;
    let mut direct = pooler.direct().await;
    let mut migration = Raw::login(&pooler.tcp(), &Login::new("postgres", "app")).await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let prepares = run_of([parse("s", "SELECT * FROM items"), describe_statement("s"), sync()]);
    for change in [
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE items (a int, m mood)",
        "ALTER TABLE items ADD b text",
        "BEGIN; ALTER TABLE items ALTER a TYPE text; COMMIT",
        "DROP TABLE items; CREATE TABLE items (x date)",
        "DROP TABLE items; DROP TYPE mood; CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE items (m mood)",
    ] {
        migration.query(&format!("{change}; GRANT ALL ON items TO app")).await.succeeds(change);
        let expected = direct.ask(&prepares).await;
        direct.ask(run_of([close_statement("s"), sync()])).await.is("3 Z(I)");
        for _ in 0..2 {
            for client in [&mut a, &mut b] {
                assert_eq!(client.ask(&prepares).await.messages, expected.messages, "{change}");
                client.ask(use_of("s")).await.is("2 C(SELECT 0) Z(I)");
                client.ask(run_of([close_statement("s"), sync()])).await.is("3 Z(I)");
            }
        }
    }
}

#[tokio::test]
async fn r16_messages_may_be_cut_anywhere_and_larger_than_every_buffer() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let whole = |name: &str| {
        run_of([
            parse(name, "SELECT $1::text"),
            describe_statement(name),
            bind("", name, &["value"]),
            execute("", 0),
            close_statement(name),
            sync(),
        ])
    };
    let bytes = whole("cut");
    let mut a = pooler.client().await;
    for cut in 1..bytes.len() {
        a.send(&bytes[..cut]).await;
        sleep(Duration::from_millis(1)).await;
        a.send(&bytes[cut..]).await;
        a.ready(1).await.is("1 t T 2 D(value) C(SELECT 1) 3 Z(I)");
    }
    for byte in bytes.chunks(1) {
        a.send(byte).await;
        sleep(Duration::from_millis(1)).await;
    }
    a.ready(1).await.is("1 t T 2 D(value) C(SELECT 1) 3 Z(I)");

    // Names longer than each buffer, and than those of PostgreSQL's catalogues.
    for length in [63, 64, 4_096, 20_000, 60_000] {
        let (one, two) = (format!("{}1", "n".repeat(length)), format!("{}2", "n".repeat(length)));
        a.ask(prepare(&one, "SELECT 'one'")).await.is("1 Z(I)");
        a.ask(prepare(&two, "SELECT 'two'")).await.is("1 Z(I)");
        a.ask(use_of(&one)).await.is("2 D(one) C Z(I)");
        a.ask(use_of(&two)).await.is("2 D(two) C Z(I)");
        // PostgreSQL takes no Close of more than 10000 bytes.
        if length < 10_000 {
            a.ask(run_of([close_statement(&one), sync(), use_of(&two)])).await.is("3 Z(I)");
            a.ready(1).await.is("2 D(two) C Z(I)");
            a.ask(use_of(&one)).await.is("E(26000) Z(I)");
        }
    }
    // Binds of every size around the buffers', one behind the other.
    a.ask(prepare("length", "SELECT length($1)")).await.is("1 Z(I)");
    let sizes = [4_000, 8_150, 8_192, 16_384, 32_700, 65_536, 131_072, 5_000_000];
    let binds = sizes.map(|size| run_of([bind("", "length", &[&"x".repeat(size)]), execute("", 0)]));
    a.send(run_of([run_of(binds), sync()])).await;
    let told = a.ready(1).await;
    let lengths: Vec<usize> = told.rows().iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(lengths, sizes);
    pooler.is_clean().await;
}

#[tokio::test]
async fn r17_a_server_that_has_grown_old_between_parse_and_bind_is_no_loss() {
    // 0: each server serves once.
    for lifetime in ["0", "1"] {
        let pooler = Pooler::config().setting("server_lifetime", lifetime).start().await;
        let mut a = pooler.client().await;
        a.ask(prepare("s", "SELECT pg_backend_pid(), $1::int + 1")).await.is("1 Z(I)");
        let mut pids = Vec::new();
        for round in 1..=3 {
            eventually("the server is too old", async || pooler.number(SERVERS).await == 0).await;
            let told = a.ask(run_of([bind("", "s", &["41"]), execute("", 0), sync()])).await;
            told.is("2 D C(SELECT 1) Z(I)");
            assert_eq!(told.rows()[0][1], "42");
            pids.push(told.rows()[0][0].clone());
            pids.dedup();
            assert_eq!(pids.len(), round, "a new server each time");
        }
    }
    // And a RECONNECT, even between two batches that were sent together.
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.ask(prepare("s", "SELECT 's'")).await.is("1 Z(I)");
    for _ in 0..3 {
        pooler.admin("RECONNECT").await;
        a.send(run_of([use_of("s"), use_of("s"), describe_statement("s"), sync()])).await;
        a.ready(3).await.is("2 D(s) C Z(I) 2 D(s) C Z(I) t T Z(I)");
    }
}

/// What SHOW CLIENTS says of the only client of the database.
async fn counted(pooler: &Pooler) -> Vec<String> {
    let clients = pooler.admin("SHOW CLIENTS").await;
    let ours = clients.iter().filter(|client| client["database"] == "app");
    ours.map(|client| client["prepared_statements"].clone()).collect()
}

#[tokio::test]
async fn r19_statements_that_are_closed_or_whose_clients_are_gone_are_forgotten() {
    const MEGABYTE: u64 = 1_000_000;
    let pooler = Pooler::config().start().await;
    let large = "x".repeat(2_000);
    let batch = |client: u32, closes: bool| {
        let each = (0..100).map(|number| {
            let name = format!("s{number}");
            let sql = format!("SELECT '{client} {number}' --{large}");
            let close = if closes { close_statement(&name) } else { Vec::new() };
            run_of([parse(&name, &sql), close])
        });
        run_of([run_of(each), sync()])
    };
    let closing = async |client: &mut Raw, rounds: std::ops::Range<u32>| {
        for round in rounds {
            let told = client.ask(batch(round, true)).await;
            assert_eq!((told.count(b'1'), told.count(b'3')), (100, 100));
        }
    };
    // What nobody uses is forgotten at 1024 statements, which are 2 MB here; these are 12 MB.
    let mut a = pooler.client().await;
    closing(&mut a, 0..15).await;
    let before = pooler.memory_bytes();
    closing(&mut a, 15..75).await;
    assert_eq!(counted(&pooler).await, ["0"]);
    let grown = pooler.memory_bytes().saturating_sub(before);
    assert!(grown < 6 * MEGABYTE, "grew by {grown} bytes for statements that are closed");

    for client in 1_000..1_060 {
        let mut gone = pooler.client().await;
        gone.ask(batch(client, false)).await;
        if client == 1_000 {
            let mut counts = counted(&pooler).await;
            counts.sort();
            assert_eq!(counts, ["0", "100"]);
        }
    }
    let grown = pooler.memory_bytes().saturating_sub(before);
    assert!(grown < 6 * MEGABYTE, "grew by {grown} bytes for clients that are gone");
    a.ask(run_of([parse("s", "SELECT 's'"), run("s"), sync()])).await.is("1 2 D(s) C Z(I)");
    pooler.is_clean().await;
}
