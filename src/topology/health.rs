//! How a cluster is, in one word: [`Judge`] goes by its gate, by what its primary says of itself, by who can be
//! reached and by our own pools. It reads no clock, and what it says decides nothing.
//!
//! It does not flap: what is read from the primary holds when two answers in a row show it, and ceases when two
//! in a row do not; an answer that is missing changes nothing.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use super::cnpg;
use super::primary::{State, Why};
use super::signals::{Samples, Signals};

/// A primary that is verified again, because a connection was lost, is no longer there after this time.
pub const NO_PRIMARY_AFTER: Duration = Duration::from_secs(1);

/// Whoever begins to look has heard everybody by then.
pub const KNOWN_AFTER: Duration = Duration::from_secs(3);

/// We are isolated when nobody was reached for so long.
pub const ISOLATED_AFTER: Duration = Duration::from_secs(3);

/// A full pool is too small when a client has waited for so long.
pub const POOL_WAIT: Duration = Duration::from_secs(3);

/// It is large enough again when none waits for longer than this.
pub const POOL_WAIT_OVER: Duration = Duration::from_secs(1);

/// A disk is no longer full when no statement was refused for so long.
pub const DISK_FULL_FOR: Duration = Duration::from_secs(10);

/// The one word; the most serious first. Of several that hold, the first is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthState {
    /// Neither the API nor any server can be reached: nothing else is known.
    Isolated,
    /// A volume is full: why there may be no primary, and why it may be read-only.
    DiskFull,
    /// There is no server to write to.
    NoPrimary,
    /// There is none because the operator was told so.
    Fenced,
    /// The primary moves.
    Switching,
    /// The primary lets nobody write.
    ReadOnly,
    /// Commits wait for standbys that are not there. Reads and logins work.
    CommitsBlocked,
    /// There are no more connections, at the server or in a pool.
    Saturated,
    /// WAL is not archived: nothing newer can be restored.
    ArchivingBroken,
    /// Nothing of all this.
    Healthy,
}

impl HealthState {
    /// All of them, the most serious first.
    pub const ALL: [HealthState; 10] = [
        HealthState::Isolated,
        HealthState::DiskFull,
        HealthState::NoPrimary,
        HealthState::Fenced,
        HealthState::Switching,
        HealthState::ReadOnly,
        HealthState::CommitsBlocked,
        HealthState::Saturated,
        HealthState::ArchivingBroken,
        HealthState::Healthy,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            HealthState::Isolated => "isolated",
            HealthState::DiskFull => "disk_full",
            HealthState::NoPrimary => "no_primary",
            HealthState::Fenced => "fenced",
            HealthState::Switching => "switching",
            HealthState::ReadOnly => "read_only",
            HealthState::CommitsBlocked => "commits_blocked_on_sync_quorum",
            HealthState::Saturated => "saturated",
            HealthState::ArchivingBroken => "archiving_broken",
            HealthState::Healthy => "healthy",
        }
    }

    /// What to do, and what not to do.
    pub fn advice(self) -> &'static str {
        match self {
            HealthState::Isolated => {
                "Look at the network of this pooler; the others may be well. Promote nothing because of what it sees."
            }
            HealthState::DiskFull => {
                "Enlarge the volume. Delete nothing from pg_wal; mend what keeps WAL there: archiving or a replication slot."
            }
            HealthState::NoPrimary => {
                "Look at the operator and at the servers' logs. Promote nothing by hand while the operator may do it."
            }
            HealthState::Fenced => "Take the fence away when its reason is gone. Clients wait until then.",
            HealthState::Switching => {
                "Wait: clients do, and go on at the new primary. If it lasts, look at the operator."
            }
            HealthState::ReadOnly => {
                "Find out who has set default_transaction_read_only and why, then reset it and reload."
            }
            HealthState::CommitsBlocked => {
                "By design, not an outage: no acknowledged row can be lost. Do not switch to asynchronous, do not fail over: bring a standby back, and the commits go on."
            }
            HealthState::Saturated => {
                "Look for sessions that are idle in transaction, and for long ones; then lower the pools' sizes or raise the limit. Restart nothing: the queue comes back."
            }
            HealthState::ArchivingBroken => {
                "Mend archive_command or the store behind it. Delete nothing from pg_wal."
            }
            HealthState::Healthy => "",
        }
    }
}

