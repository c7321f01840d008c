"""One rule per op: shape and range of its output from those of its inputs.

A rule returns the op's Value or raises InvalidGraph / OverflowRisk naming the node. Range rules are
interval arithmetic; for Linear and Conv2d they use the L1 norm of each output channel's weights
where the weights are present, and otherwise trust the declared bound (a public graph's hash binds
it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from secure_quant.errors import OverflowRisk
from secure_quant.ir import ops
from secure_quant.ir.bounds import (
    dynamic_levels,
    linear_bound,
    sum_bound,
)
from secure_quant.ir.checks import (
    MAX_SHIFT,
    MAX_TABLE,
    accumulator,
    activation,
    broadcasts,
    check_shape,
    exact,
    per_channel,
    require,
    window,
)
from secure_quant.ir.given import Given
from secure_quant.ir.ports import id_digits
from secure_quant.ir.quotients import quotient_bound
from secure_quant.ir.sums import LAYERS
from secure_quant.ir.values import INT8, INT16, INT32, WIDE, Interval, Value

__all__ = ["ARITY", "DTYPES", "RULES", "Given"]

DTYPES = ("float32", "int64", "bool")
"""Of the arrays that a caller passes for ports."""
MAX_ANSWER = 2**53
"""Integers that a client makes real in float64."""
MAX_ROWS = 2**24
MAX_TABLES = 2**30
"""Elements of one public table of rows."""


_DYNAMIC = Interval(-(2**61), 2**61)


def _input(given: Given, node: Any, xs: list[Value]) -> Value:
    require(node, INT8.lo <= node.zero_point <= INT8.hi, "zero point", node.zero_point, "int8")
    return Value(node.shape, INT8, node.scale, node.zero_point, accumulator=False)


def _input_port(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    packed = isinstance(given.by_name[node.inputs[0]], ops.Input) and len(x.shape) == 1
    require(node, packed, "input", node.inputs[0], "an Input of one axis")
    plain = (x.scale, x.zero_point) == (1.0, 0)
    require(node, plain, "scale and zero point of the Input", (x.scale, x.zero_point), (1.0, 0))
    require(node, node.dtype in DTYPES, "dtype", node.dtype, " or ".join(DTYPES))
    check_shape(node, node.shape)
    stop = node.start + math.prod(node.shape)
    inside = 0 <= node.start < stop <= x.size
    require(node, inside, "elements", (node.start, stop), f"inside the {x.size} of the Input")
    require(node, INT8.lo <= node.zero_point <= INT8.hi, "zero point", node.zero_point, "int8")
    return Value(node.shape, INT8, node.scale, node.zero_point, accumulator=False)


def _lookup_port(given: Given, node: Any, xs: list[Value]) -> Value:
    made = _input_port(given, node, xs)
    require(node, node.dtype == "int64", "dtype", node.dtype, "int64, of row numbers")
    require(node, 1 <= node.rows <= MAX_ROWS, "rows", node.rows, f"1 to {MAX_ROWS}")
    size = node.rows * node.shape[-1]
    require(node, size <= MAX_TABLES, "elements of the table", size, f"<= {MAX_TABLES}")
    hexadecimal = len(node.digest) == 64 and not set(node.digest) - set("0123456789abcdef")
    require(node, hexadecimal, "digest", "another text", "64 hex digits")
    return made


def _id_port(given: Given, node: Any, xs: list[Value]) -> Value:
    made = _input_port(given, node, xs)
    require(node, node.dtype == "int64", "dtype", node.dtype, "int64, of row numbers")
    require(node, 1 <= node.rows <= MAX_ROWS, "rows", node.rows, f"1 to {MAX_ROWS}")
    digits = id_digits(node.rows)
    fits = len(node.shape) > 1 and node.shape[-1] == digits
    require(node, fits, "shape", node.shape, f"[..., {digits}]: a number, or several, in digits")
    plain = (node.scale, node.zero_point) == (1.0, 0)
    require(node, plain, "scale and zero point", (node.scale, node.zero_point), (1.0, 0))
    return made


def _embedding(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    port = given.by_name[node.inputs[0]]
    ids = isinstance(port, ops.IdPort) and port.rows == node.rows
    require(node, ids, "input", node.inputs[0], f"an IdPort of {node.rows} rows")
    require(node, node.width > 0, "width", node.width, "> 0")
    size = node.rows * node.width
    require(node, size <= MAX_TABLES, "elements of the table", size, f"<= {MAX_TABLES}")
    require(node, INT8.lo <= node.zero_point <= INT8.hi, "zero point", node.zero_point, "int8")
    shape = (*x.shape[:-1], node.width)
    return Value(shape, INT8, node.scale, node.zero_point, accumulator=False)


def _proven(given: Given, node: Any, x: Value) -> int | None:
    weight = given.parameters.get(f"{node.name}.weight")
    if weight is None:
        return None
    bias = given.parameters.get(f"{node.name}.bias")
    zeros = np.zeros(len(weight), np.int64)
    return linear_bound(weight, zeros if bias is None else bias, x.centred)


def _linear(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    require(node, x.shape[-1] == node.in_features, "features", x.shape[-1], node.in_features)
    require(node, node.out_features > 0, "out_features", node.out_features, "> 0")
    shape = (*x.shape[:-1], node.out_features)
    return accumulator(node, shape, _proven(given, node, x))


def _conv2d(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    require(node, min(node.dilation) > 0, "dilation", node.dilation, "positive")
    size = window(node, x)
    require(node, x.shape[0] == node.in_channels, "channels", x.shape[0], node.in_channels)
    require(node, node.groups > 0, "groups", node.groups, "> 0")
    require(node, node.out_channels > 0, "out_channels", node.out_channels, "> 0")
    divides = node.in_channels % node.groups == 0 == node.out_channels % node.groups
    require(node, divides, "groups", node.groups, "a divisor of both channel counts")
    return accumulator(node, (node.out_channels, *size), _proven(given, node, x))


def _matmul(given: Given, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    _exact(given, node, xs)
    require(node, len(a.shape) >= 2 and len(a.shape) == len(b.shape), "ranks", b.shape, a.shape)
    require(node, a.shape[:-2] == b.shape[:-2], "leading axes", b.shape[:-2], a.shape[:-2])
    inner, out = (b.shape[-1], b.shape[-2]) if node.transpose_b else (b.shape[-2], b.shape[-1])
    require(node, a.shape[-1] == inner, "inner axis", inner, a.shape[-1])
    proven = (a.centred * b.centred).magnitude * inner
    if node.transpose_b and node.inputs[0] == node.inputs[1]:
        proven = min(proven, given.sum_of_squares(node.inputs[0]) or proven)
    return accumulator(node, (*a.shape[:-1], out), proven)


def _exact(given: Given, node: Any, xs: list[Value]) -> None:
    for name, x in zip(node.inputs, xs, strict=True):
        exact(node, given.by_name, given.layer_sums, name, x)


def _mul(given: Given, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    _exact(given, node, xs)
    broadcasts(node, a, b)
    proven = (a.centred * b.centred).magnitude
    quotient = quotient_bound(given.by_name, lambda n: given.values[n].centred, *node.inputs)
    return accumulator(node, a.shape, proven if quotient is None else min(proven, quotient))


def _add(given: Given, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    for name, x in zip(node.inputs, xs, strict=True):
        source = given.by_name[name]
        if not isinstance(source, LAYERS) and name not in given.layer_sums:
            exact(node, given.by_name, (), name, x)
    broadcasts(node, a, b)
    rank = len(a.shape)
    require(node, -rank <= node.axis < rank, "axis", node.axis, f"an axis of {a.shape}")
    channels = a.shape[node.axis]
    require(node, len(node.factors) in (2, 2 * channels), "factors", len(node.factors),
            f"2, or {2 * channels}: two for each channel")  # fmt: skip
    return accumulator(node, a.shape, sum_bound(node.factors, a.centred, b.centred))


def _sum_pool(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    size = window(node, x)
    proven = x.centred.magnitude * node.kernel[0] * node.kernel[1]
    return accumulator(node, (x.shape[0], *size), proven)


def _reduce_sum(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _exact(given, node, xs)
    sizes, whole = given.sizes(node.inputs[0]), x.centred.magnitude * x.shape[-1]
    return accumulator(node, (*x.shape[:-1], 1), sum(sizes) if sizes else whole)


def _requantize(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    per_channel(node, x)
    require(node, 2 <= len(node.table) <= MAX_TABLE, "table", len(node.table), f"2 to {MAX_TABLE}")
    require(node, 0 <= node.shift <= MAX_SHIFT, "shift", node.shift, f"0 to {MAX_SHIFT}")
    made = Interval(min(node.table), max(node.table))
    require(node, made.within(INT16), "table entries", made, "int16")
    kind = INT8 if made.within(INT8) else INT16
    require(node, kind.lo <= node.zero_point <= kind.hi, "zero point", node.zero_point, kind)
    scaled = x.centred * Interval(min(node.multiplier), max(node.multiplier))
    shifted = scaled + Interval(node.offset, node.offset)
    if not shifted.within(WIDE):
        what = f"Requantize {node.name!r}: acc·multiplier + offset"
        raise OverflowRisk(what, got=shifted, expected=WIDE)
    return Value(x.shape, made, node.scale, node.zero_point, accumulator=False)


def _dynamic_scale(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    made = Interval(1, max(x.centred.magnitude, 1))
    return Value((1,), made, x.scale, 0, accumulator=True)


def _dynamic_quantize(given: Given, node: Any, xs: list[Value]) -> Value:
    x, _ = xs
    scale = given.by_name[node.inputs[1]]
    own = isinstance(scale, ops.DynamicScale) and scale.inputs == node.inputs[:1]
    require(node, own, "second input", node.inputs[1], "the DynamicScale of the first")
    require(node, node.zero_point in (0, INT8.lo), "zero point", node.zero_point, "0 or -128")
    whole = node.zero_point == 0
    require(node, whole or x.centred.lo >= 0, "input", x.centred, "x̂ >= 0 for zero point -128")
    levels = dynamic_levels(node)
    made = Interval(-levels if whole and x.centred.lo < 0 else node.zero_point,
                    levels + node.zero_point)  # fmt: skip
    return Value(x.shape, made, x.scale / levels, node.zero_point, accumulator=False)


def _rescale(given: Given, node: Any, xs: list[Value]) -> Value:
    require(node, len(xs) in (1, 2), "inputs", len(xs), "1 or 2")
    x, factor = xs[0], Interval(1, 1)
    if len(xs) == 2:
        kind = given.by_name[node.inputs[1]]
        require(node, isinstance(kind, ops.DynamicScale), "second input", node.inputs[1],
                 "a DynamicScale")  # fmt: skip
        factor = xs[1].range
    per_channel(node, x)
    channels = x.shape[node.axis]
    require(node, len(node.bias) in (0, channels), "bias", len(node.bias), f"0 or {channels}")
    require(node, 0 <= node.shift <= 61, "shift", node.shift, "0 to 61")
    made = Interval(node.low, node.high)
    require(node, -INT32.hi <= node.low < node.high <= INT32.hi, "low and high", made, "int32")
    scaled = x.centred * Interval(min(node.multiplier), max(node.multiplier)) * factor
    if not scaled.within(_DYNAMIC):
        raise OverflowRisk(
            f"Rescale {node.name!r}: acc·multiplier·s", got=scaled, expected=_DYNAMIC
        )
    return Value(x.shape, made, node.scale, 0, accumulator=True)


def _max_pool(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    size = window(node, x)
    covered = all(2 * p <= k for p, k in zip(node.padding, node.kernel, strict=True))
    require(node, covered, "padding", node.padding, "at most half of the kernel")
    return Value((x.shape[0], *size), x.range, x.scale, x.zero_point, accumulator=False)


def _reduce_max(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    return Value((*x.shape[:-1], 1), x.range, x.scale, x.zero_point, accumulator=False)


def _top_k(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    per_channel(node, x)
    require(node, x.range.within(INT32), "input", x.range, "int32")
    size = x.shape[node.axis]
    require(node, 1 <= node.count <= size > 1, "count", node.count, f"1 to {size}, of 2 at least")
    shape = list(x.shape)
    shape[node.axis] = node.count
    return Value(tuple(shape), Interval(0, size - 1), 1.0, 0, accumulator=True)


def _same(x: Value, shape: tuple[int, ...]) -> Value:
    return Value(shape, x.range, x.scale, x.zero_point, x.accumulator)


def _reshape(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _exact(given, node, xs)
    check_shape(node, node.shape)
    require(node, math.prod(node.shape) == x.size, "shape", node.shape, f"{x.size} elements")
    return _same(x, node.shape)


def _transpose(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _exact(given, node, xs)
    order = node.permutation
    require(node, sorted(order) == list(range(len(x.shape))), "permutation", order, x.shape)
    return _same(x, tuple(x.shape[i] for i in order))


def _slice(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    require(node, 0 <= node.axis < len(x.shape), "axis", node.axis, f"an axis of {x.shape}")
    inside = 0 <= node.start < node.stop <= x.shape[node.axis] and node.step > 0
    require(node, inside, "slice", (node.start, node.stop, node.step), f"inside {x.shape}")
    shape = list(x.shape)
    shape[node.axis] = -(-(node.stop - node.start) // node.step)
    return _same(x, tuple(shape))


def _gather(given: Given, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    activation(node, x)
    require(node, 0 <= node.axis < len(x.shape), "axis", node.axis, f"an axis of {x.shape}")
    length = x.shape[node.axis]
    inside = bool(node.index) and min(node.index) >= 0 and max(node.index) < length
    require(node, inside, "index", f"{len(node.index)} places", f"some, from 0 to {length - 1}")
    shape = (*x.shape[: node.axis], len(node.index), *x.shape[node.axis + 1 :])
    check_shape(node, shape)
    return _same(x, shape)


def _concat(given: Given, node: Any, xs: list[Value]) -> Value:
    first = xs[0]
    inside = 0 <= node.axis < len(first.shape)
    require(node, inside, "axis", node.axis, f"an axis of {first.shape}")
    made = first.range
    for x in xs:
        activation(node, x)
        same = (x.scale, x.zero_point) == (first.scale, first.zero_point)
        require(node, same, "scale and zero point", (x.scale, x.zero_point), "equal")
        rest = [(*v.shape[: node.axis], *v.shape[node.axis + 1 :]) for v in (x, first)]
        require(node, rest[0] == rest[1], "shape", x.shape, f"{first.shape} but for the axis")
        made = made.hull(x.range)
    shape = list(first.shape)
    shape[node.axis] = sum(x.shape[node.axis] for x in xs)
    return Value(tuple(shape), made, first.scale, first.zero_point, accumulator=False)


def _output(given: Given, node: Any, xs: list[Value]) -> Value:
    for name in node.inputs:
        require(node, name not in given.layer_sums, "input", f"{name}, a sum with a layer's "
                "accumulator", "a value, or a sum of values: Requantize it first")  # fmt: skip
    if isinstance(given.by_name[node.inputs[0]], ops.OutputPort):
        plain = (node.multiplier, node.axis, node.scale) == ((1,), -1, 1.0)
        require(node, plain, "multiplier and scale", node.scale, "1, over ports")
        made = xs[0].range
        for x in xs[1:]:
            made = made.hull(x.range)
        return Value((sum(x.size for x in xs),), made, 1.0, 0, accumulator=True)
    require(node, len(xs) == 1, "inputs", len(xs), "1, or ports alone")
    (x,) = xs
    per_channel(node, x)
    answer = x.range.magnitude * max(node.multiplier)
    require(node, answer <= MAX_ANSWER, "largest input times multiplier", answer, "<= 2^53")
    if not x.accumulator:
        require(node, node.multiplier == (1,), "multiplier", "several", "1 for an activation")
    return Value(x.shape, x.range, node.scale, x.zero_point, x.accumulator)


ARITY: Mapping[type[ops.Node], int | None] = {
    ops.Input: 0, ops.MatMul: 2, ops.Mul: 2, ops.Add: 2, ops.Concat: None,
    ops.DynamicQuantize: 2, ops.Rescale: None, ops.Output: None,
}  # fmt: skip

RULES: Mapping[type[ops.Node], Callable[[Any, Any, list[Value]], Value]] = {
    ops.Input: _input,
    ops.InputPort: _input_port,
    ops.LookupPort: _lookup_port,
    ops.IdPort: _id_port,
    ops.Embedding: _embedding,
    ops.Linear: _linear,
    ops.Conv2d: _conv2d,
    ops.MatMul: _matmul,
    ops.Mul: _mul,
    ops.Add: _add,
    ops.SumPool: _sum_pool,
    ops.ReduceSum: _reduce_sum,
    ops.Requantize: _requantize,
    ops.DynamicScale: _dynamic_scale,
    ops.DynamicQuantize: _dynamic_quantize,
    ops.Rescale: _rescale,
    ops.MaxPool: _max_pool,
    ops.ReduceMax: _reduce_max,
    ops.TopK: _top_k,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Slice: _slice,
    ops.Gather: _gather,
    ops.Concat: _concat,
    ops.OutputPort: _output,
    ops.Output: _output,
}
