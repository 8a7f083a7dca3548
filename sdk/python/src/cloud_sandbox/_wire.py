"""From what callers give to what the contracts carry, and back."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any, Optional, Union

from google.protobuf.timestamp_pb2 import Timestamp

from .errors import InvalidArgumentError

SandboxPath = Union[str, bytes, PurePosixPath]
"""A path in a sandbox: absolute, without `..`; as bytes when it is not UTF-8."""
# an enum of the generated code, of which its stubs do not tell what it has at run time
EnumKind = Any


@dataclass(frozen=True)
class Place:
    """Where calls go: a sandbox, or the one that a session has now."""

    sandbox_id: str = ""
    session_id: str = ""


def new_request_id() -> str:
    """An id by which a call that is made again is known."""
    return uuid.uuid4().hex


def milliseconds(field: str, seconds: Optional[float]) -> int:
    """A timeout as the contracts have it; 0 for the server's default."""
    if seconds is None:
        return 0
    if not 0 < seconds <= 86_400:
        raise InvalidArgumentError.of(field, f"must be more than 0 and at most 86400 seconds, not {seconds!r}")
    return max(1, round(seconds * 1000))


def whole_seconds(field: str, seconds: Optional[float]) -> int:
    """A lease as the contracts have it; 0 for the server's default."""
    if seconds is None:
        return 0
    if not 1 <= seconds <= 2_592_000:
        raise InvalidArgumentError.of(field, f"must be from 1 to 2592000 seconds, not {seconds!r}")
    return round(seconds)


def text_or_raw(path: SandboxPath) -> tuple[str, bytes]:
    """A path as the contracts' two fields: as text, or as bytes when it is not UTF-8."""
    if isinstance(path, bytes):
        try:
            return path.decode(), b""
        except UnicodeDecodeError:
            return "", path
    path = str(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return "", os.fsencode(path)
    return path, b""


def labels(metadata: Optional[Mapping[str, str]]) -> list[str]:
    """Labels to filter by, as the contracts have them."""
    return [f"{key}={value}" for key, value in (metadata or {}).items()]


def moment(stamp: Timestamp) -> datetime:
    """A time with its zone, UTC."""
    return stamp.ToDatetime(tzinfo=timezone.utc)


def word(kind: EnumKind, value: int) -> str:
    """An enum's value in lower case, without its type's name; empty for `unspecified` and for what is newer than we."""
    named = kind.DESCRIPTOR.values_by_number.get(value)
    return "" if named is None or value == 0 else named.name[len(_prefix(kind)) :].lower()


def enum(field: str, kind: EnumKind, given: Optional[str]) -> Any:
    """The enum's value that is meant by a word, or 0 for `None`."""
    if given is None:
        return 0
    values = {word(kind, number): number for number in kind.DESCRIPTOR.values_by_number if number}
    if given not in values:
        raise InvalidArgumentError.of(field, f"must be one of {', '.join(sorted(values))}, not {given!r}")
    return values[given]


def _prefix(kind: EnumKind) -> str:
    # the first value is named TYPE_UNSPECIFIED
    unspecified: str = kind.DESCRIPTOR.values_by_number[0].name
    return unspecified[: -len("UNSPECIFIED")]
