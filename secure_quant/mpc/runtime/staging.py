"""Material set aside for the inferences of one session, and expanded ahead of them.

Party 1 takes items from its stock and tells party 0 which (``LinkStage``), so that both expand the
same ones while the client's share is still on its way, or before anybody asks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage, MaterialExhausted, ModelNotFound
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.runtime.feed import Feed, Sample
from secure_quant.mpc.runtime.link import PartyLink
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.mpc.runtime.stock import MOST_ITEMS, Stock, stock_depth
from secure_quant.wire.gen.party_link_pb2 import LinkStage

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.material import Item
    from secure_quant.mpc.protocol.party import PartyProgram, Prepared

__all__ = ["MATERIAL_WAIT_S", "Staged", "Staging", "Streamed", "make_stock"]

MAX_ANNOUNCED = 1024
FOREVER_S = 1e6
MATERIAL_WAIT_S = 10.0
"""Longest wait for the dealer. A deadline of the caller ends its own wait earlier."""

RECENT_S = 30.0
"""For so long after a batch of some size was asked for, another of that size is kept ready."""

GRACE_S = 0.001
"""After an inference, before material is expanded again."""

SETTLE_S = 0.02
"""A pause this long is one: then the dealer gets all the credit that it is owed."""

SMALL_BYTES = 2**15
"""Expanded material that is made at once and in the loop: to hand it to a thread takes longer."""

Octets = NDArray[np.uint8]
Key = tuple[str, int]
"""Model hash and samples of one inference."""


@dataclass(eq=False)
class Staged:
    """Consecutive items set aside for one inference; ``ready`` once they are expanded."""

    model: str
    first: int
    count: int
    ready: asyncio.Future[Prepared]

    def begin(self) -> None:
        """It is the inference's turn."""

    async def calls(self, share: Octets) -> AsyncGenerator[tuple[Octets, Prepared], None]:
        """Share and material of every call of the program that the inference takes: of one."""
        yield share, await self.prepared()

    async def prepared(self) -> Prepared:
        """The expanded material. Raises MaterialExhausted, and what the expansion raised."""
        if not self.ready.done():
            await asyncio.wait([self.ready], timeout=MATERIAL_WAIT_S)
        if not self.ready.done():
            raise MaterialExhausted(
                "no material from the dealer", got=f"{MATERIAL_WAIT_S:.1f} s waited"
            )
        return self.ready.result()


@dataclass(eq=False)
class Streamed:
    """Consecutive items of a streamed model for one inference, used one after the other: the next
    ones of ``stock`` when it begins. named: the first, as party 1 named it."""

    model: str
    count: int
    stock: Stock
    sample: Callable[[int], Sample]
    named: int | None = None
    first: int = -1

    def begin(self) -> None:
        """It is the inference's turn. Raises MalformedMessage."""
        self.first = self.stock.reserve(self.model, self.count)
        if self.named not in (None, self.first):
            raise MalformedMessage("material of an inference", got=self.named, expected=self.first)

    async def calls(self, share: Octets) -> AsyncGenerator[tuple[Octets, Sample], None]:
        """Share and material of every call of the program that the inference takes."""
        begun = 0
        if self.first < 0:
            self.begin()
        try:
            for number in range(self.count):
                sample = self.sample(self.first + number)
                begun += 1
                try:
                    yield share[number : number + 1], sample
                finally:
                    await sample.close()
        finally:
            self.stock.release(self.model, self.count - begun)


