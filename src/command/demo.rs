//! `pgweir demo`: a private PostgreSQL primary with two standbys, pgweir in front, and something to
//! watch. Everything lives in a temporary folder and ends with the command. Read [`run`] first.

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::live::Snapshot;
use super::pgbench::{Report, complaints};
use super::postgres::{Cluster, DATABASE, PostgresError, Programs, Server, USER, free_port};
use super::process::{ProcessError, Running, Sandbox};

/// PgBouncer's own default, where it is free.
const PORT_DEFAULT: u16 = 6432;
const STANDBY_COUNT: usize = 2;
const POOL_SIZE: usize = 20;

/// More than this and the line says less about pgweir than about the machine.
const LOAD_CLIENTS: &str = "50";
const LOAD_TRANSACTIONS_PER_S: &str = "200";

const ONCE_CLIENTS: &str = "20";
const ONCE_SECONDS: u64 = 3;

/// pgweir starts in milliseconds; a machine may be busy.
const POOLER_START_MAX: Duration = Duration::from_secs(15);
/// How long the standbys may take to catch up with the end of a pgbench run.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(100);

/// The arguments of `pgweir demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArguments {
    /// Run a short pgbench through pgweir, print its result and end
    #[arg(long)]
    once: bool,
    /// TCP port for pgweir on 127.0.0.1 [default: 6432, or a free one if that is taken]
    #[arg(long)]
    port: Option<u16>,
    /// End after so many seconds; with --once, how long each pgbench run takes [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// PostgreSQL did not start.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// pgbench exited with success and yet complained.
    #[error("pgbench {options} complained:\n{text}")]
    Complaints {
        /// The run's options.
        options: String,
        /// What it wrote.
        text: String,
    },
    /// The standbys have not replayed what the primary wrote.
    #[error(
        "after {} s the primary streams to {streaming} of {STANDBY_COUNT} standbys; rows of \
         pgbench_history: {rows}",
        CATCH_UP_MAX.as_secs()
    )]
    StandbysBehind {
        /// How many standbys stream.
        streaming: String,
        /// The count of rows on each server.
        rows: String,
    },
    /// Ctrl-C before `--once` had its result.
    #[error("interrupted")]
    Interrupted,
    /// Our own program, standard output or a signal handler is out of reach.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the demo until Ctrl-C, SIGTERM or SIGHUP, the time given, or with `--once` until the result
/// is printed. When it returns, its processes have ended and its folder is gone.
pub fn run(arguments: &DemoArguments) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_interrupted(arguments))
}

async fn until_interrupted(arguments: &DemoArguments) -> Result<(), DemoError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    // The branch that loses is dropped, and with it every child and the folder.
    tokio::select! {
        result = demo(arguments) => return result,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    if arguments.once { Err(DemoError::Interrupted) } else { Ok(()) }
}

async fn demo(arguments: &DemoArguments) -> Result<(), DemoError> {
    let programs = Programs::find()?;
    let sandbox = Sandbox::new("pgweir-demo-")?;
    say(&format!(
        "Starting PostgreSQL, a primary and {STANDBY_COUNT} standbys, in {}",
        sandbox.path().display()
    ))?;
    let cluster = Cluster::start(&sandbox, &programs, STANDBY_COUNT).await?;
    let port = choose_port(arguments.port)?;
    let pooler = Pooler::start(&sandbox, &cluster, port).await?;
    let mut demo = Demo { pooler, cluster, programs, sandbox: &sandbox };
    demo.psql("pgbouncer", "SHOW VERSION").await?;
    demo.pgbench(&["-i", "-q", DATABASE]).await?;
    if arguments.once {
        demo.once(arguments.seconds.unwrap_or(ONCE_SECONDS)).await
    } else {
        demo.watch(arguments.seconds.map(Duration::from_secs)).await
    }
}

/// pgweir, as a child process with a settings file of its own.
struct Pooler {
    port: u16,
    settings: PathBuf,
    process: Running,
}

