"""ONNX operators of layers, norms, pools and recurrent nets as calls of torch.

Each function takes the node and its arguments, None for those left out, and returns the node's
value or values. Source of the meaning: the operator specification of ONNX, sets 7 to 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_quant.quantizer.files.onnx_kept import evenly_padded
from secure_quant.quantizer.files.onnx_node import Host, NodeView, Value, tensor_of

__all__ = ["LAYERS"]

Sizes = list[int]
_ByAxes = tuple[Callable[..., Tensor], ...]

_CONVS: _ByAxes = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: _ByAxes = (
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
)  # fmt: skip
_MAXIMA: _ByAxes = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_MEANS: _ByAxes = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _ends(
    node: NodeView,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[Sizes, Sizes]:
    """Padding before and after each spatial axis."""
    axes, auto = len(kernel), node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = [int(p) for p in node.get("pads", [0] * 2 * axes)]
        return pads[:axes], pads[axes:]
    if auto == "VALID":
        return [0] * axes, [0] * axes
    begins, finals = [], []
    for size, k, stride, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + d * (k - 1) + 1 - size, 0)
        less, more = missing // 2, missing - missing // 2
        first, last = (less, more) if auto == "SAME_UPPER" else (more, less)
        begins.append(first)
        finals.append(last)
    return begins, finals


def _padded(x: Tensor, begins: Sizes, finals: Sizes, value: float = 0.0) -> Tensor:
    pairs = [p for pair in reversed(list(zip(begins, finals, strict=True))) for p in pair]
    return functional.pad(x, pairs, value=value)


def _window(node: NodeView, axes: int) -> tuple[Sizes, Sizes]:
    return (
        [int(s) for s in node.get("strides", [1] * axes)],
        [int(d) for d in node.get("dilations", [1] * axes)],
    )


def _conv(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    if not 1 <= axes <= 3:
        raise node.refused(f"{axes} spatial axes", "1 to 3")
    strides, dilations = _window(node, axes)
    begins, finals = _ends(node, x, weight.shape[2:], strides, dilations)
    even = evenly_padded(weight, begins, finals, dilations) if node.batch.rounded else None
    if begins != finals and even is not None:  # what a model rounds stays as it is
        weight, begins = even
    elif begins != finals:
        x, begins = _padded(x, begins, finals), [0] * axes
    conv = _CONVS[axes - 1]
    return conv(x, weight, bias, strides, begins, dilations, node.get("group", 1))


def _conv_transpose(
    node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    axes = weight.ndim - 2
    if not 1 <= axes <= 3:
        raise node.refused(f"{axes} spatial axes", "1 to 3")
    if node.get("output_shape") is not None or node.get("auto_pad", "NOTSET") not in (
        "NOTSET", "VALID",
    ):  # fmt: skip
        raise node.refused("padding that follows from the output's shape", "explicit pads")
    strides, dilations = _window(node, axes)
    pads = [int(p) for p in node.get("pads", [0] * 2 * axes)]
    begins, finals = pads[:axes], pads[axes:]
    more = [int(p) for p in node.get("output_padding", [0] * axes)]
    conv = _TRANSPOSED[axes - 1]
    group = node.get("group", 1)
    if begins == finals:
        return conv(x, weight, bias, strides, begins, more, group, dilations)
    made = conv(x, weight, bias, strides, 0, more, group, dilations)
    for axis, (first, last) in enumerate(zip(begins, finals, strict=True), 2):
        made = made.narrow(axis, first, made.shape[axis] - first - last)
    return made


def _gemm(node: NodeView, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.transpose(0, 1) if node.get("transA", 0) else a
    b = b if node.get("transB", 0) else b.transpose(0, 1)
    bias = None if c is None else tensor_of(c)
    if alpha == beta == 1.0 and bias is not None and bias.shape == b.shape[:1]:
        return functional.linear(a, b, bias)
    made = functional.linear(a, b)
    made = made if alpha == 1.0 else made * alpha
    if bias is None:
        return made
    return made + (bias if beta == 1.0 else bias * beta)


def _matmul(node: NodeView, a: Value, b: Value) -> Tensor:
    left, right = tensor_of(a), tensor_of(b)
    if right.ndim == 2 and isinstance(right, nn.Parameter):
        return functional.linear(left, right.transpose(0, 1))
    return torch.matmul(left, right)


def _batch_norm(
    node: NodeView, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    if node.get("training_mode", 0):
        raise node.refused("training mode", hint="export the model in eval mode")
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def _instance_norm(node: NodeView, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def _group_norm(node: NodeView, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = int(node.get("num_groups"))
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _layer_norm(node: NodeView, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.outputs > 1:
        raise node.refused("mean and deviation as outputs", "one output")
    shape = list(x.shape[node.get("axis", -1) :])
    return functional.layer_norm(x, shape, scale, bias, node.get("epsilon", 1e-5))


def _rms_norm(node: NodeView, x: Tensor, scale: Tensor) -> Tensor:
    shape = list(x.shape[node.get("axis", -1) :])
    return functional.rms_norm(x, shape, scale, node.get("epsilon", 1e-5))


def _lp_normalization(node: NodeView, x: Tensor) -> Tensor:
    return functional.normalize(x, float(node.get("p", 2)), dim=node.get("axis", -1))


def _lrn(node: NodeView, x: Tensor) -> Tensor:
    return functional.local_response_norm(
        x, int(node.get("size")), node.get("alpha", 1e-4), node.get("beta", 0.75),
        node.get("bias", 1.0),
    )  # fmt: skip


def _max_pool(node: NodeView, x: Tensor) -> Tensor:
    if node.outputs > 1:
        raise node.refused("indices of the maxima as an output", "one output")
    kernel = [int(k) for k in node.get("kernel_shape")]
    strides, dilations = _window(node, len(kernel))
    begins, finals = _ends(node, x, kernel, strides, dilations)
    ceil = bool(node.get("ceil_mode", 0))
    if begins != finals or any(2 * p > k for p, k in zip(begins, kernel, strict=True)):
        x, begins = _padded(x, begins, finals, -math.inf), [0] * len(kernel)
    return _MAXIMA[len(kernel) - 1](x, kernel, strides, begins, dilations, ceil)


def _average_pool(node: NodeView, x: Tensor) -> Tensor:
    kernel = [int(k) for k in node.get("kernel_shape")]
    strides, dilations = _window(node, len(kernel))
    if any(d != 1 for d in dilations):
        raise node.refused(f"dilations {dilations}", "1")
    begins, finals = _ends(node, x, kernel, strides, dilations)
    counts, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    if begins != finals:
        if not counts or ceil:
            raise node.refused(f"uneven pads {begins}, {finals}", "as much before as after")
        x, begins = _padded(x, begins, finals), [0] * len(kernel)
    return _MEANS[len(kernel) - 1](x, kernel, strides, begins, ceil, counts)


def _global_average(node: NodeView, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _global_max(node: NodeView, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates stand among those of ONNX: iofc and zrh there, ifgo and rzn here."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


_NOTHING: list[Value] = [None] * 8


def _recurrent(node: NodeView, *given: Value) -> tuple[Tensor, ...]:
    """RNN, GRU and LSTM of one layer, as torch's own."""
    x, w, r, b, lengths, *states = [*given, *_NOTHING[len(given) :]]
    kind, hidden = node.kind, int(node.get("hidden_size"))
    two = node.get("direction", "forward") == "bidirectional"
    if node.get("direction") == "reverse" or node.get("clip") or lengths is not None:
        raise node.refused("reverse direction, clip or lengths", "a plain layer")
    if len(states) > 2 and states[2] is not None:
        raise node.refused("peepholes", "an LSTM without")
    plain = node.get("activations") in (None, [a.encode() for a in _DEFAULTS[kind] * (1 + two)])
    if not plain or (kind == "GRU" and not node.get("linear_before_reset", 0)):
        raise node.refused("activations or a reset that torch does not have")
    source, first, second = tensor_of(x), tensor_of(w), tensor_of(r)
    swapped = bool(node.get("layout", 0))
    source = source if swapped else source.transpose(0, 1)
    cell: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[kind]
    layer = cell(first.shape[-1], hidden, batch_first=True, bidirectional=two, bias=b is not None)
    order = torch.cat([torch.arange(g * hidden, (g + 1) * hidden) for g in _GATES[kind]])
    parts: dict[str, Tensor] = {}
    for way in range(1 + two):
        end = "_reverse" * way
        parts[f"weight_ih_l0{end}"] = first[way][order]
        parts[f"weight_hh_l0{end}"] = second[way][order]
        if b is not None:
            both = tensor_of(b)[way].reshape(2, -1)
            parts[f"bias_ih_l0{end}"], parts[f"bias_hh_l0{end}"] = both[0][order], both[1][order]
    batch, length = source.shape[:2]
    begun = _first_states(states[:2] if kind == "LSTM" else states[:1], batch, swapped)
    if kind == "LSTM" and begun:
        h, c = begun
        begun = [(torch.zeros_like(c) if h is None else h, torch.zeros_like(h) if c is None else c)]
    made, last = torch.func.functional_call(layer, parts, (source, *begun))
    ways = made.reshape(batch, length, 1 + two, hidden)
    outputs = ways if swapped else ways.permute(1, 2, 0, 3)
    ends = last if isinstance(last, tuple) else (last,)
    return (outputs, *[each.transpose(0, 1) if swapped else each for each in ends])


def _first_states(states: Sequence[Any], batch: int, swapped: bool) -> list[Any]:
    """As torch takes them, [directions, batch, hidden]; None where one is zero, nothing where all
    are."""
    zero = [s is None or (isinstance(s, Host) and not s.any()) for s in states]
    if all(zero):
        return []
    made = [None if none else tensor_of(s) for s, none in zip(states, zero, strict=True)]
    ways = [None if s is None else s.transpose(0, 1) if swapped else s for s in made]
    return [None if s is None else s.expand(-1, batch, -1).contiguous() for s in ways]


LAYERS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "RMSNormalization": _rms_norm,
    "RNN": _recurrent,
}
