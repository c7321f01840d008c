"""Sums and products of activations."""

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
from secure_quant.ir.bounds import channel_magnitudes, sum_bound
from secure_quant.ir.build import short
from secure_quant.ir.terms import Term, Weight
from secure_quant.ir.values import INT32
from secure_quant.quantizer.lower.layer_sums import Operand, is_layer, sum_with_layer
from secure_quant.quantizer.lower.layers import argument
from secure_quant.quantizer.lower.moves import exact_operand, reshape_to
from secure_quant.quantizer.lower.pointwise import fused
from secure_quant.quantizer.lower.reductions import row_total, summand
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.notes import BITS, EXACT, LARGEST, SHOWN, SQUARES
from secure_quant.quantizer.refuse import unsupported

__all__ = ["add", "matmul", "mul"]

aten = torch.ops.aten
Whole = NDArray[np.int64]
_QUANTIZE = ".quantize_per_tensor"

_USUAL_FACTOR = 64
"""Of all but the least of the channels: off by less than a hundredth, as a weight's step is."""
_NOTHING = 1e-6
"""Of an exp, or of steps: rounds to 0."""
_ROUNDED = 1.25
"""By which bounds are rounded up, and some."""
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
    layers = [is_layer(walk, n) for n in given]
    if any(layers):
        return _with_layer(walk, node, given, layers)
    a, b = (summand(walk, n, node) for n in given)
    sign = 1 if node.target is aten.add.Tensor else -1
    alpha = sign * argument(node, 2, "alpha", 1)
    a, b, swapped = _broadcast(walk, node, a, b)
    scale_a, scale_b = (
        (a.scale * abs(alpha), b.scale) if swapped else (a.scale, b.scale * abs(alpha))
    )
    most = _largest_factor(node, a, b)
    step = _step_below(node) if walk.kept is not None else None
    if a.channels or b.channels:
        both, unit = _channel_factors(node, a, b, scale_a, scale_b)
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


def _with_layer(walk: Walk, node: Node, given: Any, layers: list[bool]) -> Term:
    """a ± b, where one at least is the accumulator of a layer."""
    a, b = (
        walk.term(n, node) if layer else summand(walk, n, node)
        for n, layer in zip(given, layers, strict=True)
    )
    own, shape = a.own_shape or b.own_shape, a.shape
    if own is not None:  # a Conv1d's [C, 1, L]
        a, b = (
            replace(t, shape=own, own_shape=None) if layer else reshape_to(walk, node, t, own)
            for t, layer in zip((a, b), layers, strict=True)
        )
        swapped = False
    else:
        a, b, swapped = _broadcast(walk, node, a, b)
    first, second = layers[::-1] if swapped else layers
    minus = node.target is not aten.add.Tensor
    pair = Operand(a, first, minus and swapped), Operand(b, second, minus and not swapped)
    made = sum_with_layer(walk, node, pair, fine=_becomes_fine(node))
    return made if own is None else replace(made, shape=shape, own_shape=own)


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
    node: Node, a: Term, b: Term, scale_a: float, scale_b: float
) -> tuple[Whole, float]:
    """int64[2, channels], as large as there is room and is felt, and the unit."""
    size = a.shape[-1]
    real = np.stack([
        np.broadcast_to(np.array(term.channels or 1.0) * scale, size)
        for term, scale in ((a, scale_a), (b, scale_b))
    ])  # fmt: skip
    largest = float(np.abs(real).max())
    usual = float(np.quantile(np.abs(real[real != 0]), 0.1))
    room = min(_largest_factor(node, a, b), CHANNEL_FACTOR)
    if node.meta.get(LARGEST):
        sizes = np.abs(real) / largest * [[a.centred.magnitude], [b.centred.magnitude]]
        squares = _ROUNDED * math.sqrt(size * float((sizes.sum(0) ** 2).sum()))
        room = min(int(node.meta[LARGEST] * size / squares), CHANNEL_FACTOR)
    unit = largest / min(room, math.ceil(_USUAL_FACTOR * largest / usual))
    return np.rint(real / unit).astype(np.int64), unit


def _largest_factor(node: Node, a: Term, b: Term) -> int:
    """Of a sum that stays an accumulator: small enough for D·x - Σ x of it, as in LayerNorm, and
    for no value above LARGEST."""
    if not node.meta.get(EXACT):
        return INT32.hi
    room = node.meta.get(LARGEST, INT32.hi / (2 * a.shape[-1])) / _ROUNDED
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


