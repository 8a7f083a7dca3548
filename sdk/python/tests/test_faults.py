from __future__ import annotations

import asyncio
import io
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from faces import Face
from relays import Relay
from server import Server

import cloud_sandbox
from cloud_sandbox import (
    CloudSandboxError,
    OutcomeUnknownError,
    RateLimitError,
    SandboxGoneError,
    SandboxNotFoundError,
    _retry,
)

# goes on when it is told to
COUNT = "for i in 1 2 3 4; do seq 100; until [ -e go-$i ]; do sleep 0.02; done; done"


@pytest.fixture
def relay(url: str) -> Iterator[Relay]:
    """A connection to the server that can be broken."""
    relay = Relay(int(url.rpartition(":")[2]))
    yield relay
    relay.close()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


async def test_stream_that_breaks_goes_on_where_it_stopped(face: Face, relay: Relay, url: str) -> None:
    block = "".join(f"{i}\n" for i in range(1, 101))
    heard = ""
    cuts = 0

    def hear(piece: Any) -> None:
        nonlocal heard, cuts
        assert piece.offset == len(heard)
        heard += piece.text
        if len(heard) == len(block) * (cuts + 1):
            cuts += 1
            relay.cut()
            # by a connection that is not cut
            direct.write_file(f"/workspace/go-{cuts}", "")

    async with await face.Sandbox.create(base_url=relay.url) as sandbox:
        with cloud_sandbox.Sandbox.connect(sandbox.sandbox_id, base_url=url) as direct:
            result = await sandbox.commands.run(COUNT, on_stdout=hear)
        assert result.stdout == heard == block * 4
        assert cuts == 4
        assert relay.connections > cuts


async def test_results_are_told_once_when_their_stream_breaks(face: Face, relay: Relay) -> None:
    code = "import time\nprint('begun', flush=True)\nfor i in range(4):\n    display(i); time.sleep(0.05)"
    results: list[str] = []

    def hear(result: Any) -> None:
        results.append(result.text)
        relay.cut()

    async with await face.Sandbox.create(base_url=relay.url) as sandbox:
        result = await sandbox.run_code(code, on_result=hear)
        assert results == ["0", "1", "2", "3"]
        assert [each.text for each in result.results] == results


async def test_create_and_run_whose_answers_are_lost_happen_once(face: Face, relay: Relay) -> None:
    client = face.Client(relay.url, user_id=f"lost-{face.name}")
    await client.stats()
    relay.swallow_answer.set()
    sandbox = await face.Sandbox.create(client=client)
    assert relay.swallowed.is_set()
    assert [info.sandbox_id for info in await face.Sandbox.list(client=client)] == [sandbox.sandbox_id]
    relay.swallowed.clear()
    relay.swallow_answer.set()
    await sandbox.commands.run("echo once >> log; sleep 0.3")
    assert relay.swallowed.is_set()
    assert await sandbox.read_file("/workspace/log") == "once\n"
    await sandbox.kill()
    await client.close()


async def test_download_that_breaks_goes_on_and_a_call_that_is_not_safe_does_not(face: Face, relay: Relay) -> None:
    content = bytes(range(256)) * 80_000
    async with await face.Sandbox.create(base_url=relay.url) as sandbox:
        await sandbox.files.write("/workspace/f", content)
        pieces: list[bytes] = []
        async for piece in await sandbox.files.read("/workspace/f", format="stream"):
            pieces.append(piece)
            if len(pieces) == 3:
                relay.cut()
        assert b"".join(pieces) == content
        await sandbox.get_info()
        relay.swallow_answer.set()
        with pytest.raises(cloud_sandbox.ServiceConnectionError):
            await sandbox.files.write("/workspace/f", "more", append=True)


