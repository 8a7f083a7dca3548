"""From gRPC's status to an error of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

import grpc
from google.rpc import error_details_pb2, status_pb2

from . import errors
from .errors import CloudSandboxError

BY_REASON: dict[str, type[CloudSandboxError]] = {
    "CONTEXT_NOT_FOUND": errors.ContextNotFoundError,
    "EXECUTION_NOT_FOUND": errors.ExecutionNotFoundError,
    "FILE_CHANGED": errors.FileChangedError,
    "FILE_EXISTS": errors.FileThereError,
    "FILE_NOT_FOUND": errors.FileMissingError,
    "LANGUAGE_UNAVAILABLE": errors.LanguageUnavailableError,
    "LEASE_ENDED": errors.SandboxGoneError,
    "OUTCOME_UNKNOWN": errors.OutcomeUnknownError,
    "PROGRAM_NOT_FOUND": errors.LanguageUnavailableError,
    "RATE_LIMITED": errors.RateLimitError,
    "SANDBOX_GONE": errors.SandboxGoneError,
    "SANDBOX_NOT_FOUND": errors.SandboxNotFoundError,
    "SANDBOX_PAUSED": errors.SandboxPausedError,
    "SESSION_NOT_FOUND": errors.SessionNotFoundError,
    "TEMPLATE_FAILED": errors.TemplateFailedError,
    "TEMPLATE_NOT_FOUND": errors.TemplateNotFoundError,
    "TEMPLATE_NOT_READY": errors.TemplateNotReadyError,
}
BY_CODE: dict[str, type[CloudSandboxError]] = {
    "ABORTED": errors.StateError,
    "ALREADY_EXISTS": errors.AlreadyExistsError,
    "CANCELLED": errors.CallCancelledError,
    "DEADLINE_EXCEEDED": errors.CallTimeoutError,
    "FAILED_PRECONDITION": errors.StateError,
    "INVALID_ARGUMENT": errors.InvalidArgumentError,
    "NOT_FOUND": errors.NotFoundError,
    "OUT_OF_RANGE": errors.InvalidArgumentError,
    "PERMISSION_DENIED": errors.PermissionDeniedError,
    "RESOURCE_EXHAUSTED": errors.QuotaError,
    "UNAUTHENTICATED": errors.AuthenticationError,
    "UNAVAILABLE": errors.ServiceConnectionError,
    "UNIMPLEMENTED": errors.UnsupportedError,
}
_KINDS: dict[str, Any] = {
    "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
    "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
    "google.rpc.BadRequest": error_details_pb2.BadRequest,
}
# what gRPC for asyncio says when it could not send a message
BROKEN = "Internal error from Core"
DETAILS = "grpc-status-details-bin"


def from_rpc(failure: grpc.RpcError, base_url: str) -> CloudSandboxError:
    """The error that a failed call stands for. `base_url` is named when the server could not be reached."""
    call: Any = failure  # what grpc raises is a Call too, which its types do not say
    code = call.code().name
    message = call.details() or code
    if (code, message) == ("INTERNAL", BROKEN):
        code, message = "UNAVAILABLE", "the connection broke"
    trailers = list(call.trailing_metadata() or ())
    facts: dict[str, Any] = {"code": code, "request_id": _value(trailers, "x-request-id") or ""}
    fields: dict[str, str] = {}
    reason = ""
    for detail in _details(_value(trailers, DETAILS)):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason, facts["metadata"] = detail.reason, dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            facts["retry_after"] = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        elif isinstance(detail, error_details_pb2.BadRequest):
            fields = {each.field: each.description for each in detail.field_violations}
    kind = BY_REASON.get(reason) or BY_CODE.get(code, errors.ServerError)
    if code == "UNAVAILABLE" and not reason:
        message = f"cannot reach {base_url}: {message}{_hint(message, base_url)}"
    elif code == "UNIMPLEMENTED" and not reason:
        message = f"{base_url} does not serve this call: is it a Cloud Sandbox server, of this release? ({message})"
    if issubclass(kind, errors.InvalidArgumentError):
        facts["fields"] = fields
    return kind(message, reason=reason, **facts)


def _value(trailers: Iterable[tuple[str, Any]], key: str) -> Optional[Any]:
    return next((value for name, value in trailers if name == key), None)


def _details(packed: Optional[bytes]) -> Iterable[Any]:
    if not packed:
        return
    for detail in status_pb2.Status.FromString(packed).details:
        kind = _KINDS.get(detail.TypeName())
        if kind is not None:
            yield kind.FromString(detail.value)


def _hint(message: str, base_url: str) -> str:
    words = message.lower()
    if base_url.startswith("https:") and "certificate_verify_failed" in words:
        return " (is its certificate's authority known? give ca_file=)"
    if base_url.startswith("https:") and ("ssl" in words or "handshake" in words):
        return " (does it speak TLS? try http:)"
    if base_url.startswith("http:") and "connection refused" not in words:
        return " (if it speaks TLS, use https:)"
    return ""
