"""Ranges of sums: never tighter than what happens, and tight where summands reach their ends."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.sum_cases import SUMS
from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.plan import MpcPlan, plan
from secure_quant.mpc.protocol.reach import reach
from secure_quant.reference import trace
from tests.unit.mpc.protocol import graphs


@pytest.mark.parametrize("case", SUMS, ids=lambda case: case.__name__)
def test_no_value_is_outside(case: object) -> None:
    """Of sums of sums, by channel and over rows, each by the reference."""
    graph: Graph = case()  # type: ignore[operator]
    rng = np.random.default_rng(1)
    for _ in range(50):
        q = rng.choice([-128, 127, rng.integers(-128, 128)], graph.input.shape).astype(np.int8)
        for name, value in trace(graph, q[None]).items():
            zero = graph.values[name].zero_point
            found = reach(graph, name)
            assert found.within(graph.values[name].centred)
            assert found.lo <= value.min() - zero
            assert value.max() - zero <= found.hi


def test_one_sided_sums() -> None:
    build = graphs.Builder((2, 4))
    low = build.requantize("low", "x", table=tuple(range(16)), zero_point=0, shift=4, offset=128)
    nodes = [
        *build.nodes,
        ops.Reshape(name="same", inputs=(low,), shape=(2, 4)),
        ops.Add(name="d", inputs=("x", "same"), factors=(1, -16), bound=512, scale=1.0),
        ops.ReduceSum(name="s", inputs=("d",), bound=2048, scale=1.0),
        ops.Output(name="out", inputs=("s",), scale=1.0),
    ]
    graph = Graph(nodes=tuple(nodes), parameters={})
    assert reach(graph, "d") == Interval(-128 - 15 * 16, 127)
    assert reach(graph, "s") == Interval(4 * -368, 4 * 127)
    assert graph.values["s"].range == Interval(-2048, 2048)


def test_plans_before_are_derived_as_they_were() -> None:
    graph = graphs.lenet().public()
    for version in (2, 3, 4, 5):
        made = plan(graph, version=version)
        assert f'"version":{version}'.encode() in made.to_json()
        assert MpcPlan.from_json(made.to_json(), graph).to_json() == made.to_json()
