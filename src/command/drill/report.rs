//! What a drill has found: [`Report`], for people as Markdown and for programs as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Lost rows are named up to so many.
const ROWS_SHOWN: usize = 20;

/// What a drill has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// failover, quorum or pitr.
    pub drill: String,
    /// The cluster.
    pub cluster: String,
    /// What was done to it.
    pub harm: String,
    /// When it began, RFC 3339.
    pub began: String,
    /// The primary before and after.
    pub primary: (String, String),
    /// What happened when.
    pub timeline: Vec<Moment>,
    /// The figures.
    pub figures: Figures,
    /// Of pitr: what became of the restored cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// A cluster that was restored to a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// Its name.
    pub cluster: String,
    /// The moment, in PostgreSQL's words and UTC, by the clock of the primary.
    pub target_time: String,
    /// Rows of the table at that moment.
    pub rows_then: u64,
    /// Rows of it in the restored cluster.
    pub rows_restored: u64,
    /// Of these: rows that were not there at that moment.
    pub rows_too_many: u64,
    /// From the damage until the WAL that has it was archived, seconds: so long nobody can restore what is newer.
    pub archived_s: f64,
    /// From asking for the cluster until its server took a login as a primary, seconds (RTO).
    pub restored_s: f64,
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// In words.
    pub what: String,
}

/// What clients saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The longest time in which no client's row was acknowledged, seconds (RTO).
    pub outage_s: f64,
    /// Acknowledged rows that are not there any more (RPO).
    pub lost: u64,
    /// The first of them: client and number.
    pub lost_rows: Vec<(u32, u64)>,
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// Rows whose client was told nothing, and that are there; and that are not.
    pub unknown: (u64, u64),
    /// The longest time that one acknowledged row took, seconds.
    pub longest_wait_s: f64,
    /// Errors that clients saw, by what they were told.
    pub errors: BTreeMap<String, u64>,
}

impl Report {
    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let figures = &self.figures;
        let errors: u64 = figures.errors.values().sum();
        let (there, gone) = figures.unknown;
        write!(
            text,
            "# Drill: {} of cluster {}\n\n{}: {}. The primary was {}, and is {}.\n\n\
             | figure | |\n|---|---|\n\
             | outage as clients saw it (RTO) | {:.3} s |\n\
             | acknowledged rows lost (RPO) | {} of {} |\n\
             | errors that clients saw | {errors} |\n\
             | longest wait of one row | {:.3} s |\n\
             | rows without an answer | {there} there, {gone} not |\n",
            self.drill,
            self.cluster,
            self.began,
            self.harm,
            self.primary.0,
            self.primary.1,
            figures.outage_s,
            figures.lost,
            figures.acknowledged,
            figures.longest_wait_s,
        )
        .expect("a String takes any text");
        if let Some(restored) = &self.restored {
            write!(
                text,
                "| restored to | {} |\n\
                 | rows then, and restored | {} and {}, {} too many |\n\
                 | WAL archived after | {:.3} s |\n\
                 | cluster {} restored after (RTO) | {:.3} s |\n",
                restored.target_time,
                restored.rows_then,
                restored.rows_restored,
                restored.rows_too_many,
                restored.archived_s,
                restored.cluster,
                restored.restored_s,
            )
            .expect("a String takes any text");
        }
        text.push_str("\n## Timeline\n\n");
        for moment in &self.timeline {
            writeln!(text, "- {:.3} s: {}", moment.at_s, moment.what).expect("a String takes any text");
        }
        if !figures.errors.is_empty() {
            text.push_str("\n## What clients were told\n\n");
            for (error, count) in &figures.errors {
                writeln!(text, "- {count} times: {}", error.replace('\n', " "))
                    .expect("a String takes any text");
            }
        }
        if figures.lost > 0 {
            let shown: Vec<_> =
                figures.lost_rows.iter().map(|(client, number)| format!("{client}/{number}")).collect();
            writeln!(text, "\n## Lost rows (client/number)\n\n{}", shown.join(", "))
                .expect("a String takes any text");
        }
        text
    }

    /// Notes what is lost.
    pub(super) fn set_lost(&mut self, lost: &[(u32, u64)]) {
        self.figures.lost = lost.len() as u64;
        self.figures.lost_rows = lost.iter().take(ROWS_SHOWN).copied().collect();
    }

    /// Writes both into a folder, and returns where the one for people is.
    pub(super) fn keep(&self, folder: &Path) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let time = self.began.replace([':', '-'], "");
        let stem = format!("drill-{}-{}-{time}", self.drill, self.cluster);
        let json = serde_json::to_string_pretty(self).expect("its maps have texts as keys");
        std::fs::write(folder.join(format!("{stem}.json")), json + "\n")?;
        let page = folder.join(format!("{stem}.md"));
        std::fs::write(&page, self.markdown())?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_happened_and_what_it_has_cost() {
        let mut report = Report {
            drill: "failover".into(),
            cluster: "pg".into(),
            harm: "pod pg-1 was deleted with no grace".into(),
            began: "2026-01-02T03:04:05Z".into(),
            primary: ("pg-1".into(), "pg-2".into()),
            timeline: vec![Moment { at_s: 3.0, what: "pod pg-1 is deleted".into() }],
            figures: Figures {
                outage_s: 4.25,
                acknowledged: 1000,
                unknown: (1, 2),
                longest_wait_s: 4.5,
                errors: [("server conn crashed?".to_owned(), 3)].into(),
                ..Figures::default()
            },
            restored: None,
        };
        report.set_lost(&[(1, 17), (2, 4)]);
        let page = report.markdown();
        for words in [
            "# Drill: failover of cluster pg\n",
            "2026-01-02T03:04:05Z: pod pg-1 was deleted with no grace. The primary was pg-1, and is pg-2.",
            "| outage as clients saw it (RTO) | 4.250 s |",
            "| acknowledged rows lost (RPO) | 2 of 1000 |",
            "| errors that clients saw | 3 |",
            "| rows without an answer | 1 there, 2 not |",
            "- 3.000 s: pod pg-1 is deleted",
            "- 3 times: server conn crashed?",
            "1/17, 2/4",
        ] {
            assert!(page.contains(words), "{words} in\n{page}");
        }
        assert!(!page.contains("restored"), "{page}");
        report.restored = Some(Restored {
            cluster: "pg-pitr".into(),
            target_time: "2026-01-02 03:04:08.5+00".into(),
            rows_then: 300,
            rows_restored: 299,
            rows_too_many: 0,
            archived_s: 0.25,
            restored_s: 61.5,
        });
        let page = report.markdown();
        for words in [
            "| restored to | 2026-01-02 03:04:08.5+00 |\n| rows then, and restored | 300 and 299, 0 too many |\n",
            "| WAL archived after | 0.250 s |\n| cluster pg-pitr restored after (RTO) | 61.500 s |\n\n## Timeline\n",
        ] {
            assert!(page.contains(words), "{words} in\n{page}");
        }
        let folder = tempfile::tempdir().unwrap();
        let kept = report.keep(folder.path()).unwrap();
        assert_eq!(kept.file_name().unwrap(), "drill-failover-pg-20260102T030405Z.md");
        let json = std::fs::read_to_string(kept.with_extension("json")).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
