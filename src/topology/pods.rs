//! What all sources in Kubernetes share: [`members`] of a cluster from its pods, and their zones.
//!
//! Objects in, values out: nothing here asks the API.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Member, Place};
use crate::config::Host;

/// The zone of a pod's node; Kubernetes 1.35 and later copy it to the pod.
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

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

/// A pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The pod's uid; `None` for an endpoint that is no pod.
    pub uid: Option<Arc<str>>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// All that is behind a Service: also what is not ready, as a pod that ends is not and yet has clients.
///
/// Of several ports the Service's slices name, it is the one of this number, else the first.
pub fn backends(slices: &[EndpointSlice], port: u16) -> Vec<Backend> {
    let mut backends: Vec<Backend> = slices.iter().flat_map(|slice| backends_of(slice, port)).collect();
    backends.sort_by_key(|backend| backend.address);
    backends.dedup_by_key(|backend| backend.address);
    backends
}

fn backends_of(slice: &EndpointSlice, port: u16) -> Vec<Backend> {
    let ports = slice.ports.iter().flatten().filter_map(|one| u16::try_from(one.port?).ok());
    let ports: Vec<u16> = ports.collect();
    let Some(port) = ports.iter().find(|one| **one == port).or(ports.first()) else { return Vec::new() };
    let endpoints = slice.endpoints.iter().flatten();
    let backends = endpoints.flat_map(|endpoint| {
        let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
        // All addresses of an endpoint are the same pod's: the first is enough.
        let ip = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
        ip.map(|ip| Backend { uid: uid.map(Arc::from), address: SocketAddr::new(ip, *port) })
    });
    backends.collect()
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

/// Where the pod is, once it is somewhere.
pub fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|address| !address.is_empty())
}

/// Whether Kubernetes takes it for ready.
pub fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Its volumes that are claimed: name, and name of the claim.
pub fn claims(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref()?;
        Some((volume.name.as_str(), claim.claim_name.as_str()))
    })
}

fn member(pod: &Pod, slices: &[EndpointSlice], port: u16) -> Option<Member> {
    let address = address(pod)?;
    Some(Member {
        name: name(pod).into(),
        place: Place {
            uid: pod.metadata.uid.as_deref().map(Arc::from),
            host: Host::Tcp(address.to_owned()),
            port,
        },
        zone: label(pod, ZONE_LABEL).map(Arc::from).or_else(|| zone_of(name(pod), slices)),
        ready: is_ready(pod),
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
    fn behind_a_service_is_every_pod_of_it_ready_or_not() {
        let check = |ports: Value, endpoints: Value, expected: &[&str]| {
            let mut slice = slice(endpoints);
            slice.ports = serde_json::from_value(ports.clone()).expect("ports");
            let found = backends(&[slice.clone(), slice], 5432);
            let found: Vec<String> = found
                .iter()
                .map(|one| format!("{}={}", one.uid.as_deref().unwrap_or("?"), one.address))
                .collect();
            assert_eq!(found, expected, "{ports}");
        };
        let endpoint = |address: &str, change: Value| {
            let mut endpoint = json!({ "addresses": [address], "targetRef": { "kind": "Pod", "uid": "a" } });
            merge(&mut endpoint, change);
            endpoint
        };
        let leaving = json!({ "conditions": { "ready": false, "serving": false, "terminating": true } });
        let all = json!([
            endpoint("10.0.0.2", leaving),
            endpoint("10.0.0.1", json!({ "targetRef": null })),
            endpoint("fd00::7", json!({ "targetRef": { "uid": "b" } })),
            endpoint("no address", json!({})),
        ]);
        let port = json!([{ "port": 6432 }]);
        check(port.clone(), all.clone(), &["?=10.0.0.1:6432", "a=10.0.0.2:6432", "b=[fd00::7]:6432"]);
        let one = || json!([endpoint("10.0.0.2", json!({}))]);
        check(json!([{ "port": 9128 }, { "port": 5432 }]), one(), &["a=10.0.0.2:5432"]);
        check(json!([{ "port": 9128 }, { "port": 5433 }]), one(), &["a=10.0.0.2:9128"]);
        check(json!([{ "name": "any" }]), one(), &[]);
        check(json!(null), one(), &[]);
        check(port, json!(null), &[]);
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
