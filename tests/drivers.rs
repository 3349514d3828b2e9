//! The clients that people use, through the pooler: psql, pgbench, pg_dump, and the drivers and object mappers of
//! Python, Node.js, Java, Ruby, PHP and Rust. What each of them does is in `tests/drivers/`; here they are started.
//!
//! `scripts/setup drivers` installs them, and builds the Rust programs.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::{SinkExt, StreamExt, pin_mut};
use support::Pooler;
use support::pooler::Config;
use tokio::process::Command;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// No driver test takes a tenth of this; one that hangs has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Fewer servers than any script has connections, so that each connection changes its server.
const FEW_SERVERS: u32 = 2;

/// Where a client program connects to, as user `app`.
struct Target {
    port: u16,
    database: String,
}

impl Target {
    fn pooler(pooler: &Pooler) -> Target {
        Target { port: pooler.port, database: "app".to_owned() }
    }

    /// A new database of the PostgreSQL behind the pooler.
    async fn postgres(pooler: &Pooler) -> Target {
        let database = pooler.postgres.new_database().await;
        Target { port: pooler.postgres.port, database }
    }

    fn dsn(&self) -> String {
        format!("postgres://app@127.0.0.1:{}/{}", self.port, self.database)
    }

    /// A client program with nothing of PostgreSQL's in its environment but this address.
    fn program(&self, name: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(name);
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(variable);
        }
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "app")
            .env("PGDATABASE", &self.database)
            .env("PGWEIR_DSN", self.dsn())
            // With it Java says on its standard error that it has read it.
            .env_remove("JAVA_TOOL_OPTIONS")
            .current_dir(drivers())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

fn program(pooler: &Pooler, name: impl AsRef<OsStr>) -> Command {
    Target::pooler(pooler).program(name)
}

