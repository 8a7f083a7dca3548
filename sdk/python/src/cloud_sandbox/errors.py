"""What can go wrong, as one tree under `CloudSandboxError`.

Errors of the server are told apart by its stable reasons, never by the words of a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ._results import CommandResult

__all__ = [
    "AlreadyExistsError",
    "AuthenticationError",
    "CallCancelledError",
    "CallTimeoutError",
    "CloudSandboxError",
    "ContextNotFoundError",
    "ExecutionError",
    "ExecutionKilledError",
    "ExecutionNotFoundError",
    "ExecutionTimeoutError",
    "FileChangedError",
    "FileMissingError",
    "FileThereError",
    "InvalidArgumentError",
    "LanguageUnavailableError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "QuotaError",
    "RateLimitError",
    "SandboxGoneError",
    "SandboxNotFoundError",
    "SandboxPausedError",
    "ServerError",
    "ServiceConnectionError",
    "SessionNotFoundError",
    "StateError",
    "TemplateFailedError",
    "TemplateNotFoundError",
    "TemplateNotReadyError",
    "UnsupportedError",
]


class CloudSandboxError(Exception):
    """The root of everything that this package raises for calls that failed."""

    message: str
    """What happened, in words."""
    reason: str
    """The server's stable word for it, `SANDBOX_NOT_FOUND` for example; empty when the server said none."""
    code: str
    """The gRPC status by name, `NOT_FOUND` for example; empty for what never reached the server."""
    metadata: dict[str, str]
    """Further facts for programs."""
    retry_after: Optional[float]
    """When to try again at the earliest, in seconds, where the server said so."""
    request_id: str
    """The call's id in the server's log; empty when there was no answer."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        metadata: Optional[Mapping[str, str]] = None,
        retry_after: Optional[float] = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]" if self.reason else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # without it an error with more than a message does not come out of a process pool
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(kind: type[CloudSandboxError], message: str, state: dict[str, Any]) -> CloudSandboxError:
    error = kind.__new__(kind, message)
    error.__dict__.update(state)
    error.args = (message,)
    return error


class ServiceConnectionError(CloudSandboxError, ConnectionError):
    """The server, or the node of the sandbox, cannot be reached, or the connection broke."""


class AuthenticationError(CloudSandboxError):
    """The token or API key is missing, wrong or expired, and could not be renewed."""


class PermissionDeniedError(CloudSandboxError):
    """The caller may not do this."""


class InvalidArgumentError(CloudSandboxError, ValueError):
    """Something given breaks a rule; `fields` says which."""

    fields: dict[str, str]
    """The rule that each field broke, by the field's name in the contract: `{"limits.pids": "must be …"}`."""

    def __init__(self, message: str, *, fields: Optional[Mapping[str, str]] = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.fields = dict(fields or {})

    @classmethod
    def of(cls, field: str, rule: str) -> InvalidArgumentError:
        """The error of one field that broke one rule, found before the server was asked."""
        return cls(f"{field} {rule}", fields={field: rule})


class NotFoundError(CloudSandboxError):
    """What was named does not exist, or is somebody else's."""


class SandboxNotFoundError(NotFoundError):
    """There is no such sandbox."""


class SandboxGoneError(SandboxNotFoundError):
    """The sandbox has ended: its lease was over, it was released, or its node is gone."""


class SessionNotFoundError(NotFoundError):
    """There is no such session."""


class ExecutionNotFoundError(NotFoundError):
    """There is no such execution (any more)."""


class ContextNotFoundError(NotFoundError):
    """There is no such code context."""


class FileMissingError(NotFoundError, FileNotFoundError):
    """There is no such file in the sandbox. It is a `FileNotFoundError` as well."""


class TemplateNotFoundError(NotFoundError):
    """There is no such template."""


class AlreadyExistsError(CloudSandboxError):
    """What was to be made is there already, or a request id was used for something else before."""


class FileThereError(AlreadyExistsError, FileExistsError):
    """There is a file already. It is a `FileExistsError` as well."""


class StateError(CloudSandboxError):
    """What was named is in no state for this: `reason` says what is in the way."""


class SandboxPausedError(StateError):
    """The sandbox is paused; resume its session first."""


class LanguageUnavailableError(StateError):
    """The template lacks the language or program; the message says which."""


class TemplateNotReadyError(StateError):
    """The template is still being prepared: `Client.templates.wait()` waits for it."""


class TemplateFailedError(StateError):
    """No node could prepare the template; the message says why."""


class FileChangedError(CloudSandboxError):
    """Somebody else changed the file meanwhile."""


class RateLimitError(CloudSandboxError):
    """Too many calls: `retry_after` says when to come back, in seconds."""


class QuotaError(CloudSandboxError):
    """A limit is reached: of sandboxes, executions, contexts, sizes; `reason` says of what."""


class CallTimeoutError(CloudSandboxError, TimeoutError):
    """No answer within the call's deadline. What was begun in the sandbox may go on."""


class CallCancelledError(CloudSandboxError):
    """The call was cancelled before its answer came."""


class OutcomeUnknownError(CloudSandboxError):
    """It was begun, and nobody knows how it ended: its sandbox or node ended under it. It is never tried again."""


class UnsupportedError(CloudSandboxError):
    """The server, or this runtime of it, does not offer this."""


class ServerError(CloudSandboxError):
    """A fault of the server; `request_id` finds it in its log."""


class ExecutionError(CloudSandboxError):
    """What ran did not end well, and the caller had asked for that to be an error (`check=True`)."""

    result: CommandResult
    """How it ended, with what it had printed."""

    def __init__(self, message: str, result: CommandResult) -> None:
        super().__init__(message, reason="EXECUTION_FAILED")
        self.result = result


class ExecutionTimeoutError(ExecutionError, TimeoutError):
    """It was killed at its timeout."""


class ExecutionKilledError(ExecutionError):
    """A signal ended it, or the kernel for its memory limit."""
