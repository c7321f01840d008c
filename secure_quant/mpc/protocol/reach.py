"""Ranges as tight as a graph's structure proves them: what is declared of an accumulator is the
magnitude alone, the same for both signs."""

from __future__ import annotations

from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval

__all__ = ["reach"]

_MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.ReduceMax, ops.MaxPool)


def reach(graph: Graph, name: str) -> Interval:
    """Of x̂: what the value declares, and for sums what follows from their summands."""
    known = graph.values[name].centred
    node = graph.by_name[name]
    if isinstance(node, ops.Add):
        a, b = (reach(graph, each) for each in node.inputs)
        sums = [a.times(f) + b.times(g) for f, g in zip(*node.parts, strict=True)]
        found = Interval(min(each.lo for each in sums), max(each.hi for each in sums))
    elif isinstance(node, ops.ReduceSum):
        found = reach(graph, node.inputs[0]).times(graph.values[node.inputs[0]].shape[-1])
    elif isinstance(node, _MOVES):
        found = reach(graph, node.inputs[0])
    else:
        return known
    return Interval(max(known.lo, found.lo), min(known.hi, found.hi))
