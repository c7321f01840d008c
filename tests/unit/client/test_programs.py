"""Each engine's program against a scripted transport: no network, no thread, no event loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from unit.client.he.test_walk import inputs, net
from unit.client.test_mpc_model import received
from unit.he.leveled.models import random_model
from unit.mpc.protocol import graphs

from secure_quant import reference
from secure_quant.errors import (
    ImplausibleAnswer,
    PeerUnavailable,
    PlanMismatch,
    SessionNotFound,
    ValueOutOfRange,
)
from secure_quant.he.bundle import load_client, load_server, split
from secure_quant.he.leveled.plan import plan as plan_leveled
from secure_quant.he.leveled.wire import request_bytes, response_bytes
from secure_quant.keystream import Keystream
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearResponse,
    EvaluateModelResponse,
    GetModelResponse,
    LeveledInfo,
    OpenSessionResponse,
)
from secure_quant.wire.gen.share_inference_pb2 import InferResponse
from secure_quant_client.driver import Deadline
from secure_quant_client.he.model import HeModel
from secure_quant_client.leveled.model import RemoteLeveled
from secure_quant_client.leveled.sessions import Sessions
from secure_quant_client.mpc.model import IN_FLIGHT
from secure_quant_client.program import Ahead, Call, Program

Script = Callable[[Sequence[Call]], list[Any]]


def played(program: Program[Any], script: Script) -> tuple[Any, list[tuple[str, ...]], int]:
    """(the result, the methods of each round, the most rounds that were ahead at once). The script
    answers a round or raises what the program is told."""
    rounds: list[tuple[str, ...]] = []
    ahead: deque[Sequence[Call]] = deque()
    most, go_on, sent = 0, program.send, None
    while True:
        try:
            calls = go_on(sent)
        except StopIteration as done:
            assert not ahead
            return done.value, rounds, most
        go_on, sent = program.send, []
        if calls:
            rounds.append(tuple(call.method for call in calls))
        if isinstance(calls, Ahead):
            ahead.append(calls)
            most = max(most, len(ahead))
            continue
        try:
            sent = script(calls or ahead.popleft())
        except SessionNotFound as error:
            go_on, sent = program.throw, error


class Parties:
    """Both parties of one graph, who open the input that they must not know."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.ids, self.samples = graph, set(), []

    def __call__(self, calls: Sequence[Call]) -> list[InferResponse]:
        assert [call.server for call in calls] == [1, 0]  # the seed goes first
        seed, share = (call.request for call in calls)
        assert seed.request_id == share.request_id not in self.ids
        self.ids.add(share.request_id)
        octets = np.frombuffer(share.share, np.uint8)
        q = (octets ^ Keystream(seed.seed).bytes(octets.size)).view(np.int8)
        y = reference.run_int(self.graph, q.reshape(share.batch, *self.graph.input.shape))
        self.samples.append(share.batch)
        pad = np.random.default_rng(len(self.ids)).integers(0, 2**64, y.shape, np.uint64)
        halves = (pad, y.astype(np.uint64) - pad)
        return [InferResponse(share=half.astype("<u8").tobytes()) for half in halves]


