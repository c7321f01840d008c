"""MatMul and Mul of two secret wires without a dealer: the product of masks, by correlated OTs.

r_X·r_Y = r_X0·r_Y0 + r_X1·r_Y1 + two products of one party's mask with the other's. For these, the
party that has the left factor chooses by its bits, and the other's right factor goes under pads:
bit i of weight 2^i matters mod 2^(k-i). The online half is that under a dealer.

Source: N. Gilboa, "Two party RSA key generation", CRYPTO 1999.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.ring import Ring, reduce
from secure_quant.onehost import kernels
from secure_quant.onehost.cot import MOST_BLOCKS, Column, Pairing
from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.permutation import Words
from secure_quant.onehost.products import end_to_end, joined_bits, packed, unpacked

__all__ = ["JointProduct", "MadeProduct"]

MOST_BITS = 128 * MOST_BLOCKS
"""Of the pads of a COT."""
Shape = tuple[int, ...]
MadeProduct = tuple[Ring, Ring, Ring]
"""Own shares of both factors' masks, and of their product with the new mask added."""


@dataclass(frozen=True)
class JointProduct:
    """``gate`` for per-sample input shapes ``left``, ``right``. Raises OpNotSupported for rows too
    long for the pads of a COT."""

    gate: ProductGate
    left: Shape
    right: Shape

    def __post_init__(self) -> None:
        if self._columns * self.gate.bits > MOST_BITS:
            raise OpNotSupported(
                f"product {self.gate.name!r} with one host", got=f"rows of {self._columns}",
                expected=f"<= {MOST_BITS // self.gate.bits}",
                hint="serve it under secret sharing",
            )  # fmt: skip

    @cached_property
    def _repeated(self) -> tuple[int, int]:
        """Of Mul: which factor is chosen by, and how many numbers of the other's each of its own
        meets: those of the last axes, along which it is repeated."""
        found = [(1, 0)]
        for place, own in enumerate((self.left, self.right)):
            kept = len(own)
            while kept and own[kept - 1] == 1:
                kept -= 1
            count = prod(self.gate.shape[kept:])
            if own[:kept] == self.gate.shape[:kept] and count * self.gate.bits <= MOST_BITS:
                found.append((count, place))
        count, place = max(found, key=lambda each: each[0])
        return place, count

    @property
    def _columns(self) -> int:
        """Numbers that each number which a party chooses by is multiplied with."""
        return self.gate.shape[-1] if isinstance(self.gate.node, ops.MatMul) else self._repeated[1]

    @property
    def _chosen(self) -> int:
        """Numbers per sample by whose bits a party chooses."""
        shape = self.gate.shape
        if isinstance(self.gate.node, ops.MatMul):
            return prod(shape[:-1]) * self.left[-1]
        return prod(shape) // self._columns

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs in which party 0 and party 1 choose."""
        count = batch * self._chosen * self.gate.bits
        return count, count

    def sent_bytes(self, batch: int) -> tuple[int, int]:
        """What party 0 and party 1 send for all pieces, besides the COTs' extension."""
        n, bits = batch * self._chosen, self.gate.bits
        size = packed_bytes(n, bits)
        size += sum(packed_bytes(n * self._columns, bits - i) for i in range(bits))
        return size, size

    def fresh(self, pairing: Pairing, batch: int) -> Ring:
        """An own share of the output's mask, uint64[batch, *shape]."""
        words = pairing.random(batch * prod(self.gate.shape))
        return reduce(words, self.gate.bits).reshape(batch, *self.gate.shape)

    def places(self, batch: int) -> int:
        """Rows of results, of which a piece takes some."""
        return batch * prod(self.gate.shape) // self._columns

    def piece(
        self, pairing: Pairing, masks: tuple[Ring, Ring], out: Ring, some: slice
    ) -> Joint[Words]:
        """What is needed of the other end for the rows ``some`` of all samples, end to end: shares
        of the crossed products, uint64[rows, columns]. masks, out: own shares of the factors' masks
        and of the product's, uint64[batch, ...]. The pairing has the rows' ``cots`` in stock.
        Raises MalformedMessage, PairingSpent."""
        bits, party = self.gate.bits, pairing.party
        whole, right = self._factors(*(reduce(mask, bits) for mask in masks))
        left = whole.reshape(-1, whole.shape[-1])[some]
        columns = pairing.columns([0] * bits + [1] * bits, left.size)
        mine, theirs = columns[:bits], columns[bits:]
        if party == 1:
            mine, theirs = theirs, mine
        wanted = left.reshape(-1)
        drawn = joined_bits([(column.own, 1) for column in mine], left.size)
        size = packed_bytes(left.size, bits)
        peer = yield from swap(packed(drawn ^ wanted[:, None], bits), size)
        turned = unpacked(peer, left.size, bits)[:, 0]
        factors = right[np.arange(some.start, some.stop) // whole.shape[1]].reshape(left.size, -1)
        sent, total = [], np.zeros(factors.shape, np.uint64)
        for i, column in enumerate(theirs):
            swapped = turned >> np.uint64(i) & np.uint64(1)
            zero, message = _sent(column, swapped, factors, bits - i)
            sent.append(message)
            total -= zero << np.uint64(i)
        sizes = [packed_bytes(factors.size, bits - i) for i in range(bits)]
        heard, place = (yield from swap(b"".join(sent), sum(sizes))), 0
        for i, column in enumerate(mine):
            message = heard[place : place + sizes[i]]
            place += sizes[i]
            bit = wanted >> np.uint64(i) & np.uint64(1)
            total += _heard(column, bit, message, factors.shape[1], bits - i) << np.uint64(i)
        crossed: Words = total.reshape(*left.shape, -1).sum(axis=1, dtype=np.uint64)
        return crossed

    def joined(
        self, party: int, parts: Sequence[Words], masks: tuple[Ring, Ring], out: Ring
    ) -> MadeProduct:
        """The gate's material, of all pieces in order."""
        x, y = masks
        own = self.gate.apply(x, y) + end_to_end(parts).reshape(out.shape) + out
        return x, y, reduce(own, self.gate.bits)

    def _factors(self, x: Ring, y: Ring) -> tuple[Words, Words]:
        """[batch, ...] -> [n, rows, inner], [n, inner, columns]."""
        if isinstance(self.gate.node, ops.Mul):
            place, columns = self._repeated
            shape = (len(x), *self.gate.shape)
            pair = [np.broadcast_to(v, shape).reshape(-1, 1, columns) for v in (x, y)]
            return pair[place][:, :, :1], pair[1 - place]
        y = y.swapaxes(-1, -2) if self.gate.node.transpose_b else y
        return x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:])


def _sent(column: Column, swapped: Words, factors: Words, bits: int) -> tuple[Words, bytes]:
    """(pads kept, message) of the party with the factors, uint64[n, columns]. swapped: where the
    other's choice is not the bit that it drew, so that the keys change places."""
    count = factors.shape[1]
    zero, one = (_cut(pad, count, bits) for pad in column.take(count * bits).sender())
    change = (np.uint64(0) - swapped[:, None]) & (zero ^ one)
    zero, one = zero ^ change, one ^ change
    message = packed(reduce(zero - one + factors, bits).reshape(-1, 1), bits)
    return zero, message


def _heard(column: Column, bit: Words, message: bytes, count: int, bits: int) -> Words:
    """The chooser's share of bit·factors mod 2^bits, uint64[n, columns]."""
    pad = _cut(column.take(count * bits).chooser(), count, bits)
    sent = unpacked(message, pad.size, bits).reshape(pad.shape)
    return reduce(pad + bit[:, None] * sent, bits)


def _cut(pad: Words, count: int, bits: int) -> Words:
    """uint64[n, words] -> uint64[n, count] of ``bits`` bits each."""
    made = np.empty((len(pad), count), np.uint64)
    kernels.cut_rows(pad, bits, made)
    return made
