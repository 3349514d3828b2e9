//! Limits of time. No session has a timer: its worker looks at all of them several times a second.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::plane::Shared;
use super::{Farewell, Phase, Session, since};
use crate::error::{SqlError, sqlstate};
use crate::pool::Pool;
use crate::topology::health::Health;
use crate::wire::originate;

impl Session {
    /// Ends the session if one of its limits has passed.
    pub fn check_time(&mut self, now: Instant) {
        let over = match &self.phase {
            Phase::Idle => self.check_idle(self.last_request, now),
            Phase::Waiting(wait) => self.check_waiting(since(wait.since, now)),
            Phase::Leased(_) => self.check_leased(now),
            Phase::Asking(_) => None,
            Phase::Parting(_) => return self.check_parting(now),
        };
        if let Some(error) = over {
            self.end(Farewell::from(error));
        } else if self.is_due_a_notice(now) {
            self.tell_that_it_waits();
        } else if let Some(farewell) = self.drained() {
            self.end(farewell);
        }
    }

    fn is_due_a_notice(&self, now: Instant) -> bool {
        let Phase::Waiting(wait) = &self.phase else { return false };
        let after = self.plane.shared.config.load().settings.query_wait_notify;
        !wait.is_told && !after.is_zero() && since(wait.since, now) > after
    }

    fn tell_that_it_waits(&mut self) {
        let Phase::Waiting(wait) = &mut self.phase else { return };
        wait.is_told = true;
        let counts = self.group.pool.counts(Instant::now());
        let message = "No server connection available in postgres backend, client being queued";
        let ailment = ailment(&self.plane.shared, &self.group.pool);
        let notice = SqlError::notice(message).detail(match (self.group.pool.held(), ailment) {
            (Some(why), _) => format!("No server can be used now: {why}."),
            (None, Some((cluster, health))) => {
                let waiting = counts.waiting;
                format!("{waiting} clients wait for a server connection. Cluster \"{cluster}\" is {health}.")
            }
            (None, None) => format!("{} clients wait for a server connection.", counts.waiting),
        });
        let mut out = BytesMut::new();
        originate::error(&notice, &mut out);
        if let Err(farewell) = self.send(&out) {
            return self.end(farewell);
        }
        // Its task brings out what the socket did not take at once.
        self.wake();
    }

    /// Without a server, or in session mode with one that does nothing.
    pub(super) fn is_between_transactions(&self) -> bool {
        match &self.phase {
            Phase::Idle => true,
            Phase::Waiting(_) | Phase::Asking(_) | Phase::Parting(_) => false,
            Phase::Leased(lease) => lease.pipeline.is_idle() && !lease.loan().proving,
        }
    }

    fn check_idle(&self, quiet_since: Instant, now: Instant) -> Option<SqlError> {
        let limit = self.group.policy().client_idle_timeout?;
        let idle = since(quiet_since, now);
        (idle > limit)
            .then(|| over("client_idle_timeout", "The client sent nothing", limit, "client_idle_timeout"))
    }

    fn check_waiting(&self, waited: Duration) -> Option<SqlError> {
        let policy = self.group.policy();
        if let Some(limit) = policy.query_timeout
            && waited > limit
        {
            return Some(query_timeout_of_waiting(limit));
        }
        let limit = policy.query_wait_timeout?;
        (waited > limit)
            .then(|| query_wait_timeout(&self.plane.shared, &self.group.pool, &self.group.user, limit))
    }

    fn check_leased(&self, now: Instant) -> Option<SqlError> {
        let Phase::Leased(lease) = &self.phase else { return None };
        let loan = lease.loan();
        let policy = self.group.policy();
        let pipeline = &lease.pipeline;
        if let (Some(limit), Some(began)) = (policy.query_timeout, loan.query_began)
            && pipeline.owed() > 0
            && since(began, now) > limit
        {
            return Some(self.explained(over("query timeout", "A query ran", limit, "query_timeout")));
        }
        if pipeline.is_over() {
            // A client that keeps its server, between transactions.
            if lease.is_outdated() && self.plane.shared.config.load().settings.server_fast_close {
                return Some(fast_close());
            }
            let quiet_since = self.last_request.max(loan.quiet_since);
            return self.check_pin(quiet_since, now).or_else(|| self.check_idle(quiet_since, now));
        }
        if let Some(limit) = policy.idle_transaction_timeout
            && pipeline.owed() == 0
            && since(loan.quiet_since, now) > limit
        {
            let what = "The client was idle inside a transaction";
            return Some(over("idle transaction timeout", what, limit, "idle_transaction_timeout"));
        }
        let limit = policy.transaction_timeout?;
        (since(loan.began, now) > limit).then(|| {
            self.explained(over("transaction timeout", "A transaction lasted", limit, "transaction_timeout"))
        })
    }

    fn explained(&self, error: SqlError) -> SqlError {
        explained(error, &self.plane.shared, &self.group.pool)
    }
}

/// What a client is told that waited for a server longer than a query may take.
pub(super) fn query_timeout_of_waiting(limit: Duration) -> SqlError {
    over("query_timeout", "A query waited for a server", limit, "query_timeout")
}

fn fast_close() -> SqlError {
    SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "database configuration changed")
        .detail("The server connection of this session is to be closed, and server_fast_close does not wait for the session's end.")
        .hint("Connect again.")
}

fn over(message: &'static str, what: &str, limit: Duration, setting: &str) -> SqlError {
    SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, message)
        .detail(format!("{what} longer than {} s.", limit.as_secs_f64()))
        .hint(format!("The limit is the setting {setting}."))
}

/// What a client is told that waited too long for a server.
pub(super) fn query_wait_timeout(shared: &Shared, pool: &Pool, user: &str, limit: Duration) -> SqlError {
    let counts = pool.counts(Instant::now());
    let size = match pool.settings().policy.pool_size {
        0 => "an unlimited number".to_owned(),
        size => size.to_string(),
    };
    let timeout = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "query_wait_timeout");
    if let Some(why) = pool.held() {
        let mut detail = format!("No server could be used within {} s: {why}.", limit.as_secs_f64());
        if let Some((cluster, health)) = ailment(shared, pool) {
            // Its evidence is why the pool is held.
            write!(detail, " Cluster \"{cluster}\" is {}.", health.state.name())
                .expect("a String takes any text");
        }
        return timeout.detail(detail).hint("Look at SHOW CLUSTERS, or raise query_wait_timeout.");
    }
    let detail = format!(
        "No server connection became free within {} s. Pool \"{}\" for user \"{user}\" has {} of {size} in use; {} clients are waiting.",
        limit.as_secs_f64(),
        pool.target.database,
        counts.active + counts.tested,
        counts.waiting,
    );
    let hint = "Raise default_pool_size, shorten transactions, or raise query_wait_timeout.";
    explained(timeout.detail(detail).hint(hint), shared, pool)
}

/// What lasts too long may do so because its cluster is not well.
fn explained(error: SqlError, shared: &Shared, pool: &Pool) -> SqlError {
    let Some((cluster, health)) = ailment(shared, pool) else { return error };
    let detail = error.detail.as_deref().unwrap_or_default();
    let detail = format!("{detail} Cluster \"{cluster}\" is {health}.");
    error.detail(detail).hint(health.state.advice())
}

/// How the pool's cluster is, if it is not well.
fn ailment(shared: &Shared, pool: &Pool) -> Option<(Arc<str>, Health)> {
    let cluster = Arc::clone(&pool.settings().cluster.as_ref()?.0);
    let health = shared.clusters.ailment(&cluster)?;
    Some((cluster, health))
}
