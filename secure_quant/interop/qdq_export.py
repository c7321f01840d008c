"""A graph as a float ONNX model with QuantizeLinear and DequantizeLinear around its operators: the
form that mobile runtimes compile for their integer units.

Every activation has the graph's scale and zero point, every weight its int8 values with a scale for
each channel, every bias its int32 values. What stands between is an operator on floats, which a
runtime replaces by its own integer kernel, or computes as it is. So the integers are those of the
graph but for rounding: a sum is scaled in float32 here and by a public table there. The model maps
float32[batch, *input shape] to float32[batch, *output shape], under the names of ports if there are
any.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from secure_quant.errors import OpNotSupported
from secure_quant.interop.functions import named_function
from secure_quant.interop.writer import Writer, along, border_names, finished, shifts, window
from secure_quant.ir import Graph, ops
from secure_quant.ir.ports import Port
from secure_quant.ir.sums import LAYERS, channel_multipliers
from secure_quant.ir.values import INT8, Interval

__all__ = ["export_qdq", "real_feeds", "to_qdq"]

Real = NDArray[np.float64]
_FLOAT = int(TensorProto.FLOAT)
_INT64 = int(TensorProto.INT64)
_DTYPES = {"float32": _FLOAT, "int64": _INT64, "bool": int(TensorProto.BOOL)}
_NEAR = 1 / 256
"""Relative: the factors of an Add meet the ratio of two scales to half of that."""


def export_qdq(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``to_qdq(graph)`` to a file. The file holds the weights."""
    Path(path).write_bytes(to_qdq(graph).SerializeToString())


def to_qdq(graph: Graph, *, inner: bool = False) -> onnx.ModelProto:
    """The model. Raises MissingParameters, OpNotSupported (run-time scales).

    inner  the integers of every activation are an output too, int64 and named ``ir/NAME``.
    """
    writer = _Writer(graph)
    for node in graph.nodes:
        if isinstance(node, ops.TopK):
            raise OpNotSupported(
                f"TopK {node.name!r} in QDQ form", got="an order",
                hint="export the model with its scores, before it is split with an output policy",
            )  # fmt: skip
        if isinstance(node, ops.DYNAMIC) and not shifts(graph, node):
            raise OpNotSupported(
                f"{type(node).__name__} {node.name!r} in QDQ form", got="a scale at run time",
                hint="quantize with mode='static' to export",
            )  # fmt: skip
        _RULES[type(node)](writer, node)
    inputs = {
        name: (_DTYPES[port.dtype], port.asked if port.rows else port.shape)
        for name, port in writer.inputs.items()
    }
    outputs = {name: (_FLOAT, port.shape) for name, port in writer.outputs.items()}
    for name in list(writer.names) if inner else ():
        writer.give(f"ir/{name}", "Cast", writer.names[name], to=_INT64)
        outputs[f"ir/{name}"] = (_INT64, graph.values[name].shape)
    return finished(writer, inputs, outputs)


def real_feeds(graph: Graph, x: Any) -> dict[str, NDArray[Any]]:
    """float[batch, *input shape], or arrays by name, as the inputs of the QDQ model."""
    given = x if isinstance(x, Mapping) else {graph.input_ports[0].name: x}
    made: dict[str, NDArray[Any]] = {}
    for name, port in border_names(graph)[0].items():
        array = np.asarray(given[port.name])
        made[name] = array.reshape(len(array), *port.asked).astype(port.dtype)
    return made


