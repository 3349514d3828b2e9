//! Host names: [`Dns`] knows the addresses of those that servers and peers have.
//!
//! A library asks, after `resolv_conf` and /etc/hosts, with search domains as the C library has them. Its answer
//! counts for `dns_max_ttl`, whatever TTL it has, as in PgBouncer. There is one query for a name at a time;
//! the others wait for its answer. An address that its name no longer has is [`Address::is_gone`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::Settings;

/// Longest time for one look-up, with all its attempts, name servers and search domains.
const LOOKUP_MAX: Duration = Duration::from_secs(15);

/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 256;

/// Names that nobody has asked for, for so long, are forgotten unless the settings have them.
const FORGET_AFTER: Duration = Duration::from_secs(60);

const SYSTEMS_FILE: &str = "/etc/resolv.conf";
const HOSTS_FILE: &str = "/etc/hosts";

/// One address of a name.
#[derive(Debug)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    gone: AtomicBool,
}

impl Address {
    /// Whether its name no longer has it.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// No address of a name is known. It comes within an [`io::Error`].
#[derive(Debug, Error)]
#[error("server DNS lookup failed: {name}: {reason}")]
pub struct NoAddress {
    name: String,
    reason: String,
}

/// For how long what is known counts.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// `dns_max_ttl`
    answer: Duration,
    /// `dns_nxdomain_ttl`
    failure: Duration,
    /// `dns_zone_check_period`
    zones: Duration,
}

impl Times {
    fn new(settings: &Settings) -> Self {
        Times {
            answer: settings.dns_max_ttl,
            failure: settings.dns_nxdomain_ttl,
            zones: settings.dns_zone_check_period,
        }
    }
}

/// What SHOW DNS_HOSTS says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The name.
    pub name: String,
    /// How long what is known of it still counts.
    pub left: Duration,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What SHOW DNS_ZONES says of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneStatus {
    /// Its name.
    pub name: String,
    /// The serial number of its SOA record; 0 if it has none.
    pub serial: u32,
    /// Host names in it.
    pub count: u32,
}

/// All names of the process.
#[derive(Debug)]
pub struct Dns {
    file: PathBuf,
    /// Every query runs there, whoever waits for it.
    runtime: Handle,
    times: ArcSwap<Times>,
    hosts: Mutex<BTreeMap<Arc<str>, Arc<Host>>>,
    zones: Mutex<BTreeMap<String, Zone>>,
    /// With the state of the files that it was made from.
    sources: Mutex<Option<(Stamps, Sources)>>,
    queries: AtomicU32,
}

/// When the files were last changed.
type Stamps = [Option<SystemTime>; 2];

#[derive(Debug)]
struct Host {
    name: Arc<str>,
    known: Mutex<Known>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<Arc<Address>>,
    /// Whose turn it is.
    turn: usize,
    /// When the last answer came.
    at: Option<Instant>,
    /// Why that was none.
    failure: Option<Failure>,
    asking: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    /// The name does not exist. Otherwise nobody knows, and the old addresses count.
    is_certain: bool,
    reason: Arc<str>,
}

#[derive(Debug, Default)]
struct Zone {
    serial: u32,
    at: Option<Instant>,
    asking: bool,
}

