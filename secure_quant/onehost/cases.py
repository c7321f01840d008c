"""The joint offline half of Requantize in one exchange less (V3): both cases of the borrow are
looked up at once.

n_b masks the borrow, p = b ⊕ n_b is opened beside a number for either case of p: for 0 from the
one-hot of ρ' + n_b, for 1 from that of ρ' + 1 - n_b, ρ' the bits of ρ above the shift. With e the
one-hot of ρ' and e' of ρ' + 1, a product n_b·(e ⊕ e') makes both. What is opened becomes a number
in the output's ring by shares of the masks and of their products with n_in, [inside]'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secure_quant.errors import OpNotSupported
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.ring import Ring
from secure_quant.onehost.cot import BOTH, Column, Pairing
from secure_quant.onehost.exchange import Joint, together
from secure_quant.onehost.hots import hot, hot_bits, hot_parts, prefixes
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.products import column_times, gated, joined_bits, number
from secure_quant.onehost.requantize import JointScaled, Part

__all__ = ["JointCases"]


@dataclass(frozen=True)
class JointCases(JointScaled):
    """What ``gate`` needs of a pairing, and makes by it. Raises OpNotSupported unless it is V3 with
    a shift."""

    gate: RequantizeGate

    def __post_init__(self) -> None:
        look = self.gate.look
        if look.variant != "V3" or not look.shift:
            raise OpNotSupported(
                f"Requantize {self.gate.name!r} by cases", got=f"{look.variant} >> {look.shift}",
                expected="V3 with a shift", hint="V4",
            )  # fmt: skip

    @cached_property
    def hots(self) -> tuple[tuple[str, int, int], ...]:
        """(purpose, first bit, width) of every one-hot of ρ: below the shift, main, saturation."""
        look = self.gate.look
        made = [("digit", 0, look.shift), ("main", look.shift, look.width)]
        if look.saturates:
            made.append(("saturation", look.shift + look.granule, look.reach))
        return tuple(made)

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """Of ρ's bits, [inside], [above], the borrow, the numbers' bits."""
        look = self.gate.look
        window = [BOTH, 0] if look.saturates else []
        numbers = [j % 2 for j in range(look.out_bits)]
        return (*self.of_rho(look.ring), *window, BOTH, *numbers, *numbers)

    @property
    def _lifted(self) -> list[int]:
        """Bits of the shares of a number's bits."""
        ring = self.gate.bits
        return [ring - j for j in range(min(self.gate.look.out_bits, ring))]

    def parts(self) -> tuple[list[int], list[int]]:
        look, ring = self.gate.look, self.gate.bits
        both = [bits for _, _, width in self.hots for bits in hot_parts(width)]
        both += [2**look.width, look.ring]
        both += [*self._lifted, *self._lifted] if look.saturates else []
        sides: tuple[list[int], list[int]] = (list(both), list(both))
        for i in range(look.ring - 1):
            chooser = i % 2 if self.choosers[i] == BOTH else self.choosers[i]
            sides[1 - chooser].append(look.ring - 1 - i)
        for j in range(min(look.out_bits, ring - 1)):
            sides[1 - j % 2].extend([ring - 1 - j] * 2)
        if look.saturates and ring > 1:
            sides[1].extend([ring - 1] * 2)
        return sides

    def formula(self) -> tuple[int, int]:
        look, ring = self.gate.look, self.gate.bits
        k, o, sat = look.ring, look.out_bits, int(look.saturates)
        single = sum(c != BOTH for c in self.choosers[:k])
        cots = 2 * k - single + 2 + 3 * sat + 2 * o
        each = sum(hot_bits(width) for _, _, width in self.hots) + 2**look.width + k
        each += 2 * sat * sum(self._lifted)
        lifted = 2 * sum(bits - 1 for bits in self._lifted) + 2 * sat * (ring - 1)
        return cots, 2 * each + k * (k - 1) // 2 + lifted

    # ---- the protocol

    def piece(self, pairing: Pairing, mask: Ring, out: Ring, some: slice) -> Joint[Part]:
        """See JointScaled."""
        gate, look, party = self.gate, self.gate.look, pairing.party
        count = some.stop - some.start
        columns = pairing.columns(self.choosers, count)
        rho, masks = columns[: look.ring], columns[look.ring :]
        window, numbers = masks[: -1 - 2 * look.out_bits], masks[-2 * look.out_bits :]
        borrow = masks[len(window)]
        cases = [numbers[: look.out_bits], numbers[look.out_bits :]]
        (low, main, *saturation), offset, lifted = yield from together(
            [
                together([self._hot(rho, pairing, borrow, *each) for each in self.hots]),
                self.opened_offset(rho, gate.scaled(mask, 0).reshape(-1)[some], party),
                self._lift(window, cases, party, count),
            ]
        )
        parts = [(column.own, 1) for column in (*cases[0], *cases[1], *window, borrow)]
        free = joined_bits(parts, count)[:, 0]
        sat = saturation[0] if saturation else None
        return Part((main, sat, None, lifted, low), offset, free)

    def _hot(
        self, rho: Sequence[Column], pairing: Pairing, borrow: Column, purpose: str, first: int,
        width: int,
    ) -> Joint[Words]:  # fmt: skip
        """A one-hot's field: of the bits below the shift a prefix table, of those that are looked
        up one for either case."""
        e = yield from hot(rho[first : first + width], pairing.party, pairing.delta, purpose)
        if purpose == "digit":
            return prefixes(e, width)
        if purpose == "saturation":
            return e
        after = turned(e, width)
        moved = yield from gated(borrow, e ^ after, 2**width)
        return joined_bits([(e ^ moved, 2**width), (after ^ moved, 2**width)], len(e))

    def _lift(
        self, window: list[Column], cases: list[list[Column]], party: int, count: int
    ) -> Joint[Words]:
        """Shares in the output's ring as they are dealt: of [inside]'s and [above]'s masks; of the
        bits of either number's, each followed by its product with [inside]'s."""
        ring, sizes = self.gate.bits, self._lifted
        turns = [j % 2 for j in range(len(sizes))]
        *first, one, two = yield from together(
            [
                *(number([column], [0], ring, party) for column in window),
                *(number(case[: len(sizes)], turns, ring, party) for case in cases),
            ]
        )
        parts = [(share, ring) for (share,) in first]
        shares = list(zip((*one, *two), (*sizes, *sizes), strict=True))
        if not window:
            return joined_bits(shares, count)
        inside = yield from together(
            [column_times(window[0], share, size, party) for share, size in shares]
        )
        for (share, size), product in zip(shares, inside, strict=True):
            parts += [(share, size), (product, size)]
        return joined_bits(parts, count)


def turned(e: Words, width: int) -> Words:
    """One-hots of places one further, around 2^width: uint64[n, words]."""
    one = np.uint64(1)
    if width < 6:
        size = 2**width
        made: Words = (e << one | e >> np.uint64(size - 1)) & np.uint64((1 << size) - 1)
    else:
        made = e << one | np.roll(e, 1, axis=1) >> np.uint64(63)
    return made
