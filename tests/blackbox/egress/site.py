"""Makes what web.py serves: site.py FOLDER. A package for pip, one for npm, a repository for git, a page."""

import base64
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

FOLDER = pathlib.Path(sys.argv[1])


def put(path: str, content: "bytes | str") -> None:
    file = FOLDER / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def python_package() -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "greeter-1.0.dist-info"
        archive.writestr("greeter.py", "print('hello from pip')\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"greeter.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    name = "greeter-1.0-py3-none-any.whl"
    put(f"pypi.example.org/files/{name}", wheel.getvalue())
    put("pypi.example.org/simple/greeter/index.html", f'<a href="/files/{name}">{name}</a>')


def javascript_package() -> None:
    package = {"name": "greeter", "version": "1.0.0", "main": "index.js"}
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
        for name, text in [("package.json", json.dumps(package)), ("index.js", "console.log('hello from npm')\n")]:
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    content = tarball.getvalue()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    where = "https://npm.example.org/files/greeter-1.0.0.tgz"
    version = package | {"dist": {"tarball": where, "integrity": f"sha512-{digest}"}}
    put("npm.example.org/files/greeter-1.0.0.tgz", content)
    versions = {"name": "greeter", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    put("npm.example.org/greeter", json.dumps(versions))


def repository() -> None:
    work, bare = FOLDER / "work", FOLDER / "git.example.org" / "greeter.git"
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments: str) -> None:
        subprocess.run(["git", *who, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)

    git("init", "--quiet", str(work))
    put("work/greeting", "hello from git\n")
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "--quiet", "--message", "Greet")
    git("clone", "--quiet", "--bare", str(work), str(bare))
    # without it the repository cannot be read as files
    git("-C", str(bare), "update-server-info")


python_package()
javascript_package()
repository()
put("web.example.org/index.html", "hello from the web\n")
