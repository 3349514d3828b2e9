//! `-R`: we take the place of a running pooler, the [`Predecessor`], which serves its clients to their end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::ServerSecret;
use crate::config::{RESERVED_DATABASE, Settings};
use crate::net::endpoint::Endpoint;
use crate::server::login::Recipe;
use crate::server::{ServerConnection, Session};

/// Longest time for an answer of its console.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A pooler that listens where we are to listen, and whose console takes us for its administrator.
pub(super) struct Predecessor {
    console: ServerConnection,
    session: Session,
}

impl Predecessor {
    /// Logs in at the console on the Unix socket, where the same system user may. `None` when nobody is there.
    pub(super) async fn find(settings: &Settings) -> Option<Predecessor> {
        let endpoint = Endpoint { host: settings.default_host()?, port: settings.listen_port };
        let session = Session::untracked();
        let own = Recipe::own(endpoint, RESERVED_DATABASE, RESERVED_DATABASE, Arc::new(ServerSecret::None));
        let recipe = Recipe { timeout: Some(ANSWER_MAX), ..own };
        match recipe.open(&session, 0, 0).await {
            Ok((console, _)) => Some(Predecessor { console, session }),
            Err(error) => {
                tracing::debug!("no console of an old process: {error}");
                None
            }
        }
    }

    /// It accepts nobody any more, and ends when its last client has gone.
    pub(super) async fn retire(mut self) -> io::Result<()> {
        let told = self.console.run("SHUTDOWN WAIT_FOR_CLIENTS", &self.session);
        let answer = tokio::time::timeout(ANSWER_MAX, told).await.map_err(io::Error::from)?;
        answer.map_err(|error| io::Error::other(format!("the old process does not leave: {error}")))
    }
}
