"""The bearer token: given, or issued by the server, renewed before it expires and when the server refuses it."""

from __future__ import annotations

import time
from typing import Optional

from ._settings import Settings
from .v1 import auth_pb2


class Credentials:
    """What a connection shows. It decides only; who uses it asks the server and keeps others waiting meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token = settings.token
        self._renew_at: Optional[float] = None

    @property
    def token(self) -> Optional[str]:
        """The token to use now; `None` when one has to be issued first."""
        if self._renew_at is not None and time.monotonic() >= self._renew_at:
            self._token = self._renew_at = None
        return self._token

    def can_replace(self, token: Optional[str]) -> bool:
        """Whether there is, or can be had, another token than the one that was refused."""
        return self._settings.issues or self._token != token

    def refuse(self, token: str) -> None:
        """Notes that the server does not take `token`; another one that came meanwhile stays."""
        if self._token == token and self._settings.issues:
            self._token = None

    def request(self) -> auth_pb2.IssueTokenRequest:
        """Asks for a token."""
        return auth_pb2.IssueTokenRequest(user_id=self._settings.user_id)

    def to_issue(self) -> tuple[tuple[str, str], ...]:
        """What a request for a token is sent with."""
        if self._settings.api_key:
            return (("x-api-key", self._settings.api_key),)
        # an administrator's token issues others; one that was refused does not
        return (("authorization", f"Bearer {self._token}"),) if self._token else ()

    def accept(self, answer: auth_pb2.IssueTokenResponse) -> str:
        """Takes the token that was issued, to be renewed when four fifths of its time are over."""
        self._token = answer.access_token
        self._renew_at = time.monotonic() + answer.expires_in * 0.8
        return self._token
