//! What a text may change of its session: [`touched`] says where to look when it has run. It may name more
//! than there is, as the server's own tables tell then, but never less: a text that it knows nothing of is
//! plain. What functions and triggers do inside the server stands in no text.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use bitflags::bitflags;
use memchr::{memchr, memchr_iter, memchr2_iter, memchr3};

use super::calls::{CALLS_MAX, calls};
use super::channels::Unlisten;
use super::lexer::{Lexer, Token, readings};

/// Longest text that is looked at; of a longer one only the first word is.
const LOOK_MAX: usize = 64 * 1024;

/// How deep texts in texts are looked into, as DO in DO: each level may be read in two ways, and takes stack.
const NESTED_MAX: u32 = 4;

/// Settings that cut short what takes longer, in milliseconds.
pub const TIME_LIMITS: [&str; 2] = ["statement_timeout", "transaction_timeout"];

/// How far the arguments of a `set_config` are looked through.
const ARGUMENTS_MAX: usize = 256;

/// UNLISTENs that one transaction may hold, before nobody knows any more what they are of.
const UNLISTENS_MAX: usize = 64;

/// Names of settings with a dot that one transaction may touch, before it counts as any number of them.
const CUSTOM_MAX: usize = 64;

bitflags! {
    /// Parts of a session's state, by where the server tells of them.
    #[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
    pub struct Parts: u32 {
        /// Settings, the role among them: `pg_settings`.
        const SETTINGS = 1;
        /// A setting whose name has a dot and is not known here: it stands in no table.
        const ANY_SETTING = 1 << 1;
        /// Statements of SQL's PREPARE: `pg_prepared_statements`.
        const PREPARED = 1 << 2;
        /// Advisory locks that outlive the transaction: `pg_locks`.
        const LOCKS = 1 << 3;
        /// Temporary tables and other objects: `pg_class` and others, in `pg_my_temp_schema()`.
        const TEMPORARY = 1 << 4;
        /// Cursors WITH HOLD: `pg_cursors`.
        const CURSORS = 1 << 5;
        /// `pg_listening_channels()`.
        const CHANNELS = 1 << 6;
        /// LOAD, which nothing undoes, and no table tells of.
        const LIBRARIES = 1 << 7;
        /// `currval` and `lastval`, which answer from what the session did before.
        const SEQUENCES = 1 << 8;
        /// Others of which no table tells: `setseed`, `dblink_connect`, `pg_backup_start`.
        const OTHERS = 1 << 9;
        /// What may end one of the above: DROP, CLOSE.
        const ENDS = 1 << 10;
        /// Functions are other ones from now on.
        const FUNCTIONS = 1 << 11;
        /// Statements of SQL's PREPARE are run.
        const EXECUTES = 1 << 12;
        /// Notifications are sent, which the client may listen to itself.
        const NOTIFIES = 1 << 13;
        /// Settings that limit how long a statement may take: [`TIME_LIMITS`].
        const LIMITS = 1 << 14;
        /// `pg_listening_channels()` is asked.
        const SHOWS_CHANNELS = 1 << 15;
        /// Some setting goes back to what it was at the login: RESET, DISCARD ALL, SET … TO DEFAULT.
        const RESETS = 1 << 16;
    }
}

impl Parts {
    /// Whatever the server can be asked about.
    pub const TOLD: Parts = Parts::SETTINGS
        .union(Parts::PREPARED)
        .union(Parts::LOCKS)
        .union(Parts::TEMPORARY)
        .union(Parts::CURSORS)
        .union(Parts::CHANNELS);

    /// What leaves nothing of its own in the session.
    pub const LEAVE_NOTHING: Parts =
        Parts::ENDS.union(Parts::FUNCTIONS).union(Parts::NOTIFIES).union(Parts::SHOWS_CHANNELS);
}

/// What some text may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Where to look.
    pub parts: Parts,
    /// Settings with a dot in their names, which must be asked for by name.
    pub custom: Vec<Box<str>>,
    /// Functions that are called and of which nothing is known.
    pub calls: Vec<Box<str>>,
    /// Statements that are tagged SET and last no longer than their transaction: SET LOCAL, SET TRANSACTION.
    pub local_sets: u32,
    /// What is not listened to any more, should its transaction be committed: each once, in any order.
    pub unlistens: Vec<Unlisten>,
}

