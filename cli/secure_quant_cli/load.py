"""Two ways to ask for inferences: one at a time with a rest before each, and without a pause.

The first gives the online latency, the second what can be sustained with the offline work done
beside it. Every answer is compared with the reference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant_cli.comparison import mismatches
from secure_quant_cli.console import Progress

if TYPE_CHECKING:
    from secure_quant.ir import Graph

__all__ = ["Infer", "Online", "Rest", "Sustained", "online", "sustained"]

Infer = Callable[[NDArray[np.int8]], NDArray[np.int64]]
"""int8[batch, *input shape] -> the integers at the Output."""

Cpu = Callable[[], dict[str, float]]
"""CPU seconds so far, by role."""

WARM_UP = 3
DIFFERENT = 16
"""Inputs of the sustained run; their answers are known before it starts."""


class Rest:
    """Waits until the roles have nothing left to do: material for the next inference is there."""

    STEP_S = 0.05
    QUIET = 0.2
    """Cores in use that count as none: clocks tick 10 ms, and one tick may fall into a step."""
    FIRST_S, LONGEST_S = 60.0, 5.0
    """Longest waits: the first, while the dealer fills its stock, and those after it."""

    def __init__(self, cpu: Cpu, prepare: Callable[[], None] | None = None) -> None:
        """cpu: of everything that works ahead of demand. prepare: makes what a client can ask for,
        however long that takes."""
        self._cpu, self._limit, self._prepare = cpu, self.FIRST_S, prepare

    def __call__(self) -> float:
        """Wait; the seconds it took."""
        start = time.monotonic()
        if self._prepare is not None:
            self._prepare()
        made = time.monotonic() - start
        start = time.monotonic()
        limit, self._limit = self._limit, self.LONGEST_S
        spent = self._total()
        while True:
            time.sleep(self.STEP_S)
            before, spent = spent, self._total()
            waited = time.monotonic() - start
            if spent - before <= self.QUIET * self.STEP_S + 1e-9 or waited > limit:
                return made + waited

    def _total(self) -> float:
        # Workers are counted in their role already.
        return sum(s for role, s in self._cpu().items() if not role.endswith("_workers"))


@dataclass(frozen=True)
class Online:
    """Milliseconds of each timed call, and of the rest before each; integers that differ."""

    latencies_ms: list[float]
    rests_ms: list[float]
    mismatches: int

    def figures(self, batch: int) -> dict[str, float | int]:
        """As ``bench`` names them; ``batch`` samples a call."""
        middle = median(self.latencies_ms)
        return {
            "latency_ms_median": middle,
            "latency_ms_p90": float(np.percentile(self.latencies_ms, 90)),
            "rest_ms_median": median(self.rests_ms),
            "inferences_per_second": batch * 1e3 / middle,
            "mismatches": self.mismatches,
        }


@dataclass(frozen=True)
class Sustained:
    """Of the second half of a run, ``seconds`` long: what was made ahead before it is used up.

    latencies_ms: of the calls that ended in it, while others were in flight. cpu: seconds by role.
    mismatches: of the whole run.
    """

    seconds: float
    latencies_ms: list[float]
    cpu: dict[str, float]
    mismatches: int

    def figures(self, batch: int) -> dict[str, float | dict[str, float] | None]:
        """As ``bench`` names them; ``batch`` samples a call."""
        samples = batch * len(self.latencies_ms)
        if not samples:
            return {"sustained_per_second": 0.0}
        return {
            "sustained_per_second": samples / self.seconds,
            "sustained_latency_ms_median": median(self.latencies_ms),
            "sustained_latency_ms_p90": float(np.percentile(self.latencies_ms, 90)),
            "cpu_ms_per_inference": {
                role: 1e3 * spent / samples for role, spent in self.cpu.items()
            },
        }


def online(
    graph: Graph, infer: Infer, *, batch: int, runs: int, rest: Rest | None, line: Progress
) -> Online:
    """``runs`` timed calls of ``batch`` random samples, after WARM_UP that do not count."""
    rng = np.random.default_rng(0)
    latencies: list[float] = []
    rests: list[float] = []
    wrong = 0
    for turn in range(WARM_UP + runs):
        q = _inputs(rng, graph, batch)
        expected = reference.run_int(graph, q)
        rested = rest() if rest is not None else 0.0
        start = time.perf_counter()
        made = infer(q)
        took = time.perf_counter() - start
        wrong += mismatches(expected, made)
        if turn >= WARM_UP:
            latencies.append(1e3 * took)
            rests.append(1e3 * rested)
            line.part(len(latencies), runs)
    return Online(latencies, rests, wrong)


@dataclass
class _Tally:
    """What one client saw: (end, seconds) of each call."""

    calls: list[tuple[float, float]] = field(default_factory=list)
    mismatches: int = 0


def sustained(
    graph: Graph, clients: Sequence[Infer], *, batch: int, seconds: float, cpu: Cpu
) -> Sustained:
    """Each of ``clients`` in a thread of its own, call after call for ``seconds``."""
    rng = np.random.default_rng(1)
    inputs = [_inputs(rng, graph, batch) for _ in range(DIFFERENT)]
    known = [(q, reference.run_int(graph, q)) for q in inputs]
    stop = threading.Event()

    def ask(infer: Infer, first: int) -> _Tally:
        tally, turn = _Tally(), first
        try:
            while not stop.is_set():
                q, expected = known[turn % DIFFERENT]
                start = time.perf_counter()
                made = infer(q)
                end = time.perf_counter()
                tally.calls.append((end, end - start))
                tally.mismatches += mismatches(expected, made)
                turn += 1
        except BaseException:
            stop.set()  # the others need not go on
            raise
        return tally

    with ThreadPoolExecutor(len(clients)) as pool:
        try:
            threads = [pool.submit(ask, infer, 5 * i) for i, infer in enumerate(clients)]
            stop.wait(seconds / 2)
            middle, before = time.perf_counter(), cpu()
            stop.wait(seconds / 2)
            end, after = time.perf_counter(), cpu()
        finally:
            stop.set()
        tallies = [thread.result() for thread in threads]
    return Sustained(
        end - middle,
        [1e3 * took for tally in tallies for at, took in tally.calls if middle < at <= end],
        {role: spent - before.get(role, 0.0) for role, spent in after.items()},
        sum(tally.mismatches for tally in tallies),
    )


def _inputs(rng: np.random.Generator, graph: Graph, batch: int) -> NDArray[np.int8]:
    return rng.integers(-128, 128, (batch, *graph.input.shape), np.int8)
