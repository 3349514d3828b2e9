//! What a source says while a real Kubernetes API changes, is away, or refuses.
//!
//! Every source reads as a user that has the least rights that do.

use crate::support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pgweir::config::{Cluster, SourceKind};
use pgweir::topology::kube::{Kubernetes, SourceEvent};
use pgweir::topology::volume::Volume;
use pgweir::topology::{Named, Observation};
use serde_json::{Value, json};
use support::eventually;
use support::kube::{Kube, Space};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const CLUSTER: &str = "postgresql.cnpg.io/v1/Cluster";
const POD: &str = "v1/Pod";
/// News come within milliseconds; an API server that starts again needs some seconds.
const HEARD_WITHIN: Duration = Duration::from_secs(20);
const READ: [&str; 2] = ["list", "watch"];

/// Somebody who follows a cluster and writes down what is said.
struct Follower {
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<()>,
    /// What was said, for the message when something was not.
    said: Vec<String>,
}

impl Follower {
    async fn start(kube: &Kube, space: &Space, user: &str, cluster: Cluster) -> Follower {
        let config = kube.config(user, &space.name).await;
        let kubernetes = Kubernetes::from_config(config).expect("a usable kubeconfig");
        let (speaker, events) = mpsc::channel(1);
        let task = tokio::spawn(async move { kubernetes.follow(cluster, speaker).await });
        Follower { events, task, said: Vec::new() }
    }

    /// Waits until this is said: `c-1`, `c-1 -> c-2: why`, `nobody: why`, `several: ...`, `denied`, `unreachable`.
    async fn hears(&mut self, expected: &str) -> Observation {
        self.hears_that(expected, |event| shown(event) == expected).await
    }

    /// Waits until something is said that it is true of.
    async fn hears_that(&mut self, what: &str, is_it: impl Fn(&SourceEvent) -> bool) -> Observation {
        loop {
            let Ok(Some(event)) = timeout(HEARD_WITHIN, self.events.recv()).await else {
                panic!("not said: {what}\nsaid:\n  {}", self.said.join("\n  "));
            };
            self.said.push(shown(&event));
            if is_it(&event) {
                return match event {
                    SourceEvent::Observed(observation) => observation,
                    SourceEvent::Unreachable(why) | SourceEvent::Denied(why) => Observation::nothing(&why),
                };
            }
        }
    }

