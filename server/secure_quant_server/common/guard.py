"""The one interceptor every call passes: who calls, may they, is there room; then the answer's
status, metrics and log."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from secure_quant import tracing
from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError, ServiceError
from secure_quant.wire import to_status
from secure_quant.wire.status import Status
from secure_quant.within import within
from secure_quant_server.common import logs
from secure_quant_server.common.access import Access
from secure_quant_server.common.admission import LARGE, Admission
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
        uploads = handler.request_streaming and not handler.response_streaming
        if Access.is_open(method):
            behaviour = _bounded(behaviour, self._watch_s)

        async def asked(stream: Any, client: str, context: Context) -> Any:
            if handler.request_streaming:
                return stream
            body = await self._admission.body(client, context.read)
            if body is grpc.aio.EOF:
                raise MalformedMessage("request", got="none", expected="one message")
            self._admission.received(len(body))
            return parse(body)

        async def call(stream: Any, context: Context) -> Any:
            try:
                async with self.admitted(method, context) as client:
                    answer = await behaviour(await asked(stream, client, context), context)
                    if answer is not None:  # else the method wrote what it had to say
                        gone = context.add_done_callback
                        self._admission.answered(client, answer.ByteSize(), gone)
                    return answer
            finally:
                if uploads:
                    self._admission.received(LARGE)

        async def answering(stream: Any, context: Context) -> AsyncIterator[Any]:
            async with self.admitted(method, context) as client:
                async for answer in behaviour(await asked(stream, client, context), context):
                    yield answer

        made: Handler = factory(
            answering if inspect.isasyncgenfunction(behaviour) else call,
            parse if handler.request_streaming else None,
            handler.response_serializer,
        )
        return made

    async def answer(
        self,
        method: str,
        parse: Callable[[bytes], Any],
        behaviour: Callable[[Any, Any], Awaitable[Any]],
        read: Callable[[], Awaitable[bytes]],
        context: Any,
    ) -> Any:
        """One unary call that came in another way than gRPC's: the same checks in the same order.

        read: brings the body once it may be received. context: has ``auth_context``,
        ``invocation_metadata``, and ``abort``, which is told how the call failed and raises."""
        async with self.admitted(method, context) as client:
            return await behaviour(await self._request(client, method, parse, read), context)

    async def answers(
        self,
        method: str,
        parse: Callable[[bytes], Any],
        behaviour: Callable[[Any, Any], AsyncIterator[Any]],
        read: Callable[[], Awaitable[bytes]],
        context: Any,
    ) -> AsyncGenerator[Any, None]:
        """The same of a call that has several answers."""
        async with self.admitted(method, context) as client:
            request = await self._request(client, method, parse, read)
            async for answer in behaviour(request, context):
                yield answer

    async def _request(
        self,
        client: str,
        method: str,
        parse: Callable[[bytes], Any],
        read: Callable[[], Awaitable[bytes]],
    ) -> Any:
        """What an admitted call asks, read once it may be."""
        body = await self._admission.body(client, read)
        self._admission.received(len(body))
        return _parser(method, parse)(body)

    def admitted(self, method: str, context: Context) -> _Served:
        """Around a call: its caller's name while it is served."""
        return _Served(self._access, self._admission, self._metrics, self._quiet, method, context)


