//! Views of the client messages that we look into: of Parse, Bind, Describe and Close only the names.
//! A view borrows the message's bytes; nothing is decoded that is only passed on.

use super::{FrontendTag, HEADER_LENGTH, Header, Malformed, split_cstring};

/// Largest body of a message that can be large: PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT`.
const LARGE_MAX: usize = 0x3fff_ffff - 1;

/// Largest body of the others: PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`.
pub const SMALL_MAX: usize = 10_000;

/// Largest Describe or Close, and the largest sum of the two names of a Bind with what closes or precedes
/// them. PostgreSQL takes only [`SMALL_MAX`], but a client's name for a statement never gets there.
pub const NAMES_MAX: usize = 64 * 1024;

/// Reads the header of a client's message: its type and the length of the whole message. `None` when
/// fewer than five bytes are there. A length that PostgreSQL would refuse is refused.
#[inline]
pub fn header(bytes: &[u8]) -> Result<Option<(FrontendTag, usize)>, Malformed> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    let tag = FrontendTag::from_byte(header.tag)?;
    let limit = limit(tag);
    match header.length <= limit {
        true => Ok(Some((tag, header.length))),
        false => Err(Malformed::TooLarge { tag: char::from(header.tag), need: header.length, limit }),
    }
}

/// As `SocketBackend` in PostgreSQL's `postgres.c` has it, but for the names of statements.
fn limit(tag: FrontendTag) -> usize {
    use FrontendTag::*;
    match tag {
        Query | Parse | Bind | FunctionCall | CopyData | Password => HEADER_LENGTH + LARGE_MAX,
        Close | Describe => NAMES_MAX,
        CopyDone | CopyFail | Execute | Flush | Sync | Terminate => HEADER_LENGTH + SMALL_MAX,
    }
}

/// Parse: a name for a statement, and everything that makes the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty is the unnamed statement.
    pub name: &'a [u8],
    /// The query with its NUL, the number of parameter types and their OIDs, as sent.
    pub definition: &'a [u8],
}

/// Reads the body of a Parse.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let malformed = |field| Malformed::Field { tag: 'P', field, have: body.len() };
    let (name, definition) = split_cstring(body).ok_or(malformed("the statement name"))?;
    let (_, types) = split_cstring(definition).ok_or(malformed("the query"))?;
    let Some((count, oids)) = types.split_first_chunk::<2>() else {
        return Err(malformed("the number of parameter types"));
    };
    if oids.len() != usize::from(u16::from_be_bytes(*count)) * 4 {
        return Err(malformed("the list of parameter types"));
    }
    Ok(Parse { name, definition })
}

/// The two names at the start of a Bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindNames<'a> {
    /// The portal's name; empty is the unnamed portal.
    pub portal: &'a [u8],
    /// The statement's name; empty is the unnamed statement.
    pub statement: &'a [u8],
}

/// Reads the names at the start of a Bind's body; `None` when they are not all there yet.
#[inline]
pub fn bind_names(body: &[u8]) -> Option<BindNames<'_>> {
    let (portal, rest) = split_cstring(body)?;
    let (statement, _) = split_cstring(rest)?;
    Some(BindNames { portal, statement })
}

/// What a Describe or a Close is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object<'a> {
    /// A prepared statement of this name.
    Statement(&'a [u8]),
    /// A portal of this name.
    Portal(&'a [u8]),
}

/// Reads the body of a Describe or a Close; `tag` is for the error.
pub fn object(tag: char, body: &[u8]) -> Result<Object<'_>, Malformed> {
    let malformed = |field| Malformed::Field { tag, field, have: body.len() };
    let (kind, rest) = body.split_first().ok_or(malformed("the kind of object"))?;
    let (name, _) = split_cstring(rest).ok_or(malformed("the name"))?;
    match kind {
        b'S' => Ok(Object::Statement(name)),
        b'P' => Ok(Object::Portal(name)),
        _ => Err(malformed("the kind of object ('S' or 'P')")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_gives_its_name_and_the_rest_untouched() {
        let view = parse(b"s1\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!(view.name, b"s1");
        assert_eq!(view.definition, b"select $1\0\0\x01\0\0\0\x17");
        assert_eq!(parse(b"\0\0\0\0").unwrap().name, b"");
    }

    #[test]
    fn a_parse_whose_fields_do_not_fit_is_malformed() {
        for body in [&b""[..], b"s1", b"s1\0select", b"s1\0select\0", b"s\0q\0\0\x01", b"s\0q\0\0\0x"] {
            assert!(matches!(parse(body), Err(Malformed::Field { tag: 'P', .. })), "{body:?}");
        }
    }

    #[test]
    fn bind_names_wait_until_both_are_there() {
        assert_eq!(bind_names(b""), None);
        assert_eq!(bind_names(b"portal\0stat"), None);
        let names = bind_names(b"portal\0stat\0\0\0").unwrap();
        assert_eq!((names.portal, names.statement), (&b"portal"[..], &b"stat"[..]));
    }

    #[test]
    fn an_object_is_a_statement_or_a_portal() {
        assert_eq!(object('D', b"Sx\0"), Ok(Object::Statement(b"x")));
        assert_eq!(object('C', b"P\0"), Ok(Object::Portal(b"")));
        for body in [&b""[..], b"S", b"Sx", b"Qx\0"] {
            assert!(object('C', body).is_err(), "{body:?}");
        }
    }
}
