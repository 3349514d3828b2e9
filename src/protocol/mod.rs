//! RULES. What the conversation with one server means: which requests were sent, which answers are
//! owed and to whom, and when the server is free for another client. No sockets, no clock.
//!
//! Start with [`Pipeline`]: requests go in by [`Pipeline::push`] in the order in which they are
//! written to the server, the server's bytes go through [`Pipeline::receive`].

mod answers;
pub mod body;
pub mod channels;
pub mod flight;
pub mod functions;
pub mod intern;
pub mod parameters;
pub mod state;
pub mod statements;
pub mod upstream;

use std::collections::VecDeque;
use std::ops::Range;

use thiserror::Error;

use crate::sql::state::{Parts, Touched};
use crate::wire::backend::TransactionStatus;
use crate::wire::{BackendTag, Malformed};
use channels::Unlistened;
use statements::{Change, Effects, Statement};

/// Most requests that may wait for an answer. Beyond it the client is not read.
///
/// It cannot dead-lock: a server keeps at most its output buffer (8 kB) to itself before a Sync, and
/// each owed answer has at least 5 bytes, so with this many owed most have been sent already.
pub const REQUESTS_MAX: usize = 16_384;

/// What becomes of the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The client asked, and gets the server's answer.
    Forward,
    /// We asked, not the client: the answer ends here.
    Discard,
    /// The client asked, we did not: the answer is made here when its turn comes.
    Synthesize,
}

/// The kinds of request, by the answer that they are owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A simple Query: any number of results, closed by ReadyForQuery.
    Query,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData, for a statement after its ParameterDescription.
    Describe,
    /// CommandComplete, EmptyQueryResponse or PortalSuspended after any rows.
    Execute,
    /// CloseComplete.
    Close,
    /// ReadyForQuery.
    Sync,
    /// FunctionCallResponse, closed by ReadyForQuery.
    FunctionCall,
    /// CopyDone or CopyFail: no answer of its own, but it says where a COPY's data ends.
    CopyEnd,
}

impl RequestKind {
    /// Whether the server skips to Sync when the request fails.
    fn is_extended(self) -> bool {
        use RequestKind::*;
        match self {
            Parse | Bind | Describe | Execute | Close => true,
            Query | Sync | FunctionCall | CopyEnd => false,
        }
    }

    /// Whether ReadyForQuery ends its answer.
    fn ends_with_ready(self) -> bool {
        matches!(self, RequestKind::Query | RequestKind::Sync | RequestKind::FunctionCall)
    }
}

#[derive(Clone, Copy, Debug)]
struct Request {
    kind: RequestKind,
    answer: Answer,
    /// Whether the next entry of `changes` belongs to it.
    changes: bool,
}

impl Request {
    /// Whether it may make or drop the unnamed statement.
    fn may_touch_unnamed(&self) -> bool {
        matches!(self.kind, RequestKind::Parse | RequestKind::Close | RequestKind::Query)
    }

    /// A simple Query of the client's own.
    fn is_client_query(&self) -> bool {
        self.kind == RequestKind::Query && self.answer == Answer::Forward
    }

    /// A Parse that the client sent and that has no change noted is of the unnamed statement.
    fn is_unnamed_parse(&self) -> bool {
        self.kind == RequestKind::Parse && self.answer == Answer::Forward && !self.changes
    }
}

/// Why the server's bytes cannot be understood. The connection is closed: its next owner must not
/// get what is left on it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OutOfStep {
    /// Bytes that are no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A message that answers nothing that was asked.
    #[error("server sent {tag:?} while {expected:?} was the next answer owed")]
    Unexpected {
        /// What came.
        tag: BackendTag,
        /// The request at the front, if any.
        expected: Option<RequestKind>,
    },
}

/// What [`Pipeline::receive`] made of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes that were dealt with; call again with the rest.
    pub consumed: usize,
    /// The bytes of them that go to the client as they are.
    pub forward: Range<usize>,
    /// Why it stopped there.
    pub stop: Stop,
}

