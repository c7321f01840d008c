"""What a joint protocol is: a generator of simultaneous exchanges, and how several run at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from secure_quant.errors import MalformedMessage

__all__ = ["Exchange", "Joint", "swap", "together"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Exchange:
    """sent: bytes for the peer. expected: how many bytes the peer's message has, which differs from
    what is sent where the two have different parts."""

    sent: bytes
    expected: int


Joint = Generator[Exchange, bytes, Result]


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
    waiting: list[tuple[int, Exchange]] = []

    def step(place: int, message: bytes | None) -> None:
        run = runs[place]
        try:
            waiting.append((place, next(run) if message is None else run.send(message)))
        except StopIteration as end:
            made[place] = end.value

    for place in range(len(runs)):
        step(place, None)
    while waiting:
        now, waiting = waiting, []
        whole = b"".join(each.sent for _, each in now)
        peer = yield from swap(whole, sum(each.expected for _, each in now))
        first = 0
        for place, each in now:
            step(place, peer[first : first + each.expected])
            first += each.expected
    return made
