"""Templates: what sandboxes are made from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Optional, Union

from ._models import Limits
from ._wire import enum, moment, word
from .errors import InvalidArgumentError
from .v1 import template_pb2

HostPath = Union[str, "os.PathLike[str]"]
"""A path on the nodes."""


@dataclass(frozen=True)
class TemplateSource:
    """Where a template's root file system comes from."""

    kind: str
    """`host`, `folder`, `tarball`, `docker_image` or `registry`."""
    path: str = ""
    """The folder or archive on the nodes; empty of an image."""
    image: str = ""
    """The image's reference; empty of what is none."""
    pull: str = ""
    """When the image is fetched: `missing`, `always` or `never`; empty of what is no image."""
    username: str = ""
    """Who asks the registry. The password is never told."""
    plain_http: bool = False
    """Whether the registry is spoken to without TLS."""

    @classmethod
    def _read(cls, message: template_pb2.TemplateSource) -> TemplateSource:
        kind = message.WhichOneof("source")
        if kind is None:
            return cls(kind="")
        chosen = getattr(message, kind)
        names = {field.name for field in chosen.DESCRIPTOR.fields} & set(cls.__dataclass_fields__) - {"pull"}
        facts: dict[str, Any] = {name: getattr(chosen, name) for name in names}
        if "pull" in chosen.DESCRIPTOR.fields_by_name:
            facts["pull"] = word(template_pb2.PullPolicy, chosen.pull)
        return cls(kind=kind, **facts)


@dataclass(frozen=True)
class StartCommand:
    """What is started in each sandbox of a template before anybody has it."""

    command: str
    """A shell line. Its process stays."""
    ready_command: str
    """A shell line that is run until it ends with 0; empty when starting is enough."""
    ready_seconds: int
    """How long that may take, in seconds."""


@dataclass(frozen=True)
class TemplateNode:
    """How far a node is with a template."""

    node_id: str
    """The node."""
    state: str
    """`preparing`, `ready` or `failed`."""
    runtime: str
    """The runtime that its sandboxes have there, once it is ready."""
    detail: str
    """What is being done (`pulling`, `unpacking`), or why it failed."""
    done_bytes: int
    """Bytes of that which are done."""
    total_bytes: int
    """Bytes that there are; 0 where that is not known."""


@dataclass(frozen=True)
class TemplateInfo:
    """What the server knows of a template. It never changes: created again under its name is its next version."""

    name: str
    """Its name."""
    version: int
    """Which one of its name, from 1; 0 of a built-in one."""
    source: TemplateSource
    """Where its root file system comes from."""
    runtimes: list[str]
    """The runtimes that it may run on, those that are preferred first."""
    limits: Limits
    """Limits of its sandboxes; what is 0 is the node's default."""
    languages: list[str]
    """The languages that may be run; empty for all that it has."""
    warm_size: int
    """How many sandboxes of it each node keeps warm."""
    start: Optional[StartCommand]
    """What is started in each of its sandboxes."""
    envs: dict[str, str]
    """Environment of all that runs in its sandboxes."""
    user: str
    """The user inside; empty for the sandbox's own."""
    writable_root: bool
    """Whether everything in it can be written."""
    create_time: Optional[datetime]
    """When it was created; `None` of a built-in one."""
    state: str
    """`ready` once any node has it ready, `failed` once each node has failed, else `preparing`."""
    nodes: list[TemplateNode]
    """How far each node is."""

    @property
    def reference(self) -> str:
        """What names this version and no other: `python@3`; a built-in one's name alone."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @classmethod
    def _read(cls, message: template_pb2.Template) -> TemplateInfo:
        start = message.start
        return cls(
            name=message.name,
            version=message.version,
            source=TemplateSource._read(message.source),
            runtimes=list(message.runtimes),
            limits=Limits._read(message.limits),
            languages=list(message.languages),
            warm_size=message.warm_size,
            start=StartCommand(start.command, start.ready_command, start.ready_seconds)
            if message.HasField("start")
            else None,
            envs=dict(message.env),
            user=message.user,
            writable_root=message.writable_root,
            create_time=moment(message.create_time) if message.HasField("create_time") else None,
            state=word(template_pb2.TemplateState, message.state),
            nodes=[
                TemplateNode(
                    node_id=node.node_id,
                    state=word(template_pb2.TemplateState, node.state),
                    runtime=node.runtime,
                    detail=node.detail,
                    done_bytes=node.done_bytes,
                    total_bytes=node.total_bytes,
                )
                for node in message.nodes
            ],
        )

    def _failures(self) -> str:
        """Why no node has it."""
        reasons = sorted({node.detail for node in self.nodes if node.detail})
        return "; ".join(reasons) or "its nodes do not say why"


def write_source(
    *,
    folder: Optional[HostPath],
    tarball: Optional[HostPath],
    docker_image: Optional[str],
    registry: Optional[str],
    host: bool,
    pull: Optional[str],
    username: Optional[str],
    password: Optional[str],
    plain_http: bool,
) -> template_pb2.TemplateSource:
    """The one source that is given, as the contracts have it."""
    given = [name for name, value in (("folder", folder), ("tarball", tarball)) if value is not None]
    images = [name for name, value in (("docker_image", docker_image), ("registry", registry)) if value is not None]
    if len(given) + len(images) + host != 1:
        raise InvalidArgumentError.of("source", "must be one of folder, tarball, docker_image, registry and host")
    of_images = {"pull": pull, "username": username, "password": password}
    for name, value in of_images.items():
        if value is not None and not images:
            raise InvalidArgumentError.of(name, "is for images alone")
    if plain_http and registry is None:
        raise InvalidArgumentError.of("plain_http", "is for registries alone")
    if folder is not None:
        return template_pb2.TemplateSource(folder=template_pb2.FolderSource(path=os.fspath(folder)))
    if tarball is not None:
        return template_pb2.TemplateSource(tarball=template_pb2.TarballSource(path=os.fspath(tarball)))
    if host:
        return template_pb2.TemplateSource(host=template_pb2.HostSource())
    policy = enum("pull", template_pb2.PullPolicy, pull)
    if docker_image is not None:
        image = template_pb2.DockerImageSource(
            image=docker_image, pull=policy, username=username or "", password=password or ""
        )
        return template_pb2.TemplateSource(docker_image=image)
    return template_pb2.TemplateSource(
        registry=template_pb2.RegistrySource(
            image=registry or "",
            pull=policy,
            username=username or "",
            password=password or "",
            plain_http=plain_http,
        )
    )
