//! A real cluster whose primary goes away, comes back or is not the only one, and whose standbys are read from: what
//! clients are told, and what becomes of what they have asked. The failovers whose time is asserted are in
//! `failover_times.rs`.
//!
//! `PGWEIR_FAILOVER_RUNS=20` runs what is left to chance so often; the seed of a run's timing is printed.

use crate::support;

use rand::Rng;
use std::time::Duration;
use support::ledger::{Deed, Entry, Ledger, Outcome};
use support::message::{bind, close_statement, execute, extended, parse, query, run_of, sync};
use support::probed::{CLIENTS, SERVERS, Scene, following};
use support::process::signal;
use support::replicas::Stop;
use support::runs::{chance, runs};
use support::scene::LOST;
use support::{Address, Login, PROMPTLY, Raw, eventually};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

#[tokio::test]
async fn an_open_transaction_survives_a_smart_shutdown_and_commits() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    let mut idle = scene.pooler.client().await;
    a.query("BEGIN; INSERT INTO ledger VALUES (1)").await.is("C C Z(T)");
    idle.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.ask_to_stop(0, Stop::Smart);
    scene.pooler.logs("draining 127.0.0.2").await;
    a.query("INSERT INTO ledger VALUES (2)").await.is("C Z(T)");
    a.query("COMMIT").await.is("C(COMMIT) Z(I)");
    let committed = Instant::now();
    eventually("the smart shutdown completes", async || !scene.replicas.runs(0)).await;
    println!("the server has ended {:?} after the commit", committed.elapsed());
    let (primary, _) = scene.take_over().await;
    let rows = scene.replicas.number(primary, "SELECT count(*) FROM ledger WHERE n > 0").await;
    assert_eq!(rows, 2, "the transaction is committed");
    a.query("INSERT INTO ledger VALUES (3)").await.is("C Z(I)");
    idle.query("SELECT 1").await.is("T D C Z(I)");
}

#[tokio::test]
async fn an_open_transaction_on_a_lost_primary_is_told_57p01() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    a.query("BEGIN; INSERT INTO ledger VALUES (1)").await.is("C C Z(T)");
    scene.replicas.kill(0);
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told at once");
    told.is("E(57P01) EOF");
    let [message, hint] = [b'M', b'H'].map(|field| told.messages[0].field(field));
    // A backend that outlives its postmaster for a moment may say so itself, and its words are passed on.
    let by_server = message.contains("unexpected postmaster exit");
    assert!(by_server || hint == "Reconnect and begin the transaction again.", "{message}: {hint}");
}

/// Commits hang, because no standby confirms them.
async fn without_confirmation() -> Scene {
    let scene = Scene::start().await;
    scene.replicas.cut(1).await;
    scene.replicas.cut(2).await;
    scene
}

async fn waits_for_confirmation(scene: &Scene) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'app'";
    eventually("a commit hangs", async || scene.replicas.number(0, sql).await == 1).await;
}

#[tokio::test]
async fn a_commit_without_an_answer_is_08007() {
    let mut scene = without_confirmation().await;
    let mut a = scene.pooler.client().await;
    a.query("BEGIN; INSERT INTO ledger VALUES (1)").await.is("C C Z(T)");
    a.send(query("COMMIT")).await;
    waits_for_confirmation(&scene).await;
    scene.replicas.kill(0);
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told at once");
    assert_eq!(told.is("E(08007) EOF").farewell(), "FATAL 08007 transaction resolution unknown");
}

#[tokio::test]
async fn a_single_write_without_an_answer_is_08007_also_after_the_servers_warning() {
    let bytes = [
        query("INSERT INTO ledger VALUES (1)"),
        run_of([extended("INSERT INTO ledger VALUES ($1::bigint)", &["1"]), sync()]),
    ];
    for bytes in bytes {
        let scene = without_confirmation().await;
        let mut a = scene.pooler.client().await;
        a.send(bytes).await;
        waits_for_confirmation(&scene).await;
        // PostgreSQL says in a WARNING that it has committed here and perhaps nowhere else, and ends.
        scene.replicas.ask_to_stop(0, Stop::Fast);
        let told = timeout(PROMPTLY, a.rest()).await.expect("it is told at once");
        assert_eq!(told.farewell(), "FATAL 08007 transaction resolution unknown", "{told}");
    }
}

