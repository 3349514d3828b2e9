//! The source `label`: the primary is the pod that carries a label. [`observe`] reads the pods.
//!
//! For charts without an operator that is known here. A label may be late or stale, so that two pods
//! carry it is normal for a while: then nobody is written to.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Named, Observation, pods};

/// What these pods say, which the cluster's `selector` has chosen. `primary_label` is `key=value`.
pub fn observe(pods: &[Pod], slices: &[EndpointSlice], primary_label: &str, port: u16) -> Observation {
    Observation {
        incarnation: None,
        members: pods::members(pods, slices, port),
        primary: primary(pods, primary_label),
        system_id: None,
        timeline: None,
        phase: None,
    }
}

/// Whether the pod carries the label `key=value`; `None` if that is no label.
pub(super) fn carries(pod: &Pod, key_value: &str) -> Option<bool> {
    let (key, value) = key_value.split_once('=')?;
    Some(pods::label(pod, key.trim()) == Some(value.trim()))
}

fn primary(pods: &[Pod], primary_label: &str) -> Named {
    if !primary_label.contains('=') {
        return Named::Nobody(format!("primary_label \"{primary_label}\" is not key=value").into());
    }
    let carriers = pods::running(pods).filter(|pod| carries(pod, primary_label) == Some(true));
    let mut names: Vec<_> = carriers.map(|pod| pods::name(pod).into()).collect();
    names.sort();
    match names.len() {
        0 => Named::Nobody(format!("no pod has the label {primary_label}").into()),
        1 => Named::Member(names.remove(0)),
        _ => Named::Several(names),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pods::tests::pod;
    use super::*;

    fn check(pods: &[Pod], primary_label: &str, expected: Named) {
        assert_eq!(observe(pods, &[], primary_label, 5432).primary, expected);
    }

    fn with_role(name: &str, role: &str, change: Value) -> Pod {
        pod(name, json!({ "role": role }), change)
    }

    #[test]
    fn the_pod_with_the_label_is_the_primary() {
        let pods = [with_role("a-1", "replica", json!({})), with_role("a-2", "primary", json!({}))];
        check(&pods, "role=primary", Named::Member("a-2".into()));
        check(&pods, "role = primary", Named::Member("a-2".into()));
        check(&pods, "role=master", Named::Nobody("no pod has the label role=master".into()));
        check(&[], "role=primary", Named::Nobody("no pod has the label role=primary".into()));
        check(&pods, "role", Named::Nobody("primary_label \"role\" is not key=value".into()));
        assert_eq!(observe(&pods, &[], "role=primary", 5432).members.len(), 2);
    }

    #[test]
    fn two_pods_with_the_label_are_several_until_one_has_ended() {
        let second = |change| [with_role("a-2", "primary", change), with_role("a-1", "primary", json!({}))];
        let several = Named::Several(vec!["a-1".into(), "a-2".into()]);
        check(&second(json!({})), "role=primary", several.clone());
        // A pod on its way out still runs its transactions.
        check(
            &second(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } })),
            "role=primary",
            several,
        );
        check(
            &second(json!({ "status": { "phase": "Failed" } })),
            "role=primary",
            Named::Member("a-1".into()),
        );
    }
}
