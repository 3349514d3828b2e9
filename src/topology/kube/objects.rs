//! Objects as manifests have them, made and changed: [`Objects`]. For whoever plays an operator; the pooler
//! itself never calls this.

use std::path::Path;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::operate::ApiFailure;
use super::{Kubernetes, NoApi};

/// The objects of one namespace, and those of none.
pub struct Objects {
    kubernetes: Kubernetes,
}

impl Objects {
    /// With this kubeconfig, in its namespace. Dials nothing yet.
    pub async fn open(kubeconfig: &Path) -> Result<Self, NoApi> {
        let no_api = |error: &dyn std::error::Error| NoApi(error.to_string());
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| no_api(&error))?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Ok(Objects { kubernetes: Kubernetes::from_config(config.map_err(|error| no_api(&error))?)? })
    }

    /// Makes an object, and gives it the status of the manifest.
    pub async fn create(&self, manifest: Value) -> Result<(), ApiFailure> {
        let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
        let kind = format!("{}/{}", text(&manifest["apiVersion"]), text(&manifest["kind"]));
        let (name, status) = (text(&manifest["metadata"]["name"]), manifest["status"].clone());
        let object: DynamicObject =
            serde_json::from_value(manifest).map_err(|error| ApiFailure(error.to_string()))?;
        self.of(&kind).create(&PostParams::default(), &object).await?;
        if status.is_null() { Ok(()) } else { self.status(&kind, &name, status).await }
    }

    /// Merges this into an object: null takes away. `kind` is `v1/Pod`.
    pub async fn merge(&self, kind: &str, name: &str, change: Value) -> Result<(), ApiFailure> {
        self.of(kind).patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    /// Merges this into an object's status.
    pub async fn status(&self, kind: &str, name: &str, status: Value) -> Result<(), ApiFailure> {
        let change = Patch::Merge(json!({ "status": status }));
        self.of(kind).patch_status(name, &PatchParams::default(), &change).await?;
        Ok(())
    }

    /// Whether there is an object of this name.
    pub async fn has(&self, kind: &str, name: &str) -> Result<bool, ApiFailure> {
        Ok(self.of(kind).get_opt(name).await?.is_some())
    }

    fn of(&self, kind: &str) -> Api<DynamicObject> {
        let (api_version, kind) = kind.rsplit_once('/').unwrap_or(("v1", kind));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let Kubernetes { client, namespace } = self.kubernetes.clone();
        match kind {
            "CustomResourceDefinition" | "Namespace" => Api::all_with(client, &resource),
            _ => Api::namespaced_with(client, &namespace, &resource),
        }
    }
}
