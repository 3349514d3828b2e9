//! The end of a session whose client has not taken everything yet.
//!
//! What a client was answered and told must arrive. A part of it may still be here, as the client reads slowly; and if
//! something is unread when a TCP connection is closed, or comes later, the connection is reset, upon which the kernel
//! drops what it has not delivered yet.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::{Farewell, Phase, READS_MAX, Scratch, Session, since};

/// How long a client may take nothing of what it is to have. One that does not read holds its connection no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client that was told to go, and is not gone.
#[derive(Debug)]
pub(super) struct Parting {
    /// When it last took something.
    moved: Instant,
    /// Bytes that it had not taken then.
    left: usize,
    /// Whether it expects an answer to what it asks.
    listens: bool,
    /// Whether the kernel has all that there is for it.
    is_told: bool,
    /// Whether it has asked more. That is read and dropped, until it has heard that nobody answers.
    asks: bool,
    /// Nobody waits longer.
    is_over: bool,
}

impl Session {
    /// The session is over for all others; its connection stays if the client has not taken everything.
    pub(super) fn begin_parting(&mut self, farewell: &Farewell) {
        self.carry = None;
        self.statements = None;
        self.pinned = None;
        self.hearing = None;
        let listens = match farewell {
            Farewell::Gone(_) => return,
            Farewell::Terminate | Farewell::EndOfStream => false,
            Farewell::Error(_) | Farewell::ServerBroken | Farewell::Severed | Farewell::ServerGone { .. } => {
                true
            }
        };
        self.phase = Phase::Parting(Box::new(Parting {
            moved: Instant::now(),
            left: usize::MAX,
            listens,
            is_told: false,
            asks: false,
            is_over: false,
        }));
    }

    /// Whether it is over for all others: it is shown no more, and cannot be ended again.
    pub(super) fn is_parting(&self) -> bool {
        matches!(self.phase, Phase::Parting(_))
    }

    /// Ready when the connection can be closed.
    pub(super) fn poll_part(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        let Phase::Parting(parting) = &self.phase else { return Poll::Ready(()) };
        if parting.is_over {
            return Poll::Ready(());
        }
        if !parting.is_told {
            if ready!(self.poll_flush(context)).is_err() {
                return Poll::Ready(());
            }
            self.socket.say_goodbye();
            if ready!(self.poll_flush(context)).is_err() {
                return Poll::Ready(());
            }
            let Phase::Parting(parting) = &mut self.phase else { unreachable!("it was looked at") };
            parting.asks = parting.listens && !self.socket.is_silent_and_open();
            if !parting.asks && self.socket.undelivered() == 0 {
                return Poll::Ready(());
            }
            parting.is_told = true;
            if self.socket.end_writing().is_err() {
                return Poll::Ready(());
            }
        }
        for _ in 0..READS_MAX {
            if let Ok(0) | Err(_) = ready!(self.socket.poll_read(context, &mut scratch.read)) {
                return Poll::Ready(());
            }
            let Phase::Parting(parting) = &mut self.phase else { unreachable!("it was looked at") };
            parting.asks = true;
        }
        // Others on this thread want their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends the parting when the client has everything, or takes nothing for [`PATIENCE`].
    pub(super) fn check_parting(&mut self, now: Instant) {
        let left = self.backlog.as_ref().map_or(0, |backlog| backlog.len()) + self.socket.undelivered();
        let Phase::Parting(parting) = &mut self.phase else { return };
        if left < parting.left {
            parting.moved = now;
        }
        parting.left = left;
        let is_done = parting.is_told && left == 0 && !parting.asks;
        parting.is_over = is_done || since(parting.moved, now) > PATIENCE;
        if parting.is_over {
            self.wake();
        }
    }
}
