"""What the guide and the README show works as it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = ["docs/sdk-python.md", "sdk/python/README.md", "README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(
    page: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    names: dict[str, Any] = {"__name__": page}
    for block in blocks:
        exec(compile(block.replace("http://localhost:8080", url), page, "exec"), names)
    assert "Hello, Cloud Sandbox!" in capsys.readouterr().out
    for name in ("sandbox", "session"):
        if hasattr(names.get(name), "kill"):
            names[name].kill()
