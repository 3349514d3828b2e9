//! [`Postgres`]: a real, private PostgreSQL.
//!
//! `initdb` runs once per machine and build: its result, with the roles below, is kept as an archive in
//! cargo's target folder, which each server unpacks, and then starts in half a second. A test program
//! shares one server among the tests that run at the same time; the last one removes it.
//!
//! `PGWEIR_TEST_PG=18 cargo nextest run` asks PostgreSQL 18 the same questions; each version has an archive of
//! its own.
//!
//! | role | password | how TCP clients log in |
//! |---|---|---|
//! | `postgres` | none | superuser, trust |
//! | `app` | `app-secret` | trust |
//! | `plain_user` | `plain-secret` | password |
//! | `md5_user` | `md5-secret` | md5 |
//! | `scram_user` | `scram-secret` | scram-sha-256 |
//! | `replicator` | `replicator-secret` | trust, for replication too |

use super::certificates::{Identity, text};
use super::process::{self, memory_directory, private_directory, reap, run, unprivileged};
use super::raw::{Address, Login, Raw};
use super::{eventually, raw};
use std::fs::{self, File};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Mutex;

/// One statement per line, for the single-user mode.
const ROLES: &str = "\
SET password_encryption = 'scram-sha-256'
CREATE ROLE app LOGIN PASSWORD 'app-secret'
CREATE ROLE scram_user LOGIN PASSWORD 'scram-secret'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replicator-secret'
CREATE ROLE plain_user LOGIN PASSWORD 'plain-secret'
SET password_encryption = 'md5'
CREATE ROLE md5_user LOGIN PASSWORD 'md5-secret'
CREATE DATABASE app OWNER app
";

/// What `auth_query` asks, as CloudNativePG makes it.
pub const USER_SEARCH: &str = "CREATE FUNCTION user_search(uname text) RETURNS TABLE (usename name, passwd text) \
     LANGUAGE sql SECURITY DEFINER AS 'SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=$1'";

const HBA: &str = "\
local all all trust
host all plain_user 127.0.0.1/32 password
host all md5_user 127.0.0.1/32 md5
host all scram_user 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
";

const SETTINGS: [&str; 10] = [
    "listen_addresses=127.0.0.1",
    "max_connections=200",
    "shared_buffers=32MB",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "jit=off",
    "log_min_messages=warning",
    "timezone=UTC",
];

/// The server that tests running at the same time share.
static SHARED: Mutex<Weak<Postgres>> = Mutex::const_new(Weak::new());

/// A running server. It is stopped and removed when dropped.
pub struct Postgres {
    pub port: u16,
    directory: tempfile::TempDir,
    child: Child,
    databases: AtomicU32,
}

impl Postgres {
    /// The server of this test program.
    pub async fn shared() -> Arc<Postgres> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Postgres::start(&[]).await);
        *shared = Arc::downgrade(&started);
        started
    }

    /// A server of one's own, with further settings (`name=value`).
    pub async fn start(settings: &[&str]) -> Postgres {
        Postgres::start_with(&binaries(), settings).await
    }

    /// One of the newest version, which `scripts/setup postgres18` has fetched.
    pub async fn start_18(settings: &[&str]) -> Postgres {
        Postgres::start_with(&binaries_18(), settings).await
    }

    async fn start_with(binaries: &Path, settings: &[&str]) -> Postgres {
        let directory = memory_directory("weir-pg-");
        unpack_data(binaries, &directory.path().join("data"));
        for _ in 0..5 {
            let port = process::free_port();
            if let Some(server) = Postgres::launch(binaries, &directory, port, settings).await {
                return Postgres { port: server.0, child: server.1, directory, databases: AtomicU32::new(0) };
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("PostgreSQL does not start:\n{log}");
    }

    /// A server of one's own that shows this certificate.
    pub async fn with_tls(identity: &Identity) -> Arc<Postgres> {
        let certificate = format!("ssl_cert_file={}", text(&identity.certificate));
        let key = format!("ssl_key_file={}", text(&identity.key));
        Arc::new(Postgres::start(&["ssl=on", &certificate, &key]).await)
    }

    /// Another server at the same port of another address of this host, such as 127.0.0.2.
    pub async fn start_beside(&self, address: &str) -> Postgres {
        let directory = memory_directory("weir-pg-");
        new_data(&directory.path().join("data"));
        let listen = format!("listen_addresses={address}");
        let started = Postgres::launch(&binaries(), &directory, self.port, &[&listen]).await;
        let (port, child) = started.unwrap_or_else(|| panic!("port {} of {address} is taken", self.port));
        Postgres { port, child, directory, databases: AtomicU32::new(0) }
    }

    async fn launch(
        binaries: &Path,
        directory: &tempfile::TempDir,
        port: u16,
        settings: &[&str],
    ) -> Option<(u16, Child)> {
        let log = File::create(directory.path().join("log")).expect("our directory is writable");
        let mut command = unprivileged(&binaries.join("postgres"), "QUIT");
        command.arg("-D").arg(directory.path().join("data"));
        command.args(["-p", &port.to_string()]);
        command.arg("-k").arg(directory.path());
        for setting in SETTINGS.iter().chain(settings) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = process::spawn(command);
        let socket = Address::Unix(directory.path().join(format!(".s.PGSQL.{port}")));
        let login = Login::new("postgres", "postgres");
        let mut answered = false;
        eventually("PostgreSQL answers or ends", async || {
            answered = Raw::try_login(&socket, &login).await.is_ok();
            answered || matches!(child.try_wait(), Ok(Some(_)))
        })
        .await;
        answered.then_some((port, child))
    }

    /// Where clients and poolers connect to.
    pub fn tcp(&self) -> Address {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    /// The directory of the Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn unix(&self) -> Address {
        Address::Unix(self.directory.path().join(format!(".s.PGSQL.{}", self.port)))
    }

    /// A database that no other test uses, owned by `app`.
    pub async fn new_database(&self) -> String {
        match self.databases.fetch_add(1, Ordering::Relaxed) {
            0 => "app".to_owned(),
            number => {
                let name = format!("app_{number}");
                self.sql("postgres", &format!("CREATE DATABASE {name} OWNER app")).await;
                name
            }
        }
    }

    /// Its major version: 15, or 18.
    pub async fn version(&self) -> i64 {
        self.number("postgres", "SELECT current_setting('server_version_num')::int / 10000").await
    }

    /// A superuser's connection, around the pooler.
    pub async fn control(&self, database: &str) -> Raw {
        Raw::login(&self.unix(), &Login::new("postgres", database)).await
    }

    /// Runs SQL as superuser, around the pooler, and returns the rows. Panics on an error.
    pub async fn sql(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        let reply = self.control(database).await.query(sql).await;
        reply.succeeds(sql);
        reply.rows()
    }

    /// The number that such a query returns.
    pub async fn number(&self, database: &str, sql: &str) -> i64 {
        let rows = self.sql(database, sql).await;
        rows[0][0].parse().expect("the query returns a number")
    }

    /// The server's own log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        process::signal(self.child.id(), "QUIT");
        reap(&mut self.child, raw::PATIENCE);
    }
}