impl Pooler {
    async fn start(sandbox: &Sandbox, cluster: &Cluster, port: u16) -> Result<Self, DemoError> {
        sandbox.write_file("userlist.txt", &format!("\"{USER}\" \"\"\n"))?;
        let settings = sandbox.write_file("pgweir.ini", &settings(cluster, port))?;
        let program = sandbox.reachable_program(&std::env::current_exe()?)?;
        let mut command = sandbox.command(&program);
        command.arg(&settings);
        // At once: the demo's clients are ended with it.
        let mut process = sandbox.start("pgweir", command, Signal::QUIT)?;
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        process.wait_until(POOLER_START_MAX, listens).await?;
        Ok(Pooler { port, settings, process })
    }
}

struct Demo<'a> {
    // In this order: the clients' server ends before the servers behind it.
    pooler: Pooler,
    cluster: Cluster,
    programs: Programs,
    sandbox: &'a Sandbox,
}

impl Demo<'_> {
    async fn once(&self, seconds: u64) -> Result<(), DemoError> {
        say(&format!("pgbench with {ONCE_CLIENTS} clients through pgweir, {seconds} s each:"))?;
        let seconds = seconds.to_string();
        for (name, script) in [("select-only", "select-only"), ("TPC-B", "tpcb-like")] {
            let text =
                self.pgbench(&["-n", "-b", script, "-c", ONCE_CLIENTS, "-T", &seconds, DATABASE]).await?;
            let report = Report::parse(&text)
                .filter(|report| report.failed == 0 && report.transactions > 0)
                .ok_or_else(|| DemoError::Complaints { options: name.to_owned(), text })?;
            say(&format!(
                "  {name:<12} {:>8.0} transactions/s  {:>7.3} ms average latency  {} failed",
                report.transactions_per_s, report.latency_ms, report.failed
            ))?;
        }
        let rows = self.wait_for_standbys().await?;
        say(&format!("Both standbys stream from the primary and hold its {rows} rows of pgbench_history."))
    }

    async fn watch(&mut self, limit: Option<Duration>) -> Result<(), DemoError> {
        say(&self.introduction())?;
        let _load = self.start_load()?;
        let began = Instant::now();
        let mut measured = began;
        let mut before = self.snapshot().await.unwrap_or_default();
        while limit.is_none_or(|limit| began.elapsed() < limit) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Some(status) = self.pooler.process.ended() {
                return self.pooler_ended(status);
            }
            // Without an answer (somebody tries SHUTDOWN, say) there is no line this second.
            if let Some(now) = self.snapshot().await {
                show(&now.line(&before, measured.elapsed()))?;
                before = now;
                measured = Instant::now();
            }
        }
        say("")
    }

    fn pooler_ended(&self, status: ExitStatus) -> Result<(), DemoError> {
        if status.success() {
            return say("\npgweir was shut down.");
        }
        Err(self.pooler.process.failure(status).into())
    }

    /// A gentle load, so that there is something to see.
    fn start_load(&self) -> Result<Running, ProcessError> {
        let mut command = self.client("pgbench");
        command.args(["-n", "-b", "select-only", "-c", LOAD_CLIENTS]);
        // It ends with the demo: ten years are for ever.
        command.args(["-R", LOAD_TRANSACTIONS_PER_S, "-T", "315360000", DATABASE]);
        self.sandbox.start("pgbench", command, Signal::TERM)
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        let mut command = self.client("psql");
        command.args(["-X", "--no-align", "--field-separator=|", "--pset=footer=off"]);
        command.args(["-c", "SHOW POOLS", "-c", "SHOW STATS", "pgbouncer"]);
        let output = super::process::output(command).await.ok()?;
        Some(Snapshot::parse(&output.stdout))
    }

    /// Waits until both standbys have what the primary has, asked through pgweir. Returns the
    /// number of rows.
    async fn wait_for_standbys(&self) -> Result<String, DemoError> {
        let expected = self.psql(DATABASE, COUNT_ROWS).await?;
        let deadline = Instant::now() + CATCH_UP_MAX;
        loop {
            let streaming = self.psql(DATABASE, COUNT_STREAMING).await?;
            let mut rows = Vec::new();
            for Server { name, .. } in &self.cluster.standbys {
                rows.push(self.psql(name, COUNT_ROWS).await?);
            }
            if streaming == STANDBY_COUNT.to_string() && rows.iter().all(|count| *count == expected) {
                return Ok(expected);
            }
            if Instant::now() >= deadline {
                let rows = format!("{expected} on the primary, {} on the standbys", rows.join(", "));
                return Err(DemoError::StandbysBehind { streaming, rows });
            }
            tokio::time::sleep(CATCH_UP_INTERVAL).await;
        }
    }

    async fn psql(&self, database: &str, statement: &str) -> Result<String, DemoError> {
        let mut command = self.client("psql");
        command.args(["-X", "--no-align", "--tuples-only", "-c", statement, database]);
        Ok(super::process::output(command).await?.stdout.trim().to_owned())
    }

    /// Runs pgbench to its end and returns its report. A complaint is an error, whatever its exit
    /// code.
    async fn pgbench(&self, options: &[&str]) -> Result<String, DemoError> {
        let mut command = self.client("pgbench");
        command.args(options);
        let output = super::process::output(command).await?;
        let complaints = complaints(&output.stderr);
        if complaints.is_empty() {
            return Ok(output.stdout);
        }
        Err(DemoError::Complaints { options: options.join(" "), text: complaints.join("\n") })
    }

    /// A client program that connects to pgweir.
    fn client(&self, program: &str) -> std::process::Command {
        let mut command = self.programs.command(self.sandbox, program);
        command.args(["-h", "127.0.0.1", "-U", USER, "-p", &self.pooler.port.to_string()]);
        command
    }

    fn introduction(&self) -> String {
        let port = self.pooler.port;
        let url = format!("postgres://{USER}@127.0.0.1:{port}");
        let settings = self.pooler.settings.display();
        let pid = self.pooler.process.id();
        format!(
            "\npgweir listens on 127.0.0.1:{port} (transaction pooling, {POOL_SIZE} server connections). Connect:\n\
             \n    psql {url}/{DATABASE}\n\
             \nTry, in another terminal:\n\
             \n    psql {url}/standby1               # a read-only standby; standby2 is the other\
             \n    psql {url}/pgbouncer -c 'SHOW POOLS'\
             \n    psql {url}/pgbouncer -c 'PAUSE {DATABASE}'     # clients wait, none fails; then RESUME {DATABASE}\
             \n    pgbench -h 127.0.0.1 -p {port} -U {USER} -n -S -M prepared -c 200 -T 10 {DATABASE}\
             \n    kill -HUP {pid}                     # after a change in {settings}\n\
             \nA gentle load is running. Ctrl-C ends everything and leaves nothing behind.\n"
        )
    }
}

