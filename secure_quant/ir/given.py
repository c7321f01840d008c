"""What a rule of an op may look up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.ir.bounds import channel_magnitudes
from secure_quant.ir.sums import layer_sums
from secure_quant.ir.values import Value

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """What a rule may look up: the nodes so far by name, the secret arrays, none in a public
    graph, and the values so far."""

    by_name: Mapping[str, ops.Node]
    parameters: Mapping[str, NDArray[Any]] = field(repr=False)
    values: Mapping[str, Value]

    def sizes(self, name: str) -> tuple[int, ...]:
        """Largest |x̂| at each place of the last axis of an Add with factors by channel, or of a
        Reshape of one that leaves that axis; none for other values."""
        node, size = self.by_name[name], self.values[name].shape[-1]
        if isinstance(node, ops.Reshape) and self.values[node.inputs[0]].shape[-1] == size:
            node = self.by_name[node.inputs[0]]
        if not isinstance(node, ops.Add) or len(node.factors) == 2:
            return ()
        if node.axis not in (-1, len(self.values[node.name].shape) - 1):
            return ()
        a, b = (self.values[n].centred for n in node.inputs)
        made = channel_magnitudes(node.factors, a, b)
        return tuple(min(own, node.bound) for own in made)

    @cached_property
    def layer_sums(self) -> frozenset[str]:
        """See ``sums``."""
        return layer_sums(self.by_name.values())

    def sum_of_squares(self, name: str) -> int | None:
        """The most that Σ x̂² over the last axis is, where ``sizes`` tell."""
        sizes = self.sizes(name)
        return sum(size * size for size in sizes) if sizes else None
