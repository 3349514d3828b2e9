//! Who the process is: its user, its [`PidFile`], and whether it goes to the background. All of it happens before
//! there is a second thread.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use daemonize::Daemonize;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};
use rustix::process::{Pid, test_kill_process};

use super::StartError;
use crate::config::{Host, Settings};
use crate::net::endpoint::socket_name;

/// Becomes this user, with all its groups. Nothing to do for who is that user already.
///
/// Fails when there is no such user, and for anyone but root.
pub(super) fn become_user(name: &str) -> Result<(), StartError> {
    let found = User::from_name(name).ok().flatten();
    let user = found.ok_or_else(|| StartError::NoSuchUser(name.to_owned()))?;
    if Uid::current() == user.uid {
        return Ok(());
    }
    let failed = |errno| StartError::User(name.to_owned(), io::Error::from(errno));
    let c_name = CString::new(name).map_err(|_| StartError::NoSuchUser(name.to_owned()))?;
    // Groups first: who is no longer root may not change them.
    initgroups(&c_name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(failed)
}

/// As PostgreSQL and PgBouncer, nothing of this needs root, and what a stranger sends arrives here.
pub(super) fn refuse_root() -> Result<(), StartError> {
    if Uid::current().is_root() { Err(StartError::Root) } else { Ok(()) }
}

/// Fails when another process answers where our Unix socket will be.
pub(super) fn check_socket(settings: &Settings) -> Result<(), StartError> {
    let Some(Host::Unix(directory)) = settings.default_host() else { return Ok(()) };
    let path = directory.join(socket_name(settings.listen_port));
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(StartError::SocketInUse),
        Err(_) => Ok(()),
    }
}

/// Goes on in the background: the caller's process ends here, and its grandchild returns.
///
/// Fails without a pidfile or a log, as then nobody would find it or hear of it.
pub(super) fn go_to_background(settings: &Settings) -> Result<(), StartError> {
    if settings.pidfile.is_none() {
        return Err(StartError::DaemonWithoutPidFile);
    }
    if settings.logfile.is_none() && !settings.syslog {
        return Err(StartError::DaemonWithoutLog);
    }
    // Relative paths of the settings go on to mean the same, and files have the permissions that they had.
    let directory = std::env::current_dir()?;
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    let daemon = Daemonize::new().working_directory(directory).umask(mask.bits());
    daemon.start().map_err(|error| StartError::Io(io::Error::other(error.to_string())))
}

/// The file that tells our process id, removed at the end.
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Removes what a process left behind that is no more. Returns whether there was such a file.
    ///
    /// Fails when that process runs.
    pub(super) fn check(path: &Path) -> Result<bool, StartError> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|error| named(&error, "read", path))?,
        };
        if other_process(&text).is_some_and(is_alive) {
            return Err(StartError::PidFile);
        }
        fs::remove_file(path).map_err(|error| named(&error, "remove stale", path))?;
        Ok(true)
    }

    pub(super) fn write(path: PathBuf) -> io::Result<Self> {
        fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(|error| named(&error, "write", &path))?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // One that a successor has written meanwhile is the successor's.
        let own = fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if own {
            // Removed by hand meanwhile: then it is as it should be.
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// In a container the process before us may have had our own number.
fn other_process(text: &str) -> Option<Pid> {
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    (pid != rustix::process::getpid()).then_some(pid)
}

fn is_alive(pid: Pid) -> bool {
    // Without the right to signal it there is one, too.
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn named(error: &io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} pidfile {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfile_names_another_process_or_is_stale() {
        assert_eq!(other_process("1\n"), Pid::from_raw(1));
        assert_eq!(other_process(&format!("{}\n", std::process::id())), None);
        for text in ["", "0", "no number", "99999999999999999999"] {
            assert_eq!(other_process(text), None, "{text}");
        }
        assert!(is_alive(rustix::process::getpid()));
    }
}
