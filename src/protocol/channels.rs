//! What a client listens to while somebody else does so for it: what has become of its UNLISTENs, by the tags of the
//! server's answers, as the server on which they ran has nothing to tell of it.

use std::collections::BTreeSet;

use super::parameters::push_identifier;
use crate::sql::channels::Unlisten;
use crate::wire::backend::TransactionStatus;

/// Names of channels, as PostgreSQL holds them.
pub type Channels = BTreeSet<Box<str>>;

/// The fate of the UNLISTENs since somebody last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlistened {
    /// One has run, in a transaction that goes on.
    ran: bool,
    /// An error has come since the last ReadyForQuery.
    failed: bool,
    /// ROLLBACK has come behind one, since the last ReadyForQuery.
    rolled_back: bool,
    /// One was rolled back.
    undone: bool,
    /// One was committed.
    done: bool,
    /// A savepoint may have undone one, or not.
    in_doubt: bool,
}

impl Unlistened {
    /// A CommandComplete for the client.
    pub(super) fn note_tag(&mut self, tag: &[u8]) {
        match tag.strip_suffix(b"\0").unwrap_or(tag) {
            b"UNLISTEN" | b"DISCARD ALL" => self.ran = true,
            b"BEGIN" | b"START TRANSACTION" => self.rolled_back = false,
            b"COMMIT" => {
                self.in_doubt |= self.rolled_back;
                self.done |= std::mem::take(&mut self.ran);
            }
            b"ROLLBACK" if std::mem::take(&mut self.ran) => {
                self.rolled_back = true;
                self.undone = true;
            }
            _ => {}
        }
    }

    /// An ErrorResponse for the client.
    pub(super) fn note_error(&mut self) {
        self.failed = true;
    }

    /// A ReadyForQuery for the client.
    pub(super) fn note_ready(&mut self, status: TransactionStatus) {
        if status == TransactionStatus::Idle {
            let ran = std::mem::take(&mut self.ran);
            self.done |= ran && !self.failed;
            self.undone |= ran && self.failed;
        } else {
            // ROLLBACK TO, as the transaction goes on.
            self.in_doubt |= self.rolled_back;
        }
        self.failed = false;
        self.rolled_back = false;
    }

    /// Takes away from `channels` what was not listened to any more in the end. Returns whether that is known.
    pub fn apply(self, unlistens: &[Unlisten], channels: &mut Channels) -> bool {
        let several = unlistens.len() > 1;
        let is_unseen = self.done && unlistens.is_empty();
        let is_mixed = self.done && self.undone && several;
        if unlistens.contains(&Unlisten::Unknown) || self.in_doubt || is_unseen || is_mixed {
            return false;
        }
        for unlisten in unlistens.iter().filter(|_| self.done) {
            match unlisten {
                Unlisten::All => channels.clear(),
                Unlisten::Channel(name) => drop(channels.remove(name)),
                Unlisten::Unknown => unreachable!("that was looked for"),
            }
        }
        true
    }
}

/// The statements that make a server listen, or stop listening, to all of these.
pub fn statements<'a>(verb: &str, channels: impl IntoIterator<Item = &'a str>) -> String {
    let mut sql = String::new();
    for channel in channels {
        sql.push_str(verb);
        sql.push(' ');
        push_identifier(&mut sql, channel);
        sql.push(';');
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of `a` and `b` after these answers: tags, E for an error, and ReadyForQuery's status.
    fn left(unlistens: &[Unlisten], answers: &str) -> Option<String> {
        let mut unlistened = Unlistened::default();
        for answer in answers.split(',') {
            match answer {
                "I" => unlistened.note_ready(TransactionStatus::Idle),
                "T" => unlistened.note_ready(TransactionStatus::InTransaction),
                "F" => unlistened.note_ready(TransactionStatus::Failed),
                "E" => unlistened.note_error(),
                tag => unlistened.note_tag(format!("{tag}\0").as_bytes()),
            }
        }
        let mut channels = BTreeSet::from(["a", "b"].map(Box::from));
        let known = unlistened.apply(unlistens, &mut channels);
        known.then(|| channels.into_iter().collect::<Vec<_>>().concat())
    }

    #[test]
    fn an_unlisten_counts_when_its_transaction_is_committed() {
        let a = [Unlisten::Channel("a".into())];
        for (answers, expected) in [
            ("UNLISTEN,I", Some("b")),
            ("SELECT 1,I", Some("ab")),
            ("BEGIN,T,UNLISTEN,T,COMMIT,I", Some("b")),
            ("BEGIN,T,UNLISTEN,T,ROLLBACK,I", Some("ab")),
            ("BEGIN,T,UNLISTEN,T,E,F,ROLLBACK,I", Some("ab")),
            ("UNLISTEN,E,I", Some("ab")),
            ("UNLISTEN,I,E,I", Some("b")),
            ("E,I,UNLISTEN,I", Some("b")),
            ("BEGIN,UNLISTEN,COMMIT,E,I", Some("b")),
            ("BEGIN,T,ROLLBACK,UNLISTEN,RESET,I", Some("b")),
            ("BEGIN,T,SAVEPOINT,T,ROLLBACK,T,UNLISTEN,T,COMMIT,I", Some("b")),
            ("BEGIN,T,SAVEPOINT,T,UNLISTEN,T,ROLLBACK,T,COMMIT,I", None),
            ("BEGIN,UNLISTEN,SAVEPOINT,ROLLBACK,COMMIT,I", None),
            ("BEGIN,UNLISTEN,ROLLBACK,BEGIN,UNLISTEN,COMMIT,I", Some("b")),
        ] {
            assert_eq!(left(&a, answers).as_deref(), expected, "{answers}");
        }
    }

    #[test]
    fn several_are_known_unless_only_some_of_them_came_to_pass() {
        let both = [Unlisten::Channel("a".into()), Unlisten::All];
        assert_eq!(left(&both, "UNLISTEN,UNLISTEN,I").as_deref(), Some(""));
        assert_eq!(left(&both, "DISCARD ALL,I").as_deref(), Some(""));
        assert_eq!(left(&both, "BEGIN,UNLISTEN,ROLLBACK,I,UNLISTEN,I"), None);
        assert_eq!(left(&[Unlisten::Unknown], "SELECT 1,I"), None);
        assert_eq!(left(&[], "UNLISTEN,I"), None);
        assert_eq!(left(&[], "SELECT 1,I").as_deref(), Some("ab"));
    }
}
