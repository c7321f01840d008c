"""Requantize tables: offset, shift and entries for any elementwise function of an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.values import INT8, Interval

__all__ = ["Grid", "Table", "aligned_table", "make_pieces", "make_table", "wide_as_its_zero"]

Real = NDArray[np.float64]
_FINE_BITS = 17
_MOST_PIECES = 6
_REACH = 24


@dataclass(frozen=True)
class Grid:
    """The integers of a quantized value: ``q = clip(round_half_even(y / scale) + zero_point)``."""

    scale: float
    zero_point: int
    low: int = -128
    high: int = 127

    def round(self, y: Real) -> NDArray[np.int64]:
        """Nearest q to each real y; an infinite y saturates."""
        q = np.rint(np.nan_to_num(y / self.scale, nan=0.0)) + self.zero_point
        whole: NDArray[np.int64] = np.clip(q, self.low, self.high).astype(np.int64)
        return whole


@dataclass(frozen=True)
class Table:
    """``q = entries[clip((v + offset) >> shift, 0, R - 1)]`` for v = acc · multiplier."""

    offset: int
    shift: int
    entries: tuple[int, ...]


def make_table(
    span: Interval, scale: float, function: Callable[[Real], Real], out: Grid, limit: int
) -> Table:
    """The finest table of at most ``limit`` entries for q = out(function(v · scale)).

    v runs over ``span``. Below and above the entries q is constant, so a saturated index is
    right. Each entry is the value at the middle of its bucket of ``2**shift`` integers; where the
    shift is 0 it is exact.
    """
    return _Curve(span, scale, function, out).table(limit)


def wide_as_its_zero(table: Table, span: Interval, out: Grid) -> Table:
    """A table of int8 whose zero point is none, as of a constant that lies far from 0 on a grid of
    more bits, with one entry more, which no value of ``span`` reaches: the zero point, so that the
    values are int16 as that is."""
    low, high = min(table.entries), max(table.entries)
    if INT8.lo <= out.zero_point <= INT8.hi or low < INT8.lo or high > INT8.hi:
        return table
    first = (span.lo + table.offset) >> table.shift
    last = (span.hi + table.offset) >> table.shift
    below, above = max(-first, 0), max(last + 1 - len(table.entries), 0)
    if above <= below:
        more = (table.entries[-1],) * above
        return replace(table, entries=(*table.entries, *more, out.zero_point))
    entries = (out.zero_point, *(table.entries[0],) * below, *table.entries)
    return replace(table, offset=table.offset + ((below + 1) << table.shift), entries=entries)


def aligned_table(
    span: Interval,
    scale: float,
    function: Callable[[Real], Real],
    out: Grid,
    shift: int,
    limit: int,
) -> Table | None:
    """The table with buckets of 2**shift around the multiples of 2**shift, which are the steps of
    ``out``; None if it has more than ``limit`` entries."""
    return _Curve(span, scale, function, out).aligned(shift, limit)


def make_pieces(
    span: Interval, scale: float, function: Callable[[Real], Real], out: Grid, limit: int, jump: int
) -> tuple[Table, ...]:
    """Tables whose values add up to q, each as ``make_table`` makes it, of one stretch of v: 0
    below its stretch and constant above. As few as keep neighbouring entries within ``jump``; a
    function as steep at one end as 1 / sqrt(v) needs some, where v runs over decades."""
    curve = _Curve(span, scale, function, out)
    return tuple(curve.pieces(limit, jump))


class _Curve:
    """q over v. It changes from ``first`` on, and no more from ``stop`` on."""

    def __init__(
        self, span: Interval, scale: float, function: Callable[[Real], Real], out: Grid
    ) -> None:
        self._scale, self._function, self._out = scale, function, out
        self._span, self._least = span, 0
        self.ends = self._one(span.lo), self._one(span.hi)
        first = self._search(span, self.ends[0], 0)
        stop = self._search(span, self.ends[1], -1)
        self.constant = first is None or stop is None
        self.first, self.stop = first or 0, (stop or 0) + 1

    def _at(self, start: int, count: int, shift: int) -> NDArray[np.int64]:
        middle = start + np.arange(count, dtype=np.float64) * 2**shift + (2**shift - 1) / 2
        return self._out.round(self._function(middle * self._scale))

    def _one(self, v: int) -> int:
        return int(self._at(v, 1, 0)[0])

    def _search(self, span: Interval, end: int, place: int) -> int | None:
        """First (``place`` 0) or last (-1) v whose q is not ``end``; in steps, the last of 1."""
        shift = max((span.hi - span.lo).bit_length() - _FINE_BITS, 0)
        q = self._at(span.lo, ((span.hi - span.lo) >> shift) + 1, shift)
        found = np.flatnonzero(q != end)
        if not len(found):
            return None
        v = span.lo + (int(found[place]) << shift)
        if not shift:
            return v
        near = Interval(max(v - 2**shift, span.lo), min(v + 2 ** (shift + 1), span.hi))
        finer = self._search(near, end, place)
        return v if finer is None else finer

    def table(self, limit: int) -> Table:
        if self.constant:
            return Table(0, 0, (self.ends[0], self.ends[0]))
        shift = self._reaching(self.first, limit)
        return self._stretch(self.first, self.stop, shift, self.ends)

    def aligned(self, shift: int, limit: int) -> Table | None:
        if self.constant:
            return self.table(limit)
        half = 1 << (shift - 1)
        first = ((self.first + half) >> shift << shift) - half
        if -(-(self.stop - first) >> shift) > limit:
            return None
        made = _trimmed(self._stretch(first, self.stop, shift, self.ends))
        return made if len(made.entries) <= limit else None

    def pieces(self, limit: int, jump: int) -> Iterator[Table]:
        if self.constant:
            yield self.table(limit)
            return
        first, low, base = self.first, self.ends[0], 0
        # A masked value of more bits above the table than that has no lookup of reasonable size.
        self._least = max((self._span.hi - self._span.lo).bit_length() - _REACH, 0)
        for left in reversed(range(_MOST_PIECES)):
            shift, stop = self._reaching(first, limit), self.stop
            piece = self._stretch(first, stop, shift, (low, self.ends[1]))
            while left and shift > self._least and _jump(piece) > jump:
                shift -= 1
                stop = min(first + ((limit - 2) << shift), self.stop)
                piece = self._stretch(first, stop, shift, (low, self._one(stop)))
            entries = np.array(piece.entries) - base
            yield Table(piece.offset, piece.shift, tuple(entries.tolist()))
            if stop >= self.stop:
                return
            first, low, base = stop, piece.entries[-1], piece.entries[-1]

    def _reaching(self, first: int, limit: int) -> int:
        """Least shift at which ``limit`` entries reach from ``first`` to the end."""
        shift = self._least
        while -(-(self.stop - first) >> shift) + 2 > limit:
            shift += 1
        return shift

    def _stretch(self, first: int, stop: int, shift: int, ends: tuple[int, int]) -> Table:
        """Entries from ``first`` to ``stop``, and ``ends`` before and behind them."""
        count = -(-(stop - first) >> shift) + 2
        start = first - (1 << shift)
        entries = self._at(start, count, shift)
        entries[0], entries[-1] = ends
        return Table(-start, shift, tuple(entries.tolist()))


def _trimmed(table: Table) -> Table:
    """Without entries at either end that say what the next one does."""
    entries, first, last = table.entries, 0, len(table.entries)
    while last - first > 2 and entries[first] == entries[first + 1]:
        first += 1
    while last - first > 2 and entries[last - 1] == entries[last - 2]:
        last -= 1
    return Table(table.offset - (first << table.shift), table.shift, entries[first:last])


def _jump(table: Table) -> int:
    return int(np.abs(np.diff(table.entries)).max())