#[tokio::test]
async fn a_primary_that_comes_back_on_its_old_timeline_is_never_written_to() {
    let mut scene = Scene::with(|config| config.setting("query_wait_timeout", "3")).await;
    let (seed, _) = chance("comes back");
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(50).await;
    scene.replicas.kill(0);
    let (primary, _) = scene.take_over().await;
    scene.replicas.restart(0).await;
    let rows = scene.replicas.number(0, "SELECT count(*) FROM ledger").await;
    ledger.writes(300).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.replicas, primary, LOST).await;
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, rows);
    // Even when it is the only one left that says it is a primary.
    scene.replicas.kill(primary);
    let mut a = scene.pooler.client().await;
    let told = a.query("INSERT INTO ledger VALUES (1)").await;
    let detail = told.messages.last().expect("it is told").field(b'D');
    assert!(detail.contains("127.0.0.2 is on timeline 1, but the cluster has been on 2"), "{told}: {detail}");
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, rows);
    assert_eq!(scene.replicas.connections(0).await, 0);
}

#[tokio::test]
async fn of_two_primaries_on_one_timeline_neither_is_written_to() {
    let mut scene = Scene::with(|config| config.setting("query_wait_timeout", "2")).await;
    let mut a = scene.pooler.client().await;
    a.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.stop(0, Stop::Fast);
    tokio::join!(scene.replicas.promote_only(1), scene.replicas.promote_only(2));
    scene.pooler.logs("several servers claim").await;
    let began = Instant::now();
    let told = a.query("INSERT INTO ledger VALUES (1)").await;
    assert!(began.elapsed() > Duration::from_secs(1), "it waits before it fails");
    assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
    let detail = told.messages.last().expect("it is told").field(b'D');
    let expected = "No server could be used within 2 s: several servers claim to be the primary: 127.0.0.3, 127.0.0.4. Cluster \"c1\" is no_primary.";
    assert_eq!(detail, expected);
    for number in [1, 2] {
        assert_eq!(scene.replicas.connections(number).await, 0, "server {number}");
    }
}

#[tokio::test]
async fn a_primary_demoted_in_place_serves_reads_afterwards() {
    let mut scene = Scene::start().await;
    let (seed, _) = chance("demote");
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(100).await;
    scene.replicas.stop(0, Stop::Fast);
    let (primary, _) = scene.take_over().await;
    scene.replicas.demote(0).await;
    ledger.writes(100).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.replicas, primary, LOST).await;
    assert_eq!(scene.server_of(&mut scene.pooler.client().await).await, scene.replicas.host(primary));
    let mut reader = scene.client_of("ro").await;
    eventually("the old primary serves reads", async || scene.server_of(&mut reader).await == "127.0.0.2")
        .await;
}

#[tokio::test]
async fn a_fixed_primary_that_is_restarted_as_a_standby_is_not_written_to() {
    let mut scene = Scene::of("static", |config| config.setting("query_wait_timeout", "2")).await;
    let mut a = scene.pooler.client().await;
    a.query("INSERT INTO ledger VALUES (1)").await.is("C Z(I)");
    scene.replicas.stop(0, Stop::Fast);
    scene.replicas.promote(1).await;
    scene.replicas.demote(0).await;
    let told = a.query("INSERT INTO ledger VALUES (2)").await;
    let detail = told.messages.last().expect("it is told").field(b'D');
    let expected = "No server could be used within 2 s: standby 127.0.0.2 is not promoted yet. Cluster \"c1\" is switching.";
    assert_eq!(detail, expected);
}

