"""What differs between the two faces: channels, locks, waiting. Its twin is `_async/_io.py`; all else is one code."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Callable, TypeVar

import grpc

from .._settings import Settings

T = TypeVar("T")

Channel = grpc.Channel
Lock = threading.Lock
Callback = Callable[[T], Any]
# what ends a call from outside
Interrupt = KeyboardInterrupt
sleep = time.sleep


def owner() -> object:
    """Whom a channel belongs to: a process. One that a fork has copied is of no use."""
    return os.getpid()


def open_channel(settings: Settings) -> Channel:
    """A channel; it connects when it is first used."""
    if settings.secure:
        credentials = grpc.ssl_channel_credentials(settings.roots())
        return grpc.secure_channel(settings.target, credentials, options=settings.options())
    return grpc.insecure_channel(settings.target, options=settings.options())


def invoke(callback: Callback[T], value: T) -> None:
    """Calls back."""
    callback(value)


def aside(work: Callable[[], T]) -> T:
    """Does what blocks."""
    return work()


def finish(_: Any) -> None:
    """Nothing: the work was done when it was called."""


def each(works: Sequence[Callable[[], T]], concurrency: int, stop: Callable[[], Any]) -> list[T]:
    """Does all of `works`, so many at once. When that is interrupted, `stop` ends what is being done."""
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="cloud-sandbox")
    try:
        futures = [pool.submit(work) for work in works]
        wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in futures if future.done()]
    except BaseException:
        # what has not begun does not begin; what has, ends by `stop`
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise
    finally:
        pool.shutdown(wait=True)
