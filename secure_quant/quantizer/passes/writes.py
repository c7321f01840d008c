"""What functionalized writes and moves become: cuts and joins of values.

``h[:, 2:4] = y`` is the join of h before 2, y, and h behind 4. A fill is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.affine import affine
from secure_quant.quantizer.passes.indexing import (
    UNWRITTEN,
    Mover,
    argument,
    is_whole,
    length,
    rank_of,
)
from secure_quant.quantizer.passes.rearrange import (
    REARRANGE,
    constant_places,
    lone_index,
    on_one_axis,
)
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_writes"]

aten = torch.ops.aten


aten = torch.ops.aten


def lower_writes(module: GraphModule) -> None:
    """Rewrite scatters, fills, copies, gathers, repeats and pads of data. Raises
    UnsupportedModule for those over the batch or with places that depend on the input."""
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    batch = str(source.meta["val"].shape[0])
    for node in list(module.graph.nodes):
        rule = _RULES.get(node.target)
        edit = Mover(module, node)
        if _is_constant(edit, node):
            edit.replace(_fold(edit, node))
        elif rule is not None:
            data = [n for n in (node, *node.all_input_nodes) if _is_data(edit, n)]
            if any(not n.meta["val"].ndim or str(n.meta["val"].shape[0]) != batch for n in data):
                edit.axis(0, 1)  # raises
            made = rule(edit, node)
            if made is not node:
                edit.replace(made)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if node.meta.get(UNWRITTEN):
            raise unsupported(node, "memory that was never written", "start from zeros, not empty")


def _is_data(edit: Mover, node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor) and edit.value(node) is None


def _is_constant(edit: Mover, node: Node) -> bool:
    """True for a step that reads constants only, and sizes."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    tensors = [n for n in node.all_input_nodes if n.target is not aten.sym_size.int]
    return bool(tensors) and all(edit.value(n) is not None for n in tensors)


def _fold(edit: Mover, node: Node) -> Node:
    """What a step makes of constants [1, ...], for a batch of one."""

    def value(n: Node) -> Any:
        return 1 if n.target is aten.sym_size.int else edit.value(n)

    target: Any = node.target
    made = target(*torch.fx.map_arg(node.args, value), **torch.fx.map_arg(node.kwargs, value))
    return edit.constant(made)


def _slice_scatter(edit: Mover, node: Node) -> Node:
    base, source = argument(node, 0, "self"), argument(node, 1, "src")
    dim = argument(node, 2, "dim", 0) % rank_of(node)
    start, stop, step = (
        argument(node, 3, "start"),
        argument(node, 4, "end"),
        argument(node, 5, "step", 1),
    )
    shape = node.meta["val"].shape
    if dim == 0 and is_whole(start, stop, shape[0]) and step == 1:
        return edit.expand(source, shape)
    axis = edit.axis(dim, rank_of(node))
    return _write(edit, base, source, axis, range(*slice(start, stop, step).indices(shape[axis])))


def _select_scatter(edit: Mover, node: Node) -> Node:
    base, source, dim, index = (argument(node, i, n) for i, n in enumerate(
        ("self", "src", "dim", "index")))  # fmt: skip
    axis = edit.axis(dim, rank_of(node))
    value = edit.value(source)
    if value is None:
        source = edit.call(aten.unsqueeze.default, source, axis)
    else:
        source = edit.constant(value.unsqueeze(axis))
    place = index % length(base, axis)
    return _write(edit, base, source, axis, range(place, place + 1))


