"""ReduceMax of values of few levels by counting, 2 or 3 rounds for any number of candidates.

The largest of x_i in low .. low + L - 1 is low + Σ_t [c_t > 0], with c_t = Σ_i [x_i - low >= t] for
t = 1 .. L - 1. A dealt one-hot of r_i mod 2^w, additively shared mod 2^m, is shares of that of
x_i - low once D_i is known: turned by it. So both parties have shares of every c_t < 2^m, without a
message. They open c_t + ρ_t; then [c_t = 0], a place of a dealt one-hot of ρ_t, under a bit n_t;
and last the sum in the output's ring, by dealt shares of n_t. *Summed*, the one-hot of ρ_t is
shared in the output's ring: its places add up without a round between. Of numbers p that are masked
by XOR the one-hot is that of the mask n, and [p ^ n = v] its entry at v ^ p. ``docs/spec/mpc.md`` 5
proves it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Online, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["MOST_LEVELS", "CountingGate"]

MOST_LEVELS = 64
"""One-hots of candidates grow with them."""
LEAST_COUNT = 3
"""Bits of a count: a one-hot of its mask is whole bytes."""
_TOP = np.uint64(63)


@dataclass(frozen=True, kw_only=True)
class CountingGate(Gate):
    """low: least value. levels: L. source: per-sample shape of the input. summed: one-hots of ρ in
    the output's ring. bare: what is read is x - low, masked by XOR."""

    node: ops.ReduceMax
    low: int
    levels: int
    source: tuple[int, ...]
    summed: bool = False
    bare: bool = False

    @staticmethod
    def count_bits(candidates: int) -> int:
        """m: of a number from 0 to ``candidates``."""
        return max(candidates.bit_length(), LEAST_COUNT)

    @staticmethod
    def _sizes(
        source: tuple[int, ...], levels: int, ring: int, *, summed: bool
    ) -> tuple[int, int, int]:
        """Words of the candidates' one-hots, of those of ρ, and of n."""
        rows, bits = prod(source[:-1]), CountingGate.count_bits(source[-1])
        lane = 8 if bits <= 8 else 16
        hot = prod(source) * lane << (levels - 1).bit_length()
        thresholds = rows * (levels - 1)
        if summed:
            return words(1, hot), words(thresholds, ring << bits), 0
        return words(1, hot), words(thresholds, 1 << bits), thresholds

    @staticmethod
    def material(
        source: tuple[int, ...], levels: int, ring: int, *, summed: bool
    ) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        sizes = CountingGate._sizes(source, levels, ring, summed=summed)
        return prod(source[:-1]) * levels, sum(sizes)

    @staticmethod
    def rounds(
        source: tuple[int, ...], levels: int, ring: int, *, summed: bool
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        rows = prod(source[:-1])
        count = rows * (levels - 1)
        between = () if summed else (((count, 1),),)
        return ((count, CountingGate.count_bits(source[-1])),), *between, ((rows, ring),)

    def describe(self) -> dict[str, Any]:
        more = {name: True for name in ("summed", "bare") if getattr(self, name)}
        return super().describe() | {"low": self.low, "levels": self.levels} | more

    @property
    def rows(self) -> int:
        return prod(self.source[:-1])

    @property
    def thresholds(self) -> int:
        """Of a sample."""
        return self.rows * (self.levels - 1)

    @property
    def width(self) -> int:
        """w: bits of a level."""
        return (self.levels - 1).bit_length()

    @cached_property
    def count(self) -> int:
        """m."""
        return self.count_bits(self.source[-1])

    @cached_property
    def lane(self) -> Any:
        """An unsigned type of m bits or more."""
        return np.uint8 if self.count <= 8 else np.dtype("<u2")

    @cached_property
    def _words(self) -> tuple[int, int, int]:
        return self._sizes(self.source, self.levels, self.bits, summed=self.summed)

    def _hots(self, dealt: Ring) -> NDArray[Any]:
        """View of a sample's dealt words, as little-endian: one-hots of candidates
        [rows · candidates, 2^w]."""
        size = prod(self.source) << self.width
        made: NDArray[Any] = dealt[: self._words[0]].view(self.lane)[:size]
        return made.reshape(-1, 1 << self.width)

    def _rho(self, dealt: Ring) -> NDArray[np.uint8]:
        """Likewise of the one-hots of ρ, [thresholds, 2^m / 8]."""
        first, second, _ = self._words
        size = self.thresholds << self.count >> 3
        made: NDArray[np.uint8] = dealt[first : first + second].view(np.uint8)[:size]
        return made.reshape(self.thresholds, -1)

    def _bits(self, dealt: Ring) -> Ring:
        """And of n, [thresholds]."""
        return dealt[sum(self._words[:2]) :]

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        n = self.thresholds
        swapped = np.ascontiguousarray(side.dealt, "<u8")  # the words themselves where they are
        hots = self._hots(swapped)
        level = (masks[0].reshape(-1) & np.uint64(len(hots[0]) - 1)).astype(np.intp)
        np.negative(hots, out=hots)
        hots[np.arange(len(hots)), level] += 1
        rho = reduce(side.free0[:n] + side.free1[:n], self.count)
        if not self.summed:
            self._rho(swapped)[np.arange(n), (rho >> np.uint64(3)).astype(np.intp)] ^= (
                np.uint64(1) << (rho & np.uint64(7))
            ).astype(np.uint8)
            bits = self._bits(swapped)
            bits[:] = ((side.free0[:n] ^ side.free1[:n]) >> _TOP) - bits
        side.dealt[:] = swapped
        if self.summed:
            place = 64 * self._words[0]
            kernels.tallies.deal_tallies(rho, side.dealt, place, self.count, self.bits)
        return reduce(side.free0[n:] + side.free1[n:], self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        made = reduce(side.free[:, self.thresholds :], self.bits)
        return None, made.reshape(side.batch, *self.shape)

    def _counted(self, x: Ring, hots: NDArray[Any]) -> Ring:
        """Own shares of every c_t mod 2^m, uint64[rows, L - 1], of one sample's masked input."""
        size = 1 << self.width
        low = 0 if self.bare else self.low
        place = (x.reshape(-1) - to_ring(low, 64)).astype(np.intp) & (size - 1)
        flat, first = hots.reshape(-1), np.arange(place.size) * size
        total = np.zeros(self.rows, np.uint64)
        made = np.empty((self.rows, self.levels - 1), np.uint64)
        for level in reversed(range(1, self.levels)):
            at = place ^ level if self.bare else (place - level) & (size - 1)
            own = flat[first + at].reshape(self.rows, -1)
            total += own.sum(axis=1, dtype=np.uint64)
            made[:, level - 1] = total
        return reduce(made, self.count)

    def online(self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]) -> Online:
        dealt = [np.ascontiguousarray(words, "<u8") for words in side.dealt]
        free = side.free[:, : self.thresholds]
        pairs = zip(inputs[0].public, dealt, strict=True)
        counts = np.stack([self._counted(x, self._hots(own)).reshape(-1) for x, own in pairs])
        opened = yield from opening(reduce(counts + free, self.count), self.count)
        if self.summed:
            none = kernels.batched.tallied(
                opened, side.dealt, 64 * self._words[0], self.count, self.bits
            )
            own = np.uint64(side.party == 0) - none
        else:
            own = yield from self._lifted(side, dealt, free, opened)
        made = own.reshape(side.batch, self.rows, -1).sum(axis=2, dtype=np.uint64)
        made += Wire(mask=mask).own.reshape(made.shape)
        if side.party == 0:
            made += to_ring(self.low, 64)
        whole = yield from opening(reduce(made, self.bits), self.bits)
        return Wire(whole.reshape(side.batch, *self.shape), mask)

    def _lifted(
        self, side: Side, dealt: list[Ring], free: Ring, opened: Ring
    ) -> Generator[bytes, bytes, Ring]:
        """Own shares mod 2^64 of every [c_t > 0], opened under n_t first."""
        first = side.party == 0
        octet, place = (opened >> np.uint64(3)).astype(np.intp), opened & np.uint64(7)
        found = np.stack([
            self._rho(words)[np.arange(self.thresholds), own]
            for own, words in zip(octet, dealt, strict=True)
        ])  # fmt: skip
        bits = (found.astype(np.uint64) >> place ^ np.uint64(first)) & np.uint64(1)
        above = yield from opening(bits ^ free >> _TOP, 1, xor=True)
        lifts = np.stack([self._bits(words) for words in dealt])
        own: Ring = np.where(above == 1, np.uint64(0) - lifts, lifts)
        return own + above if first else own
