//! Real logins through every way to prove who one is, with psql, psycopg and a client that shows SQLSTATEs;
//! and what is told to whoever has something wrong: the password, the certificate, the host, the database,
//! the user or the rule. The words are PgBouncer's.
//!
//! Each row is one login and what becomes of it: `in`, or SQLSTATE and message.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::net::SocketAddr;
use std::process::Command;

use support::certificates::{Authority, Identity, text};
use support::clients::{CLIENTS, Client};
use support::directory::Directory;
use support::modules::Modules;
use support::pooler::Config;
use support::postgres::USER_SEARCH;
use support::rules::Ruled;
use support::{Address, Login, Pooler, Raw};

const WRONG_PASSWORD: &str = "28P01 password authentication failed";
/// Of auth_query.
const NO_USER: &str = "28P01 no such user";
const WRONG_PROOF: &str = "28P01 SASL authentication failed";
const WRONG_IN_DIRECTORY: &str = "28P01 LDAP authentication failed";
const WRONG_FOR_PAM: &str = "28P01 PAM authentication failed";
const NO_DATABASE: &str = "08P01 no such database: nowhere";
const NO_RULE: &str = "08P01 no authentication method is found";

/// One way to a pooler.
#[derive(Clone, Copy)]
enum Door<'a> {
    Tcp,
    Unix,
    /// TLS, with or without a certificate of the client's own.
    Tls(Option<&'a Identity>),
}

impl Door<'_> {
    fn address(self, pooler: &Pooler) -> Address {
        match self {
            Door::Tcp => pooler.tcp(),
            Door::Unix => pooler.unix(),
            Door::Tls(identity) => {
                Address::Tls(SocketAddr::from(([127, 0, 0, 1], pooler.port)), identity.cloned())
            }
        }
    }

    fn options(self, pooler: &Pooler) -> String {
        let port = pooler.port;
        match self {
            Door::Tcp => format!("host=127.0.0.1 port={port} sslmode=disable"),
            Door::Unix => format!("host={} port={port}", text(pooler.directory())),
            Door::Tls(None) => format!("host=127.0.0.1 port={port} sslmode=require"),
            Door::Tls(Some(Identity { certificate, key })) => format!(
                "host=127.0.0.1 port={port} sslmode=require sslcert={} sslkey={}",
                text(certificate),
                text(key)
            ),
        }
    }
}

/// One login.
struct Row<'a> {
    door: Door<'a>,
    user: &'a str,
    database: &'a str,
    password: &'a str,
    expected: &'a str,
}

fn row<'a>(user: &'a str, password: &'a str, expected: &'a str) -> Row<'a> {
    Row { door: Door::Tcp, user, database: "app", password, expected }
}

impl<'a> Row<'a> {
    fn by(self, door: Door<'a>) -> Self {
        Row { door, ..self }
    }

    fn to(self, database: &'a str) -> Self {
        Row { database, ..self }
    }

    /// Logs in with each client.
    async fn check(&self, pooler: &Pooler, what: &str) {
        let Row { user, database, password, expected, .. } = *self;
        let what = format!("{what}: {user} with \"{password}\" to {database}");
        let login = Login::new(user, database).password(password);
        let told = match Raw::try_login(&self.door.address(pooler), &login).await {
            Ok(mut client) => client.query("SELECT 'in'").await.value(),
            Err(refusal) => refusal,
        };
        let wanted = match expected.split_once(' ') {
            Some((code, words)) => format!("E({code}) FATAL {words}"),
            None => expected.to_owned(),
        };
        assert_eq!(told, wanted, "{what}");
        let words = expected.split_once(' ').map_or(expected, |(_, words)| words);
        for client in CLIENTS {
            assert_eq!(self.told_to(client, pooler), words, "{what} by {client:?}");
        }
    }

    /// `in`, or the message.
    fn told_to(&self, client: Client, pooler: &Pooler) -> String {
        let Row { user, database, password, .. } = self;
        let options = self.door.options(pooler);
        let target = format!("{options} user={user} dbname={database} password='{password}'");
        match client.asks(&target, "SELECT 'in'") {
            Ok(answer) => answer,
            Err(error) => {
                let message = error.split_once("FATAL:  ").map_or(error.as_str(), |(_, message)| message);
                message.lines().next().unwrap_or_default().to_owned()
            }
        }
    }
}

