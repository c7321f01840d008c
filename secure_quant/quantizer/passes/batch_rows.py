"""Steps on [rows, channels, ...] whose rows are several of each sample, for ``batch_first``.

The rows of one sample stand beside each other as channels: a pool treats channels alike, a
convolution gets a group for each row, a norm over groups as many more groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.passes.batch_layout import Folded, Folder, Made

__all__ = ["ROWS"]

aten = torch.ops.aten


def _by_row(edit: Folder, node: Node) -> Made:
    own = edit.of(node.args[0])
    layout, shape, new = own.layout, edit.shape(node.args[0]), edit.shape(node)
    if layout.axis != 0 or len(shape) < 3:
        return None
    args = _REPEATED.get(node.target, _same)(edit, node, layout.rows)
    if args is None:
        return None
    flat = edit.rows(own.data, [layout.rows * shape[1], *shape[2:]])
    made = edit.op(node.target, (flat, *args), node.kwargs)
    if edit.shape(made)[1:] != [layout.rows * new[1], *new[2:]]:
        return None  # a step that does not keep to one channel
    return Folded(edit.rows(made, edit.spread(new, layout)), layout, len(new))


def _same(edit: Folder, node: Node, count: int) -> tuple[Any, ...] | None:
    return node.args[1:]


def _repeat(edit: Folder, x: Any, count: int) -> Any:
    """A constant, once for each row."""
    if not isinstance(x, Node):
        return x
    ones = [1] * (len(x.meta["val"].shape) - 1)
    return edit.call(aten.repeat.default, x, [count, *ones])


def _grouped(edit: Folder, node: Node, count: int) -> tuple[Any, ...] | None:
    """weight, bias, stride, padding, dilation, groups of a convolution."""
    if any(edit.is_data(n) for n in node.all_input_nodes[1:]):
        return None
    axes = len(edit.shape(node)) - 2
    defaults: Any = (None, None, [1] * axes, [0] * axes, [1] * axes, 1)
    given: list[Any] = list(node.args[1:]) + list(defaults[len(node.args) - 1 :])
    weight, bias, *options, groups = given
    return _repeat(edit, weight, count), _repeat(edit, bias, count), *options, groups * count


def _normed(edit: Folder, node: Node, count: int) -> tuple[Any, ...] | None:
    """num_groups, weight, bias, eps of a norm over groups."""
    groups: Any = node.args[1]
    return groups * count, *(_repeat(edit, x, count) for x in node.args[2:])


def _batch_norm(edit: Folder, node: Node) -> Made:
    """The channels stay: rows go behind them."""
    own = edit.of(node.args[0])
    layout, shape = own.layout, edit.shape(node.args[0])
    if layout.axis != 0 or layout.rows == 1:
        return None
    turned = edit.call(aten.transpose.int, own.data, 1, 2)
    flat = edit.rows(turned, [shape[1], layout.rows * math.prod(shape[2:])])
    made = edit.op(node.target, (flat, *node.args[1:]), node.kwargs)
    wide = edit.rows(made, [shape[1], layout.rows, *shape[2:]])
    return Folded(edit.call(aten.transpose.int, wide, 1, 2), layout, own.rank)


_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv3d.default, aten.conv3d.padding,
)  # fmt: skip
_REPEATED: Mapping[Any, Callable[[Folder, Node, int], tuple[Any, ...] | None]] = {
    **dict.fromkeys(_CONVOLUTIONS, _grouped),
    aten.group_norm.default: _normed,
}
_POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.im2col.default, aten.col2im.default,
)  # fmt: skip
ROWS: dict[Any, Callable[[Folder, Node], Made]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_POOLS, aten.group_norm.default), _by_row),
    aten.batch_norm.default: _batch_norm,
    aten.prelu.default: _batch_norm,
}
