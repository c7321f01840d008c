"""A model file as the plain layers a peer library would be given: float weights, relu, max-pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops

__all__ = ["Layer", "layers"]


@dataclass(frozen=True)
class Layer:
    """kind: conv, linear, relu, maxpool or flatten; weight and bias float64 for the first two."""

    kind: str
    node: ops.Node
    weight: NDArray[np.float64] | None = None
    bias: NDArray[np.float64] | None = None


def layers(graph: Graph) -> Iterator[Layer]:
    """The layers in order. Raises OpNotSupported for a graph that is not a chain of these."""
    if graph.has_ports:
        raise OpNotSupported("peer comparison", got="named inputs or outputs", expected="one each")
    previous = graph.input.name
    for node in graph.nodes[1:]:
        if node.inputs != (previous,):
            raise OpNotSupported("peer comparison", got=f"{node.name!r} with {node.inputs}")
        previous = node.name
        if isinstance(node, ops.Linear | ops.Conv2d):
            yield _weighted(graph, node)
        elif isinstance(node, ops.Requantize):
            if all(q >= node.zero_point for q in node.table):
                yield Layer("relu", node)
        elif isinstance(node, ops.MaxPool):
            yield Layer("maxpool", node)
        elif isinstance(node, ops.Reshape):
            yield Layer("flatten", node)
        elif not isinstance(node, ops.Output):
            raise OpNotSupported("peer comparison", got=type(node).__name__)


def _weighted(graph: Graph, node: ops.Linear | ops.Conv2d) -> Layer:
    source = graph.values[node.inputs[0]]
    (reader,) = graph.consumers[node.name]
    multiplier: Any = getattr(reader, "multiplier", (1,))
    out = graph.bias(node).shape[0]
    channel = np.broadcast_to(np.array(multiplier, np.float64), (out,)) * node.scale
    weight = graph.weight(node).astype(np.float64)
    per_weight = (channel / source.scale).reshape(-1, *[1] * (weight.ndim - 1))
    kind = "linear" if isinstance(node, ops.Linear) else "conv"
    return Layer(kind, node, weight * per_weight, graph.bias(node) * channel)
