from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from faces import Face

import cloud_sandbox
from cloud_sandbox import CommandResult, SandboxGoneError, _junit

SUITE = """
import pytest, unittest

def test_good(): pass

class TestGroup:
    @pytest.mark.parametrize("x", [1, 2])
    def test_bad(self, x):
        assert x == 1, "not one"

@pytest.mark.skip(reason="later")
def test_later(): pass

@pytest.fixture
def broken(): raise RuntimeError("no fixture")

def test_broken(broken): pass
"""

UNITTEST = """
import unittest

class Math(unittest.TestCase):
    def test_good(self): pass
    def test_bad(self): self.assertEqual(1, 2)
    @unittest.skip("later")
    def test_later(self): pass
    def test_broken(self): raise RuntimeError("oops")
"""


def site_packages(folder: Path) -> Path:
    """A folder with pytest, which a sandbox's Python need not have."""
    for name in ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "exceptiongroup", "tomli"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin)
        if origin is not None and origin.name == "__init__.py":
            shutil.copytree(origin.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin is not None:
            folder.mkdir(exist_ok=True)
            shutil.copy(origin, folder)
    return folder


async def test_pytest_is_reported_test_by_test(face: Face, url: str, tmp_path: Path) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.upload_dir(site_packages(tmp_path / "site"), "/tmp/site")
        await sandbox.write_file("/workspace/test_it.py", SUITE)
        envs = {"PYTHONPATH": "/tmp/site", "PYTHONDONTWRITEBYTECODE": "1"}
        command = "python3 -m pytest -q -p no:cacheprovider"
        report = await sandbox.run_tests(command, envs=envs)
        assert (report.passed, report.failed, report.errors, report.skipped) == (2, 1, 1, 1)
        assert (report.source, report.ok, report.total) == ("junit", False, 5)
        bad, broken = report.failures
        assert (bad.name, bad.file, bad.status) == ("TestGroup.test_bad[2]", "test_it.py", "failed")
        assert SUITE.splitlines()[bad.line - 1].strip().startswith(("@pytest.mark.parametrize", "def test_bad"))
        assert "not one" in bad.message
        assert "assert 2 == 1" in bad.details
        assert (broken.name, broken.status) == ("test_broken", "error")
        assert "1 failed" in str(report)
        assert [file.name for file in await sandbox.list_files()] == ["test_it.py"]
        assert not await sandbox.files.list("/tmp", glob=".report-*")
        report = await sandbox.run_tests(f"{command} no_such_folder", envs=envs)
        assert not report.ok


async def test_unittest_is_read_from_its_output(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.write_file("/workspace/test_math.py", UNITTEST)
        report = await sandbox.run_tests("python3 -m unittest -q test_math")
        assert (report.passed, report.failed, report.errors, report.skipped) == (1, 1, 1, 1)
        assert report.source == "output"
        found = {test.name.rpartition(".")[2]: test for test in report.failures}
        assert found["test_bad"].message == "AssertionError: 1 != 2"
        assert found["test_bad"].file.endswith("test_math.py")
        assert UNITTEST.splitlines()[found["test_bad"].line - 1].strip().startswith("def test_bad")
        assert found["test_broken"].status == "error"


async def test_any_other_runner_counts_by_its_exit_code(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        assert (await sandbox.run_tests("true")).ok
        report = await sandbox.run_tests("echo broken; exit 1")
        assert (report.ok, report.source, report.result.stdout) == (False, "exit_code", "broken\n")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("FAILED a.py::T::test_x - assert 1\n1 failed, 2 passed, 3 skipped in 0.12s\n", (2, 1, 0, 3)),
        ("====== 4 passed, 1 warning in 1.00s ======\n", (4, 0, 0, 0)),
        ("ERROR b.py\n1 error in 0.01s\n", (0, 0, 1, 0)),
    ],
)
def test_summary_of_pytest_is_read_where_its_report_is_missing(text: str, counts: tuple[int, ...]) -> None:
    result = CommandResult("ex", stdout=text, exit_code=1)
    report = _junit.read_report(b"<broken", result)
    assert (report.passed, report.failed, report.errors, report.skipped) == counts
    assert report.source == "output"


def test_report_that_would_grow_without_bound_is_not_read() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxx">]><testsuites><testcase name="&x;"/></testsuites>'
    assert _junit.read_report(bomb, CommandResult("ex")).source == "exit_code"


@pytest.mark.parametrize(
    ("command", "is_pytest"),
    [
        ("pytest -q", True),
        (["python3", "-m", "pytest"], True),
        ("cd x && /usr/bin/pytest", True),
        ("go test ./...", False),
        ("echo 'unclosed", False),
    ],
)
def test_pytest_is_known_by_its_name(command: Any, is_pytest: bool) -> None:
    assert _junit.runs_pytest(command) is is_pytest


def test_many_snippets_run_apart_and_keep_their_order(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = [f"import os; print(os.listdir('/workspace')); open('/workspace/{i}', 'w'); {i} * 2" for i in range(6)]
    snippets.append("1/0")
    told: list[tuple[int, int]] = []
    outcomes = cloud_sandbox.run_many(snippets, concurrency=3, progress=lambda *step: told.append(step))
    assert [outcome.unwrap().text for outcome in outcomes[:6]] == [str(i * 2) for i in range(6)]
    assert {outcome.unwrap().stdout for outcome in outcomes[:6]} == {"[]\n"}
    assert not outcomes[6].ok
    assert told == [(i, 7) for i in range(1, 8)]
    assert cloud_sandbox.run_many([]) == []
    cloud_sandbox.run_many(["1", "1/0"], concurrency=1, progress=True)
    assert capsys.readouterr().err.endswith("] 2/2, 1 failed\n")


async def test_many_snippets_run_with_asyncio(url: str) -> None:
    async def prepare(sandbox: cloud_sandbox.AsyncSandbox, index: int) -> None:
        await sandbox.write_file("/workspace/in", str(index))

    outcomes = await cloud_sandbox.run_many_async(["open('/workspace/in').read()"] * 5, prepare=prepare)
    assert [outcome.unwrap().text for outcome in outcomes] == [f"'{i}'" for i in range(5)]
    (refused,) = await cloud_sandbox.run_many_async(["1"], template="none")
    with pytest.raises(cloud_sandbox.CloudSandboxError):
        refused.unwrap()


def test_interrupt_of_many_snippets_releases_their_sandboxes(url: str) -> None:
    def interrupt(sandbox: cloud_sandbox.Sandbox, index: int) -> None:
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cloud_sandbox.run_many(["import time; time.sleep(600)"] * 4, concurrency=2, prepare=interrupt, user_id="many")
    assert cloud_sandbox.Sandbox.list(user_id="many") == []


async def test_tools_do_what_a_model_asks_for(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        tools = face.SandboxTools(sandbox)
        assert (await tools.call("write_file", {"path": "/workspace/a.txt", "content": "hi"})).text.startswith(
            "wrote 2"
        )
        assert (await tools.call("read_file", '{"path": "/workspace/a.txt"}')).text == "hi"
        assert (await tools.call("list_files")).text == "/workspace/a.txt 2"
        assert (await tools.call("run_code", {"code": "print('a')\n6 * 7"})).text == "a\n42"
        failed = await tools.call("run_command", {"command": "echo no >&2; exit 3"})
        assert (failed.text, failed.is_error) == ("stderr:\nno\nexit code 3", True)
        broken = await tools.call("run_code", {"code": "1/0"})
        assert "ZeroDivisionError" in broken.text
        assert broken.is_error
        long = await face.SandboxTools(sandbox, max_chars=100).call("run_code", {"code": "print('x' * 1000)"})
        assert "characters left out" in long.text
        slow = await tools.call("run_command", {"command": "sleep 60", "timeout": 0.2})
        assert "timeout" in slow.text


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("rm", {}, "there is no tool 'rm'"),
        ("run_code", "{", "no JSON"),
        ("run_code", "[]", "an object"),
        ("run_code", {}, "code must be given"),
        ("run_code", {"code": 1}, "code must be a string"),
        ("run_code", {"code": "1", "language": "cobol"}, "must be one of python"),
        ("run_command", {"command": "true", "shell": "x"}, "shell is no argument"),
        ("run_command", {"command": "true", "timeout": "x"}, "timeout must be a number"),
        ("read_file", {"path": "/workspace/none"}, "none"),
        ("read_file", {"path": "relative"}, "path"),
    ],
)
async def test_what_a_model_does_wrong_is_said_to_it(
    face: Face, url: str, name: str, arguments: Any, says: str
) -> None:
    async with await face.Sandbox.create() as sandbox:
        answer = await face.SandboxTools(sandbox).call(name, arguments)
        assert answer.is_error
        assert says in answer.text


async def test_tool_calls_of_the_common_frameworks_are_answered(face: Face, url: str) -> None:
    class Call:
        id = "call_1"

        class function:
            name = "run_code"
            arguments = '{"code": "1 + 1"}'

    async with await face.Sandbox.create() as sandbox:
        tools = face.SandboxTools(sandbox)
        assert await tools.answer_openai(Call) == {"role": "tool", "tool_call_id": "call_1", "content": "2"}
        block = {"type": "tool_use", "id": "t1", "name": "run_command", "input": {"command": "exit 1"}}
        assert await tools.answer_anthropic(block) == {
            "type": "tool_result",
            "tool_use_id": "t1",
            "content": [{"type": "text", "text": "exit code 1"}],
            "is_error": True,
        }
        plot = "import matplotlib.pyplot as p; p.plot([1, 2]); p.show()"
        answer = await tools.answer_anthropic({"id": "t2", "name": "run_code", "input": {"code": plot}})
        assert answer["content"][-1]["source"]["media_type"] == "image/png"
        await sandbox.kill()
        with pytest.raises((SandboxGoneError, cloud_sandbox.SandboxNotFoundError)):
            await tools.call("run_code", {"code": "1"})


def test_schemas_of_tools_are_plain_dictionaries(url: str) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox:
        tools = cloud_sandbox.SandboxTools(sandbox)
        flat = [(tool["name"], tool["input_schema"]) for tool in tools.anthropic()]
        nested = [tool["function"] for tool in tools.openai()]
        assert flat == [(tool["name"], tool["parameters"]) for tool in nested]
        assert [tool["type"] for tool in tools.openai()] == ["function"] * len(flat)
        assert dict(flat)["run_code"]["required"] == ["code"]
        assert json.loads(json.dumps(nested)) == nested


async def test_metrics_tell_what_is_taken_and_what_may_be(face: Face, url: str) -> None:
    async with await face.Sandbox.create(limits={"memory_bytes": 2**28, "pids": 64}) as sandbox:
        before = await sandbox.metrics()
        assert before.memory_limit_bytes == 2**28
        await sandbox.commands.run(["sleep", "600"], background=True)
        await sandbox.commands.run("head -c 3000000 /dev/zero > file")
        after = await sandbox.metrics()
        assert after.processes == before.processes + 1
        assert after.disk_bytes - before.disk_bytes >= 3_000_000
        assert 0 < after.memory_bytes < 2**28


async def test_usage_is_told_by_the_node_also_of_a_sandbox_that_stands_still(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        before = await sandbox.usage()
        await sandbox.commands.run("head -c 3000000 /dev/zero > file")
        after = await sandbox.usage()
        assert after.disk_bytes is not None
        assert before.disk_bytes is not None
        assert after.disk_bytes - before.disk_bytes >= 3_000_000
        assert after.memory_bytes is None or after.memory_bytes > 3_000_000
        assert (after.oom_kills or 0, after.pids_refused or 0, after.connections_denied) == (0, 0, 0)


async def test_limits_are_told_as_they_are_and_as_what_was_run_into(face: Face, url: str) -> None:
    limits = {"disk_bytes": 2**21, "open_files": 100, "execution_seconds": 60, "output_bytes": 2**16, "cpu_weight": 50}
    async with await face.Sandbox.create(limits=limits) as sandbox:
        told = sandbox.info.limits
        assert {name: getattr(told, name) for name in limits} == limits
        result = await sandbox.commands.run("ulimit -n; head -c 4M /dev/zero > file")
        assert (result.stdout, result.disk_limit, result.pids_limit) == ("100\n", True, False)
        assert "disk_limit" in repr(result)
        with pytest.raises(cloud_sandbox.ExecutionError, match="the disk is full"):
            result.check()
        with pytest.raises(cloud_sandbox.InvalidArgumentError, match="execution_seconds is 60"):
            await sandbox.commands.run("true", timeout=61)


def test_results_show_in_a_notebook_and_in_a_repl(url: str) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox:
        code = "print('<b>'); import matplotlib.pyplot as p; p.plot([1, 2]); p.show()\n{'a': 1}"
        execution = sandbox.run_code(code)
        page = execution._repr_html_()
        assert "&lt;b&gt;" in page
        assert "data:image/png;base64," in page
        bundle = execution.results[0]._repr_mimebundle_()
        assert bundle["image/png"].startswith("iVBORw0")
        assert repr(execution).startswith("Execution(exit_code=0, stdout='<b>'")
        assert "results=[Result(text, png: " in repr(execution)
        assert execution.results[0].formats() == ["text", "png"]
        assert execution.results[0].png is not None
        failed = sandbox.run_code("raise ValueError('<i>')")
        assert "ValueError: &lt;i&gt;" in failed._repr_html_()
        assert "<i>" not in failed._repr_html_()
        html = "class Page:\n    def _repr_html_(self): return '<script>alert(1)</script>'\nPage()"
        shown = sandbox.run_code(html)
        assert shown.results[0].html == "<script>alert(1)</script>"
        assert "<iframe sandbox srcdoc=" in shown._repr_html_()
