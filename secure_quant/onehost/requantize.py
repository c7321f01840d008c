"""The joint offline half of Requantize (V4): what a dealer would hand out, laid out as its fields.

The two draw the mask ρ of v = m·acc + o digit by digit, so that one-hots of its digits come from
shared bits, and open δ = ρ - m·r, r the accumulator's mask: online c = m·D + o + δ = v + ρ mod 2^k.
Nothing else of the gate changes; ``RequantizeGate.online`` runs on what is made here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from secure_quant.errors import OpNotSupported
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Side
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate, ScaledGate
from secure_quant.mpc.protocol.ring import Ring, reduce
from secure_quant.onehost import kernels
from secure_quant.onehost.cot import BOTH, Column, Pairing
from secure_quant.onehost.exchange import Joint, together
from secure_quant.onehost.hots import hot, hot_bits, hot_parts, prefixes
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.products import (
    cut_bits,
    end_to_end,
    gated,
    joined_bits,
    number,
    open_sum,
    weighed,
)

__all__ = ["JointRequantize", "JointScaled", "Made", "Part"]


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """The material of some elements, n in a row, before it is laid out. fields: in their order,
    uint64[n] or uint64[n, words], None where there is none. offset: δ. free: shares of masks."""

    fields: tuple[Words | None, ...]
    offset: Words
    free: Words


@dataclass(frozen=True, eq=False)
class Made:
    """A gate's material. side, mask: as under a dealer. offset: δ, uint64[batch, elements]."""

    side: Side
    offset: Ring = field(repr=False)
    mask: Ring = field(repr=False)


