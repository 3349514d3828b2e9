//! A session without a server: what it answers itself, and how it gets a server.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::{Farewell, Phase, READ_AHEAD_MAX, Scratch, Session, Wait, since};
use crate::error::{SqlError, sqlstate};
use crate::metrics::micros;
use crate::pool::{Acquired, Lease};
use crate::protocol::body::Body;
use crate::protocol::upstream;
use crate::wire::frontend::{self, Object};
use crate::wire::startup::Replication;
use crate::wire::{FrontendTag, HEADER_LENGTH, Malformed, originate};

/// A message of this size or larger gets a server before all of it is there; a smaller one only when
/// it is whole, so that a client which stalls in the middle of one holds no server.
const STREAM_FROM: usize = 32 * 1024;

const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
pub(super) const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";

/// `disable_pqexec`: the simple query protocol takes several statements at once, as an injection of SQL needs.
pub(super) fn pqexec_disallowed() -> Farewell {
    SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "PQexec disallowed")
        .detail("The simple query protocol is switched off by disable_pqexec.")
        .hint("Use the extended query protocol.")
        .into()
}

#[cold]
fn shutting_down() -> Farewell {
    SqlError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
        .detail("The pooler is shutting down.")
        .hint("Reconnect.")
        .into()
}

/// What an idle session makes of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idle {
    /// The rest is the beginning of a message.
    NeedMore,
    /// The rest begins with a message that needs a server.
    NeedServer,
}

impl Session {
    /// Reads the client, answers what needs no server, gets a server for what does.
    pub(super) fn poll_idle(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Farewell>> {
        // A client that does not take its answers is not asked for more questions.
        ready!(self.poll_flush(context))?;
        if let Some(farewell) = self.drained() {
            return Poll::Ready(Err(farewell));
        }
        self.tell_heard(context)?;
        if self.backlog.is_some() {
            return Poll::Pending;
        }
        let worth_a_look = |carry: &mut Box<Vec<u8>>| carry.len() >= self.needed;
        if let Some(carry) = self.carry.take_if(worth_a_look) {
            let progress = self.handle_idle(&carry, context, scratch, carry.len());
            if !matches!(progress, Ok(false)) {
                return Poll::Ready(progress.map(|_| ()));
            }
        }
        let carried = self.carry.as_ref().map_or(0, |carry| carry.len());
        let count = match ready!(self.socket.poll_read(context, &mut scratch.read)) {
            Ok(0) => return Poll::Ready(Err(Farewell::EndOfStream)),
            Ok(count) => count,
            Err(error) => return Poll::Ready(Err(Farewell::Gone(error))),
        };
        self.note_received(count);
        if carried > 0 {
            self.stash(&scratch.read[..count]);
            return Poll::Ready(Ok(()));
        }
        let buffer = std::mem::take(&mut scratch.read);
        let progress = self.handle_idle(&buffer[..count], context, scratch, 0);
        scratch.read = buffer;
        Poll::Ready(progress.map(|_| ()))
    }

    /// While the process drains, a client is told to go when it is between transactions and has taken its answers.
    #[inline]
    pub(super) fn drained(&self) -> Option<Farewell> {
        let draining = self.plane.shared.lifecycle.is_draining();
        (draining && self.is_between_transactions() && self.has_passed_on_all()).then(shutting_down)
    }

    /// Whether the kernel has all that its servers answered, and nothing is left to be told: why it gets no server, or its
    /// last words.
    pub fn has_passed_on_all(&self) -> bool {
        let waits = matches!(self.phase, Phase::Waiting(_) | Phase::Parting(_));
        !waits && !self.withheld && self.backlog.is_none() && !self.socket.has_unsent()
    }

    pub(super) fn note_received(&mut self, count: usize) {
        self.group.stats.borrow_mut().totals.bytes_received += count as u64;
    }

    /// Keeps bytes for later.
    pub(super) fn stash(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.carry.get_or_insert_default().extend_from_slice(bytes);
        }
    }

