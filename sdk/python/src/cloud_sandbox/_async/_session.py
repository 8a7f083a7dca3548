"""Sessions: work that is paused, and goes on days later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, List, Optional

from .._models import LimitsLike, write_limits
from .._network import NetworkLike, write_network
from .._sessions import Checkpoint, SessionEvent, SessionInfo
from .._wire import Place, enum, labels, new_request_id, whole_seconds
from ..errors import SessionNotFoundError
from ..v1 import session_pb2
from ._client import AsyncClient, transport_of
from ._transport import AsyncTransport
from ._workspace import AsyncWorkspace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._connection import Connection

# saving and bringing back moves all files of a sandbox, in seconds
MOVE_TIMEOUT = 600.0


class AsyncSession(AsyncWorkspace):
    """A user's work over time, usable wherever a sandbox is: it has one while it runs.

    `async with await AsyncSession.create() as session:` pauses it at the end of the block, so that nothing is lost and
    nothing runs for nothing; `delete()` ends it for good.
    """

    def __init__(self, transport: AsyncTransport, info: SessionInfo) -> None:
        super().__init__(transport, Place(session_id=info.session_id))
        self.info = info
        """What the server told of it last."""

    @property
    def session_id(self) -> str:
        """Its id, with which `get()` finds it again."""
        return self.info.session_id

    @property
    def state(self) -> str:
        """What it was doing when the server was asked last."""
        return self.info.state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r}, state={self.state!r})"

    @classmethod
    async def create(
        cls,
        template: Optional[str] = None,
        *,
        timeout: Optional[float] = None,
        idle_timeout: Optional[float] = None,
        on_timeout: Optional[str] = None,
        auto_resume: bool = False,
        envs: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        network: Optional[NetworkLike] = None,
        limits: Optional[LimitsLike] = None,
        request_id: Optional[str] = None,
        client: Optional[AsyncClient] = None,
        **connection: Unpack[Connection],
    ) -> AsyncSession:
        """Makes a session and acquires its sandbox.

        Args:
            template: the template it is made from, by name or `name@version`. Default: the server's `default_template`.
            timeout: how long it may run from its creation or resume, in whole seconds, up to 2592000. Default: 3600.
            idle_timeout: how long it may be idle, in whole seconds: without calls, streams and CPU time. Default: for
                ever.
            on_timeout: what happens at either: `pause` (the default) or `delete`.
            auto_resume: a use of it resumes it when it is paused.
            envs: environment of everything run in it.
            metadata: labels to find it by.
            network: what of the network it sees: a mode (`none`, the default, `egress` or `open`), or a `Network`.
            limits: limits other than the template's.
            request_id: an id of your own, by which a repeated call finds the first session instead of a second.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.
        """
        transport = transport_of(client, **connection)
        request = session_pb2.CreateSessionRequest(
            template=template or "",
            timeout_seconds=whole_seconds("timeout", timeout),
            idle_timeout_seconds=whole_seconds("idle_timeout", idle_timeout),
            on_timeout=enum("on_timeout", session_pb2.TimeoutAction, on_timeout),
            auto_resume=auto_resume,
            env=dict(envs or {}),
            metadata=dict(metadata or {}),
            limits=write_limits(limits),
            request_id=request_id or new_request_id(),
            network=write_network(network),
        )
        answer = await transport.unary(request, session_pb2.CreateSessionResponse, repeatable=True)
        return cls(transport, SessionInfo._read(answer.session))

    @classmethod
    async def get(
        cls, session_id: str, *, client: Optional[AsyncClient] = None, **connection: Unpack[Connection]
    ) -> AsyncSession:
        """Finds a session that was created before.

        Args:
            session_id: its id.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.

        Raises:
            SessionNotFoundError: there is none.
        """
        transport = transport_of(client, **connection)
        request = session_pb2.GetSessionRequest(session_id=session_id)
        answer = await transport.unary(request, session_pb2.GetSessionResponse)
        return cls(transport, SessionInfo._read(answer.session))

    async def get_info(self) -> SessionInfo:
        """Asks the server what it knows of it."""
        request = session_pb2.GetSessionRequest(session_id=self.session_id)
        answer = await self._transport.unary(request, session_pb2.GetSessionResponse)
        return self._note(answer.session)

    async def pause(self, depth: Optional[str] = None) -> SessionInfo:
        """Stops it. Pausing it twice is once; pausing a frozen one deeper is allowed.

        Args:
            depth: `frozen`: memory and processes stay on the machine, resumed in milliseconds, lost with the node;
                `checkpointed`: files, environment and variables of code contexts are saved, processes are lost;
                `auto`, the default: frozen at first, checkpointed after a while.
        """
        request = session_pb2.PauseSessionRequest(
            session_id=self.session_id, depth=enum("depth", session_pb2.PauseDepth, depth)
        )
        answer = await self._transport.unary(request, session_pb2.PauseSessionResponse, timeout=MOVE_TIMEOUT)
        return self._note(answer.session)

    async def resume(self, checkpoint_id: Optional[str] = None, *, restart_commands: bool = False) -> SessionInfo:
        """Lets it go on. `resume_manifest` of the answer says what was brought back and what was lost.

        Args:
            checkpoint_id: the checkpoint to go on from. Default: where it stopped.
            restart_commands: start again what had run in the background.
        """
        request = session_pb2.ResumeSessionRequest(
            session_id=self.session_id, checkpoint_id=checkpoint_id or "", restart_commands=restart_commands
        )
        answer = await self._transport.unary(request, session_pb2.ResumeSessionResponse, timeout=MOVE_TIMEOUT)
        return self._note(answer.session)

    async def delete(self) -> bool:
        """Ends it for good, with all its checkpoints. Doing it twice is once.

        Returns:
            Whether it was still there.
        """
        request = session_pb2.DeleteSessionRequest(session_id=self.session_id)
        try:
            await self._transport.unary(request, session_pb2.DeleteSessionResponse)
        except SessionNotFoundError:
            return False
        return True

    async def kill(self) -> bool:
        """Deletes it: the word that sandboxes have for it."""
        return await self.delete()

    async def fork(
        self,
        checkpoint_id: Optional[str] = None,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        request_id: Optional[str] = None,
    ) -> AsyncSession:
        """Makes a new session of it, which is left as it is.

        Args:
            checkpoint_id: the checkpoint to start from. Default: as it is now; one that runs is saved first.
            metadata: the new session's labels; it does not inherit any.
            request_id: an id of your own, by which a repeated call finds the first fork instead of a second.
        """
        request = session_pb2.ForkSessionRequest(
            session_id=self.session_id,
            checkpoint_id=checkpoint_id or "",
            metadata=dict(metadata or {}),
            request_id=request_id or new_request_id(),
        )
        answer = await self._transport.unary(
            request, session_pb2.ForkSessionResponse, timeout=MOVE_TIMEOUT, repeatable=True
        )
        return type(self)(self._transport, SessionInfo._read(answer.session))

    async def update(
        self,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        remove_metadata: Iterable[str] = (),
        timeout: Optional[float] = None,
        idle_timeout: Optional[float] = None,
        on_timeout: Optional[str] = None,
        auto_resume: Optional[bool] = None,
        network: Optional[NetworkLike] = None,
    ) -> SessionInfo:
        """Changes labels, timeouts and the network. What is not given stays as it is.

        Args:
            metadata: labels to set.
            remove_metadata: keys of labels to remove.
            timeout: how long it may run from its last creation or resume, in whole seconds.
            idle_timeout: how long it may be idle, in whole seconds; 0 for ever.
            on_timeout: `pause` or `delete`.
            auto_resume: whether a use of it resumes it when it is paused.
            network: what of the network it sees from now on, and after each resume.
        """
        request = session_pb2.UpdateSessionRequest(
            session_id=self.session_id,
            metadata=dict(metadata or {}),
            remove_metadata=list(remove_metadata),
            on_timeout=enum("on_timeout", session_pb2.TimeoutAction, on_timeout),
            network=write_network(network),
        )
        if timeout is not None:
            request.timeout_seconds = whole_seconds("timeout", timeout)
        if idle_timeout is not None:
            request.idle_timeout_seconds = whole_seconds("idle_timeout", idle_timeout) if idle_timeout else 0
        if auto_resume is not None:
            request.auto_resume = auto_resume
        answer = await self._transport.unary(request, session_pb2.UpdateSessionResponse)
        return self._note(answer.session)

    async def set_timeout(self, timeout: float) -> SessionInfo:
        """Changes how long it may run from its last creation or resume, in whole seconds."""
        return await self.update(timeout=timeout)

    async def set_network(self, network: NetworkLike) -> SessionInfo:
        """Changes what of the network it sees from now on, and after each resume."""
        return await self.update(network=network)

    async def checkpoint(self) -> Checkpoint:
        """Saves it and lets it go on. It must run."""
        request = session_pb2.CreateCheckpointRequest(session_id=self.session_id)
        answer = await self._transport.unary(request, session_pb2.CreateCheckpointResponse, timeout=MOVE_TIMEOUT)
        return Checkpoint._read(answer.checkpoint)

    async def checkpoints(self) -> List[Checkpoint]:
        """Lists its complete checkpoints, newest first."""
        request = session_pb2.ListCheckpointsRequest(session_id=self.session_id)
        answer = await self._transport.unary(request, session_pb2.ListCheckpointsResponse)
        return [Checkpoint._read(checkpoint) for checkpoint in answer.checkpoints]

    async def events(self, *, after: int = 0) -> List[SessionEvent]:
        """Tells what has happened to it and why, oldest first; the server keeps the last 1000.

        Args:
            after: only events with a greater `sequence`.
        """
        found: List[SessionEvent] = []
        while True:
            request = session_pb2.ListSessionEventsRequest(
                session_id=self.session_id, after_sequence=after, page_size=1000
            )
            answer = await self._transport.unary(request, session_pb2.ListSessionEventsResponse)
            found += [SessionEvent._read(event) for event in answer.events]
            if len(answer.events) < 1000:
                return found
            after = found[-1].sequence

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            await self.pause()
        except SessionNotFoundError:  # deleted within the block
            return
        except Exception:
            # what ended the block is not hidden; the session's timeout pauses it
            if error is None:
                raise

    def _note(self, session: session_pb2.Session) -> SessionInfo:
        self.info = SessionInfo._read(session)
        return self.info

    # last, because within the class it hides the type of that name
    @classmethod
    async def list(
        cls,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        state: Optional[str] = None,
        newest_first: bool = False,
        client: Optional[AsyncClient] = None,
        **connection: Unpack[Connection],
    ) -> List[SessionInfo]:
        """Lists the caller's sessions in their last known states, oldest first.

        Args:
            metadata: only those that carry all these labels.
            state: only those in this state: `running`, `paused`, `failed`, …
            newest_first: the other way round.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.
        """
        transport = transport_of(client, **connection)
        request = session_pb2.ListSessionsRequest(
            page_size=1000,
            state=enum("state", session_pb2.SessionState, state),
            metadata=labels(metadata),
            order_by=enum("order", session_pb2.SessionOrder, "newest_first" if newest_first else None),
        )
        found: List[SessionInfo] = []
        while True:
            answer = await transport.unary(request, session_pb2.ListSessionsResponse)
            found += [SessionInfo._read(session) for session in answer.sessions]
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found