    /// Waits until the members are these: `name@host`, with `!` when terminating, `#` when fenced and
    /// `?` when not ready.
    async fn hears_of_members(&mut self, expected: &str) -> Observation {
        self.hears_that(expected, |event| match event {
            SourceEvent::Observed(observation) => members(observation) == expected,
            SourceEvent::Unreachable(_) | SourceEvent::Denied(_) => false,
        })
        .await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn shown(event: &SourceEvent) -> String {
    let observation = match event {
        SourceEvent::Observed(observation) => observation,
        SourceEvent::Unreachable(_) => return "unreachable".to_owned(),
        SourceEvent::Denied(_) => return "denied".to_owned(),
    };
    match &observation.primary {
        Named::Member(name) => name.to_string(),
        Named::Nobody(why) => format!("nobody: {why}"),
        Named::Several(names) => format!("several: {}", names.join(", ")),
        Named::Moving { from, to, reason } => {
            format!("{} -> {}: {reason}", from.as_deref().unwrap_or("?"), to.as_deref().unwrap_or("?"))
        }
    }
}

fn members(observation: &Observation) -> String {
    let shown = observation.members.iter().map(|member| {
        let marks = [(member.terminating, "!"), (member.fenced.is_some(), "#"), (!member.ready, "?")];
        let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        format!("{}@{}{marks}", member.name, member.place.host)
    });
    shown.collect::<Vec<_>>().join(" ")
}

fn cluster(source: SourceKind, name: &str) -> Cluster {
    let mut cluster = Cluster::new(name.to_owned());
    cluster.source = Some(source);
    cluster
}

/// Rules of a Role: (group, resource, names or none for all).
fn may_read(resources: &[(&str, &str, &[&str])]) -> Value {
    let rule = |(group, resource, names): &(&str, &str, &[&str])| {
        let mut rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": READ });
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    resources.iter().map(rule).collect()
}

async fn instance(space: &Space, name: &str, address: &str, role: &str) {
    let labels =
        json!({ "cnpg.io/cluster": "c", "cnpg.io/podRole": "instance", "cnpg.io/instanceRole": role });
    space.pod(name, address, labels).await;
}

/// A healthy cluster `c` of CloudNativePG: c-1 is the primary, c-2 its standby, and a pooler.
async fn cnpg(space: &Space) {
    instance(space, "c-1", "10.0.0.1", "primary").await;
    instance(space, "c-2", "10.0.0.2", "replica").await;
    let pooler = json!({ "cnpg.io/cluster": "c", "cnpg.io/podRole": "pooler" });
    space.pod("pooler", "10.0.0.9", pooler).await;
    space
        .create(json!({
            "apiVersion": "postgresql.cnpg.io/v1",
            "kind": "Cluster",
            "metadata": { "name": "c" },
            "spec": { "instances": 2 },
            "status": {
                "currentPrimary": "c-1",
                "currentPrimaryTimestamp": "2026-01-01T12:00:00.000000Z",
                "targetPrimary": "c-1",
                "phase": "Cluster in healthy state",
                "systemID": "7423867867637645328",
                "timelineID": 1,
            },
        }))
        .await;
}

fn cnpg_rules() -> Value {
    may_read(&[("postgresql.cnpg.io", "clusters", &["c"]), ("", "pods", &[])])
}

#[tokio::test]
async fn cnpg_a_switchover_is_followed_from_its_first_sign() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    cnpg(&space).await;
    space.grant("follower", cnpg_rules()).await;
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Cnpg, "c")).await;
    let first = follower.hears("c-1").await;
    assert_eq!(members(&first), "c-1@10.0.0.1 c-2@10.0.0.2");
    assert_eq!((first.system_id, first.timeline), (Some(7_423_867_867_637_645_328), Some(1)));
    assert!(first.incarnation.is_some());
    let uid = first.members[0].place.uid.as_deref().map(str::to_owned);
    assert_eq!(uid, Some(space.uid("c-1").await));

    let switchover = "Switchover in progress";
    space.status(CLUSTER, "c", json!({ "targetPrimary": "c-2", "phase": switchover })).await;
    follower.hears("c-1 -> c-2: Switchover in progress").await;
    let unhealthy = json!({ "metadata": { "labels": { "cnpg.io/instanceRole": "unhealthy" } } });
    space.change(POD, "c-1", unhealthy.clone()).await;
    let promoted =
        json!({ "currentPrimary": "c-2", "currentPrimaryTimestamp": "2026-01-02T12:00:00.000000Z" });
    space.status(CLUSTER, "c", promoted).await;
    follower.hears("c-2").await;
    space.status(CLUSTER, "c", json!({ "phase": "Cluster in healthy state", "timelineID": 2 })).await;
    follower
        .hears_that(
            "timeline 2",
            |event| matches!(event, SourceEvent::Observed(found) if found.timeline == Some(2)),
        )
        .await;

    space.change(POD, "c-2", unhealthy).await;
    follower.hears("c-2 -> ?: the operator has labelled c-2 unhealthy").await;
    space.status(CLUSTER, "c", json!({ "targetPrimary": "pending", "phase": "Failing over" })).await;
    follower.hears("c-2 -> ?: Failing over").await;
}

