//! Bytes both ways, while one server is one client's own.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use super::answers::Answered;
use super::keeping::Between;
use super::{Farewell, Phase, Scratch, Session};
use crate::config::PoolMode;
use crate::error::{SqlError, sqlstate};
use crate::pool::Lease;
use crate::protocol::Stop;
use crate::protocol::upstream::{self, Upstream};
use crate::wire::backend::TransactionStatus;
use crate::wire::frontend::NAMES_MAX;

/// Bytes of a client that are read while its request waits for answers: more than any that must be [there to its
/// end](upstream::whole_length) without our knowing where that is, the names of a Bind.
const CARRY_MAX: usize = 2 * NAMES_MAX;

/// What a look at one side brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Something; there may be more.
    Some,
    /// Nothing now; the task is woken when there is.
    Nothing,
    /// The lease has ended: the server is free, or gone before it did anything.
    Released,
}

impl Session {
    pub(super) fn lease(&mut self) -> &mut Lease {
        match &mut self.phase {
            Phase::Leased(lease) => lease,
            Phase::Idle | Phase::Waiting(_) | Phase::Asking(_) | Phase::Parting(_) => {
                unreachable!("the relay runs only with a lease")
            }
        }
    }

    /// The first bytes of a lease: `scratch.out` may hold what goes in front of them.
    pub(super) fn forward_first(&mut self, input: &[u8], scratch: &mut Scratch) -> Result<(), Farewell> {
        if self.lease().loan().proving {
            self.stash(input);
            let front = std::mem::take(&mut scratch.out);
            let sent = self.write_server(&front);
            scratch.out = front;
            return sent;
        }
        let consumed = self.forward_client(input, scratch)?;
        self.stash(&input[consumed..]);
        Ok(())
    }

