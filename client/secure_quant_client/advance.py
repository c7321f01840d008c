"""How asyncio goes on with a program, and with a stream of requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from secure_quant.errors import SecureQuantError
from secure_quant.wire import TAKEN
from secure_quant_client.program import Call, Program

__all__ = ["Done", "Gate", "Running", "Step"]

TAKEN_S = 1.0
"""Longest wait of an upload for the server's word that it takes it in."""


class Gate:
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
class Done:
    """What a program returned: StopIteration cannot cross a thread's future."""

    result: Any


Step = Sequence[Call] | Done


class Running:
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
            return Done(done.value)
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
