#!/usr/bin/env python3
"""A Docker Engine of one test alone, which the test may stop, kill and start again: own_engine.py [SETTINGS]

SETTINGS is a JSON object: what the daemon is told beside the usual, as in daemon.json. The first line of output says
where everything is. Then each line of input is done and answered by one: `stop` ends the daemon as a service manager
does, `kill` as the kernel does when memory is short, `start` has one again. containerd goes on, as it does on a machine
where that is a service of its own. At the end of input the engine is removed with all that it had.

With the setting `userns-remap` the ids of its containers are those of `MAPPED` on the host, which needs no entry in the
machine's files: the engine sees others in their place.

It has one image, a static program without anything else, so that it is there within a second or two.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import docker
import images

# user, first id on the host, how many: as in subuid(5)
MAPPED = "nobody:500000:65536"
MAPS = ["/etc/subuid", "/etc/subgid"]
# set where mounts are this program's own
OWN_MOUNTS = "CLOUD_SANDBOX_TEST_OWN_MOUNTS"


class OwnEngine(docker.Engine):
    """An engine whose daemon comes and goes."""

    def take_small(self) -> None:
        self.ask("POST", "/images/load", next(images.handmade()))

    def end(self, number: signal.Signals) -> None:
        """Ends the daemon by a signal, and returns when it is gone."""
        daemon = self.daemons.pop("dockerd")
        daemon.send_signal(number)
        daemon.wait(docker.STOP_WITHIN)

    def obey(self, word: str) -> None:
        match word:
            case "stop":
                self.end(signal.SIGTERM)
            case "kill":
                self.end(signal.SIGKILL)
            case "start":
                self.start_daemon()
            case _:
                raise docker.Failed(f"{word!r} is no command: stop, kill or start")


def say(answer: dict[str, str]) -> None:
    print(json.dumps(answer), flush=True)


def see_other_maps(folder: Path) -> None:
    """Has this program's mount namespace show a file of its own in place of each of `MAPS`."""
    shown = folder / "maps"
    shown.write_text(f"{MAPPED}\n")
    for path in MAPS:
        subprocess.run(["mount", "--bind", str(shown), path], check=True)


def main() -> int:
    settings: dict[str, object] = json.loads(sys.argv[1]) if sys.argv[1:] else {}
    remapped = "userns-remap" in settings
    if remapped and OWN_MOUNTS not in os.environ:
        command = ["unshare", "--mount", "--propagation", "slave", sys.executable, *sys.argv]
        os.execvpe(command[0], command, {**os.environ, OWN_MOUNTS: "yes"})
    # whoever started it ends it by the end of its input, also when killed
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    engine = OwnEngine(settings)
    try:
        if remapped:
            see_other_maps(engine.folder)
        engine.start()
        engine.take_small()
        say({"url": f"unix://{engine.socket}", "image": images.BARE, "folder": str(engine.folder)})
        for line in sys.stdin:
            engine.obey(line.strip())
            say({"done": line.strip()})
    finally:
        engine.stop()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (docker.Failed, images.Failed) as error:
        print(f"own_engine: {error}", file=sys.stderr)
        sys.exit(1)
