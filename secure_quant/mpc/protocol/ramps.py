"""The public constants of a Requantize whose table is a saturating ramp: no one-hot of the table.

A ramp of 2^q entries: y = T_0 + t·clip(u, 0, 2^q - 1), u = v >> s, with a step t. With
v = acc·m + o, c = v + r mod 2^k public, and r known to the dealer:

- b = [c mod 2^s < r mod 2^s] and b' = [c mod 2^(s+q) < r mod 2^(s+q)] come from the same digits;
- g = (c >> (s+q)) - (r >> (s+q)) mod 2^H is floor(v / 2^(s+q)) + b', so that [u is inside] is
  [g = 0] where b' = 0 and [g = 1] where b' = 1;
- inside, u = (c >> s mod 2^q) - (r >> s mod 2^q) - b + 2^q·b': a sum in the output's ring.

``docs/spec/mpc.md`` proves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.ops import Requantize
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.borrow import Borrow
from secure_quant.mpc.protocol.tables import MAX_WIDTH, scaled

__all__ = ["Ramp", "RampFields", "cheapest_ramp", "choose_ramp"]

MOST_DIGITS = 5
"""Of s + q bits: with six, products of masks cost more than the tables that they save."""
WIDEST_DIGIT = 8
LIFTED = 7
"""Ring elements dealt an output: of the mask's q bits, of four masks and two products."""


class RampFields(NamedTuple):
    """Bits per element of every dealt field, in order. saturation: the one-hot of g's mask. record:
    of products of bits. lift: in the output's ring. digits: their one-hots."""

    saturation: int
    record: int
    lift: int
    digits: tuple[int, ...]

    @property
    def in_order(self) -> tuple[int, ...]:
        return (*self[:-1], *self.digits)


@dataclass(frozen=True)
class Ramp:
    """ring: k. shift: s. multiplier, offset: as in ``Lookup``. steps: q. reach: H. low: least g.
    borrow: digits of s + q bits. lower: how many of them make s. floor: T_0. step: t."""

    ring: int
    shift: int
    multiplier: tuple[int, ...]
    offset: int
    steps: int
    reach: int
    low: int
    borrow: Borrow
    lower: int
    floor: int
    step: int

    @cached_property
    def window_entries(self) -> NDArray[np.uint64]:
        """By g mod 2^H: [g = 0] + 2·[g = 1] + 4·[g > 0]. uint64[2^H]."""
        size = 2**self.reach
        g = (np.arange(size) - self.low) % size + self.low
        made: NDArray[np.uint64] = ((g == 0) + 2 * (g == 1) + 4 * (g > 0)).astype(np.uint64)
        return made

    @property
    def record_bits(self) -> int:
        """Products of the masks of b' alone, with that of [g = 0], with that of [g = 1]."""
        return 3 * len(self.borrow.products) - self.borrow.variables

    def fields(self, ring: int) -> RampFields:
        """For an output in Z_2^ring."""
        digits = tuple(2**bits for bits in self.borrow.digits)
        return RampFields(2**self.reach, self.record_bits, LIFTED * ring, digits)

    def payloads(self, ring: int) -> tuple[int, ...]:
        """Bits per element of each round."""
        return (self.borrow.variables + 3, 3, ring)


def choose_ramp(node: Requantize, x: Interval) -> Ramp | None:
    """The cheapest ramp for acc in ``x``; None where the table is none."""
    multiplier, offset, shift, v = scaled(node, x)
    ramp = _ramp(node.table, v.lo >> shift, v.hi >> shift)
    if ramp is None or not shift:
        return None
    steps, lead, floor, step = ramp
    offset, v = offset - (lead << shift), v - (lead << shift)
    return cheapest_ramp(multiplier, offset, shift, v, steps, floor, step)


def cheapest_ramp(
    multiplier: tuple[int, ...], offset: int, shift: int, v: Interval, steps: int, floor: int,
    step: int, widest: int = WIDEST_DIGIT,
) -> Ramp | None:  # fmt: skip
    """Of 2^steps entries from ``floor`` in steps of ``step``, for v in its range; None where its
    window or its digits, of ``widest`` bits at most, are too wide."""
    low, high = v.lo >> (shift + steps), (v.hi >> (shift + steps)) + 1
    reach = max((high - low).bit_length(), 1)
    ring = shift + steps + reach
    if reach > MAX_WIDTH or ring > 64:
        return None
    found = [
        Ramp(ring, shift, multiplier, offset, steps, reach, low, Borrow(digits), lower, floor, step)
        for digits, lower in _digits(shift, steps, widest)
    ]
    return min(found, key=lambda each: sum(each.fields(1).in_order), default=None)


def _ramp(table: tuple[int, ...], least: int, most: int) -> tuple[int, int, int, int] | None:
    """(q, entries before the ramp, T_0, t) of T_0, T_0 + t, ..., T_0 + (2^q - 1)·t, for u from
    ``least`` to ``most``. Where u does not pass one end of a table, it goes on there as far as that
    takes."""
    rises = [b - a for a, b in pairwise(table)]
    lead = next((place for place, rise in enumerate(rises) if rise), len(rises))
    size = next((n for n, rise in enumerate(rises[lead:], 1) if not rise), len(rises) - lead + 1)
    own, rest = rises[lead : lead + size - 1], rises[lead + size - 1 :]
    if size < 2 or len(set(own)) != 1 or own[0] < 1 or any(rest):
        return None
    q, step = (size - 1).bit_length(), own[0]
    more = 2**q - size
    if not more or most <= lead + size - 1:
        return q, lead, table[0], step
    return (q, lead - more, table[0] - more * step, step) if least >= lead else None


def _digits(shift: int, steps: int, widest: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """(digits, how many of them make ``shift`` bits) worth a look."""
    for lower in range(1, MOST_DIGITS):
        for upper in range(1, MOST_DIGITS + 1 - lower):
            digits = (*_even(shift, lower), *_even(steps, upper))
            if min(digits) > 0 and max(digits) <= widest:
                yield digits, lower


def _even(bits: int, count: int) -> tuple[int, ...]:
    short, long = divmod(bits, count)
    return tuple(short + (i < long) for i in range(count))
