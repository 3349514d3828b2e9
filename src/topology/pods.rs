//! What all sources in Kubernetes share: [`members`] of a cluster from its pods, and their zones.
//!
//! Objects in, values out: nothing here asks the API.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Member, Place};
use crate::config::Host;

/// The zone of a pod's node; Kubernetes 1.35 and later copy it to the pod.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The servers in these pods, by name. A pod without an address is none yet, and one that has ended is
/// none any more: its address may be another pod's by now.
pub fn members(pods: &[Pod], slices: &[EndpointSlice], port: u16) -> Vec<Member> {
    let mut members: Vec<Member> = running(pods).filter_map(|pod| member(pod, slices, port)).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members.dedup_by(|a, b| a.name == b.name);
    members
}

/// The pods that have not ended for good, as an evicted one has.
pub fn running(pods: &[Pod]) -> impl Iterator<Item = &Pod> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Failed" | "Succeeded"))
    };
    pods.iter().filter(move |pod| !ended(pod))
}

/// The zone of the endpoint with this address: our own, when it is our own address.
pub fn zone_at(slices: &[EndpointSlice], address: &str) -> Option<Arc<str>> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let mut here = endpoints.filter(|endpoint| endpoint.addresses.iter().any(|one| one == address));
    here.find_map(|endpoint| endpoint.zone.as_deref().map(Arc::from))
}

/// The value of a pod's label.
pub fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an object's annotation; an empty one is none.
pub fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let value = metadata.annotations.as_ref()?.get(key)?;
    (!value.is_empty()).then_some(value)
}

/// The pod's name; the API gives every pod one.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn member(pod: &Pod, slices: &[EndpointSlice], port: u16) -> Option<Member> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.as_ref().filter(|address| !address.is_empty())?;
    let mut conditions = status.conditions.iter().flatten();
    Some(Member {
        name: name(pod).into(),
        place: Place {
            uid: pod.metadata.uid.as_deref().map(Arc::from),
            host: Host::Tcp(address.clone()),
            port,
        },
        zone: label(pod, ZONE_LABEL).map(Arc::from).or_else(|| zone_of(name(pod), slices)),
        ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        fenced: None,
    })
}

fn zone_of(pod: &str, slices: &[EndpointSlice]) -> Option<Arc<str>> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let mut its = endpoints.filter(|endpoint| {
        let target = endpoint.target_ref.as_ref();
        target.is_some_and(|target| {
            target.kind.as_deref() == Some("Pod") && target.name.as_deref() == Some(pod)
        })
    });
    its.find_map(|endpoint| endpoint.zone.as_deref().map(Arc::from))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A ready pod at 10.0.0.N, N being the last character of its name, with labels and `change` on top.
    pub(in crate::topology) fn pod(name: &str, labels: Value, change: Value) -> Pod {
        let mut object = json!({
            "metadata": { "name": name, "uid": format!("uid-{name}"), "labels": labels },
            "status": {
                "phase": "Running",
                "podIP": format!("10.0.0.{}", &name[name.len() - 1..]),
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        merge(&mut object, change);
        serde_json::from_value(object).expect("a pod")
    }

    /// Puts what `change` has into `value`; null takes away.
    pub(in crate::topology) fn merge(value: &mut Value, change: Value) {
        match (value, change) {
            (Value::Object(fields), Value::Object(changes)) => {
                for (key, change) in changes {
                    merge(fields.entry(key).or_insert(Value::Null), change);
                }
            }
            (value, change) => *value = change,
        }
    }

    fn slice(endpoints: Value) -> EndpointSlice {
        let object = json!({ "addressType": "IPv4", "metadata": {}, "endpoints": endpoints });
        serde_json::from_value(object).expect("an EndpointSlice")
    }

    /// What becomes of one pod: `name@place ready terminating zone`, or nothing.
    fn check(change: Value, expected: Option<&str>) {
        let slices = [slice(json!([
            { "addresses": ["10.0.0.1"], "zone": "node", "targetRef": { "kind": "Node", "name": "a-1" } },
            { "addresses": ["10.0.0.1"], "zone": "eu-1", "targetRef": { "kind": "Pod", "name": "a-1" } },
        ]))];
        let found = members(&[pod("a-1", json!({}), change.clone())], &slices, 5432);
        let shown: Vec<String> = found
            .iter()
            .map(|m| format!("{}@{} {} {} {:?}", m.name, m.place, m.ready, m.terminating, m.zone))
            .collect();
        assert_eq!(shown.first().map(String::as_str), expected, "{change}");
    }

    #[test]
    fn a_member_is_what_its_pod_says() {
        check(json!({}), Some("a-1@10.0.0.1:5432 true false Some(\"eu-1\")"));
        check(json!({ "metadata": { "name": "b-1" } }), Some("b-1@10.0.0.1:5432 true false None"));
        check(
            json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "eu-2" } } }),
            Some("a-1@10.0.0.1:5432 true false Some(\"eu-2\")"),
        );
        check(
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }),
            Some("a-1@10.0.0.1:5432 false false Some(\"eu-1\")"),
        );
        check(
            json!({ "status": { "conditions": null } }),
            Some("a-1@10.0.0.1:5432 false false Some(\"eu-1\")"),
        );
        check(
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
            Some("a-1@10.0.0.1:5432 true true Some(\"eu-1\")"),
        );
    }

    #[test]
    fn a_pod_without_address_or_that_has_ended_is_no_member() {
        check(json!({ "status": { "podIP": null } }), None);
        check(json!({ "status": { "podIP": "" } }), None);
        check(json!({ "status": null }), None);
        check(json!({ "status": { "phase": "Failed" } }), None);
        check(json!({ "status": { "phase": "Succeeded" } }), None);
    }

    #[test]
    fn members_are_sorted_and_no_pod_counts_twice() {
        let pods = ["a-2", "a-1", "a-2"].map(|name| pod(name, json!({}), json!({})));
        let names: Vec<Arc<str>> = members(&pods, &[], 1).into_iter().map(|member| member.name).collect();
        assert_eq!(names, ["a-1".into(), "a-2".into()]);
    }

    #[test]
    fn our_own_zone_is_that_of_our_address() {
        let slices = [
            slice(json!(null)),
            slice(json!([
                { "addresses": ["10.0.0.7"] },
                { "addresses": ["10.0.0.8", "10.0.0.9"], "zone": "eu-3" },
            ])),
        ];
        assert_eq!(zone_at(&slices, "10.0.0.9").as_deref(), Some("eu-3"));
        assert_eq!(zone_at(&slices, "10.0.0.7"), None);
        assert_eq!(zone_at(&slices, "10.0.0.1"), None);
    }
}
