from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# before gRPC is imported: programs are started here while calls are under way, and what gRPC does at a fork may then
# end the new process before it runs its program. Those programs themselves have the default.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import pytest  # noqa: E402
from faces import Face  # noqa: E402
from server import Server  # noqa: E402

# what is set on the machine of who runs the tests shall not matter
for name in list(os.environ):
    if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy") or name in (
        "CLOUD_SANDBOX_URL",
        "CLOUD_SANDBOX_TOKEN",
        "CLOUD_SANDBOX_API_KEY",
        "SSL_CERT_FILE",
    ):
        del os.environ[name]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all cases that do not harm it."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server of the case's own, to be stopped and started."""
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, which is also the default one."""
    monkeypatch.setenv("CLOUD_SANDBOX_URL", server.url)
    return server.url


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs coroutine functions, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
