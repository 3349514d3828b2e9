//! What a client's text may change of its session, and what must stand in front of it for that reason.

use std::sync::Arc;

use super::{Fate, Message, Output, Upstream, write_header};
use crate::protocol::channels::statements;
use crate::protocol::statements::{ClientStatements, Statement};
use crate::protocol::{Answer, RequestKind};
use crate::sql::prepared::{Naming, Verb, naming};
use crate::sql::state::{Parts, Touched, touched};
use crate::sql::text_of;
use crate::wire::HEADER_LENGTH;
use crate::wire::backend::TransactionStatus;

/// Forgets what `currval` and `lastval` would say.
const DISCARD_SEQUENCES: &str = "DISCARD SEQUENCES";

impl Upstream<'_> {
    /// Notes what a text may change; `None` when it is too large to be looked at.
    #[inline]
    pub(super) fn note_text(&mut self, text: Option<&[u8]>) {
        if !self.pipeline.watching {
            return;
        }
        let Some(text) = text else { return self.pipeline.touched.add_told() };
        let touched = touched(text);
        if touched.parts.contains(Parts::EXECUTES) {
            self.note_executed();
        }
        if self.state.creates_temporary() {
            self.pipeline.touched.parts |= Parts::TEMPORARY;
        }
        self.note_touched(&touched);
    }

    /// Notes what the client's statements of PREPARE may change, whichever is run.
    pub(super) fn note_executed(&mut self) {
        let touched = self.state.prepared_touches();
        self.note_touched(&touched);
    }

    /// Notes what a statement may change.
    #[inline]
    pub(super) fn note_touched(&mut self, touched: &Touched) {
        if self.pipeline.watching && !touched.is_empty() {
            self.functions.add(touched, &mut self.pipeline.touched);
        }
    }

    /// Whether a client that listens is to hear first what it notifies itself of: in front of the ReadyForQuery that is owed.
    pub(super) fn awaits_own_notifications(&self) -> bool {
        self.listens.is_some()
            && self.pipeline.touched.parts.contains(Parts::NOTIFIES)
            && self.pipeline.comes_to_rest()
    }

    /// EXECUTE and DEALLOCATE of a statement that the client has prepared by the protocol: the server has it under
    /// another name, or not at all. `None` for every other text.
    pub(super) fn named_by_sql(&mut self, message: Message<'_>, output: &mut Output<'_>) -> Option<Fate> {
        if !self.tracking || !message.is_whole() {
            return None;
        }
        let client = self.client.as_deref()?;
        let text = text_of(message.body);
        let Naming { verb, name, place } = naming(text)?;
        let mut statement = Arc::clone(client.get(&name)?);
        if self.pipeline.owed() > 0 && !self.pipeline.is_batch_open() {
            // Whether the transaction is open or has failed, and whether the name stays, is decided by then.
            return Some(Fate::Wait);
        }
        if self.pipeline.status() == TransactionStatus::Failed {
            return None;
        }
        if verb == Verb::Execute {
            statement = self.in_force(&name, statement);
        }
        if verb == Verb::Deallocate {
            statement = self.present_or_empty(statement);
        }
        if verb == Verb::Execute && self.prepare_session(statement.effects.parts(), message.at, output) {
            return Some(Fate::OthersSequences);
        }
        output.flush(message.at);
        let lacks = !self.server.touch(statement.id);
        // Answers of a batch without its Sync may stay in the server's buffer: they are not waited for.
        let is_batch_open = self.pipeline.is_batch_open();
        if lacks {
            self.ensure_present(&statement, output.out);
        }
        let server_name = Statement::server_name(statement.id);
        let length = HEADER_LENGTH + text.len() - place.len() + server_name.len() + 3;
        write_header(b'Q', length, output.out);
        output.out.extend_from_slice(&text[..place.start]);
        output.out.extend_from_slice(format!("\"{server_name}\"").as_bytes());
        output.out.extend_from_slice(&text[place.end..]);
        output.out.push(0);
        match (verb, &statement.effects.touched) {
            (Verb::Execute, Some(touched)) => self.note_touched(touched),
            (Verb::Execute, None) => {}
            (Verb::Deallocate, _) => {
                self.server.remove(statement.id);
                self.client.get_or_insert_default().remove(&name);
            }
        }
        self.forget_unnamed();
        self.note_unnamed();
        self.pipeline.push(RequestKind::Query, Answer::Forward);
        if lacks && !is_batch_open {
            // Should our Parse fail, the server skips the Query, and what follows up to here.
            write_header(b'S', HEADER_LENGTH, output.out);
            self.pipeline.push(RequestKind::Sync, Answer::Discard);
        }
        Some(Fate::Rewritten(message.length))
    }

    /// Notes what the unnamed statement may change, which is used now.
    pub(super) fn prepare_session_for_unnamed(&mut self, at: usize, output: &mut Output<'_>) -> bool {
        let effects = self.client.as_deref().and_then(ClientStatements::unnamed_effects);
        let Some(touched) = effects.and_then(|effects| effects.touched.as_deref()) else { return false };
        if self.pipeline.watching {
            self.functions.add(touched, &mut self.pipeline.touched);
        }
        let parts = touched.parts;
        self.prepare_session(parts, at, output)
    }

    /// Puts in front of a transaction what its text needs of the session. `currval` and `lastval` answer from what that did,
    /// be it for another client, which is forgotten; returns whether it is too late for that.
    /// `pg_listening_channels()` tells what it listens to, where somebody else does so for the client.
    pub(super) fn prepare_session(&mut self, parts: Parts, at: usize, output: &mut Output<'_>) -> bool {
        if !self.pipeline.watching || !parts.intersects(Parts::SEQUENCES | Parts::SHOWS_CHANNELS) {
            return false;
        }
        let is_before = self.pipeline.is_before_client();
        if parts.contains(Parts::SHOWS_CHANNELS)
            && is_before
            && let Some(channels) = self.listens
        {
            let sql = statements("LISTEN", channels.iter().map(|channel| &**channel));
            self.query_before(&sql, at, output);
            // It is freed from that when it has told what there is in the end.
            self.pipeline.touched.parts |= Parts::CHANNELS;
        }
        if !self.pipeline.others_sequences || !parts.contains(Parts::SEQUENCES) {
            return false;
        }
        if is_before {
            self.query_before(DISCARD_SEQUENCES, at, output);
            self.pipeline.others_sequences = false;
        }
        !is_before
    }

    fn query_before(&mut self, sql: &str, at: usize, output: &mut Output<'_>) {
        output.flush(at);
        write_header(b'Q', HEADER_LENGTH + sql.len() + 1, output.out);
        output.out.extend_from_slice(sql.as_bytes());
        output.out.push(0);
        self.pipeline.push(RequestKind::Query, Answer::Discard);
        // Our Query has dropped it.
        *self.unnamed_present = false;
    }
}
