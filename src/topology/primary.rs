//! Whether there is a server that may be written to: [`Gate`], one for each cluster.
//!
//! OPEN(P) -> DRAINING(P) -> HOLD -> VERIFY(N) -> OPEN(N). The source names a primary, the server itself
//! confirms it, and only while both agree the gate is open. It never elects: where the source names
//! nobody, everybody waits.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Identity, Member, Named, Observation, Place};

/// The first pause after a verification that did not work; it doubles up to [`RETRY_MAX`].
pub const RETRY_FIRST: Duration = Duration::from_millis(20);

/// The longest pause between two attempts to verify the named primary.
pub const RETRY_MAX: Duration = Duration::from_millis(50);

/// How long a new primary's operator may take to end the sessions of its time as a standby. It does so a
/// few milliseconds after it has named it; without an end we go on after this time.
pub const OLD_SESSIONS_MAX: Duration = Duration::from_millis(200);

/// Why nothing may be written now, in words for the DETAIL of an error and for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The source has not spoken yet.
    Starting,
    /// The source names nobody.
    Nobody(Arc<str>),
    /// A change is under way.
    Moving(Arc<str>),
    /// The named primary is not among the members, or not at a place that is known.
    Absent(Arc<str>),
    /// The named primary's pod is being deleted.
    Terminating(Arc<str>),
    /// The named primary is fenced.
    Fenced(Arc<str>, Arc<str>),
    /// Several members claim to be it.
    Several(Vec<Arc<str>>),
    /// The named primary was not asked yet.
    Unverified(Arc<str>),
    /// The named primary could not be asked.
    Unreachable(Arc<str>, Arc<str>),
    /// The named primary is in recovery: it is a standby that was not promoted yet.
    InRecovery(Arc<str>),
    /// The operator will end the sessions that the named primary has had as a standby, and with them what
    /// begins now.
    OldSessions(Arc<str>),
    /// The named primary has another system identifier than its cluster: another cluster's server.
    OtherSystem {
        /// Its name.
        name: Arc<str>,
        /// The system identifier that it has.
        found: u64,
        /// The one that it must have.
        expected: u64,
    },
    /// The named primary is on a timeline below one that was seen: a stale primary.
    OldTimeline {
        /// Its name.
        name: Arc<str>,
        /// Its timeline.
        found: u32,
        /// The highest that was seen.
        highest: u32,
    },
    /// Neither the source nor any other server can be reached: we are probably on the side of the network
    /// that has lost, and the others may have another primary.
    Isolated(Arc<str>),
    /// An administrator said HOLD.
    Held,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Starting => write!(f, "nothing is known of the cluster yet"),
            Why::Nobody(reason) => write!(f, "no primary: {reason}"),
            Why::Moving(reason) => write!(f, "the primary moves: {reason}"),
            Why::Absent(name) => write!(f, "the primary {name} is not among the cluster's servers"),
            Why::Terminating(name) => write!(f, "the primary {name} is being deleted"),
            Why::Fenced(name, by) => write!(f, "the primary {name} is fenced by {by}"),
            Why::Several(names) => {
                write!(f, "several servers claim to be the primary: {}", names.join(", "))
            }
            Why::Unverified(name) => write!(f, "{name} has not confirmed yet that it is the primary"),
            Why::Unreachable(name, error) => write!(f, "the primary {name} does not answer: {error}"),
            Why::InRecovery(name) => write!(f, "standby {name} is not promoted yet"),
            Why::OldSessions(name) => write!(f, "{name} is promoted, its old sessions have not ended yet"),
            Why::OtherSystem { name, found, expected } => {
                write!(f, "{name} has system identifier {found}, the cluster's is {expected}")
            }
            Why::OldTimeline { name, found, highest } => {
                write!(f, "{name} is on timeline {found}, but the cluster has been on {highest}")
            }
            Why::Isolated(name) => {
                write!(f, "neither the source nor any server but {name} can be reached")
            }
            Why::Held => write!(f, "held by an administrator (HOLD)"),
        }
    }
}

impl Why {
    /// A word for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Why::Starting => "starting",
            Why::Nobody(_) => "no_primary",
            Why::Moving(_) => "moving",
            Why::Absent(_) => "absent",
            Why::Terminating(_) => "terminating",
            Why::Fenced(..) => "fenced",
            Why::Several(_) => "several_primaries",
            Why::Unverified(_) => "unverified",
            Why::Unreachable(..) => "unreachable",
            Why::InRecovery(_) => "in_recovery",
            Why::OldSessions(_) => "old_sessions",
            Why::OtherSystem { .. } => "other_system",
            Why::OldTimeline { .. } => "old_timeline",
            Why::Isolated(_) => "isolated",
            Why::Held => "held",
        }
    }
}

