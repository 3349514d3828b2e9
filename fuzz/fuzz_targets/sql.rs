//! Any text as SQL: the lexer takes it, and what it may change does not depend on the way it was looked at.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::sql::prepared::{is_only_prepare, naming};
use pgweir::sql::state::touched;
use pgweir::sql::statements;

fuzz_target!(|sql: &[u8]| {
    let at_once = touched(sql);
    // An empty statement in front makes it go the long way.
    let at_length = touched(&[b";", sql].concat());
    assert_eq!(at_once, at_length);
    assert_eq!(statements(sql), statements(&[b";", sql].concat()));
    if let Some(naming) = naming(sql) {
        assert!(!sql[naming.place].is_empty());
        assert_eq!(statements(sql).len(), 1);
    }
    if is_only_prepare(sql) {
        assert_eq!(statements(sql).len(), 1);
    }
});
