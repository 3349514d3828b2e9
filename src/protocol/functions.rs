//! Functions of the users of a database: what a call of one may change of the session. [`Functions`] keeps what has
//! been found out, and says what is to be asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::parameters::push_literal;
use super::state::OURS;
use crate::sql::state::{Touched, touched_by_body};

/// Most functions that are remembered at once. Beyond it all are forgotten, and asked for again.
const KNOWN_MAX: usize = 4096;

/// For how long it is believed that a function is what it was.
const MEMORY: Duration = Duration::from_secs(60);

/// What PostgreSQL has brought along has a lower number (`FirstNormalObjectId`).
const FIRST_USERS_OID: u32 = 16_384;

/// How deep functions that call functions are followed; below that they may do anything.
pub const DEPTH_MAX: usize = 8;

/// What is known of one database's functions, by name: the same in all schemas.
#[derive(Debug, Default)]
pub struct Functions {
    known: RwLock<HashMap<Box<str>, Option<Arc<Touched>>>>,
    /// When they were last forgotten.
    forgotten: Mutex<Option<Instant>>,
}

impl Functions {
    /// Adds to `touched` what the calls of a text may change; those of which nothing is known are left in its calls.
    #[inline]
    pub fn add(&self, text: &Touched, touched: &mut Touched) {
        if text.calls.is_empty() {
            return touched.add(text);
        }
        let known = self.known.read();
        for name in &text.calls {
            match known.get(name) {
                Some(None) => {}
                Some(Some(found)) => touched.add(found),
                None => touched.add_call(name),
            }
        }
        touched.add_own(text);
    }

    /// Forgets everything: some function may be another one by now.
    pub fn forget(&self) {
        self.known.write().clear();
    }

    /// Forgets everything once a minute: somebody may have changed a function without our seeing it.
    pub fn tick(&self, now: Instant) {
        let mut forgotten = self.forgotten.lock();
        let since = *forgotten.get_or_insert(now);
        if now.saturating_duration_since(since) >= MEMORY {
            *forgotten = Some(now);
            self.forget();
        }
    }

    fn remember(&self, found: HashMap<Box<str>, Touched>) {
        let mut known = self.known.write();
        if known.len() + found.len() > KNOWN_MAX {
            known.clear();
        }
        for (name, touched) in found {
            known.insert(name, (!touched.is_empty()).then(|| Arc::new(touched)));
        }
    }
}

/// The search for what some functions do, whose sources are read round by round.
#[derive(Debug, Default)]
pub struct Search {
    /// What stands in the sources of each name.
    found: HashMap<Box<str>, Touched>,
    /// To be asked next.
    wanted: Vec<Box<str>>,
    rounds: usize,
}

impl Search {
    /// For the functions that are called.
    pub fn new(calls: &[Box<str>]) -> Self {
        Search { wanted: calls.to_vec(), ..Search::default() }
    }

    /// The query for the next round: name, source, and whether that is SQL or PL/pgSQL. The source of an aggregate is
    /// which functions it calls. `None` when all is known.
    pub fn sql(&self) -> Option<String> {
        if self.wanted.is_empty() {
            return None;
        }
        let mut names = String::new();
        for name in &self.wanted {
            if !names.is_empty() {
                names.push(',');
            }
            push_literal(&mut names, name);
        }
        Some(format!(
            "{OURS}SELECT p.proname, CASE WHEN p.prosrc OPERATOR(pg_catalog.=) '' \
             THEN pg_catalog.pg_get_functiondef(p.oid) ELSE p.prosrc END, \
             l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['sql'::pg_catalog.name, 'plpgsql']) \
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang \
             WHERE p.proname OPERATOR(pg_catalog.=) ANY (ARRAY[{names}]::pg_catalog.name[]) \
             AND NOT l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['internal'::pg_catalog.name, 'c']) \
             UNION ALL SELECT p.proname, pg_catalog.concat_ws('(', a.aggtransfn, a.aggfinalfn, a.aggcombinefn, \
             a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn, ''), true \
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_aggregate a ON a.aggfnoid OPERATOR(pg_catalog.=) p.oid \
             WHERE p.proname OPERATOR(pg_catalog.=) ANY (ARRAY[{names}]::pg_catalog.name[]) \
             AND p.oid OPERATOR(pg_catalog.>=) {FIRST_USERS_OID}::pg_catalog.oid"
        ))
    }