async fn finish(mut command: Command) -> Output {
    let shown = format!("{:?}", command.as_std());
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {shown}"))
        .unwrap_or_else(|error| panic!("cannot start, see scripts/setup: {error}: {shown}"))
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn drivers() -> PathBuf {
    repository().join("tests/drivers")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// Scripts ---------------------------------------------------------------------------------------

/// A program of `tests/drivers` that checks its driver and says `ok` and how many checks it made.
struct Script {
    interpreter: PathBuf,
    arguments: Vec<String>,
}

fn python(script: &[&str]) -> Script {
    Script::new(repository().join(".cache/venv/bin/python"), script)
}

fn node(script: &[&str]) -> Script {
    Script::new("node", script)
}

fn ruby(script: &[&str]) -> Script {
    Script::new("ruby", script)
}

fn php(script: &[&str]) -> Script {
    Script::new("php", script)
}

/// A program of `tests/drivers/rust`, which `scripts/setup` builds beside our own.
fn rust(name: &str, arguments: &[&str]) -> Script {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../drivers/debug");
    Script::new(built.join(name), arguments)
}

/// Java compiles the one file as it starts. It runs for a second: little is worth optimizing.
fn java(arguments: &[&str]) -> Script {
    let options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", "/usr/share/java/postgresql.jar"];
    Script::new("java", &[&options[..], &["java/Jdbc.java"], arguments].concat())
}

impl Script {
    fn new(interpreter: impl Into<PathBuf>, script: &[&str]) -> Script {
        let arguments = script.iter().map(|argument| (*argument).to_owned()).collect();
        Script { interpreter: interpreter.into(), arguments }
    }

    async fn run(&self, target: &Target) -> String {
        let mut command = target.program(&self.interpreter);
        command.args(&self.arguments);
        let output = finish(command).await;
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
        assert!(stdout.lines().any(|line| line.starts_with("ok ")), "{stdout}{stderr}");
        assert_eq!(stderr, "");
        stdout
    }

    /// Passes with PostgreSQL itself, and says the same through a pooler with few servers.
    async fn check(&self, config: Config) {
        let pooler = config.pool_size(FEW_SERVERS).start().await;
        let expected = self.run(&Target::postgres(&pooler).await).await;
        assert_eq!(self.run(&Target::pooler(&pooler)).await, expected);
        // One that a client has left in the middle of something is closed.
        let servers = pooler.log().matches("new connection to server").count();
        assert!(servers >= FEW_SERVERS as usize, "{servers} servers had work");
        pooler.is_clean().await;
    }
}

/// Tests of scripts: each has a name and what to run.
macro_rules! scripts {
    ($($name:ident: $script:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            $script.check(Pooler::config()).await;
        }
    )*};
}

scripts! {
    psycopg_prepares_pipelines_copies_and_cancels: python(&["psycopg_driver.py"]);
    asyncpg_caches_statements_copies_and_cancels: python(&["asyncpg_driver.py"]);
    psycopg2_begins_by_itself_copies_and_polls: python(&["psycopg2_driver.py"]);
    sqlalchemy_and_alembic_work_over_three_drivers: python(&["sqlalchemy_orm.py"]);
    django_migrates_nests_transactions_and_locks_rows: python(&["django_orm.py"]);
    node_postgres_pools_names_statements_and_reads_cursors: node(&["node/node_postgres.js"]);
    postgres_js_pipelines_describes_and_cancels: node(&["node/postgres_js.js"]);
    sequelize_synchronizes_models_and_locks_rows: node(&["node/sequelize.js"]);
    sqlx_caches_statements_migrates_and_copies: rust("sqlx_driver", &[]);
    diesel_caches_statements_migrates_and_copies: rust("diesel_driver", &[]);
    ruby_pg_names_statements_pipelines_and_streams: ruby(&["ruby_pg.rb"]);
    php_prepares_deallocates_and_scrolls: php(&["php_driver.php"]);
}

/// What PgBouncer's users write for pgjdbc.
fn without_digits() -> Config {
    Pooler::config().setting("ignore_startup_parameters", "extra_float_digits")
}

#[tokio::test]
async fn pgjdbc_names_statements_batches_and_fetches_in_pieces() {
    java(&[]).check(without_digits()).await;
}

/// What a session keeps between its transactions, and nobody else gets.
mod session_state {
    use super::*;

    scripts! {
        psycopg_keeps_its_session: python(&["psycopg_driver.py", "session-state"]);
        asyncpg_keeps_its_session: python(&["asyncpg_driver.py", "session-state"]);
        psycopg2_keeps_its_session: python(&["psycopg2_driver.py", "session-state"]);
        sqlalchemy_keeps_its_session: python(&["sqlalchemy_orm.py", "session-state"]);
        django_keeps_its_session: python(&["django_orm.py", "session-state"]);
        node_postgres_keeps_its_session: node(&["node/node_postgres.js", "session-state"]);
        postgres_js_keeps_its_session: node(&["node/postgres_js.js", "session-state"]);
        sequelize_keeps_its_session: node(&["node/sequelize.js", "session-state"]);
        sqlx_keeps_its_session: rust("sqlx_driver", &["session-state"]);
        diesel_keeps_its_session: rust("diesel_driver", &["session-state"]);
        ruby_pg_keeps_its_session: ruby(&["ruby_pg.rb", "session-state"]);
        php_keeps_its_session: php(&["php_driver.php", "session-state"]);
        pgjdbc_keeps_its_session: java(&["session-state"]);
    }
}

/// SQL that means statements of the protocol.
mod deallocate {
    use super::*;

    scripts! {
        ruby_pg_drops_its_statements_with_sql: ruby(&["ruby_pg.rb", "deallocate"]);
        php_drops_its_statements_with_sql: php(&["php_driver.php", "deallocate"]);
    }
}

/// Statements whose tables change: what a driver prepares anew must be new on the server too.
mod schema_change {
    use super::*;

    scripts! {
        psycopg_prepares_anew: python(&["psycopg_driver.py", "schema-change"]);
        asyncpg_prepares_anew: python(&["asyncpg_driver.py", "schema-change"]);
        postgres_js_prepares_anew: node(&["node/postgres_js.js", "schema-change"]);
    }

    #[tokio::test]
    async fn pgjdbc_prepares_anew() {
        java(&["schema-change"]).check(without_digits()).await;
    }
}

#[tokio::test]
async fn psql_prints_what_it_prints_without_a_pooler() {
    for mode in ["transaction", "session"] {
        let pooler = Pooler::config().mode(mode).start().await;
        let mut command = program(&pooler, "psql");
        let long_text = format!("LONG_TEXT={}", "x".repeat(100_000));
        command.args(["-X", "-A", "-f", "psql.sql", "-v", &long_text]);
        let output = finish(command).await;
        let expected = std::fs::read_to_string(drivers().join("psql.expected")).unwrap();
        let stdout = text(&output.stdout);
        assert_eq!(stdout, expected, "{mode} mode; errors:\n{}", text(&output.stderr));
        assert!(output.status.success(), "{}", output.status);
        pooler.is_clean().await;
    }
}

// pg_dump and pg_restore ------------------------------------------------------------------------

/// Enough for a dump of two jobs, each of which is in one transaction from its beginning to its end.
const DUMP_SERVERS: u32 = 3;

/// Databases of one PostgreSQL, as they are named there, through a pooler.
async fn dump_pooler() -> Pooler {
    Pooler::config().database_line("* = {server}").pool_size(DUMP_SERVERS).start().await
}

async fn succeeds(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments);
    let output = finish(command).await;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success() && stderr.is_empty(),
        "{arguments:?}: {}\n{stdout}{stderr}",
        output.status
    );
    output
}

