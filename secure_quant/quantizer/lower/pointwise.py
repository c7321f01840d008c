"""Functions of one value, element by element: they wait in a Term until a Requantize's table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from secure_quant.ir.terms import Term
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.refuse import unsupported

__all__ = ["function", "fused"]

aten = torch.ops.aten


def function(walk: Walk, node: Node) -> Term:
    """An op that is nothing but a function of one value."""
    made = fused(walk, node)
    if made is None:
        raise unsupported(
            node, "a function of two values, or of one and a constant of many",
            "write it with +, -, * and functions of one value",
        )  # fmt: skip
    return made


def fused(walk: Walk, node: Node) -> Term | None:
    """The term with ``node`` as one more function, where all operands come of one value."""
    values = {n: walk.value(n) for n in node.all_input_nodes}
    terms = {n: v for n, v in values.items() if isinstance(v, Term)}
    constants = {n: v for n, v in values.items() if not isinstance(v, Term)}
    first, *others = terms.values()
    if any(t.name != first.name or t.shape != first.shape for t in others):
        return None
    if not all(_one_number(c) for c in constants.values() if isinstance(c, Tensor)):
        return None
    if (walk.shape(node) or (1,)) != first.shape:  # a scalar per sample has one axis here
        return None
    numbers = {n: c.double().reshape(-1)[0] for n, c in constants.items()}

    def made(v: Any) -> Any:
        x = torch.from_numpy(v)
        given = {n: torch.from_numpy(t.apply(v)) for n, t in terms.items()} | numbers
        args = torch.fx.map_arg(node.args, given.__getitem__)
        kwargs = torch.fx.map_arg(node.kwargs, given.__getitem__)
        return node.target(*args, **kwargs).to(x.dtype).numpy()  # type: ignore[operator]

    return replace(first, functions=(made,), limits=_limits(node, first))


def _one_number(constant: Tensor) -> bool:
    """True for a constant that is the same everywhere."""
    return constant.numel() > 0 and bool((constant == constant.reshape(-1)[0]).all())


def _limits(node: Node, term: Term) -> tuple[float, float] | None:
    """The interval that a term is clamped to once ``node`` has been applied; None if it is more
    than clamped."""
    low, high = -math.inf, math.inf
    bounds = [v for v in node.args[1:] if isinstance(v, int | float)]
    if node.target in (aten.relu.default, aten.relu6.default):
        low, high = 0.0, 6.0 if node.target is aten.relu6.default else math.inf
    elif node.target is aten.hardtanh.default and len(node.args) in (1, 3):
        low, high = bounds if bounds else (-1.0, 1.0)
    else:
        return None
    if term.limits is None:
        return None
    return max(low, min(term.limits[0], high)), min(high, max(term.limits[1], low))
