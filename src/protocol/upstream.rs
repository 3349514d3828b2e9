//! Client bytes on their way to the server: which go as they are, and what is changed in the others.
//! Only the statement *names* in Parse, Bind, Describe and Close change; nothing is re-encoded.
//! Start with [`Upstream::take`].

mod output;
mod presence;
mod watch;

use std::ops::Range;
use std::sync::Arc;

pub use output::close_and_sync;
use output::{Output, write_header, write_object, write_parse};
use presence::has_literal;

use super::body::Body;
use super::channels::Channels;
use super::functions::Functions;
use super::parameters::ParameterSet;
use super::state::SessionState;
use super::statements::{Change, ClientStatements, Effects, Interner, ServerStatements, Statement};
use super::{Answer, Pipeline, RequestKind};
use crate::sql::state::Parts;
use crate::sql::text_of;
use crate::wire::backend::TransactionStatus;
use crate::wire::frontend::{self, NAMES_MAX, Object, Parse, SMALL_MAX};
use crate::wire::{FrontendTag, HEADER_LENGTH, Malformed};

/// Largest named Parse: it is held whole, since it may have to be sent to another server again.
/// Also the largest unnamed one that outlives its transaction.
pub const PARSE_MAX: usize = 16 * 1024 * 1024;

/// Largest Query that is looked at as a whole, however it comes.
const QUERY_MAX: usize = 32 * 1024;

/// An unnamed statement is remembered for the client's next transaction up to this size.
const UNNAMED_MAX: usize = 64 * 1024;

/// What [`Upstream::take`] made of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that were dealt with.
    pub consumed: usize,
    /// The last of them that go to the server as they are, after what was put into `out`.
    pub forward: Range<usize>,
    /// Why it stopped there.
    pub stop: Stop,
}

/// Why [`Upstream::take`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Everything whole was dealt with.
    NeedMore,
    /// Answers must come before more is sent.
    Full,
    /// The client said goodbye.
    Terminate,
    /// A simple Query, which is not allowed.
    Disallowed,
    /// `currval` or `lastval` inside of a transaction, on a server where another client may have used sequences.
    OthersSequences,
}

/// Counters of prepared statements, for the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatementCounts {
    /// Named statements that clients prepared.
    pub client_parses: u64,
    /// Of those, the ones that the server had already.
    pub hits: u64,
    /// Of those, the ones that a server had to prepare; again on each further server.
    pub server_parses: u64,
    /// Binds of named statements.
    pub binds: u64,
}

/// Everything that the fate of a client's message depends on.
pub struct Upstream<'a> {
    /// The server's queue.
    pub pipeline: &'a mut Pipeline,
    /// What the server has prepared.
    pub server: &'a mut ServerStatements,
    /// What the client has prepared; made at its first Parse.
    pub client: &'a mut Option<Box<ClientStatements>>,
    /// Whether the server's unnamed statement is this client's.
    pub unnamed_present: &'a mut bool,
    /// All statements.
    pub interner: &'a Interner,
    /// Whether names are rewritten: `max_prepared_statements` is not 0, and the mode is not session.
    pub tracking: bool,
    /// What was prepared and bound.
    pub counts: &'a mut StatementCounts,
    /// What may be sent at all.
    pub rules: Rules,
    /// What the client has made of its session.
    pub state: &'a SessionState,
    /// The values of the client's parameters.
    pub parameters: &'a ParameterSet,
    /// What somebody else listens to for the client.
    pub listens: Option<&'a Channels>,
    /// What is known of functions that may change it.
    pub functions: &'a Functions,
    /// Generation of the tables and types of the database.
    pub definitions: u64,
}

/// What a client may send, whatever it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Largest message, its header included: `max_packet_size`.
    pub message_max: usize,
    /// Whether the simple query protocol may be used: not with `disable_pqexec`.
    pub simple_queries: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { message_max: usize::MAX, simple_queries: true }
    }
}

impl Rules {
    /// A message that is larger than it may be is none.
    #[inline]
    pub fn check(self, tag: FrontendTag, length: usize) -> Result<(), Malformed> {
        match length <= self.message_max {
            true => Ok(()),
            false => {
                Err(Malformed::TooLarge { tag: char::from(tag as u8), need: length, limit: self.message_max })
            }
        }
    }
}

