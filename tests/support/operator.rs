//! [`Operator`]: what CloudNativePG does, step by step, to real objects and to real servers;
//! and [`Patroni`]'s own switchover.
//!
//! The steps and their order are those of CloudNativePG 1.30. How long each takes is chance, from a seed,
//! and shorter than in life: there N looks for the lease each 2 s.

use super::kube::Space;
use super::ledger::Ledger;
use super::replicas::{Replicas, Stop};
use super::{eventually, eventually_within};
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub const CLUSTER: &str = "postgresql.cnpg.io/v1/Cluster";
pub const POD: &str = "v1/Pod";
const LEASE: &str = "coordination.k8s.io/v1/Lease";

pub const HEALTHY: &str = "Cluster in healthy state";
pub const RESTARTS: &str = "Primary instance is being restarted in-place";
pub const RESTARTS_POD: &str = "Primary instance is being restarted without a switchover";
const UPGRADES: &str = "Upgrading cluster";

/// How long somebody may take to ask for a change.
const ASKED_WITHIN: Duration = Duration::from_secs(20);

/// When the steps were taken that clients feel.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The old primary was told to stop: what is open now may fail, nothing that begins later.
    pub stopping: Instant,
    /// The new one takes writes, and the API server has its word for that.
    pub named: Instant,
}

/// A cluster of three pods, whose servers are those of [`Replicas`]: `pg-1` is number 0.
pub struct Operator {
    pub replicas: Replicas,
    pub space: Space,
    pub cluster: String,
    /// The server that is the primary.
    pub primary: usize,
    timeline: u32,
    chance: StdRng,
}

/// The pod of a server.
pub fn pod_of(cluster: &str, number: usize) -> String {
    format!("{cluster}-{}", number + 1)
}

impl Operator {
    /// A healthy cluster of this name.
    pub async fn start(space: Space, cluster: &str, seed: u64) -> Operator {
        Operator::of(Replicas::start().await, space, cluster, seed).await
    }

    /// The same, of these servers.
    pub async fn of(replicas: Replicas, space: Space, cluster: &str, seed: u64) -> Operator {
        Ledger::prepare(&replicas).await;
        let cluster = cluster.to_owned();
        let chance = StdRng::seed_from_u64(seed);
        let mut operator = Operator { replicas, space, cluster, primary: 0, timeline: 1, chance };
        for number in 0..3 {
            operator.create_pod(number).await;
            operator.space.claim(&operator.pod(number), "10Gi").await;
        }
        operator.create_cluster().await;
        operator
    }

    /// The rules of a Role with the least that pgweir needs, and the lease.
    pub fn rules(&self) -> Value {
        Operator::rules_for(&self.cluster)
    }

    /// The same for a cluster of this name.
    pub fn rules_for(name: &str) -> Value {
        let rule = |group: &str, resource: &str, names: &[&str]| {
            let verbs = ["get", "list", "watch"];
            let mut rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
            if !names.is_empty() {
                rule["resourceNames"] = json!(names);
            }
            rule
        };
        json!([
            rule("postgresql.cnpg.io", "clusters", &[name]),
            rule("coordination.k8s.io", "leases", &[name]),
            rule("", "pods", &[]),
            rule("discovery.k8s.io", "endpointslices", &[]),
            rule("", "persistentvolumeclaims", &[]),
        ])
    }

    /// The pod of a server.
    pub fn pod(&self, number: usize) -> String {
        pod_of(&self.cluster, number)
    }

    /// Chance decides how long, up to so many milliseconds.
    pub async fn pause(&mut self, ms_max: u64) {
        let pause = self.chance.random_range(0..=ms_max * 1000);
        sleep(Duration::from_micros(pause)).await;
    }

    /// A standby.
    pub fn any_standby(&mut self) -> usize {
        (self.primary + self.chance.random_range(1..3)) % 3
    }

    // ---- planned switchover ----

