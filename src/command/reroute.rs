//! `pgweir reroute`: moves a database from one cluster to another in every pooler, at a transaction
//! boundary: to an upgraded or a restored cluster, and back. Read [`run`] first.

use std::time::Instant;

use thiserror::Error;

use super::consoles::{Consoles, PoolerArguments, PoolerError};
use super::said::{complain, say};
use crate::topology::kube::{Kubernetes, NoApi};

/// The arguments of `pgweir reroute`.
#[derive(Clone, Debug, clap::Args)]
pub struct RerouteArguments {
    /// The database's name in the poolers' settings
    database: String,
    /// The cluster that it belongs to now
    #[arg(long)]
    from: String,
    /// The cluster that it shall belong to
    #[arg(long)]
    to: String,
    /// Namespace of the poolers [default: the kubeconfig's]
    #[arg(long)]
    namespace: Option<String>,
    #[command(flatten)]
    poolers: PoolerArguments,
    /// Clients are held for at most so many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    hold: u32,
}

/// Why the database stays where it was.
#[derive(Debug, Error)]
pub enum RerouteError {
    /// No way to the API.
    #[error(transparent)]
    NoApi(#[from] NoApi),
    /// A pooler did not obey.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// No runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Moves the database, and reports on standard output what was done. The settings files are the
/// operator's to change: the next RELOAD goes by them.
///
/// Fails when a pooler does not hold, or does not move; then those that had moved go back.
pub fn run(arguments: &RerouteArguments) -> Result<(), RerouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(reroute(arguments))
}

async fn reroute(arguments: &RerouteArguments) -> Result<(), RerouteError> {
    let RerouteArguments { database, from, to, hold, .. } = arguments;
    let operated = match arguments.poolers.names_poolers() {
        true => None,
        false => Some(Kubernetes::infer().await?.operate(arguments.namespace.as_deref(), from)),
    };
    let consoles = Consoles::find(&arguments.poolers, operated.as_ref()).await?;
    let began = Instant::now();
    // Nobody may write to the new cluster while somebody still writes to the old one.
    consoles.hold(from, *hold).await?;
    let moved = consoles.reroute(database, to, *hold).await;
    if moved.is_err()
        && let Err(error) = consoles.reroute(database, from, *hold).await
    {
        complain(&format!("not every pooler went back: {error}"));
    }
    consoles.release(from).await;
    moved?;
    let held_ms = began.elapsed().as_millis();
    say(&format!("moved: database={database} cluster={to} poolers={} held_ms={held_ms}", consoles.count()));
    Ok(())
}
