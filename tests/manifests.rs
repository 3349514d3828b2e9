//! The manifests of `config/kubernetes` are what Kubernetes, the operators and pgweir itself accept, and
//! grant what is needed and no more.
//!
//! Nothing of theirs may be misspelt: each object is read into its type and must come out whole, or is
//! asked about at a schema. So that the checks are worth something, each is shown every object with each of
//! its fields misspelt, and must find it.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DynamicObject, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::Kube;
use support::kube::resource;
use support::kustomize::{self, Document, text};

/// Below these, the keys are the user's own.
const FREE: [&str; 8] =
    ["annotations", "data", "labels", "limits", "matchLabels", "parameters", "requests", "selector"];

// ---- the fields ----

#[test]
fn every_kustomization_can_be_put_together() {
    for directory in kustomize::kustomizations() {
        let objects = kustomize::build(&directory);
        let names: BTreeSet<String> =
            objects.iter().map(|one| format!("{} {}", one["kind"], one["metadata"]["name"])).collect();
        assert_eq!(names.len(), objects.len(), "{directory}: two objects have the same name");
        for subject in objects.iter().filter_map(|one| one["subjects"].as_array()).flatten() {
            assert!(subject["namespace"].is_string(), "{directory}: no namespace: {subject}");
        }
    }
}

#[test]
fn every_object_of_kubernetes_is_read_whole() {
    for Document { file, value } in core_documents() {
        assert_eq!(lost_when_read(&value).expect("a core kind"), [""; 0], "{file}");
    }
}

#[test]
fn every_misspelling_in_an_object_of_kubernetes_is_found() {
    for Document { file, value } in core_documents() {
        for (path, misspelt) in misspellings(&value) {
            let lost = lost_when_read(&misspelt);
            assert!(lost.is_none_or(|lost| !lost.is_empty()), "{file}: {path} is not missed");
        }
    }
}

#[test]
fn every_object_of_an_operator_fits_its_schema() {
    let documents = custom_documents();
    let kinds: BTreeSet<&str> = documents.iter().map(|one| text(&one.value, "/kind")).collect();
    let expected = ["Cluster", "ObjectStore", "PodMonitor", "Pooler", "PrometheusRule", "ScheduledBackup"];
    assert_eq!(kinds, BTreeSet::from(expected));
    let values: Vec<Value> = documents.iter().map(|one| one.value.clone()).collect();
    for (document, errors) in documents.iter().zip(schema_errors(&values)) {
        assert_eq!(errors, [""; 0], "{}", document.file);
    }
}

#[test]
fn every_misspelling_in_an_object_of_an_operator_is_found() {
    let documents = custom_documents();
    let (paths, misspelt): (Vec<_>, Vec<_>) =
        documents.iter().flat_map(|one| misspellings(&one.value)).unzip();
    for (path, errors) in paths.iter().zip(schema_errors(&misspelt)) {
        assert!(!errors.is_empty(), "{path} is not missed");
    }
}

/// What is newer than the server that the tests have: it has never heard of it.
const TOO_NEW: [(&str, &str, &str); 2] = [
    ("Deployment", "/spec/template/spec/initContainers/0/restartPolicy", "sidecars are of Kubernetes 1.28"),
    ("Deployment", "/spec/template/spec/initContainers/0/startupProbe", "and have probes since then"),
];

#[tokio::test]
async fn the_api_server_accepts_every_kustomization() {
    let kube = Kube::shared().await;
    kube.namespace("db").await;
    let client = kube.admin().await;
    let mut seen = BTreeSet::new();
    let mut found_new = BTreeSet::new();
    for directory in kustomize::kustomizations() {
        for object in kustomize::build(&directory) {
            let Some(mut known) = as_of_1_20(object) else { continue };
            for (kind, pointer, _) in TOO_NEW {
                if known["kind"] == kind && take(&mut known, pointer).is_some() {
                    found_new.insert(pointer);
                }
            }
            if !seen.insert(known.to_string()) {
                continue;
            }
            assert_eq!(lost_when_sent(&client, &known).await, [""; 0], "{directory}: {known}");
            for (path, misspelt) in misspellings(&known) {
                let is_its_name =
                    ["/apiVersion", "/kind", "/metadata"].iter().any(|part| path.contains(part));
                let found = is_its_name || !lost_when_sent(&client, &misspelt).await.is_empty();
                assert!(found, "{directory}: {path} is not missed");
            }
        }
    }
    assert_eq!(found_new.len(), TOO_NEW.len(), "an exception is not needed: {found_new:?}");
}

/// What the API server drops of an object, or why it refuses it. Nothing is kept.
async fn lost_when_sent(client: &kube::Client, object: &Value) -> Vec<String> {
    match dry_run(client, object).await {
        Ok(accepted) => lost(object, &accepted),
        Err(error) => vec![error.to_string()],
    }
}

async fn dry_run(client: &kube::Client, object: &Value) -> Result<Value, kube::Error> {
    let kind = resource(text(object, "/apiVersion"), text(object, "/kind"));
    let api: Api<DynamicObject> = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    let accepted = api.create(&dry, &object).await?;
    Ok(serde_json::to_value(accepted).expect("it was JSON"))
}

/// The object as the test server knows it; some kinds had the same fields under an earlier version.
/// Nothing for kinds that are no part of Kubernetes.
fn as_of_1_20(mut object: Value) -> Option<Value> {
    let version = match (text(&object, "/apiVersion"), text(&object, "/kind")) {
        ("policy/v1", "PodDisruptionBudget") => "policy/v1beta1",
        ("autoscaling/v2", "HorizontalPodAutoscaler") => "autoscaling/v2beta2",
        _ if is_custom(&object) => return None,
        (version, _) => version,
    };
    object["apiVersion"] = json!(version.to_owned());
    Some(object)
}

