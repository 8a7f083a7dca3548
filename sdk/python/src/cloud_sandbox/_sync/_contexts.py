# Made from cloud_sandbox/_async/_contexts.py by `make sdk`; do not edit.
"""Code contexts: interpreters whose variables live from call to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional, Union

from .._models import CodeContext
from .._wire import Place, SandboxPath, new_request_id
from ..errors import ContextNotFoundError
from ..v1 import context_pb2
from ._transport import Transport

ContextLike = Union[CodeContext, str]


class Contexts:
    """The calls with code contexts; `Workspace` has them."""

    def __init__(self, transport: Transport, place: Place) -> None:
        self._transport = transport
        self._place = place

    def create_code_context(
        self,
        language: str = "python",
        *,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
    ) -> CodeContext:
        """Starts an interpreter of its own, for `run_code(context=…)`. A sandbox has 16 at most.

        Args:
            language: `python`, `javascript` or `typescript`.
            cwd: the folder to start in. Default: `/workspace`.
            envs: environment on top of the sandbox's.
        """
        request = context_pb2.CreateContextRequest(
            sandbox_id=self._place.sandbox_id,
            session_id=self._place.session_id,
            language=language,
            cwd="" if cwd is None else cwd.decode() if isinstance(cwd, bytes) else str(cwd),
            env=dict(envs or {}),
            request_id=new_request_id(),
        )
        answer = self._transport.unary(request, context_pb2.CreateContextResponse, repeatable=True)
        return CodeContext._read(answer.context)

    def list_code_contexts(self) -> list[CodeContext]:
        """Lists the contexts, oldest first."""
        request = context_pb2.ListContextsRequest(sandbox_id=self._place.sandbox_id, session_id=self._place.session_id)
        answer = self._transport.unary(request, context_pb2.ListContextsResponse)
        return [CodeContext._read(context) for context in answer.contexts]

    def get_code_context(self, context: ContextLike) -> CodeContext:
        """Tells what a context is doing.

        Args:
            context: the context, or its id.
        """
        request = context_pb2.GetContextRequest(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, context_id=_id(context)
        )
        answer = self._transport.unary(request, context_pb2.GetContextResponse)
        return CodeContext._read(answer.context)

    def restart_code_context(self, context: ContextLike) -> CodeContext:
        """Ends the interpreter and starts a new one: its variables are gone.

        Args:
            context: the context, or its id.
        """
        request = context_pb2.RestartContextRequest(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, context_id=_id(context)
        )
        answer = self._transport.unary(request, context_pb2.RestartContextResponse)
        return CodeContext._read(answer.context)

    def interrupt_code_context(self, context: ContextLike) -> bool:
        """Interrupts what runs in a context, as Ctrl-C does in a terminal; variables stay.

        Args:
            context: the context, or its id.

        Returns:
            Whether nothing runs there any more. Code that blocks the interrupt goes on: restart the context then.
        """
        request = context_pb2.InterruptContextRequest(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, context_id=_id(context)
        )
        answer = self._transport.unary(request, context_pb2.InterruptContextResponse)
        return answer.interrupted or not answer.running

    def remove_code_context(self, context: ContextLike) -> bool:
        """Ends the interpreter and forgets the context.

        Args:
            context: the context, or its id.

        Returns:
            Whether there was such a context.
        """
        request = context_pb2.DeleteContextRequest(
            sandbox_id=self._place.sandbox_id, session_id=self._place.session_id, context_id=_id(context)
        )
        try:
            self._transport.unary(request, context_pb2.DeleteContextResponse)
        except ContextNotFoundError:
            return False
        return True


def _id(context: ContextLike) -> str:
    return context.context_id if isinstance(context, CodeContext) else context
