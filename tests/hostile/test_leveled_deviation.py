"""A leveled server that deviates: it puts the client's secret key into an answer, and waits for
the application to give the class back. Every class tells a little, and hundreds told the key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.he.leveled.models import random_model

from secure_quant.errors import ConfigError, ImplausibleAnswer, InsecureRefused
from secure_quant.he.leveled import plan
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.leveled.wire import pack_response, request_bytes
from secure_quant.he.parameters import Parameters
from secure_quant.he.ring import ring
from secure_quant.transport import InsecurePlaintext
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateModelRequest,
    EvaluateModelResponse,
    GetModelRequest,
    GetModelResponse,
    LeveledInfo,
    OpenSessionResponse,
)
from secure_quant_client import AsyncLeveledClient, LeveledClient
from secure_quant_client.leveled.keys import LeveledKeys
from secure_quant_client.leveled.model import RemoteLeveled
from secure_quant_client.program import Call

MODEL = random_model((6, 5, 3), seed=4)
PLAN = plan(MODEL)
HASH = MODEL.hash
FIELD = ring(Parameters(PLAN.degree, PLAN.primes[:1]))
TARGET = "127.0.0.1:1"


def answer(c0: np.ndarray, c1: np.ndarray) -> bytes:
    """A response of polynomials int64[degree], given by their coefficients."""
    both = FIELD.residues(np.stack([c0, c1]))
    FIELD.forward(both)
    return pack_response(PLAN, both)


def constant(value: float) -> np.ndarray:
    made = np.zeros(PLAN.degree, np.int64)
    made[0] = round(value * PLAN.scale)
    return made


def honest() -> bytes:
    """All outputs zero."""
    return answer(constant(0), constant(0))


def leaking(strength: float = 0.01) -> bytes:
    """strength·s in the slots: the larger of two outputs tells of s at two roots of unity."""
    return answer(constant(0), constant(strength))


def test_such_an_answer_tells_of_the_key() -> None:
    """What the old client returned: classes that follow the key and nothing else."""
    from secure_quant_client.leveled import keys as module

    classes, secrets = [], []
    for _ in range(40):
        keys = LeveledKeys(PLAN)
        slots = module.all_slots(keys._ternary.astype(np.float64)).real
        secrets.append(slots[0] > slots[1])
        loose = replace(PLAN, error_bound=1e6)  # switches the check off
        keys.plan = loose
        y = keys.decrypt(leaking())
        classes.append(y[0] > y[1])
    assert classes == secrets
    assert 0 < sum(classes) < 40


@pytest.mark.parametrize("strength", [1e-6, 1e-3, 1.0])
def test_copies_that_disagree_are_refused(strength: float) -> None:
    keys = LeveledKeys(PLAN)
    assert keys.decrypt(honest()).tolist() == [0.0] * 3
    with pytest.raises(ImplausibleAnswer, match="copies of the outputs"):
        keys.decrypt(leaking(strength))


def test_the_same_number_in_all_slots_must_be_one_that_fits() -> None:
    keys = LeveledKeys(PLAN)
    within = answer(constant(PLAN.largest * 0.99), constant(0))
    assert keys.decrypt(within) == pytest.approx(np.full(3, PLAN.largest * 0.99))
    with pytest.raises(ImplausibleAnswer, match="outputs"):
        keys.decrypt(answer(constant(PLAN.largest * 1.1), constant(0)))


class Server:
    """Stands for the network: answers with ``make()`` and counts samples by session."""

    def __init__(self, made: LeveledPlan = PLAN) -> None:
        self.plan, self.make, self.samples = made, honest, []

    def ask(self, calls: Sequence[Call], deadline: Any) -> list[Any]:
        (call,) = calls
        request = call.request
        if isinstance(request, GetModelRequest):
            info = LeveledInfo(public_model=MODEL.public().to_json(), plan=self.plan.to_json())
            return [GetModelResponse(leveled=info)]
        if isinstance(request, EvaluateModelRequest):
            count = len(request.ciphertexts) // request_bytes(PLAN)
            self.samples[-1] += count
            return [EvaluateModelResponse(ciphertexts=self.make() * count)]
        assert list(request)
        self.samples.append(0)
        return [OpenSessionResponse(session_id=bytes(16))]


def sync_infer(server: Server, **options: Any) -> Callable[[int], np.ndarray]:
    client = LeveledClient(TARGET, tls=InsecurePlaintext(), expected_hash=HASH, **options)
    client._ask = server.ask  # type: ignore[method-assign]
    return lambda count: client.infer(np.zeros((count, 6)))


def async_infer(server: Server, **options: Any) -> Callable[[int], np.ndarray]:
    loop = asyncio.new_event_loop()

    async def ask(calls: Any, deadline: Any) -> list[Any]:
        return server.ask(calls, deadline)

    async def made() -> AsyncLeveledClient:
        client = AsyncLeveledClient(TARGET, tls=InsecurePlaintext(), expected_hash=HASH, **options)
        client._ask = ask  # type: ignore[method-assign]
        return client

    client = loop.run_until_complete(made())
    return lambda count: loop.run_until_complete(client.infer(np.zeros((count, 6))))


CLIENTS = pytest.mark.parametrize("infer_at", [sync_infer, async_infer])


@CLIENTS
def test_a_key_serves_64_answers_and_no_more(infer_at: Callable[..., Any]) -> None:
    server = Server()
    infer = infer_at(server)
    for count in (1, 16, 33, 14, 1, 63):
        assert infer(count).shape == (count, 3)
    assert sum(server.samples) == 128
    assert max(server.samples) <= 64
    assert len(server.samples) <= 3


@CLIENTS
def test_the_bound_is_the_callers_choice(infer_at: Callable[..., Any]) -> None:
    server = Server()
    infer_at(server, answers_per_key=3)(7)
    assert server.samples == [3, 3, 1]
    server = Server()
    infer_at(server, answers_per_key=1000)(100)
    assert server.samples == [100]


@CLIENTS
def test_a_key_in_an_answer_ends_that_key(infer_at: Callable[..., Any]) -> None:
    server = Server()
    infer = infer_at(server)
    infer(1)
    server.make = leaking
    for sessions in (1, 2):
        with pytest.raises(ImplausibleAnswer, match="deviates"):
            infer(1)
        assert len(server.samples) == sessions
    server.make = honest
    infer(1)
    assert server.samples == [2, 1, 1]


@CLIENTS
def test_the_servers_word_on_the_error_is_bounded(infer_at: Callable[..., Any]) -> None:
    server = Server(replace(PLAN, error_bound=0.5))
    with pytest.raises(InsecureRefused, match="tolerance"):
        infer_at(server)(1)
    infer_at(server, tolerance=0.5)(1)
    assert server.samples == [1]


@pytest.mark.parametrize(
    "options",
    [{"answers_per_key": 0}, {"answers_per_key": 2.5}, {"tolerance": 0}, {"tolerance": np.inf}],
)
def test_bounds_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LeveledClient(TARGET, tls=InsecurePlaintext(), **options)


def test_a_call_is_never_larger_than_what_a_key_serves() -> None:
    info = LeveledInfo(public_model=MODEL.public().to_json(), plan=PLAN.to_json())
    received = RemoteLeveled.receive(
        GetModelResponse(leveled=info), HASH,
        message_bytes=2**26, answers_per_key=5, tolerance=1e-3,
    )  # fmt: skip
    assert [len(part) for part in received.parts(np.zeros((12, 6)))] == [5, 5, 2]
