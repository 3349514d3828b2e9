//! Replication connections: PostgreSQL's own tools take backups, WAL and changes through the pooler, each
//! over a server of its own.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use support::certificates::{Authority, text};
use support::message::{copy_done, query, startup, terminate};
use support::pooler::{Config, is_ours};
use support::postgres::binaries;
use support::process::{self, memory_directory, private_directory, reap};
use support::{Login, PATIENCE, PROMPTLY, Pooler, Postgres, Raw, eventually};

const USERS: &str = "\"app\" \"\"\n\"replicator\" \"\"\n\"admin\" \"\"\n";

/// A pooler before a server that can say all that it does. PostgreSQL's tools call the database of
/// physical replication `replication`.
async fn pooler(change: impl FnOnce(Config) -> Config) -> Pooler {
    let settings = ["wal_level=logical", "checkpoint_timeout=1h"];
    before(Arc::new(Postgres::start(&settings).await), change).await
}

async fn before(postgres: Arc<Postgres>, change: impl FnOnce(Config) -> Config) -> Pooler {
    let config = Pooler::config().users(USERS).postgres(postgres).pool_size(4);
    change(config.database_line("replication = {server}")).start().await
}

/// One of PostgreSQL's programs, with the pooler as its server.
fn tool(name: &str, pooler: &Pooler, arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.args(["-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "replicator", "-w"]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn succeeds(mut command: Command) -> Output {
    let output = command.output().expect("PostgreSQL's programs are installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}

/// A program that goes on until the test ends it.
struct Running(Child);

impl Running {
    fn start(mut command: Command, output: &Path) -> Running {
        let file = fs::File::create(output).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Running(process::spawn(command))
    }

    fn signal(&mut self, name: &str) {
        process::signal(self.0.id(), name);
        reap(&mut self.0, PATIENCE);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        process::signal(self.0.id(), "KILL");
        reap(&mut self.0, PATIENCE);
    }
}

fn physical() -> Login {
    Login::new("replicator", "replication").option("replication", "true")
}

fn logical() -> Login {
    Login::new("replicator", "app").option("replication", "database")
}

async fn connect(pooler: &Pooler, login: &Login) -> Raw {
    Raw::login(&pooler.tcp(), login).await
}

const WALSENDERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";

async fn walsenders_are(pooler: &Pooler, count: i64) {
    eventually(&format!("{count} walsenders"), async || pooler.number(WALSENDERS).await == count).await;
}

/// Begins to send the changes of a new slot.
async fn stream(client: &mut Raw) {
    client.query("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL test_decoding").await.is("T D C Z(I)");
    let begun = client.ask_until(query("START_REPLICATION SLOT s LOGICAL 0/0"), b'W').await;
    assert_eq!(begun.words(), ["W"], "{begun}");
}

/// Reads the stream up to a change that has the text.
async fn hears_of(client: &mut Raw, text: &str) {
    loop {
        let message = client.reader.message().await.expect("the stream goes on");
        assert_eq!(message.tag, b'd', "{message:?}");
        if String::from_utf8_lossy(&message.body[..message.body.len().min(100)]).contains(text) {
            return;
        }
    }
}

/// A standby's status: all is written up to this place.
fn confirmation() -> Vec<u8> {
    let numbers = [0_u64; 4].map(u64::to_be_bytes).concat();
    let body = [b"r", &numbers[..], b"\0"].concat();
    support::message::message(b'd', &body)
}

#[tokio::test]
async fn pg_basebackup_takes_a_backup_that_verifies_in_every_pool_mode() {
    let postgres = Arc::new(Postgres::start(&["wal_level=replica"]).await);
    for mode in ["session", "transaction", "statement"] {
        let pooler = before(Arc::clone(&postgres), |config| config.mode(mode)).await;
        let place = memory_directory("weir-backup-");
        let data = place.path().join("data");
        succeeds(tool("pg_basebackup", &pooler, &["-D", text(&data), "-X", "stream", "-c", "fast"]));
        let mut verify = Command::new(binaries().join("pg_verifybackup"));
        verify.arg(&data);
        succeeds(verify);
        let wal = fs::read_dir(data.join("pg_wal")).unwrap().count();
        assert!(wal > 0, "{mode}: the backup has its WAL");
        walsenders_are(&pooler, 0).await;
    }
}

#[tokio::test]
async fn pg_receivewal_gets_each_segment_of_the_wal() {
    let pooler = pooler(|config| config).await;
    let place = memory_directory("weir-wal-");
    succeeds(tool("pg_receivewal", &pooler, &["--create-slot", "--slot", "archive"]));
    let arguments = ["-D", text(place.path()), "--slot", "archive", "-n"];
    let mut running = Running::start(tool("pg_receivewal", &pooler, &arguments), &place.path().join("log"));
    walsenders_are(&pooler, 1).await;
    for _ in 0..2 {
        // Between two segments the current one is the one before.
        pooler.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)").await;
        let name =
            pooler.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await.remove(0).remove(0);
        // What it gets first is the segment that is written when it asks, not when it connects.
        let begun = place.path().join(format!("{name}.partial"));
        eventually("the segment has begun", async || begun.exists()).await;
        pooler.sql("SELECT pg_switch_wal()").await;
        eventually("the segment is complete", async || place.path().join(&name).exists()).await;
    }
    running.signal("INT");
    walsenders_are(&pooler, 0).await;
}

#[tokio::test]
async fn pg_recvlogical_gets_the_changes_while_others_share_the_servers_in_transaction_mode() {
    let pooler = pooler(|config| config.mode("transaction")).await;
    pooler.sql("CREATE TABLE t (n int); GRANT ALL ON t TO app").await;
    let place = memory_directory("weir-changes-");
    let changes = place.path().join("changes");
    let with = |more: &[&str]| {
        let arguments = [&["-d", "app", "--slot", "changes"], more].concat();
        tool("pg_recvlogical", &pooler, &arguments)
    };
    succeeds(with(&["--create-slot", "-P", "test_decoding"]));
    let start = with(&["--start", "-f", text(&changes), "-F", "0"]);
    let mut running = Running::start(start, &place.path().join("log"));
    let mut client = pooler.client().await;
    for n in 1..=3 {
        client.query(&format!("INSERT INTO t VALUES ({n})")).await.is("C Z(I)");
        let wanted = format!("table public.t: INSERT: n[integer]:{n}");
        eventually(&wanted, async || fs::read_to_string(&changes).unwrap_or_default().contains(&wanted))
            .await;
    }
    for view in ["SHOW CLIENTS", "SHOW SERVERS"] {
        let rows = pooler.admin(view).await;
        let of = |user: &str| {
            let row = rows.iter().find(|row| row["user"] == user && row["database"] == "app");
            row.unwrap_or_else(|| panic!("{view} has {user}: {rows:?}"))["replication"].clone()
        };
        assert_eq!((of("replicator"), of("app")), ("logical".to_owned(), "none".to_owned()), "{view}");
    }
    running.signal("INT");
    walsenders_are(&pooler, 0).await;
    succeeds(with(&["--drop-slot"]));
}

#[tokio::test]
async fn a_subscription_of_another_postgresql_copies_and_follows_its_tables() {
    let pooler = pooler(|config| config.setting("ignore_startup_parameters", "options")).await;
    let table = "CREATE TABLE t (n int PRIMARY KEY, at timestamptz)";
    pooler
        .sql(&format!("{table}; INSERT INTO t SELECT n, '2026-11-25 UTC' FROM generate_series(1, 1000) n"))
        .await;
    pooler.sql("GRANT SELECT ON t TO replicator; CREATE PUBLICATION p FOR TABLE t").await;
    // A server with another DateStyle must still send what the subscriber can read: its options say so.
    pooler.sql("ALTER ROLE replicator SET datestyle = 'German'").await;
    let subscriber = Postgres::start(&["datestyle=ISO, MDY"]).await;
    subscriber.sql("app", table).await;
    let connection = format!("host=127.0.0.1 port={} user=replicator dbname=app", pooler.port);
    subscriber.sql("app", &format!("CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p")).await;
    let rows = "SELECT count(*) FROM t WHERE at = '2026-11-25 UTC'";
    let has = async |count: i64| subscriber.number("app", rows).await == count;
    eventually("the table is copied", async || has(1000).await).await;
    pooler.sql("INSERT INTO t VALUES (1001, '2026-11-25 UTC'); DELETE FROM t WHERE n = 1").await;
    pooler.sql("INSERT INTO t VALUES (1002, '2026-11-25 UTC')").await;
    eventually("changes follow", async || has(1001).await).await;
    subscriber.sql("app", "DROP SUBSCRIPTION s").await;
    assert_eq!(pooler.number("SELECT count(*) FROM pg_replication_slots").await, 0);
}

#[tokio::test]
async fn tools_and_servers_may_use_tls() {
    let authority = Authority::new();
    let shown = authority.issue("both", "DNS:localhost,IP:127.0.0.1");
    let (certificate, key) = (text(&shown.certificate), text(&shown.key));
    let settings = ["ssl=on", &format!("ssl_cert_file={certificate}"), &format!("ssl_key_file={key}")];
    let pooler = before(Arc::new(Postgres::start(&settings).await), |config| {
        let config =
            config.setting("client_tls_sslmode", "require").setting("client_tls_cert_file", certificate);
        config.setting("client_tls_key_file", key).setting("server_tls_sslmode", "require")
    })
    .await;
    let place = memory_directory("weir-backup-");
    let data = place.path().join("data");
    let backup = tool("pg_basebackup", &pooler, &["-D", text(&data), "-c", "fast", "--no-manifest"]);
    succeeds(backup);
    assert!(data.join("PG_VERSION").exists());
    pooler.logs("login attempt: db=replication user=replicator tls=TLSv1.3").await;
}

#[tokio::test]
async fn a_login_says_what_it_is_for_and_booleans_are_postgresqls() {
    let pooler = pooler(|config| config).await;
    for value in ["true", "on", "yes", "1", "T"] {
        let login = Login::new("replicator", "replication").option("replication", value);
        let mut client = connect(&pooler, &login).await;
        client.query("IDENTIFY_SYSTEM").await.is("T D C(IDENTIFY_SYSTEM) Z(I)");
        assert!(client.parameters.contains_key("server_version"), "{value}");
    }
    pooler.logs("db=replication user=replicator tls=no replication=yes").await;
    let mut client = connect(&pooler, &logical()).await;
    client.query("IDENTIFY_SYSTEM").await.is("T D C(IDENTIFY_SYSTEM) Z(I)");
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    pooler.logs("db=app user=replicator tls=no replication=database").await;
    for value in ["false", "off", "no", "0"] {
        let mut client = connect(&pooler, &Login::new("app", "app").option("replication", value)).await;
        let refused = client.query("IDENTIFY_SYSTEM").await;
        assert_eq!(refused.words(), ["E(42601)", "Z(I)"], "{value}");
    }
    pooler.logs("db=app user=app tls=no replication=no").await;
    if is_ours() {
        let refusal = pooler.refuses(&Login::new("app", "app").option("replication", "maybe")).await;
        assert_eq!(refusal, "E(22023) FATAL invalid value for parameter \"replication\": \"maybe\"");
    }
}

#[tokio::test]
async fn the_clients_startup_parameters_are_its_servers() {
    let pooler = pooler(|config| config.setting("ignore_startup_parameters", "extra_float_digits")).await;
    let login = logical()
        .option("application_name", "my standby")
        .option("options", "-c work_mem=5MB -c datestyle=German")
        .option("extra_float_digits", "3");
    let mut client = connect(&pooler, &login).await;
    assert_eq!(client.parameters["application_name"], "my standby");
    client.query("SHOW work_mem").await.is("T D(5MB) C Z(I)");
    client.query("SHOW datestyle").await.is("T D(German, DMY) C Z(I)");
    client.query("SHOW application_name").await.is("T D(my standby) C Z(I)");
    let mut client = connect(&pooler, &logical().option("work_mem", "1MB")).await;
    client.query("SHOW work_mem").await.is("T D(1MB) C Z(I)");
}

#[tokio::test]
async fn each_has_a_server_of_its_own_that_nobody_else_ever_gets() {
    let pooler = pooler(|config| config.mode("transaction")).await;
    let own = "SELECT pg_backend_pid()";
    let (mut one, mut two) = (connect(&pooler, &logical()).await, connect(&pooler, &logical()).await);
    let mut ordinary = connect(&pooler, &Login::new("replicator", "app")).await;
    let pids =
        [one.query(own).await.value(), two.query(own).await.value(), ordinary.query(own).await.value()];
    assert!(pids[0] != pids[1] && pids[1] != pids[2] && pids[0] != pids[2], "{pids:?}");
    // What a session sets stays there, and nobody prepares anything in another one's name.
    one.query("SET work_mem = '3MB'; PREPARE p AS SELECT 7").await.is("C C Z(I)");
    two.query("EXECUTE p").await.is("E(26000) Z(I)");
    one.query("EXECUTE p").await.is("T D(7) C Z(I)");
    assert_eq!(one.query(own).await.value(), pids[0]);
    one.send(terminate()).await;
    one.rest().await.is("EOF");
    walsenders_are(&pooler, 1).await;
    let mut three = connect(&pooler, &logical()).await;
    assert_ne!(three.query(own).await.value(), pids[0]);
    three.query("SHOW work_mem").await.is("T D(4MB) C Z(I)");
}

#[tokio::test]
async fn a_replication_connection_counts_in_its_pool_and_waits_its_turn() {
    let pooler = pooler(|config| config.pool_size(1)).await;
    let ordinary = Login::new("replicator", "app");
    // An idle server makes room.
    let mut client = connect(&pooler, &ordinary).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut first = connect(&pooler, &logical()).await;
    first.query("SELECT 1").await.is("T D(1) C Z(I)");
    // Now the pool is full: for an ordinary client, and for one more for replication.
    client.send(query("SELECT 2")).await;
    let waiting = async |count: &str| {
        let pools = pooler.admin("SHOW POOLS").await;
        pools.iter().any(|pool| pool["user"] == "replicator" && pool["cl_waiting"] == count)
    };
    eventually("the client waits", async || waiting("1").await).await;
    let second = tokio::spawn(Raw::login_owned(pooler.tcp(), logical()));
    eventually("both wait", async || waiting("2").await).await;
    first.send(terminate()).await;
    client.ready(1).await.is("T D(2) C Z(I)");
    let mut second = second.await.unwrap();
    second.query("SELECT 3").await.is("T D(3) C Z(I)");
    second.send(terminate()).await;
    client.query("SELECT 4").await.is("T D(4) C Z(I)");
}

#[tokio::test]
async fn a_server_that_refuses_is_login_failed_with_its_own_words_in_the_detail() {
    let pooler = pooler(|config| config).await;
    for _ in 0..2 {
        let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
        client.send(startup(&[("user", "app"), ("database", "app"), ("replication", "database")])).await;
        let told = client.rest().await;
        told.is("E(08P01) EOF");
        assert_eq!(told.messages[0].field(b'M'), "login failed");
        if is_ours() {
            let detail = told.messages[0].field(b'D');
            let words = "42501: must be superuser or replication role to start walsender";
            assert!(detail.contains(words), "{detail}");
        }
    }
    // The pool's own servers are none the worse for it.
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn a_cancel_reaches_the_walsender_of_its_client() {
    let pooler = pooler(|config| config).await;
    let mut client = connect(&pooler, &logical()).await;
    client.send(query("SELECT pg_sleep(60)")).await;
    let sleeps =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    eventually("it sleeps", async || pooler.number(sleeps).await == 1).await;
    Raw::cancel(&pooler.tcp(), &client.key).await;
    client.ready(1).await.is("T E(57014) Z(I)");
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_its_connection_goes_on_after_it() {
    let pooler = pooler(|config| config.setting("query_timeout", "1").mode("statement")).await;
    pooler.sql("CREATE TABLE t (n int)").await;
    let mut client = connect(&pooler, &logical()).await;
    stream(&mut client).await;
    client.send(confirmation()).await;
    pooler.sql("INSERT INTO t VALUES (1)").await;
    hears_of(&mut client, "n[integer]:1").await;
    // A stream lasts longer than any query, and nobody takes it for one.
    let deadline = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' \
         AND backend_start < clock_timestamp() - interval '1.5 s'";
    eventually("the stream is old", async || pooler.number(deadline).await == 1).await;
    pooler.sql("INSERT INTO t VALUES (2)").await;
    hears_of(&mut client, "n[integer]:2").await;
    client.send(copy_done()).await;
    let end = client.ready(1).await;
    let words: Vec<_> = end.words().into_iter().filter(|word| !word.starts_with('d')).collect();
    assert_eq!(words, ["c", "C(COPY 0)", "C(START_REPLICATION)", "Z(I)"], "{end}");
    client.query("IDENTIFY_SYSTEM").await.is("T D C(IDENTIFY_SYSTEM) Z(I)");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_stream_frees_its_slot() {
    let pooler = pooler(|config| config).await;
    for says_goodbye in [true, false] {
        let mut client = connect(&pooler, &logical()).await;
        stream(&mut client).await;
        walsenders_are(&pooler, 1).await;
        if says_goodbye {
            client.send(terminate()).await;
            client.rest().await;
        } else {
            drop(client);
        }
        walsenders_are(&pooler, 0).await;
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_walsender_and_gets_all_of_it_later() {
    let pooler = pooler(|config| config).await;
    pooler.sql("CREATE TABLE t (n int, filler text)").await;
    let mut client = connect(&pooler, &logical()).await;
    stream(&mut client).await;
    client.shrink_receive_buffer();
    let before = pooler.memory_bytes();
    let rows = "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 25000) n";
    pooler.sql(rows).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' \
         AND wait_event IN ('WalSenderWriteData', 'ClientWrite')";
    eventually("the walsender waits for its client", async || pooler.number(waits).await == 1).await;
    let grown = pooler.memory_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes are held for a client that does not read");
    client.widen_receive_buffer();
    hears_of(&mut client, "n[integer]:25000 ").await;
}

#[tokio::test]
async fn pause_waits_for_a_stream_and_kill_ends_it() {
    let pooler = pooler(|config| config).await;
    let mut client = connect(&pooler, &logical()).await;
    stream(&mut client).await;
    let mut console = pooler.console().await;
    console.send(query("PAUSE app")).await;
    assert!(!console.hears_within(std::time::Duration::from_millis(300)).await, "PAUSE waits");
    // Nobody new comes in meanwhile.
    let mut late = tokio::spawn(Raw::login_owned(pooler.tcp(), logical()));
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut late).await;
    assert!(early.is_err(), "a server was opened for it");
    client.send(terminate()).await;
    console.until(b'Z').await.is("C(PAUSE) Z(I)");
    pooler.admin("RESUME app").await;
    let mut late = tokio::time::timeout(PROMPTLY, late).await.expect("it is let in").unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots";
    eventually("the first stream's slot is gone", async || pooler.number(slots).await == 0).await;
    stream(&mut late).await;
    pooler.admin("KILL app").await;
    let told = late.rest().await;
    assert_eq!(told.farewell(), "FATAL 08P01 database removed", "{told}");
    walsenders_are(&pooler, 0).await;
}

#[tokio::test]
async fn hba_rules_of_physical_replication_are_those_of_its_keyword() {
    let place = private_directory("weir-hba-");
    let file = place.path().join("hba");
    fs::write(&file, "host replication replicator all trust\nhost all app,admin all trust\n").unwrap();
    let pooler =
        pooler(|config| config.setting("auth_type", "hba").setting("auth_hba_file", text(&file))).await;
    let mut client = connect(&pooler, &physical()).await;
    client.query("IDENTIFY_SYSTEM").await.is("T D C Z(I)");
    let refusal = pooler.refuses(&logical()).await;
    assert_eq!(refusal, "E(08P01) FATAL no authentication method is found");
    let refusal = pooler.refuses(&Login::new("app", "replication").option("replication", "1")).await;
    assert_eq!(refusal, "E(08P01) FATAL no authentication method is found");
}
