//! A client of the console: the virtual database `pgbouncer`.

use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::control::Control;
use super::plane::{Address, Plane};
use crate::admin::{self, CONSOLE_DATABASE, Console, Outcome, Rights};
use crate::config::{AuthType, Config};
use crate::log::{ClientTag, Peer};
use crate::net::Socket;
use crate::wire::startup::CancelKey;
use crate::wire::{HEADER_LENGTH, Header, Malformed, originate};

/// Largest command: far above what the grammar takes.
const COMMAND_MAX: usize = 64 * 1024;

/// A logged-in client of the console.
pub struct Client {
    /// Its socket.
    pub socket: Socket,
    /// Where it is.
    pub peer: Peer,
    /// Its number.
    pub id: u64,
    /// Who it is.
    pub user: String,
    /// Since when.
    pub connected: Instant,
}

/// What a user may do there; `None` is nothing.
pub fn rights(config: &Config, user: &str) -> Option<Rights> {
    let settings = &config.settings;
    let named = |users: &[String]| users.iter().any(|name| name == user);
    if named(&settings.admin_users) {
        Some(Rights::Admin)
    } else if named(&settings.stats_users) || settings.auth_type == AuthType::Any {
        Some(Rights::Stats)
    } else {
        None
    }
}

/// Whether the other end of a Unix socket runs as our own user.
pub fn is_own_user(socket: &Socket) -> bool {
    let own = std::fs::metadata("/proc/self").map(|data| std::os::unix::fs::MetadataExt::uid(&data));
    matches!((socket.peer_process(), own), (Some(peer), Ok(own)) if peer.uid() == own)
}

/// Cancels of the console's own clients, by key.
#[derive(Default)]
pub struct Consoles {
    waiting: std::cell::RefCell<std::collections::HashMap<[u8; 8], Rc<Notify>>>,
    clients: std::cell::RefCell<std::collections::BTreeMap<u64, Entry>>,
    queries: std::cell::Cell<u64>,
}

impl Consoles {
    /// A cancel request for a client of the console. Returns whether the key is one of theirs.
    pub fn cancel(&self, key: CancelKey) -> bool {
        let waiting = self.waiting.borrow();
        let found = waiting.get(&key.0);
        if let Some(notify) = found {
            notify.notify_one();
        }
        found.is_some()
    }

    /// Queries since the start.
    pub fn queries(&self) -> u64 {
        self.queries.get()
    }

    /// Number and what is known of each.
    pub fn clients(&self) -> Vec<(u64, Entry)> {
        self.clients.borrow().iter().map(|(id, entry)| (*id, entry.clone())).collect()
    }
}

/// What SHOW CLIENTS says of a client of the console.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who it is.
    pub user: String,
    /// Where it comes from.
    pub peer: Peer,
    /// When it connected.
    pub since: Instant,
    /// Its TLS version and cipher, empty without.
    pub tls: String,
}

/// What a login's log line says of TLS.
pub(super) fn tls_word(socket: &Socket) -> String {
    let encryption = socket.encryption();
    if encryption.is_empty() { "no".to_owned() } else { encryption }
}

