"""MaxPool and ReduceMax: a tournament of maxima of 2, 3 or 4, two rounds a level, or three where a
comparison's table is cut into digits."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.mpc import kernels
from secure_quant.mpc.kernels import counts
from secure_quant.mpc.protocol.borrow import Borrow
from secure_quant.mpc.protocol.cost import words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce

__all__ = ["Level", "MaximumGate", "cut_digits", "levels"]

Places = NDArray[np.int64]
Digits = tuple[int, ...]
OPENED = 8
"""What a bit opened online is worth in bits that are dealt, where digits are chosen."""
WIDEST_DIGIT = 6
"""Kernels read a digit's table as one word."""


def cut_digits(bits: int) -> Digits:
    """The cheapest digits, lowest first, of the low bits of a difference; none where there is no
    fitting cut."""
    found = []
    for count in range(1, 5):
        short, long = divmod(bits, count)
        if short and short + bool(long) <= WIDEST_DIGIT:
            found.append(tuple(short + (i < long) for i in range(count)))

    def price(digits: Digits) -> int:
        return _table(digits) + OPENED * Borrow(digits).variables

    return min(found, key=price, default=())


def _table(digits: Digits) -> int:
    """Bits dealt for one comparison."""
    borrow = Borrow(digits)
    return sum(1 << bits for bits in digits) + len(borrow.products) - borrow.variables


@dataclass(frozen=True)
class Level:
    """``groups`` maxima of ``arity`` consecutive candidates for every output; the ``spare`` last
    candidates (fewer than arity) join one maximum of their own, or pass if there is one."""

    arity: int
    groups: int
    spare: int

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """(first candidate, arity, groups) of every kind of maximum."""
        main = ((0, self.arity, self.groups),) if self.groups else ()
        last = ((self.arity * self.groups, self.spare, 1),) if self.spare > 1 else ()
        return main + last

    @property
    def left(self) -> int:
        """Candidates that remain."""
        return self.groups + bool(self.spare)