/// Why [`Pipeline::receive`] stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Everything whole was dealt with; what is left over must be brought again with more behind it.
    NeedMore,
    /// Bytes behind `forward` were dropped.
    Discarded,
    /// These bytes follow `forward`: an answer that the server was not asked for.
    Synthesized(&'static [u8]),
    /// The body of a ParameterStatus, which ends at `consumed`.
    Parameter(Range<usize>),
    /// The body of an ErrorResponse, which ends at `consumed`; cut short when it is larger than we hold.
    Error(Range<usize>),
    /// The error of a Parse whose name the client has in use already: not forwarded, the client gets
    /// PostgreSQL's own words about its own name.
    Duplicate(Box<[u8]>),
    /// The server dropped all its prepared statements (DISCARD ALL, DEALLOCATE ALL).
    StatementsDropped,
    /// A NotificationResponse, which ends at `consumed`: not forwarded, as the client may have heard it elsewhere.
    Notification(Range<usize>),
    /// A ReadyForQuery for the client.
    Ready,
    /// A ReadyForQuery for a query of our own; `failed` when an error came before it.
    OwnQueryDone {
        /// Whether it failed.
        failed: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    None,
    /// Syncs in front of the data and inside it are ignored; `syncs` when there were any.
    In {
        syncs: bool,
    },
    Out,
    /// Data goes both ways, as WAL and its confirmations do.
    Both,
}

/// Whether it is known how many ReadyForQuery the server owes, see [`Pipeline::is_in_doubt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    Open,
    /// A Close and a Sync of ours are on their way: what comes in front of CloseComplete is what was in doubt.
    Asked,
}

/// The queue of requests sent on one server connection, and what it takes to match the answers.
#[derive(Debug)]
pub struct Pipeline {
    requests: VecDeque<Request>,
    changes: VecDeque<Change>,
    /// Changes that the server did not make after all, oldest first; the caller undoes them.
    undone: Vec<Change>,
    /// Changes that the server has made and the client has not heard of, oldest first.
    untold: Vec<Change>,
    status: TransactionStatus,
    /// Extended-protocol messages were sent after the last Sync.
    batch_open: bool,
    /// How many of `changes`, the last ones, were sent after the last Sync or Query.
    batch_changes: usize,
    /// The unnamed statement was prepared after the last Sync or Query.
    batch_unnamed: bool,
    /// Simple Queries of the client that are under way.
    queries: usize,
    /// Something under way is for a statement that may drop all statements.
    dropping: bool,
    /// Something under way is for a statement that may open a transaction block.
    opening_block: bool,
    /// The server skips everything up to a Sync that was not sent yet.
    skipping: bool,
    copy: Copy,
    doubt: Doubt,
    /// See [`Pipeline::take_unnamed_doubt`].
    unnamed_in_doubt: bool,
    own_query_failed: bool,
    /// Bytes of the current server message that are still to come.
    body_left: usize,
    body_discarded: bool,
    /// Largest message that the server may send, its header included: `max_packet_size`.
    pub message_max: usize,
    /// Whether what the client does to the session is watched.
    pub watching: bool,
    /// What the client may have changed of the session since somebody last asked the server.
    pub touched: Touched,
    /// A statement of the open transaction has changed what tables or types consist of.
    pub redefines: bool,
    /// The client's COMMIT was answered; the caller takes it back.
    pub committed: bool,
    /// What became of the client's UNLISTENs.
    pub unlistened: Unlistened,
    /// Whether somebody else listens for the client, too: its notifications are looked at.
    pub hears_elsewhere: bool,
    /// Whether the session's sequences may have been used by another client.
    pub others_sequences: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline {
            requests: VecDeque::new(),
            changes: VecDeque::new(),
            undone: Vec::new(),
            untold: Vec::new(),
            status: TransactionStatus::Idle,
            batch_open: false,
            batch_changes: 0,
            batch_unnamed: false,
            queries: 0,
            dropping: false,
            opening_block: false,
            skipping: false,
            copy: Copy::None,
            doubt: Doubt::None,
            unnamed_in_doubt: false,
            own_query_failed: false,
            body_left: 0,
            body_discarded: false,
            message_max: usize::MAX,
            watching: false,
            touched: Touched::default(),
            redefines: false,
            committed: false,
            unlistened: Unlistened::default(),
            hears_elsewhere: false,
            others_sequences: false,
        }
    }
}

impl Pipeline {
    /// Notes a request that is written to the server after all earlier ones.
    #[inline]
    pub fn push(&mut self, kind: RequestKind, answer: Answer) {
        self.push_request(Request { kind, answer, changes: false });
    }

    /// Notes a request that changes which statements exist.
    pub fn push_with_change(&mut self, kind: RequestKind, answer: Answer, change: Change) {
        if self.push_request(Request { kind, answer, changes: true }) {
            self.changes.push_back(change);
        } else {
            self.undone.push(change);
        }
    }

