"""What functionalized writes and moves become: cuts and joins of values.

``h[:, 2:4] = y`` is the join of h before 2, y, and h behind 4. A fill is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.affine import affine
from secure_quant.quantizer.passes.indexing import UNWRITTEN, Mover, is_whole, length
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_writes"]

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


def _get(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _rank(node: Node) -> int:
    return len(node.meta["val"].shape)


def _slice_scatter(edit: Mover, node: Node) -> Node:
    base, source = _get(node, 0, "self"), _get(node, 1, "src")
    dim = _get(node, 2, "dim", 0) % _rank(node)
    start, stop, step = _get(node, 3, "start"), _get(node, 4, "end"), _get(node, 5, "step", 1)
    shape = node.meta["val"].shape
    if dim == 0 and is_whole(start, stop, shape[0]) and step == 1:
        return edit.expand(source, shape)
    axis = edit.axis(dim, _rank(node))
    return _write(edit, base, source, axis, range(*slice(start, stop, step).indices(shape[axis])))


def _select_scatter(edit: Mover, node: Node) -> Node:
    base, source, dim, index = (_get(node, i, n) for i, n in enumerate(
        ("self", "src", "dim", "index")))  # fmt: skip
    axis = edit.axis(dim, _rank(node))
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
    source = node.args[1]
    shape = node.meta["val"].shape
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


def _masked_fill(edit: Mover, node: Node) -> Node:
    return _choose(edit, node, _get(node, 1, "mask"), _get(node, 2, "value"), _get(node, 0, "self"))


def _where(edit: Mover, node: Node) -> Node:
    return _choose(edit, node, *(_get(node, i, n) for i, n in enumerate(_WHERE)))


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
    """Constants [1, ...] among data, in ops that have no form for them, become data."""
    for source in node.all_input_nodes:
        value = edit.value(source)
        if value is not None and value.ndim == _rank(node) and len(value) == 1:
            node.replace_input_with(source, edit.data(source))
    return node


def _expand(edit: Mover, node: Node) -> Node:
    return edit.expand(_get(node, 0, "self"), node.meta["val"].shape)


def _repeat(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    counts: Any = node.args[1]
    if len(counts) != _rank(x) or counts[0] != 1:
        raise unsupported(node, "a repeat of the batch", "repeat axes of the sample")
    for axis, count in enumerate(counts):
        if axis and count != 1:
            x = edit.repeat(x, axis, count)
    return x


def _repeat_interleave(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    count, dim = _get(node, 1, "repeats"), _get(node, 2, "dim")
    if dim is None:
        raise unsupported(node, "a repeat over all axes", "give it dim=")
    axis = edit.axis(dim, _rank(x))
    return edit.gather(x, axis, [i for i in range(length(x, axis)) for _ in range(count)])


def _flip(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    dims: Any = node.args[1]
    for dim in dims:
        axis = edit.axis(dim, _rank(x))
        x = edit.gather(x, axis, list(range(length(x, axis)))[::-1])
    return x


def _roll(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    shifts: Any = node.args[1]
    dims: Any = _get(node, 2, "dims", [])
    if len(dims) != len(shifts):
        raise unsupported(node, "a roll over all axes", "give it dims=")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = edit.axis(dim, _rank(x))
        size = length(x, axis)
        x = edit.gather(x, axis, [(i - shift) % size for i in range(size)])
    return x


def _indices(edit: Mover, node: Node, index: Any, size: int) -> list[int]:
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
    x: Node = _get(node, 0, "self")
    axis = edit.axis(_get(node, 1, "dim"), _rank(x))
    return edit.gather(x, axis, _indices(edit, node, _get(node, 2, "index"), length(x, axis)))


def _lone_index(edit: Mover, node: Node, rank: int) -> tuple[int, Any]:
    """(axis, index) of an index with one tensor in it."""
    given: Any = node.args[1]
    found = [(dim, index) for dim, index in enumerate(given) if index is not None]
    if len(found) != 1:
        raise unsupported(node, "an index over several axes", "index one axis at a time")
    return edit.axis(found[0][0], rank), found[0][1]


def _index(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    axis, index = _lone_index(edit, node, _rank(x))
    return edit.gather(x, axis, _indices(edit, node, index, length(x, axis)))


def _index_put(edit: Mover, node: Node) -> Node:
    base, source = _get(node, 0, "self"), _get(node, 2, "values")
    if _get(node, 3, "accumulate", False):
        raise unsupported(node, "accumulate=True", "add a tensor with zeros elsewhere")
    axis, index = _lone_index(edit, node, _rank(node))
    places = _indices(edit, node, index, length(base, axis))
    if len(set(places)) != len(places):
        raise unsupported(node, "a place that is written twice", "write each place once")
    return _write(edit, base, source, axis, places)


def _pad(edit: Mover, node: Node) -> Node:
    """Padding of axes of the sample, with a constant or with what the mode says."""
    x: Node = _get(node, 0, "self")
    widths: Any = node.args[1]
    named = node.target is aten.pad.default
    mode = _get(node, 2, "mode", "constant") if named else "constant"
    value = _get(node, 3 if named else 2, "value", 0.0) or 0.0
    for number in range(len(widths) // 2):
        low, high = widths[2 * number : 2 * number + 2]
        if not (low or high):
            continue
        axis = edit.axis(-1 - number, _rank(x))
        size = length(x, axis)
        if mode == "constant":
            sides = [edit.constant(_block(x, axis, n, float(value))) for n in (low, high) if n > 0]
            kept = edit.cut(x, axis, max(-low, 0), size - max(-high, 0))
            at = 1 if low > 0 else 0
            x = edit.join([*sides[:at], kept, *sides[at:]], axis)
        else:
            x = edit.gather(x, axis, [_source(i, size, mode) for i in range(-low, size + high)])
    return x


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
    dim = _get(node, 1, "dim", 0)
    kept = [n for n in given if edit.value(n) is None or edit.value(n).numel()]  # type: ignore[union-attr]
    if len(kept) > 1 and all(edit.value(n) is None for n in kept):
        return node
    return edit.join(kept, edit.axis(dim, _rank(node)))


def _stack(edit: Mover, node: Node) -> Node:
    given: Any = node.args[0]
    axis = edit.axis(_get(node, 1, "dim", 0), _rank(node))
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
    x: Node = _get(node, 0, "self")
    dim = _get(node, 1, "dim", 0) % _rank(node)
    start, stop, step = _get(node, 2, "start"), _get(node, 3, "end"), _get(node, 4, "step", 1)
    if dim == 0 and step == 1 and is_whole(start, stop, node.meta["val"].shape[0]):
        return x
    if dim == 0 or step != 1 or x.target is not aten.cat.default:
        return node
    low, high, _ = slice(start, stop).indices(length(x, dim))
    return edit.cut(x, dim, low, high) if low < high else node


_DIAGONAL = ("offset", "dim1", "dim2")
"""Their defaults are 0, 0, 1."""


def _diagonal(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    offset, one, two = (
        _get(node, 1, "offset", 0),
        _get(node, 2, "dim1", 0),
        _get(node, 3, "dim2", 1),
    )
    flat, places, _ = _on_one_axis(edit, node, x, offset, one, two)
    return edit.gather(flat, _rank(flat) - 1, places)


def _diagonal_scatter(edit: Mover, node: Node) -> Node:
    x: Node = _get(node, 0, "self")
    source: Any = node.args[1]
    offset, one, two = (
        _get(node, 2, "offset", 0),
        _get(node, 3, "dim1", 0),
        _get(node, 4, "dim2", 1),
    )
    flat, places, order = _on_one_axis(edit, node, x, offset, one, two)
    made = _write(edit, flat, source, _rank(flat) - 1, places)
    batch = edit.call(aten.sym_size.int, made, 0)
    moved = [int(x.meta["val"].shape[i]) for i in order[1:]]
    wide = edit.call(aten.reshape.default, made, [batch, *moved])
    back = [order.index(i) for i in range(len(order))]
    return edit.call(aten.permute.default, wide, back)


def _on_one_axis(
    edit: Mover, node: Node, x: Node, offset: int, one: int, two: int
) -> tuple[Node, list[int], list[int]]:
    """x with the axes of a diagonal moved last and joined, the diagonal's places, the order."""
    rank = _rank(x)
    a, b = edit.axis(one, rank), edit.axis(two, rank)
    order = [i for i in range(rank) if i not in (a, b)] + [a, b]
    rows, columns = length(x, a), length(x, b)
    places = [i * columns + i + offset for i in range(rows) if 0 <= i + offset < columns]
    turned = x if order == list(range(rank)) else edit.call(aten.permute.default, x, order)
    batch = edit.call(aten.sym_size.int, x, 0)
    kept = [int(x.meta["val"].shape[i]) for i in order[1:-2]]
    flat = edit.call(aten.reshape.default, turned, [batch, *kept, rows * columns])
    return flat, places, order


_RULES: dict[Any, Callable[[Mover, Node], Node]] = {
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.diagonal.default: _diagonal,
    aten.copy.default: _copy,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.zero.default: _fill,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.add.Tensor: _both_wide,
    aten.sub.Tensor: _both_wide,
    aten.mul.Tensor: _both_wide,
    aten.matmul.default: _as_data,
    aten.bmm.default: _as_data,
    aten.scaled_dot_product_attention.default: _as_data,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.repeat.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
