"""Layers with weights, and pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.build import int_bias, short
from secure_quant.ir.run_time import typical
from secure_quant.ir.terms import Dynamic, Term, Weight
from secure_quant.ir.values import INT32
from secure_quant.ir.verify import linear_bound
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.refuse import unsupported

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "linear",
    "max_pool2d",
    "positions",
    "sum_pool",
]


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """A positional or named argument of an fx call."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def pair(value: Any) -> ops.Pair:
    """torch's int or list of one or two ints as (vertical, horizontal)."""
    items = [value] if isinstance(value, int) else list(value)
    return (int(items[0]), int(items[-1]))


def linear(walk: Walk, node: Node) -> Term:
    """Linear over the last axis."""
    x, weight, bias = _operands(walk, node)
    name = walk.name(node)
    has_bias, bound, scale = _store(walk, name, x, weight, bias)
    out, features = weight.values.shape
    layer = ops.Linear(
        name=name, inputs=(x.name,), in_features=features, out_features=out, bias=has_bias,
        bound=bound, scale=scale,
    )  # fmt: skip
    shape = (*x.shape[:-1], out)
    term: Term = walk.builder.accumulator(layer, shape, weight.multiplier, -1)
    return _waiting(term, x, weight, bias)


def conv2d(walk: Walk, node: Node) -> Term:
    """Conv2d on [C, H, W]."""
    return _conv2d(
        walk, node, stride=pair(argument(node, 3, "stride", 1)),
        padding=pair(argument(node, 4, "padding", 0)),
        dilation=pair(argument(node, 5, "dilation", 1)), groups=argument(node, 6, "groups", 1),
    )  # fmt: skip


def positions(walk: Walk, node: Node) -> Term:
    """Linear layers side by side, one a group, on [groups · in, 1, 1]."""
    return _conv2d(walk, node, groups=argument(node, 3, "groups"))


def _conv2d(
    walk: Walk, node: Node, *, groups: int, stride: ops.Pair = (1, 1), padding: ops.Pair = (0, 0),
    dilation: ops.Pair = (1, 1),
) -> Term:  # fmt: skip
    x, weight, bias = _operands(walk, node)
    name = walk.name(node)
    has_bias, bound, scale = _store(walk, name, x, weight, bias)
    layer = ops.Conv2d(
        name=name, inputs=(x.name,), in_channels=x.shape[0], out_channels=len(weight.values),
        kernel=pair(weight.values.shape[2:]), stride=stride, padding=padding, dilation=dilation,
        groups=groups, bias=has_bias, bound=bound, scale=scale,
    )  # fmt: skip
    term: Term = walk.builder.accumulator(layer, walk.shape(node), weight.multiplier, 0)
    return _waiting(term, x, weight, bias)


def conv1d(walk: Walk, node: Node) -> Term:
    """Conv1d on [C, L], as a Conv2d of height 1."""
    x, weight, bias = _operands(walk, node)
    flat = replace(weight, values=weight.values[:, :, None, :])
    view = ops.Reshape(
        name=walk.builder.name(f"{walk.label(node)}.in"), inputs=(x.name,),
        shape=(x.shape[0], 1, x.shape[1]),
    )  # fmt: skip
    x = walk.builder.move(view, x, view.shape)
    name = walk.name(node)
    has_bias, bound, scale = _store(walk, name, x, flat, bias)
    out, _, _, width = flat.values.shape
    dilation = (1, _only(argument(node, 5, "dilation", 1)))
    layer = ops.Conv2d(
        name=name, inputs=(x.name,), in_channels=x.shape[0], out_channels=out, kernel=(1, width),
        stride=(1, _only(argument(node, 3, "stride", 1))),
        padding=(0, _only(argument(node, 4, "padding", 0))), dilation=dilation,
        groups=argument(node, 6, "groups", 1), bias=has_bias, bound=bound, scale=scale,
    )  # fmt: skip
    shape = walk.shape(node)
    term: Term = walk.builder.accumulator(layer, (out, 1, shape[-1]), weight.multiplier, 0)
    return _waiting(replace(term, shape=shape, own_shape=term.shape), x, flat, bias)


def _only(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])


def _operands(walk: Walk, node: Node) -> tuple[Term, Weight, Any]:
    """What enters a layer, its weight and its real bias or None."""
    x: Term = walk.layer_input(node)
    weight = walk.weight(node)
    if weight is None:
        raise unsupported(
            node, "a weight that is not a parameter", "use matmul for two activations"
        )
    bias = walk.value(argument(node, 2, "bias"))
    if bias is not None and not isinstance(bias, Tensor):
        raise unsupported(node, "a bias that is not a parameter", "add it with +")
    if bias is None:
        return x, weight, None
    if not weight.values.any():
        x = replace(x, dynamic=None)  # 0 at any scale; what comes out is the bias
    real = bias.numpy()
    fixed = x.dynamic or walk.kept is not None
    return x, weight if fixed else _with_room(weight, real, x.scale), real


