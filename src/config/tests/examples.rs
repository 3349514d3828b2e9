//! The examples in `config/` are complete and true: every setting with its default, every key.

use super::*;
use crate::config::settings::SETTINGS;

#[test]
fn the_examples_load() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let load = |name: &str| {
        let path = root.join(name);
        let text = fs::read_to_string(&path).unwrap();
        let users = root.join("userlist.txt").display().to_string();
        Config::from_text(&path, &text.replace("config/userlist.txt", &users), &nothing).unwrap()
    };
    for config in [load("pgbouncer.ini"), load("pgweir.toml")] {
        assert_eq!(config.warnings, []);
        assert_eq!(config.auth_users.len(), 2);
        assert!(config.databases.contains_key("app") && config.any_database.is_some());
        assert_eq!(config.settings.pool_mode, PoolMode::Transaction);
    }
    assert_eq!(load("pgbouncer.ini").databases, load("pgweir.toml").databases);
    assert_eq!(load("pgbouncer.ini").users, load("pgweir.toml").users);
}

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)).unwrap()
}

/// The text with every line in force that is only shown: those with this mark and no space behind it.
fn with_all_in_force(text: &str, mark: char) -> String {
    let in_force = |line: &str| match line.strip_prefix(mark) {
        Some(rest) if !rest.starts_with([mark, ' ']) => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|line| in_force(line) + "\n").collect()
}

/// Value and whether it is only shown, of a setting's one line.
fn line_of<'a>(text: &'a str, mark: char, name: &str) -> (&'a str, bool) {
    let value = |line: &'a str| line.strip_prefix(name)?.trim_start().strip_prefix('=').map(str::trim);
    let found = text.lines().filter_map(|line| match line.strip_prefix(mark) {
        Some(shown) => value(shown).map(|value| (value, true)),
        None => value(line).map(|value| (value, false)),
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 1, "lines of {name}: {found:?}");
    found[0]
}

#[test]
fn the_ini_shows_every_setting_of_pgbouncer_with_its_default() {
    let all = text("pgbouncer.ini");
    let (_, settings) = all.split_once("\n[pgbouncer]\n").unwrap();
    for setting in SETTINGS {
        if setting.origin == Origin::Ours {
            let variable = format!(";; PGWEIR_{}=", setting.name.to_uppercase());
            assert_eq!(settings.matches(&variable).count(), 1, "{variable}");
            continue;
        }
        let (value, only_shown) = line_of(settings, ';', setting.name);
        if let Some(default) = (setting.default)().filter(|_| only_shown) {
            assert_eq!(value, default, "{}", setting.name);
        }
    }
}

#[test]
fn the_toml_shows_every_setting_with_its_default() {
    let all = text("pgweir.toml");
    let (settings, _) = all.split_once("\n[databases]\n").unwrap();
    for setting in SETTINGS {
        let (value, only_shown) = line_of(settings, '#', setting.name);
        // Their defaults are the machine's, and none.
        let is_example = ["workers", "metrics_listen_addr"].contains(&setting.name);
        if let Some(default) = (setting.default)().filter(|_| only_shown && !is_example) {
            let shown = toml(&format!("[pgweir]\n{} = {value}\n", setting.name)).unwrap();
            let known = ini(&format!("[pgbouncer]\n{} = {default}\n", setting.name)).unwrap();
            assert_eq!(setting.print(&shown.settings), setting.print(&known.settings), "{}", setting.name);
        }
    }
}

#[test]
fn every_line_of_the_examples_is_right_when_it_is_in_force() {
    let both = [
        ini(&with_all_in_force(&text("pgbouncer.ini"), ';')).unwrap(),
        toml(&with_all_in_force(&text("pgweir.toml"), '#')).unwrap(),
    ];
    for config in &both {
        assert_eq!(config.databases.len(), 2);
        assert_eq!(config.peers.len(), 1);
    }
    let last = |config: &Config| config.users["example"].clone();
    assert_eq!(last(&both[1]).client_idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn every_key_of_an_entry_is_shown() {
    let (ini, toml) = (text("pgbouncer.ini"), text("pgweir.toml"));
    // PgBouncer would refuse them, and with them the file.
    let ours = ["cluster", "role"];
    let (databases, users, peers) = (Database::key_names(), User::key_names(), Peer::key_names());
    for key in databases.iter().chain(&users).filter(|key| !ours.contains(key)) {
        assert!(ini.contains(&format!(";example = {key}=")), "{key}");
    }
    for key in &peers {
        assert!(
            ini.lines().any(|line| line.starts_with(";1 = ") && line.contains(&format!("{key}="))),
            "{key}"
        );
    }
    for key in databases.iter().chain(&users).chain(&peers).chain(&Cluster::key_names()) {
        assert!(toml.lines().any(|line| line.starts_with(&format!("#{key} = "))), "{key}");
    }
}
