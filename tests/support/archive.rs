//! [`Archive`]: a folder that a real `archive_command` copies WAL to, with a real base backup beside it.

use super::postgres::binaries;
use super::process::{self, memory_directory, unprivileged};
use super::raw::Address;
use super::replicas::Replicas;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder. It is removed with its value.
pub struct Archive(tempfile::TempDir);

impl Archive {
    pub fn new() -> Archive {
        let archive = Archive(memory_directory("weir-archive-"));
        fs::create_dir(archive.wal()).expect("our own directory is writable");
        process::give(&archive.wal());
        archive
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where the files of WAL are.
    pub fn wal(&self) -> PathBuf {
        self.path().join("wal")
    }

    /// The servers' settings.
    pub fn settings(&self) -> [String; 2] {
        ["archive_mode=on".to_owned(), format!("archive_command=cp %p {}/%f", self.wal().display())]
    }

    /// Makes the base backup of a server; all WAL that it needs is archived.
    pub async fn back_up(&self, replicas: &Replicas, number: usize) {
        let Address::Tcp(server) = replicas.tcp(number) else { unreachable!("replicas listen on TCP") };
        let mut backup = unprivileged(&binaries().join("pg_basebackup"), "KILL");
        backup.arg("--pgdata").arg(self.path().join("base"));
        backup.args(["--host", &server.ip().to_string(), "--port", &server.port().to_string()]);
        backup.args(["--username", "postgres", "--checkpoint", "fast", "--wal-method", "none"]);
        let done = tokio::task::spawn_blocking(|| process::run(backup));
        done.await.expect("pg_basebackup makes a base backup");
    }
}
