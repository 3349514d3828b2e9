//! LISTEN and NOTIFY in transaction mode: one server connection listens for all clients of a database.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::sync::Arc;
use support::message::{Reply, bind, execute, parse, query, run_of, sync};
use support::stage::Stage;
use support::{Login, Pooler, Postgres, Raw, eventually};

/// Our connections that listen, by what they did last.
const LISTENERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
     AND query LIKE '/* pgweir: listening */%'";

/// What has been heard, as `channel payload`.
fn heard(reply: &Reply) -> Vec<String> {
    let words = |message: &support::message::Message| format!("{message:?}");
    reply.of(b'A').map(words).map(|text| text.trim_start_matches("A(").trim_end_matches(')').into()).collect()
}

/// Waits until nobody keeps a server.
async fn nobody_is_pinned(pooler: &Pooler) {
    eventually("nobody is pinned", async || pooler.admin("SHOW PINS").await.is_empty()).await;
}

/// All that a client hears up to a last word, which is sent now.
async fn hears(client: &mut Raw, pooler: &Pooler, last_channel: &str) -> Vec<String> {
    pooler.sql(&format!("NOTIFY \"{last_channel}\", 'the end'")).await;
    let mut all = Vec::new();
    while all.last().is_none_or(|last: &String| !last.ends_with("the end")) {
        all.extend(heard(&client.until(b'A').await));
    }
    all.pop();
    all
}

#[tokio::test]
async fn many_clients_listen_with_one_server_connection() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = pooler.client().await;
        client.query(&format!("LISTEN all_of_us; LISTEN \"Only \"\" {number}\"")).await.succeeds("LISTEN");
        clients.push(client);
    }
    nobody_is_pinned(&pooler).await;
    assert_eq!(pooler.number(LISTENERS).await, 1);
    assert!(pooler.pool("sv_idle").await + pooler.pool("sv_used").await <= 2);
    for number in 0..20 {
        pooler.sql(&format!("NOTIFY \"Only \"\" {number}\", 'you'")).await;
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let all = hears(client, &pooler, "all_of_us").await;
        let own = format!("Only \" {number} you");
        assert!(all.iter().all(|one| *one == own || one == "all_of_us the end"), "{all:?}");
        assert_eq!(all.iter().filter(|one| **one == own).count(), 1, "{all:?}");
    }
    drop(clients);
    eventually("nobody listens any more", async || pooler.number(LISTENERS).await == 0).await;
}

#[tokio::test]
async fn listen_counts_when_it_is_committed_and_unlisten_too() {
    let mut stage = Stage::start().await;
    for (script, expected) in [
        ("A: BEGIN\nA: LISTEN x\nA: ROLLBACK", ""),
        ("A: BEGIN\nA: LISTEN x\nA: COMMIT", "x"),
        ("A: BEGIN\nA: UNLISTEN x\nA: ROLLBACK", "x"),
        ("A: BEGIN\nA: UNLISTEN *\nA: SELECT 1/0 => E(22012)\nA: COMMIT => ROLLBACK", "x"),
        ("A: BEGIN\nA: LISTEN y\nA: UNLISTEN x\nA: COMMIT", "y"),
        ("A: LISTEN x; LISTEN y; UNLISTEN y", "x"),
        ("A: LISTEN y", "xy"),
        (
            "A: BEGIN\nA: SAVEPOINT s\nA: SELECT 1/0 => E(22012)\nA: ROLLBACK TO s\nA: UNLISTEN y\nA: COMMIT",
            "x",
        ),
        ("A: BEGIN\nA: ROLLBACK; LISTEN y; UNLISTEN \"x\"; RESET ALL", "y"),
        ("A: UNLISTEN X; LISTEN X", "xy"),
        ("A: DISCARD ALL", ""),
        ("A: LISTEN x; LISTEN y", "xy"),
        ("A: SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", ""),
        ("A: LISTEN y", "y"),
    ] {
        stage.play(script).await;
        stage.play("A: LISTEN end_of_all").await;
        nobody_is_pinned(&stage.pooler).await;
        stage.play("B: NOTIFY x, '1'; NOTIFY y, '1'").await;
        let all = hears(&mut stage.a, &stage.pooler, "end_of_all").await;
        let channels: String = all.iter().map(|one| &one[..1]).collect();
        assert_eq!(channels, expected, "{script}: {all:?}");
        stage.play("A: UNLISTEN end_of_all").await;
    }
}

