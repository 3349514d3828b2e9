//! The ledger as a table, and beside a model that keeps every server and every waiter by name.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SECOND: Duration = Duration::from_secs(1);

fn limits(size: u32, reserve: u32) -> Limits {
    Limits { size, reserve, reserve_after: Some(5 * SECOND), round_robin: false }
}

/// A pool in which `names` are idle at worker 0, the first for longest.
fn pool_with_idle(limits: Limits, names: &[&'static str], now: Instant) -> PoolState<&'static str, u32> {
    let mut pool = PoolState::new(limits, 2);
    for (name, since) in names.iter().zip(0..) {
        pool.begin_opening();
        assert_eq!(pool.opened(*name, 0, now + since * SECOND), Ok(None));
    }
    pool
}

fn lent(pool: &mut PoolState<&'static str, u32>, worker: usize, now: Instant) -> Option<&'static str> {
    pool.acquire(NOBODY, worker, now, |_| 0).map(|lent| lent.server)
}

#[test]
fn the_last_used_server_is_lent_first_and_with_round_robin_the_longest_idle() {
    let now = Instant::now();
    for (round_robin, first) in [(false, "b"), (true, "a")] {
        let mut pool = pool_with_idle(Limits { round_robin, ..limits(2, 0) }, &["a", "b"], now);
        assert_eq!(lent(&mut pool, 0, now), Some(first));
        assert!(lent(&mut pool, 0, now).is_some());
        assert_eq!(lent(&mut pool, 0, now), None);
        assert_eq!((pool.idle_count(), pool.leased(), pool.total()), (0, 2, 2));
    }
}

#[test]
fn a_client_that_comes_back_at_once_is_lent_the_server_that_it_had() {
    let now = Instant::now();
    for (round_robin, after, expected) in [
        (false, Duration::ZERO, "a"),
        (false, A_MOMENT, "a"),
        (false, A_MOMENT + Duration::from_micros(1), "b"),
        (true, Duration::ZERO, "c"),
    ] {
        let mut pool =
            pool_with_idle(Limits { round_robin, ..limits(3, 0) }, &["c", "b", "a"], now - 5 * SECOND);
        assert_eq!([(); 3].map(|()| lent(&mut pool, 0, now).is_some()), [true; 3]);
        for (server, client) in [("c", 3), ("a", 1), ("b", 2)] {
            assert_eq!(pool.release(server, client, 0, now), Ok(None));
        }
        let got = pool.acquire(1, 0, now + after, |_| 0).map(|lent| lent.server);
        assert_eq!(got, Some(expected), "round robin: {round_robin}, after {after:?}");
    }
}

#[test]
fn a_server_that_a_client_had_is_not_looked_for_on_another_worker_nor_far_down() {
    let now = Instant::now();
    let server_of_client_1 = |depth: u64, worker: usize| {
        let mut pool: PoolState<u64, u32> = PoolState::new(limits(99, 0), 2);
        (0..=depth).for_each(|_| pool.lend_new());
        // Each comes back from a client of its own, the first one from client 1.
        (0..=depth).for_each(|server| assert_eq!(pool.release(server, server + 1, 0, now), Ok(None)));
        pool.acquire(1, worker, now, |_| 0).map(|lent| lent.server)
    };
    assert_eq!(server_of_client_1(3, 0), Some(0));
    assert_eq!(server_of_client_1(3, 1), Some(3));
    assert_eq!(server_of_client_1(LOOK_BACK as u64 - 1, 0), Some(0));
    assert_eq!(server_of_client_1(LOOK_BACK as u64, 0), Some(LOOK_BACK as u64));
}

#[test]
fn a_worker_is_lent_its_own_server_else_one_of_the_worker_with_most() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(9, 0), &["a", "b"], now);
    pool.begin_opening();
    pool.opened("own", 1, now).unwrap();
    let got = pool.acquire(NOBODY, 1, now + 3 * SECOND, |_| 0).unwrap();
    assert_eq!(got, Lent { server: "own", idle_for: 3 * SECOND, worker: 1 });
    assert_eq!(pool.acquire(NOBODY, 1, now, |_| 0).map(|lent| (lent.server, lent.worker)), Some(("b", 0)));
}

#[test]
fn who_had_its_turn_goes_first_and_may_leave_too() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(1, 0), &["a"], now);
    lent(&mut pool, 0, now);
    pool.enqueue(1, 0, now);
    pool.enqueue_first(2, 0, now);
    let third = pool.enqueue_first(3, 0, now);
    pool.enqueue(4, 0, now);
    assert_eq!(pool.abandon(third), Some(3));
    for expected in [2, 1, 4] {
        assert_eq!(pool.release("a", NOBODY, 0, now), Ok(Some((expected, "a"))));
    }
}

