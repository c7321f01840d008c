"""Joins what several callers ask at once into one inference of the servers.

Nothing waits for company while fewer inferences run than may; what comes meanwhile goes together,
up to the servers' own batch. The integers of a sample do not depend on those beside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import InternalError, Overloaded, SecureQuantError

__all__ = ["Infer", "Joiner"]

Infer = Callable[[NDArray[np.int8], float | None], Awaitable[NDArray[np.int64]]]
"""int8[batch, ...] and the seconds it may take, None where nobody says -> int64[batch, ...]."""


class _Entry:
    def __init__(self, q: NDArray[np.int8], seconds: float | None) -> None:
        self.q, self.until = q, math.inf if seconds is None else time.monotonic() + seconds
        self.answer: asyncio.Future[NDArray[np.int64]] = asyncio.get_running_loop().create_future()


class Joiner:
    """samples: most of one joined inference; a larger request goes alone. at_once: inferences that
    run side by side. pending: requests that may wait."""

    def __init__(self, infer: Infer, *, samples: int, at_once: int, pending: int) -> None:
        self._infer, self._samples = infer, samples
        self._at_once, self._pending = at_once, pending
        self._waiting: deque[_Entry] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self.inferences = self.requests = 0
        """So far: of the servers, of callers."""

    async def infer(self, q: NDArray[np.int8], seconds: float | None) -> NDArray[np.int64]:
        """int8[batch, ...] -> int64[batch, ...], not waited for longer than ``seconds``. Who is
        cancelled before it began has no part in it. Raises Overloaded, and what the servers' client
        raises."""
        if len(self._waiting) >= self._pending:
            raise Overloaded("requests that wait", expected=f"<= {self._pending}")
        entry = _Entry(q, seconds)
        self._waiting.append(entry)
        self.requests += 1
        self._go_on()
        return await entry.answer

    async def stop(self) -> None:
        """Give up what runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _go_on(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            entries = self._next()
            if entries:
                task = asyncio.create_task(self._together(entries))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._go_on()

    def _next(self) -> list[_Entry]:
        """Those that wait longest, as many as fit; whose caller has gone is left out."""
        taken: list[_Entry] = []
        samples = 0
        while self._waiting:
            entry = self._waiting[0]
            if not entry.answer.done():
                if taken and samples + len(entry.q) > self._samples:
                    break
                taken.append(entry)
                samples += len(entry.q)
            self._waiting.popleft()
        return taken

    async def _together(self, entries: list[_Entry]) -> None:
        """The patience of a joined inference is that of its most patient caller."""
        arrays = [entry.q for entry in entries]
        q = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self.inferences += 1
        try:
            left = max(entry.until for entry in entries) - time.monotonic()
            y = await self._infer(q, None if left == math.inf else max(left, 1e-3))
        except SecureQuantError as error:
            _settle(entries, error)
        except asyncio.CancelledError:
            _settle(entries, InternalError("the gateway stops"))
            raise
        except Exception as error:  # noqa: BLE001  each caller's own border names and logs it
            _settle(entries, error)
        else:
            start = 0
            for entry in entries:
                if not entry.answer.done():
                    entry.answer.set_result(y[start : start + len(entry.q)])
                start += len(entry.q)


def _settle(entries: list[_Entry], error: Any) -> None:
    for entry in entries:
        if not entry.answer.done():
            entry.answer.set_exception(error)
