//! Sockets, TCP, TLS and Unix, behind one type. Start with [`Socket`].
//!
//! A worker's sockets are watched by its [`EventLoop`](event_loop::EventLoop), all others by tokio. A `poll_read` that
//! fills less than its buffer has read all that is there, so the next one costs no system call. Writing tries the kernel
//! first and waits only when the kernel's buffer is full.

pub mod dns;
pub mod endpoint;
pub mod event_loop;
pub mod ldap;
pub mod stream;
pub mod tls;

use std::ffi::c_int;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixCredentials, getsockopt};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::auth::ChannelBinding;
use stream::Stream;
use tls::stream::{DetachedTlsStream, TlsStream};

/// Bytes that one read may bring, and so as a rule those of one write.
///
/// A write of 64 kB would be a little more than one segment of Linux's loopback (65,483 bytes), or than the driver of a
/// network card takes at once: two segments instead of one, and 1.4 times the processor time for each MB.
pub const READ_MAX: usize = 60 * 1024;

/// How many bytes wait in a socket's send queue, unsent or not confirmed (`linux/sockios.h`, tcp(7)).
const SIOCOUTQ: Opcode = 0x5411;

/// A connected socket, toward a client or a server.
#[derive(Debug)]
pub enum Socket {
    /// TCP over IPv4 or IPv6.
    Tcp(Stream),
    /// TLS over TCP.
    Tls(Box<TlsStream>),
    /// A Unix socket.
    Unix(Stream),
}

/// A socket that nobody watches: what crosses from one thread to another.
#[derive(Debug)]
pub enum DetachedSocket {
    /// TCP.
    Tcp(OwnedFd),
    /// TLS over TCP.
    Tls(Box<DetachedTlsStream>),
    /// Unix.
    Unix(OwnedFd),
}

impl DetachedSocket {
    /// Has the current thread watch the socket.
    pub fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            DetachedSocket::Tcp(stream) => Socket::Tcp(Stream::new(stream)?),
            DetachedSocket::Tls(stream) => Socket::Tls(Box::new(stream.attach()?)),
            DetachedSocket::Unix(stream) => Socket::Unix(Stream::new(stream)?),
        })
    }
}

impl Socket {
    /// Reads what is there. `Ok(0)` is the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) | Socket::Unix(stream) => stream.poll_receive(context, buffer),
            Socket::Tls(stream) => stream.poll_read(context, buffer),
        }
    }

    /// Writes what the kernel takes now, 0 when its buffer is full. With TLS, bytes that
    /// are encrypted count as written: see [`Socket::poll_flush`].
    #[inline]
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Socket::Tls(stream) = self {
            return stream.write_now(bytes);
        }
        match retry_on_intr(|| rustix::net::send(&*self, bytes, SendFlags::NOSIGNAL)) {
            Err(Errno::WOULDBLOCK) => Ok(0),
            other => Ok(other?),
        }
    }

    /// Writes, and is woken when the kernel's buffer has room again.
    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) | Socket::Unix(stream) => stream.poll_send(context, bytes),
            Socket::Tls(stream) => stream.poll_write(context, bytes),
        }
    }

    /// Pending while encrypted bytes wait for the kernel to take them. Other sockets have none.
    #[inline]
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tls(stream) => stream.poll_flush(context),
            Socket::Tcp(_) | Socket::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    /// Whether encrypted bytes wait for the kernel to take them.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Socket::Tls(stream) if stream.connection().wants_write())
    }

    /// Tells the other side that nothing more will come, where the protocol has a word for it.
    pub fn say_goodbye(&mut self) {
        if let Socket::Tls(stream) = self {
            stream.close_notify();
        }
    }

    /// Nothing more will be written: the other side reads the end of the stream.
    pub fn end_writing(&self) -> io::Result<()> {
        match SockRef::from(self).shutdown(Shutdown::Write) {
            // One that is gone already needs no end.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            outcome => outcome,
        }
    }

    /// Bytes that the other side's kernel has not confirmed, the end of the stream among them. A Unix socket has none.
    #[expect(unsafe_code, reason = "there is no safe wrapper of SIOCOUTQ")]
    pub fn undelivered(&self) -> usize {
        if let Socket::Unix(_) = self {
            return 0;
        }
        // SAFETY: a TCP socket answers this request with a C int.
        let asked = unsafe { ioctl(self, Getter::<SIOCOUTQ, c_int>::new()) };
        // One that is gone has lost them.
        asked.ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
    }

    /// Version and cipher, as SHOW CLIENTS prints them; empty without TLS.
    pub fn encryption(&self) -> String {
        match self {
            Socket::Tls(stream) => tls::describe(stream.connection()),
            Socket::Tcp(_) | Socket::Unix(_) => String::new(),
        }
    }

    /// What SCRAM binds to on a connection to a server; `None` where there is no TLS, or no binding to it.
    pub fn channel_of_server(&self) -> Option<ChannelBinding> {
        match self {
            Socket::Tls(stream) => tls::channel_of_server(stream.connection()),
            Socket::Tcp(_) | Socket::Unix(_) => None,
        }
    }

    /// When the certificate that the other side has shown ends, in seconds since 1970; `None` without one.
    pub fn shown_until(&self) -> Option<i64> {
        match self {
            Socket::Tls(stream) => tls::shown_until(stream.connection()),
            Socket::Tcp(_) | Socket::Unix(_) => None,
        }
    }

    /// Whether its bytes are encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }

    /// Whether the other side has closed the connection or sent something, asked of the kernel itself:
    /// for a socket of which the event loop may not have heard yet.
    pub fn is_silent_and_open(&mut self) -> bool {
        if let Socket::Tls(stream) = self
            && stream.has_unread()
        {
            return false;
        }
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = SockRef::from(&*self).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// What the other side has not confirmed yet is not sent again once the socket closes. The other side sees
    /// a reset instead of the end.
    pub fn drop_unsent(&self) {
        // Best effort: closing is what comes next in any case.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    /// Takes the socket away from who watches it.
    pub fn detach(self) -> DetachedSocket {
        match self {
            Socket::Tcp(stream) => DetachedSocket::Tcp(stream.detach()),
            Socket::Tls(stream) => DetachedSocket::Tls(Box::new(stream.detach())),
            Socket::Unix(stream) => DetachedSocket::Unix(stream.detach()),
        }
    }

    /// The process at the other end of a Unix socket; `None` with any other.
    pub fn peer_process(&self) -> Option<UnixCredentials> {
        match self {
            Socket::Unix(stream) => process_behind(stream),
            Socket::Tcp(_) | Socket::Tls(_) => None,
        }
    }

    /// Our own side's address; `None` on a Unix socket.
    pub fn local_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).local_addr().ok()?.as_socket()
    }

    /// The other side's address; `None` on a Unix socket.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).peer_addr().ok()?.as_socket()
    }
}

/// The process that has connected to a Unix socket, or was listening there. Its number is 0 where we cannot see it.
pub fn process_behind(socket: &impl AsFd) -> Option<UnixCredentials> {
    getsockopt(socket, PeerCredentials).ok()
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) | Socket::Unix(stream) => stream.as_fd(),
            Socket::Tls(stream) => stream.tcp().as_fd(),
        }
    }
}

/// For tasks that read as if they could wait. Where there is always some, others have their turn all the same.
impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(event_loop::poll_budget(context));
        let count = ready!(self.get_mut().poll_read(context, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(event_loop::poll_budget(context));
        self.get_mut().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        socket.say_goodbye();
        ready!(socket.poll_flush(context))?;
        Poll::Ready(socket.end_writing())
    }
}
