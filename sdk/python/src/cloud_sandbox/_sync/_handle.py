# Made from cloud_sandbox/_async/_handle.py by `make sdk`; do not edit.
"""Something that runs in the background, and the way to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Optional, Union

from .._cursor import Cursor, Event, Kept
from .._models import CommandInfo, OutputMatch
from .._requests import LONGEST, MARGIN, OUTPUT_DEFAULT, STDIN_MAX
from .._results import CodeError, Execution, Gap, Output, Result, read_execution
from .._retry import Retry
from .._wire import Place, enum, word
from ..errors import CloudSandboxError, ExecutionNotFoundError, QuotaError, ServiceConnectionError, StateError
from ..v1 import exec_pb2
from ._io import Callback, invoke, sleep
from ._transport import Transport

PIECE = 256 * 1024


class CommandHandle:
    """An execution that runs in the background, or has ended.

    Iterating gives its output as it comes, once; `wait()` takes what is left and tells how it ended. A connection that
    breaks is made again and goes on where it stopped. Leaving it alone, by Ctrl-C in `wait()` too, lets it run on.
    """

    def __init__(
        self,
        transport: Transport,
        place: Place,
        execution_id: str,
        *,
        pid: int = 0,
        stdin_bytes: Optional[int] = None,
        keep_bytes: int = OUTPUT_DEFAULT,
        offsets: tuple[int, int] = (0, 0),
    ) -> None:
        self.execution_id = execution_id
        """Its id, with which `commands.connect` finds it again."""
        self.gaps: list[Gap] = []
        """Parts of the output that were dropped before they were read."""
        self._transport = transport
        self._place = place
        self._cursor = Cursor(*offsets)
        self._cursor.pid = pid
        self._kept = Kept(keep_bytes)
        # how much input it has been given; not known of one that somebody else may write to
        self._stdin_bytes = stdin_bytes

    @property
    def pid(self) -> int:
        """The process's id inside the sandbox; 0 while it is not known."""
        return self._cursor.pid

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.execution_id!r}, pid={self.pid})"

    def __iter__(self) -> Iterator[Output]:
        for event in self.events():
            if isinstance(event, Output):
                yield event

    def events(self, *, timeout: Optional[float] = None) -> Iterator[Event]:
        """Gives what comes: `Output`, `Gap`, and of code in a context `Result` and `CodeError`.

        Args:
            timeout: seconds after which to give up listening; it runs on. Default: none.

        Raises:
            CallTimeoutError: the timeout is over.
            OutcomeUnknownError: its sandbox or node ended under it.
        """
        deadline = time.monotonic() + (LONGEST + MARGIN if timeout is None else timeout)
        retry = Retry(repeatable=True, deadline=deadline)
        while self._cursor.exited is None:
            request = exec_pb2.AttachExecutionRequest(
                sandbox_id=self._place.sandbox_id,
                session_id=self._place.session_id,
                execution_id=self.execution_id,
                stdout_offset=self._cursor.offsets["stdout"],
                stderr_offset=self._cursor.offsets["stderr"],
            )
            self._cursor.resume()
            left = max(deadline - time.monotonic(), 0.001)
            answers = self._transport.stream(request, exec_pb2.AttachExecutionResponse, timeout=left, repeatable=False)
            try:
                for answer in answers:
                    retry.succeed()
                    event = self._cursor.read(answer.event)
                    if event is not None:
                        self._kept.add(event)
                        if isinstance(event, Gap):
                            self.gaps.append(event)
                        yield event
                if self._cursor.exited is None:
                    raise ServiceConnectionError("the stream of output ended early", code="UNAVAILABLE")
            except ServiceConnectionError as error:
                delay = retry.delay(error)
                if delay is None:
                    raise
                sleep(delay)

    def wait(
        self,
        *,
        on_stdout: Optional[Callback[Output]] = None,
        on_stderr: Optional[Callback[Output]] = None,
        on_result: Optional[Callback[Result]] = None,
        on_error: Optional[Callback[CodeError]] = None,
        timeout: Optional[float] = None,
        check: bool = False,
    ) -> Execution:
        """Waits for its end.

        Args:
            on_stdout: is called with each piece of standard output, or of the terminal's.
            on_stderr: is called with each piece of standard error.
            on_result: is called with each result of code in a context.
            on_error: is called with the error of code in a context.
            timeout: seconds after which to give up waiting; it runs on. Default: none.
            check: raise unless it ended well.

        Returns:
            How it ended, with the beginning (1 MiB) of what was read from it by this handle.

        Raises:
            CallTimeoutError: the timeout is over.
            OutcomeUnknownError: its sandbox or node ended under it.
            ExecutionError: `check` was asked for, and it did not end well.
        """
        for event in self.events(timeout=timeout):
            if isinstance(event, Output):
                callback = on_stdout if event.stream == "stdout" else on_stderr
                if callback is not None:
                    invoke(callback, event)
            elif isinstance(event, Result) and on_result is not None:
                invoke(on_result, event)
            elif isinstance(event, CodeError) and on_error is not None:
                invoke(on_error, event)
        exited = self._cursor.exited
        if exited is None:  # the loop above ends with it, or by an exception
            raise ServiceConnectionError("the stream of output ended early", code="UNAVAILABLE")
        results, error = self._kept.values
        result = read_execution(self._kept.answer(self.execution_id, exited))
        result = replace(result, results=results, error=error)
        if check:
            result.check()
        return result

    def status(self) -> CommandInfo:
        """Tells what it is doing, or how it ended."""
        request = exec_pb2.GetExecutionRequest(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, execution_id=self.execution_id
        )
        answer = self._transport.unary(request, exec_pb2.GetExecutionResponse)
        return CommandInfo._read(answer.execution)

    def send_stdin(self, data: Union[str, bytes]) -> None:
        """Writes to its standard input.

        Args:
            data: bytes, or text, which is written as UTF-8; of any length.

        Raises:
            StateError: its input was closed, or it has ended.
            QuotaError: it reads nothing; `metadata["stdin_bytes"]` says how much it has been given in all.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        for begin in range(0, len(view), STDIN_MAX):
            self._write(bytes(view[begin : begin + STDIN_MAX]), close=False)

    def close_stdin(self) -> None:
        """Ends its standard input: it reads the end of file."""
        self._write(b"", close=True)

    def _write(self, data: bytes, *, close: bool) -> None:
        request = exec_pb2.WriteExecutionStdinRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            execution_id=self.execution_id,
            data=data,
            close=close,
            offset=self._stdin_bytes,
        )
        # with an offset a repeated call writes nothing twice
        repeatable = self._stdin_bytes is not None
        try:
            answer = self._transport.unary(request, exec_pb2.WriteExecutionStdinResponse, repeatable=repeatable)
        except QuotaError as error:
            if repeatable and "stdin_bytes" in error.metadata:
                self._stdin_bytes = int(error.metadata["stdin_bytes"])
            raise
        if repeatable:
            self._stdin_bytes = answer.stdin_bytes

    def signal(self, name: str = "SIGTERM") -> bool:
        """Sends a signal to its process group; `SIGKILL` ends everything in its session.

        Returns:
            Whether it still ran.
        """
        request = exec_pb2.SignalExecutionRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            execution_id=self.execution_id,
            signal=name,
        )
        try:
            self._transport.unary(request, exec_pb2.SignalExecutionResponse)
        except ExecutionNotFoundError:
            return False
        except StateError as error:
            if error.reason != "EXECUTION_ENDED":
                raise
            return False
        return True

    def kill(self) -> bool:
        """Ends it and everything in its session at once.

        Returns:
            Whether it still ran.
        """
        return self.signal("SIGKILL")

    def read_output(self, stream: str = "stdout", *, offset: int = 0, limit: Optional[int] = None) -> bytes:
        """Reads what it has printed so far, from the server's journal; the place of iteration does not change.

        Args:
            stream: `stdout` or `stderr`.
            offset: where to begin, in bytes.
            limit: how many bytes at most. Default: all there is.
        """
        pieces: list[bytes] = []
        left = limit
        while left is None or left > 0:
            request = exec_pb2.ReadExecutionOutputRequest(
                sandbox_id=self._place.sandbox_id,
                session_id=self._place.session_id,
                execution_id=self.execution_id,
                stream=enum("stream", exec_pb2.OutputStream, stream),
                offset=offset,
                limit=PIECE if left is None else min(left, PIECE),
            )
            answer = self._transport.unary(request, exec_pb2.ReadExecutionOutputResponse)
            piece = answer.text.encode() if answer.WhichOneof("content") == "text" else answer.data
            if not piece:
                break
            pieces.append(piece)
            offset = answer.next_offset
            left = None if left is None else left - len(piece)
        return b"".join(pieces)

    def grep(
        self,
        pattern: str,
        *,
        ignore_case: bool = False,
        stream: Optional[str] = None,
        max_matches: int = 100,
        context_lines: int = 0,
    ) -> list[OutputMatch]:
        """Searches what it has printed so far.

        Args:
            pattern: a regular expression in the syntax of RE2, for one line.
            ignore_case: take upper and lower case for the same.
            stream: `stdout` or `stderr`. Default: both.
            max_matches: how many to return at most, up to 1000.
            context_lines: how many lines before and after each, up to 20.
        """
        request = exec_pb2.GrepExecutionOutputRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            execution_id=self.execution_id,
            pattern=pattern,
            ignore_case=ignore_case,
            stream=enum("stream", exec_pb2.OutputStream, stream),
            max_matches=max_matches,
            context_lines=context_lines,
        )
        answer = self._transport.unary(request, exec_pb2.GrepExecutionOutputResponse)
        return [OutputMatch._read(match) for match in answer.matches]


class PtyHandle(CommandHandle):
    """A terminal with a program on it. What it shows comes as `stdout`."""

    def resize(self, rows: int, cols: int) -> None:
        """Changes the terminal's size, in characters, 1 to 1000 each."""
        request = exec_pb2.ResizeExecutionTerminalRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            execution_id=self.execution_id,
            terminal=exec_pb2.TerminalSize(rows=rows, cols=cols),
        )
        self._transport.unary(request, exec_pb2.ResizeExecutionTerminalResponse)


