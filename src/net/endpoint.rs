//! Where a server listens, and how it is dialled.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::Socket;
use crate::config::{Host, Settings};

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// Sets them on a TCP socket, and switches Nagle's delay off.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
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
        if self.buffer > 0 {
            socket.set_recv_buffer_size(self.buffer)?;
            socket.set_send_buffer_size(self.buffer)?;
        }
        Ok(())
    }
}

impl Endpoint {
    /// Connects. The caller limits the time.
    pub async fn dial(&self, options: &TcpOptions) -> io::Result<Socket> {
        match &self.host {
            Host::Tcp(name) => {
                let stream = TcpStream::connect((name.as_str(), self.port)).await?;
                options.apply(&stream)?;
                Ok(Socket::Tcp(stream))
            }
            Host::Unix(directory) => {
                let path = directory.join(self.socket_name());
                Ok(Socket::Unix(UnixStream::connect(path).await?))
            }
            Host::Abstract(directory) => {
                // tokio takes a path that begins with NUL for a name in the abstract namespace.
                let path = PathBuf::from(format!("\0{directory}/{}", self.socket_name()));
                Ok(Socket::Unix(UnixStream::connect(path).await?))
            }
        }
    }

    fn socket_name(&self) -> String {
        format!(".s.PGSQL.{}", self.port)
    }
}
