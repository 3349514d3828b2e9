//! [`Kube`]: a real, private Kubernetes API server, and the objects that a test puts there.
//!
//! etcd and kube-apiserver on free ports of 127.0.0.1, made by `scripts/setup kube`; no kubelet, scheduler or
//! controllers, so nothing changes but what the test changes. A test works in a namespace of its own
//! ([`Space`]). Whoever has the user's name as the token is that user; `admin` may do everything.
//!
//! A server takes longer to start than most tests have to do with it, and cargo-nextest runs each test in a process
//! of its own. So `scripts/share-kube` names a folder in `PGWEIR_TEST_KUBE`, and the first test that asks for a
//! server leaves it running there for all others.

use super::process::{self, free_port, private_directory, reap};
use super::{eventually, eventually_within};
use base64::prelude::{BASE64_STANDARD, Engine};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::sleep;

/// An API server takes some seconds to start, and more on a machine that does other things.
pub const START_PATIENCE: Duration = Duration::from_secs(60);

/// The users besides `admin`, who may do nothing until a test grants it.
const USERS: [&str; 2] = ["follower", "stranger"];

/// The server that tests running at the same time share.
static SHARED: Mutex<Weak<Kube>> = Mutex::const_new(Weak::new());

/// How many namespaces this process has made.
static SPACES: AtomicU32 = AtomicU32::new(0);

/// A running API server. It is stopped and removed when dropped, unless it is that of a whole run.
pub struct Kube {
    port: u16,
    etcd_port: u16,
    directory: PathBuf,
    /// `None` if it is that of a whole run, as below.
    folder: Option<tempfile::TempDir>,
    etcd: Option<Child>,
    /// `None` while a test has it stopped, too.
    api_server: Option<Child>,
}

