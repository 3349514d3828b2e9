//! [`Scene`]: a real cluster whose servers say themselves who the primary is, and a pooler that asks them.

use super::ledger::Ledger;
use super::pooler::{Config, Pooler};
use super::raw::{Address, Login, Raw};
use super::replicas::Replicas;
use super::scene::ONE_AT_A_TIME;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Writing clients of a failover; twice as many as there are server connections.
pub const CLIENTS: usize = 2 * SERVERS;

/// The size of a pool.
pub const SERVERS: usize = 4;

/// A cluster, and a pooler that follows it.
pub struct Scene {
    pub replicas: Replicas,
    pub pooler: Pooler,
    _turn: MutexGuard<'static, ()>,
}

/// `rw`, `ro` and `r` are databases of the roles; `app` is rw.
pub fn following(replicas: &Replicas, source: &str) -> Config {
    let cluster =
        format!("\n[clusters]\nc1 = source={source} hosts={} port={}\n", replicas.hosts(), replicas.port);
    Pooler::config()
        .database_line("app = cluster=c1 role=rw dbname=app")
        .database_line("ro = cluster=c1 role=ro dbname=app")
        .setting("monitor_user", "app")
        .pool_size(u32::try_from(SERVERS).expect("few"))
        .sections(&cluster)
}

impl Scene {
    pub async fn start() -> Scene {
        Scene::with(|config| config).await
    }

    pub async fn with(change: impl FnOnce(Config) -> Config) -> Scene {
        Scene::of("probe", change).await
    }

    pub async fn of(source: &str, change: impl FnOnce(Config) -> Config) -> Scene {
        let turn = ONE_AT_A_TIME.lock().await;
        let replicas = Replicas::start().await;
        Ledger::prepare(&replicas).await;
        let pooler = change(following(&replicas, source)).start().await;
        Scene { replicas, pooler, _turn: turn }
    }

    /// The best standby becomes the primary. Returns it, and the moment at which it has taken a write.
    pub async fn take_over(&mut self) -> (usize, Instant) {
        let best = self.replicas.best_standby().await;
        let accepted = first_write(self.replicas.tcp(best));
        self.replicas.promote(best).await;
        (best, accepted.await.expect("it is tried until it works"))
    }

    pub async fn server_of(&self, client: &mut Raw) -> String {
        client.query("SELECT host(inet_server_addr())").await.value()
    }

    pub async fn client_of(&self, database: &str) -> Raw {
        Raw::login(&self.pooler.tcp(), &Login::new("app", database)).await
    }
}

/// Writes around the pooler as soon as the server lets it.
fn first_write(server: Address) -> JoinHandle<Instant> {
    tokio::spawn(async move {
        let mut client = Raw::login(&server, &Login::new("postgres", "app")).await;
        while client.query("INSERT INTO ledger VALUES (-1)").await.count(b'E') > 0 {
            sleep(Duration::from_millis(2)).await;
        }
        Instant::now()
    })
}
