"""google.rpc.Status and ErrorInfo, the rich error details of gRPC, without a further dependency.

The two messages are built in a pool of their own, so that a program that also loads
googleapis-common-protos sees no conflict. Source: google/rpc/status.proto, error_details.proto;
AIP-193.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

__all__ = [
    "METADATA_KEY",
    "ErrorInfo",
    "decode_error_info",
    "encode_error_info",
    "packed_details",
]

METADATA_KEY = "grpc-status-details-bin"
_TYPE_URL = "type.googleapis.com/google.rpc.ErrorInfo"
_FIELD = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """reason: UPPER_SNAKE_CASE, unique within domain. metadata: what a program may want to know."""

    reason: str
    domain: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def encode_error_info(code: int, message: str, info: ErrorInfo) -> bytes:
    """A serialized google.rpc.Status that carries ``info``."""
    detail = _ERROR_INFO(reason=info.reason, domain=info.domain, metadata=dict(info.metadata))
    status = _STATUS(code=code, message=message)
    status.details.add(type_url=_TYPE_URL, value=detail.SerializeToString(deterministic=True))
    encoded: bytes = status.SerializeToString()
    return encoded


def decode_error_info(data: bytes) -> ErrorInfo | None:
    """The ErrorInfo inside a serialized google.rpc.Status; None if there is none to be read."""
    try:
        for detail in _STATUS.FromString(data).details:
            if detail.type_url == _TYPE_URL:
                found = _ERROR_INFO.FromString(detail.value)
                return ErrorInfo(found.reason, found.domain, dict(found.metadata))
    except DecodeError:
        return None
    return None


def packed_details(data: bytes) -> list[tuple[str, bytes]]:
    """(message name, its bytes) of each detail inside a serialized google.rpc.Status."""
    details = _STATUS.FromString(data).details
    return [(each.type_url.rpartition("/")[2], each.value) for each in details]


def _message_classes() -> tuple[Any, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="google/rpc/error.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name],
    )
    status = file.message_type.add(name="Status")
    _add_field(status, "code", 1, _FIELD.TYPE_INT32)
    _add_field(status, "message", 2, _FIELD.TYPE_STRING)
    _add_field(status, "details", 3, _FIELD.TYPE_MESSAGE, ".google.protobuf.Any")
    info = file.message_type.add(name="ErrorInfo")
    _add_field(info, "reason", 1, _FIELD.TYPE_STRING)
    _add_field(info, "domain", 2, _FIELD.TYPE_STRING)
    _add_field(info, "metadata", 3, _FIELD.TYPE_MESSAGE, ".google.rpc.ErrorInfo.MetadataEntry")
    entry = info.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, _FIELD.TYPE_STRING)
    _add_field(entry, "value", 2, _FIELD.TYPE_STRING)
    pool.AddSerializedFile(file.SerializeToString())
    by_name = (pool.FindMessageTypeByName(f"google.rpc.{name}") for name in ("Status", "ErrorInfo"))
    first, second = (message_factory.GetMessageClass(descriptor) for descriptor in by_name)
    return first, second


def _add_field(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    kind: descriptor_pb2.FieldDescriptorProto.Type.ValueType,
    type_name: str = "",
) -> None:
    """Messages repeat, scalars do not: all that these two types need."""
    label = _FIELD.LABEL_REPEATED if type_name else _FIELD.LABEL_OPTIONAL
    message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)


_STATUS, _ERROR_INFO = _message_classes()
