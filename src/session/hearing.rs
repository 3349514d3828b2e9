//! LISTEN in transaction mode. The client says it on some server; when that is committed, the database's one listening
//! connection ([`Listening`]) takes over, and the server is free. What it hears is told to the client between
//! transactions, as PostgreSQL does.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::keeping::{Asking, Brought, not_known, run_unlimited};
use super::{Farewell, Phase, Session};
use crate::config::PoolMode;
use crate::error::{SqlError, sqlstate};
use crate::pool::Lease;
use crate::pool::listening::{Coming, Inbox, Listening, Lost};
use crate::protocol::channels::{Channels, Unlistened};
use crate::protocol::state::Pins;
use crate::server::QueryError;
use crate::sql::channels::Unlisten;
use crate::sql::state::Parts;
use crate::wire::backend::{Notification, notifications};

/// Most channels of one client that the shared connection listens to: LISTEN to more of them would hold up the others.
const CHANNELS_MAX: usize = 1_000;

/// What a client listens to without a server of its own. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Hearing {
    listening: Arc<Listening>,
    inbox: Arc<Inbox>,
    pub(super) channels: Channels,
    /// What was UNLISTENed and, as far as is known, not listened to again.
    gone: Channels,
    /// `client_encoding` when the listening began, in which the notifications come.
    encoding: Box<str>,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.listening.leave(&self.inbox, &self.channels);
    }
}

/// What became of the attempt to let somebody else listen.
#[derive(Debug)]
pub(super) struct Moved {
    /// The client's notifications that came on its server meanwhile, whole messages.
    heard: Vec<u8>,
    /// Why the client's server goes on listening.
    stays: Option<String>,
    /// What is listened to from now on.
    hearing: Box<Hearing>,
}

impl Session {
    /// Tells the client what was heard for it. Only between transactions. The task is woken when there is more, or when
    /// the client's socket takes more.
    pub(super) fn tell_heard(&mut self, context: &mut Context<'_>) -> Result<(), Farewell> {
        if self.hearing.is_none() || self.backlog.is_some() {
            // It has not taken yet what it was told before.
            return Ok(());
        }
        self.tell_all_heard(Some(context.waker()))?;
        match self.poll_flush(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(flushed) => flushed,
        }
    }

    fn tell_all_heard(&mut self, waker: Option<&Waker>) -> Result<(), Farewell> {
        let Some(hearing) = &self.hearing else { return Ok(()) };
        let (heard, lost) = hearing.inbox.take(waker);
        let mut told = Vec::new();
        for notification in notifications(&heard).flatten().filter(|it| self.is_heard_elsewhere(it)) {
            let is_ascii = notification.channel.is_ascii() && notification.payload.is_ascii();
            if !is_ascii && *self.parameters.encoding() != *hearing.encoding {
                return Err(hears_no_more(Lost::Connection("client_encoding has been changed since".into())));
            }
            told.extend_from_slice(notification.message);
        }
        if !told.is_empty() {
            self.send(&told)?;
        }
        lost.map_or(Ok(()), |lost| Err(hears_no_more(lost)))
    }

    /// Whether the ReadyForQuery that has just come is kept back until the client has heard what it has notified
    /// itself of: PostgreSQL sends that in front of it.
    pub(super) fn withholds_ready(&mut self) -> bool {
        if self.hearing.is_none() || self.body.is_half_sent() || self.group.mode.get() == PoolMode::Session {
            return false;
        }
        let lease = self.lease();
        let pipeline = &lease.pipeline;
        let withholds = pipeline.touched.parts.contains(Parts::NOTIFIES)
            && pipeline.owes_client_nothing()
            && lease.backlog.is_empty()
            && !lease.loan().proving
            && !lease.loan().closing;
        self.withheld = withholds;
        withholds
    }

    /// Waits until all has been heard that was notified of so far.
    pub(super) fn hears_itself(&self) -> impl Future<Output = ()> + use<> {
        let listening = self.hearing.as_ref().filter(|_| self.withheld).map(|it| Arc::clone(&it.listening));
        async move {
            if let Some(listening) = listening {
                listening.pass().await;
            }
        }
    }

