"""What every client needs: credentials on a call, and one deadline for a whole inference."""

from __future__ import annotations

import time

from secure_quant.errors import ConfigError, DeadlineExceeded, InsecureRefused
from secure_quant.transport import InsecurePlaintext, Security, check_security

__all__ = ["Deadline", "call_metadata"]

Metadata = tuple[tuple[str, str], ...]


def call_metadata(security: Security, token: str | None) -> Metadata:
    """The metadata of every call: the client's token, if it has one.

    Raises InsecureRefused for a token on a plaintext connection.
    """
    if token is None:
        return ()
    if isinstance(check_security(security), InsecurePlaintext):
        raise InsecureRefused("token", got="a plaintext connection", expected="Tls(...)")
    if not token.isascii() or not token.isprintable():
        raise ConfigError("token", expected="printable ASCII")
    return (("authorization", f"Bearer {token}"),)


class Deadline:
    """``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ConfigError("timeout", got=seconds, expected="> 0 seconds")
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("inference", expected=f"<= {self._seconds:g} s")
        return left
