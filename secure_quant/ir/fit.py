"""A Requantize whose buckets are the steps of its grid: a value is then rounded once, not twice.

A bucket is 2**shift units of acc · multiplier, a step of the grid any number of them. With a common
factor c of the multipliers a bucket is 2**shift / c units, and a scale a few percent larger than
calibration asked for makes a step of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from secure_quant.ir.tables import Grid, Table, aligned_table, make_table
from secure_quant.ir.terms import Term

__all__ = ["ALIGNED_TABLE", "ALIGNED_WIDE", "fit", "refined", "stepped"]

LARGEST_FACTOR = 15
"""Of the multipliers: 4 bits of ring under secret sharing."""
GROWTH = 1.06
"""Of the scale, that the least factor is taken for."""
ALIGNED_TABLE = 384
"""Entries of such a table to int8. Secret sharing looks up in 2^9 as for fewer."""
ALIGNED_WIDE = 2048
"""To int16: a finer one would make the files of small models much larger."""


def fit(term: Term, grid: Grid, limit: int) -> tuple[Term, Grid, Table] | None:
    """``term`` with its multipliers times a factor, the grid with a larger scale, and the table, of
    ``limit`` entries at most; None where the function is none that grows like its argument or a
    bucket would be less than a unit. Of a grid finer than that, a bucket is two of its steps."""
    slope = _slope(term, grid)
    if not slope:
        return None
    steps = 1 if grid.high - grid.low < limit else 2
    best: tuple[float, int, int] | None = None
    for factor in range(1, min(LARGEST_FACTOR, 255 // max(term.multiplier)) + 1):
        units = steps * grid.scale / (slope * term.scale) * factor
        shift = math.ceil(math.log2(units) - 1e-6)
        if shift < 1 or shift > 31:
            continue
        growth = 2.0**shift / units
        if best is None or growth < best[0] - 1e-9:
            best = growth, factor, shift
        if growth <= GROWTH:
            break
    if best is None:
        return None
    growth, factor, shift = best
    made = _times(term, factor)
    scale = float(f"{made.scale * slope * 2**shift / steps:.7g}")
    low = grid.low + (grid.low - grid.zero_point) % steps
    high = grid.high - (grid.high - grid.zero_point) % steps
    new = replace(grid, scale=scale, low=low, high=high)
    table = aligned_table(made.span, made.scale, made.apply, new, shift, limit)
    return None if table is None else (made, new, table)


def stepped(term: Term, grid: Grid) -> tuple[Term, Grid, Table] | None:
    """``term``, whose functions rise from 0 to the grid's end in a straight line, with its
    multipliers times the factor by which a step of the grid is 2**shift units, and the table of
    these steps alone; None where there is no such factor."""
    span, last = term.span, grid.high - grid.zero_point

    def reaches(y: float) -> int:
        """Least v of which the functions make ``y``."""
        low, high = span.lo, span.hi
        while low < high:
            middle = (low + high) // 2
            value = float(term.apply(np.array([middle * term.scale]))[0])
            low, high = (low, middle) if value >= y else (middle + 1, high)
        return low

    ends = [reaches(part * last * grid.scale) for part in (0.1, 0.9)]
    units = (ends[1] - ends[0]) / (0.8 * last)
    for factor in range(1, min(LARGEST_FACTOR, 255 // max(term.multiplier)) + 1):
        shift = round(math.log2(max(units * factor, 1)))
        if abs(2**shift / (units * factor) - 1) < 0.02 / last:
            made = _times(term, factor)
            first = round((ends[0] - 0.1 * last * units + 0.5 * units) * factor)
            entries = tuple(range(grid.zero_point, grid.high + 1))
            return made, grid, Table((1 << shift) - first, shift, entries)
    return None


def refined(term: Term, grid: Grid, limit: int) -> Term:
    """``term`` with its multipliers times the factor that lets a table of ``limit`` entries have
    the finest buckets."""
    found, most = term, 0
    for factor in range(1, min(LARGEST_FACTOR // 2, 255 // max(term.multiplier)) + 1):
        made = _times(term, factor)
        table = make_table(made.span, made.scale, made.apply, grid, limit)
        if len(table.entries) > most * 1.05:
            found, most = made, len(table.entries)
        if not table.shift or most > 0.9 * limit:
            break
    return found


def _times(term: Term, factor: int) -> Term:
    multiplier = tuple(m * factor for m in term.multiplier)
    return replace(term, multiplier=multiplier, scale=term.scale / factor)


def _slope(term: Term, grid: Grid) -> float:
    """Of functions that are about a · y as far as the grid reaches, as ReLU and GELU behind a
    factor are: a; 0 for others."""
    ends = np.array([grid.low - grid.zero_point, grid.high - grid.zero_point], np.float64)
    far = float(ends[np.abs(ends).argmax()]) * grid.scale * 0.95
    span = term.span
    y = (span.hi if far > 0 else span.lo) * term.scale
    for slope in (1.0, float(term.apply(np.array([y]))[0]) / y if y else 0.0):
        if slope > 0 and abs(float(term.apply(np.array([far / slope]))[0]) - far) < 0.02 * abs(far):
            return slope
    return 0.0
