"""The graph's borders: XOR shares of the input's bytes become a masked wire, the last wire shares.

Whatever a client sends to the two parties, its XOR is a byte, and every byte is an int8: no input
is one that the model was not proven for. The byte is opened under free bits, and its bits are
lifted to the wire's ring as those of a looked-up number are in V4.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import lift_bits, words
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce

__all__ = ["InputGate", "JoinGate", "OutputGate"]

BITS = 8
LEAST = -128
SIGN = np.uint64(0x80)
"""Two's complement with this bit flipped counts from LEAST."""


@dataclass(frozen=True, kw_only=True)
class InputGate(Gate):
    """2 rounds, min(8, k) + k bits an element: the byte under mask bits n, then x + r mod 2^k by
    dealt ring shares of n."""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @staticmethod
    def opened_bits(ring: int) -> int:
        """Bits of the byte that x mod 2^ring depends on."""
        return min(BITS, ring)

    @staticmethod
    def material(elements: int, ring: int) -> tuple[int, int]:
        """(free words, dealt words) per sample."""
        return 2 * elements, words(elements, lift_bits(BITS, ring))

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        n = self.elements
        numbers = side.free0[:n] ^ side.free1[:n]
        kernels.lookups.deal_lift(numbers, side.dealt, BITS, self.bits, 0)
        return reduce(side.free0[n:] + side.free1[n:], self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        made = reduce(side.free[:, self.elements :], self.bits)
        return None, made.reshape(side.batch, *self.shape)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        octets = inputs[0].octets
        if octets is None:
            raise ValueError("the input is a share of bytes")
        n, width = self.elements, self.opened_bits(self.bits)
        own = octets.reshape(side.batch, n) ^ side.free[:, :n]
        if side.party == 0:
            own ^= SIGN
        opened = yield from opening(reduce(own, width), width, xor=True)
        masks = Wire(mask=mask).own.reshape(side.batch, n)
        lifted = kernels.batched.lift(
            opened, side.dealt, masks, side.party, BITS, self.bits, LEAST, 0
        )
        made = yield from opening(lifted, self.bits)
        return Wire(made.reshape(side.batch, *self.shape), mask)


@dataclass(frozen=True, kw_only=True)
class _Unmasked(Gate):
    """Local: what it makes is a share, so that there is no mask to deal."""

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        return np.zeros(self.shape, np.uint64)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        return None, None


@dataclass(frozen=True, kw_only=True)
class OutputGate(_Unmasked):
    """Local: a share mod 2^64 of the integers, uniform as the masks are."""

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        (x,) = inputs
        if x.share is not None:
            return x
        zero = np.uint64(0)
        return Wire(share=(x.public if side.party == 0 else zero) - x.own)
        yield b""  # a generator, without a round


@dataclass(frozen=True, kw_only=True)
class JoinGate(_Unmasked):
    """Local: the shares of several outputs end to end."""

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        shares = [x.share for x in inputs if x.share is not None]
        if len(shares) < len(inputs):
            raise ValueError("outputs are shares")
        return Wire(share=np.concatenate([x.reshape(side.batch, -1) for x in shares], axis=1))
        yield b""  # a generator, without a round
