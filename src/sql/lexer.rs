//! [`Lexer`]: SQL as PostgreSQL's own lexer cuts it (`scan.l`), as far as anyone here asks. It takes any
//! bytes, and copies none.

use std::borrow::Cow;

use memchr::memmem;

/// Longest name of anything; PostgreSQL cuts longer ones (`NAMEDATALEN`).
pub(super) const NAME_MAX: usize = 63;

/// One word, or one other thing that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or an identifier that is not quoted.
    Word(&'a str),
    /// A quoted identifier, as it stands between its quotes.
    Quoted(&'a [u8]),
    /// `U&"…"`: an identifier that may be another one than it looks like.
    Escaped,
    /// A string constant, as it stands between its quotes or dollars: not one with escapes of any kind.
    Text(&'a [u8]),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// `.`
    Dot,
    /// `;`
    Semicolon,
    /// `*`
    Star,
    /// Everything else: numbers, other strings, operators.
    Other,
}

impl Token<'_> {
    /// Whether it is this word, which has no case.
    pub(super) fn is_word(&self, wanted: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(wanted))
    }
}

pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    /// Whether a backslash hides what follows it in every string: `standard_conforming_strings = off`.
    escapes: bool,
}

/// Each way in which a server may read the text: `standard_conforming_strings` decides whether a string ends behind
/// a backslash.
pub(super) fn readings(sql: &[u8]) -> impl Iterator<Item = Lexer<'_>> {
    let other = is_ambiguous(sql).then_some(Lexer { rest: sql, escapes: true });
    [Lexer::new(sql)].into_iter().chain(other)
}

/// Whether there are two ways.
pub(super) fn is_ambiguous(sql: &[u8]) -> bool {
    memmem::find(sql, b"\\'").is_some()
}

impl<'a> Lexer<'a> {
    pub(super) fn new(sql: &'a [u8]) -> Self {
        Lexer { rest: sql, escapes: false }
    }

    /// How many bytes have not been looked at.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// A comment from `--` on, which a line feed ends, or a carriage return.
    fn skip_line(&mut self) {
        let end = self.rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        self.rest = end.map_or(&[], |end| &self.rest[end..]);
    }

    fn skip_comment(&mut self) {
        let mut depth = 0;
        while !self.rest.is_empty() {
            match self.rest {
                [b'/', b'*', rest @ ..] => (depth, self.rest) = (depth + 1, rest),
                [b'*', b'/', rest @ ..] => (depth, self.rest) = (depth - 1, rest),
                [_, rest @ ..] => self.rest = rest,
                [] => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// What a string or a quoted identifier holds; with `escapes` a backslash hides what follows it.
    fn quoted(&mut self, quote: u8, escapes: bool) -> &'a [u8] {
        let mut at = 1;
        while at < self.rest.len() {
            match self.rest[at] {
                b'\\' if escapes => at += 2,
                found if found == quote && self.rest.get(at + 1) == Some(&quote) => at += 2,
                found if found == quote => break,
                _ => at += 1,
            }
        }
        let held = &self.rest[1..at.min(self.rest.len()).max(1)];
        self.rest = self.rest.get(at + 1..).unwrap_or_default();
        held
    }

    /// `$tag$ … $tag$`; a parameter like `$1` is no such quote.
    fn dollar(&mut self) -> Token<'a> {
        let tag = self.rest[1..].iter().position(|byte| !is_tag(*byte)).map(|length| length + 1);
        match tag {
            Some(end) if self.rest[end] == b'$' && !self.rest[1].is_ascii_digit() => {
                let (tag, behind) = self.rest.split_at(end + 1);
                let found = behind.windows(tag.len()).position(|window| window == tag);
                let held = &behind[..found.unwrap_or(behind.len())];
                self.rest = found.map_or(&[], |at| &behind[at + tag.len()..]);
                Token::Text(held)
            }
            _ => {
                self.rest = &self.rest[1..];
                Token::Other
            }
        }
    }

    fn word(&mut self) -> Token<'a> {
        let length = self.rest.iter().position(|byte| !is_word(*byte)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        if word.eq_ignore_ascii_case(b"e") && rest.first() == Some(&b'\'') {
            self.quoted(b'\'', true);
            return Token::Other;
        }
        if word.eq_ignore_ascii_case(b"u") && matches!(rest, [b'&', b'\'' | b'"', ..]) {
            self.rest = &rest[1..];
            self.quoted(rest[1], false);
            return if rest[1] == b'"' { Token::Escaped } else { Token::Other };
        }
        match str::from_utf8(word) {
            Ok(word) if !word.starts_with(|first: char| first.is_ascii_digit()) => Token::Word(word),
            _ => Token::Other,
        }
    }
}

/// The name in a quoted identifier, in which each quote stands twice.
pub(super) fn unquoted(quoted: &[u8]) -> Cow<'_, [u8]> {
    if !quoted.contains(&b'"') {
        return Cow::Borrowed(quoted);
    }
    let mut name = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        name.push(*byte);
        if *byte == b'"' {
            bytes.next();
        }
    }
    Cow::Owned(name)
}