    /// `kubectl cnpg promote`, and all that follows from it.
    pub async fn switch_over(&mut self, to: usize) -> Moved {
        let status = json!({
            "targetPrimary": self.pod(to),
            "targetPrimaryTimestamp": now(),
            "phase": "Switchover in progress",
            "phaseReason": format!("Switching over to {}", self.pod(to)),
        });
        self.status(status).await;
        self.carry_out(to).await
    }

    /// Waits until somebody else has asked for a switchover, and carries it out.
    pub async fn obey(&mut self) -> Moved {
        let mut target = 0;
        eventually_within(ASKED_WITHIN, "a switchover is asked for", async || {
            let asked = self.target().await;
            let found = (0..3).find(|number| self.pod(*number) == asked);
            target = found.unwrap_or(self.primary);
            target != self.primary
        })
        .await;
        self.carry_out(target).await
    }

    /// What the status has as the target.
    pub async fn target(&self) -> String {
        let cluster = self.clusters().get(&self.cluster).await.expect("the Cluster exists");
        cluster.data["status"]["targetPrimary"].as_str().unwrap_or_default().to_owned()
    }

    async fn carry_out(&mut self, to: usize) -> Moved {
        let from = self.primary;
        let early = self.chance.random_bool(0.5);
        if early {
            self.label(from, "unhealthy").await;
        }
        self.pause(30).await;
        self.replicas.sql(from, "CHECKPOINT").await;
        self.pause(200).await;
        let stopping = Instant::now();
        self.replicas.ask_to_stop(from, Stop::Fast);
        eventually("the fast shutdown completes", async || !self.replicas.runs(from)).await;
        self.replicas.ended(from);
        self.ready(from, false).await;
        if !early {
            self.label(from, "unhealthy").await;
        }
        self.lease("").await;
        self.pause(300).await;
        let named = self.promote(to).await;
        self.replicas.demote(from).await;
        self.ready(from, true).await;
        self.replicas.are_streaming(2).await;
        Moved { stopping, named }
    }

    /// What the new primary's instance manager does, and then the operator. Returns when its word was
    /// there.
    async fn promote(&mut self, to: usize) -> Instant {
        let from = self.primary;
        let pod = self.pod(to);
        self.lease(&pod).await;
        self.replicas.promote(to).await;
        self.pause(50).await;
        self.replicas.sql(to, "CHECKPOINT").await;
        self.status(json!({ "currentPrimary": pod, "currentPrimaryTimestamp": now() })).await;
        let named = Instant::now();
        self.pause(15).await;
        self.drop_connections(to).await;
        self.primary = to;
        self.timeline += 1;
        self.pause(300).await;
        self.label(to, "primary").await;
        self.label(from, "replica").await;
        self.status(json!({ "phase": HEALTHY, "phaseReason": "", "timelineID": self.timeline })).await;
        named
    }

    /// The instance manager ends every session that began while it was a standby.
    async fn drop_connections(&self, number: usize) {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.replicas.sql(number, sql).await;
    }

    // ---- failover ----

    /// The primary is gone, or cannot be reached: the best standby becomes the primary. The old one's pod
    /// stays as it is.
    pub async fn fail_over(&mut self) -> Instant {
        let from = self.primary;
        self.pause(50).await;
        self.status(json!({ "phase": "Failing over", "targetPrimary": "pending" })).await;
        self.pause(20).await;
        self.label(from, "unhealthy").await;
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        for number in (0..3).filter(|number| *number != from) {
            let down = async || self.replicas.number(number, receivers).await == 0;
            eventually("the WAL receivers are down", down).await;
        }
        let to = self.replicas.best_standby().await;
        self.status(json!({ "targetPrimary": self.pod(to), "targetPrimaryTimestamp": now() })).await;
        self.pause(300).await;
        self.promote(to).await
    }

    /// The primary's host is gone.
    pub async fn lose_primary(&mut self) {
        self.replicas.kill(self.primary);
        self.pause(50).await;
        self.ready(self.primary, false).await;
    }

    /// The primary's host is there, and nothing on it moves.
    pub async fn freeze_primary(&mut self) {
        self.replicas.freeze(self.primary);
        self.pause(200).await;
        self.ready(self.primary, false).await;
    }