impl Kube {
    /// The server of this test program, or of the whole run.
    pub async fn shared() -> Arc<Kube> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let kube = match std::env::var_os("PGWEIR_TEST_KUBE") {
            Some(directory) => Kube::of_the_run(Path::new(&directory)).await,
            None => Kube::start().await,
        };
        let kube = Arc::new(kube);
        *shared = Arc::downgrade(&kube);
        kube
    }

    /// A server of one's own, to stop and start.
    pub async fn start() -> Kube {
        let folder = private_directory("weir-kube-");
        let mut kube = Kube::at(folder.path());
        kube.folder = Some(folder);
        kube.begin().await;
        kube
    }

    /// The server in this folder, which the first who asks starts, and nobody here ends.
    async fn of_the_run(directory: &Path) -> Kube {
        let lock = File::create(directory.join("lock")).expect("the run's folder is writable");
        lock.lock().expect("a local file can be locked");
        let mut kube = Kube::at(directory);
        match fs::read_to_string(directory.join("port")) {
            Ok(port) => kube.port = port.parse().expect("we have written it"),
            Err(_) => {
                kube.begin().await;
                fs::write(directory.join("port"), kube.port.to_string())
                    .expect("the run's folder is writable");
                (kube.etcd, kube.api_server) = (None, None);
            }
        }
        kube
    }

    fn at(directory: &Path) -> Kube {
        Kube {
            port: 0,
            etcd_port: 0,
            directory: directory.to_path_buf(),
            folder: None,
            etcd: None,
            api_server: None,
        }
    }

    async fn begin(&mut self) {
        prepare(&self.directory);
        self.start_etcd().await;
        for _ in 0..5 {
            self.port = free_port();
            if self.start_api().await {
                return self.define_kinds().await;
            }
        }
        panic!("kube-apiserver does not start:\n{}", self.log());
    }

    /// Starts the API server at its port; whether it answers.
    pub async fn start_api(&mut self) -> bool {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut command = self.command("kube-apiserver");
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", path("certificates")),
            format!("--token-auth-file={}", path("tokens")),
            format!("--service-account-signing-key-file={}", path("accounts.key")),
            format!("--service-account-key-file={}", path("accounts.key")),
        ]);
        command.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--disable-admission-plugins=ServiceAccount",
            // Its group is given to the stand-in for v1, which this server has not got.
            "--runtime-config=discovery.k8s.io/v1beta1=false",
        ]);
        let log = File::options().create(true).append(true).open(path("log")).expect("our own directory");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = process::spawn(command);
        let mut answered = false;
        eventually_within(START_PATIENCE, "kube-apiserver answers or ends", async || {
            answered = self.answers().await;
            if !answered {
                // Each question costs a login, on the processor that the server needs to start.
                sleep(Duration::from_millis(50)).await;
            }
            answered || matches!(child.try_wait(), Ok(Some(_)))
        })
        .await;
        self.api_server = Some(child);
        answered
    }

    /// Stops the API server. What it knows stays in etcd.
    pub fn stop_api(&mut self) {
        if let Some(mut child) = self.api_server.take() {
            // It would wait for its watches with TERM.
            process::signal(child.id(), "KILL");
            reap(&mut child, Duration::from_secs(10));
        }
    }

    /// A kubeconfig of this user. It stays good when the server is stopped and started.
    pub fn kubeconfig(&self, user: &str, namespace: &str) -> Kubeconfig {
        let certificate = fs::read(self.directory.join("certificates/apiserver.crt"));
        let certificate = certificate.expect("the server writes its certificate before it answers");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority-data": BASE64_STANDARD.encode(certificate),
            }}],
            "users": [{ "name": user, "user": { "token": user } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": user, "namespace": namespace } }],
            "current-context": "c",
        });
        serde_json::from_value(config).expect("a kubeconfig")
    }

    /// The same as a file that everybody may read, for `KUBECONFIG`.
    pub fn kubeconfig_file(&self, user: &str, namespace: &str) -> PathBuf {
        let path = self.directory.join(format!("{user}-{namespace}.kubeconfig"));
        let text = serde_json::to_string(&self.kubeconfig(user, namespace)).expect("plain data");
        fs::write(&path, text).expect("our own directory is writable");
        path
    }

    /// The client's settings for this user.
    pub async fn config(&self, user: &str, namespace: &str) -> kube::Config {
        let options = KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(self.kubeconfig(user, namespace), &options)
            .await
            .expect("the server has written its certificate")
    }

    /// A client that may do everything.
    pub async fn admin(&self) -> kube::Client {
        kube::Client::try_from(self.config("admin", "default").await).expect("a usable kubeconfig")
    }

    /// A fresh namespace.
    pub async fn space(&self) -> Space {
        let number = SPACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("space-{}-{number}", std::process::id());
        self.namespace(&name).await;
        Space { client: self.admin().await, name }
    }

    /// Makes a namespace of this name.
    pub async fn namespace(&self, name: &str) {
        let namespace = json!({ "metadata": { "name": name } });
        let namespaces: Api<Namespace> = Api::all(self.admin().await);
        let object = serde_json::from_value(namespace).expect("a Namespace");
        namespaces.create(&PostParams::default(), &object).await.expect("admin may create it");
    }

    async fn answers(&self) -> bool {
        let has_certificate = self.directory.join("certificates/apiserver.crt").exists();
        if !has_certificate || TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            return false;
        }
        let namespaces: Api<Namespace> = Api::all(self.admin().await);
        // The server makes this one last of all that it makes for itself.
        namespaces.get_opt("default").await.is_ok_and(|found| found.is_some())
    }

    /// CloudNativePG's Cluster, and EndpointSlice v1 for a server that has only v1beta1.
    async fn define_kinds(&self) {
        let client = self.admin().await;
        let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for text in [include_str!("kube/clusters.json"), include_str!("kube/endpointslices.json")] {
            let kind = serde_json::from_str(text).expect("a CustomResourceDefinition");
            kinds.create(&PostParams::default(), &kind).await.expect("admin may create it");
        }
        let slices: Api<EndpointSlice> = Api::all(client.clone());
        let clusters: Api<DynamicObject> =
            Api::all_with(client, &resource("postgresql.cnpg.io/v1", "Cluster"));
        eventually("the new kinds are served", async || {
            let few = ListParams::default().limit(1);
            slices.list(&few).await.is_ok() && clusters.list(&few).await.is_ok()
        })
        .await;
    }

    async fn start_etcd(&mut self) {
        for _ in 0..5 {
            let port = free_port();
            let peers = format!("http://127.0.0.1:{}", free_port());
            let clients = format!("http://127.0.0.1:{port}");
            let data = self.directory.join("etcd");
            let mut command = self.command("etcd");
            command.arg("--data-dir").arg(&data).arg("--unsafe-no-fsync");
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &format!("default={peers}")]);
            let log = File::create(self.directory.join("etcd.log")).expect("our own directory is writable");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut child = process::spawn(command);
            let mut answered = false;
            eventually_within(START_PATIENCE, "etcd answers or ends", async || {
                answered = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
                answered || matches!(child.try_wait(), Ok(Some(_)))
            })
            .await;
            if answered {
                (self.etcd_port, self.etcd) = (port, Some(child));
                return;
            }
            // Another process took one of the ports: with other ports it is another member.
            let _ = fs::remove_dir_all(&data);
        }
        let log = fs::read_to_string(self.directory.join("etcd.log"));
        panic!("etcd does not start:\n{}", log.unwrap_or_default());
    }

    /// A program that dies with this process, or with the run: then its id is noted before it begins.
    fn command(&self, program: &str) -> Command {
        let program = binaries().join(program);
        let mut command;
        if self.folder.is_some() {
            command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]);
        } else {
            command = Command::new("sh");
            // In a session of its own: cargo-nextest ends what belongs to a test that hangs.
            command.args(["-c", "echo $$ >>\"$0\"; exec setsid \"$@\""]).arg(self.directory.join("pids"));
        }
        command.arg(program).current_dir("/");
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Kube {
    fn drop(&mut self) {
        self.stop_api();
        if let Some(mut child) = self.etcd.take() {
            process::signal(child.id(), "KILL");
            reap(&mut child, Duration::from_secs(10));
        }
    }
}

