"""The public plan of a graph: its gates, the layouts of its linear layers, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, get_args

from secure_quant.errors import HashMismatch, MalformedModel, OpNotSupported, UnsupportedVersion
from secure_quant.ir import Graph, ops
from secure_quant.ir.ports import refuse_secret_tables
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Gate
from secure_quant.mpc.protocol.gates.edge import InputGate, JoinGate, OutputGate
from secure_quant.mpc.protocol.gates.linear import LinearGate, weight_shape
from secure_quant.mpc.protocol.gates.local import LocalGate
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.shifts import refuse_run_time_scales
from secure_quant.onehost import masked
from secure_quant.onehost.cot import KAPPA, STEP_BYTES
from secure_quant.onehost.edge import input_bytes
from secure_quant.onehost.ferret import Lpn
from secure_quant.onehost.groups import Half, Piece, groups, summed
from secure_quant.onehost.masked import MaskedPlan
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.order import depth, exchanges, ordered, requantized
from secure_quant.onehost.product import JointProduct
from secure_quant.onehost.ramp import JointRamp
from secure_quant.onehost.softspoken import extension_bits
from secure_quant.onehost.sources import Objective, lpn_of, mean_bytes
from secure_quant.onehost.walk import Order

__all__ = ["CALLS", "KAPPA", "MAX_BATCH", "NUMBER_BYTES", "Half", "OneHostCost", "OneHostPlan",
           "plan"]  # fmt: skip

VERSION = 2
MAX_BATCH = 8
"""Samples of one item that is served."""
LIGHT_BYTES, LIGHT_PRODUCTS = 2**18, 2**22
"""Both ways, and of numbers with weights: an inference with no more may run between messages."""
CALLS = (2**20, 2**16, 2**12, 2**10)
"""Samples of one client that a plan is made for unless told: the first that its layers allow in
rings of two primes, or in those of three."""

NUMBER_BYTES = 8
"""By which both ends name the item they use."""


@dataclass(frozen=True)
class OneHostCost:
    """Bytes from client to server (up) and back of one call. material: ahead of time, by products
    and homomorphic encryption; the COTs' extension comes to it. taken: COTs of each group of gates,
    by chooser."""

    taken: tuple[tuple[int, int], ...]
    material_up: int
    material_down: int
    online_up: int
    online_down: int
    flights: int
    """Messages online that something waits for; both ends may send in one."""
    objective: Objective = "latency"

    @property
    def offline_bytes_up(self) -> int:
        """Ahead of time from client to server, the extension of an empty stock included; with
        Ferret the item's part of a batch, and not what a pairing's first item sends to begin."""
        return self.material_up + self._extensions[0]

    @property
    def offline_bytes_down(self) -> int:
        """The same, back."""
        return self.material_down + self._extensions[1]

    @property
    def cots(self) -> tuple[int, int]:
        """In which party 0 and party 1 choose."""
        return summed(self.taken)

    @property
    def _extensions(self) -> tuple[int, int]:
        one, two = mean_bytes(self.objective, KAPPA, self.taken)
        return STEP_BYTES * len(self.taken) + one, STEP_BYTES * len(self.taken) + two

    def seconds(self, round_trip: float, bits_a_second: float) -> float:
        """What the network takes of a call: half a round trip for each flight, and all bytes one
        after the other. Computing comes to it."""
        sent = 8 * (self.bytes_up + self.bytes_down) / bits_a_second
        return round(self.flights * round_trip / 2 + sent, 4)

    @property
    def seconds_lan(self) -> float:
        """Half a millisecond there and back, 1 Gbit/s."""
        return self.seconds(0.0005, 1e9)

    @property
    def seconds_20_ms(self) -> float:
        """20 ms there and back, 100 Mbit/s."""
        return self.seconds(0.02, 1e8)

    @property
    def seconds_50_ms(self) -> float:
        """50 ms there and back, 100 Mbit/s."""
        return self.seconds(0.05, 1e8)

    @property
    def ahead_seconds_100_mbit(self) -> float:
        """What the bytes of an item take, made ahead of time, at 100 Mbit/s."""
        return round(8e-8 * (self.offline_bytes_up + self.offline_bytes_down), 4)

    @property
    def bytes_up(self) -> int:
        """Online."""
        return self.online_up

    @property
    def bytes_down(self) -> int:
        """Online."""
        return self.online_down


@dataclass(frozen=True, eq=False)
class OneHostPlan:
    """graph: public. gates: one per node, in the nodes' order. masked: of the linear layers. calls:
    samples of one client for which it was made. objective: which COTs."""

    graph: Graph
    gates: tuple[Gate, ...]
    masked: MaskedPlan
    calls: int
    objective: Objective = "latency"

    @property
    def lpn(self) -> Lpn | None:
        """Of its pairings."""
        return lpn_of(self.objective)

    @cached_property
    def by_name(self) -> dict[str, Gate]:
        return {gate.name: gate for gate in self.gates}

    @cached_property
    def order(self) -> Order:
        """Of the gates that a call runs: all but the Output and what joins its ports."""
        ends = OutputGate, JoinGate
        return Order.of([gate for gate in self.gates if not isinstance(gate, ends)])

    @cached_property
    def halves(self) -> dict[str, Half]:
        """Of every gate that takes COTs, by name, in the nodes' order."""
        made: dict[str, Half] = {}
        for gate in self.gates:
            if isinstance(gate, RequantizeGate):
                made[gate.name] = requantized(gate)
            elif isinstance(gate, RampGate):
                made[gate.name] = JointRamp(gate)
            elif isinstance(gate, MaximumGate):
                made[gate.name] = JointMaximum(gate)
            elif isinstance(gate, ProductGate):
                left, right = (self.graph.values[name].shape for name in gate.inputs)
                made[gate.name] = JointProduct(gate, left, right)
        return made

    def groups(self, batch: int) -> list[list[Piece]]:
        """Of ``halves``, in order, what is made side by side."""
        return groups(self.halves, batch)

    @cached_property
    def answers(self) -> tuple[Gate, ...]:
        """What the Output reads, or each port of it."""
        names = [port.node for port in self.graph.output_ports]
        if names == [self.graph.output.name]:
            return (self.by_name[self.graph.output.inputs[0]],)
        return tuple(self.by_name[self.by_name[name].inputs[0]] for name in names)

    @cached_property
    def entry(self) -> InputGate:
        """Where the client's input comes in."""
        return next(gate for gate in self.gates if isinstance(gate, InputGate))

    @cached_property
    def host_only(self) -> frozenset[str]:
        """Values that nothing but linear layers read, straight or through local maps: the host
        alone needs what is opened."""
        readers: dict[str, list[Gate]] = {gate.name: [] for gate in self.gates}
        for gate in self.gates:
            for name in gate.inputs:
                readers[name].append(gate)
        found: set[str] = set()
        for gate in reversed(self.gates):
            if readers[gate.name] and all(
                isinstance(reader, LinearGate)
                or (isinstance(reader, LocalGate) and reader.name in found)
                for reader in readers[gate.name]
            ):
                found.add(gate.name)
        return frozenset(found)

    @cached_property
    def bare(self) -> frozenset[str]:
        """Layers whose accumulators are an answer: masked by the client's share alone."""
        return frozenset(gate.name for gate in self.answers if isinstance(gate, LinearGate))

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs of one call in which party 0 and party 1 choose."""
        return summed(half.cots(batch) for half in self.halves.values())

    def cost(self, batch: int = 1) -> OneHostCost:
        """Exact bytes of one call with ``batch`` samples."""
        if batch not in self._costs:  # asked for in every call
            self._costs[batch] = self._counted(batch)
        return self._costs[batch]

    @cached_property
    def _costs(self) -> dict[int, OneHostCost]:
        return {}

    def _counted(self, batch: int) -> OneHostCost:
        joint = [half.sent_bytes(batch) for half in self.halves.values()]
        linear = self.masked.he.cost(batch)
        online = [self._online(gate, batch) for gate in self.gates]
        return OneHostCost(
            tuple(summed(piece.cots for piece in group) for group in self.groups(batch)),
            sum(one for one, _ in joint) + linear.bytes_up,
            sum(two for _, two in joint) + linear.bytes_down,
            NUMBER_BYTES + sum(up for up, _ in online),
            NUMBER_BYTES + sum(down for _, down in online),
            self.flights,
            self.objective,
        )  # fmt: skip

    def light(self, batch: int) -> bool:
        """An inference of so many samples is done in a few milliseconds, between its messages."""
        cost = self.cost(batch)
        products = batch * sum(
            prod(gate.shape) * weight_shape(gate.node)[2]
            for gate in self.gates
            if isinstance(gate, LinearGate)
        )
        return cost.bytes_up + cost.bytes_down <= LIGHT_BYTES and products <= LIGHT_PRODUCTS

    def rounds(self, gate: Gate, batch: int = 1) -> tuple[int, ...]:
        """Bytes of every message that a gate which is not linear opens, as each party sends them
        unless the host alone learns it."""
        half = self.halves.get(gate.name)
        if isinstance(half, JointMaximum):
            return half.payload_bytes(batch)
        return gate.payload_bytes(batch)

    def _online(self, gate: Gate, batch: int) -> tuple[int, int]:
        """What party 0 and party 1 send for ``gate`` in a call, the answer's mask included."""
        own = packed_bytes(batch * prod(gate.shape), gate.bits)
        answers = self.answers.count(gate) * own
        if isinstance(gate, LinearGate):
            return 0, own
        if isinstance(gate, InputGate):
            return input_bytes(gate, batch), answers
        sizes = self.rounds(gate, batch)
        told = sizes[:-1] if gate.name in self.host_only else sizes
        return sum(sizes), sum(told) + answers

    def layers(self) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """Gate -> bytes of a sample that party 0 and party 1 send for it (online, ahead)."""
        made = {}
        for gate in self.gates:
            ahead = (0, 0)
            if isinstance(gate, LinearGate):
                linear = self.masked.call(gate.name, 1).cost
                ahead = linear.bytes_up, linear.bytes_down
            elif gate.name in self.halves:
                half = self.halves[gate.name]
                first, second = half.sent_bytes(1)
                one, two = self._part(half.cots(1))
                ahead = first + one, second + two
            made[gate.name] = self._online(gate, 1), ahead
        return made

    def _part(self, cots: tuple[int, int]) -> tuple[int, int]:
        """Bytes of the extension that are a gate's, whose COTs stand among others'."""
        if self.lpn is not None:
            return mean_bytes(self.objective, KAPPA, [cots])
        bits = extension_bits(KAPPA)
        return cots[0] * bits // 8, cots[1] * bits // 8

    @cached_property
    def flights(self) -> int:
        """Exchanges of a call: gates that run side by side share theirs."""
        waited = {gate.name: exchanges(gate) for gate in self.gates}
        last = sum(gate.name not in self.bare for gate in self.answers)
        return depth(self.gates, waited) + last

    def to_json(self) -> bytes:
        """Canonical; equal for equal plans."""
        cost = self.cost()
        document = {
            "engine": "onehost",
            "version": VERSION,
            "model": self.graph.hash,
            "calls": self.calls,
            "kappa": KAPPA,
            "cots": cost.cots,
            "material": [cost.material_up, cost.material_down],
            "online": [cost.online_up, cost.online_down, cost.flights],
            "gates": [gate.describe() for gate in self.gates],
            "linear": json.loads(self.masked.he.to_json()),
        }
        if self.objective != "latency":
            document["objective"] = self.objective
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, graph: Graph) -> OneHostPlan:
        """The plan of ``graph``, made anew; refused unless it is the one that ``data`` states.

        Raises MalformedModel, UnsupportedVersion, HashMismatch, OpNotSupported.
        """
        document = _document(data)
        if document.get("version") != VERSION:
            got = ascii(document.get("version"))[:16]
            hint = "split the model again with this release"
            raise UnsupportedVersion("plan", got=got, expected=VERSION, hint=hint)
        calls = document.get("calls")
        if type(calls) is not int or not 1 <= calls < 2**63:
            raise MalformedModel("samples of a plan", got=ascii(calls)[:40], expected=">= 1")
        objective = document.get("objective", "latency")
        if objective not in get_args(Objective):
            raise MalformedModel("objective of a plan", got=ascii(objective)[:40])
        made = plan(graph, calls, objective)
        if made.to_json() != bytes(data):
            raise HashMismatch("plan", got="another plan", expected="the one that the graph gives")
        return made


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedModel("plan", got="not JSON") from error
    if not isinstance(document, dict) or document.get("engine") != "onehost":
        raise MalformedModel("plan", got="another engine's", expected="onehost")
    return document


