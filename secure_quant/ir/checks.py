"""What rules of several ops require, and the limits on sizes: all raise InvalidGraph or
OverflowRisk and name the node."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from secure_quant.errors import InvalidGraph, OverflowRisk
from secure_quant.ir import ops
from secure_quant.ir.bounds import conv_output
from secure_quant.ir.values import INT32, WIDE, Interval, Value

__all__ = [
    "MAX_ELEMENTS",
    "MAX_SHIFT",
    "MAX_TABLE",
    "MAX_WINDOWS",
    "accumulator",
    "activation",
    "broadcasts",
    "check_shape",
    "exact",
    "per_channel",
    "require",
    "window",
]

MAX_ELEMENTS = 2**26
"""Per-sample elements of one value, padding included; above it a graph is refused before memory is
taken."""
MAX_WINDOWS = 2**28
"""Per-sample elements of all windows of one Conv2d or pool, overlaps counted (its im2col)."""
MAX_TABLE = 4096
MAX_SHIFT = 59
_EXACT = (ops.Add, ops.ReduceSum, ops.SumPool, ops.MatMul, ops.Mul)
_MOVES = (ops.Reshape, ops.Transpose)
MAX_RANK = 6


def require(node: ops.Node, ok: bool, what: str, got: object, expected: object) -> None:
    """Raises InvalidGraph unless ``ok``."""
    if not ok:
        op = f"{type(node).__name__} {node.name!r}"
        raise InvalidGraph(f"{op}: {what}", got=got, expected=expected)


def check_shape(node: ops.Node, shape: tuple[int, ...]) -> None:
    """Checked by rank first: the product of a hostile shape is itself large."""
    require(node, 1 <= len(shape) <= MAX_RANK, "rank", len(shape), f"1 to {MAX_RANK}")
    require(node, min(shape) > 0, "shape", shape, "positive")
    size = math.prod(shape)
    require(node, size <= MAX_ELEMENTS, "elements", size, f"<= {MAX_ELEMENTS}")


def activation(node: ops.Node, value: Value) -> None:
    """The input is no accumulator."""
    what = "an activation: Requantize it first"
    require(node, not value.accumulator, "input", "an accumulator", what)


def exact(
    node: ops.Node, by_name: Mapping[str, ops.Node], sums: Collection[str], name: str, value: Value
) -> None:
    """The input is an activation, a sum or product of values, or rescaled: no accumulator of a
    layer, whose channels may have scales of their own, and none of ``sums``, which read one."""
    if not value.accumulator:
        return
    source = by_name[name]
    # A move of one read an exact one; what is rescaled has one scale.
    ok = isinstance(source, (*_EXACT, *_MOVES, ops.Rescale)) and name not in sums
    what = "an activation, or a sum or product: Requantize it first"
    require(node, ok, "input", f"an accumulator of {type(source).__name__}", what)


def broadcasts(node: ops.Node, a: Value, b: Value) -> None:
    """The second input has as many axes as the first, each of its length or 1."""
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        shape = ()
    ok = shape == a.shape and len(a.shape) == len(b.shape)
    require(node, ok, "second shape", b.shape, f"one that broadcasts to {a.shape}")


def accumulator(node: Any, shape: tuple[int, ...], proven: int | None) -> Value:
    """The Value of an op that declares a bound on |acc|; ``proven``: what the rule found, if it
    could. Raises OverflowRisk."""
    bound, most = node.bound, WIDE.hi if isinstance(node, _EXACT) else INT32.hi
    if not 0 < bound <= most or (proven is not None and proven > bound):
        raise OverflowRisk(
            f"{type(node).__name__} {node.name!r}: bound",
            got=f"{bound} declared, {proven} proven",
            expected=f"proven <= declared <= {most}",
        )
    return Value(shape, Interval(-bound, bound), node.scale, 0, accumulator=True)


def window(node: ops.Conv2d | ops.MaxPool | ops.SumPool, x: Value) -> ops.Pair:
    """(H', W') of a window op, once all that it touches is known to be of bounded size."""
    require(node, len(x.shape) == 3, "input shape", x.shape, "[C, H, W]")
    require(node, min(node.kernel) > 0, "kernel", node.kernel, "positive")
    require(node, min(node.stride) > 0, "stride", node.stride, "positive")
    require(node, min(node.padding) >= 0, "padding", node.padding, ">= 0")
    channels, height, width = x.shape
    padded = channels * (height + 2 * node.padding[0]) * (width + 2 * node.padding[1])
    require(node, padded <= MAX_ELEMENTS, "elements with padding", padded, f"<= {MAX_ELEMENTS}")
    size = conv_output(x.shape, node)
    require(node, min(size) > 0, "output size", size, "positive: the window must fit")
    unrolled = channels * math.prod(size) * math.prod(node.kernel)
    require(node, unrolled <= MAX_WINDOWS, "elements of windows", unrolled, f"<= {MAX_WINDOWS}")
    return size


def per_channel(node: Any, x: Value) -> None:
    """The axis, and one multiplier for all of it or one for each channel."""
    rank = len(x.shape)
    require(node, -rank <= node.axis < rank, "axis", node.axis, f"an axis of {x.shape}")
    require(
        node, len(node.multiplier) in (1, x.shape[node.axis]), "multipliers",
        len(node.multiplier), f"1 or {x.shape[node.axis]}",
    )  # fmt: skip
    ok = all(1 <= m <= 255 for m in node.multiplier)
    require(node, ok, "multiplier", "one outside", "1 to 255")
