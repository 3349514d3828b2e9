//! The demo's load: clients that write one row after another through pgweir, and what they meet. A client
//! whose connection ends comes back at once, as an application's does. Read [`Load`] first.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::auth::ServerSecret;
use crate::command::postgres::{DATABASE, USER};
use crate::config::Host;
use crate::net::endpoint::Endpoint;
use crate::server::Session;
use crate::server::login::Recipe;

const CLIENTS: u64 = 50;

/// Each client writes so often: together a thousand rows a second.
const PAUSE: Duration = Duration::from_millis(50);

/// Before a client comes back whose login failed.
const LOGIN_PAUSE: Duration = Duration::from_millis(200);

/// What the clients met.
#[derive(Debug, Default)]
struct Counts {
    rows: AtomicU64,
    errors: AtomicU64,
    longest_us: AtomicU64,
}

/// The running clients. Dropping it ends them.
pub(super) struct Load {
    counts: Arc<Counts>,
    _clients: JoinSet<()>,
}

/// What the clients have met since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Met {
    /// Rows that were acknowledged, from the start on.
    pub(super) rows: u64,
    /// Errors, from the start on.
    pub(super) errors: u64,
    /// The longest time that one row took, since the last look.
    pub(super) longest: Duration,
}

impl Load {
    /// Clients at this port; the table `demo_rows` must be there.
    pub(super) fn start(port: u16) -> Load {
        let counts = Arc::new(Counts::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(client(number, port, Arc::clone(&counts)));
        }
        Load { counts, _clients: clients }
    }

    /// What the clients have met.
    pub(super) fn look(&self) -> Met {
        Met {
            rows: self.counts.rows.load(Ordering::Relaxed),
            errors: self.counts.errors.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.counts.longest_us.swap(0, Ordering::Relaxed)),
        }
    }
}

async fn client(number: u64, port: u16, counts: Arc<Counts>) {
    let session = Session::untracked();
    let endpoint = Endpoint { host: Host::Tcp(Ipv4Addr::LOCALHOST.to_string()), port };
    let recipe = Recipe::own(endpoint, USER, DATABASE, Arc::new(ServerSecret::None));
    let sql = format!("INSERT INTO demo_rows (client) VALUES ({number})");
    loop {
        let Ok((mut connection, _)) = recipe.open(&session, 0, 0).await else {
            counts.errors.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(LOGIN_PAUSE).await;
            continue;
        };
        loop {
            let began = Instant::now();
            let outcome = connection.run(&sql, &session).await;
            counts.longest_us.fetch_max(crate::metrics::micros(began.elapsed()), Ordering::Relaxed);
            if outcome.is_err() {
                counts.errors.fetch_add(1, Ordering::Relaxed);
                break;
            }
            counts.rows.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
}
