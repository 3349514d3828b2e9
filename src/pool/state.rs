//! The ledger of one pool: which servers are idle, how many are lent or being opened, and who waits.
//! Pure bookkeeping: no socket, no clock (`now` is an argument), and generic over what a server and a
//! waiter are, so that properties can drive it. Start with [`PoolState`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many servers a pool may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `pool_size`; `u32::MAX` is unlimited.
    pub size: u32,
    /// `reserve_pool_size`: more servers once someone has waited for `reserve_after`.
    pub reserve: u32,
    /// `reserve_pool_timeout`; `None` keeps the reserve shut.
    pub reserve_after: Option<Duration>,
    /// `server_round_robin`: the longest idle server goes first, instead of the client's own or the last used.
    pub round_robin: bool,
}

/// Attempts to open a server that may go on at once. PgBouncer makes one at a time; a few more fill a
/// cold pool sooner without storming a server that just came up.
pub const OPENING_MAX: u32 = 4;

/// Clients that began to wait within this time of each other came at the same moment: of them, one of
/// the server's own worker goes first, since a server that changes threads costs three system calls.
/// Nobody is overtaken by anyone who came later than that.
pub const SAME_MOMENT: Duration = Duration::from_millis(1);

/// How far down the queue such a client is looked for.
const LOOK_AHEAD: usize = 32;

/// A client that comes back within this time gets the server that it had, if that is idle: its settings and prepared
/// statements are there already, and answers come more evenly. After that the last used server is as good, and the
/// others may end by `server_idle_timeout`.
pub const A_MOMENT: Duration = Duration::from_millis(100);

/// How far down the stack that server is looked for.
const LOOK_BACK: usize = 32;

/// No client has this number.
pub const NOBODY: u64 = 0;

/// Names a waiter's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(i64);

/// Those of the queue's end count up from here, and those of its front down.
const MIDDLE: Ticket = Ticket(0);

#[derive(Debug)]
struct Idle<S> {
    server: S,
    since: Instant,
    /// The client whose settings it has; [`NOBODY`] where it is as new.
    last: u64,
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: Ticket,
    waiter: W,
    worker: usize,
    since: Instant,
}

/// An idle server that was just lent.
#[derive(Debug, PartialEq, Eq)]
pub struct Lent<S> {
    /// The server.
    pub server: S,
    /// How long it was idle.
    pub idle_for: Duration,
    /// The worker that it is registered with.
    pub worker: usize,
}

/// Servers and waiters of one pool. `S` is a server, `W` whoever waits for one.
///
/// Always: idle + leased + opening is at most size + reserve (limits that shrink take effect as
/// servers come back), and nobody waits while a server is idle.
#[derive(Debug)]
pub struct PoolState<S, W> {
    limits: Limits,
    /// Idle servers by the worker that they are registered with; the last used at the end.
    idle: Vec<VecDeque<Idle<S>>>,
    idle_count: u32,
    leased: u32,
    opening: u32,
    waiting: VecDeque<Waiting<W>>,
    last_ticket: Ticket,
    first_ticket: Ticket,
    paused: bool,
    held: bool,
    spread: bool,
}

impl<S, W> PoolState<S, W> {
    /// An empty pool for servers that are registered with one of `workers` workers.
    pub fn new(limits: Limits, workers: usize) -> Self {
        PoolState {
            limits,
            idle: (0..workers).map(|_| VecDeque::new()).collect(),
            idle_count: 0,
            leased: 0,
            opening: 0,
            waiting: VecDeque::new(),
            last_ticket: MIDDLE,
            first_ticket: MIDDLE,
            paused: false,
            held: false,
            spread: false,
        }
    }

