//! The world's clients: psql and pgbench, and psycopg in the drivers' environment.

use super::postgres::debian_directories;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Psql,
    Psycopg,
}

/// Both have libpq below, of different versions.
pub const CLIENTS: [Client; 2] = [Client::Psql, Client::Psycopg];

impl Client {
    /// Logs in with a connection string and asks for one value. Else what the client printed.
    pub fn asks(self, target: &str, sql: &str) -> Result<String, String> {
        match self {
            Client::Psql => ask_psql(target, sql),
            Client::Psycopg => PSYCOPG.lock().unwrap_or_else(PoisonError::into_inner).asks(target, sql),
        }
    }
}

fn ask_psql(target: &str, sql: &str) -> Result<String, String> {
    let mut psql = psql();
    psql.args(["-XAt", "-c", sql, target]);
    let output = psql.output().expect("psql is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// psql, which asks nobody and reads no file of the one who runs the tests.
pub fn psql() -> Command {
    let mut command = program("psql");
    command.arg("--no-password").env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// A program of PostgreSQL's clients. In the path Debian has a script that looks for the program of the right version,
/// which takes longer than most of what is asked here.
pub fn program(name: &str) -> Command {
    let mut programs = debian_directories().into_iter().map(|directory| directory.join(name));
    Command::new(programs.find(|program| program.exists()).unwrap_or_else(|| name.into()))
}

/// To load it takes longer than most logins, so that one process does them all: a line is a login, and a line is its
/// answer.
const PYTHON: &str = "import json, sys
for line in sys.stdin:
    target, sql = json.loads(line)
    try:
        import psycopg
        with psycopg.connect(target, autocommit=True) as connection:
            answer = {'Ok': str(connection.execute(sql).fetchone()[0])}
    except Exception as error:
        answer = {'Err': str(error)}
    print(json.dumps(answer), flush=True)
";

static PSYCOPG: LazyLock<Mutex<Psycopg>> = LazyLock::new(|| Mutex::new(Psycopg::start()));

/// It ends with the test program: its standard input is closed then.
struct Psycopg {
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
    _child: Child,
}

impl Psycopg {
    fn start() -> Psycopg {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
        let mut command = Command::new(python);
        command.args(["-c", PYTHON]).env("HOME", "/nonexistent");
        // cargo-nextest calls it a leak when a child that ends a moment later has our standard error.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("scripts/setup has installed it");
        let asked = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Psycopg { asked, answers, _child: child }
    }

    fn asks(&mut self, target: &str, sql: &str) -> Result<String, String> {
        writeln!(self.asked, "{}", json!([target, sql])).expect("it reads until the end");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers in UTF-8");
        let answer: Value =
            serde_json::from_str(&line).expect("psycopg is installed, and each login has an answer");
        let text = |key: &str| answer[key].as_str().map(|text| text.trim().to_owned());
        text("Ok").ok_or_else(|| text("Err").expect("it is one of both"))
    }
}
