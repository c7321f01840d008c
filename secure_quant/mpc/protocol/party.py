"""One party's program: an inference on shares, as a generator of rounds.

All gates whose inputs are there run together, and what they send in one round is one message, so
that parallel branches share their rounds. Both parties walk the same plan in the same order.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, MalformedMessage, MaterialReused, ShapeMismatch
from secure_quant.ir import Graph
from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.gates.base import Gate, Online, Side, Wire
from secure_quant.mpc.protocol.material import Item, as_words
from secure_quant.mpc.protocol.plan import MpcPlan
from secure_quant.mpc.protocol.ring import Ring
from secure_quant.mpc.protocol.rounds import Rounds, Want

__all__ = ["Expansion", "GateSource", "PartyProgram", "Prepared", "Ready"]

Corrections = bytes | memoryview


@dataclass(eq=False)
class Ready:
    """The offline half of one gate of one call: material expanded, masks and offsets computed."""

    side: Side
    state: Any = field(repr=False)
    mask: Ring | None = field(repr=False)


@dataclass(eq=False)
class Prepared:
    """The offline half of one call, by gate. Used once."""

    batch: int
    gates: dict[str, Ready]
    used: bool = False


class GateSource(Protocol):
    """Where a call gets its gates' halves as it comes to them, if not all at once."""

    batch: int
    used: bool

    def next(self) -> Awaitable[Ready]:
        """The next gate's, in the plan's order."""


class Expansion:
    """Material of one call, expanded gate after gate in the plan's order. Not thread-safe."""

    def __init__(
        self,
        party: int,
        plan: MpcPlan,
        parameters: Mapping[str, Any],
        seeds: Sequence[bytes],
        *,
        at_once: bool = False,
    ) -> None:
        """``seeds``: one per sample. ``at_once``: all gates' words are wanted side by side, and one
        large block of memory costs far fewer page faults than many."""
        self._party, self._parameters = party, parameters
        self._streams = [Keystream(seed) for seed in seeds]
        self._uses, self._masks = plan.uses(), dict[str, Ring | None]()
        words = plan.free_words + (0 if party else plan.dealt_words)
        self._block = np.empty(len(seeds) * words if at_once else 0, np.uint64)
        self._used = 0

    def next(self, gate: Gate, corrections: Sequence[Corrections]) -> Ready:
        """The offline half of ``gate``, the one after the last. ``corrections``: at party 1 the
        gate's 8 · dealt words bytes per sample, else ignored."""
        batch = len(self._streams)
        own = self._room(batch, gate.free_words)
        if self._party == 0:
            dealt = list(self._room(batch, gate.dealt_words))
        else:
            dealt = [as_words(each) for each in corrections]
        for number, stream in enumerate(self._streams):
            stream.read(own[number])
            if self._party == 0:
                stream.read(dealt[number])
        side = Side(self._party, batch, own, dealt, self._parameters.get(gate.name))
        state, mask = gate.offline(side, [self._masks[name] for name in gate.inputs])
        self._masks[gate.name] = mask
        self._uses.release(gate, self._masks)
        return Ready(side, state, mask)

    def _room(self, rows: int, words: int) -> Ring:
        """Uninitialized uint64[rows, words]."""
        if not self._block.size:
            return np.empty((rows, words), np.uint64)
        self._used += rows * words
        return self._block[self._used - rows * words : self._used].reshape(rows, words)


