"""Sums, products and maxima of activations."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.bounds import sum_bound
from secure_quant.ir.build import short
from secure_quant.ir.terms import Term, Weight
from secure_quant.ir.values import INT32
from secure_quant.quantizer.lower.layers import argument, sum_pool
from secure_quant.quantizer.lower.moves import reshape_to, transpose_to
from secure_quant.quantizer.lower.pointwise import fused
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.notes import BITS, EXACT
from secure_quant.quantizer.refuse import unsupported

__all__ = ["add", "amax", "matmul", "mean", "mul", "total"]

aten = torch.ops.aten
Whole = NDArray[np.int64]
_QUANTIZE = ".quantize_per_tensor"

_EXACT_SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.mean.dim,
               aten.sum.dim_IntList, aten.avg_pool2d.default}  # fmt: skip
"""What a sum may read without rounding."""
CHANNEL_FACTOR = 4095
"""Largest factor of a sum by channels."""
FACTOR_ERROR = 1 / 512
"""Largest relative error of the ratio of two scales in an Add: half a step at int8's full range."""
FINE_ERROR = 1 / 8192
"""The same where the sum becomes 12 bits."""
_STEP_BITS = 13
"""Of the larger factor where a step is given: off by 1/64 of it at int8's full range at most."""


def factors(ratio: float, most: int = INT32.hi, allowed: float = FACTOR_ERROR) -> ops.Pair:
    """The smallest (f, g) with f / g within ``allowed`` of ``ratio`` = scale of a / scale of b, or
    the nearest with none above ``most``; (1, 0) where b is less than 1 / ``most`` of a."""
    if ratio < 1:
        g, f = factors(1 / ratio, most, allowed)
        return f, g
    best, found = math.inf, (1, 0)
    for below in range(1, round(1 / allowed) + 1):
        above = round(ratio * below)
        if above > most:
            break
        error = abs(above / (ratio * below) - 1)
        if error < best:
            fraction = Fraction(above, below)
            best, found = error, (fraction.numerator, fraction.denominator)
        if error < allowed:
            break
    return found


def add(walk: Walk, node: Node) -> Term:
    """a ± alpha·b of two activations, or exact sums, with factors that bring both to one scale; of
    one value a function of it."""
    made = fused(walk, node)
    return made or _sum_of_two(walk, node)


def _sum_of_two(walk: Walk, node: Node) -> Term:
    given = node.args[:2] if node.target is not aten.rsub.Tensor else node.args[1::-1]
    a, b = (_summand(walk, n, node) for n in given)
    sign = 1 if node.target is aten.add.Tensor else -1
    alpha = sign * argument(node, 2, "alpha", 1)
    a, b, swapped = _broadcast(walk, node, a, b)
    scale_a, scale_b = (
        (a.scale * abs(alpha), b.scale) if swapped else (a.scale, b.scale * abs(alpha))
    )
    most = _largest_factor(node, a, b)
    step = _step_below(node) if walk.kept is not None else None
    if a.channels or b.channels:
        both, unit = _channel_factors(a, b, scale_a, scale_b, min(most, CHANNEL_FACTOR))
    elif step:
        both, unit = _factors_of_step(scale_a, scale_b, step)
    else:
        most = min(most, _room(a, b, scale_a, scale_b))
        fine = walk.kept is not None or _becomes_fine(node)
        allowed = FINE_ERROR if fine else FACTOR_ERROR
        both, unit = _common_factors(scale_a, scale_b, most, allowed)
    if alpha < 0:
        both[0 if swapped else 1] *= -1
    return _sum(walk, node, (a, b), both, unit)


