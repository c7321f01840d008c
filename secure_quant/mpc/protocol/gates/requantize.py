"""Requantize: digits of one public masked value, looked up in dealt one-hots of the mask's digits.

V4, up to 3 rounds after the input is public: the masked looked-up bits; the masked number; the lift
to the output's ring. V3, 2 rounds: both cases of the borrow are opened under masks of their own,
and the lift multiplies by dealt products. V5, 2 rounds: both cases and the digits of the borrow are
opened, and the lift sums dealt products, more of them. ``tables`` has the constants, ``lookups``
and ``cases`` the loops.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ramps import Ramp
from secure_quant.mpc.protocol.ring import Ring, mask, reduce, to_ring
from secure_quant.mpc.protocol.shifts import Shift
from secure_quant.mpc.protocol.tables import Lookup

__all__ = ["RequantizeGate", "ScaledGate"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ScaledGate(Gate):
    """What a Requantize begins with: c = D·multiplier + offset mod 2^k. zero_point: of the input.
    axis: of the multipliers in the sample."""

    look: Lookup | Ramp | Shift
    zero_point: int
    axis: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def field_places(self) -> tuple[int, ...]:
        """First bit of every dealt field, and the end of the last."""
        fields = self.look.fields(self.bits).in_order
        return (0, *accumulate(words(self.elements, bits) * 64 for bits in fields))

    @cached_property
    def digits(self) -> Ints:
        """int64[digits, 2]: bits and first dealt bit of each; their fields are the last."""
        bits = self.look.borrow.digits
        firsts = self.field_places[-1 - len(bits) : -1]
        return np.array(list(zip(bits, firsts, strict=True)), np.int64).reshape(-1, 2)

    @cached_property
    def multiplier(self) -> Ring:
        """Shaped to broadcast over [batch, *shape]."""
        axes = [1] * len(self.shape)
        axes[self.axis] = len(self.look.multiplier)
        return to_ring(np.array(self.look.multiplier), 64).reshape(axes)

    def scaled(self, x: Ring, offset: int) -> Ring:
        """x·multiplier + offset mod 2^k: uint64[batch, *shape] -> uint64[batch, elements]."""
        made = x * self.multiplier
        if offset:
            made += to_ring(offset, 64)
        return np.ascontiguousarray(reduce(made, self.look.ring)).reshape(len(x), -1)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        made = reduce(side.free[:, self.elements :], self.bits)
        return None, made.reshape(side.batch, *self.shape)

    @staticmethod
    def material(look: Lookup | Ramp | Shift, elements: int, ring: int) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        own = 2 * elements if getattr(look, "lifted", True) else elements
        return own, sum(words(elements, bits) for bits in look.fields(ring).in_order)


@dataclass(frozen=True, kw_only=True)
class RequantizeGate(ScaledGate):
    """By lookups of the table in dealt one-hots."""

    look: Lookup

    @property
    def xored(self) -> bool:
        return not self.look.lifted

    def describe(self) -> dict[str, Any]:
        look = self.look
        more = {} if look.lifted else {"lifted": False}
        return super().describe() | more | {
            "variant": look.variant, "input_ring": look.ring, "shift": look.shift,
            "width": look.width, "granule": look.granule, "reach": look.reach,
            "digits": list(look.borrow.digits), "number_bits": look.out_bits,
        }  # fmt: skip

    @cached_property
    def constants(self) -> kernels.lookups.Constants:
        look = self.look
        return kernels.lookups.Constants(
            shift=look.shift, width=look.width, granule=look.granule, reach=look.reach,
            bits=look.out_bits, below=look.below, above=look.above,
            variables=look.borrow.variables, products=len(look.borrow.products),
            record=look.record_bits, opened=look.opened_bits, floor=look.floor,
            ring=self.bits if look.lifted else 0,
            lift=look.fields(self.bits).lift,
        )  # fmt: skip

    @cached_property
    def places(self) -> kernels.lookups.Places:
        return kernels.lookups.Places(*self.field_places[: len(kernels.lookups.Places._fields)])

    @cached_property
    def fixed(self) -> tuple[Ints, Ints]:
        """constants and places as the kernels take them."""
        return np.array(self.constants, np.int64), np.array(self.places, np.int64)

    @cached_property
    def planes(self) -> tuple[Ring, Ring]:
        """Of the looked-up numbers, and of [inside], [above]."""
        return kernels.bits.plane_table(*self.look.looked_up), kernels.bits.plane_table(
            self.look.window_entries, 2
        )

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        n, look = self.elements, self.look
        r = self.scaled(masks[0][None], 0)[0]
        free = side.free0 ^ side.free1
        if look.variant == "V3":
            kernels.lookups.deal_v3(r, free[:n], side.dealt, *self.fixed)
        else:
            deal = kernels.cases.deal_v5 if look.variant == "V5" else kernels.lookups.deal_v4
            deal(r, free[:n], side.dealt, look.borrow.monomials, *self.fixed, self.digits)
        if not look.lifted:
            number = (free >> np.uint64(look.opened_bits)) & mask(look.out_bits)
            return number.reshape(self.shape)
        return reduce(side.free0[n:] + side.free1[n:], self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        return super().offline(side, masks) if self.look.lifted else (None, None)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        n = self.elements
        # The offset counts from x̂ = q - zero_point, the multiplier too.
        c = self.scaled(inputs[0].public - to_ring(self.zero_point, 64), self.look.offset)
        if state is not None:  # made without a dealer: what leads from the input's mask to its own
            c = reduce(c + state, self.look.ring)
        free = side.free[:, :n]
        if not self.look.lifted:
            number = yield from self._number(side, c, free)
            return Wire(number.reshape(side.batch, *self.shape))
        masks = Wire(mask=mask).own.reshape(side.batch, n)
        if self.look.variant == "V3":
            lifted = yield from self._v3(side, c, free, masks)
        elif self.look.variant == "V5":
            lifted = yield from self._v5(side, c, free, masks)
        else:
            lifted = yield from self._v4(side, c, free, masks)
        made = yield from opening(lifted, self.bits)
        return Wire(made.reshape(side.batch, *self.shape), mask)

    def _number(self, side: Side, c: Ring, free: Ring) -> Generator[bytes, bytes, Ring]:
        """V4's, from ``floor`` on, masked by XOR."""
        look, fixed = self.look, self.fixed
        number, high = kernels.batched.open_v4(
            c, side.dealt, free, *fixed, self.digits, *self.planes
        )
        if look.opened_bits:
            first = yield from opening(number, look.opened_bits, xor=True)
            number = kernels.batched.select_v4(
                first, side.dealt, free, high, look.borrow.kappa, side.party, *fixed
            )
        opened: Ring = yield from opening(number, look.out_bits, xor=True)
        return opened

    def _v4(self, side: Side, c: Ring, free: Ring, masks: Ring) -> Generator[bytes, bytes, Ring]:
        look = self.look
        opened = yield from self._number(side, c, free)
        return kernels.batched.lift(
            opened, side.dealt, masks, side.party, look.out_bits, self.bits, look.floor,
            self.places.lifts,
        )  # fmt: skip

    def _v3(self, side: Side, c: Ring, free: Ring, masks: Ring) -> Generator[bytes, bytes, Ring]:
        number = kernels.batched.open_v3(c, side.dealt, free, *self.fixed, *self.planes)
        opened = yield from opening(number, self.look.opened_bits, xor=True)
        return kernels.batched.lift_v3(opened, side.dealt, masks, side.party, *self.fixed)

    def _v5(self, side: Side, c: Ring, free: Ring, masks: Ring) -> Generator[bytes, bytes, Ring]:
        look = self.look
        number = kernels.batched.open_v5(
            c, side.dealt, free, *self.fixed, self.digits, *self.planes
        )
        opened = yield from opening(number, look.opened_bits, xor=True)
        return kernels.batched.lift_v5(
            opened, side.dealt, masks, look.borrow.factors, side.party, *self.fixed
        )
