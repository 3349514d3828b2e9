//! Scenario group A: servers that say strange things, TLS in portions that clients can take, and the console.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use crate::support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::certificates::Authority;
use support::message::{extended, message, query, run_of, sync};
use support::postgres::USER_SEARCH;
use support::proxy::Impostor;
use support::{Login, Pooler, Postgres, Raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes TLS on and notes the largest record that comes back, its header not counted.
struct Scale {
    address: SocketAddr,
    largest: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Scale {
    async fn before(port: u16) -> Scale {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let largest = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let noted = Arc::clone(&largest);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                connections.spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    // The first byte answers the SSLRequest. Either side may go at any time.
                    let back = async {
                        let first = from_server.read_u8().await?;
                        to_client.write_u8(first).await?;
                        loop {
                            let mut header = [0; 5];
                            from_server.read_exact(&mut header).await?;
                            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
                            noted.fetch_max(length, Ordering::Relaxed);
                            let mut record = vec![0; length];
                            from_server.read_exact(&mut record).await?;
                            to_client.write_all(&[&header[..], &record].concat()).await?;
                        }
                        #[allow(unreachable_code, reason = "it says what the block's type is")]
                        Ok::<(), std::io::Error>(())
                    };
                    tokio::select! {
                        _ = back => {}
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    }
                });
            }
        });
        Scale { address, largest, _tasks: tasks }
    }
}

const ASYNCHRONOUS: &str = "import asyncio, psycopg, sys
async def main():
    connection = await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True)
    sizes = list(range(8100, 8260, 3)) + list(range(16300, 16420, 3)) + [24576, 32768, 100000]
    for size in sizes:
        rows = f\"SELECT 'first' UNION ALL SELECT repeat('x', {size}) UNION ALL SELECT 'last'\"
        cursor = await asyncio.wait_for(connection.execute(rows), 5)
        lengths = [len(row[0]) for row in await cursor.fetchall()]
        assert lengths == [5, size, 4], (size, lengths)
    print('all', len(sizes))
asyncio.run(main())
";

/// libpq reads once when its socket is readable. What is left of a record within the TLS library makes no
/// socket readable: a record must not be larger than what libpq has room for, 8 kB.
#[tokio::test]
async fn a8_no_tls_record_is_larger_than_a_clients_buffer() {
    let authority = Authority::new();
    let pooler = Pooler::config().shows("require", &authority.issue("pooler", "DNS:localhost")).start().await;
    let scale = Scale::before(pooler.port).await;
    let target = format!("host=127.0.0.1 port={} user=app dbname=app sslmode=require", scale.address.port());
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
    let mut command = Command::new(python);
    command.args(["-c", ASYNCHRONOUS, &target]);
    let said = tokio::task::spawn_blocking(|| support::process::run(command)).await.unwrap();
    assert_eq!(said.trim(), "all 97");
    let largest = scale.largest.load(Ordering::Relaxed);
    // A tag and the type of what is in it come with TLS 1.3.
    assert!((4_000..=8_192 + 17).contains(&largest), "{largest} bytes in a record");
}

fn without_a_code() -> [Vec<u8>; 4] {
    [
        message(b'E', b"SERROR\0Mno code\0\0"),
        message(b'E', b"SFATAL\0VFATAL\0Mno code either\0\0"),
        message(b'E', b"\0"),
        message(b'E', b"C\0\0"),
    ]
}

#[tokio::test]
async fn a9_an_error_without_a_sqlstate_is_passed_on_and_harms_nothing() {
    for error in without_a_code() {
        let answer = run_of([error.clone(), message(b'Z', b"I")]);
        let server = Impostor::answering(answer, false).await;
        let pooler = Pooler::config().server(server.address).start().await;
        let mut a = pooler.client().await;
        for _ in 0..2 {
            let told = a.query("SELECT 1").await;
            told.is("E Z(I)");
            assert_eq!(told.messages[0].body, error[5..]);
        }
        // In the place of AuthenticationOk.
        let server = Impostor::start(error.clone(), Vec::new()).await;
        let pooler =
            Pooler::config().server(server.address).setting("client_login_timeout", "0.5").start().await;
        for _ in 0..2 {
            let refusal = pooler.refuses(&Login::new("app", "app")).await;
            assert!(refusal.starts_with("E("), "{refusal}");
        }
        // The console is there: nothing has crashed.
        assert_eq!(pooler.admin("SHOW VERSION").await.len(), 1);
    }
}

