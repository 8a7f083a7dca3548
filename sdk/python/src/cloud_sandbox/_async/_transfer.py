"""Contents of files and folders, in and out, piece by piece."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator
from typing import IO, Any, Optional, Union

from .._files import PIECE, WHOLE_MAX, FileInfo, LocalPath, Progress, Source, as_bytes, is_whole, write_request
from .._local import Download, Wanted, pack, read_piece, rewinder, size_of, unpack
from .._methods import method_of
from .._retry import Retry
from .._wire import Place, SandboxPath, text_or_raw
from ..errors import FileChangedError, InvalidArgumentError, ServiceConnectionError
from ..v1 import file_pb2, session_pb2
from ._io import aside, sleep
from ._transport import STREAM_TIMEOUT, AsyncTransport, Parts

UploadPart = Union[file_pb2.UploadFileRequest, file_pb2.UploadArchiveRequest]


class AsyncTransfers:
    """Up and down; the other calls with files are in its subclass."""

    def __init__(self, transport: AsyncTransport, place: Place) -> None:
        self._transport = transport
        self._place = place

    async def upload(
        self,
        local: Union[LocalPath, IO[bytes]],
        path: SandboxPath,
        *,
        mode: Optional[int] = None,
        progress: Optional[Progress] = None,
    ) -> FileInfo:
        """Writes a local file of any size into the sandbox, atomically.

        Args:
            local: its path, or a file that is open for reading in binary.
            path: where to write it.
            mode: permission bits. Default: those of the file replaced, else 0o644.
            progress: is called with the bytes sent and, where that is known, of how many.
        """
        if not isinstance(local, (str, os.PathLike)):
            return await self._upload(path, local, mode=mode or 0, if_etag="", progress=progress)
        file: IO[bytes] = await aside(lambda: open(local, "rb"))  # noqa: SIM115
        try:
            return await self._upload(path, file, mode=mode or 0, if_etag="", progress=progress)
        finally:
            file.close()

    async def download(
        self, path: SandboxPath, local: Union[LocalPath, IO[bytes]], *, progress: Optional[Progress] = None
    ) -> int:
        """Reads a file of any size from the sandbox into a local one, which appears whole or not at all.

        Args:
            path: the file in the sandbox.
            local: the local path, or a file that is open for writing in binary.
            progress: is called with the bytes received and of how many.

        Returns:
            How many bytes it has.
        """
        if not isinstance(local, (str, os.PathLike)):
            return await self._save(path, local, progress)
        target = await aside(lambda: Download(local))
        try:
            size = await self._save(path, target, progress)
            await aside(target.commit)
        except BaseException:
            target.discard()
            raise
        return size

    async def upload_dir(
        self,
        local: LocalPath,
        path: SandboxPath = "/workspace",
        *,
        wanted: Optional[Wanted] = None,
        progress: Optional[Progress] = None,
    ) -> int:
        """Writes a local folder with all that is in it into a folder of the sandbox, which is made when it is missing.

        Files that are there already are replaced, others stay. It needs a temporary file of the folder's size.

        Args:
            local: the local folder.
            path: the folder in the sandbox.
            wanted: says of each path, relative to the folder, whether to take it; a folder that is not wanted is left
                out with all that is in it. Default: everything.
            progress: is called with the bytes sent and of how many.

        Returns:
            How many files, folders and links were written.
        """
        archive = await aside(lambda: pack(local, wanted))
        try:
            header = file_pb2.UploadArchiveHeader(sandbox_id=self._place.sandbox_id, session_id=self._place.session_id)
            header.path, header.raw_path = text_or_raw(path)
            answer = await self._transport.upload(
                method_of(file_pb2.UploadArchiveRequest),
                _parts(file_pb2.UploadArchiveRequest(header=header), archive, progress),
                file_pb2.UploadArchiveResponse,
                repeatable=True,
            )
        finally:
            archive.close()
        return answer.entries

    async def download_dir(self, path: SandboxPath, local: LocalPath, *, progress: Optional[Progress] = None) -> int:
        """Reads a folder of the sandbox into a local folder, which is made when it is missing.

        What the sandbox made is not trusted: entries that would land or link outside the local folder, and devices, are
        refused. It needs a temporary file of the folder's size.

        Args:
            path: the folder in the sandbox.
            local: the local folder.
            progress: is called with the bytes received.

        Returns:
            How many files, folders and links were written.

        Raises:
            tarfile.TarError: an entry was refused; what was written before it stays.
        """
        request = file_pb2.DownloadArchiveRequest(sandbox_id=self._place.sandbox_id, session_id=self._place.session_id)
        request.path, request.raw_path = text_or_raw(path)
        with tempfile.TemporaryFile() as archive:
            through = 0
            async for answer in self._transport.stream(request, file_pb2.DownloadArchiveResponse):
                archive.write(answer.data)
                through += len(answer.data)
                if progress is not None:
                    progress(through, None)
            archive.seek(0)
            return await aside(lambda: unpack(archive, local))

    async def _write(self, path: SandboxPath, data: Source, *, mode: int, append: bool, if_etag: str) -> FileInfo:
        if is_whole(data):
            whole = as_bytes(data)
            if len(whole) <= WHOLE_MAX:
                request = write_request(self._place, path, whole)
                request.mode, request.append, request.if_etag = mode, append, if_etag
                # a second call would add again, or find the etag changed by the first
                repeatable = not append and not if_etag
                answer = await self._transport.unary(request, file_pb2.WriteFileResponse, repeatable=repeatable)
                return FileInfo._read(answer.file)
        if append:
            raise InvalidArgumentError.of("append", f"is for text and bytes of at most {WHOLE_MAX} bytes")
        return await self._upload(path, data, mode=mode, if_etag=if_etag, progress=None)

    async def _upload(
        self, path: SandboxPath, data: Any, *, mode: int, if_etag: str, progress: Optional[Progress]
    ) -> FileInfo:
        header = file_pb2.UploadFileHeader(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, mode=mode, if_etag=if_etag
        )
        header.path, header.raw_path = text_or_raw(path)
        answer = await self._transport.upload(
            method_of(file_pb2.UploadFileRequest),
            _parts(file_pb2.UploadFileRequest(header=header), data, progress),
            file_pb2.UploadFileResponse,
            repeatable=not if_etag,
        )
        return FileInfo._read(answer.file)

    async def _save(self, path: SandboxPath, target: Any, progress: Optional[Progress]) -> int:
        through = 0
        sizes: list[int] = []
        async for piece in self._download(path, sizes=sizes):
            await aside(lambda piece=piece: target.write(piece))  # type: ignore[misc]
            through += len(piece)
            if progress is not None:
                progress(through, sizes[0])
        return through

    async def _download(
        self,
        path: SandboxPath,
        *,
        offset: int = 0,
        length: Optional[int] = None,
        sizes: Optional[list[int]] = None,
    ) -> AsyncIterator[bytes]:
        """Pieces of a file. A stream that breaks is gone on with where it stopped, unless the file has changed."""
        if length == 0:
            return
        retry = Retry(repeatable=True, deadline=time.monotonic() + STREAM_TIMEOUT)
        text, raw = text_or_raw(path)
        etag, end = "", None if length is None else offset + length
        while True:
            request = file_pb2.DownloadFileRequest(
                sandbox_id=self._place.sandbox_id,
                session_id=self._place.session_id,
                path=text,
                raw_path=raw,
                offset=offset,
                length=0 if end is None else end - offset,
            )
            answers = self._transport.stream(request, file_pb2.DownloadFileResponse, repeatable=False)
            try:
                async for answer in answers:
                    retry.succeed()
                    if answer.HasField("file"):
                        if etag and answer.file.etag != etag:
                            raise FileChangedError(f"{text} has changed while it was read", reason="FILE_CHANGED")
                        etag = answer.file.etag
                        if sizes is not None and not sizes:
                            sizes.append(answer.file.size)
                    if answer.data:
                        offset += len(answer.data)
                        yield answer.data
                return
            except ServiceConnectionError as error:
                delay = retry.delay(error)
                if delay is None or offset == end:
                    raise
                await sleep(delay)

    async def _sandbox_id(self) -> str:
        """The sandbox itself, where a session does not do."""
        if self._place.sandbox_id:
            return self._place.sandbox_id
        request = session_pb2.GetSessionRequest(session_id=self._place.session_id)
        answer = await self._transport.unary(request, session_pb2.GetSessionResponse)
        return answer.session.sandbox_id


def _parts(head: UploadPart, data: Any, progress: Optional[Progress]) -> Parts:
    """Begins an upload, and begins it again where that can be done."""
    rewind = rewinder(data)
    return lambda: _messages(head, data, progress) if rewind() else None


async def _messages(head: UploadPart, data: Any, progress: Optional[Progress]) -> AsyncIterator[UploadPart]:
    """The messages of an upload: its header, the content in pieces, and the word that it is complete."""
    kind = type(head)
    yield head
    through = 0
    total = len(as_bytes(data)) if is_whole(data) else size_of(data)
    async for piece in _pieces(data):
        yield kind(data=piece)
        through += len(piece)
        if progress is not None:
            progress(through, total)
    yield kind(commit=file_pb2.UploadCommit())


async def _pieces(data: Any) -> AsyncIterator[bytes]:
    if is_whole(data):
        whole = memoryview(as_bytes(data))
        for begin in range(0, len(whole), PIECE):
            yield bytes(whole[begin : begin + PIECE])
    elif hasattr(data, "read"):
        while True:
            piece = await aside(lambda: read_piece(data))
            if not piece:
                return
            yield piece
    else:
        for given in data:
            if not isinstance(given, (bytes, bytearray, memoryview)):
                raise TypeError(f"pieces of a file must be bytes, not {type(given).__name__}")
            view = memoryview(given)
            for begin in range(0, len(view), PIECE):
                yield bytes(view[begin : begin + PIECE])
