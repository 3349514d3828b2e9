//! `pgweir drill` in a real cluster: what it says is what the test has measured itself.

use crate::support;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use pgweir::command::drill::report::Report;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use support::PROMPTLY;
use support::archive::Archive;
use support::kube::Kube;
use support::ledger::{Books, Ledger, Outcome};
use support::operator::Operator;
use support::replicas::Replicas;
use support::runs::chance;
use support::scene::Scene;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// What the drill and the test may differ in: the clients of both are served one after another.
const MARGIN: Duration = Duration::from_millis(400);

/// By how much the clocks of a server and of the test may seem to differ.
const CLOCKS: SignedDuration = SignedDuration::from_millis(10);

/// A drill watches its clients for some seconds before and after what it does.
const ASKED_WITHIN: Duration = Duration::from_secs(30);

/// `pgweir drill`, as a person with the administrator's kubeconfig calls it.
struct Drill {
    arguments: Vec<String>,
    kubeconfig: PathBuf,
    folder: TempDir,
}

/// What it has said, and the report that it has kept.
struct Drilled {
    done: bool,
    said: String,
    report: Option<Report>,
}

impl Drill {
    fn new(scene: &Scene, arguments: &[&str]) -> Drill {
        let space = &scene.operator.space.name;
        let port = scene.pooler.port.to_string();
        let common = [
            "--namespace",
            space,
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--database",
            "app",
            "--user",
            "app",
        ];
        let arguments = [arguments, &["pg", "--clients", "4", "--patience", "60"], &common].concat();
        Drill {
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            kubeconfig: scene.kube.kubeconfig_file("admin", space),
            folder: tempfile::tempdir().expect("there is room"),
        }
    }

    /// A program that starts it.
    fn started_by(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig).env("PGPASSWORD", "app-secret").kill_on_drop(true);
        command
    }

    async fn run(self) -> Drilled {
        let mut command = self.started_by(env!("CARGO_BIN_EXE_pgweir"));
        command.arg("drill").args(&self.arguments).arg("--report").arg(self.folder.path());
        let output = command.stdin(Stdio::null()).output().await;
        let output = output.expect("our own binary runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        println!("  {}", said.trim_end().replace('\n', "\n  "));
        let files = std::fs::read_dir(self.folder.path()).expect("it is there").flatten();
        let json =
            files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "json"));
        let report = json.map(|path| {
            let page = std::fs::read_to_string(path.with_extension("md")).expect("one for people, too");
            let report: Report =
                serde_json::from_str(&std::fs::read_to_string(path).expect("a text")).expect("a report");
            assert_eq!(report.markdown(), page);
            report
        });
        Drilled { done: output.status.success(), said, report }
    }
}

/// A drill at a terminal, where somebody types.
struct Terminal {
    process: Child,
    said: String,
}

