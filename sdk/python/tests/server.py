"""Starts real servers on free ports, each with a folder of its own, and ends them by their process ids."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

BINARY = os.environ.get("CLOUD_SANDBOX_BINARY", "")
START_DEADLINE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program_environment(url: str) -> dict[str, str]:
    """What a program that uses the SDK is started with."""
    kept = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    return {**kept, "CLOUD_SANDBOX_URL": url}


class Server:
    """A server that keeps its port and its data when it is started again."""

    def __init__(self, folder: Path, **settings: str) -> None:
        if not BINARY:
            raise RuntimeError("CLOUD_SANDBOX_BINARY must name the server's program: see `make test`")
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{free_port()}"
        self.settings = {
            "LISTEN": f"127.0.0.1:{self.port}",
            "GRPC_LISTEN": self.grpc_address,
            "DATA_DIR": str(folder / "data"),
            "POOL_MIN_SIZE": "1",
            "POOL_MAX_SIZE": "16",
            "RATE_LIMIT_PER_SECOND": "0",
            "DRAIN_TIMEOUT_SECONDS": "1",
            "SANDBOX_RUNTIMES": os.environ.get("CLOUD_SANDBOX_TEST_RUNTIME", "linux"),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            environment = {"PATH": os.environ["PATH"], **self.settings}
            self._process = subprocess.Popen([BINARY, "serve"], env=environment, stdin=subprocess.DEVNULL, stderr=log)
        until = time.monotonic() + START_DEADLINE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the server does not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
