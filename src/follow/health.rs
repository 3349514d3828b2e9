//! What the follower knows of its cluster's health: what the servers say of themselves goes in, one word
//! comes out ([`judge`](crate::topology::health)). Nothing is routed by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Follower, Known};
use crate::config::Role;
use crate::topology::Place;
use crate::topology::health::{Facts, HealthState, MemberFacts, PoolFacts};
use crate::topology::signals::Signals;
use crate::topology::volume::Volume;

/// How often the word is looked for; a change of the gate is looked at when it happens.
const INTERVAL: Duration = Duration::from_millis(200);

/// Every role's pools may be full.
const ROLES: [Role; 4] = [Role::ReadWrite, Role::ReadOnly, Role::Read, Role::PreferStandby];

impl Known {
    fn facts(&self) -> MemberFacts<'_> {
        MemberFacts {
            name: &self.member.name,
            answers: self.monitor.as_ref().map(|_| self.identity.is_some()),
            trouble: self.trouble.as_deref(),
            fenced: self.member.fenced.is_some(),
        }
    }
}

impl Follower {
    /// A server has said how it is, or has not.
    pub(super) fn handle_signals(
        &mut self,
        place: &Place,
        signals: Result<Box<Signals>, Arc<str>>,
        now: Instant,
    ) {
        let Some(known) = self.known.values_mut().find(|known| known.member.place == *place) else {
            return;
        };
        let (cluster, member) = (&self.cluster.name, &known.member.name);
        match signals {
            Ok(signals) => {
                let was_unseen = known.samples.last().and_then(|last| last.unseen());
                if let Some(unseen) = signals.unseen()
                    && was_unseen != Some(unseen)
                {
                    tracing::warn!("cluster {cluster}: of server {member}, {unseen}");
                }
                if let Some(bytes) = signals.wal_bytes {
                    known.growth.note(bytes, now);
                }
                known.samples.hear(*signals, now);
            }
            Err(reason) => {
                if known.samples.miss(&reason) {
                    tracing::warn!("cluster {cluster}: server {member} does not say how it is: {reason}");
                }
            }
        }
    }

    /// Nobody needs them but the metrics: that they are not known is said once, and for information.
    pub(super) fn handle_volumes(&mut self, found: Result<BTreeMap<Arc<str>, Volume>, String>) {
        if let Err(reason) = &found
            && self.volumes.is_ok()
        {
            tracing::info!("cluster {}: how large its volumes are is not known: {reason}", self.cluster.name);
        }
        self.volumes = found;
    }

    /// Looks for the word, and logs it when it is another one.
    pub(super) fn judge_health(&mut self, now: Instant) {
        let gate = self.gate.state();
        let stands = gate.why().map_or(gate.name(), |why| why.label());
        let is_new =
            |(at, stood): (Instant, &str)| stood != stands || now.saturating_duration_since(at) >= INTERVAL;
        if !self.judged.is_none_or(is_new) {
            return;
        }
        self.judged = Some((now, stands));
        let mut judge = std::mem::take(&mut self.judge);
        let change = judge.update(&self.facts(&self.members(), self.full_pool(now).as_ref(), now), now);
        if let (Some(change), Some(health)) = (change, judge.health()) {
            let (name, state) = (&self.cluster.name, health.state.name());
            let was = change.was.map_or("unknown", HealthState::name);
            let advice = health.state.advice();
            match health.state {
                HealthState::Healthy => tracing::info!("cluster {name}: {health} health={state} was={was}"),
                _ => tracing::warn!("cluster {name}: {health}. {advice} health={state} was={was}"),
            }
            self.note_event("health", health.to_string());
        }
        self.judge = judge;
    }

    fn members(&self) -> Vec<MemberFacts<'_>> {
        self.known.values().map(Known::facts).collect()
    }

    fn facts<'a>(
        &'a self,
        members: &'a [MemberFacts<'a>],
        pool: Option<&'a PoolFacts>,
        now: Instant,
    ) -> Facts<'a> {
        let gate = self.gate.state();
        let primary = gate.member();
        let listens = self.source.is_some();
        Facts {
            gate,
            waited: now.saturating_duration_since(self.gate.since()),
            api: listens.then_some(matches!(self.last_source, Some((_, true)))),
            members,
            primary: primary.and_then(|member| self.known.get(&member.name)).map(|known| &known.samples),
            ours: primary.map_or(0, |member| self.connections(&member.place)),
            pool,
            phase: self.gate.observation().phase.as_deref(),
            disk_full: self.writer.as_ref().and_then(|site| site.disk_full(now)),
        }
    }

    /// Connections of our pools to this place.
    pub(super) fn connections(&self, place: &Place) -> u32 {
        let writer = self.writer.iter().filter(|site| site.place.as_ref() == Some(place));
        let writer: u32 = writer.map(|site| site.connections()).sum();
        writer + self.readers.connections(place)
    }

    /// Of the pools that are full, the one whose first client has waited longest.
    fn full_pool(&self, now: Instant) -> Option<PoolFacts> {
        let pools =
            ROLES.into_iter().flat_map(|role| self.shared.databases.pools_of(&self.cluster.name, role));
        let full = pools.filter(|pool| pool.held().is_none()).filter_map(|pool| {
            let size = pool.settings().policy.pool_size;
            let counts = pool.counts(now);
            let in_use = counts.active + counts.tested + counts.login;
            (size > 0 && counts.waiting > 0 && in_use >= size).then(|| PoolFacts {
                database: pool.target.database.to_string(),
                user: pool.target.user.to_string(),
                size,
                waiting: counts.waiting,
                longest_wait: counts.longest_wait,
            })
        });
        full.max_by_key(|pool| pool.longest_wait)
    }
}
