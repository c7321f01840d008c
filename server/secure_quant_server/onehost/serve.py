"""The one host, from options to a clean stop."""

from __future__ import annotations

import asyncio
import logging
import time

from secure_quant.errors import ConfigError
from secure_quant.onehost.stream import PIECE
from secure_quant.wire.gen.one_host_pb2_grpc import add_OneHostServiceServicer_to_server
from secure_quant_server.common import (
    Access,
    GrpcServer,
    Tokens,
    keep_freed_memory,
    logs,
    on_stop_signal,
    read_bundle,
)
from secure_quant_server.onehost.service import SERVICE, OneHost
from secure_quant_server.onehost.spent import Spent
from secure_quant_server.options import OneHostOptions

__all__ = ["OneHostOptions", "OneHostServer", "serve_onehost"]

AROUND = 2**12
"""What a frame holds besides a piece of a run, at most."""


class OneHostServer:
    """``start``, use ``port``, ``stop``; for programs and tests that hold a server themselves."""

    def __init__(self, options: OneHostOptions) -> None:
        if not options.bundles:
            raise ConfigError("bundles", got="none", expected="at least one server bundle")
        self._options = options
        self._grpc: GrpcServer | None = None
        self._service: OneHost | None = None
        self._spent: Spent | None = None

    @property
    def port(self) -> int:
        """That it listens on; 0 before ``start``."""
        return self._grpc.port if self._grpc else 0

    async def start(self) -> int:
        """Load, then listen; the port. Raises ConfigError, MalformedModel and its kin."""
        options = self._options
        tokens = Tokens.from_file(options.tokens) if options.tokens is not None else None
        access = Access({SERVICE: frozenset({"client"})}, tokens)
        server = GrpcServer(
            options, access, [SERVICE], role="onehost", request_bytes=PIECE + AROUND
        )
        bundles = [read_bundle(bundle) for bundle in options.bundles]
        spent = Spent(options.ledger)
        try:
            service = OneHost(bundles, options, spent, server.metrics)
            add_OneHostServiceServicer_to_server(service, server.server)
            await server.start()
        except BaseException:
            spent.close()
            raise
        self._grpc, self._service, self._spent = server, service, spent
        if options.ledger is None:
            logs.event(
                "no ledger", level=logging.WARNING,
                consequence="a restart forgets how many samples clients were served",
            )  # fmt: skip
        server.set_serving(True)
        logs.event("serving", models=service.hashes)
        return server.port

    async def stop(self) -> None:
        """Inferences under way are answered, within ``grace_s``; then every pairing ends."""
        if self._grpc is not None and self._service is not None:
            self._grpc.set_serving(False)
            end = time.monotonic() + self._options.grace_s
            self._service.stop()
            while self._service.busy and time.monotonic() < end:
                await asyncio.sleep(0.01)
                self._service.stop()
            await self._grpc.stop()
            await self._service.close()
        if self._spent is not None:
            self._spent.close()


async def serve_onehost(options: OneHostOptions, *, stop: asyncio.Event | None = None) -> None:
    """Serve until ``stop`` is set; by default until SIGTERM or SIGINT. Raises as ``start``."""
    ending = stop or on_stop_signal()
    keep_freed_memory()
    server = OneHostServer(options)
    await server.start()
    try:
        await ending.wait()
    finally:
        await server.stop()
