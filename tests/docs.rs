//! Every command of `docs/kubernetes.md` and of the README is run as it stands there, one after the other,
//! and says what the page says that it says.
//!
//! A command is a line of a block that begins with "```sh". `# says: a b` behind it means that a line of its
//! output has each of these words. What runs here: a Kubernetes API server with the objects of three operators, their
//! PostgreSQL servers, and pgweir with the very settings that the page has one apply. What does not: pods.
//! [`KUBELET`] are the commands that need one. Start at
//! [`every_command_of_the_kubernetes_page_does_what_the_page_says`].

use crate::support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use support::operator::{Operator, Patroni};
use support::process::{self, free_port, private_directory, reap, unprivileged};
use support::replicas::Replicas;
use support::{Kube, Space, eventually, kustomize};
use tokio::process::Command;

const PAGE: &str = "docs/kubernetes.md";

/// What a block may begin with. Only `sh` and `sql` are commands; `ini` is read in `tests/manifests.rs`.
const LANGUAGES: [&str; 5] = ["sh", "sql", "yaml", "ini", "text"];

/// Commands that need a kubelet. They are run all the same: kubectl takes their words and finds the pod, and
/// then the API server has no kubelet to pass it on to.
const KUBELET: [&str; 2] = ["kubectl -n db port-forward ", "kubectl -n db logs "];

/// That the pod's node is not there.
const NO_KUBELET: &str = "pods \"node\" not found";

/// Names that the page takes from life, and what they are here.
const NAMES: [(&str, &str); 2] = [("pg-instance1-abcd-0", "pg-ha-1"), ("pg-instance1-wxyz-0", "pg-ha-2")];

/// What the manifests have that is newer than the API server, which is of Kubernetes 1.20.
const NEWER: [(&str, &str, &str); 4] = [
    ("base/poddisruptionbudget.yaml", "policy/v1\n", "policy/v1beta1\n"),
    (
        "base/horizontalpodautoscaler.yaml",
        "apiVersion: autoscaling/v2\n",
        "apiVersion: autoscaling/v2beta2\n",
    ),
    ("overlays/sidecar/application.yaml", "          restartPolicy: Always\n", ""),
    (
        "overlays/sidecar/application.yaml",
        "          startupProbe:\n            httpGet:\n              path: /readyz\n              \
         port: metrics\n            periodSeconds: 1\n            failureThreshold: 30\n",
        "",
    ),
];

/// Kinds of the operators, besides Cluster.
const KINDS: [(&str, &str, &str); 5] = [
    ("postgresql.cnpg.io/v1", "Pooler", "poolers"),
    ("postgresql.cnpg.io/v1", "ScheduledBackup", "scheduledbackups"),
    ("barmancloud.cnpg.io/v1", "ObjectStore", "objectstores"),
    ("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
];

/// What a command may take that waits for something to move.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_command_of_the_kubernetes_page_does_what_the_page_says() {
    let blocks = blocks(PAGE);
    let commands: Vec<Line> = blocks.iter().filter(|one| one.language == "sh").flat_map(commands).collect();
    assert!(commands.len() > 30, "they are not found");
    let place = Place::copy();
    let image = blocks.iter().find(|one| one.language == "yaml").expect("how to name the image");
    for overlay in ["standalone", "zalando", "crunchy", "statefulset"] {
        place.append(&format!("overlays/{overlay}/kustomization.yaml"), &image.text);
    }
    let kube = Kube::start().await;
    define_kinds(&kube).await;

    let mut commands = commands.into_iter();
    let first = commands.next().expect("there are some");
    assert_eq!(first.command, "kubectl create namespace db", "the operators' objects go there");
    let shell = Shell::new(&place, &kube);
    shell.does(&first).await;
    let sql: Vec<&Block> = blocks.iter().filter(|one| one.language == "sql").collect();
    let mut stage = Stage::start(&kube, &sql).await;
    let mut refused = BTreeSet::new();
    for line in commands {
        let at = stage.prepare(&line.command).await;
        let shell = shell.beside(&stage.poolers[at]);
        match KUBELET.iter().find(|start| line.command.starts_with(**start)) {
            Some(start) => {
                shell.finds_no_kubelet(&line).await;
                refused.insert(start);
            }
            None if line.command.contains("pgweir switchover") => {
                tokio::join!(stage.obey(at), shell.does(&line));
            }
            None => shell.does(&line).await,
        }
    }
    assert_eq!(refused.len(), KUBELET.len(), "an exception is not needed: only {refused:?} are");
    assert_eq!(image_of_the_pooler(&shell).await, "registry.example.com/pgweir:0.1.0");
    let console = shell.beside(&stage.poolers[0]);
    let shown = console.output("psql -h 127.0.0.1 -U pgweir_admin pgbouncer -c 'SHOW CLUSTERS'").await.said;
    let table = blocks.iter().find(|one| one.text.contains("since_ms")).expect("what SHOW CLUSTERS prints");
    assert_eq!(columns(&shown), columns(&table.text), "the columns on the page");
}

