//! `pgweir switchover`: a planned move of the primary without an error for any client. It has every pooler
//! hold its clients at a transaction boundary, asks the operator to move the primary, and lets the
//! clients go on at the new one. Read [`run`] first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::task::JoinSet;

use crate::auth::{Password, ServerSecret};
use crate::config::{Host, RESERVED_DATABASE};
use crate::net::endpoint::{Endpoint, TcpOptions};
use crate::protocol::parameters::{Interner, Tracked};
use crate::server::login::{OpenError, Recipe};
use crate::server::{QueryError, ServerConnection, Session};
use crate::topology::kube::operate::{ApiFailure, Leadership, Operated};
use crate::topology::kube::{Kubernetes, NoApi};

/// How long a pooler may take to log us in.
const LOGIN_MAX: Duration = Duration::from_secs(5);

/// How often it is looked whether the primary has moved.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The arguments of `pgweir switchover`.
#[derive(Clone, Debug, clap::Args)]
pub struct SwitchoverArguments {
    /// The cluster's name in [clusters] of the poolers
    cluster: String,
    /// The member (pod) that becomes the primary
    #[arg(long)]
    to: String,
    /// Name of the Cluster object or Patroni's scope [default: the cluster's name]
    #[arg(long)]
    name: Option<String>,
    /// Namespace [default: the kubeconfig's]
    #[arg(long)]
    namespace: Option<String>,
    /// Whose cluster it is
    #[arg(long, value_enum, default_value_t = Operator::Cnpg)]
    operator: Operator,
    /// Service whose pods are the poolers
    #[arg(long, default_value = "pgweir-rw")]
    service: String,
    /// Name of the Service's port
    #[arg(long, default_value = "postgres")]
    port_name: String,
    /// A pooler's address, instead of the Service's pods; may be repeated
    #[arg(long)]
    pooler: Vec<SocketAddr>,
    /// User of the poolers' consoles, one of admin_users; its password is taken from PGPASSWORD
    #[arg(long, default_value = "pgweir_admin")]
    admin_user: String,
    /// Clients are held for at most so many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    hold: u32,
}

/// Who moves the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Operator {
    /// CloudNativePG: clusters/status is patched
    Cnpg,
    /// Patroni: the failover object is written
    Patroni,
}

/// Why the primary was not moved, or not seen to have moved.
#[derive(Debug, Error)]
pub enum SwitchoverError {
    /// No way to the API.
    #[error(transparent)]
    NoApi(#[from] NoApi),
    /// The API refused.
    #[error("the Kubernetes API: {0}")]
    Api(ApiFailure),
    /// Nobody would be held.
    #[error(
        "service \"{0}\" has no ready pod with a port \"{1}\": name the poolers with --service or --pooler"
    )]
    NoPoolers(String, String),
    /// The member cannot become the primary.
    #[error("{0}")]
    Member(String),
    /// A pooler did not hold; all were released, and nothing was moved.
    #[error("pooler {0} did not hold its clients, so nothing was moved: {1}")]
    NotHeld(SocketAddr, String),
    /// The hold was over before the primary had moved.
    #[error("the primary has not moved to {0} within {1} s; the clients were released")]
    NotMoved(String, u32),
    /// No runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<ApiFailure> for SwitchoverError {
    fn from(failure: ApiFailure) -> Self {
        SwitchoverError::Api(failure)
    }
}

/// Moves the primary, and reports on standard output what was done.
///
/// Fails before anything has changed when a pooler cannot hold, and when the operator does not move the
/// primary in time; clients are released in any case.
pub fn run(arguments: &SwitchoverArguments) -> Result<(), SwitchoverError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(switch_over(arguments))
}

async fn switch_over(arguments: &SwitchoverArguments) -> Result<(), SwitchoverError> {
    let name = arguments.name.as_deref().unwrap_or(&arguments.cluster);
    let kubernetes = Kubernetes::infer().await?;
    let operated = kubernetes.operate(arguments.namespace.as_deref(), name);
    let before = leadership(&operated, arguments.operator).await?;
    let from = check(&before, &arguments.to)?;
    let poolers = poolers(&operated, arguments).await?;
    println!("primary={from} target={} poolers={}", arguments.to, poolers.len());
    let consoles = Consoles::new(arguments);
    let began = Instant::now();
    if let Err(error) = consoles.hold(&poolers).await {
        consoles.release(&poolers).await;
        return Err(error);
    }
    println!("held: all transactions have ended after_ms={}", began.elapsed().as_millis());
    let moved = promote_and_wait(&operated, arguments, &from, began).await;
    consoles.release(&poolers).await;
    moved?;
    println!("moved: primary={} held_ms={}", arguments.to, began.elapsed().as_millis());
    Ok(())
}

async fn leadership(operated: &Operated, operator: Operator) -> Result<Leadership, ApiFailure> {
    match operator {
        Operator::Cnpg => operated.cnpg_leadership().await,
        Operator::Patroni => operated.patroni_leadership().await,
    }
}

/// The primary that is left, if the other one may take over.
fn check(before: &Leadership, to: &str) -> Result<String, SwitchoverError> {
    let refuse = |text: String| Err(SwitchoverError::Member(text));
    let Some(from) = &before.primary else {
        return refuse("the cluster has no primary now: this is not the time for a switchover".into());
    };
    if from == to {
        return refuse(format!("{to} is the primary already"));
    }
    if !before.members.is_empty() && !before.members.iter().any(|member| member == to) {
        return refuse(format!("there is no member {to}; there are {}", before.members.join(", ")));
    }
    Ok(from.clone())
}

