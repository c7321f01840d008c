"""What every client needs: credentials on a call, and one deadline for a whole inference."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from numbers import Real
from typing import Protocol

from secure_quant.errors import ConfigError, DeadlineExceeded, InsecureRefused
from secure_quant.transport import InsecurePlaintext, Security, check_security

__all__ = ["Deadline", "call_metadata"]


class Lock(Protocol):
    """Of ``threading``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


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
    """``seconds`` from now: one for everything that a call of a client does."""

    def __init__(self, seconds: float) -> None:
        """Raises ConfigError for anything but a finite number above 0."""
        number = isinstance(seconds, Real) and not isinstance(seconds, bool)
        if not number or not 0 < seconds < math.inf:
            raise ConfigError(
                "timeout", got=ascii(seconds)[:80], expected="seconds, finite and > 0"
            )
        self._seconds, self._end = float(seconds), time.monotonic() + float(seconds)

    def remaining(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._exceeded()
        return left

    @contextmanager
    def holding(self, lock: Lock) -> Iterator[None]:
        """The lock, for threads. Raises DeadlineExceeded if it is not free in time."""
        if not lock.acquire(timeout=self.remaining()):
            raise self._exceeded()
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def bounding(self) -> AsyncIterator[None]:
        """All that a task does inside. Raises DeadlineExceeded where it takes longer."""
        try:
            async with asyncio.timeout(self.remaining()) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._exceeded() from None

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded("inference", expected=f"<= {self._seconds:g} s")
