"""One end of the engine: material for a call ahead of time, and the call itself.

Ahead of time every mask but those of linear layers is drawn fresh, so all layers' ciphertexts go up
in one message, and then all gates run side by side: the number of exchanges does not depend on the
depth of the model. Online a gate starts when its inputs are there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, MalformedMessage, MaterialReused, ShapeMismatch
from secure_quant.he.evaluate import Evaluator
from secure_quant.ir import Graph
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Gate, Side, Wire
from secure_quant.mpc.protocol.gates.edge import InputGate
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.gates.local import LocalGate
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.ring import Ring, centred, reduce
from secure_quant.mpc.protocol.uses import Uses
from secure_quant.onehost.ahead import Ahead
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.edge import entered, sent_in, told_to_host
from secure_quant.onehost.exchange import Begun, Exchange, Joint, flow, swap
from secure_quant.onehost.linear import HostLinear, receive, serve_mask, words
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.plan import NUMBER_BYTES, OneHostPlan
from secure_quant.onehost.products import packed, unpacked
from secure_quant.onehost.requantize import Made
from secure_quant.onehost.walk import Walk

__all__ = ["ClientProgram", "Host", "HostProgram", "Item"]

Int = NDArray[np.int64]
Share = Callable[[str, Ring], Joint[Ring]]
"""(layer, own share r of its input's mask) -> s = W·r - u: the client's keys do that."""


@dataclass(eq=False)
class Item:
    """One party's material of one call. Used once. number: counted by the pairing's programs, alike
    at both ends. masks, made: by gate."""

    number: int
    batch: int
    masks: dict[str, Ring] = field(repr=False)
    made: dict[str, Any] = field(repr=False)
    used: bool = False


class Host:
    """The server's weights: of every linear layer in the clear. For all pairings and threads."""

    def __init__(self, graph: Graph, plan: OneHostPlan) -> None:
        """graph: with parameters."""
        self._evaluator, self._turn = Evaluator(graph, plan.masked.he, skip_zeros=False), Lock()
        self.layers = {
            gate.name: HostLinear.of(
                gate, graph.parameters[f"{gate.name}.weight"], graph.bias(gate.node)
            )
            for gate in plan.gates
            if isinstance(gate, LinearGate)
        }

    def evaluate(
        self, step: int, batch: int, ciphertexts: bytes, hidden: NDArray[np.uint64]
    ) -> bytes:
        """As ``Evaluator.evaluate``, one at a time: its memory is that of one call."""
        with self._turn:
            return self._evaluator.evaluate(step, batch, ciphertexts, hidden)


class _Program(ABC):
    """What both ends do alike. One thread at a time prepares; calls, which take nothing of the
    pairing but their item, may run beside it."""

    def __init__(self, plan: OneHostPlan, pairing: Pairing) -> None:
        self.plan, self.pairing, self._items = plan, pairing, 0

    @property
    def next_item(self) -> int:
        """The number of the item that ``prepare`` makes next."""
        return self._items + 1

    def prepare(self, batch: int) -> Joint[Item]:
        """Material for one call of ``batch`` samples. Raises MalformedMessage, PairingSpent."""
        if batch < 1:
            raise MalformedMessage("samples of a call", got=batch, expected=">= 1")
        masks = {self.plan.entry.name: self._entry(self.plan.entry, batch)}
        for name, half in self.plan.halves.items():
            if not isinstance(half, JointMaximum) or half.gate.tournament:
                masks[name] = half.fresh(self.pairing, batch)
        ahead = Ahead(self.plan, self.pairing, self._layer, masks, batch)
        yield from ahead.run()
        self._items += 1
        return Item(self._items, batch, masks, ahead.made)

    @abstractmethod
    def _layer(self, gate: LinearGate, r: Ring) -> Joint[tuple[Ring, Any]]:
        """(own share of the mask, state) of a linear layer."""

    @abstractmethod
    def _opened(self, gate: LinearGate, state: Any, x: Wire, batch: int) -> Joint[Ring]:
        """D of a linear layer."""

    @abstractmethod
    def _entry(self, gate: InputGate, batch: int) -> Ring:
        """Own share of the Input's mask."""

    @abstractmethod
    def _entered(self, gate: InputGate, mask: Ring, q: NDArray[np.int8] | None) -> Joint[Wire]:
        """The Input's wire. q: the client's."""

    def _answer(self, item: Item, q: NDArray[np.int8] | None) -> Joint[list[Wire]]:
        """The wires that the Output reads; all gates that are ready share their messages."""
        if item.used:
            raise MaterialReused("an item of one-time material", got="a second use")
        item.used = True
        uses, values = Uses(self.plan.gates), dict[str, Wire]()
        walk, first = Walk(self.plan.order), True

        def over(name: str, wire: Wire) -> None:
            values[name] = wire
            walk.made(name)

        def ready() -> Iterator[Begun]:
            nonlocal first
            if first:
                first = False
                yield _same_item(item.number), lambda _: None
            for gate in walk:  # what is local runs through
                inputs = [values[name] for name in gate.inputs]
                uses.release(gate, values)
                if isinstance(gate, InputGate):
                    run = self._entered(gate, item.masks[gate.name], q)
                else:
                    run = self._run(gate, item, inputs)
                yield run, partial(over, gate.name)

        yield from flow(ready)
        return [values[gate.name] for gate in self.plan.answers]

    def _run(self, gate: Gate, item: Item, inputs: list[Wire]) -> Joint[Wire]:
        """A gate that is not the Input."""
        mask, party = item.masks[gate.name], self.pairing.party
        made: Any = item.made.get(gate.name)
        if isinstance(gate, LinearGate):
            return self._linear_online(gate, made, inputs[0], mask)
        alone = gate.name in self.plan.host_only
        if isinstance(gate, LocalGate) and alone and party == 0:
            return _known(Wire(mask=mask))
        rounds = self._rounds(gate, made, inputs, mask)
        if alone and (count := len(self.plan.rounds(gate))):
            return told_to_host(rounds, count, party, mask)
        return _even(rounds, mask)

    def _rounds(
        self, gate: Gate, made: Any, inputs: list[Wire], mask: Ring
    ) -> Generator[bytes, bytes, Wire]:
        half = self.plan.halves.get(gate.name)
        if isinstance(half, JointMaximum):
            return half.online(made, inputs[0])
        if isinstance(gate, ProductGate):
            side = Side(self.pairing.party, len(mask), np.empty((len(mask), 0), np.uint64), [])
            return gate.online(side, made, None, inputs)
        if isinstance(made, Made):
            return gate.online(made.side, made.offset, mask, inputs)
        return gate.online(made, None, mask, inputs)

    def _linear_online(self, gate: LinearGate, state: Any, x: Wire, mask: Ring) -> Joint[Wire]:
        return Wire((yield from self._opened(gate, state, x, len(mask))), mask)


class ClientProgram(_Program):
    """Party 0: it has the input and gets the answer."""

    def __init__(self, plan: OneHostPlan, pairing: Pairing, share: Share) -> None:
        super().__init__(plan, pairing)
        self._share = share

    def run(self, item: Item, q: NDArray[np.int8]) -> Joint[Int]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape].

        Raises ShapeMismatch, DtypeMismatch, MaterialReused, MalformedMessage.
        """
        expected = (item.batch, *self.plan.graph.input.shape)
        if q.dtype != np.int8:
            raise DtypeMismatch("input", got=q.dtype, expected="int8")
        if q.shape != expected:
            raise ShapeMismatch("input", got=q.shape, expected=expected)
        wires = yield from self._answer(item, q)
        answers: list[Int] = []
        for gate, wire in zip(self.plan.answers, wires, strict=True):
            made = wire.public - wire.own
            if gate.name not in self.plan.bare:
                size = packed_bytes(made.size, gate.bits)
                theirs = unpacked((yield from swap(b"", size)), made.size, gate.bits)
                made = made - theirs.reshape(made.shape)
            answers.append(centred(reduce(made, gate.bits), gate.bits))
        shape = item.batch, *self.plan.graph.values[self.plan.graph.output.name].shape
        parts = [made.reshape(item.batch, -1) for made in answers]
        return np.concatenate(parts, axis=1).reshape(shape)

    def _entry(self, gate: InputGate, batch: int) -> Ring:
        fresh = self.pairing.random(batch * prod(gate.shape))
        return reduce(fresh, gate.bits).reshape(batch, *gate.shape)

    def _entered(self, gate: InputGate, mask: Ring, q: NDArray[np.int8] | None) -> Joint[Wire]:
        if q is None:
            raise ValueError("the client has an input")
        return sent_in(gate, q, mask)

    def _layer(self, gate: LinearGate, r: Ring) -> Joint[tuple[Ring, Any]]:
        s = yield from self._share(gate.name, reduce(r, gate.bits))
        return s, None

    def _opened(self, gate: LinearGate, state: Any, x: Wire, batch: int) -> Joint[Ring]:
        return (yield from receive(gate, batch))


class HostProgram(_Program):
    """Party 1: it has the weights and learns nothing."""

    def __init__(self, plan: OneHostPlan, pairing: Pairing, host: Host) -> None:
        super().__init__(plan, pairing)
        self._host = host

    def run(self, item: Item) -> Joint[None]:
        """Raises MaterialReused, MalformedMessage."""
        wires = yield from self._answer(item, None)
        for gate, wire in zip(self.plan.answers, wires, strict=True):
            if gate.name not in self.plan.bare:
                yield from swap(packed(reduce(wire.own, gate.bits).reshape(-1, 1), gate.bits), 0)

    def _entry(self, gate: InputGate, batch: int) -> Ring:
        return np.zeros((batch, *gate.shape), np.uint64)

    def _entered(self, gate: InputGate, mask: Ring, q: NDArray[np.int8] | None) -> Joint[Wire]:
        return entered(gate, mask)

    def _layer(self, gate: LinearGate, r: Ring) -> Joint[tuple[Ring, Any]]:
        masked, batch, layer = self.plan.masked, len(r), self._host.layers[gate.name]
        random = self.pairing.random(words(masked, gate.name, batch))
        u = yield from serve_mask(masked, self._host, gate.name, batch, random)
        if gate.name in self.plan.bare:
            return np.zeros((batch, *gate.shape), np.uint64), layer.state(r, u, None)
        fresh = self.pairing.random(batch * prod(gate.shape)).reshape(batch, *gate.shape)
        z = reduce(fresh, gate.bits)
        return z, layer.state(r, u, z)

    def _opened(self, gate: LinearGate, state: Any, x: Wire, batch: int) -> Joint[Ring]:
        return (yield from self._host.layers[gate.name].send(state, x.public))


def _even(run: Generator[bytes, bytes, Wire], mask: Ring) -> Joint[Wire]:
    """A gate's rounds, in which both parties send alike. mask: own share of the value's."""
    try:
        sent = next(run)
        while True:
            sent = run.send((yield from swap(sent, len(sent))))
    except StopIteration as end:
        return Wire(end.value.public, mask)


def _known(wire: Wire) -> Joint[Wire]:
    return wire
    yield Exchange(b"", 0)  # a generator, without an exchange


def _same_item(number: int) -> Joint[None]:
    """Both ends name the item they use. Raises MalformedMessage where they differ."""
    own = number.to_bytes(NUMBER_BYTES, "little")
    if (yield from swap(own, NUMBER_BYTES)) != own:
        raise MalformedMessage("the peer's item of material", expected=number, hint="burn both")
