//! `pgweir drill`: does to a cluster what a bad night would, while clients write numbered rows through the pooler, and says
//! what they saw: how long nothing was acknowledged, and what was lost. Read [`run`] first; `harm` takes pods away,
//! `pitr` restores a moment.

mod harm;
mod pitr;
pub mod report;
mod workload;

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use jiff::{Timestamp, Unit};
use thiserror::Error;
use tokio::sync::oneshot;

use self::harm::Harmful;
use self::pitr::{Pitr, PitrArguments};
use self::report::{Moment, Report};
use self::workload::{Met, Row, TABLE, Workload};
use super::login;
use super::said::{complain, say};
use super::switchover::Operator;
use super::verify::checks::Line;
use super::verify::{self, VerifyError};
use crate::auth::ServerSecret;
use crate::config::Host;
use crate::server::Session;
use crate::topology::kube::operate::{ApiFailure, Operated};
use crate::topology::kube::{Kubernetes, NoApi};

/// How long clients write before the harm, and after they are all back.
const CALM: Duration = Duration::from_secs(3);

/// The arguments of `pgweir drill`.
#[derive(Clone, Debug, clap::Args)]
pub struct DrillArguments {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Drill {
    /// The primary goes: its pod is deleted with no grace, or a switchover is asked for
    Failover {
        #[command(flatten)]
        common: Common,
        /// Ask for a switchover to this member instead
        #[arg(long, value_name = "MEMBER")]
        switchover: Option<String>,
    },
    /// Standbys go: what that does to commits
    Quorum {
        #[command(flatten)]
        common: Common,
        /// Delete the pods of so many standbys at once, with no grace [default: all]
        #[arg(long)]
        standbys: Option<usize>,
    },
    /// A table loses its rows: a new cluster is restored to the moment before, and must have them
    Pitr {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        own: PitrArguments,
    },
}

impl Drill {
    fn common(&self) -> &Common {
        match self {
            Drill::Failover { common, .. } | Drill::Quorum { common, .. } | Drill::Pitr { common, .. } => {
                common
            }
        }
    }
}

/// What all drills need to know.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// Name of the Cluster object or Patroni's scope
    cluster: String,
    /// Namespace [default: the kubeconfig's]
    #[arg(long)]
    namespace: Option<String>,
    /// Whose cluster it is
    #[arg(long, value_enum, default_value_t = Operator::Cnpg)]
    operator: Operator,
    /// Host of the pooler
    #[arg(long)]
    host: String,
    /// Port of the pooler
    #[arg(long, default_value_t = 5432)]
    port: u16,
    /// Database, as the pooler calls it
    #[arg(long)]
    database: String,
    /// Who may make a table there; the password is taken from PGPASSWORD
    #[arg(long)]
    user: String,
    /// How many clients write
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    clients: u32,
    /// Give up when not every client has written again after so many seconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=3600))]
    patience: u32,
    /// Folder for the report, as Markdown and as JSON
    #[arg(long, default_value = ".")]
    report: PathBuf,
    /// The pooler's settings, for what `pgweir verify` looks at before
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Go on although `pgweir verify` fails
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Why there was no drill, or what it has shown.
#[derive(Debug, Error)]
pub enum DrillError {
    /// No way to the API.
    #[error(transparent)]
    NoApi(#[from] NoApi),
    /// The API refused.
    #[error("the Kubernetes API: {0}")]
    Api(ApiFailure),
    /// It cannot be seen whether the cluster is well.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// It is not.
    #[error("nothing was done: the cluster is not well, --force goes on all the same{0}")]
    NotWell(String),
    /// Nobody said yes.
    #[error("nothing was done: {0}")]
    NotAgreed(String),
    /// The cluster is not what the drill needs.
    #[error("{0}")]
    Cluster(String),
    /// The pooler, or the server behind it, refused.
    #[error("through the pooler: {0}")]
    Sql(String),
    /// It took too long.
    #[error("not every client has written again within {0} s: look at the cluster. The report is {1}")]
    NotBack(u32, String),
    /// Something is gone that was acknowledged.
    #[error("{0} acknowledged rows are lost: the report is {1}")]
    Lost(u64, String),
    /// The restored cluster is not there in time.
    #[error("{0}")]
    NotRestored(String),
    /// It is not what the cluster was.
    #[error("the restored cluster is not as the cluster was at {0}: the report is {1}")]
    OtherRows(String, String),
    /// Somebody has interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// No runtime, or no report.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ApiFailure> for DrillError {
    fn from(failure: ApiFailure) -> Self {
        DrillError::Api(failure)
    }
}

/// Where clients connect to.
#[derive(Clone)]
struct Target {
    host: Host,
    port: u16,
    database: String,
    user: String,
    secret: Arc<ServerSecret>,
}

/// What every drill works with.
struct Site<'a> {
    common: &'a Common,
    operated: Operated,
    target: Target,
}

/// Which drill, with what it has found out beforehand.
enum Plan {
    Harm(Harmful),
    Pitr(Pitr),
}

/// Runs the drill, and says on standard output what it has found. What it has made is taken away in any case.
///
/// Fails when acknowledged rows are lost, and when not every client, or the restored cluster, comes in time.
pub fn run(arguments: &DrillArguments) -> Result<(), DrillError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let common = arguments.drill.common();
        let kubernetes = Kubernetes::infer().await?;
        let operated = kubernetes.operate(common.namespace.as_deref(), &common.cluster);
        let site = Site { common, operated, target: target(common) };
        let plan = match &arguments.drill {
            Drill::Failover { switchover, .. } => {
                Plan::Harm(Harmful::failover(switchover.as_deref(), &site).await?)
            }
            Drill::Quorum { standbys, .. } => Plan::Harm(Harmful::quorum(*standbys, &site).await?),
            Drill::Pitr { own, .. } => Plan::Pitr(Pitr::choose(own, &kubernetes, &site).await?),
        };
        if !common.force {
            verify(common).await?;
        }
        agree(common, &plan.question()).await?;
        prepare(&site.target).await?;
        let outcome = tokio::select! {
            outcome = plan.play(&site) => outcome,
            _ = tokio::signal::ctrl_c() => Err(DrillError::Interrupted),
        };
        if let Plan::Pitr(pitr) = &plan {
            pitr.clean_up().await;
        }
        clean_up(&site.target).await;
        outcome
    })
}