#[test]
fn a_server_that_comes_back_goes_to_the_first_in_the_queue() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(1, 0), &["a"], now);
    lent(&mut pool, 0, now);
    for (waiter, later) in [(1, 0), (2, 1), (3, 2)] {
        pool.enqueue(waiter, 0, now + later * SECOND);
    }
    assert_eq!(pool.longest_wait(now + 9 * SECOND), 9 * SECOND);
    for expected in [1, 2, 3] {
        assert_eq!(pool.release("a", NOBODY, 0, now), Ok(Some((expected, "a"))));
    }
    assert_eq!(pool.release("a", NOBODY, 0, now), Ok(None));
    assert_eq!((pool.waiting(), pool.idle_count()), (0, 1));
}

#[test]
fn of_those_who_came_at_the_same_moment_one_of_the_servers_worker_goes_first() {
    let now = Instant::now();
    for (later, expected) in [(SAME_MOMENT, 2), (SAME_MOMENT * 2, 1)] {
        let mut pool = pool_with_idle(limits(1, 0), &["a"], now);
        lent(&mut pool, 0, now);
        pool.enqueue(1, 1, now);
        pool.enqueue(2, 0, now + later);
        assert_eq!(pool.release("a", NOBODY, 0, now), Ok(Some((expected, "a"))), "{later:?}");
    }
}

#[test]
fn nobody_overtakes_the_queue() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(2, 0), &["a"], now);
    pool.set_paused(true);
    pool.enqueue(1, 0, now);
    pool.set_paused(false);
    assert_eq!(lent(&mut pool, 0, now), None);
    assert_eq!(pool.serve_waiters(), [(1, "a")]);
}

#[test]
fn who_leaves_the_queue_is_not_served() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(1, 0), &["a"], now);
    lent(&mut pool, 0, now);
    let tickets: Vec<Ticket> = (1..=3).map(|waiter| pool.enqueue(waiter, 0, now)).collect();
    assert_eq!(pool.abandon(tickets[1]), Some(2));
    assert_eq!(pool.abandon(tickets[1]), None);
    assert_eq!(pool.release("a", NOBODY, 0, now), Ok(Some((1, "a"))));
    assert_eq!(pool.abandon(tickets[0]), None, "it was served already");
    assert_eq!(pool.waiters().collect::<Vec<_>>(), [&3]);
    assert_eq!(pool.take_waiters(), [3]);
}

#[track_caller]
fn check_openings(limits: Limits, waiting: u32, opening: u32, waited: Duration, expected: u32) {
    let now = Instant::now();
    let mut pool: PoolState<(), u32> = PoolState::new(limits, 1);
    (0..opening).for_each(|_| pool.begin_opening());
    for waiter in 0..waiting {
        pool.enqueue(waiter, 0, now);
    }
    assert_eq!(pool.openings_wanted(now + waited), expected);
    pool.set_paused(true);
    assert_eq!(pool.openings_wanted(now + waited), 0);
}

#[test]
fn a_server_is_opened_for_each_waiter_within_the_limits() {
    let none = Duration::ZERO;
    check_openings(limits(9, 0), 0, 0, none, 0);
    check_openings(limits(9, 0), 1, 0, none, 1);
    check_openings(limits(9, 0), 9, 0, none, OPENING_MAX);
    check_openings(limits(9, 0), 2, 2, none, 0);
    check_openings(limits(9, 0), 3, 2, none, 1);
    check_openings(limits(2, 0), 9, 0, none, 2);
    check_openings(limits(0, 0), 9, 0, none, 0);
    check_openings(limits(u32::MAX, 7), 9, 0, 9 * SECOND, OPENING_MAX);
}

#[test]
fn the_reserve_opens_when_the_first_has_waited_long_enough() {
    let almost = 5 * SECOND - Duration::from_millis(1);
    check_openings(limits(0, 2), 9, 0, almost, 0);
    check_openings(limits(0, 2), 9, 0, 5 * SECOND, 2);
    check_openings(Limits { reserve_after: None, ..limits(0, 2) }, 9, 0, 99 * SECOND, 0);
}

