"""Runs a client's programs: calls over channels, one deadline for everything, named errors.

Two faces of the same, for threads and for asyncio.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from secure_quant import tracing
from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerUnavailable,
    SecureQuantError,
    ServiceError,
)
from secure_quant.wire import TAKEN, raised
from secure_quant.within import within
from secure_quant_client.program import Ahead, Call, Program

__all__ = ["CLOSED", "AsyncDriver", "Deadline", "Driver", "SyncDriver", "drive"]

CLOSED = "the client is closed"
LONGEST_S = 1e9
"""Of a deadline: gRPC and the system's clocks count so far, and not to every finite number."""
TAKEN_S = 1.0
"""Longest wait of an upload for the server's word that it takes it in."""
PROXIES = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
OTHER_ROLE = (
    "the server there has another role: is the address right, and party 0's before party 1's?"
)
HINTS = {
    "Hostname Verification": OTHER_ROLE,
    "is not in peer certificate": OTHER_ROLE,  # gRPC 1.76 says it so
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the ca given here",
}
"""What gRPC says of a certificate -> what that means here."""

Metadata = tuple[tuple[str, str], ...]
Result = TypeVar("Result")
Asked = TypeVar("Asked")


class Lock(Protocol):
    """Of ``threading``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class Deadline:
    """``seconds`` from now: one for everything that a call of a client does. fixed: False where
    nobody asked for so many, and work that is known to take longer may."""

    def __init__(self, seconds: float, *, fixed: bool = True) -> None:
        """Raises ConfigError for anything but a number above 0 that clocks can count to."""
        number = isinstance(seconds, Real) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= LONGEST_S:
            expected = f"seconds, finite and > 0, <= {LONGEST_S:g}"
            raise ConfigError("timeout", got=ascii(seconds)[:80], expected=expected)
        self._seconds, self._end = float(seconds), time.monotonic() + float(seconds)
        self._fixed = fixed
        self._limit: asyncio.Timeout | None = None

    def allow(self, seconds: float) -> None:
        """Work begins that may take so long: it is given that, unless the deadline is fixed."""
        if self._fixed or seconds <= self._seconds:
            return
        self._end += seconds - self._seconds
        self._seconds = seconds
        if self._limit is not None:
            left = self._end - time.monotonic()
            self._limit.reschedule(asyncio.get_running_loop().time() + left)

    def remaining(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._exceeded()
        return left

    @contextmanager
    def holding(self, lock: Lock) -> Iterator[None]:
        """The lock, for threads. Raises DeadlineExceeded if it is not free in time."""
        if not lock.acquire(timeout=self.remaining()):
            raise self._exceeded()
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def bounding(self) -> AsyncIterator[None]:
        """All that a task does inside. Raises DeadlineExceeded where it takes longer."""
        async with within(self.remaining(), self._exceeded) as limit:
            self._limit = limit
            yield

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded("inference", expected=f"<= {self._seconds:g} s")


def drive(program: Generator[Asked, Any, Result], answer: Callable[[Asked], Any]) -> Result:
    """What the program returns; a named error of ``answer`` is raised where it asked."""
    try:
        asked = next(program)
        while True:
            try:
                found = answer(asked)
            except SecureQuantError as error:
                asked = program.throw(error)
            else:
                asked = program.send(found)
    except StopIteration as done:
        result: Result = done.value
        return result
    finally:
        program.close()


class Driver:
    """What both faces share. stubs: of the servers, in their order. metadata: of every call."""

    _stubs: Sequence[Any]
    _metadata: Metadata
    _closed: bool

    def _told(self) -> Metadata:
        """Metadata of a call that starts now."""
        trace = tracing.header_of()
        return (*self._metadata, (tracing.HEADER, trace)) if trace else self._metadata

    def _method(self, call: Call) -> Any:
        return getattr(self._stubs[call.server], call.method)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Around the start of a call: gRPC has no name of its own for a channel that was closed."""
        try:
            yield
        except (ValueError, grpc.aio.UsageError) as error:
            if self._closed:
                raise ServiceError(CLOSED) from error
            raise


