#!/usr/bin/env python3
"""Runs a command beside a Docker Engine of its own: docker.py COMMAND [ARGUMENT...]

The engine has nothing to do with one that the machine runs: its own containerd, socket, folders and cgroup; no bridge,
no firewall rules, no sysctl. It has the OCI runtimes runc and runsc, and images that are made here. The command finds
it by CLOUD_SANDBOX_TEST_DOCKER, and the images by the variables of `variables()`. However the command ends, or this
program, nothing of the engine is left; what a killed one left is removed by the next.

CLOUD_SANDBOX_TEST_RUNSC=PATH takes another version of runsc than the one that is installed.
CLOUD_SANDBOX_TEST_SKIP=docker runs the command without. A command that is beside such an engine already gets no second.
Either way it is run beneath `podman.py`, which gives it a Podman service too.
"""

import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlencode

import images

# on disk, where /tmp may be memory, and short, as paths of sockets must be
FOLDERS = Path("/var/tmp")
PREFIX = "engine-of-cloud-sandbox-"
LOCK = "lock"
START_WITHIN = 60.0
STOP_WITHIN = 20.0
# Debian's runsc takes every network namespace for the host's on new kernels, and refuses it: it must not look.
RUNSC = os.environ.get("CLOUD_SANDBOX_TEST_RUNSC", "/usr/bin/runsc")
RUNTIMES = {"runsc": {"path": RUNSC, "runtimeArgs": ["--network=none"]}}
# The daemon's programs lie where an ordinary PATH does not lead.
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class Failed(Exception):
    """Why there is no engine."""


