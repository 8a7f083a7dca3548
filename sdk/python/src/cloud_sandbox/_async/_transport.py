"""One connection to a server: calls with deadlines, retries where they are safe, and a token that stays good."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Callable, Optional, TypeVar, Union

import grpc
from google.protobuf.message import Message

from .._credentials import Credentials
from .._methods import Method, method_of
from .._retry import Retry
from .._settings import Settings
from .._status import from_rpc
from ..errors import AuthenticationError, CloudSandboxError
from ..v1 import auth_pb2
from ._io import Channel, Lock, open_channel, owner, sleep

M = TypeVar("M", bound=Message)

# a stream lasts a day at most, as the longest execution
STREAM_TIMEOUT = 86_400.0

Parts = Callable[[], Optional[AsyncIterator[Message]]]
Metadata = tuple[tuple[str, str], ...]
Issued = auth_pb2.IssueTokenResponse


class AsyncTransport:
    """A channel with credentials. Opened when first used, and anew after a fork and in another event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._credentials = Credentials(settings)
        self._owner: object = None
        self._channel: Optional[Channel] = None
        self._lock: Lock  # made with the channel: in old Pythons it belongs to an event loop, too
        self._callables: dict[str, Any] = {}

    async def unary(
        self, request: Message, answer: type[M], *, timeout: Optional[float] = None, repeatable: Optional[bool] = None
    ) -> M:
        """Makes a call with one answer, within `timeout` seconds (or the settings') with all its retries.

        `repeatable` says whether a second call does nothing more than one; by default the contract says it.
        """
        method = method_of(type(request))
        deadline = time.monotonic() + (self.settings.request_timeout if timeout is None else timeout)
        retry = Retry(repeatable=method.repeatable if repeatable is None else repeatable, deadline=deadline)
        renewed = False
        while True:
            token = await self._token(deadline)
            try:
                call = self._callable("unary_unary", method.path, request, answer)
                left = max(deadline - time.monotonic(), 0.001)
                reply: M = await call(request, timeout=left, metadata=_bearer(token))
                return reply
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.settings.base_url)
            if not renewed and self._renews(error, token):
                renewed = True
                continue
            delay = retry.delay(error)
            if delay is None:
                raise error
            await sleep(delay)

    async def stream(
        self, request: Message, answer: type[M], *, timeout: float = STREAM_TIMEOUT, repeatable: bool = True
    ) -> AsyncIterator[M]:
        """Makes a call with a stream of answers. It is made again only while nothing has come yet."""
        method = method_of(type(request))
        deadline = time.monotonic() + timeout
        retry = Retry(repeatable=repeatable, deadline=deadline)
        begun = renewed = False
        while True:
            token = await self._token(deadline)
            left = max(deadline - time.monotonic(), 0.001)
            call = self._callable("unary_stream", method.path, request, answer)(
                request, timeout=left, metadata=_bearer(token)
            )
            try:
                async for reply in call:
                    begun = True
                    yield reply
                return
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.settings.base_url)
            finally:
                # also when the caller stops listening: the server is told
                call.cancel()
            if begun:
                raise error
            if not renewed and self._renews(error, token):
                renewed = True
                continue
            delay = retry.delay(error)
            if delay is None:
                raise error
            await sleep(delay)

    async def upload(
        self, method: Method, parts: Parts, answer: type[M], *, repeatable: bool, timeout: float = STREAM_TIMEOUT
    ) -> M:
        """Makes a call with a stream of requests. A failure in making them is raised as it is.

        `parts` begins the stream, and gives nothing when it cannot be begun again.
        """
        deadline = time.monotonic() + timeout
        retry = Retry(repeatable=repeatable, deadline=deadline)
        source, renewed = parts(), False
        while source is not None:
            feed = Feed(source)
            token = await self._token(deadline)
            call = self._callable("stream_unary", method.path, None, answer)
            outcome: Union[M, CloudSandboxError]
            try:
                outcome = await call(feed, timeout=deadline - time.monotonic(), metadata=_bearer(token))
            except grpc.RpcError as failure:
                outcome = from_rpc(failure, self.settings.base_url)
            # before what it reads is read by the next
            await feed.end()
            if feed.failure is not None:
                raise feed.failure
            if not isinstance(outcome, CloudSandboxError):
                return outcome
            error = outcome
            delay: Optional[float] = 0.0
            if not renewed and self._renews(error, token):
                renewed = True
            else:
                delay = retry.delay(error)
            source = None if delay is None else parts()
            if source is None or delay is None:
                raise error
            await sleep(delay)
        raise ValueError("there is nothing to upload")

    async def close(self) -> None:
        """Closes the channel; a later call opens another."""
        channel, self._channel = self._channel, None
        same = self._owner == owner()
        self._owner = None
        if channel is not None and same:
            await channel.close()

    def _open(self) -> Channel:
        me = owner()
        if self._channel is None or self._owner != me:
            # what a fork or a closed event loop has left is not to be touched, not even to close it
            self._lock = Lock()
            self._callables = {}
            self._channel = open_channel(self.settings)
            self._owner = me
        return self._channel

    def _callable(self, kind: str, path: str, request: Optional[Message], answer: type[M]) -> Any:
        channel = self._open()
        found = self._callables.get(path)
        if found is None:
            serialize = type(request).SerializeToString if request is not None else _serialize
            found = getattr(channel, kind)(path, request_serializer=serialize, response_deserializer=answer.FromString)
            self._callables[path] = found
        return found

    async def _token(self, deadline: float) -> str:
        """The token to show, issued by the server if there is none."""
        token = self._credentials.token
        if token is not None:
            return token
        self._open()
        async with self._lock:
            token = self._credentials.token
            if token is not None:
                return token
            left = max(deadline - time.monotonic(), 0.001)
            return self._credentials.accept(await self.issue(self._credentials.request(), timeout=left))

    async def issue(self, request: auth_pb2.IssueTokenRequest, *, timeout: Optional[float] = None) -> Issued:
        """Has the server issue a token, which is asked with the API key, or the token there is, or nothing."""
        method, answer = method_of(type(request)), auth_pb2.IssueTokenResponse
        deadline = time.monotonic() + (self.settings.request_timeout if timeout is None else timeout)
        retry = Retry(repeatable=True, deadline=deadline)
        while True:
            call = self._callable("unary_unary", method.path, request, answer)
            left = max(deadline - time.monotonic(), 0.001)
            try:
                reply: Issued = await call(request, timeout=left, metadata=self._credentials.to_issue())
                return reply
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.settings.base_url)
            delay = retry.delay(error)
            if delay is None:
                raise error
            await sleep(delay)

    def _renews(self, error: CloudSandboxError, token: str) -> bool:
        """Whether the server refused the token and another can be had."""
        if not isinstance(error, AuthenticationError):
            return False
        self._credentials.refuse(token)
        return self._credentials.can_replace(token)


class Feed:
    """Requests for a stream. When making them fails it ends early, without the word that it is complete.

    The server then changes nothing, and the failure is here: gRPC itself would tell nothing of it.
    """

    def __init__(self, parts: AsyncIterator[Message]) -> None:
        self._parts = parts
        self._reading = Lock()
        self._ended = False
        self.failure: Optional[Exception] = None

    async def end(self) -> None:
        """Gives nothing more. gRPC may go on asking for a while after a call has failed."""
        async with self._reading:
            self._ended = True

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Message:
        async with self._reading:
            if self._ended:
                raise StopAsyncIteration
            try:
                return await self._parts.__anext__()
            except StopAsyncIteration:
                raise
            except Exception as error:
                self.failure = error
                raise StopAsyncIteration from None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)
