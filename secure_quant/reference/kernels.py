"""Each op on int64 arrays with a leading batch axis, exactly as ``secure_quant.ir.ops`` says.

Matrix products run in float64 BLAS: every partial sum is an integer below 2**53 (the verifier
bounds accumulators by 2**31), so no addition rounds, in whatever order BLAS adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secure_quant.ir import Graph, ops

__all__ = ["along", "evaluate", "im2col", "requantize", "windows"]

Int = NDArray[np.int64]


def evaluate(graph: Graph, node: ops.Node, inputs: Sequence[Int]) -> Int:
    """The value of one node: int64[batch, *shape] for each input, int64[batch, *shape] out.

    Raises MissingParameters for Linear and Conv2d on a public graph.
    """
    return _KERNELS[type(node)](graph, node, list(inputs))


def windows(x: Int, kernel: ops.Pair, stride: ops.Pair, padding: ops.Pair, dilation: ops.Pair, fill: int) -> Int:
    """View [batch, C, H', W', kh, kw] of x [batch, C, H, W] padded with ``fill``."""
    (ph, pw), (dh, dw) = padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    span = ((kernel[0] - 1) * dh + 1, (kernel[1] - 1) * dw + 1)
    view = sliding_window_view(padded, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], ::dh, ::dw]


def im2col(x: NDArray[Any], node: ops.Conv2d) -> NDArray[Any]:
    """[batch, groups, H'·W', C/groups·kh·kw]: the rows a convolution multiplies with its kernels."""
    view = windows(x, node.kernel, node.stride, node.padding, node.dilation, 0)
    batch, channels, height, width = view.shape[:4]
    grouped = view.reshape(batch, node.groups, channels // node.groups, height, width, *node.kernel)
    columns = grouped.transpose(0, 1, 3, 4, 2, 5, 6)
    return columns.reshape(batch, node.groups, height * width, -1)


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


def _exact(product: NDArray[np.float64]) -> Int:
    return product.astype(np.int64)


def _linear(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    weight = graph.weight(node).astype(np.float64)
    return _exact(x.astype(np.float64) @ weight.T) + graph.bias(node)


def _conv2d(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    columns = im2col(x.astype(np.float64), node)
    weight = graph.weight(node).astype(np.float64).reshape(node.groups, -1, columns.shape[-1])
    acc = _exact(weight @ columns.swapaxes(-1, -2))  # [batch, groups, out/groups, H'·W']
    shape = (len(x), *graph.values[node.name].shape)
    made: Int = acc.reshape(shape) + graph.bias(node)[:, None, None]
    return made


def _matmul(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    a, b = (x.astype(np.float64) for x in _centred(graph, node, inputs))
    return _exact(a @ (b.swapaxes(-1, -2) if node.transpose_b else b))


def _mul(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    a, b = _centred(graph, node, inputs)
    return a * b


def _add(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    a, b = _centred(graph, node, inputs)
    return node.factors[0] * a + node.factors[1] * b


def _sum_pool(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    made: Int = windows(x, node.kernel, node.stride, node.padding, (1, 1), 0).sum((-2, -1))
    return made


def _reduce_sum(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = _centred(graph, node, inputs)
    made: Int = x.sum(-1, keepdims=True)
    return made


def _requantize(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (acc,) = _centred(graph, node, inputs)
    return requantize(node, acc)


def _max_pool(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    (x,) = inputs
    lowest = graph.values[node.inputs[0]].range.lo
    made: Int = windows(x, node.kernel, node.stride, node.padding, (1, 1), lowest).max((-2, -1))
    return made


def _reduce_max(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    made: Int = inputs[0].max(-1, keepdims=True)
    return made


def _reshape(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0].reshape(len(inputs[0]), *node.shape)


def _transpose(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0].transpose(0, *(axis + 1 for axis in node.permutation))


def _slice(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    index = [slice(None)] * inputs[0].ndim
    index[node.axis + 1] = slice(node.start, node.stop, node.step)
    return inputs[0][tuple(index)]


def _concat(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return np.concatenate(inputs, axis=node.axis + 1)


def _pass(graph: Graph, node: Any, inputs: list[Int]) -> Int:
    return inputs[0]


_KERNELS: Mapping[type[ops.Node], Callable[[Graph, Any, list[Int]], Int]] = {
    ops.Linear: _linear,
    ops.Conv2d: _conv2d,
    ops.MatMul: _matmul,
    ops.Mul: _mul,
    ops.Add: _add,
    ops.SumPool: _sum_pool,
    ops.ReduceSum: _reduce_sum,
    ops.Requantize: _requantize,
    ops.MaxPool: _max_pool,
    ops.ReduceMax: _reduce_max,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Slice: _slice,
    ops.Concat: _concat,
    ops.Output: _pass,
}
