"""Sessions: how fast they are made, paused and resumed, on local disk and from an S3 server on loopback."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Answer, Server, free_port, row, serving, timed

MIB = 1 << 20
ROOMY = {"limits": {"memory_bytes": 3 << 30, "disk_bytes": 2 << 30}, "timeout_seconds": 86400}
# random bytes, so that nothing is gained by compressing or sharing
FILL = """
import os
for number in range({files}):
    with open(f"/workspace/{{number:05}}", "wb") as file:
        for _ in range(0, {size}, 1 << 20):
            file.write(os.urandom(min(1 << 20, {size})))
"""
TOUCH = """
import os
with open("/workspace/00007", "r+b") as file:
    file.write(os.urandom(1 << 20))
"""


def create(server: Server, wanted: Answer | None = None) -> str:
    return str(server.call("POST", "/api/v1/sessions", wanted or {})["session_id"])


def run(server: Server, session: str, code: str) -> None:
    answer = server.call("POST", "/api/v1/execute", {"session_id": session, "code": code})
    if answer["exit_code"] != 0:
        raise SystemExit(f"{code} exited with {answer['exit_code']}: {answer['stderr']}")


def pause(server: Server, session: str, depth: str) -> None:
    server.call("POST", f"/api/v1/sessions/{session}/pause", {"depth": depth})


def resume(server: Server, session: str) -> None:
    server.call("POST", f"/api/v1/sessions/{session}/resume", {})


def delete(server: Server, session: str) -> None:
    server.call("DELETE", f"/api/v1/sessions/{session}")


def stored(server: Server, session: str) -> int:
    """Bytes that were stored for the last checkpoint."""
    kept = server.call("GET", f"/api/v1/sessions/{session}/checkpoints")["checkpoints"]
    return int(kept[0]["stored_bytes"])


def created(server: Server, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        server.wait_until_ready(3)
        begun = time.perf_counter()
        session = create(server)
        times.append((time.perf_counter() - begun) * 1000)
        delete(server, session)
    return times


def thawed(server: Server, rounds: int) -> list[float]:
    session = create(server)
    times = []
    for _ in range(rounds):
        pause(server, session, "frozen")
        times.append(timed(lambda: resume(server, session)))
    delete(server, session)
    return times


def checkpointed(server: Server, rounds: int, files: int, size: int) -> tuple[list[float], list[float]]:
    """Pauses and resumes of a session whose files are new each time."""
    pauses, resumes = [], []
    for _ in range(rounds):
        session = create(server)
        run(server, session, FILL.format(files=files, size=size))
        pauses.append(timed(lambda: pause(server, session, "checkpointed")))  # noqa: B023
        server.wait_until_ready(2)
        resumes.append(timed(lambda: resume(server, session)))  # noqa: B023
        delete(server, session)
    return pauses, resumes


def second_pauses(server: Server, rounds: int) -> tuple[list[float], int]:
    """Pauses after 1 MiB of 1 GiB was changed, and the most bytes that one of them stored."""
    session = create(server, ROOMY)
    run(server, session, FILL.format(files=1024, size=MIB))
    pause(server, session, "checkpointed")
    times, most = [], 0
    for _ in range(rounds):
        resume(server, session)
        run(server, session, TOUCH)
        times.append(timed(lambda: pause(server, session, "checkpointed")))
        most = max(most, stored(server, session))
    delete(server, session)
    return times, most


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket; gives the settings that name it."""
    rclone = os.environ["RCLONE"]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bench").mkdir()
        command = [rclone, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--auth-key", "bench,bench-secret"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            yield {
                "S3_ENDPOINT": f"http://127.0.0.1:{port}",
                "S3_REGION": "us-east-1",
                "S3_BUCKET": "bench",
                "S3_ACCESS_KEY_ID": "bench",
                "S3_SECRET_ACCESS_KEY": "bench-secret",
            }
        finally:
            process.terminate()
            process.wait(10)


def measure(binary: str, rounds: int = 30) -> tuple[list[str], list[str]]:
    """Rows of the table, and sentences."""
    rows = []

    def add(name: str, times: list[float], goal: str) -> None:
        rows.append(f"{row(name, times)} {goal} |")

    with serving(binary, 4, 20) as server:
        add("create a session", created(server, rounds * 3), "p50 under 5")
        add("resume from frozen", thawed(server, rounds * 3), "p50 under 5")
        pauses, resumes = checkpointed(server, rounds, 10, MIB)
        add("pause, checkpointed, 10 MiB, local", pauses, "p50 under 40")
        add("resume from that", resumes, "p50 under 60")
        again, most = second_pauses(server, rounds // 3)
        add("second pause, 1 MiB changed in 1 GiB, local", again, "under 400")
    with s3() as settings, serving(binary, 4, 20, settings) as server:
        pauses, resumes = checkpointed(server, rounds // 3, 1000, 102400)
        add("pause, checkpointed, 100 MiB in 1,000 files, S3 on loopback", pauses, "")
        add("resume from that", resumes, "p50 under 300")
    stored_most = f"The second pause stored {most / MIB:.2f} MiB at most (to reach: under 4 MiB)."
    return rows, [stored_most]
