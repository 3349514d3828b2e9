//! What one client still has to be told of.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

/// Why a client hears no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// More bytes than this would have waited for it.
    TooSlow {
        /// `max_notification_queue`
        limit: usize,
    },
    /// The connection is gone, for this reason.
    Connection(Arc<str>),
}

/// Notifications that wait for their client: a bounded queue between the connection's thread and the client's.
#[derive(Debug)]
pub struct Inbox {
    /// Most bytes that may wait.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whole NotificationResponse messages.
    bytes: Vec<u8>,
    lost: Option<Lost>,
    waker: Option<Waker>,
}

impl Inbox {
    /// One in which so many bytes may wait.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Inbox { limit, state: Mutex::default() })
    }

    /// Takes what has come, and why nothing more will. The waker is called when there is more.
    pub fn take(&self, waker: Option<&Waker>) -> (Vec<u8>, Option<Lost>) {
        let mut state = self.state.lock();
        if let Some(waker) = waker
            && !state.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            state.waker = Some(waker.clone());
        }
        (std::mem::take(&mut state.bytes), state.lost.clone())
    }

    pub(super) fn push(&self, message: &[u8]) {
        let mut state = self.state.lock();
        if state.lost.is_some() {
            return;
        }
        if state.bytes.len() + message.len() > self.limit {
            state.lost = Some(Lost::TooSlow { limit: self.limit });
        } else {
            state.bytes.extend_from_slice(message);
        }
        wake(state);
    }

    pub(super) fn lose(&self, why: Lost) {
        let mut state = self.state.lock();
        state.lost.get_or_insert(why);
        wake(state);
    }
}

fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_and_then_the_client_is_told_that_it_was_too_slow() {
        let inbox = Inbox::new(30);
        let one = [7; 20];
        (0..3).for_each(|_| inbox.push(&one));
        assert_eq!(inbox.take(None), (one.to_vec(), Some(Lost::TooSlow { limit: 30 })));
        inbox.push(&one);
        inbox.lose(Lost::Connection("gone".into()));
        assert_eq!(inbox.take(None), (Vec::new(), Some(Lost::TooSlow { limit: 30 })));
    }
}
