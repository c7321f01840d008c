"""Comparisons, choices that depend on values, and the larger of two values.

A comparison is a function of one value, 0 or 1: the sign of a difference. ``where`` of it is the
sum of both values, each times 0 or 1. Of what is one value's function all of it is one table. The
larger of two values is the maximum of both side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import REARRANGING, find_roots
from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.passes.indexing import Mover, argument
from secure_quant.quantizer.passes.real_ports import BETWEEN
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_choices", "negated_maximum"]

aten = torch.ops.aten

_Step = Callable[[Editor, Node], Node]


def lower_choices(module: GraphModule) -> None:
    """Every comparison of data, what reads it, and every maximum and minimum of two, in place.
    Raises UnsupportedModule for choices between values without bound."""
    walk = _Choices(module)
    for node in list(module.graph.nodes):
        walk.follow(node)
        rule = _RULES.get(node.target)
        if rule is not None and node in walk.roots:
            edit = Mover(module, node)
            made = rule(walk, edit, node)
            if made is not None:
                walk.roots[made] = walk.root_of(made)
                edit.replace(made)
    module.graph.eliminate_dead_code()


class _Choices:
    """One walk. ``truths`` are the nodes that are 0 or 1, ``counts`` sums of such; ``roots`` as
    find_roots has them."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.roots = find_roots(list(module.graph.nodes))
        self.truths: set[Node] = set()
        self.counts: set[Node] = set()

    def follow(self, node: Node) -> None:
        """What only moves truths or counts is such, and a sum of them a count."""
        source = node.args[0] if node.args else None
        for known in (self.truths, self.counts):
            if source in known and node.target in REARRANGING:
                known.add(node)
        if source in self.truths | self.counts and node.target is aten.sum.dim_IntList:
            self.counts.add(node)

    def root_of(self, node: Node) -> Node:
        """The node whose function ``node``, just made, is; itself if of several."""
        found: set[Node] = set()
        pending = [node]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source in self.roots:
                    found.add(self.roots[source])
                else:
                    pending.append(source)
        return found.pop() if len(found) == 1 else node

    def truth(self, node: Node) -> Node:
        self.truths.add(node)
        return node

    def number_of(self, edit: Mover, node: Node, value: Any) -> Any:
        """A truth, a mask, or whether a value is not 0, as 0 or 1."""
        held = edit.value(value) if isinstance(value, Node) else None
        if held is not None:
            return edit.constant(held.bool().float())
        if value in self.truths:
            return value
        if not value.meta["val"].dtype.is_floating_point:
            raise unsupported(node, "a choice by a value that is no comparison", "compare it")
        return _either(edit, edit.call(aten.sign.default, value))


def _complement(edit: Editor, x: Node) -> Node:
    return edit.call(aten.rsub.Scalar, x, 1.0)


def _positive(edit: Editor, sign: Node) -> Node:
    return edit.call(aten.relu.default, sign)


def _negative(edit: Editor, sign: Node) -> Node:
    return edit.call(aten.relu.default, edit.call(aten.neg.default, sign))


def _either(edit: Editor, sign: Node) -> Node:
    return edit.call(aten.abs.default, sign)


def _compared(step: _Step, *, inverse: bool) -> Callable[[_Choices, Mover, Node], Node]:
    """``step`` of the sign of a - b, or 1 less that."""

    def rule(walk: _Choices, edit: Mover, node: Node) -> Node:
        a, b = argument(node, 0, "self"), argument(node, 1, "other")
        if a in walk.counts and isinstance(b, int):
            return walk.truth(_counted(edit, node, a, b))
        apart = edit.call(aten.sub.Tensor, a, b) if b != 0 else a
        made = step(edit, edit.call(aten.sign.default, apart))
        return walk.truth(_complement(edit, made) if inverse else made)

    return rule


def _counted(edit: Mover, node: Node, count: Any, number: int) -> Node:
    """A count compared with a whole number: with the middle between two, which rounding of the
    count does not reach."""
    size, threshold = BETWEEN[str(node.target).removeprefix("aten.").split(".")[0]]
    apart = edit.call(aten.sub.Tensor, count, number)
    if node.target in (aten.eq.Scalar, aten.ne.Scalar):
        apart = edit.call(aten.abs.default, apart)
    step = _positive if size is aten.gt.Scalar else _negative
    beyond = edit.call(aten.sub.Tensor, apart, threshold)
    return step(edit, edit.call(aten.sign.default, beyond))