async fn poolers(
    operated: &Operated,
    arguments: &SwitchoverArguments,
) -> Result<Vec<SocketAddr>, SwitchoverError> {
    if !arguments.pooler.is_empty() {
        return Ok(arguments.pooler.clone());
    }
    let found = operated.addresses(&arguments.service, &arguments.port_name).await?;
    match found.is_empty() {
        true => Err(SwitchoverError::NoPoolers(arguments.service.clone(), arguments.port_name.clone())),
        false => Ok(found),
    }
}

async fn promote_and_wait(
    operated: &Operated,
    arguments: &SwitchoverArguments,
    from: &str,
    began: Instant,
) -> Result<(), SwitchoverError> {
    match arguments.operator {
        Operator::Cnpg => operated.cnpg_promote(&arguments.to).await?,
        Operator::Patroni => operated.patroni_promote(from, &arguments.to).await?,
    }
    while began.elapsed() < Duration::from_secs(arguments.hold.into()) {
        // The API may be away for a moment: the move goes on, and is looked for again.
        if let Ok(now) = leadership(operated, arguments.operator).await
            && now.primary.as_ref() == Some(&arguments.to)
        {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(SwitchoverError::NotMoved(arguments.to.clone(), arguments.hold))
}

/// The poolers' consoles.
#[derive(Clone)]
struct Consoles {
    cluster: String,
    seconds: u32,
    user: String,
    secret: Arc<ServerSecret>,
    session: Arc<Session>,
}

impl Consoles {
    fn new(arguments: &SwitchoverArguments) -> Consoles {
        let secret = match std::env::var("PGPASSWORD") {
            Ok(password) => ServerSecret::plain(Password::new(&password)),
            Err(_) => ServerSecret::None,
        };
        let session = Session { tracked: Tracked::new(std::iter::empty()), parameters: Interner::default() };
        Consoles {
            cluster: arguments.cluster.replace('"', "\"\""),
            seconds: arguments.hold,
            user: arguments.admin_user.clone(),
            secret: Arc::new(secret),
            session: Arc::new(session),
        }
    }

    /// Every pooler holds, or an error says which does not.
    async fn hold(&self, poolers: &[SocketAddr]) -> Result<(), SwitchoverError> {
        let command = format!("HOLD \"{}\" {}", self.cluster, self.seconds);
        let mut asking = JoinSet::new();
        for pooler in poolers.iter().copied() {
            let (consoles, command) = (self.clone(), command.clone());
            asking.spawn(async move { (pooler, consoles.tell(pooler, &command).await) });
        }
        while let Some(answer) = asking.join_next().await {
            let (pooler, outcome) = answer.expect("a task that is not aborted and does not panic ends");
            outcome.map_err(|reason| SwitchoverError::NotHeld(pooler, reason))?;
        }
        Ok(())
    }

    /// As far as they can be reached; a hold lapses by itself.
    async fn release(&self, poolers: &[SocketAddr]) {
        let command = format!("RELEASE \"{}\"", self.cluster);
        for pooler in poolers {
            if let Err(reason) = self.tell(*pooler, &command).await {
                eprintln!("pooler {pooler} was not released, its hold lapses by itself: {reason}");
            }
        }
    }

    async fn tell(&self, pooler: SocketAddr, command: &str) -> Result<(), String> {
        let mut console = self.log_in(pooler).await.map_err(|error| error.to_string())?;
        let limit = Duration::from_secs(self.seconds.into()) + LOGIN_MAX;
        match tokio::time::timeout(limit, console.run(command, &self.session)).await {
            Ok(outcome) => outcome.map_err(|error: QueryError| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    }

    async fn log_in(&self, pooler: SocketAddr) -> Result<ServerConnection, OpenError> {
        let recipe = Recipe {
            endpoint: Arc::new(Endpoint { host: Host::Tcp(pooler.ip().to_string()), port: pooler.port() }),
            options: TcpOptions::default(),
            user: self.user.clone(),
            database: RESERVED_DATABASE.to_owned(),
            parameters: Vec::new(),
            secret: Arc::clone(&self.secret),
            timeout: Some(LOGIN_MAX),
            connect_query: None,
            statements_max: 0,
        };
        let (console, _) = recipe.open(&self.session, 0, 0).await?;
        Ok(console)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_member_can_take_over() {
        let leadership = |primary: Option<&str>| Leadership {
            primary: primary.map(str::to_owned),
            members: vec!["pg-1".into(), "pg-2".into()],
        };
        assert_eq!(check(&leadership(Some("pg-1")), "pg-2").ok().as_deref(), Some("pg-1"));
        for (primary, to, expected) in [
            (Some("pg-1"), "pg-1", "pg-1 is the primary already"),
            (Some("pg-1"), "pg-3", "there is no member pg-3; there are pg-1, pg-2"),
            (None, "pg-2", "the cluster has no primary now: this is not the time for a switchover"),
        ] {
            let error = check(&leadership(primary), to).expect_err("refused").to_string();
            assert_eq!(error, expected);
        }
    }
}
