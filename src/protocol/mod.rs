//! RULES. What the conversation with one server means: which requests were sent, which answers are
//! owed and to whom, and when the server is free for another client. No sockets, no clock.
//!
//! Start with [`Pipeline`]: requests go in by [`Pipeline::push`] in the order in which they are
//! written to the server, the server's bytes go through [`Pipeline::receive`].

pub mod parameters;
pub mod statements;
pub mod upstream;

use std::collections::VecDeque;
use std::ops::Range;

use thiserror::Error;

use crate::wire::backend::TransactionStatus;
use crate::wire::{BackendTag, HEADER_LENGTH, Header, Malformed};
use statements::Change;

/// Most requests that may wait for an answer. Beyond it the client is not read.
///
/// It cannot dead-lock: a server keeps at most its output buffer (8 kB) to itself before a Sync, and
/// each owed answer has at least 5 bytes, so with this many owed most have been sent already.
pub const REQUESTS_MAX: usize = 16_384;

/// Largest message that we hold whole in order to look into it. Larger ones pass through unread.
const INSPECT_MAX: usize = 32 * 1024;

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
    /// The body of an ErrorResponse, which ends at `consumed`.
    Error(Range<usize>),
    /// The error of a Parse whose name the client has in use already: not forwarded, the client gets
    /// PostgreSQL's own words about its own name.
    Duplicate(Box<[u8]>),
    /// The server dropped all its prepared statements (DISCARD ALL, DEALLOCATE ALL).
    StatementsDropped,
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
    In,
    Out,
}

/// The queue of requests sent on one server connection, and what it takes to match the answers.
#[derive(Debug)]
pub struct Pipeline {
    requests: VecDeque<Request>,
    changes: VecDeque<Change>,
    /// Changes that the server did not make after all, oldest first; the caller undoes them.
    undone: Vec<Change>,
    status: TransactionStatus,
    /// Extended-protocol messages were sent after the last Sync.
    batch_open: bool,
    /// The server skips everything up to a Sync that was not sent yet.
    skipping: bool,
    copy: Copy,
    own_query_failed: bool,
    /// Bytes of the current server message that are still to come.
    body_left: usize,
    body_discarded: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline {
            requests: VecDeque::new(),
            changes: VecDeque::new(),
            undone: Vec::new(),
            status: TransactionStatus::Idle,
            batch_open: false,
            skipping: false,
            copy: Copy::None,
            own_query_failed: false,
            body_left: 0,
            body_discarded: false,
        }
    }
}