def _write(edit: Mover, base: Node, source: Node, axis: int, places: range | list[int]) -> Node:
    """``base`` with its elements at ``places`` along ``axis`` replaced by those of ``source``."""
    size = length(base, axis)
    sample = list(base.meta["val"].shape)
    sample[axis] = len(places)
    if not places:
        return base
    source = edit.expand(source, sample)
    if list(places) == list(range(places[0], places[0] + len(places))):
        before, after = (0, places[0]), (places[-1] + 1, size)
        parts = [edit.cut(base, axis, *part) for part in (before, after) if part[0] < part[1]]
        at = 1 if places[0] else 0
        return edit.join([*parts[:at], source, *parts[at:]], axis)
    order = list(range(size))
    for number, place in enumerate(places):
        order[place % size] = size + number
    both = edit.join([base, source], axis)
    return edit.gather(both, axis, order)


def _copy(edit: Mover, node: Node) -> Node:
    base: Any = node.args[0]
    source = node.args[1]
    shape = base.meta["val"].shape  # a write-back has none itself
    if not isinstance(source, Node):
        return edit.constant(torch.full((1, *map(int, shape[1:])), float(source)))  # type: ignore[arg-type]
    return edit.expand(source, shape)


def _fill(edit: Mover, node: Node) -> Node:
    value = node.args[1] if len(node.args) > 1 else 0.0
    if isinstance(value, Node):
        found = edit.value(value)
        if found is None or found.numel() != 1:
            raise unsupported(node, "a fill with a value that depends on the input")
        value = found.item()
    sample = [int(n) for n in node.meta["val"].shape[1:]]
    return edit.constant(torch.full((1, *sample), float(value)))  # type: ignore[arg-type]


def _index_write(edit: Mover, node: Node) -> Node:
    """index_copy, or index_fill with one value."""
    base: Node = argument(node, 0, "self")
    axis = edit.axis(argument(node, 1, "dim"), rank_of(node))
    places = constant_places(edit, node, argument(node, 2, "index"), length(base, axis))
    source = argument(node, 3, "source")
    if node.target is aten.index_copy.default:
        if len(set(places)) != len(places):
            raise unsupported(node, "a place that is written twice", "write each place once")
    else:
        value = edit.value(source) if isinstance(source, Node) else torch.tensor(float(source))
        if value is None:
            raise unsupported(node, "a fill with a value that depends on the input")
        places = sorted(set(places))
        source = edit.constant(value.reshape([1] * rank_of(node)))
    return _write(edit, base, source, axis, places)


def _masked_fill(edit: Mover, node: Node) -> Node:
    return _choose(
        edit, node, argument(node, 1, "mask"), argument(node, 2, "value"), argument(node, 0, "self")
    )


def _where(edit: Mover, node: Node) -> Node:
    return _choose(edit, node, *(argument(node, i, n) for i, n in enumerate(_WHERE)))


_WHERE = ("condition", "self", "other")


_MASKS = 1e4
"""A fill from here on means: never to be chosen."""


def _choose(edit: Mover, node: Node, mask: Any, yes: Any, no: Any) -> Node:
    """``yes`` where a constant mask holds, ``no`` elsewhere: x · keep + constant."""
    held = edit.value(mask) if isinstance(mask, Node) else None
    if held is None:
        raise unsupported(
            node, "a choice that depends on the input", "use relu or clamp, or a constant mask"
        )
    shape = node.meta["val"].shape
    sample = [int(n) for n in shape[1:]]
    keep = edit.broadcast(held, sample)
    fixed, parts = torch.zeros(1, *sample), []
    for given, chosen in ((yes, keep), (no, 1 - keep)):
        value = torch.tensor(given) if not isinstance(given, Node) else edit.value(given)
        if value is None:
            parts.append((edit.expand(given, shape), chosen))
        else:
            fixed += torch.where(chosen > 0, edit.broadcast(value, sample), 0.0)
    if not parts:
        return edit.constant(fixed)
    if bool((fixed.abs() >= _MASKS).any()):  # an additive mask; what is under it does not count
        return edit.call(aten.add.Tensor, parts[0][0], edit.constant(fixed))
    first, *others = (
        affine(edit.module, edit, data, chosen[0], fixed[0] if number == 0 else torch.zeros(sample))
        for number, (data, chosen) in enumerate(parts)
    )
    return edit.call(aten.add.Tensor, first, *others) if others else first


