//! Limits that span pools: `max_db_connections` and `max_user_connections`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A number of connections that may be in use at once.
#[derive(Debug, Default)]
pub struct Quota {
    /// 0 is no limit.
    limit: AtomicU32,
    used: AtomicU32,
    claimed: AtomicBool,
}

impl Quota {
    /// One more, if the limit allows it.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |used: u32| (limit == 0 || used < limit).then(|| used + 1);
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Permit(Arc::clone(self)))
    }

    /// A new limit; 0 is none. Connections beyond it stay until they are given back.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        let limit = self.limit();
        limit != 0 && self.used() >= limit
    }

    /// Whether a client waits for what is given back next: `min_pool_size` of others has to wait.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Changes [`Quota::is_claimed`].
    pub fn set_claimed(&self, claimed: bool) {
        self.claimed.store(claimed, Ordering::Relaxed);
    }

    /// The limit, 0 for none.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Connections in use.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }
}

/// One connection of a [`Quota`], given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Quota>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_lends_as_many_as_its_limit_and_gets_them_back() {
        let quota = Arc::new(Quota::default());
        quota.set_limit(2);
        let (first, second) = (quota.take(), quota.take());
        assert!(first.is_some() && second.is_some() && quota.take().is_none() && quota.is_full());
        drop(first);
        assert!(quota.take().is_some());
    }

    #[test]
    fn no_limit_counts_all_the_same() {
        let quota = Arc::new(Quota::default());
        let permits: Vec<_> = (0..100).map(|_| quota.take()).collect();
        assert_eq!((permits.iter().flatten().count(), quota.used()), (100, 100));
    }
}
