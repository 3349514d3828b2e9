//! `pgweir demo`, run as a user does: it shows queries going through pgweir to a primary and two
//! standbys, and whatever ends it, no process and no file stays behind.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A demo, and the temporary folder that it believes to be the system's. It ends with the test.
struct Demo {
    /// `None` once its output has been taken.
    process: Option<Child>,
    temporary: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        // The demo's unprivileged user must get through.
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_pgweir"))
            .args(["demo", "--port", "0"])
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Demo { process: Some(process), temporary }
    }

    /// Reads its output up to the line that holds `text`, and returns that line.
    fn wait_for(&mut self, text: &str) -> String {
        let stdout = self.process().stdout.as_mut().unwrap();
        let lines = BufReader::new(stdout).lines().map(Result::unwrap);
        let found = lines.into_iter().find(|line| line.contains(text));
        found.unwrap_or_else(|| {
            let mut complaint = String::new();
            self.process().stderr.as_mut().unwrap().read_to_string(&mut complaint).unwrap();
            panic!("it ends before a line with {text:?}:\n{complaint}")
        })
    }

    fn process(&mut self) -> &mut Child {
        self.process.as_mut().expect("its output is taken last")
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.process()), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        self.process().wait().unwrap()
    }

    /// Waits for its end, and returns its standard output. On its standard error is nothing.
    fn says(&mut self) -> String {
        let output = self.process.take().expect("its output is taken once").wait_with_output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stderr.is_empty(), "{}\n{stdout}\n{stderr}", output.status);
        stdout.into_owned()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process
            && let Ok(None) = process.try_wait()
        {
            // It removes its folder, and ends what it has started.
            let _ = kill_process(Pid::from_child(process), Signal::TERM);
            let _ = process.wait();
        }
    }
}

/// The processes that work in a folder or name it in their command line.
fn processes_of(folder: &Path) -> Vec<String> {
    let name = folder.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // A process that ends while we look is no process of the folder.
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if cwd.starts_with(folder) || command.contains(&*name) {
            found.push(format!("{} {command}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn assert_nothing_is_left(folder: &Path) {
    assert_eq!(files_in(folder), Vec::<PathBuf>::new());
    assert_eq!(processes_of(folder), Vec::<String>::new());
}

#[test]
fn once_prints_the_result_of_pgbench_and_leaves_nothing_behind() {
    let mut demo = Demo::start(&["--once", "--seconds", "1"]);
    let stdout = demo.says();
    for wanted in ["select-only", "TPC-B", " 0 failed", "Both standbys stream"] {
        assert!(stdout.contains(wanted), "no {wanted:?} in:\n{stdout}");
    }
    assert_nothing_is_left(demo.temporary.path());
}

/// Plays the script; the first line must say whom pgweir goes by.
fn the_clients_go_on(arguments: &[&str], source: &str) {
    let mut demo = Demo::start(&[&["--script"], arguments].concat());
    let stdout = demo.says();
    assert!(stdout.starts_with(source), "{stdout}");
    let switchover = stdout.lines().find(|line| line.starts_with("  switchover")).unwrap_or_default();
    assert!(switchover.contains(" 0 errors,"), "{stdout}");
    for scene in ["  kill", "  fence", "  cut", "The primary moved, and the clients went on."] {
        assert!(stdout.contains(scene), "no {scene:?} in:\n{stdout}");
    }
    assert_nothing_is_left(demo.temporary.path());
}

#[test]
fn the_script_moves_the_primary_that_an_api_server_names_and_the_clients_go_on() {
    the_clients_go_on(&[], "Source cnpg: a kube-apiserver of our own");
}

#[test]
fn the_script_moves_the_primary_that_says_so_itself_and_the_clients_go_on() {
    the_clients_go_on(&["--probe"], "Source probe: pgweir asks the servers");
}

#[test]
fn a_running_demo_shows_a_live_line_and_ends_at_sigterm() {
    let mut demo = Demo::start(&[]);
    assert!(demo.wait_for("psql postgres://").contains("/demo"));
    // On a busy machine they are not all there when the first line is written.
    let live = demo.wait_for("50 clients (");
    assert!(live.contains(" queries/s | "), "{live}");
    // The name of its pod: the probe has only addresses.
    assert!(live.contains(" | primary node1 | "), "{live}");
    demo.signal(Signal::TERM);
    let status = demo.end();
    assert!(status.success(), "{status}");
    assert_nothing_is_left(demo.temporary.path());
}

#[test]
fn a_demo_that_is_interrupted_while_it_starts_cleans_up_and_says_so() {
    let mut demo = Demo::start(&["--once"]);
    demo.wait_for("Starting PostgreSQL");
    demo.signal(Signal::INT);
    let status = demo.end();
    assert_eq!(status.code(), Some(1));
    assert_nothing_is_left(demo.temporary.path());
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_behind_either() {
    let mut demo = Demo::start(&[]);
    demo.wait_for("queries/s");
    demo.signal(Signal::KILL);
    let status = demo.end();
    assert!(!status.success());
    let deadline = Instant::now() + Duration::from_secs(30);
    let folder = demo.temporary.path();
    while !(files_in(folder).is_empty() && processes_of(folder).is_empty()) {
        assert!(Instant::now() < deadline, "{:?}\n{:#?}", files_in(folder), processes_of(folder));
        std::thread::sleep(Duration::from_millis(50));
    }
}
