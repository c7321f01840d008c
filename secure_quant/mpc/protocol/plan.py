"""The plan: which gate computes each node, in which ring, and what it costs. Needs no weights.

Rings are chosen backwards, each the smallest that its consumers' proofs allow. The plan is a
function of public graph and objective, so both parties, the dealer and the client derive the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

from secure_quant.errors import HashMismatch, MalformedModel, UnsupportedVersion
from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.protocol import versions
from secure_quant.mpc.protocol.cost import Cost
from secure_quant.mpc.protocol.gates.base import Gate
from secure_quant.mpc.protocol.gates.counting import CountingGate
from secure_quant.mpc.protocol.gates.edge import InputGate, JoinGate, OutputGate
from secure_quant.mpc.protocol.gates.embedding import EmbeddingGate
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.gates.local import LocalGate
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.gates.order import Level
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.gates.shift import ShiftGate
from secure_quant.mpc.protocol.maxima import cheapest_maximum, countings, maxima
from secure_quant.mpc.protocol.order import ordering, tournament_of
from secure_quant.mpc.protocol.ramps import Ramp
from secure_quant.mpc.protocol.scaling import Scalings
from secure_quant.mpc.protocol.shifts import Shift, refuse_run_time_scales
from secure_quant.mpc.protocol.tables import Lookup, choose
from secure_quant.mpc.protocol.uses import Uses
from secure_quant.mpc.protocol.ways import ROUND_BITS, Way, cheapest, ways

__all__ = ["STREAM_BYTES", "MpcPlan", "Objective", "Planner", "plan"]

Objective = Literal["latency", "balanced", "traffic"]
"""What the planner spares: rounds; material, at a few more rounds; every byte."""

SHARE_BITS = 64
STREAM_BYTES = 2**25
"""Corrections of one sample above which a model is streamed, unless its owner says otherwise: two
of them would fill a lane's stock, and making them ahead no longer hides what they cost."""
ROUND_SHARE, SHARE_BEFORE = 80, 2**9
"""Where objectives are balanced a round is worth this part of the model's material; less in plans
before version 5."""