#[test]
fn a_server_of_the_reserve_goes_when_nobody_waits() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(1, 1), &["a"], now);
    lent(&mut pool, 0, now);
    pool.enqueue(1, 0, now);
    pool.begin_opening();
    assert_eq!(pool.opened("b", 0, now), Ok(Some((1, "b"))));
    assert_eq!(pool.release("b", NOBODY, 0, now), Err("b"));
    assert_eq!(pool.release("a", NOBODY, 0, now), Ok(None));
}

#[test]
fn a_pool_that_has_become_smaller_sheds_its_servers_as_they_come_back() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(3, 0), &["a", "b", "c"], now);
    while lent(&mut pool, 0, now).is_some() {}
    pool.set_limits(limits(1, 0));
    pool.enqueue(1, 0, now);
    assert_eq!(pool.release("a", NOBODY, 0, now), Err("a"));
    assert_eq!(pool.release("b", NOBODY, 0, now), Err("b"));
    assert_eq!(pool.release("c", NOBODY, 0, now), Ok(Some((1, "c"))));
}

#[test]
fn while_held_servers_that_come_back_are_kept_for_those_who_wait() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(2, 0), &["a", "b"], now);
    assert_eq!(lent(&mut pool, 0, now), Some("b"));
    pool.set_held(true);
    assert_eq!(lent(&mut pool, 0, now), None);
    pool.enqueue(1, 0, now);
    assert_eq!(pool.release("b", NOBODY, 0, now), Ok(None));
    assert_eq!((pool.idle_count(), pool.leased(), pool.waiting()), (2, 0, 1));
    pool.set_held(false);
    assert_eq!(pool.serve_waiters(), [(1, "b")]);
}

#[test]
fn while_paused_nothing_is_lent_and_everyone_waits() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(2, 0), &["a", "b"], now);
    lent(&mut pool, 0, now);
    pool.set_paused(true);
    assert_eq!(lent(&mut pool, 0, now), None);
    for waiter in 1..=3 {
        pool.enqueue(waiter, 0, now);
    }
    assert_eq!(pool.release("b", NOBODY, 0, now), Err("b"), "a paused pool keeps no server");
    assert_eq!(pool.serve_waiters(), []);
    pool.set_paused(false);
    let served: Vec<u32> = pool.serve_waiters().into_iter().map(|(waiter, _)| waiter).collect();
    assert_eq!((served, pool.waiting(), pool.idle_count()), (vec![1], 2, 0));
}

#[test]
fn idle_servers_are_taken_out_by_choice_or_by_age() {
    let now = Instant::now();
    let mut pool = pool_with_idle(limits(9, 0), &["a", "b", "c"], now);
    pool.begin_opening();
    pool.opened("other worker's", 1, now - SECOND).unwrap();
    assert_eq!(pool.take_longest_idle(), Some("other worker's"));
    assert_eq!(pool.take_idle(0, |name, _| *name == "b"), ["b"]);
    assert_eq!(pool.take_idle(0, |_, since| since <= now), ["a"]);
    assert_eq!(pool.idle().map(|(name, _)| *name).collect::<Vec<_>>(), ["c"]);
    assert_eq!((pool.take_longest_idle(), pool.take_longest_idle()), (Some("c"), None));
    assert_eq!(pool.total(), 0);
}

const WORKERS: usize = 3;

