from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from faces import Face
from server import Server

import cloud_sandbox
from cloud_sandbox import InvalidArgumentError, Network
from cloud_sandbox._network import write_network
from cloud_sandbox.v1 import scheduler_pb2

# the server of these cases takes a web server of the loopback for this host
HOST = "web.example.org"
ALLOWED = Network("egress", allow=[HOST])


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"hello from the web\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose internet has one host."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        upstream = f"{HOST}=127.0.0.1:{web.server_port}"
        server = Server(tmp_path_factory.mktemp("world"), CLOUD_SANDBOX_TEST_UPSTREAM=upstream)
        yield server
        server.stop()
        web.shutdown()


@pytest.fixture(autouse=True)
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "world" in request.fixturenames:
        monkeypatch.setenv("CLOUD_SANDBOX_URL", request.getfixturevalue("world").url)


@pytest.mark.parametrize(
    "given",
    [
        Network("egress", allow=["pypi.org", "*.a.example:*"], deny=("b.a.example",)),
        {"mode": "egress", "allow": ["pypi.org", "*.a.example:*"], "deny": ["b.a.example"]},
    ],
)
def test_policy_is_written_as_it_is_read(given: Any) -> None:
    written = write_network(given)
    assert written is not None
    assert written.mode == scheduler_pb2.NETWORK_MODE_EGRESS
    assert (list(written.allow), list(written.deny)) == (["pypi.org", "*.a.example:*"], ["b.a.example"])
    assert Network._read(written) == Network("egress", ["pypi.org", "*.a.example:*"], ["b.a.example"])


@pytest.mark.parametrize("mode", ["none", "egress", "open"])
def test_mode_alone_is_a_policy(mode: str) -> None:
    written = write_network(mode)
    assert written is not None
    assert Network._read(written) == Network(mode)


def test_policy_that_is_not_given_is_none() -> None:
    assert write_network(None) is None
    assert Network._read(scheduler_pb2.NetworkPolicy()) == Network() == Network("none")


@pytest.mark.parametrize(
    ("given", "field", "rule"),
    [
        ("all", "network.mode", "one of egress, none, open"),
        ({"mode": "Egress"}, "network.mode", "one of egress, none, open"),
        ({"mode": "egress", "allowed": []}, "network.allowed", "one of allow, deny, mode"),
        ({"mode": "egress", "allow": "pypi.org"}, "network.allow", "a list of entries, not 'pypi.org'"),
        ({"mode": "egress", "allow": ["a.example", 443]}, "network.allow[1]", "a text, not 443"),
        ({"mode": "egress", "deny": None}, "network.deny", "a list of entries, not None"),
        (True, "network", "a mode, a Network or a dictionary, not True"),
        (["pypi.org"], "network", "a mode, a Network or a dictionary"),
    ],
)
def test_what_is_no_policy_is_named(given: Any, field: str, rule: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        write_network(given)
    assert list(caught.value.fields) == [field]
    assert rule in caught.value.fields[field]


async def test_sandbox_reaches_what_is_allowed_and_is_told_why_not_the_rest(face: Face, world: Server) -> None:
    async with await face.Sandbox.create(network=ALLOWED) as sandbox:
        assert sandbox.info.network == ALLOWED
        assert (await sandbox.get_info()).network == ALLOWED
        result = await sandbox.run_command(f"curl -sS http://{HOST}/")
        assert result.stdout == "hello from the web\n", result
        denied = await sandbox.run_command('curl -sS -x "$https_proxy" http://other.example.net/')
        assert "other.example.net" in denied.stdout
        assert "not in the list of allowed hosts (not_in_list)" in denied.stdout
        tunnel = await sandbox.run_command('curl -sS -x "$https_proxy" https://other.example.net/')
        assert not tunnel.ok
        assert "403" in tunnel.stderr
        code = await sandbox.run_code(
            f"import urllib.request; print(urllib.request.urlopen('http://{HOST}/').read().decode())"
        )
        assert "hello from the web" in code.stdout, code


async def test_network_is_changed_while_a_sandbox_lives(face: Face, world: Server) -> None:
    ask = f'curl -s -o /dev/null -w "%{{http_code}}" -x http://127.0.0.1:3128 http://{HOST}/'
    async with await face.Sandbox.create() as sandbox:
        assert sandbox.info.network == Network("none")
        assert not (await sandbox.run_command(ask)).ok
        assert (await sandbox.set_network(ALLOWED)).network == ALLOWED
        assert (await sandbox.run_command(ask)).stdout == "200"
        assert (await sandbox.run_command('echo "$https_proxy"')).stdout == "http://127.0.0.1:3128\n"
        await sandbox.set_network({"mode": "egress", "allow": ["*"], "deny": [HOST]})
        assert (await sandbox.run_command(ask)).stdout == "403"
        await sandbox.set_network("none")
        assert sandbox.info.network == Network()
        assert (await sandbox.run_command(ask)).stdout == "403"
        again = await face.Sandbox.connect(sandbox.sandbox_id)
        assert again.info.network == Network()


async def test_session_keeps_its_network_over_a_pause(face: Face, world: Server) -> None:
    session = await face.Session.create(network="none")
    assert session.info.network == Network()
    info = await session.update(network=ALLOWED, metadata={"a": "b"})
    assert (info.network, info.metadata) == (ALLOWED, {"a": "b"})
    assert (await session.update(metadata={"a": "c"})).network == ALLOWED
    await session.pause("checkpointed")
    await session.resume()
    assert (await session.get_info()).network == ALLOWED
    result = await session.run_command(f"curl -sS http://{HOST}/")
    assert result.stdout == "hello from the web\n", result
    assert (await session.set_network("none")).network == Network()
    assert not (await session.run_command(f"curl -sS --fail http://{HOST}/")).ok
    await session.delete()


@pytest.mark.parametrize(
    ("network", "field"),
    [
        (Network("egress", allow=["https://pypi.org"]), "network.allow[0]"),
        (Network("egress", allow=["pypi.org", "169.254.169.254"]), "network.allow[1]"),
        (Network("egress", deny=["10.0.0.1/8"]), "network.deny[0]"),
        (Network(allow=["pypi.org"]), "network.allow"),
    ],
)
async def test_entry_that_is_none_is_named_by_the_server(
    face: Face, world: Server, network: Network, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await face.Sandbox.create(network=network)
    assert field in caught.value.fields
    with pytest.raises(InvalidArgumentError) as caught:
        await face.Session.create(network=network)
    assert field in caught.value.fields
    async with await face.Sandbox.create() as sandbox:
        with pytest.raises(InvalidArgumentError) as caught:
            await sandbox.set_network(network)
        assert field in caught.value.fields


def test_snippets_share_a_policy(world: Server) -> None:
    code = f"import urllib.request; print(urllib.request.urlopen('http://{HOST}/').read().decode())"
    outcomes = cloud_sandbox.run_many([code, code], network={"mode": "egress", "allow": [HOST]})
    assert ["hello from the web" in outcome.unwrap().stdout for outcome in outcomes] == [True, True]
