//! `pgweir switchover`: a planned move of the primary without an error for any client. It has every pooler
//! hold its clients at a transaction boundary, asks the operator to move the primary, and lets the
//! clients go on at the new one. Read [`run`] first.

use std::time::{Duration, Instant};

use thiserror::Error;

use super::consoles::{Consoles, PoolerArguments, PoolerError};
use super::said::say;
use crate::topology::kube::operate::{ApiFailure, Leadership, Operated};
use crate::topology::kube::{Kubernetes, NoApi};

/// How often it is looked whether the primary has moved.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The arguments of `pgweir switchover`.
#[derive(Clone, Debug, clap::Args)]
pub struct SwitchoverArguments {
    /// The cluster's name in the poolers' settings
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
    #[command(flatten)]
    poolers: PoolerArguments,
    /// Clients are held for at most so many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    hold: u32,
}

/// Who moves the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Operator {
    /// CloudNativePG
    Cnpg,
    /// Patroni, alone or with the operators of Zalando and Crunchy
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
    /// The member cannot become the primary.
    #[error("{0}")]
    Member(String),
    /// A pooler did not hold; all were released, and nothing was moved.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// The hold was over before the primary had moved. Nobody knows whether the move has begun, so what was
    /// asked for is not taken back by itself.
    #[error(
        "the primary has not moved to {to} within {seconds} s. The request stands: the operator may still carry \
         it out, and clients wait until it has. To take it back: pgweir switchover {cluster} --to {from}"
    )]
    NotMoved {
        /// The cluster's name in the poolers' settings.
        cluster: String,
        /// The primary as before.
        from: String,
        /// Who was asked for.
        to: String,
        /// `--hold`
        seconds: u32,
    },
    /// No runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<ApiFailure> for SwitchoverError {
    fn from(failure: ApiFailure) -> Self {
        SwitchoverError::Api(failure)
    }
}

/// Moves the primary, and reports on standard output what was done. Where the primary is the one that it
/// shall move to, and another one was asked for, that request is taken back.
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
    if let Some(asked_for) = before.request_to_take_back(&arguments.to) {
        take_back(&operated, arguments, &before).await?;
        say(&format!("taken back: primary={} was_asked_for={asked_for}", arguments.to));
        return Ok(());
    }
    let from = check(&before, &arguments.to)?;
    let consoles = Consoles::find(&arguments.poolers, Some(&operated)).await?;
    say(&format!("primary={from} target={} poolers={}", arguments.to, consoles.count()));
    let began = Instant::now();
    consoles.hold(&arguments.cluster, arguments.hold).await?;
    say(&format!("held: all transactions have ended after_ms={}", began.elapsed().as_millis()));
    let moved = promote_and_wait(&operated, arguments, &from, began).await;
    consoles.release(&arguments.cluster).await;
    moved?;
    say(&format!("moved: primary={} held_ms={}", arguments.to, began.elapsed().as_millis()));
    Ok(())
}

/// Whoever was asked for is not any more; nobody is held for that.
async fn take_back(
    operated: &Operated,
    arguments: &SwitchoverArguments,
    before: &Leadership,
) -> Result<(), ApiFailure> {
    match arguments.operator {
        Operator::Cnpg => operated.cnpg_take_back(before).await,
        Operator::Patroni => operated.patroni_take_back().await,
    }
}

pub(super) async fn leadership(operated: &Operated, operator: Operator) -> Result<Leadership, ApiFailure> {
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
    Err(SwitchoverError::NotMoved {
        cluster: arguments.cluster.clone(),
        from: from.to_owned(),
        to: arguments.to.clone(),
        seconds: arguments.hold,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_another_member_is_taken_back_by_asking_for_the_primary() {
        let check = |primary: Option<&str>, requested: Option<&str>, to: &str, expected: Option<&str>| {
            let requested = requested.map(str::to_owned);
            let leadership =
                Leadership { primary: primary.map(str::to_owned), requested, ..Leadership::default() };
            assert_eq!(leadership.request_to_take_back(to), expected, "{leadership:?} {to}");
        };
        check(Some("pg-1"), Some("pg-2"), "pg-1", Some("pg-2"));
        check(Some("pg-1"), Some("pg-1"), "pg-1", None);
        check(Some("pg-1"), None, "pg-1", None);
        check(Some("pg-1"), Some("pg-2"), "pg-2", None);
        // A failover: the operator itself is looking for a primary.
        check(Some("pg-1"), Some("pending"), "pg-1", None);
        check(None, Some("pg-2"), "pg-1", None);
    }

    #[test]
    fn only_another_member_can_take_over() {
        let leadership = |primary: Option<&str>| Leadership {
            primary: primary.map(str::to_owned),
            members: vec!["pg-1".into(), "pg-2".into()],
            ..Leadership::default()
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
