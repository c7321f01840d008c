"""What a lane keeps ready, when it is made, and when the dealer hears of it."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from clock import run

from secure_quant.errors import MalformedMessage, MaterialExhausted, ModelNotFound
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime import staging as module
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.mpc.runtime.staging import Staging
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.wire.gen.party_link_pb2 import LinkStage

MODEL = "m"
BYTES = 100


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch):
    """But where a test says so: what is small is made in the loop, and is never half made."""
    monkeypatch.setattr(module, "SMALL_BYTES", 0)


class Program:
    """Remembers what was expanded; two gates an expansion."""

    plan = SimpleNamespace(expanded_bytes=BYTES, streamed=False)

    def __init__(self):
        self.expanded = []

    def prepare(self, items, pace):
        pace()
        pace()
        self.expanded.append(len(items))
        return [item.take()[0][0] for item in items]


class Link:
    def __init__(self):
        self.on_stage, self.stages = None, []

    async def stage(self, model, first, items):
        self.stages.append((first, items))


class Side:
    """One party's staging over a stock of 200 items, of which ``items`` are there."""

    def __init__(self, party=1, items=200, **options):
        self.program, self.link = Program(), Link()
        self.stock, self.credit = Stock(party, {MODEL: (200, 0)}), []
        self.stock.on_credit = lambda _, count: self.credit.append(count)
        for index in range(items):
            self.stock.put(MODEL, index, Item(party, bytes([index]) * 32))
        self.staging = Staging(
            party, {MODEL: self.program}, self.link, self.stock, LaneOptions(**options)
        )
        self.pumps = [asyncio.ensure_future(each) for each in self.staging.pumps()]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for pump in self.pumps:
            pump.cancel()
        await asyncio.gather(*self.pumps, return_exceptions=True)
        await self.staging.close()

    async def settled(self):
        """Until nothing more is made."""
        before = None
        while before != (before := (len(self.link.stages), len(self.program.expanded))):
            await asyncio.sleep(0.03)


def test_what_was_asked_for_is_kept_ready():
    async def work():
        async with Side(staged=2) as side:
            await side.settled()
            assert side.link.stages == [(0, 1), (1, 1)]
            first = await side.staging.get(MODEL, 5, 1)
            assert (first.first, first.count) == (2, 5)
            assert await first.prepared() == [2, 3, 4, 5, 6]
            await side.settled()
            assert side.link.stages[2:] == [(2, 5), (7, 5)]
            again = await side.staging.get(MODEL, 5, 1)
            assert again.ready.done()
            assert again.first == 7
            assert side.link.stages[4:] == []
            assert (await side.staging.get(MODEL, 1, 1)).first == 0

    run(work())


def test_sizes_of_long_ago_are_let_go_at_both_parties(monkeypatch):
    async def work():
        async with Side(staged=1) as side:
            await side.staging.get(MODEL, 4, 1)
            await side.settled()
            kept = next(stage for stage in side.link.stages[1:] if stage[1] == 4)
            monkeypatch.setattr(module, "RECENT_S", -1.0)
            side.staging.idle()
            await side.settled()
            assert side.link.stages[-1] == (kept[0], 0)
            await side.staging.get(MODEL, 4, 1)
            await side.settled()
            assert sum(count == 4 for _, count in side.link.stages) == 3

    run(work())


def test_what_is_kept_has_a_bound():
    async def work():
        async with Side(staged=3, staged_bytes=10 * BYTES) as side:
            for samples in (6, 4, 11):
                await side.staging.get(MODEL, samples, 1)
                await side.settled()
            ahead = side.link.stages
            # Three samples, then six more are one too many beside four; eleven never fit.
            assert sum(count for _, count in ahead) - (6 + 4 + 11) <= 10
            assert [count for _, count in ahead].count(11) == 1

    run(work())


def test_nothing_is_begun_and_nothing_goes_on_while_an_inference_runs():
    async def work():
        async with Side(staged=1) as side:
            await side.settled()
            side.staging.busy()
            await side.staging.get(MODEL, 1, 1)
            await side.settled()
            assert len(side.link.stages) == 1
            side.staging.idle()
            await side.settled()
            assert len(side.link.stages) == 2

    run(work())


def test_an_expansion_stops_between_gates_until_somebody_waits_for_it():
    async def work():
        loop = asyncio.get_running_loop()
        between, busy, order = asyncio.Event(), threading.Event(), []

        def stopped(items, pace):
            """Its first gate; an inference begins; what is left once it may go on."""
            pace()
            loop.call_soon_threadsafe(between.set)
            busy.wait()
            pace()
            order.append("resumed")
            return [item.take()[0][0] for item in items]

        async with Side(party=0) as side:
            side.program.prepare = stopped
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=0, items=3))
            await between.wait()
            side.staging.busy()
            busy.set()
            await asyncio.to_thread(time.sleep, 0.02)  # which is ample for one that does not stop
            order.append("claimed")
            assert await side.staging.claim(MODEL, 0, 3).prepared() == [0, 1, 2]
        assert order == ["claimed", "resumed"]

    run(work())


