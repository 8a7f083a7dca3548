# Made from cloud_sandbox/_async/_transport.py by `make sdk`; do not edit.
"""One connection to a server: calls with deadlines, retries where they are safe, and a token that stays good."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

Parts = Callable[[], Optional[Iterator[Message]]]
Metadata = tuple[tuple[str, str], ...]
Issued = auth_pb2.IssueTokenResponse


class Transport:
    """A channel with credentials. Opened when first used, and anew after a fork and in another event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._credentials = Credentials(settings)
        self._owner: object = None
        self._channel: Optional[Channel] = None
        self._lock: Lock  # made with the channel: in old Pythons it belongs to an event loop, too
        self._callables: dict[str, Any] = {}

    def unary(
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
            token = self._token(deadline)
            try:
                call = self._callable("unary_unary", method.path, request, answer)
                left = max(deadline - time.monotonic(), 0.001)
                reply: M = call(request, timeout=left, metadata=_bearer(token))
                return reply
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.settings.base_url)
            if not renewed and self._renews(error, token):
                renewed = True
                continue
            delay = retry.delay(error)
            if delay is None:
                raise error
            sleep(delay)

    def stream(
        self, request: Message, answer: type[M], *, timeout: float = STREAM_TIMEOUT, repeatable: bool = True
    ) -> Iterator[M]:
        """Makes a call with a stream of answers. It is made again only while nothing has come yet."""
        method = method_of(type(request))
        deadline = time.monotonic() + timeout
        retry = Retry(repeatable=repeatable, deadline=deadline)
        begun = renewed = False
        while True:
            token = self._token(deadline)
            left = max(deadline - time.monotonic(), 0.001)
            call = self._callable("unary_stream", method.path, request, answer)(
                request, timeout=left, metadata=_bearer(token)
            )
            try:
                for reply in call:
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
            sleep(delay)

    def upload(
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
            token = self._token(deadline)
            call = self._callable("stream_unary", method.path, None, answer)
            outcome: Union[M, CloudSandboxError]
            try:
                outcome = call(feed, timeout=deadline - time.monotonic(), metadata=_bearer(token))
            except grpc.RpcError as failure:
                outcome = from_rpc(failure, self.settings.base_url)
            # before what it reads is read by the next
            feed.end()
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
            sleep(delay)
        raise ValueError("there is nothing to upload")

    def close(self) -> None:
        """Closes the channel; a later call opens another."""
        channel, self._channel = self._channel, None
        same = self._owner == owner()
        self._owner = None
        if channel is not None and same:
            channel.close()

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

    def _token(self, deadline: float) -> str:
        """The token to show, issued by the server if there is none."""
        token = self._credentials.token
        if token is not None:
            return token
        self._open()
        with self._lock:
            token = self._credentials.token
            if token is not None:
                return token
            left = max(deadline - time.monotonic(), 0.001)
            return self._credentials.accept(self.issue(self._credentials.request(), timeout=left))

    def issue(self, request: auth_pb2.IssueTokenRequest, *, timeout: Optional[float] = None) -> Issued:
        """Has the server issue a token, which is asked with the API key, or the token there is, or nothing."""
        method, answer = method_of(type(request)), auth_pb2.IssueTokenResponse
        deadline = time.monotonic() + (self.settings.request_timeout if timeout is None else timeout)
        retry = Retry(repeatable=True, deadline=deadline)
        while True:
            call = self._callable("unary_unary", method.path, request, answer)
            left = max(deadline - time.monotonic(), 0.001)
            try:
                reply: Issued = call(request, timeout=left, metadata=self._credentials.to_issue())
                return reply
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.settings.base_url)
            delay = retry.delay(error)
            if delay is None:
                raise error
            sleep(delay)

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

    def __init__(self, parts: Iterator[Message]) -> None:
        self._parts = parts
        self._reading = Lock()
        self._ended = False
        self.failure: Optional[Exception] = None

    def end(self) -> None:
        """Gives nothing more. gRPC may go on asking for a while after a call has failed."""
        with self._reading:
            self._ended = True

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Message:
        with self._reading:
            if self._ended:
                raise StopIteration
            try:
                return self._parts.__next__()
            except StopIteration:
                raise
            except Exception as error:
                self.failure = error
                raise StopIteration from None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)
