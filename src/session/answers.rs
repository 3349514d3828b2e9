//! What the server's answers mean to their client and to us, and which of their bytes go on.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;

use super::idle::READY_FOR_QUERY;
use super::resend::is_going_away;
use super::{Farewell, Phase, Session, since};
use crate::config::PoolMode;
use crate::error::{SqlError, sqlstate};
use crate::metrics::micros;
use crate::protocol::{Stop, statements};
use crate::wire::backend::{self, TransactionStatus};
use crate::wire::{BackendTag, HEADER_LENGTH, Header, originate};

/// The function of PostgreSQL that refuses a plan whose tables have changed.
const PLAN_CHECK: &[u8] = b"RevalidateCachedQuery";

/// Bytes of a statement's name that the log shows: a name may be as long as its client likes.
const NAME_SHOWN_MAX: usize = 256;

/// The run of input that goes on as it is, as long as nothing had to be changed before it.
struct Forward<'a> {
    input: &'a [u8],
    run: Range<usize>,
    out: &'a mut Vec<u8>,
}

/// What became of a server's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// They were dealt with. These go to the client as they are, or if it is none, what was put together of them.
    PassOn(Option<Range<usize>>),
    /// The server refused to begin, because it goes away: the client's bytes go to another one.
    SendAgain,
    /// They are on their way there.
    SentAgain,
}

impl Forward<'_> {
    /// Whether there is nothing for the client so far.
    fn is_empty(&self) -> bool {
        self.run.is_empty() && self.out.is_empty()
    }

    fn push(&mut self, run: Range<usize>) {
        if run.is_empty() {
            return;
        }
        if self.run.is_empty() {
            self.run = run;
        } else if self.run.end == run.start {
            self.run.end = run.end;
        } else {
            self.flush();
            self.run = run;
        }
    }

    fn insert(&mut self, bytes: &[u8]) {
        self.flush();
        self.out.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        self.out.extend_from_slice(&self.input[self.run.clone()]);
        self.run = 0..0;
    }
}

impl Session {
    pub(super) fn forward_server(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Answered, Farewell> {
        out.clear();
        let mut forward = Forward { input, run: 0..0, out };
        let mut at = 0;
        loop {
            let received = self.lease().pipeline.receive(&input[at..])?;
            let absolute = |range: Range<usize>| at + range.start..at + range.end;
            if let Stop::Error(range) = &received.stop {
                let in_front = absolute(received.forward.start..range.start - HEADER_LENGTH);
                let error = &input[absolute(range.clone())];
                if forward.is_empty()
                    && is_undone_by_an_end(&input[in_front.clone()], self.lease().flight.is_simple())
                    && self.may_send_again(error)
                {
                    return Ok(Answered::SendAgain);
                }
                if self.is_parting_word(error) {
                    forward.push(in_front);
                    at += received.consumed;
                    continue;
                }
            }
            let mut passed_on = absolute(received.forward);
            if received.stop == Stop::Ready && self.withholds_ready() {
                passed_on.end -= READY_FOR_QUERY.len();
            }
            forward.push(passed_on);
            match received.stop {
                Stop::NeedMore => {
                    at += received.consumed;
                    break;
                }
                Stop::Discarded => {}
                Stop::Ready => self.note_ready()?,
                Stop::Synthesized(bytes) => forward.insert(bytes),
                Stop::Parameter(range) => self.note_parameter(&input[absolute(range)]),
                Stop::Error(range) => self.note_error(&input[absolute(range)]),
                Stop::Notification(range) => {
                    let message = &input[absolute(range)];
                    forward.insert(&self.heard_only_here(message));
                }
                Stop::Duplicate(name) => {
                    self.undo(false);
                    self.log_duplicate(&name);
                    forward.insert(&duplicate_statement(&name));
                }
                Stop::StatementsDropped => self.drop_statements(),
                Stop::OwnQueryDone { failed } => {
                    if !self.note_own_query(failed)? {
                        return Ok(Answered::SentAgain);
                    }
                }
            }
            at += received.consumed;
            if at == input.len() && !self.lease().pipeline.has_synthesized() {
                break;
            }
        }
        let rest = &input[at..];
        self.lease().carry.extend_from_slice(rest);
        if forward.out.is_empty() {
            return Ok(Answered::PassOn(Some(forward.run)));
        }
        forward.flush();
        Ok(Answered::PassOn(None))
    }

    fn note_ready(&mut self) -> Result<(), Farewell> {
        let now = Instant::now();
        let group = Rc::clone(&self.group);
        self.sent_again = 0;
        if self.lease().pipeline.redefines {
            // Also before it is committed: the client itself sees it already.
            self.plane.shared.databases.redefine(&group.database);
        }
        let (server, loan) = self.lease().parts();
        loan.quiet_since = now;
        let began = loan.query_began.take();
        let took = began.map(|began| since(began, now));
        if server.pipeline.owed() > 0 {
            loan.query_began = Some(now);
        } else {
            server.flight.settle();
        }
        let status = server.pipeline.status();
        let mut stats = group.stats.borrow_mut();
        stats.totals.query_count += 1;
        let committed = std::mem::take(&mut server.pipeline.committed);
        if let Some(took) = took {
            stats.totals.query_time_us += micros(took);
            if committed {
                stats.commit.record(took);
            }
        }
        if status == TransactionStatus::Idle {
            server.pipeline.redefines = false;
            // Most transactions are one query.
            let took = took.filter(|_| began == Some(loan.began)).unwrap_or_else(|| since(loan.began, now));
            loan.began = now;
            loan.transactions = loan.transactions.saturating_add(1);
            stats.totals.xact_count += 1;
            stats.totals.xact_time_us += micros(took);
            stats.transaction.record(took);
        }
        if status != TransactionStatus::Idle && group.mode.get() == PoolMode::Statement {
            let message = "transaction blocks not allowed in statement pooling mode";
            return Err(SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message).into());
        }
        Ok(())
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let plane = Rc::clone(&self.plane);
        let lease = self.lease();
        let own = lease.pipeline.runs_own_query();
        if lease.note_parameter(body, &plane.shared.server) && !own {
            self.parameters = Arc::clone(&self.lease().parameters);
        }
    }

