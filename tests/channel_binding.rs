//! SCRAM-SHA-256-PLUS: a login that is good for the TLS connection on which it is made, and for no other.
//! Clients are psql, psycopg and one that says what no driver would; someone in between has a certificate
//! of his own.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use pgweir::config::{Host, Settings, SslMode};
use pgweir::net::Socket;
use pgweir::net::endpoint::{Dialing, Endpoint};
use pgweir::net::stream::Stream;
use pgweir::net::tls::{Connector, Tls};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use support::certificates::{Authority, Identity, text};
use support::clients::CLIENTS;
use support::message::message;
use support::pooler::Config;
use support::postgres::USER_SEARCH;
use support::{Login, Pooler, Postgres, Raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Kinds of certificates that can be bound to, as openssl makes them.
const BINDABLE: [(&str, &[&str]); 4] = [
    ("ECDSA-SHA256", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-sha256"]),
    ("ECDSA-SHA384", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-sha384"]),
    ("RSA-SHA512", &["-newkey", "rsa:2048", "-sha512"]),
    ("RSA-PSS-SHA384", &["-newkey", "rsa:2048", "-sha384", "-sigopt", "rsa_padding_mode:pss"]),
];

/// The one whose signature has no hash function of its own.
const UNBINDABLE: [&str; 2] = ["-newkey", "ed25519"];

fn certificate(authority: &Authority, options: &[&str]) -> Identity {
    let names = ["-addext", "subjectAltName=DNS:pooler"];
    authority.self_signed_with("shown", "pooler", &[options, &names].concat())
}

fn scram(shown: &Identity) -> Config {
    Pooler::config().shows("prefer", shown).setting("auth_type", "scram-sha-256")
}

fn target(pooler: &Pooler, options: &str) -> String {
    format!("host=127.0.0.1 port={} user=scram_user password=scram-secret dbname=app {options}", pooler.port)
}

fn scram_user() -> Login {
    Login::new("scram_user", "app").password("scram-secret")
}

/// The mechanisms that a client is offered.
async fn offered(client: &mut Raw) -> Vec<String> {
    let message = client.login_message().await.unwrap();
    assert_eq!((message.tag, &message.body[..4]), (b'R', &[0, 0, 0, 10][..]));
    let names = message.body[4..].split(|byte| *byte == 0);
    names.filter(|name| !name.is_empty()).map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
}

/// Goes on with this mechanism and binding, to AuthenticationOk or to what the server said.
async fn choose(client: &mut Raw, mechanism: &str, binding: ChannelBinding) -> Result<(), String> {
    let mut scram = ScramSha256::new(b"scram-secret", binding);
    let length = u32::try_from(scram.message().len()).unwrap().to_be_bytes();
    let first = [mechanism.as_bytes(), b"\0", &length, scram.message()].concat();
    client.send(message(b'p', &first)).await;
    scram.update(&client.login_message().await?.body[4..]).unwrap();
    client.send(message(b'p', scram.message())).await;
    scram.finish(&client.login_message().await?.body[4..]).unwrap();
    let ok = client.login_message().await?;
    assert_eq!((ok.tag, &ok.body[..]), (b'R', &[0; 4][..]));
    Ok(())
}

/// The certificate's hash, as openssl has it.
fn end_point(identity: &Identity) -> ChannelBinding {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in", text(&identity.certificate)]);
    let fingerprint = support::process::run(openssl);
    let digits = fingerprint.trim().rsplit('=').next().unwrap().split(':');
    let hash = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    ChannelBinding::tls_server_end_point(hash)
}

#[tokio::test]
async fn a4_a_client_may_require_that_its_login_is_bound_to_the_certificate_it_was_shown() {
    let authority = Authority::new();
    for (kind, options) in BINDABLE {
        let pooler = scram(&certificate(&authority, options)).start().await;
        for client in CLIENTS {
            for wish in ["require", "prefer", "disable"] {
                let target = target(&pooler, &format!("sslmode=require channel_binding={wish}"));
                let told = client.asks(&target, "SELECT current_user");
                assert_eq!(told.as_deref(), Ok("scram_user"), "{kind} {client:?} {wish}");
            }
        }
    }
}

#[tokio::test]
async fn a4_the_unbound_mechanism_alone_is_offered_where_there_is_nothing_to_bind_to() {
    let authority = Authority::new();
    let (bindable, unbindable) = (certificate(&authority, BINDABLE[0].1), Authority::new());
    let unbindable = certificate(&unbindable, &UNBINDABLE);
    let (with, without) = (scram(&bindable).start().await, scram(&unbindable).start().await);
    for (address, expected) in [
        (with.tls(), vec![PLUS, PLAIN]),
        (with.tcp(), vec![PLAIN]),
        (with.unix(), vec![PLAIN]),
        (without.tls(), vec![PLAIN]),
    ] {
        let mut client = Raw::begin_login(&address, &scram_user()).await;
        assert_eq!(offered(&mut client).await, expected, "{address:?}");
        let stranger = Login::new("nobody", "app");
        let mut client = Raw::begin_login(&address, &stranger).await;
        assert_eq!(offered(&mut client).await, expected, "a stranger sees no difference");
    }
    for client in CLIENTS {
        for (pooler, options) in [(&with, "sslmode=disable"), (&without, "sslmode=require")] {
            let ask = |wish: &str| client.asks(&target(pooler, &format!("{options} {wish}")), "SELECT 'in'");
            assert_eq!(ask("channel_binding=prefer").as_deref(), Ok("in"), "{client:?} {options}");
            let error = ask("channel_binding=require").unwrap_err();
            assert!(error.contains("channel binding"), "{client:?} {options}: {error}");
        }
    }
}

#[tokio::test]
async fn a4_a_client_from_whom_the_binding_was_hidden_is_refused() {
    let authority = Authority::new();
    let pooler = scram(&certificate(&authority, BINDABLE[0].1)).start().await;
    let hidden = "E(28000) FATAL SCRAM channel binding negotiation error";
    for (address, binding, expected) in [
        (pooler.tls(), ChannelBinding::unrequested(), Err(hidden.to_owned())),
        (pooler.tls(), ChannelBinding::unsupported(), Ok(())),
        (pooler.tcp(), ChannelBinding::unrequested(), Ok(())),
    ] {
        let mut client = Raw::begin_login(&address, &scram_user()).await;
        offered(&mut client).await;
        assert_eq!(choose(&mut client, PLAIN, binding).await, expected, "{address:?}");
    }
}

#[tokio::test]
async fn a4_a_login_that_is_bound_to_another_certificate_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let shown = certificate(&authority, BINDABLE[0].1);
    let pooler = scram(&shown).start().await;
    let refused = "E(28000) FATAL SCRAM channel binding check failed";
    for (identity, expected) in
        [(&shown, Ok(())), (&certificate(&other, BINDABLE[0].1), Err(refused.to_owned()))]
    {
        let mut client = Raw::begin_login(&pooler.tls(), &scram_user()).await;
        offered(&mut client).await;
        assert_eq!(choose(&mut client, PLUS, end_point(identity)).await, expected);
    }
}

#[tokio::test]
async fn a_reload_changes_the_certificate_of_later_connections_only() {
    let (authority, other) = (Authority::new(), Authority::new());
    let shown = certificate(&authority, BINDABLE[0].1);
    let pooler = scram(&shown).start().await;
    let before = end_point(&shown);
    let mut client = Raw::begin_login(&pooler.tls(), &scram_user()).await;
    offered(&mut client).await;

    certificate(&other, BINDABLE[0].1).replace(&shown);
    let login = Login::new("admin", "pgbouncer").password("admin-secret");
    Raw::login(&pooler.tcp(), &login).await.query("RELOAD").await.succeeds("RELOAD");
    assert_eq!(choose(&mut client, PLUS, before).await, Ok(()), "it was shown the old one");
    for client in CLIENTS {
        let target = target(&pooler, "sslmode=require channel_binding=require");
        assert_eq!(client.asks(&target, "SELECT 'in'").as_deref(), Ok("in"), "{client:?}");
    }
}

/// Someone between the pooler and its server, with a certificate of his own on the one side and TLS on the
/// other, who passes everything on.
async fn in_between(shown: &Identity, server: &Postgres) -> SocketAddr {
    let settings = Settings {
        client_tls_sslmode: SslMode::Require,
        client_tls_cert_file: Some(shown.certificate.clone()),
        client_tls_key_file: Some(shown.key.clone()),
        ..Settings::default()
    };
    let acceptor = Tls::load(&settings, &Tls::default()).unwrap().0.acceptor.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Endpoint { host: Host::Tcp("127.0.0.1".to_owned()), port: server.port };
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            // The pooler may go at any time.
            if tcp.read_exact(&mut request).await.is_err() || tcp.write_all(b"S").await.is_err() {
                continue;
            }
            let stream = Stream::new(tcp.into_std().unwrap()).unwrap();
            let Ok(stream) = acceptor.accept(stream, &[]).await else { continue };
            let dialing = Dialing { tls: Connector::opportunistic(), ..Dialing::default() };
            let mut onward = server.dial(&dialing).await.unwrap();
            let mut socket = Socket::Tls(Box::new(stream));
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut onward).await;
        }
    });
    address
}

