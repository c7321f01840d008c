"""Evaluation processes: idle ones wait, busy ones answer one request, dead ones are replaced."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from secure_quant.errors import ConfigError, DeadlineExceeded, InternalError, SecureQuantError
from secure_quant_server.common import logs
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

    async def stop(self) -> None:
        self._loaded.clear()

    @property
    def available(self) -> bool:
        return bool(self._loaded)


class Pool(Evaluators):
    """``workers`` processes, each with every model. ``limit_s``: longest evaluation; a worker that
    takes longer is ended and replaced."""

    def __init__(self, bundles: Sequence[bytes], workers: int, *, limit_s: float = 30.0) -> None:
        if workers < 1:
            raise ConfigError("workers", got=workers, expected=">= 1")
        self._bundles, self._count, self._limit = list(bundles), workers, limit_s
        self._idle: asyncio.LifoQueue[WorkerProcess] = asyncio.LifoQueue()  # the warmest first
        self._alive: set[WorkerProcess] = set()
        self._ready = 0  # loaded and not yet seen to fail
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that live or are being started."""
        return [worker.pid for worker in self._alive]

    @property
    def available(self) -> bool:
        return self._ready > 0

    async def start(self) -> list[bytes]:
        infos = await self._launch()
        for _ in range(self._count - 1):
            self._spawn(self._add_worker())
        return infos

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        worker = await self._idle.get()
        # A caller that goes away does not take the worker along: it finishes and is used again.
        task = self._spawn(self._exchange(worker, model, step, batch, ciphertexts))
        return await asyncio.shield(task)

    async def stop(self) -> None:
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in list(self._alive):
            await worker.end()
        self._alive.clear()

    async def _exchange(
        self, worker: WorkerProcess, model: int, step: int, batch: int, ciphertexts: bytes
    ) -> bytes:
        work = worker.evaluate(model, step, batch, ciphertexts)
        return await self._held(worker, work, self._limit)

    async def _held(
        self, worker: WorkerProcess, work: Coroutine[Any, Any, bytes], limit_s: float
    ) -> bytes:
        """The answer of a worker that is not idle; it will be again, or replaced."""
        try:
            async with asyncio.timeout(limit_s):
                answer = await work
        except SecureQuantError:
            self._idle.put_nowait(worker)
            raise
        except TimeoutError as error:
            self._spawn(self._replace(worker))
            raise DeadlineExceeded("evaluation", expected=f"<= {limit_s:g} s") from error
        except (OSError, EOFError) as error:
            self._spawn(self._replace(worker))
            hint = "it may be sent again"
            raise InternalError("the worker that held the request died", hint=hint) from error
        self._idle.put_nowait(worker)
        return answer

    async def _replace(self, worker: WorkerProcess) -> None:
        self._alive.discard(worker)
        self._ready -= 1
        logs.event("worker ended", status=await worker.end())
        await self._add_worker()

    async def _add_worker(self) -> None:
        pause = 0.1
        while not self._stopping:
            try:
                await self._launch()
            except (SecureQuantError, OSError) as error:
                logs.failure("worker did not start", error, again_in_s=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 30.0)
            else:
                return

    def _make(self) -> WorkerProcess:
        return WorkerProcess()

    async def _launch(self) -> list[bytes]:
        worker = self._make()
        self._alive.add(worker)
        try:
            infos = await worker.start(self._bundles)
        except BaseException:
            self._alive.discard(worker)
            await worker.end()
            raise
        self._ready += 1
        self._idle.put_nowait(worker)
        return infos

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
