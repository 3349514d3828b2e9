//! A session's task, as long as it is on this worker: [`run`] begins it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::{Session, moving};
use crate::net::event_loop;

/// Runs one session; holds `None` when that has left.
///
/// A future of one pointer, and no async function: it takes its place for as long as its client is there.
struct SessionTask(Option<Rc<RefCell<Session>>>);

/// Runs a session that its plane knows already, to its end or until it moves to another worker.
pub(super) fn run(session: Rc<RefCell<Session>>) {
    event_loop::spawn(SessionTask(Some(session)));
}

/// Takes a session from its plane: it moves to that worker, or has ended.
pub(super) fn leave(session: Rc<RefCell<Session>>, bound_for: Option<usize>) {
    let (plane, slot) = {
        let session = session.borrow();
        (Rc::clone(&session.plane), session.slot as usize)
    };
    plane.sessions.borrow_mut().remove(slot);
    match bound_for {
        Some(to) => moving::send_off(session, to),
        None => {
            plane.shared.cancel_keys.remove(&session.borrow().cancel_key);
            plane.disconnected();
        }
    }
}

impl Future for SessionTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let session = self.0.as_ref().expect("a task that is done is not polled again");
        let bound_for = ready!(session.borrow_mut().poll_run(context));
        if let Some(session) = self.0.take() {
            leave(session, bound_for);
        }
        Poll::Ready(())
    }
}

impl Session {
    /// Ready with the worker that it is bound for, or `None` when it has ended.
    fn poll_run(&mut self, context: &mut Context<'_>) -> Poll<Option<usize>> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        if let Some(to) = self.sets_out() {
            return Poll::Ready(Some(to));
        }
        let plane = Rc::clone(&self.plane);
        let mut scratch = plane.scratch.borrow_mut();
        if !self.is_parting() {
            let farewell = ready!(self.poll_advance(context, &mut scratch));
            self.say_goodbye(&farewell);
        }
        self.poll_part(context, &mut scratch).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_takes_little_memory() {
        // With the counters of Rc and RefCell and malloc's header a session takes 352 bytes.
        assert!(size_of::<Session>() <= 320, "{}", size_of::<Session>());
        assert!(size_of::<SessionTask>() <= 8);
    }
}
