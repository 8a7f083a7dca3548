//! The one table of error kinds: how each is called in gRPC and HTTP.
//!
//! What the caller reads (`message`, `violations`, `reason`) is apart from what the operator must know (`cause`): an
//! internal error never leaks its cause.

use std::{error::Error as StdError, fmt, time::Duration};

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    Cancelled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Cancelled,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// gRPC code, HTTP status, name. Source: google/rpc/code.proto.
    const fn row(self) -> (i32, u16, &'static str) {
        match self {
            Self::Cancelled => (1, 499, "CANCELLED"),
            Self::InvalidArgument => (3, 400, "INVALID_ARGUMENT"),
            Self::DeadlineExceeded => (4, 504, "DEADLINE_EXCEEDED"),
            Self::NotFound => (5, 404, "NOT_FOUND"),
            Self::AlreadyExists => (6, 409, "ALREADY_EXISTS"),
            Self::PermissionDenied => (7, 403, "PERMISSION_DENIED"),
            Self::ResourceExhausted => (8, 429, "RESOURCE_EXHAUSTED"),
            Self::FailedPrecondition => (9, 400, "FAILED_PRECONDITION"),
            Self::Aborted => (10, 409, "ABORTED"),
            Self::OutOfRange => (11, 400, "OUT_OF_RANGE"),
            Self::Unimplemented => (12, 501, "UNIMPLEMENTED"),
            Self::Internal => (13, 500, "INTERNAL"),
            Self::Unavailable => (14, 503, "UNAVAILABLE"),
            Self::DataLoss => (15, 500, "DATA_LOSS"),
            Self::Unauthenticated => (16, 401, "UNAUTHENTICATED"),
        }
    }

    /// The gRPC status code's number.
    #[must_use]
    pub const fn grpc_code(self) -> i32 {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().1
    }

    /// The upper-case name, `NOT_FOUND` for example.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// The kind of a gRPC code. Codes that no service of ours sends (`OK`, `UNKNOWN`) count as internal.
    #[must_use]
    pub fn from_grpc_code(code: i32) -> Self {
        Self::ALL.into_iter().find(|kind| kind.grpc_code() == code).unwrap_or(Self::Internal)
    }

    /// The name of any gRPC code, success included, as metrics have it.
    #[must_use]
    pub fn grpc_code_name(code: i32) -> &'static str {
        if code == 0 { "OK" } else { Self::from_grpc_code(code).name() }
    }
}

