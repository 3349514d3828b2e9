//! Which functions a text may call: every name in front of a parenthesis that is no keyword. What such a function does
//! stands in no text of the client's; its own source is [looked at](super::state::touched_by_body) instead.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use memchr::{memchr, memmem};

use super::lexer::{Lexer, NAME_MAX, Token, readings, unquoted};

/// Most names that are remembered of one text.
pub(super) const CALLS_MAX: usize = 64;

/// Words that may stand in front of a parenthesis and are no function.
const KEYWORDS: &str = "select from where in and or not any some all exists as on using values over filter within \
    group by union except intersect case when then else row array cast coalesce nullif greatest least extract \
    distinct partition order having join with recursive materialized lateral into set returning between like is \
    limit offset primary key unique check references default foreign table if numeric decimal varchar char \
    character timestamp time interval bit float grouping sets rollup cube";

static ORDINARY: LazyLock<HashSet<&'static [u8]>> =
    LazyLock::new(|| KEYWORDS.split_whitespace().map(str::as_bytes).collect());

/// The names in lower case, each once; what stands in strings and comments may be among them. `None` when there
/// are too many to look at.
pub fn calls(sql: &[u8]) -> Option<Vec<Box<str>>> {
    let mut found = Found::default();
    let mut from = 0;
    let mut behind_comment = false;
    while let Some(open) = memchr(b'(', &sql[from..]) {
        let at = from + open;
        from = at + 1;
        let before = trimmed_end(&sql[..at]);
        behind_comment |= ends_with_comment(before, &sql[before.len()..at]);
        let mut lower = [0; NAME_MAX];
        if let Some(name) = name_before(before, &mut lower) {
            found.add(&name);
        }
    }
    if behind_comment {
        readings(sql).for_each(|lexer| found.add_all(lexer));
    }
    (!found.too_many).then_some(found.names)
}

#[derive(Default)]
struct Found {
    names: Vec<Box<str>>,
    too_many: bool,
}

impl Found {
    fn add(&mut self, name: &[u8]) {
        if ORDINARY.contains(name) || self.names.iter().any(|known| known.as_bytes() == name) {
        } else if self.names.len() == CALLS_MAX {
            self.too_many = true;
        } else {
            self.names.push(String::from_utf8_lossy(name).into());
        }
    }

    /// The same as the lexer sees it, which costs more.
    fn add_all(&mut self, tokens: Lexer<'_>) {
        let mut name: Option<Cow<'_, [u8]>> = None;
        for token in tokens {
            match (token, name.take()) {
                (Token::Open, Some(name)) => self.add(&name),
                (Token::Word(word), _) => name = Some(Cow::Owned(word.to_ascii_lowercase().into_bytes())),
                (Token::Quoted(quoted), _) => name = Some(unquoted(quoted)),
                _ => {}
            }
        }
    }
}

fn trimmed_end(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    &text[..text.iter().rposition(|byte| !is_space(byte)).map_or(0, |last| last + 1)]
}

/// Whether what stands in front of some space may be a comment. One from `--` on ends with its line.
fn ends_with_comment(text: &[u8], space: &[u8]) -> bool {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let line = || text.rsplit(is_end).next().unwrap_or_default();
    text.ends_with(b"*/") || space.iter().any(is_end) && memmem::find(line(), b"--").is_some()
}

/// The name that a text ends with: as it stands when it is quoted, else in lower case.
fn name_before<'a>(text: &'a [u8], lower: &'a mut [u8; NAME_MAX]) -> Option<Cow<'a, [u8]>> {
    if let Some(inside) = text.strip_suffix(b"\"") {
        let mut begin = inside.iter().rposition(|byte| *byte == b'"')?;
        // Two quotes are one that belongs to the name.
        while begin > 0 && inside[begin - 1] == b'"' {
            begin = inside[..begin - 1].iter().rposition(|byte| *byte == b'"')?;
        }
        return Some(unquoted(&inside[begin + 1..]));
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80;
    let length = text.iter().rev().take_while(|byte| is_word(**byte)).count();
    let name = &text[text.len() - length..];
    let name = &name[..length.min(NAME_MAX)];
    if name.first().is_none_or(u8::is_ascii_digit) {
        return None;
    }
    let lower = &mut lower[..name.len()];
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    Some(Cow::Borrowed(lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &[&str]) {
        let found = calls(sql.as_bytes()).expect("there are few");
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{sql}");
    }

    #[test]
    fn names_in_front_of_a_parenthesis_are_calls() {
        check("SELECT My_Func (1), s.\"Odd f\"(2), my_func(3)", &["my_func", "Odd f"]);
        check("select count(*) from t where a in (1) and (b = 2)", &["count"]);
        check("insert into t values (1), (2)", &[]);
        check("insert into t (a) values (1)", &["t"]);
        check("(select 1)", &[]);
        check("", &[]);
        check("(", &[]);
        check("\"(", &[]);
        check("1(", &[]);
    }

    #[test]
    fn a_comment_between_name_and_parenthesis_hides_nothing() {
        check("select f/**/(1), g /* x */ (2)", &["f", "g"]);
        check("select f -- why\n (1)", &["why", "f"]);
        check("select f -- why\n\n -- but\r (1)", &["but", "f"]);
        check("select \"A\"\"b\"/**/(1), \"C\"\"\"\"d\"\x0b(2)", &["C\"\"d", "A\"b"]);
        check("select a -- no call\n from t where f(1)", &["f"]);
    }

    #[test]
    fn a_text_with_very_many_is_not_looked_through() {
        let many: String = (0..=CALLS_MAX).map(|number| format!("f{number}() ")).collect();
        assert_eq!(calls(many.as_bytes()), None);
    }
}