#[derive(Clone, Debug)]
enum Event {
    Acquire { client: u64, worker: usize },
    Release { which: usize, client: u64, worker: usize },
    CloseLeased { which: usize },
    Abandon { which: usize },
    Open,
    Opened { worker: usize },
    OpenFailed,
    TakeIdle { worker: usize },
    TakeLongestIdle,
    SetLimits { size: u32, reserve: u32 },
    Pause(bool),
    Pass(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let worker = 0..WORKERS;
    let client = NOBODY..4;
    prop_oneof![
        6 => (client.clone(), worker.clone()).prop_map(|(client, worker)| Event::Acquire { client, worker }),
        5 => (any::<usize>(), client, worker.clone())
            .prop_map(|(which, client, worker)| Event::Release { which, client, worker }),
        1 => any::<usize>().prop_map(|which| Event::CloseLeased { which }),
        1 => any::<usize>().prop_map(|which| Event::Abandon { which }),
        4 => Just(Event::Open),
        4 => worker.clone().prop_map(|worker| Event::Opened { worker }),
        1 => Just(Event::OpenFailed),
        1 => worker.prop_map(|worker| Event::TakeIdle { worker }),
        1 => Just(Event::TakeLongestIdle),
        1 => (0..6u32, 0..3u32).prop_map(|(size, reserve)| Event::SetLimits { size, reserve }),
        1 => any::<bool>().prop_map(Event::Pause),
        3 => (0..3_000u64).prop_map(|us| Event::Pass(Duration::from_micros(us))),
        1 => (0..9u64).prop_map(|s| Event::Pass(Duration::from_secs(s))),
    ]
}

/// The pool, and beside it where each server and each waiter is.
struct Model {
    pool: PoolState<u32, u32>,
    now: Instant,
    leased: BTreeSet<u32>,
    idle: BTreeSet<u32>,
    opening: u32,
    /// Waiters in the order in which they came, since when, and their tickets.
    waiting: BTreeMap<u32, (Instant, Ticket)>,
    paused: bool,
    last_server: u32,
    last_waiter: u32,
    /// The most servers that any limits allowed while today's servers came.
    most: u32,
}

impl Model {
    fn new() -> Self {
        Model {
            pool: PoolState::new(limits(3, 1), WORKERS),
            now: Instant::now(),
            leased: BTreeSet::new(),
            idle: BTreeSet::new(),
            opening: 0,
            waiting: BTreeMap::new(),
            paused: false,
            last_server: 0,
            last_waiter: 0,
            most: 4,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Acquire { client, worker } => self.acquire(client, worker),
            Event::Release { which, client, worker } => {
                if let Some(server) = pick(&self.leased, which) {
                    self.leased.remove(&server);
                    let placed = self.pool.release(server, client, worker, self.now);
                    self.placed(server, placed);
                }
            }
            Event::CloseLeased { which } => {
                if let Some(server) = pick(&self.leased, which) {
                    self.leased.remove(&server);
                    self.pool.forget_leased();
                }
            }
            Event::Abandon { which } => {
                if let Some((&waiter, &(_, ticket))) = nth(&self.waiting, which) {
                    self.waiting.remove(&waiter);
                    assert_eq!(self.pool.abandon(ticket), Some(waiter));
                    assert_eq!(self.pool.abandon(ticket), None);
                }
            }
            Event::Open => {
                for _ in 0..self.pool.openings_wanted(self.now) {
                    self.pool.begin_opening();
                    self.opening += 1;
                }
                assert!(self.opening <= OPENING_MAX);
            }
            Event::Opened { worker } if self.opening > 0 => {
                self.opening -= 1;
                self.last_server += 1;
                let placed = self.pool.opened(self.last_server, worker, self.now);
                self.placed(self.last_server, placed);
            }
            Event::OpenFailed if self.opening > 0 => {
                self.opening -= 1;
                self.pool.end_opening();
            }
            Event::Opened { .. } | Event::OpenFailed => {}
            Event::TakeIdle { worker } => {
                for server in self.pool.take_idle(worker, |server, _| *server % 2 == 0) {
                    assert!(self.idle.remove(&server));
                }
            }
            Event::TakeLongestIdle => {
                if let Some(server) = self.pool.take_longest_idle() {
                    assert!(self.idle.remove(&server));
                }
            }
            Event::SetLimits { size, reserve } => self.pool.set_limits(limits(size, reserve)),
            Event::Pause(paused) => self.pause(paused),
            Event::Pass(time) => self.now += time,
        }
    }

    /// As a pool does: who gets no idle server waits.
    fn acquire(&mut self, client: u64, worker: usize) {
        match self.pool.acquire(client, worker, self.now, |_| 0) {
            Some(lent) => {
                assert!(!self.paused && self.waiting.is_empty(), "nobody overtakes");
                assert!(self.idle.remove(&lent.server), "only an idle server is lent");
                assert!(self.leased.insert(lent.server), "no server is lent twice");
            }
            None => {
                assert!(self.paused || self.idle.is_empty(), "nobody waits while a server is idle");
                self.last_waiter += 1;
                let ticket = self.pool.enqueue(self.last_waiter, worker, self.now);
                self.waiting.insert(self.last_waiter, (self.now, ticket));
            }
        }
    }

    fn placed(&mut self, server: u32, placed: Result<Option<(u32, u32)>, u32>) {
        match placed {
            Ok(Some((waiter, got))) => {
                assert_eq!(got, server);
                let oldest = self.waiting.values().map(|(since, _)| *since).min();
                self.serve(waiter, server, oldest.map(|oldest| oldest + SAME_MOMENT));
            }
            Ok(None) => assert!(self.idle.insert(server)),
            Err(closed) => {
                assert_eq!(closed, server);
                let limits = self.pool.limits();
                assert!(
                    self.paused || self.pool.total() >= limits.size,
                    "only what is too many, or comes back while paused, is closed"
                );
            }
        }
    }

