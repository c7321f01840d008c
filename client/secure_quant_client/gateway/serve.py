"""A gateway from options to a clean stop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any, Self

import grpc.aio

from secure_quant.engines import find
from secure_quant.errors import ConfigError
from secure_quant.transport import server_options
from secure_quant.wire.gen.open_inference_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from secure_quant_client.gateway import events
from secure_quant_client.gateway.house import House
from secure_quant_client.gateway.listen import host_of
from secure_quant_client.gateway.options import GatewayOptions
from secure_quant_client.gateway.rpc import OpenInference, Parsing
from secure_quant_client.gateway.served import Served

__all__ = ["Gateway", "serve_gateway"]

GRACE_S = 5.0
MAX_CONNECTIONS = 512


class Gateway:
    """Serves while its ``async with`` block runs; ``port`` and ``http_port`` are those it has.

    Servers that are away are no reason not to start: it says that it is not ready.
    """

    def __init__(self, options: GatewayOptions) -> None:
        """Raises as ``GatewayOptions.check``."""
        options.check()
        self._options = options
        self._stack = AsyncExitStack()
        self.models: dict[str, Served] = {}
        self.port = self.http_port = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *about: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        options = self._options
        self.models = {name: self._served(name, hash_) for name, hash_ in options.models.items()}
        house = House(self.models)
        stack.push_async_callback(house.close)
        if options.listen is not None:
            self.port = await self._listen(house, options.listen, stack)
        if options.http_listen is not None:
            self.http_port = await self._listen_http(house, options.http_listen, stack)

    def _served(self, name: str, model_hash: str) -> Served:
        options = self._options
        connection: dict[str, Any] = {
            "tls": options.security, "expected_hash": model_hash or None, "token": options.token,
            "limits": options.limits,
        }  # fmt: skip
        return Served(
            name, find(options.engine), options.targets, timeout_s=options.timeout_s,
            batch=options.batch, at_once=options.at_once, pending=options.pending,
            connection=connection,
        )  # fmt: skip

    async def _listen(self, house: House, address: str, stack: AsyncExitStack) -> int:
        """Raises ConfigError for an address that is taken."""
        options = self._options
        host, number = host_of("listen", address)
        server = grpc.aio.server(
            interceptors=[Parsing()],
            options=server_options(options.limits, max_connections=MAX_CONNECTIONS),
            maximum_concurrent_rpcs=2 * options.pending,
        )
        add_GRPCInferenceServiceServicer_to_server(OpenInference(house), server)
        place = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        try:
            if options.listen_tls is None:
                port = server.add_insecure_port(place)
            else:
                port = server.add_secure_port(place, options.listen_tls.for_grpc())
        except RuntimeError as error:
            raise ConfigError("listen", got=address, expected="a free address") from error
        await server.start()
        stack.push_async_callback(server.stop, GRACE_S)
        self._say("grpc", host, port)
        return port

    async def _listen_http(self, house: House, address: str, stack: AsyncExitStack) -> int:
        """Raises ConfigError for an address that is taken."""
        from aiohttp import web

        from secure_quant_client.gateway.rest import LOG, make_app

        options = self._options
        host, number = host_of("http_listen", address)
        app = make_app(
            house, message_bytes=options.limits.message_bytes, max_calls=2 * options.pending
        )
        runner = web.AppRunner(app, access_log=None, logger=LOG, shutdown_timeout=GRACE_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        context = None if options.listen_tls is None else options.listen_tls.for_http()
        site = web.TCPSite(runner, host, number, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            expected = "a free address"
            raise ConfigError("http_listen", got=address, expected=expected) from error
        if context is not None and options.listen_tls is not None:
            following = asyncio.create_task(options.listen_tls.follow(context))
            stack.callback(following.cancel)
        port: int = runner.addresses[0][1]
        self._say("http", host, port)
        return port

    def _say(self, protocol: str, host: str, port: int) -> None:
        security = "plaintext" if self._options.listen_tls is None else "tls"
        events.event("listening", protocol=protocol, host=host, port=port, security=security)


async def serve_gateway(options: GatewayOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises as ``GatewayOptions.check``, ConfigError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Gateway(options):
        await stop.wait()
    events.event("stopped")
