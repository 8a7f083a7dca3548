"""An agent: a model calls tools in a sandbox until it is done.

The model here is a script, so that the example runs anywhere. A real one gets `tools.openai()` (or `tools.anthropic()`)
and answers in the same shape.
"""

from __future__ import annotations

import json
from typing import Any

from cloud_sandbox import Sandbox, SandboxTools

TASK = "Write a program that prints the first ten squares, and see that it works."

PROGRAM = "print([n * n for n in range(1, 11)]"
STEPS: list[tuple[str, dict[str, str]]] = [
    ("write_file", {"path": "/workspace/squares.py", "content": PROGRAM}),
    ("run_command", {"command": "python3 squares.py"}),
    # it has read the SyntaxError
    ("write_file", {"path": "/workspace/squares.py", "content": PROGRAM + ")"}),
    ("run_command", {"command": "python3 squares.py"}),
]


def scripted_model(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers as `client.chat.completions.create(messages=…, tools=…)` does."""
    done = sum(message["role"] == "tool" for message in messages)
    if done == len(STEPS):
        return {"role": "assistant", "content": f"It works: {messages[-1]['content']}"}
    name, arguments = STEPS[done]
    call = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": f"call_{done}", "type": "function", "function": call}]}


def main() -> None:
    """Runs the loop."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": TASK}]
    with Sandbox.create() as sandbox:
        tools = SandboxTools(sandbox)
        while True:
            message = scripted_model(messages, tools.openai())
            messages.append(message)
            if "tool_calls" not in message:
                print(message["content"])
                return
            for call in message["tool_calls"]:
                answer = tools.answer_openai(call)
                print(f"{call['function']['name']}: {' … '.join(answer['content'].splitlines()[-2:])}")
                messages.append(answer)


if __name__ == "__main__":
    main()
