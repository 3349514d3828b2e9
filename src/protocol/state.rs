//! What a client has made of its session, beyond the parameters that servers report: [`SessionState`] is what
//! the next server can be given, [`Pins`] are the reasons for which the client keeps its server. The server
//! itself is asked for both, by [`Question`], when a text has run that may have changed them.

use bitflags::bitflags;

use super::channels::Channels;
use super::parameters::{ParameterSet, SEARCH_PATH, Tracked, push_identifier, push_literal, push_setting};
use crate::sql::prepared::is_only_prepare;
use crate::sql::state::{Parts, TIME_LIMITS, Touched, touched};

/// Names of settings that mean more than themselves, or nothing outside of a transaction.
const NOT_ASKED: &str = "'role','session_authorization','transaction_isolation','transaction_read_only',\
    'transaction_deferrable','in_hot_standby','seed'";

/// How our own questions begin, for those who see them in `pg_stat_activity`.
pub(super) const OURS: &str = "/* pgweir: session_state */ ";

/// Lifts the session's time limits in front of a question, in the same Query and for no longer. It tells of each that
/// there was, in milliseconds as `pg_settings` has it.
pub const LIFT_LIMITS: &str = "SELECT 'limit', name, (EXTRACT(epoch FROM pg_catalog.current_setting(name)::pg_catalog.interval) \
    OPERATOR(pg_catalog.*) 1000)::pg_catalog.int8, pg_catalog.set_config(name, '0', true) \
    FROM pg_catalog.unnest(ARRAY['statement_timeout', 'transaction_timeout']) AS name \
    WHERE pg_catalog.current_setting(name, true) OPERATOR(pg_catalog.<>) '0';";

/// Most settings and statements of PREPARE that a session may have, and most bytes of their names, values and texts.
/// Each server that its client gets must be given them first.
pub const ENTRIES_MAX: usize = 10_000;
/// See [`ENTRIES_MAX`].
pub const TEXT_MAX: usize = 1024 * 1024;

/// What can be set up again on another server.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct SessionState {
    /// Settings that the session has set, with their values, in the order of their names.
    settings: Vec<(Box<str>, Box<str>)>,
    /// SET SESSION AUTHORIZATION
    authorization: Option<Box<str>>,
    /// SET ROLE
    role: Option<Box<str>>,
    /// Statements of PREPARE: the name, and the whole text that it came in.
    prepared: Vec<(Box<str>, Box<str>)>,
}

bitflags! {
    /// Why a client keeps its server.
    #[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
    pub struct Pins: u16 {
        /// An advisory lock of the session.
        const ADVISORY_LOCK = 1;
        /// A temporary table or other object.
        const TEMPORARY_OBJECT = 1 << 1;
        /// A cursor WITH HOLD.
        const CURSOR = 1 << 2;
        /// LISTEN
        const LISTEN = 1 << 3;
        /// A statement of PREPARE that came together with others, or under another search_path or role.
        const PREPARED_STATEMENT = 1 << 4;
        /// A setting that no table tells of and no text names.
        const SETTING = 1 << 5;
        /// LOAD
        const LIBRARY = 1 << 6;
        /// `currval` or `lastval`
        const SEQUENCE = 1 << 7;
        /// `setseed`, `dblink_connect` and others, which no table tells of.
        const OTHER = 1 << 8;
    }
}

impl Pins {
    /// The reasons, each as a word.
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        let names = [
            "advisory_lock",
            "temporary_object",
            "cursor",
            "listen",
            "prepared_statement",
            "setting",
            "library",
            "sequence",
            "other",
        ];
        let is_one = move |(place, _): &(usize, &str)| self.bits() & (1 << place) != 0;
        names.into_iter().enumerate().filter(is_one).map(|(_, name)| name)
    }

    /// The reasons in words, for people.
    pub fn words(self) -> String {
        self.reasons().collect::<Vec<_>>().join(", ")
    }

    /// Reasons of which no table tells: they hold until the client goes.
    fn untold(parts: Parts) -> Pins {
        let mut pins = Pins::empty();
        pins.set(Pins::SETTING, parts.contains(Parts::ANY_SETTING));
        pins.set(Pins::LIBRARY, parts.contains(Parts::LIBRARIES));
        pins.set(Pins::SEQUENCE, parts.contains(Parts::SEQUENCES));
        pins.set(Pins::OTHER, parts.contains(Parts::OTHERS));
        pins
    }
}

