//! What the settings promise, in tables: defaults, every kind of wrong value, precedence,
//! includes, reload, and that ini and TOML mean the same.

mod clusters;
mod examples;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::entry::{Entry, Section};
use super::*;

/// PgBouncer's settings as its `SHOW CONFIG` prints them: name, default (`-` is NULL), changeable.
const DEFAULTS: &str = include_str!("tests/defaults.txt");

fn nothing(_: &str) -> Option<String> {
    None
}

fn ini(text: &str) -> Result<Config, ConfigError> {
    Config::from_text(Path::new("a.ini"), text, &nothing)
}

fn toml(text: &str) -> Result<Config, ConfigError> {
    Config::from_text(Path::new("a.toml"), text, &nothing)
}

/// The one error line of the text.
fn error(result: Result<Config, ConfigError>) -> String {
    result.expect_err("an error").to_string()
}

fn value(config: &Config, key: &str) -> Option<String> {
    config.show().into_iter().find(|row| row.key == key).expect("a shown setting").value
}

#[test]
fn defaults_order_and_changeability_are_pgbouncers() {
    let shown = ini("[pgbouncer]").unwrap().show();
    let lines: Vec<_> = DEFAULTS.lines().collect();
    for (line, row) in lines.iter().zip(&shown) {
        let default = row.default.as_deref().unwrap_or("-");
        let changeable = if row.changeable { "yes" } else { "no" };
        assert_eq!(*line, format!("{}|{default}|{changeable}", row.key));
        let printed = match (row.key, row.value.as_deref()) {
            ("unix_socket_mode", value) => value.map(|_| "0777"),
            ("verbose", value) => value.filter(|value| *value != "0"),
            ("conffile", _) => None,
            (_, value) => value,
        };
        assert_eq!(printed, row.default.as_deref(), "{}", row.key);
    }
    let ours: Vec<_> = shown[lines.len()..].iter().map(|row| row.key).collect();
    let expected = "workers worker_load_max metrics_listen_addr metrics_pgbouncer_names shutdown_drain_timeout shutdown_listen_delay session_state \
        pin_timeout max_pinned_per_pool max_notification_queue log_format topology namespace zone listen_port_ro monitor_user monitor_dbname max_standby_lag max_standby_lag_bytes \
        standby_fallback server_tls_name peers_dns peers_service";
    assert_eq!(ours.join(" "), expected);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for name in ours {
        let row = format!("| `{name}` | `PGWEIR_{}` |", name.to_uppercase());
        assert!(readme.contains(&row), "README.md has no row for {name}");
    }
}

#[test]
fn values_are_printed_as_pgbouncer_prints_them() {
    let check = |line: &str, wanted: Option<&str>| {
        let key = line.split('=').next().unwrap().trim();
        let config = ini(&format!("[pgbouncer]\n{line}\n")).unwrap();
        assert_eq!(value(&config, key).as_deref(), wanted, "{line}");
    };
    check("unix_socket_mode = 0750", Some("488"));
    check("unix_socket_mode = 0x1ff", Some("511"));
    check("server_lifetime = 1000000", Some("1e+06"));
    check("query_timeout = 0.25", Some("0.25"));
    check("pool_mode = TRANSACTION", Some("transaction"));
    check("admin_users = a,  b", Some("a, b"));
    check("log_connections = 7", Some("1"));
    check("log_connections = off", Some("0"));
    check("server_check_query = ", Some(""));
    check("server_check_query = <empty>", Some("<empty>"));
    check("server_check_query = select 1", Some("select 1"));
    check("auth_user = ", None);
    check("auth_user = me", Some("me"));
    check("server_reset_query = ", Some(""));
    check("unix_socket_dir = @pg", Some("@pg"));
    check("conffile = b.ini", Some("b.ini"));
    check("max_packet_size = 65536", Some("65536"));
    check("log_format = JSON", Some("json"));
    check("metrics_listen_addr = :9127", Some("[::]:9127"));
}

