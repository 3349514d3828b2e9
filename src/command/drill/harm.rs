//! Drills that take pods away, or move the primary: [`Harmful`].

use std::time::{Duration, Instant};

use super::report::Report;
use super::workload::{Workload, rows};
use super::{CALM, DrillError, Site, Timeline, calm, conclude, no_primary};
use crate::command::switchover::{Operator, leadership};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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

/// A drill that does harm, and waits until clients write again.
pub(super) struct Harmful {
    name: &'static str,
    /// The primary before.
    primary: String,
    harm: Harm,
}

impl Harmful {
    /// The primary goes: by a switchover to this member, else its pod is deleted.
    pub(super) async fn failover(to: Option<&str>, site: &Site<'_>) -> Result<Harmful, DrillError> {
        let (primary, _) = members(site).await?;
        let harm = match to {
            None => Harm::DeletePrimary(primary.clone()),
            Some(to) if to == primary => {
                return Err(DrillError::Cluster(format!("{to} is the primary already")));
            }
            Some(to) => Harm::Switchover { from: primary.clone(), to: to.to_owned() },
        };
        Ok(Harmful { name: "failover", primary, harm })
    }

    /// So many standbys go, or all.
    pub(super) async fn quorum(count: Option<usize>, site: &Site<'_>) -> Result<Harmful, DrillError> {
        let (primary, others) = members(site).await?;
        if others.is_empty() {
            return Err(DrillError::Cluster("the cluster's object names no standbys".into()));
        }
        let count = count.unwrap_or(others.len());
        let harm = Harm::DeleteStandbys(others.into_iter().take(count).collect());
        Ok(Harmful { name: "quorum", primary, harm })
    }

    pub(super) fn question(&self) -> String {
        format!("{} Clients of it will notice.", self.harm.question())
    }

    pub(super) async fn play(&self, site: &Site<'_>) -> Result<(), DrillError> {
        let common = site.common;
        let mut timeline = Timeline::begin();
        let workload = calm(site, &mut timeline).await?;
        let harmed = Instant::now();
        workload.begin_harm(harmed);
        timeline.note(harmed, self.harm.words());
        self.do_harm(site).await?;
        let after = self.wait(site, &workload, &mut timeline, harmed).await;
        let met = workload.stop().await;
        let present = rows(&site.target, common.clients).await.map_err(DrillError::Sql)?;
        let mut report = Report {
            drill: self.name.to_owned(),
            cluster: common.cluster.clone(),
            harm: self.harm.words(),
            primary: (self.primary.clone(), after.clone().unwrap_or_default()),
            ..Report::default()
        };
        let kept = conclude(&mut report, &met.lock(), &present, timeline, &common.report)?;
        match (after, report.figures.lost) {
            (None, _) => Err(DrillError::NotBack(common.patience, kept)),
            (Some(_), 0) => Ok(()),
            (Some(_), lost) => Err(DrillError::Lost(lost, kept)),
        }
    }

    async fn do_harm(&self, site: &Site<'_>) -> Result<(), DrillError> {
        let operated = &site.operated;
        match &self.harm {
            Harm::DeletePrimary(pod) => operated.delete_pod(pod).await?,
            Harm::Switchover { from, to } => match site.common.operator {
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
        &self,
        site: &Site<'_>,
        workload: &Workload,
        timeline: &mut Timeline,
        harmed: Instant,
    ) -> Option<String> {
        let common = site.common;
        let mut primary = self.primary.clone();
        let mut all_back = None;
        while harmed.elapsed() < Duration::from_secs(common.patience.into()) {
            // The API may be away for a moment.
            if let Ok(now) = leadership(&site.operated, common.operator).await
                && let Some(name) = now.primary
                && name != primary
            {
                timeline.note(Instant::now(), format!("the API says that {name} is the primary"));
                primary = name;
            }
            // Before the primary has gone, clients still write to it. One that is deleted may come back.
            let may_be_back = match self.harm {
                Harm::DeletePrimary(_) => primary != self.primary || harmed.elapsed() > CALM,
                Harm::Switchover { .. } => primary != self.primary,
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
}

/// The primary, and the others.
async fn members(site: &Site<'_>) -> Result<(String, Vec<String>), DrillError> {
    let now = leadership(&site.operated, site.common.operator).await?;
    let primary = now.primary.ok_or_else(no_primary)?;
    let others = now.members.into_iter().filter(|member| *member != primary).collect();
    Ok((primary, others))
}
