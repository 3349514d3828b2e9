//! The sockets that one thread watches.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustix::event::epoll::{self, EventData, EventFlags};
use slab::Slab;

use super::Shared;

/// What the kernel is asked to tell, each once (`EPOLLET`, epoll(7)): a socket that was read empty or filled up is not asked
/// again before that.
const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

thread_local! {
    /// What the loop of this thread watches, while it runs.
    static SOURCES: RefCell<Option<Sources>> = const { RefCell::new(None) };
}

struct Sources {
    shared: Arc<Shared>,
    slots: Slab<Source>,
}

/// One socket, as far as the kernel has told.
#[derive(Debug, Default)]
struct Source {
    reading: Side,
    writing: Side,
    /// Nothing more will come than is there.
    is_ended: bool,
}

#[derive(Debug, Default)]
struct Side {
    seems_ready: bool,
    /// Who is woken is still waiting.
    is_awaited: bool,
    waker: Option<Waker>,
}

/// What a socket is to be ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Direction {
    Read,
    Write,
}

/// This thread runs a loop from here on.
pub(super) fn begin(shared: &Arc<Shared>) {
    let sources = Sources { shared: Arc::clone(shared), slots: Slab::new() };
    let before = SOURCES.replace(Some(sources));
    assert!(before.is_none(), "a thread runs one event loop");
}

/// And until here.
pub(super) fn end() {
    drop(SOURCES.take());
}

/// The loop that this thread runs.
pub(super) fn current_loop() -> Option<Arc<Shared>> {
    SOURCES.with_borrow(|sources| sources.as_ref().map(|sources| Arc::clone(&sources.shared)))
}

/// Tells who waits for the socket of this key, or the one that has its place now, which finds that there is nothing.
#[inline]
pub(super) fn note(key: u64, flags: EventFlags) {
    SOURCES.with_borrow_mut(|sources| {
        let slots = sources.as_mut().map(|sources| &mut sources.slots);
        if let (Some(slots), Ok(key)) = (slots, usize::try_from(key))
            && let Some(source) = slots.get_mut(key)
        {
            source.note(flags);
        }
    });
}

/// Makes room of the sockets that other threads have dropped.
fn forget_left() {
    let left: Vec<Source> = SOURCES.with_borrow_mut(|sources| {
        let Some(sources) = sources else { return Vec::new() };
        let left = std::mem::take(&mut *sources.shared.left.lock());
        left.into_iter().map(|key| sources.slots.remove(key)).collect()
    });
    // Only here: who is dropped with them may have sockets of its own.
    drop(left);
}

#[cfg(test)]
pub(super) fn count() -> usize {
    SOURCES.with_borrow(|sources| sources.as_ref().map_or(0, |sources| sources.slots.len()))
}

impl Source {
    fn note(&mut self, flags: EventFlags) {
        let is_ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.is_ended |= is_ended;
        if is_ended || flags.contains(EventFlags::IN) {
            self.reading.note_ready();
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.writing.note_ready();
        }
    }

    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Read => &mut self.reading,
            Direction::Write => &mut self.writing,
        }
    }
}

impl Side {
    fn note_ready(&mut self) {
        self.seems_ready = true;
        if std::mem::take(&mut self.is_awaited)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}

/// A socket's place in the loop of the thread that [has opened](Watch::new) it.
#[derive(Debug)]
pub(in crate::net) struct Watch {
    shared: Arc<Shared>,
    key: usize,
}

impl Watch {
    /// Has this thread's loop watch a socket, which has room for bytes already if it `seems_writable`. `None` where the
    /// thread has no loop.
    pub(in crate::net) fn new(socket: impl AsFd, seems_writable: bool) -> io::Result<Option<Watch>> {
        forget_left();
        SOURCES.with_borrow_mut(|sources| {
            let Some(sources) = sources else { return Ok(None) };
            let slot = sources.slots.vacant_entry();
            let (shared, key) = (Arc::clone(&sources.shared), slot.key());
            epoll::add(&shared.epoll, socket, EventData::new_u64(key as u64), INTEREST)?;
            let writing = Side { seems_ready: seems_writable, ..Side::default() };
            slot.insert(Source { writing, ..Source::default() });
            Ok(Some(Watch { shared, key }))
        })
    }

    /// Pending while the kernel has said that there is nothing to read, or no room: the task is woken when that changes.
    #[inline]
    pub(in crate::net) fn poll_ready(&self, direction: Direction, context: &mut Context<'_>) -> Poll<()> {
        let mut before = None;
        let ready = self.source(|source| {
            let side = source.side(direction);
            if side.seems_ready {
                return Poll::Ready(());
            }
            side.is_awaited = true;
            if !side.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                before = side.waker.replace(context.waker().clone());
            }
            Poll::Pending
        });
        drop(before);
        ready
    }

    /// All that was there was read, as a read has brought less than it had room for. The end is still to be read.
    #[inline]
    pub(in crate::net) fn note_read_all(&self) {
        self.source(|source| source.reading.seems_ready = source.is_ended);
    }

    /// The kernel has said that there is nothing to read, which is not the end, or no room.
    pub(in crate::net) fn note_blocked(&self, direction: Direction) {
        self.source(|source| {
            source.side(direction).seems_ready = false;
            source.is_ended &= direction != Direction::Read;
        });
    }

    /// Has the kernel tell nothing more of the socket, which stays open: elsewhere, or for another thread.
    pub(in crate::net) fn ignore(&self, socket: impl AsFd) {
        // It fails only for a socket that is not watched.
        let _ = epoll::delete(&self.shared.epoll, socket);
    }

    #[inline]
    fn source<T>(&self, look: impl FnOnce(&mut Source) -> T) -> T {
        SOURCES.with_borrow_mut(|sources| match sources {
            Some(sources) if Arc::ptr_eq(&sources.shared, &self.shared) => look(&mut sources.slots[self.key]),
            _ => panic!("a socket is used on the thread whose event loop watches it"),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The socket itself leaves the kernel's list when it is closed.
        let removed = SOURCES.try_with(|sources| match &mut *sources.borrow_mut() {
            Some(sources) if Arc::ptr_eq(&sources.shared, &self.shared) => {
                Some(sources.slots.remove(self.key))
            }
            _ => {
                self.shared.left.lock().push(self.key);
                None
            }
        });
        // Only here: who is dropped with it may have sockets of its own.
        drop(removed);
    }
}
