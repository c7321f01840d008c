"""Moves of values: repeats, orders, joins, pads, diagonals, as cuts and joins along one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.passes.indexing import Mover, argument, is_whole, length, rank_of
from secure_quant.quantizer.refuse import unsupported

__all__ = ["DIAGONAL", "REARRANGE", "constant_places", "lone_index", "on_one_axis"]

aten = torch.ops.aten


def _expand(edit: Mover, node: Node) -> Node:
    return edit.expand(argument(node, 0, "self"), node.meta["val"].shape)


def _repeat(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    counts: Any = node.args[1]
    if len(counts) != rank_of(x) or counts[0] != 1:
        raise unsupported(node, "a repeat of the batch", "repeat axes of the sample")
    for axis, count in enumerate(counts):
        if axis and count != 1:
            x = edit.repeat(x, axis, count)
    return x


def _repeat_interleave(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    count, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
    if dim is None:
        raise unsupported(node, "a repeat over all axes", "give it dim=")
    axis = edit.axis(dim, rank_of(x))
    return edit.gather(x, axis, [i for i in range(length(x, axis)) for _ in range(count)])


def _flip(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    dims: Any = node.args[1]
    for dim in dims:
        axis = edit.axis(dim, rank_of(x))
        x = edit.gather(x, axis, list(range(length(x, axis)))[::-1])
    return x


def _roll(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    shifts: Any = node.args[1]
    dims: Any = argument(node, 2, "dims", [])
    if len(dims) != len(shifts):
        raise unsupported(node, "a roll over all axes", "give it dims=")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = edit.axis(dim, rank_of(x))
        size = length(x, axis)
        x = edit.gather(x, axis, [(i - shift) % size for i in range(size)])
    return x


def constant_places(edit: Mover, node: Node, index: Any, size: int) -> list[int]:
    """A constant vector of places, from integers or a mask."""
    value = edit.value(index) if isinstance(index, Node) else None
    if value is None or value.ndim != 1:
        raise unsupported(
            node, "places that depend on the input, or not one vector of them",
            "index one axis with a constant vector",
        )  # fmt: skip
    places = value.nonzero().reshape(-1) if value.dtype is torch.bool else value
    return [int(i) % size for i in places]


def _index_select(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    axis = edit.axis(argument(node, 1, "dim"), rank_of(x))
    places = constant_places(edit, node, argument(node, 2, "index"), length(x, axis))
    return edit.pick(x, axis, places)


def _windows(edit: Mover, node: Node) -> Node:
    """x.unfold: windows along one axis, their places last. A list of places for one axis is short
    beside one for all values."""
    x: Node = argument(node, 0, "self")
    given: Any = node.args
    dim, size, step = given[1:4]
    rank, axis = rank_of(x), edit.axis(dim, rank_of(x))
    count = (length(x, axis) - size) // step + 1
    places = [i * step + j for i in range(count) for j in range(size)]
    taken = edit.gather(x, axis, places)
    batch, sample = edit.call(aten.sym_size.int, x, 0), list(map(int, x.meta["val"].shape[1:]))
    split = [batch, *sample[: axis - 1], count, size, *sample[axis:]]
    wide = edit.call(aten.reshape.default, taken, split)
    order = [d for d in range(rank + 1) if d != axis + 1] + [axis + 1]
    return wide if order[-1] == axis else edit.call(aten.permute.default, wide, order)


def _patches(edit: Mover, node: Node) -> Node:
    """functional.unfold: places along each of both axes, then windows side by side."""
    names = ("self", "kernel_size", "dilation", "padding", "stride")
    x, kernel, dilation, padding, stride = (argument(node, i, n) for i, n in enumerate(names))
    edit.axis(rank_of(x) - 3, 4)  # raises for an image without a batch
    if any(padding):
        below, across = padding
        x = edit.call(aten.constant_pad_nd.default, x, [across, across, below, below])
        x = _pad(edit, x)
    counts = []
    for axis in (2, 3):
        k, d, s = (each[axis - 2] for each in (kernel, dilation, stride))
        counts.append((length(x, axis) - d * (k - 1) - 1) // s + 1)
        x = edit.gather(x, axis, [i * s + j * d for j in range(k) for i in range(counts[-1])])
    batch, channels = edit.call(aten.sym_size.int, x, 0), length(x, 1)
    split = [batch, channels, kernel[0], counts[0], kernel[1], counts[1]]
    wide = edit.call(aten.reshape.default, x, split)
    turned = edit.call(aten.permute.default, wide, [0, 1, 2, 4, 3, 5])
    rows = [batch, channels * kernel[0] * kernel[1], counts[0] * counts[1]]
    return edit.call(aten.reshape.default, turned, rows)


def lone_index(edit: Mover, node: Node, rank: int) -> tuple[int, Any]:
    """(axis, index) of an index with one tensor in it."""
    given: Any = node.args[1]
    found = [(dim, index) for dim, index in enumerate(given) if index is not None]
    if len(found) != 1:
        raise unsupported(node, "an index over several axes", "index one axis at a time")
    return edit.axis(found[0][0], rank), found[0][1]


def _index(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    axis, index = lone_index(edit, node, rank_of(x))
    return edit.gather(x, axis, constant_places(edit, node, index, length(x, axis)))


def _pad(edit: Mover, node: Node) -> Node:
    """Padding of axes of the sample, with a constant or with what the mode says."""
    x: Node = argument(node, 0, "self")
    widths: Any = node.args[1]
    named = node.target is aten.pad.default
    mode = argument(node, 2, "mode", "constant") if named else "constant"
    value = argument(node, 3 if named else 2, "value", 0.0) or 0.0
    if mode == "constant" and value == -math.inf and all(_ignores(n, widths) for n in node.users):
        mode = "replicate"
    for number in range(len(widths) // 2):
        low, high = widths[2 * number : 2 * number + 2]
        if not (low or high):
            continue
        axis = edit.axis(-1 - number, rank_of(x))
        size = length(x, axis)
        if mode == "constant":
            sides = [edit.constant(_block(x, axis, n, float(value))) for n in (low, high) if n > 0]
            kept = edit.cut(x, axis, max(-low, 0), size - max(-high, 0))
            at = 1 if low > 0 else 0
            x = edit.join([*sides[:at], kept, *sides[at:]], axis)
        else:
            x = edit.gather(x, axis, [_source(i, size, mode) for i in range(-low, size + high)])
    return x


def _ignores(pool: Node, widths: Sequence[int]) -> bool:
    """True for a maximum over windows that each hold the edge, or nothing, of what was padded by
    ``widths``: the edge again is as good there as minus infinity."""
    axes = _MAXIMA.get(pool.target, 0)
    if len(widths) > 2 * axes or argument(pool, 5, "ceil_mode", False):
        return False
    kernel = _each(argument(pool, 1, "kernel_size"), axes)
    padding = _each(argument(pool, 3, "padding", 0), axes)
    spread = _each(argument(pool, 4, "dilation", 1), axes)
    inside = all(0 <= width < kernel[-1 - place // 2] for place, width in enumerate(widths))
    return inside and not any(padding) and set(spread) == {1}


def _each(value: Any, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value) * (axes // len(value))


_MAXIMA: dict[Any, int] = {
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
}


def _block(x: Node, axis: int, size: int, value: float) -> torch.Tensor:
    shape = [1, *map(int, x.meta["val"].shape[1:])]
    shape[axis] = size
    return torch.full(shape, value)


def _source(place: int, size: int, mode: str) -> int:
    """The index that a padded place repeats."""
    if mode == "circular":
        return place % size
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    return size - 1 - abs(size - 1 - abs(place))


def _cat(edit: Mover, node: Node) -> Node:
    """A join of data and constants, or of joins along the same axis; others stay."""
    given: Any = node.args[0]
    dim = argument(node, 1, "dim", 0)
    kept = [n for n in given if edit.value(n) is None or edit.value(n).numel()]  # type: ignore[union-attr]
    if len(kept) > 1 and all(edit.value(n) is None for n in kept):
        return node
    return edit.join(kept, edit.axis(dim, rank_of(node)))


def _stack(edit: Mover, node: Node) -> Node:
    given: Any = node.args[0]
    axis = edit.axis(argument(node, 1, "dim", 0), rank_of(node))
    parts = []
    for part in given:
        value = edit.value(part)
        if value is None:
            parts.append(edit.call(aten.unsqueeze.default, part, axis))
        else:
            parts.append(edit.constant(value.unsqueeze(axis)))
    return edit.join(parts, axis)


def _slice(edit: Mover, node: Node) -> Node:
    """A slice of a join reads only the parts that it needs, each on its own grid."""
    x: Node = argument(node, 0, "self")
    dim = argument(node, 1, "dim", 0) % rank_of(node)
    start, stop, step = (
        argument(node, 2, "start"),
        argument(node, 3, "end"),
        argument(node, 4, "step", 1),
    )
    if dim == 0 and step == 1 and is_whole(start, stop, node.meta["val"].shape[0]):
        return x
    if dim == 0 or step != 1 or x.target is not aten.cat.default:
        return node
    low, high, _ = slice(start, stop).indices(length(x, dim))
    return edit.cut(x, dim, low, high) if low < high else node


DIAGONAL = ("offset", "dim1", "dim2")
"""Their defaults are 0, 0, 1."""


def _diagonal(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    offset, one, two = (
        argument(node, 1, "offset", 0),
        argument(node, 2, "dim1", 0),
        argument(node, 3, "dim2", 1),
    )
    flat, places, _ = on_one_axis(edit, node, x, offset, one, two)
    return edit.gather(flat, rank_of(flat) - 1, places)


def on_one_axis(
    edit: Mover, node: Node, x: Node, offset: int, one: int, two: int
) -> tuple[Node, list[int], list[int]]:
    """x with the axes of a diagonal moved last and joined, the diagonal's places, the order."""
    rank = rank_of(x)
    a, b = edit.axis(one, rank), edit.axis(two, rank)
    order = [i for i in range(rank) if i not in (a, b)] + [a, b]
    rows, columns = length(x, a), length(x, b)
    places = [i * columns + i + offset for i in range(rows) if 0 <= i + offset < columns]
    turned = x if order == list(range(rank)) else edit.call(aten.permute.default, x, order)
    batch = edit.call(aten.sym_size.int, x, 0)
    kept = [int(x.meta["val"].shape[i]) for i in order[1:-2]]
    flat = edit.call(aten.reshape.default, turned, [batch, *kept, rows * columns])
    return flat, places, order


REARRANGE: dict[Any, Callable[[Mover, Node], Node]] = {
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.diagonal.default: _diagonal,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.repeat.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.unfold.default: _windows,
    aten.im2col.default: _patches,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
"""aten op -> what it becomes: a node, or itself where it may stay."""