    /// Lends an idle server: the one that `client` had a [moment ago](A_MOMENT), else one of `worker`'s own, else
    /// another worker's. Nobody overtakes: while others wait there is nothing to lend.
    ///
    /// While servers are [spread](PoolState::set_spread), the one of the least `load` is lent, whichever
    /// worker has it; among equals one of `worker`'s own.
    pub fn acquire<L: Ord>(
        &mut self,
        client: u64,
        worker: usize,
        now: Instant,
        load: impl Fn(&S) -> L,
    ) -> Option<Lent<S>> {
        if self.is_shut() || self.idle_count == 0 || !self.waiting.is_empty() {
            return None;
        }
        let (idle, from) = match self.spread {
            true => self.take_least(worker, load),
            false => match self.take_again(client, worker, now) {
                Some(idle) => (idle, worker),
                None => self.take_any(worker),
            },
        };
        self.idle_count -= 1;
        self.leased += 1;
        Some(Lent { server: idle.server, idle_for: now.saturating_duration_since(idle.since), worker: from })
    }

    /// The server that this client had a moment ago.
    fn take_again(&mut self, client: u64, worker: usize, now: Instant) -> Option<Idle<S>> {
        if self.limits.round_robin || client == NOBODY {
            return None;
        }
        let is_its = |idle: &Idle<S>| idle.last == client && now <= idle.since + A_MOMENT;
        let stack = &mut self.idle[worker];
        let depth = stack.iter().rev().take(LOOK_BACK).position(is_its)?;
        stack.remove(stack.len() - 1 - depth)
    }

    fn take_any(&mut self, worker: usize) -> (Idle<S>, usize) {
        let from = if self.idle[worker].is_empty() {
            let most = (0..self.idle.len()).max_by_key(|index| self.idle[*index].len());
            most.expect("idle_count > 0 was checked, so there is a worker with an idle server")
        } else {
            worker
        };
        let stack = &mut self.idle[from];
        let idle = if self.limits.round_robin { stack.pop_front() } else { stack.pop_back() };
        (idle.expect("idle_count > 0 was checked, and this worker has the most"), from)
    }

    fn take_least<L: Ord>(&mut self, worker: usize, load: impl Fn(&S) -> L) -> (Idle<S>, usize) {
        let places = self.idle.iter().enumerate().flat_map(|(of, stack)| {
            stack.iter().enumerate().map(move |(place, idle)| (&idle.server, of, place))
        });
        let least = places.min_by_key(|(server, of, _)| (load(server), *of != worker));
        let (_, from, place) = least.expect("idle_count > 0 was checked");
        (self.idle[from].remove(place).expect("it was just found there"), from)
    }

    /// Puts a waiter at the end of the queue.
    pub fn enqueue(&mut self, waiter: W, worker: usize, now: Instant) -> Ticket {
        self.last_ticket.0 += 1;
        let ticket = self.last_ticket;
        self.waiting.push_back(Waiting { ticket, waiter, worker, since: now });
        ticket
    }

    /// Puts a waiter at the front of the queue: it had its turn, and the server that it got was of no use.
    pub fn enqueue_first(&mut self, waiter: W, worker: usize, now: Instant) -> Ticket {
        self.first_ticket.0 -= 1;
        let ticket = self.first_ticket;
        self.waiting.push_front(Waiting { ticket, waiter, worker, since: now });
        ticket
    }

    /// Takes a waiter out of the queue; `None` when it was served already.
    pub fn abandon(&mut self, ticket: Ticket) -> Option<W> {
        let place = self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        self.waiting.remove(place).map(|waiting| waiting.waiter)
    }

    /// A lent server comes back from its client: it goes to the oldest waiter, else it is idle. `Err` gives it back to
    /// be closed, because the pool has become too small for it, or is paused.
    pub fn release(
        &mut self,
        server: S,
        client: u64,
        worker: usize,
        now: Instant,
    ) -> Result<Option<(W, S)>, S> {
        assert!(self.leased > 0, "a server came back that was not lent");
        self.leased -= 1;
        self.place(server, client, worker, now)
    }

    /// Whether nobody is served at once: others wait, or nothing is lent now.
    pub fn must_wait(&self) -> bool {
        self.is_shut() || !self.waiting.is_empty()
    }

    /// One more server is lent, which its client opens itself. There must be [room](PoolState::room).
    pub fn lend_new(&mut self) {
        self.leased += 1;
    }

