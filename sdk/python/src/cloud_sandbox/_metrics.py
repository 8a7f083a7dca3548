"""What a sandbox takes, as its own `/proc` shows it."""

from __future__ import annotations

import os

from ._models import Limits, Metrics

# one line per process: proc(5), /proc/PID/stat; the shell's own is not counted
PROBE = 'cat /proc/[0-9]*/stat 2>/dev/null; echo "self $$"; echo "page $(getconf PAGESIZE) $(getconf CLK_TCK)"; \
df -B1 /workspace | tail -n 1'


def read_metrics(text: str, limits: Limits) -> Metrics:
    """Reads what `PROBE` printed."""
    processes, cpu_ticks, pages = 0, 0, 0
    page, tick, disk = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096, 100, 0
    lines = text.splitlines()
    me = next((line.split()[1] for line in lines if line.startswith("self ")), "")
    for line in lines:
        if line.startswith("page "):
            page, tick = (int(word) for word in line.split()[1:3])
        elif ") " in line and line[:1].isdigit():
            # the name, in brackets, may hold anything
            pid, rest = line.split(" ", 1)[0], line.rpartition(") ")[2].split()
            if me in (pid, rest[1]):  # the probe and its children
                continue
            processes += 1
            cpu_ticks += sum(int(word) for word in rest[11:15])
            pages += int(rest[21])
        elif "%" in line:
            disk = int(line.split()[2])
    return Metrics(
        processes=processes,
        cpu_seconds=cpu_ticks / tick,
        memory_bytes=pages * page,
        memory_limit_bytes=limits.memory_bytes,
        disk_bytes=disk,
        disk_limit_bytes=limits.disk_bytes,
        cpu_limit_millis=limits.cpu_millis,
    )
