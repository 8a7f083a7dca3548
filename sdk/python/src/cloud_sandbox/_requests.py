"""What to run, as the contract has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional, Union

from ._models import CodeContext
from ._wire import Place, SandboxPath, enum, milliseconds, new_request_id
from .errors import InvalidArgumentError
from .v1 import exec_pb2

# languages that have code contexts
INTERPRETED = ("", "python", "javascript", "node", "typescript")
DEFAULT_CONTEXT = "default"
STDIN_MAX = 1024 * 1024
RUN_TIMEOUT = 60.0
LONGEST = 86_400.0
# beyond the timeout of what runs, for its start and the way back, in seconds
MARGIN = 30.0
OUTPUT_DEFAULT = 1024 * 1024
OUTPUT_MAX = 8 * 1024 * 1024

Stdin = Union[str, bytes, None]


def code_request(
    place: Place, code: str, *, language: Optional[str], context: Union[CodeContext, str, None]
) -> exec_pb2.ExecuteRequest:
    """Code in a language, in a context where one is meant and the language has them."""
    language = (language or "").lower()
    context_id = context.context_id if isinstance(context, CodeContext) else context or ""
    if context_id == DEFAULT_CONTEXT and language not in INTERPRETED:
        context_id = ""
    return exec_pb2.ExecuteRequest(
        sandbox_id=place.sandbox_id, session_id=place.session_id, code=code, language=language, context_id=context_id
    )


def command_request(place: Place, command: Union[str, Sequence[str]]) -> exec_pb2.ExecuteRequest:
    """A line for the shell, or the words of a program."""
    request = exec_pb2.ExecuteRequest(sandbox_id=place.sandbox_id, session_id=place.session_id)
    if isinstance(command, str):
        request.command = command
    else:
        words = list(command)
        if not words:
            raise InvalidArgumentError.of("command", "must have a program's name first")
        request.argv.extend(words)
    return request


def complete(
    request: exec_pb2.ExecuteRequest,
    *,
    cwd: Optional[SandboxPath],
    envs: Optional[Mapping[str, str]],
    user: Optional[str],
    tag: Optional[str],
    timeout: Optional[float],
    request_id: Optional[str],
) -> exec_pb2.ExecuteRequest:
    """Adds how to run it. Every run has a request id, so that it can be asked for again and never happens twice."""
    if cwd is not None:
        request.cwd = cwd.decode() if isinstance(cwd, bytes) else str(cwd)
    request.env.update(envs or {})
    request.user = user or ""
    request.tag = tag or ""
    request.timeout_ms = milliseconds("timeout", timeout)
    request.request_id = request_id or new_request_id()
    return request


def bound(request: exec_pb2.ExecuteRequest, max_output_bytes: Optional[int], output_strategy: Optional[str]) -> None:
    """Says how much of the output the answer carries."""
    if max_output_bytes is not None:
        if not 0 < max_output_bytes <= OUTPUT_MAX:
            raise InvalidArgumentError.of("max_output_bytes", f"must be from 1 to {OUTPUT_MAX}")
        request.max_output_bytes = max_output_bytes
    request.output_strategy = enum("output_strategy", exec_pb2.OutputStrategy, output_strategy)


def seconds_of(request: exec_pb2.ExecuteRequest) -> float:
    """How long a call that waits for it may take."""
    return request.timeout_ms / 1000 + MARGIN


def split_stdin(request: exec_pb2.ExecuteRequest, stdin: Stdin) -> bytes:
    """Puts input into the request; what does not fit there is returned, to be written once it runs."""
    if stdin is None:
        return b""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    if len(data) <= STDIN_MAX:
        try:
            request.stdin = data.decode()
        except UnicodeDecodeError:
            return data
        return b""
    return data
