"""Files and folders on this side, for transfers: blocking, so callers do it aside."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Callable, Optional

from ._files import PIECE, LocalPath

Wanted = Callable[[Path], bool]


def size_of(file: Any) -> Optional[int]:
    """How much there is to read in an open file, where that can be told."""
    try:
        if not file.seekable():
            return None
        here: int = file.tell()
        end: int = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError):
        return None
    return end - here


def rewinder(data: Any) -> Callable[[], bool]:
    """Says whether `data` can be read (again) from where it stands now, and puts it there."""
    whole = isinstance(data, (str, bytes, bytearray, memoryview))
    start = None if whole or size_of(data) is None else data.tell()
    begun = False

    def rewind() -> bool:
        nonlocal begun
        first, begun = not begun, True
        if start is not None and not first:
            data.seek(start)
        return first or whole or start is not None

    return rewind


def pack(folder: LocalPath, wanted: Optional[Wanted]) -> IO[bytes]:
    """A folder as a tar archive in a temporary file that is gone when it is closed. Links are packed as links."""
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    archive = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in _below(root, wanted):
                tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_anonymous)
        archive.seek(0)
    except BaseException:
        archive.close()
        raise
    return archive


def _below(root: Path, wanted: Optional[Wanted]) -> Iterable[Path]:
    for path in sorted(root.iterdir()):
        if wanted is not None and not wanted(path.relative_to(root)):
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path, None if wanted is None else _under(path.name, wanted))


def _under(name: str, wanted: Wanted) -> Wanted:
    return lambda path: wanted(Path(name) / path)


def _anonymous(info: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:
    """Without the owner, who is nobody over there; without devices, sockets and pipes, which are of this machine."""
    if not (info.isfile() or info.isdir() or info.issym() or info.islnk()):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def unpack(archive: IO[bytes], folder: LocalPath) -> int:
    """Unpacks an archive that a sandbox made, which is not trusted: nothing lands outside `folder`.

    Returns how many entries. Refused entries are a `tarfile.TarError`; what was unpacked before stays.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    entries = 0
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for info in tar:
            if hasattr(tarfile, "data_filter"):
                tar.extract(info, root, filter="data")
            else:
                _check(info, root)
                tar.extract(info, root)
            entries += 1
    return entries


def _check(info: tarfile.TarInfo, root: Path) -> None:
    """What the filter `data` holds, for Pythons that have none: names, links and kinds; no setuid, no owner."""
    base = os.path.realpath(root)
    target = os.path.realpath(os.path.join(base, info.name))
    if not _inside(base, target):
        raise tarfile.ExtractError(f"{info.name!r} would land outside the folder")
    if info.issym() or info.islnk():
        start = os.path.dirname(target) if info.issym() else base
        if os.path.isabs(info.linkname) or not _inside(base, os.path.realpath(os.path.join(start, info.linkname))):
            raise tarfile.ExtractError(f"{info.name!r} would link outside the folder")
    elif not (info.isfile() or info.isdir()):
        raise tarfile.ExtractError(f"{info.name!r} is a device")
    info.mode = (info.mode & 0o755) | 0o600 | (0o100 if info.isdir() else 0)
    if hasattr(os, "getuid"):
        info.uid, info.gid = os.getuid(), os.getgid()
    info.uname = info.gname = ""


def _inside(base: str, path: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


class Download:
    """A file that appears whole or not at all."""

    def __init__(self, path: LocalPath) -> None:
        self._path = Path(path)
        # in the same folder, so that the rename is atomic
        name = f".{self._path.name[:200]}."
        handle, self._part = tempfile.mkstemp(prefix=name, suffix=".part", dir=self._path.parent)
        self._file = os.fdopen(handle, "wb")

    def write(self, data: bytes) -> None:
        """Adds a piece."""
        self._file.write(data)

    def commit(self) -> None:
        """Puts it into its place, with the rights of a new file or of the one replaced."""
        self._file.close()
        try:
            mode = os.stat(self._path).st_mode & 0o777
        except FileNotFoundError:
            mode = 0o666 & ~_umask()
        if sys.platform != "win32":
            os.chmod(self._part, mode)
        os.replace(self._part, self._path)

    def discard(self) -> None:
        """Leaves everything as it was."""
        self._file.close()
        Path(self._part).unlink(missing_ok=True)


def _umask() -> int:
    # there is no way to read it but to set it
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_piece(file: IO[bytes]) -> bytes:
    """The next piece of an open file; empty at its end."""
    data = file.read(PIECE)
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError("the file must be open in binary")
    return bytes(data)
