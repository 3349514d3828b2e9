//! The databases that `*` makes, and pools: what is let go when nobody uses it any more, and what is not.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::pooler::is_ours;
use support::{Login, Pooler, Raw, eventually};

async fn login(pooler: &Pooler, database: &str) -> Raw {
    Raw::login(&pooler.tcp(), &Login::new("app", database)).await
}

async fn has_row(pooler: &Pooler, show: &str, column: &str, value: &str) -> bool {
    pooler.admin(show).await.iter().any(|row| row[column] == value)
}

#[tokio::test]
async fn a_database_of_the_star_goes_when_nobody_has_used_it_for_autodb_idle_timeout() {
    let config = Pooler::config().database_line("* = {server} dbname={database}");
    let config = config.setting("autodb_idle_timeout", "1").setting("server_idle_timeout", "1");
    let pooler = config.start().await;
    let mut kept = login(&pooler, "kept").await;
    for name in ["left", "halted"] {
        let mut client = login(&pooler, name).await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        assert!(has_row(&pooler, "SHOW DATABASES", "name", name).await);
    }
    if is_ours() {
        pooler.admin("PAUSE halted").await;
    }
    eventually("the database is gone", async || !has_row(&pooler, "SHOW DATABASES", "name", "left").await)
        .await;
    assert!(!has_row(&pooler, "SHOW POOLS", "database", "left").await);
    pooler.logs("dropping database 'left' as it does not exist anymore or inactive auto-database").await;
    // Who has a client stays, and so does what an administrator has paused.
    assert!(has_row(&pooler, "SHOW DATABASES", "name", "kept").await);
    kept.query("SELECT 1").await.is("T D(1) C Z(I)");
    if is_ours() {
        assert!(has_row(&pooler, "SHOW DATABASES", "name", "halted").await);
    }
    // The name can be used again, as if nothing had been.
    login(&pooler, "left").await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn names_that_no_server_knows_leave_nothing_behind() {
    if !is_ours() {
        return; // PgBouncer keeps them for autodb_idle_timeout.
    }
    let pooler = Pooler::config().database_line("* = {server}").start().await;
    let before = pooler.list("databases").await;
    for number in 0..20 {
        let name = format!("invented_{number}");
        let refusal = pooler.refuses(&Login::new("app", &name)).await;
        assert!(refusal.contains(&name), "{refusal}");
    }
    assert!(pooler.list("databases").await > before);
    eventually("the names are forgotten", async || pooler.list("databases").await == before).await;
    // And strangers do not get as far as that.
    pooler.refuses(&Login::new("stranger", "invented_20")).await;
    assert_eq!(pooler.list("databases").await, before);
}

#[tokio::test]
async fn users_whom_no_settings_name_leave_nothing_behind_but_what_they_did() {
    if !is_ours() {
        return;
    }
    let line = "open = {server} dbname={database} user=app";
    let pooler = Pooler::config().setting("auth_type", "any").database_line(line).start().await;
    let before = pooler.list("users").await;
    for number in 0..20 {
        let name = format!("invented_{number}");
        let mut client = Raw::login(&pooler.tcp(), &Login::new(&name, "open")).await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
    }
    eventually("the users are forgotten", async || pooler.list("users").await == before).await;
    let stats = pooler.admin("SHOW STATS").await;
    let ours = stats.iter().find(|row| row["database"] == "open").unwrap();
    assert_eq!(ours["total_query_count"], "20");
}

#[tokio::test]
async fn a_pool_without_clients_and_servers_is_freed_after_pool_idle_timeout() {
    if !is_ours() {
        return; // PgBouncer 1.25 has no pool_idle_timeout.
    }
    let config = Pooler::config().setting("pool_idle_timeout", "1").setting("server_idle_timeout", "1");
    let pooler = config.start().await;
    let mut client = Raw::login(&pooler.tcp(), &Login::new("md5_user", "app")).await;
    let mut other = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    drop(client);
    eventually("the pool is freed", async || !has_row(&pooler, "SHOW POOLS", "user", "md5_user").await).await;
    // Idle clients keep theirs, though its servers have gone too.
    assert!(has_row(&pooler, "SHOW POOLS", "user", "app").await);
    other.query("SELECT 1").await.is("T D(1) C Z(I)");
    // Nothing that was counted is lost.
    let stats = pooler.admin("SHOW STATS").await;
    let ours = stats.iter().find(|row| row["database"] == "app").unwrap();
    assert_eq!(ours["total_query_count"], "2");
    let mut again = Raw::login(&pooler.tcp(), &Login::new("md5_user", "app")).await;
    again.query("SELECT 1").await.is("T D(1) C Z(I)");
}
