//! The floors of the house, kept honest: who may import whom, and which dependency lives where.
//!
//! A single crate keeps its layers only if a test does. This one reads the sources as tokens (no
//! comments, no strings, nothing under `#[cfg(test)]`), collects every path in them, and holds
//! them against the three tables below. Start at [`violations`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The floors, lowest first. A module imports only from its own row and the rows before it, and
/// never in a circle. The longest name counts: `pool::state` is not `pool`.
const FLOORS: &[(u8, &[&str])] = &[
    (0, &["error", "metrics", "wire", "config", "log"]),
    (1, &["sql", "protocol", "auth", "topology", "route", "pool::state"]),
    (2, &["net", "server", "pool", "topology::kube"]),
    (3, &["admin"]),
    (3, &["session"]),
    (3, &["worker"]),
    (3, &["limits"]),
    (3, &["listener"]),
    (3, &["follow"]),
    (4, &["process"]),
    (4, &["command"]),
    (4, &["main"]),
];

/// What floors 0 and 1 never say: no runtime, no socket, no clock, no chance, nothing asynchronous.
const PURE_FLOORS_NEVER_SAY: &[&str] = &[
    "async",
    "await",
    "tokio::",
    "rustls::",
    "kube::",
    "socket2::",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "::now(",
    "::elapsed(",
    "rand::rng",
    "rand::random",
];

/// Dependencies with a home: replacing one touches its home and nothing else.
const HOMES: &[(&str, &[&str])] = &[
    ("aho-corasick", &["sql"]),
    ("axum", &["admin"]),
    ("base64", &["auth"]),
    ("bitflags", &["sql", "protocol"]),
    ("clap", &["command", "main"]),
    ("dashmap", &["protocol", "session"]),
    ("daemonize", &["process"]),
    ("futures-util", &["net", "topology::kube"]),
    ("hickory-resolver", &["net"]),
    ("hmac", &["auth"]),
    ("http-body-util", &["command"]),
    ("hyper", &["command", "process"]),
    ("hyper-util", &["command", "process"]),
    ("k8s-openapi", &["topology", "topology::kube"]),
    ("kube", &["topology::kube"]),
    ("jiff", &["log", "admin", "session", "process", "command"]),
    ("ldap3_proto", &["auth", "net"]),
    ("libc", &["listener", "worker"]),
    ("listenfd", &["process"]),
    ("lru", &["protocol"]),
    ("md-5", &["auth"]),
    ("memchr", &["sql"]),
    ("metrics", &["metrics", "admin"]),
    ("metrics-exporter-prometheus", &["metrics"]),
    ("nix", &["listener", "net", "session", "process"]),
    ("nonstick", &["session"]),
    ("pbkdf2", &["auth"]),
    ("pgwire", &["wire", "auth"]),
    ("rustix", &["command", "limits", "net", "process"]),
    ("rustls", &["net"]),
    ("sd-notify", &["process"]),
    ("sha2", &["auth", "net"]),
    ("slab", &["net", "session"]),
    ("socket2", &["net", "listener"]),
    ("stringprep", &["auth"]),
    ("subtle", &["auth"]),
    ("tempfile", &["command"]),
    ("syslog-tracing", &["log"]),
    ("tokio-util", &["net"]),
    ("toml", &["config"]),
    ("webpki", &["net"]),
    ("x509-parser", &["net"]),
    ("tracing-subscriber", &["log"]),
];

/// Dependencies that any module may use (floors 0 and 1 still name no runtime).
const COMMON: &[&str] =
    &["arc-swap", "bytes", "parking_lot", "rand", "serde", "serde_json", "thiserror", "tokio", "tracing"];

#[test]
fn every_module_imports_only_from_the_floors_below() {
    let sources = sources();
    assert!(!sources.is_empty(), "no sources found below src/");
    let violations = violations(&sources);
    assert!(violations.is_empty(), "the floors do not hold:\n  {}", violations.join("\n  "));
}