impl SessionState {
    /// The state of a client whose StartupMessage names these settings.
    pub fn of_settings(settings: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut state = SessionState::default();
        for (name, value) in settings {
            if name.eq_ignore_ascii_case("role") {
                state.role = (!value.eq_ignore_ascii_case("none")).then(|| value.into());
                continue;
            }
            // PostgreSQL takes the last of several.
            state.settings.retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
            state.settings.push((name.to_ascii_lowercase().into(), value.into()));
        }
        state.settings.sort();
        state
    }

    /// The same without these settings.
    pub fn without<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> SessionState {
        let mut state = self.clone();
        for name in names {
            state.settings.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        }
        state
    }

    /// Sets what is not set: what is reset has the value of the StartupMessage again.
    pub fn add_missing(&mut self, settings: &[(String, String)]) {
        // A role that is given up is not taken again.
        for (name, value) in settings.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("role")) {
            if !self.settings.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                self.settings.push((name.as_str().into(), value.as_str().into()));
            }
        }
        self.settings.sort();
    }

    /// Whether it is that of a new session.
    pub fn is_clean(&self) -> bool {
        *self == SessionState::default()
    }

    /// How many settings and statements there are, and how many bytes of text they have.
    pub fn size(&self) -> (usize, usize) {
        let entries = self.settings.iter().chain(&self.prepared);
        entries.fold((0, 0), |(count, bytes), (name, text)| (count + 1, bytes + name.len() + text.len()))
    }

    /// Whether it is more than is given to another server.
    pub fn is_too_large(&self) -> bool {
        let (entries, bytes) = self.size();
        entries > ENTRIES_MAX || bytes > TEXT_MAX
    }

    /// The same parts with values that no client wants, since what the server has of each is not known any more.
    /// `None` when that would not help.
    pub fn doubted(&self) -> Option<SessionState> {
        let mut state = self.clone();
        state.settings.iter_mut().for_each(|(_, value)| *value = "\u{1}".into());
        self.prepared.is_empty().then_some(state)
    }

    /// Whether its statements of PREPARE can be said again: not where their names may mean something else by now, since
    /// the search_path or the role has changed.
    fn can_prepare_again(&self) -> bool {
        let can_be_said = |text: &str| is_only_prepare(text.as_bytes()) && !is_garbled(text);
        self.prepared.is_empty()
            || self.environment().is_empty() && self.prepared.iter().all(|(_, text)| can_be_said(text))
    }

    fn setting(&self, wanted: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| **name == *wanted).map(|(_, value)| &**value)
    }

    /// Whether what is sent to undo it may be cut short by one of its own time limits.
    pub fn has_time_limit(&self) -> bool {
        TIME_LIMITS.iter().any(|name| self.setting(name).is_some_and(|value| value != "0"))
    }

    /// What decides what a statement's names mean.
    pub fn environment(&self) -> Vec<u8> {
        let mut environment = Vec::new();
        for value in [self.setting(SEARCH_PATH), self.role.as_deref(), self.authorization.as_deref()] {
            // An empty search_path is another one than that of the login.
            environment.push(u8::from(value.is_some()));
            environment.extend_from_slice(value.unwrap_or_default().as_bytes());
            environment.push(0);
        }
        if environment == [0; 6] { Vec::new() } else { environment }
    }

    /// Whether what is created without a schema is temporary.
    pub fn creates_temporary(&self) -> bool {
        self.setting(SEARCH_PATH).is_some_and(|path| path.contains("pg_temp"))
    }

    /// What the statements of PREPARE may change when they are run.
    pub fn prepared_touches(&self) -> Touched {
        let mut all = Touched::default();
        for (_, text) in &self.prepared {
            all.add(&touched(text.as_bytes()));
        }
        all
    }

    /// What it consists of, for people.
    pub fn words(&self) -> String {
        let mut words: Vec<String> = self.settings.iter().map(|(name, _)| name.to_string()).collect();
        words.extend(self.authorization.as_ref().map(|_| "session_authorization".to_owned()));
        words.extend(self.role.as_ref().map(|_| "role".to_owned()));
        words.extend(self.prepared.iter().map(|(name, _)| format!("prepared statement {name}")));
        words.join(", ")
    }

    /// The statements that turn a server of this state into one of the other: first those that undo, then those
    /// that set up. Between them is the place for what must be set as the user that logged in.
    pub fn toward(&self, wanted: &SessionState) -> (String, String) {
        let (mut undo, mut redo) = (String::new(), String::new());
        if self.role.is_some() {
            undo.push_str("RESET ROLE;");
        }
        if self.authorization.is_some() {
            undo.push_str("RESET SESSION AUTHORIZATION;");
        }
        for (name, _) in self.prepared.iter().filter(|one| !wanted.prepared.contains(one)) {
            undo.push_str("DEALLOCATE ");
            push_identifier(&mut undo, name);
            undo.push(';');
        }
        let gone = |name: &str| !wanted.settings.iter().any(|(other, _)| **other == *name);
        for (name, _) in self.settings.iter().filter(|(name, _)| gone(name)) {
            push_setting(&mut undo, name, None);
        }
        for (name, value) in wanted.settings.iter().filter(|one| !self.settings.contains(one)) {
            push_setting(&mut redo, name, Some(value));
        }
        if let Some(user) = &wanted.authorization {
            redo.push_str("SET SESSION AUTHORIZATION ");
            push_identifier(&mut redo, user);
            redo.push(';');
        }
        if let Some(role) = &wanted.role {
            redo.push_str("SET ROLE ");
            push_identifier(&mut redo, role);
            redo.push(';');
        }
        (undo, redo)
    }

    /// The texts of PREPARE that a server of this state lacks besides. Each must be sent by itself, as it came: the
    /// server keeps the whole text that a statement came in.
    pub fn lacks_prepared<'a>(&'a self, wanted: &'a SessionState) -> impl Iterator<Item = &'a str> {
        wanted.prepared.iter().filter(|one| !self.prepared.contains(one)).map(|(_, text)| &**text)
    }
}