class Engine:
    """A running engine, in a folder that goes with it."""

    def __init__(self, settings: dict[str, object] | None = None) -> None:
        """One with settings of its own, beside those that keep it apart from others."""
        self.settings = settings or {}
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
        # an ordinary user may try the socket, and be refused
        self.folder.chmod(0o711)
        # held as long as this program lives: see `sweep`
        (self.folder / LOCK).touch()
        self.lock = lock(self.folder)
        self.socket = self.folder / "docker.sock"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts the daemons and waits until they answer."""
        containerd = self.folder / "containerd.sock"
        config = f'version = 2\nroot = "{self.folder}/containerd"\nstate = "{self.folder}/state"\n'
        # what talks to Kubernetes would listen on a port
        config += f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{containerd}"\n'
        (self.folder / "containerd.toml").write_text(config)
        settings = {
            "hosts": [f"unix://{self.socket}"],
            "containerd": str(containerd),
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "exec"),
            "pidfile": str(self.folder / "dockerd.pid"),
            "bridge": "none",
            "iptables": False,
            "ip-forward": False,
            "ip-masq": False,
            "runtimes": RUNTIMES,
            "cgroup-parent": f"/{self.folder.name}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "shutdown-timeout": 5,
            **self.settings,
        }
        (self.folder / "daemon.json").write_text(json.dumps(settings))
        self.spawn("containerd", "--config", str(self.folder / "containerd.toml"))
        self.wait(containerd.exists)
        self.start_daemon()

    def start_daemon(self) -> None:
        self.spawn("dockerd", "--config-file", str(self.folder / "daemon.json"))
        self.wait(self.answers)

    def spawn(self, program: str, *arguments: str) -> None:
        # Told to end when this program is killed. Not of its session, so that an interrupt at the terminal leaves the
        # engine to `stop`. And with nothing of whoever runs the tests: no proxy, no registry's credentials.
        command = ["setpriv", "--pdeathsig", "TERM", "--", program, *arguments]
        environment = {"PATH": PATH, "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        with (self.folder / f"{program}.log").open("ab") as log:
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.daemons[program] = daemon

    def wait(self, holds: Callable[[], bool]) -> None:
        start = time.monotonic()
        while not holds():
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise Failed(f"{name} ended with {daemon.returncode}\n{self.logs()}")
            if time.monotonic() - start > START_WITHIN:
                raise Failed(f"the engine does not answer within {START_WITHIN:.0f} s\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The end of what the daemons have to say."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name} ---\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def answers(self) -> bool:
        try:
            self.ask("GET", "/_ping")
        except OSError:
            return False
        return True

    def ask(self, method: str, path: str, body: IO[bytes] | None = None, **query: str) -> bytes:
        """Asks the engine's API, which must agree."""
        connection = http.client.HTTPConnection("docker", timeout=120)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        try:
            headers = {"content-type": "application/x-tar"} if body else {}
            connection.request(method, f"{path}?{urlencode(query)}", body, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        # an import that fails says so at the end of an answer that began well
        if answer.status >= 300 or b'"errorDetail"' in text:
            raise Failed(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return text

    def take(self, rootfs: Path) -> None:
        """Takes in the images."""
        repository, tag = images.BASE.split(":")
        with rootfs.open("rb") as tar:
            changes = f"ENV PATH={images.SEARCH_PATH}"
            self.ask("POST", "/images/create", tar, fromSrc="-", repo=repository, tag=tag, changes=changes)
        for image in images.handmade():
            self.ask("POST", "/images/load", image)

    def discard(self, container: str) -> None:
        """Removes a container, unless that is being done."""
        try:
            self.ask("DELETE", f"/containers/{container}", force="true")
        except Failed as error:
            if not any(f": {status} " in str(error) for status in (404, 409)):
                raise

    def stop(self) -> None:
        """Ends the engine with all of its containers, and removes everything that it had."""
        try:
            for container in json.loads(self.ask("GET", "/containers/json", all="true")):
                self.discard(container["Id"])
        except (OSError, Failed) as error:
            # one that never came up has none
            if self.answers():
                print(f"docker: removing containers: {error}", file=sys.stderr)
        # containerd last, as the other needs it to end well
        for name, daemon in reversed(self.daemons.items()):
            daemon.terminate()
            try:
                daemon.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                print(f"docker: {name} had to be killed", file=sys.stderr)
                daemon.kill()
                daemon.wait()
        remove(self.folder)
        self.lock.close()


def lock(folder: Path) -> IO[str]:
    """Takes the lock of a folder, or fails with a BlockingIOError. It is given back when the file is closed."""
    file = (folder / LOCK).open()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def sweep() -> None:
    """Removes what killed programs left, which hold no lock any more."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        try:
            held = lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue
        print(f"docker: removing what is left of a killed run in {folder}", file=sys.stderr)
        try:
            remove(folder)
        except (Failed, OSError, subprocess.CalledProcessError) as error:
            # it is in nobody's way
            print(f"docker: {error}", file=sys.stderr)
        held.close()


def remove(folder: Path) -> None:
    """Ends what still runs in a folder or in its cgroup, unmounts what is mounted there, and removes both."""
    # the engine's, and those that Podman has for each container
    names = [folder.name, *(f"libpod_parent/libpod-{path.name}" for path in folder.glob("root/overlay-containers/*"))]
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    cgroups = [path for name in names for path in (hierarchy / name for hierarchy in hierarchies) if path.is_dir()]
    start = time.monotonic()
    for cgroup in cgroups:
        thaw(cgroup)
    while left := {*processes_of(folder), *(pid for cgroup in cgroups for pid in members(cgroup))}:
        if time.monotonic() - start > STOP_WITHIN:
            raise Failed(f"processes {left} do not end")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    for cgroup in cgroups:
        for path, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(path)
    # the latest first: they may lie in one another
    for mount in reversed(mounts_below(folder)):
        subprocess.run(["umount", "--lazy", mount], check=True)
    # the lock last, so that nobody else removes it meanwhile
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    shutil.rmtree(folder)


def processes_of(folder: Path) -> Iterator[int]:
    """The daemons of a folder and what they have started, which names it in its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{folder}/".encode() in command and int(entry.name) != os.getpid():
            yield int(entry.name)


def thaw(cgroup: Path) -> None:
    """Lets go on what is paused there: nothing that stands still can end."""
    for name, word in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")]:
        for state in cgroup.rglob(name):
            state.write_text(word)


def members(cgroup: Path) -> Iterator[int]:
    """The processes in a cgroup and in those below it."""
    for procs in cgroup.rglob("cgroup.procs"):
        yield from (int(line) for line in procs.read_text().split())


def mounts_below(folder: Path) -> list[str]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{folder}/")]


def variables(engine: Engine, rootfs: Path) -> dict[str, str]:
    """What tells the tests where everything is; `tests/setup/docker.rs` reads it."""
    return {
        "CLOUD_SANDBOX_TEST_DOCKER": f"unix://{engine.socket}",
        # Debian with the languages that the suites use
        "CLOUD_SANDBOX_TEST_IMAGE": images.BASE,
        # one static program, `/busybox`, and nothing else: no shell, no libraries, no users
        "CLOUD_SANDBOX_TEST_IMAGE_BARE": images.BARE,
        # the same for a machine of another kind
        "CLOUD_SANDBOX_TEST_IMAGE_FOREIGN": images.FOREIGN,
        # the first one's root file system
        "CLOUD_SANDBOX_TEST_ROOTFS": str(rootfs),
    }


def run(command: list[str], environment: dict[str, str]) -> int:
    """Runs a command to its end, also when this program is told to end."""
    child = subprocess.Popen(command, env={**os.environ, **environment})

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    # the terminal interrupts the command as well
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = child.wait()
    return code if code >= 0 else 128 - code


def is_skipped(part: str) -> bool:
    """Whether whoever runs the tests has asked to leave out a part."""
    return part in (name.strip() for name in os.environ.get("CLOUD_SANDBOX_TEST_SKIP", "").split(","))


def interrupted(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    command = sys.argv[1:]
    if not command:
        print("usage: docker.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    command.insert(0, str(Path(__file__).resolve().with_name("podman.py")))
    if is_skipped("docker") or "CLOUD_SANDBOX_TEST_DOCKER" in os.environ:
        os.execvp(command[0], command)
    if os.geteuid() != 0:
        print("docker: an engine needs root; CLOUD_SANDBOX_TEST_SKIP=docker leaves its tests out", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupted)
    sweep()
    rootfs = images.rootfs()
    engine = Engine()
    try:
        engine.start()
        engine.take(rootfs)
        return run(command, variables(engine, rootfs))
    finally:
        # nothing cuts this short
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        engine.stop()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, images.Failed) as error:
        print(f"docker: {error}", file=sys.stderr)
        print("docker: CLOUD_SANDBOX_TEST_SKIP=docker leaves out what needs it", file=sys.stderr)
        sys.exit(1)
