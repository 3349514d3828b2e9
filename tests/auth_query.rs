//! Users that `auth_file` does not have: PostgreSQL is asked for their secrets, and the key that a
//! client proves in its own login opens the server for it. No password is anywhere.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use bytes::BytesMut;
use pgweir::auth::{
    ClientLogin, Credentials, Likeness, Method, MockKey, Password, ScramSecret, ScramSettings, Secret,
};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use std::sync::Arc;
use std::time::Instant;
use support::pooler::Config;
use support::postgres::USER_SEARCH;
use support::{Login, Pooler, Postgres, Raw};

/// Only the user who asks is in `auth_file`.
async fn asking(method: &str) -> (Arc<Postgres>, Pooler) {
    let postgres = Arc::new(Postgres::start(&[]).await);
    postgres.sql("postgres", USER_SEARCH).await;
    let pooler = with(Pooler::config().postgres(Arc::clone(&postgres)), method).start().await;
    (postgres, pooler)
}

fn with(config: Config, method: &str) -> Config {
    config
        .users("\"app\" \"app-secret\"\n\"admin\" \"admin-secret\"\n")
        .setting("auth_type", method)
        .setting("auth_user", "app")
        .setting("auth_dbname", "system")
        .setting("auth_query", "SELECT usename, passwd FROM public.user_search($1)")
        .database_line("system = {server} dbname=postgres")
}

async fn asks(pooler: &Pooler, user: &str, password: &str) -> String {
    match Raw::try_login(&pooler.tcp(), &Login::new(user, "app").password(password)).await {
        Ok(mut client) => client.query("SELECT current_user").await.value(),
        Err(refusal) => refusal,
    }
}

async fn console(pooler: &Pooler) -> Raw {
    let login = Login::new("admin", "pgbouncer").password("admin-secret");
    Raw::login(&pooler.tcp(), &login).await
}

#[tokio::test]
async fn a_user_whom_only_postgresql_knows_logs_in_with_its_password() {
    for method in ["md5", "scram-sha-256"] {
        let (_, pooler) = asking(method).await;
        assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, "scram_user", "{method}");
        let denied = "E(28P01) FATAL SASL authentication failed";
        assert_eq!(asks(&pooler, "scram_user", "wrong").await, denied, "{method}");
        let stranger = asks(&pooler, "nobody", "scram-secret").await;
        assert!(stranger.starts_with("E(28P01) FATAL "), "{method}: {stranger}");
    }
}

/// All that a client with this name and a wrong password is told; a salt as the second value.
async fn told(pooler: &Pooler, user: &str) -> (Vec<String>, String) {
    let mut client = Raw::begin_login(&pooler.tcp(), &Login::new(user, "app")).await;
    let (mut told, mut salt) = (Vec::new(), String::new());
    let mut scram = ScramSha256::new(b"wrong", ChannelBinding::unsupported());
    loop {
        let message = match client.login_message().await {
            Ok(message) => message,
            Err(error) => {
                told.push(error);
                return (told, salt);
            }
        };
        let answer = match message.body[3] {
            10 => {
                let length = u32::try_from(scram.message().len()).unwrap().to_be_bytes();
                [b"SCRAM-SHA-256\0", &length[..], scram.message()].concat()
            }
            11 => {
                let first = String::from_utf8(message.body[4..].to_vec()).unwrap();
                let parts: Vec<&str> = first.split(',').collect();
                parts[1].clone_into(&mut salt);
                told.push(format!("a salt of {} characters, {}", salt.len(), parts[2]));
                scram.update(&message.body[4..]).unwrap();
                scram.message().to_vec()
            }
            _ => b"md5wrong\0".to_vec(),
        };
        told.push(format!("method {}", message.body[3]));
        client.send(support::message::message(b'p', &answer)).await;
    }
}

#[tokio::test]
async fn nobody_can_tell_a_stranger_from_a_user_by_what_is_asked() {
    let seen = |log: String| log.matches("public.user_search($1)").count();
    for (method, known, password) in [
        ("md5", "scram_user", "scram-secret"),
        ("md5", "md5_user", "md5-secret"),
        ("scram-sha-256", "scram_user", "scram-secret"),
        ("plain", "scram_user", "scram-secret"),
    ] {
        let postgres = Arc::new(Postgres::start(&["log_statement=all"]).await);
        postgres.sql("postgres", USER_SEARCH).await;
        let pooler = with(Pooler::config().postgres(Arc::clone(&postgres)), method).start().await;
        assert_eq!(asks(&pooler, known, password).await, known);
        let mut queries = Vec::new();
        let mut salts = Vec::new();
        let mut answers = Vec::new();
        for user in [known, "nobody", "nobody", "somebody"] {
            let before = seen(postgres.log());
            let (told, salt) = told(&pooler, user).await;
            queries.push(seen(postgres.log()) - before);
            // What is said at the end are PgBouncer's words: "no such user".
            let (_, asked) = told.split_last().expect("it is told something");
            answers.push(asked.to_vec());
            salts.push(salt);
        }
        assert!(answers.iter().all(|told| *told == answers[0]), "{method} {known}: {answers:?}");
        assert!(
            queries.iter().all(|count| *count == queries[0] && *count > 0),
            "{method} {known}: {queries:?}"
        );
        if answers[0].len() == 3 {
            assert_eq!(salts[1], salts[2], "a stranger keeps its salt");
            assert_ne!(salts[1], salts[3], "and has one of its own");
        }
    }
}

