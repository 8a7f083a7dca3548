//! How calls fail over REST: the AIP-193 envelope, from the same errors that gRPC callers read as status details.

use std::time::Duration;

use axum::{body::Body, response::IntoResponse};
use cloud_sandbox_model::error::{Error, ErrorKind, chain, reason};
use cloud_sandbox_rpc::{from_status, status::DOMAIN, upstream::BoxError};
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Reasons that only the edge gives.
pub mod edge_reason {
    pub const BODY_TIMEOUT: &str = "BODY_TIMEOUT";
    pub const BODY_TOO_LARGE: &str = "BODY_TOO_LARGE";
    pub const HTTP_METHOD: &str = "HTTP_METHOD";
    pub const MEDIA_TYPE: &str = "MEDIA_TYPE";
    pub const METHOD_NOT_FOUND: &str = "METHOD_NOT_FOUND";
    pub const RANGE: &str = "RANGE";
    pub const ROUTE_NOT_FOUND: &str = "ROUTE_NOT_FOUND";
    pub const UPSTREAM_UNREACHABLE: &str = "UPSTREAM_UNREACHABLE";
}

const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

/// A failed REST call.
#[derive(Debug)]
pub struct Rejection {
    error: Error,
    /// where HTTP has a status of its own for what gRPC has none for
    status: Option<StatusCode>,
    /// what the status wants said beside the body
    header: Option<(HeaderName, HeaderValue)>,
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self { error, status: None, header: None }
    }
}

impl Rejection {
    fn with_status(kind: ErrorKind, reason: &str, message: impl Into<String>, status: StatusCode) -> Self {
        Self { error: Error::new(kind, reason, message), status: Some(status), header: None }
    }

    pub fn no_route() -> Self {
        let message = "no route has this path; /api/v1/openapi.json lists them all";
        Error::new(ErrorKind::NotFound, edge_reason::ROUTE_NOT_FOUND, message).into()
    }

    pub fn method(allowed: &[Method]) -> Self {
        let allow = allow(allowed);
        let message = format!("this path takes {}", allow.to_str().unwrap_or("other methods"));
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let rejection = Self::with_status(ErrorKind::Unimplemented, edge_reason::HTTP_METHOD, message, status);
        Self { header: Some((ALLOW, allow)), ..rejection }
    }

    pub fn media_type(message: impl Into<String>) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::with_status(ErrorKind::InvalidArgument, edge_reason::MEDIA_TYPE, message, status)
    }

    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let rejection = Self::with_status(ErrorKind::InvalidArgument, edge_reason::BODY_TOO_LARGE, message, status);
        Self { error: rejection.error.with_metadata("limit_bytes", limit.to_string()), ..rejection }
    }

    /// The thing has changed since the caller looked.
    pub fn precondition(message: &str) -> Self {
        let error = Error::new(ErrorKind::Aborted, reason::FILE_CHANGED, message);
        Self::from(error).of_condition()
    }

    /// The same, where the caller's condition came in HTTP's own headers, for which HTTP has a status of its own.
    pub fn of_condition(self) -> Self {
        let unmet = self.error.kind() == ErrorKind::Aborted && self.error.reason() == reason::FILE_CHANGED;
        Self { status: if unmet { Some(StatusCode::PRECONDITION_FAILED) } else { self.status }, ..self }
    }

    /// A range that no byte of `size` is in.
    pub fn range(size: u64) -> Self {
        let message = format!("the range begins beyond the end; there are {size} bytes");
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let rejection = Self::with_status(ErrorKind::OutOfRange, edge_reason::RANGE, message, status);
        let range = HeaderValue::try_from(format!("bytes */{size}")).ok();
        Self { header: range.map(|range| (CONTENT_RANGE, range)), ..rejection }
    }

    pub fn body_timeout() -> Self {
        let message = "the body did not arrive in time";
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::with_status(ErrorKind::Cancelled, edge_reason::BODY_TIMEOUT, message, status)
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response<Body> {
        let kind = self.error.kind();
        let status = self.status.unwrap_or_else(|| http_status(kind));
        let mut response = Response::new(Body::from(envelope(&self.error, status).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if kind == ErrorKind::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && let Some(after) = self.error.retry_after()
        {
            headers.insert(RETRY_AFTER, whole_seconds(after).into());
        }
        response
    }
}

/// `{"error": {...}}` of an error, as a body and as the last element of a stream.
pub fn envelope(error: &Error, status: StatusCode) -> Value {
    let metadata: serde_json::Map<_, _> =
        error.metadata().iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    let mut details = vec![json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.reason(),
        "domain": DOMAIN,
        "metadata": metadata,
    })];
    if !error.violations().is_empty() {
        let violations = error.violations().iter().map(|v| json!({"field": v.field, "description": v.rule}));
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "field_violations": violations.collect::<Vec<_>>(),
        }));
    }
    if let Some(after) = error.retry_after() {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retry_delay": format!("{:.3}s", after.as_secs_f64()),
        }));
    }
    json!({"error": {
        "code": status.as_u16(),
        "status": error.kind().name(),
        "message": error.message(),
        "details": details,
    }})
}

pub fn http_status(kind: ErrorKind) -> StatusCode {
    StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// At least one second: zero would invite the caller right back.
pub fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// `GET, HEAD, OPTIONS` for an endpoint with GET.
pub fn allow(methods: &[Method]) -> HeaderValue {
    let mut names: Vec<_> = methods.iter().map(Method::as_str).collect();
    if methods.contains(&Method::GET) {
        names.push("HEAD");
    }
    names.push("OPTIONS");
    HeaderValue::try_from(names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static("OPTIONS"))
}

pub fn deadline_exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, reason::DEADLINE_EXCEEDED, "the call's deadline has passed")
}

/// The service could not be reached; `cause` is for the operator.
pub fn unreachable(cause: impl Into<BoxError>) -> Error {
    let message = "the service behind this call cannot be reached";
    Error::new(ErrorKind::Unavailable, edge_reason::UPSTREAM_UNREACHABLE, message)
        .with_retry_after(RETRY_UNREACHABLE)
        .with_cause(cause)
}

/// The error behind a status that a service, or the transport to it, answered with.
pub fn from_upstream(status: &Status) -> Error {
    let error = from_status(status);
    if !error.reason().is_empty() {
        return error;
    }
    // No service of ours said this: it is the transport's, or a library's.
    match status.code() {
        Code::Cancelled if status.message() == "Timeout expired" => deadline_exceeded(),
        Code::Unknown | Code::Unavailable | Code::Internal if std::error::Error::source(status).is_some() => {
            tracing::warn!(error = chain(status), "upstream could not be reached");
            unreachable(status.message())
        }
        Code::Unknown | Code::Internal => {
            tracing::error!(error = status.message(), "upstream failed without saying why");
            Error::new(ErrorKind::Internal, reason::INTERNAL, "the call failed by a fault of the server")
        }
        _ => {
            let name = error.kind().name();
            error.with_reason(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tonics_expired_timeout_is_a_deadline() {
        assert_eq!(from_upstream(&Status::cancelled("Timeout expired")).kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(from_upstream(&Status::cancelled("other")).kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn fault_of_a_library_does_not_leak() {
        let error = from_upstream(&Status::unknown("postgres://user:secret@db"));
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Internal, reason::INTERNAL));
        assert!(!error.message().contains("secret"));
    }

    #[test]
    fn every_error_has_a_reason() {
        assert_eq!(from_upstream(&Status::not_found("x")).reason(), "NOT_FOUND");
    }

    #[test]
    fn retry_after_is_at_least_a_second() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2500)), 3);
    }
}
