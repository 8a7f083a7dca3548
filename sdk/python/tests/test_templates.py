from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from faces import Face
from server import BINARY, Server

from cloud_sandbox import (
    InvalidArgumentError,
    PermissionDeniedError,
    StateError,
    TemplateFailedError,
    TemplateNotFoundError,
    TemplateNotReadyError,
    _status,
)


@pytest.fixture
def admin(server: Server) -> str:
    """A token of an admin."""
    command = [BINARY, "token", "--user", "root", "--role", "admin", "--data-dir", server.settings["DATA_DIR"]]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={}).stdout.strip()


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A folder as a template's source."""
    folder = tmp_path / "rootfs"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/motd").write_text("made here\n")
    return folder


async def test_template_is_created_shown_and_deleted(face: Face, url: str, admin: str, rootfs: Path) -> None:
    name = f"full-{face.name}"
    async with face.Client(token=admin) as client:
        first = await client.templates.create(
            name,
            folder=rootfs,
            limits={"pids": 99},
            languages=["bash"],
            start_command="sleep 600",
            ready_command="true",
            envs={"A": "1"},
            request_id=f"once-{face.name}",
        )
        assert (first.reference, first.source.kind, first.source.path) == (f"{name}@1", "folder", str(rootfs))
        assert (first.runtimes, first.limits.pids, first.languages) == (["linux"], 99, ["bash"])
        assert first.start is not None
        assert (first.start.command, first.start.ready_command, first.start.ready_seconds) == ("sleep 600", "true", 60)
        assert (first.envs, first.writable_root, first.warm_size) == ({"A": "1"}, False, 0)
        assert first.create_time is not None
        assert first.state in ("preparing", "ready", "failed")
        again = await client.templates.create(
            name,
            folder=rootfs,
            limits={"pids": 99},
            languages=["bash"],
            start_command="sleep 600",
            ready_command="true",
            envs={"A": "1"},
            request_id=f"once-{face.name}",
        )
        assert again.version == 1

        second = await client.templates.create(name, tarball="/srv/second.tar")
        assert second.version == 2
        assert (await client.templates.get(name)).version == 2
        assert (await client.templates.get(first)).source == first.source
        newest = [info.reference for info in await client.templates.list()]
        assert newest[0] == "host"
        assert f"{name}@2" in newest
        versions = await client.templates.list(name=name)
        assert [info.version for info in versions] == [2, 1]
        assert await client.templates.delete(first) == [f"{name}@1"]
        assert await client.templates.delete(name) == [f"{name}@2"]
        with pytest.raises(TemplateNotFoundError):
            await client.templates.get(name)
        with pytest.raises(TemplateNotFoundError):
            await client.templates.delete(name)


async def test_passwords_of_images_are_never_told(face: Face, url: str, admin: str) -> None:
    async with face.Client(token=admin) as client:
        created = await client.templates.create(
            f"secret-{face.name}",
            registry="localhost:1/a/b:c",
            pull="always",
            username="ada",
            password="hunter2",
            plain_http=True,
        )
        assert (created.source.kind, created.source.image, created.source.pull) == (
            "registry",
            "localhost:1/a/b:c",
            "always",
        )
        assert (created.source.username, created.source.plain_http) == ("ada", True)
        assert "hunter2" not in repr(await client.templates.list())
        await client.templates.delete(created)


async def test_built_in_template_is_there_and_its_watch_ends(face: Face, url: str) -> None:
    async with face.Client() as client:
        host = await client.templates.wait("host")
        assert (host.reference, host.version, host.state, host.create_time) == ("host", 0, "ready", None)
        assert (host.source.kind, host.runtimes, host.nodes[0].runtime) == ("host", ["linux"], "linux")
        states = [info.state async for info in client.templates.watch("host", timeout=60)]
        assert states == ["ready"]


async def test_users_read_templates_and_change_none(face: Face, url: str) -> None:
    async with face.Client() as client:
        assert (await client.templates.get("host")).state == "ready"
        with pytest.raises(PermissionDeniedError):
            await client.templates.create("mine", host=True)
        with pytest.raises(PermissionDeniedError):
            await client.templates.delete("mine")


async def test_what_is_wrong_is_named_by_its_field(face: Face, url: str, admin: str) -> None:
    async with face.Client(token=admin) as client:
        cases: list[tuple[str, dict[str, Any]]] = [
            ("source", {}),
            ("source", {"folder": "/a", "host": True}),
            ("username", {"folder": "/a", "username": "ada"}),
            ("plain_http", {"docker_image": "a", "plain_http": True}),
            ("pull", {"docker_image": "a", "pull": "sometimes"}),
            ("start_command", {"host": True, "ready_command": "true"}),
            ("runtimes[0]", {"host": True, "runtimes": ["vm"]}),
            ("source.folder.path", {"folder": "relative"}),
            ("languages[0]", {"host": True, "languages": ["cobol"]}),
        ]
        for field, arguments in cases:
            with pytest.raises(InvalidArgumentError) as caught:
                await client.templates.create("a", **arguments)
            assert field in caught.value.fields, arguments
        for name in ("host", "A", ""):
            with pytest.raises(InvalidArgumentError) as caught:
                await client.templates.create(name, host=True)
            assert "name" in caught.value.fields


async def test_sandbox_of_an_unknown_template_says_so(face: Face, url: str) -> None:
    with pytest.raises(TemplateNotFoundError):
        await face.Sandbox.create("nobody-has-this")
    async with await face.Sandbox.create("host") as sandbox:
        assert (sandbox.info.template, sandbox.info.runtime) == ("host", "linux")


def test_reasons_have_errors_of_their_own() -> None:
    assert _status.BY_REASON["TEMPLATE_FAILED"] is TemplateFailedError
    assert _status.BY_REASON["TEMPLATE_NOT_READY"] is TemplateNotReadyError
    assert issubclass(TemplateNotReadyError, StateError)
    assert not issubclass(TemplateNotReadyError, ConnectionError)