fn toward(server: &Arc<Postgres>) -> Config {
    let config = Pooler::config().postgres(Arc::clone(server)).setting("server_tls_sslmode", "require");
    config.setting("client_login_timeout", "5")
}

#[tokio::test]
async fn a_server_is_logged_in_to_over_its_own_connection_only() {
    let (authority, other) = (Authority::new(), Authority::new());
    let stranger = certificate(&other, BINDABLE[0].1);
    for (kind, options) in BINDABLE {
        let server = Postgres::with_tls(&certificate(&authority, options)).await;
        let pooler = toward(&server).start().await;
        let mut client = Raw::login(&pooler.tcp(), &scram_user()).await;
        assert_eq!(client.query("SELECT current_user").await.value(), "scram_user", "{kind}");
        // That login was bound: relayed by somebody else it is worth nothing.
        let pooler = toward(&server).server(in_between(&stranger, &server).await).start().await;
        let refusal = pooler.refuses(&scram_user()).await;
        assert_eq!(refusal, "E(28000) FATAL SCRAM channel binding check failed", "{kind}");
    }
}

#[tokio::test]
async fn a_server_whose_certificate_cannot_be_bound_to_is_logged_in_to_without() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Postgres::with_tls(&certificate(&authority, &UNBINDABLE)).await;
    let pooler = toward(&server).start().await;
    let mut client = Raw::login(&pooler.tcp(), &scram_user()).await;
    assert_eq!(client.query("SELECT current_user").await.value(), "scram_user");
    // Hiding the server's offer is noticed by the server itself.
    let stranger = certificate(&other, BINDABLE[0].1);
    let pooler = toward(&server).server(in_between(&stranger, &server).await).start().await;
    assert_ne!(pooler.refuses(&scram_user()).await, "");
}

#[tokio::test]
async fn a_key_that_was_proven_on_one_channel_opens_a_server_on_another() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Postgres::with_tls(&certificate(&authority, BINDABLE[1].1)).await;
    let pooler = scram(&certificate(&other, BINDABLE[0].1))
        .postgres(Arc::clone(&server))
        .users("\"app\" \"app-secret\"\n\"admin\" \"admin-secret\"\n")
        .setting("server_tls_sslmode", "require")
        .setting("auth_user", "app")
        .database_option("auth_query='SELECT * FROM user_search($1)'")
        .start()
        .await;
    pooler.sql(USER_SEARCH).await;
    for client in CLIENTS {
        let target = target(&pooler, "sslmode=require channel_binding=require");
        let told = client.asks(&target, "SELECT current_user");
        assert_eq!(told.as_deref(), Ok("scram_user"), "{client:?}");
    }
}