impl Plan {
    fn question(&self) -> String {
        match self {
            Plan::Harm(harmful) => harmful.question(),
            Plan::Pitr(pitr) => pitr.question(),
        }
    }

    async fn play(&self, site: &Site<'_>) -> Result<(), DrillError> {
        match self {
            Plan::Harm(harmful) => harmful.play(site).await,
            Plan::Pitr(pitr) => pitr.play(site).await,
        }
    }
}

/// A drill is for a cluster that is expected to stand it.
async fn verify(common: &Common) -> Result<(), DrillError> {
    let operator = common.operator.to_possible_value();
    let mut arguments = vec![common.cluster.as_str()];
    arguments.extend(common.namespace.iter().flat_map(|namespace| ["--namespace", namespace]));
    arguments.extend(common.config.iter().flat_map(|config| ["--config", config]));
    arguments.extend(operator.iter().flat_map(|value| ["--operator", value.get_name()]));
    let lines = verify::failures(&arguments).await?;
    let shown = |line: &Line| format!("\n  {}: {}", line.id, line.found);
    match lines.is_empty() {
        true => Ok(()),
        false => Err(DrillError::NotWell(lines.iter().map(shown).collect())),
    }
}

async fn agree(common: &Common, question: &str) -> Result<(), DrillError> {
    if common.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(DrillError::NotAgreed("nobody can be asked here; say --yes".into()));
    }
    let answer = answer_of_a_person(&format!("{question} Type the cluster's name to go on")).await?;
    match answer == common.cluster {
        true => Ok(()),
        false => Err(DrillError::NotAgreed("that is not its name".into())),
    }
}

/// What somebody types. An interrupt does not wait for it.
async fn answer_of_a_person(question: &str) -> io::Result<String> {
    let mut stdout = io::stdout();
    write!(stdout, "{question}: ")?;
    stdout.flush()?;
    let (says, said) = oneshot::channel();
    // No thread of the runtime's: its end would wait for it.
    std::thread::spawn(move || {
        let mut answer = String::new();
        // Nobody may listen any more.
        let _ = says.send(io::stdin().lock().read_line(&mut answer).map(|_| answer));
    });
    let answer = said.await.map_err(io::Error::other)??;
    Ok(answer.trim().to_owned())
}

fn no_primary() -> DrillError {
    DrillError::Cluster("the cluster has no primary now: this is not the time for a drill".into())
}

