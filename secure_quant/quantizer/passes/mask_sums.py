"""Scores that an input hides by sums and fills: taken apart into scores and what is kept of them.

``scores + where(mask, 0, min)``, ``scores + (1 - mask) * -1e4``, ``masked_fill(~mask, -inf)`` and
sums of these with constants, in any order and behind any moves, are all one thing: scores, to which
constants are added, and a factor of 0 or 1. A number below -1000 hides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.opset import CASTS
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.passes.truths import MOVES, Truths
from secure_quant.quantizer.refuse import unsupported

__all__ = ["Hidden", "Sums", "Under", "lower_fills"]

aten = torch.ops.aten

FAR = 1000.0
"""Below the others by so much a score is nothing, whatever scores there are."""
_DEEPEST = 1e30
_WHERE = {
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
}  # fmt: skip
_FILL = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}


@dataclass(frozen=True)
class Hidden:
    """base: what is added to every score, None for nothing. kept: 1 where a score counts. depth: of
    the rest below the others."""

    base: Node | None
    kept: Node
    depth: float


@dataclass(frozen=True)
class Under:
    """As Hidden, of scores: base are the scores themselves."""

    base: Node
    kept: Node
    depth: float


class Sums:
    """In front of ``where``. masks: nodes that depend on masks and on no data."""

    def __init__(self, module: GraphModule, where: Node, masks: set[Node], truths: Truths) -> None:
        self._module, self._edit = module, Editor(module, where)
        self._masks, self._truths = masks, truths

    def under(self, x: Node) -> Under | None:
        """Scores ``x`` that an input hides; None for others."""
        try:
            return self._under(x)
        except UnsupportedModule:
            return None  # arithmetic with a mask, which is no mask of scores: read as it stands

    def _under(self, x: Node) -> Under | None:
        args: Any = x.args
        if x.target in (aten.add.Tensor, aten.add_.Tensor) and not x.kwargs:
            for scores, other in (args, args[::-1]):
                if isinstance(other, Node) and other in self._masks and scores not in self._masks:
                    return self._joined(scores, self.of(other))
            for scores, other in (args, args[::-1]):
                inner = self._under(scores) if self._is_constant(other) else None
                if inner is not None:
                    made = self._edit.call(aten.add.Tensor, inner.base, other)
                    return Under(made, inner.kept, inner.depth)
            return None
        if x.target in MOVES and x.target is not aten.select.int:
            return self._moved(x)
        found = self._filled(x)
        if found is None or found[0] in self._masks or not isinstance(found[0], Node):
            return None
        scores, kept, depth = found
        return self._joined(scores, Hidden(None, kept, depth))

    def _moved(self, x: Node) -> Under | None:
        """Behind a reshape that leaves every score in its place."""
        source: Any = x.args[0]
        if source.meta["val"].shape != x.meta["val"].shape or x.target is aten.transpose.int:
            return None
        return self._under(source)

    def _joined(self, scores: Node, hidden: Hidden | None) -> Under | None:
        if hidden is None:
            return None
        inner = self._under(scores)
        base, kept, depth = scores, hidden.kept, hidden.depth
        if inner is not None:
            base = inner.base
            kept, depth = self._truths.both(inner.kept, kept), min(depth, inner.depth)
        if hidden.base is not None:
            base = self._edit.call(aten.add.Tensor, base, hidden.base)
        return Under(base, kept, depth)

    def of(self, node: Node) -> Hidden | None:
        """A number made of masks and constants that is added to scores; None for one that hides
        nothing. Raises UnsupportedModule for conditions that are no logic."""
        args: Any = node.args
        if node.target in CASTS or node.target is aten.expand.default:
            return self.of(args[0]) if args[0] in self._masks else None
        if node.target in MOVES:
            made = self.of(args[0])
            if made is None:
                return None
            moved = [
                None if n is None else self._edit.call(node.target, n, *args[1:])
                for n in (made.base, made.kept)
            ]
            return Hidden(moved[0], moved[1] or made.kept, made.depth)
        if node.target is aten.add.Tensor and not node.kwargs:
            return self._sum(*args)
        if node.target is aten.mul.Tensor:
            return self._product(*args)
        found = self._filled(node)
        if found is None:
            return None
        rest, kept, depth = found
        if isinstance(rest, Node) and rest in self._masks:
            inner = self.of(rest)
            if inner is not None:
                both = self._truths.both(inner.kept, kept)
                return Hidden(inner.base, both, min(depth, inner.depth))
            same = _same(self._truths.inverse(rest), kept)
            return Hidden(None, kept, depth) if same else None
        if self._number(rest) == 0:
            return Hidden(None, kept, depth)
        if not isinstance(rest, Node):
            rest = self._edit.constant(torch.tensor([float(rest)]))
        return Hidden(rest, kept, depth) if self._is_constant(rest) else None

    def _sum(self, a: Any, b: Any) -> Hidden | None:
        parts = [self.of(n) if n in self._masks else None for n in (a, b)]
        bases = [p.base if p else n for p, n in zip(parts, (a, b), strict=True)]
        found = [p for p in parts if p is not None]
        alone = [n for n, p in zip((a, b), parts, strict=True) if p is None]
        if not found or not all(map(self._is_constant, alone)):
            return None
        kept = found[0].kept if len(found) == 1 else self._truths.both(*(p.kept for p in found))
        added = [n for n in bases if n is not None]
        base = self._edit.call(aten.add.Tensor, *added) if len(added) == 2 else None
        return Hidden(base or next(iter(added), None), kept, min(p.depth for p in found))

    def _product(self, x: Any, factor: Any) -> Hidden | None:
        """(1 - mask) · -1e4, or (mask - 1) · 1e4."""
        size = self._number(factor)
        if size is None:
            x, size = factor, self._number(x)
        if size is None or abs(size) < FAR or not isinstance(x, Node):
            return None
        if size < 0:
            return Hidden(None, self._truths.inverse(x), min(-size, _DEEPEST))
        less: Any = x.args
        if x.target is aten.sub.Tensor and self._number(less[1]) == 1 and not x.kwargs:
            return Hidden(None, self._truths.of(less[0]), min(size, _DEEPEST))
        return None

    def _filled(self, x: Node) -> tuple[Any, Node, float] | None:
        """(what is not hidden, kept, depth) of a choice by a mask between a value and a number far
        below; None for other nodes."""
        args: Any = x.args
        if x.target in _FILL and args[1] in self._masks:
            condition, chosen, rest = args[1], args[2], args[0]
        elif x.target in _WHERE and args[0] in self._masks:
            condition, chosen, rest = args
        else:
            return None
        for low, other, kept in ((chosen, rest, False), (rest, chosen, True)):
            value = self._number(low)
            if value is not None and value < -FAR:
                make = self._truths.of if kept else self._truths.inverse
                return other, make(condition), min(-value, _DEEPEST)
        return None

    def _number(self, x: Any) -> float | None:
        return _number(self._module, x)

    def _is_constant(self, x: Any) -> bool:
        return isinstance(x, int | float) or constant_of(self._module, x) is not None


def lower_fills(module: GraphModule, masks: set[Node]) -> None:
    """``masked_fill`` and ``where`` of data by a mask: each value times 0 or 1, in place."""
    known: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        args: Any = node.args
        if node.target in _FILL and args[1] in masks:
            condition, yes, no = args[1], args[2], args[0]
        elif node.target in _WHERE and args[0] in masks:
            condition, yes, no = args
        elif node.target is aten.index_put.default and _writes_one_number(module, node, masks):
            condition, yes, no = args[1][0], args[2], args[0]
            for _ in range(no.meta["val"].ndim - condition.meta["val"].ndim):
                condition = Editor(module, node).call(aten.unsqueeze.default, condition, -1)
        else:
            continue
        truths, edit = Truths(module, node, known), Editor(module, node)
        parts: list[Node] = []
        for value, truth in ((yes, truths.of), (no, truths.inverse)):
            held = _number(module, value)
            if held is not None and not math.isfinite(held):
                raise unsupported(
                    node,
                    "infinity where a mask decides",
                    "fill with a number a little beyond the values that there are",
                )
            if held is not None and held != 0:
                parts.append(edit.call(aten.mul.Tensor, truth(condition), held))
            elif held is None:
                parts.append(edit.call(aten.mul.Tensor, value, truth(condition)))
        made = parts[0] if len(parts) == 1 else edit.call(aten.add.Tensor, *parts)
        edit.replace(made)


def _writes_one_number(module: GraphModule, node: Node, masks: set[Node]) -> bool:
    """True for ``x[mask] = number`` with a mask of the first axes of x."""
    x, places, value, *adds = cast("tuple[Node, list[Any], Node, bool]", node.args)
    mask = places[0] if len(places) == 1 else None
    if mask not in masks or any(adds) or _number(module, value) is None:
        return False
    held = mask.meta["val"]
    return held.dtype is torch.bool and held.shape == x.meta["val"].shape[: held.ndim]


def _same(a: Any, b: Any) -> bool:
    """True for one computation, perhaps written twice."""
    if not isinstance(a, Node) or not isinstance(b, Node) or a is b or a.op != "call_function":
        return bool(a == b)
    pairs = zip(a.args, b.args, strict=False)
    return a.target is b.target and len(a.args) == len(b.args) and all(_same(*p) for p in pairs)


def _number(module: GraphModule, x: Any) -> float | None:
    """A number, also as a constant of one element; None for anything else."""
    if isinstance(x, int | float):
        return float(x)
    value = constant_of(module, x)
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None