#[test]
fn every_dependency_has_one_home_or_is_common() {
    let manifest = manifest();
    let used: BTreeSet<&str> =
        manifest["dependencies"].as_table().expect("a table").keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = HOMES.iter().map(|(name, _)| *name).chain(COMMON.iter().copied()).collect();
    assert_eq!(used, known, "Cargo.toml (left) and the tables HOMES and COMMON (right) differ");
}

#[test]
fn every_file_of_tests_is_run() {
    let manifest = manifest();
    let targets = manifest["test"].as_array().expect("a list").iter();
    let mut run: BTreeSet<String> =
        targets.map(|target| target["name"].as_str().expect("a name").to_owned()).collect();
    for program in ["integration", "measured"] {
        let text = fs::read_to_string(root().join(format!("tests/{program}.rs"))).expect("it is readable");
        let modules = text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        run.extend(modules.filter(|module| *module != "support").map(str::to_owned));
    }
    let entries = fs::read_dir(root().join("tests")).expect("the folder is readable");
    let names = entries.map(|entry| entry.expect("the entry is readable").file_name());
    let there: BTreeSet<String> =
        names.filter_map(|name| Some(name.to_str()?.strip_suffix(".rs")?.to_owned())).collect();
    assert_eq!(
        there, run,
        "the files of tests/ (left), and those that Cargo.toml and its targets name (right)"
    );
}

#[test]
fn a_planted_violation_is_found() {
    let check = |file: &str, text: &str, expected: &[&str]| {
        let found = violations(&[(file.to_owned(), text.to_owned())]);
        assert_eq!(found, expected, "in {file}: {text}");
    };
    check("wire/mod.rs", "use crate::error::SqlError;", &[]);
    check("wire/mod.rs", "use crate::pool::Pool;", &["wire/mod.rs: wire imports pool"]);
    check(
        "wire/mod.rs",
        "use crate::{error, pool::{state::PoolState}};",
        &["wire/mod.rs: wire imports pool::state"],
    );
    check(
        "wire/mod.rs",
        "fn f(p: &crate::server::ServerConnection) {}",
        &["wire/mod.rs: wire imports server"],
    );
    check("pool/state.rs", "use super::Pool;", &["pool/state.rs: pool::state imports pool"]);
    check("pool/mod.rs", "mod state; use state::PoolState; use self::state::Slot;", &[]);
    check("admin/show.rs", "use crate::session::Session;", &["admin/show.rs: admin imports session"]);
    check("session/relay.rs", "use crate::admin::Table; use super::Session;", &[]);
    check("main.rs", "use pgweir::listener::Listener; use clap::Parser;", &[]);
    check("cellar.rs", "", &["cellar.rs: module cellar has no floor: add it to FLOORS"]);
    check("wire/mod.rs", "// use crate::pool::Pool;\n/* a /* b */ crate::pool::P */", &[]);
    check("wire/mod.rs", r##"const A: &str = "\" crate::pool::P"; const B: &str = r#"crate::pool"#;"##, &[]);
    check("wire/mod.rs", "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' || c == 'x' }", &[]);
    check("wire/mod.rs", "#[cfg(test)]\nmod tests { use crate::pool::Pool; fn f() {} }", &[]);
    check(
        "wire/mod.rs",
        "#[cfg(test)] use crate::pool::Pool; use crate::net::Stream;",
        &["wire/mod.rs: wire imports net"],
    );
    check("route.rs", "fn f() { Instant::now(); }", &["route.rs: floor 1 says `::now(`"]);
    check("sql.rs", "async fn f() {}", &["sql.rs: floor 1 says `async`"]);
    check(
        "error.rs",
        "use tokio::net::TcpStream;",
        &["error.rs: floor 0 says `tokio::`", "error.rs: floor 0 says `TcpStream`"],
    );
    check("net/mod.rs", "use tokio::net::TcpStream;", &[]);
    check("server.rs", "use pgwire::messages::Startup;", &["server.rs: pgwire lives in wire, auth"]);
    check("auth/mod.rs", "use md5::Digest;", &[]);
    check("server.rs", "use md5::Digest;", &["server.rs: md-5 lives in auth"]);
    check("server.rs", "use crate::metrics::Counter;", &[]);
    check("server.rs", "use metrics::counter;", &["server.rs: metrics lives in metrics, admin"]);
}

#[test]
fn a_planted_circle_is_found() {
    let plant = |file: &str, text: &str| (file.to_owned(), text.to_owned());
    let line = [plant("net.rs", ""), plant("server.rs", "use crate::net::Stream;")];
    assert_eq!(violations(&line), Vec::<String>::new());
    let circle = [
        plant("net.rs", "use crate::pool::Pool;"),
        plant("server.rs", "use crate::net::Stream;"),
        plant("pool/mod.rs", "use crate::server::ServerConnection;"),
    ];
    assert_eq!(violations(&circle), ["circle: net -> pool -> server -> net"]);
}

/// Everything that is wrong with these files (path below src/, text), as lines for people.
fn violations(sources: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, text) in sources {
        let own_path = module_path(file);
        if own_path.is_empty() {
            continue; // lib.rs declares the modules, and re-exports from any floor
        }
        let Some(own) = home_of(&own_path) else {
            found.push(format!("{file}: module {} has no floor: add it to FLOORS", own_path[0]));
            continue;
        };
        let tokens = without_tests(tokens(text));
        for path in paths(&tokens) {
            match resolve(&own_path, &path) {
                Reference::Module(module) if module != own => {
                    imports.entry(own).or_default().insert(module);
                    if row(module) > row(own) {
                        found.push(format!("{file}: {own} imports {module}"));
                    }
                }
                Reference::Module(_) => {}
                Reference::Crate(name) => found.extend(away_from_home(file, own, name)),
            }
        }
        found.extend(impure_words(file, own, &tokens));
    }
    found.extend(circle(&imports));
    found
}

