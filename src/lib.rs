//! pgweir: a connection pooler for PostgreSQL that follows the primary.
//!
//! A weir holds a river back and lets it through, evenly: thousands of clients share a few server
//! connections, and when the primary moves, the queries wait instead of failing.
//!
//! # The map of the code, in reading order
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 0 | [`wire`], [`error`], `config`, [`metrics`], [`log`] | bytes, the errors a client sees, the settings, the measurements, the log's lines |
//! | 3 | [`admin`] | the console: command to table; the metrics page |

pub mod admin;
pub mod error;
pub mod log;
pub mod metrics;
pub mod wire;
