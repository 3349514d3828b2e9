use serde_json::json;

use super::super::pods::tests::{merge, pod};
use super::*;

/// A healthy cluster `c` with the primary c-1 since noon, and `change` on top.
fn cluster(change: Value) -> Cluster {
    let mut object = json!({
        "metadata": { "name": "c", "uid": "uid-c" },
        "spec": { "instances": 3 },
        "status": {
            "currentPrimary": "c-1",
            "currentPrimaryTimestamp": "2026-01-01T12:00:00.000000Z",
            "targetPrimary": "c-1",
            "phase": HEALTHY,
            "systemID": "7423867867637645328",
            "timelineID": 3,
        },
    });
    merge(&mut object, change);
    let metadata = serde_json::from_value(object["metadata"].take()).expect("metadata");
    Cluster::new(metadata, object).expect("a Cluster")
}

fn instances() -> [Pod; 2] {
    let instance = |name, role| pod(name, json!({ ROLE_LABEL: role }), json!({}));
    [instance("c-1", "primary"), instance("c-2", "replica")]
}

fn observed(change: Value, pods: &[Pod], lease: Option<&Lease>) -> Observation {
    let cluster = cluster(change);
    observe("c", Objects { cluster: Some(&cluster), pods, slices: &[], lease }, 5432)
}

fn shown(primary: &Named) -> String {
    match primary {
        Named::Member(name) => name.to_string(),
        Named::Nobody(why) => format!("nobody: {why}"),
        Named::Several(names) => format!("several: {}", names.join(", ")),
        Named::Moving { from, to, reason } => {
            let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or("?").to_owned();
            format!("{} -> {}: {reason}", name(from), name(to))
        }
    }
}

fn check(change: Value, expected: &str) {
    let found = observed(change.clone(), &instances(), None);
    assert_eq!(shown(&found.primary), expected, "{change}");
}

fn check_status(status: Value, expected: &str) {
    check(json!({ "status": status }), expected);
}

#[test]
fn the_current_primary_counts_while_it_is_also_the_target() {
    check_status(json!({}), "c-1");
    check_status(json!({ "targetPrimary": "" }), "c-1");
    check_status(json!({ "currentPrimary": "c-2", "targetPrimary": "c-2" }), "c-2");
    // The phase lags behind the promotion: the new primary may be written to before it is healthy.
    for phase in [
        "Switchover in progress",
        "Failing over",
        "Upgrading cluster",
        "Waiting for user action",
        "Online upgrade in progress",
        "Applying configuration",
    ] {
        check_status(json!({ "phase": phase }), "c-1");
    }
}

#[test]
fn another_target_is_a_change_under_way() {
    let to = |target: &str, phase: &str| json!({ "targetPrimary": target, "phase": phase });
    check_status(to("c-2", "Switchover in progress"), "c-1 -> c-2: Switchover in progress");
    check_status(to("c-2", "Upgrading cluster"), "c-1 -> c-2: Upgrading cluster");
    check_status(to("c-2", HEALTHY), "c-1 -> c-2: targetPrimary is c-2");
    check_status(to("c-2", ""), "c-1 -> c-2: targetPrimary is c-2");
    check_status(to("pending", "Failing over"), "c-1 -> ?: Failing over");
    check_status(
        json!({ "currentPrimary": "", "phase": "Setting up primary" }),
        "? -> c-1: Setting up primary",
    );
}

#[test]
fn what_ends_the_primarys_sessions_is_announced_by_the_phase_alone() {
    for phase in [
        "Primary instance is being restarted in-place",
        "Primary instance is being restarted without a switchover",
        "Promoting to primary cluster",
    ] {
        check_status(json!({ "phase": phase }), &format!("c-1 -> c-1: {phase}"));
    }
}

#[test]
fn a_cluster_without_primary_says_why() {
    check_status(
        json!({ "currentPrimary": "", "targetPrimary": "", "phase": "Setting up primary" }),
        "nobody: the cluster has no primary yet: Setting up primary",
    );
    check_status(
        json!({ "currentPrimary": "", "targetPrimary": "pending", "phase": "" }),
        "nobody: the cluster has no primary yet: the operator has not reported a phase",
    );
    let nothing = observe("c", Objects { cluster: None, pods: &[], slices: &[], lease: None }, 5432);
    assert_eq!(shown(&nothing.primary), "nobody: there is no Cluster \"c\"");
}

#[test]
fn hibernation_is_on_only_with_the_word_on() {
    let annotated = |value: &str| json!({ "metadata": { "annotations": { HIBERNATION: value } } });
    check(annotated("on"), "nobody: the cluster hibernates (cnpg.io/hibernation=on)");
    check(annotated("off"), "c-1");
}