#[test]
fn a_bad_value_names_file_line_setting_value_and_what_is_allowed() {
    let check = |line: &str, wanted: &str| {
        let text = format!("\n[pgbouncer]\n;comment\n{line}\n");
        assert_eq!(error(ini(&text)), format!("a.ini:4: {wanted}"), "{line}");
    };
    check(
        "listen_port = 70000",
        "listen_port is 70000: it must be 0 to 65535 (TCP port for clients; 0 is off)",
    );
    check(
        "default_pool_size = -1",
        "default_pool_size is -1: it must be 0 to 2147483647 \
         (Server connections of a pool, that is of one user and database; 0 is no limit)",
    );
    check(
        "default_pool_size =",
        "default_pool_size is empty: it must be 0 to 2147483647 \
         (Server connections of a pool, that is of one user and database; 0 is no limit)",
    );
    check(
        "query_timeout = 10s",
        "query_timeout is 10s: it must be seconds without a unit, 0 to 2147483647 \
         (Longest time a query may take, waiting included; 0 is for ever)",
    );
    check(
        "log_stats = maybe",
        "log_stats is maybe: it must be 0 or 1, on or off \
         (Whether a line of statistics is logged every stats_period)",
    );
    check(
        "pool_mode = sesion",
        "pool_mode is sesion: it must be session, transaction or statement \
         (When a server connection may go to another client)",
    );
    check(
        "workers = 0",
        "workers is 0: it must be 1 to 1024 \
         (Threads of the data plane; the default is the number of cores that the cgroup grants)",
    );
    check(
        "peer_id = 65536",
        "peer_id is 65536: it must be 0 to 65535 (Our own number in a group of peers; 0 is none)",
    );
    check(
        "client_tls_protocols = tlsv1.2, ssl3",
        "client_tls_protocols is tlsv1.2, ...: it must be a list of tlsv1.0, tlsv1.1, tlsv1.2, \
         tlsv1.3, tlsv1, all, secure, default or legacy, separated by commas (TLS versions for clients)",
    );
    check("pool_sise = 4", "there is no setting pool_sise; did you mean pool_mode?");
    check("defaultpoolsize = 4", "there is no setting defaultpoolsize; did you mean default_pool_size?");
    check("LISTEN_PORT = 4", "there is no setting LISTEN_PORT; did you mean listen_port?");
    check("xyz = 4", "there is no setting xyz");
    check("auth_dbname = pgbouncer", "cannot use the reserved \"pgbouncer\" database as an auth_dbname");
}

#[test]
fn broken_form_is_an_error_with_its_line() {
    let check = |text: &str, wanted: &str| assert_eq!(error(ini(text)), wanted, "{text:?}");
    let form = "syntax error: a line is key = value, [section], %include file, or a comment behind ; or #";
    let sections = "there are [pgbouncer], [databases], [clusters], [users] and [peers]";
    check("", "a.ini: there is no section [pgbouncer]");
    check("[databases]\na=host=x\n", "a.ini: there is no section [pgbouncer]");
    check("a = 1\n[pgbouncer]\n", "a.ini:1: syntax error: a stands before the first [section]");
    check("[pgbouncer\n", "a.ini:1: syntax error: a [section] has no closing bracket");
    check("[foo]\n", &format!("a.ini:1: syntax error: there is no section [foo]; {sections}"));
    check("[PgBouncer]\n", &format!("a.ini:1: syntax error: there is no section [PgBouncer]; {sections}"));
    check("[pgbouncer]\nlisten_port\n", &format!("a.ini:2: {form}"));
    check("[databases]\n\"my db\" = host=x\n", &format!("a.ini:2: {form}"));
    check("[databases]\nmy db = host=x\n", &format!("a.ini:2: {form}"));
    check("[databases]\n'my db = host=x\n", "a.ini:2: syntax error: a key has no closing quote");
    check("%include\n", &format!("a.ini:1: {form}"));
    check(
        "[pgbouncer]\nauth_user = a\0b\n",
        "a.ini:2: auth_user is a\\u{0}b: it must be text (User that runs auth_query for users that are not in auth_file; unset is off)",
    );
    check(
        "[pgbouncer]\nauth_type = cert\n",
        "a.ini: auth_type is cert: client_tls_sslmode must be verify-full then",
    );
}

