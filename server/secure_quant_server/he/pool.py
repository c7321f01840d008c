"""Evaluation processes: idle ones wait, busy ones answer one request, dead ones are replaced."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    InternalError,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.transport import Turns
from secure_quant_server.common import current_caller, logs
from secure_quant_server.common.workers import START_S, Keeper, Template, Worker, WorkerKind
from secure_quant_server.he.process import WorkerProcess

if TYPE_CHECKING:
    from secure_quant.he.evaluate import Evaluator

__all__ = ["Evaluators", "InProcess", "Pool"]

T = TypeVar("T")


class Evaluators(ABC):
    """Where EvaluateLinear is computed."""

    @abstractmethod
    async def start(self) -> list[bytes]:
        """Load the models; the serialized ModelInfo of each. Raises MalformedModel and its kin."""

    @abstractmethod
    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        """Raises MalformedMessage, InternalError, DeadlineExceeded."""

    @abstractmethod
    async def stop(self) -> None:
        """Let nothing run on."""

    @abstractmethod
    async def drain(self) -> None:
        """Take no more requests, and let those that are here be answered."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether a request would find somebody to evaluate it."""


class InProcess(Evaluators):
    """In the server's own process: saves a hop, and gives up that a crash costs one request only,
    that the port answers during an evaluation, and parallelism."""

    def __init__(self, bundles: Sequence[bytes]) -> None:
        self._bundles = list(bundles)
        self._loaded: list[Evaluator] = []

    async def start(self) -> list[bytes]:
        from secure_quant_server.he.worker import describe, load

        logs.event("no worker processes", consequence="one bad request can end the server")
        self._loaded = [load(bundle) for bundle in self._bundles]
        return [describe(evaluator) for evaluator in self._loaded]

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        return self._loaded[model].evaluate(step, batch, ciphertexts)

    async def drain(self) -> None:
        """A request is answered within one turn of the loop."""

    async def stop(self) -> None:
        self._loaded.clear()

    @property
    def available(self) -> bool:
        return bool(self._loaded)


class Pool(Evaluators):
    """``workers`` processes, each with every model. ``limit_s``: longest evaluation; a worker that
    takes longer is ended and replaced."""

    def __init__(
        self, bundles: Sequence[bytes], workers: int, kind: WorkerKind, *, limit_s: float = 30.0
    ) -> None:
        if workers < 1:
            raise ConfigError("workers", got=workers, expected=">= 1")
        self.bundles, self._limit = list(bundles), limit_s
        self._template = Template(kind)
        self._places = [_Place(self, self._template, number) for number in range(workers)]
        self._idle: Turns[WorkerProcess] = Turns()  # the warmest first
        self._ready: set[WorkerProcess] = set()
        self._loaded: asyncio.Future[list[bytes]] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs: list[asyncio.Task[None]] = []
        self._waiting, self._closing = 0, False

    @property
    def available(self) -> bool:
        return bool(self._ready) and not self._closing

    @property
    def pids(self) -> list[int]:
        """Of the processes that have loaded the models and live."""
        return [worker.pid for worker in list(self._ready) if worker.alive]

    @property
    def configured(self) -> int:
        """Processes that there are to be."""
        return len(self._places)

    @property
    def ready(self) -> int:
        """Processes that have loaded the models."""
        return len(self._ready)

    @property
    def restarts(self) -> int:
        """Processes that were lost, and started again."""
        return sum(place.restarts for place in self._places)

    @property
    def waiting(self) -> int:
        """Requests that wait or are evaluated."""
        return self._waiting + len(self._tasks)

    async def start(self) -> list[bytes]:
        self._loaded = asyncio.get_running_loop().create_future()
        first, *others = self._places
        self._runs = [asyncio.create_task(first.run())]
        infos = await self._loaded
        self._runs += [asyncio.create_task(place.run()) for place in others]
        return infos

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        return await self._given(
            lambda worker: worker.evaluate(model, step, batch, ciphertexts), self._limit
        )

    async def drain(self) -> None:
        self._closing = True
        end = asyncio.get_running_loop().time() + self._limit
        while (self._tasks or self._waiting) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for task in [*self._tasks, *self._runs]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._runs, return_exceptions=True)
        await self._template.stop()

    def came(self, worker: WorkerProcess, infos: list[bytes]) -> None:
        """A worker has loaded the models."""
        self._ready.add(worker)
        self._idle.put(worker)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(infos)

    def left(self, worker: WorkerProcess | None, error: BaseException | None) -> None:
        """A worker has ended, or did not even start."""
        if worker is not None:
            self._ready.discard(worker)
            self._idle.remove(worker)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(error or InternalError("no worker could be started"))

    async def _given(
        self, work: Callable[[WorkerProcess], Coroutine[Any, Any, bytes]], limit_s: float
    ) -> bytes:
        """The answer of the next idle worker, or of another if that died before it began."""
        while True:
            worker = await self._take()
            # A caller that goes away does not take the worker along: it ends its work first.
            held = self._held(worker, work(worker), limit_s)
            answer = await asyncio.shield(self._spawn(held))
            if answer is not None:
                return answer

    async def _take(self) -> WorkerProcess:
        """The next idle worker, when it is the caller's turn. One that died meanwhile costs nobody
        anything."""
        if self._closing:
            raise PeerUnavailable("this server is stopping", hint="another replica may answer")
        self._waiting, caller = self._waiting + 1, current_caller().name
        try:
            while True:
                worker = await self._idle.get(caller)
                if worker.alive:
                    return worker
        finally:
            self._waiting -= 1

    async def _held(
        self, worker: WorkerProcess, work: Coroutine[Any, Any, bytes], limit_s: float
    ) -> bytes | None:
        """The answer of a worker that is not idle; it will be again, or replaced. None if it died
        without having looked at the request."""
        try:
            async with asyncio.timeout(limit_s):
                answer = await work
        except SecureQuantError:
            self._idle.put(worker)
            raise
        except TimeoutError as error:
            worker.condemn(f"more than {limit_s:g} s for an evaluation")
            raise DeadlineExceeded("evaluation", expected=f"<= {limit_s:g} s") from error
        except EOFError as error:
            if not worker.begun:
                return None
            hint = "it may be sent again"
            raise InternalError("the worker that held the request died", hint=hint) from error
        self._idle.put(worker)
        return answer

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that is kept until it is done, and whose exception is never "not retrieved"."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


class _Place(Keeper):
    """Always has a worker of the pool."""

    def __init__(self, pool: Pool, template: Template, number: int) -> None:
        super().__init__(template, number)
        self._pool = pool
        self._process: WorkerProcess | None = None

    async def attend(self, worker: Worker) -> None:
        self._process = process = WorkerProcess(worker)
        reading = asyncio.ensure_future(process.read())
        try:
            async with asyncio.timeout(START_S):
                infos = await process.load(self._pool.bundles)
            self.served = True
            self._pool.came(process, infos)
            await reading
        except TimeoutError as error:
            raise InternalError("a worker does not load the models in time") from error
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def lost(self, error: BaseException | None) -> None:
        self._pool.left(self._process, error)
        self._process = None