#[test]
fn a_replica_cluster_has_no_primary() {
    let replica = |replica: Value| json!({ "spec": { "replica": replica } });
    let nobody = "nobody: it is a replica cluster: its primary is in another one";
    check(replica(json!({ "enabled": true, "source": "other" })), nobody);
    check(replica(json!({ "enabled": false, "source": "other" })), "c-1");
    check(replica(json!({ "primary": "other", "source": "other" })), nobody);
    check(replica(json!({ "primary": "c", "source": "other" })), "c-1");
    check(replica(json!({ "self": "here", "primary": "here" })), "c-1");
    check(replica(json!({ "self": "here", "primary": "c" })), nobody);
    check(
        json!({ "status": { "switchReplicaClusterStatus": { "inProgress": true } } }),
        "c-1 -> ?: the cluster becomes a replica cluster",
    );
}

#[test]
fn fencing_marks_members_and_leaves_the_primary_named() {
    let fenced = |text: &str| {
        let change = json!({ "metadata": { "annotations": { FENCED: text } } });
        let found = observed(change, &instances(), None);
        assert_eq!(shown(&found.primary), "c-1");
        let names = found.members.iter().filter(|member| member.fenced.is_some());
        names.map(|member| member.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(fenced(r#"["c-1"]"#), ["c-1"]);
    assert_eq!(fenced(r#"["*"]"#), ["c-1", "c-2"]);
    assert_eq!(fenced(r#"["c-2","c-9"]"#), ["c-2"]);
    assert_eq!(fenced("[]"), [""; 0]);
    assert_eq!(fenced(""), [""; 0]);
    assert_eq!(fenced("c-1"), [""; 0], "not a list: the instance manager fences nobody either");
}

#[test]
fn an_unhealthy_primary_is_about_to_be_replaced() {
    let labelled = |first: &str, second: &str| {
        [
            pod("c-1", json!({ ROLE_LABEL: first }), json!({})),
            pod("c-2", json!({ ROLE_LABEL: second }), json!({})),
        ]
    };
    let primary = |pods: &[Pod]| shown(&observed(json!({}), pods, None).primary);
    assert_eq!(
        primary(&labelled("unhealthy", "replica")),
        "c-1 -> ?: the operator has labelled c-1 unhealthy"
    );
    assert_eq!(primary(&labelled("primary", "unhealthy")), "c-1");
    // The label trails currentPrimary, so it does not speak against it otherwise.
    assert_eq!(primary(&labelled("replica", "primary")), "c-1");
    assert_eq!(primary(&[]), "c-1");
}

#[test]
fn the_lease_must_be_held_by_the_current_primary() {
    let primary = |spec: Value| {
        let lease: Lease =
            serde_json::from_value(json!({ "metadata": { "name": "c" }, "spec": spec })).expect("a Lease");
        shown(&observed(json!({}), &instances(), Some(&lease)).primary)
    };
    let renewed = |holder: &str, time: &str| {
        primary(json!({ "holderIdentity": holder, "renewTime": format!("2026-01-01T{time}.000000Z") }))
    };
    assert_eq!(renewed("c-1", "12:30:00"), "c-1");
    assert_eq!(renewed("c-2", "12:30:00"), "c-1 -> c-2: the lease of the primary is held by c-2");
    assert_eq!(renewed("", "12:30:00"), "c-1 -> ?: c-1 has given up the lease of the primary");
    // Older than the promotion: news on their way, or a lease that nobody keeps.
    assert_eq!(renewed("c-2", "11:59:59"), "c-1");
    assert_eq!(primary(json!({ "holderIdentity": "c-2" })), "c-1");
    assert_eq!(primary(json!({})), "c-1");
}

#[test]
fn system_identifier_and_timeline_come_from_the_status() {
    let facts = |status: Value| {
        let found = observed(json!({ "status": status }), &[], None);
        (found.incarnation.as_deref().map(str::to_owned), found.system_id, found.timeline)
    };
    let uid = Some("uid-c".to_owned());
    assert_eq!(facts(json!({})), (uid.clone(), Some(7_423_867_867_637_645_328), Some(3)));
    assert_eq!(facts(json!({ "systemID": "", "timelineID": 0 })), (uid.clone(), None, None));
    assert_eq!(facts(json!({ "systemID": "none" })), (uid, None, Some(3)));
}

#[test]
fn a_field_of_another_type_is_an_error_and_unknown_fields_are_not() {
    let read = |body: Value| Cluster::new(ObjectMeta::default(), body).is_ok();
    assert!(read(json!({ "spec": { "anything": [1] }, "status": { "else": {} } })));
    assert!(read(json!({})));
    assert!(!read(json!({ "status": { "currentPrimary": 1 } })));
    assert!(!read(json!({ "spec": 1 })));
}
