"""The front's handle on one evaluation process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from secure_quant.errors import InternalError, SecureQuantError
from secure_quant_server.common.messages import error_from_bytes
from secure_quant_server.common.workers import Worker
from secure_quant_server.he.frames import Begun, Done, Evaluate, Failed, Load

__all__ = ["WorkerProcess"]


class WorkerProcess:
    """One exchange at a time. ``read`` must run for as long as it is used.

    session: whose keys it has loaded, of a leveled model. begun: whether it has taken the request
    that it was given last.
    """

    session = b""
    begun = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: asyncio.Future[bytes] | None = None
        self._condemned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """Whether it can be given a request."""
        return not self._condemned.done() and self._worker.alive

    @property
    def pid(self) -> int:
        return self._worker.pid

    async def load(self, bundles: Sequence[bytes]) -> list[bytes]:
        """The serialized ModelInfo of each bundle. Raises what loading raised, or InternalError."""
        try:
            return [await self._exchange(Load(len(bundles), bundle)) for bundle in bundles]
        except EOFError as error:
            raise InternalError("a worker ended while it loaded the models") from error

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        """Raises the worker's named error; EOFError if the process is gone."""
        return await self._exchange(Evaluate(model, step, batch, ciphertexts))

    async def read(self) -> None:
        """Take its answers in until it is lost or condemned: then raises."""
        answers = asyncio.ensure_future(self._answers())
        try:
            await asyncio.wait([answers, self._condemned], return_when=asyncio.FIRST_COMPLETED)
            (self._condemned if self._condemned.done() else answers).result()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            self.condemn("it ended")
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_exception(EOFError())

    def condemn(self, reason: str) -> None:
        """It is to be used no more."""
        if not self._condemned.done():
            self._condemned.set_exception(InternalError("a worker that was given up", got=reason))
            self._condemned.exception()  # whether or not anybody reads any more

    async def _answers(self) -> None:
        while True:
            message = await self._worker.receive()
            if self._waiting is None or self._waiting.done():
                raise InternalError("an answer of a worker that nobody asked for")
            if isinstance(message, Begun):
                self.begun = True
            elif isinstance(message, Done):
                self._waiting.set_result(message.body)
            elif isinstance(message, Failed):
                self._waiting.set_exception(error_from_bytes(message.body))

    async def _exchange(self, message: Any) -> bytes:
        self.begun = False
        if self._condemned.done():
            raise EOFError
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            self._worker.send(message)
        except SecureQuantError as error:
            raise EOFError from error
        return await self._waiting
