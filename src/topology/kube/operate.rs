//! What an operator's own command asks and changes, with the operator's own rights: where the poolers
//! are, who the primary is, and that another member is to become it. The pooler itself never calls this.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::Kubernetes;
use crate::topology::cnpg::PENDING;

/// The API's own words for what did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiFailure(pub String);

impl std::fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<kube::Error> for ApiFailure {
    fn from(error: kube::Error) -> Self {
        ApiFailure(error.to_string())
    }
}

/// Who leads, and who could.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The primary's pod.
    pub primary: Option<String>,
    /// All members; empty when the object does not list them.
    pub members: Vec<String>,
    /// The member that is to become the primary, or the primary itself; `None` if none is asked for.
    pub requested: Option<String>,
    /// The version of the object that says so.
    pub version: Option<String>,
}

impl Leadership {
    /// The member that was asked for, if whoever wants `to` wants it to stay the primary instead. In a failover
    /// there is nothing to take back.
    pub fn request_to_take_back(&self, to: &str) -> Option<&str> {
        let is_other = |requested: &&str| *requested != to && *requested != PENDING;
        let is_primary = self.primary.as_deref() == Some(to);
        self.requested.as_deref().filter(is_other).filter(|_| is_primary)
    }
}

/// One CloudNativePG cluster or Patroni scope, in the hands of an operator.
#[derive(Clone)]
pub struct Operated {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Kubernetes {
    /// The cluster object or Patroni scope `name` in `namespace`; without one, in our own.
    pub fn operate(&self, namespace: Option<&str>, name: &str) -> Operated {
        let namespace = namespace.unwrap_or(&self.namespace).to_owned();
        Operated { client: self.client.clone(), namespace, name: name.to_owned() }
    }
}

impl Operated {
    /// Where the ready pods of a Service listen, at its port of this name.
    pub async fn addresses(&self, service: &str, port: &str) -> Result<Vec<SocketAddr>, ApiFailure> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let selection = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let mut found = Vec::new();
        for slice in slices.list(&selection).await?.items {
            let ports = slice.ports.unwrap_or_default();
            let number = ports.iter().find(|one| one.name.as_deref() == Some(port)).and_then(|one| one.port);
            let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
            let endpoints = slice.endpoints.unwrap_or_default();
            let ready = endpoints.iter().filter(|endpoint| {
                let conditions = endpoint.conditions.as_ref();
                conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
            });
            let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
            found.extend(addresses.filter_map(|text| Some(SocketAddr::new(text.parse().ok()?, number))));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Deletes a pod, with no time for what runs in it.
    pub async fn delete_pod(&self, name: &str) -> Result<(), ApiFailure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(name, &now).await?;
        Ok(())
    }

    /// CloudNativePG: who the cluster's status says is the primary.
    pub async fn cnpg_leadership(&self) -> Result<Leadership, ApiFailure> {
        let cluster = self.clusters().get(&self.name).await?;
        let status = &cluster.data["status"];
        let names = status["instanceNames"].as_array().into_iter().flatten();
        Ok(Leadership {
            primary: status["currentPrimary"].as_str().map(str::to_owned),
            members: names.filter_map(Value::as_str).map(str::to_owned).collect(),
            requested: status["targetPrimary"].as_str().map(str::to_owned),
            version: cluster.metadata.resource_version,
        })
    }

    /// CloudNativePG: the primary is to stay. The API refuses when the Cluster has changed since `before`: then the
    /// move may have happened, and this would be another one.
    pub async fn cnpg_take_back(&self, before: &Leadership) -> Result<(), ApiFailure> {
        let change = json!({
            "metadata": { "resourceVersion": before.version },
            "status": { "targetPrimary": before.primary, "targetPrimaryTimestamp": now() },
        });
        self.clusters().patch_status(&self.name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    /// CloudNativePG: asks for a switchover, as `kubectl cnpg promote` does.
    pub async fn cnpg_promote(&self, member: &str) -> Result<(), ApiFailure> {
        let status = json!({ "status": {
            "targetPrimary": member,
            "targetPrimaryTimestamp": now(),
            "phase": "Switchover in progress",
            "phaseReason": format!("Switching over to {member}"),
        }});
        self.clusters().patch_status(&self.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// Patroni: who the leader object says is the leader.
    pub async fn patroni_leadership(&self) -> Result<Leadership, ApiFailure> {
        let name = self.failover_name();
        let in_endpoints = self.endpoints().get_opt(&name).await?.map(|object| object.metadata);
        let in_map = self.config_maps().get_opt(&name).await?.map(|object| object.metadata);
        let mut records = [in_endpoints, in_map].into_iter().flatten();
        let requested = records.find_map(|metadata| metadata.annotations?.remove("member"));
        let leader = |annotations: Option<std::collections::BTreeMap<String, String>>| {
            let primary = annotations.unwrap_or_default().remove("leader");
            Leadership { primary, requested: requested.clone(), ..Leadership::default() }
        };
        let by_endpoints = self.endpoints().get_opt(&self.name).await?;
        if let Some(found) = by_endpoints.map(|object| leader(object.metadata.annotations))
            && found.primary.is_some()
        {
            return Ok(found);
        }
        let by_map = self.config_maps().get_opt(&format!("{}-leader", self.name)).await?;
        Ok(by_map.map(|object| leader(object.metadata.annotations)).unwrap_or_default())
    }

    /// Patroni: asks for a switchover by its failover object, of the kind that the leader object has.
    pub async fn patroni_promote(&self, from: &str, member: &str) -> Result<(), ApiFailure> {
        self.patroni_request(json!({ "leader": from, "member": member })).await
    }

    /// Patroni: nobody is asked for any more.
    pub async fn patroni_take_back(&self) -> Result<(), ApiFailure> {
        self.patroni_request(json!({ "leader": null, "member": null })).await
    }

    fn failover_name(&self) -> String {
        format!("{}-failover", self.name)
    }

    async fn patroni_request(&self, annotations: Value) -> Result<(), ApiFailure> {
        let name = self.failover_name();
        let object = json!({ "metadata": { "name": name, "annotations": annotations } });
        let in_endpoints = self.endpoints().get_opt(&self.name).await?.is_some_and(|object| {
            object.metadata.annotations.is_some_and(|annotations| annotations.contains_key("leader"))
        });
        match in_endpoints {
            true => write(&self.endpoints(), &name, object).await,
            false => write(&self.config_maps(), &name, object).await,
        }
    }

    pub(super) fn clusters(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("postgresql.cnpg.io", "v1", "Cluster");
        let resource = ApiResource::from_gvk_with_plural(&kind, "clusters");
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    fn endpoints(&self) -> Api<Endpoints> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Makes the object, or changes the one that is there.
async fn write<K>(api: &Api<K>, name: &str, object: Value) -> Result<(), ApiFailure>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    if api.get_opt(name).await?.is_some() {
        api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await?;
    } else {
        let object = serde_json::from_value(object).map_err(|error| ApiFailure(error.to_string()))?;
        api.create(&Default::default(), &object).await?;
    }
    Ok(())
}

/// RFC 3339 with microseconds, as Kubernetes' MicroTime.
fn now() -> String {
    let now = Timestamp::now();
    format!("{now:.6}")
}
