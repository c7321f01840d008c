"""What one end makes ahead of time for a call, in the order in which both ends make it.

Every mask but those of linear layers is drawn fresh, so nothing waits for the model's depth. Layers
go a few at a time, so that the client encrypts the next masks while the server evaluates; COTs are
extended for one group of gates, or of pieces of a large one, after the other, each taken whole
before the next is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np

from secure_quant.mpc.protocol.gates.base import Gate, Side, Wire
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.gates.local import LocalGate
from secure_quant.mpc.protocol.ring import Ring
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.exchange import Begun, Joint, flow, together
from secure_quant.onehost.groups import Piece
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.plan import OneHostPlan
from secure_quant.onehost.product import JointProduct

__all__ = ["ABREAST", "Ahead"]

ABREAST = 2**19
"""Bytes of ciphertexts that go up in one exchange, or one layer's."""
Layer = Callable[[LinearGate, Ring], Joint[tuple[Ring, Any]]]
"""(layer, own share of its input's mask) -> (own share of the mask, state)."""


class Ahead:
    """masks: own shares, uint64[batch, *shape], by gate; those that ``__init__`` is not given come
    to it. made: by gate, what its online half takes."""

    def __init__(
        self, plan: OneHostPlan, pairing: Pairing, layer: Layer, masks: dict[str, Ring], batch: int
    ) -> None:
        self.masks, self.made = masks, dict[str, Any]()
        self._plan, self._pairing, self._layer, self._batch = plan, pairing, layer, batch
        self._waiting = [gate for gate in plan.order.gates if gate.name not in masks]
        self._groups, self._cots = deque(plan.groups(batch)), deque(plan.cost(batch).taken)
        self._parts: list[Any] = []
        self._state: Literal["", "extending", "extended", "making"] = ""

    def run(self) -> Joint[None]:
        """All of it. Raises MalformedMessage, PairingSpent."""
        return flow(self._ready)

    def _ready(self) -> Iterator[Begun]:
        yield from self._layers()
        if self._groups and not self._state:
            self._state = "extending"
            yield self._pairing.fill(*self._cots.popleft()), self._extended
        if self._state == "extended" and all(map(self._known, self._groups[0])):
            self._state, group = "making", self._groups.popleft()
            yield together([self._piece(each) for each in group]), partial(self._finished, group)

    def _extended(self, _: None) -> None:
        self._state = "extended"

    def _finished(self, group: list[Piece], results: list[Any]) -> None:
        self._state = ""
        for piece, result in zip(group, results, strict=True):
            self._parts.append(result)
            if piece.last:
                self.made[piece.name] = self._joined(piece.name)
                self._parts.clear()

    def _layers(self) -> Iterator[Begun]:
        """The next ones whose inputs' masks are known; what is local on the way is done."""
        taken = 0
        for gate in list(self._waiting):
            known = [self.masks[name] for name in gate.inputs if name in self.masks]
            if len(known) < len(gate.inputs):
                continue
            if not isinstance(gate, LinearGate):
                self._waiting.remove(gate)
                self._local(gate, known)
                continue
            size = self._plan.masked.call(gate.name, self._batch).cost.bytes_up
            if not taken or taken + size <= ABREAST:
                self._waiting.remove(gate)
                taken += size
                yield self._layer(gate, known[0]), partial(self._masked, gate.name)

    def _masked(self, name: str, result: tuple[Ring, Any]) -> None:
        self.masks[name], self.made[name] = result

    def _local(self, gate: Gate, known: list[Ring]) -> None:
        if isinstance(gate, LocalGate):
            side = Side(self._pairing.party, self._batch, np.empty((self._batch, 0), np.uint64), [])
            own: list[Ring | None] = list(known)
            self.masks[gate.name] = Wire(mask=gate.offline(side, own)[1]).own
        elif isinstance(half := self._plan.halves[gate.name], JointMaximum):  # of one candidate
            gathered = half.gate.gather(known[0])
            self.masks[gate.name] = gathered.reshape(self._batch, *gate.shape)

    def _known(self, piece: Piece) -> bool:
        return all(inner in self.masks for inner in self._plan.halves[piece.name].gate.inputs)

    def _piece(self, piece: Piece) -> Joint[Any]:
        """Of the joint half of a gate."""
        half = self._plan.halves[piece.name]
        return half.piece(self._pairing, *self._own(piece.name), piece.some)

    def _joined(self, name: str) -> Any:
        """The half, of its pieces, which come one after the other."""
        half = self._plan.halves[name]
        return half.joined(self._pairing.party, self._parts, *self._own(name))

    def _own(self, name: str) -> tuple[Any, Ring]:
        """Own shares of the masks of a gate's inputs and of itself."""
        half = self._plan.halves[name]
        inner = tuple(self.masks[each] for each in half.gate.inputs)
        masks = inner if isinstance(half, JointProduct) else inner[0]
        return masks, self.masks.get(name, inner[0])