/// A server that asks for SCRAM and answers with this behind the client's own nonce.
async fn huge_nonce(listener: TcpListener, rest: Vec<u8>) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let rest = rest.clone();
        connections.spawn(async move {
            let length = client.read_u32().await?;
            client.read_exact(&mut vec![0; usize::try_from(length).unwrap() - 4]).await?;
            client.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await?;
            assert_eq!(client.read_u8().await?, b'p');
            let length = client.read_u32().await?;
            let mut first = vec![0; usize::try_from(length).unwrap() - 4];
            client.read_exact(&mut first).await?;
            let first = String::from_utf8_lossy(&first).into_owned();
            let (_, nonce) = first.rsplit_once("r=").unwrap();
            let answer = [b"\0\0\0\x0br=", nonce.as_bytes(), &rest].concat();
            client.write_all(&message(b'R', &answer)).await?;
            // Whatever is said to that, until the other side goes.
            tokio::io::copy(&mut client, &mut tokio::io::sink()).await?;
            Ok::<(), std::io::Error>(())
        });
    }
}

#[tokio::test]
async fn a9_a_servers_huge_scram_nonce_is_refused_and_costs_nothing() {
    let end = b",s=c2FsdHNhbHQ=,i=4096";
    let nonces = [[&vec![b'x'; 3_000][..], end].concat(), [&vec![b'x'; 5_000_000][..], end].concat()];
    let more =
        [b"short,s=c2FsdA==,i=4294967295".to_vec(), b"x,s=,i=0".to_vec(), vec![b','; 2_000], Vec::new()];
    for rest in nonces.into_iter().chain(more) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let length = rest.len();
        let server = tokio::spawn(huge_nonce(listener, rest));
        let pooler = Pooler::config().server(address).setting("client_login_timeout", "0.5").start().await;
        let before = pooler.allocated_bytes();
        for _ in 0..2 {
            let refusal = pooler.refuses(&Login::new("app", "app")).await;
            assert!(refusal.starts_with("E("), "{length}: {refusal}");
        }
        let spent = pooler.processor_time();
        assert!(spent.as_secs() < 5, "{length}: {spent:?} of CPU time");
        let grown = pooler.allocated_bytes().saturating_sub(before);
        assert!(grown < 3_000_000, "{length}: grew by {grown} bytes");
        assert_eq!(pooler.admin("SHOW VERSION").await.len(), 1);
        server.abort();
    }
}

/// What psql and drivers ask of any server on their own account.
#[tokio::test]
async fn a11_what_clients_ask_by_themselves_is_an_error_at_the_console_and_not_its_end() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    for sql in [
        // psql, at the tab key.
        "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p')",
        "SELECT name FROM (SELECT pg_catalog.lower(name) AS name FROM pg_catalog.pg_settings) ss",
        // Drivers, before and after what they are told to.
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "select version()",
        "SELECT 1",
        "SELECT * FROM pools",
        "DISCARD ALL",
        "",
        ";",
    ] {
        console.send(query(sql)).await;
        let told = console.ready(1).await;
        assert!(!told.closed, "{sql}");
        console.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    }
    console.query("set client_encoding to 'UTF8'").await.is("N* C(SET) Z(I)");
    // The extended protocol is refused as by PgBouncer, and that is the end of it.
    console.send(run_of([extended("SHOW POOLS", &[]), sync()])).await;
    let told = console.rest().await;
    told.is("E(08P01) Z(I) E(08P01) EOF");
    assert_eq!(told.messages[0].field(b'M'), "extended query protocol not supported by admin console");
    pooler.admin("SHOW POOLS").await;
}

#[tokio::test]
async fn a11_an_administrator_whom_only_postgresql_knows_needs_its_password() {
    let postgres = Postgres::shared().await;
    let pooler = Pooler::config()
        .postgres(Arc::clone(&postgres))
        .users("\"postgres\" \"\"\n\"admin\" \"admin-secret\"\n")
        .setting("auth_type", "scram-sha-256")
        .setting("admin_users", "scram_user, admin")
        .setting("auth_user", "postgres")
        .setting("auth_dbname", "system")
        .database_line("system = {server} dbname=postgres")
        .start()
        .await;
    pooler.sql(USER_SEARCH).await;
    for user in ["scram_user", "admin"] {
        for password in ["wrong", "", "admin", "scram_user"] {
            let refusal = pooler.refuses(&Login::new(user, "pgbouncer").password(password)).await;
            assert!(refusal.starts_with("E(28P01) FATAL "), "{user}: {refusal}");
        }
    }
    for (user, password) in [("scram_user", "scram-secret"), ("admin", "admin-secret")] {
        let login = Login::new(user, "pgbouncer").password(password);
        let mut console = Raw::login(&pooler.tcp(), &login).await;
        console.query("KILL app").await.succeeds("KILL");
        console.query("RESUME app").await.succeeds("RESUME");
    }
}
