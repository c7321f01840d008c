"""The indices of the largest: comparisons of all pairs of a group, places, and the winners on.

s_ij = [v_i >= v_j], i < j, is a Requantize of v_i - v_j with a table of two entries. What beats how
many others of its group is a sum of these, and a table makes 1 of the one that beats all: a tie is
the lowest index's. Of several groups the winners' values, Σ w_i·v_i, go on to the next level, and
so do their indices; nothing but the masked last index is left. In one group places 1, 2, ... are
tables of the same sums.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.gates.maximum import together
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["GROUPS", "MOST_PLACES", "Level", "TopKGate", "group_sizes"]

GROUPS = {"latency": 16, "balanced": 10, "traffic": 4}
"""Candidates of a group, by objective: fewer rounds, or fewer comparisons."""
MOST_PLACES = 64
"""Candidates of the one group in which several places are looked for."""
INDEX_BITS = 64
"""Ring of an index: it is handed out as a share mod 2^64."""

Ints = NDArray[np.int64]


def group_sizes(candidates: int, most: int) -> tuple[int, ...]:
    """Candidates of a group at each level, the groups as even as they can be."""
    found = []
    while candidates > 1:
        groups = -(-candidates // most)
        found.append(-(-candidates // groups))
        candidates = groups
    return tuple(found)


@dataclass(frozen=True)
class Level:
    """compare: [positions, groups, pairs]. places: of 1, 2, ..., each [positions, groups, size].
    candidates: before this level; one that is missing in the last group is the last once more."""

    candidates: int
    size: int
    compare: RequantizeGate
    places: tuple[RequantizeGate, ...]

    @property
    def groups(self) -> int:
        return -(-self.candidates // self.size)

    @cached_property
    def pairs(self) -> tuple[Ints, Ints]:
        """i and j of every pair of a group."""
        first, second = np.triu_indices(self.size, 1)
        return first.astype(np.int64), second.astype(np.int64)

    @cached_property
    def grouped(self) -> Ints:
        """[groups, size]: which candidate stands where."""
        count = self.groups * self.size
        made = np.minimum(np.arange(count), self.candidates - 1)
        return made.reshape(self.groups, self.size)

    def wins(self, compared: Ring) -> Ring:
        """[..., pairs] -> [..., size]: Σ_{j>i} s_ij - Σ_{j<i} s_ji. The constant is ``behind``."""
        made = np.zeros((*compared.shape[:-1], self.size), np.uint64)
        for pair, (i, j) in enumerate(zip(*self.pairs, strict=True)):
            made[..., i] += compared[..., pair]
            made[..., j] -= compared[..., pair]
        return made

    @cached_property
    def behind(self) -> Ring:
        """How many stand before each: it beats those that do not beat it."""
        return np.arange(self.size, dtype=np.uint64)


@dataclass
class _Cut:
    """Words of a party's or the dealer's material, taken piece by piece."""

    free: int = 0
    dealt: int = 0

    def take(self, gate: Gate) -> tuple[slice, slice]:
        return self.words(gate.free_words, gate.dealt_words)

    def words(self, free: int, dealt: int) -> tuple[slice, slice]:
        self.free, self.dealt = self.free + free, self.dealt + dealt
        return slice(self.free - free, self.free), slice(self.dealt - dealt, self.dealt)


@dataclass(frozen=True, kw_only=True)
class TopKGate(Gate):
    """source: shape of the values. width: ring in which they are compared. bits: of the indices."""

    multiplier: tuple[int, ...]
    axis: int
    source: tuple[int, ...]
    zero_point: int
    width: int
    tournament: tuple[Level, ...]

    @property
    def positions(self) -> int:
        return prod(self.source) // self.source[self.axis]

    def describe(self) -> dict[str, Any]:
        parts = [[level.compare, *level.places] for level in self.tournament]
        return super().describe() | {
            "width": self.width,
            "levels": [[gate.describe() for gate in gates] for gates in parts],
        }

    @staticmethod
    def material(tournament: tuple[Level, ...], positions: int) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        free = dealt = 0
        if len(tournament) > 1:
            dealt += positions * tournament[0].candidates
        for number, level in enumerate(tournament):
            gates = (level.compare, *level.places)
            values, indices = _products(tournament, number)
            made = positions * level.groups
            last = number + 1 == len(tournament)
            free += sum(gate.free_words for gate in gates) + made * (values + indices)
            dealt += sum(gate.dealt_words for gate in gates)
            dealt += made * ((values and not last) + indices)
        return free, dealt

    @staticmethod
    def rounds(
        tournament: tuple[Level, ...], positions: int, width: int
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Payloads of all levels."""
        made: list[tuple[tuple[int, int], ...]] = []
        for number, level in enumerate(tournament):
            made += level.compare.payloads
            sent = zip(*(gate.payloads for gate in level.places), strict=True)
            made += [tuple(part for parts in each for part in parts) for each in sent]
            values, indices = _products(tournament, number)
            count = positions * level.groups
            parts = [(count, width)] * values + [(count, INDEX_BITS)] * indices
            if parts:
                made.append(tuple(parts))
        return tuple(made)

    def values(self, x: Ring) -> Ring:
        """[batch, *source] times the multipliers, mod 2^width -> [batch, positions, candidates]."""
        last = np.moveaxis(x, self.axis % len(self.source) + 1, -1)
        made = last * to_ring(np.array(self.multiplier), 64)
        return reduce(made, self.width).reshape(len(x), -1, self.source[self.axis])

    def placed(self, made: Ring) -> Ring:
        """[batch, positions, places] -> [batch, *shape]."""
        axis = self.axis % len(self.source)
        lead = [n for place, n in enumerate(self.source) if place != axis]
        return np.moveaxis(made.reshape(len(made), *lead, -1), -1, axis + 1)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        r, cut, index = self.values(masks[0][None])[0], _Cut(), None

        def part(gate: RequantizeGate, mask: Ring) -> Ring:
            free, dealt = cut.take(gate)
            sub = Dealing(side.free0[free], side.free1[free], side.dealt[dealt])
            return gate.deal(sub, [reduce(mask, gate.look.ring).reshape(gate.shape)])

        def share(mask: Ring) -> Ring:
            _, dealt = cut.words(0, mask.size)
            side.dealt[dealt] = mask.reshape(-1) - side.dealt[dealt]
            return mask

        def product(won: Ring, mask: Ring, bits: int) -> Ring:
            free, _ = cut.words(won[..., 0].size, 0)
            sums = (won * mask).sum(-1, dtype=np.uint64)
            z = (side.free0[free] + side.free1[free]).reshape(sums.shape)
            return reduce(z - sums, bits)

        if len(self.tournament) > 1:
            share(r)
        for number, level in enumerate(self.tournament):
            grouped = r[:, level.grouped]
            first, second = level.pairs
            s = part(level.compare, grouped[..., first] - grouped[..., second])
            won = [part(gate, level.wins(s)) for gate in level.places]
            values, indices = _products(self.tournament, number)
            if not number:
                index = np.stack([_numbered(level, w) for w in won], -1)
            if values:
                r = share(product(won[0], grouped, self.width))
            if indices and index is not None:
                index = share(product(won[0], index[:, level.grouped, 0], INDEX_BITS))[..., None]
        return reduce(self.placed(_last(index)[None])[0], self.bits)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        """State: for each level the sides of its gates, own shares of all masks, and own z."""
        cut, batch = _Cut(), side.batch
        state: list[Any] = []
        own: Ring | None = None
        index: Ring | None = None

        def part(gate: RequantizeGate) -> tuple[Side, Ring]:
            free, dealt = cut.take(gate)
            pieces = [words[dealt] for words in side.dealt]
            sub = Side(side.party, batch, side.free[:, free], pieces)
            mask = gate.offline(sub, [None])[1]
            return sub, Wire(mask=mask).own

        def share(shape: tuple[int, ...]) -> Ring:
            _, dealt = cut.words(0, prod(shape))
            return np.stack([words[dealt] for words in side.dealt]).reshape(batch, *shape)

        def words(shape: tuple[int, ...]) -> Ring:
            free, _ = cut.words(prod(shape), 0)
            return side.free[:, free].reshape(batch, *shape)

        if len(self.tournament) > 1:
            own = share((self.positions, self.tournament[0].candidates))
        for number, level in enumerate(self.tournament):
            compare = part(level.compare)
            places = [part(gate) for gate in level.places]
            values, indices = _products(self.tournament, number)
            shape, before = (self.positions, level.groups), (own, index)
            if not number:
                index = np.stack([_numbered(level, mask) for _, mask in places], -1)
            z: list[Ring] = []
            if values:
                z.append(words(shape))
                own = share(shape)
            if indices:
                z.append(words(shape))
                index = share(shape)[..., None]
            state.append((compare, places, before, z))
        return state, reduce(self.placed(_last(index)), self.bits)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        x, index = self.values(inputs[0].public - to_ring(self.zero_point, 64)), None
        for number, (level, made) in enumerate(zip(self.tournament, state, strict=True)):
            compare, places, (own, own_index), z = made
            grouped, (first, second) = x[:, :, level.grouped], level.pairs
            apart = grouped[..., first] - grouped[..., second]
            s = (yield from _compared(level.compare, compare, apart)).public
            wins = level.wins(s) + level.behind
            runs = [
                _ring(_compared(gate, each, wins))
                for gate, each in zip(level.places, places, strict=True)
            ]
            won = yield from together(runs)
            values, indices = _products(self.tournament, number)
            if not number:
                index = np.stack([_numbered(level, w) for w in won], -1)
            sums, mine = [], places[0][1]
            if values:
                pair = grouped, own[:, :, level.grouped]
                sums.append(_select(side.party, won[0], mine, *pair, z[0], self.width))
            if indices and index is not None:
                pair = index[:, :, level.grouped, 0], own_index[:, :, level.grouped, 0]
                sums.append(_select(side.party, won[0], mine, *pair, z[-1], INDEX_BITS))
            if sums:
                opened = yield from together(sums)
                x = opened[0]
                if indices:
                    index = opened[-1][..., None]
        return Wire(self.placed(reduce(_last(index), self.bits)), mask)