const COUNT_ROWS: &str = "SELECT count(*) FROM pgbench_history";
const COUNT_STREAMING: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";

fn settings(cluster: &Cluster, port: u16) -> String {
    let mut text = "[databases]\n".to_owned();
    let primary = (DATABASE, cluster.primary.port);
    let standbys = cluster.standbys.iter().map(|standby| (standby.name.as_str(), standby.port));
    for (name, server_port) in std::iter::once(primary).chain(standbys) {
        text += &format!("{name} = host=127.0.0.1 port={server_port} dbname={DATABASE}\n");
    }
    text += &format!(
        "\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = userlist.txt\n\
         admin_users = {USER}\n\
         pool_mode = transaction\n\
         default_pool_size = {POOL_SIZE}\n\
         max_client_conn = 1000\n\
         max_prepared_statements = 200\n\
         ignore_startup_parameters = extra_float_digits\n"
    );
    text
}

fn choose_port(wanted: Option<u16>) -> Result<u16, PostgresError> {
    match wanted {
        Some(0) => free_port().map_err(PostgresError::NoPort),
        Some(port) => Ok(port),
        None if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_DEFAULT)).is_ok() => Ok(PORT_DEFAULT),
        None => free_port().map_err(PostgresError::NoPort),
    }
}

/// A closed standard output ends the demo in order; `println!` would panic.
fn say(text: &str) -> Result<(), DemoError> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// The live line: in place on a terminal, else one line after another.
fn show(line: &str) -> Result<(), DemoError> {
    let mut stdout = io::stdout();
    if stdout.is_terminal() {
        write!(stdout, "\r\x1b[K{line}")?;
    } else {
        writeln!(stdout, "{line}")?;
    }
    Ok(stdout.flush()?)
}
