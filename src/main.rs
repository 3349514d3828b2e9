//! The `pgweir` command: reads the command line and runs the pooler, or one of the commands that an
//! operator runs by hand.

use std::process::ExitCode;

use clap::Parser;

use pgweir::command::demo::{self, DemoArguments};
use pgweir::process::{self, Options};

/// A connection pooler for PostgreSQL, a drop-in replacement for PgBouncer.
#[derive(Debug, Parser)]
#[command(name = "pgweir", version, disable_version_flag = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Settings: pgbouncer.ini, or a file that ends in .toml
    #[arg(value_name = "CONFIG_FILE")]
    config: Option<std::path::PathBuf>,
    /// Do not log to stderr
    #[arg(short, long)]
    quiet: bool,
    /// Log more; may be repeated
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print the version and exit
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Try pgweir: a private PostgreSQL with two standbys, and pgweir in front
    Demo(DemoArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Demo(arguments)) = &arguments.command {
        return exit_code(demo::run(arguments));
    }
    let Some(config) = arguments.config else {
        eprintln!("pgweir: no settings file was given\nTry \"pgweir --help\" for more information.");
        return ExitCode::FAILURE;
    };
    let options = Options { config, quiet: arguments.quiet, verbosity: arguments.verbose };
    exit_code(process::run(&options))
}

fn exit_code(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgweir: {error}");
            ExitCode::FAILURE
        }
    }
}
