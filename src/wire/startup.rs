//! The first packet of a connection has no type byte: SSLRequest, GSSENCRequest, CancelRequest or
//! StartupMessage, told apart by the number after the length.

use super::split_cstring;
use thiserror::Error;

/// PostgreSQL refuses larger start-up packets (`MAX_STARTUP_PACKET_LENGTH`).
pub const LENGTH_MAX: usize = 10_000;

const SSL_REQUEST_CODE: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// The packet that asks for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The first byte of a TLS handshake (RFC 8446, 5.1), which is no start-up packet's: that begins with a
/// length below [`LENGTH_MAX`]. A client that sends it wants TLS without asking (`sslnegotiation=direct`).
pub const TLS_HANDSHAKE: u8 = 22;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// The client asks for TLS.
    SslRequest,
    /// The client asks for GSSAPI encryption.
    GssEncRequest,
    /// The client asks to cancel what another connection runs.
    Cancel(CancelRequest),
    /// The client wants to log in.
    Startup(Startup),
}

/// What BackendKeyData gave a client and CancelRequest brings back: the process id's four bytes, then
/// the secret's four. PgBouncer and we fill all eight with our own.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct CancelKey(pub [u8; 8]);

/// Longest secret of a cancel key (PostgreSQL manual, "BackendKeyData"), in bytes.
pub const SECRET_MAX: usize = 256;

/// What a client's CancelRequest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id, and the first four bytes of the secret.
    pub key: CancelKey,
    /// The rest of a secret that is longer, as it may be since protocol 3.2; at most 252 bytes.
    pub tail: Box<[u8]>,
}

impl CancelRequest {
    /// The request for the next peer, see [`CancelKey::passed_on`].
    pub fn passed_on(&self) -> Option<CancelRequest> {
        Some(CancelRequest { key: self.key.passed_on()?, tail: self.tail.clone() })
    }

    /// The request as it is sent.
    pub fn packet(&self) -> Vec<u8> {
        cancel_packet(&[&self.key.0[..], &self.tail].concat())
    }

    fn read(body: &[u8]) -> Option<CancelRequest> {
        let (key, tail) = body.split_first_chunk()?;
        let fits = tail.len() + 4 <= SECRET_MAX;
        fits.then(|| CancelRequest { key: CancelKey(*key), tail: tail.into() })
    }
}

/// What a server's BackendKeyData gave us: the process id's four bytes, then a secret of 4 to 256 bytes.
/// Nothing for a server that gave none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerKey(Box<[u8]>);

impl ServerKey {
    /// Reads a BackendKeyData's body; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<ServerKey> {
        (8..=4 + SECRET_MAX).contains(&body.len()).then(|| ServerKey(body.into()))
    }

    /// The server's process id; 0 is unknown.
    pub fn process_id(&self) -> i32 {
        self.0.first_chunk().map_or(0, |bytes| i32::from_be_bytes(*bytes))
    }

    /// The CancelRequest that brings the key back; `None` when there is none.
    pub fn request(&self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then(|| cancel_packet(&self.0))
    }
}

fn cancel_packet(key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len() + 8).expect("a key has at most 260 bytes");
    [&length.to_be_bytes()[..], &CANCEL_REQUEST.to_be_bytes(), key].concat()
}

/// The last two bits of a key that has a peer's id: how often a request may still be passed on.
const HOPS_MASK: u8 = 0b11;

const LONG_MARK: u8 = 1;

impl CancelKey {
    /// The key with its peer's id in it, as PgBouncer has it: the id in bytes 1 and 2, the low one
    /// first, and both bits of the hops set.
    pub fn with_peer(mut self, id: u16) -> CancelKey {
        let [low, high] = id.to_le_bytes();
        (self.0[1], self.0[2]) = (low, high);
        self.with_all_hops()
    }

    /// The id of the peer that gave the key, if its pooler is one of a group.
    pub fn peer(self) -> u16 {
        u16::from_le_bytes([self.0[1], self.0[2]])
    }