@dataclass(frozen=True, eq=False)
class MpcPlan:
    """graph: public. gates: in the nodes' order, of each whose value is computed. streamed:
    material is made, sent and expanded gate by gate while a sample runs, and the samples of a call
    one after the other.
    version: of the choices that the planner has."""

    graph: Graph
    objective: Objective
    gates: tuple[Gate, ...]
    streamed: bool = False
    version: int = versions.PLAN_VERSION

    def cost(self, batch: int = 1) -> Cost:
        """Exact rounds and bytes of one call with ``batch`` samples."""
        runs, samples = (batch, 1) if self.streamed else (1, batch)
        online = runs * sum(sum(gate.payload_bytes(samples)) for gate in self.gates)
        return Cost(
            runs * self.rounds, online, batch * SEED_BYTES,
            batch * (SEED_BYTES + 8 * self.dealt_words),
        )  # fmt: skip

    @cached_property
    def rounds(self) -> int:
        """Length of the longest chain: gates that are ready together share their rounds."""
        return max(self._starts[gate.name] + len(gate.payloads) for gate in self.gates)

    @cached_property
    def order(self) -> tuple[Gate, ...]:
        """Gates as they start: by the round in which their inputs are there, then in node order.
        Material lies in this order."""
        return tuple(sorted(self.gates, key=lambda gate: self._starts[gate.name]))

    @cached_property
    def _starts(self) -> dict[str, int]:
        """Rounds that are over when a gate's inputs are there."""
        starts: dict[str, int] = {}
        done: dict[str, int] = {}
        for gate in self.gates:
            starts[gate.name] = max((done[name] for name in gate.inputs), default=0)
            done[gate.name] = starts[gate.name] + len(gate.payloads)
        return starts

    def uses(self) -> Uses:
        """For a walk along ``order``."""
        return Uses(self.gates)

    @cached_property
    def free_words(self) -> int:
        return sum(gate.free_words for gate in self.gates)

    @cached_property
    def dealt_words(self) -> int:
        return sum(gate.dealt_words for gate in self.gates)

    @cached_property
    def window_bytes(self) -> int:
        """Most bytes of corrections of two consecutive gates that have any: what party 1 holds of a
        streamed item."""
        sizes = [8 * gate.dealt_words for gate in self.order if gate.dealt_words]
        return max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)) if sizes else 0

    @cached_property
    def expanded_bytes(self) -> int:
        """Memory for one sample's expanded material at a party, about: words, masks, offsets."""
        made = sum(prod(gate.shape) for gate in self.gates)
        return 8 * (self.free_words + self.dealt_words + made)

    def to_json(self) -> bytes:
        """Canonical; equal for equal plans."""
        cost = self.cost()
        document = {
            "version": self.version,
            "model": self.graph.hash,
            "objective": self.objective,
            "rounds": cost.rounds,
            "online_bytes": cost.online_bytes_per_direction,
            "correction_bytes": 8 * self.dealt_words,
            "gates": [gate.describe() for gate in self.gates],
        } | ({"streamed": True} if self.streamed else {})
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, graph: Graph) -> MpcPlan:
        """The plan of ``graph``, derived anew; refused unless it is the one that ``data`` states.

        Raises MalformedModel, UnsupportedVersion, HashMismatch, OpNotSupported.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MalformedModel("plan", got="not JSON") from error
        if not isinstance(document, dict):
            raise MalformedModel("plan", got=type(document).__name__, expected="an object")
        version = document.get("version")
        known = range(versions.LOOKUPS_ALONE, versions.PLAN_VERSION + 1)
        if version not in known or type(version) is not int:
            got = str(version)[:16]
            hint = "split the model again with this release, for every role"
            raise UnsupportedVersion("plan", got=got, expected=versions.PLAN_VERSION, hint=hint)
        objective: Any = document.get("objective")
        streamed = document.get("streamed") is True
        # plan refuses whatever is no objective
        made = plan(graph, objective, streamed=streamed, version=version)
        if made.to_json() != bytes(data):
            raise HashMismatch("plan", got="another plan", expected="the one that the graph gives")
        return made


def plan(
    graph: Graph, objective: Objective = "balanced", *, streamed: bool | None = None,
    version: int = versions.PLAN_VERSION,
) -> MpcPlan:  # fmt: skip
    """The cheapest gates for ``objective``. ``streamed``: by default where a sample's material is
    above STREAM_BYTES. ``version``: of the plan, where bundles of an earlier one are read.
    Raises OpNotSupported."""
    if objective not in get_args(Objective):
        raise MalformedModel("objective", got=objective, expected=" or ".join(get_args(Objective)))
    refuse_run_time_scales(graph, "under secret sharing")
    public = graph.public()
    made = Planner(public, objective, version).plan()
    if objective == "balanced" and version > versions.LOOKUPS_ALONE:
        share = ROUND_SHARE if version > versions.LONGER else SHARE_BEFORE
        made = Planner(public, objective, version, 8 * made.dealt_words // share).plan()
    if streamed is None:
        streamed = 8 * made.dealt_words > STREAM_BYTES
    return replace(made, streamed=streamed, version=version)


class Planner:
    """The gates of a graph, rings chosen from its end."""

    def __init__(
        self, graph: Graph, objective: Objective, version: int = versions.PLAN_VERSION,
        round_bytes: int = 0,
    ) -> None:  # fmt: skip
        """``version``: of the plan. ``round_bytes``: of material, that a round is worth where
        objectives are balanced."""
        self.graph, self.objective, self._version = graph, objective, version
        self.rings: dict[str, int] = {node.name: 1 for node in graph.nodes}
        self.looks: dict[str, Way] = {}
        self.bare: dict[str, Interval] = {}
        """Requantize whose number stays masked by XOR: what is read of them."""
        self.scalings = Scalings()
        self._round_bytes, self._new = round_bytes, version > versions.LONGER

    def plan(self) -> MpcPlan:
        for node in reversed(self.graph.nodes):
            self._demand(node)
        instead = self.scalings.gates(self.graph, self.rings)
        made = (
            instead[node.name] if node.name in instead else _MAKERS[type(node)](self, node)
            for node in self.graph.nodes
        )  # fmt: skip
        return MpcPlan(self.graph, self.objective, tuple(gate for gate in made if gate))

    def _demand(self, node: ops.Node) -> None:
        """Raise the rings of the node's inputs to what the node needs."""
        need = self.rings[node.name]
        if node.name in self.scalings.inside or self._scaled(node):
            return
        if isinstance(node, ops.Output | ops.OutputPort):
            need = self.answered(node)
        elif isinstance(node, ops.Requantize | ops.Rescale):
            need = self._looked_up(node, need)
        elif isinstance(node, ops.Embedding):
            need = 8
        elif isinstance(node, ops.TopK):
            need = self._ordered(node)[0].compare.look.ring
        elif isinstance(node, ops.MaxPool | ops.ReduceMax):
            need = self.rings[node.name] = max(need, self._compared(node))
        for name in node.inputs:
            self.rings[name] = max(self.rings[name], need)

    def _looked_up(self, node: ops.Requantize | ops.Rescale, ring: int) -> int:
        """Choose how, for an output in Z_2^ring. The ring of the input."""
        if self._version == versions.LOOKUPS_ALONE and isinstance(node, ops.Requantize):
            x = self.graph.values[node.inputs[0]].centred
            look = self.looks[node.name] = choose(node, x, self.objective, ring)
            return look.ring
        way = self.looks[node.name] = self._way(node, ring, bare=self._counted(node))
        if isinstance(node, ops.Requantize) and isinstance(way, Lookup) and not way.lifted:
            self.bare[node.name] = Interval(min(node.table), max(node.table))
        return way.ring

    def _way(self, node: ops.Requantize | ops.Rescale, ring: int, *, bare: bool = False) -> Way:
        """The cheapest for an output in Z_2^ring, or, with ``bare``, for none."""
        found = ways(self.graph, node, ring, self._version, bare=bare)
        size = self.graph.values[node.name].size
        return cheapest(found, size, ring, self.objective, self._round_bytes)

    def _scaled(self, node: ops.Node) -> bool:
        """Whether it is a product that multiplies by bits as they are opened; it is noted then."""
        if not (self._new and isinstance(node, ops.Mul) and self.opened(node)):
            return False
        latency, size = self.objective == "latency", self.graph.values[node.name].size
        each = ROUND_BITS * size if latency else 8 * self._round_bytes
        return self.scalings.take(self.graph, self.product(node), self.rings, each, self._way)

    def _counted(self, node: ops.Node) -> bool:
        """Whether counting alone reads it, which takes numbers as they are opened."""
        readers = self.graph.consumers[node.name]
        if not self._new or len(readers) > 1 or not isinstance(readers[0], ops.ReduceMax):
            return False
        return isinstance(self.maximum(readers[0]), CountingGate)

    def _ordered(self, node: ops.TopK) -> tuple[Level, ...]:
        return tournament_of(node, self.graph.values[node.inputs[0]], self.objective)

    def answered(self, node: ops.Output | ops.OutputPort) -> int:
        """Ring of what the Output, or a port of it, reads."""
        return SHARE_BITS

    def _compared(self, node: ops.Node) -> int:
        x = self.graph.values[node.inputs[0]].range
        return (x.hi - x.lo).bit_length() + 1

    def common(self, node: ops.Node) -> dict[str, Any]:
        shape = self.graph.values[node.name].shape
        return {
            "name": node.name, "inputs": node.inputs, "shape": shape, "bits": self.rings[node.name]
        }  # fmt: skip

    def zero(self, name: str) -> int:
        return self.graph.values[name].zero_point

    def opened(self, node: ops.Node) -> bool:
        """False for an accumulator that the Output reads, or ports of it."""
        return not isinstance(self.graph.consumers[node.name][0], ops.Output | ops.OutputPort)

    def shared(self, node: ops.Node) -> bool:
        """Whether some gate needs shares of the mask of an opened product: all do but those that
        read its masked value alone."""
        alone = (ops.Requantize, ops.Rescale, ops.TopK)
        readers = [n for n in self.graph.consumers[node.name] if not isinstance(n, alone)]
        return any(_MAKERS[type(n)] is not Planner.local or self.shared(n) for n in readers)

    def input(self, node: ops.Input) -> Gate:
        common = self.common(node)
        count, ring = prod(common["shape"]), common["bits"]
        free, dealt = InputGate.material(count, ring)
        payloads = (((count, InputGate.opened_bits(ring)),), ((count, ring),))
        return InputGate(**common, free_words=free, dealt_words=dealt, payloads=payloads)

    def embedding(self, node: ops.Embedding) -> Gate:
        common = self.common(node)
        sizes = prod(common["shape"][:-1]), node.rows, node.width, common["bits"]
        free, dealt = EmbeddingGate.material(*sizes)
        return EmbeddingGate(
            **common, rows=node.rows, width=node.width, free_words=free, dealt_words=dealt,
            payloads=EmbeddingGate.rounds(*sizes),
        )  # fmt: skip

    def order(self, node: ops.TopK) -> Gate:
        source, zero = self.graph.values[node.inputs[0]], self.zero(node.inputs[0])
        return ordering(node, self.common(node), self._ordered(node), source, zero)

    def output(self, node: ops.Output | ops.OutputPort) -> Gate:
        joins = isinstance(self.graph.by_name[node.inputs[0]], ops.OutputPort)
        return (JoinGate if joins else OutputGate)(**self.common(node))

    def linear(self, node: ops.Linear | ops.Conv2d) -> Gate:
        common = self.common(node)
        count = prod(common["shape"])
        opened = self.opened(node)
        return LinearGate(
            **common, node=node, zero_point=self.zero(node.inputs[0]), opened=opened,
            free_words=count if opened else 0, dealt_words=0 if opened else count,
            payloads=(((count, common["bits"]),),) if opened else (),
        )  # fmt: skip

    def requantize(self, node: ops.Requantize | ops.Rescale) -> Gate:
        common = self.common(node)
        common |= {"zero_point": self.zero(node.inputs[0]), "axis": node.axis}
        look, count = self.looks[node.name], prod(common["shape"])
        if isinstance(look, Lookup) and not look.lifted:
            common["bits"] = look.out_bits
        ring = common["bits"]
        free, dealt = RequantizeGate.material(look, count, ring)
        common |= {"free_words": free, "dealt_words": dealt}
        payloads = tuple(((count, bits),) for bits in look.payloads(ring))
        kinds: dict[type, Any] = {Ramp: RampGate, Shift: ShiftGate, Lookup: RequantizeGate}
        made: Gate = kinds[type(look)](**common, look=look, payloads=payloads)
        return made

    def local(self, node: ops.Node) -> Gate:
        sums = isinstance(node, ops.Add | ops.SumPool | ops.ReduceSum)
        zeros = tuple(self.zero(name) if sums else 0 for name in node.inputs)
        return LocalGate(**self.common(node), node=node, zero_points=zeros)

    def product(self, node: ops.MatMul | ops.Mul) -> Gate:
        common = self.common(node)
        count = prod(common["shape"])
        opened = self.opened(node)
        shared = opened and self.shared(node)
        first, second = (self.zero(name) for name in node.inputs)
        return ProductGate(
            **common, node=node, zero_points=(first, second), opened=opened, shared=shared,
            free_words=count if opened else 0, dealt_words=count if shared or not opened else 0,
            payloads=(((count, common["bits"]),),) if opened else (),
        )  # fmt: skip

    def maximum(self, node: ops.MaxPool | ops.ReduceMax) -> Gate:
        value, common = self.graph.values[node.inputs[0]], self.common(node)
        numbers = self.bare.get(node.inputs[0])
        made: list[MaximumGate | CountingGate]
        if numbers and isinstance(node, ops.ReduceMax):
            made = [*countings(node, common, value.shape, numbers, bare=True)]
        else:
            made = maxima(
                node, common, value.shape, value.range, self._compared(node), self.objective,
                tables_alone=self._version == versions.LOOKUPS_ALONE,
                counts=self._version > versions.TOURNAMENTS_ALONE, tallies=self._new,
            )  # fmt: skip
        return cheapest_maximum(made, self.objective, self._round_bytes)


_MAKERS: dict[type[ops.Node], Callable[[Planner, Any], Gate]] = {
    ops.Input: Planner.input,
    ops.InputPort: Planner.local,
    ops.LookupPort: Planner.local,
    ops.IdPort: Planner.local,
    ops.Embedding: Planner.embedding,
    ops.Linear: Planner.linear,
    ops.Conv2d: Planner.linear,
    ops.MatMul: Planner.product,
    ops.Mul: Planner.product,
    ops.Add: Planner.local,
    ops.SumPool: Planner.local,
    ops.ReduceSum: Planner.local,
    ops.Requantize: Planner.requantize,
    ops.Rescale: Planner.requantize,
    ops.MaxPool: Planner.maximum,
    ops.ReduceMax: Planner.maximum,
    ops.TopK: Planner.order,
    ops.Reshape: Planner.local,
    ops.Transpose: Planner.local,
    ops.Slice: Planner.local,
    ops.Gather: Planner.local,
    ops.Concat: Planner.local,
    ops.OutputPort: Planner.output,
    ops.Output: Planner.output,
}
