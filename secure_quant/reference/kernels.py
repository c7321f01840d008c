"""Each op on int64 arrays with a leading batch axis, exactly as ``secure_quant.ir.ops`` says.

Matrix products run in BLAS, exactly: every product and every sum of some of the products is an
integer that the float type holds (float32 to 2**24, float64 to 2**53), so nothing rounds in
whatever order BLAS adds. ``_exact_type`` chooses; the verifier's bounds prove it. What goes beyond
is multiplied as int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secure_quant.ir import Graph, ops
from secure_quant.ir.ports import id_bits
from secure_quant.ir.verify import dynamic_levels

__all__ = ["along", "evaluate", "im2col", "requantize", "windows"]

Int = NDArray[np.int64]


def evaluate(graph: Graph, node: ops.Node, inputs: Sequence[Int]) -> Int:
    """The value of one node: int64[batch, *shape] for each input, int64[batch, *shape] out.

    The inputs must lie in the ranges that ``graph.values`` states.
    Raises MissingParameters for Linear and Conv2d on a public graph.
    """
    return _KERNELS[type(node)](graph, node, list(inputs))


def windows(
    x: NDArray[Any],
    kernel: ops.Pair,
    stride: ops.Pair,
    padding: ops.Pair,
    dilation: ops.Pair,
    fill: int,
) -> NDArray[Any]:
    """View [batch, C, H', W', kh, kw] of x [batch, C, H, W] padded with ``fill``."""
    padded = _padded(x, padding, fill)
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(padded, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def im2col(x: NDArray[Any], node: ops.Conv2d) -> NDArray[Any]:
    """[batch, groups, H'·W', C/groups·kh·kw]: the rows that a convolution's kernels multiply."""
    view = windows(x, node.kernel, node.stride, node.padding, node.dilation, 0)
    batch, channels, height, width = view.shape[:4]
    grouped = view.reshape(batch, node.groups, channels // node.groups, height, width, *node.kernel)
    columns = grouped.transpose(0, 1, 3, 4, 2, 5, 6)
    return columns.reshape(batch, node.groups, height * width, -1)


def _padded(x: NDArray[Any], padding: ops.Pair, fill: int) -> NDArray[Any]:
    if padding == (0, 0):
        return x
    (ph, pw), (batch, channels, height, width) = padding, x.shape
    made = np.full((batch, channels, height + 2 * ph, width + 2 * pw), fill, x.dtype)
    made[:, :, ph : ph + height, pw : pw + width] = x
    return made


def _pool(x: Int, node: ops.MaxPool | ops.SumPool, fill: int, combine: np.ufunc) -> Int:
    """``combine`` over each window: along rows, then along columns, kh + kw passes in all."""
    made = _padded(x, node.padding, fill)
    for axis, kernel, stride in zip((2, 3), node.kernel, node.stride, strict=True):
        last = made.shape[axis] - kernel + 1
        taken = made
        for place in range(kernel):
            index = [slice(None)] * 4
            index[axis] = slice(place, place + last, stride)
            part = made[tuple(index)]
            taken = part.copy() if place == 0 else combine(taken, part, out=taken)
        made = taken
    return made


def requantize(node: ops.Requantize, acc: Int) -> Int:
    """``table[clip((acc · multiplier + offset) >> shift, 0, R - 1)]``, int64 in, int64 out."""
    table = _table(node.table)
    scaled = acc * along(node.multiplier, node.axis, acc.ndim) + node.offset
    made: Int = table[np.clip(scaled >> node.shift, 0, len(table) - 1)]
    return made


@lru_cache(maxsize=1024)
def _table(entries: tuple[int, ...]) -> Int:
    return np.array(entries, np.int64)


def along(multiplier: tuple[int, ...], axis: int, ndim: int) -> Int:
    """The multipliers shaped to broadcast along ``axis`` of the sample."""
    shape = [1] * ndim
    shape[axis if axis < 0 else axis + 1] = len(multiplier)
    return np.array(multiplier, np.int64).reshape(shape)


def _centred(graph: Graph, node: ops.Node, inputs: list[Int]) -> list[Int]:
    return [x - graph.values[name].zero_point for name, x in zip(node.inputs, inputs, strict=True)]


_COLUMNS = 2**22
"""Elements of unrolled windows held at a time: 16 or 32 MiB."""


def _exact_type(largest: int) -> Any:
    """The faster float type in which integers up to ``largest`` are exact."""
    return np.float32 if largest <= 2**24 else np.float64


def _parameters(graph: Graph, node: Any) -> tuple[NDArray[Any], Int, Any]:
    """Weight [out, ...] as the float type that is exact for it, bias [out], and that type.

    A sum of some of the products is at most bound + |bias| (``ir.verify.linear_bound``).
    """
    bias = graph.bias(node).astype(np.int64)
    kind = _exact_type(node.bound + int(np.abs(bias).max()))
    return graph.weight(node).astype(kind), bias, kind


def _linear(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    weight, bias, kind = _parameters(graph, node)
    rows = x.astype(kind).reshape(-1, node.in_features)
    made: Int = (rows @ weight.T).astype(np.int64) + bias
    return made.reshape(*x.shape[:-1], node.out_features)


def _conv2d(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    weight, bias, kind = _parameters(graph, node)
    weight = weight.reshape(node.groups, node.out_channels // node.groups, -1)
    height, width = graph.values[node.name].shape[1:]
    acc = np.empty((len(x), node.groups, weight.shape[1], height * width), np.int64)
    step = max(_COLUMNS // (node.in_channels * math.prod(node.kernel) * height * width), 1)
    for start in range(0, len(x), step):
        view = windows(
            x[start : start + step].astype(kind),
            node.kernel, node.stride, node.padding, node.dilation, 0,
        )  # fmt: skip
        columns = view.transpose(0, 1, 4, 5, 2, 3)  # one copy, kernel positions before pixels
        columns = columns.reshape(len(view), node.groups, weight.shape[2], height * width)
        acc[start : start + step] = weight @ columns
    return acc.reshape(len(x), node.out_channels, height, width) + bias[:, None, None]


def _matmul(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    kind = _exact_type(node.bound) if node.bound <= 2**53 else np.int64
    a, b = (x.astype(kind) for x in _centred(graph, node, inputs))
    made: Int = (a @ (b.swapaxes(-1, -2) if node.transpose_b else b)).astype(np.int64)
    return made


def _mul(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    a, b = _centred(graph, node, inputs)
    return a * b


def _add(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    a, b = _centred(graph, node, inputs)
    f, g = (along(own, node.axis, a.ndim) for own in node.parts)
    made: Int = f * a + g * b
    return made


def _sum_pool(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    return _pool(x, node, 0, np.add)


def _reduce_sum(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    made: Int = x.sum(-1, keepdims=True)
    return made


def _requantize(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (acc,) = _centred(graph, node, inputs)
    return requantize(node, acc)


def _dynamic_scale(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    made: Int = np.abs(x).reshape(len(x), -1).max(1, keepdims=True, initial=1)
    return made


def _dynamic_quantize(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    x, s = _centred(graph, node, inputs)
    s = s.reshape(-1, *[1] * (x.ndim - 1))
    made: Int = (2 * dynamic_levels(node) * x + s) // (2 * s) + node.zero_point
    return made


def _rescale(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    acc, *factor = _centred(graph, node, inputs)
    scaled = acc * along(node.multiplier, node.axis, acc.ndim)
    if factor:
        scaled = scaled * factor[0].reshape(-1, *[1] * (acc.ndim - 1))
    half = 1 << (node.shift - 1) if node.shift else 0
    made = (scaled + half) >> node.shift
    if node.bias:
        made = made + along(node.bias, node.axis, acc.ndim)
    clipped: Int = np.clip(made, node.low, node.high)
    return clipped


def _max_pool(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = inputs
    return _pool(x, node, graph.values[node.inputs[0]].range.lo, np.maximum)


def _reduce_max(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    made: Int = inputs[0].max(-1, keepdims=True)
    return made


def _top_k(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    scaled = _centred(graph, node, inputs)[0] * along(node.multiplier, node.axis, inputs[0].ndim)
    axis = node.axis + 1 if node.axis >= 0 else node.axis
    # Negated, so that a stable order has the lowest index of equal ones first.
    made: Int = np.argsort(-scaled, axis=axis, kind="stable").take(range(node.count), axis)
    return made


def _reshape(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0].reshape(len(inputs[0]), *node.shape)


def _transpose(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0].transpose(0, *(axis + 1 for axis in node.permutation))


def _slice(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    index = [slice(None)] * inputs[0].ndim
    index[node.axis + 1] = slice(node.start, node.stop, node.step)
    return inputs[0][tuple(index)]


def _gather(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    made: Int = inputs[0].take(node.index, axis=node.axis + 1)
    return made


def _concat(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return np.concatenate(inputs, axis=node.axis + 1)


def _input_port(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = inputs
    return x[:, node.start : node.start + math.prod(node.shape)].reshape(len(x), *node.shape)


def _embedding(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    digits = inputs[0] % 256
    number = np.sum(digits << 8 * np.arange(digits.shape[-1]), axis=-1)
    rows = number % (1 << id_bits(node.rows)) % node.rows
    made: Int = graph.weight(node)[rows].astype(np.int64)
    return made


def _pass(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0]


def _output(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    if not isinstance(graph.by_name[node.inputs[0]], ops.OutputPort):
        return inputs[0]
    return np.concatenate([part.reshape(len(part), -1) for part in inputs], axis=1)


_KERNELS: Mapping[type[ops.Node], Callable[[Graph, Any, list[Int]], Int]] = {
    ops.InputPort: _input_port,
    ops.LookupPort: _input_port,
    ops.IdPort: _input_port,
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
    ops.OutputPort: _pass,
    ops.Output: _output,
}
