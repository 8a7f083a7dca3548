"""What executions gave: output, how they ended, values in all their forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from . import _notebook
from .errors import ExecutionError, ExecutionKilledError, ExecutionTimeoutError
from .v1 import exec_pb2


@dataclass(frozen=True)
class Output:
    """A piece of what a process printed."""

    stream: str
    """`stdout` or `stderr`. A terminal's output is all `stdout`."""
    offset: int
    """Where the piece begins in its stream, in bytes."""
    data: bytes
    """The piece as it is. Characters of UTF-8 output are never split between pieces."""

    @property
    def text(self) -> str:
        """The piece as text; bytes that are not UTF-8 are replaced by U+FFFD."""
        return self.data.decode("utf-8", "replace")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Gap:
    """A part of an output that the server's journal, which is bounded, has dropped before it was read."""

    stream: str
    """`stdout` or `stderr`."""
    offset: int
    """Where it begins, in bytes."""
    length: int
    """How long it is, in bytes."""
    results: int = 0
    """How many results or errors were dropped with it."""


@dataclass(frozen=True)
class Logs:
    """What was printed, by lines with their ends."""

    stdout: list[str]
    """Lines of standard output."""
    stderr: list[str]
    """Lines of standard error."""


@dataclass(frozen=True)
class CodeError:
    """An error that code in a context did not handle."""

    name: str
    """Its type, `ValueError` for example."""
    value: str
    """Its message."""
    traceback: str
    """Where it came from, as the language prints it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


@dataclass(frozen=True, repr=False)
class Result:
    """A value in the forms that it offers. A notebook shows the best of them."""

    is_main: bool = False
    """Whether it is the value of the last expression; else it was displayed."""
    text: Optional[str] = None
    """Plain text."""
    html: Optional[str] = None
    """HTML."""
    markdown: Optional[str] = None
    """Markdown."""
    svg: Optional[str] = None
    """An SVG image."""
    png: Optional[bytes] = None
    """A PNG image."""
    jpeg: Optional[bytes] = None
    """A JPEG image."""
    latex: Optional[str] = None
    """LaTeX."""
    json: Optional[str] = None
    """JSON, as its text; `data` has it parsed."""
    pdf: Optional[bytes] = None
    """A PDF document."""
    javascript: Optional[str] = None
    """JavaScript."""
    extra: dict[str, bytes] = field(default_factory=dict)
    """Every other form by its media type; text as UTF-8."""
    dropped: list[str] = field(default_factory=list)
    """Media types of forms that were too large to be sent."""

    @property
    def data(self) -> Any:
        """The JSON form, parsed; `None` without one."""
        return None if self.json is None else json.loads(self.json)

    def formats(self) -> list[str]:
        """The names of the forms there are: `["text", "png"]`."""
        return [name for name in _notebook.MEDIA_TYPES if getattr(self, name) is not None] + sorted(self.extra)

    def __str__(self) -> str:
        return self.text or f"<{', '.join(self.formats())}>"

    def __repr__(self) -> str:
        return f"Result({', '.join(self.formats())}: {_notebook.short(str(self))})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return _notebook.bundle(self)

    @classmethod
    def _read(cls, message: exec_pb2.CodeResult) -> Result:
        forms: dict[str, Any] = {name: getattr(message, name) or None for name in _notebook.MEDIA_TYPES}
        return cls(is_main=message.is_main, extra=dict(message.extra), dropped=list(message.dropped), **forms)


@dataclass(frozen=True)
class FileChange:
    """What became of one file, folder or link."""

    path: str
    """The absolute path."""
    type: str
    """`created`, `modified` or `deleted`."""
    old_size: int
    """The size before, in bytes; 0 of a new one."""
    new_size: int
    """The size now, in bytes; 0 of a deleted one."""
    diff: str
    """A unified diff of a small text file; empty of others."""
    diff_truncated: bool
    """Whether `diff` was left out, or ends early, for its size."""


@dataclass(frozen=True)
class FileChanges(Sequence[FileChange]):
    """What became of the files under `/workspace`, by path."""

    files: list[FileChange]
    """The files."""
    truncated: bool
    """Whether there were more than the server looks at."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return self.files[index]

    @classmethod
    def _read(cls, message: exec_pb2.FileChanges) -> FileChanges:
        return cls([_change(each) for each in message.files], message.truncated)


def _change(each: exec_pb2.FileChange) -> FileChange:
    kind = exec_pb2.FileChangeType.Name(each.type).replace("FILE_CHANGE_TYPE_", "").lower()
    return FileChange(each.path, kind, each.old_size, each.new_size, each.diff, each.diff_truncated)