impl Dns {
    /// Nothing is known yet. Queries run on the present runtime.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Dns {
            file: settings.resolv_conf.clone().unwrap_or_else(|| SYSTEMS_FILE.into()),
            runtime: Handle::current(),
            times: ArcSwap::from_pointee(Times::new(settings)),
            hosts: Mutex::default(),
            zones: Mutex::default(),
            sources: Mutex::default(),
            queries: AtomicU32::new(0),
        })
    }

    /// New settings after a RELOAD.
    pub fn configure(&self, settings: &Settings) {
        self.times.store(Arc::new(Times::new(settings)));
    }

    /// The addresses of a name, in the order in which they are to be tried: it begins with another one each
    /// time. The caller limits the wait.
    ///
    /// Fails when there is no such name, and when nobody answers and nothing was known before.
    pub async fn addresses(self: &Arc<Self>, name: &str) -> io::Result<Vec<Arc<Address>>> {
        self.addresses_not_older(name, Duration::MAX).await
    }

    /// As [`Dns::addresses`], of an answer that is not older than this.
    pub async fn addresses_not_older(
        self: &Arc<Self>,
        name: &str,
        age: Duration,
    ) -> io::Result<Vec<Arc<Address>>> {
        let host = self.host(name);
        let asked_at = Instant::now();
        loop {
            let answered = host.answered.notified();
            tokio::pin!(answered);
            // Before the look: what is answered in between rings it.
            answered.as_mut().enable();
            if let Some(known) = self.known_or_ask(&host, asked_at, age) {
                return known;
            }
            answered.await;
        }
    }

    /// What is known and counts still; `None` while it is being asked.
    fn known_or_ask(
        self: &Arc<Self>,
        host: &Arc<Host>,
        asked_at: Instant,
        age: Duration,
    ) -> Option<io::Result<Vec<Arc<Address>>>> {
        let times = **self.times.load();
        let times = Times { answer: times.answer.min(age), failure: times.failure.min(age), ..times };
        let mut known = host.known.lock();
        if known.counts(asked_at, Instant::now(), times) {
            return Some(known.take_turn(&host.name));
        }
        self.ask(host, &mut known);
        None
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.get(name) {
            return Arc::clone(host);
        }
        let name: Arc<str> = name.into();
        let host =
            Arc::new(Host { name: Arc::clone(&name), known: Mutex::default(), answered: Notify::new() });
        hosts.insert(name, Arc::clone(&host));
        host
    }

    /// Begins a query, if none is under way.
    fn ask(self: &Arc<Self>, host: &Arc<Host>, known: &mut Known) {
        if std::mem::replace(&mut known.asking, true) {
            return;
        }
        self.queries.fetch_add(1, Ordering::Relaxed);
        let (dns, host) = (Arc::clone(self), Arc::clone(host));
        self.runtime.spawn(async move {
            let found = timeout(LOOKUP_MAX, dns.look_up(&host.name)).await;
            let found = found.unwrap_or_else(|_| Err(Failure::unsure("no answer in time")));
            if let Err(failure) = &found {
                tracing::warn!("DNS lookup failed: {}: {}", host.name, failure.reason);
            }
            host.known.lock().enter(&host.name, found, Instant::now());
            dns.queries.fetch_sub(1, Ordering::Relaxed);
            host.answered.notify_waiters();
        });
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let sources = self.sources()?;
        let mut found = sources.in_hosts_file(name);
        if found.is_empty() {
            let answer = sources.resolver.lookup_ip(name).await.map_err(Failure::from)?;
            found = answer.iter().take(ADDRESSES_MAX).collect();
        }
        Ok(found.into_iter().collect())
    }

    /// What asks, made anew when one of its files has changed.
    fn sources(&self) -> Result<Sources, Failure> {
        let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
        let stamps = [changed(&self.file), changed(Path::new(HOSTS_FILE))];
        let mut current = self.sources.lock();
        if let Some((made_from, sources)) = &*current
            && *made_from == stamps
        {
            return Ok(sources.clone());
        }
        let resolver = make_resolver(&self.file).map_err(|error| {
            let reason = format!("{}: {error}", self.file.display());
            Failure { is_certain: false, reason: reason.into() }
        })?;
        // Without the file there are no names in it.
        let hosts = Arc::new(Hosts::from_system().unwrap_or_default());
        let sources = Sources { resolver, hosts };
        *current = Some((stamps, sources.clone()));
        Ok(sources)
    }

    /// What no event tells of, about once a second: names in `used` whose time is over are looked up again,
    /// those that are not in `configured` are forgotten, and zones are looked at.
    pub fn tick(self: &Arc<Self>, configured: &BTreeSet<String>, used: &BTreeSet<String>, now: Instant) {
        let times = **self.times.load();
        let hosts: Vec<_> = self.hosts.lock().values().cloned().collect();
        for host in &hosts {
            let mut known = host.known.lock();
            if used.contains(&*host.name) && !known.counts(now, now, times) {
                self.ask(host, &mut known);
            }
        }
        self.hosts.lock().retain(|name, host| configured.contains(&**name) || !host.is_forgotten(now));
        self.watch_zones(times.zones, now);
    }

    /// Asks for the serial numbers of the zones that names are in, every `dns_zone_check_period`.
    fn watch_zones(self: &Arc<Self>, period: Duration, now: Instant) {
        let mut zones = self.zones.lock();
        if period.is_zero() {
            return zones.clear();
        }
        let counted = self.count_zones();
        zones.retain(|zone, _| counted.contains_key(zone));
        for name in counted.into_keys() {
            let zone = zones.entry(name.clone()).or_default();
            let is_due = zone.at.is_none_or(|at| now.saturating_duration_since(at) >= period);
            if is_due && !std::mem::replace(&mut zone.asking, true) {
                let dns = Arc::clone(self);
                self.runtime.spawn(async move {
                    let serial = timeout(LOOKUP_MAX, dns.serial_of(&name)).await.ok().flatten();
                    dns.enter_serial(&name, serial, Instant::now());
                });
            }
        }
    }

    async fn serial_of(&self, zone: &str) -> Option<u32> {
        let mut name = Name::from_utf8(zone).ok()?;
        name.set_fqdn(true);
        let found = self.sources().ok()?.resolver.lookup(name, RecordType::SOA).await.ok()?;
        found.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        })
    }

    /// Another serial number than before: each name of the zone is to be looked up again.
    fn enter_serial(&self, name: &str, serial: Option<u32>, now: Instant) {
        let mut zones = self.zones.lock();
        let Some(zone) = zones.get_mut(name) else { return };
        zone.asking = false;
        zone.at = Some(now);
        let Some(serial) = serial else { return };
        let is_new = std::mem::replace(&mut zone.serial, serial) != serial;
        drop(zones);
        if is_new {
            tracing::debug!("DNS zone {name} has serial={serial}");
            let hosts = self.hosts.lock();
            for host in hosts.values().filter(|host| zone_of(&host.name) == Some(name)) {
                host.known.lock().at = None;
            }
        }
    }

    fn count_zones(&self) -> BTreeMap<String, u32> {
        let mut zones = BTreeMap::new();
        for zone in self.hosts.lock().keys().filter_map(|name| zone_of(name)) {
            *zones.entry(zone.to_owned()).or_default() += 1;
        }
        zones
    }

    /// For SHOW DNS_HOSTS.
    pub fn hosts(&self, now: Instant) -> Vec<HostStatus> {
        let times = **self.times.load();
        self.hosts.lock().values().map(|host| host.status(times, now)).collect()
    }

    /// For SHOW DNS_ZONES.
    pub fn zones(&self) -> Vec<ZoneStatus> {
        let counted = self.count_zones();
        let status = |(name, zone): (&String, &Zone)| ZoneStatus {
            name: name.clone(),
            serial: zone.serial,
            count: counted.get(name).copied().unwrap_or(0),
        };
        self.zones.lock().iter().map(status).collect()
    }

    /// Names that are being looked up.
    pub fn queries(&self) -> u32 {
        self.queries.load(Ordering::Relaxed)
    }
}

