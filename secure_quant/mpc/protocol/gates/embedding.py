"""Rows of a secret table, chosen by secret numbers: a product over GF(2) of table and one-hot.

Once per deployment D_T = T ^ r_T is public to the parties, and r_T = r_T0 ^ r_T1 comes from two
seeds. The digits of a number i are masked wires D = i + m mod 2^k, so a dealt one-hot of m, XOR
shared and turned by the public D, digit by digit, is one of i, folded modulo the rows: it has a
single 1 whatever the client sent. It is opened under free bits, X = x ^ r, and

    c_i = A_i·X ^ off_i,   A_0 = D_T ^ r_T0,  A_1 = r_T1,   off_i = D_T·r_i ^ z_i

so that c_0 ^ c_1 = T·x ^ n, where the dealer defines the mask n = z_0 ^ z_1 ^ r_T·r. The bytes are
opened and lifted as those of the Input are.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.ports import id_bits
from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import lift_bits, words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce

__all__ = ["EmbeddingGate", "TableShares", "as_rows"]

BITS, LEAST, SIGN = 8, -128, np.uint64(0x8080808080808080)
"""Two's complement with the top bit of each byte flipped counts from LEAST."""


@dataclass(frozen=True, repr=False)
class TableShares:
    """masked: D_T. own: A_i. uint64[rows, words of a row]."""

    masked: Ring
    own: Ring


def as_rows(table: NDArray[np.uint8]) -> Ring:
    """uint8[rows, width] -> uint64[rows, ceil(width / 8)], bytes in order, filled up with 0."""
    rows, width = table.shape
    wide = np.zeros((rows, 8 * words(width, BITS)), np.uint8)
    wide[:, :width] = table
    return wide.view("<u8").astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class EmbeddingGate(Gate):
    """3 rounds: the one-hot, a bit a row; the bytes of a row; x + r mod 2^bits of each."""

    rows: int
    width: int

    @property
    def numbers(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_words(self) -> int:
        return words(self.width, BITS)

    @property
    def chosen_words(self) -> int:
        return words(self.rows, 1)

    @staticmethod
    def material(numbers: int, rows: int, width: int, ring: int) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        free = numbers * (words(rows, 1) + words(width, BITS) + width)
        dealt = words(numbers, 1 << id_bits(rows)) + words(numbers * width, lift_bits(BITS, ring))
        return free, dealt

    @staticmethod
    def rounds(
        numbers: int, rows: int, width: int, ring: int
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Payloads; one-hots and rows are opened in whole words."""
        wide = (numbers * words(rows, 1), 64), (numbers * words(width, BITS), 64)
        return (*((part,) for part in wide), ((numbers * width, ring),))

    @property
    def lifts(self) -> int:
        """First dealt bit of the lift."""
        return 64 * words(self.numbers, 1 << id_bits(self.rows))

    def split(self, free: Ring) -> tuple[Ring, Ring, Ring]:
        """A sample's free words, or a batch's: of one-hots, of rows, of elements."""
        n, lead = self.numbers, free.shape[:-1]
        first = n * self.chosen_words
        second = first + n * self.row_words
        return (
            free[..., :first].reshape(*lead, n, self.chosen_words),
            free[..., first:second].reshape(*lead, n, self.row_words),
            free[..., second:],
        )

    def bytes_of(self, made: Ring) -> Ring:
        """[..., numbers, words of a row] -> one element a byte of the row: [..., numbers·width]."""
        octets = np.ascontiguousarray(made.astype("<u8")).view(np.uint8)
        kept = octets.reshape(*made.shape[:-1], -1)[..., : self.width]
        return kept.reshape(*made.shape[:-2], -1).astype(np.uint64)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        table: Ring = side.parameters
        places = self._numbers_of(masks[0]).reshape(-1).astype(np.int64)
        at = places + (np.arange(self.numbers) << id_bits(self.rows))
        np.bitwise_xor.at(side.dealt, at >> 6, np.uint64(1) << (at & 63).astype(np.uint64))
        hidden, rows, _ = self.split(side.free0 ^ side.free1)
        made = self.bytes_of(kernels.batched.chosen(table, hidden) ^ rows)
        kernels.lookups.deal_lift(made, side.dealt, BITS, self.bits, self.lifts)
        zero, one = (self.split(free)[2] for free in (side.free0, side.free1))
        return reduce(zero + one, self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        table: TableShares = side.parameters
        hidden, rows, elements = self.split(side.free)
        made = kernels.batched.chosen(table.masked, hidden.reshape(-1, self.chosen_words))
        return made.reshape(rows.shape) ^ rows, reduce(elements, self.bits).reshape(
            side.batch, *self.shape
        )

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        table: TableShares = side.parameters
        own = self._turned(side.dealt, inputs[0].public) ^ self.split(side.free)[0]
        hidden = yield from opening(own, 64, xor=True)
        rows = kernels.batched.chosen(table.own, hidden.reshape(-1, self.chosen_words))
        made = rows.reshape(state.shape) ^ state
        if side.party == 0:
            made ^= SIGN
        opened = yield from opening(made, 64, xor=True)
        masks = Wire(mask=mask).own.reshape(side.batch, -1)
        lifted = kernels.batched.lift(
            self.bytes_of(opened), side.dealt, masks, side.party, BITS, self.bits, LEAST,
            self.lifts,
        )  # fmt: skip
        masked = yield from opening(lifted, self.bits)
        return Wire(masked.reshape(side.batch, *self.shape), mask)

    def _numbers_of(self, digits: Ring) -> Ring:
        """Digits mod 256 [..., digits] -> mod 2^b [...]."""
        places = np.uint64(8) * np.arange(digits.shape[-1], dtype=np.uint64)
        made: Ring = np.sum((digits & np.uint64(255)) << places, axis=-1, dtype=np.uint64)
        return reduce(made, id_bits(self.rows))

    def _turned(self, dealt: Any, public: Ring) -> Ring:
        """Own share of the one-hots of the rows: uint64[batch, numbers, words of rows]."""
        bits, size = id_bits(self.rows), 1 << id_bits(self.rows)
        digits = (public & np.uint64(255)).astype(np.int64).reshape(len(dealt), self.numbers, -1)
        made = np.zeros((len(dealt), self.numbers, 64 * self.chosen_words), np.uint8)
        for sample, stored in enumerate(dealt):
            octets = stored[: self.lifts // 64].astype("<u8").view(np.uint8)
            hots = np.unpackbits(octets, bitorder="little")[: self.numbers * size]
            for number, hot in enumerate(hots.reshape(self.numbers, size)):
                turned = _turn(hot, digits[sample, number], bits)
                row = made[sample, number]
                row[: self.rows] = turned[: self.rows]
                row[: size - self.rows] ^= turned[self.rows :]
        packed = np.packbits(made, axis=-1, bitorder="little")
        return np.ascontiguousarray(packed).view("<u8").astype(np.uint64)


def _turn(hot: NDArray[np.uint8], digits: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """made[i] = hot[m] where each digit of m is that of ``digits`` less that of i: [2^bits]."""
    sizes = [min(256, 1 << (bits - 8 * place)) for place in range(len(digits))]
    steps = [(digit - np.arange(size)) % size for digit, size in zip(digits, sizes, strict=True)]
    turned = hot.reshape(sizes[::-1])[np.ix_(*steps[::-1])]
    return turned.reshape(-1)