    /// The key as its owner knows it, however often the request was passed on.
    pub fn with_all_hops(mut self) -> CancelKey {
        self.0[7] |= HOPS_MASK;
        self
    }

    /// The key for the next peer: one hop less. `None` when another peer has passed it on already.
    ///
    /// PgBouncer grants three hops. A peer that nobody knows is asked by asking all, so a second hop
    /// could only ask the same ones again.
    pub fn passed_on(mut self) -> Option<CancelKey> {
        if self.0[7] & HOPS_MASK != HOPS_MASK {
            return None;
        }
        self.0[7] -= 1;
        Some(self)
    }

    /// The same key, marked as the head of a longer one, or not. The mark is in a byte that PgBouncer fills
    /// by chance.
    pub fn with_length(mut self, long: bool) -> CancelKey {
        self.0[3] = self.0[3] & !LONG_MARK | if long { LONG_MARK } else { 0 };
        self
    }

    /// Whether a key that we gave is the head of a longer one.
    pub fn is_long(self) -> bool {
        self.0[3] & LONG_MARK != 0
    }

    /// The two numbers of a BackendKeyData.
    pub fn process_id_and_secret(self) -> (i32, i32) {
        let [a, b, c, d, e, f, g, h] = self.0;
        (i32::from_be_bytes([a, b, c, d]), i32::from_be_bytes([e, f, g, h]))
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub fn matches(self, other: CancelKey) -> bool {
        let difference = self.0.iter().zip(other.0).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// What a connection asks of its server beside SQL, by the startup parameter `replication` (PostgreSQL manual,
/// "Streaming Replication Protocol").
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub enum Replication {
    /// Nothing: an ordinary connection.
    #[default]
    None,
    /// The changes of one database; SQL too.
    Logical,
    /// The WAL of the whole server, of no database.
    Physical,
}

impl Replication {
    /// Reads the parameter as PostgreSQL does: `database`, or a boolean, which any beginning that is no other
    /// one's names. `None` for anything else.
    pub fn parse(value: &str) -> Option<Self> {
        if value == "database" {
            return Some(Replication::Logical);
        }
        let value = value.to_ascii_lowercase();
        let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
        if begins("true", 1) || begins("yes", 1) || begins("on", 2) || value == "1" {
            Some(Replication::Physical)
        } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
            Some(Replication::None)
        } else {
            None
        }
    }

    /// The parameter's value toward a server, and in the log line of a login.
    pub fn as_str(self) -> &'static str {
        match self {
            Replication::None => "no",
            Replication::Logical => "database",
            Replication::Physical => "yes",
        }
    }
}

/// A StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// Minor version of protocol 3 that the client asks for.
    pub minor: u16,
    /// The parameters as sent, `_pq_.` options left out.
    pub parameters: Vec<(String, String)>,
    /// Names of the `_pq_.` protocol options; we know none.
    pub protocol_options: Vec<String>,
}

impl Startup {
    /// The value of a parameter, the last one when it was sent twice.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What is wrong with a first packet.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadStartup {
    /// The length is not one that PostgreSQL accepts.
    #[error("invalid length of startup packet: {0} bytes, at most {LENGTH_MAX}")]
    Length(u32),
    /// Protocol 2, gone since PostgreSQL 14.
    #[error("old V2 protocol not supported")]
    Version2,
    /// Neither a request that we know nor protocol 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0")]
    Version {
        /// As sent.
        major: u16,
        /// As sent.
        minor: u16,
    },
    /// The parameters are not pairs of strings closed by a NUL.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A name or value is not UTF-8.
    #[error("a startup parameter is not valid UTF-8")]
    Encoding,
}