impl Host {
    fn is_forgotten(&self, now: Instant) -> bool {
        let known = self.known.lock();
        !known.asking && known.at.is_none_or(|at| now.saturating_duration_since(at) > FORGET_AFTER)
    }

    fn status(&self, times: Times, now: Instant) -> HostStatus {
        let known = self.known.lock();
        let keep = known.keeps(times);
        let age = known.at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        HostStatus {
            name: self.name.to_string(),
            left: keep.saturating_sub(age),
            addresses: known.present().iter().map(|address| address.ip).collect(),
        }
    }
}

impl Known {
    fn keeps(&self, times: Times) -> Duration {
        if self.failure.is_some() { times.failure } else { times.answer }
    }

    /// Whether it need not be asked again: an answer to a query that came after `asked_at` counts in any case.
    fn counts(&self, asked_at: Instant, now: Instant, times: Times) -> bool {
        let Some(at) = self.at else { return false };
        at > asked_at || now.saturating_duration_since(at) < self.keeps(times)
    }

    /// None of a name that does not exist.
    fn present(&self) -> &[Arc<Address>] {
        match &self.failure {
            Some(failure) if failure.is_certain => &[],
            _ => &self.addresses,
        }
    }

    fn take_turn(&mut self, name: &str) -> io::Result<Vec<Arc<Address>>> {
        let turn = self.turn;
        self.turn = turn.wrapping_add(1);
        let mut addresses = self.present().to_vec();
        if addresses.is_empty() {
            let reason = self.failure.as_ref().map_or("it has no address", |failure| &failure.reason);
            return Err(io::Error::other(NoAddress { name: name.to_owned(), reason: reason.to_owned() }));
        }
        let first = turn % addresses.len();
        addresses.rotate_left(first);
        Ok(addresses)
    }

    /// What a query brought. An address that stays is the same [`Address`] as before.
    fn enter(&mut self, name: &str, found: Result<Vec<IpAddr>, Failure>, now: Instant) {
        self.asking = false;
        self.at = Some(now);
        let ips = match found {
            Ok(ips) => ips,
            Err(failure) => {
                self.failure = Some(failure);
                return;
            }
        };
        self.failure = None;
        let (stay, go): (Vec<_>, Vec<_>) =
            self.addresses.drain(..).partition(|known| ips.contains(&known.ip));
        for address in &go {
            tracing::info!("DNS: {name} no longer has address={}", address.ip);
            address.gone.store(true, Ordering::Relaxed);
        }
        let known = |ip: IpAddr| stay.iter().find(|known| known.ip == ip).cloned();
        let new = |ip| Arc::new(Address { ip, gone: AtomicBool::new(false) });
        self.addresses = ips.into_iter().map(|ip| known(ip).unwrap_or_else(|| new(ip))).collect();
    }
}

impl Failure {
    fn unsure(reason: &str) -> Self {
        Failure { is_certain: false, reason: reason.into() }
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        match error.is_nx_domain() {
            true => Failure { is_certain: true, reason: "no such name".into() },
            false => Failure { is_certain: false, reason: error.to_string().into() },
        }
    }
}

