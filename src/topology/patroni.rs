//! The source `patroni`: what Patroni's objects in Kubernetes say, as it is, or as Zalando's and Crunchy's
//! operators have it. [`observe`] reads them all.
//!
//! The primary is the pod in the annotation `leader` of the leader object. The pods' own labels are not
//! asked: each pod writes its own, and a dead leader keeps the one it had. Patroni keeps its objects
//! either as Endpoints or as ConfigMaps; both are looked at, and the one that was renewed last counts, so
//! that a change from one to the other needs no setting. Nothing here asks the API or reads a clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;

use super::{Named, Observation, label, pods};

/// How long a leader holds on to an unrenewed key when the key does not say: Patroni's default `ttl`.
const TTL: Duration = Duration::from_secs(30);

/// What is added to the ttl before a leader is taken for lost: in this time it comes out that it was
/// not the leader that fell silent but our own watch.
const TTL_MARGIN: Duration = Duration::from_secs(30);

/// In which kind of object Patroni keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `use_endpoints: true`
    Endpoints,
    /// ConfigMaps
    ConfigMap,
}

impl Kind {
    /// The names of the leader, config and failover objects of a scope.
    pub fn names(self, scope: &str) -> [String; 3] {
        let leader = match self {
            Kind::Endpoints => scope.to_owned(),
            Kind::ConfigMap => format!("{scope}-leader"),
        };
        [leader, format!("{scope}-config"), format!("{scope}-failover")]
    }
}

/// Patroni's records: they are annotations, whatever kind of object carries them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Who leads: `leader`, `renewTime`, `ttl`.
    pub leader: Option<ObjectMeta>,
    /// `initialize` (the system identifier), `history`, `config`.
    pub config: Option<ObjectMeta>,
    /// A switchover that was asked for: `leader`, `member`, `scheduled_at`.
    pub failover: Option<ObjectMeta>,
}

/// The label selectors of a scope's database pods: Patroni's own example and Zalando's, and Crunchy's.
/// Zalando's poolers carry the name of their cluster too, so it alone does not do.
pub fn selectors(scope: &str) -> [String; 2] {
    let crunchy = "postgres-operator.crunchydata.com";
    [
        format!("application in (spilo,patroni),cluster-name={scope}"),
        format!("{crunchy}/patroni={scope},{crunchy}/data=postgres"),
    ]
}

/// The label selector of the EndpointSlices of a scope's services.
pub fn slices_selector(scope: &str) -> String {
    let cluster = scope.strip_suffix("-ha").unwrap_or(scope);
    format!("kubernetes.io/service-name in ({scope},{scope}-repl,{cluster}-replicas,{cluster}-pods)")
}

/// The records that count: those whose leader record was renewed last.
pub fn latest<'a>(endpoints: &'a Records, config_maps: &'a Records) -> &'a Records {
    let renewed = |records: &Records| records.leader.as_ref().and_then(renew_time);
    let leads =
        |records: &Records| records.leader.as_ref().is_some_and(|leader| leader_name(leader).is_some());
    let of = |records: &Records| (renewed(records), leads(records));
    if of(endpoints) > of(config_maps) { endpoints } else { config_maps }
}

/// What these records and pods say. With `primary_label`, the leader's pod must carry it too.
pub fn observe(
    records: &Records,
    pods: &[Pod],
    slices: &[EndpointSlice],
    primary_label: Option<&str>,
    port: u16,
) -> Observation {
    let config = records.config.as_ref();
    let initialize = config.and_then(|config| pods::annotation(config, "initialize"));
    Observation {
        incarnation: config.and_then(|config| config.uid.as_deref().map(Arc::from)),
        members: pods::members(pods, slices, port),
        primary: primary(records, pods, primary_label),
        system_id: initialize.and_then(|system| system.parse().ok()),
        timeline: config.and_then(timeline),
        phase: None,
    }
}

fn primary(records: &Records, pods: &[Pod], primary_label: Option<&str>) -> Named {
    if records.config.as_ref().is_some_and(is_standby_cluster) {
        return Named::Nobody("it is a standby cluster: its primary is in another one".into());
    }
    let Some(record) = &records.leader else {
        return Named::Nobody("there is no leader object of Patroni".into());
    };
    let Some(leader) = leader_name(record) else {
        return Named::Nobody("no server holds Patroni's leader key".into());
    };
    if let Some(to) = records.failover.as_ref().and_then(|failover| requested(failover, leader)) {
        let to = Some(to).filter(|to| !to.is_empty()).map(Arc::from);
        return Named::Moving { from: Some(leader.into()), to, reason: "a switchover was requested".into() };
    }
    let pod = pods.iter().find(|pod| pods::name(pod) == leader);
    let carries = |key_value: &str| pod.and_then(|pod| label::carries(pod, key_value)) == Some(true);
    match primary_label {
        Some(key_value) if !carries(key_value) => {
            Named::Nobody(format!("{leader} holds the leader key, but has no label {key_value}").into())
        }
        _ => Named::Member(leader.into()),
    }
}

