"""Mul of a value on a masked wire with numbers that are masked by XOR, in one round.

A number p = y XOR n, opened before it is lifted, is y = floor + Σ_j 2^j (p_j + (1 - 2 p_j)·n_j).
With v = V - r_v, v·y is a public sum of dealt shares of n_j and, an element of the product, of
n_j·r_v and r_v: opened under a free mask. So the lift and the product share a round.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import lift_bits, words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["ScaledProductGate"]


@dataclass(frozen=True, kw_only=True)
class ScaledProductGate(Gate):
    """inputs: v, and the numbers, of ``width`` bits and a shape that broadcasts to the product's.
    floor: ŷ of the number 0. zero_point: of v."""

    width: int
    floor: int
    numbers: tuple[int, ...]
    zero_point: int

    @staticmethod
    def material(
        shape: tuple[int, ...], numbers: tuple[int, ...], width: int, ring: int
    ) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        lift = lift_bits(width, ring)
        return prod(shape), words(prod(numbers), lift) + words(prod(shape), lift)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"number_bits": self.width, "floor": self.floor}

    @property
    def _products(self) -> int:
        """First bit of the shares of n_j·r_v; before them are those of n_j."""
        return 64 * words(prod(self.numbers), lift_bits(self.width, self.bits))

    def _spread(self, numbers: Ring) -> Ring:
        """Numbers [batch, *numbers' shape], one for each element: [batch, elements]."""
        batch = len(numbers)
        made = np.broadcast_to(numbers, (batch, *self.shape))
        return np.ascontiguousarray(made).reshape(batch, -1)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        r, n = masks
        kernels.lookups.deal_lift(
            np.ascontiguousarray(n).reshape(-1), side.dealt, self.width, self.bits, 0
        )
        kernels.cases.deal_scaled(
            self._spread(n[None])[0], np.ascontiguousarray(r).reshape(-1), side.dealt, self.width,
            self.bits, self._products,
        )  # fmt: skip
        return reduce(side.free0 + side.free1, self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        return Wire(mask=masks[0]).own, reduce(side.free, self.bits).reshape(
            side.batch, *self.shape
        )

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        v, p = inputs[0].public - to_ring(self.zero_point, 64), inputs[1].public
        flat = np.ascontiguousarray(p).reshape(side.batch, -1)
        y = kernels.batched.lift(
            flat, side.dealt, np.zeros_like(flat), side.party, self.width, self.bits, self.floor, 0
        ).reshape(side.batch, *self.numbers)
        # What the parties share of n_j·r_v, with the signs of the numbers' bits: party 1's way, for
        # party 0 adds no public part to it.
        whole = self._spread(p)
        crossed = kernels.batched.lift(
            whole, side.dealt, np.zeros_like(whole), 1, self.width, self.bits, 0, self._products
        ).reshape(side.batch, *self.shape)
        public = p + to_ring(self.floor, 64)
        own = v * y - public * state - crossed + Wire(mask=mask).own
        masked = yield from opening(reduce(own, self.bits), self.bits)
        return Wire(masked, mask)