#[tokio::test]
async fn cnpg_fencing_deletion_and_hibernation_are_seen() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    cnpg(&space).await;
    space.grant("follower", cnpg_rules()).await;
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Cnpg, "c")).await;
    follower.hears_of_members("c-1@10.0.0.1 c-2@10.0.0.2").await;
    let fence = |list: Value| json!({ "metadata": { "annotations": { "cnpg.io/fencedInstances": list } } });
    space.change(CLUSTER, "c", fence(json!("[\"c-1\"]"))).await;
    follower.hears_of_members("c-1@10.0.0.1# c-2@10.0.0.2").await;
    space.change(CLUSTER, "c", fence(json!("[\"*\"]"))).await;
    follower.hears_of_members("c-1@10.0.0.1# c-2@10.0.0.2#").await;
    space.change(CLUSTER, "c", fence(json!(null))).await;
    follower.hears_of_members("c-1@10.0.0.1 c-2@10.0.0.2").await;

    let unready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    space.status(POD, "c-2", unready).await;
    follower.hears_of_members("c-1@10.0.0.1 c-2@10.0.0.2?").await;
    let old = space.uid("c-1").await;
    space.delete(POD, "c-1", 30).await;
    follower.hears_of_members("c-1@10.0.0.1! c-2@10.0.0.2?").await;
    space.delete(POD, "c-1", 0).await;
    follower.hears_of_members("c-2@10.0.0.2?").await;
    instance(&space, "c-1", "10.0.0.3", "primary").await;
    let again = follower.hears_of_members("c-1@10.0.0.3 c-2@10.0.0.2?").await;
    assert_ne!(again.members[0].place.uid.as_deref(), Some(old.as_str()));

    let hibernate = json!({ "metadata": { "annotations": { "cnpg.io/hibernation": "on" } } });
    space.change(CLUSTER, "c", hibernate).await;
    follower.hears("nobody: the cluster hibernates (cnpg.io/hibernation=on)").await;
    space.delete(CLUSTER, "c", 0).await;
    follower.hears("nobody: there is no Cluster \"c\"").await;
}

#[tokio::test]
async fn cnpg_lease_and_zones_are_used_where_they_may_be_read() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    cnpg(&space).await;
    let endpoint = |pod: &str, address: &str, zone: &str| json!({ "addresses": [address], "zone": zone, "targetRef": { "kind": "Pod", "name": pod } });
    space
        .create(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "c-r-1", "labels": { "kubernetes.io/service-name": "c-r" } },
            "addressType": "IPv4",
            "endpoints": [endpoint("c-1", "10.0.0.1", "eu-1"), endpoint("c-2", "10.0.0.2", "eu-2")],
        }))
        .await;
    space
        .create(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": "c" },
            "spec": { "holderIdentity": "c-1", "renewTime": "2026-01-01T13:00:00.000000Z" },
        }))
        .await;
    let slices = ("discovery.k8s.io", "endpointslices", &[] as &[&str]);
    let rules = [
        ("postgresql.cnpg.io", "clusters", &["c"] as &[&str]),
        ("", "pods", &[]),
        slices,
        ("coordination.k8s.io", "leases", &["c"]),
    ];
    space.grant("follower", may_read(&rules)).await;
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Cnpg, "c")).await;
    let first = follower.hears("c-1").await;
    let zones: Vec<_> = first.members.iter().map(|member| member.zone.as_deref()).collect();
    assert_eq!(zones, [Some("eu-1"), Some("eu-2")]);
    let lease = |holder: &str| json!({ "spec": { "holderIdentity": holder, "renewTime": "2026-01-01T14:00:00.000000Z" } });
    space.change("coordination.k8s.io/v1/Lease", "c", lease("c-2")).await;
    follower.hears("c-1 -> c-2: the lease of the primary is held by c-2").await;
    space.change("coordination.k8s.io/v1/Lease", "c", lease("c-1")).await;
    follower.hears("c-1").await;

    let kubernetes = Kubernetes::from_config(kube.config("follower", &space.name).await).expect("a client");
    let here = |text: &str| text.parse().expect("an address");
    assert_eq!(kubernetes.own_zone(here("10.0.0.2")).await.as_deref(), Some("eu-2"));
    assert_eq!(kubernetes.own_zone(here("10.0.0.7")).await, None);
}

/// A record of Patroni: annotations on an Endpoints or a ConfigMap.
fn record(kind: &str, name: &str, annotations: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "annotations": annotations } })
}

fn led_by(leader: Option<&str>, second: u32) -> Value {
    let renewed = format!("2026-01-01T12:00:{second:02}.000000+00:00");
    json!({ "metadata": { "annotations": { "leader": leader, "renewTime": renewed, "ttl": "30" } } })
}

