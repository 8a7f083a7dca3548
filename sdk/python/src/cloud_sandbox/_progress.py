"""How far many runs have come."""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional, Union

from ._results import Execution
from .errors import CloudSandboxError

WIDTH = 30

ProgressLike = Union[bool, Callable[[int, int], Any]]


class Outcome:
    """What became of one of many snippets."""

    def __init__(
        self, index: int, execution: Optional[Execution] = None, error: Optional[CloudSandboxError] = None
    ) -> None:
        self.index = index
        """Its place in the list."""
        self.execution = execution
        """How it ended; `None` when it could not be run."""
        self.error = error
        """Why it could not be run, or how that ended is not known."""

    @property
    def ok(self) -> bool:
        """Whether it ran and ended well."""
        return self.execution is not None and self.execution.ok

    def unwrap(self) -> Execution:
        """How it ended; raises why it could not be run."""
        if self.execution is None:
            raise self.error or CloudSandboxError("it was not run")
        return self.execution

    def __repr__(self) -> str:
        return f"Outcome({self.index}, {self.execution or self.error!r})"


class Progress:
    """Tells how many are done: by a bar on standard error, or to a function."""

    def __init__(self, total: int, told: ProgressLike) -> None:
        self._total = total
        self._told = told
        self._done = 0
        self._failed = 0

    def add(self, outcome: Outcome) -> None:
        """One more is done."""
        self._done += 1
        self._failed += not outcome.ok
        if callable(self._told):
            self._told(self._done, self._total)
        elif self._told:
            filled = WIDTH * self._done // self._total
            failed = f", {self._failed} failed" if self._failed else ""
            bar = f"\r[{'#' * filled}{' ' * (WIDTH - filled)}] {self._done}/{self._total}{failed}"
            print(bar, end="\n" if self._done == self._total else "", file=sys.stderr, flush=True)
