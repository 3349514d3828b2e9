//! Our own connection to each server of a cluster: [`watch`] asks it each second, or when told to, who
//! it is and how far it is, and then each second how it is. The pools' connections are never used for that, so
//! a pool full of stuck queries hides nothing.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::inquiry::Inquiry;
use crate::server::login::{Recipe, read_system_id};
use crate::server::{ServerConnection, Session};
use crate::topology::signals::Signals;
use crate::topology::{Identity, Place};

/// How often a server is asked.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer may take, and a login. A frozen server answers nothing, and must not be waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that are read at once of what a server says without being asked.
const NEWS_MAX: usize = 1024;

/// A connection older than this is replaced. A server that shuts down smartly answers on old ones as if
/// nothing was, and waits for us to close them: only a new login tells.
const AGE_MAX: Duration = Duration::from_secs(3);

/// Everything in one round trip; PUBLIC may execute all of it.
const QUESTION: &str = "SELECT pg_is_in_recovery(), \
    (SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() \
    THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), \
        (SELECT timeline_id FROM pg_control_checkpoint())) \
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END \
        - '0/0'::pg_lsn)::bigint";

/// What a server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub identity: Identity,
    /// The WAL that it has written or, in recovery, replayed.
    pub lsn: u64,
    /// The session before this one was ended, and not by us.
    pub session_lost: bool,
}

/// An answer, or why there is none.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Who was asked.
    pub place: Place,
    /// What it said.
    pub said: Said,
    /// When it was asked: what it says of its WAL is at least as new.
    pub asked: Instant,
}

/// What a server says.
#[derive(Clone, Debug)]
pub enum Said {
    /// Who it is. Without it nothing begins there.
    Status(Result<Status, Arc<str>>),
    /// How it is. Nothing depends on it.
    Signals(Result<Box<Signals>, Arc<str>>),
}

/// Makes a monitor ask early.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Notify,
    anew: AtomicBool,
    /// Since when an answer is awaited.
    asked: Mutex<Option<Instant>>,
    brief: AtomicBool,
}

impl Bell {
    /// Ask now.
    pub fn ring(&self) {
        self.rung.notify_one();
    }

    /// How long the server has owed an answer.
    pub fn waits(&self, now: Instant) -> Duration {
        self.asked.lock().map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked))
    }

    /// Ask now, over a new connection.
    pub fn ring_anew(&self) {
        self.anew.store(true, Ordering::Release);
        self.ring();
    }

    /// Keep no session between two questions: the server may be about to end, and would wait for it.
    pub fn be_brief(&self, brief: bool) {
        if !self.brief.swap(brief, Ordering::AcqRel) && brief {
            self.ring_anew();
        }
    }
}

/// Asks until it is aborted. How to log in is asked for each time, since a RELOAD may have changed it;
/// without an answer it stays as it was.
pub async fn watch(
    place: Place,
    mut recipe: Recipe,
    renewed: impl Fn() -> Option<Recipe>,
    session: Arc<Session>,
    bell: Arc<Bell>,
    answers: mpsc::Sender<Answer>,
) {
    let mut connection = None;
    let mut inquiry = Inquiry::default();
    let (mut lost, mut was_told) = (false, false);
    let mouth = Mouth { place, answers };
    loop {
        let asked = Instant::now();
        recipe = renewed().unwrap_or(recipe);
        let anew = bell.anew.swap(false, Ordering::AcqRel);
        let too_old = |open: &ServerConnection| anew || open.age(asked) > AGE_MAX;
        let old = connection.take_if(|open| too_old(open));
        *bell.asked.lock() = Some(asked);
        let status = match old {
            Some(old) => renew(old, &mut connection, &recipe, &session).await,
            None => ask(&mut connection, &recipe, &session).await,
        };
        *bell.asked.lock() = None;
        if bell.brief.load(Ordering::Acquire) {
            connection = None;
        }
        let status = status.map(|status| Status { session_lost: status.session_lost || lost, ..status });
        if !mouth.say(Said::Status(status), asked).await {
            return;
        }
        lost = false;
        if let Some(open) = connection.take_if(|_| inquiry.is_due(was_told, Instant::now())) {
            let inquired = inquiry.ask(open, &session, &bell.rung).await;
            (connection, lost) = (inquired.connection, inquired.session_lost);
            if !mouth.say(Said::Signals(inquired.signals.map(Box::new)), asked).await {
                return;
            }
            if connection.is_none() {
                // What it means that it has ended, or owes an answer, is asked at once.
                continue;
            }
        }
        was_told = rest(&mut connection, &session, &bell).await;
    }
}

