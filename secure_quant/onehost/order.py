"""Gates and rings of a graph: lookups or ramps, and the cheaper order of Requantize and MaxPool.

Where a table does not decrease and all multipliers are positive, x -> T[(x·m + o) >> s] is
monotone on a channel, so the largest of the requantized is the requantized of the largest: the same
integers, and one requantize for each window instead of one for each place. The maximum then
compares accumulators, of more bits. Nothing else may read what stands between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.base import Gate
from secure_quant.mpc.protocol.gates.edge import InputGate
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.gates.maximum import MaximumGate, levels
from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.plan import Planner
from secure_quant.mpc.protocol.ramps import Ramp, choose_ramp
from secure_quant.mpc.protocol.shifts import ramp_of
from secure_quant.mpc.protocol.tables import Lookup, candidates, choose
from secure_quant.mpc.protocol.versions import LOOKUPS_ALONE
from secure_quant.onehost.cases import JointCases
from secure_quant.onehost.maximum import COT_BITS, WAITED, JointMaximum
from secure_quant.onehost.ramp import JointRamp
from secure_quant.onehost.requantize import JointRequantize

__all__ = ["ROUND", "depth", "exchanges", "ordered", "requantized", "swappable"]

ROUND = 2**19
"""Bits of material, COTs with them, that an exchange less is worth: 64 KB."""

Pairs = Mapping[str, str]
"""Requantize -> the MaxPool that alone reads it."""


def ordered(graph: Graph) -> tuple[Gate, ...]:
    """One gate per node of the public ``graph``, in its order. A pair that changes places keeps its
    two names: the first is then the largest accumulator's, the second the pooled activation's."""
    pairs = _cheaper(graph)
    planner = OneHostPlanner(graph, pairs, None)
    gates = planner.gates()
    if not planner.quick:
        return gates
    taken = _shorter(gates, planner.quick)
    return gates if taken == planner.quick.keys() else OneHostPlanner(graph, pairs, taken).gates()


def _cheaper(graph: Graph) -> Pairs:
    """Of those that may change places, what takes less material then."""
    pairs = swappable(graph)
    if not pairs:
        return pairs
    plain, whole = (
        {gate.name: _price(gate) for gate in OneHostPlanner(graph, each, ()).gates()}
        for each in ({}, pairs)
    )
    return {
        first: second
        for first, second in pairs.items()
        if whole[first] + whole[second] < plain[first] + plain[second]
    }


def _shorter(gates: Sequence[Gate], quick: Mapping[str, int]) -> frozenset[str]:
    """Those of ``quick``, each with the bits that it takes more, without which a call would take
    more exchanges; the dearest are given up first."""
    waited = {gate.name: exchanges(gate) for gate in gates}
    least, taken = depth(gates, waited), set(quick)
    for name in sorted(quick, key=lambda each: -quick[each]):
        if depth(gates, waited | {name: waited[name] + 1}) == least:
            waited[name] += 1
            taken.remove(name)
    return frozenset(taken)


def exchanges(gate: Gate) -> int:
    """Of a gate online, one after the other."""
    if isinstance(gate, LinearGate | InputGate):
        return 1
    if isinstance(gate, MaximumGate):
        return sum(map(len, JointMaximum(gate).payload_bits()))
    return len(gate.payloads)


def depth(gates: Sequence[Gate], waited: Mapping[str, int]) -> int:
    """Exchanges of the longest way through ``gates``, of each ``waited``."""
    ends: dict[str, int] = {}
    for gate in gates:
        ends[gate.name] = waited[gate.name] + max((ends[name] for name in gate.inputs), default=0)
    return max(ends.values())


def swappable(graph: Graph) -> Pairs:
    """Where either order gives the same integers."""
    found = {}
    for node in graph.nodes:
        if not isinstance(node, ops.MaxPool):
            continue
        before = graph.by_name[node.inputs[0]]
        if (
            isinstance(before, ops.Requantize)
            and len(graph.consumers[before.name]) == 1
            and len(graph.consumers[before.inputs[0]]) == 1
            and min(before.multiplier) > 0
            and (len(before.multiplier) == 1 or before.axis in (0, -3))
            and all(a <= b for a, b in zip(before.table, before.table[1:], strict=False))
        ):
            found[before.name] = node.name
    return found


def _worth(look: Lookup | Ramp, ring: int) -> int:
    """Bits of an element: of material, with COTs, and of what is waited for."""
    told: dict[str, Any] = {
        "name": "", "inputs": (), "shape": (1,), "bits": ring, "zero_point": 0, "axis": 0
    }  # fmt: skip
    made: Gate
    if isinstance(look, Ramp):
        made = RampGate(**told, look=look)
    else:
        made = RequantizeGate(**told, look=look)
    return _price(made) + WAITED * 2 * sum(look.payloads(ring))


def requantized(gate: RequantizeGate) -> JointRequantize | JointCases:
    """The joint half of a Requantize by lookups."""
    return JointCases(gate) if gate.look.variant == "V3" else JointRequantize(gate)


def _price(gate: Gate) -> int:
    """Bits of material of a sample, COTs with them."""
    if isinstance(gate, RequantizeGate | RampGate):
        half = requantized(gate) if isinstance(gate, RequantizeGate) else JointRamp(gate)
        cots, bits = half.formula()
        return gate.elements * (bits + COT_BITS * cots)
    if isinstance(gate, MaximumGate):
        tournament = JointMaximum(gate)
        cots, bits = tournament.formula()
        return sum(tournament.counts(1)) * (bits + COT_BITS * cots)
    return 0


class OneHostPlanner(Planner):
    """The answer's ring is that of its range, every linear layer is opened, and ``pairs`` change
    places."""

    def __init__(self, graph: Graph, pairs: Pairs, wanted: Collection[str] | None) -> None:
        """wanted: names of Requantize in an exchange less; None: all that take at most ROUND more
        for it. ``quick`` has those that were found, with the bits that each takes more."""
        super().__init__(graph, "traffic", LOOKUPS_ALONE)
        self._pairs, self._wanted = pairs, wanted
        self.quick: dict[str, int] = {}
        self._pools = {second: first for first, second in pairs.items()}

    def gates(self) -> tuple[Gate, ...]:
        """One per node, in the nodes' order."""
        return tuple(self._placed(gate) for gate in self.plan().gates)

    def answered(self, node: ops.Output | ops.OutputPort) -> int:
        reach = self.graph.values[node.inputs[0]].range
        return max(reach.hi.bit_length(), (-reach.lo - 1).bit_length()) + 1

    def opened(self, node: ops.Node) -> bool:
        return True

    def shared(self, node: ops.Node) -> bool:
        return False  # both ends know shares of every mask

    def _looked_up(self, node: ops.Requantize | ops.Rescale, ring: int) -> int:
        x = self.graph.values[node.inputs[0]].centred
        if isinstance(node, ops.Rescale):
            only = self.looks[node.name] = ramp_of(node, x)
            return only.ring
        found = self._cheapest(node, x, ring)
        if self._wanted is None or node.name in self._wanted:
            found = self._quicker(node, x, ring, found)
        self.looks[node.name] = found
        return found.ring

    def _cheapest(self, node: ops.Requantize, x: Interval, ring: int) -> Lookup | Ramp:
        """By lookups or by a ramp, whichever takes less here."""
        found, ramp = choose(node, x, self.objective, ring), choose_ramp(node, x)
        if ramp is not None and _worth(ramp, ring) < _worth(found, ring):
            return ramp
        return found

    def _quicker(
        self, node: ops.Requantize, x: Interval, ring: int, found: Lookup | Ramp
    ) -> Lookup | Ramp:
        """``found``, or by cases where that takes not too much more."""
        cases = [look for look in candidates(node, x) if look.variant == "V3" and look.shift]
        if not cases or len(found.payloads(ring)) < 3:
            return found
        fast = min(cases, key=lambda look: _worth(look, ring))
        count = prod(self.graph.values[node.name].shape)
        more = count * (_worth(fast, ring) - _worth(found, ring))
        if more > ROUND:
            return found
        self.quick[node.name] = more
        return fast

    def _demand(self, node: ops.Node) -> None:
        if node.name in self._pools:
            first = self.graph.by_name[self._pools[node.name]]
            if isinstance(first, ops.Requantize):
                sums = first.inputs[0]
                x = self.graph.values[sums].centred
                look = self._cheapest(first, x, self.rings[node.name])
                self.looks[first.name] = look
                need = max(look.ring, self._compared(first))
                self.rings[first.name] = need
                self.rings[sums] = max(self.rings[sums], need)
        elif node.name not in self._pairs:
            super()._demand(node)

    def _placed(self, gate: Gate) -> Gate:
        """Of a pair, the gate that takes the other's place."""
        if gate.name in self._pairs:
            pool = self.graph.by_name[self._pairs[gate.name]]
            if isinstance(pool, ops.MaxPool):
                return self._largest(gate, pool)
        if gate.name in self._pools:
            return self._activation(gate)
        return gate

    def _largest(self, gate: Gate, pool: ops.MaxPool) -> Gate:
        return MaximumGate(
            name=gate.name, inputs=gate.inputs, shape=self.graph.values[pool.name].shape,
            bits=gate.bits, node=pool, width=self._compared(self.graph.by_name[gate.name]),
            source=self.graph.values[gate.inputs[0]].shape,
            tournament=levels(prod(pool.kernel), 2),
        )  # fmt: skip

    def _activation(self, gate: Gate) -> Gate:
        first = self.graph.by_name[self._pools[gate.name]]
        look, count = self.looks[first.name], prod(gate.shape)
        free, dealt = RequantizeGate.material(look, count, gate.bits)
        told: dict[str, Any] = {
            "name": gate.name, "inputs": gate.inputs, "shape": gate.shape, "bits": gate.bits,
            "zero_point": self.zero(first.inputs[0]),
            "axis": first.axis if isinstance(first, ops.Requantize) else 0,
            "free_words": free, "dealt_words": dealt,
            "payloads": tuple(((count, bits),) for bits in look.payloads(gate.bits)),
        }  # fmt: skip
        if isinstance(look, Lookup):
            return RequantizeGate(**told, look=look)
        if isinstance(look, Ramp):
            return RampGate(**told, look=look)
        raise TypeError(f"{type(look).__name__} has no joint half")
