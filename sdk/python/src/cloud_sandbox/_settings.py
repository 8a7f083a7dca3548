"""Where the server is and who is calling: arguments first, environment variables next, defaults last."""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import urlsplit

from .errors import InvalidArgumentError

DEFAULT_URL = "http://localhost:8080"
# for calls that run nothing for long, in seconds
REQUEST_TIMEOUT = 60.0
# what a server answers at most: two outputs and the results, of 8 MiB each, and room
MESSAGE_MAX = 64 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """What a connection is opened with; equal settings share one."""

    base_url: str
    target: str
    secure: bool
    loopback: bool
    ca_file: Optional[str]
    user_id: str
    request_timeout: float
    token: Optional[str] = field(default=None, repr=False)
    api_key: Optional[str] = field(default=None, repr=False)
    # whether a token may be asked for
    issues: bool = True

    @classmethod
    def resolve(
        cls,
        *,
        base_url: Optional[str] = None,
        token: Optional[str] = None,
        api_key: Optional[str] = None,
        user_id: Optional[str] = None,
        ca_file: Union[str, os.PathLike[str], None] = None,
        request_timeout: Optional[float] = None,
    ) -> Settings:
        """Reads `CLOUD_SANDBOX_URL`, `…_TOKEN` and `…_API_KEY`, and `SSL_CERT_FILE`, for what is not given."""
        environment = os.environ.get
        # a token of the environment is another caller's than the one that is named here
        if token is None and api_key is None and user_id is None:
            token = environment("CLOUD_SANDBOX_TOKEN") or None
        if token is None and api_key is None:
            api_key = environment("CLOUD_SANDBOX_API_KEY") or None
        url = base_url or environment("CLOUD_SANDBOX_URL") or DEFAULT_URL
        secure, host, port = _parse(url)
        authority = ca_file or environment("SSL_CERT_FILE") or None
        return cls(
            base_url=url,
            target=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            secure=secure,
            loopback=_is_loopback(host),
            ca_file=os.fspath(authority) if secure and authority else None,
            user_id=user_id or _local_user(),
            request_timeout=_positive("request_timeout", request_timeout, REQUEST_TIMEOUT),
            token=token,
            api_key=api_key,
            issues=token is None or api_key is not None or user_id is not None,
        )

    def roots(self) -> Optional[bytes]:
        """The certificates of the authorities to trust; `None` for those that come with gRPC."""
        if self.ca_file is None:
            return None
        try:
            return Path(self.ca_file).read_bytes()
        except OSError as error:
            raise InvalidArgumentError.of("ca_file", f"cannot be read: {error}") from None

    def options(self) -> list[tuple[str, Any]]:
        """The channel's options."""
        return [
            ("grpc.max_receive_message_length", MESSAGE_MAX),
            ("grpc.max_send_message_length", MESSAGE_MAX),
            # a server that restarts is found again soon
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # a connection that a firewall forgot is noticed while something waits for an answer
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # a proxy would look for the server on its own loopback
            ("grpc.enable_http_proxy", 0 if self.loopback else 1),
            # channels to one target share connections otherwise, also those that a fork has broken
            ("grpc.use_local_subchannel_pool", 1),
        ]


def _parse(url: str) -> tuple[bool, str, int]:
    rule = "must be http://HOST[:PORT] or https://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgumentError.of("base_url", f"{rule}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidArgumentError.of("base_url", f"{rule}, not {url!r}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise InvalidArgumentError.of("base_url", f"{rule}, with nothing after the port and no user")
    secure = parts.scheme == "https"
    return secure, host, (443 if secure else 80) if port is None else port


def _positive(field: str, given: Optional[float], default: float) -> float:
    if given is None:
        return default
    if not given > 0:
        raise InvalidArgumentError.of(field, f"must be more than 0 seconds, not {given!r}")
    return float(given)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local_user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, ImportError, OSError):  # an account without a name
        name = ""
    return re.sub(r"[^A-Za-z0-9._@-]", "_", name)[:128] or "user"
