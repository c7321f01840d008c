"""Norms, variances, distances and logarithms of sums, written out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.passes.writer import RECIPROCAL_BITS, Rule, Writer

__all__ = ["STATISTICS"]

aten = torch.ops.aten


def _var(edit: Writer, given: dict[str, Any]) -> Node | None:
    """The mean square of the differences from the mean, over axes of the sample."""
    x, dims = given["self"], given.get("dim")
    rank = x.meta["val"].ndim
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims or [0])]
    if 0 in axes:
        return None
    correction = given.get("correction", int(given.get("unbiased", True)))
    count = math.prod(int(x.meta["val"].shape[a]) for a in axes)
    left = count - (1 if correction is None else correction)
    if left <= 0:
        return None
    apart = edit.call(aten.sub.Tensor, x, edit.call(aten.mean.dim, x, axes, True))
    squares = edit.call(aten.square.default, apart)
    mean = edit.call(aten.mean.dim, squares, axes, bool(given.get("keepdim")))
    return edit.scaled(mean, count / left)


def _std(edit: Writer, given: dict[str, Any]) -> Node | None:
    variance = _var(edit, given)
    return None if variance is None else edit.call(aten.sqrt.default, variance)


def _vector_norm(edit: Writer, given: dict[str, Any]) -> Node | None:
    """A norm of order above 0, over axes of the sample."""
    x, dims = given["self"], given.get("dim")
    order = given.get("ord", given.get("p", 2))
    order = 2.0 if order is None else float(order)
    rank = x.meta["val"].ndim
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims or [0])]
    if 0 in axes or order <= 0:
        return None
    return _norm_over(edit, x, order, axes, bool(given.get("keepdim")))


def _norm_over(edit: Writer, x: Node, order: float, axes: list[int], keep: bool) -> Node:
    parts = edit.call(aten.square.default, x) if order == 2 else edit.call(aten.abs.default, x)
    if math.isinf(order):
        return edit.call(aten.amax.default, parts, axes, keep)
    if order in (1, 2):
        total = edit.call(aten.sum.dim_IntList, parts, axes, keep)
        return edit.call(aten.sqrt.default, total) if order == 2 else total
    powers = edit.call(aten.pow.Tensor_Scalar, parts, order)
    total = edit.call(aten.sum.dim_IntList, powers, axes, keep)
    return edit.call(aten.pow.Tensor_Scalar, total, 1 / order)


def _cosine(edit: Writer, given: dict[str, Any]) -> Node | None:
    """The sum of products of two values of length 1 each."""
    parts, eps = [given["x1"], given["x2"]], given.get("eps", 1e-8)
    rank = max(part.meta["val"].ndim for part in parts)
    axis = given.get("dim", 1) % rank
    if axis == 0 or any(part.meta["val"].ndim != rank for part in parts):
        return None
    units = []
    for part in parts:
        squares = edit.call(aten.square.default, part)
        length = edit.call(
            aten.sqrt.default, edit.call(aten.sum.dim_IntList, squares, [axis], True)
        )
        above = edit.call(aten.clamp_min.default, length, eps)
        inverse = edit.call(aten.reciprocal.default, above, bits=RECIPROCAL_BITS)
        units.append(edit.call(aten.mul.Tensor, part, inverse))
    return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, *units), [axis])


def _group_norm(edit: Writer, given: dict[str, Any]) -> Node:
    """Each group of channels, all places together, as one row of a LayerNorm."""
    eps = given.get("eps", 1e-5)
    return _normed(edit, given, given["input"], given["num_groups"], eps)


def _instance_norm(edit: Writer, given: dict[str, Any]) -> Node | None:
    """By the statistics of the sample each channel is a group; else it is a BatchNorm."""
    x = given["input"]
    if not given.get("use_input_stats"):
        return None
    return _normed(edit, given, x, int(x.meta["val"].shape[1]), given.get("eps", 1e-5))


def _normed(edit: Writer, given: dict[str, Any], x: Node, groups: int, eps: float) -> Node:
    batch, channels, *rest = edit.sizes(x)
    size = channels // groups * math.prod(rest)
    rows = edit.call(aten.reshape.default, x, [batch, groups, size])
    rows = edit.call(aten.layer_norm.default, rows, [size], None, None, eps)
    made = edit.as_they_were(rows, x)
    return _by_parameters(edit, made, given, [channels, *[1] * len(rest)])


def _by_parameters(edit: Writer, x: Node, given: dict[str, Any], shape: list[int]) -> Node:
    """x · weight + bias, where there are any, as constants of ``shape``."""
    for name, target in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if given.get(name) is not None:
            x = edit.call(target, x, edit.call(aten.reshape.default, given[name], shape))
    return x


def _layer_norm(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Over several axes: over one that joins them."""
    x, shape = given["input"], list(given["normalized_shape"])
    if len(shape) == 1:
        return None
    size = math.prod(shape)
    rows = edit.call(aten.reshape.default, x, [*edit.sizes(x)[: -len(shape)], size])
    mean_too = edit.node.target is aten.layer_norm.default
    rest = [None, given.get("eps", 1e-5)] if mean_too else [given.get("eps")]
    rows = edit.call(edit.node.target, rows, [size], None, *rest)
    return _by_parameters(edit, edit.as_they_were(rows, x), given, shape)


