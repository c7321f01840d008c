"""Requantize tables: offset, shift and entries for any elementwise function of an accumulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.values import Interval

__all__ = ["Grid", "Table", "make_table"]

Real = NDArray[np.float64]
_FINE_BITS = 17


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

    def q_at(start: int, count: int, shift: int) -> NDArray[Any]:
        middle = start + np.arange(count, dtype=np.float64) * 2**shift + (2**shift - 1) / 2
        return out.round(function(middle * scale))

    fine = max((span.hi - span.lo).bit_length() - _FINE_BITS, 0)
    q = q_at(span.lo, ((span.hi - span.lo) >> fine) + 1, fine)
    changes = np.flatnonzero(np.diff(q))
    if not len(changes):
        return Table(0, 0, (int(q[0]), int(q[0])))
    first = span.lo + ((int(changes[0]) + 1) << fine)  # the lowest v past the low constant
    stop = span.lo + ((int(changes[-1]) + 1) << fine)  # from here on the high constant
    shift = 0
    while -(-(stop - first) >> shift) + 2 > limit:
        shift += 1
    count = -(-(stop - first) >> shift) + 2
    start = first - (1 << shift)
    entries = q_at(start, count, shift)
    entries[0], entries[-1] = q[0], q[-1]
    return Table(-start, shift, tuple(entries.tolist()))
