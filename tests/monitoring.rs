//! The alerts, the dashboard and the runbook of `config/monitoring` and `docs/runbook.md`: they ask for what there is,
//! belong together, and show what happens.
//!
//! promtool and Prometheus are Debian's (`scripts/setup monitoring`). Start at
//! [`every_panel_shows_something_of_a_cluster_under_load_and_in_trouble`].

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgweir::metrics::{self, Kind};
use pgweir::topology::health::HealthState;
use serde_json::{Value, json};
use support::kustomize::text;
use support::ledger::Ledger;
use support::message::query;
use support::process::{free_port, memory_directory, reap, run, spawn};
use support::runs::chance;
use support::scene::Scene;
use support::{Kube, Login, PATIENCE, Pooler, eventually, http};
use tokio::time::{Instant, sleep};

const RULES: &str = "config/monitoring/prometheusrule.yaml";
const TESTS: &str = "config/monitoring/rules-test.yaml";
const DASHBOARD: &str = "config/monitoring/grafana-dashboard.json";
const RUNBOOK: &str = "docs/runbook.md";

/// How often is looked whether the panels have something to show.
const LOOK: Duration = Duration::from_millis(100);

/// What each section of the runbook has, in this order.
const PARTS: [&str; 4] = ["**Meaning.**", "**Evidence.**", "**Do.**", "**Do not.**"];

// ---- the alerts ----

#[test]
fn promtool_finds_each_alert_as_its_tests_say() {
    let directory = memory_directory("weir-rules-");
    let rules = directory.path().join("rules.yaml");
    let tests = directory.path().join("rules-test.yaml");
    // JSON is YAML.
    fs::write(&rules, yaml(RULES)["spec"].to_string()).expect("our own directory");
    fs::write(&tests, read(TESTS)).expect("our own directory");
    for (words, file) in [(["check", "rules"], &rules), (["test", "rules"], &tests)] {
        let mut promtool = Command::new(program("promtool"));
        // Each test makes a database of its own, in a temporary folder.
        promtool.args(words).arg(file).current_dir(directory.path()).env("TMPDIR", directory.path());
        println!("{}", run(promtool));
    }
}

#[test]
fn every_alert_is_tested_both_ways() {
    let tests = yaml(TESTS);
    let looks = || list(&tests, "/tests").iter().flat_map(|one| list(one, "/alert_rule_test"));
    let of = |fires: bool| -> BTreeSet<&str> {
        let those = looks().filter(|look| list(look, "/exp_alerts").is_empty() != fires);
        those.map(|look| text(look, "/alertname")).collect()
    };
    let rules = yaml(RULES);
    let alerts: BTreeSet<&str> = alerts(&rules).iter().map(|alert| text(alert, "/alert")).collect();
    assert!(alerts.len() > 20, "they are not found");
    assert_eq!(of(true), alerts, "those that come (left) and all (right)");
    assert_eq!(of(false), alerts, "those that do not come (left) and all (right)");
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    let (rules, dashboard) = (yaml(RULES), dashboard());
    let mut expressions: Vec<&str> = alerts(&rules).iter().map(|alert| text(alert, "/expr")).collect();
    expressions.extend(questions(&dashboard).iter().map(|question| question.expression));
    let asked: BTreeSet<&str> = expressions.iter().flat_map(|expression| names(expression)).collect();
    assert!(asked.len() > 40, "they are not found: {asked:?}");
    let known: BTreeSet<String> = metrics::ALL.iter().flat_map(series).collect();
    let unknown: Vec<_> = asked.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "there is no metric {unknown:?}");
}

/// The names that a metric's series have.
fn series(metric: &metrics::Metric) -> Vec<String> {
    match metric.kind {
        Kind::Counter | Kind::Gauge => vec![metric.name.to_owned()],
        Kind::Histogram => ["bucket", "sum", "count"].map(|end| format!("{}_{end}", metric.name)).to_vec(),
    }
}

/// The names of our metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pgweir_"))
}

// ---- the runbook ----

