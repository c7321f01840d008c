"""Where the dealer's items are made: ahead of demand and kept, or for a streamed model gate by gate
while they are sent."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from secure_quant.mpc.cost import SEED_BYTES
from secure_quant.mpc.deal import DealerProgram, DealtItem, DealtStream
from secure_quant_server.common import Metrics

__all__ = ["Gauges", "Works", "yield_to_others"]

JOB_BYTES = 4 * 2**20
"""About as much is made in one go: a hop between threads costs as much as a small item."""


def yield_to_others() -> None:
    """Making stock ahead of demand is the one thing here that can wait (nice is per thread)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Gauges:
    """What the dealer tells of itself."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.stock = Gauge(
            "secure_quant_dealer_stock", "Finished items", ["model"], registry=registry
        )
        self.dealt = Counter(
            "secure_quant_dealer_items", "Items handed out", ["model"], registry=registry
        )
        self.seconds = Histogram(
            "secure_quant_dealer_item_seconds", "Time to make an item", ["model"], registry=registry
        )
        self.sessions = Gauge(
            "secure_quant_dealer_sessions", "Sessions with both parties", registry=registry
        )


class Works:
    """Makes one model's items; the bound of its stock is what keeps it from making too many.

    streamed: whether they are made while they are sent. size: bytes of corrections of one.
    """

    def __init__(
        self, program: DealerProgram, stock_bytes: int, gauges: Gauges, pool: ThreadPoolExecutor
    ) -> None:
        self._program, self._pool = program, pool
        label = program.model_hash[:12]
        self._gauge, self._dealt = gauges.stock.labels(label), gauges.dealt.labels(label)
        self._seconds = gauges.seconds.labels(label)
        self.streamed = program.plan.streamed
        self.size = 8 * program.plan.dealt_words
        size = self.size + 2 * SEED_BYTES
        self._depth = max(2, min(1024, stock_bytes // size))
        self._job = max(1, min(JOB_BYTES // size, self._depth // 2))
        self._stock: deque[DealtItem] = deque()
        self._begun = 0
        self._more, self._room = asyncio.Event(), asyncio.Event()

    async def make(self) -> None:
        """Make stock until cancelled; as many of these may run as the pool has threads."""
        while True:
            count = min(self._job, self._depth - len(self._stock) - self._begun)
            if count <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._begun += count
            try:
                self._stock.extend(await self._run(self._several, count))
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
        return item

    def begin(self) -> DealtStream:
        """An item of a streamed model, to be made with ``next_gate``."""
        self._dealt.inc()
        return self._program.deal_stream()

    async def next_gate(self, item: DealtStream) -> memoryview | None:
        """Corrections of its next gate that has any; None after the last."""
        made: memoryview | None = await self._run(next, item.corrections, None)
        return made

    def _several(self, count: int) -> list[DealtItem]:
        made = []
        for _ in range(count):
            start = time.perf_counter()
            made.append(self._program.deal())
            self._seconds.observe(time.perf_counter() - start)
        return made

    async def _run(self, function: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, function, *arguments)