/// How a cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The word.
    pub state: HealthState,
    /// Since when.
    pub since: Instant,
    /// What shows it; then what else there is to say.
    pub evidence: Vec<String>,
}

/// The word, and all the evidence in one line.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.state.name())?;
        if self.state == HealthState::CommitsBlocked {
            // Whoever reads nothing but this must not take it for an outage.
            f.write_str(" (by design)")?;
        }
        for (number, text) in self.evidence.iter().enumerate() {
            write!(f, "{} {text}", if number == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// All that is known of a cluster at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where its gate stands.
    pub gate: &'a State,
    /// How long clients have waited, if they do.
    pub waited: Duration,
    /// Whether the API can be reached; `None` where it is not asked.
    pub api: Option<bool>,
    /// Its servers.
    pub members: &'a [MemberFacts<'a>],
    /// What its primary says.
    pub primary: Option<&'a Samples>,
    /// Connections to the primary that are those of our pools.
    pub ours: u32,
    /// The full pool whose clients have waited longest.
    pub pool: Option<&'a PoolFacts>,
    /// The operator's word for how the cluster is.
    pub phase: Option<&'a str>,
    /// How long ago the primary last refused a statement for want of space.
    pub disk_full: Option<Duration>,
}

/// One server, seen from here.
#[derive(Clone, Copy, Debug)]
pub struct MemberFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it answers; `None` if nobody asks it.
    pub answers: Option<bool>,
    /// Why it does not.
    pub trouble: Option<&'a str>,
    /// Whether it is fenced.
    pub fenced: bool,
}

/// A pool that has all the connections that it may have, none of them free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// Its database.
    pub database: String,
    /// Its user.
    pub user: String,
    /// How many it may have.
    pub size: u32,
    /// Clients in its queue.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

type Finding = (HealthState, String);

/// See the module's text.
#[derive(Debug, Default)]
pub struct Judge {
    health: Option<Health>,
    /// What was found before, of that which needs more than one look.
    held: BTreeSet<HealthState>,
    cut_off_since: Option<Instant>,
    pool_was_full: bool,
}

/// The word is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The last one; `None` if there was none.
    pub was: Option<HealthState>,
}

impl Judge {
    /// How the cluster is; `None` while nothing is known yet.
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    /// Judges again. Returns whether it is another word than before.
    pub fn update(&mut self, facts: &Facts<'_>, now: Instant) -> Option<Change> {
        let mut found = self.findings(facts, now);
        found.sort_by_key(|(state, _)| *state);
        if self.health.is_none() && !matches!(facts.gate, State::Open(_)) && facts.waited < KNOWN_AFTER {
            return None;
        }
        let state = found.first().map_or(HealthState::Healthy, |(state, _)| *state);
        let mut evidence = Vec::new();
        for (number, (also, text)) in found.into_iter().enumerate() {
            evidence.push(if number == 0 { text } else { format!("also {}: {text}", also.name()) });
        }
        evidence.extend(notes(facts, now));
        let last = self.health.take();
        let same = last.as_ref().filter(|last| last.state == state);
        let since = same.map_or(now, |last| last.since);
        let change = same.is_none().then(|| Change { was: last.as_ref().map(|last| last.state) });
        self.health = Some(Health { state, since, evidence });
        change
    }

