//! [`Relay`]: stands before a server, passes all through, and notes what is sent to it and when.
//!
//! It runs in a thread of its own, so that its clock is right while the test is busy; in the network of the
//! server, what it notes is what has arrived there. Where it leads to may change: then new connections go
//! there and the old ones stay, as behind a Service of Kubernetes.

use super::network::Network;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Bytes that came together.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub bytes: Vec<u8>,
    /// On a connection of pgweir's monitor: it asks a server how it is, and brings nothing of a client.
    pub of_monitor: bool,
}

/// A relay that listens. It ends with its value, and its connections with it.
pub struct Relay {
    pub address: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    /// Its thread ends when this does.
    _stop: oneshot::Sender<()>,
}

impl Relay {
    /// Listens at this address, in this network if there is one, and leads where `to` says.
    pub fn start(address: SocketAddr, to: watch::Receiver<SocketAddr>, network: Option<&Network>) -> Relay {
        let namespace = network.map(|network| File::open(network.file()).expect("it is there"));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let (bound, is_bound) = channel();
        let (stop, stopped) = oneshot::channel();
        let noted = Arc::clone(&arrivals);
        thread::spawn(move || {
            if let Some(namespace) = namespace {
                // Of this thread alone, and of the sockets that it makes.
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a network namespace");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a thread may have a runtime").block_on(async {
                tokio::select! {
                    () = listen(address, to, &noted, bound) => {}
                    // The value is gone.
                    _ = stopped => {}
                }
            });
        });
        let address = is_bound.recv().unwrap_or_else(|_| panic!("a relay cannot listen at {address}"));
        Relay { address, arrivals, _stop: stop }
    }

    /// What has come after this moment that is not the monitor's.
    pub fn since(&self, moment: Instant) -> Vec<Arrival> {
        let arrivals = self.arrivals.lock().expect("nobody panics with it");
        arrivals.iter().filter(|arrival| !arrival.of_monitor && arrival.at > moment).cloned().collect()
    }

    /// Whether the monitor was here after this moment.
    pub fn is_asked_since(&self, moment: Instant) -> bool {
        let arrivals = self.arrivals.lock().expect("nobody panics with it");
        arrivals.iter().any(|arrival| arrival.of_monitor && arrival.at > moment)
    }
}

async fn listen(
    address: SocketAddr,
    to: watch::Receiver<SocketAddr>,
    noted: &Arc<Mutex<Vec<Arrival>>>,
    bound: Sender<SocketAddr>,
) {
    let listener = TcpListener::bind(address).await.expect("the address is free");
    bound.send(listener.local_addr().expect("it is bound")).expect("the caller waits for it");
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (server, noted) = (*to.borrow(), Arc::clone(noted));
        connections.spawn(async move {
            match TcpStream::connect(server).await {
                Ok(server) => pass(client, server, &noted).await,
                Err(_) => refuse(client, &noted).await,
            }
        });
    }
}

/// Nobody listens there: the client sees the end, and what it says first is noted.
async fn refuse(mut client: TcpStream, noted: &Mutex<Vec<Arrival>>) {
    let mut buffer = vec![0; 1024];
    if let Ok(count @ 1..) = client.read(&mut buffer).await {
        note(&buffer[..count], &mut None, noted);
    }
}

/// Until either side ends the connection; the other then sees the same.
async fn pass(client: TcpStream, server: TcpStream, noted: &Mutex<Vec<Arrival>>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a TCP socket takes it");
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut of_monitor = None;
    let note = |bytes: &[u8]| note(bytes, &mut of_monitor, noted);
    tokio::select! {
        () = copy(from_client, to_server, note) => {}
        () = copy(from_server, to_client, |_| {}) => {}
    }
}

/// `of_monitor` is unknown before the first bytes of a connection: its StartupMessage says so.
fn note(bytes: &[u8], of_monitor: &mut Option<bool>, noted: &Mutex<Vec<Arrival>>) {
    let is_its = || bytes.windows(14).any(|window| window == b"pgweir monitor");
    let of_monitor = *of_monitor.get_or_insert_with(is_its);
    let arrival = Arrival { at: Instant::now(), bytes: bytes.to_vec(), of_monitor };
    noted.lock().expect("nobody panics with it").push(arrival);
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut note: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        note(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