#[test]
fn every_block_of_the_pages_says_what_it_is() {
    for file in [PAGE, "README.md"] {
        for block in blocks(file) {
            assert!(LANGUAGES.contains(&&*block.language), "{file}: ```{}\n{}", block.language, block.text);
        }
    }
}

/// The README's commands that are this project's own targets, which run these very tests.
const OF_THE_PROJECT: [&str; 3] = ["make demo", "make test", "cargo build --release"];

#[tokio::test]
async fn every_command_of_the_readme_does_what_it_says() {
    let blocks = blocks("README.md");
    let in_the_readme: Vec<Line> =
        blocks.iter().filter(|one| one.language == "sh").flat_map(commands).collect();
    let page = self::blocks(PAGE);
    let on_the_page: Vec<Line> = page.iter().filter(|one| one.language == "sh").flat_map(commands).collect();
    let ini = blocks.iter().find(|one| one.language == "ini").expect("a small settings file");
    let postgres = support::Postgres::shared().await;
    let mut pooler = None;
    for line in in_the_readme {
        let is_run_there = on_the_page.iter().any(|other| other.command == line.command);
        if is_run_there || OF_THE_PROJECT.contains(&&*line.command) {
            continue;
        }
        match line.command.strip_prefix("target/release/pgweir ") {
            Some(file) => {
                assert!(ini.text.contains("/etc/pgbouncer/userlist.txt"), "{file} is the ini's neighbour");
                pooler = Some(Started::of_the_readme(&ini.text, postgres.port).await);
            }
            None => {
                let pooler: &Started = pooler.as_ref().expect("it is started first");
                let place = Place::copy();
                Shell::outside(&place).beside(pooler).does(&line).await;
            }
        }
    }
    assert!(pooler.is_some(), "the README starts it");
}

// ---- the pages ----

/// What stands between two fences.
struct Block {
    language: String,
    text: String,
}

/// One command, and the words that it prints.
struct Line {
    command: String,
    says: Vec<String>,
}

fn blocks(file: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let inside = text.split("\n```").skip(1).step_by(2);
    let block = |text: &str| {
        let (language, text) = text.split_once('\n').expect("a fence has a line of its own");
        Block { language: language.to_owned(), text: format!("{text}\n") }
    };
    inside.map(block).collect()
}

fn commands(block: &Block) -> Vec<Line> {
    let text = block.text.replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = |line: &str| {
        let (command, comment) = line.split_once("  #").unwrap_or((line, ""));
        let says = comment.trim().strip_prefix("says: ").unwrap_or_default();
        let words = says.split_whitespace().map(here).collect();
        Line { command: here(command.trim()), says: words }
    };
    lines.map(line).collect()
}

fn here(text: &str) -> String {
    NAMES.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
}