/// The packet's whole length in bytes, from its first four.
pub fn packet_length(first: [u8; 4]) -> Result<usize, BadStartup> {
    let length = u32::from_be_bytes(first);
    match usize::try_from(length) {
        Ok(bytes) if (8..=LENGTH_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(BadStartup::Length(length)),
    }
}

/// Reads what follows the length.
pub fn parse(body: &[u8]) -> Result<FirstPacket, BadStartup> {
    let Some((code, rest)) = body.split_first_chunk::<4>() else {
        return Err(BadStartup::Layout);
    };
    match u32::from_be_bytes(*code) {
        SSL_REQUEST_CODE => Ok(FirstPacket::SslRequest),
        GSSENC_REQUEST => Ok(FirstPacket::GssEncRequest),
        CANCEL_REQUEST => CancelRequest::read(rest).map(FirstPacket::Cancel).ok_or(BadStartup::Layout),
        version => startup((version >> 16) as u16, version as u16, rest),
    }
}

fn startup(major: u16, minor: u16, mut rest: &[u8]) -> Result<FirstPacket, BadStartup> {
    match major {
        3 => {}
        2 => return Err(BadStartup::Version2),
        _ => return Err(BadStartup::Version { major, minor }),
    }
    let mut parameters = Vec::new();
    let mut protocol_options = Vec::new();
    loop {
        let (name, after) = split_cstring(rest).ok_or(BadStartup::Layout)?;
        if name.is_empty() {
            // PostgreSQL insists that the terminator is the packet's last byte.
            return match after {
                [] => Ok(FirstPacket::Startup(Startup { minor, parameters, protocol_options })),
                _ => Err(BadStartup::Layout),
            };
        }
        let (value, next) = split_cstring(after).ok_or(BadStartup::Layout)?;
        let name = str::from_utf8(name).map_err(|_| BadStartup::Encoding)?;
        let value = str::from_utf8(value).map_err(|_| BadStartup::Encoding)?;
        if name.starts_with("_pq_.") {
            protocol_options.push(name.to_owned());
        } else {
            parameters.push((name.to_owned(), value.to_owned()));
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(body: &[u8], expected: Result<FirstPacket, BadStartup>) {
        assert_eq!(parse(body), expected, "{body:?}");
    }

    #[test]
    fn the_four_first_packets_are_told_apart() {
        check(&SSL_REQUEST_CODE.to_be_bytes(), Ok(FirstPacket::SslRequest));
        check(&GSSENC_REQUEST.to_be_bytes(), Ok(FirstPacket::GssEncRequest));
        let mut cancel = CANCEL_REQUEST.to_be_bytes().to_vec();
        cancel.extend(1..=8);
        let request =
            |tail: &[u8]| CancelRequest { key: CancelKey([1, 2, 3, 4, 5, 6, 7, 8]), tail: tail.into() };
        check(&cancel, Ok(FirstPacket::Cancel(request(b""))));
        assert_eq!(request(b"").packet()[4..], cancel);
        cancel.extend([9; 252]);
        check(&cancel, Ok(FirstPacket::Cancel(request(&[9; 252]))));
        assert_eq!(request(&[9; 252]).packet(), [&268_u32.to_be_bytes()[..], &cancel].concat());
        cancel.push(9);
        check(&cancel, Err(BadStartup::Layout));
        check(&cancel[..11], Err(BadStartup::Layout));
    }

    #[test]
    fn a_startup_message_gives_parameters_and_unknown_protocol_options() {
        let body = b"\0\x03\x27\x0fuser\0bob\0_pq_.x\0y\0database\0d\0\0";
        let Ok(FirstPacket::Startup(startup)) = parse(body) else { panic!("a startup") };
        assert_eq!(
            (startup.minor, startup.get("user"), startup.get("database")),
            (9999, Some("bob"), Some("d"))
        );
        assert_eq!(startup.protocol_options, ["_pq_.x"]);
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        check(b"\0\x02\0\0user\0x\0\0", Err(BadStartup::Version2));
        check(b"\0\x04\0\0\0", Err(BadStartup::Version { major: 4, minor: 0 }));
        check(b"\0\x03\0\0user\0x\0", Err(BadStartup::Layout));
        check(b"\0\x03\0\0user\0x\0\0trailing", Err(BadStartup::Layout));
        check(b"\0\x03\0\0user\0\xff\0\0", Err(BadStartup::Encoding));
        check(b"\x04\xd2\x16\x2e\0", Err(BadStartup::Layout));
    }

    #[test]
    fn a_length_outside_postgresqls_limits_is_refused() {
        assert_eq!(packet_length([0, 0, 0, 8]), Ok(8));
        assert_eq!(packet_length([0, 0, 0x27, 0x10]), Ok(10_000));
        assert_eq!(packet_length([0, 0, 0x27, 0x11]), Err(BadStartup::Length(10_001)));
        assert_eq!(packet_length([0, 0, 0, 7]), Err(BadStartup::Length(7)));
        assert_eq!(packet_length([0xff; 4]), Err(BadStartup::Length(u32::MAX)));
    }

    #[test]
    fn a_key_holds_its_peer_where_pgbouncer_has_it() {
        let check = |id, key| {
            let made = CancelKey([0x11; 8]).with_peer(id);
            assert_eq!((made, made.peer()), (CancelKey(key), id), "{id}");
        };
        check(1, [0x11, 1, 0, 0x11, 0x11, 0x11, 0x11, 0x13]);
        check(16_383, [0x11, 0xff, 0x3f, 0x11, 0x11, 0x11, 0x11, 0x13]);
        check(0x1234, [0x11, 0x34, 0x12, 0x11, 0x11, 0x11, 0x11, 0x13]);
        check(65_535, [0x11, 0xff, 0xff, 0x11, 0x11, 0x11, 0x11, 0x13]);
    }

    #[test]
    fn a_servers_key_has_any_length_up_to_postgresqls_limit() {
        for length in [8, 36, 260] {
            let mut body = vec![7; length];
            body[..4].copy_from_slice(&4711_i32.to_be_bytes());
            let key = ServerKey::read(&body).expect("it has a length that PostgreSQL allows");
            assert_eq!((key.process_id(), key.request().unwrap().len()), (4711, length + 8));
        }
        for length in [0, 7, 261] {
            assert_eq!(ServerKey::read(&vec![7; length]), None);
        }
        assert_eq!((ServerKey::default().process_id(), ServerKey::default().request()), (0, None));
    }

    #[test]
    fn the_mark_of_a_long_key_leaves_its_peer_and_hops_alone() {
        let key = CancelKey([0x40; 8]).with_peer(0x0101).with_length(true);
        assert_eq!(key.0, [0x40, 1, 1, 0x41, 0x40, 0x40, 0x40, 0x43]);
        assert!(key.is_long() && key.passed_on().unwrap().is_long() && !key.with_length(false).is_long());
    }

    #[test]
    fn a_request_is_passed_on_once_and_stays_its_owners_key() {
        let key = CancelKey([0x40; 8]).with_peer(7);
        let passed = key.passed_on().expect("it comes from its client");
        assert_eq!(passed.0, [0x40, 7, 0, 0x40, 0x40, 0x40, 0x40, 0x42]);
        assert_eq!((passed.with_all_hops(), passed.peer()), (key, 7));
        for hops in 0..3 {
            let mut used = key;
            used.0[7] = 0x40 | hops;
            assert_eq!(used.passed_on(), None, "{hops} hops left");
            assert_eq!(used.with_all_hops(), key, "{hops} hops left");
        }
    }

    #[test]
    fn replication_is_a_boolean_or_a_database() {
        let check = |values: &str, expected| {
            for value in values.split(' ') {
                assert_eq!(Replication::parse(value), expected, "{value}");
            }
        };
        check("true TRUE t yes Y on On 1", Some(Replication::Physical));
        check("false F no n off OF 0", Some(Replication::None));
        check("database", Some(Replication::Logical));
        for value in ["", "o", "2", "Database", "data", "truee", "physical"] {
            assert_eq!(Replication::parse(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
            let mut version_3 = vec![0, 3, 0, 0];
            version_3.extend(bytes);
            let _ = parse(&version_3);
        }
    }
}