async fn check(what: &str, config: Config, rows: &[Row<'_>]) {
    let pooler = config.start().await;
    for row in rows {
        row.check(&pooler, what).await;
    }
}

/// With `auth_type` and without rules. Servers are come to as `app`.
fn by(auth_type: &str) -> Config {
    Pooler::config().setting("auth_type", auth_type).database_option("user=app")
}

/// Users whose secret is a digest or a verifier, beside those with passwords.
fn users() -> String {
    let scram = postgres_protocol::password::scram_sha_256(b"kept-secret");
    let md5 = postgres_protocol::password::md5(b"digest-secret", "digest");
    format!(
        "\"plain_user\" \"plain-secret\"\n\"digest\" \"{md5}\"\n\"keeper\" \"{scram}\"\n\"app\" \"app-secret\"\n\
         \"nopassword\" \"\"\n"
    )
}

#[tokio::test]
async fn without_passwords() {
    let all =
        [row("app", "any", "in"), row("nobody", "any", "in"), row("app", "any", NO_DATABASE).to("nowhere")];
    check("any", by("any"), &all).await;
    let stranger = "28000 \"trust\" authentication failed";
    let known = [
        row("app", "any", "in"),
        row("nobody", "any", stranger),
        row("app", "any", NO_DATABASE).to("nowhere"),
        row("app", "any", "in").by(Door::Unix),
    ];
    check("trust", by("trust"), &known).await;
}

async fn passwords_of_auth_file(auth_type: &str, of_digest: &str, refused: &str, refused_keeper: &str) {
    let rows = [
        row("plain_user", "plain-secret", "in"),
        row("plain_user", "plain-secret", "in").by(Door::Unix),
        row("plain_user", "wrong", refused),
        row("digest", "digest-secret", of_digest),
        row("digest", "wrong", refused),
        row("keeper", "kept-secret", "in"),
        row("keeper", "wrong", refused_keeper),
        row("nobody", "plain-secret", refused),
        row("nopassword", "x", refused),
        row("plain_user", "plain-secret", NO_DATABASE).to("nowhere"),
        // Who may not in is not told what there is.
        row("plain_user", "wrong", refused).to("nowhere"),
    ];
    check(auth_type, by(auth_type).users(&users()), &rows).await;
}

#[tokio::test]
async fn with_passwords_in_plain_text() {
    passwords_of_auth_file("plain", "in", WRONG_PASSWORD, WRONG_PASSWORD).await;
}

/// It means SCRAM for whoever has such a secret.
#[tokio::test]
async fn with_passwords_by_md5() {
    passwords_of_auth_file("md5", "in", WRONG_PASSWORD, WRONG_PROOF).await;
}

/// Which an md5 secret cannot check.
#[tokio::test]
async fn with_passwords_by_scram() {
    passwords_of_auth_file("scram-sha-256", WRONG_PROOF, WRONG_PROOF, WRONG_PROOF).await;
}

#[tokio::test]
async fn with_secrets_of_postgresql() {
    let config = Pooler::config()
        .setting("auth_type", "md5")
        .users("\"app\" \"app-secret\"\n")
        .setting("auth_user", "app")
        .setting("auth_query", "SELECT usename, passwd FROM user_search($1)");
    let pooler = config.start().await;
    pooler.sql(USER_SEARCH).await;
    for row in [
        row("scram_user", "scram-secret", "in"),
        row("scram_user", "wrong", WRONG_PROOF),
        row("nobody", "x", NO_USER),
        row("md5_user", "md5-secret", "in"),
        row("md5_user", "wrong", WRONG_PASSWORD),
        row("nobody", "x", NO_USER),
        row("app", "wrong", WRONG_PASSWORD),
    ] {
        row.check(&pooler, "auth_query").await;
    }
}

#[tokio::test]
async fn with_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let shown = authority.issue("pooler", "DNS:localhost");
    let [own, namesake] = [authority.issue("app", "DNS:app"), other.issue("app", "DNS:app")];
    let [stranger, robot] = [authority.issue("nobody", "DNS:nobody"), authority.issue("robot", "DNS:robot")];
    let with = |identity| Door::Tls(Some(identity));
    let front = |config: Config, mode: &str| {
        config.shows(mode, &shown).setting("client_tls_ca_file", text(&authority.certificate()))
    };
    let mismatch = "08P01 certificate authentication failed";
    let rows = [
        row("app", "", "in").by(with(&own)),
        row("plain_user", "", mismatch).by(with(&own)),
        row("nobody", "", "08P01 no such user").by(with(&stranger)),
        row("app", "", NO_DATABASE).by(with(&own)).to("nowhere"),
    ];
    check("cert", front(by("cert"), "verify-full"), &rows).await;

    let ruled = Ruled::new(
        "hostssl all app all cert\nhostssl all md5_user all cert map=ops\n",
        "ops robot md5_user\n",
    );
    let required = "08P01 certificate authentication failed";
    let rows = [
        row("app", "", "in").by(with(&own)),
        row("md5_user", "", "in").by(with(&robot)),
        row("md5_user", "", mismatch).by(with(&own)),
        row("app", "", required).by(Door::Tls(None)),
        row("app", "", required).by(with(&namesake)),
        row("app", "", NO_RULE).by(Door::Tcp),
        row("scram_user", "", NO_RULE).by(with(&own)),
    ];
    check("hba", front(ruled.config(), "prefer"), &rows).await;
}

