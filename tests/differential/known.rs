//! What is known to be answered differently, and so is not asked. Each of these functions is a wish.

use super::script::{Request, Script, Step, Who};
use std::collections::HashSet;

/// Whether the script asks what is known.
pub fn has_known(script: &Script) -> bool {
    let mut settled = script.steps.clone();
    settle(&mut settled);
    settled != script.steps || abuses_copy(&script.steps) || resets_what_the_login_set(script)
}

/// RESET goes back to the StartupMessage's value in the next transaction only, and a setting with a dot is empty
/// then, which `docs/transaction-mode.md` says. The client is not told of it, either, where it is a reported one.
pub fn resets_what_the_login_set(script: &Script) -> bool {
    let has = |words: &[&str]| {
        script.steps.iter().flat_map(|step| &step.requests).any(|request| match request {
            Request::Query(sql) | Request::Parse { sql, .. } => words.iter().any(|word| sql.contains(word)),
            _ => false,
        })
    };
    let resets = has(&["RESET", "DEFAULT", "DISCARD ALL"]);
    let is_known = |(name, value): &(String, String)| {
        let is_reported = REPORTED.contains(&name.as_str());
        is_reported || value.contains("app.") || has(&["BEGIN", "START", "; "])
    };
    resets && script.login.iter().any(is_known)
}

/// Parameters of logins here that servers report.
const REPORTED: [&str; 4] = ["DateStyle", "TimeZone", "application_name", "IntervalStyle"];

/// Changes what is known to something else.
pub fn settle(steps: &mut Vec<Step>) {
    leave_out_descriptions(steps);
    settle_unnamed(steps);
    steps.retain(|step| !step.requests.is_empty());
}

/// The pooler does not know what a Parse of the unnamed statement would have replaced, when it is skipped after
/// an error: it has no unnamed statement then. Here such a one is prepared anew before it is used.
fn settle_unnamed(steps: &mut [Step]) {
    let (mut in_doubt, mut first, mut parsed) = (false, true, false);
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        let mut requests = Vec::new();
        for request in step.requests.drain(..) {
            match &request {
                Request::Parse { name, .. } if name.is_empty() => {
                    in_doubt = !first;
                    parsed = true;
                }
                Request::CloseStatement(name) if name.is_empty() => in_doubt |= !first,
                Request::Query(_) => {
                    in_doubt |= !first;
                    parsed = false;
                }
                Request::Bind { statement: name, .. } | Request::DescribeStatement(name)
                    if name.is_empty() && in_doubt && !parsed =>
                {
                    let sql = "SELECT 7".to_owned();
                    requests.push(Request::Parse { name: String::new(), types: Vec::new(), sql });
                    in_doubt = !first;
                    parsed = true;
                }
                _ => {}
            }
            let ends = matches!(request, Request::Query(_) | Request::FunctionCall { .. });
            first = matches!(request, Request::Sync) || first && ends;
            parsed &= !first;
            requests.push(request);
        }
        step.requests = requests;
    }
}

/// In a failed transaction PostgreSQL still describes a statement that returns no rows. A server that lacks
/// it cannot prepare it any more then. Here such a one is only described in the batch that prepares it.
fn leave_out_descriptions(steps: &mut [Step]) {
    let mut without_rows = HashSet::new();
    let mut parsed = HashSet::new();
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        step.requests.retain(|request| match request {
            Request::Parse { name, sql, .. } => {
                if !returns_rows(sql) {
                    without_rows.insert(name.clone());
                }
                parsed.insert(name.clone());
                true
            }
            Request::Sync | Request::Query(_) => {
                parsed.clear();
                true
            }
            Request::DescribeStatement(name) => !without_rows.contains(name) || parsed.contains(name),
            _ => true,
        });
    }
}

fn returns_rows(sql: &str) -> bool {
    let first = sql.split_whitespace().next().unwrap_or_default();
    matches!(first, "SELECT" | "VALUES" | "EXPLAIN" | "SHOW") || sql.contains("RETURNING")
}

/// When a COPY fails, only the server knows which of the Syncs among its data it will answer: those behind
/// what it failed on. The pooler cannot match what comes behind them to what was asked. A message that has no place
/// in COPY data ends PostgreSQL's connection, and not always the pooler's.
fn abuses_copy(steps: &[Step]) -> bool {
    let (mut in_copy, mut data) = (false, false);
    let mut starts = HashSet::new();
    let requests = steps.iter().filter(|step| step.who == Who::Client).flat_map(|step| &step.requests);
    for request in requests {
        match request {
            Request::Parse { name, .. } if request.starts_copy() => {
                starts.insert(name);
            }
            Request::Query(_) if request.starts_copy() => in_copy = true,
            Request::Execute { .. } if !starts.is_empty() => in_copy = true,
            Request::CopyData(_) => data = true,
            Request::CopyDone | Request::CopyFail(_) => (in_copy, data) = (false, false),
            Request::Sync if data => return true,
            Request::Sync | Request::Flush => {}
            _ if in_copy => return true,
            _ => {}
        }
    }
    false
}
