"""Errors as callers of the gateway see them: a gRPC status, an HTTP code, a text.

What a caller did wrong and what its servers did wrong may have one name; a caller must be able to
tell them apart, and not to send again what servers answered wrongly.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from secure_quant import errors
from secure_quant.errors import InternalError, SecureQuantError
from secure_quant.wire import to_status
from secure_quant.wire.status import Status
from secure_quant_client.gateway import events

__all__ = ["FromServers", "from_servers", "http_of", "status_of"]

Code = grpc.StatusCode
_HTTP = {
    Code.INVALID_ARGUMENT: 400, Code.OUT_OF_RANGE: 400, Code.FAILED_PRECONDITION: 400,
    Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429, Code.INTERNAL: 500, Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504,
}  # fmt: skip
_TOO_LARGE, _BAD_GATEWAY = 413, 502
_OWN_AFFAIR = (
    errors.ModelNotFound, errors.PermissionDenied, errors.SessionNotFound, errors.Unauthenticated,
)  # fmt: skip
"""ServiceErrors that speak of the gateway's own standing at its servers, not of its caller's."""


class FromServers(Exception):
    """``error`` is between the gateway and its servers; no caller can mend it."""

    def __init__(self, error: SecureQuantError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def from_servers() -> Iterator[None]:
    """Around calls to the servers. Raises FromServers in place of what is no news for a caller."""
    try:
        yield
    except SecureQuantError as error:
        if isinstance(error, errors.ServiceError) and not isinstance(error, _OWN_AFFAIR):
            raise
        raise FromServers(error) from error


def status_of(error: Exception) -> Status:
    """gRPC code, text, trailing metadata. Anything unforeseen is INTERNAL with an id, under which
    the log has its type and where it arose."""
    if isinstance(error, FromServers):
        _, text, metadata = to_status(error.error)
        return Code.INTERNAL, f"{type(error.error).__name__}: {text}", metadata
    if not isinstance(error, SecureQuantError):
        incident = secrets.token_hex(8)
        events.failure("request failed", error, incident=incident)
        error = InternalError("the gateway failed", hint=f"incident {incident} in its log")
    code, text, metadata = to_status(error)
    return code, f"{type(error).__name__}: {text}", metadata


def http_of(error: Exception) -> tuple[int, str]:
    """HTTP code and text."""
    code, text, _ = status_of(error)
    if isinstance(error, FromServers):
        return _BAD_GATEWAY, text
    if isinstance(error, errors.MessageTooLarge):
        return _TOO_LARGE, text
    return _HTTP.get(code, 500), text
