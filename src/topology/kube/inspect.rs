//! What the API says of a cluster and of what it stands on: pods, nodes, volumes, backups, certificates, rights.
//! [`Inspection`] has it as plain facts. Only reads, with the rights of whoever looks; the pooler itself never
//! calls this.
//!
//! What may not be seen is no failure: the fact is then the API's own words for that ([`Seen`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::operate::{ApiFailure, Operated};
use crate::topology::pods::ZONE_LABEL;
use crate::topology::{cnpg, patroni, pods};

/// What was seen, or in words why it was not.
pub type Seen<T> = Result<T, String>;

/// What kind of data an operator says that a claim is for: CloudNativePG's label, and Crunchy's.
const CLAIM_ROLES: [&str; 2] = ["cnpg.io/pvcRole", "postgres-operator.crunchydata.com/role"];
const CLAIM_ROLES_DATA: [&str; 2] = ["PG_DATA", "pgdata"];
const CLAIM_ROLES_WAL: [&str; 2] = ["PG_WAL", "pgwal"];

/// What was asked for of a cluster, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The operator's phase, and its reason.
    pub phase: Seen<(String, String)>,
    /// How many instances there shall be.
    pub instances_wanted: Seen<u32>,
    /// The instance that the operator names as the primary.
    pub primary: Option<String>,
    /// The instance that is to become it, if that is another one.
    pub moving_to: Option<String>,
    /// How many standbys a commit shall wait for; `None` if the operator was not told.
    pub synchronous_wanted: Option<u32>,
    /// Whether two instances may never be on one node, or in one zone: the key of nodes' labels that counts.
    pub anti_affinity: Seen<Option<String>>,
    /// The pods of its servers, by name.
    pub instances: Vec<Instance>,
    /// The claims of its namespace, by name.
    pub claims: Seen<BTreeMap<String, Claim>>,
    /// The storage classes of the instances' claims.
    pub classes: BTreeMap<String, Seen<Class>>,
    /// The zone of each instance's node, `None` without the label.
    pub zones: BTreeMap<String, Seen<Option<String>>>,
    /// The base backups that are complete.
    pub backup: Seen<Backup>,
    /// The secrets with its certificates.
    pub certificates: Seen<Vec<SecretFile>>,
    /// What the pooler needs.
    pub rights: Seen<Rights>,
}

/// The pod of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Option<String>,
    /// Whether Kubernetes takes it for ready.
    pub ready: bool,
    /// Where it runs.
    pub node: Option<String>,
    /// Names of the claims that it mounts.
    pub claims: Vec<String>,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Bound, Pending or Lost.
    pub phase: String,
    /// The volume that it is bound to.
    pub volume: Option<String>,
    /// Its StorageClass.
    pub class: Option<String>,
    /// What it is for, where an operator says so.
    pub role: ClaimRole,
}

/// What a claim is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClaimRole {
    /// The data directory.
    Data,
    /// `pg_wal` alone.
    Wal,
    /// Something else, such as a tablespace.
    Other,
    /// Nobody says.
    #[default]
    Unsaid,
}

/// A StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// WaitForFirstConsumer or Immediate.
    pub binding: String,
    /// Whether its volumes can grow.
    pub can_grow: bool,
}

/// The newest base backup that is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// How long ago it was complete; `None` if there is none.
    pub age: Option<Duration>,
    /// Who says so: the name of a Backup, or a field of the Cluster's status.
    pub said_by: String,
    /// The earliest moment that can be restored, where the operator says it.
    pub recoverable_since: Option<String>,
}

/// A certificate in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// Name of the Secret and its key.
    pub name: String,
    /// It, in PEM format.
    pub pem: Seen<Vec<u8>>,
    /// When the operator says that it ends, in seconds since 1970.
    pub expires_s: Option<i64>,
}

/// What the pooler may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Who was asked about.
    pub who: String,
    /// What it cannot do without, and may not.
    pub missing: Vec<String>,
    /// What it knows more by, and may not.
    pub wanting: Vec<String>,
    /// How many it has.
    pub granted: usize,
}

/// Objects that the pooler lists and watches: these, or those instead.
struct Wish {
    must: bool,
    any_of: Vec<(&'static str, &'static str, Option<String>)>,
}

