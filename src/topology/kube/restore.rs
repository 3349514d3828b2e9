//! CloudNativePG: a new cluster that is what another one was at a moment, from its base backup and its archived WAL.
//! Only `pgweir drill` calls this, with the rights of whoever runs it.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, PostParams, Preconditions};
use serde_json::{Map, Value, json};

use super::operate::{ApiFailure, Operated};
use crate::topology::cnpg::HEALTHY;
use crate::topology::pods;

/// Whose cluster it is that we have made.
const MARK: &str = "pgweir/drill";

/// What the new instance has of the old ones: what it runs, on what, and where. Not `backup` and `plugins`, which would
/// archive into the same place; nor what asks for standbys.
const TAKEN_OVER: [&str; 19] = [
    "affinity",
    "enableSuperuserAccess",
    "env",
    "envFrom",
    "ephemeralVolumesSizeLimit",
    "imageCatalogRef",
    "imageName",
    "imagePullPolicy",
    "imagePullSecrets",
    "postgresGID",
    "postgresUID",
    "priorityClassName",
    "projectedVolumeTemplate",
    "resources",
    "schedulerName",
    "serviceAccountTemplate",
    "storage",
    "tablespaces",
    "walStorage",
];

/// The same of the part `postgresql`: a standby must have no lower limits than its primary had.
const TAKEN_OVER_OF_POSTGRESQL: [&str; 5] =
    ["parameters", "pg_hba", "pg_ident", "shared_preload_libraries", "extensions"];

/// How far a cluster has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What the operator says it does.
    pub phase: String,
    /// Where its primary is, once it is healthy.
    pub address: Option<String>,
}

impl Operated {
    /// Whether there is a Cluster of this name.
    pub async fn cnpg_exists(&self) -> Result<bool, ApiFailure> {
        Ok(self.clusters().get_opt(&self.name).await?.is_some())
    }

    /// Whether the Cluster says where its WAL is archived.
    pub async fn cnpg_is_archived(&self) -> Result<bool, ApiFailure> {
        let cluster = self.clusters().get(&self.name).await?;
        Ok(archive(&self.name, &cluster.data["spec"]).is_some())
    }

