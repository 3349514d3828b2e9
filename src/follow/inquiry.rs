//! How a server's health is asked for, on the monitor's connection: [`Inquiry`]. It comes after the question
//! who the server is, and never stands in its way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::monitor::{INTERVAL, PATIENCE};
use crate::server::{QueryError, ServerConnection, Session};
use crate::topology::signals::{QUESTION, Signals, WAL_QUESTION};

/// What a monitor's rests are shorter than [`INTERVAL`] at most, so that each of them has its question.
const EARLY: Duration = Duration::from_millis(100);

/// While the monitor is told to ask who the server is, as there is no primary, that goes first for so long.
const PUT_OFF: Duration = Duration::from_secs(3);

/// How often the files of the WAL are looked at.
const WAL_INTERVAL: Duration = Duration::from_secs(10);

/// So long an answer on its way may keep the monitor from asking something urgent. It usually comes within
/// 5 ms; a server that does not send it may be gone.
const GRACE: Duration = Duration::from_millis(50);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    asked: Option<Instant>,
    wal_asked: Option<Instant>,
    wal_bytes: Option<u64>,
}

/// What came of it.
pub(super) struct Inquired {
    /// The connection, if it can still be used.
    pub(super) connection: Option<ServerConnection>,
    /// The server ended the session meanwhile.
    pub(super) session_lost: bool,
    /// What it said, or why it said nothing.
    pub(super) signals: Result<Signals, Arc<str>>,
}

impl Inquiry {
    /// Whether it is time to ask; later, if the monitor was told to ask who the server is.
    pub(super) fn is_due(&self, was_told: bool, now: Instant) -> bool {
        let pause = if was_told { PUT_OFF } else { INTERVAL.saturating_sub(EARLY) };
        self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause)
    }

    /// Asks. When the bell rings meanwhile, or the time is over, it gives up, and the connection with it. The
    /// bell goes on ringing.
    pub(super) async fn ask(
        &mut self,
        connection: ServerConnection,
        session: &Session,
        bell: &Notify,
    ) -> Inquired {
        let now = Instant::now();
        self.asked = Some(now);
        let asking = timeout(PATIENCE, self.exchange(connection, session, now));
        tokio::pin!(asking);
        let done = tokio::select! {
            done = &mut asking => done.ok(),
            () = bell.notified() => {
                bell.notify_one();
                timeout(GRACE, &mut asking).await.ok().and_then(Result::ok)
            }
        };
        done.unwrap_or_else(|| Inquired {
            connection: None,
            session_lost: false,
            signals: Err(format!("no answer within {} s", now.elapsed().as_secs_f32()).into()),
        })
    }

    async fn exchange(&mut self, mut open: ServerConnection, session: &Session, now: Instant) -> Inquired {
        let signals = self.questions(&mut open, session, now).await;
        let session_lost = matches!(signals, Err(QueryError::Io(_) | QueryError::OutOfStep(_)));
        let signals = signals.map_err(|error| error.to_string()).flatten().map_err(Arc::from);
        Inquired { connection: (!session_lost).then_some(open), session_lost, signals }
    }

    /// The inner error is what cannot be read.
    async fn questions(
        &mut self,
        open: &mut ServerConnection,
        session: &Session,
        now: Instant,
    ) -> Result<Result<Signals, String>, QueryError> {
        let text = open.first_value(QUESTION, session).await?.unwrap_or_default();
        let mut signals = match Signals::read(&text) {
            Ok(signals) => signals,
            Err(error) => return Ok(Err(error)),
        };
        let is_due = |asked: Instant| now.saturating_duration_since(asked) >= WAL_INTERVAL;
        if signals.reads_wal && self.wal_asked.is_none_or(is_due) {
            self.wal_asked = Some(now);
            match open.first_value(WAL_QUESTION, session).await {
                Ok(bytes) => self.wal_bytes = bytes.and_then(|bytes| bytes.parse().ok()),
                // A file went away between listing and looking; the next time will do.
                Err(QueryError::Refused(_)) => {}
                Err(lost) => return Err(lost),
            }
        }
        signals.wal_bytes = self.wal_bytes.filter(|_| signals.reads_wal);
        Ok(Ok(signals))
    }
}
