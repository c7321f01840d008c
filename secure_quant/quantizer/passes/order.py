"""Order of steps that commute: an activation function fused into the layer before costs nothing."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

__all__ = ["activation_before_pool"]

aten = torch.ops.aten

_INCREASING = {
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.hardsigmoid.default,
}


def activation_before_pool(module: GraphModule) -> None:
    """pool -> relu becomes relu -> pool: the same values, for a function that never falls."""
    for node in list(module.graph.nodes):
        if node.target not in _INCREASING:
            continue
        pool = node.args[0]
        if pool.target is not aten.max_pool2d.default or len(pool.users) != 1:
            continue
        before = pool.args[0]
        with module.graph.inserting_before(pool):
            made = module.graph.call_function(node.target, (before, *node.args[1:]), node.kwargs)
        made.meta = dict(node.meta, val=before.meta["val"])
        pool.update_arg(0, made)
        node.replace_all_uses_with(pool)
        module.graph.erase_node(node)
