"""Where in a model the captured graph begins to differ: at the edges of its submodules.

A submodule's output, and its input, are compared with the values of the graph's nodes. A rewrite
may leave a node out (a convolution that a norm was folded into), so a point with no equal in the
graph counts only if what follows it has none either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.gate.floatgraph import FloatGraph, captured_batch
from secure_quant.quantizer.gate.owner import Owner
from secure_quant.quantizer.refuse import own_path

__all__ = ["first_dependent", "first_difference", "shared_points_differ"]

EQUAL = 1e-4
"""Of the largest value at a point. Looser than the output's bound: this only tells places."""
_SAMPLES = 2
_FEW = 64
"""Values by which most that differ are told apart."""
_Key = tuple[str, int, str]


@dataclass
class _Point:
    """One edge of a submodule: what passes there, and the last node of the graph equal to it."""

    key: _Key
    value: Tensor
    node: str | None = None

    def equals(self, value: Tensor) -> bool:
        if value.numel() != self.value.numel() or self._allowed is None:
            return False
        mine, other = self.value.flatten(), value.flatten()
        step = max(len(mine) // _FEW, 1)
        return all(_off(mine[::each], other[::each]) <= self._allowed for each in (step, 1))

    @cached_property
    def _allowed(self) -> float | None:
        """The largest difference of equals; None where nothing here is finite."""
        finite = self.value[torch.isfinite(self.value)]
        return EQUAL * float(finite.abs().max()) + 1e-12 if len(finite) else None

    def __str__(self) -> str:
        path, number, side = self.key
        call = f" (call {number + 1})" if number else ""
        return f"{'the output' if side == 'out' else 'the input'} of {path!r}{call}"


def _off(mine: Tensor, other: Tensor) -> float:
    """The largest difference, where ``mine`` is finite."""
    off = (mine.double() - other.double()).abs()[torch.isfinite(mine)]
    return float(off.max()) if len(off) else 0.0


def _outputs(owner: Owner, x: Tensor) -> list[_Point]:
    """Of every call, in the order in which they return."""
    found: list[_Point] = []

    def see(path: str, number: int, side: str, value: Tensor) -> None:
        if side == "out":
            found.append(_Point((path, number, side), value.float()))

    owner.run(x, seen=see)
    return found


def _points(owner: Owner, x: Tensor) -> list[_Point]:
    """Inputs too, in the order in which the module reaches them."""
    found: list[_Point] = []
    inputs: list[_Point] = []

    def see(path: str, number: int, side: str, value: Tensor) -> None:
        (found if side == "out" else inputs).append(_Point((path, number, side), value.float()))

    owner.run(x, seen=see)
    by_key = {point.key: point for point in inputs}
    ordered = []
    for point in found:
        path, number, _ = point.key
        entry = by_key.get((path, number, "in"))
        ordered += [entry, point] if entry is not None else [point]
    return ordered


def first_difference(owner: Owner, prepared: GraphModule, x: Tensor) -> str | None:
    """In words, the first edge of a submodule that the graph does not have for ``x``; None if
    there is none."""
    size = captured_batch(prepared)
    if size is not None:
        x = x[:1].expand(size, *x.shape[1:])
    points = _points(owner, x)

    def watch(node: Node, value: Tensor) -> None:
        for point in points:
            if point.node is None and point.equals(value):
                point.node = node.name

    FloatGraph(prepared, watch=watch).evaluate(x)
    last = None
    for place, point in enumerate(points):
        following = points[place + 1 : place + 3]
        if point.node is None and not any(p.node is not None for p in following):
            after = f", equal up to {last}" if last is not None else ""
            return f"the first difference is at {point}{after}"
        if point.node is not None:
            last = point
    if last is None:
        return None
    return f"equal up to {last}, so the difference is behind it, in the model's own forward"


def first_dependent(owner: Owner, x: Tensor, place: int) -> str:
    """at 'path' of the first submodule whose output for sample ``place`` depends on the other
    samples; "" if there is none."""
    whole = {p.key: p for p in _outputs(owner, x)}
    for point in _outputs(owner, x[place : place + 1]):
        other = whole.get(point.key)
        if other is not None:
            fits = len(other.value) == len(x) if other.value.ndim else False
            if not fits or not point.equals(other.value[place : place + 1]):
                return f" at {point.key[0]!r}"
    return ""


def shared_points_differ(
    owner: Owner, prepared: GraphModule, probes: Sequence[Tensor]
) -> str | None:
    """In words, a submodule's output that the graph has on the first probe and not on another; None
    if there is none."""
    known: dict[_Key, str] = {}
    size = captured_batch(prepared)
    for number, probe in enumerate(probes):
        x = probe[:_SAMPLES]
        if size is not None and len(x) != size:
            continue
        points = {p.key: p for p in _outputs(owner, x)}
        by_path: dict[str, list[_Point]] = {}
        for point in points.values():
            by_path.setdefault(point.key[0], []).append(point)
        seen: dict[tuple[_Key, str], bool] = {}

        def watch(node: Node, value: Tensor) -> None:
            for path in _paths(node):
                for point in by_path.get(path, ()):  # noqa: B023  used within this turn
                    if not number or known.get(point.key) == node.name:  # noqa: B023
                        seen[point.key, node.name] = point.equals(value)  # noqa: B023

        FloatGraph(prepared, watch=watch).evaluate(x)
        if not number:
            known = {key: name for (key, name), equal in seen.items() if equal}
            continue
        for (key, _), equal in seen.items():
            if not equal and bool(torch.isfinite(points[key].value).all()):
                return f"another value at {points[key]}"
    return None


def _paths(node: Node) -> list[str]:
    """Paths of the modules that a node stands in, innermost last."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(name) for name, _ in stack.values()]
    return [own_path(name.removeprefix("L['self'].").removeprefix("L['self']")) for name in names]
