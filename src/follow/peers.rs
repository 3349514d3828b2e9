//! Our peers, as the EndpointSlices of the Service `peers_service` say: [`watch`]. It finds them and no more;
//! who is asked is [`session::peers`](crate::session::peers)' matter.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::source::RETRY;
use crate::config::peer_id_of_pod;
use crate::session::peers::PeerAddress;
use crate::session::plane::Shared;
use crate::topology::kube::{Kubernetes, ServiceEvent};
use crate::topology::pods::Backend;

/// Keeps the list of watched peers up to date. While the API is away the last list counts. Returns at once
/// without `peers_service`, and never with it.
pub async fn watch(shared: Arc<Shared>) {
    let config = shared.config.load_full();
    let Some(service) = &config.settings.peers_service else { return };
    let mut trouble = None;
    let kubernetes = loop {
        match Kubernetes::infer().await {
            Ok(kubernetes) => break kubernetes,
            Err(error) => say(service, &mut trouble, error.to_string()),
        }
        tokio::time::sleep(RETRY).await;
    };
    let (events, mut event_ends) = mpsc::channel(1);
    let following = kubernetes.follow_service(service, config.settings.listen_port, events);
    let listening = async {
        while let Some(event) = event_ends.recv().await {
            match event {
                ServiceEvent::Backends(backends) => {
                    trouble = None;
                    enter(&shared, service, &backends);
                }
                ServiceEvent::Unseen(reason) => say(service, &mut trouble, reason),
            }
        }
    };
    tokio::join!(following, listening);
}

/// Says what is wrong, once: it is tried again and again.
fn say(service: &str, last: &mut Option<String>, reason: String) {
    if last.as_ref() != Some(&reason) {
        tracing::warn!("peers of service {service} cannot be watched: {reason}");
        *last = Some(reason);
    }
}

fn enter(shared: &Shared, service: &str, backends: &[Backend]) {
    let peer = |backend: &Backend| PeerAddress {
        id: backend.uid.as_deref().map(peer_id_of_pod),
        address: backend.address,
    };
    let peers: Vec<PeerAddress> = backends.iter().map(peer).collect();
    if **shared.peers.watched.load() != peers {
        tracing::info!("peers of service {service}: pods={}", peers.len());
        shared.peers.watched.store(Arc::new(peers));
    }
}
