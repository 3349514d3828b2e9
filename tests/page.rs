//! The page at the metrics address, as people see it in a real browser, and the same in a terminal: a real cluster
//! in trouble, in light and dark, on a screen and on a phone.
//!
//! `PGWEIR_PAGE_PICTURES=folder` keeps the pictures, to be looked at.

use crate::support;

use pgweir::admin::status::Status;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use support::message::query;
use support::process::free_port;
use support::replicas::Replicas;
use support::{Login, Pooler, Raw, eventually};
use tokio::task::{JoinSet, spawn_blocking};

/// A standby of the cluster is gone, four clients share two servers, and text of theirs looks like HTML.
struct Scene {
    replicas: Replicas,
    pooler: Pooler,
    metrics: SocketAddr,
    /// Clients at work; they end with the scene.
    _load: JoinSet<()>,
}

/// A name that must not be taken for HTML.
const HTML: &str = "<img src=x onerror=alert(1)>";

impl Scene {
    async fn start() -> Scene {
        let mut replicas = Replicas::of(None, &[]).await;
        replicas.sql(0, "GRANT pg_monitor TO app").await;
        replicas.sql(0, &format!("CREATE DATABASE \"{HTML}\"")).await;
        replicas.has_caught_up(1).await;
        replicas.has_caught_up(2).await;
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let cluster =
            format!("\n[clusters]\nc1 = source=probe hosts={} port={}\n", replicas.hosts(), replicas.port);
        let pooler = Pooler::config()
            .database_line("app = cluster=c1 role=rw dbname=app")
            .database_line("* = cluster=c1 role=ro")
            .setting("monitor_user", "app")
            .setting("metrics_listen_addr", &metrics.to_string())
            .setting("query_wait_timeout", "0")
            .pool_size(2)
            .sections(&cluster)
            .start()
            .await;
        replicas.kill(2);
        let mut load = JoinSet::new();
        for name in ["app", "app", "app", HTML] {
            let (address, login) = (pooler.tcp(), Login::new("app", name));
            load.spawn(async move {
                let mut client = Raw::login(&address, &login).await;
                loop {
                    client.query("SELECT pg_sleep(0.02)").await;
                }
            });
        }
        let scene = Scene { replicas, pooler, metrics, _load: load };
        eventually("it is seen that a standby is gone", async || {
            let status = scene.status(&[]).await;
            let status: Status = serde_json::from_str(&text(&status.stdout)).expect("a status");
            let [cluster] = &status.clusters[..] else { return false };
            let health = cluster.health.as_ref();
            let is_seen = health.is_some_and(|health| health.evidence.contains("does not answer"));
            is_seen && cluster.members.iter().any(|member| member.lag_ms.is_some()) && status.pools.len() == 2
        })
        .await;
        scene
    }

