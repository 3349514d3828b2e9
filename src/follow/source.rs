//! What a cluster's source says, on its way to the follower: Kubernetes' API, as soon as there is a way
//! to it, and what is left to go by when it lets us see nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::{Cluster, Host};
use crate::topology::kube::{Kubernetes, SourceEvent};
use crate::topology::volume::Volume;
use crate::topology::{Member, Named, Observation, Place};

/// Pause between two attempts to find a way to the API: a kubeconfig or a token may still come.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// How often our own zone is asked for, and the first pause in between, which doubles: four minutes in all.
const ZONE_ATTEMPTS: u32 = 10;
const ZONE_PAUSE: Duration = Duration::from_millis(250);

/// How often the sizes of volumes are asked for: they are enlarged by hand.
const VOLUMES_EVERY: Duration = Duration::from_secs(60);

/// What the source has to say.
#[derive(Debug)]
pub(super) enum News {
    /// Of its cluster.
    Event(SourceEvent),
    /// Of ourselves: our own zone.
    OwnZone(Arc<str>),
    /// How large the volumes with WAL are, by pod; or why that is not known.
    Volumes(Result<BTreeMap<Arc<str>, Volume>, String>),
}

/// Says what Kubernetes' API says of the cluster, until the receiver is gone.
pub(super) async fn follow_kubernetes(cluster: Cluster, wants_zone: bool, news: mpsc::Sender<News>) {
    let kubernetes = loop {
        match Kubernetes::infer().await {
            Ok(kubernetes) => break kubernetes,
            Err(error) => {
                let event = News::Event(SourceEvent::Unreachable(error.to_string()));
                if news.send(event).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    let find_zone = async {
        if wants_zone && let Some(zone) = find_own_zone(&kubernetes).await {
            // Nobody listens any more: then nobody misses it.
            let _ = news.send(News::OwnZone(zone)).await;
        }
    };
    let look_at_volumes = async {
        loop {
            if news.send(News::Volumes(kubernetes.volumes(&cluster).await)).await.is_err() {
                return;
            }
            tokio::time::sleep(VOLUMES_EVERY).await;
        }
    };
    let (events, mut event_ends) = mpsc::channel(1);
    let pass_on = async {
        while let Some(event) = event_ends.recv().await {
            if news.send(News::Event(event)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(kubernetes.follow(cluster.clone(), events), pass_on, find_zone, look_at_volumes);
}

/// Our own zone, once an EndpointSlice has our address: a pod that has just started is in none yet. `None` for
/// a pod that is behind no Service, or whose slices say no zone.
async fn find_own_zone(kubernetes: &Kubernetes) -> Option<Arc<str>> {
    let address = own_address()?;
    let mut pause = ZONE_PAUSE;
    for _ in 0..ZONE_ATTEMPTS {
        if let Some(zone) = kubernetes.own_zone(address).await {
            return Some(zone);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    tracing::info!("our own zone is not known: no EndpointSlice has {address} with one");
    None
}

/// The address that we are known by inside the Kubernetes cluster. Nothing is sent: connecting a UDP socket
/// only chooses the way.
fn own_address() -> Option<IpAddr> {
    let api = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let any = if api.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((api.as_str(), 443)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// CloudNativePG's Services, for when the API lets us see nothing: the operator keeps `NAME-rw` at the
/// primary, and the server behind it says whether that is true.
pub(super) fn by_services(cluster: &Cluster) -> Observation {
    let service = |suffix: &str| {
        let name = format!("{}-{suffix}", cluster.object_name());
        let host = match &cluster.namespace {
            Some(namespace) => format!("{name}.{namespace}"),
            None => name.clone(),
        };
        Member {
            name: name.into(),
            place: Place { uid: None, host: Host::Tcp(host), port: cluster.port },
            zone: None,
            ready: true,
            terminating: false,
            fenced: None,
        }
    };
    let primary = service("rw");
    Observation {
        incarnation: None,
        primary: Named::Member(Arc::clone(&primary.name)),
        members: vec![primary, service("ro")],
        system_id: None,
        timeline: None,
        phase: None,
    }
}