#[tokio::test]
async fn a_fixed_primary_that_is_restarted_costs_a_wait_and_no_error() {
    let mut scene = Scene::of("static", |config| config).await;
    let mut a = scene.pooler.client().await;
    a.query("INSERT INTO ledger VALUES (1)").await.is("C Z(I)");
    for how in [Stop::Smart, Stop::Fast] {
        scene.replicas.ask_to_stop(0, how);
        eventually("the shutdown completes", async || !scene.replicas.runs(0)).await;
        a.send(query("INSERT INTO ledger VALUES (2)")).await;
        scene.replicas.restart(0).await;
        a.ready(1).await.is("C Z(I)");
    }
}

#[tokio::test]
async fn query_wait_timeout_says_why_there_is_no_server() {
    let mut scene = Scene::with(|config| config.setting("query_wait_timeout", "1")).await;
    let mut a = scene.pooler.client().await;
    a.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.kill(0);
    let told = a.query("SELECT 1").await;
    assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
    let detail = "No server could be used within 1 s: no primary: no server says that it is the primary. Cluster \"c1\" is no_primary.";
    assert_eq!(told.messages.last().expect("it is told").field(b'D'), detail);
    // One of whom nothing is known waits at its login, and is told the same.
    let stranger = Login::new("md5_user", "app");
    let refusal = scene.pooler.refuses(&stranger).await;
    assert!(refusal.contains("query_wait_timeout"), "{refusal}");
}

#[tokio::test]
async fn a_monitor_that_may_not_log_in_is_named_in_the_log() {
    let users = "\"app\" \"app-secret\"\n\"ghost\" \"x\"\n\"admin\" \"admin-secret\"\n";
    let scene = Scene::with(|config| config.users(users).setting("monitor_user", "ghost")).await;
    scene.pooler.logs("server 127.0.0.2 does not answer: FATAL 28000: role \"ghost\" does not exist").await;
}

#[tokio::test]
async fn waiting_for_a_primary_costs_no_processor_time() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    a.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.kill(0);
    scene.pooler.logs("draining 127.0.0.2").await;
    a.send(query("SELECT 1")).await;
    let before = scene.pooler.processor_time();
    sleep(Duration::from_secs(1)).await;
    let used = scene.pooler.processor_time() - before;
    assert!(used < Duration::from_millis(250), "{used:?} in a second");
    scene.take_over().await;
    a.ready(1).await.is("T D C Z(I)");
}

// ---- 57P01 as the first answer ----

const LOCK: &str = "pg_advisory_xact_lock(4711)";

/// A request that stands before a lock, whose server is then terminated.
async fn terminated(scene: &Scene, bytes: &[u8]) -> (Raw, Raw) {
    let mut holder = Raw::login(&scene.replicas.tcp(0), &Login::new("postgres", "app")).await;
    holder.query("SELECT pg_advisory_lock(4711)").await.is("T D C Z(I)");
    let mut client = scene.pooler.client().await;
    client.send(bytes).await;
    let waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually("it stands before the lock", async || holder.query(waiting).await.count(b'D') == 1).await;
    let pid = holder.query(waiting).await.value();
    holder.query(&format!("SELECT pg_terminate_backend({pid}, 5000)")).await.is("T D(t) C Z(I)");
    (client, holder)
}

#[tokio::test]
async fn a_first_statement_whose_server_is_terminated_is_sent_again() {
    let scene = Scene::start().await;
    scene.replicas.sql(0, "CREATE FUNCTION one(bigint) RETURNS bigint LANGUAGE sql RETURN 1").await;
    let insert = format!("INSERT INTO ledger SELECT 1 FROM {LOCK}");
    let batches = [
        query(&format!("SELECT 1 FROM {LOCK}")),
        query(&insert),
        run_of([extended(&insert, &[]), sync()]),
        run_of([
            extended("INSERT INTO ledger SELECT $1::bigint FROM pg_advisory_xact_lock(4711)", &["1"]),
            sync(),
        ]),
    ];
    for bytes in batches {
        let (mut client, mut holder) = terminated(&scene, &bytes).await;
        holder.query("SELECT pg_advisory_unlock(4711)").await.is("T D(t) C Z(I)");
        let answer = client.ready(1).await;
        assert_eq!((answer.count(b'C'), answer.count(b'E')), (1, 0), "{answer}");
        client.query("SELECT 2").await.is("T D(2) C Z(I)");
    }
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, 3, "each once");
}

