//! How a command of ours enters a server or a pooler.

use std::sync::Arc;

use crate::auth::{Password, ServerSecret};
use crate::net::endpoint::Dialing;
use crate::net::tls::Connector;

/// The password in PGPASSWORD, as libpq has it.
pub(super) fn secret() -> Arc<ServerSecret> {
    Arc::new(match std::env::var("PGPASSWORD") {
        Ok(password) => ServerSecret::plain(Password::new(&password)),
        Err(_) => ServerSecret::None,
    })
}

/// With TLS where the other side has it.
pub(super) fn dialing() -> Dialing {
    Dialing { tls: Connector::opportunistic(), ..Dialing::default() }
}
