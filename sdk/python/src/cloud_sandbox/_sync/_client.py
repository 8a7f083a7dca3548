# Made from cloud_sandbox/_async/_client.py by `make sdk`; do not edit.
"""A connection to a server that sandboxes share."""

from __future__ import annotations

import os
from collections import OrderedDict
from types import TracebackType
from typing import Optional, Union

from .._settings import Settings
from .._wire import enum
from ..errors import InvalidArgumentError
from ..v1 import auth_pb2, scheduler_pb2
from ._io import owner
from ._templates import Templates
from ._transport import Transport

# connections that are kept open for those to come
KEPT = 16


class Client:
    """A connection to a server, for callers who want to close it themselves or to see the server as a whole.

    Everyone else needs none: `Sandbox.create(base_url=…)` and its like share one for equal arguments. It may be
    used by many tasks at once.

    Args:
        base_url: the server's address. Default: `CLOUD_SANDBOX_URL`, else `http://localhost:8080`.
        token: a bearer token. Default: `CLOUD_SANDBOX_TOKEN`.
        api_key: a key with which the server issues tokens. Default: `CLOUD_SANDBOX_API_KEY`.
        user_id: the user to ask a token for. Default: the local user's name.
        ca_file: the certificates of the authorities to trust. Default: `SSL_CERT_FILE`, else those of gRPC.
        request_timeout: how long a call may take that runs nothing for long, in seconds. Default: 60.
    """

    def __init__(
        self,
        base_url: Optional[str] = None,
        *,
        token: Optional[str] = None,
        api_key: Optional[str] = None,
        user_id: Optional[str] = None,
        ca_file: Union[str, os.PathLike[str], None] = None,
        request_timeout: Optional[float] = None,
    ) -> None:
        settings = Settings.resolve(
            base_url=base_url,
            token=token,
            api_key=api_key,
            user_id=user_id,
            ca_file=ca_file,
            request_timeout=request_timeout,
        )
        self._transport = Transport(settings)

    @property
    def templates(self) -> Templates:
        """What sandboxes are made from: `templates.create(…)`, `get`, `list`, `watch`, `wait` and `delete`."""
        return Templates(self._transport)

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._transport.settings.base_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def issue_token(self, user_id: str, *, role: Optional[str] = None, expires_in: Optional[int] = None) -> str:
        """Has the server issue a bearer token, to hand to somebody else.

        Args:
            user_id: whom the token speaks for.
            role: `user` or `admin`. Default: `user`.
            expires_in: how long it is valid, in seconds, 60 to 604800. Default: the server's setting.
        """
        request = auth_pb2.IssueTokenRequest(
            user_id=user_id, role=enum("role", auth_pb2.Role, role), expires_in=expires_in or 0
        )
        answer = self._transport.issue(request)
        return answer.access_token

    def stats(self) -> dict[str, int]:
        """Counts the server's sandboxes: `total`, `ready`, `acquired`, `paused`, `creating`, and its `capacity`."""
        answer = self._transport.unary(scheduler_pb2.GetSandboxStatsRequest(), scheduler_pb2.GetSandboxStatsResponse)
        names = ("total", "ready", "acquired", "paused", "creating", "capacity")
        return {name: getattr(answer, name) for name in names}

    def close(self) -> None:
        """Closes the connection. Sandboxes that were made with it live on."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


_shared: OrderedDict[tuple[Settings, object], Transport] = OrderedDict()


def transport_of(
    client: Optional[Client] = None,
    *,
    base_url: Optional[str] = None,
    token: Optional[str] = None,
    api_key: Optional[str] = None,
    user_id: Optional[str] = None,
    ca_file: Union[str, os.PathLike[str], None] = None,
    request_timeout: Optional[float] = None,
) -> Transport:
    """The client's connection, or the one that all share who say the same."""
    if client is not None:
        if any(given is not None for given in (base_url, token, api_key, user_id, ca_file, request_timeout)):
            raise InvalidArgumentError.of("client", "must be given alone: it knows its server and caller")
        return client._transport
    settings = Settings.resolve(
        base_url=base_url,
        token=token,
        api_key=api_key,
        user_id=user_id,
        ca_file=ca_file,
        request_timeout=request_timeout,
    )
    key = (settings, owner())
    found = _shared.pop(key, None) or Transport(settings)
    _shared[key] = found
    while len(_shared) > KEPT:
        # those who still use it keep it open
        _shared.popitem(last=False)
    return found
