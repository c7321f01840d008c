"""Two ends of a joint protocol in one process, message by message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secure_quant.onehost.cot import KAPPA, Pairing
from secure_quant.onehost.ferret import Lpn

SMALL = Lpn(secret=256, trees=80, depth=5)
"""For tests: nobody's secret."""


def drive(one: Any, two: Any) -> tuple[Any, Any, list[tuple[int, int]]]:
    """(result of one, result of two, (bytes one sent, bytes two sent) of every exchange)."""
    runs, messages, done = (one, two), [None, None], [None, None]
    sent: list[tuple[int, int]] = []
    while True:
        exchanges = []
        for i, run in enumerate(runs):
            try:
                exchanges.append(next(run) if messages[i] is None else run.send(messages[i]))
            except StopIteration as end:
                done[i] = end.value
        if not exchanges:
            return done[0], done[1], sent
        assert len(exchanges) == 2, "one end stopped before the other"
        for a, b in (exchanges, exchanges[::-1]):
            assert len(a.sent) == b.expected
        sent.append((len(exchanges[0].sent), len(exchanges[1].sent)))
        messages = [exchanges[1].sent, exchanges[0].sent]


def pair(kappa: Any = KAPPA, lpn: Lpn | None = None) -> list[Pairing]:
    one, two, _ = drive(Pairing.make(0, kappa, lpn), Pairing.make(1, kappa, lpn))
    return [one, two]


def both(pairs: list[Pairing], make: Callable[[Pairing], Any]) -> tuple[Any, Any, Any]:
    return drive(make(pairs[0]), make(pairs[1]))


def columns(pairs: list[Pairing], choosers: list[int], elements: int) -> list[list[Any]]:
    """The columns of both ends, filled and taken."""
    wanted = [sum(c in (side, 2) for c in choosers) * elements for side in (0, 1)]
    both(pairs, lambda p: p.fill(*wanted))
    return [p.columns(choosers, elements) for p in pairs]


def words(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def whole(made: Any) -> Any:
    """What an end's ``extend`` gave, with its pieces put together."""
    if isinstance(made, tuple):
        return tuple(map(whole, made))
    if isinstance(made, list):
        return np.concatenate(made) if made else np.empty((0, 2), np.uint64)
    return made