#[test]
fn every_alert_and_every_state_has_its_section_and_every_section_is_of_one() {
    let rules = yaml(RULES);
    let alerts: Vec<&str> = alerts(&rules).iter().map(|alert| text(alert, "/alert")).collect();
    let states = HealthState::ALL.map(HealthState::name);
    let mut expected = [alerts, states.to_vec()].concat();
    let runbook = read(RUNBOOK);
    let mut found: Vec<&str> =
        sections(&runbook).iter().flat_map(|section| section.heading.split(", ")).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected, "the headings of {RUNBOOK} (left), and the alerts and states (right)");
}

#[test]
fn every_section_says_what_it_means_what_shows_it_what_to_do_and_what_not() {
    let runbook = read(RUNBOOK);
    for Section { heading, text } in sections(&runbook) {
        let starts = text.lines().filter_map(|line| PARTS.into_iter().find(|part| line.starts_with(part)));
        assert_eq!(starts.collect::<Vec<_>>(), PARTS, "{heading}");
    }
}

#[test]
fn every_alert_names_its_section_and_the_metrics_are_in_its_evidence() {
    let rules = yaml(RULES);
    let runbook = read(RUNBOOK);
    let sections = sections(&runbook);
    for alert in alerts(&rules) {
        let name = text(alert, "/alert");
        let is_its = |section: &&Section<'_>| section.heading.split(", ").any(|word| word == name);
        let section = sections.iter().find(is_its).unwrap_or_else(|| panic!("{name} has no section"));
        let link = format!("{RUNBOOK}#{}", section.heading.replace(", ", "-").to_lowercase());
        assert_eq!(text(alert, "/annotations/runbook"), link, "{name}");
        for metric in names(text(alert, "/expr")) {
            let metric = metric.trim_end_matches("_bucket");
            assert!(
                section.text.contains(metric),
                "{name} goes by {metric}, of which its section says nothing"
            );
        }
    }
}

#[test]
fn every_log_line_of_the_runbook_is_one_of_ours() {
    let runbook = read(RUNBOOK);
    let lines = runbook.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("LOG ").or_else(|| line.strip_prefix("WARNING "))
    });
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() > 8, "they are not found: {lines:?}");
    let written: Vec<String> = logged();
    for line in lines {
        assert!(written.iter().any(|format| fits(line, format)), "nothing writes: {line}");
    }
}

/// The formats of the lines that the code logs.
fn logged() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is readable") {
            let path = entry.expect("the entry is readable").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let sources = files.iter().map(|file| fs::read_to_string(file).expect("sources are UTF-8"));
    let calls = |source: String| -> Vec<String> {
        let after = source.split("tracing::").skip(1);
        let call =
            after.filter(|text| ["info!(", "warn!(", "error!("].iter().any(|word| text.starts_with(word)));
        call.filter_map(|text| text.split('"').nth(1)).map(str::to_owned).collect()
    };
    sources.flat_map(calls).collect()
}

/// Whether a line was made with this format. What is in braces may be anything.
fn fits(line: &str, format: &str) -> bool {
    let first = format.split('{').next().unwrap_or_default();
    let others: Vec<&str> =
        format.split('}').skip(1).map(|piece| piece.split('{').next().unwrap_or(piece)).collect();
    let says_something = first.len() + others.iter().map(|piece| piece.len()).sum::<usize>() > 10;
    let Some(mut rest) = line.strip_prefix(first).filter(|_| says_something) else { return false };
    for piece in &others {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    // Behind the last braces anything may stand.
    rest.is_empty() || format.ends_with('}')
}

/// One part of the runbook.
struct Section<'a> {
    heading: &'a str,
    text: &'a str,
}

/// Those below headings of the second order.
fn sections(runbook: &str) -> Vec<Section<'_>> {
    let parts = runbook.split("\n## ").skip(1);
    let section = |part| {
        let (heading, text) = str::split_once(part, '\n').expect("a heading has a line of its own");
        Section { heading, text }
    };
    parts.map(section).collect()
}

/// What stands in blocks of this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let inside = page.split("\n```").skip(1).step_by(2);
    inside.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

