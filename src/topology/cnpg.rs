//! The source `cnpg`: what CloudNativePG's objects say. [`observe`] reads them all.
//!
//! `status.currentPrimary` is written by the new primary itself once it is promoted: it is the word that
//! counts. `status.targetPrimary` is the first sign of a change. Labels and endpoints follow later; only
//! the label `unhealthy` comes early. Nothing here asks the API or reads a clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::{Named, Observation, pods};

/// The annotation with the list of fenced instances, as a JSON text; `*` is all.
const FENCED: &str = "cnpg.io/fencedInstances";
const HIBERNATION: &str = "cnpg.io/hibernation";
const ROLE_LABEL: &str = "cnpg.io/instanceRole";
/// `targetPrimary` while the operator looks for the best standby.
pub const PENDING: &str = "pending";
/// The phase while a volume is full: the operator then starts no server on it.
pub const DISK_FULL: &str = "Not enough disk space";
/// The phase while there is nothing to do.
pub const HEALTHY: &str = "Cluster in healthy state";

/// Phases in which the primary stays the primary and yet ends what it runs: nothing but the phase announces it.
/// It restarts, or it was a replica cluster's and is promoted, after which its sessions are ended.
const INTERRUPTIONS: [&str; 3] = [
    "Primary instance is being restarted in-place",
    "Primary instance is being restarted without a switchover",
    "Promoting to primary cluster",
];