/// Its Parse and its Bind are answered in front of the server's last word.
#[tokio::test]
async fn a_statement_that_the_terminated_server_has_prepared_is_the_clients_once() {
    let scene = Scene::start().await;
    let prepared = parse("own", &format!("INSERT INTO ledger SELECT 1 FROM {LOCK}"));
    let run = run_of([bind("", "own", &[]), execute("", 0), sync()]);
    let (mut client, mut holder) = terminated(&scene, &run_of([prepared.clone(), run.clone()])).await;
    holder.query("SELECT pg_advisory_unlock(4711)").await.is("T D(t) C Z(I)");
    client.ready(1).await.is("1 2 C(INSERT 0 1) Z(I)");
    client.ask(&run).await.is("2 C(INSERT 0 1) Z(I)");
    client.ask(run_of([prepared.clone(), sync()])).await.is("E(42P05) Z(I)");
    client.ask(run_of([close_statement("own"), prepared, sync()])).await.is("3 1 Z(I)");
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, 2);
}

/// The terminated server has sent two of them in front of its last word.
#[tokio::test]
async fn rows_that_the_client_has_not_seen_come_once() {
    let scene = Scene::start().await;
    let rows =
        format!("SELECT CASE n WHEN 3 THEN (SELECT 3 FROM {LOCK}) ELSE n END FROM generate_series(1, 3) n");
    for bytes in [query(&rows), run_of([extended(&rows, &[]), sync()])] {
        let (mut client, mut holder) = terminated(&scene, &bytes).await;
        holder.query("SELECT pg_advisory_unlock(4711)").await.is("T D(t) C Z(I)");
        let answer = client.ready(1).await;
        assert_eq!((answer.count(b'D'), answer.count(b'E')), (3, 0), "{answer}");
    }
}

/// The server answers our SET, which the client's parameters need, and goes before it has seen the client's request.
#[tokio::test]
async fn a_request_whose_server_has_only_answered_our_set_goes_to_the_next_server() {
    let scene = Scene::start().await;
    let mut control = Raw::login(&scene.replicas.tcp(0), &Login::new("postgres", "app")).await;
    scene.pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    let of_pool =
        "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND application_name <> 'pgweir monitor'";
    let server = control.query(of_pool).await.value();
    let pid = server.parse().unwrap();
    signal(pid, "STOP");
    let mut client =
        Raw::login(&scene.pooler.tcp(), &Login::new("app", "app").option("application_name", "new")).await;
    client.send(query("SELECT 2")).await;
    eventually("it has a server", async || scene.pooler.pool("sv_active").await == 1).await;
    scene.pooler.signal("STOP");
    signal(pid, "CONT");
    let is_set = format!(
        "SELECT 1 FROM pg_stat_activity WHERE pid = {server} AND state = 'idle' \
         AND application_name = 'new'"
    );
    eventually("the SET is done", async || control.query(&is_set).await.count(b'D') == 1).await;
    control.query(&format!("SELECT pg_terminate_backend({server}, 5000)")).await.is("T D(t) C Z(I)");
    scene.pooler.signal("CONT");
    client.ready(1).await.is("T D(2) C Z(I)");
}

#[tokio::test]
async fn what_may_have_done_something_is_not_sent_again() {
    let scene = Scene::start().await;
    let procedure = format!("CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN COMMIT; PERFORM {LOCK}; END'");
    scene.replicas.sql(0, &procedure).await;
    let batches = [
        query("CALL p()"),
        run_of([extended("CALL p()", &[]), sync()]),
        query(&format!("DO $$ BEGIN PERFORM {LOCK}; END $$")),
        query(&format!("COPY (SELECT 1 FROM {LOCK}) TO STDOUT")),
        query(&format!("INSERT INTO ledger VALUES (1); INSERT INTO ledger SELECT 2 FROM {LOCK}")),
        run_of([query("BEGIN"), query(&format!("INSERT INTO ledger SELECT 2 FROM {LOCK}"))]),
    ];
    for bytes in batches {
        let (mut client, _holder) = terminated(&scene, &bytes).await;
        let told = timeout(PROMPTLY, client.rest()).await.expect("it is told at once");
        assert!(told.farewell().starts_with("FATAL 57P01"), "{told}");
    }
    assert_eq!(scene.replicas.number(0, "SELECT count(*) FROM ledger").await, 0);
}

