"""A client before several replicas behind one name: turns, and another one where one gives no
answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from patience import ample

from secure_quant.transport import InsecurePlaintext, aio_channel, sync_channel
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    EvaluateLinearResponse,
)
from secure_quant.wire.gen.secure_inference_pb2_grpc import (
    SecureInferenceServiceServicer,
    SecureInferenceServiceStub,
    add_SecureInferenceServiceServicer_to_server,
)
from secure_quant_client.he.client import HE, HeClient
from secure_quant_client.leveled.client import LeveledClient

LARGE = bytes(3 * 2**20)
"""More than gRPC keeps by itself for another attempt."""


class Replica(SecureInferenceServiceServicer):
    def __init__(self) -> None:
        self.calls, self.refuses = 0, None

    def EvaluateLinear(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        if self.refuses is not None:
            context.abort(self.refuses, "no")
        return EvaluateLinearResponse(ciphertexts=request.ciphertexts)


@contextmanager
def replica() -> Iterator[tuple[Replica, Any, int]]:
    served = Replica()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    add_SecureInferenceServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield served, server, port
    finally:
        server.stop(0).wait()


def asked(name: str, kind: str, service: str | None, count: int) -> list[Any]:
    """``count`` calls, one after the other: what came, or the status."""
    request = EvaluateLinearRequest(ciphertexts=LARGE)
    told: dict[str, Any] = {"server_role": "he", "service": service}

    def status(error: grpc.RpcError) -> Any:
        return error.code()  # type: ignore[attr-defined]

    if kind == "threads":
        found = []
        with sync_channel(name, InsecurePlaintext(), **told) as channel:
            stub = SecureInferenceServiceStub(channel)
            for _ in range(count):
                try:
                    found.append(stub.EvaluateLinear(request, timeout=ample(10)).ciphertexts)
                except grpc.RpcError as error:
                    found.append(status(error))
        return found

    async def all_of_them() -> list[Any]:
        found = []
        async with aio_channel(name, InsecurePlaintext(), **told) as channel:
            stub = SecureInferenceServiceStub(channel)
            for _ in range(count):
                try:
                    answer = await stub.EvaluateLinear(request, timeout=ample(10))
                    found.append(answer.ciphertexts)
                except grpc.RpcError as error:
                    found.append(status(error))
        return found

    return asyncio.run(all_of_them())


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_calls_take_turns_and_go_elsewhere(kind: str) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(replica()) for _ in range(3)]
        name = "ipv4:" + ",".join(f"127.0.0.1:{port}" for *_, port in made)
        assert asked(name, kind, HE.replicas, 24) == [LARGE] * 24
        assert all(served.calls for served, *_ in made)
        made[0][0].refuses = grpc.StatusCode.UNAVAILABLE
        made[1][1].stop(0).wait()
        # A call that meets the end of a connection may run out of attempts, the next do not.
        end, found = time.monotonic() + ample(30), []
        while found != [LARGE] * 12 and time.monotonic() < end:
            before = made[2][0].calls
            found = asked(name, kind, HE.replicas, 12)
        assert found == [LARGE] * 12
        assert made[2][0].calls == before + 12
        # An answer that says what is wrong is an answer.
        made[2][0].refuses = grpc.StatusCode.RESOURCE_EXHAUSTED
        before = made[2][0].calls
        assert asked(f"ipv4:127.0.0.1:{made[2][2]}", kind, HE.replicas, 1) == [
            grpc.StatusCode.RESOURCE_EXHAUSTED
        ]
        assert made[2][0].calls == before + 1


def test_without_replicas_nothing_is_sent_twice(kind: str) -> None:
    with replica() as (served, _, port):
        served.refuses = grpc.StatusCode.UNAVAILABLE
        found = asked(f"127.0.0.1:{port}", kind, None, 2)
        assert (found, served.calls) == ([grpc.StatusCode.UNAVAILABLE] * 2, 2)


def test_a_leveled_session_stays_where_it_is() -> None:
    assert HeClient._service.replicas == "secure_quant.v1.SecureInferenceService"
    assert LeveledClient._service.replicas is None
