"""Where a pairing's correlated OTs come from: SoftSpokenOT, or Ferret on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.ferret import LPN, Lpn, choice_bits
from secure_quant.onehost.ferret import Chooser as FerretChooser
from secure_quant.onehost.ferret import Sender as FerretSender
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.softspoken import GRAIN, Chooser, Field, Sender, extension_bytes

__all__ = ["Ferret", "Made", "Objective", "SoftSpoken", "Source", "lpn_of", "mean_bytes"]

Objective = Literal["latency", "traffic"]
"""latency: SoftSpokenOT. traffic: Ferret, which rests on LPN besides."""

Made = tuple[list[Words], list[Words], list[Words]]
"""(choice bits and blocks of the own COTs as chooser, blocks of those as sender): pieces of each,
one after the other."""


def lpn_of(objective: Objective) -> Lpn | None:
    """The set that Ferret is served with; None where it is not used."""
    return LPN if objective == "traffic" else None


class Source(Protocol):
    """One party's end, in both directions. Counts are by chooser: party 0 and party 1."""

    def rounded(self, counts: Sequence[int]) -> list[int]:
        """What is made where at least so many are wanted."""
        ...

    def sent_bytes(self, extends: Sequence[Sequence[int]]) -> tuple[int, int]:
        """What party 0 and party 1 send for the next calls of ``extend``, each of such counts."""
        ...

    def extend(self, counts: Sequence[int]) -> Joint[Made]:
        """counts: of ``rounded``. Raises MalformedMessage."""
        ...


class SoftSpoken:
    """An exchange: each end's extension as chooser."""

    def __init__(self, party: int, field: Field, chooser: Chooser, sender: Sender) -> None:
        self._own, self._field = party, field
        self._chooser, self._sender = chooser, sender

    def rounded(self, counts: Sequence[int]) -> list[int]:
        """See Source."""
        return [_up(count, GRAIN) for count in counts]

    def sent_bytes(self, extends: Sequence[Sequence[int]]) -> tuple[int, int]:
        """See Source."""
        first, second = (extension_bytes(count, self._field) for count in _totals(extends))
        return first, second

    def extend(self, counts: Sequence[int]) -> Joint[Made]:
        """See Source."""
        message, bits, v = self._chooser.extend(counts[self._own])
        theirs = counts[1 - self._own]
        peer = yield from swap(message, extension_bytes(theirs, self._field))
        return bits, v, self._sender.extend(theirs, peer)


class Ferret:
    """An exchange, each end's trees as sender; the first time after one of SoftSpokenOT, for what
    the first batch of a direction takes."""

    def __init__(
        self, party: int, under: SoftSpoken, lpn: Lpn, delta: Words, codes: Sequence[bytes]
    ) -> None:
        """codes: public seeds of the directions' matrices, by chooser."""
        self._own, self._under, self._lpn = party, under, lpn
        self._delta, self._codes = delta, codes
        self._chooser: FerretChooser | None = None
        self._sender: FerretSender | None = None

    def rounded(self, counts: Sequence[int]) -> list[int]:
        """See Source."""
        return [_up(count, self._lpn.made) for count in counts]

    def _begins(self, counts: Sequence[int]) -> list[int]:
        """COTs of SoftSpokenOT that ``counts`` take, by chooser."""
        ends = {self._own: self._chooser, 1 - self._own: self._sender}
        reserve = _up(self._lpn.reserve, GRAIN)
        return [reserve if counts[i] and ends[i] is None else 0 for i in (0, 1)]

    def sent_bytes(self, extends: Sequence[Sequence[int]]) -> tuple[int, int]:
        """See Source."""
        counts = _totals(extends)
        first, second = self._under.sent_bytes([self._begins(counts)])
        trees = [count // self._lpn.made * self._lpn.batch_bytes for count in counts]
        return first + trees[1], second + trees[0]

    def extend(self, counts: Sequence[int]) -> Joint[Made]:
        """See Source."""
        lpn, own, other = self._lpn, self._own, 1 - self._own
        if any(begins := self._begins(counts)):
            u, v, w = map(_joined, (yield from self._under.extend(begins)))
            if begins[own]:
                base = u[: lpn.reserve], v[: lpn.reserve]
                self._chooser = FerretChooser(lpn, self._codes[own], *base)
            if begins[other]:
                base_w = w[: lpn.reserve]
                self._sender = FerretSender(lpn, self._codes[other], self._delta, base_w)
        mine, theirs = (counts[i] // lpn.made for i in (own, other))
        message, made_w = self._sender.extend(theirs) if self._sender else (b"", [])
        peer = yield from swap(message, mine * lpn.batch_bytes)
        made_v = self._chooser.extend(mine, peer) if self._chooser else []
        return list(map(choice_bits, made_v)), made_v, made_w


def mean_bytes(
    objective: Objective, field: Field, extends: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """What party 0 and party 1 send for COTs that are taken one time after the other, each by
    chooser: of SoftSpokenOT from an empty stock; of Ferret their part of a batch, whose rest is for
    the next items."""
    counts = _totals(extends)
    lpn = lpn_of(objective)
    if lpn is None:
        # What one rounding leaves the next ones need not make.
        first, second = (extension_bytes(_up(count, GRAIN), field) for count in counts)
        return first, second
    first, second = (-(-count * lpn.batch_bytes // lpn.made) for count in counts)
    return second, first  # who does not choose sends


def _totals(extends: Sequence[Sequence[int]]) -> list[int]:
    """By chooser."""
    return [sum(counts[i] for counts in extends) for i in (0, 1)]


def _joined(parts: list[Words]) -> Words:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def _up(count: int, grain: int) -> int:
    return -(-count // grain) * grain
