//! The manifests of `config/kubernetes` are what Kubernetes, the operators and pgweir itself accept, and
//! grant what is needed and no more.
//!
//! Nothing of theirs may be misspelt: each object is read into its type and must come out whole, or is
//! asked about at a schema. So that the checks are worth something, each is shown every object with each of
//! its fields misspelt, and must find it.

use crate::support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DynamicObject, PostParams};
use pgweir::config::{Cluster, Config, SourceKind};
use pgweir::metrics;
use pgweir::topology::kube::{Kubernetes, ServiceEvent, SourceEvent};
use pgweir::topology::{Member, Named};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::kube::resource;
use support::kustomize::{self, Document, text};
use support::{Kube, Space, eventually};
use tokio::sync::mpsc;
use tokio::time::timeout;

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
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => lost_as::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => lost_as::<ClusterRoleBinding>(object),
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
        // Go writes a list without elements as null.
        (Value::Array(before), Value::Null) if before.is_empty() => Vec::new(),
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
    let checker = root().join("tests/manifests");
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

// ---- what the objects say of each other ----

#[test]
fn every_ini_file_of_a_config_map_loads() {
    let documents = kustomize::documents();
    let maps = documents.iter().filter(|one| one.value["kind"] == "ConfigMap");
    let count = maps.map(|one| ini(&one.value, &|_| None).clusters.len()).sum::<usize>();
    assert!(count > 0, "no cluster in any of them");
}

#[test]
fn ports_names_and_times_agree() {
    for directory in kustomize::kustomizations() {
        let objects = kustomize::build(&directory);
        for workload in objects.iter().filter(|one| one["kind"] == "Deployment") {
            agrees(&directory, &objects, workload);
        }
        for pooler in objects.iter().filter(|one| one["kind"] == "Pooler") {
            is_found_in_its_pods(&directory, &objects, pooler);
        }
        for monitored in objects.iter().filter(|one| one["kind"] == "Deployment" || one["kind"] == "Pooler") {
            let name = &monitored["metadata"]["name"];
            assert!(
                objects.iter().any(|one| one["kind"] == "PodMonitor"),
                "{directory}: nobody scrapes {name}"
            );
        }
        for autoscaler in objects.iter().filter(|one| one["kind"] == "HorizontalPodAutoscaler") {
            let target = text(autoscaler, "/spec/scaleTargetRef/name");
            named(&objects, "Deployment", target);
        }
    }
}

/// What is said of CloudNativePG's Pooler elsewhere is true of the pods that the operator makes of it.
fn is_found_in_its_pods(directory: &str, objects: &[Value], pooler: &Value) {
    let name = text(pooler, "/metadata/name");
    let container = pooler.pointer("/spec/template/spec/containers/0").expect("its container");
    let declared: Vec<(&str, i64)> = container["ports"].as_array().into_iter().flatten().map(port).collect();
    let metrics = variable(container, "PGWEIR_METRICS_LISTEN_ADDR").expect("metrics are on");
    let is_metrics = |(_, number): &(&str, i64)| metrics.ends_with(&format!(":{number}"));
    assert!(
        declared.iter().all(is_metrics) && !declared.is_empty(),
        "{directory}: {declared:?} and {metrics}"
    );
    // The operator adds these.
    let ports = [declared, vec![("pgbouncer", 5432), ("metrics", 9127)]].concat();
    is_selected(directory, objects, &json!({ "cnpg.io/poolerName": name }), &ports);
    let peers = variable(container, "PGWEIR_PEERS_SERVICE");
    assert_eq!(peers.as_deref(), Some(name), "{directory}: the operator names its Service so");
    named(objects, "Service", &variable(container, "PGWEIR_PEERS_DNS").expect("a name for without rights"));
}