def _products(tournament: tuple[Level, ...], number: int) -> tuple[bool, bool]:
    """Whether a level hands on values, and whether its indices are of values that are secret."""
    return number + 1 < len(tournament), number > 0


def _numbered(level: Level, won: Ring) -> Ring:
    """Σ c·w_c over a group: [..., groups, size] -> [..., groups]. A candidate that stands twice
    wins where it stands first."""
    places = np.arange(level.groups * level.size, dtype=np.uint64)
    made: Ring = (won * places.reshape(level.groups, level.size)).sum(-1, dtype=np.uint64)
    return made


def _last(index: Ring | None) -> Ring:
    """[..., positions, 1 group, places] -> [..., positions, places]."""
    if index is None:
        raise ValueError("a tournament without levels")
    return index[..., 0, :]


def _compared(
    gate: RequantizeGate, made: tuple[Side, Ring], x: Ring
) -> Generator[bytes, bytes, Wire]:
    side, mask = made
    return (
        yield from gate.online(
            side, None, mask, [Wire(reduce(x, gate.look.ring).reshape(side.batch, *gate.shape))]
        )
    )


def _ring(run: Generator[bytes, bytes, Wire]) -> Generator[bytes, bytes, Ring]:
    return (yield from run).public


def _select(
    party: int, won: Ring, own_won: Ring, x: Ring, own_x: Ring, z: Ring, bits: int
) -> Generator[bytes, bytes, Ring]:
    """Σ_i w_i·x_i + mask, opened: as ProductGate, summed over a group."""
    right = (x if party == 0 else np.uint64(0)) - own_x
    made = (won * right - own_won * x).sum(-1, dtype=np.uint64) + z
    return (yield from opening(reduce(made, bits), bits))
