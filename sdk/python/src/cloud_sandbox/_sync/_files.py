# Made from cloud_sandbox/_async/_files.py by `make sdk`; do not edit.
"""Files in a sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import List, Literal, Optional, Union, overload

from .._files import Data, FileEvent, FileInfo, FileMatch, FileUrl, Source, batches, check_mode
from .._wire import SandboxPath, enum, moment, text_or_raw, word
from ..errors import NotFoundError
from ..v1 import auth_pb2, file_pb2
from ._transfer import Transfers
from ._transport import STREAM_TIMEOUT


class Files(Transfers):
    """Reads, writes and watches files: `sandbox.files`.

    Paths are absolute, without `..`, and resolved inside the sandbox with its user's rights. One that is not UTF-8 is
    given as bytes.
    """

    @overload
    def read(self, path: SandboxPath, *, offset: int = 0, length: Optional[int] = None) -> str: ...

    @overload
    def read(
        self, path: SandboxPath, *, format: Literal["text"], offset: int = 0, length: Optional[int] = None
    ) -> str: ...

    @overload
    def read(
        self, path: SandboxPath, *, format: Literal["bytes"], offset: int = 0, length: Optional[int] = None
    ) -> bytes: ...

    @overload
    def read(
        self, path: SandboxPath, *, format: Literal["stream"], offset: int = 0, length: Optional[int] = None
    ) -> Iterator[bytes]: ...

    def read(
        self,
        path: SandboxPath,
        *,
        format: Literal["text", "bytes", "stream"] = "text",
        offset: int = 0,
        length: Optional[int] = None,
    ) -> Union[str, bytes, Iterator[bytes]]:
        """Reads a file of any size.

        Args:
            path: the file.
            format: `text` for a string of UTF-8, `bytes`, or `stream` for an iterator over pieces.
            offset: where to begin, in bytes.
            length: how many bytes at most. Default: to the end.

        Raises:
            FileMissingError: there is no such file.
            UnicodeDecodeError: it is not UTF-8; ask for `bytes`.
        """
        pieces = self._download(path, offset=offset, length=length)
        if format == "stream":
            return pieces
        data = b"".join([piece for piece in pieces])
        return data if format == "bytes" else data.decode()

    def write(
        self,
        path: SandboxPath,
        data: Source,
        *,
        mode: Optional[int] = None,
        append: bool = False,
        if_etag: Optional[str] = None,
    ) -> FileInfo:
        """Writes a file of any size, atomically: a reader sees the old content or the new. Missing parents are made.

        Args:
            path: the file.
            data: text, bytes, a file that is open for reading in binary, or an iterable of bytes.
            mode: permission bits. Default: those of the file replaced, else 0o644.
            append: add to its end instead; up to 4 MiB, and a repeated call adds again.
            if_etag: write only if the file has this `etag`, or only if there is none, when `*none`.

        Raises:
            FileChangedError: the file has not that `etag`.
        """
        return self._write(path, data, mode=check_mode(mode), append=append, if_etag=if_etag or "")

    def write_many(self, files: Union[Mapping[str, Data], Iterable[tuple[SandboxPath, Data]]]) -> List[FileInfo]:
        """Writes many files, each atomically, in their order, with few calls.

        The first that fails ends it; the error names it, and those before it are written.

        Args:
            files: contents by path, or pairs of path and content; up to 8 MiB each.
        """
        written: List[FileInfo] = []
        for batch in batches(files):
            request = file_pb2.WriteFilesRequest(
                sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, files=batch
            )
            answer = self._transport.unary(request, file_pb2.WriteFilesResponse)
            written += [FileInfo._read(info) for info in answer.files]
        return written

    def stat(self, path: SandboxPath, *, follow: bool = True) -> FileInfo:
        """Describes what lies at a path.

        Args:
            path: the path.
            follow: describe what a symbolic link leads to, not the link.

        Raises:
            FileMissingError: there is nothing.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.StatFileRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            no_follow=not follow,
        )
        answer = self._transport.unary(request, file_pb2.StatFileResponse)
        return FileInfo._read(answer.file)

    def exists(self, path: SandboxPath) -> bool:
        """Says whether something lies at a path; a link counts by what it leads to."""
        try:
            self.stat(path)
        except NotFoundError as error:
            if error.reason != "FILE_NOT_FOUND":  # the sandbox
                raise
            return False
        return True

    def make_dir(self, path: SandboxPath, *, mode: Optional[int] = None) -> FileInfo:
        """Makes a folder and its missing parents. One that is there already is left as it is.

        Args:
            path: the folder.
            mode: permission bits. Default: 0o755.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.MakeFolderRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            mode=check_mode(mode),
        )
        answer = self._transport.unary(request, file_pb2.MakeFolderResponse)
        return FileInfo._read(answer.file)

    def remove(self, path: SandboxPath, *, recursive: bool = False) -> None:
        """Deletes a file, a link (never what it points to), or a folder.

        Args:
            path: what to delete.
            recursive: delete a folder with all that is in it.

        Raises:
            FileMissingError: there is nothing.
            StateError: the folder is not empty, and `recursive` was not given.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.DeleteFileRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            recursive=recursive,
        )
        self._transport.unary(request, file_pb2.DeleteFileResponse)

    def rename(self, old: SandboxPath, new: SandboxPath, *, overwrite: bool = False) -> FileInfo:
        """Renames a file, link or folder, atomically. Missing parents are made.

        Args:
            old: what to rename.
            new: the new path itself, not a folder to put it into.
            overwrite: replace a file that is there; a folder is never replaced.

        Raises:
            FileThereError: something is there, and `overwrite` was not given.
        """
        (source, raw_source), (destination, raw_destination) = text_or_raw(old), text_or_raw(new)
        request = file_pb2.MoveFileRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            source=source,
            raw_source=raw_source,
            destination=destination,
            raw_destination=raw_destination,
            overwrite=overwrite,
        )
        answer = self._transport.unary(request, file_pb2.MoveFileResponse)
        return FileInfo._read(answer.file)

    def copy(
        self, source: SandboxPath, destination: SandboxPath, *, overwrite: bool = False, recursive: bool = False
    ) -> FileInfo:
        """Copies a file, a link itself, or a folder. Missing parents are made.

        Args:
            source: what to copy.
            destination: the new path itself, not a folder to put it into.
            overwrite: replace a file that is there.
            recursive: copy a folder with all that is in it.
        """
        (old, raw_old), (new, raw_new) = text_or_raw(source), text_or_raw(destination)
        request = file_pb2.CopyFileRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            source=old,
            raw_source=raw_old,
            destination=new,
            raw_destination=raw_new,
            overwrite=overwrite,
            recursive=recursive,
        )
        answer = self._transport.unary(request, file_pb2.CopyFileResponse)
        return FileInfo._read(answer.file)

    def set_mode(self, path: SandboxPath, mode: int, *, recursive: bool = False) -> FileInfo:
        """Sets permission bits.

        Args:
            path: the file or folder.
            mode: the bits, 0 to 0o777.
            recursive: also of everything in the folder.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.ChangeModeRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            mode=mode,
            recursive=recursive,
        )
        answer = self._transport.unary(request, file_pb2.ChangeModeResponse)
        return FileInfo._read(answer.file)

    def search(
        self,
        path: SandboxPath,
        pattern: str = "",
        *,
        glob: str = "",
        ignore_case: bool = False,
        max_matches: int = 100,
    ) -> List[FileMatch]:
        """Searches a folder by name and by content. Links are not followed, binary files not searched.

        Args:
            path: the folder.
            pattern: a regular expression in the syntax of RE2, for one line. Default: find files by `glob` alone.
            glob: only files that match this pattern: `*.py`, `src/**/*.py`.
            ignore_case: take upper and lower case for the same.
            max_matches: how many to return at most, up to 1000.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.SearchFilesRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            pattern=pattern,
            glob=glob,
            ignore_case=ignore_case,
            max_matches=max_matches,
        )
        answer = self._transport.unary(request, file_pb2.SearchFilesResponse)
        return [FileMatch._read(match) for match in answer.matches]

    def watch(
        self, path: SandboxPath, *, recursive: bool = False, timeout: Optional[float] = None
    ) -> Iterator[FileEvent]:
        """Gives what happens in a folder or to a file, from now on.

        The watch has begun when this returns: what happens later is told. It ends when the iterator is closed.

        Args:
            path: the folder or file.
            recursive: also watch all folders in it, also those that come later. A new folder is watched when it is told
                of: what is in it by then is `created`, what has come and gone by then is not told.
            timeout: seconds after which it ends with a `CallTimeoutError`. Default: a day.

        Raises:
            FileMissingError: there is no such path, or (while iterating) it is gone.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.WatchFilesRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            recursive=recursive,
        )
        answers = self._transport.stream(request, file_pb2.WatchFilesResponse, timeout=timeout or STREAM_TIMEOUT)
        answers.__next__()  # `started`
        return _events(answers)

    def url(
        self, path: SandboxPath, *, access: Literal["read", "write"] = "read", expires_in: Optional[int] = None
    ) -> FileUrl:
        """Signs an address with which anybody may read or write one file without a token, until it expires.

        Args:
            path: the file, UTF-8.
            access: what it is good for.
            expires_in: how long, in seconds, up to 604800. Default: 3600.
        """
        request = auth_pb2.CreateFileUrlRequest(
            sandbox_id=self._sandbox_id(),
            path=text_or_raw(path)[0],
            access=enum("access", auth_pb2.FileAccess, access),
            expires_in=expires_in or 0,
        )
        answer = self._transport.unary(request, auth_pb2.CreateFileUrlResponse, repeatable=True)
        url = self._transport.settings.base_url.rstrip("/") + answer.url
        return FileUrl(url, answer.method, moment(answer.expire_time))

    # last, because within the class it hides the type of that name
    def list(self, path: SandboxPath = "/workspace", *, depth: int = 1, glob: str = "") -> List[FileInfo]:
        """Lists what lies in a folder, by path; links are listed, not followed.

        Args:
            path: the folder.
            depth: how many levels of folders, 1 to 64.
            glob: only what matches this pattern: `*.py`, `src/**/*.py`.
        """
        text, raw = text_or_raw(path)
        request = file_pb2.ListFilesRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            path=text,
            raw_path=raw,
            depth=depth,
            glob=glob,
            page_size=1000,
        )
        found: List[FileInfo] = []
        while True:
            answer = self._transport.unary(request, file_pb2.ListFilesResponse)
            found += [FileInfo._read(info) for info in answer.files]
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found


def _events(answers: Iterator[file_pb2.WatchFilesResponse]) -> Iterator[FileEvent]:
    for answer in answers:
        if word(file_pb2.FileEventType, answer.event.type) not in ("", "started"):
            yield FileEvent._read(answer.event)
