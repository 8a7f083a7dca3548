from __future__ import annotations

import pytest
from faces import Face

from cloud_sandbox import SandboxPausedError, SessionNotFoundError, StateError


async def test_session_keeps_its_work_over_a_pause(face: Face, url: str) -> None:
    session = await face.Session.create(metadata={"face": face.name}, envs={"A": "1"})
    await session.run_code("x = 41")
    await session.write_file("/workspace/f.txt", "kept")
    handle = await session.commands.run("sleep 600", background=True, tag="sleeper")
    assert [info.tag for info in await session.commands.list()] == ["sleeper"]
    info = await session.pause("checkpointed")
    assert (info.state, info.pause_depth, info.sandbox_id) == ("paused", "checkpointed", "")
    with pytest.raises(StateError):
        await session.run_code("x")
    again = await face.Session.get(session.session_id)
    info = await again.resume(restart_commands=True)
    manifest = info.resume_manifest
    assert manifest.depth == "checkpointed"
    assert manifest.files >= 1
    assert [command.execution_id for command in manifest.commands] == [handle.execution_id]
    assert manifest.commands[0].restarted_as
    assert "x" in [name for context in manifest.contexts for name in context.variables]
    assert (await again.run_code("x + 1")).text == "42"
    assert (await again.run_command("cat f.txt; echo $A")).stdout == "kept1\n"
    assert (await again.metrics()).memory_limit_bytes > 0
    assert await again.delete()
    assert not await again.kill()
    with pytest.raises(SessionNotFoundError):
        await face.Session.get(session.session_id)


async def test_frozen_session_goes_on_where_it_stopped(face: Face, url: str) -> None:
    session = await face.Session.create()
    handle = await session.commands.run("read line; echo got $line", background=True)
    assert (await session.pause("frozen")).pause_depth == "frozen"
    with pytest.raises((SandboxPausedError, StateError)):
        await session.run_command("true")
    await session.resume()
    await handle.send_stdin("it\n")
    assert (await handle.wait()).stdout == "got it\n"
    await session.delete()


async def test_checkpoints_forks_and_events(face: Face, url: str) -> None:
    session = await face.Session.create()
    await session.write_file("/workspace/f", "first")
    first = await session.checkpoint()
    await session.write_file("/workspace/f", "second")
    fork = await session.fork(first.checkpoint_id, metadata={"of": "first"})
    assert await fork.read_file("/workspace/f") == "first"
    assert (fork.info.forked_from, fork.info.metadata) == (session.session_id, {"of": "first"})
    assert await session.read_file("/workspace/f") == "second"
    assert first.checkpoint_id in [checkpoint.checkpoint_id for checkpoint in await session.checkpoints()]
    events = await session.events()
    kinds = [event.kind for event in events]
    assert kinds[0] == "created"
    assert "checkpointed" in kinds
    assert await session.events(after=events[-1].sequence) == []
    await fork.delete()
    await session.delete()


async def test_sessions_are_listed_and_updated(face: Face, url: str) -> None:
    owner = {"user_id": f"owner-{face.name}"}
    first = await face.Session.create(metadata={"n": "1"}, **owner)
    second = await face.Session.create(metadata={"n": "2"}, idle_timeout=60, on_timeout="delete", **owner)
    listed = await face.Session.list(newest_first=True, **owner)
    assert [info.session_id for info in listed] == [second.session_id, first.session_id]
    listed = await face.Session.list(metadata={"n": "1"}, state="running", **owner)
    assert [info.session_id for info in listed] == [first.session_id]
    assert (second.info.idle_timeout_seconds, second.info.on_timeout) == (60, "delete")
    info = await second.update(
        metadata={"m": "3"}, remove_metadata=["n"], idle_timeout=0, on_timeout="pause", auto_resume=True
    )
    assert (info.metadata, info.idle_timeout_seconds, info.on_timeout) == ({"m": "3"}, 0, "pause")
    assert info.auto_resume
    assert (await second.set_timeout(120)).timeout_seconds == 120
    await second.pause("checkpointed")
    # a use of it resumes it
    assert (await second.run_command("echo awake")).stdout == "awake\n"
    assert (await second.get_info()).state == "running"
    for session in (first, second):
        await session.delete()


async def test_block_of_a_session_pauses_it(face: Face, url: str) -> None:
    async with await face.Session.create() as session:
        await session.write_file("/workspace/f", "kept")
    assert (await session.get_info()).state == "paused"
    await session.resume()
    assert await session.read_file("/workspace/f") == "kept"
    async with session:
        await session.delete()
