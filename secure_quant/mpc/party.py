"""One party's program: an inference on shares, as a generator of rounds.

All gates whose inputs are there run together, and what they send in one round is one message, so
that parallel branches share their rounds. Both parties walk the same plan in the same order.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, MalformedMessage, MaterialReused, ShapeMismatch
from secure_quant.ir import Graph
from secure_quant.mpc.gates.base import Gate, Online, Side, Value
from secure_quant.mpc.material import Item, as_words, expand
from secure_quant.mpc.plan import MpcPlan
from secure_quant.mpc.ring import Ring

__all__ = ["PartyProgram", "Prepared"]

Rounds = Generator[bytes, bytes, NDArray[np.uint64]]


@dataclass(eq=False)
class Prepared:
    """The offline half of one call: material expanded, masks and offsets computed. Used once."""

    batch: int
    sides: dict[str, Side]
    states: dict[str, Any]
    masks: dict[str, Ring | None]
    used: bool = False


class PartyProgram:
    """party: 0 or 1. model_hash, plan, graph: public. Safe to use from several threads."""

    def __init__(self, party: int, plan: MpcPlan, parameters: Mapping[str, Any]) -> None:
        """``parameters``: by gate name, this party's half of the weights."""
        self.party, self.plan = party, plan
        self._parameters = dict(parameters)

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    @property
    def model_hash(self) -> str:
        return self.plan.graph.hash

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """The part of ``run`` that needs no input: may be done ahead. Consumes the items.

        Raises MaterialReused, MalformedMessage.
        """
        batch = len(items)
        if not batch:
            raise MalformedMessage("items", got=0, expected=">= 1")
        own, dealt = self._expand(items)
        made = Prepared(batch, {}, {}, {})
        place = first = 0
        for gate in self.plan.gates:
            last = first + gate.dealt_words
            masks = own[:, place : place + gate.free_words]
            place += gate.free_words
            if self.party == 0:
                rows = [row[place : place + gate.dealt_words] for row in own]
                place += gate.dealt_words
            else:
                rows = [row[first:last] for row in dealt]
            first = last
            side = Side(self.party, batch, masks, rows, self._parameters.get(gate.name))
            inputs = [made.masks[name] for name in gate.inputs]
            made.sides[gate.name] = side
            made.states[gate.name], made.masks[gate.name] = gate.offline(side, inputs)
        return made

    def _expand(self, items: Sequence[Item]) -> tuple[Ring, list[Ring]]:
        """uint64[batch, words] of own streams, and per item the words of corrections."""
        dealt_words = self.plan.dealt_words
        size = self.plan.free_words + (0 if self.party else dealt_words)
        expected = 8 * dealt_words if self.party else 0
        own, dealt = np.empty((len(items), size), np.uint64), []
        for row, item in zip(own, items, strict=True):
            if item.party != self.party or len(item.corrections) != expected:
                got = (item.party, len(item.corrections))
                raise MalformedMessage(
                    "party and bytes of corrections", got=got, expected=(self.party, expected)
                )
            seed, corrections = item.take()
            expand(seed, row)
            dealt.append(as_words(corrections))
        return own, dealt

    def run(self, share: NDArray[np.uint64], items: Sequence[Item] | Prepared) -> Rounds:
        """Share mod 2^64 of the integers at the Output, uint64[batch, *output shape].

        share: uint64[batch, *input shape], mod 2^64, of the int8 input. items: one per sample, or
        what ``prepare`` made of them. Yields this party's payload of every round and is sent the
        peer's. Raises ShapeMismatch, DtypeMismatch, MaterialReused, MalformedMessage.
        """
        self._check(share, items)
        ready = items if isinstance(items, Prepared) else self.prepare(items)
        if ready.used:
            raise MaterialReused("prepared material", got="a second use")
        ready.used = True
        return self._rounds(share, ready)

    def _check(self, share: NDArray[np.uint64], items: Sequence[Item] | Prepared) -> None:
        shape = self.graph.input.shape
        batch = items.batch if isinstance(items, Prepared) else len(items)
        if share.dtype != np.uint64:
            raise DtypeMismatch("share", got=share.dtype, expected="uint64")
        if share.shape != (batch, *shape) or not batch:
            raise ShapeMismatch("share", got=share.shape, expected=(max(batch, 1), *shape))

    def _rounds(self, share: NDArray[np.uint64], ready: Prepared) -> Rounds:
        values: dict[str, Value] = {}
        waiting = list(self.plan.gates)
        running: dict[str, tuple[Online, bytes]] = {}
        source = Value(share=share)

        def step(gate: Gate, run: Online, message: bytes | None) -> None:
            try:
                sent = next(run) if message is None else run.send(message)
            except StopIteration as end:
                values[gate.name] = end.value
                running.pop(gate.name, None)
            else:
                running[gate.name] = (run, sent)

        order = {gate.name: gate for gate in self.plan.gates}
        while True:
            still = []
            for gate in waiting:  # in topological order: local gates finish on the way
                if all(name in values for name in gate.inputs):
                    inputs = [values[name] for name in gate.inputs] or [source]
                    name = gate.name
                    run = gate.online(
                        ready.sides[name], ready.states[name], ready.masks[name], inputs
                    )
                    step(gate, run, None)
                else:
                    still.append(gate)
            waiting = still
            if not running:
                break
            now = [name for name in order if name in running]
            message = b"".join(running[name][1] for name in now)
            peer = yield message
            if len(peer) != len(message):
                raise MalformedMessage("bytes of a round", got=len(peer), expected=len(message))
            place = 0
            for name in now:
                run, sent = running[name]
                step(order[name], run, bytes(peer[place : place + len(sent)]))
                place += len(sent)
        made = values[self.plan.gates[-1].name].share
        if made is None:
            raise MalformedMessage("an output without a share")
        return made
