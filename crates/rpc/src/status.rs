//! Errors on the wire: `model::Error` to and from gRPC status with `google.rpc` details.

use std::collections::HashMap;

use cloud_sandbox_model::error::{Error, ErrorKind, Violation, chain};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// `google.rpc.ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "cloud-sandbox";

/// The status of an error. The cause of a fault of ours is logged here and stays here.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "made for map_err(to_status)")]
pub fn to_status(error: Error) -> Status {
    if error.kind() == ErrorKind::Internal {
        tracing::error!(error = chain(&error), "call failed by a fault of the server");
    } else if std::error::Error::source(&error).is_some() {
        tracing::warn!(error = chain(&error), "call failed");
    }
    let mut details = ErrorDetails::new();
    let metadata: HashMap<_, _> = error.metadata().iter().cloned().collect();
    details.set_error_info(error.reason(), DOMAIN, metadata);
    if !error.violations().is_empty() {
        let violations = error.violations().iter().map(|v| FieldViolation::new(&v.field, &v.rule));
        details.set_bad_request(violations.collect::<Vec<_>>());
    }
    if error.retry_after().is_some() {
        details.set_retry_info(error.retry_after());
    }
    Status::with_error_details(Code::from_i32(error.kind().grpc_code()), error.message(), details)
}

/// The error that a status of ours stands for, so that a service can pass on what the one below it said.
#[must_use]
pub fn from_status(status: &Status) -> Error {
    let details = status.get_error_details();
    let mut error = Error::new(ErrorKind::from_grpc_code(status.code() as i32), "", status.message());
    if let Some(info) = details.error_info() {
        error = error.with_reason(&info.reason);
        for (key, value) in &info.metadata {
            error = error.with_metadata(key, value);
        }
    }
    if let Some(request) = details.bad_request() {
        let violations = request.field_violations.iter();
        error = error.with_violations(
            violations.map(|v| Violation { field: v.field.clone(), rule: v.description.clone() }).collect(),
        );
    }
    if let Some(after) = details.retry_info().and_then(|info| info.retry_delay) {
        error = error.with_retry_after(after);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn error_survives_the_wire() {
        let sent = Error::invalid("limits.pids", "must be from 4 to 9")
            .with_retry_after(Duration::from_secs(3))
            .with_metadata("language", "cobol");
        let read = from_status(&to_status(sent));
        assert_eq!(read.kind(), ErrorKind::InvalidArgument);
        assert_eq!(read.reason(), "INVALID_REQUEST");
        assert_eq!(read.violations()[0].field, "limits.pids");
        assert_eq!(read.metadata(), [("language".to_owned(), "cobol".to_owned())]);
        assert_eq!(read.retry_after(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn cause_stays_with_the_operator() {
        let status = to_status(Error::internal("read the store", std::io::Error::other("password=hunter2")));
        assert_eq!(status.message(), "failed to read the store");
        assert!(!String::from_utf8_lossy(status.details()).contains("hunter2"));
    }
}
