//! Child processes that never run as root and never stay behind. It knows nothing about what they
//! are. Read [`Sandbox`] first.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group, test_kill_process_group};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Who the children run as when we are root, the first that exists: PostgreSQL refuses root.
const UNPRIVILEGED_USERS: [&str; 2] = ["postgres", "nobody"];

/// How long a child may take to end by itself before it is killed. PostgreSQL gives its own
/// children 5 s at an immediate shutdown.
const ENDING_MAX: Duration = Duration::from_secs(8);

/// How often a condition is looked at again while we wait for a child.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How often the folder's removal is tried, with a [`POLL_INTERVAL`] between.
const REMOVAL_ATTEMPTS: u32 = 50;

/// Lines of a log that an error shows: enough for the reason, and it fits a screen.
const LOG_LINES_SHOWN: usize = 15;

/// Ends the children and removes the folder when we died without doing so (SIGKILL, or a panic,
/// which aborts in a release build). Its standard input names the children and ends when we do.
const GUARD_SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
pids=
while read -r word; do
    [ "$word" = done ] && exit 0
    pids="$pids $word"
done
signal() { for pid in $pids; do kill "-$1" "$pid" 2>/dev/null; done; }
any_alive() { for pid in $pids; do kill -0 "$pid" 2>/dev/null && return 0; done; return 1; }
signal TERM
sleep 0.1
signal QUIT
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    any_alive || break
    sleep 0.3
done
signal KILL
rm -rf -- "$1"
"#;

/// Why a child process was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The operating system refused to start it.
    #[error("{program} could not be started: {source}")]
    Start {
        /// The program's name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}:\n{output}")]
    Failed {
        /// The program's name.
        program: String,
        /// Its exit code or signal.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It runs, but what it should do did not happen in time.
    #[error("{program} was not ready within {seconds} s:\n{output}")]
    NotReady {
        /// The program's name.
        program: String,
        /// How long we waited.
        seconds: u64,
        /// The end of what it wrote.
        output: String,
    },
    /// The temporary folder, or a file in it, could not be written.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// We are root and there is no other user to be.
    #[error(
        "started as root, which PostgreSQL refuses, and /etc/passwd has no user \"postgres\" or \"nobody\": \
         start it as another user"
    )]
    NoUnprivilegedUser,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

/// A temporary folder, and the unprivileged user that owns it and runs the children. Dropping it
/// removes the folder; the children must have ended before.
pub(super) struct Sandbox {
    folder: TempDir,
    account: Option<Account>,
    // After the folder: the guard is dismissed only when nothing is left to guard.
    guard: Guard,
}