impl Operated {
    /// A cluster of CloudNativePG. With a service account of the namespace, its rights are looked at, else one's own.
    ///
    /// Fails when the Cluster or its pods cannot be read.
    pub async fn inspect_cnpg(&self, account: Option<&str>) -> Result<Inspection, ApiFailure> {
        let missing = || format!("there is no Cluster \"{}\" in namespace \"{}\"", self.name, self.namespace);
        // The pooler may list it, and not get it.
        let by_name = ListParams::default().fields(&format!("metadata.name={}", self.name));
        let found = self.clusters().list(&by_name).await.map_err(words)?.items.into_iter().next();
        let cluster = found.ok_or_else(|| ApiFailure(missing()))?.data;
        let (spec, status) = (&cluster["spec"], &cluster["status"]);
        let instances = self.instances(&[cnpg::selector(&self.name)]).await?.1;
        let primary = text(&status["currentPrimary"]);
        let known = self.ground(&instances).await;
        let wishes = [
            Wish::must("postgresql.cnpg.io", "clusters", Some(&self.name)),
            Wish::must("", "pods", None),
            Wish::may("discovery.k8s.io", "endpointslices", None),
            Wish::may("coordination.k8s.io", "leases", Some(&self.name)),
        ];
        Ok(Inspection {
            phase: Ok((
                text(&status["phase"]).unwrap_or_default(),
                text(&status["phaseReason"]).unwrap_or_default(),
            )),
            instances_wanted: number(&spec["instances"])
                .ok_or_else(|| "spec.instances is no number".to_owned()),
            moving_to: text(&status["targetPrimary"]).filter(|target| Some(target) != primary.as_ref()),
            primary,
            synchronous_wanted: number(&spec["postgresql"]["synchronous"]["number"]),
            anti_affinity: Ok(anti_affinity_of_cluster(&spec["affinity"])),
            instances,
            claims: known.claims,
            classes: known.classes,
            zones: known.zones,
            backup: self.backup(status).await,
            certificates: Ok(self.certificates(&status["certificates"]).await),
            rights: self.rights(&wishes, account).await,
        })
    }

    /// A cluster of Patroni, whoever runs it. As for `account` see [`Operated::inspect_cnpg`].
    ///
    /// Fails when its records or its pods cannot be read.
    pub async fn inspect_patroni(&self, account: Option<&str>) -> Result<Inspection, ApiFailure> {
        let leadership = self.patroni_leadership().await?;
        let (pods, instances) = self.instances(&patroni::selectors(&self.name)).await?;
        if leadership.primary.is_none() && instances.is_empty() {
            let text =
                format!("there is no Patroni scope \"{}\" in namespace \"{}\"", self.name, self.namespace);
            return Err(ApiFailure(text));
        }
        let known = self.ground(&instances).await;
        let [leader, ..] = patroni::Kind::Endpoints.names(&self.name);
        let [leader_map, ..] = patroni::Kind::ConfigMap.names(&self.name);
        let records = Wish {
            must: true,
            any_of: vec![("", "endpoints", Some(leader)), ("", "configmaps", Some(leader_map))],
        };
        let wishes =
            [records, Wish::must("", "pods", None), Wish::may("discovery.k8s.io", "endpointslices", None)];
        let not_said = |what: &str| format!("Patroni's records do not say {what}");
        Ok(Inspection {
            phase: Err(not_said("a phase")),
            instances_wanted: Err(not_said("how many instances there shall be")),
            moving_to: leadership.requested.filter(|to| Some(to) != leadership.primary.as_ref()),
            primary: leadership.primary,
            synchronous_wanted: None,
            anti_affinity: Ok(anti_affinity_of_pods(&pods)),
            instances,
            claims: known.claims,
            classes: known.classes,
            zones: known.zones,
            backup: Err(not_said("which base backups there are: ask the tool that makes them")),
            certificates: Err(not_said("which secrets have certificates")),
            rights: self.rights(&wishes, account).await,
        })
    }

    async fn instances(&self, selectors: &[String]) -> Result<(Vec<Pod>, Vec<Instance>), ApiFailure> {
        let found = super::pods_of(&self.client, &self.namespace, selectors).await.map_err(words)?;
        let pods: Vec<Pod> = pods::running(&found).cloned().collect();
        let instances = pods.iter().map(instance).collect();
        Ok((pods, instances))
    }

