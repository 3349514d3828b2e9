//! The manifests of `config/kubernetes`: [`documents`] as they stand, and [`build`] as `kubectl apply -k`
//! puts them together.
//!
//! It knows as much of kustomize as our files use, and panics at anything else.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One object as a file has it.
#[derive(Clone, Debug)]
pub struct Document {
    /// Relative to `config/kubernetes`.
    pub file: String,
    pub value: Value,
}

/// A `kustomization.yaml`. A field that is not here is not known to kustomize, or not to us.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    namespace: Option<String>,
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    labels: Vec<Labels>,
    #[serde(default)]
    secret_generator: Vec<Generator>,
    generator_options: Option<GeneratorOptions>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    pairs: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    files: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GeneratorOptions {
    disable_name_suffix_hash: bool,
}

/// Lists in objects of these kinds are replaced by a patch as a whole. Kustomize merges some lists of
/// others by their elements' names, which is not done here.
const PATCHED: [&str; 3] = ["ConfigMap", "NetworkPolicy", "Role"];

const CLUSTER_WIDE: [&str; 3] = ["StorageClass", "ClusterRole", "ClusterRoleBinding"];

/// Every object in a file of `config/kubernetes`, and the alerts.
pub fn documents() -> Vec<Document> {
    let mut files = vec![root().join("../monitoring/prometheusrule.yaml")];
    walk(&root(), &mut files);
    files.retain(|file| !file.ends_with("kustomization.yaml"));
    files.iter().flat_map(|file| read(file).into_iter().map(|value| document(file, value))).collect()
}

/// The directories that can be applied, those that only others use not counted.
pub fn kustomizations() -> Vec<String> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.retain(|file| file.ends_with("kustomization.yaml"));
    let directories = files.iter().map(|file| relative(file.parent().expect("a file is in a directory")));
    directories.filter(|directory| !directory.starts_with("base")).collect()
}

/// The objects of a directory, as kustomize makes them.
pub fn build(directory: &str) -> Vec<Value> {
    build_at(&root().join(directory))
}

/// The same object in this namespace, with the subjects of a binding.
pub fn in_namespace(mut object: Value, namespace: &str) -> Value {
    if CLUSTER_WIDE.contains(&text(&object, "/kind")) {
        return object;
    }
    object["metadata"]["namespace"] = json!(namespace);
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        subject["namespace"] = json!(namespace);
    }
    object
}

/// The text at a JSON pointer.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} of {object}"))
}

fn build_at(directory: &Path) -> Vec<Value> {
    let file = directory.join("kustomization.yaml");
    let yaml = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let rules: Kustomization =
        serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(
        (rules.api_version.as_str(), rules.kind.as_str()),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
        "{}",
        file.display()
    );
    let mut objects: Vec<Value> = rules.resources.iter().flat_map(|name| resource(directory, name)).collect();
    for generator in &rules.secret_generator {
        let options = rules.generator_options.as_ref();
        assert!(options.is_some_and(|options| options.disable_name_suffix_hash), "its name would get a hash");
        objects.push(secret(directory, generator));
    }
    for patch in rules.patches.iter().flat_map(|patch| read(&inside(directory, &patch.path))) {
        apply(&patch, &mut objects);
    }
    for (key, value) in rules.labels.iter().flat_map(|labels| &labels.pairs) {
        for object in &mut objects {
            object["metadata"]["labels"][key] = value.clone();
        }
    }
    if let Some(namespace) = &rules.namespace {
        let is_account = |object: &Value| object["kind"] == "ServiceAccount";
        let accounts: Vec<Value> =
            objects.iter().filter(|one| is_account(one)).map(|one| one["metadata"]["name"].clone()).collect();
        for object in &mut objects {
            enter(object, namespace, &accounts);
        }
    }
    objects
}

fn resource(directory: &Path, name: &str) -> Vec<Value> {
    match directory.join(name).is_dir() {
        true => build_at(&directory.join(name)),
        false => read(&inside(directory, name)),
    }
}

/// Kustomize takes no file from outside its directory, only other directories.
fn inside(directory: &Path, name: &str) -> PathBuf {
    assert!(!name.contains(".."), "{}: {name} is outside of it", directory.display());
    directory.join(name)
}

fn secret(directory: &Path, generator: &Generator) -> Value {
    let encode = |name: &String| {
        let bytes = fs::read(inside(directory, name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name.clone(), json!(base64::engine::general_purpose::STANDARD.encode(bytes)))
    };
    let data: Map<String, Value> = generator.files.iter().map(encode).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": generator.name },
        "type": "Opaque",
        "data": data,
    })
}

fn apply(patch: &Value, objects: &mut [Value]) {
    assert!(PATCHED.contains(&text(patch, "/kind")), "patches of {} are not known here", patch["kind"]);
    let key = |object: &Value| (object["kind"].clone(), object["metadata"]["name"].clone());
    let target = objects.iter_mut().find(|object| key(object) == key(patch));
    merge(target.unwrap_or_else(|| panic!("nothing to patch with {patch}")), patch);
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// A binding's subject gets the namespace too if its service account is among the objects.
fn enter(object: &mut Value, namespace: &str, accounts: &[Value]) {
    if CLUSTER_WIDE.contains(&text(object, "/kind")) {
        return;
    }
    object["metadata"]["namespace"] = json!(namespace);
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if accounts.contains(&subject["name"]) {
            subject["namespace"] = json!(namespace);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("it is below").display().to_string()
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> Vec<Value> {
    let yaml = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_multiple(&yaml).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn document(file: &Path, value: Value) -> Document {
    Document { file: relative(file), value }
}
