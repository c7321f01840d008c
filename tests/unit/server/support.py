"""A real server on loopback whose evaluators are stand-ins, and certificates for every role."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc.aio
from patience import ample

from conformance.builder import Net
from secure_quant import Graph
from secure_quant.he.plan import plan
from secure_quant.transport import Security, Tls, aio_channel
from secure_quant.transport.certs import Authority
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.secure_inference_pb2_grpc import (
    SecureInferenceServiceStub,
    add_SecureInferenceServiceServicer_to_server,
)
from secure_quant_server.common import (
    Access,
    Budgets,
    GrpcServer,
    Requests,
    ServerOptions,
    Tokens,
)
from secure_quant_server.he.leveled import LeveledModels
from secure_quant_server.he.pool import Evaluators
from secure_quant_server.he.service import SERVICE, SecureInference

AUTHORITY = Authority()


def tls(role: str, authority: Authority = AUTHORITY) -> Tls:
    cert, key = authority.issue(role, hosts=["localhost", "127.0.0.1"])
    return Tls(authority.pem, cert, key)


def graph() -> Graph:
    net = Net(5, (4,))
    net.linear(3)
    net.requantize()
    net.linear(2)
    return net.done(salt=bytes(32))


class StandIn(Evaluators):
    """Evaluates with a function of the request's bytes."""

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._answer = answer

    async def start(self) -> list[bytes]:
        return [info_to_proto(graph(), plan(graph()).to_json()).SerializeToString()]

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        return await self._answer(ciphertexts)

    async def drain(self) -> None:
        """Nothing runs."""

    async def stop(self) -> None:
        """Nothing runs."""

    @property
    def available(self) -> bool:
        return True


async def echo(data: bytes) -> bytes:
    return data[::-1]


@asynccontextmanager
async def serving(
    answer: Callable[[bytes], Awaitable[bytes]] = echo,
    *,
    tokens: Tokens | None = None,
    budgets: Budgets | None = None,
    leveled: LeveledModels | None = None,
    request_bytes: int | None = None,
    evaluators: StandIn | None = None,
    **options: object,
) -> AsyncIterator[GrpcServer]:
    chosen = {"listen": "127.0.0.1:0", "security": tls("he"), "grace_s": 0.2} | options
    access = Access({SERVICE: frozenset({"client"})}, tokens)
    server = GrpcServer(ServerOptions(**chosen), access, [SERVICE], request_bytes=request_bytes)
    evaluators = evaluators or StandIn(answer)
    infos = await evaluators.start()
    requests = Requests(server.metrics)
    service = SecureInference(evaluators, infos, budgets or Budgets(None), leveled, requests)
    add_SecureInferenceServiceServicer_to_server(service, server.server)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def calling(
    server: GrpcServer, security: Security | None = None, role: str = "he", **options: object
) -> AsyncIterator[tuple[SecureInferenceServiceStub, grpc.aio.Channel]]:
    security = security or tls("client/alice")
    target = f"127.0.0.1:{server.port}"
    channel = aio_channel(target, security, server_role=role, **options)
    try:
        yield SecureInferenceServiceStub(channel), channel
    finally:
        await channel.close()


async def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + ample(10)
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """One test in a loop of its own, never longer than 20 s."""

    async def bounded() -> None:
        async with asyncio.timeout(ample(20)):
            await test()

    asyncio.run(bounded())
