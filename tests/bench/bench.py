#!/usr/bin/env python3
"""Measures the server over REST on one kept connection, and writes a page in Markdown.

Starts servers of its own on loopback. Python's standard library only; what the client itself takes (about 0.2 ms a
call) is in the numbers.
"""

import argparse
import contextlib
import os
import platform
import subprocess
import time
from pathlib import Path

import sessions
from harness import Answer, Server, later_sections, row, serving, timed

PYTHON = "print('Hello!')"
CELL = {"code": "1+1", "context_id": "default"}


def acquires(server: Server, rounds: int, ready: int) -> list[float]:
    times = []
    for _ in range(rounds):
        if ready:
            server.wait_until_ready(ready)
        begun = time.perf_counter()
        sandbox = server.acquire()
        times.append((time.perf_counter() - begun) * 1000)
        server.release(sandbox)
    return times


def executes(server: Server, rounds: int, what: Answer) -> list[float]:
    sandbox = server.acquire()
    server.execute(sandbox, what)
    times = [timed(lambda: server.execute(sandbox, what)) for _ in range(rounds)]
    server.release(sandbox)
    return times


def first_in_context(server: Server, rounds: int, ready: int) -> list[float]:
    """The first call in the default context of a sandbox that is new each time."""
    times = []
    for _ in range(rounds):
        server.wait_until_ready(ready)
        sandbox = server.acquire()
        times.append(timed(lambda: server.execute(sandbox, CELL)))  # noqa: B023
        server.release(sandbox)
    return times


def over_grpc(server: Server) -> tuple[list[str], list[str]]:
    """What the client in Rust measures: rows of the table, and sentences."""
    client = ["cargo", "bench", "--quiet", "--locked", "--package", "cloud-sandbox-server", "--bench", "grpc", "--"]
    command = [*client, f"http://127.0.0.1:{server.port}", str(server.process.pid)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return rows, [line for line in lines if line and not line.startswith("|")]


def bare_python(rounds: int, code: str) -> list[float]:
    # the same interpreter and environment as in a sandbox
    command = ["/usr/bin/python3", "-c", code]
    environment = {"PATH": "/usr/bin:/bin"}
    return [
        timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment))
        for _ in range(rounds)
    ]


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def proportional_kib(pid: int) -> int:
    """Memory of a process in KiB, what it shares divided by those who share it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def family_kib(server: Server) -> int:
    """Memory of a server and all its sandboxes."""
    pid = server.process.pid
    return sum(proportional_kib(each) for each in [pid, *descendants(pid)])


def available_kib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def idle_memory(binary: str, count: int) -> tuple[float, float]:
    """MiB that one idle sandbox takes: by its processes and the server, and by what the whole machine has left."""
    with serving(binary, 0, count) as server:
        first = server.acquire()
        time.sleep(1)
        processes, machine = family_kib(server), available_kib()
        sandboxes = [server.acquire() for _ in range(count - 1)]
        time.sleep(1)
        processes = family_kib(server) - processes
        machine -= available_kib()
        for each in [first, *sandboxes]:
            server.release(each)
    return processes / 1024 / (count - 1), machine / 1024 / (count - 1)


HEADER = """# Speed

Written by `make bench`: REST on one kept connection where nothing else is said, the client on the same machine, its own
time included.

{machine}

| milliseconds | p50 | p95 | p99 | calls | to reach |
|---|---|---|---|---|---|
"""

FOOTER = """
{sentences}

Memory of one idle sandbox: {processes:.2f} MiB by its processes and the server (proportional set size),
{machine:.2f} MiB by what the whole machine has less (kernel included; other programs disturb it). To reach: under
5 MiB.
"""


def measure(binary: str, rounds: int) -> str:
    rows = []

    def add(name: str, times: list[float], goal: str) -> None:
        rows.append(f"{row(name, times)} {goal} |")
        print(rows[-1], flush=True)

    with serving(binary, 10, 50) as server:
        add("acquire from a warm pool", acquires(server, rounds, 5), "p50 under 2, p99 under 10")
        add("execute `/bin/true`", executes(server, rounds, {"argv": ["/bin/true"]}), "p50 under 4")
        add(f"execute `{PYTHON}`", executes(server, rounds, {"code": PYTHON}), "the next row and 4")
        add("execute `1+1` in a warm Python context", executes(server, rounds, CELL), "p50 under 3")
        few = max(rounds // 6, 10)
        add("first execute in the default Python context", first_in_context(server, few, 5), "")
        grpc_rows, sentences = over_grpc(server)
        rows += grpc_rows
        print("\n".join(grpc_rows + sentences), flush=True)
    with serving(binary, 10, 50, {"WARM_CONTEXTS": "python"}) as server:
        add("first execute in it with `warm_contexts=python`", first_in_context(server, few, 5), "p50 under 15")
    add(f'bare `python3 -c "{PYTHON}"`', bare_python(rounds, PYTHON), "")
    with serving(binary, 0, 50) as server:
        add("create cold, until the agent answers", acquires(server, rounds, 0), "p50 under 20")
    session_rows, session_sentences = sessions.measure(binary)
    rows += session_rows
    sentences += session_sentences
    print("\n".join(session_rows + session_sentences), flush=True)
    processes, machine = idle_memory(binary, 50)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    host = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GiB"
    footer = FOOTER.format(processes=processes, machine=machine, sentences="\n".join(sentences))
    return HEADER.format(machine=host) + "\n".join(rows) + "\n" + footer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="bin/cloud-sandbox")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--output", type=Path, help="the file to write")
    arguments = parser.parse_args()
    text = measure(arguments.binary, arguments.rounds)
    print(text[text.index("\nMemory") :])
    if arguments.output:
        arguments.output.write_text(text + later_sections(arguments.output))


if __name__ == "__main__":
    main()
