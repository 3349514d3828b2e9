//! Views of the server messages that we look into.

use super::{HEADER_LENGTH, Header, Malformed, split_cstring};

/// ReadyForQuery's transaction status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`: not in a transaction.
    #[default]
    Idle,
    /// `T`: in a transaction.
    InTransaction,
    /// `E`: in a failed transaction, until it is rolled back.
    Failed,
}

impl TransactionStatus {
    /// The status of ReadyForQuery's one byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(TransactionStatus::Idle),
            b'T' => Some(TransactionStatus::InTransaction),
            b'E' => Some(TransactionStatus::Failed),
            _ => None,
        }
    }
}

/// Reads the body of a ParameterStatus: name and value. `None` when it is not two strings.
pub fn parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = split_cstring(body)?;
    let (value, _) = split_cstring(rest)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

/// One NotificationResponse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    /// The whole message.
    pub message: &'a [u8],
    /// The channel's name.
    pub channel: &'a [u8],
    /// What was said.
    pub payload: &'a [u8],
}

impl<'a> Notification<'a> {
    /// Reads the body of a message (PostgreSQL manual, "Message Formats"): process id, channel, payload.
    fn read(message: &'a [u8]) -> Option<Self> {
        let (_, strings) = message.get(HEADER_LENGTH..)?.split_first_chunk::<4>()?;
        let mut strings = strings.strip_suffix(b"\0")?.splitn(2, |byte| *byte == 0);
        Some(Notification { message, channel: strings.next()?, payload: strings.next()? })
    }
}

/// The notifications in some whole messages, which are nothing else.
pub fn notifications(messages: &[u8]) -> impl Iterator<Item = Result<Notification<'_>, Malformed>> {
    let mut rest = messages;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let malformed = Malformed::Field { tag: 'A', field: "the channel and the payload", have: rest.len() };
        let length = Header::read(rest).ok().flatten().map_or(rest.len(), |header| header.length);
        let (message, others) = rest.split_at(length.min(rest.len()));
        rest = others;
        Some(Notification::read(message).ok_or(malformed))
    })
}

/// Reads the body of a NegotiateProtocolVersion: the minor version of protocol 3 that the server will speak.
/// Before PostgreSQL 18 there may be the minor number alone. `None` for another protocol.
pub fn negotiated_minor(body: &[u8]) -> Option<u16> {
    let (version, _) = body.split_first_chunk()?;
    match u32::from_be_bytes(*version) {
        version if matches!(version >> 16, 0 | 3) => Some(version as u16),
        _ => None,
    }
}

/// The fields of an ErrorResponse or NoticeResponse that we read. A server that leaves one out gives
/// an empty one (CVE-2026-6666 was a pooler that trusted the SQLSTATE to be there).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// `V`, else `S`: never translated where the server is 9.6 or newer.
    pub severity: &'a [u8],
    /// `C`: the SQLSTATE.
    pub code: &'a [u8],
    /// `M`: the message.
    pub message: &'a [u8],
    /// `D`: the detail.
    pub detail: &'a [u8],
    /// `H`: the hint.
    pub hint: &'a [u8],
    /// `R`: the function of PostgreSQL that has raised it.
    pub routine: &'a [u8],
}

impl ErrorFields<'_> {
    /// Whether the server closes the connection after it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// Reads the body of an ErrorResponse or NoticeResponse, as far as it is well-formed.
pub fn error_fields(body: &[u8]) -> ErrorFields<'_> {
    let mut fields = ErrorFields::default();
    let mut rest = body;
    while let Some((kind, after)) = rest.split_first() {
        let Some((value, next)) = split_cstring(after) else {
            break;
        };
        match kind {
            b'V' => fields.severity = value,
            b'S' if fields.severity.is_empty() => fields.severity = value,
            b'C' => fields.code = value,
            b'M' => fields.message = value,
            b'D' => fields.detail = value,
            b'H' => fields.hint = value,
            b'R' => fields.routine = value,
            _ => {}
        }
        rest = next;
    }
    fields
}

/// The columns of a DataRow in text format; NULL is `None`, and all is `None` when the body is malformed.
pub fn data_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            columns.push(None);
            rest = behind;
            continue;
        };
        let (column, behind) = behind.split_at_checked(length)?;
        columns.push(Some(String::from_utf8_lossy(column).into_owned()));
        rest = behind;
    }
    Some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_row_is_read_column_by_column() {
        let row = data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        assert_eq!(row, Some(vec![Some("a".to_owned()), None]));
        for broken in [&b""[..], b"\0\x01", b"\0\x01\0\0\0\x02a"] {
            assert_eq!(data_row(broken), None);
        }
    }

    #[test]
    fn an_error_gives_its_fields_in_any_order() {
        let fields = error_fields(b"SFEHLER\0VFATAL\0C57P01\0Mbye\0\0");
        assert!(fields.is_fatal());
        assert_eq!((fields.code, fields.message), (&b"57P01"[..], &b"bye"[..]));
    }

    #[test]
    fn an_error_without_sqlstate_or_end_is_read_as_far_as_it_goes() {
        assert_eq!(error_fields(b"").code, b"");
        assert_eq!(error_fields(b"SERROR\0\0").severity, b"ERROR");
        assert_eq!(error_fields(b"SERROR\0C123").code, b"");
    }

    #[test]
    fn a_negotiated_version_is_of_protocol_3() {
        assert_eq!(negotiated_minor(b"\0\x03\0\x02\0\0\0\0"), Some(2));
        assert_eq!(negotiated_minor(b"\0\0\0\0\0\0\0\x01_pq_.x\0"), Some(0));
        for other in [&b""[..], b"\0\x03\0", b"\0\x04\0\0\0\0\0\0"] {
            assert_eq!(negotiated_minor(other), None);
        }
    }

    #[test]
    fn a_parameter_is_two_strings() {
        assert_eq!(parameter_status(b"a\0b\0"), Some(("a", "b")));
        assert_eq!(parameter_status(b"a\0b"), None);
        assert_eq!(parameter_status(b"a\xff\0b\0"), None);
    }

    fn notification(channel: &str, payload: &str) -> Vec<u8> {
        let body = [b"\0\0\0\x07", channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"].concat();
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [b"A", &length[..], &body].concat()
    }

    #[test]
    fn each_notification_is_read_with_its_channel_and_its_payload() {
        let both = [notification("news", "one"), notification("empty", "")].concat();
        let read: Vec<_> = notifications(&both).map(Result::unwrap).collect();
        assert_eq!((read[0].channel, read[0].payload), (&b"news"[..], &b"one"[..]));
        assert_eq!((read[1].channel, read[1].payload), (&b"empty"[..], &b""[..]));
        assert_eq!([read[0].message, read[1].message].concat(), both);
        assert!(notifications(&both[..both.len() - 1]).any(|read| read.is_err()));
        assert!(notifications(b"A\0\0\0\x04").all(|read| read.is_err()));
    }
}
