//! All that the watches of one cluster have said, and what follows from it: [`Known`].
//!
//! Pure bookkeeping: `now` is an argument, nothing here waits.

use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;

use super::SourceEvent;
use super::watch::Trouble;
use crate::config::{Cluster, SourceKind};
use crate::topology::{Observation, cnpg, label, patroni};

/// How much depends on a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Without it nothing can be said.
    Must,
    /// One of those with this need is enough; if it is refused, another may do.
    OneOf,
    /// Without it less is known.
    May,
}

/// What a watch has said.
#[derive(Debug)]
pub(super) enum News {
    /// The Cluster object of CloudNativePG; the error if it cannot be read.
    Cluster(Option<Result<cnpg::Cluster, String>>),
    /// The pods of one selector.
    Pods(usize, Vec<Pod>),
    /// The EndpointSlices of its services.
    Slices(Vec<EndpointSlice>),
    /// Its Lease.
    Lease(Option<Lease>),
    /// Patroni's leader (0), config (1) or failover (2) object.
    Record(patroni::Kind, usize, Option<ObjectMeta>),
    /// It cannot see.
    Blind(Trouble),
}

/// Where a watch stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Starting,
    Live,
    Blind(Trouble),
}

/// See the module's text.
pub(super) struct Known {
    cluster: Cluster,
    watches: Vec<(Need, Standing)>,
    object: Option<Result<cnpg::Cluster, String>>,
    /// By selector, and all together.
    pod_groups: [Vec<Pod>; 2],
    pods: Vec<Pod>,
    slices: Vec<EndpointSlice>,
    lease: Option<Lease>,
    endpoints: patroni::Records,
    config_maps: patroni::Records,
    renewal: patroni::Renewal,
    has_lapsed: bool,
    last: Option<SourceEvent>,
}

impl Known {
    /// Nothing is known yet; one need for each watch.
    pub(super) fn new(cluster: Cluster, needs: Vec<Need>) -> Self {
        Known {
            cluster,
            watches: needs.into_iter().map(|need| (need, Standing::Starting)).collect(),
            object: None,
            pod_groups: Default::default(),
            pods: Vec::new(),
            slices: Vec::new(),
            lease: None,
            endpoints: patroni::Records::default(),
            config_maps: patroni::Records::default(),
            renewal: patroni::Renewal::default(),
            has_lapsed: false,
            last: None,
        }
    }

    /// A watch has said something.
    pub(super) fn handle(&mut self, watch: usize, news: News, now: Instant) {
        let standing = match &news {
            News::Blind(trouble) => Standing::Blind(trouble.clone()),
            _ => Standing::Live,
        };
        let was_blind = matches!(self.watches[watch].1, Standing::Blind(_));
        self.watches[watch].1 = standing;
        match news {
            News::Cluster(object) => self.object = object,
            News::Pods(group, pods) => {
                self.pod_groups[group] = pods;
                self.pods = self.pod_groups.concat();
            }
            News::Slices(slices) => self.slices = slices,
            News::Lease(lease) => self.lease = lease,
            News::Record(kind, part, record) => {
                let records = match kind {
                    patroni::Kind::Endpoints => &mut self.endpoints,
                    patroni::Kind::ConfigMap => &mut self.config_maps,
                };
                match part {
                    0 => records.leader = record,
                    1 => records.config = record,
                    _ => records.failover = record,
                }
            }
            News::Blind(_) => return,
        }
        if was_blind {
            // While we could not hear the leader, it may have renewed its key or been unable to, as we were.
            self.renewal = patroni::Renewal::default();
        }
        let leader = patroni::latest(&self.endpoints, &self.config_maps).leader.as_ref();
        self.has_lapsed = self.renewal.has_lapsed(leader, now);
    }

    /// What is to be said now, if it was not said last.
    pub(super) fn take_event(&mut self) -> Option<SourceEvent> {
        let event = match self.trouble() {
            Some(Trouble::Denied(why)) => SourceEvent::Denied(why.clone()),
            Some(Trouble::Unknown(why) | Trouble::Unreachable(why)) => SourceEvent::Unreachable(why.clone()),
            Some(Trouble::Outdated) => return None,
            None if self.is_starting() => return None,
            None => SourceEvent::Observed(self.observe()),
        };
        let is_said = match (&event, &self.last) {
            (SourceEvent::Observed(new), Some(SourceEvent::Observed(old))) => new == old,
            // The words of an error change from one attempt to the next; it is still the same trouble.
            (SourceEvent::Denied(_), Some(SourceEvent::Denied(_))) => true,
            (SourceEvent::Unreachable(_), Some(SourceEvent::Unreachable(_))) => true,
            _ => false,
        };
        if is_said {
            return None;
        }
        self.last = Some(event.clone());
        Some(event)
    }

    fn is_starting(&self) -> bool {
        self.watches.iter().any(|(_, standing)| *standing == Standing::Starting)
    }

    /// What keeps us from knowing what we must.
    fn trouble(&self) -> Option<&Trouble> {
        let refused =
            |standing: &Standing| matches!(standing, Standing::Blind(trouble) if trouble.is_refusal());
        let mut alternatives = self.watches.iter().filter(|(need, _)| *need == Need::OneOf);
        let one_is_open = alternatives.any(|(_, standing)| !refused(standing));
        self.watches.iter().find_map(|(need, standing)| match (need, standing) {
            (_, Standing::Starting | Standing::Live) | (Need::May, _) => None,
            (Need::OneOf, _) if one_is_open && refused(standing) => None,
            (Need::Must | Need::OneOf, Standing::Blind(trouble)) => Some(trouble),
        })
    }

