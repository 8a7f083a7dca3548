# Made from cloud_sandbox/_async/_commands.py by `make sdk`; do not edit.
"""Commands and terminals in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import List, Literal, Optional, Union, overload

from .._models import CommandInfo
from .._requests import (
    LONGEST,
    OUTPUT_DEFAULT,
    RUN_TIMEOUT,
    Stdin,
    bound,
    command_request,
    complete,
    seconds_of,
    split_stdin,
)
from .._results import CodeError, CommandResult, Execution, Output, Result, read_execution
from .._wire import Place, SandboxPath
from ..errors import ExecutionNotFoundError, InvalidArgumentError
from ..v1 import exec_pb2
from ._handle import CommandHandle, PtyHandle, executions, stop, stop_request
from ._io import Callback, Interrupt, finish
from ._transport import Transport


def start(
    transport: Transport, place: Place, request: exec_pb2.ExecuteRequest, rest: bytes = b"", keep: int = 0
) -> CommandHandle:
    """Starts it in the background, with `rest` for input that the request could not carry."""
    keep_open = request.stdin_open
    request.stdin_open = keep_open or bool(rest)
    answer = transport.unary(
        exec_pb2.StartExecutionRequest(request=request), exec_pb2.StartExecutionResponse, repeatable=True
    )
    kind = PtyHandle if request.HasField("terminal") else CommandHandle
    execution = answer.execution
    given = len(request.stdin.encode())
    handle = kind(
        transport,
        place,
        execution.execution_id,
        pid=execution.pid,
        stdin_bytes=given,
        keep_bytes=keep or OUTPUT_DEFAULT,
    )
    if rest:
        handle.send_stdin(rest)
        if not keep_open:
            handle.close_stdin()
    return handle


def run(
    transport: Transport,
    place: Place,
    request: exec_pb2.ExecuteRequest,
    *,
    rest: bytes = b"",
    on_stdout: Optional[Callback[Output]] = None,
    on_stderr: Optional[Callback[Output]] = None,
    on_result: Optional[Callback[Result]] = None,
    on_error: Optional[Callback[CodeError]] = None,
) -> Execution:
    """Runs it to its end. Whatever ends the waiting, an interrupt or a callback's exception, ends it as well."""
    callbacks = (on_stdout, on_stderr, on_result, on_error)
    if not rest and all(callback is None for callback in callbacks):
        try:
            answer = transport.unary(request, exec_pb2.ExecuteResponse, timeout=seconds_of(request), repeatable=True)
        except Interrupt:
            finish(stop_request(transport, place, request))
            raise
        return read_execution(answer)
    for field in ("changes", "output_strategy"):
        if getattr(request, field):
            raise InvalidArgumentError.of(field, "cannot be had with callbacks, nor with input that is not short text")
    timeout, keep = seconds_of(request), request.max_output_bytes
    request.max_output_bytes = 0  # the stream has it all, the result as much as this
    try:
        handle = start(transport, place, request, rest, keep)
    except BaseException:
        finish(stop_request(transport, place, request))
        raise
    try:
        return handle.wait(
            on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result, on_error=on_error, timeout=timeout
        )
    except BaseException:
        finish(stop(handle, in_context=bool(request.context_id)))
        raise


