//! The drill of a restore to a moment, [`Pitr`]: the drill's own table loses its rows, and a new cluster, made from the
//! last base backup and the archived WAL, must have them as they were just before.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::report::{Report, Restored};
use super::workload::{Row, TABLE, Workload, rows};
use super::{
    CALM, Common, DrillError, Site, Target, Timeline, answer_of_a_person, calm, conclude, execute, no_primary,
};
use crate::command::said::{complain, say};
use crate::command::switchover::{Operator, leadership};
use crate::config::Host;
use crate::server::Session;
use crate::topology::kube::Kubernetes;
use crate::topology::kube::operate::Operated;
use crate::topology::kube::restore::{Progress, no_archive};

/// How long rows that are under way may take to end.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether WAL is archived, and the restored cluster there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A moment in UTC, to the microsecond, as commits have it; `recovery_target_time` takes no T and no Z.
const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US\"+00\"')";

/// What `pgweir drill pitr` takes besides what all drills take.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PitrArguments {
    /// Name of the cluster that is made [default: the cluster's, and -pitr]
    #[arg(long, value_name = "NAME")]
    restore_as: Option<String>,
    /// Port of its server
    #[arg(long, default_value_t = 5432)]
    server_port: u16,
    /// Give up when the WAL is not archived, or the new cluster not there, after so many seconds
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=604_800))]
    restore_patience: u32,
    /// Do not delete the new cluster at the end
    #[arg(long)]
    keep: bool,
}

/// The drill, with the cluster that it will make.
pub(super) struct Pitr {
    own: PitrArguments,
    /// The primary of the cluster.
    primary: String,
    /// The cluster to be made.
    name: String,
    made: Operated,
    /// What tells our cluster from one of this name that somebody else makes.
    mark: String,
    /// Whether the new cluster stays.
    kept: std::cell::Cell<bool>,
}

/// The moment before the damage, and the damage.
struct Damage {
    /// In PostgreSQL's words, UTC.
    target_time: String,
    /// The rows at that moment.
    rows: BTreeSet<Row>,
    /// When it was done.
    at: Instant,
    /// The file of WAL that has it.
    wal: String,
    /// The database, as its server calls it.
    database: String,
}

impl Pitr {
    /// Refuses for an operator that cannot be asked, and when there is a cluster of the new one's name.
    pub(super) async fn choose(
        own: &PitrArguments,
        kubernetes: &Kubernetes,
        site: &Site<'_>,
    ) -> Result<Pitr, DrillError> {
        let Common { operator, cluster, namespace, .. } = site.common;
        if *operator != Operator::Cnpg {
            let text = "pitr asks CloudNativePG for the new cluster: with another operator, restore by its own means";
            return Err(DrillError::Cluster(text.into()));
        }
        let primary = leadership(&site.operated, *operator).await?.primary.ok_or_else(no_primary)?;
        let name = own.restore_as.clone().unwrap_or_else(|| format!("{cluster}-pitr"));
        let made = kubernetes.operate(namespace.as_deref(), &name);
        if made.cnpg_exists().await? {
            let text = format!("there is a Cluster {name} already: --restore-as takes another name");
            return Err(DrillError::Cluster(text));
        }
        if !site.operated.cnpg_is_archived().await? {
            return Err(DrillError::Cluster(no_archive(cluster)));
        }
        let mark = format!("{:016x}", rand::random::<u64>());
        Ok(Pitr { own: own.clone(), primary, name, made, mark, kept: own.keep.into() })
    }

    pub(super) fn question(&self) -> String {
        format!(
            "This makes a Cluster {} of one instance, with the resources and volumes that an instance has, and \
             deletes rows in the drill's own table alone.",
            self.name
        )
    }

