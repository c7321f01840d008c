"""The joint offline half of Requantize by a ramp: what a dealer would hand out, laid out as its
fields. As for lookups the two draw ρ digit by digit and open δ = ρ - m·r.

ρ' are the q bits of ρ above the shift, n_in, n_b, n_a, n_h the masks of [inside], b,
[inside and b'] and [g > 0]. The bits of ρ become numbers in two rings by one product each.
``RampGate.online`` runs on what is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.ring import Ring, reduce
from secure_quant.onehost.cot import BOTH, Column, Pairing
from secure_quant.onehost.exchange import Joint, together
from secure_quant.onehost.hots import hot, hot_bits, hot_parts, prefixes
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.products import (
    column_times,
    cut_bits,
    gated,
    joined_bits,
    number,
    open_sum,
    scaled,
    weighed,
)
from secure_quant.onehost.requantize import JointScaled, Part

__all__ = ["JointRamp"]


class Masks(NamedTuple):
    """Bits that mask what is opened after the borrow's variables, in that order."""

    zero: Column
    one: Column
    over: Column
    borrow: Column
    inside: Column
    both: Column


CHOOSERS = (BOTH, BOTH, 0, 1, BOTH, 0)
"""Of the masks: [inside]'s multiplies shared numbers, those of [g = 0] and [g = 1] shared bits."""
TURNS = (0, 1, 0, 1, 0, 0)
"""Who chooses in the product of both halves of a mask, where there is one."""


