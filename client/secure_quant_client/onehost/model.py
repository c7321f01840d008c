"""A model as a client of one host knows it, and its inferences over a pairing.

Unlike other engines' programs these yield no calls: a pairing has a stream and threads of its own,
and an inference waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import PeerUnavailable, ServiceError
from secure_quant.ir import Graph
from secure_quant.ir.course import Course, Step
from secure_quant.ir.effort import effort
from secure_quant.onehost.order import exchanges
from secure_quant.onehost.plan import MAX_BATCH, OneHostPlan
from secure_quant.onehost.stream import Driven
from secure_quant.reference.executor import check_int8
from secure_quant.wire import info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant_client.driver import CLOSED, Deadline
from secure_quant_client.forks import forgotten_by_children
from secure_quant_client.onehost.pairing import PAUSE_S, Made, Paired
from secure_quant_client.program import Program, Told
from secure_quant_client.progress import Progress
from secure_quant_client.stats import Inference, InferenceStats
from secure_quant_client.trust import bound_unpinned, require_plausible

__all__ = ["OneHostModel", "Pair", "patience"]

Pair = Callable[[OneHostPlan], Paired]


def patience(graph: Graph) -> float:
    """Seconds of a sample: several times what slow, busy cores took, with nothing made ahead."""
    return effort(graph).seconds(8e-8, 8e-5, 1.0)


class OneHostModel:
    """The public graph, its hash checked, the plan, made anew from it, and the present pairing."""

    def __init__(self, plan: OneHostPlan, pair: Pair) -> None:
        self.plan, self._pair = plan, pair
        self._paired: Paired | None = None
        self._closed = False
        self._turn, self._choosing = Lock(), Lock()
        forgotten_by_children(self)

    @classmethod
    def receive(cls, info: ModelInfo, expected_hash: str | None, pair: Pair) -> OneHostModel:
        """Raises HashMismatch, MalformedModel and its kin, MalformedMessage; MessageTooLarge for a
        model too large to be taken unasked."""
        received = info_from_proto(info, expected_hash=expected_hash)
        values = received.graph.values.values()
        held = 8 * sum(prod(value.shape) for value in values)
        bound_unpinned("model", held, expected_hash)
        plan = OneHostPlan.from_json(received.plan, received.graph)
        cost = plan.cost()
        bound_unpinned("model", held + cost.material_up + cost.material_down, expected_hash)
        return cls(plan, pair)

    @property
    def graph(self) -> Graph:
        """Public."""
        return self.plan.graph

    @property
    def batch(self) -> int:
        """Most samples of one item; a host may allow fewer."""
        return MAX_BATCH

    def forget(self) -> None:
        """In a forked process: the pairing is the parent's."""
        self._paired, self._turn, self._choosing = None, Lock(), Lock()

    def close(self) -> None:
        """Give the pairing up, with its items."""
        with self._choosing:
            self._closed = True
            if self._paired is not None:
                self._paired.end(ServiceError(CLOSED))

    def paired(self) -> Paired:
        """The pairing that lives, or a new one. Raises ServiceError once closed."""
        with self._choosing:
            if self._closed:
                raise ServiceError(CLOSED)
            if self._paired is None or not self._paired.alive:
                self._paired = self._pair(self.plan)
            return self._paired

    def prepare(self, batch: int, deadline: Deadline) -> None:
        """Pair, and have the stock for ``batch`` samples full. Raises DeadlineExceeded,
        BudgetExceeded, PeerUnavailable and the like."""
        deadline.allow(self.patience_s(batch))
        paired = self.paired()
        paired.fill(min(batch, paired.most(deadline)), deadline)

    def patience_s(self, samples: int) -> float:
        return samples * patience(self.graph)

    def infer(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[Inference[np.int64]]:
        """int8[batch, *input shape] -> int64[batch, *output shape], some samples at a time; threads
        take turns.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange, MalformedMessage, ImplausibleAnswer,
        DeadlineExceeded, BudgetExceeded, PeerUnavailable. What was begun is not repeated.
        """
        start = time.perf_counter()
        whole = check_int8(self.graph, q).astype(np.int8)
        meter, found = _Meter(), list[NDArray[np.int64]]()
        while not self._turn.acquire(timeout=min(PAUSE_S, deadline.remaining())):
            yield Told()
        try:
            paired, most = self._reached(deadline)
            watch = Watch(self.plan, -(-len(whole) // most)) if watched else None
            for first in range(0, len(whole), most):
                running = paired.infer(whole[first : first + most], deadline)
                made, driven = yield from _paused(running, watch)
                found.append(driven.result)
                meter.rounds += driven.flights
                meter.up, meter.down = meter.up + driven.sent, meter.down + driven.received
                meter.ahead_up += made.bytes_up
                meter.ahead_down += made.bytes_down
                meter.ahead_seconds += made.seconds
        finally:
            self._turn.release()
        shape = self.graph.values[self.graph.output.name].shape
        y = np.concatenate(found) if found else np.empty((0, *shape), np.int64)
        require_plausible(self.graph, {self.graph.output.name: y})
        return Inference(y, meter.stats(time.perf_counter() - start, len(y)))

    def _reached(self, deadline: Deadline) -> tuple[Paired, int]:
        """A pairing, and the samples of an item. One that turns out to be dead before anything of
        the input was sent is replaced, once."""
        paired = self.paired()
        try:
            return paired, paired.most(deadline)
        except PeerUnavailable:
            paired = self.paired()
            return paired, paired.most(deadline)


class Watch:
    """How far an inference is. parts: of the input, one after the other."""

    def __init__(self, plan: OneHostPlan, parts: int) -> None:
        gates = (Step(gate.name, gate.inputs, exchanges(gate)) for gate in plan.gates)
        self._course, self._parts = Course(plan.graph, gates, plan.flights), parts
        self._done = 0

    def at(self, flights: int) -> Told:
        """After so many exchanges of a part."""
        place = self._course.at(self._done + min(flights, self._course.rounds), self._parts)
        return Told.of(Progress(place.thousandths / 1000, place.rounds, place.of, place.stage))

    def next(self) -> None:
        """A part is done."""
        self._done += self._course.rounds


def _paused(
    running: Generator[int, None, tuple[Made, Driven[NDArray[np.int64]]]], watch: Watch | None
) -> Program[tuple[Made, Driven[NDArray[np.int64]]]]:
    """The same, with a word at every pause."""
    try:
        while True:
            flights = next(running)
            yield Told() if watch is None else watch.at(flights)
    except StopIteration as end:
        if watch is not None:
            watch.next()
        made: tuple[Made, Driven[NDArray[np.int64]]] = end.value
        return made
    finally:
        running.close()


class _Meter:
    """What an inference cost so far."""

    def __init__(self) -> None:
        self.rounds = self.up = self.down = self.ahead_up = self.ahead_down = 0
        self.ahead_seconds = 0.0

    def stats(self, latency: float, samples: int) -> InferenceStats:
        return InferenceStats(
            latency=latency, samples=samples, rounds=self.rounds, bytes_up=self.up,
            bytes_down=self.down, offline_bytes_up=self.ahead_up,
            offline_bytes_down=self.ahead_down, flights=self.rounds,
            offline_seconds=self.ahead_seconds,
        )  # fmt: skip