/// What a Deployment of pgweir needs of the other objects.
fn agrees(directory: &str, objects: &[Value], workload: &Value) {
    let pod = workload.pointer("/spec/template/spec").expect("a pod");
    let containers = ["containers", "initContainers"].iter().filter_map(|key| pod[key].as_array()).flatten();
    let pooler = containers.clone().find(|one| one["name"] == "pgweir").expect("a container named pgweir");
    named(objects, "ServiceAccount", text(pod, "/serviceAccountName"));

    let mount = |name: &str| {
        let mounts = pooler["volumeMounts"].as_array().into_iter().flatten();
        let mount = mounts.clone().find(|one| one["name"] == name);
        text(mount.unwrap_or_else(|| panic!("{directory}: no mount {name}")), "/mountPath").to_owned()
    };
    let volume = |name: &str| {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let volume = volumes.clone().find(|one| one["name"] == name);
        volume.unwrap_or_else(|| panic!("{directory}: no volume {name}")).clone()
    };
    let map = named(objects, "ConfigMap", text(&volume("config"), "/configMap/name"));
    let config = ini(map, &|name| variable(pooler, name));
    let settings = &config.settings;
    let file = text(pooler, "/args/0").strip_prefix(&mount("config")).expect("it is mounted there");
    assert!(map["data"].get(&file[1..]).is_some(), "{directory}: {file} is not in its ConfigMap");
    let users = named(objects, "Secret", text(&volume("users"), "/secret/secretName"));
    let file = settings.auth_file.as_ref().expect("an auth_file").to_str().expect("text");
    let file = file.strip_prefix(&mount("users")).expect("it is mounted there");
    let list = users["data"].get(&file[1..]).and_then(Value::as_str).expect("it is in its Secret");
    let list = base64::engine::general_purpose::STANDARD.decode(list).expect("base64");
    let list = String::from_utf8(list).expect("text");
    for user in settings.monitor_user.iter().chain(&settings.admin_users) {
        assert!(list.contains(&format!("\"{user}\"")), "{directory}: {user} is not in {file}");
    }
    let socket = settings.unix_socket_dir.as_ref().expect("a directory").display().to_string();
    let is_writable = |one: &Value| one["mountPath"] == socket.as_str() && one["readOnly"].is_null();
    assert!(pooler["volumeMounts"].as_array().is_some_and(|all| all.iter().any(is_writable)), "{socket}");

    let ports: Vec<(&str, i64)> = pooler["ports"].as_array().into_iter().flatten().map(port).collect();
    let mut expected = Vec::new();
    if !settings.listen_addr.is_empty() {
        expected.push(("postgres", i64::from(settings.listen_port)));
        expected.push(("postgres-ro", i64::from(settings.listen_port_ro)));
    }
    let metrics = settings.metrics_listen_addr.expect("metrics are on");
    expected.push(("metrics", i64::from(metrics.port())));
    assert_eq!(ports, expected, "{directory}: the container's ports and {file}");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let port = pooler[probe].pointer("/httpGet/port");
        assert!(port.is_none_or(|port| port == "metrics"), "{directory}: {probe}");
    }

    let drain = settings.shutdown_listen_delay + settings.shutdown_drain_timeout;
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    assert!(grace > drain.as_secs(), "{directory}: a pod has {grace} s to end, and uses {drain:?}");
    let labels = workload.pointer("/spec/template/metadata/labels").expect("labels");
    is_selected(directory, objects, labels, &ports);
    if let Some(peers) = &settings.peers_service {
        let service = named(objects, "Service", peers);
        let has_port = service["spec"]["ports"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["targetPort"] == "postgres"));
        assert!(has_port, "{directory}: {peers} leads elsewhere");
    }
    for peers in &settings.peers_dns {
        let service = named(objects, "Service", &peers.host);
        assert_eq!(service["spec"]["clusterIP"], "None", "{directory}: each replica must be asked");
        assert_eq!(service["spec"]["ports"][0]["port"], json!(settings.listen_port));
    }
}

