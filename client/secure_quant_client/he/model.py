"""A model as a homomorphic-encryption client knows it, and the sums of one inference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import Graph
from secure_quant.reference.executor import check_int8
from secure_quant.wire import info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant_client.base import Deadline
from secure_quant_client.he.key_stock import KeyStock
from secure_quant_client.he.walk import Request, Values, largest_batch
from secure_quant_client.stats import InferenceStats
from secure_quant_client.trust import bound_unpinned, require_plausible

if TYPE_CHECKING:
    from secure_quant.he.plan import HePlan

__all__ = ["HeModel", "Meter"]


@dataclass(frozen=True)
class HeModel:
    """The public graph, its hash checked, and the plan, sound for the graph. ``check`` comes before
    the plan is used."""

    graph: Graph
    plan: HePlan
    stock: KeyStock
    batch: int
    """Samples that go into one walk."""

    @classmethod
    def receive(
        cls, info: ModelInfo, expected_hash: str | None, *, message_bytes: int, stock: int
    ) -> HeModel:
        """Raises HashMismatch, MalformedModel and its kin, MalformedMessage; MessageTooLarge for a
        model too large to be taken unasked."""
        from secure_quant.he.plan import HePlan  # only who infers pays for the import

        received = info_from_proto(info, expected_hash=expected_hash)
        plan = HePlan.from_json(received.plan, received.graph)
        cost, values = plan.cost(), received.graph.values.values()
        held = 8 * sum(prod(value.shape) for value in values)
        bound_unpinned("model", held + cost.bytes_up + cost.bytes_down, expected_hash)
        sessions = KeyStock(received.graph, plan, stock)
        return cls(received.graph, plan, sessions, largest_batch(plan, message_bytes))

    def check(self, batch: int, deadline: Deadline) -> None:
        """That the server's plan for ``batch`` samples is the one that is made here; a second for a
        large model, once. Raises PlanMismatch, ValueOutOfRange, DeadlineExceeded."""
        self.plan.require_own(batch, deadline.remaining)

    def parts(self, q: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
        """``q`` as int64 in pieces that fit the message limit. Raises InputError's leaves."""
        whole = check_int8(self.graph, q)
        for start in range(0, len(whole), self.batch):
            yield whole[start : start + self.batch]

    def joined(self, parts: list[Values]) -> Values:
        """The values of consecutive parts of one batch, once the last is there. Raises
        ImplausibleAnswer."""
        whole = parts[0]
        if len(parts) > 1:
            whole = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        require_plausible(self.graph, whole)
        return whole

    def message(self, request: Request) -> EvaluateLinearRequest:
        """The protobuf of one request."""
        return EvaluateLinearRequest(
            model_hash=self.graph.hash,
            step=request.step,
            batch=request.batch,
            ciphertexts=request.ciphertexts,
        )


class Meter:
    """Adds up what one inference costs."""

    def __init__(self, samples: int) -> None:
        self._samples, self._start = samples, time.perf_counter()
        self._rounds = self._up = self._down = 0
        self._waited = 0.0

    def round(self, requests: list[Request], answers: list[bytes], waited: float) -> None:
        """One round trip: what went out, what came back, seconds in between."""
        self._rounds += 1
        self._up += sum(len(request.ciphertexts) for request in requests)
        self._down += sum(map(len, answers))
        self._waited += waited

    def stats(self) -> InferenceStats:
        """``engine_seconds`` is the client's own work: protecting, opening, integer steps."""
        latency = time.perf_counter() - self._start
        return InferenceStats(
            latency=latency,
            samples=self._samples,
            rounds=self._rounds,
            bytes_up=self._up,
            bytes_down=self._down,
            engine_seconds=latency - self._waited,
        )