#[tokio::test]
async fn with_the_systems_word() {
    let own = Command::new("id").arg("-un").output().unwrap();
    let own = String::from_utf8(own.stdout).unwrap().trim().to_owned();
    let ruled = Ruled::new(
        &format!("local all {own} peer\nlocal all app peer map=ops\nlocal all all peer\n"),
        &format!("ops {own} app\n"),
    );
    let config = ruled.config().users(&format!("\"{own}\" \"\"\n\"app\" \"\"\n\"md5_user\" \"\"\n"));
    let rows = [
        row(&own, "", "in").by(Door::Unix),
        row("app", "", "in").by(Door::Unix),
        row("md5_user", "", "08P01 unix socket login rejected").by(Door::Unix),
        row(&own, "", NO_DATABASE).by(Door::Unix).to("nowhere"),
        row(&own, "", NO_RULE),
    ];
    check("peer", config, &rows).await;
}

fn directory_options(directory: &Directory) -> String {
    let port = directory.port;
    format!(r#"ldapserver=127.0.0.1 ldapport={port} ldapprefix="cn=" ldapsuffix=",ou=people,dc=example""#)
}

#[tokio::test]
async fn with_a_directorys_word() {
    let authority = Authority::new();
    let directory = Directory::start(&authority.issue("directory", "IP:127.0.0.1")).await;
    let options = directory_options(&directory);
    let rows = || {
        [
            row("alice", "alice-secret", "in"),
            row("alice", "wrong", WRONG_IN_DIRECTORY),
            row("nobody", "wrong", WRONG_IN_DIRECTORY),
            row("alice", "alice-secret", NO_DATABASE).to("nowhere"),
            row("alice", "wrong", WRONG_IN_DIRECTORY).to("nowhere"),
        ]
    };
    check("ldap", by("ldap").setting("auth_ldap_options", &options), &rows()).await;
    let ruled = Ruled::new(&format!("host all all all ldap {options}\n"), "");
    check("hba", ruled.config(), &rows()).await;
}

#[tokio::test]
async fn with_the_word_of_pam() {
    let Some(modules) = Modules::new() else { return };
    let rows = || {
        [
            row("alice", "alice-secret", "in"),
            row("alice", "wrong", WRONG_FOR_PAM),
            row("expired", "expired-secret", WRONG_FOR_PAM),
            row("alice", "alice-secret", NO_DATABASE).to("nowhere"),
            row("alice", "wrong", WRONG_FOR_PAM).to("nowhere"),
        ]
    };
    check("pam", modules.config(Pooler::config().setting("auth_type", "pam")), &rows()).await;
    let ruled = Ruled::new("host all all all pam\n", "");
    check("hba", modules.config(ruled.config()), &rows()).await;
}

#[tokio::test]
async fn with_rules_for_some_hosts_databases_and_users() {
    let ruled = Ruled::new(
        "host all plain_user 10.0.0.0/8 trust\n\
         host all plain_user 127.0.0.0/8 password\n\
         host all app 10.0.0.0/8 trust\n\
         host other all all trust\n\
         host all digest all md5\n\
         host app keeper all scram-sha-256\n\
         host all md5_user all reject\n\
         local all plain_user trust\n\
         host all nobody all trust\n\
         host all odd all kerberos\n",
        "",
    );
    let rows = [
        row("plain_user", "plain-secret", "in"),
        row("plain_user", "wrong", WRONG_PASSWORD),
        row("plain_user", "wrong", "in").by(Door::Unix),
        row("app", "app-secret", NO_RULE),
        row("digest", "digest-secret", "in"),
        row("digest", "wrong", WRONG_PASSWORD),
        row("keeper", "kept-secret", "in"),
        row("keeper", "wrong", WRONG_PROOF),
        row("keeper", "kept-secret", NO_RULE).to("nowhere"),
        row("md5_user", "md5-secret", "08P01 login rejected"),
        row("nobody", "x", "28000 \"trust\" authentication failed"),
        row("stranger", "x", NO_RULE),
        row("odd", "x", "0A000 the method of auth_hba_file line 10 is not supported"),
    ];
    check("hba", ruled.config().users(&users()), &rows).await;
}