/// Whoever selects by labels finds these, and the ports that it names.
fn is_selected(directory: &str, objects: &[Value], labels: &Value, ports: &[(&str, i64)]) {
    let own = objects.iter().filter(|one| !is_custom(one) || one["kind"] == "PodMonitor");
    for object in own {
        let selectors = ["/spec/selector/matchLabels", "/spec/podSelector/matchLabels"];
        let selector = match object["kind"].as_str() {
            Some("Service") => object.pointer("/spec/selector"),
            _ => selectors.iter().find_map(|pointer| object.pointer(pointer)),
        };
        let Some(selector) = selector else { continue };
        assert_eq!(lost(selector, labels), [""; 0], "{directory}: {} selects nothing", object["kind"]);
        let mut places = Vec::new();
        fields(object, String::new(), &mut places);
        let is_ports = |place: &&String| match object["kind"].as_str() {
            Some("Service") => place.ends_with("/targetPort"),
            Some("NetworkPolicy") => place.contains("/ingress/") && place.ends_with("/port"),
            Some("PodMonitor") => place.ends_with("/port"),
            _ => false,
        };
        for place in places.iter().filter(is_ports) {
            let name = text(object, place);
            assert!(ports.iter().any(|(known, _)| *known == name), "{directory}: no port {name}");
        }
    }
}

/// Those of the alerts and the dashboard are in `tests/monitoring.rs`.
#[test]
fn every_metric_that_an_autoscaler_asks_for_exists() {
    let documents = kustomize::documents();
    let autoscalers = documents.iter().filter(|one| one.value["kind"] == "HorizontalPodAutoscaler");
    let metrics = autoscalers.filter_map(|one| one.value["spec"]["metrics"].as_array()).flatten();
    let names: Vec<&str> = metrics.filter_map(|one| one.pointer("/pods/metric/name")?.as_str()).collect();
    assert!(!names.is_empty(), "they are not found");
    for name in names {
        assert!(metrics::ALL.iter().any(|metric| metric.name == name), "there is no metric {name}");
    }
}

fn ini(map: &Value, environment: &dyn Fn(&str) -> Option<String>) -> Config {
    let text = text(map, "/data/pgweir.ini");
    let config = Config::from_text(Path::new("pgweir.ini"), text, environment);
    let config = config.unwrap_or_else(|error| panic!("{}: {error}", map["metadata"]["name"]));
    // The Secret is not mounted here.
    let is_about_users = |warning: &String| warning.starts_with("/etc/pgweir/users/");
    let warnings = config.warnings.iter().map(ToString::to_string).filter(|one| !is_about_users(one));
    assert_eq!(warnings.collect::<Vec<_>>(), [""; 0]);
    config
}

fn variable(container: &Value, name: &str) -> Option<String> {
    let variables = container["env"].as_array().into_iter().flatten();
    let found = variables.clone().find(|one| one["name"] == name)?;
    found["value"].as_str().map(str::to_owned)
}

fn port(port: &Value) -> (&str, i64) {
    (text(port, "/name"), port["containerPort"].as_i64().expect("a number"))
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

// ---- the documents ----

const DOCUMENTS: [&str; 4] = ["README.md", "docs/kubernetes.md", "docs/health.md", "docs/runbook.md"];

#[test]
fn every_ini_of_the_documents_loads() {
    let mut clusters = 0;
    for file in DOCUMENTS {
        let text = read(file);
        let blocks = text.split("```ini\n").skip(1).filter_map(|rest| rest.split("```").next());
        // A line of [clusters] within a sentence or a table.
        let lines = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|code| code.contains(" = source=") && !code.contains('\n'));
        let lines = lines.map(|line| format!("[clusters]\n{line}\n"));
        for mut text in blocks.map(str::to_owned).chain(lines) {
            if !text.contains("[pgbouncer]") {
                text.push_str("[pgbouncer]\n");
            }
            let config = Config::from_text(Path::new("x.ini"), &text, &|_| None);
            clusters += config.unwrap_or_else(|error| panic!("{file}: {error} in\n{text}")).clusters.len();
        }
    }
    assert!(clusters > 8, "only {clusters} are found");
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    for file in DOCUMENTS {
        let text = read(file);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let found = Path::new(file).parent().expect("a directory").join(path);
            let found = if path.is_empty() { Path::new(file).to_path_buf() } else { found };
            assert!(root().join(&found).exists(), "{file}: there is no {}", found.display());
            let is_there = heading.is_empty() || headings(&found).contains(heading);
            assert!(is_there, "{file}: {} has no heading {heading}", found.display());
        }
    }
}

