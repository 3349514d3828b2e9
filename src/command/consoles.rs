//! The consoles of all poolers, for commands that must be obeyed by every one or by none, and for questions:
//! `Consoles`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;

use super::login;
use super::said::complain;
use crate::auth::ServerSecret;
use crate::config::{Host, RESERVED_DATABASE};
use crate::net::endpoint::{Dialing, Endpoint};
use crate::server::login::Recipe;
use crate::server::{QueryError, ServerConnection, Session};
use crate::topology::kube::operate::{ApiFailure, Operated};

/// How long a pooler may take to log us in.
const LOGIN_MAX: Duration = Duration::from_secs(5);

/// How long a command may take that waits for nobody's transaction.
const COMMAND_MAX: Duration = Duration::from_secs(10);

/// Which poolers are meant, and how their consoles are entered.
#[derive(Clone, Debug, clap::Args)]
pub struct PoolerArguments {
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
}

impl PoolerArguments {
    /// Whether the poolers are named, so that nobody has to be asked where they are.
    pub(super) fn names_poolers(&self) -> bool {
        !self.pooler.is_empty()
    }
}

/// What a console answers to one command; NULL is `None`.
pub(super) type Rows = Vec<Vec<Option<String>>>;

/// Why not every pooler obeyed.
#[derive(Debug, Error)]
pub enum PoolerError {
    /// The API refused to say where they are.
    #[error("the Kubernetes API: {0}")]
    Api(ApiFailure),
    /// Nobody would obey.
    #[error(
        "service \"{0}\" has no ready pod with a port \"{1}\": name the poolers with --service or --pooler"
    )]
    NoPoolers(String, String),
    /// One of them did not; what had begun was taken back.
    #[error("pooler {0} did not obey, so nothing was moved: {1}")]
    NotObeyed(SocketAddr, String),
}

/// The consoles of all poolers.
#[derive(Clone)]
pub(super) struct Consoles {
    poolers: Vec<SocketAddr>,
    user: String,
    secret: Arc<ServerSecret>,
    dialing: Dialing,
    session: Arc<Session>,
}

impl Consoles {
    /// Those that the arguments name, else the ready pods of the Service.
    pub(super) async fn find(
        arguments: &PoolerArguments,
        operated: Option<&Operated>,
    ) -> Result<Self, PoolerError> {
        let PoolerArguments { service, port_name, pooler, admin_user } = arguments;
        let poolers = match operated {
            Some(operated) if pooler.is_empty() => {
                operated.addresses(service, port_name).await.map_err(PoolerError::Api)?
            }
            _ => pooler.clone(),
        };
        if poolers.is_empty() {
            return Err(PoolerError::NoPoolers(service.clone(), port_name.clone()));
        }
        Ok(Consoles {
            poolers,
            user: admin_user.clone(),
            secret: login::secret(),
            dialing: login::dialing(),
            session: Arc::new(Session::untracked()),
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.poolers.len()
    }

    /// Every pooler lets the cluster's running transactions end and begins no new one; if one does not,
    /// all go on.
    pub(super) async fn hold(&self, cluster: &str, seconds: u32) -> Result<(), PoolerError> {
        let limit = Duration::from_secs(seconds.into()) + LOGIN_MAX;
        let held = self.tell_all(&format!("HOLD {} {seconds}", quoted(cluster)), limit).await;
        if held.is_err() {
            self.release(cluster).await;
        }
        held
    }

    /// As far as they can be reached; a hold lapses by itself.
    pub(super) async fn release(&self, cluster: &str) {
        let command = format!("RELEASE {}", quoted(cluster));
        for pooler in &self.poolers {
            if let Err(reason) = self.tell(*pooler, &command, COMMAND_MAX).await {
                complain(&format!("pooler {pooler} was not released, its hold lapses by itself: {reason}"));
            }
        }
    }

    /// Every pooler has the database in this cluster from now on.
    pub(super) async fn reroute(
        &self,
        database: &str,
        cluster: &str,
        seconds: u32,
    ) -> Result<(), PoolerError> {
        let limit = Duration::from_secs(seconds.into()) + LOGIN_MAX;
        self.tell_all(&format!("REROUTE {} {}", quoted(database), quoted(cluster)), limit).await
    }

    async fn tell_all(&self, command: &str, limit: Duration) -> Result<(), PoolerError> {
        let mut asking = JoinSet::new();
        for pooler in self.poolers.iter().copied() {
            let (consoles, command) = (self.clone(), command.to_owned());
            asking.spawn(async move { (pooler, consoles.tell(pooler, &command, limit).await) });
        }
        let mut refusal = None;
        while let Some(answer) = asking.join_next().await {
            let (pooler, outcome) = answer.expect("a task that is not aborted and does not panic ends");
            if let Err(reason) = outcome {
                refusal.get_or_insert(PoolerError::NotObeyed(pooler, reason));
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// What each pooler answers to these commands, or why it does not.
    pub(super) async fn ask(
        &self,
        commands: &'static [&'static str],
    ) -> Vec<(SocketAddr, Result<Vec<Rows>, String>)> {
        let mut asking = JoinSet::new();
        for pooler in self.poolers.iter().copied() {
            let consoles = self.clone();
            asking.spawn(async move { (pooler, consoles.ask_one(pooler, commands).await) });
        }
        let mut answers = asking.join_all().await;
        answers.sort_by_key(|(pooler, _)| *pooler);
        answers
    }

    async fn ask_one(&self, pooler: SocketAddr, commands: &[&str]) -> Result<Vec<Rows>, String> {
        let mut console = self.enter(pooler).await?;
        let mut answers = Vec::new();
        for command in commands {
            let answer = within(COMMAND_MAX, console.rows(command, &self.session)).await?;
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn tell(&self, pooler: SocketAddr, command: &str, limit: Duration) -> Result<(), String> {
        let mut console = self.enter(pooler).await?;
        within(limit, console.run(command, &self.session)).await
    }

    async fn enter(&self, pooler: SocketAddr) -> Result<ServerConnection, String> {
        let endpoint = Endpoint { host: Host::Tcp(pooler.ip().to_string()), port: pooler.port() };
        let own = Recipe::own(endpoint, &self.user, RESERVED_DATABASE, Arc::clone(&self.secret));
        let recipe = Recipe { timeout: Some(LOGIN_MAX), dialing: self.dialing.clone(), ..own };
        let opened = recipe.open(&self.session, 0, 0).await;
        opened.map(|(console, _)| console).map_err(|error| error.to_string())
    }
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, QueryError>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, answer).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// A name as the console reads it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
