"""Sums and products with constant tensors (positions, layer scales) as layers with weights.

x · g over the last axis is a diagonal linear layer. x + p, where p differs by position, is a
grouped convolution on [T·D, 1, 1], one group a position, which takes the linear layer before it
along: its bias is then one value for each position and feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor, constant_of, sample_rank
from secure_quant.quantizer.passes.norm import diagonal
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_constants"]

aten = torch.ops.aten


def lower_constants(module: GraphModule) -> None:
    """Rewrite add, sub and mul with a constant tensor of more than one element."""
    for node in list(module.graph.nodes):
        if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            continue
        found = _operands(module, node)
        if found is None:
            continue
        x, constant, sign = found
        edit = Editor(module, node)
        shape = tuple(int(n) for n in x.meta["val"].shape[1:])
        value = torch.broadcast_to(constant, (1, *shape))[0]
        last = _over_last(value)
        if node.target is aten.mul.Tensor:
            if last is None:
                raise unsupported(node, "a product with a constant that varies by position")
            edit.replace(diagonal(edit, x, last, None))
        elif last is not None:
            edit.replace(_shift_features(module, edit, x, sign * last))
        else:
            edit.replace(_shift_positions(module, edit, x, sign * value))


def _operands(module: GraphModule, node: Node) -> tuple[Node, Tensor, float] | None:
    """(data, constant, sign) of a sum or product with a constant tensor; None for others."""
    a, b = node.args[0], node.args[1]
    alpha: Any = node.kwargs.get("alpha", 1)
    sign = -alpha if node.target is aten.sub.Tensor else alpha
    right = constant_of(module, b)
    if right is not None and right.numel() > 1 and isinstance(a, Node):
        return a, right, sign
    left = constant_of(module, a)
    if left is not None and left.numel() > 1 and isinstance(b, Node):
        if node.target is aten.sub.Tensor:
            raise unsupported(node, "a constant minus the data", "negate the layer before it")
        return b, left * (1 if alpha == 1 else 1 / alpha), 1
    return None


def _over_last(value: Tensor) -> Tensor | None:
    """The vector of a constant that only varies along the last axis."""
    rows = value.reshape(-1, value.shape[-1])
    return rows[0].clone() if bool((rows == rows[0]).all()) else None


def _shift_features(module: GraphModule, edit: Editor, x: Node, shift: Tensor) -> Node:
    """x + shift over the last axis, inside the linear layer before it where there is one."""
    if not _is_lone_linear(module, x):
        return diagonal(edit, x, torch.ones(len(shift)), shift)
    weight, bias = x.args[1], constant_of(module, x.args[2]) if len(x.args) > 2 else None
    total = shift if bias is None else shift + bias
    return edit.call(aten.linear.default, x.args[0], weight, edit.parameter(total, "bias"))


def _shift_positions(module: GraphModule, edit: Editor, x: Node, shift: Tensor) -> Node:
    """x + shift with shift [..., D], one group for each position."""
    positions, out = shift.reshape(-1, shift.shape[-1]).shape
    if _is_lone_linear(module, x) and sample_rank(x) == 3:
        weight = constant_of(module, x.args[1])
        bias = constant_of(module, x.args[2]) if len(x.args) > 2 else None
        source = x.args[0]
    else:
        weight, bias, source = None, None, x
    batch = edit.call(aten.sym_size.int, source, 0)
    groups = positions if weight is not None else positions * out
    kernels = torch.ones(groups, 1) if weight is None else weight.repeat(positions, 1)
    total = shift.reshape(-1) if bias is None else shift.reshape(-1) + bias.repeat(positions)
    flat = edit.call(aten.reshape.default, source, [batch, groups * kernels.shape[1], 1, 1])
    made = edit.call(
        aten.conv2d.default, flat, edit.parameter(kernels[:, :, None, None], "position_weight"),
        edit.parameter(total, "position_bias"), [1, 1], [0, 0], [1, 1], groups,
    )  # fmt: skip
    return edit.call(aten.reshape.default, made, [batch, *shift.shape])


def _is_lone_linear(module: GraphModule, x: Node) -> bool:
    """True for a linear layer that only the sum reads."""
    lone = x.target is aten.linear.default and len(x.users) == 1
    return lone and constant_of(module, x.args[1]) is not None
