//! [`Modules`]: PAM modules for a pooler of a test, which sees an `/etc/pam.d` of its own. Each user's password is
//! `NAME-secret`; the account of `expired` may not be used, and whoever asks about `slow` waits.

use super::pooler::Config;
use super::process::{self, private_directory};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What pam_exec runs: it gets the password of `auth` on its standard input, with a NUL behind it. The user
/// `slow` waits for a file.
const SCRIPT: &str = r#"#!/bin/sh
folder=${0%/*}
echo "$PAM_SERVICE $PAM_TYPE $PAM_USER ${PAM_RHOST:--}" >>"$folder/asked"
case $PAM_TYPE in
auth) password=$(tr -d '\0') ;;
account) [ "$PAM_USER" != expired ]; exit ;;
esac
while [ "$PAM_USER" = slow ] && [ ! -e "$folder/open" ]; do sleep 0.05; done
[ "$password" = "$PAM_USER-secret" ]
"#;

/// The modules, and the folder in which their script keeps its notes.
pub struct Modules {
    folder: tempfile::TempDir,
}

impl Modules {
    /// `None` for a user who may not make a mount namespace; that is printed.
    pub fn new() -> Option<Modules> {
        if !process::is_root() {
            println!("skipped: only root may make a mount namespace");
            return None;
        }
        let folder = private_directory("weir-pam-");
        let script = folder.path().join("script");
        fs::write(&script, SCRIPT).expect("it is our folder");
        fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("it is our folder");
        fs::create_dir(folder.path().join("services")).expect("it is our folder");
        let module = format!("pam_exec.so quiet expose_authtok {}", script.display());
        let service = format!("auth required {module}\naccount required {module}\n");
        fs::write(folder.path().join("services/pgbouncer"), service).expect("it is our folder");
        Some(Modules { folder })
    }

    /// All clients come to the servers as `app`.
    pub fn config(&self, config: Config) -> Config {
        config.pam_services(&self.services()).database_option("user=app")
    }

    /// The pooler's `/etc/pam.d`.
    pub fn services(&self) -> PathBuf {
        self.folder.path().join("services")
    }

    /// What the script was called for, line by line: service, type, user, host.
    pub fn asked(&self) -> String {
        fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default()
    }

    /// Lets `slow` through.
    pub fn open(&self) {
        fs::write(self.folder.path().join("open"), "").expect("it is our folder");
    }
}
