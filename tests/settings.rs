//! Every setting of PgBouncer, held to a table: default, bounds, what RELOAD and SET may change, its line in
//! SHOW CONFIG, and the test that shows what it does. The table is `tests/settings.txt`.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::process::{private_directory, reachable, unprivileged};
use support::{Pooler, Raw};

const TABLE: &str = include_str!("settings.txt");
/// Name, default (`-` is NULL) and whether RELOAD may change it, in the order of SHOW CONFIG.
const DEFAULTS: &str = include_str!("../src/config/tests/defaults.txt");
const MAX: i64 = 2_147_483_647;

/// What values a setting takes.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Bool,
    /// A whole number within these bounds.
    Whole(i64, i64),
    /// Seconds, with a fraction or not.
    Seconds,
    /// One of these words.
    Words(Vec<&'static str>),
    Text,
    /// A path, whose file is read by RELOAD or at the start.
    File,
}

struct Row {
    name: &'static str,
    /// PgBouncer 1.25.2 does not show it.
    is_hidden: bool,
    kind: Kind,
    sample: &'static str,
    effect: &'static str,
}

fn rows() -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            let [name, kind, sample, effect] = fields[..] else { panic!("four fields in: {line}") };
            let hidden = kind.strip_prefix("hidden ");
            let mut words = hidden.unwrap_or(kind).split(' ');
            let kind = match words.next().unwrap() {
                "bool" => Kind::Bool,
                "whole" => {
                    let mut bound = || words.next().unwrap().parse().unwrap();
                    Kind::Whole(bound(), bound())
                }
                "seconds" => Kind::Seconds,
                "words" => Kind::Words(words.collect()),
                "text" => Kind::Text,
                "file" => Kind::File,
                other => panic!("{other} in: {line}"),
            };
            Row { name, is_hidden: hidden.is_some(), kind, sample, effect }
        })
        .collect()
}

impl Kind {
    /// Values at its bounds.
    fn right(&self) -> Vec<String> {
        match self {
            Kind::Bool => vec!["0".to_owned(), "1".to_owned()],
            Kind::Whole(lowest, highest) => vec![lowest.to_string(), highest.to_string()],
            Kind::Seconds => vec!["0".to_owned(), "2.5".to_owned(), MAX.to_string()],
            Kind::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
            Kind::Text | Kind::File => Vec::new(),
        }
    }

    /// Values beyond them.
    fn wrong(&self) -> Vec<String> {
        match self {
            Kind::Bool => vec!["maybe".to_owned(), "1.5".to_owned()],
            Kind::Whole(lowest, highest) => {
                vec![(lowest - 1).to_string(), (highest + 1).to_string(), "x".to_owned(), "1.5".to_owned()]
            }
            Kind::Seconds => vec!["-1".to_owned(), "10s".to_owned(), (MAX * 2).to_string()],
            Kind::Words(_) => vec!["nonsense".to_owned()],
            Kind::Text | Kind::File => Vec::new(),
        }
    }
}

/// Value, default and changeability by name, as SHOW CONFIG has them.
async fn shown(console: &mut Raw) -> BTreeMap<String, [String; 3]> {
    let rows = console.query("SHOW CONFIG").await.rows();
    let entry = |row: Vec<String>| (row[0].clone(), [row[1].clone(), row[2].clone(), row[3].clone()]);
    rows.into_iter().map(entry).collect()
}

/// As C prints a number with `%g`.
fn printed(value: &str) -> String {
    match value {
        "2147483647" => "2.14748e+09".to_owned(),
        other => other.to_owned(),
    }
}

#[test]
fn the_table_has_every_setting_of_pgbouncer() {
    let known: Vec<&str> = DEFAULTS.lines().map(|line| line.split('|').next().unwrap()).collect();
    let mut table: Vec<&str> = rows().iter().filter(|row| !row.is_hidden).map(|row| row.name).collect();
    let mut expected = known.clone();
    table.sort_unstable();
    expected.sort_unstable();
    assert_eq!(table, expected);
}

