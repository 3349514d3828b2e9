//! What a client makes of its session. When a transaction has ended that may have changed it, the server is asked
//! what there is now: what another server can be given is carried along ([`SessionState`]), and while there is
//! more than that the client keeps its server ([`Pinned`]).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::hearing::{Moved, unlistened_somewhere};
use super::plane::Group;
use super::views::unix_us;
use super::{Farewell, Phase, Session, since};
use crate::admin::PinView;
use crate::config::{Config, PoolMode, SessionStateMode};
use crate::error::{SqlError, sqlstate};
use crate::pool::{Lease, Pool};
use crate::protocol::channels::Channels;
use crate::protocol::functions::Search;
use crate::protocol::state::{ENTRIES_MAX, LIFT_LIMITS, Pins, Question, SessionState, TEXT_MAX, ended_by};
use crate::server::QueryError;
use crate::sql::state::{Parts, Touched};

/// Undoes whatever a client has made of a session.
const DISCARD_ALL: &str = "DISCARD ALL";

/// How often a question of ours may be cut short before it is given up: it takes a moment to lift the client's limit.
const CANCELED_MAX: usize = 9;

type Rows = Vec<Vec<Option<String>>>;

/// What a server was given to do after a transaction, and how that went.
pub(super) enum Brought {
    /// It was asked what there is.
    Answer(Lease, Touched, Result<(Question, Rows), QueryError>),
    /// It was freed from listening.
    Moved(Lease, Result<Moved, QueryError>),
}

/// The settings about this.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    mode: SessionStateMode,
    /// `pin_timeout`
    pin_timeout: Duration,
    /// `max_pinned_per_pool`
    pinned_max: u32,
}

impl Default for Keeping {
    fn default() -> Self {
        Keeping::new(&Config::default())
    }
}

impl Keeping {
    /// Those of a configuration.
    pub(super) fn new(config: &Config) -> Self {
        let settings = &config.settings;
        Keeping {
            mode: settings.session_state,
            pin_timeout: settings.pin_timeout,
            pinned_max: settings.max_pinned_per_pool,
        }
    }
}

/// A server is being asked what a client has made of its session, or freed from some of that.
pub(super) struct Asking {
    answer: Pin<Box<dyn Future<Output = Brought>>>,
}

impl Asking {
    /// In a box: a pointer of two words would make every session larger.
    pub(super) fn new(answer: impl Future<Output = Brought> + 'static) -> Box<Self> {
        Box::new(Asking { answer: Box::pin(answer) })
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asking")
    }
}

/// Why a client keeps its server, and since when.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pins: Pins,
    pub(super) since: Instant,
    pool: Arc<Pool>,
}

