"""Items of one pairing at the server, by number."""

from __future__ import annotations

import threading

from secure_quant.errors import DeadlineExceeded, MalformedMessage, MaterialReused, Overloaded
from secure_quant.onehost.program import Item

__all__ = ["Stock"]


class Stock:
    """Items by number. One may be claimed while it is being made: the client has its half when it
    heard the last message, which may be before the server has computed its own."""

    def __init__(self, most: int) -> None:
        """most: samples of items that nobody claimed."""
        self._most, self._begun = most, 0
        self._free: dict[int, int] = {}  # number -> samples
        self._items: dict[int, Item] = {}
        self._dropped: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def begin(self, number: int, batch: int) -> None:
        """Room for an item that is made from now on. Raises Overloaded."""
        with self._changed:
            if (samples := sum(self._free.values()) + batch) > self._most:
                expected = f"<= {self._most}"
                raise Overloaded("samples in stock", got=samples, expected=expected)
            self._free[number], self._begun = batch, number

    def undo(self, number: int) -> None:
        """It is not made after all."""
        with self._changed:
            self._free.pop(number, None)
            self._begun = number - 1

    def put(self, item: Item) -> None:
        """It is made."""
        with self._changed:
            if item.number not in self._dropped and not self._closed:
                self._items[item.number] = item
            self._dropped.discard(item.number)
            self._changed.notify_all()

    def claim(self, number: int) -> int:
        """Its samples; nobody can claim it again. Raises MaterialReused for one that is gone,
        MalformedMessage for one that never was."""
        with self._changed:
            batch = self._free.pop(number, None)
            if batch is not None:
                return batch
            if 1 <= number <= self._begun:
                raise MaterialReused("item of material", got=f"{number}, used or given up before")
            raise MalformedMessage("item of material", got=number, expected=f"<= {self._begun}")

    def drop(self, number: int) -> None:
        """Raises as ``claim``."""
        self.claim(number)
        with self._changed:
            if self._items.pop(number, None) is None:
                self._dropped.add(number)

    def at_once(self, number: int) -> Item | None:
        """One that was claimed, if it is made."""
        with self._changed:
            return self._items.pop(number, None)

    def take(self, number: int, seconds: float) -> Item:
        """One that was claimed, once it is made. Raises DeadlineExceeded."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number in self._items, seconds)
            if number not in self._items:
                raise DeadlineExceeded("an item of material", expected=f"within {seconds:g} s")
            return self._items.pop(number)

    def close(self) -> None:
        """Forget everything, and take nothing more."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._items.clear()
            self._changed.notify_all()
