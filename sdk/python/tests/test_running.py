from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faces import Face

from cloud_sandbox import ExecutionError, ExecutionTimeoutError, LanguageUnavailableError, Output


async def test_quick_start_works_as_written(face: Face, url: str) -> None:
    async with await face.Sandbox.create(base_url=url, user_id="my-user") as sandbox:
        result = await sandbox.run_code("print('Hello, Cloud Sandbox!')")
        assert result.stdout == "Hello, Cloud Sandbox!\n"
        result = await sandbox.run_command("ls -la /workspace")
        assert result.ok
        await sandbox.write_file("/workspace/test.py", "x = 42")
        files = await sandbox.list_files("/workspace")
        assert [file.name for file in files] == ["test.py"]


async def test_variables_live_in_the_default_context(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.run_code("x = 41")
        result = await sandbox.run_code("print('said'); x + 1")
        assert (result.text, result.logs.stdout) == ("42", ["said\n"])
        apart = await sandbox.run_code("print(x)", context=None)
        assert apart.exit_code == 1
        assert "NameError" in apart.stderr


async def test_error_of_the_code_is_a_result_and_raised_on_request(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        result = await sandbox.run_code("1/0")
        assert result.error.name == "ZeroDivisionError"
        assert "1/0" in result.error.traceback
        with pytest.raises(ExecutionError, match="ZeroDivisionError: division by zero") as caught:
            await sandbox.run_code("1/0", check=True)
        assert caught.value.result.exit_code == 1


async def test_context_of_its_own_keeps_its_variables_apart(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        context = await sandbox.create_code_context(envs={"NAME": "ada"})
        await sandbox.run_code("import os; x = os.environ['NAME']", context=context)
        assert (await sandbox.run_code("x", context=context)).text == "'ada'"
        assert (await sandbox.run_code("x")).error.name == "NameError"
        assert context.context_id in [each.context_id for each in await sandbox.list_code_contexts()]
        await sandbox.restart_code_context(context)
        assert (await sandbox.run_code("x", context=context.context_id)).error.name == "NameError"
        assert (await sandbox.get_code_context(context)).restarts == 1
        assert await sandbox.interrupt_code_context(context)
        assert await sandbox.remove_code_context(context)
        assert not await sandbox.remove_code_context(context)


async def test_javascript_has_a_context_and_shell_code_a_process(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.run_code("let y = 20", language="javascript")
        assert (await sandbox.run_code("y + 1", language="javascript")).text == "21"
        assert (await sandbox.run_code("echo $((1 + 1))", language="bash")).stdout == "2\n"


async def test_callbacks_get_what_comes_as_it_comes(face: Face, url: str) -> None:
    code = "import sys, time\nprint('out', flush=True)\ntime.sleep(0.2)\nprint('err', file=sys.stderr)\ndisplay(6)\n7"
    heard: list[tuple[str, str]] = []

    async with await face.Sandbox.create() as sandbox:
        result = await sandbox.run_code(
            code,
            on_stdout=lambda piece: heard.append(("stdout", piece.text)),
            on_stderr=lambda piece: heard.append(("stderr", piece.text)),
            on_result=lambda result: heard.append(("result", result.text)),
        )
        assert heard == [("stdout", "out\n"), ("stderr", "err\n"), ("result", "6"), ("result", "7")]
        assert (result.text, result.stdout, result.stderr) == ("7", "out\n", "err\n")
        failures: list[Any] = []
        await sandbox.run_code("1/0", on_error=failures.append)
        assert failures[0].name == "ZeroDivisionError"


async def test_coroutine_functions_are_awaited_as_callbacks(url: str) -> None:
    heard: list[str] = []

    async def hear(piece: Output) -> None:
        await asyncio.sleep(0)
        heard.append(piece.text)

    async with await Face("async").Sandbox.create() as sandbox:
        await sandbox.commands.run("echo heard", on_stdout=hear)
    assert heard == ["heard\n"]


async def test_command_tells_how_it_ended(face: Face, url: str) -> None:
    async with await face.Sandbox.create(envs={"A": "1"}) as sandbox:
        result = await sandbox.commands.run("echo $A $B; echo oops >&2; exit 3", envs={"B": "2"}, cwd="/tmp")
        assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("1 2\n", "oops\n", 3, False)
        with pytest.raises(ExecutionError, match="exited with 3: oops"):
            result.check()
        assert (await sandbox.commands.run(["printf", "%s", "a b"])).stdout == "a b"
        with pytest.raises(LanguageUnavailableError, match="no-such-program"):
            await sandbox.commands.run(["no-such-program"])


async def test_timeout_kills_and_keeps_what_was_printed(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        result = await sandbox.commands.run("echo begun; sleep 60", timeout=5)
        assert (result.timed_out, result.stdout, result.ok) == (True, "begun\n", False)
        with pytest.raises(ExecutionTimeoutError) as caught:
            await sandbox.commands.run("sleep 60", timeout=0.2, check=True)
        assert isinstance(caught.value, TimeoutError)


async def test_input_of_any_length_and_of_any_bytes(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        assert (await sandbox.commands.run("cat", stdin="short\n")).stdout == "short\n"
        assert (await sandbox.commands.run("od -An -tx1", stdin=b"\xff\x00")).stdout.split() == ["ff", "00"]
        assert (await sandbox.commands.run("wc -c", stdin=b"x" * 3_000_000)).stdout.strip() == "3000000"


async def test_changes_are_reported(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        result = await sandbox.commands.run("echo new > /workspace/new.txt", changes=True)
        assert [(change.path, change.type) for change in result.changes] == [("/workspace/new.txt", "created")]
        assert "+new" in result.changes[0].diff


async def test_same_request_id_runs_once(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        runs = [await sandbox.commands.run("echo $RANDOM | tee -a log", request_id="once") for _ in range(2)]
        assert runs[0].execution_id == runs[1].execution_id
        assert (await sandbox.read_file("/workspace/log")) == runs[0].stdout
