//! Child processes of the tests: as an unprivileged user, and never left behind.
//!
//! PostgreSQL and PgBouncer refuse to run as root, so under root every child changes to `postgres`
//! (else `nobody`). Every child also carries a parent-death signal: whatever ends the test process,
//! its servers end too.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, PipeWriter};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type Job = (Command, Sender<io::Result<Child>>);

/// The parent-death signal belongs to the *thread* that forked, and the test harness ends a thread
/// with each test. So one thread, which never ends, starts all children.
static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in queue {
            // A test that no longer waits for its child has panicked; the child ends with us.
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Starts a child from the thread that lives as long as the process.
pub fn spawn(command: Command) -> Child {
    let (answer, started) = channel();
    let shown = format!("{command:?}");
    SPAWNER
        .lock()
        .expect("the spawner's lock guards one send, which cannot panic")
        .send((command, answer))
        .expect("the spawner thread never ends");
    started
        .recv()
        .expect("the spawner answers every job")
        .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"))
}

/// A command that runs as the unprivileged user and dies with this process.
pub fn unprivileged(program: &Path, death_signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", death_signal]);
    if let Some(user) = other_user() {
        command
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .arg("--clear-groups");
    }
    command.arg("--").arg(program).current_dir("/");
    command
}

/// The same command in a mount namespace of its own, where this directory stands in the place of another. The
/// process stays the same.
pub fn with_mount(directory: &Path, place: &Path, command: &Command) -> Command {
    let mut mounted = Command::new("unshare");
    mounted.args(["--mount", "--", "sh", "-ec", "mount --bind \"$0\" \"$1\"; shift; exec \"$@\""]);
    mounted.arg(directory).arg(place).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        mounted.current_dir(directory);
    }
    mounted
}

/// Runs a command to its end and returns what it printed. Panics with its output if it fails.
pub fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A standard output or error that nobody reads.
pub fn unread() -> PipeWriter {
    let (_, unread) = io::pipe().expect("the system has pipes");
    unread
}

/// Sends a signal (`TERM`, `INT`, `HUP`, ...) to one process.
pub fn signal(pid: u32, name: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("kill -{name} {pid}")]);
    // A process that has just ended by itself is no failure of the test.
    let _ = shell.output();
}

/// Waits for a child's end, and kills it when it takes too long.
pub fn reap(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Killing fails only if it has ended, which is what we want.
    let _ = child.kill();
    child.wait().expect("a child of ours can be waited for")
}

/// A fresh temporary directory that the unprivileged user owns. Its path is short: Unix socket
/// paths hold 107 bytes.
pub fn private_directory(prefix: &str) -> tempfile::TempDir {
    private_directory_in("/tmp", prefix)
}

/// The same in memory, where the machine has a place for that: for many small files that are soon gone.
pub fn memory_directory(prefix: &str) -> tempfile::TempDir {
    let memory = fs::metadata("/dev/shm").is_ok_and(|found| found.is_dir() && found.mode() & 0o002 != 0);
    private_directory_in(if memory { "/dev/shm" } else { "/tmp" }, prefix)
}

fn private_directory_in(place: &str, prefix: &str) -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(place).expect("it is writable");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
        .expect("our own directory takes a mode");
    give(directory.path());
    directory
}

/// Hands a file or directory to the unprivileged user.
pub fn give(path: &Path) {
    if let Some(user) = other_user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("root may change owners");
    }
}

/// Copies a directory with all in it and hands the copy to the unprivileged user.
pub fn copy_directory(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    run(copy);
    if let Some(user) = other_user() {
        let mut change = Command::new("chown");
        change.arg("-R").arg(format!("{}:{}", user.uid, user.gid)).arg(to);
        run(change);
    }
}

/// The program itself, or a copy in `directory` where the unprivileged user cannot reach it.
pub fn reachable(program: &Path, directory: &Path) -> PathBuf {
    let open = |path: &Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0);
    if other_user().is_none() || program.ancestors().all(open) {
        return program.to_path_buf();
    }
    let copy = directory.join("pooler");
    fs::copy(program, &copy).expect("the pooler's binary can be copied");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("our copy takes a mode");
    copy
}

/// A TCP port of 127.0.0.1 that nobody listens on now. It lies below the ephemeral range, so no
/// outgoing connection takes it before the server binds it.
pub fn free_port() -> u16 {
    for attempt in 0..1000_u32 {
        let chance = RandomState::new().hash_one(attempt);
        let port = 10_240 + u16::try_from(chance % 20_000).expect("20000 fits 16 bits");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port of 127.0.0.1 below 30240 in 1000 attempts");
}

struct User {
    uid: u32,
    gid: u32,
}

/// Whether we are root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The user to change to: none unless we are root.
fn other_user() -> Option<User> {
    if !is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
    ["postgres", "nobody"].into_iter().find_map(|name| find_user(&accounts, name))
}

fn find_user(accounts: &str, name: &str) -> Option<User> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { uid, gid })
}