    /// The primary's pod is deleted: its server takes its time, and so does its pod. Returns how long the
    /// smart shutdown took.
    pub async fn delete_primary(&mut self) -> Duration {
        let from = self.primary;
        self.space.delete(POD, &self.pod(from), 1800).await;
        self.pause(20).await;
        // For the operator, a pod that is being deleted is gone already.
        self.status(json!({ "phase": "Failing over", "targetPrimary": "pending" })).await;
        self.replicas.sql(from, "CHECKPOINT").await;
        let asked = Instant::now();
        self.replicas.ask_to_stop(from, Stop::Smart);
        eventually("the smart shutdown completes", async || !self.replicas.runs(from)).await;
        self.replicas.ended(from);
        let took = asked.elapsed();
        self.space.delete(POD, &self.pod(from), 0).await;
        took
    }

    /// Waits until somebody else has deleted a server's pod, and takes the server away with it.
    pub async fn loses(&mut self, number: usize) {
        eventually_within(ASKED_WITHIN, "a pod is deleted", async || !self.has_pod(number).await).await;
        self.replicas.kill(number);
    }

    // ---- what else there is ----

    /// Fences an instance: its server is stopped, its pod stays.
    pub async fn fence_primary(&mut self) {
        self.annotate("cnpg.io/fencedInstances", json!(format!("[\"{}\"]", self.pod(self.primary)))).await;
        self.pause(50).await;
        self.replicas.sql(self.primary, "CHECKPOINT").await;
        self.replicas.stop(self.primary, Stop::Fast);
        self.ready(self.primary, false).await;
    }

    /// Takes the fence away; the same server comes back.
    pub async fn unfence_primary(&mut self) {
        self.annotate("cnpg.io/fencedInstances", Value::Null).await;
        self.pause(50).await;
        self.replicas.restart(self.primary).await;
        self.pause(100).await;
        self.ready(self.primary, true).await;
    }

    /// The configuration wants a restart: nothing but the phase tells of it.
    pub async fn restart_primary(&mut self) {
        self.status(json!({ "phase": RESTARTS })).await;
        self.pause(50).await;
        self.replicas.ask_to_stop(self.primary, Stop::Smart);
        eventually("the smart shutdown completes", async || !self.replicas.runs(self.primary)).await;
        self.replicas.ended(self.primary);
        self.pause(100).await;
        self.replicas.restart(self.primary).await;
        self.pause(100).await;
        self.status(json!({ "phase": HEALTHY })).await;
    }

    // ---- rolling update ----

    /// The image has changed: all pods are made anew, first the standbys one by one, in any order.
    pub async fn update_standbys(&mut self) {
        self.status(json!({ "phase": UPGRADES, "phaseReason": "Upgrading instances" })).await;
        let first = self.chance.random_range(1..3);
        for number in [first, 3 - first].map(|step| (self.primary + step) % 3) {
            self.pause(100).await;
            self.remove_pod(number).await;
            self.pause(200).await;
            self.pod_comes_back(number).await;
            self.replicas.are_streaming(2).await;
        }
    }

    /// `primaryUpdateMethod: restart`, up to where the primary's pod is gone: it stays the primary.
    pub async fn remove_primarys_pod(&mut self) {
        self.status(json!({ "phase": RESTARTS_POD, "phaseReason": "" })).await;
        self.pause(50).await;
        self.remove_pod(self.primary).await;
        self.lease("").await;
    }

    /// The rest of it.
    pub async fn primarys_pod_comes_back(&mut self) {
        let pod = self.pod(self.primary);
        self.lease(&pod).await;
        self.pod_comes_back(self.primary).await;
        self.replicas.are_streaming(2).await;
        self.pause(100).await;
        self.status(json!({ "phase": HEALTHY })).await;
    }

    /// `primaryUpdateMethod: switchover`: another one becomes the primary, then the old one's pod is made anew.
    pub async fn update_primary_by_switchover(&mut self) -> Moved {
        let (from, to) = (self.primary, self.any_standby());
        self.status(json!({ "targetPrimary": self.pod(to), "targetPrimaryTimestamp": now() })).await;
        let moved = self.carry_out(to).await;
        self.pause(100).await;
        self.remove_pod(from).await;
        self.pause(200).await;
        self.pod_comes_back(from).await;
        self.replicas.are_streaming(2).await;
        moved
    }