#[tokio::test]
async fn show_config_has_each_setting_with_its_default_and_whether_it_may_change() {
    let pooler = Pooler::config().start().await;
    let rows = pooler.console().await.query("SHOW CONFIG").await.rows();
    for (row, line) in rows.iter().zip(DEFAULTS.lines()) {
        let default = if row[2] == "NULL" { "-" } else { row[2].as_str() };
        assert_eq!(format!("{}|{default}|{}", row[0], row[3]), *line);
    }
    assert!(rows.len() > DEFAULTS.lines().count(), "ours come behind");
}

#[tokio::test]
async fn set_takes_values_within_the_bounds_and_no_others() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    let is_live: BTreeMap<_, _> =
        shown(&mut console).await.into_iter().map(|(name, [_, _, may])| (name, may == "yes")).collect();
    for row in rows() {
        let name = row.name;
        // What would make this very console leave, or read files that are not there.
        let is_risky = name.ends_with("_sslmode") || name == "verbose";
        if is_live.get(name) != Some(&true) || is_risky {
            continue;
        }
        let before = shown(&mut console).await[name][0].clone();
        for value in row.kind.right() {
            let reply = console.query(&format!("SET {name} = '{value}'")).await;
            assert_eq!(reply.count(b'E'), 0, "{name} = {value}: {reply}");
            let expected = if row.kind == Kind::Seconds { printed(&value) } else { value.clone() };
            assert_eq!(shown(&mut console).await[name][0], expected, "{name} = {value}");
        }
        for value in row.kind.wrong() {
            let kept = shown(&mut console).await[name][0].clone();
            let reply = console.query(&format!("SET {name} = '{value}'")).await;
            let error = reply.of(b'E').next().unwrap_or_else(|| panic!("{name} = {value} is taken"));
            assert_eq!((error.field(b'C'), error.field(b'M')), ("08P01".to_owned(), "SET failed".to_owned()));
            assert_eq!(shown(&mut console).await[name][0], kept, "{name} = {value}");
        }
        if before != "NULL" {
            console.query(&format!("SET {name} = '{before}'")).await.succeeds(name);
        }
    }
}

#[test]
fn a_start_with_a_value_beyond_the_bounds_is_refused() {
    let directory = private_directory("weir-settings-");
    let program = reachable(Path::new(env!("CARGO_BIN_EXE_pgweir")), directory.path());
    let ini = directory.path().join("pooler.ini");
    for row in rows() {
        let Some(value) = row.kind.wrong().into_iter().next() else { continue };
        fs::write(&ini, format!("[pgbouncer]\n{} = {value}\n", row.name)).unwrap();
        let output = unprivileged(&program, "KILL").arg(&ini).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{} = {value}", row.name);
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = format!("pooler.ini:2: {} is {value}: it must be ", row.name);
        assert!(said.contains(&wanted), "{said}");
    }
}

#[tokio::test]
async fn reload_changes_what_may_change_and_leaves_the_rest() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    let before = shown(&mut console).await;
    let ini = pooler.directory().join("pooler.ini");
    let mut text = fs::read_to_string(&ini).unwrap();
    let samples: Vec<Row> = rows().into_iter().filter(|row| row.kind != Kind::File).collect();
    for row in &samples {
        text.push_str(&format!("{} = {}\n", row.name, row.sample));
    }
    fs::write(&ini, text).unwrap();
    console.query("RELOAD").await.is("C(RELOAD) Z(I)");
    let after = shown(&mut console).await;
    for row in samples.iter().filter(|row| !row.is_hidden) {
        let [value, _, may] = &after[row.name];
        let expected = if may == "yes" { row.sample } else { before[row.name][0].as_str() };
        assert_eq!(value, expected, "{}", row.name);
        if may == "yes" && row.name != "client_tls_sslmode" {
            assert_ne!(before[row.name][0], row.sample, "{}: the sample shows no change", row.name);
        }
    }
}

#[test]
fn each_setting_names_a_test_that_shows_what_it_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut missing = Vec::new();
    for row in rows() {
        if row.effect.starts_with("- ") {
            continue;
        }
        let (file, function) = row.effect.split_once(':').expect("file:function");
        let text = fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap_or_default();
        if !text.contains(&format!("fn {function}()")) {
            missing.push(format!("{}: {}", row.name, row.effect));
        }
    }
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}
