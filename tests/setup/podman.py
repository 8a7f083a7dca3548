#!/usr/bin/env python3
"""Runs a command beside a Podman service of its own: podman.py COMMAND [ARGUMENT...]

`docker.py` runs its commands beneath this one. The service has nothing to do with one that the machine runs: its own
storage, state and settings, and no network. It has the small images that are made here, and none with languages: taking
in such a one is slow, and what programs find in a sandbox is tested with Docker. The command finds it by
CLOUD_SANDBOX_TEST_PODMAN. Its end is that of an engine of `docker.py`.

CLOUD_SANDBOX_TEST_SKIP=podman runs the command without. A command that is beside such a service already gets no second.
"""

import os
import signal
import sys
from pathlib import Path

import docker
import images

# crun refuses the cgroups of some machines
SETTINGS = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/root"
runroot = "{folder}/run"
"""


class Podman(docker.Engine):
    """A running service, in a folder that goes with it."""

    def start(self) -> None:
        """Starts the service and waits until it answers."""
        self.socket = self.folder / "podman.sock"
        files = {
            "CONTAINERS_CONF": ("containers.conf", SETTINGS),
            "CONTAINERS_STORAGE_CONF": ("storage.conf", STORAGE.format(folder=self.folder)),
            "CONTAINERS_REGISTRIES_CONF": ("registries.conf", ""),
        }
        variables = []
        for variable, (name, text) in files.items():
            (self.folder / name).write_text(text)
            variables.append(f"{variable}={self.folder / name}")
        places = [f"--root={self.folder}/root", f"--runroot={self.folder}/run", f"--tmpdir={self.folder}/tmp"]
        service = ["podman", *places, "system", "service", "--time=0", f"unix://{self.socket}"]
        # conmon leaves a file where it was started
        self.spawn("env", f"--chdir={self.folder}", *variables, *service)
        self.wait(self.answers)

    def take_small(self) -> None:
        """Takes in the small images."""
        for image in images.handmade():
            self.ask("POST", "/images/load", image)

    def stop(self) -> None:
        super().stop()
        # what is the same for all services of a machine stays where another one has containers
        for group in ("conmon", ""):
            for path in Path("/sys/fs/cgroup").glob(f"*/libpod_parent/{group}"):
                try:
                    path.rmdir()
                except OSError:
                    pass


def variables(podman: Podman) -> dict[str, str]:
    """What tells the tests where it is; `tests/setup/docker.rs` reads it."""
    return {
        "CLOUD_SANDBOX_TEST_PODMAN": f"unix://{podman.socket}",
        "CLOUD_SANDBOX_TEST_IMAGE_BARE": images.BARE,
        "CLOUD_SANDBOX_TEST_IMAGE_FOREIGN": images.FOREIGN,
    }


def main() -> int:
    command = sys.argv[1:]
    if not command:
        print("usage: podman.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    if docker.is_skipped("podman") or "CLOUD_SANDBOX_TEST_PODMAN" in os.environ:
        os.execvp(command[0], command)
    if os.geteuid() != 0:
        print("podman: it needs root; CLOUD_SANDBOX_TEST_SKIP=podman leaves its tests out", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, docker.interrupted)
    docker.sweep()
    podman = Podman()
    try:
        podman.start()
        podman.take_small()
        return docker.run(command, variables(podman))
    finally:
        # nothing cuts this short
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        podman.stop()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (docker.Failed, images.Failed) as error:
        print(f"podman: {error}", file=sys.stderr)
        print("podman: CLOUD_SANDBOX_TEST_SKIP=podman leaves out what needs it", file=sys.stderr)
        sys.exit(1)
