"""Keys and encryptions of zero made ahead, while no inference runs; each serves one inference."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from secure_quant.errors import ConfigError
from secure_quant.ir import Graph
from secure_quant_client.forks import forgotten_by_children

if TYPE_CHECKING:
    from secure_quant.he.plan import HePlan
    from secure_quant_client.driver import Deadline
    from secure_quant_client.he.ckks import CkksKeys

__all__ = ["KeyStock"]

BATCHES = 4


class KeyStock:
    """Up to ``size`` sessions ready for each of the last few batch sizes that were asked for.

    With ``size`` 0, or when the stock is empty, a session does its work when it is used. The
    background thread starts with the first inference and ends with ``close``.
    """

    def __init__(self, graph: Graph, plan: HePlan, size: int) -> None:
        if size < 0:
            raise ConfigError("stock", got=size, expected=">= 0")
        self._graph, self._plan, self._size = graph, plan, size
        self._ready: OrderedDict[int, deque[CkksKeys]] = OrderedDict()
        self._closed = False
        self._empty()
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the keys are the parent's, and so is the thread."""
        self._empty()
        self._ready.clear()

    def _empty(self) -> None:
        self._running = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def session(self, batch: int) -> Iterator[CkksKeys]:
        """A session that nobody else has had, for one inference of ``batch`` samples."""
        with self._changed:
            self._running += 1
            ready = self._shelf(batch)
            session = ready.popleft() if ready else None
        try:
            yield session or self._new()
        finally:
            with self._changed:
                self._running -= 1
                self._start()
                self._changed.notify_all()

    def fill(self, batch: int, deadline: Deadline | None = None) -> None:
        """Make the stock for ``batch`` full now. Raises ValueOutOfRange, DeadlineExceeded."""
        with self._changed:
            missing = self._size - len(self._shelf(batch))
        for _ in range(missing):
            if deadline is not None:
                deadline.remaining()
            self._put(batch, self._prepared(batch))

    def close(self) -> None:
        """End the thread and forget every key."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._ready.clear()

    def _shelf(self, batch: int) -> deque[CkksKeys]:
        shelf = self._ready.setdefault(batch, deque())
        self._ready.move_to_end(batch)
        if len(self._ready) > BATCHES:
            self._ready.popitem(last=False)
        return shelf

    def _put(self, batch: int, session: CkksKeys) -> None:
        with self._changed:
            shelf = self._ready.get(batch)
            if shelf is not None and len(shelf) < self._size:
                shelf.append(session)

    def _new(self) -> CkksKeys:
        from secure_quant_client.he.ckks import CkksKeys  # loads TenSEAL; only when it is needed

        return CkksKeys(self._graph, self._plan)

    def _prepared(self, batch: int) -> CkksKeys:
        session = self._new()
        session.prepare(batch)
        return session

    def _start(self) -> None:
        if self._thread is None and self._size and not self._closed:
            self._thread = threading.Thread(target=self._work, name="session-stock", daemon=True)
            self._thread.start()

    def _missing(self) -> int | None:
        """The batch size asked for last whose shelf is not full; None if nothing is to be done."""
        if self._running:
            return None
        short = (b for b, shelf in reversed(self._ready.items()) if len(shelf) < self._size)
        return next(short, None)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._put(batch, self._prepared(batch))

    def _next(self) -> int | None:
        """Wait until a batch size is short and nothing runs; None once closed."""
        with self._changed:
            while not self._closed:
                batch = self._missing()
                if batch is not None:
                    return batch
                self._changed.wait()
        return None
