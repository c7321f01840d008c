"""What each op is on R, for ``batch_first``: the rows of one sample, with the batch before them."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.opset import ELEMENTWISE
from secure_quant.quantizer.passes.batch_axes import (
    aligned,
    by_dim,
    constant_beside,
    counted,
    has_dim,
)
from secure_quant.quantizer.passes.batch_layout import PLAIN, Folded, Folder, Layout, Made
from secure_quant.quantizer.passes.batch_rows import ROWS
from secure_quant.quantizer.passes.indexing import argument

__all__ = ["MOVING", "rule_of"]

aten = torch.ops.aten
Rule = Callable[[Folder, Node], Made]


def _reshape(edit: Folder, node: Node) -> Made:
    """Whatever regroups axes in row-major order."""
    x: Any = node.args[0]
    own, shape, new = edit.of(x), edit.shape(x), edit.shape(node)
    layout = _landing(own.layout, shape, new, edit.walk.batch)
    if layout is None or own.layout == layout == PLAIN:
        return None
    return Folded(edit.rows(own.data, edit.spread(new, layout)), layout, len(new))


def _landing(layout: Layout, shape: Sequence[int], new: Sequence[int], batch: int) -> Layout | None:
    """Where the batch is after a reshape; None where it is cut."""
    before, place = math.prod(shape[: layout.axis]) * layout.outer, 1
    for axis, size in enumerate(new):
        if place <= before < place * size:
            outer = before // place
            if before % place or size % (outer * batch):
                return None
            return Layout(axis, outer, size // (outer * batch))
        place *= size
    return None


def _order(node: Node) -> list[int] | None:
    """Which axis of its input each axis of ``node`` is."""
    rank, target = len(node.meta["val"].shape), node.target
    order = list(range(rank))
    args: Any = node.args
    if target is aten.permute.default:
        return [d % rank for d in args[1]]
    if target in (aten.movedim.int, aten.moveaxis.int):
        order.insert(args[2] % rank, order.pop(args[1] % rank))
    elif target in (aten.movedim.intlist, aten.moveaxis.intlist):
        taken = {b % rank: a % rank for a, b in zip(*args[1:3], strict=True)}
        free = iter([d for d in order if d not in taken.values()])
        order = [taken[d] if d in taken else next(free) for d in order]
    elif target is aten.numpy_T.default:
        order.reverse()
    elif rank > 1:
        a, b = argument(node, 1, "dim0", -2), argument(node, 2, "dim1", -1)
        a, b = (d % rank for d in (a, b))
        order[a], order[b] = order[b], order[a]
    return order


_NAMES = {aten.swapaxes.default, aten.swapdims.default, aten.movedim.int, aten.movedim.intlist,
          aten.moveaxis.int, aten.moveaxis.intlist,
          aten.numpy_T.default}  # fmt: skip
"""Permutations that no later pass knows."""


def _permute(edit: Folder, node: Node) -> Made:
    own, order = edit.of(node.args[0]), _order(node)
    if order is None or not order:
        return None
    layout = own.layout._replace(axis=order.index(own.layout.axis))
    if own.layout == layout == PLAIN and node.target not in _NAMES:
        return None
    places = [own.layout.axis + 1 if (p := own.place(d)) is None else p
              for d in order if d != own.layout.axis or layout.rows > 1]  # fmt: skip
    return Folded(edit.permuted(own.data, [0, *places]), layout, len(order))


def _broadcast(edit: Folder, node: Node) -> Made:
    """A function of elements, of one value or of several that broadcast."""
    found = aligned(edit, node.args)
    if found is None or any(edit.is_data(v) for v in node.kwargs.values()):
        return None
    made, layout = found
    rank = len(node.meta["val"].shape)
    return Folded(
        edit.op(node.target, made, node.kwargs), layout._replace(axis=rank + layout.axis), rank
    )


def _matmul(edit: Folder, node: Node) -> Made:
    a, b = node.args[:2]
    rank = len(node.meta["val"].shape)
    if edit.is_data(a) and not edit.is_data(b) and len(edit.shape(b)) < 3:
        own = edit.of(a)
        if own.layout.axis == own.rank - 1:
            return None
        return Folded(edit.call(aten.matmul.default, own.data, b), own.layout, rank)
    found = aligned(edit, (a, b), tail=2)
    if found is None:
        return None
    layout = found[1]._replace(axis=rank + found[1].axis)
    return Folded(edit.call(aten.matmul.default, *found[0]), layout, rank)


def _addmm(edit: Folder, node: Node) -> Made:
    own = edit.of(node.args[1])
    plain = not node.kwargs and not any(edit.is_data(node.args[i]) for i in (0, 2))
    if not plain or own.layout.axis != 0 or len(edit.shape(node.args[0])) != 1:
        return None
    made = edit.call(aten.matmul.default, own.data, node.args[2])
    return Folded(edit.call(aten.add.Tensor, made, node.args[0]), own.layout, own.rank)


def _baddbmm(edit: Folder, node: Node) -> Made:
    """beta · input + alpha · (a @ b)."""
    found = aligned(edit, node.args[:3], tail=2)
    if found is None or len(node.args) > 3:
        return None
    (shift, a, b), relative = found
    made = edit.call(aten.matmul.default, a, b)
    alpha: Any = node.kwargs.get("alpha", 1)
    beta: Any = node.kwargs.get("beta", 1)
    made = made if alpha == 1 else edit.call(aten.mul.Tensor, made, alpha)
    if beta != 0:
        shift = shift if beta == 1 else edit.call(aten.mul.Tensor, shift, beta)
        made = edit.call(aten.add.Tensor, made, shift)
    return Folded(made, relative._replace(axis=3 + relative.axis), 3)


def _attention(edit: Folder, node: Node) -> Made:
    mask = argument(node, 3, "attn_mask")
    found = aligned(edit, [*node.args[:3], *([] if mask is None else [mask])], tail=2)
    if found is None:
        return None
    made, layout = found
    rest = {"attn_mask": made[3]} if mask is not None else {}
    names = ("dropout_p", "is_causal")
    given = dict(zip(names, node.args[4:], strict=False))
    kwargs = {k: v for k, v in node.kwargs.items() if k != "attn_mask"} | given | rest
    rank = len(node.meta["val"].shape)
    return Folded(
        edit.op(node.target, made[:3], kwargs), layout._replace(axis=rank + layout.axis), rank
    )


def _last(edit: Folder, node: Node) -> Made:
    """linear and norms over the last axes."""
    own = edit.of(node.args[0])
    over: Any = node.args[1]
    if any(edit.is_data(x) for x in node.args[1:]):
        return None
    axes = 1 if isinstance(over, Node) else len(over)
    if own.layout.axis >= own.rank - axes:
        return None
    return Folded(edit.op(node.target, (own.data, *node.args[1:]), node.kwargs), own.layout,
                  own.rank)  # fmt: skip


def _expand(edit: Folder, node: Node) -> Made:
    """Axes of size 1 made longer, and axes put before the others."""
    own, shape, new = edit.of(node.args[0]), edit.shape(node.args[0]), edit.shape(node)
    more = len(new) - len(shape)
    layout = own.layout._replace(axis=own.layout.axis + more)
    if layout == own.layout == PLAIN:
        return None
    wide = edit.rows(own.data, [*[1] * more, *edit.spread(shape, own.layout)])
    sample = edit.spread(new, layout)
    if edit.shape(wide)[1:] != sample:
        wide = edit.call(aten.expand.default, wide, [edit.walk.size, *sample])
    return Folded(wide, layout, len(new))


def _repeat(edit: Folder, node: Node) -> Made:
    """The whole so many times along each axis."""
    own, shape = edit.of(node.args[0]), edit.shape(node.args[0])
    given: Any = node.args[1]
    counts = [1] * (len(shape) - len(given)) + list(given)
    more = len(counts) - len(shape)
    axis = own.layout.axis + more
    layout = Layout(axis, own.layout.outer * counts[axis], own.layout.inner)
    if layout == own.layout == PLAIN and node.target is aten.repeat.default:
        return None
    old = own.layout._replace(axis=axis)
    wide = edit.rows(own.data, counted([*[1] * more, *shape], old))
    made = edit.call(aten.repeat.default, wide, [1, *counts])
    new = [c * n for c, n in zip(counts, [*[1] * more, *shape], strict=True)]
    return Folded(edit.rows(made, edit.spread(new, layout)), layout, len(new))


def _join(edit: Folder, node: Node) -> Made:
    """cat and stack."""
    parts: Any = node.args[0]
    stacked = node.target is aten.stack.default
    rank = len(edit.shape(node))
    dim = argument(node, 1, "dim", 0) % rank
    data = [edit.of(x) for x in parts if edit.is_data(x)]
    layout = data[0].layout
    if all(own.layout == PLAIN for own in data) and dim != 0:
        return None
    if not stacked and dim == layout.axis:
        return _joined_rows(edit, node, [edit.of(x) for x in parts], len(data))
    if any(own.layout != layout for own in data):
        return None
    relative = layout._replace(axis=layout.axis - data[0].rank)
    found = []
    for x in parts:
        own = edit.of(x).data if edit.is_data(x) else constant_beside(edit, x, relative)
        if own is None:
            return None
        found.append(own)
    made = layout._replace(axis=layout.axis + 1) if stacked and dim <= layout.axis else layout
    place = Folded(node, made, rank).place(dim)
    return Folded(edit.call(node.target, found, place), made, rank)


def _joined_rows(edit: Folder, node: Node, parts: list[Folded], data: int) -> Made:
    """Along the axis with the batch: rows of each sample beside each other."""
    layout = parts[0].layout
    same = all(p.layout.axis == layout.axis and p.layout.inner == 1 for p in parts)
    if not same or data != len(parts):
        return None
    given: Any = node.args[0]
    shapes = [edit.shape(x) for x in given]
    wide = [edit.rows(p.data, counted(s, p.layout)) for p, s in zip(parts, shapes, strict=True)]
    made = edit.call(aten.cat.default, wide, layout.axis + 1)
    outer = sum(p.layout.outer for p in parts)
    return Folded(made, layout._replace(outer=outer), parts[0].rank)


def _einsum(edit: Folder, node: Node) -> Made:
    """The letter of the batch first everywhere; the rows of a sample get a letter of their own."""
    equation: Any = node.args[0]
    parts: Any = node.args[1]
    if "..." in equation or "->" not in equation:
        return None
    terms, out = (side.split(",") for side in equation.replace(" ", "").split("->"))
    data = [(t, edit.of(x)) for t, x in zip(terms, parts, strict=True) if edit.is_data(x)]
    letters = {(t[own.layout.axis], own.layout[1:]) for t, own in data}
    if len(letters) != 1 or not out[0]:
        return None
    ((letter, (outer, inner)),) = letters
    if letter not in out[0]:
        return None
    layout = Layout(out[0].index(letter), outer, inner)
    if layout == PLAIN and all(own.layout == PLAIN for _, own in data):
        return None
    if any(letter in t for t, x in zip(terms, parts, strict=True) if not edit.is_data(x)):
        return None
    rows = next(c for c in string.ascii_letters if c not in equation) if layout.rows > 1 else ""
    new = ",".join(
        letter + t.replace(letter, rows) if edit.is_data(x) else t
        for t, x in zip(terms, parts, strict=True)
    )
    own = [edit.of(x).data if edit.is_data(x) else x for x in parts]
    made = edit.call(node.target, f"{new}->{letter}{out[0].replace(letter, rows)}", own)
    return Folded(made, layout, len(out[0]))


def _pad(edit: Folder, node: Node) -> Made:
    """Of last axes, which are R's last too. Modes but constant ask for an axis or two before."""
    own = edit.of(node.args[0])
    widths: Any = node.args[1]
    axes, new = len(widths) // 2, edit.shape(node)
    if own.layout.axis >= own.rank - axes:
        return None
    sample = edit.shape(own.data)[1:]
    wide = edit.rows(own.data, [math.prod(sample[:-axes]), *sample[-axes:]])
    made = edit.op(node.target, (wide, *node.args[1:]), node.kwargs)
    return Folded(edit.rows(made, edit.spread(new, own.layout)), own.layout, own.rank)