@dataclass(frozen=True, repr=False)
class CommandResult:
    """A process that has ended."""

    execution_id: str
    """The execution's id, under which its output can be read again."""
    stdout: str = ""
    """Standard output; bytes that are not UTF-8 are replaced by U+FFFD."""
    stderr: str = ""
    """Standard error, in the same way."""
    exit_code: int = 0
    """The exit code; 128 and the signal's number when a signal ended it."""
    signal: str = ""
    """The signal that ended it, `SIGKILL` for example; empty when it exited by itself."""
    timed_out: bool = False
    """Whether it was killed at its timeout."""
    oom_killed: bool = False
    """Whether the kernel killed a process of the sandbox for its memory limit meanwhile."""
    disk_limit: bool = False
    """Whether the sandbox's disk was full meanwhile, or had no room for another file."""
    pids_limit: bool = False
    """Whether a process could not be started meanwhile, for the sandbox's limit of processes."""
    stdout_truncated: bool = False
    """Whether `stdout` is not all that was printed; the whole is in the server's journal."""
    stderr_truncated: bool = False
    """Whether `stderr` is not all that was printed."""
    stdout_bytes: int = 0
    """How many bytes were printed to standard output."""
    stderr_bytes: int = 0
    """How many bytes were printed to standard error."""
    wall_time_ms: float = 0.0
    """Time from start to end, in milliseconds."""
    cpu_time_ms: float = 0.0
    """CPU time, user and system, in milliseconds."""
    peak_memory_bytes: int = 0
    """The largest resident memory of one process of it, in bytes."""
    changes: Optional[FileChanges] = None
    """What became of the files, if that was asked for."""

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def logs(self) -> Logs:
        """What was printed, by lines."""
        return Logs(self.stdout.splitlines(keepends=True), self.stderr.splitlines(keepends=True))

    def check(self) -> None:
        """Raises unless it exited with 0.

        Raises:
            ExecutionTimeoutError: it was killed at its timeout.
            ExecutionKilledError: a signal ended it, or the kernel for its memory limit.
            ExecutionError: it exited with another code.
        """
        if self.ok:
            return
        last = (self.stderr.strip() or self.stdout.strip()).rpartition("\n")[2]
        said = f": {_notebook.short(last, 200)}" if last else ""
        if self.timed_out:
            raise ExecutionTimeoutError(f"killed at its timeout after {self.wall_time_ms / 1000:.1f} s{said}", self)
        if self.oom_killed:
            raise ExecutionKilledError(f"out of memory{said}", self)
        if self.signal:
            raise ExecutionKilledError(f"ended by {self.signal}{said}", self)
        limits = [(self.disk_limit, "the disk is full"), (self.pids_limit, "no more processes are allowed")]
        why = ", ".join(name for reached, name in limits if reached)
        raise ExecutionError(f"exited with {self.exit_code}{f' ({why})' if why else ''}{said}", self)

    def __str__(self) -> str:
        return self.stdout

    def __repr__(self) -> str:
        return _notebook.line(self)

    def _repr_html_(self) -> str:
        return _notebook.page(self)


@dataclass(frozen=True, repr=False)
class Execution(CommandResult):
    """Code that has ended."""

    results: list[Result] = field(default_factory=list)
    """What code in a context gave: displays, and the value of the last expression."""
    results_omitted: int = 0
    """How many results did not fit."""
    error: Optional[CodeError] = None
    """The error that ended code in a context."""
    context_id: str = ""
    """The context that it ran in; empty without one."""
    context_restarted: bool = False
    """Whether the context's interpreter had died and was started anew for this: its variables are gone."""

    @property
    def text(self) -> Optional[str]:
        """The value of the last expression as text; `None` without one."""
        return next((result.text for result in self.results if result.is_main), None)

    def __str__(self) -> str:
        return self.stdout + (self.text or "")

    def check(self) -> None:
        """Raises unless it ended well; the message is that of the code's own error where there is one."""
        if self.error is not None and not (self.timed_out or self.oom_killed or self.signal):
            raise ExecutionError(_notebook.short(str(self.error), 500), self)
        super().check()


def read_execution(message: exec_pb2.ExecuteResponse) -> Execution:
    """A finished execution from the server's answer."""
    return Execution(
        execution_id=message.execution_id,
        stdout=message.stdout,
        stderr=message.stderr,
        exit_code=message.exit_code,
        signal=message.signal,
        timed_out=message.timed_out,
        oom_killed=message.oom_killed,
        disk_limit=message.disk_limit,
        pids_limit=message.pids_limit,
        stdout_truncated=message.stdout_truncated,
        stderr_truncated=message.stderr_truncated,
        stdout_bytes=message.stdout_bytes,
        stderr_bytes=message.stderr_bytes,
        wall_time_ms=message.wall_time_ms,
        cpu_time_ms=message.cpu_time_ms,
        peak_memory_bytes=message.peak_memory_bytes,
        changes=FileChanges._read(message.changes) if message.HasField("changes") else None,
        results=[Result._read(result) for result in message.results],
        results_omitted=message.results_omitted,
        error=read_error(message.error) if message.HasField("error") else None,
        context_id=message.context_id,
        context_restarted=message.context_restarted,
    )


def read_error(message: exec_pb2.CodeError) -> CodeError:
    """The error of code in a context."""
    return CodeError(message.name, message.value, message.traceback)
