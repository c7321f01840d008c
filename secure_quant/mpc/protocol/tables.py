"""The public constants of one Requantize: which bits of the masked value are looked up where.

With v = acc·m + o and c = v + r mod 2^k public, and r known to the dealer:

- u = v >> s is (c >> s) - (r >> s) - b, where b = [c mod 2^s < r mod 2^s] is the borrow;
- X, 2^W entries, holds the table where u mod 2^W can come from inside, its last entry above and its
  first below, so that a lookup at u mod 2^W is right for -2^q <= u < (G+1)·2^q, G = ceil(R / 2^q);
- g = (c >> (s+q)) - (r >> (s+q)) mod 2^H is floor(v / 2^(s+q)) plus an unknown carry of 0 or 1;
  0 <= g <= G means that the lookup is right, g > G that u is above the table, g < 0 below it.

Where 2^W covers every u there is, no g is needed (H = 0). ``docs/spec/mpc.md`` proves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.ir.ops import Requantize
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.borrow import Borrow
from secure_quant.mpc.protocol.cost import lift_bits

__all__ = [
    "MAX_WIDTH", "Borrow", "Lookup", "bits_of", "candidates", "choose", "flat_candidates", "scaled",
]  # fmt: skip

Variant = Literal["V3", "V4", "V5"]

MAX_WIDTH = 14
"""Largest log2 of a one-hot: 2 KiB an element."""


class Fields(NamedTuple):
    """Bits per element of every dealt field. main: the one-hot (V3: two with a borrow). record: of
    products. lift: of the number's bits, or V3's products in the ring. digits: their one-hots."""

    main: int
    saturation: int
    record: int
    lift: int
    digits: tuple[int, ...]

    @property
    def in_order(self) -> tuple[int, ...]:
        """As they are dealt, one behind the other."""
        return (*self[:-1], *self.digits)


@dataclass(frozen=True)
class Lookup:
    """ring: k. shift: s. multiplier: reduced m[c]. offset: reduced o. width: W. granule: q.
    reach: H (0: the lookup needs no g). borrow: digits of s. low: least g. out_bits: 8 or 16."""

    variant: Variant
    ring: int
    shift: int
    multiplier: tuple[int, ...]
    offset: int
    width: int
    granule: int
    reach: int
    low: int
    borrow: Borrow
    out_bits: int
    table: tuple[int, ...]
    least: int
    """Of u, where reach is 0."""
    lifted: bool = True
    """False: the number stays as it is opened, masked by XOR, for a gate that reads its bits."""

    @property
    def floor(self) -> int:
        """Least entry: what a looked-up number counts from."""
        return min(self.table)

    @property
    def saturates(self) -> bool:
        return self.reach > 0

    @property
    def below(self) -> int:
        """Number that stands below the table, as unsigned; every looked-up one is XORed with it."""
        return self.table[0] - self.floor if self.saturates else 0

    @property
    def above(self) -> int:
        """Number above the table, XOR ``below``."""
        return (self.table[-1] - self.floor) ^ self.below if self.saturates else 0

    @cached_property
    def entries(self) -> NDArray[np.uint64]:
        """X: uint64[2^W], numbers from ``floor`` XOR ``below``."""
        size = 2**self.width
        place = np.arange(size, dtype=np.int64)
        if self.saturates:
            u = np.where(place >= size - 2**self.granule, place - size, place)
        else:
            u = (place - self.least) % size + self.least
        table = np.array(self.table, np.int64) - self.floor
        made: NDArray[np.uint64] = table[np.clip(u, 0, len(table) - 1)].astype(np.uint64)
        return made ^ np.uint64(self.below)

    @cached_property
    def window_entries(self) -> NDArray[np.uint64]:
        """By g mod 2^H: [the lookup is right] + 2·[u is above the table]. uint64[2^H]."""
        granules, size = -(-len(self.table) // 2**self.granule), 2**self.reach
        g = (np.arange(size) - self.low) % size + self.low
        inside, over = (g >= 0) & (g <= granules), g > granules
        made: NDArray[np.uint64] = inside.astype(np.uint64) | over.astype(np.uint64) << np.uint64(1)
        return made

    @cached_property
    def looked_up(self) -> tuple[NDArray[np.uint64], int]:
        """(entries, bits): X, and above it, in V4 with a borrow, X[j] ^ X[j - 1], which the borrow
        changes, and in V5 X[j - 1]."""
        now = self.entries
        if self.variant == "V3" or not self.shift:
            return now, self.out_bits
        if self.variant == "V5":
            return now | np.roll(now, 1) << np.uint64(self.out_bits), 2 * self.out_bits
        return now | (now ^ np.roll(now, 1)) << np.uint64(self.out_bits), 2 * self.out_bits

    # ---- material and payload, in bits per element

    def lift_bits(self, ring: int) -> int:
        return lift_bits(self.out_bits, ring)

    @property
    def opened_bits(self) -> int:
        """Masked bits opened in the first round; 0: there is no such round."""
        if self.variant == "V3":
            return (1 + bool(self.shift)) * self.out_bits + 2 * self.saturates + bool(self.shift)
        if self.variant == "V5":
            return 2 * self.out_bits + 2 * self.saturates + self.borrow.variables
        if not self.shift and not self.saturates:
            return 0
        return (1 + bool(self.shift)) * self.out_bits + self.saturates + self.borrow.variables

    @property
    def record_bits(self) -> int:
        """V4: products of masks of the opened bits."""
        if self.variant != "V4":
            return 0
        count, bits = len(self.borrow.products), self.out_bits
        made = count * bits + count - self.borrow.variables
        if self.saturates:
            made += count * (bits + 1) + bits + (bits if self.shift else 0)
        return made

    def fields(self, ring: int) -> Fields:
        """For an output in Z_2^ring."""
        main, sat = 2**self.width, 2**self.reach if self.saturates else 0
        digits = tuple(2**bits for bits in self.borrow.digits)
        if self.variant == "V4":
            lift = self.lift_bits(ring) if self.lifted else 0
            return Fields(main, sat, self.record_bits, lift, digits)
        if self.variant == "V5":
            count = (1 + self.saturates) * (len(self.borrow.products) + 1)
            lift = count * (ring + 2 * self.lift_bits(ring)) - (not self.saturates) * ring
            return Fields(main, sat, 0, lift, digits)
        cases = 1 + bool(self.shift)
        products = cases * self.lift_bits(ring) * (1 + self.saturates)
        return Fields(cases * main, sat, 0, products + 2 * ring * self.saturates, digits)

    def payloads(self, ring: int) -> tuple[int, ...]:
        """Bits per element of each round."""
        if self.variant != "V4":
            return (self.opened_bits, ring)
        first = (self.opened_bits,) if self.opened_bits else ()
        return (*first, self.out_bits, ring) if self.lifted else (*first, self.out_bits)


def reduced(node: Requantize) -> tuple[tuple[int, ...], int, int]:
    """(multiplier, offset, shift) with common powers of two dropped, which changes no floor:
    (2^j·a + o) >> s = (a + (o >> j)) >> (s - j)."""
    common = gcd(*node.multiplier)
    drop = min((common & -common).bit_length() - 1, node.shift)
    multiplier = tuple(m >> drop for m in node.multiplier)
    return multiplier, node.offset >> drop, node.shift - drop


def scaled(node: Requantize, x: Interval) -> tuple[tuple[int, ...], int, int, Interval]:
    """(multiplier, offset, shift), reduced, and the range of v for acc in ``x``."""
    multiplier, offset, shift = reduced(node)
    ends = x.times(min(multiplier)).hull(x.times(max(multiplier)))
    return multiplier, offset, shift, Interval(ends.lo + offset, ends.hi + offset)


def choose(node: Requantize, x: Interval, objective: str, ring: int) -> Lookup:
    """The cheapest lookup for acc in ``x``; ``ring`` is the output's, for the cost alone. V3 where
    latency counts: a round is worth some material there, but not without end.

    Raises OpNotSupported where no lookup of reasonable size exists.
    """
    each = 2500 if objective == "latency" else 0

    def price(look: Lookup) -> tuple[int, int]:
        return (bits_of(look, ring) + each * len(look.payloads(ring)), look.ring)

    found = candidates(node, x)
    return min((look for look in found if each or look.variant == "V4"), key=price)


def bits_of(look: Any, ring: int) -> int:
    """Of a Lookup, or of what takes its place: what one output costs besides its rounds."""
    dealt: int = sum(look.fields(ring).in_order)
    return dealt + 10 * int(look.ring)


def candidates(node: Requantize, x: Interval, *, cases: bool = False) -> list[Lookup]:
    """Every lookup for acc in ``x``; V5 with ``cases``. Raises OpNotSupported where none of
    reasonable size exists."""
    multiplier, offset, shift, v = scaled(node, x)
    found = list(_candidates(node, v, multiplier, offset, shift, cases=cases))
    if not any(look.variant == "V4" for look in found):
        raise OpNotSupported(
            f"Requantize {node.name!r} under secret sharing: accumulator range over table",
            got=f"{v.hi - v.lo} >> {shift} over {len(node.table)}",
            expected=f"<= 2^{MAX_WIDTH}",
            hint="a larger shift, or a tighter bound",
        )
    return found


def flat_candidates(node: Requantize, x: Interval) -> list[Lookup]:
    """Lookups of acc itself, without multiplier and shift: of the table that has an entry for every
    acc in ``x`` at which what ``node`` makes may change. None where there are too many."""
    multiplier, offset, shift, _ = scaled(node, x)
    m, top = multiplier[0], len(node.table) - 1
    if len(multiplier) > 1 or m < 1 or (m == 1 and not shift):
        return []
    first = min(max(x.lo, -(offset // m) - 1), x.hi)  # u < 0 there, if anywhere
    last = max(min(x.hi, -((offset - (top << shift)) // m)), first)  # the least where u >= top
    if last - first >= 2**MAX_WIDTH:
        return []
    u = ((acc * m + offset) >> shift for acc in range(first, last + 1))
    table = tuple(node.table[min(max(place, 0), top)] for place in u)
    flat = replace(node, multiplier=(1,), offset=-first, shift=0, table=table)
    return list(_candidates(flat, x - first, (1,), -first, 0))


def _candidates(
    node: Requantize, v: Interval, multiplier: tuple[int, ...], offset: int, shift: int, *,
    cases: bool = False,
) -> Iterator[Lookup]:  # fmt: skip
    size, kind = len(node.table), 8 if max(node.table) - min(node.table) < 256 else 16
    least, most = v.lo >> shift, v.hi >> shift
    shapes: list[tuple[int, int, int, int]] = []
    direct = max((most - least).bit_length(), 1)
    if direct <= MAX_WIDTH:
        shapes.append((direct, 0, 0, 0))
    for width in range((size - 1).bit_length(), MAX_WIDTH + 1):
        for granule in range(width):
            if (-(-size // 2**granule) + 2) * 2**granule > 2**width:
                continue
            low, high = v.lo >> (shift + granule), (v.hi >> (shift + granule)) + 1
            reach = max((high - low).bit_length(), 1)
            fits = width <= granule + reach <= MAX_WIDTH + granule  # u mod 2^W is in c at all
            if fits and shift + granule + reach <= 64:
                shapes.append((width, granule, reach, low))
    for width, granule, reach, low in shapes:
        ring = shift + (granule + reach if reach else width)
        for variant, digits in _splits(shift, cases=cases):
            yield Lookup(
                variant, ring, shift, multiplier, offset, width, granule, reach, low,
                Borrow(digits), kind, node.table, least,
            )  # fmt: skip


def _splits(shift: int, *, cases: bool) -> Iterator[tuple[Variant, tuple[int, ...]]]:
    """Variants and digits of the borrow worth a look."""
    if shift <= MAX_WIDTH:
        yield "V3", (shift,) if shift else ()
    if not shift:
        yield "V4", ()
    for count in range(1, min(shift, 4) + 1):
        if shift <= count * MAX_WIDTH:
            short, long = divmod(shift, count)
            digits = tuple(short + (i < long) for i in range(count))
            yield "V4", digits
            if cases:
                yield "V5", digits