def _index(edit: Folder, node: Node) -> Made:
    """One constant vector of places."""
    own = edit.of(node.args[0])
    given: Any = node.args[1]
    found = [(dim, index) for dim, index in enumerate(given) if index is not None]
    if len(found) != 1 or edit.is_data(found[0][1]) or len(edit.shape(found[0][1])) != 1:
        return None
    place = own.place(found[0][0])
    if place is None:
        return None
    made = edit.call(aten.index.Tensor, own.data, [*[None] * place, found[0][1]])
    return Folded(made, own.layout, own.rank)


def _scatter(edit: Folder, node: Node) -> Made:
    """A functional write along one axis, of a slice or, where the source lacks that, of a place."""
    base: Any = node.args[0]
    source: Any = node.args[1]
    rank = len(edit.shape(node))
    dim = argument(node, 2, "dim", 0) % rank
    lacks = node.target is aten.select_scatter.default
    found = []
    for x, own in ((base, False), (source, lacks)):
        if edit.is_data(x):
            layout = edit.of(x).layout
            found.append(layout._replace(axis=layout.axis + (own and dim <= layout.axis)))
    layout = found[0]
    if layout.axis == dim or any(other != layout for other in found):
        return None
    places = (layout.axis - rank, layout.axis - rank + (lacks and dim > layout.axis))
    values = [
        edit.of(x).data if edit.is_data(x) else constant_beside(edit, x, layout._replace(axis=at))
        for x, at in zip((base, source), places, strict=True)
    ]
    if None in values:
        return None
    place = Folded(node, layout, rank).place(dim)
    made = edit.op(node.target, (*values, place, *node.args[3:]), node.kwargs)
    return Folded(made, layout, rank)


