"""What differs between the two faces: channels, locks, waiting. Its twin is `_sync/_io.py`; all else is one code."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Sequence
from typing import Any, Callable, TypeVar, Union

import grpc.aio

from .._settings import Settings

T = TypeVar("T")

Channel = grpc.aio.Channel
Lock = asyncio.Lock
Callback = Callable[[T], Union[Awaitable[Any], Any]]
# what ends a call from outside
Interrupt = asyncio.CancelledError
sleep = asyncio.sleep


def owner() -> object:
    """Whom a channel belongs to: a running event loop, in a process."""
    return (asyncio.get_running_loop(), os.getpid())


def open_channel(settings: Settings) -> Channel:
    """A channel; it connects when it is first used."""
    if settings.secure:
        credentials = grpc.ssl_channel_credentials(settings.roots())
        return grpc.aio.secure_channel(settings.target, credentials, options=settings.options())
    return grpc.aio.insecure_channel(settings.target, options=settings.options())


async def invoke(callback: Callback[T], value: T) -> None:
    """Calls back; what a coroutine function returns is awaited."""
    answer = callback(value)
    if inspect.isawaitable(answer):
        await answer


async def aside(work: Callable[[], T]) -> T:
    """Does what blocks, without holding up others. It cannot be interrupted: whoever is, waits for its end first."""
    doing = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


async def finish(work: Awaitable[Any]) -> None:
    """Does `work` to its end even though the caller has been cancelled."""
    await asyncio.shield(asyncio.ensure_future(work))


async def each(
    works: Sequence[Callable[[], Awaitable[T]]], concurrency: int, stop: Callable[[], Awaitable[Any]]
) -> list[T]:
    """Does all of `works`, so many at once. When that is interrupted, `stop` ends what is being done."""
    room = asyncio.Semaphore(concurrency)

    async def one(work: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await work()

    tasks = [asyncio.ensure_future(one(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
