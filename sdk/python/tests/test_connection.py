from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import http.server
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faces import Face, unwrap
from relays import ConnectProxy, Relay, authority
from server import Server, free_port

from cloud_sandbox import (
    AuthenticationError,
    CallTimeoutError,
    CloudSandboxError,
    InvalidArgumentError,
    PermissionDeniedError,
    ServiceConnectionError,
    _retry,
)

SECRET = "a secret for signing that is long enough"
KEY = "0123456789abcdef"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up soon."""
    monkeypatch.setattr(_retry, "BACKOFF", (0.05, 0.1))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants API keys."""
    server = Server(tmp_path_factory.mktemp("locked"), API_KEYS=f"{KEY}:user", JWT_SECRET=SECRET)
    yield server
    server.stop()


def signed(expires_in: int) -> str:
    """A token as the server signs them."""

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    now = int(time.time())
    claims = {"iss": "cloud-sandbox", "aud": "cloud-sandbox", "sub": "ada", "tenant": "default", "role": "user"}
    claims = {**claims, "iat": now - 100, "exp": now + expires_in}  # type: ignore[dict-item]
    head = ".".join(part(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{head}.{part(hmac.new(SECRET.encode(), head.encode(), hashlib.sha256).digest())}"


async def test_server_that_is_down_is_named(face: Face, hasty: None) -> None:
    base_url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceConnectionError, match=f"cannot reach {base_url}") as caught:
        await face.Sandbox.create(base_url=base_url)
    assert isinstance(caught.value, ConnectionError)


async def test_server_that_says_nothing_is_waited_for_no_longer_than_told(face: Face) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises((CallTimeoutError, ServiceConnectionError)):
            await face.Sandbox.create(base_url=base_url, request_timeout=0.5)
        assert time.monotonic() - begun < 10


async def test_answer_that_is_late_is_a_timeout(face: Face, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay(int(url.rpartition(":")[2]))
    sandbox = await face.Sandbox.create(base_url=relay.url)
    relay.flowing.clear()
    # only here: what comes before and after may take its time
    transport = unwrap(sandbox)._transport
    with monkeypatch.context() as short:
        short.setattr(transport, "settings", dataclasses.replace(transport.settings, request_timeout=0.5))
        with pytest.raises(CallTimeoutError):
            await sandbox.get_info()
    relay.flowing.set()
    assert await sandbox.kill()
    relay.close()


@pytest.mark.parametrize(
    "bad", ["ftp://localhost", "localhost:8080", "http://", "http://localhost:x", "http://localhost/api", "http://a@b"]
)
async def test_wrong_url_is_refused_by_rule(face: Face, bad: str) -> None:
    with pytest.raises(InvalidArgumentError, match="base_url must be") as caught:
        await face.Sandbox.create(base_url=bad)
    assert set(caught.value.fields) == {"base_url"}


async def test_wrong_scheme_is_hinted_at(face: Face, url: str, hasty: None, tmp_path: Path) -> None:
    with pytest.raises(ServiceConnectionError, match="try http:"):
        await face.Sandbox.create(base_url=url.replace("http:", "https:"))
    _, context = authority(tmp_path)
    relay = Relay(int(url.rpartition(":")[2]), context)
    with pytest.raises(ServiceConnectionError, match="use https:"):
        await face.Sandbox.create(base_url=relay.url.replace("https:", "http:"))
    relay.close()


async def test_web_server_of_another_kind_is_no_server_of_ours(face: Face, hasty: None) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        base_url = f"http://127.0.0.1:{other.server_port}"
        with pytest.raises(CloudSandboxError, match=f"{base_url}.*(is it a Cloud Sandbox server|use https:)"):
            await face.Sandbox.create(base_url=base_url)
        other.shutdown()


async def test_https_with_an_authority_of_ones_own(
    face: Face, url: str, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = authority(tmp_path)
    relay = Relay(int(url.rpartition(":")[2]), context)
    async with await face.Sandbox.create(base_url=relay.url, ca_file=certificate) as sandbox:
        assert (await sandbox.run_command("echo safe")).stdout == "safe\n"
    with pytest.raises(ServiceConnectionError, match="ca_file"):
        await face.Sandbox.create(base_url=relay.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with await face.Sandbox.create(base_url=relay.url, user_id="ada"):
        pass
    with pytest.raises(InvalidArgumentError, match="ca_file cannot be read"):
        await face.Sandbox.create(base_url=relay.url, ca_file=tmp_path / "none")
    relay.close()


async def test_proxy_is_used_but_never_for_loopback(
    face: Face, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hasty: None
) -> None:
    proxy = ConnectProxy()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    # as `http_proxy` says, a server on this machine is not asked for there
    async with await face.Sandbox.create(base_url=url, user_id="proxied"):
        pass
    assert proxy.asked == []
    port = url.rpartition(":")[2]
    # a name that only the proxy knows
    async with await face.Sandbox.create(base_url=f"http://sandbox.example:{port}", user_id="proxied") as sandbox:
        assert (await sandbox.run_command("echo through")).stdout == "through\n"
    assert set(proxy.asked) == {f"sandbox.example:{port}"}
    proxy.close()


async def test_key_gets_tokens_and_what_is_missing_is_said(face: Face, locked: Server) -> None:
    async with await face.Sandbox.create(base_url=locked.url, api_key=KEY, user_id="ada") as sandbox:
        assert sandbox.info.user_id == "ada"
    with pytest.raises(AuthenticationError, match="API key"):
        await face.Sandbox.create(base_url=locked.url, user_id="ada")
    with pytest.raises(AuthenticationError):
        await face.Sandbox.create(base_url=locked.url, api_key="f" * 16)
    client = face.Client(locked.url, api_key=KEY)
    token = await client.issue_token("grace", expires_in=600)
    with pytest.raises(PermissionDeniedError):
        await client.issue_token("grace", role="admin")
    await client.close()
    async with await face.Sandbox.create(base_url=locked.url, token=token) as sandbox:
        assert sandbox.info.user_id == "grace"


async def test_settings_come_from_the_environment(face: Face, locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_SANDBOX_URL", locked.url)
    monkeypatch.setenv("CLOUD_SANDBOX_API_KEY", KEY)
    async with await face.Sandbox.create(user_id="ada") as sandbox:
        assert sandbox.info.user_id == "ada"
    monkeypatch.setenv("CLOUD_SANDBOX_TOKEN", signed(600))
    monkeypatch.delenv("CLOUD_SANDBOX_API_KEY")
    async with await face.Sandbox.create() as sandbox:
        assert sandbox.info.user_id == "ada"


async def test_expired_token_is_replaced_once_where_that_can_be_done(face: Face, locked: Server) -> None:
    with pytest.raises(AuthenticationError) as caught:
        await face.Sandbox.create(base_url=locked.url, token=signed(-60))
    assert caught.value.reason == "TOKEN_EXPIRED"
    connection = {"base_url": locked.url, "token": signed(-60), "api_key": KEY, "user_id": "ada"}
    async with await face.Sandbox.create(**connection) as sandbox:
        result = await sandbox.commands.run("echo streamed", on_stdout=lambda _: None)
        assert result.stdout == "streamed\n"
        sandbox_id = sandbox.sandbox_id
        expired = face.Client(locked.url, token=signed(-60), api_key=KEY, user_id="ada")
        other = await face.Sandbox.connect(sandbox_id, client=expired)
        assert (await other.files.write("/workspace/f", io.BytesIO(b"x" * 100))).size == 100
        await expired.close()


async def test_token_is_renewed_when_the_server_has_another_secret(face: Face, own_server: Server) -> None:
    client = face.Client(own_server.url, user_id="ada")
    assert (await client.stats())["capacity"] == 16
    own_server.kill()
    own_server.settings["JWT_SECRET"] = SECRET
    own_server.start()
    assert (await client.stats())["capacity"] == 16
    await client.close()


async def test_closed_client_opens_again_and_secrets_are_not_shown(face: Face, url: str) -> None:
    client = face.Client(url, user_id="ada")
    async with await face.Sandbox.create(client=client) as sandbox:
        await client.close()
        assert await sandbox.is_running()
    with pytest.raises(InvalidArgumentError, match="client must be given alone"):
        await face.Sandbox.create(client=client, base_url=url)
    await client.close()
    with pytest.raises(TypeError, match="tokn"):
        await face.Sandbox.create(tokn="x")
    from cloud_sandbox._settings import Settings

    shown = repr(Settings.resolve(token="secret-token", api_key="secret-key"))
    assert "secret" not in shown