fn columns(table: &str) -> Vec<&str> {
    let line = table.lines().find(|line| line.contains("since_ms")).unwrap_or_default();
    line.split('|').map(str::trim).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ---- where they are run ----

/// A folder with the manifests in it, as the reader has it.
struct Place(tempfile::TempDir);

impl Place {
    fn copy() -> Place {
        let place = Place(private_directory("weir-docs-"));
        process::copy_directory(&root().join("config"), &place.0.path().join("config"));
        for (file, newer, older) in NEWER {
            place.change(file, |text| swap(text, newer, older));
        }
        let passwords = place.0.path().join("passwords");
        let lines = "*:*:*:app:change-me\n*:*:*:pgweir_admin:and-me\n*:*:*:postgres:of-the-readme\n";
        fs::write(&passwords, lines).expect("our own directory");
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).expect("our own file");
        place
    }

    fn append(&self, file: &str, more: &str) {
        self.change(file, |text| format!("{text}{more}"));
    }

    fn change(&self, file: &str, how: impl FnOnce(&str) -> String) {
        let path = self.0.path().join("config/kubernetes").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        fs::write(&path, how(&text)).expect("our own copy");
    }
}

fn swap(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "there is no {from:?} in\n{text}");
    text.replace(from, to)
}

/// A reader's terminal.
#[derive(Clone)]
struct Shell {
    folder: PathBuf,
    variables: Vec<(&'static str, String)>,
    metrics: String,
}

struct Output {
    done: bool,
    said: String,
    complained: String,
}

impl Shell {
    fn new(place: &Place, kube: &Kube) -> Shell {
        let mut shell = Shell::outside(place);
        let kubeconfig = kube.kubeconfig_file("admin", "default").display().to_string();
        shell.variables.push(("KUBECONFIG", kubeconfig));
        shell
    }

    /// Without a cluster.
    fn outside(place: &Place) -> Shell {
        let folder = place.0.path().to_owned();
        let binary = Path::new(env!("CARGO_BIN_EXE_pgweir")).parent().expect("a folder").display();
        let tools = root().join(".cache/kube");
        assert!(tools.join("kubectl").exists(), "no kubectl here: run scripts/setup kube");
        let path = std::env::var("PATH").unwrap_or_default();
        let variables = vec![
            ("PATH", format!("{}:{binary}:{path}", tools.display())),
            ("HOME", folder.display().to_string()),
            ("PGPASSFILE", folder.join("passwords").display().to_string()),
            ("ADMIN_PASSWORD", "and-me".to_owned()),
            ("ACCESS_KEY_ID", "key".to_owned()),
            ("SECRET_ACCESS_KEY", "secret".to_owned()),
        ];
        Shell { folder, variables, metrics: String::new() }
    }

    /// Where this pooler is what listens on 127.0.0.1, as after `kubectl port-forward`.
    fn beside(&self, pooler: &Started) -> Shell {
        let mut shell = self.clone();
        shell.variables.push(("PGPORT", pooler.port.to_string()));
        shell.metrics = pooler.metrics.to_string();
        shell
    }

    async fn output(&self, command: &str) -> Output {
        let command = command.replace("127.0.0.1:9128", &self.metrics).replace(" -p 6432 ", " ");
        let mut shell = Command::new("sh");
        shell.args(["-euc", &command]).current_dir(&self.folder).env_remove("PGPASSWORD");
        shell.envs(self.variables.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, shell.output()).await;
        let output = output.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {command}"));
        let output = output.expect("there is a shell");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { done: output.status.success(), said: text(&output.stdout), complained: text(&output.stderr) }
    }

    /// Runs it. A question is asked again until the answer is the page's: what it asks for takes its time.
    async fn does(&self, line: &Line) {
        let Line { command, says } = line;
        let mut output = self.output(command).await;
        let is_question = ["psql", "curl", "kubectl -n db get", "kubectl -n db auth"];
        if is_question.iter().any(|start| command.starts_with(start)) && !says.is_empty() {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while !(output.done && has(&output, says)) && tokio::time::Instant::now() < deadline {
                output = self.output(command).await;
            }
        }
        println!("$ {command}\n{}{}", output.said, output.complained);
        assert!(output.done, "this fails: {command}\n{}{}", output.said, output.complained);
        assert!(has(&output, says), "{command}\ndoes not say {says:?}:\n{}", output.said);
    }

    async fn finds_no_kubelet(&self, line: &Line) {
        let Output { done, said, complained } = self.output(&line.command).await;
        println!("$ {}\n{said}{complained}", line.command);
        let is_it = !done && complained.contains(NO_KUBELET);
        assert!(is_it, "{}\ndoes not end with {NO_KUBELET:?}:\n{said}{complained}", line.command);
    }
}

/// Whether a line has each of the words, as words.
fn has(output: &Output, says: &[String]) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || "_-=:".contains(c);
    let has_all = |line: &str| {
        let words: BTreeSet<&str> = line.split(|c| !is_part(c)).collect();
        says.iter().all(|word| words.contains(&**word))
    };
    output.said.lines().any(has_all) || says.is_empty()
}

