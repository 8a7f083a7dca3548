"""What of the network a sandbox sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from ._wire import enum, word
from .errors import InvalidArgumentError
from .v1 import scheduler_pb2


@dataclass(frozen=True)
class Network:
    """What of the network a sandbox sees: `Network("egress", allow=["pypi.org", "*.pythonhosted.org"])`.

    An entry of the lists is a host, and after a colon a port or `*` for every port; without one it means the ports 80
    and 443 in `allow`, and every port in `deny`. A host is a name, `*.` and a name for that and all below it, an
    address, a range (`10.1.0.0/16`), or `*` for every public host. IPv6 stands in brackets.
    """

    mode: str = "none"
    """`none`: nothing but a loopback of its own. `egress`: what `allow` has, through the node's proxy, which the usual
    variables name. `open`: an interface of its own, by which every public address is reached."""
    allow: Sequence[str] = ()
    """What can be reached in mode `egress`; in mode `open` the private addresses that can be reached as well."""
    deny: Sequence[str] = ()
    """What can not be reached although it is allowed."""

    def __post_init__(self) -> None:
        # as tuples, so that equal policies are equal, whatever they were given as
        for name in ("allow", "deny"):
            object.__setattr__(self, name, _entries(f"network.{name}", getattr(self, name)))

    @classmethod
    def _read(cls, message: scheduler_pb2.NetworkPolicy) -> Network:
        # not given is `none`; a mode that is newer than this package is no word
        mode = word(scheduler_pb2.NetworkMode, message.mode) if message.mode else "none"
        return cls(mode, list(message.allow), list(message.deny))


NetworkLike = Union[Network, str, Mapping[str, Any]]
"""A mode alone, a `Network`, or its fields as a dictionary."""


def write_network(network: Optional[NetworkLike]) -> Optional[scheduler_pb2.NetworkPolicy]:
    """A policy as the contracts have it."""
    if network is None:
        return None
    if isinstance(network, str):
        network = Network(network)
    elif isinstance(network, Mapping):
        unknown = sorted(str(key) for key in network if key not in Network.__dataclass_fields__)
        if unknown:
            raise InvalidArgumentError.of(f"network.{unknown[0]}", "must be one of allow, deny, mode")
        network = Network(**network)
    elif not isinstance(network, Network):
        rule = f"must be a mode, a Network or a dictionary, not {network!r}"
        raise InvalidArgumentError.of("network", rule)
    mode = enum("network.mode", scheduler_pb2.NetworkMode, network.mode)
    return scheduler_pb2.NetworkPolicy(mode=mode, allow=network.allow, deny=network.deny)


def _entries(field: str, given: Any) -> tuple[str, ...]:
    # a text is a sequence of texts, too
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise InvalidArgumentError.of(field, f"must be a list of entries, not {given!r}")
    for index, entry in enumerate(given):
        if not isinstance(entry, str):
            raise InvalidArgumentError.of(f"{field}[{index}]", f"must be a text, not {entry!r}")
    return tuple(given)
