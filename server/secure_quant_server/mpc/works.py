"""Where the dealer's items are made: ahead of demand and kept, or for a streamed model gate by gate
while they are sent."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.protocol.deal import DealerProgram, DealtGates, DealtItem
from secure_quant.mpc.runtime.stock import MOST_AT_DEALER, stock_depth
from secure_quant_server.common import Metrics, logs
from secure_quant_server.mpc.spool import TAG_BYTES, Spool

__all__ = ["Gauges", "Rate", "Shelf", "Works", "yield_to_others"]

JOB_BYTES = 4 * 2**20
"""About so much is made in one go: a hop between threads costs as much as a small item."""


def yield_to_others() -> None:
    """Making stock ahead of demand is the one thing here that can wait (nice is per thread)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Rate:
    """Events a second, as an average in which those of ``HALF_S`` ago count half."""

    HALF_S = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._seen = clock()
        self._weight = 0.0

    def add(self) -> None:
        """One event, now."""
        self._weight = self._faded() + 1.0
        self._seen = self._clock()

    def now(self) -> float:
        """0 before the first."""
        # Of a steady rate only this share lies behind it since the beginning.
        share = 1.0 - 0.5 ** ((self._clock() - self._began) / self.HALF_S)
        return self._faded() * math.log(2) / self.HALF_S / share if share > 0 else 0.0

    def _faded(self) -> float:
        faded: float = 0.5 ** ((self._clock() - self._seen) / self.HALF_S)
        return self._weight * faded


class Gauges:
    """What the dealer tells of itself."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.stock = Gauge(
            "secure_quant_dealer_stock", "Finished items", ["model"], registry=registry
        )
        self.stock_seconds = Gauge(
            "secure_quant_dealer_stock_seconds",
            "How long finished items last, in memory and on disk, as they were asked for lately",
            ["model"], registry=registry,
        )  # fmt: skip
        self.dealt = Counter(
            "secure_quant_dealer_items", "Items handed out", ["model"], registry=registry
        )
        self.seconds = Histogram(
            "secure_quant_dealer_item_seconds", "Time to make an item", ["model"], registry=registry
        )
        self.sessions = Gauge(
            "secure_quant_dealer_sessions", "Sessions with both parties", registry=registry
        )
        self.spooled = Gauge(
            "secure_quant_dealer_spooled", "Finished items on disk", ["model"], registry=registry
        )
        self.spool_bytes = Gauge(
            "secure_quant_dealer_spool_bytes", "Bytes of items on disk", registry=registry
        )
        self.spool_failing = Gauge(
            "secure_quant_dealer_spool_failing",
            "1 while the disk refuses items, and memory alone holds stock", registry=registry,
        )  # fmt: skip
        self._failures = Counter(
            "secure_quant_dealer_spool_failures",
            "Items that could not be written, or not be read back", registry=registry,
        )  # fmt: skip

    def open_spool(self, folder: str | os.PathLike[str], limit: int) -> Spool:
        """A spool that these gauges watch. Raises ConfigError."""
        spool = Spool(folder, limit, self._spool_failed)
        self.spool_bytes.set_function(lambda: spool.used)
        self.spool_failing.set_function(lambda: spool.failing)
        return spool

    def _spool_failed(self, reason: str) -> None:
        self._failures.inc()
        logs.event("spool failed", level=logging.WARNING, reason=reason)


class Shelf:
    """One model's items on disk. Its methods may block, and run in the pool."""

    def __init__(self, spool: Spool, items: int) -> None:
        """``items``: most that this model may have there."""
        self._spool, self._most = spool, items
        self._numbers: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, deal: Callable[[], DealtItem], size: int) -> bool:
        """Make an item of ``size`` bytes and put it there. False if there is no room, or if the
        disk refuses."""
        if len(self) >= self._most or not self._spool.room(size):
            return False
        item = deal()
        number = self._spool.put(b"".join((item.seed0, item.seed1, item.corrections)))
        if number is not None:
            self._numbers.append(number)
        return number is not None

    def take(self, count: int) -> list[DealtItem]:
        """Up to ``count`` items; those that cannot be read back are lost."""
        made: list[DealtItem] = []
        while self._numbers and len(made) < count:
            whole = self._spool.take(self._numbers.popleft())
            if whole is not None:
                seeds = bytes(whole[: 2 * SEED_BYTES])
                rest = whole[2 * SEED_BYTES :]
                made.append(DealtItem(seeds[:SEED_BYTES], seeds[SEED_BYTES:], rest))
        return made


