//! What the client has sent and the server has not settled yet: [`Flight`]. When the connection is lost
//! it tells whether the same bytes may be sent to another server, and whether it is known that they did
//! nothing.

use std::collections::HashMap;

use super::statements::ClientStatements;
use crate::sql::{self, Kind};
use crate::wire::frontend::{self, Object};
use crate::wire::{FrontendTag, HEADER_LENGTH};

/// More than so many bytes are not kept: then nothing is sent again, and the fate is unknown.
pub const FLIGHT_MAX: usize = 64 * 1024;

/// More bytes of its statements than that are not looked at, which may have been prepared long before and be run often:
/// then it is not known what they do.
const LOOK_MAX: usize = 1024 * 1024;

/// A flight's buffer of more than this is given back when it is settled.
const KEPT_MAX: usize = 8 * 1024;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Flight {
    bytes: Vec<u8>,
    overflow: bool,
    /// A byte of an answer has gone to the client.
    answered: bool,
    /// It began outside of a transaction.
    first: bool,
    /// A byte of it has gone to the server.
    written: bool,
}

impl Flight {
    /// Notes what the client's bytes were, before any of them was rewritten. `outside` is whether no
    /// transaction is open as far as the server has said; `inside` is whether they begin inside of a message,
    /// as the data of a COPY may that has failed: nobody could read them from there.
    #[inline]
    pub fn sent(&mut self, bytes: &[u8], outside: bool, inside: bool) {
        if self.is_settled() {
            self.first = outside;
            self.answered = false;
            self.written = false;
            self.overflow = inside;
        }
        if self.bytes.len() + bytes.len() > FLIGHT_MAX {
            self.overflow = true;
        } else if !self.overflow {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Something of it has gone to the server.
    #[inline]
    pub fn note_written(&mut self) {
        self.written = !self.is_settled();
    }

    /// The bytes, if they began a transaction and none of them has gone to the server: whatever they are,
    /// they may be sent to another one.
    pub fn unsent(&self) -> Option<&[u8]> {
        (self.first && !self.written && !self.overflow && !self.is_settled()).then_some(&self.bytes[..])
    }

    /// Something of the answer has gone to the client.
    #[inline]
    pub fn note_answer(&mut self) {
        self.answered = true;
    }

    /// We have answered the first message ourselves, a Parse or a Close: it is not sent again.
    pub fn drop_answered(&mut self) {
        match frontend::header(&self.bytes) {
            Ok(Some((FrontendTag::Parse | FrontendTag::Close, length)))
                if length <= self.bytes.len() && !self.overflow =>
            {
                drop(self.bytes.drain(..length));
            }
            _ => self.answered = true,
        }
    }

    /// Everything is answered.
    #[inline]
    pub fn settle(&mut self) {
        self.bytes.clear();
        self.overflow = false;
        if self.bytes.capacity() > KEPT_MAX {
            self.bytes = Vec::new();
        }
    }

    /// The bytes, to be sent elsewhere.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }

    /// Whether it begins with a Query of the simple protocol.
    pub fn is_simple(&self) -> bool {
        self.bytes.first() == Some(&(FrontendTag::Query as u8))
    }

    /// Whether nothing is under way.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.bytes.is_empty() && !self.overflow
    }

    /// The bytes, if they may be sent again after the server has refused the first of them: the one
    /// statement that begins a transaction, of which nothing was answered. CALL, DO and VACUUM may have
    /// committed in the middle, COPY has had its data, and of several statements some may be done.
    pub fn resendable(&self, client: Option<&ClientStatements>) -> Option<&[u8]> {
        if !self.is_repeatable() {
            return None;
        }
        match self.kinds(client)?.as_slice() {
            [Kind::Call | Kind::Do | Kind::Copy | Kind::Several] => None,
            // A batch that executes nothing, as a driver's that prepares a statement, does nothing.
            [] | [_] => Some(&self.bytes),
            _ => None,
        }
    }

    /// Whether the bytes may be sent again, whatever they are, when the server has not come to them.
    pub fn is_repeatable(&self) -> bool {
        self.first && !self.answered && !self.overflow && !self.is_settled()
    }

    /// Whether nobody can know whether it is committed: a COMMIT, or a statement outside of a
    /// transaction that may write.
    pub fn is_unknown(&self, client: Option<&ClientStatements>) -> bool {
        if self.is_settled() {
            return false;
        }
        let Some(kinds) = self.kinds(client) else { return true };
        let mut open = !self.first;
        kinds.iter().any(|kind| match kind {
            Kind::Begin => {
                open = true;
                false
            }
            Kind::Rollback => {
                open = false;
                false
            }
            Kind::Commit => true,
            Kind::Read => false,
            Kind::Call | Kind::Do | Kind::Copy | Kind::Several | Kind::Write => !open,
        })
    }

    /// The statements that are under way; `None` when that is not known.
    fn kinds(&self, client: Option<&ClientStatements>) -> Option<Vec<Kind>> {
        if self.overflow {
            return None;
        }
        let mut kinds = Vec::new();
        let mut left = LOOK_MAX;
        let mut look = |kinds: &mut Vec<Kind>, text: &[u8]| {
            left = left.checked_sub(text.len())?;
            kinds.extend(sql::statements(text));
            Some(())
        };
        let mut parsed: HashMap<&[u8], &[u8]> = HashMap::new();
        let mut bound: HashMap<&[u8], &[u8]> = HashMap::new();
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let (tag, length) = frontend::header(rest).ok()??;
            // The end of a message that is half sent is still to come: it cannot have been carried out.
            let body = rest.get(HEADER_LENGTH..length)?;
            rest = &rest[length..];
            match tag {
                FrontendTag::Query => look(&mut kinds, body)?,
                FrontendTag::FunctionCall => kinds.push(Kind::Write),
                FrontendTag::Parse => {
                    let parse = frontend::parse(body).ok()?;
                    parsed.insert(parse.name, parse.definition);
                }
                FrontendTag::Bind => {
                    let names = frontend::bind_names(body)?;
                    let known = || definition(client?, names.statement);
                    let found = parsed.get(names.statement).copied().or_else(known);
                    bound.insert(names.portal, found.unwrap_or(b"unknown"));
                }
                FrontendTag::Execute => {
                    let Object::Portal(portal) = portal_of(body) else { return None };
                    // A portal of an earlier flight may do anything.
                    let query = bound.get(portal).copied().unwrap_or(b"unknown");
                    look(&mut kinds, sql::text_of(query))?;
                }
                FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => {
                    kinds.push(Kind::Copy)
                }
                FrontendTag::Describe
                | FrontendTag::Close
                | FrontendTag::Sync
                | FrontendTag::Flush
                | FrontendTag::Password
                | FrontendTag::Terminate => {}
            }
        }
        Some(kinds)
    }
}