    /// A pod is deleted: its server ends with its last client, and then the pod does.
    async fn remove_pod(&mut self, number: usize) {
        self.space.delete(POD, &self.pod(number), 1800).await;
        self.pause(20).await;
        self.replicas.sql(number, "CHECKPOINT").await;
        self.replicas.ask_to_stop(number, Stop::Smart);
        eventually("the smart shutdown completes", async || !self.replicas.runs(number)).await;
        self.replicas.ended(number);
        self.space.delete(POD, &self.pod(number), 0).await;
    }

    /// A new pod of the same name, with the same data.
    pub async fn pod_comes_back(&mut self, number: usize) {
        self.create_pod_that_is(number, false).await;
        self.pause(100).await;
        self.replicas.restart(number).await;
        self.pause(100).await;
        self.ready(number, true).await;
    }

    // ---- replica cluster ----

    /// The cluster hands its role to another one, up to where all its servers are stopped.
    pub async fn begin_demotion(&mut self) {
        let replica = json!({ "self": self.cluster, "primary": "other", "source": "other" });
        self.space.change(CLUSTER, &self.cluster, json!({ "spec": { "replica": replica } })).await;
        self.pause(50).await;
        self.status(json!({ "switchReplicaClusterStatus": { "inProgress": true } })).await;
        self.annotate("cnpg.io/fencedInstances", json!("[\"*\"]")).await;
        self.pause(100).await;
        self.replicas.sql(self.primary, "CHECKPOINT").await;
        for number in [self.primary, (self.primary + 1) % 3, (self.primary + 2) % 3] {
            self.replicas.stop(number, Stop::Fast);
            self.ready(number, false).await;
            self.pause(50).await;
        }
        self.status(json!({ "demotionToken": "an opaque text" })).await;
    }

    /// All its servers are standbys, of which one is designated to follow the other cluster.
    pub async fn end_demotion(&mut self) {
        self.annotate("cnpg.io/fencedInstances", Value::Null).await;
        let primary = self.primary;
        self.replicas.demote_alone(primary).await;
        for number in [(primary + 1) % 3, (primary + 2) % 3] {
            self.pause(100).await;
            self.replicas.restart(number).await;
        }
        for number in 0..3 {
            self.ready(number, true).await;
        }
        self.replicas.are_streaming(2).await;
        self.status(json!({ "switchReplicaClusterStatus": { "inProgress": false } })).await;
    }

    /// The cluster gets the role back, with the other one's token: its designated primary is promoted. Returns
    /// when the operator's word was there that it is done.
    pub async fn promote_cluster(&mut self) -> Instant {
        let token = json!({ "self": self.cluster, "primary": self.cluster, "promotionToken": "its text" });
        let began = json!({ "phase": "Promoting to primary cluster", "phaseReason": "" });
        // The operator sets the phase when it has seen the token.
        self.space.change(CLUSTER, &self.cluster, json!({ "spec": { "replica": token } })).await;
        self.status(began).await;
        self.pause(300).await;
        let primary = self.primary;
        self.replicas.promote(primary).await;
        self.pause(100).await;
        self.replicas.sql(primary, "CHECKPOINT").await;
        self.timeline += 1;
        let pod = self.pod(primary);
        let done = json!({
            "currentPrimary": pod,
            "currentPrimaryTimestamp": now(),
            "lastPromotionToken": "its text",
            "timelineID": self.timeline,
        });
        self.status(done).await;
        self.pause(100).await;
        self.drop_connections(primary).await;
        self.pause(300).await;
        self.status(json!({ "phase": HEALTHY })).await;
        Instant::now()
    }

    /// Sets or takes away an annotation of the Cluster.
    pub async fn annotate(&self, key: &str, value: Value) {
        let change = json!({ "metadata": { "annotations": { key: value } } });
        self.space.change(CLUSTER, &self.cluster, change).await;
    }

