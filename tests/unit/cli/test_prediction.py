"""Seconds that ``inspect`` predicts: from rates and plans, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from unit.he.models import lenet

from secure_quant_cli import prediction
from secure_quant_cli.engines import exact

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
    way = exact(engine).way(GRAPH, 1)
    found = prediction.predicted(engine, GRAPH, 1, (0.0, 0.0, 0.0))
    assert found["50 ms"] - found["20 ms"] == pytest.approx(way.trips * 0.03, abs=2e-5)
    assert found["20 ms"] == pytest.approx(way.hops + way.trips * 0.02 + way.sent * 8e-8, abs=2e-5)
    slower = prediction.predicted(engine, GRAPH, 1, (1e-9, 1e-6, 1e-3))
    extra = way.work[0] * 1e-9 + way.work[1] * 1e-6 + way.work[2] * 1e-3
    assert slower["here"] - found["here"] == pytest.approx(extra, abs=2e-5)


def test_more_samples_are_more_work() -> None:
    one, eight = (exact("mpc").way(GRAPH, batch) for batch in (1, 8))
    assert eight.work[:2] == tuple(8 * each for each in one.work[:2])
    assert eight.trips == one.trips


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