    fn findings(&mut self, facts: &Facts<'_>, now: Instant) -> Vec<Finding> {
        let mut found = Vec::new();
        found.extend(self.isolated(facts, now));
        found.extend(disk_full(facts));
        found.extend(of_gate(facts));
        if let (State::Open(member), Some(samples)) = (facts.gate, facts.primary) {
            let name = &*member.name;
            let mut look = |state, shows: fn(&Signals) -> bool, words: &dyn Fn(&Signals) -> String| {
                found.extend(self.steadily(state, samples, shows).map(|signals| (state, words(signals))));
            };
            look(HealthState::ReadOnly, |signals| signals.read_only, &|_| {
                format!("{name} has default_transaction_read_only = on")
            });
            look(HealthState::CommitsBlocked, lacks_standbys, &|signals| blocked(name, signals));
            look(HealthState::Saturated, is_exhausted, &|signals| exhausted(name, signals, facts.ours));
            look(HealthState::ArchivingBroken, Signals::archiving_fails, &|signals| {
                unarchived(name, signals)
            });
        }
        found.extend(self.full_pool(facts).filter(|_| matches!(facts.gate, State::Open(_))));
        found
    }

    /// Two answers in a row begin it, and two in a row end it.
    fn steadily<'a>(
        &mut self,
        state: HealthState,
        samples: &'a Samples,
        shows: fn(&Signals) -> bool,
    ) -> Option<&'a Signals> {
        let shows = |signals: &Signals| !signals.in_recovery && shows(signals);
        let last = samples.last()?;
        let before = samples.before().filter(|before| shows(before));
        let holds = match self.held.contains(&state) {
            true => shows(last) || before.is_some(),
            false => shows(last) && before.is_some(),
        };
        match holds {
            true => self.held.insert(state),
            false => self.held.remove(&state),
        };
        let shown = if shows(last) { Some(&**last) } else { before.map(|before| &**before) };
        shown.filter(|_| holds)
    }

    fn isolated(&mut self, facts: &Facts<'_>, now: Instant) -> Option<Finding> {
        let asked = facts.members.iter().filter(|member| member.answers.is_some()).count();
        let silent = facts.members.iter().all(|member| member.answers != Some(true));
        // One server alone that does not answer has gone, as far as anybody can tell.
        let is_cut_off = silent
            && match facts.api {
                Some(reached) => !reached && (asked > 0 || facts.members.is_empty()),
                None => asked > 1,
            };
        if !is_cut_off {
            self.cut_off_since = None;
            return None;
        }
        let since = *self.cut_off_since.get_or_insert(now);
        let lasted = now.saturating_duration_since(since);
        let api = if facts.api.is_some() { "neither the Kubernetes API nor any" } else { "none" };
        let text = format!("{api} of {asked} servers can be reached for {}", seconds(lasted));
        (lasted >= ISOLATED_AFTER).then_some((HealthState::Isolated, text))
    }

    fn full_pool(&mut self, facts: &Facts<'_>) -> Option<Finding> {
        let limit = if self.pool_was_full { POOL_WAIT_OVER } else { POOL_WAIT };
        let pool = facts.pool.filter(|pool| pool.longest_wait >= limit);
        self.pool_was_full = pool.is_some();
        let pool = pool?;
        let text = format!(
            "pool \"{}\" of user \"{}\" has all {} connections in use; {} clients wait, the first for {}",
            pool.database,
            pool.user,
            pool.size,
            pool.waiting,
            seconds(pool.longest_wait),
        );
        Some((HealthState::Saturated, text))
    }
}

fn disk_full(facts: &Facts<'_>) -> Option<Finding> {
    let name = facts.gate.member().map_or("the primary", |member| &*member.name);
    let text = match (facts.phase, facts.disk_full) {
        (Some(cnpg::DISK_FULL), _) => format!("the operator says \"{}\"", cnpg::DISK_FULL),
        (_, Some(ago)) if ago <= DISK_FULL_FOR => {
            format!("{name} refused a statement {} ago, as its disk is full (53100)", seconds(ago))
        }
        _ => return None,
    };
    Some((HealthState::DiskFull, text))
}