/// A namespace of a test. Objects are given as they stand in a manifest; those of no namespace need names that no
/// other test has.
#[derive(Clone)]
pub struct Space {
    pub client: kube::Client,
    pub name: String,
}

impl Space {
    /// Creates an object, and its status where the manifest has one.
    pub async fn create(&self, manifest: Value) {
        let api = self.api(&manifest);
        let name = manifest["metadata"]["name"].as_str().expect("objects have names").to_owned();
        let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("an object");
        api.create(&PostParams::default(), &object)
            .await
            .unwrap_or_else(|error| panic!("cannot create {manifest}: {error}"));
        if let Some(status) = manifest.get("status") {
            self.status(&kind(&manifest), &name, status.clone()).await;
        }
    }

    /// Merges this into an object: null takes away. `kind` is `v1/Pod`.
    pub async fn change(&self, kind: &str, name: &str, change: Value) {
        let patched = self.api_of(kind).patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.unwrap_or_else(|error| panic!("cannot change {kind} {name}: {error}"));
    }

    /// Merges this into an object's status.
    pub async fn status(&self, kind: &str, name: &str, status: Value) {
        let change = Patch::Merge(json!({ "status": status }));
        let patched = self.api_of(kind).patch_status(name, &PatchParams::default(), &change).await;
        patched.unwrap_or_else(|error| panic!("cannot change the status of {kind} {name}: {error}"));
    }

    /// Deletes an object; with 0 seconds nobody is waited for.
    pub async fn delete(&self, kind: &str, name: &str, grace_s: u32) {
        let how = DeleteParams { grace_period_seconds: Some(grace_s), ..DeleteParams::default() };
        let deleted = self.api_of(kind).delete(name, &how).await;
        deleted.unwrap_or_else(|error| panic!("cannot delete {kind} {name}: {error}"));
    }

