//! Client statement name <-> server statement name.
//!
//! A client's `s1` and another client's `s1` are different statements, and a server has neither name:
//! it knows each distinct definition (query and parameter types) once, as `PGWEIR_<number>`. Start
//! with [`Statement`].

use std::borrow::{Borrow, Cow};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashSet;
use lru::LruCache;

use crate::sql::state::{Parts, Touched, touched};
use crate::sql::{first_word, text_of};

/// Statements that are forgotten only when no client uses them are looked for at this many, then at
/// twice as many as were left.
const CLEAN_FIRST: usize = 1_024;

/// And so at this many bytes of them.
const CLEAN_FIRST_BYTES: usize = 64 * 1024 * 1024;

/// How the names of statements on servers begin; their number follows.
const SERVER_NAMES: &str = "PGWEIR_";

/// One distinct prepared statement: what a Parse says after the name.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its number, in its name on every server.
    pub id: u64,
    /// The query with its NUL, the number of parameter types and their OIDs; behind them what decides what its
    /// names and literals mean.
    key: Box<[u8]>,
    /// How much of the key is the definition.
    definition: usize,
    /// What it may do.
    pub effects: Effects,
}

/// What a statement may do besides what it is for, as far as its own text says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// What it may change of the session, if anything.
    pub touched: Option<Box<Touched>>,
    /// It is DISCARD or DEALLOCATE, so that its end may be that of all statements.
    pub may_drop_all: bool,
    /// It is BEGIN or START, so that it may open a transaction block.
    pub may_open_block: bool,
}

impl Effects {
    fn of(definition: &[u8]) -> Self {
        let text = text_of(definition);
        let touched = touched(text);
        let command = first_word(text);
        let is_one_of = |commands: [&str; 2]| {
            command.is_some_and(|command| commands.iter().any(|known| known.eq_ignore_ascii_case(command)))
        };
        Effects {
            touched: (!touched.is_empty()).then(|| Box::new(touched)),
            may_drop_all: is_one_of(["discard", "deallocate"]),
            may_open_block: is_one_of(["begin", "start"]),
        }
    }

    /// The parts of the session that it may change.
    pub fn parts(&self) -> Parts {
        self.touched.as_ref().map_or(Parts::empty(), |touched| touched.parts)
    }
}

impl Statement {
    /// The query with its NUL, the number of parameter types and their OIDs.
    pub fn definition(&self) -> &[u8] {
        &self.key[..self.definition]
    }

    /// What decides what its names and literals mean.
    pub fn environment(&self) -> &[u8] {
        &self.key[self.definition..]
    }

    /// One of this number, for tests that need no more.
    #[cfg(test)]
    pub(super) fn numbered(id: u64) -> Statement {
        Statement { id, key: Box::default(), definition: 0, effects: Effects::default() }
    }

    /// The name on the server.
    pub fn server_name(id: u64) -> String {
        format!("{SERVER_NAMES}{id}")
    }

    /// Whether a name looks like one that we gave.
    pub fn is_server_name(name: &[u8]) -> bool {
        name.starts_with(SERVER_NAMES.as_bytes())
    }
}

struct ByDefinition(Arc<Statement>);

impl Borrow<[u8]> for ByDefinition {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for ByDefinition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key[..].hash(state);
    }
}

impl PartialEq for ByDefinition {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByDefinition {}

/// Every statement that some client has prepared, once, across all workers.
#[derive(Default)]
pub struct Interner {
    statements: DashSet<ByDefinition>,
    last_id: AtomicU64,
    /// Of all definitions.
    bytes: AtomicUsize,
    clean_at: AtomicUsize,
    clean_at_bytes: AtomicUsize,
}

impl Interner {
    /// The statement of this definition, where its names and literals mean what `environment` says.
    pub fn intern(&self, definition: &[u8], environment: &[u8]) -> Arc<Statement> {
        let joined = match environment {
            [] => Cow::Borrowed(definition),
            _ => Cow::Owned([definition, environment].concat()),
        };
        if let Some(known) = self.statements.get(&joined[..]) {
            return Arc::clone(&known.0);
        }
        self.clean();
        let id = self.number();
        let effects = Effects::of(definition);
        let (key, definition) = (Box::from(joined), definition.len());
        let statement = Arc::new(Statement { id, key, definition, effects });
        self.bytes.fetch_add(statement.key.len(), Ordering::Relaxed);
        // Two workers may come here with the same text: then it has two numbers, which does no harm.
        self.statements.insert(ByDefinition(Arc::clone(&statement)));
        statement
    }