class SyncDriver(Driver):
    """For threads."""

    def _run(self, program: Program[Result], deadline: Deadline) -> Result:
        """What the program returns. It is closed, and its calls are cancelled, if it fails."""
        with tracing.current(tracing.span("inference", "client")) as span:
            result = self._driven(program, deadline)
            _note(span, result)
            return result

    def _driven(self, program: Program[Result], deadline: Deadline) -> Result:
        ahead: deque[Sequence[grpc.Future[Any]]] = deque()
        try:
            return drive(program, lambda calls: self._answers(calls, ahead, deadline))
        finally:
            for under_way in ahead:
                _cancel(under_way)

    def _answers(
        self,
        calls: Sequence[Call],
        ahead: deque[Sequence[grpc.Future[Any]]],
        deadline: Deadline,
    ) -> list[Any]:
        if isinstance(calls, Ahead):
            ahead.append(self._start(calls, deadline))
            return []
        return self._ask(calls, deadline) if calls else self._finish(ahead.popleft())

    def _ask(self, calls: Sequence[Call], deadline: Deadline) -> list[Any]:
        """All calls at once; their answers in the same order. The first that fails ends all."""
        if len(calls) > 1:
            return self._finish(self._start(calls, deadline))
        (call,) = calls  # the usual case: no second thread
        left = deadline.remaining()
        try:
            with self._open():
                return [self._method(call)(call.request, timeout=left, metadata=self._told())]
        except grpc.RpcError as error:
            raise _named(error) from error

    def _start(self, calls: Sequence[Call], deadline: Deadline) -> Sequence[grpc.Future[Any]]:
        left = deadline.remaining()
        with self._open():
            return [
                self._method(call).future(call.request, timeout=left, metadata=self._told())
                for call in calls
            ]

    @staticmethod
    def _finish(under_way: Sequence[grpc.Future[Any]]) -> list[Any]:
        def stop(ended: Any) -> None:
            if ended.code() is not grpc.StatusCode.OK:
                _cancel(under_way)

        for call in under_way:
            call.add_done_callback(stop)
        try:
            return [call.result() for call in under_way]
        except (grpc.RpcError, grpc.FutureCancelledError) as ended:
            _cancel(under_way)
            for call in under_way:  # those that were cancelled say nothing; one that failed does
                error = None if call.cancelled() else call.exception()
                if isinstance(error, grpc.RpcError):
                    raise _named(error) from error
            raise ServiceError("the call was cancelled") from ended
        finally:
            _cancel(under_way)


