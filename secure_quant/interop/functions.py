"""Which function a table holds: found by computing the table of each candidate anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.ir.values import INT8, INT16

__all__ = ["Call", "named_function"]

Real = NDArray[np.float64]


class Call(NamedTuple):
    """An ONNX operator on the value so far: its further inputs, numbers all, and its attributes."""

    kind: str
    constants: tuple[float, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012  read only


class _Candidate(NamedTuple):
    function: Callable[[Real], Real]
    calls: tuple[Call, ...]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Real) -> Real:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


_SIXTH = {"alpha": 1 / 6, "beta": 0.5}
_NAMED = (
    _Candidate(_sigmoid, (Call("Sigmoid"),)),
    _Candidate(np.tanh, (Call("Tanh"),)),
    _Candidate(lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2, (Call("Gelu"),)),
    _Candidate(
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        (Call("Gelu", (), {"approximate": "tanh"}),),
    ),
    _Candidate(lambda x: x * np.clip(x / 6 + 0.5, 0, 1), (Call("HardSwish"),)),
    _Candidate(lambda x: np.clip(x / 6 + 0.5, 0, 1), (Call("HardSigmoid", (), _SIXTH),)),
    _Candidate(lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), (Call("Elu"),)),
    _Candidate(lambda x: np.logaddexp(0, x), (Call("Softplus"),)),
    _Candidate(lambda x: np.exp(np.minimum(x, 700)), (Call("Exp"),)),
    _Candidate(np.abs, (Call("Abs"),)),
)
"""A runtime has kernels for these, on integers or not."""
_OTHERWISE = 0.01
"""Share of the entries that may be one step off: a float at the edge of two steps."""


def named_function(node: ops.Requantize, unit: float) -> tuple[Call, ...] | None:
    """The operators that a table stands for, of values of which one unit of
    ``acc · multiplier`` is worth ``unit``: a factor, a clamp, one of a dozen functions, or None."""
    table = np.array(node.table, np.int64)
    middle = np.arange(len(table)) * 2.0**node.shift + (2.0**node.shift - 1) / 2 - node.offset
    x: Real = np.asarray(middle * unit, np.float64)
    low, high = int(table.min()), int(table.max())
    for candidate in _candidates(node, table, x):
        y = candidate.function(x) / node.scale
        made = np.clip(np.rint(np.clip(y, -1e9, 1e9)) + node.zero_point, low, high)
        off = np.abs(made - table)
        if off.max() <= 1 and off.sum() <= max(2, _OTHERWISE * len(table)):
            return (*candidate.calls, *_clamps(node, low, high))
    return None


def _candidates(node: ops.Requantize, table: NDArray[np.int64], x: Real) -> Iterator[_Candidate]:
    yield _Candidate(lambda v: v, ())
    inside = np.flatnonzero((table > table.min()) & (table < table.max()))
    slope = _slope(node, table[inside], x[inside])
    if slope is not None:
        yield _Candidate(lambda v: v * slope, (Call("Mul", (slope,)),))
    below = inside[x[inside] < 0]
    leak = _slope(node, table[below], x[below])
    if leak is not None and 0 < leak < 1:
        bent = Call("LeakyRelu", (), {"alpha": leak})
        yield _Candidate(lambda v: np.where(v < 0, v * leak, v), (bent,))
    yield from _NAMED


def _slope(node: ops.Requantize, entries: NDArray[np.int64], x: Real) -> float | None:
    """Of the line through 0 that meets every entry, if there is one."""
    if len(x) < 2 or not x.all():
        return None
    steps = entries - node.zero_point
    ends = np.stack([steps - 0.5, steps + 0.5]) * node.scale / x
    least, most = float(ends.min(0).max()), float(ends.max(0).min())
    return (least + most) / 2 if least <= most else None


def _clamps(node: ops.Requantize, low: int, high: int) -> tuple[Call, ...]:
    """What keeps values within the entries where the grid itself does not."""
    grid = INT8 if INT8.lo <= low and high <= INT8.hi else INT16
    if (low, high) == (grid.lo, grid.hi):
        return ()
    if low == node.zero_point and high == grid.hi:
        return (Call("Relu"),)
    ends = tuple((end - node.zero_point) * node.scale for end in (low, high))
    return (Call("Clip", ends),)