impl Touched {
    /// The functions that a text calls.
    fn by_calls(sql: &[u8]) -> Self {
        let mut touched = Touched::default();
        match calls(sql) {
            Some(calls) => touched.calls = calls,
            None => touched.add_anything(),
        }
        touched
    }

    /// Whether the text leaves nothing behind.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.local_sets == 0 && self.calls.is_empty()
    }

    /// Adds what another text may have changed.
    pub fn add(&mut self, other: &Touched) {
        self.add_own(other);
        for name in &other.calls {
            self.add_call(name);
        }
    }

    /// Adds the call of a function.
    pub fn add_call(&mut self, name: &str) {
        if self.calls.iter().any(|known| **known == *name) {
        } else if self.calls.len() < CALLS_MAX {
            self.calls.push(name.into());
        } else {
            self.add_anything();
        }
    }

    /// Adds what another text may have changed, but for what the functions do that it calls.
    pub fn add_own(&mut self, other: &Touched) {
        self.parts |= other.parts;
        self.local_sets += other.local_sets;
        for name in &other.custom {
            self.add_custom(name);
        }
        for unlisten in &other.unlistens {
            self.add_unlisten(unlisten.clone());
        }
    }

    /// Adds what the server says that it did. SET LOCAL has the tag of SET, so the tags of those that are
    /// known are not counted; a SET that the lexer has overlooked is.
    pub fn add_tag(&mut self, tag: &[u8]) {
        let tag = tag.strip_suffix(b"\0").unwrap_or(tag);
        self.parts |= match tag {
            b"SET" if self.local_sets > 0 => {
                self.local_sets -= 1;
                Parts::empty()
            }
            b"SET" => Parts::SETTINGS,
            b"RESET" => Parts::SETTINGS | Parts::RESETS,
            b"LISTEN" | b"UNLISTEN" => Parts::CHANNELS,
            b"NOTIFY" => Parts::NOTIFIES,
            b"LOAD" => Parts::LIBRARIES,
            b"PREPARE" | b"DEALLOCATE" | b"DEALLOCATE ALL" => Parts::PREPARED,
            b"DO" | b"CALL" => Parts::TOLD,
            b"DISCARD ALL" => Parts::TOLD | Parts::RESETS,
            _ => Parts::empty(),
        };
    }

    /// Adds whatever the server can be asked about.
    pub fn add_told(&mut self) {
        self.parts |= Parts::TOLD;
    }

    /// Adds what nobody can know: there may be settings with a dot, which no table tells of.
    pub fn add_anything(&mut self) {
        self.parts |= Parts::TOLD | Parts::ANY_SETTING;
    }

    /// Adds what a text may change of which only the beginning is known. One that brings data is taken for that.
    pub fn add_unseen(&mut self, beginning: &[u8]) {
        match begins_plain(beginning) {
            true => self.add_told(),
            false => self.add_anything(),
        }
    }

    fn add_unlisten(&mut self, unlisten: Unlisten) {
        self.parts |= Parts::CHANNELS;
        if self.unlistens.contains(&unlisten) {
        } else if self.unlistens.len() < UNLISTENS_MAX {
            self.unlistens.push(unlisten);
        } else {
            self.unlistens[0] = Unlisten::Unknown;
        }
    }

    /// Adds a setting of this name.
    fn add_setting(&mut self, name: &str) {
        self.parts |= match name.eq_ignore_ascii_case("seed") {
            true => Parts::OTHERS,
            false => Parts::SETTINGS,
        };
        if TIME_LIMITS.iter().any(|limit| limit.eq_ignore_ascii_case(name)) {
            self.parts |= Parts::LIMITS;
        }
        if name.contains('.') {
            self.add_custom(name);
        }
    }

    fn add_custom(&mut self, name: &str) {
        if !name.is_ascii() || name.ends_with('.') {
            // In which encoding it comes is not known here.
            self.parts |= Parts::ANY_SETTING;
        } else if self.custom.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        } else if self.custom.len() < CUSTOM_MAX {
            self.custom.push(name.into());
        } else {
            self.parts |= Parts::ANY_SETTING;
        }
    }
}

/// What the names of functions hold that change something.
static MARKS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let marks = [
        "set_config",
        "advisory",
        "currval",
        "lastval",
        "setseed",
        "dblink_conn",
        "_backup",
        "origin_session",
        "pg_notify",
        "pg_listening",
    ];
    AhoCorasick::builder()
        .kind(Some(AhoCorasickKind::DFA))
        .build(marks)
        .expect("a handful of words is not too many")
});

