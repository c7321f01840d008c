"""Rows of zeros over their length, 0 / max(|x|, 1e-12), as padded windows have them.

One inverse of 1e12 leaves all others no step. 0 times anything is 0, so that the floor may be as
high as half of the least length above it that calibration shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.quantizer.opset import CONCAT, SHAPING

__all__ = ["raise_floors"]

aten = torch.ops.aten


def raise_floors(module: GraphModule, batches: Sequence[Tensor]) -> None:
    """Floors of lengths that ``batches`` show rows of zeros for, in place; the module computes the
    same for these."""
    floors = [n for n in map(_floor, module.graph.nodes) if n is not None]
    if floors:
        for node, least in _Lengths(module, floors).over(batches).items():
            node.update_arg(1, least / 2)


def _floor(product: Node) -> Node | None:
    """clamp_min(sqrt(sum(square(x))), eps) where ``product`` is x times its reciprocal, and nothing
    else reads that; None for other nodes."""
    if product.target is not aten.mul.Tensor:
        return None
    for x, inverse in (product.args[:2], product.args[1::-1]):
        chain = _lone_chain(inverse)
        kinds = [n.target for n in chain if n.target not in SHAPING | CONCAT]
        if kinds == _LENGTH and chain[-1].args[0] is x:
            return next(n for n in chain if n.target is aten.clamp_min.default)
    return None


_LENGTH = [aten.reciprocal.default, aten.clamp_min.default, aten.sqrt.default,
           aten.sum.dim_IntList, aten.square.default]  # fmt: skip


def _lone_chain(node: Any) -> list[Node]:
    """From ``node`` back to a square: nodes of one source each, which one other reads."""
    chain: list[Node] = []
    while isinstance(node, Node) and node.op == "call_function" and len(node.users) == 1:
        sources = set(node.all_input_nodes) if node.target in CONCAT else {node.args[0]}
        chain.append(node)
        if node.target is aten.square.default or len(sources) != 1:
            break
        (node,) = sources
    return chain


class _Lengths(Interpreter):
    """Runs the float module and looks at what the nodes ``floors`` are clamped from."""

    def __init__(self, module: GraphModule, floors: Sequence[Node]) -> None:
        super().__init__(module)
        self._floors, self._size = set(floors), captured_batch(module)
        self._least: dict[Node, float] = {}
        self._zeros: set[Node] = set()

    def over(self, batches: Sequence[Tensor]) -> dict[Node, float]:
        """The least length above the floor, of nodes that have some below and some above."""
        with torch.no_grad():
            for batch in batches:
                in_batches(self._once, batch.clone(), self._size)
        return {n: v for n, v in self._least.items() if n in self._zeros and v < math.inf}

    def _once(self, x: Tensor) -> Tensor:
        self.run(x)
        return x

    def run_node(self, n: Node) -> Any:
        if n in self._floors:
            (length, floor), _ = self.fetch_args_kwargs_from_env(n)
            above = length[length > floor]
            if above.numel() < length.numel():
                self._zeros.add(n)
            least = float(above.min()) if above.numel() else math.inf
            self._least[n] = min(self._least.get(n, math.inf), least)
        return super().run_node(n)
