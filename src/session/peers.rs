//! Cancel requests whose key another pooler of the group gave: who may own it, and how they are asked.
//!
//! Behind one address, such as a Kubernetes Service, a CancelRequest reaches any of the poolers. A peer
//! of `[peers]` is known by the id in the key; peers found by name are all asked. A request that a peer
//! has passed on is never passed on again. Read [`Peers`] first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use crate::admin::PeerPoolView;
use crate::config::{Config, Host, HostPort};
use crate::net::dns::Dns;
use crate::net::endpoint::{Dialing, Endpoint, TcpOptions};
use crate::wire::startup::CancelRequest;

/// Peers that one request is passed on to at most.
pub const ASKED_MAX: usize = 64;

/// Requests of the process that may be on their way to peers at once. What comes beyond them is dropped.
const REQUESTS_MAX: usize = 100;

/// Connections that one pool of them may have, whatever `pool_size` says.
pub const CONNECTIONS_MAX: u32 = 256;

/// Longest time for a connection to a peer: pods are near, and one that is gone may not even refuse.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// Longest time for looking one name up.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// Longest time for which an answer of the DNS counts, if `dns_max_ttl` is not less: a pod that came
/// just now has clients already.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Time after a failed look-up in which the old addresses are used.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Names of `peers_dns` that are looked up, and addresses that are kept of them.
const NAMES_MAX: usize = 64;
const ADDRESSES_MAX: usize = 256;

/// Log lines about requests that nobody owns, in one second.
const LINES_MAX: u32 = 10;

/// A peer that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its number; `None` if that is not known, as of an address from the DNS.
    pub id: Option<u16>,
    /// Where it takes cancel requests.
    pub address: SocketAddr,
}

/// What became of a cancel request whose key is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A peer asked us, and we have no such client. Nobody else is asked.
    NotHere,
    /// There is no peer that could have given the key.
    Nobody,
    /// At least one peer has taken it.
    Peers,
    /// None of the peers could be reached in time, or too many requests are on their way.
    Failed,
}

/// The other poolers of the group. One for the process.
pub struct Peers {
    /// Peers that somebody watches, Kubernetes' EndpointSlices for instance: each change is a new list.
    /// Our own address may be among them. Empty where nobody watches.
    pub watched: ArcSwap<Vec<PeerAddress>>,
    own: OnceLock<Vec<SocketAddr>>,
    requests: Semaphore,
    pools: Mutex<BTreeMap<u16, Arc<PeerPool>>>,
    answers: tokio::sync::Mutex<Answers>,
    lines: Mutex<Lines>,
}

/// The connections to one peer of `[peers]`; number 0 stands for all peers that are found otherwise.
struct PeerPool {
    size: u32,
    free: Semaphore,
    waiting: AtomicU32,
    dialing: AtomicU32,
    active: AtomicU32,
}

/// What the DNS has said last.
#[derive(Default)]
struct Answers {
    names: Vec<(String, u16)>,
    addresses: Vec<SocketAddr>,
    until: Option<Instant>,
    failing: bool,
}

/// Lines written in the second that began then.
struct Lines {
    began: Instant,
    count: u32,
}

impl Default for Peers {
    fn default() -> Self {
        Peers {
            watched: ArcSwap::default(),
            own: OnceLock::new(),
            requests: Semaphore::new(REQUESTS_MAX),
            pools: Mutex::default(),
            answers: tokio::sync::Mutex::default(),
            lines: Mutex::new(Lines { began: Instant::now(), count: 0 }),
        }
    }
}

impl Peers {
    /// What the process listens on: these addresses are not asked. The first call counts.
    pub fn listen_on(&self, own: Vec<SocketAddr>) {
        // A second call would be of the same listeners.
        let _ = self.own.set(own);
    }

    /// Passes a request on to all who may have given its key, and waits, at most `cancel_wait_timeout`,
    /// until they have dealt with it.
    pub async fn ask(&self, config: &Config, dns: &Arc<Dns>, request: &CancelRequest) -> Asked {
        let Some(own_id) = config.peer_id() else {
            return Asked::Nobody;
        };
        let Some(request) = request.passed_on() else {
            return Asked::NotHere;
        };
        let Ok(_place) = self.requests.try_acquire() else {
            return Asked::Failed;
        };
        let limit = super::cancel::no_limit_if_zero(config.settings.cancel_wait_timeout);
        let deadline = tokio::time::Instant::now() + limit;
        let peer = request.key.peer();
        let Ok(owners) = timeout_at(deadline, self.owners(config, dns, own_id, peer)).await else {
            return Asked::Failed;
        };
        let (asked, reached) = self.send(config, dns, &request.packet(), owners, deadline).await;
        tracing::debug!("cancel request passed on peer_id={peer} asked={asked} reached={reached}");
        match (asked, reached) {
            (0, _) => Asked::Nobody,
            (_, 0) => Asked::Failed,
            _ => Asked::Peers,
        }
    }

