"""Reshape, transpose, slice, split, concatenate: the same integers in other places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.ir.terms import Term
from secure_quant.quantizer.lower.layers import argument
from secure_quant.quantizer.lower.walk import Walk
from secure_quant.quantizer.refuse import unsupported

__all__ = [
    "concat",
    "exact_operand",
    "gather",
    "narrow",
    "permute",
    "reshape",
    "reshape_to",
    "select",
    "split",
    "transpose",
    "transpose_last",
    "transpose_to",
    "unbind",
]


def reshape(walk: Walk, node: Node) -> Term:
    """Any op that only regroups axes in row-major order."""
    return reshape_to(walk, node, exact_operand(walk, node.args[0], node), walk.shape(node))


def exact_operand(walk: Walk, argument: Any, node: Node) -> Term:
    """An activation, or a sum or product of values as it stands."""
    term: Term = walk.term(argument, node)
    waits = term.functions or term.dynamic or term.real or term.channels
    whole = term.multiplier == (1,) and term.own_shape is None
    if walk.kept is None and term.accumulator and not waits and whole:
        return term
    return walk.activation(argument, node)


def reshape_to(walk: Walk, node: Node, x: Term, shape: tuple[int, ...]) -> Term:
    """``x`` with another per-sample shape; a scalar per sample keeps one axis."""
    shape = shape or (1,)
    if shape == x.shape:
        return x
    return walk.builder.move(
        ops.Reshape(name=walk.name(node), inputs=(x.name,), shape=shape), x, shape
    )


def transpose_to(walk: Walk, node: Node, x: Term, order: tuple[int, ...]) -> Term:
    """``x`` with its sample axes in ``order``."""
    if order == tuple(range(len(order))):
        return x
    shape = tuple(x.shape[i] for i in order)
    return walk.builder.move(
        ops.Transpose(name=walk.name(node), inputs=(x.name,), permutation=order), x, shape
    )


def permute(walk: Walk, node: Node) -> Term:
    """permute(x, dims) that leaves the batch axis first."""
    x: Term = walk.activation(node.args[0], node)
    rank = len(x.shape) + 1
    dims: Any = node.args[1]
    order = [d % rank for d in dims]
    if order[0] != 0:
        raise _moves_batch(node)
    return transpose_to(walk, node, x, tuple(d - 1 for d in order[1:]))


def transpose(walk: Walk, node: Node) -> Term:
    """transpose(x, a, b) of two sample axes."""
    x: Term = exact_operand(walk, node.args[0], node)
    rank = len(x.shape) + 1
    a, b = argument(node, 1, "dim0", 0) % rank, argument(node, 2, "dim1", 1) % rank
    if 0 in (a, b) and a != b:
        raise _moves_batch(node)
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return transpose_to(walk, node, x, tuple(d - 1 for d in order[1:]))


def transpose_last(walk: Walk, node: Node) -> Term:
    """The last two axes exchanged."""
    x: Term = walk.activation(node.args[0], node)
    order = tuple(range(len(x.shape)))
    if len(order) < 2:
        raise _moves_batch(node)
    return transpose_to(walk, node, x, (*order[:-2], order[-1], order[-2]))


def _axis(node: Node, x: Term, dim: int) -> int:
    """A torch dim as an axis of the sample."""
    axis = dim % (len(x.shape) + 1) - 1
    if axis < 0:
        raise _moves_batch(node)
    return axis


def _cut(walk: Walk, node: Node, x: Term, axis: int, start: int, stop: int, step: int = 1) -> Term:
    if (start, stop, step) == (0, x.shape[axis], 1):
        return x
    shape = list(x.shape)
    shape[axis] = -(-(stop - start) // step)
    return walk.builder.move(
        ops.Slice(name=walk.name(node), inputs=(x.name,), axis=axis, start=start, stop=stop,
                  step=step),
        x, tuple(shape),
    )  # fmt: skip


def narrow(walk: Walk, node: Node) -> Term:
    """x[:, ..., start:stop:step]; a full slice of the batch axis passes."""
    x: Term = walk.activation(node.args[0], node)
    dim = argument(node, 1, "dim", 0) % (len(x.shape) + 1)
    start, stop = argument(node, 2, "start", 0) or 0, argument(node, 3, "end")
    if dim == 0:
        if start == 0 and (stop is None or (isinstance(stop, int) and stop > 2**31)):
            return x
        raise _moves_batch(node)
    size = x.shape[dim - 1]
    start, stop, _ = slice(start, stop).indices(size)
    return _cut(walk, node, x, dim - 1, start, stop, argument(node, 4, "step", 1))


def gather(walk: Walk, node: Node) -> Term:
    """index_select with constant places."""
    x = walk.activation(node.args[0], node)
    axis = _axis(node, x, argument(node, 1, "dim"))
    index = walk.value(argument(node, 2, "index"))
    size = x.shape[axis]
    places = tuple(int(place) % size for place in index.reshape(-1))
    shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
    moved = ops.Gather(name=walk.name(node), inputs=(x.name,), axis=axis, index=places)
    return walk.builder.move(moved, x, shape)


def select(walk: Walk, node: Node) -> Term:
    """x[:, ..., index]."""
    x: Term = walk.activation(node.args[0], node)
    dim, place = argument(node, 1, "dim"), argument(node, 2, "index")
    axis = _axis(node, x, dim)
    index = place % x.shape[axis]
    row = _cut(walk, node, x, axis, index, index + 1)
    return reshape_to(walk, node, row, walk.shape(node))


def split(walk: Walk, node: Node) -> list[Term]:
    """chunk and split along one axis."""
    x: Term = walk.activation(node.args[0], node)
    axis = _axis(node, x, argument(node, 2, "dim", 0))
    pieces, start = [], 0
    for made in node.meta["tensor_meta"]:
        size = made.shape[axis + 1]
        pieces.append(_cut(walk, node, x, axis, start, start + size))
        start += size
    return pieces


def unbind(walk: Walk, node: Node) -> list[Term]:
    """Every x[:, ..., i]."""
    x: Term = walk.activation(node.args[0], node)
    axis = _axis(node, x, argument(node, 1, "dim", 0))
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [
        reshape_to(walk, node, _cut(walk, node, x, axis, i, i + 1), shape)
        for i in range(x.shape[axis])
    ]


def concat(walk: Walk, node: Node) -> Term:
    """cat of activations that share scale and zero point."""
    joined_nodes: Any = node.args[0]
    terms = [walk.activation(n, node) for n in joined_nodes]
    axis = _axis(node, terms[0], argument(node, 1, "dim", 0))
    joined = ops.Concat(name=walk.name(node), inputs=tuple(t.name for t in terms), axis=axis)
    made: Term = walk.builder.move(joined, terms[0], walk.shape(node))
    whole = terms[0].range
    for term in terms:
        whole = whole.hull(term.range)
    return replace(made, range=whole)


def _moves_batch(node: Node) -> Exception:
    return unsupported(
        node, "a step that moves or cuts the batch axis", "keep the batch axis first and alone"
    )