def stop(handle: CommandHandle, *, in_context: bool) -> bool:
    """Ends what nobody waits for any more; says whether that could be done."""
    try:
        # of code in a context, SIGTERM leaves the variables if it can
        return handle.signal("SIGTERM" if in_context else "SIGKILL")
    except CloudSandboxError:
        return False


def stop_request(transport: Transport, place: Place, request: exec_pb2.ExecuteRequest) -> bool:
    """Ends the execution of a request whose answer nobody waits for any more; says whether that could be done."""
    for pause in (0.0, 0.05, 0.25):
        if pause:  # it may not have got that far
            sleep(pause)
        try:
            found = find_request(transport, place, request.request_id)
        except CloudSandboxError:
            return False
        if found is not None:
            handle = CommandHandle(transport, place, found.execution_id)
            return stop(handle, in_context=bool(request.context_id))
    return False


def find_request(transport: Transport, place: Place, request_id: str) -> Optional[exec_pb2.Execution]:
    """The execution, running or waiting, that a request has started."""
    for execution in executions(transport, place):
        if execution.request_id == request_id and word(exec_pb2.ExecutionState, execution.state) in (
            "running",
            "queued",
        ):
            return execution
    return None


def executions(
    transport: Transport, place: Place, *, state: Optional[str] = None, tag: str = ""
) -> Iterator[exec_pb2.Execution]:
    """All executions of a sandbox that are known, page by page."""
    page_token = ""
    while True:
        request = exec_pb2.ListExecutionsRequest(
            sandbox_id=place.sandbox_id,
            session_id=place.session_id,
            state=enum("state", exec_pb2.ExecutionState, state),
            tag=tag,
            page_size=1000,
            page_token=page_token,
        )
        answer = transport.unary(request, exec_pb2.ListExecutionsResponse)
        for execution in answer.executions:
            yield execution
        page_token = answer.next_page_token
        if not page_token:
            return
