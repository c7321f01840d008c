"""The public constants of a Requantize that only rounds: no table, no clip, two rounds.

y = T + t·(u - u_min), u = v >> s, for every v that can be. With v = acc·m + o, counted from a
multiple of 2^s so that 0 <= v < 2^(k-1), c = v + r mod 2^k public, and r known to the dealer:

- u = (c >> s) - (r >> s) - b + 2^(k-s)·w, b = [c mod 2^s < r mod 2^s] and w = [c < r];
- v leaves the top bit of the ring free, so that w = top(r)·(1 - top(c)): nothing is compared;
- the terms of b exclude each other, so that b is their sum, of products of bits p + (1 - 2p)·n.

``docs/spec/mpc.md`` proves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops
from secure_quant.ir.bounds import only_rounds
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.borrow import Borrow
from secure_quant.mpc.protocol.ramps import Ramp, cheapest_ramp
from secure_quant.mpc.protocol.tables import MAX_WIDTH, scaled

__all__ = ["Rounded", "Shift", "choose_shift", "ramp_of", "refuse_run_time_scales", "rounded",
           "shift_of"]  # fmt: skip

MOST_DIGITS = 5
"""Of s bits: with six, the products of masks cost more than the tables that they save."""
MOST_BITS = 64


class ShiftFields(NamedTuple):
    """Bits per element of every dealt field, in order. lift: of r >> s, of products of masks and of
    the top bit, in the output's ring. digits: their one-hots."""

    lift: int
    digits: tuple[int, ...]

    @property
    def in_order(self) -> tuple[int, ...]:
        return (self.lift, *self.digits)


class Rounded(NamedTuple):
    """y = floor + step·((acc·multiplier + offset) >> shift), and the range of what is shifted, from
    0 or little more."""

    multiplier: tuple[int, ...]
    offset: int
    shift: int
    floor: int
    step: int
    v: Interval


@dataclass(frozen=True)
class Shift:
    """ring: k. shift: s. multiplier, offset: as in ``Rounded``. borrow: digits of s. wraps: the
    output's ring is above k - s, so that c < r counts. floor, step: as in ``Rounded``."""

    ring: int
    shift: int
    multiplier: tuple[int, ...]
    offset: int
    borrow: Borrow
    wraps: bool
    floor: int
    step: int

    @cached_property
    def coefficients(self) -> NDArray[np.uint64]:
        """By the opened variables: b = [p, 0] + Σ [p, 1 + i]·(product of masks i), as integers mod
        2^64. uint64[2^variables, 1 + products]."""
        return _coefficients(len(self.borrow.digits))

    def lift_bits(self, ring: int) -> int:
        """Of r >> s and the products in Z_2^ring, and of the top bit mod what 2^(k-s) leaves."""
        above = ring - (self.ring - self.shift) if self.wraps else 0
        return (1 + len(self.borrow.products)) * ring + above

    def fields(self, ring: int) -> ShiftFields:
        """For an output in Z_2^ring."""
        return ShiftFields(self.lift_bits(ring), tuple(2**bits for bits in self.borrow.digits))

    def payloads(self, ring: int) -> tuple[int, ...]:
        """Bits per element of each round."""
        return (self.borrow.variables, ring)


def rounded(node: ops.Requantize | ops.Rescale, x: Interval) -> Rounded | None:
    """What ``node`` does to acc in ``x``, if it only rounds there: no clip, and of a table equal
    steps up. None otherwise, or where nothing is shifted."""
    if isinstance(node, ops.Rescale):
        if not only_rounds(node, x):
            return None
        as_table = ops.Requantize(
            name=node.name, inputs=node.inputs, multiplier=node.multiplier, axis=node.axis,
            offset=1 << (node.shift - 1), shift=node.shift, table=(0, 1), scale=node.scale,
            zero_point=0,
        )  # fmt: skip
        multiplier, offset, shift, v = scaled(as_table, x)
        least = first = v.lo >> shift
        step = 1
    else:
        multiplier, offset, shift, v = scaled(node, x)
        least, most = v.lo >> shift, v.hi >> shift
        if least < 0 or most >= len(node.table):
            return None
        rises = {b - a for a, b in pairwise(node.table[least : most + 1])}
        if len(rises) != 1 or min(rises) < 1:
            return None
        (step,), first = rises, node.table[least]
    lead = least << shift
    return Rounded(multiplier, offset - lead, shift, first, step, v - lead) if shift else None


