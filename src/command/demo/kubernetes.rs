//! The demo's Kubernetes: an API server of its own, and in it what CloudNativePG would write of the demo's
//! cluster. There are no kubelets and no operator; the scenes do their part. Read [`Operator`] first.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::DemoError;
use crate::command::postgres::{Cluster, PostgresError, free_port};
use crate::command::process::{Running, Sandbox};
use crate::topology::cnpg::PENDING;
use crate::topology::kube::objects::Objects;

/// Where `scripts/setup kube` leaves the two programs, from the project's folder.
const PROJECT_FOLDER: &str = ".cache/kube";

/// The name of the Cluster object, and of the cluster in pgweir's settings.
const NAME: &str = "demo";
const CLUSTER: &str = "postgresql.cnpg.io/v1/Cluster";
const POD: &str = "v1/Pod";

/// kube-apiserver needs three seconds, and more on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The programs of an API server.
pub(super) struct Programs {
    etcd: PathBuf,
    api_server: PathBuf,
}

impl Programs {
    /// PATH, else what the project has made for its tests.
    pub(super) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::among(std::env::split_paths(&path).chain([PathBuf::from(PROJECT_FOLDER)]))
    }

    fn among(mut folders: impl Iterator<Item = PathBuf>) -> Option<Self> {
        folders.find_map(|folder| {
            let (etcd, api_server) = (folder.join("etcd"), folder.join("kube-apiserver"));
            (etcd.is_file() && api_server.is_file()).then_some(Programs { etcd, api_server })
        })
    }

    /// Where they are.
    pub(super) fn folder(&self) -> &Path {
        self.api_server.parent().unwrap_or(Path::new("/"))
    }
}

/// What an operator writes of the demo's cluster, if there is an API server to write to; else it does nothing.
pub(super) struct Operator {
    api: Option<Api>,
}

/// A running API server.
struct Api {
    kubeconfig: PathBuf,
    objects: Objects,
    // In this order: what the one asks for is the other's.
    _api_server: Running,
    _etcd: Running,
}

impl Operator {
    /// With an API server of its own, if there are programs for one.
    pub(super) async fn start(sandbox: &Sandbox, programs: Option<&Programs>) -> Result<Self, DemoError> {
        let api = match programs {
            Some(programs) => Some(Api::start(sandbox, programs).await?),
            None => None,
        };
        Ok(Operator { api })
    }

    /// How pgweir reaches the API server.
    pub(super) fn kubeconfig(&self) -> Option<&Path> {
        self.api.as_ref().map(|api| &*api.kubeconfig)
    }

    /// The objects of a healthy cluster.
    pub(super) async fn describe(&self, cluster: &Cluster<'_>) -> Result<(), DemoError> {
        let Some(api) = &self.api else { return Ok(()) };
        for node in &cluster.nodes {
            api.objects.create(pod(&node.name, &node.host.to_string())).await?;
        }
        let primary = &cluster.nodes[cluster.primary].name;
        api.objects
            .create(json!({
                "apiVersion": "postgresql.cnpg.io/v1",
                "kind": "Cluster",
                "metadata": { "name": NAME },
                "spec": { "instances": cluster.nodes.len() },
                "status": { "currentPrimary": primary, "targetPrimary": primary, "phase": "Cluster in healthy state" },
            }))
            .await?;
        Ok(())
    }

    /// Another server is to become the primary, or is looked for; and why.
    pub(super) async fn moves(&self, target: Option<&str>, phase: &str) -> Result<(), DemoError> {
        let target = target.unwrap_or(PENDING);
        self.status(json!({ "targetPrimary": target, "phase": phase })).await
    }

    /// This server is the primary now.
    pub(super) async fn names(&self, primary: &str) -> Result<(), DemoError> {
        let phase = "Cluster in healthy state";
        self.status(json!({ "currentPrimary": primary, "targetPrimary": primary, "phase": phase })).await
    }

    /// This server is fenced, or nobody is.
    pub(super) async fn fences(&self, fenced: Option<&str>) -> Result<(), DemoError> {
        let list = fenced.map(|name| json!([name]).to_string());
        let change = json!({ "metadata": { "annotations": { "cnpg.io/fencedInstances": list } } });
        let Some(api) = &self.api else { return Ok(()) };
        Ok(api.objects.merge(CLUSTER, NAME, change).await?)
    }

    /// The kubelet's word on a server.
    pub(super) async fn ready(&self, name: &str, ready: bool) -> Result<(), DemoError> {
        let Some(api) = &self.api else { return Ok(()) };
        Ok(api.objects.status(POD, name, json!({ "conditions": condition(ready) })).await?)
    }

    async fn status(&self, status: Value) -> Result<(), DemoError> {
        let Some(api) = &self.api else { return Ok(()) };
        Ok(api.objects.status(CLUSTER, NAME, status).await?)
    }
}

