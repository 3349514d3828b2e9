//! [`SessionTask`] runs a session as long as it is on this worker.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::{Session, moving};

/// See the module's text.
pub struct SessionTask(Rc<RefCell<Session>>);

impl SessionTask {
    /// For a session that its plane knows already.
    pub(super) fn new(session: Rc<RefCell<Session>>) -> Self {
        SessionTask(session)
    }

    /// The session that it runs.
    pub fn session(&self) -> &Rc<RefCell<Session>> {
        &self.0
    }

    /// To its end, or until it moves to another worker.
    pub async fn run(mut self) {
        let bound_for = (&mut self).await;
        self.leave(bound_for);
    }

    /// Takes the session from its plane: it moves to that worker, or has ended.
    pub(super) fn leave(self, bound_for: Option<usize>) {
        let SessionTask(session) = self;
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
}

impl Future for SessionTask {
    /// The worker that it is bound for; `None` when it has ended.
    type Output = Option<usize>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut session = self.0.borrow_mut();
        match &mut session.waker {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        if let Some(to) = session.sets_out() {
            return Poll::Ready(Some(to));
        }
        let plane = Rc::clone(&session.plane);
        let mut scratch = plane.scratch.borrow_mut();
        let farewell = ready!(session.poll_advance(context, &mut scratch));
        drop(scratch);
        session.say_goodbye(&farewell);
        Poll::Ready(None)
    }
}
