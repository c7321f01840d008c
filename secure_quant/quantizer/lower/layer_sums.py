"""Sums that take a layer's accumulator as it stands: nothing is rounded before the sum is.

A unit of the sum is one of the layer's, divided by a whole k: the layer's factors are k times its
channels' multipliers, exactly, and the other value's the nearest whole numbers. k is the least with
which these are near enough.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.bounds import sum_bound
from secure_quant.ir.build import short
from secure_quant.ir.terms import Term
from secure_quant.quantizer.lower.layers import argument as argument_of
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.notes import UNROUNDED
from secure_quant.quantizer.refuse import unsupported

__all__ = ["Operand", "is_layer", "sum_with_layer"]

aten = torch.ops.aten
Real = NDArray[np.float64]
_LAYERS = {aten.linear.default, aten.conv2d.default}
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_CLAMPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}
PART_OF_STEP = 1 / 8
"""Of a step of what becomes of the sum, that the largest value may be off by for its factor."""
PART_OF_VALUE = PART_OF_STEP / 256
"""The same of a value itself, of 8 bits, where its range or the step is not known."""
FINER = 16
"""What becomes 12 bits."""
MOST_TRIED = 4096


class Operand(NamedTuple):
    """minus: it is taken off."""

    term: Term
    layer: bool
    minus: bool = False

    @property
    def worth(self) -> Real:
        """float64[channels], or [1]: of a unit."""
        own = self.term.real or [m * self.term.scale for m in self.term.multiplier]
        return np.array(own, np.float64)


def is_layer(walk: Walk, argument: Any) -> bool:
    """True for a layer whose accumulator a sum takes as it stands: where the annotator noted it, or
    a model that is quantized already rounds nothing in between."""
    if not isinstance(argument, Node) or walk.kept is None:
        return isinstance(argument, Node) and bool(argument.meta.get(UNROUNDED))
    term, readers = walk.value(argument), list(argument.users)
    alone = argument.target in _LAYERS and isinstance(term, Term) and term.own_shape is None
    if not alone or len(readers) != 1 or argument_of(readers[0], 2, "alpha", 1) != 1:
        return False
    return _step_behind(readers[0]) is not None


def sum_with_layer(walk: Walk, node: Node, pair: tuple[Operand, Operand], *, fine: bool) -> Term:
    """The accumulator of two values, a layer's at least one of them; the second's shape broadcasts
    to the first's. fine: the sum becomes 12 bits. Raises OverflowRisk, UnsupportedModule."""
    base = pair[0] if pair[0].layer else pair[1]
    unit = float(base.worth.min()) if base.term.real else base.term.scale
    step, near = _step_behind(node), []
    for each in pair:
        allowed = PART_OF_VALUE / (FINER if fine else 1) * each.worth
        if step is not None and not each.layer:
            largest = max(each.term.centred.magnitude, 1)
            allowed = np.maximum(allowed, PART_OF_STEP * step / largest)
        near.append(allowed)
    times = _times(unit, [each.worth for each in pair], near)
    whole = [np.rint(each.worth * (times / unit)).astype(np.int64) for each in pair]
    channels = max(map(len, whole))
    axes = {each.term.axis for each in pair if len(each.worth) > 1}
    if len(axes) > 1:
        raise unsupported(node, "a sum of layers whose channels lie along different axes")
    factors: list[int] = []
    for each, own in zip(pair, whole, strict=True):
        signed = -own if each.minus else own
        factors += np.broadcast_to(signed, channels).tolist()
    name = walk.name(node)
    a, b = (each.term for each in pair)
    layer = ops.Add(
        name=name, inputs=(a.name, b.name), factors=tuple(factors), axis=(*axes, -1)[0],
        bound=walk.builder.bound(name, sum_bound(tuple(factors), a.centred, b.centred)),
        scale=short(unit / times),
    )  # fmt: skip
    for each, own in zip(pair, whole, strict=True):
        if each.term.real:
            made = replace(each.term, multiplier=tuple(own.tolist()), scale=unit / times)
            walk.builder.settle(each.term.name, made)
    total: Term = walk.builder.accumulator(layer, a.shape)
    return total


def _times(unit: float, worth: list[Real], near: list[Real]) -> int:
    """The least k for which the multiples of unit / k next to ``worth`` are ``near`` enough."""
    least = min(float(each.min()) for each in near)
    last = math.ceil(unit / (2 * least)) if least > 0 else 1  # half a unit off at most
    for times in range(1, min(last, MOST_TRIED)):
        step = unit / times
        if all(
            bool((np.abs(np.rint(each / step) * step - each) <= most * (1 + 1e-9)).all())
            for each, most in zip(worth, near, strict=True)
        ):
            return times
    return last


def _step_behind(node: Node) -> float | None:
    """The finest step that a sum, or what clamps it, is rounded to; None where another function is
    between, which may stretch it, or where it is not rounded."""
    steps: list[float | None] = []
    for user in node.users:
        if user.target is _QUANTIZE:
            steps.append(float(user.args[1]))  # type: ignore[arg-type]
        else:
            steps.append(_step_behind(user) if user.target in _CLAMPS else None)
    known = [step for step in steps if step is not None]
    return min(known) if known and len(known) == len(steps) else None
