#!/usr/bin/env python3
"""Measures what the Python SDK adds to a call over raw gRPC, and how long its import takes.

Writes its own section into the page that `bench.py` writes. Raw calls and calls of the SDK take turns, so that whatever
else the machine does falls on both.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import grpc
from cloud_sandbox import AsyncSandbox, Sandbox
from cloud_sandbox.v1 import auth_pb2, auth_pb2_grpc, exec_pb2, exec_pb2_grpc

from harness import SDK_HEADING, Server, row, serving, timed

CODE = "1+1"
IMPORTS = 15
TIMED_IMPORT = "import time; b = time.perf_counter(); import cloud_sandbox; print((time.perf_counter() - b) * 1000)"

SECTION = """
{heading}

Written by `make bench-sdk`: `{code}` in a warm Python context, raw gRPC and the SDK by turns on one machine.

| milliseconds | p50 | p95 | p99 | calls | to reach |
|---|---|---|---|---|---|
{rows}

By p50, `run_code` takes {blocking:.2f} ms more than raw gRPC in the blocking face (to reach: under 0.5), and
{later:.2f} ms more in the asynchronous one.
"""


class Raw:
    """A generated stub, as one would use it without the SDK."""

    def __init__(self, server: Server, sandbox_id: str) -> None:
        self.target = f"127.0.0.1:{server.port}"
        self.channel = grpc.insecure_channel(self.target)
        issued = auth_pb2_grpc.AuthServiceStub(self.channel).IssueToken(auth_pb2.IssueTokenRequest(user_id="bench"))
        self.metadata = (("authorization", f"Bearer {issued.access_token}"),)
        self.request = exec_pb2.ExecuteRequest(sandbox_id=sandbox_id, code=CODE, context_id="default")
        self.stub = exec_pb2_grpc.ExecServiceStub(self.channel)

    def call(self) -> None:
        self.stub.Execute(self.request, metadata=self.metadata, timeout=60)


def blocking(server: Server, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of raw calls and of the SDK's."""
    raw_times, sdk_times = [], []
    with Sandbox.create(base_url=f"http://127.0.0.1:{server.port}", user_id="bench") as sandbox:
        raw = Raw(server, sandbox.sandbox_id)
        for _ in range(20):
            raw.call()
            sandbox.run_code(CODE)
        for _ in range(rounds):
            raw_times.append(timed(raw.call))
            sdk_times.append(timed(lambda: sandbox.run_code(CODE)))
        raw.channel.close()
    return raw_times, sdk_times


async def asynchronous(server: Server, rounds: int) -> tuple[list[float], list[float]]:
    """The same with asyncio."""
    raw_times, sdk_times = [], []
    url = f"http://127.0.0.1:{server.port}"
    clock = asyncio.get_running_loop().time
    async with await AsyncSandbox.create(base_url=url, user_id="bench") as sandbox:
        raw = Raw(server, sandbox.sandbox_id)
        async with grpc.aio.insecure_channel(raw.target) as channel:
            stub = exec_pb2_grpc.ExecServiceStub(channel)
            for turn in range(-20, rounds):
                begun = clock()
                await stub.Execute(raw.request, metadata=raw.metadata, timeout=60)
                between = clock()
                await sandbox.run_code(CODE)
                ended = clock()
                if turn >= 0:
                    raw_times.append((between - begun) * 1000)
                    sdk_times.append((ended - between) * 1000)
        raw.channel.close()
    return raw_times, sdk_times


def imports() -> list[float]:
    """Milliseconds of the import in processes that are new each time."""
    command = [sys.executable, "-c", TIMED_IMPORT]
    return [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(IMPORTS)]


def more(times: tuple[list[float], list[float]]) -> float:
    raw, sdk = times
    return statistics.median(sdk) - statistics.median(raw)


def measure(binary: str, rounds: int) -> str:
    with serving(binary, 2, 8) as server:
        sync_times = blocking(server, rounds)
        async_times = asyncio.run(asynchronous(server, rounds))
    rows = [
        f"{row('raw gRPC, blocking', sync_times[0])}  |",
        f"{row('`Sandbox.run_code`', sync_times[1])} the row above and 0.5 |",
        f"{row('raw gRPC, asyncio', async_times[0])}  |",
        f"{row('`AsyncSandbox.run_code`', async_times[1])}  |",
        f"{row('`import cloud_sandbox`', imports())} p50 under 250 |",
    ]
    return SECTION.format(
        heading=SDK_HEADING,
        code=CODE,
        rows="\n".join(rows),
        blocking=more(sync_times),
        later=more(async_times),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="bin/cloud-sandbox")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="the page to write the section into")
    arguments = parser.parse_args()
    section = measure(arguments.binary, arguments.rounds)
    print(section)
    if arguments.output:
        page = arguments.output.read_text().partition(f"\n{SDK_HEADING}\n")[0]
        arguments.output.write_text(page + section)


if __name__ == "__main__":
    main()
