"""A model as a homomorphic-encryption client knows it, and the program of an inference.

A linear layer is a request to the server; every other node is the reference's own integer step.
Linear layers that do not wait for each other are requested together.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant.ir.effort import effort
from secure_quant.ir.ops import Conv2d, Linear, Node
from secure_quant.reference.executor import check_int8
from secure_quant.wire import info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant_client.he.key_stock import KeyStock
from secure_quant_client.program import Call, Program, Told
from secure_quant_client.progress import Progress
from secure_quant_client.stats import Inference, InferenceStats
from secure_quant_client.trust import bound_unpinned, require_plausible

if TYPE_CHECKING:
    from secure_quant.he.plan import HePlan
    from secure_quant_client.driver import Deadline
    from secure_quant_client.he.ckks import CkksKeys

__all__ = ["HeModel", "Request", "Values", "Walk", "largest_batch", "walk"]

COEFFICIENT_NS = 60
"""Of a ciphertext, encrypted or decrypted, about."""

Values = dict[str, NDArray[np.int64]]


class Request(NamedTuple):
    """One EvaluateLinear call."""

    step: int
    batch: int
    ciphertexts: bytes


Walk = Generator[list[Request], list[bytes], Values]
"""Yields the requests that may go out now, is sent their answers in order, returns every value."""


@dataclass(frozen=True)
class HeModel:
    """The public graph, its hash checked, and the plan, sound for the graph. ``check`` comes before
    the plan is used."""

    graph: Graph
    plan: HePlan
    stock: KeyStock
    batch: int
    """Samples that go into one walk."""
    _own: set[int] = field(default_factory=set, repr=False, compare=False)
    """Batches for which the plan is the one made here."""

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
        if batch not in self._own:
            self.plan.require_own(batch, deadline.remaining)
            self._own.add(batch)

    def prepare(self, batch: int, deadline: Deadline) -> None:
        """Make the stock for ``batch`` full. Raises as ``check``."""
        self.check(batch, deadline)
        self.stock.fill(batch, deadline)

    def patience_s(self, samples: int) -> float:
        """Several times what a server on slow, busy cores took."""
        return samples * effort(self.graph).seconds(8e-8, 1e-6, 1.0)

    def infer(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[Inference[np.int64]]:
        """int8[batch, *input shape] -> int64[batch, *output shape]. Raises as ``trace``."""
        values, stats = yield from self.trace(q, deadline, watched=watched)
        return Inference(values[self.graph.output.name], stats)

    def trace(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[tuple[Values, InferenceStats]]:
        """int8[batch, *input shape] -> every node's value, and what it cost. Raises as ``parts``,
        ``check``, ``walk`` and ``joined``."""
        meter, walked = Meter(), []
        watch = Watch(self.plan, -(-len(q) // self.batch)) if watched else None
        for part in self.parts(q):
            self.check(len(part), deadline)
            with self.stock.session(len(part)) as session:
                walking = walk(self.graph, session, part)
                walked.append((yield from self._called(walking, meter, watch)))
            meter.samples += len(part)
        return self.joined(walked), meter.stats()

    def _called(self, walking: Walk, meter: Meter, watch: Watch | None) -> Program[Values]:
        """The walk, its requests as calls."""
        answers = None
        while True:
            try:
                requests = next(walking) if answers is None else walking.send(answers)
            except StopIteration as done:
                values: Values = done.value
                return values
            if watch is not None:
                yield watch.before(requests)
            start = time.perf_counter()
            made = yield [Call("EvaluateLinear", self.message(request)) for request in requests]
            answers = [answer.ciphertexts for answer in made]
            meter.round(requests, answers, time.perf_counter() - start)

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


class Watch:
    """How far an inference is, by the work of its layers at the server and of their ciphertexts at
    the client. parts: of the input, one after the other."""

    def __init__(self, plan: HePlan, parts: int) -> None:
        from secure_quant.he.effort import evaluated_ns

        self._names = [step.node for step in plan.steps]
        calls = [step.call(1) for step in plan.steps]
        self._work = [
            evaluated_ns(call.packing, call.ring.primes)
            + COEFFICIENT_NS * (call.ciphertexts_up + call.ciphertexts_down) * call.ring.degree
            for call in calls
        ]
        self._whole, self._of = parts * sum(self._work), parts * len(calls)
        self._done, self._steps = 0.0, 0

    def before(self, requests: list[Request]) -> Told:
        """These go out now, and all before them are answered."""
        told = Progress(
            self._done / max(self._whole, 1), self._steps, self._of,
            self._names[requests[0].step],
        )  # fmt: skip
        self._done += sum(self._work[request.step] for request in requests)
        self._steps += len(requests)
        return Told.of(told)


class Meter:
    """Adds up what one inference costs."""

    def __init__(self) -> None:
        self._start, self.samples = time.perf_counter(), 0
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
            samples=self.samples,
            rounds=self._rounds,
            bytes_up=self._up,
            bytes_down=self._down,
            engine_seconds=latency - self._waited,
        )


def walk(graph: Graph, session: CkksKeys, q: NDArray[np.int64]) -> Walk:
    """int64[batch, *input shape] holding int8 -> every node's value, int64[batch, *shape].

    ``session`` holds a secret key that no other inference has used; nothing that depends on it is
    sent but fresh encryptions of rounded integers, and nothing is sent twice, unless a replica gave
    no answer: then the same bytes.
    Raises MalformedMessage if the server's answer is not what the plan promises.
    """
    plan, batch = session.plan, len(q)
    values: Values = {graph.input.name: q}
    left = list(graph.nodes[1:])
    while left:
        left, linear = _advance(graph, left, values)
        if not linear:
            break
        steps = [plan.step_of[node.name] for node in linear]
        requests = [
            Request(step, batch, session.encrypt(step, _centred(graph, node, values)))
            for step, node in zip(steps, linear, strict=True)
        ]
        answers = yield requests
        for step, node, answer in zip(steps, linear, answers, strict=True):
            values[node.name] = session.decrypt(step, batch, answer)
    return values


def largest_batch(plan: HePlan, message_bytes: int) -> int:
    """Samples in one walk such that every message stays below the limit: a power of two, or 1."""
    from secure_quant.he.plan import MAX_BATCH

    batch = 1
    while 2 * batch <= MAX_BATCH and _largest_message(plan, 2 * batch) <= message_bytes:
        batch *= 2
    return batch


def _largest_message(plan: HePlan, batch: int) -> int:
    costs = [step.call(batch).cost for step in plan.steps]
    # What protobuf adds around the ciphertexts is well below a kilobyte.
    return 1024 + max((max(cost.bytes_up, cost.bytes_down) for cost in costs), default=0)


def _advance(
    graph: Graph, nodes: list[Node], values: Values
) -> tuple[list[Node], list[Linear | Conv2d]]:
    """Compute every node that needs no server; (nodes that wait, linear nodes ready to go)."""
    waiting: list[Node] = []
    ready: list[Linear | Conv2d] = []
    for node in nodes:
        if not all(name in values for name in node.inputs):
            waiting.append(node)
        elif isinstance(node, Linear | Conv2d):
            ready.append(node)
        else:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = reference.evaluate(graph, node, inputs)
    return waiting, ready


def _centred(graph: Graph, node: Linear | Conv2d, values: Values) -> NDArray[np.int64]:
    """x̂ = q - zero point of the node's input."""
    (name,) = node.inputs
    zero_point = graph.values[name].zero_point
    return values[name] - zero_point if zero_point else values[name]