// ---- the dashboard ----

/// A question of the dashboard.
struct Question<'a> {
    panel: &'a str,
    expression: &'a str,
    legend: &'a str,
}

/// What its panels ask, and what marks moments in all of them.
fn questions(dashboard: &Value) -> Vec<Question<'_>> {
    let mut questions = Vec::new();
    for panel in list(dashboard, "/panels").iter().filter(|panel| panel["type"] != "row") {
        let targets = list(panel, "/targets");
        assert!(!targets.is_empty(), "it asks nothing: {panel}");
        questions.extend(targets.iter().map(|target| Question {
            panel: text(panel, "/title"),
            expression: text(target, "/expr"),
            legend: text(target, "/legendFormat"),
        }));
    }
    questions.extend(list(dashboard, "/annotations/list").iter().map(|mark| Question {
        panel: text(mark, "/name"),
        expression: text(mark, "/expr"),
        legend: text(mark, "/titleFormat"),
    }));
    questions
}

#[test]
fn the_dashboard_can_be_imported_anywhere_and_its_panels_have_their_places() {
    let dashboard = dashboard();
    let panels = list(&dashboard, "/panels");
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each has a number of its own");
    let mut taken = BTreeMap::new();
    for panel in panels {
        let title = text(panel, "/title");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        for x in place("x")..place("x") + place("w") {
            assert!(x < 24, "{title} is too wide");
            for y in place("y")..place("y") + place("h") {
                let other = taken.insert((x, y), title);
                assert_eq!(other, None, "{title} lies on another panel");
            }
        }
    }
    // Whose data it shows is chosen at the top.
    let mut found = 0;
    let mut left = vec![&dashboard];
    while let Some(value) = left.pop() {
        if let Some(source) = value.get("datasource") {
            assert_eq!(source, &json!({ "type": "prometheus", "uid": "${datasource}" }));
            found += 1;
        }
        match value {
            Value::Array(list) => left.extend(list),
            Value::Object(map) => left.extend(map.values()),
            _ => {}
        }
    }
    assert!(found > 40, "they are not found");
}

#[tokio::test]
async fn every_panel_shows_something_of_a_cluster_under_load_and_in_trouble() {
    let (seed, _) = chance("dashboard");
    let change = |config: support::pooler::Config| config.setting("query_wait_timeout", "30");
    let mut scene = Scene::of(Kube::shared().await, &["archive_mode=on"], seed, change).await;
    scene.operator.replicas.sql(0, "GRANT pg_monitor TO app").await;
    scene.knows_all().await;
    let prometheus = Prometheus::start(scene.metrics).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), 12, seed);
    ledger.all_write().await;
    prometheus.shows("pgweir_cluster_health{cluster=\"pg\",state=\"healthy\"} == 1").await;
    runbook_sql_runs_at(&scene).await;

    let trouble = Trouble::begin(&scene, &prometheus).await;
    let moved = scene.operator.switch_over(1).await;
    println!("  the primary moved {:?} ago", moved.named.elapsed());
    prometheus.shows("pgweir_cluster_timeline == 2").await;
    commits_are_blocked_for_a_while(&mut scene, &prometheus).await;
    ledger.writes(100).await;
    prometheus.answers_all(&dashboard(), &scene.pooler).await;
    drop(trouble);
    println!("  {}", ledger.stop().await.summary());
}

/// Whoever looks at the runbook may paste this.
async fn runbook_sql_runs_at(scene: &Scene) {
    let runbook = read(RUNBOOK);
    let statements: Vec<&str> =
        blocks(&runbook, "sql").into_iter().flat_map(|block| block.split(";\n")).collect();
    let statements: Vec<&str> = statements.into_iter().map(str::trim).filter(|sql| !sql.is_empty()).collect();
    assert!(statements.len() > 5, "they are not found");
    for sql in statements {
        assert!(sql.starts_with("SELECT "), "this is not only a look: {sql}");
        scene.operator.replicas.sql(0, sql).await;
    }
}

