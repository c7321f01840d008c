"""The one interceptor every call passes: who calls, may they, is there room; then the answer's
status, metrics and log."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from secure_quant.errors import InternalError, Overloaded, SecureQuantError
from secure_quant.wire import to_status
from secure_quant_server.common import logs
from secure_quant_server.common.access import Access
from secure_quant_server.common.metrics import Metrics

__all__ = ["Guard"]

if TYPE_CHECKING:  # generic in the stubs, not at run time
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class Guard(grpc.aio.ServerInterceptor):
    """Named errors become their status; any other exception becomes INTERNAL with nothing but a
    random id, under which the log has the rest. At most ``max_calls`` run at once."""

    def __init__(self, access: Access, metrics: Metrics, *, max_calls: int) -> None:
        self._access, self._metrics, self._max_calls = access, metrics, max_calls
        self._running = 0
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED, and nothing is kept
            return handler
        self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> Handler:
        requests = "stream" if handler.request_streaming else "unary"
        answers = "stream" if handler.response_streaming else "unary"
        behaviour = getattr(handler, f"{requests}_{answers}")
        factory = getattr(grpc, f"{requests}_{answers}_rpc_method_handler")

        async def call(request: Any, context: Context) -> Any:
            async with self._admitted(method, context):
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context):
                async for answer in behaviour(request, context):
                    yield answer

        made: Handler = factory(
            stream if inspect.isasyncgenfunction(behaviour) else call,
            handler.request_deserializer,
            handler.response_serializer,
        )
        return made

    @asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        started, code, who = time.perf_counter(), grpc.StatusCode.OK, ""
        self._running += 1
        self._metrics.running.set(self._running)
        try:
            who = self._access.admit(method, context).name
            if self._running > self._max_calls:
                raise Overloaded("calls at once", expected=f"<= {self._max_calls}")
            yield
        except SecureQuantError as error:
            code, text, details = to_status(error)
            await context.abort(code, text, details)
        except grpc.aio.AbortError:
            code = grpc.StatusCode.UNKNOWN  # the servicer chose a status itself
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001  the border: nothing unforeseen may leak out
            incident = secrets.token_hex(8)
            logs.failure("call failed", error, method=method, caller=who, incident=incident)
            hint = f"incident {incident} in the server's log"
            code, text, details = to_status(InternalError("the server failed", hint=hint))
            await context.abort(code, text, details)
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)
            seconds = time.perf_counter() - started
            self._metrics.seconds.labels(method).observe(seconds)
            self._metrics.calls.labels(method, code.name).inc()
            level = logging.DEBUG if code is grpc.StatusCode.OK else logging.INFO
            ms = round(seconds * 1e3, 2)
            logs.event("call", level=level, method=method, caller=who, code=code.name, ms=ms)
