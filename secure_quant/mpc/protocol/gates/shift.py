"""Requantize that only rounds, 2 rounds after the input is public: the variables of the borrow,
then the result in the output's ring, of dealt ring shares. ``shifts`` of this room has the
constants, ``shifts`` of the kernels the loops.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.gates.base import Dealing, Side, Wire, opening
from secure_quant.mpc.protocol.gates.requantize import Ints, ScaledGate
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring
from secure_quant.mpc.protocol.shifts import Shift

__all__ = ["ShiftGate"]


@dataclass(frozen=True, kw_only=True)
class ShiftGate(ScaledGate):
    """By the borrow alone: nothing is looked up in a table, nothing clipped."""

    look: Shift

    def describe(self) -> dict[str, Any]:
        look = self.look
        return super().describe() | {
            "input_ring": look.ring, "shift": look.shift, "digits": list(look.borrow.digits),
            "step": look.step,
        }  # fmt: skip

    @cached_property
    def constants(self) -> Ints:
        """As the kernels take them."""
        look, count = self.look, len(self.look.borrow.products)
        above = look.lift_bits(self.bits) - (1 + count) * self.bits
        made = kernels.shifts.ShiftConstants(
            shift=look.shift, input_ring=look.ring, variables=look.borrow.variables,
            products=count, ring=self.bits, above=above, floor=look.floor, step=look.step,
        )  # fmt: skip
        return np.array(made, np.int64)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        n = self.elements
        r = self.scaled(masks[0][None], 0)[0]
        free = side.free0[:n] ^ side.free1[:n]
        kernels.shifts.deal_shift(
            r, free, side.dealt, self.look.borrow.monomials, self.constants, self.digits
        )
        return reduce(side.free0[n:] + side.free1[n:], self.bits).reshape(self.shape)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        look, n = self.look, self.elements
        c = self.scaled(inputs[0].public - to_ring(self.zero_point, 64), look.offset)
        own = kernels.batched.open_shift(
            c, side.dealt, side.free[:, :n], self.constants, self.digits
        )
        opened = yield from opening(own, look.borrow.variables, xor=True)
        masks = Wire(mask=mask).own.reshape(side.batch, n)
        lifted = kernels.batched.lift_shift(
            c, opened, side.dealt, masks, look.coefficients, side.party, self.constants
        )
        made = yield from opening(lifted, self.bits)
        return Wire(made.reshape(side.batch, *self.shape), mask)
