"""The public plan of a model under homomorphic encryption: made from the public graph alone, the
same on every machine, small, and checked in full by whoever receives it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, TypeVar, get_args

from secure_quant.errors import (
    InsecureRefused,
    MalformedModel,
    PlanMismatch,
    UnsupportedVersion,
    ValueOutOfRange,
)
from secure_quant.he.geometry import Geometry
from secure_quant.he.noise import Scaling, distance, margin
from secure_quant.he.packing import Packing, Tile
from secure_quant.he.parameters import TIERS, Parameters, Tier
from secure_quant.he.search import (
    MAX_BATCH,
    MAX_WEIGHT_BYTES,
    Objective,
    layer_of,
    search,
)
from secure_quant.he.wire import Call, HeCost
from secure_quant.ir import Graph
from secure_quant.ir.ops import Conv2d, Linear
from secure_quant.ir.ports import refuse_secret_tables

__all__ = ["MAX_BATCH", "Call", "HeCost", "HePlan", "Layout", "Step", "plan"]

VERSION = 2
MAX_PLAN_BYTES = 2**24
MAX_MESSAGE = 2**30
"""Bytes of a request or response for one sample; no sensible layout comes near."""
BATCH_CLASSES = (1, 2, 4, 8, 16, 32, 64)
"""A layout is planned for each of these; a batch uses the one of the largest class within it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a step is packed and scaled for batches of ``batch`` samples and more."""

    batch: int
    ring: Parameters
    tile: Tile
    scaling: Scaling


@dataclass(frozen=True)
class Step:
    """One Linear or Conv2d node, evaluated by the server on ciphertexts."""

    node: str
    geometry: Geometry
    layouts: tuple[Layout, ...]

    def layout(self, batch: int) -> Layout:
        """Raises ValueOutOfRange for a batch outside 1 to MAX_BATCH."""
        if not 1 <= batch <= MAX_BATCH:
            raise ValueOutOfRange("batch", got=batch, expected=f"1 to {MAX_BATCH}")
        return [layout for layout in self.layouts if layout.batch <= batch][-1]

    def call(self, batch: int) -> Call:
        """Raises as ``layout``."""
        return _call(self.geometry, self.layout(batch), batch)

    def distance(self, batch: int) -> float:
        """See ``HePlan.distance``: of this step's answer. Raises as ``layout``."""
        layout, layer = self.layout(batch), layer_of(self.geometry, self.layout(batch).tile)
        wanted = self.call(batch).packing.outputs
        return distance(layer, layout.ring, layout.scaling, wanted)


@lru_cache(maxsize=4096)
def _call(geometry: Geometry, layout: Layout, batch: int) -> Call:
    return Call(
        Packing(geometry, layout.tile, layout.ring.degree, batch), layout.ring, layout.scaling
    )