/// First words of statements that change nothing of the session by themselves.
const PLAIN: &[&[u8]] = &[
    b"select",
    b"insert",
    b"update",
    b"delete",
    b"merge",
    b"with",
    b"values",
    b"table",
    b"begin",
    b"commit",
    b"start",
    b"end",
    b"rollback",
    b"abort",
    b"savepoint",
    b"release",
    b"copy",
    b"fetch",
    b"move",
    b"show",
    b"truncate",
    b"vacuum",
    b"analyze",
    b"lock",
    b"explain",
];

/// What a text of one statement or several may change. Costs next to nothing for one that does not.
pub fn touched(sql: &[u8]) -> Touched {
    if sql.len() > LOOK_MAX {
        let mut touched = Touched::default();
        touched.add_unseen(sql);
        return touched;
    }
    let sql = without_end(sql);
    // Of a call, a second statement, a name in U&"": most texts have none.
    let without_signs = memchr3(b'(', b';', b'&', sql).is_none();
    let mut touched = if without_signs { Touched::default() } else { Touched::by_calls(sql) };
    let calls_marked = touched.calls.iter().any(|name| MARKS.is_match(name.as_bytes()));
    if calls_marked || !touched.parts.is_empty() || !is_plain(sql, without_signs) {
        note_readings(sql, &mut touched, note_texts);
    }
    touched
}

/// What the source of a function in SQL or PL/pgSQL may change, whatever it is called with.
pub fn touched_by_body(source: &[u8]) -> Touched {
    touched_by_nested(source, 1)
}

/// The same of a text that stands in a text, so many levels deep.
fn touched_by_nested(source: &[u8], depth: u32) -> Touched {
    if source.len() > LOOK_MAX || depth > NESTED_MAX {
        let mut touched = Touched::default();
        touched.add_anything();
        return touched;
    }
    let mut touched = Touched::by_calls(source);
    note_readings(source, &mut touched, |lexer, touched| note_body(lexer, touched, depth));
    // What is local to the function is so to the transaction.
    touched.local_sets = 0;
    if !touched.unlistens.is_empty() {
        // No tag tells whether it came to that.
        touched.unlistens = vec![Unlisten::Unknown];
    }
    touched.parts -= Parts::FUNCTIONS | Parts::ENDS | Parts::EXECUTES;
    touched
}

/// Notes what the text may change in each way of reading it.
fn note_readings(sql: &[u8], touched: &mut Touched, note: impl Fn(Lexer<'_>, &mut Touched)) {
    let mut lexers = readings(sql);
    lexers.by_ref().take(1).for_each(|lexer| note(lexer, touched));
    for lexer in lexers {
        let mut other = Touched::default();
        note(lexer, &mut other);
        let local_sets = touched.local_sets.min(other.local_sets);
        touched.add_own(&other);
        touched.local_sets = local_sets;
    }
}

fn note_texts(tokens: Lexer<'_>, touched: &mut Touched) {
    let mut statement = Vec::new();
    for token in tokens.chain([Token::Semicolon]) {
        match token {
            Token::Semicolon => note(&std::mem::take(&mut statement), touched, 0),
            other => statement.push(other),
        }
    }
}

fn note_body(tokens: Lexer<'_>, touched: &mut Touched, depth: u32) {
    let mut statement = Vec::new();
    for token in tokens.chain([Token::Semicolon]) {
        let begins_another =
            ["begin", "then", "else", "loop", "atomic"].iter().any(|word| token.is_word(word));
        if begins_another || token == Token::Semicolon {
            let statement = std::mem::take(&mut statement);
            note(&statement, touched, depth);
            if has_word(&statement, &["execute"]) {
                // SQL that nobody has written down.
                touched.add_anything();
            }
        } else {
            statement.push(token);
        }
    }
}

/// Whether a text changes nothing, but for what the functions do that it calls: it begins with a word of [`PLAIN`]
/// and holds neither a second statement nor a name in `U&""`, which a text `without_signs` does not, nor EXECUTE
/// or TEMP. Each is looked for by its rarest letter.
#[inline]
fn is_plain(sql: &[u8], without_signs: bool) -> bool {
    let has = |at: usize, word: &[u8]| {
        sql[at..].get(..word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word))
    };
    begins_plain(sql)
        && (without_signs
            || memchr(b';', sql).is_none()
                && !memchr_iter(b'&', sql).any(|at| at > 0 && has(at - 1, b"u&\"")))
        && !memchr2_iter(b'x', b'X', sql).any(|at| at > 0 && has(at - 1, b"execute"))
        && !memchr2_iter(b'm', b'M', sql).any(|at| at > 1 && has(at - 2, b"temp"))
}