    /// Returns whether the request was queued: not when the server will never answer it.
    fn push_request(&mut self, request: Request) -> bool {
        match request.kind {
            RequestKind::Sync if self.in_copy_data() => {
                self.copy = Copy::In { syncs: true };
                return false;
            }
            RequestKind::Sync => {
                self.batch_open = false;
                self.skipping = false;
            }
            RequestKind::CopyEnd if self.requests.is_empty() => return false,
            RequestKind::CopyEnd => {}
            _ if self.skipping => return false,
            RequestKind::Query | RequestKind::FunctionCall => self.batch_open = false,
            _ => self.batch_open = true,
        }
        if request.kind.ends_with_ready() {
            self.batch_changes = 0;
            self.batch_unnamed = false;
        } else {
            self.batch_changes += usize::from(request.changes);
            self.batch_unnamed |= request.is_unnamed_parse();
        }
        self.queries += usize::from(request.is_client_query());
        self.requests.push_back(request);
        true
    }

    /// Takes the front request away, and its change. The oldest go first, so what is left of the
    /// changes shrinks to the current batch's.
    #[inline]
    fn take_front(&mut self) -> Option<(Request, Option<Change>)> {
        let front = self.requests.pop_front()?;
        let change = if front.changes { self.changes.pop_front() } else { None };
        self.batch_changes = self.batch_changes.min(self.changes.len());
        self.queries -= usize::from(front.is_client_query());
        Some((front, change))
    }

    /// PostgreSQL's `CopyGetData` ignores Flush and Sync until CopyDone or CopyFail, "for the
    /// convenience of client libraries".
    fn in_copy_data(&self) -> bool {
        matches!(self.copy, Copy::In { .. }) && !self.requests.iter().any(|r| r.kind == RequestKind::CopyEnd)
    }

