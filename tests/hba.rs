//! `auth_type = hba`: the first rule that fits says what a client must show.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::fs;
use std::process::Command;
use support::certificates::{Authority, text};
use support::rules::Ruled;
use support::{Address, Login, Raw};

async fn asks(address: &Address, user: &str, database: &str, password: &str) -> String {
    match Raw::try_login(address, &Login::new(user, database).password(password)).await {
        Ok(mut client) => client.query("SELECT 'in'").await.value(),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn the_first_rule_that_fits_says_what_a_client_must_show() {
    let ruled = Ruled::new(
        "host all plain_user 127.0.0.1/32 reject\n\
         host app md5_user 127.0.0.0/8 trust\n\
         host all scram_user 127.0.0.1 255.255.255.255 scram-sha-256\n\
         hostssl all all all trust\n\
         local all app md5\n",
        "",
    );
    let pooler = ruled.config().start().await;
    let tcp = pooler.tcp();
    assert_eq!(asks(&tcp, "plain_user", "app", "plain-secret").await, "E(08P01) FATAL login rejected");
    assert_eq!(asks(&tcp, "md5_user", "app", "").await, "in");
    assert_eq!(asks(&tcp, "scram_user", "app", "scram-secret").await, "in");
    assert_eq!(asks(&tcp, "scram_user", "app", "wrong").await, "E(28P01) FATAL SASL authentication failed");
    let none = "E(08P01) FATAL no authentication method is found";
    assert_eq!(asks(&tcp, "app", "app", "app-secret").await, none, "that rule wants TLS");
    assert_eq!(asks(&pooler.unix(), "app", "app", "app-secret").await, "in");
    assert_eq!(
        asks(&pooler.unix(), "app", "app", "wrong").await,
        "E(28P01) FATAL password authentication failed"
    );
    assert_eq!(asks(&pooler.unix(), "md5_user", "app", "").await, none);
}

#[tokio::test]
async fn md5_means_scram_for_a_user_whose_secret_is_one() {
    let scram = postgres_protocol::password::scram_sha_256(b"right");
    let ruled = Ruled::new("host all all 0.0.0.0/0 md5\nhost all all ::/0 md5\n", "");
    let pooler = ruled.config().users(&format!("\"keeper\" \"{scram}\"\n")).start().await;
    assert_eq!(asks(&pooler.tcp(), "keeper", "app", "right").await, "in");
    assert_eq!(
        asks(&pooler.tcp(), "keeper", "app", "wrong").await,
        "E(28P01) FATAL SASL authentication failed"
    );
}

#[tokio::test]
async fn peer_asks_the_system_who_is_at_the_other_end() {
    let own = Command::new("id").arg("-un").output().unwrap();
    let own = String::from_utf8(own.stdout).unwrap().trim().to_owned();
    let ruled = Ruled::new(
        &format!("local all {own} peer\nlocal all app peer map=ops\nlocal all all peer\n"),
        &format!("ops {own} app\n"),
    );
    let pooler =
        ruled.config().users(&format!("\"{own}\" \"\"\n\"app\" \"\"\n\"md5_user\" \"\"\n")).start().await;
    assert_eq!(asks(&pooler.unix(), &own, "app", "").await, "in");
    assert_eq!(asks(&pooler.unix(), "app", "app", "").await, "in");
    let rejected = "E(08P01) FATAL unix socket login rejected";
    assert_eq!(asks(&pooler.unix(), "md5_user", "app", "").await, rejected);
}

#[tokio::test]
async fn a_rule_asks_for_a_certificate_that_other_clients_need_not_have() {
    let (authority, other) = (Authority::new(), Authority::new());
    let shown = authority.issue("pooler", "DNS:localhost");
    let ruled = Ruled::new(
        "hostssl all app all cert\nhostssl all md5_user all cert map=ops\nhost all all all trust\n",
        "ops robot md5_user\n",
    );
    let pooler = ruled
        .config()
        .setting("client_tls_sslmode", "prefer")
        .setting("client_tls_ca_file", text(&authority.certificate()))
        .setting("client_tls_cert_file", text(&shown.certificate))
        .setting("client_tls_key_file", text(&shown.key))
        .start()
        .await;
    let [own, robot, stranger] = [
        authority.issue("app", "DNS:app"),
        authority.issue("robot", "DNS:app"),
        other.issue("app", "DNS:app"),
    ];
    let psql = |user: &str, identity: Option<&support::certificates::Identity>| {
        let certificate = identity.map_or_else(String::new, |identity| {
            format!("sslcert={} sslkey={}", text(&identity.certificate), text(&identity.key))
        });
        let target = format!(
            "host=127.0.0.1 port={} user={user} dbname=app sslmode=require {certificate}",
            pooler.port
        );
        let mut command = support::clients::psql();
        command.args(["-XAt", "-c", "SELECT 'in'", &target]);
        let output = command.output().expect("psql is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        let error =
            errors.lines().find_map(|line| line.split_once("FATAL:  ")).map(|(_, error)| error.to_owned());
        error.unwrap_or_else(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    assert_eq!(psql("app", Some(&own)), "in");
    assert_eq!(psql("md5_user", Some(&robot)), "in");
    assert_eq!(psql("app", Some(&robot)), "certificate authentication failed");
    assert_eq!(psql("app", None), "certificate authentication failed");
    assert_eq!(psql("app", Some(&stranger)), "certificate authentication failed");
    assert_eq!(psql("scram_user", None), "in");
    assert_eq!(asks(&pooler.tcp(), "app", "app", "").await, "in", "without TLS the last rule is for it");
}

#[tokio::test]
async fn a_reload_reads_the_rules_again_and_names_lines_that_make_no_sense() {
    let ruled = Ruled::new("host all all all trust\n", "");
    let pooler = ruled.config().start().await;
    assert_eq!(asks(&pooler.tcp(), "app", "app", "").await, "in");
    ruled.write("rules", "hast all all all trust\nhost all admin all trust\nhost all all all reject\n");
    pooler.console().await.query("RELOAD").await.succeeds("RELOAD");
    pooler.logs("auth_hba_file line 1: \"hast\" must be local, host, hostssl or hostnossl").await;
    assert_eq!(asks(&pooler.tcp(), "app", "app", "").await, "E(08P01) FATAL login rejected");
    fs::remove_file(ruled.file("rules")).unwrap();
    let told = pooler.console().await.query("RELOAD").await.to_string();
    assert!(told.contains("F0000"), "{told}");
    pooler.logs("could not open hba config file").await;
    assert_eq!(
        asks(&pooler.tcp(), "app", "app", "").await,
        "E(08P01) FATAL login rejected",
        "the rules stay"
    );
    ruled.write("rules", "host all all all trust\n");
    pooler.console().await.query("SET log_stats=1").await.succeeds("SET");
    assert_eq!(
        asks(&pooler.tcp(), "app", "app", "").await,
        "E(08P01) FATAL login rejected",
        "SET reads no files"
    );
    pooler.console().await.query("RELOAD").await.succeeds("RELOAD");
    assert_eq!(asks(&pooler.tcp(), "app", "app", "").await, "in");
}

#[tokio::test]
async fn a_rule_for_a_database_is_for_all_its_roles() {
    let ruled = Ruled::new("host app all all reject\nhost all all all trust\n", "");
    let pooler = ruled
        .config()
        .sections("\n[clusters]\nc = source=static hosts=127.0.0.1\n")
        .database_option("cluster=c")
        .start()
        .await;
    for name in ["app", "app@rw", "app@ro"] {
        let refusal = pooler.refuses(&Login::new("app", name)).await;
        assert_eq!(refusal, "E(08P01) FATAL login rejected", "{name}");
    }
}

#[tokio::test]
async fn a_name_of_a_thousand_roles_is_refused_and_costs_nothing_else() {
    let ruled = Ruled::new("host all all all trust\n", "");
    let pooler = ruled.config().start().await;
    let name = format!("x{}", "@ro".repeat(3000));
    for option in ["", "-c pgweir.role=ro"] {
        let login = Login::new("app", &name).option("options", option);
        let refusal = pooler.refuses(&login).await;
        assert!(refusal.starts_with("E(08P01) FATAL no such database"), "{refusal}");
    }
    assert_eq!(asks(&pooler.tcp(), "app", "app", "").await, "in");
}