/// Whether the first word is one of [`PLAIN`].
fn begins_plain(sql: &[u8]) -> bool {
    let sql = sql.trim_ascii_start();
    PLAIN.iter().any(|word| match sql.split_at_checked(word.len()) {
        Some((first, rest)) => {
            first.eq_ignore_ascii_case(word) && !rest.first().is_some_and(u8::is_ascii_alphabetic)
        }
        None => false,
    })
}

/// Without a last semicolon, which most people write.
fn without_end(sql: &[u8]) -> &[u8] {
    let sql = sql.strip_suffix(b"\0").unwrap_or(sql).trim_ascii_end();
    sql.strip_suffix(b";").unwrap_or(sql)
}

/// Notes what a statement may change, which stands in a text so many levels deep.
fn note(statement: &[Token<'_>], touched: &mut Touched, depth: u32) {
    let begins = statement.iter().position(|token| *token != Token::Open).unwrap_or_default();
    let statement = &statement[begins..];
    let mut words = statement.iter().map(|token| match token {
        Token::Word(word) => word.to_ascii_lowercase(),
        _ => String::new(),
    });
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match first.as_str() {
        "set" => note_set(&statement[1..], touched),
        "reset" => touched.add_setting(&name(&statement[1..])),
        "listen" => touched.parts |= Parts::CHANNELS,
        "unlisten" => touched.add_unlisten(Unlisten::read(&statement[1..])),
        "notify" => touched.parts |= Parts::NOTIFIES,
        "prepare" if second == "transaction" => {}
        "prepare" | "deallocate" => touched.parts |= Parts::PREPARED,
        "declare" if has_word(statement, &["hold"]) => touched.parts |= Parts::CURSORS,
        "create" | "alter" | "drop" if has_word(statement, &["function", "procedure", "routine"]) => {
            return note_functions(statement, touched, depth);
        }
        "close" | "drop" => touched.parts |= Parts::ENDS,
        "load" => touched.parts |= Parts::LIBRARIES,
        "do" => note_do(statement, touched, depth),
        "discard" if second == "all" => {
            touched.add_told();
            touched.add_unlisten(Unlisten::All);
        }
        "discard" | "call" => touched.parts |= Parts::TOLD,
        _ => {}
    }
    // EXPLAIN and CREATE TABLE AS have it too. What it runs was prepared somewhere else.
    if has_word(statement, &["execute"]) {
        touched.parts |= Parts::EXECUTES | Parts::SETTINGS;
    }
    if statement.contains(&Token::Escaped) {
        // Whatever it is called.
        touched.add_anything();
    }
    if has_word(statement, &["temp", "temporary"]) || statement.iter().any(is_temporary_schema) {
        touched.parts |= Parts::TEMPORARY;
    }
    for (place, pair) in statement.windows(2).enumerate() {
        let function = match pair {
            [Token::Word(word), Token::Open] => word.to_ascii_lowercase(),
            [Token::Quoted(name), Token::Open] => String::from_utf8_lossy(name).into_owned(),
            _ => continue,
        };
        note_call(&function, &statement[place + 2..], touched);
    }
}

/// `pg_temp`, and `pg_temp_3` and others, which it stands for.
fn is_temporary_schema(token: &Token<'_>) -> bool {
    let name = match token {
        Token::Word(word) => word.as_bytes(),
        Token::Quoted(name) => name,
        _ => return false,
    };
    name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"pg_temp"))
}

