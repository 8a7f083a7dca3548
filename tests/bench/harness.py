"""A server of the benchmark's own, and how its calls are timed."""

import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

# sections of the page that are written by themselves, in their order: `docker.py`'s, `neighbours.py`'s and `sdk.py`'s
DOCKER_HEADING = "## Containers"
NEIGHBOURS_HEADING = "## Noisy neighbours"
SDK_HEADING = "## The Python SDK"
HEADINGS = [DOCKER_HEADING, NEIGHBOURS_HEADING, SDK_HEADING]


def write_section(page: Path, heading: str, section: str) -> None:
    """Puts a section into its place of the page, instead of the one that is there."""
    later = later_sections(page, after=heading)
    before = page.read_text().removesuffix(later).partition(f"\n{heading}\n")[0].rstrip("\n")
    page.write_text(f"{before}\n\n{section}\n{later}".rstrip("\n") + "\n")


def later_sections(page: Path, after: str | None = None) -> str:
    """Those sections as they stand, or those behind one of them, for whoever writes what is before."""
    text = page.read_text() if page.exists() else ""
    for heading in HEADINGS[HEADINGS.index(after) + 1 if after else 0 :]:
        _, found, section = text.partition(f"\n{heading}\n")
        if found:
            return f"{heading}\n{section}"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server, and one kept connection to it."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = {"Content-Type": "application/json"}
        self.connect()
        token = self.call("POST", "/api/v1/auth/token", {"user_id": "bench"})["access_token"]
        self.headers["Authorization"] = f"Bearer {token}"

    def connect(self) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError):
                self.connection.connect()
                self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
            time.sleep(0.05)
        raise SystemExit("the server does not listen")

    def reconnect(self) -> None:
        self.connection.close()
        self.connect()

    def call(self, method: str, path: str, body: object = None) -> Answer:
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        response = self.connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise SystemExit(f"{method} {path}: {response.status} {text.decode()}")
        answer: Answer = json.loads(text)
        return answer

    def acquire(self) -> str:
        return str(self.call("POST", "/api/v1/sandbox/acquire")["sandbox_id"])

    def release(self, sandbox: str) -> None:
        self.call("POST", "/api/v1/sandbox/release", {"sandbox_id": sandbox})

    def execute(self, sandbox: str, what: Answer) -> None:
        answer = self.call("POST", "/api/v1/execute", {"sandbox_id": sandbox, **what})
        if answer["exit_code"] != 0:
            raise SystemExit(f"{what} exited with {answer['exit_code']}: {answer['stderr']}")

    def wait_until_ready(self, count: int) -> None:
        while self.call("GET", "/api/v1/sandbox/stats")["ready"] < count:
            time.sleep(0.05)


@contextlib.contextmanager
def serving(binary: str, pool_min: int, pool_max: int, more: dict[str, str] | None = None) -> Iterator[Server]:
    port = free_port()
    settings = {
        "LISTEN": f"127.0.0.1:{port}",
        "GRPC_LISTEN": f"127.0.0.1:{free_port()}",
        "POOL_MIN_SIZE": str(pool_min),
        "POOL_MAX_SIZE": str(pool_max),
        "RATE_LIMIT_PER_SECOND": "0",
        "LOG_LEVEL": "warn",
        **(more or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **settings, "DATA_DIR": folder}
        process = subprocess.Popen([binary, "serve"], env=environment)
        try:
            yield Server(port, process)
        finally:
            process.terminate()
            if process.wait(60) != 0:
                raise SystemExit(f"the server ended with {process.returncode}")


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def row(name: str, times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return f"| {name} | {cuts[49]:.2f} | {cuts[94]:.2f} | {cuts[98]:.2f} | {len(times)} |"