class PartyProgram:
    """party: 0 or 1. model_hash, plan, graph: public. split: what the dealer knows this party's
    bundle by. Safe to use from several threads."""

    def __init__(
        self, party: int, plan: MpcPlan, parameters: Mapping[str, Any], split: bytes
    ) -> None:
        """``parameters``: by gate name, this party's half of the weights."""
        self.party, self.plan, self.split = party, plan, split
        self._parameters = dict(parameters)

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    @property
    def model_hash(self) -> str:
        return self.plan.graph.hash

    def prepare(self, items: Sequence[Item], pace: Callable[[], object] = lambda: None) -> Prepared:
        """The part of ``run`` that needs no input: may be done ahead. Consumes the items.

        ``pace`` is called before every gate and may take its time.
        Raises MaterialReused, MalformedMessage.
        """
        if not items:
            raise MalformedMessage("items", got=0, expected=">= 1")
        expected = 8 * self.plan.dealt_words if self.party else 0
        seeds: list[bytes] = []
        dealt: list[memoryview] = []
        for item in items:
            if item.party != self.party or len(item.corrections) != expected:
                got = (item.party, len(item.corrections))
                raise MalformedMessage(
                    "party and bytes of corrections", got=got, expected=(self.party, expected)
                )
            seed, corrections = item.take()
            seeds.append(seed)
            dealt.append(memoryview(corrections))
        expansion = Expansion(self.party, self.plan, self._parameters, seeds, at_once=True)
        gates: dict[str, Ready] = {}
        place = 0
        for gate in self.plan.order:
            pace()
            last = place + 8 * gate.dealt_words
            gates[gate.name] = expansion.next(gate, [whole[place:last] for whole in dealt])
            place = last
        return Prepared(len(items), gates)

    def expansion(self, seeds: Sequence[bytes]) -> Expansion:
        """Of the material under ``seeds``, one per sample, which must be used nowhere else."""
        return Expansion(self.party, self.plan, self._parameters, seeds)

    def run(
        self, share: NDArray[np.uint8], items: Sequence[Item] | Prepared | GateSource
    ) -> Rounds[NDArray[np.uint64]]:
        """Share mod 2^64 of the integers at the Output, uint64[batch, *output shape].

        share: uint8[batch, *input shape], an XOR share of the int8 input; whatever the bytes, they
        are a share of one. items: one per sample, or what ``prepare`` made of them, or a source of
        it, which is asked before every gate. Yields this party's payload of every round and is sent
        the peer's. Raises ShapeMismatch, DtypeMismatch, MaterialReused, MalformedMessage.
        """
        batch = len(items) if isinstance(items, Sequence) else items.batch
        self._check(share, batch)
        ready = self.prepare(items) if isinstance(items, Sequence) else items
        if ready.used:
            raise MaterialReused("prepared material", got="a second use")
        ready.used = True
        return self._rounds(share, ready)

    def _check(self, share: NDArray[np.uint8], batch: int) -> None:
        shape = self.graph.input.shape
        if share.dtype != np.uint8:
            raise DtypeMismatch("share", got=share.dtype, expected="uint8")
        if share.shape != (batch, *shape) or not batch:
            raise ShapeMismatch("share", got=share.shape, expected=(max(batch, 1), *shape))

    def _rounds(
        self, share: NDArray[np.uint8], source: Prepared | GateSource
    ) -> Rounds[NDArray[np.uint64]]:
        calls = _Calls(self.plan, share)
        while True:
            while (gate := calls.due()) is not None:
                if isinstance(source, Prepared):
                    ready = source.gates.pop(gate.name)
                else:
                    ready = yield Want(source.next)
                calls.start(gate, ready)
                del ready
            if not calls.running:
                return calls.output()
            message = b"".join(sent for _, _, sent in calls.running)
            peer = yield message
            if len(peer) != len(message):
                raise MalformedMessage("bytes of a round", got=len(peer), expected=len(message))
            calls.answer(peer)


class _Calls:
    """The gates of one call. running: (gate, its generator, what it sent), in node order."""

    def __init__(self, plan: MpcPlan, share: NDArray[np.uint8]) -> None:
        self.running: list[tuple[Gate, Online, bytes]] = []
        self._values: dict[str, Wire] = {}
        self._uses, self._source = plan.uses(), Wire(octets=share)
        self._rank = {gate.name: number for number, gate in enumerate(plan.gates)}
        self._waiting, self._last = deque(plan.order), plan.gates[-1].name

    def due(self) -> Gate | None:
        """The next gate in order, if its inputs are there; those after it start no earlier."""
        if self._waiting and all(name in self._values for name in self._waiting[0].inputs):
            return self._waiting.popleft()
        return None

    def start(self, gate: Gate, ready: Ready) -> None:
        """Run ``gate`` up to its first message; local gates finish at once."""
        inputs = [self._values[name] for name in gate.inputs] or [self._source]
        run = gate.online(ready.side, ready.state, ready.mask, inputs)
        self._uses.release(gate, self._values)
        self._step(gate, run, None)

    def answer(self, peer: bytes) -> None:
        """Hand each running gate its part of the peer's message of this round."""
        before, self.running, place = self.running, [], 0
        for gate, run, sent in before:
            self._step(gate, run, bytes(peer[place : place + len(sent)]))
            place += len(sent)

    def output(self) -> NDArray[np.uint64]:
        """Raises MalformedMessage if the plan ends without a share."""
        made = self._values[self._last].share
        if made is None:
            raise MalformedMessage("an output without a share")
        return made

    def _step(self, gate: Gate, run: Online, message: bytes | None) -> None:
        try:
            sent = next(run) if message is None else run.send(message)
        except StopIteration as end:
            self._values[gate.name] = end.value
        else:
            insort(self.running, (gate, run, sent), key=lambda each: self._rank[each[0].name])