@dataclass(frozen=True)
class JointRamp(JointScaled):
    """What ``gate`` needs of a pairing, and makes by it."""

    gate: RampGate

    # ---- the bits, in the order in which columns are taken

    @cached_property
    def hots(self) -> tuple[tuple[str, int, int], ...]:
        """(purpose, first bit, width) of every one-hot of ρ: the digits' and the top's."""
        look = self.gate.look
        digits = [("digit", *place) for place in look.borrow.places]
        return (*digits, ("saturation", look.shift + look.steps, look.reach))

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """Of ρ's bits, the borrow's variables, the other masks. A bit that begins a one-hot needs
        one direction."""
        look = self.gate.look
        begins = {first for _, first, _ in self.hots}
        rho = [i % 2 if i in begins else BOTH for i in range(look.ring)]
        return (*rho, *[BOTH] * look.borrow.variables, *CHOOSERS)

    @cached_property
    def _needed(self) -> list[int]:
        """Bits that the product of both halves of each of ρ's bits is needed to: of weight 2^i mod
        2^k, and of those above the shift of weight 2^(i-s) in the output's ring as well."""
        look, made = self.gate.look, []
        for i in range(look.ring):
            above = i - look.shift
            lifted = self.gate.bits - 1 - above if 0 <= above < look.steps else 0
            made.append(max(look.ring - 1 - i, lifted, 0))
        return made

    # ---- cost

    @cached_property
    def _gated_bits(self) -> list[int]:
        """Bits of every P1 among the variables' masks."""
        products = self.gate.look.borrow.products
        return [
            sum(u.bit_count() > 1 and u.bit_length() == i + 1 for u in products)
            for i in range(self.gate.look.borrow.variables)
        ]

    def parts(self) -> tuple[list[int], list[int]]:
        look, ring = self.gate.look, self.gate.bits
        both = [bits for _, _, width in self.hots for bits in hot_parts(width)]
        both += [bits for bits in self._gated_bits if bits]
        both += [len(look.borrow.products)] * 2 + [look.ring, ring, ring]
        sides: tuple[list[int], list[int]] = (list(both), list(both))
        for i, bits in enumerate(self._needed):
            if bits:
                sides[1 - self._turn(i)].append(bits)
        for turn in TURNS[2:] if ring > 1 else ():
            sides[1 - turn].append(ring - 1)
        return sides

    def formula(self) -> tuple[int, int]:
        look, ring = self.gate.look, self.gate.bits
        k, variables = look.ring, look.borrow.variables
        cots = 2 * k - len(self.hots) + 2 * variables + 9
        each = sum(hot_bits(width) for _, _, width in self.hots) + look.record_bits + k + 2 * ring
        return cots, 2 * each + sum(self._needed) + 4 * (ring - 1)

    def _turn(self, bit: int) -> int:
        """Who chooses in the product of both halves of a bit of ρ."""
        chooser = self.choosers[bit]
        return bit % 2 if chooser == BOTH else chooser

    # ---- the protocol

    def piece(self, pairing: Pairing, mask: Ring, out: Ring, some: slice) -> Joint[Part]:
        """See JointScaled."""
        gate, look, party = self.gate, self.gate.look, pairing.party
        count = some.stop - some.start
        columns = pairing.columns(self.choosers, count)
        last = look.ring + look.borrow.variables
        rho, variables = columns[: look.ring], columns[look.ring : last]
        masks = Masks(*columns[last:])
        hots, (offset, lift), record = yield from together(
            [
                together([
                    hot(rho[first : first + width], party, pairing.delta, purpose)
                    for purpose, first, width in self.hots
                ]),
                self._numbers(rho, masks, gate.scaled(mask, 0).reshape(-1)[some], party),
                self._record(variables, masks, count),
            ]
        )  # fmt: skip
        hots[0] = prefixes(hots[0], look.borrow.digits[0])
        lifted = joined_bits([(values, gate.bits) for values in lift], count)
        free = joined_bits([(column.own, 1) for column in (*variables, *masks)], count)[:, 0]
        return Part((hots[-1], record, lifted, *hots[:-1]), offset, free)

    def _numbers(
        self, rho: Sequence[Column], masks: Masks, accumulated: Words, party: int
    ) -> Joint[tuple[Words, list[Words]]]:
        """(δ, shares in the output's ring as they are dealt: ρ', n_in, n_in·ρ', n_b, n_in·n_b, n_a,
        n_h)."""
        look, ring = self.gate.look, self.gate.bits
        bits = [(i, needed) for i, needed in enumerate(self._needed) if needed]
        crossed, *lifted = yield from together(
            [
                together([
                    scaled(rho[i], self._turn(i) == party, rho[i].own, needed)
                    for i, needed in bits
                ]),
                *(number([masks[j]], [TURNS[j]], ring, party) for j in range(2, len(masks))),
            ]
        )  # fmt: skip
        shares = [column.own for column in rho]
        for (i, needed), both in zip(bits, crossed, strict=True):
            shares[i] = reduce(shares[i] - np.uint64(2) * both, needed + 1)
        digit = weighed(shares[look.shift : look.shift + look.steps], ring)
        over, borrow, inside, both = (made for (made,) in lifted)
        offset, of_digit, of_borrow = yield from together(
            [
                open_sum(weighed(shares, look.ring) - accumulated, look.ring),
                column_times(masks.inside, digit, ring, party),
                column_times(masks.inside, borrow, ring, party),
            ]
        )
        return offset, [digit, inside, of_digit, borrow, of_borrow, both, over]

    def _record(self, variables: list[Column], masks: Masks, count: int) -> Joint[Words]:
        """Products of the variables' masks, of several, and all with those of [g = 0], [g = 1]."""
        products = self.gate.look.borrow.products
        alone = {1 << i: column.own[:, None] for i, column in enumerate(variables)}
        for i, (column, size) in enumerate(zip(variables, self._gated_bits, strict=True)):
            mine = [u for u in products if u.bit_length() == i + 1 and u & (u - 1)]
            if mine:
                parts = [(alone[u ^ 1 << i], 1) for u in mine]
                made = yield from gated(column, joined_bits(parts, count), size)
                alone |= {u: cut_bits(made, place, 1) for place, u in enumerate(mine)}
        every, size = joined_bits([(alone[u], 1) for u in products], count), len(products)
        zero, one = yield from together(
            [gated(masks.zero, every, size), gated(masks.one, every, size)]
        )
        several = [(alone[u], 1) for u in products[len(variables) :]]
        return joined_bits([*several, (zero, size), (one, size)], count)
