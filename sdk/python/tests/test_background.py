from __future__ import annotations

import pytest
from faces import Face

from cloud_sandbox import CallTimeoutError, ExecutionNotFoundError, InvalidArgumentError, StateError


async def test_handle_takes_input_and_gives_output(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        handle = await sandbox.commands.run("while read line; do echo got $line; done", background=True)
        await handle.send_stdin("one\n")
        heard = []
        async for piece in handle:
            heard.append(piece.text)
            if len(heard) == 1:
                await handle.send_stdin(b"two\n")
                await handle.close_stdin()
        assert "".join(heard) == "got one\ngot two\n"
        result = await handle.wait()
        assert (result.exit_code, result.stdout) == (0, "got one\ngot two\n")
        with pytest.raises(StateError):
            await handle.send_stdin("late")


async def test_running_ones_are_listed_found_and_killed(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        handle = await sandbox.commands.run("echo ready; exec sleep 600", background=True, tag="sleeper")
        async for piece in handle:
            assert piece.text == "ready\n"
            break
        listed = await sandbox.commands.list(tag="sleeper")
        assert [info.execution_id for info in listed] == [handle.execution_id]
        found = await sandbox.commands.connect(listed[0].pid)
        assert found.execution_id == handle.execution_id
        assert (await found.status()).state == "running"
        assert await sandbox.commands.kill(handle.execution_id)
        result = await found.wait()
        assert (result.signal, result.stdout) == ("SIGKILL", "ready\n")
        assert not await handle.kill()
        assert not await sandbox.commands.kill(listed[0].pid)
        assert [info.exit_code for info in await sandbox.commands.list(state=None)] == [137]
        with pytest.raises(ExecutionNotFoundError):
            await sandbox.commands.connect(listed[0].pid)


async def test_waiting_ends_at_its_timeout_and_the_process_goes_on(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        handle = await sandbox.commands.run("read line; echo $line", background=True)
        with pytest.raises(CallTimeoutError):
            await handle.wait(timeout=0.3)
        await handle.send_stdin("still here\n")
        assert (await handle.wait()).stdout == "still here\n"


async def test_what_was_printed_is_read_and_searched_again(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        result = await sandbox.commands.run("seq 1 100000; echo error: none >&2")
        handle = await sandbox.commands.connect(result.execution_id)
        assert await handle.read_output() == "".join(f"{i}\n" for i in range(1, 100001)).encode()
        assert await handle.read_output(offset=2, limit=4) == b"2\n3\n"
        assert await handle.read_output("stderr") == b"error: none\n"
        matches = await handle.grep("^777$", context_lines=1)
        assert [(match.line_number, match.before, match.after) for match in matches] == [(777, ["776"], ["778"])]


async def test_callbacks_in_the_background_are_refused_by_name(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        with pytest.raises(InvalidArgumentError) as caught:
            await sandbox.commands.run("true", background=True, on_stdout=print)
        assert "on_stdout" in caught.value.fields


async def test_terminal_types_shows_and_resizes(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        terminal = await sandbox.pty.create(["bash", "--norc"], rows=30, cols=100, envs={"PS1": "$ "})
        await terminal.send_stdin("stty size\n")
        shown = ""
        async for piece in terminal:
            shown += piece.text
            if "30 100" in shown:
                break
        await terminal.resize(40, 120)
        await terminal.send_stdin("stty size; echo $TERM; exit 4\n")
        again = await sandbox.pty.connect(terminal.execution_id)
        result = await again.wait()
        assert "40 120" in result.stdout
        assert "xterm-256color" in result.stdout
        assert result.exit_code == 4
        plain = await sandbox.commands.run("true")
        with pytest.raises(ExecutionNotFoundError, match="has no terminal"):
            await sandbox.pty.connect(plain.execution_id)


async def test_web_server_in_the_background_answers_a_second_command(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.write_file("/workspace/index.html", "<h1>hello</h1>")
        server = await sandbox.commands.run(["python3", "-u", "-m", "http.server", "8000"], background=True)
        async for piece in server:
            if "Serving" in piece.text:
                break
        ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000').read().decode())"
        assert (await sandbox.run_code(ask, context=None)).stdout == "<h1>hello</h1>\n"
        assert await server.kill()
