"""A Requantize on a grid that is given, of sums whose channels have any real scale.

Multipliers are integers from 1 to 255. Where channels' scales are too far apart for one set of
them, the sum is looked up several times, each time with a multiplier for some of the channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OverflowRisk
from secure_quant.ir.tables import Grid, Table, aligned_table, make_table
from secure_quant.ir.terms import Term
from secure_quant.ir.verify import MAX_TABLE

__all__ = ["MOST_STEPS", "Part", "parts_of", "whole_channels"]

MOST_STEPS = 1.0
"""How far the multipliers may move a value, in steps of the output, anywhere in its range."""
_BUCKETS = (1, 3, 5, 7, 9, 11, 13, 15)
"""In a step of the grid. Odd, so that the edges of steps are edges of buckets."""
_ENOUGH = (MOST_STEPS / 16, MOST_STEPS / 2)
"""More buckets are not tried for less, of one scale and of several: rounded multipliers of their
own gain little from them."""
_LARGEST = 255
_SHIFT = 31

_FUNCTION_TABLE = 2040

Real = NDArray[np.float64]


_OUTPUT = 1 / 100
"""Relative: how far whole multipliers may be from given scales at an output that is not rounded."""


class Part(NamedTuple):
    """channels: those that are right in it, all if it is the only one. term: with multipliers and
    the scale of their unit."""

    channels: tuple[int, ...]
    term: Term
    table: Table


class _Fit(NamedTuple):
    multiplier: NDArray[np.int64]
    buckets: int
    shift: int


def parts_of(term: Term, grid: Grid, where: str) -> tuple[Part, ...]:
    """How to look an accumulator up on ``grid``. Each q is that of the real value, halves up, or
    of a value less than MOST_STEPS from it. Raises OverflowRisk for scales that no multiplier
    meets."""
    if term.limits is None:
        return (_of_function(whole_channels(term), grid),)
    worth = np.array(term.real) if term.real else np.array(term.multiplier) * term.scale
    rates = np.abs(worth) / grid.scale
    reach = max(grid.zero_point - grid.low, grid.high - grid.zero_point)
    if not (rates > 0).all() or rates.max() * _BUCKETS[0] > _LARGEST:
        raise OverflowRisk(
            f"scale of {where!r}", got=f"{rates.max():.3g} steps of the output a unit of the sum",
            expected=f"more than 0, at most {_LARGEST}",
        )  # fmt: skip
    order = np.argsort(-rates, kind="stable")
    made: list[Part] = []
    while len(order):
        count = _prefix(rates[order], reach)
        best = _fitted(rates[order[:count]], reach)
        if best is None:
            raise OverflowRisk(f"scale of {where!r}", got=f"{rates[order[0]]:.3g}", expected="more")
        unit = grid.scale / (best.buckets * 2.0**best.shift)
        whole = np.clip(np.rint(worth / unit), 1, _LARGEST).astype(int)
        own = replace(term, multiplier=tuple(whole.tolist()), scale=unit, real=())
        made.append(Part(tuple(sorted(order[:count].tolist())), own, _table(own, grid, best)))
        order = order[count:]
    return tuple(made)


def _of_function(term: Term, grid: Grid) -> Part:
    table = make_table(term.span, term.scale, term.apply, grid, _FUNCTION_TABLE)
    return Part(tuple(range(len(term.multiplier))), term, table)


def _prefix(rates: Real, reach: int) -> int:
    """How many of the largest fit together."""
    low, high = 1, len(rates)
    while low < high:
        middle = (low + high + 1) // 2
        if _fitted(rates[:middle], reach) is None:
            high = middle - 1
        else:
            low = middle
    return low


def _fitted(rates: Real, reach: int) -> _Fit | None:
    """Multipliers, buckets in a step, shift: the fewest buckets that are good, else the best."""
    best, least = None, MOST_STEPS
    several = len(rates) > 1
    for buckets in _BUCKETS[: 4 if several else None]:
        shift = min(math.floor(math.log2((_LARGEST + 0.49) / (rates.max() * buckets))), _SHIFT)
        if shift < 0:
            continue
        steps = buckets * 2.0**shift
        whole = np.rint(rates * steps)
        if whole.min() < 1:
            continue
        off = float((reach * np.abs(whole / steps / rates - 1)).max())
        if off < least:
            best, least = _Fit(whole.astype(np.int64), buckets, shift), off
        if best is not None and least < _ENOUGH[several]:
            break
    return best


def _table(term: Term, grid: Grid, fit: _Fit) -> Table:
    made = None
    if fit.shift:
        made = aligned_table(term.span, term.scale, term.apply, grid, fit.shift, MAX_TABLE)
    if made is None:
        made = make_table(term.span, term.scale, term.apply, grid, MAX_TABLE)
    return made


def whole_channels(term: Term) -> Term:
    """``term`` with multipliers in place of given scales, for an output, where a client applies
    them. Raises OverflowRisk where they are more than 1 % off."""
    if not term.real:
        return term
    worth = np.array(term.real)
    unit = float(worth.max()) / _LARGEST
    whole = np.rint(worth / unit)
    off = float(np.abs(whole * unit / worth - 1).max())
    if off > _OUTPUT:
        raise OverflowRisk(
            f"channels of the output {term.name!r}", expected="at most 1 %",
            got=f"scales that multipliers miss by {off:.1%}",
            hint="quantize the output too, or one scale for that weight",
        )  # fmt: skip
    return replace(term, multiplier=tuple(whole.astype(int).tolist()), scale=unit, real=())
