//! What a client is told when something fails. [`SqlError`] is the only text of ours that a client
//! ever sees; it never holds an internal address, a secret or SQL text.

use std::borrow::Cow;
use std::fmt;

/// How bad it is, in PostgreSQL's words: `FATAL` ends the connection, `ERROR` ends the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the connection stays.
    Error,
    /// The connection is closed after this message.
    Fatal,
    /// Nothing failed; a message for the user.
    Notice,
}

impl Severity {
    /// The word in the message's `S` and `V` fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Notice => "NOTICE",
        }
    }
}

/// A five-character SQLSTATE, as in PostgreSQL's appendix A.
pub type SqlState = &'static str;

/// The SQLSTATEs that we send ourselves.
pub mod sqlstate {
    use super::SqlState;

    /// `protocol_violation`; PgBouncer sends nearly all of its own errors with it.
    pub const PROTOCOL_VIOLATION: SqlState = "08P01";
    /// `connection_failure`
    pub const CONNECTION_FAILURE: SqlState = "08006";
    /// `invalid_password`
    pub const INVALID_PASSWORD: SqlState = "28P01";
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION: SqlState = "28000";
    /// `invalid_parameter_value`
    pub const INVALID_PARAMETER_VALUE: SqlState = "22023";
    /// `invalid_sql_statement_name`
    pub const INVALID_STATEMENT_NAME: SqlState = "26000";
    /// `duplicate_prepared_statement`
    pub const DUPLICATE_PREPARED_STATEMENT: SqlState = "42P05";
    /// `query_canceled`
    pub const QUERY_CANCELED: SqlState = "57014";
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: SqlState = "57P01";
    /// `cannot_connect_now`
    pub const CANNOT_CONNECT_NOW: SqlState = "57P03";
    /// idle_session_timeout
    pub const IDLE_SESSION_TIMEOUT: SqlState = "57P05";
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: SqlState = "53300";
    /// object_not_in_prerequisite_state
    pub const NOT_IN_PREREQUISITE_STATE: SqlState = "55000";
    /// `program_limit_exceeded`
    pub const PROGRAM_LIMIT_EXCEEDED: SqlState = "54000";
    /// `feature_not_supported`
    pub const FEATURE_NOT_SUPPORTED: SqlState = "0A000";
    /// `config_file_error`; what a failed RELOAD answers.
    pub const CONFIG_FILE_ERROR: SqlState = "F0000";
    /// `crash_shutdown`: another backend crashed.
    pub const CRASH_SHUTDOWN: SqlState = "57P02";
    /// `transaction_resolution_unknown`: whether it is committed cannot be known here.
    pub const TRANSACTION_RESOLUTION_UNKNOWN: SqlState = "08007";
    /// `read_only_sql_transaction`
    pub const READ_ONLY_SQL_TRANSACTION: SqlState = "25006";
    /// `disk_full`, which only servers say.
    pub const DISK_FULL: SqlState = "53100";
    /// What a server says that stops or starts: nothing that one session did.
    pub const IS_GOING_AWAY: [SqlState; 3] = [ADMIN_SHUTDOWN, CRASH_SHUTDOWN, CANNOT_CONNECT_NOW];
    /// `successful_completion`; the code of a NOTICE.
    pub const SUCCESSFUL_COMPLETION: SqlState = "00000";
}

/// An error (or notice) in PostgreSQL's own form: message, then the numbers (DETAIL), then the
/// setting and the deed (HINT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// FATAL, ERROR or NOTICE.
    pub severity: Severity,
    /// Five characters, see [`sqlstate`].
    pub code: Cow<'static, str>,
    /// Where PgBouncer has a well-known message, it is this one.
    pub message: Cow<'static, str>,
    /// The facts and numbers.
    pub detail: Option<String>,
    /// What to do, naming the setting.
    pub hint: Option<String>,
}

impl SqlError {
    /// An error that ends the connection.
    pub fn fatal(code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    /// An error that leaves the connection open.
    pub fn error(code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// A notice.
    pub fn notice(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Notice, sqlstate::SUCCESSFUL_COMPLETION, message)
    }

    fn new(severity: Severity, code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        SqlError { severity, code: Cow::Borrowed(code), message: message.into(), detail: None, hint: None }
    }

    /// Adds the facts and numbers.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What stands in the log of it, whose beginning is PgBouncer's line.
    pub fn line(&self) -> Cow<'static, str> {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.message).into(),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity.as_str(), self.code, self.message)
    }
}

impl std::error::Error for SqlError {}