    /// Changes to the prepared statements that did not happen after all, oldest first.
    pub fn take_undone(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.undone)
    }

    /// Everything that the server has answered so far has gone to the client.
    #[inline]
    pub fn note_told(&mut self) {
        self.untold.clear();
    }

    /// The connection is given up: every change that the client has not heard of, oldest first. Those that the server
    /// did not make after all come with them.
    pub fn abandon(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.untold);
        changes.append(&mut self.undone);
        changes.extend(self.changes.drain(..));
        self.requests.clear();
        changes
    }

    /// Whether the server's unnamed statement may be other than the Parse and Query messages say that
    /// were pushed, since some were skipped. Says so once.
    pub fn take_unnamed_doubt(&mut self) -> bool {
        std::mem::take(&mut self.unnamed_in_doubt)
    }

    /// Whether nobody knows how many ReadyForQuery are still to come: a COPY failed with Syncs among its
    /// data. Those that the server read before it failed are ignored, those behind are answered. Such
    /// a server is not idle before it has [been asked](Pipeline::ask_in_doubt).
    pub fn is_in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    /// Asks a server that is quiet and in doubt for something that it answers behind all that it owes: returns the
    /// name of a statement that nobody has, whose Close the caller sends, and a Sync.
    pub fn ask_in_doubt(&mut self) -> Option<String> {
        if self.doubt != Doubt::Open || !self.is_quiet() {
            return None;
        }
        self.doubt = Doubt::Asked;
        self.push(RequestKind::Close, Answer::Discard);
        self.push(RequestKind::Sync, Answer::Discard);
        Some(Statement::server_name(0))
    }

    /// Whether the server may serve another client: nothing is owed, no transaction is open, and no
    /// message is half read.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.owes_client_nothing()
    }

    /// The same, but for what answers us alone, as a Sync of ours behind the client's query.
    pub fn owes_client_nothing(&self) -> bool {
        self.status == TransactionStatus::Idle
            && !self.batch_open
            && !self.skipping
            && !self.is_in_doubt()
            && self.body_left == 0
            && self.requests.iter().all(|request| request.answer == Answer::Discard)
    }

    /// Whether the client owes the server nothing and the server owes the client nothing, be it
    /// inside a transaction.
    pub fn is_quiet(&self) -> bool {
        self.requests.is_empty() && !self.batch_open && !self.skipping && self.body_left == 0
    }

    /// Whether nothing is under way and no transaction is open, be the server in doubt or not.
    pub fn is_over(&self) -> bool {
        self.is_quiet() && self.status == TransactionStatus::Idle
    }

    /// Whether the server works for the client. A Parse of ours in front of the client's Bind does not
    /// count against it: its ParseComplete may stay in the server's buffer until the client's answer.
    pub fn runs_client_request(&self) -> bool {
        !self.runs_own_query() && self.requests.iter().any(|request| request.answer != Answer::Discard)
    }

    /// Whether the server works on a query of ours, which is answered before the client's begins.
    pub fn runs_own_query(&self) -> bool {
        let is_own = |r: &Request| r.kind == RequestKind::Query && r.answer == Answer::Discard;
        self.requests.front().is_some_and(is_own)
    }

    /// Whether nothing of the client's is under way and no transaction is open: a query of ours may stand here.
    pub fn is_before_client(&self) -> bool {
        let is_own = |r: &Request| r.kind == RequestKind::Query && r.answer == Answer::Discard;
        let is_free = !self.batch_open && !self.skipping && self.body_left == 0;
        is_free && self.status == TransactionStatus::Idle && self.requests.iter().all(is_own)
    }

    /// Whether messages of the extended protocol were sent after the last Sync.
    pub fn is_batch_open(&self) -> bool {
        self.batch_open
    }

    /// Whether something under way may set what decides what a text means.
    pub fn may_set(&self) -> bool {
        self.touched.parts.contains(Parts::SETTINGS) || self.touched.local_sets > 0
    }

    /// Whether all that was sent will be answered without anything further from the client.
    pub fn comes_to_rest(&self) -> bool {
        self.awaits_ready() && !self.batch_open && !self.skipping && !self.awaits_client()
    }

    /// Whether no more requests should be sent until answers have come.
    pub fn is_full(&self) -> bool {
        self.requests.len() >= REQUESTS_MAX
    }

    /// Whether the server ignores everything until the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether a Parse or our Close of this statement is on its way in an earlier batch, so that it may yet fail
    /// or be skipped without the current one's being so.
    pub fn awaits_statement(&self, statement: u64) -> bool {
        let on_its_way = |change: &Change| match change {
            Change::ClientParse { statement: sent, sent: true, .. } => sent.id == statement,
            Change::ServerParse(id) | Change::ServerClose(id) => *id == statement,
            _ => false,
        };
        self.earlier_changes().any(on_its_way)
    }

    /// Whether a Parse or Close of this name of the client's is on its way in an earlier batch.
    pub fn awaits_name(&self, wanted: &[u8]) -> bool {
        let on_its_way = |change: &Change| match change {
            Change::ClientParse { name, .. } | Change::ClientClose { name, .. } => **name == *wanted,
            _ => false,
        };
        self.earlier_changes().any(on_its_way)
    }

    /// Whether an earlier batch is on its way in a transaction, which may fail by it.
    pub fn may_fail_transaction(&self) -> bool {
        (self.opening_block || self.status != TransactionStatus::Idle) && self.awaits_ready()
    }

    /// Changes of batches before the current one: they may yet fail without its being skipped.
    fn earlier_changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().take(self.changes.len() - self.batch_changes)
    }

    /// Whether a ReadyForQuery is owed.
    pub fn awaits_ready(&self) -> bool {
        self.requests.iter().any(|request| request.kind.ends_with_ready())
    }

    /// Whether the next answer is made here.
    #[inline]
    pub fn has_synthesized(&self) -> bool {
        self.body_left == 0 && self.requests.front().is_some_and(|r| r.answer == Answer::Synthesize)
    }

    /// Whether a COPY goes on in both directions: a stream of replication, which has no end of its own.
    pub fn is_streaming(&self) -> bool {
        self.copy == Copy::Both
    }

    /// Whether the answer that is owed needs more of the client first: the data of a COPY, or a stream's end.
    pub fn awaits_client(&self) -> bool {
        self.in_copy_data() || self.is_streaming()
    }

    /// Whether a message for the client was passed on in part.
    pub fn is_mid_message(&self) -> bool {
        self.body_left > 0 && !self.body_discarded
    }

    /// Notes what the next request may do: it uses a statement with these effects.
    pub fn note_effects(&mut self, effects: &Effects) {
        self.dropping |= effects.may_drop_all;
        self.opening_block |= effects.may_open_block;
    }

    /// Whether a request of the client is under way that may drop all statements: of a simple Query
    /// only its end tells whether it did. (Not while it takes COPY data, which must go on.)
    pub fn may_drop_statements(&self) -> bool {
        let query = self.queries > 0 && !matches!(self.copy, Copy::In { .. });
        // Without a ReadyForQuery to come, its answer may stay in the server's buffer.
        query || self.dropping && self.awaits_ready()
    }

    /// Whether an earlier batch that may yet fail decides what the unnamed statement is. A Parse of it
    /// in the same batch settles that: if it is skipped, so is what comes behind it.
    pub fn awaits_unnamed(&self) -> bool {
        if self.batch_unnamed {
            return false;
        }
        let batch = self.requests.iter().rposition(|r| r.kind.ends_with_ready()).map_or(0, |last| last + 1);
        self.requests.range(..batch).any(Request::may_touch_unnamed)
    }

    /// Changes that were sent and not answered yet, the oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }

    /// Answers that the server owes.
    pub fn owed(&self) -> usize {
        self.requests.len()
    }

    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        self.status
    }
}

#[cfg(test)]
mod tests;
