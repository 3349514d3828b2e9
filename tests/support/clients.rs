//! The world's clients: psql, and psycopg in the drivers' environment.

use std::path::Path;
use std::process::{Command, Stdio};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Psql,
    Psycopg,
}

/// Both have libpq below, of different versions.
pub const CLIENTS: [Client; 2] = [Client::Psql, Client::Psycopg];

const PYTHON: &str = "import psycopg, sys
try:
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        print(connection.execute(sys.argv[2]).fetchone()[0])
except psycopg.Error as error:
    sys.exit(str(error))
";

impl Client {
    /// Logs in with a connection string and asks for one value. Else what the client printed.
    pub fn asks(self, target: &str, sql: &str) -> Result<String, String> {
        let mut command = match self {
            Client::Psql => {
                let mut psql = Command::new("psql");
                psql.args(["-XAtw", "-c", sql, target]);
                psql
            }
            Client::Psycopg => {
                let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
                let mut psycopg = Command::new(python);
                psycopg.args(["-c", PYTHON, target, sql]);
                psycopg
            }
        };
        // No file of the one who runs the tests has a say.
        command.env("HOME", "/nonexistent").stdin(Stdio::null());
        let output = command.output().expect("scripts/setup has installed it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }
}
