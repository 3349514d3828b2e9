//! Sockets, TCP, TLS and Unix, behind one type. Start with [`Socket`].
//!
//! Reading goes through tokio's readiness: a `poll_read` that fills less than its buffer clears it, so
//! the next one costs no system call. Writing tries the kernel first and asks the reactor only when
//! the kernel's buffer is full.

pub mod dns;
pub mod endpoint;
pub mod ldap;
pub mod tls;

use std::ffi::c_int;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::auth::ChannelBinding;
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
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream>),
    /// A Unix socket.
    Unix(UnixStream),
}

/// A socket that no runtime knows: what crosses from one thread to another.
#[derive(Debug)]
pub enum DetachedSocket {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// TLS over TCP.
    Tls(Box<DetachedTlsStream>),
    /// Unix.
    Unix(std::os::unix::net::UnixStream),
}

impl DetachedSocket {
    /// Registers the socket with the current thread's runtime.
    pub fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            DetachedSocket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            DetachedSocket::Tls(stream) => Socket::Tls(Box::new(stream.attach()?)),
            DetachedSocket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }
}

impl Socket {
    /// Reads what is there. `Ok(0)` is the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) => poll_receive(stream, context, buffer),
            Socket::Tls(stream) => stream.poll_read(context, buffer),
            Socket::Unix(stream) => poll_receive(stream, context, buffer),
        }
    }

    /// Writes what the kernel takes now, 0 when its buffer is full. Asks no reactor. With TLS, bytes that
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
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Tls(stream) => stream.poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
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
    /// for a socket that no reactor has watched for a while.
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

    /// Takes the socket away from the runtime that it is registered with.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Socket::Tcp(stream) => DetachedSocket::Tcp(stream.into_std()?),
            Socket::Tls(stream) => DetachedSocket::Tls(Box::new(stream.detach()?)),
            Socket::Unix(stream) => DetachedSocket::Unix(stream.into_std()?),
        })
    }

    /// Our own side's address; `None` on a Unix socket.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(stream) => stream.local_addr().ok(),
            Socket::Tls(stream) => stream.tcp().local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// The other side's address; `None` on a Unix socket.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(stream) => stream.peer_addr().ok(),
            Socket::Tls(stream) => stream.tcp().peer_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

/// A socket that the reactor watches.
trait Watched: AsFd {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads by `call` if it seems readable; after `WouldBlock` it does not, until more has come.
    fn read_by(&self, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize>;
}

impl Watched for TcpStream {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn read_by(&self, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, call)
    }
}

impl Watched for UnixStream {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn read_by(&self, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, call)
    }
}

/// As tokio's `poll_read`, by a system call without the C library's cancellation of threads around it. What fills less
/// than the buffer was all there was: until more has come, the socket does not seem readable.
#[inline]
fn poll_receive(
    socket: &impl Watched,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_readable(context))?;
        let mut all_there_was = None;
        let outcome = socket.read_by(|| {
            let (count, _) = retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()))?;
            if count == 0 || count == buffer.len() {
                return Ok(count);
            }
            all_there_was = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        });
        match (all_there_was, outcome) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, outcome) => return Poll::Ready(outcome),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Tls(stream) => stream.tcp().as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.get_mut().poll_read(context, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
