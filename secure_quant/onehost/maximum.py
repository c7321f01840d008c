"""MaxPool and ReduceMax without a dealer: tournaments of two, both halves of each comparison.

For candidates y_i = D_i - r_i and w bits that hold a signed difference, ahead of time: ρ of w bits,
tables of its low w - 1, the opened δ = ρ - (r_0 - r_1) mod 2^w, a bit ⟨n⟩, [n] and [n·(r_0 - r_1)]
in the wire's ring. Online, c = D_0 - D_1 + δ mod 2^w is y_0 - y_1 + ρ, so with the borrow
b = [low c < low ρ]

    s = [y_0 >= y_1] = 1 ⊕ top(c) ⊕ top(ρ) ⊕ b,    y = y_1 + s·(y_0 - y_1);

b ⊕ top(ρ) ⊕ n is opened, which makes s = P ⊕ n with a public P, and then y + r_y. b comes from one
prefix table, or in one round more from digits, as in Requantize. top(ρ) is a private bit of either
party: its weight 2^(w-1) takes no product.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Wire, opening
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.ring import Ring, reduce
from secure_quant.mpc.protocol.tables import Borrow
from secure_quant.onehost import kernels
from secure_quant.onehost.cot import BOTH, KAPPA, Column, Pairing
from secure_quant.onehost.exchange import Joint, together
from secure_quant.onehost.hots import hot, hot_bits, hot_parts, prefixes
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.products import (
    column_times,
    cut_bits,
    end_to_end,
    gated,
    joined_bits,
    number,
    open_sum,
    weighed,
)
from secure_quant.onehost.softspoken import extension_bits

__all__ = ["JointMaximum", "MadeMaximum"]

COT_BITS = extension_bits(KAPPA)
"""What a COT is priced at when digits are chosen."""
WAITED = 32
"""What a bit that is sent online is worth in bits that are sent ahead of time."""
MOST_DIGITS = 5


@lru_cache(maxsize=64)
def borrow_of(low: int) -> Borrow:
    """The cheapest digits of ``low`` bits: payload, COTs, and what is opened online."""
    found = []
    for count in range(1, min(low, MOST_DIGITS) + 1):
        short, long = divmod(low, count)
        if short + bool(long) <= 14:
            found.append(Borrow(tuple(short + (i < long) for i in range(count))))

    def price(borrow: Borrow) -> int:
        variables = borrow.variables if len(borrow.digits) > 1 else 0
        bits = 2 * sum(hot_bits(width) for width in borrow.digits)
        bits += 2 * (len(borrow.products) - borrow.variables)
        bits += COT_BITS * (2 * variables - len(borrow.digits))
        return bits + WAITED * 2 * variables

    return min(found, key=price)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """One party's material for the comparisons of one level, n of them. own: its shares of r_0,
    r_1, [n], [n·(r_0 - r_1)] and r_y, uint64[5, n]. tables: by digit [c < ρ], and but for the
    lowest [c = ρ], side by side, uint64[n, words]. known: bit 1 + i the share of the product
    products[i] of the variables' masks, bit 0 of 1. hidden: the share of top(ρ) ⊕ n."""

    own: Words
    offset: Words
    tables: Words
    known: Words
    hidden: Words

    @staticmethod
    def joined(parts: Sequence[Comparison]) -> Comparison:
        """Of comparisons one after the other."""
        made = {
            each.name: end_to_end([getattr(part, each.name) for part in parts], axis)
            for each, axis in zip(fields(Comparison), (1, 0, 0, 0, 0), strict=True)
        }
        return Comparison(**made)


@dataclass(frozen=True, eq=False)
class MadeMaximum:
    """party's material of a gate. mask: own share of the output's."""

    party: int
    levels: tuple[Comparison, ...]
    mask: Ring = field(repr=False)