@dataclass(frozen=True)
class HePlan:
    """Steps in the graph's order, one per Linear or Conv2d node. ``graph`` is public."""

    graph: Graph
    objective: Objective
    tier: Tier
    steps: tuple[Step, ...]

    def cost(self, batch: int = 1) -> HeCost:
        """Exact cost of one inference of ``batch`` samples. Raises ValueOutOfRange."""
        return sum((step.call(batch).cost for step in self.steps), HeCost(0, 0, 0, 0))

    def distance(self, batch: int = 1) -> float:
        """By how much, in statistical distance, all answers to one inference of ``batch`` samples
        can differ from what their accumulators alone would give: the sum over all wanted
        coefficients. Proven under T1-strict; under T1 it may exceed 1 and says nothing.

        Raises ValueOutOfRange. Source: docs/spec/ckks.md 6.
        """
        return sum(step.distance(batch) for step in self.steps)

    @cached_property
    def step_of(self) -> Mapping[str, int]:
        """Node name -> index of its step."""
        return {step.node: index for index, step in enumerate(self.steps)}

    def require_own(self, batch: int, going_on: Callable[[], object] = lambda: None) -> None:
        """That the layouts for ``batch`` samples are those that ``plan`` chooses here for this
        graph, objective and tier. ``from_json`` proves a peer's plan sound; only this keeps it
        from asking for more work or bytes than it must.

        ``going_on`` is called before each step, some hundredths of a second of work, and may raise.
        Raises PlanMismatch, ValueOutOfRange, OpNotSupported.
        """
        for step in self.steps:
            going_on()
            used = step.layout(batch)
            chosen = _layouts(step.node, step.geometry, self.objective, self.tier, batch)
            if chosen[-1] != used:
                raise PlanMismatch(
                    f"plan of {step.node!r}", got=f"another layout for batches of {used.batch}",
                    expected="the one that this release chooses",
                    hint="a server of the same release, or one that does not tell the truth",
                )  # fmt: skip

    def to_json(self) -> bytes:
        """Canonical JSON, UTF-8."""
        steps = [
            {"node": step.node, "layouts": [asdict(layout) for layout in step.layouts]}
            for step in self.steps
        ]
        document = {
            "version": VERSION, "objective": self.objective, "tier": self.tier, "steps": steps,
        }  # fmt: skip
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, graph: Graph) -> HePlan:
        """A plan for ``graph``, every number of it checked: the rings are ours, each tile fits,
        and the noise bound and the hiding ratio hold.

        Raises MalformedModel, UnsupportedVersion, InsecureRefused.
        """
        document = _document(data)
        objective, tier = document["objective"], document["tier"]
        if objective not in get_args(Objective) or tier not in get_args(Tier):
            raise MalformedModel("plan", got="another objective or tier", expected="known ones")
        public, nodes = graph.public(), _linear_nodes(graph)
        if len(document["steps"]) != len(nodes):
            raise MalformedModel("steps", got=len(document["steps"]), expected=len(nodes))
        steps = []
        for node, record in zip(nodes, document["steps"], strict=True):
            record = _record(record, {"node", "layouts"}, "step")
            if record["node"] != node.name or not isinstance(record["layouts"], list):
                raise MalformedModel("step", got=str(record["node"])[:80], expected=node.name)
            geometry = Geometry.of(public, node)
            layouts = tuple(_layout(entry, geometry, tier) for entry in record["layouts"])
            starts = [layout.batch for layout in layouts]
            if not starts or starts[0] != 1 or starts != sorted(set(starts)):
                raise MalformedModel("batches of layouts", got=starts[:8], expected="1, then more")
            steps.append(Step(node.name, geometry, layouts))
        return cls(public, objective, tier, tuple(steps))


def plan(graph: Graph, objective: Objective = "latency", tier: Tier = "T1") -> HePlan:
    """The plan of a graph, public or not: weights are not looked at.

    Raises OpNotSupported if a layer cannot be exact in any ring of the tier.
    """
    refuse_secret_tables(graph.nodes, "under homomorphic encryption")
    public = graph.public()
    steps = []
    for node in _linear_nodes(graph):
        geometry = Geometry.of(public, node)
        layouts = _layouts(node.name, geometry, objective, tier, MAX_BATCH)
        steps.append(Step(node.name, geometry, layouts))
    return HePlan(public, objective, tier, tuple(steps))


def _layouts(
    name: str, geometry: Geometry, objective: Objective, tier: Tier, batch: int
) -> tuple[Layout, ...]:
    """For the batch classes up to ``batch``; one that changes neither ring nor tile has none of
    its own. Raises OpNotSupported."""
    layouts: list[Layout] = []
    for size in (each for each in BATCH_CLASSES if each <= batch):
        ring, tile, scaling = search(name, geometry, size, tier, objective)
        if not layouts or (layouts[-1].ring, layouts[-1].tile) != (ring, tile):
            layouts.append(Layout(size, ring, tile, scaling))
    return tuple(layouts)