class JointScaled(ABC):
    """What the joint halves of Requantize, by lookups and by ramps, have in common."""

    gate: ScaledGate

    @property
    @abstractmethod
    def choosers(self) -> tuple[int, ...]:
        """Of all bits for which COTs are taken, in the order in which columns are."""

    @abstractmethod
    def parts(self) -> tuple[list[int], list[int]]:
        """Bits per element of every message of party 0 and of party 1."""

    @abstractmethod
    def formula(self) -> tuple[int, int]:
        """(COTs, payload bits of both directions) per element, as docs/spec/one-host.md states."""

    @abstractmethod
    def piece(self, pairing: Pairing, mask: Ring, out: Ring, some: slice) -> Joint[Part]:
        """The elements ``some`` of all samples, end to end. mask: own share of the accumulator's,
        uint64[batch, *shape], mod 2^k or more. out: of the output's. The pairing has the elements'
        ``cots`` in stock. Raises MalformedMessage, PairingSpent."""

    def joined(self, party: int, parts: Sequence[Part], mask: Ring, out: Ring) -> Made:
        """The gate's material, of all pieces in order."""
        offset = end_to_end([part.offset for part in parts])
        free = end_to_end([part.free for part in parts])
        fields = (
            None if each[0] is None else end_to_end(each)
            for each in zip(*(part.fields for part in parts), strict=True)
        )
        return self.laid(party, out, fields, offset, free)

    def places(self, batch: int) -> int:
        """Elements, of which a piece takes some."""
        return batch * self.gate.elements

    @property
    @abstractmethod
    def hots(self) -> tuple[tuple[str, int, int], ...]:
        """(purpose, first bit, width) of every one-hot of ρ."""

    def of_rho(self, ring: int) -> list[int]:
        """Choosers of ρ's bits: one that only begins one-hots needs one direction."""
        inner = {first + i for _, first, width in self.hots for i in range(1, width)}
        return [BOTH if i in inner else i % 2 for i in range(ring)]

    def opened_offset(self, rho: Sequence[Column], scaled: Words, party: int) -> Joint[Words]:
        """δ = ρ - scaled mod 2^k, both parties' ``scaled`` together."""
        ring = len(rho)
        shares = yield from number(rho, self.choosers[:ring], ring, party)
        return (yield from open_sum(weighed(shares, ring) - scaled, ring))

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs in which party 0 and party 1 choose."""
        n = batch * self.gate.elements
        first, second = (sum(c in (side, BOTH) for c in self.choosers) for side in (0, 1))
        return n * first, n * second

    def sent_bytes(self, batch: int) -> tuple[int, int]:
        """What party 0 and party 1 send for all pieces, besides the COTs' extension."""
        n = batch * self.gate.elements
        first, second = (sum(packed_bytes(n, bits) for bits in side) for side in self.parts())
        return first, second

    def fresh(self, pairing: Pairing, batch: int) -> Ring:
        """An own share of the output's mask, uint64[batch, *shape]."""
        words = pairing.random(batch * self.gate.elements)
        return reduce(words, self.gate.bits).reshape(batch, *self.gate.shape)

    def laid(
        self, party: int, out: Ring, fields: Iterable[Words | None], offset: Words, free: Words
    ) -> Made:
        """Everything where the dealer would have put it. fields: in their order, None where there
        is none."""
        gate, n, batch = self.gate, self.gate.elements, len(out)
        dealt = np.zeros((batch, gate.dealt_words), np.uint64)
        sizes = gate.look.fields(gate.bits).in_order
        for values, bits, place in zip(fields, sizes, gate.field_places[:-1], strict=True):
            if bits and values is not None:
                for row in range(batch):
                    words = dealt[row, place // 64 :]
                    kernels.join(values[row * n : (row + 1) * n], bits, words)
        words = np.concatenate([free.reshape(batch, n), out.reshape(batch, n)], axis=1)
        return Made(Side(party, batch, words, list(dealt)), offset.reshape(batch, n), out)


@dataclass(frozen=True)
class JointRequantize(JointScaled):
    """What ``gate`` needs of a pairing, and makes by it. Raises OpNotSupported unless it is V4."""

    gate: RequantizeGate

    def __post_init__(self) -> None:
        if self.gate.look.variant != "V4":
            raise OpNotSupported(
                f"Requantize {self.gate.name!r} without a dealer", got=self.gate.look.variant,
                expected="V4", hint="plan with another objective than latency",
            )  # fmt: skip

    # ---- the bits, in the order in which columns are taken

    @cached_property
    def hots(self) -> tuple[tuple[str, int, int], ...]:
        """(purpose, first bit, width) of every one-hot of ρ: the digits', main, saturation."""
        look = self.gate.look
        made = [("digit", *place) for place in look.borrow.places]
        made.append(("main", look.shift, look.width))
        if look.saturates:
            made.append(("saturation", look.shift + look.granule, look.reach))
        return tuple(made)

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """Of ρ's bits, the borrow's variables, [inside], the number's bits, which need one
        direction."""
        look = self.gate.look
        masks = [BOTH] * (look.borrow.variables + look.saturates)
        return (*self.of_rho(look.ring), *masks, *(j % 2 for j in range(look.out_bits)))

    # ---- cost

    @cached_property
    def _gated_bits(self) -> list[int]:
        """Bits of every P1 of the record, the last one [inside]'s."""
        look = self.gate.look
        o, products = look.out_bits, look.borrow.products
        made = []
        for i in range(look.borrow.variables):
            mine = [u for u in products if u.bit_length() == i + 1]
            made.append(sum(o + (u.bit_count() > 1) for u in mine))
        if look.saturates:
            made.append(o + (o if look.shift else 0) + len(products) * (o + 1))
        return made

    def parts(self) -> tuple[list[int], list[int]]:
        """Bits per element of every message of party 0 and of party 1."""
        look = self.gate.look
        both = [bits for _, _, width in self.hots for bits in hot_parts(width)]
        both += [*self._gated_bits, look.ring]
        sides: tuple[list[int], list[int]] = (list(both), list(both))
        for count, ring, choosers in (
            (look.ring, look.ring, self.choosers[: look.ring]),
            (look.out_bits, self.gate.bits, self.choosers[-look.out_bits :]),
        ):
            for i in range(count):
                if ring - 1 - i > 0:
                    chooser = i % 2 if choosers[i] == BOTH else choosers[i]
                    sides[1 - chooser].append(ring - 1 - i)
        return sides

    def formula(self) -> tuple[int, int]:
        look, ring = self.gate.look, self.gate.bits
        k, variables, o = look.ring, look.borrow.variables, look.out_bits
        single = sum(c != BOTH for c in self.choosers[:k])
        cots = 2 * k - single + 2 * (variables + look.saturates) + o
        each = sum(hot_bits(width) for _, _, width in self.hots) + k + look.record_bits
        lifted = sum(max(ring - 1 - j, 0) for j in range(o))
        return cots, 2 * each + k * (k - 1) // 2 + lifted

    # ---- the protocol

    def piece(self, pairing: Pairing, mask: Ring, out: Ring, some: slice) -> Joint[Part]:
        """See JointScaled."""
        gate, look, party = self.gate, self.gate.look, pairing.party
        elements = some.stop - some.start
        columns = pairing.columns(self.choosers, elements)
        last = len(columns) - look.out_bits
        rho, masks, lifts = columns[: look.ring], columns[look.ring : last], columns[last:]
        scaled = gate.scaled(mask, 0).reshape(-1)[some]
        drawn = pairing.random(elements)
        delta = drawn & np.uint64((1 << look.out_bits) - 1)
        hots, offset, lift, record = yield from together(
            [
                together([
                    hot(rho[first : first + width], party, pairing.delta, purpose)
                    for purpose, first, width in self.hots
                ]),
                self.opened_offset(rho, scaled, party),
                number(lifts, self.choosers[-look.out_bits :], gate.bits, party),
                self._record(masks, self._mu(lifts, drawn), delta),
            ]
        )  # fmt: skip
        hots[0] = prefixes(hots[0], look.borrow.digits[0]) if look.shift else hots[0]
        free = self._free(masks, lifts, self._mu(lifts, drawn), delta)
        count = len(look.borrow.digits)
        sizes = [gate.bits - j for j in range(look.out_bits) if gate.bits > j]
        lifted = joined_bits(list(zip(lift, sizes, strict=False)), elements)
        saturation = hots[count + 1] if look.saturates else None
        return Part((hots[count], saturation, record, lifted, *hots[:count]), offset, free)

    def _mu(self, lifts: Sequence[Column], drawn: Words) -> Words:
        """Own share of the mask of the number opened first; where nothing but one number is
        opened, that is the mask which is lifted."""
        bits = self.gate.look.out_bits
        if self.gate.look.opened_bits:
            return drawn >> np.uint64(bits) & np.uint64((1 << bits) - 1)
        return joined_bits([(column.own, 1) for column in lifts], len(drawn))[:, 0]

    def _free(self, masks: list[Column], lifts: Sequence[Column], mu: Words, delta: Words) -> Words:
        """Own share of all opened bits' masks, in the order in which they are opened."""
        look = self.gate.look
        number_mask = joined_bits([(column.own, 1) for column in lifts], len(mu))[:, 0]
        if not look.opened_bits:
            return number_mask
        variables = masks[: look.borrow.variables]
        inside = masks[look.borrow.variables :]
        parts = [(mu, look.out_bits)]
        parts += [(delta, look.out_bits)] if look.shift else []
        parts += [(column.own, 1) for column in (*inside, *variables)]
        return joined_bits([*parts, (number_mask, look.out_bits)], len(mu))[:, 0]

    def _record(self, masks: list[Column], mu: Words, delta: Words) -> Joint[Words]:
        """Products of the opened bits' masks, laid out as the record: variable by variable, all
        products whose highest it is, and then all of them times [inside]'s."""
        look = self.gate.look
        o, products, count = look.out_bits, look.borrow.products, look.borrow.variables
        alone = {1 << i: masks[i].own[:, None] for i in range(count)}  # n_U
        moved: dict[int, Words] = {}  # n_U · δ
        for i in range(count):
            mine, parts = [u for u in products if u.bit_length() == i + 1], []
            for u in mine:
                rest = u ^ 1 << i
                parts.append((moved[rest] if rest else delta[:, None], o))
                if rest:
                    parts.append((alone[rest], 1))
            made = yield from gated(masks[i], joined_bits(parts, len(mu)), self._gated_bits[i])
            place = 0
            for u in mine:
                moved[u], place = cut_bits(made, place, o), place + o
                if u ^ 1 << i:
                    alone[u], place = cut_bits(made, place, 1), place + 1
        inside: list[tuple[Words, int]] = []
        if look.saturates:
            inside = yield from self._inside(masks[-1], mu, delta, moved, alone)
        parts, before = list(inside[: 1 + bool(look.shift)]), 1 + bool(look.shift)
        for number_, u in enumerate(products):
            parts.append((moved[u], o))
            if look.saturates:
                parts += inside[before + 2 * number_ : before + 2 * number_ + 2]
            if number_ >= count:
                parts.append((alone[u], 1))
        return joined_bits(parts, len(mu))

    def _inside(
        self, column: Column, mu: Words, delta: Words, moved: dict[int, Words],
        alone: dict[int, Words],
    ) -> Joint[list[tuple[Words, int]]]:  # fmt: skip
        """μ, δ, and by product n_U·δ, n_U: each times [inside]'s mask."""
        look, o = self.gate.look, self.gate.look.out_bits
        parts = [(mu[:, None], o)] + ([(delta[:, None], o)] if look.shift else [])
        for u in look.borrow.products:
            parts += [(moved[u], o), (alone[u], 1)]
        made = yield from gated(column, joined_bits(parts, len(mu)), self._gated_bits[-1])
        place, found = 0, []
        for _, bits in parts:
            found.append((cut_bits(made, place, bits), bits))
            place += bits
        return found
