"""The images of the tests, made on the spot: nothing comes from a registry."""

import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

BASE = "cloud-sandbox-test:base"
BARE = "cloud-sandbox-test:bare"
FOREIGN = "cloud-sandbox-test:foreign"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What the suites run in sandboxes. What nobody reads there is left out.
PACKAGES = ["nodejs", "perl", "procps", "python3"]
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"]
TRIM = 'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/*'
# the one that sandboxes have
USER = 'chroot "$1" useradd --uid 1000 --home-dir /home/user --no-create-home --shell /bin/sh user'
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Failed(Exception):
    """Why there is no image."""


def rootfs() -> Path:
    """The root file system of `BASE` as a tar file: made once, and kept beside what cargo builds."""
    suite, source = distribution()
    recipe = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    recipe += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    recipe += [f"--customize-hook={USER}", f"--customize-hook={TRIM}", suite]
    key = hashlib.sha256("\0".join([*recipe, platform.machine()]).encode()).hexdigest()[:16]
    checkout = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("CARGO_TARGET_DIR") or checkout / "target") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / f"{suite}-{key}.tar"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            print(f"docker: making the image of the tests from packages of {suite} (once)", flush=True)
            # whatever happens, nothing half made is left
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work) / "made.tar"
                try:
                    subprocess.run([*recipe, str(made), source], check=True, env={**os.environ, "TMPDIR": work})
                except (OSError, subprocess.CalledProcessError) as error:
                    raise Failed(f"no image could be made: {error}") from error
                made.rename(path)
    return path


def distribution() -> tuple[str, str]:
    """The release to take packages of, and where from: this machine's own, or Debian's."""
    wanted = "$(RELEASE) $(COMPONENT) $(REPO_URI) $(ORIGIN)"
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"], capture_output=True, text=True
    ).stdout
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    found = [line.split() for line in targets.splitlines()]
    own = [words for words in found if words[0] == codename and words[3:] == [release.get("NAME", "").split()[0]]]
    if not own:
        return "bookworm", "deb http://deb.debian.org/debian bookworm main"
    components = " ".join(sorted({words[1] for words in own}))
    return codename, f"deb {own[0][2]} {codename} {components}"


def handmade() -> Iterator[IO[bytes]]:
    """The small images, as `docker load` takes them."""
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    elsewhere = "arm64" if here == "amd64" else "amd64"
    busybox = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if not busybox:
        raise Failed("busybox is missing: make setup")
    program = Path(busybox).read_bytes()
    yield saved(BARE, here, program)
    yield saved(FOREIGN, elsewhere, program)


def saved(name: str, architecture: str, program: bytes) -> IO[bytes]:
    """An image of one layer with one program."""
    layer = archive({"busybox": program}, mode=0o755)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
        "layer.tar": layer,
    }
    return io.BytesIO(archive(files, mode=0o644))


def archive(files: dict[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
