"""Sums, means and maxima over axes of activations, and what a sum may read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.build import short
from secure_quant.ir.terms import Term
from secure_quant.quantizer.lower.layers import argument, sum_pool
from secure_quant.quantizer.lower.moves import reshape_to, transpose_to
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.refuse import unsupported

__all__ = ["amax", "mean", "row_total", "summand", "total"]

aten = torch.ops.aten

_EXACT_SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.mean.dim,
               aten.sum.dim_IntList, aten.avg_pool2d.default}  # fmt: skip
"""What a sum may read without rounding."""


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
    x = summand(walk, node.args[0], node)
    axes = _axes(node, x, node.args[1])
    if x.accumulator and axes != [len(x.shape) - 1]:
        raise unsupported(node, "a mean of an exact sum over other axes than the last")
    return _reduce(walk, node, x, axes, math.prod(x.shape[i] for i in axes))


def total(walk: Walk, node: Node) -> Term:
    """Sum over any axes of the sample."""
    x: Term = walk.activation(node.args[0], node)
    return _reduce(walk, node, x, _axes(node, x, node.args[1]), 1)


def summand(walk: Walk, argument: Any, node: Node) -> Term:
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
    return viewed(row_total(walk, node, x, divisor), shape)


def row_total(walk: Walk, node: Node, x: Term, divisor: float = 1) -> Term:
    """Σ over the last axis."""
    name = walk.name(node)
    proven = sum(x.sizes) or x.centred.magnitude * x.shape[-1]
    layer = ops.ReduceSum(
        name=name, inputs=(x.name,), scale=short(x.scale / divisor),
        bound=walk.builder.bound(name, proven),
    )  # fmt: skip
    return walk.builder.accumulator(layer, (*x.shape[:-1], 1))
