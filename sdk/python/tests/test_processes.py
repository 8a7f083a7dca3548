"""What happens to a process of ours: an interrupt, a fork. Each case is a program of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import program_environment

import cloud_sandbox

SYNC = """
import sys
from cloud_sandbox import Sandbox

sandbox = Sandbox.connect(sys.argv[1])
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

ASYNC = """
import asyncio, sys
from cloud_sandbox import AsyncSandbox

async def main():
    sandbox = await AsyncSandbox.connect(sys.argv[1])
    await {call}

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

FORK = """
import os, sys
from cloud_sandbox import Sandbox

sandbox = Sandbox.connect(sys.argv[1])
handle = sandbox.commands.run("sleep 600", background=True)
child = os.fork()
who = "child" if child == 0 else "parent"
for _ in range(3):
    assert sandbox.run_command(f"echo {who} >> log").ok
if child == 0:
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
print(sandbox.run_command("sort log | uniq -c | tr -s ' '").stdout)
handle.kill()
"""

POOL = """
import concurrent.futures, multiprocessing, sys
from cloud_sandbox import Sandbox, SandboxNotFoundError

sandbox = Sandbox.connect(sys.argv[1])

def work(number):
    return sandbox.run_command(f"echo {number}").stdout

def fail(_):
    Sandbox.connect("sb01arz3ndektsv4rrffq69g5fav")

context = multiprocessing.get_context("fork")
with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
    print("".join(pool.map(work, range(6))))
    try:
        list(pool.map(fail, [0]))
    except SandboxNotFoundError as error:
        print(error.reason)
"""

CALLS = [
    "sandbox.commands.run('sleep 600', timeout=600)",
    "sandbox.commands.run('echo x; sleep 600', timeout=600, on_stdout=lambda _: None)",
    "sandbox.run_code('while True: pass', timeout=600)",
]


def program(text: str, sandbox: cloud_sandbox.Sandbox, url: str) -> subprocess.Popen[str]:
    # what ignores interrupts, as a shell's background does, hands that on
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", text, sandbox.sandbox_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=program_environment(url),
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("face", [SYNC, ASYNC], ids=["sync", "async"])
def test_interrupt_stops_what_runs(face: str, call: str, url: str) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox:
        process = program(face.format(call=call), sandbox, url)
        end = time.monotonic() + 30
        while not sandbox.commands.list():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        assert (out, process.returncode) == ("interrupted\n", 0), error
        while sandbox.commands.list():
            assert time.monotonic() < end
            time.sleep(0.02)


def test_interrupt_while_waiting_for_the_background_leaves_it_running(url: str) -> None:
    call = "sandbox.commands.run('sleep 600', background=True).wait()"
    with cloud_sandbox.Sandbox.create() as sandbox:
        process = program(SYNC.format(call=call), sandbox, url)
        end = time.monotonic() + 30
        while not sandbox.commands.list():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        assert (out, process.returncode) == ("interrupted\n", 0), error
        assert [info.state for info in sandbox.commands.list()] == ["running"]


def test_fork_of_a_process_that_has_a_connection(url: str) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox:
        out, error = program(FORK, sandbox, url).communicate(timeout=60)
        assert out.split() == ["3", "child", "3", "parent"], error


def test_pool_of_forked_processes_uses_what_it_inherits(url: str, tmp_path: Path) -> None:
    with cloud_sandbox.Sandbox.create() as sandbox:
        out, error = program(POOL, sandbox, url).communicate(timeout=60)
        assert out.split() == [*"012345", "SANDBOX_NOT_FOUND"], error