async def test_upload_that_breaks_is_begun_again_where_that_can_be_done(face: Face, relay: Relay) -> None:
    content = bytes(range(256)) * 40_000
    async with await face.Sandbox.create(base_url=relay.url) as sandbox:

        def cut_once(through: int, total: Any) -> None:
            if through > 1_000_000 and not cuts:
                cuts.append(through)
                relay.cut()

        cuts: list[int] = []
        source = io.BytesIO(b"head" + content)
        source.seek(4)
        info = await sandbox.files.upload(source, "/workspace/f", progress=cut_once)
        assert (info.size, len(cuts)) == (len(content), 1)
        assert await sandbox.files.read("/workspace/f", format="bytes") == content

        def pieces() -> Iterator[bytes]:
            yield content
            relay.cut()
            yield content

        with pytest.raises(cloud_sandbox.ServiceConnectionError):
            await sandbox.files.write("/workspace/g", pieces())
        assert not await sandbox.files.exists("/workspace/g")


async def test_server_that_is_restarted_under_a_stream_leaves_an_unknown_outcome(
    face: Face, own_server: Server
) -> None:
    sandbox = await face.Sandbox.create(base_url=own_server.url)
    handle = await sandbox.commands.run("echo begun; sleep 600", background=True)

    heard = []

    async def listen() -> None:
        async for piece in handle:
            heard.append(piece.text)
            own_server.kill()
            own_server.start()

    with pytest.raises(OutcomeUnknownError):
        await listen()
    assert heard == ["begun\n"]
    # the client has found the server again; the sandbox has gone with the node
    with pytest.raises(SandboxNotFoundError):
        await sandbox.run_command("true")
    async with await face.Sandbox.create(base_url=own_server.url) as other:
        assert (await other.run_command("echo back")).stdout == "back\n"


