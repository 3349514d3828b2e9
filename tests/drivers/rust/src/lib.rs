//! What the two programs have in common; see `checks.py` beside for their parts.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};

static CHECKS: AtomicUsize = AtomicUsize::new(0);

/// Panics with the text unless both are equal.
#[track_caller]
pub fn check<T: PartialEq<U> + Debug, U: Debug>(got: T, expected: U, what: &str) {
    CHECKS.fetch_add(1, Ordering::Relaxed);
    assert!(got == expected, "{what}: got {got:?}, expected {expected:?}");
}

/// The part that the command line names.
pub fn part() -> String {
    std::env::args().nth(1).unwrap_or_default()
}

/// The address, as the test gives it.
pub fn dsn() -> String {
    std::env::var("PGWEIR_DSN").expect("the test says where PostgreSQL is")
}

/// Says that all is well.
pub fn done() {
    println!("ok {} checks", CHECKS.load(Ordering::Relaxed));
}
