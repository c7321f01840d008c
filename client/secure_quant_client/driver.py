"""Runs a client's programs: calls over channels, one deadline for everything, named errors.

Two faces of the same, for threads and for asyncio.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from numbers import Real
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from secure_quant import tracing
from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    SecureQuantError,
    ServiceError,
)
from secure_quant.within import within
from secure_quant_client.advance import Done, Gate, Running, Step
from secure_quant_client.named import named
from secure_quant_client.program import Ahead, Call, Program, Told, Watching
from secure_quant_client.progress import Progress
from secure_quant_client.threadless import Begun

__all__ = ["CLOSED", "AsyncDriver", "Deadline", "Driver", "SyncDriver", "drive"]

CLOSED = "the client is closed"
LONGEST_S = 1e9
"""Of a deadline: gRPC and the system's clocks count so far, and not to every finite number."""
Tell = Callable[[Progress], object]
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
        return DeadlineExceeded("no answer in time", expected=f"<= {self._seconds:g} s")


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

    def _run(
        self, program: Program[Result], deadline: Deadline, tell: Tell | None = None
    ) -> Result:
        """What the program returns. It is closed, and its calls are cancelled, if it fails.
        tell: hears of its progress, in this thread; what it raises ends the program."""
        with tracing.current(tracing.span("inference", "client")) as span:
            result = self._driven(program, deadline, tell)
            _note(span, result)
            return result

    def _driven(self, program: Program[Result], deadline: Deadline, tell: Tell | None) -> Result:
        run = _SyncRun(deadline, tell)
        try:
            return drive(program, lambda calls: self._answers(calls, run))
        finally:
            for under_way in run.ahead:
                _cancel(under_way)
            _cancel(run.streams)

    def _answers(self, calls: Sequence[Call], run: _SyncRun) -> list[Any]:
        if isinstance(calls, Ahead):
            run.ahead.append(self._start(calls, run.deadline))
            return []
        if isinstance(calls, Told):
            if calls.progress is not None and run.tell is not None:
                run.tell(calls.progress)
            return []
        if isinstance(calls, Watching):
            self._watch(calls, run)
            return []
        if calls:
            return self._ask(calls, run.deadline)
        if run.streams:
            run.listen(run.ahead[0])
        return self._finish(run.ahead.popleft())

    def _watch(self, watching: Watching, run: _SyncRun) -> None:
        (call,), left = watching, run.deadline.remaining()
        with self._open():
            stream = self._method(call)(call.request, timeout=left, metadata=self._told())
        run.streams.append(stream)

        def read() -> None:
            with suppress(grpc.RpcError):  # it has ended, or the server knows no such call
                for answer in stream:
                    run.news.put((watching.hear, answer))

        threading.Thread(target=read, name="progress", daemon=True).start()

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
            raise named(error) from error

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
                    raise named(error) from error
            raise ServiceError("the call was cancelled") from ended
        finally:
            _cancel(under_way)


class _SyncRun:
    """A program that runs. ahead: calls nobody waits for yet. streams: that are heard beside them,
    by threads which put what comes into ``news``."""

    def __init__(self, deadline: Deadline, tell: Tell | None) -> None:
        self.deadline, self.tell = deadline, tell
        self.ahead: deque[Sequence[grpc.Future[Any]]] = deque()
        self.streams: list[Any] = []
        self.news: SimpleQueue[tuple[Callable[[Any], Progress], Any] | None] = SimpleQueue()

    def listen(self, under_way: Sequence[grpc.Future[Any]]) -> None:
        """Pass on what comes until these have ended, one way or the other."""
        for call in under_way:
            call.add_done_callback(lambda _: self.news.put(None))
            if isinstance(call, Begun):
                call.hurry()
        left = len(under_way)
        while left:
            if (word := self.news.get()) is None:
                left -= 1
            elif self.tell is not None:
                hear, answer = word
                self.tell(hear(answer))


