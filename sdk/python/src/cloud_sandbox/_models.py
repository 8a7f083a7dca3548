"""What the server tells of sandboxes, executions and code contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Optional, Union

from ._network import Network
from ._wire import moment, word
from .errors import InvalidArgumentError
from .v1 import context_pb2, exec_pb2, scheduler_pb2


@dataclass(frozen=True)
class Limits:
    """What one sandbox may take; 0 means the template's default."""

    memory_bytes: int = 0
    """Memory of all processes and of all files in the sandbox, in bytes, 16 MiB at least."""
    cpu_millis: int = 0
    """CPU time per wall time, in thousandths of a core, 10 to 64000."""
    pids: int = 0
    """Processes and threads at once, 4 to 32768."""
    disk_bytes: int = 0
    """Bytes in all writable folders together, up to three quarters of `memory_bytes`."""
    open_files: int = 0
    """Files that one process may have open, 64 to 65536."""
    output_bytes: int = 0
    """What is kept of one execution's output, in bytes, 64 KiB at least; of more, the beginning and the end."""
    execution_seconds: int = 0
    """The longest that one execution in the foreground may take, in seconds, 1 to 86400."""
    cpu_weight: int = 0
    """The share of the CPU against that of other sandboxes when there is too little, 1 to 10000."""

    @classmethod
    def _read(cls, message: scheduler_pb2.ResourceLimits) -> Limits:
        return cls(**{name: getattr(message, name) for name in cls.__dataclass_fields__})


LimitsLike = Union[Limits, Mapping[str, int]]


def write_limits(limits: Optional[LimitsLike]) -> Optional[scheduler_pb2.ResourceLimits]:
    """Limits as the contracts have them."""
    if limits is None:
        return None
    if isinstance(limits, Mapping):
        unknown = sorted(set(limits) - set(Limits.__dataclass_fields__))
        if unknown:
            raise InvalidArgumentError.of(f"limits.{unknown[0]}", "is no limit")
        limits = Limits(**limits)
    return scheduler_pb2.ResourceLimits(
        memory_bytes=limits.memory_bytes,
        cpu_millis=limits.cpu_millis,
        pids=limits.pids,
        disk_bytes=limits.disk_bytes,
        open_files=limits.open_files,
        output_bytes=limits.output_bytes,
        execution_seconds=limits.execution_seconds,
        cpu_weight=limits.cpu_weight,
    )


@dataclass(frozen=True)
class SandboxInfo:
    """What the server knows of a sandbox."""

    sandbox_id: str
    """Its id."""
    template: str
    """The template it was made from: `name@version`, or the name of a built-in one."""
    state: str
    """`creating`, `ready`, `acquired`, `paused` or `terminating`."""
    user_id: str
    """The user it belongs to."""
    node_id: str
    """The node that hosts it."""
    limits: Limits
    """The limits in force."""
    metadata: dict[str, str]
    """The owner's labels."""
    create_time: datetime
    """When it was acquired."""
    expire_time: datetime
    """When its lease ends unless it is kept alive."""
    network: Network
    """What of the network it sees."""
    runtime: str
    """What isolates it: `linux`, `docker`, `docker+runsc`."""

    @classmethod
    def _read(cls, message: scheduler_pb2.Sandbox) -> SandboxInfo:
        return cls(
            sandbox_id=message.sandbox_id,
            template=message.template,
            state=word(scheduler_pb2.SandboxState, message.state),
            user_id=message.user_id,
            node_id=message.node_id,
            limits=Limits._read(message.limits),
            metadata=dict(message.metadata),
            create_time=moment(message.create_time),
            expire_time=moment(message.expire_time),
            network=Network._read(message.network),
            runtime=message.runtime,
        )


@dataclass(frozen=True)
class CommandInfo:
    """What the server knows of an execution."""

    execution_id: str
    """Its id."""
    state: str
    """`queued`, `running`, `exited`, or `unknown`: it has begun, and how it ended cannot be known."""
    summary: str
    """What runs, on one line: the command, the words of the program, or the language of the code."""
    tag: str
    """The caller's label."""
    request_id: str
    """The id of the request that started it."""
    cwd: str
    """The folder that it was started in."""
    pid: int
    """The process's id inside the sandbox; 0 when there is none (any more)."""
    has_terminal: bool
    """Whether it runs on a terminal."""
    stdin_open: bool
    """Whether its standard input is open."""
    context_id: str
    """The code context that it runs in; empty without one."""
    create_time: datetime
    """When it was asked for."""
    end_time: Optional[datetime]
    """When it ended; `None` while it runs."""
    stdout_bytes: int
    """How many bytes it has printed to standard output."""
    stderr_bytes: int
    """How many bytes it has printed to standard error."""
    exit_code: Optional[int]
    """Its exit code; `None` unless `exited`."""
    failure: str
    """Why its end is not known, in words; empty unless `unknown`."""

    @classmethod
    def _read(cls, message: exec_pb2.Execution) -> CommandInfo:
        return cls(
            execution_id=message.execution_id,
            state=word(exec_pb2.ExecutionState, message.state),
            summary=message.summary,
            tag=message.tag,
            request_id=message.request_id,
            cwd=message.cwd,
            pid=message.pid,
            has_terminal=message.has_terminal,
            stdin_open=message.stdin_open,
            context_id=message.context_id,
            create_time=moment(message.create_time),
            end_time=moment(message.end_time) if message.HasField("end_time") else None,
            stdout_bytes=message.stdout_bytes,
            stderr_bytes=message.stderr_bytes,
            exit_code=message.exit.exit_code if message.HasField("exit") else None,
            failure=message.failure,
        )


