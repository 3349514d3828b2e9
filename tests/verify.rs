//! `pgweir verify` of a real cluster: three PostgreSQL servers that replicate and archive, the objects of a real
//! Kubernetes API, and a pooler. All its lines pass; then one thing after the other is broken for real, and the lines that
//! say so fail, with the remedy, and no others.

use crate::support;

use base64::prelude::{BASE64_STANDARD, Engine};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use support::archive::Archive;
use support::certificates::{Authority, Identity, text};
use support::kube::{Kube, Space, resource};
use support::kustomize::{self, Document};
use support::operator::{CLUSTER, POD, Patroni};
use support::replicas::Replicas;
use support::scene::config_for;
use support::{Login, Pooler, Raw, eventually, eventually_within};

const BACKUP: &str = "postgresql.cnpg.io/v1/Backup";
const CLAIM: &str = "v1/PersistentVolumeClaim";
const CLASS: &str = "storage.k8s.io/v1/StorageClass";
const ROLE: &str = "rbac.authorization.k8s.io/v1/Role";
const SECRET: &str = "v1/Secret";
const NODE: &str = "v1/Node";

/// An archiver that has failed thrice waits for a minute, unless it is woken; a pooler asks each second.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// A cluster in which all is green.
struct Scene {
    kube: Arc<Kube>,
    space: Space,
    replicas: Replicas,
    pooler: Pooler,
    authority: Authority,
    /// What the servers show.
    identity: Identity,
    archive: Archive,
}

/// What the command said.
struct Shown {
    code: Option<i32>,
    complained: String,
    lines: Vec<Value>,
}

impl Shown {
    /// The lines that do not pass, by id.
    fn wrong(&self) -> BTreeMap<&str, &str> {
        let pairs = self.lines.iter().map(|line| {
            let text = |field: &str| line[field].as_str().expect("a text");
            (text("id"), text("verdict"))
        });
        pairs.filter(|(_, verdict)| *verdict != "pass").collect()
    }

    fn line(&self, id: &str) -> &Value {
        self.lines.iter().find(|line| line["id"] == id).unwrap_or_else(|| panic!("no line {id}"))
    }
}

async fn verify(kubeconfig: &Path, arguments: &[&str]) -> Shown {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.args(["verify", "pg", "--output", "json"]).args(arguments).env("KUBECONFIG", kubeconfig);
    command.env_remove("PGPASSWORD").env_remove("PGWEIR_MONITOR_PASSWORD").kill_on_drop(true);
    let output = command.output().await.expect("our own binary runs");
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let lines = match said["lines"].take() {
        Value::Array(lines) => lines,
        _ => Vec::new(),
    };
    Shown { code: output.status.code(), complained, lines }
}

impl Scene {
    async fn start() -> Scene {
        let archive = Archive::new();
        let authority = Authority::new();
        let identity = authority.issue("pg-rw", "DNS:pg-rw");
        let [archive_mode, archive_command] = archive.settings();
        let settings = [
            archive_mode,
            "archive_timeout=60".to_owned(),
            archive_command,
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", text(&identity.certificate)),
            format!("ssl_key_file={}", text(&identity.key)),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        // Of its own: no other test has this kind.
        let kube = Arc::new(Kube::start().await);
        define_backups(&kube).await;
        let space = kube.space().await;
        let replicas = Replicas::of(None, &settings).await;
        replicas.sql(0, "GRANT pg_monitor TO app").await;
        space.grant("follower", rules(&["list", "watch"])).await;
        let cluster = format!("source=cnpg namespace={}", space.name);
        let config = config_for(&kube, &space, "follower", &cluster, replicas.port);
        let scene = Scene {
            pooler: config.setting("server_tls_sslmode", "prefer").start().await,
            kube,
            space,
            replicas,
            authority,
            identity,
            archive,
        };
        scene.make_objects().await;
        for number in 0..3 {
            scene.limit_slots(number, "1GB").await;
        }
        scene.archives().await;
        scene
    }

    // ---- what is looked for ----

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.kube.kubeconfig_file(user, &self.space.name)
    }

    async fn look(&self, more: &[&str]) -> Shown {
        let ini = self.pooler.directory().join("pooler.ini").display().to_string();
        let pooler = format!("127.0.0.1:{}", self.pooler.port);
        let arguments = ["--config", &ini, "--pooler", &pooler, "--admin-user", "admin"];
        let account = ["--service-account", "pgweir"];
        verify(&self.kubeconfig("admin"), &[&arguments, &account[..], more].concat()).await
    }