class AsyncDriver(Driver):
    """For asyncio."""

    _heavy = False
    """Whether a program computes so long that it does so in a thread, and the loop stays free."""

    async def _run(
        self, program: Program[Result], deadline: Deadline, tell: Tell | None = None
    ) -> Result:
        """What the program returns. It is closed, and its calls are cancelled, if it fails.
        tell: hears of its progress, in the event loop; what it raises ends the program."""
        with tracing.current(tracing.span("inference", "client")) as span:
            result = await self._driven(program, deadline, tell)
            _note(span, result)
            return result

    async def _driven(
        self, program: Program[Result], deadline: Deadline, tell: Tell | None
    ) -> Result:
        run = _AsyncRun(deadline, tell)
        running = Running(program)
        try:
            step = await self._advance(running.send, None)
            while not isinstance(step, Done):
                try:
                    answers = await self._answers(step, run)
                except SecureQuantError as error:
                    step = await self._advance(running.throw, error)
                else:
                    step = await self._advance(running.send, answers)
            result: Result = step.result
            return result
        finally:
            running.end()
            _cancel([*run.ahead, *run.streams])
            await asyncio.gather(*run.ahead, *run.streams, return_exceptions=True)

    async def _advance(self, go_on: Callable[[Any], Step], sent: Any) -> Step:
        return await asyncio.to_thread(go_on, sent) if self._heavy else go_on(sent)

    async def _answers(self, calls: Sequence[Call], run: _AsyncRun) -> list[Any]:
        if isinstance(calls, Ahead):
            run.ahead.append(asyncio.ensure_future(self._ask(calls, run.deadline)))
            await asyncio.sleep(0)  # they go out before the program goes on
            return []
        if isinstance(calls, Told):
            if calls.progress is not None and run.tell is not None:
                run.tell(calls.progress)
            return []
        if isinstance(calls, Watching):
            run.streams.append(asyncio.ensure_future(self._watch(calls, run)))
            return []
        return await (self._ask(calls, run.deadline) if calls else run.oldest())

    async def _watch(self, watching: Watching, run: _AsyncRun) -> None:
        """Raises what whoever is told raises."""
        (call,), left = watching, run.deadline.remaining()
        with self._open():
            stream = self._method(call)(call.request, timeout=left, metadata=self._told())
        try:
            while True:
                try:
                    answer = await stream.read()
                except grpc.RpcError:
                    return  # it has ended, or the server knows no such call
                if answer is grpc.aio.EOF:
                    return
                if run.tell is not None:
                    run.tell(watching.hear(answer))
        finally:
            stream.cancel()

    async def _ask(self, calls: Sequence[Call], deadline: Deadline) -> list[Any]:
        """All calls at once; their answers in the same order. The first that fails ends all."""
        left = deadline.remaining()
        with self._open():
            under_way = [self._begun(call, left) for call in calls]
        try:
            return list(await asyncio.gather(*under_way))
        except grpc.RpcError as error:
            raise named(error) from error
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
            gate = Gate(request)
            gate.call = method(gate.pieces(), timeout=timeout, metadata=self._told())
            return gate.call
        return method(request, timeout=timeout, metadata=self._told())


class _AsyncRun:
    """A program that runs. ahead: calls nobody waits for yet. streams: that are heard beside."""

    def __init__(self, deadline: Deadline, tell: Tell | None) -> None:
        self.deadline, self.tell = deadline, tell
        self.ahead: deque[asyncio.Future[list[Any]]] = deque()
        self.streams: list[asyncio.Future[None]] = []

    def _all(self) -> list[asyncio.Future[Any]]:
        return [*self.ahead, *self.streams]

    async def oldest(self) -> list[Any]:
        """The answers to those that wait longest; the first failure of any ends the wait."""
        while True:
            for under_way in self._all():
                if under_way.done():
                    under_way.result()
            if self.ahead[0].done():
                return self.ahead.popleft().result()
            waiting = [each for each in self._all() if not each.done()]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def _note(span: tracing.Span, result: Any) -> None:
    """What an inference cost, where its result says so."""
    stats = getattr(result, "stats", None)
    for name in ("samples", "rounds", "bytes_up", "bytes_down"):
        if isinstance(value := getattr(stats, name, None), int):
            span.note(**{name: value})


def _cancel(under_way: Iterable[Any]) -> None:
    """Those calls that are not done."""
    for call in under_way:
        call.cancel()
