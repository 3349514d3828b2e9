//! What a server must be given of its client's statements, in front of what needs it.

use std::sync::Arc;

use super::Upstream;
use super::output::{Output, write_header, write_object, write_parse};
use crate::protocol::statements::{Change, ClientStatements, Statement};
use crate::protocol::{Answer, RequestKind};
use crate::sql::text_of;
use crate::wire::HEADER_LENGTH;

/// Of a Parse: no command, no parameter types.
const EMPTY_DEFINITION: &[u8] = b"\0\0\0";

/// Whether a statement has a string in it, which may be a date, or mean something else after all.
pub(super) fn has_literal(definition: &[u8]) -> bool {
    let text = text_of(definition);
    text.contains(&b'\'') || text.windows(2).any(|pair| pair[0] == b'$' && !pair[1].is_ascii_digit())
}

impl Upstream<'_> {
    /// What decides what a statement's names mean that is prepared now, and its literals if it has some.
    pub(super) fn environment(&self, has_literal: bool) -> Vec<u8> {
        let mut environment = self.state.environment();
        for value in self.parameters.of_literals().filter(|_| has_literal) {
            environment.extend_from_slice(value.as_bytes());
            environment.push(0);
        }
        if self.definitions > 0 {
            environment.extend_from_slice(&self.definitions.to_be_bytes());
        }
        environment
    }

    /// The client's statement, as the server would prepare it now, should it lack it: what it meant when the client
    /// prepared it is said under its number nowhere else.
    pub(super) fn in_force(&mut self, name: &[u8], statement: Arc<Statement>) -> Arc<Statement> {
        if self.server.touch(statement.id) {
            return statement;
        }
        let environment = self.environment(has_literal(statement.definition()));
        if statement.environment() == environment {
            return statement;
        }
        let now = self.interner.intern(statement.definition(), &environment);
        self.client.get_or_insert_default().insert(name, Arc::clone(&now));
        now
    }

    /// The statement if the server has it, else one that any server takes at any time, also in a failed transaction and
    /// whatever tables are found: for what needs no more than a name that is in use.
    pub(super) fn present_or_empty(&mut self, statement: Arc<Statement>) -> Arc<Statement> {
        match self.server.touch(statement.id) {
            true => statement,
            false => self.interner.intern(EMPTY_DEFINITION, &[]),
        }
    }

    /// Prepares a statement that the server lacks, in front of what needs it.
    pub(super) fn ensure_present(&mut self, statement: &Statement, out: &mut Vec<u8>) {
        if self.server.touch(statement.id) {
            return;
        }
        self.make_room(statement.id, out);
        write_parse(statement.id, statement.definition(), out);
        let change = Change::ServerParse(statement.id);
        self.pipeline.push_with_change(RequestKind::Parse, Answer::Discard, change);
    }

    pub(super) fn make_room(&mut self, id: u64, out: &mut Vec<u8>) {
        self.counts.server_parses += 1;
        if let Some(evicted) = self.server.insert(id) {
            self.close_at_server(evicted, out);
        }
    }

    pub(super) fn close_at_server(&mut self, id: u64, out: &mut Vec<u8>) {
        write_object(b'C', Statement::server_name(id).as_bytes(), out);
        let change = Change::ServerClose(id);
        self.pipeline.push_with_change(RequestKind::Close, Answer::Discard, change);
    }

    /// The server's unnamed statement may be another client's. It becomes this client's own, or none,
    /// so that PostgreSQL itself says that there is none.
    pub(super) fn ensure_unnamed(&mut self, at: usize, output: &mut Output<'_>) {
        let doubted = self.pipeline.take_unnamed_doubt();
        if *self.unnamed_present && !doubted {
            return;
        }
        *self.unnamed_present = true;
        output.flush(at);
        match self.client.as_deref().and_then(ClientStatements::unnamed) {
            Some(definition) => {
                let length = HEADER_LENGTH + 1 + definition.len();
                write_header(b'P', length, output.out);
                output.out.push(0);
                output.out.extend_from_slice(definition);
                self.pipeline.push(RequestKind::Parse, Answer::Discard);
            }
            None => {
                write_header(b'C', HEADER_LENGTH + 2, output.out);
                output.out.extend_from_slice(b"S\0");
                self.pipeline.push(RequestKind::Close, Answer::Discard);
            }
        }
    }
}