    /// A number that no statement has.
    pub fn number(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Forgets what no client uses any more, so that the table stays within twice what is in use.
    fn clean(&self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if self.statements.len() < self.clean_at.load(Ordering::Relaxed).max(CLEAN_FIRST)
            && bytes < self.clean_at_bytes.load(Ordering::Relaxed).max(CLEAN_FIRST_BYTES)
        {
            return;
        }
        let mut kept_bytes = 0;
        self.statements.retain(|statement| {
            let is_used = Arc::strong_count(&statement.0) > 1;
            kept_bytes += if is_used { statement.0.key.len() } else { 0 };
            is_used
        });
        self.bytes.store(kept_bytes, Ordering::Relaxed);
        self.clean_at.store(self.statements.len() * 2, Ordering::Relaxed);
        self.clean_at_bytes.store(kept_bytes * 2, Ordering::Relaxed);
    }

    /// Distinct statements known.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

/// What one client has prepared.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    /// The definition of the unnamed statement; empty when there is none. PostgreSQL keeps it across
    /// transactions, and so must we, although the next transaction may run on another server.
    unnamed: Vec<u8>,
    /// Of the last one, also when that is gone.
    unnamed_effects: Effects,
}

impl ClientStatements {
    /// The statement of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Named statements.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether there are no named statements.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Takes a name away.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.remove(name)
    }

    /// Gives a name to a statement.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), statement);
    }

    /// The definition of the unnamed statement, if there is one.
    pub fn unnamed(&self) -> Option<&[u8]> {
        (!self.unnamed.is_empty()).then_some(&self.unnamed[..])
    }

    /// Remembers the unnamed statement, in place of the last one.
    pub fn set_unnamed(&mut self, definition: &[u8]) {
        if self.unnamed == definition {
            // Drivers that name no statements often ask the same again.
            return;
        }
        self.unnamed.clear();
        self.unnamed.extend_from_slice(definition);
        self.unnamed_effects = Effects::of(definition);
    }

    /// What the unnamed statement may do, if there is one.
    pub fn unnamed_effects(&self) -> Option<&Effects> {
        (!self.unnamed.is_empty()).then_some(&self.unnamed_effects)
    }

    /// A simple Query drops the unnamed statement, as does a failed Parse of it.
    pub fn drop_unnamed(&mut self) {
        self.unnamed.clear();
    }

    /// DISCARD ALL or DEALLOCATE ALL: the unnamed statement, which may be this very one, stays.
    pub fn drop_all(&mut self) {
        self.named.clear();
    }
}

/// Which statements one server has, the least recently used first to go.
#[derive(Debug)]
pub struct ServerStatements {
    present: LruCache<u64, Plan>,
    limit: usize,
    /// Of the pool's plans, the ones that these are.
    generation: u64,
}

/// What is known of a statement's plan on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Fresh,
    /// Its result may have other types by now, which PostgreSQL refuses: it is prepared again before it is used.
    Stale,
}

impl ServerStatements {
    /// At most `limit` statements (`max_prepared_statements`; 0 means that nothing is tracked).
    pub fn new(limit: usize) -> Self {
        ServerStatements { present: LruCache::unbounded(), limit, generation: 0 }
    }

    /// Whether the server has it, ready for use; if so it is now the most recently used.
    #[inline]
    pub fn touch(&mut self, id: u64) -> bool {
        self.present.get(&id) == Some(&Plan::Fresh)
    }

    /// Notes that it was prepared. Returns a statement that has to be closed before: one that makes room, or this
    /// one, if it is there and stale.
    pub fn insert(&mut self, id: u64) -> Option<u64> {
        if self.present.put(id, Plan::Fresh).is_some() {
            return Some(id);
        }
        (self.present.len() > self.limit.max(1)).then(|| self.present.pop_lru()).flatten().map(|(id, _)| id)
    }

