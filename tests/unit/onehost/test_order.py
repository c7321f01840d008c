"""Maximum before requantize: where, and that it changes no integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.maximum import MaximumGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.order import ordered, swappable
from secure_quant.onehost.plan import plan
from tests.unit.mpc.protocol.graphs import RELU, Builder, lenet
from tests.unit.onehost.drive import pair
from tests.unit.onehost.test_program import Ends, inputs

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
    assert kinds(graph)["p1"] is RequantizeGate
    cost = plan(graph.public(), 500_000).cost()
    assert sum(cost.cots) < 400_000
    # 0.7 MB of products both ways besides 1.2 MB of homomorphic messages; 39 and 49 KB online.
    assert cost.material_up + cost.material_down < 2_000_000
    assert cost.online_up < 50_000
    assert cost.online_down < 60_000