/// What must be wrong for some panels to have something to show.
struct Trouble {
    _pinned: support::Raw,
    _listens: support::Raw,
}

impl Trouble {
    async fn begin(scene: &Scene, prometheus: &Prometheus) -> Trouble {
        let replicas = &scene.operator.replicas;
        let mut pinned = scene.pooler.client().await;
        pinned.query("CREATE TEMPORARY TABLE kept (n int)").await.succeeds("CREATE TEMPORARY TABLE");
        let mut listens = scene.pooler.client().await;
        listens.query("LISTEN news").await.succeeds("LISTEN");
        replicas.sql(0, "SELECT pg_create_physical_replication_slot('kept', true)").await;
        // A file is archived, the next one cannot be.
        for (command, shown) in [
            ("true", "pgweir_member_archived_total > 0"),
            ("false", "pgweir_member_archive_failures_total > 0"),
        ] {
            replicas.sql(0, &format!("ALTER SYSTEM SET archive_command = '{command}'")).await;
            replicas.sql(0, "SELECT pg_reload_conf()").await;
            replicas.sql(0, "SELECT pg_switch_wal()").await;
            prometheus.shows(shown).await;
        }
        replicas.sql(0, "ALTER SYSTEM SET archive_command = 'true'").await;
        replicas.sql(0, "SELECT pg_reload_conf()").await;
        Trouble { _pinned: pinned, _listens: listens }
    }
}

/// Both standbys go, and commits wait, until they are back.
async fn commits_are_blocked_for_a_while(scene: &mut Scene, prometheus: &Prometheus) {
    let replicas = &mut scene.operator.replicas;
    replicas.kill(0);
    replicas.kill(2);
    let mut writer = writes(scene).await;
    prometheus.shows("pgweir_member_sync_waiters > 0").await;
    scene.operator.replicas.restart(0).await;
    writer.ready(1).await.is("C Z(I)");
    scene.operator.replicas.restart(2).await;
    scene.operator.replicas.are_streaming(2).await;
}

/// A client whose commit nobody waits for yet.
async fn writes(scene: &Scene) -> support::Raw {
    let mut writer = scene.pooler.client().await;
    writer.send(query("INSERT INTO ledger VALUES (-1)")).await;
    writer
}

// ---- that night ----

