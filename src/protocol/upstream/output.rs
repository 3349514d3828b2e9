//! What is written to a server: the client's own bytes, and messages with a name of ours in them.

use crate::protocol::statements::Statement;
use crate::wire::HEADER_LENGTH;

/// Bytes to a server: the run of input not yet copied, and where edited bytes go.
pub(super) struct Output<'a> {
    pub(super) input: &'a [u8],
    pub(super) out: &'a mut Vec<u8>,
    pub(super) run: usize,
}

impl Output<'_> {
    /// Makes `out` hold everything before `at`.
    pub(super) fn flush(&mut self, at: usize) {
        self.out.extend_from_slice(&self.input[self.run..at]);
        self.run = at;
    }
}

/// `length` is the whole message's, its type byte included.
pub(super) fn write_header(tag: u8, length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length - 1).expect("a message of ours is below 2 GB: its parts were");
    out.push(tag);
    out.extend_from_slice(&length.to_be_bytes());
}

pub(super) fn write_parse(id: u64, definition: &[u8], out: &mut Vec<u8>) {
    let name = Statement::server_name(id);
    write_header(b'P', HEADER_LENGTH + name.len() + 1 + definition.len(), out);
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.extend_from_slice(definition);
}

/// What a server answers behind all that it owes.
pub fn close_and_sync(name: &str, out: &mut Vec<u8>) {
    write_object(b'C', name.as_bytes(), out);
    write_header(b'S', HEADER_LENGTH, out);
}

/// Describe or Close of a statement.
pub(super) fn write_object(tag: u8, name: &[u8], out: &mut Vec<u8>) {
    write_header(tag, HEADER_LENGTH + 1 + name.len() + 1, out);
    out.push(b'S');
    out.extend_from_slice(name);
    out.push(0);
}
