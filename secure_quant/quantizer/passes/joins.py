"""Values of very different size side by side, as the class token beside the patches.

A join has one scale. Where its operands differ in size the small ones keep few of 255 steps: often
none, of a class token that was never trained. Where a normalization or a sum that is kept fine
reads the join, each row is taken for itself there, so that the join gets 12 bits, as those have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import BITS, CENTRING, EXACT
from secure_quant.quantizer.opset import ADDITIVE, CONCAT, SHAPING, WEIGHTED
from secure_quant.quantizer.positions import POSITIONS

__all__ = ["keep_joins_fine"]

aten = torch.ops.aten
FINE_BITS = 12
_SUMS = {aten.add.Tensor, aten.sub.Tensor}


def keep_joins_fine(module: GraphModule) -> None:
    """12 bits for joins of several values, or of a fine one, that something fine reads. In place:
    parts of one value that are moved keep the bits it has, unless a normalization reads them.
    So do positions that are added before."""
    nodes = [n for n in module.graph.nodes if n.target in CONCAT or n.target is POSITIONS]
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if any(_reads_fine(user, wanted) for user in node.users):
            wanted.add(node)
            if node.target is POSITIONS:
                node.meta.setdefault(BITS, FINE_BITS)
    for join in (n for n in nodes if n.target in CONCAT):
        joined: Any = join.args[0]
        sources = {_source(operand) for operand in joined}
        if join in wanted and (len(sources) > 1 or any(map(_is_fine, sources))):
            join.meta[BITS] = FINE_BITS


def _reads_fine(user: Node, wanted: set[Node]) -> bool:
    if user.meta.get(CENTRING) or user in wanted:
        return True
    if user.target in ADDITIVE | WEIGHTED and _is_fine(user):
        return True
    on = user.target in SHAPING or user.target in _SUMS
    return on and any(_reads_fine(reader, wanted) for reader in user.users)


def _is_fine(node: Node) -> bool:
    return bool(node.meta.get(BITS, 8) > 8 or node.meta.get(EXACT))


def _source(node: Node) -> Node:
    while node.target in SHAPING and isinstance(node.args[0], Node):
        node = node.args[0]
    return node