fn leader_name(record: &ObjectMeta) -> Option<&str> {
    pods::annotation(record, "leader")
}

fn renew_time(record: &ObjectMeta) -> Option<Time> {
    serde_json::from_value(Value::from(pods::annotation(record, "renewTime")?)).ok()
}

/// To whom a switchover away from this leader was requested; an empty name leaves the choice to Patroni.
///
/// One that is scheduled is hours away, perhaps: the loss of the leader key will announce it. One that
/// names another leader, or this one as the next, is done. Patroni takes the annotations away, not the object.
fn requested<'a>(failover: &'a ObjectMeta, leader: &str) -> Option<&'a str> {
    let from = pods::annotation(failover, "leader");
    let to = pods::annotation(failover, "member");
    let is_scheduled = pods::annotation(failover, "scheduled_at").is_some();
    if is_scheduled || from.is_some_and(|from| from != leader) || to == Some(leader) {
        return None;
    }
    to.or(from.map(|_| ""))
}

fn is_standby_cluster(config: &ObjectMeta) -> bool {
    let settings: Option<Value> =
        pods::annotation(config, "config").and_then(|text| serde_json::from_str(text).ok());
    settings.is_some_and(|settings| settings.get("standby_cluster").is_some_and(Value::is_object))
}

/// The timeline that began at the last entry of the history: the primary has at least this one.
fn timeline(config: &ObjectMeta) -> Option<u32> {
    let history: Value = serde_json::from_str(pods::annotation(config, "history")?).ok()?;
    let left = history.as_array()?.last()?.get(0)?.as_u64()?;
    u32::try_from(left).ok()?.checked_add(1)
}

/// Watches whether the leader renews its key: a leader that is cut off from the API has lost it, although
/// its name is still there. As in Patroni, no clock of another machine is compared with ours.
#[derive(Debug, Default)]
pub struct Renewal {
    record: Option<ObjectMeta>,
    since: Option<Instant>,
}

impl Renewal {
    /// Called with every news of the API, whatever it is about: that the API speaks of other things
    /// shows that it would speak of the leader. Returns whether the leader has lost its key.
    pub fn has_lapsed(&mut self, leader: Option<&ObjectMeta>, now: Instant) -> bool {
        if self.record.as_ref() != leader {
            self.record = leader.cloned();
            self.since = Some(now);
        }
        let (Some(record), Some(since)) = (&self.record, self.since) else {
            return false;
        };
        let ttl = pods::annotation(record, "ttl").and_then(|text| text.parse().ok());
        let ttl = ttl.map_or(TTL, Duration::from_secs);
        leader_name(record).is_some() && now.saturating_duration_since(since) > ttl + TTL_MARGIN
    }
}

