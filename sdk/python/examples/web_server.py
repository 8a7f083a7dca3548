"""A web server in the background, asked from a second command."""

from __future__ import annotations

from cloud_sandbox import Sandbox

ASK = "import urllib.request as web; print(web.urlopen('http://127.0.0.1:8000/hello.txt').read().decode())"


def main() -> None:
    """Serves a folder inside the sandbox, asks for a file there, and stops the server."""
    with Sandbox.create() as sandbox:
        sandbox.write_file("/workspace/hello.txt", "hello from the sandbox")
        server = sandbox.commands.run(["python3", "-u", "-m", "http.server", "8000"], background=True)
        for piece in server:  # what it prints, as it comes
            if "Serving" in piece.text:
                break
        print(sandbox.run_code(ASK, context=None).stdout, end="")
        server.kill()
        print("the server ended by", server.wait().signal)


if __name__ == "__main__":
    main()
