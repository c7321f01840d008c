"""What the integers of each node are worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import Graph, ops
from secure_quant.ir.sums import channel_multipliers
from secure_quant.reference.kernels import along

__all__ = ["units"]


def units(graph: Graph) -> dict[str, NDArray[np.float64] | None]:
    """What one unit of each node's centred integers stands for, to multiply with
    [batch, *shape]; None where that depends on the sample, a bias is still to come, or ports of
    several scales lie end to end."""
    made: dict[str, NDArray[np.float64] | None] = {}
    for node in graph.nodes:
        value = graph.values[node.name]
        reader = next(iter(graph.consumers[node.name]), node)  # knows the channels' multipliers
        if isinstance(node, ops.OutputPort):
            reader = node
        made[node.name] = np.asarray(value.scale)
        relative = any(made[name] is None for name in node.inputs)
        runtime = isinstance(node, ops.DynamicScale | ops.DynamicQuantize)
        joined = node is graph.output and graph.output_ports[0].node != node.name
        if runtime or joined or _biased(reader) or (relative and not isinstance(node, ops.Rescale)):
            made[node.name] = None
        elif (found := channel_multipliers(node, reader)) is not None:
            # A Requantize may ask for finer units by a factor that all its channels have.
            multiplier = along(*found, len(value.shape) + 1)
            made[node.name] = multiplier.astype(np.float64) * value.scale
    return made


def _biased(reader: ops.Node) -> bool:
    """A Rescale that brings more than a shift to what it reads."""
    return isinstance(reader, ops.Rescale) and (len(reader.inputs) > 1 or bool(reader.bias))
