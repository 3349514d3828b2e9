//! pgweir: a connection pooler for PostgreSQL that follows the primary.
//!
//! A weir holds a river back and lets it through, evenly: thousands of clients share a few server
//! connections, and when the primary moves, the queries wait instead of failing.
//!
//! # The map of the code, in reading order
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 0 | [`wire`], [`error`], [`config`] | bytes, the errors a client sees, the settings |
//! | 4 | [`command`] | what an operator runs by hand: the demo |

pub mod command;
pub mod error;
pub mod wire;
