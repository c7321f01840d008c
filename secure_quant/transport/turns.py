"""Callers take turns where several wait for the same few things."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns(Generic[T]):
    """Things of which nobody has more than one at a time: what was given back last goes out first.

    Among those who wait each caller is served in turn, so whoever asks for much at once waits for
    itself; of one caller's requests the oldest goes first. In one event loop.
    """

    def __init__(self, things: Iterable[T] = ()) -> None:
        self._idle = list(things)
        self._waiting: OrderedDict[str, deque[asyncio.Future[T]]] = OrderedDict()

    async def get(self, caller: str) -> T:
        """One of them, once it is the caller's turn."""
        if self._idle:
            return self._idle.pop()
        given: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(given)
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.put(given.result())  # it came at that moment
            raise

    def put(self, thing: T) -> None:
        """Give one back, or add one."""
        while self._waiting:
            caller, waiting = self._waiting.popitem(last=False)
            given = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting  # behind the others
            if not given.done():
                given.set_result(thing)
                return
        self._idle.append(thing)

    def remove(self, thing: T) -> None:
        """It is given to nobody any more, if nobody has it now."""
        with suppress(ValueError):
            self._idle.remove(thing)
