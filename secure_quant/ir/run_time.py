"""Run-time scales: int8 for layers, fixed point with spare bits on both sides between them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from secure_quant.errors import OverflowRisk
from secure_quant.ir import ops
from secure_quant.ir.terms import Dynamic, Term
from secure_quant.ir.values import INT8, Interval

__all__ = ["at_run_time", "rescaled", "typical"]

COMMON = 2**17
"""Fixed-point steps in the largest value that calibration saw: 512 times finer than int8 needs."""
GUESSED = 2**14
"""The same where the largest value is estimated from the weights alone."""
LIMIT = 2**24 - 1
"""Steps at which fixed-point values saturate: at least 64 times what calibration saw."""


def typical(weight: Any, multiplier: tuple[int, ...], x: Term) -> float:
    """A common large |acc · multiplier|: the inputs taken as independent, half-way to their
    largest."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1).astype(np.float64), axis=1)
    return float((norms * multiplier).max()) * x.centred.magnitude / 2


def rescaled(
    builder: Any, term: Term, limits: tuple[float, float] | None = None, largest: float = 0.0
) -> Term:
    """The fixed-point accumulator of a term with a run-time factor, clamped to the real
    ``limits``; a term without one stays, unless there are limits. ``largest`` is the largest real
    value that calibration saw, 0 where it did not look."""
    if limits is None and not (term.dynamic and term.accumulator):
        return term
    dynamic = term.dynamic or Dynamic("", term.span.magnitude / 4)
    common = dynamic.typical * builder.common.get(dynamic.factor, 1.0)
    steps_wanted = GUESSED
    if largest > 0:
        common, steps_wanted = largest / term.scale, COMMON
    bias = dynamic.bias
    shift = max(math.floor(math.log2(max(common, 1.0) / steps_wanted)), 0)
    while bias is not None and np.abs(bias).max() / (term.scale * 2**shift) > LIMIT / 4:
        shift += 1
    if shift > 61:
        raise OverflowRisk(f"bias of {term.name!r}", got="a value far beyond the layer's others")
    scale = float(f"{term.scale * 2**shift:.7g}")
    low, high = (
        int(np.clip(np.rint(end / scale), -LIMIT, LIMIT)) for end in limits or (-math.inf, math.inf)
    )
    name = builder.name(f"{term.name}.fixed")
    steps = () if bias is None else tuple(np.rint(bias / scale).astype(np.int64).tolist())
    builder.add(
        ops.Rescale(
            name=name, inputs=(term.name, dynamic.factor) if dynamic.factor else (term.name,),
            multiplier=term.multiplier, axis=term.axis, shift=shift, bias=steps, low=low,
            high=high, scale=scale,
        )
    )  # fmt: skip
    builder.common[name] = max(common / 2**shift, 1.0)
    return replace(
        term, name=name, range=Interval(low, high), scale=scale, multiplier=(1,), axis=-1,
        zero_point=0, accumulator=True, dynamic=None,
    )  # fmt: skip


def at_run_time(builder: Any, term: Term, name: str, largest: float = 0.0) -> Term:
    """``term`` as int8 with each sample's own scale; a term that has one already, or needs none
    (the int8 input), stays. ``largest`` as in ``rescaled``."""
    if term.dynamic and not term.accumulator:
        return term
    if term.accumulator:
        term = replace(rescaled(builder, term, term.limits, largest), functions=())
    elif term.range.within(INT8):
        return term
    zero_point = -128 if term.centred.lo >= 0 else 0
    if term.name not in builder.taken:
        factor, q = builder.name(f"{name}.scale"), builder.name(name)
        builder.taken[term.name] = factor, q
        common = builder.common.get(term.name, term.centred.magnitude / 2)
        builder.common[factor] = common
        builder.add(ops.DynamicScale(name=factor, inputs=(term.name,)))
        builder.add(ops.DynamicQuantize(name=q, inputs=(term.name, factor), zero_point=zero_point))
    factor, q = builder.taken[term.name]
    levels = 127 - zero_point
    made = Term(
        q, term.shape, Interval(-128 if zero_point else -127, 127),
        term.scale / levels, zero_point, dynamic=Dynamic(factor, 0.0),
    )  # fmt: skip
    viewed: Term = builder.viewed(made, term, name)
    return viewed