    /// `pgweir status`, as JSON if nothing else is said.
    async fn status(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        command.arg("status").arg("--address").arg(self.metrics.to_string());
        command.args(if arguments.is_empty() { &["--output", "json"] } else { arguments });
        spawn_blocking(move || command.output().expect("pgweir runs")).await.expect("it does not panic")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `tests/page/look.mjs` prints.
#[derive(Debug, Deserialize)]
struct Seen {
    looks: BTreeMap<String, Look>,
    faults: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Look {
    text: String,
    ground: f64,
    ink: f64,
    outside: Vec<String>,
    servers: Vec<usize>,
    points: Vec<usize>,
}

async fn look(url: String, folder: &Path) -> Seen {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/look.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(url).arg(folder).arg("/usr/bin/chromium");
    let output = spawn_blocking(move || command.output().expect("node runs")).await.expect("no panic");
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("look.mjs prints JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_cluster_in_light_and_dark_on_screens_and_phones() {
    let scene = Scene::start().await;
    let kept = std::env::var_os("PGWEIR_PAGE_PICTURES");
    let folder = tempfile::tempdir().expect("there is room");
    let folder = kept.as_ref().map_or(folder.path(), Path::new);
    let seen = look(format!("http://{}/", scene.metrics), folder).await;
    assert_eq!(seen.faults, [""; 0], "what the browser complains of");
    for (name, look) in &seen.looks {
        let words = [
            "c1",
            "healthy",
            "127.0.0.2 is the primary",
            "127.0.0.4 does not answer",
            "gets writes",
            "127.0.0.3",
            "gets reads",
            "of 2 in use",
            "queries/s",
            // As text.
            HTML,
        ];
        for words in words {
            assert!(look.text.contains(words), "{name}: {words:?} in\n{}", look.text);
        }
        assert_eq!(look.outside, [""; 0], "{name}: what sticks out of the screen");
        assert_eq!(look.servers, [3], "{name}: the servers that are drawn");
        assert!(look.points.iter().all(|count| *count > 2), "{name}: the lines grow: {:?}", look.points);
        match name.contains("dark") {
            true => assert!(look.ground < 0.2 && look.ink > 0.8, "{name}: {} {}", look.ground, look.ink),
            false => assert!(look.ground > 0.8 && look.ink < 0.2, "{name}: {} {}", look.ground, look.ink),
        }
        let picture = std::fs::metadata(folder.join(format!("{name}.png"))).expect("there is a picture");
        assert!(picture.len() > 10_000, "{name}: a picture of {} bytes", picture.len());
    }
    assert_eq!(seen.looks.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_the_same_in_a_terminal() {
    let scene = Scene::start().await;
    let output = scene.status(&["--output", "text"]).await;
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for words in [
        "cluster c1: healthy for ",
        "127.0.0.4 does not answer",
        "  127.0.0.2 is the primary for ",
        "found by asking every server, timeline 1",
        "  server     says     zone  gets    behind  ",
        "app/app",
    ] {
        assert!(told.contains(words), "{words:?} in\n{told}");
    }
    // A primary that is gone is told, too, with what has happened.
    let mut replicas = scene.replicas;
    replicas.kill(0);
    let pooler = &scene.pooler;
    eventually("there is no primary", async || {
        pooler.admin("SHOW CLUSTERS").await[0]["health"] == "no_primary"
    })
    .await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.arg("status").arg(pooler.directory().join("pooler.ini"));
    let output = spawn_blocking(move || command.output().expect("pgweir runs")).await.expect("no panic");
    let told = text(&output.stdout);
    for words in ["cluster c1: no_primary for ", "clients that write wait for ", " ago: no_primary: "] {
        assert!(told.contains(words), "{words:?} in\n{told}{}", text(&output.stderr));
    }
}

#[tokio::test]
async fn status_says_what_to_do_when_nobody_answers() {
    let free = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    let output = command.args(["status", "--address", &free.to_string()]).output().expect("pgweir runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not answer: "), "{}", text(&output.stderr));
    let pooler = Pooler::config().start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    let output =
        command.arg("status").arg(pooler.directory().join("pooler.ini")).output().expect("pgweir runs");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("has no metrics_listen_addr: set it, for example to 127.0.0.1:9127"), "{told}");
}

#[tokio::test]
async fn status_watches_until_it_is_ended() {
    let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let pooler = Pooler::config().setting("metrics_listen_addr", &metrics.to_string()).start().await;
    pooler.client().await.ask(query("SELECT 1")).await.is("T D(1) C(SELECT 1) Z(I)");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.args(["status", "--watch", "--output", "json", "--address", &metrics.to_string()]);
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("it runs");
    let stdout = child.stdout.take().expect("it is piped");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    for look in 0..3 {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        let line = line.expect("it looks each second").expect("it can be read").expect("it goes on");
        let status: Status = serde_json::from_str(&line).expect("each line is a status");
        assert_eq!(status.state, "active", "look {look}");
        assert_eq!(status.databases.iter().map(|one| one.queries).sum::<u64>(), 1, "look {look}");
    }
}