#[tokio::test]
async fn a_client_is_told_what_it_listens_to() {
    let mut stage = Stage::start().await;
    stage
        .play(
            "A: LISTEN \"Y\"\"s\"; LISTEN x
             B: SELECT * FROM pg_listening_channels()
             A: SELECT * FROM pg_listening_channels() ORDER BY 1 => Y\"s;x
             B: SELECT count(*) FROM pg_listening_channels() => 0
             A: UNLISTEN x
             A: SELECT pg_listening_channels() => Y\"s
             B: SELECT count(*) FROM pg_listening_channels() => 0",
        )
        .await;
    nobody_is_pinned(&stage.pooler).await;
    stage.a.send(query("SELECT pg_listening_channels(), pg_notify('Y\"s', 'once')")).await;
    assert_eq!(heard(&stage.a.until(b'Z').await), ["Y\"s once"]);
    assert!(heard(&stage.a.query("SELECT 1").await).is_empty());
}

/// The server that runs the statement has to be given it first.
#[tokio::test]
async fn what_a_client_notifies_itself_of_by_execute_comes_in_front_of_ready_for_query_too() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let (mut client, mut other) = (pooler.client().await, pooler.client().await);
    client.query("LISTEN x").await.is("C(LISTEN) Z(I)");
    nobody_is_pinned(&pooler).await;
    for round in 0..20 {
        let name = format!("s{round}");
        let notify = run_of([parse(&name, &format!("SELECT pg_notify('x', '{round}')")), sync()]);
        client.ask(notify).await.is("1 Z(I)");
        // The other client has the server that knows it.
        other.query("BEGIN").await.succeeds("BEGIN");
        client.send(query(&format!("EXECUTE {name}"))).await;
        assert_eq!(heard(&client.until(b'Z').await), [format!("x {round}")]);
        other.query("COMMIT").await.succeeds("COMMIT");
    }
}

#[tokio::test]
async fn what_a_client_notifies_itself_of_comes_in_front_of_ready_for_query() {
    let pooler = Pooler::config().start().await;
    let mut direct = pooler.direct().await;
    let mut client = pooler.client().await;
    for client in [&mut direct, &mut client] {
        client.query("LISTEN x").await.is("C(LISTEN) Z(I)");
    }
    nobody_is_pinned(&pooler).await;
    let extended = run_of([parse("", "NOTIFY x, '3'"), bind("", "", &[]), execute("", 0), sync()]);
    let pipelined = ["BEGIN", "NOTIFY x, '5'", "LISTEN x", "COMMIT"].map(query).concat();
    for (bytes, own, count) in [
        (query("NOTIFY x, '1'"), &["x 1"][..], 1),
        (query("SELECT pg_notify('x', '2') IS NULL"), &["x 2"], 1),
        (extended, &["x 3"], 1),
        (query("BEGIN; NOTIFY x, '4'; COMMIT"), &["x 4"], 1),
        (pipelined, &["x 5"], 4),
        (query("LISTEN y; NOTIFY x, '6'; NOTIFY y, '7'"), &["x 6", "y 7"], 1),
        (query("SELECT 1"), &[], 1),
    ] {
        for (who, client) in [("PostgreSQL", &mut direct), ("pgweir", &mut client)] {
            client.send(&bytes).await;
            let reply = client.ready(count).await;
            let all = heard(&reply);
            for wanted in own {
                // The other client says the same, and is heard too.
                let times = all.iter().filter(|one| *one == wanted).count();
                assert!((1..=2).contains(&times), "{who}: {wanted} in {reply}");
            }
            assert_eq!(reply.messages.last().map(|message| message.tag), Some(b'Z'), "{who}");
        }
    }
    nobody_is_pinned(&pooler).await;
}

