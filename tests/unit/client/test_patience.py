"""A deadline that nobody asked for grows with the work; one that somebody did stays."""

from __future__ import annotations

import asyncio
from math import prod
from typing import Any

import pytest

from secure_quant.errors import DeadlineExceeded
from secure_quant.ir import Graph, ops
from secure_quant.ir import effort as module
from secure_quant.ir.effort import ROUND_TRIP_S, Effort, between_parties_s, effort
from secure_quant.mpc.protocol.plan import plan
from secure_quant.transport import Limits
from secure_quant_client.driver import Deadline
from secure_quant_client.mpc.model import MpcModel, _rounds
from tests.clock import run
from tests.unit.mpc.protocol import graphs


def test_only_a_deadline_of_nobodys_grows() -> None:
    own, default = Deadline(30), Deadline(30, fixed=False)
    for each in (own, default):
        each.allow(300)
        each.allow(3)
    assert own.remaining() <= 30
    assert 290 < default.remaining() <= 300
    assert Limits().deadline_s is None
    assert Limits().round_trip_s == ROUND_TRIP_S


def test_a_task_that_is_bounded_already_gets_it_too() -> None:
    async def work(fixed: bool) -> float:
        loop = asyncio.get_running_loop()
        deadline, start = Deadline(1.0, fixed=fixed), loop.time()
        try:
            async with deadline.bounding():
                deadline.allow(50.0)
                await asyncio.sleep(1000)
        except DeadlineExceeded:
            return loop.time() - start
        raise AssertionError("no deadline")

    assert 0.9 < run(work(True)) <= 1.5
    assert 49 < run(work(False)) <= 51


def test_effort_of_a_lenet_by_hand() -> None:
    graph = graphs.lenet().public()
    convolutions = 6 * 28 * 28 * 75 + 16 * 10 * 10 * 150
    linear = 400 * 120 + 120 * 84 + 84 * 10
    found = effort(graph)
    tables = sum(
        graph.values[node.name].size for node in graph.nodes if isinstance(node, ops.Requantize)
    )
    assert found.products == convolutions + linear
    assert found.lookups == tables + 6 * 28 * 28 + 16 * 10 * 10
    assert found.depth == 5 + 4 + 2
    assert found.seconds(1.0, 0.0, 0.0) == found.products


def test_every_engines_patience_grows_with_samples_and_model() -> None:
    from secure_quant_client.he.model import HeModel
    from secure_quant_client.onehost.model import OneHostModel

    def stub(kind: Any, graph: Graph) -> Any:
        stated = {"graph": graph, "rounds": None, "round_trip_s": 0.1}
        made = type("Stub", (), stated | {"patience_s": kind.patience_s})
        return made()

    small, large = graphs.mlp().public(), graphs.lenet().public()
    assert prod(small.input.shape) < prod(large.input.shape)
    for kind in (MpcModel, HeModel, OneHostModel):
        one, two = stub(kind, small), stub(kind, large)
        assert 0 < one.patience_s(1) < two.patience_s(1) < 30
        assert two.patience_s(8) == 8 * two.patience_s(1)


@pytest.mark.parametrize(
    ("work", "rounds", "idle_s"),
    [  # bench/RESULTS.md: seconds of a call on two idle cores
        pytest.param(Effort(1_814_073_344, 4_039_680, 45), 108, 1.2, id="resnet18"),
        pytest.param(Effort(4_089_184_256, 17_438_208, 117), 260, 4.4, id="resnet50"),
        pytest.param(Effort(11_179_527_168, 23_540_736, 275), 574, 8.5, id="bert-base"),
    ],
)
def test_two_parties_have_time_for_large_models_also_far_apart(
    work: Effort, rounds: int, idle_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "effort", lambda _: work)
    graph = graphs.mlp().public()
    near, far = (between_parties_s(graph, rounds, round_trip) for round_trip in (0.0005, 0.3))
    assert near > 8 * idle_s  # beside other work
    assert far - near == pytest.approx(rounds * 0.2995)
    assert MpcModel(graph, 1, rounds, 0.3).patience_s(2) == 2 * far


def test_rounds_count_no_further_than_the_graph_makes_plausible() -> None:
    graph = graphs.lenet().public()
    depth, none = effort(graph).depth, between_parties_s(graph, 0, 0.1)
    for said in (10**4, 10**300):
        assert between_parties_s(graph, said, 0.1) == none + 1.6 * (depth + 1)
    assert plan(graph).rounds < 8 * depth  # far from where that begins to matter


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff", b"[]", b"{}", b'{"rounds":-1}', b'{"rounds":true}', b"[" * 10**5,
     b'{"rounds":1e9}'],
)  # fmt: skip
def test_a_plan_that_states_no_rounds_is_as_good(said: bytes) -> None:
    assert _rounds(said) is None
    assert _rounds(plan(graphs.mlp()).to_json()) == plan(graphs.mlp()).rounds
