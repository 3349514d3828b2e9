//! [`Scene`]: a real cluster in the hands of an [`Operator`], a real Kubernetes API, and a pooler that follows
//! with the least rights.

use super::http;
use super::kube::{Kube, Space};
use super::ledger::{Books, Entry, Outcome};
use super::operator::{Moved, Operator};
use super::pooler::{Config, Pooler};
use super::process::{free_port, unread};
use super::replicas::Replicas;
use super::{Login, eventually};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

/// Writing clients of a planned move; three times as many as there are server connections.
pub const CLIENTS: usize = 50;

/// What a client may hear of a primary that is gone: the transaction is rolled back, or nobody knows.
pub const LOST: &[&str] = &["57P01", "08007"];

/// Three servers a test are enough for plain cargo, which runs a test for each core in one process.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A cluster with its operator, and a pooler that follows it with the least rights.
pub struct Scene {
    pub operator: Operator,
    pub pooler: Pooler,
    pub kube: Arc<Kube>,
    pub metrics: SocketAddr,
    pub _turn: MutexGuard<'static, ()>,
}

/// A pooler that follows the operator's cluster as `user`.
pub fn following(kube: &Kube, operator: &Operator, user: &str) -> Config {
    let space = &operator.space;
    let cluster = format!("source=cnpg namespace={}", space.name);
    config_for(kube, space, user, &cluster, operator.replicas.port)
}

/// A pooler with a cluster `pg` that it follows as `user`.
pub fn config_for(kube: &Kube, space: &Space, user: &str, cluster: &str, port: u16) -> Config {
    Pooler::config()
        .environment("KUBECONFIG", &kube.kubeconfig_file(user, &space.name).display().to_string())
        .database_line("app = cluster=pg role=rw dbname=app")
        .setting("monitor_user", "app")
        .pool_size(8)
        .sections(&format!("\n[clusters]\npg = {cluster} port={port}\n"))
}

impl Scene {
    pub async fn start(seed: u64) -> Scene {
        Scene::with(seed, |config| config).await
    }

    pub async fn with(seed: u64, change: impl FnOnce(Config) -> Config) -> Scene {
        Scene::at(Kube::shared().await, seed, change).await
    }

    pub async fn at(kube: Arc<Kube>, seed: u64, change: impl FnOnce(Config) -> Config) -> Scene {
        Scene::of(kube, &[], seed, change).await
    }