    /// The end of what [`Session::withholds_ready`] has begun.
    pub(super) fn send_withheld(&mut self) -> Result<(), Farewell> {
        if std::mem::take(&mut self.withheld) {
            let told = self.tell_all_heard(None);
            self.send(super::idle::READY_FOR_QUERY)?;
            told?;
        }
        Ok(())
    }

    /// Whether a notification is heard elsewhere, too, and told from there.
    pub(super) fn is_heard_elsewhere(&self, notification: &Notification<'_>) -> bool {
        let channel = str::from_utf8(notification.channel).ok();
        self.hearing.as_ref().zip(channel).is_some_and(|(it, channel)| it.channels.contains(channel))
    }

    /// Those of some notifications of the client's server that it does not hear elsewhere.
    pub(super) fn heard_only_here(&self, heard: &[u8]) -> Vec<u8> {
        let only_here = notifications(heard).flatten().filter(|it| !self.is_heard_elsewhere(it));
        only_here.flat_map(|notification| notification.message).copied().collect()
    }

    /// Ends the listening to what the last transactions have UNLISTENed.
    pub(super) fn unlisten(
        &mut self,
        unlistens: &[Unlisten],
        unlistened: Unlistened,
    ) -> Result<(), Farewell> {
        let Some(hearing) = &mut self.hearing else { return Ok(()) };
        let mut left = hearing.channels.clone();
        if !unlistened.apply(unlistens, &mut left) {
            return Err(unlistened_somewhere());
        }
        hearing.gone = hearing.channels.difference(&left).cloned().collect();
        Ok(())
    }

    /// Leaves what [`Session::unlisten`] has found, but for what the server listens to again.
    pub(super) fn leave_channels(&mut self, again: &Channels) {
        let Some(hearing) = &mut self.hearing else { return };
        let gone: Channels = std::mem::take(&mut hearing.gone).difference(again).cloned().collect();
        hearing.channels.retain(|channel| !gone.contains(channel));
        hearing.listening.leave(&hearing.inbox, &gone);
        if hearing.channels.is_empty() {
            self.hearing = None;
        }
    }

    /// Lets the listening connection take over from the leased server, which listens to these channels.
    pub(super) fn hand_over(&mut self, mut lease: Lease, channels: Channels) {
        let (listening, inbox, known) = match self.hearing.take() {
            Some(mut hearing) => {
                let known = std::mem::take(&mut hearing.channels);
                (Arc::clone(&hearing.listening), Arc::clone(&hearing.inbox), known)
            }
            None => {
                let limit = self.plane.shared.config.load().settings.max_notification_queue;
                let entry = self.plane.shared.databases.database(&self.group.database);
                (Arc::clone(&entry.listening), Inbox::new(limit as usize), Channels::new())
            }
        };
        let (gone, encoding) = (Channels::new(), self.parameters.encoding().into());
        let hearing = Box::new(Hearing { listening, inbox, channels: known, gone, encoding });
        let worker = self.plane.worker;
        self.phase = Phase::Asking(Asking::new(async move {
            let moved = try_to_move(&mut lease, hearing, channels, worker).await;
            Brought::Moved(lease, moved)
        }));
    }

    /// What became of that.
    pub(super) fn moved(&mut self, lease: Lease, moved: Result<Moved, QueryError>) -> Result<(), Farewell> {
        let Moved { heard, stays, hearing } = match moved {
            Ok(moved) => moved,
            Err(error) => {
                lease.close(&format!("it could not be freed from listening: {error}"));
                return Err(not_known(&error));
            }
        };
        if !heard.is_empty() {
            self.send(&heard)?;
        }
        if !hearing.channels.is_empty() {
            self.hearing = Some(hearing);
        }
        if let Some(reason) = stays {
            tracing::info!("{} keeps its server connection to LISTEN: {reason}", self.tag());
            if let Err(farewell) = self.pin(self.pins() | Pins::LISTEN) {
                lease.close("its client may not leave what it has left");
                return Err(farewell);
            }
        }
        self.go_on_with(lease)
    }
}