/// One switchover in either kind of objects.
/// The size of the volume that the WAL is on: its own, else that of the data.
#[tokio::test]
async fn cnpg_sizes_of_volumes_are_those_of_the_pods_claims() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let labels = json!({ "cnpg.io/cluster": "c", "cnpg.io/podRole": "instance" });
    for (pod, claims) in
        [("c-1", &[("pgdata", "c-1"), ("pg-wal", "c-1-wal")][..]), ("c-2", &[("pgdata", "c-2")])]
    {
        space.pod_with(claims, true, pod, "10.0.0.1", labels.clone()).await;
        for (_, claim) in claims {
            space.claim(claim, if claim.ends_with("wal") { "2Gi" } else { "10Gi" }).await;
        }
    }
    let kubernetes =
        Kubernetes::from_config(kube.config("follower", &space.name).await).expect("a kubeconfig");
    let cluster = cluster(SourceKind::Cnpg, "c");
    let refused = kubernetes.volumes(&cluster).await.expect_err("nothing was granted");
    assert!(refused.contains("persistentvolumeclaims"), "{refused}");
    let list = |resource: &str| json!({ "apiGroups": [""], "resources": [resource], "verbs": ["list"] });
    space.grant("follower", json!([list("pods"), list("persistentvolumeclaims")])).await;
    let mut found = BTreeMap::new();
    eventually("the grant counts", async || match kubernetes.volumes(&cluster).await {
        Ok(volumes) => {
            found = volumes;
            true
        }
        Err(_) => false,
    })
    .await;
    let volume = |bytes, wal_only| Volume { bytes, wal_only };
    let expected = [(Arc::from("c-1"), volume(2 << 30, true)), (Arc::from("c-2"), volume(10 << 30, false))];
    assert_eq!(found, expected.into());
}

async fn patroni_switchover(kind: &str, leader_name: &str, resource: &str, labels: fn(&str) -> Value) {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let own_kind = format!("v1/{kind}");
    space.pod("p-0", "10.0.0.1", labels("master")).await;
    space.pod("p-1", "10.0.0.2", labels("replica")).await;
    let names = [leader_name, "p-ha-config", "p-ha-failover"];
    space.grant("follower", may_read(&[("", resource, &names), ("", "pods", &[])])).await;
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Patroni, "p-ha")).await;
    follower.hears("nobody: there is no leader object of Patroni").await;

    let annotations = led_by(Some("p-0"), 0)["metadata"]["annotations"].take();
    space.create(record(kind, leader_name, annotations)).await;
    follower.hears("p-0").await;
    let history = "[[1, 83886296, \"no recovery target specified\"]]";
    let config = json!({ "initialize": "7423867867637645328", "config": "{}", "history": history });
    space.create(record(kind, "p-ha-config", config)).await;
    let known = follower
        .hears_that(
            "the system identifier",
            |event| matches!(event, SourceEvent::Observed(found) if found.system_id.is_some()),
        )
        .await;
    assert_eq!((known.system_id, known.timeline), (Some(7_423_867_867_637_645_328), Some(2)));
    assert_eq!(members(&known), "p-0@10.0.0.1 p-1@10.0.0.2");

    let requested = json!({ "leader": "p-0", "member": "p-1" });
    space.create(record(kind, "p-ha-failover", requested)).await;
    follower.hears("p-0 -> p-1: a switchover was requested").await;
    space.change(&own_kind, leader_name, led_by(None, 1)).await;
    follower.hears("nobody: no server holds Patroni's leader key").await;
    space.change(&own_kind, leader_name, led_by(Some("p-1"), 2)).await;
    follower.hears("p-1").await;
    let done = json!({ "metadata": { "annotations": { "leader": null, "member": null } } });
    space.change(&own_kind, "p-ha-failover", done).await;
    // A renewal changes the object, but says nothing new.
    space.change(&own_kind, leader_name, led_by(Some("p-1"), 12)).await;
    space.change(&own_kind, leader_name, led_by(Some("p-0"), 22)).await;
    assert_eq!(shown(&follower.events.recv().await.expect("it goes on")), "p-0");
}

