"""A deadline that nobody asked for grows with the work; one that somebody did stays."""

from __future__ import annotations

import asyncio
from math import prod
from typing import Any

from secure_quant.errors import DeadlineExceeded
from secure_quant.ir import Graph, ops
from secure_quant.ir.effort import Effort, effort
from secure_quant.transport import Limits
from secure_quant_client.driver import Deadline
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
    from secure_quant_client.mpc.model import MpcModel
    from secure_quant_client.onehost.model import OneHostModel

    def stub(kind: Any, graph: Graph) -> Any:
        made = type("Stub", (), {"graph": graph, "patience_s": kind.patience_s})
        return made()

    small, large = graphs.mlp().public(), graphs.lenet().public()
    assert prod(small.input.shape) < prod(large.input.shape)
    for kind in (MpcModel, HeModel, OneHostModel):
        one, two = stub(kind, small), stub(kind, large)
        assert 0 < one.patience_s(1) < two.patience_s(1) < 30
        assert two.patience_s(8) == 8 * two.patience_s(1)
    resnet50 = Effort(4_100_000_000, 17_000_000, 160)
    assert 100 < resnet50.seconds(6e-9, 9e-6, 0.5) < 1000
