//! A lexer, not a parser: what kind of statement is this? [`statements`] tells, for each statement of a
//! simple Query, as much as its first words say. It never says that something only reads when it may
//! write. [`state::touched`] tells what of its session a text may change.

pub mod calls;
pub mod channels;
mod lexer;
pub mod prepared;
pub mod state;

use memchr::memchr;

use lexer::{Lexer, Token, readings};

/// What a statement does, as far as it decides what is known after a lost connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It cannot change anything: SELECT without a function of the user's, SHOW, SET, FETCH and the like.
    Read,
    /// BEGIN, START TRANSACTION
    Begin,
    /// COMMIT, END, PREPARE TRANSACTION
    Commit,
    /// ROLLBACK, ABORT
    Rollback,
    /// CALL: a procedure may commit in the middle.
    Call,
    /// DO: so may an anonymous block.
    Do,
    /// COPY
    Copy,
    /// VACUUM, CREATE INDEX CONCURRENTLY, COMMIT PREPARED and others that are more than one transaction: half of it may be
    /// done.
    Several,
    /// Anything else: it may write.
    Write,
}

/// Functions of PostgreSQL that a SELECT may call without being taken for one that writes, and the
/// keywords that may stand before a parenthesis.
const HARMLESS: &[&str] = &[
    "select",
    "from",
    "where",
    "in",
    "and",
    "or",
    "not",
    "any",
    "some",
    "all",
    "exists",
    "as",
    "on",
    "using",
    "values",
    "over",
    "filter",
    "within",
    "group",
    "by",
    "union",
    "except",
    "intersect",
    "case",
    "when",
    "then",
    "else",
    "row",
    "array",
    "cast",
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "extract",
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "now",
    "lower",
    "upper",
    "length",
    "abs",
    "round",
    "trim",
    "substring",
    "concat",
    "to_char",
    "date_trunc",
    "jsonb_build_object",
    "json_build_object",
    "array_agg",
    "string_agg",
    "json_agg",
    "jsonb_agg",
    "row_to_json",
    "to_json",
    "to_jsonb",
    "unnest",
    "generate_series",
    "lateral",
    "numeric",
    "varchar",
    "char",
    "timestamp",
    "interval",
    "distinct",
    "partition",
    "order",
    "having",
    "join",
    "with",
    "recursive",
    "materialized",
    "position",
    "pg_is_in_recovery",
    "pg_sleep",
    "current_setting",
];

/// The text at the start of what a message holds of a statement: up to the NUL.
#[inline]
pub fn text_of(definition: &[u8]) -> &[u8] {
    memchr(0, definition).map_or(definition, |end| &definition[..end])
}

/// The first word of a text, behind comments and empty statements.
pub fn first_word(sql: &[u8]) -> Option<&str> {
    match Lexer::new(sql).find(|token| *token != Token::Semicolon)? {
        Token::Word(word) => Some(word),
        _ => None,
    }
}

/// The statements of a simple Query, in order; empty ones are left out. Where a string ends with a backslash it depends
/// on the session what they are: then they may be anything.
pub fn statements(sql: &[u8]) -> Vec<Kind> {
    let mut readings = readings(sql).map(kinds);
    let first = readings.next().unwrap_or_default();
    match readings.all(|other| other == first) {
        true => first,
        false => vec![Kind::Several, Kind::Commit],
    }
}

fn kinds(tokens: Lexer<'_>) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut statement = Vec::new();
    for token in tokens {
        match token {
            Token::Semicolon => kinds.extend(kind(&std::mem::take(&mut statement))),
            other => statement.push(other),
        }
    }
    kinds.extend(kind(&statement));
    kinds
}

