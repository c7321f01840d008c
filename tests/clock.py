"""An event loop for tests whose time moves only when nothing else can.

A timer waits no real time, and what is due happens in the same order however busy the machine is.
Time stands still while a thread of an executor works; such a thread must not wait for the clock.
Not for sockets: what the system, another process or gRPC's own thread does takes real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

Result = TypeVar("Result")

HANGS_S = 120.0
"""Real seconds after which a thread is taken to hang."""


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if self._clock.away or timeout is None:
            found = super().select(HANGS_S)
            if not found:
                raise RuntimeError("all wait for each other, or a thread waits for the clock")
            return found
        self._clock.now += timeout
        return []


class Clock(asyncio.SelectorEventLoop):
    """now: seconds. away: executors' threads that work for the loop."""

    def __init__(self) -> None:
        self.now, self.away = 0.0, 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(
        self, executor: Executor | None, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        done = super().run_in_executor(executor, func, *args)
        self.away += 1
        done.add_done_callback(self._back)
        return done

    def _back(self, _: object) -> None:
        self.away -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        await super().shutdown_default_executor()  # without a limit, which would pass at once


def run(work: Coroutine[Any, Any, Result], seconds: float = 3600.0) -> Result:
    """The result of ``work``, which takes at most so many seconds of the loop's."""

    async def bounded() -> Result:
        async with asyncio.timeout(seconds):
            return await work

    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(bounded())
