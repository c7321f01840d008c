"""What a client does in an inference, without I/O: a program.

A program is a generator. It yields the calls that may go out now and is sent their answers, in the
same order; what it returns is the result. A call that fails is raised where it was yielded. Whoever
runs it (``driver``) alone knows channels, threads, event loops and deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from secure_quant_client.progress import Progress

__all__ = ["OLDEST", "Ahead", "Call", "Program", "Told", "Watching"]

Result = TypeVar("Result")


class Call(NamedTuple):
    """method: its name at the server's stub. request: a message, or an iterator of messages where
    the method takes a stream. server: its place among the client's servers."""

    method: str
    request: Any
    server: int = 0

    def __repr__(self) -> str:
        """Not the request, which may be a share."""
        return f"<Call of {self.method} at server {self.server}>"


class Ahead(tuple[Call, ...]):
    """Calls that go out now and are not waited for: the program is sent ``[]`` at once."""

    __slots__ = ()


class Watching(tuple[Call, ...]):
    """One call, whose answers are a stream: it goes out now, and ``hear`` makes of each answer a
    word for whoever watches. What it fails with is of no account. The program is sent ``[]`` at
    once."""

    hear: Callable[[Any], Progress]

    @classmethod
    def by(cls, call: Call, hear: Callable[[Any], Progress]) -> Watching:
        made = cls((call,))
        made.hear = hear
        return made


class Told(tuple[Call, ...]):
    """No calls, but a word for whoever watches; or a pause (None), in which an inference of asyncio
    may be cancelled. The program is sent ``[]`` at once."""

    progress: Progress | None = None

    @classmethod
    def of(cls, progress: Progress) -> Told:
        made = cls()
        made.progress = progress
        return made


OLDEST: Sequence[Call] = ()
"""No calls: the program is sent the answers to the Ahead that waits longest for them. Where another
one fails before, an asyncio driver raises that here."""

Program = Generator[Sequence[Call], list[Any], Result]