def plan(graph: Graph, calls: int | None = None, objective: Objective = "latency") -> OneHostPlan:
    """calls: samples that one client may be served; by default the first of CALLS that the layers
    allow in rings of two primes, or in those of three. Raises OpNotSupported."""
    refuse_secret_tables(graph.nodes, "with one host")
    for node in graph.nodes:
        if isinstance(node, ops.TopK):
            raise OpNotSupported(
                f"TopK {node.name!r} with one host", got="an order, for which it has no joint half",
                hint="output='scores', or secret sharing (engine mpc)",
            )  # fmt: skip
    refuse_run_time_scales(graph, "with one host")
    public = graph.public()
    gates = ordered(public)
    bits = {gate.name: gate.bits for gate in gates if isinstance(gate, LinearGate)}
    if calls is None:
        calls, layers = _layers(public, bits)
    else:
        layers = masked.plan(public, bits, calls)
    made = OneHostPlan(public, gates, layers, calls, objective)
    made.cots(1)  # refuses here what no joint half can do
    return made


def _layers(public: Graph, bits: Mapping[str, int]) -> tuple[int, MaskedPlan]:
    """For the first of CALLS that there are layouts for. Raises OpNotSupported."""
    *tries, last = [(planned, n) for planned in (masked.narrow, masked.wide) for n in CALLS]
    for planned, calls in tries:
        with suppress(OpNotSupported):
            return calls, planned(public, bits, calls)
    return last[1], last[0](public, bits, last[1])