// ---- who plays along ----

/// The operators, and a pooler in front of the servers of each: CloudNativePG, Zalando's, Crunchy's.
struct Stage {
    cnpg: Operator,
    patroni: [Patroni; 2],
    poolers: [Started; 3],
    space: Space,
}

impl Stage {
    async fn start(kube: &Kube, sql: &[&Block]) -> Stage {
        let space = Space { client: kube.admin().await, name: "db".to_owned() };
        let cnpg = Operator::start(space.clone(), "pg", 1).await;
        let patroni = [
            Patroni::start(space.clone(), "acid-pg", "ConfigMap", 2).await,
            Patroni::start(space.clone(), "pg-ha", "Endpoints", 3).await,
        ];
        for replicas in [&cnpg.replicas, &patroni[0].replicas, &patroni[1].replicas] {
            for block in sql {
                replicas.sql(0, &block.text).await;
            }
        }
        let kubeconfig = kube.kubeconfig_file("admin", "db");
        let poolers = [
            Started::of("standalone", "pg = source=cnpg", &cnpg.replicas, &kubeconfig).await,
            Started::of("zalando", "acid-pg = source=patroni", &patroni[0].replicas, &kubeconfig).await,
            Started::of("crunchy", "pg = source=patroni name=pg-ha", &patroni[1].replicas, &kubeconfig).await,
        ];
        let labels = json!({ "app.kubernetes.io/name": "pgweir" });
        space.pod("pgweir-0", "127.0.0.1", labels).await;
        space
            .create(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": { "name": "pgweir-rw-0", "labels": { "kubernetes.io/service-name": "pgweir-rw" } },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": true } }],
            }))
            .await;
        Stage { cnpg, patroni, poolers, space }
    }

    /// Does what Kubernetes would have done before this command. Returns whose pooler it is about.
    async fn prepare(&self, command: &str) -> usize {
        let at = match command {
            command if command.contains("acid-pg") => 1,
            command if command.contains("pg-ha") => 2,
            _ => 0,
        };
        let port = json!([{ "name": "postgres", "port": self.poolers[at].port }]);
        let slice = "discovery.k8s.io/v1/EndpointSlice";
        self.space.change(slice, "pgweir-rw-0", json!({ "ports": port })).await;
        if command.contains("rollout status") {
            let counts = json!({
                "observedGeneration": 1,
                "replicas": 1,
                "updatedReplicas": 1,
                "readyReplicas": 1,
                "availableReplicas": 1,
            });
            self.space.status("apps/v1/Deployment", "pgweir", counts).await;
        }
        at
    }

    /// The operator carries out the switchover that it is asked for.
    async fn obey(&mut self, at: usize) {
        match at {
            0 => drop(self.cnpg.obey().await),
            _ => self.patroni[at - 1].obey().await,
        }
    }
}

async fn image_of_the_pooler(shell: &Shell) -> String {
    let path = "{.spec.template.spec.containers[0].image}";
    shell.output(&format!("kubectl -n db get deployment pgweir -o jsonpath='{path}'")).await.said
}

/// Minimal definitions of the operators' other kinds.
async fn define_kinds(kube: &Kube) {
    let kinds: Api<CustomResourceDefinition> = Api::all(kube.admin().await);
    for (version, kind, plural) in KINDS {
        let (group, version) = version.split_once('/').expect("group/version");
        let free = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let definition = json!({
            "metadata": { "name": format!("{plural}.{group}") },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": { "kind": kind, "plural": plural },
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "schema": { "openAPIV3Schema": free },
                }],
            },
        });
        let definition = serde_json::from_value(definition).expect("a CustomResourceDefinition");
        kinds.create(&PostParams::default(), &definition).await.expect("admin may create it");
    }
    eventually("the kinds are served", async || {
        let all = kinds.list(&kube::api::ListParams::default()).await.expect("the API answers");
        let conditions = all.items.into_iter().map(|kind| kind.status.unwrap_or_default().conditions);
        conditions.into_iter().all(|conditions| {
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one.type_ == "Established" && one.status == "True")
        })
    })
    .await;
}