/// `None` for an empty statement.
fn kind(tokens: &[Token<'_>]) -> Option<Kind> {
    let word = |place: usize| match tokens.get(place) {
        Some(Token::Word(word)) => word.to_ascii_lowercase(),
        _ => String::new(),
    };
    tokens.first()?;
    let first_word = tokens.iter().position(|token| *token != Token::Open).unwrap_or_default();
    Some(match word(first_word).as_str() {
        "begin" | "start" => Kind::Begin,
        // They run by themselves, and are done before the server says so.
        "commit" | "rollback" if word(first_word + 1) == "prepared" => Kind::Several,
        "commit" | "end" => Kind::Commit,
        "prepare" if word(first_word + 1) == "transaction" => Kind::Commit,
        "rollback" | "abort" => Kind::Rollback,
        "call" => Kind::Call,
        "do" => Kind::Do,
        "copy" => Kind::Copy,
        "show" | "set" | "reset" | "fetch" | "move" | "close" | "declare" | "savepoint" | "release"
        | "listen" | "unlisten" | "discard" | "deallocate" => Kind::Read,
        "select" | "table" | "values" | "with" if only_reads(tokens) => Kind::Read,
        "explain" if !has_word(tokens, "analyze") && !has_word(tokens, "analyse") => Kind::Read,
        "vacuum" | "cluster" | "reindex" => Kind::Several,
        "create" | "drop" | "alter" if is_several(tokens) => Kind::Several,
        _ => Kind::Write,
    })
}

/// DDL that cannot run inside a transaction, since it commits in the middle or works beside it.
fn is_several(tokens: &[Token<'_>]) -> bool {
    ["concurrently", "database", "tablespace", "subscription"].iter().any(|word| has_word(tokens, word))
}

fn has_word(tokens: &[Token<'_>], wanted: &str) -> bool {
    tokens.iter().any(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(wanted)))
}

/// No INTO, no row locks, no statement inside WITH that writes, and no function that may.
fn only_reads(tokens: &[Token<'_>]) -> bool {
    let writes = ["into", "insert", "update", "delete", "merge", "share", "uescape"];
    let is_harmless = |word: &str| HARMLESS.iter().any(|known| known.eq_ignore_ascii_case(word));
    let calls = tokens.windows(2).any(|pair| match pair {
        [Token::Word(word), Token::Open] => !is_harmless(word),
        [Token::Quoted(_) | Token::Escaped, Token::Open] => true,
        _ => false,
    });
    !calls && !writes.iter().any(|word| has_word(tokens, word))
}

#[cfg(test)]
mod tests {
    use super::Kind::*;
    use super::*;

    fn check(sql: &str, expected: &[Kind]) {
        assert_eq!(statements(sql.as_bytes()), expected, "{sql}");
    }

    #[test]
    fn the_first_words_tell_what_a_statement_does() {
        check("", &[]);
        check(" ;; ", &[]);
        check("BEGIN", &[Begin]);
        check("start transaction read only", &[Begin]);
        check("/* a /* b */ */ commit -- now", &[Commit]);
        check("END;", &[Commit]);
        check("prepare transaction 'x'", &[Commit]);
        check("PREPARE p AS SELECT 1", &[Write]);
        check("COMMIT PREPARED 'x'", &[Several]);
        check("ROLLBACK PREPARED 'x'", &[Several]);
        check("ROLLBACK TO s", &[Rollback]);
        check("call p()", &[Call]);
        check("DO $$ begin commit; end $$", &[Do]);
        check("copy t from stdin", &[Copy]);
        check("insert into t values (1)", &[Write]);
        check("VACUUM", &[Several]);
        check("create unique index concurrently i on t (a)", &[Several]);
        check("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", &[Several]);
        check("create database d", &[Several]);
        check("create index i on t (a)", &[Write]);
    }

    #[test]
    fn a_select_only_reads_unless_it_may_write() {
        for reads in
            ["select 1", "SELECT count(*) FROM t WHERE a IN (1)", "(select 1)", "table t", "values (1)"]
        {
            check(reads, &[Read]);
        }
        for writes in [
            "select * into u from t",
            "select nextval('s')",
            "select my_function ( 1 )",
            "select \"my_function\" (1)",
            "select U&\"my_function\"/**/(1)",
            "select u&\"!0066\" uescape '!' (1)",
            "with x as (delete from t returning 1) select * from x",
            "select * from t for update",
            "select * from t for share",
            "explain analyze delete from t",
        ] {
            check(writes, &[Write]);
        }
        check("explain delete from t", &[Read]);
    }

    #[test]
    fn semicolons_inside_quotes_separate_nothing() {
        check("select ';' ; commit", &[Read, Commit]);
        check("select 'it''s;' ; commit", &[Read, Commit]);
        check("select \"a;b\" ; commit", &[Read, Commit]);
        check("select $x$ ; $y$ ; $x$ ; commit", &[Read, Commit]);
        check("select $1 ; commit", &[Read, Commit]);
        check(r"select E'\';' ; commit", &[Read, Commit]);
        check("select 1 -- ; commit", &[Read]);
        check("select 'open ; commit", &[Read]);
        check("select $x$ open ; commit", &[Read]);
    }

    #[test]
    fn a_string_that_ends_with_a_backslash_may_not_end_there() {
        check(r"select 'a\', b", &[Read]);
        check(r"select '\'; commit; --'", &[Several, Commit]);
        check(r"select '\''; commit; --'", &[Several, Commit]);
    }

    #[test]
    fn any_bytes_are_taken() {
        for length in 0..4 {
            for seed in 0..20_000_u32 {
                let bytes = seed.wrapping_mul(2_654_435_761).to_le_bytes();
                let _ = statements(&bytes[..length]);
            }
        }
        let _ = statements(b"$");
        let _ = statements(b"e'\\");
    }
}
