//! What an operator runs by hand: `pgweir demo`, `pgweir switchover`, `pgweir reroute`, `pgweir status` and `pgweir drill`. Each subcommand has its arguments (for clap)
//! and one `run`; `main` only chooses. Read [`demo`] first.

pub mod consoles;
pub mod demo;
pub mod drill;
pub mod reroute;
pub mod status;
pub mod switchover;

mod pgbench;
mod postgres;
mod process;