impl Terminal {
    fn of(drill: &Drill) -> Terminal {
        let folder = drill.folder.path().display();
        let program = env!("CARGO_BIN_EXE_pgweir");
        let line = format!("exec {program} drill {} --report {folder}", drill.arguments.join(" "));
        let mut command = drill.started_by("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Terminal { process: command.spawn().expect("util-linux is everywhere"), said: String::new() }
    }

    async fn types(&mut self, text: &str) {
        let keyboard = self.process.stdin.as_mut().expect("it has one");
        keyboard.write_all(text.as_bytes()).await.expect("the terminal listens");
    }

    /// Reads on until it has said this.
    async fn says(&mut self, words: &str) {
        let screen = self.process.stdout.as_mut().expect("it has one");
        let mut bytes = [0; 1024];
        while !self.said.contains(words) {
            let count = timeout(ASKED_WITHIN, screen.read(&mut bytes)).await;
            let count =
                count.unwrap_or_else(|_| panic!("not {words:?}, but {}", self.said)).expect("it speaks");
            assert!(count > 0, "not {words:?}, but {}", self.said);
            self.said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}

impl Drilled {
    /// It has gone well, and says of the outage what the books of the test's own clients say.
    fn agrees_with(self, books: &Books, began: Instant) -> Report {
        assert!(self.done, "{}", self.said);
        let report = self.report.expect("a report is kept");
        let said = Duration::from_secs_f64(report.figures.outage_s);
        let measured = books.outage(began, Instant::now());
        println!("  the drill says {said:?}, measured was {measured:?}");
        assert!(said.abs_diff(measured) < MARGIN, "the drill says {said:?}, measured was {measured:?}");
        assert!(report.figures.acknowledged > 100, "{:#?}", report.figures);
        assert_eq!(
            (report.figures.lost, report.figures.lost_rows.len()),
            (0, 0),
            "replication is synchronous"
        );
        assert!(report.timeline.is_sorted_by(|one, next| one.at_s <= next.at_s), "{:#?}", report.timeline);
        report
    }
}

fn has(report: &Report, words: &[&str]) {
    for words in words {
        let is_there = report.timeline.iter().any(|moment| moment.what.contains(words));
        assert!(is_there, "{words:?} in {:#?}", report.timeline);
    }
}

/// A drill leaves nothing behind.
async fn is_clean(scene: &Scene) {
    let table = "SELECT count(*) FROM pg_class WHERE relname = 'pgweir_drill'";
    assert_eq!(scene.operator.replicas.sql(scene.operator.primary, table).await, [["0"]]);
}

async fn scene(what: &str) -> (Scene, Ledger) {
    scene_of(what, &[]).await
}

/// A cluster whose WAL is archived, and that has a base backup.
async fn archived(what: &str) -> (Scene, Ledger, Archive) {
    let archive = Archive::new();
    let settings = archive.settings();
    let (scene, ledger) = scene_of(what, &[&settings[0], &settings[1]]).await;
    archive.back_up(&scene.operator.replicas, 0).await;
    scene.operator.archives_to(&archive).await;
    (scene, ledger, archive)
}

async fn scene_of(what: &str, settings: &[&str]) -> (Scene, Ledger) {
    let (seed, _) = chance(what);
    let scene = Scene::of(Kube::shared().await, settings, seed, |config| config).await;
    scene.knows_all().await;
    scene.operator.replicas.sql(0, "GRANT CREATE ON SCHEMA public TO app").await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), 4, seed);
    ledger.all_write().await;
    (scene, ledger)
}

#[tokio::test]
async fn a_drill_deletes_the_primary_and_says_what_clients_saw() {
    let (mut scene, ledger) = scene("drill failover").await;
    let began = Instant::now();
    let drill = Drill::new(&scene, &["failover", "--yes", "--force"]);
    let (drilled, ()) = tokio::join!(drill.run(), async {
        scene.operator.loses(0).await;
        scene.operator.fail_over().await;
    });
    let books = ledger.stop().await;
    let report = drilled.agrees_with(&books, began);
    assert_eq!(report.primary.0, "pg-1");
    assert_eq!(report.primary.1, scene.operator.pod(scene.operator.primary));
    let figures = &report.figures;
    assert!(figures.outage_s > 0.1 && figures.longest_wait_s > 0.1, "{figures:#?}");
    has(
        &report,
        &["4 clients begin to write", "pod pg-1, the primary, was deleted with no grace", "is the primary"],
    );
    has(&report, &["the first row after it is acknowledged", "every client has written again"]);
    is_clean(&scene).await;
}

#[tokio::test]
async fn a_drill_asks_for_a_switchover_and_says_what_clients_saw() {
    let (mut scene, ledger) = scene("drill switchover").await;
    let began = Instant::now();
    let drill = Drill::new(&scene, &["failover", "--yes", "--force", "--switchover", "pg-2"]);
    let (drilled, _) = tokio::join!(drill.run(), scene.operator.obey());
    let books = ledger.stop().await;
    let report = drilled.agrees_with(&books, began);
    assert_eq!(report.primary, ("pg-1".to_owned(), "pg-2".to_owned()));
    has(&report, &["a switchover from pg-1 to pg-2 was asked for", "the API says that pg-2 is the primary"]);
    is_clean(&scene).await;
}

/// Commits wait while both standbys are gone, and go on when one is back. Nothing is lost.
#[tokio::test]
async fn a_drill_takes_the_standbys_and_says_how_long_commits_have_waited() {
    let (mut scene, ledger) = scene("drill quorum").await;
    let began = Instant::now();
    let drill = Drill::new(&scene, &["quorum", "--yes", "--force"]);
    let (drilled, ()) = tokio::join!(drill.run(), async {
        scene.operator.loses(1).await;
        scene.operator.loses(2).await;
        scene.operator.pod_comes_back(1).await;
        scene.operator.pod_comes_back(2).await;
    });
    let books = ledger.stop().await;
    let report = drilled.agrees_with(&books, began);
    assert_eq!(report.primary, ("pg-1".to_owned(), "pg-1".to_owned()));
    assert!(report.figures.errors.is_empty(), "commits wait, and none fails: {:#?}", report.figures);
    has(
        &report,
        &["the pods of standbys were deleted with no grace: pg-2, pg-3", "every client has written again"],
    );
    is_clean(&scene).await;
}

/// Both clocks at one moment: this thread was not kept waiting between the two.
fn both_clocks() -> (Instant, Timestamp) {
    loop {
        let (here, now) = (Instant::now(), Timestamp::now());
        if here.elapsed() < Duration::from_millis(1) {
            return (here, now);
        }
    }
}

/// What the restored server has of the test's own clients is what was acknowledged before the moment, and nothing that
/// was begun after it.
async fn is_as_of(replicas: &Replicas, number: usize, books: &Books, target_time: &str) {
    let target: Timestamp = target_time.parse().expect("a moment in UTC");
    let (here, now) = both_clocks();
    let date = |moment: Instant| {
        now - SignedDuration::try_from(here.duration_since(moment)).expect("the test is short")
    };
    let mut rows = [Vec::new(), Vec::new()];
    for entry in &books.0 {
        assert_eq!(entry.outcome, Outcome::Acknowledged, "{entry:?}");
        if date(entry.ended) + CLOCKS < target {
            rows[0].extend(entry.rows.clone().map(|row| row.to_string()));
        } else if date(entry.began) > target + CLOCKS {
            rows[1].extend(entry.rows.clone().map(|row| row.to_string()));
        }
    }
    for (rows, there) in rows.iter().zip([rows[0].len(), 0]) {
        assert!(rows.len() > 100, "the clients write all the time");
        let sql = format!("SELECT count(*) FROM ledger WHERE n IN ({})", rows.join(", "));
        assert_eq!(replicas.number(number, &sql).await, there as i64);
    }
}

#[tokio::test]
async fn a_drill_restores_the_moment_before_the_damage_and_clients_can_be_moved_there() {
    let (mut scene, ledger, _archive) = archived("drill pitr").await;
    let port = scene.operator.replicas.port.to_string();
    let began = Instant::now();
    let drill = Drill::new(&scene, &["pitr", "--yes", "--force", "--keep", "--server-port", &port]);
    let (drilled, made) =
        tokio::join!(drill.run(), scene.operator.restores("pg-pitr", |moment| moment.to_owned()));
    let books = ledger.stop().await;
    let said = drilled.said.clone();
    let report = drilled.agrees_with(&books, began);
    let replicas = &scene.operator.replicas;
    let restored = report.restored.clone().expect("a cluster was restored");
    assert_eq!((restored.cluster.as_str(), &restored.target_time), ("pg-pitr", &made.target_time));
    let rows = replicas.number(made.number, "SELECT count(*) FROM pgweir_drill").await as u64;
    assert!(rows > 100, "{restored:?}");
    assert_eq!((restored.rows_then, restored.rows_restored, restored.rows_too_many), (rows, rows, 0));
    assert!(report.figures.acknowledged > rows, "clients have written after the damage, too: {report:#?}");
    let took = Duration::from_secs_f64(restored.restored_s);
    println!("  restored after {took:?}, measured {:?}", made.took);
    assert!(took.abs_diff(made.took) < 2 * MARGIN, "{took:?}, measured {:?}", made.took);
    has(&report, &["all rows of pgweir_drill are deleted", "is archived", "the clients have ended"]);
    has(
        &report,
        &[
            "Cluster pg-pitr is asked for, as of ",
            "pg-pitr: Cluster in healthy state",
            "after archive_timeout",
        ],
    );
    is_as_of(replicas, made.number, &books, &made.target_time).await;
    is_clean(&scene).await;

    // What it offers works as it stands there.
    let offer = said.lines().find_map(|line| line.trim().strip_prefix("pgweir reroute ")).expect("an offer");
    let offer: Vec<&str> = offer.split(' ').collect();
    scene.operator.space.grant_as("restored", "follower", Operator::rules_for("pg-pitr")).await;
    let line =
        format!("[clusters]\npg-pitr = source=cnpg namespace={} port={port}", scene.operator.space.name);
    scene.pooler.edit("[clusters]", &line);
    scene.pooler.admin("RELOAD").await;
    reroute(&scene, &offer).await;
    let mut client = scene.pooler.client().await;
    assert_eq!(client.query("SELECT count(*) FROM pgweir_drill").await.rows(), [[rows.to_string()]]);
    reroute(&scene, &["app", "--from", "pg-pitr", "--to", "pg"]).await;
    let gone = client.query("SELECT count(*) FROM pgweir_drill").await;
    assert!(gone.rows().is_empty(), "the cluster itself has it no more: {gone}");
}

async fn reroute(scene: &Scene, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    let pooler = format!("127.0.0.1:{}", scene.pooler.port);
    command.arg("reroute").args(arguments).args(["--pooler", &pooler, "--admin-user", "admin"]);
    let output = command.kill_on_drop(true).output().await.expect("our own binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An archive that ends too early, or an operator that does not do what it was asked for.
#[tokio::test]
async fn a_drill_says_which_rows_a_restored_cluster_lacks_and_deletes_it() {
    let (mut scene, ledger, _archive) = archived("drill pitr lost").await;
    let replicas = &scene.operator.replicas;
    replicas.sql(0, "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO app").await;
    let port = replicas.port.to_string();
    let arguments = ["pitr", "--yes", "--force", "--restore-as", "older", "--server-port", &port];
    // As long as nobody makes it, it is not there.
    let patience = ["--restore-patience", "3"];
    let drilled = Drill::new(&scene, &[&arguments[..], &patience].concat()).run().await;
    let why = "Cluster older was not there within 3 s: its object has no phase";
    assert!(!drilled.done && drilled.said.contains(why), "{}", drilled.said);
    let report = drilled.report.expect("a report is kept");
    has(&report, &[why]);
    assert_eq!((report.restored, report.figures.lost), (None, 0));
    assert!(scene.operator.clusters().get_opt("older").await.expect("the API answers").is_none());
    is_clean(&scene).await;
    let drill = Drill::new(&scene, &arguments);
    let one_second_early = |moment: &str| {
        let moment: Timestamp = moment.parse().expect("a moment in UTC");
        format!("{}", (moment - SignedDuration::from_secs(1)).strftime("%Y-%m-%d %H:%M:%S.%6f+00"))
    };
    let (drilled, ()) = tokio::join!(drill.run(), async {
        let made = scene.operator.restores("older", one_second_early).await;
        scene.operator.removes(&made).await;
    });
    ledger.stop().await.agree_with(&scene.operator.replicas, 0, &[]).await;
    assert!(!drilled.done && drilled.said.contains(" acknowledged rows are lost: "), "{}", drilled.said);
    let report = drilled.report.expect("a report is kept");
    assert!(report.timeline.iter().all(|moment| !moment.what.contains("archive_timeout")), "{report:#?}");
    let restored = report.restored.expect("a cluster was restored");
    assert!(restored.rows_restored < restored.rows_then && restored.rows_restored > 0, "{restored:?}");
    assert_eq!(report.figures.lost, restored.rows_then - restored.rows_restored);
    is_clean(&scene).await;
}

#[tokio::test]
async fn an_interrupt_ends_a_drill_that_asks_whether_to_keep_the_restored_cluster() {
    let (mut scene, ledger, _archive) = archived("drill pitr asks").await;
    let port = scene.operator.replicas.port.to_string();
    let drill = Drill::new(&scene, &["pitr", "--force", "--restore-as", "asked", "--server-port", &port]);
    let mut terminal = Terminal::of(&drill);
    terminal.says("Type the cluster's name to go on: ").await;
    terminal.types("pg\n").await;
    let made = scene.operator.restores("asked", |moment| moment.to_owned()).await;
    terminal.says("Type \"keep\" to keep Cluster asked").await;
    terminal.types("\x03").await;
    terminal.says("interrupted").await;
    scene.operator.removes(&made).await;
    let ended = timeout(PROMPTLY, terminal.process.wait()).await.expect("nothing is waited for");
    assert!(!ended.expect("it was started").success());
    ledger.stop().await;
    is_clean(&scene).await;
}

#[tokio::test]
async fn a_drill_does_nothing_that_nobody_has_agreed_to() {
    let (scene, ledger) = scene("drill refused").await;
    let drilled = Drill::new(&scene, &["failover", "--force"]).run().await;
    assert!(!drilled.done && drilled.said.contains("nothing was done: nobody can be asked here; say --yes"));
    let drilled = Drill::new(&scene, &["failover", "--yes", "--force", "--switchover", "pg-1"]).run().await;
    assert!(!drilled.done && drilled.said.contains("pg-1 is the primary already"), "{}", drilled.said);
    for (arguments, words) in [
        (&["pitr"][..], "there is no archive to restore it from"),
        (&["pitr", "--restore-as", "pg"], "there is a Cluster pg already: --restore-as takes another name"),
        (&["pitr", "--operator", "patroni"], "pitr asks CloudNativePG for the new cluster"),
    ] {
        let drilled = Drill::new(&scene, &[arguments, &["--yes", "--force"]].concat()).run().await;
        assert!(!drilled.done && drilled.said.contains(words), "{}", drilled.said);
    }
    // All instances of this cluster are on one node.
    let drilled = Drill::new(&scene, &["failover", "--yes"]).run().await;
    assert!(
        !drilled.done && drilled.said.contains("the cluster is not well, --force goes on"),
        "{}",
        drilled.said
    );
    assert!(drilled.said.contains("\n  different_nodes: "), "{}", drilled.said);
    // The table may be another drill's.
    let replicas = &scene.operator.replicas;
    replicas.sql(0, "CREATE TABLE pgweir_drill (other int)").await;
    let drilled = Drill::new(&scene, &["failover", "--yes", "--force"]).run().await;
    assert!(!drilled.done && drilled.said.contains("DROP TABLE pgweir_drill"), "{}", drilled.said);
    assert!(drilled.report.is_none());
    assert_eq!(replicas.sql(0, "SELECT count(*) FROM pgweir_drill").await, [["0"]], "it is still there");
    ledger.stop().await.agree_with(replicas, 0, &[]).await;
}
