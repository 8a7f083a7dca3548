"""What stands between a client and a server: relays that break connections, speak TLS, or are a proxy."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

SHUT = socket.SHUT_RDWR


class Relay:
    """Passes bytes on between its own port and a server's."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        # set: the next bytes of the server cut the connection instead of passing
        self.swallow_answer = threading.Event()
        self.swallowed = threading.Event()
        # not set: the server's bytes wait
        self.flowing = threading.Event()
        self.flowing.set()
        self.connections = 0
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            port = self.greet(client)
            server = socket.create_connection(("127.0.0.1", port))
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
                self.connections += 1
            up = threading.Thread(target=self._pass, args=(client, server, pair, False), daemon=True)
            up.start()
            self._pass(server, client, pair, True)
            return
        client.close()

    def greet(self, client: socket.socket) -> int:
        """Where this client's bytes go to."""
        return self._target

    def _pass(
        self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket], answers: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    self.flowing.wait()
                if answers and self.swallow_answer.is_set():
                    self.swallow_answer.clear()
                    self.swallowed.set()
                    break
                target.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for each in pair:
            with suppress(OSError):
                each.shutdown(SHUT)

    def cut(self) -> None:
        """Breaks all connections there are; new ones are taken."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(SHUT)
        self._listener.close()
        self.cut()


class ConnectProxy(Relay):
    """An HTTP proxy that knows CONNECT, as companies have them."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked: list[str] = []

    def greet(self, client: socket.socket) -> int:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        method, target, _ = head.split(b" ", 2)
        assert method == b"CONNECT"
        self.asked.append(target.decode())
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return int(target.rpartition(b":")[2])


def authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of this machine that signs itself, and what a server needs to show it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return certificate, context
