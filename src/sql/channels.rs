//! What UNLISTEN names.

use super::lexer::Token;

/// PostgreSQL cuts longer names (`NAMEDATALEN`).
const NAME_MAX: usize = 63;

/// What is not listened to any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlisten {
    /// `*`
    All,
    /// One channel.
    Channel(Box<str>),
    /// What the text does not tell.
    Unknown,
}

impl Unlisten {
    /// Reads what follows UNLISTEN.
    pub(super) fn read(rest: &[Token<'_>]) -> Unlisten {
        match rest {
            [Token::Star] => Unlisten::All,
            [Token::Word(word)] => Unlisten::channel(word.to_ascii_lowercase()),
            [Token::Quoted(name)] => match str::from_utf8(name) {
                Ok(name) => Unlisten::channel(name.replace("\"\"", "\"")),
                Err(_) => Unlisten::Unknown,
            },
            _ => Unlisten::Unknown,
        }
    }

    fn channel(mut name: String) -> Unlisten {
        let end = (0..=NAME_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
        name.truncate(end.unwrap_or_default());
        Unlisten::Channel(name.into())
    }
}