class _Writer(Writer):
    """``names`` holds the quantized tensor of each activation, ``sums`` the float tensor of each
    accumulator, ``ids`` row numbers as they come."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.sums: dict[str, str] = {}
        self.ids: dict[str, str] = {}

    def give(self, name: str, kind: str, *inputs: str, **attributes: Any) -> None:
        """One ONNX node whose output is called ``name``."""
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def grid(self, name: str) -> tuple[str, str]:
        """Scale and zero point of an activation, int8 or int16."""
        value = self.graph.values[name]
        kind = np.int8 if value.zero_point in range(-128, 128) and self._narrow(name) else np.int16
        return self.number(value.scale), self.constant(np.array(value.zero_point, kind))

    def _narrow(self, name: str) -> bool:
        return self.graph.values[name].range.within(INT8)

    def quantize(self, real: str, name: str) -> None:
        """The activation ``name`` of float values."""
        self.names[name] = self.op("QuantizeLinear", real, *self.grid(name))

    def real(self, name: str) -> str:
        """Floats of an ir value. Of an activation each reader gets a node of its own, as runtimes
        want it."""
        if name in self.sums:
            return self.sums[name]
        return self.op("DequantizeLinear", self.names[name], *self.grid(name))

    def times(self, real: str, factor: Any) -> str:
        """A float value times a constant, unless that is 1."""
        if np.allclose(factor, 1, rtol=_NEAR, atol=0):
            return real
        return self.op("Mul", real, self.constant(np.asarray(factor, np.float32)))

    def channels(self, name: str) -> tuple[tuple[int, ...], int]:
        """What the floats of an accumulator have of its channels' multipliers, and the axis: of a
        layer's what its first reader multiplies by, in lowest terms, of others nothing."""
        node, reader = self.graph.by_name[name], next(iter(self.graph.consumers[name]))
        found = channel_multipliers(node, reader) if isinstance(node, LAYERS) else None
        return found or ((1,), -1)

    def sum_of(self, name: str, reader: Any) -> tuple[str, int]:
        """Floats of what a Requantize or an output reads, with its channels' multipliers, and the
        integer by which a unit of these is more than one."""
        own, factor = _lowest(reader.multiplier)
        if name in self.sums:
            had, _ = self.channels(name)
            ratio = np.array(own, np.float64) / np.array(had)
        else:
            ratio = np.array(own, np.float64)
        if (ratio == 1).all():
            return self.real(name), factor
        ratio = along(ratio, reader.axis, len(self.graph.values[name].shape))
        return self.times(self.real(name), ratio), factor


