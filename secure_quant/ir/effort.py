"""How much work a graph is, roughly: what a client's patience is made of before it has asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from secure_quant.ir import ops
from secure_quant.ir.graph import Graph

__all__ = ["Effort", "effort"]

_TABLES = (ops.Requantize, ops.MaxPool, ops.ReduceMax)


@dataclass(frozen=True)
class Effort:
    """Of one sample. products: of two integers, in sums. lookups: values that go through a table or
    a comparison. depth: ops of the longest chain that are no mere moves."""

    products: int
    lookups: int
    depth: int

    def seconds(self, product: float, lookup: float, step: float) -> float:
        """With so many seconds for each of them."""
        return self.products * product + self.lookups * lookup + self.depth * step


def effort(graph: Graph) -> Effort:
    """Counted from shapes alone."""
    products = lookups = 0
    depth: dict[str, int] = {}
    for node in graph.nodes:
        value = graph.values[node.name]
        each = _products(graph, node)
        products += value.size * each
        if isinstance(node, _TABLES):
            sources = max(graph.values[name].size for name in node.inputs)
            lookups += value.size if isinstance(node, ops.Requantize) else sources
        step = bool(each) or isinstance(node, (*_TABLES, *ops.DYNAMIC))
        depth[node.name] = step + max((depth[name] for name in node.inputs), default=0)
    return Effort(products, lookups, depth[graph.output.name])


def _products(graph: Graph, node: ops.Node) -> int:
    """For one of its integers."""
    match node:
        case ops.Linear():
            return node.in_features
        case ops.Conv2d():
            return node.in_channels // node.groups * prod(node.kernel)
        case ops.MatMul():
            return graph.values[node.inputs[0]].shape[-1]
        case ops.Mul():
            return 1
    return 0