    /// The pools of SHOW PEER_POOLS: those that were used and whose peer is still configured.
    pub fn views(&self, config: &Config) -> Vec<PeerPoolView> {
        let pools = self.pools.lock();
        let configured =
            pools.iter().filter(|(id, _)| **id == 0 || config.peers.contains_key(&u32::from(**id)));
        configured.map(|(id, pool)| pool.view(*id)).collect()
    }

    /// Whether one more line about a request that nobody owns may be written.
    pub fn may_log(&self, now: Instant) -> bool {
        self.lines.lock().take(now)
    }

    /// The pools and addresses of all who may have given a key with this id.
    async fn owners(
        &self,
        config: &Config,
        dns: &Arc<Dns>,
        own_id: u16,
        id: u16,
    ) -> Vec<(Arc<PeerPool>, Endpoint)> {
        let settings = &config.settings;
        // All peers may share one [peers], so the entry of our own number is ourselves.
        if let Some(peer) = config.peers.get(&id.into()).filter(|_| id != own_id) {
            let pool = self.pool(id, peer.pool_size.unwrap_or(settings.default_pool_size));
            return vec![(pool, Endpoint { host: peer.host.clone(), port: peer.port })];
        }
        let mut known = self.watched.load().to_vec();
        if !settings.peers_dns.is_empty() {
            let resolved = self.resolved(config, dns).await;
            known.extend(resolved.into_iter().map(|address| PeerAddress { id: None, address }));
        }
        let own = self.own.get().map_or(&[][..], Vec::as_slice);
        let chosen = may_own(&known, id, |address| is_own(own, address, is_local));
        if chosen.len() > ASKED_MAX && self.may_log(Instant::now()) {
            tracing::warn!("cancel request: asking {ASKED_MAX} of {} peers", chosen.len());
        }
        let pool = self.pool(0, CONNECTIONS_MAX);
        let endpoint = |address: SocketAddr| {
            let host = Host::Tcp(address.ip().to_string());
            (Arc::clone(&pool), Endpoint { host, port: address.port() })
        };
        chosen.into_iter().take(ASKED_MAX).map(endpoint).collect()
    }

    /// Asks them all at once. Returns how many there are, and how many of them have taken the request.
    async fn send(
        &self,
        config: &Config,
        dns: &Arc<Dns>,
        packet: &[u8],
        owners: Vec<(Arc<PeerPool>, Endpoint)>,
        deadline: tokio::time::Instant,
    ) -> (usize, usize) {
        let tcp = TcpOptions::new(&config.settings);
        let how = Dialing { tcp, dns: Some(Arc::clone(dns)), ..Dialing::default() };
        let mut requests = JoinSet::new();
        for (pool, endpoint) in owners {
            let (how, packet) = (how.clone(), packet.to_vec());
            requests.spawn(async move {
                let sent = timeout_at(deadline, pool.send(&endpoint, &how, &packet)).await;
                let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                if let Err(error) = &sent {
                    tracing::debug!("cancel request: peer {endpoint} not reached: {error}");
                }
                sent.is_ok()
            });
        }
        let asked = requests.len();
        let mut reached = 0;
        while let Some(sent) = requests.join_next().await {
            reached += usize::from(sent.unwrap_or(false));
        }
        (asked, reached)
    }

    /// The pool of this number, a new one if its size has changed.
    fn pool(&self, id: u16, size: u32) -> Arc<PeerPool> {
        let size = if size == 0 { CONNECTIONS_MAX } else { size.min(CONNECTIONS_MAX) };
        let mut pools = self.pools.lock();
        let pool = pools.entry(id).or_insert_with(|| PeerPool::new(size));
        if pool.size != size {
            *pool = PeerPool::new(size);
        }
        Arc::clone(pool)
    }

    /// The addresses of `peers_dns`. One look-up at a time; the others wait for its answer.
    async fn resolved(&self, config: &Config, dns: &Arc<Dns>) -> Vec<SocketAddr> {
        let settings = &config.settings;
        let names = with_port(&settings.peers_dns, settings.listen_port);
        let mut answers = self.answers.lock().await;
        let now = Instant::now();
        if answers.names != names {
            *answers = Answers { names, ..Answers::default() };
        } else if answers.until.is_some_and(|until| now < until) {
            return answers.addresses.clone();
        }
        let found = look_up(dns, &answers.names).await;
        answers.take(found, Instant::now(), settings.dns_max_ttl.min(ANSWER_MAX));
        answers.addresses.clone()
    }
}