    pub(super) fn poll_leased(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Farewell>> {
        let from_server = self.pump_server(context, scratch)?;
        if from_server == Pumped::Released {
            return Poll::Ready(Ok(()));
        }
        let from_client = self.pump_client(context, scratch)?;
        if from_server != Pumped::Nothing || from_client != Pumped::Nothing {
            return Poll::Ready(Ok(()));
        }
        if self.is_between_transactions() {
            self.tell_heard(context)?;
        }
        Poll::Pending
    }

    // ---- client to server ----

    fn pump_client(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<Pumped, Farewell> {
        // A client that does not take its answers is not asked for more questions.
        if self.backlog.is_some() || !self.flush_server(context)? {
            return Ok(Pumped::Nothing);
        }
        let lease = self.lease();
        let loan = lease.loan();
        if loan.closing || loan.proving || lease.pipeline.is_full() {
            return Ok(Pumped::Nothing);
        }
        if self.withheld {
            return self.finish_if_idle(Pumped::Nothing);
        }
        if let Some(farewell) = self.drained() {
            return Err(farewell);
        }
        if let Some(mut carry) = self.carry.take() {
            scratch.out.clear();
            let consumed = if self.needed <= carry.len() { self.forward_client(&carry, scratch)? } else { 0 };
            carry.drain(..consumed);
            if !carry.is_empty() {
                self.carry = Some(carry);
            }
            if consumed > 0 {
                return Ok(Pumped::Some);
            }
        }
        if self.carry.as_ref().is_some_and(|carry| carry.len() >= CARRY_MAX.max(self.needed)) {
            // What must come to its end first is no longer than that: it waits for answers.
            return self.finish_if_idle(Pumped::Nothing);
        }
        let count = match self.socket.poll_read(context, &mut scratch.read) {
            // What was sent just now may have been all that the lease waited for.
            Poll::Pending => return self.finish_if_idle(Pumped::Nothing),
            Poll::Ready(Ok(0)) => return Err(Farewell::EndOfStream),
            Poll::Ready(Err(error)) => return Err(Farewell::Gone(error)),
            Poll::Ready(Ok(count)) => count,
        };
        self.note_received(count);
        self.note_request();
        if self.carry.is_some() {
            self.stash(&scratch.read[..count]);
            return Ok(Pumped::Some);
        }
        let buffer = std::mem::take(&mut scratch.read);
        scratch.out.clear();
        let consumed = self.forward_client(&buffer[..count], scratch);
        if let Ok(consumed) = consumed {
            self.stash(&buffer[consumed..count]);
        }
        scratch.read = buffer;
        consumed.map(|_| Pumped::Some)
    }

    /// Notes when a query begins, and with the first after a silence its transaction.
    fn note_request(&mut self) {
        let (server, loan) = self.lease().parts();
        if loan.query_began.is_some() {
            return;
        }
        let now = Instant::now();
        loan.query_began = Some(now);
        if server.pipeline.is_idle() {
            loan.began = now;
        }
        self.last_request = now;
    }

    /// Sends what `scratch.out` holds, then what the rules make of `input`; keeps what is left over.
    /// Returns how many bytes of it were dealt with.
    fn forward_client(&mut self, input: &[u8], scratch: &mut Scratch) -> Result<usize, Farewell> {
        let group = Rc::clone(&self.group);
        let mut stats = group.stats.borrow_mut();
        let Phase::Leased(lease) = &mut self.phase else {
            unreachable!("the relay runs only with a lease");
        };
        let server = &mut **lease;
        let inside = !self.body.is_over();
        let taken = Upstream {
            pipeline: &mut server.pipeline,
            server: &mut server.statements,
            client: &mut self.statements,
            unnamed_present: &mut server.unnamed_present,
            interner: &self.plane.shared.statements,
            tracking: group.tracking.get(),
            counts: &mut stats.statements,
            rules: group.rules.get(),
            state: &self.state,
            parameters: &self.parameters,
            listens: self.hearing.as_ref().map(|hearing| &hearing.channels),
            functions: &group.pool.functions,
            definitions: group.pool.definitions.load(Ordering::Relaxed),
        }
        .take(input, &mut self.body, &mut scratch.out)?;
        drop(stats);
        if self.follows {
            let outside = server.pipeline.status() == TransactionStatus::Idle;
            server.flight.sent(&input[..taken.consumed], outside, inside);
        }
        if taken.stop == upstream::Stop::Terminate {
            self.lease().parts().1.closing = true;
        }
        if scratch.out.is_empty() {
            self.write_server(&input[taken.forward])?;
        } else {
            scratch.out.extend_from_slice(&input[taken.forward]);
            let out = std::mem::take(&mut scratch.out);
            let sent = self.write_server(&out);
            scratch.out = out;
            sent?;
        }
        self.answer_synthesized(scratch)?;
        self.end_if_closing()?;
        self.needed = match taken.stop {
            // A statement is prepared only when it is there to its end.
            upstream::Stop::NeedMore => {
                upstream::whole_length(&input[taken.consumed..], group.tracking.get())
            }
            upstream::Stop::Disallowed => return Err(super::idle::pqexec_disallowed()),
            upstream::Stop::OthersSequences => return Err(others_sequences()),
            upstream::Stop::Full | upstream::Stop::Terminate => 0,
        };
        match taken.stop {
            upstream::Stop::Terminate => Ok(input.len()),
            upstream::Stop::NeedMore
            | upstream::Stop::Full
            | upstream::Stop::Disallowed
            | upstream::Stop::OthersSequences => Ok(taken.consumed),
        }
    }

    fn answer_synthesized(&mut self, scratch: &mut Scratch) -> Result<(), Farewell> {
        if !self.lease().pipeline.has_synthesized() {
            return Ok(());
        }
        scratch.out.clear();
        while let Stop::Synthesized(bytes) = self.lease().pipeline.receive(&[])?.stop {
            scratch.out.extend_from_slice(bytes);
            self.lease().flight.drop_answered();
        }
        self.lease().pipeline.note_told();
        let out = std::mem::take(&mut scratch.out);
        let sent = self.send(&out);
        scratch.out = out;
        sent
    }

    fn write_server(&mut self, bytes: &[u8]) -> Result<(), Farewell> {
        if bytes.is_empty() {
            return Ok(());
        }
        let lease = self.lease();
        if !lease.backlog.is_empty() {
            lease.backlog.extend_from_slice(bytes);
            return Ok(());
        }
        match lease.socket.write_now(bytes) {
            Ok(written) => {
                lease.flight.note_written();
                lease.backlog.extend_from_slice(&bytes[written..]);
                Ok(())
            }
            // What the server said before it went may still be read: that is told to the client.
            Err(_) => Ok(()),
        }
    }

    /// Returns whether everything for the server is with the kernel.
    fn flush_server(&mut self, context: &mut Context<'_>) -> Result<bool, Farewell> {
        let server = &mut **self.lease();
        while !server.backlog.is_empty() {
            match server.socket.poll_write(context, &server.backlog) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(written)) => drop(server.backlog.drain(..written)),
                Poll::Ready(Err(_)) => server.backlog.clear(),
            }
        }
        if server.socket.poll_flush(context).is_pending() {
            return Ok(false);
        }
        if server.backlog.capacity() > 256 * 1024 {
            server.backlog = Vec::new();
        }
        Ok(true)
    }

    // ---- server to client ----

