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

__all__ = ["keep_joins_fine"]

aten = torch.ops.aten
FINE_BITS = 12
_SUMS = {aten.add.Tensor, aten.sub.Tensor}


def keep_joins_fine(module: GraphModule) -> None:
    """12 bits for joins of several values, or of a fine one, that something fine reads. In place:
    parts of one value that are moved keep the bits it has, unless a normalization reads them."""
    joins = [node for node in module.graph.nodes if node.target in CONCAT]
    wanted: set[Node] = set()
    for join in reversed(joins):
        if any(_reads_fine(user, wanted) for user in join.users):
            wanted.add(join)
    for join in joins:
        joined: Any = join.args[0]
        sources = {_source(operand) for operand in joined}
        if join in wanted and (len(sources) > 1 or any(map(_is_fine, sources))):
            join.meta[BITS] = FINE_BITS


def _reads_fine(user: Node, joins: set[Node]) -> bool:
    if user.meta.get(CENTRING) or user in joins:
        return True
    if user.target in ADDITIVE | WEIGHTED and _is_fine(user):
        return True
    on = user.target in SHAPING or user.target in _SUMS
    return on and any(_reads_fine(reader, joins) for reader in user.users)


def _is_fine(node: Node) -> bool:
    return bool(node.meta.get(BITS, 8) > 8 or node.meta.get(EXACT))


def _source(node: Node) -> Node:
    while node.target in SHAPING and isinstance(node.args[0], Node):
        node = node.args[0]
    return node
