"""Material set aside for the inferences of one session, and expanded ahead of them.

Party 1 takes items from its stock and tells party 0 which (``LinkStage``), so that both expand the
same ones while the client's share is still on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secure_quant.errors import MalformedMessage, MaterialExhausted, ModelNotFound
from secure_quant.mpc.link import PartyLink
from secure_quant.mpc.stock import SEED_BYTES, Stock, stock_depth
from secure_quant.wire.gen.party_link_pb2 import LinkStage

if TYPE_CHECKING:
    from secure_quant.mpc.material import Item
    from secure_quant.mpc.party import PartyProgram, Prepared

__all__ = ["MATERIAL_WAIT_S", "LaneOptions", "Staged", "Staging", "make_stock"]

MAX_ANNOUNCED = 1024
FOREVER_S = 1e6
MATERIAL_WAIT_S = 10.0
"""Longest wait for the dealer. A deadline of the caller ends its own wait earlier."""


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """lane: its number. material_bytes: memory for the stock of one model. batch: most samples of
    one inference. staged: inferences of one sample whose material is expanded ahead, per model."""

    lane: int
    material_bytes: int = 64 * 2**20
    batch: int = 64
    staged: int = 3


@dataclass
class Staged:
    """Consecutive items set aside for one inference; ``ready`` once they are expanded."""

    model: str
    first: int
    count: int
    ready: asyncio.Future[Prepared]

    async def prepared(self) -> Prepared:
        """The expanded material. Raises MaterialExhausted, and what the expansion raised."""
        if not self.ready.done():
            await asyncio.wait([self.ready], timeout=MATERIAL_WAIT_S)
        if not self.ready.done():
            raise _none_came(MATERIAL_WAIT_S)
        return self.ready.result()


class Staging:
    """One party's side. ``pumps`` must run for as long as it is used; ``close`` ends it."""

    def __init__(
        self,
        party: int,
        programs: Mapping[str, PartyProgram],
        link: PartyLink,
        stock: Stock,
        ahead: int,
    ) -> None:
        """``ahead``: inferences of one sample whose material is kept expanded, per model."""
        self._party, self._programs = party, programs
        self._link, self._stock = link, stock
        # One sample's material each, ready to use (party 1); all that party 1 announced (party 0).
        self._ahead = {model: asyncio.Queue[Staged](ahead) for model in programs}
        self._announced: dict[tuple[str, int], Staged] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="expand")
        self._fetches: set[asyncio.Future[Prepared]] = set()
        link.on_stage = self._follow if party == 0 else None

    def pumps(self) -> list[Coroutine[Any, Any, None]]:
        """What must run for as long as material is wanted."""
        return [self._stage_ahead(model) for model in self._programs] if self._party == 1 else []

    def busy(self) -> None:
        """An inference begins: what can wait should."""
        self._quiet.clear()

    def idle(self) -> None:
        """No inference is running or waiting."""
        self._quiet.set()

    async def close(self) -> None:
        """Destroy everything."""
        self._stock.close()
        fetches = list(self._fetches)
        for each in fetches:
            each.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def get(self, model: str, samples: int, wait_s: float) -> Staged:
        """Party 1: material for an inference. Raises MaterialExhausted."""
        timeout = min(wait_s, MATERIAL_WAIT_S)
        if samples > 1:
            return await self._stage(model, samples, timeout)
        try:
            return await asyncio.wait_for(self._ahead[model].get(), timeout)
        except TimeoutError as error:
            raise _none_came(timeout) from error

    def claim(self, model: str, first: int, samples: int) -> Staged:
        """Party 0: the material that party 1 names for an inference. Raises MalformedMessage."""
        staged = self._announced.pop((model, first), None)
        if staged is None or staged.count != samples:
            raise MalformedMessage("material of an inference", got="some that was not announced")
        return staged

    async def _stage(self, model: str, count: int, timeout: float) -> Staged:
        """Party 1: take items, tell party 0, and expand them while the share is on its way."""
        first, items = await self._stock.take(model, count, timeout)
        await self._link.stage(model, first, count)
        return Staged(model, first, count, self._expand(model, items))

    async def _stage_ahead(self, model: str) -> None:
        """Party 1: keep some material ready, made in the pauses between inferences."""
        ahead = self._ahead[model]
        while True:
            if not ahead.empty():
                await self._quiet.wait()
            staged = await self._stage(model, 1, FOREVER_S)
            await asyncio.wait([staged.ready])
            await ahead.put(staged)

    def _follow(self, stage: LinkStage) -> None:
        """Party 0: expand the items that party 1 set aside."""
        key = (stage.model_hash, stage.first_item)
        if stage.model_hash not in self._programs:
            raise ModelNotFound("model", got=stage.model_hash[:64])
        if key in self._announced or not 1 <= stage.items <= self._stock.depth(stage.model_hash):
            raise MalformedMessage("material announced", got=(stage.first_item, stage.items))
        if len(self._announced) >= MAX_ANNOUNCED:
            raise MalformedMessage("material announced", got="far more than is used")

        async def fetch() -> Prepared:
            items = await self._stock.take_at(*key, stage.items, FOREVER_S)
            return await self._expand(stage.model_hash, items)

        ready = asyncio.ensure_future(fetch())
        ready.add_done_callback(_retrieved)
        ready.add_done_callback(self._fetches.discard)  # its result is megabytes
        self._fetches.add(ready)
        self._announced[key] = Staged(*key, stage.items, ready)

    def _expand(self, model: str, items: list[Item]) -> asyncio.Future[Prepared]:
        loop = asyncio.get_running_loop()
        ready = loop.run_in_executor(self._pool, self._programs[model].prepare, items)
        ready.add_done_callback(_retrieved)
        return ready


def make_stock(party: int, programs: Mapping[str, PartyProgram], options: LaneOptions) -> Stock:
    """An empty stock for these models, with room as ``options`` says."""
    models = {}
    for model, program in programs.items():
        size = program.plan.cost(1).offline_bytes_party1
        depth = stock_depth(size, options.material_bytes, options.batch)
        models[model] = (depth, 0 if party == 0 else size - SEED_BYTES)
    return Stock(party, models)


def _none_came(waited_s: float) -> MaterialExhausted:
    return MaterialExhausted("no material from the dealer", got=f"{waited_s:.1f} s waited")


def _retrieved(ready: asyncio.Future[Any]) -> None:
    """Whoever uses the material sees the error; if nobody does, it is not worth a warning."""
    if not ready.cancelled():
        ready.exception()