def _prelu(edit: Mover, node: Node) -> Node:
    """A slope below 0, one for all or one for each channel: relu(x) - slope · relu(-x)."""
    x: Node = argument(node, 0, "self")
    slope = edit.value(argument(node, 1, "weight"))
    if slope is None:
        raise unsupported(node, "a slope that depends on the input")
    if slope.numel() == 1:
        return edit.call(aten.leaky_relu.default, x, float(slope))
    sample = [int(n) for n in x.meta["val"].shape[1:]]
    scale = -torch.broadcast_to(slope.float().view(-1, *[1] * (len(sample) - 1)), sample)
    below = edit.call(aten.relu.default, edit.call(aten.neg.default, x))
    made = affine(edit.module, edit, below, scale, torch.zeros(sample))
    return edit.call(aten.add.Tensor, edit.call(aten.relu.default, x), made)


def _both_wide(edit: Mover, node: Node) -> Node:
    """Two data operands that broadcast each other: the first is expanded."""
    operands = node.args[:2]
    shape = node.meta["val"].shape
    if not all(isinstance(n, Node) and edit.value(n) is None for n in operands):
        return node
    if any(str(n.meta["val"].shape) == str(shape) for n in operands):  # type: ignore[union-attr]
        return node
    first: Any = operands[0]
    node.update_arg(0, edit.expand(first, shape))
    return node


def _as_data(edit: Mover, node: Node) -> Node:
    """Constants [1, ...] among data, in ops that have no form for them, become data; a mask does
    not."""
    attends = node.target is aten.scaled_dot_product_attention.default
    mask = argument(node, 3, "attn_mask") if attends else None
    for source in node.all_input_nodes:
        value = None if source is mask else edit.value(source)
        if value is not None and value.ndim == rank_of(node) and len(value) == 1:
            node.replace_input_with(source, edit.data(source))
    return node


def _index_put(edit: Mover, node: Node) -> Node:
    base, source = argument(node, 0, "self"), argument(node, 2, "values")
    if argument(node, 3, "accumulate", False):
        raise unsupported(node, "accumulate=True", "add a tensor with zeros elsewhere")
    axis, index = lone_index(edit, node, rank_of(node))
    places = constant_places(edit, node, index, length(base, axis))
    if len(set(places)) != len(places):
        raise unsupported(node, "a place that is written twice", "write each place once")
    return _write(edit, base, source, axis, places)


def _diagonal_scatter(edit: Mover, node: Node) -> Node:
    x: Node = argument(node, 0, "self")
    source: Any = node.args[1]
    offset, one, two = (
        argument(node, 2, "offset", 0),
        argument(node, 3, "dim1", 0),
        argument(node, 4, "dim2", 1),
    )
    flat, places, order = on_one_axis(edit, node, x, offset, one, two)
    made = _write(edit, flat, source, rank_of(flat) - 1, places)
    batch = edit.call(aten.sym_size.int, made, 0)
    moved = [int(x.meta["val"].shape[i]) for i in order[1:]]
    wide = edit.call(aten.reshape.default, made, [batch, *moved])
    back = [order.index(i) for i in range(len(order))]
    return edit.call(aten.permute.default, wide, back)


_RULES: dict[Any, Callable[[Mover, Node], Node]] = REARRANGE | {
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.copy.default: _copy,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.zero.default: _fill,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.prelu.default: _prelu,
    aten.add.Tensor: _both_wide,
    aten.sub.Tensor: _both_wide,
    aten.mul.Tensor: _both_wide,
    aten.matmul.default: _as_data,
    aten.bmm.default: _as_data,
    aten.scaled_dot_product_attention.default: _as_data,
    aten.index_copy.default: _index_write,
    aten.index_fill.int_Scalar: _index_write,
    aten.index_fill.int_Tensor: _index_write,
    aten.index_put.default: _index_put,
}