    fn pump_server(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<Pumped, Farewell> {
        if std::mem::take(&mut self.lease().parts().1.silent) {
            // It would say the same again.
            return Ok(Pumped::Nothing);
        }
        // Back pressure: a client that does not read stops the reading of its server.
        if self.poll_flush(context)?.is_pending() {
            return Ok(Pumped::Nothing);
        }
        let Phase::Leased(lease) = &mut self.phase else {
            unreachable!("the relay runs only with a lease");
        };
        let (server, loan) = lease.parts();
        let carried = server.carry.len();
        scratch.read[..carried].copy_from_slice(&server.carry);
        let count = match server.socket.poll_read(context, &mut scratch.read[carried..]) {
            Poll::Pending => return Ok(Pumped::Nothing),
            Poll::Ready(Ok(0) | Err(_)) => {
                let told = loan.fatal_seen;
                return self.note_server_gone(told);
            }
            Poll::Ready(Ok(count)) => count,
        };
        server.carry.clear();
        let (buffer, mut out) = (std::mem::take(&mut scratch.read), std::mem::take(&mut scratch.out));
        let pumped = match self.forward_server(&buffer[..carried + count], &mut out) {
            Ok(Answered::PassOn(run)) => self.answer(run.map_or(&out, |run| &buffer[run])),
            Ok(Answered::SendAgain) => Ok(self.send_again("server is going away")),
            Ok(Answered::SentAgain) => Ok(Pumped::Released),
            Err(farewell) => Err(farewell),
        };
        (scratch.read, scratch.out) = (buffer, out);
        pumped
    }

    /// Ends the lease if nothing is owed any more, and passes the server's answer on: in this order, so that who has the
    /// answer finds the server free.
    fn answer(&mut self, bytes: &[u8]) -> Result<Pumped, Farewell> {
        let follows = self.follows;
        let (server, loan) = self.lease().parts();
        if !bytes.is_empty() {
            server.pipeline.note_told();
            if follows {
                server.flight.note_answer();
            }
        }
        if server.pipeline.owed() == 0 && !server.pipeline.is_quiet() {
            // All of an open batch is answered; its Sync is the client's to send.
            loan.quiet_since = Instant::now();
        }
        let finished = self.finish_if_idle(Pumped::Some);
        if !bytes.is_empty() {
            self.send(bytes)?;
        }
        finished
    }

    // ---- the end of a lease ----

    /// After Terminate only what PostgreSQL would have answered before it is waited for.
    fn end_if_closing(&mut self) -> Result<(), Farewell> {
        let lease = self.lease();
        // A COPY that only the client could end has no answer.
        let awaits = || lease.pipeline.awaits_ready() && !lease.pipeline.awaits_client();
        match lease.loan().closing && !awaits() {
            true => Err(Farewell::Terminate),
            false => Ok(()),
        }
    }

    /// Ends the lease if nothing is owed on either side; else says `otherwise`.
    fn finish_if_idle(&mut self, otherwise: Pumped) -> Result<Pumped, Farewell> {
        self.end_if_closing()?;
        let sends_a_body = self.body.is_half_sent();
        if !sends_a_body && let Some(name) = self.lease().pipeline.ask_in_doubt() {
            let mut question = Vec::new();
            upstream::close_and_sync(&name, &mut question);
            self.write_server(&question)?;
            return Ok(otherwise);
        }
        let mode = self.group.mode.get();
        let lease = self.lease();
        // What was not sent to it goes to another one.
        let server_goes = lease.loan().fatal_seen;
        let server = &**lease;
        if lease.loan().proving
            || !server.pipeline.is_idle()
            || !server.carry.is_empty()
            || !server.backlog.is_empty()
            || sends_a_body
            || mode == PoolMode::Session
        {
            return Ok(otherwise);
        }
        if self.carry.is_some() && !self.withheld && !server_goes {
            // More was asked already; it was waiting for the SETs, or for answers.
            let carry = self.carry.as_ref().map_or(&[][..], |carry| &carry[..]);
            if crate::wire::Header::read(carry)?.is_some_and(|header| carry.len() >= header.length) {
                return Ok(otherwise);
            }
        }
        match self.between()? {
            Between::GiveBack => {}
            Between::Keep => return Ok(otherwise),
            Between::Ask => return Ok(Pumped::Released),
        }
        let Phase::Leased(lease) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("the relay runs only with a lease");
        };
        let now = lease.loan().quiet_since;
        self.last_request = now;
        match lease.loan().fatal_seen {
            true => lease.close("server is going away"),
            false => self.give_back(lease, now),
        }
        Ok(Pumped::Released)
    }
}

fn others_sequences() -> Farewell {
    SqlError::fatal(sqlstate::NOT_IN_PREREQUISITE_STATE, "currval and lastval are not yet defined in this session")
        .detail("They were first used inside a transaction, on a server connection where another client may have used sequences.")
        .hint("Reconnect and begin the transaction again: from now on the pool keeps the sequences of its clients apart.")
        .into()
}