class _Served:
    """One call. A class, not a generator: this is on the way of each one."""

    __slots__ = (
        "_access", "_admission", "_context", "_entered", "_method", "_metrics", "_quiet",
        "_span", "_started", "_trace", "_who",
    )  # fmt: skip

    def __init__(
        self, access: Access, admission: Admission, metrics: Metrics, quiet: logs.Limiter,
        method: str, context: Context,
    ) -> None:  # fmt: skip
        self._access, self._admission, self._metrics = access, admission, metrics
        self._quiet, self._method, self._context = quiet, method, context
        self._started, self._who, self._entered = time.perf_counter(), "", False
        self._span = tracing.Span()
        self._trace: ExitStack | None = None

    async def __aenter__(self) -> str:
        if tracing.wanted() and not Access.is_open(self._method):
            parent = tracing.parent_in(self._context.invocation_metadata())
            self._span = tracing.span(self._method.removeprefix("/"), "server", parent)
            self._trace = ExitStack()
            self._trace.enter_context(tracing.current(self._span))
        try:
            self._who = self._access.admit(self._method, self._context).name
            self._admission.enter(self._who, is_open=Access.is_open(self._method))
            self._entered = True
            self._metrics.running.set(self._admission.running)
        except Exception as error:
            await self._end(error)
            raise
        return self._who

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        del trace  # see _let_go
        await self._end(error)

    async def _end(self, error: BaseException | None) -> None:
        """Raises what gRPC is to see where it is not the error itself."""
        code, status = self._status(error)
        if self._entered:
            self._admission.leave(self._who, is_open=Access.is_open(self._method))
            self._metrics.running.set(self._admission.running)
        seconds = time.perf_counter() - self._started
        self._metrics.ended(self._method, code.name, seconds)
        self._log(code, seconds)
        if self._trace is not None:
            if code is not grpc.StatusCode.OK:
                self._span.failed(code.name)
            self._trace.close()
        if isinstance(error, grpc.aio.InternalError):  # the servicer's last word to who has gone
            raise asyncio.CancelledError from error
        if status is not None:
            _let_go(error)
            await _abort(self._context, *status)

    def _status(self, error: BaseException | None) -> tuple[grpc.StatusCode, Status | None]:
        """How the call ended, and what its caller is to be told where gRPC does not know it."""
        if error is None:
            return grpc.StatusCode.OK, None
        if isinstance(error, grpc.aio.AbortError):
            return grpc.StatusCode.UNKNOWN, None  # the servicer chose a status itself
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.InternalError):
            return grpc.StatusCode.CANCELLED, None
        if isinstance(error, SecureQuantError):
            status = to_status(error)
            return status[0], status
        # The border: nothing unforeseen may leak out.
        incident = secrets.token_hex(8)
        if self._quiet.more((self._who, self._method, type(error))) is not None:
            about = {"method": self._method, "caller": self._who, "incident": incident}
            logs.failure("call failed", error, **about)
        hint = f"incident {incident} in the server's log"
        status = to_status(InternalError("the server failed", hint=hint))
        return status[0], status

    def _log(self, code: grpc.StatusCode, seconds: float) -> None:
        """A caller that tries again and again does not fill the log."""
        fine = code is grpc.StatusCode.OK
        if fine and not logs.says(logging.DEBUG):
            return
        unsaid = 0 if fine else self._quiet.more((self._who, self._method, code))
        if unsaid is None:
            return
        more = {"unsaid": unsaid} if unsaid else {}
        logs.event(
            "call", level=logging.DEBUG if fine else logging.INFO, method=self._method,
            caller=self._who, code=code.name, ms=round(seconds * 1e3, 2), **more,
        )  # fmt: skip


def _bounded(behaviour: Any, seconds: float) -> Any:
    """The same, which ends after a while."""

    def bound() -> AbstractAsyncContextManager[object]:
        told = ServiceError("this stream ends after a while", hint="open another")
        return within(seconds, lambda: told)

    async def call(request: Any, context: Context) -> Any:
        async with bound():
            return await behaviour(request, context)

    async def answering(request: Any, context: Context) -> AsyncIterator[Any]:
        async with bound():
            async for answer in behaviour(request, context):
                yield answer

    return answering if inspect.isasyncgenfunction(behaviour) else call


def _let_go(error: BaseException | None) -> None:
    """Of its frames, and so of the request: gRPC keeps what a call was aborted with in a circle of
    references, which would hold all of that until the collector comes by."""
    if error is not None:
        error.__traceback__ = error.__cause__ = error.__context__ = None


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
