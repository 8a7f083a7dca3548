"""What the server tells of sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Optional

from ._models import Limits
from ._network import Network
from ._wire import moment, word
from .v1 import session_pb2


@dataclass(frozen=True)
class LostItem:
    """Something that a resume could not bring back."""

    kind: str
    """What it was: `process`, `socket`, `file`, `variable`, `context`, `work`."""
    what: str
    """Which, in words: a command line, a path, a name."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True)
class RestoredContext:
    """A code context after a resume."""

    context_id: str
    """The context, under the id that it had."""
    language: str
    """Its language."""
    variables: list[str]
    """The variables that have their values again."""
    lost: list[LostItem]
    """The variables that are lost."""


@dataclass(frozen=True)
class RestoredCommand:
    """Something that had run in the background when the session was paused."""

    execution_id: str
    """The execution that it was."""
    command: str
    """What it ran, in one line."""
    tag: str
    """Its label."""
    restarted_as: str
    """The execution that was started in its place; empty unless that was asked for and it began."""
    failure: str
    """Why it could not be started again."""


@dataclass(frozen=True)
class ResumeManifest:
    """What a resume brought back, and what it could not."""

    depth: str
    """How the session had been paused: `frozen` means that nothing was lost, else `checkpointed`."""
    checkpoint_id: str
    """The checkpoint that it came from; empty when it was frozen."""
    checkpoint_time: Optional[datetime]
    """When that checkpoint was made: what was done in the session after it is not there."""
    files: int
    """Files, folders and links that were restored."""
    bytes: int
    """Bytes of the files that were restored."""
    env: list[str]
    """The names of the environment's variables."""
    contexts: list[RestoredContext]
    """The code contexts, with their variables."""
    commands: list[RestoredCommand]
    """What had run in the background."""
    lost: list[LostItem]
    """Everything else that is not there any more."""

    @classmethod
    def _read(cls, message: session_pb2.ResumeManifest) -> ResumeManifest:
        return cls(
            depth=word(session_pb2.PauseDepth, message.depth),
            checkpoint_id=message.checkpoint_id,
            checkpoint_time=moment(message.checkpoint_time) if message.HasField("checkpoint_time") else None,
            files=message.files,
            bytes=message.bytes,
            env=list(message.env),
            contexts=[
                RestoredContext(each.context_id, each.language, list(each.variables), [_lost(it) for it in each.lost])
                for each in message.contexts
            ],
            commands=[
                RestoredCommand(each.execution_id, each.command, each.tag, each.restarted_as, each.failure)
                for each in message.commands
            ],
            lost=[_lost(each) for each in message.lost],
        )


def _lost(message: session_pb2.LostItem) -> LostItem:
    return LostItem(message.kind, message.what, message.reason)


@dataclass(frozen=True)
class SessionInfo:
    """What the server knows of a session."""

    session_id: str
    """Its id."""
    user_id: str
    """The user it belongs to."""
    state: str
    """`creating`, `running`, `pausing`, `paused`, `resuming`, `failed` or `deleting`."""
    sandbox_id: str
    """The sandbox that holds it now; empty when it has none."""
    template: str
    """The template it was made from."""
    metadata: dict[str, str]
    """The owner's labels."""
    create_time: datetime
    """When it was created."""
    update_time: datetime
    """When its state last changed."""
    failure: str
    """Why it failed, in words; empty unless `failed`."""
    timeout_seconds: int
    """How long it may run from its creation or resume, in seconds."""
    idle_timeout_seconds: int
    """How long it may be idle, in seconds; 0 for ever."""
    on_timeout: str
    """What happens at either: `pause` or `delete`."""
    auto_resume: bool
    """Whether a use of it resumes it when it is paused."""
    expire_time: Optional[datetime]
    """When it has run for its timeout; `None` unless `running`."""
    pause_depth: str
    """How deep it is paused, `frozen` or `checkpointed`; empty unless `paused`."""
    checkpoint_id: str
    """Its last complete checkpoint; empty without one."""
    resume_manifest: Optional[ResumeManifest]
    """What its last resume brought back; `None` before the first."""
    forked_from: str
    """The session it was forked from; empty when it was not."""
    limits: Optional[Limits]
    """The limits that it was created with; `None` for the template's."""
    network: Network
    """What of the network its sandbox sees."""

    @classmethod
    def _read(cls, message: session_pb2.Session) -> SessionInfo:
        manifest = message.resume_manifest if message.HasField("resume_manifest") else None
        return cls(
            session_id=message.session_id,
            user_id=message.user_id,
            state=word(session_pb2.SessionState, message.state),
            sandbox_id=message.sandbox_id,
            template=message.template,
            metadata=dict(message.metadata),
            create_time=moment(message.create_time),
            update_time=moment(message.update_time),
            failure=message.failure,
            timeout_seconds=message.timeout_seconds,
            idle_timeout_seconds=message.idle_timeout_seconds,
            on_timeout=word(session_pb2.TimeoutAction, message.on_timeout),
            auto_resume=message.auto_resume,
            expire_time=moment(message.expire_time) if message.HasField("expire_time") else None,
            pause_depth=word(session_pb2.PauseDepth, message.pause_depth),
            checkpoint_id=message.checkpoint_id,
            resume_manifest=None if manifest is None else ResumeManifest._read(manifest),
            forked_from=message.forked_from,
            limits=Limits._read(message.limits) if message.HasField("limits") else None,
            network=Network._read(message.network),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A session's work at one moment."""

    checkpoint_id: str
    """Its id."""
    session_id: str
    """The session that it is of."""
    create_time: datetime
    """When it was made."""
    files: int
    """Files, folders and links in it."""
    bytes: int
    """Bytes of the files in it."""
    stored_bytes: int
    """Bytes that were stored for it: what had changed since the one before, compressed."""
    parent_id: str
    """The checkpoint that it builds on; empty when it stands alone."""

    @classmethod
    def _read(cls, message: session_pb2.Checkpoint) -> Checkpoint:
        return cls(
            checkpoint_id=message.checkpoint_id,
            session_id=message.session_id,
            create_time=moment(message.create_time),
            files=message.files,
            bytes=message.bytes,
            stored_bytes=message.stored_bytes,
            parent_id=message.parent_id,
        )


@dataclass(frozen=True)
class SessionEvent:
    """Something that happened to a session."""

    sequence: int
    """Its number in the session, ascending."""
    time: datetime
    """When it happened."""
    kind: str
    """What it was, a stable word: `created`, `paused`, `resumed`, `checkpointed`, `idle_timeout`, `forked`, …"""
    message: str
    """What happened and why, in words."""

    @classmethod
    def _read(cls, message: session_pb2.SessionEvent) -> SessionEvent:
        return cls(message.sequence, moment(message.time), message.kind, message.message)
