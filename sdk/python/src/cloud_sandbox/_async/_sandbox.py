"""A sandbox: acquired, used, released."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, List, Optional

from .._models import LimitsLike, SandboxInfo, write_limits
from .._network import NetworkLike, write_network
from .._wire import Place, enum, labels, new_request_id, whole_seconds
from ..errors import SandboxNotFoundError
from ..v1 import scheduler_pb2
from ._client import AsyncClient, transport_of
from ._transport import AsyncTransport
from ._workspace import AsyncWorkspace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._connection import Connection


class AsyncSandbox(AsyncWorkspace):
    """An isolated place to run code in.

    `async with await AsyncSandbox.create() as sandbox:` releases it at the end of the block, also by an exception. One
    that was found by `connect()` is left alone there: it belongs to who created it.
    """

    def __init__(self, transport: AsyncTransport, info: SandboxInfo, *, owned: bool) -> None:
        super().__init__(transport, Place(sandbox_id=info.sandbox_id))
        self.info = info
        """What the server told of it last."""
        self._owned = owned

    @property
    def sandbox_id(self) -> str:
        """Its id, with which `connect()` finds it again."""
        return self.info.sandbox_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sandbox_id!r})"

    @classmethod
    async def create(
        cls,
        template: Optional[str] = None,
        *,
        timeout: Optional[float] = 300,
        envs: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        network: Optional[NetworkLike] = None,
        limits: Optional[LimitsLike] = None,
        request_id: Optional[str] = None,
        client: Optional[AsyncClient] = None,
        **connection: Unpack[Connection],
    ) -> AsyncSandbox:
        """Acquires a sandbox.

        Args:
            template: the template it is made from, by name or `name@version`. Default: the server's `default_template`.
            timeout: its lease in whole seconds, 1 to 86400: so long after this it is destroyed, unless `set_timeout()`
                begins the lease anew.
            envs: environment of everything run in it.
            metadata: labels to find it by.
            network: what of the network it sees: a mode (`none`, the default, `egress` or `open`), or a `Network` that
                says which hosts, too: `Network("egress", allow=["pypi.org", "*.pythonhosted.org"])`.
            limits: limits other than the template's: `{"memory_bytes": 2**30, "cpu_millis": 500}`.
            request_id: an id of your own, by which a repeated call finds the first sandbox instead of a second.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.

        Raises:
            ServiceConnectionError: the server cannot be reached.
            QuotaError: there is no room for another sandbox.
            InvalidArgumentError: something given breaks a rule.
        """
        transport = transport_of(client, **connection)
        request = scheduler_pb2.AcquireSandboxRequest(
            template=template or "",
            timeout_seconds=whole_seconds("timeout", timeout),
            env=dict(envs or {}),
            metadata=dict(metadata or {}),
            limits=write_limits(limits),
            request_id=request_id or new_request_id(),
            network=write_network(network),
        )
        answer = await transport.unary(request, scheduler_pb2.AcquireSandboxResponse, repeatable=True)
        return cls(transport, SandboxInfo._read(answer.sandbox), owned=True)

    @classmethod
    async def connect(
        cls, sandbox_id: str, *, client: Optional[AsyncClient] = None, **connection: Unpack[Connection]
    ) -> AsyncSandbox:
        """Finds a sandbox that was created before.

        Args:
            sandbox_id: its id.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.

        Raises:
            SandboxNotFoundError: there is none.
        """
        transport = transport_of(client, **connection)
        return cls(transport, await _info(transport, sandbox_id), owned=False)

    async def get_info(self) -> SandboxInfo:
        """Asks the server what it knows of it."""
        self.info = await _info(self._transport, self.sandbox_id)
        return self.info

    async def is_running(self) -> bool:
        """Says whether it still is."""
        try:
            await self.get_info()
        except SandboxNotFoundError:
            return False
        return True

    async def set_timeout(self, timeout: Optional[float] = None) -> SandboxInfo:
        """Begins its lease anew from now.

        Args:
            timeout: the new lease in whole seconds, 1 to 86400. Default: the lease's length as it is.
        """
        request = scheduler_pb2.KeepAliveSandboxRequest(
            sandbox_id=self.sandbox_id, timeout_seconds=whole_seconds("timeout", timeout)
        )
        answer = await self._transport.unary(request, scheduler_pb2.KeepAliveSandboxResponse)
        self.info = SandboxInfo._read(answer.sandbox)
        return self.info

    async def set_network(self, network: NetworkLike) -> SandboxInfo:
        """Changes what of the network it sees from now on: connections that are not allowed any more are cut.

        Args:
            network: as in `create()`; it takes the place of the whole policy before.
        """
        request = scheduler_pb2.UpdateSandboxRequest(sandbox_id=self.sandbox_id, network=write_network(network))
        answer = await self._transport.unary(request, scheduler_pb2.UpdateSandboxResponse)
        self.info = SandboxInfo._read(answer.sandbox)
        return self.info

    async def kill(self) -> bool:
        """Releases it: destroys it with all that runs and lies in it. Doing it twice is once.

        Returns:
            Whether anything of it was still there: of one that has ended, what was printed in it is.
        """
        request = scheduler_pb2.ReleaseSandboxRequest(sandbox_id=self.sandbox_id)
        try:
            await self._transport.unary(request, scheduler_pb2.ReleaseSandboxResponse)
        except SandboxNotFoundError:
            return False
        return True

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._owned:
            await release(self, error)

    # last, because within the class it hides the type of that name
    @classmethod
    async def list(
        cls,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        state: Optional[str] = None,
        template: Optional[str] = None,
        client: Optional[AsyncClient] = None,
        **connection: Unpack[Connection],
    ) -> List[SandboxInfo]:
        """Lists the caller's sandboxes, oldest first.

        Args:
            metadata: only those that carry all these labels.
            state: only those in this state: `acquired`, `paused`.
            template: only those of this template.
            client: the connection to use, instead of keywords that name one.
            **connection: the server and the caller: see `Connection`.
        """
        transport = transport_of(client, **connection)
        request = scheduler_pb2.ListSandboxesRequest(
            page_size=1000,
            state=enum("state", scheduler_pb2.SandboxState, state),
            template=template or "",
            metadata=labels(metadata),
        )
        found: List[SandboxInfo] = []
        while True:
            answer = await transport.unary(request, scheduler_pb2.ListSandboxesResponse)
            found += [SandboxInfo._read(sandbox) for sandbox in answer.sandboxes]
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found


async def _info(transport: AsyncTransport, sandbox_id: str) -> SandboxInfo:
    request = scheduler_pb2.GetSandboxRequest(sandbox_id=sandbox_id)
    answer = await transport.unary(request, scheduler_pb2.GetSandboxResponse)
    return SandboxInfo._read(answer.sandbox)


async def release(sandbox: AsyncSandbox, error: Optional[BaseException]) -> None:
    """Releases at the end of a block. What ended the block is not hidden by a failure to release: the lease ends it."""
    try:
        await sandbox.kill()
    except Exception:
        if error is None:
            raise
