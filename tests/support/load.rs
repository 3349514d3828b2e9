//! [`Load`]: clients that keep asking while a test changes something, and none of which may see an error.

use super::message::{extended, query, run_of, sync};
use super::{Pooler, eventually};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Clients that keep asking until they are told to stop, and report what went wrong.
pub struct Load {
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<u32>>,
}

impl Load {
    /// This many clients of the database `app`.
    pub async fn start(pooler: &Pooler, count: u32) -> Load {
        let (stop, stopped) = watch::channel(false);
        let mut clients = Vec::new();
        for number in 0..count {
            let (mut client, stopped) = (pooler.client().await, stopped.clone());
            clients.push(tokio::spawn(async move {
                let mut served = 0;
                while !*stopped.borrow() {
                    let text = format!("{number}-{served}");
                    let request = match served % 2 {
                        0 => query(&format!("SELECT '{text}'")),
                        _ => run_of([extended("SELECT $1::text", &[&text]), sync()]),
                    };
                    assert_eq!(client.ask(request).await.value(), text);
                    served += 1;
                }
                served
            }));
        }
        Load { stop, clients }
    }

    /// Stops the clients. Panics if one of them saw an error. Returns how many queries were answered.
    pub async fn end(self) -> u32 {
        self.stop.send(true).expect("the clients listen until the end");
        let mut served = 0;
        for client in self.clients {
            served += client.await.expect("no client saw an error");
        }
        served
    }
}

/// Queries that clients of the database `app` have sent since the start.
pub async fn queries(pooler: &Pooler) -> u64 {
    let stats = pooler.admin("SHOW STATS").await;
    let ours = stats.iter().find(|row| row["database"] == "app");
    ours.map_or(0, |row| row["total_query_count"].parse().expect("a number"))
}

/// Waits until the clients have been served some more.
pub async fn goes_on(pooler: &Pooler) {
    let before = queries(pooler).await;
    eventually("queries go on", async || queries(pooler).await > before + 20).await;
}
