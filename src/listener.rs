//! Accept: listen on TCP and Unix sockets, and give each connection to a worker.
//!
//! The first worker accepts, since it is the one that is always in use: as long as it is the only one, a connection
//! never changes its thread.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::oneshot;

use crate::config::{Host, Settings};
use crate::log::Peer;
use crate::net::endpoint::{TcpOptions, socket_name};
use crate::net::event_loop::spawn;
use crate::net::stream::Listener;
use crate::net::{DetachedSocket, process_behind};
use crate::session::login;
use crate::session::plane::{Message, Plane, Shared, Task};

/// With `tcp_defer_accept` the kernel keeps a connection on which nothing is said to itself for about so long, in
/// seconds. That is what PgBouncer 1.24 does, whatever its manual says: a client that stays silent still comes
/// under `client_login_timeout`.
const DEFER_ACCEPT_S: u32 = 1;

sockopt_impl!(
    /// `TCP_DEFER_ACCEPT`, in seconds; 0 is off.
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    u32
);

/// After an accept that failed for want of descriptors or memory, others get time to give some back.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Everything that we listen on.
pub struct Listeners {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<(std::os::unix::net::UnixListener, Option<SocketFile>)>,
}

/// Sockets that somebody else has opened for us.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Of TCP.
    pub tcp: Vec<std::net::TcpListener>,
    /// Unix sockets.
    pub unix: Vec<std::os::unix::net::UnixListener>,
}

impl Inherited {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }
}

