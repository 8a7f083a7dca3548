"""Messages and stubs from the contracts: `proto/cloud_sandbox/v1` to `src/cloud_sandbox/v1`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SDK = Path(__file__).resolve().parents[1]
PROTO = SDK.parents[1] / "proto"
FOLDER = Path("src/cloud_sandbox/v1")
INIT = '"""The contracts\' messages and stubs, generated: see `make sdk`."""\n'


def generate(root: Path) -> None:
    """Writes them below `root`."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    out = root / "src"
    contracts = sorted(str(path) for path in (PROTO / "cloud_sandbox/v1").glob("*.proto"))
    includes = [f"--proto_path={PROTO}", f"--proto_path={PROTO / 'third_party'}"]
    plugins = ["python", "grpc_python", "mypy", "mypy_grpc"]
    arguments = [*includes, *(f"--{plugin}_out={out}" for plugin in plugins), *contracts]
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    # mypy-protobuf names every file that it writes
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    (folder / "__init__.py").write_text(INIT)