/// The part of a Cluster object (`postgresql.cnpg.io/v1`) that is looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    metadata: ObjectMeta,
    body: Body,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Body {
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Spec {
    replica: Option<Replica>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Replica {
    enabled: Option<bool>,
    #[serde(rename = "self")]
    own_name: String,
    primary: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    current_primary: String,
    current_primary_timestamp: Value,
    target_primary: String,
    phase: String,
    #[serde(rename = "systemID")]
    system_id: String,
    #[serde(rename = "timelineID")]
    timeline_id: u32,
    switch_replica_cluster_status: SwitchReplicaCluster,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SwitchReplicaCluster {
    in_progress: bool,
}

/// All that is known of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// The Cluster object; `None` if there is none of this name.
    pub cluster: Option<&'a Cluster>,
    /// The pods that [`selector`] chooses.
    pub pods: &'a [Pod],
    /// The EndpointSlices of its services; they say zones.
    pub slices: &'a [EndpointSlice],
    /// The Lease of the cluster's name, which CloudNativePG has since 1.30.
    pub lease: Option<&'a Lease>,
}

/// The label selector of a cluster's database pods; its poolers carry the cluster's label too.
pub fn selector(cluster: &str) -> String {
    format!("cnpg.io/cluster={cluster},cnpg.io/podRole=instance")
}

/// The label selector of the EndpointSlices of a cluster's services.
pub fn slices_selector(cluster: &str) -> String {
    format!("kubernetes.io/service-name in ({cluster}-rw,{cluster}-r,{cluster}-ro)")
}

/// What these objects say of the cluster of this name.
pub fn observe(name: &str, objects: Objects<'_>, port: u16) -> Observation {
    let Some(cluster) = objects.cluster else {
        let mut nothing = Observation::nothing(&format!("there is no Cluster \"{name}\""));
        nothing.members = pods::members(objects.pods, objects.slices, port);
        return nothing;
    };
    let fenced = cluster.fenced();
    let mut members = pods::members(objects.pods, objects.slices, port);
    for member in &mut members {
        let is_fenced = fenced.contains("*") || fenced.contains(&*member.name);
        member.fenced = is_fenced.then(|| FENCED.into());
    }
    let status = &cluster.body.status;
    Observation {
        incarnation: cluster.metadata.uid.as_deref().map(Arc::from),
        members,
        primary: cluster.primary(objects.pods, objects.lease),
        system_id: status.system_id.parse().ok(),
        timeline: Some(status.timeline_id).filter(|timeline| *timeline > 0),
        phase: Some(status.phase.as_str()).filter(|phase| !phase.is_empty()).map(Arc::from),
    }
}

impl Cluster {
    /// The object from its metadata and the rest of it. A field of an unexpected type is an error.
    pub fn new(metadata: ObjectMeta, body: Value) -> Result<Self, serde_json::Error> {
        Ok(Cluster { metadata, body: serde_json::from_value(body)? })
    }

    fn primary(&self, pods: &[Pod], lease: Option<&Lease>) -> Named {
        let status = &self.body.status;
        if pods::annotation(&self.metadata, HIBERNATION) == Some("on") {
            return Named::Nobody(format!("the cluster hibernates ({HIBERNATION}=on)").into());
        }
        if self.is_replica_cluster() {
            return Named::Nobody("it is a replica cluster: its primary is in another one".into());
        }
        let current = status.current_primary.as_str();
        let target = status.target_primary.as_str();
        if current.is_empty() && matches!(target, "" | PENDING) {
            return Named::Nobody(format!("the cluster has no primary yet: {}", self.phase()).into());
        }
        if target != current && !target.is_empty() {
            return self.moving(Some(target).filter(|target| *target != PENDING), &self.change());
        }
        if status.switch_replica_cluster_status.in_progress {
            return self.moving(None, "the cluster becomes a replica cluster");
        }
        if INTERRUPTIONS.contains(&status.phase.as_str()) {
            return self.moving(Some(current), &status.phase);
        }
        if is_unhealthy(current, pods) {
            return self.moving(None, &format!("the operator has labelled {current} unhealthy"));
        }
        match lease.and_then(|lease| self.other_holder(lease)) {
            Some("") => self.moving(None, &format!("{current} has given up the lease of the primary")),
            Some(holder) => {
                self.moving(Some(holder), &format!("the lease of the primary is held by {holder}"))
            }
            None => Named::Member(current.into()),
        }
    }

    fn moving(&self, to: Option<&str>, reason: &str) -> Named {
        let from = Some(self.body.status.current_primary.as_str()).filter(|name| !name.is_empty());
        Named::Moving { from: from.map(Arc::from), to: to.map(Arc::from), reason: reason.into() }
    }

    fn phase(&self) -> &str {
        match self.body.status.phase.as_str() {
            "" => "the operator has not reported a phase",
            phase => phase,
        }
    }

    /// The operator's word for the change of the primary; the phase may come after the target.
    fn change(&self) -> String {
        match self.body.status.phase.as_str() {
            "" | HEALTHY => format!("targetPrimary is {}", self.body.status.target_primary),
            phase => phase.to_owned(),
        }
    }

    /// As the operator decides it: `enabled` counts if it is there, else whether another cluster is named.
    fn is_replica_cluster(&self) -> bool {
        let Some(replica) = &self.body.spec.replica else {
            return false;
        };
        let own_name = match replica.own_name.as_str() {
            "" => self.metadata.name.as_deref().unwrap_or_default(),
            name => name,
        };
        replica.enabled.unwrap_or(own_name != replica.primary)
    }

    /// A text that is no list fences nobody, as in the instance manager.
    fn fenced(&self) -> BTreeSet<String> {
        let text = pods::annotation(&self.metadata, FENCED).unwrap_or("[]");
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The lease's holder, if that is not the current primary; `""` when it was given up.
    ///
    /// A lease that was last written before the current primary was promoted does not count: either its
    /// news has not reached us yet, or nobody keeps it any more (an operator that went back below 1.30).
    fn other_holder<'a>(&self, lease: &'a Lease) -> Option<&'a str> {
        let spec = lease.spec.as_ref()?;
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let promoted: Option<MicroTime> =
            serde_json::from_value(self.body.status.current_primary_timestamp.clone()).ok();
        let is_older = match (&spec.renew_time, &promoted) {
            (Some(renewed), Some(promoted)) => renewed < promoted,
            (None, _) => true,
            (Some(_), None) => false,
        };
        (!is_older && holder != self.body.status.current_primary).then_some(holder)
    }
}

fn is_unhealthy(primary: &str, pods: &[Pod]) -> bool {
    let pod = pods.iter().find(|pod| pods::name(pod) == primary);
    pod.and_then(|pod| pods::label(pod, ROLE_LABEL)) == Some("unhealthy")
}

#[cfg(test)]
mod tests;