/// As a link names them.
fn headings(file: &Path) -> BTreeSet<String> {
    let text = read(&file.display().to_string());
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |text: &str| -> String {
        let text = text.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ---- the rights ----

#[tokio::test]
async fn with_cloudnativepg_the_role_is_enough_and_no_verb_too_many() {
    the_role_is_just_right("overlays/standalone", cnpg_world()).await;
}

#[tokio::test]
async fn in_cloudnativepgs_pooler_the_role_is_enough_and_no_verb_too_many() {
    the_role_is_just_right("overlays/cnpg-pooler", cnpg_world()).await;
}

#[tokio::test]
async fn with_zalandos_operator_the_role_is_enough_and_no_verb_too_many() {
    let labels = json!({ "application": "spilo", "cluster-name": "acid-pg" });
    the_role_is_just_right("overlays/zalando", patroni_world("ConfigMap", "acid-pg", labels)).await;
}

#[tokio::test]
async fn with_crunchys_operator_the_role_is_enough_and_no_verb_too_many() {
    let prefix = "postgres-operator.crunchydata.com";
    let labels = json!({ format!("{prefix}/patroni"): "pg-ha", format!("{prefix}/data"): "postgres" });
    the_role_is_just_right("overlays/crunchy", patroni_world("Endpoints", "pg-ha", labels)).await;
}

/// A cluster in which each object that pgweir reads has something to say that no other one says.
struct World {
    cluster: Cluster,
    pod_labels: Value,
    /// Besides the pods.
    objects: Vec<Value>,
    /// The move that all together tell of.
    moving: Named,
}

fn cnpg_world() -> World {
    let cluster = json!({
        "apiVersion": "postgresql.cnpg.io/v1",
        "kind": "Cluster",
        "metadata": { "name": "pg" },
        "spec": { "instances": 2 },
        "status": {
            "currentPrimary": "pg-1",
            "currentPrimaryTimestamp": "2026-01-01T12:00:00.000000Z",
            "targetPrimary": "pg-1",
            "phase": "Cluster in healthy state",
            "systemID": "7423867867637645328",
            "timelineID": 1,
        },
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": "pg" },
        "spec": { "holderIdentity": "pg-2", "renewTime": "2026-01-01T13:00:00.000000Z" },
    });
    World {
        cluster: cluster_of(SourceKind::Cnpg, "pg"),
        pod_labels: json!({ "cnpg.io/cluster": "pg", "cnpg.io/podRole": "instance" }),
        objects: vec![cluster, lease, slice("pg-r")],
        moving: moving("the lease of the primary is held by pg-2"),
    }
}

fn patroni_world(kind: &str, scope: &str, pod_labels: Value) -> World {
    let record = |name: String, annotations: Value| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "annotations": annotations } });
    let leader = if kind == "ConfigMap" { format!("{scope}-leader") } else { scope.to_owned() };
    let renewed = json!({ "leader": "pg-1", "renewTime": "2026-01-01T12:00:00.000000+00:00", "ttl": "30" });
    let history = "[[1, 83886296, \"no recovery target specified\"]]";
    let config = json!({ "initialize": "7423867867637645328", "config": "{}", "history": history });
    let requested = json!({ "leader": "pg-1", "member": "pg-2" });
    World {
        cluster: cluster_of(SourceKind::Patroni, scope),
        pod_labels,
        objects: vec![
            record(leader, renewed),
            record(format!("{scope}-config"), config),
            record(format!("{scope}-failover"), requested),
            slice(scope),
        ],
        moving: moving("a switchover was requested"),
    }
}

