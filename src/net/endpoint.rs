//! Where a server listens, and how it is dialled.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{Domain, Protocol, SockAddr, SockRef, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Socket;
use super::dns::{Address, Dns};
use super::stream::Stream;
use super::tls::Connector;
use crate::config::{Host, Settings};
use crate::wire::startup::SSL_REQUEST;

/// Of several addresses of a name the next one is tried too, when one has not answered for so long.
const NEXT_AFTER: Duration = Duration::from_secs(1);

/// One address of a server.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Endpoint {
    /// Name, address, directory or abstract name.
    pub host: Host,
    /// TCP port, and the number in a Unix socket's name.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// The `tcp_*` settings, for clients and servers alike. Zero leaves the operating system's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// `tcp_keepalive`
    pub keepalive: bool,
    /// `tcp_keepidle`, seconds.
    pub idle: Duration,
    /// `tcp_keepintvl`, seconds.
    pub interval: Duration,
    /// `tcp_keepcnt`
    pub count: u32,
    /// `tcp_user_timeout`, milliseconds.
    pub user_timeout: Duration,
    /// `tcp_socket_buffer`, bytes.
    pub buffer: usize,
}

impl TcpOptions {
    /// The options in force.
    pub fn new(settings: &Settings) -> Self {
        TcpOptions {
            keepalive: settings.tcp_keepalive,
            idle: Duration::from_secs(settings.tcp_keepidle.into()),
            interval: Duration::from_secs(settings.tcp_keepintvl.into()),
            count: settings.tcp_keepcnt,
            user_timeout: Duration::from_millis(settings.tcp_user_timeout.into()),
            buffer: settings.tcp_socket_buffer as usize,
        }
    }

    /// Connects. The buffers have their size before: packets of the other side that do not fit into one that
    /// shrinks are lost, and come again only after a while.
    async fn connect(self, place: SocketAddr) -> io::Result<Stream> {
        let socket = socket2::Socket::new(Domain::for_address(place), Type::STREAM, Some(Protocol::TCP))?;
        self.size_buffers(&socket)?;
        Stream::connect(socket, &place.into()).await
    }

    /// Sets `tcp_socket_buffer`; accepted sockets have the sizes of the listener's.
    pub fn size_buffers(&self, socket: &socket2::Socket) -> io::Result<()> {
        if self.buffer > 0 {
            socket.set_recv_buffer_size(self.buffer)?;
            socket.set_send_buffer_size(self.buffer)?;
        }
        Ok(())
    }

