"""A lane's stock of one-time material: received from the dealer ahead of demand, used once.

It lives in memory alone and dies with its session, so nothing of it can be used again after a
crash, a restart or a retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from secure_quant.errors import (
    MalformedMessage,
    MaterialExhausted,
    MaterialReused,
    ModelNotFound,
)
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.feed import Feed

__all__ = ["MOST_AT_DEALER", "MOST_ITEMS", "Stock", "stock_depth"]

MOST_ITEMS = 256
MOST_AT_DEALER = 1024
"""Items of one model, however small they are, in a lane's stock and in the dealer's."""


def stock_depth(item_bytes: int, memory: int, most: int = MOST_ITEMS) -> int:
    """How many items of ``item_bytes`` to hold: what fits ``memory``, but one at least."""
    return max(1, min(most, memory // max(item_bytes, 1)))


@dataclass
class _Shelf:
    """One model's items by index. arrived, taken, reserved: indices of the next item to come, to be
    taken, to be reserved. owed: items taken for which the dealer has no new credit yet. lent: items
    for which it has credit beyond ``depth``, since somebody waited for so many. waits: who waits
    for an item, and for how many seconds of silence."""

    model: str
    depth: int
    correction_bytes: int
    items: dict[int, Item] = field(default_factory=dict)
    arrived: int = 0
    taken: int = 0
    reserved: int = 0
    owed: int = 0
    lent: int = 0
    waits: dict[asyncio.Timeout, float] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Stock:
    """Items of every model of one session, for one party."""

    def __init__(
        self,
        party: int,
        models: Mapping[str, tuple[int, int]],
        feeds: Mapping[str, Feed] | None = None,
        batch: int = 0,
    ) -> None:
        """``models``: hash -> (depth, correction bytes of one item for this party). ``feeds``: at
        party 1, of streamed models, whose items here are seeds alone. ``batch``: most items that
        may be taken at once, where a model's depth is less: then no more are held than its depth
        but while somebody waits for so many."""
        self._party, self.feeds, self._batch = party, dict(feeds or {}), batch
        self._shelves = {name: _Shelf(name, depth, size) for name, (depth, size) in models.items()}
        self._closed = False
        self.on_credit: Callable[[str, int], None] | None = None
        self.on_arrival: Callable[[], None] | None = None

    def depth(self, model: str) -> int:
        """Items that are held at once, of what nobody waits for. Raises ModelNotFound."""
        return self._shelf(model).depth

    def most(self, model: str) -> int:
        """Items that can be taken at once. Raises ModelNotFound."""
        return max(self._shelf(model).depth, self._batch)

    def held(self, model: str) -> int:
        """Items there now."""
        return len(self._shelf(model).items)

    def spare(self, model: str) -> int:
        """Items there now that nobody waits for."""
        shelf = self._shelf(model)
        return 0 if shelf.turn.locked() else len(shelf.items)

    async def take(self, model: str, count: int, timeout: float) -> tuple[int, list[Item]]:
        """The next ``count`` items and the index of the first; waits for them, first come first
        served.

        Raises MaterialExhausted once none has come for ``timeout`` seconds, ModelNotFound.
        """
        shelf = self._shelf(model)
        if count > (most := self.most(model)):
            raise MaterialExhausted("items at once", got=count, expected=f"<= {most}")
        async with self._patience(shelf, timeout), shelf.turn:
            self._lend(shelf, count - shelf.depth)
            await self._until(shelf, lambda: shelf.arrived - shelf.taken >= count)
        first = shelf.taken
        return first, self._pop(shelf, first, count)

    async def take_at(self, model: str, first: int, count: int, timeout: float) -> list[Item]:
        """The items that the other party chose; waits for those still to come.

        Raises MaterialReused for one that was taken before, MaterialExhausted, ModelNotFound.
        """
        shelf = self._shelf(model)
        most = self.most(model)
        if count > most or first > shelf.taken + most:
            raise MalformedMessage("items asked for", got=(first, count), expected=most)
        async with self._patience(shelf, timeout):
            await self._until(shelf, lambda: shelf.arrived >= first + count)
        return self._pop(shelf, first, count)

    def put(self, model: str, index: int, item: Item) -> None:
        """Take in the next item. Raises MalformedMessage if it is not the next."""
        shelf = self._shelf(model)
        if index != shelf.arrived:
            raise MalformedMessage("index of an item", got=index, expected=shelf.arrived)
        shelf.items[index] = item
        shelf.arrived += 1
        for wait, silence in shelf.waits.items():
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time() + silence)
        _wake(shelf)
        if self.on_arrival is not None:
            self.on_arrival()

    def reserve(self, model: str, count: int) -> int:
        """Index of the first of the next ``count`` items of a streamed model, which are ``take_at``
        later, one by one. Raises ModelNotFound."""
        shelf = self._shelf(model)
        shelf.reserved += count
        return shelf.reserved - count

    def release(self, model: str, count: int) -> None:
        """The last ``count`` items that were reserved are not wanted after all."""
        self._shelf(model).reserved -= count

    async def there(self, model: str, timeout: float) -> None:
        """Wait until the next item has come, or others are in use, or on their way. Raises
        MaterialExhausted."""
        shelf, feed = self._shelf(model), self.feeds.get(model)

        def some() -> bool:
            under_way = shelf.reserved > shelf.taken or (feed is not None and feed.flows)
            return bool(shelf.items) or under_way

        async with self._patience(shelf, timeout):
            await self._until(shelf, some)

    def settle(self) -> None:
        """Grant the dealer all the credit that it is owed: for a moment when the lane is quiet."""
        for shelf in self._shelves.values():
            self._grant(shelf)
        for feed in self.feeds.values():
            feed.settle()

    def correction_bytes(self, model: str) -> int:
        """Bytes of corrections that one item has for this party."""
        return self._shelf(model).correction_bytes

    def close(self) -> None:
        """Destroy everything; whoever waits gets MaterialExhausted."""
        self._closed = True
        for shelf in self._shelves.values():
            shelf.items.clear()
            _wake(shelf)
        for feed in self.feeds.values():
            feed.close()

    def _pop(self, shelf: _Shelf, first: int, count: int) -> list[Item]:
        wanted = range(first, first + count)
        if any(index not in shelf.items for index in wanted):
            raise MaterialReused("item", got=first, expected="one that was not taken before")
        found = [shelf.items.pop(index) for index in wanted]
        shelf.taken = max(shelf.taken, first + count)
        repaid = min(shelf.lent, count)
        shelf.lent -= repaid
        shelf.owed += count - repaid
        # A lump now and then: what arrives costs the inference that runs meanwhile.
        if 2 * shelf.owed >= shelf.depth:
            self._grant(shelf)
        return found

    def _grant(self, shelf: _Shelf) -> None:
        if shelf.owed and self.on_credit is not None:
            self.on_credit(shelf.model, shelf.owed)
            shelf.owed = 0

    def _lend(self, shelf: _Shelf, count: int) -> None:
        """Credit for ``count`` items beyond the depth in all."""
        more = count - shelf.lent
        if more > 0 and self.on_credit is not None:
            self.on_credit(shelf.model, more)
            shelf.lent += more

    @asynccontextmanager
    async def _patience(self, shelf: _Shelf, timeout: float) -> AsyncIterator[None]:
        """Raises MaterialExhausted once no item has come for ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout) as wait:
                shelf.waits[wait] = timeout
                try:
                    yield
                finally:
                    del shelf.waits[wait]
        except TimeoutError as error:
            raise MaterialExhausted(
                "no material from the dealer", got=f"{timeout:.1f} s waited", hint=shelf.model[:12]
            ) from error

    async def _until(self, shelf: _Shelf, ready: Callable[[], bool]) -> None:
        while not self._closed and not ready():
            self._grant(shelf)
            await shelf.news.wait()
        if self._closed:
            raise MaterialExhausted("the session's material is gone")

    def _shelf(self, model: str) -> _Shelf:
        shelf = self._shelves.get(model)
        if shelf is None:
            raise ModelNotFound("model", got=model[:64], expected="one that is served here")
        return shelf


def _wake(shelf: _Shelf) -> None:
    """Whoever waits for this shelf looks again."""
    shelf.news.set()
    shelf.news.clear()