/// What a server is asked after a text has run that may have changed the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    parts: Parts,
    custom: Vec<Box<str>>,
}

/// A server's answer to a [`Question`].
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// The state, with what was not asked as it was.
    pub state: SessionState,
    /// The reasons for a pin, with those that were not asked as they were.
    pub pins: Pins,
    /// Tracked parameters that the session has set, and not reset.
    pub tracked: Vec<usize>,
    /// The channels that the server listens to, if it was asked.
    pub channels: Channels,
}

impl Question {
    /// What is to be asked after a text that may have touched this, of a session that was in this state.
    pub fn new(touched: &Touched, state: &SessionState) -> Question {
        let mut custom = Vec::new();
        if touched.parts.contains(Parts::SETTINGS) {
            let known = state.settings.iter().map(|(name, _)| name).filter(|name| name.contains('.'));
            for name in touched.custom.iter().chain(known) {
                if !custom.contains(name) {
                    custom.push(name.clone());
                }
            }
        }
        Question { parts: touched.parts, custom }
    }

    /// Whether settings are asked for: whatever is not told has been reset.
    pub fn asks_settings(&self) -> bool {
        self.parts.contains(Parts::SETTINGS)
    }

    /// Whether a setting may have gone back to what it was at the login.
    pub fn may_reset(&self) -> bool {
        self.parts.contains(Parts::RESETS)
    }

    /// Whether some table is to be asked.
    pub fn is_asked(&self) -> bool {
        self.parts.intersects(Parts::TOLD)
    }