#[tokio::test]
async fn patroni_a_switchover_in_endpoints_is_followed() {
    let crunchy = |role: &str| {
        let prefix = "postgres-operator.crunchydata.com";
        json!({
            format!("{prefix}/patroni"): "p-ha",
            format!("{prefix}/data"): "postgres",
            format!("{prefix}/role"): role,
        })
    };
    patroni_switchover("Endpoints", "p-ha", "endpoints", crunchy).await;
}

#[tokio::test]
async fn patroni_a_switchover_in_config_maps_is_followed() {
    let zalando = |role: &str| json!({ "application": "spilo", "cluster-name": "p-ha", "spilo-role": role });
    patroni_switchover("ConfigMap", "p-ha-leader", "configmaps", zalando).await;
}

#[tokio::test]
async fn label_the_primary_is_the_pod_with_the_label() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    space.grant("follower", may_read(&[("", "pods", &[])])).await;
    space.pod("pg-0", "10.0.0.1", json!({ "app": "pg", "role": "primary" })).await;
    space.pod("pg-1", "10.0.0.2", json!({ "app": "pg", "role": "replica" })).await;
    space.pod("other", "10.0.0.3", json!({ "app": "web", "role": "primary" })).await;
    let mut chart = cluster(SourceKind::Label, "pg");
    chart.selector = Some("app=pg".to_owned());
    chart.primary_label = Some("role=primary".to_owned());
    chart.port = 5433;
    let mut follower = Follower::start(&kube, &space, "follower", chart).await;
    let first = follower.hears("pg-0").await;
    assert_eq!(members(&first), "pg-0@10.0.0.1 pg-1@10.0.0.2");
    assert_eq!(first.members[0].place.port, 5433);
    let role = |role: &str| json!({ "metadata": { "labels": { "role": role } } });
    space.change(POD, "pg-1", role("primary")).await;
    follower.hears("several: pg-0, pg-1").await;
    space.change(POD, "pg-0", role("replica")).await;
    follower.hears("pg-1").await;
    space.delete(POD, "pg-1", 0).await;
    follower.hears("nobody: no pod has the label role=primary").await;
}

#[tokio::test]
async fn a_refusal_is_said_and_ends_with_the_grant() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    cnpg(&space).await;
    let mut follower = Follower::start(&kube, &space, "stranger", cluster(SourceKind::Cnpg, "c")).await;
    let words = match &follower.hears("denied").await.primary {
        Named::Nobody(why) => why.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(words.contains("is forbidden: User \"stranger\""), "{words}");
    space.grant("stranger", cnpg_rules()).await;
    follower.hears("c-1").await;
    assert_eq!(follower.said, ["denied", "c-1"]);
}

#[tokio::test]
async fn an_api_that_was_away_is_followed_again() {
    let mut kube = Kube::start().await;
    let space = kube.space().await;
    cnpg(&space).await;
    space.grant("follower", cnpg_rules()).await;
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Cnpg, "c")).await;
    follower.hears("c-1").await;
    kube.stop_api();
    follower.hears("unreachable").await;
    assert!(kube.start_api().await, "the server starts again at its port");
    space.status(CLUSTER, "c", json!({ "targetPrimary": "c-2", "phase": "Failing over" })).await;
    follower.hears("c-1 -> c-2: Failing over").await;
    space.status(CLUSTER, "c", json!({ "currentPrimary": "c-2" })).await;
    follower.hears("c-2").await;

    // Away without a change in between: it is confirmed all the same.
    kube.stop_api();
    follower.hears("unreachable").await;
    assert!(kube.start_api().await, "the server starts again at its port");
    follower.hears("c-2").await;
}

#[tokio::test]
async fn an_api_that_is_away_from_the_start_stops_nothing() {
    let mut kube = Kube::start().await;
    let space = kube.space().await;
    cnpg(&space).await;
    space.grant("follower", cnpg_rules()).await;
    kube.stop_api();
    let mut follower = Follower::start(&kube, &space, "follower", cluster(SourceKind::Cnpg, "c")).await;
    follower.hears("unreachable").await;
    assert!(kube.start_api().await, "the server starts again at its port");
    follower.hears("c-1").await;
    // When nobody listens any more, it ends.
    follower.events.close();
    eventually("the source ends", async || follower.task.is_finished()).await;
}
