"""The examples run, as anybody would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server import program_environment

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAID = {
    "agent_loop.py": ["SyntaxError", "It works: [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]"],
    "data_analysis.py": ["mean: 5", "rain.png: "],
    "grading.py": ["ada: 8 of 8", "bob: 3 of 8", "cyd: too slow", "dan: SyntaxError", "eve: "],
    "session.py": ["paused: checkpointed", "restored files: True", "words: 7", "dark and stormy"],
    "web_server.py": ["hello from the sandbox", "the server ended by SIGKILL"],
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name: str, url: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=program_environment(url), cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for words in SAID[name]:
        assert words in done.stdout