def mul(walk: Walk, node: Node) -> Term:
    """a · b of two activations, or of one value and a constant for each channel; of one value
    alone a function of it."""
    if node.meta.get(SHOWN):
        return _shown(walk, node)
    made = fused(walk, node)
    if made is not None:
        return made
    constants = [walk.value(n) for n in node.args[:2]]
    for place in (0, 1):
        if isinstance(constants[place], Tensor):
            return _by_channel(walk, node, node.args[1 - place], constants[place])
    a, b = (exact_operand(walk, n, node) for n in node.args[:2])
    a, b, _ = _broadcast(walk, node, a, b)
    name, proven = walk.name(node), (a.centred * b.centred).magnitude
    quotient = walk.builder.quotient(a.name, b.name)
    layer = ops.Mul(
        name=name, inputs=(a.name, b.name), scale=short(a.scale * b.scale),
        bound=walk.builder.bound(name, proven if quotient is None else min(proven, quotient)),
    )  # fmt: skip
    return walk.builder.accumulator(layer, a.shape)


def _shown(walk: Walk, node: Node) -> Term:
    """f(x) · m with m of 0 and 1, as f(x + g · m - g): g so large that f is 0 for the largest x
    less g, as it is for all below."""
    x, shown = walk.term(node.args[0], node), walk.activation(node.args[1], node)
    bare = replace(x, functions=(), limits=(-math.inf, math.inf))
    bare, shown, swapped = _broadcast(walk, node, bare, shown)
    bits = (shown.centred.lo, shown.centred.hi) == (0, 1)
    if swapped or x.multiplier != (1,) or x.own_shape or not bits:
        raise unsupported(node, "a mask that is not 0 or 1", "make it of an input of 0 and 1")
    top, gap = x.centred.hi, 1
    while abs(float(x.apply(np.array([(top - gap) * x.scale]))[0])) > _NOTHING:
        gap *= 2
        if gap > INT32.hi:
            raise unsupported(node, "a function of scores that is nowhere 0")
    low = gap // 2
    while gap - low > 1:  # the least there is
        middle = (low + gap) // 2
        hidden = abs(float(x.apply(np.array([(top - middle) * x.scale]))[0])) <= _NOTHING
        low, gap = (low, middle) if hidden else (middle, gap)
    made = _sum(walk, node, (bare, shown), np.array([[1], [gap]]), x.scale)
    real = gap * x.scale
    return replace(made, functions=(lambda v: v - real, *x.functions), limits=None)


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
    made: Term = walk.builder.accumulator(layer, a.shape)
    if len(pair) > 2:
        own = channel_magnitudes(pair, a.centred, b.centred)
        made = replace(made, sizes=tuple(min(each, layer.bound) for each in own))
    return made


def _exact(walk: Walk, node: Node, x: Term) -> Term:
    """The accumulator of an activation with scales by channel, all on one unit."""
    kept = {0.0, max(x.channels)}
    if kept.issuperset(x.channels):
        whole = np.array([[int(factor > 0) for factor in x.channels], [0] * len(x.channels)])
        return _sum(walk, node, (x, x), whole, x.scale * max(x.channels))
    both, unit = _channel_factors(node, x, replace(x, channels=()), x.scale, 0.0)
    return _sum(walk, node, (x, x), both, unit)


def _broadcast(walk: Walk, node: Node, a: Term, b: Term) -> tuple[Term, Term, bool]:
    """The operands with equal ranks, the one of full shape first; True if they changed places."""
    shape = walk.shape(node) or (1,)  # a number for each sample keeps one axis
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
    if node.meta.get(SQUARES):
        return _squares(walk, node)
    a, b = (exact_operand(walk, n, node) for n in node.args[:2])
    if len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or len(a.shape) < 2:
        raise unsupported(node, f"shapes {a.shape} and {b.shape}", "equal leading axes")
    return _product(walk, node, a, b)


def _squares(walk: Walk, node: Node) -> Term:
    """D · Σ x² - (Σ x)² = D · Σ (x - mean)² of the rows of D values whose differences from their
    mean are multiplied with themselves."""
    difference: Any = node.args[0].args[0]  # type: ignore[union-attr]
    x = exact_operand(walk, difference.args[0], node)
    size, row = x.shape[-1], (*x.shape[:-1], 1, x.shape[-1])
    one = replace(reshape_to(walk, node, x, row), sizes=x.sizes)
    whole = _product(walk, node, one, one, transpose_b=True)
    total = reshape_to(walk, node, row_total(walk, node, x), (*x.shape[:-1], 1, 1))
    square = _product(walk, node, total, total)
    factors = np.array([[size], [-1]])
    return _sum(walk, node, (whole, square), factors, whole.scale / size)


def _product(walk: Walk, node: Node, a: Term, b: Term, *, transpose_b: bool = False) -> Term:
    """a @ b over the last two axes, a @ bᵀ if ``transpose_b``."""
    name = walk.name(node)
    proven = (a.centred * b.centred).magnitude * a.shape[-1]
    if transpose_b and a is b and a.sizes:
        proven = sum(size * size for size in a.sizes)
    layer = ops.MatMul(
        name=name, inputs=(a.name, b.name), transpose_b=transpose_b,
        bound=walk.builder.bound(name, proven), scale=short(a.scale * b.scale),
    )  # fmt: skip
    return walk.builder.accumulator(layer, (*a.shape[:-1], b.shape[-2 if transpose_b else -1]))
