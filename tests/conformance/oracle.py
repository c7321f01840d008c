"""A second implementation of ``docs/spec/integer-semantics.md``, written apart from the reference.

It walks output positions one by one and looks each input element up by its coordinates; it knows
nothing of the graph's inferred values, of BLAS, strides or padding buffers. Slow, for tests alone.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor, prod

import numpy as np

from secure_quant.ir import Graph, ops


def run(graph: Graph, q: np.ndarray) -> dict[str, np.ndarray]:
    """int8[batch, ...] -> every node's integers by name, int64[batch, ...]."""
    values: dict[str, np.ndarray] = {}
    zero: dict[str, int] = {}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        hats = [values[name] - zero[name] for name in node.inputs]
        zero[node.name] = zero[node.inputs[0]] if node.inputs else 0
        match node:
            case ops.Input():
                made, zero[node.name] = q.astype(np.int64), node.zero_point
            case ops.Embedding():
                made, zero[node.name] = _rows(graph, node, inputs[0]), node.zero_point
            case ops.InputPort() | ops.LookupPort() | ops.IdPort():
                elements = range(node.start, node.start + prod(node.shape))
                made = np.stack([inputs[0][:, i] for i in elements], 1)
                made, zero[node.name] = made.reshape(-1, *node.shape), node.zero_point
            case ops.Linear():
                weight, bias = _parameters(graph, node)
                made = (hats[0][..., None, :] * weight).sum(-1) + bias
            case ops.Conv2d():
                made = _conv(graph, node, hats[0])
            case ops.MatMul():
                b = np.moveaxis(hats[1], -1, -2) if node.transpose_b else hats[1]
                made = np.einsum("...ij,...jk->...ik", hats[0], b)
            case ops.Mul():
                made = np.multiply(*hats)
            case ops.Add():
                made = _add(node, *hats)
            case ops.SumPool():
                made = _pool(node, hats[0], lambda cells: np.sum(cells, axis=0))
            case ops.ReduceSum():
                made = np.add.reduce(hats[0], axis=-1)[..., None]
            case ops.Requantize():
                made, zero[node.name] = _requantize(node, hats[0]), node.zero_point
            case ops.DynamicScale():
                made = np.array([[max(1, *map(abs, x.ravel().tolist()))] for x in hats[0]])
            case ops.DynamicQuantize():
                made, zero[node.name] = _run_time(node, *hats), node.zero_point
            case ops.Rescale():
                made = _rescale(node, *hats)
            case ops.MaxPool():
                made = _pool(node, inputs[0], lambda cells: np.max(cells, axis=0))
            case ops.ReduceMax():
                made = np.maximum.reduce(inputs[0], axis=-1)[..., None]
            case ops.TopK():
                made = _largest(node, hats[0])
            case ops.Reshape():
                made = np.array([sample.ravel() for sample in inputs[0]]).reshape(-1, *node.shape)
            case ops.Transpose():
                made = np.array([np.transpose(s, node.permutation) for s in inputs[0]])
            case ops.Slice():
                kept = range(node.start, node.stop, node.step)
                made = np.stack([inputs[0].take(i, node.axis + 1) for i in kept], node.axis + 1)
            case ops.Gather():
                lines = np.moveaxis(inputs[0], node.axis + 1, 0)
                made = np.moveaxis(np.array([lines[i] for i in node.index]), 0, node.axis + 1)
            case ops.Concat():
                parts = [part for x in inputs for part in np.moveaxis(x, node.axis + 1, 0)]
                made = np.stack(parts, node.axis + 1)
            case ops.Output() if isinstance(graph.by_name[node.inputs[0]], ops.OutputPort):
                made = np.array([[v for x in inputs for v in x[i].flat] for i in range(len(q))])
            case ops.Output() | ops.OutputPort():
                made = inputs[0]
            case _:
                raise AssertionError(f"no oracle for {type(node).__name__}")
        if isinstance(node, (*ops.ACCUMULATING, ops.DynamicScale, ops.Rescale, ops.TopK)):
            zero[node.name] = 0
        values[node.name] = made
    return values