impl PeerPool {
    fn new(size: u32) -> Arc<Self> {
        Arc::new(PeerPool {
            size,
            free: Semaphore::new(size as usize),
            waiting: AtomicU32::new(0),
            dialing: AtomicU32::new(0),
            active: AtomicU32::new(0),
        })
    }

    /// Passes a request on, and waits until the peer has dealt with it, which it shows by closing.
    async fn send(&self, endpoint: &Endpoint, how: &Dialing, packet: &[u8]) -> io::Result<()> {
        let waiting = Counted::new(&self.waiting);
        let _place = self.free.acquire().await.map_err(io::Error::other)?;
        let dialing = Counted::new(&self.dialing);
        let mut socket = timeout(DIAL_MAX, endpoint.dial(how)).await??;
        drop((waiting, dialing));
        let _active = Counted::new(&self.active);
        socket.write_all(packet).await?;
        match socket.read(&mut [0; 64]).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn view(&self, id: u16) -> PeerPoolView {
        let active = self.active.load(Ordering::Relaxed);
        PeerPoolView {
            peer_id: id.into(),
            clients_active_cancel_request: active,
            clients_waiting_cancel_request: self.waiting.load(Ordering::Relaxed),
            servers_active_cancel: active,
            servers_login: self.dialing.load(Ordering::Relaxed),
        }
    }
}

/// One more, until it is dropped.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Answers {
    /// Takes over what was found; `None` stands for a name without an answer, and then what was known
    /// before counts too.
    fn take(&mut self, found: Vec<Option<Vec<SocketAddr>>>, now: Instant, keep: Duration) {
        let failed = found.iter().filter(|answer| answer.is_none()).count();
        let mut addresses: Vec<_> = found.into_iter().flatten().flatten().collect();
        if failed > 0 {
            addresses.append(&mut self.addresses);
        }
        if failed > 0 && !self.failing {
            tracing::warn!("cannot look up peers_dns: names without an answer={failed}");
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        self.addresses = addresses;
        self.failing = failed > 0;
        self.until = Some(now + if failed > 0 { RETRY_AFTER } else { keep });
    }
}

impl Lines {
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.began) >= Duration::from_secs(1) {
            *self = Lines { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= LINES_MAX
    }
}

fn with_port(names: &[HostPort], port: u16) -> Vec<(String, u16)> {
    names.iter().take(NAMES_MAX).map(|name| (name.host.clone(), name.port.unwrap_or(port))).collect()
}

/// Looks all names up at once; `None` for one without an answer in time.
async fn look_up(dns: &Arc<Dns>, names: &[(String, u16)]) -> Vec<Option<Vec<SocketAddr>>> {
    let mut lookups = JoinSet::new();
    for (name, port) in names.iter().cloned() {
        let dns = Arc::clone(dns);
        lookups.spawn(async move {
            if let Ok(ip) = name.parse() {
                return Some(vec![SocketAddr::new(ip, port)]);
            }
            let found = timeout(LOOKUP_MAX, dns.addresses_not_older(&name, ANSWER_MAX)).await;
            Some(found.ok()?.ok()?.iter().map(|address| SocketAddr::new(address.ip, port)).collect())
        });
    }
    let mut found = Vec::with_capacity(names.len());
    while let Some(answer) = lookups.join_next().await {
        found.push(answer.unwrap_or(None));
    }
    found
}

/// Those who may have given a key with this id: the peers of this id and those of unknown id; all of
/// them, if none is known by this id. Our own addresses are left out.
fn may_own(known: &[PeerAddress], id: u16, is_own: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
    let mut ids: BTreeMap<SocketAddr, Option<u16>> = BTreeMap::new();
    for peer in known {
        let known = ids.entry(peer.address).or_default();
        *known = known.or(peer.id);
    }
    ids.retain(|address, _| !is_own(*address));
    if ids.values().any(|known| *known == Some(id)) {
        ids.retain(|_, known| known.is_none_or(|known| known == id));
    }
    ids.into_keys().collect()
}

/// Whether we listen there.
fn is_own(own: &[SocketAddr], address: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    let ip = address.ip().to_canonical();
    own.iter().filter(|own| own.port() == address.port()).any(|own| match own.ip() {
        all if all.is_unspecified() => all.is_ipv4() == ip.is_ipv4() && is_local(ip),
        one => one == ip,
    })
}

/// Whether the address is one of this host or pod: toward such a one the kernel's own end is the same.
/// Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = || {
        let socket = UdpSocket::bind((any, 0))?;
        // Any port will do.
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || local().is_ok_and(|own| own.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("a test's address")
    }

    fn peers(text: &str) -> Vec<PeerAddress> {
        let peer = |word: &str| match word.split_once('=') {
            Some((id, at)) => PeerAddress { id: id.parse().ok(), address: address(at) },
            None => PeerAddress { id: None, address: address(word) },
        };
        text.split_whitespace().map(peer).collect()
    }

