//! The Kubernetes client and its watches: [`Kubernetes::follow`] turns what the API says of one cluster
//! into [`Observation`]s.
//!
//! What the objects mean is said in [`cnpg`], [`patroni`] and [`label`](super::label); here they are only fetched and kept.
//! The API may be away for as long as it likes: the last observation stays the caller's, and an event
//! says that it is not confirmed any more. Nothing is ever written, and only `list` and `watch` are needed,
//! for the objects that are named in [`follow`](Kubernetes::follow).

pub mod inspect;
mod known;
pub mod objects;
pub mod operate;
pub mod restore;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, PersistentVolumeClaim, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::known::{Known, Need, News};
use super::volume::{self, Volume};
use super::{Observation, cnpg, patroni, pods};
use crate::config::{Cluster, SourceKind};

/// Longest time to connect to the API.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Longest time to find out our own zone.
const ZONE_LIMIT: Duration = Duration::from_secs(5);

/// Longest time to ask for volumes.
const VOLUMES_LIMIT: Duration = Duration::from_secs(10);

/// Most news of the watches that wait to be looked at; then the watches wait.
const NEWS_MAX: usize = 64;

/// What a source has to say of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The newest observation. After one of the others it is sent in any case, even if nothing has changed.
    Observed(Observation),
    /// The API cannot be reached; why. The last observation is not confirmed until the next one.
    Unreachable(String),
    /// The API says that we may not read what we need; in its words. An API server that has just started
    /// says so for a moment too. As with the other: the last observation is not confirmed.
    Denied(String),
}

/// What is said of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent {
    /// These are behind it now.
    Backends(Vec<pods::Backend>),
    /// It cannot be seen, for this reason; what was said last may still be true.
    Unseen(String),
}

/// There is no way to the API: neither a kubeconfig nor a service account, or they cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoApi(String);

impl fmt::Display for NoApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no way to the Kubernetes API: {}", self.0)
    }
}

impl std::error::Error for NoApi {}

/// The way to the API of one Kubernetes. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    namespace: String,
}

impl Kubernetes {
    /// From `KUBECONFIG` (or `~/.kube/config`), else from the pod's service account. Dials nothing yet: the
    /// API may be away now.
    pub async fn infer() -> Result<Self, NoApi> {
        let config = kube::Config::infer().await.map_err(|error| NoApi(error.to_string()))?;
        Self::from_config(config)
    }

    /// From a configuration of the client, whose timeouts are ours then. Must be called within the tokio
    /// runtime that is to do the work.
    pub fn from_config(mut config: kube::Config) -> Result<Self, NoApi> {
        let silence = Duration::from_secs(u64::from(watch::REQUEST_S) + 10);
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.write_timeout = Some(CONNECT_LIMIT);
        config.read_timeout = Some(silence);
        // A connection that lay idle has its whole time for the next answer.
        config.reset_reader_on_write = true;
        // The watches have their own pauses, and want to know at once.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| NoApi(error.to_string()))?;
        Ok(Kubernetes { client, namespace })
    }

