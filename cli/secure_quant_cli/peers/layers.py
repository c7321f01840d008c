"""A model file as the plain layers a peer library would be given: float weights, relu, pools."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops
from secure_quant.reference.kernels import along
from secure_quant.reference.units import units

__all__ = ["Layer", "layers"]

WHERE = "peer comparison"
NEAR = 0.05
"""So closely an integer factor stands for the 1 of a sum, or for the share of an average."""


@dataclass(frozen=True)
class Layer:
    """kind: conv, linear, relu, maxpool, avgpool, add or flatten; weight and bias float64 for the
    first two. inputs: names of the nodes whose layers it reads."""

    kind: str
    node: ops.Node
    inputs: tuple[str, ...]
    weight: NDArray[np.float64] | None = None
    bias: NDArray[np.float64] | None = None


def layers(graph: Graph, *, chain: bool = False) -> Iterator[Layer]:
    """The layers in order; the last one makes the output. Raises OpNotSupported for what is none of
    these, with ``chain`` also where one does not read just the one before it."""
    if graph.has_ports:
        raise OpNotSupported(WHERE, got="named inputs or outputs", expected="one each")
    worth = units(graph)
    last = graph.input.name
    called = {last: last}  # a value -> the node whose layer makes it
    positive: set[str] = set()  # of these nothing is below zero
    for node in graph.nodes[1:]:
        if isinstance(node, ops.Output):
            return
        inputs = tuple(called[name] for name in node.inputs)
        if chain and inputs != (last,):
            raise OpNotSupported(WHERE, got=f"{node.name!r} with {node.inputs}")
        keeps = positive.issuperset(inputs)
        if isinstance(node, ops.Requantize) and (not _is_relu(graph, node) or keeps):
            called[node.name] = inputs[0]  # rounding alone
            continue
        last = called[node.name] = node.name
        layer = _layer(graph, worth, node, inputs)
        if layer.kind == "relu" or (keeps and layer.weight is None):
            positive.add(node.name)
        yield layer


def _is_relu(graph: Graph, node: ops.Requantize) -> bool:
    """Whether the table cuts at zero. Raises OpNotSupported where it does more than to cut."""
    q = np.array(node.table, np.float64)
    made = (q - node.zero_point) * node.scale
    unit = graph.values[node.inputs[0]].scale / math.gcd(*node.multiplier)
    read = ((np.arange(len(q)) + 0.5) * 2.0**node.shift - node.offset) * unit
    step = node.scale + unit * 2.0**node.shift
    if np.abs(made - np.clip(read, made.min(), made.max())).max() > step:
        raise OpNotSupported(WHERE, got=f"the function of {node.name!r}", expected="relu")
    return bool(made.min() == 0)


def _layer(
    graph: Graph, worth: dict[str, NDArray[np.float64] | None], node: ops.Node,
    inputs: tuple[str, ...],
) -> Layer:  # fmt: skip
    def unit(name: str) -> NDArray[np.float64]:
        found = worth[name]
        if found is None:
            raise OpNotSupported(WHERE, got=f"{name!r} with a scale of the sample")
        return found

    if isinstance(node, ops.Linear | ops.Conv2d):
        weight, bias = graph.weight(node).astype(np.float64), graph.bias(node)
        channel = np.broadcast_to(unit(node.name).reshape(-1), bias.shape)
        read = unit(node.inputs[0])
        if read.size == 1:
            per_weight = (channel / read.item()).reshape(-1, *[1] * (weight.ndim - 1))
            kind = "linear" if isinstance(node, ops.Linear) else "conv"
            return Layer(kind, node, inputs, weight * per_weight, bias * channel)
    elif isinstance(node, ops.Requantize):
        return Layer("relu", node, inputs)
    elif isinstance(node, ops.MaxPool):
        return Layer("maxpool", node, inputs)
    elif isinstance(node, ops.Reshape):
        return Layer("flatten", node, inputs)
    elif isinstance(node, ops.SumPool):
        share = unit(node.name) / unit(node.inputs[0]) * math.prod(node.kernel)
        if np.abs(share - 1).max() <= NEAR:
            return Layer("avgpool", node, inputs)
    elif isinstance(node, ops.Add) and _alike(graph, node):
        axes = len(graph.values[node.name].shape) + 1
        shares = [
            along(factors, node.axis, axes) * unit(node.name) / unit(name)
            for factors, name in zip(node.parts, node.inputs, strict=True)
        ]
        if max(np.abs(share - 1).max() for share in shares) <= NEAR:
            return Layer("add", node, inputs)
    raise OpNotSupported(WHERE, got=f"{type(node).__name__} {node.name!r}")


def _alike(graph: Graph, node: ops.Add) -> bool:
    first, second = (graph.values[name].shape for name in node.inputs)
    return first == second
