//! [`PgBouncer`]: a real one, to see what pgweir's users would have without it.
//!
//! It is the program that `PGBOUNCER` names, else the one that `scripts/setup pgbouncer` has fetched, which
//! brings its own libraries.

use super::pooler::Config;
use super::process::{self, private_directory};
use super::{Address, Pooler};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running PgBouncer.
pub struct PgBouncer {
    pub pooler: Pooler,
    _program: tempfile::TempDir,
}

impl PgBouncer {
    /// As [`Config`] says, with PgBouncer's default where the tests have another one.
    pub async fn start(config: Config) -> PgBouncer {
        let directory = private_directory("weir-pgb-");
        let program = match std::env::var_os("PGBOUNCER") {
            Some(given) => PathBuf::from(given),
            None => fetched(directory.path()),
        };
        let config = config.setting("server_login_retry", "15").program(program);
        PgBouncer { pooler: config.start().await, _program: directory }
    }

    pub fn tcp(&self) -> Address {
        self.pooler.tcp()
    }

    /// For a line of `[databases]`.
    pub fn database(name: &str, server: SocketAddr) -> String {
        format!("{name} = host={} port={} dbname={name}", server.ip(), server.port())
    }
}

/// A script that calls the fetched one by its own dynamic linker, with copies where everybody can read them.
fn fetched(directory: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/pgbouncer/root/usr");
    assert!(root.join("sbin/pgbouncer").exists(), "no PgBouncer here: run scripts/setup pgbouncer");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(root.join("sbin")).arg(root.join("lib")).arg(directory);
    process::run(copy);
    let script = directory.join("pgbouncer");
    let text = "#!/bin/sh\nroot=${0%/*}\nfor linker in \"$root\"/lib/*-linux-gnu*/ld-linux*.so*; do\n\
                exec \"$linker\" --library-path \"${linker%/*}\" \"$root/sbin/pgbouncer\" \"$@\"\ndone\n";
    fs::write(&script, text).expect("our directory is writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our script takes a mode");
    script
}