    /// Deals with `input` as far as it goes. Returns whether anything happened, given that the
    /// first `known` bytes have been looked at before.
    fn handle_idle(
        &mut self,
        input: &[u8],
        context: &mut Context<'_>,
        scratch: &mut Scratch,
        known: usize,
    ) -> Result<bool, Farewell> {
        let mut at = 0;
        let mut answer = BytesMut::new();
        let wanted = self.answer_locally(input, &mut at, &mut answer);
        if !answer.is_empty() {
            self.send(&answer)?;
        }
        match wanted? {
            Idle::NeedMore => {
                self.needed = upstream::whole_length(&input[at..], self.group.tracking.get());
                self.stash(&input[at..]);
                Ok(at > 0 || known == 0)
            }
            Idle::NeedServer => {
                self.want_server(&input[at..], context, scratch)?;
                Ok(true)
            }
        }
    }

    fn answer_locally(
        &mut self,
        input: &[u8],
        at: &mut usize,
        answer: &mut BytesMut,
    ) -> Result<Idle, Farewell> {
        loop {
            *at += self.body.pass(input.len() - *at);
            let Some((tag, length)) = frontend::header(&input[*at..])? else { return Ok(Idle::NeedMore) };
            let available = input.len() - *at;
            let rules = self.group.rules.get();
            rules.check(tag, length)?;
            match tag {
                FrontendTag::Terminate => return Err(Farewell::Terminate),
                FrontendTag::Password => return Err(Malformed::Tag { tag: 'p' }.into()),
                FrontendTag::Sync => {
                    self.skip_to_sync = false;
                    answer.extend_from_slice(READY_FOR_QUERY);
                }
                FrontendTag::Flush => {}
                // Left over from a COPY that failed: PostgreSQL ignores them, and so do we.
                FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => {}
                _ if self.skip_to_sync => {}
                FrontendTag::Query if !rules.simple_queries => return Err(pqexec_disallowed()),
                FrontendTag::Close if self.group.tracking.get() && available >= length => {
                    let body = &input[*at + HEADER_LENGTH..*at + length];
                    self.close_statement(body)?;
                    answer.extend_from_slice(CLOSE_COMPLETE);
                }
                FrontendTag::Query
                | FrontendTag::Parse
                | FrontendTag::Bind
                | FrontendTag::Describe
                | FrontendTag::Execute
                | FrontendTag::Close
                | FrontendTag::FunctionCall => {
                    let whole = upstream::whole_length(&input[*at..], self.group.tracking.get());
                    let enough = available >= whole.max(length.min(STREAM_FROM));
                    return Ok(if enough { Idle::NeedServer } else { Idle::NeedMore });
                }
            }
            self.body = Body::new(length, true);
        }
    }

    /// A name that only we know, or a portal, which no transaction of before left behind.
    fn close_statement(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let object = frontend::object('C', body)?;
        if let (Object::Statement(name), Some(statements)) = (object, self.statements.as_deref_mut()) {
            match name {
                b"" => statements.drop_unnamed(),
                name => drop(statements.remove(name)),
            }
        }
        Ok(())
    }

