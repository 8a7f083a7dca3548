"""Speaks with a kernel as the node does: over a socketpair on descriptor 3, with pipes for the output."""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any, NamedTuple

CONTEXTS = Path(__file__).resolve().parents[2] / "crates/node/src/contexts"
Message = dict[str, Any]
# What the node puts in the place of its import, as `kernels.rs` does.
INCLUDED = re.compile(r"^from python_format import .*$", re.MULTILINE)
PATIENCE = 30.0


class Kernel:
    """A running interpreter; its output is read all the time, as the node reads it."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None, cwd: str | None = None) -> None:
        self.control, theirs = socket.socketpair()
        start = [sys.executable, "-c", LAUNCH, str(theirs.fileno()), *command]
        self.process = subprocess.Popen(
            start,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
        )
        theirs.close()
        self.rest = b""
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.readers = [
            threading.Thread(target=self.drain, args=(name, getattr(self.process, name)), daemon=True)
            for name in self.output
        ]
        for reader in self.readers:
            reader.start()

    def drain(self, name: str, pipe: Any) -> None:
        while chunk := os.read(pipe.fileno(), 1 << 20):
            self.output[name] += chunk

    def send(self, document: object) -> None:
        self.send_line(json.dumps(document).encode())

    def send_line(self, line: bytes) -> None:
        self.control.sendall(line + b"\n")

    def receive(self, timeout: float = PATIENCE) -> Message | None:
        """The next message, or none at the end of the channel."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.control], [], [], left)[0]:
                raise TimeoutError("the kernel says nothing")
            try:
                chunk = self.control.recv(1 << 20)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        if len(line) > 12 << 20:
            raise AssertionError(f"a line of {len(line)} bytes")
        message: Message = json.loads(line.decode("utf-8", "strict"))
        return message

    def interrupt(self, by_signal: bool = True, by_message: bool = True) -> None:
        if by_signal:
            os.killpg(self.process.pid, signal.SIGINT)
        if by_message:
            self.send({"op": "interrupt"})

    def close(self) -> int:
        """Hangs up, and waits for the end."""
        self.control.close()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        return code

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.control.close()
        for reader in self.readers:
            reader.join(PATIENCE)
        for name in self.output:
            getattr(self.process, name).close()


# Puts the socket on descriptor 3, and becomes the interpreter.
LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.closerange(4, 64); os.execvp(sys.argv[2], sys.argv[2:])"


class Outcome(NamedTuple):
    results: list[Message]
    error: Message | None
    exit_code: int

    @property
    def main(self) -> dict[str, str] | None:
        """The representations of the last expression."""
        found = [result["data"] for result in self.results if result["main"]]
        return found[0] if found else None

    @property
    def text(self) -> str | None:
        return self.main["text/plain"] if self.main is not None else None

    @property
    def displays(self) -> list[dict[str, str]]:
        return [result["data"] for result in self.results if not result["main"]]


class KernelTest(unittest.TestCase):
    """One kernel a test."""

    command: list[str] = []
    environment: dict[str, str] = {}
    ready: Message
    kernel: Kernel

    def setUp(self) -> None:
        self.number = 0
        self.kernel = self.start()

    def start(self, cwd: str | None = None) -> Kernel:
        kernel = Kernel(self.command, self.environment, cwd)
        self.addCleanup(kernel.kill)
        ready = kernel.receive()
        assert ready is not None
        self.ready = ready
        return kernel

    def begin(self, code: str, **fields: object) -> str:
        self.kernel.send(self.request(code, **fields))
        return f"e{self.number}"

    def begin_interrupted(self, code: str) -> str:
        """The interrupt comes with the cell, in one piece."""
        self.kernel.send_line(
            b"\n".join([json.dumps(part).encode() for part in (self.request(code), {"op": "interrupt"})])
        )
        return f"e{self.number}"

    def request(self, code: str, **fields: object) -> Message:
        """The next execution's."""
        self.number += 1
        return {"op": "execute", "id": f"e{self.number}", "code": code, **fields}

    def finish(self, execution: str, timeout: float = PATIENCE) -> Outcome:
        results: list[Message] = []
        error: Message | None = None
        while True:
            message = self.kernel.receive(timeout)
            if message is None:
                raise AssertionError(f"the kernel ended: {bytes(self.kernel.output['stderr'])!r}")
            self.assertEqual(message["id"], execution)
            if message["type"] == "result":
                self.assertTrue(all(isinstance(item, str) for item in message["data"].values()))
                results.append(message)
            elif message["type"] == "error":
                self.assertIsNone(error, "more than one error")
                error = message
            else:
                self.assertEqual(message["type"], "done")
                return Outcome(results, error, message["exit_code"])

    def run_cell(self, code: str, **fields: object) -> Outcome:
        return self.finish(self.begin(code, **fields))

    def value(self, code: str) -> str | None:
        """The text of the last expression of a cell that must succeed."""
        outcome = self.run_cell(code)
        self.assertIsNone(outcome.error)
        self.assertEqual(outcome.exit_code, 0)
        return outcome.text

    def printed(self, expected: bytes, stream: str = "stdout") -> None:
        """Output is bytes in a pipe: it is complete by `done`, but our thread may not have read it yet."""
        self.eventually(
            lambda: bytes(self.kernel.output[stream]) == expected, lambda: bytes(self.kernel.output[stream])
        )

    def contains(self, expected: bytes, stream: str = "stdout") -> None:
        self.eventually(
            lambda: expected in self.kernel.output[stream], lambda: bytes(self.kernel.output[stream])[-2000:]
        )

    def eventually(self, holds: Any, seen: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                self.fail(f"not so in time: {seen()!r}")
            time.sleep(0.005)

    def wait_for_file(self, path: Path) -> None:
        self.eventually(path.exists, lambda: path)


def python_program() -> str:
    """The Python interpreter as it is inside of a sandbox, in a folder of its own."""
    program, part = (Path(CONTEXTS, name).read_text() for name in ("python.py", "python_format.py"))
    path = Path(tempfile.mkdtemp(prefix="kernel-"), "kernel.py")
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    path.write_text(INCLUDED.sub(lambda _: part, program, count=1))
    return str(path)


def node() -> str | None:
    return shutil.which("node")
