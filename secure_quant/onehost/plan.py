"""The public plan of a graph: its gates, the layouts of its linear layers, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Gate
from secure_quant.mpc.protocol.gates.edge import InputGate
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.onehost import masked
from secure_quant.onehost.edge import JointInput
from secure_quant.onehost.masked import MaskedPlan
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.order import ordered
from secure_quant.onehost.product import JointProduct
from secure_quant.onehost.requantize import JointRequantize

__all__ = ["NUMBER_BYTES", "Half", "OneHostCost", "OneHostPlan", "plan"]

NUMBER_BYTES = 8
"""By which both ends name the item they use."""
Half = JointInput | JointRequantize | JointMaximum | JointProduct
"""The joint half of a gate that is made of COTs."""


@dataclass(frozen=True)
class OneHostCost:
    """Bytes from client to server (up) and back of one call. material: ahead of time, by products
    and homomorphic encryption; the COTs' extension comes to it. cots: by chooser."""

    cots: tuple[int, int]
    material_up: int
    material_down: int
    online_up: int
    online_down: int


@dataclass(frozen=True, eq=False)
class OneHostPlan:
    """graph: public. gates: one per node, in the nodes' order. masked: of the linear layers."""

    graph: Graph
    gates: tuple[Gate, ...]
    masked: MaskedPlan

    @cached_property
    def by_name(self) -> dict[str, Gate]:
        return {gate.name: gate for gate in self.gates}

    @cached_property
    def halves(self) -> dict[str, Half]:
        """Of every gate that takes COTs, by name, in the nodes' order."""
        made: dict[str, Half] = {}
        for gate in self.gates:
            if isinstance(gate, InputGate):
                made[gate.name] = JointInput(gate)
            elif isinstance(gate, RequantizeGate):
                made[gate.name] = JointRequantize(gate)
            elif isinstance(gate, MaximumGate):
                made[gate.name] = JointMaximum(gate)
            elif isinstance(gate, ProductGate):
                left, right = (self.graph.values[name].shape for name in gate.inputs)
                made[gate.name] = JointProduct(gate, left, right)
        return made

    @cached_property
    def answers(self) -> tuple[Gate, ...]:
        """What the Output reads, or each port of it."""
        names = [port.node for port in self.graph.output_ports]
        if names == [self.graph.output.name]:
            return (self.by_name[self.graph.output.inputs[0]],)
        return tuple(self.by_name[self.by_name[name].inputs[0]] for name in names)

    @cached_property
    def bare(self) -> frozenset[str]:
        """Layers whose accumulators are an answer: masked by the client's share alone."""
        return frozenset(gate.name for gate in self.answers if isinstance(gate, LinearGate))

    def cots(self, batch: int) -> tuple[int, int]:
        """COTs of one call in which party 0 and party 1 choose."""
        first, second = zip(*(half.cots(batch) for half in self.halves.values()), strict=True)
        return sum(first), sum(second)

    def cost(self, batch: int = 1) -> OneHostCost:
        """Exact bytes of one call with ``batch`` samples."""
        joint = [half.sent_bytes(batch) for half in self.halves.values()]
        linear = self.masked.he.cost(batch)
        up = down = NUMBER_BYTES
        for gate in self.gates:
            if isinstance(gate, LinearGate):
                down += packed_bytes(batch * prod(gate.shape), gate.bits)
                continue
            half = self.halves.get(gate.name)
            sizes = gate.payload_bytes(batch)
            if isinstance(half, JointMaximum):
                sizes = half.payload_bytes(batch)
            up, down = up + sum(sizes), down + sum(sizes)
        for gate in self.answers:
            if gate.name not in self.bare:
                down += packed_bytes(batch * prod(gate.shape), gate.bits)
        return OneHostCost(
            self.cots(batch),
            sum(one for one, _ in joint) + linear.bytes_up,
            sum(two for _, two in joint) + linear.bytes_down,
            up, down,
        )  # fmt: skip


def plan(graph: Graph, calls: int = 1000) -> OneHostPlan:
    """calls: samples that one client may be served. Raises OpNotSupported."""
    for node in graph.nodes:
        if isinstance(node, ops.DYNAMIC):
            raise OpNotSupported(
                f"{type(node).__name__} {node.name!r} with one host",
                got="a scale chosen at run time, which depends on the secret input",
                hint="quantize with mode='static' or 'weight-only'",
            )  # fmt: skip
    gates = ordered(graph.public())
    bits = {gate.name: gate.bits for gate in gates if isinstance(gate, LinearGate)}
    made = OneHostPlan(graph.public(), gates, masked.plan(graph, bits, calls))
    made.cots(1)  # refuses here what no joint half can do
    return made
