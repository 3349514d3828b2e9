//! `[clusters]`, and what a database makes of them.

use super::*;
use crate::config::{Host, Role, SourceKind};

fn with_topology(text: &str) -> Config {
    let environment = |name: &str| (name == "PGWEIR_TOPOLOGY").then(|| "cnpg".to_owned());
    Config::from_text(Path::new("a.ini"), text, &environment).expect("right settings")
}

fn role_of<'a>(config: &'a Config, database: &str) -> Option<(&'a str, Role)> {
    let database = config.database(database)?;
    config.cluster(&database).map(|(cluster, role)| (cluster.name.as_str(), role))
}

#[test]
fn a_database_names_its_cluster_and_role() {
    let config = ini("[clusters]\nc1 = source=cnpg namespace=db name=pg\n\
         [databases]\nx = cluster=c1\ny = cluster=c1 role=prefer-standby dbname=x\n[pgbouncer]\n")
    .unwrap();
    let cluster = &config.clusters["c1"];
    assert_eq!((cluster.source, cluster.namespace.as_deref()), (Some(SourceKind::Cnpg), Some("db")));
    assert_eq!(cluster.object_name(), "pg");
    assert_eq!(role_of(&config, "x"), Some(("c1", Role::ReadWrite)));
    assert_eq!(role_of(&config, "y"), Some(("c1", Role::PreferStandby)));
    assert_eq!(role_of(&config, "x@ro"), Some(("c1", Role::ReadOnly)));
    assert_eq!(config.database("x@ro").map(|database| database.server_dbname().to_owned()), Some("x".into()));
    assert_eq!(config.database("x@other"), None);
}

#[test]
fn an_entry_of_its_own_goes_before_a_role_in_the_name() {
    let config = ini("[clusters]\nc = source=static hosts=h\n[databases]\nx = cluster=c\n\
         'x@ro' = host=elsewhere\n* = cluster=c\n[pgbouncer]\n")
    .unwrap();
    assert_eq!(role_of(&config, "x@ro"), None);
    assert_eq!(role_of(&config, "x@r"), Some(("c", Role::Read)));
    assert_eq!(role_of(&config, "new@ro"), Some(("c", Role::ReadOnly)));
    assert_eq!(
        config.database("new@ro").map(|database| database.server_dbname().to_owned()),
        Some("new".into())
    );
}

#[test]
fn once_topology_is_set_a_host_means_a_cluster() {
    let text = "[databases]\n* = host=pg-rw\nreport = host=pg-ro.db.svc port=5433\nany = host=pg-r\n\
        plain = host=other\nlist = host=a-rw,b-rw\n[pgbouncer]\n";
    let config = with_topology(text);
    let clusters: Vec<_> = config.clusters.keys().collect();
    assert_eq!(clusters, ["pg"]);
    assert_eq!(config.clusters["pg"].source, Some(SourceKind::Cnpg));
    assert_eq!(role_of(&config, "app"), Some(("pg", Role::ReadWrite)));
    assert_eq!(role_of(&config, "report"), Some(("pg", Role::ReadOnly)));
    assert_eq!(role_of(&config, "any"), Some(("pg", Role::Read)));
    assert_eq!(role_of(&config, "plain"), None);
    assert_eq!(role_of(&config, "list"), None);
    assert!(ini(text).unwrap().clusters.is_empty(), "without topology a host is a host");
}

#[test]
fn hosts_of_a_cluster_are_a_list_in_both_formats() {
    let text = "[clusters]\nc = source=probe hosts=127.0.0.2,127.0.0.3 port=5433\n[pgbouncer]\n";
    let hosts = ["127.0.0.2", "127.0.0.3"].map(|host| Host::Tcp(host.into()));
    assert_eq!(ini(text).unwrap().clusters["c"].hosts, hosts);
    let toml =
        "[clusters.c]\nsource = \"probe\"\nhosts = [\"127.0.0.2\", \"127.0.0.3\"]\nport = 5433\n[pgweir]\n";
    let toml = Config::from_text(Path::new("a.toml"), toml, &|_| None).unwrap();
    assert_eq!(toml.clusters, ini(text).unwrap().clusters);
}

#[test]
fn what_a_cluster_lacks_is_named() {
    let check = |section: &str, expected: &str| {
        let error = ini(&format!("[clusters]\n{section}\n[pgbouncer]\n")).expect_err("an error").to_string();
        assert!(error.ends_with(expected), "{error}");
    };
    check("c = name=pg", "cluster \"c\" has no source");
    check("c = source=probe", "cluster \"c\" has no hosts");
    check("c = source=label primary_label=role=primary", "cluster \"c\" has no selector");
    check("c = source=label selector=app=pg", "cluster \"c\" has no primary_label");
    check(
        "c = source=zk",
        "it must be cnpg, patroni, label, probe or static (Who says which server is the primary; every cluster has it)",
    );
    let error = ini("[databases]\nx = cluster=c2\n[clusters]\nc = source=static hosts=h\n[pgbouncer]\n");
    let error = error.expect_err("an error").to_string();
    assert_eq!(error, "a.ini: database \"x\": there is no cluster \"c2\" in [clusters], which has: c");
}
