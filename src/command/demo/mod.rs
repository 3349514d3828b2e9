//! `pgweir demo`: a private PostgreSQL primary with two standbys, pgweir in front, and something to
//! watch: the primary moves, and nobody notices. Where there is a kube-apiserver, that tells pgweir of it, as with
//! CloudNativePG; else pgweir asks the servers. Everything lives in a temporary folder and ends with the
//! command. Read [`run`] first.

mod keys;
mod kubernetes;
mod live;
mod load;
mod scenes;

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use self::keys::Keys;
use self::kubernetes::Operator;
use self::live::Snapshot;
use self::load::Load;
use self::scenes::Scene;
use super::pgbench::{Report, complaints};
use super::postgres::{Cluster, DATABASE, PostgresError, Programs, USER, free_port};
use super::process::{ProcessError, Running, Sandbox};
use crate::topology::kube::NoApi;
use crate::topology::kube::operate::ApiFailure;

/// PgBouncer's own default, where it is free.
const PORT_DEFAULT: u16 = 6432;
const STANDBY_COUNT: u8 = 2;
const POOL_SIZE: usize = 20;

/// With `--script`: the pause before each scene, so that one sees what belongs to it.
const SCRIPT_PAUSE: Duration = Duration::from_secs(2);

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
    /// Play switchover, kill, fence and cut one after the other, print what the clients met, and end
    #[arg(long, conflicts_with = "once")]
    script: bool,
    /// Let pgweir ask the servers who the primary is, even if there is a kube-apiserver to be told by
    #[arg(long)]
    probe: bool,
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
    /// The API server cannot be reached.
    #[error(transparent)]
    NoApi(#[from] NoApi),
    /// The API server refused.
    #[error("the Kubernetes API: {}", .0.0)]
    Api(ApiFailure),
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
    /// With `--script`: clients met an error in a move that must not cost any, or are not served again.
    #[error("scene {scene}: {what}")]
    Scene {
        /// Its name.
        scene: &'static str,
        /// What was wrong.
        what: String,
    },
    /// Ctrl-C before `--once` had its result.
    #[error("interrupted")]
    Interrupted,
    /// Our own program, standard output or a signal handler is out of reach.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ApiFailure> for DemoError {
    fn from(failure: ApiFailure) -> Self {
        DemoError::Api(failure)
    }
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
    if arguments.once || arguments.script { Err(DemoError::Interrupted) } else { Ok(()) }
}

async fn demo(arguments: &DemoArguments) -> Result<(), DemoError> {
    let programs = Programs::find()?;
    let sandbox = Sandbox::new("pgweir-demo-")?;
    let found = if arguments.probe { None } else { kubernetes::Programs::find() };
    say(&source(arguments, found.as_ref()))?;
    if cfg!(debug_assertions) {
        say("A build for development: one of make release takes a fraction of its processor time")?;
    }
    say(&format!(
        "Starting PostgreSQL, a primary and {STANDBY_COUNT} standbys, in {}",
        sandbox.path().display()
    ))?;
    let (cluster, operator) = tokio::try_join!(
        async { Ok(Cluster::start(&sandbox, &programs, STANDBY_COUNT).await?) },
        Operator::start(&sandbox, found.as_ref()),
    )?;
    operator.describe(&cluster).await?;
    let port = choose_port(arguments.port)?;
    let pooler = Pooler::start(&sandbox, &cluster, operator.kubeconfig(), port).await?;
    let mut demo = Demo { pooler, operator, cluster, programs: &programs, sandbox: &sandbox };
    demo.psql("pgbouncer", "SHOW VERSION").await?;
    demo.pgbench(&["-i", "-q", DATABASE]).await?;
    demo.psql(DATABASE, "CREATE TABLE demo_rows (client int, written timestamptz DEFAULT now())").await?;
    if arguments.script {
        demo.script().await
    } else if arguments.once {
        demo.once(arguments.seconds.unwrap_or(ONCE_SECONDS)).await
    } else {
        demo.watch(arguments.seconds.map(Duration::from_secs)).await
    }
}

