"""Named errors as the Connect protocol tells them to browsers.

Source: connectrpc.com/docs/protocol, "Unary (Request-Response) RPCs", "Streaming RPCs" and
"Error Codes".
"""

from __future__ import annotations

import base64
import json

import grpc

from secure_quant.wire.rpc_status import METADATA_KEY, packed_details
from secure_quant.wire.status import Status

__all__ = ["HTTP_CODES", "connect_end", "connect_error"]

Code = grpc.StatusCode

HTTP_CODES = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


def connect_error(status: Status) -> tuple[int, bytes]:
    """(HTTP status, JSON body) of a gRPC status with its details."""
    return HTTP_CODES[status[0]], json.dumps(_body(status)).encode()


def connect_end(status: Status) -> bytes:
    """JSON of the last message of a stream that ended so."""
    return json.dumps({"error": _body(status)}).encode()


def _body(status: Status) -> dict[str, object]:
    code, text, metadata = status
    details = [
        {"type": name, "value": base64.b64encode(value).decode().rstrip("=")}
        for key, data in metadata
        if key == METADATA_KEY and isinstance(data, bytes)
        for name, value in packed_details(data)
    ]
    name = "canceled" if code is Code.CANCELLED else code.name.lower()
    return {"code": name, "message": text, "details": details}
