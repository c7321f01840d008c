"""A gateway and a server of the engine that protects nothing, both in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from unit.server.support import tls

from plain_insecure import ENGINE
from plain_insecure.model import PlainServer, split
from plain_insecure.server import SERVICE, Service
from secure_quant import Graph
from secure_quant_client.gateway.options import GatewayOptions
from secure_quant_client.gateway.serve import Gateway
from secure_quant_server.common import Access, Budgets, GrpcServer, ServerOptions

__all__ = ["Behind", "behind", "gateway"]


class Behind(Service):
    """The server's service. gate: inferences wait for it. samples: of each that came. error: what
    it raises instead. change: what it adds to an answer's first byte."""

    def __init__(self, graph: Graph, budget: int | None) -> None:
        served = PlainServer.load(split(graph)["server"])
        super().__init__(served, Budgets(budget, 3600.0))
        self.gate = asyncio.Event()
        self.gate.set()
        self.samples: list[int] = []
        self.error: Exception | None = None
        self.cut = 0
        self.target = ""

    async def infer(self, request: Any, context: Any) -> Any:
        self.samples.append(self._server.samples(request.value))
        if self.error is not None:
            raise self.error
        await self.gate.wait()
        answer = await super().infer(request, context)
        answer.value = answer.value[self.cut :]
        return answer


@asynccontextmanager
async def behind(
    graph: Graph, *, budget: int | None = None, listen: str = "127.0.0.1:0"
) -> AsyncIterator[Behind]:
    """A server of ``graph``."""
    options = ServerOptions(listen=listen, security=tls(ENGINE.name))
    server = GrpcServer(options, Access({SERVICE: frozenset({"client"})}), [SERVICE])
    service = Behind(graph, budget)
    server.server.add_generic_rpc_handlers((service.handler(),))
    service.target = f"127.0.0.1:{await server.start()}"
    server.set_serving(True)
    try:
        yield service
    finally:
        service.gate.set()
        await server.stop()


@asynccontextmanager
async def gateway(target: str, **options: Any) -> AsyncIterator[Gateway]:
    """Over gRPC, and over HTTP where ``http_listen`` says so."""
    told: dict[str, Any] = {
        "engine": ENGINE.name, "targets": [target], "security": tls("client"),
        "listen": "127.0.0.1:0",
    }  # fmt: skip
    async with Gateway(GatewayOptions(**(told | options))) as started:
        yield started
