"""The blocking face from the asynchronous one: `src/cloud_sandbox/_async` to `src/cloud_sandbox/_sync`.

One code for both: the words of `async` are taken out token by token, names lose their `Async`, docstrings are read the
same way. What really differs is in `_io.py`, which each face has its own of.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

SDK = Path(__file__).resolve().parents[1]
SOURCE = Path("src/cloud_sandbox/_async")
SYNC = Path("src/cloud_sandbox/_sync")
# files of the blocking face that are written by hand
OWN = ("_io.py",)

DROPPED = {"async", "await"}
# `Awaitable[T]` is T: its brackets go with it
UNWRAPPED = {"Awaitable"}
RENAMED = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "aclosing": "closing",
    "aclose": "close",
    "AsyncExitStack": "ExitStack",
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "StopAsyncIteration": "StopIteration",
}
HEADER = "# Made from {source} by `make sdk`; do not edit.\n"


def name(word: str) -> str:
    if word in RENAMED:
        return RENAMED[word]
    return re.sub(r"^(_?)Async(?=[A-Z])", r"\1", word)


def prose(text: str) -> str:
    """A docstring, with its examples."""
    text = re.sub(r"\b(async|await) (?=[a-zA-Z_(])", "", text)
    return re.sub(r"\b_?[Aa]sync[A-Z]\w*|\b__a\w+__|\baclose\b", lambda found: name(found.group()), text)


def closing_bracket(tokens: list[tokenize.TokenInfo], opening: int) -> tokenize.TokenInfo:
    depth = 0
    for token in tokens[opening:]:
        depth += {"[": 1, "]": -1}.get(token.string, 0)
        if depth == 0:
            return token
    raise ValueError("a bracket stays open")


def blocking(source: str) -> str:
    """The blocking twin of `source`."""
    docs = []
    lines = source.splitlines(keepends=True)
    edits: dict[int, list[tuple[int, int, str]]] = {}
    generated = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for index, token in enumerate(generated):
        (row, start), (end_row, end) = token.start, token.end
        if token.type == tokenize.STRING and token.string.startswith('"""'):
            docs.append((row, start, end_row, end, prose(token.string)))
        elif token.type in (tokenize.NAME, getattr(tokenize, "ASYNC", -1), getattr(tokenize, "AWAIT", -1)):
            if token.string in DROPPED:
                following = generated[index + 1].start
                edits.setdefault(row, []).append((start, following[1], ""))
            elif token.string in UNWRAPPED and generated[index + 1].string == "[":
                edits.setdefault(row, []).append((start, generated[index + 1].end[1], ""))
                end_row, closing = closing_bracket(generated, index + 1).start
                edits.setdefault(end_row, []).append((closing, closing + 1, ""))
            elif name(token.string) != token.string:
                edits.setdefault(row, []).append((start, end, name(token.string)))
    for row, changes in edits.items():
        for start, end, text in sorted(changes, reverse=True):
            line = lines[row - 1]
            lines[row - 1] = line[:start] + text + line[end:]
    for row, start, end_row, end, text in reversed(docs):
        head, tail = lines[row - 1][:start], lines[end_row - 1][end:]
        lines[row - 1 : end_row] = [head + text + tail]
    return "".join(lines)


def generate(root: Path) -> None:
    """Writes it below `root`."""
    folder = root / SYNC
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((SDK / SOURCE).glob("*.py")):
        if source.name not in OWN:
            text = HEADER.format(source=SOURCE.relative_to("src") / source.name) + blocking(source.read_text())
            (folder / source.name).write_text(text)
    ruff, config = str(Path(sys.executable).parent / "ruff"), f"--config={SDK / 'pyproject.toml'}"
    quiet = [ruff, "check", "--quiet", "--no-cache", "--fix", "--select=I,F401", config, str(folder)]
    subprocess.run(quiet, check=True)
    subprocess.run([ruff, "format", "--quiet", "--no-cache", config, str(folder)], check=True)
