//! What the settings of sockets do to them, as the kernel tells: `listen_backlog`, `tcp_defer_accept` and
//! `tcp_socket_buffer`.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::process::Command;
use support::{Pooler, Raw, eventually};

/// What `ss` says of the sockets that it chooses by these words.
fn ss(words: &[&str]) -> String {
    let output = Command::new("ss").args(words).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn listen_backlog_is_the_length_of_the_kernels_queue() {
    let pooler = Pooler::config().setting("listen_backlog", "37").start().await;
    let tcp = ss(&["-Hltn", &format!("sport = :{}", pooler.port)]);
    let unix = ss(&["-Hlx", &format!("src = {}/.s.PGSQL.{}", pooler.directory().display(), pooler.port)]);
    // State, what waits, and how much may; a Unix socket has its kind in front.
    assert_eq!(tcp.split_whitespace().nth(2), Some("37"), "{tcp}");
    assert_eq!(unix.split_whitespace().nth(3), Some("37"), "{unix}");
}

#[tokio::test]
async fn tcp_socket_buffer_is_the_size_of_both_buffers_toward_clients_and_servers() {
    let pooler = Pooler::config().setting("tcp_socket_buffer", "30000").start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let to_client = ss(&["-Htnm", &format!("sport = :{}", pooler.port)]);
    let to_server = ss(&["-Htnm", &format!("dport = :{}", pooler.postgres.port)]);
    for told in [to_client, to_server] {
        // The kernel doubles the number for its own needs.
        assert!(told.contains("rb60000,") && told.contains("tb60000,"), "{told}");
    }
}

#[tokio::test]
async fn tcp_defer_accept_leaves_a_connection_that_says_nothing_with_the_kernel() {
    for (setting, silent_ones) in [("1", 0), ("0", 1)] {
        let pooler = Pooler::config().setting("tcp_defer_accept", setting).start().await;
        // The first one after the start is accepted under the setting.
        pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
        // The kernel gives in after a second, which a busy machine may need for one look.
        eventually(&format!("tcp_defer_accept={setting}"), async || {
            eventually("nobody logs in", async || pooler.list("login_clients").await == 0).await;
            let silent = Raw::connect(&pooler.tcp()).await.unwrap();
            // Who comes later, and speaks, is served in either case.
            let logging_in = pooler.list("login_clients").await;
            drop(silent);
            logging_in == silent_ones
        })
        .await;
    }
}

#[tokio::test]
async fn tcp_defer_accept_is_another_one_after_a_reload() {
    let pooler = Pooler::config().setting("tcp_defer_accept", "0").start().await;
    pooler.edit("tcp_defer_accept = 0", "tcp_defer_accept = 1");
    pooler.admin("RELOAD").await;
    eventually("a silent client is not accepted any more", async || {
        let silent = Raw::connect(&pooler.tcp()).await.unwrap();
        let logging_in = pooler.list("login_clients").await;
        drop(silent);
        logging_in == 0
    })
    .await;
}