#[test]
fn a_wrong_entry_is_an_error_with_its_line() {
    let check = |lines: &str, wanted: &str| {
        let text = format!("[pgbouncer]\n[databases]\n{lines}\n");
        assert_eq!(error(ini(&text)), format!("a.ini:{wanted}"), "{lines:?}");
    };
    check("pgbouncer = host=x", "3: database name \"pgbouncer\" is reserved");
    check("a = host", "3: syntax error: a connect string is key=value, separated by spaces");
    check("a = host=x ; comment", "3: syntax error: a connect string is key=value, separated by spaces");
    check("a = host='x", "3: syntax error: the value of host has no closing quote");
    check("a = host='x'port=5", "3: syntax error: the value of host needs a space behind its quote");
    check("a = host=''", "3: syntax error: host has no value");
    check("a = host=", "3: syntax error: host has no value");
    check("a = =x", "3: syntax error: a connect string's key is one word before a =");
    check("a = prt=5", "3: there is no setting prt of database \"a\"; did you mean port?");
    check("a = port=x", "3: port of database \"a\" is x: it must be 0 to 65535 (Port of its servers)");
    check(
        "a = pool_mode=x",
        "3: pool_mode of database \"a\" is x: it must be session, transaction or statement (Overrides pool_mode)",
    );
    check("[users]\nu = port=5", "4: there is no setting port of user \"u\"");
    check("[peers]\n0 = host=x", "4: peer is 0: it must be 1 to 65535 (its peer_id)");
    check("[peers]\nx = host=x", "4: peer is x: it must be 1 to 65535 (its peer_id)");
    check("[peers]\n1 = port=5", "4: peer 1 has no host");
}

