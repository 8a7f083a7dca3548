"""How far the events of an execution have been read, so that a stream that breaks is gone on with where it stopped."""

from __future__ import annotations

from typing import Optional, Union

from ._results import CodeError, Gap, Output, Result, read_error
from ._wire import word
from .v1 import exec_pb2

Event = Union[Output, Gap, Result, CodeError]


class Cursor:
    """Reads events, each once: after a break the server tells again the results that stand exactly at the offsets."""

    def __init__(self, stdout_offset: int = 0, stderr_offset: int = 0) -> None:
        self.offsets = {"stdout": stdout_offset, "stderr": stderr_offset}
        self.pid = 0
        self.exited: Optional[exec_pb2.ExecExited] = None
        # results and errors told since the offsets last moved, and how many of them are told again
        self._here = 0
        self._again = 0

    def resume(self) -> None:
        """A new stream begins at the offsets."""
        self._again = self._here

    def read(self, event: exec_pb2.ExecEvent) -> Optional[Event]:
        """What an event says, unless that was said before; how it began and ended is noted."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.pid = event.started.pid or self.pid
        elif kind == "exited":
            self.exited = event.exited
        elif kind == "stdout":
            return self._output("stdout", event.stdout)
        elif kind == "stderr":
            return self._output("stderr", event.stderr)
        elif kind == "gap":
            return self._gap(event.gap)
        elif kind in ("result", "error"):
            if self._again:
                self._again -= 1
                return None
            self._here += 1
            return Result._read(event.result) if kind == "result" else read_error(event.error)
        return None  # of a later release

    def _output(self, stream: str, piece: exec_pb2.ExecOutput) -> Optional[Output]:
        data = piece.text.encode() if piece.WhichOneof("content") == "text" else piece.data
        if not data:
            return None
        self._move(stream, piece.offset + len(data))
        return Output(stream, piece.offset, data)

    def _gap(self, gap: exec_pb2.ExecGap) -> Gap:
        stream = word(exec_pb2.OutputStream, gap.stream) or "stdout"
        self._move(stream, gap.offset + gap.length)
        return Gap(stream, gap.offset, gap.length, gap.results)

    def _move(self, stream: str, offset: int) -> None:
        self.offsets[stream] = offset
        self._here = self._again = 0


class Kept:
    """The beginning of what comes, as far as it fits, for a result."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._sizes = {"stdout": 0, "stderr": 0}
        self._results: list[Result] = []
        self._error: Optional[CodeError] = None

    def add(self, event: Event) -> None:
        """Takes an event in."""
        if isinstance(event, Output):
            room = self._limit - self._sizes[event.stream]
            if room > 0:
                self._pieces[event.stream].append(event.data[:room])
                self._sizes[event.stream] += min(room, len(event.data))
        elif isinstance(event, Result):
            self._results.append(event)
        elif isinstance(event, CodeError):
            self._error = event

    def answer(self, execution_id: str, exited: exec_pb2.ExecExited) -> exec_pb2.ExecuteResponse:
        """What the unary call would have answered, but for results."""
        sizes = self._sizes
        return exec_pb2.ExecuteResponse(
            execution_id=execution_id,
            stdout=b"".join(self._pieces["stdout"]).decode("utf-8", "replace"),
            stderr=b"".join(self._pieces["stderr"]).decode("utf-8", "replace"),
            exit_code=exited.exit_code,
            signal=exited.signal,
            timed_out=exited.timed_out,
            oom_killed=exited.oom_killed,
            disk_limit=exited.disk_limit,
            pids_limit=exited.pids_limit,
            stdout_truncated=sizes["stdout"] < exited.stdout_bytes,
            stderr_truncated=sizes["stderr"] < exited.stderr_bytes,
            stdout_bytes=exited.stdout_bytes,
            stderr_bytes=exited.stderr_bytes,
            wall_time_ms=exited.wall_time_ms,
            cpu_time_ms=exited.cpu_time_ms,
            peak_memory_bytes=exited.peak_memory_bytes,
            context_id=exited.context_id,
            context_restarted=exited.context_restarted,
        )

    @property
    def values(self) -> tuple[list[Result], Optional[CodeError]]:
        """Results and error of code in a context."""
        return list(self._results), self._error