    /// The query: rows of three texts, kind, name and value. With `lifted` no time limit of the session holds.
    pub fn sql(&self, lifted: bool) -> String {
        let mut sql = OURS.to_owned();
        if lifted {
            sql.push_str(LIFT_LIMITS);
        }
        let mut union = "";
        let mut ask = |text: &str| {
            sql.push_str(union);
            sql.push_str(text);
            union = " UNION ALL ";
        };
        if self.parts.contains(Parts::SETTINGS) {
            ask(&format!(
                "SELECT 'setting', name, setting FROM pg_catalog.pg_settings \
                 WHERE source OPERATOR(pg_catalog.=) 'session' AND NOT name OPERATOR(pg_catalog.=) ANY (ARRAY[{NOT_ASKED}])"
            ));
            if lifted {
                ask("SELECT 'default', name, reset_val FROM pg_catalog.pg_settings \
                     WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY['statement_timeout', 'transaction_timeout'])");
            }
            ask("SELECT 'role', '', pg_catalog.current_setting('role')");
            ask("SELECT 'authorization', '', session_user::pg_catalog.text");
            for name in &self.custom {
                let mut literal = String::new();
                push_literal(&mut literal, name);
                ask(&format!("SELECT 'custom', {literal}, pg_catalog.current_setting({literal}, true)"));
            }
        }
        for (part, text) in [
            (
                Parts::PREPARED,
                "SELECT 'prepared', name, statement FROM pg_catalog.pg_prepared_statements WHERE from_sql",
            ),
            (
                Parts::LOCKS,
                "SELECT 'lock', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks \
                 WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
                 AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
            ),
            (
                Parts::TEMPORARY,
                "SELECT 'temporary', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_depend \
                 WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
                 AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())",
            ),
            (Parts::CURSORS, "SELECT 'cursor', name, '' FROM pg_catalog.pg_cursors WHERE is_holdable"),
            (Parts::CHANNELS, "SELECT 'channel', name, '' FROM pg_catalog.pg_listening_channels() AS name"),
        ] {
            if self.parts.contains(part) {
                ask(text);
            }
        }
        sql
    }

    /// Reads the answer. `login` is whom the server's sessions belong to at first; parameters that are `tracked` and
    /// `reported` by the server follow the client by themselves.
    pub fn read(
        &self,
        rows: impl IntoIterator<Item = Vec<Option<String>>>,
        before: (&SessionState, Pins),
        login: Option<&str>,
        (tracked, reported): (&Tracked, &ParameterSet),
    ) -> Told {
        let (state, pins) = before;
        let pins = pins | Pins::untold(self.parts);
        let mut told = Told { state: state.clone(), pins, tracked: Vec::new(), channels: Channels::new() };
        self.forget(&mut told);
        let mut lifted: Vec<(String, String)> = Vec::new();
        for row in rows {
            let mut columns = row.into_iter();
            let mut column = || columns.next().flatten();
            let (Some(kind), Some(name)) = (column(), column()) else { continue };
            // NULL is a setting that nobody has set.
            let Some(value) = column() else { continue };
            let limit = lifted.iter().find(|(lifted, _)| *lifted == name).map(|(_, limit)| limit.clone());
            match (kind.as_str(), limit) {
                ("limit", _) => lifted.push((name, value)),
                // That is ours, and ends with our question.
                ("setting", Some(_)) => {}
                ("default", Some(limit)) if limit != value => told.note("setting", name, limit, login),
                ("setting", None) if let Some(index) = tracked.reported(&name, reported) => {
                    told.tracked.push(index);
                }
                _ => told.note(&kind, name, value, login),
            }
        }
        told.state.settings.sort();
        told.state.prepared.sort();
        told.pins.set(Pins::PREPARED_STATEMENT, !told.state.can_prepare_again());
        told
    }

    fn forget(&self, told: &mut Told) {
        if self.parts.contains(Parts::SETTINGS) {
            told.state.settings.clear();
            told.state.role = None;
            told.state.authorization = None;
        }
        if self.parts.contains(Parts::PREPARED) {
            told.state.prepared.clear();
        }
        for (part, pin) in [
            (Parts::LOCKS, Pins::ADVISORY_LOCK),
            (Parts::TEMPORARY, Pins::TEMPORARY_OBJECT),
            (Parts::CURSORS, Pins::CURSOR),
            (Parts::CHANNELS, Pins::LISTEN),
        ] {
            if self.parts.contains(part) {
                told.pins -= pin;
            }
        }
    }
}

impl Told {
    fn note(&mut self, kind: &str, name: String, value: String, login: Option<&str>) {
        match kind {
            // One of an extension stands in the table, and is asked for by its name too.
            "custom" if self.state.settings.iter().any(|(known, _)| known.eq_ignore_ascii_case(&name)) => {}
            "setting" | "custom" if is_garbled(&value) => self.pins |= Pins::SETTING,
            "setting" | "custom" => self.state.settings.push((name.into(), value.into())),
            "role" if value != "none" => self.state.role = Some(value.into()),
            "authorization" if login.is_some_and(|login| login != value) => {
                self.state.authorization = Some(value.into());
            }
            "prepared" => self.state.prepared.push((name.into(), value.into())),
            "lock" => self.pins |= Pins::ADVISORY_LOCK,
            "temporary" => self.pins |= Pins::TEMPORARY_OBJECT,
            "cursor" => self.pins |= Pins::CURSOR,
            "channel" => {
                self.pins |= Pins::LISTEN;
                self.channels.insert(name.into());
            }
            _ => {}
        }
    }
}

/// Whether a text was no UTF-8 when it came, as in a database that has no encoding (SQL_ASCII).
fn is_garbled(text: &str) -> bool {
    text.contains(char::REPLACEMENT_CHARACTER)
}

/// What a pinned client's text may have ended: a reason for its pin is looked for again.
pub fn ended_by(touched: &mut Touched, pins: Pins) {
    if !touched.parts.contains(Parts::ENDS) {
        return;
    }
    touched.parts -= Parts::ENDS;
    if pins.contains(Pins::TEMPORARY_OBJECT) {
        touched.parts |= Parts::TEMPORARY;
    }
    if pins.contains(Pins::CURSOR) {
        touched.parts |= Parts::CURSORS;
    }
}

#[cfg(test)]
mod tests;