impl Api {
    /// An API server that answers; it knows what a Cluster is, and has none.
    async fn start(sandbox: &Sandbox, programs: &Programs) -> Result<Self, DemoError> {
        let port = || free_port().map_err(PostgresError::NoPort);
        let (etcd_port, peer_port, api_port) = (port()?, port()?, port()?);
        let mut etcd = start_etcd(sandbox, &programs.etcd, etcd_port, peer_port)?;
        let listens = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        etcd.wait_until(START_MAX, || listens(etcd_port)).await?;
        sandbox.write_file("tokens", "demo,demo,demo\n")?;
        let mut api_server = start_api_server(sandbox, &programs.api_server, etcd_port, api_port)?;
        let certificate = sandbox.path().join("certificates/apiserver.crt");
        // It listens when it has made its certificate: before, there may be half of one.
        api_server.wait_until(START_MAX, || listens(api_port)).await?;
        let kubeconfig = sandbox.write_file("kubeconfig", &kubeconfig(api_port, &certificate).to_string())?;
        let objects = Objects::open(&kubeconfig).await?;
        // The server makes this one last of all that it makes for itself.
        answers(&mut api_server, async || objects.has("v1/Namespace", "default").await == Ok(true)).await?;
        objects.create(definition()).await?;
        answers(&mut api_server, async || objects.has(CLUSTER, NAME).await.is_ok()).await?;
        Ok(Api { kubeconfig, objects, _api_server: api_server, _etcd: etcd })
    }
}

fn start_etcd(sandbox: &Sandbox, program: &Path, port: u16, peer_port: u16) -> Result<Running, DemoError> {
    let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = sandbox.command(&sandbox.reachable_program(program)?);
    command.args(["--data-dir", "etcd-data", "--unsafe-no-fsync"]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}")]);
    Ok(sandbox.start("etcd", command, Signal::KILL)?)
}

fn start_api_server(
    sandbox: &Sandbox,
    program: &Path,
    etcd_port: u16,
    port: u16,
) -> Result<Running, DemoError> {
    let mut command = sandbox.command(&sandbox.reachable_program(program)?);
    command.args([format!("--etcd-servers=http://127.0.0.1:{etcd_port}"), format!("--secure-port={port}")]);
    command.args([
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--anonymous-auth=false",
        "--token-auth-file=tokens",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--cert-dir=certificates",
        // The key of its own certificate, which it makes first, is as good as any other.
        "--service-account-signing-key-file=certificates/apiserver.key",
        "--service-account-key-file=certificates/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--disable-admission-plugins=ServiceAccount",
    ]);
    // It would wait for its watches with TERM.
    Ok(sandbox.start("kube-apiserver", command, Signal::KILL)?)
}

async fn answers(server: &mut Running, ask: impl AsyncFn() -> bool) -> Result<(), DemoError> {
    let deadline = Instant::now() + START_MAX;
    while !ask().await {
        if let Some(status) = server.ended() {
            return Err(server.failure(status).into());
        }
        if Instant::now() >= deadline {
            return Err(server.not_ready(START_MAX).into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn kubeconfig(port: u16, certificate: &Path) -> Value {
    let server = format!("https://127.0.0.1:{port}");
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": NAME, "cluster": { "server": server, "certificate-authority": certificate } }],
        "users": [{ "name": NAME, "user": { "token": "demo" } }],
        "contexts": [{ "name": NAME, "context": { "cluster": NAME, "user": NAME } }],
        "current-context": NAME,
    })
}

/// As much of CloudNativePG's definition of a Cluster as is needed to write one.
fn definition() -> Value {
    let free = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "clusters.postgresql.cnpg.io" },
        "spec": {
            "group": "postgresql.cnpg.io",
            "scope": "Namespaced",
            "names": { "kind": "Cluster", "plural": "clusters" },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": free },
            }],
        },
    })
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "cnpg.io/cluster": NAME, "cnpg.io/podRole": "instance" } },
        "spec": { "nodeName": name, "containers": [{ "name": "postgres", "image": "postgres" }] },
        "status": { "phase": "Running", "podIP": address, "conditions": condition(true) },
    })
}

fn condition(ready: bool) -> Value {
    json!([{ "type": "Ready", "status": if ready { "True" } else { "False" } }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_is_of_use_with_its_etcd_beside_it() {
        let check = |files: &[&str], expected: bool| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            for file in files {
                std::fs::write(folder.path().join(file), "").expect("it is ours");
            }
            let found = Programs::among([PathBuf::from("/nowhere"), folder.path().to_owned()].into_iter());
            assert_eq!(found.is_some_and(|found| found.folder() == folder.path()), expected, "{files:?}");
        };
        check(&["etcd", "kube-apiserver"], true);
        check(&["kube-apiserver"], false);
        check(&["etcd"], false);
        check(&[], false);
    }
}
