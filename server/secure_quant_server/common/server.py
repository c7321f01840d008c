"""A gRPC server as every role runs it: one port, guard, health, reflection, metrics, clean stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from secure_quant import tracing
from secure_quant.errors import ConfigError, SecureQuantError
from secure_quant.transport import (
    Tls,
    add_port,
    check_security,
    expiry,
    require_role,
    server_options,
    warn_of_expiry,
)
from secure_quant_server.common import logs
from secure_quant_server.common.access import Access
from secure_quant_server.common.admission import Admission
from secure_quant_server.common.guard import Guard
from secure_quant_server.common.health import Health
from secure_quant_server.common.metrics import Metrics
from secure_quant_server.options import ServerOptions

__all__ = ["GrpcServer", "ServerOptions", "on_stop_signal"]

WARN_DAYS = 30
WARN_EVERY_S = 6 * 3600.0
_STATUS = health_pb2.HealthCheckResponse


class GrpcServer:
    """Wraps a ``grpc.aio.Server``: add servicers to ``.server``, then ``start``.

    ``services`` are the full names of the services added; their health, and that of the whole
    server (``""``), is NOT_SERVING until ``set_serving(True)``. ``request_bytes`` is the longest
    message that any of them takes, as the models served imply; never above the limit in options.
    """

    def __init__(
        self,
        options: ServerOptions,
        access: Access,
        services: Sequence[str],
        *,
        role: str | None = None,
        request_bytes: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """``role``: kind that the server's certificate must name. ``metrics``: where they are
        shared with what stands behind the services. Raises CertificateMismatch and
        the errors of ``Tls.load``."""
        if role is not None:
            require_role(check_security(options.security), role)
        self.options, self._services = options, tuple(services)
        self.metrics = metrics or Metrics(role)
        most = options.limits.message_bytes
        largest = most if request_bytes is None else min(most, request_bytes)
        admission = Admission(
            max_calls=options.max_calls, per_client=options.per_client, message_bytes=largest
        )
        self.guard = Guard(access, self.metrics, admission, watch_s=options.watch_s)
        self.request_bytes = largest
        self.server = grpc.aio.server(
            interceptors=[self.guard],
            options=server_options(options.limits, largest, options.max_connections),
        )
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self.port = 0
        self._role = role or services[0]
        self._end_of_traces: Callable[[], None] | None = None
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Begin to listen; the port. Raises ConfigError and the errors of ``Tls.load``."""
        if self.options.reflection:
            names = (*self._services, reflection.SERVICE_NAME, "grpc.health.v1.Health")
            reflection.enable_server_reflection(names, self.server)
        logs.follow_tasks()
        self.set_serving(False)
        self.port = add_port(self.server, self.options.listen, self.options.security)
        if self.port == 0:
            raise ConfigError("listen", got=self.options.listen, expected="a free address")
        if self.options.traces is not None:
            self._end_of_traces = tracing.export(self._role, self.options.traces)
        if self.options.metrics is not None:
            self.metrics.listen(self.options.metrics)
        await self.server.start()
        if isinstance(self.options.security, Tls):
            self._expiry = asyncio.create_task(self._watch_expiry(self.options.security))
        security = type(self.options.security).__name__
        host = self.options.listen.rpartition(":")[0]
        logs.event("listening", address=f"{host}:{self.port}", security=security)
        return self.port

    async def _watch_expiry(self, tls: Tls) -> None:
        """Say days ahead that the certificate ends."""
        while True:
            try:
                found = tls.load()
                self.metrics.expiry.set(expiry(found).timestamp())
                warn_of_expiry(found, WARN_DAYS)
            except SecureQuantError as error:
                logs.event("certificate unusable", level=logging.ERROR, reason=str(error))
            await asyncio.sleep(WARN_EVERY_S)

    def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 answers from now on."""
        status = _STATUS.SERVING if serving else _STATUS.NOT_SERVING
        for name in ("", *self._services):
            self._health.set(name, status)

    async def stop(self) -> None:
        """Health first, then no new calls, then ``grace_s`` for the running ones."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._health.stop()
        await self.server.stop(self.options.grace_s)
        if self._end_of_traces is not None:  # waits for the collector
            await asyncio.to_thread(self._end_of_traces)
        logs.event("stopped")


def on_stop_signal() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets, in the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
