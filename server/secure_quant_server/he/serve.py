"""The homomorphic-encryption server, from options to a clean stop."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from secure_quant.errors import ConfigError
from secure_quant.he.leveled.bundle import is_server as is_leveled
from secure_quant.wire.gen.secure_inference_pb2_grpc import (
    add_SecureInferenceServiceServicer_to_server,
)
from secure_quant_server.common import (
    Access,
    Budgets,
    GrpcServer,
    Metrics,
    Requests,
    Tokens,
    Workers,
    budgets_of,
    logs,
    on_stop_signal,
    read_bundle,
)
from secure_quant_server.he.leveled import LeveledModels
from secure_quant_server.he.pool import Evaluators, InProcess, Pool
from secure_quant_server.he.service import SERVICE, SecureInference
from secure_quant_server.he.worker import KIND
from secure_quant_server.options import HeOptions

__all__ = ["HeOptions", "HeServer", "serve_he"]

HEALTH_S = 0.1


class HeServer:
    """``start``, use ``port``, ``stop``; for programs and tests that hold a server themselves."""

    def __init__(self, options: HeOptions) -> None:
        if not options.bundles:
            raise ConfigError("bundles", got="none", expected="at least one server bundle")
        self._options = options
        found = [read_bundle(bundle) for bundle in options.bundles]
        bundles = [bundle for bundle in found if not is_leveled(bundle)]
        # No process but workers of their own reads what clients send to leveled models.
        self.leveled = LeveledModels([bundle for bundle in found if is_leveled(bundle)],
                                     options.workers, limit_s=options.evaluate_s)  # fmt: skip
        cores = len(os.sched_getaffinity(0))
        workers = cores if options.workers is None else options.workers
        self.evaluators: Evaluators = (
            Pool(
                bundles,
                workers,
                replace(KIND, memory=options.worker_memory),
                limit_s=options.evaluate_s,
            )
            if workers and bundles
            else InProcess(bundles)
        )
        self._exact = bool(bundles)
        self._grpc: GrpcServer | None = None
        self._budgets: Budgets | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """That it listens on; 0 before ``start``."""
        return self._grpc.port if self._grpc else 0

    async def start(self) -> int:
        """Load, then listen; the port. Raises ConfigError, MalformedModel and its kin."""
        options = self._options
        logs.follow_tasks()
        tokens = Tokens.from_file(options.tokens) if options.tokens is not None else None
        access = Access({SERVICE: frozenset({"client"})}, tokens)
        try:
            infos = await self.evaluators.start() if self._exact else []
            await self.leveled.start()
            metrics = Metrics("he")
            self._budgets = budgets = budgets_of(options, "he", metrics)
            requests = Requests(metrics)
            service = SecureInference(self.evaluators, infos, budgets, self.leveled, requests)
            server = GrpcServer(
                options, access, [SERVICE], role="he", request_bytes=service.request_bytes,
                metrics=metrics,
            )  # fmt: skip
            metrics.registry.register(self._workers())
            add_SecureInferenceServiceServicer_to_server(service, server.server)
            await server.start()
        except BaseException:
            await self.evaluators.stop()
            await self.leveled.stop()
            raise
        self._grpc = server
        server.set_serving(True)
        self._watch = asyncio.create_task(self._follow(server))
        logs.event("serving", models=service.hashes)
        return server.port

    def _workers(self) -> Workers:
        """Of both kinds of models; none of a server that evaluates in its own process."""
        pools = [each for each in (self.evaluators, self.leveled.pool) if isinstance(each, Pool)]
        return Workers(
            configured=sum(pool.configured for pool in pools),
            ready=lambda: sum(pool.ready for pool in pools),
            pids=lambda: [pid for pool in pools for pid in pool.pids],
            restarts=lambda: sum(pool.restarts for pool in pools),
            waiting=lambda: sum(pool.waiting for pool in pools),
        )

    async def stop(self) -> None:
        """Calls in flight are answered, however long one evaluation may take; then the port closes
        and the workers end."""
        if self._watch is not None:
            self._watch.cancel()
        if self._grpc is not None:
            self._grpc.set_serving(False)
            await asyncio.gather(self.evaluators.drain(), self.leveled.drain())
            await self._grpc.stop()
        await self.evaluators.stop()
        await self.leveled.stop()
        if self._budgets is not None:
            await self._budgets.close()

    async def _follow(self, server: GrpcServer) -> None:
        """Health says SERVING only while somebody can evaluate."""
        while True:
            await asyncio.sleep(HEALTH_S)
            exact = self.evaluators.available or not self._exact
            server.set_serving(exact and self.leveled.available)


async def serve_he(options: HeOptions, *, stop: asyncio.Event | None = None) -> None:
    """Serve until ``stop`` is set; by default until SIGTERM or SIGINT. Raises as ``start``."""
    ending = stop or on_stop_signal()
    server = HeServer(options)
    await server.start()
    try:
        await ending.wait()
    finally:
        await server.stop()
