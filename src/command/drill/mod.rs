//! `pgweir drill`: does to a cluster what a bad night would, while clients write numbered rows through the pooler, and says
//! what they saw: how long nothing was acknowledged, and what was lost. Read [`run`] first.

pub mod report;
mod workload;

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use jiff::{Timestamp, Unit};
use thiserror::Error;

use self::report::{Figures, Moment, Report};
use self::workload::{Met, TABLE, Workload, rows};
use super::login;
use super::switchover::{Operator, leadership};
use super::verify::checks::Line;
use super::verify::{self, VerifyError};
use crate::auth::ServerSecret;
use crate::config::Host;
use crate::server::Session;
use crate::topology::kube::operate::{ApiFailure, Operated};
use crate::topology::kube::{Kubernetes, NoApi};

/// How long clients write before the harm, and after they are all back.
const CALM: Duration = Duration::from_secs(3);

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
    /// Somebody has interrupted it.
    #[error("interrupted; the table {TABLE} is dropped")]
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

/// What is done to the cluster.
enum Harm {
    DeletePrimary(String),
    Switchover { from: String, to: String },
    DeleteStandbys(Vec<String>),
}

impl Harm {
    fn words(&self) -> String {
        match self {
            Harm::DeletePrimary(pod) => format!("pod {pod}, the primary, was deleted with no grace"),
            Harm::Switchover { from, to } => format!("a switchover from {from} to {to} was asked for"),
            Harm::DeleteStandbys(pods) => {
                format!("the pods of standbys were deleted with no grace: {}", pods.join(", "))
            }
        }
    }

    fn question(&self) -> String {
        match self {
            Harm::DeletePrimary(pod) => format!("This deletes pod {pod}, the primary, with no grace."),
            Harm::Switchover { from, to } => format!("This moves the primary from {from} to {to}."),
            Harm::DeleteStandbys(pods) => {
                format!("This deletes the pods {} with no grace: commits may wait for them.", pods.join(", "))
            }
        }
    }
}

/// Runs the drill, and says on standard output what it has found. The table of the drill is dropped in any case.
///
/// Fails when acknowledged rows are lost, and when not every client comes back in time.
pub fn run(arguments: &DrillArguments) -> Result<(), DrillError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (name, common) = match &arguments.drill {
            Drill::Failover { common, .. } => ("failover", common),
            Drill::Quorum { common, .. } => ("quorum", common),
        };
        let kubernetes = Kubernetes::infer().await?;
        let operated = kubernetes.operate(common.namespace.as_deref(), &common.cluster);
        let (primary, harm) = choose(&arguments.drill, common, &operated).await?;
        if !common.force {
            verify(common).await?;
        }
        agree(common, &harm)?;
        let target = target(common);
        prepare(&target).await?;
        let outcome = tokio::select! {
            outcome = play(name, common, &operated, &target, primary, harm) => outcome,
            _ = tokio::signal::ctrl_c() => Err(DrillError::Interrupted),
        };
        clean_up(&target).await;
        outcome
    })
}

/// The primary, and what is to be done.
async fn choose(drill: &Drill, common: &Common, operated: &Operated) -> Result<(String, Harm), DrillError> {
    let now = leadership(operated, common.operator).await?;
    let none =
        || DrillError::Cluster("the cluster has no primary now: this is not the time for a drill".into());
    let primary = now.primary.ok_or_else(none)?;
    let harm = match drill {
        Drill::Failover { switchover: None, .. } => Harm::DeletePrimary(primary.clone()),
        Drill::Failover { switchover: Some(to), .. } if *to == primary => {
            return Err(DrillError::Cluster(format!("{to} is the primary already")));
        }
        Drill::Failover { switchover: Some(to), .. } => {
            Harm::Switchover { from: primary.clone(), to: to.clone() }
        }
        Drill::Quorum { standbys, .. } => {
            let others: Vec<String> = now.members.into_iter().filter(|member| *member != primary).collect();
            if others.is_empty() {
                return Err(DrillError::Cluster("the cluster's object names no standbys".into()));
            }
            let count = standbys.unwrap_or(others.len()).min(others.len());
            Harm::DeleteStandbys(others.into_iter().take(count).collect())
        }
    };
    Ok((primary, harm))
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

fn agree(common: &Common, harm: &Harm) -> Result<(), DrillError> {
    if common.yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(DrillError::NotAgreed("nobody can be asked here; say --yes".into()));
    }
    print!("{} Clients of it will notice. Type the cluster's name to go on: ", harm.question());
    io::stdout().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match answer.trim() == common.cluster {
        true => Ok(()),
        false => Err(DrillError::NotAgreed("that is not its name".into())),
    }
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
        eprintln!("the table of the drill is still there ({error}): DROP TABLE {TABLE}");
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
    moments: Vec<(Instant, String)>,
}

