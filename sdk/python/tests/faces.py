"""Both faces behind one: cases are coroutine functions, and run with the asynchronous face and with the blocking one.

`Blocking` wraps an object of the blocking face so that its methods can be awaited and its iterators iterated over with
`async for`. Nothing else is done to it: what a call does, and in which order, is the blocking face's own.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cloud_sandbox

WRAPPED: tuple[type, ...] = (
    Iterator,
    cloud_sandbox.Workspace,
    cloud_sandbox.CommandHandle,
    cloud_sandbox.Client,
)


class Blocking:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return wrap(getattr(self._inner, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = tuple(unwrap(each) for each in args)
        kwargs = {name: unwrap(each) for name, each in kwargs.items()}
        if inspect.isclass(self._inner):
            return wrap(self._inner(*args, **kwargs))
        if inspect.isgeneratorfunction(inspect.unwrap(self._inner)):
            return wrap(self._inner(*args, **kwargs))
        return self._later(args, kwargs)

    async def _later(self, args: Any, kwargs: Any) -> Any:
        return wrap(self._inner(*args, **kwargs))

    async def __aenter__(self) -> Any:
        return wrap(self._inner.__enter__())

    async def __aexit__(self, *error: Any) -> Any:
        return self._inner.__exit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for each in self._inner:
            yield wrap(each)

    async def __anext__(self) -> Any:
        try:
            return wrap(next(self._inner))
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self._inner.close()


def wrap(value: Any) -> Any:
    module = type(value).__module__ or ""
    of_face = module.startswith("cloud_sandbox._sync")
    if of_face or inspect.ismethod(value) or isinstance(value, WRAPPED):
        return Blocking(value)
    return value


def unwrap(value: Any) -> Any:
    return value._inner if isinstance(value, Blocking) else value


class Face:
    """One of the two faces, by the asynchronous one's names without `Async`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_async = name == "async"

    def __getattr__(self, name: str) -> Any:
        if self.is_async:
            return getattr(cloud_sandbox, f"Async{name}")
        return Blocking(getattr(cloud_sandbox, name))