/// What the gate tells, if it is not open.
fn of_gate(facts: &Facts<'_>) -> Option<Finding> {
    let why = facts.gate.why()?;
    let again = matches!(facts.gate, State::Verify { again: true, .. });
    let state = match why {
        Why::Isolated(_) => HealthState::Isolated,
        Why::Fenced(..) => HealthState::Fenced,
        Why::Moving(_) | Why::Terminating(_) | Why::InRecovery(_) | Why::OldSessions(_) | Why::Held => {
            HealthState::Switching
        }
        Why::Unreachable(..) | Why::Unverified(_) if facts.waited < NO_PRIMARY_AFTER && again => return None,
        Why::Unreachable(..) | Why::Unverified(_) if facts.waited < NO_PRIMARY_AFTER => {
            HealthState::Switching
        }
        Why::Unreachable(..)
        | Why::Unverified(_)
        | Why::Starting
        | Why::Nobody(_)
        | Why::Absent(_)
        | Why::Several(_)
        | Why::OtherSystem { .. }
        | Why::OldTimeline { .. } => HealthState::NoPrimary,
    };
    Some((state, why.to_string()))
}

/// Also when no commit has come yet: the next one will wait.
fn lacks_standbys(signals: &Signals) -> bool {
    signals.sync_streaming() < signals.sync_rule.required
}

fn blocked(name: &str, signals: &Signals) -> String {
    let waiting = match (signals.sync_waiters, signals.sync_oldest_wait) {
        (0, _) if signals.reads_stats => "the next commit will wait".to_owned(),
        (0, _) => "commits wait, how many is not seen".to_owned(),
        (count, oldest) => {
            format!("{count} commits wait, the oldest for {}", seconds(oldest.unwrap_or_default()))
        }
    };
    format!(
        "{name}: {} of {} required synchronous standbys stream (synchronous_standby_names = {}); {waiting}; reads and logins work",
        signals.sync_streaming(),
        signals.sync_rule.required,
        signals.sync_rule.text,
    )
}

fn is_exhausted(signals: &Signals) -> bool {
    signals.connections_max > 0 && signals.connections >= signals.connections_usable()
}

fn exhausted(name: &str, signals: &Signals, ours: u32) -> String {
    let ours = ours.min(signals.connections);
    format!(
        "{name}: {} of {} connections are in use ({ours} by our pools, {} by others; max_connections = {}, {} of them reserved)",
        signals.connections,
        signals.connections_usable(),
        signals.connections - ours,
        signals.connections_max,
        signals.connections_reserved,
    )
}

fn unarchived(name: &str, signals: &Signals) -> String {
    let archiver = &signals.archiver;
    let wal = archiver.last_failed_wal.as_deref().unwrap_or("WAL");
    let failed = seconds(archiver.last_failed_age.unwrap_or_default());
    let mut text =
        format!("{name}: {wal} could not be archived {failed} ago, {} failures", archiver.failures);
    match archiver.last_archived_age {
        Some(age) => write!(text, "; the last success was {} ago", seconds(age)),
        None => write!(text, "; nothing was archived yet"),
    }
    .expect("a String takes any text");
    if let Some(bytes) = signals.wal_bytes {
        write!(text, "; {bytes} bytes of WAL are on its disk").expect("a String takes any text");
    }
    text
}

/// What belongs to the evidence of any word.
fn notes(facts: &Facts<'_>, now: Instant) -> Vec<String> {
    let mut notes = Vec::new();
    for member in facts.members {
        let is_primary = facts.gate.member().is_some_and(|primary| *primary.name == *member.name);
        match (member.fenced, member.trouble) {
            _ if is_primary => {}
            (true, _) => notes.push(format!("{} is fenced", member.name)),
            (false, Some(trouble)) => notes.push(format!("{} does not answer: {trouble}", member.name)),
            (false, None) => {}
        }
    }
    if !facts.members.is_empty() && facts.members.iter().all(|member| member.answers.is_none()) {
        notes.push("without monitor_user it is not seen how the servers are".to_owned());
    }
    if matches!(facts.gate, State::Open(_)) {
        notes.extend(facts.primary.and_then(|samples| samples.unknown(now)));
    }
    notes
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests;
