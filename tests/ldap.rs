//! `auth_type = ldap` and the method ldap in rules: a directory knows the passwords. It is a real slapd.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::time::Duration;

use support::certificates::{Authority, text};
use support::clients::CLIENTS;
use support::directory::Directory;
use support::pooler::Config;
use support::rules::Ruled;
use support::{Login, Pooler, Postgres, Raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DENIED: &str = "E(28P01) FATAL LDAP authentication failed";
const NO_ANSWER: &str = "E(28000) FATAL LDAP authentication failed";

async fn directory() -> (Authority, Directory) {
    let authority = Authority::new();
    let directory = Directory::start(&authority.issue("directory", "IP:127.0.0.1")).await;
    (authority, directory)
}

/// A pooler that asks, and comes to its servers as `app`.
fn asking(options: &str) -> Config {
    Pooler::config()
        .users("\"app\" \"app-secret\"\n")
        .setting("auth_type", "ldap")
        .setting("auth_ldap_options", options)
        .database_option("user=app")
}

fn named(directory: &Directory) -> String {
    let port = directory.port;
    format!(r#"ldapserver=127.0.0.1 ldapport={port} ldapprefix="cn=" ldapsuffix=",ou=people,dc=example""#)
}

fn sought(port: u16, options: &str) -> String {
    format!(
        r#"ldapserver=127.0.0.1 ldapport={port} ldapbasedn="dc=example" ldapbinddn="cn=reader,dc=example" ldapbindpasswd=reader-secret {options}"#
    )
}

async fn asks(pooler: &Pooler, user: &str, password: &str) -> String {
    match Raw::try_login(&pooler.tcp(), &Login::new(user, "app").password(password)).await {
        Ok(mut client) => client.query("SELECT 'in'").await.value(),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn a_simple_bind_lets_in_whoever_knows_the_entrys_password() {
    let (_authority, directory) = directory().await;
    let pooler = asking(&named(&directory)).start().await;
    assert_eq!(asks(&pooler, "alice", "alice-secret").await, "in");
    for (user, password) in [("alice", "wrong"), ("alice", "bob-secret"), ("nobody", "x")] {
        assert_eq!(asks(&pooler, user, password).await, DENIED, "{user} {password}");
    }
    // To a directory an empty password is a bind as nobody, which succeeds.
    let empty = "E(28P01) FATAL empty password returned by client";
    assert_eq!(asks(&pooler, "alice", "").await, empty);
    pooler.logs("LDAP login failed for user \"cn=alice,ou=people,dc=example\" on server").await;
}

#[tokio::test]
async fn a_users_name_stays_a_name_in_the_entrys() {
    let (_authority, directory) = directory().await;
    let options = format!(
        r#"ldapserver=127.0.0.1 ldapport={} ldapprefix="cn=" ldapsuffix=",dc=example""#,
        directory.port
    );
    let pooler = asking(&options).start().await;
    assert_eq!(asks(&pooler, "reader", "reader-secret").await, "in");
    assert_eq!(asks(&pooler, "alice,ou=people", "alice-secret").await, DENIED);
}

/// A pooler whose rules ask with these options, the first for the database `d0`, the next for `d1`...
fn with_rules(options: &[String]) -> (Ruled, Config) {
    let rule = |(number, options)| format!("host d{number} all all ldap {options}\n");
    let ruled = Ruled::new(&options.iter().enumerate().map(rule).collect::<String>(), "");
    let database = |config: Config, number| {
        config.database_line(&format!("d{number} = {{server}} dbname={{database}} user=app"))
    };
    let config = (0..options.len()).fold(ruled.config(), database);
    (ruled, config)
}

async fn asks_at(pooler: &Pooler, database: usize, user: &str, password: &str) -> String {
    let login = Login::new(user, &format!("d{database}")).password(password);
    match Raw::try_login(&pooler.tcp(), &login).await {
        Ok(mut client) => client.query("SELECT 'in'").await.value(),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn a_search_finds_the_entry_first() {
    let (_authority, directory) = directory().await;
    let rows = [
        ("", "alice", "alice-secret", "in"),
        ("", "alice", "wrong", DENIED),
        ("", "alice@example", "alice-secret", DENIED),
        ("", "twin", "twin-secret", DENIED),
        ("", "*", "alice-secret", DENIED),
        ("", "alice)(cn=*", "alice-secret", DENIED),
        ("ldapsearchattribute=mail", "alice@example", "alice-secret", "in"),
        (r#"ldapsearchfilter="(&(uid=$username)(title=cn=dba))""#, "alice", "alice-secret", "in"),
        (r#"ldapsearchfilter="(&(uid=$username)(title=cn=dba))""#, "bob", "bob-secret", DENIED),
        (r#"ldapsearchfilter="(|(uid=$username)(mail=$username))""#, "alice@example", "alice-secret", "in"),
        ("ldapbindpasswd=wrong", "alice", "alice-secret", NO_ANSWER),
        (r#"ldapbasedn="dc=elsewhere""#, "alice", "alice-secret", NO_ANSWER),
    ];
    let (_ruled, config) = with_rules(&rows.map(|(options, ..)| sought(directory.port, options)));
    let pooler = config.start().await;
    for (number, (options, user, password, expected)) in rows.into_iter().enumerate() {
        let told = asks_at(&pooler, number, user, password).await;
        assert_eq!(told, expected, "{options} {user} {password}");
    }
}

#[tokio::test]
async fn a_url_says_all_of_it_and_the_first_server_that_answers_counts() {
    let (_authority, directory) = directory().await;
    let reader = r#"ldapbinddn="cn=reader,dc=example" ldapbindpasswd=reader-secret"#;
    let closed = support::process::free_port();
    for (url, expected) in [
        ("ou=people,dc=example?uid?one", "in"),
        ("ou=people,dc=example??sub?(cn=$username)", "in"),
        ("dc=example?uid?one", DENIED),
    ] {
        let options = format!(r#"ldapurl="ldap://127.0.0.1:{}/{url}" {reader}"#, directory.port);
        let pooler = asking(&options).start().await;
        assert_eq!(asks(&pooler, "bob", "bob-secret").await, expected, "{url}");
    }
    let several =
        named(&directory).replace("ldapserver=127.0.0.1", r#"ldapserver="nowhere.invalid 127.0.0.1""#);
    assert_eq!(asks(&asking(&several).start().await, "bob", "bob-secret").await, "in");
    let none = named(&directory).replace(&format!("={}", directory.port), &format!("={closed}"));
    let pooler = asking(&none).start().await;
    assert_eq!(asks(&pooler, "bob", "bob-secret").await, NO_ANSWER);
    pooler.logs("could not reach LDAP server \"127.0.0.1\"").await;
}

#[tokio::test]
async fn tls_protects_the_password_and_the_directory_must_prove_its_name() {
    let (authority, directory) = directory().await;
    let other = Authority::new();
    let (plain, tls) = (directory.port, directory.port_tls);
    for (server, ca, check, expected) in [
        ("127.0.0.1", &authority, "demand", "in"),
        ("127.0.0.1", &other, "demand", NO_ANSWER),
        ("localhost", &authority, "demand", NO_ANSWER),
        ("localhost", &other, "never", "in"),
    ] {
        let named =
            |options: String| options.replace("ldapserver=127.0.0.1", &format!("ldapserver={server}"));
        let both = [named(sought(plain, "ldaptls=1")), named(sought(tls, "ldapscheme=ldaps"))];
        let (_ruled, config) = with_rules(&both);
        let config = config.environment("LDAPTLS_CACERT", text(&ca.certificate()));
        let pooler = config.environment("LDAPTLS_REQCERT", check).start().await;
        for (number, options) in both.iter().enumerate() {
            let told = asks_at(&pooler, number, "alice", "alice-secret").await;
            assert_eq!(told, expected, "{options} {check}");
        }
    }
    let config = asking(&sought(plain, "ldaptls=1"));
    let config = config.environment("LDAPTLS_CACERT", "/nonexistent").environment("LDAPTLS_REQCERT", "hard");
    let (code, log) = config.refused().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("/nonexistent"), "{log}");
}

#[tokio::test]
async fn rules_ask_different_directories_for_different_users() {
    let (_authority, directory) = directory().await;
    let rules = format!(
        "host all alice all ldap {}\nhost all bob all ldap {}\nhost all twin all ldap ldapserver=x\n\
         host all all all trust\n",
        named(&directory),
        sought(directory.port, "ldapsearchattribute=mail")
    );
    let ruled = Ruled::new(&rules, "");
    let pooler = ruled.config().start().await;
    assert_eq!(asks(&pooler, "alice", "alice-secret").await, "in");
    assert_eq!(asks(&pooler, "bob", "bob-secret").await, DENIED, "he has no mail");
    pooler.logs("auth_hba_file line 3: ldap requires ldapbasedn, ldapprefix, or ldapsuffix to be set").await;
    assert_ne!(asks(&pooler, "twin", "twin-secret").await, "in");
}

#[tokio::test]
async fn the_password_that_was_sent_opens_the_servers() {
    let (_authority, directory) = directory().await;
    let postgres = std::sync::Arc::new(Postgres::start(&[]).await);
    // Whoever is not named there may come without a password; alice may not.
    postgres.sql("postgres", "CREATE ROLE alice LOGIN PASSWORD 'alice-secret'").await;
    postgres.sql("postgres", "CREATE ROLE bob LOGIN PASSWORD 'another'").await;
    let rules = "host all alice,bob 127.0.0.1/32 scram-sha-256";
    let write = format!(
        "COPY (SELECT * FROM (SELECT '{rules}' UNION ALL SELECT unnest(string_to_array(pg_read_file('pg_hba.conf'), \
         E'\\n'))) lines) TO PROGRAM 'cat > pg_hba.new && mv pg_hba.new pg_hba.conf'"
    );
    postgres.sql("postgres", &write).await;
    postgres.sql("postgres", "SELECT pg_reload_conf()").await;
    let pooler = Pooler::config()
        .postgres(postgres)
        .users("")
        .setting("auth_type", "ldap")
        .setting("auth_ldap_options", &named(&directory))
        .start()
        .await;
    for client in CLIENTS {
        let target = |user: &str, password: &str| {
            format!("host=127.0.0.1 port={} dbname=app user={user} password={password}", pooler.port)
        };
        let told = client.asks(&target("alice", "alice-secret"), "SELECT current_user");
        assert_eq!(told.as_deref(), Ok("alice"), "{client:?}");
        let error = client.asks(&target("alice", "wrong"), "SELECT 1").unwrap_err();
        assert!(error.contains("LDAP authentication failed"), "{client:?}: {error}");
    }
    // PostgreSQL has the last word.
    let refusal = pooler.refuses(&Login::new("bob", "app").password("bob-secret")).await;
    assert_eq!(refusal, "E(28P01) FATAL password authentication failed for user \"bob\"");
}

#[tokio::test]
async fn options_that_make_no_sense_are_told_at_the_start() {
    for (options, wanted) in [
        ("", "auth_ldap_options: ldap requires ldapserver to be set"),
        ("ldapserver=a", "auth_ldap_options: ldap requires ldapbasedn, ldapprefix, or ldapsuffix to be set"),
        ("ldapserver=a ldapbasedn=x ldapsearchfilter=uid", "auth_ldap_options: ldapsearchfilter: "),
    ] {
        let (code, log) = asking(options).refused().await;
        assert_eq!(code, Some(1), "{options}");
        assert!(log.contains(wanted), "{options}: {log}");
    }
}

/// Whatever a directory may say instead of an answer.
#[tokio::test]
async fn a_directory_that_speaks_nonsense_or_nothing_lets_nobody_in_and_harms_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = format!("ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"cn=\"");
    let pooler = asking(&options).setting("client_login_timeout", "2").start().await;
    let huge = vec![b'0'; 100_000];
    for nonsense in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x30\x00",
        b"\x30\x03\x02\x01\x01",
        b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x31\x04\x00\x04",
        b"\x30\x0c\x02\x01\x07\x61\x07\x0a\x01\x00\x04\x00\x04\x00",
        b"\x30\x84\xff\xff\xff\xff\x02\x01\x01",
        b"\x30\x80\x30\x80\x30\x80\x30\x80",
        &huge,
    ] {
        let answer = async {
            let (mut asked, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = asked.read(&mut request).await.unwrap();
            // The pooler may have had enough of it before its end.
            let _ = asked.write_all(nonsense).await;
        };
        let (told, ()) = tokio::join!(asks(&pooler, "alice", "alice-secret"), answer);
        assert_eq!(told, NO_ANSWER, "{:?}", String::from_utf8_lossy(&nonsense[..nonsense.len().min(40)]));
    }
    let silent = tokio::time::timeout(Duration::from_secs(8), asks(&pooler, "alice", "alice-secret")).await;
    assert_eq!(silent.unwrap(), "E(08P01) FATAL client_login_timeout");
}
