"""Seconds that ``inspect`` predicts: from rates and plans, and what is kept of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from unit.he.models import lenet
from unit.mpc.protocol.graphs import mlp

from secure_quant.engines import find, resolved
from secure_quant.ir import ops
from secure_quant.mpc.protocol.plan import plan
from secure_quant_cli import prediction
from secure_quant_cli.engines import Way, exact

GRAPH = lenet()


def test_rates_that_made_the_times_are_found() -> None:
    work = np.array([[1e3, 10.0, 24.0], [1e6, 1e5, 4.0], [1e9, 3e4, 4.0]])
    rates = np.array([2e-9, 3e-7, 5e-5])
    assert np.allclose(prediction._solved(work, work @ rates), rates)


def test_no_rate_is_below_zero() -> None:
    work = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [5.0, 1.0, 1.0]])
    found = prediction._solved(work, work @ np.array([1.0, -0.5, 2.0]))
    assert min(found) == 0.0
    assert max(found) > 0.5


@pytest.mark.parametrize("engine", ["mpc", "he", "onehost"])
def test_what_the_network_adds_is_the_plans(engine: str) -> None:
    plan = resolved(find(engine).plan)(GRAPH.public())
    way = exact(engine).way(plan, 1)
    found = prediction.predicted(engine, plan, 1, (0.0, 0.0, 0.0))
    assert found["50 ms"] - found["20 ms"] == pytest.approx(way.trips * 0.03, abs=2e-5)
    assert found["20 ms"] == pytest.approx(way.hops + way.trips * 0.02 + way.sent * 8e-8, abs=2e-5)
    slower = prediction.predicted(engine, plan, 1, (1e-9, 1e-6, 1e-3))
    extra = way.work[0] * 1e-9 + way.work[1] * 1e-6 + way.work[2] * 1e-3
    assert slower["here"] - found["here"] == pytest.approx(extra, abs=2e-5)


def test_more_samples_are_more_work() -> None:
    made = plan(GRAPH)
    one, eight = (exact("mpc").way(made, batch) for batch in (1, 8))
    assert eight.work[:2] == tuple(8 * each for each in one.work[:2])
    assert eight.trips == one.trips


def test_a_streamed_model_waits_for_whoever_makes_its_material(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    way = Way(1, 0, 0.0, (2.0, 0.0, 0.0), beside=10**9)
    rates = [0.0] * 12
    rates[::3] = [1.0, 3.0, 0.5, 2.0]  # online, dealing, the expansions of both parties
    carried = 1e9 * prediction._CARRIED_S
    apart, together = prediction._computing(way, tuple(rates))  # dealer 6, parties 3 and 6
    assert apart == pytest.approx(6 + carried)
    assert together == pytest.approx((6 + 3 + 6 + 2 * carried) / 2)
    rates[3] = 30.0
    assert prediction._computing(way, tuple(rates)) == pytest.approx((60 + carried,) * 2)


@pytest.mark.parametrize("engine", ["mpc", "he", "onehost"])
def test_memory_grows_with_the_model(engine: str) -> None:
    make, memory = resolved(find(engine).plan), exact(engine).memory
    small, large = (memory(make(graph.public()), 1) for graph in (mlp(), GRAPH))
    roles = {role.name for role in find(engine).roles}
    assert set(small) == {*roles, "client"}
    for role in roles:
        assert 10**8 < small[role] <= large[role] < 10**9


def test_material_that_is_held_is_what_a_lane_and_a_dealer_hold() -> None:
    from secure_quant.mpc.protocol.bundle import load_party, split
    from secure_quant.mpc.runtime.options import LaneOptions
    from secure_quant.mpc.runtime.staging import make_stock

    program = load_party(split(GRAPH)["party1"])
    stock = make_stock(1, {"m": program}, LaneOptions())
    said = exact("mpc").held
    assert said is not None
    assert said(program.plan)["party1"] == stock.depth("m")
    one, more = (exact("mpc").memory(program.plan, batch) for batch in (1, 100))
    item = 8 * program.plan.dealt_words
    assert stock.depth("m") < 100
    grown = 99 * program.plan.expanded_bytes
    assert more["party0"] - one["party0"] == grown
    ahead = 1.2 * (100 - stock.depth("m")) * item
    assert more["party1"] - one["party1"] == pytest.approx(grown + ahead, abs=2)


def test_memory_of_what_was_measured() -> None:
    """bench/RESULTS.md: a ResNet-18 and -50, and the layers of a BERT-base. Here by hand, of a plan
    with such figures."""
    gates = [SimpleNamespace(free_words=0, dealt_words=6 * 10**6)] * 3
    measured = (
        (11_700_000, (0.83, 0.89), 0.48),
        (25_500_000, (1.02, 1.14), 0.53),
        (160_600_000, (2.67, 2.80), 1.02),
    )
    for weights, parties, dealer in measured:
        node = ops.Linear(
            name="f", inputs=("x",), in_features=weights, out_features=1, bias=False, bound=1,
            scale=1.0,
        )  # fmt: skip
        made = SimpleNamespace(
            graph=SimpleNamespace(nodes=[node]), streamed=True, order=gates, dealt_words=10**8,
            window_bytes=60 * 10**6,
        )  # fmt: skip
        found = exact("mpc").memory(made, 1)
        for role, expected in zip(("party0", "party1", "dealer"), (*parties, dealer), strict=True):
            assert found[role] / 1e9 == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("engine", ["mpc", "he"])
def test_graphs_to_measure_run_as_the_reference_says(engine: str) -> None:
    from secure_quant import reference

    graph = next(prediction._graphs())
    q = np.random.default_rng(0).integers(-128, 128, (1, 16, 1, 1)).astype(np.int8)
    run = exact(engine).in_process(graph)(q)
    assert np.array_equal(run.values["y"], reference.run_int(graph, q))
    assert run.online > 0


def test_rates_are_kept_for_this_machine_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "rates.json"
    prediction._write(path, {"mpc": (1.0, 2.0, 3.0)})
    assert prediction._read(path) == {"mpc": (1.0, 2.0, 3.0)}
    monkeypatch.setattr(prediction, "__version__", "9.9.9")
    assert prediction._read(path) == {}
    half = json.dumps({prediction._here(): {"mpc": 4}})
    for text in ("", "{}", "[1]", '{"x": 3}', half):
        path.write_text(text)
        assert prediction._read(path) == {}