    /// Takes note of the pool's generation of plans: those of an earlier one are prepared again.
    #[inline]
    pub fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.present.iter_mut().for_each(|(_, plan)| *plan = Plan::Stale);
        }
    }

    /// Notes that the server does not have it.
    pub fn remove(&mut self, id: u64) {
        self.present.pop(&id);
    }

    /// Notes that the server has it after all, as the next to go.
    pub fn restore(&mut self, id: u64) {
        self.present.put(id, Plan::Fresh);
        self.present.demote(&id);
    }

    /// DISCARD ALL or DEALLOCATE ALL.
    pub fn clear(&mut self) {
        self.present.clear();
    }

    /// Statements that the server has.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// `max_prepared_statements` after a RELOAD; what is too many goes with the next Parse.
    #[inline]
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }
}

/// What a Parse or a Close that was sent changes. When the server turns out to skip it (an error came
/// before it) or refuses it, the change is undone: it was noted when it was sent, because messages
/// behind it already relied on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The client named a statement; `sent` when the server was asked to prepare it.
    ClientParse {
        /// The client's name for it.
        name: Box<[u8]>,
        /// The statement.
        statement: Arc<Statement>,
        /// Whether a Parse went to the server.
        sent: bool,
    },
    /// The client's Parse of the unnamed statement.
    UnnamedParse,
    /// The client closed a name.
    ClientClose {
        /// The client's name.
        name: Box<[u8]>,
        /// What it named.
        statement: Arc<Statement>,
    },
    /// We prepared a statement that this server lacked.
    ServerParse(u64),
    /// We closed a statement to make room.
    ServerClose(u64),
    /// The client's Parse of a name that it has already: it must fail.
    Duplicate {
        /// The client's name.
        name: Box<[u8]>,
    },
}

/// Takes back what did not happen, the newest first.
pub fn undo(changes: Vec<Change>, client: Option<&mut ClientStatements>, server: &mut ServerStatements) {
    let mut client = client;
    for change in changes.into_iter().rev() {
        match change {
            Change::ClientParse { name, statement, sent } => {
                if let Some(client) = client.as_deref_mut() {
                    client.remove(&name);
                }
                if sent {
                    server.remove(statement.id);
                }
            }
            Change::UnnamedParse => {
                if let Some(client) = client.as_deref_mut() {
                    client.drop_unnamed();
                }
            }
            Change::ClientClose { name, statement } => {
                if let Some(client) = client.as_deref_mut() {
                    client.insert(&name, statement);
                }
            }
            Change::ServerParse(id) => server.remove(id),
            Change::ServerClose(id) => server.restore(id),
            Change::Duplicate { .. } => {}
        }
    }
}

/// DISCARD ALL or DEALLOCATE ALL: everything is gone, but for what was sent behind it.
pub fn drop_all<'a>(
    sent_behind: impl Iterator<Item = &'a Change>,
    client: Option<&mut ClientStatements>,
    server: &mut ServerStatements,
) {
    server.clear();
    let mut client = client;
    if let Some(client) = client.as_deref_mut() {
        client.drop_all();
    }
    for change in sent_behind {
        match change {
            Change::ClientParse { name, statement, sent } => {
                if let Some(client) = client.as_deref_mut() {
                    client.insert(name, Arc::clone(statement));
                }
                if *sent {
                    server.restore(statement.id);
                }
            }
            Change::ServerParse(id) => server.restore(*id),
            Change::UnnamedParse
            | Change::ClientClose { .. }
            | Change::ServerClose(_)
            | Change::Duplicate { .. } => {}
        }
    }
}

