//! [`TlsStream`]: a TCP socket with rustls on top, driven from inside a poll.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustls::{Connection, ProtocolVersion};
use socket2::SockRef;

use crate::net::READ_MAX;
use crate::net::stream::Stream;

/// Ciphertext that may wait for the kernel to take it. What is beyond it stays with the caller.
const WRITE_MAX: usize = 64 * 1024;

/// Plaintext of one record at the most (RFC 8446, 5.1).
const RECORD_MAX: usize = 16 * 1024;

/// Records that one AES-GCM key may encrypt (RFC 8446, 5.5), and some room.
const RECORDS_MAX: u64 = (1 << 24) - 256;

thread_local! {
    /// What a read brings, used inside one poll: an idle connection owns no buffer for it.
    static CIPHERTEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TLS connection, before or after its handshake.
#[derive(Debug)]
pub struct TlsStream {
    tcp: Stream,
    connection: Connection,
    /// Ciphertext that was read and that rustls has no room for before its plaintext is fetched.
    unread: Vec<u8>,
    /// Records encrypted, at least.
    records: u64,
}

/// A connection that nobody watches: what crosses from one thread to another.
#[derive(Debug)]
pub struct DetachedTlsStream {
    tcp: OwnedFd,
    connection: Connection,
    unread: Vec<u8>,
    records: u64,
}

impl DetachedTlsStream {
    /// Has the current thread watch the socket.
    pub fn attach(self) -> io::Result<TlsStream> {
        let DetachedTlsStream { tcp, connection, unread, records } = self;
        Ok(TlsStream { tcp: Stream::new(tcp)?, connection, unread, records })
    }
}

impl TlsStream {
    /// A connection whose handshake is still to be made. `begun` is what was read of it already.
    pub fn new(tcp: Stream, connection: impl Into<Connection>, begun: &[u8]) -> Self {
        let mut connection = connection.into();
        connection.set_buffer_limit(Some(WRITE_MAX));
        TlsStream { tcp, connection, unread: begun.to_vec(), records: 0 }
    }

    /// Ends when the handshake is complete and nothing of it waits to be sent.
    ///
    /// Fails with rustls's own word for what went wrong; the other side has been told then.
    pub async fn handshake(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            while self.connection.is_handshaking() {
                if self.connection.wants_write() {
                    ready!(self.poll_flush(context))?;
                } else if ready!(self.poll_ciphertext(context))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            self.poll_flush(context)
        })
        .await
    }

    /// Version, cipher and certificates.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The socket below.
    pub fn tcp(&self) -> &Stream {
        &self.tcp
    }

    /// Whether bytes of the other side are here that nobody has read.
    pub fn has_unread(&mut self) -> bool {
        let state = self.connection.process_new_packets();
        !self.unread.is_empty() || state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Takes the socket away from who watches it.
    pub fn detach(self) -> DetachedTlsStream {
        let TlsStream { tcp, connection, unread, records } = self;
        DetachedTlsStream { tcp: tcp.detach(), connection, unread, records }
    }

    /// Reads what is there. `Ok(0)` is the end of the stream, announced or not: the messages within say
    /// themselves where they end (RFC 8446, 6.1, leaves a truncation to them).
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        loop {
            match self.connection.reader().read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Poll::Ready(Ok(0)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(filled)),
                Err(error) => return Poll::Ready(Err(error)),
            }
            if filled == buffer.len() {
                return Poll::Ready(Ok(filled));
            }
            if self.unread.is_empty() && filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            // What the other side asked of TLS itself, a new key say, is answered on the way.
            if self.connection.wants_write() {
                // Who writes is told of an error. What the other side said before it went may still be read.
                let _ = self.poll_flush(context);
            }
            if ready!(self.poll_ciphertext(context))? == 0 {
                return Poll::Ready(Ok(filled));
            }
        }
    }

    /// Takes what ciphertext rustls has room for, from what was read before or else from the socket.
    /// Returns how much; 0 is the end of the stream.
    fn poll_ciphertext(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.unread.is_empty() {
            let unread = std::mem::take(&mut self.unread);
            return Poll::Ready(self.take_ciphertext(&unread));
        }
        CIPHERTEXT.with_borrow_mut(|bytes| {
            bytes.resize(READ_MAX, 0);
            match ready!(self.tcp.poll_receive(context, bytes))? {
                0 => Poll::Ready(Ok(0)),
                count => Poll::Ready(self.take_ciphertext(&bytes[..count])),
            }
        })
    }

    /// Decrypts until rustls has plaintext enough, and keeps the rest.
    fn take_ciphertext(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.connection.read_tls(&mut rest) {
                // Its plaintext must be fetched first.
                Err(error) if error.kind() == io::ErrorKind::Other => break,
                other => other?,
            };
            let state = self.connection.process_new_packets().map_err(|error| {
                // The alert that tells the other side; if it does not go out, the end of the stream will.
                let _ = self.flush_now();
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            if taken == 0 || state.peer_has_closed() {
                return Ok(bytes.len());
            }
        }
        self.unread.extend_from_slice(rest);
        Ok(bytes.len())
    }

    /// Encrypts and writes what the kernel takes now. Returns how many bytes were encrypted: ciphertext
    /// that the kernel did not take goes out with the next read, write or flush.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        loop {
            self.flush_now()?;
            if written == bytes.len() || self.connection.wants_write() {
                return Ok(written);
            }
            self.count_records(bytes.len() - written)?;
            written += self.connection.writer().write(&bytes[written..])?;
        }
    }

    /// A TLS 1.2 connection cannot change its key, and rustls drops in silence what comes after the last
    /// record that one key may encrypt.
    fn count_records(&mut self, bytes: usize) -> io::Result<()> {
        self.records += u64::try_from(bytes.div_ceil(RECORD_MAX)).unwrap_or(u64::MAX);
        let renews = self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        match self.records < RECORDS_MAX || renews {
            true => Ok(()),
            false => Err(io::Error::other("the TLS 1.2 connection has encrypted all that its key may")),
        }
    }

    /// Writes, and is woken when the kernel's buffer has room again.
    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.write_now(bytes) {
                Ok(0) if !bytes.is_empty() => ready!(self.poll_flush(context))?,
                other => return Poll::Ready(other),
            }
        }
    }

    /// Pending while the kernel has not taken all ciphertext.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.flush_now()?;
            if !self.connection.wants_write() {
                return Poll::Ready(Ok(()));
            }
            // The event loop believes in room until a write that it knows of says otherwise.
            ready!(self.tcp.poll_send_by(context, || send(&self.tcp, &mut self.connection)))?;
        }
    }

    fn flush_now(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match send(&self.tcp, &mut self.connection) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Says that nothing more will come. What the kernel does not take now is not waited for.
    pub fn close_notify(&mut self) {
        self.connection.send_close_notify();
        // The other side may be gone: then it need not be told.
        let _ = self.flush_now();
    }
}

fn send(tcp: &Stream, connection: &mut Connection) -> io::Result<usize> {
    connection.write_tls(&mut Sender(SockRef::from(tcp)))
}

/// The socket as rustls wants it, with all records of a write in one system call.
struct Sender<'a>(SockRef<'a>);

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
