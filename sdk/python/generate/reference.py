"""The reference from the docstrings: `docs/sdk-python-reference.md`.

It is read from the sources, not from the imported package: annotations stay as they are written.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Union

SDK = Path(__file__).resolve().parents[1]
PACKAGE = SDK / "src/cloud_sandbox"
PAGE = Path("../../docs/sdk-python-reference.md")

HEAD = """# The Python SDK: reference

Made from the docstrings by `make sdk`. The guide is [sdk-python.md](sdk-python.md).

The calls are shown as the blocking face has them. The asynchronous one has the same, under names with `Async` before
them (`run_many_async` for `run_many`): its methods are awaited, its iterators iterated over with `async for`.
"""

# title, file, and which classes and functions of it; none: all that are public
SECTIONS: list[tuple[str, list[tuple[str, tuple[str, ...]]]]] = [
    ("Sandboxes", [("_sync/_sandbox.py", ("Sandbox",)), ("_network.py", ("Network",))]),
    (
        "In a sandbox or session",
        [("_sync/_workspace.py", ("Workspace",)), ("_sync/_contexts.py", ("Contexts",))],
    ),
    (
        "Commands and terminals",
        [("_sync/_commands.py", ("Commands", "Pty")), ("_sync/_handle.py", ("CommandHandle", "PtyHandle"))],
    ),
    ("Files", [("_sync/_files.py", ("Files",)), ("_sync/_transfer.py", ("Transfers",))]),
    ("Sessions", [("_sync/_session.py", ("Session",))]),
    ("Many snippets", [("_sync/_many.py", ("run_many",)), ("_progress.py", ("Outcome",))]),
    ("Tools for models", [("_sync/_tools.py", ("SandboxTools",)), ("_tool_schemas.py", ("ToolAnswer",))]),
    ("Connections", [("_sync/_client.py", ("Client",)), ("_connection.py", ("Connection",))]),
    ("Templates", [("_sync/_templates.py", ("Templates",)), ("_templates.py", ())]),
    ("What executions give", [("_results.py", ()), ("_junit.py", ("TestReport", "TestCase"))]),
    ("What the server tells", [("_models.py", ()), ("_files.py", ()), ("_sessions.py", ())]),
    ("Errors", [("errors.py", ())]),
]

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
LISTED = {"Args:": "", "Returns:": "Returns ", "Raises:": "Raises "}


def generate(root: Path) -> None:
    """Writes it below `root`."""
    page = (root / PAGE).resolve()
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for title, sources in SECTIONS:
        parts.append(f"\n## {title}\n")
        for source, names in sources:
            parts += [text for node in wanted(source, names) for text in described(node)]
    page.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n")


def wanted(source: str, names: tuple[str, ...]) -> list[ast.AST]:
    module = ast.parse((PACKAGE / source).read_text())
    nodes = [node for node in module.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    if names:
        found = {node.name: node for node in nodes}
        return [found[name] for name in names]
    return [node for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def described(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return ["", f"### `{node.name}`", "", *function(node, "")]
    assert isinstance(node, ast.ClassDef)
    bases = [ast.unparse(base) for base in node.bases]
    bases = [base for base in bases if base not in ("TypedDict", "Exception") and not base.startswith("Sequence")]
    heading = f"### `{node.name}`" + (f", a `{'` and `'.join(bases)}`" if bases else "")
    lines = ["", heading, "", *prose(ast.get_docstring(node) or "")]
    fields = list(attributes(node))
    lines += ["", *fields] if fields else []
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and not overload(member):
            lines += ["", *function(member, f"{node.name}.")]
    return lines


def attributes(node: ast.ClassDef) -> list[str]:
    """Fields with the strings below them, of the class and of its `__init__`; and properties."""
    lines: list[str] = []
    inits = [each.body for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    for body in (node.body, *inits):
        for statement, following in zip(body, body[1:]):
            target = field_of(statement)
            if target and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                name, kind = target
                text = " ".join(str(following.value.value).split())
                lines.append(f"- `{name}`{f': `{kind}`' if kind else ''}. {text}")
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and decorated(member, "property"):
            kind = ast.unparse(member.returns) if member.returns else ""
            lines.append(f"- `{member.name}`: `{kind}`. {' '.join((ast.get_docstring(member) or '').split())}")
    return lines


def field_of(statement: ast.stmt) -> tuple[str, str] | None:
    target: ast.expr
    if isinstance(statement, ast.AnnAssign):
        target, kind = statement.target, ast.unparse(statement.annotation)
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, kind = statement.targets[0], ""
        if isinstance(statement.value, ast.Call):
            kind = ast.unparse(statement.value.func)
    else:
        return None
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        name = target.attr
    elif isinstance(target, ast.Name):
        name = target.id
    else:
        return None
    return None if name.startswith("_") else (name, kind)


def decorated(node: Function, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in node.decorator_list)


def overload(node: Function) -> bool:
    return decorated(node, "overload") or decorated(node, "property")


def function(node: ast.FunctionDef, owner: str) -> list[str]:
    arguments = ", ".join(map(spaced, split(ast.unparse(drop_self(node.args)))))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{owner}{node.name}({arguments}){returns}"
    if len(signature) > 110:
        parts = split(arguments)
        signature = f"{owner}{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return ["```python", signature, "```", "", *prose(ast.get_docstring(node) or "")]


def drop_self(arguments: ast.arguments) -> ast.arguments:
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    return arguments


def spaced(part: str) -> str:
    """With spaces about the sign of a default, as the sources have it."""
    name, sign, default = part.partition("=")
    return f"{name} = {default}" if sign and ": " in name else part


def split(arguments: str) -> list[str]:
    """At the commas that are in no brackets."""
    parts, depth, word = [], 0, ""
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(word.strip())
            word = ""
        else:
            word += character
    return [*parts, word.strip()]


def prose(text: str) -> list[str]:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.strip() in LISTED:
            section = line.strip()
            lines.append("")
        elif not section or not line.startswith("    "):
            section = "" if line.strip() else section
            lines.append(line)
        elif section != "Returns:" and (found := re.match(r"    (\*{0,2}[\w.]+): (.*)", line)):
            lines.append(f"- {LISTED[section]}`{found.group(1)}`: {found.group(2)}")
        elif section == "Returns:" and (not lines or not lines[-1].startswith("- Returns")) and not lines[-1].strip():
            lines.append(f"- Returns: {line.strip()}")
        else:
            lines.append(f"  {line.strip()}")
    return lines