def refuse_run_time_scales(graph: Graph, where: str) -> None:
    """Raises OpNotSupported for scales chosen at run time, and for a Rescale that does more than
    round."""
    for node in graph.nodes:
        if not isinstance(node, ops.DYNAMIC):
            continue
        x = graph.values[node.inputs[0]].centred
        if isinstance(node, ops.Rescale) and only_rounds(node, x):
            continue
        raise OpNotSupported(
            f"{type(node).__name__} {node.name!r} {where}",
            got="a scale chosen at run time, which depends on the secret input: opened it would"
            " tell of it, and kept secret it costs a division of every value",
            hint="quantize with mode='static' or 'weight-only', or serve it under homomorphic"
            " encryption",
        )


def choose_shift(node: ops.Requantize | ops.Rescale, x: Interval, ring: int) -> Shift | None:
    """The cheapest for acc in ``x`` and an output in Z_2^ring; None where ``node`` does more than
    round."""
    made = rounded(node, x)
    if made is None:
        return None
    spare = max(made.v.hi.bit_length(), made.shift) + 1
    wraps = made.shift + ring > spare
    k = spare if wraps else made.shift + ring
    if k > MOST_BITS:
        return None
    found = [
        Shift(k, made.shift, made.multiplier, made.offset, Borrow(digits), wraps, made.floor,
              made.step)
        for digits in _digits(made.shift)
    ]  # fmt: skip
    return min(found, key=lambda each: sum(each.fields(ring).in_order), default=None)


def shift_of(node: ops.Rescale, x: Interval, ring: int) -> Shift:
    """As ``choose_shift``. Raises OpNotSupported where there is none."""
    found = choose_shift(node, x, ring)
    if found is None:
        raise _does_more(node)
    return found


def ramp_of(node: ops.Rescale, x: Interval) -> Ramp:
    """The same by sums and windows, for which one host has a joint half: a ramp as long as all that
    can be. Raises OpNotSupported where ``node`` does more than round, or of too many bits."""
    made = rounded(node, x)
    steps = 1 if made is None else max((made.v.hi >> made.shift).bit_length(), 1)
    ramp = None if made is None else cheapest_ramp(
        made.multiplier, made.offset, made.shift, made.v, steps, made.floor, made.step, MAX_WIDTH
    )  # fmt: skip
    if ramp is None:
        raise _does_more(node)
    return ramp


def _does_more(node: ops.Rescale) -> OpNotSupported:
    return OpNotSupported(
        f"Rescale {node.name!r}", got="a clip, a bias, or more bits than five digits have",
        expected="one that only rounds",
    )  # fmt: skip


def _digits(shift: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, min(shift, MOST_DIGITS) + 1):
        short, long = divmod(shift, count)
        if short + bool(long) <= MAX_WIDTH:
            yield tuple(short + (i < long) for i in range(count))


@lru_cache
def _coefficients(digits: int) -> NDArray[np.uint64]:
    """Of Π (p_i + (1 - 2 p_i)·n_i) over a term = Σ_S Π_{i not in S} p_i · Π_{i in S} (1 - 2 p_i) ·
    n_S, summed over the terms."""
    borrow = Borrow((1,) * digits)
    p = np.arange(1 << borrow.variables, dtype=np.int64)
    made = np.zeros((len(p), 1 + len(borrow.products)), np.int64)
    for place, sub in enumerate((0, *borrow.products)):
        sign = 1 - 2 * (np.bitwise_count(p & sub).astype(np.int64) & 1)
        for term in borrow.terms:
            if term & sub == sub:
                rest = term & ~sub
                made[:, place] += np.where(p & rest == rest, sign, 0)
    words: NDArray[np.uint64] = made.astype(np.uint64)
    words.flags.writeable = False
    return words