    /// Merges this into the Cluster's status.
    pub async fn status(&self, status: Value) {
        self.space.status(CLUSTER, &self.cluster, status).await;
    }

    /// The kubelet's word on a pod.
    pub async fn ready(&self, number: usize, ready: bool) {
        let word = if ready { "True" } else { "False" };
        let status = json!({ "conditions": [{ "type": "Ready", "status": word }] });
        self.space.status(POD, &self.pod(number), status).await;
    }

    /// Makes a server's pod.
    pub async fn create_pod(&self, number: usize) {
        self.create_pod_that_is(number, true).await;
    }

    async fn create_pod_that_is(&self, number: usize, ready: bool) {
        let role = if number == self.primary { "primary" } else { "replica" };
        let labels = json!({
            "cnpg.io/cluster": self.cluster,
            "cnpg.io/podRole": "instance",
            "cnpg.io/instanceRole": role,
        });
        self.space.pod_that_is(ready, &self.pod(number), &self.replicas.host(number), labels).await;
    }

    async fn label(&self, number: usize, role: &str) {
        let change = json!({ "metadata": { "labels": { "cnpg.io/instanceRole": role } } });
        if self.has_pod(number).await {
            self.space.change(POD, &self.pod(number), change).await;
        }
    }

    async fn has_pod(&self, number: usize) -> bool {
        let pods: Api<DynamicObject> = Api::namespaced_with(
            self.space.client.clone(),
            &self.space.name,
            &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod")),
        );
        pods.get_opt(&self.pod(number)).await.expect("the API answers").is_some()
    }

    async fn lease(&self, holder: &str) {
        let spec = json!({ "spec": { "holderIdentity": holder, "renewTime": now() } });
        self.space.change(LEASE, &self.cluster, spec).await;
    }

    async fn create_cluster(&mut self) {
        let system = self.replicas.sql(0, "SELECT system_identifier FROM pg_control_system()").await;
        let pods: Vec<String> = (0..3).map(|number| self.pod(number)).collect();
        let name = &self.cluster;
        let spec = json!({ "holderIdentity": pods[0], "renewTime": now(), "leaseDurationSeconds": 15 });
        self.space
            .create(json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": name },
                "spec": spec,
            }))
            .await;
        self.space
            .create(json!({
                "apiVersion": "postgresql.cnpg.io/v1",
                "kind": "Cluster",
                "metadata": { "name": name },
                "spec": { "instances": 3 },
                "status": {
                    "currentPrimary": pods[0],
                    "currentPrimaryTimestamp": now(),
                    "targetPrimary": pods[0],
                    "phase": HEALTHY,
                    "instanceNames": pods,
                    "systemID": system[0][0],
                    "timelineID": 1,
                },
            }))
            .await;
    }

    /// All Clusters of the namespace.
    pub fn clusters(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("postgresql.cnpg.io", "v1", "Cluster");
        Api::namespaced_with(self.space.client.clone(), &self.space.name, &ApiResource::from_gvk(&kind))
    }
}

/// What Patroni does: a switchover that was asked for by its failover object.
pub struct Patroni {
    pub replicas: Replicas,
    pub space: Space,
    scope: String,
    /// The kind of its objects.
    kind: &'static str,
    pub primary: usize,
    transitions: u32,
    chance: StdRng,
}

impl Patroni {
    /// A healthy cluster; `kind` is `Endpoints` or `ConfigMap`.
    pub async fn start(space: Space, scope: &str, kind: &'static str, seed: u64) -> Patroni {
        let replicas = Replicas::start().await;
        Ledger::prepare(&replicas).await;
        let (scope, chance) = (scope.to_owned(), StdRng::seed_from_u64(seed));
        let patroni = Patroni { replicas, space, scope, kind, primary: 0, transitions: 1, chance };
        for number in 0..3 {
            let role = if number == 0 { "primary" } else { "replica" };
            let labels = json!({ "application": "patroni", "cluster-name": patroni.scope, "role": role });
            let host = patroni.replicas.host(number);
            patroni.space.pod(&pod_of(&patroni.scope, number), &host, labels).await;
        }
        let system = patroni.replicas.sql(0, "SELECT system_identifier FROM pg_control_system()").await;
        let config = json!({ "initialize": system[0][0], "config": "{}", "history": "[]" });
        patroni.create("config", config).await;
        let annotations = patroni.leads(Some(0));
        patroni.create("leader", annotations).await;
        patroni
    }

