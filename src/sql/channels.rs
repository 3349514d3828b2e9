//! What UNLISTEN names.

use super::lexer::{NAME_MAX, Token, unquoted};

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
            [Token::Quoted(quoted)] => match String::from_utf8(unquoted(quoted).into_owned()) {
                Ok(name) => Unlisten::channel(name),
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
