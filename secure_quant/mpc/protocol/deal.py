"""The dealer's program: one-time material for one sample. It holds masks, never data or weights."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secure_quant.keystream import SEED_BYTES, Keystream
from secure_quant.mpc.protocol.gates.base import Dealing, Gate
from secure_quant.mpc.protocol.plan import MpcPlan
from secure_quant.mpc.protocol.ring import Ring

__all__ = ["DealerProgram", "DealtGates", "DealtItem"]


@dataclass(frozen=True)
class DealtItem:
    """seed0, seed1: 32 bytes for party 0 and 1. corrections: for party 1, 8 · plan.dealt_words
    bytes, which is plan.cost().offline_bytes_party1 less the seed; gate by gate in plan order."""

    seed0: bytes = field(repr=False)
    seed1: bytes = field(repr=False)
    corrections: memoryview = field(repr=False)


@dataclass(frozen=True)
class DealtGates:
    """An item that is made while it is sent. corrections: of one gate after the other."""

    seed0: bytes = field(repr=False)
    seed1: bytes = field(repr=False)
    corrections: Iterator[memoryview] = field(repr=False)


class DealerProgram:
    """model_hash, plan: public. splits: what each party's bundle of this split is known by. Safe
    to use from several threads."""

    def __init__(
        self, plan: MpcPlan, parameters: Mapping[str, Any], splits: tuple[bytes, bytes]
    ) -> None:
        """``parameters``: by gate name, the masks of the weights."""
        self.plan, self.splits = plan, splits
        self._parameters = dict(parameters)

    @property
    def model_hash(self) -> str:
        return self.plan.graph.hash

    def deal(self) -> DealtItem:
        """Material under two fresh seeds of the operating system."""
        seed0, seed1 = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
        return DealtItem(
            seed0, seed1, _little_endian(self.correct(Keystream(seed0), Keystream(seed1)))
        )

    def deal_gates(self) -> DealtGates:
        """The same, but each gate's corrections are made when they are asked for, and masks are
        forgotten with the last gate that needs them. One thread at a time may ask."""
        seed0, seed1 = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)

        def fresh(gate: Gate) -> Ring:
            return np.empty(gate.dealt_words, np.uint64)

        gates = self._gates(Keystream(seed0), Keystream(seed1), fresh)
        return DealtGates(seed0, seed1, (_little_endian(words) for words in gates if words.size))

    def correct(self, one: Keystream, two: Keystream) -> Ring:
        """Corrections, uint64[dealt words], for the two parties' streams (``material``)."""
        made = np.empty(self.plan.dealt_words, np.uint64)
        place = 0

        def within(gate: Gate) -> Ring:
            nonlocal place
            place += gate.dealt_words
            return made[place - gate.dealt_words : place]

        for _ in self._gates(one, two, within):
            pass
        return made

    def _gates(self, one: Keystream, two: Keystream, room: Any) -> Iterator[Ring]:
        """Each gate's corrections, in ``room(gate)``."""
        uses = self.plan.uses()
        masks: dict[str, Ring] = {}
        for gate in self.plan.order:
            free0, free1 = (np.empty(gate.free_words, np.uint64) for _ in range(2))
            dealt = room(gate)
            for stream, words in ((one, free0), (one, dealt), (two, free1)):
                stream.read(words)
            side = Dealing(free0, free1, dealt, self._parameters.get(gate.name))
            masks[gate.name] = gate.deal(side, [masks[name] for name in gate.inputs])
            uses.release(gate, masks)
            del side, free0, free1
            yield dealt


def _little_endian(words: Ring) -> memoryview:
    if sys.byteorder == "big":
        words.byteswap(inplace=True)
    return words.view(np.uint8).data
