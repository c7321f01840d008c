"""``x · scale + shift`` with constants, in the cheapest layer that can do it.

A number goes into the table behind. Along the last axis it is a linear layer, along the channels
a convolution of one kernel a channel, and the layer before takes it along where only this step
reads that. What differs by position is a grouped convolution on [T·D, 1, 1], one group a position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.convolutions import CONVOLUTIONS, TRANSPOSED
from secure_quant.quantizer.passes.edit import Editor, bias_of, constant_of, sample_rank
from secure_quant.quantizer.passes.norm import diagonal
from secure_quant.quantizer.positions import POSITIONS

__all__ = ["affine", "channel_affine"]

aten = torch.ops.aten


def affine(module: GraphModule, edit: Editor, x: Node, scale: Tensor, shift: Tensor) -> Node:
    """x · scale + shift for float32 constants of the shape of one sample of x."""
    if _uniform(scale) and _uniform(shift):
        return _by_number(edit, x, float(scale.reshape(-1)[0]), float(shift.reshape(-1)[0]))
    last = [_vector(v, -1) for v in (scale, shift)]
    if last[0] is not None and last[1] is not None:
        return _features(module, edit, x, last[0], last[1])
    first = [_vector(v, 0) for v in (scale, shift)]
    if first[0] is not None and first[1] is not None:
        return channel_affine(module, edit, x, first[0], first[1])
    return _positions(module, edit, x, scale, shift)


def _uniform(value: Tensor) -> bool:
    return bool((value == value.reshape(-1)[0]).all())


def _by_number(edit: Editor, x: Node, scale: float, shift: float) -> Node:
    x = x if scale == 1 else edit.call(aten.mul.Tensor, x, scale)
    return x if shift == 0 else edit.call(aten.add.Tensor, x, shift)


def _vector(value: Tensor, axis: int) -> Tensor | None:
    """The vector of a constant that only varies along ``axis``, None for others."""
    rows = value.movedim(axis, -1).reshape(-1, value.shape[axis])
    return rows[0].clone() if bool((rows == rows[0]).all()) else None


def _features(module: GraphModule, edit: Editor, x: Node, scale: Tensor, shift: Tensor) -> Node:
    """Over the last axis; a shift alone goes into the linear layer before it."""
    if not bool((scale == 1).all()):
        return diagonal(edit, x, scale, shift)
    if not _is_lone(module, x, {aten.linear.default}):
        return diagonal(edit, x, scale, shift)
    weight, bias = x.args[1], bias_of(module, x)
    total = shift if bias is None else shift + bias
    return edit.call(aten.linear.default, x.args[0], weight, edit.parameter(total, "bias"))


def channel_affine(
    module: GraphModule, edit: Editor, x: Node, scale: Tensor, shift: Tensor
) -> Node:
    """scale[c] · x[:, c] + shift[c], inside the layer before it whose outputs are these channels,
    if nothing else reads that."""
    channels_last = sample_rank(x) == 2
    layers = {aten.linear.default} if channels_last else CONVOLUTIONS
    if _is_lone(module, x, layers):
        return _scaled(module, edit, x, scale, shift)
    if bool((scale == 1).all()) and not bool(shift.any()):
        return x
    if channels_last:
        return diagonal(edit, x, scale, shift)
    flat, back = x, None
    if sample_rank(x) not in (3, 4):
        batch = edit.call(aten.sym_size.int, x, 0)
        sample = [int(n) for n in x.meta["val"].shape[1:]]
        flat = edit.call(aten.reshape.default, x, [batch, sample[0], math.prod(sample[1:])])
        back = [batch, *sample]
    axes = sample_rank(flat) - 2
    kernel = edit.parameter(scale.reshape(-1, 1, *[1] * axes), "scale")
    made = edit.call(
        aten.conv1d.default if axes == 1 else aten.conv2d.default, flat, kernel,
        edit.parameter(shift, "shift"), [1] * axes, [0] * axes, [1] * axes, len(scale),
    )  # fmt: skip
    return made if back is None else edit.call(aten.reshape.default, made, back)


def _scaled(module: GraphModule, edit: Editor, layer: Node, scale: Tensor, shift: Tensor) -> Node:
    """scale · (W x + b) + shift as one layer of the same kind."""
    weight: Any = constant_of(module, layer.args[1])
    bias = bias_of(module, layer)
    if layer.target in TRANSPOSED:  # [in, out / groups, ...]
        groups: Any = layer.args[6] if len(layer.args) > 6 else 1
        rows = scale.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
        rows = rows.reshape(len(weight), -1, *[1] * (weight.ndim - 2))
    else:
        rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    total = shift if bias is None else shift + bias * scale
    made = edit.call(
        layer.target, layer.args[0], edit.parameter(weight * rows, "weight"),
        edit.parameter(total, "bias"), *layer.args[3:],
    )  # fmt: skip
    made.meta["nn_module_stack"] = layer.meta.get("nn_module_stack", {})
    return made


def _positions(module: GraphModule, edit: Editor, x: Node, scale: Tensor, shift: Tensor) -> Node:
    """One group for each position of [..., D], and the linear layer before it with it."""
    positions, out = shift.reshape(-1, shift.shape[-1]).shape
    if _is_lone(module, x, {aten.linear.default}) and sample_rank(x) == 3:
        weight: Any = constant_of(module, x.args[1])
        bias = bias_of(module, x)
        source: Any = x.args[0]
        kernels = weight.repeat(positions, 1) * scale.reshape(-1, 1)
        groups = positions
    else:
        bias, source, groups = None, x, positions * out
        kernels = scale.reshape(-1, 1)
    batch = edit.call(aten.sym_size.int, source, 0)
    total = shift.reshape(-1)
    total = total if bias is None else total + bias.repeat(positions) * scale.reshape(-1)
    flat = edit.call(aten.reshape.default, source, [batch, groups * kernels.shape[1], 1, 1])
    made = edit.call(
        POSITIONS, flat, edit.parameter(kernels[:, :, None, None], "position_weight"),
        edit.parameter(total, "position_bias"), groups,
    )  # fmt: skip
    return edit.call(aten.reshape.default, made, [batch, *shift.shape])


def _is_lone(module: GraphModule, x: Node, layers: set[Any]) -> bool:
    """True for one of ``layers`` with constant parameters that only one step reads, once."""
    if x.target not in layers or len(x.users) != 1 or constant_of(module, x.args[1]) is None:
        return False
    reader = next(iter(x.users))
    if reader.all_input_nodes.count(x) != 1:
        return False
    bias = x.args[2] if len(x.args) > 2 else None
    return bias is None or constant_of(module, bias) is not None
