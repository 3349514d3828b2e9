//! [`Spread`]: on how many workers the clients live, and who of them moves.
//!
//! A worker that is asked by many clients answers several at each turn of its event loop; the same clients on
//! two workers cost more sleeping and waking, and servers that change threads. So as many workers are in use as
//! the load wants, from one to all. A client moves when it is between two transactions and nothing of it is
//! anywhere but in its [`Session`](super::Session).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// So many ticks of [`Plane::TICK`](super::plane::Plane::TICK) in a row must say that fewer workers are enough: 5 s.
/// Loads that come and go do not send clients to and fro.
const CALM_TICKS: u32 = 50;

/// After a decision the next is so many ticks away, and more if many clients move: the loads of before are no reason.
const SETTLING_TICKS: u32 = 3;

/// Clients that leave one worker in one tick. Each costs some ten microseconds, during which others wait.
const MOVES_MAX: u32 = 100;

/// How the clients are spread over the workers.
#[derive(Debug)]
pub struct Spread {
    /// Connections of each worker, logged in or not.
    connections: Vec<AtomicU32>,
    /// Time of its core that each worker's thread had in its last tick, in percent.
    busy: Vec<AtomicU32>,
    in_use: AtomicUsize,
    /// Ticks in a row. Only one thread writes it, and the next.
    calm_ticks: AtomicU32,
    /// Ticks until the workers' loads say what the last decision has done.
    settling_ticks: AtomicU32,
    /// Clients that have set out and are in no mailbox yet.
    leaving: AtomicU32,
    /// Those who ask all workers, and for whom no client may be on its way.
    asking: AtomicU32,
}

/// Clients to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moves {
    /// The worker that they go to.
    pub to: usize,
    /// How many.
    pub count: u32,
}

/// Keeps clients where they are while all workers are asked something.
#[derive(Debug)]
pub struct Standstill(Arc<Spread>);

impl Spread {
    /// For so many workers, which have nothing to do yet; `busy_max` is `worker_load_max`.
    pub fn new(workers: usize, busy_max: u32) -> Self {
        let zeros = || (0..workers).map(|_| AtomicU32::new(0)).collect();
        let (in_use, _) = decide(1, &vec![0; workers], busy_max, 0);
        Spread {
            connections: zeros(),
            busy: zeros(),
            in_use: AtomicUsize::new(in_use),
            calm_ticks: AtomicU32::new(0),
            settling_ticks: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
            asking: AtomicU32::new(0),
        }
    }

    /// A new connection: which worker it belongs to. Of those in use, the one with the fewest.
    pub fn place(&self) -> usize {
        let worker = self.least(self.in_use());
        self.connections[worker].fetch_add(1, Ordering::Relaxed);
        worker
    }

    /// The worker with the fewest connections of all, in use or not, the one of this worker that asks left out.
    pub fn least_beside(&self, worker: usize) -> usize {
        let connections = self.connections();
        let others = |of: &usize| connections[*of] - u32::from(*of == worker);
        (0..connections.len()).min_by_key(others).expect("there is at least one worker")
    }

    fn least(&self, among: usize) -> usize {
        let connections = |worker: &usize| self.connections[*worker].load(Ordering::Relaxed);
        (0..among).min_by_key(connections).expect("there is at least one worker")
    }

