"""How the runtime of containers compares with the daemon's own tools, by turns, on one daemon and one image."""

import argparse
import contextlib
import os
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import DOCKER_HEADING, Server, serving, timed, write_section

WORK = {"argv": ["/bin/true"]}
AT_ONCE = 100
WARM_UP = 3
# what signs tokens of the servers here
SECRET = secrets.token_hex(32)
# what the template of the built-in image on gVisor is called
GVISOR = "bench-gvisor"

SECTION = """{heading}

Written by `make bench-docker`: REST on one kept connection, beside `docker` on the same daemon ({daemon}) with the same
image, by turns; p50 in milliseconds. `docker run` is `docker run --detach --network none`.

| | sandbox | `docker` | by `docker`'s | calls | to reach |
|---|---|---|---|---|---|
{rows}
"""


class Tools:
    """The daemon's own command line."""

    def __init__(self) -> None:
        self.url = os.environ["CLOUD_SANDBOX_TEST_DOCKER"]
        self.image = os.environ["CLOUD_SANDBOX_TEST_IMAGE"]
        self.containers: list[str] = []

    def docker(self, *arguments: str) -> str:
        command = ["docker", "--host", self.url, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def run(self, runtime: str = "runc") -> str:
        what = ["--detach", "--network", "none", "--runtime", runtime, self.image, "sleep", "infinity"]
        container = self.docker("run", *what)
        self.containers.append(container)
        return container

    def remove_all(self) -> None:
        if self.containers:
            self.docker("rm", "--force", *self.containers)
        self.containers.clear()


def settings(tools: Tools) -> dict[str, str]:
    return {
        "SANDBOX_RUNTIMES": "docker",
        "DEFAULT_TEMPLATE": "docker",
        "SANDBOX_IMAGE": tools.image,
        "DOCKER_HOST": tools.url,
        "JWT_SECRET": SECRET,
    }


def acquire(server: Server, template: str) -> str:
    answer = server.call("POST", "/api/v1/sandbox/acquire", {"template": template})
    return str(answer["sandbox_id"])


def create_gvisor(server: Server, binary: str) -> None:
    """Makes the template of the image on gVisor, as an operator, and waits until it can be used."""
    mint = [binary, "token", "--user", "bench", "--role", "admin"]
    environment = {**os.environ, "JWT_SECRET": SECRET}
    token = subprocess.run(mint, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()
    user = server.headers["Authorization"]
    server.headers["Authorization"] = f"Bearer {token}"
    image = {"image": os.environ["CLOUD_SANDBOX_TEST_IMAGE"], "pull": "never"}
    template = {"name": GVISOR, "source": {"docker_image": image}, "runtimes": ["docker+runsc"]}
    server.call("POST", "/api/v1/templates", template)
    while server.call("GET", f"/api/v1/templates/{GVISOR}")["state"] != "ready":
        time.sleep(0.05)
    server.headers["Authorization"] = user


def creates(server: Server, tools: Tools, rounds: int, template: str, runtime: str) -> tuple[list[float], list[float]]:
    """New sandboxes and new containers, by turns."""
    ours, theirs = [], []
    for turn in range(WARM_UP + rounds):
        begun = time.perf_counter()
        sandbox = acquire(server, template)
        our = (time.perf_counter() - begun) * 1000
        server.release(sandbox)
        their = timed(lambda: tools.run(runtime))
        tools.remove_all()
        if turn >= WARM_UP:
            ours.append(our)
            theirs.append(their)
    return ours, theirs


def executes(server: Server, tools: Tools, rounds: int, template: str, runtime: str) -> tuple[list[float], list[float]]:
    """`/bin/true` in a sandbox and in a container, by turns."""
    sandbox, container = acquire(server, template), tools.run(runtime)
    ours, theirs = [], []
    for turn in range(WARM_UP + rounds):
        our = timed(lambda: server.execute(sandbox, WORK))
        their = timed(lambda: tools.docker("exec", container, "/bin/true"))
        if turn >= WARM_UP:
            ours.append(our)
            theirs.append(their)
    server.release(sandbox)
    tools.remove_all()
    return ours, theirs


def at_once(work: list[Callable[[], object]]) -> float:
    """Milliseconds until all of it is done, each part in a thread of its own."""
    with ThreadPoolExecutor(len(work)) as threads:
        return timed(lambda: list(threads.map(lambda part: part(), work)))


def hundred(server: Server, tools: Tools) -> tuple[float, float]:
    """A hundred new sandboxes at once, and a hundred `docker run`."""
    connections = [Server(server.port, server.process) for _ in range(AT_ONCE)]
    sandboxes: list[str] = []
    ours = at_once([lambda each=each: sandboxes.append(acquire(each, "docker")) for each in connections])  # type: ignore[misc]
    at_once([lambda each=each, id=id: each.release(id) for each, id in zip(connections, sandboxes, strict=True)])  # type: ignore[misc]
    theirs = at_once([tools.run] * AT_ONCE)
    tools.remove_all()
    return ours, theirs


def warm(server: Server, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        server.wait_until_ready(1)
        begun = time.perf_counter()
        sandbox = acquire(server, "docker")
        times.append((time.perf_counter() - begun) * 1000)
        server.release(sandbox)
    return times


@contextlib.contextmanager
def tidied(tools: Tools) -> Iterator[None]:
    try:
        yield
    finally:
        tools.remove_all()


def row(name: str, ours: list[float], theirs: list[float], goal: str) -> str:
    our, their = statistics.median(ours), statistics.median(theirs)
    return f"| {name} | {our:.2f} | {their:.2f} | {our / their:.3f} | {len(ours)} | {goal} |"


def measure(binary: str, rounds: int) -> str:
    tools = Tools()
    with tidied(tools):
        with serving(binary, 0, 2 * AT_ONCE, settings(tools)) as server:
            rows = [row("cold create, runc", *creates(server, tools, rounds, "docker", "runc"), "at most 1.15")]
            rows.append(
                row("execute `/bin/true`, runc", *executes(server, tools, rounds, "docker", "runc"), "under 0.1")
            )
            pairs = [hundred(server, tools) for _ in range(3)]
            ours, theirs = [our for our, _ in pairs], [their for _, their in pairs]
            rows.append(row(f"{AT_ONCE} created at once, runc", ours, theirs, "at most 1.2"))
            # the kept connection has idled for longer than the server keeps such open
            server.reconnect()
            create_gvisor(server, binary)
            rows.append(row("cold create, runsc", *creates(server, tools, rounds // 2, GVISOR, "runsc"), ""))
            rows.append(row("execute `/bin/true`, runsc", *executes(server, tools, rounds, GVISOR, "runsc"), ""))
        with serving(binary, 2, 8, settings(tools)) as server:
            times = warm(server, rounds)
        rows.insert(1, f"| acquire warm | {statistics.median(times):.2f} | | | {len(times)} | p50 under 2 |")
        daemon = tools.docker("version", "--format", "{{.Server.Version}}")
    return SECTION.format(heading=DOCKER_HEADING, daemon=f"Docker Engine {daemon}", rows="\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="bin/cloud-sandbox")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each kind")
    parser.add_argument("--output", type=Path, help="the page to write the section into")
    arguments = parser.parse_args()
    section = measure(arguments.binary, arguments.rounds)
    print(section)
    if arguments.output:
        write_section(arguments.output, DOCKER_HEADING, section)


if __name__ == "__main__":
    main()
