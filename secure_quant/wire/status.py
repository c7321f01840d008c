"""Named errors <-> gRPC status: the one table, both directions.

A server sends the status code, the error's text and a google.rpc.ErrorInfo whose reason is the
error's name; a client raises the same named error again. Where a status has no details (the
network, a proxy, gRPC itself), the code alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

import grpc

from secure_quant import errors
from secure_quant.errors import SecureQuantError
from secure_quant.wire.gen.party_link_pb2 import LinkAbort
from secure_quant.wire.rpc_status import (
    METADATA_KEY,
    ErrorInfo,
    decode_error_info,
    encode_error_info,
)

__all__ = [
    "CODES",
    "DOMAIN",
    "TAKEN",
    "Status",
    "from_abort",
    "from_status",
    "leaves",
    "raised",
    "to_abort",
    "to_status",
]

DOMAIN = "secure-quant"
TAKEN = "secure-quant-taken"
"""Of the response header: a stream of requests was not refused and is taken in."""
MAX_TEXT = 500
Code = grpc.StatusCode
Metadata = tuple[tuple[str, str | bytes], ...]
Status = tuple[grpc.StatusCode, str, Metadata]
"""(code, text, trailing metadata)"""

CODES: dict[type[SecureQuantError], grpc.StatusCode] = {
    errors.AccuracyLoss: Code.FAILED_PRECONDITION,
    errors.BudgetExceeded: Code.RESOURCE_EXHAUSTED,
    errors.CalibrationError: Code.INVALID_ARGUMENT,
    errors.CaptureMismatch: Code.FAILED_PRECONDITION,
    errors.CertificateExpired: Code.FAILED_PRECONDITION,
    errors.CertificateMismatch: Code.FAILED_PRECONDITION,
    errors.CertificateMissing: Code.FAILED_PRECONDITION,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.DtypeMismatch: Code.INVALID_ARGUMENT,
    errors.HashMismatch: Code.FAILED_PRECONDITION,
    errors.ImplausibleAnswer: Code.INVALID_ARGUMENT,
    errors.InsecureRefused: Code.FAILED_PRECONDITION,
    errors.InternalError: Code.INTERNAL,
    errors.MalformedDataset: Code.INVALID_ARGUMENT,
    errors.MalformedMessage: Code.INVALID_ARGUMENT,
    errors.MaterialExhausted: Code.UNAVAILABLE,
    errors.MaterialReused: Code.FAILED_PRECONDITION,
    errors.MessageTooLarge: Code.RESOURCE_EXHAUSTED,
    errors.MissingParameters: Code.FAILED_PRECONDITION,
    errors.ModelNotFound: Code.NOT_FOUND,
    errors.NotFinite: Code.INVALID_ARGUMENT,
    errors.OpNotSupported: Code.UNIMPLEMENTED,
    errors.OverflowRisk: Code.FAILED_PRECONDITION,
    errors.Overloaded: Code.RESOURCE_EXHAUSTED,
    errors.PairingSpent: Code.UNAVAILABLE,
    errors.PeerUnavailable: Code.UNAVAILABLE,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.PlanMismatch: Code.FAILED_PRECONDITION,
    errors.SessionNotFound: Code.NOT_FOUND,
    errors.ShapeMismatch: Code.INVALID_ARGUMENT,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.UnsupportedModule: Code.UNIMPLEMENTED,
    errors.UnsupportedVersion: Code.FAILED_PRECONDITION,
    errors.ValueOutOfRange: Code.INVALID_ARGUMENT,
    # Raised themselves where no leaf says more.
    errors.ConfigError: Code.FAILED_PRECONDITION,
    errors.InputError: Code.INVALID_ARGUMENT,
    errors.InvalidGraph: Code.FAILED_PRECONDITION,
    errors.MalformedModel: Code.FAILED_PRECONDITION,
    errors.ModelError: Code.FAILED_PRECONDITION,
    errors.ProtocolError: Code.INVALID_ARGUMENT,
    errors.SecureQuantError: Code.INTERNAL,
    errors.ServiceError: Code.UNAVAILABLE,
}

_BY_CODE: dict[grpc.StatusCode, type[SecureQuantError]] = {
    Code.ABORTED: errors.PeerUnavailable,
    Code.CANCELLED: errors.PeerUnavailable,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.FAILED_PRECONDITION: errors.ConfigError,
    Code.INVALID_ARGUMENT: errors.MalformedMessage,
    Code.NOT_FOUND: errors.ModelNotFound,
    Code.OUT_OF_RANGE: errors.ValueOutOfRange,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.Overloaded,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.UNAVAILABLE: errors.PeerUnavailable,
    Code.UNIMPLEMENTED: errors.ConfigError,
}
_OWN_WORDS = ("Deadline Exceeded", "DEADLINE_EXCEEDED")
"""gRPC's, at the caller, where no server said anything."""
_HINTS = {
    Code.DEADLINE_EXCEEDED: "give it more time, or ask by `secure-quant health` whether it serves",
    Code.UNIMPLEMENTED: "this server does not offer the service; is it the right engine and port?",
}


