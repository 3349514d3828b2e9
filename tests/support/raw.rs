//! [`Raw`]: a PostgreSQL client that sends exactly the bytes it is given.
//!
//! It knows the login and where messages end, and nothing else, so that a test can send what no
//! driver would. Every wait has a deadline; a test that passes it panics with what has arrived.

use super::certificates::Identity;
use super::message::{self, Message, Reply};
use bytes::{Buf, BytesMut};
use pgweir::config::{Host, Settings, SslMode};
use pgweir::net::endpoint::{Dialing, Endpoint};
use pgweir::net::tls::Tls;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// How long a client of a test waits for the next message.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// TCP with TLS, with whatever certificate; the client may have one to show.
    Tls(SocketAddr, Option<Identity>),
}

/// Who logs in, and where to.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub database: String,
    pub password: String,
    pub options: Vec<(String, String)>,
    /// Minor version of protocol 3.
    pub minor: u16,
}

impl Login {
    pub fn new(user: &str, database: &str) -> Login {
        Login {
            user: user.to_owned(),
            database: database.to_owned(),
            password: String::new(),
            options: Vec::new(),
            minor: 0,
        }
    }

    pub fn password(mut self, password: &str) -> Login {
        password.clone_into(&mut self.password);
        self
    }

    /// A further parameter of the StartupMessage.
    pub fn option(mut self, name: &str, value: &str) -> Login {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Asks for this minor version of protocol 3.
    pub fn protocol(mut self, minor: u16) -> Login {
        self.minor = minor;
        self
    }

    fn startup(&self) -> Vec<u8> {
        let mut parameters = vec![("user", self.user.as_str()), ("database", self.database.as_str())];
        parameters.extend(self.options.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut packet = message::startup(&parameters);
        packet[6..8].copy_from_slice(&self.minor.to_be_bytes());
        packet
    }
}

/// TLS by the library's own hand, which the tests with psql hold against OpenSSL's.
async fn encrypted(address: SocketAddr, identity: Option<&Identity>) -> io::Result<pgweir::net::Socket> {
    let settings = Settings {
        server_tls_sslmode: SslMode::Require,
        server_tls_cert_file: identity.map(|identity| identity.certificate.clone()),
        server_tls_key_file: identity.map(|identity| identity.key.clone()),
        ..Settings::default()
    };
    let (tls, _) = Tls::load(&settings, &Tls::default()).map_err(io::Error::other)?;
    let endpoint = Endpoint { host: Host::Tcp(address.ip().to_string()), port: address.port() };
    endpoint.dial(&Dialing { tls: tls.connector, ..Dialing::default() }).await
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// The receiving half of a connection.
pub struct Reader {
    stream: ReadHalf<Box<dyn Socket>>,
    buffer: BytesMut,
}

/// The sending half of a connection.
pub struct Writer {
    stream: WriteHalf<Box<dyn Socket>>,
}

/// A client connection.
pub struct Raw {
    pub reader: Reader,
    pub writer: Writer,
    /// What the server reported at login.
    pub parameters: HashMap<String, String>,
    /// The body of NegotiateProtocolVersion, empty without one.
    pub negotiated: Vec<u8>,
    /// The body of BackendKeyData: process id and secret.
    pub key: Vec<u8>,
    /// A second handle of a TCP socket, to end it with RST.
    handle: Option<socket2::Socket>,
}

impl Raw {
    /// Opens a socket and says nothing.
    pub async fn connect(address: &Address) -> io::Result<Raw> {
        let (stream, handle): (Box<dyn Socket>, _) = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let handle = socket2::SockRef::from(&stream).try_clone()?;
                (Box::new(stream), Some(handle))
            }
            Address::Unix(path) => (Box::new(UnixStream::connect(path).await?), None),
            Address::Tls(address, identity) => {
                let stream = encrypted(*address, identity.as_ref()).await?;
                let handle = socket2::SockRef::from(&stream).try_clone()?;
                (Box::new(stream), Some(handle))
            }
        };
        Ok(Raw::over(stream, handle))
    }

    fn over(stream: Box<dyn Socket>, handle: Option<socket2::Socket>) -> Raw {
        let (reader, writer) = tokio::io::split(stream);
        Raw {
            reader: Reader { stream: reader, buffer: BytesMut::new() },
            writer: Writer { stream: writer },
            parameters: HashMap::new(),
            negotiated: Vec::new(),
            key: Vec::new(),
            handle,
        }
    }

    /// Connects and logs in.
    pub async fn login(address: &Address, login: &Login) -> Raw {
        match Raw::try_login(address, login).await {
            Ok(client) => client,
            Err(refusal) => panic!("login {login:?} at {address:?} refused: {refusal}"),
        }
    }

    /// The same for a task of its own.
    pub async fn login_owned(address: Address, login: Login) -> Raw {
        Raw::login(&address, &login).await
    }

    /// Connects and logs in; a refusal is what the server said.
    pub async fn try_login(address: &Address, login: &Login) -> Result<Raw, String> {
        Raw::connect(address).await.map_err(|error| error.to_string())?.log_in(login).await
    }

    /// Logs in on a Unix socket that somebody else has connected.
    pub async fn login_over(stream: std::os::unix::net::UnixStream, login: &Login) -> Result<Raw, String> {
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        let stream = UnixStream::from_std(stream).map_err(|error| error.to_string())?;
        Raw::over(Box::new(stream), None).log_in(login).await
    }

    async fn log_in(mut self, login: &Login) -> Result<Raw, String> {
        self.send(login.startup()).await;
        self.authenticate(login).await?;
        loop {
            let message = self.login_message().await?;
            match message.tag {
                b'Z' => return Ok(self),
                b'K' => self.key = message.body,
                b'S' => {
                    let mut words = message.strings().into_iter();
                    let name = words.next().unwrap_or_default();
                    let value = words.next().unwrap_or_default();
                    self.parameters.insert(name, value);
                }
                _ => {}
            }
        }
    }

    /// Opens a socket and asks to log in; the answer is still to be read.
    pub async fn begin_login(address: &Address, login: &Login) -> Raw {
        let mut client = Raw::connect(address).await.expect("the server accepts");
        client.send(login.startup()).await;
        client
    }

    /// The next message; an ErrorResponse as text.
    pub async fn login_message(&mut self) -> Result<Message, String> {
        match self.reader.message().await {
            Some(message) if message.tag == b'E' => {
                Err(format!("{message:?} {} {}", message.field(b'S'), message.field(b'M')))
            }
            Some(message) => Ok(message),
            None => Err("closed during login".to_owned()),
        }
    }

    async fn authenticate(&mut self, login: &Login) -> Result<(), String> {
        let password = login.password.as_bytes();
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        loop {
            let message = self.login_message().await?;
            if message.tag == b'v' {
                self.negotiated = message.body;
                continue;
            }
            if message.tag != b'R' {
                continue;
            }
            let mut body = &message.body[..];
            let answer = match body.get_i32() {
                0 => return Ok(()),
                3 => [password, b"\0"].concat(),
                5 => {
                    let salt = body.try_into().expect("the md5 salt has 4 bytes");
                    let hash = md5_hash(login.user.as_bytes(), password, salt);
                    [hash.as_bytes(), b"\0"].concat()
                }
                10 => {
                    let first = scram.message();
                    let length = u32::try_from(first.len()).expect("SCRAM messages are short");
                    [b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], first].concat()
                }
                11 => {
                    scram.update(body).map_err(|error| error.to_string())?;
                    scram.message().to_vec()
                }
                12 => {
                    scram.finish(body).map_err(|error| error.to_string())?;
                    continue;
                }
                method => return Err(format!("unknown authentication method {method}")),
            };
            self.send(message::message(b'p', &answer)).await;
        }
    }

