//! The alerts of `config/monitoring` and the runbook `docs/runbook.md`: they ask for what there is, belong together, and
//! come when they should. promtool is Debian's (`scripts/setup monitoring`).

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgweir::metrics::{self, Kind};
use pgweir::topology::health::HealthState;
use serde_json::Value;
use support::kustomize::text;
use support::process::{memory_directory, run};

const RULES: &str = "config/monitoring/prometheusrule.yaml";
const TESTS: &str = "config/monitoring/rules-test.yaml";
const RUNBOOK: &str = "docs/runbook.md";

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
    let rules = yaml(RULES);
    let expressions = alerts(&rules).into_iter().map(|alert| text(alert, "/expr"));
    let asked: BTreeSet<&str> = expressions.flat_map(names).collect();
    assert!(asked.len() > 15, "they are not found: {asked:?}");
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

// ---- the files ----

/// The one that `scripts/setup monitoring` has put here, or the machine's own.
fn program(name: &str) -> PathBuf {
    let ours = root().join(".cache/prometheus/usr/bin").join(name);
    if ours.exists() { ours } else { name.into() }
}

fn alerts(rules: &Value) -> Vec<&Value> {
    list(rules, "/spec/groups").iter().flat_map(|group| list(group, "/rules")).collect()
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
