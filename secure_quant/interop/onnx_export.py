"""A graph as standard ONNX integer operators, which any ONNX runtime computes to the same integers.

Linear and Conv2d become MatMulInteger and ConvInteger with int32 accumulators; a Requantize
becomes Mul, Add, Clip, BitShift and Gather on 64-bit integers. Activations stay int8 (int16 where
the graph has int16). The model maps int8[batch, *input shape] to int64[batch, *output shape], the
integers of ``secure_quant.reference.run_int``. A graph with ports has an input or output of its own
for each, int8[batch, *shape] and int64[batch, *shape], under the port's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from secure_quant.errors import OpNotSupported
from secure_quant.interop.writer import OPSET, Writer, along, border_names, finished, shifts, window
from secure_quant.ir import Graph, ops
from secure_quant.ir.ports import id_bits
from secure_quant.ir.values import INT8, INT32

__all__ = ["OPSET", "border_names", "export_onnx", "feeds", "packed", "to_onnx"]

_INT64 = int(TensorProto.INT64)


def export_onnx(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``to_onnx(graph)`` to a file. The file holds the weights."""
    Path(path).write_bytes(to_onnx(graph).SerializeToString())


def to_onnx(graph: Graph, *, inner: bool = False) -> onnx.ModelProto:
    """The ONNX model of ``graph``. Raises MissingParameters, OpNotSupported
    (run-time scales).

    inner  every node between input and output is an output of the model too, int64 and named
           ``ir/NAME``, so that two runtimes can be compared layer by layer.
    """
    writer = _Writer(graph)
    for node in graph.nodes:
        if isinstance(node, ops.DYNAMIC) and not shifts(graph, node):
            raise OpNotSupported(
                f"{type(node).__name__} {node.name!r} in ONNX",
                got="64-bit products, which its integer operators do not define",
                hint="quantize with mode='static' to export",
            )
        writer.names[node.name] = _RULES[type(node)](writer, node)
    outputs = {name: (_INT64, port.shape) for name, port in writer.outputs.items()}
    ends = ops.InputPort | ops.OutputPort
    for node in graph.nodes[1:-1] if inner else ():
        if isinstance(node, ends):
            continue
        made_at = f"ir/{node.name}"
        cast = helper.make_node("Cast", [writer.names[node.name]], [made_at], to=_INT64)
        writer.nodes.append(cast)
        outputs[made_at] = (_INT64, graph.values[node.name].shape)
    inputs = {name: (int(TensorProto.INT8), port.shape) for name, port in writer.inputs.items()}
    return finished(writer, inputs, outputs)


class _Writer(Writer):
    """With the integers of ir values."""

    def wide(self, name: str) -> str:
        """x̂ (or acc) of an ir value as int64."""
        made = self.op("Cast", self.names[name], to=_INT64)
        zero_point = self.graph.values[name].zero_point
        return self.op("Sub", made, self.integer(zero_point)) if zero_point else made

    def is_int8(self, name: str) -> bool:
        value = self.graph.values[name]
        return not value.accumulator and value.range.within(INT8)

    def zero_point(self, name: str) -> str:
        return self.constant(np.array(self.graph.values[name].zero_point, np.int8))


