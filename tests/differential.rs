//! Exactly PostgreSQL's answers: the same bytes go directly to PostgreSQL and through the pooler in transaction
//! mode, and what comes back must be the same, message by message.
//!
//! While a client of the pooler speaks, another one takes servers and leaves them dirty, so that each of its
//! transactions may find itself on another server. Process ids, keys, and OIDs of what the test has made are
//! masked. The scripts of `differential/rows.rs` are written by hand, those of `differential/author.rs` by
//! chance; one that is answered differently is shortened as far as it still is.
//!
//! | variable | default | |
//! |---|---|---|
//! | `PGWEIR_DIFFERENTIAL_SESSIONS` | 1000 | how many random sessions |
//! | `PGWEIR_DIFFERENTIAL_SEED` | 22; by chance in `make differential` | which |
//! | `PGWEIR_DIFFERENTIAL_SESSION` | all | only the one of this number |
//! | `PGWEIR_DIFFERENTIAL_REPEAT` | 1 | with the last: how often. What it leaves behind may be what it meets |

// None of its parts is anyone's interface.
#![allow(unreachable_pub, missing_docs)]

#[path = "differential/author.rs"]
mod author;
#[path = "differential/end.rs"]
mod end;
#[path = "differential/known.rs"]
mod known;
#[path = "differential/lane.rs"]
mod lane;
#[path = "differential/rows.rs"]
mod rows;
#[path = "differential/script.rs"]
mod script;
#[path = "differential/shrink.rs"]
mod shrink;
mod support;
#[path = "differential/trace.rs"]
mod trace;

use lane::{Lane, Outcome};
use script::Script;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use support::Pooler;
use tokio::task::JoinSet;

/// How many scripts are played at a time.
const LANES: usize = 6;

/// With so many differences it is clear that there are some.
const DIFFERENCES_MAX: usize = 3;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What all lanes share.
struct Run {
    pooler: Arc<Pooler>,
    seed: u64,
    only: Option<u64>,
    next: AtomicU64,
    end: u64,
    faults: Mutex<Vec<String>>,
}

impl Run {
    async fn lane(self: Arc<Self>, number: usize) {
        let mut lane = Lane::open(Arc::clone(&self.pooler), number).await;
        loop {
            let session = self.next.fetch_add(1, Ordering::Relaxed);
            if session >= self.end
                || self.faults.lock().expect("nobody panics with it").len() >= DIFFERENCES_MAX
            {
                return;
            }
            let script = author::write(self.seed, self.only.unwrap_or(session));
            let fault = match lane.play(&script).await {
                Outcome::Same => continue,
                Outcome::Unclear(fault) => format!("PostgreSQL itself: {fault}\n{script}"),
                Outcome::Differs(difference) => {
                    let (script, difference, note) = shrink::shrink(&mut lane, script, *difference).await;
                    format!("{}{note}", difference.shown(&script))
                }
            };
            let number = self.only.unwrap_or(session);
            let repeat =
                format!("PGWEIR_DIFFERENTIAL_SEED={} PGWEIR_DIFFERENTIAL_SESSION={number}", self.seed);
            self.faults.lock().expect("nobody panics with it").push(format!("{repeat}\n{fault}"));
            lane.patience = support::PATIENCE;
        }
    }
}

/// Of the sessions of `make test`, which are to say whether a change breaks something and not to find what is new.
const SEED: u64 = 22;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_sessions_are_answered_as_postgresql_does() {
    let seed = number_from("PGWEIR_DIFFERENTIAL_SEED").unwrap_or(SEED);
    let sessions = number_from("PGWEIR_DIFFERENTIAL_SESSIONS").unwrap_or(1000);
    let only = number_from("PGWEIR_DIFFERENTIAL_SESSION");
    println!("PGWEIR_DIFFERENTIAL_SEED={seed} PGWEIR_DIFFERENTIAL_SESSIONS={sessions}");
    let end = match only {
        Some(_) => number_from("PGWEIR_DIFFERENTIAL_REPEAT").unwrap_or(1),
        None => sessions,
    };
    let pooler = lane::start(LANES).await;
    let faults = Mutex::default();
    let run = Arc::new(Run { pooler, seed, only, next: AtomicU64::new(0), end, faults });
    let mut lanes = JoinSet::new();
    for number in 0..LANES {
        lanes.spawn(Arc::clone(&run).lane(number));
    }
    lanes.join_all().await;
    let faults = run.faults.lock().expect("nobody panics with it");
    assert!(faults.is_empty(), "{} differences\n\n{}", faults.len(), faults.join("\n\n"));
}

/// Plays rows on a lane of their own; each of them is changed first.
async fn play_rows(rows: &[(&str, &str)], change: impl Fn(&mut Script)) {
    let mut lane = Lane::open(lane::start(1).await, 0).await;
    let mut faults = Vec::new();
    for (name, text) in rows {
        let mut script = Script::read(text);
        change(&mut script);
        match lane.play(&script).await {
            Outcome::Same => {}
            Outcome::Unclear(fault) => faults.push(format!("{name}\nPostgreSQL itself: {fault}")),
            Outcome::Differs(difference) => faults.push(format!("{name}\n{}", difference.shown(&script))),
        }
    }
    assert!(faults.is_empty(), "{} differences\n\n{}", faults.len(), faults.join("\n"));
}

#[tokio::test]
async fn scripts_by_hand_are_answered_as_postgresql_does() {
    play_rows(rows::ROWS, |_| {}).await;
}

/// R16: a message may be cut anywhere.
#[tokio::test]
async fn scripts_in_single_bytes_are_answered_as_postgresql_does() {
    let in_bytes = |script: &mut Script| {
        for step in script.steps.iter_mut().filter(|step| step.who == script::Who::Client) {
            step.cuts = (1..step.bytes().len()).collect();
        }
    };
    play_rows(rows::ROWS, in_bytes).await;
}

#[tokio::test]
async fn session_state_is_answered_as_postgresql_does() {
    if author::STATE {
        play_rows(rows::STATE_ROWS, |_| {}).await;
    }
}

#[test]
fn a_script_is_read_as_it_is_written() {
    for session in 0..500 {
        let script = author::write(7, session);
        let text = script.to_string();
        assert_eq!(Script::read(&text), script, "{text}");
    }
}
