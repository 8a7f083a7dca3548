from __future__ import annotations

import io
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from faces import Face

from cloud_sandbox import (
    FileChangedError,
    FileMissingError,
    FileThereError,
    InvalidArgumentError,
    SandboxNotFoundError,
    StateError,
)


async def test_text_and_bytes_come_back_as_they_were(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        files = sandbox.files
        info = await files.write("/workspace/a/b.txt", "grüß\n", mode=0o600)
        assert (info.path, info.size, info.mode, info.type) == ("/workspace/a/b.txt", 7, 0o600, "file")
        assert await files.read("/workspace/a/b.txt") == "grüß\n"
        await files.write("/workspace/raw", b"\xff\x00")
        assert await files.read("/workspace/raw", format="bytes") == b"\xff\x00"
        with pytest.raises(UnicodeDecodeError):
            await files.read("/workspace/raw")
        await files.write("/workspace/a/b.txt", "more", append=True)
        assert await files.read("/workspace/a/b.txt", offset=6, length=4) == "\nmor"
        assert await files.read("/workspace/a/b.txt", length=0) == ""


async def test_large_content_is_streamed(face: Face, url: str) -> None:
    content = bytes(range(256)) * 40_000
    async with await face.Sandbox.create() as sandbox:
        assert (await sandbox.files.write("/workspace/large", content)).size == len(content)
        sizes = [len(piece) async for piece in await sandbox.files.read("/workspace/large", format="stream")]
        assert (sum(sizes), len(sizes) > 1) == (len(content), True)
        await sandbox.files.write("/workspace/of-file", io.BytesIO(content))
        await sandbox.files.write("/workspace/of-pieces", iter([content[:5], content[5:]]))
        result = await sandbox.commands.run("cmp large of-file && cmp large of-pieces")
        assert result.exit_code == 0


async def test_folders_are_listed_stated_renamed_copied_and_removed(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        files = sandbox.files
        written = await files.write_many({"/workspace/x/1.py": "a = 1\n", "/workspace/x/y/2.py": b"b = 2\n"})
        assert [info.size for info in written] == [6, 6]
        assert [info.name for info in await files.list("/workspace/x")] == ["1.py", "y"]
        assert [info.path for info in await files.list("/workspace", depth=9, glob="*.py")] == [
            "/workspace/x/1.py",
            "/workspace/x/y/2.py",
        ]
        assert (await files.stat("/workspace/x")).is_dir
        assert await files.exists("/workspace/x/1.py")
        assert not await files.exists("/workspace/x/3.py")
        await files.copy("/workspace/x", "/workspace/z", recursive=True)
        await files.rename("/workspace/z/1.py", "/workspace/z/one.py")
        with pytest.raises(FileThereError):
            await files.rename("/workspace/z/one.py", "/workspace/z/y/2.py")
        await files.set_mode("/workspace/z/one.py", 0o755)
        assert (await files.stat("/workspace/z/one.py")).mode == 0o755
        found = await files.search("/workspace", r"b = \d", glob="*.py")
        assert [(match.path, match.line) for match in found] == [
            ("/workspace/x/y/2.py", "b = 2"),
            ("/workspace/z/y/2.py", "b = 2"),
        ]
        with pytest.raises(StateError):
            await files.remove("/workspace/z")
        await files.remove("/workspace/z", recursive=True)
        assert (await files.make_dir("/workspace/d/e")).is_dir
        await sandbox.commands.run("ln -s x link")
        assert (await files.stat("/workspace/link", follow=False)).target == "x"


async def test_missing_file_is_also_a_file_not_found_error(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        with pytest.raises(FileNotFoundError, match="none"):
            await sandbox.files.read("/workspace/none")
        with pytest.raises(FileMissingError):
            await sandbox.files.remove("/workspace/none")
        assert await sandbox.kill()
        with pytest.raises(SandboxNotFoundError):
            await sandbox.files.exists("/workspace/none")


async def test_paths_that_are_not_utf_8_are_bytes(face: Face, url: str) -> None:
    path = b"/workspace/\xff\xfe"
    async with await face.Sandbox.create() as sandbox:
        await sandbox.files.write(path, "odd")
        (info,) = await sandbox.files.list("/workspace")
        assert info.raw_path == path
        assert await sandbox.files.read(info.raw_path) == "odd"
        assert await sandbox.files.read(path.decode("utf-8", "surrogateescape")) == "odd"


async def test_file_is_written_only_if_it_has_the_etag(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        first = await sandbox.files.write("/workspace/f", "1", if_etag="*none")
        await sandbox.files.write("/workspace/f", "2", if_etag=first.etag)
        with pytest.raises(FileChangedError):
            await sandbox.files.write("/workspace/f", "3", if_etag=first.etag)


async def test_rules_of_the_sdk_name_the_argument(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        with pytest.raises(InvalidArgumentError) as caught:
            await sandbox.files.write("/workspace/f", "x", mode=0o4755)
        assert set(caught.value.fields) == {"mode"}
        with pytest.raises(InvalidArgumentError) as caught:
            await sandbox.files.read("relative")
        assert "path" in caught.value.fields
        with pytest.raises(TypeError, match="binary"):
            await sandbox.files.write("/workspace/f", io.StringIO("x"))
        with pytest.raises(TypeError, match="bytes"):
            await sandbox.files.write("/workspace/f", iter(["x"]))
        assert not await sandbox.files.exists("/workspace/f")


async def test_watch_tells_what_happens_from_now_on(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        events = await sandbox.files.watch("/workspace", recursive=True)
        await sandbox.commands.run("mkdir d")
        event = await events.__anext__()
        assert (event.type, event.path) == ("created", "/workspace/d")
        await sandbox.commands.run("echo x > d/f; mv d/f d/g; rm d/g")
        seen: list[tuple[str, str]] = []
        while ("removed", "/workspace/d/g") not in seen:
            event = await events.__anext__()
            seen.append((event.type, event.path))
        await events.aclose()
        assert ("renamed", "/workspace/d/g") in seen
        with pytest.raises(FileMissingError):
            await sandbox.files.watch("/workspace/none")


async def test_local_files_go_in_and_out_with_progress(face: Face, url: str, tmp_path: Path) -> None:
    content = b"0123456789" * 100_000
    (tmp_path / "in").write_bytes(content)
    steps: list[Any] = []
    async with await face.Sandbox.create() as sandbox:
        info = await sandbox.files.upload(tmp_path / "in", "/workspace/f", progress=lambda *step: steps.append(step))
        assert info.size == len(content)
        assert steps[-1] == (len(content), len(content))
        steps.clear()
        size = await sandbox.files.download("/workspace/f", tmp_path / "out", progress=lambda *s: steps.append(s))
        assert (size, (tmp_path / "out").read_bytes() == content) == (len(content), True)
        assert steps[-1] == (len(content), len(content))
        target = io.BytesIO()
        await sandbox.files.download("/workspace/f", target)
        assert target.getvalue() == content
        with pytest.raises(FileMissingError):
            await sandbox.files.download("/workspace/none", tmp_path / "out")
        # what was there is as it was, and nothing else is left
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
        assert (tmp_path / "out").read_bytes() == content


async def test_folders_go_in_and_out(face: Face, url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/run.sh").write_text("echo ran")
    (source / "deep/er/run.sh").chmod(0o755)
    (source / "node_modules").mkdir()
    (source / "node_modules/junk").write_text("x")
    (source / "link").symlink_to("deep")
    async with await face.Sandbox.create() as sandbox:
        count = await sandbox.upload_dir(source, wanted=lambda path: path.name != "node_modules")
        assert count == 4
        assert (await sandbox.commands.run("./link/er/run.sh && ls")).stdout == "ran\ndeep\nlink\n"
        assert await sandbox.download_dir("/workspace", tmp_path / "copy") == 4
        assert (tmp_path / "copy/link/er/run.sh").read_text() == "echo ran"
        assert (tmp_path / "copy/deep/er/run.sh").stat().st_mode & 0o100
        with pytest.raises(NotADirectoryError):
            await sandbox.upload_dir(tmp_path / "none")


async def test_archive_that_leads_out_is_refused(face: Face, url: str, tmp_path: Path) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.commands.run("mkdir d; ln -s /etc/passwd d/out")
        with pytest.raises(Exception, match="link") as caught:
            await sandbox.download_dir("/workspace/d", tmp_path / "copy")
        assert type(caught.value).__module__ == "tarfile"
        assert not (tmp_path / "copy/out").exists()


async def test_signed_address_needs_no_token(face: Face, url: str) -> None:
    async with await face.Sandbox.create() as sandbox:
        await sandbox.files.write("/workspace/f", "signed")
        signed = await sandbox.files.url("/workspace/f")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(signed.url) as answer:
            assert (answer.read(), signed.method) == (b"signed", "GET")