/// Stable words for programs, in `google.rpc.ErrorInfo.reason`. Published: a word never changes its meaning.
pub mod reason {
    pub const CANCELLED: &str = "CANCELLED";
    pub const CAPACITY: &str = "CAPACITY";
    pub const CHECKPOINT_DAMAGED: &str = "CHECKPOINT_DAMAGED";
    pub const CHECKPOINT_NOT_FOUND: &str = "CHECKPOINT_NOT_FOUND";
    pub const CONTEXT_LIMIT: &str = "CONTEXT_LIMIT";
    pub const CONTEXT_LOST: &str = "CONTEXT_LOST";
    pub const CONTEXT_NOT_FOUND: &str = "CONTEXT_NOT_FOUND";
    pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    pub const DRAINING: &str = "DRAINING";
    pub const EXECUTION_ENDED: &str = "EXECUTION_ENDED";
    pub const EXECUTION_LIMIT: &str = "EXECUTION_LIMIT";
    pub const EXECUTION_NOT_FOUND: &str = "EXECUTION_NOT_FOUND";
    pub const FILE_CHANGED: &str = "FILE_CHANGED";
    pub const FILE_EXISTS: &str = "FILE_EXISTS";
    pub const FILE_NOT_FOUND: &str = "FILE_NOT_FOUND";
    pub const FILE_REFUSED: &str = "FILE_REFUSED";
    pub const FILE_TOO_LARGE: &str = "FILE_TOO_LARGE";
    pub const INTERNAL: &str = "INTERNAL";
    pub const INVALID_ID: &str = "INVALID_ID";
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    pub const LANGUAGE_UNAVAILABLE: &str = "LANGUAGE_UNAVAILABLE";
    pub const LEASE_ENDED: &str = "LEASE_ENDED";
    pub const NODE_UNREACHABLE: &str = "NODE_UNREACHABLE";
    pub const NO_TERMINAL: &str = "NO_TERMINAL";
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    pub const PROGRAM_NOT_FOUND: &str = "PROGRAM_NOT_FOUND";
    pub const RATE_LIMITED: &str = "RATE_LIMITED";
    pub const REQUEST_ID_REUSED: &str = "REQUEST_ID_REUSED";
    pub const RESULT_EXPIRED: &str = "RESULT_EXPIRED";
    pub const ROLE_DENIED: &str = "ROLE_DENIED";
    pub const RUNTIME_UNAVAILABLE: &str = "RUNTIME_UNAVAILABLE";
    pub const SANDBOX_BUSY: &str = "SANDBOX_BUSY";
    pub const SANDBOX_GONE: &str = "SANDBOX_GONE";
    pub const SANDBOX_MISSING: &str = "SANDBOX_MISSING";
    pub const SANDBOX_NOT_FOUND: &str = "SANDBOX_NOT_FOUND";
    pub const SANDBOX_PAUSED: &str = "SANDBOX_PAUSED";
    pub const SANDBOX_USED: &str = "SANDBOX_USED";
    pub const SESSION_NOT_FOUND: &str = "SESSION_NOT_FOUND";
    pub const SESSION_STATE: &str = "SESSION_STATE";
    pub const STDIN_CLOSED: &str = "STDIN_CLOSED";
    pub const STDIN_FULL: &str = "STDIN_FULL";
    pub const STORE_FULL: &str = "STORE_FULL";
    pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
    pub const TEMPLATE_EXISTS: &str = "TEMPLATE_EXISTS";
    pub const TEMPLATE_FAILED: &str = "TEMPLATE_FAILED";
    pub const TEMPLATE_LIMIT: &str = "TEMPLATE_LIMIT";
    pub const TEMPLATE_NOT_FOUND: &str = "TEMPLATE_NOT_FOUND";
    pub const TEMPLATE_NOT_READY: &str = "TEMPLATE_NOT_READY";
    pub const TOKEN_EXPIRED: &str = "TOKEN_EXPIRED";
    pub const TOKEN_INVALID: &str = "TOKEN_INVALID";
    pub const TOKEN_MISSING: &str = "TOKEN_MISSING";
    pub const UNSUPPORTED_BY_HOST: &str = "UNSUPPORTED_BY_HOST";
}

/// The fact of an error that tells whether anything of the call had begun.
const BEGUN: &str = "begun";

/// One field that broke one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, `limits.memory_bytes` for example.
    pub field: String,
    /// The rule, in words that follow the field's name: `must be at least 1`.
    pub rule: String,
}