impl Timeline {
    fn note(&mut self, at: Instant, what: String) {
        println!("{:>8.3} s  {what}", at.saturating_duration_since(self.began).as_secs_f64());
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

async fn play(
    name: &str,
    common: &Common,
    operated: &Operated,
    target: &Target,
    before: String,
    harm: Harm,
) -> Result<(), DrillError> {
    let started = Timestamp::now().round(Unit::Second).unwrap_or_else(|_| Timestamp::now());
    let mut timeline = Timeline { began: Instant::now(), moments: Vec::new() };
    let workload = Workload::start(target, common.clients);
    timeline.note(timeline.began, format!("{} clients begin to write", common.clients));
    tokio::time::sleep(CALM).await;
    if workload.met.lock().acknowledged.is_empty() {
        let errors = workload.stop().await.lock().errors.keys().cloned().collect::<Vec<_>>().join("; ");
        return Err(DrillError::Sql(format!(
            "no row was acknowledged within {} s: {errors}",
            CALM.as_secs()
        )));
    }
    let harmed = Instant::now();
    workload.begin_harm(harmed);
    timeline.note(harmed, harm.words());
    let after = match do_harm(&harm, common, operated).await {
        Ok(()) => wait(&harm, common, operated, &workload, &mut timeline, &before, harmed).await,
        Err(error) => {
            workload.stop().await;
            return Err(error);
        }
    };
    let met = workload.stop().await;
    let mut report = Report {
        drill: name.to_owned(),
        cluster: common.cluster.clone(),
        harm: harm.words(),
        began: started.to_string(),
        primary: (before, after.clone().unwrap_or_default()),
        timeline: Vec::new(),
        figures: Figures::default(),
    };
    let present = rows(target, common.clients).await.map_err(DrillError::Sql)?;
    fill(&mut report, &met.lock(), &present, &mut timeline);
    report.timeline = timeline.sorted();
    let kept = report.keep(&common.report)?.display().to_string();
    println!("\n{}", report.markdown());
    println!("report: {kept}");
    match (after, report.figures.lost) {
        (None, _) => Err(DrillError::NotBack(common.patience, kept)),
        (Some(_), 0) => Ok(()),
        (Some(_), lost) => Err(DrillError::Lost(lost, kept)),
    }
}

async fn do_harm(harm: &Harm, common: &Common, operated: &Operated) -> Result<(), DrillError> {
    match harm {
        Harm::DeletePrimary(pod) => operated.delete_pod(pod).await?,
        Harm::Switchover { from, to } => match common.operator {
            Operator::Cnpg => operated.cnpg_promote(to).await?,
            Operator::Patroni => operated.patroni_promote(from, to).await?,
        },
        Harm::DeleteStandbys(pods) => {
            for pod in pods {
                operated.delete_pod(pod).await?;
            }
        }
    }
    Ok(())
}

/// Until every client has written again, and then for a while; `None` if that does not come. Returns the primary.
async fn wait(
    harm: &Harm,
    common: &Common,
    operated: &Operated,
    workload: &Workload,
    timeline: &mut Timeline,
    before: &str,
    harmed: Instant,
) -> Option<String> {
    let mut primary = before.to_owned();
    let mut all_back = None;
    while harmed.elapsed() < Duration::from_secs(common.patience.into()) {
        // The API may be away for a moment.
        if let Ok(now) = leadership(operated, common.operator).await
            && let Some(name) = now.primary
            && name != primary
        {
            timeline.note(Instant::now(), format!("the API says that {name} is the primary"));
            primary = name;
        }
        // Before the primary has gone, clients still write to it. One that is deleted may come back.
        let may_be_back = match harm {
            Harm::DeletePrimary(_) => primary != before || harmed.elapsed() > CALM,
            Harm::Switchover { .. } => primary != before,
            Harm::DeleteStandbys(_) => true,
        };
        if all_back.is_none() && may_be_back && workload.is_back() {
            timeline.note(Instant::now(), "every client has written again".to_owned());
            all_back = Some(Instant::now());
        }
        if all_back.is_some_and(|at| at.elapsed() > CALM) {
            return Some(primary);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

fn fill(report: &mut Report, met: &Met, present: &BTreeSet<(u32, u64)>, timeline: &mut Timeline) {
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
