//! Two applications share a pool of two servers and set up their sessions otherwise. Whatever they do, each sees its
//! own session and nothing of the other's, in every transaction.
//!
//! `PGWEIR_APPLICATIONS_SECONDS=60 cargo nextest run two_applications::` goes on for longer.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use support::message::query;
use support::pooler::Restless;
use support::stage::outcome;
use support::{Login, Pooler, Raw};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Of each application; together they have twice as many clients as servers.
const CLIENTS: usize = 2;

/// What one application expects of its session.
#[derive(Clone, Copy)]
struct Application {
    name: &'static str,
    schema: &'static str,
    time_zone: &'static str,
    role: &'static str,
    timeout: &'static str,
}

const APPLICATIONS: [Application; 2] = [
    Application { name: "shop", schema: "shop", time_zone: "Asia/Tokyo", role: "plain_user", timeout: "31s" },
    Application { name: "desk", schema: "desk", time_zone: "America/Lima", role: "md5_user", timeout: "47s" },
];

struct Worker {
    application: Application,
    client: Raw,
    /// Of its channel, its lock and its table.
    number: usize,
    checks: usize,
}

impl Worker {
    async fn ask(&mut self, sql: &str) -> String {
        self.client.send(query(sql)).await;
        outcome(&self.client.until(b'Z').await)
    }

    async fn must(&mut self, sql: &str, expected: &str) {
        let got = self.ask(sql).await;
        assert_eq!(got, expected, "{} {}: {sql}", self.application.name, self.number);
    }

    async fn set_up(&mut self) {
        let Application { schema, time_zone, role, timeout, .. } = self.application;
        self.must(&format!("SET search_path = {schema}, public"), "SET").await;
        self.must(&format!("SET TimeZone = '{time_zone}'"), "SET").await;
        self.must(&format!("SET statement_timeout = '{timeout}'"), "SET").await;
        self.must(
            &format!("SELECT set_config('app.worker', '{}', false)", self.number),
            &self.number.to_string(),
        )
        .await;
        self.must(&format!("SET ROLE {role}"), "SET").await;
    }

    /// Its own session, as the server sees it.
    async fn check(&mut self) {
        let Application { schema, time_zone, role, timeout, name } = self.application;
        let session = "SELECT current_setting('search_path'), current_setting('TimeZone'), current_user, \
             current_setting('statement_timeout'), current_setting('app.worker'), (SELECT owner FROM mine)";
        let expected = format!("{schema}, public,{time_zone},{role},{timeout},{},{name}", self.number);
        self.must(session, &expected).await;
        self.checks += 1;
    }

    async fn round(&mut self, turn: usize) {
        self.check().await;
        match turn % 5 {
            0 => self.a_failed_transaction_changes_nothing().await,
            1 => self.a_lock_is_its_own().await,
            2 => self.a_temporary_table_is_its_own().await,
            3 => self.it_hears_its_own_channel().await,
            _ => self.a_local_setting_ends().await,
        }
        self.check().await;
    }

    async fn a_failed_transaction_changes_nothing(&mut self) {
        self.must("BEGIN", "BEGIN").await;
        self.must("SET search_path = nowhere", "SET").await;
        self.must("RESET ROLE", "RESET").await;
        self.must("SELECT 1/0", "E(22012)").await;
        self.must("ROLLBACK", "ROLLBACK").await;
    }

    async fn a_lock_is_its_own(&mut self) {
        let key = self.number;
        self.must(&format!("SELECT pg_advisory_lock({key})"), "").await;
        self.check().await;
        let held = format!(
            "SELECT string_agg(objid::text, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objid = {key}"
        );
        self.must(&held, &key.to_string()).await;
        self.must(&format!("SELECT pg_advisory_unlock({key})"), "t").await;
    }

    async fn a_temporary_table_is_its_own(&mut self) {
        // As whoever may make one.
        self.must("RESET ROLE", "RESET").await;
        self.must(&format!("CREATE TEMP TABLE scratch AS SELECT {} AS number", self.number), "SELECT 1")
            .await;
        self.must("SELECT number FROM scratch", &self.number.to_string()).await;
        self.must("DROP TABLE scratch", "DROP TABLE").await;
        self.must(&format!("SET ROLE {}", self.application.role), "SET").await;
    }

    async fn it_hears_its_own_channel(&mut self) {
        let channel = format!("channel_{}", self.number);
        self.must(&format!("LISTEN {channel}"), "LISTEN").await;
        self.client.send(query(&format!("NOTIFY {channel}, '{}'", self.number))).await;
        let heard = self.client.until(b'Z').await;
        let notification = match heard.of(b'A').next() {
            Some(notification) => notification.masked(),
            None => self.client.until(b'A').await.of(b'A').next().unwrap().masked(),
        };
        assert!(notification.contains(&channel), "{notification}");
        self.must("UNLISTEN *", "UNLISTEN").await;
    }

    async fn a_local_setting_ends(&mut self) {
        self.must("BEGIN", "BEGIN").await;
        self.must("SET LOCAL statement_timeout = '1s'", "SET").await;
        self.must("SHOW statement_timeout", "1s").await;
        self.must("COMMIT", "COMMIT").await;
    }
}

#[tokio::test]
async fn two_applications_on_two_servers_see_their_own_sessions_in_every_transaction() {
    let seconds = std::env::var("PGWEIR_APPLICATIONS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let pooler = Pooler::config().pool_size(2).start().await;
    let _moving = Restless::start(pooler.console().await);
    for Application { name, schema, role, .. } in APPLICATIONS {
        pooler.sql(&format!("GRANT {role} TO app")).await;
        pooler.sql(&format!("CREATE SCHEMA {schema} AUTHORIZATION {role}")).await;
        pooler.sql(&format!("CREATE TABLE {schema}.mine AS SELECT '{name}'::text AS owner")).await;
        pooler.sql(&format!("GRANT SELECT ON {schema}.mine TO {role}")).await;
    }
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(5));
    let mut workers = JoinSet::new();
    for (number, application) in APPLICATIONS.into_iter().cycle().take(2 * CLIENTS).enumerate() {
        let client = Raw::login(&pooler.tcp(), &Login::new("app", "app")).await;
        let mut worker = Worker { application, client, number: number + 1, checks: 0 };
        workers.spawn(async move {
            worker.set_up().await;
            let mut turn = number;
            while Instant::now() < until {
                worker.round(turn).await;
                turn += 1;
            }
            worker.checks
        });
    }
    let checks: usize = workers.join_all().await.into_iter().sum();
    println!("{checks} checks of whole sessions");
    assert!(checks > 100, "only {checks} checks");
}
