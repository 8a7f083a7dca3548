"""Grades a class of submissions in parallel, each in a sandbox of its own."""

from __future__ import annotations

import asyncio

from cloud_sandbox import AsyncSandbox, run_many_async

SUBMISSIONS = {
    "ada": "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "bob": "def fib(n):\n    return n\n",
    "cyd": "def fib(n):\n    while True: pass\n",
    "dan": "def fib(n) return 1\n",
    "eve": "import os\ndef fib(n):\n    os.kill(os.getpid(), 9)\n",
}

GRADER = """
from submission import fib
expected = [0, 1, 1, 2, 3, 5, 8, 13]
points = sum(fib(n) == value for n, value in enumerate(expected))
points
"""


async def main() -> None:
    """Prints a line for each."""
    names = list(SUBMISSIONS)

    async def hand_in(sandbox: AsyncSandbox, index: int) -> None:
        await sandbox.write_file("/workspace/submission.py", SUBMISSIONS[names[index]])

    outcomes = await run_many_async([GRADER] * len(names), concurrency=3, timeout=3, prepare=hand_in)
    for name, outcome in zip(names, outcomes):
        execution = outcome.unwrap()
        if execution.text is not None:
            print(f"{name}: {execution.text} of 8")
        elif execution.timed_out:
            print(f"{name}: too slow")
        else:
            print(f"{name}: {execution.error or 'crashed'}")


if __name__ == "__main__":
    asyncio.run(main())