#[test]
fn a_strangers_plain_password_costs_what_a_known_users_does() {
    // So many iterations that nothing else counts.
    const COSTLY: u32 = 20_000;
    let rng = &mut rand::rng();
    let settings = ScramSettings {
        iterations: 4096,
        mock_key: MockKey::new(rng),
        strangers: Likeness::Scram { iterations: COSTLY },
    };
    let mut time = |stored: Option<Secret>| {
        let stored = stored.map(|secret| Arc::new(Credentials::new(secret)));
        let attempts = (0..5).map(|_| {
            let mut login = ClientLogin::new(Method::Plain, "app", stored.clone(), None, &settings, rng);
            let began = Instant::now();
            login.handle_password(b"wrong\0", &mut BytesMut::new()).unwrap_err();
            began.elapsed()
        });
        attempts.min().unwrap()
    };
    let verifier = ScramSecret::derive(&Password::new("right"), b"a stored salt".to_vec(), COSTLY);
    let known = time(Some(Secret::Scram(verifier)));
    for (who, time) in [("a stranger", time(None)), ("one without a password", time(Some(Secret::parse(""))))]
    {
        assert!(time < known * 3 && known < time * 3, "{time:?} for {who}, {known:?} for a known user");
    }
}

#[tokio::test]
async fn an_md5_hash_from_postgresql_checks_a_client_too() {
    let (_, pooler) = asking("md5").await;
    assert_eq!(asks(&pooler, "md5_user", "md5-secret").await, "md5_user");
    assert_eq!(asks(&pooler, "md5_user", "wrong").await, "E(28P01) FATAL password authentication failed");
}

#[tokio::test]
async fn a5_the_proven_key_opens_servers_again_after_all_were_closed() {
    let (_, pooler) = asking("scram-sha-256").await;
    let login = Login::new("scram_user", "app").password("scram-secret");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    let mut pids = Vec::new();
    for _ in 0..3 {
        let pid = client.query("SELECT pg_backend_pid()").await.value();
        assert!(!pids.contains(&pid), "RECONNECT made a new server");
        pids.push(pid);
        console(&pooler).await.query("RECONNECT").await.succeeds("RECONNECT");
    }
}

#[tokio::test]
async fn a5_a_new_password_counts_from_the_next_login_on() {
    let (postgres, pooler) = asking("scram-sha-256").await;
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, "scram_user");
    postgres
        .sql(
            "postgres",
            "SET password_encryption = 'scram-sha-256'; ALTER ROLE scram_user PASSWORD 'another'",
        )
        .await;
    console(&pooler).await.query("RECONNECT").await.succeeds("RECONNECT");
    let denied = "E(28P01) FATAL SASL authentication failed";
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, denied);
    assert_eq!(asks(&pooler, "scram_user", "another").await, "scram_user");
}

#[tokio::test]
async fn a_query_that_fails_lets_nobody_in_and_is_in_the_log() {
    let broken = "E(08P01) FATAL bouncer config error";
    let config = || with(Pooler::config(), "md5");
    let pooler = config().setting("auth_query", "SELECT * FROM nowhere WHERE user = $1").start().await;
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, broken);
    pooler.logs("auth_query failed in database system as app: relation \"nowhere\" does not exist").await;
    assert_eq!(asks(&pooler, "app", "app-secret").await, "app", "who is in auth_file needs no query");

    let pooler = config().setting("auth_dbname", "elsewhere").start().await;
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, broken);
}

#[tokio::test]
async fn the_one_who_asks_is_not_the_user_that_a_database_forces() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    postgres.sql("postgres", USER_SEARCH).await;
    let config = with(Pooler::config().postgres(Arc::clone(&postgres)), "scram-sha-256");
    let pooler = config
        .database_line("forced = {server} dbname=postgres user=md5_user password=md5-secret")
        .setting("auth_dbname", "forced")
        .start()
        .await;
    for _ in 0..2 {
        assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, "scram_user");
        let login = Login::new("scram_user", "forced").password("scram-secret");
        let mut client = Raw::login(&pooler.tcp(), &login).await;
        assert_eq!(client.query("SELECT current_user").await.value(), "md5_user");
    }
}

#[tokio::test]
async fn a_query_that_does_not_return_a_user_and_a_secret_is_an_error() {
    let pooler = with(Pooler::config(), "md5").setting("auth_query", "SELECT $1::text").start().await;
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, "E(08P01) FATAL bouncer config error");
    pooler.logs("auth_query failed: it must return two columns").await;
}

#[tokio::test]
async fn a_database_may_have_a_query_of_its_own() {
    let postgres = Arc::new(Postgres::start(&[]).await);
    let config = Pooler::config().postgres(Arc::clone(&postgres)).users("\"app\" \"app-secret\"\n");
    let pooler = config
        .setting("auth_type", "scram-sha-256")
        .database_option(
            "auth_user=app auth_query='SELECT usename, passwd FROM mine.secrets WHERE usename = $1'",
        )
        .database_line("other = {server} dbname={database}")
        .start()
        .await;
    pooler
        .sql("CREATE SCHEMA mine; CREATE TABLE mine.secrets AS SELECT usename, passwd FROM pg_shadow")
        .await;
    pooler.sql("GRANT USAGE ON SCHEMA mine TO app; GRANT SELECT ON mine.secrets TO app").await;
    assert_eq!(asks(&pooler, "scram_user", "scram-secret").await, "scram_user");
    let login = Login::new("scram_user", "other").password("scram-secret");
    assert_eq!(pooler.refuses(&login).await, "E(28P01) FATAL SASL authentication failed");
}
