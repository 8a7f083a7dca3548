"""Serves folders over TLS, each as the host of its name: web.py FOLDER CERTIFICATE KEY. Prints its port.

What pip, npm and git need of their servers are files. A path that begins with /to/ is a redirect to the rest of it.
"""

import http.server
import pathlib
import ssl
import sys
import urllib.parse

FOLDER, CERTIFICATE, KEY = sys.argv[1:4]


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def translate_path(self, path: str) -> str:
        self.directory = str(pathlib.Path(FOLDER) / self.headers["Host"].split(":")[0])
        return super().translate_path(path)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
# the handshake is the connection's own: one that does not shake hands holds up no other
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