impl Pinned {
    fn new(pool: &Arc<Pool>, now: Instant) -> Self {
        pool.pinned.fetch_add(1, Ordering::Relaxed);
        Pinned { pins: Pins::empty(), since: now, pool: Arc::clone(pool) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pool.pinned.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is done with a server between two transactions of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// It goes back to the pool.
    GiveBack,
    /// Its client keeps it.
    Keep,
    /// It is asked first; the phase is [`Phase::Asking`] now.
    Ask,
}

impl Group {
    /// Whether what clients do to their sessions is watched: where servers change clients between transactions.
    pub(super) fn is_watching(&self) -> bool {
        self.mode.get() != PoolMode::Session && self.keeping.get().mode != SessionStateMode::Pgbouncer
    }
}

impl Session {
    pub(super) fn pins(&self) -> Pins {
        self.pinned.as_ref().map_or(Pins::empty(), |pinned| pinned.pins)
    }

    /// Decides what happens to the leased server, which is idle.
    pub(super) fn between(&mut self) -> Result<Between, Farewell> {
        let pins = self.pins();
        let pipeline = &mut self.lease().pipeline;
        if pipeline.touched.is_empty() {
            return Ok(if pins.is_empty() { Between::GiveBack } else { Between::Keep });
        }
        let mut touched = std::mem::take(&mut pipeline.touched);
        let unlistened = std::mem::take(&mut pipeline.unlistened);
        touched.parts -= Parts::NOTIFIES | Parts::SHOWS_CHANNELS;
        if let Err(farewell) = self.unlisten(&std::mem::take(&mut touched.unlistens), unlistened) {
            self.lease().pipeline.touched = touched;
            return Err(farewell);
        }
        ended_by(&mut touched, pins);
        if touched.parts.contains(Parts::FUNCTIONS) {
            self.group.pool.functions.forget();
            touched.parts -= Parts::FUNCTIONS;
            // It may have called what is gone by now, or another one by that name.
            touched.add_told();
        }
        touched.parts -= Parts::EXECUTES;
        if touched.parts.contains(Parts::SEQUENCES) {
            self.group.pool.sequences.store(true, Ordering::Relaxed);
        }
        let question = Question::new(&touched, &self.state);
        if question.is_asked() || !touched.calls.is_empty() || self.withheld {
            self.ask(touched);
            return Ok(Between::Ask);
        }
        if let Err(farewell) = self.take_answer(&question, Vec::new()) {
            // Whoever takes the server from here must know.
            self.lease().pipeline.touched = touched;
            return Err(farewell);
        }
        Ok(if self.pins().is_empty() { Between::GiveBack } else { Between::Keep })
    }

    fn ask(&mut self, mut touched: Touched) {
        let Phase::Leased(mut lease) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("the caller has looked at the leased server");
        };
        let cancels = self.cancels.clone();
        let state = Arc::clone(&self.state);
        let hears_itself = self.hears_itself();
        let answer = async move {
            hears_itself.await;
            // One that is on its way is meant for the client's query, not for ours.
            if let Some(cancels) = cancels.filter(|cancels| cancels.are_pending())
                && !cancels.arrived().await
            {
                let error = QueryError::Refused("a cancel request may still reach it".into());
                return Brought::Answer(lease, touched, Err(error));
            }
            let mut lifted = touched.parts.contains(Parts::LIMITS) || state.has_time_limit();
            let answer = match learn(&mut lease, &mut touched, &mut lifted).await {
                Ok(()) => answer(&mut lease, Question::new(&touched, &state), &mut lifted).await,
                Err(error) => Err(error),
            };
            Brought::Answer(lease, touched, answer)
        };
        self.phase = Phase::Asking(Asking::new(answer));
    }

    /// Waits for the server's answer; meanwhile the client is not read.
    pub(super) fn poll_asking(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Farewell>> {
        let Phase::Asking(asking) = &mut self.phase else { unreachable!("the caller matched the phase") };
        let brought = ready!(asking.answer.as_mut().poll(context));
        self.phase = Phase::Idle;
        Poll::Ready(match brought {
            Brought::Answer(lease, touched, answer) => self.answered(lease, touched, answer),
            Brought::Moved(lease, moved) => self.moved(lease, moved),
        })
    }

    fn answered(
        &mut self,
        mut lease: Lease,
        touched: Touched,
        answer: Result<(Question, Rows), QueryError>,
    ) -> Result<(), Farewell> {
        if let Err(farewell) = self.send_withheld() {
            lease.close("its client has left before it told what there is");
            return Err(farewell);
        }
        let (question, rows) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                lease.close(&format!("session state is not known: {error}"));
                return self.doubt(touched, &error);
            }
        };
        if let Err(farewell) = self.settle_doubt() {
            lease.close("nobody knows what its client has left");
            return Err(farewell);
        }
        if self.hearing.is_some() && !touched.unlistens.is_empty() {
            // A function that was called for the first time does that.
            lease.close("nobody knows what its client listens to");
            return Err(unlistened_somewhere());
        }
        if !question.is_asked() {
            // It was set up, and has its own way to write the values.
            self.parameters = Arc::clone(&lease.parameters);
        }
        // PostgreSQL sends them in front of any ReadyForQuery, ours too.
        let heard = std::mem::take(&mut lease.heard);
        if !heard.is_empty() {
            self.send(&self.heard_only_here(&heard))?;
        }
        let channels = match self.take_answer(&question, rows) {
            Ok((at_server, channels)) => {
                lease.state = at_server;
                channels
            }
            Err(farewell) => {
                lease.close("its client may not leave what it has left");
                return Err(farewell);
            }
        };
        self.leave_channels(&channels);
        if channels.is_empty() {
            return self.go_on_with(lease);
        }
        self.hand_over(lease, channels);
        Ok(())
    }

