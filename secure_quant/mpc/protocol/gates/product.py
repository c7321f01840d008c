"""MatMul and Mul of two secret values: one opening, and nothing dealt but where a product of the
product follows.

With x = X - r_X and y = Y - r_Y masked: x·y = X·Y - X·r_Y - r_X·Y + r_X·r_Y. Party i computes
X·(δ_i0·Y - [r_Y]_i) - [r_X]_i·Y + z_i, and the dealer defines r_c = z_0 + z_1 - r_X·r_Y. Where the
value leaves as shares, r_X·r_Y is dealt as such, and where the parties need shares of r_c as well.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.products import matmul
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["ProductGate"]


@dataclass(frozen=True, kw_only=True)
class ProductGate(Gate):
    """bits: ring of the product. opened: as in LinearGate. shared: a gate behind reads the mask of
    the product."""

    node: ops.MatMul | ops.Mul
    zero_points: tuple[int, int]
    opened: bool
    shared: bool = False

    def apply(self, x: Ring, y: Ring) -> Ring:
        """x·y mod 2^bits for uint64[batch, ...]."""
        x, y = reduce(x, self.bits), reduce(y, self.bits)
        if isinstance(self.node, ops.Mul):
            return reduce(x * y, self.bits)
        return matmul(x, y.swapaxes(-1, -2) if self.node.transpose_b else y, self.bits)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        made = self.apply(masks[0][None], masks[1][None])[0]
        if self.shared or not self.opened:
            side.dealt[:] = made.reshape(-1) - side.dealt
        if not self.opened:
            return np.zeros(self.shape, np.uint64)
        return reduce((side.free0 + side.free1).reshape(self.shape) - made, self.bits)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        own = tuple(Wire(mask=mask).own for mask in masks)
        shape = (side.batch, *self.shape)
        dealt = np.stack(list(side.dealt)).reshape(shape) if self.dealt_words else None
        if dealt is not None and not self.opened:
            return (*own, dealt), None
        free = side.free.reshape(shape)
        return (*own, free), None if dealt is None else reduce(free - dealt, self.bits)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        x, y = (
            value.public - to_ring(zero, 64)
            for value, zero in zip(inputs, self.zero_points, strict=True)
        )
        mask_x, mask_y, offset = state
        right = (y if side.party == 0 else np.uint64(0)) - mask_y
        own = self.apply(x, right) - self.apply(mask_x, y) + offset
        if not self.opened:
            return Wire(share=own)
        masked = yield from opening(reduce(own, self.bits), self.bits)
        return Wire(masked, mask)
