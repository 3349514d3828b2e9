//! pgweir: a connection pooler for PostgreSQL that follows the primary.
//!
//! A weir holds a river back and lets it through, evenly: thousands of clients share a few server
//! connections, and when the primary moves, the queries wait instead of failing.
//!
//! # The map of the code, in reading order
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 0 | [`wire`], [`error`], [`config`], [`metrics`], [`log`] | bytes, the errors a client sees, the settings, the measurements, the log's lines |
//! | 1 | [`protocol`] | what a conversation means: requests, answers, statements, parameters, session state |
//! | 1, 2 | [`topology`] | where: which server plays which role now, whether it may be written to, and how the cluster is; what Kubernetes says of it |
//! | 1 | [`route`] | which role of a cluster a client is sent to |
//! | 1 | [`sql`] | what kind of statement is this? |
//! | 1 | [`auth`] | who may: logins as state machines, SCRAM both ways |
//! | 1, 2 | [`pool`] | who waits: the ledger of a pool, and its asynchronous face |
//! | 2 | [`net`] | a worker's event loop; sockets and TLS |
//! | 2 | [`server`] | one logged-in connection to PostgreSQL |
//! | 3 | [`admin`] | the console: command to table; the metrics page |
//! | 3 | [`session`] | who asks: one client, from accept to goodbye |
//! | 3 | [`worker`], [`listener`], [`limits`] | the data plane's threads; accept and hand over; open files |
//! | 3 | [`follow`] | one task for each cluster: who is the primary now, and who is fresh enough |
//! | 4 | [`process`] | start, signals, reload, drain, exit |
//! | 4 | [`command`] | what an operator runs by hand: the demo, a switchover, whether all is green |

// They panic without a reader: see `command::said`.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod admin;
pub mod auth;
pub mod command;
pub mod config;
pub mod error;
pub mod follow;
pub mod limits;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod net;
pub mod pool;
pub mod process;
pub mod protocol;
pub mod route;
pub mod server;
pub mod session;
pub mod sql;
pub mod topology;
pub mod wire;
pub mod worker;
