//! [`Listening`]: one server connection that LISTENs for all clients of a database, so that a listener needs no
//! server of its own. It counts against the limits of connections, but is never lent.
//!
//! A client comes over from the server on which it said LISTEN. A mark, which is a notification of ours, tells
//! where in the one order of all notifications it changes sides: PostgreSQL delivers them to every listener in the
//! order of their commits (its manual, NOTIFY). What came before the mark the old server has brought, what comes
//! behind it is brought from here.

mod connection;
mod inbox;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::Pool;
use crate::net::event_loop;
use crate::protocol::channels::Channels;
use crate::wire::backend::notifications;
use connection::Connection;
pub use inbox::{Inbox, Lost};

/// What the connection is asked to do. Each client asks for one thing at a time.
#[derive(Debug)]
enum Command {
    /// LISTEN, for a client of this `client_encoding`.
    Listen { channels: Channels, encoding: Box<str>, done: oneshot::Sender<Result<(), String>> },
    /// Answered when all has been passed on that the server had sent before it was asked.
    Pass { done: oneshot::Sender<()> },
}

/// Who listens to what in one database, and the connection that does so for them.
#[derive(Debug, Default)]
pub struct Listening {
    state: Mutex<State>,
    /// Rings when somebody has stopped listening, and once a second.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// To the connection; `None` while there is none.
    commands: Option<mpsc::UnboundedSender<Command>>,
    /// The channel of our marks. Nobody else knows its name.
    marks: Box<str>,
    last_mark: u64,
    listeners: HashMap<Box<str>, Vec<Arc<Inbox>>>,
    /// Clients that are coming over, by their marks.
    coming: HashMap<Box<str>, (Arc<Inbox>, Channels)>,
}

impl State {
    fn is_deserted(&self) -> bool {
        self.listeners.is_empty() && self.coming.is_empty()
    }

    /// Every channel that somebody wants to hear, and ours.
    fn wanted(&self) -> Channels {
        let coming = self.coming.values().flat_map(|(_, channels)| channels);
        self.listeners.keys().chain(coming).chain([&self.marks]).cloned().collect()
    }

    fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.listeners.values().flatten().chain(self.coming.values().map(|(inbox, _)| inbox))
    }
}

/// A client that is coming over. Dropping it gives that up, unless it was [accepted](Coming::accept).
#[derive(Debug)]
pub struct Coming<'a> {
    listening: &'a Listening,
    /// What is left again otherwise.
    leaves: Option<(Arc<Inbox>, Channels)>,
    marks: Box<str>,
    mark: Box<str>,
}

impl Coming<'_> {
    /// The channel of the mark, and the mark, which the client's old server must notify.
    pub fn mark(&self) -> (&str, &str) {
        (&self.marks, &self.mark)
    }

    /// It listens here from now on, and its owner leaves for it.
    pub fn accept(mut self) {
        self.leaves = None;
    }

    /// Whether the mark has been heard here: once the old server has sent it, another server is meant if not.
    pub async fn has_come(&self) -> bool {
        self.listening.pass().await;
        !self.listening.state.lock().coming.contains_key(&self.mark)
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.listening.state.lock().coming.remove(&self.mark);
        if let Some((inbox, channels)) = self.leaves.take() {
            self.listening.leave(&inbox, &channels);
        }
    }
}