def _add(node: ops.Add, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    axis = node.axis % (a.ndim - 1) + 1
    a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    made = np.empty_like(a)
    apart = len(node.factors) // 2 if len(node.factors) > 2 else 0
    for c in range(a.shape[-1]):
        f, g = (node.factors[c], node.factors[apart + c]) if apart else node.factors
        made[..., c] = f * a[..., c] + g * b[..., c if b.shape[-1] > 1 else 0]
    return np.moveaxis(made, -1, axis)


def _parameters(graph: Graph, node: ops.Linear | ops.Conv2d) -> tuple[np.ndarray, np.ndarray]:
    weight = graph.parameters[f"{node.name}.weight"].astype(np.int64)
    bias = graph.parameters[f"{node.name}.bias"] if node.bias else np.zeros(len(weight))
    return weight, bias.astype(np.int64)


def _positions(
    extent: int, kernel: int, stride: int, padding: int, dilation: int
) -> list[list[tuple[int, int]]]:
    """For each output index along one axis: the (kernel index, input index) pairs inside."""
    found = []
    start = -padding
    while start + (kernel - 1) * dilation < extent + padding:
        cells = [(k, start + k * dilation) for k in range(kernel)]
        found.append([(k, i) for k, i in cells if 0 <= i < extent])
        start += stride
    return found


def _grid(node, shape):
    dilation = node.dilation if isinstance(node, ops.Conv2d) else (1, 1)
    return [
        _positions(
            shape[2 + axis],
            node.kernel[axis],
            node.stride[axis],
            node.padding[axis],
            dilation[axis],
        )
        for axis in range(2)
    ]


def _conv(graph: Graph, node: ops.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, bias = _parameters(graph, node)
    rows, columns = _grid(node, x.shape)
    per_in, per_out = node.in_channels // node.groups, node.out_channels // node.groups
    made = np.zeros((len(x), node.out_channels, len(rows), len(columns)), np.int64)
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        for (a, h), (b, w) in product(row, column):
            for group in range(node.groups):
                into = slice(group * per_out, (group + 1) * per_out)
                cell = x[:, group * per_in : (group + 1) * per_in, h, w]
                made[:, into, i, j] += (cell[:, None] * weight[into, :, a, b]).sum(-1)
    return made + bias.reshape(1, -1, 1, 1)


def _pool(node: ops.MaxPool | ops.SumPool, x: np.ndarray, combine) -> np.ndarray:
    rows, columns = _grid(node, x.shape)
    nothing = np.zeros(x.shape[:2], np.int64)
    made = [
        [
            combine([x[:, :, h, w] for (_, h), (_, w) in product(row, column)] or [nothing])
            for column in columns
        ]
        for row in rows
    ]
    return np.moveaxis(np.array(made), (0, 1), (2, 3))


def _requantize(node: ops.Requantize, acc: np.ndarray) -> np.ndarray:
    channels = np.moveaxis(acc, node.axis if node.axis < 0 else node.axis + 1, 0)
    made = np.empty_like(channels)
    for c in range(len(channels)):
        multiplier = node.multiplier[c if len(node.multiplier) > 1 else 0]
        place = np.floor_divide(channels[c] * multiplier + node.offset, 2**node.shift)
        place = np.where(
            place < 0, 0, np.where(place >= len(node.table), len(node.table) - 1, place)
        )
        made[c] = np.array(node.table)[place]
    return np.moveaxis(made, 0, node.axis if node.axis < 0 else node.axis + 1)


def _run_time(node: ops.DynamicQuantize, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Nearest integer to x · L / s, halves upwards, in exact fractions."""
    levels = 255 if node.zero_point else 127
    made = np.empty_like(x)
    for sample, values in enumerate(x):
        scale = int(s[sample, 0])
        nearest = [floor(Fraction(int(v) * levels, scale) + Fraction(1, 2)) for v in values.flat]
        made[sample] = np.array(nearest).reshape(values.shape)
    return made + node.zero_point


def _rescale(node: ops.Rescale, acc: np.ndarray, s: np.ndarray | None = None) -> np.ndarray:
    axis = node.axis if node.axis < 0 else node.axis + 1
    made = np.empty_like(acc)
    for place in product(*map(range, acc.shape)):
        channel = place[axis]
        multiplier = node.multiplier[channel if len(node.multiplier) > 1 else 0]
        exact = int(acc[place]) * multiplier * (1 if s is None else int(s[place[0], 0]))
        half = Fraction(1, 2) if node.shift else 0
        z = floor(Fraction(exact, 2**node.shift) + half) + (node.bias[channel] if node.bias else 0)
        made[place] = min(max(z, node.low), node.high)
    return made


def _rows(graph: Graph, node: ops.Embedding, digits: np.ndarray) -> np.ndarray:
    table, numbers = graph.parameters[f"{node.name}.weight"].astype(np.int64), []
    for number in digits.reshape(-1, digits.shape[-1]):
        octets = b"".join(int(digit).to_bytes(1, "little", signed=True) for digit in number)
        whole = int.from_bytes(octets, "little")
        numbers.append(whole % 2 ** max(1, (node.rows - 1).bit_length()) % node.rows)
    return table[numbers].reshape(*digits.shape[:-1], node.width)


def _largest(node: ops.TopK, x: np.ndarray) -> np.ndarray:
    lines = np.moveaxis(x, node.axis if node.axis < 0 else node.axis + 1, -1)
    factors = node.multiplier * (lines.shape[-1] // len(node.multiplier))
    found = []
    for line in lines.reshape(-1, lines.shape[-1]).tolist():
        scores = [(-v * m, place) for place, (v, m) in enumerate(zip(line, factors, strict=True))]
        found.append([place for _, place in sorted(scores)[: node.count]])
    made = np.array(found).reshape(*lines.shape[:-1], node.count)
    return np.moveaxis(made, -1, node.axis if node.axis < 0 else node.axis + 1)
