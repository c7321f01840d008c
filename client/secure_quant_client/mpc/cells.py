"""Inferences over several cells of two parties: for threads, and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from secure_quant_client.connection import allow
from secure_quant_client.driver import Deadline
from secure_quant_client.mpc.model import MpcModel
from secure_quant_client.stats import Inference

if TYPE_CHECKING:
    from secure_quant_client.mpc.client import AsyncMpcClient, MpcClient

__all__ = ["AsyncCells", "SyncCells"]


_AWAY = (DeadlineExceeded, InternalError, MaterialExhausted, PeerUnavailable)
"""After these a cell has to say that it serves before it is chosen again."""


def _elsewhere(error: SecureQuantError, q: NDArray[Any], model: MpcModel) -> bool:
    """Whether nothing of the inference can have begun, where an answer is the error: a party that
    is full refuses before it pairs shares. Of a large input other parts may have been answered."""
    return isinstance(error, Overloaded) and len(q) <= model.batch


def _none_left(last: ServiceError | None) -> ServiceError:
    return last if last is not None else PeerUnavailable("every cell", got="away")


class SyncCells:
    """For threads. clients: one a cell."""

    def __init__(self, clients: Sequence[MpcClient]) -> None:
        self.cells = Cells(clients)
        self._reach = {id(each): Reach(each) for each in clients}

    def model(self, deadline: Deadline) -> MpcModel:
        """Of the first cell that tells it. Raises what the last one raised."""
        return self._found([], deadline)[1]

    def infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        """int8[batch, ...] -> int64[batch, ...]. Raises as a client of one cell does."""
        tried: list[Cell[MpcClient]] = []
        while True:
            cell, model = self._found(tried, deadline)
            allow(deadline, model, q)
            try:
                with self.cells.running(cell):
                    return cell.client._run(model.infer(q, deadline), deadline)
            except ServiceError as error:
                if isinstance(error, _AWAY):
                    self.cells.failed(cell)
                if not _elsewhere(error, q, model):
                    raise
                tried.append(cell)
                if len(tried) == len(self.cells.all):
                    raise

    def check(self, deadline: Deadline) -> None:
        """Raises PeerUnavailable and its kin unless a cell serves."""
        last: ServiceError | None = None
        for cell in self.cells.all:
            try:
                return cell.client._check_here(Deadline(min(PROBE_S, deadline.remaining())))
            except ServiceError as error:
                last = error
        raise _none_left(last)

    def _found(
        self, tried: list[Cell[MpcClient]], deadline: Deadline
    ) -> tuple[Cell[MpcClient], MpcModel]:
        """A cell that can be reached, and its model; those that cannot join ``tried``."""
        for due in self.cells.due():
            threading.Thread(target=self._probe, args=(due,), daemon=True).start()
        last: ServiceError | None = None
        while (cell := self.cells.pick(tried)) is not None:
            try:
                self._reach[id(cell.client)].require(deadline.remaining())
                model = cell.client._connect(deadline)
            except ServiceError as error:
                deadline.remaining()
                self.cells.failed(cell)
                tried.append(cell)
                last = error
                continue
            self.cells.require_same(model.graph.hash)
            return cell, model
        raise _none_left(last)

    def _probe(self, cell: Cell[MpcClient]) -> None:
        try:
            cell.client._check_here(Deadline(PROBE_S))
        except ServiceError:
            self.cells.failed(cell)
        else:
            self.cells.back(cell)


class AsyncCells:
    """For asyncio."""

    def __init__(self, clients: Sequence[AsyncMpcClient]) -> None:
        self.cells = Cells(clients)
        self._reach = {id(each): AsyncReach(each) for each in clients}
        self._probing: set[asyncio.Task[None]] = set()

    async def model(self, deadline: Deadline) -> MpcModel:
        """As SyncCells.model."""
        return (await self._found([], deadline))[1]

    async def infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        """As SyncCells.infer."""
        tried: list[Cell[AsyncMpcClient]] = []
        while True:
            cell, model = await self._found(tried, deadline)
            allow(deadline, model, q)
            try:
                with self.cells.running(cell):
                    return await cell.client._run(model.infer(q, deadline), deadline)
            except ServiceError as error:
                if isinstance(error, _AWAY):
                    self.cells.failed(cell)
                if not _elsewhere(error, q, model):
                    raise
                tried.append(cell)
                if len(tried) == len(self.cells.all):
                    raise

    async def check(self, deadline: Deadline) -> None:
        """As SyncCells.check."""
        last: ServiceError | None = None
        for cell in self.cells.all:
            try:
                return await cell.client._check_here(Deadline(min(PROBE_S, deadline.remaining())))
            except ServiceError as error:
                last = error
        raise _none_left(last)

    async def stop(self) -> None:
        """Give up what is being asked."""
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)

    async def _found(
        self, tried: list[Cell[AsyncMpcClient]], deadline: Deadline
    ) -> tuple[Cell[AsyncMpcClient], MpcModel]:
        for due in self.cells.due():
            task = asyncio.create_task(self._probe(due))
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)
        last: ServiceError | None = None
        while (cell := self.cells.pick(tried)) is not None:
            try:
                await self._reach[id(cell.client)].require(deadline.remaining())
                model = await cell.client._connect(deadline)
            except ServiceError as error:
                deadline.remaining()
                self.cells.failed(cell)
                tried.append(cell)
                last = error
                continue
            self.cells.require_same(model.graph.hash)
            return cell, model
        raise _none_left(last)

    async def _probe(self, cell: Cell[AsyncMpcClient]) -> None:
        try:
            await cell.client._check_here(Deadline(PROBE_S))
        except ServiceError:
            self.cells.failed(cell)
        else:
            self.cells.back(cell)