def to_status(error: SecureQuantError) -> Status:
    """What a server answers for ``error``. A subclass outside the table stands as its nearest
    base in it."""
    kind = next(base for base in type(error).__mro__ if base in CODES)
    code = CODES[kind]
    metadata = {
        name: str(value)[:MAX_TEXT]
        for name in ("what", "got", "expected", "hint")
        if (value := getattr(error, name)) is not None
    }
    text = str(error)[:MAX_TEXT]
    details = encode_error_info(code.value[0], text, ErrorInfo(_reason(kind), DOMAIN, metadata))
    return code, text, ((METADATA_KEY, details),)


def from_status(
    code: grpc.StatusCode, text: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> SecureQuantError:
    """The named error behind a status, ready to be raised."""
    for key, value in metadata or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            info = decode_error_info(value)
            kind = _BY_REASON.get(info.reason) if info and info.domain == DOMAIN else None
            if info and kind:
                fields = {name: found[:MAX_TEXT] for name, found in info.metadata.items()}
                known = {name: fields.get(name) for name in ("got", "expected", "hint")}
                return kind(fields.get("what", kind.__name__), **known)
    text = (text or code.name)[:MAX_TEXT]
    if text in _OWN_WORDS:
        text = "no answer in time"
    if code is Code.RESOURCE_EXHAUSTED and "larger than max" in text:
        return errors.MessageTooLarge(text)
    return _BY_CODE.get(code, errors.InternalError)(text, hint=_HINTS.get(code))


def to_abort(error: SecureQuantError, request_ids: Iterable[bytes] = ()) -> LinkAbort:
    """``error`` as a party tells it to the other over their link."""
    code, text, metadata = to_status(error)
    details = dict(metadata)[METADATA_KEY]
    return LinkAbort(
        code=code.value[0], message=text, request_ids=request_ids,
        details=details if isinstance(details, bytes) else b"",
    )  # fmt: skip


def from_abort(abort: LinkAbort) -> SecureQuantError:
    """Inverse of ``to_abort``; a code without meaning stands for UNKNOWN."""
    code = next((each for each in Code if each.value[0] == abort.code), Code.UNKNOWN)
    return from_status(code, abort.message, ((METADATA_KEY, abort.details),))


class _Call(Protocol):
    """What ``grpc.RpcError`` of a finished call and ``grpc.aio.AioRpcError`` have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def raised(error: grpc.RpcError) -> SecureQuantError:
    """The named error behind a failed call of either client API."""
    call: _Call = error  # type: ignore[assignment]  # every RpcError that a call raises is one
    return from_status(call.code(), call.details(), call.trailing_metadata())


def leaves() -> list[type[SecureQuantError]]:
    """Every error without subclasses."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    return [kind for kind in kinds if not any(k is not kind and issubclass(k, kind) for k in kinds)]


def _reason(kind: type[SecureQuantError]) -> str:
    """``MalformedMessage`` -> ``MALFORMED_MESSAGE``"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


_BY_REASON = {_reason(kind): kind for kind in CODES}
