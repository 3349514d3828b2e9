//! What an operator runs by hand: `pgweir demo`, `switchover`, `reroute`, `status`, `verify` and `drill`. Each subcommand has
//! its arguments (for clap) and one `run`; `main` only chooses. Read [`demo`] first.

pub mod consoles;
pub mod demo;
pub mod drill;
pub mod reroute;
pub mod said;
pub mod status;
pub mod switchover;
pub mod verify;

mod login;
mod pgbench;
mod postgres;
mod process;