/// Of three instances with `ANY 1` both standbys are gone. Commits hang as they were configured to, and whatever on-call
/// looks at says so: the state, the alert, what waiting clients are told, and the log of that.
#[tokio::test]
async fn the_night_of_the_blocked_quorum_is_said_to_be_by_design_and_nothing_is_lost() {
    const WRITERS: usize = 4;
    const SERVERS: usize = 8;
    let (seed, _) = chance("night");
    let change = |config: support::pooler::Config| config.setting("query_wait_timeout", "3");
    let mut scene = Scene::of(Kube::shared().await, &[], seed, change).await;
    scene.operator.replicas.sql(0, "GRANT pg_monitor TO app").await;
    scene.knows_all().await;
    let prometheus = Prometheus::start(scene.metrics).await;
    let mut ledger = Ledger::start(&scene.pooler.tcp(), WRITERS, seed);
    ledger.all_write().await;
    prometheus.shows("pgweir_cluster_health{cluster=\"pg\",state=\"healthy\"} == 1").await;
    let alerts = "ALERTS{alertname=\"PgweirCommitsBlocked\",alertstate=\"firing\",cluster=\"pg\"}";
    prometheus.shows(&format!("absent({alerts})")).await;

    scene.operator.replicas.kill(1);
    scene.operator.replicas.kill(2);
    becomes(&scene, "commits_blocked_on_sync_quorum").await;
    let shown = scene.shown().await;
    assert!(shown["evidence"].starts_with("pg-1: 0 of 1 required synchronous standbys stream"), "{shown:?}");
    assert!(shown["advice"].starts_with("By design, not an outage"), "{shown:?}");
    assert!(!ledger.writes_within(Duration::from_secs(2)).await, "it is on one server only");
    let mut reader = scene.pooler.client().await;
    reader.query("SELECT count(*) > 0 FROM ledger").await.is("T D(t) C(SELECT 1) Z(I)");
    prometheus.shows(alerts).await;
    let firing = prometheus.ask("/api/v1/alerts", &[]).await;
    let is_it = |alert: &&Value| alert["labels"]["alertname"] == "PgweirCommitsBlocked";
    let alert = list(&firing, "/alerts").iter().find(is_it).expect("it is there still");
    let summary = text(alert, "/annotations/summary");
    assert!(summary.contains("designed behaviour, not an outage"), "{summary}");
    println!("  {summary}\n  {}", text(alert, "/annotations/description"));

    // When commits hold all servers, whoever waits behind them is told, too, and the log says what.
    let mut held = Vec::new();
    for _ in WRITERS..SERVERS {
        held.push(writes(&scene).await);
    }
    eventually("commits hold all servers", async || scene.pooler.pool("sv_active").await == SERVERS as u32)
        .await;
    let told = writes(&scene).await.rest().await;
    assert_eq!(told.farewell(), "FATAL 08P01 query_wait_timeout");
    let last = told.messages.last().expect("it is told");
    let why = "Cluster \"pg\" is commits_blocked_on_sync_quorum (by design): pg-1: 0 of 1 required";
    assert!(last.field(b'D').contains(why), "{}", last.field(b'D'));
    assert!(last.field(b'H').starts_with("By design, not an outage"), "{}", last.field(b'H'));
    scene
        .pooler
        .logs(" pooler error: query_wait_timeout: No server connection became free within 3 s. ")
        .await;
    let log = scene.pooler.log();
    let line = log.lines().find(|line| line.contains(" pooler error: query_wait_timeout: "));
    assert!(line.is_some_and(|line| line.contains(why)), "{log}");

    // One standby is enough, and nobody has to be told.
    scene.operator.replicas.restart(1).await;
    for mut writer in held {
        writer.ready(1).await.is("C Z(I)");
    }
    ledger.writes(100).await;
    becomes(&scene, "healthy").await;
    prometheus.shows(&format!("absent({alerts})")).await;
    ledger.stop().await.agree_with(&scene.operator.replicas, 0, &[]).await;
    let written = "SELECT count(*) FROM ledger WHERE n = -1";
    assert_eq!(scene.operator.replicas.number(0, written).await, (SERVERS - WRITERS) as i64);
}

async fn becomes(scene: &Scene, health: &str) {
    eventually(&format!("the cluster is {health}"), async || scene.shown().await["health"] == health).await;
}

// ---- Prometheus ----

