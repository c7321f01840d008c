"""Maximum before requantize: where, and that it changes no integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.onehost import order
from secure_quant.onehost.cases import JointCases
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.order import ROUND, ordered, swappable
from secure_quant.onehost.plan import OneHostPlan, plan
from secure_quant.onehost.ramp import JointRamp
from tests.unit.mpc.protocol.graphs import RELU, Builder, lenet
from tests.unit.onehost.drive import pair
from tests.unit.onehost.ends import Ends, inputs

FALLING = tuple(reversed(RELU))


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


def pooled(kernel: Any = (2, 2), stride: Any = (2, 2), padding: Any = (0, 0), **how: Any) -> Graph:
    b = Builder((2, 7, 7), zero_point=-4, seed=3)
    x = b.requantize("r", b.conv("c", "x", 2, 3, (2, 2)), **({"shift": 7} | how))
    node = ops.MaxPool(name="p", inputs=(x,), kernel=kernel, stride=stride, padding=padding)
    return b.graph(b.add(node))


def kinds(graph: Graph) -> dict[str, type]:
    return {gate.name: type(gate) for gate in ordered(graph.public())}


@pytest.mark.parametrize(
    "how",
    [
        {}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"multiplier": (3, 200, 17), "shift": 12}, {"offset": 77 << 7},
    ],
)  # fmt: skip
def test_the_same_integers_either_way(how: Any, pairs: list[Pairing]) -> None:
    graph = pooled(**how)
    assert swappable(graph.public()) == {"r": "p"}
    assert kinds(graph)["r"] is MaximumGate or "padding" in how
    for seed in range(3):
        q = inputs(graph, 2, seed)
        assert np.array_equal(Ends(graph, pairs).infer(q), reference.run_int(graph, q))


def test_a_ramp_follows_a_maximum(pairs: list[Pairing]) -> None:
    """Where the table is one and the ramp takes less: at both clamped ends and between."""
    graph = pooled(table=tuple(range(-128, 128)), multiplier=(200,), shift=13, offset=128 << 13)
    halves = plan(graph.public()).halves
    assert isinstance(halves["r"], JointMaximum)
    assert isinstance(halves["p"], JointRamp)
    for seed in range(3):
        q = inputs(graph, 2, seed)
        assert np.array_equal(Ends(graph, pairs).infer(q), reference.run_int(graph, q))


def test_what_is_not_monotone_stays(pairs: list[Pairing]) -> None:
    graph = pooled(table=FALLING)
    assert swappable(graph.public()) == {}
    assert kinds(graph)["r"] is RequantizeGate
    q = inputs(graph, 1)
    assert np.array_equal(Ends(graph, pairs).infer(q), reference.run_int(graph, q))


def test_what_has_another_reader_stays(pairs: list[Pairing]) -> None:
    for shared in ("r", "c"):
        b = Builder((2, 6, 6), seed=3)
        x = b.requantize("r", b.conv("c", "x", 2, 3, (1, 1)), shift=7)
        p = b.pool("p", x, stride=(1, 1))
        other = x if shared == "r" else b.requantize("t", "c", shift=8)
        flat = [
            b.add(ops.Reshape(name=f"f{i}", inputs=(name,), shape=(count,)))
            for i, (name, count) in enumerate(((p, 75), (other, 108)))
        ]
        joined = ops.Concat(name="j", inputs=tuple(flat), axis=0)
        graph = b.graph(b.add(joined, Interval(0, 255)))
        assert swappable(graph.public()) == {}
        q = inputs(graph, 1)
        assert np.array_equal(Ends(graph, pairs).infer(q), reference.run_int(graph, q))


def test_it_pays_on_a_lenet() -> None:
    graph = lenet()
    assert kinds(graph)["r1"] is MaximumGate
    assert kinds(graph)["p1"] is RampGate
    cost = plan(graph.public(), 500_000).cost()
    assert sum(cost.cots) < 400_000
    # 0.7 MB of products both ways besides 1.2 MB of homomorphic messages; 39 and 49 KB online.
    assert cost.material_up + cost.material_down < 2_000_000
    assert cost.online_up < 50_000
    assert cost.online_down < 60_000


def test_a_small_requantize_saves_an_exchange(pairs: list[Pairing]) -> None:
    """By cases where that shortens the longest way and takes at most ROUND bits more."""
    graph = lenet()
    made = plan(graph.public())
    by_cases = {name for name, half in made.halves.items() if isinstance(half, JointCases)}
    assert by_cases == {"r3", "r4"}
    assert len(made.by_name["r3"].payloads) == 2 < len(made.by_name["p1"].payloads)
    without = plan_without(graph)
    assert made.flights == without.flights - 2
    more = [made.cost(1), without.cost(1)]
    bytes_ = [cost.offline_bytes_up + cost.offline_bytes_down for cost in more]
    assert 0 < bytes_[0] - bytes_[1] <= 2 * ROUND // 8
    q = inputs(graph, 2)
    assert np.array_equal(Ends(graph, pairs).infer(q), reference.run_int(graph, q))


def plan_without(graph: Graph) -> OneHostPlan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "ROUND", -1)
        return plan(graph.public())


def test_what_does_not_shorten_the_longest_way_is_not_taken() -> None:
    """Two ways to a sum, one of them longer by itself: the short one's stays as it is."""
    b = Builder((32,), zero_point=5)
    first = b.requantize("a", b.linear("f", "x", 32, 8), shift=9)
    second = b.requantize("b2", b.linear("g", "x", 32, 8), shift=9)
    second = b.requantize("b4", b.linear("h", second, 8, 8), shift=9)
    joined = b.add(ops.Concat(name="j", inputs=(first, second), axis=0))
    made = plan(b.graph(b.linear("y0", joined, 16, 3)).public())
    kinds = {name: type(half) for name, half in made.halves.items()}
    assert kinds["a"] is not JointCases
    assert kinds["b2"] is kinds["b4"] is JointCases
