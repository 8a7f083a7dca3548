"""Which server to speak to and as whom: what every way to a sandbox or session takes by keyword."""

from __future__ import annotations

from typing import TypedDict

from ._files import LocalPath


class Connection(TypedDict, total=False):
    """Keywords of `create`, `connect`, `get` and `list`, all optional."""

    base_url: str
    """The server's address, `http://HOST[:PORT]` or `https://…`. Default: `CLOUD_SANDBOX_URL`, else
    `http://localhost:8080`."""
    token: str
    """A bearer token. Default: `CLOUD_SANDBOX_TOKEN`."""
    api_key: str
    """A key with which the server issues tokens, renewed as needed. Default: `CLOUD_SANDBOX_API_KEY`."""
    user_id: str
    """The user to ask a token for, with the key, or of a development server on loopback without one. Default: the local
    user's name."""
    ca_file: LocalPath
    """A file with the certificates of the authorities to trust. Default: `SSL_CERT_FILE`, else those that come with
    gRPC."""
    request_timeout: float
    """How long a call may take that runs nothing for long, in seconds, with its retries. Default: 60."""
