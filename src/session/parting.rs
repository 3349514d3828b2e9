//! The end of a session whose client has not taken everything yet.
//!
//! What a client was answered and told must arrive. A part of it may still be here, as the client reads slowly; and a
//! TCP connection that is closed with something unread is reset, upon which what the kernel has not sent yet is lost.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::{Farewell, Phase, READS_MAX, Scratch, Session, since};

/// How long a client may take for its last words. One that does not read holds its connection no longer.
const PARTING_MAX: Duration = Duration::from_secs(5);

/// A client that was told to go, and is not gone.
#[derive(Debug)]
pub(super) struct Parting {
    began: Instant,
    /// Whether it expects an answer to what it asks.
    listens: bool,
    /// Whether it has asked more. That is read and dropped, until it has heard that nobody answers.
    asks: bool,
}

impl Session {
    /// The session is over for all others; its connection stays if the client has not taken everything.
    pub(super) fn begin_parting(&mut self, farewell: &Farewell) {
        let listens = match farewell {
            Farewell::Gone(_) => return,
            Farewell::Terminate | Farewell::EndOfStream => false,
            Farewell::Error(_) | Farewell::ServerBroken | Farewell::Severed | Farewell::ServerGone { .. } => {
                true
            }
        };
        self.phase = Phase::Parting(Box::new(Parting { began: Instant::now(), listens, asks: false }));
    }

    /// Ready when the connection can be closed.
    pub(super) fn poll_part(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        if self.doom.is_some() || ready!(self.poll_flush(context)).is_err() {
            return Poll::Ready(());
        }
        let Phase::Parting(parting) = &mut self.phase else { return Poll::Ready(()) };
        if !parting.asks {
            if !parting.listens || self.socket.is_silent_and_open() {
                return Poll::Ready(());
            }
            parting.asks = true;
            self.socket.end_writing();
        }
        for _ in 0..READS_MAX {
            if let Ok(0) | Err(_) = ready!(self.socket.poll_read(context, &mut scratch.read)) {
                return Poll::Ready(());
            }
        }
        // Others on this thread want their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits no longer than [`PARTING_MAX`].
    pub(super) fn check_parting(&mut self, now: Instant) {
        if let Phase::Parting(parting) = &self.phase
            && since(parting.began, now) > PARTING_MAX
        {
            self.end(Farewell::Gone(io::ErrorKind::TimedOut.into()));
        }
    }
}
