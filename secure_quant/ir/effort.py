"""How much work a graph is, roughly: what a client's patience is made of before it has asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from secure_quant.ir import ops
from secure_quant.ir.graph import Graph

__all__ = [
    "ROUNDS_A_STEP", "ROUND_TRIP_S", "Effort", "between_parties_s", "effort", "of_node",
]  # fmt: skip

ROUND_TRIP_S = 0.1
"""Of a round of two parties, at most, unless somebody knows better."""
ROUNDS_A_STEP = 16
"""Of two parties, at most: more than any plan has for an op of the longest chain."""
_PRODUCT_S, _LOOKUP_S = 6e-9, 9e-6
"""Several times what two parties and a dealer on slow, busy cores took; a lookup's bytes at
100 Mbit/s included."""

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


def between_parties_s(graph: Graph, rounds: int, round_trip_s: float) -> float:
    """Seconds that a sample may take two parties, with so many rounds. What somebody else says of
    the rounds counts no further than the graph makes plausible."""
    work = effort(graph)
    plausible = min(rounds, ROUNDS_A_STEP * (work.depth + 1))
    return work.seconds(_PRODUCT_S, _LOOKUP_S, 0.0) + plausible * round_trip_s


def effort(graph: Graph) -> Effort:
    """Counted from shapes alone."""
    products = lookups = 0
    depth: dict[str, int] = {}
    for node in graph.nodes:
        made, looked_up = of_node(graph, node)
        products, lookups = products + made, lookups + looked_up
        step = bool(made) or isinstance(node, (*_TABLES, *ops.DYNAMIC))
        depth[node.name] = step + max((depth[name] for name in node.inputs), default=0)
    return Effort(products, lookups, depth[graph.output.name])


def of_node(graph: Graph, node: ops.Node) -> tuple[int, int]:
    """Products and lookups of a node."""
    size, lookups = graph.values[node.name].size, 0
    if isinstance(node, _TABLES):
        sources = max(graph.values[name].size for name in node.inputs)
        lookups = size if isinstance(node, ops.Requantize) else sources
    return size * _products(graph, node), lookups


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