#[tokio::test]
async fn no_notification_is_lost_or_doubled_while_a_client_changes_sides() {
    const COUNT: usize = 2000;
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    let mut other = pooler.direct().await;
    let notifying = tokio::spawn(async move {
        for number in 0..COUNT {
            other.query(&format!("NOTIFY x, '{number}'")).await.succeeds("NOTIFY");
        }
    });
    let mut all = Vec::new();
    let mut round = 0;
    while !notifying.is_finished() {
        round += 1;
        // The same channel again, and others, each of which lets its server listen to it for a moment.
        let sql = format!("LISTEN x; LISTEN other_{}; UNLISTEN other_{}", round % 3, (round + 1) % 3);
        all.extend(heard(&client.query(&sql).await));
    }
    notifying.await.unwrap();
    while all.len() < COUNT {
        all.extend(heard(&client.until(b'A').await));
    }
    let expected: Vec<_> = (0..COUNT).map(|number| format!("x {number}")).collect();
    assert_eq!(all, expected, "after {round} rounds");
    assert!(round > 10, "{round}");
    assert!(heard(&client.query("SELECT 1").await).is_empty());
}

#[tokio::test]
async fn a_client_that_first_listens_in_the_midst_of_notifications_hears_all_from_there_on() {
    const COUNT: usize = 1000;
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut other = pooler.direct().await;
    let notifying = tokio::spawn(async move {
        for number in 0..COUNT {
            other.query(&format!("NOTIFY x, '{number}'")).await.succeeds("NOTIFY");
        }
    });
    while !notifying.is_finished() {
        let mut client = pooler.client().await;
        let mut all = heard(&client.query("LISTEN x").await);
        while all.len() < 30 && !notifying.is_finished() {
            all.extend(heard(&client.query("SELECT 1").await));
        }
        let numbers: Vec<usize> = all.iter().map(|one| one[2..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }
    notifying.await.unwrap();
}

#[tokio::test]
async fn in_a_transaction_nothing_is_told_and_too_much_of_it_ends_the_client() {
    let pooler = Pooler::config().pool_size(2).setting("max_notification_queue", "1000").start().await;
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    nobody_is_pinned(&pooler).await;
    for (count, is_told) in [(5, true), (50, false)] {
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        for number in 0..count {
            pooler.sql(&format!("NOTIFY x, '{number} is not much to say'")).await;
        }
        // The other listener has heard all of it.
        let mut witness = pooler.client().await;
        witness.query("LISTEN y").await.succeeds("LISTEN");
        assert!(witness.query("NOTIFY y").await.of(b'A').count() == 1);
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(T)");
        if is_told {
            client.query("COMMIT").await.is("C(COMMIT) Z(I)");
            for _ in 0..count {
                client.until(b'A').await;
            }
        } else {
            client.send(query("COMMIT")).await;
            let rest = client.rest().await;
            assert_eq!(rest.farewell(), "FATAL 54000 too many notifications wait for this client");
            let detail = rest.messages.last().unwrap().field(b'D');
            assert!(detail.starts_with("More than 1000 bytes"), "{detail}");
            assert!((1..50).contains(&rest.of(b'A').count()), "what fitted came first: {rest}");
        }
    }
}

#[tokio::test]
async fn a_client_that_keeps_its_server_is_told_when_its_transaction_ends() {
    let mut stage = Stage::on(Pooler::config().pool_size(2).start().await).await;
    stage.play("A: CREATE TEMP TABLE t (a int)\nA: LISTEN x\nA: BEGIN\nB: NOTIFY x, 'meanwhile'").await;
    // Who listens too has heard it.
    stage.play("B: LISTEN y\nB: NOTIFY y\nA: COMMIT").await;
    assert_eq!(heard(&stage.a.until(b'A').await), ["x meanwhile"]);
    assert_eq!(stage.pooler.admin("SHOW PINS").await[0]["reason"], "temporary_object");
    stage.play("B: NOTIFY x, 'later'").await;
    assert_eq!(heard(&stage.a.until(b'A').await), ["x later"]);
}

#[tokio::test]
async fn a_listening_connection_that_is_lost_ends_its_clients_and_the_next_one_listens_again() {
    let mut stage = Stage::on(Pooler::config().pool_size(2).start().await).await;
    stage.play("A: LISTEN x\nB: LISTEN y\nA: SELECT 1\nB: SELECT 1").await;
    nobody_is_pinned(&stage.pooler).await;
    let kill = LISTENERS.replace("count(*)", "pg_terminate_backend(pid)");
    assert_eq!(stage.pooler.sql(&kill).await.len(), 1);
    for client in [&mut stage.a, &mut stage.b] {
        let rest = client.rest().await;
        assert_eq!(rest.farewell(), "FATAL 57P01 terminating connection because notifications may be lost");
        let detail = rest.messages.last().unwrap().field(b'D');
        assert!(detail.contains("terminating connection due to administrator command"), "{detail}");
    }
    let mut client = stage.pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    nobody_is_pinned(&stage.pooler).await;
    assert!(hears(&mut client, &stage.pooler, "x").await.is_empty());
}

#[tokio::test]
async fn a_listener_of_a_database_that_points_elsewhere_now_is_told() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let target = pooler.postgres.new_database().await;
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    client.query("SELECT 1").await.succeeds("SELECT");
    pooler.edit(&format!("dbname={}\n", pooler.database), &format!("dbname={target}\n"));
    pooler.admin("RELOAD").await;
    let rest = client.rest().await;
    assert_eq!(rest.farewell(), "FATAL 57P01 terminating connection because notifications may be lost");
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    pooler.postgres.sql(&target, "NOTIFY x, 'here'").await;
    assert_eq!(heard(&client.until(b'A').await), ["x here"]);
}

#[tokio::test]
async fn where_no_further_connection_is_allowed_a_listener_keeps_its_server() {
    let config = Pooler::config().pool_size(2).setting("max_db_connections", "2");
    let mut stage = Stage::on(config.start().await).await;
    stage.play("B: BEGIN\nA: SELECT 1\nB: COMMIT\nA: LISTEN x").await;
    eventually("A is pinned", async || stage.pooler.admin("SHOW PINS").await.len() == 1).await;
    assert_eq!(stage.pooler.admin("SHOW PINS").await[0]["reason"], "listen");
    assert!(stage.pooler.log().contains("keeps its server connection to LISTEN: max_db_connections"));
    assert!(hears(&mut stage.a, &stage.pooler, "x").await.is_empty());
    stage.play("A: UNLISTEN x").await;
    nobody_is_pinned(&stage.pooler).await;
}

#[tokio::test]
async fn a_client_hears_what_is_said_at_the_host_where_it_said_listen() {
    let one = Arc::new(Postgres::start(&[]).await);
    let other = Postgres::start_beside(&one, "127.0.0.2").await;
    let line = format!("listed = host=127.0.0.1,127.0.0.2 port={} dbname=app user=app", one.port);
    let config = Pooler::config().postgres(Arc::clone(&one)).database_line(&line).pool_size(2);
    let pooler = config.start().await;
    let login = Login::new("app", "listed");
    let (mut a, mut b) = (Raw::login(&pooler.tcp(), &login).await, Raw::login(&pooler.tcp(), &login).await);
    a.query("BEGIN; LISTEN x").await.succeeds("LISTEN");
    b.query("BEGIN; LISTEN x").await.succeeds("LISTEN");
    let mut hosts = Vec::new();
    for client in [&mut a, &mut b] {
        hosts.push(client.query("SELECT host(inet_server_addr())").await.value());
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        client.query("SELECT 1").await.succeeds("SELECT");
    }
    assert_ne!(hosts[0], hosts[1]);
    // One of them is where the listening connection is, the other keeps its server.
    eventually("one is pinned", async || pooler.admin("SHOW PINS").await.len() == 1).await;
    for (host, client) in hosts.iter().zip([&mut a, &mut b]) {
        let server = if host == "127.0.0.1" { &*one } else { &other };
        for number in 0..3 {
            server.sql("app", &format!("NOTIFY x, '{number} at {host}'")).await;
            let heard = heard(&client.until(b'A').await);
            assert_eq!(heard, [format!("x {number} at {host}")]);
        }
    }
}

#[tokio::test]
async fn a_client_of_another_encoding_keeps_its_server() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    nobody_is_pinned(&pooler).await;
    let login = Login::new("app", "app").option("client_encoding", "LATIN1");
    let mut latin = Raw::login(&pooler.tcp(), &login).await;
    latin.query("LISTEN x").await.succeeds("LISTEN");
    eventually("it is pinned", async || pooler.admin("SHOW PINS").await.len() == 1).await;
    pooler.sql("NOTIFY x, 'Ä'").await;
    let in_latin = latin.until(b'A').await;
    assert!(in_latin.messages.last().unwrap().body.ends_with(b"x\0\xc4\0"), "{in_latin}");
    let in_utf8 = client.until(b'A').await;
    assert!(in_utf8.messages.last().unwrap().body.ends_with("x\0Ä\0".as_bytes()), "{in_utf8}");
}

