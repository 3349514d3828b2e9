//! Where a pool may open servers now: [`Access`]. For a database without a cluster it never changes;
//! for one of a cluster the follower changes it as the topology changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::Role;
use crate::net::endpoint::Endpoint;
use crate::topology::Place;

/// One server that connections are opened to, as all pools see it.
#[derive(Debug)]
pub struct Site {
    /// Where it is dialled.
    pub endpoint: Arc<Endpoint>,
    /// Its place in the topology; `None` without a cluster.
    pub place: Option<Place>,
    /// Whether it must be in recovery, as a standby is; `None` takes either.
    pub in_recovery: Option<bool>,
    /// The system identifier that it must have; 0 takes any, as no system has it.
    system_id: AtomicU64,
    /// Connections to it, those that are being opened included.
    connections: AtomicU32,
    /// Connections to it that are lent to clients.
    leased: AtomicU32,
    /// How often one was lent, for an even share among equals.
    served: AtomicU64,
    closed: AtomicBool,
    /// Rings when it closes.
    closing: Notify,
    /// When the last attempt to open a connection to it failed, if the last one did.
    failed: Mutex<Option<Instant>>,
    /// When a connection to it was last lost without a word.
    lost: Mutex<Option<Instant>>,
    /// When it last refused a statement because its disk is full.
    disk_full: Mutex<Option<Instant>>,
    alarm: Option<Arc<Alarm>>,
}

/// Tells a cluster's follower that something went wrong at one of its servers. It holds the newest
/// trouble of each place, so that it cannot overflow.
#[derive(Debug, Default)]
pub struct Alarm {
    troubles: Mutex<Vec<(Place, Arc<str>)>>,
    bell: Notify,
}

impl Alarm {
    fn ring(&self, place: &Place, reason: &str) {
        let mut troubles = self.troubles.lock();
        if !troubles.iter().any(|(known, _)| known == place) {
            troubles.push((place.clone(), reason.into()));
        }
        drop(troubles);
        self.bell.notify_one();
    }

    /// Waits until something has gone wrong.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    /// What has gone wrong since the last call, once for each place.
    pub fn take(&self) -> Vec<(Place, Arc<str>)> {
        std::mem::take(&mut *self.troubles.lock())
    }
}

impl Site {
    /// A server of a database without a cluster.
    pub fn fixed(endpoint: Arc<Endpoint>) -> Arc<Self> {
        Site::new(endpoint, None, None, None)
    }

    /// A member of a cluster.
    pub fn of_cluster(place: Place, in_recovery: Option<bool>, alarm: &Arc<Alarm>) -> Arc<Self> {
        let endpoint = Arc::new(Endpoint { host: place.host.clone(), port: place.port });
        Site::new(endpoint, Some(place), in_recovery, Some(Arc::clone(alarm)))
    }

    fn new(
        endpoint: Arc<Endpoint>,
        place: Option<Place>,
        in_recovery: Option<bool>,
        alarm: Option<Arc<Alarm>>,
    ) -> Arc<Self> {
        Arc::new(Site {
            endpoint,
            place,
            in_recovery,
            system_id: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            leased: AtomicU32::new(0),
            served: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            failed: Mutex::new(None),
            lost: Mutex::new(None),
            disk_full: Mutex::new(None),
            alarm,
        })
    }

