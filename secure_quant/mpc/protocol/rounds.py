"""What a protocol over a link is: a generator of rounds.

It yields its payload of a round and is sent the peer's, of the same length. Besides it may yield a
``Want``, something local that is not there yet, and is sent that once it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Rounds", "Want"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Want:
    """get: awaited by whoever drives the protocol; what it gives is sent back, what it raises ends
    the protocol."""

    get: Callable[[], Awaitable[Any]]


Rounds = Generator[bytes | Want, Any, Result]