/// A pooler that runs with the settings of a page or of an overlay.
struct Started {
    port: u16,
    metrics: SocketAddr,
    child: Child,
    folder: tempfile::TempDir,
}

impl Started {
    /// With the ini and the users of an overlay: other ports and folders, and the port of the servers.
    async fn of(overlay: &str, cluster: &str, replicas: &Replicas, kubeconfig: &Path) -> Started {
        let objects = kustomize::build(&format!("overlays/{overlay}"));
        let named = |kind: &str, name: &str| {
            let found = objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
            found.unwrap_or_else(|| panic!("{overlay} has no {kind} {name}")).clone()
        };
        let ini = kustomize::text(&named("ConfigMap", "pgweir"), "/data/pgweir.ini").to_owned();
        let users = named("Secret", "pgweir-users")["data"]["userlist.txt"].clone();
        let users: Value = users;
        let users = BASE64_STANDARD.decode(users.as_str().expect("base64")).expect("base64");
        let (name, _) = cluster.split_once(' ').expect("name = ...");
        let (hosts, port) = (replicas.hosts(), replicas.port);
        let ini = swap(
            &ini,
            cluster,
            &format!("{cluster} port={port}\npg-restored = source=probe hosts={hosts} port={port}"),
        );
        let any = format!("* = cluster={name}");
        let ini = swap(&ini, &any, &format!("{any}\napp = cluster={name}"));
        let ini = swap(&ini, "listen_port_ro = 5433", "listen_port_ro = 0");
        let ini = swap(&ini, "metrics_listen_addr = 0.0.0.0:9128", "metrics_listen_addr = {metrics}");
        let ini = swap(&ini, "/etc/pgweir/users/", "{folder}/");
        Started::with(&ini, &users, Some(kubeconfig)).await
    }

    /// With the README's ini, and PostgreSQL elsewhere.
    async fn of_the_readme(ini: &str, port: u16) -> Started {
        let ini = swap(ini, "host=10.0.0.5 port=5432", &format!("host=127.0.0.1 port={port}"));
        let ini = swap(&ini, "listen_port = 6432", "listen_port = 5432");
        let ini = swap(&ini, "/etc/pgbouncer/userlist.txt", "{folder}/userlist.txt");
        let ini = format!("{ini}unix_socket_dir = /tmp\nmetrics_listen_addr = {{metrics}}\n");
        Started::with(&ini, b"\"postgres\" \"of-the-readme\"\n", None).await
    }

    async fn with(ini: &str, users: &[u8], kubeconfig: Option<&Path>) -> Started {
        let folder = private_directory("weir-docs-");
        let (port, metrics) = (free_port(), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let path = folder.path().display().to_string();
        let ini = swap(ini, "listen_addr = *", "listen_addr = 127.0.0.1");
        let ini = swap(&ini, "listen_port = 5432", &format!("listen_port = {port}"));
        let ini = swap(&ini, "unix_socket_dir = /tmp", &format!("unix_socket_dir = {path}"));
        let ini = ini.replace("{folder}", &path).replace("{metrics}", &metrics.to_string());
        let file = folder.path().join("pgweir.ini");
        fs::write(&file, ini).expect("our own directory");
        fs::write(folder.path().join("userlist.txt"), users).expect("our own directory");
        let log = fs::File::create(folder.path().join("log")).expect("our own directory");
        let program = process::reachable(Path::new(env!("CARGO_BIN_EXE_pgweir")), folder.path());
        let mut command = unprivileged(&program, "KILL");
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut started = Started { port, metrics, child: process::spawn(command), folder };
        started.accepts().await;
        started
    }

    async fn accepts(&mut self) {
        let address = ("127.0.0.1", self.port);
        eventually("pgweir accepts connections", async || {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            assert!(!ended, "it ended:\n{}", self.log());
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        process::signal(self.child.id(), "QUIT");
        reap(&mut self.child, Duration::from_secs(5));
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("pgweir's log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