def levels(candidates: int, arity: int) -> tuple[Level, ...]:
    """A tournament with as few levels as maxima of up to ``arity`` allow, as even as may be."""
    found = []
    while candidates > 1:
        depth = 1
        while arity**depth < candidates:
            depth += 1
        size = next(a for a in range(2, arity + 1) if a**depth >= candidates)
        level = Level(size, candidates // size, candidates % size)
        found.append(level)
        candidates = level.left
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class MaximumGate(Gate):
    """width: bits of a signed difference. source: per-sample shape of the input. digits: of its low
    bits, lowest first; none: one table of all."""

    node: ops.MaxPool | ops.ReduceMax
    width: int
    source: tuple[int, ...]
    tournament: tuple[Level, ...]
    digits: Digits = ()

    @staticmethod
    def candidates(node: ops.MaxPool | ops.ReduceMax, source: tuple[int, ...]) -> int:
        return source[-1] if isinstance(node, ops.ReduceMax) else prod(node.kernel)

    @staticmethod
    def material(
        tournament: tuple[Level, ...], outputs: int, width: int, ring: int, digits: Digits = ()
    ) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        free = dealt = 0
        for level in tournament:
            for _, arity, groups in level.parts:
                count = outputs * groups
                free += 2 * count
                table = _table(digits) if digits else 1 << (width - 1)
                dealt += words(count, counts.pairs(arity) * table)
                dealt += words(count, counts.products(arity) * ring)
        return free, dealt

    @staticmethod
    def rounds(
        tournament: tuple[Level, ...], outputs: int, ring: int, digits: Digits = ()
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        made, variables = [], Borrow(digits).variables
        for level in tournament:
            if digits:
                each = [(outputs * g, counts.pairs(a) * variables) for _, a, g in level.parts]
                made.append(tuple(each))
            made.append(tuple((outputs * g, counts.pairs(a)) for _, a, g in level.parts))
            made.append(tuple((outputs * g, ring) for _, _, g in level.parts))
        return tuple(made)

    def describe(self) -> dict[str, Any]:
        rows = [[level.arity, level.groups, level.spare] for level in self.tournament]
        more: dict[str, Any] = {"digits": list(self.digits)} if self.digits else {}
        return super().describe() | {"width": self.width, "tournament": rows} | more

    @cached_property
    def borrow(self) -> Borrow:
        return Borrow(self.digits)

    @cached_property
    def _digits(self) -> Places:
        """As the kernels take them."""
        record = len(self.borrow.products) - self.borrow.variables
        return np.array([*self.digits, record], np.int64)

    @cached_property
    def _table_bits(self) -> int:
        return _table(self.digits) if self.digits else 1 << (self.width - 1)

    @property
    def outputs(self) -> int:
        return prod(self.shape)

    @cached_property
    def places(self) -> Places:
        """[outputs, candidates]: where each window's candidates stand in the input. One that
        padding would make is another of the same window again, which changes no maximum."""
        if isinstance(self.node, ops.ReduceMax):
            return np.arange(prod(self.source)).reshape(self.outputs, self.source[-1])
        channels, height, width = self.source
        rows = _window(height, self.shape[1], 0, self.node)
        cols = _window(width, self.shape[2], 1, self.node)
        flat = rows[:, None, :, None] * width + cols[None, :, None, :]
        flat = flat.reshape(1, -1, prod(self.node.kernel))
        made = np.arange(channels)[:, None, None] * (height * width) + flat
        return made.reshape(self.outputs, -1)

    def gather(self, x: Ring) -> Ring:
        """uint64[batch, *source] -> [batch, outputs, candidates]."""
        return reduce(x.reshape(len(x), -1)[:, self.places], self.bits)

    def _parts(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(arity, maxima, first free word, first bit of tables, of products) in dealing order."""
        free = dealt = 0
        for number, level in enumerate(self.tournament):
            for _, arity, groups in level.parts:
                count = self.outputs * groups
                tables = dealt
                dealt += words(count, counts.pairs(arity) * self._table_bits)
                yield number, arity, count, free, 64 * tables, 64 * dealt
                free += 2 * count
                dealt += words(count, counts.products(arity) * self.bits)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        now, parts = self.gather(masks[0][None])[0], self._parts()
        for level in self.tournament:
            made = []
            for first, arity, groups in level.parts:
                _, _, count, free, tables, products = next(parts)
                r = np.ascontiguousarray(now[:, first : first + arity * groups]).reshape(-1)
                bits = side.free0[free : free + count] ^ side.free1[free : free + count]
                self._deal_comparisons(r, bits, side.dealt, arity, tables)
                skip = counts.pairs(arity) * self.borrow.variables
                kernels.maxima.DEAL[arity](
                    r, bits, side.dealt, self.width, self.bits, products, skip
                )
                out = slice(free + count, free + 2 * count)
                mask = reduce(side.free0[out] + side.free1[out], self.bits)
                made.append(mask.reshape(self.outputs, groups))
            now = _next(level, now, made)
        whole: Ring = now.reshape(self.shape)
        return whole

    def _deal_comparisons(self, r: Ring, bits: Ring, dealt: Ring, arity: int, place: int) -> None:
        if self.digits:
            kernels.maxima.deal_digits(
                r, bits, dealt, self.borrow.monomials, arity, self._digits, place
            )
        else:
            kernels.maxima.deal_tables(r, dealt, arity, self.width, place)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        """State: own share of every level's candidates' masks."""
        now, parts, state = self.gather(Wire(mask=masks[0]).own), self._parts(), []
        for level in self.tournament:
            state.append(now)
            made = []
            for _, _, groups in level.parts:
                _, _, count, free, _, _ = next(parts)
                mask = reduce(side.free[:, free + count : free + 2 * count], self.bits)
                made.append(mask.reshape(side.batch, self.outputs, groups))
            now = _next(level, now, made)
        return state, now.reshape(side.batch, *self.shape)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        now, parts = self.gather(inputs[0].public), list(self._parts())
        for number, level in enumerate(self.tournament):
            mine = [part for part in parts if part[0] == number]
            runs = [
                self._maximum(side, part, _candidates(now, cut), _candidates(state[number], cut))
                for part, cut in zip(mine, level.parts, strict=True)
            ]
            sums = yield from together(runs)
            shaped = [x.reshape(side.batch, self.outputs, -1) for x in sums]
            now = _next(level, now, shaped)
        return Wire(now.reshape(side.batch, *self.shape), mask)

    def _maximum(
        self, side: Side, part: tuple[int, int, int, int, int, int], values: Ring, own: Ring
    ) -> Generator[bytes, bytes, Ring]:
        """values, own: [batch, maxima · arity] -> the masked maxima, [batch, maxima]."""
        _, arity, count, free, tables, products = part
        own_bits = side.free[:, free : free + count]
        if self.digits:
            bits = kernels.batched.compare_digits(
                values, side.dealt, own_bits, arity, self._digits, tables
            )
            variables = counts.pairs(arity) * self.borrow.variables
            opened = yield from opening(bits, variables, xor=True)
            bits = kernels.batched.join_digits(
                opened, side.dealt, own_bits, arity, self._digits, self.borrow.kappa, tables,
                side.party,
            )  # fmt: skip
        else:
            bits = kernels.batched.compare(values, side.dealt, own_bits, arity, self.width, tables)
        opened = yield from opening(bits, counts.pairs(arity), xor=True)
        made = kernels.batched.select(
            opened, values, own, side.dealt, side.free[:, free + count : free + 2 * count],
            side.party, arity, self.width, self.bits, products,
        )  # fmt: skip
        return (yield from opening(made, self.bits))


def _window(size: int, outputs: int, axis: int, node: ops.MaxPool) -> Places:
    """[outputs, kernel]: places along one axis, those in the padding drawn to the border."""
    start = np.arange(outputs) * node.stride[axis] - node.padding[axis]
    made: Places = np.clip(start[:, None] + np.arange(node.kernel[axis]), 0, size - 1)
    return made


def _candidates(x: Ring, cut: tuple[int, int, int]) -> Ring:
    first, arity, groups = cut
    return np.ascontiguousarray(x[:, :, first : first + arity * groups]).reshape(len(x), -1)


def _next(level: Level, now: Ring, made: list[Ring]) -> Ring:
    """Winners in order; a single spare candidate passes."""
    passed = [now[..., -1:]] if level.spare == 1 else []
    return np.concatenate([*made, *passed], axis=-1)


def together(runs: list[Generator[bytes, bytes, Ring]]) -> Generator[bytes, bytes, list[Ring]]:
    """Runs of equally many rounds side by side: one message a round."""
    sent = [next(run) for run in runs]
    made: list[Ring] = []
    while not made:
        peer = yield b"".join(sent)
        place, parts = 0, []
        for part in sent:
            parts.append(peer[place : place + len(part)])
            place += len(part)
        sent = []
        for run, part in zip(runs, parts, strict=True):
            try:
                sent.append(run.send(part))
            except StopIteration as end:
                made.append(end.value)
    return made