/// Where the gate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// New transactions go to this member.
    Open(Member),
    /// New transactions wait; those that run on this member may finish.
    Draining(Member, Why),
    /// New transactions wait; there is no server to write to.
    Hold(Why),
    /// New transactions wait until this member has confirmed that it is the primary. With `again` it was
    /// open before, and what runs there goes on.
    Verify {
        /// The member.
        member: Member,
        /// Why it is not open; what the last attempt met.
        why: Why,
        /// Whether it is the member that the gate was open for last.
        again: bool,
    },
}

impl State {
    /// Its name, for SHOW CLUSTERS, log and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            State::Open(_) => "open",
            State::Draining(..) => "draining",
            State::Hold(_) => "hold",
            State::Verify { .. } => "verify",
        }
    }

    /// The member that it is about.
    pub fn member(&self) -> Option<&Member> {
        match self {
            State::Open(member) | State::Draining(member, _) | State::Verify { member, .. } => Some(member),
            State::Hold(_) => None,
        }
    }

    /// Why it is not open.
    pub fn why(&self) -> Option<&Why> {
        match self {
            State::Open(_) => None,
            State::Draining(_, why) | State::Hold(why) | State::Verify { why, .. } => Some(why),
        }
    }
}

/// What the world must do because of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Cut every connection to this place, transactions included: another server is the primary, or
    /// this one is not what it was.
    Sever(Place),
    /// Let nothing new begin at this place, and close its idle connections.
    Drain(Place),
    /// Let transactions begin at this place.
    Open(Place),
}

/// What is known under one name of a cluster and one system identifier.
type SystemKey = (Option<Arc<str>>, u64);

/// See the module's text.
#[derive(Debug)]
pub struct Gate {
    state: State,
    /// Since when it is in this state, or in one of those in which clients wait.
    since: Instant,
    observation: Observation,
    /// The highest timeline by cluster and system. A restored cluster has the same identifier and a
    /// higher timeline, and going back to the first must work: so both are the key.
    highest: HashMap<SystemKey, u32>,
    /// What the member said of itself that the gate is open for.
    confirmed: Option<Identity>,
    /// HOLD lapses then.
    held_until: Option<Instant>,
    /// See [`Why::Isolated`].
    isolated: bool,
    /// Since when the member that is verified is named.
    named_since: Instant,
    /// When the named primary is asked (again).
    verify_at: Option<Instant>,
    pause: Duration,
    acts: Vec<Act>,
}

impl Gate {
    /// A gate that waits for its source's first word.
    pub fn new(now: Instant) -> Self {
        Gate {
            state: State::Hold(Why::Starting),
            since: now,
            observation: Observation::nothing("nothing was observed yet"),
            highest: HashMap::new(),
            confirmed: None,
            held_until: None,
            isolated: false,
            named_since: now,
            verify_at: None,
            pause: RETRY_FIRST,
            acts: Vec::new(),
        }
    }

    /// The source's newest word.
    pub fn handle_observation(&mut self, observation: Observation, now: Instant) {
        self.observation = observation;
        if let (Some(system), Some(timeline)) = (self.observation.system_id, self.observation.timeline) {
            self.note_timeline(system, timeline);
        }
        self.decide(now);
    }

    /// A connection to this place met something that an administrator's shutdown, a crash or a lost
    /// node looks like. The server is asked again before anything new begins there.
    pub fn handle_trouble(&mut self, place: &Place, reason: &str, now: Instant) {
        match &self.state {
            State::Open(member) if member.place == *place => {
                let why = Why::Unreachable(Arc::clone(&member.name), reason.into());
                let member = member.clone();
                self.enter(State::Verify { member, why, again: true }, now);
                self.ask_at(now);
            }
            _ => {}
        }
    }

    /// The place has answered who it is.
    pub fn handle_identity(&mut self, place: &Place, identity: Identity, now: Instant) {
        if !identity.in_recovery {
            // Whoever says it: a server that writes on a higher timeline makes all lower ones stale.
            self.note_timeline(identity.system_id, identity.timeline);
        }
        let judged = |member: &Member| self.judge(member, identity);
        match &self.state {
            State::Verify { member, again, .. } if member.place == *place => match judged(member) {
                None => {
                    let member = member.clone();
                    if self.confirmed.is_some_and(|known| known.timeline < identity.timeline) && *again {
                        // Another server behind the same address: what runs there is on the old one.
                        self.acts.push(Act::Sever(member.place.clone()));
                    }
                    self.confirmed = Some(identity);
                    self.open(member, now);
                }
                Some(why) => {
                    let (member, again) = (member.clone(), *again);
                    self.refuse(member, why, again, now);
                }
            },
            State::Open(member) if member.place == *place => {
                if let Some(why) = judged(member) {
                    let member = member.clone();
                    self.acts.push(Act::Sever(member.place.clone()));
                    self.refuse(member, why, false, now);
                }
            }
            State::Open(member) => {
                let highest = self.confirmed.and_then(|known| self.highest_timeline(known.system_id));
                let found = self.confirmed.map_or(0, |known| known.timeline);
                if let Some(highest) = highest.filter(|highest| *highest > found) {
                    // Another server writes on a newer timeline: this one is the past, whoever names it.
                    let member = member.clone();
                    let why = Why::OldTimeline { name: Arc::clone(&member.name), found, highest };
                    self.acts.push(Act::Sever(member.place.clone()));
                    self.refuse(member, why, false, now);
                }
            }
            _ => {}
        }
    }