@dataclass(frozen=True)
class JointMaximum:
    """``gate`` by maxima of two. Raises OpNotSupported for another tournament."""

    gate: MaximumGate

    def __post_init__(self) -> None:
        arities = {level.arity for level in self.gate.tournament}
        if arities - {2}:
            raise OpNotSupported(
                f"maximum {self.gate.name!r} without a dealer", got=f"maxima of {max(arities)}",
                expected="maxima of 2", hint="plan with objective traffic",
            )  # fmt: skip

    @cached_property
    def borrow(self) -> Borrow:
        """One digit: a prefix table, from which the borrow is read at once."""
        return borrow_of(self.gate.width - 1)

    @property
    def variables(self) -> int:
        """Opened ones."""
        return self.borrow.variables if len(self.borrow.digits) > 1 else 0

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """Of ρ's low bits, the variables' masks, n."""
        begins = {first for first, _ in self.borrow.places}
        low = [i % 2 if i in begins else BOTH for i in range(self.gate.width - 1)]
        return (*low, *[BOTH] * self.variables, BOTH)

    def counts(self, batch: int) -> list[int]:
        """Comparisons of every level."""
        return [batch * self.gate.outputs * level.groups for level in self.gate.tournament]

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs in which party 0 and party 1 choose."""
        n = sum(self.counts(batch))
        first, second = (sum(c in (side, BOTH) for c in self.choosers) for side in (0, 1))
        return n * first, n * second

    @cached_property
    def _gated_bits(self) -> list[int]:
        """Bits of every P1 among the variables' masks."""
        products = self.borrow.products
        return [
            sum(u.bit_count() > 1 and u.bit_length() == i + 1 for u in products)
            for i in range(self.variables)
        ]

    def parts(self) -> tuple[list[int], list[int]]:
        """Bits per comparison of every message of party 0 and of party 1."""
        gate = self.gate
        both = [bits for width in self.borrow.digits for bits in hot_parts(width)]
        both += [bits for bits in self._gated_bits if bits]
        both += [gate.width, gate.bits]
        sides: tuple[list[int], list[int]] = (list(both), list(both))
        for i in range(gate.width - 1):
            sides[1 - i % 2].append(gate.width - 1 - i)
        if gate.bits > 1:
            sides[1].append(gate.bits - 1)  # of [n], which party 0 chooses
        return sides

    def sent_bytes(self, batch: int) -> tuple[int, int]:
        """What party 0 and party 1 send for all pieces, besides the COTs' extension."""
        first, second = (
            sum(packed_bytes(n, bits) for n in self.counts(batch) for bits in side)
            for side in self.parts()
        )
        return first, second

    def formula(self) -> tuple[int, int]:
        """(COTs, payload bits of both directions) a comparison, as docs/spec/one-host.md states."""
        w, k, digits = self.gate.width, self.gate.bits, self.borrow.digits
        cots = 2 * (w - 1) - len(digits) + 2 * self.variables + 2
        products = len(self.borrow.products) - self.borrow.variables if self.variables else 0
        each = sum(hot_bits(width) for width in digits) + products + w + k
        return cots, 2 * each + w * (w - 1) // 2 + k - 1

    def payload_bits(self) -> tuple[tuple[int, ...], ...]:
        """Bits of a comparison in every round online, level by level."""
        opened = (self.variables,) if self.variables else ()
        return tuple((*opened, 1, self.gate.bits) for _ in self.gate.tournament)

    def payload_bytes(self, batch: int) -> tuple[int, ...]:
        """Of every round online, as each party sends."""
        levels = zip(self.counts(batch), self.payload_bits(), strict=True)
        return tuple(packed_bytes(n, bits) for n, parts in levels for bits in parts)

    # ---- ahead of time

    def fresh(self, pairing: Pairing, batch: int) -> Ring:
        """An own share of the output's mask, uint64[batch, *shape]."""
        words = pairing.random(batch * self.gate.outputs)
        return reduce(words, self.gate.bits).reshape(batch, *self.gate.shape)

    def places(self, batch: int) -> int:
        """Outputs, of which a piece takes some."""
        return batch * self.gate.outputs

    def piece(
        self, pairing: Pairing, mask: Ring, fresh: Ring, some: slice
    ) -> Joint[list[Comparison]]:
        """The outputs ``some`` of all samples, end to end. mask: own share of the input's,
        uint64[batch, *source]. fresh: of the output's, unless there is but one candidate, which
        then passes with its own. The pairing has the outputs' ``cots`` in stock. All levels at
        once: every mask is drawn fresh. Raises MalformedMessage, PairingSpent."""
        gate, candidates = self.gate, self.gate.gather(mask)
        now, runs = candidates.reshape(-1, candidates.shape[-1])[some], []
        for level in gate.tournament:
            pairs = now[..., : 2 * level.groups]
            first, second = (np.ascontiguousarray(pairs[..., i::2]).reshape(-1) for i in (0, 1))
            if level is gate.tournament[-1]:
                out = fresh.reshape(-1)[some]
            else:
                out = reduce(pairing.random(first.size), gate.bits)
            runs.append(self._comparison(pairing, (first, second), out))
            winners = out.reshape(-1, level.groups)
            now = np.concatenate([winners, now[..., 2 * level.groups :]], axis=-1)
        return (yield from together(runs))

    def joined(
        self, party: int, parts: Sequence[list[Comparison]], mask: Ring, fresh: Ring
    ) -> MadeMaximum:
        """The gate's material, of all pieces in order."""
        own = fresh if self.gate.tournament else self.gate.gather(mask)
        levels = tuple(map(Comparison.joined, zip(*parts, strict=True)))
        return MadeMaximum(party, levels, own.reshape(len(mask), *self.gate.shape))

    def _comparison(
        self, pairing: Pairing, masks: tuple[Words, Words], out: Words
    ) -> Joint[Comparison]:
        gate, party, low = self.gate, pairing.party, self.gate.width - 1
        columns = pairing.columns(self.choosers, out.size)
        rho, variables, bit = columns[:low], columns[low:-1], columns[-1]
        top = pairing.random(out.size) & np.uint64(1)
        difference = masks[0] - masks[1]
        hots, offset, known, (share,), times = yield from together(
            [
                together([
                    hot(rho[first : first + width], party, pairing.delta, "main")
                    for first, width in self.borrow.places
                ]),
                self._offset(rho, top, difference, party),
                self._products(variables, party, out.size),
                number([bit], [0], gate.bits, party),
                column_times(bit, reduce(difference, gate.bits), gate.bits, party),
            ]
        )  # fmt: skip
        tables: list[Words] = []
        for e, width in zip(hots, self.borrow.digits, strict=True):
            tables += [prefixes(e, width), e] if tables else [prefixes(e, width)]
        own = np.stack([*masks, share, times, out])
        side_by_side = np.concatenate(tables, axis=1)
        return Comparison(own, offset, side_by_side, known, top ^ bit.own)

    def _offset(
        self, rho: Sequence[Column], top: Words, difference: Words, party: int
    ) -> Joint[Words]:
        width = self.gate.width
        turns = [i % 2 for i in range(width - 1)]
        shares = yield from number(rho, turns, width, party)
        return (yield from open_sum(weighed([*shares, top], width) - difference, width))

    def _products(self, variables: list[Column], party: int, count: int) -> Joint[Words]:
        alone = {1 << i: column.own[:, None] for i, column in enumerate(variables)}
        for i, column in enumerate(variables):
            mine = [u for u in self.borrow.products if u.bit_length() == i + 1 and u & (u - 1)]
            if mine:
                parts = [(alone[u ^ 1 << i], 1) for u in mine]
                made = yield from gated(column, joined_bits(parts, count), len(mine))
                alone |= {u: cut_bits(made, place, 1) for place, u in enumerate(mine)}
        one = np.full(count, party == 0, np.uint64)
        products = self.borrow.products if variables else ()
        return joined_bits([(one, 1), *((alone[u], 1) for u in products)], count)[:, 0]

    # ---- with the input there

    def online(self, made: MadeMaximum, x: Wire) -> Generator[bytes, bytes, Wire]:
        """Yields the payload of every round, as gates do. Raises MalformedMessage."""
        gate, now = self.gate, self.gate.gather(x.public)
        for level, comparison in zip(gate.tournament, made.levels, strict=True):
            pairs = now[..., : 2 * level.groups]
            first, second = (np.ascontiguousarray(pairs[..., i::2]).reshape(-1) for i in (0, 1))
            winners = yield from self._larger(made.party, comparison, first, second)
            shaped = winners.reshape(*now.shape[:2], level.groups)
            now = np.concatenate([shaped, now[..., 2 * level.groups :]], axis=-1)
        return Wire(now.reshape(len(now), *gate.shape), made.mask)

    def _larger(
        self, party: int, own: Comparison, first: Words, second: Words
    ) -> Generator[bytes, bytes, Words]:
        """Masked candidates -> the masked larger ones, uint64[n] each."""
        gate, low = self.gate, np.uint64(self.gate.width - 1)
        c = reduce(first - second + own.offset, gate.width)
        borrow = yield from self._borrowed(own, c)
        opened = yield from opening(borrow ^ own.hidden, 1, xor=True)
        made, tops = np.empty_like(first), c >> low ^ np.uint64(1)
        kernels.larger(first, second, tops, opened, own.own, party, gate.bits, made)
        return (yield from opening(made, gate.bits))

    def _borrowed(self, own: Comparison, c: Words) -> Generator[bytes, bytes, Words]:
        """Own share of [low c < low ρ]."""
        read = np.empty_like(c)
        kernels.look_up(c, own.tables, self._places, read)
        if not self.variables:
            return read
        opened = yield from opening(read ^ self._own_masks(own), self.variables, xor=True)
        made = np.zeros_like(c)
        kernels.borrowed(opened, self.borrow.kappa, own.known, made)
        return made

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Of every digit: first bit, width, and the first words of its tables."""
        made, word = [], 0
        for first, width in self.borrow.places:
            size = max(2**width // 64, 1)
            made.append((first, width, word, word + size if first else -1))
            word += 2 * size if first else size
        return np.array(made, np.int64)

    def _own_masks(self, own: Comparison) -> Words:
        """The variables' masks: products of one come first, in order."""
        return own.known >> np.uint64(1) & np.uint64((1 << self.variables) - 1)
