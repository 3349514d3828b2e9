//! WHO WAITS.
pub mod state;