    /// The operator will end the sessions of this place, and has not done so as far as we know: nothing begins
    /// before that. Returns whether its answer must not count yet.
    pub fn handle_old_session(&mut self, place: &Place, now: Instant) -> bool {
        match &self.state {
            State::Verify { member, again: false, .. }
                if member.place == *place && now < self.named_since + OLD_SESSIONS_MAX =>
            {
                let member = member.clone();
                let why = Why::OldSessions(Arc::clone(&member.name));
                self.refuse(member, why, false, now);
                true
            }
            _ => false,
        }
    }

    /// Nobody can ask the place who it is: the source's word counts, and what each connection's login says.
    pub fn trust(&mut self, place: &Place, now: Instant) {
        if let State::Verify { member, .. } = &self.state
            && member.place == *place
        {
            self.confirmed = None;
            self.open(member.clone(), now);
        }
    }

    /// The place could not be asked.
    pub fn handle_silence(&mut self, place: &Place, reason: &str, now: Instant) {
        if let State::Verify { member, again, .. } = &self.state
            && member.place == *place
        {
            let why = Why::Unreachable(Arc::clone(&member.name), reason.into());
            let (member, again) = (member.clone(), *again);
            if self.pause == RETRY_FIRST {
                // A server that shuts down smartly waits for its idle connections.
                self.acts.push(Act::Drain(member.place.clone()));
            }
            self.refuse(member, why, again, now);
        }
    }

    /// HOLD: nothing new begins until then, whatever the source says.
    pub fn hold(&mut self, until: Instant, now: Instant) {
        self.held_until = Some(until);
        self.decide(now);
    }

    /// Whether nobody but the primary can be reached, and for how long is the caller's to judge.
    pub fn set_isolated(&mut self, isolated: bool, now: Instant) {
        if std::mem::replace(&mut self.isolated, isolated) != isolated {
            self.decide(now);
        }
    }

    /// Ends a HOLD before its time.
    pub fn release(&mut self, now: Instant) {
        self.held_until = None;
        self.decide(now);
    }

