"""The bound of a product that is divided by the sum of its weights, as behind a softmax.

For weights e >= 0, S = Σ e and a factor r that tables make of S alone, |(Σ e_i · v_i) · r| is at
most max |v| · S · |r(S)|, where both are of the same S: far less than the largest product times the
largest factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.ir.values import Interval

__all__ = ["quotient_bound"]

MOST_SUMS = 2**21
"""Values of S that are looked at."""
MOST_TABLES = 8
"""Summands of a factor."""
Whole = NDArray[np.int64]
ByName = Mapping[str, ops.Node]


def quotient_bound(
    by_name: ByName, centred: Callable[[str], Interval], product: str, factor: str
) -> int | None:
    """Largest |product · factor| for names of two values; None where this is no such quotient."""
    made = by_name[product]
    if not isinstance(made, ops.MatMul):
        return None
    weights, values = made.inputs
    low, high = centred(weights).lo, centred(weights).hi
    tables = _tables(by_name, factor)
    if low < 0 or not tables:
        return None
    sums = {table.inputs[0] for table in tables}
    total = by_name[sums.pop()]
    if sums or not isinstance(total, ops.ReduceSum) or total.inputs != (weights,):
        return None
    most = min(total.bound, centred(total.name).hi)
    if most >= MOST_SUMS or high < 0:
        return None
    s = np.arange(most + 1)
    made_of = np.abs(sum(_looked_up(table, s) for table in tables))
    return int((s * made_of).max()) * centred(values).magnitude


def _tables(by_name: ByName, name: str) -> list[ops.Requantize]:
    """Tables of one value whose sum ``name`` is; none for other values."""
    found: list[ops.Requantize] = []
    while len(found) < MOST_TABLES:
        node = by_name[name]
        if isinstance(node, ops.Requantize):
            return [*found, node] if len(node.multiplier) == 1 else []
        if not isinstance(node, ops.Add) or node.factors != (1, 1):
            return []
        name, last = node.inputs
        table = by_name[last]
        if not isinstance(table, ops.Requantize) or len(table.multiplier) != 1:
            return []
        found.append(table)
    return []


def _looked_up(node: ops.Requantize, s: Whole) -> Whole:
    """x̂ of the table's entries for sums ``s``."""
    place = (s * node.multiplier[0] + node.offset) >> node.shift
    table = np.array(node.table, np.int64) - node.zero_point
    made: Whole = table[np.clip(place, 0, len(table) - 1)]
    return made
