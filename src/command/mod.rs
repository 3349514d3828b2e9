//! What an operator runs by hand: `pgweir demo`, `pgweir switchover` and `pgweir reroute`. Each subcommand has its arguments (for clap)
//! and one `run`; `main` only chooses. Read [`demo`] first.

pub mod consoles;
pub mod demo;
pub mod reroute;
pub mod switchover;

mod pgbench;
mod postgres;
mod process;
