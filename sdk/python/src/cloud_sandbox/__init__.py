"""Run the code that agents write in isolated sandboxes of your own server.

```python
from cloud_sandbox import Sandbox

with Sandbox.create() as sandbox:
    print(sandbox.run_code("1 + 1").text)
```

Everything comes twice: `Sandbox`, `Session`, `Client` block, `AsyncSandbox`, `AsyncSession`, `AsyncClient` are for
`asyncio`. They are made from one code and have the same calls.
"""

from __future__ import annotations

from . import errors
from ._async._client import AsyncClient
from ._async._handle import AsyncCommandHandle, AsyncPtyHandle
from ._async._many import run_many as run_many_async
from ._async._sandbox import AsyncSandbox
from ._async._session import AsyncSession
from ._async._tools import AsyncSandboxTools
from ._async._workspace import AsyncWorkspace
from ._connection import Connection
from ._files import FileEvent, FileInfo, FileMatch, FileUrl
from ._junit import TestCase, TestReport
from ._models import CodeContext, CommandInfo, Limits, Metrics, OutputMatch, SandboxInfo, Usage
from ._network import Network
from ._progress import Outcome
from ._results import CodeError, CommandResult, Execution, FileChange, FileChanges, Gap, Logs, Output, Result
from ._sessions import Checkpoint, LostItem, ResumeManifest, SessionEvent, SessionInfo
from ._sync._client import Client
from ._sync._handle import CommandHandle, PtyHandle
from ._sync._many import run_many
from ._sync._sandbox import Sandbox
from ._sync._session import Session
from ._sync._tools import SandboxTools
from ._sync._workspace import Workspace
from ._templates import StartCommand, TemplateInfo, TemplateNode, TemplateSource
from ._tool_schemas import ToolAnswer
from .errors import *  # noqa: F403

__all__ = [
    "AsyncClient",
    "AsyncCommandHandle",
    "AsyncPtyHandle",
    "AsyncSandbox",
    "AsyncSandboxTools",
    "AsyncSession",
    "AsyncWorkspace",
    "Checkpoint",
    "Client",
    "CodeContext",
    "CodeError",
    "CommandHandle",
    "CommandInfo",
    "CommandResult",
    "Connection",
    "Execution",
    "FileChange",
    "FileChanges",
    "FileEvent",
    "FileInfo",
    "FileMatch",
    "FileUrl",
    "Gap",
    "Limits",
    "Logs",
    "LostItem",
    "Metrics",
    "Network",
    "Outcome",
    "Output",
    "OutputMatch",
    "PtyHandle",
    "Result",
    "ResumeManifest",
    "Sandbox",
    "SandboxInfo",
    "SandboxTools",
    "Session",
    "SessionEvent",
    "SessionInfo",
    "StartCommand",
    "TemplateInfo",
    "TemplateNode",
    "TemplateSource",
    "TestCase",
    "TestReport",
    "ToolAnswer",
    "Usage",
    "Workspace",
    "run_many",
    "run_many_async",
]
__all__ += errors.__all__
