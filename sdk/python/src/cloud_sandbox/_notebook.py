"""How results look in a notebook and in a REPL."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._results import CommandResult, Result

# the forms of a result, best first in a notebook's eyes by their media types
MEDIA_TYPES = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "latex": "text/latex",
    "json": "application/json",
    "pdf": "application/pdf",
    "javascript": "application/javascript",
}
SHOWN_MAX = 20_000
STDERR = "color:#b00020"


def short(text: str, width: int = 60) -> str:
    """The text on one line, of `width` characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def bundle(result: Result) -> dict[str, Any]:
    """All forms by media type, in the way of IPython's `_repr_mimebundle_`.

    Scripts are left out: what ran in the sandbox shall not run in the reader's browser by being looked at.
    """
    forms: dict[str, Any] = {}
    for name, media_type in MEDIA_TYPES.items():
        value = getattr(result, name)
        if value is None or name == "javascript":
            continue
        forms[media_type] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        if name == "json":
            forms[media_type] = json.loads(value)
    return forms


def line(result: CommandResult) -> str:
    """One line for a REPL."""
    parts = [f"exit_code={result.exit_code}"]
    reached = ("timed_out", "oom_killed", "disk_limit", "pids_limit", "signal")
    parts += [name for name in reached if getattr(result, name)]
    parts += [f"{name}={short(value)!r}" for name in ("stdout", "stderr") if (value := getattr(result, name))]
    results = getattr(result, "results", None)
    if results:
        parts.append(f"results={results!r}")
    error = getattr(result, "error", None)
    if error is not None:
        parts.append(f"error={short(str(error))!r}")
    return f"{type(result).__name__}({', '.join(parts)})"


def page(result: CommandResult) -> str:
    """The whole in HTML: output, results, error, and how it ended unless well."""
    parts = [_block(result.stdout, "")] if result.stdout else []
    if result.stderr:
        parts.append(_block(result.stderr, STDERR))
    parts += [_form(each) for each in getattr(result, "results", [])]
    error = getattr(result, "error", None)
    if error is not None:
        parts.append(_block(error.traceback or str(error), STDERR))
    if not result.ok:
        why = "timed out" if result.timed_out else result.signal or f"exit code {result.exit_code}"
        parts.append(f'<div style="{STDERR}"><small>{escape(why)}</small></div>')
    return "".join(parts) or "<small>no output</small>"


def _block(text: str, style: str) -> str:
    if len(text) > SHOWN_MAX:
        text = text[:SHOWN_MAX] + f"\n… {len(text) - SHOWN_MAX} more characters"
    return f'<pre style="{style}">{escape(text)}</pre>'


def _form(result: Result) -> str:
    for name in ("png", "jpeg"):
        data = getattr(result, name)
        if data is not None:
            return f'<img src="data:{MEDIA_TYPES[name]};base64,{base64.b64encode(data).decode()}"/>'
    if result.svg is not None:
        data = base64.b64encode(result.svg.encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{data}"/>'
    if result.html is not None:
        # what a sandbox made is shown without its scripts
        return f'<iframe sandbox srcdoc="{escape(result.html)}" style="width:100%;border:0"></iframe>'
    return _block(str(result), "")