/// The observation when the leader has not renewed its key.
pub fn lapsed(mut observation: Observation) -> Observation {
    if let Named::Member(leader) = &observation.primary {
        observation.primary = Named::Nobody(format!("{leader} has not renewed its leader key").into());
    }
    observation
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pods::tests::pod;
    use super::*;

    fn record(annotations: Value) -> ObjectMeta {
        serde_json::from_value(json!({ "uid": "uid-config", "annotations": annotations })).expect("metadata")
    }

    fn leader(name: &str) -> Records {
        let leader = json!({ "leader": name, "renewTime": "2026-01-01T12:00:00.123456+00:00", "ttl": "30" });
        Records { leader: Some(record(leader)), ..Records::default() }
    }

    fn shown(records: &Records, primary_label: Option<&str>) -> String {
        let pods = [
            pod("a-1", json!({ "role": "primary" }), json!({})),
            pod("a-2", json!({ "role": "replica" }), json!({})),
        ];
        match observe(records, &pods, &[], primary_label, 5432).primary {
            Named::Member(name) => name.to_string(),
            Named::Nobody(why) => format!("nobody: {why}"),
            Named::Moving { from, to, reason } => {
                format!("{} -> {}: {reason}", from.as_deref().unwrap_or("?"), to.as_deref().unwrap_or("?"))
            }
            other @ Named::Several(_) => format!("{other:?}"),
        }
    }

    #[test]
    fn the_holder_of_the_leader_key_is_the_primary() {
        assert_eq!(shown(&leader("a-1"), None), "a-1");
        assert_eq!(shown(&leader("a-2"), None), "a-2", "the pods' labels are not asked");
        assert_eq!(shown(&leader(""), None), "nobody: no server holds Patroni's leader key");
        let released = Records { leader: Some(record(json!({ "ttl": "30" }))), ..Records::default() };
        assert_eq!(shown(&released, None), "nobody: no server holds Patroni's leader key");
        assert_eq!(shown(&Records::default(), None), "nobody: there is no leader object of Patroni");
    }

    #[test]
    fn a_primary_label_that_was_asked_for_must_be_there_too() {
        assert_eq!(shown(&leader("a-1"), Some("role=primary")), "a-1");
        let missing = "holds the leader key, but has no label role=primary";
        assert_eq!(shown(&leader("a-2"), Some("role=primary")), format!("nobody: a-2 {missing}"));
        assert_eq!(shown(&leader("a-3"), Some("role=primary")), format!("nobody: a-3 {missing}"));
    }

    #[test]
    fn a_requested_switchover_is_a_change_unless_it_is_scheduled() {
        let check = |failover: Value, expected: &str| {
            let records = Records { failover: Some(record(failover.clone())), ..leader("a-1") };
            assert_eq!(shown(&records, None), expected, "{failover}");
        };
        check(json!({ "leader": "a-1", "member": "a-2" }), "a-1 -> a-2: a switchover was requested");
        check(json!({ "member": "a-2" }), "a-1 -> a-2: a switchover was requested");
        check(json!({ "leader": "a-1" }), "a-1 -> ?: a switchover was requested");
        check(json!({ "leader": "a-1", "scheduled_at": "2026-01-02T00:00:00+00:00" }), "a-1");
        check(json!({ "leader": "a-2", "member": "a-1" }), "a-1");
        check(json!({ "leader": "a-3" }), "a-1");
        check(json!({ "member": "a-1" }), "a-1");
        check(json!({}), "a-1");
        check(json!(null), "a-1");
    }

    #[test]
    fn a_standby_cluster_has_no_primary() {
        let check = |config: &str, expected: &str| {
            let records = Records { config: Some(record(json!({ "config": config }))), ..leader("a-1") };
            assert_eq!(shown(&records, None), expected, "{config}");
        };
        check(
            r#"{"standby_cluster":{"host":"x"}}"#,
            "nobody: it is a standby cluster: its primary is in another one",
        );
        check(r#"{"standby_cluster":null}"#, "a-1");
        check(r#"{"ttl":30}"#, "a-1");
        check("no json", "a-1");
    }

    #[test]
    fn system_identifier_and_timeline_come_from_the_config() {
        let facts = |annotations: Value| {
            let records = Records { config: Some(record(annotations)), ..leader("a-1") };
            let found = observe(&records, &[], &[], None, 5432);
            assert_eq!(found.incarnation.as_deref(), Some("uid-config"));
            (found.system_id, found.timeline)
        };
        let history =
            r#"[[1,83886296,"no recovery target specified","2026-01-01T00:00:00","a-1"],[2,9,"x"]]"#;
        assert_eq!(
            facts(json!({ "initialize": "7423867867637645328", "history": history })),
            (Some(7_423_867_867_637_645_328), Some(3))
        );
        assert_eq!(facts(json!({ "initialize": "", "history": "[]" })), (None, None));
        assert_eq!(facts(json!({ "history": "[[4294967295]]" })), (None, None));
        assert_eq!(facts(json!({ "history": "{" })), (None, None));
    }

    #[test]
    fn the_records_that_were_renewed_last_count() {
        let renewed = |leader: Option<&str>, time: &str| {
            let annotations = json!({ "leader": leader.unwrap_or(""), "renewTime": time });
            Records { leader: Some(record(annotations)), ..Records::default() }
        };
        let old = renewed(Some("a-1"), "2026-01-01T12:00:00.9+00:00");
        let new = renewed(Some("a-2"), "2026-01-01T12:00:10.1+00:00");
        let released = renewed(None, "2026-01-01T12:00:20.1+00:00");
        let service = Records { leader: Some(record(json!(null))), ..Records::default() };
        let none = Records::default();
        for (one, other, expected) in
            [(&old, &new, &new), (&old, &released, &released), (&old, &service, &old), (&old, &none, &old)]
        {
            assert_eq!(latest(one, other), expected);
            assert_eq!(latest(other, one), expected);
        }
    }

    #[test]
    fn a_leader_that_does_not_renew_its_key_has_lost_it() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut renewal = Renewal::default();
        let one = leader("a-1").leader;
        let mut renewed = one.clone();
        if let Some(record) = &mut renewed {
            record.resource_version = Some("2".into());
        }
        assert!(!renewal.has_lapsed(one.as_ref(), start));
        assert!(!renewal.has_lapsed(one.as_ref(), after(60)));
        assert!(renewal.has_lapsed(one.as_ref(), after(61)));
        assert!(!renewal.has_lapsed(renewed.as_ref(), after(62)));
        assert!(!renewal.has_lapsed(renewed.as_ref(), after(122)));
        assert!(renewal.has_lapsed(renewed.as_ref(), after(123)));
        assert!(!renewal.has_lapsed(None, after(300)), "no leader is said otherwise");
        assert!(!renewal.has_lapsed(None, after(900)));
    }

    #[test]
    fn only_a_named_leader_can_lapse() {
        let mut observation = Observation::nothing("x");
        assert_eq!(lapsed(observation.clone()), observation);
        observation.primary = Named::Member("a-1".into());
        let nobody = Named::Nobody("a-1 has not renewed its leader key".into());
        assert_eq!(lapsed(observation).primary, nobody);
    }

    #[test]
    fn the_names_of_the_objects_follow_the_kind() {
        assert_eq!(Kind::Endpoints.names("s"), ["s", "s-config", "s-failover"]);
        assert_eq!(Kind::ConfigMap.names("s"), ["s-leader", "s-config", "s-failover"]);
    }
}
