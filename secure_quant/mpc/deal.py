"""The dealer's program: one-time material for one sample. It holds masks, never data or weights."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secure_quant.mpc.cost import SEED_BYTES
from secure_quant.mpc.gates.base import Dealing
from secure_quant.mpc.material import stream
from secure_quant.mpc.plan import MpcPlan
from secure_quant.mpc.ring import Ring

__all__ = ["DealerProgram", "DealtItem"]


@dataclass(frozen=True)
class DealtItem:
    """seed0, seed1: 32 bytes for party 0 and 1. corrections: for party 1, 8 · plan.dealt_words
    bytes, which is plan.cost().offline_bytes_party1 less the seed; gate by gate in plan order."""

    seed0: bytes = field(repr=False)
    seed1: bytes = field(repr=False)
    corrections: bytes = field(repr=False)


class DealerProgram:
    """model_hash, plan: public. Safe to use from several threads."""

    def __init__(self, plan: MpcPlan, parameters: Mapping[str, Any]) -> None:
        """``parameters``: by gate name, the masks of the weights."""
        self.plan = plan
        self._parameters = dict(parameters)

    @property
    def model_hash(self) -> str:
        return self.plan.graph.hash

    def deal(self) -> DealtItem:
        """Material under two fresh seeds of the operating system."""
        seed0, seed1 = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
        plan = self.plan
        dealt = self.correct(
            stream(seed0, plan.free_words + plan.dealt_words), stream(seed1, plan.free_words)
        )
        return DealtItem(seed0, seed1, dealt.astype("<u8", copy=False).tobytes())

    def correct(self, stream0: Ring, stream1: Ring) -> Ring:
        """Corrections, uint64[dealt words], for the two parties' streams (``material``)."""
        made = np.empty(self.plan.dealt_words, np.uint64)
        masks: dict[str, Ring] = {}
        place0 = place1 = first = 0
        for gate in self.plan.gates:
            free0 = stream0[place0 : place0 + gate.free_words]
            place0 += gate.free_words
            dealt = made[first : first + gate.dealt_words]
            dealt[:] = stream0[place0 : place0 + gate.dealt_words]
            place0, first = place0 + gate.dealt_words, first + gate.dealt_words
            free1 = stream1[place1 : place1 + gate.free_words]
            place1 += gate.free_words
            side = Dealing(free0, free1, dealt, self._parameters.get(gate.name))
            masks[gate.name] = gate.deal(side, [masks[name] for name in gate.inputs])
        return made