def _step_below(node: Node) -> float | None:
    """Of the grid that a sum is rounded to, if that is what alone becomes of it."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default:
            return float(node.args[1])  # type: ignore[arg-type]
        if len(node.all_input_nodes) != 1:
            return None
    return None


def _factors_of_step(scale_a: float, scale_b: float, step: float) -> tuple[Whole, float]:
    """int64[2, 1] and the unit, a power of two of the step, so that the sum is rounded as it is."""
    shift = _STEP_BITS - math.ceil(math.log2(max(scale_a, scale_b) / step))
    unit = step / 2.0**shift
    return np.rint([[scale_a / unit], [scale_b / unit]]).astype(np.int64), unit


def _common_factors(
    scale_a: float, scale_b: float, most: int, allowed: float
) -> tuple[Whole, float]:
    """int64[2, 1] and the unit. The factors only approximate the ratio: the unit splits the error
    between both. A scale of 0 is that of a value times 0."""
    if not (scale_a and scale_b):
        return np.array([[int(scale_a > 0)], [int(scale_b > 0)]]), scale_a or scale_b
    f, g = factors(scale_a / scale_b, most, allowed)
    unit = math.sqrt(scale_a / f * scale_b / g) if f and g else max(scale_a * f, scale_b * g)
    return np.array([[f], [g]]), unit


def _channel_factors(
    a: Term, b: Term, scale_a: float, scale_b: float, most: int
) -> tuple[Whole, float]:
    """int64[2, channels], the largest ``most``, and the unit."""
    size = a.shape[-1]
    real = np.stack([
        np.broadcast_to(np.array(term.channels or 1.0) * scale, size)
        for term, scale in ((a, scale_a), (b, scale_b))
    ])  # fmt: skip
    unit = float(np.abs(real).max()) / most
    return np.rint(real / unit).astype(np.int64), unit


def _largest_factor(node: Node, a: Term, b: Term) -> int:
    """Of a sum that stays an accumulator: small enough for D·x - Σ x of it, as in LayerNorm."""
    if not node.meta.get(EXACT):
        return INT32.hi
    room = INT32.hi / (2.5 * a.shape[-1])  # 2, and what bounds are rounded up by
    return max(int(room / (a.centred.magnitude + b.centred.magnitude)), 1)


def _room(a: Term, b: Term, scale_a: float, scale_b: float) -> int:
    """Largest factor of a sum of f · a and g · b with f / g = scale_a / scale_b in int32: where one
    is far smaller than a step of the other, the nearest there is."""
    if not (scale_a and scale_b):
        return INT32.hi
    ratio = max(scale_a / scale_b, scale_b / scale_a)
    large, small = (a, b) if scale_a > scale_b else (b, a)
    sizes = max(large.centred.magnitude, 1), max(small.centred.magnitude, 1)
    return max(int(INT32.hi / 2.5 / max(sizes[0], sizes[1] / ratio)), 1)  # 2, and some for bounds


def _becomes_fine(node: Node) -> bool:
    """True where a sum, or a function of it, becomes an activation of more than 8 bits."""
    return node.meta.get(BITS, 8) > 8 or any(
        _has_fine_steps(user) if _QUANTIZE in str(user.target) else _becomes_fine(user)
        for user in node.users
        if _QUANTIZE in str(user.target) or torch.Tag.pointwise in getattr(user.target, "tags", ())
    )


def _has_fine_steps(quantize: Node) -> bool:
    low, high = quantize.args[3:5]
    return bool(high - low > 255)  # type: ignore[operator]


def _summand(walk: Walk, argument: Any, node: Node) -> Term:
    """An activation, or a sum over rows as it stands."""
    term: Term = walk.term(argument, node)
    if term.channels and not term.accumulator and not term.functions:
        return term
    exact = term.accumulator and not term.functions and term.dynamic is None
    if walk.kept is not None and argument.target not in _EXACT_SUMS:
        exact = False
    if exact and term.multiplier == (1,) and term.own_shape is None:
        return term
    return walk.activation(argument, node)


def mul(walk: Walk, node: Node) -> Term:
    """a · b of two activations, or of one value and a constant for each channel; of one value
    alone a function of it."""
    made = fused(walk, node)
    if made is not None:
        return made
    constants = [walk.value(n) for n in node.args[:2]]
    for place in (0, 1):
        if isinstance(constants[place], Tensor):
            return _by_channel(walk, node, node.args[1 - place], constants[place])
    a, b = (walk.activation(n, node) for n in node.args[:2])
    a, b, _ = _broadcast(walk, node, a, b)
    name = walk.name(node)
    layer = ops.Mul(
        name=name, inputs=(a.name, b.name), scale=short(a.scale * b.scale),
        bound=walk.builder.bound(name, (a.centred * b.centred).magnitude),
    )  # fmt: skip
    return walk.builder.accumulator(layer, a.shape)


def _by_channel(walk: Walk, node: Node, argument: Any, constant: Tensor) -> Term:
    """A value times a constant of each channel of the last axis: whole multiples of one number wait
    in the multiplier of an accumulator; an activation takes any, and waits for a sum."""
    term: Term = walk.term(argument, node)
    factor = constant.double().reshape(-1).numpy()
    if len(factor) != term.shape[-1] or constant.shape[-1] != len(factor):
        raise unsupported(node, "a product with a constant that varies by position")
    if term.plain:
        term = replace(term, channels=tuple(factor.tolist()))
        only_sums = all(user.target is aten.add.Tensor for user in node.users)
        return term if only_sums else _exact(walk, node, term)
    if term.functions or term.dynamic or term.real or factor.min() <= 0:
        raise unsupported(node, "a product with a constant", "put it into a layer's weights")
    made = Weight.of(np.zeros((len(factor), 1)), factor * term.multiplier)
    scale = short(term.scale * made.base)
    return replace(term, multiplier=made.multiplier, axis=-1, scale=scale)


def _sum(walk: Walk, node: Node, terms: tuple[Term, Term], factors: Any, unit: float) -> Term:
    """The accumulator of two values times whole factors, in steps of ``unit``."""
    a, b = terms
    pair = tuple(factors.reshape(-1).tolist())
    name = walk.name(node)
    layer = ops.Add(
        name=name, inputs=(a.name, b.name), factors=pair, scale=short(unit),
        bound=walk.builder.bound(name, sum_bound(pair, a.centred, b.centred)),
    )  # fmt: skip
    return walk.builder.accumulator(layer, a.shape)


def _exact(walk: Walk, node: Node, x: Term) -> Term:
    """The accumulator of an activation with scales by channel, all on one unit."""
    kept = {0.0, max(x.channels)}
    most = 1 if kept.issuperset(x.channels) else min(_largest_factor(node, x, x), CHANNEL_FACTOR)
    both, unit = _channel_factors(x, replace(x, channels=()), x.scale, 0.0, most)
    return _sum(walk, node, (x, x), both, unit)


def _broadcast(walk: Walk, node: Node, a: Term, b: Term) -> tuple[Term, Term, bool]:
    """The operands with equal ranks, the one of full shape first; True if they changed places."""
    shape = walk.shape(node)
    swapped = a.shape != shape
    if swapped:
        a, b = b, a
    if a.shape != shape:
        raise unsupported(node, "two operands that both broadcast", "expand one of them first")
    padded = (1,) * (len(shape) - len(b.shape)) + b.shape
    if b.channels and padded != b.shape:
        raise unsupported(node, "channels of another rank", "unsqueeze before the product")
    return a, reshape_to(walk, node, b, padded), swapped


def matmul(walk: Walk, node: Node) -> Term:
    """a @ b over the last two axes; the leading axes are equal."""
    a, b = (walk.activation(n, node) for n in node.args[:2])
    if len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or len(a.shape) < 2:
        raise unsupported(node, f"shapes {a.shape} and {b.shape}", "equal leading axes")
    name = walk.name(node)
    proven = (a.centred * b.centred).magnitude * a.shape[-1]
    layer = ops.MatMul(
        name=name, inputs=(a.name, b.name), transpose_b=False,
        bound=walk.builder.bound(name, proven), scale=short(a.scale * b.scale),
    )  # fmt: skip
    return walk.builder.accumulator(layer, (*a.shape[:-1], b.shape[-1]))


def amax(walk: Walk, node: Node) -> Term:
    """Maximum over any axes of the sample, first moved last and joined into one."""
    x: Term = walk.activation(node.args[0], node)
    axes = _axes(node, x, argument(node, 1, "dim", ()))
    kept = [i for i in range(len(x.shape)) if i not in axes]
    count = math.prod(x.shape[i] for i in axes)
    x = transpose_to(walk, node, x, (*kept, *axes))
    x = reshape_to(walk, node, x, (*x.shape[: len(kept)], count))
    shape = (*x.shape[:-1], 1)
    made: Term = walk.builder.move(ops.ReduceMax(name=walk.name(node), inputs=(x.name,)), x, shape)
    return reshape_to(walk, node, replace(made, range=x.range), walk.shape(node))


def mean(walk: Walk, node: Node) -> Term:
    """Mean over any axes of the sample; the division is in the scale."""
    x = _summand(walk, node.args[0], node)
    axes = _axes(node, x, node.args[1])
    if x.accumulator and axes != [len(x.shape) - 1]:
        raise unsupported(node, "a mean of an exact sum over other axes than the last")
    return _reduce(walk, node, x, axes, math.prod(x.shape[i] for i in axes))


def total(walk: Walk, node: Node) -> Term:
    """Sum over any axes of the sample."""
    x: Term = walk.activation(node.args[0], node)
    return _reduce(walk, node, x, _axes(node, x, node.args[1]), 1)


def _axes(node: Node, x: Term, dims: Any) -> list[int]:
    rank = len(x.shape) + 1
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    axes = sorted(d % rank - 1 for d in dims)
    if axes[0] < 0:
        raise unsupported(node, "a reduction over the batch", "reduce over the sample's axes")
    return axes


def viewed(term: Term, shape: tuple[int, ...]) -> Term:
    """An accumulator that the model sees under another shape, until it is requantized."""
    shape = shape or (1,)
    return term if shape == term.shape else replace(term, shape=shape, own_shape=term.shape)


def _reduce(walk: Walk, node: Node, x: Term, axes: list[int], divisor: float) -> Term:
    """Σ over ``axes``, first moved last and joined into one; the result has the op's shape."""
    kept = [i for i in range(len(x.shape)) if i not in axes]
    shape = walk.shape(node)
    if axes == [1, 2] and len(x.shape) == 3:
        pooled = sum_pool(walk, node, (x.shape[1], x.shape[2]), (1, 1), (0, 0), divisor)
        return viewed(pooled, shape)
    count = math.prod(x.shape[i] for i in axes)
    x = transpose_to(walk, node, x, (*kept, *axes))
    x = reshape_to(walk, node, x, (*(x.shape[: len(kept)]), count))
    name = walk.name(node)
    layer = ops.ReduceSum(
        name=name, inputs=(x.name,), scale=short(x.scale / divisor),
        bound=walk.builder.bound(name, x.centred.magnitude * count),
    )  # fmt: skip
    made: Term = walk.builder.accumulator(layer, (*x.shape[:-1], 1))
    return viewed(made, shape)
