//! BYTES. Messages to slices and back: no state, no IO, no opinion.
//!
//! Start with [`Header`]: every message after start-up is one type byte and a big-endian length that
//! counts itself but not the type byte (PostgreSQL manual, "Message Formats"). A pooler lives on
//! looking at these five bytes and at little else.

pub mod backend;
pub mod frontend;
pub mod originate;
pub mod startup;

use std::ffi::CStr;

use thiserror::Error;

/// Bytes of a message header: the type byte and the length.
pub const HEADER_LENGTH: usize = 5;

/// What makes bytes not a message. The connection that sent them is closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The length field is below 4, or negative.
    #[error("message {tag:?} claims a length of {length}: it must be at least 4")]
    Length {
        /// The message's type byte.
        tag: char,
        /// The length field as sent.
        length: i32,
    },
    /// A type byte that this side never sends.
    #[error("message type {tag:?} (0x{:02x}) is unknown", u32::from(*tag))]
    Tag {
        /// The type byte.
        tag: char,
    },
    /// A field inside the message runs past its end.
    #[error("message {tag:?} is malformed: {field} is not inside its {have} bytes")]
    Field {
        /// The message's type byte.
        tag: char,
        /// Which field.
        field: &'static str,
        /// Bytes in the message body.
        have: usize,
    },
    /// A message that must be held whole is larger than we hold.
    #[error("message {tag:?} is too large: {need} bytes, at most {limit} can be held")]
    TooLarge {
        /// The message's type byte.
        tag: char,
        /// Its size in bytes.
        need: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// The first five bytes of a message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte. What it means depends on the direction.
    pub tag: u8,
    /// Bytes of the whole message, its header included. At least 5.
    pub length: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` when fewer than five bytes are there.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER_LENGTH>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(Malformed::Length { tag: char::from(tag), length });
        }
        Ok(Some(Header { tag, length: length as usize + 1 }))
    }
}

/// Declares an enum of type bytes with its conversion from a byte.
macro_rules! tags {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $byte:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant = $byte,)+ }

        impl $name {
            /// The message type of a byte, or what is wrong with it.
            #[inline]
            pub fn from_byte(byte: u8) -> Result<Self, Malformed> {
                const TAGS: [Option<$name>; 256] = {
                    let mut tags = [None; 256];
                    $(tags[$byte as usize] = Some($name::$variant);)+
                    tags
                };
                TAGS[usize::from(byte)].ok_or(Malformed::Tag { tag: char::from(byte) })
            }
        }
    };
}

tags! {
    /// What a client may send after start-up.
    FrontendTag {
        /// Bind: a portal from a prepared statement.
        Bind = b'B',
        /// Close a statement or a portal.
        Close = b'C',
        /// CopyData.
        CopyData = b'd',
        /// CopyDone.
        CopyDone = b'c',
        /// CopyFail.
        CopyFail = b'f',
        /// Describe a statement or a portal.
        Describe = b'D',
        /// Execute a portal.
        Execute = b'E',
        /// Flush.
        Flush = b'H',
        /// FunctionCall, the fast path.
        FunctionCall = b'F',
        /// Parse: make a prepared statement.
        Parse = b'P',
        /// A password, or a SASL answer.
        Password = b'p',
        /// A simple Query.
        Query = b'Q',
        /// Sync.
        Sync = b'S',
        /// Terminate.
        Terminate = b'X',
    }
}

tags! {
    /// What a server may send after start-up.
    BackendTag {
        /// Authentication.
        Authentication = b'R',
        /// BackendKeyData.
        BackendKeyData = b'K',
        /// BindComplete.
        BindComplete = b'2',
        /// CloseComplete.
        CloseComplete = b'3',
        /// CommandComplete.
        CommandComplete = b'C',
        /// CopyData.
        CopyData = b'd',
        /// CopyDone.
        CopyDone = b'c',
        /// CopyInResponse.
        CopyInResponse = b'G',
        /// CopyOutResponse.
        CopyOutResponse = b'H',
        /// CopyBothResponse.
        CopyBothResponse = b'W',
        /// DataRow.
        DataRow = b'D',
        /// EmptyQueryResponse.
        EmptyQueryResponse = b'I',
        /// ErrorResponse.
        ErrorResponse = b'E',
        /// FunctionCallResponse.
        FunctionCallResponse = b'V',
        /// NegotiateProtocolVersion.
        NegotiateProtocolVersion = b'v',
        /// NoData.
        NoData = b'n',
        /// NoticeResponse.
        NoticeResponse = b'N',
        /// NotificationResponse.
        NotificationResponse = b'A',
        /// ParameterDescription.
        ParameterDescription = b't',
        /// ParameterStatus.
        ParameterStatus = b'S',
        /// ParseComplete.
        ParseComplete = b'1',
        /// PortalSuspended.
        PortalSuspended = b's',
        /// ReadyForQuery.
        ReadyForQuery = b'Z',
        /// RowDescription.
        RowDescription = b'T',
    }
}

/// Splits a NUL-terminated string off the front; `None` when there is no NUL.
pub(crate) fn split_cstring(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let string = CStr::from_bytes_until_nul(bytes).ok()?.to_bytes();
    Some((string, &bytes[string.len() + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expected: Result<Option<(u8, usize)>, Malformed>) {
        let got = Header::read(bytes).map(|header| header.map(|h| (h.tag, h.length)));
        assert_eq!(got, expected, "{bytes:?}");
    }

    #[test]
    fn a_header_is_a_type_byte_and_a_length_that_counts_itself() {
        check(b"", Ok(None));
        check(b"Q\0\0\0", Ok(None));
        check(b"S\0\0\0\x04", Ok(Some((b'S', 5))));
        check(b"Q\0\0\0\x05\0", Ok(Some((b'Q', 6))));
        check(b"d\x7f\xff\xff\xff", Ok(Some((b'd', 0x8000_0000))));
    }

    #[test]
    fn a_length_below_four_is_no_message() {
        check(b"Q\0\0\0\x03", Err(Malformed::Length { tag: 'Q', length: 3 }));
        check(b"Q\0\0\0\0", Err(Malformed::Length { tag: 'Q', length: 0 }));
        check(b"Q\xff\xff\xff\xff", Err(Malformed::Length { tag: 'Q', length: -1 }));
    }

    #[test]
    fn each_direction_knows_only_its_own_types() {
        assert_eq!(FrontendTag::from_byte(b'C'), Ok(FrontendTag::Close));
        assert_eq!(BackendTag::from_byte(b'C'), Ok(BackendTag::CommandComplete));
        assert_eq!(FrontendTag::from_byte(b'Z'), Err(Malformed::Tag { tag: 'Z' }));
        assert_eq!(BackendTag::from_byte(b'Q'), Err(Malformed::Tag { tag: 'Q' }));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(Some(header)) = Header::read(&bytes) {
                prop_assert!(header.length >= HEADER_LENGTH);
            }
        }
    }
}
