//! The server's answers: what each message means for the queue, and whether it goes to the client.
//! Start with [`Pipeline::receive`].

use std::ops::Range;

use super::statements::Change;
use super::{Answer, Copy, Doubt, OutOfStep, Pipeline, Received, Request, RequestKind, Stop};
use crate::error::sqlstate;
use crate::wire::backend::{self, TransactionStatus};
use crate::wire::{BackendTag, HEADER_LENGTH, Header, Malformed};

/// Largest message that we hold whole in order to look into it. Larger ones pass through unread.
pub(super) const INSPECT_MAX: usize = 32 * 1024;

enum Action {
    Forward,
    Discard,
    Stop(Stop),
    /// Not forwarded, and something to tell.
    DiscardAndStop(Stop),
}

impl Pipeline {
    /// Looks at the server's bytes: how many may go to the client as they are, and why no more.
    /// Bytes that were not consumed must be brought again, with more behind them.
    pub fn receive(&mut self, input: &[u8]) -> Result<Received, OutOfStep> {
        let mut at = self.body_left.min(input.len());
        self.body_left -= at;
        if at > 0 && self.body_discarded {
            return Ok(Received { consumed: at, forward: 0..0, stop: Stop::Discarded });
        }
        loop {
            at = self.skip_rows(input, at);
            let start = at;
            if let Some(bytes) = self.take_synthesized() {
                return Ok(Received { consumed: at, forward: 0..at, stop: Stop::Synthesized(bytes) });
            }
            let need_more = Received { consumed: at, forward: 0..at, stop: Stop::NeedMore };
            let Some(header) = Header::read(&input[at..])? else {
                return Ok(need_more);
            };
            let tag = BackendTag::from_byte(header.tag)?;
            if header.length > self.message_max {
                let (tag, need, limit) = (char::from(header.tag), header.length, self.message_max);
                return Err(Malformed::TooLarge { tag, need, limit }.into());
            }
            let end = input.len().min(at + header.length);
            let whole = end - at == header.length;
            let inspected = header.length <= INSPECT_MAX;
            let looked_at = self.hears_elsewhere && tag == BackendTag::NotificationResponse;
            if !whole && inspected && (must_be_whole(tag) || looked_at) {
                return Ok(need_more);
            }
            let range = at + HEADER_LENGTH..end;
            // What may come in pieces is not looked into even if it came whole: chance decides nothing.
            let body = inspected.then(|| &input[range.clone()]);
            let action = self.handle(tag, body, range)?;
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

    /// Where the whole rows end that begin at `at` and go to the client as they are: most of what servers say, and
    /// nothing is noted of it.
    #[inline]
    fn skip_rows(&self, input: &[u8], mut at: usize) -> usize {
        use BackendTag::{CopyData, DataRow, RowDescription};
        let is_passed_on = |front: &Request| {
            front.answer == Answer::Forward && matches!(front.kind, RequestKind::Query | RequestKind::Execute)
        };
        if !self.requests.front().is_some_and(is_passed_on) {
            return at;
        }
        while let Ok(Some(header)) = Header::read(&input[at..])
            && let Ok(DataRow | RowDescription | CopyData) = BackendTag::from_byte(header.tag)
            && header.length <= self.message_max.min(input.len() - at)
        {
            at += header.length;
        }
        at
    }

    /// What one message means. `body` is whole if we look into such a message, and `None` when it is larger
    /// than we hold.
    #[inline]
    fn handle(
        &mut self,
        tag: BackendTag,
        body: Option<&[u8]>,
        range: Range<usize>,
    ) -> Result<Action, OutOfStep> {
        use BackendTag as Tag;
        let front = self.requests.front().copied();
        let discard = front.is_some_and(|request| request.answer == Answer::Discard);
        let passed_on = if discard { Action::Discard } else { Action::Forward };
        let kind = front.map(|request| request.kind);
        if !self.is_expected(tag, kind) {
            return Err(OutOfStep::Unexpected { tag, expected: kind });
        }
        match tag {
            Tag::DataRow | Tag::CopyData | Tag::CopyDone => Ok(passed_on),
            Tag::CommandComplete => Ok(self.command_complete(kind, body, discard)),
            Tag::ReadyForQuery if self.answers_doubted(kind) => {
                self.note_status(body)?;
                Ok(Action::Stop(Stop::Ready))
            }
            Tag::ReadyForQuery => self.ready_for_query(body, discard),
            Tag::ParseComplete if self.refuses_front() => Err(OutOfStep::Unexpected { tag, expected: kind }),
            Tag::CloseComplete if self.doubt == Doubt::Asked => {
                self.doubt = Doubt::None;
                self.pop();
                Ok(passed_on)
            }
            Tag::ParseComplete
            | Tag::BindComplete
            | Tag::CloseComplete
            | Tag::NoData
            | Tag::PortalSuspended => {
                self.pop();
                Ok(passed_on)
            }
            Tag::RowDescription if kind == Some(RequestKind::Describe) => {
                self.pop();
                Ok(passed_on)
            }
            Tag::EmptyQueryResponse if kind == Some(RequestKind::Execute) => {
                self.pop();
                Ok(passed_on)
            }
            Tag::RowDescription | Tag::EmptyQueryResponse | Tag::ParameterDescription => Ok(passed_on),
            Tag::CopyInResponse => {
                self.begin_copy_in();
                Ok(passed_on)
            }
            Tag::CopyOutResponse => {
                self.copy = Copy::Out;
                Ok(passed_on)
            }
            Tag::CopyBothResponse => {
                self.copy = Copy::Both;
                Ok(passed_on)
            }
            Tag::FunctionCallResponse => Ok(passed_on),
            Tag::ErrorResponse => Ok(self.error_response(front, body, range)),
            Tag::ParameterStatus if body.is_none() => Ok(passed_on),
            Tag::ParameterStatus if discard => Ok(Action::DiscardAndStop(Stop::Parameter(range))),
            Tag::ParameterStatus => Ok(Action::Stop(Stop::Parameter(range))),
            Tag::NotificationResponse if self.hears_elsewhere && body.is_some() => {
                Ok(Action::DiscardAndStop(Stop::Notification(range.start - HEADER_LENGTH..range.end)))
            }
            Tag::NoticeResponse | Tag::NotificationResponse => Ok(passed_on),
            Tag::Authentication | Tag::BackendKeyData | Tag::NegotiateProtocolVersion => {
                unreachable!("is_expected() refuses what belongs to the login")
            }
        }
    }

    /// Whether a message may come while a request of this kind is the next to be answered.
    #[inline]
    fn is_expected(&self, tag: BackendTag, next: Option<RequestKind>) -> bool {
        use BackendTag as Tag;
        use RequestKind::*;
        match tag {
            Tag::DataRow
            | Tag::CommandComplete
            | Tag::EmptyQueryResponse
            | Tag::CopyData
            | Tag::CopyDone
            | Tag::CopyInResponse
            | Tag::CopyOutResponse
            | Tag::CopyBothResponse => matches!(next, Some(Query | Execute)),
            Tag::RowDescription => matches!(next, Some(Query | Execute | Describe)),
            Tag::ParameterDescription | Tag::NoData => next == Some(Describe),
            Tag::ParseComplete => next == Some(Parse),
            Tag::BindComplete => next == Some(Bind),
            Tag::CloseComplete => next == Some(Close),
            Tag::PortalSuspended => next == Some(Execute),
            Tag::FunctionCallResponse => next == Some(FunctionCall),
            Tag::ReadyForQuery => {
                self.answers_doubted(next) || next.is_some_and(RequestKind::ends_with_ready)
            }
            Tag::ErrorResponse | Tag::NoticeResponse | Tag::NotificationResponse | Tag::ParameterStatus => {
                true
            }
            Tag::Authentication | Tag::BackendKeyData | Tag::NegotiateProtocolVersion => false,
        }
    }

    /// Whether a ReadyForQuery is for a Sync among the data of a COPY that failed.
    fn answers_doubted(&self, next: Option<RequestKind>) -> bool {
        match self.doubt {
            Doubt::None => false,
            Doubt::Open => next.is_none(),
            Doubt::Asked => next == Some(RequestKind::Close),
        }
    }

    /// Whether the request at the front is a Parse that must fail.
    fn refuses_front(&self) -> bool {
        self.requests.front().is_some_and(|front| front.changes)
            && matches!(self.changes.front(), Some(Change::Duplicate { .. }))
    }

    fn command_complete(&mut self, kind: Option<RequestKind>, body: Option<&[u8]>, discard: bool) -> Action {
        if matches!(self.copy, Copy::In { .. } | Copy::Both)
            && let Some(end) = self.requests.iter().position(|r| r.kind == RequestKind::CopyEnd)
        {
            self.requests.remove(end);
        }
        self.copy = Copy::None;
        if kind == Some(RequestKind::Execute) {
            self.pop();
        }
        if self.watching && !discard {
            self.touched.add_tag(body.unwrap_or_default());
            self.unlistened.note_tag(body.unwrap_or_default());
        }
        self.redefines |= body.is_some_and(redefines);
        self.committed |= body == Some(b"COMMIT\0") && !discard;
        let drops_statements = matches!(body, Some(b"DISCARD ALL\0" | b"DEALLOCATE ALL\0"));
        match (discard, drops_statements) {
            (false, false) => Action::Forward,
            (true, false) => Action::Discard,
            (false, true) => Action::Stop(Stop::StatementsDropped),
            (true, true) => Action::DiscardAndStop(Stop::StatementsDropped),
        }
    }

    fn note_status(&mut self, body: Option<&[u8]>) -> Result<(), OutOfStep> {
        let body = body.unwrap_or_default();
        let malformed = Malformed::Field { tag: 'Z', field: "the transaction status", have: body.len() };
        let [status] = body else {
            return Err(malformed.into());
        };
        self.status = TransactionStatus::from_byte(*status).ok_or(malformed)?;
        Ok(())
    }

    fn ready_for_query(&mut self, body: Option<&[u8]>, discard: bool) -> Result<Action, OutOfStep> {
        self.note_status(body)?;
        self.copy = Copy::None;
        self.pop();
        self.dropping &= !self.requests.is_empty();
        self.opening_block &= !self.requests.is_empty();
        if !discard {
            self.unlistened.note_ready(self.status);
        }
        Ok(match discard {
            false => Action::Stop(Stop::Ready),
            true => {
                let failed = std::mem::take(&mut self.own_query_failed);
                Action::DiscardAndStop(Stop::OwnQueryDone { failed })
            }
        })
    }

    fn error_response(&mut self, front: Option<Request>, body: Option<&[u8]>, range: Range<usize>) -> Action {
        if self.copy == (Copy::In { syncs: true }) {
            self.doubt = Doubt::Open;
        }
        self.copy = Copy::None;
        self.unlistened.note_error();
        let Some(front) = front else {
            return Action::Stop(Stop::Error(range));
        };
        if front.kind.is_extended() {
            let duplicate = self.take_duplicate(front, body.unwrap_or_default());
            self.skip_to_sync();
            return match duplicate {
                Some(name) => Action::DiscardAndStop(Stop::Duplicate(name)),
                None => Action::Stop(Stop::Error(range)),
            };
        }
        if front.answer == Answer::Discard {
            self.own_query_failed = true;
            return Action::DiscardAndStop(Stop::Error(range));
        }
        Action::Stop(Stop::Error(range))
    }

    /// The client's name for the statement, when the server refuses it for being in use already.
    fn take_duplicate(&mut self, front: Request, body: &[u8]) -> Option<Box<[u8]>> {
        match self.changes.front_mut() {
            Some(Change::Duplicate { name })
                if front.changes
                    && backend::error_fields(body).code
                        == sqlstate::DUPLICATE_PREPARED_STATEMENT.as_bytes() =>
            {
                Some(std::mem::take(name))
            }
            _ => None,
        }
    }

    /// After an error in the extended protocol the server skips to Sync: answers owed for what was
    /// sent before that Sync will never come, a simple Query's among them.
    fn skip_to_sync(&mut self) {
        let mut unnamed_failed = false;
        let mut query_skipped = false;
        while let Some(front) = self.requests.front()
            && front.kind != RequestKind::Sync
        {
            unnamed_failed |= front.is_unnamed_parse();
            query_skipped |= front.is_client_query();
            self.unnamed_in_doubt |= front.may_touch_unnamed();
            let change = self.take_front().and_then(|(_, change)| change);
            self.undone.extend(change);
        }
        // A Parse in a later batch has put another in its place already.
        if unnamed_failed && !self.requests.iter().any(Request::is_unnamed_parse) {
            self.undone.push(Change::UnnamedParse);
        }
        if self.requests.is_empty() {
            self.skipping = true;
            self.batch_open = false;
        }
        // A Sync of ours behind a Query of the client's: its answer ends the Query's that never came.
        if query_skipped
            && let Some(sync) = self.requests.front_mut()
            && sync.answer == Answer::Discard
        {
            sync.answer = Answer::Forward;
        }
    }

    /// CopyInResponse: Syncs that the client sent before its data are swallowed by the COPY. In the
    /// extended protocol its batch then goes on until a Sync behind the data.
    fn begin_copy_in(&mut self) {
        let syncs = self.requests.iter().skip(1).take_while(|r| r.kind == RequestKind::Sync).count();
        self.requests.drain(1..=syncs);
        self.copy = Copy::In { syncs: syncs > 0 };
        if syncs > 0 && !self.awaits_ready() {
            self.batch_open = true;
        }
    }

    #[inline]
    fn pop(&mut self) {
        if let Some((_, Some(change))) = self.take_front() {
            self.untold.push(change);
        }
        // PostgreSQL ignores CopyDone and CopyFail outside of a COPY: nothing is owed for them.
        while self.requests.front().is_some_and(|r| r.kind == RequestKind::CopyEnd) {
            self.take_front();
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
}

/// Whether a statement with this tag may change what another one returns, be it by taking away what that is of.
#[inline]
fn redefines(tag: &[u8]) -> bool {
    matches!(tag, [b'A', b'L', ..] | [b'D', b'R', b'O', ..] | b"CREATE VIEW\0")
}

/// Messages that we look into; all others are passed on while they arrive.
#[inline]
fn must_be_whole(tag: BackendTag) -> bool {
    use BackendTag::*;
    matches!(tag, ReadyForQuery | CommandComplete | ErrorResponse | ParameterStatus)
}