    /// Nothing new begins here: its servers are closed as soon as nobody uses them.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
    }

    /// Waits until nothing new may begin here.
    pub async fn closed(&self) {
        // Made before the look: what closes in between rings it.
        let rung = self.closing.notified();
        if !self.is_closed() {
            rung.await;
        }
    }

    /// Whether nothing new may begin here.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// From now on a connection counts only if its server has this system identifier; `None` takes any.
    pub fn expect_system(&self, system_id: Option<u64>) {
        self.system_id.store(system_id.unwrap_or(0), Ordering::Relaxed);
    }

    /// See [`Site::expect_system`].
    pub fn system_id(&self) -> Option<u64> {
        Some(self.system_id.load(Ordering::Relaxed)).filter(|system_id| *system_id != 0)
    }

    /// Something went wrong here that the cluster's follower must look into.
    pub fn report(&self, reason: &str) {
        if let (Some(alarm), Some(place)) = (&self.alarm, &self.place) {
            alarm.ring(place, reason);
        }
    }

    /// What became of an attempt to open a connection to it. Returns whether another one has failed since this
    /// one began.
    pub(super) fn note_attempt(&self, worked: bool, began: Instant, now: Instant) -> bool {
        let before = std::mem::replace(&mut *self.failed.lock(), (!worked).then_some(now));
        before.is_some_and(|at| at >= began)
    }

    fn has_failed_since(&self, then: Option<Instant>) -> bool {
        let failed = *self.failed.lock();
        failed.is_some_and(|at| then.is_none_or(|then| at >= then))
    }

    /// A connection to it was lost without a word, as when its host is.
    pub fn note_lost(&self, now: Instant) {
        *self.lost.lock() = Some(now);
        self.report("the connection was lost");
    }

    /// It refused a statement because its disk is full.
    pub fn note_disk_full(&self, now: Instant) {
        *self.disk_full.lock() = Some(now);
    }

    /// How long ago it last did.
    pub fn disk_full(&self, now: Instant) -> Option<Duration> {
        let at = *self.disk_full.lock();
        at.map(|at| now.saturating_duration_since(at))
    }

    /// Whether one was lost since then: those of before may be about to follow.
    pub fn has_lost_since(&self, then: Instant) -> bool {
        self.lost.lock().is_some_and(|lost| lost >= then)
    }

    /// Connections to it that are lent to clients.
    pub fn leased(&self) -> u32 {
        self.leased.load(Ordering::Relaxed)
    }

    /// Connections to it, those that are being opened included.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What it has to do: connections that are lent now, and among equals, those that were.
    pub(super) fn load(&self) -> (u32, u64) {
        (self.leased(), self.served.load(Ordering::Relaxed))
    }

    /// Begins among these as if it had had its share all along, and not with all that they had.
    pub fn join(&self, others: &[Arc<Site>]) {
        let served = others.iter().map(|site| site.served.load(Ordering::Relaxed)).max();
        self.served.store(served.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn note_lent(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
        self.leased.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_returned(&self) {
        self.leased.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection to a site, from its dialling to its end.
#[derive(Debug)]
pub(super) struct Seat(pub(super) Arc<Site>);

impl Seat {
    /// At the next one of the sites that have not failed since then: each has the same share.
    pub(super) fn shared(sites: &[Arc<Site>], turn: usize, then: Option<Instant>) -> Option<Seat> {
        let mut well: Vec<_> = sites.iter().filter(|site| !site.has_failed_since(then)).collect();
        if well.is_empty() {
            well = sites.iter().collect();
        }
        let site = well.get(turn.checked_rem(well.len())?)?;
        Some(Seat::at(site))
    }

    /// At the site of this number, or the first one after it that has not failed since then. When all have, at
    /// that of the number.
    pub(super) fn sticky(sites: &[Arc<Site>], number: usize, then: Option<Instant>) -> Option<Seat> {
        let from = || (0..sites.len()).map(|step| &sites[(number + step) % sites.len()]);
        let site = from().find(|site| !site.has_failed_since(then)).or_else(|| from().next())?;
        Some(Seat::at(site))
    }

    fn at(site: &Arc<Site>) -> Seat {
        site.connections.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(site))
    }

    /// At the site that has the fewest; of several such, the one whose turn it is.
    pub(super) fn least_used(sites: &[Arc<Site>], turn: usize) -> Option<Seat> {
        loop {
            let in_turn = (0..sites.len()).map(|step| &sites[(turn + step) % sites.len()]);
            let counted = in_turn.map(|site| (site.connections.load(Ordering::Relaxed), site));
            let (count, site) = counted.min_by_key(|(count, _)| *count)?;
            // Two who choose at once must not both choose the same.
            let taken =
                site.connections.compare_exchange(count, count + 1, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                return Some(Seat(Arc::clone(site)));
            }
        }
    }

    /// Whether its site has so many more connections than another one that it should move there.
    pub(super) fn is_one_too_many(&self, sites: &[Arc<Site>]) -> bool {
        let own = self.0.connections.load(Ordering::Relaxed);
        sites.iter().any(|site| site.connections.load(Ordering::Relaxed) + 2 <= own)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where servers may be opened, or why none.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The sites; none while the pool is held.
    pub sites: Vec<Arc<Site>>,
    /// Why clients must wait, for the DETAIL of what they are told.
    pub held: Option<Arc<str>>,
}

/// Two are the same when they are of the same sites, not of sites that are alike.
impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        let same_sites = self.sites.len() == other.sites.len()
            && self.sites.iter().zip(&other.sites).all(|(one, two)| Arc::ptr_eq(one, two));
        same_sites && self.held == other.held
    }
}

/// The access of each role of one cluster, as its follower last said. Pools that are made later
/// begin with it.
#[derive(Debug, Default)]
pub struct Routes {
    access: ArcSwap<BTreeMap<Role, Access>>,
}

impl Routes {
    /// What a role may use now; held before the follower has spoken.
    pub fn access(&self, role: Role) -> Access {
        let unknown =
            || Access { sites: Vec::new(), held: Some("nothing is known of the cluster yet".into()) };
        self.access.load().get(&role).cloned().unwrap_or_else(unknown)
    }

    /// The follower's newest word. Returns whether it is another one than before.
    pub fn publish_if_new(&self, access: BTreeMap<Role, Access>) -> bool {
        let is_new = **self.access.load() != access;
        if is_new {
            self.access.store(Arc::new(access));
        }
        is_new
    }
}
