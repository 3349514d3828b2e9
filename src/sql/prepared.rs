//! PREPARE, EXECUTE and DEALLOCATE: statements of SQL that name prepared statements. See [`naming`].

use std::ops::Range;

use super::lexer::{Lexer, Token, readings, unquoted};

/// What is done with the statement that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// EXECUTE
    Execute,
    /// DEALLOCATE
    Deallocate,
}

/// A text that is one EXECUTE or DEALLOCATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Which of them.
    pub verb: Verb,
    /// The name, as PostgreSQL reads it: without quotes in lower case.
    pub name: Vec<u8>,
    /// Where it stands in the text.
    pub place: Range<usize>,
}

/// Whether a text is nothing but one EXECUTE or DEALLOCATE of a name, in each way of reading it. DEALLOCATE ALL is not.
pub fn naming(sql: &[u8]) -> Option<Naming> {
    if !matches!(sql.trim_ascii_start().first()?, b'e' | b'E' | b'd' | b'D' | b'/' | b'-') {
        return None;
    }
    // Else it would hide from those who look at what several statements may change.
    let mut readings = readings(sql).map(|lexer| named(lexer, sql.len()));
    let first = readings.next()??;
    readings.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn named(mut lexer: Lexer<'_>, total: usize) -> Option<Naming> {
    let verb = match lexer.next()? {
        Token::Word(word) if word.eq_ignore_ascii_case("execute") => Verb::Execute,
        Token::Word(word) if word.eq_ignore_ascii_case("deallocate") => Verb::Deallocate,
        _ => return None,
    };
    let mut token = lexer.next()?;
    if verb == Verb::Deallocate && token.is_word("prepare") {
        token = lexer.next()?;
    }
    let end = total - lexer.left();
    let (name, length) = match token {
        Token::Word(word) if verb == Verb::Deallocate && word.eq_ignore_ascii_case("all") => return None,
        Token::Word(word) => (word.to_ascii_lowercase().into_bytes(), word.len()),
        Token::Quoted(quoted) => (unquoted(quoted).into_owned(), quoted.len() + 2),
        _ => return None,
    };
    is_over(lexer).then(|| Naming { verb, name, place: end - length..end })
}

/// Whether a text is one PREPARE, which can be said again: `pg_prepared_statements` keeps the whole text that a
/// statement came in. Not one that is so in one way of reading it only.
pub fn is_only_prepare(sql: &[u8]) -> bool {
    readings(sql)
        .all(|mut lexer| lexer.next().is_some_and(|first| first.is_word("prepare")) && is_over(lexer))
}

/// Whether no further statement follows.
fn is_over(lexer: Lexer<'_>) -> bool {
    lexer.skip_while(|token| *token != Token::Semicolon).all(|token| token == Token::Semicolon)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, verb: Verb, name: &str, place: &str) {
        let found = naming(sql.as_bytes()).unwrap_or_else(|| panic!("{sql} names nothing"));
        assert_eq!((found.verb, found.name.as_slice()), (verb, name.as_bytes()), "{sql}");
        assert_eq!(&sql[found.place], place, "{sql}");
    }

    #[test]
    fn one_execute_or_deallocate_names_its_statement() {
        check("EXECUTE Stmt1 (1, 'x;y')", Verb::Execute, "stmt1", "Stmt1");
        check("/* a */ deallocate\n\"A \"\"b\";", Verb::Deallocate, "A \"b", "\"A \"\"b\"");
        check("DEALLOCATE PREPARE p -- x", Verb::Deallocate, "p", "p");
        check("execute prepare", Verb::Execute, "prepare", "prepare");
        check(r"execute p ('a\'), ('b')", Verb::Execute, "p", "p");
    }

    #[test]
    fn other_texts_name_nothing() {
        for sql in [
            "",
            "DEALLOCATE ALL",
            "deallocate prepare all",
            "DEALLOCATE p; SELECT 1",
            "delete from t",
            "execute",
            "execute $1",
            r"execute p ('a\'; b')",
            r"execute p ('a\'); select set_config('app.x', 'b', false); --'",
        ] {
            assert_eq!(naming(sql.as_bytes()), None, "{sql}");
        }
    }

    #[test]
    fn a_prepare_that_came_alone_can_be_said_again() {
        for (sql, expected) in [
            ("prepare p as select 1;", true),
            (" PREPARE p (int) AS SELECT $1 -- ; x", true),
            ("prepare p as select 1; select 2", false),
            ("select 2; prepare p as select 1", false),
            (r"prepare p as select 'a\'", true),
            (r"prepare p as select '\''; select 2 --'", false),
            ("", false),
        ] {
            assert_eq!(is_only_prepare(sql.as_bytes()), expected, "{sql}");
        }
    }
}