    /// An attempt to open a server becomes a lent one, which the first in the queue that is `wanted` opens itself.
    /// Takes that one out of the queue; `None` when there is none, or nothing is lent now. Only those are looked
    /// at whom the attempts under way are for: nobody is overtaken for good.
    pub fn lend_opening(&mut self, wanted: impl Fn(&W) -> bool) -> Option<W> {
        if self.is_shut() {
            return None;
        }
        let mut in_turn = self.waiting.iter().take(self.opening as usize);
        let place = in_turn.position(|waiting| wanted(&waiting.waiter))?;
        let found = self.waiting.remove(place)?;
        self.end_opening();
        self.leased += 1;
        Some(found.waiter)
    }

    /// A lent server was closed.
    pub fn forget_leased(&mut self) {
        assert!(self.leased > 0, "a server was closed that was not lent");
        self.leased -= 1;
    }

    /// Begins as many attempts to open a server as the queue calls for and the limits allow.
    pub fn begin_openings(&mut self, now: Instant) -> u32 {
        let wanted = self.openings_wanted(now);
        (0..wanted).for_each(|_| self.begin_opening());
        wanted
    }

    /// How many servers should be opened now.
    pub fn openings_wanted(&self, now: Instant) -> u32 {
        if self.is_shut() {
            return 0;
        }
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let parallel = OPENING_MAX.saturating_sub(self.opening);
        let unserved = waiting.saturating_sub(self.opening);
        self.room(now).min(unserved).min(parallel)
    }

    /// Servers that may still be opened under the pool's own limits.
    pub fn room(&self, now: Instant) -> u32 {
        let reserve = match (self.waiting.front(), self.limits.reserve_after) {
            (Some(first), Some(after))
                if self.limits.reserve > 0 && now.saturating_duration_since(first.since) >= after =>
            {
                self.limits.reserve
            }
            _ => 0,
        };
        self.limits.size.saturating_add(reserve).saturating_sub(self.total())
    }

    /// Begins one attempt, if the pool has fewer than `minimum` servers and may have more.
    pub fn begin_filling(&mut self, minimum: u32, now: Instant) -> bool {
        let lacks = minimum > self.total() && self.opening == 0 && self.room(now) > 0 && !self.is_shut();
        if lacks {
            self.begin_opening();
        }
        lacks
    }

    /// An attempt to open a server has begun.
    pub fn begin_opening(&mut self) {
        self.opening += 1;
    }

    /// The attempt succeeded; the new server is placed as in [`PoolState::release`].
    pub fn opened(&mut self, server: S, worker: usize, now: Instant) -> Result<Option<(W, S)>, S> {
        self.end_opening();
        self.place(server, NOBODY, worker, now)
    }

    /// The attempt failed.
    pub fn end_opening(&mut self) {
        assert!(self.opening > 0, "an attempt ended that was not begun");
        self.opening -= 1;
    }

    fn place(&mut self, server: S, client: u64, worker: usize, now: Instant) -> Result<Option<(W, S)>, S> {
        // PAUSE is complete when no server is left.
        if self.paused || self.total() >= self.limits.size.saturating_add(self.limits.reserve) {
            return Err(server);
        }
        // While held, a server whose place was not left waits with the others for what will be known soon.
        if !self.held
            && let Some(first) = self.take_next(worker)
        {
            self.leased += 1;
            return Ok(Some((first.waiter, server)));
        }
        // A server of the reserve is for those who wait: it goes when nobody does.
        if self.total() >= self.limits.size {
            return Err(server);
        }
        self.idle[worker].push_back(Idle { server, since: now, last: client });
        self.idle_count += 1;
        Ok(None)
    }

    /// The first in the queue, or one of `worker` that came at the same moment.
    fn take_next(&mut self, worker: usize) -> Option<Waiting<W>> {
        let first = self.waiting.front()?;
        if first.worker == worker {
            return self.waiting.pop_front();
        }
        let moment = first.since + SAME_MOMENT;
        let same_moment = self.waiting.iter().take(LOOK_AHEAD).take_while(|waiting| waiting.since <= moment);
        let place = same_moment.into_iter().position(|waiting| waiting.worker == worker);
        self.waiting.remove(place.unwrap_or(0))
    }