#[test]
fn a_password_is_never_shown() {
    let with_error = |entry: &str| error(ini(&format!("[pgbouncer]\n[databases]\n{entry}\n")));
    for entry in [
        "a = password=hunter2 port=x",
        "a = port='5432 password=hunter2'",
        "a = password='hunter2",
        "a = password=hunter2 hunter2",
        "a = password='hunter2'hunter2",
        "a password=hunter2",
        "[pgbouncer]\na = host=x password=hunter2",
    ] {
        let shown = with_error(entry);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    for text in
        ["[databases]\na = \"password=hunter2 port=x\"", "password = \"hunter2\" x", "a.password = hunter2"]
    {
        let shown = error(toml(text));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let mut config =
        ini("[pgbouncer]\nauth_ldap_options=ldapbindpasswd=hunter2\n[databases]\na = password=hunter2")
            .unwrap();
    config.auth_users.insert("a".into(), "hunter2".into());
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.databases["a"].password.as_deref(), Some("hunter2"));
}

#[test]
fn the_ini_is_read_as_pgbouncer_reads_it() {
    let config = ini("; comment\n # comment\n[pgbouncer] listen_port=1\n\tlisten_backlog =\t5  \r\n\
        admin_users=a b;c # no comment\n[databases] a1= host= port=1\n\
        a.b-c_*=\n'my ''db' = dbname=x\n a2 = host = x  port =  5\n\
        a3 = host=  'x''y'   pool_size= 0x10 user=foo password='a b'\n\
        a4=\tdbname=x  pool_mode=TRANSACTION load_balance_hosts=disable reserve_pool=3\n\
        a5=host=a,b,,c\na6=host=/run\n*=port=7\na4=dbname=y\n\
        [users]\nu1 =\nu2 = pool_size=3 query_timeout=0.5\n[peers]\n1=host=/tmp\n2=host=x port=1 pool_size=4")
    .unwrap();
    assert_eq!(config.settings.listen_port, 1);
    assert_eq!(config.settings.listen_backlog, 5);
    assert_eq!(config.settings.admin_users, ["a b;c # no comment"]);
    // The space behind `host=` is skipped, so that the next word is its value.
    assert_eq!(config.databases["a1"].hosts, [Host::Tcp("port=1".into())]);
    assert_eq!(config.databases["a.b-c_*"], Database::new("a.b-c_*".into()));
    assert_eq!(config.databases["my 'db"].server_dbname(), "x");
    assert_eq!(config.databases["a2"].port, 5);
    let a3 = &config.databases["a3"];
    assert_eq!((a3.hosts[0].to_string().as_str(), a3.pool_size), ("x'y", Some(16)));
    assert_eq!((a3.user.as_deref(), a3.password.as_deref()), (Some("foo"), Some("a b")));
    // The later line of a name counts alone.
    assert_eq!(config.databases["a4"].pool_mode, None);
    assert_eq!(config.databases["a5"].hosts.len(), 3);
    assert_eq!(config.hosts(&config.databases["a6"]), [Host::Unix("/run".into())]);
    assert_eq!(config.hosts(&config.databases["a4"]), [Host::Unix("/tmp".into())]);
    assert_eq!(config.users["u1"], User::new("u1".into()));
    assert_eq!(config.users["u2"].query_timeout, Some(Duration::from_millis(500)));
    assert_eq!((config.peers[&1].port, config.peers[&2].pool_size), (6432, Some(4)));
}

#[test]
fn a_name_without_entry_is_made_from_the_star() {
    let config = ini("[pgbouncer]\n[databases]\n* = host=x\na = dbname=b").unwrap();
    let made = config.database("orders").unwrap();
    assert_eq!((made.name.as_str(), made.server_dbname()), ("orders", "orders"));
    assert_eq!(config.database("a").unwrap().server_dbname(), "b");
    assert_eq!(config.database(RESERVED_DATABASE), None);
    let config = ini("[pgbouncer]\n[databases]\n* = dbname=all").unwrap();
    assert_eq!(config.database("orders").unwrap().server_dbname(), "all");
    assert_eq!(ini("[pgbouncer]").unwrap().database("orders"), None);
}

#[test]
fn without_host_and_socket_directory_there_is_no_server() {
    let hosts = |dir: &str| {
        let config = ini(&format!("[pgbouncer]\nunix_socket_dir={dir}\n[databases]\na=")).unwrap();
        config.hosts(&config.databases["a"])
    };
    assert_eq!(hosts(""), []);
    assert_eq!(hosts("@pg"), [Host::Abstract("pg".into())]);
    assert_eq!(hosts("run"), [Host::Unix("run".into())]);
}

#[test]
fn the_users_word_goes_before_the_databases_and_that_before_the_global_one() {
    let config = ini("[pgbouncer]\npool_mode=session\ndefault_pool_size=1\nquery_wait_timeout=1\n\
        query_timeout=1\nmax_user_connections=1\nmax_db_connections=1\n\
        [databases]\nplain=\nown=pool_mode=transaction pool_size=2 query_wait_timeout=2 max_db_connections=2\n\
        forced=user=boss pool_size=2\n\
        [users]\nboss=pool_mode=statement pool_size=3 query_timeout=3 max_user_connections=3\n\
        app=query_wait_timeout=0 client_idle_timeout=9 max_user_client_connections=4 pool_size=0")
    .unwrap();
    let policy = |database: &str, user| config.pool_policy(&config.databases[database], user);
    let check = |database, user, mode, size, wait: Option<u64>, query: Option<u64>, servers| {
        let policy = policy(database, user);
        assert_eq!(policy.pool_mode, mode, "{database} {user}");
        assert_eq!(policy.pool_size, size, "{database} {user}");
        assert_eq!(policy.query_wait_timeout, wait.map(Duration::from_secs), "{database} {user}");
        assert_eq!(policy.query_timeout, query.map(Duration::from_secs), "{database} {user}");
        assert_eq!(policy.max_user_connections, servers, "{database} {user}");
    };
    check("plain", "x", PoolMode::Session, 1, Some(1), Some(1), 1);
    check("own", "x", PoolMode::Transaction, 2, Some(2), Some(1), 1);
    check("own", "boss", PoolMode::Statement, 3, Some(2), Some(3), 3);
    check("own", "app", PoolMode::Transaction, 0, None, Some(1), 1);
    // The server's user is the forced one, the client's user who logged in.
    check("forced", "x", PoolMode::Statement, 3, Some(1), Some(3), 3);
    check("forced", "app", PoolMode::Statement, 3, None, Some(3), 3);
    assert_eq!(policy("forced", "app").client_idle_timeout, Some(Duration::from_secs(9)));
    assert_eq!(policy("forced", "boss").client_idle_timeout, None);
    assert_eq!(policy("forced", "app").max_user_client_connections, 4);
    assert_eq!(policy("own", "x").max_db_connections, 2);
    assert_eq!(policy("plain", "x").server_lifetime, Duration::from_secs(3600));
}

#[test]
fn an_include_counts_where_it_stands_and_names_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let main = format!("[pgbouncer]\nlisten_port=1\n%include {}  \nlisten_port=3\n", path("b.ini"));
    fs::write(
        path("b.ini"),
        "listen_port=2\nlisten_backlog=2\n[databases]\na=\n[pgbouncer]\npool_mode=statement",
    )
    .unwrap();
    let config = ini(&main).unwrap();
    // The second header of the settings gave them their defaults again.
    assert_eq!((config.settings.listen_port, config.settings.listen_backlog), (3, 128));
    assert_eq!(config.settings.pool_mode, PoolMode::Statement);
    assert!(config.databases.contains_key("a"));

    fs::write(path("b.ini"), "\nlisten_port=x").unwrap();
    assert!(error(ini(&main)).starts_with(&format!("{}:2: listen_port is x", path("b.ini"))));
    fs::remove_file(path("b.ini")).unwrap();
    assert!(error(ini(&main)).starts_with(&format!("{}: cannot be read: ", path("b.ini"))));
}