/// Serves a client of the console to its end.
pub async fn serve(plane: Rc<Plane>, mut client: Client, rights: Rights) {
    let tag = ClientTag {
        id: client.id,
        database: Some(CONSOLE_DATABASE),
        user: Some(&client.user),
        peer: &client.peer,
    };
    tracing::info!(
        "{tag} login attempt: db={CONSOLE_DATABASE} user={} tls={} replication=no",
        client.user,
        tls_word(&client.socket)
    );
    let worker = u32::try_from(plane.worker).expect("there are few workers");
    let key = plane.shared.new_cancel_key(Address { worker, slot: u32::MAX }, false);
    let notify = Rc::new(Notify::new());
    plane.consoles.waiting.borrow_mut().insert(key.0, Rc::clone(&notify));
    let entry = Entry {
        user: client.user.clone(),
        peer: client.peer.clone(),
        since: client.connected,
        tls: client.socket.encryption(),
    };
    plane.consoles.clients.borrow_mut().insert(client.id, entry);

    let mut out = BytesMut::new();
    let (process_id, secret) = key.process_id_and_secret();
    originate::authentication_ok(&mut out);
    admin::greeting(process_id, secret, &mut out);
    let mut console = Console::new(Control::new(&plane), rights, jiff::tz::TimeZone::system());
    let reason = talk(&mut console, &mut client.socket, &plane.consoles, &notify, out).await;
    console.disconnected().await;

    plane.consoles.waiting.borrow_mut().remove(&key.0);
    plane.consoles.clients.borrow_mut().remove(&client.id);
    plane.shared.cancel_keys.remove(&key);
    let age = client.connected.elapsed().as_secs();
    let tag = ClientTag {
        id: client.id,
        database: Some(CONSOLE_DATABASE),
        user: Some(&client.user),
        peer: &client.peer,
    };
    tracing::info!("{tag} closing because: {reason} (age={age}s)");
}

async fn talk(
    console: &mut Console<Control>,
    socket: &mut Socket,
    consoles: &Consoles,
    notify: &Rc<Notify>,
    mut out: BytesMut,
) -> String {
    let mut ahead = Ahead::default();
    loop {
        if let Err(error) = socket.write_all(&out).await {
            return format!("client unexpected eof ({error})");
        }
        out.clear();
        let (tag, body) = match ahead.message(socket).await {
            Ok(Some(message)) => message,
            Ok(None) => return "client unexpected eof".to_owned(),
            Err(_) => return "bad packet header".to_owned(),
        };
        if tag == b'Q' {
            consoles.queries.set(consoles.queries.get() + 1);
        }
        let mut answer = BytesMut::new();
        let outcome = tokio::select! {
            biased;
            outcome = console.handle(tag, &body, &mut answer) => Some(outcome),
            () = notify.notified() => None,
            () = ahead.ends(socket) => return "client unexpected eof".to_owned(),
        };
        match outcome {
            Some(Outcome { close: Some(reason), .. }) => {
                // It is on its way out: it may well not listen any more.
                let _ = socket.write_all(&answer).await;
                return reason.to_owned();
            }
            Some(Outcome { close: None, .. }) => out = answer,
            None => console.cancel(&mut out).await,
        }
    }
}

/// What a client has said beyond the command that runs: only by reading on is the end of its stream seen, be
/// there more commands before it, or TLS's goodbye.
#[derive(Default)]
struct Ahead(BytesMut);

impl Ahead {
    /// The next message; `None` at the end of the stream.
    async fn message(&mut self, socket: &mut Socket) -> Result<Option<(u8, BytesMut)>, Malformed> {
        loop {
            if let Some(Header { tag, length }) = Header::read(&self.0)? {
                if length > COMMAND_MAX {
                    let tag = char::from(tag);
                    return Err(Malformed::TooLarge { tag, need: length, limit: COMMAND_MAX });
                }
                if self.0.len() >= length {
                    return Ok(Some((tag, self.0.split_to(length).split_off(HEADER_LENGTH))));
                }
            }
            if !self.read(socket).await {
                return Ok(None);
            }
        }
    }

    /// Returns at the end of the stream. Whoever sends more than one command's worth meanwhile is not read
    /// any further.
    async fn ends(&mut self, socket: &mut Socket) {
        while self.0.len() < COMMAND_MAX {
            if !self.read(socket).await {
                return;
            }
        }
        std::future::pending().await
    }

    /// Returns whether there was something. What was read is kept even if nobody waits for it any more.
    async fn read(&mut self, socket: &mut Socket) -> bool {
        matches!(socket.read_buf(&mut self.0).await, Ok(count) if count > 0)
    }
}
