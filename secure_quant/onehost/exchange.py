"""What a joint protocol is: a generator of simultaneous exchanges, and how several run at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from secure_quant.errors import MalformedMessage

__all__ = ["Begun", "Exchange", "Joint", "flow", "swap", "together"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Exchange:
    """sent: bytes for the peer. expected: how many bytes the peer's message has, which differs from
    what is sent where the two have different parts."""

    sent: bytes = field(repr=False)
    expected: int


Joint = Generator[Exchange, bytes, Result]
Begun = tuple[Joint[Any], Callable[[Any], None]]
"""A run, and who is told its result."""


def swap(sent: bytes, expected: int) -> Joint[bytes]:
    """The peer's message. Raises MalformedMessage where it has another length."""
    peer = yield Exchange(sent, expected)
    if len(peer) != expected:
        raise MalformedMessage("bytes of a joint message", got=len(peer), expected=expected)
    return peer


def together(runs: Sequence[Joint[Any]]) -> Joint[list[Any]]:
    """The results of ``runs``, whose next messages always travel as one, in the order of ``runs``.

    Runs may have different numbers of exchanges. Raises MalformedMessage.
    """
    made: list[Any] = [None] * len(runs)
    left = deque((run, partial(made.__setitem__, i)) for i, run in enumerate(runs))

    def ready() -> Iterator[Begun]:
        while left:
            yield left.popleft()

    yield from flow(ready)
    return made


def flow(ready: Callable[[], Iterator[Begun]]) -> Joint[None]:
    """Runs side by side, whose next messages travel as one, in the order in which they began.

    ready: those that may begin now, and who is told the result of each. It is asked before every
    exchange, and goes on when the run that it named has begun: what ends at once may let the next
    begin. Raises MalformedMessage.
    """
    waiting: list[tuple[Begun, Exchange]] = []

    def step(begun: Begun, message: bytes | None) -> None:
        run, over = begun
        try:
            exchange = next(run) if message is None else run.send(message)
        except StopIteration as end:
            over(end.value)
        else:
            waiting.append((begun, exchange))

    while True:
        for begun in ready():
            step(begun, None)
        if not waiting:
            return
        now, waiting[:] = list(waiting), ()
        whole = b"".join(exchange.sent for _, exchange in now)
        peer = yield from swap(whole, sum(exchange.expected for _, exchange in now))
        place = 0
        for begun, exchange in now:
            step(begun, peer[place : place + exchange.expected])
            place += exchange.expected
