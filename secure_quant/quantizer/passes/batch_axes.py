"""Operands side by side, and steps along named axes, for ``batch_first``."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.passes.batch_layout import PLAIN, Folded, Folder, Layout, Made, hint
from secure_quant.quantizer.passes.indexing import argument

__all__ = ["aligned", "by_dim", "constant_beside", "counted", "has_dim"]

aten = torch.ops.aten
_NAMES = ("dim", "dims", "dimension")
_CUTS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}


def aligned(edit: Folder, operands: Sequence[Any], tail: int = 0) -> tuple[list[Any], Any] | None:
    """The operands in R's space, for a step that broadcasts them, and the layout relative to the
    last axis; None where their batches do not meet, or one is among the last ``tail`` axes."""
    data = [edit.of(x) for x in operands if edit.is_data(x)]
    layouts = {own.layout._replace(axis=own.layout.axis - own.rank) for own in data}
    if len(layouts) != 1:
        return None
    (layout,) = layouts
    ranks = [len(x.meta["val"].shape) for x in operands if isinstance(x, Node) and _is_tensor(x)]
    if layout.axis >= -tail:
        return None
    made = []
    for x in operands:
        if edit.is_data(x):
            own = edit.of(x)
            missing = [1] * (max(ranks) - own.rank)
            sample = edit.shape(own.data)[1:]
            made.append(edit.rows(own.data, [*missing, *sample]) if missing else own.data)
        elif isinstance(x, Node) and _is_tensor(x):
            constant = constant_beside(edit, x, layout)
            if constant is None:
                return None
            made.append(constant)
        else:
            made.append(x)
    return made, layout


def _is_tensor(x: Node) -> bool:
    return isinstance(x.meta.get("val"), torch.Tensor)


def constant_beside(edit: Folder, x: Node, layout: Layout) -> Node | None:
    """A constant beside values of a layout (counted from the last axis): what it is on R."""
    shape = edit.shape(x)
    axis = len(shape) + layout.axis
    if axis < 0:
        return x
    if shape[axis] == 1:
        return edit.call(aten.squeeze.dim, x, axis) if layout.rows == 1 else x
    if shape[axis] != layout.rows * edit.walk.batch:
        return None
    before, behind = shape[:axis], shape[axis + 1 :]
    wide = [*before, layout.outer, edit.walk.size, layout.inner, *behind]
    apart = edit.call(aten.reshape.default, x, wide)
    batch = axis + 1
    order = [batch, *(d for d in range(len(wide)) if d != batch)]
    front = edit.call(aten.permute.default, apart, order)
    own = [layout.rows] if layout.rows > 1 else []
    return edit.call(aten.reshape.default, front, [edit.walk.size, *before, *own, *behind])


def counted(shape: Sequence[int], layout: Layout) -> list[int]:
    """A sample of R with an axis for the rows of one sample, even for one row."""
    return [*shape[: layout.axis], layout.rows, *shape[layout.axis + 1 :]]


def has_dim(node: Node) -> bool:
    """True for an op of one value with an argument that names axes."""
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments or schema.arguments[0].name not in ("self", "input"):
        return False
    return any(a.name in _NAMES for a in schema.arguments)


def by_dim(edit: Folder, node: Node) -> Made:
    """A step along the axes that its argument names: each line along them on its own."""
    x: Any = node.args[0]
    own = edit.of(x)
    target: Any = node.target
    arguments = target._schema.arguments
    names = [a.name for a in arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    key = next(n for n in _NAMES if n in names)
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    dims: Any = given.get(key, defaults.get(key))
    several = isinstance(dims, list | tuple)
    others = [n for n in node.all_input_nodes if n is not x and edit.is_data(n)]
    if dims is None or dims == [] or others:
        return None
    axes = [int(d) % own.rank for d in (dims if several else [dims])]
    if own.layout.axis in axes:
        return _of_batch(edit, node, own) if len(axes) == 1 else None
    places = [own.place(d) for d in axes]
    full = {**defaults, **given, names[0]: own.data, key: places if several else places[0]}
    if node.target is aten.gather.default and own.layout != PLAIN:
        full["index"] = _index_of(edit, node, own, given["index"])
        if full["index"] is None:
            return None
    plain = [a.name for a in arguments if not a.kwarg_only]
    last = max(i for i, n in enumerate(plain) if n in given or n == key)
    args = [full[n] for n in plain[: last + 1]]
    made = edit.op(target, args, {n: given[n] for n in given if n not in plain})
    return _results(edit, node, own, made, sum(d < own.layout.axis for d in axes))


def _index_of(edit: Folder, node: Node, own: Folded, index: Node) -> Node | None:
    """Constant places, as many rows of them as V has, for R; None where the batch is not first."""
    shape, wide = edit.shape(index), edit.shape(node.args[0])
    layout = own.layout
    if (layout.axis, layout.outer) != (0, 1) or len(shape) != own.rank or shape[0] != wide[0]:
        return None
    return edit.rows(index, [layout.inner, *shape[1:]])


def _results(edit: Folder, node: Node, own: Folded, made: Node, before: int) -> Made:
    """R of what ``made`` computes; ``before`` of the axes may be gone before that of the batch."""
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    rank = len((value[0] if several else value).shape)
    gone = before if rank < own.rank else 0
    layout = own.layout._replace(axis=own.layout.axis - gone)
    if not several:
        return Folded(made, layout, rank)
    return [Folded(edit.call(operator.getitem, made, i), layout, rank) for i in range(len(value))]


def _of_batch(edit: Folder, node: Node, own: Folded) -> Made:
    """Along the axis with the batch: cuts that take whole outer rows of it, repeats of its rows."""
    layout, shape = own.layout, edit.shape(node.args[0])
    wide, at = counted(shape, layout), layout.axis + 1
    if node.target is aten.repeat_interleave.self_int:
        count: Any = node.args[1]
        made = edit.call(node.target, edit.rows(own.data, wide), count, at)
        return Folded(made, layout._replace(inner=layout.inner * count), own.rank)
    if node.target not in _CUTS and node.target is not aten.slice.Tensor:
        return None
    value = node.meta["val"]
    pieces = value if isinstance(value, tuple | list) else [value]
    sizes = [hint(piece.shape[layout.axis]) for piece in pieces]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if node.target is aten.slice.Tensor:
        if argument(node, 4, "step", 1) != 1:
            return None
        low = argument(node, 2, "start") or 0
        low = hint(low.meta["val"]) if isinstance(low, Node) else int(low)
        starts = [low + shape[layout.axis] if low < 0 else low]
    step = edit.walk.batch * layout.inner
    if any(n % step for n in (*starts, *sizes)) or not all(sizes):
        return None
    if sizes == [shape[layout.axis]] and not isinstance(value, tuple | list):
        return own
    parts = []
    for start, size in zip(starts, sizes, strict=True):
        low, high = (n // step * layout.inner for n in (start, start + size))
        cut = edit.call(aten.slice.Tensor, edit.rows(own.data, wide), at, low, high)
        new = layout._replace(outer=size // step)
        parts.append(Folded(edit.rows(cut, edit.spread(shape, new)), new, own.rank))
    return parts if isinstance(value, tuple | list) else parts[0]
