"""The graph's borders: shares mod 2^64 of the input become a masked wire, the last wire shares."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, reduce

__all__ = ["InputGate", "OutputGate"]


@dataclass(frozen=True, kw_only=True)
class InputGate(Gate):
    """1 round, k bits an element; nothing dealt. D = [x]_0 + [r]_0 + [x]_1 + [r]_1 mod 2^k."""

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        return reduce(side.free0 + side.free1, self.bits).reshape(self.shape)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        return None, reduce(side.free, self.bits).reshape(side.batch, *self.shape)

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        own = Wire(mask=mask).own
        share = inputs[0].share
        if share is None:
            raise ValueError("the input is a share")
        masked = yield from opening(reduce(share + own, self.bits), self.bits)
        return Wire(masked, mask)


@dataclass(frozen=True, kw_only=True)
class OutputGate(Gate):
    """Local: a share mod 2^64 of the integers, uniform as the masks are."""

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        return np.zeros(self.shape, np.uint64)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        return None, None

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        (x,) = inputs
        if x.share is not None:
            return x
        zero = np.uint64(0)
        return Wire(share=(x.public if side.party == 0 else zero) - x.own)
        yield b""  # a generator, without a round