def _never(walk: _Choices, edit: Mover, node: Node) -> Node:
    """Whether a value is NaN or infinite: integers are neither, and such inputs are refused."""
    return walk.truth(edit.call(aten.mul.Tensor, node.args[0], 0.0))


def _always(walk: _Choices, edit: Mover, node: Node) -> Node:
    return walk.truth(_complement(edit, edit.call(aten.mul.Tensor, node.args[0], 0.0)))


def _not(walk: _Choices, edit: Mover, node: Node) -> Node:
    return walk.truth(_complement(edit, walk.number_of(edit, node, node.args[0])))


def _and(walk: _Choices, edit: Mover, node: Node) -> Node:
    a, b = (walk.number_of(edit, node, n) for n in node.args[:2])
    return walk.truth(edit.call(aten.mul.Tensor, a, b))


def _or(walk: _Choices, edit: Mover, node: Node) -> Node:
    a, b = (_complement(edit, walk.number_of(edit, node, n)) for n in node.args[:2])
    return walk.truth(_complement(edit, edit.call(aten.mul.Tensor, a, b)))


def _either_or(walk: _Choices, edit: Mover, node: Node) -> Node:
    a, b = (walk.number_of(edit, node, n) for n in node.args[:2])
    return walk.truth(edit.call(aten.abs.default, edit.call(aten.sub.Tensor, a, b)))


def _asked(walk: _Choices, node: Node) -> list[int] | None:
    """The axes of ``any`` or ``all``; None where it asks all values, or flags of an input."""
    x: Any = node.args[0]
    dims: Any = argument(node, 1, "dim")
    if dims is None or not (x in walk.truths or x.meta["val"].dtype.is_floating_point):
        return None
    return list(dims) if isinstance(dims, list | tuple) else [dims]


