//! The connection that listens.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use crate::pool::access::{Seat, Site};
use crate::pool::lease::within;
use crate::pool::quota::Permit;
use crate::pool::{Pool, part};
use crate::protocol::channels::{Channels, statements};
use crate::server::{QueryError, ServerConnection};

/// How the queries begin, for those who see them in `pg_stat_activity`.
const OURS: &str = "/* pgweir: listening */ ";

/// Most bytes of notifications that may come while a query of ours is answered: each client has a limit of its own.
const HEARD_MAX: usize = 64 * 1024 * 1024;

/// Channels of one query. Their names have at most 63 bytes.
const STATEMENTS_MAX: usize = 256;

/// A server that is nobody's own, and what it holds for as long as it is open.
pub(super) struct Connection {
    server: ServerConnection,
    pool: Arc<Pool>,
    seat: Seat,
    _permits: [Permit; 2],
    channels: Channels,
}

impl Connection {
    /// Opens one beside those of the pool, with its login.
    ///
    /// Fails with the reason, which the log has then.
    pub(super) async fn open(pool: Arc<Pool>, worker: usize) -> Result<Self, String> {
        let permits = pool.permits().ok_or("max_db_connections or max_user_connections is reached")?;
        let seat = pool.seat(Instant::now()).ok_or("no server can be used now")?;
        let opened = pool.open_apart(&seat.0, &pool.recipe(&seat.0), worker, pool.epoch(), None).await;
        let (mut server, _) = opened.map_err(|error| error.to_string())?;
        server.heard_max = HEARD_MAX;
        Ok(Connection { server, pool, seat, _permits: permits, channels: Channels::new() })
    }

    pub(super) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.seat.0)
    }

    /// Whether it is to be closed: RECONNECT, new settings, or a name that has moved.
    pub(super) fn is_outdated(&self) -> bool {
        self.pool.is_outdated(&self.server) || self.pool.is_retired()
    }

    /// The server translates what it sends: only clients of the same encoding can be given it.
    pub(super) fn check_encoding(&self, client: &str) -> Result<(), String> {
        let own = self.server.parameters.encoding();
        match own == client {
            true => Ok(()),
            false => Err(format!("its client_encoding is {own}")),
        }
    }

    /// Listens to all of these. Returns the notifications that came meanwhile.
    pub(super) async fn listen(
        &mut self,
        channels: impl Iterator<Item = Box<str>>,
    ) -> Result<Vec<u8>, String> {
        let new: Channels = channels.filter(|channel| !self.channels.contains(channel)).collect();
        let heard = self.run_each("LISTEN", &new).await?;
        self.channels.extend(new);
        Ok(heard)
    }

    /// Stops listening to all others. Returns the notifications that came meanwhile.
    pub(super) async fn unlisten_all_but(&mut self, wanted: &Channels) -> Result<Vec<u8>, String> {
        let gone = self.channels.difference(wanted).cloned().collect();
        let heard = self.run_each("UNLISTEN", &gone).await?;
        self.channels.retain(|channel| wanted.contains(channel));
        Ok(heard)
    }

    async fn run_each(&mut self, verb: &str, channels: &Channels) -> Result<Vec<u8>, String> {
        let mut heard = Vec::new();
        let channels: Vec<&str> = channels.iter().map(|channel| &**channel).collect();
        for some in channels.chunks(STATEMENTS_MAX) {
            let sql = statements(verb, some.iter().copied());
            heard.append(&mut self.run(&sql).await?);
        }
        Ok(heard)
    }

    /// Runs a query. Returns the notifications that came up to its end.
    pub(super) async fn run(&mut self, sql: &str) -> Result<Vec<u8>, String> {
        let limit = self.pool.settings().connect_timeout;
        let sql = format!("{OURS}{sql}");
        let run = async {
            let mut heard = Vec::new();
            // The rest of a message that has begun to come.
            while !self.server.carry.is_empty() {
                heard.append(&mut self.hear().await.map_err(QueryError::Refused)?);
            }
            self.server.run(&sql, &self.pool.session).await?;
            heard.append(&mut self.server.heard);
            Ok(heard)
        };
        within(limit, run).await.map_err(|error| error.to_string())
    }

    /// Waits for whole messages, and returns the notifications among them. Nothing is lost when it is dropped.
    pub(super) async fn hear(&mut self) -> Result<Vec<u8>, String> {
        let mut buffer = [0; 8192];
        poll_fn(|context| {
            loop {
                let count = match self.server.socket.poll_read(context, &mut buffer) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(Err("server conn crashed?".into())),
                    Poll::Ready(Ok(count)) => count,
                };
                self.server.carry.extend_from_slice(&buffer[..count]);
                match self.server.take_heard(&self.pool.session) {
                    Ok(heard) if heard.is_empty() && !self.server.carry.is_empty() => {}
                    Ok(heard) => return Poll::Ready(Ok(heard)),
                    Err(error) => return Poll::Ready(Err(error.to_string())),
                }
            }
        })
        .await
    }

    pub(super) fn close(&mut self, reason: &str) {
        part(&mut self.server, &self.seat.0, &self.pool.target, reason);
    }
}