    /// Gives a server back that knows nothing more of its client, or lets the client keep it.
    pub(super) fn go_on_with(&mut self, mut lease: Lease) -> Result<(), Farewell> {
        if self.pins().is_empty() {
            let now = lease.loan().quiet_since;
            self.last_request = now;
            self.give_back(lease, now);
        } else if lease.site().is_closed() {
            lease.close("server connection is no longer wanted");
            return Err(Farewell::Severed);
        } else {
            lease.pipeline.hears_elsewhere = self.hearing.is_some();
            self.keep(lease);
        }
        Ok(())
    }

    /// The server was lost before it told. Where functions were called of which nothing is known, most likely they have
    /// changed nothing: the next server says what they are.
    fn doubt(&mut self, touched: Touched, error: &QueryError) -> Result<(), Farewell> {
        if !self.pins().is_empty() || !(touched.parts - Parts::ENDS).is_empty() || touched.calls.is_empty() {
            return Err(not_known(error));
        }
        self.doubted = Some(Box::new(touched.calls));
        Ok(())
    }

    /// Whether what was called on a server that was lost has changed nothing there.
    fn settle_doubt(&mut self) -> Result<(), Farewell> {
        let Some(calls) = self.doubted.take() else { return Ok(()) };
        let mut touched = Touched::default();
        self.group.pool.functions.add(&Touched { calls: *calls, ..Touched::default() }, &mut touched);
        match touched.is_empty() {
            true => Ok(()),
            false => Err(not_known(&QueryError::Refused("it was lost".into()))),
        }
    }

    /// Goes on with the server, once it has what the client's StartupMessage asks for, should that have been reset.
    fn keep(&mut self, mut lease: Lease) {
        let sql = self.sets_toward_mine(&lease);
        if sql.is_empty() {
            self.phase = Phase::Leased(lease);
            return;
        }
        let nothing = Question::new(&Touched::default(), &self.state);
        let texts = self.in_its_encoding(&lease, sql);
        self.phase = Phase::Asking(Asking::new(async move {
            for sql in texts {
                if let Err(error) = lease.rows_in_time(&sql).await {
                    return Brought::Answer(lease, Touched::default(), Err(error));
                }
            }
            Brought::Answer(lease, Touched::default(), Ok((nothing, Vec::new())))
        }));
    }

    /// Takes over what the server says. Returns the state that it has, and the channels that somebody else shall listen
    /// to for the client.
    fn take_answer(
        &mut self,
        question: &Question,
        rows: Rows,
    ) -> Result<(Arc<SessionState>, Channels), Farewell> {
        let shared = &self.plane.shared;
        let welcome = self.group.pool.welcome();
        let login = welcome.as_ref().and_then(|welcome| welcome.get("session_authorization"));
        let tracked = &shared.server.tracked;
        let mut told = question.read(rows, (&self.state, self.pins()), login, (tracked, &self.parameters));
        if told.state.is_too_large() {
            return Err(too_large(&told.state));
        }
        if self.group.keeping.get().mode == SessionStateMode::Error
            && let left = self.left_behind(&told.state)
            && !(left.is_clean() && told.pins.is_empty())
        {
            return Err(not_allowed(&left, told.pins));
        }
        let mut at_server = Arc::clone(&self.state);
        if told.state != *self.state {
            at_server = shared.server.states.intern(told.state.clone());
            self.state = Arc::clone(&at_server);
        }
        if let Some(wanted) = self.wanted.as_ref().filter(|_| question.asks_settings()) {
            told.state.add_missing(&wanted.others);
            self.state = shared.server.states.intern(told.state);
            let mut parameters = Arc::clone(&self.parameters);
            // A server whose default the client has set is not told to set it, and so does not tell of it.
            let may_be_reset = |index: &usize| question.may_reset() && !told.tracked.contains(index);
            for (index, value) in wanted.tracked.iter().filter(|(index, _)| may_be_reset(index)) {
                // One that the server does not report cannot follow the client.
                if parameters.get(*index).is_some_and(|now| !now.eq_ignore_ascii_case(value)) {
                    parameters = shared.server.parameters.intern(parameters.with(*index, value));
                }
            }
            self.parameters = parameters;
        }
        let channels = std::mem::take(&mut told.channels);
        self.pin(if channels.is_empty() { told.pins } else { told.pins - Pins::LISTEN })?;
        Ok((at_server, channels))
    }