    /// A connection of this worker has ended.
    pub fn left(&self, worker: usize) {
        self.connections[worker].fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections of each worker, logged in or not.
    pub fn connections(&self) -> Vec<u32> {
        self.connections.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Workers that clients are given to.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// What a worker's thread had of its core in its last tick, which took so long.
    pub fn note_busy(&self, worker: usize, had: Duration, took: Duration) {
        let percent = 100.0 * had.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
        // A float becomes the nearest u32 there is.
        self.busy[worker].store(percent as u32, Ordering::Relaxed);
    }

    /// Decides how many workers are in use from now on; `busy_max` is `worker_load_max`. One thread does it, at each tick.
    pub fn decide(&self, busy_max: u32) {
        let in_use = self.in_use();
        let settling = self.settling_ticks.load(Ordering::Relaxed);
        self.settling_ticks.store(settling.saturating_sub(1), Ordering::Relaxed);
        if settling > 0 && fixed(self.busy.len(), busy_max).is_none() {
            return;
        }
        let busy: Vec<_> = self.busy.iter().map(|busy| busy.load(Ordering::Relaxed)).collect();
        let (wanted, calm_ticks) = decide(in_use, &busy, busy_max, self.calm_ticks.load(Ordering::Relaxed));
        self.calm_ticks.store(calm_ticks, Ordering::Relaxed);
        if wanted != in_use {
            tracing::debug!("clients are on {wanted} workers from now on, not {in_use}");
            self.in_use.store(wanted, Ordering::Relaxed);
            let on_the_way = self.connections().iter().sum::<u32>() / MOVES_MAX;
            self.settling_ticks.store(SETTLING_TICKS + on_the_way, Ordering::Relaxed);
        }
    }

    /// The clients that should leave this worker now.
    pub fn surplus(&self, worker: usize) -> Option<Moves> {
        surplus(worker, &self.connections(), self.in_use())
    }

    /// A client sets out from one worker to another, and belongs there from now on; false if it may not now. It is in the
    /// other's mailbox [soon](Spread::note_sent), without a wait in between.
    pub fn set_out(&self, from: usize, to: usize) -> bool {
        // Either we see who asks, or who asks sees that we are on the way.
        self.leaving.fetch_add(1, Ordering::SeqCst);
        let may = self.asking.load(Ordering::SeqCst) == 0;
        if may {
            self.connections[to].fetch_add(1, Ordering::Relaxed);
            self.left(from);
        } else {
            self.note_sent();
        }
        may
    }

    /// A client that set out is in the mailbox of its new worker.
    pub fn note_sent(&self) {
        self.leaving.fetch_sub(1, Ordering::SeqCst);
    }

    /// From now until this is dropped no client sets out, and all that have are in mailboxes: who sends to all workers now
    /// comes behind them.
    pub fn stand_still(self: &Arc<Self>) -> Standstill {
        self.asking.fetch_add(1, Ordering::SeqCst);
        while self.leaving.load(Ordering::SeqCst) > 0 {
            // It is a few lines of its thread.
            std::thread::yield_now();
        }
        Standstill(Arc::clone(self))
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Workers that are in use whatever the load is: the ends of the setting's scale.
fn fixed(all: usize, busy_max: u32) -> Option<usize> {
    match busy_max {
        0 => Some(all),
        100.. => Some(1),
        _ => None,
    }
}

/// Workers that should be in use, and for how many ticks fewer would have been enough.
fn decide(in_use: usize, busy: &[u32], busy_max: u32, calm_ticks: u32) -> (usize, u32) {
    let all = busy.len();
    if let Some(in_use) = fixed(all, busy_max) {
        return (in_use, 0);
    }
    if busy[..in_use].iter().any(|busy| *busy > busy_max) {
        return ((in_use * 2).min(all), 0);
    }
    // Half of what would be too much, so that there is a long way back.
    let room = busy_max as usize * (in_use - 1) / 2;
    let sum: usize = busy.iter().map(|busy| *busy as usize).sum();
    match (sum <= room && in_use > 1, calm_ticks + 1) {
        (false, _) => (in_use, 0),
        (true, CALM_TICKS..) => (in_use - 1, 0),
        (true, calm_ticks) => (in_use, calm_ticks),
    }
}

/// What is beyond a worker's share, and worth the way to the one that has the least.
fn surplus(worker: usize, connections: &[u32], in_use: usize) -> Option<Moves> {
    let workers = u32::try_from(in_use).expect("there are few workers");
    let share = connections.iter().sum::<u32>().div_ceil(workers);
    let (share_here, slack) = if worker < in_use { (share, share / 4) } else { (0, 0) };
    let beyond = connections[worker].saturating_sub(share_here);
    let to = (0..in_use).filter(|to| *to != worker).min_by_key(|to| connections[*to])?;
    let room = share.saturating_sub(connections[to]);
    let count = beyond.min(room).min(MOVES_MAX);
    (beyond > slack && count > 0).then_some(Moves { to, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_is_in_use_until_it_has_too_much_to_do() {
        assert_eq!(decide(1, &[70, 0, 0, 0], 70, 0), (1, 0));
        assert_eq!(decide(1, &[71, 0, 0, 0], 70, 0), (2, 0));
        assert_eq!(decide(2, &[60, 71, 0, 0], 70, 0), (4, 0));
        assert_eq!(decide(3, &[60, 71, 90, 0], 70, 0), (4, 0));
        assert_eq!(decide(4, &[99, 99, 99, 99], 70, 0), (4, 0), "there are no more");
    }

    #[test]
    fn a_worker_that_is_out_of_use_may_be_busy() {
        assert_eq!(decide(1, &[20, 99], 70, 0), (1, 0));
    }

    #[test]
    fn fewer_workers_are_in_use_when_they_have_been_enough_for_five_seconds() {
        let (mut in_use, mut calm_ticks, mut ticks) = (4, 0, Vec::new());
        for tick in 1..=500 {
            let (wanted, calm) = decide(in_use, &[15, 15, 10, 10], 70, calm_ticks);
            if wanted != in_use {
                ticks.push((tick, wanted));
            }
            (in_use, calm_ticks) = (wanted, calm);
        }
        assert_eq!(ticks, [(50, 3), (100, 2)], "50 % of a core is too much to come back to one worker");
    }

    #[test]
    fn one_busy_moment_begins_the_five_seconds_anew() {
        assert_eq!(decide(2, &[10, 10], 70, 48), (2, 49));
        assert_eq!(decide(2, &[30, 30], 70, 49), (2, 0));
    }

    #[test]
    fn the_load_of_before_the_clients_moved_adds_no_more_workers() {
        let spread = Spread::new(8, 70);
        for _ in 0..250 {
            spread.place();
        }
        let mut in_use = Vec::new();
        for _ in 0..20 {
            spread.decide(70);
            in_use.push(spread.in_use());
            // Half of the clients are on the other worker one tick after the decision, and the load is seen one later.
            let busy = if in_use.len() > 3 { [40, 40] } else { [80, 0] };
            for (worker, had) in busy.into_iter().enumerate() {
                spread.note_busy(worker, Duration::from_millis(had), Duration::from_millis(100));
            }
        }
        in_use.dedup();
        assert_eq!(in_use, [1, 2]);
    }

    #[test]
    fn who_asks_all_workers_comes_behind_who_is_on_the_way_and_nobody_sets_out_meanwhile() {
        let spread = Arc::new(Spread::new(2, 0));
        spread.connections[0].fetch_add(2, Ordering::Relaxed);
        assert!(spread.set_out(0, 1));
        let asks = std::thread::spawn({
            let spread = Arc::clone(&spread);
            move || spread.stand_still()
        });
        while spread.asking.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(!spread.set_out(0, 1) && !asks.is_finished());
        spread.note_sent();
        let standstill = asks.join().expect("it does not wait any more");
        assert!(!spread.set_out(0, 1));
        drop(standstill);
        assert!(spread.set_out(0, 1));
        assert_eq!(spread.connections(), [0, 2]);
    }

    #[test]
    fn the_ends_of_the_scale_are_all_workers_and_one() {
        assert_eq!(decide(1, &[0, 0, 0], 0, 0), (3, 0));
        assert_eq!(decide(3, &[100, 100, 100], 100, 0), (1, 0));
    }

    #[test]
    fn all_clients_leave_a_worker_that_is_out_of_use_some_at_a_time() {
        assert_eq!(surplus(1, &[40, 30], 1), Some(Moves { to: 0, count: 30 }));
        assert_eq!(surplus(1, &[40, 300], 1), Some(Moves { to: 0, count: MOVES_MAX }));
        assert_eq!(surplus(2, &[40, 41, 1], 2), Some(Moves { to: 0, count: 1 }));
        assert_eq!(surplus(2, &[5, 5, 1], 2), Some(Moves { to: 0, count: 1 }));
    }

    #[test]
    fn a_worker_gives_away_what_is_beyond_its_share() {
        assert_eq!(surplus(0, &[40, 0], 2), Some(Moves { to: 1, count: 20 }));
        assert_eq!(surplus(0, &[400, 0, 0, 0], 4), Some(Moves { to: 1, count: 100 }));
        assert_eq!(surplus(1, &[40, 0], 2), None);
    }

    #[test]
    fn a_small_difference_is_not_worth_the_way() {
        assert_eq!(surplus(0, &[25, 15], 2), None);
        assert_eq!(surplus(0, &[26, 14], 2), Some(Moves { to: 1, count: 6 }));
        assert_eq!(surplus(0, &[1, 0], 2), None);
        assert_eq!(surplus(0, &[2, 0], 2), Some(Moves { to: 1, count: 1 }));
    }

    #[test]
    fn one_worker_has_nobody_to_give_to() {
        assert_eq!(surplus(0, &[40], 1), None);
        assert_eq!(surplus(0, &[40, 0], 1), None);
    }

    proptest::proptest! {
        /// Whatever the connections are at first, the moving ends, with nobody where nobody should be and no worker
        /// far beyond its share.
        #[test]
        fn the_moving_comes_to_an_end(
            start in proptest::collection::vec(0_u32..500, 1..9),
            unused in 0_usize..8,
        ) {
            let in_use = start.len().saturating_sub(unused).max(1);
            let mut connections = start;
            let mut rounds = 0;
            loop {
                let mut moved = 0;
                for worker in 0..connections.len() {
                    if let Some(moves) = surplus(worker, &connections, in_use) {
                        connections[worker] -= moves.count;
                        connections[moves.to] += moves.count;
                        moved += moves.count;
                    }
                }
                if moved == 0 {
                    break;
                }
                rounds += 1;
                assert!(rounds < 200, "{connections:?}");
            }
            let share = connections.iter().sum::<u32>().div_ceil(u32::try_from(in_use).expect("there are few"));
            let most = |worker: usize| if worker < in_use { share + share / 4 } else { 0 };
            assert!((0..connections.len()).all(|worker| connections[worker] <= most(worker)), "{connections:?}");
        }
    }
}