    /// Takes the answer of a round.
    pub fn take(&mut self, rows: impl IntoIterator<Item = Vec<Option<String>>>) {
        for name in std::mem::take(&mut self.wanted) {
            let is_garbled = name.contains(char::REPLACEMENT_CHARACTER);
            let found = self.found.entry(name).or_default();
            if is_garbled {
                // It came in another encoding than UTF-8, and is not found by this name.
                found.add_anything();
            }
        }
        for row in rows {
            let [Some(name), source, Some(is_sql)] = &row[..] else { continue };
            let entry = self.found.entry(name.as_str().into()).or_default();
            match (is_sql.as_str(), source) {
                ("t", Some(source)) => entry.add(&touched_by_body(source.as_bytes())),
                // Its language is not ours to read.
                _ => entry.add_anything(),
            }
        }
        self.rounds += 1;
        let called: HashSet<&Box<str>> = self.found.values().flat_map(|touched| &touched.calls).collect();
        let wanted: Vec<Box<str>> =
            called.into_iter().filter(|name| !self.found.contains_key(*name)).cloned().collect();
        if self.rounds >= DEPTH_MAX {
            for name in wanted {
                self.found.entry(name).or_default().add_anything();
            }
        } else {
            self.wanted = wanted;
        }
    }

    /// Ends the search: each function may change what those may that it calls.
    pub fn finish(self, functions: &Functions) {
        let Search { mut found, .. } = self;
        loop {
            let mut changed = false;
            let before = found.clone();
            for touched in found.values_mut() {
                let called = std::mem::take(&mut touched.calls);
                let old = touched.clone();
                for callee in called.iter().filter_map(|name| before.get(name)) {
                    touched.add_own(callee);
                }
                changed |= *touched != old;
                touched.calls = called;
            }
            if !changed {
                break;
            }
        }
        found.values_mut().for_each(|touched| touched.calls.clear());
        functions.remember(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::state::{Parts, touched};

    /// The parts that a call of `f` may change, when the database has these functions.
    fn check(functions: &[(&str, &str)], expected: Parts) {
        let known = Functions::default();
        let text = touched(b"SELECT f(1)");
        let mut first = Touched::default();
        known.add(&text, &mut first);
        assert_eq!((first.calls.len(), first.parts), (1, Parts::empty()));
        let mut search = Search::new(&first.calls);
        while search.sql().is_some() {
            let wanted = search.wanted.clone();
            let rows = functions.iter().filter(|(name, _)| wanted.iter().any(|wanted| **wanted == **name));
            search.take(
                rows.map(|(name, source)| {
                    [*name, *source, "t"].map(|column| Some(column.to_owned())).to_vec()
                }),
            );
        }
        search.finish(&known);
        let mut again = Touched::default();
        known.add(&text, &mut again);
        assert_eq!((again.calls.len(), again.parts), (0, expected), "{functions:?}");
    }

    #[test]
    fn a_function_may_change_what_its_source_says_and_what_it_calls() {
        check(&[], Parts::empty());
        check(&[("f", "select 1")], Parts::empty());
        check(&[("f", "begin perform set_config('app.user', $1, false); end")], Parts::SETTINGS);
        check(&[("f", "begin perform set_config('app.user', $1, true); end")], Parts::empty());
        check(&[("f", "begin update t set a = 1; return; end")], Parts::empty());
        check(&[("f", "begin\n  set search_path = a; end")], Parts::SETTINGS);
        check(&[("f", "begin execute 'set x'; end")], Parts::TOLD | Parts::ANY_SETTING);
        check(&[("f", "select g(1)"), ("g", "select pg_advisory_lock(1)")], Parts::LOCKS);
        check(&[("f", "public.\"G\"(-("), ("G", "select pg_advisory_lock(1)")], Parts::LOCKS);
        check(&[("f", "select g(1)"), ("g", "select f(1); create temp table t ()")], Parts::TEMPORARY);
    }

    #[test]
    fn functions_that_call_functions_without_end_may_do_anything() {
        let chain: Vec<(String, String)> =
            (0..20).map(|at| (format!("f{at}"), format!("select f{}()", at + 1))).collect();
        let mut functions: Vec<(&str, &str)> = chain.iter().map(|(name, body)| (&**name, &**body)).collect();
        functions.push(("f", "select f0()"));
        check(&functions, Parts::TOLD | Parts::ANY_SETTING);
    }
}
