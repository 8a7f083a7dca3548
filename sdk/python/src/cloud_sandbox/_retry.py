"""When a call that failed is made again, and after how long."""

from __future__ import annotations

import random
import time
from typing import Optional

from .errors import CloudSandboxError, OutcomeUnknownError, ServiceConnectionError

# before attempts 2, 3, …: a server that restarts is back within them
BACKOFF = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
# a longer wait is the caller's to decide
PATIENCE = 10.0


class Retry:
    """One call's attempts.

    Again is made what the server refused and said when to come back, and, where the call is `repeatable` (it changes
    nothing, or a second time nothing more, or has a request id), what got no answer.
    """

    def __init__(self, *, repeatable: bool, deadline: float) -> None:
        self._repeatable = repeatable
        self._deadline = deadline
        self._failures = 0

    def succeed(self) -> None:
        """Notes progress: later failures are counted anew."""
        self._failures = 0

    def delay(self, error: CloudSandboxError) -> Optional[float]:
        """Seconds to wait before the next attempt; `None` when there is none."""
        if self._failures >= len(BACKOFF) or isinstance(error, OutcomeUnknownError):
            return None
        refused = error.retry_after is not None and error.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
        lost = isinstance(error, ServiceConnectionError) and self._repeatable
        if error.code == "UNAVAILABLE" and refused and not self._repeatable:
            # a node that could not be reached may have been reached after all
            refused = error.reason in ("CAPACITY", "DRAINING")
        if not refused and not lost:
            return None
        wait = BACKOFF[self._failures] * random.uniform(0.8, 1.2)
        if error.retry_after is not None:
            wait = max(wait, error.retry_after)
        self._failures += 1
        if wait > PATIENCE or time.monotonic() + wait >= self._deadline:
            return None
        return wait
