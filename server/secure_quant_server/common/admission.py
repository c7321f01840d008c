"""Room for calls: of all callers and of each, bodies that are received at once, memory given back.

A call is counted before anything of its body is read, so that what a caller may not do costs a
header and no more. Health and reflection have room of their own: asking how a server is never
takes a call's place, and calls never keep anybody from asking.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from secure_quant.errors import DeadlineExceeded, Overloaded
from secure_quant_server.common.memory import give_back_freed_memory

__all__ = ["LARGE", "Admission", "Held"]

T = TypeVar("T")

BODIES_BYTES = 128 * 2**20
BODY_S = 60.0
OPEN_PER_CLIENT = 16
OPEN_CALLS = 1024
UNREAD_BYTES = 128 * 2**20
UNREAD = 8
"""Answers of one caller that may be unread whatever their size."""
OF_A_STREAM = 2**14
"""What gRPC holds for a call besides its answer, or more."""
LARGE = 2**20
"""A body, or a stream of pieces, that leaves memory worth giving back."""
TRIM_S = 1.0


class Held:
    """Bytes kept: ``total`` of all callers, of which one has half. A caller that holds nothing yet
    may have one thing of any size. what: is kept, for the error."""

    def __init__(self, total: int, what: str = "requests that wait") -> None:
        self._total, self._what = total, what
        self._of: Counter[str] = Counter()

    @contextmanager
    def take(self, client: str, size: int) -> Iterator[None]:
        """Raises Overloaded."""
        self.add(client, size)
        try:
            yield
        finally:
            self.drop(client, size)

    def add(self, client: str, size: int, *, several: int = 0) -> None:
        """Until ``drop``. several: things of that size of which there is room for twice as many in
        all, whatever ``total`` is. Raises Overloaded."""
        total = max(self._total, 2 * several * size)
        mine, all_of_them = self._of[client] + size, self._of.total() + size
        if self._of[client] and (mine > total // 2 or all_of_them > total):
            raise Overloaded(f"bytes of {self._what}", expected=f"<= {total}")
        self._of[client] += size

    def drop(self, client: str, size: int) -> None:
        """What was added."""
        self._of[client] -= size
        if not self._of[client]:
            del self._of[client]


class Admission:
    """max_calls     at once, of all callers; per_client: of one.
    message_bytes largest body. As many are received at once as ``BODIES_BYTES`` hold, at least
                  two, of which one caller has half; the others wait their turn.
    body_s        time that a body has to arrive once its turn came.
    """

    def __init__(
        self, *, max_calls: int, per_client: int, message_bytes: int, body_s: float = BODY_S
    ) -> None:
        self._max_calls, self._per_client, self._body_s = max_calls, per_client, body_s
        self._calls: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        at_once = max(2, BODIES_BYTES // message_bytes)
        self._bodies = asyncio.Semaphore(at_once)
        self._of_client = max(1, at_once // 2)
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._unread = Held(UNREAD_BYTES, "answers that are not read")
        self._trim: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """Calls being served, health and reflection left out."""
        return self._calls.total()

    def enter(self, client: str, *, is_open: bool) -> None:
        """Room for one call, until ``leave``; ``is_open``: to health or reflection. Raises
        Overloaded."""
        count, in_all, of_one, what = self._calls, self._max_calls, self._per_client, "calls"
        if is_open:
            count, in_all, of_one = self._open, OPEN_CALLS, OPEN_PER_CLIENT
            what = "health and reflection calls"
        if count[client] >= of_one:
            raise Overloaded(f"{what} of one client at once", expected=f"<= {of_one}")
        if count.total() >= in_all:
            raise Overloaded(f"{what} at once", expected=f"<= {in_all}")
        count[client] += 1

    def leave(self, client: str, *, is_open: bool) -> None:
        """Give the room of one call back."""
        count = self._open if is_open else self._calls
        count[client] -= 1
        if not count[client]:
            del count[client]
            if not self._calls[client]:
                self._turns.pop(client, None)

    async def body(self, client: str, read: Callable[[], Awaitable[T]]) -> T:
        """What ``read`` brings once it is the caller's turn, inside its call. Raises
        DeadlineExceeded."""
        turn = self._turns.get(client)
        if turn is None:
            turn = self._turns[client] = asyncio.Semaphore(self._of_client)
        async with turn, self._bodies:
            try:
                async with asyncio.timeout(self._body_s):
                    return await read()
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "the request did not arrive", expected=f"<= {self._body_s:g} s"
                ) from error

    def answered(self, client: str, size: int, gone: Callable[[Any], None]) -> None:
        """An answer is ready: it takes room until it is ``gone``, which is told what to call then.
        gRPC keeps it for a caller that grants no window, and has no end to that. Raises Overloaded.
        """
        size += OF_A_STREAM
        self._unread.add(client, size, several=UNREAD)
        gone(lambda *_: self._unread.drop(client, size))

    def received(self, size: int) -> None:
        """A body, or all of a stream, came in: what it leaves behind is given back to the system a
        moment later."""
        if size >= LARGE and self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(TRIM_S, self._give_back)

    def _give_back(self) -> None:
        self._trim = None
        asyncio.get_running_loop().run_in_executor(None, give_back_freed_memory)
