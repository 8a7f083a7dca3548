//! What a failed call to a node means to the caller of the control plane.

use std::{error::Error as StdError, future::Future, time::Duration};

use cloud_sandbox_model::{Error, ErrorKind, error::reason};
use cloud_sandbox_rpc::{CallContext, from_status, status::DOMAIN, upstream::BoxError};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The error of a node that could not be reached, or whose answer got lost.
#[must_use]
pub fn unreachable(cause: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Unavailable, reason::NODE_UNREACHABLE, "the sandbox's node cannot be reached")
        .with_retry_after(RETRY_AFTER)
        .with_cause(cause)
}

/// The error that a node's status stands for: what the node said, or that it said nothing.
#[must_use]
pub fn failure(status: &Status) -> Error {
    if status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN) {
        return said(status);
    }
    // the transport keeps the deadline too, and may be the first to notice
    if status.source().is_some_and(expired) {
        return deadline_exceeded();
    }
    let broken = status.source().is_some() || matches!(status.code(), Code::Unknown | Code::Unavailable);
    if broken { unreachable(chain(status)) } else { said(status) }
}

fn said(status: &Status) -> Error {
    match status.code() {
        // the node refuses the service, not the caller, who could do nothing about it
        Code::Unauthenticated | Code::PermissionDenied => Error::internal("call a node", chain(status)),
        _ => from_status(status),
    }
}

fn expired(cause: &(dyn StdError + 'static)) -> bool {
    cause.is::<TimeoutExpired>() || cause.source().is_some_and(expired)
}

/// The part of a node's answer that the contract promises.
pub fn missing<T>(part: Option<T>, what: &'static str) -> Result<T, Error> {
    part.ok_or_else(|| Error::internal("read a node's answer", format!("it has no {what}")))
}

/// The status and everything below it in words; a status is not clonable, and its bytes say nothing to an operator.
fn chain(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut next = status.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Ends `call` when the caller's deadline passes: what it paid for is dropped with it.
pub async fn within<T>(
    context: &CallContext,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Result<T, Status>, Error> {
    let Some(left) = context.remaining() else { return Ok(call.await) };
    tokio::time::timeout(left, call).await.map_err(|_| deadline_exceeded())
}

/// The error of a call whose deadline passed.
#[must_use]
pub fn deadline_exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call's deadline passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_says_reaches_the_caller() {
        let said = Error::new(ErrorKind::FailedPrecondition, reason::SANDBOX_PAUSED, "the sandbox is paused");
        let error = failure(&cloud_sandbox_rpc::to_status(said));
        assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, reason::SANDBOX_PAUSED));
        let draining = Error::new(ErrorKind::Unavailable, reason::DRAINING, "the node is shutting down");
        assert_eq!(failure(&cloud_sandbox_rpc::to_status(draining)).reason(), reason::DRAINING);
    }

    #[test]
    fn silence_and_broken_connections_are_an_unreachable_node() {
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        for status in [broken, Status::unavailable("no healthy upstream"), Status::unknown("?")] {
            let error = failure(&status);
            assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn deadline_that_the_transport_notices_is_one() {
        let expired = Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(failure(&expired).kind(), ErrorKind::DeadlineExceeded);
    }

    #[test]
    fn node_that_refuses_the_service_is_a_fault_of_ours() {
        for kind in [ErrorKind::Unauthenticated, ErrorKind::PermissionDenied] {
            let status = cloud_sandbox_rpc::to_status(Error::new(kind, reason::TOKEN_INVALID, "bad token"));
            assert_eq!(failure(&status).kind(), ErrorKind::Internal);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_ends_at_the_callers_deadline() {
        let mut request = tonic::Request::new(());
        request.set_timeout(Duration::from_millis(50));
        let context = CallContext::of(&request);
        let ended = within::<()>(&context, std::future::pending()).await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);
    }
}