/// The zone of a name is what follows its first label, as in PgBouncer.
fn zone_of(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, zone)| zone).filter(|zone| !zone.is_empty())
}

/// As the C library does, without a file, or without a name server in it, one on this host is asked.
/// Where addresses come from.
#[derive(Clone, Debug)]
struct Sources {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
}

impl Sources {
    /// As in the C library, a name that the file has is not asked for elsewhere, even if the file has only
    /// its IPv4 or its IPv6 addresses.
    fn in_hosts_file(&self, name: &str) -> BTreeSet<IpAddr> {
        let Ok(name) = Name::from_utf8(name) else { return BTreeSet::new() };
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
        lookups
            .flat_map(|lookup| {
                lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
            })
            .take(ADDRESSES_MAX)
            .collect()
    }
}

fn make_resolver(file: &Path) -> Result<TokioResolver, NetError> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && file == Path::new(SYSTEMS_FILE) => {
            Vec::new()
        }
        other => other?,
    };
    let is_server = |line: &str| line.trim_start().starts_with("nameserver");
    let has_server = String::from_utf8_lossy(&text).lines().any(is_server);
    let (config, options) = match has_server {
        true => parse_resolv_conf(&text)?,
        false => {
            let own = NameServerConfig::udp_and_tcp(IpAddr::from([127, 0, 0, 1]));
            (ResolverConfig::from_parts(None, Vec::new(), vec![own]), ResolverOpts::default())
        }
    };
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let mut builder = builder.with_options(options);
    let options = builder.options_mut();
    // It is this module that remembers, for as long as the settings say.
    options.cache_size = 0;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times =
        Times { answer: Duration::from_secs(15), failure: Duration::from_secs(3), zones: Duration::ZERO };

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().expect("a test's address")).collect()
    }

    fn order(known: &mut Known) -> String {
        let addresses = known.take_turn("db").expect("it has addresses");
        addresses.iter().map(|address| address.ip.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_turn_begins_with_the_next_address() {
        let mut known = Known::default();
        known.enter("db", Ok(ips("10.0.0.1 10.0.0.2 ::1")), Instant::now());
        assert_eq!(order(&mut known), "10.0.0.1 10.0.0.2 ::1");
        assert_eq!(order(&mut known), "10.0.0.2 ::1 10.0.0.1");
        assert_eq!(order(&mut known), "::1 10.0.0.1 10.0.0.2");
        assert_eq!(order(&mut known), "10.0.0.1 10.0.0.2 ::1");
    }

    #[test]
    fn only_an_address_that_the_name_lost_is_gone() {
        let mut known = Known::default();
        let now = Instant::now();
        known.enter("db", Ok(ips("10.0.0.1 10.0.0.2")), now);
        let before = known.addresses.clone();
        known.enter("db", Ok(ips("10.0.0.2 10.0.0.3")), now);
        assert!(before[0].is_gone() && !before[1].is_gone());
        assert!(Arc::ptr_eq(&before[1], &known.addresses[0]) && !known.addresses[1].is_gone());
    }

    #[test]
    fn without_an_answer_the_old_addresses_count_unless_the_name_does_not_exist() {
        let now = Instant::now();
        let mut known = Known::default();
        let unsure = || Err(Failure::unsure("no answer in time"));
        known.enter("db", unsure(), now);
        let error = known.take_turn("db").expect_err("nothing is known").to_string();
        assert_eq!(error, "server DNS lookup failed: db: no answer in time");
        known.enter("db", Ok(ips("10.0.0.1")), now);
        known.enter("db", unsure(), now);
        assert_eq!(order(&mut known), "10.0.0.1");
        known.enter("db", Err(Failure { is_certain: true, reason: "no such name".into() }), now);
        assert!(known.take_turn("db").is_err());
        // Connections that are there may stay.
        assert!(!known.addresses[0].is_gone());
    }

    #[test]
    fn an_answer_counts_for_its_time_and_for_who_waited_for_it() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut known = Known::default();
        assert!(!known.counts(now, now, TIMES));
        known.enter("db", Ok(ips("10.0.0.1")), later(1));
        for (asked_at, at, expected) in [(1, 15, true), (1, 16, false), (0, 16, true), (16, 16, false)] {
            assert_eq!(known.counts(later(asked_at), later(at), TIMES), expected, "{asked_at} {at}");
        }
        known.enter("db", Err(Failure::unsure("")), later(1));
        assert!(known.counts(later(1), later(3), TIMES) && !known.counts(later(1), later(4), TIMES));
    }

    #[test]
    fn a_zone_is_what_follows_the_first_label() {
        for (name, zone) in [("db.example.com", Some("example.com")), ("db", None), ("db.", None)] {
            assert_eq!(zone_of(name), zone, "{name}");
        }
    }
}
