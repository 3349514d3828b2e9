//! [`Stream`] and [`Listener`]: sockets that are watched, by this thread's event loop or else by tokio.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use socket2::{SockAddr, SockRef};
use tokio::io::unix::AsyncFd;

use super::event_loop::{Direction, Watch, poll_budget};

/// A connected socket, TCP or Unix.
#[derive(Debug)]
pub struct Stream(Watched);

/// A socket that someone watches. Its fields are dropped in this order: see [`Watch`].
#[derive(Debug)]
enum Watched {
    /// By the event loop of this thread, a worker.
    Own(Watch, OwnedFd),
    /// By tokio, on the other threads.
    Runtime(AsyncFd<OwnedFd>),
}

impl Watched {
    #[expect(unsafe_code, reason = "tokio cannot know that what it is to watch stays open")]
    fn new(socket: OwnedFd, seems_writable: bool) -> io::Result<Self> {
        Ok(match Watch::new(&socket, seems_writable)? {
            Some(watch) => Watched::Own(watch, socket),
            // SAFETY: an OwnedFd is one descriptor, which stays open as long as it is there.
            None => Watched::Runtime(unsafe { AsyncFd::register(socket) }?),
        })
    }

    /// Does what `call` does as soon as that does not block.
    fn poll_io<T>(
        &self,
        direction: Direction,
        context: &mut Context<'_>,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match self {
                Watched::Own(watch, _) => {
                    ready!(watch.poll_ready(direction, context));
                    match call() {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            watch.note_blocked(direction);
                        }
                        outcome => return Poll::Ready(outcome),
                    }
                }
                Watched::Runtime(watched) => {
                    let ready = match direction {
                        Direction::Read => watched.poll_read_ready(context),
                        Direction::Write => watched.poll_write_ready(context),
                    };
                    if let Ok(outcome) = ready!(ready)?.try_io(|_| call()) {
                        return Poll::Ready(outcome);
                    }
                }
            }
        }
    }

    fn into_inner(self) -> OwnedFd {
        match self {
            Watched::Own(watch, socket) => {
                watch.ignore(&socket);
                socket
            }
            Watched::Runtime(watched) => watched.into_inner(),
        }
    }
}

impl AsFd for Watched {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Watched::Own(_, socket) => socket.as_fd(),
            Watched::Runtime(watched) => watched.get_ref().as_fd(),
        }
    }
}

impl Stream {
    /// A connected socket that nobody watches yet, and whose calls do not block.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Stream(Watched::new(socket.into(), true)?))
    }

    /// Connects a socket. The caller limits the time.
    pub async fn connect(socket: socket2::Socket, address: &SockAddr) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let connected = match socket.connect(address) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => false,
            Err(error) => return Err(error),
        };
        let watched = Watched::new(socket.into(), connected)?;
        if !connected {
            std::future::poll_fn(|context| {
                watched.poll_io(Direction::Write, context, || match SockRef::from(&watched).take_error()? {
                    Some(error) => Err(error),
                    None => SockRef::from(&watched).peer_addr().map(drop).map_err(not_yet),
                })
            })
            .await?;
        }
        Ok(Stream(watched))
    }

    /// Reads what is there. What fills less than the buffer was all: until more has come, the kernel is not asked again.
    #[inline]
    pub fn poll_receive(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        // By a system call without the C library's cancellation of threads around it.
        let mut receive = || {
            let (count, _) = retry_on_intr(|| rustix::net::recv(self, &mut *buffer, RecvFlags::empty()))?;
            Ok(count)
        };
        let outcome = ready!(self.0.poll_io(Direction::Read, context, &mut receive));
        if let (Watched::Own(watch, _), Ok(count)) = (&self.0, &outcome)
            && (1..buffer.len()).contains(count)
        {
            watch.note_read_all();
        }
        Poll::Ready(outcome)
    }

    /// Writes, and is woken when the kernel's buffer has room again.
    pub fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_by(context, || {
            Ok(retry_on_intr(|| rustix::net::send(self, bytes, SendFlags::NOSIGNAL))?)
        })
    }

    /// As [`Stream::poll_send`], by a call of the caller's.
    pub fn poll_send_by<T>(
        &self,
        context: &mut Context<'_>,
        call: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        self.0.poll_io(Direction::Write, context, call)
    }

    /// Takes the socket away from who watches it.
    pub fn detach(self) -> OwnedFd {
        self.0.into_inner()
    }
}

/// A socket that seems writable before it is connected.
fn not_yet(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotConnected => io::ErrorKind::WouldBlock.into(),
        _ => error,
    }
}

impl AsFd for Stream {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket that listens, TCP or Unix.
#[derive(Debug)]
pub struct Listener(Watched);

impl Listener {
    /// A listening socket that nobody watches yet, and whose calls do not block.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(Listener(Watched::new(socket.into(), false)?))
    }

    /// The next connection, which nobody watches yet, and from where it comes if that is no Unix socket.
    pub async fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = || Ok(retry_on_intr(|| rustix::net::acceptfrom_with(&self.0, flags))?);
        let accepted = std::future::poll_fn(|context| {
            ready!(poll_budget(context));
            self.0.poll_io(Direction::Read, context, accept)
        })
        .await;
        let (socket, address) = accepted?;
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        Ok((socket, address))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Watched::Own(watch, socket) = &self.0 {
            // It may be open elsewhere: who has started us by it has it too.
            watch.ignore(socket);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
