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
from google.protobuf.message import DecodeError

from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError, ServiceError
from secure_quant.wire import to_status
from secure_quant_server.common import logs
from secure_quant_server.common.access import Access
from secure_quant_server.common.admission import Admission
from secure_quant_server.common.metrics import Metrics

__all__ = ["Guard"]

if TYPE_CHECKING:  # generic in the stubs, not at run time
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class Guard(grpc.aio.ServerInterceptor):
    """Who may call and whether there is room is decided before a body is read: to gRPC every method
    looks as if its request were a stream, of which the guard reads the one message when it is time.

    Named errors become their status; any other exception becomes INTERNAL with nothing but a
    random id, under which the log has the rest. ``watch_s``: longest call to health or reflection.
    """

    def __init__(
        self, access: Access, metrics: Metrics, admission: Admission, *, watch_s: float
    ) -> None:
        self._access, self._metrics, self._admission = access, metrics, admission
        self._watch_s = watch_s
        self._quiet = logs.Limiter()
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
        factory = getattr(grpc, f"stream_{answers}_rpc_method_handler")
        parse = _parser(method, handler.request_deserializer)

        async def asked(stream: Any, client: str, context: Context) -> Any:
            if handler.request_streaming:
                return stream
            async with self._admission.body(client):
                body = await context.read()
            if body is grpc.aio.EOF:
                raise MalformedMessage("request", got="none", expected="one message")
            self._admission.received(len(body))
            return parse(body)

        async def call(stream: Any, context: Context) -> Any:
            async with self._admitted(method, context) as client:
                return await behaviour(await asked(stream, client, context), context)

        async def answering(stream: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context) as client:
                async for answer in behaviour(await asked(stream, client, context), context):
                    yield answer

        made: Handler = factory(
            answering if inspect.isasyncgenfunction(behaviour) else call,
            parse if handler.request_streaming else None,
            handler.response_serializer,
        )
        return made

    @asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[str]:
        """The caller's name, while the call is served."""
        started, code, who = time.perf_counter(), grpc.StatusCode.OK, ""
        try:
            who = self._access.admit(method, context).name
            async with self._room(method, who):
                yield who
        except SecureQuantError as error:
            code, text, details = to_status(error)
            await _abort(context, code, text, details)
        except grpc.aio.AbortError:
            code = grpc.StatusCode.UNKNOWN  # the servicer chose a status itself
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.InternalError as error:  # the servicer's last word to who has gone
            code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001  the border: nothing unforeseen may leak out
            incident = secrets.token_hex(8)
            if self._quiet.more((who, method, type(error))) is not None:
                logs.failure("call failed", error, method=method, caller=who, incident=incident)
            hint = f"incident {incident} in the server's log"
            code, text, details = to_status(InternalError("the server failed", hint=hint))
            await _abort(context, code, text, details)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.seconds.labels(method).observe(seconds)
            self._metrics.calls.labels(method, code.name).inc()
            self._log(method, who, code, seconds)

    def _log(self, method: str, who: str, code: grpc.StatusCode, seconds: float) -> None:
        """A caller that tries again and again does not fill the log."""
        fine = code is grpc.StatusCode.OK
        unsaid = 0 if fine else self._quiet.more((who, method, code))
        if unsaid is None:
            return
        more = {"unsaid": unsaid} if unsaid else {}
        level = logging.DEBUG if fine else logging.INFO
        ms = round(seconds * 1e3, 2)
        logs.event("call", level=level, method=method, caller=who, code=code.name, ms=ms, **more)

    @asynccontextmanager
    async def _room(self, method: str, client: str) -> AsyncIterator[None]:
        is_open = Access.is_open(method)
        running = self._metrics.running
        with self._admission.call(client, is_open=is_open):
            running.set(self._admission.running)
            try:
                async with asyncio.timeout(self._watch_s if is_open else None) as limit:
                    yield
            except TimeoutError:
                if not limit.expired():
                    raise
                ended = "this stream ends after a while"
                raise ServiceError(ended, hint="open another") from None
            finally:
                running.set(self._admission.running - (not is_open))


async def _abort(context: Context, code: grpc.StatusCode, text: str, details: Any) -> None:
    """A caller that cancels at this moment is no failure, and nothing for the log."""
    try:
        await context.abort(code, text, details)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error


def _parser(method: str, deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse(body: bytes) -> Any:
        try:
            return body if deserializer is None else deserializer(body)
        except DecodeError as error:
            name = method.rpartition("/")[2]
            got = f"{len(body)} bytes"
            raise MalformedMessage("request", got=got, expected=f"a request of {name}") from error

    return parse