    /// Takes out the idle servers of a worker that `unwanted` says so of.
    pub fn take_idle(&mut self, worker: usize, mut unwanted: impl FnMut(&mut S, Instant) -> bool) -> Vec<S> {
        let mut taken = Vec::new();
        let stack = &mut self.idle[worker];
        for _ in 0..stack.len() {
            let Some(mut idle) = stack.pop_front() else {
                break;
            };
            if unwanted(&mut idle.server, idle.since) {
                taken.push(idle.server);
                self.idle_count -= 1;
            } else {
                stack.push_back(idle);
            }
        }
        taken
    }

    /// Takes out the server that has been idle longest, to make room for another pool.
    pub fn take_longest_idle(&mut self) -> Option<S> {
        let oldest = (0..self.idle.len())
            .filter_map(|worker| self.idle[worker].front().map(|idle| (idle.since, worker)))
            .min();
        let (_, worker) = oldest?;
        let idle = self.idle[worker].pop_front()?;
        self.idle_count -= 1;
        Some(idle.server)
    }

    /// Every idle server, in no order.
    pub fn idle(&self) -> impl Iterator<Item = (&S, Instant)> {
        self.idle.iter().flatten().map(|idle| (&idle.server, idle.since))
    }

    /// The idle servers of this worker, in no order.
    pub fn idle_of(&self, worker: usize) -> impl Iterator<Item = &S> {
        self.idle[worker].iter().map(|idle| &idle.server)
    }

    /// Servers beyond `pool_size`, of the reserve.
    pub fn reserve_used(&self) -> u32 {
        self.total().saturating_sub(self.limits.size)
    }

    /// Everyone who waits, the first first.
    pub fn waiters(&self) -> impl Iterator<Item = &W> {
        self.waiting.iter().map(|waiting| &waiting.waiter)
    }

    /// Sends everyone away.
    pub fn take_waiters(&mut self) -> Vec<W> {
        self.waiting.drain(..).map(|waiting| waiting.waiter).collect()
    }

    /// PAUSE: nothing is lent and nothing opened; everyone waits.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// While there is no server that may be used, everyone waits as after PAUSE.
    pub fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// Whether its servers are at several places that share the work.
    pub fn set_spread(&mut self, spread: bool) {
        self.spread = spread;
    }

    /// Whether nothing is lent and nothing opened, be there room or not.
    pub fn is_shut(&self) -> bool {
        self.paused || self.held
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.idle.len()
    }

    /// After RESUME: waiters that idle servers can be given to, oldest first.
    pub fn serve_waiters(&mut self) -> Vec<(W, S)> {
        let mut served = Vec::new();
        while !self.is_shut() && !self.waiting.is_empty() {
            let Some(stack) = self.idle.iter_mut().find(|stack| !stack.is_empty()) else {
                break;
            };
            let Some(idle) = stack.pop_back() else { break };
            let Some(first) = self.waiting.pop_front() else {
                break;
            };
            self.idle_count -= 1;
            self.leased += 1;
            served.push((first.waiter, idle.server));
        }
        served
    }

    /// New limits, after a RELOAD.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Idle, leased and opening servers together.
    pub fn total(&self) -> u32 {
        self.idle_count + self.leased + self.opening
    }

    /// Servers that wait for a client.
    pub fn idle_count(&self) -> u32 {
        self.idle_count
    }

    /// Servers that are lent.
    pub fn leased(&self) -> u32 {
        self.leased
    }

    /// Attempts to open a server.
    pub fn opening(&self) -> u32 {
        self.opening
    }

    /// Clients in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How long the first in the queue has waited.
    pub fn longest_wait(&self, now: Instant) -> Duration {
        self.waiting.front().map_or(Duration::ZERO, |first| now.saturating_duration_since(first.since))
    }
}

#[cfg(test)]
mod tests;