@pytest.mark.parametrize("samples", [1, 32, 33, 32 * 9 + 5])
def test_secret_sharing_a_few_parts_at_a_time(samples: int) -> None:
    graph = graphs.mlp()
    model, parties = received(graph), Parties(graph)
    q = np.random.default_rng(samples).integers(-128, 128, (samples, 64)).astype(np.int8)
    (y, stats), rounds, most = played(model.infer(q, Deadline(60)), parties)
    assert np.array_equal(y, reference.run_int(graph, q))
    parts = -(-samples // 32)
    assert rounds == [("Infer", "Infer")] * parts
    assert most == min(parts, IN_FLIGHT)
    assert stats.samples == samples == sum(parties.samples)
    assert stats.bytes_up == samples * 64 + parts * 32


def test_secret_sharing_sends_nothing_of_a_bad_input() -> None:
    q = np.zeros((3, 64), np.int64)
    q[2, 5] = 128
    with pytest.raises(ValueOutOfRange):
        next(received(graphs.mlp()).infer(q, Deadline(60)))


def he_model(graph: Any, **options: Any) -> tuple[HeModel, Script]:
    """(a model that was fetched, its server)."""
    bundles = split(graph)
    evaluator, (public, plan) = load_server(bundles["server"]), load_client(bundles["client"])

    def script(calls: Sequence[Call]) -> list[EvaluateLinearResponse]:
        requests = [call.request for call in calls]
        assert all(request.model_hash == graph.hash for request in requests)
        return [
            EvaluateLinearResponse(ciphertexts=evaluator.evaluate(r.step, r.batch, r.ciphertexts))
            for r in requests
        ]

    info = info_to_proto(public, plan.to_json())
    options = {"message_bytes": 2**26, "stock": 0} | options
    return HeModel.receive(info, graph.hash, **options), script


@pytest.mark.parametrize("samples", [1, 3])
def test_homomorphic_encryption_a_round_at_a_time(samples: int) -> None:
    graph = net()
    model, script = he_model(graph)
    q = inputs(graph, samples)
    (y, stats), rounds, most = played(model.infer(q, Deadline(60)), script)
    assert np.array_equal(y, reference.run_int(graph, q))
    assert [len(each) for each in rounds] == [3, 1, 1]
    assert (stats.rounds, stats.samples, most) == (3, samples, 0)
    assert {method for each in rounds for method in each} == {"EvaluateLinear"}


def test_homomorphic_encryption_in_parts_of_what_a_message_holds() -> None:
    graph = net()
    model, script = he_model(graph, message_bytes=1)
    assert model.batch == 1
    q = inputs(graph, 3)
    (values, stats), rounds, _ = played(model.trace(q, Deadline(60)), script)
    assert all(np.array_equal(values[k], v) for k, v in reference.trace(graph, q).items())
    assert (len(rounds), stats.rounds, stats.samples) == (9, 9, 3)


def test_a_plan_is_made_again_once_a_batch_and_a_bad_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = net()
    model, script = he_model(graph)
    made: list[int] = []
    own = type(model.plan).require_own

    def counted(plan: Any, batch: int, going_on: Any) -> None:
        made.append(batch)
        own(plan, batch, going_on)
        if batch == 3:
            raise PlanMismatch("plan", got="another")

    monkeypatch.setattr(type(model.plan), "require_own", counted)
    for batch in (1, 2, 1, 2):
        played(model.infer(inputs(graph, batch), Deadline(60)), script)
    for _ in range(2):
        with pytest.raises(PlanMismatch):
            next(model.infer(inputs(graph, 3), Deadline(60)))
    assert made == [1, 2, 3, 3]


def test_a_session_goes_back_when_its_program_fails_or_is_dropped() -> None:
    model, _ = he_model(net())
    for fails in (False, True):
        program = model.infer(inputs(net(), 1), Deadline(60))
        assert next(program)
        assert model.stock._running == 1
        if fails:
            with pytest.raises(PeerUnavailable) as kept:
                program.throw(PeerUnavailable("gone"))
            assert kept.value.__traceback__ is not None  # it holds the program's frames
        else:
            program.close()
        assert model.stock._running == 0


SHALLOW = random_model((9, 6, 3), seed=1)
PLAN = plan_leveled(SHALLOW)


class Lender:
    """A leveled server: all its answers decrypt to zeros. It forgets sessions when told to."""

    def __init__(self) -> None:
        self.opened, self.known = 0, set()

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        (call,) = calls
        if call.method == "OpenSession":
            assert b"".join(piece.keys for piece in call.request)
            self.opened += 1
            self.known.add(bytes([self.opened] * 16))
            return [OpenSessionResponse(session_id=bytes([self.opened] * 16))]
        if call.request.session_id not in self.known:
            raise SessionNotFound("session")
        samples = len(call.request.ciphertexts) // request_bytes(PLAN)
        return [EvaluateModelResponse(ciphertexts=bytes(response_bytes(PLAN)) * samples)]


def shallow() -> RemoteLeveled:
    info = LeveledInfo(public_model=SHALLOW.public().to_json(), plan=PLAN.to_json())
    options = {"message_bytes": 2**26, "answers_per_key": 64, "tolerance": 1.0}
    return RemoteLeveled.receive(GetModelResponse(leveled=info), SHALLOW.hash, **options)


def test_leveled_opens_a_session_once_and_again_when_it_was_forgotten() -> None:
    sessions, server, model, x = Sessions(), Lender(), shallow(), np.zeros((17, 9))

    def infer() -> tuple[Any, list[tuple[str, ...]]]:
        return played(sessions.infer(model, x, time.perf_counter()), server)[:2]

    (y, stats), rounds = infer()
    assert np.array_equal(y, np.zeros((17, 3)))
    assert rounds == [("OpenSession",), ("EvaluateModel",), ("EvaluateModel",)]
    assert (stats.samples, stats.rounds) == (17, 2)
    assert infer()[1] == [("EvaluateModel",)] * 2
    server.known.clear()
    assert infer()[1] == [("EvaluateModel",), ("OpenSession",)] + [("EvaluateModel",)] * 2
    assert sessions.key_bytes_up > 0
    assert server.opened == 2


def test_leveled_opens_a_session_again_only_once() -> None:
    sessions, model = Sessions(), shallow()

    class Forgetful(Lender):
        def __call__(self, calls: Sequence[Call]) -> list[Any]:
            answers = super().__call__(calls)
            self.known.clear()
            return answers

    server = Forgetful()
    with pytest.raises(SessionNotFound):
        played(sessions.infer(model, np.zeros((1, 9)), 0.0), server)
    assert server.opened == 2
    assert sessions.current is None


def implausible() -> EvaluateModelResponse:
    """Residues, all of them, that no evaluation gives."""
    octets = np.frombuffer(np.random.default_rng(1).bytes(response_bytes(PLAN)), np.uint8) & 0x1F
    return EvaluateModelResponse(ciphertexts=octets.tobytes())


def test_leveled_gives_a_key_up_when_an_answer_cannot_be() -> None:
    sessions, server = Sessions(), Lender()

    def deviating(calls: Sequence[Call]) -> list[Any]:
        (answer,) = server(calls)
        return [implausible() if isinstance(answer, EvaluateModelResponse) else answer]

    with pytest.raises(ImplausibleAnswer):
        played(sessions.infer(shallow(), np.zeros((1, 9)), 0.0), deviating)
    assert sessions.current is None


def test_leveled_a_step_that_ends_late_takes_no_key_from_the_program_after_it() -> None:
    sessions, model, server = Sessions(), shallow(), Lender()
    sessions.current, _, _ = played(sessions.opened(model), server)
    late = sessions.infer(model, np.zeros((1, 9)), 0.0)
    next(late)
    sessions.renew()
    played(sessions.infer(model, np.zeros((1, 9)), 0.0), server)
    successor = sessions.current
    with pytest.raises(ImplausibleAnswer):
        late.send([implausible()])
    assert sessions.current is successor is not None