    /// Takes a server for the request at the start of `input`, or a place in the queue.
    fn want_server(
        &mut self,
        input: &[u8],
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Farewell> {
        if self.group.replication != Replication::None {
            // Its own one has ended, and no other is as good.
            return Err(Farewell::ServerGone { told: false });
        }
        let now = Instant::now();
        self.last_request = now;
        loop {
            // It had a server already, which refused to begin it.
            let had_its_turn = self.sent_again > 0;
            match self.group.pool.acquire(self.id, self.plane.worker, now, had_its_turn) {
                Acquired::Lease(lease) => {
                    if let Some(lease) = self.still_alive(lease, context, scratch) {
                        self.begin_loan(lease, Duration::ZERO, now, scratch)?;
                        return self.forward_first(input, scratch);
                    }
                }
                Acquired::Wait(place) => {
                    if let Some(error) = self.group.pool.cached_refusal(now) {
                        return Err(error.into());
                    }
                    self.stash(input);
                    self.phase = Phase::Waiting(Box::new(Wait { place, since: now, is_told: false }));
                    return Ok(());
                }
            }
        }
    }

    /// A server that died while it was idle is found before a query is spent on it.
    fn still_alive(
        &self,
        mut lease: Lease,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Option<Lease> {
        if lease.site().is_closed() {
            // It was granted before the topology moved on.
            lease.close("server connection is no longer wanted");
            return None;
        }
        if lease.unwatched && self.group.is_watching() {
            // A RELOAD has changed what becomes of what its clients have left on it.
            lease.close("nobody has seen what its clients have left on it");
            return None;
        }
        let mut is_doubtful =
            || lease.site().has_lost_since(lease.opened_at) || !lease.socket.is_silent_and_open();
        if self.sent_again > 0 && is_doubtful() {
            // The first server died under this request; one that dies with it must not be the second.
            lease.close("server conn crashed?");
            return None;
        }
        match lease.poll_idle(context, &mut scratch.aside, &self.plane.shared.server) {
            Ok(()) => Some(lease),
            Err(reason) => {
                lease.site().report(reason);
                lease.close(reason);
                None
            }
        }
    }

    /// The queue: a server, an error, a cancel, or the client's leaving.
    pub(super) fn poll_waiting(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Farewell>> {
        if std::mem::take(&mut self.canceled) {
            self.phase = Phase::Idle;
            return Poll::Ready(self.cancel_waiting());
        }
        if let Poll::Ready(Err(farewell)) = self.poll_flush(context) {
            return Poll::Ready(Err(farewell));
        }
        let Phase::Waiting(wait) = &mut self.phase else { unreachable!("the caller matched the phase") };
        let waited_since = wait.since;
        if let Poll::Ready(outcome) = wait.place.poll(context) {
            self.phase = Phase::Idle;
            let lease = match outcome {
                Ok(lease) => lease,
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            let Some(lease) = self.still_alive(lease, context, scratch) else {
                return Poll::Ready(Ok(()));
            };
            let input = self.carry.take().unwrap_or_default();
            let now = Instant::now();
            let result = self
                .begin_loan(lease, since(waited_since, now), now, scratch)
                .and_then(|()| self.forward_first(&input, scratch));
            return Poll::Ready(result);
        }
        if self.carry.as_ref().is_some_and(|carry| carry.len() >= READ_AHEAD_MAX) {
            return Poll::Pending;
        }
        match ready!(self.socket.poll_read(context, &mut scratch.read)) {
            Ok(0) => Poll::Ready(Err(Farewell::EndOfStream)),
            Err(error) => Poll::Ready(Err(Farewell::Gone(error))),
            Ok(count) => {
                self.note_received(count);
                self.stash(&scratch.read[..count]);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The client canceled what it waits for: it gets PostgreSQL's answer, and its request is dropped
    /// as PostgreSQL would have dropped it.
    fn cancel_waiting(&mut self) -> Result<(), Farewell> {
        let error = SqlError::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request");
        let mut answer = BytesMut::new();
        originate::error(&error, &mut answer);
        let carry = self.carry.take().unwrap_or_default();
        let (tag, length) = frontend::header(&carry)?.expect("a request was looked at before it waited");
        match tag {
            FrontendTag::Query | FrontendTag::FunctionCall => {
                answer.extend_from_slice(READY_FOR_QUERY);
                self.body = Body::new(length, true);
            }
            _ => self.skip_to_sync = true,
        }
        self.carry = Some(carry);
        self.send(&answer)
    }

    /// Makes a server that is [still alive](Session::still_alive) the client's own, with the client's parameters.
    fn begin_loan(
        &mut self,
        mut lease: Lease,
        waited: Duration,
        now: Instant,
        scratch: &mut Scratch,
    ) -> Result<(), Farewell> {
        let mut stats = self.group.stats.borrow_mut();
        stats.totals.server_assignment_count += 1;
        stats.totals.wait_time_us += micros(waited);
        stats.wait.record(waited);
        drop(stats);
        scratch.out.clear();
        lease.begin(now);
        lease.pipeline.message_max = self.group.rules.get().message_max;
        lease.pipeline.watching = self.group.is_watching();
        lease.pipeline.hears_elsewhere = self.hearing.is_some();
        for name in self.doubted.iter().flat_map(|calls| &**calls) {
            lease.pipeline.touched.add_call(name);
        }
        // Until they are forgotten, whoever has it meanwhile.
        lease.pipeline.others_sequences |= lease.served != 0 && lease.served != self.id;
        lease.served = self.id;
        lease.unwatched |= !lease.pipeline.watching;
        let proving = self.carry_over(&mut lease, &mut scratch.out);
        let loan = lease.parts().1;
        loan.proving = proving;
        loan.silent = true;
        self.phase = Phase::Leased(lease);
        Ok(())
    }
}
