"""What gRPC says of a call that failed, as a named error."""

from __future__ import annotations

import os

import grpc

from secure_quant.errors import PeerUnavailable, SecureQuantError
from secure_quant.wire import raised

__all__ = ["named"]

PROXIES = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
OTHER_ROLE = (
    "the server there has another role: is the address right, and party 0's before party 1's?"
)
HINTS = {
    "Hostname Verification": OTHER_ROLE,
    "is not in peer certificate": OTHER_ROLE,  # gRPC 1.76 says it so
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the ca given here",
}
"""What gRPC says of a certificate -> what that means here."""


def named(error: grpc.RpcError) -> SecureQuantError:
    """With a hint where what gRPC says has a known cause."""
    found = raised(error)
    for said, hint in HINTS.items():
        if isinstance(found, PeerUnavailable) and said in found.what:
            return PeerUnavailable(found.what, hint=hint)
    proxy = next((name for name in PROXIES if os.environ.get(name)), None)
    if isinstance(found, PeerUnavailable) and found.hint is None and proxy is not None:
        return PeerUnavailable(found.what, hint=f"{proxy} is set, and is not used")
    return found
