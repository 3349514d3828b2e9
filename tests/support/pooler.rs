//! [`Pooler`]: the program under test, between a test's clients and PostgreSQL.
//!
//! It is our own binary, or the one that `PGWEIR_TEST_POOLER` names: PgBouncer takes the same ini file as
//! its only argument, so every test can be asked what PgBouncer would do.

use super::certificates::{Identity, text};
use super::postgres::Postgres;
use super::process::{self, private_directory, reap, unprivileged};
use super::raw::{Address, Login, Raw};
use super::{PATIENCE, eventually};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The users of the pooler's `auth_file`; `admin` may use the console.
const USERS: &str = r#""app" "app-secret"
"plain_user" "plain-secret"
"md5_user" "md5-secret"
"scram_user" "scram-secret"
"admin" "admin-secret"
"#;

/// What the ini file will say.
pub struct Config {
    settings: Vec<(String, String)>,
    database: String,
    server: Option<SocketAddr>,
    postgres: Option<Arc<Postgres>>,
    databases: String,
    sections: String,
    users: String,
    environment: Vec<(String, String)>,
    program: PathBuf,
    pam_services: Option<PathBuf>,
}

impl Config {
    /// A setting of the `[pgbouncer]` section; the last one counts.
    pub fn setting(mut self, name: &str, value: &str) -> Config {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn pool_size(self, size: u32) -> Config {
        self.setting("default_pool_size", &size.to_string())
    }

    pub fn mode(self, mode: &str) -> Config {
        self.setting("pool_mode", mode)
    }

    /// TLS for clients, who are shown this certificate.
    pub fn shows(self, sslmode: &str, identity: &Identity) -> Config {
        self.setting("client_tls_sslmode", sslmode)
            .setting("client_tls_cert_file", text(&identity.certificate))
            .setting("client_tls_key_file", text(&identity.key))
    }

    /// Further settings of the database's line.
    pub fn database_option(mut self, option: &str) -> Config {
        self.database.push(' ');
        self.database.push_str(option);
        self
    }

    /// A further line of `[databases]`. `{server}` stands for host and port, `{database}` for the
    /// test's own database.
    pub fn database_line(mut self, line: &str) -> Config {
        self.databases.push_str(line);
        self.databases.push('\n');
        self
    }

    /// Further sections, with their headings.
    pub fn sections(mut self, text: &str) -> Config {
        self.sections.push_str(text);
        self
    }

    /// Another `auth_file`.
    pub fn users(mut self, text: &str) -> Config {
        text.clone_into(&mut self.users);
        self
    }

    /// An environment variable of the pooler.
    pub fn environment(mut self, name: &str, value: &str) -> Config {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another pooler's binary than that of the other tests.
    pub fn program(mut self, program: PathBuf) -> Config {
        self.program = program;
        self
    }

    /// What the pooler, in a mount namespace of its own, sees as `/etc/pam.d`. Only root may.
    pub fn pam_services(mut self, folder: &Path) -> Config {
        self.pam_services = Some(folder.to_owned());
        self
    }

    /// What the pooler takes for PostgreSQL: a proxy or an impostor. Default: PostgreSQL.
    pub fn server(mut self, address: SocketAddr) -> Config {
        self.server = Some(address);
        self
    }

    /// A PostgreSQL of one's own. Default: the shared one.
    pub fn postgres(mut self, postgres: Arc<Postgres>) -> Config {
        self.postgres = Some(postgres);
        self
    }

    /// Starts the pooler and waits until it accepts connections.
    pub async fn start(self) -> Pooler {
        let (postgres, database) = self.backend().await;
        for _ in 0..5 {
            let mut pooler = self.launch(&postgres, &database);
            if pooler.accepts().await {
                return pooler;
            }
            eprintln!("pooler ended: {}\n{}", pooler.wait(), pooler.log());
        }
        panic!("the pooler does not start: see the logs above");
    }

    /// Starts a pooler that must not run. Returns its exit code and what it said.
    pub async fn refused(self) -> (Option<i32>, String) {
        let (postgres, database) = self.backend().await;
        let mut pooler = self.launch(&postgres, &database);
        let status = pooler.wait();
        (status.code(), pooler.log())
    }

    async fn backend(&self) -> (Arc<Postgres>, String) {
        let postgres = match self.postgres.clone() {
            Some(postgres) => postgres,
            None => Postgres::shared().await,
        };
        let database = postgres.new_database().await;
        (postgres, database)
    }

    fn launch(&self, postgres: &Arc<Postgres>, database: &str) -> Pooler {
        let directory = private_directory("weir-");
        let port = process::free_port();
        let ini = directory.path().join("pooler.ini");
        let users = directory.path().join("users.txt");
        let log = directory.path().join("log");
        fs::write(&users, &self.users).expect("our directory is writable");
        let text = self.ini(&directory, port, postgres, database);
        fs::write(&ini, text).expect("our directory is writable");
        let output = File::create(&log).expect("our directory is writable");
        let program = process::reachable(&self.program, directory.path());
        let mut command = unprivileged(&program, "KILL");
        command.arg(&ini);
        if let Some(folder) = &self.pam_services {
            command = process::with_mount(folder, Path::new("/etc/pam.d"), &command);
        }
        command.stdin(Stdio::null());
        // A test's few clients would all live on one worker, and nothing would cross from one to another.
        if !self.settings.iter().any(|(name, _)| name == "worker_load_max") {
            command.env("PGWEIR_WORKER_LOAD_MAX", "0");
        }
        command.envs(self.environment.iter().cloned());
        command.stdout(output.try_clone().expect("a file handle can be doubled"));
        command.stderr(output);
        Pooler {
            port,
            database: database.to_owned(),
            postgres: postgres.clone(),
            child: process::spawn(command),
            directory,
            status: None,
        }
    }

    fn ini(&self, directory: &tempfile::TempDir, port: u16, postgres: &Postgres, database: &str) -> String {
        let server = SocketAddr::from(([127, 0, 0, 1], postgres.port));
        let server = self.server.unwrap_or(server);
        let folder = directory.path().display();
        let mut text = format!(
            "[databases]\napp = host={} port={} dbname={database}{}\n{}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {folder}\n\
             auth_type = trust\nauth_file = {folder}/users.txt\nadmin_users = admin\n\
             pool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 1000\n\
             server_login_retry = 1\nserver_tls_sslmode = disable\n",
            server.ip(),
            server.port(),
            self.database,
            self.databases
        );
        for (name, value) in &self.settings {
            writeln!(text, "{name} = {value}").expect("a String takes all text");
        }
        text.push_str(&self.sections);
        let address = format!("host={} port={}", server.ip(), server.port());
        text.replace("{server}", &address)
            .replace("{database}", database)
            .replace("{folder}", &folder.to_string())
    }
}

/// Sends the clients to and fro, between all workers and one, until it is dropped. PgBouncer has but one.
pub struct Restless(JoinHandle<()>);

impl Restless {
    pub fn start(mut console: Raw) -> Restless {
        Restless(tokio::spawn(async move {
            if !is_ours() {
                std::future::pending::<()>().await;
            }
            for most in ["100", "0"].into_iter().cycle() {
                let set = format!("SET worker_load_max={most}");
                console.query(&set).await.is(&format!("C({set}) Z(I)"));
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }))
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || !self.0.is_finished(), "it has stopped to send them");
        self.0.abort();
    }
}

/// Whether the pooler is ours, and not the one of `PGWEIR_TEST_POOLER`: for what only we do.
pub fn is_ours() -> bool {
    std::env::var_os("PGWEIR_TEST_POOLER").is_none()
}

fn program() -> PathBuf {
    std::env::var_os("PGWEIR_TEST_POOLER")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_pgweir")), PathBuf::from)
}

/// A running pooler. Dropping it stops it, and fails the test if it had ended by itself.
pub struct Pooler {
    pub port: u16,
    pub postgres: Arc<Postgres>,
    /// The database behind the pooler's database `app`; no other pooler uses it.
    pub database: String,
    directory: tempfile::TempDir,
    child: Child,
    status: Option<ExitStatus>,
}

impl Pooler {
    /// The standard set-up: transaction mode and one server connection.
    pub fn config() -> Config {
        Config {
            settings: Vec::new(),
            database: String::new(),
            server: None,
            postgres: None,
            databases: String::new(),
            sections: String::new(),
            users: USERS.to_owned(),
            environment: Vec::new(),
            program: program(),
            pam_services: None,
        }
    }

    pub fn tcp(&self) -> Address {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    /// TCP with TLS.
    pub fn tls(&self) -> Address {
        Address::Tls(SocketAddr::from(([127, 0, 0, 1], self.port)), None)
    }

    pub fn unix(&self) -> Address {
        let socket = format!(".s.PGSQL.{}", self.port);
        Address::Unix(self.directory.path().join(socket))
    }

    /// The directory of its files; settings may call it `{folder}`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Changes the ini file; the pooler is not told.
    pub fn edit(&self, from: &str, to: &str) {
        let ini = self.directory.path().join("pooler.ini");
        let text = fs::read_to_string(&ini).expect("we wrote it");
        assert!(text.contains(from), "the ini file has no {from}");
        fs::write(&ini, text.replace(from, to)).expect("our directory is writable");
    }

    /// Whether the process is there.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// A console as administrator.
    pub async fn console(&self) -> Raw {
        Raw::login(&self.tcp(), &Login::new("admin", "pgbouncer")).await
    }

    /// What the pooler says to a login that it must refuse.
    pub async fn refuses(&self, login: &Login) -> String {
        match Raw::try_login(&self.tcp(), login).await {
            Ok(_) => panic!("{login:?} was let in"),
            Err(refusal) => refusal,
        }
    }

    /// Waits until the log has the text.
    pub async fn logs(&self, text: &str) {
        eventually(&format!("the log has: {text}"), async || self.log().contains(text)).await;
    }

    /// A client of the database `app` as user `app`.
    pub async fn client(&self) -> Raw {
        Raw::login(&self.tcp(), &Login::new("app", "app")).await
    }

    /// The same client connected to PostgreSQL itself.
    pub async fn direct(&self) -> Raw {
        Raw::login(&self.postgres.tcp(), &Login::new("app", &self.database)).await
    }

    /// Runs SQL in the pooler's database as superuser, around the pooler.
    pub async fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.postgres.sql(&self.database, sql).await
    }

    /// The number that such a query returns.
    pub async fn number(&self, sql: &str) -> i64 {
        self.postgres.number(&self.database, sql).await
    }

    /// Runs a console command. Each row maps the column's name to its value.
    pub async fn admin(&self, command: &str) -> Vec<HashMap<String, String>> {
        let login = Login::new("admin", "pgbouncer");
        let mut console = Raw::login(&self.tcp(), &login).await;
        let reply = console.query(command).await;
        reply.succeeds(command);
        let columns: Vec<String> = reply.of(b'T').flat_map(|row| row.columns()).collect();
        let named = |row: Vec<String>| columns.iter().cloned().zip(row).collect();
        reply.rows().into_iter().map(named).collect()
    }

    /// One number of `SHOW POOLS` for the pool of user `app`; 0 when the pool does not exist yet.
    pub async fn pool(&self, column: &str) -> u32 {
        let pools = self.admin("SHOW POOLS").await;
        let ours = pools.iter().find(|pool| pool["database"] == "app" && pool["user"] == "app");
        ours.map_or(0, |pool| pool[column].parse().expect("a number"))
    }

    /// One count of `SHOW LISTS`.
    pub async fn list(&self, name: &str) -> u32 {
        let lists = self.admin("SHOW LISTS").await;
        let ours = lists.iter().find(|list| list["list"] == name);
        let ours = ours.unwrap_or_else(|| panic!("SHOW LISTS has no {name}"));
        ours["items"].parse().expect("a number")
    }

    /// Bytes that clients of the database `app` have sent since the start.
    pub async fn received_bytes(&self) -> u64 {
        let stats = self.admin("SHOW STATS").await;
        let ours = stats.iter().find(|row| row["database"] == "app");
        ours.map_or(0, |row| row["total_received"].parse().expect("a number"))
    }

    /// Waits until this many clients wait for a server connection.
    pub async fn clients_wait(&self, count: u32) {
        eventually(&format!("{count} clients wait"), async || self.pool("cl_waiting").await == count).await;
    }

    /// What the pooler has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        process::signal(self.child.id(), name);
    }

    /// Waits for the end of the process. A pooler that does not end within the time is killed.
    pub fn wait(&mut self) -> ExitStatus {
        let status = reap(&mut self.child, PATIENCE);
        self.status = Some(status);
        status
    }

    /// Resident memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The same without the pages of its code, which come with what runs for the first time.
    pub fn allocated_bytes(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// The most resident memory that the pooler ever had, in bytes.
    pub fn memory_peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The processor time that it has used, in user and kernel mode.
    pub fn processor_time(&self) -> Duration {
        let file = format!("/proc/{}/stat", self.child.id());
        let status = fs::read_to_string(file).expect("the pooler runs");
        // Behind the name in parentheses; utime and stime are the fields 14 and 15, in hundredths.
        let (_, fields) = status.rsplit_once(')').expect("the name is in parentheses");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let sum: u64 = ticks.map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
        Duration::from_millis(sum * 10)
    }

    fn memory(&self, which: &str) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(file).expect("the pooler runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(which))
            .expect("Linux reports the memory of a process");
        let number = line.trim().trim_end_matches(" kB");
        number.parse::<u64>().expect("it is a number of kB") * 1024
    }

    async fn accepts(&mut self) -> bool {
        let (tcp, unix) = (self.tcp(), self.unix());
        let mut accepted = false;
        eventually("the pooler accepts connections or ends", async || {
            accepted = Raw::connect(&tcp).await.is_ok() && Raw::connect(&unix).await.is_ok();
            accepted || matches!(self.child.try_wait(), Ok(Some(_)))
        })
        .await;
        accepted && matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let ended_early = self.status.is_none() && !matches!(self.child.try_wait(), Ok(None));
        if self.status.is_none() {
            process::signal(self.child.id(), "QUIT");
            reap(&mut self.child, Duration::from_secs(5));
        }
        let log = self.log();
        let failed = ended_early || log.contains("panicked at");
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(40);
            eprintln!("the pooler's log:\n{}", lines[last..].join("\n"));
        } else if failed {
            panic!("the pooler ended by itself or panicked:\n{log}");
        }
    }
}