/// Inside the tag of a dollar quote.
fn is_tag(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Inside an identifier, which may have dollars but not begin with one.
fn is_word(byte: u8) -> bool {
    is_tag(byte) || byte == b'$'
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            match *self.rest {
                [] => return None,
                [b'-', b'-', ..] => self.skip_line(),
                [b'/', b'*', ..] => self.skip_comment(),
                // The NUL ends what a message holds.
                [first, ..] if first.is_ascii_whitespace() || matches!(first, 0 | 0x0b) => {
                    self.rest = &self.rest[1..];
                }
                [b'$', ..] => return Some(self.dollar()),
                [first, ..] if is_word(first) => return Some(self.word()),
                [b'\'', ..] => {
                    let held = self.quoted(b'\'', self.escapes);
                    let is_plain = !self.escapes || !held.contains(&b'\\');
                    return Some(if is_plain { Token::Text(held) } else { Token::Other });
                }
                [b'"', ..] => return Some(Token::Quoted(self.quoted(b'"', false))),
                [first, ..] => {
                    self.rest = &self.rest[1..];
                    return Some(match first {
                        b';' => Token::Semicolon,
                        b'(' => Token::Open,
                        b')' => Token::Close,
                        b',' => Token::Comma,
                        b'.' => Token::Dot,
                        b'*' => Token::Star,
                        _ => Token::Other,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &[Token<'_>]) {
        assert_eq!(Lexer::new(sql.as_bytes()).collect::<Vec<_>>(), expected, "{sql}");
    }

    #[test]
    fn words_strings_and_signs_are_cut_as_postgresql_cuts_them() {
        use Token::*;
        check(
            "a.b$c$ (1, 'x''y')",
            &[Word("a"), Dot, Word("b$c$"), Open, Other, Comma, Text(b"x''y"), Close],
        );
        check("\"A b\";--x\ry/*/**/*/", &[Quoted(b"A b"), Semicolon, Word("y")]);
        check(
            r#"E'\'' U&'d' u&"e" $1 $a$ ; $b$ $a$ z"#,
            &[Other, Other, Escaped, Other, Other, Text(b" ; $b$ "), Word("z")],
        );
        check("'open", &[Text(b"open")]);
        check("'", &[Text(b"")]);
        check("e'\\", &[Other]);
    }

    #[test]
    fn a_text_with_a_backslash_at_the_end_of_a_string_is_read_in_both_ways() {
        use Token::*;
        let read =
            |sql: &'static str| readings(sql.as_bytes()).map(Iterator::collect).collect::<Vec<Vec<_>>>();
        assert_eq!(read(r"'a\' b"), [vec![Text(br"a\"), Word("b")], vec![Other]]);
        assert_eq!(
            read(r"'a\';'b'"),
            [vec![Text(br"a\"), Semicolon, Text(b"b")], vec![Other, Word("b"), Text(b"")]]
        );
        assert_eq!(read(r"'\d' b"), [[Text(br"\d"), Word("b")]]);
    }
}
