//! The tests that assert milliseconds of a whole cluster: nothing else runs meanwhile.

mod drill;
mod events;
mod failover;
mod operator;
mod support;