enum Action {
    Forward,
    Discard,
    Stop(Stop),
    /// Not forwarded, and something to tell.
    DiscardAndStop(Stop),
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
            RequestKind::Sync if self.in_copy_data() => return false,
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
        self.requests.push_back(request);
        true
    }

    /// PostgreSQL's `CopyGetData` ignores Flush and Sync until CopyDone or CopyFail, "for the
    /// convenience of client libraries".
    fn in_copy_data(&self) -> bool {
        self.copy == Copy::In && !self.requests.iter().any(|r| r.kind == RequestKind::CopyEnd)
    }

    /// Looks at the server's bytes: how many may go to the client as they are, and why no more.
    /// Bytes that were not consumed must be brought again, with more behind them.
    pub fn receive(&mut self, input: &[u8]) -> Result<Received, OutOfStep> {
        let mut at = self.body_left.min(input.len());
        self.body_left -= at;
        if at > 0 && self.body_discarded {
            return Ok(Received { consumed: at, forward: 0..0, stop: Stop::Discarded });
        }
        loop {
            let start = at;
            if let Some(bytes) = self.take_synthesized() {
                return Ok(Received { consumed: at, forward: 0..at, stop: Stop::Synthesized(bytes) });
            }
            let need_more = Received { consumed: at, forward: 0..at, stop: Stop::NeedMore };
            let Some(header) = Header::read(&input[at..])? else {
                return Ok(need_more);
            };
            let tag = BackendTag::from_byte(header.tag)?;
            let end = input.len().min(at + header.length);
            let whole = end - at == header.length;
            if !whole && header.length <= INSPECT_MAX && must_be_whole(tag) {
                return Ok(need_more);
            }
            let body = at + HEADER_LENGTH..end;
            let action = self.handle(tag, &input[body.clone()], whole, body)?;
            self.body_left = header.length - (end - at);
            self.body_discarded = matches!(action, Action::Discard | Action::DiscardAndStop(_));
            at = end;
            match action {
                Action::Forward => {}
                Action::Stop(stop) => {
                    return Ok(Received { consumed: at, forward: 0..at, stop });
                }
                Action::Discard => {
                    return Ok(Received { consumed: at, forward: 0..start, stop: Stop::Discarded });
                }
                Action::DiscardAndStop(stop) => {
                    return Ok(Received { consumed: at, forward: 0..start, stop });
                }
            }
        }
    }

    /// What one message means. `body` may be cut short for messages that are not `whole`.
    #[inline]
    fn handle(
        &mut self,
        tag: BackendTag,
        body: &[u8],
        whole: bool,
        range: Range<usize>,
    ) -> Result<Action, OutOfStep> {
        use BackendTag as Tag;
        let front = self.requests.front().copied();
        let discard = front.is_some_and(|request| request.answer == Answer::Discard);
        let passed_on = if discard { Action::Discard } else { Action::Forward };
        let kind = front.map(|request| request.kind);
        match tag {
            Tag::DataRow | Tag::CopyData | Tag::ParameterDescription => Ok(passed_on),
            Tag::RowDescription => {
                if kind == Some(RequestKind::Describe) {
                    self.pop();
                }
                Ok(passed_on)
            }
            Tag::CommandComplete => self.command_complete(kind, body, whole, discard),
            Tag::ReadyForQuery => self.ready_for_query(body, discard),
            Tag::ParseComplete => self.answer(tag, RequestKind::Parse, passed_on),
            Tag::BindComplete => self.answer(tag, RequestKind::Bind, passed_on),
            Tag::CloseComplete => self.answer(tag, RequestKind::Close, passed_on),
            Tag::NoData => self.answer(tag, RequestKind::Describe, passed_on),
            Tag::PortalSuspended => self.answer(tag, RequestKind::Execute, passed_on),
            Tag::EmptyQueryResponse => {
                if kind == Some(RequestKind::Execute) {
                    self.pop();
                }
                Ok(passed_on)
            }
            Tag::CopyInResponse => {
                self.begin_copy_in();
                Ok(passed_on)
            }
            Tag::CopyOutResponse | Tag::CopyBothResponse => {
                self.copy = Copy::Out;
                Ok(passed_on)
            }
            Tag::CopyDone | Tag::FunctionCallResponse => Ok(passed_on),
            Tag::ErrorResponse => Ok(self.error_response(front, whole, range)),
            Tag::ParameterStatus if !whole => Ok(passed_on),
            Tag::ParameterStatus if discard => Ok(Action::DiscardAndStop(Stop::Parameter(range))),
            Tag::ParameterStatus => Ok(Action::Stop(Stop::Parameter(range))),
            Tag::NoticeResponse | Tag::NotificationResponse => Ok(passed_on),
            Tag::Authentication | Tag::BackendKeyData | Tag::NegotiateProtocolVersion => {
                Err(OutOfStep::Unexpected { tag, expected: kind })
            }
        }
    }

    fn answer(&mut self, tag: BackendTag, kind: RequestKind, passed_on: Action) -> Result<Action, OutOfStep> {
        match self.requests.front() {
            Some(front) if front.kind == kind => {
                self.pop();
                Ok(passed_on)
            }
            front => Err(OutOfStep::Unexpected { tag, expected: front.map(|request| request.kind) }),
        }
    }

    fn command_complete(
        &mut self,
        kind: Option<RequestKind>,
        body: &[u8],
        whole: bool,
        discard: bool,
    ) -> Result<Action, OutOfStep> {
        if self.copy == Copy::In
            && let Some(end) = self.requests.iter().position(|r| r.kind == RequestKind::CopyEnd)
        {
            self.requests.remove(end);
        }
        self.copy = Copy::None;
        if kind == Some(RequestKind::Execute) {
            self.pop();
        }
        let drops_statements = whole && matches!(body, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0");
        Ok(match (discard, drops_statements) {
            (false, false) => Action::Forward,
            (true, false) => Action::Discard,
            (false, true) => Action::Stop(Stop::StatementsDropped),
            (true, true) => Action::DiscardAndStop(Stop::StatementsDropped),
        })
    }

    fn ready_for_query(&mut self, body: &[u8], discard: bool) -> Result<Action, OutOfStep> {
        let malformed = Malformed::Field { tag: 'Z', field: "the transaction status", have: body.len() };
        let [status] = body else {
            return Err(malformed.into());
        };
        self.status = TransactionStatus::from_byte(*status).ok_or(malformed)?;
        self.copy = Copy::None;
        if let Some(front) = self.requests.front() {
            if !front.kind.ends_with_ready() {
                return Err(OutOfStep::Unexpected {
                    tag: BackendTag::ReadyForQuery,
                    expected: Some(front.kind),
                });
            }
            self.pop();
        }
        Ok(match discard {
            false => Action::Stop(Stop::Ready),
            true => {
                let failed = std::mem::take(&mut self.own_query_failed);
                Action::DiscardAndStop(Stop::OwnQueryDone { failed })
            }
        })
    }

    fn error_response(&mut self, front: Option<Request>, whole: bool, range: Range<usize>) -> Action {
        self.copy = Copy::None;
        let Some(front) = front else {
            return self.report(whole, range);
        };
        if front.kind.is_extended() {
            if front.changes
                && let Some(Change::Duplicate { name }) = self.changes.front()
            {
                let name = name.clone();
                self.skip_to_sync();
                return Action::DiscardAndStop(Stop::Duplicate(name));
            }
            self.skip_to_sync();
            return self.report(whole, range);
        }
        if front.answer == Answer::Discard {
            self.own_query_failed = true;
            return match whole {
                true => Action::DiscardAndStop(Stop::Error(range)),
                false => Action::Discard,
            };
        }
        self.report(whole, range)
    }

    fn report(&self, whole: bool, range: Range<usize>) -> Action {
        match whole {
            true => Action::Stop(Stop::Error(range)),
            false => Action::Forward,
        }
    }

    /// After an error in the extended protocol the server skips to Sync: answers owed for what was
    /// sent before that Sync will never come, a simple Query's among them.
    fn skip_to_sync(&mut self) {
        while let Some(front) = self.requests.front() {
            if front.kind == RequestKind::Sync {
                return;
            }
            if front.changes {
                self.undone.extend(self.changes.pop_front());
            } else if front.kind == RequestKind::Parse {
                self.undone.push(Change::UnnamedParse);
            }
            self.requests.pop_front();
        }
        self.skipping = true;
        self.batch_open = false;
    }

    /// CopyInResponse: Syncs that the client sent before its data are swallowed by the COPY.
    fn begin_copy_in(&mut self) {
        self.copy = Copy::In;
        let data_end = self.requests.iter().position(|r| r.kind == RequestKind::CopyEnd);
        let mut index = 0;
        let limit = data_end.unwrap_or(self.requests.len());
        self.requests.retain(|request| {
            let swallowed = index > 0 && index < limit && request.kind == RequestKind::Sync;
            index += 1;
            !swallowed
        });
    }

    #[inline]
    fn pop(&mut self) {
        if let Some(front) = self.requests.pop_front()
            && front.changes
        {
            self.changes.pop_front();
        }
        // PostgreSQL ignores CopyDone and CopyFail outside of a COPY: nothing is owed for them.
        while self.requests.front().is_some_and(|r| r.kind == RequestKind::CopyEnd) {
            self.requests.pop_front();
        }
    }

    #[inline]
    fn take_synthesized(&mut self) -> Option<&'static [u8]> {
        if !self.has_synthesized() {
            return None;
        }
        let front = self.requests.front()?;
        let bytes: &'static [u8] = match front.kind {
            RequestKind::Parse => b"1\0\0\0\x04",
            RequestKind::Close => b"3\0\0\0\x04",
            other => unreachable!("only Parse and Close are answered here, not {other:?}"),
        };
        self.pop();
        Some(bytes)
    }

    /// Changes to the prepared statements that did not happen after all, oldest first.
    pub fn take_undone(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.undone)
    }

    /// Whether the server may serve another client: nothing is owed, no transaction is open, and no
    /// message is half read.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.status == TransactionStatus::Idle
            && !self.batch_open
            && !self.skipping
            && self.body_left == 0
    }

    /// Whether the client owes the server nothing and the server owes the client nothing, be it
    /// inside a transaction.
    pub fn is_quiet(&self) -> bool {
        self.requests.is_empty() && !self.batch_open && !self.skipping && self.body_left == 0
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

    /// Whether no more requests should be sent until answers have come.
    pub fn is_full(&self) -> bool {
        self.requests.len() >= REQUESTS_MAX
    }

    /// Whether the server ignores everything until the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether a Parse of this statement is on its way in an earlier batch, so that it may yet fail
    /// without the current one's being skipped.
    pub fn awaits_parse(&self, statement: u64) -> bool {
        let on_its_way = |change: &Change| match change {
            Change::ClientParse { id, sent: true, .. } | Change::ServerParse(id) => *id == statement,
            _ => false,
        };
        self.changes.iter().any(on_its_way) && self.requests.iter().any(|r| r.kind.ends_with_ready())
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

    /// Whether a message for the client was passed on in part.
    pub fn is_mid_message(&self) -> bool {
        self.body_left > 0 && !self.body_discarded
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

/// Messages that we look into; all others are passed on while they arrive.
#[inline]
fn must_be_whole(tag: BackendTag) -> bool {
    use BackendTag::*;
    matches!(tag, ReadyForQuery | CommandComplete | ErrorResponse | ParameterStatus)
}

#[cfg(test)]
mod tests;
