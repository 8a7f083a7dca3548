"""Templates of a server: created, watched and deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Optional, Union

from .._models import LimitsLike, write_limits
from .._templates import HostPath, TemplateInfo, write_source
from .._wire import new_request_id
from ..errors import InvalidArgumentError, ServerError, TemplateFailedError, TemplateNotReadyError
from ..v1 import template_pb2
from ._io import Callback, invoke
from ._transport import STREAM_TIMEOUT, AsyncTransport

PAGE_SIZE = 1000

TemplateLike = Union[TemplateInfo, str]


class AsyncTemplates:
    """What sandboxes are made from; `AsyncClient.templates` has the calls. Only an admin creates and deletes."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        *,
        folder: Optional[HostPath] = None,
        tarball: Optional[HostPath] = None,
        docker_image: Optional[str] = None,
        registry: Optional[str] = None,
        host: bool = False,
        pull: Optional[str] = None,
        username: Optional[str] = None,
        password: Optional[str] = None,
        plain_http: bool = False,
        runtimes: Sequence[str] = (),
        limits: Optional[LimitsLike] = None,
        languages: Sequence[str] = (),
        warm_size: int = 0,
        start_command: Optional[str] = None,
        ready_command: Optional[str] = None,
        ready_seconds: Optional[int] = None,
        envs: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        writable_root: bool = False,
        request_id: Optional[str] = None,
    ) -> TemplateInfo:
        """Creates a template, or the next version of one, and returns at once: `wait()` for it before using it.

        Give one of `folder`, `tarball`, `docker_image`, `registry` and `host`.

        Args:
            name: its name: 1 to 63 characters of `[a-z0-9._-]`.
            folder: a folder on the nodes, absolute, which is copied.
            tarball: an archive on the nodes, absolute: tar, plain or compressed by gzip or zstd.
            docker_image: an image of the nodes' Docker Engine.
            registry: an image of an OCI registry: `ghcr.io/owner/name:tag`.
            host: the nodes' own `/usr`.
            pull: when the image is fetched: `missing`, `always` or `never`. Default: `missing`.
            username: who asks the registry.
            password: the password, or a token. It is never told again.
            plain_http: speak HTTP without TLS to the registry.
            runtimes: those that it may run on, preferred ones first: `linux`, `docker`, `docker+runsc`. Default:
                `docker` for a Docker image, else `linux`.
            limits: limits of its sandboxes. Default: the node's.
            languages: the languages that may be run. Default: all that it has.
            warm_size: how many sandboxes of it each node keeps warm.
            start_command: a shell line that is started in each of its sandboxes before anybody has it.
            ready_command: a shell line that is run until it ends with 0: the sandbox is ready then.
            ready_seconds: how long that may take, in seconds. Default: 60.
            envs: environment of all that runs in its sandboxes.
            user: the user inside, on the runtime `docker`.
            writable_root: let everything in it be written, on the runtime `docker`.
            request_id: an id of your own, by which a repeated call finds the first template instead of another version.

        Raises:
            PermissionDeniedError: the caller is no admin.
            InvalidArgumentError: something given breaks a rule.
            QuotaError: there are as many templates as there may be.
        """
        source = write_source(
            folder=folder,
            tarball=tarball,
            docker_image=docker_image,
            registry=registry,
            host=host,
            pull=pull,
            username=username,
            password=password,
            plain_http=plain_http,
        )
        start = None
        if start_command is not None:
            start = template_pb2.StartCommand(
                command=start_command, ready_command=ready_command or "", ready_seconds=ready_seconds or 0
            )
        elif ready_command is not None or ready_seconds is not None:
            raise InvalidArgumentError.of("start_command", "must be given where something is waited for")
        request = template_pb2.CreateTemplateRequest(
            name=name,
            source=source,
            runtimes=runtimes,
            limits=write_limits(limits),
            languages=languages,
            warm_size=warm_size,
            start=start,
            env=dict(envs or {}),
            user=user or "",
            writable_root=writable_root,
            request_id=request_id or new_request_id(),
        )
        answer = await self._transport.unary(request, template_pb2.CreateTemplateResponse, repeatable=True)
        return TemplateInfo._read(answer.template)

    async def get(self, template: TemplateLike) -> TemplateInfo:
        """Tells what a template is, and how far each node is with it.

        Args:
            template: the template, its name, which means the newest version, or `name@version`.

        Raises:
            TemplateNotFoundError: there is none.
        """
        request = template_pb2.GetTemplateRequest(name=_name(template))
        answer = await self._transport.unary(request, template_pb2.GetTemplateResponse)
        return TemplateInfo._read(answer.template)

    async def watch(self, template: TemplateLike, *, timeout: Optional[float] = None) -> AsyncIterator[TemplateInfo]:
        """Tells how far the nodes are, now and whenever that changes, until none of them prepares it any more.

        Args:
            template: the template, its name, or `name@version`.
            timeout: how long, in seconds. Default: a day.

        Raises:
            TemplateNotFoundError: there is none, or it was deleted meanwhile.
        """
        request = template_pb2.WatchTemplateRequest(name=_name(template))
        within = STREAM_TIMEOUT if timeout is None else timeout
        async for answer in self._transport.stream(request, template_pb2.WatchTemplateResponse, timeout=within):
            yield TemplateInfo._read(answer.template)

    async def wait(
        self,
        template: TemplateLike,
        *,
        timeout: float = 600.0,
        on_progress: Optional[Callback[TemplateInfo]] = None,
    ) -> TemplateInfo:
        """Waits until sandboxes can be made from a template on some node.

        Args:
            template: the template, its name, or `name@version`.
            timeout: how long, in seconds.
            on_progress: called with the template whenever something about it has changed.

        Raises:
            TemplateFailedError: no node could prepare it; the message says why.
            TemplateNotReadyError: there is no node to prepare it.
            CallTimeoutError: it takes longer.
        """
        seen = None
        async for seen in self.watch(template, timeout=timeout):
            if on_progress is not None:
                await invoke(on_progress, seen)
            if seen.state == "ready":
                return seen
        if seen is None:
            raise ServerError("the server told nothing of the template")
        if seen.state == "failed":
            raise TemplateFailedError(
                f"template {seen.reference} could not be prepared: {seen._failures()}", reason="TEMPLATE_FAILED"
            )
        raise TemplateNotReadyError(
            f"no node is there to prepare template {seen.reference}", reason="TEMPLATE_NOT_READY"
        )

    async def delete(self, template: TemplateLike) -> list[str]:
        """Deletes a template. Sandboxes that are made from it live on.

        Args:
            template: a `TemplateInfo` or `name@version`, which mean that version, or a name, which means all of them.

        Returns:
            The references that are gone.

        Raises:
            TemplateNotFoundError: there is none.
            PermissionDeniedError: the caller is no admin.
        """
        request = template_pb2.DeleteTemplateRequest(name=_name(template))
        answer = await self._transport.unary(request, template_pb2.DeleteTemplateResponse, repeatable=False)
        return list(answer.deleted)

    async def list(self, *, name: Optional[str] = None) -> list[TemplateInfo]:
        """Lists the newest version of each template, by name, those first that are built in.

        Args:
            name: all versions of this template instead, newest first.
        """
        request = template_pb2.ListTemplatesRequest(page_size=PAGE_SIZE, name=name or "")
        found = []
        while True:
            page = await self._transport.unary(request, template_pb2.ListTemplatesResponse)
            found += [TemplateInfo._read(template) for template in page.templates]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def _name(template: TemplateLike) -> str:
    return template.reference if isinstance(template, TemplateInfo) else template