    fn observe(&self) -> Observation {
        let port = self.cluster.port;
        match self.cluster.source {
            Some(SourceKind::Cnpg) => self.observe_cnpg(),
            Some(SourceKind::Patroni) => {
                let records = patroni::latest(&self.endpoints, &self.config_maps);
                let primary_label = self.cluster.primary_label.as_deref();
                let found = patroni::observe(records, &self.pods, &self.slices, primary_label, port);
                if self.has_lapsed { patroni::lapsed(found) } else { found }
            }
            Some(SourceKind::Label) => {
                let primary_label = self.cluster.primary_label.as_deref().unwrap_or_default();
                label::observe(&self.pods, &self.slices, primary_label, port)
            }
            Some(SourceKind::Probe | SourceKind::Static) | None => {
                Observation::nothing("its source is not in Kubernetes")
            }
        }
    }

    fn observe_cnpg(&self) -> Observation {
        let cluster = match &self.object {
            Some(Ok(cluster)) => Some(cluster),
            Some(Err(error)) => return Observation::nothing(error),
            None => None,
        };
        let lease = self.lease.as_ref();
        let objects = cnpg::Objects { cluster, pods: &self.pods, slices: &self.slices, lease };
        cnpg::observe(self.cluster.object_name(), objects, self.cluster.port)
    }
}

/// The Cluster object among those that a watch has found, which has at most one.
pub(super) fn cluster(found: Vec<DynamicObject>) -> Option<Result<cnpg::Cluster, String>> {
    let object = found.into_iter().next()?;
    let read = cnpg::Cluster::new(object.metadata, object.data);
    Some(read.map_err(|error| format!("the Cluster object cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::topology::Named;
    use crate::topology::pods::tests::pod;
    use serde_json::json;

    fn known(source: SourceKind, needs: &[Need]) -> Known {
        let mut cluster = Cluster::new("c".to_owned());
        cluster.source = Some(source);
        cluster.primary_label = (source == SourceKind::Label).then(|| "role=primary".to_owned());
        Known::new(cluster, needs.to_vec())
    }

    fn down() -> News {
        News::Blind(Trouble::Unreachable("down".into()))
    }

    fn denied() -> News {
        News::Blind(Trouble::Denied("no".into()))
    }

    fn leader(name: &str) -> Option<ObjectMeta> {
        serde_json::from_value(json!({ "annotations": { "leader": name } })).ok()
    }

    /// The event after this piece of news: `denied`, `unreachable`, the primary, or nothing.
    fn told(known: &mut Known, watch: usize, news: News, now: Instant) -> String {
        known.handle(watch, news, now);
        match known.take_event() {
            None => String::new(),
            Some(SourceEvent::Denied(_)) => "denied".into(),
            Some(SourceEvent::Unreachable(_)) => "unreachable".into(),
            Some(SourceEvent::Observed(found)) => match found.primary {
                Named::Member(name) => name.to_string(),
                other => format!("{other:?}"),
            },
        }
    }

    #[test]
    fn an_observation_is_sent_when_it_changes_and_after_each_trouble() {
        let now = Instant::now();
        let mut known = known(SourceKind::Label, &[Need::Must, Need::May]);
        let primary = |name| News::Pods(0, vec![pod(name, json!({ "role": "primary" }), json!({}))]);
        let mut tell = |watch, news| told(&mut known, watch, news, now);
        assert_eq!(tell(0, primary("a-1")), "", "the slices have not answered yet");
        assert_eq!(tell(1, denied()), "a-1", "they are not needed");
        assert_eq!(tell(0, primary("a-1")), "");
        assert_eq!(tell(0, primary("a-2")), "a-2");
        assert_eq!(tell(0, down()), "unreachable");
        assert_eq!(tell(0, News::Blind(Trouble::Unreachable("other words".into()))), "");
        assert_eq!(tell(1, News::Slices(Vec::new())), "");
        assert_eq!(tell(0, denied()), "denied");
        assert_eq!(tell(0, primary("a-2")), "a-2", "confirmed, though it is the same");
        assert_eq!(tell(1, down()), "");
    }

    #[test]
    fn one_kind_of_patroni_objects_is_enough() {
        let now = Instant::now();
        let both = [Need::OneOf, Need::OneOf];
        let record = || News::Record(patroni::Kind::ConfigMap, 0, leader("a-1"));
        let mut one = known(SourceKind::Patroni, &both);
        assert_eq!(told(&mut one, 0, denied(), now), "");
        assert_eq!(told(&mut one, 1, record(), now), "a-1");
        assert_eq!(told(&mut one, 0, down(), now), "unreachable", "it may be the one that leads");
        let mut none = known(SourceKind::Patroni, &both);
        assert_eq!(told(&mut none, 0, denied(), now), "");
        assert_eq!(told(&mut none, 1, denied(), now), "denied");
        assert_eq!(told(&mut none, 1, record(), now), "a-1");
    }

    #[test]
    fn a_leader_lapses_only_while_the_api_speaks() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut known = known(SourceKind::Patroni, &[Need::OneOf, Need::Must]);
        let record = || News::Record(patroni::Kind::Endpoints, 0, leader("a-1"));
        let pods = || News::Pods(1, Vec::new());
        assert_eq!(told(&mut known, 1, pods(), start), "");
        assert_eq!(told(&mut known, 0, record(), start), "a-1");
        assert_eq!(told(&mut known, 0, down(), after(100)), "unreachable");
        assert_eq!(told(&mut known, 1, pods(), after(101)), "", "only half of it speaks");
        assert_eq!(told(&mut known, 0, record(), after(102)), "a-1", "nobody could renew anything");
        assert_eq!(told(&mut known, 1, pods(), after(162)), "");
        let lapsed = "Nobody(\"a-1 has not renewed its leader key\")";
        assert_eq!(told(&mut known, 1, pods(), after(163)), lapsed);
    }
}