fn target(common: &Common) -> Target {
    Target {
        host: Host::Tcp(common.host.clone()),
        port: common.port,
        database: common.database.clone(),
        user: common.user.clone(),
        secret: login::secret(),
    }
}

/// The table must not be there: it may be another drill's.
async fn prepare(target: &Target) -> Result<(), DrillError> {
    let sql = format!(
        "CREATE TABLE {TABLE} (client int, number bigint, written timestamptz DEFAULT clock_timestamp(), \
         PRIMARY KEY (client, number))"
    );
    execute(target, &sql).await.map_err(|error| {
        DrillError::Sql(format!("{error} (if the table is left of an earlier drill: DROP TABLE {TABLE})"))
    })
}

async fn clean_up(target: &Target) {
    if let Err(error) = execute(target, &format!("DROP TABLE IF EXISTS {TABLE}")).await {
        complain(&format!("the table of the drill is still there ({error}): DROP TABLE {TABLE}"));
    }
}

async fn execute(target: &Target, sql: &str) -> Result<(), String> {
    let session = Session::untracked();
    let mut connection = target.open(&session).await?;
    connection.run(sql, &session).await.map_err(|error| error.to_string())
}

/// What has happened, in order, from the beginning on.
struct Timeline {
    began: Instant,
    /// The beginning, RFC 3339.
    date: String,
    moments: Vec<(Instant, String)>,
}

impl Timeline {
    fn begin() -> Timeline {
        let now = Timestamp::now();
        let date = now.round(Unit::Second).unwrap_or(now).to_string();
        Timeline { began: Instant::now(), date, moments: Vec::new() }
    }

    fn note(&mut self, at: Instant, what: String) {
        say(&format!("{:>8.3} s  {what}", at.saturating_duration_since(self.began).as_secs_f64()));
        self.moments.push((at, what));
    }

    fn sorted(mut self) -> Vec<Moment> {
        self.moments.sort_by_key(|(at, _)| *at);
        let moment = |(at, what): (Instant, String)| Moment {
            at_s: at.saturating_duration_since(self.began).as_secs_f64(),
            what,
        };
        self.moments.into_iter().map(moment).collect()
    }
}

/// Clients that have written for a while, undisturbed.
async fn calm(site: &Site<'_>, timeline: &mut Timeline) -> Result<Workload, DrillError> {
    let clients = site.common.clients;
    let workload = Workload::start(&site.target, clients);
    timeline.note(timeline.began, format!("{clients} clients begin to write"));
    tokio::time::sleep(CALM).await;
    if !workload.met.lock().acknowledged.is_empty() {
        return Ok(workload);
    }
    let errors = workload.stop().await.lock().errors.keys().cloned().collect::<Vec<_>>().join("; ");
    Err(DrillError::Sql(format!("no row was acknowledged within {} s: {errors}", CALM.as_secs())))
}

/// Puts what clients have met into the report, beside the rows that are there, prints it and keeps it. Returns where.
fn conclude(
    report: &mut Report,
    met: &Met,
    present: &BTreeSet<Row>,
    mut timeline: Timeline,
    folder: &Path,
) -> Result<String, DrillError> {
    fill(report, met, present, &mut timeline);
    report.began.clone_from(&timeline.date);
    report.timeline = timeline.sorted();
    let kept = report.keep(folder)?.display().to_string();
    say(&format!("\n{}", report.markdown()));
    say(&format!("report: {kept}"));
    Ok(kept)
}

fn fill(report: &mut Report, met: &Met, present: &BTreeSet<Row>, timeline: &mut Timeline) {
    if let Some((at, error)) = &met.first_error {
        timeline.note(*at, format!("the first error of a client: {error}"));
    }
    if let Some((gap, end)) = met.outage {
        timeline.note(end - gap, "the last row before the longest pause is acknowledged".to_owned());
        timeline.note(end, "the first row after it is acknowledged".to_owned());
        report.figures.outage_s = gap.as_secs_f64();
    }
    let lost: Vec<_> = met.acknowledged.difference(present).copied().collect();
    report.set_lost(&lost);
    let there = met.unknown.intersection(present).count() as u64;
    let figures = &mut report.figures;
    figures.acknowledged = met.acknowledged.len() as u64;
    figures.unknown = (there, met.unknown.len() as u64 - there);
    figures.longest_wait_s = met.longest_wait.as_secs_f64();
    figures.errors = met.errors.clone();
}
