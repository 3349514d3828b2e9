//! How often a test moves the primary, with which chance, and what came of it: [`Figures`].

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::time::Duration;

/// How often each move is made. `PGWEIR_FAILOVER_RUNS`, default 3.
pub fn runs() -> u64 {
    number("PGWEIR_FAILOVER_RUNS").unwrap_or(3)
}

/// A number of the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A seed that is printed, and the chance that comes of it.
pub fn chance(what: &str) -> (u64, StdRng) {
    let seed = RandomState::new().hash_one(what);
    println!("{what}: seed {seed}");
    (seed, StdRng::seed_from_u64(seed))
}

/// What clients saw of one event, over its runs.
#[derive(Debug, Default)]
pub struct Figures {
    /// From "the new primary takes writes and is named" to the first write that is acknowledged.
    pub firsts: Vec<Duration>,
    /// The longest time without a write that is acknowledged, and how many writes failed.
    pub outages: Vec<(Duration, usize)>,
    /// The same of PgBouncer, in the same runs. Its time is a lower bound where nobody waited for its end.
    pub beside: Vec<(Duration, usize)>,
}

impl Figures {
    /// Only first writes were measured.
    pub fn of(firsts: Vec<Duration>) -> Figures {
        Figures { firsts, ..Figures::default() }
    }

    /// Prints them, and adds them to the table of `make test-failover`: a line of the file
    /// `PGWEIR_FAILOVER_TABLE`.
    pub fn print(&self, event: &str) {
        let mut line = format!("{event:<30} {:>4}  {:>16}", self.firsts.len(), span(&self.firsts));
        for those in [&self.outages, &self.beside] {
            let times: Vec<Duration> = those.iter().map(|(outage, _)| *outage).collect();
            let failed: usize = those.iter().map(|(_, failed)| failed).sum();
            let failed = if those.is_empty() { String::new() } else { failed.to_string() };
            write!(line, "  {:>16} {failed:>7}", span(&times)).expect("a String takes all text");
        }
        println!("{line}");
        if let Some(table) = std::env::var_os("PGWEIR_FAILOVER_TABLE") {
            let file = File::options().create(true).append(true).open(table);
            writeln!(file.expect("the table is writable"), "{line}").expect("the table is writable");
        }
    }

    /// The middle and the worst first write must be below these.
    pub fn are_prompt(&self, median_max: Duration, worst_max: Duration) {
        let (median, worst) = middle_and_worst(&self.firsts).expect("there was a run");
        let firsts = &self.firsts;
        // One alone says nothing of the middle.
        assert!(median < median_max || firsts.len() < 3, "median {median:?} of {firsts:?}");
        assert!(worst < worst_max, "worst {worst:?} of {firsts:?}");
    }
}

fn middle_and_worst(times: &[Duration]) -> Option<(Duration, Duration)> {
    let mut times = times.to_vec();
    times.sort();
    Some((*times.get(times.len() / 2)?, *times.last()?))
}

/// Median and worst in milliseconds.
fn span(times: &[Duration]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    middle_and_worst(times)
        .map_or_else(String::new, |(median, worst)| format!("{:.0} / {:.0} ms", ms(median), ms(worst)))
}