def _linear_nodes(graph: Graph) -> list[Linear | Conv2d]:
    return [node for node in graph.nodes if isinstance(node, Linear | Conv2d)]


def _document(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_PLAN_BYTES:
        raise MalformedModel("plan", got=f"{len(data)} bytes", expected=f"<= {MAX_PLAN_BYTES}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedModel("plan is not JSON") from error
    document = _record(document, {"version", "objective", "tier", "steps"}, "plan")
    if document["version"] != VERSION:
        raise UnsupportedVersion("plan", got=str(document["version"])[:80], expected=VERSION)
    if not isinstance(document["steps"], list):
        raise MalformedModel("steps", got=type(document["steps"]).__name__, expected="a list")
    return document


def _record(value: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise MalformedModel(what, got="other fields", expected=sorted(names))
    return value


def _integers(kind: type[T], value: Any, limit: int) -> T:
    """A dataclass of integers in 0 to ``limit``."""
    record = _record(value, {f.name for f in fields(kind)}, kind.__name__)  # type: ignore[arg-type]
    if not all(type(n) is int and 0 <= n <= limit for n in record.values()):
        raise MalformedModel(kind.__name__, got="a field out of range", expected=f"0 to {limit}")
    return kind(**record)


def _layout(value: Any, geometry: Geometry, tier: Tier) -> Layout:
    record = _record(value, {"batch", "ring", "tile", "scaling"}, "layout")
    batch = record["batch"]
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise MalformedModel("batch of a layout", got=str(batch)[:80], expected=f"1 to {MAX_BATCH}")
    ring = _ring(record["ring"], tier)
    tile = _integers(Tile, record["tile"], ring.degree)
    fits = (
        min(tile.rows, tile.merge, tile.cin, tile.cout) >= 1
        and tile.coefficients <= ring.degree
        and geometry.kh <= tile.height <= geometry.height
        and geometry.kw <= tile.width <= geometry.width
        and tile.merge <= geometry.groups
        and tile.cin <= geometry.cin * tile.merge
        and tile.cout <= geometry.cout * tile.merge
    )
    if not fits or _weight_bytes(geometry, tile, ring) > MAX_WEIGHT_BYTES:
        raise MalformedModel("tile", got=asdict(tile), expected="one that fits ring and layer")
    scaling = _integers(Scaling, record["scaling"], 2**62 - 1)
    drops = (scaling.drop_up, scaling.drop_key, scaling.drop_c1, scaling.drop_c0)
    if max(drops) >= ring.prime.bit_length():
        raise MalformedModel("scaling", got=asdict(scaling), expected="less than the prime's bits")
    room, hiding = margin(layer_of(geometry, tile), ring, tier, scaling)
    if room <= 0:
        raise MalformedModel("scaling", got=asdict(scaling), expected="errors below half a step")
    if hiding < 1:
        raise InsecureRefused("flooding noise of the plan", got="too little", expected=tier)
    if len(ring.primes) > 1 and (scaling.drop_up or scaling.drop_key):
        raise MalformedModel("dropped bits", got=drops, expected="none upward with two primes")
    layout = Layout(batch, ring, tile, scaling)
    cost = _call(geometry, layout, 1).cost
    if max(cost.bytes_up, cost.bytes_down) > MAX_MESSAGE:
        raise MalformedModel("layout", got="messages too large", expected=f"<= {MAX_MESSAGE} bytes")
    return layout


def _ring(value: Any, tier: Tier) -> Parameters:
    for known in TIERS[tier]:
        if json.loads(json.dumps(asdict(known))) == value:
            return known
    raise InsecureRefused("ring of the plan", got="another", expected=f"one of tier {tier}")


def _weight_bytes(geometry: Geometry, tile: Tile, ring: Parameters) -> int:
    packing = Packing(geometry, tile, ring.degree, 1)
    return 8 * packing.grid[1] * packing.n_in * packing.n_out * ring.degree * len(ring.primes)
