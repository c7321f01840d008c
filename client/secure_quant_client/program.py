"""What a client does in an inference, without I/O: a program.

A program is a generator. It yields the calls that may go out now and is sent their answers, in the
same order; what it returns is the result. A call that fails is raised where it was yielded. Whoever
runs it (``driver``) alone knows channels, threads, event loops and deadlines.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

__all__ = ["OLDEST", "Ahead", "Call", "Program"]

Result = TypeVar("Result")


class Call(NamedTuple):
    """method: its name at the server's stub. request: a message, or an iterator of messages where
    the method takes a stream. server: its place among the client's servers."""

    method: str
    request: Any
    server: int = 0


class Ahead(tuple[Call, ...]):
    """Calls that go out now and are not waited for: the program is sent ``[]`` at once."""

    __slots__ = ()


OLDEST: Sequence[Call] = ()
"""No calls: the program is sent the answers to the Ahead that waits longest for them. Where another
one fails before, an asyncio driver raises that here."""

Program = Generator[Sequence[Call], list[Any], Result]