/// Who tells pgweir which server is the primary, and why it is that one.
fn source(arguments: &DemoArguments, found: Option<&kubernetes::Programs>) -> String {
    match found {
        Some(programs) => format!(
            "Source cnpg: a kube-apiserver of our own says what CloudNativePG would (found in {})",
            programs.folder().display()
        ),
        None if arguments.probe => "Source probe: pgweir asks the servers, as --probe wants".to_owned(),
        None => {
            "Source probe: pgweir asks the servers, as no kube-apiserver and etcd are in PATH or .cache/kube \
                 (scripts/setup kube makes them)"
                .to_owned()
        }
    }
}

/// pgweir, as a child process with a settings file of its own.
struct Pooler {
    port: u16,
    /// Of the metrics, and of the page for people.
    page: u16,
    settings: PathBuf,
    process: Running,
}

impl Pooler {
    async fn start(
        sandbox: &Sandbox,
        cluster: &Cluster<'_>,
        kubeconfig: Option<&Path>,
        port: u16,
    ) -> Result<Self, DemoError> {
        sandbox.write_file("userlist.txt", &format!("\"{USER}\" \"\"\n"))?;
        let page = free_port().map_err(PostgresError::NoPort)?;
        let source = match kubeconfig {
            Some(_) => "source=cnpg".to_owned(),
            None => format!("source=probe hosts={}", cluster.hosts()),
        };
        let settings = sandbox.write_file("pgweir.ini", &settings(&source, cluster.port, port, page))?;
        let program = sandbox.reachable_program(&std::env::current_exe()?)?;
        let mut command = sandbox.command(&program);
        command.arg(&settings);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        // At once: the demo's clients are ended with it.
        let mut process = sandbox.start("pgweir", command, Signal::QUIT)?;
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        process.wait_until(POOLER_START_MAX, listens).await?;
        Ok(Pooler { port, page, settings, process })
    }
}