/// What a path in the source refers to: a module of ours, or (its head) somebody else's crate.
enum Reference<'a> {
    Module(&'static str),
    Crate(&'a str),
}

/// Follows `crate`, `self`, `super` and the names of child modules, as the compiler does.
fn resolve<'a>(own: &[String], path: &'a [String]) -> Reference<'a> {
    let mut base = own.to_vec();
    let mut rest = path;
    while let Some(head) = rest.first() {
        match head.as_str() {
            "crate" => base.clear(),
            "pgweir" if own == ["main"] => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        rest = &rest[1..];
    }
    let named_by_keyword = rest.len() < path.len();
    let depth = base.len();
    base.extend_from_slice(rest);
    match home_of(&base) {
        Some(module) if named_by_keyword || module.split("::").count() > depth => Reference::Module(module),
        _ => Reference::Crate(path[0].as_str()),
    }
}

/// The module of [`FLOORS`] that this path lies in: the longest that is a prefix of it.
fn home_of(path: &[String]) -> Option<&'static str> {
    let modules = FLOORS.iter().flat_map(|(_, modules)| modules.iter().copied());
    let is_prefix = |module: &&str| {
        let mut path = path.iter();
        module.split("::").all(|part| path.next().is_some_and(|name| name == part))
    };
    modules.filter(is_prefix).max_by_key(|module| module.len())
}

/// The line of [`FLOORS`] a module stands on.
fn row(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|(_, modules)| modules.contains(&module))
        .expect("home_of() returns only modules of FLOORS")
}

fn away_from_home(file: &str, own: &str, name: &str) -> Option<String> {
    let as_named_in_code = |package: &str| match package {
        "md-5" => "md5".to_owned(),
        _ => package.replace('-', "_"),
    };
    let (package, homes) = HOMES.iter().find(|(package, _)| as_named_in_code(package) == name)?;
    let at_home = homes.contains(&own);
    (!at_home).then(|| format!("{file}: {package} lives in {}", homes.join(", ")))
}

fn impure_words(file: &str, own: &str, code: &[String]) -> Vec<String> {
    let floor = FLOORS[row(own)].0;
    if floor > 1 {
        return Vec::new();
    }
    let said = |words: &&&str| {
        let words = tokens(words);
        code.windows(words.len()).any(|window| window == words)
    };
    let report = |words: &&str| format!("{file}: floor {floor} says `{words}`");
    PURE_FLOORS_NEVER_SAY.iter().filter(said).map(report).collect()
}