    /// The nodes and volumes that these stand on.
    async fn ground(&self, instances: &[Instance]) -> Ground {
        let nodes: BTreeSet<&String> = instances.iter().filter_map(|one| one.node.as_ref()).collect();
        let mut zones = BTreeMap::new();
        for name in nodes {
            let zone = |node: Node| node.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL));
            zones.insert(name.clone(), self.get_of_all(name).await.map(zone));
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let claims = api.list(&ListParams::default()).await.map_err(|error| words(error).0);
        let claims = claims.map(|list| list.items.into_iter().map(claim).collect::<BTreeMap<_, _>>());
        let used = instances.iter().flat_map(|one| &one.claims);
        let used = used.filter_map(|name| claims.as_ref().ok()?.get(name)?.class.clone());
        let mut classes = BTreeMap::new();
        for name in used.collect::<BTreeSet<_>>() {
            let class = |class: StorageClass| Class {
                binding: class.volume_binding_mode.unwrap_or_else(|| "Immediate".to_owned()),
                can_grow: class.allow_volume_expansion == Some(true),
            };
            let seen = self.get_of_all(&name).await.map(class);
            classes.insert(name, seen);
        }
        Ground { claims, classes, zones }
    }

    /// An object that belongs to no namespace.
    async fn get_of_all<K>(&self, name: &str) -> Seen<K>
    where
        K: kube::Resource<Scope = kube::core::ClusterResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        Api::<K>::all(self.client.clone()).get(name).await.map_err(|error| words(error).0)
    }

    /// The newest of the Backups that are complete and of what the Cluster's own status says.
    async fn backup(&self, status: &Value) -> Seen<Backup> {
        let kind = GroupVersionKind::gvk("postgresql.cnpg.io", "v1", "Backup");
        let resource = ApiResource::from_gvk_with_plural(&kind, "backups");
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let in_status = moment(&status["lastSuccessfulBackup"]);
        let listed = match (api.list(&ListParams::default()).await, in_status) {
            (Ok(list), _) => list.items,
            (Err(_), Some(_)) => Vec::new(),
            (Err(error), None) => return Err(words(error).0),
        };
        let complete = listed.iter().filter_map(|object| {
            let is_ours = object.data["spec"]["cluster"]["name"] == json!(self.name);
            let is_complete = object.data["status"]["phase"] == "completed";
            let stopped = moment(&object.data["status"]["stoppedAt"]).filter(|_| is_ours && is_complete)?;
            Some((stopped, format!("Backup {}", object.metadata.name.as_deref().unwrap_or_default())))
        });
        let said = in_status.map(|at| (at, "status.lastSuccessfulBackup".to_owned()));
        let newest = complete.chain(said).max_by_key(|(at, _)| *at);
        let now = Timestamp::now();
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        Ok(Backup {
            age: newest.as_ref().map(|(at, _)| age(*at)),
            said_by: newest.map(|(_, by)| by).unwrap_or_default(),
            recoverable_since: text(&status["firstRecoverabilityPoint"]),
        })
    }

    /// The secrets that the Cluster's status names; what may not be read, its status says too.
    async fn certificates(&self, said: &Value) -> Vec<SecretFile> {
        let files = [
            ("serverTLSSecret", "tls.crt"),
            ("serverCASecret", "ca.crt"),
            ("replicationTLSSecret", "tls.crt"),
            ("clientCASecret", "ca.crt"),
        ];
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut found: Vec<SecretFile> = Vec::new();
        for (field, key) in files {
            let Some(secret) = text(&said[field]) else { continue };
            let name = format!("{secret}/{key}");
            if found.iter().any(|known| known.name == name) {
                continue;
            }
            let pem = api.get(&secret).await.map_err(|error| words(error).0).and_then(|object| {
                let file = object.data.unwrap_or_default().remove(key);
                file.map(|bytes| bytes.0).ok_or_else(|| format!("secret {secret} has no {key}"))
            });
            let expires_s = said["expirations"][&secret].as_str().and_then(go_time);
            found.push(SecretFile { name, pem, expires_s });
        }
        found
    }

    async fn rights(&self, wishes: &[Wish], account: Option<&str>) -> Seen<Rights> {
        let who = match account {
            Some(account) => format!("service account {account}"),
            None => "whoever runs this".to_owned(),
        };
        let mut rights = Rights { who, ..Rights::default() };
        for wish in wishes {
            let mut lacks = Vec::new();
            for (group, resource, name) in &wish.any_of {
                let mut verbs = Vec::new();
                for verb in ["list", "watch"] {
                    let wanted = ResourceAttributes {
                        group: Some((*group).to_owned()),
                        resource: Some((*resource).to_owned()),
                        name: name.clone(),
                        namespace: Some(self.namespace.clone()),
                        verb: Some(verb.to_owned()),
                        ..ResourceAttributes::default()
                    };
                    if !self.is_allowed(wanted, account).await.map_err(|failure| failure.0)? {
                        verbs.push(verb);
                    }
                }
                let name = name.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
                lacks.push((verbs.is_empty(), format!("{} {resource}{name}", verbs.join(", "))));
            }
            match (lacks.iter().any(|(is_granted, _)| *is_granted), wish.must) {
                (true, _) => rights.granted += 1,
                (false, must) => {
                    let list = if must { &mut rights.missing } else { &mut rights.wanting };
                    let texts: Vec<String> = lacks.into_iter().map(|(_, text)| text).collect();
                    list.push(texts.join(" or "));
                }
            }
        }
        Ok(rights)
    }

    async fn is_allowed(
        &self,
        wanted: ResourceAttributes,
        account: Option<&str>,
    ) -> Result<bool, ApiFailure> {
        let post = PostParams::default();
        let status = match account {
            None => {
                let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
                let spec = SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(wanted),
                    ..SelfSubjectAccessReviewSpec::default()
                };
                let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
                api.create(&post, &review).await.map_err(words)?.status
            }
            Some(account) => {
                let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
                let namespace = &self.namespace;
                let all = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
                let own = format!("system:serviceaccounts:{namespace}");
                let spec = SubjectAccessReviewSpec {
                    resource_attributes: Some(wanted),
                    user: Some(format!("system:serviceaccount:{namespace}:{account}")),
                    groups: Some(all.into_iter().chain([own]).collect()),
                    ..SubjectAccessReviewSpec::default()
                };
                let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
                api.create(&post, &review).await.map_err(words)?.status
            }
        };
        Ok(status.is_some_and(|status| status.allowed))
    }
}