def _any(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    """Whether one holds, over axes: the largest."""
    dims = _asked(walk, node)
    if dims is None:
        return None
    x = walk.number_of(edit, node, node.args[0])
    return walk.truth(edit.call(aten.amax.default, x, dims, argument(node, 2, "keepdim", False)))


def _all(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    """Whether all hold: not the negation of any."""
    dims = _asked(walk, node)
    if dims is None:
        return None
    x = _complement(edit, walk.number_of(edit, node, node.args[0]))
    made = edit.call(aten.amax.default, x, dims, argument(node, 2, "keepdim", False))
    return walk.truth(_complement(edit, made))


def _cast(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    """A truth as a number is itself, and a count as a float."""
    x: Any = node.args[0]
    dtype = node.meta["val"].dtype
    if x not in walk.truths and (x not in walk.counts or dtype is torch.bool):
        return None
    node.replace_all_uses_with(x)
    return None


def _where(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    names = ("condition", "self", "other")
    condition, yes, no = (argument(node, i, name) for i, name in enumerate(names))
    return _chosen(walk, edit, node, condition, yes, no)


def _masked_fill(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    x, mask, value = (argument(node, i, n) for i, n in enumerate(("self", "mask", "value")))
    return _chosen(walk, edit, node, mask, value, x)


def _index_put(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    """``h[h < 0] = 0``, one number where a comparison holds; None for places."""
    x, places, value = (argument(node, i, n) for i, n in enumerate(("self", "indices", "values")))
    mask = places[0] if len(places) == 1 else None
    held = edit.value(value)
    if mask not in walk.truths or mask.meta["val"].shape != x.meta["val"].shape:
        return None
    if argument(node, 3, "accumulate", False) or held is None or held.numel() != 1:
        return None
    return _chosen(walk, edit, node, mask, float(held), x)


def _chosen(
    walk: _Choices, edit: Mover, node: Node, condition: Any, yes: Any, no: Any
) -> Node | None:
    """condition · yes + (1 - condition) · no; None for a constant condition."""
    if edit.value(condition) is not None:
        return None
    condition = walk.number_of(edit, node, condition)
    parts: list[Node] = []
    for value, inverse in ((yes, False), (no, True)):
        held = edit.value(value) if isinstance(value, Node) else torch.tensor(float(value))
        if held is not None and not bool(torch.isfinite(held).all()):
            raise unsupported(
                node,
                "infinity where a value decides",
                "fill with a number a little beyond the values that there are",
            )
        if held is not None and not bool(held.any()):
            continue
        factor = _complement(edit, condition) if inverse else condition
        if held is not None and held.numel() == 1:
            value = float(held)
        parts.append(factor if value == 1 else edit.call(aten.mul.Tensor, factor, value))
    if not parts:
        return edit.call(aten.mul.Tensor, condition, 0.0)
    return parts[0] if len(parts) == 1 else edit.call(aten.add.Tensor, *parts)


def negated_maximum(edit: Editor, x: Node, dims: Any, keep: Any = False) -> Node:
    """The minimum over ``dims``."""
    below = edit.call(aten.amax.default, edit.call(aten.neg.default, x), dims, keep)
    return edit.call(aten.neg.default, below)


def _amin(_: _Choices, edit: Mover, node: Node) -> Node:
    x, dims = argument(node, 0, "self"), argument(node, 1, "dim", [])
    return negated_maximum(edit, x, dims, argument(node, 2, "keepdim", False))


def _extreme(largest: bool) -> Callable[[_Choices, Mover, Node], Node | None]:
    def rule(walk: _Choices, edit: Mover, node: Node) -> Node | None:
        a, b = node.args[:2]
        roots = {walk.roots[n] for n in (a, b) if n in walk.roots}  # type: ignore[index]
        if len(roots) == 1 and all(n in walk.roots for n in (a, b)):
            return None  # both are functions of one value: so is this
        return _side_by_side(edit, a, b, node.meta["val"].shape, largest=largest)

    return rule


def _side_by_side(edit: Mover, a: Any, b: Any, shape: Any, *, largest: bool) -> Node:
    """The larger, or smaller, of two values, one of which may be a constant or a number."""
    for x, bound in ((a, b), (b, a)):
        held = edit.value(bound) if isinstance(bound, Node) else torch.tensor(float(bound))
        if held is not None and held.numel() == 1 and list(x.meta["val"].shape) == list(shape):
            clamp = aten.clamp_min.default if largest else aten.clamp_max.default
            return edit.call(clamp, x, float(held))
    if not largest:
        a, b = (
            edit.call(aten.neg.default, n)
            if edit.value(n) is None
            else edit.constant(-edit.value(n))  # type: ignore[operator]
            for n in (a, b)
        )
    wide = []
    for part in (a, b):
        part = edit.expand(part, shape)
        held = edit.value(part)
        wide.append(
            edit.call(aten.unsqueeze.default, part, -1)
            if held is None
            else edit.constant(held.unsqueeze(-1))
        )
    made = edit.call(aten.amax.default, edit.join(wide, len(shape)), [-1])
    return made if largest else edit.call(aten.neg.default, made)


def _clamp(walk: _Choices, edit: Mover, node: Node) -> Node | None:
    """Bounds that are values or constants."""
    x = argument(node, 0, "self")
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if node.target is aten.clamp_max.Tensor:
        low, high = None, argument(node, 1, "max")
    shape = node.meta["val"].shape
    for bound, largest in ((low, True), (high, False)):
        if bound is not None:
            x = _side_by_side(edit, x, bound, shape, largest=largest)
    return x  # type: ignore[no-any-return]


_COMPARISONS: Mapping[str, tuple[_Step, bool]] = {
    "gt": (_positive, False),
    "lt": (_negative, False),
    "ge": (_negative, True),
    "le": (_positive, True),
    "ne": (_either, False),
    "eq": (_either, True),
}
"""Name -> what it is of the sign of a difference, and whether 1 less that."""

_RULES: dict[Any, Callable[[_Choices, Mover, Node], Node | None]] = {
    **{
        getattr(getattr(aten, name), kind): _compared(step, inverse=inverse)
        for name, (step, inverse) in _COMPARISONS.items()
        for kind in ("Scalar", "Tensor")
    },
    **dict.fromkeys((aten.logical_not.default, aten.bitwise_not.default), _not),
    **{
        op: rule
        for name, rule in (("and", _and), ("or", _or), ("xor", _either_or))
        for op in (
            getattr(aten, f"logical_{name}").default,
            getattr(aten, f"bitwise_{name}").Tensor,
            getattr(aten, f"__{name}__").Tensor,
        )
    },
    **dict.fromkeys((aten.isnan.default, aten.isinf.default), _never),
    aten.isfinite.default: _always,
    **dict.fromkeys((aten.any.dim, aten.any.dims), _any),
    **dict.fromkeys((aten.all.dim, aten.all.dims), _all),
    **dict.fromkeys((aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout), _cast),
    **dict.fromkeys((aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther), _where),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _masked_fill),
    **dict.fromkeys((aten.maximum.default, aten.max.other), _extreme(True)),
    **dict.fromkeys((aten.minimum.default, aten.min.other), _extreme(False)),
    aten.index_put.default: _index_put,
    aten.amin.default: _amin,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.Tensor: _clamp,
}