fn is_custom(object: &Value) -> bool {
    let version = text(object, "/apiVersion");
    ["postgresql.cnpg.io/", "barmancloud.cnpg.io/", "monitoring.coreos.com/"]
        .iter()
        .any(|group| version.starts_with(group))
}

fn core_documents() -> Vec<Document> {
    let mut documents = kustomize::documents();
    documents.retain(|document| !is_custom(&document.value));
    assert!(documents.len() > 10, "they are not found");
    documents
}

fn custom_documents() -> Vec<Document> {
    let mut documents = kustomize::documents();
    documents.retain(|document| is_custom(&document.value));
    documents
}

/// What does not survive being read into the object's type; nothing for a kind that is not known.
fn lost_when_read(object: &Value) -> Option<Vec<String>> {
    let name = |field: &str| object[field].as_str().unwrap_or_default();
    Some(match (name("apiVersion"), name("kind")) {
        ("apps/v1", "Deployment") => lost_as::<Deployment>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => lost_as::<HorizontalPodAutoscaler>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => lost_as::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => lost_as::<PodDisruptionBudget>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => lost_as::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => lost_as::<RoleBinding>(object),
        ("storage.k8s.io/v1", "StorageClass") => lost_as::<StorageClass>(object),
        ("v1", "ConfigMap") => lost_as::<ConfigMap>(object),
        ("v1", "Secret") => lost_as::<Secret>(object),
        ("v1", "Service") => lost_as::<Service>(object),
        ("v1", "ServiceAccount") => lost_as::<ServiceAccount>(object),
        _ => return None,
    })
}

fn lost_as<K: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    match serde_json::from_value::<K>(object.clone()) {
        Ok(read) => lost(object, &serde_json::to_value(read).expect("it was JSON")),
        Err(error) => vec![error.to_string()],
    }
}

/// The places of what is in the first and not the same in the second, which may have more.
fn lost(before: &Value, after: &Value) -> Vec<String> {
    let below = |key: &str, before: &Value, after: Option<&Value>| match after {
        Some(after) => lost(before, after).iter().map(|path| format!("/{key}{path}")).collect(),
        None => vec![format!("/{key}")],
    };
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().flat_map(|(key, value)| below(key, value, after.get(key))).collect()
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let pairs = before.iter().zip(after).enumerate();
            pairs.flat_map(|(index, (one, other))| below(&index.to_string(), one, Some(other))).collect()
        }
        _ if before == after => Vec::new(),
        _ => vec![format!(": {before} became {after}")],
    }
}

/// The object once for each of its fields, with that one misspelt, and its place.
fn misspellings(object: &Value) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    fields(object, String::new(), &mut places);
    let misspell = |place: String| {
        let mut misspelt = object.clone();
        let value = take(&mut misspelt, &place).expect("it was found there");
        let (parent, key) = place.rsplit_once('/').expect("a pointer");
        misspelt.pointer_mut(parent).expect("its parent")[format!("{key}x")] = value;
        (format!("{} {place}", object["kind"]), misspelt)
    };
    places.into_iter().map(misspell).collect()
}

fn fields(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let place = format!("{place}/{key}");
                let is_selector_object = key == "selector" && below.get("matchLabels").is_some();
                if !FREE.contains(&key.as_str()) || is_selector_object {
                    fields(below, place.clone(), places);
                }
                places.push(place);
            }
        }
        Value::Array(list) => {
            for (index, below) in list.iter().enumerate() {
                fields(below, format!("{place}/{index}"), places);
            }
        }
        _ => {}
    }
}

fn take(object: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, key) = pointer.rsplit_once('/')?;
    object.pointer_mut(parent)?.as_object_mut()?.remove(key)
}

/// What the published schemas have against each of these.
fn schema_errors(objects: &[Value]) -> Vec<Vec<String>> {
    let checker = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    assert!(checker.join("node_modules").exists(), "no schemas here: run scripts/setup kube");
    let published: Vec<Value> = objects.iter().cloned().map(as_published).collect();
    let mut command = Command::new("node");
    command.arg(checker.join("check.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = command.spawn().expect("node is installed");
    let mut input = node.stdin.take().expect("it was piped");
    input.write_all(json!(published).to_string().as_bytes()).expect("node reads");
    drop(input);
    let output = node.wait_with_output().expect("node ends");
    assert!(output.status.success(), "check.mjs fails");
    serde_json::from_slice(&output.stdout).expect("a list of lists")
}

/// No schema of the Barman Cloud plugin's ObjectStore is published; it holds what a Cluster had as
/// `backup`, under another name.
fn as_published(object: Value) -> Value {
    if object["apiVersion"] != "barmancloud.cnpg.io/v1" || object["kind"] != "ObjectStore" {
        return object;
    }
    let mut cluster = object;
    cluster["apiVersion"] = json!("postgresql.cnpg.io/v1");
    cluster["kind"] = json!("Cluster");
    if let Some(mut backup) = take(&mut cluster, "/spec") {
        let configuration = take(&mut backup, "/configuration").unwrap_or(json!({ "missing": true }));
        backup["barmanObjectStore"] = configuration;
        cluster["spec"] = json!({ "instances": 1, "storage": {}, "backup": backup });
    }
    cluster
}
