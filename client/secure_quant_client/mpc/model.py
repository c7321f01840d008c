"""A model as a secret-sharing client knows it, and the program of an inference: splits inputs for
two parties, adds up answers."""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import HashMismatch, MalformedMessage
from secure_quant.ir import Graph
from secure_quant.ir.effort import ROUND_TRIP_S, ROUNDS_A_STEP, between_parties_s, effort
from secure_quant.reference.executor import check_int8
from secure_quant.wire import SHARING, check_sharing, info_from_proto
from secure_quant.wire.gen.share_inference_pb2 import (
    InferRequest,
    InferResponse,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_progress_pb2 import WatchRequest, WatchResponse
from secure_quant_client.mpc.sharing import join, share_seeded
from secure_quant_client.program import OLDEST, Ahead, Call, Program, Watching
from secure_quant_client.progress import Progress
from secure_quant_client.stats import Inference, InferenceStats
from secure_quant_client.trust import bound_unpinned, require_plausible

if TYPE_CHECKING:
    from secure_quant_client.driver import Deadline

__all__ = ["IN_FLIGHT", "Meter", "MpcModel"]

PART = 32
"""Most samples of one call, also where the parties take more: all material of a call has to lie at
the parties before it begins, and 64 samples of a LeNet are all that a lane's stock holds."""

IN_FLIGHT = 4
"""Parts of one large input that are under way at once."""

Part = tuple[InferRequest, InferRequest]
"""Some samples on their way: a request for each party, under one fresh id."""

AROUND = 1024
"""What protobuf and the rest of a request add to a share, at most."""


@dataclass(frozen=True)
class MpcModel:
    """graph: public, its hash recomputed from what both parties sent. batch: most samples of one
    call, as few as either party takes; larger inputs travel as several, a few at a time. rounds: of
    a call, as the parties' plan says; None where it does not. round_trip_s: of one, at most."""

    graph: Graph
    batch: int
    rounds: int | None = None
    round_trip_s: float = ROUND_TRIP_S

    @classmethod
    def receive(
        cls,
        answers: Sequence[ShareInferenceServiceGetModelResponse],
        expected_hash: str | None,
        *,
        message_bytes: int,
        round_trip_s: float = ROUND_TRIP_S,
    ) -> MpcModel:
        """``message_bytes``: largest message.

        Raises HashMismatch if a party's model is not what it says, not what was expected, or
        not the other party's; MalformedMessage if a party is not the one it should be, or
        shares inputs in another way."""
        graphs, rounds = [], []
        for party, answer in enumerate(answers):
            if answer.party != party:
                hint = "give party 0's address first"
                raise MalformedMessage("party", got=answer.party, expected=party, hint=hint)
            check_sharing(answer.sharing)
            received = info_from_proto(answer.info, expected_hash=expected_hash)
            graphs.append(received.graph)
            rounds.append(_rounds(received.plan))
        if graphs[0].hash != graphs[1].hash:
            raise HashMismatch(
                "the parties serve different models", got=graphs[1].hash, expected=graphs[0].hash
            )
        graph = graphs[0]
        up, down = prod(graph.input.shape), 8 * prod(graph.values[graph.output.name].shape)
        bound_unpinned("model", 2 * (8 * up + down), expected_hash)
        taken = (answer.batch or PART for answer in answers)
        most = max(1, min(PART, *taken, (message_bytes - AROUND) // max(up, down)))
        said = [each for each in rounds if each is not None]
        return cls(graph, most, max(said, default=None), round_trip_s)

    def patience_s(self, samples: int) -> float:
        """Several times what two parties and a dealer on slow, busy cores took, and every round's
        way there and back."""
        rounds = ROUNDS_A_STEP * effort(self.graph).depth if self.rounds is None else self.rounds
        return samples * between_parties_s(self.graph, rounds, self.round_trip_s)

    def infer(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[Inference[np.int64]]:
        """int8[batch, *input shape] -> int64[batch, *output shape]: a part is made when there is
        room to send it. Raises as ``parts``, ``open`` and ``joined``."""
        meter, watch = Meter(), Watch(self.graph, len(q)) if watched else None
        sent: deque[Part] = deque()
        found: list[NDArray[np.int64]] = []
        for part in self.parts(q):
            sent.append(part)
            # Party 1's goes first: it is small, and there by the time party 0 offers the inference.
            yield Ahead(Call("Infer", part[party], party) for party in (1, 0))
            if watch is not None:
                yield watch.part(part)
            if len(sent) == IN_FLIGHT:
                found.append(self._opened(sent.popleft(), (yield OLDEST), meter))
        while sent:
            found.append(self._opened(sent.popleft(), (yield OLDEST), meter))
        return Inference(self.joined(found), meter.stats())

    def _opened(
        self, part: Part, answers: Sequence[InferResponse], meter: Meter
    ) -> NDArray[np.int64]:
        in_order = answers[::-1]
        meter.part(part, in_order)
        return self.open(part, in_order)

    def parts(self, q: NDArray[Any]) -> Iterator[Part]:
        """int8[batch, *input shape] -> calls. Raises ShapeMismatch, DtypeMismatch,
        ValueOutOfRange."""
        values = check_int8(self.graph, q)
        for start in range(0, len(values), self.batch):
            yield self._part(values[start : start + self.batch])

    def _part(self, values: NDArray[np.int64]) -> Part:
        request_id = secrets.token_bytes(16)
        share, seed = share_seeded(values.astype(np.int8))  # in range: check_int8
        first, second = (
            InferRequest(
                model_hash=self.graph.hash, request_id=request_id, batch=len(values),
                sharing=SHARING, **half,
            )
            for half in ({"share": share.tobytes()}, {"seed": seed})
        )  # fmt: skip
        return first, second

    def open(self, part: Part, answers: Sequence[InferResponse]) -> NDArray[np.int64]:
        """Both parties' answers -> int64[samples, *output shape]. Raises MalformedMessage."""
        shape = self.graph.values[self.graph.output.name].shape
        samples = part[0].batch
        expected = 8 * samples * prod(shape)
        for answer in answers:
            if len(answer.share) != expected:
                got = f"{len(answer.share)} bytes"
                raise MalformedMessage("output share", got=got, expected=expected)
        shares = [
            np.frombuffer(answer.share, "<u8").astype(np.uint64, copy=False) for answer in answers
        ]
        return join(shares[0], shares[1]).reshape(samples, *shape)

    def joined(self, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """The answers to consecutive parts, once the last is there. Raises ImplausibleAnswer: what
        a party adds to its share makes nearly any value mod 2^64."""
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        require_plausible(self.graph, {self.graph.output.name: whole})
        return whole


class Watch:
    """How far the parts of an input are, as party 0 says: of each the latest word."""

    def __init__(self, graph: Graph, samples: int) -> None:
        self._names = {node.name for node in graph.nodes}
        self._samples = max(samples, 1)
        self._parts: list[tuple[int, WatchResponse]] = []

    def part(self, part: Part) -> Watching:
        """A part that was sent."""
        place, samples = len(self._parts), part[0].batch
        self._parts.append((samples, WatchResponse()))

        def hear(answer: WatchResponse) -> Progress:
            self._parts[place] = samples, answer
            return self._whole(answer)

        request = WatchRequest(request_id=part[0].request_id)
        return Watching.by(Call("Watch", request), hear)

    def _whole(self, latest: WatchResponse) -> Progress:
        done = sum(samples * min(each.thousandths, 1000) for samples, each in self._parts)
        rounds, of = (
            sum(getattr(each, name) for _, each in self._parts) for name in ("rounds", "of")
        )
        stage = latest.stage if latest.stage in self._names else ""
        return Progress(min(done / (1000 * self._samples), 1.0), min(rounds, of), of, stage)


def _rounds(plan: bytes) -> int | None:
    """Of a call, as a plan of secret sharing states them, which nothing but a deadline depends on;
    None where it states none."""
    try:
        found = json.loads(plan)["rounds"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return found if type(found) is int and found >= 0 else None


class Meter:
    """Adds up one inference."""

    def __init__(self) -> None:
        self._start, self._samples = time.perf_counter(), 0
        self._up = self._down = self._rounds = self._online = self._microseconds = 0
        self._offline = [0, 0]

    def part(self, part: Part, answers: Sequence[InferResponse]) -> None:
        """Count one finished part."""
        self._samples += part[0].batch
        self._up += sum(len(request.share) + len(request.seed) for request in part)
        self._down += sum(len(answer.share) for answer in answers)
        stats = [answer.stats for answer in answers]
        self._rounds += stats[0].rounds
        self._online += max(each.online_bytes_sent for each in stats)
        self._microseconds += max(each.engine_microseconds for each in stats)
        for party, each in enumerate(stats):
            self._offline[party] += each.offline_bytes

    def stats(self) -> InferenceStats:
        """engine_seconds: the slower party's time in the protocol, its network included."""
        return InferenceStats(
            latency=time.perf_counter() - self._start,
            samples=self._samples,
            rounds=self._rounds,
            bytes_up=self._up,
            bytes_down=self._down,
            online_bytes_per_direction=self._online,
            offline_bytes_party0=self._offline[0],
            offline_bytes_party1=self._offline[1],
            engine_seconds=self._microseconds / 1e6,
        )
