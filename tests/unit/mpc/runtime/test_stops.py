"""Clients that go away in the middle: the lane drops what they asked for, at both parties, and goes
on with the next; material that was begun is gone, and what was not is there."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clock import run
from unit.mpc.protocol import graphs
from unit.mpc.runtime.test_session import Desk, Lane, Program, job, shares
from unit.mpc.runtime.wires import Pair

from secure_quant import reference
from secure_quant.errors import DeadlineExceeded, MalformedMessage, MaterialExhausted
from secure_quant.mpc.protocol.bundle import load_dealer, load_party, split
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.protocol.rounds import Want
from secure_quant.mpc.runtime.feed import Feed
from secure_quant.mpc.runtime.hello import make_hello
from secure_quant.mpc.runtime.jobs import Job
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.mpc.runtime.session import LaneSession, make_stock
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.mpc.runtime.stops import Stops
from secure_quant.wire.gen.party_link_pb2 import ExchangeResponse, LinkAbort

ROUNDS = 50
GONE = "client gave up"


class Long(Program):
    """Doubles the shares in many rounds, of which each takes a second."""

    def __init__(self, party: int) -> None:
        super().__init__(party)
        self.rounds = 0

    def prepare(self, items, pace):
        return super().prepare(items, lambda: None)  # a thread must not wait for this clock

    def run(self, share, ready):
        for _ in range(ROUNDS):
            yield Want(lambda: asyncio.sleep(1.0))
            self.rounds += 1
            message = b"".join(ready)
            if (yield message) != message:
                raise MalformedMessage("the parties used different material")
        return share * np.uint64(2)


def key(number: int) -> str:
    return job(number).ids[0]


def rounds(lane: Lane) -> list[int]:
    return [session._programs["m"].rounds for session in lane.sessions]


@pytest.mark.parametrize("parties", [(0,), (1,), (0, 1)])
def test_what_runs_ends_at_both_parties_before_another_round(parties: tuple[int, ...]) -> None:
    async def work() -> None:
        async with Lane(program=Long, stops=True) as lane:
            await lane.rehearsed()
            before = rounds(lane)
            await lane.desk.put(1, shares())
            asked = asyncio.ensure_future(lane.infer(1))
            await asyncio.sleep(7.5)
            for party in parties:
                lane.sessions[party].drop(key(1))
            with pytest.raises(DeadlineExceeded, match=GONE):
                await asked
            await asyncio.sleep(3.0)
            assert isinstance(lane.desk.errors[job(1).ids], DeadlineExceeded)
            ran = [after - old for after, old in zip(rounds(lane), before, strict=True)]
            assert max(ran) <= 9
            await lane.desk.put(2, shares())
            expected = np.frombuffer(shares(), np.uint8).astype("<u8") * 2
            assert (await lane.infer(2)).share == expected.tobytes()
            assert all(session.ready.is_set() for session in lane.sessions)

    run(work())


@pytest.mark.parametrize("party", [0, 1])
def test_what_waits_for_its_turn_does_not_begin(party: int) -> None:
    async def work() -> None:
        async with Lane(program=Long, stops=True) as lane:
            await lane.rehearsed()
            for number in (1, 2, 3):
                await lane.desk.put(number, shares())
            asked = [asyncio.ensure_future(lane.infer(number)) for number in (1, 2, 3)]
            await asyncio.sleep(5.5)
            lane.sessions[party].drop(key(2))
            start = asyncio.get_running_loop().time()
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(end) for end in ends[::2]] == [type(ends[0])] * 2 != [DeadlineExceeded] * 2
            assert isinstance(ends[1], DeadlineExceeded)
            assert asyncio.get_running_loop().time() - start < 2 * ROUNDS

    run(work())


def test_a_joined_job_goes_on_while_one_of_its_clients_waits() -> None:
    stops = Stops()
    stops.open(("a", "b"))
    assert stops.left("a") is None
    assert stops.left("x") is None
    found = stops.left("b")
    assert found is not None
    assert found.here
    stops.close(("a", "b"))
    assert stops.left("b") is None


def test_a_party_that_does_not_know_it_is_not_told() -> None:
    assert make_hello(b"i" * 16, 0, {}).stops

    async def work() -> None:
        async with Lane(program=Long) as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares())
            asked = asyncio.ensure_future(lane.infer(1))
            await asyncio.sleep(5.5)
            for session in lane.sessions:
                session.drop(key(1))
            await asked  # it runs to its end
            assert all(session.ready.is_set() for session in lane.sessions)

    run(work())


def test_a_party_says_so_once() -> None:
    async def work() -> None:
        async with Lane(program=Long, stops=True) as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares())
            asked = asyncio.ensure_future(lane.infer(1))
            await asyncio.sleep(5.5)
            abort = LinkAbort(code=1, request_ids=[bytes.fromhex(key(1))])
            for _ in range(2):
                await lane.pair.wires[1].write(ExchangeResponse(abort=abort))
            with pytest.raises(MalformedMessage, match="twice"):
                await lane.runs[0]
            await asyncio.gather(asked, return_exceptions=True)

    run(work())


@pytest.mark.parametrize("seed", range(25))
def test_whoever_goes_and_whenever_the_others_are_served(seed: int) -> None:
    """Of twelve jobs about half are dropped, at either or both parties, at any moment."""
    chance = random.Random(seed)  # noqa: S311  an order of events

    async def one(lane: Lane, number: int) -> str:
        await asyncio.sleep(chance.uniform(0, 200))
        asked = asyncio.ensure_future(lane.infer(number, wait_s=2000.0))
        await asyncio.sleep(chance.uniform(0, 100))
        await lane.desk.put(number, shares())
        if chance.random() < 0.5:
            await asyncio.sleep(chance.uniform(0, 150))
            for party in chance.choice([(0,), (1,), (0, 1), (1, 0)]):
                await asyncio.sleep(chance.choice([0.0, chance.uniform(0, 3)]))
                lane.sessions[party].drop(key(number))
        try:
            answer = await asked
        except DeadlineExceeded:
            return "gone"
        expected = np.frombuffer(shares(), np.uint8).astype("<u8") * 2
        return "right" if answer.share == expected.tobytes() else "wrong"

    async def work() -> None:
        async with Lane(program=Long, stops=True, items=40) as lane:
            await lane.rehearsed()
            ends = await asyncio.gather(*(one(lane, number) for number in range(12)))
            assert set(ends) <= {"right", "gone"}
            assert "right" in ends
            await lane.desk.put(99, shares())
            await lane.infer(99)
            assert all(session.ready.is_set() for session in lane.sessions)
            assert not any(session._stops._jobs for session in lane.sessions)

    run(work())


class Streaming:
    """Both sessions of a lane on a real streamed graph, and its dealer, which may stop an item."""

    def __init__(self, graph: Any, leavable: bool = False) -> None:
        self.leavable, self.left, self.sent = leavable, 0, 0
        bundles = split(graph, streamed=True)
        self.graph, self.dealer, self.pair = graph, load_dealer(bundles["dealer"]), Pair()
        self.desk, self.sessions, self.stocks = Desk(), [], []
        for party, link in enumerate(self.pair.links):
            programs = {graph.hash: load_party(bundles[f"party{party}"])}
            stock = make_stock(party, programs, LaneOptions(material_bytes=1))
            self.stocks.append(stock)
            pump = self.deal if party else asyncio.Event().wait
            self.sessions.append(
                LaneSession(
                    party, programs, link, SimpleNamespace(pump=pump, trace=""), stock,
                    desk=self.desk if party else None, stops=True,
                )
            )  # fmt: skip
        self.feed: Feed = self.stocks[1].feeds[graph.hash]
        self.dealt = 0

    async def deal(self) -> None:
        credit, granted, model = [self.feed.window], asyncio.Event(), self.graph.hash

        def grant(size: int) -> None:
            credit[0] += size
            granted.set()

        def leave(index: int) -> None:
            assert self.leavable
            self.left = index + 1
            granted.set()

        self.feed.on_credit, self.feed.on_leave = grant, leave
        while True:
            item = self.dealer.deal_gates()
            self.feed.begin(self.dealt, leavable=self.leavable)
            for party, seed in enumerate((item.seed0, item.seed1)):
                self.stocks[party].put(model, self.dealt, Item(party, seed))
            place = 0
            for part in item.corrections:
                while credit[0] < len(part) and self.dealt >= self.left:
                    granted.clear()
                    await granted.wait()
                if self.dealt < self.left:
                    break
                credit[0] -= len(part)
                self.sent += len(part)
                self.feed.add(self.dealt, place, bytes(part))
                place += len(part)
                await asyncio.sleep(0)
            self.dealt += 1

    def ask(self, number: int, q: Any) -> tuple[Job, Job]:
        first = np.random.default_rng(number).integers(0, 256, q.shape, np.uint8)
        return tuple(
            Job(self.graph.hash, job(number).ids, (len(q),), ("ann",), 5.0, half.tobytes())
            for half in (first, q.view(np.uint8) ^ first)
        )  # type: ignore[return-value]


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("after", [1, 3, 9, 20])
@pytest.mark.parametrize("leavable", [False, True])
def test_a_streamed_model_goes_on_with_fresh_material(
    party: int, after: int, leavable: bool
) -> None:
    async def work() -> None:
        graph = graphs.mlp()
        lane = Streaming(graph, leavable)
        q = np.random.default_rng(1).integers(-128, 128, (4, *graph.input.shape)).astype(np.int8)
        runs = [asyncio.ensure_future(each.run()) for each in lane.sessions]
        await asyncio.gather(*(each.ready.wait() for each in lane.sessions))
        mine, theirs = lane.ask(1, q)
        await lane.desk.put(1, theirs.share)
        asked = asyncio.ensure_future(lane.sessions[0].infer(mine))
        exchanged, exchange = 0, lane.pair.links[party].exchange

        async def counted(payload: bytes) -> bytes:
            nonlocal exchanged
            exchanged += 1
            if exchanged == after:
                lane.sessions[party].drop(key(1))
            return await exchange(payload)

        lane.pair.links[party].exchange = counted  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded, match=GONE):
            await asked
        assert exchanged == after
        for number in (2, 3):
            mine, theirs = lane.ask(number, q[:2])
            await lane.desk.put(number, theirs.share)
            answer = await lane.sessions[0].infer(mine)
            other = await lane.desk.answered(number)
            words = [np.frombuffer(each.share, "<u8") for each in (answer, other)]
            found = (words[0] + words[1]).view(np.int64).reshape(2, -1)
            assert np.array_equal(found, reference.run_int(graph, q[:2]).reshape(2, -1))
        per_sample = lane.dealer.plan.rounds
        begun = -(-(after + 1) // per_sample)
        assert lane.stocks[0]._shelves[graph.hash].taken == 1 + begun + 4  # the rehearsal's first
        for each in runs:
            each.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    run(work())


def test_the_rest_of_an_item_is_thrown_away_as_it_comes() -> None:
    async def work() -> None:
        feed, granted = Feed([4, 4, 4], 8), list[int]()
        feed.on_credit = granted.append
        feed.begin(0)
        feed.add(0, 0, b"aaaabb")
        assert bytes(await feed.take(0, 0, 4, 1.0)) == b"aaaa"
        feed.leave(0)
        assert feed.flows
        with pytest.raises(MalformedMessage):
            await feed.take(0, 4, 4, 1.0)
        later = asyncio.ensure_future(feed.take(1, 0, 4, 1.0))
        feed.add(0, 6, b"bbcccc")
        assert sum(granted) == 12
        assert not feed.flows
        feed.begin(1)
        feed.add(1, 0, b"dddd")
        assert bytes(await later) == b"dddd"
        with ThreadPoolExecutor(1):
            feed.leave(0)  # long over
        feed.add(1, 4, b"eeee")
        assert bytes(await feed.take(1, 4, 4, 1.0)) == b"eeee"

    run(work())


def test_what_the_dealer_leaves_out_is_not_waited_for() -> None:
    async def work() -> None:
        feed, granted, left = Feed([4, 4, 4], 12), list[int](), list[int]()
        feed.on_credit, feed.on_leave = granted.append, left.append
        feed.begin(0, leavable=True)
        feed.add(0, 0, b"aaaabb")
        with pytest.raises(MalformedMessage):  # nobody left it
            feed.begin(1, leavable=True)
        feed.leave(0)
        assert left == [0]
        later = asyncio.ensure_future(feed.take(1, 0, 4, 1.0))
        feed.add(0, 6, b"b")  # on its way meanwhile
        with pytest.raises(MalformedMessage):
            feed.begin(2, leavable=True)
        feed.begin(1, leavable=True)
        assert sum(granted) == 7  # what came, and no more
        feed.add(1, 0, b"ddddeeeeffff")
        assert [bytes(await later), bytes(await feed.take(1, 4, 4, 1.0))] == [b"dddd", b"eeee"]
        assert bytes(await feed.take(1, 8, 4, 1.0)) == b"ffff"
        feed.leave(1)  # all of it came
        feed.leave(2)  # its head is on its way
        assert left == [0]
        feed.begin(2, leavable=True)
        assert left == [0, 2]
        feed.begin(3, leavable=True)
        feed.add(3, 0, b"gggg")
        assert bytes(await feed.take(3, 0, 4, 1.0)) == b"gggg"

    run(work())


def test_a_dealer_that_knows_no_leaving_is_not_asked() -> None:
    left = list[int]()
    feed = Feed([4, 4], 8)
    feed.on_leave = left.append
    feed.begin(0)
    feed.leave(0)
    feed.add(0, 0, b"aaaabbbb")
    feed.begin(1)
    feed.leave(1)
    assert left == []


def test_who_comes_next_need_not_wait_for_the_last_one_to_end() -> None:
    """While an item of a streamed model flows its dealer lives: another job is accepted, however
    long the one that runs takes."""

    async def work() -> None:
        feed = Feed([4, 4], 8)
        stock = Stock(1, {"m": (4, 8)}, {"m": feed})
        with pytest.raises(MaterialExhausted):
            await stock.there("m", 10.0)
        feed.begin(0)
        stock.put("m", 0, Item(1, bytes(32)))
        assert stock.reserve("m", 1) == 0
        await stock.take_at("m", 0, 1, 10.0)
        feed.add(0, 0, b"aaaa")
        await stock.there("m", 10.0)
        feed.add(0, 4, b"bbbb")
        with pytest.raises(MaterialExhausted):  # all of it came, and no other follows
            await stock.there("m", 10.0)

    run(work())