/// A Parse of ours was refused because the server has the statement already: then it has.
pub fn note_present(failed: &[Change], server: &mut ServerStatements) {
    match failed.first() {
        Some(Change::ClientParse { statement, sent: true, .. }) => server.restore(statement.id),
        Some(Change::ServerParse(id)) => server.restore(*id),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_drop_all_statements_is_known_by_its_first_word() {
        for (definition, expected) in [
            ("DISCARD ALL\0\0\0", true),
            (" \n;discard all", true),
            ("Deallocate all", true),
            ("DEALLOCATE one", true),
            ("-- why\nDISCARD ALL", true),
            ("/* a /* b */ c */ /**/ DISCARD ALL", true),
            ("/* a /* b */ DISCARD ALL", false),
            ("-- DISCARD ALL", false),
            ("SELECT 'DISCARD ALL'", false),
            ("DISC", false),
            ("/* DISCARD ALL", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(Effects::of(definition.as_bytes()).may_drop_all, expected, "{definition:?}");
        }
    }

    #[test]
    fn the_same_definition_is_the_same_statement_and_other_types_are_another() {
        let interner = Interner::default();
        let first = interner.intern(b"select $1\0\0\0", b"");
        assert_eq!(first.id, interner.intern(b"select $1\0\0\0", b"").id);
        assert_ne!(first.id, interner.intern(b"select $1\0\0\x01\0\0\0\x17", b"").id);
    }

    #[test]
    fn the_same_definition_under_another_search_path_is_another_statement() {
        let interner = Interner::default();
        let (here, there) =
            (interner.intern(b"select a\0\0\0", b""), interner.intern(b"select a\0\0\0", b"s\0\0\0"));
        assert_ne!(here.id, there.id);
        assert_eq!(here.definition(), there.definition());
    }

    #[test]
    fn the_interner_forgets_what_nobody_uses() {
        let interner = Interner::default();
        let kept = interner.intern(b"kept", b"");
        for number in 0..10_000 {
            interner.intern(format!("select {number}").as_bytes(), b"");
        }
        assert!(interner.len() <= CLEAN_FIRST + 1, "{}", interner.len());
        assert_eq!(interner.intern(b"kept", b"").id, kept.id);
    }

    #[test]
    fn the_interner_forgets_a_few_long_ones_sooner() {
        let interner = Interner::default();
        let kept = interner.intern(b"kept", b"");
        let long = "x".repeat(CLEAN_FIRST_BYTES / 8);
        for number in 0..20 {
            interner.intern(format!("select {number}{long}").as_bytes(), b"");
        }
        assert!(interner.len() <= 10, "{}", interner.len());
        assert_eq!(interner.intern(b"kept", b"").id, kept.id);
    }

    #[test]
    fn the_least_recently_used_statement_makes_room() {
        let mut server = ServerStatements::new(2);
        assert_eq!((server.insert(1), server.insert(2)), (None, None));
        assert!(server.touch(1));
        assert_eq!(server.insert(3), Some(2));
        assert!(server.touch(1) && server.touch(3) && !server.touch(2));
    }

    #[test]
    fn a_stale_statement_is_closed_and_prepared_again() {
        let mut server = ServerStatements::new(2);
        server.insert(1);
        server.renew(0);
        assert!(server.touch(1));
        server.renew(1);
        assert!(!server.touch(1));
        assert_eq!((server.insert(1), server.len()), (Some(1), 1));
        assert!(server.touch(1));
    }

    #[test]
    fn r15_the_unnamed_statement_outlives_discard_all_as_in_postgresql() {
        let mut client = ClientStatements::default();
        client.set_unnamed(b"DISCARD ALL\0\0\0");
        client.insert(b"s", Interner::default().intern(b"q\0\0\0", b""));
        drop_all([].iter(), Some(&mut client), &mut ServerStatements::new(9));
        assert_eq!((client.len(), client.unnamed()), (0, Some(&b"DISCARD ALL\0\0\0"[..])));
    }

    #[test]
    fn undoing_goes_backwards() {
        let interner = Interner::default();
        let (old, new) = (interner.intern(b"old", b""), interner.intern(b"new", b""));
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::new(9));
        server.insert(new.id);
        client.insert(b"s", new.clone());
        let changes = vec![
            Change::ClientClose { name: (*b"s").into(), statement: old.clone() },
            Change::ClientParse { name: (*b"s").into(), statement: new.clone(), sent: true },
        ];
        undo(changes, Some(&mut client), &mut server);
        assert_eq!(client.get(b"s").map(|s| s.id), Some(old.id));
        assert!(!server.touch(new.id));
    }
}
