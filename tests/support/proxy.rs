//! What stands between the pooler and PostgreSQL when a test needs a slow or a strange server.

use super::Postgres;
use super::message::message;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const CANCEL_REQUEST: [u8; 4] = 80_877_102_u32.to_be_bytes();

/// Passes everything through, but holds CancelRequests back until told.
pub struct CancelHolder {
    pub address: SocketAddr,
    gate: Arc<Semaphore>,
    held: watch::Receiver<u32>,
    _task: JoinSet<()>,
}

impl CancelHolder {
    pub async fn start(postgres: &Postgres) -> CancelHolder {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port exists");
        let address = listener.local_addr().expect("it is bound");
        let server = SocketAddr::from(([127, 0, 0, 1], postgres.port));
        let gate = Arc::new(Semaphore::new(0));
        let (count, held) = watch::channel(0);
        let mut task = JoinSet::new();
        let opened = gate.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (gate, count) = (opened.clone(), count.clone());
                connections.spawn(async move { pass(client, server, &gate, &count).await });
            }
        });
        CancelHolder { address, gate, held, _task: task }
    }

    /// Waits until a CancelRequest is held back.
    pub async fn holds_one(&mut self) {
        let held = self.held.wait_for(|count| *count > 0);
        tokio::time::timeout(super::PATIENCE, held)
            .await
            .expect("the pooler sends its CancelRequest in time")
            .expect("the proxy runs as long as the test");
    }

    /// Lets all CancelRequests through from now on.
    pub fn release(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, gate: &Semaphore, count: &watch::Sender<u32>) {
    let mut start = [0; 8];
    if client.read_exact(&mut start).await.is_err() {
        return;
    }
    let permit = if start[4..] == CANCEL_REQUEST {
        count.send_modify(|count| *count += 1);
        gate.acquire().await.ok()
    } else {
        None
    };
    let Ok(mut upstream) = TcpStream::connect(server).await else {
        return;
    };
    let _ = upstream.write_all(&start).await;
    // Either side may end the connection at any time; the other then sees the same.
    let _ = copy_bidirectional(&mut client, &mut upstream).await;
    drop(permit);
}

/// A server that says what a test wants at login, and answers every simple query with one row.
pub struct Impostor {
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl Impostor {
    /// `before` is sent before AuthenticationOk and `after` behind it.
    pub async fn start(before: Vec<u8>, after: Vec<u8>) -> Impostor {
        Impostor::with(Script { before, after, answer: one_row(), ends: false }).await
    }

    /// Answers every simple query with these bytes, and then ends the connection if so told.
    pub async fn answering(answer: Vec<u8>, ends: bool) -> Impostor {
        Impostor::with(Script { before: Vec::new(), after: Vec::new(), answer, ends }).await
    }

    async fn with(script: Script) -> Impostor {
        let script = Arc::new(script);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port exists");
        let address = listener.local_addr().expect("it is bound");
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let script = script.clone();
                // The pooler closing its connection is the normal end.
                connections.spawn(async move {
                    let _ = impersonate(client, &script).await;
                });
            }
        });
        Impostor { address, _task: task }
    }
}

/// What an [`Impostor`] says.
struct Script {
    before: Vec<u8>,
    after: Vec<u8>,
    answer: Vec<u8>,
    ends: bool,
}

async fn impersonate(mut client: TcpStream, script: &Script) -> std::io::Result<()> {
    let length = client.read_u32().await?;
    read_body(&mut client, length).await?;
    let parameters = [
        &b"server_version\x0015.0\0"[..],
        b"client_encoding\0UTF8\0",
        b"server_encoding\0UTF8\0",
        b"DateStyle\0ISO, MDY\0",
        b"TimeZone\0UTC\0",
        b"IntervalStyle\0postgres\0",
        b"application_name\0\0",
        b"standard_conforming_strings\0on\0",
        b"integer_datetimes\0on\0",
    ];
    let mut hello = script.before.clone();
    hello.extend(message(b'R', &[0, 0, 0, 0]));
    hello.extend(&script.after);
    for parameter in parameters {
        hello.extend(message(b'S', parameter));
    }
    hello.extend(message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]));
    hello.extend(message(b'Z', b"I"));
    client.write_all(&hello).await?;
    loop {
        let tag = client.read_u8().await?;
        let length = client.read_u32().await?;
        read_body(&mut client, length).await?;
        if tag == b'Q' {
            client.write_all(&script.answer).await?;
            if script.ends {
                return Ok(());
            }
        }
    }
}

async fn read_body(client: &mut TcpStream, length: u32) -> std::io::Result<()> {
    let rest = usize::try_from(length).map_or(0, |length| length.saturating_sub(4));
    client.read_exact(&mut vec![0; rest]).await?;
    Ok(())
}

fn one_row() -> Vec<u8> {
    let column = b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    [
        message(b'T', column),
        message(b'D', b"\0\x01\0\0\0\x08impostor"),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// A NoticeResponse.
pub fn notice(text: &str) -> Vec<u8> {
    let fields = format!("SNOTICE\0VNOTICE\0C00000\0M{text}\0\0");
    message(b'N', fields.as_bytes())
}
