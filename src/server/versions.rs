//! [`Versions`]: which servers are asked for protocol 3.2, whose cancel keys nobody can guess.
//!
//! A server is asked for it when an earlier login has shown that it is of PostgreSQL 18 or newer, and never
//! again when it, or a pooler in front of it, would not have it. So nothing older is asked at all.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::net::endpoint::Endpoint;

/// Servers that are known. Addresses of pods come and go: beyond this all are forgotten, and learned anew.
const SERVERS_MAX: usize = 1024;

/// The first PostgreSQL with protocol 3.2.
const KNOWS_3_2: u32 = 18;

/// What is known of each server. One for the process.
#[derive(Debug, Default)]
pub struct Versions(Mutex<HashMap<Endpoint, u16>>);

impl Versions {
    /// The minor version of protocol 3 to ask a server for.
    pub fn of(&self, endpoint: &Endpoint) -> u16 {
        self.0.lock().get(endpoint).copied().unwrap_or(0)
    }

    /// A login has shown the server's version; what is known of it already counts.
    pub(super) fn note_server(&self, endpoint: &Endpoint, server_version: &str) {
        let major = server_version.split(|c: char| !c.is_ascii_digit()).next();
        let major = major.and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < KNOWS_3_2) {
            return;
        }
        let mut known = self.0.lock();
        if known.len() >= SERVERS_MAX && !known.contains_key(endpoint) {
            known.clear();
        }
        known.entry(endpoint.clone()).or_insert(2);
    }

    /// It would not have 3.2.
    pub(super) fn note_refused(&self, endpoint: &Endpoint) {
        if let Some(minor) = self.0.lock().get_mut(endpoint) {
            *minor = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;

    #[test]
    fn only_a_server_that_is_new_enough_is_asked_and_only_until_it_refuses() {
        let versions = Versions::default();
        let endpoint = Endpoint { host: Host::Tcp("db".into()), port: 5432 };
        for old in ["17.9", "9.6.24", "", "x", "devel"] {
            versions.note_server(&endpoint, old);
            assert_eq!(versions.of(&endpoint), 0, "{old}");
        }
        versions.note_server(&endpoint, "18beta1 (Debian)");
        assert_eq!(versions.of(&endpoint), 2);
        versions.note_refused(&endpoint);
        versions.note_server(&endpoint, "19.1");
        assert_eq!(versions.of(&endpoint), 0);
    }

    #[test]
    fn no_more_servers_are_kept_than_there_is_room_for() {
        let versions = Versions::default();
        for number in 0..=SERVERS_MAX {
            versions.note_server(&Endpoint { host: Host::Tcp(number.to_string()), port: 1 }, "18.0");
        }
        assert_eq!(versions.0.lock().len(), 1);
    }
}