def _log_softmax(edit: Writer, given: dict[str, Any]) -> Node:
    """c - log Σ exp c of c = x - max x."""
    x, dim = given["self"], given["dim"]
    centred, total = _exponential_sum(edit, x, [dim])
    return edit.call(aten.sub.Tensor, centred, edit.call(aten.log.default, total, bits=12))


def _logsumexp(edit: Writer, given: dict[str, Any]) -> Node:
    """max x + log Σ exp(x - max x)."""
    x, dims = given["self"], given["dim"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    _, total = _exponential_sum(edit, x, dims)
    largest = edit.call(aten.amax.default, x, dims, True)
    made = edit.call(aten.add.Tensor, largest, edit.call(aten.log.default, total, bits=12))
    return made if given.get("keepdim") else edit.call(aten.squeeze.dims, made, dims)


def _exponential_sum(edit: Writer, x: Node, dims: list[int]) -> tuple[Node, Node]:
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.amax.default, x, dims, True))
    exponentials = edit.call(aten.exp.default, centred)
    return centred, edit.call(aten.sum.dim_IntList, exponentials, dims, True)


def _distance(edit: Writer, given: dict[str, Any]) -> Node:
    """The norm of the difference over the last axis; torch adds eps to that."""
    apart = edit.call(aten.sub.Tensor, given["x1"], given["x2"])
    apart = edit.call(aten.add.Tensor, apart, given.get("eps", 1e-6))
    return _norm_over(edit, apart, given.get("p", 2.0), [-1], bool(given.get("keepdim")))


def _distances(edit: Writer, given: dict[str, Any]) -> Node | None:
    """|a|² + |b|² - 2 a b of each pair of rows; 12 bits, of which near rows leave few."""
    a, b = given["x1"], given["x2"]
    if float(given.get("p", 2.0)) != 2 or a not in edit.roots:
        return None
    squares = [
        edit.call(aten.sum.dim_IntList, edit.call(aten.square.default, x), [-1], True, bits=12)
        for x in (a, b)
    ]
    turned = edit.call(aten.transpose.int, b, -2, -1)
    products = edit.call(aten.matmul.default, a, turned)
    products = edit.call(aten.mul.Tensor, products, -2.0, bits=12)
    ends = edit.call(aten.transpose.int, squares[1], -2, -1)
    total = edit.call(aten.add.Tensor, edit.call(aten.add.Tensor, products, squares[0]), ends)
    return edit.call(aten.sqrt.default, edit.call(aten.clamp_min.default, total, 0.0))


STATISTICS: Mapping[Any, Rule] = {
    aten.var.dim: _var,
    aten.var.correction: _var,
    aten.std.dim: _std,
    aten.std.correction: _std,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.cosine_similarity.default: _cosine,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _layer_norm,
    aten.log_softmax.int: _log_softmax,
    aten._log_softmax.default: _log_softmax,
    aten.logsumexp.default: _logsumexp,
    aten.pairwise_distance.default: _distance,
    aten.cdist.default: _distances,
}
