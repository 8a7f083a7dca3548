//! What a failed call to a node means to the caller of the control plane.

use std::{error::Error as StdError, future::Future, time::Duration};

use cloud_sandbox_model::{Error, ErrorKind, error::reason};
use cloud_sandbox_rpc::{CallContext, from_status, status::DOMAIN, upstream::BoxError};
use tonic::{Code, ConnectError, Status, TimeoutExpired};
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
    match Silence::of(status) {
        None => said(status),
        Some(Silence::Expired) => deadline_exceeded(),
        Some(Silence::Broken | Silence::Refused) => unreachable(chain(status)),
    }
}

/// Whether the node may have done what it was asked to, and only its answer got lost: the connection was there and
/// broke. A deadline that passed is none of this; it ends what it paid for.
#[must_use]
pub fn lost(status: &Status) -> bool {
    Silence::of(status) == Some(Silence::Broken)
}

/// Why a node said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// the call's deadline passed
    Expired,
    /// there was no connection, so that the node heard nothing either
    Refused,
    /// the connection broke, before or after the node heard
    Broken,
}

impl Silence {
    /// `None` when the node, or what serves there, did say something.
    fn of(status: &Status) -> Option<Self> {
        if status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN) {
            return None;
        }
        // the transport keeps the deadline too, and may be the first to notice
        if caused_by::<TimeoutExpired>(status) {
            return Some(Self::Expired);
        }
        if caused_by::<ConnectError>(status) {
            return Some(Self::Refused);
        }
        let broken = status.source().is_some() || matches!(status.code(), Code::Unknown | Code::Unavailable);
        broken.then_some(Self::Broken)
    }
}

fn said(status: &Status) -> Error {
    match status.code() {
        // the node refuses the service, not the caller, who could do nothing about it
        Code::Unauthenticated | Code::PermissionDenied => Error::internal("call a node", chain(status)),
        _ => from_status(status),
    }
}

/// Whether there is an `E` among the causes.
fn caused_by<E: StdError + 'static>(status: &Status) -> bool {
    let mut next = status.source();
    while let Some(cause) = next {
        if cause.is::<E>() {
            return true;
        }
        next = cause.source();
    }
    false
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
    Error::new(ErrorKind::DeadlineExceeded, reason::DEADLINE_EXCEEDED, "the call's deadline passed")
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
            assert!(lost(&status), "it may have been heard: {status:?}");
        }
    }

    #[test]
    fn nothing_is_lost_where_there_was_no_connection_or_the_node_answered() {
        let refused = Status::from_error(Box::new(ConnectError("connection refused".into())));
        assert_eq!(failure(&refused).reason(), reason::NODE_UNREACHABLE);
        let draining = cloud_sandbox_rpc::to_status(Error::new(ErrorKind::Unavailable, reason::DRAINING, "bye"));
        let expired = Status::from_error(Box::new(TimeoutExpired(())));
        for status in [refused, draining, expired, Status::not_found("no such thing")] {
            assert!(!lost(&status), "{status:?}");
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