/// What instances stand on.
struct Ground {
    claims: Seen<BTreeMap<String, Claim>>,
    classes: BTreeMap<String, Seen<Class>>,
    zones: BTreeMap<String, Seen<Option<String>>>,
}

impl Wish {
    fn must(group: &'static str, resource: &'static str, name: Option<&str>) -> Self {
        Wish { must: true, ..Wish::may(group, resource, name) }
    }

    fn may(group: &'static str, resource: &'static str, name: Option<&str>) -> Self {
        Wish { must: false, any_of: vec![(group, resource, name.map(str::to_owned))] }
    }
}

fn instance(pod: &Pod) -> Instance {
    Instance {
        name: pods::name(pod).to_owned(),
        address: pods::address(pod).map(str::to_owned),
        ready: pods::is_ready(pod),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        claims: pods::claims(pod).map(|(_, claim)| claim.to_owned()).collect(),
    }
}

fn claim(object: PersistentVolumeClaim) -> (String, Claim) {
    let labels = object.metadata.labels.unwrap_or_default();
    let role = CLAIM_ROLES.iter().find_map(|key| labels.get(*key));
    let role = match role.map(String::as_str) {
        Some(role) if CLAIM_ROLES_DATA.contains(&role) => ClaimRole::Data,
        Some(role) if CLAIM_ROLES_WAL.contains(&role) => ClaimRole::Wal,
        Some(_) => ClaimRole::Other,
        None => ClaimRole::Unsaid,
    };
    let spec = object.spec.unwrap_or_default();
    let phase = object.status.and_then(|status| status.phase).unwrap_or_default();
    let claim = Claim { phase, volume: spec.volume_name, class: spec.storage_class_name, role };
    (object.metadata.name.unwrap_or_default(), claim)
}