    /// What the client has set since its StartupMessage.
    fn left_behind(&self, state: &SessionState) -> SessionState {
        let asked = self.wanted.as_ref().map_or(&[][..], |wanted| &wanted.others);
        state.without(asked.iter().map(|(name, _)| name.as_str()))
    }

    pub(super) fn pin(&mut self, pins: Pins) -> Result<(), Farewell> {
        if pins.is_empty() {
            self.pinned = None;
            return Ok(());
        }
        let new = pins - self.pins();
        let pool = &self.group.pool;
        let limit = self.group.keeping.get().pinned_max;
        if self.pinned.is_none() && limit > 0 && pool.pinned.load(Ordering::Relaxed) >= limit {
            return Err(too_many_pinned(pins, limit));
        }
        let pinned = self.pinned.get_or_insert_with(|| Box::new(Pinned::new(pool, Instant::now())));
        pinned.pins = pins;
        if !new.is_empty() {
            let mut metrics = self.plane.metrics.borrow_mut();
            for reason in new.reasons().filter(|reason| metrics.note_pin(reason)) {
                tracing::info!(
                    "{} keeps its server connection, reason={reason}; for others of this reason see SHOW PINS",
                    self.tag(),
                );
            }
        }
        Ok(())
    }

    /// Whether an earlier transaction of this lease may have changed the session, and the server was not asked yet.
    pub(super) fn leaves_unasked(&self) -> bool {
        let Phase::Leased(lease) = &self.phase else { return false };
        lease.loan().transactions > 0 && !lease.pipeline.touched.is_empty()
    }

    /// Gives a server back at the end of the session, without what the client has left on it.
    pub(super) fn leave(&mut self, lease: Lease, now: Instant) {
        let parts = lease.pipeline.touched.parts - Parts::LEAVE_NOTHING;
        let pins = self.pins();
        // What was called just now may be unknown still.
        if pins.is_empty() && parts.is_empty() && lease.pipeline.touched.calls.is_empty() {
            self.give_back(lease, now);
        } else if pins.intersects(Pins::LIBRARY | Pins::OTHER)
            || parts.intersects(Parts::LIBRARIES | Parts::OTHERS)
        {
            lease.close("what its client has left cannot be undone");
        } else {
            self.give_back_after(lease, DISCARD_ALL.to_owned(), now);
        }
    }

    /// What SHOW PINS says of it.
    pub(super) fn pin_view(&self) -> Option<PinView> {
        let pinned = self.pinned.as_ref()?;
        Some(PinView {
            client_id: self.id,
            database: self.group.database.to_string(),
            user: self.group.user.to_string(),
            reason: pinned.pins.words(),
            since_us: unix_us(pinned.since),
            server_id: match &self.phase {
                Phase::Leased(lease) => Some(lease.id),
                Phase::Idle | Phase::Waiting(_) | Phase::Asking(_) | Phase::Parting(_) => None,
            },
        })
    }

    /// `pin_timeout`
    pub(super) fn check_pin(&self, quiet_since: Instant, now: Instant) -> Option<SqlError> {
        let limit = self.group.keeping.get().pin_timeout;
        let pinned = self.pinned.as_ref()?;
        (!limit.is_zero() && since(quiet_since, now) > limit).then(|| {
            SqlError::fatal(sqlstate::IDLE_SESSION_TIMEOUT, "pin_timeout")
                .detail(format!(
                    "The client has kept its server connection idle for longer than {} s, because of: {}.",
                    limit.as_secs_f64(),
                    pinned.pins.words()
                ))
                .hint("The limit is the setting pin_timeout; SHOW PINS tells who keeps a server connection.")
        })
    }
}

