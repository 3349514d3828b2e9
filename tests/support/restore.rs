//! What CloudNativePG does with a Cluster that is to be restored to a moment: [`Operator::restores`].

use super::archive::Archive;
use super::eventually_within;
use super::operator::{CLUSTER, HEALTHY, Operator, POD, now, pod_of};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long somebody may take to ask for a cluster, or to be done with it.
const ASKED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster that was restored.
pub struct Restored {
    /// The number of its server.
    pub number: usize,
    /// As its object has it.
    pub target_time: String,
    /// From seeing the object until its status said that it is healthy.
    pub took: Duration,
    name: String,
}

impl Operator {
    /// The Cluster says that it archives there.
    pub async fn archives_to(&self, archive: &Archive) {
        let store = json!({ "destinationPath": archive.path() });
        let change = json!({ "spec": { "backup": { "barmanObjectStore": store } } });
        self.space.change(CLUSTER, &self.cluster, change).await;
    }

    /// Waits until somebody has asked for a Cluster of this name, and makes it: of the base backup and the WAL that it
    /// names, up to its moment, which `change` may make another one.
    pub async fn restores(&mut self, name: &str, change: impl Fn(&str) -> String) -> Restored {
        let mut spec = Value::Null;
        eventually_within(ASKED_WITHIN, "a cluster is asked for", async || {
            let found = self.clusters().get_opt(name).await.expect("the API answers");
            spec = found.map(|cluster| cluster.data["spec"].clone()).unwrap_or_default();
            !spec.is_null()
        })
        .await;
        let began = Instant::now();
        self.space.status(CLUSTER, name, json!({ "phase": "Setting up primary" })).await;
        let recovery = &spec["bootstrap"]["recovery"];
        let target_time = recovery["recoveryTarget"]["targetTime"].as_str().expect("a moment").to_owned();
        let outside = &spec["externalClusters"][0];
        assert_eq!((&outside["name"], &spec["instances"]), (&recovery["source"], &json!(1)), "{spec}");
        assert_eq!(outside["barmanObjectStore"]["serverName"], json!(self.cluster), "{spec}");
        let path = outside["barmanObjectStore"]["destinationPath"].as_str().expect("a place");
        let place = Path::new(path);
        let number = self.replicas.restore(&place.join("base"), &place.join("wal"), &change(&target_time));
        self.replicas.is_primary(number).await;
        let pod = pod_of(name, 0);
        let labels = json!({
            "cnpg.io/cluster": name,
            "cnpg.io/podRole": "instance",
            "cnpg.io/instanceRole": "primary",
        });
        self.space.pod(&pod, &self.replicas.host(number), labels).await;
        let status = json!({
            "phase": HEALTHY,
            "currentPrimary": pod,
            "currentPrimaryTimestamp": now(),
            "targetPrimary": pod,
            "instanceNames": [pod],
            "systemID": self.replicas.system().await,
            "timelineID": 2,
        });
        self.space.status(CLUSTER, name, status).await;
        Restored { number, target_time, took: began.elapsed(), name: name.to_owned() }
    }

    /// Waits until somebody has deleted it, and takes its pod and its server away.
    pub async fn removes(&mut self, restored: &Restored) {
        eventually_within(ASKED_WITHIN, "the cluster is deleted", async || {
            self.clusters().get_opt(&restored.name).await.expect("the API answers").is_none()
        })
        .await;
        self.space.delete(POD, &pod_of(&restored.name, 0), 0).await;
        self.replicas.kill(restored.number);
    }
}