/// A real one, that scrapes a pooler each second and knows our alerts. It ends with its value.
struct Prometheus {
    port: u16,
    child: Child,
    started: f64,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    async fn start(pooler: SocketAddr) -> Prometheus {
        let directory = memory_directory("weir-prometheus-");
        let file = |name: &str| directory.path().join(name);
        let mut rules = yaml(RULES)["spec"].clone();
        let groups = rules["groups"].as_array_mut().expect("groups").iter_mut();
        for rule in groups.flat_map(|group| group["rules"].as_array_mut().expect("rules")) {
            // promtool has seen when they come; here they come at once.
            rule.as_object_mut().expect("a rule").remove("for");
        }
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{ "job_name": "pgweir", "static_configs": [{ "targets": [pooler.to_string()] }] }],
        });
        fs::write(file("rules.yaml"), rules.to_string()).expect("our own directory");
        fs::write(file("prometheus.yaml"), config.to_string()).expect("our own directory");
        let port = free_port();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program("prometheus"));
        command.arg(format!("--config.file={}", file("prometheus.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", file("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.arg("--log.level=warn").stdin(Stdio::null()).stdout(Stdio::null());
        let mut prometheus =
            Prometheus { port, child: spawn(command), started: now(), _directory: directory };
        eventually("Prometheus is ready", async || {
            assert!(matches!(prometheus.child.try_wait(), Ok(None)), "Prometheus has ended");
            http::try_get(("127.0.0.1", port), "/-/ready").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
        prometheus
    }

    /// Waits until the expression has a result.
    async fn shows(&self, expression: &str) {
        eventually(&format!("Prometheus shows {expression}"), async || {
            let found = self.ask("/api/v1/query", &[("query", expression)]).await;
            !list(&found, "/result").is_empty()
        })
        .await;
    }

    /// Waits until each question of the dashboard, and each of its variables, has had an answer since the
    /// start.
    async fn answers_all(&self, dashboard: &Value, pooler: &Pooler) {
        for (variable, expected) in [("cluster", "pg"), ("database", "app")] {
            let of = list(dashboard, "/templating/list").iter().find(|one| one["name"] == variable);
            let query = text(of.expect("a variable"), "/query/query");
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (metric, label) = inside.and_then(|inside| inside.split_once(", ")).expect("label_values");
            let values = self.ask(&format!("/api/v1/label/{label}/values"), &[("match[]", metric)]).await;
            assert!(values.as_array().expect("a list").contains(&json!(expected)), "{query}: {values}");
        }
        let mut open = questions(dashboard);
        let count = open.len();
        assert!(count > 50, "they are not found");
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            // A rate needs a second one.
            pooler.refuses(&Login::new("app", "nowhere")).await;
            let mut left = Vec::new();
            for question in open {
                if !self.answers(&question).await {
                    left.push(question);
                }
            }
            open = left;
            if open.is_empty() {
                break;
            }
            let shown: Vec<_> = open.iter().map(|one| format!("{}: {}", one.panel, one.expression)).collect();
            assert!(Instant::now() < deadline, "these show nothing:\n{}", shown.join("\n"));
            sleep(LOOK).await;
        }
        println!("  {count} questions of the dashboard have answers");
    }

    /// Whether a question has an answer at some moment since the start, and its legend something to say.
    async fn answers(&self, question: &Question<'_>) -> bool {
        let mut expression = question.expression.to_owned();
        for (variable, value) in
            [("$__rate_interval", "5s"), ("$__interval", "5s"), ("$cluster", "pg"), ("$database", ".*")]
        {
            expression = expression.replace(variable, value);
        }
        assert!(!expression.contains('$'), "a variable that is not known here: {expression}");
        let (start, end) = (self.started.to_string(), now().to_string());
        let range = [("query", expression.as_str()), ("start", &start), ("end", &end), ("step", "1")];
        let found = self.ask("/api/v1/query_range", &range).await;
        let is_number = |sample: &Value| sample[1].as_str().is_some_and(|value| value != "NaN");
        let has_data = |series: &&Value| list(series, "/values").iter().any(is_number);
        let Some(series) = list(&found, "/result").iter().find(has_data) else {
            return false;
        };
        for label in question.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            let has_it = series["metric"].get(label).is_some();
            assert!(has_it, "{}: the legend {} of {series}", question.panel, question.legend);
        }
        true
    }

    /// What the API says to these parameters.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let pairs: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
        let path = format!("{path}?{}", pairs.join("&"));
        let (status, body) = http::get(("127.0.0.1", self.port), &path).await;
        assert_eq!(status, 200, "{parameters:?}: {body}");
        let mut answer: Value = serde_json::from_str(&body).expect("JSON");
        answer["data"].take()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        support::process::signal(self.child.id(), "TERM");
        reap(&mut self.child, PATIENCE);
    }
}

/// For an address: each byte that may mean something there as a number.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Seconds of Unix time.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}

// ---- the files ----

/// The one that `scripts/setup monitoring` has put here, or the machine's own.
fn program(name: &str) -> PathBuf {
    let ours = root().join(".cache/prometheus/usr/bin").join(name);
    if ours.exists() { ours } else { name.into() }
}

fn alerts(rules: &Value) -> Vec<&Value> {
    list(rules, "/spec/groups").iter().flat_map(|group| list(group, "/rules")).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap_or_else(|error| panic!("{DASHBOARD}: {error}"))
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The list at a JSON pointer.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no list at {pointer} of {value}"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
