//! WHO MAY. Logins as state machines, both ways: no IO, no clock, and chance is an argument.
//!
//! [`ClientLogin`] lets a client in; read it first. [`ServerLogin`] gets us into PostgreSQL. Between
//! them stand one user's [`Credentials`], and the [`Proof`] of what the client's login showed:
//! [`Credentials::server_secret`] says what the server is given.
//!
//! Bodies of messages come from outside and may hold anything; they never cause a panic, and what
//! is kept of them is bounded. Secrets are compared in constant time and never printed.

mod client_login;
pub mod hba;
pub mod ldap;
mod md5;
mod scram;
mod secret;
mod server_login;

pub use client_login::{ClientLogin, Method, Proof, ask_for_password, password_of};
pub use scram::{ChannelBinding, ScramError, ScramKey};
pub use secret::{
    Credentials, Likeness, Md5Digest, MockKey, Password, PlainServerSecret, ScramSecret, ScramSettings,
    Secret, ServerSecret,
};
pub use server_login::{AuthError, ServerLogin};

/// How far a login is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The other side is to speak next.
    Continue,
    /// Success.
    Done(T),
}

#[cfg(test)]
mod tests;
