"""What a model is told of the tools, as the common frameworks have it: plain dictionaries."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union


@dataclass(frozen=True)
class ToolAnswer:
    """What a tool gave."""

    text: str
    """What the model reads."""
    is_error: bool = False
    """Whether the call was wrong, or what ran did not end well."""
    images: list[bytes] = field(default_factory=list)
    """PNG images among the results."""

    def __str__(self) -> str:
        return self.text


def _tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"name": name, "description": description, "schema": schema}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


TOOLS = [
    _tool(
        "run_code",
        "Run code in an isolated sandbox, with little network or none. Python and JavaScript keep their variables from "
        "call to call and show the value of the last expression. Returns what was printed, values and errors.",
        ["code"],
        code=_text("The source code."),
        language={
            "type": "string",
            "enum": ["python", "javascript", "typescript", "go", "bash", "ruby", "perl", "php", "lua"],
            "description": "Its language. Default: python.",
        },
    ),
    _tool(
        "run_command",
        "Run a shell command in the sandbox, in /workspace. Returns what it printed and its exit code.",
        ["command"],
        command=_text("The line for the shell."),
        timeout={"type": "number", "description": "Seconds after which it is killed. Default: 60."},
    ),
    _tool(
        "read_file",
        "Read a text file in the sandbox.",
        ["path"],
        path=_text("Its absolute path, /workspace/main.py for example."),
    ),
    _tool(
        "write_file",
        "Write a text file in the sandbox, replacing it if it is there. Missing folders are made.",
        ["path", "content"],
        path=_text("Its absolute path, /workspace/main.py for example."),
        content=_text("Its whole content."),
    ),
    _tool(
        "list_files",
        "List the files of a folder in the sandbox.",
        [],
        path=_text("Its absolute path. Default: /workspace."),
    ),
]


def openai() -> list[dict[str, Any]]:
    """For `tools=` of chat completions, which most frameworks take."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool["description"],
                "parameters": copy.deepcopy(tool["schema"]),
            },
        }
        for tool in TOOLS
    ]


def anthropic() -> list[dict[str, Any]]:
    """For `tools=` of messages."""
    return [
        {
            "name": tool["name"],
            "description": tool["description"],
            "input_schema": copy.deepcopy(tool["schema"]),
        }
        for tool in TOOLS
    ]


def arguments_of(name: str, given: Union[str, Mapping[str, Any], None]) -> tuple[dict[str, Any], str]:
    """A call's arguments, checked; or what is wrong with them, in words for the model."""
    tool = next((tool for tool in TOOLS if tool["name"] == name), None)
    if tool is None:
        return {}, f"there is no tool {name!r}; there are {', '.join(tool['name'] for tool in TOOLS)}"
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str) else dict(given or {})
    except ValueError as error:
        return {}, f"the arguments are no JSON: {error}"
    if not isinstance(arguments, dict):
        return {}, "the arguments must be an object"
    schema = tool["schema"]
    for key in schema["required"]:
        if key not in arguments:
            return {}, f"{key} must be given"
    for key, value in arguments.items():
        wrong = _wrong(schema["properties"].get(key), value)
        if wrong:
            return {}, f"{key} {wrong}"
    return arguments, ""


def _wrong(rule: Optional[dict[str, Any]], value: Any) -> str:
    if rule is None:
        return "is no argument of this tool"
    if rule["type"] == "string" and not isinstance(value, str):
        return "must be a string"
    if rule["type"] == "number" and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "must be a number"
    if "enum" in rule and value not in rule["enum"]:
        return f"must be one of {', '.join(rule['enum'])}"
    return ""


def part(call: Any, *names: str) -> Any:
    """An attribute of a framework's object, or a key of its dictionary; of what it is in, by further names."""
    for name in names:
        call = call.get(name) if isinstance(call, Mapping) else getattr(call, name, None)
    return call


def fit(text: str, limit: int) -> str:
    """The beginning and the end of what is too long for a model."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
