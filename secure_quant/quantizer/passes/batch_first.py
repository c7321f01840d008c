"""Steps that move the batch axis, and a later one that brings it back, as steps that leave it.

What attention by hand does, ``q, k, v = qkv.reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4)``, has
the batch first again in each of the three. A permutation is passed on from reader to reader until
the batch is first; where it never is, the lowering refuses it as before.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import ELEMENTWISE
from secure_quant.quantizer.passes.edit import Editor

__all__ = ["keep_batch_first"]

aten = torch.ops.aten

_REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default}
_NAMES = {aten.swapaxes.default, aten.swapdims.default, aten.movedim.int}


def keep_batch_first(module: GraphModule) -> None:
    """Pass permutations on that do not leave the batch first. Changes no value of the output."""
    for node in list(module.graph.nodes):
        if node.target in _NAMES:
            _as_permute(module, node)
    node = next(iter(module.graph.nodes))
    while node.op != "root":
        if node.target is aten.stack.default and _dim(node, 1, 0, node) == 0:
            node = _stacked(module, node)
        order = _order(node)
        if order is not None and order[0] != 0:
            for user in list(node.users):
                _pass_on(module, node.args[0], order, node, user)
        node = node.next
    module.graph.eliminate_dead_code()
    module.recompile()


def _as_permute(module: GraphModule, node: Node) -> None:
    """swapaxes and movedim, which no later pass knows."""
    edit, rank, args = Editor(module, node), int(node.meta["val"].ndim), node.args
    order = list(range(rank))
    a, b = (int(d) % rank for d in args[1:3])  # type: ignore[arg-type]
    if node.target is aten.movedim.int:
        order.insert(b, order.pop(a))
    else:
        order[a], order[b] = order[b], order[a]
    x: Any = args[0]
    edit.replace(edit.call(aten.permute.default, x, order))


def _stacked(module: GraphModule, node: Node) -> Node:
    """stack(parts, 0) as a permutation of stack(parts, 1)."""
    parts: Any = node.args[0]
    if not parts[0].meta["val"].ndim:
        return node
    edit = Editor(module, node)
    wide = edit.call(aten.stack.default, parts, 1)
    made = edit.call(aten.transpose.int, wide, 0, 1)
    edit.replace(made)
    return made


def _order(node: Node) -> list[int] | None:
    """Which axis of its input each axis of ``node`` is; None if it is no permutation."""
    if node.target is aten.permute.default:
        dims: Any = node.args[1]
        return [d % len(dims) for d in dims]
    if node.target in (aten.transpose.int, aten.t.default):
        order = list(range(node.meta["val"].ndim))
        if len(order) > 1:
            a, b = (_dim(node, 1, 0, node), _dim(node, 2, 1, node))
            order[a], order[b] = order[b], order[a]
        return order
    return None


def _dim(node: Node, place: int, default: int, of: Node) -> int:
    """An argument that is an axis of the value of ``of``."""
    given: Any = node.args[place] if len(node.args) > place else node.kwargs.get("dim", default)
    return int(given) % int(of.meta["val"].ndim)


def _pass_on(module: GraphModule, x: Any, order: list[int], node: Node, user: Node) -> None:
    """``user`` of ``node``, which is ``x`` in ``order``, computed of ``x`` and then permuted."""
    edit, inner = Editor(module, user), _order(user)
    if user.kwargs or list(user.all_input_nodes)[:1] != [node] or user.args[0] is not node:
        return
    if inner is not None:
        edit.replace(_permuted(edit, x, [order[i] for i in inner]))
    elif user.target is aten.select.int:
        edit.replace(_selected(edit, x, order, _dim(user, 1, 0, node), user.args[2]))
    elif user.target is aten.unbind.int:
        for part in [p for p in user.users if p.target is operator.getitem]:
            own = Editor(module, part)
            own.replace(_selected(own, x, order, _dim(user, 1, 0, node), part.args[1]))
    elif user.target is aten.max.dim:
        for part in [p for p in user.users if p.args[1] == 0]:
            _reduce(Editor(module, part), x, order, user)
    elif user.target in _REDUCTIONS:
        _reduce(edit, x, order, user)
    elif _commutes(user, order):
        edit.replace(_permuted(edit, edit.call(user.target, x, *user.args[1:]), order))
    elif user.target is aten.softmax.int and len(user.args) == 2:
        made = edit.call(user.target, x, order[_dim(user, 1, 0, node)])
        edit.replace(_permuted(edit, made, order))


def _commutes(user: Node, order: list[int]) -> bool:
    """True for a function of each element, or of rows that stay the last axis."""
    if user.target is aten.linear.default:
        return order[-1] == len(order) - 1
    return user.target in ELEMENTWISE and len(user.all_input_nodes) == 1


def _selected(edit: Editor, x: Node, order: list[int], dim: int, index: Any) -> Node:
    axis = order[dim]
    made = edit.call(aten.select.int, x, axis, index)
    return _permuted(edit, made, _without(order, {axis}))


def _reduce(edit: Editor, x: Node, order: list[int], user: Node) -> None:
    """A sum, mean or maximum over the same axes; of max(dim) the values, which edit's node is."""
    dims: Any = user.args[1] if len(user.args) > 1 else None
    if dims is None or dims == []:
        return
    given = [dims] if isinstance(dims, int) else dims
    axes = [order[d % len(order)] for d in given]
    kept = len(user.args) > 2 and bool(user.args[2])
    target = aten.amax.default if user.target is aten.max.dim else user.target
    made = edit.call(target, x, axes, kept)
    edit.replace(_permuted(edit, made, order if kept else _without(order, set(axes))))


def _without(order: list[int], gone: set[int]) -> list[int]:
    """The order of the axes that are left once those ``gone`` are."""
    return [axis - sum(g < axis for g in gone) for axis in order if axis not in gone]


def _permuted(edit: Editor, x: Node, order: list[int]) -> Node:
    return x if order == list(range(len(order))) else edit.call(aten.permute.default, x, order)