    fn note_error(&mut self, body: &[u8]) {
        let fields = backend::error_fields(body);
        if fields.is_fatal() {
            let lease = self.lease();
            // What answers our own query is not passed on.
            lease.parts().1.fatal_seen = !lease.pipeline.runs_own_query();
            if is_going_away(fields.code) {
                lease.site().report(&String::from_utf8_lossy(fields.message));
            }
        }
        if fields.code == sqlstate::DISK_FULL.as_bytes() {
            self.lease().site().note_disk_full(Instant::now());
        }
        if let Ok(code) = str::from_utf8(fields.code) {
            self.plane.metrics.borrow_mut().errors.record(code);
        }
        if self.lease().pipeline.runs_own_query() {
            self.lease().refusal = Some(String::from_utf8_lossy(fields.message).into_owned());
        }
        if fields.code == sqlstate::FEATURE_NOT_SUPPORTED.as_bytes() && fields.routine == PLAN_CHECK {
            // "cached plan must not change result type": not only of this statement, and on every server.
            let plans = self.group.pool.plans.fetch_add(1, Ordering::Relaxed) + 1;
            self.lease().statements.renew(plans);
        }
        let exists = fields.code == sqlstate::DUPLICATE_PREPARED_STATEMENT.as_bytes();
        self.undo(exists);
    }

    /// Takes back what a failed batch did not do.
    fn undo(&mut self, exists: bool) {
        let Phase::Leased(lease) = &mut self.phase else { return };
        let undone = lease.pipeline.take_undone();
        if undone.is_empty() {
            return;
        }
        let failed = undone.first().cloned();
        statements::undo(undone, self.statements.as_deref_mut(), &mut lease.statements);
        if exists {
            statements::note_present(failed.as_slice(), &mut lease.statements);
        }
    }

    /// In PgBouncer's words, for those who look for them.
    fn log_duplicate(&self, name: &[u8]) {
        let name = String::from_utf8_lossy(&name[..name.len().min(NAME_SHOWN_MAX)]);
        tracing::error!("{} prepared statement '{name}' was already prepared", self.tag());
    }

    fn drop_statements(&mut self) {
        let Phase::Leased(lease) = &mut self.phase else { return };
        let server = &mut **lease;
        statements::drop_all(
            server.pipeline.changes(),
            self.statements.as_deref_mut(),
            &mut server.statements,
        );
    }
}

/// Whether PostgreSQL has kept nothing of what it says here, when a FATAL error comes next and no ReadyForQuery. A simple
/// Query is committed before its CommandComplete; the extended protocol commits at Sync, behind it.
fn is_undone_by_an_end(mut answers: &[u8], is_simple: bool) -> bool {
    use BackendTag::*;
    while let Ok(Some(header)) = Header::read(answers) {
        let (tag, rest) = (BackendTag::from_byte(header.tag), answers.get(header.length..));
        let (Ok(tag), Some(rest)) = (tag, rest) else { return false };
        match tag {
            ParseComplete | BindComplete | CloseComplete | ParameterDescription | RowDescription | NoData
            | DataRow | PortalSuspended | EmptyQueryResponse => {}
            CommandComplete if !is_simple => {}
            _ => return false,
        }
        answers = rest;
    }
    answers.is_empty()
}

fn duplicate_statement(name: &[u8]) -> BytesMut {
    let name = String::from_utf8_lossy(name);
    let message = format!("prepared statement \"{name}\" already exists");
    let mut bytes = BytesMut::new();
    originate::error(&SqlError::error(sqlstate::DUPLICATE_PREPARED_STATEMENT, message), &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_not_undone_by_the_end_of_its_server() {
        let (parsed, row, done) = (b"1\0\0\0\x04", b"D\0\0\0\x06\0\0", b"C\0\0\0\x0dINSERT 0\0");
        let extended = [&parsed[..], b"2\0\0\0\x04", row, done].concat();
        assert!(is_undone_by_an_end(&extended, false));
        assert!(is_undone_by_an_end(&[&b"T\0\0\0\x06\0\0"[..], row].concat(), true));
        assert!(!is_undone_by_an_end(&[&row[..], done].concat(), true), "a simple Query");
        assert!(!is_undone_by_an_end(b"G\0\0\0\x07\0\0\0", false), "a COPY");
        assert!(!is_undone_by_an_end(b"N\0\0\0\x05\0", false), "a notice would come twice");
        assert!(!is_undone_by_an_end(&parsed[..4], false), "a part");
    }
}