#[test]
fn includes_nest_ten_deep() {
    let dir = tempfile::tempdir().unwrap();
    let path = |depth: usize| dir.path().join(format!("{depth}.ini")).display().to_string();
    for depth in 1..=11 {
        fs::write(path(depth), format!("%include {}\n", path(depth + 1))).unwrap();
    }
    let main = format!("%include {}\n[pgbouncer]\n", path(1));
    fs::write(path(10), "").unwrap();
    assert!(ini(&main).is_ok());
    fs::write(path(10), format!("%include {}\n", path(11))).unwrap();
    assert_eq!(error(ini(&main)), format!("{}:1: %include may nest 10 deep", path(10)));
}

#[test]
fn a_reload_undoes_set_but_not_for_settings_without_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ini");
    let write = |text: &str| fs::write(&path, text).unwrap();
    write("[pgbouncer]\nlisten_port=1\nauth_user=a\ndefault_pool_size=5\n[databases]\na=\nb=\n[users]\nu=\n");
    let mut config = Config::load(&path, &nothing).unwrap();
    config.set("default_pool_size", "7").unwrap();
    config.set("pool_mode", "statement").unwrap();
    config.set("auth_dbname", "kept").unwrap();
    config.set("listen_port", "99").unwrap();
    assert_eq!((config.settings.listen_port, config.settings.default_pool_size), (1, 7));

    write("[pgbouncer]\nlisten_port=2\n[databases]\na=pool_size=1\n");
    let config = config.reload(&nothing).unwrap();
    assert_eq!((config.settings.listen_port, config.settings.default_pool_size), (1, 20));
    assert_eq!(config.settings.pool_mode, PoolMode::Session);
    assert_eq!(config.settings.auth_dbname.as_deref(), Some("kept"));
    // It was in the file before and is not any more: as in PgBouncer it stays.
    assert_eq!(config.settings.auth_user.as_deref(), Some("a"));
    assert_eq!(config.databases.keys().collect::<Vec<_>>(), ["a"]);
    assert!(config.users.is_empty());

    write("[pgbouncer]\ndefault_pool_size=9\nlisten_port=x\n");
    let failed = config.reload(&nothing).unwrap_err().to_string();
    assert!(failed.contains(":3: listen_port is x"), "{failed}");
    fs::remove_file(&path).unwrap();
    assert!(config.reload(&nothing).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn set_of_conffile_changes_what_reload_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (ini_path, toml_path) = (dir.path().join("a.ini"), dir.path().join("b.toml"));
    fs::write(&ini_path, "[pgbouncer]\n").unwrap();
    fs::write(&toml_path, "[pgweir]\ndefault_pool_size = 3\n").unwrap();
    let mut config = Config::load(&ini_path, &nothing).unwrap();
    assert_eq!(config.settings.conffile.as_deref(), Some(ini_path.as_path()));
    config.set("conffile", toml_path.to_str().unwrap()).unwrap();
    assert_eq!(config.reload(&nothing).unwrap().settings.default_pool_size, 3);
}

#[test]
fn set_tells_what_is_wrong() {
    let mut config = Config::default();
    let mut check = |key: &str, value: &str, wanted: &str| {
        let before = config.clone();
        assert_eq!(config.set(key, value).unwrap_err().to_string(), wanted);
        assert_eq!(config, before);
    };
    check("pool_size", "1", "there is no setting pool_size; did you mean pool_mode?");
    check(
        "log_stats",
        "x",
        "log_stats is x: it must be 0 or 1, on or off (Whether a line of statistics is logged every stats_period)",
    );
}