/// The file of a Unix socket, removed when dropped, unless a successor has put its own there.
struct SocketFile {
    path: PathBuf,
    /// Device and number.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let identity = identity(&path)?;
        Ok(SocketFile { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // It may have been removed by hand; then there is nothing left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// What accepts, until it is dropped.
pub struct Accepting {
    tcp: Vec<oneshot::Sender<()>>,
    _unix: Vec<oneshot::Sender<()>>,
    _files: Vec<SocketFile>,
}

impl Listeners {
    /// Opens `listen_addr`:`listen_port` and the socket in `unix_socket_dir`.
    ///
    /// Fails with the address that cannot be had, and when another pooler answers on the Unix socket, unless
    /// we `replace` it.
    pub async fn open(settings: &Settings, replace: bool) -> io::Result<Self> {
        let mut listeners = Listeners { tcp: Vec::new(), unix: Vec::new() };
        let ports = [settings.listen_port, settings.listen_port_ro];
        for port in ports.into_iter().filter(|port| *port != 0) {
            for address in addresses(settings, port).await? {
                let listener = listen_tcp(address, settings);
                let named = |error| named(error, &format!("cannot listen on {address}"));
                listeners.tcp.push(listener.map_err(named)?);
                tracing::info!("listening on {address}");
            }
        }
        let name = socket_name(settings.listen_port);
        match settings.default_host() {
            Some(Host::Unix(directory)) => {
                let path = directory.join(name);
                let listener = listen_unix(&path, settings, replace).await;
                let named = |error| named(error, &format!("cannot listen on unix:{}", path.display()));
                let file = SocketFile::new(path.clone());
                listeners.unix.push((listener.map_err(named)?, Some(file.map_err(named)?)));
                tracing::info!("listening on unix:{}", path.display());
            }
            Some(Host::Abstract(directory)) => {
                let shown = format!("unix:@{directory}/{name}");
                let listener = bind_unix(Path::new(&format!("\0{directory}/{name}")), settings);
                let named = |error| named(error, &format!("cannot listen on {shown}"));
                listeners.unix.push((listener.map_err(named)?, None));
                tracing::info!("listening on {shown}");
            }
            Some(Host::Tcp(_)) | None => {}
        }
        if listeners.tcp.is_empty() && listeners.unix.is_empty() {
            return Err(io::Error::other("nowhere to listen on: listen_addr and unix_socket_dir are empty"));
        }
        Ok(listeners)
    }

    /// What somebody else has opened, as systemd does (`LISTEN_FDS`).
    pub fn inherited(given: Inherited) -> io::Result<Self> {
        let mut listeners = Listeners { tcp: Vec::new(), unix: Vec::new() };
        for listener in given.tcp {
            listener.set_nonblocking(true)?;
            tracing::info!("listening on inherited socket {}", listener.local_addr()?);
            listeners.tcp.push(listener);
        }
        for listener in given.unix {
            listener.set_nonblocking(true)?;
            tracing::info!("listening on inherited Unix socket");
            listeners.unix.push((listener, None));
        }
        Ok(listeners)
    }

    /// The TCP addresses that it listens on.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Begins to accept.
    pub fn accept(self, shared: &Arc<Shared>) -> Accepting {
        let port = shared.config.load().settings.listen_port;
        let tcp = |listener| accept(shared, move |plane| accept_tcp(listener, plane));
        let unix = |listener| accept(shared, move |plane| accept_unix(listener, port, plane));
        let (listeners, files): (Vec<_>, Vec<_>) = self.unix.into_iter().unzip();
        Accepting {
            tcp: self.tcp.into_iter().map(tcp).collect(),
            _unix: listeners.into_iter().map(unix).collect(),
            _files: files.into_iter().flatten().collect(),
        }
    }
}

impl Accepting {
    /// No more clients over TCP. The Unix socket stays, for the console.
    pub fn close_tcp(&mut self) {
        self.tcp.clear();
    }
}

/// Runs this on the first worker until what it returns is dropped.
fn accept<F: Future<Output = io::Result<Infallible>> + 'static>(
    shared: &Shared,
    run: impl FnOnce(Rc<Plane>) -> F + Send + 'static,
) -> oneshot::Sender<()> {
    let (sender, dropped) = oneshot::channel();
    let task = Task(Box::new(move |plane| {
        let run = run(Rc::clone(plane));
        spawn(async move {
            tokio::select! {
                Err(error) = run => tracing::error!("cannot watch a listener: {error}"),
                _ = dropped => {}
            }
        });
    }));
    if shared.workers[0].send(Message::Run(task)).is_err() {
        tracing::error!("worker 0 has stopped");
    }
    sender
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

async fn addresses(settings: &Settings, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for name in &settings.listen_addr {
        if name == "*" {
            addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
            if Path::new("/proc/net/if_inet6").exists() {
                addresses.push(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
            }
            continue;
        }
        let found = tokio::net::lookup_host((name.as_str(), port)).await;
        addresses.extend(found.map_err(|error| named(error, &format!("listen_addr {name}")))?);
    }
    Ok(addresses)
}

fn listen_tcp(address: SocketAddr, settings: &Settings) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if settings.so_reuseport {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // The IPv4 wildcard is a listener of its own.
        socket.set_only_v6(true)?;
    }
    TcpOptions::new(settings).size_buffers(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(settings.listen_backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn listen_unix(
    path: &Path,
    settings: &Settings,
    replace: bool,
) -> io::Result<std::os::unix::net::UnixListener> {
    if !replace && tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::other("unix socket is in use, cannot continue"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind_unix(path, settings)?;
    if let Some(group) = &settings.unix_socket_group {
        std::os::unix::fs::chown(path, None, Some(group_id(group)?))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(settings.unix_socket_mode))?;
    Ok(listener)
}

/// A path that begins with NUL is a name in the abstract namespace.
fn bind_unix(path: &Path, settings: &Settings) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(i32::try_from(settings.listen_backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Of a group's name, or the number itself.
fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let found = nix::unistd::Group::from_name(group)?;
    let found =
        found.ok_or_else(|| io::Error::other(format!("unix_socket_group: there is no group {group}")))?;
    Ok(found.gid.as_raw())
}

fn defer_accept(listener: &Listener, defer: bool) {
    if let Err(error) = setsockopt(listener, DeferAccept, &if defer { DEFER_ACCEPT_S } else { 0 }) {
        tracing::warn!("cannot set tcp_defer_accept: {error}");
    }
}

async fn accept_tcp(listener: std::net::TcpListener, plane: Rc<Plane>) -> io::Result<Infallible> {
    let listener = Listener::new(listener)?;
    let mut deferred = false;
    loop {
        // A RELOAD counts from the next client on.
        let wanted = plane.shared.config.load().settings.tcp_defer_accept;
        if wanted != deferred {
            defer_accept(&listener, wanted);
            deferred = wanted;
        }
        match listener.accept().await {
            Ok((stream, Some(address))) => {
                let options = TcpOptions::new(&plane.shared.config.load().settings);
                // A client that is gone already fails here, and is found at its first read.
                let _ = options.apply(&stream);
                hand_over(&plane, DetachedSocket::Tcp(stream), Peer::Tcp(address));
            }
            Ok((_, None)) => after_error("a client", &io::Error::other("it has no address")).await,
            Err(error) => after_error("a client", &error).await,
        }
    }
}

async fn accept_unix(
    listener: std::os::unix::net::UnixListener,
    port: u16,
    plane: Rc<Plane>,
) -> io::Result<Infallible> {
    let listener = Listener::new(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let pid = process_behind(&stream).and_then(|peer| u32::try_from(peer.pid()).ok());
                let pid = pid.filter(|pid| *pid != 0);
                hand_over(&plane, DetachedSocket::Unix(stream), Peer::Unix { pid, port });
            }
            Err(error) => after_error("a client", &error).await,
        }
    }
}

/// Pauses, as what is lacking now may be there later.
pub async fn after_error(whom: &str, error: &io::Error) {
    tracing::error!("cannot accept {whom}: {error}");
    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
}

fn hand_over(plane: &Rc<Plane>, socket: DetachedSocket, peer: Peer) {
    let shared = &plane.shared;
    let worker = shared.spread.place();
    if worker == plane.worker {
        return login::welcome(plane, socket, peer);
    }
    if shared.workers[worker].send(Message::Client(socket, peer)).is_err() {
        tracing::error!("cannot give a connection to worker {worker}: it has stopped");
        shared.spread.left(worker);
    }
}