#[tokio::test]
async fn a_client_of_very_many_channels_keeps_its_server() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("LISTEN before").await.is("C(LISTEN) Z(I)");
    nobody_is_pinned(&pooler).await;
    let all: String = (0..1_001).map(|number| format!("LISTEN c{number};")).collect();
    let told = a.query(&all).await;
    assert_eq!(told.count(b'C'), 1_001);
    eventually("it is pinned", async || pooler.admin("SHOW PINS").await.len() == 1).await;
    assert!(pooler.log().contains("keeps its server connection to LISTEN: more than 1000 channels"));
    pooler.sql("NOTIFY c1000").await;
    assert_eq!(heard(&a.until(b'A').await), ["c1000"]);
    assert!(hears(&mut a, &pooler, "before").await.is_empty(), "it comes once");
}

#[tokio::test]
async fn a_listener_that_changes_its_encoding_is_not_told_in_the_wrong_one() {
    let pooler = Pooler::config().pool_size(2).start().await;
    let mut client = pooler.client().await;
    client.query("LISTEN x").await.succeeds("LISTEN");
    client.query("SET client_encoding = 'LATIN1'").await.succeeds("SET");
    pooler.sql("NOTIFY x, 'plain'").await;
    assert_eq!(heard(&client.until(b'A').await), ["x plain"]);
    pooler.sql("NOTIFY x, 'Ä'").await;
    let rest = client.rest().await;
    assert_eq!(rest.farewell(), "FATAL 57P01 terminating connection because notifications may be lost");
    assert_eq!(rest.count(b'A'), 0);
}

