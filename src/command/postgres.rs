//! A private PostgreSQL primary with streaming standbys, in a [`Sandbox`]. It is for trying things
//! out: no password, no fsync, gone when dropped. Read [`Cluster`] first.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::process::{Output, ProcessError, Running, Sandbox, output};

/// The superuser and the database of the cluster.
pub(super) const USER: &str = "demo";
pub(super) const DATABASE: &str = "demo";

/// What we start; all of it must lie in one folder, so that the versions agree.
const PROGRAMS: [&str; 5] = ["initdb", "postgres", "pg_basebackup", "psql", "pgbench"];

/// Where Debian and Ubuntu install the servers, one folder per major version.
const DEBIAN_ROOT: &str = "/usr/lib/postgresql";

/// A server on a slow, busy machine is ready in a few seconds.
const START_MAX: Duration = Duration::from_secs(60);

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No folder has all the programs.
    #[error(
        "no PostgreSQL found: looked in PATH, `pg_config --bindir` and {DEBIAN_ROOT}/*/bin for {}. \
         On Debian: apt install postgresql",
        PROGRAMS.join(", ")
    )]
    NotInstalled,
    /// No free TCP port.
    #[error("no free TCP port on 127.0.0.1: {0}")]
    NoPort(std::io::Error),
    /// One of the programs failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// The folder of PostgreSQL's programs.
pub(super) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// PATH, else what `pg_config` says, else the newest version that Debian installed.
    pub(super) fn find() -> Result<Self, PostgresError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(pg_config_bindir())
            .chain(debian_bindirs(Path::new(DEBIAN_ROOT)))
            .find(|folder| PROGRAMS.iter().all(|program| folder.join(program).is_file()))
            .map(|folder| Programs { folder })
            .ok_or(PostgresError::NotInstalled)
    }

    /// A command that the caller's own PGHOST, PGPASSWORD and so on do not lead astray.
    pub(super) fn command(&self, sandbox: &Sandbox, program: &str) -> Command {
        let mut command = sandbox.command(&self.folder.join(program));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a command to its end.
    pub(super) async fn run(
        &self,
        sandbox: &Sandbox,
        program: &str,
        arguments: &[&str],
    ) -> Result<Output, ProcessError> {
        let mut command = self.command(sandbox, program);
        command.args(arguments);
        output(command).await
    }
}

/// A running server.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) port: u16,
    _process: Running,
}

/// A primary and its standbys. Dropping it ends them, the standbys first.
pub(super) struct Cluster {
    pub(super) standbys: Vec<Server>,
    pub(super) primary: Server,
}

impl Cluster {
    pub(super) async fn start(
        sandbox: &Sandbox,
        programs: &Programs,
        standby_count: usize,
    ) -> Result<Self, PostgresError> {
        let primary = create_primary(sandbox, programs).await?;
        let port = primary.port.to_string();
        let statement = format!("CREATE DATABASE {DATABASE}");
        let create = ["-X", "-h", "127.0.0.1", "-p", &port, "-U", USER, "-c", &statement, "postgres"];
        programs.run(sandbox, "psql", &create).await?;
        let mut standbys = Vec::new();
        for number in 1..=standby_count {
            let name = format!("standby{number}");
            standbys.push(create_standby(sandbox, programs, &name, &port).await?);
        }
        Ok(Cluster { standbys, primary })
    }
}

async fn create_primary(sandbox: &Sandbox, programs: &Programs) -> Result<Server, PostgresError> {
    let arguments = [
        "--pgdata=primary",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--username",
        USER,
    ];
    programs.run(sandbox, "initdb", &arguments).await?;
    start_server(sandbox, programs, "primary").await
}

async fn create_standby(
    sandbox: &Sandbox,
    programs: &Programs,
    name: &str,
    primary_port: &str,
) -> Result<Server, PostgresError> {
    let connection = format!("host=127.0.0.1 port={primary_port} user={USER} application_name={name}");
    let arguments = [
        "--pgdata",
        name,
        "--dbname",
        &connection,
        "--write-recovery-conf",
        "--create-slot",
        "--slot",
        name,
        "--checkpoint=fast",
        "--no-sync",
    ];
    programs.run(sandbox, "pg_basebackup", &arguments).await?;
    start_server(sandbox, programs, name).await
}

async fn start_server(sandbox: &Sandbox, programs: &Programs, name: &str) -> Result<Server, PostgresError> {
    let port = free_port().map_err(PostgresError::NoPort)?;
    let mut command = programs.command(sandbox, "postgres");
    command.args(["-D", name]);
    for setting in server_settings(port) {
        command.args(["-c", &setting]);
    }
    // Immediate shutdown: nothing of it is kept, so nothing needs a checkpoint.
    let mut process = sandbox.start(name, command, Signal::QUIT)?;
    let status_file = sandbox.path().join(name).join("postmaster.pid");
    process.wait_until(START_MAX, || accepts_connections(&status_file)).await?;
    Ok(Server { name: name.to_owned(), port, _process: process })
}

fn server_settings(port: u16) -> Vec<String> {
    vec![
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        // A path in the temporary folder could be longer than a socket's name may be.
        "unix_socket_directories=".to_owned(),
        "wal_level=replica".to_owned(),
        "hot_standby=on".to_owned(),
        "max_wal_senders=10".to_owned(),
        "max_replication_slots=10".to_owned(),
        "shared_buffers=32MB".to_owned(),
        "fsync=off".to_owned(),
    ]
}

/// The eighth line of postmaster.pid is the server's state: this is how `pg_ctl -w` waits.
fn accepts_connections(status_file: &Path) -> bool {
    std::fs::read_to_string(status_file)
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|state| state.trim() == "ready"))
}

/// A TCP port on 127.0.0.1 that nobody listens on now.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim()))
}

fn debian_bindirs(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    newest_first(&names).iter().map(|version| root.join(version.to_string()).join("bin")).collect()
}

fn newest_first(names: &[impl AsRef<OsStr>]) -> Vec<u32> {
    let mut versions: Vec<u32> =
        names.iter().filter_map(|name| name.as_ref().to_str()?.parse().ok()).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_tried_as_numbers_newest_first() {
        assert_eq!(newest_first(&["9", "15", "common", "17"]), [17, 15, 9]);
    }

    #[test]
    fn a_server_is_ready_when_its_status_line_says_so() {
        fn check(text: &str, ready: bool) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("postmaster.pid");
            std::fs::write(&file, text).unwrap();
            assert_eq!(accepts_connections(&file), ready, "{text:?}");
        }
        check("1\n/d\n2\n5432\n\n127.0.0.1\n 3 4\nready   \n", true);
        check("1\n/d\n2\n5432\n\n127.0.0.1\n 3 4\nstarting\n", false);
        check("1\n/d\n2\n", false);
    }
}
