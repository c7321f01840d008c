"""Shape and range inference, which is also the proof that no accumulator overflows.

``verify`` walks the nodes once, with one rule per op. A rule returns the op's Value or raises
InvalidGraph / OverflowRisk naming the node. Range rules are interval arithmetic; for Linear and
Conv2d they use the L1 norm of each output channel's weights where the weights are present, and
otherwise trust the declared bound (a public graph's hash binds it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import InvalidGraph, OverflowRisk
from secure_quant.ir import ops
from secure_quant.ir.values import INT8, INT16, INT32, Interval, Value

if TYPE_CHECKING:
    from secure_quant.ir.graph import Graph

__all__ = [
    "MAX_ELEMENTS",
    "MAX_NODES",
    "MAX_TABLE",
    "MAX_TOTAL",
    "MAX_WINDOWS",
    "conv_output",
    "dynamic_levels",
    "linear_bound",
    "parameter_shapes",
    "public_bound",
    "verify",
]

MAX_NODES = 10_000
MAX_ELEMENTS = 2**26
"""Per-sample elements of one value, padding included; above it a graph is refused before memory is
taken."""
MAX_TOTAL = 2**30
"""Per-sample elements of all values together."""
MAX_WINDOWS = 2**28
"""Per-sample elements of all windows of one Conv2d or pool, overlaps counted (its im2col)."""
MAX_TABLE = 4096
MAX_RANK = 6
_SCALES = (2.0**-120, 2.0**64)
"""Scales that neither divide by a subnormal nor leave float32 with the largest accumulator."""
_SCALED = Interval(-(2**46), 2**46)
_DYNAMIC = Interval(-(2**61), 2**61)


def verify(graph: Graph) -> dict[str, Value]:
    """Value of every node by name. Raises InvalidGraph, OverflowRisk."""
    _check_structure(graph)
    _check_parameters(graph)
    values: dict[str, Value] = {}
    total = 0
    for node in graph.nodes:
        value = _RULES[type(node)](graph, node, [values[name] for name in node.inputs])
        _shape(node, value.shape)
        total += value.size
        _require(node, total <= MAX_TOTAL, "elements in all", total, f"<= {MAX_TOTAL}")
        low, high = _SCALES
        _require(node, low <= value.scale <= high, "scale", value.scale, f"{low} to {high}")
        values[node.name] = value
    return values


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


def public_bound(bound: int) -> int:
    """``bound`` rounded up to 4 significant bits, so that a public graph tells little of weights;
    never past int32 unless ``bound`` is."""
    drop = max(bound.bit_length() - 4, 0)
    rounded = max(-(-bound >> drop) << drop, 1)
    return rounded if bound > INT32.hi else min(rounded, INT32.hi)


def _require(node: ops.Node, ok: bool, what: str, got: object, expected: object) -> None:
    if not ok:
        op = f"{type(node).__name__} {node.name!r}"
        raise InvalidGraph(f"{op}: {what}", got=got, expected=expected)


def _shape(node: ops.Node, shape: tuple[int, ...]) -> None:
    """Checked by rank first: the product of a hostile shape is itself large."""
    _require(node, 1 <= len(shape) <= MAX_RANK, "rank", len(shape), f"1 to {MAX_RANK}")
    _require(node, min(shape) > 0, "shape", shape, "positive")
    size = math.prod(shape)
    _require(node, size <= MAX_ELEMENTS, "elements", size, f"<= {MAX_ELEMENTS}")


def _check_fields(node: ops.Node) -> None:
    for f in fields(node):
        kind = str(f.type)
        if not ops.is_kind(getattr(node, f.name), kind):
            got = type(getattr(node, f.name)).__name__
            raise InvalidGraph(f"{type(node).__name__}.{f.name}", got=got, expected=f"a {kind}")


def _check_structure(graph: Graph) -> None:
    nodes = graph.nodes
    if not 2 <= len(nodes) <= MAX_NODES:
        raise InvalidGraph("number of nodes", got=len(nodes), expected=f"2 to {MAX_NODES}")
    seen: set[str] = set()
    for place, node in enumerate(nodes):
        if type(node) not in _RULES:
            raise InvalidGraph("op", got=type(node).__name__, expected="one of secure_quant.ir.ops")
        _check_fields(node)
        _require(node, node.name not in seen, "name", node.name, "one not yet taken")
        arity = _ARITY.get(type(node), 1)
        if arity is None:
            _require(node, len(node.inputs) >= 1, "inputs", len(node.inputs), "at least 1")
        else:
            _require(node, len(node.inputs) == arity, "inputs", len(node.inputs), arity)
        for name in node.inputs:
            _require(node, name in seen, "input", name, "the name of an earlier node")
        first, last = place == 0, place == len(nodes) - 1
        _require(node, isinstance(node, ops.Input) == first, "place", place, "Input first only")
        _require(node, isinstance(node, ops.Output) == last, "place", place, "Output last only")
        seen.add(node.name)
    used = {name for node in nodes for name in node.inputs}
    dead = [node.name for node in nodes[:-1] if node.name not in used]
    if dead:
        raise InvalidGraph("nodes that nothing reads", got=dead[:5], expected="none")


def parameter_shapes(nodes: Iterable[ops.Node]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Parameter name -> (shape, dtype name) that the nodes declare."""
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in nodes:
        if isinstance(node, ops.Linear):
            out = node.out_features
            shape: tuple[int, ...] = (out, node.in_features)
        elif isinstance(node, ops.Conv2d):
            out = node.out_channels
            shape = (out, node.in_channels // max(node.groups, 1), *node.kernel)
        else:
            continue
        expected[f"{node.name}.weight"] = (shape, "int8")
        if node.bias:
            expected[f"{node.name}.bias"] = ((out,), "int32")
    return expected


def _check_parameters(graph: Graph) -> None:
    if graph.is_public:
        return
    expected = parameter_shapes(graph.nodes)
    got = {name: (a.shape, a.dtype.name) for name, a in graph.parameters.items()}
    if got != expected:
        wrong = sorted(set(got.items()) ^ set(expected.items()))[:4]
        raise InvalidGraph("parameters", got=wrong, expected="exactly those the nodes declare")


def _accumulator(node: Any, shape: tuple[int, ...], proven: int | None) -> Value:
    bound = node.bound
    if not 0 < bound <= INT32.hi or (proven is not None and proven > bound):
        raise OverflowRisk(
            f"{type(node).__name__} {node.name!r}: bound",
            got=f"{bound} declared, {proven} proven",
            expected=f"proven <= declared <= {INT32.hi}",
        )
    return Value(shape, Interval(-bound, bound), node.scale, 0, accumulator=True)


def _activation(node: ops.Node, value: Value) -> None:
    what = "an activation: Requantize it first"
    _require(node, not value.accumulator, "input", "an accumulator", what)


def _input(graph: Graph, node: Any, xs: list[Value]) -> Value:
    _require(node, INT8.lo <= node.zero_point <= INT8.hi, "zero point", node.zero_point, "int8")
    return Value(node.shape, INT8, node.scale, node.zero_point, accumulator=False)


def _proven(graph: Graph, node: Any, x: Value) -> int | None:
    weight = graph.parameters.get(f"{node.name}.weight")
    if weight is None:
        return None
    bias = graph.parameters.get(f"{node.name}.bias")
    zeros = np.zeros(len(weight), np.int64)
    return linear_bound(weight, zeros if bias is None else bias, x.centred)


def _linear(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    _require(node, x.shape[-1] == node.in_features, "features", x.shape[-1], node.in_features)
    _require(node, node.out_features > 0, "out_features", node.out_features, "> 0")
    shape = (*x.shape[:-1], node.out_features)
    return _accumulator(node, shape, _proven(graph, node, x))


def _window(node: ops.Conv2d | ops.MaxPool | ops.SumPool, x: Value) -> ops.Pair:
    """(H', W') of a window op, once all that it touches is known to be of bounded size."""
    _require(node, len(x.shape) == 3, "input shape", x.shape, "[C, H, W]")
    _require(node, min(node.kernel) > 0, "kernel", node.kernel, "positive")
    _require(node, min(node.stride) > 0, "stride", node.stride, "positive")
    _require(node, min(node.padding) >= 0, "padding", node.padding, ">= 0")
    channels, height, width = x.shape
    padded = channels * (height + 2 * node.padding[0]) * (width + 2 * node.padding[1])
    _require(node, padded <= MAX_ELEMENTS, "elements with padding", padded, f"<= {MAX_ELEMENTS}")
    size = conv_output(x.shape, node)
    _require(node, min(size) > 0, "output size", size, "positive: the window must fit")
    unrolled = channels * math.prod(size) * math.prod(node.kernel)
    _require(node, unrolled <= MAX_WINDOWS, "elements of windows", unrolled, f"<= {MAX_WINDOWS}")
    return size


def _conv2d(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    _require(node, min(node.dilation) > 0, "dilation", node.dilation, "positive")
    size = _window(node, x)
    _require(node, x.shape[0] == node.in_channels, "channels", x.shape[0], node.in_channels)
    _require(node, node.groups > 0, "groups", node.groups, "> 0")
    _require(node, node.out_channels > 0, "out_channels", node.out_channels, "> 0")
    divides = node.in_channels % node.groups == 0 == node.out_channels % node.groups
    _require(node, divides, "groups", node.groups, "a divisor of both channel counts")
    return _accumulator(node, (node.out_channels, *size), _proven(graph, node, x))


def _matmul(graph: Graph, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    _activation(node, a)
    _activation(node, b)
    _require(node, len(a.shape) >= 2 and len(a.shape) == len(b.shape), "ranks", b.shape, a.shape)
    _require(node, a.shape[:-2] == b.shape[:-2], "leading axes", b.shape[:-2], a.shape[:-2])
    inner, out = (b.shape[-1], b.shape[-2]) if node.transpose_b else (b.shape[-2], b.shape[-1])
    _require(node, a.shape[-1] == inner, "inner axis", inner, a.shape[-1])
    proven = (a.centred * b.centred).magnitude * inner
    return _accumulator(node, (*a.shape[:-1], out), proven)


def _broadcasts(node: ops.Node, a: Value, b: Value) -> None:
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        shape = ()
    ok = shape == a.shape and len(a.shape) == len(b.shape)
    _require(node, ok, "second shape", b.shape, f"one that broadcasts to {a.shape}")


def _mul(graph: Graph, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    _activation(node, a)
    _activation(node, b)
    _broadcasts(node, a, b)
    return _accumulator(node, a.shape, (a.centred * b.centred).magnitude)


def _add(graph: Graph, node: Any, xs: list[Value]) -> Value:
    a, b = xs
    for name, x in zip(node.inputs, xs, strict=True):
        if not isinstance(graph.by_name[name], ops.ReduceSum | ops.SumPool):
            _activation(node, x)
    _broadcasts(node, a, b)
    f, g = node.factors
    return _accumulator(node, a.shape, (a.centred.times(f) + b.centred.times(g)).magnitude)


def _sum_pool(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    size = _window(node, x)
    proven = x.centred.magnitude * node.kernel[0] * node.kernel[1]
    return _accumulator(node, (x.shape[0], *size), proven)


def _reduce_sum(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    return _accumulator(node, (*x.shape[:-1], 1), x.centred.magnitude * x.shape[-1])


def _channels(node: Any, x: Value) -> None:
    rank = len(x.shape)
    _require(node, -rank <= node.axis < rank, "axis", node.axis, f"an axis of {x.shape}")
    _require(
        node, len(node.multiplier) in (1, x.shape[node.axis]), "multipliers",
        len(node.multiplier), f"1 or {x.shape[node.axis]}",
    )  # fmt: skip
    ok = all(1 <= m <= 255 for m in node.multiplier)
    _require(node, ok, "multiplier", "one outside", "1 to 255")


def _requantize(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _channels(node, x)
    _require(node, 2 <= len(node.table) <= MAX_TABLE, "table", len(node.table), f"2 to {MAX_TABLE}")
    _require(node, 0 <= node.shift <= 31, "shift", node.shift, "0 to 31")
    made = Interval(min(node.table), max(node.table))
    _require(node, made.within(INT16), "table entries", made, "int16")
    kind = INT8 if made.within(INT8) else INT16
    _require(node, kind.lo <= node.zero_point <= kind.hi, "zero point", node.zero_point, kind)
    scaled = x.centred * Interval(min(node.multiplier), max(node.multiplier))
    shifted = scaled + Interval(node.offset, node.offset)
    if not shifted.within(_SCALED):
        what = f"Requantize {node.name!r}: acc·multiplier + offset"
        raise OverflowRisk(what, got=shifted, expected=_SCALED)
    return Value(x.shape, made, node.scale, node.zero_point, accumulator=False)


def _dynamic_scale(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    made = Interval(1, max(x.centred.magnitude, 1))
    return Value((1,), made, x.scale, 0, accumulator=True)


def _dynamic_quantize(graph: Graph, node: Any, xs: list[Value]) -> Value:
    x, _ = xs
    scale = graph.by_name[node.inputs[1]]
    own = isinstance(scale, ops.DynamicScale) and scale.inputs == node.inputs[:1]
    _require(node, own, "second input", node.inputs[1], "the DynamicScale of the first")
    _require(node, node.zero_point in (0, INT8.lo), "zero point", node.zero_point, "0 or -128")
    whole = node.zero_point == 0
    _require(node, whole or x.centred.lo >= 0, "input", x.centred, "x̂ >= 0 for zero point -128")
    levels = dynamic_levels(node)
    made = Interval(-levels if whole and x.centred.lo < 0 else node.zero_point,
                    levels + node.zero_point)  # fmt: skip
    return Value(x.shape, made, x.scale / levels, node.zero_point, accumulator=False)


def dynamic_levels(node: ops.DynamicQuantize) -> int:
    """L: the integer that the largest |x̂| of a sample becomes."""
    return INT8.hi - node.zero_point


def _rescale(graph: Graph, node: Any, xs: list[Value]) -> Value:
    _require(node, len(xs) in (1, 2), "inputs", len(xs), "1 or 2")
    x, factor = xs[0], Interval(1, 1)
    if len(xs) == 2:
        kind = graph.by_name[node.inputs[1]]
        _require(node, isinstance(kind, ops.DynamicScale), "second input", node.inputs[1],
                 "a DynamicScale")  # fmt: skip
        factor = xs[1].range
    _channels(node, x)
    channels = x.shape[node.axis]
    _require(node, len(node.bias) in (0, channels), "bias", len(node.bias), f"0 or {channels}")
    _require(node, 0 <= node.shift <= 61, "shift", node.shift, "0 to 61")
    made = Interval(node.low, node.high)
    _require(node, -INT32.hi <= node.low < node.high <= INT32.hi, "low and high", made, "int32")
    scaled = x.centred * Interval(min(node.multiplier), max(node.multiplier)) * factor
    if not scaled.within(_DYNAMIC):
        raise OverflowRisk(
            f"Rescale {node.name!r}: acc·multiplier·s", got=scaled, expected=_DYNAMIC
        )
    return Value(x.shape, made, node.scale, 0, accumulator=True)


def _max_pool(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    size = _window(node, x)
    covered = all(2 * p <= k for p, k in zip(node.padding, node.kernel, strict=True))
    _require(node, covered, "padding", node.padding, "at most half of the kernel")
    return Value((x.shape[0], *size), x.range, x.scale, x.zero_point, accumulator=False)


def _reduce_max(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    return Value((*x.shape[:-1], 1), x.range, x.scale, x.zero_point, accumulator=False)


def _same(x: Value, shape: tuple[int, ...]) -> Value:
    return Value(shape, x.range, x.scale, x.zero_point, x.accumulator)


def _reshape(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    _shape(node, node.shape)
    _require(node, math.prod(node.shape) == x.size, "shape", node.shape, f"{x.size} elements")
    return _same(x, node.shape)


def _transpose(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    order = node.permutation
    _require(node, sorted(order) == list(range(len(x.shape))), "permutation", order, x.shape)
    return _same(x, tuple(x.shape[i] for i in order))


def _slice(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _activation(node, x)
    _require(node, 0 <= node.axis < len(x.shape), "axis", node.axis, f"an axis of {x.shape}")
    inside = 0 <= node.start < node.stop <= x.shape[node.axis] and node.step > 0
    _require(node, inside, "slice", (node.start, node.stop, node.step), f"inside {x.shape}")
    shape = list(x.shape)
    shape[node.axis] = -(-(node.stop - node.start) // node.step)
    return _same(x, tuple(shape))


def _concat(graph: Graph, node: Any, xs: list[Value]) -> Value:
    first = xs[0]
    inside = 0 <= node.axis < len(first.shape)
    _require(node, inside, "axis", node.axis, f"an axis of {first.shape}")
    made = first.range
    for x in xs:
        _activation(node, x)
        same = (x.scale, x.zero_point) == (first.scale, first.zero_point)
        _require(node, same, "scale and zero point", (x.scale, x.zero_point), "equal")
        rest = [(*v.shape[: node.axis], *v.shape[node.axis + 1 :]) for v in (x, first)]
        _require(node, rest[0] == rest[1], "shape", x.shape, f"{first.shape} but for the axis")
        made = made.hull(x.range)
    shape = list(first.shape)
    shape[node.axis] = sum(x.shape[node.axis] for x in xs)
    return Value(tuple(shape), made, first.scale, first.zero_point, accumulator=False)


def _output(graph: Graph, node: Any, xs: list[Value]) -> Value:
    (x,) = xs
    _channels(node, x)
    if not x.accumulator:
        _require(node, node.multiplier == (1,), "multiplier", "several", "1 for an activation")
    return Value(x.shape, x.range, node.scale, x.zero_point, x.accumulator)


_ARITY: Mapping[type[ops.Node], int | None] = {
    ops.Input: 0, ops.MatMul: 2, ops.Mul: 2, ops.Add: 2, ops.Concat: None,
    ops.DynamicQuantize: 2, ops.Rescale: None,
}  # fmt: skip

_RULES: Mapping[type[ops.Node], Callable[[Any, Any, list[Value]], Value]] = {
    ops.Input: _input,
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
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Slice: _slice,
    ops.Concat: _concat,
    ops.Output: _output,
}