@dataclass(frozen=True)
class OutputMatch:
    """A line of an execution's output that matches a pattern."""

    stream: str
    """`stdout` or `stderr`."""
    line_number: int
    """The line's number in its stream, from 1."""
    offset: int
    """Where the line begins in its stream, in bytes."""
    line: str
    """The line without its end, up to 4096 bytes of it."""
    before: list[str]
    """The lines before it."""
    after: list[str]
    """The lines after it."""

    @classmethod
    def _read(cls, message: exec_pb2.OutputMatch) -> OutputMatch:
        stream = word(exec_pb2.OutputStream, message.stream)
        before, after = list(message.before), list(message.after)
        return cls(stream, message.line_number, message.offset, message.line, before, after)


@dataclass(frozen=True)
class CodeContext:
    """An interpreter in a sandbox whose variables live from call to call."""

    context_id: str
    """Its id."""
    language: str
    """`python`, `javascript` or `typescript`."""
    cwd: str
    """The folder that its interpreter was started in."""
    is_default: bool
    """Whether it is the default context of its language."""
    state: str
    """`idle`, `busy`, or `dead`: it has no interpreter, the next execution starts one."""
    executions: int
    """How many executions run or wait in it."""
    restarts: int
    """How often its interpreter was started anew."""
    version: str
    """The interpreter's version, `3.11.2` for example."""
    pid: int
    """The interpreter's process id inside the sandbox; 0 when it is dead."""
    create_time: datetime
    """When it was created."""

    @classmethod
    def _read(cls, message: context_pb2.Context) -> CodeContext:
        return cls(
            context_id=message.context_id,
            language=message.language,
            cwd=message.cwd,
            is_default=message.is_default,
            state=word(context_pb2.ContextState, message.state),
            executions=message.executions,
            restarts=message.restarts,
            version=message.version,
            pid=message.pid,
            create_time=moment(message.create_time),
        )


@dataclass(frozen=True)
class Usage:
    """What a sandbox uses and has used, as its node sees it; `None` for what the host cannot tell."""

    memory_bytes: Optional[int] = None
    """Bytes of memory now, files included."""
    pids: Optional[int] = None
    """Processes and threads now."""
    cpu_time_ms: Optional[float] = None
    """CPU time of all its processes so far, in milliseconds."""
    disk_bytes: Optional[int] = None
    """Bytes in its writable folders now; `None` while it is paused, too."""
    oom_kills: Optional[int] = None
    """How many processes the kernel has killed for the memory limit."""
    pids_refused: Optional[int] = None
    """How many processes could not be started for the limit of processes."""
    connections_allowed: int = 0
    """Connections to the network that were allowed."""
    connections_denied: int = 0
    """Connections to the network that were refused."""
    network_sent_bytes: int = 0
    """Bytes sent over connections to the network."""
    network_received_bytes: int = 0
    """Bytes received over them."""

    @classmethod
    def _read(cls, message: scheduler_pb2.SandboxUsage) -> Usage:
        return cls(
            memory_bytes=message.memory_bytes if message.HasField("memory_bytes") else None,
            pids=message.pids if message.HasField("pids") else None,
            cpu_time_ms=message.cpu_time_ms if message.HasField("cpu_time_ms") else None,
            disk_bytes=message.disk_bytes if message.HasField("disk_bytes") else None,
            oom_kills=message.oom_kills if message.HasField("oom_kills") else None,
            pids_refused=message.pids_refused if message.HasField("pids_refused") else None,
            connections_allowed=message.connections_allowed,
            connections_denied=message.connections_denied,
            network_sent_bytes=message.network_sent_bytes,
            network_received_bytes=message.network_received_bytes,
        )


@dataclass(frozen=True)
class Metrics:
    """What a sandbox takes, looked at from inside, and what it may take."""

    processes: int
    """How many processes there are, that of the measurement left out."""
    cpu_seconds: float
    """CPU time of all processes that live, in seconds, with the children they have waited for."""
    memory_bytes: int
    """Resident memory of all processes, in bytes; what several share counts for each."""
    memory_limit_bytes: int
    """The limit of memory, files included, in bytes."""
    disk_bytes: int
    """What files take in the writable folders, in bytes."""
    disk_limit_bytes: int
    """What they may take, in bytes."""
    cpu_limit_millis: int
    """CPU time per wall time that is allowed, in thousandths of a core."""
