//! How far a standby is behind: [`PrimaryLog`] keeps what the primary's WAL position was at which moment,
//! and [`Freshness`] what a standby had replayed when it was last asked.
//!
//! Seconds are the age of the newest sample of the primary that the standby has replayed. So an idle
//! primary means 0, and no clock of a server is trusted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many samples of the primary are kept, one a second: a standby that is further behind is at least
/// as old as the oldest of them.
pub const SAMPLES_MAX: usize = 600;

/// A standby of which nothing was heard for this long is too old.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Where the primary's WAL was, and when.
#[derive(Clone, Debug, Default)]
pub struct PrimaryLog {
    samples: VecDeque<(Instant, u64)>,
}

/// How far a standby is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// WAL of the newest sample that is not replayed, in bytes.
    pub bytes: u64,
    /// Age of the newest sample that is replayed; zero when the newest is.
    pub age: Duration,
}

/// From where on a standby gets no queries; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LagLimit {
    /// `max_standby_lag_bytes`
    pub bytes: Option<u64>,
    /// `max_standby_lag`
    pub age: Option<Duration>,
}

/// What is known of one standby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// When it last answered.
    pub heard: Option<Instant>,
    /// The lag then.
    pub lag: Option<Lag>,
}

impl PrimaryLog {
    /// The primary's position, as it was at this moment.
    pub fn note(&mut self, lsn: u64, at: Instant) {
        // After a failover positions may go back: the newer samples of the old timeline say nothing.
        while self.samples.back().is_some_and(|(_, known)| *known > lsn) {
            self.samples.pop_back();
        }
        // Only the last moment of a position counts.
        if self.samples.len() > 1 && self.samples.iter().rev().take(2).all(|(_, known)| *known == lsn) {
            self.samples.pop_back();
        }
        self.samples.push_back((at, lsn));
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// How far a standby is behind that has replayed so far; `None` while nothing is known of the primary.
    pub fn lag(&self, replayed: u64, now: Instant) -> Option<Lag> {
        let (_, newest) = self.samples.back()?;
        let behind = self.samples.iter().rev().find(|(_, lsn)| *lsn <= replayed);
        let (at, _) = behind.or(self.samples.front())?;
        Some(Lag {
            bytes: newest.saturating_sub(replayed),
            age: if replayed >= *newest { Duration::ZERO } else { now.saturating_duration_since(*at) },
        })
    }
}

impl Freshness {
    /// The standby answered. While there is no primary, the last known lag counts.
    pub fn hear(&mut self, lag: Option<Lag>, now: Instant) {
        self.heard = Some(now);
        self.lag = lag.or(self.lag);
    }

    /// Whether it may get queries.
    pub fn is_fresh(&self, limit: &LagLimit, now: Instant) -> bool {
        let heard = self.heard.is_some_and(|at| now.saturating_duration_since(at) < SILENCE_MAX);
        let within = |lag: Lag| {
            limit.bytes.is_none_or(|most| lag.bytes <= most) && limit.age.is_none_or(|most| lag.age <= most)
        };
        // Without any limit a standby whose lag is unknown is as good as another.
        heard && self.lag.map_or(*limit == LagLimit::default(), within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn log(start: Instant, positions: &[u64]) -> PrimaryLog {
        let mut log = PrimaryLog::default();
        for (second, lsn) in (0..).zip(positions) {
            log.note(*lsn, start + SECOND * second);
        }
        log
    }

    #[test]
    fn lag_is_the_age_of_the_newest_sample_that_is_replayed() {
        let start = Instant::now();
        let log = log(start, &[100, 200, 300, 400]);
        let now = start + SECOND * 3;
        for (replayed, bytes, seconds) in [(400, 0, 0), (450, 0, 0), (399, 1, 1), (250, 150, 2), (99, 301, 3)]
        {
            let expected = Lag { bytes, age: SECOND * seconds };
            assert_eq!(log.lag(replayed, now), Some(expected), "replayed {replayed}");
        }
        assert_eq!(PrimaryLog::default().lag(1, now), None);
    }

    #[test]
    fn an_idle_primary_means_no_lag_and_its_last_moment_counts() {
        let start = Instant::now();
        let log = log(start, &[100, 100, 100, 100, 200]);
        assert_eq!(log.lag(200, start + SECOND * 9).map(|lag| lag.age), Some(Duration::ZERO));
        // At second 3 the position 100 was still the newest: 1 s before the one that is missing.
        assert_eq!(log.lag(100, start + SECOND * 4).map(|lag| lag.age), Some(SECOND));
    }

    #[test]
    fn after_a_failover_the_samples_of_the_lost_timeline_are_forgotten() {
        let start = Instant::now();
        let log = log(start, &[100, 500, 300]);
        assert_eq!(log.lag(300, start + SECOND * 2).map(|lag| lag.bytes), Some(0));
    }

    #[test]
    fn a_standby_is_fresh_below_the_limits_and_not_after_silence() {
        let now = Instant::now();
        let limit = LagLimit { bytes: Some(1000), age: Some(SECOND * 10) };
        let mut standby = Freshness::default();
        assert!(!standby.is_fresh(&limit, now), "nothing is known of it");
        standby.hear(Some(Lag { bytes: 1000, age: SECOND * 10 }), now);
        assert!(standby.is_fresh(&limit, now));
        assert!(!standby.is_fresh(&limit, now + SILENCE_MAX), "silent for too long");
        standby.hear(Some(Lag { bytes: 1001, age: SECOND }), now);
        assert!(!standby.is_fresh(&limit, now), "too many bytes");
        standby.hear(Some(Lag { bytes: 1, age: SECOND * 11 }), now);
        assert!(!standby.is_fresh(&limit, now), "too old");
        standby.hear(None, now);
        assert!(!standby.is_fresh(&limit, now), "without a primary the last known lag counts");
        assert!(standby.is_fresh(&LagLimit::default(), now), "no limit");
    }
}
