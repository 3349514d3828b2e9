//! Which functions a text may call: every name in front of a parenthesis that is no keyword. What such a function does stands in no text of the client's; its own source is
//! [looked at](super::state::touched_by_body) instead.

use std::collections::HashSet;
use std::sync::LazyLock;

use memchr::memchr;

/// Longest name of a function; PostgreSQL's own limit (NAMEDATALEN).
const NAME_MAX: usize = 63;

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
    let mut found: Vec<Box<str>> = Vec::new();
    let mut from = 0;
    while let Some(open) = memchr(b'(', &sql[from..]) {
        let at = from + open;
        from = at + 1;
        let mut lower = [0; NAME_MAX];
        let Some(name) = name_before(&sql[..at], &mut lower) else { continue };
        if ORDINARY.contains(name) || found.iter().any(|known| known.as_bytes() == name) {
            continue;
        }
        if found.len() == CALLS_MAX {
            return None;
        }
        found.push(String::from_utf8_lossy(name).into());
    }
    Some(found)
}

/// The name that a text ends with, but for space: as it stands when it is quoted, else in lower case.
fn name_before<'a>(text: &'a [u8], lower: &'a mut [u8; NAME_MAX]) -> Option<&'a [u8]> {
    let text = text.trim_ascii_end();
    if let Some(inside) = text.strip_suffix(b"\"") {
        let begin = inside.iter().rposition(|byte| *byte == b'"')?;
        return Some(&inside[begin + 1..]);
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
    Some(lower)
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
    fn a_text_with_very_many_is_not_looked_through() {
        let many: String = (0..=CALLS_MAX).map(|number| format!("f{number}() ")).collect();
        assert_eq!(calls(many.as_bytes()), None);
    }
}
