//! [`Stranger`]: a PostgreSQL of another `initdb` that gets the address of a server that is gone, with the same
//! users, the same databases and the same table. Nothing but its system identifier tells it from the one
//! that clients mean.

use super::message::Reply;
use super::postgres::{binaries, initialize, single_user};
use super::process::{self, memory_directory, reap, unprivileged};
use super::raw::{Address, Login, Raw};
use super::{PATIENCE, eventually};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

const TABLE: &str = "\
CREATE TABLE ledger (n bigint, server inet DEFAULT inet_server_addr())
GRANT ALL ON ledger TO app
";

const HBA: &str = "host all all 127.0.0.0/8 trust\nlocal all all trust\n";

/// What it is when it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    Primary,
    Standby,
}

/// Made, and listening once it is told to.
pub struct Stranger {
    directory: tempfile::TempDir,
    data: PathBuf,
    socket_port: u16,
    child: Option<Child>,
}

impl Stranger {
    pub fn new() -> Stranger {
        let directory = memory_directory("weir-stranger-");
        process::give(directory.path());
        let data = initialize(&binaries(), directory.path());
        let table = directory.path().join("table.sql");
        fs::write(&table, TABLE).expect("our directory is writable");
        single_user(&binaries(), &data, "app", File::open(&table).expect("just written"));
        fs::write(data.join("pg_hba.conf"), HBA).expect("our directory is writable");
        Stranger { directory, data, socket_port: 0, child: None }
    }

    /// It listens there, as soon as whoever was there has gone.
    pub async fn listen(&mut self, host: &str, port: u16, role: As) {
        if role == As::Standby {
            let signal = self.data.join("standby.signal");
            fs::write(&signal, "").expect("our directory is writable");
            process::give(&signal);
        }
        let log = File::create(self.directory.path().join("log")).expect("our directory is writable");
        let mut command = unprivileged(&binaries().join("postgres"), "KILL");
        command.arg("-D").arg(&self.data).args(["-p", &port.to_string(), "-h", host]);
        command.arg("-k").arg(self.directory.path());
        for setting in ["fsync=off", "log_statement=all", "autovacuum=off", "shared_buffers=16MB"] {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(process::spawn(command));
        self.socket_port = port;
        eventually("the stranger answers", async || self.ask("SELECT 1").await.is_some()).await;
    }

    /// The address is free again.
    pub fn leave(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::signal(child.id(), "QUIT");
            reap(&mut child, PATIENCE);
        }
    }

    /// Its system identifier.
    pub async fn system(&self) -> String {
        let reply = self.ask("SELECT system_identifier FROM pg_control_system()").await;
        reply.expect("it listens").rows()[0][0].clone()
    }

    /// What others than this harness and the pooler's own questions have had it do.
    pub fn statements_of_clients(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let statements = log.lines().filter(|line| line.contains("statement: ") || line.contains("execute "));
        let ours = |line: &&str| line.contains("ledger") || line.contains("clients_mark");
        statements.filter(ours).map(str::to_owned).collect()
    }

    async fn ask(&self, sql: &str) -> Option<Reply> {
        let socket = self.directory.path().join(format!(".s.PGSQL.{}", self.socket_port));
        let login = Login::new("postgres", "app");
        Some(Raw::try_login(&Address::Unix(socket), &login).await.ok()?.query(sql).await)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.leave();
    }
}