_RESHAPES = (
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.view_as.default, aten.reshape_as.default,
)  # fmt: skip
_PERMUTES = (aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, *_NAMES)
_EXPANDS = (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
MOVING: Mapping[Any, Rule] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_PERMUTES, _permute),
    **dict.fromkeys(_EXPANDS, _expand),
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.cat.default: _join,
    aten.stack.default: _join,
    aten.einsum.default: _einsum,
    aten.repeat_interleave.self_int: by_dim,
}
"""Ops that may move the batch away from the front."""
_RULES: Mapping[Any, Rule] = {
    **ROWS,
    **MOVING,
    aten.linear.default: _last,
    aten.layer_norm.default: _last,
    aten.rms_norm.default: _last,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.index.Tensor: _index,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.copy.default: _broadcast,
    aten.fill.Scalar: _broadcast,
    aten.fill.Tensor: _broadcast,
    aten.zero.default: _broadcast,
    aten.select_scatter.default: _scatter,
    aten.slice_scatter.default: _scatter,
    **dict.fromkeys(ELEMENTWISE, _broadcast),
}


def rule_of(node: Node) -> Rule | None:
    """The rule of an op; None where there is none."""
    found = _RULES.get(node.target)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _broadcast
    return by_dim if found is None and has_dim(node) else found
