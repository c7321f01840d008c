"""Which layers' accumulators enter a sum as they stand, as in a residual block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from secure_quant.quantizer.notes import CHANNELS, EXACT, UNROUNDED
from secure_quant.quantizer.opset import WEIGHTED, tensor_inputs
from secure_quant.quantizer.ports import ends_here

__all__ = ["keep_sums_unrounded"]

aten = torch.ops.aten
_TOTALS = {aten.add.Tensor, aten.sub.Tensor}


def keep_sums_unrounded(nodes: Sequence[Node], roots: Mapping[Node, Node]) -> None:
    """Note it of a layer that one sum of two values alone reads, where all that becomes of the sum
    is rounded. Of two layers the one with more behind it: factors that bring both to one unit would
    take some five bits more of each accumulator. roots: of ``find_roots``."""
    depths: dict[Node, int] = {}
    shown = {roots[n] for n in nodes if n in roots and any(map(ends_here, n.users))}
    for node in nodes:
        read = [depths.get(n, 0) for n in node.all_input_nodes]
        depths[node] = max(read, default=0) + (node.target in WEIGHTED)
        if node.target not in _TOTALS or node.kwargs or node.meta.get(EXACT) or node in shown:
            continue
        given = tensor_inputs(node, roots)
        if roots.get(node) is not node or len(given) != 2:
            continue
        if any(n.meta.get(CHANNELS) for n in given):
            continue
        layers = [n for n in given if _is_whole(n, node, given)]
        if layers:
            max(layers, key=depths.__getitem__).meta[UNROUNDED] = True


def _is_whole(node: Node, total: Node, given: Sequence[Node]) -> bool:
    """True for a layer that the sum alone reads, of its shape; beside a Conv1d, whose accumulator
    has another in the graph, the other value as well."""
    if node.target not in WEIGHTED or len(node.users) != 1:
        return False
    alike = given if node.target is aten.conv1d.default else [node]
    return all(n.meta["val"].shape == total.meta["val"].shape for n in alike)
