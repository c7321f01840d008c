"""Material of a streamed model: corrections arrive while they are used, in a bounded window."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage, MaterialExhausted
from secure_quant.mpc.protocol.material import Item

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.party import Expansion, PartyProgram, Ready

__all__ = ["Feed", "Sample"]

Octets = NDArray[np.uint8]


class Feed:
    """Party 1's window on the corrections of a streamed model, item after item.

    size: bytes of one item. window: bytes that may be here at once. on_credit: told for how many
    more there is room, at once while little is here, else when the lane is quiet: what is made for
    the next inference costs this one nothing.
    """

    def __init__(self, sizes: Sequence[int], least: int, most: int = 0) -> None:
        """``sizes``: bytes of each part of an item that is taken at once, none of them 0. The
        window is ``most``, but ``least``, which no two consecutive parts exceed, at least."""
        self._sizes, self.size, self._least = tuple(sizes), sum(sizes), least
        self.window = max(least, most)
        self.on_credit: Callable[[int], None] | None = None
        self.on_leave: Callable[[int], None] | None = None
        """Told the index of an item of whose rest the dealer may make nothing more."""
        self._leavable, self._left = False, 0  # items before this one were left
        self._owed = 0  # bytes taken for which the dealer has no new credit yet
        self._parts: deque[Octets] = deque()  # as they will be used: nothing is copied twice
        self._missing = 0  # bytes of the last one
        self._taken = self._begun = 0  # parts, since the session began
        self._held = 0
        self._read = self._came = 0  # bytes since the session began
        self._heads = 0
        self._unwanted = 0  # what comes before this byte is thrown away
        self._news = asyncio.Event()
        self._closed = False

    def begin(self, index: int, *, leavable: bool = False) -> None:
        """The head of the next item came. leavable: the dealer makes no more of an item that is
        left. Raises MalformedMessage."""
        if self._came < index * self.size and index == self._heads <= self._left:
            self._skip(index)
        if self._came != index * self.size:
            raise MalformedMessage("item", got="a new one", expected="the rest of the last")
        self._heads, self._leavable = index + 1, leavable
        if index < self._left:  # while its head was on its way
            self._leave(index)

    @property
    def flows(self) -> bool:
        """The rest of an item is on its way."""
        return self._came < self._heads * self.size

    def add(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """A chunk came. Raises MalformedMessage."""
        place, end = index * self.size + offset, offset + len(data)
        if place != self._came or not data or end > self.size:
            raise MalformedMessage("chunk", got=(index, offset, len(data)), expected=self._came)
        if self._held + len(data) > self.window:
            raise MalformedMessage("chunk", got="more than there is credit for")
        self._lay(np.frombuffer(data, np.uint8))
        self._held += len(data)
        self._came += len(data)
        self._throw_away()
        self._news.set()

    async def take(self, index: int, offset: int, count: int, patience_s: float) -> memoryview:
        """The next part of an item, ``count`` bytes from ``offset``; nothing may be left out, and
        nothing comes twice.

        Raises MaterialExhausted if nothing arrives for ``patience_s`` seconds.
        """
        place = index * self.size + offset
        next_part = self._size_of(0 if self._unwanted > self._read else self._taken)
        if place != max(self._read, self._unwanted) or count != next_part:
            raise MalformedMessage("corrections asked for", got=(index, offset, count))
        while self._read < place or self._held < count:
            self.settle()
            self._news.clear()
            if self._closed:
                raise MaterialExhausted("the session's material is gone")
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError as error:
                raise MaterialExhausted(
                    "no material from the dealer", got=f"{patience_s:.1f} s of silence"
                ) from error
        return self._pop(count).data.toreadonly()

    def leave(self, index: int) -> None:
        """Nobody wants the rest of an item, if there is one: it is thrown away as it comes, until
        the dealer makes no more of it."""
        self._unwanted = max(self._unwanted, (index + 1) * self.size)
        self._throw_away()
        if self._came < self._unwanted:
            self._left = max(self._left, index + 1)
            if index + 1 == self._heads:
                self._leave(index)

    def _leave(self, index: int) -> None:
        if self._leavable and self.on_leave is not None:
            self.on_leave(index)

    def _skip(self, index: int) -> None:
        """What the dealer did not make of the items before ``index`` counts as thrown away."""
        self._parts.clear()
        self._missing = 0
        self._taken = self._begun = index * len(self._sizes)
        self._read = self._came = index * self.size
        self._owed += self._held
        self._held = 0
        self.settle()

    def settle(self) -> None:
        """Grant the dealer all the credit that it is owed."""
        if self._owed and self.on_credit is not None:
            self.on_credit(self._owed)
            self._owed = 0

    def close(self) -> None:
        """Destroy what is here; whoever waits gets MaterialExhausted."""
        self._closed = True
        self._parts.clear()
        self._held = 0
        self._news.set()

    def _size_of(self, part: int) -> int:
        return self._sizes[part % len(self._sizes)] if self._sizes else 0

    def _throw_away(self) -> None:
        while self._read < self._unwanted and self._held >= (size := self._size_of(self._taken)):
            self._pop(size)

    def _pop(self, count: int) -> Octets:
        """The next part, which is here."""
        made = self._parts.popleft()
        self._taken += 1
        self._read += count
        self._held -= count
        self._owed += count
        if self._held <= self._least:
            self.settle()
        return made

    def _lay(self, data: Octets) -> None:
        """Into the part that is under way, and those after it."""
        while len(data):
            if not self._missing:
                self._missing = self._size_of(self._begun)
                self._parts.append(np.empty(self._missing, np.uint8))
                self._begun += 1
            used, part = min(len(data), self._missing), self._parts[-1]
            first = len(part) - self._missing
            part[first : first + used] = data[:used]
            self._missing -= used
            data = data[used:]


class Sample:
    """One sample's material of a streamed model, a gate at a time, one gate ahead of its use.

    A ``GateSource``: ``next`` gives the gates' halves in the plan's order.
    """

    batch = 1

    def __init__(
        self,
        program: PartyProgram,
        item: Callable[[], Awaitable[Item]],
        corrections: Callable[[int, int], Awaitable[memoryview]] | None,
        pool: Executor,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """item: the seed, when it is first needed. corrections: (offset, bytes) -> party 1's.
        leave: told once no more of them are wanted."""
        self.used = False
        self._program, self._item, self._corrections = program, item, corrections
        self._leave = leave
        self._pool, self._gates = pool, deque(program.plan.order)
        self._expansion: Expansion | None = None
        self._offset = 0
        self._ahead: asyncio.Future[Ready] | None = None

    async def next(self) -> Ready:
        """Raises MaterialExhausted, MaterialReused."""
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._make())
        ready = await self._ahead
        self._ahead = asyncio.ensure_future(self._make()) if self._gates else None
        return ready

    async def close(self) -> None:
        """No more gates are wanted."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        if self._leave is not None:
            self._leave()

    async def _make(self) -> Ready:
        if self._expansion is None:
            seed, _ = (await self._item()).take()
            self._expansion = self._program.expansion([seed])
        gate = self._gates.popleft()
        dealt, count = [memoryview(b"")], 8 * gate.dealt_words
        if count and self._corrections is not None:
            dealt = [await self._corrections(self._offset, count)]
            self._offset += count
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._expansion.next, gate, dealt)