_BIAS_BITS = 20
"""Steps, as a power of two, of the largest bias where no weight says how large a step is."""
_LARGEST_BIAS = 2**29


def _with_room(weight: Weight, bias: Any, scale: float) -> Weight:
    """``weight`` in steps in which its bias is exact and fits: weights that are all 0 tell no step,
    and those far smaller than their bias are worth less than one of its steps."""
    largest = float(np.abs(bias).max(initial=0.0))
    if not weight.values.any():
        base = largest / 2**_BIAS_BITS / scale
        return replace(weight, multiplier=(1,), base=base) if base > 0 else weight
    excess = largest / (scale * weight.base * min(weight.multiplier)) / _LARGEST_BIAS
    if excess <= 1:
        return weight
    values = np.rint(weight.values / excess).astype(np.int8)
    return replace(weight, values=values, base=weight.base * excess)


def _waiting(term: Term, x: Term, weight: Weight, bias: Any) -> Term:
    """The accumulator of a layer, which waits for scale and bias if its input's scale does."""
    if weight.real:
        return replace(term, real=tuple(step * x.scale for step in weight.real))
    if x.dynamic is None:
        return term
    size = typical(weight.values, weight.multiplier, x)
    real = None if bias is None else np.asarray(bias, np.float64)
    return replace(term, dynamic=Dynamic(x.dynamic.factor, size, real))


def _store(walk: Walk, name: str, x: Term, weight: Weight, bias: Any) -> tuple[bool, int, float]:
    """Keep the parameters; (has a bias, declared bound, scale of acc · multiplier).

    Where x has a run-time scale the bias is no part of the accumulator."""
    bias = None if x.dynamic else bias
    scale = short(x.scale * weight.base)
    out = len(weight.values)
    steps = np.broadcast_to(np.array(weight.multiplier, np.float64), out) * scale
    made = int_bias(bias, weight.steps * x.scale if weight.real else steps, name)
    walk.builder.parameters[f"{name}.weight"] = weight.values
    if bias is not None:
        walk.builder.parameters[f"{name}.bias"] = made
    bound = walk.builder.bound(name, linear_bound(weight.values, made, x.centred), INT32.hi)
    return bias is not None, bound, scale


def max_pool2d(walk: Walk, node: Node) -> Term:
    """MaxPool on [C, H, W]; dilation is refused."""
    x: Term = walk.activation(node.args[0], node)
    kernel = pair(node.args[1])
    if pair(argument(node, 4, "dilation", 1)) != (1, 1):
        raise unsupported(node, "a dilated pool", "use dilation=1")
    layer = ops.MaxPool(
        name=walk.name(node), inputs=(x.name,), kernel=kernel,
        stride=pair(argument(node, 2, "stride") or kernel),
        padding=pair(argument(node, 3, "padding", 0)),
    )  # fmt: skip
    return walk.builder.move(layer, x, walk.shape(node))


def avg_pool2d(walk: Walk, node: Node) -> Term:
    """SumPool; the division is in the scale."""
    kernel = pair(node.args[1])
    padding = pair(argument(node, 3, "padding", 0))
    if padding != (0, 0) and not argument(node, 5, "count_include_pad", True):
        raise unsupported(
            node, "count_include_pad=False", "use count_include_pad=True or padding=0"
        )
    divisor = argument(node, 6, "divisor_override") or kernel[0] * kernel[1]
    stride = pair(argument(node, 2, "stride") or kernel)
    return sum_pool(walk, node, kernel, stride, padding, divisor)


def adaptive_avg_pool2d(walk: Walk, node: Node) -> Term:
    """A SumPool with fixed windows, where the output size divides the input size."""
    height, width = walk.activation(node.args[0], node).shape[1:]
    rows, columns = walk.shape(node)[1:]
    if height % rows or width % columns:
        raise unsupported(
            node, f"{rows}x{columns} windows of unequal size on {height}x{width}",
            "choose an output size that divides the input size",
        )  # fmt: skip
    kernel = (height // rows, width // columns)
    return sum_pool(walk, node, kernel, kernel, (0, 0), kernel[0] * kernel[1])


def sum_pool(
    walk: Walk, node: Node, kernel: ops.Pair, stride: ops.Pair, padding: ops.Pair, divisor: float
) -> Term:
    """The accumulator Σ x̂ over windows of [C, H, W], each unit worth scale / divisor."""
    x: Term = walk.activation(node.args[0], node)
    name = walk.name(node)
    layer = ops.SumPool(
        name=name, inputs=(x.name,), kernel=kernel, stride=stride, padding=padding,
        bound=walk.builder.bound(name, x.centred.magnitude * kernel[0] * kernel[1]),
        scale=short(x.scale / divisor),
    )  # fmt: skip
    height, width = (
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(x.shape[1:], kernel, stride, padding, strict=True)
    )
    return walk.builder.accumulator(layer, (x.shape[0], height, width))