#[test]
fn peers_dns_is_a_list_of_hosts_with_or_without_a_port() {
    let check = |text: &str, expected: &[(&str, Option<u16>)]| {
        let config = ini(&format!("[pgbouncer]\npeers_dns = {text}")).unwrap();
        let found = config.settings.peers_dns.iter().map(|name| (name.host.as_str(), name.port));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{text}");
        let printed = value(&config, "peers_dns").unwrap();
        let again = ini(&format!("[pgbouncer]\npeers_dns = {printed}")).unwrap();
        assert_eq!(again.settings.peers_dns, config.settings.peers_dns, "{printed}");
    };
    check("", &[]);
    check("pooler-peers", &[("pooler-peers", None)]);
    check("pooler.db.svc:6432, 10.0.0.7:1", &[("pooler.db.svc", Some(6432)), ("10.0.0.7", Some(1))]);
    check("[::1]:6432, [::1], fd00::7", &[("::1", Some(6432)), ("::1", None), ("fd00::7", None)]);
    for wrong in ["a:", "a:0", "a:65536", "a:x", ":1", "[::1", "[::1]1", "[a]:1", "/tmp", "a:1:2", "a b"] {
        let error = error(ini(&format!("[pgbouncer]\npeers_dns = {wrong}")));
        assert!(
            error.contains("it must be a list of host or host:port, as in pooler-peers:6432 or [::1]:6432"),
            "{error}"
        );
    }
}

#[test]
fn our_number_among_peers_is_set_or_made_from_the_pods_uid() {
    let check = |text: &str, variables: &[(&str, &str)], expected: Option<u16>| {
        let environment = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let text = format!("[pgbouncer]\n{text}");
        let config = Config::from_text(Path::new("a.ini"), &text, &environment).unwrap();
        assert_eq!(config.peer_id(), expected, "{text} {variables:?}");
    };
    let of = |uid| Some(peer_id_of_pod(uid));
    check("", &[("HOSTNAME", "pooler-1")], None);
    check("peer_id = 65535", &[], Some(65_535));
    check("peer_id = 3\npeers_dns = x", &[("POD_UID", "a")], Some(3));
    check("peers_dns = x", &[("HOSTNAME", "pooler-1")], of("pooler-1"));
    check("peers_dns = x", &[("HOSTNAME", "pooler-1"), ("POD_UID", "a")], of("a"));
    check("peers_dns = x", &[("POD_UID", "a"), ("PGWEIR_POD_UID", "b")], of("b"));
    check("peers_dns = x", &[("POD_UID", ""), ("HOSTNAME", "pooler-1")], of("pooler-1"));
    check("", &[("PGWEIR_PEERS_DNS", "x"), ("POD_UID", "a")], of("a"));
    check("peers_dns = x", &[], of(""));
    check("peers_service = x", &[("POD_UID", "a")], of("a"));
    check("peer_id = 3\npeers_service = x", &[("POD_UID", "a")], Some(3));
    check("", &[("PGWEIR_PEERS_SERVICE", "x"), ("POD_UID", "a")], of("a"));
}

#[test]
fn the_number_of_a_pod_is_the_same_in_every_version() {
    // Peers of an older version must compute the same: these numbers may never change.
    assert_eq!(peer_id_of_pod(""), 4128);
    assert_eq!(peer_id_of_pod("5f0c8a5e-95a1-4d8c-8f0f-2f1b2f0e6c11"), 534);
}

proptest! {
    #[test]
    fn the_number_of_a_pod_is_never_none(uid in ".*") {
        prop_assert!(peer_id_of_pod(&uid) >= 1);
    }
}