    /// Asks for a Cluster `name` of one instance, as this one was at `target_time` (as `recovery_target_time` has it). `mark` is for
    /// [`Operated::cnpg_delete`].
    ///
    /// Fails when it does not say where its WAL is archived.
    pub async fn cnpg_restore(&self, name: &str, target_time: &str, mark: &str) -> Result<(), ApiFailure> {
        let cluster = self.clusters().get(&self.name).await?;
        let spec = restored(&self.name, &cluster.data["spec"], target_time);
        let object = json!({
            "apiVersion": "postgresql.cnpg.io/v1",
            "kind": "Cluster",
            "metadata": { "name": name, "labels": { MARK: mark } },
            "spec": spec.ok_or_else(|| ApiFailure(no_archive(&self.name)))?,
        });
        let object: DynamicObject = serde_json::from_value(object).expect("it has what every object has");
        self.clusters().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// What has become of a Cluster that was asked for.
    pub async fn cnpg_progress(&self) -> Result<Progress, ApiFailure> {
        let cluster = self.clusters().get(&self.name).await?;
        let status = &cluster.data["status"];
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        let primary = status["currentPrimary"].as_str().filter(|_| phase == HEALTHY);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = match primary {
            Some(primary) => api.get_opt(primary).await?,
            None => None,
        };
        Ok(Progress { phase, address: pod.as_ref().and_then(pods::address).map(str::to_owned) })
    }

    /// Deletes the Cluster, if it is the one with this mark.
    pub async fn cnpg_delete(&self, mark: &str) -> Result<(), ApiFailure> {
        let Some(cluster) = self.clusters().get_opt(&self.name).await? else { return Ok(()) };
        let labels = cluster.metadata.labels.unwrap_or_default();
        if labels.get(MARK).is_none_or(|found| found != mark) {
            return Ok(());
        }
        let this_one = Preconditions { uid: cluster.metadata.uid, ..Preconditions::default() };
        let how = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
        self.clusters().delete(&self.name, &how).await?;
        Ok(())
    }
}

/// Why such a cluster cannot be restored.
pub fn no_archive(name: &str) -> String {
    format!(
        "Cluster {name} has neither spec.backup.barmanObjectStore nor a plugin with isWALArchiver: there is no \
         archive to restore it from"
    )
}

/// The specification of a cluster that is restored from the archive of the cluster `name`.
fn restored(name: &str, spec: &Value, target_time: &str) -> Option<Value> {
    let taken = |from: &Value, fields: &[&str]| -> Map<String, Value> {
        let there = fields.iter().filter_map(|field| Some(((*field).to_owned(), from.get(field)?.clone())));
        there.collect()
    };
    let mut new = taken(spec, &TAKEN_OVER);
    new.insert("instances".into(), json!(1));
    new.insert("postgresql".into(), Value::Object(taken(&spec["postgresql"], &TAKEN_OVER_OF_POSTGRESQL)));
    let mut recovery = application(name, &spec["bootstrap"]);
    recovery.insert("source".into(), json!(name));
    recovery.insert("recoveryTarget".into(), json!({ "targetTime": target_time }));
    new.insert("bootstrap".into(), json!({ "recovery": recovery }));
    new.insert("externalClusters".into(), json!([archive(name, spec)?]));
    Some(Value::Object(new))
}

/// Database, owner and the secret with its password: without them the operator makes new ones.
fn application(name: &str, bootstrap: &Value) -> Map<String, Value> {
    let mut ways = ["initdb", "recovery", "pg_basebackup"].into_iter().map(|way| &bootstrap[way]);
    let Some(known) = ways.find(|way| way["database"].is_string()) else { return Map::new() };
    let fields = ["database", "owner"].into_iter();
    let mut all: Map<String, Value> =
        fields.filter_map(|field| Some((field.to_owned(), known.get(field)?.clone()))).collect();
    let secret = known.get("secret").filter(|secret| secret["name"].is_string());
    let secret = secret.cloned().unwrap_or_else(|| json!({ "name": format!("{name}-app") }));
    all.insert("secret".into(), secret);
    all
}

/// Where base backups and WAL are, as an entry of `externalClusters`.
fn archive(name: &str, spec: &Value) -> Option<Value> {
    let with_server_name = |stored: &Value| {
        let mut stored = stored.clone();
        if !stored["serverName"].is_string() {
            stored["serverName"] = json!(name);
        }
        stored
    };
    let store = &spec["backup"]["barmanObjectStore"];
    if store.is_object() {
        return Some(json!({ "name": name, "barmanObjectStore": with_server_name(store) }));
    }
    let mut plugins = spec["plugins"].as_array().into_iter().flatten();
    let archives = |plugin: &&Value| plugin["isWALArchiver"] == true && plugin["enabled"] != false;
    let plugin = plugins.find(archives)?;
    let parameters = with_server_name(&plugin["parameters"]);
    Some(json!({ "name": name, "plugin": { "name": plugin["name"], "parameters": parameters } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02 03:04:05.678901+00";

    #[test]
    fn one_instance_is_made_of_the_object_store_and_archives_nowhere() {
        let spec = json!({
            "instances": 3,
            "imageName": "postgresql:18",
            "minSyncReplicas": 1,
            "storage": { "size": "10Gi" },
            "walStorage": { "size": "2Gi" },
            "postgresql": {
                "parameters": { "max_connections": "300" },
                "synchronous": { "method": "any", "number": 1 },
            },
            "bootstrap": { "initdb": { "database": "shop", "owner": "shop", "encoding": "UTF8" } },
            "backup": { "retentionPolicy": "30d", "barmanObjectStore": { "destinationPath": "s3://b/" } },
            "plugins": [{ "name": "other" }],
        });
        let expected = json!({
            "instances": 1,
            "imageName": "postgresql:18",
            "storage": { "size": "10Gi" },
            "walStorage": { "size": "2Gi" },
            "postgresql": { "parameters": { "max_connections": "300" } },
            "bootstrap": { "recovery": {
                "source": "pg",
                "recoveryTarget": { "targetTime": TIME },
                "database": "shop",
                "owner": "shop",
                "secret": { "name": "pg-app" },
            }},
            "externalClusters": [{
                "name": "pg",
                "barmanObjectStore": { "destinationPath": "s3://b/", "serverName": "pg" },
            }],
        });
        assert_eq!(restored("pg", &spec, TIME).expect("there is an archive"), expected);
    }

    #[test]
    fn the_plugin_that_archives_is_the_one_that_is_restored_from() {
        let plugin = |archives: bool, enabled: bool| {
            let parameters = json!({ "barmanObjectName": "store", "serverName": "old" });
            let plugin = json!({ "name": "barman-cloud.cloudnative-pg.io", "isWALArchiver": archives,
                "enabled": enabled, "parameters": parameters });
            archive("pg", &json!({ "plugins": [{ "name": "other" }, plugin] }))
        };
        let found = plugin(true, true).expect("it archives");
        assert_eq!(found["plugin"]["name"], "barman-cloud.cloudnative-pg.io");
        assert_eq!(
            found["plugin"]["parameters"],
            json!({ "barmanObjectName": "store", "serverName": "old" })
        );
        assert_eq!(plugin(false, true), None);
        assert_eq!(plugin(true, false), None);
        assert_eq!(restored("pg", &json!({}), TIME), None);
    }

    #[test]
    fn the_applications_login_stays_what_it_was() {
        let check = |bootstrap: Value, expected: Value| {
            assert_eq!(Value::Object(application("pg", &bootstrap)), expected, "{bootstrap}");
        };
        check(json!(null), json!({}));
        check(json!({ "recovery": { "source": "older" } }), json!({}));
        check(
            json!({ "recovery": { "database": "a", "owner": "b", "secret": { "name": "c" } } }),
            json!({ "database": "a", "owner": "b", "secret": { "name": "c" } }),
        );
    }
}