#[tokio::test]
async fn what_is_listened_to_again_in_the_same_transaction_is_heard_without_a_gap() {
    let mut stage = Stage::on(Pooler::config().pool_size(2).start().await).await;
    stage.play("A: LISTEN x; LISTEN y\nA: SELECT 1").await;
    for round in 0..10 {
        stage.play("A: BEGIN").await;
        stage.pooler.sql(&format!("NOTIFY x, '{round} inside'; NOTIFY y, '{round}'")).await;
        stage.play("A: UNLISTEN *; LISTEN x; LISTEN y").await;
        stage.a.send(query("COMMIT")).await;
        stage.pooler.sql(&format!("NOTIFY x, '{round} behind'")).await;
        let all = hears(&mut stage.a, &stage.pooler, "y").await;
        let expected = [format!("x {round} inside"), format!("y {round}"), format!("x {round} behind")];
        assert_eq!(all, expected);
        stage.a.query("SELECT 1").await.succeeds("SELECT");
    }
}

#[tokio::test]
async fn a_listener_that_goes_before_its_answer_leaves_nothing_behind() {
    let pooler = Pooler::config().start().await;
    let mut other = pooler.client().await;
    for _ in 0..20 {
        let mut client = pooler.client().await;
        client.query("LISTEN x").await.succeeds("LISTEN");
        client.query("SELECT 1").await.succeeds("SELECT");
        client.send(query("SET work_mem = '1MB'; LISTEN y; NOTIFY x")).await;
        client.reset();
        assert_eq!(other.query("SHOW work_mem").await.value(), "4MB");
        other.query("SELECT * FROM pg_listening_channels()").await.is("T C(SELECT 0) Z(I)");
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn an_unlisten_of_which_nobody_knows_what_became_of_it_ends_the_client() {
    let pooler = Pooler::config().pool_size(2).start().await;
    for script in [
        "BEGIN; SAVEPOINT s; UNLISTEN x|ROLLBACK TO s|COMMIT",
        "DO $$ BEGIN IF random() < 2 THEN UNLISTEN x; END IF; END $$",
    ] {
        let mut client = pooler.client().await;
        client.query("LISTEN x").await.succeeds("LISTEN");
        nobody_is_pinned(&pooler).await;
        for sql in script.split('|') {
            client.send(query(sql)).await;
        }
        let rest = client.rest().await;
        assert_eq!(rest.farewell(), "FATAL 08006 session state is lost", "{script}");
        pooler.is_clean().await;
    }
    // Who listens to nothing does not care.
    let mut client = pooler.client().await;
    client.query("BEGIN; SAVEPOINT s; UNLISTEN x; ROLLBACK TO s; COMMIT").await.succeeds("COMMIT");
}