    fn serve(&mut self, waiter: u32, server: u32, came_until: Option<Instant>) {
        assert!(!self.paused);
        let (since, _) = self.waiting.remove(&waiter).expect("who is served has waited");
        assert!(came_until.is_some_and(|until| since <= until), "first come, first served");
        assert!(self.leased.insert(server), "no server is lent twice");
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.pool.set_paused(paused);
        for (waiter, server) in self.pool.serve_waiters() {
            assert!(self.idle.remove(&server));
            let oldest = self.waiting.values().map(|(since, _)| *since).min();
            self.serve(waiter, server, oldest);
        }
    }

    fn check(&mut self) {
        let pool = &self.pool;
        let names: BTreeSet<u32> = pool.idle().map(|(server, _)| *server).collect();
        assert_eq!(names, self.idle);
        assert_eq!(pool.idle_count() as usize, self.idle.len());
        assert_eq!(pool.leased() as usize, self.leased.len());
        assert_eq!(pool.opening(), self.opening);
        assert_eq!(pool.total(), pool.idle_count() + pool.leased() + pool.opening());
        assert!(pool.waiters().eq(self.waiting.keys()), "the queue is in the order of coming");
        assert!(
            self.paused || self.idle.is_empty() || self.waiting.is_empty(),
            "nobody waits beside a server"
        );
        // Limits that shrink take effect as servers come back; beyond them there is never one more.
        let limit = pool.limits().size + pool.limits().reserve;
        assert!(pool.total() <= limit.max(self.most), "{} servers, {limit} allowed", pool.total());
        self.most = pool.total().max(limit.min(self.most));
    }
}

fn pick(set: &BTreeSet<u32>, which: usize) -> Option<u32> {
    set.iter().nth(which % set.len().max(1)).copied()
}

fn nth<K, V>(map: &BTreeMap<K, V>, which: usize) -> Option<(&K, &V)> {
    map.iter().nth(which % map.len().max(1))
}

proptest! {
    #[test]
    fn the_ledger_agrees_with_who_has_what(events in prop::collection::vec(event(), 0..200)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
            model.check();
        }
    }
}

#[test]
fn servers_that_are_spread_are_lent_by_their_load_whichever_worker_has_them() {
    let (mut pool, now) = (PoolState::<&str, u32>::new(limits(4, 0), 2), Instant::now());
    pool.set_spread(true);
    for (server, worker) in [("busy", 0), ("busy too", 0), ("free", 1)] {
        pool.begin_opening();
        assert_eq!(pool.opened(server, worker, now), Ok(None));
    }
    let load = |server: &&str| usize::from(server.starts_with("busy"));
    let lent = |pool: &mut PoolState<&'static str, u32>, worker| {
        pool.acquire(NOBODY, worker, now, load).map(|lent| (lent.server, lent.worker))
    };
    assert_eq!(lent(&mut pool, 0), Some(("free", 1)));
    assert_eq!(lent(&mut pool, 1), Some(("busy", 0)));
    assert_eq!(lent(&mut pool, 0), Some(("busy too", 0)));
    assert_eq!(lent(&mut pool, 0), None);
}

#[test]
fn an_attempt_becomes_a_lent_server_only_for_one_whose_turn_it_is() {
    let now = Instant::now();
    let mut pool: PoolState<&str, u32> = PoolState::new(limits(2, 0), 1);
    pool.enqueue(1, 0, now);
    pool.enqueue(2, 0, now);
    pool.begin_opening();
    assert_eq!(pool.lend_opening(|waiter| *waiter == 2), None, "the first in the queue would be overtaken");
    pool.begin_opening();
    assert_eq!(pool.lend_opening(|waiter| *waiter == 2), Some(2));
    assert_eq!((pool.leased(), pool.opening(), pool.waiting()), (1, 1, 1));
    pool.set_paused(true);
    assert_eq!(pool.lend_opening(|waiter| *waiter == 1), None);
    pool.set_paused(false);
    assert_eq!(pool.lend_opening(|waiter| *waiter == 1), Some(1));
    assert_eq!((pool.room(now), pool.must_wait()), (0, false));
}
