"""Sums that read accumulators of layers as they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from secure_quant.ir import ops

__all__ = ["LAYERS", "channel_multipliers", "layer_sums"]

LAYERS = (ops.Linear, ops.Conv2d)


def layer_sums(nodes: Iterable[ops.Node]) -> frozenset[str]:
    """Names of every Add that reads the accumulator of a layer, or another such sum; ``nodes`` in
    their order, verified or not."""
    layers, found = set[str](), set[str]()
    for node in nodes:
        if isinstance(node, LAYERS):
            layers.add(node.name)
        elif isinstance(node, ops.Add) and any(n in layers or n in found for n in node.inputs):
            found.add(node.name)
    return frozenset(found)


def channel_multipliers(source: ops.Node, reader: Any) -> tuple[tuple[int, ...], int] | None:
    """What ``reader`` multiplies the channels of an accumulator by, without the factor that all
    have in common, and the axis; None for a reader that says nothing of them."""
    if isinstance(reader, ops.Requantize | ops.Rescale | ops.Output | ops.OutputPort):
        own = reader.multiplier
    elif isinstance(reader, ops.Add) and isinstance(source, LAYERS):
        own = tuple(map(abs, reader.parts[reader.inputs[0] != source.name]))
    else:
        return None
    common = math.gcd(*own) or 1
    return tuple(m // common for m in own), reader.axis