/// DO: its block stands in the text.
fn note_do(statement: &[Token<'_>], touched: &mut Touched, depth: u32) {
    touched.add_told();
    let mut has_block = false;
    for token in statement {
        if let Token::Text(block) = token {
            has_block = true;
            touched.add(&touched_by_nested(block, depth + 1));
        }
    }
    if !has_block || has_word(statement, &["language"]) && !has_word(statement, &["plpgsql"]) {
        touched.add_anything();
    }
}

/// What is known of functions is known by their names; what this one may change counts from now on.
fn note_functions(statement: &[Token<'_>], touched: &mut Touched, depth: u32) {
    touched.parts |= Parts::FUNCTIONS | Parts::ENDS;
    for token in statement {
        if let Token::Text(source) = token {
            let found = touched_by_nested(source, depth + 1);
            touched.parts |= found.parts & Parts::TOLD;
            found.custom.iter().for_each(|name| touched.add_custom(name));
        }
    }
    touched.calls.clear();
}

/// What follows SET.
fn note_set(rest: &[Token<'_>], touched: &mut Touched) {
    let word = |place: usize| match rest.get(place) {
        Some(Token::Word(word)) => word.to_ascii_lowercase(),
        _ => String::new(),
    };
    match (word(0).as_str(), word(1).as_str()) {
        _ if rest.get(1) == Some(&Token::Dot) => touched.add_setting(&name(rest)),
        ("local" | "transaction", _) => touched.local_sets += 1,
        // Its tag is its own.
        ("constraints", _) => {}
        ("session", "characteristics" | "authorization") => touched.parts |= Parts::SETTINGS,
        ("session", _) => touched.add_setting(&name(&rest[1..])),
        _ => touched.add_setting(&name(rest)),
    }
    if touched.parts.contains(Parts::SETTINGS) && has_word(rest, &["default"]) {
        touched.parts |= Parts::RESETS;
    }
}

/// The name of a setting, at the start.
fn name(tokens: &[Token<'_>]) -> String {
    let mut name = String::new();
    for token in tokens {
        match token {
            Token::Word(word) if name.is_empty() || name.ends_with('.') => name.push_str(word),
            Token::Quoted(quoted) if name.is_empty() || name.ends_with('.') => {
                name.push_str(&String::from_utf8_lossy(quoted));
            }
            Token::Dot => name.push('.'),
            _ => break,
        }
    }
    name
}

/// A function that is called, and what stands behind its parenthesis.
fn note_call(function: &str, arguments: &[Token<'_>], touched: &mut Touched) {
    match function {
        "set_config" => note_set_config(arguments, touched),
        "currval" | "lastval" => touched.parts |= Parts::SEQUENCES,
        "pg_notify" => touched.parts |= Parts::NOTIFIES,
        "pg_listening_channels" => touched.parts |= Parts::SHOWS_CHANNELS,
        "setseed"
        | "dblink_connect"
        | "dblink_connect_u"
        | "pg_backup_start"
        | "pg_start_backup"
        | "pg_replication_origin_session_setup" => touched.parts |= Parts::OTHERS,
        lock if is_session_lock(lock) => touched.parts |= Parts::LOCKS,
        _ => {}
    }
}

/// Whether it takes or frees an advisory lock that outlives the transaction.
fn is_session_lock(function: &str) -> bool {
    (function.starts_with("pg_advisory_") || function.starts_with("pg_try_advisory_"))
        && !function.contains("_xact_")
}

/// `set_config(name, value, is_local)`
fn note_set_config(arguments: &[Token<'_>], touched: &mut Touched) {
    let mut depth = 0;
    let mut ends = arguments.len();
    let mut commas = Vec::new();
    for (place, token) in arguments.iter().enumerate().take(ARGUMENTS_MAX) {
        match token {
            Token::Open => depth += 1,
            Token::Close if depth == 0 => {
                ends = place;
                break;
            }
            Token::Close => depth -= 1,
            Token::Comma if depth == 0 => commas.push(place),
            _ => {}
        }
    }
    let is_local = commas.get(1).is_some_and(|comma| {
        matches!(arguments[comma + 1..ends], [Token::Word(word)] if word.eq_ignore_ascii_case("true"))
    });
    if is_local {
        return;
    }
    match arguments {
        [Token::Text(name), Token::Comma, ..] => touched.add_setting(&String::from_utf8_lossy(name)),
        _ => touched.parts |= Parts::SETTINGS | Parts::ANY_SETTING,
    }
}

fn has_word(tokens: &[Token<'_>], wanted: &[&str]) -> bool {
    let is_wanted = |word: &str| wanted.iter().any(|one| one.eq_ignore_ascii_case(word));
    tokens.iter().any(|token| matches!(token, Token::Word(word) if is_wanted(word)))
}

#[cfg(test)]
mod tests;