/// A database with content.
async fn filled(pooler: &Pooler) -> Target {
    let source = Target::postgres(pooler).await;
    succeeds(source.program("psql"), &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "dump.sql"]).await;
    source
}

/// All that PostgreSQL itself says about a database, but for the key that is new in each dump.
async fn content(target: &Target) -> String {
    let dump = text(&succeeds(target.program("pg_dump"), &[]).await.stdout);
    let lines =
        dump.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Dumps the one database and restores it into another, both through the pooler.
async fn copy_database(pooler: &Pooler, source: &Target, dump: &[&str]) {
    let copy = Target::postgres(pooler).await;
    let through = |target: &Target| Target { port: pooler.port, database: target.database.clone() };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump").display().to_string();
    succeeds(through(source).program("pg_dump"), &[dump, &["-f", &file]].concat()).await;
    let restore = ["--exit-on-error", "-j", "2", "-d", &copy.database, &file];
    succeeds(through(&copy).program("pg_restore"), &restore).await;
    let (expected, got) = (content(source).await, content(&copy).await);
    assert!(
        expected.contains("PARTITION") && expected.contains("lo_create"),
        "the dump has no content: {expected}"
    );
    let difference = expected.lines().zip(got.lines()).find(|(expected, got)| expected != got);
    assert_eq!(difference, None, "{dump:?}: what was restored is not what was dumped");
    assert_eq!(expected.len(), got.len(), "{dump:?}: what was restored is not what was dumped");
}

#[tokio::test]
async fn a_dump_is_restored_by_two_jobs() {
    let pooler = dump_pooler().await;
    let source = filled(&pooler).await;
    copy_database(&pooler, &source, &["-Fc"]).await;
    pooler.is_clean().await;
}

#[tokio::test]
async fn a_dump_of_two_jobs_is_restored_by_two_jobs() {
    let pooler = dump_pooler().await;
    let source = filled(&pooler).await;
    copy_database(&pooler, &source, &["-Fd", "-j", "2"]).await;
    pooler.is_clean().await;
}

#[tokio::test]
async fn one_dump_after_the_other_leaves_nothing_to_other_clients() {
    let pooler = Pooler::config().database_line("* = {server}").start().await;
    let source = filled(&pooler).await;
    let through = Target { port: pooler.port, database: source.database.clone() };
    let show = "SELECT current_setting('search_path') || ' ' || current_setting('statement_timeout')";
    for _ in 0..2 {
        let got = text(&succeeds(through.program("pg_dump"), &[]).await.stdout);
        assert!(got.contains("PARTITION"), "{got}");
        let settings = text(&succeeds(through.program("psql"), &["-X", "-A", "-t", "-c", show]).await.stdout);
        assert_eq!(settings, "\"$user\", public 0\n");
    }
}

// pgbench ---------------------------------------------------------------------------------------

const PGBENCH_SERVERS: u32 = 20;

/// Whoever waits for a server connection longer than this has been forgotten.
const QUERY_WAIT_TIMEOUT_S: &str = "60";

/// One run of pgbench.
#[derive(Clone, Copy, Debug)]
struct Bench {
    mode: &'static str,
    script: &'static str,
    protocol: &'static str,
    clients: u32,
}

impl Bench {
    /// Enough for every client to change its server, few enough for the whole matrix.
    fn transactions_per_client(self) -> u32 {
        match self.clients {
            1 => 100,
            20 => 25,
            _ => 4,
        }
    }

    fn arguments(self) -> Vec<String> {
        // pgbench prepares synchronously: a thread that waits for one client's server cannot end the
        // transaction of another client that has one. So each client gets its own thread.
        let threads = if self.protocol == "prepared" { self.clients } else { self.clients.min(2) };
        let mut arguments = vec!["-n".to_owned()];
        let transactions = self.transactions_per_client();
        for (option, value) in [("-c", self.clients), ("-j", threads), ("-t", transactions)] {
            arguments.extend([option.to_owned(), value.to_string()]);
        }
        for (option, value) in [("-b", self.script), ("-M", self.protocol)] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
        if self.mode == "session" && self.clients > PGBENCH_SERVERS {
            // A session keeps its server until it ends, and pgbench waits for all to connect before
            // any begins: more sessions than servers can only take turns, one transaction each.
            arguments.push("-C".to_owned());
        }
        arguments
    }

    async fn check(self, pooler: &Pooler) {
        let mut command = program(pooler, "pgbench");
        command.args(self.arguments());
        let output = finish(command).await;
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        // It can exit with 0 although a PREPARE failed: its stderr tells.
        let complaint = stderr.lines().find(|line| !line.starts_with("pgbench (") && !line.is_empty());
        assert_eq!(complaint, None, "{self:?}\n{stdout}{stderr}");
        assert!(output.status.success(), "{self:?}: {}\n{stdout}{stderr}", output.status);
        let total = self.clients * self.transactions_per_client();
        let processed = format!("number of transactions actually processed: {total}/{total}");
        assert!(stdout.contains(&processed), "{self:?}\n{stdout}");
        let failed = stdout.lines().find(|line| line.starts_with("number of failed transactions"));
        assert!(failed.is_none_or(|line| line.contains(": 0 (")), "{self:?}\n{stdout}");
    }
}

async fn check_pgbench(mode: &'static str, workers: &str) {
    let pooler = with_workers(Pooler::config(), workers)
        .mode(mode)
        .pool_size(PGBENCH_SERVERS)
        .setting("query_wait_timeout", QUERY_WAIT_TIMEOUT_S)
        .start()
        .await;
    let mut initialize = program(&pooler, "pgbench");
    // Five branches: with one, TPC-B would mostly wait for that row's lock.
    initialize.args(["-i", "-q", "-s", "5"]);
    let output = finish(initialize).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut written = 0;
    for script in ["select-only", "tpcb-like"] {
        for protocol in ["simple", "extended", "prepared"] {
            for clients in [1, 20, 200] {
                let bench = Bench { mode, script, protocol, clients };
                bench.check(&pooler).await;
                if script == "tpcb-like" {
                    written += i64::from(clients * bench.transactions_per_client());
                }
            }
        }
    }
    assert_eq!(pooler.number("SELECT count(*) FROM pgbench_history").await, written);
    pooler.is_clean().await;
}

/// PgBouncer, when it stands in, has one worker and does not know the setting.
fn with_workers(config: Config, workers: &str) -> Config {
    match std::env::var_os("PGWEIR_TEST_POOLER") {
        None => config.setting("workers", workers),
        Some(_) => config,
    }
}

#[tokio::test]
async fn pgbench_fails_nothing_in_transaction_mode_with_one_worker() {
    check_pgbench("transaction", "1").await;
}

#[tokio::test]
async fn pgbench_fails_nothing_in_transaction_mode_with_two_workers() {
    check_pgbench("transaction", "2").await;
}

#[tokio::test]
async fn pgbench_fails_nothing_in_session_mode_with_one_worker() {
    check_pgbench("session", "1").await;
}

#[tokio::test]
async fn pgbench_fails_nothing_in_session_mode_with_two_workers() {
    check_pgbench("session", "2").await;
}

// tokio-postgres --------------------------------------------------------------------------------

async fn connect(pooler: &Pooler) -> Client {
    let (client, connection) = tokio_postgres::connect(&Target::pooler(pooler).dsn(), NoTls).await.unwrap();
    // The connection ends with its client; what failed, the client's own calls report.
    tokio::spawn(connection);
    client
}

async fn few_servers() -> Pooler {
    Pooler::config().pool_size(FEW_SERVERS).start().await
}

#[tokio::test]
async fn tokio_postgres_keeps_its_prepared_statements_on_every_server() {
    let pooler = few_servers().await;
    let clients = join_all((0..6).map(|_| connect(&pooler))).await;
    let work = clients.iter().enumerate().map(|(number, client)| async move {
        let sql = format!("SELECT $1::int4 + {number}, $2::text");
        let statement = client.prepare(&sql).await?;
        for repeat in 0..50_i32 {
            let row = client.query_one(&statement, &[&repeat, &"é"]).await?;
            let expected = repeat + i32::try_from(number).unwrap();
            assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (expected, "é"));
        }
        Ok::<_, tokio_postgres::Error>(())
    });
    try_join_all(work).await.unwrap();
    pooler.is_clean().await;
}

