# Made from cloud_sandbox/_async/_tools.py by `make sdk`; do not edit.
"""A sandbox as the tools of a model, for any framework with function calling, without needing one."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Union

from .. import _tool_schemas
from .._results import Execution
from .._tool_schemas import ToolAnswer, arguments_of, fit, part
from ..errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    QuotaError,
    SandboxNotFoundError,
    SessionNotFoundError,
    StateError,
)
from ._workspace import Workspace

# what a model can do something about; everything else is for who runs it
FOR_THE_MODEL = (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    QuotaError,
    StateError,
    UnicodeDecodeError,
)


class SandboxTools:
    """Tools of a sandbox or session: `run_code`, `run_command`, `read_file`, `write_file`, `list_files`.

    Args:
        workspace: the sandbox or session that they work in.
        max_chars: how long an answer is at most, in characters; of more, beginning and end are given.
    """

    def __init__(self, workspace: Workspace, *, max_chars: int = 20_000) -> None:
        self._workspace = workspace
        self._max_chars = max_chars

    def openai(self) -> list[dict[str, Any]]:
        """The tools for `tools=` of OpenAI's chat completions, and of the many that speak as they do."""
        return _tool_schemas.openai()

    def anthropic(self) -> list[dict[str, Any]]:
        """The tools for `tools=` of Anthropic's messages."""
        return _tool_schemas.anthropic()

    def call(self, name: str, arguments: Union[str, Mapping[str, Any], None] = None) -> ToolAnswer:
        """Does what a model asks for. What it did wrong is an answer, for it to do better.

        Args:
            name: the tool.
            arguments: what the model gave: a dictionary, or JSON.

        Raises:
            CloudSandboxError: what is no model's fault: the sandbox is gone, the server cannot be reached.
        """
        given, wrong = arguments_of(name, arguments)
        if wrong:
            return ToolAnswer(wrong, is_error=True)
        try:
            return self._do(name, given)
        except (SandboxNotFoundError, SessionNotFoundError):
            raise
        except FOR_THE_MODEL as error:
            return ToolAnswer(str(error), is_error=True)

    def answer_openai(self, tool_call: Any) -> dict[str, Any]:
        """Does what a tool call of a chat completion asks for.

        Args:
            tool_call: the call, as an object of the library or a dictionary.

        Returns:
            The message to add: `{"role": "tool", …}`.
        """
        answer = self.call(part(tool_call, "function", "name"), part(tool_call, "function", "arguments"))
        return {"role": "tool", "tool_call_id": part(tool_call, "id"), "content": answer.text}

    def answer_anthropic(self, block: Any) -> dict[str, Any]:
        """Does what a block of type `tool_use` asks for.

        Args:
            block: the block, as an object of the library or a dictionary.

        Returns:
            The block to answer with: `{"type": "tool_result", …}`, with images.
        """
        answer = self.call(part(block, "name"), part(block, "input"))
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text or "(nothing)"}]
        for image in answer.images:
            data = base64.b64encode(image).decode()
            content.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
        return {
            "type": "tool_result",
            "tool_use_id": part(block, "id"),
            "content": content,
            "is_error": answer.is_error,
        }

    def _do(self, name: str, given: dict[str, Any]) -> ToolAnswer:
        files = self._workspace.files
        if name == "run_code":
            execution = self._workspace.run_code(given["code"], language=given.get("language"))
            return self._ran(execution)
        if name == "run_command":
            timeout = given.get("timeout", 60.0)
            command = self._workspace.commands.run(given["command"], timeout=timeout)
            return self._ran(Execution(**vars(command)))
        if name == "read_file":
            return ToolAnswer(fit(files.read(given["path"]), self._max_chars))
        if name == "write_file":
            info = files.write(given["path"], given["content"])
            return ToolAnswer(f"wrote {info.size} bytes to {info.path}")
        listed = files.list(given.get("path", "/workspace"))
        lines = [f"{info.path}{'/' if info.is_dir else ''} {info.size}" for info in listed]
        return ToolAnswer(fit("\n".join(lines) or "the folder is empty", self._max_chars))

    def _ran(self, execution: Execution) -> ToolAnswer:
        parts = [execution.stdout]
        parts += [str(result) for result in execution.results]
        if execution.stderr:
            parts.append(f"stderr:\n{execution.stderr}")
        if execution.error is not None:
            parts.append(execution.error.traceback or str(execution.error))
        if execution.timed_out:
            parts.append("it was killed at its timeout")
        elif execution.oom_killed:
            parts.append("it was killed: out of memory")
        elif not execution.ok and execution.error is None:
            parts.append(f"exit code {execution.exit_code}")
        text = "\n".join(piece.rstrip("\n") for piece in parts if piece)
        images = [result.png for result in execution.results if result.png is not None]
        return ToolAnswer(fit(text or "(no output)", self._max_chars), not execution.ok, images)