def feeds(graph: Graph, q: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
    """int8[batch, *input shape], packed, as the ONNX model's inputs."""
    flat = q.reshape(len(q), -1)
    return {
        name: np.ascontiguousarray(flat[:, port.start : port.stop]).reshape(len(q), *port.shape)
        for name, port in border_names(graph)[0].items()
    }


def packed(graph: Graph, made: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The ONNX model's outputs by name -> int64[batch, *output shape]."""
    parts = [made[name] for name in border_names(graph)[1]]
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return flat.reshape(len(flat), *graph.values[graph.output.name].shape)


def _input(w: _Writer, node: Any) -> str:
    return "x"


def _input_port(w: _Writer, node: Any) -> str:
    return str(node.port)


def _embedding(w: _Writer, node: Any) -> str:
    """Digits to the number of a row, modulo what it may be; then the row."""
    digits = w.graph.by_name[node.inputs[0]].shape[-1]  # type: ignore[attr-defined]
    wide = w.op("Cast", w.names[node.inputs[0]], to=_INT64)
    whole = w.op("Mod", wide, w.constant(np.array(256, np.int64)))  # the sign of the divisor
    places = w.constant(np.array([256**d for d in range(digits)], np.int64))
    last = w.constant(np.array([-1], np.int64))
    number = w.op("ReduceSum", w.op("Mul", whole, places), last, keepdims=0)
    for most in (1 << id_bits(node.rows), node.rows):
        number = w.op("Mod", number, w.constant(np.array(most, np.int64)))
    return w.op("Gather", w.constant(w.graph.weight(node)), number, axis=0)


def _output_port(w: _Writer, node: Any) -> str:
    name = next(name for name, port in w.outputs.items() if port.node == node.name)
    w.nodes.append(helper.make_node("Cast", [w.names[node.inputs[0]]], [name], to=_INT64))
    return name


def _linear(w: _Writer, node: Any) -> str:
    (name,) = node.inputs
    weight = w.graph.weight(node).T
    if w.is_int8(name):
        acc = w.op("MatMulInteger", w.names[name], w.constant(weight), w.zero_point(name))
        bias = w.graph.bias(node).astype(np.int32)
    else:
        acc = w.op("MatMul", w.wide(name), w.constant(weight.astype(np.int64)))
        bias = w.graph.bias(node).astype(np.int64)
    return w.op("Add", acc, w.constant(bias)) if node.bias else acc


def _conv2d(w: _Writer, node: Any) -> str:
    weight = w.graph.weight(node)
    options = {"group": node.groups, "dilations": node.dilation, **window(node)}
    acc = _correlate(w, node.inputs[0], weight, options)
    if not node.bias:
        return acc
    wide = not w.is_int8(node.inputs[0])
    bias = w.graph.bias(node).astype(np.int64 if wide else np.int32)
    return w.op("Add", acc, w.constant(bias[:, None, None]))


def _correlate(w: _Writer, name: str, weight: NDArray[Any], options: dict[str, Any]) -> str:
    """ConvInteger of an int8 value; of an int16 value, 256 · ConvInteger(high) + ConvInteger(low),
    since x̂ = 256 · (high - 128) + low for the two bytes of x̂ + 2^15."""
    kernel = w.constant(weight)
    if w.is_int8(name):
        return w.op("ConvInteger", w.names[name], kernel, w.zero_point(name), **options)
    lifted = w.op("Add", w.wide(name), w.integer(2**15))
    high = w.op("Div", lifted, w.integer(256))
    low = w.op("Sub", lifted, w.op("Mul", high, w.integer(256)))
    parts = []
    for byte, zero_point in ((high, 128), (low, 0)):
        x = w.op("Cast", byte, to=TensorProto.UINT8)
        zero = w.constant(np.array(zero_point, np.uint8))
        parts.append(w.op("Cast", w.op("ConvInteger", x, kernel, zero, **options), to=_INT64))
    return w.op("Add", w.op("Mul", parts[0], w.integer(256)), parts[1])


def _sum_pool(w: _Writer, node: Any) -> str:
    (name,) = node.inputs
    channels = w.graph.values[name].shape[0]
    ones = np.ones((channels, 1, *node.kernel), np.int8)
    return _correlate(w, name, ones, {"group": channels, **window(node)})


def _matmul(w: _Writer, node: Any) -> str:
    a, b = node.inputs
    both = w.is_int8(a) and w.is_int8(b)
    left, right = (w.names[a], w.names[b]) if both else (w.wide(a), w.wide(b))
    if node.transpose_b:
        order = list(range(len(w.graph.values[b].shape) + 1))
        order[-2:] = order[:-3:-1]
        right = w.op("Transpose", right, perm=order)
    if both:
        return w.op("MatMulInteger", left, right, w.zero_point(a), w.zero_point(b))
    return w.op("MatMul", left, right)


def _mul(w: _Writer, node: Any) -> str:
    return w.op("Mul", *(w.wide(name) for name in node.inputs))


def _add(w: _Writer, node: Any) -> str:
    rank = len(w.graph.values[node.name].shape)
    factors = [along(np.array(part, np.int64), node.axis, rank) for part in node.parts]
    terms = [
        w.wide(name) if (own == 1).all()
        else w.op("Mul", w.wide(name), w.constant(own) if own.size > 1 else w.integer(own.item()))
        for name, own in zip(node.inputs, factors, strict=True)
    ]  # fmt: skip
    return w.op("Add", *terms)


def _reduce_sum(w: _Writer, node: Any) -> str:
    axes = w.constant(np.array([-1], np.int64))
    return w.op("ReduceSum", w.wide(node.inputs[0]), axes, keepdims=1)


def _requantize(w: _Writer, node: Any) -> str:
    v = _scaled(w, node, node.offset)
    # Clipped before the shift, so that an unsigned shift is the floor that the ir means.
    top = (len(node.table) << node.shift) - 1
    v = _clipped(w, v, top, _reach(w.graph, node))
    v = _shifted(w, v, node.shift)
    dtype = np.int8 if w.is_int8(node.name) else np.int16
    return w.op("Gather", w.constant(np.array(node.table, dtype)), v, axis=0)


def _rescale(w: _Writer, node: Any) -> str:
    """Lifted above 0, so that an unsigned shift is the floor that the ir means."""
    lift = -node.low
    v = _scaled(w, node, ((2 * lift + 1) << node.shift) >> 1)
    made = _shifted(w, v, node.shift)
    return w.op("Sub", made, w.integer(lift)) if lift else made


def _scaled(w: _Writer, node: Any, offset: int) -> str:
    """acc · multiplier + offset as int64."""
    (name,) = node.inputs
    v = w.wide(name)
    if node.multiplier != (1,):
        shape = [1] * len(w.graph.values[name].shape)
        shape[node.axis] = len(node.multiplier)
        v = w.op("Mul", v, w.constant(np.array(node.multiplier, np.int64).reshape(shape)))
    return w.op("Add", v, w.integer(offset)) if offset else v


def _shifted(w: _Writer, v: str, shift: int) -> str:
    """Of int64 that is not negative."""
    if not shift:
        return v
    by = w.constant(np.array(shift, np.uint64))
    v = w.op("BitShift", w.op("Cast", v, to=TensorProto.UINT64), by, direction="RIGHT")
    return w.op("Cast", v, to=_INT64)


def _reach(graph: Graph, node: ops.Requantize) -> int:
    """Largest |acc · multiplier + offset|."""
    value = graph.values[node.inputs[0]]
    return value.centred.magnitude * max(node.multiplier) + abs(node.offset)


def _clipped(w: _Writer, v: str, top: int, reach: int) -> str:
    """int64 clipped to 0 .. top. onnxruntime 1.31 compares 64-bit integers by 32 of their bits in
    Clip, Min and Max, so these are used for small ones only."""
    if max(top, reach) <= INT32.hi:
        return w.op("Clip", v, w.integer(0), w.integer(top))
    v = w.op("Where", w.op("Less", v, w.integer(0)), w.integer(0), v)
    return w.op("Where", w.op("Greater", v, w.integer(top)), w.integer(top), v)


def _max_pool(w: _Writer, node: Any) -> str:
    (name,) = node.inputs
    if w.is_int8(name):
        return w.op("MaxPool", w.names[name], **window(node))
    real = w.op("Cast", w.names[name], to=TensorProto.FLOAT)  # exact for int16
    return w.op("Cast", w.op("MaxPool", real, **window(node)), to=TensorProto.INT16)


def _top_k(w: _Writer, node: Any) -> str:
    """ONNX's own has the lowest index of equal values first too."""
    (name,) = node.inputs
    v, rank = w.wide(name), len(w.graph.values[name].shape)
    if node.multiplier != (1,):
        shape = [1] * rank
        shape[node.axis] = len(node.multiplier)
        v = w.op("Mul", v, w.constant(np.array(node.multiplier, np.int64).reshape(shape)))
    count, made = w.constant(np.array([node.count], np.int64)), w.new("v")
    ends = [w.new("v"), made]
    axis = node.axis % rank + 1
    w.nodes.append(helper.make_node("TopK", [v, count], ends, axis=axis, largest=1, sorted=1))
    return made


def _reduce_max(w: _Writer, node: Any) -> str:
    (name,) = node.inputs
    axes = w.constant(np.array([-1], np.int64))
    if w.is_int8(name):
        return w.op("ReduceMax", w.names[name], axes, keepdims=1)
    made = w.op("Cast", w.names[name], to=TensorProto.INT32)
    return w.op("Cast", w.op("ReduceMax", made, axes, keepdims=1), to=TensorProto.INT16)


def _reshape(w: _Writer, node: Any) -> str:
    shape = w.constant(np.array([0, *node.shape], np.int64))  # 0 keeps the batch axis
    return w.op("Reshape", w.names[node.inputs[0]], shape)


def _transpose(w: _Writer, node: Any) -> str:
    perm = [0, *(axis + 1 for axis in node.permutation)]
    return w.op("Transpose", w.names[node.inputs[0]], perm=perm)


def _slice(w: _Writer, node: Any) -> str:
    bounds = [
        w.constant(np.array([n], np.int64))
        for n in (node.start, node.stop, node.axis + 1, node.step)
    ]
    return w.op("Slice", w.names[node.inputs[0]], *bounds)


def _gather(w: _Writer, node: Any) -> str:
    index = w.constant(np.array(node.index, np.int64))
    return w.op("Gather", w.names[node.inputs[0]], index, axis=node.axis + 1)


def _concat(w: _Writer, node: Any) -> str:
    kinds = {w.is_int8(name) for name in node.inputs}
    names = [w.names[name] for name in node.inputs]
    if len(kinds) > 1:
        names = [w.op("Cast", name, to=TensorProto.INT16) for name in names]
    return w.op("Concat", *names, axis=node.axis + 1)


def _output(w: _Writer, node: Any) -> str:
    if "y" not in w.outputs or w.outputs["y"].node != node.name:
        return ""  # of ports: they are the outputs
    w.nodes.append(helper.make_node("Cast", [w.names[node.inputs[0]]], ["y"], to=_INT64))
    return "y"


_RULES: Mapping[type[ops.Node], Callable[[_Writer, Any], str]] = {
    ops.Input: _input,
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
    ops.Rescale: _rescale,
    ops.MaxPool: _max_pool,
    ops.ReduceMax: _reduce_max,
    ops.TopK: _top_k,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Slice: _slice,
    ops.Gather: _gather,
    ops.Concat: _concat,
    ops.OutputPort: _output_port,
    ops.Output: _output,
}
