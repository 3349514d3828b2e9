//! The judgement: [`lines`] makes of [`Facts`] one [`Line`] for each row of `CHECKS`. No clock, no network: the same facts give
//! the same lines.

mod pooling;
mod replication;
mod storage;

use serde::Serialize;

use super::facts::Facts;

/// One thing that has to be green.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its name, which does not change.
    pub id: &'static str,
    /// What is asked, in a few words.
    pub title: &'static str,
    /// Whether it holds.
    pub verdict: Verdict,
    /// What was found, with the numbers; why nothing was.
    pub found: String,
    /// What to do, where it does not hold.
    pub remedy: Option<String>,
}

/// How a line came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It could not be seen, or does not apply.
    Skipped,
    /// It does not hold, and one may live with that.
    Warn,
    /// It does not hold.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Skipped => "skipped",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// What came of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    verdict: Verdict,
    found: String,
    remedy: Option<String>,
}

impl Outcome {
    fn pass(found: impl Into<String>) -> Self {
        Outcome { verdict: Verdict::Pass, found: found.into(), remedy: None }
    }

    fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Outcome { verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Outcome { verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// How one thing is looked at. `Err` is why it is skipped.
struct Check {
    id: &'static str,
    title: &'static str,
    look: fn(&Facts) -> Result<Outcome, String>,
}

/// All of them, in the order in which they are printed. `docs/verify.md` has a section for each.
const CHECKS: &[Check] = &[
    Check { id: "cluster_phase", title: "The operator is content", look: replication::cluster_phase },
    Check { id: "instances_ready", title: "All instances are ready", look: replication::instances_ready },
    Check {
        id: "primary_confirmed",
        title: "One primary, and all agree on it",
        look: replication::primary_confirmed,
    },
    Check { id: "standbys_streaming", title: "All standbys stream", look: replication::standbys_streaming },
    Check {
        id: "standbys_synchronous",
        title: "Commits wait for standbys that are there",
        look: replication::standbys_synchronous,
    },
    Check {
        id: "quorum_instances",
        title: "Commits go on without one standby",
        look: replication::quorum_instances,
    },
    Check { id: "wal_archiving", title: "WAL is archived", look: replication::wal_archiving },
    Check { id: "base_backup", title: "There is a recent base backup", look: replication::base_backup },
    Check { id: "slot_wal_limit", title: "No slot can fill the volume", look: replication::slot_wal_limit },
    Check { id: "data_volumes", title: "Each instance has a volume of its own", look: storage::data_volumes },
    Check { id: "wal_volumes", title: "WAL has a volume of its own", look: storage::wal_volumes },
    Check {
        id: "volume_binding",
        title: "Volumes are made where the pod is scheduled",
        look: storage::volume_binding,
    },
    Check { id: "volume_expansion", title: "Volumes can grow", look: storage::volume_expansion },
    Check {
        id: "different_nodes",
        title: "Instances are on different nodes",
        look: storage::different_nodes,
    },
    Check {
        id: "different_zones",
        title: "Instances are in different zones",
        look: storage::different_zones,
    },
    Check { id: "anti_affinity", title: "They are kept apart", look: storage::anti_affinity },
    Check {
        id: "connection_budget",
        title: "The pools fit into max_connections",
        look: pooling::connection_budget,
    },
    Check { id: "pooler_reaches", title: "Each pooler reaches all instances", look: pooling::pooler_reaches },
    Check { id: "pooler_rights", title: "The pooler may read what it needs", look: pooling::pooler_rights },
    Check { id: "certificates", title: "No certificate ends soon", look: pooling::certificates },
];

/// What these facts mean.
pub fn lines(facts: &Facts) -> Vec<Line> {
    let line = |check: &Check| {
        let skipped = |found| Outcome { verdict: Verdict::Skipped, found, remedy: None };
        let Outcome { verdict, found, remedy } = (check.look)(facts).unwrap_or_else(skipped);
        Line { id: check.id, title: check.title, verdict, found, remedy }
    };
    CHECKS.iter().map(line).collect()
}

/// The gravest verdict that counts: warnings do only with `strict`.
pub fn fails(lines: &[Line], strict: bool) -> bool {
    let counts = |line: &Line| line.verdict == Verdict::Fail || strict && line.verdict == Verdict::Warn;
    lines.iter().any(counts)
}

#[cfg(test)]
mod tests;
