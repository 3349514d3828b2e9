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

/// One server; without a process while it is down.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) host: Ipv4Addr,
    process: Option<Running>,
}

/// A primary and its standbys, all on one port of 127.0.0.2 and the addresses after it. Dropping it ends
/// them.
pub(super) struct Cluster<'a> {
    pub(super) nodes: Vec<Node>,
    pub(super) port: u16,
    /// The place of the primary among the nodes.
    pub(super) primary: usize,
    sandbox: &'a Sandbox,
    programs: &'a Programs,
}

impl<'a> Cluster<'a> {
    pub(super) async fn start(
        sandbox: &'a Sandbox,
        programs: &'a Programs,
        standby_count: u8,
    ) -> Result<Self, PostgresError> {
        let node = |number: u8| Node {
            name: format!("node{number}"),
            host: Ipv4Addr::new(127, 0, 0, number + 1),
            process: None,
        };
        let nodes: Vec<_> = (1..=standby_count + 1).map(node).collect();
        let port = free_port_at(nodes.iter().map(|node| node.host)).map_err(PostgresError::NoPort)?;
        let mut cluster = Cluster { nodes, port, primary: 0, sandbox, programs };
        cluster.create_primary().await?;
        for place in 1..cluster.nodes.len() {
            cluster.create_standby(place).await?;
        }
        Ok(cluster)
    }

    /// The hosts of all, as a setting.
    pub(super) fn hosts(&self) -> String {
        self.nodes.iter().map(|node| node.host.to_string()).collect::<Vec<_>>().join(",")
    }

    /// The standbys' places.
    pub(super) fn standbys(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| *place != self.primary).collect()
    }

    /// Asks one node, around the pooler.
    pub(super) async fn query(&self, place: usize, sql: &str) -> Result<String, ProcessError> {
        self.query_database(place, "postgres", sql).await
    }

    /// The same in another database.
    pub(super) async fn query_database(
        &self,
        place: usize,
        database: &str,
        sql: &str,
    ) -> Result<String, ProcessError> {
        let (host, port) = (self.nodes[place].host.to_string(), self.port.to_string());
        let arguments =
            ["-XAt", "-h", &host, "-p", &port, "-U", USER, "-v", "ON_ERROR_STOP=1", "-c", sql, database];
        let output = self.programs.run(self.sandbox, "psql", &arguments).await?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Ends the primary in order: open transactions are cut, nothing acknowledged is lost.
    pub(super) async fn stop_primary(&mut self) -> Result<(), ProcessError> {
        self.end_primary(Signal::INT).await
    }

    /// Ends the primary as a crash of its machine does.
    pub(super) async fn kill_primary(&mut self) -> Result<(), ProcessError> {
        self.end_primary(Signal::KILL).await
    }

    async fn end_primary(&mut self, signal: Signal) -> Result<(), ProcessError> {
        let Some(mut process) = self.nodes[self.primary].process.take() else { return Ok(()) };
        process.signal(signal);
        process.wait_for_end(START_MAX).await
    }

    /// Freezes the primary's processes, or lets them go on: as if the network to it were cut.
    pub(super) fn freeze(&self, place: usize, frozen: bool) {
        if let Some(process) = &self.nodes[place].process {
            process.signal_family(if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// The place of the standby that has received most.
    pub(super) async fn best_standby(&self) -> Result<usize, ProcessError> {
        let mut best = None;
        for place in self.standbys() {
            let received = "SELECT pg_last_wal_receive_lsn() - '0/0'";
            let lsn: u64 = self.query(place, received).await?.parse().unwrap_or(0);
            best = best.max(Some((lsn, place)));
        }
        Ok(best.map_or(self.primary, |(_, place)| place))
    }

    /// Makes a standby the primary, and the others follow it.
    pub(super) async fn promote(&mut self, place: usize) -> Result<(), ProcessError> {
        self.query(place, "SELECT pg_promote()").await?;
        let old = std::mem::replace(&mut self.primary, place);
        for standby in self.standbys() {
            if standby != old {
                let follow = format!("ALTER SYSTEM SET primary_conninfo = '{}'", self.connection(standby));
                self.query(standby, &follow).await?;
                self.query(standby, "SELECT pg_reload_conf()").await?;
            }
        }
        Ok(())
    }

    /// Starts a node that was ended in order, as what it was.
    pub(super) async fn start_again(&mut self, place: usize) -> Result<(), PostgresError> {
        self.start_node(place).await
    }

    /// Makes a node anew, as a standby of the present primary.
    pub(super) async fn rejoin(&mut self, place: usize) -> Result<(), PostgresError> {
        self.nodes[place].process = None;
        let folder = self.sandbox.path().join(&self.nodes[place].name);
        std::fs::remove_dir_all(&folder).map_err(|source| ProcessError::Folder { path: folder, source })?;
        self.create_standby(place).await
    }

    fn connection(&self, of: usize) -> String {
        let (host, port, name) = (self.nodes[self.primary].host, self.port, &self.nodes[of].name);
        format!("host={host} port={port} user={USER} application_name={name}")
    }

    async fn create_primary(&mut self) -> Result<(), PostgresError> {
        let name = self.nodes[self.primary].name.clone();
        let arguments = [
            "--pgdata",
            &name,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--username",
            USER,
        ];
        self.programs.run(self.sandbox, "initdb", &arguments).await?;
        self.start_node(self.primary).await?;
        self.query(self.primary, &format!("CREATE DATABASE {DATABASE}")).await?;
        Ok(())
    }

    async fn create_standby(&mut self, place: usize) -> Result<(), PostgresError> {
        let (connection, name) = (self.connection(place), self.nodes[place].name.clone());
        let arguments = [
            "--pgdata",
            &name,
            "--dbname",
            &connection,
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        ];
        self.programs.run(self.sandbox, "pg_basebackup", &arguments).await?;
        self.start_node(place).await
    }

    async fn start_node(&mut self, place: usize) -> Result<(), PostgresError> {
        let Node { name, host, .. } = &self.nodes[place];
        let mut command = self.programs.command(self.sandbox, "postgres");
        command.args(["-D", name]);
        for setting in server_settings(*host, self.port) {
            command.args(["-c", &setting]);
        }
        // Immediate shutdown: nothing of it is kept, so nothing needs a checkpoint.
        let mut process = self.sandbox.start(name, command, Signal::QUIT)?;
        let status_file = self.sandbox.path().join(name).join("postmaster.pid");
        process.wait_until(START_MAX, || accepts_connections(&status_file)).await?;
        self.nodes[place].process = Some(process);
        Ok(())
    }
}

fn server_settings(host: Ipv4Addr, port: u16) -> Vec<String> {
    vec![
        format!("port={port}"),
        format!("listen_addresses={host}"),
        // A path in the temporary folder could be longer than a socket's name may be.
        "unix_socket_directories=".to_owned(),
        "wal_level=replica".to_owned(),
        "hot_standby=on".to_owned(),
        "max_wal_senders=10".to_owned(),
        // A standby that follows another primary still finds what it lacks.
        "wal_keep_size=256MB".to_owned(),
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

/// A TCP port that nobody listens on at any of these addresses.
fn free_port_at(hosts: impl Iterator<Item = Ipv4Addr> + Clone) -> std::io::Result<u16> {
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        let port = free_port()?;
        if hosts.clone().all(|host| TcpListener::bind((host, port)).is_ok()) {
            return Ok(port);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
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
