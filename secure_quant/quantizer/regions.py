"""Parts of a forward that the exporter keeps as graphs of their own, put back in their place.

``with torch.autocast(device, enabled=False)`` and ``with torch.no_grad()`` say how something is
computed, and at inference in float32 change nothing.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.refuse import unsupported

__all__ = ["inline_regions"]

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_regions(module: GraphModule) -> None:
    """In place, inner ones too. Raises UnsupportedModule for autocast of the CPU that is on."""
    for node in list(module.graph.nodes):
        place = 1 if node.target is _GRAD else 4 if node.target is _AUTOCAST else None
        if place is None:
            continue
        if place == 4 and node.args[2] and node.args[0] == "cpu":
            raise unsupported(node, f"a part in {node.args[1]}, which rounds on its own")
        part: Any = node.args[place]
        region = module.get_submodule(str(part.target))
        if isinstance(region, GraphModule):
            inline_regions(region)
            _inline(module, node, region, node.args[place + 1 :])
    module.graph.eliminate_dead_code()
    module.recompile()


def _inline(module: GraphModule, node: Node, region: GraphModule, given: Any) -> None:
    graph = module.graph
    sources = [n for n in region.graph.nodes if n.op == "placeholder"]
    made: dict[Node, Any] = dict(zip(sources, given, strict=True))
    for inner in region.graph.nodes:
        if inner.op == "get_attr":
            name = f"sq_{node.name}_{inner.name}"
            setattr(module, name, getattr(region, str(inner.target)))
            inner.target = name
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(region.graph, made)
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