#[tokio::test]
async fn a_statement_that_ends_every_server_is_not_sent_for_ever() {
    let scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    a.send(query("SELECT pg_terminate_backend(pg_backend_pid())")).await;
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told soon");
    assert!(told.farewell().starts_with("FATAL 57P01"), "{told}");
}

#[tokio::test]
async fn a_server_that_is_terminated_while_idle_costs_nothing() {
    let scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    let mut control = Raw::login(&scene.replicas.tcp(0), &Login::new("postgres", "app")).await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
    for number in 0..50 {
        let sql = format!("INSERT INTO ledger VALUES ({number})");
        a.query(&sql).await.is("C Z(I)");
        control.query(terminate).await.is("T N* D C Z(I)");
    }
    assert_eq!(scene.replicas.number(0, "SELECT count(DISTINCT n) FROM ledger").await, 50);
}

#[tokio::test]
async fn single_statements_survive_that_all_servers_are_terminated_under_load() {
    let (seed, mut chance) = chance("terminate all");
    let scene = Scene::start().await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    let mut control = Raw::login(&scene.replicas.tcp(0), &Login::new("postgres", "app")).await;
    // As CloudNativePG does after a promotion.
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for _ in 0..20 {
        ledger.writes(chance.random_range(5..40)).await;
        control.query(terminate).await.is("T N* D C Z(I)");
    }
    ledger.writes(50).await;
    let books = ledger.stop().await;
    books.agree_with(&scene.replicas, 0, LOST).await;
    let single = |entry: &Entry| matches!(entry.deed, Deed::Simple | Deed::Prepared | Deed::Extended);
    let refused = |entry: &Entry| matches!(entry.outcome, Outcome::Refused(_));
    assert_eq!(books.count(|entry| single(entry) && refused(entry)), 0, "{:?}", books.refused());
}

#[tokio::test]
async fn one_server_that_is_terminated_costs_the_others_nothing() {
    let (seed, _) = chance("terminate one");
    let scene = Scene::start().await;
    all_servers_are_open(&scene).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), CLIENTS, seed);
    ledger.writes(50).await;
    let opened = || scene.pooler.log().matches("app/app@127.0.0.2").count();
    let before = opened();
    let terminate = "SELECT pg_terminate_backend(min(pid)) FROM pg_stat_activity \
         WHERE usename = 'app' AND application_name <> 'pgweir monitor'";
    for _ in 0..3 {
        scene.replicas.sql(0, terminate).await;
        ledger.writes(100).await;
    }
    let books = ledger.stop().await;
    books.agree_with(&scene.replicas, 0, LOST).await;
    let failed = books.count(|entry| entry.outcome != Outcome::Acknowledged);
    assert!(failed <= 3, "one client of each that was terminated: {}", books.summary());
    // A request that is sent again trusts no server that is older than the loss, so there may be more than 3.
    let opened = opened() - before;
    assert!(opened < 3 * SERVERS, "{opened} opened, as if all were lost: {}", scene.pooler.log());
}

/// As many as the pool may have.
async fn all_servers_are_open(scene: &Scene) {
    let mut clients = Vec::new();
    for _ in 0..SERVERS {
        let mut client = scene.pooler.client().await;
        client.query("BEGIN").await.is("C Z(T)");
        clients.push(client);
    }
    for mut client in clients {
        client.query("COMMIT").await.is("C Z(I)");
    }
}

