"""Which method a request is for. Every method has a request of its own (buf lint holds that), so its type says it."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from .v1 import auth_pb2, context_pb2, exec_pb2, file_pb2, scheduler_pb2, session_pb2, template_pb2

CONTRACTS = (auth_pb2, context_pb2, exec_pb2, file_pb2, scheduler_pb2, session_pb2, template_pb2)


@dataclass(frozen=True)
class Method:
    """A method of the contracts."""

    path: str
    # the contract says that a second call does nothing more than one
    repeatable: bool


def _all() -> dict[str, Method]:
    methods = {}
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                repeatable = method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
                path = f"/{service.full_name}/{method.name}"
                methods[method.input_type.full_name] = Method(path, repeatable)
    return methods


_METHODS = _all()


def method_of(request: type[Message]) -> Method:
    """The method that takes such requests."""
    return _METHODS[request.DESCRIPTOR.full_name]