fn portal_of(body: &[u8]) -> Object<'_> {
    Object::Portal(body.split(|byte| *byte == 0).next().unwrap_or_default())
}

fn definition<'a>(client: &'a ClientStatements, name: &[u8]) -> Option<&'a [u8]> {
    match name {
        b"" => client.unnamed(),
        name => client.get(name).map(|statement| statement.definition()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::statements::Interner;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn query(sql: &str) -> Vec<u8> {
        message(b'Q', format!("{sql}\0").as_bytes())
    }

    fn extended(sql: &str) -> Vec<u8> {
        let parse = message(b'P', format!("\0{sql}\0\0\0").as_bytes());
        let bind = message(b'B', b"\0\0\0\0\0\0\0\0");
        let execute = message(b'E', b"\0\0\0\0\0");
        [parse, bind, execute, message(b'S', b"")].concat()
    }

    fn flight(bytes: &[u8], outside: bool) -> Flight {
        let mut flight = Flight::default();
        flight.sent(bytes, outside, false);
        flight
    }

    fn check(sql: &str, outside: bool, resendable: bool, unknown: bool) {
        for bytes in [query(sql), extended(sql)] {
            let flight = flight(&bytes, outside);
            assert_eq!(flight.resendable(None).is_some(), resendable, "{sql}: resendable");
            assert_eq!(flight.is_unknown(None), unknown, "{sql}: unknown");
        }
    }

    #[test]
    fn the_first_statement_is_sent_again_and_a_write_outside_a_transaction_is_unknown() {
        check("select 1", true, true, false);
        check("insert into t values (1)", true, true, true);
        check("begin", true, true, false);
        check("call p()", true, false, true);
        check("do 'x'", true, false, true);
        check("create index concurrently i on t (a)", true, false, true);
        check("copy t to stdout", true, false, true);
    }

    #[test]
    fn inside_a_transaction_only_commit_is_unknown() {
        check("insert into t values (1)", false, false, false);
        check("commit", false, false, true);
        check("rollback", false, false, false);
    }

    #[test]
    fn several_statements_are_not_sent_again() {
        let one = flight(&query("insert into t values (1); insert into t values (2)"), true);
        assert_eq!(one.resendable(None), None);
        assert!(one.is_unknown(None));
        let block = flight(&query("begin; insert into t values (1)"), true);
        assert!(!block.is_unknown(None), "without COMMIT it is rolled back");
        let two = flight(&[query("select 1"), query("select 2")].concat(), true);
        assert_eq!(two.resendable(None), None);
    }

    #[test]
    fn a_batch_that_executes_nothing_is_sent_again_and_no_batch_is_not() {
        let parse = [message(b'P', b"s\0insert into t values (1)\0\0\0"), message(b'S', b"")].concat();
        assert!(flight(&parse, true).resendable(None).is_some());
        assert_eq!(flight(&parse, false).resendable(None), None, "a transaction is open");
        let mut settled = flight(&query("begin"), true);
        settled.settle();
        assert_eq!(settled.resendable(None), None, "the transaction that it began is open");
    }

    #[test]
    fn what_was_answered_or_is_too_large_is_not_sent_again() {
        let mut answered = flight(&query("select 1"), true);
        answered.note_answer();
        assert_eq!(answered.resendable(None), None);
        let large = flight(&vec![b'Q'; FLIGHT_MAX + 1], true);
        assert_eq!(large.resendable(None), None);
        assert!(large.is_unknown(None));
        let mut settled = flight(&query("commit"), false);
        settled.settle();
        assert!(!settled.is_unknown(None) && settled.is_settled());
    }

    #[test]
    fn bytes_that_begin_inside_of_a_message_are_not_sent_again() {
        let mut flight = Flight::default();
        flight.sent(b"of a row that is no message", true, true);
        flight.note_written();
        assert!(flight.unsent().is_none() && flight.resendable(None).is_none() && flight.is_unknown(None));
        let mut unwritten = Flight::default();
        unwritten.sent(b"of a row", true, true);
        assert_eq!((unwritten.unsent(), unwritten.is_repeatable()), (None, false));
        unwritten.settle();
        unwritten.sent(&query("select 1"), true, false);
        assert!(unwritten.resendable(None).is_some());
    }

    #[test]
    fn a_long_statement_that_is_run_often_is_not_read_each_time() {
        let definition = format!("select {}1\0\0\0", "1,".repeat(LOOK_MAX / 8));
        let mut client = ClientStatements::default();
        client.insert(b"s", Interner::default().intern(definition.as_bytes(), b""));
        let bind = message(b'B', b"\0s\0\0\0\0\0\0\0");
        let execute = message(b'E', b"\0\0\0\0\0");
        let times = |count: usize| {
            let batch = [bind.clone(), execute.repeat(count), message(b'S', b"")].concat();
            flight(&batch, true)
        };
        assert!(!times(1).is_unknown(Some(&client)), "it reads");
        assert!(times(4000).is_unknown(Some(&client)), "that is not looked at any more");
    }

    #[test]
    fn what_we_answered_ourselves_is_not_sent_again() {
        let parse = message(b'P', b"s\0select 1\0\0\0");
        let rest =
            [message(b'B', b"\0s\0\0\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat();
        let mut known = flight(&[&parse[..], &rest[..]].concat(), true);
        known.drop_answered();
        assert_eq!(known.resendable(None), Some(&rest[..]));
        let mut other = flight(&rest, true);
        other.drop_answered();
        assert_eq!(other.resendable(None), None, "a Bind is never answered by us");
    }

    #[test]
    fn a_portal_of_an_earlier_flight_may_do_anything() {
        let execute = [message(b'E', b"p\0\0\0\0\0"), message(b'S', b"")].concat();
        assert!(flight(&execute, true).is_unknown(None));
        assert!(!flight(&execute, false).is_unknown(None), "inside a transaction it is rolled back");
    }
}
