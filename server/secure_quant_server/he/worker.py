"""One evaluation process: parses what clients send, so that a crash costs one request."""

from __future__ import annotations

import gc
import select
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

from secure_quant.wire import info_to_proto
from secure_quant_server.common.memory import keep_freed_memory
from secure_quant_server.common.workers import WorkerKind
from secure_quant_server.he.child import answer_one, load_all, run
from secure_quant_server.he.frames import ANSWERS

if TYPE_CHECKING:
    from secure_quant.he.evaluate import Evaluator

__all__ = ["KIND", "Stock", "describe", "load", "serve"]

# Longer than a client computes between two layers, so that stock is made between inferences.
IDLE_S = 0.01
# What is made faster than a client computes is made at once: so many coefficients take 0.4 ms.
QUICK = 2**14
STOCK_BYTES = 256 * 2**20
"""Of all models together."""

KEPT = 32 * 2**20
"""Bytes of freed memory that a worker keeps: what a request of a usual model takes."""

Kind = tuple[int, int, int]
"""(model, step, batch)"""


def serve(link: socket.socket) -> int:
    """Entry point of the process; see ``run``."""
    keep_freed_memory(KEPT)
    return run(link, _serve)


KIND = WorkerKind(
    name="he",
    entry="secure_quant_server.he.worker:serve",
    modules=("secure_quant_server.he.worker", "secure_quant.he.bundle"),
    answers=ANSWERS,
)


class Stock:
    """Which input-independent halves to make ahead while nobody waits. How many are kept, and for
    which kinds of call, is each evaluator's business."""

    def __init__(self, evaluators: list[Evaluator]) -> None:
        self._evaluators = evaluators
        self._short: OrderedDict[Kind, None] = OrderedDict()

    @property
    def patience(self) -> float | None:
        """Seconds without a request after which to make one; None if there is nothing to make."""
        if not self._short:
            return None
        model, step, batch = next(iter(self._short))
        call = self._evaluators[model].plan.steps[step].call(batch)
        size = call.ciphertexts_down * call.ring.degree * len(call.ring.primes)
        return 0.0 if size <= QUICK else IDLE_S

    def note(self, kind: Kind) -> None:
        """A call of this kind was answered: replace what it used up."""
        self._short[kind] = None

    def make_one(self) -> None:
        """One more of the kind that waited longest; a full kind is wanted no more."""
        kind, _ = self._short.popitem(last=False)
        model, step, batch = kind
        if self._evaluators[model].prepare(step, batch):
            self._short[kind] = None


def load(bundle: bytes, models: int = 1) -> Evaluator:
    """The evaluator of a server bundle, one of ``models``. Raises MalformedModel and its kin."""
    from secure_quant.he.bundle import load_server  # only processes that evaluate load the engine

    return load_server(bundle, stock_memory=STOCK_BYTES // models)


def describe(evaluator: Evaluator) -> bytes:
    """The ModelInfo that clients are told, serialized."""
    info = info_to_proto(evaluator.graph, evaluator.plan.to_json())
    return info.SerializeToString(deterministic=True)


def _serve(link: socket.socket) -> None:
    evaluators = load_all(link, load, describe)
    for evaluator in evaluators:
        for step in range(len(evaluator.plan.steps)):
            evaluator.prepare(step, 1)  # the first request is no slower than the second
    gc.collect()
    gc.freeze()  # models live as long as the process
    stock = Stock(evaluators)

    def evaluate(model: int, step: int, batch: int, ciphertexts: bytes | memoryview) -> bytes:
        answer = evaluators[model].evaluate(step, batch, ciphertexts)
        stock.note((model, step, batch))
        return answer

    while True:
        while not select.select([link], [], [], stock.patience)[0]:
            stock.make_one()
        answer_one(link, evaluate)