    /// Waits until these lines do not pass, and no others.
    async fn comes_to(&self, expected: &[(&str, &str)]) -> Shown {
        let wanted: BTreeMap<&str, &str> = expected.iter().copied().collect();
        let mut last = None;
        let what = format!("pgweir verify says {wanted:?}");
        eventually_within(SEEN_WITHIN, &what, async || {
            let shown = self.look(&[]).await;
            let is_it = shown.wrong() == wanted && !shown.lines.is_empty();
            if !is_it && last.is_none() {
                println!("  not yet: {:?} {}", shown.wrong(), shown.complained);
            }
            last = Some(shown);
            is_it
        })
        .await;
        last.expect("it was looked")
    }

    async fn is_green(&self) {
        let shown = self.comes_to(&[]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.complained);
    }

    /// Only this line does not pass, says this, and has this remedy.
    async fn fails(&self, id: &str, found: &str, remedy: &str) {
        self.fails_with(&[(id, "fail")], found, remedy).await;
    }

    /// The first of these lines says this, and has this remedy; the others follow from the same.
    async fn fails_with(&self, lines: &[(&str, &str)], found: &str, remedy: &str) {
        let shown = self.comes_to(lines).await;
        let line = shown.line(lines[0].0);
        println!("  {}: {} -> {}", lines[0].0, line["found"], line["remedy"]);
        let has = |field: &str, words: &str| line[field].as_str().is_some_and(|text| text.contains(words));
        assert!(has("found", found), "{line:#}\nhas not {found:?}");
        assert!(has("remedy", remedy), "{line:#}\nhas not {remedy:?}");
        let any_fails = lines.iter().any(|(_, verdict)| *verdict == "fail");
        assert_eq!(shown.code, Some(i32::from(any_fails)), "{}", shown.complained);
    }

    // ---- what it stands on ----

    /// The name of an object that belongs to no namespace.
    fn own(&self, name: &str) -> String {
        format!("{}-{name}", self.space.name)
    }

