//! The `pgweir` command: reads the command line and runs the pooler, or one of the commands that an
//! operator runs by hand.

// They panic without a reader: see `command::said`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use pgweir::command::demo::{self, DemoArguments};
use pgweir::command::drill::{self, DrillArguments};
use pgweir::command::reroute::{self, RerouteArguments};
use pgweir::command::said::{complain, say};
use pgweir::command::status::{self, StatusArguments};
use pgweir::command::switchover::{self, SwitchoverArguments};
use pgweir::command::verify::{self, VerifyArguments};
use pgweir::process::{self, Options, StartError};

const TRY_HELP: &str = "Try \"pgweir --help\" for more information.";

/// The exit code of `pgweir verify` when there is nothing to judge.
const NOTHING_SEEN: u8 = 2;

/// A connection pooler for PostgreSQL, a drop-in replacement for PgBouncer.
#[derive(Debug, Parser)]
#[command(name = "pgweir", version, disable_version_flag = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Settings: pgbouncer.ini, or a file that ends in .toml
    #[arg(value_name = "CONFIG_FILE")]
    config: Option<PathBuf>,
    /// Do not log to stderr
    #[arg(short, long)]
    quiet: bool,
    /// Log more; may be repeated
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Run in the background; needs pidfile, and logfile or syslog
    #[arg(short, long)]
    daemon: bool,
    /// Become this user
    #[arg(short, long, value_name = "USERNAME")]
    user: Option<String>,
    /// Take the place of the running process, which serves its clients to their end (deprecated)
    #[arg(short = 'R', long)]
    reboot: bool,
    /// Print the version and exit
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A private PostgreSQL with two standbys, and pgweir in front, to play with
    Demo(DemoArguments),
    /// Move the primary of a cluster in Kubernetes without an error for any client
    Switchover(SwitchoverArguments),
    /// Move a database from one cluster to another in every pooler
    Reroute(RerouteArguments),
    /// Do to a cluster what a bad night would, and say what clients saw
    Drill(DrillArguments),
    /// How a pooler and the clusters that it follows are
    Status(StatusArguments),
    /// Say whether all is green that a cluster in Kubernetes needs: 0 if so, 1 if not, 2 if it cannot be seen
    Verify(VerifyArguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => {
            if answer.kind() == clap::error::ErrorKind::DisplayVersion && is_called_pgbouncer() {
                say(&pgweir::admin::version());
                return ExitCode::SUCCESS;
            }
            // Nobody may be there to read it.
            let _ = answer.print();
            if answer.use_stderr() {
                complain(TRY_HELP);
            }
            // Help and the version are answers too. For a mistake PgBouncer's code is 1, clap's is 2.
            return if answer.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match (arguments.command, arguments.config) {
        (Some(Command::Switchover(arguments)), _) => {
            switchover::run(&arguments).map_err(|error| error.to_string())
        }
        (Some(Command::Reroute(arguments)), _) => reroute::run(&arguments).map_err(|error| error.to_string()),
        (Some(Command::Drill(arguments)), _) => drill::run(&arguments).map_err(|error| error.to_string()),
        (Some(Command::Status(arguments)), _) => status::run(&arguments).map_err(|error| error.to_string()),
        (Some(Command::Verify(arguments)), _) => match verify::run(&arguments) {
            Ok(true) => Ok(()),
            // The lines say what.
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => {
                complain(&format!("pgweir: {error}"));
                return ExitCode::from(NOTHING_SEEN);
            }
        },
        (Some(Command::Demo(demo)), _) => demo::run(&demo).map_err(|error| error.to_string()),
        (None, Some(config)) => {
            let options = Options {
                config,
                quiet: arguments.quiet,
                verbosity: arguments.verbose,
                daemon: arguments.daemon,
                reboot: arguments.reboot,
                user: arguments.user,
            };
            match process::run(&options) {
                // With a log on stderr it stands there already.
                Err(StartError::Logged(_)) => return ExitCode::FAILURE,
                outcome => outcome.map_err(|error| error.to_string()),
            }
        }
        (None, None) => Err(format!("no settings file was given\n{TRY_HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("pgweir: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Scripts that ask `pgbouncer --version` look for its name and number, the same that SHOW VERSION says.
fn is_called_pgbouncer() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.is_some_and(|path| path.file_name().is_some_and(|name| name == "pgbouncer"))
}
