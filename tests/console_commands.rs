//! Every command of the console with its tag or its error, word for word, over TCP and over the Unix socket. What
//! the commands do is in `tests/console.rs`, the columns of SHOW are in `tests/show.rs`.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::{Login, Pooler, Raw};

/// Command, and its tag or error, in this order on one pooler: each finds what those before it have left.
const COMMANDS: &[(&str, &str)] = &[
    ("SHOW HELP", "SHOW"),
    ("SHOW nonsense", "08P01 invalid command 'SHOW nonsense', use SHOW HELP;"),
    ("SHOW", "08P01 invalid command 'SHOW', use SHOW HELP;"),
    ("", "08P01 invalid command '', use SHOW HELP;"),
    ("RELOAD; RELOAD", "08P01 invalid command 'RELOAD; RELOAD', use SHOW HELP;"),
    ("SET query_timeout = 5", "SET query_timeout=5"),
    ("SET query_timeout TO '0'", "SET query_timeout=0"),
    ("SET query_timeout = x", "08P01 SET failed"),
    ("SET nonsense = 1", "08P01 SET failed"),
    ("SET listen_port = 1", "SET listen_port=1"),
    ("RELOAD", "RELOAD"),
    ("PAUSE app", "PAUSE"),
    ("RESUME app", "RESUME"),
    ("RESUME app", "08P01 database app is not paused"),
    ("RESUME", "08P01 pooler is not paused/suspended"),
    ("PAUSE", "PAUSE"),
    ("PAUSE", "08P01 already suspended/paused"),
    ("SUSPEND", "08P01 already suspended/paused"),
    ("RESUME", "RESUME"),
    ("PAUSE nowhere", "08P01 no such database: nowhere"),
    ("PAUSE pgbouncer", "08P01 cannot pause admin db: pgbouncer"),
    ("PAUSE app", "PAUSE"),
    ("SUSPEND", "08P01 cannot suspend with paused databases"),
    ("RESUME app", "RESUME"),
    ("SUSPEND", "SUSPEND"),
    ("RESUME", "RESUME"),
    ("RECONNECT", "RECONNECT"),
    ("RECONNECT app", "RECONNECT"),
    ("RECONNECT pgbouncer", "08P01 cannot reconnect admin db: pgbouncer"),
    ("RECONNECT nowhere", "08P01 no such database: nowhere"),
    ("WAIT_CLOSE", "WAIT_CLOSE"),
    ("WAIT_CLOSE app", "WAIT_CLOSE"),
    ("WAIT_CLOSE pgbouncer", "08P01 cannot wait in admin db: pgbouncer"),
    ("DISABLE", "08P01 a database is required"),
    ("DISABLE nowhere", "08P01 no such database: nowhere"),
    ("DISABLE app", "DISABLE"),
    ("ENABLE app", "ENABLE"),
    ("ENABLE", "08P01 a database is required"),
    ("KILL_CLIENT", "08P01 invalid client pointer supplied"),
    ("KILL_CLIENT 4294967295", "08P01 client not found"),
    ("KILL pgbouncer", "08P01 cannot kill admin db: pgbouncer"),
    ("KILL nowhere", "08P01 no such database: nowhere"),
    ("KILL app", "KILL"),
    ("RESUME app", "RESUME"),
    ("KILL", "KILL"),
    ("RESUME", "RESUME"),
    ("SHOW STATE", "SHOW"),
    ("SELECT state", "SHOW"),
];

async fn outcome(console: &mut Raw, command: &str) -> String {
    let reply = console.query(command).await;
    assert!(!reply.closed, "{command}: {reply}");
    assert_eq!(reply.messages.last().unwrap().body, b"I", "{command}: {reply}");
    match reply.of(b'E').next() {
        Some(error) => {
            assert_eq!(error.field(b'S'), "ERROR", "{command}");
            format!("{} {}", error.field(b'C'), error.field(b'M'))
        }
        None => reply.of(b'C').next().expect("a tag").strings().concat(),
    }
}

#[tokio::test]
async fn every_command_answers_with_its_tag_or_its_error_over_tcp_and_over_the_unix_socket() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    for address in [pooler.tcp(), pooler.unix()] {
        let mut console = Raw::login(&address, &Login::new("admin", "pgbouncer")).await;
        for (command, expected) in COMMANDS {
            assert_eq!(outcome(&mut console, command).await, *expected, "{command} over {address:?}");
        }
    }
}

#[tokio::test]
async fn who_may_only_look_is_refused_every_command_that_changes_something() {
    let pooler = Pooler::config().setting("stats_users", "app").start().await;
    for address in [pooler.tcp(), pooler.unix()] {
        let mut console = Raw::login(&address, &Login::new("app", "pgbouncer")).await;
        for (command, expected) in COMMANDS {
            let looks = command.starts_with("SHOW") || command.starts_with("SELECT");
            let is_none = expected.contains("invalid command");
            let expected = if looks || is_none { expected } else { "08P01 admin access needed" };
            assert_eq!(outcome(&mut console, command).await, expected, "{command} over {address:?}");
        }
        for command in ["SHUTDOWN", "SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN WAIT_FOR_CLIENTS"] {
            assert_eq!(outcome(&mut console, command).await, "08P01 admin access needed", "{command}");
        }
    }
}
