//! What an operator runs by hand: `pgweir demo`, and `pgweir switchover`. Each subcommand has its arguments (for clap)
//! and one `run`; `main` only chooses. Read [`demo`] first.

pub mod demo;
pub mod switchover;

mod pgbench;
mod postgres;
mod process;