    /// A ready pod on a node. Without a kubelet, it stays terminating when it is deleted.
    pub async fn pod(&self, name: &str, address: &str, labels: Value) {
        self.pod_that_is(true, name, address, labels).await;
    }

    /// The same, ready or not yet.
    pub async fn pod_that_is(&self, ready: bool, name: &str, address: &str, labels: Value) {
        self.pod_with(&[("pg-wal", name)], ready, name, address, labels).await;
    }

    /// The same, with these volumes and their claims.
    pub async fn pod_with(
        &self,
        claims: &[(&str, &str)],
        ready: bool,
        name: &str,
        address: &str,
        labels: Value,
    ) {
        let volume = |(name, claim): &(&str, &str)| json!({ "name": name, "persistentVolumeClaim": { "claimName": claim } });
        let ready = if ready { "True" } else { "False" };
        self.create(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "nodeName": "node",
                "containers": [{ "name": "postgres", "image": "postgres" }],
                "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
            },
            "status": {
                "phase": "Running",
                "podIP": address,
                "conditions": [{ "type": "Ready", "status": ready }],
            },
        }))
        .await;
    }

    /// The claim of a pod's volume, which is there.
    pub async fn claim(&self, name: &str, size: &str) {
        self.create(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": name },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": size } } },
            "status": { "phase": "Bound", "capacity": { "storage": size } },
        }))
        .await;
    }

    /// The uid of a pod.
    pub async fn uid(&self, pod: &str) -> String {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.name);
        let found = pods.get(pod).await.expect("the pod exists");
        found.metadata.uid.expect("the server gives every object a uid")
    }

    /// Lets a user do what these rules of a Role say.
    pub async fn grant(&self, user: &str, rules: Value) {
        self.grant_as(user, user, rules).await;
    }

    /// The same, beside what the user may do already: by a Role of this name.
    pub async fn grant_as(&self, role: &str, user: &str, rules: Value) {
        let version = "rbac.authorization.k8s.io/v1";
        let metadata = json!({ "name": role });
        self.create(json!({ "apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules }))
            .await;
        self.create(json!({
            "apiVersion": version,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
        }))
        .await;
    }

    fn api(&self, manifest: &Value) -> Api<DynamicObject> {
        self.api_of(&kind(manifest))
    }

    fn api_of(&self, kind: &str) -> Api<DynamicObject> {
        let (version, kind) = kind.rsplit_once('/').expect("apiVersion/Kind");
        let resource = resource(version, kind);
        match kind {
            "Node" | "StorageClass" | "ClusterRole" | "ClusterRoleBinding" => {
                Api::all_with(self.client.clone(), &resource)
            }
            _ => Api::namespaced_with(self.client.clone(), &self.name, &resource),
        }
    }
}

fn kind(manifest: &Value) -> String {
    let text = |field: &str| manifest[field].as_str().expect("manifests say apiVersion and kind");
    format!("{}/{}", text("apiVersion"), text("kind"))
}

/// What the API calls this kind.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind_of = GroupVersionKind::gvk(group, version, kind);
    match kind {
        "Endpoints" => ApiResource::from_gvk_with_plural(&kind_of, "endpoints"),
        _ => ApiResource::from_gvk(&kind_of),
    }
}

fn binaries() -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/kube");
    assert!(found.join("kube-apiserver").exists(), "no kube-apiserver here: run scripts/setup kube");
    found
}

/// The tokens, and the key that service accounts' tokens are signed with. The server makes its own
/// certificate.
fn prepare(directory: &Path) {
    let mut tokens = "admin,admin,admin,\"system:masters\"\n".to_owned();
    for user in USERS {
        tokens.push_str(&format!("{user},{user},{user}\n"));
    }
    fs::write(directory.join("tokens"), tokens).expect("our own directory is writable");
    let mut key = Command::new("openssl");
    key.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]);
    key.arg(directory.join("accounts.key"));
    process::run(key);
}