struct Demo<'a> {
    // In this order: the clients' server ends before the servers behind it.
    pooler: Pooler,
    operator: Operator,
    cluster: Cluster<'a>,
    programs: &'a Programs,
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
        let mut keys = Keys::listen();
        let load = Load::start(self.pooler.port);
        let began = Instant::now();
        let mut line = Line::begin(self).await;
        while limit.is_none_or(|limit| began.elapsed() < limit) {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                key = keys.next() => {
                    if let Some(scene) = Scene::of_key(key) {
                        say("")?;
                        self.play(scene).await?;
                    }
                }
            }
            if let Some(status) = self.pooler.process.ended() {
                return self.pooler_ended(status);
            }
            line.show(self, &load).await?;
        }
        say("")
    }

    /// Plays every scene under load. A planned move must cost no error at all.
    async fn script(&mut self) -> Result<(), DemoError> {
        let load = Load::start(self.pooler.port);
        for scene in Scene::ALL {
            tokio::time::sleep(SCRIPT_PAUSE).await;
            let before = load.look();
            self.play(scene).await?;
            tokio::time::sleep(SCRIPT_PAUSE).await;
            let after = load.look();
            let (rows, errors) = (after.rows - before.rows, after.errors - before.errors);
            say(&format!(
                "  {:<12} {rows} rows written, {errors} errors, longest wait {:.2} s",
                scene.name(),
                after.longest.as_secs_f64()
            ))?;
            if rows == 0 || scene.is_planned() && errors > 0 {
                let what = format!("rows={rows} errors={errors}");
                return Err(DemoError::Scene { scene: scene.name(), what });
            }
        }
        say("The primary moved, and the clients went on.")
    }

    fn pooler_ended(&self, status: ExitStatus) -> Result<(), DemoError> {
        if status.success() {
            return say("\npgweir was shut down.");
        }
        Err(self.pooler.process.failure(status).into())
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        let mut command = self.client("psql");
        command.args(["-X", "--no-align", "--field-separator=|", "--pset=footer=off"]);
        command.args(["-c", "SHOW POOLS", "-c", "SHOW STATS", "-c", "SHOW CLUSTERS", "pgbouncer"]);
        let output = super::process::output(command).await.ok()?;
        Some(Snapshot::parse(&output.stdout))
    }

    /// Waits until both standbys have what the primary has, asked through pgweir. Returns the
    /// number of rows.
    async fn wait_for_standbys(&self) -> Result<String, DemoError> {
        let expected = self.psql(DATABASE, COUNT_ROWS).await?;
        let count = |place| self.cluster.query_database(place, DATABASE, COUNT_ROWS);
        let deadline = Instant::now() + CATCH_UP_MAX;
        loop {
            let streaming = self.psql(DATABASE, COUNT_STREAMING).await?;
            let mut rows = Vec::new();
            for place in self.cluster.standbys() {
                rows.push(count(place).await?);
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
        let Pooler { port, page, .. } = self.pooler;
        let url = format!("postgres://{USER}@127.0.0.1:{port}");
        let settings = self.pooler.settings.display();
        let pid = self.pooler.process.id();
        format!(
            "\npgweir listens on 127.0.0.1:{port} (transaction pooling, {POOL_SIZE} server connections). Connect:\n\
             \n    psql {url}/{DATABASE}\n\
             \nA page to look at: http://127.0.0.1:{page}/\n\
             \nTry, in another terminal:\n\
             \n    psql {url}/{DATABASE}@ro             # a standby, for reading\
             \n    psql {url}/pgbouncer -c 'SHOW CLUSTERS' -c 'SHOW MEMBERS'\
             \n    psql {url}/pgbouncer -c 'SHOW POOLS'\
             \n    psql {url}/pgbouncer -c 'PAUSE {DATABASE}'     # clients wait, none fails; then RESUME {DATABASE}\
             \n    pgbench -h 127.0.0.1 -p {port} -U {USER} -n -S -M prepared -c 200 -T 10 {DATABASE}\
             \n    kill -HUP {pid}                     # after a change in {settings}\n\
             \nFifty clients write. Press a key: s switchover, k kill the primary, f fence it, n cut its network.\
             \nCtrl-C ends everything and leaves nothing behind.\n"
        )
    }
}

const COUNT_ROWS: &str = "SELECT count(*) FROM pgbench_history";
const COUNT_STREAMING: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";

fn settings(source: &str, server_port: u16, port: u16, page: u16) -> String {
    format!(
        "[clusters]\n\
         demo = {source} port={server_port}\n\
         \n[databases]\n\
         {DATABASE} = cluster=demo\n\
         \n[pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         metrics_listen_addr = 127.0.0.1:{page}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = userlist.txt\n\
         admin_users = {USER}\n\
         monitor_user = {USER}\n\
         pool_mode = transaction\n\
         default_pool_size = {POOL_SIZE}\n\
         max_client_conn = 1000\n\
         max_prepared_statements = 200\n\
         ignore_startup_parameters = extra_float_digits\n"
    )
}

/// The live line: from one second to the next.
struct Line {
    measured: Instant,
    before: Snapshot,
}

impl Line {
    async fn begin(demo: &Demo<'_>) -> Line {
        Line { measured: Instant::now(), before: demo.snapshot().await.unwrap_or_default() }
    }

    async fn show(&mut self, demo: &Demo<'_>, load: &Load) -> Result<(), DemoError> {
        // Without an answer (somebody tries SHUTDOWN, say) there is no line this second.
        let Some(now) = demo.snapshot().await else { return Ok(()) };
        let met = load.look();
        show(&format!(
            "{} | {} errors, longest wait {:.2} s",
            now.line(&self.before, self.measured.elapsed()),
            met.errors,
            met.longest.as_secs_f64()
        ))?;
        *self = Line { measured: Instant::now(), before: now };
        Ok(())
    }
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