@pytest.mark.parametrize("small", [BYTES, 2 * BYTES])
def test_small_material_is_made_in_the_loop_and_other_in_a_thread(small, monkeypatch):
    monkeypatch.setattr(module, "SMALL_BYTES", small)
    threads = []

    def noted(items, pace):
        threads.append(threading.current_thread() is threading.main_thread())
        return len(items)

    async def work():
        async with Side(party=0) as side:
            side.program.prepare = noted
            for first, count in ((0, 1), (1, 2), (3, 3)):
                side.link.on_stage(LinkStage(model_hash=MODEL, first_item=first, items=count))
                assert await side.staging.claim(MODEL, first, count).prepared() == count

    run(work())
    assert threads == [count * BYTES <= small for count in (1, 2, 3)]


def test_an_announcement_waits_for_a_pause_too():
    async def work():
        async with Side(party=0) as side:
            side.staging.busy()
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=0, items=1))
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=1, items=1))
            await asyncio.sleep(0.05)
            assert side.program.expanded == []
            assert await side.staging.claim(MODEL, 1, 1).prepared() == [1]

    run(work())


def test_a_streamed_model_runs_while_expansions_of_another_pause():
    class Gates:
        plan = SimpleNamespace(streamed=True, order=[SimpleNamespace(dealt_words=0)])

        def expansion(self, seeds):
            return SimpleNamespace(next=lambda *_: seeds[0][:1])

    async def work():
        program, stock = Program(), Stock(0, {MODEL: (9, 0), "big": (9, 0)})
        for index in range(2):
            stock.put(MODEL, index, Item(0, b"m" * 32))
        stock.put("big", 0, Item(0, b"b" * 32))
        link, inside = Link(), threading.Barrier(3)

        def prepare(items, pace):
            inside.wait()
            pace()
            return items

        program.prepare = prepare
        staging = Staging(0, {MODEL: program, "big": Gates()}, link, stock, LaneOptions())
        for index in range(2):
            link.on_stage(LinkStage(model_hash=MODEL, first_item=index, items=1))
        while inside.n_waiting < 2:
            await asyncio.sleep(0)
        staging.busy()
        await asyncio.to_thread(inside.wait)
        calls = staging.claim("big", 0, 1).calls([b"share"])
        _, sample = await anext(calls)
        assert await sample.next() == b"b"
        await calls.aclose()
        await staging.close()

    run(work())


def test_announcements_that_make_no_sense():
    async def work():
        async with Side(party=0) as side:
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=0, items=2))
            for first, items in ((0, 2), (3, 201), (9, 0)):
                with pytest.raises(MalformedMessage):
                    side.link.on_stage(LinkStage(model_hash=MODEL, first_item=first, items=items))
            with pytest.raises(ModelNotFound):
                side.link.on_stage(LinkStage(model_hash="x", first_item=0, items=2))
            with pytest.raises(MalformedMessage):
                side.staging.claim(MODEL, 0, 1)
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=2, items=2))
            side.link.on_stage(LinkStage(model_hash=MODEL, first_item=2, items=0))
            with pytest.raises(MalformedMessage):
                side.staging.claim(MODEL, 2, 2)

    run(work())


def test_two_batches_wait_for_the_same_items_one_after_the_other():
    async def work():
        async with Side(items=0, staged=1) as side:
            waiting = [asyncio.ensure_future(side.staging.get(MODEL, 3, 5)) for _ in range(2)]
            await asyncio.sleep(0.01)
            for index in range(6):
                side.stock.put(MODEL, index, Item(1, bytes([index]) * 32))
            assert [(await each).first for each in waiting] == [0, 3]
            with pytest.raises(MaterialExhausted):
                await side.staging.get(MODEL, 3, 0.02)

    run(work())


def test_credit_goes_out_in_lumps_and_in_pauses():
    async def work():
        async with Side(party=0) as side:
            side.staging.busy()
            for index in range(99):
                await side.stock.take_at(MODEL, index, 1, 1)
            assert side.credit == []
            await side.stock.take_at(MODEL, 99, 1, 1)
            assert side.credit == [100]
            await side.stock.take_at(MODEL, 100, 1, 1)
            await asyncio.sleep(2 * module.SETTLE_S)
            assert side.credit == [100]
            side.staging.idle()
            await asyncio.sleep(2 * module.SETTLE_S)
            assert side.credit == [100, 1]

    run(work())


def test_whoever_needs_material_that_is_not_there_has_the_dealer_told():
    async def work():
        async with Side(items=2, staged=1) as side:
            await side.settled()
            waiting = asyncio.ensure_future(side.staging.get(MODEL, 2, 5))
            await asyncio.sleep(0.01)
            assert side.credit == [1]
            waiting.cancel()

    run(work())
