"""The examples run, as anybody would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAID = {
    "web_server.py": ["hello from the sandbox", "the server ended by SIGKILL"],
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name: str, url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CLOUD_SANDBOX_URL": url}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in SAID[name]:
        assert words in done.stdout
