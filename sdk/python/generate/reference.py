"""The reference from the docstrings."""

from __future__ import annotations

from pathlib import Path

PAGE = Path("../../docs/sdk-python-reference.md")


def generate(root: Path) -> None:
    (root / PAGE).parent.mkdir(parents=True, exist_ok=True)