/// Moves a client's listening. Its server listens to `channels`.
async fn try_to_move(
    lease: &mut Lease,
    mut hearing: Box<Hearing>,
    channels: Channels,
    worker: usize,
) -> Result<Moved, QueryError> {
    let listening = Arc::clone(&hearing.listening);
    let new: Channels = channels.difference(&hearing.channels).cloned().collect();
    if new.is_empty() {
        run_unlimited(lease, "UNLISTEN *").await?;
        lease.heard.clear();
        return Ok(Moved { heard: Vec::new(), stays: None, hearing });
    }
    let pool = Arc::clone(lease.pool());
    let encoding = &*hearing.encoding;
    // Names are told in UTF-8; in another encoding the listening connection would listen to something else.
    let is_plain = |name: &str| name.is_ascii() || encoding == "UTF8" && !name.contains('\u{fffd}');
    let joined = if hearing.channels.len() + new.len() > CHANNELS_MAX {
        Err(format!("more than {CHANNELS_MAX} channels"))
    } else if new.iter().all(|name| is_plain(name)) {
        listening.join((&pool, worker), &hearing.inbox, new.clone(), encoding).await
    } else {
        Err("a name is neither ASCII nor UTF-8".to_owned())
    };
    let coming = match joined {
        Ok(coming) => coming,
        Err(reason) => return Ok(Moved { heard: Vec::new(), stays: Some(reason), hearing }),
    };
    let (marks, mark) = coming.mark();
    // Nothing is worth waiting for a standby.
    let says = format!("SET LOCAL synchronous_commit = off; LISTEN {marks}; NOTIFY {marks}, '{mark}'");
    run_unlimited(lease, &says).await?;
    let (heard, behind) = split_at_mark(&std::mem::take(&mut lease.heard), &coming, &hearing.channels);
    if !coming.has_come().await {
        run_unlimited(lease, &format!("UNLISTEN {marks}")).await?;
        let (more, _) = split_at_mark(&std::mem::take(&mut lease.heard), &coming, &hearing.channels);
        let stays = Some("the listening connection is at another server".into());
        return Ok(Moved { heard: [heard, behind, more].concat(), stays, hearing });
    }
    hearing.channels.extend(new);
    coming.accept();
    run_unlimited(lease, "UNLISTEN *").await?;
    lease.heard.clear();
    Ok(Moved { heard, stays: None, hearing })
}

/// What has come for the client in front of its mark, and behind it; without marks, and without what it hears
/// elsewhere.
fn split_at_mark(heard: &[u8], coming: &Coming<'_>, elsewhere: &Channels) -> (Vec<u8>, Vec<u8>) {
    let (marks, mark) = coming.mark();
    let (mut before, mut behind, mut is_behind) = (Vec::new(), Vec::new(), false);
    for notification in notifications(heard).flatten() {
        let channel = String::from_utf8_lossy(notification.channel);
        if channel == marks {
            is_behind |= notification.payload == mark.as_bytes();
        } else if !elsewhere.contains(&*channel) {
            let side = if is_behind { &mut behind } else { &mut before };
            side.extend_from_slice(notification.message);
        }
    }
    (before, behind)
}

/// Nobody can say what a client listens to.
pub(super) fn unlistened_somewhere() -> Farewell {
    let reason = "what it has UNLISTENed stands in a function, or a savepoint may have undone it";
    not_known(&QueryError::Refused(reason.into()))
}

fn hears_no_more(lost: Lost) -> Farewell {
    match lost {
        Lost::TooSlow { limit } => SqlError::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, "too many notifications wait for this client")
            .detail(format!("More than {limit} bytes of notifications would have waited for it to read them, or for the end of its transaction."))
            .hint("The limit is the setting max_notification_queue. Reconnect, LISTEN again, and look at what has changed meanwhile."),
        Lost::Connection(reason) => SqlError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection because notifications may be lost")
            .detail(format!("The server connection that listened for this session is gone: {reason}."))
            .hint("Reconnect, LISTEN again, and look at what has changed meanwhile."),
    }
    .into()
}