def _lowest(multiplier: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Without its common factor, and that: a table finer than its channels' scales asks for one."""
    factor = math.gcd(*multiplier)
    return tuple(m // factor for m in multiplier), factor


def _input(w: _Writer, node: Any) -> None:
    if "x" in w.inputs and w.inputs["x"].node == node.name:
        w.quantize("x", node.name)


def _named(w: _Writer, node: Any) -> str:
    return next(name for name, port in w.inputs.items() if port.node == node.name)


def _input_port(w: _Writer, node: Any) -> None:
    name = _named(w, node)
    real = name if node.dtype == "float32" else w.op("Cast", name, to=_FLOAT)
    w.quantize(real, node.name)


def _lookup_port(w: _Writer, node: Any) -> None:
    table = w.constant(w.graph.lookups[node.name])
    w.names[node.name] = w.op("Gather", table, _named(w, node), axis=0)


def _id_port(w: _Writer, node: Any) -> None:
    w.ids[node.name] = _named(w, node)


def _embedding(w: _Writer, node: Any) -> None:
    table = w.constant(w.graph.weight(node))
    w.names[node.name] = w.op("Gather", table, w.ids[node.inputs[0]], axis=0)


def _parameters(w: _Writer, node: Any) -> tuple[NDArray[Any], Real, NDArray[Any] | None]:
    """int8 weight, real scale of each channel's weights (or of all), int32 bias."""
    multiplier, _ = w.channels(node.name)
    x = w.graph.values[node.inputs[0]]
    scale = np.array(multiplier, np.float64) * node.scale / x.scale
    return w.graph.weight(node), scale, w.graph.bias(node) if node.bias else None


def _weight(w: _Writer, node: Any, weight: NDArray[Any], scale: Real, axis: int) -> str:
    if scale.size == 1:
        return w.op("DequantizeLinear", w.constant(weight), w.number(float(scale[0])))
    scales = w.constant(scale.astype(np.float32))
    return w.op("DequantizeLinear", w.constant(weight), scales, axis=axis)


def _bias(w: _Writer, node: Any, scale: Real, bias: NDArray[Any]) -> str:
    """Of the product of both scales, as runtimes want it."""
    unit = (scale * w.graph.values[node.inputs[0]].scale).astype(np.float32)
    whole = w.constant(bias.astype(np.int32))
    if unit.size == 1:
        return w.op("DequantizeLinear", whole, w.constant(unit.reshape(())))
    return w.op("DequantizeLinear", whole, w.constant(unit), axis=0)


def _linear(w: _Writer, node: Any) -> None:
    weight, scale, bias = _parameters(w, node)
    x = w.real(node.inputs[0])
    if len(w.graph.values[node.name].shape) == 1:
        more = [] if bias is None else [_bias(w, node, scale, bias)]
        w.sums[node.name] = w.op("Gemm", x, _weight(w, node, weight, scale, 0), *more, transB=1)
        return
    made = w.op("MatMul", x, _weight(w, node, weight.T, scale, 1))
    w.sums[node.name] = made if bias is None else w.op("Add", made, _bias(w, node, scale, bias))


def _conv2d(w: _Writer, node: Any) -> None:
    weight, scale, bias = _parameters(w, node)
    more = [] if bias is None else [_bias(w, node, scale, bias)]
    w.sums[node.name] = w.op(
        "Conv", w.real(node.inputs[0]), _weight(w, node, weight, scale, 0), *more,
        group=node.groups, dilations=node.dilation, **window(node),
    )  # fmt: skip


def _sum_pool(w: _Writer, node: Any) -> None:
    (name,) = node.inputs
    x, real = w.graph.values[name], w.real(name)
    count = node.kernel[0] * node.kernel[1]
    if node.kernel == x.shape[1:] and node.padding == (0, 0):
        made = w.op("GlobalAveragePool", real)
    else:
        made = w.op("AveragePool", real, count_include_pad=1, **window(node))
    w.sums[node.name] = w.times(made, count * node.scale / x.scale)


def _matmul(w: _Writer, node: Any) -> None:
    a, b = node.inputs
    right = w.real(b)
    if node.transpose_b:
        last = len(w.graph.values[b].shape)
        right = w.op("Transpose", right, perm=[*range(last - 1), last, last - 1])
        if b not in w.sums:  # onnxruntime would put this pair there itself, of two dtypes (1.31)
            right = w.op("DequantizeLinear", w.op("QuantizeLinear", right, *w.grid(b)), *w.grid(b))
    w.sums[node.name] = w.times(w.op("MatMul", w.real(a), right), _share(w, node))


def _mul(w: _Writer, node: Any) -> None:
    w.sums[node.name] = w.times(w.op("Mul", *map(w.real, node.inputs)), _share(w, node))


def _share(w: _Writer, node: Any) -> float:
    """Of the scale of a product in the product of two scales."""
    a, b = (w.graph.values[name].scale for name in node.inputs)
    return float(node.scale / (a * b))


def _add(w: _Writer, node: Any) -> None:
    rank = len(w.graph.values[node.name].shape)
    terms = []
    for name, own in zip(node.inputs, node.parts, strict=True):
        had = along(*w.channels(name), rank)
        ratio = along(own, node.axis, rank) / had * node.scale / w.graph.values[name].scale
        terms.append((w.real(name), ratio if np.ptp(ratio) else ratio.reshape(-1)[0]))
    (a, first), (b, second) = terms
    minus = np.allclose(second, -1, rtol=_NEAR, atol=0)
    right = b if minus else w.times(b, second)
    w.sums[node.name] = w.op("Sub" if minus else "Add", w.times(a, first), right)


def _reduce_sum(w: _Writer, node: Any) -> None:
    (name,) = node.inputs
    value = w.graph.values[name]
    axes, count = w.constant(np.array([-1], np.int64)), value.shape[-1]
    ratio = node.scale / value.scale
    kind, ratio = ("ReduceSum", ratio) if ratio > 0.9 else ("ReduceMean", ratio * count)
    w.sums[node.name] = w.times(w.op(kind, w.real(name), axes, keepdims=1), ratio)


def _requantize(w: _Writer, node: Any) -> None:
    (name,) = node.inputs
    real, factor = w.sum_of(name, node)
    unit = w.graph.values[name].scale / factor
    made = named_function(node, unit)
    if made is None:
        w.names[node.name] = _looked_up(w, node, real, unit)
        return
    for kind, constants, attributes in made:
        real = w.op(kind, real, *map(w.number, constants), **attributes)
    w.quantize(real, node.name)


def _rescale(w: _Writer, node: Any) -> None:
    """Whole steps, halves upwards."""
    real, _ = w.sum_of(node.inputs[0], node)
    steps = w.op("Add", w.op("Div", real, w.number(node.scale)), w.number(0.5))
    w.sums[node.name] = w.op("Mul", w.op("Floor", steps), w.number(node.scale))


def _looked_up(w: _Writer, node: Any, real: str, unit: float) -> str:
    """The table itself. Half an integer is added, so that no edge of a bucket is met."""
    place = w.op("Mul", real, w.number(1 / (unit * 2**node.shift)))
    place = w.op("Add", place, w.number((node.offset + 0.5) / 2**node.shift))
    ends = w.number(0), w.number(len(node.table) - 1)
    index = w.op("Cast", w.op("Clip", w.op("Floor", place), *ends), to=_INT64)
    kind = np.int8 if Interval(min(node.table), max(node.table)).within(INT8) else np.int16
    return w.op("Gather", w.constant(np.array(node.table, kind)), index, axis=0)


def _moved(kind: str, options: Callable[[_Writer, Any], tuple[list[str], dict[str, Any]]]) -> Any:
    """A rule of an operator that keeps scale and zero point. A sum stays one."""

    def rule(w: _Writer, node: Any) -> None:
        reals = [w.real(name) for name in node.inputs]
        more, attributes = options(w, node)
        made = w.op(kind, *reals, *more, **attributes)
        if w.graph.values[node.name].accumulator:
            w.sums[node.name] = made
        else:
            w.quantize(made, node.name)

    return rule


def _whole(w: _Writer, *numbers: int) -> str:
    return w.constant(np.array(numbers, np.int64))


def _max_pool(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [], window(node)


def _reduce_max(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [_whole(w, -1)], {"keepdims": 1}


def _reshape(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [_whole(w, 0, *node.shape)], {}


def _transpose(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [], {"perm": [0, *(axis + 1 for axis in node.permutation)]}


def _slice(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [_whole(w, n) for n in (node.start, node.stop, node.axis + 1, node.step)], {}


def _gather(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [_whole(w, *node.index)], {"axis": node.axis + 1}


def _concat(w: _Writer, node: Any) -> tuple[list[str], dict[str, Any]]:
    return [], {"axis": node.axis + 1}


def _ends(w: _Writer, node: Any, port: Port, name: str) -> None:
    """The float output ``name``."""
    (source,) = node.inputs
    real, factor = w.sum_of(source, node)
    ratio = factor * node.scale / w.graph.values[source].scale
    exact = abs(ratio - 1) < 1e-6
    w.give(name, "Identity" if exact else "Mul", real, *([] if exact else [w.number(ratio)]))


def _output_port(w: _Writer, node: Any) -> None:
    for name, port in w.outputs.items():
        if port.node == node.name:
            _ends(w, node, port, name)


_RULES: Mapping[type[ops.Node], Callable[[_Writer, Any], None]] = {
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
    ops.Rescale: _rescale,
    ops.MaxPool: _moved("MaxPool", _max_pool),
    ops.ReduceMax: _moved("ReduceMax", _reduce_max),
    ops.Reshape: _moved("Reshape", _reshape),
    ops.Transpose: _moved("Transpose", _transpose),
    ops.Slice: _moved("Slice", _slice),
    ops.Gather: _moved("Gather", _gather),
    ops.Concat: _moved("Concat", _concat),
    ops.OutputPort: _output_port,
    ops.Output: _output_port,
}
