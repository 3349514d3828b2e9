//! `pgweir verify`: what has to be green before a cluster is called done, asked of the Kubernetes API, of the servers and
//! of the poolers. Nothing is changed. Read [`run`] first; [`checks`] judges what `gather` has found.

pub mod checks;
pub mod facts;
mod gather;
mod pools;
mod print;

use std::path::PathBuf;

use clap::{Args, FromArgMatches};
use thiserror::Error;

use self::checks::{Line, Verdict};
use super::consoles::PoolerArguments;
use super::said::say;
use super::switchover::Operator;
use crate::config::ConfigError;
use crate::net::tls::TlsError;
use crate::topology::kube::NoApi;
use crate::topology::kube::operate::ApiFailure;

/// The arguments of `pgweir verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArguments {
    /// The cluster's name in the poolers' settings
    cluster: String,
    /// Name of the Cluster object or Patroni's scope [default: as in the settings, else the cluster's name]
    #[arg(long)]
    name: Option<String>,
    /// Namespace [default: as in the settings, else the kubeconfig's]
    #[arg(long)]
    namespace: Option<String>,
    /// Whose cluster it is [default: as in the settings, else cnpg]
    #[arg(long, value_enum)]
    operator: Option<Operator>,
    /// The pooler's settings file: pool sizes, the servers' TLS, and monitor_user
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// User at the servers, a member of pg_monitor; its password is taken from PGWEIR_MONITOR_PASSWORD
    /// [default: monitor_user, else auth_user, of the settings]
    #[arg(long)]
    user: Option<String>,
    /// Database at the servers [default: as in the settings, else postgres]
    #[arg(long)]
    dbname: Option<String>,
    /// Port of the servers [default: as in the settings, else 5432]
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    poolers: PoolerArguments,
    /// There is no pooler to be looked at
    #[arg(long)]
    no_pooler: bool,
    /// How many poolers there may be, as of an autoscaler [default: those that are there]
    #[arg(long)]
    replicas: Option<u32>,
    /// The poolers' service account, whose rights are looked at [default: whoever runs this]
    #[arg(long)]
    service_account: Option<String>,
    /// A base backup may be so many hours old
    #[arg(long, value_name = "HOURS", default_value_t = 26)]
    backup_age_max: u32,
    /// How the lines are printed
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
}

/// How the lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Why there is nothing to judge.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// No way to the API.
    #[error(transparent)]
    NoApi(#[from] NoApi),
    /// The API does not show the cluster.
    #[error("the Kubernetes API: {0}")]
    Api(ApiFailure),
    /// The settings cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Their TLS is no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No operator whose objects say anything.
    #[error("cluster \"{0}\" has source={1} in the settings: verify reads the objects of cnpg and patroni")]
    Source(String, &'static str),
    /// No runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What fails of the cluster behind these arguments, as of the command line; poolers are not looked at.
pub(super) async fn failures(arguments: &[&str]) -> Result<Vec<Line>, VerifyError> {
    let command = VerifyArguments::augment_args(clap::Command::new("verify").no_binary_name(true));
    let matches = command.get_matches_from([arguments, &["--no-pooler"]].concat());
    let arguments = VerifyArguments::from_arg_matches(&matches).expect("they are as the caller says");
    let lines = checks::lines(&gather::facts(&arguments).await?);
    Ok(lines.into_iter().filter(|line| line.verdict == Verdict::Fail).collect())
}

/// Looks, and prints the lines on standard output. Returns whether nothing fails; with `--strict` warnings do.
///
/// Fails when there is nothing to judge, as the cluster cannot be seen.
pub fn run(arguments: &VerifyArguments) -> Result<bool, VerifyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(gather::facts(arguments))?;
    let lines = checks::lines(&facts);
    let text = match arguments.output {
        Output::Table => print::table(&arguments.cluster, &lines),
        Output::Json => print::json(&arguments.cluster, &lines),
    };
    say(text.trim_end());
    Ok(!checks::fails(&lines, arguments.strict))
}