    async fn make_objects(&self) {
        for number in 0..3 {
            let node = self.own(&format!("node-{number}"));
            let labels = json!({ "topology.kubernetes.io/zone": format!("zone-{number}") });
            let metadata = json!({ "name": node, "labels": labels });
            self.space.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata })).await;
        }
        self.make_class("WaitForFirstConsumer").await;
        for number in 1..=3 {
            self.make_claim(&format!("pg-{number}"), "PG_DATA").await;
            self.make_claim(&format!("pg-{number}-wal"), "PG_WAL").await;
            self.make_pod(number, number - 1, true).await;
        }
        for name in ["pg-server", "pg-ca"] {
            let metadata = json!({ "name": name });
            self.space.create(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata })).await;
        }
        self.put_certificates(&self.identity).await;
        self.make_backup(SignedDuration::from_hours(1)).await;
        self.grant_account(rules(&["list", "watch"])).await;
        self.make_cluster().await;
    }

    async fn make_class(&self, binding: &str) {
        self.space
            .create(json!({
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": { "name": self.own("fast") },
                "provisioner": "example.com/disk",
                "volumeBindingMode": binding,
                "allowVolumeExpansion": true,
            }))
            .await;
    }

    async fn make_claim(&self, name: &str, role: &str) {
        self.space
            .create(json!({
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": { "name": name, "labels": { "cnpg.io/cluster": "pg", "cnpg.io/pvcRole": role } },
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": { "requests": { "storage": "1Gi" } },
                    "storageClassName": self.own("fast"),
                    "volumeName": format!("volume-of-{name}"),
                },
                "status": { "phase": "Bound" },
            }))
            .await;
    }

    /// The pod `pg-NUMBER`, on a node, with a volume for its WAL or without.
    async fn make_pod(&self, number: usize, node: usize, has_wal: bool) {
        let name = format!("pg-{number}");
        let mut claims = vec![name.clone()];
        claims.extend(has_wal.then(|| format!("{name}-wal")));
        let volume =
            |claim: &String| json!({ "name": claim, "persistentVolumeClaim": { "claimName": claim } });
        let role = if number == 1 { "primary" } else { "replica" };
        let labels =
            json!({ "cnpg.io/cluster": "pg", "cnpg.io/podRole": "instance", "cnpg.io/instanceRole": role });
        self.space
            .create(json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": name, "labels": labels },
                "spec": {
                    "nodeName": self.own(&format!("node-{node}")),
                    "containers": [{ "name": "postgres", "image": "postgres" }],
                    "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
                },
                "status": {
                    "phase": "Running",
                    "podIP": self.replicas.host(number - 1),
                    "conditions": [{ "type": "Ready", "status": "True" }],
                },
            }))
            .await;
    }

    async fn make_pod_anew(&self, number: usize, node: usize, has_wal: bool) {
        self.space.delete(POD, &format!("pg-{number}"), 0).await;
        self.make_pod(number, node, has_wal).await;
    }

    async fn put_certificates(&self, identity: &Identity) {
        let encoded = |path: &Path| BASE64_STANDARD.encode(fs::read(path).expect("our own file"));
        let server = json!({ "data": { "tls.crt": encoded(&identity.certificate) } });
        self.space.change(SECRET, "pg-server", server).await;
        let authority = json!({ "data": { "ca.crt": encoded(&self.authority.certificate()) } });
        self.space.change(SECRET, "pg-ca", authority).await;
    }

    async fn make_backup(&self, age: SignedDuration) {
        let stopped = Timestamp::now() - age;
        self.space
            .create(json!({
                "apiVersion": "postgresql.cnpg.io/v1",
                "kind": "Backup",
                "metadata": { "name": "daily" },
                "spec": { "cluster": { "name": "pg" } },
                "status": { "phase": "completed", "stoppedAt": format!("{stopped:.0}") },
            }))
            .await;
    }

    async fn make_backup_anew(&self) {
        self.space.delete(BACKUP, "daily", 0).await;
        self.make_backup(SignedDuration::from_hours(1)).await;
    }

    async fn grant_account(&self, rules: Value) {
        let version = "rbac.authorization.k8s.io/v1";
        let metadata = json!({ "name": "pgweir" });
        let role = json!({ "apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules });
        self.space.create(role).await;
        let subject = json!({ "kind": "ServiceAccount", "name": "pgweir", "namespace": self.space.name });
        self.space
            .create(json!({
                "apiVersion": version,
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pgweir" },
                "subjects": [subject],
            }))
            .await;
    }

    async fn make_cluster(&self) {
        let affinity =
            json!({ "podAntiAffinityType": "required", "topologyKey": "topology.kubernetes.io/zone" });
        self.space
            .create(json!({
                "apiVersion": "postgresql.cnpg.io/v1",
                "kind": "Cluster",
                "metadata": { "name": "pg" },
                "spec": {
                    "instances": 3,
                    "postgresql": { "synchronous": { "method": "any", "number": 1 } },
                    "affinity": affinity,
                },
                "status": {
                    "currentPrimary": "pg-1",
                    "targetPrimary": "pg-1",
                    "phase": "Cluster in healthy state",
                    "systemID": self.replicas.system().await,
                    "timelineID": 1,
                    "certificates": { "serverTLSSecret": "pg-server", "serverCASecret": "pg-ca" },
                },
            }))
            .await;
    }

    // ---- what is changed ----

    async fn spec(&self, spec: Value) {
        self.space.change(CLUSTER, "pg", json!({ "spec": spec })).await;
    }

    async fn status(&self, status: Value) {
        self.space.status(CLUSTER, "pg", status).await;
    }

    async fn limit_slots(&self, number: usize, size: &str) {
        self.replicas.sql(number, &format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'")).await;
        self.replicas.sql(number, "SELECT pg_reload_conf()").await;
    }

    /// A file of WAL is full.
    async fn switch_wal(&self) {
        self.replicas.sql(0, "SELECT pg_logical_emit_message(true, 'verify', 'something')").await;
        self.replicas.sql(0, "SELECT pg_switch_wal()").await;
    }

    async fn archives(&self) {
        self.switch_wal().await;
        let archived = "SELECT (last_archived_time > coalesce(last_failed_time, '-infinity'))::int \
             FROM pg_stat_archiver WHERE last_archived_time IS NOT NULL UNION ALL SELECT 0";
        eventually_within(SEEN_WITHIN, "WAL is archived", async || {
            self.replicas.number(0, archived).await == 1
        })
        .await;
    }

    async fn standbys_follow(&self) {
        for number in [1, 2] {
            self.replicas.follow(number);
        }
        self.replicas.are_streaming(2).await;
        for number in [1, 2] {
            self.limit_slots(number, "1GB").await;
        }
    }
}

/// What the pooler's Role grants.
fn rules(verbs: &[&str]) -> Value {
    let rule = |group: &str, resource: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
    json!([
        rule("postgresql.cnpg.io", "clusters"),
        rule("", "pods"),
        rule("discovery.k8s.io", "endpointslices"),
        rule("coordination.k8s.io", "leases"),
    ])
}

async fn define_backups(kube: &Kube) {
    let kinds: Api<CustomResourceDefinition> = Api::all(kube.admin().await);
    let definition = json!({
        "metadata": { "name": "backups.postgresql.cnpg.io" },
        "spec": {
            "group": "postgresql.cnpg.io",
            "scope": "Namespaced",
            "names": { "kind": "Backup", "plural": "backups" },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    });
    let definition = serde_json::from_value(definition).expect("a CustomResourceDefinition");
    kinds.create(&PostParams::default(), &definition).await.expect("admin may create it");
    let backups: Api<DynamicObject> =
        Api::all_with(kube.admin().await, &resource("postgresql.cnpg.io/v1", "Backup"));
    eventually("the kind is served", async || backups.list(&ListParams::default()).await.is_ok()).await;
}

#[tokio::test]
async fn each_line_fails_for_what_it_is_about_and_for_nothing_else() {
    let mut scene = Scene::start().await;
    scene.is_green().await;
    the_operators_word(&scene).await;
    standbys(&mut scene).await;
    recovery(&scene).await;
    volumes(&scene).await;
    places(&scene).await;
    poolers(&scene).await;
    certificates(&scene).await;
    exit_codes(&scene).await;
    scene.is_green().await;
    who_may_see_little(&scene).await;
    the_manifests_rights_are_enough(&scene).await;
}

async fn the_operators_word(scene: &Scene) {
    scene.status(json!({ "phase": "Upgrading cluster", "phaseReason": "image" })).await;
    scene.fails("cluster_phase", "Upgrading cluster: image", "wait until the operator").await;
    scene.status(json!({ "phase": "Cluster in healthy state", "phaseReason": null })).await;

    let ready = |word: &str| json!({ "conditions": [{ "type": "Ready", "status": word }] });
    scene.space.status(POD, "pg-3", ready("False")).await;
    scene.fails("instances_ready", "2 of 3; not ready: pg-3", "events and logs").await;
    scene.space.status(POD, "pg-3", ready("True")).await;

    scene.status(json!({ "targetPrimary": "pg-2" })).await;
    let follows = [("primary_confirmed", "fail"), ("pooler_reaches", "fail")];
    scene.fails_with(&follows, "names pg-1, and is moving to pg-2", "wait until the move").await;
    scene.status(json!({ "targetPrimary": "pg-1" })).await;

    scene.spec(json!({ "instances": 2 })).await;
    let follows = [("quorum_instances", "fail"), ("instances_ready", "fail")];
    scene.fails_with(&follows, "2 instances, a commit waits for 1 of 1", "at least 3 instances").await;
    scene.spec(json!({ "instances": 3 })).await;

    scene.spec(json!({ "postgresql": { "synchronous": { "number": 2 } } })).await;
    let follows = [("standbys_synchronous", "fail"), ("quorum_instances", "fail")];
    scene.fails_with(&follows, "the Cluster asks for 2, pg-1 requires 1", "why the operator has not").await;
    scene.spec(json!({ "postgresql": { "synchronous": { "number": 1 } } })).await;

    scene.spec(json!({ "affinity": { "podAntiAffinityType": "preferred" } })).await;
    scene.fails("anti_affinity", "it is not required", "podAntiAffinityType: required").await;
    scene.spec(json!({ "affinity": { "podAntiAffinityType": "required" } })).await;
    scene.is_green().await;
}

async fn standbys(scene: &mut Scene) {
    scene.replicas.cut(2).await;
    scene.limit_slots(2, "1GB").await;
    scene.fails("standbys_streaming", "1 of 2 stream from pg-1", "logs of the standbys").await;

    scene.replicas.cut(1).await;
    scene.limit_slots(1, "1GB").await;
    let both = [("standbys_synchronous", "fail"), ("standbys_streaming", "fail")];
    scene
        .fails_with(
            &both,
            "0 there, 1 required (synchronous_standby_names = ANY 1 (*))",
            "bring a standby back",
        )
        .await;
    scene.standbys_follow().await;
    scene.is_green().await;

    scene.replicas.kill(2);
    let follows = [("primary_confirmed", "fail"), ("standbys_streaming", "fail"), ("pooler_reaches", "fail")];
    scene.fails_with(&follows, "not asked: pg-3 (connect failed", "start them").await;
    scene.replicas.restart(2).await;
    scene.is_green().await;
}

async fn recovery(scene: &Scene) {
    let folder = |name: &str| scene.archive.path().join(name);
    fs::rename(folder("wal"), folder("gone")).expect("our own directory");
    scene.switch_wal().await;
    scene.fails("wal_archiving", "could not be archived", "mend archive_command or the store").await;
    fs::rename(folder("gone"), folder("wal")).expect("our own directory");
    scene.archives().await;
    scene.is_green().await;

    scene.space.delete(BACKUP, "daily", 0).await;
    scene.fails("base_backup", "there is none", "and a ScheduledBackup").await;
    scene.make_backup(SignedDuration::from_hours(72)).await;
    scene.fails("base_backup", "3 days ago (Backup daily)", "look at the ScheduledBackup").await;
    let now = format!("{:.0}", Timestamp::now());
    scene.status(json!({ "lastSuccessfulBackup": now })).await;
    scene.is_green().await;

    scene.limit_slots(0, "-1").await;
    scene.fails("slot_wal_limit", "-1 at pg-1", "set max_slot_wal_keep_size below").await;
    scene.limit_slots(0, "1GB").await;
    scene.is_green().await;
}

async fn volumes(scene: &Scene) {
    scene.space.status(CLAIM, "pg-2", json!({ "phase": "Lost" })).await;
    scene
        .fails("data_volumes", "claim pg-2 of pg-2 is Lost, and bound to no volume", "the claim's events")
        .await;
    scene.space.status(CLAIM, "pg-2", json!({ "phase": "Bound" })).await;

    scene.make_pod_anew(3, 2, false).await;
    let warned = [("wal_volumes", "warn")];
    scene.fails_with(&warned, "WAL shares the volume of the data at pg-3", "set spec.walStorage").await;
    scene.make_pod_anew(3, 2, true).await;

    let class = scene.own("fast");
    scene.space.change(CLASS, &class, json!({ "allowVolumeExpansion": false })).await;
    scene.fails("volume_expansion", "does not allow it", "allowVolumeExpansion: true").await;
    scene.space.delete(CLASS, &class, 0).await;
    scene.make_class("Immediate").await;
    scene.fails("volume_binding", "is Immediate", "a StorageClass with WaitForFirstConsumer").await;
    scene.space.delete(CLASS, &class, 0).await;
    scene.make_class("WaitForFirstConsumer").await;
    scene.is_green().await;
}

async fn places(scene: &Scene) {
    let zone = |zone: &str| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
    let node = |number: usize| scene.own(&format!("node-{number}"));
    scene.space.change(NODE, &node(1), zone("zone-0")).await;
    let warned = [("different_zones", "warn")];
    scene.fails_with(&warned, "2 in zone-0, 1 in zone-2", "anti-affinity on topology").await;
    scene.space.change(NODE, &node(2), zone("zone-0")).await;
    scene.fails("different_zones", "3 in zone-0: one lost zone is the end of all", "spread them").await;
    scene.space.change(NODE, &node(1), zone("zone-1")).await;
    scene.space.change(NODE, &node(2), zone("zone-2")).await;

    scene.make_pod_anew(3, 1, true).await;
    let follows = [("different_nodes", "fail"), ("different_zones", "warn")];
    scene.fails_with(&follows, "pg-2, pg-3 on", "require anti-affinity").await;
    scene.make_pod_anew(3, 2, true).await;
    scene.is_green().await;
}

async fn poolers(scene: &Scene) {
    let mut others = Vec::new();
    for _ in 0..75 {
        others.push(Raw::login(&scene.replicas.tcp(0), &Login::new("app", "app")).await);
    }
    scene
        .fails("connection_budget", "(1 poolers with 3 pools, 25 each) and 7", "or raise max_connections")
        .await;
    drop(others);
    scene.is_green().await;

    scene.pooler.admin("HOLD pg 60").await;
    scene.fails("pooler_reaches", "its clients wait: draining, held", "a HOLD").await;
    scene.pooler.admin("RELEASE pg").await;
    scene.is_green().await;

    scene.space.change(ROLE, "pgweir", json!({ "rules": rules(&["list"]) })).await;
    let found = "service account pgweir may not watch clusters/pg, watch pods";
    scene.fails("pooler_rights", found, "config/kubernetes/base/rbac").await;
    scene.space.change(ROLE, "pgweir", json!({ "rules": rules(&["list", "watch"]) })).await;
    scene.is_green().await;
}

async fn certificates(scene: &Scene) {
    let short = scene.authority.self_signed("short", "pg-rw", &["-days", "2"]);
    scene.put_certificates(&short).await;
    scene.fails("certificates", "pg-server/tls.crt ends in", "renew it").await;
    scene.put_certificates(&scene.identity).await;
    scene.is_green().await;

    let long = scene.authority.issue("pg-rw", "DNS:pg-rw");
    short.replace(&scene.identity);
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    scene.fails("certificates", "shown by pg-1 ends in", "renew it").await;
    long.replace(&scene.identity);
    scene.replicas.sql(0, "SELECT pg_reload_conf()").await;
    scene.is_green().await;
}

async fn exit_codes(scene: &Scene) {
    let code = async |more: &[&str]| scene.look(more).await.code;
    assert_eq!(code(&["--strict"]).await, Some(0));
    scene.make_pod_anew(3, 2, false).await;
    scene.comes_to(&[("wal_volumes", "warn")]).await;
    assert_eq!(code(&[]).await, Some(0), "a warning does not fail");
    assert_eq!(code(&["--strict"]).await, Some(1));
    scene.make_pod_anew(3, 2, true).await;
    let shown = scene.look(&["--name", "other"]).await;
    assert_eq!(shown.code, Some(2));
    assert!(shown.complained.contains("there is no Cluster \"other\" in namespace"), "{}", shown.complained);
    let mut table = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgweir"));
    table.args(["verify", "pg", "--no-pooler"]).env("KUBECONFIG", scene.kubeconfig("admin"));
    let output = table.output().await.expect("our own binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(text.starts_with("pass     cluster_phase"), "{text}");
}

/// Without a login for the servers, and with nothing but what the pooler itself may read.
async fn who_may_see_little(scene: &Scene) {
    scene.space.grant("stranger", rules(&["list", "watch"])).await;
    let kubeconfig = scene.kubeconfig("stranger");
    let cannot = |verb: &str, what: &str| format!("cannot {verb} resource \"{what}\"");
    let expected = [
        ("primary_confirmed", "no login for the servers was given".to_owned()),
        ("wal_archiving", "no login for the servers was given".to_owned()),
        ("base_backup", cannot("list", "backups")),
        ("data_volumes", cannot("list", "persistentvolumeclaims")),
        ("volume_binding", cannot("list", "persistentvolumeclaims")),
        ("different_zones", cannot("get", "nodes")),
        ("connection_budget", "the pools are not known: --config".to_owned()),
        ("pooler_reaches", "--no-pooler".to_owned()),
        ("certificates", cannot("get", "secrets")),
    ];
    scene.status(json!({ "lastSuccessfulBackup": null })).await;
    let shown = says_enough(&kubeconfig, &["--no-pooler"], |shown| shown.code == Some(0)).await;
    for (id, reason) in expected {
        let line = shown.line(id);
        let found = line["found"].as_str().expect("a text");
        assert!(line["verdict"] == "skipped" && found.contains(&reason), "{line:#}\nhas not {reason:?}");
    }
    for id in ["cluster_phase", "instances_ready", "different_nodes", "anti_affinity", "pooler_rights"] {
        assert_eq!(shown.line(id)["verdict"], "pass", "{:#}", shown.line(id));
    }
    // What may not be read, the operator says too.
    let soon = Timestamp::now() + SignedDuration::from_hours(48);
    let ends = json!({ "certificates": { "expirations": { "pg-server": soon.strftime("%F %T +0000 UTC").to_string() } } });
    scene.status(ends).await;
    let shown = verify(&kubeconfig, &["--no-pooler"]).await;
    let line = shown.line("certificates");
    assert_eq!((&line["verdict"], shown.code), (&json!("fail"), Some(1)), "{line:#}");
    scene.status(json!({ "certificates": { "expirations": null } })).await;
}

/// The pooler's own rights and those of `config/kubernetes/verify` are enough to see all of it.
async fn the_manifests_rights_are_enough(scene: &Scene) {
    scene.make_backup_anew().await;
    for Document { file, value } in kustomize::documents() {
        if !file.starts_with("verify/") {
            continue;
        }
        let mut object = value;
        let is_cluster_wide = object["kind"].as_str().is_some_and(|kind| kind.starts_with("Cluster"));
        if is_cluster_wide {
            object["metadata"]["name"] = json!(scene.own("pgweir-verify"));
        }
        if object["subjects"].is_array() {
            let user = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "stranger" });
            object["subjects"] = json!([user]);
        }
        if is_cluster_wide && object["roleRef"].is_object() {
            object["roleRef"]["name"] = json!(scene.own("pgweir-verify"));
        }
        scene.space.create(object).await;
    }
    let ini = scene.pooler.directory().join("pooler.ini").display().to_string();
    let pooler = format!("127.0.0.1:{}", scene.pooler.port);
    let arguments = ["--config", &ini, "--pooler", &pooler, "--admin-user", "admin", "--strict"];
    let shown =
        says_enough(&scene.kubeconfig("stranger"), &arguments, |shown| shown.wrong().is_empty()).await;
    assert_eq!(shown.code, Some(0));
}

/// Rights that have just been granted count after a moment.
async fn says_enough(kubeconfig: &Path, arguments: &[&str], is_it: impl Fn(&Shown) -> bool) -> Shown {
    let mut last = verify(kubeconfig, arguments).await;
    eventually_within(SEEN_WITHIN, "the rights count", async || {
        if !is_it(&last) {
            println!("  not yet: {:?} {}", last.wrong(), last.complained);
            last = verify(kubeconfig, arguments).await;
        }
        is_it(&last)
    })
    .await;
    last
}

#[tokio::test]
async fn of_patroni_all_is_said_that_its_objects_and_its_servers_show() {
    let kube = Kube::shared().await;
    let space = kube.space().await;
    let patroni = Patroni::start(space.clone(), "pg", "ConfigMap", 1).await;
    patroni.replicas.sql(0, "GRANT pg_monitor TO app").await;
    let port = patroni.replicas.port.to_string();
    let arguments = ["--operator", "patroni", "--user", "app", "--port", &port, "--no-pooler"];
    let kubeconfig = kube.kubeconfig_file("admin", &space.name);
    let mut shown = verify(&kubeconfig, &arguments).await;
    eventually("the standbys stream", async || {
        shown = verify(&kubeconfig, &arguments).await;
        !shown.wrong().contains_key("standbys_streaming")
    })
    .await;
    for id in ["primary_confirmed", "standbys_synchronous", "quorum_instances", "pooler_rights"] {
        assert_eq!(shown.line(id)["verdict"], "pass", "{:#}", shown.line(id));
    }
    for (id, verdict, found) in [
        ("cluster_phase", "skipped", "Patroni's records do not say a phase"),
        ("base_backup", "skipped", "ask the tool that makes them"),
        ("certificates", "skipped", "which secrets have certificates"),
        ("wal_archiving", "fail", "archive_mode is off"),
        ("slot_wal_limit", "fail", "-1 at pg-1, pg-2, pg-3"),
        ("different_nodes", "fail", "pg-1, pg-2, pg-3 on node"),
        ("data_volumes", "fail", "pg-1 has no claim for its data"),
        ("anti_affinity", "fail", "it is not required"),
    ] {
        let line = shown.line(id);
        let text = line["found"].as_str().expect("a text");
        assert!(line["verdict"] == verdict && text.contains(found), "{line:#}");
    }
    assert_eq!(shown.code, Some(1));
    let other = verify(&kubeconfig, &["--operator", "patroni", "--name", "other"]).await;
    assert_eq!(other.code, Some(2));
    assert!(other.complained.contains("there is no Patroni scope \"other\""), "{}", other.complained);
}
