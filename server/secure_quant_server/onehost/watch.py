"""Silence that lasts too long, noticed by one timer that is set anew when it runs out, and not at
every sign of life: of those there are a dozen in an inference of some milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Watch"]


class Watch:
    """In the event loop. seconds: that may pass without a sign. late: called when they have, once
    for each silence."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, late: Callable[[], None]
    ) -> None:
        self._loop, self._seconds, self._late = loop, seconds, late
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """A sign; the next is awaited from now on."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def rest(self) -> None:
        """None is awaited."""
        self._since = None

    def stop(self) -> None:
        """For good."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._since = None
            self._late()
