"""Maxima over places some of which a constant hides, as a pool over the words of a sentence has it.

``(x + mask).amax(1)`` with a mask of 0 and -1e9 is the maximum of the places that are left: on one
scale with -1e9 nothing of x would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import constant_of
from secure_quant.quantizer.passes.indexing import Mover, argument, rank_of

__all__ = ["lower_masked_maxima"]

aten = torch.ops.aten
_HIDES = 1e3
"""So far below the others a place never has the maximum. Where it has after all, the graph is not
the module, and is refused."""


def lower_masked_maxima(module: GraphModule) -> None:
    """Leave places out that a constant hides from a maximum over one axis, in place."""
    for node in list(module.graph.nodes):
        if node.target is not aten.amax.default:
            continue
        dims: Any = argument(node, 1, "dim", [])
        x, mask = _masked(module, argument(node, 0, "self"))
        if mask is None or len(dims) != 1 or dims[0] % rank_of(x) == 0:
            continue
        edit, axis = Mover(module, node), dims[0] % rank_of(x)
        hidden = mask.amax(axis, keepdim=True) - mask > _HIDES
        rows = hidden.movedim(axis, 0).flatten(1)
        if not bool(hidden.any()) or not bool((rows == rows[:, :1]).all()):
            continue
        kept = (~rows[:, 0]).nonzero().flatten()
        shown = edit.gather(x, axis, kept.tolist())
        left = mask.index_select(axis, kept)
        if bool(left.any()):
            shown = edit.call(aten.add.Tensor, shown, edit.constant(left))
        edit.replace(edit.call(aten.amax.default, shown, *node.args[1:], **node.kwargs))
    module.graph.eliminate_dead_code()


def _masked(module: GraphModule, node: Node) -> tuple[Node, torch.Tensor | None]:
    """(x, a constant [1, *sample]) of x + constant; the node itself and None for others."""
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return node, None
    shape = [1, *map(int, node.meta["val"].shape[1:])]
    for x, other in (node.args, node.args[::-1]):
        value = constant_of(module, other)
        if value is None or not isinstance(x, Node) or len(x.meta["val"].shape) != len(shape):
            continue
        if x.meta["val"].shape[1:] == node.meta["val"].shape[1:] and value.ndim <= len(shape):
            if value.ndim == len(shape) and len(value) != 1:
                return node, None
            return x, torch.broadcast_to(value.float(), shape)
    return node, None