    #[test]
    fn every_peer_that_may_own_a_key_is_asked_but_not_ourselves() {
        let check = |known: &str, id, expected: &str| {
            let chosen = may_own(&peers(known), id, |at| at == address("10.0.0.1:1"));
            let expected: Vec<_> = expected.split_whitespace().map(address).collect();
            assert_eq!(chosen, expected, "{id} of {known}");
        };
        check("", 7, "");
        check("10.0.0.1:1", 7, "");
        // From the DNS: any of them.
        check("10.0.0.3:1 10.0.0.1:1 10.0.0.2:1 10.0.0.2:1", 7, "10.0.0.2:1 10.0.0.3:1");
        // One is known by the id.
        check("6=10.0.0.1:1 7=10.0.0.2:1 8=10.0.0.3:1", 7, "10.0.0.2:1");
        // Two have it, we and another have it, nobody has it.
        check("7=10.0.0.2:1 7=10.0.0.3:1 8=10.0.0.4:1", 7, "10.0.0.2:1 10.0.0.3:1");
        check("7=10.0.0.1:1 7=10.0.0.3:1 8=10.0.0.4:1", 7, "10.0.0.3:1");
        check("6=10.0.0.1:1 8=10.0.0.3:1 9=10.0.0.4:1", 7, "10.0.0.3:1 10.0.0.4:1");
        // One that is known by another id is not asked because the DNS names it too.
        check("7=10.0.0.2:1 8=10.0.0.3:1 10.0.0.2:1 10.0.0.3:1 10.0.0.4:1", 7, "10.0.0.2:1 10.0.0.4:1");
    }

    #[test]
    fn our_own_address_is_one_that_we_listen_on() {
        let check = |own: &str, at: &str, expected| {
            let own: Vec<_> = own.split_whitespace().map(address).collect();
            let found = is_own(&own, address(at), |ip| ip.to_string().ends_with('7'));
            assert_eq!(found, expected, "{at} of {own:?}");
        };
        check("127.0.0.1:6432", "127.0.0.1:6432", true);
        check("127.0.0.1:6432", "127.0.0.1:6433", false);
        check("127.0.0.1:6432", "127.0.0.7:6432", false);
        check("0.0.0.0:6432", "10.0.0.7:6432", true);
        check("0.0.0.0:6432", "10.0.0.7:6433", false);
        check("0.0.0.0:6432", "10.0.0.8:6432", false);
        check("0.0.0.0:6432", "[fd00::7]:6432", false);
        check("0.0.0.0:6432 [::]:6432", "[fd00::7]:6432", true);
        check("0.0.0.0:6432", "[::ffff:10.0.0.7]:6432", true);
        check("", "10.0.0.7:6432", false);
    }

    #[test]
    fn the_kernel_tells_our_own_addresses_from_others() {
        let elsewhere = address("192.0.2.1:9");
        assert!(is_local(address("127.0.0.9:9").ip()));
        assert!(!is_local(elsewhere.ip()));
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port exists");
        // Without a network there is no other address of ours to ask about.
        if socket.connect(elsewhere).is_ok() {
            let own = socket.local_addr().expect("it is bound").ip();
            assert!(is_local(own), "{own}");
        }
    }

    #[test]
    fn a_name_without_an_answer_leaves_the_old_addresses() {
        let now = Instant::now();
        let some = |text: &str| Some(vec![address(text)]);
        let mut answers = Answers::default();
        let mut check = |found, expected: &[&str], good_for: Duration| {
            answers.take(found, now, Duration::from_secs(5));
            let expected: Vec<_> = expected.iter().map(|text| address(text)).collect();
            assert_eq!((&answers.addresses, answers.until), (&expected, Some(now + good_for)));
        };
        let (keep, retry) = (Duration::from_secs(5), RETRY_AFTER);
        check(vec![some("10.0.0.2:1"), some("10.0.0.1:1")], &["10.0.0.1:1", "10.0.0.2:1"], keep);
        check(vec![None, some("10.0.0.3:1")], &["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], retry);
        check(vec![some("10.0.0.3:1"), some("10.0.0.3:1")], &["10.0.0.3:1"], keep);
        check(vec![Some(vec![]), Some(vec![])], &[], keep);
    }

    #[test]
    fn lines_about_unknown_keys_are_few_in_each_second() {
        let began = Instant::now();
        let mut lines = Lines { began, count: 0 };
        let written = (0..1000).filter(|_| lines.take(began + Duration::from_millis(999))).count();
        assert_eq!(written, 10);
        assert!(lines.take(began + Duration::from_secs(1)));
    }
}