    /// Time passes: HOLD lapses.
    pub fn tick(&mut self, now: Instant) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
    }

    /// The member to be asked who it is now, if it is time for that. Says so once.
    pub fn poll_verify(&mut self, now: Instant) -> Option<Member> {
        self.verify_at.take_if(|at| *at <= now)?;
        match &self.state {
            State::Verify { member, .. } => Some(member.clone()),
            _ => None,
        }
    }

    /// When [`Gate::poll_verify`] or [`Gate::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.verify_at.into_iter().chain(self.held_until).min()
    }

    /// What must be done, in this order.
    pub fn take_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Since when clients wait, or since when it is open.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The newest word of the source.
    pub fn observation(&self) -> &Observation {
        &self.observation
    }

    /// The system identifier that servers of the cluster have: the source's word, else the confirmed
    /// primary's own.
    pub fn system_id(&self) -> Option<u64> {
        self.observation.system_id.or(self.confirmed.map(|identity| identity.system_id))
    }

    /// The highest timeline that was seen of this system.
    pub fn highest_timeline(&self, system_id: u64) -> Option<u32> {
        self.highest.get(&(self.observation.incarnation.clone(), system_id)).copied()
    }

    // ---- how it decides ----

    /// The member that the source names without reservation, or why there is none.
    fn candidate(&self) -> Result<&Member, Why> {
        let name = match &self.observation.primary {
            Named::Member(name) => name,
            Named::Moving { reason, .. } => return Err(Why::Moving(Arc::clone(reason))),
            Named::Nobody(reason) => return Err(Why::Nobody(Arc::clone(reason))),
            Named::Several(names) => return Err(Why::Several(names.clone())),
        };
        let member = self.observation.member(name).ok_or_else(|| Why::Absent(Arc::clone(name)))?;
        if let Some(by) = &member.fenced {
            return Err(Why::Fenced(Arc::clone(name), Arc::clone(by)));
        }
        match (member.terminating, self.isolated) {
            (true, _) => Err(Why::Terminating(Arc::clone(name))),
            (false, true) => Err(Why::Isolated(Arc::clone(name))),
            (false, false) => Ok(member),
        }
    }

    /// Whether what runs on this member may still finish: nobody else is named, and it is where it was.
    fn may_finish(&self, member: &Member) -> bool {
        let same_place = |member: &Member| {
            self.observation.member(&member.name).is_none_or(|seen| seen.place == member.place)
        };
        let named = match &self.observation.primary {
            Named::Member(name) => *name == member.name,
            Named::Moving { from, .. } => from.as_ref().is_none_or(|from| *from == member.name),
            Named::Nobody(_) => true,
            Named::Several(_) => false,
        };
        named && same_place(member)
    }

    fn decide(&mut self, now: Instant) {
        let last = match &self.state {
            State::Open(member) | State::Draining(member, _) => Some(member.clone()),
            State::Verify { member, again: true, .. } => Some(member.clone()),
            State::Verify { .. } | State::Hold(_) => None,
        };
        let last = match last {
            Some(member) if !self.may_finish(&member) => {
                self.acts.push(Act::Sever(member.place));
                None
            }
            other => other,
        };
        match (self.candidate().cloned(), last) {
            (Ok(_), Some(last)) if self.held_until.is_some() => self.drain(last, Why::Held, now),
            (Ok(_), None) if self.held_until.is_some() => self.enter(State::Hold(Why::Held), now),
            (Ok(member), Some(_)) if self.is_at(&member) => self.refresh(member),
            (Ok(member), last) => self.verify(member, last.is_some(), now),
            (Err(why), Some(last)) => self.drain(last, why, now),
            (Err(why), None) => self.enter(State::Hold(why), now),
        }
    }

    /// Whether the state is about this member already, and goes on as it is.
    fn is_at(&self, member: &Member) -> bool {
        match &self.state {
            State::Open(at) | State::Verify { member: at, .. } => at.place == member.place,
            State::Draining(..) | State::Hold(_) => false,
        }
    }

    /// The same member, with its newest description.
    fn refresh(&mut self, member: Member) {
        match &mut self.state {
            State::Open(at) | State::Verify { member: at, .. } => *at = member,
            State::Draining(..) | State::Hold(_) => {}
        }
    }

    fn drain(&mut self, member: Member, why: Why, now: Instant) {
        if !matches!(self.state, State::Draining(..)) {
            self.acts.push(Act::Drain(member.place.clone()));
        }
        self.enter(State::Draining(member, why), now);
    }

    fn verify(&mut self, member: Member, again: bool, now: Instant) {
        if let State::Verify { member: at, .. } = &self.state
            && at.place == member.place
        {
            return self.refresh(member);
        }
        let why = Why::Unverified(Arc::clone(&member.name));
        self.named_since = now;
        self.enter(State::Verify { member, why, again }, now);
        self.ask_at(now);
    }

    fn ask_at(&mut self, at: Instant) {
        self.pause = RETRY_FIRST;
        self.verify_at = Some(at);
    }

    fn refuse(&mut self, member: Member, why: Why, again: bool, now: Instant) {
        self.enter(State::Verify { member, why, again }, now);
        self.verify_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    fn open(&mut self, member: Member, now: Instant) {
        self.acts.push(Act::Open(member.place.clone()));
        self.verify_at = None;
        self.enter(State::Open(member), now);
    }

    fn enter(&mut self, state: State, now: Instant) {
        let was_open = matches!(self.state, State::Open(_));
        let is_open = matches!(state, State::Open(_));
        if was_open != is_open {
            self.since = now;
        }
        if !matches!(state, State::Verify { .. }) {
            self.verify_at = None;
        }
        self.state = state;
    }

    /// Why a member with this identity is not the primary.
    fn judge(&self, member: &Member, identity: Identity) -> Option<Why> {
        let name = || Arc::clone(&member.name);
        if let Some(expected) = self.observation.system_id
            && expected != identity.system_id
        {
            return Some(Why::OtherSystem { name: name(), found: identity.system_id, expected });
        }
        if identity.in_recovery {
            return Some(Why::InRecovery(name()));
        }
        let highest = self.highest_timeline(identity.system_id)?;
        (identity.timeline < highest).then(|| Why::OldTimeline {
            name: name(),
            found: identity.timeline,
            highest,
        })
    }

    fn note_timeline(&mut self, system_id: u64, timeline: u32) {
        let key = (self.observation.incarnation.clone(), system_id);
        let highest = self.highest.entry(key).or_default();
        *highest = timeline.max(*highest);
    }
}

#[cfg(test)]
mod tests;
