//! What is known to be answered differently, and so is not asked. Each of these functions is a wish.

use super::script::{Request, Script, Step, Value, Who};
use std::collections::{HashMap, HashSet};

/// Whether the script asks what is known.
pub fn has_known(script: &Script) -> bool {
    let mut settled = script.steps.clone();
    settle(&mut settled);
    settled != script.steps
        || abuses_copy(&script.steps)
        || resets_what_the_login_set(script)
        || notifies_and_unlistens(&script.steps)
}

/// RESET goes back to the StartupMessage's value only in what is asked behind its answer, and a setting with a dot is
/// empty then, which `docs/transaction-mode.md` says. The client is not told of it, either, where it is a reported one.
pub fn resets_what_the_login_set(script: &Script) -> bool {
    let has = |words: &[&str]| {
        script.steps.iter().flat_map(|step| &step.requests).any(|request| match request {
            Request::Query(sql) | Request::Parse { sql, .. } => words.iter().any(|word| sql.contains(word)),
            _ => false,
        })
    };
    let resets = has(&["RESET", "DEFAULT", "DISCARD ALL"]);
    let ends = |request: &Request| matches!(request, Request::Sync | Request::Query(_));
    let is_pipelined =
        script.steps.iter().any(|step| step.requests.iter().filter(|one| ends(one)).count() > 1);
    let is_known = |(name, value): &(String, String)| {
        let is_reported = REPORTED.contains(&name.as_str());
        is_reported || value.contains("app.") || is_pipelined || has(&["BEGIN", "START", "; "])
    };
    resets && script.login.iter().any(is_known)
}

/// Parameters of logins here that servers report.
const REPORTED: [&str; 4] = ["DateStyle", "TimeZone", "application_name", "IntervalStyle"];

/// Changes what is known to something else.
pub fn settle(steps: &mut Vec<Step>) {
    leave_out_descriptions(steps);
    leave_out_wrong_arguments(steps);
    leave_out_old_literals(steps);
    // Behind what leaves out Binds.
    leave_out_portals_of_queries(steps);
    leave_out_late_questions_for_channels(steps);
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
        // Whoever plays it puts a Sync behind a step that waits for its answers.
        parsed = false;
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

/// Under another search_path a server is given a statement anew before it sees the arguments, and may not find its
/// tables. PostgreSQL looks at the arguments first, and says that these are wrong. Arguments that are not wrong
/// are asked for: then PostgreSQL looks for the tables again, too. A Describe has PostgreSQL say the arguments' types
/// before it does.
fn leave_out_wrong_arguments(steps: &mut [Step]) {
    // Of each name how many parameters its statements may have, and the names that there were when the path changed.
    let mut counts: HashMap<String, HashSet<usize>> = HashMap::new();
    let mut elsewhere = HashSet::new();
    let mut sets_path = false;
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        step.requests.retain(|request| match request {
            Request::Bind { statement, parameters, .. } if elsewhere.contains(statement) => {
                let is_number = |value: &Value| *value != Value::Text("seven".to_owned());
                counts[statement].iter().all(|count| *count == parameters.len())
                    && parameters.iter().all(is_number)
            }
            Request::DescribeStatement(name) => !elsewhere.contains(name),
            Request::Query(sql) if let Some(name) = sql.strip_prefix("EXECUTE ") => {
                !elsewhere.contains(name) || counts[name].iter().all(|count| *count == 0)
            }
            _ => true,
        });
        for request in &step.requests {
            let (Request::Query(sql) | Request::Parse { sql, .. }) = request else { continue };
            if let Request::Parse { name, .. } = request {
                counts.entry(name.clone()).or_default().insert(parameters_of(sql));
            }
            let sets = ["search_path", "SET SCHEMA"].iter().any(|words| sql.contains(words));
            sets_path |= sets;
            let ends = ["RESET ALL", "ROLLBACK", "ABORT", "COMMIT", "END"];
            if sets || sets_path && ends.iter().any(|words| sql.contains(words)) {
                elsewhere.extend(counts.keys().cloned());
            }
        }
    }
}

/// A Query that fails in a transaction block leaves its portal, which is the unnamed one, without its statements.
/// PostgreSQL 15 looks at them when it is told to execute that portal, and may crash. Behind a Query the unnamed
/// portal is used here only where the same batch has bound it.
fn leave_out_portals_of_queries(steps: &mut [Step]) {
    let (mut queried, mut bound) = (false, false);
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        step.requests.retain(|request| {
            match request {
                Request::Query(_) => (queried, bound) = (true, false),
                Request::Sync => bound = false,
                Request::Bind { portal, .. } if portal.is_empty() => bound = true,
                Request::Execute { portal, .. } | Request::DescribePortal(portal) if portal.is_empty() => {
                    return bound || !queried;
                }
                _ => {}
            }
            true
        });
    }
}

