//! [`Lease`]: the loan of one server. Dropping it closes the server; only [`Lease::release`] returns it.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::access::Site;
use super::{Loan, Pool, Pooled, close};
use crate::net::event_loop;
use crate::protocol::channels::Unlistened;
use crate::server::{QueryError, ServerConnection};
use crate::sql::state::Touched;

/// A loan of one server; `None` only while the server is being given away.
#[derive(Debug)]
pub struct Lease(Option<Box<Pooled>>);

impl Lease {
    pub(super) fn new(pooled: Box<Pooled>) -> Self {
        pooled.seat.0.note_lent();
        Lease(Some(pooled))
    }

    fn pooled(&self) -> &Pooled {
        self.0.as_ref().expect("a lease has its server until it is given away")
    }

    fn pooled_mut(&mut self) -> &mut Pooled {
        self.0.as_mut().expect("a lease has its server until it is given away")
    }

    fn take(&mut self) -> Option<Box<Pooled>> {
        let pooled = self.0.take()?;
        pooled.seat.0.note_returned();
        Some(pooled)
    }

    /// The server's place, as all pools see it.
    pub fn site(&self) -> &Arc<Site> {
        &self.pooled().seat.0
    }

    /// Begins the loan: the server is the new client's from here on.
    pub fn begin(&mut self, now: Instant) {
        let pooled = self.pooled_mut();
        pooled.server.unnamed_present = false;
        let limit = pooled.membership.pool.quick.statements_max.load(Ordering::Relaxed);
        pooled.server.statements.set_limit(limit);
        pooled.server.statements.renew(pooled.membership.pool.plans.load(Ordering::Relaxed));
        pooled.server.used_at = now;
        pooled.server.pipeline.touched = Touched::default();
        pooled.server.pipeline.unlistened = Unlistened::default();
        pooled.server.heard.clear();
        pooled.loan = Loan { used: true, ..Loan::new(now) };
    }

    /// Whether the server is to be closed as soon as nobody uses it: RECONNECT, new settings, or a name that has
    /// moved.
    pub fn is_outdated(&self) -> bool {
        self.pool().is_outdated(self.server())
    }

    /// What is known of the loan.
    pub fn loan(&self) -> &Loan {
        &self.pooled().loan
    }

    /// The server, and what is known of the loan.
    pub fn parts(&mut self) -> (&mut ServerConnection, &mut Loan) {
        let pooled = self.pooled_mut();
        (&mut pooled.server, &mut pooled.loan)
    }

    /// Gives the server back to the next waiter, or to the idle ones; closes one that is too old.
    ///
    /// The server must be idle: nothing owed, no transaction open.
    pub fn release(mut self, now: Instant) {
        assert!(self.pipeline.is_idle(), "a lease ends when nothing is owed");
        if let Some(pooled) = self.take() {
            let pool = Arc::clone(&pooled.membership.pool);
            pool.put_back(pooled, now);
        }
    }

    fn server(&self) -> &ServerConnection {
        &self.pooled().server
    }

    /// Runs a statement of our own and then releases the server; closes it if that fails.
    pub fn run_and_release(mut self, sql: String, purpose: &'static str) {
        let pool = Arc::clone(self.pool());
        pool.tested.fetch_add(1, Ordering::Relaxed);
        event_loop::spawn(async move {
            let limit = pool.settings.load().connect_timeout;
            let result = within(limit, self.run(&sql, &pool.session)).await;
            pool.tested.fetch_sub(1, Ordering::Relaxed);
            match result {
                Ok(()) => self.release(Instant::now()),
                Err(error) => self.close(&format!("{purpose} failed: {error}")),
            }
        });
    }

    /// As [`Lease::run_and_release`], for a query that resets the session, or some of it.
    pub fn reset_and_release(mut self, sql: String, purpose: &'static str) {
        match self.state.doubted() {
            // DISCARD ALL says that it has done so.
            Some(doubted) => self.state = self.pool().session.states.intern(doubted),
            None if sql.trim().eq_ignore_ascii_case("discard all") => {}
            None => return self.close("its prepared statements may be gone or not"),
        }
        self.run_and_release(sql, purpose);
    }

    /// Runs a query of our own, for at most `server_connect_timeout`, and returns its rows.
    ///
    /// Fails as [`ServerConnection::rows`] does.
    pub async fn rows_in_time(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, QueryError> {
        let pool = Arc::clone(self.pool());
        let limit = pool.settings.load().connect_timeout;
        within(limit, self.rows(sql, &pool.session)).await
    }

    /// Closes the server, with the reason in the log.
    pub fn close(mut self, reason: &str) {
        if let Some(pooled) = self.take() {
            close_lent(pooled, reason);
        }
    }

    /// The pool that it is from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pooled().membership.pool
    }
}

pub(super) fn close_lent(pooled: Box<Pooled>, reason: &str) {
    let worker = pooled.server.worker;
    let pool = Arc::clone(&pooled.membership.pool);
    close(pooled, reason);
    pool.state.lock().forget_leased();
    pool.open_more(worker, Instant::now());
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pooled) = self.take() {
            close_lent(pooled, "client disconnect while server was not ready");
        }
    }
}

impl Deref for Lease {
    type Target = ServerConnection;

    fn deref(&self) -> &ServerConnection {
        self.server()
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut ServerConnection {
        &mut self.pooled_mut().server
    }
}

/// Runs a statement of our own, for at most `server_connect_timeout`.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    statement: impl Future<Output = Result<T, QueryError>>,
) -> Result<T, QueryError> {
    match limit {
        None => statement.await,
        Some(limit) => match tokio::time::timeout(limit, statement).await {
            Ok(outcome) => outcome,
            Err(_) => Err(QueryError::Refused("it took longer than server_connect_timeout".into())),
        },
    }
}