    /// With these settings of the servers.
    pub async fn of(
        kube: Arc<Kube>,
        settings: &[&str],
        seed: u64,
        change: impl FnOnce(Config) -> Config,
    ) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let space = kube.space().await;
        let replicas = Replicas::of(None, settings).await;
        let operator = Operator::of(replicas, space.clone(), "pg", seed).await;
        space.grant("follower", operator.rules()).await;
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = following(&kube, &operator, "follower");
        let config = config.setting("metrics_listen_addr", &metrics.to_string());
        let pooler = change(config).start().await;
        Scene { operator, pooler, kube, metrics, _turn: turn }
    }

    /// The cluster's row of SHOW CLUSTERS.
    pub async fn shown(&self) -> HashMap<String, String> {
        self.pooler.admin("SHOW CLUSTERS").await.remove(0)
    }

    /// Waits until SHOW CLUSTERS has this state and reason; the metric must agree.
    pub async fn shows(&self, state: &str, why: &str) {
        let mut last = HashMap::new();
        let what = format!("SHOW CLUSTERS has {state}, {why}");
        eventually(&what, async || {
            let shown = self.shown().await;
            let is_it = shown["state"] == state && shown["why"] == why;
            if !is_it && shown["state"] != last.get("state").cloned().unwrap_or_default() {
                println!("  SHOW CLUSTERS: {} {} {}", shown["state"], shown["why"], shown["detail"]);
            }
            last = shown;
            is_it
        })
        .await;
        let metric = format!("pgweir_cluster_state{{cluster=\"pg\",state=\"{state}\"}}");
        assert_eq!(self.metric(&metric).await, 1.0, "{metric}");
    }

    /// Waits until the pooler has seen that both standbys are there.
    pub async fn knows_all(&self) {
        eventually("SHOW MEMBERS has a primary and two standbys", async || {
            let members = self.pooler.admin("SHOW MEMBERS").await;
            members.iter().filter(|member| member["says"] == "standby").count() == 2
        })
        .await;
    }

    /// A sample of the metrics page, by name and labels.
    pub async fn metric(&self, sample: &str) -> f64 {
        let (found, page) = self.sample(sample).await;
        found.unwrap_or_else(|| panic!("no {sample} in\n{page}"))
    }

    /// Waits until a metric has this value: it has none while its server does not say how it is.
    pub async fn metric_becomes(&self, sample: &str, is_it: impl Fn(f64) -> bool) {
        eventually(sample, async || self.sample(sample).await.0.is_some_and(&is_it)).await;
    }

    /// The value of a metric, if it has one, and the page.
    async fn sample(&self, sample: &str) -> (Option<f64>, String) {
        let (_, page) = http::get(self.metrics, "/metrics").await;
        let found = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        (found.map(|value| value.parse().expect("a number")), page)
    }

    /// A client's statement fails after query_wait_timeout, and says why.
    pub async fn is_refused(&self, detail: &str) {
        let mut client = self.pooler.client().await;
        let told = client.query("INSERT INTO ledger VALUES (-2)").await;
        assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
        let said = told.messages.last().expect("it is told").field(b'D');
        let expected = format!("No server could be used within 1 s: {detail}. Cluster \"pg\" is ");
        assert!(said.starts_with(&expected), "{said}");
    }

    /// A client's statement is done.
    pub async fn serves(&self) {
        self.pooler.client().await.query("INSERT INTO ledger VALUES (-3)").await.is("C Z(I)");
    }
}

/// Nothing failed but what was open when the old primary was told to stop.
pub fn only_what_was_open_failed(books: &Books, moves: &[Moved]) {
    let open = |entry: &Entry| {
        moves.iter().any(|moved| entry.began <= moved.stopping && entry.ended >= moved.stopping)
    };
    let failed = books.0.iter().filter(|entry| entry.outcome != Outcome::Acknowledged);
    let wrong: Vec<_> = failed.filter(|entry| !open(entry)).collect();
    assert!(wrong.is_empty(), "they were not open at the fast shutdown: {wrong:#?}\nmoves: {moves:#?}");
}

/// `pgweir switchover`, as a person with the administrator's kubeconfig calls it.
pub struct Call {
    kubeconfig: String,
    hold: String,
    arguments: Vec<String>,
}

impl Call {
    pub fn new(kube: &Kube, space: &Space, to: &str) -> Call {
        let arguments = ["switchover", "pg", "--to", to, "--admin-user", "admin"];
        Call {
            hold: "20".to_owned(),
            kubeconfig: kube.kubeconfig_file("admin", &space.name).display().to_string(),
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    pub fn argument(mut self, name: &str, value: &str) -> Call {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Clients are held for so many seconds, instead of 20.
    pub fn holding(mut self, seconds: &str) -> Call {
        seconds.clone_into(&mut self.hold);
        self
    }

    pub fn pooler(self, port: u16) -> Call {
        self.argument("--pooler", &format!("127.0.0.1:{port}"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        command
            .args(&self.arguments)
            .args(["--hold", &self.hold])
            .env("KUBECONFIG", &self.kubeconfig)
            .env_remove("PGPASSWORD");
        command.kill_on_drop(true);
        command
    }

    /// Whether it succeeded although nobody reads what it says.
    pub async fn run_unread(self) -> bool {
        let mut command = self.command();
        command.stdout(unread()).stderr(unread());
        command.status().await.expect("our own binary runs").success()
    }

    /// Whether it succeeded, and what it said.
    pub async fn run(self) -> (bool, String) {
        let output = self.command().output().await.expect("our own binary runs");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        println!("  {}", text.concat().trim_end().replace('\n', "\n  "));
        (output.status.success(), text.concat())
    }
}