/// How a message was dealt with.
enum Fate {
    /// As it is.
    Verbatim,
    /// Written into `out` up to this many bytes of the message; the rest follows as it is.
    Rewritten(usize),
    /// Nothing of it is sent.
    Dropped,
    /// Its end has to come first.
    Incomplete,
    /// Earlier answers have to come first.
    Wait,
    Terminate,
    Disallowed,
    /// It would be answered from what another client did.
    OthersSequences,
}

/// What becomes of a statement's name.
enum Name {
    AsItIs,
    Server(Vec<u8>),
    /// Earlier answers decide.
    Wait,
    /// As [`Fate::OthersSequences`].
    OthersSequences,
}

/// A client must not reach a statement by the name that it has on the server, where it may be another
/// client's: it gets the error for a name that no statement has.
fn nobodys_name(name: &[u8]) -> Vec<u8> {
    [name, b"_"].concat()
}

/// A client's message, as far as it is there.
#[derive(Clone, Copy)]
struct Message<'a> {
    tag: FrontendTag,
    /// Of the whole message, its header included.
    length: usize,
    /// What is there of what follows the header.
    body: &'a [u8],
    /// Where the message begins in the input.
    at: usize,
}

impl Message<'_> {
    fn is_whole(&self) -> bool {
        self.body.len() + HEADER_LENGTH == self.length
    }

    fn check_size(&self, limit: usize) -> Result<(), Malformed> {
        match self.length <= limit {
            true => Ok(()),
            false => {
                let tag = char::from(self.tag as u8);
                Err(Malformed::TooLarge { tag, need: self.length, limit })
            }
        }
    }
}

/// How many bytes there must be of the message at the start of `input` before it is of use: all of a statement that may
/// have to be prepared again, 0 where any piece will do. [`Upstream::take`] refuses what is too large to be held.
pub fn whole_length(input: &[u8], tracking: bool) -> usize {
    match frontend::header(input) {
        Ok(Some((FrontendTag::Parse, length))) if tracking => match input.get(HEADER_LENGTH) {
            _ if length <= UNNAMED_MAX => length,
            // Whether it has a name decides.
            None => HEADER_LENGTH + 1,
            Some(_) if streams(length, &input[HEADER_LENGTH..]) || length > PARSE_MAX => 0,
            Some(_) => length,
        },
        Ok(Some((FrontendTag::Query, length))) if length <= QUERY_MAX => length,
        _ => 0,
    }
}

/// Whether a Parse is of the unnamed statement, and too large to be remembered.
fn streams(length: usize, body: &[u8]) -> bool {
    length > UNNAMED_MAX && body.first() == Some(&0)
}