/// Who is told.
struct Mouth {
    place: Place,
    answers: mpsc::Sender<Answer>,
}

impl Mouth {
    /// Returns whether there is anybody to tell.
    async fn say(&self, said: Said, asked: Instant) -> bool {
        self.answers.send(Answer { place: self.place.clone(), said, asked }).await.is_ok()
    }
}

/// Until it is time to ask, the bell rings, or the server ends the session: what that means is asked at once.
/// Returns whether it was woken.
async fn rest(connection: &mut Option<ServerConnection>, session: &Session, bell: &Bell) -> bool {
    let mut buffer = [0; NEWS_MAX];
    let ended = poll_fn(|context| {
        let mut ends = |open: &mut ServerConnection| open.poll_idle(context, &mut buffer, session).is_err();
        if connection.as_mut().is_some_and(&mut ends) { Poll::Ready(()) } else { Poll::Pending }
    });
    let woken = async {
        tokio::select! {
            () = ended => {}
            () = bell.rung.notified() => {}
        }
    };
    timeout(INTERVAL, woken).await.is_ok()
}

/// Over the connection that is there; if that is lost, over a new one.
async fn ask(
    connection: &mut Option<ServerConnection>,
    recipe: &Recipe,
    session: &Session,
) -> Result<Status, Arc<str>> {
    let session_lost = connection.is_some();
    if let Some(mut open) = connection.take()
        && let Ok(Ok(row)) = timeout(PATIENCE, open.first_row(QUESTION, session)).await
    {
        let status = read(&row)?;
        *connection = Some(open);
        return Ok(status);
    }
    let attempt = async {
        let (mut open, _) = recipe.open(session, 0, 0).await.map_err(|error| error.to_string())?;
        let row = open.first_row(QUESTION, session).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((open, row))
    };
    match timeout(PATIENCE, attempt).await {
        Ok(Ok((open, row))) => {
            *connection = Some(open);
            Ok(Status { session_lost, ..read(&row)? })
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(silence()),
    }
}

/// Over a new connection. When just this login is refused, as for want of a free connection, the old
/// one is as good.
async fn renew(
    mut old: ServerConnection,
    connection: &mut Option<ServerConnection>,
    recipe: &Recipe,
    session: &Session,
) -> Result<Status, Arc<str>> {
    let mut session_lost = false;
    *connection = match timeout(PATIENCE, recipe.open(session, 0, 0)).await {
        Ok(Ok((new, _))) => {
            session_lost = !old.socket.is_silent_and_open();
            Some(new)
        }
        Ok(Err(error)) if !error.tells_of_the_server() => Some(old),
        Ok(Err(error)) => return Err(error.to_string().into()),
        Err(_) => return Err(silence()),
    };
    let status = ask(connection, recipe, session).await?;
    Ok(Status { session_lost: session_lost || status.session_lost, ..status })
}

fn silence() -> Arc<str> {
    format!("no answer within {} s", PATIENCE.as_secs()).into()
}

fn read(row: &[Option<String>]) -> Result<Status, Arc<str>> {
    let unreadable = || Arc::from(format!("an answer that cannot be read: {row:?}"));
    let [Some(in_recovery), Some(system_id), Some(timeline), Some(lsn)] = row else {
        return Err(unreadable());
    };
    match (read_system_id(system_id), timeline.parse(), lsn.parse()) {
        (Some(system_id), Ok(timeline), Ok(lsn)) => {
            let identity = Identity { in_recovery: in_recovery == "t", system_id, timeline };
            Ok(Status { identity, lsn, session_lost: false })
        }
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_shown() {
        let row = |cells: [&str; 4]| cells.map(|cell| Some(cell.to_owned()));
        let status = read(&row(["f", "7594321098765432101", "3", "50331648"])).expect("a right answer");
        let identity = Identity { in_recovery: false, system_id: 7_594_321_098_765_432_101, timeline: 3 };
        assert_eq!(status, Status { identity, lsn: 50_331_648, session_lost: false });
        let error = read(&row(["t", "x", "3", "1"])).expect_err("no number");
        assert!(error.contains("\"x\""), "{error}");
        assert!(read(&[None]).is_err());
    }
}
