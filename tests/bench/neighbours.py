"""What neighbours that do their worst cost: one sandbox at each limit, and how long another's `execute` takes."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import NEIGHBOURS_HEADING, Answer, Server, serving, timed, write_section

MIB = 1 << 20
WORK = {"argv": ["/bin/true"]}
WARM_UP = 20
# how long a neighbour may take until it is at its limit
SETTLE = 1.0

FORKS = """
import os, time
while True:
    try:
        while os.fork(): pass
        time.sleep(3600)
    except OSError:
        time.sleep(0.001)
"""
MEMORY = """
import os, time
while True:
    if os.fork() == 0:
        held = []
        while True: held.append(bytearray(1 << 20))
    os.wait()
"""
DISK = """
import os
while True:
    try:
        with open('/workspace/big', 'wb') as file:
            while True: file.write(bytes(1 << 20))
    except OSError:
        os.truncate('/workspace/big', 0)
"""
FILES = """
import os
while True:
    held = []
    try:
        while True: held.append(os.open('/dev/null', os.O_RDONLY))
    except OSError:
        for number in held: os.close(number)
"""
ZOMBIES = """
import os, time
while True:
    try:
        if os.fork() == 0: os._exit(0)
    except OSError:
        time.sleep(0.001)
"""

SECTION = """{heading}

Written by `make bench-noisy-neighbour`: `POST /api/v1/execute` of `/bin/true` in one sandbox, in milliseconds, while
another on the same node is at a limit of its own, and while {count} of them are at one each. Each may take one core.

| neighbour | p50 | p99 | p99 by quiet's | runs |
|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Neighbour:
    """One that does its worst."""

    name: str
    limits: Answer
    work: Answer


ROOMY: Answer = {"memory_bytes": 256 * MIB, "disk_bytes": 64 * MIB, "pids": 64}
NEIGHBOURS = [
    Neighbour("memory", ROOMY, {"code": MEMORY}),
    Neighbour("CPU", ROOMY, {"command": "for i in 1 2 3 4; do while :; do :; done & done; wait"}),
    Neighbour("processes", ROOMY, {"code": FORKS}),
    Neighbour("disk", ROOMY, {"code": DISK}),
    Neighbour("output", ROOMY, {"command": "yes"}),
    Neighbour("open files", {**ROOMY, "open_files": 1024}, {"code": FILES}),
    Neighbour("zombies", ROOMY, {"code": ZOMBIES}),
]


class Timed:
    """Times of calls, in milliseconds."""

    def __init__(self, server: Server, rounds: int, seconds: float) -> None:
        sandbox = server.acquire()
        for _ in range(WARM_UP):
            server.execute(sandbox, WORK)
        until = time.monotonic() + seconds
        self.times: list[float] = []
        while len(self.times) < rounds and time.monotonic() < until:
            self.times.append(timed(lambda: server.execute(sandbox, WORK)))
        server.release(sandbox)

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.times, n=100, method="inclusive")[percent - 1]

    def row(self, name: str, quiet: "Timed") -> str:
        p50, p99 = self.percentile(50), self.percentile(99)
        return f"| {name} | {p50:.2f} | {p99:.2f} | {p99 / quiet.percentile(99):.1f} | {len(self.times)} |"


@contextlib.contextmanager
def at_its_limit(server: Server, neighbours: list[Neighbour]) -> Iterator[None]:
    sandboxes = []
    for neighbour in neighbours:
        wanted = {"limits": neighbour.limits, "timeout_seconds": 300}
        sandbox = str(server.call("POST", "/api/v1/sandbox/acquire", wanted)["sandbox_id"])
        sandboxes.append(sandbox)
        server.call("POST", "/api/v1/executions", {"sandbox_id": sandbox, **neighbour.work})
    time.sleep(SETTLE)
    try:
        yield
    finally:
        for sandbox in sandboxes:
            server.release(sandbox)


def measure(binary: str, rounds: int, seconds: float) -> str:
    settings = {"SANDBOX_MEMORY_BYTES": str(256 * MIB), "SANDBOX_DISK_BYTES": str(64 * MIB)}
    with serving(binary, 2, 32, settings) as server:
        quiet = Timed(server, rounds, seconds)
        rows = [quiet.row("none", quiet)]
        for neighbour in NEIGHBOURS:
            with at_its_limit(server, [neighbour]):
                rows.append(Timed(server, rounds, seconds).row(neighbour.name, quiet))
        with at_its_limit(server, NEIGHBOURS):
            rows.append(Timed(server, rounds, seconds).row("all at once", quiet))
    return SECTION.format(heading=NEIGHBOURS_HEADING, count=len(NEIGHBOURS), rows="\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="bin/cloud-sandbox")
    parser.add_argument("--rounds", type=int, default=500, help="calls beside each neighbour")
    parser.add_argument("--seconds", type=float, default=6, help="the most that they may take, for each neighbour")
    parser.add_argument("--output", type=Path, help="the page to write the section into")
    arguments = parser.parse_args()
    section = measure(arguments.binary, arguments.rounds, arguments.seconds)
    print(section)
    if arguments.output:
        write_section(arguments.output, NEIGHBOURS_HEADING, section)


if __name__ == "__main__":
    main()