/// A failed call.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    reason: String,
    message: String,
    violations: Vec<Violation>,
    metadata: Vec<(String, String)>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that the caller may read.
    #[must_use]
    pub fn new(kind: ErrorKind, reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            violations: Vec::new(),
            metadata: Vec::new(),
            retry_after: None,
            cause: None,
        }))
    }

    /// One field that broke one rule.
    #[must_use]
    pub fn invalid(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::invalid_all(vec![Violation { field: field.into(), rule: rule.into() }])
    }

    /// Fields that broke rules.
    #[must_use]
    pub fn invalid_all(violations: Vec<Violation>) -> Self {
        let words: Vec<_> = violations.iter().map(|v| format!("{} {}", v.field, v.rule)).collect();
        let mut error = Self::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, words.join("; "));
        error.0.violations = violations;
        error
    }

    /// A fault of ours: the caller reads only that `operation` failed.
    #[must_use]
    pub fn internal(operation: &str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Internal, reason::INTERNAL, format!("failed to {operation}")).with_cause(cause)
    }

    /// The sandbox does not exist, or is somebody else's.
    #[must_use]
    pub fn sandbox_not_found(id: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND, format!("sandbox {id} not found"))
    }

    #[must_use]
    pub fn with_reason(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.0.reason);
        self
    }

    /// A fact for programs, in `ErrorInfo.metadata`.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.metadata.push((key.into(), value.into()));
        self
    }

    /// The call was refused before anything of it began: it may be made again, in another place for example.
    #[must_use]
    pub fn before_it_began(self) -> Self {
        self.with_metadata(BEGUN, "false")
    }

    /// Whether this is known of it.
    #[must_use]
    pub fn is_before_it_began(&self) -> bool {
        self.metadata().iter().any(|(key, value)| key == BEGUN && value == "false")
    }

    #[must_use]
    pub fn with_violations(mut self, violations: Vec<Violation>) -> Self {
        self.0.violations = violations;
        self
    }

    /// When to try again at the earliest.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// What the operator must know and the caller must not.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    #[must_use]
    pub fn metadata(&self) -> &[(String, String)] {
        &self.0.metadata
    }

    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// The error and everything below it, for a log line: `failed to a: failed to b: no such file`.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// How much is shown of what somebody else says, in characters.
const SAID_MOST: usize = 500;

/// What somebody else says, fit to be shown: not for ever, of visible characters, and without the queries of addresses, which
/// may hold a signature that lets in whoever has it.
pub fn said(text: &str) -> String {
    let (mut shown, mut length, mut rest) = (String::new(), 0, text);
    while let Some(next) = rest.chars().next() {
        if length == SAID_MOST {
            shown.push('…');
            break;
        }
        if next == '?' && is_in_address(&shown) {
            let end = rest.find(|c: char| c.is_whitespace() || "\"'`<>()[]{}".contains(c));
            rest = end.map_or("", |end| &rest[end..]);
            continue;
        }
        shown.push(if is_shown(next) { next } else { ' ' });
        length += 1;
        rest = &rest[next.len_utf8()..];
    }
    shown
}

fn is_in_address(text: &str) -> bool {
    text.rsplit(char::is_whitespace).next().is_some_and(|word| word.contains("://"))
}

/// Neither a control character nor one that turns around the direction of what follows (Unicode, UAX #9).
fn is_shown(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_code_and_a_name_of_its_own() {
        let codes: HashSet<_> = ErrorKind::ALL.iter().map(|kind| kind.grpc_code()).collect();
        let names: HashSet<_> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!((codes.len(), names.len()), (ErrorKind::ALL.len(), ErrorKind::ALL.len()));
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_grpc_code(kind.grpc_code()), kind);
        }
    }

    #[test]
    fn cause_of_an_internal_error_is_for_the_operator_only() {
        let error = Error::internal("mount the overlay", std::io::Error::other("secret path"));
        assert_eq!(error.to_string(), "failed to mount the overlay");
        assert_eq!(chain(&error), "failed to mount the overlay: secret path");
    }

    #[test]
    fn violations_are_all_in_the_message() {
        let error = Error::invalid_all(vec![
            Violation { field: "a".into(), rule: "must be set".into() },
            Violation { field: "b".into(), rule: "must be at least 1".into() },
        ]);
        assert_eq!(error.to_string(), "a must be set; b must be at least 1");
    }

    #[test]
    fn what_others_say_is_short_and_plain_and_gives_nothing_away() {
        assert_eq!(said("\u{1b}[2Jgone\r\nthen \u{202e}back"), " [2Jgone  then  back");
        assert_eq!(said("for url (https://cdn.example/a?sig=x&b=y): no"), "for url (https://cdn.example/a): no");
        assert_eq!(said("https://a/b?c, and is it? https://d?e"), "https://a/b and is it? https://d");
        assert_eq!(said("why?"), "why?");
        let long = said(&"ä".repeat(10_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SAID_MOST + 1, true));
    }
}