/// Where the server's programs are: those of PostgreSQL 18 with `PGWEIR_TEST_PG=18`, else `PGWEIR_TEST_PG_BIN`,
/// `pg_config`'s answer, or Debian's place.
pub fn binaries() -> PathBuf {
    match std::env::var("PGWEIR_TEST_PG").as_deref() {
        Err(_) | Ok("") => {}
        Ok("18") => return binaries_18(),
        Ok(other) => panic!("PGWEIR_TEST_PG is {other}: it must be 18, or not be set"),
    }
    let asked = std::env::var_os("PGWEIR_TEST_PG_BIN").map(PathBuf::from);
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    asked
        .into_iter()
        .chain(told)
        .chain(debian_directories())
        .find(|directory| directory.join("initdb").exists())
        .expect("PostgreSQL is installed (postgresql), or PGWEIR_TEST_PG_BIN names its programs")
}

/// Where Debian has the programs of each version, the newest first.
pub fn debian_directories() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path()).collect();
    let number = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    versions.into_iter().map(|version| version.join("bin")).collect()
}

/// Where the programs of PostgreSQL 18 are: `PGWEIR_TEST_PG18_BIN`, else where `scripts/setup` puts them.
pub fn binaries_18() -> PathBuf {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/postgres-18/bin");
    let found = std::env::var_os("PGWEIR_TEST_PG18_BIN").map_or_else(fetched, PathBuf::from);
    assert!(found.join("initdb").exists(), "no PostgreSQL 18 here: run scripts/setup postgres18");
    found
}

/// A new data directory with our roles. All of them have one system identifier.
pub fn new_data(data: &Path) {
    unpack_data(&binaries(), data);
}

/// Half the work of copying some 1,300 small files, and they are the unprivileged user's at once.
fn unpack_data(binaries: &Path, data: &Path) {
    fs::create_dir(data).expect("our directory is writable");
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(archive(binaries)).arg("--directory").arg(data);
    run(unpack);
}

fn archive(binaries: &Path) -> PathBuf {
    let recipe = (binaries, ROLES, HBA);
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(recipe);
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = home.join(format!("postgres-{hash:016x}.tar"));
    let guard = File::create(home.join("postgres.lock")).expect("cargo's target is writable");
    // Tests run in several processes; only one makes it.
    guard.lock().expect("a local file can be locked");
    if !archive.exists() {
        make_archive(binaries, &archive);
    }
    archive
}

fn make_archive(binaries: &Path, archive: &Path) {
    let workshop = private_directory("weir-initdb-");
    let data = initialize(binaries, workshop.path());
    let unfinished = archive.with_extension("unfinished");
    let mut pack = Command::new("tar");
    pack.arg("--create").arg("--file").arg(&unfinished).arg("--directory").arg(&data).arg(".");
    run(pack);
    fs::rename(&unfinished, archive).expect("both names are in cargo's target");
}

/// A new cluster with our roles in this directory, with a system identifier of its own.
pub fn initialize(binaries: &Path, workshop: &Path) -> PathBuf {
    let data = workshop.join("data");
    let mut initdb = unprivileged(&binaries.join("initdb"), "KILL");
    initdb.arg("-D").arg(&data).args([
        "--no-sync",
        "--auth=trust",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--wal-segsize=1",
    ]);
    run(initdb);
    fs::write(workshop.join("roles.sql"), ROLES).expect("our directory is writable");
    fs::write(data.join("pg_hba.conf"), HBA).expect("our directory is writable");
    let roles = File::open(workshop.join("roles.sql")).expect("just written");
    single_user(binaries, &data, "postgres", roles);
    data
}

/// Runs statements, one per line, without a server.
pub fn single_user(binaries: &Path, data: &Path, database: &str, statements: File) {
    let mut single = unprivileged(&binaries.join("postgres"), "KILL");
    single.arg("--single").arg("-F").arg("-D").arg(data);
    single.arg(database).stdin(statements);
    run(single);
}
