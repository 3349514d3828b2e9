//! The tests' own tools: logins of every kind, the trace notation, and that nothing is left behind.

use crate::support;

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;
use support::message::message;
use support::network::Network;
use support::{Address, Login, Message, Pooler, Postgres, Raw, Reply, eventually};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_raw_client_logs_in_with_every_method_directly_and_through_the_pooler() {
    let pooler = Pooler::config().start().await;
    let names = ["app", "plain_user", "md5_user", "scram_user"];
    for name in names {
        let secret = format!("{}-secret", name.trim_end_matches("_user"));
        let direct = Login::new(name, "app").password(&secret);
        let mut client = Raw::login(&pooler.postgres.tcp(), &direct).await;
        assert_eq!(client.query("SELECT user").await.value(), name);
        let mut client = Raw::login(&pooler.tcp(), &direct).await;
        assert_eq!(client.query("SELECT user").await.value(), name);
        assert_eq!(client.key.len(), 8);
        assert!(client.parameters.contains_key("server_version"));
    }
    for name in &names[1..] {
        let wrong = Login::new(name, "app").password("wrong");
        let refusal = Raw::try_login(&pooler.postgres.tcp(), &wrong).await;
        assert!(refusal.err().unwrap().starts_with("E(28P01) FATAL"));
    }
}

#[tokio::test]
async fn the_pooler_asks_its_clients_for_passwords_of_every_kind() {
    for method in ["plain", "md5", "scram-sha-256"] {
        let pooler = Pooler::config().setting("auth_type", method).start().await;
        let login = Login::new("app", "app");
        let right = login.clone().password("app-secret");
        let mut client = Raw::login(&pooler.tcp(), &right).await;
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
        let mut client = Raw::login(&pooler.unix(), &right).await;
        client.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
        let wrong = login.password("wrong");
        let refusal = Raw::try_login(&pooler.tcp(), &wrong).await.err();
        assert!(refusal.unwrap().contains("FATAL"), "{method}");
    }
}

#[tokio::test]
async fn servers_and_their_files_are_gone_after_a_test() {
    let postgres = Postgres::start(&[]).await;
    let directory = postgres.socket_directory().to_path_buf();
    let socket = postgres.unix();
    drop(postgres);
    assert!(!directory.exists());
    assert!(Raw::connect(&socket).await.is_err());

    let pooler = Pooler::config().start().await;
    let process = format!("/proc/{}", pooler.pid());
    let Address::Unix(socket) = pooler.unix() else {
        panic!("a Unix socket has a path");
    };
    assert!(Path::new(&process).exists() && socket.exists());
    drop(pooler);
    assert!(!Path::new(&process).exists() && !socket.exists());
}

#[test]
fn the_notation_tells_traces_apart() {
    let read = |bytes: Vec<u8>| Message { tag: bytes[0], body: bytes[5..].to_vec() };
    let reply = Reply {
        messages: vec![
            read(message(b'1', b"")),
            read(message(b'S', b"name\0value\0")),
            read(message(b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff")),
            read(message(b'D', b"\0\x01\0\0\0\x01y")),
            read(message(b'C', b"SELECT 2\0")),
            read(message(b'E', b"SERROR\0C26000\0Mtext\0\0")),
            read(message(b'Z', b"T")),
        ],
        closed: true,
    };
    let check = |expected: &str, right: bool| {
        let judged = std::panic::catch_unwind(|| {
            reply.is(expected);
        });
        assert_eq!(judged.is_ok(), right, "{expected}");
    };
    check("1 D(x|NULL) D(y) C(SELECT 2) E(26000) Z(T) EOF", true);
    check("1 Dx2 C E Z EOF", true);
    check("1 N* D* C E Z(T) EOF", true);
    check("1 D D C E Z(T)", false);
    check("1 D C E Z(T) EOF", false);
    check("1 D D C E Z(I) EOF", false);
    check("1 D D D C E Z(T) EOF", false);
    check("D D C E Z EOF", false);
}

/// What a knock at a port says that nobody listens on.
async fn knock(network: &Network) -> Option<ErrorKind> {
    let knock = timeout(Duration::from_millis(500), TcpStream::connect((network.address, 5432)));
    knock.await.ok().map(|refused| refused.expect_err("nobody listens").kind())
}

#[tokio::test]
async fn a_network_that_is_cut_is_silent_and_leaves_nothing_behind() {
    if !Network::is_possible() {
        return;
    }
    let network = Network::start();
    assert_eq!(knock(&network).await, Some(ErrorKind::ConnectionRefused));
    network.cut();
    assert_eq!(knock(&network).await, None, "a packet to it vanishes");
    network.heal();
    assert_eq!(knock(&network).await, Some(ErrorKind::ConnectionRefused));
    let cable = Path::new("/sys/class/net").join(&network.cable);
    assert!(cable.exists());
    drop(network);
    eventually("the cable is gone", async || !cable.exists()).await;
}