#[tokio::test]
async fn tokio_postgres_pipelines_and_gets_its_answers_in_order() {
    let pooler = few_servers().await;
    let clients = join_all((0..4).map(|_| connect(&pooler))).await;
    for client in &clients {
        let statement = client.prepare("SELECT $1::int4").await.unwrap();
        // Polled together, these are all sent before the first answer comes.
        let queries = (0..200_i32).map(|n| {
            let statement = &statement;
            async move { client.query_one(statement, &[&n]).await.map(|row| row.get::<_, i32>(0)) }
        });
        let answers = try_join_all(queries).await.unwrap();
        assert_eq!(answers, (0..200).collect::<Vec<_>>());
    }
    pooler.is_clean().await;
}

#[tokio::test]
async fn tokio_postgres_rolls_back_and_goes_on_after_an_error() {
    let pooler = few_servers().await;
    let mut client = connect(&pooler).await;
    client.batch_execute("CREATE TABLE driver_tokio (n int PRIMARY KEY)").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO driver_tokio VALUES ($1)", &[&1]).await.unwrap();
    let error = transaction.execute("INSERT INTO driver_tokio VALUES ($1)", &[&1]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
    transaction.rollback().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO driver_tokio VALUES ($1)", &[&2]).await.unwrap();
    let portal = transaction.bind("SELECT n FROM generate_series(1, 10) AS n", &[]).await.unwrap();
    let first = transaction.query_portal(&portal, 3).await.unwrap();
    let rest = transaction.query_portal(&portal, 0).await.unwrap();
    assert_eq!((first.len(), rest.len()), (3, 7));
    transaction.commit().await.unwrap();
    let row = client.query_one("SELECT sum(n) FROM driver_tokio", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2);
    pooler.is_clean().await;
}

#[tokio::test]
async fn tokio_postgres_copies_in_and_out() {
    let pooler = few_servers().await;
    let client = connect(&pooler).await;
    client.batch_execute("CREATE TABLE driver_copy (n int, word text)").await.unwrap();
    let sink = client.copy_in("COPY driver_copy FROM STDIN").await.unwrap();
    pin_mut!(sink);
    let mut rows = String::new();
    for n in 0..50_000 {
        rows += &format!("{n}\tword {n}\n");
    }
    for chunk in rows.as_bytes().chunks(10_007) {
        sink.send(bytes::Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 50_000);
    let stream = client.copy_out("COPY driver_copy TO STDOUT").await.unwrap();
    let chunks: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert!(chunks.concat() == rows.as_bytes(), "COPY out gives other rows than COPY in took");
    pooler.is_clean().await;
}

#[tokio::test]
async fn tokio_postgres_cancels_its_own_query_and_no_other() {
    let pooler = few_servers().await;
    let (cancelled, other) = (connect(&pooler).await, connect(&pooler).await);
    let token = cancelled.cancel_token();
    let mut gate = support::Gate::close(&pooler).await;
    let sql = gate.sql("done");
    let cancelled_query = tokio::spawn({
        let sql = sql.clone();
        async move { (cancelled.query_one(&sql, &[]).await.map(drop), cancelled) }
    });
    let other_query = tokio::spawn(async move { other.query_one(&sql, &[]).await });
    gate.is_reached_by(2).await;
    token.cancel_query(NoTls).await.unwrap();
    let (result, cancelled) = cancelled_query.await.unwrap();
    assert_eq!(result.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    gate.open().await;
    assert_eq!(other_query.await.unwrap().unwrap().get::<_, &str>(0), "done");
    assert_eq!(cancelled.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    pooler.is_clean().await;
}

#[tokio::test]
async fn a_cancel_reaches_a_statement_that_had_to_be_prepared_again() {
    let pooler = few_servers().await;
    let (client, mut other) = (connect(&pooler).await, connect(&pooler).await);
    let mut gate = support::Gate::close(&pooler).await;
    let statement = client.prepare(&gate.sql("done")).await.unwrap();
    // Takes the only server, so that the statement's turn comes on a new one. There the pooler's own
    // Parse goes first, and PostgreSQL holds its answer back until the query has ended.
    let transaction = other.transaction().await.unwrap();
    transaction.batch_execute("SELECT 1").await.unwrap();
    let token = client.cancel_token();
    let query = tokio::spawn(async move { client.query_one(&statement, &[]).await });
    gate.is_reached_by(1).await;
    token.cancel_query(NoTls).await.unwrap();
    let result = tokio::time::timeout(support::PATIENCE, query).await.expect("the cancel arrives");
    assert_eq!(result.unwrap().unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    transaction.commit().await.unwrap();
    gate.open().await;
    pooler.is_clean().await;
}