impl Listening {
    /// Listens to these channels for a client, once its mark has been heard. Opens the connection with the pool's
    /// login if there is none; must run on the thread of `worker`.
    ///
    /// Fails with the reason when there is no connection to be had, or it has another `client_encoding`.
    pub async fn join<'a>(
        self: &'a Arc<Self>,
        (pool, worker): (&Arc<Pool>, usize),
        inbox: &Arc<Inbox>,
        channels: Channels,
        encoding: &str,
    ) -> Result<Coming<'a>, String> {
        let (done, answer) = oneshot::channel();
        let coming = {
            let mut state = self.state.lock();
            let commands = match &state.commands {
                Some(commands) => commands.clone(),
                None => {
                    let (commands, receiver) = mpsc::unbounded_channel();
                    state.marks = format!("pgweir_{:032x}", rand::random::<u128>()).into();
                    state.commands = Some(commands.clone());
                    let connection = Connection::open(Arc::clone(pool), worker);
                    event_loop::spawn(Arc::clone(self).serve(connection, receiver));
                    commands
                }
            };
            state.last_mark += 1;
            let mark: Box<str> = state.last_mark.to_string().into();
            state.coming.insert(mark.clone(), (Arc::clone(inbox), channels.clone()));
            let leaves = Some((Arc::clone(inbox), channels.clone()));
            // A connection that is gone drops `done`.
            let _ = commands.send(Command::Listen { channels, encoding: encoding.into(), done });
            Coming { listening: self, leaves, marks: state.marks.clone(), mark }
        };
        match answer.await {
            Ok(Ok(())) => Ok(coming),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err("the listening connection was lost".into()),
        }
    }

    /// Waits until all has been passed on that the server has sent so far.
    pub async fn pass(&self) {
        let (done, answer) = oneshot::channel();
        let commands = self.state.lock().commands.clone();
        if commands.is_some_and(|commands| commands.send(Command::Pass { done }).is_ok()) {
            // One that is lost has told its clients.
            let _ = answer.await;
        }
    }

    /// Ends a client's listening to these channels.
    pub fn leave(&self, inbox: &Arc<Inbox>, channels: &Channels) {
        let mut state = self.state.lock();
        for channel in channels {
            let Some(listeners) = state.listeners.get_mut(channel) else { continue };
            listeners.retain(|other| !Arc::ptr_eq(other, inbox));
            if listeners.is_empty() {
                state.listeners.remove(channel);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// About once a second, lets the connection go if it leads where its database is not any more.
    pub fn tick(&self) {
        if self.state.lock().commands.is_some() {
            self.changed.notify_one();
        }
    }

    /// How many clients listen.
    pub fn clients(&self) -> u32 {
        let state = self.state.lock();
        let clients: HashSet<_> = state.inboxes().map(Arc::as_ptr).collect();
        u32::try_from(clients.len()).unwrap_or(u32::MAX)
    }

    /// Runs the connection until nobody listens any more, or it is lost.
    async fn serve(
        self: Arc<Self>,
        connection: impl Future<Output = Result<Connection, String>>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let reason = match connection.await {
            Ok(mut connection) => match self.run(&mut connection, &mut commands).await {
                Ok(()) => return connection.close("nobody listens any more"),
                Err(reason) => {
                    connection.close(&reason);
                    reason
                }
            },
            Err(reason) => reason,
        };
        let mut state = self.state.lock();
        state.inboxes().for_each(|inbox| inbox.lose(Lost::Connection(reason.as_str().into())));
        state.listeners.clear();
        state.coming.clear();
        state.commands = None;
        while let Ok(command) = commands.try_recv() {
            if let Command::Listen { done, .. } = command {
                // Who asked may have left.
                let _ = done.send(Err(reason.clone()));
            }
        }
    }

    async fn run(
        &self,
        connection: &mut Connection,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), String> {
        let site = connection.site();
        loop {
            let heard = tokio::select! {
                biased;
                () = site.closed() => return Err("the server is no longer one that may be used".into()),
                Some(command) = commands.recv() => {
                    self.obey(command, connection).await?;
                    Vec::new()
                }
                () = self.changed.notified() => {
                    if connection.is_outdated() {
                        return Err("server connection is no longer wanted".into());
                    }
                    let wanted = {
                        let mut state = self.state.lock();
                        if state.is_deserted() {
                            state.commands = None;
                            return Ok(());
                        }
                        state.wanted()
                    };
                    connection.unlisten_all_but(&wanted).await?
                }
                heard = connection.hear() => heard?,
            };
            self.distribute(&heard)?;
            // Those who hear it on this thread must come to read it.
            tokio::task::yield_now().await;
        }
    }

    async fn obey(&self, command: Command, connection: &mut Connection) -> Result<(), String> {
        // Who asked may have left.
        match command {
            Command::Pass { done } => {
                self.distribute(&connection.run("").await?)?;
                let _ = done.send(());
            }
            Command::Listen { channels, encoding, done } => {
                let outcome = connection.check_encoding(&encoding);
                if outcome.is_ok() {
                    let marks = self.state.lock().marks.clone();
                    let all = channels.into_iter().chain([marks]);
                    self.distribute(&connection.listen(all).await?)?;
                }
                let _ = done.send(outcome);
            }
        }
        Ok(())
    }

    /// Gives each notification to those who listen to its channel.
    fn distribute(&self, heard: &[u8]) -> Result<(), String> {
        let malformed = |_| "bad packet from server".to_owned();
        let mut state = self.state.lock();
        for notification in notifications(heard) {
            let notification = notification.map_err(malformed)?;
            if notification.channel != state.marks.as_bytes() {
                let Ok(channel) = str::from_utf8(notification.channel) else { continue };
                let listeners = state.listeners.get(channel);
                listeners.into_iter().flatten().for_each(|inbox| inbox.push(notification.message));
                continue;
            }
            let Ok(mark) = str::from_utf8(notification.payload) else { continue };
            let Some((inbox, channels)) = state.coming.remove(mark) else { continue };
            for channel in channels {
                state.listeners.entry(channel).or_default().push(Arc::clone(&inbox));
            }
        }
        Ok(())
    }
}