    /// The rules of a Role with the least that pgweir needs.
    pub fn rules(&self) -> Value {
        let read = ["get", "list", "watch"];
        let names = ["leader", "config", "failover"].map(|part| self.name(part));
        let resource = if self.kind == "ConfigMap" { "configmaps" } else { "endpoints" };
        json!([
            { "apiGroups": [""], "resources": ["pods"], "verbs": read },
            { "apiGroups": [""], "resources": [resource], "verbs": read, "resourceNames": names },
        ])
    }

    /// Waits until somebody has asked for a switchover, and carries it out.
    pub async fn obey(&mut self) {
        let mut asked = String::new();
        eventually_within(ASKED_WITHIN, "a switchover is asked for", async || {
            let found = self.api().get_opt(&self.name("failover")).await.expect("the API answers");
            let annotations = found.and_then(|object| object.metadata.annotations).unwrap_or_default();
            asked = annotations.get("member").cloned().unwrap_or_default();
            !asked.is_empty()
        })
        .await;
        let from = self.primary;
        let to = (0..3).find(|number| pod_of(&self.scope, *number) == asked).expect("a member is asked for");
        self.pause(100).await;
        self.replicas.sql(from, "CHECKPOINT").await;
        self.pause(100).await;
        self.replicas.ask_to_stop(from, Stop::Fast);
        eventually("the fast shutdown completes", async || !self.replicas.runs(from)).await;
        self.replicas.ended(from);
        self.annotate("leader", self.leads(None)).await;
        self.pause(200).await;
        self.transitions += 1;
        self.annotate("leader", self.leads(Some(to))).await;
        self.label(to, "primary").await;
        self.pause(50).await;
        self.replicas.promote(to).await;
        self.primary = to;
        self.annotate("failover", json!({ "leader": null, "member": null })).await;
        self.replicas.demote(from).await;
        self.label(from, "replica").await;
    }

    fn leads(&self, leader: Option<usize>) -> Value {
        let leader = leader.map(|number| pod_of(&self.scope, number));
        json!({
            "leader": leader,
            "renewTime": now(),
            "ttl": "30",
            "transitions": self.transitions.to_string(),
        })
    }

    fn name(&self, part: &str) -> String {
        match (self.kind, part) {
            ("Endpoints", "leader") => self.scope.clone(),
            _ => format!("{}-{part}", self.scope),
        }
    }

    async fn create(&self, part: &str, annotations: Value) {
        let metadata = json!({ "name": self.name(part), "annotations": annotations });
        self.space.create(json!({ "apiVersion": "v1", "kind": self.kind, "metadata": metadata })).await;
    }

    async fn annotate(&self, part: &str, annotations: Value) {
        let change = json!({ "metadata": { "annotations": annotations } });
        self.space.change(&format!("v1/{}", self.kind), &self.name(part), change).await;
    }

    async fn label(&self, number: usize, role: &str) {
        let change = json!({ "metadata": { "labels": { "role": role } } });
        self.space.change(POD, &pod_of(&self.scope, number), change).await;
    }

    async fn pause(&mut self, ms_max: u64) {
        let pause = self.chance.random_range(0..=ms_max * 1000);
        sleep(Duration::from_micros(pause)).await;
    }

    fn api(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("", "v1", self.kind);
        let plural = if self.kind == "ConfigMap" { "configmaps" } else { "endpoints" };
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Api::namespaced_with(self.space.client.clone(), &self.space.name, &resource)
    }
}

/// RFC 3339 with microseconds, as Go's operators write it.
pub fn now() -> String {
    format!("{:.6}", k8s_openapi::jiff::Timestamp::now())
}
