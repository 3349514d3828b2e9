//! What an operator runs by hand: `pgweir demo` today. Each subcommand has its arguments (for clap)
//! and one `run`; `main` only chooses. Read [`demo`] first.

pub mod demo;

mod live;
mod pgbench;
mod postgres;
mod process;
