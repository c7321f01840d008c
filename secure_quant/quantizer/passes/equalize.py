"""Channels of a residual stream brought to one size, where a few are far larger than the others.

A language model has features that are a hundred times the others in every token. One scale for all
leaves the others a few steps. So each channel gets its own: what a LayerNorm makes is multiplied by
whole numbers m[c] (the multipliers of the Requantize that makes it), what a branch adds is divided
by e[c] in the weights of its last layer, and whoever reads them undoes it in weights of its own or
in the factors of a sum. In real numbers nothing changes (Xiao et al., SmoothQuant, 2023, moves
scales between layers likewise; here they stay in the integers' public constants).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.quantizer.opset import CHANNELS
from secure_quant.quantizer.passes.edit import (
    BITS,
    CENTRING,
    EXACT,
    NORMALIZED,
    Editor,
    bias_of,
    constant_of,
    is_lone_linear,
    sample_rank,
)
from secure_quant.quantizer.passes.norm import affine_readers, fold

__all__ = ["Sizes", "equalize"]

aten = torch.ops.aten
UNEVEN = 4.0
"""Largest channel over the median one, from which on channels get scales of their own."""
LARGEST_MULTIPLIER = 32
_FLOOR = 2.0**-10
"""Least size of a channel, of the largest's: smaller ones are next to nothing."""


def equalize(module: GraphModule, batches: Sequence[Tensor], *, exact: bool) -> None:
    """Give the channels of normalized values and of the branches of a stream their own scales,
    where ``batches`` show that they differ by far. In place; the module computes the same.
    ``exact``: a layer's values, of 8 bits, may enter a normalization as a sum that is not rounded.
    """
    normalized = [n for n in module.graph.nodes if n.meta.get(NORMALIZED)]
    branches = [n for n in module.graph.nodes if _is_branch(module, n, exact)]
    if not normalized and not branches:
        return
    wanted = {*normalized, *branches}
    sizes = Sizes(module, wanted).over(batches)
    for node in branches:
        _scale_branch(module, node, sizes[node])
    for node in normalized:
        _scale_normalized(module, node, sizes)


def _is_branch(module: GraphModule, node: Node, exact: bool) -> bool:
    """True for a linear layer that only a normalization reads, or only a sum before one."""
    if node.target is not aten.linear.default or constant_of(module, node.args[1]) is None:
        return False
    users = list(node.users)
    if len(users) > 1:
        return exact and all(user.meta.get(CENTRING) for user in users)
    stream = len(users) == 1 and (users[0].meta.get(EXACT) or users[0].meta.get(BITS, 8) > 8)
    if not stream or users[0].target is not aten.add.Tensor or not is_lone_linear(module, node):
        return False
    plain = not users[0].kwargs and len(users[0].args) == 2
    same: bool = users[0].meta["val"].shape == node.meta["val"].shape
    return plain and same


class Sizes(Interpreter):
    """Runs the float module and keeps max |x| of each channel of the nodes ``wanted``."""

    def __init__(self, module: GraphModule, wanted: set[Node]) -> None:
        super().__init__(module)
        self._wanted, self._size = wanted, captured_batch(module)
        self._seen: dict[Node, Tensor] = {}

    def over(self, batches: Sequence[Tensor]) -> dict[Node, Tensor]:
        """Node -> float64[channels], all above 0."""
        with torch.no_grad():
            for batch in batches:
                in_batches(self._once, batch.clone(), self._size)
        return {
            node: seen.clamp(min=max(float(seen.max()) * _FLOOR, 1e-30))
            for node, seen in self._seen.items()
        }

    def _once(self, x: Tensor) -> Tensor:
        self.run(x)
        return x

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            size = value.detach().double().abs().reshape(-1, value.shape[-1]).amax(0)
            self._seen[n] = torch.maximum(self._seen.get(n, size), size)
        return value


def _uneven(size: Tensor) -> bool:
    return bool(size.max() > UNEVEN * size.median())


def _scale_normalized(module: GraphModule, node: Node, sizes: Mapping[Node, Tensor]) -> None:
    """y = c · r becomes (c · r) · k with whole k, which the table's multipliers are."""
    if not _uneven(sizes[node]):
        return
    if not all(_undoes(module, user, node) for user in node.users):
        return
    binary = any(user.op == "output" for user in node.users)  # 1/k has whole multiples too
    k = _whole(sizes[node].max() / sizes[node], binary)
    edit = Editor(module, node)
    made = edit.call(aten.mul.Tensor, *node.args[:2])
    made = edit.call(aten.mul.Tensor, made, edit.fixed(k, "channels"))
    for user in list(node.users):
        _undo(module, user, node, made, 1 / k)


def _whole(ratio: Tensor, binary: bool) -> Tensor:
    """float32 whole numbers from 1 to LARGEST_MULTIPLIER, not above ``ratio`` but for rounding;
    powers of two if ``binary``."""
    ratio = (ratio * (1 + 1e-6)).clamp(1, LARGEST_MULTIPLIER)
    return (2 ** ratio.log2().floor() if binary else ratio.floor()).float()


def _undoes(module: GraphModule, user: Node, node: Node) -> bool:
    """True where ``user`` can divide what it reads of each channel."""
    if user.op == "output" or user.meta.get(CHANNELS):
        return True
    readers = affine_readers(user, node, sample_rank(node) - 1)
    return readers is not None and all(
        constant_of(module, reader.args[1]) is not None for reader in readers
    )


def _undo(module: GraphModule, user: Node, node: Node, made: Node, factor: Tensor) -> None:
    """``user`` reads ``made`` times ``factor`` in place of ``node``."""
    if user.op == "output":
        with_factor = Editor(module, node).call(
            aten.mul.Tensor,
            made,
            Editor(module, node).fixed(factor, "channels"),
            exact=True,
        )
        user.replace_input_with(node, with_factor)
        return
    if user.meta.get(CHANNELS):
        old: Any = constant_of(module, user.args[1])
        user.args = (made, Editor(module, user).fixed(old * factor, "channels"))
        return
    readers = affine_readers(user, node, sample_rank(node) - 1)
    user.replace_input_with(node, made)
    fold(module, readers or [], factor, torch.zeros_like(factor))


def _scale_branch(module: GraphModule, node: Node, size: Tensor) -> None:
    """W x + b becomes (W x + b) / e, and the sum that reads it multiplies by e."""
    if not _uneven(size):
        return
    e = (size / size.max()).float()
    weight: Any = constant_of(module, node.args[1])
    bias = bias_of(module, node)
    edit = Editor(module, node)
    layer = [edit.parameter(weight / e[:, None], "weight")]
    if bias is not None:
        layer.append(edit.parameter(bias / e, "bias"))
    made = edit.call(aten.linear.default, node.args[0], *layer)
    scaled = edit.call(
        aten.mul.Tensor,
        made,
        edit.fixed(e, "channels"),
        channels=True,
        exact=True,
    )
    edit.replace(scaled)