fn cluster_of(source: SourceKind, object: &str) -> Cluster {
    let mut cluster = Cluster::new("pg".to_owned());
    cluster.source = Some(source);
    cluster.object = Some(object.to_owned());
    cluster
}

fn moving(reason: &str) -> Named {
    Named::Moving { from: Some("pg-1".into()), to: Some("pg-2".into()), reason: reason.into() }
}

fn slice(service: &str) -> Value {
    let endpoint = |pod: &str, address: &str| json!({ "addresses": [address], "zone": "eu-1", "targetRef": { "kind": "Pod", "name": pod } });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "postgres", "port": 5432 }],
        "endpoints": [endpoint("pg-1", "10.0.0.1"), endpoint("pg-2", "10.0.0.2")],
    })
}

impl World {
    async fn create(&self, space: &Space) {
        for (pod, address) in [("pg-1", "10.0.0.1"), ("pg-2", "10.0.0.2")] {
            space.pod(pod, address, self.pod_labels.clone()).await;
        }
        for object in &self.objects {
            space.create(object.clone()).await;
        }
    }

    /// Whether nothing is missing of what the objects say.
    fn is_all(&self, event: &SourceEvent) -> bool {
        let SourceEvent::Observed(found) = event else { return false };
        let is_known = |member: &Member| member.ready && member.zone.as_deref() == Some("eu-1");
        found.primary == self.moving
            && found.members.len() == 2
            && found.members.iter().all(is_known)
            && found.incarnation.is_some()
            && found.system_id == Some(7_423_867_867_637_645_328)
            && found.timeline.is_some()
    }
}

/// With the role as it is, everything is heard and stays so; without any verb or name of any of its rules
/// something is missing, or refused.
async fn the_role_is_just_right(directory: &str, world: World) {
    let kube = Kube::shared().await;
    let objects = kustomize::build(directory);
    let only = |kind: &str| {
        let mut found = objects.iter().filter(|one| one["kind"] == kind);
        let object = found.next().unwrap_or_else(|| panic!("no {kind} in {directory}")).clone();
        assert!(found.next().is_none(), "{directory} has several of kind {kind}");
        object
    };
    let (role, binding) = (only("Role"), only("RoleBinding"));
    let bound = Bound { kube: &kube, binding, world };

    let (space, mut events) = bound.follow(&role).await;
    let first = next(&mut events).await;
    assert!(bound.world.is_all(&first), "{directory}: the role is not enough: {first:?}");
    let kubernetes = bound.source(&space).await;
    let zone = kubernetes.own_zone("10.0.0.2".parse().expect("an address")).await;
    assert_eq!(zone.as_deref(), Some("eu-1"), "{directory}: our own zone");
    let (speaker, mut peers) = mpsc::channel(1);
    let service = world_service(&bound.world).to_owned();
    tokio::spawn(async move { kubernetes.follow_service(&service, 5432, speaker).await });
    let heard = timeout(MISSED_WITHIN, peers.recv()).await.expect("something is heard");
    let is_both = matches!(&heard, Some(ServiceEvent::Backends(found)) if found.len() == 2);
    assert!(is_both, "{directory}: the pods behind a Service: {heard:?}");
    // The watches stand: a change is the next thing that is heard.
    let unready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    space.status("v1/Pod", "pg-2", unready).await;
    let SourceEvent::Observed(second) = next(&mut events).await else { panic!("{directory}: no news") };
    assert!(!second.members[1].ready && second.primary == bound.world.moving, "{directory}: {second:?}");

    for (what, lesser) in lesser_roles(&role) {
        let (_space, mut events) = bound.follow(&lesser).await;
        loop {
            let heard = timeout(MISSED_WITHIN, events.recv()).await;
            let event = heard.unwrap_or_else(|_| panic!("{directory}: {what} is not needed"));
            if !bound.world.is_all(&event.expect("it goes on")) {
                break;
            }
        }
    }
}

