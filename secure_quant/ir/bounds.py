"""Bounds and sizes that the verifier proves, and that others compute with before a graph exists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.ir.values import INT8, INT32, WIDE, Interval

__all__ = [
    "channel_magnitudes",
    "conv_output",
    "dynamic_levels",
    "linear_bound",
    "only_rounds",
    "public_bound",
    "sum_bound",
]


def conv_output(shape: tuple[int, ...], node: ops.Conv2d | ops.MaxPool | ops.SumPool) -> ops.Pair:
    """(H, W) after a window op on [C, H, W]; not positive where the window does not fit."""
    dilation = node.dilation if isinstance(node, ops.Conv2d) else (1, 1)
    axes = zip(shape[1:], node.padding, dilation, node.kernel, node.stride, strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes)
    return height, width


def linear_bound(weight: NDArray[Any], bias: NDArray[Any], x: Interval) -> int:
    """Largest |acc| that ``weight`` [out, ...] and ``bias`` [out] can make from x̂ in ``x``.

    x̂ = 0 counts as possible (padding). The largest positive and negative parts alone lie in the
    same range less the bias, so no partial sum, in whatever order, is larger than bound + |bias|.
    """
    flat = weight.reshape(len(weight), -1)
    lo, hi = min(x.lo, 0), max(x.hi, 0)
    positive = np.maximum(flat, 0).sum(1, dtype=np.int64)
    negative = np.minimum(flat, 0).sum(1, dtype=np.int64)
    high = positive * hi + negative * lo + bias
    low = positive * lo + negative * hi + bias
    return int(max(np.abs(high).max(), np.abs(low).max()))


def only_rounds(node: ops.Rescale, x: Interval) -> bool:
    """Whether a Rescale of acc in ``x`` shifts and rounds and does nothing else: no scale chosen
    at run time, no bias, and nothing that it clips."""
    if len(node.inputs) > 1 or node.bias or not node.shift:
        return False
    ends = x.times(min(node.multiplier)).hull(x.times(max(node.multiplier)))
    half = 1 << (node.shift - 1)
    least, most = ((end + half) >> node.shift for end in (ends.lo, ends.hi))
    return node.low <= least and most <= node.high


def sum_bound(factors: tuple[int, ...], a: Interval, b: Interval) -> int:
    """Largest |f·â + g·b̂| for â in ``a``, b̂ in ``b`` and every pair of an Add's ``factors``."""
    half = len(factors) // 2
    pairs = set(zip(factors[:half], factors[half:], strict=True))
    return max((a.times(f) + b.times(g)).magnitude for f, g in pairs)


def channel_magnitudes(factors: tuple[int, ...], a: Interval, b: Interval) -> tuple[int, ...]:
    """Largest |f·â + g·b̂| of every pair of an Add's ``factors``."""
    half = len(factors) // 2
    pairs = zip(factors[:half], factors[half:], strict=True)
    return tuple((a.times(f) + b.times(g)).magnitude for f, g in pairs)


def public_bound(bound: int) -> int:
    """``bound`` rounded up to 4 significant bits, so that a public graph tells little of weights;
    never past int32, nor past WIDE, unless ``bound`` is."""
    drop = max(bound.bit_length() - 4, 0)
    rounded = max(-(-bound >> drop) << drop, 1)
    for most in (INT32.hi, WIDE.hi):
        if bound <= most:
            return min(rounded, most)
    return rounded


def dynamic_levels(node: ops.DynamicQuantize) -> int:
    """L: the integer that the largest |x̂| of a sample becomes."""
    return INT8.hi - node.zero_point
