"""Steps that are one fixed matrix along each axis: resizing, uneven means over windows, cumsum.

The matrices are public numbers, but weights like others: a linear layer on each axis in turn. Those
of a resizing are what torch itself makes of unit vectors, so that no mode has a formula here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.passes.indexing import Mover, argument, length, rank_of
from secure_quant.quantizer.refuse import unsupported

__all__ = ["along_axis", "averaged", "lower_axis_maps", "window_means"]

aten = torch.ops.aten


def lower_axis_maps(module: GraphModule) -> None:
    """Resizing, uneven adaptive means and cumulative sums as linear layers, in place."""
    for node in list(module.graph.nodes):
        rule = _RULES.get(node.target)
        if rule is not None:
            edit = Mover(module, node)
            made = rule(edit, node)
            if made is not node:
                edit.replace(made)


def along_axis(edit: Editor, x: Node, axis: int, matrix: Tensor) -> Node:
    """Σ_j matrix[i, j] · x[..., j, ...] for each i, over one axis of the sample."""
    last = rank_of(x) - 1
    weight = edit.fixed(matrix.float(), "map")
    if axis == last:
        return edit.call(aten.linear.default, x, weight)
    turned = edit.call(aten.transpose.int, x, axis, last)
    made = edit.call(aten.linear.default, turned, weight)
    return edit.call(aten.transpose.int, made, axis, last)


def window_means(size: int, windows: Sequence[tuple[int, int, float]]) -> Tensor:
    """float64[windows, size]: of each (start, stop, divisor) the sum from start to stop, inside
    0 to size, over the divisor."""
    matrix = torch.zeros(len(windows), size, dtype=torch.float64)
    for row, (start, stop, divisor) in enumerate(windows):
        matrix[row, max(start, 0) : min(stop, size)] = 1 / divisor
    return matrix


def averaged(edit: Editor, x: Node, matrices: Sequence[Tensor]) -> Node:
    """One matrix for each of the last axes; the most narrowing first."""
    first = rank_of(x) - len(matrices)
    order = sorted(range(len(matrices)), key=lambda i: len(matrices[i]) / matrices[i].shape[1])
    for place in order:
        matrix = matrices[place]
        if matrix.shape[0] != matrix.shape[1] or not torch.equal(
            matrix, torch.eye(len(matrix), dtype=matrix.dtype)
        ):
            x = along_axis(edit, x, first + place, matrix)
    return x


def _resized(edit: Mover, node: Node) -> Node:
    """What torch makes of a unit vector along one axis, with ones along the others, which any mean
    with weights of sum 1 leaves ones."""
    x: Node = argument(node, 0, "input") or argument(node, 0, "self")
    spatial = [int(n) for n in x.meta["val"].shape[2:]]
    given = [None if isinstance(a, Node) else a for a in node.args[1:]]
    if any(isinstance(n, Node) for n in node.all_input_nodes if n is not x):
        raise unsupported(node, "a size that depends on the input", "give it a constant size")
    target: Any = node.target
    matrices = []
    for place, size in enumerate(spatial):
        shape = [1] * len(spatial)
        shape[place] = size
        unit = torch.eye(size, dtype=torch.float64).reshape(size, 1, *shape)
        unit = unit.expand(size, 1, *spatial).contiguous()
        made = target(unit, *given, **node.kwargs)
        made = made.movedim(2 + place, -1).reshape(size, -1, made.shape[2 + place])[:, 0]
        matrices.append(made.t().contiguous())
    return averaged(edit, x, matrices)


def _adaptive_mean(edit: Mover, node: Node) -> Node:
    """Windows as torch chooses them: i · n / m to (i + 1) · n / m, rounded outwards."""
    x: Any = node.args[0]
    first, rank = rank_of(node) - _SPATIAL[node.target], rank_of(node)
    sizes = [(length(x, axis), length(node, axis)) for axis in range(first, rank)]
    if all(before % after == 0 for before, after in sizes):
        kernel = [before // after for before, after in sizes]
        wide = len(sizes) == 3
        return edit.call(aten.avg_pool3d.default, x, kernel, kernel) if wide else node
    matrices = []
    for before, after in sizes:
        ends = [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]
        matrices.append(window_means(before, [(a, b, b - a) for a, b in ends]))
    return averaged(edit, x, matrices)


_SPATIAL: dict[Any, int] = {
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
    aten.adaptive_avg_pool3d.default: 3,
}


def _running_sum(edit: Mover, node: Node) -> Node:
    x: Any = node.args[0]
    axis = edit.axis(argument(node, 1, "dim"), rank_of(node))
    return along_axis(edit, x, axis, torch.ones(length(x, axis), length(x, axis)).tril())


_RULES: dict[Any, Callable[[Mover, Node], Node]] = {
    aten.cumsum.default: _running_sum,
    **dict.fromkeys(_SPATIAL, _adaptive_mean),
    **dict.fromkeys(
        (aten.upsample_linear1d.vec, aten.upsample_linear1d.default,
         aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default,
         aten.upsample_bicubic2d.vec, aten.upsample_bicubic2d.default,
         aten.upsample_trilinear3d.vec, aten.upsample_trilinear3d.default,
         aten._upsample_bilinear2d_aa.vec, aten._upsample_bilinear2d_aa.default,
         aten._upsample_bicubic2d_aa.vec, aten._upsample_bicubic2d_aa.default),
        _resized,
    ),
}  # fmt: skip
