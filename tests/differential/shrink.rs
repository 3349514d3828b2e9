//! [`shrink`]: the shortest script found that is still answered differently.

use super::known;
use super::lane::{Lane, Outcome};
use super::script::{Script, Step};
use super::trace::Difference;
use std::time::Duration;
use tokio::time::Instant;

/// A shorter script is played in this time, or not believed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shrinking ends then, wherever it is.
const LIMIT: Duration = Duration::from_secs(25);

/// Drops steps, then messages, then cuts, as long as the difference stays. Without one on fresh servers, the
/// script comes back as it is.
pub async fn shrink(lane: &mut Lane, script: Script, difference: Difference) -> (Script, Difference, String) {
    let deadline = Instant::now() + LIMIT;
    lane.patience = PATIENCE;
    lane.renew_servers().await;
    let Some(difference_again) = differs(lane, &script).await else {
        let note = "It is not found again on fresh servers: what earlier scripts left has a part in it.";
        return (script, difference, note.to_owned());
    };
    let mut best = (script, difference_again);
    loop {
        let mut shorter = None;
        for candidate in candidates(&best.0).into_iter().filter(|script| !known::has_known(script)) {
            if Instant::now() > deadline {
                break;
            }
            if let Some(difference) = differs(lane, &candidate).await {
                shorter = Some((candidate, difference));
                break;
            }
        }
        match shorter {
            Some(shorter) => best = shorter,
            None => return (best.0, best.1, String::new()),
        }
    }
}

async fn differs(lane: &mut Lane, script: &Script) -> Option<Difference> {
    match lane.play(script).await {
        Outcome::Differs(difference) => Some(*difference),
        Outcome::Same | Outcome::Unclear(_) => None,
    }
}

/// All scripts with something less, the much shorter ones first.
fn candidates(script: &Script) -> Vec<Script> {
    let mut candidates = Vec::new();
    let count = script.steps.len();
    let with = |steps: Vec<Step>| Script { login: script.login.clone(), steps };
    let mut span = count / 2;
    while span > 0 {
        for from in (0..=count - span).rev() {
            let left = [&script.steps[..from], &script.steps[from + span..]].concat();
            candidates.push(with(left));
        }
        span /= 2;
    }
    if !script.login.is_empty() {
        candidates.push(Script { login: Vec::new(), steps: script.steps.clone() });
    }
    for (at, step) in script.steps.iter().enumerate() {
        let replaced = |step: Step| {
            let mut steps = script.steps.clone();
            steps[at] = step;
            with(steps)
        };
        if !step.cuts.is_empty() {
            candidates.push(replaced(Step { cuts: Vec::new(), ..step.clone() }));
        }
        for request in (0..step.requests.len()).filter(|_| step.requests.len() > 1) {
            let mut fewer = step.clone();
            fewer.requests.remove(request);
            candidates.push(replaced(fewer));
        }
    }
    candidates
}
