"""What ``bench`` measures, with clients and clocks of the test's own."""

import json
import threading
import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import PeerUnavailable
from secure_quant_cli import load
from secure_quant_cli.console import Progress
from secure_quant_cli.engines.mpc import offline_cpu
from secure_quant_cli.load import WARM_UP, Rest, Sustained, online, sustained
from secure_quant_cli.main import main
from secure_quant_cli.models import bench_model
from secure_quant_cli.split import split_for


@pytest.fixture(scope="module")
def graph() -> Graph:
    return bench_model("linear:4,3")


def _steps(*totals: float) -> Iterator[float]:
    yield from totals
    while True:
        yield totals[-1]


def test_a_rest_lasts_until_the_roles_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rest, "STEP_S", 0.01)
    busy = _steps(0.0, 0.01, 0.02, 0.03)
    asked = count()

    def cpu() -> dict[str, float]:
        next(asked)
        return {"dealer": next(busy), "dealer_workers": time.monotonic()}

    assert Rest(cpu)() >= 4 * 0.01
    assert next(asked) == 5  # busy at three looks, idle at the fourth


def test_a_rest_ends_though_a_role_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rest, "STEP_S", 0.01)
    monkeypatch.setattr(Rest, "FIRST_S", 0.2)
    monkeypatch.setattr(Rest, "LONGEST_S", 0.05)
    rest = Rest(lambda: {"dealer": time.monotonic()})
    assert 0.2 < rest() < ample(2)
    assert 0.05 < rest() < ample(2)


def test_what_a_client_can_ask_for_is_made_before_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rest, "FIRST_S", 0.0)
    order: list[str] = []

    def cpu() -> dict[str, float]:
        order.append("look")
        return {"onehost": 0.0}

    def prepare() -> None:
        time.sleep(0.02)  # longer than a rest may be
        order.append("made")

    assert Rest(cpu, prepare)() >= 0.02
    assert order == ["made", "look", "look"]


def test_online_rests_before_each_call_and_counts_what_differs(graph: Graph) -> None:
    order: list[str] = []

    class Resting(Rest):
        def __call__(self) -> float:
            order.append("rest")
            return 0.25

    def infer(q: np.ndarray) -> np.ndarray:
        order.append("infer")
        made = reference.run_int(graph, q)
        made[0, 0] += order.count("infer") == 2
        return made

    made = online(graph, infer, batch=2, runs=4, rest=Resting(dict), line=Progress(""))
    assert order == ["rest", "infer"] * (WARM_UP + 4)
    assert len(made.latencies_ms) == 4
    assert made.rests_ms == [250.0] * 4
    assert made.mismatches == 1
    figures = made.figures(2)
    assert figures["inferences_per_second"] == 2e3 / figures["latency_ms_median"]


def test_sustained_keeps_every_client_busy_and_checks_every_answer(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, threads = threading.Barrier(3), set[int]()
    spoiled, ended = count(), list[float]()

    def infer(q: np.ndarray) -> np.ndarray:
        if (own := threading.get_ident()) not in threads:
            threads.add(own)
            together.wait(ample(30))  # all are asked at once
        time.sleep(0.01)
        made = reference.run_int(graph, q)
        made.flat[0] += next(spoiled) < 5
        ended.append(time.perf_counter())
        return made

    class HalfOver(threading.Event):
        """Half of the time is over when each of three clients may have been asked four times."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 30.0
            enough = len(ended) + 12
            while len(ended) < enough and not self.is_set():
                time.sleep(0.001)
            return self.is_set()

    monkeypatch.setattr(load, "threading", SimpleNamespace(Event=HalfOver))
    looks: list[float] = []

    def cpu() -> dict[str, float]:
        looks.append(time.perf_counter())
        return {"dealer": float(len(looks))}

    made = sustained(graph, [infer] * 3, batch=2, seconds=60.0, cpu=cpu)
    assert len(threads) == 3
    assert made.mismatches == 5
    assert made.cpu == {"dealer": 1.0}
    # Of the second half alone; who ended just before it was over counts if it was seen in time.
    assert sum(looks[0] < end <= looks[1] for end in ended) >= 12
    assert 12 - 3 <= len(made.latencies_ms) <= len(ended) - 12 + 3
    assert min(made.latencies_ms) >= 10


def test_sustained_figures_are_per_sample() -> None:
    figures = Sustained(2.0, [10.0, 20.0, 30.0], {"dealer": 0.6}, 0).figures(4)
    assert figures["sustained_per_second"] == 6.0
    assert figures["sustained_latency_ms_median"] == 20.0
    assert figures["cpu_ms_per_inference"] == {"dealer": pytest.approx(50.0)}
    assert Sustained(2.0, [], {}, 0).figures(4) == {"sustained_per_second": 0.0}


def test_a_client_that_fails_ends_the_run(graph: Graph) -> None:
    def fails(q: np.ndarray) -> np.ndarray:
        raise PeerUnavailable("gone")

    start = time.monotonic()
    with pytest.raises(PeerUnavailable):
        sustained(
            graph, [fails, lambda q: reference.run_int(graph, q)], batch=1, seconds=60, cpu=dict
        )
    assert time.monotonic() - start < ample(10)


@pytest.mark.parametrize("objective", ["latency", "traffic"])
def test_offline_work_is_timed_role_by_role(graph: Graph, objective: str) -> None:
    spent = offline_cpu(split_for(graph, "mpc", objective), batch=2, runs=2)
    assert set(spent) == {"dealing", "expansion_party0", "expansion_party1"}
    assert all(0 < seconds < 1 for seconds in spent.values())


def test_bench_table_and_json_have_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", "linear:4,3", "--engine", "reference", "--runs", "3"]
    assert main([*command, "--seconds", "0", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sustained_per_second"] is None
    assert figures["latency_ms_median"] > 0
    assert main([*command, "--seconds", "1", "--clients", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\n  clients                             2\n" in shown
    assert "cpu per inference, client" in shown
    assert "sustained per second" in shown