    /// Sends all bytes, whatever they are. A closed connection is seen by the next read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.writer.send(bytes).await;
    }

    /// Sends one simple query and returns all that is said up to ReadyForQuery.
    pub async fn query(&mut self, sql: &str) -> Reply {
        self.send(message::query(sql)).await;
        self.ready(1).await
    }

    /// Sends bytes and returns all that is said up to ReadyForQuery.
    pub async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Reply {
        self.send(bytes).await;
        self.ready(1).await
    }

    /// Sends bytes and returns all that is said up to the first message with this tag.
    pub async fn ask_until(&mut self, bytes: impl AsRef<[u8]>, tag: u8) -> Reply {
        self.send(bytes).await;
        self.until(tag).await
    }

    /// Everything up to the given number of ReadyForQuery, or the end of the connection.
    pub async fn ready(&mut self, count: usize) -> Reply {
        self.reader.until(b'Z', count).await
    }

    /// Everything up to the first message with this tag, or the end of the connection.
    pub async fn until(&mut self, tag: u8) -> Reply {
        self.reader.until(tag, 1).await
    }

    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> Reply {
        self.reader.until(0, usize::MAX).await
    }

    /// Whether something can be read before the time is over. It stays unread.
    pub async fn hears_within(&mut self, patience: Duration) -> bool {
        self.reader.hears_within(patience).await
    }

    /// Closes the connection with RST, as a crashed host or a firewall does.
    pub fn reset(self) {
        let handle = self.handle.as_ref().expect("only TCP knows RST");
        handle.set_linger(Some(Duration::ZERO)).expect("a TCP socket has SO_LINGER");
    }

    /// Sends these bytes below TLS, whose other side takes them for a broken record.
    pub fn send_below_tls(&self, bytes: &[u8]) {
        let handle = self.handle.as_ref().expect("not a Unix socket");
        assert_eq!(handle.send(bytes).expect("the socket has room"), bytes.len());
    }

    /// Makes the receive buffer small, so that an unread answer blocks the sender soon.
    pub fn shrink_receive_buffer(&self) {
        let handle = self.handle.as_ref().expect("only used over TCP");
        handle.set_recv_buffer_size(16 * 1024).expect("a TCP socket has SO_RCVBUF");
    }

    /// Makes it large again. Over loopback, whose packets are larger than a small buffer, little comes through
    /// one in a second.
    pub fn widen_receive_buffer(&self) {
        let handle = self.handle.as_ref().expect("only used over TCP");
        handle.set_recv_buffer_size(4 << 20).expect("a TCP socket has SO_RCVBUF");
    }

    /// Sends a CancelRequest with this client's key over a connection of its own, and waits until the
    /// server has closed that.
    pub async fn cancel(address: &Address, key: &[u8]) {
        let mut canceller = Raw::connect(address).await.expect("the server accepts");
        canceller.send(message::cancel_request(key)).await;
        canceller.rest().await.is("EOF");
    }
}

