"""An Editor for rules that write an op out: the arithmetic that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor

__all__ = ["RECIPROCAL_BITS", "Rule", "Writer"]

aten = torch.ops.aten
RECIPROCAL_BITS = 12


class Writer(Editor):
    """An Editor with the arithmetic that the rules share."""

    def __init__(self, module: GraphModule, node: Node, roots: Mapping[Node, Node]) -> None:
        super().__init__(module, node)
        self.node, self.roots = node, roots

    def sizes(self, x: Node) -> list[Any]:
        """The shape of x, with a node for the size of the batch."""
        return [self.call(aten.sym_size.int, x, 0), *map(int, x.meta["val"].shape[1:])]

    def turned(self, x: Node, order: Sequence[int]) -> Node:
        """x with its axes in ``order``."""
        same = list(order) == list(range(len(order)))
        return x if same else self.call(aten.permute.default, x, list(order))

    def scaled(self, x: Node, factor: float) -> Node:
        """factor · x."""
        return x if factor == 1 else self.call(aten.mul.Tensor, x, factor)

    def as_they_were(self, x: Node, like: Node) -> Node:
        """x in the shape of ``like``, which has as many values."""
        return self.call(aten.reshape.default, x, self.sizes(like))


Rule = Callable[[Writer, dict[str, Any]], Node | None]
"""From the arguments of an op to what it means; None to leave it as it is."""
