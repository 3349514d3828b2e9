//! [`Model`]: where the answer to a step ends, so that nobody has to wait for silence.
//!
//! Mostly the messages say it: as many ReadyForQuery as there are Query, Sync and FunctionCall, or the
//! last answer in front of a Flush. Where only the server knows (a Query that is skipped after an error, a
//! Sync in the middle of COPY data), [`MARK`] is sent behind the step: its answer cannot be mistaken.

use super::script::Request;
use crate::support::Message;

/// So many Closes of nothing, then Sync; nobody else closes so much in a row.
const MARK: usize = 7;

/// When all has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// So many ReadyForQuery.
    Ready(usize),
    /// So many ReadyForQuery, then the answers to so many requests or an error.
    Flushed { readies: usize, answers: usize },
    /// So many ReadyForQuery, the last of which may be a CopyInResponse.
    Copying(usize),
    /// The answer to the mark.
    Mark,
    /// The end of the connection.
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Copying {
    #[default]
    No,
    /// A simple Query owes its ReadyForQuery.
    Simple,
    Extended,
}

/// What the client side knows of its connection between two steps.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Requests sent behind the last Sync whose answers were not waited for.
    pending: usize,
    batch_open: bool,
    /// An error was told, and the Sync is still to be sent.
    skipping: bool,
    copying: Copying,
    /// Some statement is a COPY FROM STDIN, so that any Execute may begin one.
    has_copy_statement: bool,
}

impl Model {
    /// Where the answer to these messages will end.
    pub fn end(&mut self, requests: &[Request]) -> End {
        let only_data = requests.iter().all(|request| matches!(request, Request::CopyData(_)));
        if only_data {
            return End::Ready(0);
        }
        let mut readies = usize::from(self.copying == Copying::Simple);
        let mut certain = true;
        for request in requests {
            let in_copy = self.copying != Copying::No;
            match request {
                Request::Terminate => return End::Closed,
                Request::CopyData(_) | Request::Flush => {}
                Request::CopyDone | Request::CopyFail(_) => self.copying = Copying::No,
                Request::Query(_) | Request::FunctionCall { .. } => {
                    certain &= !in_copy && !self.batch_open;
                    self.batch_open = false;
                    self.pending = 0;
                    readies += 1;
                    if request.starts_copy() {
                        self.copying = Copying::Simple;
                    }
                }
                Request::Sync => {
                    certain &= !in_copy;
                    self.batch_open = false;
                    self.skipping = false;
                    self.pending = 0;
                    readies += 1;
                }
                _ => {
                    certain &= !in_copy;
                    self.batch_open = true;
                    self.pending += 1;
                    self.has_copy_statement |= request.starts_copy();
                    if self.has_copy_statement && matches!(request, Request::Execute { .. }) {
                        self.copying = Copying::Extended;
                    }
                }
            }
        }
        let last = requests.last();
        match (certain, self.copying) {
            (false, _) => End::Mark,
            (true, Copying::Simple) if matches!(last, Some(Request::Query(_))) => End::Copying(readies),
            (true, Copying::Simple) => End::Mark,
            (true, _) if !self.batch_open => End::Ready(readies),
            (true, _) if last == Some(&Request::Flush) && !self.skipping => {
                End::Flushed { readies, answers: self.pending }
            }
            (true, Copying::Extended) => End::Mark,
            (true, _) => End::Ready(readies),
        }
    }

    /// What is sent behind the step.
    pub fn mark(end: End) -> Vec<u8> {
        if end != End::Mark {
            return Vec::new();
        }
        let mut mark = vec![Request::CopyDone, Request::Sync];
        mark.extend(std::iter::repeat_n(Request::ClosePortal("none".to_owned()), MARK));
        mark.push(Request::Sync);
        mark.iter().flat_map(Request::bytes).collect()
    }

    /// Notes what PostgreSQL said.
    pub fn heard(&mut self, end: End, heard: &Heard) {
        match end {
            End::Flushed { .. } => {
                self.pending = 0;
                self.skipping = heard.error;
                self.copying = if heard.copy_in { Copying::Extended } else { Copying::No };
            }
            End::Copying(_) => self.copying = if heard.copy_in { Copying::Simple } else { Copying::No },
            End::Mark => {
                let has_copy_statement = self.has_copy_statement;
                *self = Model { has_copy_statement, ..Model::default() };
            }
            End::Ready(_) | End::Closed => {}
        }
    }
}

/// What was said so far to one step.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    readies: usize,
    /// Answers and errors behind the last ReadyForQuery.
    answers: usize,
    error: bool,
    copy_in: bool,
    closes_in_a_row: usize,
    marked: bool,
}

impl Heard {
    pub fn hear(&mut self, message: &Message) {
        match message.tag {
            b'Z' => {
                let marked = self.closes_in_a_row == MARK;
                *self = Heard { readies: self.readies + 1, marked, ..Heard::default() };
            }
            b'3' => {
                self.answers += 1;
                self.closes_in_a_row += 1;
                return;
            }
            b'E' => {
                self.error = true;
                self.copy_in = false;
            }
            b'G' => {
                self.answers += 1;
                self.copy_in = true;
            }
            b'1' | b'2' | b'n' | b'T' | b'C' | b'I' | b's' => {
                self.answers += 1;
                self.copy_in = false;
            }
            _ => {}
        }
        self.closes_in_a_row = 0;
    }

    /// Whether that was all.
    pub fn is_all(&self, end: End) -> bool {
        match end {
            End::Ready(readies) => self.readies >= readies,
            End::Flushed { readies, answers } => {
                self.readies >= readies && (self.error || self.answers >= answers)
            }
            End::Copying(readies) => self.readies >= readies || (self.readies + 1 == readies && self.copy_in),
            End::Mark => self.marked,
            End::Closed => false,
        }
    }
}