#[test]
fn the_environment_goes_before_the_file_for_our_settings() {
    let environment = |name: &str| match name {
        "PGWEIR_WORKERS" => Some("3".to_owned()),
        "PGWEIR_SHUTDOWN_DRAIN_TIMEOUT" => Some("1.5".to_owned()),
        "PGWEIR_LISTEN_PORT" => Some("1".to_owned()),
        _ => None,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ini");
    fs::write(&path, "[pgbouncer]\nworkers=7\nshutdown_drain_timeout=9\nlog_format=json\n").unwrap();
    let config = Config::load(&path, &environment).unwrap();
    assert_eq!((config.settings.workers, config.settings.listen_port), (3, 6432));
    assert_eq!(config.settings.shutdown_drain_timeout, Duration::from_millis(1500));
    assert_eq!(config.settings.log_format, LogFormat::Json);

    let later = |name: &str| environment(name).map(|_| "5".to_owned());
    let config = config.reload(&later).unwrap();
    assert_eq!((config.settings.workers, config.settings.shutdown_drain_timeout.as_secs()), (3, 5));

    let wrong = |name: &str| (name == "PGWEIR_WORKERS").then(|| "many".to_owned());
    assert_eq!(
        error(Config::load(&path, &wrong)),
        "PGWEIR_WORKERS is many: it must be 1 to 1024 \
         (Threads of the data plane; the default is the number of cores that the cgroup grants)"
    );
}

#[test]
fn a_user_list_is_read_up_to_its_first_broken_line() {
    let path = Path::new("users.txt");
    let check = |text: &str, wanted: &[(&str, &str)], warning: Option<&str>| {
        let (users, problem) = ini::read_users(path, text);
        let users: Vec<_> = users.iter().map(|(name, secret)| (name.as_str(), secret.as_str())).collect();
        assert_eq!(users, wanted, "{text:?}");
        assert_eq!(problem.map(|problem| problem.to_string()).as_deref(), warning, "{text:?}");
    };
    let form = "users.txt:2: syntax error: a line of the user list is \"user\" \"secret\"";
    check("", &[], None);
    check(
        "\"a\" \"b\"\"c\" trailing\n ;c\n\n\"d\"\t\"\" \n\"e\"\"f\" \"x\"",
        &[("a", "b\"c"), ("d", ""), ("e\"f", "x")],
        None,
    );
    check("\"a\" \"b\"\nc d\n\"e\" \"f\"\n", &[("a", "b")], Some(form));
    check("\"a\" \"b\"\n\"c\"\n", &[("a", "b")], Some(form));
    check("\"a\" \"b\"\n\"c\" \"d\n", &[("a", "b")], Some(form));
    check("\n\"\" \"b\"\n", &[], Some("users.txt:2: a user name has 1 to 127 bytes"));
    check("\"a\" \"old\"\n\"a\" \"new\"", &[("a", "new")], None);
    let long = format!("\n\"{}\" \"b\"\n", "u".repeat(128));
    check(&long, &[], Some("users.txt:2: a user name has 1 to 127 bytes"));
}

#[test]
fn a_missing_user_list_is_a_warning_and_keeps_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.txt");
    let path = dir.path().join("a.ini");
    fs::write(&path, format!("[pgbouncer]\nauth_file={}\n", users.display())).unwrap();
    fs::write(&users, "\"a\" \"b\"\n").unwrap();
    let config = Config::load(&path, &nothing).unwrap();
    assert_eq!((config.auth_users["a"].as_str(), config.warnings.len()), ("b", 0));
    fs::remove_file(&users).unwrap();
    let config = config.reload(&nothing).unwrap();
    assert_eq!((config.auth_users["a"].as_str(), config.warnings.len()), ("b", 1));
    fs::write(&users, "\"c\" \"d\"\n").unwrap();
    let config = config.reload(&nothing).unwrap();
    assert_eq!(config.auth_users.keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(config.warnings, []);
}

#[test]
fn ini_and_toml_mean_the_same() {
    // Every setting and every key, in both forms, none with its default.
    let (left, right) =
        (ini(include_str!("tests/full.ini")).unwrap(), toml(include_str!("tests/full.toml")).unwrap());
    let with_conffile = Config {
        settings: Settings { conffile: left.settings.conffile.clone(), ..right.settings.clone() },
        ..right
    };
    assert_eq!(left, with_conffile);
    let text = include_str!("tests/full.ini");
    for setting in SETTINGS.iter().filter(|setting| setting.name != "conffile") {
        assert!(text.contains(&format!("\n{} = ", setting.name)), "full.ini lacks {}", setting.name);
        assert_ne!(
            setting.print(&left.settings).as_deref(),
            (setting.default)().as_deref(),
            "{}",
            setting.name
        );
    }
}

#[test]
fn toml_may_use_its_own_types() {
    let config = toml(
        "[pgbouncer]\nlog_stats = false\nunix_socket_mode = 0o750\nquery_timeout = 0.5\nlisten_addr = [\"a\", \"b\"]\n\
         [databases]\napp = \"host=x port=1\"\n[databases.b]\nhost = [\"x\", \"y\"]\npool_mode = \"statement\"\n\
         [users]\nu.pool_size = 0\n[peers.1]\nhost = \"x\"\n",
    )
    .unwrap();
    assert!(!config.settings.log_stats);
    assert_eq!((config.settings.unix_socket_mode, config.settings.query_timeout.as_millis()), (0o750, 500));
    assert_eq!(config.settings.listen_addr, ["a", "b"]);
    assert_eq!((config.databases["app"].port, config.databases["b"].hosts.len()), (1, 2));
    assert_eq!((config.users["u"].pool_size, config.peers.len()), (Some(0), 1));
}

#[test]
fn wrong_toml_is_an_error_with_its_line() {
    let check = |lines: &str, wanted: &str| {
        let text = format!("[pgweir]\n{lines}\n");
        assert_eq!(error(toml(&text)), format!("a.toml:{wanted}"), "{lines:?}");
    };
    check(
        "\nlisten_port = 70000",
        "3: listen_port is 70000: it must be 0 to 65535 (TCP port for clients; 0 is off)",
    );
    check("b = 1\na = 1", "2: there is no setting b");
    check("pool_mod = 1", "2: there is no setting pool_mod; did you mean pool_mode?");
    check("log_stats = 1979-05-27", "2: log_stats must be a string, a number or true or false");
    check("log_stats = {}", "2: log_stats must be a string, a number or true or false");
    check("log_stats = [\"1\"]", "2: log_stats cannot be a list");
    check("admin_users = [1]", "2: admin_users is a list of strings without commas");
    check("admin_users = [\"a,b\"]", "2: admin_users is a list of strings without commas");
    check(
        "auth_user = \"a\\u0000b\"",
        "2: auth_user is a\\u{0}b: it must be text (User that runs auth_query for users that are not in auth_file; unset is off)",
    );
    check(
        "[foo]",
        "2: syntax error: there is no section [foo]; there are [pgbouncer], [databases], [clusters], [users] and [peers]",
    );
    check("[pgbouncer]", "2: [pgweir] and [pgbouncer] are two names of one table; give one of them");
    check("[databases]\na = 1", "3: syntax error: an entry is a [table] or a string \"host=... port=...\"");
    check(
        "[databases.a]\n\nport = \"x\"",
        "4: port of database \"a\" is x: it must be 0 to 65535 (Port of its servers)",
    );
    check("[databases.pgbouncer]", "2: database name \"pgbouncer\" is reserved");
    check("[peers.1]", "2: peer 1 has no host");
    assert_eq!(error(toml("databases = 1\n[pgweir]")), "a.toml:1: syntax error: databases must be a [table]");
    assert_eq!(error(toml("")), "a.toml: there is no section [pgbouncer]");
    assert!(error(toml("[pgweir]\na = \n")).starts_with("a.toml:2: syntax error: "));
}

#[test]
fn a_file_that_is_not_text_is_an_error_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.ini");
    fs::write(&path, b"[pgbouncer]\nauth_user = \xff\n").unwrap();
    let shown = error(Config::load(&path, &nothing));
    assert!(shown.ends_with("a.ini:2: syntax error: the file is not UTF-8"), "{shown}");
    let shown = error(Config::load(dir.path(), &nothing));
    assert!(shown.contains(": cannot be read: "), "{shown}");
}

