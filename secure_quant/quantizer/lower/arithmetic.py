"""Sums, products and maxima of activations."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.build import short
from secure_quant.ir.terms import Term
from secure_quant.quantizer.lower.layers import argument, sum_pool
from secure_quant.quantizer.lower.moves import reshape_to, transpose_to
from secure_quant.quantizer.refuse import unsupported

__all__ = ["add", "amax", "matmul", "mean", "mul", "total"]

FACTOR_ERROR = 1 / 512
"""Largest relative error of the ratio of two scales in an Add: half a step at full range."""


def factors(ratio: float) -> ops.Pair:
    """The smallest (f, g) with f / g within FACTOR_ERROR of ``ratio`` = scale of a / scale of b."""
    if ratio < 1:
        g, f = factors(1 / ratio)
        return f, g
    for below in range(1, 513):
        above = round(ratio * below)
        if abs(above / (ratio * below) - 1) < FACTOR_ERROR:
            found = Fraction(above, below)
            return found.numerator, found.denominator
    raise ArithmeticError("unreachable: 512 steps always suffice")


def add(walk: Any, node: Node) -> Term:
    """a ± alpha·b of two activations, or exact sums, with factors that bring both to one scale."""
    a, b = (_summand(walk, n, node) for n in node.args[:2])
    sign = -1 if "sub" in str(node.target) else 1
    alpha = sign * argument(node, 2, "alpha", 1)
    a, b, swapped = _broadcast(walk, node, a, b)
    scale_a, scale_b = (
        (a.scale * abs(alpha), b.scale) if swapped else (a.scale, b.scale * abs(alpha))
    )
    f, g = factors(scale_a / scale_b)
    # The factors only approximate the ratio: the unit that splits the error between both.
    unit = math.sqrt(scale_a / f * scale_b / g)
    if alpha < 0:
        f, g = (-f, g) if swapped else (f, -g)
    name = walk.name(node)
    proven = (a.centred.times(f) + b.centred.times(g)).magnitude
    layer = ops.Add(
        name=name, inputs=(a.name, b.name), factors=(f, g),
        bound=walk.builder.bound(name, proven), scale=short(unit),
    )  # fmt: skip
    made: Term = walk.builder.accumulator(layer, a.shape)
    return made


def _summand(walk: Any, argument: Any, node: Node) -> Term:
    """An activation, or a sum over rows as it stands."""
    term: Term = walk.term(argument, node)
    exact = term.accumulator and not term.functions and term.dynamic is None
    if exact and term.multiplier == (1,) and term.own_shape is None:
        return term
    made: Term = walk.activation(argument, node)
    return made


def mul(walk: Any, node: Node) -> Term:
    """a · b of two activations."""
    a, b = (walk.activation(n, node) for n in node.args[:2])
    a, b, _ = _broadcast(walk, node, a, b)
    name = walk.name(node)
    layer = ops.Mul(
        name=name, inputs=(a.name, b.name), scale=short(a.scale * b.scale),
        bound=walk.builder.bound(name, (a.centred * b.centred).magnitude),
    )  # fmt: skip
    made: Term = walk.builder.accumulator(layer, a.shape)
    return made


def _broadcast(walk: Any, node: Node, a: Term, b: Term) -> tuple[Term, Term, bool]:
    """The operands with equal ranks, the one of full shape first; True if they changed places."""
    shape = walk.shape(node)
    swapped = a.shape != shape
    if swapped:
        a, b = b, a
    if a.shape != shape:
        raise unsupported(node, "two operands that both broadcast", "expand one of them first")
    padded = (1,) * (len(shape) - len(b.shape)) + b.shape
    return a, reshape_to(walk, node, b, padded), swapped


def matmul(walk: Any, node: Node) -> Term:
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
    made: Term = walk.builder.accumulator(layer, (*a.shape[:-1], b.shape[-1]))
    return made


def amax(walk: Any, node: Node) -> Term:
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


def mean(walk: Any, node: Node) -> Term:
    """Mean over any axes of the sample; the division is in the scale."""
    x: Term = walk.activation(node.args[0], node)
    axes = _axes(node, x, node.args[1])
    return _reduce(walk, node, x, axes, math.prod(x.shape[i] for i in axes))


def total(walk: Any, node: Node) -> Term:
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


def _reduce(walk: Any, node: Node, x: Term, axes: list[int], divisor: float) -> Term:
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