impl Upstream<'_> {
    /// Looks at the client's bytes. `body` is the state of a message begun earlier. What precedes
    /// `forward` is appended to `out`.
    pub fn take(&mut self, input: &[u8], body: &mut Body, out: &mut Vec<u8>) -> Result<Taken, Malformed> {
        let mut at = body.pass(input.len());
        let run = if body.is_dropped() { at } else { 0 };
        let mut output = Output { input, out, run };
        let stop = loop {
            if self.pipeline.is_full() || self.awaits_own_notifications() {
                break Stop::Full;
            }
            let Some((tag, length)) = frontend::header(&input[at..])? else { break Stop::NeedMore };
            self.rules.check(tag, length)?;
            let end = input.len().min(at + length);
            let message = Message { tag, length, body: &input[at + HEADER_LENGTH..end], at };
            let is_dropped = match self.message(message, &mut output)? {
                Fate::Verbatim => false,
                Fate::Rewritten(done) => {
                    output.run = at + done;
                    false
                }
                Fate::Dropped => {
                    output.flush(at);
                    output.run = end;
                    true
                }
                Fate::Incomplete => break Stop::NeedMore,
                Fate::Wait => break Stop::Full,
                Fate::Terminate => break Stop::Terminate,
                Fate::Disallowed => break Stop::Disallowed,
                // The transactions in front of it may be over then.
                Fate::OthersSequences if self.pipeline.comes_to_rest() => break Stop::Full,
                Fate::OthersSequences => break Stop::OthersSequences,
            };
            *body = Body::new(length - (end - at), is_dropped);
            at = end;
        };
        let run = output.run;
        Ok(Taken { consumed: at, forward: run..at, stop })
    }

    #[inline]
    fn message(&mut self, message: Message<'_>, output: &mut Output<'_>) -> Result<Fate, Malformed> {
        let tag = message.tag;
        if self.pipeline.is_skipping() && !matches!(tag, FrontendTag::Sync | FrontendTag::Terminate) {
            // The server would read it only to throw it away.
            return Ok(Fate::Dropped);
        }
        let kind = match tag {
            FrontendTag::Query if !self.rules.simple_queries => return Ok(Fate::Disallowed),
            FrontendTag::Query if !message.is_whole() && message.length <= QUERY_MAX => {
                return Ok(Fate::Incomplete);
            }
            FrontendTag::Query if let Some(fate) = self.named_by_sql(message, output) => return Ok(fate),
            FrontendTag::Query => {
                // PostgreSQL's `exec_simple_query` drops the unnamed statement, whoever's it was.
                self.forget_unnamed();
                self.note_unnamed();
                let local_sets = self.pipeline.touched.local_sets;
                match message.is_whole() {
                    true => self.note_text(Some(text_of(message.body))),
                    false if self.pipeline.watching => self.pipeline.touched.add_unseen(message.body),
                    false => {}
                }
                if self.prepare_session(self.pipeline.touched.parts, message.at, output) {
                    // It may be looked at once more.
                    self.pipeline.touched.local_sets = local_sets;
                    return Ok(Fate::OthersSequences);
                }
                RequestKind::Query
            }
            FrontendTag::Sync => RequestKind::Sync,
            FrontendTag::Execute => RequestKind::Execute,
            FrontendTag::FunctionCall => {
                // It names its function by a number.
                self.note_text(None);
                RequestKind::FunctionCall
            }
            FrontendTag::CopyDone | FrontendTag::CopyFail => RequestKind::CopyEnd,
            FrontendTag::CopyData | FrontendTag::Flush => return Ok(Fate::Verbatim),
            FrontendTag::Parse => return self.parse(message, output),
            FrontendTag::Bind => return self.bind(message, output),
            FrontendTag::Describe | FrontendTag::Close => {
                return self.object(message, output);
            }
            FrontendTag::Terminate => return Ok(Fate::Terminate),
            FrontendTag::Password => return Err(Malformed::Tag { tag: 'p' }),
        };
        self.pipeline.push(kind, Answer::Forward);
        Ok(Fate::Verbatim)
    }

    /// The server's unnamed statement is what this client made it.
    #[inline]
    fn note_unnamed(&mut self) {
        self.pipeline.take_unnamed_doubt();
        *self.unnamed_present = true;
    }

    fn forget_unnamed(&mut self) {
        if let Some(client) = self.client {
            client.drop_unnamed();
        }
    }

    fn parse(&mut self, message: Message<'_>, output: &mut Output<'_>) -> Result<Fate, Malformed> {
        let Message { length, body, at, .. } = message;
        if !self.tracking || streams(length, body) {
            let parse = message.is_whole().then(|| frontend::parse(body).ok()).flatten();
            self.note_text(parse.map(|parse| text_of(parse.definition)));
            if self.prepare_session(self.pipeline.touched.parts, at, output) {
                return Ok(Fate::OthersSequences);
            }
            self.pipeline.push(RequestKind::Parse, Answer::Forward);
            self.forget_unnamed();
            self.note_unnamed();
            return Ok(Fate::Verbatim);
        }
        if !message.is_whole() && body.is_empty() {
            // Whether it has a name decides what it may be, and where its limit is.
            return Ok(Fate::Incomplete);
        }
        message.check_size(PARSE_MAX)?;
        if !message.is_whole() {
            return Ok(Fate::Incomplete);
        }
        let parse = frontend::parse(body)?;
        match parse.name {
            b"" => Ok(self.parse_unnamed(parse.definition, at, output)),
            _ => Ok(self.parse_named(parse, message, output)),
        }
    }

    fn parse_unnamed(&mut self, definition: &[u8], at: usize, output: &mut Output<'_>) -> Fate {
        let client = self.client.get_or_insert_default();
        client.set_unnamed(definition);
        let parts = client.unnamed_effects().map_or(Parts::empty(), Effects::parts);
        if self.prepare_session(parts, at, output) {
            return Fate::OthersSequences;
        }
        self.note_unnamed();
        self.pipeline.push(RequestKind::Parse, Answer::Forward);
        Fate::Verbatim
    }

    fn parse_named(&mut self, parse: Parse<'_>, message: Message<'_>, output: &mut Output<'_>) -> Fate {
        let Message { length, at, .. } = message;
        if self.pipeline.awaits_name(parse.name) || self.pipeline.may_drop_statements() {
            // Whether the name is in use then depends on whether that batch fails.
            return Fate::Wait;
        }
        let client = self.client.get_or_insert_default();
        if let Some(statement) = client.get(parse.name).cloned() {
            return self.duplicate(&parse, statement, message, output);
        }
        let has_literal = has_literal(parse.definition);
        if has_literal && self.pipeline.comes_to_rest() && self.pipeline.may_set() {
            // What it means is decided by then.
            return Fate::Wait;
        }
        let mut environment = self.environment(has_literal);
        if has_literal && self.pipeline.may_set() {
            // What that sets is not known yet: nobody else may take this for the same.
            environment.extend_from_slice(&self.interner.number().to_be_bytes());
            environment.push(1);
        }
        let statement = self.interner.intern(parse.definition, &environment);
        if self.prepare_session(statement.effects.parts(), at, output) {
            return Fate::OthersSequences;
        }
        if self.pipeline.awaits_statement(statement.id) {
            return Fate::Wait;
        }
        let present = self.server.touch(statement.id);
        if present && self.pipeline.may_fail_transaction() {
            return Fate::Wait;
        }
        // In a failed transaction the server refuses all but its end, and behind a SET of the search_path it may not
        // find the tables: it has to see the Parse.
        let may_refuse = self.pipeline.status() == TransactionStatus::Failed || self.pipeline.may_set();
        let answered_here = present && !may_refuse;
        self.counts.client_parses += 1;
        self.client.get_or_insert_default().insert(parse.name, Arc::clone(&statement));
        let change = Change::ClientParse {
            name: parse.name.into(),
            statement: Arc::clone(&statement),
            sent: !answered_here,
        };
        output.flush(at);
        if answered_here {
            self.counts.hits += 1;
            self.pipeline.push_with_change(RequestKind::Parse, Answer::Synthesize, change);
        } else {
            match present {
                true => self.close_at_server(statement.id, output.out),
                false => self.make_room(statement.id, output.out),
            }
            write_parse(statement.id, statement.definition(), output.out);
            self.pipeline.push_with_change(RequestKind::Parse, Answer::Forward, change);
        }
        Fate::Rewritten(length)
    }

    /// A Parse of a name in use must fail at the server too, so that the transaction does: the server
    /// is asked to prepare it under a name that it has already. It looks at the query first, and may find
    /// another fault in it. A server that lacks the statement is given an empty one, which it takes in a failed
    /// transaction, too.
    fn duplicate(
        &mut self,
        parse: &Parse<'_>,
        statement: Arc<Statement>,
        message: Message<'_>,
        output: &mut Output<'_>,
    ) -> Fate {
        let taken = self.present_or_empty(statement);
        if self.pipeline.awaits_statement(taken.id) {
            // Only if the server has it, the name is in use there.
            return Fate::Wait;
        }
        output.flush(message.at);
        self.ensure_present(&taken, output.out);
        write_parse(taken.id, parse.definition, output.out);
        let change = Change::Duplicate { name: parse.name.into() };
        self.pipeline.push_with_change(RequestKind::Parse, Answer::Forward, change);
        Fate::Rewritten(message.length)
    }

    fn bind(&mut self, message: Message<'_>, output: &mut Output<'_>) -> Result<Fate, Malformed> {
        let Message { length, body, at, .. } = message;
        if self.tracking {
            let Some(names) = frontend::bind_names(&body[..body.len().min(NAMES_MAX)]) else {
                return match message.is_whole() {
                    _ if body.len() >= NAMES_MAX => {
                        Err(Malformed::TooLarge { tag: 'B', need: body.len(), limit: NAMES_MAX })
                    }
                    true => Err(Malformed::Field { tag: 'B', field: "a name", have: body.len() }),
                    false => Ok(Fate::Incomplete),
                };
            };
            let name = match self.resolve(names.statement, at, output) {
                Name::AsItIs => None,
                Name::Server(name) => Some(name),
                Name::Wait => return Ok(Fate::Wait),
                Name::OthersSequences => return Ok(Fate::OthersSequences),
            };
            if let Some(name) = name {
                output.flush(at);
                self.counts.binds += 1;
                let done = HEADER_LENGTH + names.portal.len() + 1 + names.statement.len() + 1;
                write_header(b'B', length - names.statement.len() + name.len(), output.out);
                output.out.extend_from_slice(names.portal);
                output.out.push(0);
                output.out.extend_from_slice(&name);
                output.out.push(0);
                self.pipeline.push(RequestKind::Bind, Answer::Forward);
                return Ok(Fate::Rewritten(done));
            }
        }
        self.pipeline.push(RequestKind::Bind, Answer::Forward);
        Ok(Fate::Verbatim)
    }

    /// Describe and Close.
    fn object(&mut self, message: Message<'_>, output: &mut Output<'_>) -> Result<Fate, Malformed> {
        let Message { tag, length, body, at } = message;
        let kind = if tag == FrontendTag::Close { RequestKind::Close } else { RequestKind::Describe };
        if self.tracking {
            if !message.is_whole() {
                return Ok(Fate::Incomplete);
            }
            let object = frontend::object(char::from(tag as u8), body)?;
            if let Object::Statement(name) = object {
                if kind == RequestKind::Close {
                    return match self.pipeline.awaits_name(name) {
                        // Whether there is something to close depends on whether that batch fails.
                        true => Ok(Fate::Wait),
                        false => self.close(name, message, output),
                    };
                }
                match self.resolve(name, at, output) {
                    Name::AsItIs => {}
                    Name::Wait => return Ok(Fate::Wait),
                    Name::OthersSequences => return Ok(Fate::OthersSequences),
                    Name::Server(name) => {
                        output.flush(at);
                        write_object(b'D', &name, output.out);
                        self.pipeline.push(kind, Answer::Forward);
                        return Ok(Fate::Rewritten(length));
                    }
                }
            }
        }
        self.verbatim_object(kind, message)
    }

    /// PostgreSQL would close the connection over one that is larger.
    fn verbatim_object(&mut self, kind: RequestKind, message: Message<'_>) -> Result<Fate, Malformed> {
        message.check_size(HEADER_LENGTH + SMALL_MAX)?;
        self.pipeline.push(kind, Answer::Forward);
        Ok(Fate::Verbatim)
    }

    /// Close of a statement. A name that we hold is answered here, and the server keeps the statement.
    fn close(
        &mut self,
        name: &[u8],
        message: Message<'_>,
        output: &mut Output<'_>,
    ) -> Result<Fate, Malformed> {
        let held = match self.client.as_deref_mut() {
            Some(client) if name.is_empty() => {
                client.drop_unnamed();
                None
            }
            Some(client) => client.remove(name),
            None => None,
        };
        let answered_here = held.is_some() || Statement::is_server_name(name);
        if !answered_here {
            return self.verbatim_object(RequestKind::Close, message);
        }
        output.flush(message.at);
        match held {
            Some(statement) => {
                let change = Change::ClientClose { name: name.into(), statement };
                self.pipeline.push_with_change(RequestKind::Close, Answer::Synthesize, change);
            }
            None => self.pipeline.push(RequestKind::Close, Answer::Synthesize),
        }
        Ok(Fate::Rewritten(message.length))
    }

    /// What the server knows the statement as that the client calls `name`. Prepares it there if need
    /// be, in front of what needs it.
    fn resolve(&mut self, name: &[u8], at: usize, output: &mut Output<'_>) -> Name {
        if name.is_empty() {
            if self.pipeline.awaits_unnamed() {
                return Name::Wait;
            }
            if self.prepare_session_for_unnamed(at, output) {
                return Name::OthersSequences;
            }
            self.ensure_unnamed(at, output);
            if let Some(effects) = self.client.as_deref().and_then(ClientStatements::unnamed_effects) {
                self.pipeline.note_effects(effects);
            }
            return Name::AsItIs;
        }
        if self.pipeline.may_drop_statements() || self.pipeline.awaits_name(name) {
            // It may be DISCARD ALL, or a batch that is skipped, and then does not give or take the name.
            return Name::Wait;
        }
        let Some(statement) = self.client.as_deref().and_then(|client| client.get(name)).cloned() else {
            return match Statement::is_server_name(name) {
                // Made by SQL's PREPARE, or unknown: the server says which.
                false => {
                    self.note_executed();
                    Name::AsItIs
                }
                true => Name::Server(nobodys_name(name)),
            };
        };
        let statement = self.in_force(name, statement);
        if self.pipeline.awaits_statement(statement.id) {
            return Name::Wait;
        }
        if let Some(touched) = &statement.effects.touched {
            self.note_touched(touched);
        }
        if self.prepare_session(statement.effects.parts(), at, output) {
            return Name::OthersSequences;
        }
        output.flush(at);
        self.ensure_present(&statement, output.out);
        self.pipeline.note_effects(&statement.effects);
        Name::Server(Statement::server_name(statement.id).into_bytes())
    }
}

#[cfg(test)]
mod tests;
