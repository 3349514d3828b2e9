//! The tests that assert milliseconds of a whole cluster: nothing else runs meanwhile.

mod events;
mod failover_times;
mod operator_times;
mod support;