class AsyncDriver(Driver):
    """For asyncio."""

    _heavy = False
    """Whether a program computes so long that it does so in a thread, and the loop stays free."""

    async def _run(self, program: Program[Result], deadline: Deadline) -> Result:
        """What the program returns. It is closed, and its calls are cancelled, if it fails."""
        with tracing.current(tracing.span("inference", "client")) as span:
            result = await self._driven(program, deadline)
            _note(span, result)
            return result

    async def _driven(self, program: Program[Result], deadline: Deadline) -> Result:
        ahead: deque[asyncio.Future[list[Any]]] = deque()
        running = _Running(program)
        try:
            step = await self._advance(running.send, None)
            while not isinstance(step, _Done):
                try:
                    answers = await self._answers(step, ahead, deadline)
                except SecureQuantError as error:
                    step = await self._advance(running.throw, error)
                else:
                    step = await self._advance(running.send, answers)
            result: Result = step.result
            return result
        finally:
            running.end()
            _cancel(ahead)
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _advance(self, go_on: Callable[[Any], Step], sent: Any) -> Step:
        return await asyncio.to_thread(go_on, sent) if self._heavy else go_on(sent)

    async def _answers(
        self, calls: Sequence[Call], ahead: deque[asyncio.Future[list[Any]]], deadline: Deadline
    ) -> list[Any]:
        if isinstance(calls, Ahead):
            ahead.append(asyncio.ensure_future(self._ask(calls, deadline)))
            await asyncio.sleep(0)  # they go out before the program goes on
            return []
        return await (self._ask(calls, deadline) if calls else _oldest(ahead))

    async def _ask(self, calls: Sequence[Call], deadline: Deadline) -> list[Any]:
        """All calls at once; their answers in the same order. The first that fails ends all."""
        left = deadline.remaining()
        with self._open():
            under_way = [self._begun(call, left) for call in calls]
        try:
            return list(await asyncio.gather(*under_way))
        except grpc.RpcError as error:
            raise _named(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServiceError(CLOSED) from None  # its channels ended the calls
        finally:
            _cancel(under_way)

    def _begun(self, call: Call, timeout: float) -> Any:
        request, method = call.request, self._method(call)
        if isinstance(request, Iterator):
            gate = _Gate(request)
            gate.call = method(gate.pieces(), timeout=timeout, metadata=self._told())
            return gate.call
        return method(request, timeout=timeout, metadata=self._told())


class _Gate:
    """A stream of requests that waits behind its first, which is short, until the server says that
    it takes them in: gRPC for asyncio forgets why a stream was refused that it is writing to."""

    call: Any

    def __init__(self, requests: Iterator[Any]) -> None:
        self._requests = requests

    async def pieces(self) -> AsyncIterator[Any]:
        """The same, or the first alone where the call is refused."""
        yield next(self._requests)
        with suppress(TimeoutError):  # servers before 0.3 say nothing until the end
            async with asyncio.timeout(TAKEN_S):
                if TAKEN not in dict(await self.call.initial_metadata()):
                    await self.call.code()
                    return
        for piece in self._requests:
            yield piece


@dataclass(frozen=True)
class _Done:
    """What a program returned: StopIteration cannot cross a thread's future."""

    result: Any


Step = Sequence[Call] | _Done


class _Running:
    """A program whose steps may run in threads. ``end`` closes it at once, or, where a thread is
    still in a step that nobody waits for, as soon as that is over."""

    def __init__(self, program: Program[Any]) -> None:
        self._program, self._in_step, self._ended = program, threading.Lock(), False

    def send(self, answers: Any) -> Step:
        """The next calls, or the result."""
        return self._step(self._program.send, answers)

    def throw(self, error: SecureQuantError) -> Step:
        """As ``send``, where the calls failed."""
        return self._step(self._program.throw, error)

    def _step(self, go_on: Callable[[Any], Sequence[Call]], sent: Any) -> Step:
        try:
            with self._in_step:
                return go_on(sent)
        except StopIteration as done:
            return _Done(done.value)
        finally:
            if self._ended:
                self.end()

    def end(self) -> None:
        self._ended = True
        if self._in_step.acquire(blocking=False):
            try:
                self._program.close()
            finally:
                self._in_step.release()


async def _oldest(ahead: deque[asyncio.Future[list[Any]]]) -> list[Any]:
    """The answers to those that wait longest; the first failure of any ends the wait."""
    while True:
        for under_way in ahead:
            if under_way.done():
                under_way.result()
        if ahead[0].done():
            return ahead.popleft().result()
        waiting = [under_way for under_way in ahead if not under_way.done()]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def _note(span: tracing.Span, result: Any) -> None:
    """What an inference cost, where its result says so."""
    stats = getattr(result, "stats", None)
    for name in ("samples", "rounds", "bytes_up", "bytes_down"):
        if isinstance(value := getattr(stats, name, None), int):
            span.note(**{name: value})


def _named(error: grpc.RpcError) -> SecureQuantError:
    found = raised(error)
    for said, hint in HINTS.items():
        if isinstance(found, PeerUnavailable) and said in found.what:
            return PeerUnavailable(found.what, hint=hint)
    proxy = next((name for name in PROXIES if os.environ.get(name)), None)
    if isinstance(found, PeerUnavailable) and found.hint is None and proxy is not None:
        return PeerUnavailable(found.what, hint=f"{proxy} is set, and is not used")
    return found


def _cancel(under_way: Iterable[Any]) -> None:
    """Those calls that are not done."""
    for call in under_way:
        call.cancel()