    /// Sets them on a TCP socket, and switches Nagle's delay off.
    pub fn apply(&self, stream: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        if self.keepalive {
            let mut keepalive = TcpKeepalive::new();
            if !self.idle.is_zero() {
                keepalive = keepalive.with_time(self.idle);
            }
            if !self.interval.is_zero() {
                keepalive = keepalive.with_interval(self.interval);
            }
            if self.count > 0 {
                keepalive = keepalive.with_retries(self.count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if !self.user_timeout.is_zero() {
            socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        }
        self.size_buffers(&socket)
    }
}

/// How an [`Endpoint`] is dialled.
#[derive(Clone, Debug, Default)]
pub struct Dialing {
    /// Socket options.
    pub tcp: TcpOptions,
    /// TLS over TCP; `None` does not ask for it.
    pub tls: Option<Arc<Connector>>,
    /// The name that the server's certificate must have; `None` is the host's.
    pub tls_name: Option<String>,
    /// Who knows the addresses of names; `None` is the system.
    pub dns: Option<Arc<Dns>>,
}

impl Dialing {
    /// Whether connections that were dialled the one way may stay with the other.
    pub fn has_tls_of(&self, other: &Dialing) -> bool {
        let same = match (&self.tls, &other.tls) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same && self.tls_name == other.tls_name
    }
}

impl Endpoint {
    /// Connects, and makes the connection a TLS one if that is wanted. The caller limits the time.
    ///
    /// Fails when nobody is there, and when TLS is wanted and cannot be had.
    pub async fn dial(&self, how: &Dialing) -> io::Result<Socket> {
        let (socket, _) = self.reach(how).await?;
        self.begin(socket, how).await
    }

    /// As [`Endpoint::dial`], to this one of the host's addresses if it is known.
    pub async fn dial_at(&self, how: &Dialing, ip: Option<IpAddr>) -> io::Result<Socket> {
        let socket = self.reach_at(how, ip).await?;
        self.begin(socket, how).await
    }

    /// The first half of [`Endpoint::dial`]: there is a connection. With the address, if a name was looked up for
    /// it.
    pub async fn reach(&self, how: &Dialing) -> io::Result<(Socket, Option<Arc<Address>>)> {
        let (Host::Tcp(name), Some(dns)) = (&self.host, &how.dns) else {
            return Ok((self.reach_at(how, None).await?, None));
        };
        if name.parse::<IpAddr>().is_ok() {
            return Ok((self.reach_at(how, None).await?, None));
        }
        let addresses = dns.addresses(name).await?;
        let places = addresses.iter().map(|address| SocketAddr::new(address.ip, self.port)).collect();
        let socket = Socket::Tcp(connect_to_any(places, how.tcp).await?);
        let ip = socket.peer_address().map(|address| address.ip());
        let address = addresses.into_iter().find(|address| Some(address.ip) == ip);
        Ok((socket, address))
    }

    async fn reach_at(&self, how: &Dialing, ip: Option<IpAddr>) -> io::Result<Socket> {
        match &self.host {
            Host::Tcp(name) => {
                let stream = match ip.or_else(|| name.parse().ok()) {
                    Some(ip) => how.tcp.connect(SocketAddr::new(ip, self.port)).await?,
                    None => connect_by_name(name, self.port, how.tcp).await?,
                };
                Ok(Socket::Tcp(stream))
            }
            Host::Unix(directory) => connect_unix(&directory.join(socket_name(self.port))).await,
            Host::Abstract(directory) => {
                // A path that begins with NUL is a name in the abstract namespace.
                let path = PathBuf::from(format!("\0{directory}/{}", socket_name(self.port)));
                connect_unix(&path).await
            }
        }
    }

    /// The second half of [`Endpoint::dial`]: options and TLS for a connection that was just made.
    pub async fn begin(&self, socket: Socket, how: &Dialing) -> io::Result<Socket> {
        let (stream, name) = match (socket, &self.host) {
            (Socket::Tcp(stream), Host::Tcp(name)) => (stream, name),
            // A Unix socket.
            (socket, _) => return Ok(socket),
        };
        how.tcp.apply(&stream)?;
        match &how.tls {
            None => Ok(Socket::Tcp(stream)),
            Some(connector) => encrypt(stream, connector, how.tls_name.as_deref().unwrap_or(name)).await,
        }
    }
}

/// The name of a Unix socket in its directory, PostgreSQL's and ours.
pub fn socket_name(port: u16) -> String {
    format!(".s.PGSQL.{port}")
}

/// Connects to a name, at the addresses that the system knows.
pub(super) async fn connect_by_name(name: &str, port: u16, tcp: TcpOptions) -> io::Result<Stream> {
    connect_to_any(tokio::net::lookup_host((name, port)).await?.collect(), tcp).await
}

async fn connect_unix(path: &Path) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    Ok(Socket::Unix(Stream::connect(socket, &SockAddr::unix(path)?).await?))
}

/// The first connection that can be had, in this order: an address that refuses, or is silent for a moment,
/// gives the next one its turn.
async fn connect_to_any(places: Vec<SocketAddr>, tcp: TcpOptions) -> io::Result<Stream> {
    let mut attempts = FuturesUnordered::new();
    let mut places = places.into_iter().peekable();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(place) = places.next() {
            attempts.push(tcp.connect(place));
        }
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = tokio::time::sleep(NEXT_AFTER), if places.peek().is_some() => {}
        }
    }
}

/// Asks for TLS (PostgreSQL manual, "Message Flow", SSL Session Encryption). Bytes that someone put
/// behind the server's answer are not read before the handshake, which they would break.
async fn encrypt(stream: Stream, connector: &Connector, name: &str) -> io::Result<Socket> {
    let mut socket = Socket::Tcp(stream);
    socket.write_all(&SSL_REQUEST).await?;
    match socket.read_u8().await? {
        b'S' => {
            // With OpenSSL's words where they are looked for.
            let failed = |error: io::Error| {
                let words =
                    error.to_string().replace("invalid peer certificate", "certificate verify failed");
                io::Error::other(format!("TLS handshake failed: {words}"))
            };
            let Socket::Tcp(stream) = socket else { unreachable!("it is one") };
            Ok(Socket::Tls(Box::new(connector.connect(stream, name).await.map_err(failed)?)))
        }
        b'N' if connector.is_required() => Err(io::Error::other("server refused SSL")),
        b'N' => Ok(socket),
        _ => Err(io::Error::other("received invalid response to SSL negotiation")),
    }
}