async fn answer(
    lease: &mut Lease,
    question: Question,
    lifted: &mut bool,
) -> Result<(Question, Rows), QueryError> {
    let rows = match question.is_asked() {
        true => rows(lease, lifted, |lifted| question.sql(lifted)).await?,
        false => Vec::new(),
    };
    Ok((question, rows))
}

/// Asks, without a time limit of the client's where `lifted` says so, or where that turns out to be too short. What is
/// told is UTF-8, whatever the client's encoding is.
async fn rows(
    lease: &mut Lease,
    lifted: &mut bool,
    sql: impl Fn(bool) -> String,
) -> Result<Rows, QueryError> {
    let front = match lease.parameters.is_utf8() || !lease.parameters.has_utf8() {
        true => "",
        false => "SET LOCAL client_encoding = 'UTF8';",
    };
    for _ in 0..CANCELED_MAX {
        match lease.rows_in_time(&format!("{front}{}", sql(*lifted))).await {
            Err(QueryError::Canceled(_)) => *lifted = true,
            answer => return answer,
        }
    }
    lease.rows_in_time(&format!("{front}{}", sql(*lifted))).await
}

/// The statements, behind one that lifts the client's time limits if they are to be lifted.
fn behind_limits(lifted: bool, sql: &str) -> String {
    format!("{}{sql}", if lifted { LIFT_LIMITS } else { "" })
}

/// Runs statements of ours on a client's server, whose time limits do not hold.
pub(super) async fn run_unlimited(lease: &mut Lease, sql: &str) -> Result<(), QueryError> {
    rows(lease, &mut false, |lifted| behind_limits(lifted, sql)).await.map(drop)
}

/// Finds out what the functions may have changed that were called and of which nothing is known.
async fn learn(lease: &mut Lease, touched: &mut Touched, lifted: &mut bool) -> Result<(), QueryError> {
    if touched.calls.is_empty() {
        return Ok(());
    }
    let mut search = Search::new(&touched.calls);
    while let Some(sql) = search.sql() {
        search.take(rows(lease, lifted, |lifted| behind_limits(lifted, &sql)).await?);
    }
    let functions = &lease.pool().functions;
    search.finish(functions);
    let asked = Touched { calls: std::mem::take(&mut touched.calls), ..Touched::default() };
    functions.add(&asked, touched);
    // Forgotten already, for somebody else's DDL.
    if !std::mem::take(&mut touched.calls).is_empty() {
        touched.add_anything();
    }
    Ok(())
}

pub(super) fn not_known(error: &QueryError) -> Farewell {
    SqlError::fatal(sqlstate::CONNECTION_FAILURE, "session state is lost")
        .detail(format!(
            "The last transaction may have changed the session, and the server did not tell how: {error}."
        ))
        .hint("Its transaction has ended as the client was told. Reconnect, and set up the session again.")
        .into()
}

fn not_allowed(state: &SessionState, pins: Pins) -> Farewell {
    let mut left = state.words();
    if !left.is_empty() && !pins.is_empty() {
        left.push_str(", ");
    }
    left.push_str(&pins.words());
    SqlError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "session state is not allowed")
        .detail(format!("The last transaction has left something in the session: {left}."))
        .hint("Keep it within the transaction (SET LOCAL and the like), or set session_state to replay_and_pin.")
        .into()
}

fn too_large(state: &SessionState) -> Farewell {
    let (entries, bytes) = state.size();
    SqlError::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, "session state is too large")
        .detail(format!(
            "The session has {entries} settings and prepared statements of SQL with {bytes} bytes of text; \
             {ENTRIES_MAX} with {TEXT_MAX} bytes can be carried to another server."
        ))
        .hint("DEALLOCATE what is not used any more, prepare by the protocol, or use a pool in session mode.")
        .into()
}

fn too_many_pinned(pins: Pins, limit: u32) -> Farewell {
    SqlError::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many pinned server connections")
        .detail(format!(
            "{limit} clients of the pool keep their server connections already; this one would for: {}.",
            pins.words()
        ))
        .hint("The limit is the setting max_pinned_per_pool; SHOW PINS tells who they are.")
        .into()
}
