//! What is known of each cluster, and how its follower is told to do something. The follower is on a
//! floor above: it enters itself here, and the console and the metrics look.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::admin::status::EventStatus;
use crate::admin::{ClusterView, HealthView, MemberView, StandbyView};
use crate::config::SourceKind;
use crate::topology::freshness::Lag;
use crate::topology::health::{Health, HealthState};
use crate::topology::signals::{Signals, Standby};
use crate::topology::volume::Volume;

/// What the console tells a follower.
#[derive(Debug)]
pub enum ClusterCommand {
    /// HOLD: nothing new begins for so long. Answered when the primary is drained at transaction
    /// boundaries: true, or false when the time was over before.
    Hold(Duration, oneshot::Sender<bool>),
    /// Ends a HOLD.
    Release,
}

/// One cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// open, draining, hold or verify.
    pub state: &'static str,
    /// Since when it is open, or since when clients wait.
    pub since: Option<Instant>,
    /// Why clients wait; a word, and a sentence.
    pub why: Option<(&'static str, Arc<str>)>,
    /// The member that is written to, or is about to be.
    pub primary: Option<Arc<str>>,
    /// Timeline of the primary, as it last said.
    pub timeline: Option<u32>,
    /// The servers.
    pub members: Vec<MemberStatus>,
    /// How often another member became the primary.
    pub moves: u64,
    /// Connections that were cut because their server is no longer the primary.
    pub severed: u64,
    /// Whether several members claim to be the primary.
    pub split: bool,
    /// When the source last said something, and whether it can be reached.
    pub source: Option<(Instant, bool)>,
    /// Who says which server is the primary.
    pub named_by: Option<SourceKind>,
    /// How it is; `None` while nothing is known of it.
    pub health: Option<Health>,
    /// What has happened last, the oldest first.
    pub events: Arc<VecDeque<Event>>,
}

/// Something that has happened to a cluster.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// health, primary, wait, hold, severed or source.
    pub kind: &'static str,
    /// In words.
    pub text: String,
}

/// One server of a cluster at one moment.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its address.
    pub address: String,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Whether it is in recovery, as it last said.
    pub in_recovery: Option<bool>,
    /// Whether it is of another system: another cluster's server at the same address.
    pub is_stranger: bool,
    /// Whether it gets queries of role ro.
    pub serves_reads: bool,
    /// How far it is behind.
    pub lag: Option<Lag>,
    /// Connections to it that are lent to clients of roles other than rw.
    pub leased: u32,
    /// Connections of our pools to it.
    pub connections: u32,
    /// What the primary says of it.
    pub standby: Option<Standby>,
    /// What it says of itself, unless that was too long ago.
    pub signals: Option<Arc<Signals>>,
    /// The volume that its WAL is on.
    pub volume: Option<Volume>,
    /// By how many bytes in a second its WAL grows.
    pub wal_growth: Option<f64>,
}

impl ClusterStatus {
    /// As the console and the metrics show it. So many clients wait for a primary.
    pub fn view(&self, name: &str, held_clients: usize, now: Instant) -> ClusterView {
        ClusterView {
            name: name.to_owned(),
            state: self.state,
            since_ms: self.since.map_or(0, |since| millis(since, now)),
            why: self.why.as_ref().map(|(word, _)| *word),
            detail: self.why.as_ref().map(|(_, sentence)| sentence.to_string()),
            primary: self.primary.as_deref().map(str::to_owned),
            timeline: self.timeline,
            moves: self.moves,
            severed: self.severed,
            held_clients,
            split: self.split,
            source_age_ms: self.source.map(|(at, _)| millis(at, now)),
            source_ok: self.source.is_some_and(|(_, reached)| reached),
            health: self.health.as_ref().map(|health| HealthView {
                state: health.state,
                since_ms: millis(health.since, now),
                evidence: health.evidence.join("; "),
            }),
            named_by: self.named_by.map(SourceKind::as_str),
            members: self.members.iter().map(MemberStatus::view).collect(),
            events: self.events.iter().rev().map(|event| event.status(now)).collect(),
        }
    }
}

impl Event {
    fn status(&self, now: Instant) -> EventStatus {
        EventStatus { ago_ms: millis(self.at, now), kind: self.kind.to_owned(), text: self.text.clone() }
    }
}

impl MemberStatus {
    fn view(&self) -> MemberView {
        MemberView {
            name: self.name.to_string(),
            address: self.address.clone(),
            zone: self.zone.as_deref().map(str::to_owned),
            says: match self.in_recovery {
                Some(_) if self.is_stranger => "stranger",
                Some(true) => "standby",
                Some(false) => "primary",
                None => "unknown",
            },
            serves_reads: self.serves_reads,
            lag_bytes: self.lag.map(|lag| lag.bytes),
            lag_ms: self.lag.map(|lag| u64::try_from(lag.age.as_millis()).unwrap_or(u64::MAX)),
            leased: self.leased,
            connections: self.connections,
            standby: self.standby.as_ref().map(|standby| StandbyView {
                streams: standby.streams(),
                sync_state: standby.sync_state.clone(),
            }),
            signals: self.signals.clone(),
            volume: self.volume,
            wal_growth: self.wal_growth,
        }
    }
}

fn millis(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}

/// How to reach one follower.
#[derive(Debug)]
pub struct ClusterHandle {
    /// Its ear; few commands fit, and who finds it full is told so.
    pub commands: mpsc::Sender<ClusterCommand>,
    /// Its newest word.
    pub status: ArcSwap<ClusterStatus>,
}

/// Every cluster that is followed.
#[derive(Debug, Default)]
pub struct Clusters(RwLock<BTreeMap<Arc<str>, Arc<ClusterHandle>>>);

impl Clusters {
    /// The cluster of this name.
    pub fn get(&self, name: &str) -> Option<Arc<ClusterHandle>> {
        self.0.read().get(name).map(Arc::clone)
    }

    /// How the cluster of this name is, if that is known and not well.
    pub fn ailment(&self, name: &str) -> Option<Health> {
        let health = self.get(name)?.status.load().health.clone();
        health.filter(|health| health.state != HealthState::Healthy)
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<ClusterHandle>)> {
        self.0.read().iter().map(|(name, handle)| (Arc::clone(name), Arc::clone(handle))).collect()
    }

    /// A follower begins.
    pub fn enter(&self, name: &str, handle: Arc<ClusterHandle>) {
        self.0.write().insert(name.into(), handle);
    }

    /// A follower has ended.
    pub fn remove(&self, name: &str) {
        self.0.write().remove(name);
    }
}