impl Sandbox {
    pub(super) fn new(prefix: &str) -> Result<Self, ProcessError> {
        let account = unprivileged_account()?;
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(|source| ProcessError::Folder { path: std::env::temp_dir(), source })?;
        let guard = Guard::start(folder.path())?;
        let sandbox = Sandbox { folder, account, guard };
        sandbox.give_away(sandbox.folder.path())?;
        Ok(sandbox)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file that the children can read.
    pub(super) fn write_file(&self, name: &str, text: &str) -> Result<PathBuf, ProcessError> {
        let path = self.path().join(name);
        std::fs::write(&path, text).map_err(|source| folder_error(&path, source))?;
        self.give_away(&path)?;
        Ok(path)
    }

    /// A program that the children's user can start: a copy, where ours may lie in root's home.
    pub(super) fn reachable_program(&self, program: &Path) -> Result<PathBuf, ProcessError> {
        if self.account.is_none() {
            return Ok(program.to_owned());
        }
        let name = program.file_name().unwrap_or(OsStr::new("program"));
        let copy = self.path().join(name);
        std::fs::copy(program, &copy).map_err(|source| folder_error(&copy, source))?;
        self.give_away(&copy)?;
        Ok(copy)
    }

    /// A command in the folder, as the children's user. It has its own process group, so that
    /// Ctrl-C in the terminal reaches us alone and we end the children in order.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).stdin(Stdio::null()).process_group(0);
        if let Some(Account { uid, gid }) = self.account {
            // The standard library also drops root's supplementary groups here.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Starts a child that runs until it is dropped. What it writes goes to `<name>.log`.
    pub(super) fn start(
        &self,
        name: &str,
        mut command: Command,
        end_by: Signal,
    ) -> Result<Running, ProcessError> {
        let log = self.path().join(format!("{name}.log"));
        let output = File::create(&log).map_err(|source| folder_error(&log, source))?;
        let errors = output.try_clone().map_err(|source| folder_error(&log, source))?;
        let child = command
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| ProcessError::Start { program: name.to_owned(), source })?;
        self.guard.watch(child.id());
        Ok(Running { name: name.to_owned(), child, end_by, log })
    }

    fn give_away(&self, path: &Path) -> Result<(), ProcessError> {
        match self.account {
            None => Ok(()),
            Some(Account { uid, gid }) => {
                chown(path, Some(uid), Some(gid)).map_err(|source| folder_error(path, source))
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A command that was cut short may still be writing: what it adds is removed next time.
        for _ in 0..REMOVAL_ATTEMPTS {
            match std::fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                _ => return,
            }
        }
    }
}

/// A child that runs until this is dropped; then it is asked to end, waited for, and killed if it
/// does not.
pub(super) struct Running {
    name: String,
    child: Child,
    end_by: Signal,
    log: PathBuf,
}

impl Running {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, when it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        // An error means that it has just ended.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Sends a signal to it and to its children, which may be in process groups of their own.
    pub(super) fn signal_family(&self, signal: Signal) {
        self.signal(signal);
        for pid in children(self.id()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has ended, in whatever way.
    pub(super) async fn wait_for_end(&mut self, limit: Duration) -> Result<(), ProcessError> {
        let deadline = Instant::now() + limit;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return Err(self.not_ready(limit));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The error to report when the child ended by itself.
    pub(super) fn failure(&self, status: ExitStatus) -> ProcessError {
        ProcessError::Failed { program: self.name.clone(), status, output: self.log_tail() }
    }

    /// The error to report when it took too long.
    pub(super) fn not_ready(&self, limit: Duration) -> ProcessError {
        let output = self.log_tail();
        ProcessError::NotReady { program: self.name.clone(), seconds: limit.as_secs(), output }
    }

    /// Waits until `ready` says so. Ends early when the child does.
    pub(super) async fn wait_until(
        &mut self,
        limit: Duration,
        ready: impl Fn() -> bool,
    ) -> Result<(), ProcessError> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.ended() {
                return Err(self.failure(status));
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready(limit));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        tail(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        // An error means that it has just ended, which is what we want.
        let _ = kill_process(Pid::from_child(&self.child), self.end_by);
        if !self.ends_within(ENDING_MAX) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The processes whose parent it is.
fn children(parent: u32) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let child = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // `pid (name) state parent …`; the name may have spaces and parentheses.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let of: u32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        if of == parent { Pid::from_raw(pid) } else { None }
    };
    entries.filter_map(child).collect()
}

/// Runs a command to its end and returns what it wrote. When the future is dropped, the command ends,
/// and so does whatever it had started.
pub(super) async fn output(command: Command) -> Result<Output, ProcessError> {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (status, text) = match CommandGroup::start(command) {
        Ok(mut group) => group.output().await,
        Err(error) => Err(error),
    }
    .map_err(|source| ProcessError::Start { program: program.clone(), source })?;
    if status.success() {
        return Ok(text);
    }
    Err(ProcessError::Failed { program, status, output: tail(&text.stderr) })
}

/// A command of [`Sandbox::command`] with all its children: initdb starts servers of its own.
struct CommandGroup {
    leader: tokio::process::Child,
    /// `None` when it has ended by itself.
    running: Option<Pid>,
}

impl CommandGroup {
    fn start(command: Command) -> io::Result<Self> {
        let leader =
            tokio::process::Command::from(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let running = leader.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(CommandGroup { leader, running })
    }

    async fn output(&mut self) -> io::Result<(ExitStatus, Output)> {
        let (stdout, stderr) = (self.leader.stdout.take(), self.leader.stderr.take());
        let (stdout, stderr) = tokio::try_join!(read_text(stdout), read_text(stderr))?;
        let status = self.leader.wait().await?;
        self.running = None;
        Ok((status, Output { stdout, stderr }))
    }
}

impl Drop for CommandGroup {
    fn drop(&mut self) {
        let Some(group) = self.running else { return };
        let _ = kill_process_group(group, Signal::KILL);
        let deadline = Instant::now() + ENDING_MAX;
        // A process that ended but was not waited for is still in the group.
        while self.leader.try_wait().is_ok()
            && test_kill_process_group(group).is_ok()
            && Instant::now() < deadline
        {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

async fn read_text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a command that succeeded wrote.
pub(super) struct Output {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

struct Guard {
    shell: Child,
}

impl Guard {
    fn start(folder: &Path) -> Result<Self, ProcessError> {
        let shell = Command::new("sh")
            .args([OsStr::new("-c"), OsStr::new(GUARD_SCRIPT), OsStr::new("guard")])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| ProcessError::Start { program: "sh".to_owned(), source })?;
        Ok(Guard { shell })
    }

    fn watch(&self, pid: u32) {
        self.tell(&pid.to_string());
    }

    fn tell(&self, word: &str) {
        if let Some(mut stdin) = self.shell.stdin.as_ref() {
            // Without a guard there is still our own way to end.
            let _ = writeln!(stdin, "{word}");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.tell("done");
        let _ = self.shell.wait();
    }
}

fn unprivileged_account() -> Result<Option<Account>, ProcessError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    UNPRIVILEGED_USERS
        .iter()
        .find_map(|user| find_account(&passwd, user))
        .map(Some)
        .ok_or(ProcessError::NoUnprivilegedUser)
}

fn find_account(passwd: &str, user: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut numbers = line.split(':').skip(2);
    let uid = numbers.next()?.parse().ok()?;
    let gid = numbers.next()?.parse().ok()?;
    Some(Account { uid, gid })
}

fn folder_error(path: &Path, source: io::Error) -> ProcessError {
    ProcessError::Folder { path: path.to_owned(), source }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_exact_name() {
        fn check(passwd: &str, expected: Option<(u32, u32)>) {
            let expected = expected.map(|(uid, gid)| Account { uid, gid });
            assert_eq!(find_account(passwd, "postgres"), expected, "{passwd:?}");
        }
        check("root:x:0:0::/root:/bin/sh\npostgres:x:102:105:,,,:/var:/bin/sh\n", Some((102, 105)));
        check("postgresql:x:1:2:::\n", None);
        check("postgres:x:many:2:::\n", None);
        check("postgres:x:7\n", None);
        check("", None);
    }

    #[test]
    fn an_error_shows_the_end_of_a_log() {
        let log: String = (1..=40).map(|line| format!("{line}\n")).collect();
        assert!(tail(&log).starts_with("26\n"));
        assert!(tail(&log).ends_with("\n40"));
        assert_eq!(tail("only\n"), "only");
        assert_eq!(tail(""), "");
    }
}