    pub(super) async fn play(&self, site: &Site<'_>) -> Result<(), DrillError> {
        let common = site.common;
        let mut timeline = Timeline::begin();
        let workload = calm(site, &mut timeline).await?;
        let damage = damage(site, &workload, &mut timeline).await?;
        let archived = self.until_archived(site, &damage, &mut timeline).await;
        // What clients feel of it, and rows that are newer than the damage.
        tokio::time::sleep(CALM.saturating_sub(damage.at.elapsed())).await;
        let met = workload.stop().await;
        let mut present = rows(&site.target, common.clients).await.map_err(DrillError::Sql)?;
        timeline.note(Instant::now(), "the clients have ended".to_owned());
        let outcome = match archived {
            Ok(archived) => self.restore(site, &damage, archived, &mut timeline).await,
            Err(error) => Err(error),
        };
        // Of a cluster that did not come nobody knows which rows it would have had.
        present.extend(outcome.as_ref().map_or(&damage.rows, |(restored, _)| restored));
        if let Err(error) = &outcome {
            timeline.note(Instant::now(), error.to_string());
        }
        let mut report = Report {
            drill: "pitr".to_owned(),
            cluster: common.cluster.clone(),
            harm: format!("all rows of {TABLE} were deleted"),
            primary: (self.primary.clone(), self.primary.clone()),
            restored: outcome.as_ref().ok().map(|(_, figures)| figures.clone()),
            ..Report::default()
        };
        let kept = conclude(&mut report, &met.lock(), &present, timeline, &common.report)?;
        let (restored, _) = outcome?;
        self.offer(common).await?;
        match (report.figures.lost, restored == damage.rows) {
            (0, true) => Ok(()),
            (0, false) => Err(DrillError::OtherRows(damage.target_time, kept)),
            (lost, _) => Err(DrillError::Lost(lost, kept)),
        }
    }

    /// Has the new cluster made, and reads its rows.
    async fn restore(
        &self,
        site: &Site<'_>,
        damage: &Damage,
        archived: Duration,
        timeline: &mut Timeline,
    ) -> Result<(BTreeSet<Row>, Restored), DrillError> {
        let asked = Instant::now();
        site.operated.cnpg_restore(&self.name, &damage.target_time, &self.mark).await?;
        timeline.note(asked, format!("Cluster {} is asked for, as of {}", self.name, damage.target_time));
        let target = self.until_restored(site, damage, asked, timeline).await?;
        let restored_s = asked.elapsed().as_secs_f64();
        timeline.note(Instant::now(), format!("the server of {} takes logins as a primary", self.name));
        let rows = rows(&target, site.common.clients).await.map_err(DrillError::NotRestored)?;
        let figures = Restored {
            cluster: self.name.clone(),
            target_time: damage.target_time.clone(),
            rows_then: damage.rows.len() as u64,
            rows_restored: rows.len() as u64,
            rows_too_many: rows.difference(&damage.rows).count() as u64,
            archived_s: archived.as_secs_f64(),
            restored_s,
        };
        Ok((rows, figures))
    }

