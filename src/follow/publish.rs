//! What the follower tells others: the pools, where they may open servers; the console and the metrics,
//! how the cluster is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Follower, Known};
use crate::config::Role;
use crate::pool::access::{Access, Site};
use crate::session::clusters::{ClusterStatus, MemberStatus};
use crate::topology::freshness::LagLimit;
use crate::topology::primary::Why;

impl Follower {
    /// Tells the pools where they may open servers now, and the console how the cluster is.
    pub(super) fn publish(&mut self, now: Instant) {
        let settings = &self.shared.config.load().settings;
        let limit = LagLimit {
            bytes: Some(u64::from(settings.max_standby_lag_bytes)).filter(|most| *most > 0),
            age: Some(settings.max_standby_lag).filter(|most| !most.is_zero()),
        };
        let is_reader = |known: &&Known| self.is_reader(known, &limit, now);
        let fresh: Vec<_> = self.known.values().filter(is_reader).map(|known| known.member.clone()).collect();
        let readers = self.readers.choose(&fresh, self.zone.as_deref(), &self.alarm);
        let held = self.gate.state().why().map(|why| Arc::from(why.to_string()));
        for site in self.writer.iter().chain(&readers) {
            site.expect_system(self.gate.system_id());
        }
        let writer = Access { sites: self.writer.iter().cloned().collect(), held };
        let access = roles(&writer, readers, settings.standby_fallback);
        let routes = self.shared.databases.routes(&self.cluster.name);
        if routes.publish_if_new(access) {
            self.shared.databases.route_all(&self.cluster.name);
        }
        self.handle.status.store(Arc::new(self.status(now)));
    }

    fn is_reader(&self, known: &Known, limit: &LagLimit, now: Instant) -> bool {
        let member = &known.member;
        let becomes_primary = self.gate.observation().primary.is_about(&member.name)
            || self.gate.state().member().is_some_and(|primary| primary.name == member.name);
        let may = member.ready && !member.terminating && member.fenced.is_none() && !becomes_primary;
        // A standby that says it is none is an old primary, or is being promoted.
        let confirmed = match &known.monitor {
            Some(_) => {
                known.identity.is_some_and(|identity| identity.in_recovery)
                    && !self.is_stranger(known)
                    && known.freshness.is_fresh(limit, now)
            }
            None => true,
        };
        may && confirmed
    }

    /// Whether it is another cluster's server that answers there.
    pub(super) fn is_stranger(&self, known: &Known) -> bool {
        let expected = self.gate.system_id();
        known.identity.is_some_and(|identity| expected.is_some_and(|expected| expected != identity.system_id))
    }

    fn status(&self, now: Instant) -> ClusterStatus {
        let state = self.gate.state();
        let primary_says = state.member().and_then(|member| self.known.get(&member.name)?.samples.fresh(now));
        let standby = |known: &Known| {
            let is_primary = state.member().is_some_and(|primary| primary.name == known.member.name);
            primary_says.filter(|_| !is_primary).and_then(|says| says.standby(&known.member)).cloned()
        };
        let member = |known: &Known| MemberStatus {
            name: Arc::clone(&known.member.name),
            address: known.member.place.to_string(),
            zone: known.member.zone.clone(),
            in_recovery: known.identity.map(|identity| identity.in_recovery),
            is_stranger: self.is_stranger(known),
            serves_reads: self.readers.serves(&known.member.place),
            lag: known.freshness.lag.filter(|_| known.identity.is_some_and(|identity| identity.in_recovery)),
            leased: self.readers.leased(&known.member.place),
            connections: self.connections(&known.member.place),
            standby: standby(known),
            signals: known.samples.fresh(now).cloned(),
            volume: self.volumes.as_ref().ok().and_then(|volumes| volumes.get(&known.member.name)).copied(),
            wal_growth: known.growth.rate(),
        };
        let primary = state.member();
        let timeline = primary.and_then(|member| self.known.get(&member.name)?.identity);
        ClusterStatus {
            state: state.name(),
            since: Some(self.gate.since()),
            why: state.why().map(|why| (why.label(), why.to_string().into())),
            primary: primary.map(|member| Arc::clone(&member.name)),
            timeline: timeline.map(|identity| identity.timeline),
            members: self.known.values().map(member).collect(),
            moves: self.moves,
            severed: self.severed,
            split: matches!(state.why(), Some(Why::Several(_))),
            source: self.last_source,
            named_by: self.cluster.source,
            health: self.judge.health().cloned(),
            events: Arc::clone(&self.events),
        }
    }
}

/// What each role may use.
fn roles(writer: &Access, readers: Vec<Arc<Site>>, fallback: bool) -> BTreeMap<Role, Access> {
    let open_writer = writer.sites.iter().filter(|_| writer.held.is_none()).cloned();
    let any: Vec<_> = readers.iter().cloned().chain(open_writer.clone()).collect();
    let or_writer = match readers.is_empty() {
        true => open_writer.collect(),
        false => readers.clone(),
    };
    let read_only = if fallback { or_writer.clone() } else { readers };
    let access = |sites: Vec<Arc<Site>>, none: &str| {
        let held = sites.is_empty().then(|| Arc::from(none));
        Access { sites, held }
    };
    BTreeMap::from([
        (Role::ReadWrite, writer.clone()),
        (Role::ReadOnly, access(read_only, "no standby is ready and fresh enough")),
        (Role::Read, access(any, "no server of the cluster is ready and fresh enough")),
        (Role::PreferStandby, access(or_writer, "no server of the cluster is ready and fresh enough")),
    ])
}
