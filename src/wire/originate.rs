//! The messages that we write ourselves, toward a client or a server. They are encoded by `pgwire`;
//! what we only pass on never comes here.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
use pgwire::messages::extendedquery::{Bind, Execute, Parse, Sync};
use pgwire::messages::response::{
    CommandComplete, ErrorResponse, NoticeResponse, ReadyForQuery, TransactionStatus,
};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::{Authentication, BackendKeyData, ParameterStatus, SecretKey};
use pgwire::messages::{Message, ProtocolVersion};

use crate::error::{Severity, SqlError};

/// The type of a column that we send, by its OID in `pg_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`, OID 25.
    Text,
    /// `int4`, OID 23.
    Int4,
    /// `int8`, OID 20.
    Int8,
    /// `numeric`, OID 1700.
    Numeric,
    /// `bytea`, OID 17.
    Bytea,
}

impl ColumnType {
    fn oid_and_size(self) -> (u32, i16) {
        match self {
            ColumnType::Text => (25, -1),
            ColumnType::Int4 => (23, 4),
            ColumnType::Int8 => (20, 8),
            ColumnType::Numeric => (1700, -1),
            ColumnType::Bytea => (17, -1),
        }
    }
}

/// As `Message::encode`, which refuses more than 30,000 bytes where libpq does: others take more, and a server may say more.
fn encode<M: Message>(message: &M, out: &mut BytesMut) {
    if let Some(tag) = M::message_type() {
        out.put_u8(tag);
    }
    out.put_i32(i32::try_from(message.message_length()).expect("nothing of ours has 2 GB"));
    message.encode_body(out).expect("a message of ours always encodes: its strings hold no NUL");
}

fn without_nul(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').collect()
}

/// ErrorResponse or NoticeResponse, after the error's severity.
pub fn error(error: &SqlError, out: &mut BytesMut) {
    let severity = error.severity.as_str().to_owned();
    let mut fields = vec![
        (b'S', severity.clone()),
        (b'V', severity),
        (b'C', error.code.to_string()),
        (b'M', without_nul(&error.message)),
    ];
    if let Some(detail) = &error.detail {
        fields.push((b'D', without_nul(detail)));
    }
    if let Some(hint) = &error.hint {
        fields.push((b'H', without_nul(hint)));
    }
    match error.severity {
        Severity::Notice => encode(&NoticeResponse::new(fields), out),
        Severity::Error | Severity::Fatal => encode(&ErrorResponse::new(fields), out),
    }
}

/// ReadyForQuery with status `I`.
pub fn ready_for_query_idle(out: &mut BytesMut) {
    encode(&ReadyForQuery::new(TransactionStatus::Idle), out);
}

/// ParameterStatus.
pub fn parameter_status(name: &str, value: &str, out: &mut BytesMut) {
    encode(&ParameterStatus::new(name.to_owned(), value.to_owned()), out);
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut BytesMut) {
    encode(&Authentication::Ok, out);
}

/// AuthenticationOk's relatives: what a server says during login.
pub fn authentication(message: Authentication, out: &mut BytesMut) {
    encode(&message, out);
}

/// BackendKeyData of protocol 3.0: a 4-byte process id and a 4-byte secret.
pub fn backend_key_data(process_id: i32, secret: i32, out: &mut BytesMut) {
    encode(&BackendKeyData::new(process_id, SecretKey::I32(secret)), out);
}

/// BackendKeyData of protocol 3.2, whose secret has a tail.
pub fn long_backend_key_data(process_id: i32, secret: i32, tail: &[u8], out: &mut BytesMut) {
    let secret = Bytes::from([&secret.to_be_bytes()[..], tail].concat());
    encode(&BackendKeyData::new(process_id, SecretKey::Bytes(secret)), out);
}

/// CommandComplete with a tag such as `SHOW`.
pub fn command_complete(tag: &str, out: &mut BytesMut) {
    encode(&CommandComplete::new(tag.to_owned()), out);
}

/// RowDescription of text-format columns.
pub fn row_description(columns: &[(&str, ColumnType)], out: &mut BytesMut) {
    let fields = columns
        .iter()
        .map(|(name, column_type)| {
            let (oid, size) = column_type.oid_and_size();
            FieldDescription::new((*name).to_owned(), 0, 0, oid, size, -1, 0)
        })
        .collect();
    encode(&RowDescription::new(fields), out);
}

/// DataRow of text values; `None` is NULL.
pub fn data_row(values: &[Option<String>], out: &mut BytesMut) {
    let mut data = BytesMut::new();
    for value in values {
        match value {
            None => data.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(text) => {
                let length = i32::try_from(text.len()).expect("a console value is short");
                data.extend_from_slice(&length.to_be_bytes());
                data.extend_from_slice(text.as_bytes());
            }
        }
    }
    let count = i16::try_from(values.len()).expect("a console row has few columns");
    encode(&DataRow::new(data, count), out);
}

/// Simple Query, toward a server.
pub fn query(sql: &str, out: &mut BytesMut) {
    encode(&Query::new(without_nul(sql)), out);
}

/// A query with one parameter, toward a server: Parse, Bind, Execute and Sync, all in text format.
pub fn query_with(sql: &str, parameter: &str, out: &mut BytesMut) {
    let parameter = Bytes::from(without_nul(parameter));
    encode(&Parse::new(None, without_nul(sql), Vec::new()), out);
    encode(&Bind::new(None, None, Vec::new(), vec![Some(parameter)], Vec::new()), out);
    encode(&Execute::new(None, 0), out);
    encode(&Sync::new(), out);
}

/// NegotiateProtocolVersion: the minor version of protocol 3 that will be spoken, and the `_pq_.` options
/// that we do not know.
///
/// Written by hand: pgwire encodes the whole version where PostgreSQL 15 to 17 send only the minor.
/// PostgreSQL's protocol documentation: "Newest minor protocol version supported by the server for
/// the major protocol version requested by the client", an Int32; libpq reads it as a full version.
pub fn negotiate_protocol_version(minor: u16, options: &[String], out: &mut BytesMut) {
    let (major, _) = ProtocolVersion::PROTOCOL3_0.version_number();
    let mut body = BytesMut::new();
    body.extend_from_slice(&((u32::from(major) << 16) | u32::from(minor)).to_be_bytes());
    let count = u32::try_from(options.len()).expect("a startup packet is at most 10,000 bytes");
    body.extend_from_slice(&count.to_be_bytes());
    for option in options {
        body.extend_from_slice(option.as_bytes());
        body.extend_from_slice(&[0]);
    }
    out.extend_from_slice(b"v");
    let length = u32::try_from(body.len() + 4).expect("bounded by the startup packet");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_libpq_would_take_is_written_all_the_same() {
        let value = "x".repeat(40_000);
        let mut out = BytesMut::new();
        parameter_status("search_path", &value, &mut out);
        assert_eq!(out[..5], [b'S', 0, 0, 0x9c, 0x51]);
        assert_eq!(out.len(), 0x9c51 + 1);
        assert!(out.ends_with(b"xx\0"));
    }
}
