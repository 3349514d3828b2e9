//! The event loop of one thread: its tasks, its sockets and its sleep. Start with [`EventLoop::run`].
//!
//! tokio's own is made for tasks and sockets that any thread may touch. On the way of a query through a worker half of the
//! locks and atomic operations were its, and most readings of the clock, around each sleep: 4 % of the processor time of the
//! whole, the kernel's part included. A worker's tasks and sockets are its own thread's. Timers, DNS and work that blocks
//! stay with the runtime that the process has for everything else.

mod sources;
mod tasks;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

pub(super) use sources::{Direction, Watch};
pub(super) use tasks::poll_budget;
pub use tasks::spawn;

/// Events that one look at the kernel brings at the most; the others come with the next.
const EVENTS_MAX: usize = 1024;

/// The event that stands for [`Shared::bell`].
const BELL: u64 = u64::MAX;

thread_local! {
    /// This thread's loop, while it runs, to be compared with.
    static CURRENT: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// An event loop that no thread runs yet.
#[derive(Debug)]
pub struct EventLoop(Arc<Shared>);

/// What other threads may touch of a loop.
#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    /// Interrupts the loop's sleep.
    bell: OwnedFd,
    /// The bell was rung, and the loop has not heard it yet.
    is_rung: AtomicBool,
    /// Tasks that other threads have woken, each once.
    woken: Mutex<Vec<usize>>,
    /// Sockets that other threads have dropped.
    left: Mutex<Vec<usize>>,
}

impl EventLoop {
    /// Fails when the process may open no more files.
    pub fn new() -> io::Result<Self> {
        let shared = Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_rung: AtomicBool::new(false),
            woken: Mutex::default(),
            left: Mutex::default(),
        };
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&shared.epoll, &shared.bell, EventData::new_u64(BELL), flags)?;
        Ok(EventLoop(Arc::new(shared)))
    }

    /// Runs a task on this thread, and those that it [begins](spawn), until it ends. What they open here is watched here.
    pub fn run(self, task: impl Future<Output = ()> + 'static) {
        let EventLoop(shared) = self;
        let _inside = Inside::enter(&shared);
        let is_over = Rc::new(Cell::new(false));
        let ending = Rc::clone(&is_over);
        spawn(async move {
            task.await;
            ending.set(true);
        });
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let are_all_done = tasks::run_some();
            if is_over.get() {
                return;
            }
            shared.look(are_all_done, &mut events);
            for event in events.drain(..) {
                match event.data.u64() {
                    BELL => shared.answer_bell(),
                    key => sources::note(key, event.flags),
                }
            }
        }
    }
}

/// A thread that runs a loop.
struct Inside;

impl Inside {
    fn enter(shared: &Arc<Shared>) -> Self {
        sources::begin(shared);
        CURRENT.set(Arc::as_ptr(shared));
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        tasks::end();
        sources::end();
        CURRENT.set(std::ptr::null());
    }
}

impl Shared {
    /// Whether the thread that asks runs the loop.
    fn is_this_threads(&self) -> bool {
        std::ptr::eq(CURRENT.get(), self)
    }

    /// Takes what has happened from the kernel; if the loop `may_sleep`, waits until something has.
    fn look(&self, may_sleep: bool, events: &mut Vec<Event>) {
        const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = (!may_sleep).then_some(&NOT_AT_ALL);
        match epoll::wait(&self.epoll, spare_capacity(events), limit) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait has failed: {error}"),
        }
    }

    /// Has the loop run a task, from another thread.
    fn wake(&self, task: usize) {
        self.woken.lock().push(task);
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            // It fails only where the loop has been rung for 2^64 times.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    fn answer_bell(&self) {
        // Who wakes a task from now on rings again.
        self.is_rung.swap(false, Ordering::AcqRel);
        tasks::add_ready(&mut self.woken.lock());
    }
}
