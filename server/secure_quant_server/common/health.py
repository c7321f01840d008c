"""grpc.health.v1 for servers whose callers may be hostile.

grpc_health's own servicer for asyncio writes to a watcher while it holds a lock that every change
of state takes: one peer that grants no window keeps a server's state as it was, and the server from
stopping. Here a change waits for nobody; who reads slowly learns the latest state when it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

__all__ = ["Health"]

Context = grpc.aio.ServicerContext[Any, Any]


class Health(HealthServicer):  # type: ignore[misc]  # the package is not typed
    """State by service name, ``""`` for the whole server. In one event loop."""

    def __init__(self) -> None:
        self._status: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._stopping = False

    def set(self, service: str, status: int) -> None:
        """A ServingStatus, from now on, unless the server is stopping."""
        if self._stopping or self._status.get(service) == status:
            return
        self._status[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """NOT_SERVING for good."""
        for service in self._status:
            self.set(service, HealthCheckResponse.NOT_SERVING)
        self._stopping = True

    async def Check(  # noqa: N802  the name in the proto
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse:
        """See health.proto."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: HealthCheckRequest, context: Context
    ) -> AsyncIterator[HealthCheckResponse]:
        """See health.proto."""
        unknown, told = HealthCheckResponse.SERVICE_UNKNOWN, None
        while True:
            changed, status = self._changed, self._status.get(request.service, unknown)
            if status != told:
                yield HealthCheckResponse(status=status)
                told = status
            await changed.wait()