/// What a client listens to is told on a server that does not listen for it by a question in front of its transaction;
/// in a transaction block, or in a batch without its Sync, it is too late for that.
fn leave_out_late_questions_for_channels(steps: &mut [Step]) {
    let (mut in_batch, mut in_block) = (false, false);
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        step.requests.retain(|request| {
            let is_late = matches!(request, Request::Query(sql)
                if (in_batch || in_block) && sql.contains("listening_channels"));
            if let Request::Query(sql) | Request::Parse { sql, .. } = request {
                in_block = is_in_block_behind(sql, in_block);
            }
            in_batch = match request {
                Request::Sync => false,
                Request::Query(_) => in_batch && is_late,
                _ => true,
            };
            !is_late
        });
    }
}

/// Whether a transaction block may be open behind a text.
fn is_in_block_behind(sql: &str, in_block: bool) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| sql.contains(word));
    in_block && !has(&["COMMIT", "ROLLBACK", "END", "ABORT"]) || has(&["BEGIN", "START"])
}

/// A literal means what it meant when its statement was prepared; a server that has yet to prepare it takes it by the
/// settings of now.
fn leave_out_old_literals(steps: &mut [Step]) {
    let has = |sql: &str, words: &[&str]| words.iter().any(|word| sql.contains(word));
    let (mut names, mut outdated) = (HashSet::new(), HashSet::new());
    let mut sets = false;
    for step in steps.iter_mut().filter(|step| step.who == Who::Client) {
        step.requests.retain(|request| match request {
            Request::Bind { statement, .. } => !outdated.contains(statement),
            Request::Query(sql) => sql.strip_prefix("EXECUTE ").is_none_or(|name| !outdated.contains(name)),
            _ => true,
        });
        for request in &step.requests {
            let (Request::Query(sql) | Request::Parse { sql, .. }) = request else { continue };
            if has(sql, &["TimeZone", "DateStyle", "IntervalStyle", "standard_conforming_strings"]) {
                sets = true;
                outdated.extend(names.iter().cloned());
            }
            if sets && has(sql, &["RESET", "DISCARD", "ROLLBACK", "ABORT", "COMMIT", "END"]) {
                outdated.extend(names.iter().cloned());
            }
            if let Request::Parse { name, sql, .. } = request
                && sql.contains('\'')
                && has(sql, &["date", "time", "interval", "\\"])
            {
                names.insert(name.clone());
            }
        }
    }
}

/// A client that notifies itself in the very transaction in which it stops listening hears that once more.
pub fn notifies_and_unlistens(steps: &[Step]) -> bool {
    let has = |sql: &str, words: &[&str]| words.iter().any(|word| sql.contains(word));
    let (mut notifies, mut unlistens, mut in_block) = (false, false, false);
    let mut texts: HashMap<&str, &str> = HashMap::new();
    let requests = steps.iter().filter(|step| step.who == Who::Client).flat_map(|step| &step.requests);
    for request in requests {
        let sql = match request {
            Request::Query(sql) => sql.as_str(),
            Request::Parse { name, sql, .. } => {
                texts.insert(name, sql);
                ""
            }
            Request::Bind { statement, .. } => texts.get(statement.as_str()).copied().unwrap_or_default(),
            _ => "",
        };
        notifies |= has(sql, &["NOTIFY", "notify"]);
        unlistens |= has(sql, &["UNLISTEN", "DISCARD"]);
        if notifies && unlistens {
            return true;
        }
        in_block = is_in_block_behind(sql, in_block);
        let ends = matches!(request, Request::Query(_) | Request::Sync);
        (notifies, unlistens) = if ends && !in_block { (false, false) } else { (notifies, unlistens) };
    }
    false
}

/// The highest number of a parameter in the text.
fn parameters_of(sql: &str) -> usize {
    (1..10).rev().find(|number| sql.contains(&format!("${number}"))).unwrap_or_default()
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

#[test]
fn wrong_arguments_are_left_out_under_another_search_path_only() {
    let check = |text: &str, left: &str| {
        let mut steps = Script::read(text).steps;
        leave_out_wrong_arguments(&mut steps);
        steps.retain(|step| !step.requests.is_empty());
        assert_eq!(steps, Script::read(left).steps, "{text}");
    };
    let parse = "Parse s INSERT INTO items VALUES ($1, $2) / Sync";
    let moves = "Query SET search_path = a";
    for (wrong, right) in [
        ("Query EXECUTE s", "Query EXECUTE s(1, 2)"),
        ("Bind - s 1 / Execute - / Sync", "Bind - s 1 2 / Execute - / Sync"),
        ("Bind - s seven 2 / Sync", "Bind - s 7 2 / Sync"),
    ] {
        check(&format!("{parse}\n{wrong}\n{moves}"), &format!("{parse}\n{wrong}\n{moves}"));
        check(&format!("{moves}\n{parse}\n{wrong}"), &format!("{moves}\n{parse}\n{wrong}"));
        check(&format!("{parse}\n{moves}\n{right}"), &format!("{parse}\n{moves}\n{right}"));
        let left = wrong.split_once(" / ").map_or("", |(_, left)| left);
        check(&format!("{parse}\n{moves}\n{wrong}"), &format!("{parse}\n{moves}\n{left}"));
    }
}