impl Writer {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other end may close at any time: what it said is then still to be read.
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Ends the sending direction (FIN); answers can still be read.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }
}

impl Reader {
    /// The next message, or nothing at the end of the connection.
    pub async fn message(&mut self) -> Option<Message> {
        self.message_before(Instant::now() + PATIENCE)
            .await
            .unwrap_or_else(|| panic!("no message within {PATIENCE:?}"))
    }

    /// The outer option is the deadline, the inner one the end of the connection.
    pub async fn message_before(&mut self, deadline: Instant) -> Option<Option<Message>> {
        loop {
            if let Some(message) = self.take() {
                return Some(Some(message));
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match timeout_at(deadline, read).await {
                Err(_) => return None,
                Ok(Ok(0) | Err(_)) => return Some(None),
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Everything up to this many messages with this tag, or the end of the connection.
    pub async fn until(&mut self, tag: u8, count: usize) -> Reply {
        let mut reply = Reply::default();
        let mut seen = 0;
        while seen < count {
            match self.message_before(Instant::now() + PATIENCE).await {
                None => panic!("nothing more within {PATIENCE:?}; got: {reply}"),
                Some(None) => {
                    reply.closed = true;
                    break;
                }
                Some(Some(message)) => {
                    seen += usize::from(message.tag == tag);
                    reply.messages.push(message);
                }
            }
        }
        reply
    }

    /// Reads and drops up to this many bytes, whatever they are. Returns how many there were.
    pub async fn discard(&mut self, bytes_max: usize) -> usize {
        let mut bytes = self.buffer.len();
        self.buffer.clear();
        let mut chunk = vec![0; 64 * 1024];
        while bytes < bytes_max {
            let read = self.stream.read(&mut chunk);
            match timeout_at(Instant::now() + PATIENCE, read).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(length)) => bytes += length,
                Err(_) => panic!("no bytes within {PATIENCE:?}, after {bytes} of {bytes_max}"),
            }
        }
        bytes
    }

    async fn hears_within(&mut self, patience: Duration) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        let read = self.stream.read_buf(&mut self.buffer);
        timeout_at(Instant::now() + patience, read).await.is_ok()
    }

    fn take(&mut self) -> Option<Message> {
        let header = self.buffer.get(..5)?;
        let tag = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let length = usize::try_from(length).expect("usize holds 32 bits");
        assert!(length >= 4, "message {} of {length} bytes", char::from(tag));
        if self.buffer.len() < length + 1 {
            self.buffer.reserve(length + 1 - self.buffer.len());
            return None;
        }
        self.buffer.advance(5);
        let body = self.buffer.split_to(length - 4).to_vec();
        Some(Message { tag, body })
    }
}