class Works:
    """Makes one model's items; the bound of its stock is what keeps it from making too many.

    streamed: whether they are made while they are sent. size: bytes of corrections of one.
    splits: what each party's bundle is known by.
    """

    def __init__(
        self,
        program: DealerProgram,
        stock_bytes: int,
        gauges: Gauges,
        pool: ThreadPoolExecutor,
        spool: Spool | None = None,
        spool_bytes: int = 0,
    ) -> None:
        """``spool_bytes``: of files in ``spool`` that are this model's."""
        self._program, self._pool = program, pool
        label = program.model_hash[:12]
        self._spooled = gauges.spooled.labels(label)
        self._gauge, self._dealt = gauges.stock.labels(label), gauges.dealt.labels(label)
        self._seconds, self._rate = gauges.seconds.labels(label), Rate()
        self.streamed, self.splits = program.plan.streamed, program.splits
        self.size = 8 * program.plan.dealt_words
        size = self.size + 2 * SEED_BYTES
        self._shelf = None if spool is None else Shelf(spool, spool_bytes // (size + TAG_BYTES))
        self._depth = stock_depth(size, stock_bytes, MOST_AT_DEALER)
        self._job = max(1, min(JOB_BYTES // size, self._depth // 2))
        self._stock: deque[DealtItem] = deque()
        self._begun = 0
        if not self.streamed:
            gauges.stock_seconds.labels(label).set_function(self._lasts)
        self._more, self._room = asyncio.Event(), asyncio.Event()

    async def make(self) -> None:
        """Make stock until cancelled; as many of these may run as the pool has threads."""
        while True:
            self._room.clear()
            count = min(self._job, self._depth - len(self._stock) - self._begun)
            if count > 0:
                await self._restock(count)
            elif not await self._put_aside():
                await self._room.wait()

    async def _put_aside(self) -> bool:
        """One item more on disk, if there is room."""
        if self._shelf is None:
            return False
        done: bool = await self._run(self._shelf.add, self._deal, self.size + 2 * SEED_BYTES)
        self._spooled.set(len(self._shelf))
        return done

    async def _restock(self, count: int) -> None:
        """``count`` items more in memory: from disk if some are there."""
        self._begun += count
        try:
            made = await self._run(self._shelf.take, count) if self._shelf else []
            self._stock.extend(made or await self._run(self._several, count))
            self._spooled.set(len(self._shelf or ()))
        finally:
            self._begun -= count
        self._gauge.set(len(self._stock))
        self._more.set()

    async def take(self) -> DealtItem:
        """An item nobody had before; it is the caller's to hand out once."""
        while not self._stock:
            self._more.clear()
            await self._more.wait()
        item = self._stock.popleft()
        if self._depth - len(self._stock) - self._begun >= self._job:
            self._room.set()
        self._gauge.set(len(self._stock))
        self._dealt.inc()
        self._rate.add()
        return item

    def _lasts(self) -> float:
        """Seconds, infinite where nobody asks."""
        items, rate = len(self._stock) + len(self._shelf or ()), self._rate.now()
        return items / rate if rate > 1e-6 else math.inf

    def begin(self) -> DealtGates:
        """An item of a streamed model, to be made with ``next_gate``."""
        self._dealt.inc()
        return self._program.deal_gates()

    async def next_gate(self, item: DealtGates) -> memoryview | None:
        """Corrections of its next gate that has any; None after the last."""
        made: memoryview | None = await self._run(next, item.corrections, None)
        return made

    def _several(self, count: int) -> list[DealtItem]:
        return [self._deal() for _ in range(count)]

    def _deal(self) -> DealtItem:
        start = time.perf_counter()
        made = self._program.deal()
        self._seconds.observe(time.perf_counter() - start)
        return made

    async def _run(self, function: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, function, *arguments)
