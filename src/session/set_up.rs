//! What turns a server's session into its client's: put in front of the client's first bytes, and what becomes of
//! it. [`keeping`](super::keeping) says what a client has made of its session.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::{Farewell, Phase, SENT_AGAIN_MAX, Session};
use crate::error::{SqlError, sqlstate};
use crate::pool::{Lease, Target};
use crate::protocol::parameters::ParameterSet;
use crate::protocol::{Answer, RequestKind};
use crate::wire::originate;

/// In front of text that is not ASCII, of a client that has another encoding: what is kept of a session is UTF-8.
const SET_UTF8: &str = "SET client_encoding='UTF8';";

impl Session {
    /// The statements that give a server the client's settings, and nothing of anybody else's; empty when it has them.
    pub(super) fn sets_toward_mine(&self, lease: &Lease) -> String {
        let (mut sql, redo) = match Arc::ptr_eq(&self.state, &lease.state) {
            true => <(String, String)>::default(),
            false => lease.state.toward(&self.state),
        };
        let tracked = &self.plane.shared.server.tracked;
        sql.push_str(&lease.parameters.sets_toward(&self.parameters, tracked));
        sql.push_str(&redo);
        sql
    }

    /// Puts in front what turns the server's session into the client's. Returns whether the client's bytes must
    /// wait for its success: because no server has accepted these values yet, or because they must not be
    /// executed without them.
    pub(super) fn carry_over(&mut self, lease: &mut Lease, out: &mut Vec<u8>) -> bool {
        let is_same_state = Arc::ptr_eq(&self.state, &lease.state);
        let forgets_sequences =
            lease.pipeline.others_sequences && self.group.pool.sequences.load(Ordering::Relaxed);
        if is_same_state && Arc::ptr_eq(&self.parameters, &lease.parameters) && !forgets_sequences {
            self.proven = true;
            return false;
        }
        let mut sql = self.sets_toward_mine(lease);
        if forgets_sequences {
            sql.push_str("DISCARD SEQUENCES;");
            lease.pipeline.others_sequences = false;
        }
        let texts = self.in_its_encoding(lease, sql);
        let mut queries = BytesMut::new();
        for text in &texts {
            originate::query(text, &mut queries);
            lease.pipeline.push(RequestKind::Query, Answer::Discard);
        }
        if queries.is_empty() {
            self.parameters = Arc::clone(&lease.parameters);
            self.proven = true;
            return false;
        }
        let Target { database, user } = &self.group.pool.target;
        tracing::debug!(
            "S-{:#x}: {database}/{user}@{} varcache_apply: {}",
            lease.id,
            lease.endpoint,
            texts.concat()
        );
        out.extend_from_slice(&queries);
        // Nothing is to run as somebody else, or on somebody else's settings, should that fail.
        !self.proven || !is_same_state
    }

    /// The statements, and behind them the client's own of PREPARE, each as a Query by itself.
    pub(super) fn in_its_encoding(&self, lease: &Lease, sql: String) -> Vec<String> {
        let mut texts: Vec<String> = Some(sql).into_iter().filter(|sql| !sql.is_empty()).collect();
        let sets = texts.len();
        texts.extend(lease.state.lacks_prepared(&self.state).map(str::to_owned));
        let is_utf8 = lease.parameters.is_utf8() && self.parameters.is_utf8();
        if !is_utf8 && !texts.iter().all(|text| text.is_ascii()) {
            // A server reads a whole Query in the encoding that it had before.
            texts[..sets].iter_mut().for_each(|sql| sql.push_str(SET_UTF8));
            texts.insert(0, SET_UTF8.to_owned());
            texts.push(self.parameters.set_encoding());
        }
        texts
    }

    /// What we have put in front of the client's request is done. Returns whether the lease goes on.
    pub(super) fn note_own_query(&mut self, failed: bool) -> Result<bool, Farewell> {
        if failed {
            let lease = self.lease();
            let refusal = lease.refusal.take().unwrap_or_default();
            if lease.loan().proving && lease.state.has_time_limit() && self.sent_again < SENT_AGAIN_MAX {
                // What another client has set has kept its own end from being set up again.
                self.send_again("its session could not be reset");
                return Ok(false);
            }
            if let Phase::Leased(lease) = std::mem::replace(&mut self.phase, Phase::Idle) {
                // Some of it may be there: nobody else must find that.
                lease.close("it could not be set up for its client");
            }
            let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "invalid server parameter")
                .detail(format!("The server refused what this session has set: {refusal}"));
            return Err(error.into());
        }
        if self.lease().pipeline.runs_own_query() {
            // More of ours follows.
            return Ok(true);
        }
        self.proven = true;
        let state = Arc::clone(&self.state);
        self.lease().state = state;
        if std::mem::take(&mut self.canceled) {
            let plane = Rc::clone(&self.plane);
            self.cancel(&plane);
        }
        self.lease().parts().1.proving = false;
        let canonical = Arc::clone(&self.lease().parameters);
        self.log_canonical(&canonical);
        self.parameters = canonical;
        Ok(true)
    }

    /// The server may call a value otherwise than the client did.
    fn log_canonical(&self, canonical: &ParameterSet) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        for (name, from, to) in self.parameters.changes(canonical, &self.plane.shared.server.tracked) {
            let tag = self.tag();
            tracing::debug!(
                "{tag} varcache_set_canonical: setting {name} to its canonical version {from} -> {to}"
            );
        }
    }
}
