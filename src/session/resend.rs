//! A server that goes away: what it refused to begin, and what never reached it, goes to the next one as if
//! the client had sent it just now. Nothing else is ever sent twice.

use std::time::Instant;

use super::relay::Pumped;
use super::{Farewell, Phase, SENT_AGAIN_MAX, Session};
use crate::config::PoolMode;
use crate::error::sqlstate;
use crate::pool::Lease;
use crate::protocol::body::Body;
use crate::protocol::statements;
use crate::wire::backend;

impl Session {
    /// Whether the server's first answer is an error that says: I did nothing, ask another one.
    pub(super) fn may_send_again(&mut self, body: &[u8]) -> bool {
        if !self.may_change_server() {
            return false;
        }
        let fields = backend::error_fields(body);
        let Phase::Leased(lease) = &mut self.phase else { return false };
        let refused = match fields.is_fatal() {
            true => fields.code == sqlstate::ADMIN_SHUTDOWN.as_bytes(),
            // Only a standby says so of every write; a transaction that is read only says it of its own.
            false => {
                fields.code == sqlstate::READ_ONLY_SQL_TRANSACTION.as_bytes()
                    && lease.in_recovery
                    && lease.site().in_recovery == Some(false)
            }
        };
        if !refused {
            return false;
        }
        // The server goes through our own SETs first, which may even be proved before anything else is sent.
        let is_before =
            lease.loan().proving || lease.pipeline.runs_own_query() && lease.flight.is_repeatable();
        let is_harmless = is_before || lease.flight.resendable(self.statements.as_deref()).is_some();
        if !is_harmless {
            return false;
        }
        lease.site().report(&String::from_utf8_lossy(fields.message));
        true
    }

    /// Whether another server of the cluster is as good: not in session mode, where the session is.
    fn may_change_server(&self) -> bool {
        // What the session has on this server is on no other.
        let keeps = self.pinned.is_some() || self.leaves_unasked();
        self.follows
            && self.sent_again < SENT_AGAIN_MAX
            && self.group.mode.get() != PoolMode::Session
            && !keeps
    }

    /// The end of the server's stream. What no byte of has gone to it may go to another one. What has gone
    /// may be done, be it a query at a standby: a function of the user's may do anything.
    pub(super) fn note_server_gone(&mut self, told: bool) -> Result<Pumped, Farewell> {
        let may_change = self.may_change_server();
        let lease = self.lease();
        lease.site().note_lost(Instant::now());
        match may_change && !told && is_untouched(lease) {
            true => Ok(self.send_again("server conn crashed?")),
            false => Err(Farewell::ServerGone { told }),
        }
    }

    /// The server is not the primary any more. Takes what never reached it to the next one; returns whether
    /// there was that alone.
    pub(super) fn moves_on(&mut self) -> bool {
        let may_change = self.may_change_server();
        let Phase::Leased(lease) = &self.phase else { return false };
        let moves = may_change && is_untouched(lease) && !lease.loan().fatal_seen && !lease.loan().closing;
        if moves {
            self.send_again("server is no longer the primary");
        }
        moves
    }

    /// Gives the server up, and has the client's bytes go to the next one as if they came just now.
    pub(super) fn send_again(&mut self, reason: &str) -> Pumped {
        let Phase::Leased(mut lease) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("the relay runs only with a lease");
        };
        let changes = lease.pipeline.abandon();
        statements::undo(changes, self.statements.as_deref_mut(), &mut lease.statements);
        let mut again = lease.flight.take();
        if let Some(carry) = self.carry.take() {
            again.extend_from_slice(&carry);
        }
        self.carry = (!again.is_empty()).then(|| Box::new(again));
        self.needed = 0;
        self.body = Body::default();
        self.sent_again += 1;
        self.plane.metrics.borrow_mut().sent_again += 1;
        lease.close(reason);
        Pumped::Released
    }

    /// Whether it is a FATAL error behind the last answer of a transaction. The server ends, and the
    /// client, which has all that it asked for, goes on with another one.
    pub(super) fn is_parting_word(&mut self, body: &[u8]) -> bool {
        let is_session = self.group.mode.get() == PoolMode::Session || self.pinned.is_some();
        let lease = self.lease();
        let fields = backend::error_fields(body);
        if is_session || !fields.is_fatal() || !lease.pipeline.is_idle() {
            return false;
        }
        lease.parts().1.fatal_seen = true;
        if is_going_away(fields.code) {
            lease.site().report(&String::from_utf8_lossy(fields.message));
        }
        true
    }
}

/// Whether it is the code of an error by which a server goes away, whatever was asked.
pub(super) fn is_going_away(code: &[u8]) -> bool {
    sqlstate::IS_GOING_AWAY.iter().any(|known| known.as_bytes() == code)
}

/// Whether no byte of what the client asked has gone to the server.
fn is_untouched(lease: &Lease) -> bool {
    lease.loan().proving || lease.flight.unsent().is_some()
}
