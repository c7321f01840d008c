"""Requantize by a saturating ramp, 3 rounds after the input is public: comparisons of digits and
the window; b, [inside] and [inside and b'], bits made of products of masks; the sum in the output's
ring. ``ramps`` of this room has the constants, ``ramps`` of the kernels the loops.
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
from secure_quant.mpc.protocol.ramps import Ramp
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["RampGate"]


@dataclass(frozen=True, kw_only=True)
class RampGate(ScaledGate):
    """By sums: no one-hot of the table is dealt."""

    look: Ramp

    def describe(self) -> dict[str, Any]:
        look = self.look
        return super().describe() | {
            "input_ring": look.ring, "shift": look.shift, "steps": look.steps,
            "reach": look.reach, "digits": list(look.borrow.digits), "lower": look.lower,
            "step": look.step,
        }  # fmt: skip

    @cached_property
    def fixed(self) -> tuple[Ints, Ints]:
        """constants and places as the kernels take them."""
        look = self.look
        constants = kernels.ramps.RampConstants(
            shift=look.shift, steps=look.steps, reach=look.reach,
            variables=look.borrow.variables, products=len(look.borrow.products),
            record=look.record_bits, floor=look.floor, step=look.step, ring=self.bits,
        )  # fmt: skip
        places = self.field_places[: len(kernels.ramps.RampPlaces._fields)]
        return np.array(constants, np.int64), np.array(places, np.int64)

    @cached_property
    def windows(self) -> Ring:
        """Planes of [g = 0], [g = 1], [g > 0]."""
        return kernels.bits.plane_table(self.look.window_entries, 3)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        n = self.elements
        r = self.scaled(masks[0][None], 0)[0]
        free = side.free0[:n] ^ side.free1[:n]
        kernels.ramps.deal_ramp(
            r, free, side.dealt, self.look.borrow.monomials, *self.fixed, self.digits
        )
        return reduce(side.free0[n:] + side.free1[n:], self.bits).reshape(self.shape)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        look, n = self.look, self.elements
        c = self.scaled(inputs[0].public - to_ring(self.zero_point, 64), look.offset)
        if state is not None:  # made without a dealer: what leads from the input's mask to its own
            c = reduce(c + state, look.ring)
        free = side.free[:, :n]
        own = kernels.batched.open_ramp(c, side.dealt, free, *self.fixed, self.digits, self.windows)
        first = yield from opening(own, look.borrow.variables + 3, xor=True)
        own = kernels.batched.select_ramp(
            first, side.dealt, free, look.borrow.kappa_of(look.lower), look.borrow.kappa,
            side.party, *self.fixed,
        )  # fmt: skip
        second = yield from opening(own, 3, xor=True)
        masks = Wire(mask=mask).own.reshape(side.batch, n)
        lifted = kernels.batched.lift_ramp(
            c, first, second, side.dealt, masks, side.party, *self.fixed
        )
        made = yield from opening(lifted, self.bits)
        return Wire(made.reshape(side.batch, *self.shape), mask)
