"""Branches before a LayerNorm that are rounded and not clipped: their sums stay accumulators, so
that more bits cost little there, and secret sharing takes a round less than for a table."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from secure_quant.ir.build import Builder
from secure_quant.ir.tables import Grid
from secure_quant.ir.terms import Term
from secure_quant.quantizer.notes import CENTRING, EXACT

__all__ = ["is_scaled", "only_rounds", "rounded"]

MOST_STEPS = 2**14
"""Of the proven range: so that squares of the sum, by factors of the two that are added, have room.
Weights taken at their worst reach some thirty times what calibration sees."""
_SUMS = {torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor}
_SCALED = {torch.ops.quantized_decomposed.quantize_per_tensor.default,
           torch.ops.quantized_decomposed.dequantize_per_tensor.default}  # fmt: skip


def is_scaled(node: Node) -> bool:
    """True for what brings a value to a grid, or from one."""
    return node.target in _SCALED


def only_rounds(term: Term, grid: Grid, node: Node) -> bool:
    """True for the quantize node of a branch of 8 bits that sums before a LayerNorm alone read."""
    source: Any = node.args[0]
    return (
        term.rounds_alone
        and grid.high - grid.low < 256
        and term.span.magnitude * term.scale < MOST_STEPS * grid.scale
        and not source.meta.get(CENTRING)
        and _enters_sums(node)
    )


def _enters_sums(node: Node) -> bool:
    """True where only sums that stay accumulators read a value. Not through factors by channel:
    what is not clipped leaves no room for those of a language model's outliers."""
    return bool(node.users) and all(
        _enters_sums(user)
        if is_scaled(user)
        else user.target in _SUMS and bool(user.meta.get(EXACT))
        for user in node.users
    )


def rounded(builder: Builder, term: Term, grid: Grid, node: Node) -> Term:
    """The branch in steps of about the grid's. torch's simulation rounds to the same, and clips as
    little."""
    made = builder.round_off(term, grid.scale, f"{term.name}.q")
    wide = made.scale, 0, made.range.lo, made.range.hi, torch.int32
    for changed in (node, *(user for user in node.users if is_scaled(user))):
        changed.args = (changed.args[0], *wide)
    return made
