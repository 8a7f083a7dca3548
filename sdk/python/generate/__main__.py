"""Writes everything in the SDK that is made from something else: `python -m generate [--check]`.

Messages and stubs are made from the contracts, the blocking face from the asynchronous one, the reference from the
docstrings. `--check` changes nothing and fails when what is committed is not what would be written.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from pathlib import Path

# protoc finds its plugins beside the interpreter
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

from . import faces, reference, stubs  # noqa: E402

SDK = Path(__file__).resolve().parents[1]
MADE = [stubs.FOLDER, faces.SYNC, reference.PAGE]


def files(root: Path, made: Path) -> list[Path]:
    """What there is of `made`, relative to `root`."""
    place = root / made
    if place.is_file():
        return [made]
    found = [path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path.relative_to(root) for path in found if path.name not in faces.OWN or made != faces.SYNC)


def stale(fresh: Path, made: Path) -> list[Path]:
    wanted, found = files(fresh, made), files(SDK, made)
    same = {path for path in wanted if path in found and filecmp.cmp(fresh / path, SDK / path, shallow=False)}
    return sorted({*wanted, *found} - same)


def main() -> None:
    parser = argparse.ArgumentParser(prog="generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether everything is fresh")
    check = parser.parse_args().check
    # a root of the same depth, so that the reference's path leads out of it in the same way
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "sdk/python"
        for part in (stubs, faces, reference):
            part.generate(fresh)
        changed = [path for made in MADE for path in stale(fresh, made)]
        if check and changed:
            raise SystemExit("not fresh, run `make sdk`: " + ", ".join(map(str, changed)))
        for path in changed:
            print("wrote" if (fresh / path).exists() else "removed", path)
            if (fresh / path).exists():
                (SDK / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fresh / path, SDK / path)
            else:
                (SDK / path).unlink()


if __name__ == "__main__":
    main()
