"""Many snippets over a pool of sandboxes."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Callable, Optional

from .._models import LimitsLike
from .._network import NetworkLike
from .._progress import Outcome, Progress, ProgressLike
from ..errors import CloudSandboxError, InvalidArgumentError
from ._client import AsyncClient
from ._io import each
from ._sandbox import AsyncSandbox

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._connection import Connection

Prepare = Callable[[AsyncSandbox, int], Awaitable[object]]
# a sandbox has to outlive what runs in it, in seconds
LEASE_MARGIN = 120.0


async def run_many(
    snippets: Iterable[str],
    *,
    concurrency: int = 8,
    language: Optional[str] = None,
    timeout: float = 60.0,
    template: Optional[str] = None,
    envs: Optional[Mapping[str, str]] = None,
    network: Optional[NetworkLike] = None,
    limits: Optional[LimitsLike] = None,
    prepare: Optional[Prepare] = None,
    progress: ProgressLike = False,
    client: Optional[AsyncClient] = None,
    **connection: Unpack[Connection],
) -> list[Outcome]:
    """Runs each snippet in a sandbox of its own, so many at once; none sees another.

    Args:
        snippets: the sources.
        concurrency: how many sandboxes there are at once, at most.
        language: the language of all. Default: `python`.
        timeout: seconds after which each is ended.
        template: what the sandboxes are made from.
        envs: environment of everything run in them.
        network: what of the network they see. Default: nothing.
        limits: limits other than the template's.
        prepare: is called with each sandbox and the snippet's place before it runs, to write files for example.
        progress: show a bar on standard error; or a function that is called with how many are done and of how many.
        client: the connection to use, instead of keywords that name one.
        **connection: the server and the caller: see `Connection`.

    Returns:
        What became of each, in the order of the snippets. One that fails does not stop the others.
    """
    if concurrency < 1:
        raise InvalidArgumentError.of("concurrency", f"must be at least 1, not {concurrency!r}")
    sources = list(snippets)
    bar = Progress(len(sources), progress)
    live: set[AsyncSandbox] = set()
    stopping: list[bool] = []

    async def one(index: int) -> Outcome:
        try:
            sandbox = await AsyncSandbox.create(
                template,
                timeout=timeout + LEASE_MARGIN,
                envs=envs,
                network=network,
                limits=limits,
                client=client,
                **connection,
            )
            live.add(sandbox)
            try:
                async with sandbox:
                    if stopping:  # while it was being acquired
                        return Outcome(index)
                    if prepare is not None:
                        await prepare(sandbox, index)
                    execution = await sandbox.run_code(sources[index], language=language, timeout=timeout)
            finally:
                live.discard(sandbox)
            outcome = Outcome(index, execution)
        except CloudSandboxError as error:
            outcome = Outcome(index, error=error)
        bar.add(outcome)
        return outcome

    async def stop() -> None:
        stopping.append(True)
        for sandbox in list(live):
            await sandbox.kill()

    def later(index: int) -> Callable[[], Awaitable[Outcome]]:
        return lambda: one(index)

    return await each([later(index) for index in range(len(sources))], concurrency, stop)
