"""The joint offline half of the Input: bytes under shared bits, lifted as under a dealer.

Whatever the client sends, its XOR with the masks is a byte, and every byte is an int8: no client
asks outside the model's domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secure_quant.mpc.protocol.cost import lift_bits, packed_bytes
from secure_quant.mpc.protocol.gates.base import Side
from secure_quant.mpc.protocol.gates.edge import BITS, InputGate
from secure_quant.mpc.protocol.ring import Ring, reduce
from secure_quant.onehost import kernels
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.exchange import Joint
from secure_quant.onehost.products import joined_bits, number

__all__ = ["JointInput"]


@dataclass(frozen=True)
class JointInput:
    """What ``gate`` needs of a pairing, and makes by it."""

    gate: InputGate

    @property
    def choosers(self) -> tuple[int, ...]:
        """Of the byte's bits: one direction is enough."""
        return tuple(j % 2 for j in range(BITS))

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs in which party 0 and party 1 choose."""
        n = batch * self.gate.elements
        return n * (BITS - BITS // 2), n * (BITS // 2)

    def sent_bytes(self, batch: int) -> tuple[int, int]:
        """What party 0 and party 1 send in ``make``, besides the COTs' extension."""
        sides, n = [0, 0], batch * self.gate.elements
        for j in range(min(BITS, self.gate.bits - 1)):
            sides[1 - j % 2] += packed_bytes(n, self.gate.bits - 1 - j)
        return sides[0], sides[1]

    def fresh(self, pairing: Pairing, batch: int) -> Ring:
        """An own share of the wire's mask, uint64[batch, *shape]."""
        words = pairing.random(batch * self.gate.elements)
        return reduce(words, self.gate.bits).reshape(batch, *self.gate.shape)

    def make(self, pairing: Pairing, out: Ring) -> Joint[Side]:
        """out: own share of the wire's mask. Raises MalformedMessage, PairingSpent."""
        gate, batch, n = self.gate, len(out), self.gate.elements
        columns = pairing.columns(self.choosers, batch * n)
        shares = yield from number(columns, self.choosers, gate.bits, pairing.party)
        sizes = [gate.bits - j for j in range(BITS) if gate.bits > j]
        lifted = joined_bits(list(zip(shares, sizes, strict=False)), batch * n)
        octets = joined_bits([(column.own, 1) for column in columns], batch * n)
        dealt = np.zeros((batch, gate.dealt_words), np.uint64)
        for row in range(batch):
            values = lifted[row * n : (row + 1) * n]
            kernels.join(values, lift_bits(BITS, gate.bits), dealt[row])
        words = np.concatenate([octets.reshape(batch, n), out.reshape(batch, n)], axis=1)
        return Side(pairing.party, batch, words, list(dealt))