class Commands:
    """Runs commands, and finds those that run: `sandbox.commands`."""

    def __init__(self, transport: Transport, place: Place) -> None:
        self._transport = transport
        self._place = place

    @overload
    def run(
        self,
        command: Union[str, Sequence[str]],
        *,
        background: Literal[False] = False,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Stdin = None,
        user: Optional[str] = None,
        timeout: Optional[float] = None,
        on_stdout: Optional[Callback[Output]] = None,
        on_stderr: Optional[Callback[Output]] = None,
        max_output_bytes: Optional[int] = None,
        output_strategy: Optional[str] = None,
        changes: bool = False,
        check: bool = False,
        tag: Optional[str] = None,
        request_id: Optional[str] = None,
    ) -> CommandResult: ...

    @overload
    def run(
        self,
        command: Union[str, Sequence[str]],
        *,
        background: Literal[True],
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Stdin = None,
        user: Optional[str] = None,
        timeout: Optional[float] = None,
        tag: Optional[str] = None,
        request_id: Optional[str] = None,
    ) -> CommandHandle: ...

    def run(
        self,
        command: Union[str, Sequence[str]],
        *,
        background: bool = False,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Stdin = None,
        user: Optional[str] = None,
        timeout: Optional[float] = None,
        on_stdout: Optional[Callback[Output]] = None,
        on_stderr: Optional[Callback[Output]] = None,
        max_output_bytes: Optional[int] = None,
        output_strategy: Optional[str] = None,
        changes: bool = False,
        check: bool = False,
        tag: Optional[str] = None,
        request_id: Optional[str] = None,
    ) -> Union[CommandResult, CommandHandle]:
        """Runs a command to its end, or starts it in the background.

        An interrupt (Ctrl-C, a cancelled task) and an exception in a callback kill what runs in the foreground.

        Args:
            command: a line for the sandbox's shell, or the words of a program, no shell between.
            background: return at once, with a handle. It runs on when the handle is dropped.
            cwd: the folder to run in. Default: `/workspace`.
            envs: environment on top of the sandbox's.
            stdin: what it reads from standard input. Default: nothing; in the background its input then stays open for
                `handle.send_stdin()`.
            user: the user to run as. Default: the sandbox's own.
            timeout: seconds after which it is killed with everything in its session, up to 86400. Default: 60, in the
                background 86400.
            on_stdout: is called with each piece of standard output as it comes.
            on_stderr: is called with each piece of standard error as it comes.
            max_output_bytes: how much of each stream the result has, up to 8 MiB. Default: 1 MiB.
            output_strategy: which part that is: `head`, `tail`, `head_tail` or `errors`. Default: `head`.
            changes: report what became of the files under `/workspace`.
            check: raise unless it exits with 0.
            tag: a label to find it by.
            request_id: an id of your own, by which a repeated call finds the first run instead of running again.

        Returns:
            How it ended, with `timed_out` where it was killed at its timeout; a handle in the background.

        Raises:
            ExecutionError: `check` was asked for, and it did not end well.
            LanguageUnavailableError: there is no such program.
            SandboxGoneError: the sandbox has ended.
            OutcomeUnknownError: the sandbox or its node ended under it.
        """
        request = command_request(self._place, command)
        default = LONGEST if background else RUN_TIMEOUT
        timeout = default if timeout is None else timeout
        complete(request, cwd=cwd, envs=envs, user=user, tag=tag, timeout=timeout, request_id=request_id)
        bound(request, max_output_bytes, output_strategy)
        request.changes = changes
        rest = split_stdin(request, stdin)
        if background:
            given = {"on_stdout": on_stdout, "on_stderr": on_stderr, "check": check or None}
            for name, value in given.items():
                if value is not None:
                    raise InvalidArgumentError.of(name, "is for the foreground: give it to handle.wait()")
            request.stdin_open = stdin is None
            return start(self._transport, self._place, request, rest)
        result = run(self._transport, self._place, request, rest=rest, on_stdout=on_stdout, on_stderr=on_stderr)
        if check:
            result.check()
        return result

    def list(self, *, state: Optional[str] = "running", tag: Optional[str] = None) -> List[CommandInfo]:
        """Lists executions, oldest first.

        Args:
            state: only those that are `queued`, `running`, `exited` or `unknown`; `None` for all that are kept.
            tag: only those with this label.
        """
        found = executions(self._transport, self._place, state=state, tag=tag or "")
        return [CommandInfo._read(execution) for execution in found]

    def connect(self, process: Union[int, str]) -> CommandHandle:
        """Finds what runs, or has run, in the background.

        Args:
            process: its process id inside the sandbox while it runs, or its execution id at any time.

        Raises:
            ExecutionNotFoundError: there is none.
        """
        if isinstance(process, int):
            for info in self.list():
                if info.pid == process:
                    return self._handle(info)
            raise ExecutionNotFoundError(f"no execution runs with process id {process}", code="NOT_FOUND")
        handle = CommandHandle(self._transport, self._place, process)
        return self._handle(handle.status())

    def _handle(self, info: CommandInfo) -> CommandHandle:
        kind = PtyHandle if info.has_terminal else CommandHandle
        return kind(self._transport, self._place, info.execution_id, pid=info.pid)

    def kill(self, process: Union[int, str]) -> bool:
        """Ends what runs, by its process id or execution id.

        Returns:
            Whether there was something that ran.
        """
        try:
            return (self.connect(process)).kill()
        except ExecutionNotFoundError:
            return False


class Pty:
    """Opens terminals: `sandbox.pty`."""

    def __init__(self, transport: Transport, place: Place) -> None:
        self._transport = transport
        self._place = place

    def create(
        self,
        command: Union[str, Sequence[str]] = ("bash", "-i"),
        *,
        rows: int = 24,
        cols: int = 80,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        tag: Optional[str] = None,
    ) -> PtyHandle:
        """Starts a program on a terminal.

        Args:
            command: a line for the shell, or the words of a program. Default: an interactive `bash`.
            rows: the terminal's height in characters, 1 to 1000.
            cols: its width in characters, 1 to 1000.
            cwd: the folder to run in. Default: `/workspace`.
            envs: environment on top of the sandbox's. `TERM` is `xterm-256color` unless given.
            timeout: seconds after which it is killed, up to 86400. Default: 86400.
            tag: a label to find it by.

        Returns:
            A handle: iterate over it for what the terminal shows, `send_stdin()` types.
        """
        request = command_request(self._place, command)
        envs = {"TERM": "xterm-256color", **(envs or {})}
        timeout = LONGEST if timeout is None else timeout
        complete(request, cwd=cwd, envs=envs, user=None, tag=tag, timeout=timeout, request_id=None)
        request.terminal.rows, request.terminal.cols = rows, cols
        request.stdin_open = True
        handle = start(self._transport, self._place, request)
        if not isinstance(handle, PtyHandle):  # a request with a terminal gives one
            raise TypeError("no terminal")
        return handle

    def connect(self, process: Union[int, str]) -> PtyHandle:
        """Finds a terminal by the process id or execution id of its program.

        Raises:
            ExecutionNotFoundError: there is none.
        """
        handle = Commands(self._transport, self._place).connect(process)
        if not isinstance(handle, PtyHandle):
            raise ExecutionNotFoundError(f"{process} has no terminal", code="NOT_FOUND")
        return handle