    /// Our own namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The availability zone of our own pod, if an EndpointSlice of our namespace has our address and says
    /// one.
    pub async fn own_zone(&self, address: IpAddr) -> Option<Arc<str>> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = timeout(ZONE_LIMIT, slices.list(&ListParams::default())).await;
        match found {
            Ok(Ok(list)) => pods::zone_at(&list.items, &address.to_string()),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// The volumes of this cluster's pods, by pod. Needs list of `pods` and `persistentvolumeclaims`. The error says
    /// what the API says.
    pub async fn volumes(&self, cluster: &Cluster) -> Result<BTreeMap<Arc<str>, Volume>, String> {
        let namespace = cluster.namespace.as_ref().unwrap_or(&self.namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let asked = async {
            let claims = claims.list(&ListParams::default()).await?;
            let pods = pods_of(&self.client, namespace, &selectors(cluster)).await?;
            Ok::<_, kube::Error>(volume::volumes(&pods, &claims.items))
        };
        match timeout(VOLUMES_LIMIT, asked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", VOLUMES_LIMIT.as_secs())),
        }
    }

    /// Says what is behind a Service of our own namespace each time that has changed, until the receiver is
    /// dropped. Of its ports, that of this number is meant, else the first.
    ///
    /// Needs list and watch of `endpointslices`. Tries again for ever when the API is away or refuses.
    pub async fn follow_service(&self, service: &str, port: u16, events: mpsc::Sender<ServiceEvent>) {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let selection = labelled(&format!("kubernetes.io/service-name={service}"));
        let as_event = |word| match word {
            watch::Word::All(slices) => ServiceEvent::Backends(pods::backends(&slices, port)),
            watch::Word::Blind(trouble) => ServiceEvent::Unseen(trouble.reason().to_owned()),
        };
        watch::keep(slices, selection, as_event, events).await;
    }

    /// Says what the API says of this cluster, until the receiver is dropped. Waits and tries again for ever
    /// when the API is away or refuses; never ends by itself, except for a source that is not in Kubernetes.
    ///
    /// | source | needs list and watch of | and uses, if it may |
    /// |---|---|---|
    /// | cnpg | `clusters.postgresql.cnpg.io` NAME; `pods` | `endpointslices`; `leases` NAME |
    /// | patroni | `endpoints` SCOPE or `configmaps` SCOPE-leader; `pods` | the same kind's SCOPE-config and SCOPE-failover; `endpointslices` |
    /// | label | `pods` | `endpointslices` |
    ///
    /// What is named can be granted by `resourceNames`.
    pub async fn follow(&self, cluster: Cluster, events: mpsc::Sender<SourceEvent>) {
        let mut watches = Watches::new(self, &cluster);
        match cluster.source {
            Some(SourceKind::Cnpg) => watches.cnpg(&cluster),
            Some(SourceKind::Patroni) => watches.patroni(&cluster),
            Some(SourceKind::Label) => watches.label(&cluster),
            Some(SourceKind::Probe | SourceKind::Static) | None => return,
        }
        let Watches { needs, mut news, tasks: _running, .. } = watches;
        let mut known = Known::new(cluster, needs);
        loop {
            let first = tokio::select! {
                first = news.recv() => first,
                () = events.closed() => return,
            };
            let Some((watch, first)) = first else { return };
            known.handle(watch, first, Instant::now());
            // What has come meanwhile goes into the same observation.
            while let Ok((watch, more)) = news.try_recv() {
                known.handle(watch, more, Instant::now());
            }
            if let Some(event) = known.take_event()
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    }
}

/// The watches of one cluster while they are started. Dropping the tasks ends them.
struct Watches {
    client: Client,
    namespace: String,
    needs: Vec<Need>,
    tasks: JoinSet<()>,
    speaker: mpsc::Sender<(usize, News)>,
    news: mpsc::Receiver<(usize, News)>,
}

impl Watches {
    fn new(kubernetes: &Kubernetes, cluster: &Cluster) -> Self {
        let (speaker, news) = mpsc::channel(NEWS_MAX);
        let namespace = cluster.namespace.clone().unwrap_or_else(|| kubernetes.namespace.clone());
        let client = kubernetes.client.clone();
        Watches { client, namespace, needs: Vec::new(), tasks: JoinSet::new(), speaker, news }
    }

    fn cnpg(&mut self, cluster: &Cluster) {
        let name = cluster.object_name();
        let kind = GroupVersionKind::gvk("postgresql.cnpg.io", "v1", "Cluster");
        let resource = ApiResource::from_gvk_with_plural(&kind, "clusters");
        let clusters: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        self.add(Need::Must, clusters, named(name), |found| News::Cluster(known::cluster(found)));
        for selector in selectors(cluster) {
            self.pods(0, &selector);
        }
        self.slices(&cnpg::slices_selector(name));
        let leases: Api<Lease> = self.api();
        self.add(Need::May, leases, named(name), |found| News::Lease(found.into_iter().next()));
    }

    fn patroni(&mut self, cluster: &Cluster) {
        let scope = cluster.object_name();
        for (part, name) in patroni::Kind::Endpoints.names(scope).iter().enumerate() {
            let api: Api<Endpoints> = self.api();
            self.add(record_need(part), api, named(name), move |found| {
                let record = found.into_iter().next().map(|object| object.metadata);
                News::Record(patroni::Kind::Endpoints, part, record)
            });
        }
        for (part, name) in patroni::Kind::ConfigMap.names(scope).iter().enumerate() {
            let api: Api<ConfigMap> = self.api();
            self.add(record_need(part), api, named(name), move |found| {
                let record = found.into_iter().next().map(|object| object.metadata);
                News::Record(patroni::Kind::ConfigMap, part, record)
            });
        }
        for (group, selector) in selectors(cluster).iter().enumerate() {
            self.pods(group, selector);
        }
        self.slices(&patroni::slices_selector(scope));
    }

    /// Kubernetes copies the labels of a Service to its slices, and charts label Services as they label pods.
    fn label(&mut self, cluster: &Cluster) {
        let selector = cluster.selector.as_deref().unwrap_or_default();
        self.pods(0, selector);
        self.slices(selector);
    }

    fn pods(&mut self, group: usize, selector: &str) {
        let api: Api<Pod> = self.api();
        self.add(Need::Must, api, labelled(selector), move |pods| News::Pods(group, pods));
    }

    fn slices(&mut self, selector: &str) {
        let api: Api<EndpointSlice> = self.api();
        self.add(Need::May, api, labelled(selector), News::Slices);
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn add<K>(
        &mut self,
        need: Need,
        api: Api<K>,
        selection: watcher::Config,
        as_news: impl Fn(Vec<K>) -> News + Send + Sync + 'static,
    ) where
        K: kube::Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
        K::DynamicType: Send + Sync,
    {
        let speaker = self.speaker.clone();
        let number = self.needs.len();
        self.needs.push(need);
        let as_news = move |word| match word {
            watch::Word::All(objects) => (number, as_news(objects)),
            // What we may do without and may not read is not there: what it said before must not stay.
            watch::Word::Blind(trouble) if need == Need::May && trouble.is_refusal() => {
                (number, as_news(Vec::new()))
            }
            watch::Word::Blind(trouble) => (number, News::Blind(trouble)),
        };
        self.tasks.spawn(watch::keep(api, selection, as_news, speaker));
    }
}

/// The pods that any of these label selectors chooses, each once, by name.
async fn pods_of(client: &Client, namespace: &str, selectors: &[String]) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut found = BTreeMap::new();
    for selector in selectors {
        let list = api.list(&ListParams::default().labels(selector)).await?;
        found.extend(list.items.into_iter().map(|pod| (pods::name(&pod).to_owned(), pod)));
    }
    Ok(found.into_values().collect())
}

/// The label selectors of the cluster's pods.
fn selectors(cluster: &Cluster) -> Vec<String> {
    match (cluster.source, &cluster.selector) {
        (Some(SourceKind::Cnpg), _) => vec![cnpg::selector(cluster.object_name())],
        (_, Some(selector)) => vec![selector.clone()],
        (Some(SourceKind::Patroni), None) => patroni::selectors(cluster.object_name()).into(),
        (_, None) => Vec::new(),
    }
}

/// A watch of one object. RBAC counts this selector as the object's name.
fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

fn labelled(selector: &str) -> watcher::Config {
    watcher::Config::default().labels(selector)
}

/// The leader object is in one of two kinds; the others say more, but not who leads.
fn record_need(part: usize) -> Need {
    if part == 0 { Need::OneOf } else { Need::May }
}