/// The Service whose slice is among the objects.
fn world_service(world: &World) -> &str {
    let slice = world.objects.iter().find(|one| one["kind"] == "EndpointSlice").expect("a slice");
    text(slice, "/metadata/labels/kubernetes.io~1service-name")
}

/// A refusal is heard within milliseconds.
const MISSED_WITHIN: Duration = Duration::from_secs(20);

/// A role, bound as the manifests bind it.
struct Bound<'a> {
    kube: &'a Kube,
    binding: Value,
    world: World,
}

impl Bound<'_> {
    /// Follows a world of its own with this role, as soon as the API server knows of the role.
    async fn follow(&self, role: &Value) -> (Space, mpsc::Receiver<SourceEvent>) {
        let space = self.kube.space().await;
        self.world.create(&space).await;
        for object in [role, &self.binding] {
            space.create(kustomize::in_namespace(object.clone(), &space.name)).await;
        }
        self.wait_for(role, &space).await;
        let kubernetes = self.source(&space).await;
        let (speaker, events) = mpsc::channel(1);
        let cluster = self.world.cluster.clone();
        tokio::spawn(async move { kubernetes.follow(cluster, speaker).await });
        (space, events)
    }

    async fn source(&self, space: &Space) -> Kubernetes {
        Kubernetes::from_config(self.config(space).await).expect("a usable kubeconfig")
    }

    /// As the service account that the binding is for.
    async fn config(&self, space: &Space) -> kube::Config {
        let subject = &self.binding["subjects"][0];
        assert_eq!(subject["kind"], "ServiceAccount");
        let user = format!("system:serviceaccount:{}:{}", space.name, text(subject, "/name"));
        let mut config = self.kube.config("admin", &space.name).await;
        config.auth_info.impersonate = Some(user);
        config
    }

    async fn wait_for(&self, role: &Value, space: &Space) {
        let client = kube::Client::try_from(self.config(space).await).expect("a usable kubeconfig");
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
        for rule in list(role, "rules") {
            for verb in list(rule, "verbs") {
                let name = rule["resourceNames"].get(0);
                let asked = json!({ "spec": { "resourceAttributes": {
                    "namespace": space.name,
                    "group": rule["apiGroups"][0],
                    "resource": rule["resources"][0],
                    "name": name,
                    "verb": verb,
                } } });
                let asked: SelfSubjectAccessReview = serde_json::from_value(asked).expect("a review");
                eventually("the role is in force", async || {
                    let answer = reviews.create(&PostParams::default(), &asked).await;
                    answer.is_ok_and(|answer| answer.status.is_some_and(|status| status.allowed))
                })
                .await;
            }
        }
    }
}

/// The role without one verb or one name of one of its rules, for each of them.
fn lesser_roles(role: &Value) -> Vec<(String, Value)> {
    let mut lesser = Vec::new();
    for (index, rule) in list(role, "rules").iter().enumerate() {
        for field in ["verbs", "resourceNames"] {
            for at in 0..list(rule, field).len() {
                let mut without = role.clone();
                let entries = without["rules"][index][field].as_array_mut().expect("a list");
                let removed = entries.remove(at);
                if entries.is_empty() {
                    // No names would be all names.
                    without["rules"].as_array_mut().expect("a list").remove(index);
                }
                lesser.push((format!("{removed} of {}", rule["resources"]), without));
            }
        }
    }
    assert!(lesser.len() > 4, "{role}");
    lesser
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

async fn next(events: &mut mpsc::Receiver<SourceEvent>) -> SourceEvent {
    let event = timeout(MISSED_WITHIN, events.recv()).await.expect("something is heard");
    event.expect("it goes on")
}