/// The first circle among the imports, starting at its alphabetically first module.
fn circle(imports: &BTreeMap<&str, BTreeSet<&str>>) -> Option<String> {
    fn walk<'a>(
        imports: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        trail: &mut Vec<&'a str>,
        at: &'a str,
    ) -> bool {
        if trail.contains(&at) {
            trail.push(at);
            return at == trail[0];
        }
        trail.push(at);
        let next = imports.get(at).into_iter().flatten();
        for module in next {
            let length = trail.len();
            if walk(imports, trail, module) {
                return true;
            }
            trail.truncate(length);
        }
        false
    }
    imports.keys().find_map(|start| {
        let mut trail = Vec::new();
        walk(imports, &mut trail, start).then(|| format!("circle: {}", trail.join(" -> ")))
    })
}

/// `pool/state.rs` is `pool::state`, `pool/mod.rs` is `pool`, `lib.rs` is the root.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(String::from).collect();
    if path.last().is_some_and(|name| name == "mod" || name == "lib") {
        path.pop();
    }
    path
}

/// Every path of two names or more, and every `use`, with its braces expanded.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts_path = is_name(&tokens[at])
            && (tokens.get(at + 1).is_some_and(|next| next == "::") || at > 0 && tokens[at - 1] == "use");
        if starts_path {
            at = path_tree(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads `a::b::{c, d::e}` from `at`, adds each path with its prefix, and returns where it ends.
fn path_tree(tokens: &[String], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token == text);
    let mut path = prefix.to_vec();
    while tokens.get(at).is_some_and(|token| is_name(token)) {
        path.push(tokens[at].clone());
        at += 1;
        if !is(at, "::") {
            found.push(path);
            return at;
        }
        at += 1;
    }
    if !is(at, "{") {
        found.push(path); // `a::*`, or the generics of `a::<T>`
        return at;
    }
    at += 1;
    while at < tokens.len() && !is(at, "}") {
        at = path_tree(tokens, at, &path, found).max(at + 1);
        while at < tokens.len() && !is(at, ",") && !is(at, "}") {
            at += 1; // `as other_name`
        }
        at += usize::from(is(at, ","));
    }
    at + 1
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_') && token != "use"
}

/// Leaves out each item under `#[cfg(test)]`: up to its `;`, or to the end of its braces.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].iter().take(CFG_TEST.len()).eq(CFG_TEST.iter()) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += CFG_TEST.len();
        let mut depth = 0_usize;
        while at < tokens.len() {
            let token = tokens[at].as_str();
            at += 1;
            match token {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && (token == "}" || token == ";") {
                break;
            }
        }
    }
    kept
}

/// Names, `::` and single signs. Comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if is_name(&rest[..first.len_utf8()]) || first.is_ascii_digit() {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of the block comment that the text begins with; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let (step, change) = match text.as_bytes().get(at..at + 2) {
            Some(b"/*") => (2, 1),
            Some(b"*/") => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string, raw string or character that the text begins with, if it does.
fn literal(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c']);
    let skipped = text.len() - body.len();
    if skipped > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let inner = raw[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = inner.find(&close).map_or(inner.len(), |end| end + close.len());
        return Some(skipped + 1 + hashes + 1 + end);
    }
    let quote = body.chars().next().filter(|quote| "\"'".contains(*quote))?;
    if quote == '\'' && !is_character(body) {
        return None; // a lifetime
    }
    let mut characters = body.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return Some(skipped + at + 1);
        }
    }
    Some(text.len())
}

/// Tells `'a'` and `'\n'` from the lifetime `'a`.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    characters.next() == Some('\\') || characters.next() == Some('\'')
}

/// Every Rust file below src/, as its path there and its text.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is readable") {
            let path = entry.expect("the entry is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let file = path.strip_prefix(&src).expect("found below src");
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                found.push((file.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    found.sort();
    found
}

fn manifest() -> toml::Table {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is readable");
    text.parse().expect("cargo has parsed it too")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
