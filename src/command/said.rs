//! Lines for the one who runs a command by hand.
//!
//! `println!` and `eprintln!` panic when nobody reads any more, as in `pgweir switchover … | head -1`: in the middle of a
//! switchover that would leave clients held, and a cluster moved or not.

use std::io::{self, Write};

/// A line on standard output. Without a reader it is lost, and nothing else changes.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line on standard error. Without a reader it is lost, and nothing else changes.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