/// `enablePodAntiAffinity` is on unless it is switched off, and `podAntiAffinityType` is preferred.
fn anti_affinity_of_cluster(affinity: &Value) -> Option<String> {
    let is_on = affinity["enablePodAntiAffinity"].as_bool().unwrap_or(true);
    let is_required = affinity["podAntiAffinityType"] == "required";
    let key = text(&affinity["topologyKey"]).unwrap_or_else(|| "kubernetes.io/hostname".to_owned());
    (is_on && is_required).then_some(key)
}

/// The key of what all pods require.
fn anti_affinity_of_pods(pods: &[Pod]) -> Option<String> {
    let key = |pod: &Pod| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.pod_anti_affinity.as_ref()?;
        let terms = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        terms.first().map(|term| term.topology_key.clone())
    };
    let keys: Option<Vec<String>> = pods.iter().map(key).collect();
    keys?.into_iter().next()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn moment(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// As Go prints it, `2026-03-01 10:00:00 +0000 UTC`, in seconds since 1970.
fn go_time(text: &str) -> Option<i64> {
    let without_name = text.rsplit_once(' ').map_or(text, |(time, _)| time);
    let time = Timestamp::strptime("%Y-%m-%d %H:%M:%S%.f %z", without_name).ok()?;
    Some(time.as_second())
}

/// The API's own words.
fn words(error: kube::Error) -> ApiFailure {
    match error {
        kube::Error::Api(status) => ApiFailure(status.message),
        other => ApiFailure(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anti_affinity_counts_when_it_is_required() {
        let check = |affinity: Value, expected: Option<&str>| {
            assert_eq!(anti_affinity_of_cluster(&affinity).as_deref(), expected, "{affinity}");
        };
        check(json!(null), None);
        check(json!({ "podAntiAffinityType": "preferred" }), None);
        check(json!({ "podAntiAffinityType": "required" }), Some("kubernetes.io/hostname"));
        check(json!({ "podAntiAffinityType": "required", "topologyKey": ZONE_LABEL }), Some(ZONE_LABEL));
        check(json!({ "podAntiAffinityType": "required", "enablePodAntiAffinity": false }), None);
    }

    #[test]
    fn all_pods_must_require_it() {
        let pod = |key: Option<&str>| -> Pod {
            let terms = key.map(|key| json!([{ "topologyKey": key, "labelSelector": {} }]));
            let affinity =
                json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": terms } });
            let spec = json!({ "spec": { "affinity": affinity, "containers": [] } });
            serde_json::from_value(spec).expect("a pod")
        };
        assert_eq!(anti_affinity_of_pods(&[pod(Some("zone")), pod(Some("zone"))]).as_deref(), Some("zone"));
        assert_eq!(anti_affinity_of_pods(&[pod(Some("zone")), pod(None)]), None);
        assert_eq!(anti_affinity_of_pods(&[]), None);
    }

    #[test]
    fn a_claim_is_for_what_its_operator_says() {
        let check = |labels: Value, expected: ClaimRole| {
            let object = json!({ "metadata": { "name": "a", "labels": labels } });
            let (name, found) = claim(serde_json::from_value(object).expect("a claim"));
            assert_eq!((name.as_str(), found.role), ("a", expected), "{labels}");
        };
        check(json!({ "cnpg.io/pvcRole": "PG_DATA" }), ClaimRole::Data);
        check(json!({ "cnpg.io/pvcRole": "PG_WAL" }), ClaimRole::Wal);
        check(json!({ "cnpg.io/pvcRole": "PG_TABLESPACE" }), ClaimRole::Other);
        check(json!({ "postgres-operator.crunchydata.com/role": "pgwal" }), ClaimRole::Wal);
        check(json!({ "application": "spilo" }), ClaimRole::Unsaid);
    }

    #[test]
    fn the_time_of_a_go_program_is_read() {
        assert_eq!(go_time("1970-01-02 00:00:01 +0000 UTC"), Some(86_401));
        assert_eq!(go_time("1970-01-01 02:00:00 +0200 CEST"), Some(0));
        assert_eq!(go_time("tomorrow"), None);
    }
}