#[tokio::test]
async fn a_reload_or_reconnect_forgets_no_primary_and_no_waiting_client() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    for command in ["RELOAD", "RECONNECT"] {
        scene.pooler.admin(command).await;
        a.query("INSERT INTO ledger VALUES (1)").await.is("C Z(I)");
    }
    scene.replicas.kill(0);
    a.send(query("SELECT host(inet_server_addr())")).await;
    scene.pooler.clients_wait(1).await;
    scene.pooler.admin("RELOAD").await;
    let (primary, _) = scene.take_over().await;
    assert_eq!(a.ready(1).await.value(), scene.replicas.host(primary));
}

#[tokio::test]
async fn a_client_that_waits_for_a_primary_may_cancel_or_leave() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    let mut b = scene.pooler.client().await;
    a.query("SELECT 1").await.is("T D C Z(I)");
    scene.replicas.kill(0);
    a.send(query("INSERT INTO ledger VALUES (1)")).await;
    b.send(query("INSERT INTO ledger VALUES (2)")).await;
    scene.pooler.clients_wait(2).await;
    Raw::cancel(&scene.pooler.tcp(), &a.key).await;
    a.ready(1).await.is("E(57014) Z(I)");
    b.reset();
    scene.pooler.clients_wait(0).await;
    let (primary, _) = scene.take_over().await;
    a.query("INSERT INTO ledger VALUES (3)").await.is("C Z(I)");
    let rows = scene.replicas.number(primary, "SELECT sum(n) FROM ledger WHERE n > 0").await;
    assert_eq!(rows, 3, "what was canceled or given up has not run");
}

#[tokio::test]
async fn a_client_of_session_mode_is_told_57p01_when_the_primary_moves() {
    let mut scene = Scene::with(|config| config.mode("session")).await;
    let mut a = scene.pooler.client().await;
    a.query("SET work_mem = '1MB'").await.is("C Z(I)");
    scene.replicas.freeze(0);
    scene.take_over().await;
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told soon");
    told.is("E(57P01) EOF");
    let mut b = scene.pooler.client().await;
    b.query("INSERT INTO ledger VALUES (1)").await.is("C Z(I)");
}

#[tokio::test]
async fn a_client_that_listens_is_told_57p01_when_the_primary_moves() {
    let mut scene = Scene::start().await;
    let mut a = scene.pooler.client().await;
    a.query("LISTEN x").await.succeeds("LISTEN");
    a.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    assert!(scene.pooler.admin("SHOW PINS").await.is_empty());
    scene.replicas.freeze(0);
    scene.take_over().await;
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told soon");
    assert_eq!(told.farewell(), "FATAL 57P01 terminating connection because notifications may be lost");
    let mut b = scene.pooler.client().await;
    b.query("LISTEN x").await.succeeds("LISTEN");
    assert_eq!(b.query("NOTIFY x, 'at the new one'").await.of(b'A').count(), 1);
}

#[tokio::test]
async fn a_pooler_that_starts_while_there_is_no_primary_serves_when_there_is_one() {
    let mut scene = Scene::start().await;
    scene.replicas.kill(0);
    let pooler = following(&scene.replicas, "probe").start().await;
    let address = pooler.tcp();
    let waiting = tokio::spawn(async move {
        let mut client = Raw::login(&address, &Login::new("app", "app")).await;
        client.query("SELECT host(inet_server_addr())").await.value()
    });
    pooler.logs("no server says that it is the primary").await;
    let (primary, _) = scene.take_over().await;
    assert_eq!(waiting.await.expect("it does not panic"), scene.replicas.host(primary));
}

// ---- reading from standbys ----

/// How many queries each server answers.
async fn shares(scene: &Scene, clients: usize, queries: usize) -> Vec<usize> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let address = scene.pooler.tcp();
        tasks.spawn(async move {
            let mut client = Raw::login(&address, &Login::new("app", "ro")).await;
            let mut servers = Vec::new();
            for _ in 0..queries {
                servers.push(client.query("SELECT host(inet_server_addr())").await.value());
            }
            servers
        });
    }
    let servers = tasks.join_all().await.concat();
    (0..3)
        .map(|number| servers.iter().filter(|server| **server == scene.replicas.host(number)).count())
        .collect()
}