    /// Until the server has archived the WAL with the damage: nothing can be restored up to a moment that no later
    /// commit in the archive follows. Returns how long that took.
    async fn until_archived(
        &self,
        site: &Site<'_>,
        damage: &Damage,
        timeline: &mut Timeline,
    ) -> Result<Duration, DrillError> {
        if let Err(reason) = ask(&site.target, "SELECT pg_switch_wal()").await {
            let text = format!(
                "the file of WAL is archived when it is full, or after archive_timeout: pg_switch_wal() may not \
                 be used ({reason})"
            );
            timeline.note(Instant::now(), text);
        }
        // Of names: the timeline first, then the place in it. What else is archived is shorter, or has a name behind.
        let sql = format!(
            "SELECT concat((left(last_archived_wal, 24) COLLATE \"C\" >= '{}')::text, ' ', last_archived_wal, \
             ', ', failed_count) FROM pg_stat_archiver",
            damage.wal
        );
        let mut last = String::new();
        while damage.at.elapsed() < self.patience() {
            // The connection may be lost, and the server another one.
            match ask(&site.target, &sql).await {
                Ok(answer) if answer.starts_with("true ") => {
                    timeline.note(Instant::now(), format!("WAL {} is archived", damage.wal));
                    return Ok(damage.at.elapsed());
                }
                Ok(answer) => last = answer,
                Err(error) => last = error,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let last = last.trim_start_matches("false ");
        Err(DrillError::NotRestored(format!(
            "WAL {} was not archived within {} s, so nobody could restore it (last archived, failures: {last})",
            damage.wal, self.own.restore_patience
        )))
    }

    /// Until the new cluster's server takes logins as a primary. Returns how it is reached.
    async fn until_restored(
        &self,
        site: &Site<'_>,
        damage: &Damage,
        asked: Instant,
        timeline: &mut Timeline,
    ) -> Result<Target, DrillError> {
        let mut phase = String::new();
        let mut last = "its object has no phase".to_owned();
        while asked.elapsed() < self.patience() {
            match self.made.cnpg_progress().await {
                Ok(Progress { phase: now, address }) => {
                    if now != phase {
                        timeline.note(Instant::now(), format!("{}: {now}", self.name));
                        phase.clone_from(&now);
                        last = format!("its phase is {now}");
                    }
                    if let Some(address) = address {
                        let target = Target {
                            host: Host::Tcp(address),
                            port: self.own.server_port,
                            database: damage.database.clone(),
                            ..site.target.clone()
                        };
                        match ask(&target, "SELECT pg_is_in_recovery()::text").await {
                            Ok(answer) if answer == "false" => return Ok(target),
                            Ok(_) => last = "its server is still in recovery".to_owned(),
                            Err(error) => last = format!("its server: {error}"),
                        }
                    }
                }
                // The API may be away for a moment.
                Err(failure) => last = format!("the Kubernetes API: {failure}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(DrillError::NotRestored(format!(
            "Cluster {} was not there within {} s: {last}",
            self.name, self.own.restore_patience
        )))
    }

    /// Whether the new cluster stays, and how clients would come to it.
    async fn offer(&self, common: &Common) -> Result<(), DrillError> {
        let may_ask = !common.yes && std::io::stdin().is_terminal();
        let question = format!("Type \"keep\" to keep Cluster {}, else it is deleted", self.name);
        let stays = self.own.keep || (may_ask && answer_of_a_person(&question).await? == "keep");
        self.kept.set(stays);
        let namespace =
            common.namespace.iter().map(|name| format!(" --namespace {name}")).collect::<String>();
        let database = &common.database;
        let (from, to) = (&common.cluster, &self.name);
        match stays {
            true => say(&format!(
                "Cluster {to} stays. To move clients of the database there, once the poolers' settings have a \
                 cluster {to}:\n  pgweir reroute {database} --from {from} --to {to}{namespace}"
            )),
            false => say(&format!(
                "After a real loss, --keep keeps the restored cluster, and pgweir reroute {database} --from \
                 {from} --to {to} moves clients there"
            )),
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.own.restore_patience.into())
    }

    /// Deletes the cluster that was made, unless it stays.
    pub(super) async fn clean_up(&self) {
        if self.kept.get() {
            return;
        }
        if let Err(failure) = self.made.cnpg_delete(&self.mark).await {
            complain(&format!("Cluster {} may still be there ({failure}): delete it", self.name));
        }
    }
}

/// While no row is under way: notes what is there and when, and deletes it.
async fn damage(site: &Site<'_>, workload: &Workload, timeline: &mut Timeline) -> Result<Damage, DrillError> {
    let limit = || DrillError::Sql(format!("rows under way have not ended within {} s", QUIET_MAX.as_secs()));
    let quiet = timeout(QUIET_MAX, workload.quiet()).await.map_err(|_| limit())?;
    let there = rows(&site.target, site.common.clients).await.map_err(DrillError::Sql)?;
    let target_time = ask(&site.target, NOW).await.map_err(DrillError::Sql)?;
    let database = ask(&site.target, "SELECT current_database()").await.map_err(DrillError::Sql)?;
    timeline.note(Instant::now(), format!("{} rows are there at {target_time}", there.len()));
    let at = Instant::now();
    workload.begin_harm(at);
    execute(&site.target, &format!("DELETE FROM {TABLE}")).await.map_err(DrillError::Sql)?;
    timeline.note(at, format!("all rows of {TABLE} are deleted"));
    let wal = ask(&site.target, "SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    let wal = wal.map_err(DrillError::Sql)?;
    drop(quiet);
    Ok(Damage { target_time, rows: there, at, wal, database })
}

/// The one value that a server answers.
async fn ask(target: &Target, sql: &str) -> Result<String, String> {
    let session = Session::untracked();
    let mut connection = target.open(&session).await?;
    let answer = connection.first_value(sql, &session).await.map_err(|error| error.to_string())?;
    Ok(answer.unwrap_or_default())
}