async def test_server_that_is_away_for_a_moment_is_waited_for(
    face: Face, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a busy machine it takes its time to start
    monkeypatch.setattr(_retry, "BACKOFF", (*_retry.BACKOFF, *[2.0] * 20))
    client = face.Client(own_server.url, user_id="ada")
    await client.stats()
    own_server.kill()
    with ThreadPoolExecutor() as pool:
        started = pool.submit(own_server.start)
        assert (await client.stats())["capacity"] == 16
        started.result()
    await client.close()


async def test_rate_limit_is_waited_out_and_said_when_it_is_too_long(face: Face, tmp_path: Any) -> None:
    server = Server(tmp_path, RATE_LIMIT_PER_SECOND="1", RATE_LIMIT_BURST="1")
    try:
        client = face.Client(server.url, user_id="ada")
        for _ in range(4):
            await client.stats()
        # less than the wait, and more than most calls take
        hasty = face.Client(server.url, user_id="grace", request_timeout=0.9)

        async def hurry() -> None:
            for _ in range(50):
                with suppress(cloud_sandbox.CallTimeoutError):
                    await hasty.stats()

        with pytest.raises(RateLimitError) as caught:
            await hurry()
        assert (caught.value.retry_after or 0) > 0
        await client.close()
        await hasty.close()
    finally:
        server.stop()


async def test_sandbox_whose_lease_is_over_is_gone(face: Face, url: str) -> None:
    sandbox = await face.Sandbox.create()
    ended_before = await sandbox.run_command("echo said")
    await sandbox.set_timeout(1)

    async def ended() -> bool:
        return not await sandbox.is_running()

    await until(ended)
    with pytest.raises(SandboxGoneError):
        await sandbox.run_command("true")
    # what was printed outlives it for a while
    handle = await sandbox.commands.connect(ended_before.execution_id)
    assert await handle.read_output() == b"said\n"
    await sandbox.kill()
    assert not await sandbox.kill()


async def test_leaving_the_block_by_an_exception_releases(face: Face, url: str) -> None:
    sandbox = await face.Sandbox.create()
    with pytest.raises(ZeroDivisionError):
        async with sandbox:
            raise ZeroDivisionError
    with pytest.raises(SandboxNotFoundError):
        await face.Sandbox.connect(sandbox.sandbox_id)


async def test_exception_of_a_callback_ends_what_runs(face: Face, url: str) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    async with await face.Sandbox.create() as sandbox:
        with pytest.raises(ZeroDivisionError):
            await sandbox.commands.run("echo begun; sleep 600", on_stdout=fail)
        await until(lambda: idle(sandbox))


async def idle(sandbox: Any) -> bool:
    return not await sandbox.commands.list()


@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_a_task_stops_the_work_on_the_server(url: str, streamed: bool) -> None:
    async with await cloud_sandbox.AsyncSandbox.create() as sandbox:
        hear = (lambda _: None) if streamed else None
        task = asyncio.ensure_future(sandbox.commands.run("sleep 600", timeout=600, on_stdout=hear))

        async def runs() -> bool:
            return bool(await sandbox.commands.list())

        await until(runs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: idle(sandbox))
        await sandbox.run_code("x = 1")
        endless = "print('begun', flush=True)\nwhile True: pass"
        code = asyncio.ensure_future(sandbox.run_code(endless, timeout=600, on_stdout=hear))

        async def begun() -> bool:
            return any(info.stdout_bytes for info in await sandbox.commands.list())

        await until(begun)
        code.cancel()
        with pytest.raises(asyncio.CancelledError):
            await code
        # the interpreter is interrupted, and its variables are there
        assert (await sandbox.run_code("x")).text == "1"


async def test_cancelling_the_release_of_a_block_releases(url: str) -> None:
    found: list[Any] = []

    async def work() -> None:
        async with await cloud_sandbox.AsyncSandbox.create() as sandbox:
            found.append(sandbox)
            await asyncio.sleep(600)

    task = asyncio.ensure_future(work())

    async def made() -> bool:
        return bool(found)

    await until(made)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await found[0].is_running()


async def test_threads_share_a_sandbox(url: str) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox, ThreadPoolExecutor(8) as pool:
        said = pool.map(lambda i: sandbox.run_command(f"echo {i}").stdout, range(24))
        assert list(said) == [f"{i}\n" for i in range(24)]


async def test_one_object_serves_event_loops_after_one_another(url: str) -> None:
    def apart(work: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(work())).result()

    sandbox = apart(cloud_sandbox.AsyncSandbox.create)
    assert apart(lambda: sandbox.run_command("echo again")).stdout == "again\n"
    assert apart(sandbox.kill)


async def test_output_of_a_gibibyte_is_cut_and_said_to_be(face: Face, url: str) -> None:
    total = 1 << 30
    async with await face.Sandbox.create() as sandbox:
        command = f"head -c {total} /dev/zero; echo end >&2"
        result = await sandbox.commands.run(command, timeout=300, max_output_bytes=1000)
        assert (len(result.stdout), result.stdout_bytes, result.stdout_truncated) == (1000, total, True)
        assert (result.stderr, result.stderr_truncated) == ("end\n", False)


async def test_output_of_any_length_passes_in_little_memory(face: Face, url: str) -> None:
    total = 1 << 27
    heard = 0

    def hear(piece: Any) -> None:
        nonlocal heard
        assert piece.offset == heard
        heard += len(piece.data)

    async with await face.Sandbox.create() as sandbox:
        await sandbox.run_command("true")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await sandbox.commands.run(f"head -c {total} /dev/zero", timeout=300, on_stdout=hear)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert (heard, result.stdout_bytes, len(result.stdout)) == (total, total, 1 << 20)
        assert result.stdout_truncated
        assert grown < 64 * 1024  # KiB


async def test_bytes_that_are_no_text_arrive_as_they_are(face: Face, url: str) -> None:
    pieces: list[bytes] = []
    async with await face.Sandbox.create() as sandbox:
        command = r"printf 'a\377\376b'"
        result = await sandbox.commands.run(command, on_stdout=lambda piece: pieces.append(piece.data))
        assert b"".join(pieces) == b"a\xff\xfeb"
        assert result.stdout == "a\ufffd\ufffdb"
        assert (await sandbox.commands.run(command)).stdout == "a\ufffd\ufffdb"


async def test_rules_of_the_server_come_with_their_fields(face: Face, url: str) -> None:
    with pytest.raises(cloud_sandbox.InvalidArgumentError) as caught:
        await face.Sandbox.create(limits={"pids": 1})
    assert list(caught.value.fields) == ["limits.pids"]
    assert isinstance(caught.value, ValueError)
    for bad in ({"timeout": 0}, {"timeout": 10**9}, {"network": "all"}, {"limits": {"ram": 1}}):
        with pytest.raises(cloud_sandbox.InvalidArgumentError):
            await face.Sandbox.create(**bad)
    with pytest.raises(CloudSandboxError):
        await face.Sandbox.create(template="no-such-template")