#[tokio::test]
async fn role_ro_reads_from_both_standbys_alike_and_never_writes() {
    let scene = Scene::start().await;
    let mut reader = scene.client_of("ro").await;
    assert_eq!(reader.parameters["in_hot_standby"], "on");
    reader.query("INSERT INTO ledger VALUES (1)").await.is("E(25006) Z(I)");
    reader.query("SET default_transaction_read_only = off").await;
    reader.query("INSERT INTO ledger VALUES (1)").await.is("E(25006) Z(I)");
    let both = async || shares(&scene, 8, 10).await[1..].iter().all(|share| *share > 0);
    eventually("both standbys read", both).await;
    let shares = shares(&scene, 8, 600).await;
    println!("shares of the load: {shares:?}");
    assert_eq!(shares[0], 0, "the primary");
    let difference = shares[1].abs_diff(shares[2]);
    assert!(difference * 10 <= shares[1] + shares[2], "{shares:?}");
}

#[tokio::test]
async fn a_standby_that_falls_behind_gets_no_queries_until_it_has_caught_up() {
    let scene = Scene::with(|config| config.setting("max_standby_lag", "1")).await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(scene.client_of("ro").await);
    }
    eventually("it serves", async || shares(&scene, 4, 10).await[1] > 0).await;
    scene.replicas.pause_replay(1).await;
    scene.replicas.sql(0, "INSERT INTO ledger VALUES (1)").await;
    let written = Instant::now();
    let mut last = written;
    while written.elapsed() < Duration::from_secs(5) {
        for reader in &mut readers {
            if scene.server_of(reader).await == "127.0.0.3" {
                last = Instant::now();
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    println!("the paused standby got queries for {:?}; 1 s is allowed", last - written);
    assert!(last - written < Duration::from_secs(3), "limit of 1 s and 2 s to notice");
    scene.replicas.resume_replay(1).await;
    eventually("it is back", async || shares(&scene, 4, 10).await[1] > 0).await;
}

#[tokio::test]
async fn a_killed_standby_costs_what_ran_on_it_and_gets_nothing_soon() {
    let (_, mut chance) = chance("killed standby");
    for _ in 0..runs() {
        let mut scene = Scene::start().await;
        let readers: Vec<JoinHandle<(u32, Instant)>> =
            (0..6).map(|_| tokio::spawn(read_for_a_while(scene.pooler.tcp()))).collect();
        sleep(Duration::from_millis(chance.random_range(300..500))).await;
        let killed = Instant::now();
        scene.replicas.kill(1);
        for reader in readers {
            let (errors, last) = reader.await.expect("a reader does not panic");
            // What had reached it may be done: that is told, and never sent again.
            assert!(errors <= 1, "{errors} errors of one reader");
            let after = last.saturating_duration_since(killed);
            assert!(after < Duration::from_secs(1), "{after:?}");
        }
    }
}

/// Reads for 2 s. Returns the errors, and when the server 127.0.0.3 has last answered.
async fn read_for_a_while(address: Address) -> (u32, Instant) {
    let mut client = Raw::login(&address, &Login::new("app", "ro")).await;
    let (mut errors, mut last, began) = (0, Instant::now(), Instant::now());
    while began.elapsed() < Duration::from_secs(2) {
        let reply = client.query("SELECT host(inet_server_addr()), pg_sleep(0.01)").await;
        match reply.rows().first() {
            Some(row) if row[0] == "127.0.0.3" => last = Instant::now(),
            Some(_) => {}
            None => {
                println!("  {reply}");
                errors += 1;
                client = Raw::login(&address, &Login::new("app", "ro")).await;
            }
        }
    }
    (errors, last)
}

#[tokio::test]
async fn a_promoted_standby_leaves_role_ro() {
    let mut scene = Scene::start().await;
    shares(&scene, 4, 10).await;
    scene.replicas.kill(0);
    let (primary, _) = scene.take_over().await;
    let mut writer = scene.pooler.client().await;
    assert_eq!(scene.server_of(&mut writer).await, scene.replicas.host(primary));
    let shares = shares(&scene, 8, 50).await;
    assert_eq!(shares[3 - primary], 400, "{shares:?}");
}

#[tokio::test]
async fn without_a_standby_role_ro_waits_or_reads_from_the_primary() {
    for fallback in [false, true] {
        let value = if fallback { "1" } else { "0" };
        let mut scene = Scene::with(|config| {
            config.setting("query_wait_timeout", "2").setting("standby_fallback", value)
        })
        .await;
        let mut reader = scene.client_of("ro").await;
        reader.query("SELECT 1").await.is("T D C Z(I)");
        scene.replicas.kill(1);
        scene.replicas.kill(2);
        for role in ["app@prefer-standby", "app@r"] {
            let mut other = scene.client_of(role).await;
            assert_eq!(scene.server_of(&mut other).await, "127.0.0.2", "{role}");
            other.query("INSERT INTO ledger VALUES (1)").await.is("E(25006) Z(I)");
        }
        let told = reader.query("SELECT host(inet_server_addr())").await;
        if fallback {
            assert_eq!(told.value(), "127.0.0.2");
            reader.query("INSERT INTO ledger VALUES (1)").await.is("E(25006) Z(I)");
        } else {
            assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
            let detail = "No server could be used within 2 s: no standby is ready and fresh enough.";
            let said = told.messages.last().expect("it is told").field(b'D');
            assert!(said.starts_with(detail), "{said}");
        }
    }
}

#[tokio::test]
async fn a_client_chooses_its_role_by_name_option_or_port() {
    let port = support::process::free_port();
    let scene = Scene::with(|config| config.setting("listen_port_ro", &port.to_string())).await;
    let app = || Login::new("app", "app");
    let ro_port = Address::Tcp(([127, 0, 0, 1], port).into());
    let ways = [
        (scene.pooler.tcp(), app(), false),
        (scene.pooler.tcp(), Login::new("app", "app@ro"), true),
        (scene.pooler.tcp(), app().option("options", "-c pgweir.role=ro"), true),
        (ro_port.clone(), app(), true),
        (ro_port, app().option("options", "-c pgweir.role=rw"), false),
    ];
    for (address, login, reads) in ways {
        let mut client = Raw::login(&address, &login).await;
        let (recovery, told) = if reads { ("t", "on") } else { ("f", "off") };
        assert_eq!(client.query("SELECT pg_is_in_recovery()").await.value(), recovery, "{login:?}");
        assert_eq!(client.parameters["in_hot_standby"], told, "{login:?}");
    }
    let unknown = scene.pooler.refuses(&app().option("options", "-c pgweir.role=master")).await;
    assert!(unknown.contains("there is no role \"master\""), "{unknown}");
}

#[tokio::test]
async fn a_replication_stream_of_a_lost_primary_is_told_57p01_and_begins_again_at_the_next() {
    let mut scene = Scene::with(|config| {
        config.users("\"postgres\" \"\"\n\"app\" \"\"\n").database_line("replication = cluster=c1 role=rw")
    })
    .await;
    let login = Login::new("postgres", "replication").option("replication", "true");
    let mut a = Raw::login(&scene.pooler.tcp(), &login).await;
    let end = async |client: &mut Raw| client.query("IDENTIFY_SYSTEM").await.rows()[0][1..3].to_vec();
    let [timeline, place] = <[String; 2]>::try_from(end(&mut a).await).expect("two columns");
    assert_eq!(timeline, "1");
    let start = query(&format!("START_REPLICATION PHYSICAL {place} TIMELINE 1"));
    assert_eq!(a.ask_until(start, b'W').await.words(), ["W"]);
    scene.replicas.freeze(0);
    scene.take_over().await;
    let told = timeout(PROMPTLY, a.rest()).await.expect("it is told soon");
    assert_eq!(told.farewell(), "FATAL 57P01 terminating connection due to administrator command", "{told}");
    let mut b = Raw::login(&scene.pooler.tcp(), &login).await;
    assert_eq!(end(&mut b).await[0], "2", "it is the new primary's timeline");
}