/// Text in which the parsers' own characters are frequent.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[pgbouncer]\n".to_owned()),
        Just("[pgweir]\n".to_owned()),
        Just("[databases]\n".to_owned()),
        Just("[users]\n".to_owned()),
        Just("[peers]\n".to_owned()),
        Just("listen_port = ".to_owned()),
        Just("a = host=".to_owned()),
        Just("query_timeout = ".to_owned()),
        "[\\[\\]='\" \t\r\n;#%,@/*.0-9a-z\u{0}é-]{0,6}",
        any::<String>(),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parsers_panic(text in any_text(), key in any_text()) {
        let _ = ini(&text);
        let _ = toml(&text);
        let _ = ini::read_users(Path::new("users.txt"), &text);
        for section in [Section::Databases, Section::Users, Section::Peers] {
            if let Ok(mut entry) = Entry::new(section, "1") {
                let _ = ini::read_connect_string(&mut entry, &text);
                let _ = entry.set(&key, &text);
            }
        }
        let mut config = Config::default();
        let _ = config.set(&key, &text);
        for setting in SETTINGS {
            let _ = config.set(setting.name, &text);
        }
        let _ = format!("{config:?} {:?}", config.show());
    }

    #[test]
    fn no_bytes_make_the_file_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ini");
        fs::write(&path, &bytes).unwrap();
        let _ = Config::load(&path, &nothing);
    }
}
