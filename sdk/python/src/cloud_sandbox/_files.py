"""What the server tells of files, and how they are named in calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Callable, Optional, Union, cast

from ._wire import Place, SandboxPath, moment, text_or_raw, word
from .errors import InvalidArgumentError
from .v1 import file_pb2

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

Data = Union[str, bytes, bytearray, memoryview]
"""A file's content; text is written as UTF-8."""
Source = Union[Data, IO[bytes], Iterable[bytes]]
"""A file's content, or what to read it from."""
Progress = Callable[[int, Optional[int]], Any]
"""Is called with the bytes that are through, and of how many in all where that is known."""
LocalPath = Union[str, "os.PathLike[str]"]

# of one message with a whole file, and of many files in one call
WHOLE_MAX = 4 * 1024 * 1024
BATCH_MAX = 8 * 1024 * 1024
BATCH_FILES = 1000
PIECE = 256 * 1024


@dataclass(frozen=True)
class FileInfo:
    """What lies at a path in a sandbox."""

    path: str
    """The absolute path; bytes that are not UTF-8 are replaced by U+FFFD."""
    name: str
    """The last part of the path."""
    type: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int
    """The size in bytes."""
    mode: int
    """The permission bits, 0 to 0o7777."""
    modify_time: datetime
    """When the content last changed."""
    target: str
    """Where a symbolic link points; empty for everything else."""
    etag: str
    """Changes whenever the content changes; empty for what is no file."""
    raw_path: Optional[bytes]
    """The path's bytes when they are not UTF-8: give them as the path in calls."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.type == "directory"

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type == "file"

    def __str__(self) -> str:
        return self.path

    @classmethod
    def _read(cls, message: file_pb2.FileInfo) -> FileInfo:
        return cls(
            path=message.path,
            name=message.name,
            type=word(file_pb2.FileType, message.type),
            size=message.size,
            mode=message.mode,
            modify_time=moment(message.modify_time),
            target=message.target,
            etag=message.etag,
            raw_path=message.raw_path or None,
        )


@dataclass(frozen=True)
class FileEvent:
    """Something that happened to a file that is watched."""

    type: str
    """`created`, `written`, `removed`, `renamed`, `changed` (mode, owner or times), or `overflow`: more happened than
    could be told, look at the folder anew."""
    path: str
    """The absolute path."""
    old_path: str
    """The path before, of `renamed`."""
    file_type: str
    """`file`, `directory`, `symlink` or `other`."""
    raw_path: Optional[bytes]
    """The path's bytes when they are not UTF-8."""

    @classmethod
    def _read(cls, message: file_pb2.FileEvent) -> FileEvent:
        return cls(
            type=word(file_pb2.FileEventType, message.type),
            path=message.path,
            old_path=message.old_path,
            file_type=word(file_pb2.FileType, message.file_type),
            raw_path=message.raw_path or None,
        )


@dataclass(frozen=True)
class FileMatch:
    """A file, or a line in one, that matches."""

    path: str
    """The absolute path."""
    line_number: int
    """The line's number, from 1; 0 without a pattern."""
    offset: int
    """Where the line begins, in bytes."""
    line: str
    """The line without its end, up to 4096 bytes of it."""
    raw_path: Optional[bytes]
    """The path's bytes when they are not UTF-8."""

    @classmethod
    def _read(cls, message: file_pb2.FileMatch) -> FileMatch:
        return cls(message.path, message.line_number, message.offset, message.line, message.raw_path or None)


@dataclass(frozen=True)
class FileUrl:
    """A signed address of one file, good for everybody who has it."""

    url: str
    """The whole address."""
    method: str
    """The HTTP method to use it with: `GET` or `PUT`."""
    expire_time: datetime
    """When it expires."""


def write_request(place: Place, path: SandboxPath, data: Data) -> file_pb2.WriteFileRequest:
    """A whole file to write."""
    text, raw = text_or_raw(path)
    return file_pb2.WriteFileRequest(
        sandbox_id=place.sandbox_id, session_id=place.session_id, path=text, raw_path=raw, data=as_bytes(data)
    )


def is_whole(data: Source) -> TypeGuard[Data]:
    """Whether it is the content itself, not something to read it from."""
    return isinstance(data, (str, bytes, bytearray, memoryview))


def as_bytes(data: Data) -> bytes:
    """Content as it is stored."""
    return data.encode() if isinstance(data, str) else bytes(data)


def batches(
    files: Union[Mapping[str, Data], Iterable[tuple[SandboxPath, Data]]],
) -> Iterable[list[file_pb2.WriteFileRequest]]:
    """The files in their order, as many at once as one call may carry."""
    pairs = cast("Iterable[tuple[SandboxPath, Data]]", files.items() if isinstance(files, Mapping) else files)
    batch: list[file_pb2.WriteFileRequest] = []
    size = 0
    for path, data in pairs:
        request = write_request(Place(), path, data)
        if len(request.data) > BATCH_MAX:
            raise InvalidArgumentError.of("files", f"must be of at most {BATCH_MAX} bytes each, not {path!r}: write it")
        if batch and (len(batch) == BATCH_FILES or size + len(request.data) > BATCH_MAX):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += len(request.data)
    if batch:
        yield batch


def check_mode(mode: Optional[int]) -> int:
    """Permission bits as the contracts have them; 0 for the server's default."""
    if mode is None:
        return 0
    if not 1 <= mode <= 0o777:
        raise InvalidArgumentError.of("mode", f"must be from 0o1 to 0o777, not {mode!r}")
    return mode