class Staging:
    """One party's side. ``pumps`` must run for as long as it is used; ``close`` ends it.

    What nobody waits for is done in the pauses between inferences: an expansion that was begun
    stops between two gates while an inference runs, and the dealer gets its credit in lumps.
    """

    def __init__(
        self,
        party: int,
        programs: Mapping[str, PartyProgram],
        link: PartyLink,
        stock: Stock,
        options: LaneOptions,
    ) -> None:
        self._party, self._programs = party, programs
        self._link, self._stock, self._options = link, stock, options
        self._loop = asyncio.get_running_loop()
        # Party 1: what is kept ready, and when such was asked for last; party 0: all that party 1
        # announced, by model and first item.
        self._ahead: defaultdict[Key, deque[Staged]] = defaultdict(deque)
        self._asked: dict[Key, float] = {
            (model, 1): 0.0 for model, program in programs.items() if not program.plan.streamed
        }
        self._announced: dict[tuple[str, int], Staged] = {}
        self._changed = asyncio.Event()
        self._quiet, self._closed = True, False
        self._wanted: set[asyncio.Future[Prepared]] = set()
        self._open, self._go = asyncio.Event(), threading.Event()  # the same, for tasks and threads
        self._resting: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="expand")
        self._gates = ThreadPoolExecutor(1, thread_name_prefix="gates")  # of streamed models
        self._expansions: set[asyncio.Future[Prepared]] = set()
        stock.on_arrival = self._changed.set
        link.on_stage = self._follow if party == 0 else None
        self._pace()

    def pumps(self) -> list[Coroutine[Any, Any, None]]:
        """What must run for as long as material is wanted."""
        return [self._fill()] if self._party == 1 else []

    def busy(self) -> None:
        """An inference begins: what can wait should."""
        self._quiet = False
        self._pace()
        self._cancel_timers()

    def idle(self) -> None:
        """No inference is running or waiting. The answer has yet to leave, so nothing begins at
        once: an expansion would share this process's interpreter with it."""
        self._resting = self._loop.call_later(GRACE_S, self._rest)
        self._settling = self._loop.call_later(SETTLE_S, self._stock.settle)

    def _rest(self) -> None:
        self._quiet = True
        self._pace()
        self._changed.set()

    async def close(self) -> None:
        """Destroy everything."""
        self._closed = True
        self._cancel_timers()
        self._stock.close()
        expansions = list(self._expansions)
        for each in expansions:
            each.cancel()
        await asyncio.gather(*expansions, return_exceptions=True)
        for pool in (self._pool, self._gates):
            pool.shutdown(wait=False, cancel_futures=True)
        self._pace()  # no thread may wait for ever
        self._ahead.clear()
        self._announced.clear()

    async def get(self, model: str, samples: int, wait_s: float) -> Staged | Streamed:
        """Party 1: material for an inference. Raises MaterialExhausted."""
        if self._programs[model].plan.streamed:
            await self._stock.there(model, min(wait_s, MATERIAL_WAIT_S))
            return self._streamed(model, samples)
        key = (model, samples)
        self._asked[key] = self._loop.time()
        self._changed.set()
        if self._ahead[key]:
            staged = self._ahead[key].popleft()
        else:
            timeout = min(wait_s, MATERIAL_WAIT_S)
            first, items = await self._stock.take(model, samples, timeout)
            staged = self._staged(model, first, samples, items)
            await self._link.stage(model, staged.first, samples)
        self._hurry(staged)
        return staged

    def claim(self, model: str, first: int, samples: int) -> Staged | Streamed:
        """Party 0: the material that party 1 names for an inference. Raises MalformedMessage."""
        if self._programs[model].plan.streamed:
            return self._streamed(model, samples, first)
        staged = self._announced.pop((model, first), None)
        if staged is None or staged.count != samples:
            raise MalformedMessage("material of an inference", got="some that was not announced")
        self._hurry(staged)
        return staged

    async def let_go(self, staged: Staged | Streamed) -> None:
        """Party 1: what was got for an inference that does not begin."""
        if isinstance(staged, Staged):
            await self._link.stage(staged.model, staged.first, 0)

    async def _fill(self) -> None:
        """Party 1: keep ready what recent demand looked like, made while the lane is quiet."""
        while True:
            self._changed.clear()
            key = await self._missing() if self._quiet else None
            if key is None:
                await self._changed.wait()
                continue
            first, items = await self._stock.take(*key, FOREVER_S)
            staged = self._staged(key[0], first, key[1], items)
            await self._link.stage(staged.model, staged.first, staged.count)
            self._ahead[key].append(staged)
            await asyncio.wait([staged.ready])

    async def _missing(self) -> Key | None:
        """What to make ahead next, the latest demand first; sizes of long ago are forgotten."""
        latest = self._loop.time() - RECENT_S
        for key in [key for key, asked in self._asked.items() if asked < latest and key[1] > 1]:
            del self._asked[key]
            for staged in self._ahead.pop(key, ()):
                await self._link.stage(staged.model, staged.first, 0)
        for key in sorted(self._asked, key=self._asked.__getitem__, reverse=True):
            model, samples = key
            target = self._options.staged if samples == 1 else 1
            if (
                len(self._ahead[key]) < target
                and self._stock.spare(model) >= samples
                and self._fits(key)
            ):
                return key
        return None

    def _fits(self, key: Key) -> bool:
        """Whether one more leaves expanded material within its bound. One sample always does."""
        held = sum(self._bytes(each) * len(row) for each, row in self._ahead.items())
        least = key[1] == 1 and not self._ahead[key]
        return least or held + self._bytes(key) <= self._options.staged_bytes

    def _bytes(self, key: Key) -> int:
        return key[1] * self._programs[key[0]].plan.expanded_bytes

    def _follow(self, stage: LinkStage) -> None:
        """Party 0: expand the items that party 1 set aside, or let go of them."""
        model, first, count = stage.model_hash, stage.first_item, stage.items
        if model not in self._programs:
            raise ModelNotFound("model", got=model[:64], expected="one that is served here")
        if not count and (model, first) in self._announced:
            del self._announced[model, first]
            return
        if not count or (model, first) in self._announced or count > self._stock.most(model):
            raise MalformedMessage("material announced", got=(first, count))
        if len(self._announced) >= MAX_ANNOUNCED:
            raise MalformedMessage("material announced", got="far more than is used")
        self._announced[model, first] = self._staged(model, first, count)

    def _streamed(self, model: str, count: int, named: int | None = None) -> Streamed:
        feed = self._stock.feeds.get(model)

        async def item(index: int) -> Item:
            return (await self._stock.take_at(model, index, 1, MATERIAL_WAIT_S))[0]

        def sample(index: int) -> Sample:
            take = partial(feed.take, index, patience_s=MATERIAL_WAIT_S) if feed else None
            leave = partial(feed.leave, index) if feed else None
            return Sample(self._programs[model], partial(item, index), take, self._gates, leave)

        return Streamed(model, count, self._stock, sample, named)

    def _staged(
        self, model: str, first: int, count: int, items: list[Item] | None = None
    ) -> Staged:
        """Expand ``items``, or those of these indices once they come."""

        async def work() -> Prepared:
            there = items or await self._stock.take_at(model, first, count, FOREVER_S)
            await self._open.wait()
            prepare = self._programs[model].prepare
            if self._bytes((model, count)) <= SMALL_BYTES:
                return prepare(there, lambda: None)
            return await self._loop.run_in_executor(self._pool, prepare, there, self._go.wait)

        ready = asyncio.ensure_future(work())
        self._expansions.add(ready)  # not for longer than it takes: its result is megabytes
        ready.add_done_callback(self._expanded)
        return Staged(model, first, count, ready)

    def _expanded(self, ready: asyncio.Future[Prepared]) -> None:
        self._expansions.discard(ready)
        self._wanted.discard(ready)
        self._pace()
        if not ready.cancelled():
            ready.exception()  # whoever uses it sees the error; if nobody does, it is not worth one

    def _hurry(self, staged: Staged) -> None:
        """An inference waits for it, so nothing holds it up any more."""
        if not staged.ready.done():
            self._wanted.add(staged.ready)
            self._pace()

    def _cancel_timers(self) -> None:
        for timer in (self._resting, self._settling):
            if timer is not None:
                timer.cancel()

    def _pace(self) -> None:
        run = self._quiet or self._closed or bool(self._wanted)
        for gate in (self._open, self._go):
            if run:
                gate.set()
            else:
                gate.clear()


def make_stock(party: int, programs: Mapping[str, PartyProgram], options: LaneOptions) -> Stock:
    """An empty stock for these models, with room as ``options`` says. What is seeds alone, all of
    party 0's and of streamed models, has room for a largest batch in any case."""
    models, feeds = {}, {}
    for model, program in programs.items():
        size = program.plan.cost(1).offline_bytes_party1
        if party == 0 or program.plan.streamed:
            depth = max(options.batch, MOST_ITEMS)
        else:
            depth = stock_depth(size, options.material_bytes)
        models[model] = (depth, 0 if party == 0 else size - SEED_BYTES)
        if party == 1 and program.plan.streamed:
            sizes = [8 * gate.dealt_words for gate in program.plan.order if gate.dealt_words]
            feeds[model] = Feed(sizes, program.plan.window_bytes, options.material_bytes)
    return Stock(party, models, feeds, options.batch)
