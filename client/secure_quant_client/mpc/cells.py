"""Inferences over several cells of two parties: for threads, and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import (
    DeadlineExceeded,
    InternalError,
    MaterialExhausted,
    Overloaded,
    PeerUnavailable,
    SecureQuantError,
    ServiceError,
)
from secure_quant_client.cells import PROBE_S, AsyncReach, Cell, Cells, Reach
from secure_quant_client.driver import Deadline, drive
from secure_quant_client.exact import allow
from secure_quant_client.mpc.model import MpcModel
from secure_quant_client.progress import Telling
from secure_quant_client.stats import Inference

if TYPE_CHECKING:
    from secure_quant_client.mpc.client import AsyncMpcClient, MpcClient

__all__ = ["AsyncCells", "SyncCells"]


_AWAY = (DeadlineExceeded, InternalError, MaterialExhausted, PeerUnavailable)
"""After these a cell has to say that it serves before it is chosen again."""

One = TypeVar("One", "MpcClient", "AsyncMpcClient")
Result = TypeVar("Result")
Choosing = Generator[Callable[[], Any], Any, Result]
"""A program that asks cells. It yields what to call, and is sent what that returns, or for asyncio
what awaiting it does; an error is raised where it was yielded."""


def _elsewhere(error: SecureQuantError, q: NDArray[Any], model: MpcModel) -> bool:
    """Whether nothing of the inference can have begun, where an answer is the error: a party that
    is full refuses before it pairs shares. Of a large input other parts may have been answered."""
    return isinstance(error, Overloaded) and len(q) <= model.batch


def _none_left(last: ServiceError | None) -> ServiceError:
    return last if last is not None else PeerUnavailable("every cell", got="away")


class _Programs(Generic[One]):
    """What both faces do, without I/O. reach: of a client, as ``Reach`` or ``AsyncReach``."""

    def __init__(self, clients: Sequence[One], reach: Callable[[One], Reach | AsyncReach]) -> None:
        self.cells: Cells[One] = Cells(clients)
        self._reach = {id(each): reach(each) for each in clients}

    def _probe_soon(self, cell: Cell[One]) -> None:
        """Run ``_probing`` beside what is done now."""
        raise NotImplementedError

    def _inferring(
        self, q: NDArray[Any], deadline: Deadline, tell: Telling | None
    ) -> Choosing[Inference[np.int64]]:
        tried: list[Cell[One]] = []
        while True:
            cell, model = yield from self._finding(tried, deadline)
            allow(deadline, model, q)
            program = model.infer(q, deadline, watched=tell is not None)
            run = partial(cell.client._run, program, deadline, tell)
            try:
                with self.cells.running(cell):
                    answer: Inference[np.int64] = yield run
                    return answer
            except ServiceError as error:
                if isinstance(error, _AWAY):
                    self.cells.failed(cell)
                if not _elsewhere(error, q, model):
                    raise
                tried.append(cell)
                if len(tried) == len(self.cells.all):
                    raise

    def _checking(self, deadline: Deadline) -> Choosing[None]:
        last: ServiceError | None = None
        for cell in self.cells.all:
            left = Deadline(min(PROBE_S, deadline.remaining()))
            try:
                yield partial(cell.client._check_here, left)
            except ServiceError as error:
                last = error
            else:
                return
        raise _none_left(last)

    def _finding(
        self, tried: list[Cell[One]], deadline: Deadline
    ) -> Choosing[tuple[Cell[One], MpcModel]]:
        """A cell that can be reached, and its model; those that cannot join ``tried``."""
        for due in self.cells.due():
            self._probe_soon(due)
        last: ServiceError | None = None
        while (cell := self.cells.pick(tried)) is not None:
            reach = self._reach[id(cell.client)]
            try:
                yield partial(reach.require, deadline.remaining())
                model: MpcModel = yield partial(cell.client._connect, deadline)
            except ServiceError as error:
                deadline.remaining()
                self.cells.failed(cell)
                tried.append(cell)
                last = error
                continue
            self.cells.require_same(model.graph.hash)
            return cell, model
        raise _none_left(last)

    def _probing(self, cell: Cell[One]) -> Choosing[None]:
        try:
            yield partial(cell.client._check_here, Deadline(PROBE_S))
        except ServiceError:
            self.cells.failed(cell)
        else:
            self.cells.back(cell)


class SyncCells(_Programs["MpcClient"]):
    """For threads. clients: one a cell."""

    def __init__(self, clients: Sequence[MpcClient]) -> None:
        super().__init__(clients, Reach)

    def model(self, deadline: Deadline) -> MpcModel:
        """Of the first cell that tells it. Raises what the last one raised."""
        return self._run(self._finding([], deadline))[1]

    def infer(
        self, q: NDArray[Any], deadline: Deadline, tell: Telling | None = None
    ) -> Inference[np.int64]:
        """int8[batch, ...] -> int64[batch, ...]. Raises as a client of one cell does."""
        return self._run(self._inferring(q, deadline, tell))

    def check(self, deadline: Deadline) -> None:
        """Raises PeerUnavailable and its kin unless a cell serves."""
        self._run(self._checking(deadline))

    def _probe_soon(self, cell: Cell[MpcClient]) -> None:
        threading.Thread(target=self._run, args=(self._probing(cell),), daemon=True).start()

    @staticmethod
    def _run(program: Choosing[Result]) -> Result:
        return drive(program, lambda ask: ask())


class AsyncCells(_Programs["AsyncMpcClient"]):
    """For asyncio."""

    def __init__(self, clients: Sequence[AsyncMpcClient]) -> None:
        super().__init__(clients, AsyncReach)
        self._asking: set[asyncio.Task[None]] = set()

    async def model(self, deadline: Deadline) -> MpcModel:
        """As SyncCells.model."""
        return (await self._run(self._finding([], deadline)))[1]

    async def infer(
        self, q: NDArray[Any], deadline: Deadline, tell: Telling | None = None
    ) -> Inference[np.int64]:
        """As SyncCells.infer."""
        return await self._run(self._inferring(q, deadline, tell))

    async def check(self, deadline: Deadline) -> None:
        """As SyncCells.check."""
        await self._run(self._checking(deadline))

    async def stop(self) -> None:
        """Give up what is being asked."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _probe_soon(self, cell: Cell[AsyncMpcClient]) -> None:
        task = asyncio.create_task(self._run(self._probing(cell)))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    @staticmethod
    async def _run(program: Choosing[Result]) -> Result:
        try:
            ask = next(program)
            while True:
                try:
                    answer = await ask()
                except SecureQuantError as error:
                    ask = program.throw(error)
                else:
                    ask = program.send(answer)
        except StopIteration as done:
            result: Result = done.value
            return result
        finally:
            program.close()
