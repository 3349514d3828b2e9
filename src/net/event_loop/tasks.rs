//! The tasks of one thread: who is woken has its turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use super::Shared;

/// Turns that are given before the loop looks for events again.
const TURNS_MAX: usize = 64;

/// Reads, writes or accepted connections of one turn, where a task has no limit of its own.
const BUDGET: u32 = 128;

thread_local! {
    static TASKS: RefCell<Tasks> = const { RefCell::new(Tasks { slots: Slab::new(), ready: VecDeque::new() }) };
    /// What is left of the [`BUDGET`]; `None` on threads without a loop, which have theirs from tokio.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Tasks {
    /// `None` has its turn now.
    slots: Slab<Option<Task>>,
    /// Who is to have a turn, in this order. Who has ended meanwhile is passed over.
    ready: VecDeque<usize>,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    alarm: Arc<Alarm>,
    /// The alarm's.
    waker: Waker,
}

/// What wakes a task, from any thread.
struct Alarm {
    shared: Arc<Shared>,
    key: usize,
    /// This thread has woken the task, which has had no turn since then.
    is_set: AtomicBool,
    /// The same of another thread.
    is_set_elsewhere: AtomicBool,
}

/// Begins a task on this thread.
///
/// # Panics
///
/// Where the thread runs no event loop.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    let future = Box::pin(task);
    let shared = super::sources::current_loop().expect("tasks begin on threads that run an event loop");
    TASKS.with_borrow_mut(|tasks| {
        let slot = tasks.slots.vacant_entry();
        let (is_set, is_set_elsewhere) = (AtomicBool::new(true), AtomicBool::new(false));
        let alarm = Arc::new(Alarm { shared, key: slot.key(), is_set, is_set_elsewhere });
        tasks.ready.push_back(slot.key());
        let waker = Waker::from(Arc::clone(&alarm));
        slot.insert(Some(Task { future, alarm, waker }));
    });
}

/// Gives turns to who is to have one. Returns whether everybody had.
pub(super) fn run_some() -> bool {
    for _ in 0..TURNS_MAX {
        let Some((key, mut task)) = TASKS.with_borrow_mut(Tasks::next) else { return true };
        // Who wakes it from now on gives it another turn.
        task.alarm.is_set.store(false, Ordering::Relaxed);
        if task.alarm.is_set_elsewhere.load(Ordering::Relaxed) {
            // What was done before it was woken there is seen from here on.
            task.alarm.is_set_elsewhere.swap(false, Ordering::AcqRel);
        }
        LEFT.set(Some(BUDGET));
        match task.future.as_mut().poll(&mut Context::from_waker(&task.waker)) {
            Poll::Pending => TASKS.with_borrow_mut(|tasks| tasks.slots[key] = Some(task)),
            Poll::Ready(()) => drop(TASKS.with_borrow_mut(|tasks| tasks.slots.remove(key))),
        }
    }
    TASKS.with_borrow(|tasks| tasks.ready.is_empty())
}

impl Tasks {
    fn next(&mut self) -> Option<(usize, Task)> {
        loop {
            let key = self.ready.pop_front()?;
            if let Some(task) = self.slots.get_mut(key).and_then(Option::take) {
                return Some((key, task));
            }
        }
    }
}

/// Pending when a task has done enough in this turn: it gets another one behind the others.
pub(in crate::net) fn poll_budget(context: &Context<'_>) -> Poll<()> {
    let left = LEFT.get();
    if left == Some(0) {
        context.waker().wake_by_ref();
        return Poll::Pending;
    }
    LEFT.set(left.map(|left| left - 1));
    Poll::Ready(())
}

/// Has these tasks have a turn.
pub(super) fn add_ready(woken: &mut Vec<usize>) {
    TASKS.with_borrow_mut(|tasks| tasks.ready.extend(woken.drain(..)));
}

/// Drops all tasks of the thread, as its loop ends.
pub(super) fn end() {
    let tasks = TASKS.with_borrow_mut(|tasks| std::mem::take(&mut tasks.slots));
    drop(tasks);
    LEFT.set(None);
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.shared.is_this_threads() {
            // Nobody else looks at that: it costs no atomic exchange.
            if !self.is_set.load(Ordering::Relaxed) {
                self.is_set.store(true, Ordering::Relaxed);
                TASKS.with_borrow_mut(|tasks| tasks.ready.push_back(self.key));
            }
        } else if !self.is_set_elsewhere.swap(true, Ordering::AcqRel) {
            self.shared.wake(self.key);
        }
    }
}
