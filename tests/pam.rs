//! `auth_type = pam` and the method pam in rules: the system's modules know the passwords. They are real ones,
//! of a service `pgbouncer` in an `/etc/pam.d` that only the pooler sees.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::fs;

use support::clients::CLIENTS;
use support::modules::Modules;
use support::rules::Ruled;
use support::{Login, PROMPTLY, Pooler, Raw, eventually};

async fn asks(address: &support::Address, user: &str, password: &str) -> String {
    match Raw::try_login(address, &Login::new(user, "app").password(password)).await {
        Ok(mut client) => client.query("SELECT 'in'").await.value(),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn the_systems_modules_decide_who_gets_in() {
    let Some(modules) = Modules::new() else { return };
    let config = Pooler::config().setting("auth_type", "pam").users("\"app\" \"app-secret\"\n");
    let pooler = modules.config(config).start().await;
    let denied = "E(28P01) FATAL PAM authentication failed";
    for (user, password, expected) in [
        ("alice", "alice-secret", "in"),
        ("alice", "wrong", denied),
        ("app", "app-secret", "in"),
        ("expired", "expired-secret", denied),
        ("alice", "", "E(28P01) FATAL empty password returned by client"),
    ] {
        assert_eq!(asks(&pooler.tcp(), user, password).await, expected, "{user} {password}");
    }
    assert_eq!(asks(&pooler.unix(), "bob", "bob-secret").await, "in");
    let asked = modules.asked();
    assert!(asked.contains("pgbouncer auth alice 127.0.0.1\npgbouncer account alice 127.0.0.1\n"), "{asked}");
    assert!(asked.contains("pgbouncer auth bob -\n"), "{asked}");
    for client in CLIENTS {
        let target = |password: &str| {
            format!("host=127.0.0.1 port={} dbname=app user=eve password={password}", pooler.port)
        };
        assert_eq!(client.asks(&target("eve-secret"), "SELECT 'in'").as_deref(), Ok("in"), "{client:?}");
        let error = client.asks(&target("wrong"), "SELECT 'in'").unwrap_err();
        assert!(error.contains("FATAL:  PAM authentication failed"), "{client:?}: {error}");
    }
}

#[tokio::test]
async fn nobody_else_waits_for_a_module_that_takes_its_time() {
    let Some(modules) = Modules::new() else { return };
    let ruled = Ruled::new("host all app all trust\nhost all all all pam\n", "");
    let config = ruled.config().setting("workers", "1").setting("client_login_timeout", "3");
    let pooler = modules.config(config).start().await;
    let login = Login::new("slow", "app").password("slow-secret");
    let address = pooler.tcp();
    let slow = tokio::spawn(async move { Raw::try_login(&address, &login).await.map(drop) });
    eventually("the module is asked", async || modules.asked().contains("auth slow")).await;
    tokio::time::timeout(PROMPTLY, pooler.is_clean()).await.expect("the worker's thread is free");
    // Whoever comes after it waits for the modules, and only as long as a login may take.
    assert_eq!(asks(&pooler.tcp(), "alice", "alice-secret").await, "E(08P01) FATAL client_login_timeout");
    assert_eq!(slow.await.unwrap(), Err("E(08P01) FATAL client_login_timeout".to_owned()));
    modules.open();
    assert_eq!(asks(&pooler.tcp(), "alice", "alice-secret").await, "in");
    let asked = modules.asked();
    assert_eq!(asked.matches("auth alice").count(), 1, "who had gone is not asked about: {asked}");
}

#[tokio::test]
async fn without_a_service_nobody_gets_in() {
    let Some(modules) = Modules::new() else { return };
    let services = modules.services();
    fs::rename(services.join("pgbouncer"), services.join("another")).unwrap();
    fs::write(services.join("other"), "auth required pam_deny.so\naccount required pam_deny.so\n").unwrap();
    let pooler = modules.config(Pooler::config().setting("auth_type", "pam")).start().await;
    let denied = "E(28P01) FATAL PAM authentication failed";
    assert_eq!(asks(&pooler.tcp(), "alice", "alice-secret").await, denied);
    pooler.logs("PAM authentication failed for user \"alice\"").await;
}
