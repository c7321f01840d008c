"""Pooling in the forms that have an integer meaning: one axis as two, whole windows only."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import sample_rank
from secure_quant.quantizer.passes.indexing import Mover, length
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_pools"]

aten = torch.ops.aten

_ON_ONE_AXIS: dict[Any, Any] = {
    aten.max_pool1d.default: aten.max_pool2d.default,
    aten.avg_pool1d.default: aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default: aten.adaptive_avg_pool2d.default,
}
_MISSING: dict[Any, tuple[Any, ...]] = {
    aten.max_pool2d.default: (None, 0, 1, False),
    aten.avg_pool2d.default: (None, 0, False, True, None),
}
"""Defaults behind (x, kernel)."""
_CEIL: dict[Any, int] = {aten.max_pool2d.default: 5, aten.avg_pool2d.default: 4}


def lower_pools(module: GraphModule) -> None:
    """Pools over [C, L] as pools over [C, 1, L]; ``ceil_mode`` as padding that cannot win, or
    without effect; ``max(dim)`` of which only the values are read as ``amax``. Raises
    UnsupportedModule."""
    for node in list(module.graph.nodes):
        edit = Mover(module, node)
        if node.target in _ON_ONE_AXIS:
            node = _two_axes(edit, node)
        if node.target in _CEIL:
            _whole_windows(edit, node)
        elif node.target in (aten.max.dim, aten.max_pool2d_with_indices.default):
            _values_only(module, node)


def _two_axes(edit: Mover, node: Node) -> Node:
    x: Any = node.args[0]
    if sample_rank(x) != 3:
        raise unsupported(node, f"data of {sample_rank(x)} axes", "[batch, channels, length]")
    rest: list[Any] = []
    fill = {0: 1, 1: 1, 2: 0, 3: 1}  # of the axis that is added: kernel, stride, padding, dilation
    for place, value in enumerate(node.args[1:]):
        if isinstance(value, bool) or place not in fill:
            rest.append(value)
        else:
            given = [value] if isinstance(value, int) else list(value)  # type: ignore[arg-type]
            rest.append([fill[place], *given] if given else [])
    wide = edit.call(aten.unsqueeze.default, x, 2)
    made = edit.call(_ON_ONE_AXIS[node.target], wide, *rest)
    edit.replace(edit.call(aten.squeeze.dim, made, 2))
    return made


def _pair(value: Any) -> tuple[int, int]:
    items = [value] if isinstance(value, int) else list(value)
    return items[0], items[-1]


def _whole_windows(edit: Mover, node: Node) -> None:
    """Without ceil_mode: the same where it adds no window, else over a repeated edge."""
    x: Any = node.args[0]
    if sample_rank(x) != 4:
        raise unsupported(node, f"data of {sample_rank(x)} axes", "[batch, channels, H, W]")
    given = (*node.args[1:], *_MISSING[node.target][len(node.args) - 2 :])
    place = _CEIL[node.target] - 1
    if not given[place]:
        return
    kernel = _pair(given[0])
    stride, padding = _pair(given[1] or kernel), _pair(given[2])
    extra = []
    for axis in (0, 1):
        windows = length(node, axis + 2)
        reach = (windows - 1) * stride[axis] + kernel[axis]
        extra.append(max(reach - length(x, axis + 2) - 2 * padding[axis], 0))
    if any(extra) and node.target is not aten.max_pool2d.default:
        raise unsupported(
            node, "ceil_mode with windows over the edge",
            "use ceil_mode=False; pad or cut the input to a size that the stride divides",
        )  # fmt: skip
    with_edge = Mover(edit.module, node)
    for axis, count in enumerate(extra, 2):
        last = length(x, axis) - 1
        if count:
            x = with_edge.gather(x, axis, [*range(last + 1), *[last] * count])
    node.args = (x, *given[:place], False, *given[place + 1 :])


def _values_only(module: GraphModule, node: Node) -> None:
    """The values of an op that returns places too."""
    readers = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in readers):
        raise unsupported(node, "the places of maxima", "read the values only")
    if node.target is aten.max.dim:
        x, dim, *keep = node.args
        args: tuple[Any, ...] = (x, [dim], *keep)
        target: Any = aten.amax.default
    else:
        target, args = aten.max_pool2d.default, node.args
    for user in readers:
        edit = Mover(module, user)
        edit.replace(edit.call(target, *args))
    module.graph.erase_node(node)
